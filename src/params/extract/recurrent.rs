//! LSTM, GRU and RNN: one matrix for the inputs and one for the recurrence, each with all gates below each other.

use super::Walk;
use super::labels::{Atom, Labels};
use crate::onnx::{Node, RecurrentOp, ValueId};
use crate::params::pieces::Pieces;
use crate::params::{MatrixView, Role};
use std::collections::BTreeMap;

/// Follows channels through `node`, if it is one of these.
pub fn visit(walk: &mut Walk, node: &Node) -> bool {
    let Some(op) = RecurrentOp::of(node) else { return false };
    if follow(walk, node, op.gates()).is_none() {
        walk.note_unknown(node);
    }
    true
}

/// How a weight is a matrix, also where the model puts its gates in another order first.
fn view(walk: &Walk, weight: &ValueId, out: usize, inn: usize, group: usize) -> Option<MatrixView> {
    let view = |split, perm, order| MatrixView { out, inn, taps: vec![], group, split, perm, order };
    if let Some(form) = walk.stored.get(weight)?.form.clone() {
        return Some(view(form.split, form.perm, vec![]));
    }
    let (_, order) = Pieces::new(walk.graph, walk.facts).permuted(weight, inn)?;
    Some(view(vec![out, inn], vec![0, 1], order))
}

/// Notes the biases, each of those that they were put together from; `channels` has one for each element.
fn follow_biases(walk: &mut Walk, node: &Node, channels: &[Atom], depth: usize) {
    let Some(biases) = node.input(3) else { return };
    let Some(rows) =
        Pieces::new(walk.graph, walk.facts).rows(biases, 1).filter(|r| r.len() == channels.len())
    else {
        return walk.vector(node, Some(biases), Role::Bias, channels, depth);
    };
    let mut parts: BTreeMap<&ValueId, BTreeMap<usize, Atom>> = BTreeMap::new();
    for ((root, element), atom) in rows.iter().zip(channels) {
        parts.entry(root).or_default().insert(*element, *atom);
    }
    for (root, atoms) in parts {
        walk.vector(node, Some(root), Role::Bias, &atoms.into_values().collect::<Vec<_>>(), depth);
    }
}

fn follow(walk: &mut Walk, node: &Node, gates: usize) -> Option<()> {
    let (x, w, r) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let (&[directions, rows, inn], &[_, _, hidden]) = (walk.shape(w)?, walk.shape(r)?) else {
        return None;
    };
    let rank = walk.shape(x)?.len();
    if walk.shape(r)? != [directions, rows, hidden] || rows != gates * hidden || rank != 3 || directions == 0
    {
        return None;
    }
    let depth = walk.values.get(x).map_or(0, |s| s.level);
    let features = walk.channels(Some(x), 2);
    let made = walk.atoms.fresh(directions * hidden);
    let of = |d: usize| &made[d * hidden..(d + 1) * hidden];
    // Every gate of a direction has that direction's hidden channels as its rows.
    let all_gates: Vec<Atom> = (0..directions).flat_map(|d| of(d).repeat(gates)).collect();
    for (weight, role_in, width) in [(w, features.repeat(directions), inn), (r, made.clone(), hidden)] {
        if !walk.is_stored(Some(weight)) {
            continue;
        }
        let view = view(walk, weight, directions * rows, width, directions);
        walk.matrix(node, weight, Role::Recurrent, view, (role_in, all_gates.clone()));
    }
    // Biases for the inputs and for the recurrence lie one after the other, a direction each.
    let biases: Vec<Atom> = (0..directions).flat_map(|d| of(d).repeat(2 * gates)).collect();
    follow_biases(walk, node, &biases, depth);
    if let Some(shape) = node.output(0).and_then(|o| walk.shape(o)).filter(|s| s.len() == 4) {
        let batch_first = node.int_or("layout", 0) == 1;
        let direction_axis = if batch_first { 2 } else { 1 };
        let mut labels = vec![1; shape.len()];
        (labels[direction_axis], labels[3]) = (directions, hidden);
        walk.set(node.output(0), Some(Labels { shape: labels, atoms: made.clone() }));
    }
    for output in [1, 2] {
        if node.output(output).and_then(|o| walk.shape(o)).is_some_and(|s| s.len() == 3) {
            let shape = if node.int_or("layout", 0) == 1 {
                vec![1, directions, hidden]
            } else {
                vec![directions, 1, hidden]
            };
            walk.set(node.output(output), Some(Labels { shape, atoms: made.clone() }));
        }
    }
    Some(())
}
