//! The main job: two models and data in, the target with better weights out, and a report of what happened.

use super::arms::{self, Arm, SourceKind};
use super::checkpoint::{Checkpoint, RunState};
use super::contest::Contest;
use super::data_free;
use super::datasets::DataSets;
use super::examples::{Data, Examples};
use super::fingerprint::Fingerprint;
use super::folds;
use super::foreseen;
use super::gate;
use super::moving;
use super::network::{Network, Purpose};
use super::objective;
use super::output;
use super::ranks::Ranks;
use super::results;
use super::runs;
use super::session::{Parts, Session, Split};
use super::worth;
use super::{Event, Method, Observer, Start, TrainConfig};
use crate::data::Usages;
use crate::error::{Error, Result};
use crate::onnx::{self, ValueId};
use crate::report::{self, Report};
use crate::runtime::{self, Executor, ExecutorChoice, ExecutorOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is to be merged, from what, into what.
pub struct MergeRequest {
    /// The models whose knowledge is wanted; none only tunes the target.
    pub sources: Vec<PathBuf>,
    pub target: PathBuf,
    pub output: PathBuf,
    pub data: DataSets,
    /// Whether `data` is made up, so that no gain on it is known to be one.
    pub invented: bool,
    /// The same rows as the sources want them, where they want other scaling than the target.
    pub source_data: Option<DataSets>,
    /// What the first source is trained on beside the target, where that is other data (`joint`).
    pub joint_data: Option<DataSets>,
    /// The first source at earlier times, the earliest first.
    pub trajectory: Vec<PathBuf>,
    pub config: TrainConfig,
    /// Go on from the checkpoint beside the output.
    pub resume: bool,
    pub model_executor: Arc<dyn Executor>,
    pub adapter_executor: Arc<dyn Executor>,
    /// Whether a GPU may be taken instead of both, where the work is worth it: they weren't demanded.
    pub movable: bool,
    /// What other executors are opened with.
    pub options: ExecutorOptions,
    /// The processes that train together.
    pub ranks: Ranks,
}

impl MergeRequest {
    /// The target and the sources.
    pub(super) fn models(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.target).chain(&self.sources).chain(&self.trajectory)
    }
}

/// Trains, chooses, gates, writes. Where a GPU is lost on the way, the run goes on from its last checkpoint on the CPU. Of
/// several ranks only the first writes; all return the same report, but for the output.
///
/// # Errors
/// Anything wrong with the input; then nothing is written and an existing output is left alone.
pub fn merge(mut request: MergeRequest, observer: &mut dyn Observer) -> Result<Report> {
    let made = multiply(&mut request)?;
    let lost = match run(&mut request, made.as_deref(), observer) {
        Err(error) if error.is_device_lost() && !request.ranks.are_several() => error,
        done => return done,
    };
    let Ok(cpu) = runtime::open(ExecutorChoice::Auto, &request.options) else { return Err(lost) };
    observer
        .event(&Event::Warning(&format!("{lost}: going on from the last checkpoint, on {}", cpu.device())));
    (request.model_executor, request.adapter_executor) = (cpu.clone(), cpu);
    (request.movable, request.resume) = (false, true);
    run(&mut request, made.as_deref(), observer)
}

/// More rows without labels, where some source could use them; returns what was done. Both kinds of model see the same ones.
fn multiply(request: &mut MergeRequest) -> Result<Option<String>> {
    let asked = request.config.made_rows.is_some_and(|count| count > 0);
    let theirs = &request.source_data.as_ref().unwrap_or(&request.data).train;
    // A model has nothing to tell itself about rows that nobody else has answers to.
    let other = |source: &&PathBuf| asked || !onnx::surgery::same_file(source, &request.target);
    if request.invented || !request.config.wants_unlabelled() {
        return Ok(None);
    }
    let mut usages = Usages::new();
    let mut read = false;
    for source in request.sources.iter().filter(other) {
        read |= theirs.add_usages(&onnx::read(source)?.model.graph, &mut usages).is_ok();
    }
    if !read {
        return match asked {
            true => Err(Error::usage("--made-rows are for a source to answer, and none reads this data")
                .hint("leave it out")),
            false => Ok(None),
        };
    }
    let made = request.data.multiply(&request.config, |train| {
        // Where the target can't read the data, that is said when it does.
        let _ = train.add_usages(&onnx::read(&request.target)?.model.graph, &mut usages);
        Ok(usages)
    })?;
    if let Some(theirs) = request.source_data.as_mut().filter(|theirs| theirs.unlabelled.is_none()) {
        (theirs.unlabelled, theirs.made_of) = (request.data.unlabelled.clone(), request.data.made_of.clone());
        if let Some(made) = &mut theirs.unlabelled {
            made.options = theirs.train.options.clone();
        }
    }
    Ok(made)
}

