//! The map of one channel space onto another: attention between channel codes, around a hard start.
//!
//! `P = softmax(c · prior + (codes_t W_q)(codes_s W_k)ᵀ / √d) + R` (LPKA.md §3a in the project's design; after MergeNet,
//! arXiv 2404.13322). One map serves every weight that has the interface on either side.

use super::Side;
use super::parameters::{ParamId, Parameters};
use crate::onnx::{Builder, Tensor, ValueId};
use crate::params::{Interface, Matrix, low_rank};
use crate::train::AdapterConfig;

/// How strongly the softmax starts at the prior's choice.
const SHARPNESS: f32 = 6.0;
/// Free residuals of more elements than this are products of two factors.
const FREE: usize = 1 << 14;
/// Rank of such a product.
const FREE_RANK: usize = 8;

/// Target channels from source channels.
pub(super) struct InterfaceMap {
    prior: Tensor,
    /// What the softmax of the prior lacks of the mixture that a map starts at.
    rest: Option<Tensor>,
    attention: Option<Attention>,
    free: Free,
}

/// What a map starts at: a source channel for each target channel, or mixtures of them.
pub(super) struct Start<'a> {
    pub choice: &'a [usize],
    pub mixture: Option<&'a Matrix>,
}

/// Queries from the target's codes, keys from the source's.
struct Attention {
    /// `C_t × r_t`.
    target: Tensor,
    /// `r_s × C_s`.
    source: Tensor,
    query: (ParamId, ParamId),
    key: (ParamId, ParamId),
    width: usize,
}

/// The free residual R.
enum Free {
    Whole(ParamId),
    Factors(ParamId, ParamId),
}

impl InterfaceMap {
    /// A map from so many source channels; without codes (inputs have
    /// none) it is that prior and R alone.
    pub fn new(
        name: &str,
        (start, source): (Start<'_>, usize),
        codes: Option<(Matrix, Matrix)>,
        config: &AdapterConfig,
        parameters: &mut Parameters,
    ) -> Self {
        let target = start.choice.len();
        let attention = codes.map(|(t, s)| {
            let d = config.width.max(1);
            let named = |part: &str| format!("{name}/{part}");
            Attention {
                query: (
                    parameters.normal(named("query"), &[t.cols, d], 0.02),
                    parameters.uniform(named("query_bias"), &[1, d], t.cols),
                ),
                key: (
                    parameters.uniform(named("key"), &[d, s.cols], s.cols),
                    parameters.uniform(named("key_bias"), &[d, 1], s.cols),
                ),
                target: t.to_tensor(),
                source: transposed(&s).to_tensor(),
                width: d,
            }
        });
        let free = match target * source {
            n if n <= FREE => Free::Whole(parameters.zeros(format!("{name}/free"), &[target, source])),
            _ => Free::Factors(
                parameters.zeros(format!("{name}/free_left"), &[target, FREE_RANK]),
                parameters.normal(
                    format!("{name}/free_right"),
                    &[FREE_RANK, source],
                    1.0 / (source as f64).sqrt(),
                ),
            ),
        };
        let mut prior = vec![0.0; target * source];
        for (i, j) in start.choice.iter().enumerate() {
            prior[i * source + j] = SHARPNESS;
        }
        let rest = start.mixture.map(|mixture| {
            let (picked, other) = (SHARPNESS.exp(), 1.0);
            let share =
                |at: usize| if prior[at] > 0.0 { picked } else { other } / (picked + (source - 1) as f32);
            let rest: Vec<f32> = mixture.data.iter().enumerate().map(|(at, v)| v - share(at)).collect();
            Tensor::f32(&[target, source], &rest)
        });
        Self { prior: Tensor::f32(&[target, source], &prior), rest, attention, free }
    }

    /// Emits P, `C_t × C_s`.
    pub fn emit(&self, b: &mut Builder, values: &[ValueId]) -> ValueId {
        let prior = b.constant(self.prior.clone());
        let scores = match &self.attention {
            Some(attention) => {
                let scores = attention.emit(b, values);
                b.add(&scores, &prior)
            }
            None => prior,
        };
        let mut chosen = b.softmax(&scores, 1);
        if let Some(rest) = &self.rest {
            let rest = b.constant(rest.clone());
            chosen = b.add(&chosen, &rest);
        }
        let free = match self.free {
            Free::Whole(free) => values[free.0].clone(),
            Free::Factors(left, right) => b.matmul(&values[left.0], &values[right.0]),
        };
        b.add(&chosen, &free)
    }
}

impl Attention {
    fn emit(&self, b: &mut Builder, values: &[ValueId]) -> ValueId {
        let at = |id: ParamId| &values[id.0];
        let (target, source) = (b.constant(self.target.clone()), b.constant(self.source.clone()));
        let query = b.matmul(&target, at(self.query.0));
        let query = b.add(&query, at(self.query.1));
        let query = b.mul_scalar(&query, 1.0 / (self.width as f64).sqrt());
        let key = b.matmul(at(self.key.0), &source);
        let key = b.add(&key, at(self.key.1));
        b.matmul(&query, &key)
    }
}

/// Which source channel each target channel starts from: evenly spread.
pub fn selection(target: usize, source: usize) -> Vec<usize> {
    let step = if target > 1 { (source - 1) as f64 / (target - 1) as f64 } else { 0.0 };
    (0..target).map(|i| (i as f64 * step).round_ties_even() as usize).collect()
}

/// One vector a channel: the rows of U√Σ of the layer that makes the interface, over their standard deviation.
/// `None` where no single layer makes all channels of it.
pub(super) fn codes(side: &Side<'_>, interface: &Interface, rank: usize) -> Option<Matrix> {
    let producers = interface.producers.iter().map(|&id| side.graph.weight(id));
    let mut fitting = producers.filter(|w| {
        let whole = w.output_use().is_some_and(|u| u.positions == 1 && u.channels == interface.channels);
        whole && w.view.as_ref().is_some_and(|v| v.out == interface.channels)
    });
    let weight = fitting.next()?;
    let matrix = weight.view.as_ref()?.matrix_of(side.weights.get(&weight.name)?);
    let mut codes = low_rank(&matrix, rank).left();
    let std = codes.std();
    if !(std.is_normal() && codes.cols > 0) {
        return None;
    }
    codes.data.iter_mut().for_each(|v| *v /= std);
    Some(codes)
}

fn transposed(m: &Matrix) -> Matrix {
    let data = (0..m.cols).flat_map(|j| (0..m.rows).map(move |i| m.at(i, j))).collect();
    Matrix::new(m.cols, m.rows, data)
}
