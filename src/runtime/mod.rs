//! Executors: what runs an ONNX graph, step after step, with its state resident where it runs.
//!
//! Knows graphs and tensors, nothing of gradients or training. An [`Executor`] compiles a [`Model`] into a
//! [`Compiled`] program; values go in and come out as [`Value`]s, which stay on the executor's device
//! until somebody asks for them on the host.

pub mod bench;
pub mod discover;
mod guard;
#[cfg(feature = "ort")]
mod ort;
mod pieces;
mod profile;
mod select;
#[cfg(feature = "wgpu")]
mod split;
mod step;
#[cfg(feature = "tract")]
mod tract;
#[cfg(feature = "wgpu")]
pub mod wgpu;
mod work;

#[cfg(feature = "ort")]
pub use ort::OrtExecutor;
#[cfg(feature = "tract")]
pub use tract::TractExecutor;
#[cfg(feature = "wgpu")]
pub use wgpu::{GpuOptions, WgpuExecutor};

pub use profile::{Line as ProfileLine, Profile};
pub use select::{
    Diagnosis, ExecutorChoice, ExecutorOptions, Gpu, Health, KernelCache, Precision, all_threads, diagnose,
    kernel_folder, open, pick,
};
#[cfg(feature = "wgpu")]
pub use split::SplitExecutor;
pub use step::{Feed, Fetch, Outputs, Runner, Snapshot, State, StateId, StepProgram};

pub use work::{gpu_where_it_pays, multiply_adds, multiply_adds_of};

use crate::error::Result;
use crate::onnx::{Fact, Facts, Forms, Model, Tensor};
use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Keeps ONNX Runtime from collecting data about its use and sending it. To be called on the first line of `main`:
/// the library reads the setting while it is loaded, and the environment must not change once there are threads.
pub fn silence_telemetry() {
    // SAFETY: the caller is the first line of `main`, where no other thread can be reading the environment.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

/// Keeps Mesa's layer that sorts GPUs from asking the desktop which one it runs on where there is no desktop: it would complain on
/// the terminal. To be called before there are threads, as [`silence_telemetry`].
pub fn silence_drivers() {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    // Who chooses a GPU by that layer still does.
    if !set("XDG_RUNTIME_DIR") && !set("MESA_VK_DEVICE_SELECT") {
        // SAFETY: the caller is at the start of `main`, where no other thread can be reading the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// [`Executor::enough`] of CPUs (docs/benchmarks.md).
const ENOUGH_FOR_A_CPU: usize = 8 << 20;

/// Runs graphs somewhere: in ONNX Runtime, in tract, on a GPU.
pub trait Executor: Send + Sync {
    /// `"ort"`, `"tract"` or `"wgpu"`.
    fn name(&self) -> &'static str;
    /// What it runs on, for people: `"CPU, 2 threads (ONNX Runtime 1.32.0)"`.
    fn device(&self) -> String;
    /// Why this executor can't run `model`, one reason an operator; empty when it can. Cheap, and may be
    /// optimistic: [`Executor::compile`] has the last word.
    fn misses(&self, model: &Model) -> Vec<String>;
    /// Makes a runnable program. `facts` holds at least the facts of every graph input without an
    /// initializer, and for graphs that this program made itself those of every value.
    ///
    /// # Errors
    /// [`crate::Error::Executor`], with the node's name where one is to blame.
    fn compile(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>>;
    /// The same for a program that is run once: what is soon made, not what is fast.
    fn compile_once(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        self.compile(model, facts)
    }
    /// Moves a tensor to the device.
    fn upload(&self, tensor: &Tensor) -> Result<Value>;
    /// How many runs [`Compiled::run_each`] works on at once; see [`run_jobs`].
    fn lanes(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }
    /// Bytes of a run's forward values beyond which more rows a run make no row faster; `None` where they do at any size.
    fn enough(&self) -> Option<usize> {
        None
    }
    /// Which formulations are fast here.
    fn forms(&self) -> Forms {
        Forms::default()
    }
    /// Whether its values lie in the host's memory.
    fn on_host(&self) -> bool {
        false
    }
    /// Whether a value is where this executor reads it without moving it.
    fn holds(&self, value: &Value) -> bool;
    /// Waits until everything that was begun is done.
    ///
    /// # Errors
    /// When something of it failed.
    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

/// A compiled graph.
pub trait Compiled: Send {
    /// Runs once. `inputs` are in the order of the graph's inputs without an initializer, the result in the
    /// order of its outputs. Values of another executor, or of the host, are accepted and moved.
    fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>>;
    /// Runs once for each set of inputs, side by side where the executor has [lanes](Executor::lanes); the results in
    /// the order of `runs`.
    fn run_each(&mut self, runs: &[Vec<Value>]) -> Result<Vec<Vec<Value>>> {
        runs.iter().map(|inputs| self.run(inputs)).collect()
    }
}

/// Runs a program once for each of `jobs`, as many of them at a time as the executor has `lanes`: no more inputs and outputs
/// are held than are worked on at once. `feeds` gives the inputs of a job, `take` gets its outputs, in the order of `jobs`.
///
/// # Errors
/// The first of `feeds`, of a run or of `take`.
pub fn run_jobs<J>(
    program: &mut dyn Compiled,
    lanes: NonZeroUsize,
    jobs: impl IntoIterator<Item = J>,
    mut feeds: impl FnMut(&J) -> Result<Vec<Value>>,
    mut take: impl FnMut(J, Vec<Value>) -> Result<()>,
) -> Result<()> {
    let mut jobs = jobs.into_iter();
    loop {
        let some: Vec<J> = jobs.by_ref().take(lanes.get()).collect();
        if some.is_empty() {
            return Ok(());
        }
        let runs = some.iter().map(&mut feeds).collect::<Result<Vec<_>>>()?;
        for (job, outputs) in some.into_iter().zip(program.run_each(&runs)?) {
            take(job, outputs)?;
        }
    }
}

/// A tensor wherever it lives. Cloning is cheap and shares the memory.
#[derive(Clone)]
pub struct Value(Arc<dyn DeviceValue>);

/// What an executor's own values must be able to do.
pub trait DeviceValue: Any + Send + Sync {
    fn fact(&self) -> Fact;
    /// On the host: a copy, unless it lies there already.
    fn to_host(self: Arc<Self>) -> Result<Tensor>;
}

impl Value {
    pub fn new(value: impl DeviceValue) -> Self {
        Self(Arc::new(value))
    }
    /// A value that lives on the host.
    pub fn host(tensor: Tensor) -> Self {
        Self::new(tensor)
    }
    pub fn fact(&self) -> Fact {
        self.0.fact()
    }
    pub fn to_host(&self) -> Result<Tensor> {
        self.clone().into_host()
    }
    /// The same of a value that isn't wanted any more: what nobody else has can be changed then.
    pub fn into_host(self) -> Result<Tensor> {
        self.0.to_host()
    }
    /// This value as an executor's own type, if it is one.
    pub fn downcast<T: DeviceValue>(&self) -> Option<&T> {
        (&*self.0 as &dyn Any).downcast_ref()
    }
    /// The first element as a number: losses and metrics.
    pub fn scalar(&self) -> Result<f64> {
        Ok(self.to_host()?.to_f64().first().copied().unwrap_or(f64::NAN))
    }
}

impl DeviceValue for Tensor {
    fn fact(&self) -> Fact {
        Fact::of(self)
    }
    fn to_host(self: Arc<Self>) -> Result<Tensor> {
        Ok(Arc::unwrap_or_clone(self))
    }
}
