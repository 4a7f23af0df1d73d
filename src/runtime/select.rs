//! Which executor runs a program: the one demanded, or the fastest that is there and covers it.
//!
//! Look at [`open`] for a choice by name, [`pick`] for a choice by graph, [`diagnose`] for `doctor`.

use super::Executor;
use super::discover::{self, Candidate};
use super::profile::{Profile, Profiled};
use crate::error::{Error, Result};
use crate::onnx::Model;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Which executor runs a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecutorChoice {
    /// The fastest that covers the program.
    #[default]
    Auto,
    Ort,
    Tract,
    Wgpu,
}

/// What the operands of large matrix products are rounded to, on a GPU that has matrix units for it; sums and everything else
/// are float32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    F16,
}

/// What executors are opened with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExecutorOptions {
    /// Threads on the CPU; `None` for as many as the machine runs at once.
    pub threads: Option<usize>,
    /// ONNX Runtime's library, or a folder that holds it; `None` to look for it.
    pub ort_lib: Option<PathBuf>,
    /// Accept a GPU that is emulated on the CPU: for tests, it is slow.
    pub allow_software_gpu: bool,
    /// Of large products on a GPU.
    pub precision: Precision,
    /// A folder for compiled GPU kernels, so that the next start is quicker; `None` to compile them every time.
    pub kernel_cache: Option<PathBuf>,
    /// Write down where the time of every run goes.
    pub profile: Option<Profile>,
}

impl ExecutorOptions {
    fn threads(&self) -> usize {
        self.threads.filter(|&n| n > 0).unwrap_or_else(all_threads)
    }
}

/// Threads that the machine runs at once.
pub fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The executor of that name; for [`ExecutorChoice::Auto`] ONNX Runtime where it is found, else tract. A GPU is used
/// when asked for, and by training where its work is worth it ([`gpu_where_it_pays`](super::gpu_where_it_pays)).
///
/// # Errors
/// [`Error::Executor`] (exit code 5) where the one demanded isn't there, with what to do about it; [`Error::Usage`] where it is
/// one of CPUs and is to round.
pub fn open(choice: ExecutorChoice, options: &ExecutorOptions) -> Result<Arc<dyn Executor>> {
    if options.precision == Precision::F16 && matches!(choice, ExecutorChoice::Ort | ExecutorChoice::Tract) {
        return Err(Error::usage("--precision f16 is for GPUs, and a CPU's executor was asked for")
            .hint("leave one of the two out, or use --executor wgpu"));
    }
    let opened = match choice {
        ExecutorChoice::Ort => open_ort(options),
        ExecutorChoice::Tract => open_tract(options),
        ExecutorChoice::Wgpu => open_wgpu(options),
        // A library asked for by name is a demand, even where another executor would do.
        ExecutorChoice::Auto if options.ort_lib.is_some() => open_ort(options),
        ExecutorChoice::Auto => open_ort(options).or_else(|missing| open_tract(options).map_err(|_| missing)),
    };
    Ok(match &options.profile {
        // The GPU tells its parts from those on the CPU by itself.
        Some(profile) if choice != ExecutorChoice::Wgpu => {
            Arc::new(Profiled { inner: opened?, profile: profile.clone() })
        }
        _ => opened?,
    })
}

/// The executor for all of `models`: as [`open`], and for [`ExecutorChoice::Auto`] one that covers their operators.
///
/// # Errors
/// Where the demanded one, or any, misses an operator: with the list of what each misses.
pub fn pick(
    choice: ExecutorChoice,
    options: &ExecutorOptions,
    models: &[&Model],
) -> Result<Arc<dyn Executor>> {
    let first = open(choice, options)?;
    let misses = all_misses(&*first, models);
    if misses.is_empty() {
        return Ok(first);
    }
    let mut report = vec![format!("{}: {}", first.name(), misses.join(", "))];
    if choice == ExecutorChoice::Auto && first.name() != "tract" {
        let second = open_tract(options)?;
        let misses = all_misses(&*second, models);
        if misses.is_empty() {
            return Ok(second);
        }
        report.push(format!("{}: {}", second.name(), misses.join(", ")));
    }
    let name = if choice == ExecutorChoice::Auto { "auto" } else { first.name() };
    let hint = match first.name() {
        "tract" => discover::BEYOND_TRACT,
        _ => "see `onnx-merge doctor` for other executors, or freeze the weights before these nodes",
    };
    Err(Error::executor(name, format!("can't run this program: {}", report.join("; "))).hint(hint))
}

fn all_misses(executor: &dyn Executor, models: &[&Model]) -> Vec<String> {
    let mut misses: Vec<String> = models.iter().flat_map(|model| executor.misses(model)).collect();
    misses.sort();
    misses.dedup();
    misses
}

/// One executor as `doctor` sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    pub executor: &'static str,
    /// What it would run on; `None` where it can't.
    pub device: Option<String>,
    /// Why it can't.
    pub problem: Option<String>,
    pub hints: Vec<String>,
}

/// Everything `doctor` shows about executors.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    pub executors: Vec<Health>,
    /// Every file that may be ONNX Runtime's library, best first.
    pub libraries: Vec<Candidate>,
    /// Every GPU, software ones too.
    pub gpus: Vec<Gpu>,
    /// Where compiled GPU kernels are kept, if anywhere.
    pub kernel_cache: Option<KernelCache>,
}

