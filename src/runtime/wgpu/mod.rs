//! Our own GPU executor: WGSL kernels from `shaders/` on Vulkan, Metal or DX12, by way of wgpu.
//!
//! A graph is lowered to operations on strided views (`lower`), elementwise chains are fused (`fuse`), and
//! the result is bound to device memory (`program`). Shapes must all be known before running. Knows nothing
//! of gradients or training. Look at [`WgpuExecutor`]; `docs/gpu.md` tells the whole way.

mod batch;
mod cache;
mod fuse;
mod gpu;
mod kernel;
mod layout;
mod lower;
mod plan;
mod program;
mod search;
mod step;
mod template;
mod timing;
mod together;
mod value;
mod view;

pub use cache::{bytes_in as kernel_bytes, user_folder as kernel_folder};
pub use gpu::{AdapterReport, GpuOptions, adapters};
pub use lower::Survey;
pub use timing::KernelTime;

use super::{Compiled, Executor, Precision, Value};
use crate::error::Result;
use crate::onnx::{DType, Facts, Forms, Model, Node, Tensor};
use gpu::Gpu;
use search::Search;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a device works before kernels are timed on it.
const WARM_UP: Duration = Duration::from_millis(5);

/// Runs graphs on a GPU.
pub struct WgpuExecutor {
    gpu: Arc<Gpu>,
    search: Option<Search>,
    precision: Precision,
}

impl WgpuExecutor {
    /// Opens the best GPU, for float32; a software driver only where `allow_software`.
    ///
    /// # Errors
    /// [`crate::Error::Executor`], with a hint, when there is none or it can't be opened.
    pub fn open(allow_software: bool) -> Result<Self> {
        Self::open_with(GpuOptions { allow_software, ..GpuOptions::default() })
    }
    /// As [`open`](Self::open). With a folder there are the compiled kernels of earlier runs, where the driver gives them away,
    /// and the tiles that earlier runs found to be the fastest. It is written when tiles are found and when the device is
    /// closed; trouble with it is no error. With [`Precision::F16`] large products are computed from operands rounded to
    /// float16 where the device has matrix units for it ([`rounds`](Self::rounds)).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(options: GpuOptions<'_>) -> Result<Self> {
        let gpu = Gpu::open(options)?;
        let search = Search::open(&gpu.report, options.cache)?;
        Ok(Self { gpu, search, precision: options.precision })
    }
    /// Whether operands of large products are rounded to float16.
    pub fn rounds(&self) -> bool {
        self.gpu.matrix_units
    }
    /// Whether there is a kernel for a node's operator, whatever it is applied to.
    pub fn covers(node: &Node) -> bool {
        lower::rule(node).is_some()
    }
    /// Whether tensors of this element type can be on the device.
    pub fn takes(dtype: DType) -> bool {
        plan::Elem::of(dtype).is_ok()
    }
    /// Which nodes of `model` can run here, and why the others can't.
    pub fn survey(&self, model: &Model, facts: &Facts) -> Survey {
        lower::survey(model, facts, self.gpu.target())
    }
    /// How many different kernels were compiled so far.
    pub fn kernels(&self) -> usize {
        self.gpu.pipeline_count()
    }
    /// Bytes of compiled kernels that earlier runs left; `None` where none are kept.
    pub fn found_bytes(&self) -> Option<usize> {
        self.gpu.found_bytes()
    }
    /// Bytes of device memory that wait to be used again.
    pub fn idle_bytes(&self) -> u64 {
        self.gpu.free_bytes()
    }
    /// Bytes of a tensor at most.
    pub fn max_tensor_bytes(&self) -> u64 {
        self.gpu.max_bytes()
    }
    /// Lets all tensors on the device together take no more than `bytes`: more is refused as running out of memory.
    pub fn limit_memory(&self, bytes: u64) {
        self.gpu.limit_memory(bytes);
    }
    /// Gives the device up, as a driver does that hangs: everything fails from then on. For tests.
    pub fn lose_device(&self) {
        self.gpu.lose();
    }
    fn program(&self, model: &Model, facts: &Facts) -> Result<program::Program> {
        let mut plan = lower::lower(model, facts, self.gpu.target())?;
        plan.prune();
        let calls = fuse::fuse(&plan, self.gpu.max_buffers);
        program::Program::new(&self.gpu, &plan, calls, self.search.as_ref())
    }
    /// What each kernel takes in one run of `model` on `inputs`, dispatch by dispatch, most expensive first.
    ///
    /// # Errors
    /// As [`Executor::compile`] and [`Compiled::run`].
    pub fn profile(&self, model: &Model, facts: &Facts, inputs: &[Value]) -> Result<Vec<KernelTime>> {
        let mut program = self.program(model, facts)?;
        // Drivers finish compiling a kernel when it first runs.
        program.profile(inputs)?;
        // A device that has waited is slow at first: every profile follows other runs without a pause.
        let mut profile = || {
            let begun = Instant::now();
            while begun.elapsed() < WARM_UP {
                program.run(inputs)?;
            }
            program.profile(inputs)
        };
        let total = |times: &[KernelTime]| -> f64 { times.iter().map(|time| time.seconds).sum() };
        let mut best = profile()?;
        for _ in 0..2 {
            let times = profile()?;
            if total(&times) < total(&best) {
                best = times;
            }
        }
        Ok(best)
    }
}

impl Executor for WgpuExecutor {
    fn name(&self) -> &'static str {
        "wgpu"
    }
    fn device(&self) -> String {
        let report = &self.gpu.report;
        let precision = match (self.precision, self.rounds()) {
            (Precision::F32, _) => "",
            (Precision::F16, true) => ", large products of float16",
            (Precision::F16, false) => ", float32: it has no matrix units for float16",
        };
        format!("{} ({}, {}{precision})", report.name, report.kind, report.backend)
    }
    fn misses(&self, model: &Model) -> Vec<String> {
        let missing = model.graph.nodes.iter().filter(|node| !Self::covers(node));
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
    fn holds(&self, value: &Value) -> bool {
        value.downcast::<value::WgpuValue>().is_some_and(|v| Arc::ptr_eq(v.memory.gpu(), &self.gpu))
    }
    fn forms(&self) -> Forms {
        Forms::Windows
    }
    fn finish(&self) -> Result<()> {
        self.gpu.wait(None)
    }
}
