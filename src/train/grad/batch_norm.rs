//! Batch normalisation as in training: the statistics of the batch itself, and running ones that follow them.

use crate::onnx::{Attr, Builder, Graph, ValueId};
use std::collections::HashSet;

/// A running mean or variance that is a weight of the file.
pub struct Statistic {
    pub name: ValueId,
    /// The value that takes its place after a step.
    pub next: ValueId,
}

/// Turns every inference-time `BatchNormalization` of the graph into its training form. Returns what it updates.
pub fn to_training(graph: &mut Graph) -> Vec<Statistic> {
    let mut statistics: Vec<Statistic> = vec![];
    let mut seen: HashSet<ValueId> = HashSet::new();
    let initializers = &graph.initializers;
    for node in graph.nodes.iter_mut().filter(|n| n.is("BatchNormalization")) {
        if node.int_or("training_mode", 0) != 0 || node.outputs.len() > 1 {
            continue;
        }
        node.attrs.insert("training_mode".into(), Attr::Int(1));
        for (input, what) in [(3, "running_mean"), (4, "running_var")] {
            let next = ValueId::new(format!("{}/{what}", node.label()));
            node.outputs.push(Some(next.clone()));
            let own = node.input(input).filter(|id| initializers.contains_key(*id));
            // Statistics that several layers share follow the first of them.
            if let Some(name) = own.filter(|id| seen.insert((*id).clone())) {
                statistics.push(Statistic { name: name.clone(), next });
            }
        }
    }
    statistics
}

/// Notes type and shape of the updated statistics.
pub fn facts(b: &mut Builder) {
    let nodes: Vec<_> = b.graph().nodes.iter().filter(|n| n.is("BatchNormalization")).cloned().collect();
    for node in nodes {
        for (input, output) in [(3, 1), (4, 2)] {
            if let (Some(old), Some(new)) = (node.input(input), node.output(output))
                && let Some(fact) = b.facts().get(old).cloned()
            {
                b.set_fact(new, fact);
            }
        }
    }
}
