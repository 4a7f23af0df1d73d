//! Resizing: a sparse linear map along each axis.

use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, Walk, expect_f32, kernel};
use crate::onnx::resize::{Interpolation, Taps};

pub const TABLE: &[Row] = &[("Resize", resize)];

fn resize(l: &mut Lowering, node: &Node) -> Outcome {
    let mut y = l.arg(node, 0)?;
    expect_f32(&y)?;
    let how = Interpolation::of(node);
    if how.transformation == "tf_crop_and_resize" {
        return Err("tf_crop_and_resize is not supported on the GPU".into());
    }
    let shape = l.out_shape(node, 0)?;
    let axes = how.axes(&y.view.shape, &shape, node.input(3).is_some(), |i| l.known_floats(node, i))?;
    for axis in axes {
        let taps = how.taps(&axis).ok_or_else(|| format!("interpolation '{}' is unknown", how.mode))?;
        y = along(l, &y, axis.axis, &taps)?;
    }
    l.set(node, 0, y)
}

/// The map `taps` along `axis`.
pub fn along(l: &mut Lowering, x: &Operand, axis: usize, taps: &Taps) -> Outcome<Operand> {
    let count = taps.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut table = vec![];
    for row in taps {
        let mut words: Vec<i32> =
            row.iter().flat_map(|&(i, weight)| [i as i32, (weight as f32).to_bits() as i32]).collect();
        // Filled up with taps of weight 0.
        words.resize(2 * count, 0);
        table.extend(words);
    }
    let mut shape = x.view.shape.clone();
    shape[axis] = taps.len();
    let mut strides = x.view.strides.clone();
    strides[axis] = 0;
    let walk = Walk::new(&shape, &[&strides]);
    let n: usize = shape.iter().product();
    let behind: usize = shape[axis + 1..].iter().product();
    let mut params = vec![n as i32, count as i32, taps.len() as i32, behind as i32];
    params.extend([x.view.offset, x.view.strides[axis], walk.rank()]);
    params.extend(walk.dims.iter().chain(&walk.strides[0]));
    let table = l.table(table)?;
    let y = l.fresh(Elem::F32, &shape)?;
    l.call(kernel::INTERPOLATE, &[], params, &[x, &table], &[&y], n.div_ceil(GROUP));
    Ok(y)
}
