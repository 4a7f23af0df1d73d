//! Dropout as in training: each element is left out with the node's own chance, the others are divided by the chance to stay.
//!
//! Files that were exported for inference may still carry `Dropout` nodes, which pass their inputs on. [`to_training`] makes them
//! drop, for exported steps and for our own. Which elements a step keeps is a function of seed, step and place alone, so that a run
//! that is gone on from is the same: exported steps compute it, ours are fed [`Drops::noise`].

use super::schedule::{generator, stream};
use super::session::Split;
use crate::error::Error;
use crate::onnx::{Builder, DType, Fact, Facts, Graph, Node, Tensor, ValueId};
use crate::runtime::Value;
use rand::RngExt;
use std::path::Path;

/// The chance to be left out, and what it is about: nodes that don't drop, but could.
fn idle<'a>(graph: &'a Graph, node: &'a Node) -> Option<(f64, &'a ValueId)> {
    let inference = node.is("Dropout") && node.input(2).is_none();
    let ratio = graph.initializers.get(node.input(1)?)?.to_f64().first().copied()?;
    inference.then_some((ratio, node.input(0)?))
}

/// Whether any node of the graph could drop.
pub fn any(graph: &Graph) -> bool {
    graph.nodes.iter().any(|node| idle(graph, node).is_some())
}

/// Why a model can't be trained with dropout.
pub fn none_in(path: &Path) -> Error {
    Error::model(path, "has no Dropout that could drop in training (--train-dropout)")
        .hint("most exporters leave it out of what they export for inference")
}

/// Makes the graph's `Dropout` nodes drop. `keep(b, i, fact, ratio)` emits for the `i`th, whose input is as `fact` says, which of its
/// elements stay, as truths; each is left out with the chance `ratio`.
pub fn to_training(
    graph: Graph,
    facts: Facts,
    mut keep: impl FnMut(&mut Builder, usize, &Fact, f64) -> ValueId,
) -> (Graph, Facts) {
    let drops: Vec<Option<f64>> =
        graph.nodes.iter().map(|n| idle(&graph, n).map(|(ratio, _)| ratio)).collect();
    let mut b = Builder::on(graph, facts);
    let nodes = std::mem::take(&mut b.graph_mut().nodes);
    let mut i = 0;
    for (node, ratio) in nodes.into_iter().zip(drops) {
        let (Some(ratio), Some(x), Some(y)) = (ratio, node.input(0), node.output(0)) else {
            b.keep(node);
            continue;
        };
        b.set_scope(&node.label());
        let fact = b.fact(x).clone();
        let mask = keep(&mut b, i, &fact, ratio);
        let kept = b.cast(&mask, fact.dtype);
        let factor = b.mul_scalar(&kept, if ratio < 1.0 { 1.0 / (1.0 - ratio) } else { 0.0 });
        b.set_scope("");
        b.keep(Node::new("Mul", &[x, &factor], &[y]));
        if let Some(own) = node.output(1) {
            b.keep(Node::new("Identity", &[&mask], &[own]));
        }
        i += 1;
    }
    b.finish()
}

/// The training form for steps that are fed their random numbers: inputs of uniform ones, behind the graph's own.
pub fn fed(graph: Graph, facts: Facts) -> (Graph, Facts) {
    to_training(graph, facts, |b, i, fact, ratio| {
        let noise = b.input(&format!("merge.dropout{i}"), Fact::new(DType::F32, &fact.shape));
        let ratio = b.scalar_like(&noise, ratio);
        b.op("GreaterOrEqual", &[&noise, &ratio])
    })
}

/// What a network's steps are fed for its dropout.
#[derive(Default)]
pub struct Drops {
    /// The inputs of [`fed`].
    facts: Vec<Fact>,
    /// Rows of a run.
    rows: usize,
}

