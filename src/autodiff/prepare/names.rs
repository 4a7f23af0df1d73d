//! Names: one value, one name, over a whole model with the graphs inside its nodes; and all constants outside them.
//!
//! ONNX lets the branches of an `If` use the same names. Here every value gets one of its own ([`make_unique`]), so
//! that facts need no scopes and bodies can be taken apart, and the initializers of subgraphs move to the top-level
//! graph ([`hoist`]), where weights are looked for. Sites stay with their tensors.

use crate::onnx::{Graph, Names, Node, ValueId};
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// Names that a graph gives to values itself.
pub fn own_names(graph: &Graph) -> impl Iterator<Item = &ValueId> {
    let inputs = graph.inputs.iter().map(|i| &i.id);
    let made = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
    inputs.chain(graph.initializers.keys()).chain(made)
}

/// Makes nodes, and the graphs in them, read `to` instead of `from`.
pub fn rename_reads(nodes: &mut [Node], from: &ValueId, to: &ValueId) {
    for node in nodes {
        for input in node.inputs.iter_mut().flatten().filter(|i| *i == from) {
            *input = to.clone();
        }
        for graph in node.subgraphs_mut() {
            rename_reads(&mut graph.nodes, from, to);
            for output in graph.outputs.iter_mut().filter(|o| o.id == *from) {
                output.id = to.clone();
            }
        }
    }
}

/// Gives nodes' values new names, wherever they are made or read. A subgraph's own names win over those around it.
pub fn rename(nodes: &mut [Node], names: &HashMap<ValueId, ValueId>) {
    let new = |id: &mut ValueId| {
        if let Some(name) = names.get(id) {
            *id = name.clone();
        }
    };
    for node in nodes {
        node.inputs.iter_mut().chain(&mut node.outputs).flatten().for_each(new);
        for graph in node.subgraphs_mut() {
            let mut inner = names.clone();
            own_names(graph).for_each(|id| drop(inner.remove(id)));
            rename(&mut graph.nodes, &inner);
            for output in &mut graph.outputs {
                if let Some(name) = inner.get(&output.id) {
                    output.id = name.clone();
                }
            }
        }
    }
}

/// Renames a graph's own values.
pub fn rename_own(graph: &mut Graph, names: &HashMap<ValueId, ValueId>) {
    if names.is_empty() {
        return;
    }
    let new = |id: &ValueId| names.get(id).unwrap_or(id).clone();
    rename(&mut graph.nodes, names);
    graph.inputs.iter_mut().chain(&mut graph.outputs).for_each(|i| i.id = new(&i.id));
    graph.initializers =
        std::mem::take(&mut graph.initializers).into_iter().map(|(id, tensor)| (new(&id), tensor)).collect();
}

/// Renames values inside subgraphs that share their name with another value of the model.
pub fn make_unique(graph: &mut Graph) {
    if graph.nodes.iter().all(|n| n.subgraphs().next().is_none()) {
        return;
    }
    let mut taken = Names::of(graph);
    let mut claimed = own_names(graph).cloned().collect();
    inside(&mut graph.nodes, &mut claimed, &mut taken);
}

fn inside(nodes: &mut [Node], claimed: &mut HashSet<ValueId>, taken: &mut Names) {
    for node in nodes {
        let label = node.label();
        for graph in node.subgraphs_mut() {
            let mut names = HashMap::new();
            for id in own_names(graph) {
                if claimed.insert(id.clone()) {
                    continue;
                }
                let name = taken.fresh(&format!("{label}/{id}"));
                claimed.insert(name.clone());
                names.insert(id.clone(), name);
            }
            rename_own(graph, &names);
            inside(&mut graph.nodes, claimed, taken);
        }
    }
}

/// Moves the initializers of all subgraphs, whose names must be unique, to the graph itself.
pub fn hoist(graph: &mut Graph) {
    let mut found = IndexMap::new();
    collect_initializers(&mut graph.nodes, &mut found);
    graph.initializers.extend(found);
}

fn collect_initializers(nodes: &mut [Node], found: &mut IndexMap<ValueId, crate::onnx::Tensor>) {
    for graph in nodes.iter_mut().flat_map(Node::subgraphs_mut) {
        found.extend(std::mem::take(&mut graph.initializers));
        collect_initializers(&mut graph.nodes, found);
    }
}
