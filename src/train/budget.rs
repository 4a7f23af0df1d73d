//! How many steps fit into the time that all of training may take, so that schedules end with it instead of being cut off.
//!
//! Decided once, by what steps cost here and now, and kept in the checkpoint. A single training is planned before it begins. Where
//! arms compete, the clock shares out the time for their short trainings ([`Contest::run`]), and what is left is planned for
//! those that go on. The clock still ends what takes longer all the same.

use super::arms::{self, Arm, rounds};
use super::contest::{Contender, Contest, VALIDATIONS};
use super::session::Split;
use super::trials::{PART, SHORTEST};
use super::{Event, Observer};
use crate::error::Result;
use std::time::{Duration, Instant};

/// Of the time left, what is planned for: speed varies.
const PLANNED: f64 = 0.9;
/// No arm is planned to take less steps: too few to be worth a schedule.
const FEWEST: usize = 10;
/// Steps are timed until so many were taken, or so long.
const TIMED_STEPS: usize = 20;
const TIMED: Duration = Duration::from_millis(300);
/// At least so many, however long they take.
const TIMED_LEAST: usize = 2;

/// What parts of an arm's training take, in seconds.
#[derive(Clone, Copy, Default)]
struct Costs {
    /// Its programs, compiled.
    start: f64,
    step: f64,
    validation: f64,
}

/// What is to be trained.
#[derive(Clone, Copy)]
struct Work {
    /// Arms in the contest.
    arms: usize,
    /// Whether these have their learning rates; if so, whether by short trainings.
    entered: Option<bool>,
    /// Trainings after the contest: other seeds, control arms.
    later: usize,
    /// Whether learning rates are tried where there are steps enough.
    tries: bool,
    /// How many of them.
    rates: usize,
}

impl Work {
    fn tried(&self, steps: usize) -> bool {
        self.tries && steps / PART >= SHORTEST
    }

    /// Seconds until an arm that takes so many steps has its learning rate.
    fn entry(&self, costs: Costs, steps: usize) -> f64 {
        let short = (steps / PART) as f64 * costs.step + costs.validation;
        let trials = if self.tried(steps) { costs.validation + self.rates as f64 * short } else { 0.0 };
        costs.start + trials
    }

    /// Seconds that all of it takes with so many steps an arm.
    fn seconds(&self, costs: Costs, steps: usize) -> f64 {
        let whole = steps as f64 * costs.step + VALIDATIONS as f64 * costs.validation;
        let plan = rounds(self.arms, steps, self.entered.unwrap_or(self.tried(steps)));
        let begins = std::iter::once(0).chain(plan.iter().map(|round| round.0));
        let trained: usize = plan.iter().zip(begins).map(|((until, arms), from)| (until - from) * arms).sum();
        let contest = trained as f64 / steps.max(1) as f64 * whole;
        let entering = if self.entered.is_some() { 0 } else { self.arms } + self.later;
        contest + entering as f64 * self.entry(costs, steps) + self.later as f64 * whole
    }

    /// The most steps an arm, up to `most`, that fit into `seconds`.
    fn steps(&self, costs: Costs, most: usize, seconds: f64) -> usize {
        // With trials all costs more: two ranges within which more steps take longer.
        let tried = PART * SHORTEST;
        let ranges = [(tried, most), (FEWEST, most.min(tried - 1))];
        let fits = |steps: usize| self.seconds(costs, steps) <= seconds;
        let largest = |(low, high): (usize, usize)| last_that(low, high, fits);
        ranges.into_iter().find_map(largest).unwrap_or(FEWEST.min(most))
    }
}

/// The last number from `low` to `high` that is `fine`, as all before it are; `None` where `low` isn't.
fn last_that(mut low: usize, mut high: usize, fine: impl Fn(usize) -> bool) -> Option<usize> {
    if low > high || !fine(low) {
        return None;
    }
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match fine(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    Some(low)
}

/// Watches nothing, but may be stopped.
struct Quiet<'a>(&'a mut dyn Observer);

impl Observer for Quiet<'_> {
    fn event(&mut self, _: &Event<'_>) {}
    fn interrupted(&self) -> bool {
        self.0.interrupted()
    }
}

