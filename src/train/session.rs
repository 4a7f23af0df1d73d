//! What all arms of a run share: the models made ready, the data, the executors, the compiled programs.

use super::align::Alignment;
use super::arms::{Arm, Means, SourceKind};
use super::batch_norm::{Running, Statistic};
use super::batches::{Batches, Help, mean_of};
use super::examples::{Data, Examples};
use super::fit::{Fit, LossProgram, Losses};
use super::fitted::{self, Learner};
use super::metric::{Measure, Row, Tally, Truth, spread};
use super::model_step::Objective;
use super::moving::{CYCLE, Moving, Pace, Trainer, measured_rows};
use super::network::Network;
use super::ranks::Ranks;
use super::source::{Part, Source, Weights, measure_target};
use super::{Event, Observer, Start, Task, TrainConfig, guide, objective};
use crate::autodiff::recompute::Saving;
use crate::data::Layout;
use crate::error::{Error, Result};
use crate::lpka::{self, Origin, Side, UpdateProgram};
use crate::onnx::{Tensor, ValueId};
use crate::report::Metric;
use crate::runtime::{Compiled, Executor, Value, run_jobs};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A part of the data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Split {
    Train,
    Val,
    Test,
    Unlabelled,
    /// Training rows that are left out of training ([`Session::leave_out`]).
    HeldOut,
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
    pub ranks: Ranks,
    pub means: Means,
    objective: Objective,
    examples: Examples,
    forward: Box<dyn Compiled>,
    /// Fits the target's layers to the sources', where any has corresponding ones.
    learner: Option<Learner>,
    /// Its fits, by kind of source and seed.
    fits: HashMap<(SourceKind, u64), Weights>,
    /// Trains the first source beside the target.
    trainer: Option<Trainer>,
    /// By whether the sources teach, and whether their activations are aligned with.
    losses: HashMap<(bool, bool), Losses>,
    /// The order in which the model step takes weights and gives gradients.
    order: Vec<ValueId>,
    /// The same and the running statistics that follow: what an arm changes of the target, in the order of its forward pass.
    moved: Vec<ValueId>,
    statistics: Vec<Statistic>,
    /// What alignment counts by in the loss.
    unit: f64,
    /// What was done to the sources' answers, for the user.
    pub notes: Vec<String>,
    /// As how many independent labels those of validation tell, where rows have several.
    val_answers: Option<usize>,
}

/// What a session is opened with.
pub struct Parts<'a> {
    pub config: TrainConfig,
    /// What the target is to do, which the networks' heads are settled for.
    pub task: Task,
    pub target: Network,
    pub sources: Vec<Network>,
    pub examples: Examples,
    /// The data as the sources want it.
    pub source_data: Data<'a>,
    /// The data as the target wants it.
    pub target_data: Data<'a>,
    /// What the first source is trained on beside the target, where that is other data.
    pub joint_data: Option<Data<'a>>,
    /// The first source at earlier times.
    pub trajectory: &'a [PathBuf],
    pub model_executor: Arc<dyn Executor>,
    pub adapter_executor: Arc<dyn Executor>,
    pub ranks: Ranks,
}

