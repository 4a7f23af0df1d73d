//! The embedded executor: tract, pure Rust, linked in, CPU only.
//!
//! Knows how to hand graphs and tensors over to tract and back; [`proto`] translates graphs, [`spread`], [`branch`] and [`mended`]
//! write out what tract would get wrong. tract panics on some graphs where it should refuse, so every call of it is guarded. Look at [`TractExecutor`].

mod branch;
mod mended;
mod proto;
mod rows;
mod spread;

use super::guard::{WORKER_NAME, guarded};
use super::{Compiled, DeviceValue, Executor, Value};
use crate::error::{Error, Result};
use crate::onnx::{DType, Fact, Facts, Graph, Model, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use tract_onnx::prelude as tract;
use tract_onnx::prelude::{Framework, InferenceModelExt, IntoTValue};
use tract_onnx::tract_core::optim::Optimizer;
use tract_onnx::tract_hir::internal::RunOptions;

const NAME: &str = "tract";
/// The version that Cargo.toml pins down to the patch level by its lock file.
const VERSION: &str = "0.23";
/// Operators of `com.microsoft` that tract implements as they are meant; it looks at names only, so that
/// others would be taken for the standard operators of the same name.
const CONTRIB: [&str; 11] = [
    "BiasGelu",
    "FastGelu",
    "GatherBlockQuantized",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

/// Runs graphs with tract on the CPU.
pub struct TractExecutor {
    threads: NonZeroUsize,
    /// Where there is more than one thread.
    pool: Option<Arc<ThreadPool>>,
    importer: tract_onnx::Onnx,
}

impl TractExecutor {
    /// `threads` at least one: of several runs at once each has a thread. One alone takes a single thread, unless this is a
    /// build with the feature `operator-threads`, which shares large operators out.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
        let pool = match threads.get() {
            1 => None,
            threads => {
                let name = |worker| format!("{WORKER_NAME}-{worker}");
                let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build();
                Some(Arc::new(pool.map_err(failed)?))
            }
        };
        Ok(Self { threads, pool, importer: tract_onnx::onnx().with_ignore_value_info(true) })
    }

    fn optimised(&self, proto: &tract_onnx::pb::ModelProto) -> Result<tract::TypedModel, String> {
        let inference = attempt(|| self.importer.model_for_proto_model(proto))?;
        let typed = attempt(|| inference.into_typed())?;
        // Optimisation makes steps several times faster, but its rewrites fail on some graphs that run unoptimised.
        let unoptimised = typed.clone();
        attempt(|| optimised(typed)).or_else(|_| attempt(|| unoptimised.into_decluttered()))
    }
}

/// The pass that moves slices towards the graph's inputs. It orders the whole graph anew for every slice it moves: on an
/// adapter's graph of three thousand nodes that took two thirds of all compilation, and made no step faster
/// (docs/benchmarks.md).
const QUADRATIC_PASS: &str = "PushSliceUp";

/// What tract's own `into_optimized` does, without the pass that large graphs can't afford.
fn optimised(mut model: tract::TypedModel) -> tract::TractResult<tract::TypedModel> {
    let mut declutter = Optimizer::declutter();
    declutter.passes.retain(|pass| format!("{pass:?}") != QUADRATIC_PASS);
    declutter.optimize(&mut model)?;
    model.optimize()?;
    rows::replace(&mut model)?;
    Ok(model)
}

impl Executor for TractExecutor {
    fn name(&self) -> &'static str {
        NAME
    }
    fn device(&self) -> String {
        let plural = if self.threads == NonZeroUsize::MIN { "" } else { "s" };
        format!("CPU, {} thread{plural} (tract {VERSION}, embedded)", self.threads)
    }
    fn misses(&self, model: &Model) -> Vec<String> {
        let mut misses = BTreeSet::new();
        self.graph_misses(&model.graph, &mut misses);
        misses.into_iter().collect()
    }
    fn compile(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        let proto = proto::model(&branch::mended(mended::mended(spread::written_out(model, facts))), facts)?;
        let typed = self.optimised(&proto).map_err(|what| blame(&model.graph, what))?;
        drop(proto);
        let plan = attempt(|| tract::TypedRunnableModel::new_with_options(typed, &RunOptions::default()))
            .map_err(|what| blame(&model.graph, what))?;
        let outputs = model.graph.outputs.len();
        Ok(Box::new(Program { plan, pool: self.pool.clone(), lanes: vec![Lane::default()], outputs }))
    }
    fn lanes(&self) -> NonZeroUsize {
        self.threads
    }
    fn enough(&self) -> Option<usize> {
        Some(super::ENOUGH_FOR_A_CPU)
    }
    fn on_host(&self) -> bool {
        true
    }
    fn upload(&self, tensor: &Tensor) -> Result<Value> {
        Ok(Value::new(TractValue(to_tract(tensor)?)))
    }
    fn holds(&self, value: &Value) -> bool {
        value.downcast::<TractValue>().is_some()
    }
}

