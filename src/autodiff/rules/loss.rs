//! Losses that ONNX has as operators.
//!
//! Both are `−Σ weight[label] · log p[label]`; classes are on axis 1. Labels equal to `ignore_index` count nothing.

use super::{Context, Cotangents, Row, rule};
use crate::error::Result;
use crate::onnx::{Attr, Builder, DType, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    rule("NegativeLogLikelihoodLoss", negative_log_likelihood),
    rule("SoftmaxCrossEntropyLoss", softmax_cross_entropy),
];

/// What both losses need.
struct Picked {
    /// 1 at the label of each example, 0 elsewhere, in the shape of the scores.
    one_hot: ValueId,
    /// The cotangent of `−log p[label]` of each example, `[N, 1, …]`.
    pull: ValueId,
    /// The cotangent of the class weights.
    weights: Option<ValueId>,
}

/// `log_p` emits the logarithms of the probabilities.
fn picked(c: &mut Context<'_>, log_p: impl FnOnce(&mut Builder) -> ValueId) -> Result<Picked> {
    let (scores, labels, loss, dy) = (c.input(0)?, c.input(1)?, c.output(0)?, c.cotangent()?);
    let weights = c.optional(2);
    let weights_wanted = c.wants(2);
    let ignore = c.node.int("ignore_index");
    let reduction = c.node.str("reduction").unwrap_or("mean").to_owned();
    let b = &mut *c.b;
    let shape = b.shape(&scores);
    let dtype = b.dtype(&scores);
    let classes = shape.get(1).copied().unwrap_or(1);
    let column = [&[1, classes], &vec![1; shape.len().saturating_sub(2)][..]].concat();
    let labels = b.cast(&labels, DType::I64);
    let labels = b.unsqueeze(&labels, &[1]);
    let numbers: Vec<i64> = (0..classes as i64).collect();
    let numbers = b.constant(Tensor::i64(&column, &numbers));
    let hit = b.op("Equal", &[&labels, &numbers]);
    let mut one_hot = b.cast(&hit, dtype);
    let mut counted = None;
    if let Some(ignore) = ignore {
        let ignore = b.constant(Tensor::i64(&[], &[ignore]));
        let skipped = b.op("Equal", &[&labels, &ignore]);
        let kept = b.op("Not", &[&skipped]);
        let kept = b.cast(&kept, dtype);
        one_hot = b.mul(&one_hot, &kept);
        counted = Some(kept);
    }
    // The weight of each example, 1 where that is so for all.
    let weight = match &weights {
        Some(weights) => {
            let weights = b.reshape(weights, &column);
            let chosen = b.mul(&one_hot, &weights);
            Some(b.sum(&chosen, &[1], true))
        }
        None => counted,
    };
    let examples = shape.iter().product::<usize>() / classes.max(1);
    // The cotangent of `weight · −log p[label]`.
    let share = match (&weight, reduction.as_str()) {
        (_, "none") => b.unsqueeze(&dy, &[1]),
        (_, "sum") => dy,
        (Some(weight), _) => {
            let total = b.sum_all(weight);
            b.div(&dy, &total)
        }
        (None, _) => b.mul_scalar(&dy, 1.0 / examples.max(1) as f64),
    };
    let pull = weight.as_ref().map_or_else(|| share.clone(), |weight| b.mul(weight, &share));
    let dweights = weights.filter(|_| weights_wanted).map(|weights| {
        let log_p = log_p(b);
        let mut cost = b.neg(&log_p);
        if reduction == "mean" {
            // A weight is in the denominator of the mean as well.
            cost = b.sub(&cost, &loss);
        }
        let cost = b.mul(&cost, &one_hot);
        let cost = b.mul(&cost, &share);
        let flat = b.reshape(&cost, &[shape[0], classes, shape[2..].iter().product()]);
        let sums = b.sum(&flat, &[0, 2], false);
        let shape = b.shape(&weights);
        b.reshape(&sums, &shape)
    });
    Ok(Picked { one_hot, pull, weights: dweights })
}

fn negative_log_likelihood(c: &mut Context<'_>) -> Cotangents {
    let x = c.input(0)?;
    let p = picked(c, |_| x)?;
    let dx = c.b.mul(&p.one_hot, &p.pull);
    Ok(vec![Some(c.b.neg(&dx)), None, p.weights])
}

/// `dx = (softmax(x) − one_hot) · pull`, and that of the log-softmax where the second output is used as well.
fn softmax_cross_entropy(c: &mut Context<'_>) -> Cotangents {
    let (x, log_p) = (c.input(0)?, c.node.output(1).cloned());
    let p = picked(c, |b| match &log_p {
        Some(log_p) => log_p.clone(),
        None => b.op_with("LogSoftmax", &[&x], &[("axis", Attr::Int(1))]),
    })?;
    let probabilities = match &log_p {
        Some(log) => c.b.op("Exp", &[log]),
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
    Ok(vec![Some(dx), None, p.weights])
}
