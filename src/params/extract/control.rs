//! Weights inside the bodies of `If`, `Loop` and `Scan`: the walk goes through each body as if it stood outside.

use super::Walk;
use crate::onnx::{Node, ValueId};

pub fn visit(walk: &mut Walk<'_>, node: &Node) -> bool {
    let (loops, scans) = (node.is("Loop"), node.is("Scan"));
    if !loops && !scans && !node.is("If") {
        return false;
    }
    let scanned = if scans { node.int_or("num_scan_inputs", 0).max(0) as usize } else { 0 };
    let carried = node.inputs.len().saturating_sub(scanned);
    for body in node.subgraphs() {
        for (i, input) in body.inputs.iter().enumerate() {
            let mut state = node.input(i).and_then(|id| walk.values.get(id)).cloned().unwrap_or_default();
            // A slice has an axis less.
            state.labels = state.labels.filter(|_| i < carried);
            walk.values.insert(input.id.clone(), state);
        }
        body.nodes.iter().for_each(|inner| walk.visit(inner));
    }
    let states = if loops { carried.saturating_sub(2) } else { carried };
    for (i, output) in node.outputs.iter().enumerate() {
        let place = i + usize::from(loops);
        let made: Vec<ValueId> =
            node.subgraphs().filter_map(|g| Some(g.outputs.get(place)?.id.clone())).collect();
        let mut state = walk.merged(made.iter());
        if node.is("If") || i < states {
            state.labels = walk.labels(made.first());
        }
        if let Some(output) = output {
            walk.values.insert(output.clone(), state);
        }
    }
    true
}
