//! All arms of a run, trained: which of them is chosen, and what each came to.

use super::Observer;
use super::arms::{self, Arm, SourceKind};
use super::contest::{Best, Contender, Contest};
use super::metric::better;
use super::session::Split;
use crate::error::Result;
use crate::report;

/// What came out of all arms.
pub struct Results {
    pub chosen: Chosen,
    pub arms: Vec<report::Arm>,
    pub curves: Vec<report::Curve>,
    /// Of the best arm with an adapter.
    pub attention: Vec<report::Attention>,
}

pub struct Chosen {
    pub arm: Arm,
    /// The best of its seeds; `None` where none came to a validation.
    pub winner: Option<Winner>,
}

/// What may be shipped.
#[derive(Clone)]
pub struct Winner {
    pub best: Best,
    pub seed: u64,
    /// Steps that its arm was to take.
    pub steps: usize,
    /// Seconds a step took, validations included, where any was taken in this process.
    pub pace: Option<f64>,
}

/// Lets `candidates` compete, and repeats the winner, and its controls where these are asked for, with all seeds.
pub fn run_arms(
    contest: &mut Contest<'_>,
    candidates: Vec<Arm>,
    steps: usize,
    observer: &mut dyn Observer,
) -> Result<Results> {
    let config = contest.session.config.clone();
    let mut results = Table::default();
    let field = contest.run(candidates, config.seed, steps, observer)?;
    let steps = contest.state.steps.unwrap_or(steps);
    let chosen = field.first().map(|c| c.arm.clone()).unwrap_or_else(Arm::finetune);
    for contender in &field {
        results.add(contest, contender, contender.is_done(steps))?;
    }
    let best_gate = field.iter().find(|c| c.arm.source == SourceKind::Real).map(|c| c.arm.gate);
    let mut repeats = vec![chosen.clone()];
    if config.ablate {
        let mut reference = chosen.clone();
        if let (SourceKind::None, Some(gate)) = (chosen.source, best_gate) {
            reference = Arm { source: SourceKind::None, gate, ..chosen.clone() };
        }
        repeats.extend(arms::controls(&reference, contest.session.means, contest.session.supervised()));
    }
    let adapted = field.iter().find(|c| c.arm.source == SourceKind::Real && !c.diverged);
    let attention = adapted.map(attention_in).transpose()?.unwrap_or_default();
    drop(field);
    for seed in (0..config.seeds.max(1) as u64).map(|i| config.seed + i) {
        for arm in &repeats {
            if contest.stopped || results.has(arm, seed) {
                continue;
            }
            let mut contender = contest.enter(arm.clone(), seed, steps, observer)?;
            contest.train(&mut contender, steps, observer)?;
            results.add(contest, &contender, contender.is_done(steps))?;
        }
    }
    let winner = results.best(&chosen, &contest.session.metric);
    let chosen = Chosen { arm: chosen, winner };
    Ok(Results { chosen, arms: results.rows(&repeats), curves: results.curves, attention })
}

/// What an arm's adapter attends to at the end of its training.
fn attention_in(contender: &Contender) -> Result<Vec<report::Attention>> {
    let arm = contender.arm.label();
    let seen = contender.fit.attention()?;
    let shown = seen.into_iter().map(|s| report::Attention {
        arm: arm.clone(),
        target: s.target,
        source: s.source,
        row_names: s.row_names,
        column_names: s.column_names,
        rows: s.rows,
        columns: s.columns,
        values: s.values,
    });
    Ok(shown.collect())
}

/// Results by arm and seed.
#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    curves: Vec<report::Curve>,
}

struct Entry {
    arm: Arm,
    seed: u64,
    val: f64,
    test: Option<f64>,
    lr: f64,
    complete: bool,
    winner: Option<Winner>,
}

impl Table {
    /// Test figures are measured here, once an arm is done, and decide nothing.
    fn add(&mut self, contest: &mut Contest<'_>, contender: &Contender, complete: bool) -> Result<()> {
        let test = match &contender.best {
            Some(best) if complete => {
                Some(contest.session.evaluate(&best.weights, Split::Test)?).filter(|v| !v.is_nan())
            }
            _ => None,
        };
        self.curves.push(contender.curve());
        let (arm, seed, val) = (contender.arm.clone(), contender.fit.seed, contender.metric());
        let (lr, steps, pace) = (contender.fit.lr, contender.fit.steps, contender.pace);
        let winner = contender.best.clone().map(|best| Winner { best, seed, steps, pace });
        self.entries.push(Entry { arm, seed, val, test, lr, complete, winner });
        Ok(())
    }
    fn has(&self, arm: &Arm, seed: u64) -> bool {
        self.entries.iter().any(|e| e.arm == *arm && e.seed == seed && e.complete)
    }
    /// The best validated weights among the seeds of `arm`.
    fn best(&self, arm: &Arm, metric: &report::Metric) -> Option<Winner> {
        let all = self.entries.iter().filter(|e| e.arm == *arm).filter_map(|e| e.winner.as_ref());
        all.reduce(|a, b| if better(metric, b.best.metric, a.best.metric) { b } else { a }).cloned()
    }
    /// A row an arm: those of `repeats` over all seeds, then the others that took part.
    fn rows(&self, repeats: &[Arm]) -> Vec<report::Arm> {
        let mut arms: Vec<&Arm> = repeats.iter().collect();
        arms.extend(self.entries.iter().map(|e| &e.arm).filter(|a| !repeats.contains(a)));
        let mut rows: Vec<report::Arm> = vec![];
        for arm in arms {
            let mine: Vec<&Entry> = self
                .entries
                .iter()
                .filter(|e| e.arm == *arm && (e.complete || !repeats.contains(arm)))
                .collect();
            rows.push(report::Arm {
                name: arm.label(),
                source: match arm.source {
                    SourceKind::None => report::ArmSource::None,
                    SourceKind::Real => report::ArmSource::Real,
                    SourceKind::Shuffled => report::ArmSource::Shuffled,
                    SourceKind::Untrained => report::ArmSource::Untrained,
                },
                // An arm that an interruption kept from its first validation has no value; JSON knows no NaN.
                val: mine.iter().map(|e| e.val).filter(|v| !v.is_nan()).collect(),
                test: mine.iter().filter_map(|e| e.test).collect(),
                lr: mine.iter().map(|e| e.lr).collect(),
            });
        }
        rows
    }
}
