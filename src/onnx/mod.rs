//! The ONNX format: tensors, graphs, reading, writing, and byte-exact surgery on files.
//!
//! Knows nothing of gradients, training or executors. Start with [`Graph`] and [`Builder`].

mod alike;
pub mod atomic;
mod builder;
mod convert;
mod dtype;
mod graph;
pub mod infer;
pub mod kernels;
mod lookups;
mod names;
mod payload;
mod read;
mod recurrent;
pub mod resize;
mod scan;
pub mod surgery;
mod tensor;
mod wire;
mod write;

pub use alike::alike;
pub use builder::{Builder, Forms, WORKING_OPSET};
pub use dtype::DType;
pub use graph::{
    Attr, Dim, Fact, Facts, Function, Graph, Model, Node, ValueId, ValueInfo, node_reads, outer_reads,
};
pub use lookups::{Lookup, lookups};
pub use names::Names;
pub use payload::{Encoding, Site};
pub use read::{ModelFile, check_finite, read};
pub use recurrent::RecurrentOp;
pub use scan::check_tensor;
pub use tensor::{SiteId, Tensor, element_count};
pub use write::{save, save_any_size, to_bytes};

#[cfg(test)]
mod tests;
