//! A start by least squares: the target's layers, one after the other, are given the weights that bring what they make of
//! their inputs closest to what the paired layers of the source make of the same examples.
//!
//! Wanted of a layer whose interface is paired is the source's value before its nonlinearity, of the channels chosen by
//! [`choice::leading`], on the target's grid; of the head the source's answers, where they are the target's kind; of any other
//! layer behind a fitted one, what the target itself made there before, from its new inputs. No labels are read. The adapter
//! goes on from there (docs/transfer.md).

mod choice;
mod lessons;
mod normal;
mod recurrent;
mod rows;
mod unit;

pub use choice::choose;
use lessons::Wanted;
pub use lessons::{Teaching, Tutor};
pub use unit::Unit;

use super::align::Show;
use super::batches::{Data, Examples};
use super::guide::Guide;
use super::network::Network;
use crate::error::Result;
use crate::onnx::{Facts, Model, Tensor, ValueId};
use crate::params::{Cell, Layer, Matrix, MatrixView, Weight};
use crate::runtime::{Executor, Value};
use rows::Rows;
use std::collections::HashMap;

/// Most rows that are looked at.
const MOST_ROWS: usize = 2048;
/// Most numbers that are kept of what is wanted (a quarter of a gigabyte).
const MOST_NUMBERS: usize = 1 << 26;
/// Equations for each unknown that are enough, and rows that are always looked at: positions of one row are much alike.
const ENOUGH: usize = 100;
const FEWEST_ROWS: usize = 512;
/// Rows of training for each row that a layer is shown: a layer costs half a forward pass on average, a step three for each row
/// of its batch, so that a fit takes about a tenth of the training behind it.
const SHARE: usize = 2;

/// The layers of a target that can be fitted, and how it runs.
pub struct Learner {
    layers: Vec<Unit>,
    /// Shows what the layers make, with weights as they came.
    own: Guide,
}

impl Learner {
    /// # Errors
    /// Where the target can't run on the data.
    pub fn open(
        target: &Network,
        layers: Vec<Unit>,
        data: Data<'_>,
        executor: &dyn Executor,
    ) -> Result<Self> {
        let shown: Vec<&dyn Show> = layers.iter().map(|unit| unit as &dyn Show).collect();
        let own = Guide::open(target, data, &shown, executor)?;
        Ok(Self { layers, own })
    }
}

/// Weights of the target to start from, by name: those that were fitted, of `trainable` ones. Where several tutors teach a
/// layer, the first does. `effort` is how many rows training will go through.
pub fn fit(
    target: &Network,
    learner: &mut Learner,
    mut teachings: Vec<Teaching<'_>>,
    trainable: &[(ValueId, Tensor)],
    examples: &Examples,
    effort: usize,
    executor: &dyn Executor,
) -> Result<HashMap<ValueId, Tensor>> {
    let numbers: usize = learner.layers.iter().map(|unit| unit.shown().iter().product::<usize>()).sum();
    let affordable = effort / SHARE / learner.layers.len().max(1);
    let count = MOST_ROWS.min(MOST_NUMBERS / numbers.max(1)).min(affordable).max(target.batch);
    let rows = Rows::some(examples, count);
    let mut seen = vec![];
    for teaching in &mut teachings {
        let weights = teaching.tutor.guide.with(&teaching.weights);
        seen.push(rows.observe(&mut teaching.tutor.guide, Some(&weights))?);
    }
    let mut own: Option<Vec<Tensor>> = None;
    let fit = Fit { target, trainable, rows: &rows, executor };
    let tables = teachings.iter().rev().flat_map(Teaching::copied);
    let mut fitted: HashMap<ValueId, Tensor> = tables.filter(|(id, _)| fit.may(id)).collect();
    for (i, layer) in learner.layers.iter().enumerate() {
        let lesson = teachings.iter().zip(&seen).find_map(|(t, seen)| t.wanted(i, layer, seen));
        if lesson.is_none() && fitted.is_empty() {
            continue;
        }
        let whole = lesson.as_ref().is_some_and(Wanted::is_whole);
        if !whole && own.is_none() {
            own = Some(rows.observe(&mut learner.own, None)?);
        }
        let before = own.as_ref().map(|own| &own[i + 1]);
        let wanted = match &lesson {
            Some(lesson) => lesson.beside(before),
            None => before.cloned(),
        };
        if let Some(wanted) = wanted {
            let now = learner.own.with(&fitted);
            fitted.extend(match layer {
                Unit::Layer(layer) => fit.solve(layer, &now, &wanted)?,
                Unit::Cell(cell) => fit.solve_cell(cell, &now, &wanted)?,
            });
        }
    }
    Ok(fitted)
}