/// `made` says how rows without labels came about.
fn run(request: &mut MergeRequest, made: Option<&str>, observer: &mut dyn Observer) -> Result<Report> {
    let begun = Instant::now();
    let inputs: Vec<&Path> = request.models().map(PathBuf::as_path).collect();
    onnx::surgery::refuse_overwriting(&request.output, &inputs)?;
    observer.event(&Event::Phase("reading"));
    let config = request.config.clone();
    let examples = fitting_data(request)?;
    let fingerprint = Fingerprint::of(request)?;
    check_ranks(&request.ranks, &config, &fingerprint)?;
    let checkpoint = Checkpoint::beside(&request.output, &request.ranks);
    let state = match request.resume && checkpoint.exists() {
        true => checkpoint.load(&fingerprint)?,
        false => RunState { fingerprint, ..RunState::default() },
    };
    let (mut target, mut sources) = open_networks(request, &examples, observer)?;
    if let Some(gpu) = worthwhile_gpu(request, &target) {
        observer.event(&Event::Note(&format!("a step is worth a GPU: training on {}", gpu.device())));
        (request.model_executor, request.adapter_executor) = (gpu.clone(), gpu);
        (target, sources) = open_networks(request, &examples, observer)?;
    }
    let read = begun.elapsed();

    observer.event(&Event::Phase("planning"));
    let (task, settled) = objective::settle(&config, &examples, &mut target, &mut sources)?;
    let steps = match (config.steps, config.epochs) {
        (None, None) if request.invented => data_free::DEFAULT_STEPS,
        _ => arms::steps_for(&config, examples.rows(Split::Train)),
    };
    let parts = Parts {
        config: config.clone(),
        task,
        target,
        sources,
        examples,
        target_data: request.data.borrow(),
        joint_data: request.joint_data.as_ref().map(DataSets::borrow),
        trajectory: &request.trajectory,
        source_data: request.source_data.as_ref().unwrap_or(&request.data).borrow(),
        model_executor: request.model_executor.clone(),
        adapter_executor: request.adapter_executor.clone(),
        ranks: request.ranks.clone(),
    };
    let mut session = Session::open(parts, observer)?;
    let mut notes: Vec<String> =
        settled.into_iter().chain(session.examples().notes()).chain(session.notes.clone()).collect();
    notes.extend(other_outputs(&config, &session.target));
    notes.extend(shared_out(&request.ranks, &config));
    notes.iter().for_each(|note| observer.event(&Event::Note(note)));
    let untouched = gate::measure(&mut session)?;
    let taught = config.method != Method::Auto || teaches(&mut session, untouched.scores.val, observer)?;
    let means = arms::Means { teacher: session.means.teacher && taught, ..session.means };
    let candidates = arms::candidates(&config, means, session.supervised());
    if candidates.is_empty() {
        return Err(nothing_to_try(&config, &session));
    }
    note_unused(&session, &candidates, made).into_iter().for_each(|note| observer.event(&Event::Note(note)));
    let plan = begun.elapsed() - read;

    observer.event(&Event::Phase("training"));
    if request.resume && state.arms.is_empty() {
        observer.event(&Event::Note("there is no checkpoint to go on from: starting anew"));
    }
    let deadline = config.time.map(|s| Instant::now() + Duration::from_secs_f64(s.max(0.0)));
    let mut contest =
        Contest { session: &mut session, checkpoint, state, deadline, stopped: false, planned: None };
    let results::Results { chosen, arms, curves, attention } =
        results::run_arms(&mut contest, candidates, steps, observer)?;
    notes.extend(contest.planned.take());
    let candidate = gate::judge(contest.session, chosen.winner.as_ref(), &untouched)?;
    let asked = match candidate.as_ref().filter(|_| !request.invented) {
        Some(candidate) => folds::ask(&mut contest, &chosen, candidate, &untouched, observer)?,
        None => folds::Answer::default(),
    };
    let folds = asked.folds;
    let interrupted = contest.stopped && request.ranks.decide(observer.interrupted());
    let checkpoint = contest.checkpoint;
    let trained = begun.elapsed() - read - plan;

    observer.event(&Event::Phase("writing"));
    let writing = Instant::now();
    let passed = gate::pass(&mut session, candidate, folds.as_ref(), &untouched)?;
    let gate::Passed { weights, scores: shipped, gains, note } = passed;
    let last: Vec<String> = asked.note.into_iter().chain(note).collect();
    last.iter().for_each(|note| observer.event(&Event::Note(note)));
    let improved = weights.is_some();
    let changed = match &weights {
        Some(weights) => session.named(weights)?,
        None => vec![],
    };
    // From here on each rank is by itself.
    session.ranks = Ranks::default();
    let output = match request.ranks.is_first() {
        true => Some(output::write(&mut session, &changed, request, shipped.val)?),
        false => None,
    };
    if !interrupted {
        checkpoint.remove();
    }
    let (source_worth, rivals) =
        (worth::of_source(&arms, &session.metric), worth::rivals(&arms, &session.metric));
    let changed = output::describe(&session, &changed);
    // Only now do executors know what of their programs ran elsewhere.
    let executors = executors_used(request);
    Ok(Report {
        schema: report::SCHEMA,
        outcome: match (interrupted, improved) {
            (true, _) => report::Outcome::Interrupted,
            (false, true) if request.invented => report::Outcome::Unverified,
            (false, true) => report::Outcome::Gain,
            (false, false) => report::Outcome::NoGain,
        },
        method: chosen.arm.method().to_owned(),
        preset: (chosen.arm.source != SourceKind::None)
            .then(|| format!("{:?}", config.adapter.preset).to_lowercase()),
        executors,
        metric: session.metric.clone(),
        truth: match session.supervised() {
            true => report::Truth::Labels,
            false => report::Truth::Source,
        },
        untouched: untouched.scores,
        shipped,
        gains,
        folds,
        arms,
        source_worth,
        rivals,
        changed,
        seconds: report::Seconds {
            read: read.as_secs_f64(),
            plan: plan.as_secs_f64(),
            train: trained.as_secs_f64(),
            write: writing.elapsed().as_secs_f64(),
        },
        output: output.map(|sha256| report::Output { path: request.output.clone(), sha256 }),
        source: request.sources.first().cloned(),
        target: request.target.clone(),
        rows: session.examples().row_counts(),
        verified: !request.invented,
        notes: notes.into_iter().chain(last).collect(),
        curves,
        attention,
    })
}

