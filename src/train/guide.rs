//! A source at work on the target's data: its answers, from which the target can learn, and its activations, which the
//! target's are held against.

use super::align::{Show, deviation, observed};
use super::batches::shown;
use super::examples::Data;
use super::network::Network;
use super::session::Split;
use crate::data::{Bound, Dataset, Shift, show};
use crate::error::{Error, Result};
use crate::onnx::{Fact, Tensor, ValueId};
use crate::runtime::{Compiled, Executor, Value, run_jobs};
use std::collections::HashMap;
use std::num::NonZeroUsize;

/// A model that reads the run's data.
pub struct Guide {
    train: Bound,
    val: Option<Bound>,
    test: Option<Bound>,
    unlabelled: Option<Bound>,
    program: Box<dyn Compiled>,
    inputs: Vec<(ValueId, Fact)>,
    batch: usize,
    lanes: NonZeroUsize,
    /// The program's weights, and their values as they came.
    weights: Vec<ValueId>,
    own: Vec<Value>,
}

/// Rows on which activations are measured.
pub const MEASURED: usize = 256;

impl Guide {
    /// # Errors
    /// Why this model can't read this data.
    pub fn open(
        network: &Network,
        data: Data<'_>,
        views: &[&dyn Show],
        executor: &dyn Executor,
    ) -> Result<Self> {
        if network.head.is_empty() {
            return Err(headless(network));
        }
        let graph = &network.file.model.graph;
        let bind = |d: Option<&Dataset>| d.map(|d| d.bind_to(graph)).transpose();
        let (model, facts, weights) = observed(network, views)?;
        let value = |id: &ValueId| network.model.graph.initializers.get(id).cloned().map(Value::host);
        Ok(Self {
            train: data.train.bind_to(graph)?,
            val: bind(data.val)?,
            test: bind(data.test)?,
            unlabelled: bind(data.unlabelled)?,
            program: executor.compile(&model, &facts)?,
            inputs: network.inputs.clone(),
            batch: network.batch,
            lanes: executor.lanes(),
            own: weights.iter().filter_map(value).collect(),
            weights,
        })
    }

    /// What was done to the data to make them fit it, in sentences for the user.
    pub fn notes(&self) -> &[String] {
        &self.train.notes
    }

    /// Values for the program's weights, from tensors by name; those that aren't there are as they came.
    pub fn with(&self, tensors: &HashMap<ValueId, Tensor>) -> Vec<Value> {
        let value = |(id, own): (&ValueId, &Value)| {
            tensors.get(id).map_or_else(|| own.clone(), |t| Value::host(t.cast(own.fact().dtype)))
        };
        self.weights.iter().zip(&self.own).map(value).collect()
    }

    /// The answer to rows of a data set, then the views: each a tensor with `rows.len()` rows. `shift` moves images first;
    /// `weights` are the program's, where they aren't as they came.
    pub fn observe(
        &mut self,
        split: Split,
        rows: &[usize],
        shift: Option<Shift>,
        weights: Option<&[Value]>,
    ) -> Result<Vec<Tensor>> {
        let bound = match split {
            Split::Train | Split::HeldOut => &self.train,
            Split::Val => self.val.as_ref().unwrap_or(&self.train),
            Split::Test => self.test.as_ref().unwrap_or(&self.train),
            Split::Unlabelled => self.unlabelled.as_ref().unwrap_or(&self.train),
        };
        let weights = weights.unwrap_or(&self.own);
        let mut parts: Vec<(Vec<f32>, Vec<usize>)> = vec![];
        let size = self.batch.max(1);
        let feeds = |chunk: &&[usize]| {
            let mut feeds = shown(bound, chunk, size, &self.inputs, shift)?;
            feeds.extend_from_slice(weights);
            Ok(feeds)
        };
        run_jobs(&mut *self.program, self.lanes, rows.chunks(size), feeds, |chunk, outputs| {
            parts.resize_with(outputs.len(), Default::default);
            for ((values, shape), output) in parts.iter_mut().zip(&outputs) {
                let tensor = output.to_host()?;
                let width = tensor.len() / size;
                values.extend(tensor.to_f32().iter().take(chunk.len() * width));
                *shape = tensor.shape().get(1..).unwrap_or(&[]).to_vec();
            }
            Ok(())
        })?;
        let tensors = parts.iter().map(|(values, shape)| {
            let width = values.len() / rows.len().max(1);
            let fits = shape.iter().product::<usize>() == width;
            let shape = if fits { shape.clone() } else { vec![width] };
            Tensor::f32(&[&[rows.len()], &shape[..]].concat(), values)
        });
        Ok(tensors.collect())
    }

    /// The answers to rows of a data set, rows × numbers.
    pub fn answers(&mut self, split: Split, rows: &[usize], shift: Option<Shift>) -> Result<Tensor> {
        let answer = self.observe(split, rows, shift, None)?.into_iter().next();
        let answer =
            answer.ok_or_else(|| Error::data(self.train.path(), "the source gave no answer to it"))?;
        Ok(answer.reshaped(&[rows.len(), answer.len() / rows.len().max(1)]))
    }

    /// The views on some of the training data.
    pub fn sample(&mut self, rows: &[usize], weights: Option<&[Value]>) -> Result<Vec<Tensor>> {
        let rows = &rows[..rows.len().min(MEASURED)];
        Ok(self.observe(Split::Train, rows, None, weights)?.split_off(1))
    }
    /// Standard deviations of the views on some of the training data.
    pub fn deviations(&mut self, rows: &[usize], weights: Option<&[Value]>) -> Result<Vec<f64>> {
        Ok(self.sample(rows, weights)?.iter().map(deviation).collect())
    }
}

fn headless(network: &Network) -> Error {
    Error::model(&network.file.path, "has no output with an answer for each row")
}

/// Whether `source`'s answers are the target's kind.
pub fn can_teach(source: &Network, target: &Network) -> Result<()> {
    let (theirs, ours) = (&source.head, &target.head);
    if theirs.is_empty() {
        return Err(headless(source));
    }
    if theirs.corresponds_to(ours) {
        return Ok(());
    }
    let what = match theirs.width() == ours.width() {
        true => format!(
            "answers with {} a row, whose classes don't lie where the target's {} has them",
            show(&theirs.shape),
            show(&ours.shape)
        ),
        false => {
            format!("answers with {} numbers a row, the target with {}", theirs.width(), ours.width())
        }
    };
    Err(Error::model(&source.file.path, what))
}
