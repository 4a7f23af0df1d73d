//! Quantisation, straight-through as in quantisation-aware training (Bengio et al. 2013, Jacob et al. 2018):
//! rounding counts as the identity, saturation as zero. Scales and zero points get no cotangent.
//!
//! The cotangent of an integer tensor is real-valued here, in the unit of one quantisation step.

use super::{Context, Cotangents, Row, rule};
use crate::error::Result;
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Attr, Builder, DType, Node, ValueId};

pub const TABLE: &[Row] = &[
    rule("ConvInteger", conv_integer),
    rule("DequantizeLinear", dequantize),
    rule("DynamicQuantizeLinear", dynamic_quantize),
    rule("MatMulInteger", matmul_integer),
    rule("QLinearConv", quantised_conv),
    rule("QLinearMatMul", quantised_matmul),
    rule("QuantizeLinear", quantize),
];

/// Scales or zero points in a shape that broadcasts to that of `x`: one for the tensor, for each slice of `axis`,
/// or for each block along it.
fn spread(c: &mut Context<'_>, v: &ValueId, x: &ValueId) -> Result<ValueId> {
    let (shape, own) = (c.b.shape(x), c.b.shape(v));
    let axis = c.node.int_or("axis", 1);
    let axis = normalise_axis(axis, shape.len()).unwrap_or(0);
    let block = c.node.int_or("block_size", 0).max(0) as usize;
    let b = &mut *c.b;
    if own.iter().product::<usize>() == 1 {
        return Ok(b.reshape(v, &[]));
    }
    if block == 0 || own.len() != shape.len() {
        let mut column = vec![1; shape.len()];
        column[axis] = own.iter().product();
        return Ok(b.reshape(v, &column));
    }
    let split = [&own[..=axis], &[1], &own[axis + 1..]].concat();
    let wide = [&own[..=axis], &[block], &own[axis + 1..]].concat();
    let mut merged = own.clone();
    merged[axis] *= block;
    let v = b.reshape(v, &split);
    let v = b.expand(&v, &wide);
    let v = b.reshape(&v, &merged);
    // The last block may be cut off.
    Ok(match merged[axis] > shape[axis] {
        true => b.slice(&v, &[0], &[shape[axis] as i64], &[axis as i64]),
        false => v,
    })
}

/// The smallest and largest number of a quantised type, where this build knows it.
fn range(dtype: DType) -> Option<(f64, f64)> {
    Some(match dtype {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::U16 => (0.0, 65535.0),
        DType::I16 => (-32768.0, 32767.0),
        _ => return None,
    })
}

/// `q = saturate(round(x / scale) + zero_point)`: `dx = dq / scale` where nothing saturates.
pub fn quantize(c: &mut Context<'_>) -> Cotangents {
    let (x, scale, y, dq) = (c.input(0)?, c.input(1)?, c.output(0)?, c.cotangent()?);
    let dtype = c.b.dtype(&x);
    let scale = spread(c, &scale, &x)?;
    let scale = c.b.cast(&scale, dtype);
    let dq = c.b.cast(&dq, dtype);
    let dx = c.b.div(&dq, &scale);
    let Some((low, high)) = range(c.b.dtype(&y)) else { return Ok(vec![Some(dx)]) };
    let mut level = c.b.div(&x, &scale);
    if let Some(zero) = c.optional(2) {
        let zero = spread(c, &zero, &x)?;
        let zero = c.b.cast(&zero, dtype);
        level = c.b.add(&level, &zero);
    }
    let b = &mut *c.b;
    let (low, high) = (b.scalar_like(&x, low - 0.5), b.scalar_like(&x, high + 0.5));
    let above = b.op("Greater", &[&level, &low]);
    let below = b.op("Less", &[&level, &high]);
    let inside = b.op("And", &[&above, &below]);
    let nothing = b.scalar_like(&x, 0.0);
    Ok(vec![Some(b.where_(&inside, &dx, &nothing))])
}

/// `x = (q − zero_point) · scale`.
pub fn dequantize(c: &mut Context<'_>) -> Cotangents {
    let (q, scale, dx) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let dtype = c.b.dtype(&dx);
    let scale = spread(c, &scale, &q)?;
    let scale = c.b.cast(&scale, dtype);
    Ok(vec![Some(c.b.mul(&dx, &scale))])
}

