//! What all arms of a run share: the models made ready, the data, the executors, the compiled programs.

use super::align::{Alignment, View, alignments};
use super::arms::{Arm, Means, SourceKind};
use super::batches::{Batches, Data, Examples, Help, mean_of};
use super::fit::{Accumulator, Fit, LossProgram, Losses};
use super::guide::{Guide, can_teach};
use super::metric::{Measure, Tally, Truth};
use super::model_step::Objective;
use super::network::Network;
use super::{Event, Observer, Preset, Task, TrainConfig};
use crate::error::{Error, Result};
use crate::lpka::{self, Origin, Side, UpdateProgram};
use crate::onnx::{Fact, Tensor, ValueId};
use crate::params::Pairing;
use crate::report::Metric;
use crate::runtime::{Compiled, Executor, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A part of the data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Split {
    Train,
    Val,
    Test,
    Unlabelled,
}

/// Models, data and programs of one run.
pub struct Session {
    pub config: TrainConfig,
    pub target: Network,
    pub sources: Vec<Source>,
    /// The target's trainable weights as they came.
    pub weights: Vec<(ValueId, Tensor)>,
    pub metric: Metric,
    pub model_executor: Arc<dyn Executor>,
    pub adapter_executor: Arc<dyn Executor>,
    pub means: Means,
    objective: Objective,
    examples: Examples,
    forward: Box<dyn Compiled>,
    /// By whether the sources teach, and whether their activations are aligned with.
    losses: HashMap<(bool, bool), Losses>,
    /// The order in which the model step takes weights and gives gradients.
    order: Vec<ValueId>,
}

/// A model whose knowledge is wanted.
pub struct Source {
    pub network: Network,
    pub pairing: Pairing,
    /// Runs it on the target's data; `None` where it can't read them.
    guide: Option<Guide>,
    teaches: bool,
    alignments: Vec<Alignment>,
    /// Standard deviations of the target's activations as it came, one an alignment.
    deviations: Vec<f64>,
}

/// A source in one arm.
#[derive(Clone, Default)]
pub struct Part {
    /// Its weights as its guide takes them, where they aren't as they came.
    weights: Option<Vec<Value>>,
    /// What its activations are multiplied by, one an alignment.
    scales: Vec<f64>,
}

impl Source {
    fn weights(&self) -> HashMap<ValueId, Tensor> {
        let of = |name: &ValueId| self.network.model.graph.initializers.get(name).cloned();
        let all = self.network.params.weights.iter();
        all.filter_map(|w| Some((w.name.clone(), of(&w.name)?))).collect()
    }
    /// Its weights in an arm.
    fn side(&self, kind: SourceKind, seed: u64) -> Side<'_> {
        let side = Side { graph: &self.network.params, weights: self.weights() };
        match kind {
            SourceKind::Shuffled => lpka::shuffled(&side, seed),
            SourceKind::Untrained => lpka::untrained(&side, seed),
            _ => side,
        }
    }
}

/// What a session is opened with.
pub struct Parts<'a> {
    pub config: TrainConfig,
    pub target: Network,
    pub sources: Vec<Network>,
    pub examples: Examples,
    /// The data as the sources want it.
    pub source_data: Data<'a>,
    /// The data as the target wants it.
    pub target_data: Data<'a>,
    pub model_executor: Arc<dyn Executor>,
    pub adapter_executor: Arc<dyn Executor>,
}

