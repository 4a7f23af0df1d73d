//! The device: opening an adapter, buffers that are used again, pipelines that are compiled once, and errors
//! that the driver reports on its own time.
//!
//! Knows nothing of graphs. Look at [`Gpu`].

use super::cache::KernelCache;
use super::lower::{MatrixUnits, Target};
use crate::error::{Error, Result};
use crate::runtime::Precision;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How the error of a lost device begins.
const LOST: &str = "the device was lost";

/// Bytes that the invocations of a workgroup share at most (`shaders/matmul_tiled.wgsl`), and how many they are.
pub const WORKGROUP_MEMORY: u32 = 17 << 10;
const WORKGROUP: u32 = 256;

/// The same for products on matrix units, by the usual tiles (`shaders/matmul_coop.wgsl`), and the invocations of a subgroup.
pub const MATRIX_MEMORY: u32 = 28 << 10;
const SUBGROUP: u32 = 32;
/// Multiplications from which products go there, and for each element that is read or written. Looking for operands' largest
/// elements takes as long as what smaller or flatter ones gain (docs/benchmarks-gpu.md).
const LARGE_PRODUCT: usize = 2_000_000_000;
const DENSE_PRODUCT: usize = 256;

/// What wgpu adds to kernels: divisions of whole numbers are by data, too, and must not be by zero.
const CHECKS: wgpu::ShaderRuntimeChecks = wgpu::ShaderRuntimeChecks {
    bounds_checks: false,
    force_loop_bounding: false,
    ..wgpu::ShaderRuntimeChecks::checked()
};

/// Threads may panic elsewhere; what these locks guard stays valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fail(what: impl std::fmt::Display) -> Error {
    Error::executor("wgpu", what)
}

/// An adapter, as `doctor` shows it.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    pub name: String,
    /// `"vulkan"`, `"metal"`, `"dx12"`.
    pub backend: String,
    /// `"discrete GPU"`, `"integrated GPU"`, `"virtual GPU"`, `"software"`, `"other"`.
    pub kind: &'static str,
    pub driver: String,
    /// Bytes of a tensor at most.
    pub max_binding: u64,
    /// Bytes of memory that the invocations of a workgroup share.
    pub workgroup_memory: u32,
    /// Workgroups along one dimension of a dispatch.
    pub max_groups: u32,
    /// Optional abilities of use here: `"f16"`, `"subgroups"`…
    pub features: Vec<&'static str>,
}

