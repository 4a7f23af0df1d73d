//! Arms in competition: each trained in rounds and validated as it goes, its best weights kept.

use super::arms::{Arm, rounds};
use super::checkpoint::{ArmState, Checkpoint, RunState};
use super::fit::Fit;
use super::metric::{better, slack, two_standard_errors};
use super::session::{Session, Split};
use super::shelf::shelve;
use super::{Event, Observer};
use crate::error::Result;
use crate::onnx::{Tensor, ValueId};
use crate::report::{self, Metric};
use crate::runtime::Value;
use std::time::{Duration, Instant};

/// Validations an arm gets over its whole training.
pub(super) const VALIDATIONS: usize = 12;
/// How often an arm in training is checkpointed, besides at the end of each round.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// What an arm's short trainings cost beside a whole one.
const TRIALS: f64 = 3.0 / 8.0;

/// An arm in training.
pub struct Contender {
    pub arm: Arm,
    pub fit: Fit,
    pub best: Option<Best>,
    /// What the short training that chose its learning rate came to on validation.
    pub trial: Option<f64>,
    pub validations: Vec<(usize, f64)>,
    /// Seconds a step takes, validations included, once it has taken some.
    pub pace: Option<f64>,
    /// Whether its loss left what numbers can hold: it takes no more steps.
    pub diverged: bool,
    file: String,
}

/// The weights of an arm to keep so far, by validation.
#[derive(Clone)]
pub struct Best {
    pub metric: f64,
    pub step: usize,
    /// Of the training they come from: how many steps its schedule was laid out for, and the highest learning rate.
    pub schedule: (usize, f64),
    pub weights: Vec<Value>,
}

impl Contender {
    pub fn metric(&self) -> f64 {
        self.best.as_ref().map_or(f64::NAN, |b| b.metric)
    }
    /// What its short training came to, or, where it had none, what it has come to.
    pub fn trial(&self) -> f64 {
        self.trial.unwrap_or(self.metric())
    }
    /// Whether it has taken all `steps`, or can take no more.
    pub fn is_done(&self, steps: usize) -> bool {
        self.diverged || self.fit.step == steps
    }
    pub fn curve(&self) -> report::Curve {
        report::Curve {
            arm: self.arm.label(),
            seed: self.fit.seed,
            loss: self.fit.curve.clone(),
            val: self.validations.clone(),
        }
    }
    fn state(&self) -> ArmState {
        ArmState {
            arm: self.arm.clone(),
            seed: self.fit.seed,
            lr: self.fit.lr,
            trial: self.trial,
            step: self.fit.step,
            best: self.best.as_ref().map(|b| (b.metric, b.step)),
            best_schedule: self.best.as_ref().map(|b| b.schedule),
            validations: self.validations.clone(),
            curve: self.fit.curve.clone(),
            file: self.file.clone(),
        }
    }
    /// Steps without a better validation, in validations.
    fn idle(&self) -> usize {
        let best = self.best.as_ref().map_or(0, |b| b.step);
        self.validations.iter().filter(|(step, _)| *step > best).count()
    }
}

/// The part of the time left for the short trainings of the next one of `left` arms, behind which `trainings` of `count` are trained
/// whole. A single arm needs no share.
fn part_for_trials(count: usize, left: usize, trainings: usize) -> f64 {
    match count {
        1 => 1.0,
        _ => TRIALS / (TRIALS * left as f64 + trainings as f64),
    }
}

/// The part of the time left for the next one of `left` arms in the first of these rounds, which has taken `step` steps. In the last
/// round the best arm, which comes first, may take it all: half a training is worth little.
fn part_of_round(rounds: &[(usize, usize)], left: usize, step: usize) -> f64 {
    let [(until, _), later @ ..] = rounds else { return 1.0 };
    if later.is_empty() {
        return 1.0;
    }
    let own = until.saturating_sub(step);
    let after = rounds.windows(2).map(|pair| (pair[1].0 - pair[0].0) * pair[1].1).sum::<usize>();
    own as f64 / (own * left + after).max(1) as f64
}

/// Whether a validation over `rows` rows is about as good as the best of those `seen`, and close to what is `kept`. That may be of
/// a short training, the luckiest of several, so that it counts for less: twice as far off is close.
fn is_as_good(metric: &Metric, value: f64, seen: impl Iterator<Item = f64>, kept: f64, rows: usize) -> bool {
    let highest = seen.fold(value, |a, b| if better(metric, b, a) { b } else { a });
    metric.gain(highest, value) >= -slack(metric, highest, rows)
        && metric.gain(kept, value) >= -2.0 * slack(metric, kept, rows)
}

