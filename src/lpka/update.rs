//! One update step as one graph: backward through the merge formula, optimiser, forward again.
//!
//! A step must differentiate the formula at the *old* parameters and then evaluate it at the *new* ones. The forward pass at
//! the old ones was done by the step before; [`carry`] lets what the backward pass needs of it flow from step to step as
//! state, so that each step computes the formula once.

use super::lens::Lens;
use super::optimizer::{self, Flats};
use super::parameters::{Noise, Plan};
use super::{Restart, UpdateProgram};
use crate::autodiff;
use crate::error::{Error, Result};
use crate::onnx::{
    Builder, DType, Fact, Facts, Graph, Model, Tensor, ValueId, ValueInfo, WORKING_OPSET, node_reads,
};
use crate::runtime::{Executor, State, Value};
use crate::train::TrainConfig;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Builds the update program of a plan.
pub(super) fn assemble(
    plan: &Plan,
    config: &TrainConfig,
    executor: &dyn Executor,
    seed: u64,
) -> Result<UpdateProgram> {
    emit(plan, config, executor, seed, true)
}

/// Without carrying anything: twice the work, for tests of [`carry`].
#[cfg(test)]
pub(super) fn assemble_recomputing(
    plan: &Plan,
    config: &TrainConfig,
    executor: &dyn Executor,
    seed: u64,
) -> Result<UpdateProgram> {
    emit(plan, config, executor, seed, false)
}

fn emit(
    plan: &Plan,
    config: &TrainConfig,
    executor: &dyn Executor,
    seed: u64,
    carrying: bool,
) -> Result<UpdateProgram> {
    let flats = Flats::new(&plan.parameters);
    let mut b = Builder::new("update");
    let linked = plan.linked();
    let gradients: Vec<ValueId> =
        linked.iter().map(|link| b.input(&format!("grad/{}", link.name), link.fact.clone())).collect();
    let rate = b.input("learning_rate", Fact::new(DType::F32, &[]));
    let old = flats.inputs(&mut b, "flat");
    let mut noise = vec![];
    let mut state = vec![];

    b.set_scope("old");
    let values = flats.views(&mut b, &old);
    let first = b.graph().nodes.len();
    let merged = plan.emit(&mut b, &values, &mut noise_inputs(&mut noise));
    let before = first..b.graph().nodes.len();

    b.set_scope("grad");
    let mut seeds = vec![];
    for (merged, gradient) in merged.iter().zip(&gradients) {
        seeds.push((merged.clone(), b.cast(gradient, DType::F32)));
    }
    let cotangents = autodiff::backward(&mut b, &seeds, &values)?;
    let cotangents: Vec<_> = values.iter().map(|v| cotangents.get(v).cloned()).collect();
    let gathered = flats.gathered(&mut b, &cotangents);

    b.set_scope("optimizer");
    let next = optimizer::emit(&mut b, &flats, &old, gathered, &rate, config, "moments/", &mut state);
    for ((input, output), initial) in old.iter().zip(&next).zip(flats.initial(&plan.parameters)) {
        declare(&mut b, output);
        state.push(State { input: input.clone(), output: output.clone(), initial });
    }

    b.set_scope("new");
    let values = flats.views(&mut b, &next);
    let first = b.graph().nodes.len();
    let merged = plan.emit(&mut b, &values, &mut noise_inputs(&mut noise));
    let after = first..b.graph().nodes.len();
    let merged = outputs(&mut b, plan, "merged", merged);
    let clean = match plan.drops() {
        true => {
            b.set_scope("clean");
            let clean = plan.emit(&mut b, &values, &mut Noise::Off);
            outputs(&mut b, plan, "clean", clean)
        }
        false => merged.clone(),
    };
    b.set_scope("");

    let carried = if carrying { carry(&mut b, before, after)? } else { vec![] };
    let start = start(plan, &flats, &old, &carried, executor, seed)?;
    for (carried, initial) in carried.into_iter().zip(start.carried) {
        state.push(State { input: carried.input, output: carried.output, initial });
    }
    let (mut graph, facts) = b.finish();
    graph.prune();
    drop_unread(&mut graph, &noise);
    noise.retain(|(id, _)| graph.inputs.iter().any(|i| i.id == *id));
    let names = || linked.iter().map(|link| link.name.clone());
    Ok(UpdateProgram {
        facts: facts_of(&graph, facts),
        model: Model::new(graph, WORKING_OPSET),
        gradients: names().zip(gradients).collect(),
        merged: names().zip(merged).collect(),
        clean: names().zip(clean).collect(),
        state,
        learning_rate: rate,
        noise,
        restart: start.again,
        initial: names().zip(start.merged).collect(),
        adapter_parameters: plan.parameters.count() - plan.own,
        maps: plan.maps.iter().map(|map| map.name.clone()).collect(),
        transfers: plan.transfers.clone(),
        lens: Lens::new(|b| {
            let inputs = flats.inputs(b, "flat");
            let values = flats.views(b, &inputs);
            let mut seen = vec![];
            for layer in &plan.layers {
                seen.extend(layer.attended(b, &values, &plan.bases));
            }
            (inputs, seen)
        }),
    })
}