impl Drops {
    /// Those of a graph for so many `rows`.
    pub fn of(graph: &Graph, facts: &Facts, rows: usize) -> Self {
        let of = |node: &Node| facts.get(idle(graph, node)?.1).map(|fact| Fact::new(DType::F32, &fact.shape));
        Self { facts: graph.nodes.iter().filter_map(of).collect(), rows: rows.max(1) }
    }

    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// Uniform numbers for a run whose rows begin at `first` of all rows of a step. Where values have their rows in front, each
    /// row has its own numbers, however a step is cut into runs.
    pub fn noise(&self, seed: u64, (split, step): (Split, usize), first: usize) -> Vec<Value> {
        let source = u64::from(split != Split::Train);
        let draw = |(i, fact): (usize, &Fact)| {
            let rows = match fact.shape.first() {
                Some(&front) if front % self.rows == 0 => self.rows,
                _ => 1,
            };
            let mut values: Vec<f32> = Vec::with_capacity(fact.len());
            for row in 0..rows {
                let place = stream::DROPOUT + ((2 * i as u64 + source) << 8);
                let mut random = generator(seed, place, ((step as u64) << 32) | (first + row) as u64);
                values.extend((0..fact.len() / rows).map(|_| random.random::<f32>()));
            }
            Value::host(Tensor::f32(&fact.shape, &values))
        };
        self.facts.iter().enumerate().map(draw).collect()
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::Result;
    use crate::onnx::{Attr, Model, WORKING_OPSET};
    use crate::runtime::{Executor, TractExecutor};

    /// `y = dropout(x)` with a ratio of a quarter, as `upgrade_with_dropout` gives it, for so many rows.
    fn graph(rows: usize) -> (Graph, Facts) {
        let mut b = Builder::new("drop");
        let x = b.input("x", Fact::new(DType::F32, &[rows, 2, 500]));
        let ratio = b.constant(Tensor::scalar(DType::F32, 0.25));
        let y = b.op("Dropout", &[&x, &ratio]);
        b.output_as("y", &y);
        b.finish()
    }

    #[test]
    fn what_stays_makes_up_for_what_is_left_out() -> Result<()> {
        let (graph, facts) = graph(4);
        let drops = Drops::of(&graph, &facts, 4);
        let (graph, facts) = fed(graph, facts);
        let mut program = TractExecutor::new(1)?.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
        let mut run = |step: usize| -> Result<Vec<f64>> {
            let mut feeds = vec![Value::host(Tensor::f32(&[4, 2, 500], &[3.0; 4000]))];
            feeds.extend(drops.noise(5, (Split::Train, step), 0));
            Ok(program.run(&feeds)?[0].to_host()?.to_f64())
        };
        let (first, second) = (run(0)?, run(1)?);
        assert!(first.iter().all(|&v| v == 0.0 || v == 4.0));
        // 4,000 draws: a standard deviation is 0.0068 of the chance.
        let kept = first.iter().filter(|&&v| v != 0.0).count() as f64 / 4000.0;
        assert!((kept - 0.75).abs() < 0.03, "{kept}");
        let alike = first.iter().zip(&second).filter(|(a, b)| a == b).count() as f64 / 4000.0;
        assert!((alike - (0.75 * 0.75 + 0.25 * 0.25)).abs() < 0.035, "{alike}");
        assert_eq!(first, run(0)?);
        Ok(())
    }

    #[test]
    fn rows_have_their_own_numbers_however_a_step_is_cut() -> Result<()> {
        let drops = |rows: usize| {
            let (graph, facts) = graph(rows);
            Drops::of(&graph, &facts, rows)
        };
        let numbers = |rows: usize, first: usize, split: Split| -> Result<Vec<f64>> {
            Ok(drops(rows).noise(1, (split, 7), first)[0].to_host()?.to_f64())
        };
        let whole = numbers(6, 0, Split::Train)?;
        assert_eq!(whole, [numbers(3, 0, Split::Train)?, numbers(3, 3, Split::Train)?].concat());
        assert_ne!(whole, numbers(6, 0, Split::Unlabelled)?);
        Ok(())
    }

    #[test]
    fn forms_of_all_operator_sets_drop_with_their_own_ratio() -> Result<()> {
        use crate::autodiff::prepare::{Kept, upgrade, upgrade_with_dropout};
        let old = Node::new("Dropout", &[&"x".into()], &[&"y".into()]);
        let mut given = Node::new("Dropout", &[&"x".into(), &"r".into()], &[&"y".into()]);
        let cases = [
            (7, old.clone().with("ratio", Attr::Float(0.125)), 0.125),
            (10, old.clone(), 0.5),
            (13, old, 0.5),
        ];
        let mut training = given.clone();
        training.inputs.push(Some("t".into()));
        // As TorchScript's exporter writes them.
        for node in [&mut given, &mut training] {
            node.outputs.push(Some("mask".into()));
        }
        for (opset, node, ratio) in cases.into_iter().chain([(22, given, 0.25), (14, training, 0.25)]) {
            let idle_form = node.input(2).is_none();
            let mut b = Builder::new("forms");
            b.input("x", Fact::new(DType::F32, &[2, 3]));
            b.graph_mut().initializers.insert("r".into(), Tensor::f32(&[], &[0.25]));
            b.graph_mut().initializers.insert("t".into(), Tensor::bool(&[], &[true]));
            b.graph_mut().nodes.push(node);
            b.set_fact(&"y".into(), Fact::new(DType::F32, &[2, 3]));
            b.output(&"y".into());
            let model = Model::new(b.finish().0, opset);
            let kept = upgrade_with_dropout(&model, Kept::All)?.graph;
            let found: Vec<f64> = kept.nodes.iter().filter_map(|n| Some(idle(&kept, n)?.0)).collect();
            assert_eq!(found, [ratio], "{opset}");
            assert!(!any(&upgrade(&model)?.graph), "{opset}");
            assert_eq!(any(&upgrade_with_dropout(&model, Kept::Idle)?.graph), idle_form, "{opset}");
        }
        Ok(())
    }
}