/// Whether `own` is within two standard errors, over `rows` rows, of what is `first`.
fn is_near(metric: &Metric, first: f64, own: f64, rows: usize) -> bool {
    metric.gain(first, own) >= -two_standard_errors(metric, first, rows)
}

/// Trains arms, keeping a checkpoint of where each stands.
pub struct Contest<'a> {
    pub session: &'a mut Session,
    pub checkpoint: Checkpoint,
    pub state: RunState,
    pub deadline: Option<Instant>,
    /// Whether the user or the clock ended training early.
    pub stopped: bool,
    /// What the user was told of steps that time has no room for.
    pub planned: Option<String>,
}

impl Contest<'_> {
    /// Trains `arms` in rounds of successive halving and returns all of them, the winner first. Those that diverge are out.
    ///
    /// # Errors
    /// [`crate::Error::Diverged`] where all of them do before their first validation.
    pub fn run(
        &mut self,
        arms: Vec<Arm>,
        seed: u64,
        steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Contender>> {
        let (count, tried) = (arms.len(), self.tries(steps));
        let mut steps = match arms.as_slice() {
            [arm] => self.fit_one(arm, steps, observer)?,
            _ => self.state.steps.unwrap_or(steps),
        };
        let mut field = vec![];
        let (mut out, mut divergence) = (vec![], None);
        let trainings = rounds(count, steps, tried).first().map_or(0, |round| round.1);
        for (i, arm) in arms.into_iter().enumerate() {
            if self.stopped && !field.is_empty() {
                break;
            }
            let part = part_for_trials(count, count - i, trainings);
            match self.within(part, observer, |this, observer| this.enter(arm, seed, steps, observer)) {
                Err(error) if error.is_divergence() => divergence = Some(error),
                contender => field.push(contender?),
            }
        }
        // Resumed, some have come further than their trials: these are compared, as they were before.
        self.rank(&mut field, Contender::trial);
        let extra = if tried && count > 1 { self.give_a_chance(&mut field, trainings) } else { 0 };
        if count > 1 {
            let staying = (trainings + extra).min(field.len());
            steps = self.fit_several(&mut field[..staying], (count, tried), steps, observer)?;
            field.iter_mut().for_each(|contender| contender.fit.steps = steps);
        }
        let mut plan = rounds(count, steps, tried);
        plan.iter_mut().for_each(|(_, stay)| *stay += extra);
        for (round, &(until, stay)) in plan.iter().enumerate() {
            out.splice(0..0, field.drain(stay.min(field.len())..));
            for i in 0..field.len() {
                let part = part_of_round(&plan[round..], field.len() - i, field[i].fit.step);
                let contender = &mut field[i];
                match self.within(part, observer, |this, observer| this.train(contender, until, observer)) {
                    Err(error) if error.is_divergence() => divergence = Some(error),
                    trained => trained?,
                }
            }
            self.rank(&mut field, Contender::metric);
            if self.stopped {
                break;
            }
        }
        field.extend(out);
        match divergence {
            Some(error) if field.iter().all(|c| c.best.is_none()) => Err(error),
            _ => Ok(field),
        }
    }

    /// Short trainings say little of what a fit that is also taught comes to, which is the best arm more often than any other (docs/transfer.md): where
    /// it isn't among the first `staying` of a ranked field, and not clearly behind the first, it becomes the next. How many that are.
    fn give_a_chance(&self, field: &mut [Contender], staying: usize) -> usize {
        // Whoever has set a limit is told beforehand what there is time for.
        if self.deadline.is_some() {
            return 0;
        }
        let place = field.iter().position(|c| c.arm == Arm::fitted(true)).filter(|&at| at >= staying);
        let Some(place) = place else { return 0 };
        let near =
            is_near(&self.session.metric, field[0].trial(), field[place].trial(), self.session.val_answers());
        if near {
            field[staying..=place].rotate_right(1);
        }
        usize::from(near)
    }

    /// Does `work` within a part of the time that is left, where time is limited: the first of several arms would else take it all.
    fn within<T>(
        &mut self,
        part: f64,
        observer: &mut dyn Observer,
        work: impl FnOnce(&mut Self, &mut dyn Observer) -> T,
    ) -> T {
        let Some(deadline) = self.deadline.filter(|_| part < 1.0) else { return work(self, observer) };
        let now = Instant::now();
        self.deadline = Some(now + deadline.saturating_duration_since(now).mul_f64(part));
        let done = work(self, observer);
        self.deadline = Some(deadline);
        if self.stopped {
            let over = observer.interrupted() || Instant::now() >= deadline;
            self.stopped = self.session.ranks.decide(over);
        }
        done
    }

    /// Puts the best first. Small validation sets tie: then the arm comes first that uses more of the source, its answers too.
    fn rank(&self, field: &mut [Contender], by: fn(&Contender) -> f64) {
        let metric = &self.session.metric;
        let score = |c: &Contender| match by(c) {
            value if value.is_nan() => f64::NEG_INFINITY,
            value => metric.gain(0.0, value),
        };
        let more = |a: &Arm, b: &Arm| b.gate.total_cmp(&a.gate).then(b.teacher.cmp(&a.teacher));
        field.sort_by(|a, b| score(b).total_cmp(&score(a)).then(more(&a.arm, &b.arm)));
    }

    /// A contender where a checkpoint has it, or else at its start, with the learning rate that was asked for or that trials speak for.
    ///
    /// # Errors
    /// [`crate::Error::Diverged`] where it does at every rate.
    pub fn enter(
        &mut self,
        arm: Arm,
        seed: u64,
        steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<Contender> {
        let saved = self.state.arms.iter().find(|s| s.arm == arm && s.seed == seed).cloned();
        if let Some(saved) = saved {
            let mut contender = self.begin(arm, seed, (steps, saved.lr))?;
            let (state, best) = self.checkpoint.load_arm(&saved.file)?;
            contender.fit.restore(saved.step, &state)?;
            contender.fit.curve = saved.curve;
            contender.validations = saved.validations;
            contender.trial = saved.trial;
            let weights = self.session.weights_from(&best);
            let schedule = saved.best_schedule.unwrap_or((steps, saved.lr));
            let best = |((metric, step), weights)| Best { metric, step, schedule, weights };
            contender.best = saved.best.zip(weights).map(best);
            return Ok(contender);
        }
        match self.session.config.lr {
            Some(rate) => self.begin(arm, seed, (steps, rate)),
            None => self.at_its_best_rate(arm, seed, steps, observer),
        }
    }

    pub(super) fn begin(&mut self, arm: Arm, seed: u64, schedule: (usize, f64)) -> Result<Contender> {
        let fit = self.session.start(&arm, seed, schedule)?;
        let file = format!("{}-{seed}.onnx", arm.label().replace([',', '+', ' ', '.'], "-"));
        let (best, trial, pace, validations) = (None, None, None, vec![]);
        Ok(Contender { arm, fit, best, trial, validations, pace, diverged: false, file })
    }

    /// Trains one arm up to step `until`. Where it diverges, what was best before that counts.
    ///
    /// # Errors
    /// [`crate::Error::Diverged`] where there is nothing before that, among others.
    pub fn train(
        &mut self,
        contender: &mut Contender,
        until: usize,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if contender.diverged {
            return Ok(());
        }
        let steps = contender.fit.steps;
        let (label, seed) = (contender.arm.label(), contender.fit.seed);
        observer.event(&Event::ArmStart { arm: &label, seed, steps: until });
        let every = (steps / VALIDATIONS).max(1);
        if contender.arm.fitted && contender.validations.is_empty() {
            // With few labels nothing may be better than the fit itself.
            self.validate(contender, observer)?;
        }
        let (first, begun) = (contender.fit.step, Instant::now());
        let mut saved = (first, begun);
        let mut divergence = None;
        while contender.fit.step < until && !self.stopped {
            let next = ((contender.fit.step / every + 1) * every).min(until);
            let (arm, fit) = (&contender.arm, &mut contender.fit);
            match self.session.advance(arm, fit, next, self.deadline, observer) {
                Err(error) if error.is_divergence() => {
                    contender.diverged = true;
                    observer.event(&Event::Warning(&format!("{label}: {error}: it takes no more steps")));
                    divergence = Some(error);
                    break;
                }
                arrived => self.stopped |= !arrived?,
            }
            self.validate(contender, observer)?;
            let patience = self.session.config.patience;
            if patience > 0 && contender.idle() >= patience {
                break;
            }
            if self.session.ranks.decide(saved.1.elapsed() > CHECKPOINT_EVERY) {
                self.save(contender)?;
                saved = (contender.fit.step, Instant::now());
            }
        }
        if contender.fit.step > first {
            contender.pace = Some(begun.elapsed().as_secs_f64() / (contender.fit.step - first) as f64);
        }
        if contender.fit.step > saved.0 && !contender.diverged {
            self.save(contender)?;
        }
        observer.event(&Event::ArmEnd { arm: &label, seed, metric: contender.metric() });
        match divergence {
            Some(error) if contender.best.is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// Validates, and keeps the weights unless earlier ones were clearly better: picking the luckiest of a dozen
    /// noisy validations ships worse weights than the latest of the good ones (docs/transfer.md). The best trial is one of the earlier
    /// ones: with few rows a rate that looked as good as any may do harm in the long run.
    fn validate(&mut self, contender: &mut Contender, observer: &mut dyn Observer) -> Result<()> {
        let weights = contender.fit.weights();
        let value = self.session.evaluate(&weights, Split::Val)?;
        let step = contender.fit.step;
        contender.validations.push((step, value));
        let (metric, rows) = (&self.session.metric, self.session.val_answers());
        let kept = contender.best.as_ref().map(|best| best.metric);
        let seen = contender.validations.iter().map(|v| v.1);
        if kept.is_none_or(|kept| is_as_good(metric, value, seen, kept, rows)) {
            contender.best = Some(self.keep(value, &contender.fit, weights));
        }
        observer.event(&Event::Validation { step, metric: value, best: contender.metric() });
        Ok(())
    }

    /// A fit's weights to come back to, out of the way of those that are trained on.
    pub fn keep(&self, metric: f64, fit: &Fit, mut weights: Vec<Value>) -> Best {
        if self.session.adapter_executor.on_host() {
            weights = shelve(weights, self.checkpoint.place());
        }
        Best { metric, step: fit.step, schedule: (fit.steps, fit.lr), weights }
    }

    /// Writes where this arm stands. Arms saved before keep their entries.
    pub fn save(&mut self, contender: &Contender) -> Result<()> {
        let best: Vec<(ValueId, Tensor)> = match &contender.best {
            Some(best) => self.session.named(&best.weights)?,
            None => vec![],
        };
        self.checkpoint.save_arm(&contender.file, &contender.fit.snapshot()?, &best)?;
        let state = contender.state();
        match self.state.arms.iter_mut().find(|s| s.arm == state.arm && s.seed == state.seed) {
            Some(slot) => *slot = state,
            None => self.state.arms.push(state),
        }
        self.checkpoint.save_run(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::arms::rounds;

    /// What is left of the time after each of some parts.
    fn left_after(parts: impl IntoIterator<Item = f64>) -> Vec<f64> {
        parts
            .into_iter()
            .scan(1.0, |left, part| {
                Some({
                    *left *= 1.0 - part;
                    *left
                })
            })
            .collect()
    }

    #[test]
    fn a_long_training_counts_where_it_comes_close_to_the_best_short_one() {
        let [accuracy, mse] = [Metric::accuracy(), Metric::mse()];
        let close = |metric, value| is_as_good(metric, value, std::iter::once(value), 0.93, 200);
        assert!(close(&accuracy, 0.915) && close(&accuracy, 0.94));
        assert!(!close(&accuracy, 0.895) && !close(&accuracy, f64::NAN));
        assert!(close(&mse, 0.92) && !close(&mse, 0.94));
        // Of one training, the latest of the good ones.
        let after = |value| is_as_good(&accuracy, value, [0.94, value].into_iter(), 0.94, 200);
        assert!(after(0.935) && !after(0.925));
    }

    #[test]
    fn what_short_trainings_cannot_tell_apart_is_near() {
        let near = |own| is_near(&Metric::accuracy(), 0.672, own, 250);
        assert!(near(0.672) && near(0.656) && !near(0.6) && !near(f64::NAN));
        assert!(!is_near(&Metric::mse(), 0.5, 0.51, 250));
    }

    #[test]
    fn arms_share_the_time_for_trials() {
        let left = left_after((0..6).map(|i| part_for_trials(6, 6 - i, 2)));
        let each: Vec<f64> =
            std::iter::once(1.0 - left[0]).chain(left.windows(2).map(|w| w[0] - w[1])).collect();
        assert!(each.iter().all(|part| (part - each[0]).abs() < 1e-9), "{each:?}");
        assert!((left[5] - 2.0 / (6.0 * TRIALS + 2.0)).abs() < 1e-9);
        assert_eq!(part_for_trials(1, 1, 1), 1.0);
    }

    #[test]
    fn arms_share_the_time_of_all_rounds_but_the_last() {
        // Six arms of 100 steps, two of 100 more, one of 200 more: 1000 steps.
        let plan = rounds(6, 400, false);
        assert_eq!(part_of_round(&plan, 6, 0), 0.1);
        assert_eq!(part_of_round(&plan, 1, 0), 0.2);
        assert_eq!(part_of_round(&plan[1..], 2, 100), 0.25);
        assert_eq!(part_of_round(&plan[2..], 1, 200), 1.0);
        assert_eq!(part_of_round(&rounds(6, 400, true), 2, 0), 1.0);
    }
}