impl TractExecutor {
    fn graph_misses(&self, graph: &Graph, misses: &mut BTreeSet<String>) {
        for node in &graph.nodes {
            let known = match node.domain.as_str() {
                "" => self.importer.op_register.0.contains_key(&node.op),
                "com.microsoft" => CONTRIB.contains(&node.op.as_str()),
                _ => false,
            };
            if !known {
                misses.insert(format!("{} (node '{}') isn't implemented", node.qualified_op(), node.label()));
            }
            node.subgraphs().for_each(|g| self.graph_misses(g, misses));
        }
        for (id, tensor) in &graph.initializers {
            if datum_type(tensor.dtype()).is_none() {
                misses.insert(format!("no {} values (initializer '{id}')", tensor.dtype()));
            }
        }
    }
}

/// A plan, and what runs it.
struct Program {
    plan: Arc<tract::TypedRunnableModel>,
    pool: Option<Arc<ThreadPool>>,
    /// The first for single runs; more once several runs are asked for at once.
    lanes: Vec<Lane>,
    outputs: usize,
}

/// The state of a plan between runs (dropped when a run fails, since a panic may have left it in any shape).
#[derive(Default)]
struct Lane(Option<tract::TypedSimpleState>);

impl Lane {
    fn run(&mut self, plan: &Arc<tract::TypedRunnableModel>, inputs: &[Value]) -> Result<Vec<Value>> {
        let inputs = inputs
            .iter()
            .map(|value| match value.downcast::<TractValue>() {
                Some(value) => Ok(value.0.clone()),
                None => to_tract(&value.to_host()?),
            })
            .collect::<Result<tract::TVec<_>>>()?;
        let state = self.0.take();
        let (state, outputs) = attempt(|| {
            let mut state = match state {
                Some(state) => state,
                None => plan.spawn()?,
            };
            let outputs = state.run(inputs)?;
            Ok((state, outputs))
        })
        .map_err(|what| failed(shorten(&what)))?;
        // Loops begin where they stopped in the run before, as in streaming: those are begun anew.
        self.0 = state.op_states.iter().all(Option::is_none).then_some(state);
        outputs.into_iter().map(|v| Ok(Value::new(TractValue(plain(v)?)))).collect()
    }
}

impl Compiled for Program {
    fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>> {
        let Self { plan, pool, lanes, outputs } = self;
        let results = shared_out(pool.as_ref(), || lanes[0].run(plan, inputs))?;
        debug_assert_eq!(results.len(), *outputs);
        Ok(results)
    }
    /// Whole runs side by side are faster than operators shared out: of a convolution, those are pieces too small to be
    /// worth a thread (docs/benchmarks.md).
    fn run_each(&mut self, runs: &[Vec<Value>]) -> Result<Vec<Vec<Value>>> {
        let Some(pool) = &self.pool else {
            return runs.iter().map(|inputs| self.lanes[0].run(&self.plan, inputs)).collect();
        };
        let lanes = pool.current_num_threads().min(runs.len()).max(1);
        if self.lanes.len() < lanes {
            self.lanes.resize_with(lanes, Lane::default);
        }
        let plan = &self.plan;
        let mut results = vec![];
        for runs in runs.chunks(lanes) {
            let mut done: Vec<Option<Result<Vec<Value>>>> = runs.iter().map(|_| None).collect();
            pool.scope(|scope| {
                for ((lane, inputs), done) in self.lanes.iter_mut().zip(runs).zip(&mut done) {
                    scope.spawn(move |_| *done = Some(lane.run(plan, inputs)));
                }
            });
            for result in done {
                results.push(result.unwrap_or_else(|| Err(failed("a run was lost")))?);
            }
        }
        Ok(results)
    }
}

