//! What training is to bring down.

use super::batches::Examples;
use super::model_step::Objective;
use super::network::Network;
use super::{Task, TrainConfig};
use crate::error::{Error, Result};

/// What the target is to do: what was asked for, or what the labels look like.
pub fn task(config: &TrainConfig, examples: &Examples, target: &Network) -> Task {
    match config.task {
        Task::Auto if examples.has_classes(target.head.width) => Task::Classify,
        Task::Auto if examples.has_labels() => Task::Regress,
        Task::Auto => Task::MatchOutputs,
        task => task,
    }
}

/// What the loss is, from the task asked for, the labels there are, and the models' answers. Reads the labels.
pub fn choose(
    config: &TrainConfig,
    examples: &mut Examples,
    target: &Network,
    teacher: bool,
) -> Result<Objective> {
    let width = target.head.width;
    match task(config, examples, target) {
        Task::Classify => {
            examples.use_classes(width)?;
            Ok(Objective::Classes)
        }
        Task::Regress => {
            examples.use_vectors(width)?;
            Ok(Objective::Vectors { width })
        }
        Task::MatchOutputs | Task::Auto if teacher => {
            Ok(Objective::Teacher { width, logits: target.head.softmax, temperature: config.temperature })
        }
        Task::MatchOutputs | Task::Auto => {
            Err(Error::usage("there are no labels to learn from, and the source can't answer for the target")
                .hint("give labels (an array `y`), or a source whose inputs and outputs fit the target's"))
        }
    }
}
