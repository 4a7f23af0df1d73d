//! Losses, as graph: from a model's outputs and the labels to one scalar.
//!
//! All losses are means over the rows of the batch, in the element type of the outputs.

use crate::onnx::{Attr, Builder, DType, ValueId};

/// Mean cross-entropy −Σ log softmax(z)\[label\] / rows of `logits` (rows × classes) and int64 `labels` (rows).
pub fn cross_entropy(b: &mut Builder, logits: &ValueId, labels: &ValueId) -> ValueId {
    let log_p = b.op_with("LogSoftmax", &[logits], &[("axis", Attr::Int(-1))]);
    let index = b.unsqueeze(labels, &[1]);
    let picked = b.op_with("GatherElements", &[&log_p, &index], &[("axis", Attr::Int(1))]);
    let rows = b.shape(logits)[0];
    let total = b.sum_all(&picked);
    b.mul_scalar(&total, -1.0 / rows.max(1) as f64)
}

/// Mean squared error over all elements of two values of equal shape.
pub fn mean_squared_error(b: &mut Builder, prediction: &ValueId, wanted: &ValueId) -> ValueId {
    let difference = b.sub(prediction, wanted);
    let square = b.mul(&difference, &difference);
    let count = b.fact(&square).len();
    let total = b.sum_all(&square);
    b.mul_scalar(&total, 1.0 / count.max(1) as f64)
}

/// Distillation: T²·KL(softmax(teacher/T) ‖ softmax(student/T)), a mean over rows (Hinton et al., 2015).
/// Both are logits of shape rows × classes; no cotangent reaches the teacher.
pub fn distillation(b: &mut Builder, student: &ValueId, teacher: &ValueId, temperature: f64) -> ValueId {
    let soften = |b: &mut Builder, z: &ValueId| {
        let z = b.mul_scalar(z, 1.0 / temperature);
        b.op_with("LogSoftmax", &[&z], &[("axis", Attr::Int(-1))])
    };
    let teacher = b.cast(teacher, b.dtype(student));
    let (log_q, log_p) = (soften(b, &teacher), soften(b, student));
    let q = b.op("Exp", &[&log_q]);
    let gap = b.sub(&log_q, &log_p);
    let terms = b.mul(&q, &gap);
    let rows = b.shape(student)[0];
    let total = b.sum_all(&terms);
    b.mul_scalar(&total, temperature * temperature / rows.max(1) as f64)
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
