//! `onnx-merge eval`: how good a model is on data, as it is.

use super::args::{ExecutorArgs, OptionArgs, choice, required};
use super::idle::unread;
use crate::data::{Answer, Bound, Dataset, Groups, IGNORED, Placement, Uses, classes};
use crate::error::{Error, Result, ResultExt};
use crate::onnx::{Fact, Facts, Model, Tensor, ValueId, ValueInfo};
use crate::runtime::{Compiled, Executor, Value, pick, run_jobs};
use crate::train::metric::{Row, Tally, Truth, spread};
use crate::train::{Task, TrainConfig, foreseen};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

/// Measures a model on data: accuracy and cross-entropy for classes, mean squared error and R² for numbers.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-merge eval model.onnx --data test.npz --scale 1/255
  onnx-merge eval model.onnx --data table.csv --label price --json")]
pub struct Args {
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Data with labels, in any of the forms that training takes
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    options: OptionArgs,
    /// What the outputs mean
    #[arg(long, value_name = "TASK", value_parser = choice::<Task>(&["auto", "classify", "regress"]))]
    task: Option<Task>,
    /// Which output to judge [default: the first with numbers]
    #[arg(long, value_name = "NAME", visible_alias = "of")]
    output: Option<String>,
    /// Rows at once, where the model doesn't fix it
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    #[command(flatten)]
    executor: ExecutorArgs,
    /// Write the result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Figures {
    model: PathBuf,
    rows: usize,
    /// How many labels count, where it isn't one a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<usize>,
    output: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    /// The mean over classes of the share of each that is right.
    #[serde(skip_serializing_if = "Option::is_none")]
    balanced_accuracy: Option<f64>,
    /// Whether some class has twice the labels of another, of rows.
    #[serde(skip)]
    uneven: bool,
    /// Where each position of a row has a label: intersection over union, the mean over all classes that labels or answers have.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_iou: Option<f64>,
    /// Of numbers: the share of the labels' variance that the model explains. 0 is what their mean as every answer comes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    r2: Option<f64>,
    /// Cross-entropy, or the mean squared error.
    loss: f64,
    /// Where groups of rows have a name, each of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<Group>,
    executor: String,
    device: String,
    seconds: f64,
}

/// Rows that belong together.
#[derive(Serialize)]
struct Group {
    name: String,
    rows: usize,
    /// Accuracy, or the mean squared error; `None` where no label of theirs counts.
    value: Option<f64>,
}

