//! Specialising a model to the shapes of its inputs: static values folded, decided branches inlined, short loops
//! unrolled, padding made explicit, nodes without effect dropped.
//!
//! Look at [`specialise`], one round with a probe at hand, and [`settle`], which probes and repeats it.

use super::names::rename_reads;
use super::sequences::unpack;
use super::statics::Statics;
use super::unroll::unroll;
use crate::autodiff::facts::{Probe, probe};
use crate::error::{Error, Result};
use crate::onnx::infer::Window;
use crate::onnx::{Attr, Facts, Graph, Model, Node, Tensor, ValueId};
use crate::runtime::Executor;
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// Branches within branches deeper than this stay as they are.
const MAX_ROUNDS: usize = 12;

/// Simplifies an upgraded `model` for inputs of the shapes that `probe` has seen. Values keep their names.
///
/// # Errors
/// [`Error::Node`] for an automatic padding that doesn't fit its input.
pub fn specialise(model: &Model, probe: &Probe) -> Result<Model> {
    let mut model = model.clone();
    let graph = &mut model.graph;
    fold(graph, probe);
    inline_branches(graph);
    unroll(graph, &probe.facts);
    unpack(graph, &probe.facts);
    for node in &mut graph.nodes {
        resolve_padding(node, &probe.facts)?;
    }
    drop_idle(graph, &probe.facts);
    graph.prune();
    Ok(model)
}

/// Specialises until nothing changes; returns the model and its last probe.
pub fn settle(
    model: &Model,
    executor: &dyn Executor,
    example: &HashMap<ValueId, Tensor>,
) -> Result<(Model, Probe)> {
    let mut model = model.clone();
    let mut probed = probe(executor, &model, example)?;
    for _ in 0..MAX_ROUNDS {
        let next = specialise(&model, &probed)?;
        let bodies = |m: &Model| m.graph.nodes.iter().filter(|n| n.subgraphs().next().is_some()).count();
        let made: HashSet<&ValueId> = values(&model.graph).collect();
        let inlined = bodies(&next) != bodies(&model) || values(&next.graph).any(|id| !made.contains(id));
        model = next;
        // Values keep their names, so that the old probe holds, unless a body or a sequence brought new ones.
        if !inlined {
            break;
        }
        probed = probe(executor, &model, example)?;
    }
    for (id, tensor) in &model.graph.initializers {
        probed.facts.entry(id.clone()).or_insert_with(|| crate::onnx::Fact::of(tensor));
    }
    Ok((model, probed))
}

/// What a graph's nodes make.
fn values(graph: &Graph) -> impl Iterator<Item = &ValueId> {
    graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten())
}

/// Makes initializers of integer and boolean values that are the same in every run, and of scales of images.
fn fold(graph: &mut Graph, probe: &Probe) {
    let statics = Statics::of(graph);
    let mut folded = IndexMap::new();
    let scales: HashSet<ValueId> =
        graph.nodes.iter().filter(|n| n.is("Resize")).filter_map(|n| n.input(2).cloned()).collect();
    // Other real numbers may be learned.
    let wanted = |id: &ValueId, t: &Tensor| !t.dtype().is_float() || scales.contains(id);
    let value =
        |id: &ValueId| probe.values.get(id).filter(|t| statics.is_fixed(id) && wanted(id, t)).cloned();
    fold_nodes(graph, &value, &mut folded);
    graph.initializers.extend(folded);
}

/// Takes nodes out of `graph`, and out of the branches in it, whose outputs `value` knows.
fn fold_nodes(
    graph: &mut Graph,
    value: &impl Fn(&ValueId) -> Option<Tensor>,
    folded: &mut IndexMap<ValueId, Tensor>,
) {
    let outputs: HashSet<ValueId> = graph.outputs.iter().map(|o| o.id.clone()).collect();
    for node in &mut graph.nodes {
        for output in &mut node.outputs {
            let known = output
                .as_ref()
                .filter(|id| !outputs.contains(*id))
                .and_then(|id| Some((id.clone(), value(id)?)));
            if let Some((id, tensor)) = known {
                folded.insert(id, tensor);
                *output = None;
            }
        }
    }
    graph.nodes.retain(|node| node.outputs.iter().any(Option::is_some));
    for node in graph.nodes.iter_mut().filter(|n| n.is("If")) {
        node.subgraphs_mut().for_each(|branch| fold_nodes(branch, value, folded));
    }
}

/// Puts the branch that is always taken in the place of its `If`.
fn inline_branches(graph: &mut Graph) {
    let mut nodes = vec![];
    for node in std::mem::take(&mut graph.nodes) {
        let condition = node.input(0).and_then(|id| graph.initializers.get(id)).filter(|_| node.is("If"));
        let decided = condition.and_then(|c| c.to_f64().first().map(|&v| v != 0.0));
        let branch = decided.and_then(|yes| node.graph(if yes { "then_branch" } else { "else_branch" }));
        let Some(branch) = branch else {
            nodes.push(node);
            continue;
        };
        graph.initializers.extend(branch.initializers.clone());
        nodes.extend(branch.nodes.iter().cloned());
        for (inner, outer) in branch.outputs.iter().zip(&node.outputs) {
            if let Some(outer) = outer {
                nodes.push(Node::new("Identity", &[&inner.id], &[outer]));
            }
        }
    }
    graph.nodes = nodes;
}

