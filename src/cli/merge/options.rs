//! The options of merging and tuning, and how they go into a [`Config`].

use super::Manner;
use crate::autodiff::recompute::Budget;
use crate::cli::args::{DataArgs, ExecutorArgs, Numbers, choice, duration, positive, set, set_some};
use crate::cli::config::Config;
use crate::data::{DataOptions, parse_number, parse_numbers};
use crate::error::{Error, Result};
use crate::patterns::Patterns;
use crate::train::{ExecutorChoice, Method, Optimizer, Preset, Schedule, Start, Task, TrainConfig};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Common {
    /// Where to write the better model
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    training: Training,
    #[command(flatten)]
    executor: ExecutorArgs,
    #[command(flatten)]
    pub results: Results,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Training")]
pub struct Training {
    /// What the outputs mean
    #[arg(long, value_name = "TASK", value_parser = choice::<Task>(&["auto", "classify", "regress", "match-outputs"]))]
    task: Option<Task>,
    /// The output of the target that the loss looks at [default: the first with real values for each row]
    #[arg(long = "of", value_name = "OUTPUT")]
    of: Option<String>,
    /// Steps an arm [default: enough for the data]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "epochs")]
    steps: Option<u32>,
    /// Passes over the training data
    #[arg(long, value_name = "N", value_parser = positive)]
    epochs: Option<f64>,
    /// Time all of training may take, such as 90s or 10m: steps are as many as fit
    #[arg(long, value_name = "TIME", value_parser = duration)]
    time: Option<f64>,
    /// Rows a step
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Highest learning rate [default: validation chooses]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    lr: Option<f64>,
    /// How the learning rate moves
    #[arg(long, value_name = "NAME", value_parser = choice::<Schedule>(&["cosine", "constant"]))]
    schedule: Option<Schedule>,
    /// Steps until the highest learning rate is reached
    #[arg(long, value_name = "STEPS")]
    warmup: Option<usize>,
    #[arg(long, value_name = "NAME", value_parser = choice::<Optimizer>(&["adamw", "sgd"]), help = "Optimiser")]
    optimizer: Option<Optimizer>,
    /// Pull of the weights towards zero
    #[arg(long, value_name = "X", value_parser = positive)]
    weight_decay: Option<f64>,
    /// Largest norm of the gradient; 0 for any
    #[arg(long, value_name = "X", value_parser = positive)]
    clip: Option<f64>,
    /// Shift images by up to so many pixels [default: by their size]
    #[arg(long, value_name = "PIXELS")]
    shift: Option<usize>,
    /// Stop after so many validations without a better one; 0 for never
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// Count every class alike, whatever its share of the rows: in the metric (balanced accuracy), and in batches
    #[arg(long)]
    balanced: bool,
    /// Normalise batches by their own statistics, and let the target's running ones follow
    #[arg(long)]
    train_bn: bool,
    /// Compute forward values again on the way back instead of keeping them all: as few as keep what a run holds below SIZE (512MB,
    /// 2GiB); without SIZE, for as little memory as possible
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "least")]
    recompute: Option<Budget>,
    /// Let the target's Dropout nodes drop in training steps
    #[arg(long)]
    train_dropout: bool,
    /// Leave weights as they are whose names match
    #[arg(long, value_name = "GLOB")]
    freeze: Vec<String>,
    /// Seed of everything random
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Repeat every arm with so many seeds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seeds: Option<u32>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Transfer")]
pub struct Transfer {
    /// How knowledge is moved: by the adapter (lpka), by distillation (kd), both, or not at all (finetune)
    #[arg(long, value_name = "NAME", value_parser = choice::<Method>(&["auto", "lpka", "lpka+kd", "kd", "features", "features+kd", "finetune"]))]
    method: Option<Method>,
    /// Form of the adapter
    #[arg(long, value_name = "NAME", value_parser = choice::<Preset>(&["structured", "residual", "paper"]))]
    preset: Option<Preset>,
    /// Pair weights by name: target glob = source glob
    #[arg(long, value_name = "TGT=SRC")]
    map: Vec<String>,
    /// Carry knowledge only to weights of the target whose names match; all are trained [default: all that pair]
    #[arg(long, value_name = "GLOB")]
    adapt: Vec<String>,
    /// Highest rank of the adapter's tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// Gate at the start, 0 (the target as it is) to 1 (the source's slices) [default: validation chooses]
    #[arg(long, value_name = "X", value_parser = positive)]
    gate: Option<f64>,
    /// What the adapter starts from: layers fitted to the source's by least squares (where the source reads the data), or its
    /// mapped weights [default: validation chooses]
    #[arg(long, value_name = "NAME", value_parser = choice::<Start>(&["auto", "fitted", "mapped"]))]
    start: Option<Start>,
    /// Stacked token transfer layers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    depth: Option<u32>,
    /// Attention heads of token transfer layers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    heads: Option<u32>,
    /// Width of queries and keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    width: Option<u32>,
    /// Dropout inside the adapter
    #[arg(long, value_name = "X", value_parser = positive)]
    dropout: Option<f64>,
    /// Steps between replacements of the weights (preset paper) [default: 5], or between refreshes of a source in training
    /// (--joint) [default: 25]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cycle: Option<u32>,
    /// A further source
    #[arg(long, value_name = "FILE")]
    src: Vec<PathBuf>,
    /// Earlier checkpoints of the source, in order of their names: the target sees the source's training go by
    #[arg(long, value_name = "GLOB", conflicts_with = "joint")]
    trajectory: Option<String>,
    /// The source's output that answers for the target's [default: the one of the same name, else the first that can]
    #[arg(long, value_name = "OUTPUT")]
    src_of: Option<String>,
    /// Train the source too, beside the target
    #[arg(long)]
    joint: bool,
    /// What the source is trained on [default: the same data]
    #[arg(long, value_name = "PATH", requires = "joint")]
    src_data: Option<PathBuf>,
    /// More data, without labels, for what needs none: alignment of activations, distillation
    #[arg(long, value_name = "PATH")]
    unlabelled: Option<PathBuf>,
    /// Make so many rows without labels of training rows, for the source to answer: images are turned, stretched, moved and cut into
    /// one another, sentences exchange words and get some of the whole vocabulary, rows of tables exchange numbers [default: 2000
    /// for fewer than 1000 training rows without --unlabelled, else 0]
    #[arg(long, value_name = "ROWS")]
    made_rows: Option<u32>,
    /// Weight of the alignment of the target's activations with the source's [default: 1; 0 for none]
    #[arg(long, value_name = "X", value_parser = positive)]
    align: Option<f64>,
    /// Share of the source's answers in the loss of distillation
    #[arg(long, value_name = "X", value_parser = positive)]
    alpha: Option<f64>,
    /// Temperature of distillation
    #[arg(long, value_name = "X", value_parser = positive)]
    temperature: Option<f64>,
    /// The same data as the source wants it, where that differs from the target: its scale
    #[arg(long, value_name = "NUMBER", value_parser = parse_number)]
    src_scale: Option<f64>,
    /// … its mean
    #[arg(long, value_name = "NUMBERS", value_parser = |s: &str| parse_numbers(s).map(Numbers), allow_hyphen_values = true)]
    src_mean: Option<Numbers>,
    /// … its standard deviation
    #[arg(long, value_name = "NUMBERS", value_parser = |s: &str| parse_numbers(s).map(Numbers))]
    src_std: Option<Numbers>,
    /// Train the control arms too (shuffled and untrained source, distillation, fine-tuning)
    #[arg(long)]
    ablate: bool,
    /// What runs the adapter [default: what runs the models]
    #[arg(long, value_name = "NAME", value_parser = choice::<ExecutorChoice>(&["auto", "ort", "tract", "wgpu"]))]
    adapter_executor: Option<ExecutorChoice>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Results")]
pub struct Results {
    /// Least gain on validation that is shipped (0.01 is one point of accuracy)
    #[arg(long, value_name = "X", value_parser = positive)]
    min_gain: Option<f64>,
    /// Ship a gain only if luck alone shows one as large with at most this chance; 1 for any gain [default: 0.16]
    #[arg(long, value_name = "CHANCE", value_parser = positive)]
    significance: Option<f64>,
    /// Where validation leaves open whether a gain is luck, train the winner again without one of so many parts of the training
    /// rows after the other, and look at these too; 0 for validation alone [default: 2 for 2000 training rows or more, else 4]
    #[arg(long, value_name = "N", value_parser = folds)]
    folds: Option<usize>,
    /// Write a report for people
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write the results as one JSON object to stdout
    #[arg(long)]
    json: bool,
    /// Repeat the run that this file describes; options given beside it win
    #[arg(long, value_name = "merge.toml")]
    pub config: Option<PathBuf>,
    /// Go on with a run that was interrupted
    #[arg(long)]
    resume: bool,
    /// Show warnings, errors and results only
    #[arg(short, long)]
    quiet: bool,
    /// Write what happens, every step and validation, as a line of JSON each
    #[arg(long, value_name = "FILE.jsonl")]
    log: Option<PathBuf>,
    /// Write losses and validations for TensorBoard
    #[arg(long, value_name = "FOLDER")]
    tensorboard: Option<PathBuf>,
    /// Print where the time goes by part and device, and write it to FILE for chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    profile: Option<PathBuf>,
}

impl Common {
    pub fn apply(&self, config: &mut Config) {
        set(&mut config.output, self.output.clone());
        set_some(&mut config.report, self.results.report.clone());
        set_some(&mut config.data.train, self.data.data.clone());
        set_some(&mut config.data.val, self.data.val.clone());
        set_some(&mut config.data.test, self.data.test.clone());
        self.data.options.apply(&mut config.data.options);
        self.executor.apply(&mut config.train);
        set(&mut config.train.min_gain, self.results.min_gain);
        set(&mut config.train.significance, self.results.significance);
        set_some(&mut config.train.folds, self.results.folds);
        self.training.apply(&mut config.train);
    }
}

impl Training {
    pub fn apply(&self, train: &mut TrainConfig) {
        let count = |v: Option<u32>| v.map(|v| v as usize);
        set(&mut train.task, self.task);
        set_some(&mut train.of, self.of.clone());
        if self.steps.is_some() || self.epochs.is_some() {
            (train.steps, train.epochs) = (count(self.steps), self.epochs);
        }
        set_some(&mut train.time, self.time);
        set(&mut train.batch, count(self.batch));
        set_some(&mut train.lr, self.lr);
        set(&mut train.schedule, self.schedule);
        set(&mut train.warmup, self.warmup);
        set(&mut train.optimizer, self.optimizer);
        set(&mut train.weight_decay, self.weight_decay);
        set(&mut train.clip, self.clip);
        set_some(&mut train.shift, self.shift);
        set(&mut train.patience, self.patience);
        train.balanced |= self.balanced;
        train.train_bn |= self.train_bn;
        set_some(&mut train.recompute, self.recompute);
        train.train_dropout |= self.train_dropout;
        set(&mut train.freeze, (!self.freeze.is_empty()).then(|| self.freeze.clone()));
        set(&mut train.seed, self.seed);
        set(&mut train.seeds, count(self.seeds));
    }
}

/// A number of folds.
fn folds(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(1) => Err("a single fold would leave nothing to train on: 2 or more, or 0 for none".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("not a whole number".into()),
    }
}

/// The files that a pattern names, in order of their names (`step_9` before `step_10`).
fn checkpoints(pattern: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(pattern);
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let names = Patterns::new(&[name]).map_err(|e| e.context("--trajectory"))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut found: Vec<PathBuf> = vec![];
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, e))?.path();
        if let Some(name) = entry.file_name().filter(|n| names.matches(&n.to_string_lossy())) {
            found.push(path.with_file_name(name));
        }
    }
    if found.is_empty() {
        return Err(Error::usage(format!("--trajectory '{pattern}' names no file")));
    }
    found.sort_by_cached_key(|path| crate::data::natural_key(&crate::data::file_name(path)));
    Ok(found)
}