pub fn run(args: Args) -> Result<u8> {
    let data = required(&args.data, "the data", "say what to measure on: --data test.npz")?;
    let mut options = crate::data::DataOptions::default();
    args.options.apply(&mut options);
    let file = crate::onnx::read(&args.model)?;
    let model = &file.model;
    let dataset = crate::data::open(&data, &options)?;
    let uses = Uses::of(&[&data]);
    if options.size.is_some() && !uses.size {
        return Err(unread("size", Uses::NO_SIZE));
    }
    if options.label.is_some() && !uses.label {
        return Err(unread("label", Uses::NO_LABEL));
    }
    let groups = dataset.expect_groups()?;
    let bound = dataset.bind_to(&model.graph)?;
    bound.notes.iter().for_each(note);
    let task = args.task.unwrap_or_default();
    let output = chosen_output(model, args.output.as_deref()).context(|| args.model.display().to_string())?;
    match foreseen::answer(model, &bound, Some(model.graph.outputs[output].id.as_str())) {
        Some(answer) => check_labels(&Answer::of_shape(&answer.shape), &dataset, task)?,
        None => dataset.expect_labels().map(|_| ())?,
    }
    let mut config = TrainConfig::default();
    args.executor.apply(&mut config);
    let executor = pick(config.executor, &super::args::executor_options(&config), &[model])?;
    let begun = Instant::now();
    let runner = Runner::new(model, &bound, &*executor, args.batch as usize, output);
    let runner = runner.context(|| args.model.display().to_string())?;
    let answers = runner.answers(&bound).context(|| args.model.display().to_string())?;
    let judgement = judge(&answers, &dataset, task)?;
    let Judgement { accuracy, balanced_accuracy, uneven, mean_iou, r2, loss, tally, labels, place } =
        judgement;
    if let Some(place) = place {
        let names = &dataset.class_names;
        classes::numbering(names).iter().chain(&classes::doubt(names, place.layout.classes)).for_each(note);
        place.told(answers.output.as_str()).iter().for_each(note);
    }
    let figures = Figures {
        model: args.model,
        rows: dataset.rows(),
        labels: labels.filter(|&labels| labels != dataset.rows()),
        output: answers.output.to_string(),
        accuracy,
        balanced_accuracy,
        uneven,
        mean_iou,
        r2,
        loss,
        groups: groups.map(|groups| by_group(groups, tally.measured())).unwrap_or_default(),
        executor: executor.name().to_owned(),
        device: executor.device(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    match args.json {
        true => super::print_json(&figures)?,
        false => super::print(&describe(&figures))?,
    }
    Ok(0)
}

fn note(text: &String) {
    super::terminal::message(format!("note: {text}"));
}

fn describe(figures: &Figures) -> String {
    let loss = match (figures.accuracy, figures.r2) {
        (Some(accuracy), _) => {
            let overlap = figures.mean_iou.map(|iou| format!(", mean IoU {:.2} %", iou * 100.0));
            let overlap = overlap.unwrap_or_default();
            let balanced = figures.balanced_accuracy.filter(|_| figures.uneven);
            let balanced = balanced.map(|b| format!(" (balanced {:.2} %)", b * 100.0)).unwrap_or_default();
            format!(
                "accuracy {:.2} %{balanced}{overlap}, cross-entropy {:.4}",
                accuracy * 100.0,
                figures.loss
            )
        }
        (_, Some(r2)) => format!("mean squared error {:.6}, R² {r2:.4}", figures.loss),
        _ => format!("mean squared error {:.6}", figures.loss),
    };
    let Figures { model, rows, labels, output, executor, device, seconds, .. } = figures;
    let labels = labels.map(|labels| format!(", {labels} labels")).unwrap_or_default();
    let range = range(&figures.groups, figures.accuracy.is_some()).unwrap_or_default();
    format!(
        "{}: {loss} ({rows} rows{labels}, output '{output}', {seconds:.1} s on {executor}: {device})\n{range}",
        model.display()
    )
}

/// The groups that a model is worst and best on.
fn range(groups: &[Group], accuracy: bool) -> Option<String> {
    let show = |(group, value): (&Group, f64)| match accuracy {
        true => format!("{:.2} % ('{}', {} rows)", value * 100.0, group.name, group.rows),
        false => format!("{value:.6} ('{}', {} rows)", group.name, group.rows),
    };
    let measured = || groups.iter().filter_map(|group| Some((group, group.value?)));
    let lowest = measured().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let highest = measured().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let of = if accuracy { "accuracy" } else { "mean squared error" };
    Some(format!("{of} of {} groups: {} to {}\n", groups.len(), show(lowest), show(highest)))
}

/// Each group by itself, in order of appearance.
fn by_group(groups: &Groups, rows: &[Row]) -> Vec<Group> {
    let rows_of = |group: &[usize]| Tally::from(group.iter().map(|&row| rows[row]).collect());
    let group = |(name, group): (&str, Vec<usize>)| Group {
        name: name.to_owned(),
        rows: group.len(),
        value: Some(rows_of(&group).value()).filter(|value| !value.is_nan()),
    };
    groups.each().map(group).collect()
}

/// Which output is judged: the one of this name, or the first of numbers.
fn chosen_output(model: &Model, name: Option<&str>) -> Result<usize> {
    let outputs = &model.graph.outputs;
    let numeric = |o: &ValueInfo| o.dtype.is_none_or(|d| d.is_float());
    let index = match name {
        Some(name) => outputs.iter().position(|o| o.id.as_str() == name),
        None => outputs.iter().position(numeric),
    };
    index.ok_or_else(|| {
        let names: Vec<&str> = outputs.iter().map(|o| o.id.as_str()).collect();
        Error::usage(format!("there is no such output of numbers; the model has {}", names.join(", ")))
    })
}

/// A model compiled for batches of one size.
struct Runner {
    program: Box<dyn Compiled>,
    batch: usize,
    lanes: NonZeroUsize,
    output: usize,
    name: ValueId,
}

/// What a model said about every row.
struct Answers {
    output: ValueId,
    values: Vec<f32>,
    /// Of a row.
    shape: Vec<usize>,
}

impl Runner {
    fn new(
        model: &Model,
        bound: &Bound,
        executor: &dyn Executor,
        batch: usize,
        output: usize,
    ) -> Result<Self> {
        let batch = bound.fixed_batch().unwrap_or(batch);
        let facts: Facts =
            bound.facts(batch).into_iter().collect::<Vec<(ValueId, Fact)>>().into_iter().collect();
        let program = executor.compile(model, &facts)?;
        Ok(Self {
            program,
            batch,
            lanes: executor.lanes(),
            output,
            name: model.graph.outputs[output].id.clone(),
        })
    }

    fn answers(mut self, bound: &Bound) -> Result<Answers> {
        let rows: Vec<usize> = (0..bound.rows()).collect();
        let (mut values, mut shape) = (vec![], vec![]);
        let feeds =
            |chunk: &&[usize]| Ok(bound.batch(chunk, self.batch)?.into_iter().map(Value::host).collect());
        run_jobs(&mut *self.program, self.lanes, rows.chunks(self.batch), feeds, |chunk, outputs| {
            let answer = outputs.get(self.output).map(Value::to_host).transpose()?;
            let answer = answer.ok_or_else(|| Error::tensor(self.name.as_str(), "was not computed"))?;
            shape = row_shape(&answer, self.batch, &self.name)?;
            let width: usize = shape.iter().product();
            values.extend_from_slice(&answer.to_f32()[..chunk.len() * width]);
            Ok(())
        })?;
        Ok(Answers { output: self.name, values, shape })
    }
}

fn row_shape(answer: &Tensor, batch: usize, name: &ValueId) -> Result<Vec<usize>> {
    match answer.shape() {
        [rows, shape @ ..] if *rows == batch && !answer.is_empty() => Ok(shape.to_vec()),
        shape if batch == 1 && !answer.is_empty() => Ok(shape.to_vec()),
        shape => {
            let what = format!("has shape {shape:?} for {batch} rows, which is not one answer a row");
            Err(Error::tensor(name.as_str(), what))
        }
    }
}

/// What [`Figures`] says of the answers.
#[derive(Default)]
struct Judgement {
    accuracy: Option<f64>,
    balanced_accuracy: Option<f64>,
    uneven: bool,
    mean_iou: Option<f64>,
    r2: Option<f64>,
    loss: f64,
    /// Of accuracies, or of errors: row by row.
    tally: Tally,
    /// How many labels count, and how they place the answers, where they are classes.
    labels: Option<usize>,
    place: Option<Placement>,
}

/// Where classes lie in such answers, if the labels are classes.
///
/// # Errors
/// No labels, or such as are said to be classes and don't correspond to the answers.
fn placement(answer: &Answer, dataset: &Dataset, task: Task) -> Result<Option<Placement>> {
    let labels = dataset.expect_labels()?;
    Ok(match task {
        // Who says on which axis classes lie says that they are classes.
        Task::Auto if dataset.options.class_axis.is_some() => {
            Some(labels.class_placement(&dataset.path, answer, &dataset.options)?)
        }
        Task::Classify => Some(labels.class_placement(&dataset.path, answer, &dataset.options)?),
        Task::Auto => labels.placement(answer, &dataset.options),
        _ => None,
    })
}

/// Refuses labels that such answers can't be compared with, before there are any.
fn check_labels(answer: &Answer, dataset: &Dataset, task: Task) -> Result<()> {
    match placement(answer, dataset, task)? {
        Some(place) => dataset.classes(place.layout.told_apart()).map(|_| ()),
        None => dataset.expect_labels()?.check_width(&dataset.path, answer.width()),
    }
}

fn judge(answers: &Answers, dataset: &Dataset, task: Task) -> Result<Judgement> {
    match placement(&Answer::of_shape(&answers.shape), dataset, task)? {
        Some(place) => judge_classes(answers, dataset, place),
        None => judge_numbers(answers, dataset),
    }
}

fn judge_numbers(answers: &Answers, dataset: &Dataset) -> Result<Judgement> {
    let width: usize = answers.shape.iter().product();
    let wanted = dataset.expect_labels()?.vectors(&dataset.path, width)?;
    let rows = wanted.len() / width;
    let mut tally = Tally::new();
    tally.add(&Tensor::f32(&[rows, width], &answers.values), &Truth::Vectors(&wanted), rows);
    let loss = tally.value();
    let variance = spread(&wanted, width);
    let r2 = (variance > 0.0).then(|| 1.0 - loss / variance);
    Ok(Judgement { r2, loss, tally, ..Judgement::default() })
}

/// Means over all labels that count.
fn judge_classes(answers: &Answers, dataset: &Dataset, place: Placement) -> Result<Judgement> {
    let layout = place.layout;
    let classes = dataset.classes(layout.told_apart())?;
    let rows = || answers.values.chunks_exact(layout.width());
    let places = || rows().flat_map(|row| (0..layout.positions()).map(move |position| (row, position)));
    let as_they_are = places().all(|(row, position)| are_chances(layout.scores(row, position)));
    let (mut loss, mut count, mut all) = (0.0, 0, vec![]);
    let mut overlaps = vec![Overlap::default(); layout.told_apart().classes];
    for (row, answer) in rows().enumerate() {
        let labels = classes.pick(&[row], 1);
        let mut own = Row::default();
        for (position, &class) in labels.iter().enumerate().filter(|(_, class)| **class != IGNORED) {
            let chances = chances(layout.scores(answer, position), as_they_are);
            let best = (0..chances.len()).reduce(|a, b| if chances[b] > chances[a] { b } else { a });
            let best = best.filter(|_| chances.iter().all(|c| !c.is_nan()));
            own.sum += f64::from(u8::from(best == Some(class as usize)));
            own.count += 1.0;
            overlaps[class as usize].labelled += 1;
            if let Some(best) = best {
                overlaps[best].answered += 1;
                overlaps[best].both += usize::from(best == class as usize);
            }
            loss -= chances[class as usize].max(1e-30).ln();
            count += 1;
        }
        all.push(own);
    }
    let tally = Tally::from(all);
    let (accuracy, loss) = (Some(tally.value()), loss / count as f64);
    let mean_iou = (layout.positions() > 1).then(|| Overlap::mean(&overlaps, Overlap::over_union));
    let balanced_accuracy = Some(Overlap::mean(&overlaps, Overlap::right));
    let sizes = || overlaps.iter().map(|class| class.labelled).filter(|&count| count > 0);
    // Of positions the mean IoU says more.
    let uneven = mean_iou.is_none() && sizes().max() >= sizes().min().map(|least| 2 * least);
    Ok(Judgement {
        accuracy,
        balanced_accuracy,
        uneven,
        mean_iou,
        loss,
        tally,
        labels: Some(count),
        place: Some(place),
        ..Judgement::default()
    })
}

/// Where a class is, by labels and by answers.
#[derive(Clone, Default)]
struct Overlap {
    labelled: usize,
    answered: usize,
    both: usize,
}

impl Overlap {
    /// The mean of a share over classes that have one.
    fn mean(all: &[Self], share: impl Fn(&Self) -> Option<f64>) -> f64 {
        let shares: Vec<f64> = all.iter().filter_map(share).collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }
    /// Intersection over union, of a class that is anywhere.
    fn over_union(&self) -> Option<f64> {
        let union = self.labelled + self.answered - self.both;
        (union > 0).then(|| self.both as f64 / union as f64)
    }
    /// The share that is right of what is labelled so.
    fn right(&self) -> Option<f64> {
        (self.labelled > 0).then(|| self.both as f64 / self.labelled as f64)
    }
}

/// Whether the scores of all classes may be their probabilities; a single one that of the second of two classes.
fn are_chances(scores: impl Iterator<Item = f32>) -> bool {
    let scores: Vec<f64> = scores.map(f64::from).collect();
    match scores[..] {
        [one] => (0.0..=1.0).contains(&one),
        _ => scores.iter().all(|&v| v >= 0.0) && (scores.iter().sum::<f64>() - 1.0).abs() < 1e-3,
    }
}

/// Probabilities from the scores of all classes: `as_they_are`, else by softmax, or of a single one by sigmoid.
fn chances(scores: impl Iterator<Item = f32>, as_they_are: bool) -> Vec<f64> {
    let row: Vec<f64> = scores.map(f64::from).collect();
    if let [one] = row[..] {
        let second = if as_they_are { one } else { 1.0 / (1.0 + (-one).exp()) };
        return vec![1.0 - second, second];
    }
    if as_they_are {
        return row;
    }
    let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = row.iter().map(|v| (v - highest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Labels;

    fn dataset(classes: &[i64]) -> Dataset {
        let values = Tensor::zeros(crate::onnx::DType::F32, &[classes.len(), 1]);
        let column = crate::data::Column { name: "x".into(), values };
        Dataset::new(vec![column], Some(Labels::Classes(classes.to_vec()))).unwrap()
    }

    #[test]
    fn logits_and_probabilities_are_judged_alike() {
        let answers = |values: &[f32], width| Answers {
            output: "o".into(),
            values: values.to_vec(),
            shape: vec![width],
        };
        let judged = judge(&answers(&[0.25, 0.75, 0.9, 0.1], 2), &dataset(&[1, 1]), Task::Auto).unwrap();
        assert_eq!((judged.accuracy, judged.r2), (Some(0.5), None));
        assert!((judged.loss - (-(0.75f64.ln()) - 0.1f64.ln()) / 2.0).abs() < 1e-6);
        let judged = judge(&answers(&[-3.0, 4.0], 1), &dataset(&[0, 1]), Task::Auto).unwrap();
        assert_eq!(judged.accuracy, Some(1.0));
        // Logits that may be probabilities, beside one that can't be.
        let judged = judge(&answers(&[0.25, 4.0], 1), &dataset(&[1, 1]), Task::Auto).unwrap();
        assert_eq!(judged.accuracy, Some(1.0));
        let judged = judge(&answers(&[0.0, 3.0], 1), &dataset(&[0, 1]), Task::Regress).unwrap();
        assert_eq!((judged.accuracy, judged.r2, judged.loss), (None, Some(-7.0), 2.0));
        let same = judge(&answers(&[0.0, 3.0], 1), &dataset(&[1, 1]), Task::Regress).unwrap();
        assert_eq!((same.r2, same.loss), (None, 2.5));
    }

    #[test]
    fn labels_of_positions_count_alike_but_those_that_are_left_out() {
        let values = Tensor::i64(&[2, 3], &[1, 0, -100, -100, -100, 1]);
        let column = crate::data::Column { name: "x".into(), values: Tensor::zeros(values.dtype(), &[2, 1]) };
        let labels = Labels::from_tensor(&PathBuf::from("d"), "y", &values).unwrap();
        let dataset = Dataset::new(vec![column], Some(labels)).unwrap();
        // Rows × classes × positions.
        let values = vec![0.0, 5.0, 5.0, 3.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0];
        let answers = Answers { output: "o".into(), values, shape: vec![2, 3] };
        let judged = judge(&answers, &dataset, Task::Auto).unwrap();
        assert_eq!((judged.labels, judged.accuracy), (Some(3), Some(2.0 / 3.0)));
        // Labels 1, 0, 1 are answered with 1, 0, 0: each class is in two places, one of them right.
        assert_eq!(judged.mean_iou, Some(0.5));
        let expected =
            [(0.0f64, 3.0f64), (0.0, 5.0), (2.0, 0.0)].map(|(other, own)| (1.0 + (other - own).exp()).ln());
        assert!((judged.loss - expected.iter().sum::<f64>() / 3.0).abs() < 1e-9, "{}", judged.loss);
    }
}
