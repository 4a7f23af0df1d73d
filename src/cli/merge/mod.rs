//! The main job, `onnx-merge SRC TGT -o OUT --data …`, and `tune`, which is the same without a source.

mod options;
mod summary;

use super::args::{executor_options, set, set_some};
use super::config::Config;
use super::idle;
use super::log::{Audience, Log};
use super::signals::Interrupt;
use super::tensorboard::Board;
use super::terminal::{Paint, Watcher, message};
use crate::data::DataOptions;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::runtime::{self, Profile};
use crate::train::{DataSets, Event, ExecutorChoice, MergeRequest, Method, Observer, Ranks, Silent};
use options::{Common, Transfer};
use std::path::{Path, PathBuf};
use std::time::Instant;
use summary::summary;

/// Merge.
#[derive(clap::Args)]
pub struct Args {
    /// The model whose knowledge is wanted
    #[arg(value_name = "SRC")]
    source: Option<PathBuf>,
    /// The model that gets better
    #[arg(value_name = "TGT")]
    target: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    transfer: Transfer,
}

/// Trains a model on data, without a source: the fine-tuning arm by itself.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  onnx-merge tune model.onnx -o better.onnx --data train.npz --val val.npz --scale 1/255"
)]
pub struct TuneArgs {
    /// The model that gets better
    #[arg(value_name = "TGT")]
    target: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
    /// Train deltas of at most this rank instead of whole matrices; they are baked in
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Training")]
    low_rank: Option<u32>,
}

/// What a run is, besides its configuration.
#[derive(Default)]
struct Manner {
    json: bool,
    resume: bool,
    quiet: bool,
    log: Option<PathBuf>,
    tensorboard: Option<PathBuf>,
    profile: Option<PathBuf>,
}

pub fn run(args: Args, ranks: &Ranks) -> Result<u8> {
    let before = read_config(&args.common)?;
    let mut config = before.clone();
    // With a configuration the models may be left out; a single one given is a mistake.
    if args.source.is_some() != args.target.is_some() {
        return Err(Error::usage("TGT is missing: two models are needed, the source and the target")
            .hint("`onnx-merge tune TGT` trains one model without a source"));
    }
    set_some(&mut config.source, args.source);
    args.common.apply(&mut config);
    set(&mut config.target, args.target);
    args.transfer.apply(&mut config)?;
    if config.source.is_none() && args.common.results.config.is_none() {
        return Err(usage_of_merge());
    }
    execute(config, &before, args.common.results.manner(), ranks)
}

pub fn tune(args: TuneArgs, ranks: &Ranks) -> Result<u8> {
    let before = read_config(&args.common)?;
    let mut config = before.clone();
    (config.source, config.more_sources) = (None, vec![]);
    args.common.apply(&mut config);
    set(&mut config.target, args.target);
    config.train.method = Method::Finetune;
    set_some(&mut config.train.low_rank, args.low_rank.map(|r| r as usize));
    execute(config, &before, args.common.results.manner(), ranks)
}

fn usage_of_merge() -> Error {
    Error::usage("two models and an output are needed: onnx-merge SRC TGT -o OUT --data DATA")
        .hint("`onnx-merge --help` shows examples")
}

fn read_config(common: &Common) -> Result<Config> {
    match &common.results.config {
        Some(path) => Config::read(path),
        None => Ok(Config::default()),
    }
}

/// What only makes sense together, or within limits.
fn check(config: &Config) -> Result<()> {
    let train = &config.train;
    if config.target.as_os_str().is_empty() {
        return Err(usage_of_merge());
    }
    if config.output.as_os_str().is_empty() {
        return Err(
            Error::usage("an output is missing").hint("say where to write the better model: -o out.onnx")
        );
    }
    let share = |what: &str, value: f64| match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(Error::usage(format!("--{what} {value} is not between 0 and 1"))),
    };
    share("alpha", train.alpha)?;
    share("dropout", train.adapter.dropout)?;
    share("gate", train.adapter.gate.unwrap_or(0.0))?;
    if train.temperature <= 0.0 {
        return Err(Error::usage("--temperature must be above 0"));
    }
    if let Some(map) = train.map.iter().find(|m| !m.contains('=')) {
        return Err(Error::usage(format!("--map '{map}' is not of the form TGT=SRC")));
    }
    Ok(())
}

/// Runs `config`, which was `before` until options were put over it.
fn execute(mut config: Config, before: &Config, manner: Manner, ranks: &Ranks) -> Result<u8> {
    check(&config)?;
    let idle = idle::check(&config, before)?;
    let interrupt = Interrupt::install(ranks.are_several());
    if !ranks.is_first() {
        // It neither talks nor writes, and stops when the first one does.
        let silent = Manner { resume: manner.resume, ..Manner::default() };
        return Ok(train(&config, &silent, ranks, &mut Silent)?.outcome.exit_code());
    }
    refuse_outputs(&config, &manner)?;
    let log = manner.log.as_deref().map(|path| Log::open(path, manner.resume)).transpose()?;
    let board = manner.tensorboard.as_deref().map(Board::open).transpose()?;
    let mut audience = Audience { watcher: Watcher::new(interrupt, manner.quiet), log, board };
    idle.iter().for_each(|note| audience.event(&Event::Note(note)));
    let report = train(&config, &manner, ranks, &mut audience)?;
    if let Some(path) = &config.report {
        crate::onnx::atomic::write(path, report.html().as_bytes())?;
    }
    if report.output.is_some() {
        config.train.threads = config.train.threads.or(ranks.threads());
        let path = config.write_beside_output()?;
        if !manner.quiet {
            message(format!("repeat with: onnx-merge --config {}", path.display()));
        }
    }
    match manner.json {
        true => super::print_json(&report)?,
        false => super::print(&summary(&report, Paint::stdout()))?,
    }
    audience.finish(&report)?;
    Ok(report.outcome.exit_code())
}

