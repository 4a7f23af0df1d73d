//! Batch normalisation as in training: the statistics of the batch itself, and running ones that follow them.
//!
//! [`to_training`] rewrites a graph, for exported steps and for our own. An exported step moves the running statistics itself;
//! in ours the graph [reports](report_batch) those of the batch, and [`Running`] follows. As ONNX defines it, the variance is that
//! of the batch (biased), not an estimate of the data's.

use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, Graph, Tensor, ValueId};
use crate::runtime::Value;
use std::collections::HashSet;
use std::path::Path;

/// A running mean or variance that is a weight of the file.
#[derive(Clone, Debug)]
pub struct Statistic {
    pub name: ValueId,
    /// The value that takes its place after a step.
    pub next: ValueId,
    /// The part of the old statistic in the next one.
    pub momentum: f64,
}

/// ONNX's default.
const MOMENTUM: f32 = 0.9;

/// The running statistics of the graph's layers that could follow batches, if `free` says so of each.
pub fn statistics(graph: &Graph, free: impl Fn(&ValueId) -> bool) -> Vec<ValueId> {
    to_training(&mut graph.clone(), free).into_iter().map(|s| s.name).collect()
}

/// Turns inference-time `BatchNormalization` of the graph into its training form, but for layers of which a statistic isn't
/// `free`. Returns what it updates.
pub fn to_training(graph: &mut Graph, free: impl Fn(&ValueId) -> bool) -> Vec<Statistic> {
    let mut statistics: Vec<Statistic> = vec![];
    let mut seen: HashSet<ValueId> = HashSet::new();
    let initializers = &graph.initializers;
    for node in graph.nodes.iter_mut().filter(|n| n.is("BatchNormalization")) {
        let inference = node.int_or("training_mode", 0) == 0 && node.outputs.len() == 1;
        if !inference || [3, 4].iter().any(|&i| node.input(i).is_some_and(|id| !free(id))) {
            continue;
        }
        node.attrs.insert("training_mode".into(), Attr::Int(1));
        let momentum = f64::from(node.float_or("momentum", MOMENTUM));
        for (input, what) in [(3, "running_mean"), (4, "running_var")] {
            let next = ValueId::new(format!("{}/{what}", node.label()));
            node.outputs.push(Some(next.clone()));
            let own = node.input(input).filter(|id| initializers.contains_key(*id));
            // Statistics that several layers share follow the first of them.
            if let Some(name) = own.filter(|id| seen.insert((*id).clone())) {
                statistics.push(Statistic { name: name.clone(), next, momentum });
            }
        }
    }
    statistics
}

/// Makes layers in training form put out the statistics of the batch alone.
pub fn report_batch(graph: &mut Graph) {
    for node in graph.nodes.iter_mut().filter(|n| n.is("BatchNormalization") && n.outputs.len() > 1) {
        node.attrs.insert("momentum".into(), Attr::Float(0.0));
    }
}

/// Notes type and shape of the updated statistics.
pub fn facts(b: &mut Builder) {
    let nodes: Vec<_> = b.graph().nodes.iter().filter(|n| n.is("BatchNormalization")).cloned().collect();
    for node in nodes {
        for (input, output) in [(3, 1), (4, 2)] {
            if let (Some(old), Some(new)) = (node.input(input), node.output(output))
                && let Some(fact) = b.facts().get(old).cloned()
            {
                b.set_fact(new, fact);
            }
        }
    }
}

/// A running statistic beside an arm in training.
#[derive(Clone, Debug)]
pub struct Running {
    pub name: ValueId,
    pub value: Tensor,
    momentum: f64,
}

impl Running {
    pub fn new(statistic: &Statistic, start: &Tensor) -> Self {
        Self { name: statistic.name.clone(), value: start.clone(), momentum: statistic.momentum }
    }
    /// Moves towards what was seen in a batch.
    pub fn follow(&mut self, batch: &Value) -> Result<()> {
        let (old, new) = (self.value.to_f64(), batch.to_host()?.to_f64());
        let moved = |(o, n): (&f64, &f64)| self.momentum * o + (1.0 - self.momentum) * n;
        let values: Vec<f64> = old.iter().zip(&new).map(moved).collect();
        self.value = Tensor::from_f64(self.value.dtype(), self.value.shape(), &values);
        Ok(())
    }
}

/// Why a model can't be trained by the statistics of batches: it has no layer that could.
pub fn none_in(path: &Path) -> Error {
    let what = "has no batch normalisation whose running statistics could be trained (--train-bn)";
    Error::model(path, what).hint(
        "exporters fold it into convolutions unless they are told to keep it: torch.onnx.export(…, dynamo=False, \
         training=torch.onnx.TrainingMode.PRESERVE)",
    )
}