/// Refuses what several processes can't do together.
///
/// # Errors
/// [`Error::Usage`] where a step needs all its rows in one place, or ranks were given other inputs than the first.
fn check_ranks(ranks: &Ranks, config: &TrainConfig, fingerprint: &Fingerprint) -> Result<()> {
    if config.train_bn && ranks.are_several() {
        let what = "--train-bn needs the rows of a step side by side, and several processes share them out";
        return Err(Error::usage(what).hint("start it without mpirun, or leave out --train-bn"));
    }
    let ours = serde_json::to_vec(fingerprint).unwrap_or_default();
    match ranks.first_bytes(|| Ok(ours.clone()))? == ours {
        true => Ok(()),
        false => Err(Error::usage("other models, data or options were read here than by the first process")
            .hint("every process reads all files: they must be the same on every machine")),
    }
}

/// Who takes how many of a step's rows, where several processes do.
fn shared_out(ranks: &Ranks, config: &TrainConfig) -> Option<String> {
    let (size, batch) = (ranks.size(), config.batch.max(1));
    let rows = batch.div_ceil(size);
    let of = match batch.is_multiple_of(size) {
        true => format!("{rows}"),
        false => format!("{} or {rows}", batch / size),
    };
    ranks
        .are_several()
        .then(|| format!("{size} processes share the {batch} rows of each step: {of} for each"))
}

