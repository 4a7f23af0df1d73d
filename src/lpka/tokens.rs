//! Token transfer layers: where no interface of the source corresponds, a weight's low-rank tokens attend to the source's.
//!
//! A matrix M ≈ Σ σ_k u_k v_kᵀ is seen as r tokens, each a pair b_k = √σ_k u_k, a_k = √σ_k v_k, over the matrix's standard
//! deviation. For a target weight with tokens (B, A) and source weights s (stacked knowledge transfer layers of MergeNet,
//! arXiv 2404.13322, in low rank):
//!
//! ```text
//! P = dropout(softmax(Q Kᵀ / √d)), averaged over heads     Q = [B; A] W_q,  K = [B_s; A_s] W_k^s for all s
//! B ← LayerNorm(B + P · B_s W_vb^s),  A ← LayerNorm(A + P · A_s W_va^s)
//! (B, A) ← (B, A) + FFN([B; A])
//! W′ = W + std(W) · (g ⊙ B)ᵀ A / √r
//! ```
//!
//! Value projections are products of two factors; kernels of the source are resampled to the target's, and W_va mixes input
//! features, tap by tap.

use super::lens::{Attended, Columns};
use super::parameters::{Base, Emitted, Layer, Noise, ParamId, Parameters, Plan};
use super::structured::{weight_of, with_taps};
use super::{Means, Side, Transfer};
use crate::onnx::{Builder, Tensor, ValueId};
use crate::params::{Matrix, MatrixView, Pairing, WeightId, low_rank};
use crate::train::AdapterConfig;
use std::collections::HashMap;

/// Source weights that one target weight attends to, at most.
const SOURCES: usize = 4;
/// Least width of queries and keys.
const NARROWEST: usize = 4;

/// Tokens of one weight.
#[derive(Clone)]
struct Tokens {
    /// `r × out`.
    left: Matrix,
    /// `r × (in · taps)`.
    right: Matrix,
    inn: usize,
    taps: usize,
    /// log of the weight's standard deviation, a feature of each token.
    level: f32,
}

struct TokenTransfer {
    base: usize,
    view: MatrixView,
    target: Tokens,
    sources: Vec<Tokens>,
    /// Of the sources.
    names: Vec<ValueId>,
    steps: Vec<Step>,
    /// `r × 1`.
    gate: ParamId,
    /// std(W) / √r.
    scale: f64,
    width: usize,
    heads: usize,
    dropout: f64,
}

/// The parameters of one of the stacked layers.
struct Step {
    query: Linear,
    /// By source.
    keys: Vec<Linear>,
    left: Vec<(ParamId, ParamId)>,
    right: Vec<(ParamId, ParamId)>,
    up: Linear,
    down: Linear,
}

struct Linear {
    weight: ParamId,
    bias: ParamId,
}

impl Linear {
    fn new(parameters: &mut Parameters, name: &str, inn: usize, out: usize) -> Self {
        Self {
            weight: parameters.uniform(name, &[inn, out], inn),
            bias: parameters.uniform(format!("{name}_bias"), &[out], inn),
        }
    }
    fn emit(&self, b: &mut Builder, x: &ValueId, values: &[ValueId]) -> ValueId {
        let y = b.matmul(x, &values[self.weight.0]);
        b.add(&y, &values[self.bias.0])
    }
}