/// The range is chosen so that nothing saturates.
fn dynamic_quantize(c: &mut Context<'_>) -> Cotangents {
    let (x, scale) = (c.input(0)?, c.output(1)?);
    let Some(dq) = c.cotangents.first().cloned().flatten() else { return Ok(vec![None]) };
    let dtype = c.b.dtype(&x);
    let dq = c.b.cast(&dq, dtype);
    Ok(vec![Some(c.b.div(&dq, &scale))])
}

/// `Y = (A − a₀) · (B − b₀)` in integers.
fn matmul_integer(c: &mut Context<'_>) -> Cotangents {
    let (a, b, dy) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let dtype = c.b.dtype(&dy);
    let real = if dtype.is_float() { dtype } else { DType::F32 };
    let dy = c.b.cast(&dy, real);
    let da = c.wants(0).then(|| {
        let other = shifted(c, &b, 3, real, false);
        let other = c.b.transpose_matrix(&other);
        let full = c.b.matmul(&dy, &other);
        let shape = c.b.shape(&a);
        c.b.sum_to(&full, &shape)
    });
    let db = c.wants(1).then(|| {
        let other = shifted(c, &a, 2, real, true);
        let other = c.b.transpose_matrix(&other);
        let full = c.b.matmul(&other, &dy);
        let shape = c.b.shape(&b);
        c.b.sum_to(&full, &shape)
    });
    Ok(vec![da, db])
}

/// An integer operand minus its zero point (input `zero`), as real numbers. Zero points of the left operand are
/// given for each row, those of the right one for each column.
fn shifted(c: &mut Context<'_>, v: &ValueId, zero: usize, dtype: DType, rows: bool) -> ValueId {
    let zero = c.optional(zero);
    let b: &mut Builder = c.b;
    let real = b.cast(v, dtype);
    let Some(zero) = zero else { return real };
    let zero = b.cast(&zero, dtype);
    let zero = match (b.rank(&zero), rows) {
        (1, true) => b.unsqueeze(&zero, &[1]),
        _ => zero,
    };
    b.sub(&real, &zero)
}

/// Whether the node's integer input stands for real numbers: an accumulator of quantised operands.
pub fn is_quantised(c: &Context<'_>) -> bool {
    let made = |node: &&Node| node.output(0).is_some() && node.output(0) == c.node.input(0);
    let maker = c.b.graph().nodes.iter().find(made);
    maker.is_some_and(|node| node.is("MatMulInteger") || node.is("ConvInteger"))
}

/// A quantised operand as real numbers, in units of its steps: `q − zero`, with the zero points in a shape that
/// broadcasts.
fn steps(c: &mut Context<'_>, i: usize, zero: usize, shape: impl Fn(usize) -> Vec<usize>) -> Result<ValueId> {
    let q = c.input(i)?;
    let real = c.b.cast(&q, DType::F32);
    let Some(zero) = c.optional(zero) else { return Ok(real) };
    let zero = c.b.cast(&zero, DType::F32);
    let zero = placed(c.b, &zero, shape);
    Ok(c.b.sub(&real, &zero))
}

/// A scale or zero point, which is one number, or one an element of some axis.
fn placed(b: &mut Builder, v: &ValueId, shape: impl Fn(usize) -> Vec<usize>) -> ValueId {
    let own = b.shape(v);
    match own.len() {
        _ if own.iter().product::<usize>() == 1 => b.reshape(v, &[]),
        1 => b.reshape(v, &shape(own[0])),
        _ => v.clone(),
    }
}

/// The cotangents of two operands of `forward`, of which `real` are the real numbers of inputs `operands`.
fn through(
    c: &mut Context<'_>,
    operands: [usize; 2],
    real: [ValueId; 2],
    g: &ValueId,
    forward: impl FnOnce(&mut Builder, &Node, &[ValueId; 2]) -> ValueId,
) -> Cotangents {
    let start = c.b.graph().nodes.len();
    let y = forward(c.b, c.node, &real);
    let emitted = c.b.graph().nodes[start..].to_vec();
    let wrt: Vec<ValueId> = (0..2).filter(|&k| c.wants(operands[k])).map(|k| real[k].clone()).collect();
    let mut found = crate::autodiff::backward_through(c.b, &emitted, &[(y, g.clone())], &wrt)?;
    let mut cotangents = vec![None; c.node.inputs.len()];
    for (place, real) in operands.into_iter().zip(&real) {
        cotangents[place] = found.remove(real);
    }
    Ok(cotangents)
}

