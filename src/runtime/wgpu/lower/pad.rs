//! Padding in all modes. Negative pads crop.

use super::{Elem, Lowering, Node, Operand, Outcome, Row, View, axis_of, index};
use crate::onnx::Tensor;

pub const TABLE: &[Row] = &[("Pad", pad)];

fn pad(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let pads = l.known_ints(node, 1)?.or_else(|| node.ints("pads").map(<[i64]>::to_vec));
    let pads = pads.ok_or("pads are missing")?;
    let rank = x.view.rank();
    let axes = l.known_ints(node, 3)?.unwrap_or_else(|| (0..rank as i64).collect());
    let axes = axes.iter().map(|&a| axis_of(a, rank)).collect::<Outcome<Vec<_>>>()?;
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let y = match node.str("mode").unwrap_or("constant") {
        "constant" => constant(l, node, &x, &axes, &pads)?,
        mode => {
            let mut y = x;
            for (i, &axis) in axes.iter().enumerate() {
                y = mirrored(l, &y, axis, pads[i], pads[i + axes.len()], mode)?;
            }
            y
        }
    };
    l.set(node, 0, y)
}

/// The padding is copied everywhere first, then the input into its place.
fn constant(l: &mut Lowering, node: &Node, x: &Operand, axes: &[usize], pads: &[i64]) -> Outcome<Operand> {
    let shape = l.out_shape(node, 0)?;
    let value = match l.optional(node, 2)? {
        Some(value) => Operand { view: View { shape: vec![], strides: vec![], ..value.view }, ..value },
        None if x.elem == Elem::F32 => l.scalar(0.0)?,
        None => l.constant(&Tensor::i32(&[], &[0]))?,
    };
    let y = l.fresh(x.elem, &shape)?;
    l.copy(&Operand { view: value.view.broadcast(&shape), ..value }, &y);
    let (mut from, mut to) = (x.view.clone(), y.view.clone());
    for (&axis, &begin) in axes.iter().zip(pads) {
        let skip = (-begin).max(0);
        let at = begin.max(0);
        let count = (x.view.shape[axis] as i64 - skip).min(shape[axis] as i64 - at).max(0) as usize;
        from = from.sliced(axis, skip, 1, count);
        to = to.sliced(axis, at, 1, count);
    }
    l.copy(&Operand { view: from, ..x.clone() }, &Operand { view: to, ..y.clone() });
    Ok(y)
}

/// One axis padded with its own elements, picked by index.
fn mirrored(
    l: &mut Lowering,
    x: &Operand,
    axis: usize,
    begin: i64,
    end: i64,
    mode: &str,
) -> Outcome<Operand> {
    let size = x.view.shape[axis] as i64;
    if (begin, end) == (0, 0) || size == 0 {
        return Ok(x.clone());
    }
    let place = |i: i64| -> Outcome<i32> {
        let last = size - 1;
        Ok(match mode {
            "edge" => i.clamp(0, last),
            "wrap" => i.rem_euclid(size),
            "reflect" if last == 0 => 0,
            // To and fro without repeating the ends.
            "reflect" => last - (i.rem_euclid(2 * last) - last).abs(),
            other => return Err(format!("mode '{other}' is unknown")),
        } as i32)
    };
    let places = (-begin..size + end).map(place).collect::<Outcome<Vec<_>>>()?;
    let table = l.table(places)?;
    index::along_axis(l, x, &table, axis)
}