impl Session {
    pub fn open(parts: Parts<'_>, observer: &mut dyn Observer) -> Result<Self> {
        let Parts {
            config,
            target,
            sources,
            mut examples,
            target_data,
            source_data,
            model_executor,
            adapter_executor,
        } = parts;
        let weights = target.trainable(&config.freeze)?;
        let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
        let mut opened = vec![];
        for network in sources {
            opened.push(open_source(network, &target, source_data, &config, &*model_executor, observer)?);
        }
        let mut sources = opened;
        if config.align > 0.0 && config.adapter.preset == Preset::Structured {
            let rows: Vec<usize> = (0..examples.rows(Split::Train)).collect();
            let rows = examples.places(Split::Train, &rows);
            measure_target(&mut sources, &target, target_data, &rows, &*model_executor)?;
        }
        let teaches = sources.iter().any(|s| s.teaches);
        let objective = choose_objective(&config, &mut examples, &target, teaches)?;
        let measure = match objective {
            Objective::Classes | Objective::ClassesAndTeacher { .. } => Measure::Accuracy,
            _ => Measure::MeanSquaredError,
        };
        let probe = target.step(&names, objective)?;
        let order = probe.weights.clone();
        if order.is_empty() {
            return Err(Error::model(&target.file.path, "no trainable weight influences its first output"));
        }
        let unreached = names.len() - order.len();
        if unreached > 0 {
            observer.event(&Event::Note(&format!(
                "{unreached} weights don't influence the output and stay as they are"
            )));
        }
        let (forward, facts) = target.forward(&order)?;
        let forward = model_executor.compile(&forward, &facts)?;
        let means =
            Means { adapter: sources.iter().any(|s| !s.pairing.weights.is_empty()), teacher: teaches };
        let weights = weights.into_iter().filter(|(id, _)| order.contains(id)).collect();
        let mut session = Self {
            metric: measure.metric(),
            config,
            target,
            sources,
            weights,
            model_executor,
            adapter_executor,
            means,
            objective,
            examples,
            forward,
            losses: HashMap::new(),
            order,
        };
        let adapts = session.means.adapter && {
            let update = session.update(&Arm::lpka(0.0, false), session.config.seed)?;
            !update.transfers.is_empty() || !update.maps.is_empty()
        };
        if !session.sources.is_empty() && !adapts {
            observer.event(&Event::Note(
                "no weight of the source can be carried into the target: the adapter is left out",
            ));
        }
        session.means.adapter = adapts;
        Ok(session)
    }

    /// Whether there are labels to learn from.
    pub fn supervised(&self) -> bool {
        self.objective.wants_labels()
    }
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// Begins an arm.
    pub fn start(&mut self, arm: &Arm, seed: u64, steps: usize) -> Result<Fit> {
        let update = self.update(arm, seed)?;
        let mut fit = Fit::start(update, &self.order, self.adapter_executor.clone(), seed, steps)?;
        if arm.source != SourceKind::None {
            fit.parts = self.parts(arm.source, seed)?;
        }
        Ok(fit)
    }

    /// The sources as an arm has them.
    fn parts(&mut self, kind: SourceKind, seed: u64) -> Result<Vec<Part>> {
        let rows: Vec<usize> = (0..self.examples.rows(Split::Train)).collect();
        let rows = self.examples.places(Split::Train, &rows);
        let mut parts = vec![];
        for source in &mut self.sources {
            let twin = (kind != SourceKind::Real).then(|| source.side(kind, seed).weights);
            let Some(guide) = &mut source.guide else {
                parts.push(Part::default());
                continue;
            };
            let weights = twin.map(|tensors| guide.with(&tensors));
            let mut scales = vec![];
            if !source.alignments.is_empty() {
                let theirs = guide.deviations(&rows, weights.as_deref())?;
                // A dead interface has nothing to say: its activations become zeros, which the loss ignores.
                let scale = |(ours, theirs): (&f64, &f64)| Some(ours / theirs).filter(|s| s.is_normal());
                scales = source.deviations.iter().zip(&theirs).map(|p| scale(p).unwrap_or(0.0)).collect();
            }
            parts.push(Part { weights, scales });
        }
        Ok(parts)
    }

    /// The update program of an arm.
    pub fn update(&self, arm: &Arm, seed: u64) -> Result<UpdateProgram> {
        let target = Side { graph: &self.target.params, weights: self.weights.iter().cloned().collect() };
        let mut origins = vec![];
        for source in self.sources.iter().filter(|_| arm.source != SourceKind::None) {
            let mut origin = Origin::new(source.side(arm.source, seed), &source.pairing);
            origin.aligned = source.alignments.iter().map(|a| (a.target, a.source)).collect();
            origins.push(origin);
        }
        lpka::build(&target, &origins, &self.order, &self.config, arm.gate, &*self.adapter_executor, seed)
    }

    /// Takes steps with an arm; see [`Fit::advance`].
    pub fn advance(
        &mut self,
        arm: &Arm,
        fit: &mut Fit,
        until: usize,
        deadline: Option<Instant>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let objective = self.objective_of(arm);
        let key = (arm.teacher, arm.source != SourceKind::None);
        if !self.losses.contains_key(&key) {
            let losses = self.losses_of(objective, key.1)?;
            self.losses.insert(key, losses);
        }
        let Some(losses) = self.losses.get_mut(&key) else { return Ok(false) };
        let parts = std::mem::take(&mut fit.parts);
        let nothing = Part::default();
        let mut helpers = vec![];
        for (i, source) in self.sources.iter_mut().enumerate() {
            let part = parts.get(i).unwrap_or(&nothing);
            if let Some(guide) = &mut source.guide {
                let (weights, scales) = (part.weights.as_deref(), &part.scales[..]);
                helpers.push(Help { guide, teaches: source.teaches, scales, weights });
            }
        }
        let mut batches =
            Batches::new(&self.examples, &self.target, objective, helpers, &self.config, fit.seed);
        let arrived = fit.advance(until, losses, &mut batches, &self.config, deadline, observer);
        drop(batches);
        fit.parts = parts;
        arrived
    }