impl Tokens {
    /// `None` for a weight without variance.
    fn of(view: &MatrixView, tensor: &Tensor, taps: &[usize], rank: usize) -> Option<Self> {
        let matrix = with_taps(&view.matrix_of(tensor), &view.taps, taps);
        let std = matrix.std();
        let factors = low_rank(&matrix, rank);
        if !std.is_normal() || factors.rank() == 0 {
            return None;
        }
        let divided = |m: Matrix| {
            let data = (0..m.cols)
                .flat_map(|k| (0..m.rows).map(move |i| (i, k)))
                .map(|(i, k)| m.at(i, k) / std.sqrt());
            Matrix::new(m.cols, m.rows, data.collect())
        };
        let taps = taps.iter().product();
        let (left, right) = (divided(factors.left()), divided(factors.right()));
        Some(Self { left, right, inn: view.inn, taps, level: std.ln() })
    }
    fn rank(&self) -> usize {
        self.left.rows
    }
    /// Features of a token: both factors and the level.
    fn features(&self) -> usize {
        self.left.cols + self.right.cols + 1
    }
    fn level(&self, b: &mut Builder) -> ValueId {
        b.constant(Tensor::f32(&[self.rank(), 1], &vec![self.level; self.rank()]))
    }
    /// All features, `r × features`.
    fn table(&self) -> Tensor {
        let mut data = Vec::with_capacity(self.rank() * self.features());
        for k in 0..self.rank() {
            data.extend_from_slice(self.left.row(k));
            data.extend_from_slice(self.right.row(k));
            data.push(self.level);
        }
        Tensor::f32(&[self.rank(), self.features()], &data)
    }
    /// The right factors with a row a token and tap: `(r · taps) × in`.
    fn by_tap(&self) -> Tensor {
        let mut data = Vec::with_capacity(self.right.data.len());
        for k in 0..self.rank() {
            for t in 0..self.taps {
                data.extend((0..self.inn).map(|i| self.right.at(k, i * self.taps + t)));
            }
        }
        Tensor::f32(&[self.rank() * self.taps, self.inn], &data)
    }
}

impl Layer for TokenTransfer {
    fn emit(&self, b: &mut Builder, values: &[ValueId], noise: &mut Noise<'_>) -> Emitted {
        let mut left = b.constant(self.target.left.to_tensor());
        let mut right = b.constant(self.target.right.to_tensor());
        for step in &self.steps {
            (left, right) = self.step(b, step, values, left, right, noise);
        }
        let gated = b.mul(&left, &values[self.gate.0]);
        let gated = b.mul_scalar(&gated, self.scale);
        let rows = b.transpose(&gated, &[1, 0]);
        let matrix = b.matmul(&rows, &right);
        Emitted { additions: vec![(self.base, weight_of(b, &matrix, &self.view))], maps: vec![] }
    }
    fn attended(&self, b: &mut Builder, values: &[ValueId], bases: &[Base]) -> Vec<Attended> {
        let Some(first) = self.steps.first() else { return vec![] };
        let left = b.constant(self.target.left.to_tensor());
        let right = b.constant(self.target.right.to_tensor());
        let sizes = self.names.iter().map(ValueId::to_string).zip(self.sources.iter().map(Tokens::rank));
        vec![Attended {
            target: bases[self.base].weight.to_string(),
            source: Columns::Weights(sizes.collect()),
            value: self.attention(b, first, values, &left, &right),
        }]
    }
    fn drops(&self) -> bool {
        self.dropout > 0.0
    }
}

impl TokenTransfer {
    fn step(
        &self,
        b: &mut Builder,
        step: &Step,
        values: &[ValueId],
        left: ValueId,
        right: ValueId,
        noise: &mut Noise<'_>,
    ) -> (ValueId, ValueId) {
        let attention = self.attention(b, step, values, &left, &right);
        let attention = noise.dropout(b, &attention, self.dropout);
        let (left_values, right_values) = self.values(b, step, values);
        let mut mix = |own: &ValueId, other: &ValueId| {
            let taken = b.matmul(&attention, other);
            let sum = b.add(own, &taken);
            normalised(b, &sum)
        };
        let (left, right) = (mix(&left, &left_values), mix(&right, &right_values));

        let both = b.concat(&[&left, &right], 1);
        let hidden = step.up.emit(b, &both, values);
        let hidden = gelu(b, &hidden);
        let hidden = noise.dropout(b, &hidden, self.dropout);
        let change = step.down.emit(b, &hidden, values);
        let both = b.add(&both, &change);
        let (out, all) = (self.target.left.cols as i64, both_width(&self.target) as i64);
        (b.slice(&both, &[0], &[out], &[1]), b.slice(&both, &[out], &[all], &[1]))
    }

    /// How the target's tokens attend to all source tokens: `r × Σ r_s`.
    fn attention(
        &self,
        b: &mut Builder,
        step: &Step,
        values: &[ValueId],
        left: &ValueId,
        right: &ValueId,
    ) -> ValueId {
        let level = self.target.level(b);
        let features = b.concat(&[left, right, &level], 1);
        let query = step.query.emit(b, &features, values);
        let mut keys = vec![];
        for (source, key) in self.sources.iter().zip(&step.keys) {
            let table = b.constant(source.table());
            keys.push(key.emit(b, &table, values));
        }
        let key = b.concat(&keys.iter().collect::<Vec<_>>(), 0);
        attention(b, &query, &key, self.width, self.heads)
    }

