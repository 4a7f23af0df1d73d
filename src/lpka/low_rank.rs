//! Fine-tuning by low-rank deltas: `W′ = W + A B / r` with W itself left alone, baked in like everything else.
//!
//! After LoRA (Hu et al. 2022). A starts random, B at zero, so the first W′ is W. Vectors (biases, normalisation) are trained
//! as they are.

use super::Side;
use super::parameters::{Emitted, Layer, Noise, ParamId, Plan};
use super::structured::weight_of;
use crate::onnx::{Builder, ValueId};
use crate::params::MatrixView;

/// The delta of one matrix.
struct Delta {
    base: usize,
    view: MatrixView,
    /// `out × r` and `r × in`.
    left: ParamId,
    right: ParamId,
    rank: usize,
}

/// Freezes the matrices of a plan and adds deltas of at most `rank` to them. A matrix too small for that rank to save
/// anything stays trained as a whole.
pub(super) fn add(plan: &mut Plan, target: &Side<'_>, rank: usize) {
    for base in 0..plan.bases.len() {
        let name = plan.bases[base].weight.clone();
        let Some(view) = target.graph.find(name.as_str()).and_then(|id| target.graph.weight(id).view.clone())
        else {
            continue;
        };
        let (rows, cols) = (view.out, view.cols());
        if rank * (rows + cols) >= rows * cols {
            continue;
        }
        let left = plan.parameters.zeros(format!("{name}/left"), &[rows, rank]);
        let std = 1.0 / (cols as f64).sqrt();
        let right = plan.parameters.normal(format!("{name}/right"), &[rank, cols], std);
        plan.parameters.freeze(plan.bases[base].parameter);
        plan.layers.push(Box::new(Delta { base, view, left, right, rank }));
    }
}

impl Layer for Delta {
    fn emit(&self, b: &mut Builder, values: &[ValueId], _: &mut Noise<'_>) -> Emitted {
        let product = b.matmul(&values[self.left.0], &values[self.right.0]);
        let matrix = b.mul_scalar(&product, SCALE / self.rank as f64);
        Emitted { additions: vec![(self.base, weight_of(b, &matrix, &self.view))], maps: vec![] }
    }
}

/// α: with AdamW's step of one learning rate an entry, deltas then move about as fast as full weights.
const SCALE: f64 = 16.0;
