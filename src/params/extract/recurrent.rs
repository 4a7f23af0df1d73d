//! LSTM, GRU and RNN: one matrix for the inputs and one for the recurrence, each with all gates below each other.

use super::Walk;
use super::labels::{Atom, Labels};
use crate::onnx::Node;
use crate::params::{MatrixView, Role};

/// Follows channels through `node`, if it is one of these.
pub fn visit(walk: &mut Walk, node: &Node) -> bool {
    let gates = match node.op.as_str() {
        "LSTM" => 4,
        "GRU" => 3,
        "RNN" => 1,
        _ => return false,
    };
    if follow(walk, node, gates).is_none() {
        walk.note_unknown(node);
    }
    true
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
        let view = walk.stored.get(weight)?.form.clone().map(|form| MatrixView {
            out: directions * rows,
            inn: width,
            taps: vec![],
            group: directions,
            split: form.split,
            perm: form.perm,
        });
        walk.matrix(node, weight, Role::Recurrent, view, (role_in, all_gates.clone()));
    }
    // Biases for the inputs and for the recurrence lie one after the other, a direction each.
    let biases: Vec<Atom> = (0..directions).flat_map(|d| of(d).repeat(2 * gates)).collect();
    walk.vector(node, node.input(3), Role::Bias, &biases, depth);
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