/// What `f` gives, its large operators shared out over a pool's threads: in a build for that, since the code of every such
/// operator for threads is a third of tract's (docs/benchmarks.md).
fn shared_out<T>(pool: Option<&Arc<ThreadPool>>, f: impl FnOnce() -> T) -> T {
    #[cfg(feature = "operator-threads")]
    if let Some(pool) = pool {
        use tract_linalg::multithread::{Executor, multithread_tract_scope};
        return multithread_tract_scope(Executor::MultiThread(pool.clone()), f);
    }
    let _ = pool;
    f()
}

/// A tensor in tract's hands.
struct TractValue(tract::TValue);

impl DeviceValue for TractValue {
    fn fact(&self) -> Fact {
        Fact::new(dtype(self.0.datum_type()), self.0.shape())
    }
    fn to_host(self: Arc<Self>) -> Result<Tensor> {
        let fact = self.fact();
        Tensor::held(fact.dtype, &fact.shape, self)
    }
}

impl AsRef<[u8]> for TractValue {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// tract computes shapes and casts to int64 in a type of its own, symbolic dimensions; ours are int64.
fn plain(value: tract::TValue) -> Result<tract::TValue> {
    if value.datum_type() != tract::DatumType::TDim {
        return Ok(value);
    }
    attempt(|| Ok(value.cast_to_dt(tract::DatumType::I64)?.into_owned().into_tvalue())).map_err(failed)
}

fn to_tract(tensor: &Tensor) -> Result<tract::TValue> {
    let Some(datum_type) = datum_type(tensor.dtype()) else {
        return Err(failed(format!("no {} values", tensor.dtype())));
    };
    let booleans: Vec<u8>;
    let bytes = match tensor.dtype() {
        DType::Bool => {
            booleans = tensor.bytes().iter().map(|&b| (b != 0) as u8).collect();
            &booleans
        }
        _ => tensor.bytes(),
    };
    // SAFETY: `Tensor` guarantees as many bytes as shape and type ask for; every bit pattern is a valid number,
    // and booleans were made 0 or 1 above.
    let made = attempt(|| unsafe { tract::Tensor::from_raw_dt(datum_type, tensor.shape(), bytes) });
    Ok(made.map_err(failed)?.into_tvalue())
}

fn datum_type(dtype: DType) -> Option<tract::DatumType> {
    Some(match dtype {
        DType::F32 => tract::DatumType::F32,
        DType::F64 => tract::DatumType::F64,
        DType::F16 => tract::DatumType::F16,
        DType::I8 => tract::DatumType::I8,
        DType::I16 => tract::DatumType::I16,
        DType::I32 => tract::DatumType::I32,
        DType::I64 => tract::DatumType::I64,
        DType::U8 => tract::DatumType::U8,
        DType::U16 => tract::DatumType::U16,
        DType::U32 => tract::DatumType::U32,
        DType::U64 => tract::DatumType::U64,
        DType::Bool => tract::DatumType::Bool,
        DType::BF16 | DType::Str | DType::Other(_) => return None,
    })
}

fn dtype(datum_type: tract::DatumType) -> DType {
    match datum_type.unquantized() {
        tract::DatumType::F32 => DType::F32,
        tract::DatumType::F64 => DType::F64,
        tract::DatumType::F16 => DType::F16,
        tract::DatumType::I8 => DType::I8,
        tract::DatumType::I16 => DType::I16,
        tract::DatumType::I32 => DType::I32,
        tract::DatumType::I64 | tract::DatumType::TDim => DType::I64,
        tract::DatumType::U8 => DType::U8,
        tract::DatumType::U16 => DType::U16,
        tract::DatumType::U32 => DType::U32,
        tract::DatumType::U64 => DType::U64,
        tract::DatumType::Bool => DType::Bool,
        tract::DatumType::String => DType::Str,
        _ => DType::Other(0),
    }
}

/// Errors and panics of tract alike, as text.
fn attempt<T>(f: impl FnOnce() -> tract::TractResult<T>) -> Result<T, String> {
    guarded(f)?.map_err(|e| format!("{e:#}"))
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::executor(NAME, what).hint(super::discover::BEYOND_TRACT)
}

/// An error with the node of ours that tract's message mentions first.
fn blame(graph: &Graph, what: String) -> Error {
    let quoted = what.split('"').skip(1).step_by(2);
    let built = what.split("Building node ").skip(1).filter_map(|rest| rest.split(" (").next());
    let node = built.chain(quoted).find_map(|name| graph.nodes.iter().find(|n| n.label() == name));
    match node {
        Some(node) => {
            failed(format!("node '{}' ({}): {}", node.label(), node.qualified_op(), shorten(&what)))
        }
        None => failed(shorten(&what)),
    }
}

/// tract's chains of causes repeat whole operators; the start tells where, the end tells why.
fn shorten(what: &str) -> String {
    const HEAD: usize = 160;
    const TAIL: usize = 240;
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let chars: Vec<char> = what.chars().collect();
    if chars.len() <= HEAD + TAIL {
        return what;
    }
    let head: String = chars[..HEAD].iter().collect();
    let tail: String = chars[chars.len() - TAIL..].iter().collect();
    format!("{head} … {tail}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attr, Builder, Node, ValueId, ValueInfo, WORKING_OPSET};

    fn run(b: Builder, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (graph, facts) = b.finish();
        let executor = TractExecutor::new(2)?;
        let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
        let inputs: Vec<Value> = inputs.iter().cloned().map(Value::host).collect();
        program.run(&inputs)?.iter().map(Value::to_host).collect()
    }

    #[test]
    fn runs_a_product_and_keeps_the_result_on_its_side() -> Result<()> {
        let mut b = Builder::new("product");
        let x = b.input("x", Fact::new(DType::F32, &[2, 3]));
        let w = b.input("w", Fact::new(DType::F32, &[3, 2]));
        let y = b.matmul(&x, &w);
        b.output(&y);
        let (graph, facts) = b.finish();
        let executor = TractExecutor::new(1)?;
        let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
        let x = executor.upload(&Tensor::f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))?;
        let w = executor.upload(&Tensor::f32(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]))?;
        let y = program.run(&[x, w])?.remove(0);
        assert!(y.downcast::<TractValue>().is_some());
        assert_eq!(y.to_host()?.to_f64(), [4.0, 5.0, 10.0, 11.0]);
        Ok(())
    }

