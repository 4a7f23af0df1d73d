//! Softmax and its relatives, by their outputs, which are stable where the inputs are large.

use super::{Context, Cotangents, Row, rule, stop};
use crate::error::Result;
use crate::onnx::ValueId;

pub const TABLE: &[Row] = &[stop("Hardmax"), rule("LogSoftmax", log_softmax), rule("Softmax", softmax)];

fn axis(c: &Context<'_>, y: &ValueId) -> Result<[i64; 1]> {
    Ok([c.axis(c.node.int_or("axis", -1), c.b.rank(y))? as i64])
}

/// `dx = y · (dy − Σ dy · y)`.
fn softmax(c: &mut Context<'_>) -> Cotangents {
    let (y, dy) = (c.output(0)?, c.cotangent()?);
    let axis = axis(c, &y)?;
    let along = c.b.mul(&dy, &y);
    let total = c.b.sum(&along, &axis, true);
    let scaled = c.b.mul(&y, &total);
    Ok(vec![Some(c.b.sub(&along, &scaled))])
}

/// `dx = dy − e^y · Σ dy`.
fn log_softmax(c: &mut Context<'_>) -> Cotangents {
    let (y, dy) = (c.output(0)?, c.cotangent()?);
    let axis = axis(c, &y)?;
    let total = c.b.sum(&dy, &axis, true);
    let probabilities = c.b.op("Exp", &[&y]);
    let scaled = c.b.mul(&probabilities, &total);
    Ok(vec![Some(c.b.sub(&dy, &scaled))])
}