fn noise_inputs(inputs: &mut Vec<(ValueId, Fact)>) -> Noise<'_> {
    Noise::Inputs { taken: 0, inputs }
}

/// Declares W′, and the maps behind it, as outputs, in the weights' own element types.
pub(super) fn outputs(b: &mut Builder, plan: &Plan, prefix: &str, merged: Vec<ValueId>) -> Vec<ValueId> {
    let declare = |(value, link): (ValueId, super::parameters::Linked)| {
        let value = b.cast(&value, link.fact.dtype);
        // A weight that is trained as it is needn't be there twice.
        match b.graph().outputs.iter().any(|o| o.id == value) {
            true => value,
            false => b.output_as(&format!("{prefix}/{}", link.name), &value),
        }
    };
    merged.into_iter().zip(plan.linked()).map(declare).collect()
}

/// Declares an output, once.
fn declare(b: &mut Builder, value: &ValueId) {
    if !b.graph().outputs.iter().any(|o| o.id == *value) {
        b.output(value);
    }
}

/// An intermediate value that one step leaves to the next.
struct Carried {
    input: ValueId,
    output: ValueId,
    /// Its place among the values that the formula's nodes make.
    index: usize,
}

/// Replaces what the graph reads of the formula's nodes `before` by inputs, paired with the corresponding values of `after`,
/// the same formula emitted a second time.
fn carry(b: &mut Builder, before: Range<usize>, after: Range<usize>) -> Result<Vec<Carried>> {
    let made = |range: &Range<usize>| -> Vec<ValueId> {
        b.graph().nodes[range.clone()].iter().flat_map(|n| n.outputs.iter().flatten().cloned()).collect()
    };
    let (old, new) = (made(&before), made(&after));
    if old.len() != new.len() {
        return Err(Error::usage("the adapter's formula was not emitted alike twice"));
    }
    let read: HashSet<ValueId> = (b.graph().nodes.iter().enumerate())
        .filter(|(i, _)| !before.contains(i))
        .flat_map(|(_, node)| node_reads(node))
        .collect();
    let mut carried = vec![];
    let mut renamed = HashMap::new();
    for (index, (old, new)) in old.iter().zip(&new).enumerate().filter(|(_, (old, _))| read.contains(*old)) {
        let fact = b.fact(new).clone();
        let input = b.input(&format!("carried/{index}"), fact);
        declare(b, new);
        renamed.insert(old.clone(), input.clone());
        carried.push(Carried { input, output: new.clone(), index });
    }
    for (i, node) in b.graph_mut().nodes.iter_mut().enumerate() {
        if before.contains(&i) {
            continue;
        }
        for input in node.inputs.iter_mut().flatten() {
            if let Some(name) = renamed.get(input) {
                *input = name.clone();
            }
        }
    }
    Ok(carried)
}

