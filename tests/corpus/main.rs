//! Outside judges: PyTorch's autograd and central differences over ONNX's own operator cases for gradients, the cases'
//! own outputs for the GPU executor.
//!
//! The cases are found by the environment variable `ONNX_NODE_CORPUS`, a folder made by `dump_node_tests.py`. Without
//! it the test says so and passes.

mod cases;
mod control;
mod corners;
mod differences;
mod dropout;
mod gradients;
mod kernels;
mod models;
mod old_forms;
mod quantised;
mod random_graphs;
mod sparse;
mod torch_refs;
#[cfg(feature = "wgpu")]
mod wgpu;
