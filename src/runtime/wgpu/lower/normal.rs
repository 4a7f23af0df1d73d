//! Normalisations: softmax and its kin, and layers that subtract a mean and divide by a deviation.

use super::{Lowering, Node, Operand, Outcome, Row, axis_of, expect_f32, reduce};

pub const TABLE: &[Row] = &[
    ("BatchNormalization", batch_norm),
    ("GroupNormalization", group_norm),
    ("Hardmax", hardmax),
    ("InstanceNormalization", instance_norm),
    ("LRN", local_response),
    ("LayerNormalization", layer_norm),
    ("LogSoftmax", softmax),
    ("LpNormalization", lp_norm),
    ("MeanVarianceNormalization", mean_variance),
    ("RMSNormalization", root_mean_square),
    ("Softmax", softmax),
];

/// With the largest element taken out first, so that nothing overflows.
fn softmax(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axis = axis_of(node.int_or("axis", -1), x.view.rank())?;
    let largest = reduce::over(l, "ReduceMax", &x, &[axis])?;
    let y = match node.op.as_str() {
        "Softmax" => {
            let powers = l.map_f32("exp({0} - {1})", &[&x, &largest])?;
            let sum = reduce::over(l, "ReduceSum", &powers, &[axis])?;
            l.map_f32("{0} / {1}", &[&powers, &sum])?
        }
        _ => {
            let shifted = l.map_f32("{0} - {1}", &[&x, &largest])?;
            let powers = l.map_f32("exp({0})", &[&shifted])?;
            let sum = reduce::over(l, "ReduceSum", &powers, &[axis])?;
            l.map_f32("{0} - ln({1})", &[&shifted, &sum])?
        }
    };
    l.set(node, 0, y)
}

/// One at the first of the largest elements along the axis, zero elsewhere.
fn hardmax(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axis = axis_of(node.int_or("axis", -1), x.view.rank())?;
    let mut shape = x.view.shape.clone();
    let best = super::index::best(l, &x, axis, "v > best")?;
    shape[axis] = 1;
    let best = l.reshape(&best, &shape)?;
    let counter = l.counter(x.view.rank(), axis, x.view.shape[axis])?;
    let y = l.map_f32("select(0.0, 1.0, {0} == {1})", &[&best, &counter])?;
    let y = l.broadcast(&y, &x.view.shape)?;
    l.set(node, 0, y)
}

/// `(x − mean) / √(variance + ε)` over `axes`, with the mean (0 where none is subtracted) and the factor.
fn standardise(
    l: &mut Lowering,
    x: &Operand,
    axes: &[usize],
    epsilon: f32,
    centre: bool,
) -> Outcome<(Operand, Option<Operand>, Operand)> {
    let mean = if centre { Some(reduce::over(l, "ReduceMean", x, axes)?) } else { None };
    let centred = match &mean {
        Some(mean) => l.map_f32("{0} - {1}", &[x, mean])?,
        None => x.clone(),
    };
    let squares = reduce::over(l, "ReduceSumSquare", &centred, axes)?;
    let share = l.scalar(1.0 / axes.iter().map(|&a| x.view.shape[a]).product::<usize>().max(1) as f32)?;
    let epsilon = l.scalar(epsilon)?;
    let inverse = l.map_f32("1.0 / sqrt({0} * {1} + {2})", &[&squares, &share, &epsilon])?;
    Ok((l.map_f32("{0} * {1}", &[&centred, &inverse])?, mean, inverse))
}

/// `normal · scale + bias`, with scale and bias (inputs 1 and 2) as they stand or along axis 1.
fn scaled(l: &mut Lowering, node: &Node, normal: Operand, per_channel: bool) -> Outcome<Operand> {
    let mut y = normal;
    for (i, expr) in [(1, "{0} * {1}"), (2, "{0} + {1}")] {
        if let Some(operand) = l.optional(node, i)? {
            let operand = if per_channel { along_channels(l, &operand, y.view.rank())? } else { operand };
            y = l.map_f32(expr, &[&y, &operand])?;
        }
    }
    Ok(y)
}

/// `[C]` as `[C, 1, …]`, to broadcast along axis 1 of a tensor of `rank`.
fn along_channels(l: &mut Lowering, operand: &Operand, rank: usize) -> Outcome<Operand> {
    let shape = [&[operand.view.len()], &vec![1; rank.saturating_sub(2)][..]].concat();
    l.reshape(operand, &shape)
}

/// Over the axes from `axis` on; mean and 1/√(…) are further outputs.
fn layer_norm(l: &mut Lowering, node: &Node) -> Outcome {
    let (normal, mean, inverse) = along_rows(l, node, true)?;
    let y = scaled(l, node, normal, false)?;
    l.set(node, 0, y)?;
    if let Some(mean) = mean {
        l.set(node, 1, mean)?;
    }
    l.set(node, 2, inverse)
}