/// A convolution with the node's attributes.
fn conv(b: &mut Builder, node: &Node, [x, w]: &[ValueId; 2]) -> ValueId {
    let attrs: Vec<(&str, Attr)> = node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    b.op_with("Conv", &[x, w], &attrs)
}

/// Weights have a zero point for each output channel: `[M, 1, …]`.
fn first_axis(rank: usize) -> impl Fn(usize) -> Vec<usize> {
    move |n| [&[n], &vec![1; rank - 1][..]].concat()
}

/// `Y = Conv(X − x₀, W − w₀)` in integers.
fn conv_integer(c: &mut Context<'_>) -> Cotangents {
    let rank = c.shape(0)?.len();
    let g = c.cotangent()?;
    let g = if c.b.dtype(&g).is_float() { g } else { c.b.cast(&g, DType::F32) };
    let real = [steps(c, 0, 2, first_axis(rank))?, steps(c, 1, 3, first_axis(rank))?];
    through(c, [0, 1], real, &g, conv)
}

/// The cotangent of the accumulator behind a quantised result: `g · factor` where nothing saturates.
fn requantised(c: &mut Context<'_>, accumulator: &ValueId, factor: &ValueId, zero: usize) -> Result<ValueId> {
    let (g, y) = (c.cotangent()?, c.output(0)?);
    let g = if c.b.dtype(&g).is_float() { g } else { c.b.cast(&g, DType::F32) };
    let pulled = c.b.mul(&g, factor);
    let Some((low, high)) = range(c.b.dtype(&y)) else { return Ok(pulled) };
    let mut level = c.b.mul(accumulator, factor);
    if let Some(zero) = c.optional(zero) {
        let zero = c.b.cast(&zero, DType::F32);
        let zero = c.b.reshape(&zero, &[]);
        level = c.b.add(&level, &zero);
    }
    let b = &mut *c.b;
    let (low, high) = (b.scalar_like(&level, low - 0.5), b.scalar_like(&level, high + 0.5));
    let (above, below) = (b.op("Greater", &[&level, &low]), b.op("Less", &[&level, &high]));
    let inside = b.op("And", &[&above, &below]);
    let nothing = b.scalar_like(&pulled, 0.0);
    Ok(b.where_(&inside, &pulled, &nothing))
}

/// `scale(first) · scale(second) / scale(result)`.
fn factor(
    c: &mut Context<'_>,
    [first, second, result]: [usize; 3],
    shapes: [&dyn Fn(usize) -> Vec<usize>; 2],
) -> Result<ValueId> {
    let mut scales = vec![];
    for i in [first, second, result] {
        let scale = c.input(i)?;
        scales.push(c.b.cast(&scale, DType::F32));
    }
    let (a, b) = (placed(c.b, &scales[0], shapes[0]), placed(c.b, &scales[1], shapes[1]));
    let result = c.b.reshape(&scales[2], &[]);
    let product = c.b.mul(&a, &b);
    Ok(c.b.div(&product, &result))
}

/// Inputs x, its scale and zero point, w with its own, those of the result, and a bias in steps of the accumulator.
fn quantised_conv(c: &mut Context<'_>) -> Cotangents {
    let rank = c.shape(0)?.len();
    let real = [steps(c, 0, 2, first_axis(rank))?, steps(c, 3, 5, first_axis(rank))?];
    let channels = first_axis(rank - 1);
    let factor = factor(c, [1, 4, 6], [&channels, &channels])?;
    let mut accumulator = conv(c.b, c.node, &real);
    if let Some(bias) = c.optional(8) {
        let bias = c.b.cast(&bias, DType::F32);
        let bias = placed(c.b, &bias, &channels);
        accumulator = c.b.add(&accumulator, &bias);
    }
    let g = requantised(c, &accumulator, &factor, 7)?;
    through(c, [0, 3], real, &g, conv)
}

/// Inputs a, its scale and zero point (for each row), b with its own (for each column), those of the result.
fn quantised_matmul(c: &mut Context<'_>) -> Cotangents {
    let (rows, columns) = (|n: usize| vec![n, 1], |n: usize| vec![n]);
    let real = [steps(c, 0, 2, rows)?, steps(c, 3, 5, columns)?];
    let factor = factor(c, [1, 4, 6], [&rows, &columns])?;
    let accumulator = c.b.matmul(&real[0], &real[1]);
    let g = requantised(c, &accumulator, &factor, 7)?;
    through(c, [0, 3], real, &g, |b, _, [x, w]| b.matmul(x, w))
}