/// What each layer is solved with.
struct Fit<'a> {
    target: &'a Network,
    trainable: &'a [(ValueId, Tensor)],
    rows: &'a Rows<'a>,
    executor: &'a dyn Executor,
}

impl Fit<'_> {
    /// Whether a weight may be changed.
    fn may(&self, id: &ValueId) -> bool {
        self.trainable.iter().any(|(name, _)| name == id)
    }

    /// The layer's weight and bias that come closest to what is wanted, as far as they may be changed; `now` are the target's
    /// weights. Nothing for a layer that can't be fitted.
    fn solve(&self, layer: &Layer, now: &[Value], wanted: &Tensor) -> Result<Vec<(ValueId, Tensor)>> {
        let weight = self.target.params.weight(layer.weight);
        let moves = self.may(&weight.name) && layer.scale.iter().all(|s| s.is_normal());
        let view = weight.view.as_ref().filter(|v| moves && v.cols() <= normal::MOST_FEATURES);
        let Some(view) = view else { return Ok(vec![]) };
        let program = normal::program(self.target, layer, view)?;
        let sums = self.sums(&program, now, wanted, view)?;
        let value = |id: &ValueId| self.target.model.graph.initializers.get(id);
        let bias = layer.bias.as_ref().and_then(|id| Some((id, value(id)?)));
        let moving = bias.filter(|(id, _)| self.may(id));
        let fixed = match (bias, moving) {
            (_, Some(_)) => None,
            (Some((_, values)), None) => Some(values.to_f64()),
            (None, None) => Some(vec![0.0; view.out]),
        };
        let solved = sums.solve(&layer.scale, &layer.shift, fixed.as_deref());
        let Some((matrix, offset)) = solved else { return Ok(vec![]) };
        let mut found = vec![(weight.name.clone(), view.tensor_of(&matrix, &weight.shape, weight.dtype))];
        found.extend(
            moving.map(|(id, old)| (id.clone(), Tensor::from_f64(old.dtype(), old.shape(), &offset))),
        );
        Ok(found)
    }

    /// The same for a recurrent layer.
    fn solve_cell(&self, cell: &Cell, now: &[Value], wanted: &Tensor) -> Result<Vec<(ValueId, Tensor)>> {
        let [inputs, recurrence] = [cell.inputs, cell.recurrence].map(|id| self.target.params.weight(id));
        let views = inputs.view.as_ref().zip(recurrence.view.as_ref());
        let Some(views) = views.filter(|_| self.may(&inputs.name) && self.may(&recurrence.name)) else {
            return Ok(vec![]);
        };
        let initializers = &self.target.model.graph.initializers;
        let old: Vec<f64> = cell.biases.iter().map(|(id, i)| initializers[id].to_f64()[*i]).collect();
        let moves = !old.is_empty() && cell.biases.iter().all(|(id, _)| self.may(id));
        let mut solved = recurrent::Weights::new(cell);
        for equation in recurrent::Equation::all(cell) {
            let view = equation.view(cell);
            if view.cols() > normal::MOST_FEATURES {
                return Ok(vec![]);
            }
            let program = equation.program(self.target, cell)?;
            let sums = self.sums(&program, now, wanted, &view)?;
            let (scale, shift) = (vec![1.0; view.out], vec![0.0; view.out]);
            let fixed = (!moves).then(|| equation.fixed(cell, &old));
            let Some(solution) = sums.solve(&scale, &shift, fixed.as_deref()) else { return Ok(vec![]) };
            equation.place(cell, &solution, &mut solved);
        }
        let tensor = |weight: &Weight, view: &MatrixView, values: Vec<f32>| {
            let matrix = Matrix::new(view.out, view.cols(), values);
            (weight.name.clone(), view.tensor_of(&matrix, &weight.shape, weight.dtype))
        };
        let mut found =
            vec![tensor(inputs, views.0, solved.inputs), tensor(recurrence, views.1, solved.recurrence)];
        if moves {
            found.extend(self.biases(cell, &solved.biases));
        }
        Ok(found)
    }

    /// The initializers that a cell's biases are stored in, with these values.
    fn biases(&self, cell: &Cell, values: &[f64]) -> Vec<(ValueId, Tensor)> {
        let mut stored: HashMap<&ValueId, Vec<f64>> = HashMap::new();
        for ((id, i), value) in cell.biases.iter().zip(values) {
            let old = || self.target.model.graph.initializers[id].to_f64();
            stored.entry(id).or_insert_with(old)[*i] = *value;
        }
        let tensor = |(id, values): (&ValueId, Vec<f64>)| {
            let old = &self.target.model.graph.initializers[id];
            (id.clone(), Tensor::from_f64(old.dtype(), old.shape(), &values))
        };
        stored.into_iter().map(tensor).collect()
    }

    /// The normal equations of a layer: `program` makes them for a batch.
    fn sums(
        &self,
        (model, facts): &(Model, Facts),
        now: &[Value],
        wanted: &Tensor,
        view: &MatrixView,
    ) -> Result<normal::Sums> {
        let positions = wanted.shape()[2..].iter().product::<usize>();
        let mut program = self.executor.compile(model, facts)?;
        let mut sums = normal::Sums::new(view);
        let enough = ENOUGH * view.cols() / positions.max(1);
        let batches = self.rows.batches(self.target.batch, enough.max(FEWEST_ROWS));
        for some in batches.chunks(self.executor.lanes().max(1)) {
            let mut runs = vec![];
            for batch in some {
                let (mut feeds, more) = self.rows.feeds(self.target, *batch, wanted)?;
                feeds.extend(now.iter().cloned().chain(more));
                runs.push(feeds);
            }
            for outputs in program.run_each(&runs)? {
                if let [gram, cross] = &outputs[..] {
                    sums.add(&gram.to_host()?, &cross.to_host()?);
                }
            }
        }
        Ok(sums)
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::data::{self, DataOptions};
    use crate::onnx::{Attr, Builder, DType, Dim, Fact, Model};
    use crate::params::{InterfaceId, Pairing};
    use crate::runtime::TractExecutor;
    use crate::train::session::Split;
    use std::path::{Path, PathBuf};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
    }

    /// A block as mobile networks have it: a stem, a filter a channel, a projection onto the stream, and a head.
    fn with_a_stream(path: &Path) -> Result<()> {
        let mut b = Builder::new("block");
        let mut count = 0;
        let mut weight = |b: &mut Builder, shape: &[usize], fan_in: usize| {
            count += 1;
            let value = |i: usize| ((i * 7907 + count * 104_729) % 1013) as f32 / 1013.0 - 0.5;
            let scale = 4.0 / (fan_in as f32).sqrt();
            let values: Vec<f32> = (0..shape.iter().product()).map(|i| scale * value(i)).collect();
            b.initializer(&format!("w{count}"), Tensor::f32(shape, &values))
        };
        let x = b.input("image", Fact::new(DType::F32, &[1, 1, 8, 8]));
        let pads = [("pads", vec![1i64; 4].into())];
        let stem = weight(&mut b, &[6, 1, 3, 3], 9);
        let x = b.op_with("Conv", &[&x, &stem], &pads);
        let x = b.op("Relu", &[&x]);
        let expand = weight(&mut b, &[12, 6, 1, 1], 6);
        let y = b.op("Conv", &[&x, &expand]);
        let y = b.op("Relu", &[&y]);
        let filter = weight(&mut b, &[12, 1, 3, 3], 9);
        let y = b.op_with("Conv", &[&y, &filter], &[("pads", vec![1i64; 4].into()), ("group", 12i64.into())]);
        let y = b.op("Relu", &[&y]);
        let project = weight(&mut b, &[6, 12, 1, 1], 12);
        let y = b.op("Conv", &[&y, &project]);
        let x = b.add(&x, &y);
        let x = b.op_with("Flatten", &[&x], &[("axis", 1i64.into())]);
        let head = weight(&mut b, &[384, 10], 384);
        let answer = b.matmul(&x, &head);
        b.output(&answer);
        let (mut graph, _) = b.finish();
        graph.inputs[0].shape = Some([1, 1, 8, 8].map(Dim::Known).to_vec());
        crate::onnx::save(&Model::new(graph, crate::onnx::WORKING_OPSET), path)
    }

    /// Rows of an image, one after the other, and a head on the states after the last.
    fn with_a_cell(path: &Path, (op, gates): (&str, usize), direction: &str, reset: i64) -> Result<()> {
        const HIDDEN: usize = 12;
        let mut b = Builder::new("sequence");
        let mut count = 0;
        let mut weight = |b: &mut Builder, shape: &[usize], scale: f32| {
            count += 1;
            let value = |i: usize| ((i * 7907 + count * 104_729) % 1013) as f32 / 1013.0 - 0.5;
            let values: Vec<f32> = (0..shape.iter().product()).map(|i| scale * value(i)).collect();
            b.initializer(&format!("w{count}"), Tensor::f32(shape, &values))
        };
        let directions = if direction == "bidirectional" { 2 } else { 1 };
        let x = b.input("image", Fact::new(DType::F32, &[1, 1, 8, 8]));
        let x = b.reshape(&x, &[1, 8, 8]);
        let x = b.transpose(&x, &[1, 0, 2]);
        let w = weight(&mut b, &[directions, gates * HIDDEN, 8], 2.0);
        let r = weight(&mut b, &[directions, gates * HIDDEN, HIDDEN], 1.0);
        let biases = weight(&mut b, &[directions, 2 * gates * HIDDEN], 0.5);
        let mut attributes: Vec<(&str, Attr)> =
            vec![("hidden_size", (HIDDEN as i64).into()), ("direction", Attr::Str(direction.into()))];
        if op == "GRU" {
            attributes.push(("linear_before_reset", reset.into()));
        }
        let inputs = [&x, &w, &r, &biases].map(Some);
        let states = b.op_full("", op, &inputs, &attributes, 2).remove(1);
        b.set_fact(&states, Fact::new(DType::F32, &[directions, 1, HIDDEN]));
        let states = b.transpose(&states, &[1, 0, 2]);
        let states = b.reshape(&states, &[1, directions * HIDDEN]);
        let head = weight(&mut b, &[directions * HIDDEN, 10], 2.0);
        let answer = b.matmul(&states, &head);
        b.output(&answer);
        let (mut graph, _) = b.finish();
        graph.inputs[0].shape = Some([1, 1, 8, 8].map(Dim::Known).to_vec());
        crate::onnx::save(&Model::new(graph, crate::onnx::WORKING_OPSET), path)
    }

    /// Takes a network's matrices away from a copy of it and fits the copy to it: on how many of 200 rows the copy then answers the
    /// same class, before and after. Nothing but least squares, no labels.
    fn regained(path: &Path, layers: usize) -> Result<(usize, usize)> {
        let executor = TractExecutor::new(1)?;
        let folder = tempfile::tempdir().expect("a folder for the copy");
        let blank = folder.path().join("blank.onnx");
        let mut model = crate::onnx::read(path)?.model;
        for (i, tensor) in model.graph.initializers.values_mut().enumerate() {
            if tensor.dtype().is_float() && (2..=4).contains(&tensor.rank()) {
                let noise = |at: usize| ((at + i) * 7919 % 1009) as f32 / 1009.0 - 0.5;
                *tensor = Tensor::f32(tensor.shape(), &(0..tensor.len()).map(noise).collect::<Vec<_>>());
            }
        }
        crate::onnx::save(&model, &blank)?;
        let train = data::open(&fixture("digits_train.npz"), &DataOptions::default())?;
        let all = Data { train: &train, val: None, test: None, unlabelled: None };
        let source = Network::open(path, 32, Some(&train), &executor)?;
        let target = Network::open(&blank, 32, Some(&train), &executor)?;
        let declared: Vec<_> = target.file.model.graph.required_inputs().cloned().collect();
        let examples = Examples::new(all, &declared, 0)?;
        let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
        let mut learner = Learner::open(&target, Unit::all(&target), all, &executor)?;
        let names: Vec<&str> =
            learner.layers.iter().map(|l| target.params.weight(l.weight()).name.as_str()).collect();
        assert_eq!(names.len(), layers, "{names:?}");
        let tutor = Tutor::open((&target, &learner.layers), &source, &pairing, true, all, &executor)?;
        let mut tutor = tutor.expect("the same layers correspond");
        assert_eq!(tutor.lessons.len(), layers, "every layer has its partner");
        let channels = |id: InterfaceId| target.params.interface(id).channels;
        let choices = pairing.interfaces.iter().map(|&p| (p, (0..channels(p.0)).collect())).collect();
        let weights = source.model.graph.initializers.clone().into_iter().collect();
        let teaching = Teaching { tutor: &mut tutor, weights, choices: &choices };
        let trainable = target.trainable(&[])?;
        let fitted = fit(&target, &mut learner, vec![teaching], &trainable, &examples, 1 << 16, &executor)?;
        let rows: Vec<usize> = (0..200).collect();
        let weights = learner.own.with(&fitted);
        let own = learner.own.observe(Split::Train, &rows, None, None)?;
        let now = learner.own.observe(Split::Train, &rows, None, Some(&weights))?;
        let wanted = tutor.guide.observe(Split::Train, &rows, None, None)?;
        let same = |a: &Tensor, b: &Tensor| {
            let best = |t: &Tensor, row: usize| {
                let values = t.to_f32()[row * 10..(row + 1) * 10].to_vec();
                (0..10).max_by(|&i, &j| values[i].total_cmp(&values[j]))
            };
            rows.iter().filter(|&&r| best(a, r) == best(b, r)).count()
        };
        Ok((same(&own[0], &wanted[0]), same(&now[0], &wanted[0])))
    }

    #[test]
    fn a_chain_of_layers_gets_back_what_it_has_lost() -> Result<()> {
        let (before, after) = regained(&fixture("digits_small_cnn.onnx"), 4)?;
        assert!(before < 60 && after > 190, "{before}, {after}");
        Ok(())
    }

    #[test]
    fn streams_and_filters_of_single_channels_get_back_what_they_have_lost() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder for the model");
        let path = folder.path().join("block.onnx");
        with_a_stream(&path)?;
        let (before, after) = regained(&path, 5)?;
        assert!(before < 100 && after > 180, "{before}, {after}");
        Ok(())
    }

    #[test]
    fn recurrent_layers_get_back_what_they_have_lost() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder for the model");
        let path = folder.path().join("sequence.onnx");
        for (cell, direction, reset) in [
            (("LSTM", 4), "forward", 0),
            (("LSTM", 4), "bidirectional", 0),
            (("GRU", 3), "forward", 0),
            (("GRU", 3), "reverse", 1),
            (("RNN", 1), "forward", 0),
        ] {
            with_a_cell(&path, cell, direction, reset)?;
            let (before, after) = regained(&path, 2)?;
            assert!(before < 100 && after > 180, "{cell:?}, {direction}, {reset}: {before}, {after}");
        }
        Ok(())
    }

    #[test]
    fn a_transformer_gets_back_what_it_has_lost() -> Result<()> {
        let (before, after) = regained(&fixture("digits_transformer.onnx"), 10)?;
        assert!(before < 60 && after > 150, "{before}, {after}");
        Ok(())
    }
}
