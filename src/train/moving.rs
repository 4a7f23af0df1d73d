//! Sources that change while the target trains: a trajectory of checkpoints, or a source trained beside it.
//!
//! Time is cut into *stages*. At the beginning of each one the adapter's update program is made anew for the source's
//! weights of then, and takes over the parameters where they are ([`Fit::refresh`]).

use super::batches::Batches;
use super::examples::{Data, Examples};
use super::fit::{Fit, LossProgram, Losses};
use super::model_step::Objective;
use super::network::Network;
use super::ranks::Ranks;
use super::session::Split;
use super::source::Weights;
use super::{Silent, TrainConfig};
use crate::data::{Answer, Placement};
use crate::error::{Error, Result};
use crate::lpka::{self, Side};
use crate::onnx::{Tensor, ValueId};
use crate::runtime::Executor;
use std::sync::Arc;

/// Steps between refreshes of a source that is trained beside the target, unless the user says otherwise.
pub const CYCLE: usize = 25;

/// An arm's moving source.
pub struct Moving {
    /// The stage whose weights the adapter has.
    pub stage: usize,
    /// The source in training.
    fit: Option<Box<Fit>>,
}

/// What cuts an arm's steps into stages.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As many stages as there are checkpoints, the source itself among them.
    Stages(usize),
    /// A stage every so many steps.
    Every(usize),
}

impl Pace {
    pub fn stage(self, step: usize, steps: usize) -> usize {
        match self {
            Pace::Stages(count) => (step * count / steps.max(1)).min(count.saturating_sub(1)),
            Pace::Every(cycle) => step / cycle.max(1),
        }
    }
    /// The first step of the next stage.
    pub fn next(self, step: usize, steps: usize) -> usize {
        let here = self.stage(step, steps);
        (step + 1..steps).find(|&later| self.stage(later, steps) != here).unwrap_or(steps)
    }
}

/// What a source that answers so is trained for. Reads the labels.
///
/// # Errors
/// Data without labels, or labels that don't fit the answers.
pub fn objective(examples: &mut Examples, answer: &Answer) -> Result<Objective> {
    match (examples.placement(answer), examples.has_labels()) {
        (Some(Placement { layout, .. }), _) => {
            let layout = layout.told_apart();
            let ignores = examples.use_classes(layout)?;
            Ok(Objective::Classes { layout, ignores })
        }
        (None, true) => {
            let width = answer.width();
            examples.use_vectors(width)?;
            Ok(Objective::Vectors { width })
        }
        _ => Err(Error::usage("--joint needs labels to train the source on")
            .hint("give data with labels in the source's terms: --src-data FILE")),
    }
}

/// Trains a source beside the target.
pub struct Trainer {
    examples: Examples,
    objective: Objective,
    losses: Losses,
    order: Vec<ValueId>,
    weights: Vec<(ValueId, Tensor)>,
    config: TrainConfig,
    executor: Arc<dyn Executor>,
    ranks: Ranks,
    /// Whether these are other rows than the target's.
    pub apart: bool,
}

impl Trainer {
    /// # Errors
    /// Data without labels, or labels that don't fit the source's answers.
    pub fn open(
        source: &mut Network,
        data: Data<'_>,
        config: &TrainConfig,
        models: &dyn Executor,
        executor: Arc<dyn Executor>,
        ranks: &Ranks,
    ) -> Result<Self> {
        let mut examples = Examples::new(data, &source.file.model.graph, config.seed)?;
        if source.head.is_empty() {
            let what = "has no output with an answer for each row to train it on";
            return Err(Error::model(&source.file.path, what).hint("leave out --joint"));
        }
        let answer = source.head.known();
        let objective = objective(&mut examples, &answer)?;
        if let Some(place) = examples.placement(&answer) {
            source.lay_out(place.layout);
        }
        let weights = source.trainable(&[])?;
        let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
        let step = source.step(&names, objective)?;
        let several = source.batch < ranks.share(config.batch).len();
        let labelled = LossProgram::new(&step, &step.weights, models, several)?;
        let config = TrainConfig { low_rank: None, ..config.clone() };
        let losses = Losses { labelled, unlabelled: None };
        let (order, ranks) = (step.weights, ranks.clone());
        Ok(Self { examples, objective, losses, order, weights, config, executor, ranks, apart: false })
    }

    /// As [`Examples::leave_out`], where the source is trained on the target's rows.
    pub fn leave_out(&mut self, rows: &[usize]) -> bool {
        self.apart || self.examples.leave_out(rows)
    }
    pub fn take_back(&mut self) {
        self.examples.take_back();
    }

    fn start(&self, source: &Network, seed: u64, steps: usize) -> Result<Fit> {
        let side = Side { graph: &source.params, weights: self.weights.iter().cloned().collect() };
        let update = lpka::build(&side, &[], &self.order, &self.config, 0.0, &*self.executor, seed)?;
        // It has been trained before: carefully, where nothing is asked for.
        let lr = self.config.lr.unwrap_or(self.config.optimizer.rates()[0]);
        Fit::start(update, &self.order, self.executor.clone(), seed, (steps, lr))
    }
}

impl Moving {
    pub fn new() -> Self {
        Self { stage: 0, fit: None }
    }

    /// Trains the source up to step `until`; its weights then.
    pub fn train(
        &mut self,
        trainer: &mut Trainer,
        source: &Network,
        seed: u64,
        (until, steps): (usize, usize),
    ) -> Result<Weights> {
        let fit = match &mut self.fit {
            Some(fit) => fit,
            None => self.fit.insert(Box::new(trainer.start(source, seed, steps)?)),
        };
        let Trainer { examples, objective, losses, order, config, ranks, .. } = trainer;
        let mut batches = Batches::new(examples, source, *objective, vec![], config, (seed, ranks));
        fit.advance(until, losses, &mut batches, config, None, &mut Silent)?;
        order.iter().zip(&fit.weights()).map(|(id, v)| Ok((id.clone(), v.to_host()?))).collect()
    }
}

/// Which rows of the training data activations are measured on.
pub fn measured_rows(examples: &Examples) -> Vec<usize> {
    let rows: Vec<usize> = (0..examples.rows(Split::Train)).collect();
    examples.places(Split::Train, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_share_the_steps() {
        let pace = Pace::Stages(4);
        let stages: Vec<usize> = (0..10).map(|step| pace.stage(step, 10)).collect();
        assert_eq!(stages, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]);
        assert_eq!((pace.next(0, 10), pace.next(3, 10), pace.next(8, 10)), (3, 5, 10));
        let pace = Pace::Every(4);
        assert_eq!((pace.stage(3, 10), pace.stage(4, 10), pace.next(4, 10), pace.next(9, 10)), (0, 1, 8, 10));
    }
}
