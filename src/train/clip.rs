//! Clipping by the global norm (Pascanu, Mikolov and Bengio 2013), as graph.

use crate::onnx::{Builder, DType, ValueId};

/// The gradients, scaled down together where the norm of all of them exceeds `limit` (0: never). They may be of several element types.
pub fn clipped(b: &mut Builder, gradients: Vec<ValueId>, limit: f64) -> Vec<ValueId> {
    if limit <= 0.0 {
        return gradients;
    }
    let mut total: Option<ValueId> = None;
    for gradient in &gradients {
        let square = b.mul(gradient, gradient);
        // Some gradients have as many rows as the batch happens to look up.
        let any = b.ints(&[-1]);
        let flat = b.op("Reshape", &[&square, &any]);
        let sum = b.sum(&flat, &[0], false);
        let sum = b.cast(&sum, DType::F32);
        total = Some(match total {
            Some(total) => b.add(&total, &sum),
            None => sum,
        });
    }
    let Some(total) = total else { return gradients };
    let norm = b.op("Sqrt", &[&total]);
    let norm = b.add_scalar(&norm, 1e-6);
    let limit = b.scalar_like(&norm, limit);
    let ratio = b.div(&limit, &norm);
    let one = b.scalar_like(&norm, 1.0);
    let scale = b.op("Min", &[&ratio, &one]);
    let scaled = |g: &ValueId, b: &mut Builder| {
        let scale = b.cast(&scale, b.dtype(g));
        b.mul(g, &scale)
    };
    gradients.iter().map(|g| scaled(g, b)).collect()
}
