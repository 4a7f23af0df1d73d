//! Losses that ONNX has as operators.
//!
//! Both are `−Σ weight[label] · log p[label]`; classes are on axis 1. Labels equal to `ignore_index` count nothing.

use super::{Context, Cotangents, Row, rule};
use crate::error::Result;
use crate::onnx::{DType, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    rule("NegativeLogLikelihoodLoss", negative_log_likelihood),
    rule("SoftmaxCrossEntropyLoss", softmax_cross_entropy),
];

/// What both losses need: where each label is, and what each example's cotangent is.
struct Picked {
    /// 1 at the label of each example, 0 elsewhere, in the shape of the scores.
    one_hot: ValueId,
    /// The cotangent of `−log p[label]` of each example, `[N, 1, …]`.
    pull: ValueId,
}

fn picked(c: &mut Context<'_>) -> Result<Picked> {
    let (scores, labels, dy) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    if c.wants(2) {
        return Err(c.refuse("class weights have no gradient").hint("freeze the class weights"));
    }
    let weights = c.optional(2);
    let ignore = c.node.int("ignore_index");
    let reduction = c.node.str("reduction").unwrap_or("mean").to_owned();
    let b = &mut *c.b;
    let shape = b.shape(&scores);
    let dtype = b.dtype(&scores);
    let classes = shape.get(1).copied().unwrap_or(1);
    let labels = b.cast(&labels, DType::I64);
    let labels = b.unsqueeze(&labels, &[1]);
    let numbers: Vec<i64> = (0..classes as i64).collect();
    let column = [&[1, classes], &vec![1; shape.len() - 2][..]].concat();
    let numbers = b.constant(Tensor::i64(&column, &numbers));
    let hit = b.op("Equal", &[&labels, &numbers]);
    let one_hot = b.cast(&hit, dtype);
    // The weight of each example.
    let mut weight = weights.map(|weights| {
        let weights = b.reshape(&weights, &column);
        let chosen = b.mul(&one_hot, &weights);
        b.sum(&chosen, &[1], true)
    });
    if let Some(ignore) = ignore {
        let ignore = b.constant(Tensor::i64(&[], &[ignore]));
        let skipped = b.op("Equal", &[&labels, &ignore]);
        let counted = b.op("Not", &[&skipped]);
        let counted = b.cast(&counted, dtype);
        weight = Some(match weight {
            Some(weight) => b.mul(&weight, &counted),
            None => counted,
        });
    }
    let dy = if reduction == "none" { b.unsqueeze(&dy, &[1]) } else { dy };
    let examples = shape.iter().product::<usize>() / classes.max(1);
    let pull = match (weight, reduction.as_str()) {
        (None, "mean") => b.mul_scalar(&dy, 1.0 / examples.max(1) as f64),
        (None, _) => dy,
        (Some(weight), "mean") => {
            let total = b.sum_all(&weight);
            let share = b.div(&weight, &total);
            b.mul(&share, &dy)
        }
        (Some(weight), _) => b.mul(&weight, &dy),
    };
    Ok(Picked { one_hot, pull })
}

fn negative_log_likelihood(c: &mut Context<'_>) -> Cotangents {
    let p = picked(c)?;
    let dx = c.b.mul(&p.one_hot, &p.pull);
    Ok(vec![Some(c.b.neg(&dx))])
}

/// `dx = (softmax(x) − one_hot) · pull`, and that of the log-softmax where the second output is used as well.
fn softmax_cross_entropy(c: &mut Context<'_>) -> Cotangents {
    let p = picked(c)?;
    let x = c.input(0)?;
    let probabilities = match c.node.output(1).cloned() {
        Some(log) => c.b.op("Exp", &[&log]),
        None => c.b.softmax(&x, 1),
    };
    let difference = c.b.sub(&probabilities, &p.one_hot);
    let mut dx = c.b.mul(&difference, &p.pull);
    if let Some(dlog) = c.cotangents.get(1).cloned().flatten() {
        let total = c.b.sum(&dlog, &[1], true);
        let scaled = c.b.mul(&probabilities, &total);
        let second = c.b.sub(&dlog, &scaled);
        dx = c.b.add(&dx, &second);
    }
    Ok(vec![Some(dx)])
}
