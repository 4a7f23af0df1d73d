//! How an arm's learning rate is chosen where none is asked for: by short trainings, each from the same start and through a whole
//! schedule. Judged in the middle of a long one, before its steps have become small, a high rate looks worse than it is
//! (docs/transfer.md).

use super::arms::Arm;
use super::contest::{Best, Contender, Contest};
use super::fit::Mark;
use super::metric::{better, two_standard_errors};
use super::session::Split;
use super::{Event, Observer};
use crate::error::{Error, Result};
use crate::report::Metric;

/// A short training takes this part of an arm's steps, where that is enough to see anything.
pub(super) const PART: usize = 8;
pub(super) const SHORTEST: usize = 10;
/// How much longer a second look takes at usual rates, and where only low ones held.
const LONGER: usize = 2;
const LONGEST: usize = 4;

/// What was tried of an arm, with learning rates.
#[derive(Default)]
struct Tried {
    bests: Vec<(f64, Best)>,
    divergence: Option<Error>,
}

impl Tried {
    /// The best of all: what a whole training has to come close to.
    fn best(&self, metric: &Metric) -> Option<Best> {
        let all = self.bests.iter().map(|(_, best)| best);
        all.reduce(|a, b| if better(metric, b.metric, a.metric) { b } else { a }).cloned()
    }
}

impl Contest<'_> {
    /// Whether learning rates are tried for arms of so many steps.
    pub(super) fn tries(&self, steps: usize) -> bool {
        self.session.config.lr.is_none() && steps / PART >= SHORTEST
    }

    /// A contender at its start, to be trained at the rate that short trainings speak for; too short ones say nothing.
    ///
    /// # Errors
    /// [`Error::Diverged`] where every rate does.
    pub(super) fn at_its_best_rate(
        &mut self,
        arm: Arm,
        seed: u64,
        steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<Contender> {
        let optimizer = self.session.config.optimizer;
        let rates = optimizer.rates();
        if !self.tries(steps) {
            return self.begin(arm, seed, (steps, rates[1]));
        }
        let short = steps / PART;
        // A fit to the source is worth the effort of the whole training, also where a short one begins with it.
        let mut contender = self.begin(arm, seed, (steps, rates[0]))?;
        let (start, first) = (contender.fit.mark(), contender.fit.weights());
        let began = self.session.evaluate(&first, Split::Val)?;
        let mut tried = self.try_rates(&mut contender, (&start, short), began, observer)?;
        let picked = self.second_look(&mut contender, (&start, short), &mut tried, began, observer)?;
        match (picked.zip(tried.best(&self.session.metric)), tried.divergence) {
            (Some(((rate, value), best)), _) => {
                self.again(&mut contender, &start, (steps, rate))?;
                (contender.trial, contender.best) = (Some(value), Some(best));
                if !self.stopped {
                    // All arms are tried before the first is trained: that is much to lose.
                    self.save(&contender)?;
                }
                Ok(contender)
            }
            (None, Some(error)) => Err(error),
            (None, None) => self.begin(contender.arm, seed, (steps, rates[0])),
        }
    }

    /// Short trainings at the usual rates, and at low ones until one [holds](Self::holds).
    fn try_rates(
        &mut self,
        contender: &mut Contender,
        (start, steps): (&Mark, usize),
        began: f64,
        observer: &mut dyn Observer,
    ) -> Result<Tried> {
        let optimizer = self.session.config.optimizer;
        let mut tried = Tried::default();
        for rate in optimizer.rates() {
            if self.stopped || tried.divergence.is_some() {
                break;
            }
            self.attempt(contender, (start, steps, rate), &mut tried, observer)?;
        }
        for rate in optimizer.low_rates() {
            if self.stopped || self.holds(&tried, began) {
                break;
            }
            self.attempt(contender, (start, steps, rate), &mut tried, observer)?;
        }
        Ok(tried)
    }

    /// What [`pick`](Self::pick) says of what was tried; where that is [in doubt](doubt), what it says after longer
    /// trainings at that rate and at the highest.
    fn second_look(
        &mut self,
        contender: &mut Contender,
        (start, steps): (&Mark, usize),
        tried: &mut Tried,
        began: f64,
        observer: &mut dyn Observer,
    ) -> Result<Option<(f64, f64)>> {
        let picked = self.pick(tried, began);
        let rates = self.session.config.optimizer.rates();
        // There is time for it only where nobody has set a limit.
        let hurried = self.deadline.is_some() || self.stopped;
        let doubted = picked.filter(|_| !hurried).map(|(rate, _)| (rate, doubt(&rates, rate)));
        let Some((rate, Some(longer))) = doubted else { return Ok(picked) };
        let mut again = Tried::default();
        for rate in [rate, rates[rates.len() - 1]] {
            self.attempt(contender, (start, longer * steps, rate), &mut again, observer)?;
        }
        let settled = !self.stopped && again.divergence.is_none();
        let second = if settled { self.pick(&again, f64::NAN) } else { None };
        tried.bests.extend(again.bests);
        Ok(second.or(picked))
    }

    /// The rate that trials speak for, and what its trial came to.
    fn pick(&self, tried: &Tried, began: f64) -> Option<(f64, f64)> {
        pick(&tried.bests, began, &self.session.metric, self.session.val_answers())
    }

    /// The same arm at its start again, with another schedule.
    fn again(&mut self, contender: &mut Contender, start: &Mark, schedule: (usize, f64)) -> Result<()> {
        match contender.fit.moving.is_some() {
            true => *contender = self.begin(contender.arm.clone(), contender.fit.seed, schedule)?,
            false => contender.fit.rewind(start, schedule),
        }
        Ok(())
    }

    /// Takes all steps of a short training from `start` and validates it.
    fn attempt(
        &mut self,
        contender: &mut Contender,
        (start, steps, rate): (&Mark, usize, f64),
        tried: &mut Tried,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.again(contender, start, (steps, rate))?;
        let Contender { arm, fit, .. } = contender;
        let (label, seed) = (format!("{}, lr {rate}", arm.label()), fit.seed);
        observer.event(&Event::ArmStart { arm: &label, seed, steps });
        match self.session.advance(arm, fit, steps, self.deadline, observer) {
            Err(error) if error.is_divergence() => {
                observer.event(&Event::Warning(&format!("{label}: {error}")));
                tried.divergence = Some(error);
                return Ok(());
            }
            arrived => self.stopped |= !arrived?,
        }
        let (weights, step) = (fit.weights(), fit.step);
        let metric = self.session.evaluate(&weights, Split::Val)?;
        observer.event(&Event::Validation { step, metric, best: metric });
        observer.event(&Event::ArmEnd { arm: &label, seed, metric });
        let best = self.keep(metric, fit, weights);
        tried.bests.push((rate, best));
        Ok(())
    }

    /// Whether a rate was found that doesn't leave the arm clearly worse than it began, as rates do that are too high for a network
    /// that is good already, or that reads pixels from 0 to 255 with small weights. All usual ones are looked at: distillation often
    /// goes down before it goes up, and sooner at a high rate.
    fn holds(&self, tried: &Tried, began: f64) -> bool {
        let metric = &self.session.metric;
        let allowed = two_standard_errors(metric, began, self.session.val_answers());
        began.is_nan() || tried.bests.iter().any(|(_, best)| metric.gain(began, best.metric) >= -allowed)
    }
}

