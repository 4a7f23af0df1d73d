//! ONNX Runtime, loaded at run time from a shared library: all operators, all element types, several threads.
//!
//! One library and one environment a process. Telemetry must be off before the library is loaded, see
//! [`super::silence_telemetry`]. Calls are guarded, since the binding panics where it expects nothing to fail.
//! Look at [`OrtExecutor`].

mod chains;
mod kernels;
mod products;
mod ranks;

use super::discover::{Candidate, Version};
use super::guard::guarded;
use super::{Compiled, DeviceValue, Executor, Value};
use crate::error::{Error, Result};
use crate::onnx::{DType, Fact, Facts, Forms, Graph, Model, Tensor, ValueId, ValueInfo};
use ::ort::AsPointer;
use ::ort::environment::Environment;
use ::ort::logging::LogLevel;
use ::ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ::ort::session::builder::GraphOptimizationLevel;
use ::ort::session::{Session, SessionInputValue};
use ::ort::value::{DynTensor, DynValue, Shape, TensorElementType, ValueType};
use onnx_merge_kernels::{Vectors, processor};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const NAME: &str = "ort";
/// Set (to anything) before the library is loaded, this keeps it from collecting and sending data.
const TELEMETRY_OFF: &str = "ORT_DISABLE_TELEMETRY";

/// The library of this process; it is never unloaded.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

#[derive(Clone)]
struct Loaded {
    path: PathBuf,
    version: Option<Version>,
    environment: Environment,
    /// Whether programs can share a pool of memory.
    shares: bool,
}

/// Runs graphs with ONNX Runtime on the CPU.
pub struct OrtExecutor {
    library: Loaded,
    threads: usize,
}

impl OrtExecutor {
    /// Loads the library, unless that has been done.
    ///
    /// # Errors
    /// [`Error::Executor`] when it can't be loaded, when another one has been loaded before, when telemetry
    /// hasn't been switched off, and when `ONNX_MERGE_VECTORS` names no vectors.
    pub fn open(library: &Candidate, threads: usize) -> Result<Self> {
        Vectors::limit().map_err(|named| {
            failed(format!("{} is '{named}'", processor::VARIABLE)).hint(format!(
                "it may be {}",
                processor::NAMES.map(|(name, _)| format!("'{name}'")).join(" or ")
            ))
        })?;
        let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let library = match &*loaded {
            Some(present) if present.path == library.path => present.clone(),
            Some(present) => {
                let (wanted, present) = (library.path.display(), present.path.display());
                return Err(failed(format!(
                    "{wanted} can't be loaded beside {present}: one library a process"
                )));
            }
            None => loaded.insert(load(library)?).clone(),
        };
        Ok(Self { library, threads: threads.max(1) })
    }
    /// The library in use.
    pub fn library(&self) -> &Path {
        &self.library.path
    }

    /// A session; one that is `lasting` uses the memory that others have let go of. In the graph are kernels of `ours`, or none.
    fn session(
        &self,
        bytes: &[u8],
        lasting: bool,
        ours: Option<&kernels::Kernels>,
        level: GraphOptimizationLevel,
    ) -> ::ort::Result<Session> {
        let mut builder = Session::builder(&self.library.environment)?
            .with_optimization_level(level)?
            .with_intra_threads(self.threads)?
            .with_inter_threads(1)?
            // Spinning threads double the processor time of a step for a third less latency.
            .with_intra_op_spinning(false)?
            // A pattern lays out the second run in one block of its own beside what the first run's arena keeps, which
            // doubles the memory of a step (docs/benchmarks.md).
            .with_memory_pattern(false)?
            // Moments of weights that get no gradient decay to numbers that processors take a hundred times as long for.
            .with_flush_to_zero()?
            .with_log_level(LogLevel::Fatal)?;
        if lasting && self.library.shares {
            builder = builder.with_env_allocators()?;
        }
        if let Some(kernels) = ours {
            builder = builder.with_operators(kernels.domain()?)?;
        }
        builder.commit_from_memory(bytes)
    }

