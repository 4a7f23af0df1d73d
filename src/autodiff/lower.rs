//! After differentiation: makes a training graph easy on executors.
//!
//! Layers that executors only run with constant parameters are written out in primitives ([`lower`]), and what the
//! forward pass and the gradient rules both compute is computed once ([`share`]), and cotangents of slices are put side by
//! side (`join`). Knows nothing of gradients.

use super::prepare::is_random;
use super::rules;
use crate::error::Result;
use crate::onnx::{Builder, Facts, Graph, Node, ValueId, alike};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

/// Rewrites the nodes of `graph` whose parameters have become inputs and that not every executor runs so
/// (batch normalisation and recurrent layers), then shares equal nodes.
///
/// # Errors
/// [`crate::Error::Node`] for a recurrent layer with an unknown activation.
pub fn lower(graph: Graph, facts: Facts) -> Result<(Graph, Facts)> {
    let mut b = Builder::on(graph, facts);
    let nodes = std::mem::take(&mut b.graph_mut().nodes);
    let outer = b.scope().to_owned();
    for node in nodes {
        let constant = |value: &Option<ValueId>| value.as_ref().is_none_or(|v| b.constant_value(v).is_some());
        // Few executors know the training form of batch normalisation.
        let training = node.is("BatchNormalization") && node.int_or("training_mode", 0) != 0;
        let fixed = node.inputs.iter().skip(1).all(constant) && !training;
        let Some(forward) = rules::lowering(&node).filter(|_| !fixed) else {
            b.keep(node);
            continue;
        };
        b.set_scope(&node.label());
        let made = forward(&mut b, &node)?;
        for (output, value) in node.outputs.iter().zip(made) {
            if let (Some(output), Some(value)) = (output, value) {
                b.push(Node::new("Identity", &[&value], &[output]));
            }
        }
        b.set_scope(&outer);
    }
    let (mut graph, facts) = b.finish();
    share(&mut graph);
    super::join::join(&mut graph, &facts);
    graph.prune();
    Ok((graph, facts))
}

/// Constants of more bytes than this aren't compared with each other.
const SMALL: usize = 4096;

/// Lets one node do the work of all that compute the same, and drops identities. Outputs of the graph keep their
/// names.
pub fn share(graph: &mut Graph) {
    let outputs: HashSet<ValueId> = graph.outputs.iter().map(|o| o.id.clone()).collect();
    let inputs: HashSet<ValueId> = graph.inputs.iter().map(|i| i.id.clone()).collect();
    let mut same: HashMap<ValueId, ValueId> = HashMap::new();
    let mut constants = HashMap::new();
    for (id, tensor) in
        graph.initializers.iter().filter(|(id, t)| t.bytes().len() <= SMALL && !inputs.contains(*id))
    {
        let key = (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec());
        match constants.get(&key) {
            Some(first) => drop(same.insert(id.clone(), ValueId::clone(first))),
            None => drop(constants.insert(key, id.clone())),
        }
    }
    let mut nodes: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    // Places in `nodes`, by a hash of what must be equal.
    let mut seen: HashMap<u64, Vec<usize>> = HashMap::new();
    let hasher = RandomState::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        for input in node.inputs.iter_mut().flatten() {
            if let Some(first) = same.get(input) {
                *input = first.clone();
            }
        }
        // Subgraphs may read what was dropped, by its name.
        node.subgraphs_mut().for_each(|inner| rename(inner, &|id| same.get(id).cloned()));
        let kept = node.outputs.iter().flatten().any(|o| outputs.contains(o));
        if is_random(&node) {
            nodes.push(node);
            continue;
        }
        if let (true, false, Some(from), Some(to)) =
            (node.is("Identity"), kept, node.input(0), node.output(0))
        {
            same.insert(to.clone(), from.clone());
            continue;
        }
        let places = seen.entry(hasher.hash_one((&node.op, &node.domain, &node.inputs))).or_default();
        match places.iter().map(|&i| &nodes[i]).find(|first| covers(first, &node)) {
            Some(first) if !kept => {
                for (to, from) in node.outputs.iter().zip(&first.outputs) {
                    same.extend(to.clone().zip(from.clone()));
                }
            }
            _ => {
                places.push(nodes.len());
                nodes.push(node);
            }
        }
    }
    graph.nodes = nodes;
}