/// The data, bound to the target. What doesn't fit is refused here as far as the models' files tell, before anything large
/// is read or run: models may take a minute to get ready.
///
/// # Errors
/// Data that don't fit the inputs of a model that is to be trained, or labels that don't fit its answers.
fn fitting_data(request: &MergeRequest) -> Result<Examples> {
    let TrainConfig { of, src_of, joint, seed, .. } = &request.config;
    let bind = |data: Data<'_>, path: &Path, of: &Option<String>| -> Result<_> {
        let model = onnx::read(path)?.model;
        let examples = Examples::new(data, &model.graph, *seed)?;
        let answer = examples.bound().and_then(|bound| foreseen::answer(&model, bound, of.as_deref()));
        Ok((examples, answer))
    };
    let (examples, answer) = bind(request.data.borrow(), &request.target, of)?;
    objective::check_labels(&request.config, &examples, answer.as_ref(), !request.sources.is_empty())?;
    if let Some(source) = request.sources.first().filter(|_| *joint) {
        let data = request.joint_data.as_ref().or(request.source_data.as_ref()).unwrap_or(&request.data);
        let (mut examples, answer) = bind(data.borrow(), source, src_of)?;
        answer.map(|answer| moving::objective(&mut examples, &answer)).transpose()?;
    }
    Ok(examples)
}

fn open_networks(
    request: &MergeRequest,
    examples: &Examples,
    observer: &mut dyn Observer,
) -> Result<(Network, Vec<Network>)> {
    let executor = &*request.model_executor;
    let target = open_target(request)?;
    let answer = target.head.known();
    objective::check_labels(&request.config, examples, Some(&answer), !request.sources.is_empty())?;
    target.check_repeatable()?;
    if let Some(why) = target.single_rows_because() {
        observer.event(&Event::Warning(&format!(
            "the target's batch dimension can't be freed ({why}): training runs single rows and averages gradients"
        )));
    }
    let data = Some(&request.source_data.as_ref().unwrap_or(&request.data).train);
    let TrainConfig { of, src_of, .. } = &request.config;
    let open = |path: &PathBuf| match src_of {
        Some(_) => Network::open(
            path,
            target.batch,
            Purpose { data, of: src_of.as_deref(), ..Purpose::default() },
            executor,
        ),
        // Of several outputs it is the one of the same name, if there is one.
        None => {
            let of = match of.as_deref() {
                Some(of) => {
                    let outputs = onnx::read(path)?.model.graph.outputs;
                    outputs.iter().any(|output| output.id.as_str() == of).then_some(of)
                }
                None => None,
            };
            Network::open_source(path, target.batch, Purpose { data, of, ..Purpose::default() }, executor)
        }
    };
    let mut sources = request.sources.iter().map(open).collect::<Result<Vec<_>>>()?;
    // They are trained, too, where they move.
    sources.iter_mut().for_each(|source| source.recompute = request.config.recompute);
    Ok((target, sources))
}

/// What else the loss might look at, where nobody says.
fn other_outputs(config: &TrainConfig, target: &Network) -> Option<String> {
    let others: Vec<&str> = target.head.others.iter().map(ValueId::as_str).collect();
    (config.of.is_none() && !others.is_empty()).then(|| {
        let (output, others) = (&target.head.output, others.join(", "));
        format!("of the target's outputs, the loss looks at '{output}' (--of chooses another: {others})")
    })
}

