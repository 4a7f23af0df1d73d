//! Losses, as graph: from a model's outputs and the labels to one scalar.
//!
//! All losses are means over the rows of the batch, or over those of their positions that count, in the element type of the
//! outputs.

use crate::onnx::{Attr, Builder, DType, Tensor, ValueId};

/// Which labels count, where some mean that there is none.
pub struct Counting {
    /// The labels, with some class in place of those that don't count.
    labels: ValueId,
    /// Whether each doesn't, with an axis of 1 for the classes.
    ignored: ValueId,
    /// What sums are divided by, to be means.
    count: ValueId,
}

impl Counting {
    /// All int64 `labels` (rows × …) of `logits` but those that are `ignored`. Sums are divided by `count`, a scalar, where the
    /// batch is a part of a larger one; else by how many count, or by 1 where none does.
    pub fn new(
        b: &mut Builder,
        logits: &ValueId,
        labels: &ValueId,
        ignored: i64,
        count: Option<&ValueId>,
    ) -> Self {
        let (nothing, first) = (Tensor::i64(&[], &[ignored]), Tensor::i64(&[], &[0]));
        let (nothing, first) = (b.constant(nothing), b.constant(first));
        let ignored = b.op("Equal", &[labels, &nothing]);
        let labels = b.where_(&ignored, &first, labels);
        let count = match count {
            Some(count) => b.cast(count, b.dtype(logits)),
            None => {
                let (zero, one) = (b.scalar_like(logits, 0.0), b.scalar_like(logits, 1.0));
                let weights = b.where_(&ignored, &zero, &one);
                let count = b.sum_all(&weights);
                b.op("Max", &[&count, &one])
            }
        };
        let ignored = b.unsqueeze(&ignored, &[1]);
        Self { labels, ignored, count }
    }
}

/// `times` the sum of `terms` (rows × classes, or 1, × …) over classes, a mean over rows and what follows: over all of them, or those
/// that count.
fn mean(b: &mut Builder, terms: &ValueId, times: f64, counting: Option<&Counting>) -> ValueId {
    match counting {
        Some(Counting { ignored, count, .. }) => {
            // Not by a product with 0: what doesn't count may be infinite.
            let zero = b.scalar_like(terms, 0.0);
            let counted = b.where_(ignored, &zero, terms);
            let total = b.sum_all(&counted);
            let mean = b.div(&total, count);
            b.mul_scalar(&mean, times)
        }
        None => {
            let shape = b.shape(terms);
            let count = shape[0] * shape[2..].iter().product::<usize>();
            let total = b.sum_all(terms);
            b.mul_scalar(&total, times / count.max(1) as f64)
        }
    }
}

/// Mean cross-entropy −Σ log softmax(z)\[label\] / labels of `logits` (rows × classes × …) and int64 `labels` (rows × …), all of
/// them or those of `counting`.
pub fn cross_entropy(
    b: &mut Builder,
    logits: &ValueId,
    labels: &ValueId,
    counting: Option<&Counting>,
) -> ValueId {
    let log_p = b.op_with("LogSoftmax", &[logits], &[("axis", Attr::Int(1))]);
    let labels = counting.map_or(labels, |counting| &counting.labels);
    let index = b.unsqueeze(labels, &[1]);
    let picked = b.op_with("GatherElements", &[&log_p, &index], &[("axis", Attr::Int(1))]);
    mean(b, &picked, -1.0, counting)
}

/// Mean squared error over all elements of two values of equal shape.
pub fn mean_squared_error(b: &mut Builder, prediction: &ValueId, wanted: &ValueId) -> ValueId {
    let difference = b.sub(prediction, wanted);
    let square = b.mul(&difference, &difference);
    let count = b.fact(&square).len();
    let total = b.sum_all(&square);
    b.mul_scalar(&total, 1.0 / count.max(1) as f64)
}

/// Distillation: T²·KL(softmax(teacher/T) ‖ softmax(student/T)), a mean over rows and their positions (Hinton et al., 2015), all
/// of them or those of `counting`. Both are logits of shape rows × classes × …; no cotangent reaches the teacher.
pub fn distillation(
    b: &mut Builder,
    student: &ValueId,
    teacher: &ValueId,
    temperature: f64,
    counting: Option<&Counting>,
) -> ValueId {
    let soften = |b: &mut Builder, z: &ValueId| {
        let z = b.mul_scalar(z, 1.0 / temperature);
        b.op_with("LogSoftmax", &[&z], &[("axis", Attr::Int(1))])
    };
    let teacher = b.cast(teacher, b.dtype(student));
    let (log_q, log_p) = (soften(b, &teacher), soften(b, student));
    let q = b.op("Exp", &[&log_q]);
    let gap = b.sub(&log_q, &log_p);
    let terms = b.mul(&q, &gap);
    mean(b, &terms, temperature * temperature, counting)
}

/// (1 − α)·`hard` + α·`soft`.
pub fn blend(b: &mut Builder, hard: &ValueId, soft: &ValueId, alpha: f64) -> ValueId {
    let hard = b.mul_scalar(hard, 1.0 - alpha);
    let soft = b.mul_scalar(soft, alpha);
    b.add(&hard, &soft)
}

/// The sum of all elements of all float values among `outputs`, in float32 or wider.
pub fn sum_of(b: &mut Builder, outputs: &[ValueId]) -> Option<ValueId> {
    let mut total: Option<ValueId> = None;
    for output in outputs.iter().filter(|o| b.dtype(o).is_float()).cloned().collect::<Vec<_>>() {
        let output = if b.dtype(&output) == DType::F64 { output } else { b.cast(&output, DType::F32) };
        let sum = b.sum_all(&output);
        total = Some(match total {
            Some(so_far) if b.dtype(&so_far) == b.dtype(&sum) => b.add(&so_far, &sum),
            Some(so_far) => {
                let (x, y) = (b.cast(&so_far, DType::F64), b.cast(&sum, DType::F64));
                b.add(&x, &y)
            }
            None => sum,
        });
    }
    total
}
