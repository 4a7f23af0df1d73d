//! Facts by probing: a model is run once, and what its values really are is written down.
//!
//! Exact for every operator that the executor knows, custom ones included. Knows executors, nothing of rules. Look at
//! [`probe`] and [`example_inputs`].

use super::survey::survey;
use crate::error::{Error, ONLY_NUMBERS, Result, ResultExt};
use crate::onnx::{DType, Dim, Fact, Facts, Graph, Model, Tensor, ValueId, ValueInfo};
use crate::runtime::{Executor, Value};
use rand::{RngExt, SeedableRng};
use std::collections::{HashMap, HashSet};

/// What a run of a model showed.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// Type and shape of the inputs, the initializers, and everything that nodes make, inside subgraphs as far as those
    /// can be run by themselves. Sequences and optionals have none, nor do values that the executor couldn't hand out.
    pub facts: Facts,
    /// Integers and booleans of up to [`MOST_KEPT`] elements: shapes, axes, conditions; real numbers of up to
    /// `MOST_REAL`: scales. None from inside loops.
    pub values: HashMap<ValueId, Tensor>,
}

/// The largest integer or boolean tensor whose elements a probe keeps.
pub const MOST_KEPT: usize = 4096;
/// The same for real numbers.
const MOST_REAL: usize = 8;

/// The elements of the largest input that is made up: a batch of films, and no typing error.
const MOST_MADE_UP: usize = 1 << 26;

/// Says what to do where an executor can't run a model at all.
pub fn unrunnable(error: Error) -> Error {
    match error.exit_code() {
        5 => error.or_hint(
            "the model must run on inputs of the shapes that it declares: try it in ONNX Runtime, and where sizes are open, \
             give data of sizes that it takes",
        ),
        _ => error,
    }
}

/// Runs `model` once on `inputs`, with every value of its top-level graph as an output.
///
/// Values that the executor can run but not hand out are found by halving, and get no fact.
///
/// # Errors
/// When the executor can't run the model itself, with what it says; [`Error::Usage`] for a missing input.
pub fn probe(executor: &dyn Executor, model: &Model, inputs: &HashMap<ValueId, Tensor>) -> Result<Probe> {
    let mut probe = Probe::default();
    for (id, tensor) in model.graph.initializers.iter().chain(inputs) {
        probe.note(id, Fact::of(tensor), || Ok(tensor.clone()))?;
    }
    let mut feeds = vec![];
    for input in model.graph.required_inputs() {
        let tensor = inputs.get(&input.id);
        let tensor =
            tensor.ok_or_else(|| Error::usage(format!("no value given for input '{}'", input.id)))?;
        feeds.push(Value::host(tensor.clone()));
    }
    let mut seen = HashSet::new();
    let made = model.graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten());
    let wanted: Vec<ValueId> = made.filter(|id| seen.insert((*id).clone())).cloned().collect();
    if wanted.is_empty() {
        return Ok(probe);
    }
    probe_in_parts(executor, model, &feeds, &wanted, &mut probe)?;
    super::bodies::probe_bodies(executor, model, &mut probe);
    Ok(probe)
}

/// Bytes of inputs up to which all values are held at once: running once is fastest.
const SMALL_INPUTS: usize = 64 << 10;
/// Values of the first part where they aren't; how many come next follows from their sizes.
const FIRST_PART: usize = 16;
/// Bytes that the values of a part should take.
const PART_BYTES: usize = 64 << 20;