    fn objective_of(&self, arm: &Arm) -> Objective {
        let (temperature, alpha) = (self.config.temperature, self.config.alpha);
        match (self.objective, arm.teacher) {
            (Objective::Classes, true) => Objective::ClassesAndTeacher { temperature, alpha },
            (objective, _) => objective,
        }
    }

    /// The programs of a step under `objective`; `aligned` for arms with an adapter.
    fn losses_of(&self, objective: Objective, aligned: bool) -> Result<Losses> {
        let alignments: Vec<&Alignment> =
            self.sources.iter().filter(|_| aligned).flat_map(|s| &s.alignments).collect();
        let unlabelled = (self.examples.rows(Split::Unlabelled) > 0)
            .then(|| match objective {
                Objective::ClassesAndTeacher { temperature, .. } => {
                    Some(Objective::Teacher { width: self.target.head.width, logits: true, temperature })
                }
                Objective::Teacher { .. } => Some(objective),
                _ => (!alignments.is_empty()).then_some(Objective::AlignmentAlone),
            })
            .flatten();
        let labelled = self.loss_program(objective, &alignments, unlabelled.is_some())?;
        let unlabelled = match unlabelled {
            Some(objective) => Some((objective, self.loss_program(objective, &alignments, true)?)),
            None => None,
        };
        Ok(Losses { labelled, unlabelled })
    }

    fn loss_program(
        &self,
        objective: Objective,
        alignments: &[&Alignment],
        several: bool,
    ) -> Result<LossProgram> {
        let step = self.target.aligned_step(&self.order, objective, alignments, self.config.align)?;
        let program = self.model_executor.compile(&step.model, &step.facts)?;
        let linked = step.weights.iter().chain(&step.maps);
        let facts: Vec<Fact> = linked.filter_map(|w| step.facts.get(w).cloned()).collect();
        let single = several || self.target.batch < self.config.batch;
        let accumulate = if single { Some(Accumulator::new(&*self.model_executor, &facts)?) } else { None };
        let weights = step.weights.iter().filter_map(|w| self.order.iter().position(|o| o == w));
        let linked = weights.chain(self.order.len()..self.order.len() + step.maps.len()).collect();
        Ok(LossProgram { program, accumulate, linked })
    }

    /// The metric of the target with `weights` (in the model step's order) on a part of the data.
    /// NaN where that part is empty.
    pub fn evaluate(&mut self, weights: &[Value], split: Split) -> Result<f64> {
        let rows = self.examples.rows(split);
        let mut tally = Tally::new();
        for first in (0..rows).step_by(self.target.batch.max(1)) {
            let count = self.target.batch.min(rows - first);
            let picked: Vec<usize> = (first..first + count).collect();
            let inputs = self.examples.inputs(split, &picked, &self.target)?;
            let mut feeds: Vec<Value> = inputs.into_iter().map(Value::host).collect();
            feeds.extend_from_slice(weights);
            let answers = self.forward.run(&feeds)?;
            let Some(answer) = answers.first() else { break };
            let answer = answer.to_host()?;
            match self.objective.wants_labels() {
                true => self.examples.tally(split, &picked, &answer, &mut tally),
                false => {
                    let wanted = self.taught(split, &picked)?;
                    tally.add(&answer, &Truth::Vectors(&wanted.to_f32()), count);
                }
            }
        }
        Ok(tally.value())
    }

    /// What the teaching sources answer to some rows of a part, on average.
    fn taught(&mut self, split: Split, picked: &[usize]) -> Result<Tensor> {
        let rows = self.examples.places(split, picked);
        let mut answers = vec![];
        for source in self.sources.iter_mut().filter(|s| s.teaches) {
            if let Some(guide) = &mut source.guide {
                answers.push(guide.answers(split, &rows, None)?);
            }
        }
        mean_of(&answers).ok_or_else(|| Error::usage("there is no source to answer for the target"))
    }