/// Turns `auto_pad` (and `output_shape` of transposed convolutions) into explicit `pads`.
fn resolve_padding(node: &mut Node, facts: &Facts) -> Result<()> {
    let windowed = matches!(
        node.op.as_str(),
        "Conv"
            | "ConvTranspose"
            | "MaxPool"
            | "AveragePool"
            | "LpPool"
            | "ConvInteger"
            | "QLinearConv"
            | "FusedConv"
    ) && (node.domain.is_empty() || node.op == "FusedConv");
    let mode = node.str("auto_pad").unwrap_or("NOTSET").to_owned();
    let shaped = node.is("ConvTranspose") && node.ints("output_shape").is_some();
    if !windowed || (mode == "NOTSET" && !shaped) {
        if windowed {
            node.attrs.shift_remove("auto_pad");
        }
        return Ok(());
    }
    let shape = |i: usize| node.input(i).and_then(|id| facts.get(id)).map(|f| f.shape.clone());
    let Some(input) = shape(0).filter(|s| s.len() > 2) else { return Ok(()) };
    let spatial = input.len() - 2;
    let kernel: Vec<usize> = match node.ints("kernel_shape") {
        Some(kernel) => kernel.iter().map(|&k| k as usize).collect(),
        None => match shape(if node.is("QLinearConv") { 3 } else { 1 }) {
            Some(weight) if weight.len() == input.len() => weight[2..].to_vec(),
            _ => return Ok(()),
        },
    };
    let mut plain = node.clone();
    plain.attrs.shift_remove("pads");
    let window = Window::of(&plain, &kernel, spatial)
        .ok_or_else(|| Error::node(node, "has attributes that don't fit"))?;
    let mut pads = vec![0i64; 2 * spatial];
    for i in 0..spatial {
        let reach = (window.kernel[i] as i64 - 1) * window.dilation[i] as i64 + 1;
        let (size, stride) = (input[i + 2] as i64, window.stride[i] as i64);
        let total = match (node.is("ConvTranspose"), mode.as_str()) {
            (_, "VALID") => 0,
            (false, _) => ((size + stride - 1) / stride - 1) * stride + reach - size,
            (true, _) => {
                let extra = node.ints("output_padding").and_then(|p| p.get(i)).copied().unwrap_or(0);
                let asked =
                    node.ints("output_shape").and_then(|s| s.get(s.len().checked_sub(spatial)? + i)).copied();
                (size - 1) * stride + extra + reach - asked.unwrap_or(size * stride)
            }
        };
        let total = total.max(0);
        let begin = if mode == "SAME_UPPER" { total / 2 } else { total - total / 2 };
        (pads[i], pads[i + spatial]) = (begin, total - begin);
    }
    node.attrs.shift_remove("auto_pad");
    node.attrs.shift_remove("output_shape");
    node.attrs.insert("pads".into(), Attr::Ints(pads));
    Ok(())
}

/// Drops nodes that pass their input on unchanged.
fn drop_idle(graph: &mut Graph, facts: &Facts) {
    let statics = Statics::of(graph);
    let outputs: HashSet<ValueId> = graph.outputs.iter().map(|o| o.id.clone()).collect();
    let mut passed: HashMap<ValueId, ValueId> = HashMap::new();
    let mut nodes = vec![];
    for mut node in std::mem::take(&mut graph.nodes) {
        for input in node.inputs.iter_mut().flatten() {
            if let Some(origin) = passed.get(input) {
                *input = origin.clone();
            }
        }
        if !passed.is_empty() && node.subgraphs().next().is_some() {
            let reads = crate::onnx::node_reads(&node);
            for id in reads.iter().filter(|id| passed.contains_key(*id)) {
                rename_reads(std::slice::from_mut(&mut node), id, &passed[id]);
            }
        }
        let steady = node.output(0).is_some_and(|id| statics.has_fixed_shape(id));
        match (is_idle(&node, facts), node.input(0), node.output(0)) {
            (true, Some(input), Some(output))
                if !outputs.contains(output) && (steady || node.is("Identity")) =>
            {
                passed.insert(output.clone(), input.clone());
            }
            _ => nodes.push(node),
        }
    }
    graph.nodes = nodes;
}

fn is_idle(node: &Node, facts: &Facts) -> bool {
    if !node.domain.is_empty() {
        return false;
    }
    let fact = |id: Option<&ValueId>| id.and_then(|id| facts.get(id));
    let same = match (fact(node.input(0)), fact(node.output(0))) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    };
    match node.op.as_str() {
        "Identity" => true,
        "Cast" | "Reshape" | "Flatten" | "Expand" | "Squeeze" | "Unsqueeze" | "Tile" | "CastLike" => same,
        "Transpose" => node.ints("perm").is_some_and(|p| p.iter().enumerate().all(|(i, &a)| i as i64 == a)),
        _ => false,
    }
}