/// Runs the model for the values `wanted`: once, or so that a large batch isn't held in every layer at once, as else preparing
/// would take more memory than training: once for types and shapes and once for what is kept, or, where that can't be, in parts
/// one after the other.
fn probe_in_parts(
    executor: &dyn Executor,
    model: &Model,
    feeds: &[Value],
    wanted: &[ValueId],
    probe: &mut Probe,
) -> Result<()> {
    let inputs: usize = feeds.iter().map(|feed| feed.fact().bytes()).sum();
    if inputs > SMALL_INPUTS
        && let Ok(facts) = survey(executor, model, feeds, wanted, &probe.facts)
    {
        let kept = |id: &&ValueId| facts.get(*id).is_some_and(keeps);
        let kept: Vec<ValueId> = wanted.iter().filter(kept).cloned().collect();
        if !kept.is_empty() {
            probe_values(executor, model, feeds, &kept, probe)?;
        }
        probe.facts.extend(facts.into_iter().filter(|(_, fact)| !matches!(fact.dtype, DType::Other(_))));
        return Ok(());
    }
    let mut rest = wanted;
    let mut count = if inputs <= SMALL_INPUTS { rest.len() } else { FIRST_PART };
    while !rest.is_empty() {
        let (part, after) = rest.split_at(count.min(rest.len()));
        probe_values(executor, model, feeds, part, probe)?;
        let held: usize = part.iter().filter_map(|id| probe.facts.get(id)).map(Fact::bytes).sum();
        let mean = held.div_ceil(part.len().max(1)).max(1);
        // What comes later is rarely larger, but may be: at most four times as many.
        count = (PART_BYTES / mean).clamp(FIRST_PART, 4 * part.len().max(FIRST_PART));
        rest = after;
    }
    Ok(())
}

/// Runs the model for the values `wanted`, halving where some of them can't be outputs.
fn probe_values(
    executor: &dyn Executor,
    model: &Model,
    feeds: &[Value],
    wanted: &[ValueId],
    probe: &mut Probe,
) -> Result<()> {
    let run = |outputs: &[ValueId], probe: &mut Probe| run_for(executor, model, feeds, outputs, probe);
    if run(wanted, probe).is_err() {
        // Perhaps some values just can't be outputs. If the model itself doesn't run, that error is the one to show.
        let outputs: Vec<ValueId> = model.graph.outputs.iter().map(|o| o.id.clone()).collect();
        run(&outputs, probe).context(|| "running the model once on example inputs".to_owned())?;
        let (left, right) = wanted.split_at(wanted.len() / 2);
        let mut parts = vec![right, left];
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            if part.iter().all(|id| probe.facts.contains_key(id)) {
                continue;
            }
            if run(part, probe).is_err() && part.len() > 1 {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([right, left]);
            }
        }
    }
    Ok(())
}

/// Makes a graph give `outputs` alone, whatever they are.
pub(super) fn ask_for(graph: &mut Graph, outputs: Vec<ValueId>) {
    let Graph { inputs, initializers, .. } = graph;
    // Once pruned, an initializer that is listed as an input too would look like one that must be fed.
    inputs.retain(|input| !initializers.contains_key(&input.id));
    graph.outputs = outputs.into_iter().map(|id| ValueInfo { id, dtype: None, shape: None }).collect();
    graph.prune();
}