/// The target for this rank's rows of a step. A batch whose statistics count isn't cut into runs.
fn open_target(request: &MergeRequest) -> Result<Network> {
    let (config, executor) = (&request.config, &*request.model_executor);
    let path = &request.target;
    let data = Some(&request.data.train);
    let purpose = Purpose { data, of: config.of.as_deref(), dropout: config.train_dropout };
    let batch = request.ranks.share(config.batch).len().max(1);
    let mut target = match config.train_bn {
        true => Network::open(path, batch, purpose, executor)?,
        false => runs::open_target(path, batch, purpose, executor)?,
    };
    if config.train_bn {
        target.train_norms(&config.freeze)?;
    }
    target.recompute = config.recompute;
    Ok(target)
}

/// The GPU that the target's steps are worth, where none was demanded or refused.
fn worthwhile_gpu(request: &MergeRequest, target: &Network) -> Option<Arc<dyn Executor>> {
    let runs = request.config.batch.max(1).div_ceil(target.batch);
    let find = || runtime::gpu_where_it_pays(&target.model, &target.facts, runs, &request.options);
    request.movable.then(find).flatten()
}

/// Whether the source answers the validation data at least as well as the target does. A worse teacher pulls its
/// student down, and trying it costs half of all arms.
fn teaches(session: &mut Session, target: Option<f64>, observer: &mut dyn Observer) -> Result<bool> {
    let source = session.teacher_tally(Split::Val)?.map(|tally| session.ranks.first_number(tally.value()));
    let (Some(source), Some(target)) = (source, target) else { return Ok(true) };
    let worse = session.metric.gain(target, source) < 0.0;
    if worse {
        let (source, target) = (session.metric.show(source), session.metric.show(target));
        observer.event(&Event::Note(&format!(
            "the source's own answers are worse than the target's on validation ({source} against {target}): \
             distillation is not tried (--method kd would)"
        )));
    }
    Ok(!worse)
}

fn nothing_to_try(config: &TrainConfig, session: &Session) -> Error {
    let why = match config.method {
        Method::Kd | Method::LpkaKd | Method::FeaturesKd if !session.means.teacher => {
            "the source can't answer for the target's data"
        }
        Method::Features | Method::FeaturesKd if !session.means.features => {
            "the source can't read the target's data, or none of its activations corresponds to the target's (or --align is 0)"
        }
        _ if config.start == Start::Fitted && !session.means.tutor => {
            "the source can't read the target's data, or none of its layers corresponds to one of the target, so nothing can \
             be fitted"
        }
        _ if !session.means.adapter => "no weight of the source pairs with one of the target",
        _ => "the data has no labels",
    };
    Error::usage(format!("this method can't be used here: {why}"))
        .hint("`--method auto` uses whatever applies")
}

/// Notes on data that nothing learns from; `made` says how rows without labels came about.
fn note_unused<'a>(session: &Session, candidates: &[Arm], made: Option<&'a str>) -> Vec<&'a str> {
    let (config, means, mut notes) = (&session.config, session.means, vec![]);
    let shifts = config.shift.is_some_and(|pixels| pixels > 0);
    if shifts && !session.examples().has_images() {
        notes.push("--shift does nothing: no input is an image");
    } else if shifts && session.examples().labels_have_places() {
        notes.push(
            "--shift does nothing: the labels of a row's positions would no longer lie where they belong",
        );
    }
    let learns = |arm: &Arm| arm.teacher || arm.fitted || (arm.aligns() && means.features);
    let controls = config.ablate && (means.teacher || means.tutor || means.features);
    let used = controls || !session.supervised() || candidates.iter().any(learns);
    if session.examples().rows(Split::Unlabelled) > 0 {
        notes.extend(match used {
            true => made,
            false => Some("rows without labels are not used: the source has nothing to say to them"),
        });
    }
    notes
}

fn executors_used(request: &MergeRequest) -> report::Executors {
    let used = |e: &dyn Executor| report::ExecutorUsed { name: e.name().to_owned(), device: e.device() };
    report::Executors {
        model: used(&*request.model_executor),
        adapter: Some(used(&*request.adapter_executor)),
    }
}