    /// What all source tokens offer: `Σ r_s × out` and `Σ r_s × (in · taps)`.
    fn values(&self, b: &mut Builder, step: &Step, values: &[ValueId]) -> (ValueId, ValueId) {
        let through = |b: &mut Builder, x: Tensor, factors: &(ParamId, ParamId)| {
            let x = b.constant(x);
            let x = b.matmul(&x, &values[factors.0.0]);
            b.matmul(&x, &values[factors.1.0])
        };
        let (mut left, mut right) = (vec![], vec![]);
        for (i, source) in self.sources.iter().enumerate() {
            left.push(through(b, source.left.to_tensor(), &step.left[i]));
            let taps = through(b, source.by_tap(), &step.right[i]);
            let cells = b.reshape(&taps, &[source.rank(), source.taps, self.target.inn]);
            let cells = b.transpose(&cells, &[0, 2, 1]);
            right.push(b.reshape(&cells, &[source.rank(), self.target.right.cols]));
        }
        (b.concat(&left.iter().collect::<Vec<_>>(), 0), b.concat(&right.iter().collect::<Vec<_>>(), 0))
    }
}

fn both_width(tokens: &Tokens) -> usize {
    tokens.left.cols + tokens.right.cols
}

/// softmax(Q Kᵀ / √d), averaged over heads: rows of the query × rows of the key, both `width` wide.
pub(super) fn attention(
    b: &mut Builder,
    query: &ValueId,
    key: &ValueId,
    width: usize,
    heads: usize,
) -> ValueId {
    let head = width / heads;
    let split = |b: &mut Builder, x: &ValueId, perm: &[usize]| {
        let rows = b.shape(x)[0];
        let x = b.reshape(x, &[rows, heads, head]);
        b.transpose(&x, perm)
    };
    let query = split(b, query, &[1, 0, 2]);
    let key = split(b, key, &[1, 2, 0]);
    let scores = b.matmul(&query, &key);
    let scores = b.mul_scalar(&scores, 1.0 / (head as f64).sqrt());
    let weights = b.softmax(&scores, 2);
    b.mean(&weights, &[0], false)
}

/// Each row to mean 0 and variance 1.
pub(super) fn normalised(b: &mut Builder, x: &ValueId) -> ValueId {
    let mean = b.mean(x, &[-1], true);
    let centred = b.sub(x, &mean);
    let square = b.mul(&centred, &centred);
    let variance = b.mean(&square, &[-1], true);
    let variance = b.add_scalar(&variance, 1e-5);
    let std = b.op("Sqrt", &[&variance]);
    b.div(&centred, &std)
}

/// x · Φ(x).
fn gelu(b: &mut Builder, x: &ValueId) -> ValueId {
    let scaled = b.mul_scalar(x, std::f64::consts::FRAC_1_SQRT_2);
    let erf = b.op("Erf", &[&scaled]);
    let share = b.add_scalar(&erf, 1.0);
    let half = b.mul_scalar(x, 0.5);
    b.mul(&half, &share)
}

/// What happens to weights too small for a layer with fewer parameters than they have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// They get none: an adapter larger than its target only re-parametrises it.
    Required,
    /// They get the narrowest there is.
    Wanted,
}