/// How much longer a second look has to be at a rate that may be too low because trials were short, if it may: a target that is good
/// already, and a fit more so, is near the end of training, and high rates leave it before they come back. Where only low rates
/// held, longer: distillation can be worse for a quarter of its steps than where it began.
fn doubt(usual: &[f64], rate: f64) -> Option<usize> {
    match usual.iter().position(|known| *known == rate) {
        None => Some(LONGEST),
        Some(place) => (place + 1 < usual.len()).then_some(LONGER),
    }
}

/// Of some trials, the one of the highest rate that validated about as well as any, and as the arm did when it began: within two
/// standard errors, or else the best. Few steps favour low rates, as do starts near the end of training, which a high rate leaves
/// before it comes back.
fn pick(bests: &[(f64, Best)], began: f64, metric: &Metric, rows: usize) -> Option<(f64, f64)> {
    let mut trials: Vec<(f64, f64)> = bests.iter().map(|(rate, best)| (*rate, best.metric)).collect();
    trials.sort_by(|a, b| a.0.total_cmp(&b.0));
    let values = || trials.iter().map(|trial| trial.1);
    let highest = values().chain([began]).fold(f64::NAN, |a, b| if better(metric, b, a) { b } else { a });
    let allowed = two_standard_errors(metric, highest, rows);
    let near = values().rposition(|value| metric.gain(highest, value) >= -allowed);
    let place = near.or_else(|| {
        let gain = |i: &usize| metric.gain(highest, trials[*i].1);
        (0..trials.len()).max_by(|i, j| gain(i).total_cmp(&gain(j)))
    })?;
    Some(trials[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate that is picked of those whose trials came to `values`, of 400 rows.
    fn picked(began: f64, values: &[(f64, f64)]) -> f64 {
        let best = |metric| Best { metric, step: 1, schedule: (1, 1e-3), weights: vec![] };
        let tried: Vec<_> = values.iter().map(|&(rate, metric)| (rate, best(metric))).collect();
        pick(&tried, began, &Metric::accuracy(), 400).unwrap().0
    }

    #[test]
    fn the_highest_rate_that_is_not_clearly_worse_is_picked() {
        assert_eq!(picked(0.5, &[(1e-3, 0.80), (3e-3, 0.82), (1e-2, 0.79)]), 1e-2);
        assert_eq!(picked(0.5, &[(1e-3, 0.80), (3e-3, 0.82), (1e-2, 0.77)]), 3e-3);
        // Where an arm began counts too.
        assert_eq!(picked(0.9, &[(1e-5, 0.9), (1e-4, 0.88), (1e-3, 0.84)]), 1e-4);
        assert_eq!(picked(0.9, &[(1e-3, 0.6), (3e-3, 0.4)]), 1e-3);
    }

    #[test]
    fn rates_that_short_trainings_may_mistake_are_looked_at_again() {
        let usual = [1e-3, 3e-3, 1e-2];
        let longer = [1e-5, 1e-4, 1e-3, 3e-3, 1e-2].map(|rate| doubt(&usual, rate));
        assert_eq!(longer, [Some(LONGEST), Some(LONGEST), Some(LONGER), Some(LONGER), None]);
    }
}