impl Session {
    pub fn open(parts: Parts<'_>, observer: &mut dyn Observer) -> Result<Self> {
        let Parts {
            config,
            task,
            target,
            sources,
            mut examples,
            target_data,
            source_data,
            joint_data,
            trajectory,
            model_executor,
            adapter_executor,
            ranks,
        } = parts;
        let weights = target.trainable(&config.freeze)?;
        let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
        let layers = if config.fits() && !sources.is_empty() { fitted::Unit::all(&target) } else { vec![] };
        let mut opened = vec![];
        for network in sources {
            let to = (&target, &layers[..]);
            opened.push(Source::open(network, to, source_data, &config, &*model_executor, observer)?);
        }
        let mut sources = opened;
        let learner = match sources.iter().any(Source::fits) {
            true => Some(Learner::open(&target, layers, target_data, &*model_executor)?),
            false => None,
        };
        if let Some(source) = sources.first_mut() {
            source.remember(trajectory, &*model_executor)?;
        }
        let trainer = match sources.first_mut().filter(|_| config.joint) {
            Some(source) => {
                let data = joint_data.unwrap_or(source_data);
                let adapter = adapter_executor.clone();
                let mut trainer =
                    Trainer::open(&mut source.network, data, &config, &*model_executor, adapter, &ranks)?;
                trainer.apart = joint_data.is_some();
                Some(trainer)
            }
            None => None,
        };
        let rows = measured_rows(&examples);
        measure_target(&mut sources, &target, target_data, &rows, &*model_executor)?;
        let teaches = sources.iter().any(|s| s.teaches);
        let objective = objective::choose(task, &config, &mut examples, &target, teaches)?;
        let mut notes = vec![];
        for source in sources.iter_mut().filter(|_| config.distils()) {
            notes.extend(source.tune_loudness(&examples)?);
        }
        let measure = match objective {
            Objective::Classes { .. } | Objective::ClassesAndTeacher { .. } if config.balanced => {
                Measure::BalancedAccuracy
            }
            Objective::Classes { .. } | Objective::ClassesAndTeacher { .. } => Measure::Accuracy,
            _ => Measure::MeanSquaredError,
        };
        let probe = target.step(&names, objective)?;
        let order = probe.weights.clone();
        if order.is_empty() {
            let what = format!("no trainable weight influences output '{}'", target.head.output);
            return Err(Error::model(&target.file.path, what).hint(super::head::REAL_ANSWER));
        }
        let unreached = names.len() - order.len();
        if unreached > 0 {
            observer.event(&Event::Note(&format!(
                "{unreached} weights don't influence the output and stay as they are"
            )));
        }
        notes.extend(probe.saving.iter().flat_map(Saving::notes));
        let statistics = probe.statistics;
        let followed = statistics.iter().map(|s| s.name.clone());
        let moved: Vec<ValueId> = order.iter().cloned().chain(followed).collect();
        let (forward, facts) = target.forward(&moved)?;
        let forward = model_executor.compile(&forward, &facts)?;
        let means = Means {
            adapter: sources.iter().any(|s| !s.pairing.weights.is_empty()),
            teacher: teaches,
            tutor: learner.is_some(),
            features: sources.iter().any(|s| !s.alignments.is_empty()),
        };
        let weights = weights.into_iter().filter(|(id, _)| order.contains(id)).collect();
        let mut session = Self {
            metric: measure.metric(),
            config,
            target,
            sources,
            weights,
            model_executor,
            adapter_executor,
            ranks,
            means,
            objective,
            examples,
            forward,
            learner,
            fits: HashMap::new(),
            trainer,
            losses: HashMap::new(),
            order,
            moved,
            statistics,
            unit: 1.0,
            notes,
            val_answers: None,
        };
        session.unit = session.unit_of_loss()?;
        let adapts = session.means.adapter && session.carries(&Arm::lpka(0.0, false))?;
        if !session.sources.is_empty() && !adapts {
            observer.event(&Event::Note(
                "no weight of the source can be carried into the target: the adapter is left out",
            ));
        }
        session.means.adapter = adapts;
        if session.config.start == Start::Fitted && !session.means.tutor {
            observer.event(&Event::Note("no layer of the target can be fitted to one of the source's"));
        }
        Ok(session)
    }

    /// Whether there are labels to learn from.
    pub fn supervised(&self) -> bool {
        self.objective.wants_labels()
    }
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// How large a loss is that explains nothing, where it isn't about one: squared errors have the unit of what they are
    /// about, an alignment is measured by the activations' own variance.
    fn unit_of_loss(&mut self) -> Result<f64> {
        if self.sources.iter().all(|source| source.alignments.is_empty()) {
            return Ok(1.0);
        }
        let some: Vec<usize> = (0..self.examples.rows(Split::Train).min(guide::MEASURED)).collect();
        let spread = match self.objective {
            Objective::Vectors { width } => spread(&self.examples.vectors(), width),
            Objective::Teacher { logits: false, layout, .. } => {
                let answers = taught(&mut self.sources, &self.examples, Split::Train, &some)?;
                spread(&answers.to_f32(), layout.width())
            }
            _ => 1.0,
        };
        Ok(if spread.is_normal() { spread } else { 1.0 })
    }

    /// Begins an arm, its schedule laid out for so many steps and a highest learning rate.
    pub fn start(&mut self, arm: &Arm, seed: u64, schedule: (usize, f64)) -> Result<Fit> {
        let pace = self.pace(arm);
        let moved = match pace {
            Some(Pace::Stages(_)) => self.sources.first().and_then(|s| s.past.first()).cloned(),
            _ => None,
        };
        self.choose(arm, seed)?;
        let fitted = self.fitted(arm, seed, schedule.0)?;
        let update = self.update(arm, seed, moved.as_ref(), fitted)?;
        let mut fit = Fit::start(update, &self.order, self.adapter_executor.clone(), seed, schedule)?;
        fit.parts = self.parts(arm, seed, moved.as_ref())?;
        let initial = &self.target.model.graph.initializers;
        let running = |s: &Statistic| Some(Running::new(s, initial.get(&s.name)?));
        fit.running = self.statistics.iter().filter_map(running).collect();
        fit.moving = pace.map(|_| Moving::new());
        Ok(fit)
    }

