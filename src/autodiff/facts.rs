//! Facts of a foreign graph's values, found by running it once with every value as an output (a *probe*).
//!
//! Exact for every operator an executor can run, custom ones included; no shape inference is needed. Values
//! inside subgraphs (`If`, `Loop`, `Scan`) are not seen. Look at [`probe`].

use crate::error::{Error, Result, ResultExt};
use crate::onnx::{DType, Dim, Fact, Facts, Graph, Model, Node, Tensor, ValueId, ValueInfo};
use crate::runtime::{Executor, Value};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};

/// What a run of a model showed.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// Of inputs, initializers and every value computed at the top level (sequences and optionals excepted).
    pub facts: Facts,
    /// The small whole-number and boolean values: shapes, axes, indices, conditions.
    pub values: HashMap<ValueId, Tensor>,
}

/// Values of more elements than this aren't shapes or conditions and aren't kept.
const SMALL: usize = 4096;

/// Operators whose outputs are no tensors.
const SEQUENCES: [&str; 8] = [
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceInsert",
    "SequenceErase",
    "SequenceMap",
    "SplitToSequence",
    "Optional",
    "ZipMap",
];

/// Runs `model` once on `inputs` (one for each required input) and records what every value is.
///
/// # Errors
/// What the executor says when it can't run the model.
pub fn probe(executor: &dyn Executor, model: &Model, inputs: &HashMap<ValueId, Tensor>) -> Result<Probe> {
    let mut widened = model.clone();
    let (outputs, feeds) = {
        let graph = &mut widened.graph;
        graph.outputs = tensor_outputs(graph);
        let feeds: Vec<Tensor> =
            graph.required_inputs().map(|i| feed(&i.id, inputs)).collect::<Result<_>>()?;
        pin_inputs(graph, inputs);
        (graph.outputs.iter().map(|o| o.id.clone()).collect::<Vec<_>>(), feeds)
    };
    let mut found = Probe::default();
    for (id, tensor) in &model.graph.initializers {
        found.facts.insert(id.clone(), Fact::of(tensor));
        found.keep(id, tensor);
    }
    let input_facts: Facts = inputs.iter().map(|(id, t)| (id.clone(), Fact::of(t))).collect();
    let mut program = executor.compile(&widened, &input_facts).context(|| "probing the model".into())?;
    let feeds: Vec<Value> = feeds.into_iter().map(Value::host).collect();
    let values = program.run(&feeds).context(|| "probing the model".into())?;
    for (id, value) in outputs.iter().zip(values) {
        let fact = value.fact();
        if !fact.dtype.is_float() && fact.len() <= SMALL {
            found.keep(id, &value.to_host()?);
        }
        found.facts.insert(id.clone(), fact);
    }
    found.facts.extend(input_facts);
    Ok(found)
}

impl Probe {
    fn keep(&mut self, id: &ValueId, tensor: &Tensor) {
        if !tensor.dtype().is_float() && tensor.is_readable() && tensor.len() <= SMALL {
            self.values.insert(id.clone(), tensor.clone());
        }
    }
}

/// Every value that a node makes at the top level and that is a tensor.
fn tensor_outputs(graph: &Graph) -> Vec<ValueInfo> {
    let mut not_tensors: HashSet<&ValueId> = HashSet::new();
    let mut outputs = vec![];
    for node in &graph.nodes {
        let carries = |node: &Node| {
            node.inputs.iter().flatten().any(|i| not_tensors.contains(i))
                && (node.is("Identity") || node.is("Loop"))
        };
        if SEQUENCES.contains(&node.op.as_str()) || carries(node) {
            not_tensors.extend(node.outputs.iter().flatten());
            continue;
        }
        let info = |id: &ValueId| ValueInfo { id: id.clone(), dtype: None, shape: None };
        outputs.extend(node.outputs.iter().flatten().map(info));
    }
    outputs
}

fn feed(id: &ValueId, inputs: &HashMap<ValueId, Tensor>) -> Result<Tensor> {
    inputs.get(id).cloned().ok_or_else(|| Error::tensor(id.as_str(), "no example of this input was given"))
}

/// Declares inputs with the exact shapes they are fed.
fn pin_inputs(graph: &mut Graph, inputs: &HashMap<ValueId, Tensor>) {
    for input in &mut graph.inputs {
        if let Some(tensor) = inputs.get(&input.id) {
            *input = ValueInfo::new(input.id.clone(), &Fact::of(tensor));
        }
    }
}

/// Random inputs for a graph: reals in −1…1, whole numbers 0 or 1. Open dimensions become `batch` where they come
/// first and 1 elsewhere.
///
/// # Errors
/// For inputs that are no tensors of numbers, or of unknown rank.
pub fn example_inputs(graph: &Graph, batch: usize, seed: u64) -> Result<HashMap<ValueId, Tensor>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let example = |input: &ValueInfo| {
        let fact = open_fact(input, batch)?;
        let count = fact.len();
        let values: Vec<f64> = (0..count)
            .map(|_| match fact.dtype.is_float() {
                true => random.random_range(-1.0..1.0),
                false => f64::from(random.random_range(0..2u8)),
            })
            .collect();
        Ok((input.id.clone(), Tensor::from_f64(fact.dtype, &fact.shape, &values)))
    };
    graph.required_inputs().map(example).collect()
}

fn open_fact(input: &ValueInfo, batch: usize) -> Result<Fact> {
    let fail = |what: &str| Error::tensor(input.id.as_str(), format!("this model input {what}"));
    let dtype = input.dtype.filter(|d| d.is_float() || d.is_int() || *d == DType::Bool);
    let dtype = dtype.ok_or_else(|| fail("is no tensor of numbers"))?;
    let shape = input.shape.as_ref().ok_or_else(|| fail("has no declared rank"))?;
    let size = |(i, dim): (usize, &Dim)| match dim {
        Dim::Known(size) => *size,
        _ if i == 0 => batch,
        _ => 1,
    };
    Ok(Fact { dtype, shape: shape.iter().enumerate().map(size).collect() })
}
