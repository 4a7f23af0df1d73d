//! Optimisers as graph, one weight at a time, with state under names that users can tell.
//!
//! The formulas are those of the program's own training (`lpka::optimizer`), which keeps state in flat vectors
//! instead: weight decay is decoupled, and none for biases and norms.

use super::emit::Gradient;
use super::names::{FIRST_MOMENT, NEXT, Names, SECOND_MOMENT};
use super::sparse::Touched;
use super::weights::Chosen;
use crate::onnx::{Builder, DType, Fact, Tensor, ValueId, ValueInfo};
use crate::train::clip::clipped;

/// How weights move.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rule {
    /// `w ← w − lr · g`.
    Sgd,
    /// `m ← μ · m + g`, `w ← w − lr · m`.
    Momentum { momentum: f64 },
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    Adamw { beta1: f64, beta2: f64, epsilon: f64 },
}

/// An optimiser with its settings.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Optimizer {
    pub rule: Rule,
    /// Decoupled: `w` shrinks by `lr · weight_decay` a step. Vectors don't.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 switches clipping off.
    pub clip: f64,
}

/// An input with what it is at the start; its next value is the output `NAME.next`.
pub struct Slot {
    pub name: String,
    pub initial: Tensor,
}

/// Emits the next values of `weights` from their gradients. Learning rate, weights, moments and counter become inputs here, the
/// counter also where the rule doesn't use it but the graph `counts`.
/// Returns all that goes from step to step.
pub fn emit(
    b: &mut Builder,
    optimizer: &Optimizer,
    names: &Names,
    weights: &[(Chosen, Gradient)],
    counts: bool,
) -> Vec<Slot> {
    let mut slots = vec![];
    let rate = b.input(&names.rate, Fact::new(DType::F32, &[]));
    for (weight, _) in weights {
        b.graph_mut().inputs.push(ValueInfo::new(weight.name.clone(), &Fact::of(&weight.value)));
    }
    b.set_scope("update");
    let moved: Vec<Moved> = weights.iter().map(|(weight, gradient)| Moved::of(b, weight, gradient)).collect();
    let gradients = clipped(b, moved.iter().map(|m| m.summed().clone()).collect(), optimizer.clip);
    let mut count = || counted(b, names, &mut slots);
    let corrections = match optimizer.rule {
        Rule::Adamw { beta1, beta2, .. } => {
            let count = count();
            Some(corrections(b, &count, [beta1, beta2]))
        }
        _ => {
            counts.then(count);
            None
        }
    };
    let mut shared: Vec<(DType, Shared)> = vec![];
    for (((weight, _), moved), gradient) in weights.iter().zip(&moved).zip(&gradients) {
        let name = &weight.name;
        let dtype = weight.value.dtype();
        let known = shared.iter().position(|(known, _)| *known == dtype).unwrap_or_else(|| {
            b.set_scope("update");
            shared.push((dtype, Shared::emit(b, optimizer, &rate, corrections.as_ref(), dtype)));
            shared.len() - 1
        });
        let Shared { rate, root_correction, kept } = &shared[known].1;
        b.set_scope(&format!("update/{name}"));
        let gradient = moved.gradient(b, gradient);
        let mut moment = |b: &mut Builder, value: &ValueId, ending: &str, keep: f64, take: f64| {
            moving(b, (weight, moved), value, ending, [keep, take], &mut slots)
        };
        let change = match (optimizer.rule, root_correction) {
            (Rule::Adamw { beta1, beta2, epsilon }, Some(root_correction)) => {
                let m = moment(b, &gradient, FIRST_MOMENT, beta1, 1.0 - beta1);
                let square = b.mul(&gradient, &gradient);
                let v = moment(b, &square, SECOND_MOMENT, beta2, 1.0 - beta2);
                let root = b.op("Sqrt", &[&v]);
                let root = b.div(&root, root_correction);
                let root = b.add_scalar(&root, epsilon);
                let direction = b.div(&m, &root);
                b.mul(&direction, rate)
            }
            (Rule::Momentum { momentum }, _) => {
                let m = moment(b, &gradient, FIRST_MOMENT, momentum, 1.0);
                b.mul(&m, rate)
            }
            _ => b.mul(&gradient, rate),
        };
        let old = moved.read(b, name);
        let kept = match kept {
            Some(share) if weight.decays => b.mul(&old, share),
            _ => old,
        };
        let next = b.sub(&kept, &change);
        let next = moved.write(b, name, &next);
        next_value(b, name.as_str(), &next, weight.value.clone(), &mut slots);
    }
    b.set_scope("");
    slots
}

/// The part of a weight, and of what goes with it, that a step changes.
enum Moved {
    Whole(ValueId),
    /// The rows that the batch looked up. What goes with others isn't touched, as in PyTorch's `SparseAdam`.
    Rows(Touched),
}

