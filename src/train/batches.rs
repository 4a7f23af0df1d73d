//! Batches of examples, step by step: augmented, and accompanied by what the sources say to them.

use super::TrainConfig;
use super::examples::{Examples, default_shift};
use super::guide::Guide;
use super::loudness::Voice;
use super::model_step::Objective;
use super::network::Network;
use super::ranks::Ranks;
use super::schedule::{Sampler, generator, stream};
use super::session::Split;
use crate::data::{Bound, Fill, Shift};
use crate::error::Result;
use crate::onnx::{Fact, Tensor, ValueId};
use crate::runtime::Value;

/// What a source gives to each step of an arm.
pub struct Help<'a> {
    pub guide: &'a mut Guide,
    pub teaches: bool,
    pub voice: Voice,
    /// Its activations' factors, one an alignment of this source; empty where nothing is aligned.
    pub scales: &'a [f64],
    /// Its weights in this arm, where they aren't as they came.
    pub weights: Option<&'a [Value]>,
}

/// Feeds of the model step, step by step: this rank's share of each step's rows.
pub struct Batches<'a> {
    pub ranks: &'a Ranks,
    examples: &'a Examples,
    target: &'a Network,
    objective: Objective,
    helpers: Vec<Help<'a>>,
    sampler: Sampler,
    unlabelled: Sampler,
    batch: usize,
    shift: usize,
    seed: u64,
}

impl<'a> Batches<'a> {
    pub fn new(
        examples: &'a Examples,
        target: &'a Network,
        objective: Objective,
        helpers: Vec<Help<'a>>,
        config: &TrainConfig,
        (seed, ranks): (u64, &'a Ranks),
    ) -> Self {
        let images = examples.has_images();
        let shift = match config.shift {
            Some(shift) => shift,
            None if images => default_shift(examples),
            None => 0,
        };
        let batch = config.batch.max(1);
        let all = |split| Sampler::new(examples.rows(split), batch, seed);
        let balanced = examples.balance().map(|classes| Sampler::balanced(classes, batch, seed));
        Self {
            sampler: balanced.unwrap_or_else(|| all(Split::Train)),
            unlabelled: all(Split::Unlabelled),
            ranks,
            examples,
            target,
            objective,
            helpers,
            batch,
            shift: if images && !examples.labels_have_places() { shift } else { 0 },
            seed,
        }
    }
    /// Rows of a step, over all ranks.
    pub fn rows_per_step(&self) -> usize {
        self.batch
    }
    /// This rank's part in the mean over a step's rows.
    pub fn weight(&self) -> f64 {
        self.ranks.share(self.batch).len() as f64 / self.batch as f64
    }

    /// This rank's runs of step `step`, none where it has no rows: each the model's inputs, then labels, the teachers' answers, the sources' activations. One
    /// run, or several that the executor works on at once, or as many as rows where the model takes single rows.
    pub fn step(&mut self, step: usize) -> Result<Vec<Vec<Value>>> {
        let rows = self.sampler.rows_of(step);
        self.runs(Split::Train, rows, self.objective, step)
    }

    /// The same for rows without labels, under `objective`.
    pub fn unlabelled_step(&mut self, step: usize, objective: Objective) -> Result<Vec<Vec<Value>>> {
        let rows = self.unlabelled.rows_of(step);
        self.runs(Split::Unlabelled, rows, objective, step)
    }

    fn runs(
        &mut self,
        split: Split,
        picked: Vec<usize>,
        objective: Objective,
        step: usize,
    ) -> Result<Vec<Vec<Value>>> {
        let part = self.examples.part(split);
        let all = self.examples.places(split, &picked);
        let share = self.ranks.share(all.len());
        let (first, rows) = (share.start, all[share].to_vec());
        let Some(bound) = part.bound.as_ref().filter(|_| !rows.is_empty()) else { return Ok(vec![]) };
        let shift = (self.shift > 0).then(|| {
            let mut random = generator(self.seed, stream::AUGMENT, step as u64);
            Shift::draw(self.shift, &mut random)
        });
        let size = self.target.batch.max(1);
        let mut padded = rows.clone();
        padded.resize(rows.len().next_multiple_of(size), rows.last().copied().unwrap_or(0));
        let (answers, activations) =
            helped(&mut self.helpers, split, &padded, shift, objective.wants_teacher())?;
        let help: Vec<Tensor> = mean_of(&answers).into_iter().chain(activations).collect();
        let divisor = objective
            .ignores()
            .then(|| self.examples.divisor(&all, rows.len().div_ceil(size), self.weight()));
        let mut runs = vec![];
        for (i, chunk) in rows.chunks(size).enumerate() {
            let mut feeds = shown(bound, chunk, size, &self.target.inputs, shift)?;
            feeds.extend(self.target.drops.noise(self.seed, (split, step), first + i * size));
            let labels = self.examples.label_tensor(objective, chunk, size);
            feeds.extend(labels.into_iter().chain(divisor.clone()).map(Value::host));
            feeds.extend(help.iter().map(|tensor| Value::host(tensor.rows(i * size..(i + 1) * size))));
            runs.push(feeds);
        }
        Ok(runs)
    }
}

/// What a model of `batch` rows and these inputs is fed for some rows, whose images `shift` moves.
pub fn shown(
    bound: &Bound,
    rows: &[usize],
    batch: usize,
    inputs: &[(ValueId, Fact)],
    shift: Option<Shift>,
) -> Result<Vec<Value>> {
    let tensors = bound.batch_as(rows, batch, inputs)?;
    let tensors = match shift {
        Some(shift) => bound.shifted(tensors, &[shift], Fill::Roll)?,
        None => tensors,
    };
    Ok(tensors.into_iter().map(Value::host).collect())
}

/// What the sources say to some rows: the answers of those that teach, and all scaled activations.
fn helped(
    helpers: &mut [Help<'_>],
    split: Split,
    rows: &[usize],
    shift: Option<Shift>,
    taught: bool,
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let (mut answers, mut activations) = (vec![], vec![]);
    for help in helpers {
        let mut own = None;
        if taught && help.teaches {
            let mut views = help.guide.observe(split, rows, shift, None)?.into_iter();
            if let Some(answer) = views.next() {
                let answer = answer.reshaped(&[rows.len(), answer.len() / rows.len().max(1)]);
                answers.push(help.voice.logits(&answer));
            }
            own = Some(views.collect::<Vec<_>>()).filter(|_| help.weights.is_none());
        }
        if help.scales.is_empty() {
            continue;
        }
        let views = match own {
            Some(views) => views,
            None => help.guide.observe(split, rows, shift, help.weights)?.split_off(1),
        };
        activations.extend(views.iter().zip(help.scales).map(|(view, scale)| scaled(view, *scale)));
    }
    Ok((answers, activations))
}

/// A tensor multiplied by a number.
pub fn scaled(tensor: &Tensor, by: f64) -> Tensor {
    if by == 1.0 {
        return tensor.clone();
    }
    let values: Vec<f32> = tensor.to_f32().iter().map(|v| v * by as f32).collect();
    Tensor::f32(tensor.shape(), &values)
}

/// The mean of tensors of one shape; `None` for none.
pub fn mean_of(tensors: &[Tensor]) -> Option<Tensor> {
    let first = tensors.first()?;
    if tensors.len() == 1 {
        return Some(first.clone());
    }
    let mut sum = vec![0.0f32; first.len()];
    for tensor in tensors {
        sum.iter_mut().zip(tensor.to_f32().iter()).for_each(|(s, v)| *s += v / tensors.len() as f32);
    }
    Some(Tensor::f32(first.shape(), &sum))
}
