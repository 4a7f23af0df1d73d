//! Our own GPU executor: WGSL kernels from `shaders/` on Vulkan, Metal or DX12, by way of wgpu.
//!
//! A graph is lowered to operations on strided views ([`lower`]), elementwise chains are fused ([`fuse`]), and
//! the result is bound to device memory ([`program`]). Shapes must all be known before running. Knows nothing
//! of gradients or training. Look at [`WgpuExecutor`]; `docs/gpu.md` tells the whole way.

mod fuse;
mod gpu;
mod kernel;
mod lower;
mod plan;
mod program;
mod value;
mod view;

pub use gpu::{AdapterReport, adapters};
pub use program::KernelTime;

use super::{Compiled, Executor, Value};
use crate::error::Result;
use crate::onnx::{Facts, Model, Tensor};
use gpu::Gpu;
use std::sync::Arc;

/// Runs graphs on a GPU.
pub struct WgpuExecutor {
    gpu: Arc<Gpu>,
}

impl WgpuExecutor {
    /// Opens the best GPU; a software driver only where `allow_software`.
    ///
    /// # Errors
    /// [`crate::Error::Executor`], with a hint, when there is none or it can't be opened.
    pub fn open(allow_software: bool) -> Result<Self> {
        Ok(Self { gpu: Gpu::open(allow_software)? })
    }
    /// How many different kernels were compiled so far.
    pub fn kernels(&self) -> usize {
        self.gpu.pipeline_count()
    }
    /// Bytes of device memory that wait to be used again.
    pub fn idle_bytes(&self) -> u64 {
        self.gpu.free_bytes()
    }
    fn program(&self, model: &Model, facts: &Facts) -> Result<program::Program> {
        let mut plan = lower::lower(model, facts, self.gpu.max_bytes())?;
        plan.prune();
        let calls = fuse::fuse(&plan, self.gpu.max_buffers);
        program::Program::new(&self.gpu, &plan, calls)
    }
    /// What each kernel takes in one run of `model` on `inputs`, dispatch by dispatch, most expensive first.
    ///
    /// # Errors
    /// As [`Executor::compile`] and [`Compiled::run`].
    pub fn profile(&self, model: &Model, facts: &Facts, inputs: &[Value]) -> Result<Vec<KernelTime>> {
        let program = self.program(model, facts)?;
        // Drivers finish compiling a kernel when it first runs.
        program.profile(inputs)?;
        program.profile(inputs)
    }
}

impl Executor for WgpuExecutor {
    fn name(&self) -> &'static str {
        "wgpu"
    }
    fn device(&self) -> String {
        let report = &self.gpu.report;
        format!("{} ({}, {})", report.name, report.kind, report.backend)
    }
    fn misses(&self, model: &Model) -> Vec<String> {
        let missing = model.graph.nodes.iter().filter(|node| lower::rule(node).is_none());
        missing
            .map(|node| format!("node '{}': {} has no GPU kernel", node.label(), node.qualified_op()))
            .collect()
    }
    fn compile(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        Ok(Box::new(self.program(model, facts)?))
    }
    fn upload(&self, tensor: &Tensor) -> Result<Value> {
        Ok(Value::new(value::WgpuValue::upload(&self.gpu, tensor)?))
    }
}