struct Start {
    merged: Vec<Tensor>,
    carried: Vec<Tensor>,
    again: Option<Restart>,
}

/// The formula's values before the first step.
fn start(
    plan: &Plan,
    flats: &Flats,
    states: &[ValueId],
    carried: &[Carried],
    executor: &dyn Executor,
    seed: u64,
) -> Result<Start> {
    if plan.layers.is_empty() {
        let own =
            |base: &super::parameters::Base| plan.parameters.list[base.parameter.0].initial.cast(base.dtype);
        return Ok(Start { merged: plan.bases.iter().map(own).collect(), carried: vec![], again: None });
    }
    let mut b = Builder::new("start");
    let inputs = flats.inputs(&mut b, "flat");
    let values = flats.views(&mut b, &inputs);
    let mut noise = vec![];
    let first = b.graph().nodes.len();
    let merged = plan.emit(&mut b, &values, &mut noise_inputs(&mut noise));
    let made: Vec<ValueId> =
        b.graph().nodes[first..].iter().flat_map(|n| n.outputs.iter().flatten().cloned()).collect();
    let count = outputs(&mut b, plan, "merged", merged).len();
    for (i, part) in carried.iter().enumerate() {
        b.output_as(&format!("carried/{i}"), &made[part.index]);
    }
    if plan.drops() {
        let clean = plan.emit(&mut b, &values, &mut Noise::Off);
        for (value, link) in clean.iter().zip(plan.linked()) {
            let value = b.cast(value, link.fact.dtype);
            b.output_as(&format!("clean/{}", link.name), &value);
        }
    }
    let mut feeds: Vec<Value> = flats.initial(&plan.parameters).into_iter().map(Value::host).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for (_, fact) in &noise {
        let values: Vec<f32> = (0..fact.len()).map(|_| random.random()).collect();
        feeds.push(Value::host(Tensor::f32(&fact.shape, &values)));
    }
    let (mut graph, facts) = b.finish();
    let again = Restart {
        facts: facts_of(&graph, facts.clone()),
        model: Model::new(graph.clone(), WORKING_OPSET),
        parameters: states.to_vec(),
        noise: noise.into_iter().map(|(_, fact)| fact).collect(),
        carried: carried.iter().map(|c| c.input.clone()).collect(),
    };
    // What nothing is dropped from is for later.
    graph.outputs.truncate(count + again.carried.len());
    graph.prune();
    let mut merged = run_once(executor, graph, facts, &feeds)?;
    let carried = merged.split_off(count);
    Ok(Start { merged, carried, again: Some(again) })
}

/// Runs a graph once and brings its outputs to the host.
pub(super) fn run_once(
    executor: &dyn Executor,
    graph: Graph,
    facts: Facts,
    feeds: &[Value],
) -> Result<Vec<Tensor>> {
    let facts = facts_of(&graph, facts);
    let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    program.run(feeds)?.iter().map(Value::to_host).collect()
}

/// Takes away noise inputs that no node reads.
fn drop_unread(graph: &mut Graph, noise: &[(ValueId, Fact)]) {
    let read: HashSet<ValueId> = graph.nodes.iter().flat_map(node_reads).collect();
    let unread = |info: &ValueInfo| noise.iter().any(|(id, _)| *id == info.id) && !read.contains(&info.id);
    graph.inputs.retain(|info| !unread(info));
}

/// The facts of the values that are left in `graph`.
pub(super) fn facts_of(graph: &Graph, mut facts: Facts) -> Facts {
    let mut present: HashSet<&ValueId> = graph.inputs.iter().map(|i| &i.id).collect();
    present.extend(graph.initializers.keys());
    present.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()));
    facts.retain(|id, _| present.contains(id));
    facts
}