/// Whether `first` computes all that `node` does.
fn covers(first: &Node, node: &Node) -> bool {
    first.inputs == node.inputs
        && alike(first, node).is_some_and(|taken| taken.iter().all(|(a, b)| a == b))
        && first.outputs.len() >= node.outputs.len()
        && first.outputs.iter().zip(&node.outputs).all(|(f, n)| f.is_some() || n.is_none())
}

fn rename(graph: &mut Graph, new: &impl Fn(&ValueId) -> Option<ValueId>) {
    let own = |graph: &Graph, id: &ValueId| {
        graph.initializers.contains_key(id)
            || graph.inputs.iter().any(|i| i.id == *id)
            || graph.nodes.iter().any(|n| n.outputs.iter().flatten().any(|o| o == id))
    };
    let renamed: Vec<(ValueId, ValueId)> = crate::onnx::outer_reads(graph)
        .into_iter()
        .filter(|id| !own(graph, id))
        .filter_map(|id| new(&id).map(|to| (id, to)))
        .collect();
    let change = |value: &mut ValueId| {
        if let Some((_, to)) = renamed.iter().find(|(from, _)| from == value) {
            *value = to.clone();
        }
    };
    graph.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten()).for_each(change);
    graph.outputs.iter_mut().for_each(|o| change(&mut o.id));
    for node in &mut graph.nodes {
        for inner in node.subgraphs_mut() {
            rename(inner, new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DType, Fact};

    #[test]
    fn equal_nodes_and_constants_are_shared_and_outputs_keep_their_names() {
        let mut b = Builder::new("twice");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let first = b.op("Exp", &[&x]);
        let copy = b.op("Identity", &[&x]);
        let second = b.op("Exp", &[&copy]);
        let sum = b.add(&first, &second);
        b.output_as("y", &sum);
        let (mut graph, _) = b.finish();
        share(&mut graph);
        graph.prune();
        let ops: Vec<&str> = graph.nodes.iter().map(|n| n.op.as_str()).collect();
        assert_eq!(ops, ["Exp", "Add", "Identity"]);
        assert_eq!(graph.nodes[1].inputs[0], graph.nodes[1].inputs[1]);
        assert_eq!(graph.outputs[0].id.as_str(), "y");
    }

    #[test]
    fn each_random_node_stays() {
        let mut b = Builder::new("noise");
        let mut draw = || {
            let drawn = b.op_with("RandomUniform", &[], &[("shape", vec![2i64].into())]);
            b.set_fact(&drawn, Fact::new(DType::F32, &[2]));
            drawn
        };
        let (first, second) = (draw(), draw());
        let difference = b.sub(&first, &second);
        b.output_as("y", &difference);
        let (mut graph, _) = b.finish();
        share(&mut graph);
        assert_eq!(graph.nodes.iter().filter(|node| node.is("RandomUniform")).count(), 2);
    }

    #[test]
    fn batch_normalisation_with_free_parameters_becomes_primitives() -> Result<()> {
        let mut b = Builder::new("norm");
        let x = b.input("x", Fact::new(DType::F32, &[2, 3, 4]));
        let parameters: Vec<ValueId> =
            (0..4).map(|i| b.input(&format!("p{i}"), Fact::new(DType::F32, &[3]))).collect();
        let y = ValueId::new("y");
        let inputs: Vec<&ValueId> = std::iter::once(&x).chain(&parameters).collect();
        b.push(Node::new("BatchNormalization", &inputs, &[&y]));
        b.set_fact(&y, Fact::new(DType::F32, &[2, 3, 4]));
        b.output(&y);
        let (graph, facts) = b.finish();
        let (graph, _) = lower(graph, facts)?;
        assert!(graph.nodes.iter().all(|n| !n.is("BatchNormalization")));
        assert_eq!(graph.nodes.last().and_then(|n| n.output(0)), Some(&y));
        Ok(())
    }
}
