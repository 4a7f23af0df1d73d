//! Reductions along axes, running sums, and selections by size.
//!
//! In formulas y is the reduction of x, g its cotangent, both seen with the reduced axes kept at length 1.

use super::elementwise::{keep, unless_zero};
use super::{Context, Cotangents, Outputs, Row, composed, rule, stop};
use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Attr, Builder, Node, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    stop("ArgMax"),
    stop("ArgMin"),
    composed("CumProd", running_product),
    rule("CumSum", running_sum),
    rule("Det", determinant),
    // g sign x
    rule("ReduceL1", |c| {
        reduction(c, |r, b| {
            let sign = b.op("Sign", &[&r.x]);
            b.mul(&r.g, &sign)
        })
    }),
    // g x / y; 0 where all is 0
    rule("ReduceL2", |c| {
        reduction(c, |r, b| {
            let ratio = b.div(&r.x, &r.y);
            let product = b.mul(&r.g, &ratio);
            unless_zero(b, &r.y, &product)
        })
    }),
    // g / Σx
    rule("ReduceLogSum", |c| {
        reduction(c, |r, b| {
            let sum = b.sum(&r.x, &r.axes, true);
            b.div(&r.g, &sum)
        })
    }),
    // g exp(x − y)
    rule("ReduceLogSumExp", |c| {
        reduction(c, |r, b| {
            let difference = b.sub(&r.x, &r.y);
            let share = b.op("Exp", &[&difference]);
            b.mul(&r.g, &share)
        })
    }),
    rule("ReduceMax", |c| reduction(c, extremum)),
    // g / n
    rule("ReduceMean", |c| reduction(c, |r, b| b.mul_scalar(&r.g, 1.0 / r.count as f64))),
    rule("ReduceMin", |c| reduction(c, extremum)),
    rule("ReduceProd", |c| reduction(c, product)),
    // g
    rule("ReduceSum", |c| reduction(c, |r, _| r.g.clone())),
    // 2 g x
    rule("ReduceSumSquare", |c| {
        reduction(c, |r, b| {
            let product = b.mul(&r.g, &r.x);
            b.add(&product, &product)
        })
    }),
    rule("TopK", top_k),
];

/// What the formula of a reduction sees.
struct Reduction {
    x: ValueId,
    /// The output and its cotangent, with the reduced axes kept.
    y: ValueId,
    g: ValueId,
    axes: Vec<i64>,
    /// How many elements of x make one of y, at least 1.
    count: usize,
}

/// Gives x the cotangent `formula`, broadcast to the shape of x.
fn reduction(c: &mut Context<'_>, formula: impl FnOnce(&Reduction, &mut Builder) -> ValueId) -> Cotangents {
    let (x, y, g) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let shape = c.b.shape(&x);
    let axes = axes(c, shape.len())?;
    if axes.is_empty()
        && !matches!(
            c.node.op.as_str(),
            "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd"
        )
    {
        return Err(c.refuse("without axes has no gradient: what it means differs between executors"));
    }
    let mut kept = shape.clone();
    axes.iter().for_each(|&axis| kept[axis as usize] = 1);
    let count = axes.iter().map(|&axis| shape[axis as usize]).product::<usize>().max(1);
    let (y, g) = (c.b.reshape(&y, &kept), c.b.reshape(&g, &kept));
    let dx = formula(&Reduction { x, y, g, axes, count }, c.b);
    Ok(vec![Some(c.b.expand(&dx, &shape))])
}

/// The axes a reduction runs over, counted from the front.
fn axes(c: &Context<'_>, rank: usize) -> Result<Vec<i64>> {
    let given = match c.constant_ints(1)? {
        Some(axes) => axes,
        None => c.node.ints("axes").unwrap_or(&[]).to_vec(),
    };
    match (given.is_empty(), c.node.int_or("noop_with_empty_axes", 0) != 0) {
        (true, true) => Ok(vec![]),
        (true, false) => Ok((0..rank as i64).collect()),
        _ => given.iter().map(|&axis| Ok(c.axis(axis, rank)? as i64)).collect(),
    }
}

/// g to the elements that are y; equal ones share it evenly, as in JAX.
fn extremum(r: &Reduction, b: &mut Builder) -> ValueId {
    if r.axes.is_empty() {
        return r.g.clone();
    }
    let hit = b.op("Equal", &[&r.x, &r.y]);
    let mask = b.cast(&hit, b.dtype(&r.g));
    let count = b.sum(&mask, &r.axes, true);
    let share = b.div(&r.g, &count);
    b.mul(&share, &mask)
}

/// g times the product of the *other* elements, which is y / x only where nothing is 0: p/x̂ if no other element is
/// 0, else 0, where x̂ has 1 in place of 0 and p is its product.
fn product(r: &Reduction, b: &mut Builder) -> ValueId {
    if r.axes.is_empty() {
        return r.g.clone();
    }
    let without_zeros = WithoutZeros::of(b, &r.x);
    let p = b.reduce("ReduceProd", &without_zeros.values, &r.axes, true);
    let zeros = b.sum(&without_zeros.is_zero, &r.axes, true);
    let p = b.mul(&r.g, &p);
    without_zeros.product_of_others(b, &p, &zeros)
}

/// A value with its zeros replaced by ones, and where they were.
pub(super) struct WithoutZeros {
    pub values: ValueId,
    /// 1 where the value is 0, else 0.
    pub is_zero: ValueId,
}

