//! Quantisation, straight-through as in quantisation-aware training (Bengio et al. 2013, Jacob et al. 2018):
//! rounding counts as the identity, saturation as zero. Scales and zero points get no cotangent.
//!
//! The cotangent of an integer tensor is real-valued here, in the unit of one quantisation step.

use super::{Context, Cotangents, Row, rule};
use crate::error::Result;
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Builder, DType, ValueId};

pub const TABLE: &[Row] = &[
    rule("DequantizeLinear", dequantize),
    rule("DynamicQuantizeLinear", dynamic_quantize),
    rule("MatMulInteger", matmul_integer),
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