    fn program(
        &self,
        model: &Model,
        facts: &Facts,
        level: GraphOptimizationLevel,
    ) -> Result<Box<dyn Compiled>> {
        let mut model = model.clone();
        let inputs: Vec<ValueId> = model.graph.required_inputs().map(|i| i.id.clone()).collect();
        let required: HashSet<&ValueId> = inputs.iter().collect();
        model.graph.inputs.retain(|i| required.contains(&i.id));
        for input in &mut model.graph.inputs {
            if let Some(fact) = facts.get(&input.id) {
                *input = ValueInfo::new(input.id.clone(), fact);
            }
        }
        let outputs = unique_outputs(&mut model.graph);
        let weights = set_aside(&mut model.graph);
        // Of graphs made by this program every value is known, and they are run again and again. Others are run once, to be
        // looked at: what that took is to be given back.
        let mut made = model.graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten());
        let lasting = made.all(|id| facts.contains_key(id));
        let ours = if lasting { kernels::swap_in(&mut model, facts, self.threads) } else { None };
        if lasting {
            ranks::pad(&mut model.graph, facts);
        }
        let bytes = crate::onnx::to_bytes(&model)?;
        let session = guarded(|| self.session(&bytes, lasting, ours.as_ref(), level))
            .map_err(failed)?
            .map_err(|e| blame(&model.graph, &e))?;
        let weights = weights.into_iter().map(Lent::of).collect::<Result<_>>()?;
        Ok(Box::new(Program { session, inputs, outputs, weights }))
    }
}

fn load(library: &Candidate) -> Result<Loaded> {
    if std::env::var_os(TELEMETRY_OFF).is_none() {
        return Err(failed(format!("{TELEMETRY_OFF} is not set, so the library would collect data")).hint(
            "call onnx_merge::runtime::silence_telemetry() at the start of main, or set the variable",
        ));
    }
    let path = &library.path;
    let cant = |what: &dyn std::fmt::Display| {
        failed(format!("{} can't be loaded: {what}", path.display())).hint(super::discover::HINT)
    };
    let (environment, shares) = guarded(|| {
        let builder = ::ort::init_from(path).map_err(|e| e.to_string())?;
        let environment =
            builder.with_telemetry(false).with_name("onnx-merge").build().map_err(|e| e.to_string())?;
        environment.set_log_level(LogLevel::Fatal);
        let shared = share_memory(&environment);
        Ok::<_, String>((environment, shared))
    })
    .and_then(|result| result)
    .map_err(|what| cant(&what))?;
    Ok(Loaded { path: path.clone(), version: library.version, environment, shares })
}

/// Makes one pool of memory for all programs that ask for it, which grows by what is needed and no more. Whether there is
/// one; without it each program has its own.
fn share_memory(environment: &Environment) -> bool {
    let place = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default);
    let Ok(place) = place else { return false };
    let api = ::ort::api();
    let (keys, as_requested) = ([c"arena_extend_strategy".as_ptr()], [1]);
    let mut config = std::ptr::null_mut();
    // SAFETY: `keys` and `as_requested` are one key and its value, which are copied before the call returns; `config` is
    // where to put the result.
    let made = unsafe { (api.CreateArenaCfgV2)(keys.as_ptr(), as_requested.as_ptr(), 1, &mut config) };
    if !succeeded(made) {
        return false;
    }
    let environment = environment.ptr().cast_mut();
    // SAFETY: all three are alive; the environment copies what it needs of the other two. It may be changed through this
    // pointer: ONNX Runtime guards its list of allocators by a lock.
    let registered = unsafe { (api.CreateAndRegisterAllocator)(environment, place.ptr(), config) };
    // SAFETY: made above, and nobody else has it.
    unsafe { (api.ReleaseArenaCfg)(config) };
    succeeded(registered)
}

/// Whether a call succeeded; lets go of what it says otherwise.
fn succeeded(status: ::ort::sys::OrtStatusPtr) -> bool {
    if !status.0.is_null() {
        // SAFETY: a status that isn't null belongs to the caller, who sees it here for the last time.
        unsafe { (::ort::api().ReleaseStatus)(status.0) };
    }
    status.0.is_null()
}

/// The version that a library says it is, by loading it and letting it go again.
pub(super) fn version_of(path: &Path) -> Result<Version, String> {
    if std::env::var_os(TELEMETRY_OFF).is_none() {
        return Err(format!("{TELEMETRY_OFF} is not set"));
    }
    let text = guarded(|| {
        // SAFETY: runs the initialisers of a library that the user installed or named as ONNX Runtime.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
        // SAFETY: `OrtGetApiBase` has had this signature since the first version of the C API.
        let base = unsafe {
            library.get::<unsafe extern "system" fn() -> *const ::ort::sys::OrtApiBase>(b"OrtGetApiBase")
        };
        let base = base.map_err(|_| "it exports no OrtGetApiBase, so it isn't ONNX Runtime".to_owned())?;
        // SAFETY: the pointer is to a static table inside the library, which is still loaded here.
        let base = unsafe { base().as_ref() }.ok_or("it gives no API")?;
        // SAFETY: a static, null-terminated string inside the library.
        let text = unsafe { std::ffi::CStr::from_ptr((base.GetVersionString)()) };
        Ok::<_, String>(text.to_string_lossy().into_owned())
    })??;
    Version::parse(&text).ok_or_else(|| format!("it calls itself version '{text}'"))
}

