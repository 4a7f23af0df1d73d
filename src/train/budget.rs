//! How many steps fit into the time that all of training may take, so that schedules end with it instead of being cut off.
//!
//! Decided once, before the first arm, by what steps cost here and now; a resumed run keeps to it. The clock still ends what takes
//! longer all the same. Look at [`Contest::fit_to_time`].

use super::arms::{self, Arm, SourceKind, rounds};
use super::contest::{Contest, VALIDATIONS, part_for_trials};
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
const TIMED_STEPS: usize = 40;
const TIMED: Duration = Duration::from_millis(500);
/// At least so many, however long they take.
const TIMED_LEAST: usize = 2;

/// What parts of an arm's training take, in seconds.
#[derive(Clone, Copy)]
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
    /// Trainings after it: other seeds, control arms.
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
    fn total(&self, costs: Costs, steps: usize) -> f64 {
        let whole = steps as f64 * costs.step + VALIDATIONS as f64 * costs.validation;
        let plan = rounds(self.arms, steps, self.tried(steps));
        let begins = std::iter::once(0).chain(plan.iter().map(|round| round.0));
        let trained: usize = plan.iter().zip(begins).map(|((until, arms), from)| (until - from) * arms).sum();
        let contest = trained as f64 / steps.max(1) as f64 * whole;
        let entries = (self.arms + self.later) as f64 * self.entry(costs, steps);
        entries + contest + self.later as f64 * whole
    }

    /// Whether so many steps an arm take no more than `seconds`, and no arm's trials more than their share of it.
    fn fits(&self, costs: Costs, steps: usize, seconds: f64) -> bool {
        let trainings = rounds(self.arms, steps, self.tried(steps)).first().map_or(0, |round| round.1);
        let share = seconds * part_for_trials(self.arms, self.arms, trainings);
        self.total(costs, steps) <= seconds && self.entry(costs, steps) <= share
    }

    /// The most steps an arm, up to `most`, that fit into `seconds`.
    fn steps(&self, costs: Costs, most: usize, seconds: f64) -> usize {
        // With trials all costs more: two ranges within which more steps take longer.
        let tried = PART * SHORTEST;
        let ranges = [(tried, most), (FEWEST, most.min(tried - 1))];
        let largest = |(low, high): (usize, usize)| last_that(low, high, |n| self.fits(costs, n, seconds));
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
    /// Steps for each of these arms, `steps` at most: as many as the time has room for. Where that is less, also what to tell the
    /// user.
    pub fn fit_to_time(
        &mut self,
        candidates: &[Arm],
        steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<(usize, Option<String>)> {
        if let Some(planned) = self.state.steps {
            return Ok((planned, None));
        }
        let Some(deadline) = self.deadline.filter(|_| self.state.arms.is_empty()) else {
            return Ok((steps, None));
        };
        let Some(costs) = self.measure(candidates, steps, observer)? else { return Ok((steps, None)) };
        let seconds = PLANNED * deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let fitting = self.work(candidates).steps(costs, steps, seconds);
        let planned = self.session.ranks.first_numbers(&[fitting]).first().copied().unwrap_or(fitting);
        self.state.steps = Some(planned);
        let told = format!(
            "a step takes {:.3} s: {planned} of {steps} steps an arm fit into the time, and learning rates fall to zero with them",
            costs.step
        );
        Ok((planned, (planned < steps).then_some(told)))
    }

    fn work(&self, candidates: &[Arm]) -> Work {
        let config = &self.session.config;
        let controls = match candidates.first().filter(|_| config.ablate) {
            Some(arm) => arms::controls(arm, self.session.means, self.session.supervised()).len(),
            None => 0,
        };
        Work {
            arms: candidates.len(),
            later: (1 + controls) * config.seeds.max(1) - 1,
            tries: config.lr.is_none(),
            rates: config.optimizer.rates().len(),
        }
    }

    /// Takes some steps of the arm that costs most, which are thrown away; `None` where that was stopped.
    fn measure(
        &mut self,
        candidates: &[Arm],
        steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<Option<Costs>> {
        let weight = |arm: &&Arm| (arm.source != SourceKind::None, arm.teacher);
        let Some(arm) = candidates.iter().max_by_key(weight) else { return Ok(None) };
        // Its steps cost the same from where it is, and a fit would be kept.
        let arm = Arm { fitted: false, ..arm.clone() };
        let mut quiet = Quiet(observer);
        let begun = Instant::now();
        let mut contender = self.begin(arm, self.session.config.seed, (steps, 0.0))?;
        let mut take = |this: &mut Self, count: usize| -> Result<bool> {
            let until = contender.fit.step + count;
            this.session.advance(&contender.arm, &mut contender.fit, until, this.deadline, &mut quiet)
        };
        // What is compiled when it is first run counts as the start.
        if !take(self, 1)? {
            return Ok(None);
        }
        let start = begun.elapsed().as_secs_f64();
        let (begun, mut taken) = (Instant::now(), 0);
        while taken < TIMED_LEAST || self.session.ranks.decide(taken < TIMED_STEPS && begun.elapsed() < TIMED)
        {
            if !take(self, 1)? {
                return Ok(None);
            }
            taken += 1;
        }
        let step = begun.elapsed().as_secs_f64() / taken as f64;
        let weights = contender.fit.weights();
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

    #[test]
    fn a_single_training_gets_all_steps_that_fit() {
        let work = Work { arms: 1, later: 0, tries: false, rates: 3 };
        // The start, and twelve validations.
        assert_eq!(work.steps(COSTS, 1_000_000, 7.0 + 30.0), 300);
        assert_eq!(work.steps(COSTS, 200, 7.0 + 30.0), 200);
        assert_eq!(work.steps(COSTS, 200, 0.0), FEWEST);
        assert_eq!(work.steps(COSTS, 4, 0.0), 4);
    }

    #[test]
    fn what_is_planned_fits_and_more_would_not() {
        for (arms, later, tries) in [(1, 0, true), (2, 0, true), (6, 0, true), (6, 0, false), (6, 14, true)] {
            let work = Work { arms, later, tries, rates: 3 };
            for seconds in [60.0, 200.0, 1000.0] {
                let steps = work.steps(COSTS, 100_000, seconds);
                assert!(steps == FEWEST || work.fits(COSTS, steps, seconds), "{steps} steps");
                assert!(!work.fits(COSTS, steps + 1, seconds), "{steps} steps of {arms} arms in {seconds} s");
            }
        }
    }

    #[test]
    fn six_arms_cost_as_much_as_four_and_a_quarter_trainings() {
        let costs = Costs { start: 0.0, step: 1.0, validation: 0.0 };
        let work = Work { arms: 6, later: 0, tries: true, rates: 3 };
        assert_eq!(work.total(costs, 800), 4.25 * 800.0);
    }
}