impl Transfer {
    pub fn apply(&self, config: &mut Config) -> Result<()> {
        let train = &mut config.train;
        let count = |v: Option<u32>| v.map(|v| v as usize);
        set(&mut train.method, self.method);
        set(&mut train.adapter.preset, self.preset);
        set(&mut train.map, (!self.map.is_empty()).then(|| self.map.clone()));
        set(&mut train.adapt, (!self.adapt.is_empty()).then(|| self.adapt.clone()));
        set(&mut train.adapter.rank, count(self.rank));
        set_some(&mut train.adapter.gate, self.gate);
        set(&mut train.start, self.start);
        set(&mut train.adapter.depth, count(self.depth));
        set(&mut train.adapter.heads, count(self.heads));
        set(&mut train.adapter.width, count(self.width));
        set(&mut train.adapter.dropout, self.dropout);
        set_some(&mut train.adapter.cycle, count(self.cycle));
        train.joint |= self.joint;
        set(&mut train.align, self.align);
        set_some(&mut train.src_of, self.src_of.clone());
        set(&mut train.alpha, self.alpha);
        set(&mut train.temperature, self.temperature);
        set_some(&mut train.adapter_executor, self.adapter_executor);
        train.ablate |= self.ablate;
        set(&mut config.more_sources, (!self.src.is_empty()).then(|| self.src.clone()));
        set_some(&mut config.data.unlabelled, self.unlabelled.clone());
        set_some(&mut train.made_rows, count(self.made_rows));
        set_some(&mut config.data.joint, self.src_data.clone());
        if let Some(pattern) = &self.trajectory {
            config.trajectory = checkpoints(pattern)?;
        }
        if self.src_scale.is_some() || self.src_mean.is_some() || self.src_std.is_some() {
            // What isn't said of the source's data is as it is for the target's.
            let target = config.data.options.clone();
            config.data.source_options = Some(DataOptions {
                scale: self.src_scale.or(target.scale),
                mean: self.src_mean.clone().map_or(target.mean, |m| m.0),
                std: self.src_std.clone().map_or(target.std, |m| m.0),
                ..target
            });
        }
        Ok(())
    }
}

impl Results {
    pub fn manner(&self) -> Manner {
        Manner {
            json: self.json,
            resume: self.resume,
            quiet: self.quiet,
            log: self.log.clone(),
            tensorboard: self.tensorboard.clone(),
            profile: self.profile.clone(),
        }
    }
}