/// A folder of compiled GPU kernels.
#[derive(Clone, Debug, Serialize)]
pub struct KernelCache {
    pub folder: PathBuf,
    pub bytes: u64,
}

/// A GPU, or a driver that plays one.
#[derive(Clone, Debug, Serialize)]
pub struct Gpu {
    pub name: String,
    /// `"discrete GPU"`, `"integrated GPU"`, `"virtual GPU"`, `"software"`, `"other"`.
    pub kind: &'static str,
    /// `"vulkan"`, `"metal"`, `"dx12"`.
    pub backend: String,
    pub driver: String,
    /// Bytes of a tensor at most.
    pub max_tensor: u64,
    /// Bytes of memory that the invocations of a workgroup share.
    pub workgroup_memory: u32,
    /// Workgroups along one dimension of a dispatch.
    pub max_groups: u32,
    pub features: Vec<&'static str>,
}

#[cfg(feature = "wgpu")]
fn gpus() -> Vec<Gpu> {
    let all = super::wgpu::adapters().into_iter();
    all.map(|a| Gpu {
        name: a.name,
        kind: a.kind,
        backend: a.backend,
        driver: a.driver,
        max_tensor: a.max_binding,
        workgroup_memory: a.workgroup_memory,
        max_groups: a.max_groups,
        features: a.features,
    })
    .collect()
}

#[cfg(not(feature = "wgpu"))]
fn gpus() -> Vec<Gpu> {
    vec![]
}

/// The user's folder for compiled GPU kernels; `None` where there is none or `ONNX_MERGE_CACHE` is `off`.
#[cfg(feature = "wgpu")]
pub fn kernel_folder() -> Option<PathBuf> {
    super::wgpu::kernel_folder()
}

#[cfg(not(feature = "wgpu"))]
pub fn kernel_folder() -> Option<PathBuf> {
    None
}

#[cfg(feature = "wgpu")]
fn kernel_cache(options: &ExecutorOptions) -> Option<KernelCache> {
    let folder = options.kernel_cache.clone()?;
    Some(KernelCache { bytes: super::wgpu::kernel_bytes(&folder), folder })
}

#[cfg(not(feature = "wgpu"))]
fn kernel_cache(_: &ExecutorOptions) -> Option<KernelCache> {
    None
}

/// Tries every executor.
pub fn diagnose(options: &ExecutorOptions) -> Diagnosis {
    let health = |executor: &'static str, opened: Result<Arc<dyn Executor>>| match opened {
        Ok(opened) => Health { executor, device: Some(opened.device()), problem: None, hints: vec![] },
        Err(error) => {
            let hints = error.hints().into_iter().map(str::to_owned).collect();
            let problem = error.to_string();
            let problem =
                problem.strip_prefix(&format!("executor {executor}: ")).unwrap_or(&problem).to_owned();
            Health { executor, device: None, problem: Some(problem), hints }
        }
    };
    Diagnosis {
        executors: vec![
            health("ort", open_ort(options)),
            health("tract", open_tract(options)),
            health("wgpu", open_wgpu(options)),
        ],
        libraries: discover::candidates(options.ort_lib.as_deref()),
        gpus: gpus(),
        kernel_cache: kernel_cache(options),
    }
}

#[cfg(feature = "ort")]
fn open_ort(options: &ExecutorOptions) -> Result<Arc<dyn Executor>> {
    let library = discover::find(options.ort_lib.as_deref())?;
    Ok(Arc::new(super::OrtExecutor::open(&library, options.threads())?))
}

#[cfg(not(feature = "ort"))]
fn open_ort(_: &ExecutorOptions) -> Result<Arc<dyn Executor>> {
    not_built("ort")
}

#[cfg(feature = "tract")]
fn open_tract(options: &ExecutorOptions) -> Result<Arc<dyn Executor>> {
    Ok(Arc::new(super::TractExecutor::new(options.threads())?))
}

#[cfg(not(feature = "tract"))]
fn open_tract(_: &ExecutorOptions) -> Result<Arc<dyn Executor>> {
    not_built("tract")
}

#[cfg(feature = "wgpu")]
fn open_wgpu(options: &ExecutorOptions) -> Result<Arc<dyn Executor>> {
    let gpu = Arc::new(super::WgpuExecutor::open_with(super::GpuOptions {
        allow_software: options.allow_software_gpu,
        precision: options.precision,
        cache: options.kernel_cache.as_deref(),
    })?);
    // What has no kernel runs on the CPU; a build without a CPU executor refuses it.
    match open_ort(options).or_else(|_| open_tract(options)) {
        Ok(cpu) => Ok(Arc::new(super::SplitExecutor::new(gpu, cpu, options.profile.clone()))),
        Err(_) => Ok(gpu),
    }
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_: &ExecutorOptions) -> Result<Arc<dyn Executor>> {
    not_built("wgpu")
}

#[allow(dead_code, reason = "needed by builds that leave an executor out")]
fn not_built(executor: &'static str) -> Result<Arc<dyn Executor>> {
    Err(Error::executor(executor, "this build of onnx-merge was made without it")
        .hint(format!("build it with `cargo build --release --features {executor}`")))
}