impl Executor for OrtExecutor {
    fn name(&self) -> &'static str {
        NAME
    }
    fn device(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        let version = self.library.version.map(|v| format!(" {v}")).unwrap_or_default();
        format!("CPU, {} thread{plural} (ONNX Runtime{version})", self.threads)
    }
    fn misses(&self, _: &Model) -> Vec<String> {
        vec![]
    }
    fn compile(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        if model.graph.nodes.len() > LONG {
            return self.compile_once(model, facts);
        }
        let plain = || self.program(model, facts, GraphOptimizationLevel::Disable);
        // Its optimiser gives values names that models which it has been through before may have already.
        self.program(model, facts, GraphOptimizationLevel::All).or_else(|error| plain().map_err(|_| error))
    }
    fn compile_once(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        // Two thirds of the time of opening a session go into making runs faster. Some models run only so.
        let quick = self.program(model, facts, GraphOptimizationLevel::Disable);
        quick.or_else(|_| self.program(model, facts, GraphOptimizationLevel::All))
    }
    fn enough(&self) -> Option<usize> {
        Some(super::ENOUGH_FOR_A_CPU)
    }
    fn forms(&self) -> Forms {
        Forms::Kernels { products: onnx_merge_kernels::product::is_fast() }
    }
    fn on_host(&self) -> bool {
        true
    }
    fn upload(&self, tensor: &Tensor) -> Result<Value> {
        Ok(Value::new(upload(tensor)?))
    }
    fn holds(&self, value: &Value) -> bool {
        value.downcast::<OrtValue>().is_some()
    }
}

/// Leaves every output once, as ONNX Runtime demands; for each of the former outputs the place of its value.
fn unique_outputs(graph: &mut Graph) -> Vec<usize> {
    let mut unique: Vec<ValueInfo> = vec![];
    let mut places = vec![];
    let mut place_of: HashMap<ValueId, usize> = HashMap::new();
    for output in std::mem::take(&mut graph.outputs) {
        let place = *place_of.entry(output.id.clone()).or_insert(unique.len());
        if place == unique.len() {
            unique.push(output);
        }
        places.push(place);
    }
    graph.outputs = unique;
    places
}

/// Graphs of more nodes run as they are. ONNX Runtime's optimiser takes a quarter of a millisecond a node, minutes for the
/// longest, and each node of so many has little to do: their steps are no faster for it (docs/benchmarks.md).
const LONG: usize = 10_000;

/// Models with so many bytes of weights, of which the large ones stay where they are.
const LARGE_MODEL: usize = 512 << 20;
const LARGE_WEIGHT: usize = 1 << 20;

/// Makes the large weights of a large model inputs, and returns them. As initializers a session copies them, some several
/// times: such a model would be in memory once for each program, and none of more than 2 GiB can be handed over.
fn set_aside(graph: &mut Graph) -> Vec<Tensor> {
    let all: usize = graph.initializers.values().map(|tensor| tensor.bytes().len()).sum();
    if all < LARGE_MODEL {
        return vec![];
    }
    let stays =
        |t: &Tensor| t.bytes().len() >= LARGE_WEIGHT && element_type(t.dtype()).is_some() && is_aligned(t);
    let (mut weights, mut rest) = (vec![], graph.initializers.clone());
    rest.retain(|id, tensor| {
        if stays(tensor) {
            graph.inputs.push(ValueInfo::new(id.clone(), &Fact::of(tensor)));
            weights.push(tensor.clone());
        }
        !stays(tensor)
    });
    graph.initializers = rest;
    weights
}

/// Whether the elements lie where a session can read them; memory maps begin anywhere.
fn is_aligned(tensor: &Tensor) -> bool {
    tensor.bytes().as_ptr().addr().is_multiple_of(tensor.dtype().size().unwrap_or(1).max(1))
}

/// An output as a value that lives by itself: one that is an input as it was `lent` is copied.
fn own(value: OrtValue, lent: &[*const u8]) -> Result<Value> {
    let place = value.pointer();
    let value = match !place.is_null() && lent.contains(&place) {
        true => upload(&Arc::new(value).to_host()?)?,
        false => value,
    };
    Ok(Value::new(value))
}