impl AdapterReport {
    fn of(adapter: &wgpu::Adapter) -> Self {
        use wgpu::Features as F;
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let known = [
            (F::SHADER_F16, "f16"),
            (F::SHADER_F64, "f64"),
            (F::SUBGROUP, "subgroups"),
            (F::SHADER_FLOAT32_ATOMIC, "f32 atomics"),
            (F::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
            (F::TIMESTAMP_QUERY, "timestamps"),
            (F::PIPELINE_CACHE, "pipeline cache"),
        ];
        AdapterReport {
            name: info.name,
            backend: info.backend.to_string(),
            kind: kind(info.device_type),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            max_binding: limits.max_storage_buffer_binding_size,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_groups: limits.max_compute_workgroups_per_dimension,
            features: known.iter().filter(|(f, _)| features.contains(*f)).map(|(_, name)| *name).collect(),
        }
    }
}

fn kind(device: wgpu::DeviceType) -> &'static str {
    match device {
        wgpu::DeviceType::DiscreteGpu => "discrete GPU",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

/// Every adapter of this machine, software ones too.
pub fn adapters() -> Vec<AdapterReport> {
    let all = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    all.iter().map(AdapterReport::of).collect()
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuOptions<'a> {
    /// Accept a driver that emulates a GPU on the CPU.
    pub allow_software: bool,
    /// Of the operands of large products.
    pub precision: Precision,
    /// A folder for compiled kernels and what is known of tiles; it need not be there.
    pub cache: Option<&'a Path>,
}

/// Whether an adapter has matrix units as `shaders/matmul_coop.wgsl` takes them: blocks of 16 × 16 of float16, summed in
/// float32, by subgroups of 32.
fn has_matrix_units(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let fits = |p: &wgpu::CooperativeMatrixProperties| {
        ([p.m_size, p.n_size, p.k_size], p.ab_type, p.cr_type) == ([16; 3], F16, F32)
            && !p.saturating_accumulation
    };
    adapter.features().contains(MATRIX_FEATURES)
        && [info.subgroup_min_size, info.subgroup_max_size] == [SUBGROUP; 2]
        && limits.max_compute_workgroup_storage_size >= MATRIX_MEMORY
        && adapter.cooperative_matrix_properties().iter().any(fits)
}

const MATRIX_FEATURES: wgpu::Features = wgpu::Features::SHADER_F16
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// An open device.
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub report: AdapterReport,
    /// Whether products were asked for in float16 and go to matrix units.
    pub matrix_units: bool,
    /// Tensors that a kernel can bind.
    pub max_buffers: usize,
    pub max_groups: u32,
    pub uniform_alignment: usize,
    /// Nanoseconds of a tick of the device's clock; `None` where it has none to read.
    pub tick: Option<f64>,
    pipelines: Mutex<HashMap<String, wgpu::ComputePipeline>>,
    /// Pipelines of earlier runs.
    cache: Option<KernelCache>,
    free: Mutex<HashMap<u64, Vec<wgpu::Buffer>>>,
    /// Bytes of all tensors' buffers, waiting ones included, and what they may come to.
    allocated: AtomicU64,
    budget: AtomicU64,
    fault: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens the best adapter: discrete before integrated before virtual, software only where allowed.
    ///
    /// # Errors
    /// [`Error::Executor`], with a hint, when there is none or it can't be opened.
    pub fn open(options: GpuOptions<'_>) -> Result<Arc<Self>> {
        let rank = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => Some(0),
            wgpu::DeviceType::IntegratedGpu => Some(1),
            wgpu::DeviceType::VirtualGpu => Some(2),
            wgpu::DeviceType::Other => Some(3),
            wgpu::DeviceType::Cpu => options.allow_software.then_some(4),
        };
        let all = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
        let software = all.iter().any(|a| a.get_info().device_type == wgpu::DeviceType::Cpu);
        let best = all.into_iter().filter_map(|a| rank(&a).map(|r| (r, a))).min_by_key(|(r, _)| *r);
        let Some((_, adapter)) = best else {
            return Err(match software {
                true => fail("no hardware GPU, only a software driver").hint(
                    "--allow-software-gpu uses it all the same (slow); --executor tract runs on the CPU",
                ),
                false => fail("no GPU: no Vulkan, Metal or DX12 adapter")
                    .hint("install your GPU's Vulkan driver, or use --executor tract"),
            });
        };
        Self::on(adapter, options)
    }
    fn on(adapter: wgpu::Adapter, options: GpuOptions<'_>) -> Result<Arc<Self>> {
        let report = AdapterReport::of(&adapter);
        let limits = adapter.limits();
        let (shared, together) =
            (limits.max_compute_workgroup_storage_size, limits.max_compute_invocations_per_workgroup);
        if shared < WORKGROUP_MEMORY || together < WORKGROUP {
            return Err(fail(format!(
                "{} has workgroups of {together} invocations and {} KiB; the kernels need {WORKGROUP} and {} KiB",
                report.name,
                shared >> 10,
                WORKGROUP_MEMORY >> 10
            ))
            .hint("--executor tract runs on the CPU"));
        }
        let matrix_units = options.precision == Precision::F16 && has_matrix_units(&adapter);
        let wanted = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE;
        let (features, experimental) = match matrix_units {
            // SAFETY: what wgpu calls experimental may have bugs of its own. It is asked for only with float16 products, and
            // its one use is `shaders/matmul_coop.wgsl`, for which the same holds as for all kernels (see `pipeline`).
            true => (wanted | MATRIX_FEATURES, unsafe { wgpu::ExperimentalFeatures::enabled() }),
            false => (wanted, wgpu::ExperimentalFeatures::disabled()),
        };
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("onnx-merge"),
            required_features: adapter.features() & features,
            experimental_features: experimental,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        });
        let (device, queue) = pollster::block_on(request).map_err(|e| {
            fail(format!("{} can't be opened: {e}", report.name)).hint("is its driver up to date?")
        })?;
        let timed = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let tick = timed.then(|| f64::from(queue.get_timestamp_period()));
        let fault = Arc::new(Mutex::new(None));
        let note = |fault: &Arc<Mutex<Option<String>>>| {
            let fault = fault.clone();
            move |what: String| {
                lock(&fault).get_or_insert(what);
            }
        };
        let (on_error, on_lost) = (note(&fault), note(&fault));
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            on_error(match e {
                // Memory for tensors is asked for in a scope of its own; this is the driver's.
                wgpu::Error::OutOfMemory { .. } => "out of GPU memory".to_owned(),
                other => other.to_string(),
            })
        }));
        device.set_device_lost_callback(move |_, message| on_lost(format!("{LOST}: {message}")));
        let cache = options.cache.and_then(|folder| KernelCache::open(&device, &adapter.get_info(), folder));
        Ok(Arc::new(Self {
            device,
            queue,
            report,
            matrix_units,
            // One more holds the table of calls that go together.
            max_buffers: (limits.max_storage_buffers_per_shader_stage as usize - 1).clamp(4, 16),
            max_groups: limits.max_compute_workgroups_per_dimension,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment.max(16) as usize,
            tick,
            pipelines: Mutex::default(),
            cache,
            free: Mutex::default(),
            allocated: AtomicU64::new(0),
            budget: AtomicU64::new(u64::MAX),
            fault,
        }))
    }
    /// Bytes of a tensor at most.
    pub fn max_bytes(&self) -> u64 {
        self.report.max_binding.min(self.device.limits().max_buffer_size)
    }
    /// What kernels are chosen by.
    pub fn target(&self) -> Target {
        let units =
            MatrixUnits { memory: self.report.workgroup_memory, from: LARGE_PRODUCT, each: DENSE_PRODUCT };
        Target { max_bytes: self.max_bytes(), matrix_units: self.matrix_units.then_some(units) }
    }
    /// The first error that the driver has reported, if any. A device that failed once stays failed.
    pub fn check(&self) -> Result<()> {
        match &*lock(&self.fault) {
            None => Ok(()),
            Some(what) if what.starts_with(LOST) => {
                Err(Error::DeviceLost { executor: "wgpu", what: what.clone() }
                    .hint("--resume goes on from the last checkpoint, with --executor tract on the CPU"))
            }
            Some(what) => Err(fail(what)),
        }
    }
    /// Lets all tensors together take no more than `bytes`.
    pub fn limit_memory(&self, bytes: u64) {
        self.budget.store(bytes, Ordering::Relaxed);
    }
    /// Gives the device up, as a driver does that hangs or is updated.
    pub fn lose(&self) {
        self.device.destroy();
        lock(&self.fault).get_or_insert(format!("{LOST}: given up"));
    }
    /// Waits for a submission, or for everything submitted so far.
    pub fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index, timeout: None };
        let polled = self.device.poll(wait);
        // Waiting for a lost device fails, too; why is in what the driver reported.
        self.check()?;
        polled.map(drop).map_err(fail)
    }
    /// A buffer for `words` elements, perhaps one that was used before; its contents are undefined.
    pub fn buffer(self: &Arc<Self>, words: usize) -> Result<Arc<Memory>> {
        let size = buffer_size(words);
        let again = lock(&self.free).get_mut(&size).and_then(Vec::pop);
        let buffer = match again {
            Some(buffer) => buffer,
            None => self.new_buffer(size)?,
        };
        self.check()?;
        Ok(Arc::new(Memory { buffer, gpu: self.clone() }))
    }
    /// A buffer holding `words`.
    pub fn filled(self: &Arc<Self>, words: &[u32]) -> Result<Arc<Memory>> {
        let memory = self.buffer(words.len())?;
        if !words.is_empty() {
            self.queue.write_buffer(&memory.buffer, 0, bytemuck::cast_slice(words));
        }
        self.check()?;
        Ok(memory)
    }
    /// A new buffer. Where memory is short, those that wait for a second use are given back first.
    fn new_buffer(&self, size: u64) -> Result<wgpu::Buffer> {
        if let Some(buffer) = self.try_buffer(size) {
            return Ok(buffer);
        }
        self.wait(None)?;
        self.give_back();
        self.wait(None)?;
        self.try_buffer(size).ok_or_else(|| {
            let (size, all) = (size >> 20, self.allocated.load(Ordering::Relaxed) >> 20);
            fail(format!("out of GPU memory: {size} MiB more than the {all} MiB in use can't be had")).hint(
                "a smaller --batch or --rank needs less memory; --executor tract uses the machine's own",
            )
        })
    }
    /// `None` when there is no memory left.
    fn try_buffer(&self, size: u64) -> Option<wgpu::Buffer> {
        use wgpu::BufferUsages as U;
        let before = self.allocated.fetch_add(size, Ordering::Relaxed);
        if before.saturating_add(size) > self.budget.load(Ordering::Relaxed) {
            self.allocated.fetch_sub(size, Ordering::Relaxed);
            return None;
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: U::STORAGE | U::COPY_SRC | U::COPY_DST,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            self.allocated.fetch_sub(size, Ordering::Relaxed);
            return None;
        }
        Some(buffer)
    }
    /// Frees the buffers that wait to be used again.
    fn give_back(&self) {
        let free = std::mem::take(&mut *lock(&self.free));
        let bytes: u64 = free.iter().map(|(size, buffers)| size * buffers.len() as u64).sum();
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }
    /// The pipeline of a kernel text, compiled on first use.
    pub fn pipeline(&self, source: &str) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = lock(&self.pipelines).get(source) {
            return Ok(pipeline.clone());
        }
        let label = Some(super::kernel::kernel_name(source));
        let descriptor =
            wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(source.into()) };
        // SAFETY: kernels are our own, and the host checks shapes before it forms their parameters: every loop ends, and
        // every index is inside its buffer or guarded by a comparison (indices that come with data are clamped). Checks
        // cost up to five sixths of a kernel's speed, since loops with a counter of their own aren't unrolled.
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, CHECKS) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.cache.as_ref().map(|cache| &cache.pipelines),
        });
        self.check()?;
        lock(&self.pipelines).insert(source.to_owned(), pipeline.clone());
        Ok(pipeline)
    }
    /// How many different kernels were compiled so far.
    pub fn pipeline_count(&self) -> usize {
        lock(&self.pipelines).len()
    }
    /// Bytes of compiled kernels that earlier runs left; `None` where none are kept.
    pub fn found_bytes(&self) -> Option<usize> {
        self.cache.as_ref().map(|cache| cache.found)
    }
    /// Bytes of the buffers that wait to be used again.
    pub fn free_bytes(&self) -> u64 {
        lock(&self.free).iter().map(|(size, buffers)| size * buffers.len() as u64).sum()
    }
    /// Copies `words` elements of a buffer to the host, after everything submitted before.
    pub fn read(&self, memory: &Memory, start: usize, words: usize) -> Result<Vec<u32>> {
        self.read_as(&memory.buffer, start as u64 * 4, words)
    }
    /// `count` numbers of a buffer from a byte on.
    pub fn read_as<T: bytemuck::Pod>(
        &self,
        buffer: &wgpu::Buffer,
        from: u64,
        count: usize,
    ) -> Result<Vec<T>> {
        if count == 0 {
            return Ok(vec![]);
        }
        let size = (count * size_of::<T>()) as u64;
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, from, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        let (send, receive) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = send.send(result);
        });
        self.wait(None)?;
        receive.recv().map_err(fail)?.map_err(fail)?;
        let view = staging.slice(..).get_mapped_range().map_err(fail)?;
        let words = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        staging.unmap();
        Ok(words)
    }
}

impl Drop for Gpu {
    /// By now the driver has finished compiling: some wait with that for a kernel's first run.
    fn drop(&mut self) {
        if let Some(cache) = self.cache.as_ref().filter(|_| self.pipeline_count() > 0) {
            cache.store();
        }
    }
}

/// Sizes are rounded up, so that buffers find a second use more often.
fn buffer_size(words: usize) -> u64 {
    (words.max(1) as u64 * 4).next_multiple_of(256)
}

/// Device memory; goes back to the device's free buffers when the last owner lets go of it. That is safe while
/// submitted work still uses it, since the queue runs everything in order.
pub struct Memory {
    pub buffer: wgpu::Buffer,
    gpu: Arc<Gpu>,
}

impl Memory {
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        lock(&self.gpu.free).entry(self.buffer.size()).or_default().push(self.buffer.clone());
    }
}
