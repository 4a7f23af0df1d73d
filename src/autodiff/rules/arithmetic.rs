//! Arithmetic between broadcast values, comparisons and choices.
//!
//! Broadcasting is undone by [`Builder::sum_to`](crate::onnx::Builder::sum_to), here in [`undo`]. In formulas
//! y = f(a, b), and g is the cotangent of y.

use super::elementwise::{drop, keep};
use super::{Context, Cotangents, Row, rule, stop};
use crate::error::Result;
use crate::onnx::ValueId;

pub const TABLE: &[Row] = &[
    // g, g
    rule("Add", |c| {
        let g = c.cotangent()?;
        let da = undo(c, 0, |_| Ok(g.clone()))?;
        let db = undo(c, 1, |_| Ok(g))?;
        Ok(vec![da, db])
    }),
    stop("And"),
    stop("BitShift"),
    stop("BitwiseAnd"),
    stop("BitwiseNot"),
    stop("BitwiseOr"),
    stop("BitwiseXor"),
    // g / b, −g y / b
    rule("Div", |c| {
        let (g, b, y) = (c.cotangent()?, c.input(1)?, c.output(0)?);
        let ratio = c.b.div(&g, &b);
        let da = undo(c, 0, |_| Ok(ratio.clone()))?;
        let db = undo(c, 1, |c| {
            let product = c.b.mul(&ratio, &y);
            Ok(c.b.neg(&product))
        })?;
        Ok(vec![da, db])
    }),
    stop("Equal"),
    stop("Greater"),
    stop("GreaterOrEqual"),
    stop("Less"),
    stop("LessOrEqual"),
    rule("Max", extremum),
    rule("Mean", |c| {
        // g / n each
        let n = c.node.inputs.len() as f64;
        let g = c.cotangent()?;
        let share = c.b.mul_scalar(&g, 1.0 / n);
        spread(c, &share)
    }),
    rule("Min", extremum),
    rule("Mod", remainder),
    // g b, g a
    rule("Mul", |c| {
        let (g, a, b) = (c.cotangent()?, c.input(0)?, c.input(1)?);
        let da = undo(c, 0, |c| Ok(c.b.mul(&g, &b)))?;
        let db = undo(c, 1, |c| Ok(c.b.mul(&g, &a)))?;
        Ok(vec![da, db])
    }),
    stop("Not"),
    stop("Or"),
    rule("Pow", power),
    // g, −g
    rule("Sub", |c| {
        let g = c.cotangent()?;
        let da = undo(c, 0, |_| Ok(g.clone()))?;
        let db = undo(c, 1, |c| Ok(c.b.neg(&g)))?;
        Ok(vec![da, db])
    }),
    // g each
    rule("Sum", |c| {
        let g = c.cotangent()?;
        spread(c, &g)
    }),
    // g where the condition holds, g where it doesn't
    rule("Where", |c| {
        let (g, condition) = (c.cotangent()?, c.input(0)?);
        let da = undo(c, 1, |c| Ok(keep(c.b, &condition, &g)))?;
        let db = undo(c, 2, |c| Ok(drop(c.b, &condition, &g)))?;
        Ok(vec![None, da, db])
    }),
    stop("Xor"),
];

/// The cotangent of input `i`, if it is wanted and real: `make` gives it in the output's shape.
fn undo(
    c: &mut Context<'_>,
    i: usize,
    make: impl FnOnce(&mut Context<'_>) -> Result<ValueId>,
) -> Result<Option<ValueId>> {
    let input = c.input(i)?;
    if !c.wants(i) || !c.b.dtype(&input).is_float() {
        return Ok(None);
    }
    let full = make(c)?;
    let (shape, dtype) = (c.b.shape(&input), c.b.dtype(&input));
    let summed = c.b.sum_to(&full, &shape);
    Ok(Some(c.b.cast(&summed, dtype)))
}

/// The same cotangent to every input.
fn spread(c: &mut Context<'_>, share: &ValueId) -> Cotangents {
    (0..c.node.inputs.len()).map(|i| undo(c, i, |_| Ok(share.clone()))).collect()
}

/// Max, Min: g to the input that is y; equal ones share it evenly, as in JAX.
fn extremum(c: &mut Context<'_>) -> Cotangents {
    let (g, y) = (c.cotangent()?, c.output(0)?);
    let dtype = c.b.dtype(&g);
    if c.node.inputs.len() == 1 {
        return Ok(vec![Some(g)]);
    }
    let mut masks = vec![];
    for i in 0..c.node.inputs.len() {
        let input = c.input(i)?;
        let hit = c.b.op("Equal", &[&input, &y]);
        masks.push(c.b.cast(&hit, dtype));
    }
    let mut count = masks[0].clone();
    for mask in &masks[1..] {
        count = c.b.add(&count, mask);
    }
    let share = c.b.div(&g, &count);
    masks.iter().enumerate().map(|(i, mask)| undo(c, i, |c| Ok(c.b.mul(&share, mask)))).collect()
}

/// y = a − b q with the whole quotient q: g, −g q.
fn remainder(c: &mut Context<'_>) -> Cotangents {
    let (g, a, b, y) = (c.cotangent()?, c.input(0)?, c.input(1)?, c.output(0)?);
    let da = undo(c, 0, |_| Ok(g.clone()))?;
    let db = undo(c, 1, |c| {
        let whole = c.b.sub(&a, &y);
        let quotient = c.b.div(&whole, &b);
        let quotient = c.b.op("Round", &[&quotient]);
        let product = c.b.mul(&g, &quotient);
        Ok(c.b.neg(&product))
    })?;
    Ok(vec![da, db])
}

/// y = aᵇ: g b aᵇ⁻¹, g y ln a. Both are 0 where their formula has no finite value: at a = 0 the first for b < 1,
/// and the second for every a ≤ 0.
fn power(c: &mut Context<'_>) -> Cotangents {
    let (g, a, b, y) = (c.cotangent()?, c.input(0)?, c.input(1)?, c.output(0)?);
    let dtype = c.b.dtype(&a);
    let constant = c.b.constant_value(&b).filter(|t| t.len() == 1).and_then(|t| t.to_f64().first().copied());
    let exponent = c.b.cast(&b, dtype);
    let da = undo(c, 0, |c| match constant {
        Some(1.0) => Ok(g.clone()),
        Some(2.0) => {
            let double = c.b.add(&a, &a);
            Ok(c.b.mul(&g, &double))
        }
        _ => {
            let lower = c.b.add_scalar(&exponent, -1.0);
            let power = c.b.op("Pow", &[&a, &lower]);
            let slope = c.b.mul(&exponent, &power);
            let product = c.b.mul(&g, &slope);
            let zero = c.b.scalar_like(&a, 0.0);
            let at_zero = c.b.op("Equal", &[&a, &zero]);
            let one = c.b.scalar_like(&a, 1.0);
            let steep = c.b.op("Less", &[&exponent, &one]);
            let undefined = c.b.op("And", &[&at_zero, &steep]);
            Ok(drop(c.b, &undefined, &product))
        }
    })?;
    let db = undo(c, 1, |c| {
        let zero = c.b.scalar_like(&a, 0.0);
        let positive = c.b.op("Greater", &[&a, &zero]);
        let one = c.b.scalar_like(&a, 1.0);
        let safe = c.b.where_(&positive, &a, &one);
        let log = c.b.op("Log", &[&safe]);
        let slope = c.b.mul(&y, &log);
        let product = c.b.mul(&g, &slope);
        Ok(keep(c.b, &positive, &product))
    })?;
    Ok(vec![da, db])
}
