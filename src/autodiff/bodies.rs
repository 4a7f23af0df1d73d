//! Facts of values inside subgraphs: each body of an `If`, `Loop` or `Scan` is run once by itself, on made-up values of
//! the shapes that it gets in the model. Expects names to be unique over the whole model (see [`super::prepare`]).

use super::facts::{Probe, probe};
use crate::onnx::{DType, Fact, Graph, Model, Node, Tensor, ValueId, ValueInfo, outer_reads};
use crate::runtime::Executor;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Adds to `probe` what is known inside the bodies of `model`'s nodes, as far as they run. A branch that doesn't run on
/// values of these shapes is never taken with them, and gets no facts.
pub fn probe_bodies(executor: &dyn Executor, model: &Model, probe: &mut Probe) {
    for node in &model.graph.nodes {
        for body in node.subgraphs() {
            probe_body(executor, model, node, body, probe);
        }
    }
}

fn probe_body(executor: &dyn Executor, model: &Model, node: &Node, body: &Graph, probed: &mut Probe) {
    if super::prepare::own_names(body).any(|id| probed.facts.contains_key(id)) {
        return;
    }
    let Some(entries) = entries(node, body, probed) else { return };
    let mut graph = body.clone();
    graph.inputs = entries.iter().map(|(id, value)| ValueInfo::new(id.clone(), &Fact::of(value))).collect();
    let mut given: HashMap<ValueId, Tensor> = entries.into_iter().collect();
    for id in outer_reads(body) {
        if let Some(tensor) = model.graph.initializers.get(&id) {
            graph.initializers.insert(id, tensor.clone());
        } else if let Entry::Vacant(place) = given.entry(id) {
            let Some(value) = made_up(place.key(), probed) else { return };
            graph.inputs.push(ValueInfo::new(place.key().clone(), &Fact::of(&value)));
            place.insert(value);
        }
    }
    graph.outputs.iter_mut().for_each(|o| (o.dtype, o.shape) = (None, None));
    let Ok(inner) = probe(executor, &Model { graph, ..model.clone() }, &given) else { return };
    for (id, fact) in inner.facts {
        probed.facts.entry(id).or_insert(fact);
    }
    // What loops compute changes from iteration to iteration.
    if node.is("If") {
        for (id, value) in inner.values {
            probed.values.entry(id).or_insert(value);
        }
    }
}

/// The values of a body's inputs in a first iteration.
fn entries(node: &Node, body: &Graph, probed: &Probe) -> Option<Vec<(ValueId, Tensor)>> {
    let mut values = vec![];
    let (loops, scans) = (node.is("Loop"), node.is("Scan"));
    let scanned = if scans { usize::try_from(node.int("num_scan_inputs")?).ok()? } else { 0 };
    let carried = node.inputs.len().checked_sub(scanned)?;
    for (i, input) in body.inputs.iter().enumerate() {
        let rank = input.shape.as_ref().map_or(0, Vec::len);
        let value = match i {
            0 if loops => Tensor::i64(&vec![1; rank], &[0]),
            1 if loops => Tensor::bool(&vec![1; rank], &[true]),
            _ if i < carried => made_up(node.input(i)?, probed)?,
            _ => {
                let mut fact = probed.facts.get(node.input(i)?)?.clone();
                let axis =
                    node.ints("scan_input_axes").and_then(|a| a.get(i - carried)).copied().unwrap_or(0);
                fact.shape.remove(crate::onnx::infer::normalise_axis(axis, fact.rank())?);
                invented(&fact)
            }
        };
        values.push((input.id.clone(), value));
    }
    Some(values)
}

/// The value itself where it is known, else one of its type and shape.
fn made_up(id: &ValueId, probed: &Probe) -> Option<Tensor> {
    probed.values.get(id).cloned().or_else(|| probed.facts.get(id).map(invented))
}

fn invented(fact: &Fact) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let values: Vec<f64> = match fact.dtype {
        dtype if dtype.is_float() => (0..fact.len()).map(|_| rng.random_range(0.0..1.0)).collect(),
        DType::Bool => vec![1.0; fact.len()],
        _ => vec![0.0; fact.len()],
    };
    Tensor::from_f64(fact.dtype, &fact.shape, &values)
}
