//! One arm's training: the model step and the update step, run in turn, linked by W′ and dL/dW′.
//!
//! A [`Fit`] can be advanced in pieces, so that arms compete in rounds and a run can be resumed; everything
//! random in it is a function of its seed and of the step.

use super::accumulate::Accumulator;
use super::batch_norm::Running;
use super::batches::Batches;
use super::model_step::{ModelStep, Objective};
use super::moving::Moving;
use super::ranks::{Ranks, sum_gradients};
use super::schedule::{generator, learning_rate, stream};
use super::source::Part;
use super::{Event, Observer, StepTaken, TrainConfig};
use crate::error::{Error, Result};
use crate::lpka::{Lens, Seen, UpdateProgram};
use crate::onnx::{DType, Fact, Tensor, ValueId};
use crate::runtime::{Compiled, Executor, Feed, Fetch, Runner, Snapshot, StepProgram, Value};
use rand::RngExt;
use std::hash::{DefaultHasher, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

/// A compiled model step with what is needed to feed it.
pub struct LossProgram {
    pub program: Box<dyn Compiled>,
    /// Runs of it that are worth giving at once.
    lanes: NonZeroUsize,
    /// For programs of which a step runs several, whose gradients are to be summed up.
    pub accumulate: Option<Accumulator>,
    /// Places of the weights and maps it takes and gives gradients for, among all.
    pub linked: Vec<usize>,
    /// How many statistics of the batch it reports.
    statistics: usize,
}

/// The programs of one step.
pub struct Losses {
    pub labelled: LossProgram,
    /// For rows without labels, beside those with.
    pub unlabelled: Option<(Objective, LossProgram)>,
}

/// One arm in training.
pub struct Fit {
    pub seed: u64,
    /// Steps the schedule is laid out for.
    pub steps: usize,
    /// Highest learning rate.
    pub lr: f64,
    pub step: usize,
    /// The sources as this arm has them.
    pub parts: Vec<Part>,
    /// Sources that change while this arm trains.
    pub moving: Option<Moving>,
    update: Runner,
    plan: Plan,
    /// W′ in the model step's order, for the next step.
    merged: Vec<Value>,
    /// The same without dropout, for validation and shipping.
    clean: Vec<Value>,
    /// Running statistics of batches, which are shipped beside the weights.
    pub running: Vec<Running>,
    lens: Lens,
    /// How many of these are weights; the others are maps.
    weights: usize,
    /// Mean loss since the last report, and the curve of all reports: (step, loss).
    pub curve: Vec<(usize, f64)>,
}

/// Where a fit stood at some moment, to come back to. Costs no copy.
pub struct Mark {
    step: usize,
    state: Snapshot,
    merged: Vec<Value>,
    clean: Vec<Value>,
    running: Vec<Running>,
}

/// Positions of the update program's feeds and fetches.
struct Plan {
    /// For each weight of the model step: the update's gradient input.
    gradients: Vec<Feed>,
    /// For each weight of the model step: the update's output W′, and the same without dropout.
    merged: Vec<Fetch>,
    clean: Vec<Fetch>,
    learning_rate: Feed,
    noise: Vec<(Feed, Fact)>,
    /// Names of the state, for checkpoints.
    state: Vec<ValueId>,
    /// Names of the weights, for checkpoints.
    weights: Vec<ValueId>,
}

impl Fit {
    /// Begins an arm. `weights` are the weights the model step gives gradients for; the update program must
    /// have a gradient input and a merged output for each.
    pub fn start(
        update: UpdateProgram,
        weights: &[ValueId],
        executor: Arc<dyn Executor>,
        seed: u64,
        (steps, lr): (usize, f64),
    ) -> Result<Self> {
        let UpdateProgram {
            model,
            facts,
            state,
            gradients,
            merged,
            clean,
            learning_rate,
            noise,
            initial,
            lens,
            maps,
            ..
        } = update;
        let own = weights.len();
        let weights = &[weights, &maps].concat();
        let names: Vec<ValueId> = state.iter().map(|s| s.input.clone()).collect();
        let runner = Runner::new(executor, &StepProgram { model, facts, state })?;
        let of = |pairs: &[(ValueId, ValueId)], weight: &ValueId| {
            let found = pairs.iter().find(|(w, _)| w == weight).map(|(_, v)| v.clone());
            found.ok_or_else(|| Error::tensor(weight.as_str(), "is not part of the update program"))
        };
        let plan = Plan {
            gradients: weights.iter().map(|w| runner.feed(&of(&gradients, w)?)).collect::<Result<_>>()?,
            merged: weights.iter().map(|w| runner.fetch(&of(&merged, w)?)).collect::<Result<_>>()?,
            clean: weights.iter().map(|w| runner.fetch(&of(&clean, w)?)).collect::<Result<_>>()?,
            learning_rate: runner.feed(&learning_rate)?,
            noise: noise
                .iter()
                .map(|(id, fact)| Ok((runner.feed(id)?, fact.clone())))
                .collect::<Result<_>>()?,
            state: names,
            weights: weights.to_vec(),
        };
        let first = |w: &ValueId| {
            let found = initial.iter().find(|(name, _)| name == w).map(|(_, t)| Value::host(t.clone()));
            found.ok_or_else(|| Error::tensor(w.as_str(), "has no merged value at the start"))
        };
        let merged: Vec<Value> = weights.iter().map(first).collect::<Result<_>>()?;
        let clean = merged.clone();
        Ok(Self {
            seed,
            steps,
            lr,
            step: 0,
            parts: vec![],
            moving: None,
            update: runner,
            plan,
            merged,
            clean,
            running: vec![],
            lens,
            weights: own,
            curve: vec![],
        })
    }

    /// Goes on with another update program for the same parameters, whose source has other weights.
    pub fn refresh(&mut self, update: UpdateProgram, executor: Arc<dyn Executor>) -> Result<()> {
        let own = self.plan.weights[..self.weights].to_vec();
        let restart = update.restart.clone();
        let mut fresh = Self::start(update, &own, executor.clone(), self.seed, (self.steps, self.lr))?;
        let carried = restart.as_ref().map_or(&[][..], |restart| &restart.carried);
        for id in self.plan.state.iter().filter(|id| !carried.contains(id)) {
            fresh.update.set_state(id, &self.update.state(id)?)?;
        }
        (fresh.merged, fresh.clean) = (self.merged.clone(), self.clean.clone());
        if let Some(restart) = restart {
            let mut feeds: Vec<Value> = vec![];
            for id in &restart.parameters {
                feeds.push(fresh.update.state_value(fresh.update.state_id(id)?));
            }
            // What the step before has drawn: with the same source nothing changes.
            for (i, fact) in restart.noise.iter().enumerate() {
                feeds.push(Value::host(uniform(self.seed, i, self.step.saturating_sub(1), fact)));
            }
            let values = executor.compile(&restart.model, &restart.facts)?.run(&feeds)?;
            let (linked, rest) = values.split_at(fresh.merged.len());
            let (carried, clean) = rest.split_at(restart.carried.len());
            fresh.merged = linked.to_vec();
            fresh.clean = if clean.is_empty() { linked } else { clean }.to_vec();
            for (id, value) in restart.carried.iter().zip(carried) {
                fresh.update.set_state(id, &value.to_host()?)?;
            }
        }
        (self.update, self.plan, self.merged, self.clean) =
            (fresh.update, fresh.plan, fresh.merged, fresh.clean);
        Ok(())
    }

    /// The merged weights as they are now, without dropout, in the model step's order, then the running statistics.
    pub fn weights(&self) -> Vec<Value> {
        let running = self.running.iter().map(|r| Value::host(r.value.clone()));
        self.clean[..self.weights].iter().cloned().chain(running).collect()
    }

    /// Takes steps until `until`, or until the first rank's observer or `deadline` says stop; returns whether it got there.
    /// All ranks begin where the first one stands.
    pub fn advance(
        &mut self,
        until: usize,
        losses: &mut Losses,
        batches: &mut Batches<'_>,
        config: &TrainConfig,
        deadline: Option<Instant>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        self.meet(batches.ranks)?;
        let mut report = Reporter::new(batches.rows_per_step());
        while self.step < until {
            let stop = observer.interrupted() || deadline.is_some_and(|d| Instant::now() >= d);
            if batches.ranks.decide(stop) {
                return Ok(false);
            }
            let begun = Instant::now();
            let rate = learning_rate(config.schedule, self.lr, config.warmup, self.step, self.steps);
            let (value, gradients) = self.run_model(losses, batches)?;
            if !value.is_finite() {
                return Err(Error::Diverged { step: self.step, what: format!("the loss is {value}") }
                    .hint("lower the learning rate with --lr, or look at the data for extreme values"));
            }
            self.apply(gradients, rate)?;
            self.step += 1;
            let seconds = begun.elapsed().as_secs_f64();
            observer.step(&StepTaken { step: self.step, loss: value, learning_rate: rate, seconds });
            if let Some((mean, speed)) = report.add(value, self.step == until) {
                self.curve.push((self.step, mean));
                observer.event(&Event::Step {
                    step: self.step,
                    loss: mean,
                    learning_rate: rate,
                    rows_per_second: speed,
                });
            }
        }
        Ok(true)
    }

    /// One model step over the next rows of all ranks: the mean loss and the mean gradients. Rows without labels, where there
    /// are any, add theirs.
    fn run_model(&mut self, losses: &mut Losses, batches: &mut Batches<'_>) -> Result<(f64, Vec<Value>)> {
        let (loss, gradients) = self.run_own(losses, batches)?;
        let (ranks, weight) = (batches.ranks, batches.weight());
        if !ranks.are_several() {
            return Ok((loss, gradients));
        }
        let loss = ranks.sum_wide(vec![loss * weight]);
        Ok((loss.iter().sum(), sum_gradients(ranks, gradients, &self.merged, weight)?))
    }

    /// The same over the rows of this rank.
    fn run_own(&mut self, losses: &mut Losses, batches: &mut Batches<'_>) -> Result<(f64, Vec<Value>)> {
        let feeds = batches.step(self.step)?;
        let mut done = losses.labelled.run(feeds, &self.merged, None)?;
        self.follow(&done.statistics)?;
        let mut total = done.loss;
        if let Some((objective, program)) = &mut losses.unlabelled {
            let feeds = batches.unlabelled_step(self.step, *objective)?;
            done = program.run(feeds, &self.merged, Some(done.gradients))?;
            self.follow(&done.statistics)?;
            total += done.loss;
        }
        Ok((total, done.gradients))
    }

    fn follow(&mut self, seen: &[Value]) -> Result<()> {
        self.running.iter_mut().zip(seen).try_for_each(|(running, batch)| running.follow(batch))
    }

    /// The update step: gradients and state in, new state and W′ out. Where it fails there is nothing to go on from but a
    /// checkpoint.
    fn apply(&mut self, gradients: Vec<Value>, rate: f64) -> Result<()> {
        for (feed, gradient) in self.plan.gradients.iter().zip(gradients) {
            self.update.set(*feed, gradient)?;
        }
        self.update.set(self.plan.learning_rate, Value::host(Tensor::scalar(DType::F32, rate)))?;
        for (i, (feed, fact)) in self.plan.noise.iter().enumerate() {
            self.update.set(*feed, Value::host(uniform(self.seed, i, self.step, fact)))?;
        }
        // What nobody else has is written over.
        (self.merged, self.clean) = (vec![], vec![]);
        let outputs = self.update.run()?;
        // As large as the weights: not to be held while the next ones are computed.
        self.plan.gradients.iter().for_each(|feed| self.update.clear(*feed));
        self.merged = self.plan.merged.iter().map(|fetch| outputs.get(*fetch).clone()).collect();
        self.clean = self.plan.clean.iter().map(|fetch| outputs.get(*fetch).clone()).collect();
        Ok(())
    }

    /// Where it stands now. A source that moves isn't part of it.
    pub fn mark(&self) -> Mark {
        let (merged, clean, running) = (self.merged.clone(), self.clean.clone(), self.running.clone());
        Mark { step: self.step, state: self.update.snapshot(), merged, clean, running }
    }

    /// Goes back to a mark, from where it is to take so many steps in all with a highest learning rate.
    pub fn rewind(&mut self, mark: &Mark, (steps, lr): (usize, f64)) {
        self.update.restore(&mark.state);
        (self.merged, self.clean) = (mark.merged.clone(), mark.clean.clone());
        self.running = mark.running.clone();
        (self.step, self.steps, self.lr) = (mark.step, steps, lr);
        self.curve.clear();
    }

    /// What the adapter attends to by now.
    pub fn attention(&self) -> Result<Vec<Seen>> {
        self.lens.read(&**self.update.executor(), |id| self.update.state(id))
    }

    /// Everything needed to go on later: the update's state and W′, by name.
    pub fn snapshot(&self) -> Result<Vec<(ValueId, Tensor)>> {
        let mut all = vec![];
        for id in &self.plan.state {
            all.push((id.clone(), self.update.state(id)?));
        }
        for (prefix, values) in [(MERGED, &self.merged), (CLEAN, &self.clean)] {
            for (id, value) in self.plan.weights.iter().zip(values) {
                all.push((ValueId::new(format!("{prefix}{id}")), value.to_host()?));
            }
        }
        for running in &self.running {
            all.push((ValueId::new(format!("{RUNNING}{}", running.name)), running.value.clone()));
        }
        Ok(all)
    }

    /// Goes to where the first rank's fit of this arm stands: machines may round otherwise, and only the first has
    /// read a checkpoint.
    fn meet(&mut self, ranks: &Ranks) -> Result<()> {
        if !ranks.are_several() {
            return Ok(());
        }
        let own = self.snapshot()?;
        let mut digest = DefaultHasher::new();
        own.iter().for_each(|(_, tensor)| digest.write(tensor.bytes()));
        match ranks.agree_on(digest.finish()) {
            true => Ok(()),
            false => self.restore(self.step, &ranks.first_tensors(|| Ok(own))?),
        }
    }

    /// Goes back to where a snapshot was taken.
    pub fn restore(&mut self, step: usize, snapshot: &[(ValueId, Tensor)]) -> Result<()> {
        let find = |name: &str| {
            let found = snapshot.iter().find(|(id, _)| id.as_str() == name).map(|(_, t)| t);
            found.ok_or_else(|| Error::tensor(name, "is missing from the checkpoint"))
        };
        for (prefix, slots) in [(MERGED, &mut self.merged), (CLEAN, &mut self.clean)] {
            let weights = self.plan.weights.iter();
            let found = weights.map(|id| Ok(Value::host(find(&format!("{prefix}{id}"))?.clone())));
            *slots = found.collect::<Result<_>>()?;
        }
        for id in &self.plan.state {
            self.update.set_state(id, find(id.as_str())?)?;
        }
        for running in &mut self.running {
            running.value = find(&format!("{RUNNING}{}", running.name))?.clone();
        }
        self.step = step;
        Ok(())
    }
}

/// The random numbers that noise input `i` sees at a step.
fn uniform(seed: u64, i: usize, step: usize, fact: &Fact) -> Tensor {
    let mut random = generator(seed, stream::NOISE + ((i as u64) << 8), step as u64);
    let values: Vec<f32> = (0..fact.len()).map(|_| random.random::<f32>()).collect();
    Tensor::f32(&fact.shape, &values)
}

/// Prefixes of W′ in a snapshot: for the next step, and without dropout.
const MERGED: &str = "merged:";
const CLEAN: &str = "clean:";
/// The same of running statistics.
const RUNNING: &str = "running:";

/// What a model step gave.
pub struct Done {
    /// The mean over its runs.
    pub loss: f64,
    /// The mean over its runs, added to what was there before.
    pub gradients: Vec<Value>,
    /// Those of the last run's rows.
    pub statistics: Vec<Value>,
}

impl LossProgram {
    /// Compiles a model step. `all` are the weights that training changes; `several` says whether a step runs more than one
    /// program, or one more than once.
    pub fn new(step: &ModelStep, all: &[ValueId], executor: &dyn Executor, several: bool) -> Result<Self> {
        let linked = step.weights.iter().chain(&step.maps);
        let facts: Vec<Fact> = linked.filter_map(|w| step.facts.get(w).cloned()).collect();
        let accumulate = if several { Some(Accumulator::new(executor, &facts)?) } else { None };
        let weights = step.weights.iter().filter_map(|w| all.iter().position(|o| o == w));
        let linked = weights.chain(all.len()..all.len() + step.maps.len()).collect();
        let program = executor.compile(&step.model, &step.facts)?;
        let (lanes, statistics) = (executor.lanes(), step.statistics.len());
        Ok(Self { program, lanes, accumulate, linked, statistics })
    }

    /// Runs a step, whose gradients are added to `sums`. `feeds` has all inputs of each run but the weights and maps, which are in
    /// `merged`.
    pub fn run(
        &mut self,
        mut feeds: Vec<Vec<Value>>,
        merged: &[Value],
        mut sums: Option<Vec<Value>>,
    ) -> Result<Done> {
        let share = 1.0 / feeds.len().max(1) as f64;
        let (mut loss, mut statistics) = (0.0, vec![]);
        for feed in &mut feeds {
            feed.extend(self.linked.iter().map(|&i| merged[i].clone()));
        }
        // Gradients are as large as the weights: no more of them at a time than are computed at once.
        for feeds in feeds.chunks(self.lanes.get()) {
            for mut outputs in self.program.run_each(feeds)? {
                statistics = outputs.split_off(outputs.len() - self.statistics.min(outputs.len()));
                let mut outputs = outputs.into_iter();
                loss += share * outputs.next().map_or(Ok(f64::NAN), |v| v.scalar())?;
                sums = Some(self.add(sums.take(), outputs.collect(), share)?);
            }
        }
        Ok(Done { loss, gradients: sums.unwrap_or_default(), statistics })
    }

    /// `sums` with a run's gradients added.
    fn add(&mut self, sums: Option<Vec<Value>>, gradients: Vec<Value>, share: f64) -> Result<Vec<Value>> {
        match (&mut self.accumulate, sums) {
            // All in order is the usual case: then the old sums can be let go of one by one.
            (Some(accumulator), Some(all)) if self.linked.iter().copied().eq(0..all.len()) => {
                accumulator.add(Some(all), gradients, share)
            }
            (Some(accumulator), Some(mut all)) => {
                let so_far = self.linked.iter().map(|&i| all[i].clone()).collect();
                let sums = accumulator.add(Some(so_far), gradients, share)?;
                self.linked.iter().zip(sums).for_each(|(&i, sum)| all[i] = sum);
                Ok(all)
            }
            (Some(accumulator), None) => accumulator.add(None, gradients, share),
            (None, _) => Ok(gradients),
        }
    }
}

/// Averages losses and measures speed between reports, about five times a second.
struct Reporter {
    rows: usize,
    sum: f64,
    count: usize,
    since: Instant,
}

impl Reporter {
    fn new(rows: usize) -> Self {
        Self { rows, sum: 0.0, count: 0, since: Instant::now() }
    }
    fn add(&mut self, loss: f64, last: bool) -> Option<(f64, f64)> {
        self.sum += loss;
        self.count += 1;
        let seconds = self.since.elapsed().as_secs_f64();
        if seconds < 0.2 && !last {
            return None;
        }
        let (mean, speed) =
            (self.sum / self.count as f64, (self.count * self.rows) as f64 / seconds.max(1e-9));
        *self = Self::new(self.rows);
        Some((mean, speed))
    }
}
