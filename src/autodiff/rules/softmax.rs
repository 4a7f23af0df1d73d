//! Softmax and its relatives, by their outputs, which are stable where the inputs are large.

use super::{Context, Cotangents, Row, rule, stop};

pub const TABLE: &[Row] = &[stop("Hardmax"), rule("LogSoftmax", log_softmax), rule("Softmax", softmax)];

/// `dx = y · (dy − Σ dy · y)`.
fn softmax(c: &mut Context<'_>) -> Cotangents {
    let (y, dy) = (c.output(0)?, c.cotangent()?);
    let axis = [c.node.int_or("axis", -1)];
    let along = c.b.mul(&dy, &y);
    let total = c.b.sum(&along, &axis, true);
    let scaled = c.b.mul(&y, &total);
    Ok(vec![Some(c.b.sub(&along, &scaled))])
}

/// `dx = dy − e^y · Σ dy`.
fn log_softmax(c: &mut Context<'_>) -> Cotangents {
    let (y, dy) = (c.output(0)?, c.cotangent()?);
    let axis = [c.node.int_or("axis", -1)];
    let total = c.b.sum(&dy, &axis, true);
    let probabilities = c.b.op("Exp", &[&y]);
    let scaled = c.b.mul(&probabilities, &total);
    Ok(vec![Some(c.b.sub(&dy, &scaled))])
}
