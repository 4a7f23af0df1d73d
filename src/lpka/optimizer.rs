//! AdamW and SGD with momentum, as graph, over few flat vectors instead of many tensors.
//!
//! Small tensors of equal weight decay share one flat vector ([`Flats`]), so that an update costs a handful of nodes however
//! many tensors there are; large ones have a vector of their own.

use super::parameters::Parameters;
use crate::onnx::{Builder, DType, Fact, Tensor, ValueId};
use crate::runtime::State;
use crate::train::clip::clipped;
use crate::train::{Optimizer, TrainConfig};
use std::ops::Range;

/// Tensors of more elements than this have a vector of their own.
const SHARED: usize = 1 << 16;
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
const MOMENTUM: f64 = 0.9;

/// A flat vector of several parameters, one after the other; or one parameter, in its own shape.
struct Flat {
    members: Vec<usize>,
    len: usize,
    decay: f64,
    frozen: bool,
}

/// How parameters lie in flat vectors.
pub(super) struct Flats {
    flats: Vec<Flat>,
    shapes: Vec<Vec<usize>>,
    /// The place of the first parameter among all.
    first: usize,
}

impl Flats {
    pub fn new(parameters: &Parameters) -> Self {
        Self::of(parameters, 0..parameters.list.len())
    }
    /// Only the parameters in `range`; [`Flats::views`] and [`Flats::gathered`] count from its start.
    pub fn of(parameters: &Parameters, range: Range<usize>) -> Self {
        let mut flats: Vec<Flat> = vec![];
        let list = &parameters.list[range.clone()];
        for (i, parameter) in list.iter().enumerate() {
            let len = parameter.initial.len();
            let alike = |f: &Flat| f.decay == parameter.decay && f.frozen == parameter.frozen;
            let fits = |f: &&mut Flat| alike(f) && f.len + len <= SHARED;
            match flats.iter_mut().find(fits) {
                Some(flat) => {
                    flat.members.push(i);
                    flat.len += len;
                }
                None => flats.push(Flat {
                    members: vec![i],
                    len,
                    decay: parameter.decay,
                    frozen: parameter.frozen,
                }),
            }
        }
        Self { flats, shapes: list.iter().map(|p| p.initial.shape().to_vec()).collect(), first: range.start }
    }

    /// The first values of the flat vectors.
    pub fn initial(&self, parameters: &Parameters) -> Vec<Tensor> {
        let values = |flat: &Flat| {
            if let [alone] = flat.members[..] {
                return parameters.list[self.first + alone].initial.clone();
            }
            let parts = flat
                .members
                .iter()
                .flat_map(|&i| parameters.list[self.first + i].initial.to_f32().into_owned());
            Tensor::f32(&[flat.len], &parts.collect::<Vec<f32>>())
        };
        self.flats.iter().map(values).collect()
    }

    fn shape(&self, flat: &Flat) -> Vec<usize> {
        match flat.members[..] {
            [alone] => self.shapes[alone].clone(),
            _ => vec![flat.len],
        }
    }

    /// Declares an input for each flat vector.
    pub fn inputs(&self, b: &mut Builder, prefix: &str) -> Vec<ValueId> {
        let declare = |(i, flat): (usize, &Flat)| {
            b.input(&format!("{prefix}{i}"), Fact::new(DType::F32, &self.shape(flat)))
        };
        self.flats.iter().enumerate().map(declare).collect()
    }

    /// The parameters inside the flat vectors, in their own shapes.
    pub fn views(&self, b: &mut Builder, flats: &[ValueId]) -> Vec<ValueId> {
        let mut views = vec![None; self.shapes.len()];
        for (flat, whole) in self.flats.iter().zip(flats) {
            if let [alone] = flat.members[..] {
                views[alone] = Some(whole.clone());
                continue;
            }
            let mut start = 0i64;
            for &i in &flat.members {
                let end = start + self.shapes[i].iter().product::<usize>() as i64;
                let part = b.slice(whole, &[start], &[end], &[0]);
                views[i] = Some(b.reshape(&part, &self.shapes[i]));
                start = end;
            }
        }
        views.into_iter().flatten().collect()
    }