    /// The metric of the sources' own answers on validation, where they can teach classes.
    pub fn teacher_score(&mut self) -> Result<Option<f64>> {
        if !(self.means.teacher && self.objective.wants_labels()) {
            return Ok(None);
        }
        let rows: Vec<usize> = (0..self.examples.rows(Split::Val)).collect();
        let answers = self.taught(Split::Val, &rows)?;
        let mut tally = Tally::new();
        self.examples.tally(Split::Val, &rows, &answers, &mut tally);
        Ok(Some(tally.value()))
    }

    /// The original weights as values, in the model step's order.
    pub fn original(&self) -> Vec<Value> {
        let find =
            |id: &ValueId| self.weights.iter().find(|(w, _)| w == id).map(|(_, t)| Value::host(t.clone()));
        self.order.iter().filter_map(find).collect()
    }
    /// Names for weights in the model step's order, on the host.
    pub fn named(&self, weights: &[Value]) -> Result<Vec<(ValueId, Tensor)>> {
        self.order.iter().zip(weights).map(|(id, v)| Ok((id.clone(), v.to_host()?))).collect()
    }
    /// The reverse of [`Session::named`]; `None` where one is missing.
    pub fn weights_from(&self, named: &[(ValueId, Tensor)]) -> Option<Vec<Value>> {
        let find = |id: &ValueId| named.iter().find(|(w, _)| w == id).map(|(_, t)| Value::host(t.clone()));
        self.order.iter().map(find).collect()
    }
}

/// Pairs a source with the target and finds out what it can do on the data.
fn open_source(
    network: Network,
    target: &Network,
    data: Data<'_>,
    config: &TrainConfig,
    executor: &dyn Executor,
    observer: &mut dyn Observer,
) -> Result<Source> {
    let pairing = match itself(target, &network) && config.map.is_empty() {
        true => Pairing::within(&target.params),
        false => Pairing::automatic(&target.params, &network.params, &config.map)?,
    };
    let structured = config.adapter.preset == Preset::Structured;
    let mut alignments = match config.align > 0.0 && structured {
        true => alignments(target, &network, &pairing),
        false => vec![],
    };
    let views: Vec<&View> = alignments.iter().map(|a| &a.theirs).collect();
    let mut note =
        |why: Error| observer.event(&Event::Note(&format!("the source can't teach by its answers: {why}")));
    let mut teaches = can_teach(&network, target).map_err(&mut note).is_ok();
    let guide = match Guide::open(&network, data, &views, executor) {
        Ok(guide) => Some(guide),
        Err(why) => {
            if teaches {
                note(why);
            }
            (teaches, alignments) = (false, vec![]);
            None
        }
    };
    Ok(Source { network, pairing, guide, teaches, alignments, deviations: vec![] })
}

/// Whether the source is the target itself.
fn itself(target: &Network, source: &Network) -> bool {
    let (ours, theirs) = (&target.model.graph.initializers, &source.model.graph.initializers);
    let same =
        |w: &crate::params::Weight| ours.get(&w.name).zip(theirs.get(&w.name)).is_some_and(|(a, b)| a == b);
    target.params.weights.len() == source.params.weights.len() && target.params.weights.iter().all(same)
}

/// How much the target's activations vary as it came, wherever they are aligned with a source's.
fn measure_target(
    sources: &mut [Source],
    target: &Network,
    data: Data<'_>,
    rows: &[usize],
    executor: &dyn Executor,
) -> Result<()> {
    let views: Vec<&View> = sources.iter().flat_map(|s| &s.alignments).map(|a| &a.ours).collect();
    if views.is_empty() {
        return Ok(());
    }
    let found = Guide::open(target, data, &views, executor)?.deviations(rows, None)?;
    let mut found = found.into_iter();
    for source in sources {
        source.deviations = found.by_ref().take(source.alignments.len()).collect();
    }
    Ok(())
}

/// What the loss is, from the task asked for, the labels there are, and the models' answers. Reads the labels.
fn choose_objective(
    config: &TrainConfig,
    examples: &mut Examples,
    target: &Network,
    teacher: bool,
) -> Result<Objective> {
    let width = target.head.width;
    let task = match config.task {
        Task::Auto if examples.has_classes() => Task::Classify,
        Task::Auto if examples.has_labels() => Task::Regress,
        Task::Auto => Task::MatchOutputs,
        task => task,
    };
    match task {
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