impl Contest<'_> {
    /// Whether steps are still to be planned.
    fn is_open(&self) -> bool {
        self.deadline.is_some() && self.state.steps.is_none() && !self.stopped
    }

    /// Steps for an arm that has nobody to compete with, `steps` at most.
    pub(super) fn fit_one(&mut self, arm: &Arm, steps: usize, observer: &mut dyn Observer) -> Result<usize> {
        if !self.is_open() || !self.state.arms.is_empty() {
            return Ok(self.state.steps.unwrap_or(steps));
        }
        let begun = Instant::now();
        // Its steps cost the same from where it is, and a fit would be kept.
        let mut trial =
            self.begin(Arm { fitted: false, ..arm.clone() }, self.session.config.seed, (steps, 0.0))?;
        let start = begun.elapsed().as_secs_f64();
        let Some(costs) = self.time(&mut trial, observer)? else { return Ok(steps) };
        drop(trial);
        let work = self.work(1, None, arm);
        self.plan(work, Costs { start: start + costs.start, ..costs }, steps, observer)
    }

    /// Steps for arms that have their learning rates, `steps` at most; `staying` are trained in the first round, and `tried` says
    /// whether they come from short trainings.
    pub(super) fn fit_several(
        &mut self,
        staying: &mut [Contender],
        (arms, tried): (usize, bool),
        steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<usize> {
        let Some(best) = staying.first().map(|c| c.arm.clone()).filter(|_| self.is_open()) else {
            return Ok(self.state.steps.unwrap_or(steps));
        };
        let (mut mean, count) = (Costs::default(), staying.len() as f64);
        for contender in staying {
            let Some(costs) = self.time(contender, observer)? else { return Ok(steps) };
            mean.step += costs.step / count;
            mean.validation += costs.validation / count;
        }
        self.plan(self.work(arms, Some(tried), &best), mean, steps, observer)
    }

    fn work(&self, arms: usize, entered: Option<bool>, best: &Arm) -> Work {
        let config = &self.session.config;
        let controls = || arms::controls(best, self.session.means, self.session.supervised()).len();
        Work {
            arms,
            entered,
            later: (1 + if config.ablate { controls() } else { 0 }) * config.seeds.max(1) - 1,
            tries: config.lr.is_none(),
            rates: config.optimizer.rates().len(),
        }
    }

    /// Decides on the steps, the same in all processes, and tells the user where they are fewer than `steps`.
    fn plan(&mut self, work: Work, costs: Costs, steps: usize, observer: &mut dyn Observer) -> Result<usize> {
        let Some(deadline) = self.deadline else { return Ok(steps) };
        let left = PLANNED * deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let fitting = work.steps(costs, steps, left);
        let planned = self.session.ranks.first_numbers(&[fitting]).first().copied().unwrap_or(fitting);
        self.state.steps = Some(planned);
        if planned < steps {
            let note = format!(
                "a step takes {:.4} s: {planned} of {steps} steps an arm fit into the time, and learning rates fall to zero with them",
                costs.step
            );
            observer.event(&Event::Note(&note));
            self.planned = Some(note);
        }
        Ok(planned)
    }

    /// Times some steps of an arm that has taken none, and leaves it where it was; `None` where that was stopped.
    fn time(&mut self, contender: &mut Contender, observer: &mut dyn Observer) -> Result<Option<Costs>> {
        let schedule = (contender.fit.steps, contender.fit.lr);
        let mark = contender.fit.mark();
        contender.fit.lr = 0.0;
        let costs = self.time_steps(contender, &mut Quiet(observer))?;
        match contender.fit.moving.is_some() {
            true => contender.fit = self.begin(contender.arm.clone(), contender.fit.seed, schedule)?.fit,
            false => contender.fit.rewind(&mark, schedule),
        }
        Ok(costs)
    }

    fn time_steps(
        &mut self,
        contender: &mut Contender,
        observer: &mut dyn Observer,
    ) -> Result<Option<Costs>> {
        let Contender { arm, fit, .. } = contender;
        let begun = Instant::now();
        // What is compiled when it is first run counts as the start.
        if !self.session.advance(arm, fit, 1, self.deadline, observer)? {
            return Ok(None);
        }
        let start = begun.elapsed().as_secs_f64();
        let (begun, first) = (Instant::now(), fit.step);
        loop {
            let taken = fit.step - first;
            let enough = taken >= TIMED_LEAST && (taken >= TIMED_STEPS || begun.elapsed() > TIMED);
            if self.session.ranks.decide(enough) {
                break;
            }
            if !self.session.advance(arm, fit, fit.step + 1, self.deadline, observer)? {
                return Ok(None);
            }
        }
        let step = begun.elapsed().as_secs_f64() / (fit.step - first) as f64;
        let weights = fit.weights();
        self.session.evaluate(&weights, Split::Val)?;
        let begun = Instant::now();
        self.session.evaluate(&weights, Split::Val)?;
        Ok(Some(Costs { start, step, validation: begun.elapsed().as_secs_f64() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs { start: 1.0, step: 0.1, validation: 0.5 };
    const ONE: Work = Work { arms: 1, entered: None, later: 0, tries: false, rates: 3 };

    #[test]
    fn a_single_training_gets_all_steps_that_fit() {
        // The start, and twelve validations.
        assert_eq!(ONE.steps(COSTS, 1_000_000, 7.0 + 30.0), 300);
        assert_eq!(ONE.steps(COSTS, 200, 7.0 + 30.0), 200);
        assert_eq!(ONE.steps(COSTS, 200, 0.0), FEWEST);
        assert_eq!(ONE.steps(COSTS, 4, 0.0), 4);
    }

    #[test]
    fn what_is_planned_fits_and_more_would_not() {
        let (yes, no) = (Some(true), Some(false));
        for (arms, entered, later) in [(1, None, 0), (1, None, 14), (2, yes, 0), (6, yes, 14), (6, no, 0)] {
            let work = Work { arms, entered, later, tries: entered != no, rates: 3 };
            for seconds in [60.0, 200.0, 1000.0] {
                let steps = work.steps(COSTS, 100_000, seconds);
                let takes = |steps| work.seconds(COSTS, steps);
                assert!(steps == FEWEST || takes(steps) <= seconds, "{steps} steps");
                assert!(takes(steps + 1) > seconds, "{steps} steps of {arms} arms in {seconds} s");
            }
        }
    }

    #[test]
    fn short_trainings_count_where_they_are_still_to_be_done() {
        let costs = Costs { start: 0.0, step: 1.0, validation: 0.0 };
        assert_eq!(Work { tries: true, ..ONE }.seconds(costs, 800), 1.375 * 800.0);
        let six = Work { arms: 6, entered: Some(true), tries: true, ..ONE };
        assert_eq!(six.seconds(costs, 800), 2.0 * 800.0);
    }
}