    /// tract itself takes expansions away in front of products: see [`spread`].
    #[test]
    fn products_of_expanded_values_are_whole() -> Result<()> {
        let mut b = Builder::new("product");
        let x = b.input("x", Fact::new(DType::F32, &[1, 3, 2]));
        let row = b.input("row", Fact::new(DType::F32, &[2]));
        let rows = b.expand(&row, &[1, 3, 2]);
        let turned = b.transpose(&x, &[0, 2, 1]);
        let one = b.matmul(&turned, &rows);
        let negative = b.neg(&rows);
        let flat = b.reshape(&negative, &[3, 2]);
        let turned = b.transpose(&flat, &[1, 0]);
        let wide = b.expand(&row, &[3, 2]);
        let both = b.matmul(&turned, &wide);
        b.output(&one);
        b.output(&both);
        let x = Tensor::f32(&[1, 3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let outputs = run(b, &[x, Tensor::f32(&[2], &[1.0, 10.0])])?;
        assert_eq!(outputs[0].to_f64(), [9.0, 90.0, 12.0, 120.0]);
        assert_eq!(outputs[1].to_f64(), [-3.0, -30.0, -30.0, -300.0]);
        Ok(())
    }

    #[test]
    fn runs_side_by_side_come_back_in_order() -> Result<()> {
        let mut b = Builder::new("product");
        let x = b.input("x", Fact::new(DType::F32, &[2, 2]));
        let y = b.matmul(&x, &x);
        b.output(&y);
        let (graph, facts) = b.finish();
        let model = Model::new(graph, WORKING_OPSET);
        for threads in [1, 3] {
            let mut program = TractExecutor::new(threads)?.compile(&model, &facts)?;
            let runs: Vec<Vec<Value>> =
                (0..7).map(|i| vec![Value::host(Tensor::f32(&[2, 2], &[i as f32, 1.0, 0.0, 1.0]))]).collect();
            for (i, outputs) in program.run_each(&runs)?.iter().enumerate() {
                assert_eq!(outputs[0].to_host()?.to_f64()[0], (i * i) as f64, "{threads} threads");
            }
            // One run that fails is the whole's failure, and the program can be used again.
            let wrong = vec![Value::host(Tensor::f32(&[3], &[0.0; 3]))];
            assert!(program.run_each(&[runs[0].clone(), wrong]).is_err());
            assert_eq!(program.run_each(&runs)?.len(), 7);
        }
        Ok(())
    }

    #[test]
    fn outputs_that_are_inputs_or_initializers_come_out() -> Result<()> {
        let mut b = Builder::new("passthrough");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let c = b.initializer("c", Tensor::i64(&[1], &[7]));
        b.output(&x);
        b.output(&c);
        b.output(&x);
        let outputs = run(b, &[Tensor::f32(&[2], &[1.0, 2.0])])?;
        assert_eq!(outputs[0].to_f64(), [1.0, 2.0]);
        assert_eq!(outputs[1], Tensor::i64(&[1], &[7]));
        assert_eq!(outputs[2].to_f64(), [1.0, 2.0]);
        Ok(())
    }

    #[test]
    fn initializers_listed_as_inputs_need_not_be_fed() -> Result<()> {
        let mut b = Builder::new("ir3");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let w = b.initializer("w", Tensor::f32(&[2], &[3.0, 4.0]));
        let info = ValueInfo::new(w.clone(), b.fact(&w));
        b.graph_mut().inputs.push(info);
        let y = b.mul(&x, &w);
        b.output(&y);
        assert_eq!(run(b, &[Tensor::f32(&[2], &[1.0, 2.0])])?[0].to_f64(), [3.0, 8.0]);
        Ok(())
    }

    #[test]
    fn shapes_and_casts_come_out_as_int64() -> Result<()> {
        let mut b = Builder::new("integers");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let shape = b.op("Shape", &[&x]);
        b.set_fact(&shape, Fact::new(DType::I64, &[1]));
        let cast = b.cast(&x, DType::I64);
        b.output(&shape);
        b.output(&cast);
        let outputs = run(b, &[Tensor::f32(&[2], &[1.5, 2.5])])?;
        assert_eq!(outputs[0], Tensor::i64(&[1], &[2]));
        assert_eq!(outputs[1], Tensor::i64(&[2], &[1, 2]));
        Ok(())
    }

    #[test]
    fn unknown_operators_are_missed_and_refused_by_name() -> Result<()> {
        let mut b = Builder::new("unknown");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let y = ValueId::new("y");
        b.push(Node::new("Frobnicate", &[&x], &[&y]));
        b.set_fact(&y, Fact::new(DType::F32, &[2]));
        b.output(&y);
        let (graph, facts) = b.finish();
        let model = Model::new(graph, WORKING_OPSET);
        let executor = TractExecutor::new(1)?;
        assert_eq!(executor.misses(&model).len(), 1);
        let error = executor.compile(&model, &facts).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.starts_with("executor tract: node 'y' (Frobnicate): "), "{error}");
        Ok(())
    }

    #[test]
    fn a_panic_inside_is_an_error() {
        let mut b = Builder::new("crop");
        let x = b.input("x", Fact::new(DType::F32, &[4]));
        let pads = b.ints(&[-1, -1]);
        let y = b.op_with("Pad", &[&x, &pads], &[("mode", Attr::from("constant"))]);
        b.set_fact(&y, Fact::new(DType::F32, &[2]));
        b.output(&y);
        let result = run(b, &[Tensor::f32(&[4], &[1.0, 2.0, 3.0, 4.0])]);
        assert_eq!(result.err().map(|e| e.exit_code()), Some(5));
    }

    #[test]
    fn loops_forget_the_run_before() -> Result<()> {
        let mut b = Builder::new("states");
        let x = b.input("x", Fact::new(DType::F32, &[3, 1, 2]));
        let mut weight = |name: &str, shape: &[usize]| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|i| (i * 7 % 5) as f32 / 5.0 - 0.4).collect();
            b.initializer(name, Tensor::f32(shape, &values))
        };
        let (w, r) = (weight("w", &[1, 8, 2]), weight("r", &[1, 8, 2]));
        let y = b.op_with("LSTM", &[&x, &w, &r], &[("hidden_size", 2i64.into())]);
        b.set_fact(&y, Fact::new(DType::F32, &[3, 1, 1, 2]));
        b.output(&y);
        let (graph, facts) = b.finish();
        let mut program = TractExecutor::new(1)?.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
        let input = Value::host(Tensor::f32(&[3, 1, 2], &[1.0, 0.5, -1.0, 2.0, 0.0, 1.0]));
        let mut run = || program.run(std::slice::from_ref(&input))?.remove(0).to_host();
        assert_eq!(run()?, run()?);
        Ok(())
    }
}