    /// How the first source moves while an arm trains. The empty twins of a source in training stay as they are: trained,
    /// they would no longer be empty.
    fn pace(&self, arm: &Arm) -> Option<Pace> {
        let source = self.sources.first().filter(|_| arm.source != SourceKind::None)?;
        match (&self.trainer, source.past.len()) {
            (Some(_), _) if arm.source == SourceKind::Real => {
                Some(Pace::Every(self.config.adapter.cycle.unwrap_or(CYCLE)))
            }
            (None, past @ 1..) => Some(Pace::Stages(past + 1)),
            _ => None,
        }
    }

    /// The sources as an arm has them; `moved` are the first one's weights where they aren't as they came.
    fn parts(&mut self, arm: &Arm, seed: u64, moved: Option<&Weights>) -> Result<Vec<Part>> {
        if arm.source == SourceKind::None {
            return Ok(vec![]);
        }
        let rows = measured_rows(&self.examples);
        let part = |(i, source): (usize, &mut Source)| {
            let mut part = source.part(arm.source, seed, moved.filter(|_| i == 0), &rows)?;
            if !arm.aligns() {
                part.scales.clear();
            }
            if arm.fitted {
                // The target's activations are the source's own from the start, not its old ones.
                part.scales.iter_mut().filter(|s| **s != 0.0).for_each(|s| *s = 1.0);
                // Channels that are still its own have nothing to be held against.
                let whole = source.replaces(arm.source, seed);
                part.scales.iter_mut().zip(whole).filter(|(_, whole)| !whole).for_each(|(s, _)| *s = 0.0);
            }
            Ok(part)
        };
        self.sources.iter_mut().enumerate().map(part).collect()
    }

    /// Chooses which channels of the sources stand for the target's in an arm that starts from a fit.
    fn choose(&mut self, arm: &Arm, seed: u64) -> Result<()> {
        if !arm.fitted {
            return Ok(());
        }
        let rows = measured_rows(&self.examples);
        let choose = |source: &mut Source| source.choose(&self.target, arm.source, seed, &rows, &self.ranks);
        self.sources.iter_mut().try_for_each(choose)
    }

    /// What the weights of an arm start from, where it starts from a fit: the same for all arms with the same source.
    fn fitted(&mut self, arm: &Arm, seed: u64, steps: usize) -> Result<Weights> {
        let Some(learner) = self.learner.as_mut().filter(|_| arm.fitted) else { return Ok(Weights::new()) };
        if let Some(known) = self.fits.get(&(arm.source, seed)) {
            return Ok(known.clone());
        }
        let teachings = self.sources.iter_mut().filter_map(|s| s.teaching(arm.source, seed)).collect();
        let (executor, effort) = (&*self.model_executor, steps * self.config.batch);
        let (target, examples) = (&self.target, &self.examples);
        let fit = fitted::fit(target, learner, teachings, &self.weights, examples, effort, executor)?;
        self.fits.insert((arm.source, seed), fit.clone());
        Ok(fit)
    }

    /// The update program of an arm, whose first source has `moved` weights.
    fn update(
        &self,
        arm: &Arm,
        seed: u64,
        moved: Option<&Weights>,
        fitted: Weights,
    ) -> Result<UpdateProgram> {
        let (target, origins) = (self.side(), self.origins(arm, seed, moved));
        let start = lpka::Start { gate: arm.gate, fitted };
        lpka::build(&target, &origins, &self.order, &self.config, start, &*self.adapter_executor, seed)
    }

    /// Whether an arm's adapter has anything to carry.
    fn carries(&self, arm: &Arm) -> Result<bool> {
        let (target, origins) = (self.side(), self.origins(arm, self.config.seed, None));
        lpka::carries(&target, &origins, &self.order, &self.config, &*self.adapter_executor)
    }