    /// The cotangents of the parameters as flat vectors; zeros where there is none.
    pub fn gathered(&self, b: &mut Builder, cotangents: &[Option<ValueId>]) -> Vec<ValueId> {
        let mut gather = |flat: &Flat| {
            if let [alone] = flat.members[..] {
                let cotangent = cotangents[alone].clone().filter(|_| !flat.frozen);
                let zeros = || Tensor::zeros(DType::F32, &self.shapes[alone]);
                return cotangent.unwrap_or_else(|| b.constant(zeros()));
            }
            let parts: Vec<ValueId> = flat
                .members
                .iter()
                .map(|&i| {
                    let len = self.shapes[i].iter().product();
                    match cotangents[i].as_ref().filter(|_| !flat.frozen) {
                        Some(cotangent) => b.reshape(cotangent, &[len]),
                        None => b.constant(Tensor::zeros(DType::F32, &[len])),
                    }
                })
                .collect();
            b.concat(&parts.iter().collect::<Vec<_>>(), 0)
        };
        self.flats.iter().map(&mut gather).collect()
    }
}

/// Emits one optimiser step. Returns the next flat vectors; adds moments and counters, whose inputs' names begin with
/// `prefix`, to `state`.
#[allow(clippy::too_many_arguments)]
pub(super) fn emit(
    b: &mut Builder,
    flats: &Flats,
    old: &[ValueId],
    gradients: Vec<ValueId>,
    rate: &ValueId,
    config: &TrainConfig,
    prefix: &str,
    state: &mut Vec<State>,
) -> Vec<ValueId> {
    let gradients = clipped(b, gradients, config.clip);
    let mut next = vec![];
    let corrections = match config.optimizer {
        Optimizer::Adamw => Some(corrections(b, prefix, state)),
        Optimizer::Sgd => None,
    };
    for (i, (flat, gradient)) in flats.flats.iter().zip(&gradients).enumerate() {
        if flat.frozen {
            next.push(b.op("Identity", &[&old[i]]));
            continue;
        }
        let step = match &corrections {
            Some(corrections) => adam_step(b, gradient, corrections, rate, &format!("{prefix}{i}"), state),
            None => {
                let velocity = moving(b, gradient, &format!("{prefix}{i}/velocity"), MOMENTUM, 1.0, state);
                b.mul(&velocity, rate)
            }
        };
        let kept = match flat.decay {
            0.0 => old[i].clone(),
            decay => {
                let loss = b.mul_scalar(rate, decay);
                let share = b.scalar_sub(1.0, &loss);
                b.mul(&old[i], &share)
            }
        };
        next.push(b.sub(&kept, &step));
    }
    next
}

/// 1 / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ) at this step t.
fn corrections(b: &mut Builder, prefix: &str, state: &mut Vec<State>) -> (ValueId, ValueId) {
    let mut unbiased = |name: &str, beta: f64| {
        let power = b.input(&format!("{prefix}{name}"), Fact::new(DType::F32, &[]));
        let next = b.mul_scalar(&power, beta);
        b.output(&next);
        state.push(State { input: power, output: next.clone(), initial: Tensor::scalar(DType::F32, 1.0) });
        let rest = b.scalar_sub(1.0, &next);
        b.op("Reciprocal", &[&rest])
    };
    let (first, second) = (unbiased("beta1_power", BETA1), unbiased("beta2_power", BETA2));
    (first, b.op("Sqrt", &[&second]))
}

/// Adam's step (Kingma and Ba 2015): rate · m̂ / (√v̂ + ε).
fn adam_step(
    b: &mut Builder,
    gradient: &ValueId,
    (first, second): &(ValueId, ValueId),
    rate: &ValueId,
    name: &str,
    state: &mut Vec<State>,
) -> ValueId {
    let m = moving(b, gradient, &format!("{name}/m"), BETA1, 1.0 - BETA1, state);
    let square = b.mul(gradient, gradient);
    let v = moving(b, &square, &format!("{name}/v"), BETA2, 1.0 - BETA2, state);
    let root = b.op("Sqrt", &[&v]);
    let root = b.mul(&root, second);
    let root = b.add_scalar(&root, EPSILON);
    let scale = b.mul(rate, first);
    let direction = b.div(&m, &root);
    b.mul(&direction, &scale)
}

/// The state `name` ← `keep` · `name` + `take` · `value`, from zero.
fn moving(
    b: &mut Builder,
    value: &ValueId,
    name: &str,
    keep: f64,
    take: f64,
    state: &mut Vec<State>,
) -> ValueId {
    let fact = b.fact(value).clone();
    let old = b.input(name, fact.clone());
    let kept = b.mul_scalar(&old, keep);
    let taken = if take == 1.0 { value.clone() } else { b.mul_scalar(value, take) };
    let next = b.add(&kept, &taken);
    b.output(&next);
    state.push(State { input: old, output: next.clone(), initial: Tensor::zeros(fact.dtype, &fact.shape) });
    next
}
