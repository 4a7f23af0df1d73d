//! A start by least squares: the target's layers, one after the other, are given the weights that bring what they make of
//! their inputs closest to what the paired layers of the source make of the same examples.
//!
//! Wanted of a layer whose interface is paired is the source's value before its nonlinearity, of the channels chosen by
//! [`choice::leading`], on the target's grid; of the head the source's answers, where they are the target's kind; of any other
//! layer behind a fitted one, what the target itself made there before, from its new inputs. No labels are read. The adapter
//! goes on from there (docs/transfer.md).

mod choice;
mod embedding;
mod lessons;
mod mixed;
mod normal;
mod recurrent;
mod rows;
mod unit;

pub use choice::choose;
pub use embedding::mixtures;
use lessons::Wanted;
pub use lessons::{Teaching, Tutor};
pub use unit::Unit;

use super::align::Show;
use super::examples::{Data, Examples};
use super::guide::Guide;
use super::network::Network;
use crate::error::Result;
use crate::onnx::{Facts, Model, Tensor, ValueId};
use crate::params::{Cell, Layer, Matrix, MatrixView, Weight};
use crate::runtime::{Executor, Value, run_jobs};
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
        let filter = lesson.as_ref().and_then(|lesson| lesson.filter);
        let before = own.as_ref().map(|own| &own[filter.unwrap_or(i) + 1]);
        let wanted = match &lesson {
            Some(lesson) => lesson.beside(before),
            None => before.cloned(),
        };
        let Some(wanted) = wanted else { continue };
        let now = learner.own.with(&fitted);
        fitted.extend(match (layer, filter.map(|at| &learner.layers[at])) {
            (Unit::Layer(mixer), Some(Unit::Layer(filter))) => {
                let features = lesson.as_ref().map_or(&[][..], |lesson| &lesson.features);
                fit.solve_mixer((mixer, filter), &now, &wanted, features)?
            }
            (Unit::Layer(layer), _) => fit.solve(layer, &now, &wanted)?,
            (Unit::Cell(cell), _) => fit.solve_cell(cell, &now, &wanted)?,
        });
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

    fn value(&self, id: &ValueId) -> Option<&Tensor> {
        self.target.model.graph.initializers.get(id)
    }

    /// How a layer's weight is a matrix, where it may be changed to any end.
    fn moving_view(&self, layer: &Layer) -> Option<&MatrixView> {
        let weight = self.target.params.weight(layer.weight);
        let moves = self.may(&weight.name) && layer.scale.iter().all(|s| s.is_normal());
        weight.view.as_ref().filter(|_| moves)
    }

    /// A layer's bias, where it may be changed.
    fn moving_bias<'l>(&'l self, layer: &'l Layer) -> Option<(&'l ValueId, &'l Tensor)> {
        let id = layer.bias.as_ref().filter(|id| self.may(id))?;
        Some((id, self.value(id)?))
    }

    /// A layer's new matrix and offsets as the weight and the bias that store them; the latter only where it may be changed.
    fn placed(
        &self,
        layer: &Layer,
        view: &MatrixView,
        matrix: &Matrix,
        offsets: &[f64],
    ) -> Vec<(ValueId, Tensor)> {
        let weight = self.target.params.weight(layer.weight);
        let mut found = vec![(weight.name.clone(), view.tensor_of(matrix, &weight.shape, weight.dtype))];
        let bias = self.moving_bias(layer);
        found.extend(bias.map(|(id, old)| (id.clone(), Tensor::from_f64(old.dtype(), old.shape(), offsets))));
        found
    }

    /// The layer's weight and bias that come closest to what is wanted, as far as they may be changed; `now` are the target's
    /// weights. Nothing for a layer that can't be fitted.
    fn solve(&self, layer: &Layer, now: &[Value], wanted: &Tensor) -> Result<Vec<(ValueId, Tensor)>> {
        let view = self.moving_view(layer).filter(|view| view.cols() <= normal::MOST_FEATURES);
        let Some(view) = view else { return Ok(vec![]) };
        let program = normal::program(self.target, layer, view)?;
        let sums = self.sums(&program, now, wanted, view)?;
        let bias = layer.bias.as_ref().and_then(|id| self.value(id));
        let fixed = match (bias, self.moving_bias(layer)) {
            (_, Some(_)) => None,
            (Some(values), None) => Some(values.to_f64()),
            (None, None) => Some(vec![0.0; view.out]),
        };
        let solved = sums.solve(&layer.scale, &layer.shift, fixed.as_deref());
        Ok(solved.map_or_else(Vec::new, |(matrix, offsets)| self.placed(layer, view, &matrix, &offsets)))
    }

    /// The weight and bias of a layer that mixes channels for a filter behind it, of which `wanted` is wanted: of the source's
    /// `features`, where each of its channels learns.
    fn solve_mixer(
        &self,
        (mixer, filter): (&Layer, &Layer),
        now: &[Value],
        wanted: &Tensor,
        features: &[Option<usize>],
    ) -> Result<Vec<(ValueId, Tensor)>> {
        let both = self.moving_view(mixer).zip(mixed::as_one(self.target, mixer, filter));
        let Some((view, (whole, its))) = both else { return Ok(vec![]) };
        if its.cols() > normal::MOST_FEATURES {
            return Ok(vec![]);
        }
        let program = normal::program(self.target, &whole, &its)?;
        let sums = self.sums(&program, now, wanted, &its)?;
        let Some(mixtures) = mixed::mixtures(sums, &its, features) else { return Ok(vec![]) };
        let Some(old) = self.value(&self.target.params.weight(mixer.weight).name) else { return Ok(vec![]) };
        let mut matrix = view.matrix_of(old);
        let mut offsets = self.moving_bias(mixer).map(|(_, values)| values.to_f64()).unwrap_or_default();
        for (c, mixture) in mixtures.into_iter().enumerate() {
            let Some(mixture) = mixture else { continue };
            let row = &mut matrix.data[c * view.cols()..][..view.cols()];
            row.iter_mut().zip(&mixture.weights).for_each(|(w, p)| *w = (p / mixer.scale[c]) as f32);
            if let Some(offset) = offsets.get_mut(c) {
                *offset = (mixture.offset - mixer.shift[c]) / mixer.scale[c];
            }
        }
        Ok(self.placed(mixer, view, &matrix, &offsets))
    }

    /// The same for a recurrent layer.
    fn solve_cell(&self, cell: &Cell, now: &[Value], wanted: &Tensor) -> Result<Vec<(ValueId, Tensor)>> {
        let [inputs, recurrence] = [cell.inputs, cell.recurrence].map(|id| self.target.params.weight(id));
        let views = inputs.view.as_ref().zip(recurrence.view.as_ref());
        let Some(views) = views.filter(|_| self.may(&inputs.name) && self.may(&recurrence.name)) else {
            return Ok(vec![]);
        };
        let mut stored = self.stored_biases(cell);
        let old: Vec<f64> = cell.biases.iter().map(|(id, i)| stored[id][*i]).collect();
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
            for ((id, i), value) in cell.biases.iter().zip(&solved.biases) {
                stored.entry(id).and_modify(|values| values[*i] = *value);
            }
            found.extend(stored.into_iter().map(|(id, values)| {
                let old = &self.target.model.graph.initializers[id];
                (id.clone(), Tensor::from_f64(old.dtype(), old.shape(), &values))
            }));
        }
        Ok(found)
    }

    /// The initializers that a cell's biases are stored in.
    fn stored_biases<'c>(&self, cell: &'c Cell) -> HashMap<&'c ValueId, Vec<f64>> {
        let mut stored = HashMap::new();
        for (id, _) in &cell.biases {
            stored.entry(id).or_insert_with(|| self.target.model.graph.initializers[id].to_f64());
        }
        stored
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
        let feeds = |batch: &_| {
            let (mut feeds, more) = self.rows.feeds(self.target, *batch, wanted)?;
            feeds.extend(now.iter().cloned().chain(more));
            Ok(feeds)
        };
        run_jobs(&mut *program, self.executor.lanes(), batches, feeds, |_, outputs| {
            if let [gram, cross] = &outputs[..] {
                sums.add(&gram.to_host()?, &cross.to_host()?);
            }
            Ok(())
        })?;
        Ok(sums)
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests;
