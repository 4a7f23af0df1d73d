//! Gradients against outside judges: PyTorch's autograd, and central differences over ONNX's own operator cases.
//!
//! The cases are found by the environment variable `ONNX_NODE_CORPUS`, a folder made by `dump_node_tests.py`. Without
//! it the test says so and passes.

mod cases;
mod differences;
mod gradients;
mod models;
mod torch_refs;