impl WithoutZeros {
    pub fn of(b: &mut Builder, x: &ValueId) -> Self {
        let (zero, one) = (b.scalar_like(x, 0.0), b.scalar_like(x, 1.0));
        let mask = b.op("Equal", &[x, &zero]);
        Self { values: b.where_(&mask, &one, x), is_zero: b.cast(&mask, b.dtype(x)) }
    }
    /// From the product over all non-zero elements and the number of zeros among all: the product of the others.
    pub fn product_of_others(&self, b: &mut Builder, product: &ValueId, zeros: &ValueId) -> ValueId {
        let others = b.sub(zeros, &self.is_zero);
        let none = super::elementwise::less(b, &others, 0.5);
        let ratio = b.div(product, &self.values);
        keep(b, &none, &ratio)
    }
}

/// The running sum of g from the other end.
fn running_sum(c: &mut Context<'_>) -> Cotangents {
    let axis = c.input(1)?;
    let attrs = [
        ("exclusive", Attr::Int(c.node.int_or("exclusive", 0))),
        ("reverse", Attr::Int(1 - c.node.int_or("reverse", 0))),
    ];
    c.pull(|b, g, _, _| b.op_with("CumSum", &[g, &axis], &attrs))
}

/// By products over twice as many elements each time, which stay right where elements are 0 (Hillis and Steele 1986).
fn running_product(b: &mut Builder, node: &Node) -> Outputs {
    let x = node.input(0).ok_or_else(|| Error::node(node, "input 0 is missing"))?;
    let shape = b.shape(x);
    let axis = node.input(1).and_then(|id| b.constant_value(id)).and_then(|t| t.to_i64().first().copied());
    let axis = axis.and_then(|axis| normalise_axis(axis, shape.len()));
    let axis = axis.ok_or_else(|| Error::node(node, "has a gradient only where its axis is a constant"))?;
    let (exclusive, reverse) = (node.int_or("exclusive", 0) != 0, node.int_or("reverse", 0) != 0);
    let size = shape[axis];
    // Moves elements on by `count` places, ones behind them.
    let moved = |b: &mut Builder, v: &ValueId, count: usize| {
        let mut rim = shape.clone();
        rim[axis] = count;
        let one = b.scalar_like(v, 1.0);
        let ones = b.expand(&one, &rim);
        let (from, to) = if reverse { (count, size) } else { (0, size - count) };
        let rest = b.slice(v, &[from as i64], &[to as i64], &[axis as i64]);
        match reverse {
            true => b.concat(&[&rest, &ones], axis as i64),
            false => b.concat(&[&ones, &rest], axis as i64),
        }
    };
    let mut product = if exclusive && size > 0 { moved(b, x, 1) } else { x.clone() };
    let mut reach = 1;
    while reach < size {
        let other = moved(b, &product, reach);
        product = b.mul(&product, &other);
        reach *= 2;
    }
    Ok(vec![Some(product)])
}

/// g to the places the values came from.
fn top_k(c: &mut Context<'_>) -> Cotangents {
    let (x, g) = (c.input(0)?, c.cotangent()?);
    let axis = c.node.int_or("axis", -1);
    let Some(indices) = c.node.output(1).cloned() else {
        return Err(c.refuse("has a gradient only where its indices have a name"));
    };
    let zeros = c.b.zeros_like(&x);
    Ok(vec![Some(c.b.op_with("ScatterElements", &[&zeros, &indices, &g], &[("axis", axis.into())]))])
}

/// The largest matrix whose determinant is differentiated by minors, of which there are n².
const LARGEST_DET: usize = 5;

/// g times the cofactors: (−1)ⁱ⁺ʲ det(A without row i and column j), right for singular matrices too.
fn determinant(c: &mut Context<'_>) -> Cotangents {
    let (a, g) = (c.input(0)?, c.cotangent()?);
    let shape = c.b.shape(&a);
    let rank = shape.len();
    let n = shape.last().copied().unwrap_or(0);
    if n == 0 || n > LARGEST_DET {
        return Err(
            c.refuse(format!("has a gradient up to {LARGEST_DET} × {LARGEST_DET} only, not {n} × {n}"))
        );
    }
    let batch = shape[..rank - 2].to_vec();
    let lifted = [&batch[..], &[1, 1]].concat();
    let mut rows = vec![];
    for i in 0..n {
        let others: Vec<i64> = (0..n as i64).filter(|&k| k != i as i64).collect();
        let without_row = gather(c.b, &a, &others, rank - 2);
        let mut cofactors = vec![];
        for j in 0..n {
            let sign = if (i + j) % 2 == 0 { 1.0 } else { -1.0 };
            let cofactor = match n {
                1 => c.b.constant(Tensor::scalar(c.b.dtype(&a), 1.0)),
                _ => {
                    let others: Vec<i64> = (0..n as i64).filter(|&k| k != j as i64).collect();
                    let minor = gather(c.b, &without_row, &others, rank - 1);
                    let det = c.b.op("Det", &[&minor]);
                    let (dtype, batch) = (c.b.dtype(&a), batch.clone());
                    c.b.set_fact(&det, crate::onnx::Fact { dtype, shape: batch });
                    c.b.mul_scalar(&det, sign)
                }
            };
            let cofactor = c.b.expand(&cofactor, &batch);
            cofactors.push(c.b.reshape(&cofactor, &lifted));
        }
        rows.push(c.b.concat(&cofactors.iter().collect::<Vec<_>>(), -1));
    }
    let cofactors = c.b.concat(&rows.iter().collect::<Vec<_>>(), -2);
    let g = c.b.reshape(&g, &lifted);
    Ok(vec![Some(c.b.mul(&g, &cofactors))])
}

fn gather(b: &mut Builder, x: &ValueId, indices: &[i64], axis: usize) -> ValueId {
    let indices = b.ints(indices);
    b.op_with("Gather", &[x, &indices], &[("axis", Attr::Int(axis as i64))])
}