fn root_mean_square(l: &mut Lowering, node: &Node) -> Outcome {
    let (normal, ..) = along_rows(l, node, false)?;
    let y = scaled(l, node, normal, false)?;
    l.set(node, 0, y)
}

fn along_rows(l: &mut Lowering, node: &Node, centre: bool) -> Outcome<(Operand, Option<Operand>, Operand)> {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axis = axis_of(node.int_or("axis", -1), x.view.rank())?;
    let axes: Vec<usize> = (axis..x.view.rank()).collect();
    standardise(l, &x, &axes, node.float_or("epsilon", 1e-5), centre)
}

fn instance_norm(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axes: Vec<usize> = (2..x.view.rank()).collect();
    let (normal, ..) = standardise(l, &x, &axes, node.float_or("epsilon", 1e-5), true)?;
    let y = scaled(l, node, normal, true)?;
    l.set(node, 0, y)
}

fn group_norm(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let groups = usize::try_from(node.int_or("num_groups", 1)).unwrap_or(0);
    let shape = x.view.shape.clone();
    let fits = shape.len() >= 2 && groups > 0 && shape[1] % groups == 0;
    if !fits {
        return Err(format!("{groups} groups for shape {shape:?}"));
    }
    let rest = shape[1..].iter().product::<usize>() / groups;
    let grouped = l.reshape(&x, &[shape[0], groups, rest])?;
    let (normal, ..) = standardise(l, &grouped, &[2], node.float_or("epsilon", 1e-5), true)?;
    let normal = l.reshape(&normal, &shape)?;
    let y = scaled(l, node, normal, true)?;
    l.set(node, 0, y)
}

fn mean_variance(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axes = node.ints("axes").unwrap_or(&[0, 2, 3]);
    let axes = axes.iter().map(|&a| axis_of(a, x.view.rank())).collect::<Outcome<Vec<_>>>()?;
    let (y, ..) = standardise(l, &x, &axes, 1e-9, true)?;
    l.set(node, 0, y)
}

/// As in inference: with the running mean and variance.
fn batch_norm(l: &mut Lowering, node: &Node) -> Outcome {
    if node.int_or("training_mode", 0) != 0 {
        return Err("training_mode is not supported on the GPU".into());
    }
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let rank = x.view.rank();
    let mut inputs = vec![x];
    for i in 1..5 {
        let operand = l.arg(node, i)?;
        inputs.push(if rank > 1 { along_channels(l, &operand, rank)? } else { operand });
    }
    inputs.push(l.scalar(node.float_or("epsilon", 1e-5))?);
    let inputs: Vec<&Operand> = inputs.iter().collect();
    let y = l.map_f32("({0} - {3}) / sqrt({4} + {5}) * {1} + {2}", &inputs)?;
    l.set(node, 0, y)
}

/// `(Σ |x|^p)^(1/p)` over `axes`, which stay as dimensions of size 1.
pub fn norm(l: &mut Lowering, x: &Operand, p: i64, axes: &[usize]) -> Outcome<Operand> {
    match p {
        1 => reduce::over(l, "ReduceL1", x, axes),
        2 => reduce::over(l, "ReduceL2", x, axes),
        p => {
            let (power, root) = (l.scalar(p as f32)?, l.scalar(1.0 / p as f32)?);
            let powers = l.map_f32("power(abs({0}), {1})", &[x, &power])?;
            let sum = reduce::over(l, "ReduceSum", &powers, axes)?;
            l.map_f32("power({0}, {1})", &[&sum, &root])
        }
    }
}

fn lp_norm(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let axis = axis_of(node.int_or("axis", -1), x.view.rank())?;
    let size = norm(l, &x, node.int_or("p", 2), &[axis])?;
    let y = l.map_f32("select({0} / {1}, 0.0, {1} == 0.0)", &[&x, &size])?;
    l.set(node, 0, y)
}

/// `x / (bias + alpha / size · Σ x²)^beta`, summed over neighbouring channels.
fn local_response(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let size = node.int("size").filter(|&s| s > 0).ok_or("size is missing")?;
    let channels = *x.view.shape.get(1).ok_or("channels are missing")? as i64;
    let (before, after) = ((size - 1) / 2, size / 2);
    let squares = l.map_f32("{0} * {0}", &[&x])?;
    // The sum for channel c is a sum over the window's shifted copies, whose ends stay inside.
    let table: Vec<Vec<(usize, f64)>> = (0..channels)
        .map(|c| ((c - before).max(0)..(c + after + 1).min(channels)).map(|k| (k as usize, 1.0)).collect())
        .collect();
    let sums = super::resize::along(l, &squares, 1, &table)?;
    let share = l.scalar(node.float_or("alpha", 1e-4) / size as f32)?;
    let (bias, beta) = (l.scalar(node.float_or("bias", 1.0))?, l.scalar(-node.float_or("beta", 0.75))?);
    let y = l.map_f32("{0} * power({3} + {2} * {1}, {4})", &[&x, &sums, &share, &bias, &beta])?;
    l.set(node, 0, y)
}
