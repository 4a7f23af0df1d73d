//! What all arms of a run share: the models made ready, the data, the executors, the compiled programs.

use super::arms::{Arm, Means, SourceKind};
use super::batches::{Batches, Data, Examples, Teacher};
use super::fit::{Accumulator, Fit, LossProgram};
use super::metric::{Measure, Tally, Truth};
use super::model_step::Objective;
use super::network::Network;
use super::{Event, Observer, Task, TrainConfig};
use crate::error::{Error, Result};
use crate::lpka::{self, Side, UpdateProgram};
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
}

/// Models, data and programs of one run.
pub struct Session {
    pub config: TrainConfig,
    pub target: Network,
    pub source: Option<Network>,
    pub pairing: Option<Pairing>,
    /// The target's trainable weights as they came.
    pub weights: Vec<(ValueId, Tensor)>,
    pub metric: Metric,
    pub model_executor: Arc<dyn Executor>,
    pub adapter_executor: Arc<dyn Executor>,
    pub means: Means,
    objective: Objective,
    examples: Examples,
    teacher: Option<Teacher>,
    forward: Box<dyn Compiled>,
    losses: HashMap<bool, LossProgram>,
    /// The order in which the model step takes weights and gives gradients.
    order: Vec<ValueId>,
}

/// What a session is opened with.
pub struct Parts<'a> {
    pub config: TrainConfig,
    pub target: Network,
    pub source: Option<Network>,
    pub examples: Examples,
    /// The data as the source wants it.
    pub source_data: Data<'a>,
    pub model_executor: Arc<dyn Executor>,
    pub adapter_executor: Arc<dyn Executor>,
}

impl Session {
    pub fn open(parts: Parts<'_>, observer: &mut dyn Observer) -> Result<Self> {
        let Parts { config, target, source, mut examples, source_data, model_executor, adapter_executor } =
            parts;
        let weights = target.trainable(&config.freeze)?;
        let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
        let teacher =
            source.as_ref().and_then(|s| match Teacher::open(s, source_data, &target, &*model_executor) {
                Ok(teacher) => Some(teacher),
                Err(why) => {
                    observer.event(&Event::Note(&format!("the source can't teach by its answers: {why}")));
                    None
                }
            });
        let objective = choose_objective(&config, &mut examples, &target, teacher.is_some())?;
        let measure = match objective {
            Objective::Classes | Objective::ClassesAndTeacher { .. } => Measure::Accuracy,
            _ => Measure::MeanSquaredError,
        };
        let pairing = match &source {
            Some(source) => Some(Pairing::automatic(&target.params, &source.params, &config.map)?),
            None => None,
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
        let means = Means {
            adapter: pairing.as_ref().is_some_and(|p| !p.weights.is_empty()),
            teacher: teacher.is_some(),
        };
        let weights = weights.into_iter().filter(|(id, _)| order.contains(id)).collect();
        let mut session = Self {
            metric: measure.metric(),
            config,
            target,
            source,
            pairing,
            weights,
            model_executor,
            adapter_executor,
            means,
            objective,
            examples,
            teacher,
            forward,
            losses: HashMap::new(),
            order,
        };
        let adapts = session.means.adapter
            && !session.update(&Arm::lpka(0.0, false), session.config.seed)?.transfers.is_empty();
        if session.source.is_some() && !adapts {
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
        Fit::start(update, &self.order, self.adapter_executor.clone(), seed, steps)
    }

    /// The update program of an arm.
    pub fn update(&self, arm: &Arm, seed: u64) -> Result<UpdateProgram> {
        let target = Side { graph: &self.target.params, weights: self.weights.iter().cloned().collect() };
        let source = self.source.as_ref().filter(|_| arm.source != SourceKind::None);
        let source = source.map(|s| Side {
            graph: &s.params,
            weights: s
                .params
                .weights
                .iter()
                .filter_map(|w| Some((w.name.clone(), s.model.graph.initializers.get(&w.name)?.clone())))
                .collect(),
        });
        let source = source.map(|side| match arm.source {
            SourceKind::Shuffled => lpka::shuffled(&side, seed),
            SourceKind::Untrained => lpka::untrained(&side, seed),
            _ => side,
        });
        let nothing = Pairing::default();
        let pairing = self.pairing.as_ref().unwrap_or(&nothing);
        lpka::build(
            &target,
            source.as_ref(),
            pairing,
            &self.order,
            &self.config,
            arm.gate,
            &*self.adapter_executor,
            seed,
        )
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
        if !self.losses.contains_key(&arm.teacher) {
            let program = self.loss_program(objective)?;
            self.losses.insert(arm.teacher, program);
        }
        let Some(loss) = self.losses.get_mut(&arm.teacher) else { return Ok(false) };
        let teacher = self.teacher.as_mut().filter(|_| objective.wants_teacher());
        let mut batches =
            Batches::new(&self.examples, &self.target, objective, teacher, &self.config, fit.seed);
        fit.advance(until, loss, &mut batches, &self.config, deadline, observer)
    }

    fn objective_of(&self, arm: &Arm) -> Objective {
        let (temperature, alpha) = (self.config.temperature, self.config.alpha);
        match (self.objective, arm.teacher) {
            (Objective::Classes, true) => Objective::ClassesAndTeacher { temperature, alpha },
            (objective, _) => objective,
        }
    }

    fn loss_program(&self, objective: Objective) -> Result<LossProgram> {
        let step = self.target.step(&self.order, objective)?;
        let program = self.model_executor.compile(&step.model, &step.facts)?;
        let facts: Vec<Fact> = self.order.iter().filter_map(|w| step.facts.get(w).cloned()).collect();
        let single = self.target.batch < self.config.batch;
        let accumulate = if single { Some(Accumulator::new(&*self.model_executor, &facts)?) } else { None };
        Ok(LossProgram { program, accumulate })
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
            match (&mut self.teacher, self.objective.wants_labels()) {
                (Some(teacher), false) => {
                    let wanted = teacher.truth(&self.examples, split, &picked)?;
                    tally.add(&answer, &Truth::Vectors(&wanted.to_f32()), count);
                }
                _ => self.examples.tally(split, &picked, &answer, &mut tally),
            }
        }
        Ok(tally.value())
    }

    /// The metric of the source's own answers on validation, where it can teach classes.
    pub fn teacher_score(&mut self) -> Result<Option<f64>> {
        let Some(teacher) = self.teacher.as_mut().filter(|_| self.objective.wants_labels()) else {
            return Ok(None);
        };
        let rows: Vec<usize> = (0..self.examples.rows(Split::Val)).collect();
        let answers = teacher.truth(&self.examples, Split::Val, &rows)?;
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