    fn side(&self) -> Side<'_> {
        Side { graph: &self.target.params, weights: self.weights.iter().cloned().collect() }
    }

    /// The sources as an arm's adapter sees them.
    fn origins<'a>(&'a self, arm: &Arm, seed: u64, moved: Option<&'a Weights>) -> Vec<Origin<'a>> {
        let sources = self.sources.iter().enumerate().filter(|_| arm.source != SourceKind::None);
        let origin = |(i, source): (usize, &'a Source)| {
            let mut origin = source.origin(arm.source, seed, moved.filter(|_| i == 0));
            if !arm.aligns() {
                origin.aligned.clear();
            }
            if !arm.fitted {
                origin.choices.clear();
                origin.mixtures.clear();
            }
            if arm.features {
                origin.pairing = &source.hints;
            }
            origin
        };
        sources.map(origin).collect()
    }

    /// Brings an arm's adapter to what its source is at this step.
    fn follow(&mut self, arm: &Arm, fit: &mut Fit, pace: Pace) -> Result<()> {
        let stage = pace.stage(fit.step, fit.steps);
        let Some(moving) = fit.moving.as_mut().filter(|m| m.stage != stage) else { return Ok(()) };
        let moved = match (&mut self.trainer, self.sources.first()) {
            (Some(trainer), Some(source)) => {
                Some(moving.train(trainer, &source.network, fit.seed, (fit.step, fit.steps))?)
            }
            (None, Some(source)) => source.past.get(stage).cloned(),
            _ => None,
        };
        moving.stage = stage;
        let update = self.update(arm, fit.seed, moved.as_ref(), Weights::new())?;
        fit.refresh(update, self.adapter_executor.clone())?;
        fit.parts = self.parts(arm, fit.seed, moved.as_ref())?;
        Ok(())
    }

    /// Leaves some training rows (numbers within the part) out of all that follows, to be measured as [`Split::HeldOut`] until
    /// [`Self::take_back`]; whether enough others are left to train on. Only how strongly the target's activations vary, how loud the
    /// sources are, and the unit of the loss stay as they were measured on all: a handful of numbers.
    pub fn leave_out(&mut self, rows: &[usize]) -> bool {
        self.forget();
        let left = self.examples.leave_out(rows);
        self.trainer.as_mut().is_none_or(|trainer| trainer.leave_out(rows)) && left
    }
    /// Trains on all training rows again.
    pub fn take_back(&mut self) {
        self.forget();
        self.examples.take_back();
        self.trainer.iter_mut().for_each(Trainer::take_back);
    }
    /// What was learned of the training rows, beside the weights of arms.
    fn forget(&mut self) {
        self.fits.clear();
        self.sources.iter_mut().for_each(Source::forget);
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
        let Some(pace) = self.pace(arm) else { return self.go(arm, fit, until, deadline, observer) };
        while fit.step < until {
            self.follow(arm, fit, pace)?;
            let next = pace.next(fit.step, fit.steps).min(until);
            if !self.go(arm, fit, next, deadline, observer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes steps while no source moves.
    fn go(
        &mut self,
        arm: &Arm,
        fit: &mut Fit,
        until: usize,
        deadline: Option<Instant>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let objective = self.objective_of(arm);
        let key = (arm.teacher, arm.aligns());
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
                let (teaches, voice) = (source.teaches, source.voice);
                helpers.push(Help { guide, teaches, voice, scales, weights });
            }
        }
        let by = (fit.seed, &self.ranks);
        let mut batches = Batches::new(&self.examples, &self.target, objective, helpers, &self.config, by);
        let arrived = fit.advance(until, losses, &mut batches, &self.config, deadline, observer);
        drop(batches);
        fit.parts = parts;
        arrived
    }

    fn objective_of(&self, arm: &Arm) -> Objective {
        let (temperature, alpha) = (self.config.temperature, self.config.alpha);
        match (self.objective, arm.teacher) {
            (Objective::Classes { layout, ignores }, true) => {
                Objective::ClassesAndTeacher { layout, ignores, temperature, alpha }
            }
            (Objective::Vectors { width }, true) => Objective::VectorsAndTeacher { width, alpha },
            (objective, _) => objective,
        }
    }

    /// The programs of a step under `objective`; `aligned` for arms with an open gate.
    fn losses_of(&self, objective: Objective, aligned: bool) -> Result<Losses> {
        let alignments: Vec<&Alignment> =
            self.sources.iter().filter(|_| aligned).flat_map(|s| &s.alignments).collect();
        let unlabelled = (self.examples.rows(Split::Unlabelled) > 0)
            .then(|| match objective {
                Objective::ClassesAndTeacher { layout, temperature, .. } => {
                    Some(Objective::Teacher { layout, logits: true, temperature })
                }
                Objective::VectorsAndTeacher { width, .. } => Some(Objective::Teacher {
                    layout: Layout::rows(width),
                    logits: false,
                    temperature: self.config.temperature,
                }),
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
        let share = self.config.align * self.unit;
        let step = self.target.aligned_step(&self.order, objective, alignments, share)?;
        let several = several || self.target.batch < self.ranks.share(self.config.batch).len();
        LossProgram::new(&step, &self.order, &*self.model_executor, several)
    }

    /// The metric of the target with `weights` (in the order of [`Fit::weights`]) on a part of the data.
    /// NaN where that part is empty.
    pub fn evaluate(&mut self, weights: &[Value], split: Split) -> Result<f64> {
        Ok(self.tally(weights, split)?.value())
    }

    /// The same row by row. Each rank looks at its share of them.
    pub fn tally(&mut self, weights: &[Value], split: Split) -> Result<Tally> {
        let tally = self.tally_of_all(weights, split)?;
        if split == Split::Val && !tally.is_of_rows() {
            self.val_answers = Some(tally.independent());
        }
        Ok(tally)
    }

    fn tally_of_all(&mut self, weights: &[Value], split: Split) -> Result<Tally> {
        let all = self.examples.rows(split);
        let own = self.ranks.share(all);
        let tally = self.tally_of(weights, split, own.clone().collect())?;
        if !self.ranks.are_several() {
            return Ok(tally);
        }
        let (mut sums, mut counts) = (vec![0.0; all], vec![0.0; all]);
        for (row, measured) in own.zip(tally.measured()) {
            (sums[row], counts[row]) = (measured.sum, measured.count);
        }
        let (sums, counts) = (self.ranks.sum_wide(sums), self.ranks.sum_wide(counts));
        Ok(Tally::from(sums.into_iter().zip(counts).map(|(sum, count)| Row { sum, count }).collect()))
    }

    fn tally_of(&mut self, weights: &[Value], split: Split, rows: Vec<usize>) -> Result<Tally> {
        let size = self.target.batch.max(1);
        let mut tally = Tally::new();
        let Self { forward, model_executor, sources, examples, target, objective, .. } = self;
        let feeds = |picked: &&[usize]| {
            let inputs = examples.inputs(split, picked, target)?;
            Ok(inputs.into_iter().map(Value::host).chain(weights.iter().cloned()).collect())
        };
        run_jobs(&mut **forward, model_executor.lanes(), rows.chunks(size), feeds, |picked, answers| {
            let Some(answer) = answers.first() else { return Ok(()) };
            let answer = answer.to_host()?;
            match objective.wants_labels() {
                true => examples.tally(split, picked, &answer, &mut tally),
                false => {
                    let wanted = taught(sources, examples, split, picked)?;
                    tally.add(&answer, &Truth::Vectors(&wanted.to_f32()), picked.len());
                }
            }
            Ok(())
        })?;
        Ok(tally)
    }

    /// How many independent labels there are to tell one accuracy on validation from another.
    pub fn val_answers(&self) -> usize {
        self.val_answers.unwrap_or_else(|| self.examples.rows(Split::Val))
    }

    /// How good the sources' own answers are on a part of the data, where they can teach beside labels.
    pub fn teacher_tally(&mut self, split: Split) -> Result<Option<Tally>> {
        if !(self.means.teacher && self.objective.wants_labels()) {
            return Ok(None);
        }
        let rows: Vec<usize> = (0..self.examples.rows(split)).collect();
        let answers = taught(&mut self.sources, &self.examples, split, &rows)?;
        let mut tally = Tally::new();
        self.examples.tally(split, &rows, &answers, &mut tally);
        Ok(Some(tally))
    }

    /// What arms change as it came, in the order of [`Fit::weights`].
    pub fn original(&self) -> Vec<Value> {
        let initial = &self.target.model.graph.initializers;
        self.moved.iter().filter_map(|id| initial.get(id)).map(|t| Value::host(t.clone())).collect()
    }
    /// Names for what [`Fit::weights`] gives, on the host.
    pub fn named(&self, weights: &[Value]) -> Result<Vec<(ValueId, Tensor)>> {
        self.moved.iter().zip(weights).map(|(id, v)| Ok((id.clone(), v.to_host()?))).collect()
    }
    /// The reverse of [`Session::named`]; `None` where one is missing.
    pub fn weights_from(&self, named: &[(ValueId, Tensor)]) -> Option<Vec<Value>> {
        let find = |id: &ValueId| named.iter().find(|(w, _)| w == id).map(|(_, t)| Value::host(t.clone()));
        self.moved.iter().map(find).collect()
    }
}

/// What the teaching sources answer to some rows of a part, on average.
fn taught(sources: &mut [Source], examples: &Examples, split: Split, picked: &[usize]) -> Result<Tensor> {
    let mut answers = vec![];
    for source in sources {
        answers.extend(source.answers(examples, split, picked)?);
    }
    mean_of(&answers).ok_or_else(|| Error::usage("there is no source to answer for the target"))
}
