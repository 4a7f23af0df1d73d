//! Normalisations along axes: softmax, log-softmax, layer normalisation.

use super::{Elem, Lowering, Node, Operand, Outcome, Row, Walk, axis_of, expect_f32, kernel, reduce};

pub const TABLE: &[Row] =
    &[("LayerNormalization", layer_norm), ("LogSoftmax", softmax), ("Softmax", softmax)];

fn softmax(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axis = axis_of(node.int_or("axis", -1), x.view.rank())?;
    let y = l.fresh(Elem::F32, &x.view.shape)?;
    let without = |strides: &[i32]| [&strides[..axis], &strides[axis + 1..]].concat();
    let shape = &x.view.shape;
    let rows = [&shape[..axis], &shape[axis + 1..]].concat();
    let walk = Walk::new(&rows, &[&without(&x.view.strides), &without(&y.view.strides)]);
    let n: usize = rows.iter().product();
    let mut params = vec![n as i32, shape[axis] as i32, x.view.offset];
    params.extend([x.view.strides[axis], y.view.strides[axis], walk.rank()]);
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    let finish = match node.op.as_str() {
        "Softmax" => "exp(shifted) / total",
        _ => "shifted - log(total)",
    };
    let groups = if shape[axis] == 0 { 0 } else { n };
    l.call(kernel::SOFTMAX, &[("finish", finish)], params, &[&x], &y, groups);
    l.set(node, 0, y)
}

/// (x − mean) / √(variance + ε) · scale + bias, over the axes from `axis` on; mean and 1/√(…) are further
/// outputs.
fn layer_norm(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axis = axis_of(node.int_or("axis", -1), x.view.rank())?;
    let axes: Vec<usize> = (axis..x.view.rank()).collect();
    let mean = reduce::over(l, "ReduceMean", &x, &axes)?;
    let centred = l.map_f32("{0} - {1}", &[&x, &mean])?;
    let squares = reduce::over(l, "ReduceSumSquare", &centred, &axes)?;
    let share = l.scalar(1.0 / axes.iter().map(|&a| x.view.shape[a]).product::<usize>() as f32)?;
    let epsilon = l.scalar(node.float_or("epsilon", 1e-5))?;
    let inverse = l.map_f32("1.0 / sqrt({0} * {1} + {2})", &[&squares, &share, &epsilon])?;
    let mut y = scaled(l, node, &centred, &inverse)?;
    if let Some(bias) = l.optional(node, 2)? {
        y = l.map_f32("{0} + {1}", &[&y, &bias])?;
    }
    l.set(node, 0, y)?;
    l.set(node, 1, mean)?;
    l.set(node, 2, inverse)
}

fn scaled(l: &mut Lowering, node: &Node, centred: &Operand, inverse: &Operand) -> Outcome<Operand> {
    let scale = l.arg(node, 1)?;
    l.map_f32("{0} * {1} * {2}", &[centred, inverse, &scale])
}