/// Adds token transfer layers for every matrix that isn't `done` and has candidates; their gates start at `gate`.
#[allow(clippy::too_many_arguments)]
pub(super) fn add(
    plan: &mut Plan,
    target: &Side<'_>,
    source: &Side<'_>,
    pairing: &Pairing,
    config: &AdapterConfig,
    gate: f64,
    done: &[WeightId],
    fit: Fit,
) {
    // Many targets share a candidate, and decomposing it is most of the work.
    let mut known: HashMap<(WeightId, &[usize]), Option<Tokens>> = HashMap::new();
    for pair in pairing.weights.iter().filter(|pair| !done.contains(&pair.target)) {
        let weight = target.graph.weight(pair.target);
        let Some(base) = plan.base_of(&weight.name) else { continue };
        let (Some(view), Some(tensor)) = (weight.view.as_ref(), target.weights.get(&weight.name)) else {
            continue;
        };
        let rank = config.rank.max(1);
        let Some(tokens) = Tokens::of(view, tensor, &view.taps, rank) else { continue };
        let (mut names, mut sources) = (vec![], vec![]);
        for &id in &pair.candidates {
            let other = source.graph.weight(id);
            let (Some(from), Some(tensor)) = (other.view.as_ref(), source.weights.get(&other.name)) else {
                continue;
            };
            if sources.len() == SOURCES {
                break;
            }
            let tokens =
                known.entry((id, &view.taps)).or_insert_with(|| Tokens::of(from, tensor, &view.taps, rank));
            if let Some(tokens) = tokens {
                names.push(other.name.clone());
                sources.push(tokens.clone());
            }
        }
        let narrow = fitting_width(&tokens, &sources, config.depth.max(1), config.width).is_none();
        if sources.is_empty() || (fit == Fit::Required && narrow) {
            continue;
        }
        let scale = view.matrix_of(tensor).std() as f64 / (tokens.rank() as f64).sqrt();
        let layer = layer(plan, base, view, tokens, (sources, names.clone()), config, gate, scale);
        plan.layers.push(Box::new(layer));
        plan.transfers.push(Transfer { target: weight.name.clone(), sources: names, by: Means::Tokens });
    }
}

#[allow(clippy::too_many_arguments)]
fn layer(
    plan: &mut Plan,
    base: usize,
    view: &MatrixView,
    target: Tokens,
    (sources, names): (Vec<Tokens>, Vec<ValueId>),
    config: &AdapterConfig,
    gate: f64,
    scale: f64,
) -> TokenTransfer {
    let depth = config.depth.max(1);
    let width = fitting_width(&target, &sources, depth, config.width).unwrap_or(NARROWEST);
    let heads = (1..=config.heads.clamp(1, width)).rev().find(|h| width.is_multiple_of(*h)).unwrap_or(1);
    let name = plan.bases[base].weight.clone();
    let p = &mut plan.parameters;
    let both = both_width(&target);
    let mut steps = vec![];
    for l in 0..depth {
        let named = |part: &str| format!("{name}/{l}/{part}");
        let factors = |p: &mut Parameters, part: String, inn: usize, out: usize| {
            let k = value_rank(width);
            (p.uniform(format!("{part}_in"), &[inn, k], inn), p.uniform(format!("{part}_out"), &[k, out], k))
        };
        steps.push(Step {
            query: Linear::new(p, &named("query"), target.features(), width),
            keys: (sources.iter().enumerate())
                .map(|(i, s)| Linear::new(p, &named(&format!("key{i}")), s.features(), width))
                .collect(),
            left: (sources.iter().enumerate())
                .map(|(i, s)| factors(p, named(&format!("left{i}")), s.left.cols, target.left.cols))
                .collect(),
            right: (sources.iter().enumerate())
                .map(|(i, s)| factors(p, named(&format!("right{i}")), s.inn, target.inn))
                .collect(),
            up: Linear::new(p, &named("up"), both, 2 * width),
            down: Linear::new(p, &named("down"), 2 * width, both),
        });
    }
    let gate = p.filled(format!("{name}/gate"), &[target.rank(), 1], gate as f32);
    TokenTransfer {
        base,
        view: view.clone(),
        target,
        sources,
        names,
        steps,
        gate,
        scale,
        width,
        heads,
        dropout: config.dropout.clamp(0.0, 0.9),
    }
}

/// Rank of the value projections.
fn value_rank(width: usize) -> usize {
    width.div_ceil(2)
}

/// The greatest width, at most `wanted`, that keeps a layer's parameters below its weight's own; `None` where even
/// the narrowest has more.
fn fitting_width(target: &Tokens, sources: &[Tokens], depth: usize, wanted: usize) -> Option<usize> {
    let own = target.left.cols * target.right.cols;
    let cost = |width: usize| {
        let keys: usize = sources.iter().map(|s| s.features() * width).sum();
        let pairs = |s: &Tokens| s.left.cols + target.left.cols + s.inn + target.inn;
        let values: usize = sources.iter().map(|s| pairs(s) * value_rank(width)).sum();
        depth * (target.features() * width + keys + values + 4 * both_width(target) * width)
    };
    let mut width = wanted.max(NARROWEST);
    while width > NARROWEST && cost(width) > own {
        width = (width / 2).max(NARROWEST);
    }
    (cost(width) <= own).then_some(width)
}