impl Moved {
    fn of(b: &mut Builder, weight: &Chosen, gradient: &Gradient) -> Self {
        match gradient {
            Gradient::Whole(gradient) => Self::Whole(gradient.clone()),
            Gradient::Rows(rows) => {
                b.set_scope(&format!("update/{}", weight.name));
                let touched = Touched::of(b, rows, weight.value.shape());
                b.set_scope("update");
                Self::Rows(touched)
            }
        }
    }
    /// The gradient, zeros and all, as far as the norm goes.
    fn summed(&self) -> &ValueId {
        match self {
            Self::Whole(gradient) => gradient,
            Self::Rows(touched) => &touched.sums,
        }
    }
    /// The gradient of what is moved, from [`Self::summed`] after clipping.
    fn gradient(&self, b: &mut Builder, summed: &ValueId) -> ValueId {
        match self {
            Self::Whole(_) => summed.clone(),
            Self::Rows(touched) => touched.gradient(b, summed),
        }
    }
    fn read(&self, b: &mut Builder, state: &ValueId) -> ValueId {
        match self {
            Self::Whole(_) => state.clone(),
            Self::Rows(touched) => touched.read(b, state),
        }
    }
    fn write(&self, b: &mut Builder, state: &ValueId, next: &ValueId) -> ValueId {
        match self {
            Self::Whole(_) => next.clone(),
            Self::Rows(touched) => touched.write(b, state, next),
        }
    }
}

/// What the updates of all weights of one element type have in common; scalars.
struct Shared {
    /// The learning rate; for Adam over the first moment's correction.
    rate: ValueId,
    /// The root of the second moment's correction; Adam's alone.
    root_correction: Option<ValueId>,
    /// What decay leaves of a weight, where there is any.
    kept: Option<ValueId>,
}

impl Shared {
    fn emit(
        b: &mut Builder,
        optimizer: &Optimizer,
        rate: &ValueId,
        corrections: Option<&[ValueId; 2]>,
        dtype: DType,
    ) -> Self {
        let rate = b.cast(rate, dtype);
        let kept = (optimizer.weight_decay != 0.0).then(|| {
            let loss = b.mul_scalar(&rate, optimizer.weight_decay);
            b.scalar_sub(1.0, &loss)
        });
        let Some([first, second]) = corrections else { return Self { rate, root_correction: None, kept } };
        let (first, second) = (b.cast(first, dtype), b.cast(second, dtype));
        let root_correction = Some(b.op("Sqrt", &[&second]));
        Self { rate: b.div(&rate, &first), root_correction, kept }
    }
}

/// Declares `next` as the next value of the input `name`.
pub fn next_value(b: &mut Builder, name: &str, next: &ValueId, initial: Tensor, slots: &mut Vec<Slot>) {
    b.output_as(&format!("{name}.{NEXT}"), next);
    slots.push(Slot { name: name.to_owned(), initial });
}

/// Counts this step, from 1.
fn counted(b: &mut Builder, names: &Names, slots: &mut Vec<Slot>) -> ValueId {
    let before = b.input(&names.step, Fact::new(DType::I64, &[]));
    let one = b.constant(Tensor::i64(&[], &[1]));
    let count = b.add(&before, &one);
    next_value(b, &names.step, &count, Tensor::i64(&[], &[0]), slots);
    count
}

/// 1 − βᵗ at this step t. As `2h / (1 + h)` with `h = tanh(−t·ln β / 2)`, which loses nothing to
/// cancellation while βᵗ is near 1.
fn corrections(b: &mut Builder, count: &ValueId, betas: [f64; 2]) -> [ValueId; 2] {
    let count = b.cast(count, DType::F32);
    betas.map(|beta| {
        let half = b.mul_scalar(&count, -0.5 * beta.ln());
        let h = b.op("Tanh", &[&half]);
        let twice = b.mul_scalar(&h, 2.0);
        let shifted = b.add_scalar(&h, 1.0);
        b.div(&twice, &shifted)
    })
}

/// The state `NAME.ending` ← `keep` · state + `take` · `value`, from zero. Gives what is new of it.
fn moving(
    b: &mut Builder,
    (weight, moved): (&Chosen, &Moved),
    value: &ValueId,
    ending: &str,
    [keep, take]: [f64; 2],
    slots: &mut Vec<Slot>,
) -> ValueId {
    let fact = Fact::of(&weight.value);
    let name = format!("{}.{ending}", weight.name);
    let state = b.input(&name, fact.clone());
    let old = moved.read(b, &state);
    let kept = b.mul_scalar(&old, keep);
    let taken = if take == 1.0 { value.clone() } else { b.mul_scalar(value, take) };
    let next = b.add(&kept, &taken);
    let whole = moved.write(b, &state, &next);
    next_value(b, &name, &whole, Tensor::zeros(fact.dtype, &fact.shape), slots);
    next
}
