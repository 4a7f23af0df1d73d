//! Gradients against outside judges: PyTorch's autograd and central differences.

mod torch_refs;