/// Says why a model can't be trained by the statistics of its batches.
///
/// # Errors
/// [`Error::Usage`] where a step is less than two rows side by side, [`Error::Model`] for a model without layers that could.
pub fn check(path: &Path, statistics: &[ValueId], rows: usize, single_because: Option<&str>) -> Result<()> {
    if statistics.is_empty() {
        return Err(none_in(path));
    }
    if let Some(why) = single_because {
        let what =
            format!("--train-bn needs the rows of a step side by side, which this model doesn't take: {why}");
        return Err(Error::usage(what));
    }
    match rows {
        0 | 1 => {
            Err(Error::usage("--train-bn needs steps of two rows or more: a single one has no variance")
                .hint("raise --batch"))
        }
        _ => Ok(()),
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::onnx::{DType, Fact, Model, save};
    use crate::runtime::TractExecutor;
    use crate::train::fit::LossProgram;
    use crate::train::model_step::Objective;
    use crate::train::network::{Network, Purpose};

    /// `BatchNormalization(x · w)` of two columns, with a momentum of 0.75.
    fn model(path: &Path) {
        let mut b = Builder::new("norm");
        let x = b.input("x", Fact::new(DType::F32, &[1, 2]));
        let w = b.initializer("w", Tensor::f32(&[2, 2], &[1.0, 0.0, 0.0, 2.0]));
        let hidden = b.matmul(&x, &w);
        let mut vector = |name: &str, v: [f32; 2]| b.initializer(name, Tensor::f32(&[2], &v));
        let [scale, shift] = [vector("scale", [1.0, 1.0]), vector("shift", [0.0, 0.0])];
        let [mean, variance] = [vector("mean", [0.0, 4.0]), vector("var", [1.0, 1.0])];
        let y = b.op_with(
            "BatchNormalization",
            &[&hidden, &scale, &shift, &mean, &variance],
            &[("momentum", Attr::Float(0.75))],
        );
        b.set_fact(&y, Fact::new(DType::F32, &[1, 2]));
        b.output(&y);
        save(&Model::new(b.finish().0, 18), path).unwrap();
    }

    #[test]
    fn running_statistics_follow_the_batch_with_its_biased_variance() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("norm.onnx");
        model(&path);
        let executor = TractExecutor::new(1)?;
        let mut network = Network::open(&path, 4, Purpose::default(), &executor)?;
        network.train_norms(&[])?;
        let weights = network.trainable(&[])?;
        let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
        assert!(!names.contains(&"mean".into()) && names.contains(&"scale".into()), "{names:?}");
        let step = network.step(&names, Objective::Vectors { width: 2 })?;
        let mut program = LossProgram::new(&step, &step.weights, &executor, false)?;
        let x = Tensor::f32(&[4, 2], &[1.0, 1.0, 2.0, 0.0, 3.0, 0.0, 6.0, 1.0]);
        let feeds = [x, Tensor::zeros(DType::F32, &[4, 2])].map(Value::host).to_vec();
        let value = |id: &ValueId| weights.iter().find(|(w, _)| w == id).map(|(_, t)| Value::host(t.clone()));
        let merged: Vec<Value> = step.weights.iter().filter_map(value).collect();
        let done = program.run(vec![feeds], &merged, None)?;
        // Normalised, and so with a mean square of nearly one.
        assert!((done.loss - 1.0).abs() < 1e-4, "{}", done.loss);
        let initial = &network.model.graph.initializers;
        for (statistic, seen) in step.statistics.iter().zip(&done.statistics) {
            let mut running = Running::new(statistic, &initial[&statistic.name]);
            running.follow(seen)?;
            // Means 3 and 1, variances 3.5 and 1 (not 4.67 and 1.33).
            let expected = if statistic.name.as_str() == "mean" { [0.75, 3.25] } else { [1.625, 1.0] };
            let found = running.value.to_f64();
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5),
                "{statistic:?}: {found:?}"
            );
        }
        assert_eq!(step.statistics.len(), 2);
        Ok(())
    }

    #[test]
    fn a_frozen_layer_keeps_its_statistics_and_normalises_by_them() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("norm.onnx");
        model(&path);
        let executor = TractExecutor::new(1)?;
        let mut network = Network::open(&path, 4, Purpose::default(), &executor)?;
        assert!(network.train_norms(&["var".into()]).is_err(), "nothing is left to follow");
        let mut single = Network::open(&path, 1, Purpose::default(), &executor)?;
        assert!(single.train_norms(&[]).is_err(), "a row has no variance");
        Ok(())
    }
}
