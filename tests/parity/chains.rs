//! Chains of elementwise nodes against ONNX Runtime's own kernels, on random graphs.

use crate::kernels::agree;
use onnx_merge::Result;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Tensor, ValueId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SHAPE: [usize; 3] = [5, 30, 7];
/// What values are spread over [`SHAPE`] from.
const SHAPES: [&[usize]; 7] = [&SHAPE, &[], &[7], &[5, 1, 1], &[30, 1], &[30, 7], &[5, 1, 7]];
const TWO: [&str; 6] = ["Add", "Sub", "Mul", "Max", "Min", "Div"];
const ONE: [&str; 6] = ["Neg", "Abs", "Sign", "Relu", "Tanh", "Exp"];
const COMPARE: [&str; 5] = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"];

struct Graph<'a> {
    b: &'a mut Builder,
    random: ChaCha8Rng,
    /// Of single precision.
    values: Vec<ValueId>,
    truths: Vec<ValueId>,
}

impl Graph<'_> {
    /// One of `of`, later ones more often.
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let recent = of.len().saturating_sub(6);
        let from = if self.random.random_bool(0.7) { recent } else { 0 };
        of[self.random.random_range(from..of.len())].clone()
    }
    fn value(&mut self) -> ValueId {
        let values = self.values.clone();
        self.pick(&values)
    }
    /// Of the whole shape, so that what is made of it is.
    fn whole(&mut self) -> ValueId {
        let mut values = self.values.clone();
        values.retain(|id| self.b.shape(id) == SHAPE);
        self.pick(&values)
    }

    fn grow(&mut self) {
        match self.random.random_range(0..10) {
            0..5 => {
                let (mut x, mut y, op) = (self.whole(), self.value(), self.pick(&TWO));
                if op == "Div" {
                    // Away from zero.
                    let size = self.b.op("Abs", &[&y]);
                    y = self.b.add_scalar(&size, 0.5);
                } else if self.random.random_bool(0.5) {
                    std::mem::swap(&mut x, &mut y);
                }
                let made = self.b.op(op, &[&x, &y]);
                self.values.push(made);
            }
            5 | 6 => {
                let (x, op) = (self.whole(), self.pick(&ONE));
                let x = if op == "Exp" { self.b.op("Tanh", &[&x]) } else { x };
                let made = self.b.op(op, &[&x]);
                self.values.push(made);
            }
            7 => {
                let (x, y, op) = (self.whole(), self.value(), self.pick(&COMPARE));
                let made = self.b.op(op, &[&x, &y]);
                self.truths.push(made);
            }
            8 if self.truths.len() > 1 => {
                let truths = self.truths.clone();
                let (p, q, op) = (self.pick(&truths), self.pick(&truths), self.pick(&["And", "Or", "Not"]));
                let made = if op == "Not" { self.b.op(op, &[&p]) } else { self.b.op(op, &[&p, &q]) };
                self.truths.push(made);
            }
            _ if !self.truths.is_empty() => {
                let truths = self.truths.clone();
                let (p, x, y) = (self.pick(&truths), self.value(), self.value());
                let made = match self.random.random_bool(0.3) {
                    true => self.b.cast(&p, DType::F32),
                    false => self.b.where_(&p, &x, &y),
                };
                self.values.push(made);
            }
            _ => {
                let x = self.whole();
                let bounds = [-0.4, 0.6].map(|bound| self.b.constant(Tensor::f32(&[], &[bound])));
                let clipped = self.b.op("Clip", &[&x, &bounds[0], &bounds[1]]);
                self.values.push(clipped);
            }
        }
    }
}

#[test]
fn random_graphs() -> Result<()> {
    for seed in 0..60 {
        agree(&format!("graph {seed}"), |b| {
            let mut values: Vec<ValueId> = SHAPES
                .iter()
                .enumerate()
                .map(|(i, shape)| b.input(&format!("x{i}"), Fact::new(DType::F32, shape)))
                .collect();
            values.push(b.constant(Tensor::f32(&[], &[0.25])));
            let truths = vec![b.input("p", Fact::new(DType::Bool, &SHAPE))];
            let mut graph = Graph { b, random: ChaCha8Rng::seed_from_u64(seed), values, truths };
            (0..40).for_each(|_| graph.grow());
            let outputs: Vec<ValueId> = (0..4).map(|_| graph.whole()).collect();
            let squashed =
                outputs.iter().map(|id| graph.b.op_with("Elu", &[id], &[("alpha", Attr::Float(1.0))]));
            Ok(squashed.collect())
        })?;
    }
    Ok(())
}