fn train(config: &Config, manner: &Manner, ranks: &Ranks, observer: &mut dyn Observer) -> Result<Report> {
    let path = config.data.train.as_deref();
    if path.is_none() && (config.source.is_none() || config.train.joint || config.data.val.is_some()) {
        return Err(Error::usage("training data is missing").hint("say what to train on: --data train.npz"));
    }
    let begun = Instant::now();
    // The models are looked at before the executors are opened: a wrong path deserves the quickest answer.
    for model in config.sources().chain([&config.target]) {
        crate::onnx::read(model)?;
    }
    let open = |path: &Path, options: &DataOptions| -> Result<DataSets> {
        let part = |path: &Option<PathBuf>| path.as_ref().map(|p| crate::data::open(p, options)).transpose();
        let data = &config.data;
        Ok(DataSets {
            train: crate::data::open(path, options)?,
            val: part(&data.val)?,
            test: part(&data.test)?,
            unlabelled: part(&data.unlabelled)?,
            made_of: vec![],
        })
    };
    let profile = manner.profile.as_ref().map(|path| (Profile::default(), path));
    let mut options = executor_options(&config.train);
    options.profile = profile.as_ref().map(|(profile, _)| profile.clone());
    options.threads = options.threads.or(ranks.threads());
    let model_executor = runtime::open(config.train.executor, &options)?;
    let adapter_executor = match config.train.adapter_executor {
        Some(choice) if choice != config.train.executor => runtime::open(choice, &options)?,
        _ => model_executor.clone(),
    };
    let (data, source_data) = match (path, &config.source) {
        (None, Some(source)) => {
            let options = config.data.source_options.as_ref().unwrap_or(&config.data.options);
            let by = (&*model_executor, ranks);
            let made = crate::train::invent(source, options, &config.train, by, observer)?;
            // Both models see the same inputs, each scaled as it wants them.
            let ours = config.data.source_options.is_some().then(|| made.with_options(&config.data.options));
            match ours {
                Some(ours) => (ours, Some(made)),
                None => (made, None),
            }
        }
        _ => {
            let path = path.unwrap_or(Path::new(""));
            let theirs =
                config.data.source_options.as_ref().map(|options| open(path, options)).transpose()?;
            (open(path, &config.data.options)?, theirs)
        }
    };
    let joint = match &config.data.joint {
        Some(path) => {
            let options = config.data.source_options.as_ref().unwrap_or(&config.data.options);
            let train = crate::data::open(path, options)?.with_or_without_groups();
            Some(DataSets { train, val: None, test: None, unlabelled: None, made_of: vec![] })
        }
        None => None,
    };
    let request = MergeRequest {
        sources: config.sources().cloned().collect(),
        target: config.target.clone(),
        output: config.output.clone(),
        data,
        invented: path.is_none(),
        source_data,
        joint_data: joint,
        trajectory: config.trajectory.clone(),
        config: config.train.clone(),
        resume: manner.resume,
        model_executor,
        adapter_executor,
        // A library asked for by name is a demand, too. Ranks of one machine would all take the same GPU.
        movable: !ranks.are_several()
            && config.train.executor == ExecutorChoice::Auto
            && config.train.adapter_executor.is_none()
            && options.ort_lib.is_none(),
        options,
        ranks: ranks.clone(),
    };
    let opened = begun.elapsed();
    let mut report = crate::train::merge(request, observer)?;
    // Decoding a folder of images takes its time, and so does inventing inputs.
    report.seconds.read += opened.as_secs_f64();
    if let Some((profile, path)) = profile {
        super::profile::write(&profile, path)?;
    }
    Ok(report)
}

/// An output that can't be written, or would replace a model or data, is found out before the work, not after it.
fn refuse_outputs(config: &Config, manner: &Manner) -> Result<()> {
    let mut inputs: Vec<&Path> = vec![&config.target];
    inputs.extend(config.sources().map(PathBuf::as_path));
    let data = &config.data;
    let data = [&data.train, &data.val, &data.test, &data.unlabelled, &data.joint];
    inputs.extend(data.into_iter().flatten().map(PathBuf::as_path));
    let others = [config.report.as_ref(), manner.log.as_ref(), manner.profile.as_ref()];
    for path in std::iter::once(&config.output).chain(others.into_iter().flatten()) {
        crate::onnx::surgery::refuse_overwriting(path, &inputs)?;
        if path.is_dir() {
            return Err(Error::usage(format!("{} is a folder, not a file to write", path.display())));
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let refuse = |e| Error::io(folder, e).hint("the output's folder must exist and be writable");
        if !std::fs::metadata(folder).map_err(refuse)?.is_dir() {
            return Err(refuse(std::io::ErrorKind::NotADirectory.into()));
        }
        tempfile::Builder::new().prefix(".onnx-merge").tempfile_in(folder).map_err(refuse)?;
    }
    Ok(())
}
