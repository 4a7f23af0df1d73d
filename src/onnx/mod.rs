//! The ONNX format: tensors, graphs, reading, writing, and byte-exact surgery on files.
//!
//! Knows nothing of gradients, training or executors. Start with [`Graph`] and [`Builder`].

mod builder;
mod dtype;
mod graph;
pub mod infer;
mod tensor;

pub use builder::{Builder, WORKING_OPSET};
pub use dtype::DType;
pub use graph::{
    Attr, Dim, Fact, Facts, Function, Graph, Model, Node, ValueId, ValueInfo, node_reads, outer_reads,
};
pub use tensor::{SiteId, Tensor, element_count};