/// A tensor that a session reads where it is, in a file's memory map for instance.
struct Lent {
    value: OrtValue,
    /// The memory behind `value`, let go of after it.
    _tensor: Tensor,
}

impl Lent {
    fn of(tensor: Tensor) -> Result<Self> {
        let value = match is_aligned(&tensor) && !tensor.is_empty() {
            true => guarded(|| view(&tensor)).map_err(failed)?.map_err(|e| failed(tidy(&e)))?,
            false => upload(&tensor)?,
        };
        Ok(Self { value, _tensor: tensor })
    }
}

struct Program {
    session: Session,
    /// Those that are given; `weights` come after them.
    inputs: Vec<ValueId>,
    outputs: Vec<usize>,
    weights: Vec<Lent>,
}

impl Compiled for Program {
    fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>> {
        if inputs.len() != self.inputs.len() {
            return Err(failed(format!("{} inputs given, {} needed", inputs.len(), self.inputs.len())));
        }
        let moved = inputs
            .iter()
            .map(|value| match value.downcast::<OrtValue>() {
                Some(_) => Ok(None),
                None => Lent::of(value.to_host()?).map(Some),
            })
            .collect::<Result<Vec<_>>>()?;
        let Program { session, outputs: places, weights, .. } = self;
        let outputs: Vec<DynValue> = guarded(|| {
            let feeds: Vec<SessionInputValue<'_>> = inputs
                .iter()
                .zip(&moved)
                .filter_map(|(value, moved)| match moved {
                    Some(moved) => Some(&moved.value),
                    None => value.downcast::<OrtValue>(),
                })
                .chain(weights.iter().map(|weight| &weight.value))
                .map(|value| SessionInputValue::from(&value.0))
                .collect();
            let outputs = session.run(feeds.as_slice())?;
            Ok(outputs.into_iter().map(|(_, value)| value).collect())
        })
        .map_err(failed)?
        .map_err(|e: ::ort::Error| failed(tidy(&e)))?;
        let lent: Vec<*const u8> = moved.iter().flatten().map(|m| m.value.pointer()).collect();
        let values =
            outputs.into_iter().map(|value| own(OrtValue(value), &lent)).collect::<Result<Vec<_>>>()?;
        places.iter().map(|&i| values.get(i).cloned().ok_or_else(|| failed("an output is missing"))).collect()
    }
}

/// A value in ONNX Runtime's hands, in the processor's memory.
struct OrtValue(DynValue);

impl DeviceValue for OrtValue {
    fn fact(&self) -> Fact {
        match self.0.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                let shape = shape.iter().map(|&d| d.max(0) as usize).collect();
                Fact { dtype: dtype(*ty), shape }
            }
            _ => Fact::new(DType::Other(0), &[]),
        }
    }
    fn to_host(self: Arc<Self>) -> Result<Tensor> {
        let Fact { dtype, shape } = self.fact();
        if dtype.size().is_none() {
            return Err(failed(format!("{dtype} values of shape {shape:?} can't be read")));
        }
        Tensor::held(dtype, &shape, self)
    }
}

impl OrtValue {
    /// Where its elements are; null where that can't be told.
    fn pointer(&self) -> *const u8 {
        let found =
            guarded(|| self.0.view().downcast::<::ort::value::DynTensorValueType>().map(|t| t.data_ptr()));
        found.ok().and_then(Result::ok).map_or(std::ptr::null(), <*const _>::cast)
    }
}

impl AsRef<[u8]> for OrtValue {
    fn as_ref(&self) -> &[u8] {
        let (fact, pointer) = (self.fact(), self.pointer());
        let count = crate::onnx::element_count(&fact.shape);
        let bytes =
            count.zip(fact.dtype.size()).and_then(|(count, size)| count.checked_mul(size)).unwrap_or(0);
        match pointer.is_null() || bytes == 0 {
            true => &[],
            // SAFETY: a tensor of plain numbers holds its elements densely, in the processor's memory since no
            // other execution provider is registered; it lives as long as `self`, and nobody writes to it.
            false => unsafe { std::slice::from_raw_parts(pointer, bytes) },
        }
    }
}

fn upload(tensor: &Tensor) -> Result<OrtValue> {
    let Some(element_type) = element_type(tensor.dtype()) else {
        return Err(failed(format!("no {} values", tensor.dtype())));
    };
    let bytes = tensor.bytes();
    let made = guarded(|| {
        let shape = Shape::new(tensor.shape().iter().map(|&d| d as i64));
        let mut value = DynTensor::new(&Allocator::default(), element_type, shape)?;
        let pointer = value.data_ptr_mut();
        if !pointer.is_null() && !bytes.is_empty() {
            // SAFETY: the allocation holds exactly the elements of this type and shape, which `Tensor` guarantees to
            // be as many bytes as `bytes` has; it was made just now, so that the two don't overlap.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer.cast::<u8>(), bytes.len()) };
        }
        Ok(OrtValue(value.into_dyn()))
    });
    made.map_err(failed)?.map_err(|e: ::ort::Error| failed(tidy(&e)))
}

