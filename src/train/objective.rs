//! What training is to bring down.

use super::examples::Examples;
use super::model_step::Objective;
use super::network::Network;
use super::{Task, TrainConfig};
use crate::data::Answer;
use crate::error::{Error, Result};

/// What a model that answers so is to do: what was asked for, or what the labels look like.
fn task(config: &TrainConfig, examples: &Examples, answer: &Answer) -> Task {
    match config.task {
        Task::Auto if examples.are_classes(answer) => Task::Classify,
        Task::Auto if examples.has_labels() => Task::Regress,
        Task::Auto => Task::MatchOutputs,
        task => task,
    }
}

/// Refuses labels that a model that answers so, as far as that is known, couldn't learn from: before it is got ready for that.
///
/// # Errors
/// Labels that are missing from a part, don't correspond to the answer, or are out of range; none at all where no source could
/// `teach`.
pub fn check_labels(
    config: &TrainConfig,
    examples: &Examples,
    answer: Option<&Answer>,
    teach: bool,
) -> Result<()> {
    match (answer.map(|answer| (task(config, examples, answer), answer)), config.task) {
        (Some((Task::Classify, answer)), _) => examples.check_classes(answer),
        (Some((Task::Regress, answer)), _) => examples.check_vectors(answer.width()),
        (None, Task::Classify | Task::Regress) => examples.expect_labels(),
        (None, Task::Auto) if examples.has_labels() => examples.expect_labels(),
        _ if teach => Ok(()),
        _ => Err(nothing_to_learn()),
    }
}

fn nothing_to_learn() -> Error {
    Error::usage("there are no labels to learn from, and the source can't answer for the target")
        .hint("give labels (an array `y`), or a source whose inputs and outputs fit the target's")
}

/// Settles what the target is to do, and where in their answers it and the sources have what that is about; returns this task,
/// and what there is to say of those places.
///
/// # Errors
/// Labels that are said to be classes, and don't correspond to the target's answers.
pub fn settle(
    config: &TrainConfig,
    examples: &Examples,
    target: &mut Network,
    sources: &mut [Network],
) -> Result<(Task, Option<String>)> {
    let long = |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&d| d != 1).collect() };
    let shape = long(&target.head.shape);
    let alike = |source: &&mut Network| long(&source.head.shape) == shape;
    let task = task(config, examples, &target.head.known());
    let told = match task {
        Task::Classify => {
            let place = examples.class_placement(&target.head.known())?;
            target.lay_out(place.layout);
            let fits = |source: &&mut Network| {
                let own = &source.head;
                alike(source) && (!own.softmax || own.layout == place.layout)
            };
            sources.iter_mut().filter(fits).for_each(|source| source.lay_out(place.layout));
            place.told(target.head.output.as_str())
        }
        Task::Regress => {
            std::iter::once(target).chain(sources).for_each(|network| network.head.take_as_it_is());
            None
        }
        Task::MatchOutputs | Task::Auto => {
            let layout = target.head.layout;
            let plain = |source: &&mut Network| alike(source) && !source.head.softmax;
            sources.iter_mut().filter(plain).for_each(|source| source.head.layout = layout);
            None
        }
    };
    Ok((task, told))
}

/// What the loss is of a [settled](settle) task. Reads the labels.
pub fn choose(
    task: Task,
    config: &TrainConfig,
    examples: &mut Examples,
    target: &Network,
    teacher: bool,
) -> Result<Objective> {
    let (width, layout) = (target.head.width(), target.head.layout);
    if config.balanced && task != Task::Classify {
        return Err(Error::usage("--balanced counts classes alike, but no labels are read as classes")
            .hint("leave it out, or say --task classify"));
    }
    match task {
        Task::Classify => {
            let ignores = examples.use_classes(layout)?;
            match config.balanced {
                true => examples.count_classes_alike()?,
                false => examples.note_uneven_classes(),
            }
            Ok(Objective::Classes { layout, ignores })
        }
        Task::Regress => {
            examples.use_vectors(width)?;
            Ok(Objective::Vectors { width })
        }
        Task::MatchOutputs | Task::Auto if teacher => {
            Ok(Objective::Teacher { layout, logits: target.head.softmax, temperature: config.temperature })
        }
        Task::MatchOutputs | Task::Auto => Err(nothing_to_learn()),
    }
}