/// Runs the model for some of its values, and notes what they are.
fn run_for(
    executor: &dyn Executor,
    model: &Model,
    feeds: &[Value],
    outputs: &[ValueId],
    probe: &mut Probe,
) -> Result<()> {
    let mut model = model.clone();
    let Graph { inputs, initializers, .. } = &model.graph;
    // Inputs and constants that are passed through are known; executors differ on whether they may be outputs.
    let fixed = |id: &&ValueId| initializers.contains_key(*id) || inputs.iter().any(|input| input.id == **id);
    let outputs: Vec<ValueId> = outputs.iter().filter(|id| !fixed(id)).cloned().collect();
    ask_for(&mut model.graph, outputs);
    let ids: Vec<ValueId> = model.graph.outputs.iter().map(|o| o.id.clone()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let results = executor.compile_once(&model, &probe.facts)?.run(feeds)?;
    for (id, value) in ids.iter().zip(results) {
        probe.note(id, value.fact(), || value.to_host())?;
    }
    Ok(())
}

/// Whether a probe keeps a value's elements.
fn keeps(fact: &Fact) -> bool {
    let discrete = fact.dtype.is_int() || fact.dtype == DType::Bool;
    let most = if discrete { MOST_KEPT } else { MOST_REAL };
    (discrete || fact.dtype.is_float()) && fact.len() <= most
}

impl Probe {
    fn note(&mut self, id: &ValueId, fact: Fact, value: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if matches!(fact.dtype, DType::Other(_)) {
            return Ok(());
        }
        if keeps(&fact) {
            self.values.insert(id.clone(), value()?);
        }
        self.facts.insert(id.clone(), fact);
        Ok(())
    }
}

/// Random values for a graph's inputs, the same for the same `seed`: reals in −1…1, integers 0 or 1.
///
/// A dimension that isn't fixed becomes `batch` where it is the first, and 1 elsewhere; one name means one size.
///
/// # Errors
/// [`Error::Tensor`] for an input that isn't a tensor of numbers, or whose rank isn't declared.
pub fn example_inputs(graph: &Graph, batch: usize, seed: u64) -> Result<HashMap<ValueId, Tensor>> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut sizes: HashMap<&str, usize> = HashMap::new();
    let mut inputs = HashMap::new();
    for input in graph.required_inputs() {
        let refuse = |what: &str| Error::tensor(input.id.as_str(), what).hint(ONLY_NUMBERS);
        let dtype = input.dtype.ok_or_else(|| refuse("is an input, but not a tensor"))?;
        let dims = input.shape.as_ref().ok_or_else(|| refuse("is an input of unknown rank"))?;
        let shape: Vec<usize> = dims
            .iter()
            .enumerate()
            .map(|(i, dim)| {
                let free = if i == 0 { batch } else { 1 };
                match dim {
                    Dim::Known(d) => *d,
                    Dim::Named(name) => *sizes.entry(name).or_insert(free),
                    Dim::Unknown => free,
                }
            })
            .collect();
        let count = crate::onnx::element_count(&shape).filter(|&n| n <= MOST_MADE_UP);
        let count = count.ok_or_else(|| {
            Error::tensor(input.id.as_str(), "is an input too large to try out")
                .hint("it declares more than 2^26 numbers; export it with smaller or open dimensions")
        })?;
        let values: Vec<f64> = match dtype {
            d if d.is_float() => (0..count).map(|_| rng.random_range(-1.0..1.0)).collect(),
            d if d.is_int() || d == DType::Bool => {
                (0..count).map(|_| rng.random_range(0..2) as f64).collect()
            }
            _ => return Err(refuse(&format!("is an input of type {dtype}: only numbers can be made up"))),
        };
        inputs.insert(input.id.clone(), Tensor::from_f64(dtype, &shape, &values));
    }
    Ok(inputs)
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::onnx::{Builder, WORKING_OPSET};
    use crate::runtime::TractExecutor;

    /// Large inputs make a probe go part by part; what it sees must not depend on that.
    #[test]
    fn parts_see_what_the_whole_shows() -> Result<()> {
        let chain = |rows: usize| {
            let mut b = Builder::new("chain");
            let shape = [rows, 64];
            let x = b.input("x", Fact::new(DType::F32, &shape));
            let mut y = x.clone();
            for i in 0..3 * FIRST_PART {
                y = b.add(&y, &x);
                if i == 2 {
                    y = b.reshape(&y, &[64, rows]);
                    y = b.reshape(&y, &shape);
                }
            }
            b.output(&y);
            let (graph, facts) = b.finish();
            (Model::new(graph, WORKING_OPSET), facts, HashMap::from([(x, Tensor::zeros(DType::F32, &shape))]))
        };
        let executor = TractExecutor::new(1)?;
        for rows in [2, 1 + SMALL_INPUTS / (64 * 4)] {
            let (model, expected, inputs) = chain(rows);
            let seen = probe(&executor, &model, &inputs)?;
            for id in model.graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten()) {
                assert_eq!(seen.facts.get(id), expected.get(id), "{id} of {rows} rows");
            }
        }
        Ok(())
    }
}