/// A value that is the tensor's own memory, and must not outlive it.
fn view(tensor: &Tensor) -> ::ort::Result<OrtValue> {
    let Some(element_type) = element_type(tensor.dtype()) else {
        return Err(::ort::Error::new(format!("no {} values", tensor.dtype())));
    };
    let place = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
    let dims: Vec<i64> = tensor.shape().iter().map(|&d| d as i64).collect();
    let bytes = tensor.bytes();
    let mut made = std::ptr::null_mut();
    // SAFETY: the bytes are the elements of this type and shape, as `Tensor` guarantees; weights are only read, so that
    // nobody writes through the pointer; the caller keeps them for as long as the value lives.
    let status = unsafe {
        (::ort::api().CreateTensorWithDataAsOrtValue)(
            place.ptr(),
            bytes.as_ptr().cast_mut().cast(),
            bytes.len(),
            dims.as_ptr(),
            dims.len(),
            element_type.into(),
            &mut made,
        )
    };
    match std::ptr::NonNull::new(made).filter(|_| succeeded(status)) {
        // SAFETY: a tensor that was made just now, and that nobody else has.
        Some(made) => Ok(OrtValue(unsafe { DynValue::from_ptr(made, Some(&Allocator::default())) })),
        None => Err(::ort::Error::new("a weight can't be shown to ONNX Runtime")),
    }
}

/// Element types that both sides know, by their ONNX names.
const TYPES: [(DType, TensorElementType); 13] = [
    (DType::F32, TensorElementType::Float32),
    (DType::F64, TensorElementType::Float64),
    (DType::F16, TensorElementType::Float16),
    (DType::BF16, TensorElementType::Bfloat16),
    (DType::I8, TensorElementType::Int8),
    (DType::I16, TensorElementType::Int16),
    (DType::I32, TensorElementType::Int32),
    (DType::I64, TensorElementType::Int64),
    (DType::U8, TensorElementType::Uint8),
    (DType::U16, TensorElementType::Uint16),
    (DType::U32, TensorElementType::Uint32),
    (DType::U64, TensorElementType::Uint64),
    (DType::Bool, TensorElementType::Bool),
];

fn element_type(dtype: DType) -> Option<TensorElementType> {
    TYPES.iter().find(|row| row.0 == dtype).map(|row| row.1)
}

fn dtype(element_type: TensorElementType) -> DType {
    match element_type {
        TensorElementType::String => DType::Str,
        _ => TYPES.iter().find(|row| row.1 == element_type).map_or(DType::Other(0), |row| row.0),
    }
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::executor(NAME, what)
}

/// How ONNX Runtime says that it knows no such operator.
const UNKNOWN: [&str; 3] = ["is not a registered function", "No Op registered for", "No opset import for"];

/// An error with the node of ours that the message mentions.
fn blame(graph: &Graph, error: &::ort::Error) -> Error {
    let what = tidy(error);
    let quoted = what.split(['"', '\'']).skip(1).step_by(2);
    let named = what.split("Name:").skip(1).filter_map(|rest| rest.split('\'').nth(1));
    let node = named.chain(quoted).filter(|n| !n.is_empty()).find_map(|name| {
        graph.nodes.iter().find(|n| n.name == name || n.outputs.iter().flatten().any(|o| o.as_str() == name))
    });
    let unknown = UNKNOWN.iter().any(|words| what.contains(words));
    let error = match node {
        Some(node) => failed(format!("node '{}' ({}): {what}", node.label(), node.qualified_op())),
        None => failed(what),
    };
    match unknown {
        true => error.hint(
            "an operator of somebody's own library, which no executor here runs: export the model without it",
        ),
        false => error,
    }
}

/// ONNX Runtime's message without its source positions.
fn tidy(error: &::ort::Error) -> String {
    let text = error.to_string();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // "/onnxruntime_src/…/file.cc:123 function(arguments) [condition] message": the message comes last.
    match text.rfind("/onnxruntime").and_then(|at| text[at..].split_once("] ")) {
        Some((_, message)) if !message.is_empty() => message.to_owned(),
        _ => text,
    }
}
