//! The gate: what was trained is shipped only if validation says that it is better, and if that is hardly luck: by validation alone,
//! or with the [folds](super::folds) of the training rows.

use super::TrainConfig;
use super::evidence::{Evidence, knows};
use super::metric::Tally;
use super::results::Winner;
use super::session::{Session, Split};
use crate::error::Result;
use crate::report::{Folds, Gains, Scores, Worth};
use crate::runtime::Value;

/// A chance of luck above which validation alone isn't believed where training rows can be asked, too.
const SURE: f64 = 0.05;

/// A model's scores, with those of the single rows.
pub struct Measured {
    pub scores: Scores,
    pub train: Tally,
    pub val: Tally,
    test: Tally,
}

/// What was trained and gains at least what was asked for on validation.
pub struct Candidate {
    weights: Vec<Value>,
    val: Tally,
    /// Validation's.
    pub evidence: Evidence,
    pub gain: Worth,
    /// The chance that luck alone shows as much.
    luck: f64,
}

/// What came through the gate.
pub struct Passed {
    /// The weights to ship; `None` where the target is kept.
    pub weights: Option<Vec<Value>>,
    /// Of what is shipped.
    pub scores: Scores,
    pub gains: Gains,
    /// What it took to tell a gain from luck, or why it wasn't told.
    pub note: Option<String>,
}

/// Measures the target as it came.
pub fn measure(session: &mut Session) -> Result<Measured> {
    let weights = session.original();
    let val = session.tally(&weights, Split::Val)?;
    measure_rest(session, &weights, val)
}

/// The other parts of the data, where validation is known.
fn measure_rest(session: &mut Session, weights: &[Value], val: Tally) -> Result<Measured> {
    let (train, test) = (session.tally(weights, Split::Train)?, session.tally(weights, Split::Test)?);
    let [on_train, on_val, on_test] = [&train, &val, &test].map(|t| Some(t.value()).filter(|v| !v.is_nan()));
    let scores = Scores { train: on_train, val: on_val, test: on_test };
    Ok(Measured { scores, train, val, test })
}

/// The winner where it gains at least what was asked for over the target `before`.
pub fn judge(session: &mut Session, winner: Option<&Winner>, before: &Measured) -> Result<Option<Candidate>> {
    let Some(winner) = winner else { return Ok(None) };
    let weights = winner.best.weights.clone();
    let val = session.tally(&weights, Split::Val)?;
    let evidence = evidence(session, Split::Val, &before.val, &val);
    let Some(gain) = evidence.gain().filter(|gain| is_enough(gain, &session.config)) else { return Ok(None) };
    let luck = evidence.luck();
    Ok(Some(Candidate { weights, val, evidence, gain, luck }))
}

fn evidence(session: &Session, split: Split, before: &Tally, after: &Tally) -> Evidence {
    let groups = session.examples().groups(split);
    Evidence::by_groups(before, after, &session.metric, groups.as_deref())
}

fn is_enough(gain: &Worth, config: &TrainConfig) -> bool {
    gain.mean > 0.0 && gain.mean >= config.min_gain
}

impl Candidate {
    /// Whether its gain may be luck, so that training rows are asked: sooner than it is too little to be shipped, since it is the
    /// best of several arms and many validations.
    pub fn is_open(&self, config: &TrainConfig) -> bool {
        config.significance < 1.0 && self.luck > config.significance.min(SURE)
    }
}

/// Lets a candidate through whose gain isn't luck, as validation says, or what `folds` showed.
pub fn pass(
    session: &mut Session,
    candidate: Option<Candidate>,
    folds: Option<&Folds>,
    before: &Measured,
) -> Result<Passed> {
    let kept = |note| Passed { weights: None, scores: before.scores, gains: Gains::default(), note };
    let Some(candidate) = candidate else { return Ok(kept(None)) };
    let config = &session.config;
    let told = |folds: &Folds| is_enough(&folds.gain, config) && folds.luck <= config.significance;
    let sure = candidate.luck <= config.significance;
    let ships = folds.map_or(sure, told);
    let note = (!sure || folds.is_some()).then(|| note(session, &candidate, (folds, before), ships));
    if !ships {
        return Ok(kept(note));
    }
    let Candidate { weights, val, gain, .. } = candidate;
    let after = measure_rest(session, &weights, val)?;
    let test = evidence(session, Split::Test, &before.test, &after.test).gain();
    let gains = Gains { val: Some(gain), test };
    Ok(Passed { weights: Some(weights), scores: after.scores, gains, note })
}

/// What is known of a gain that validation leaves open.
fn note(
    session: &Session,
    candidate: &Candidate,
    (folds, before): (Option<&Folds>, &Measured),
    ships: bool,
) -> String {
    let Candidate { gain, luck, .. } = candidate;
    let validation = format!(
        "the best of what was tried gains {}, which luck alone does with a chance of {luck:.2}",
        session.metric.show_gain(gain, "validation")
    );
    let more = folds.map_or(String::new(), |folds| {
        format!(
            "; with the training rows of {} of {} folds, each left out of a training of its own, it gains {} ({:.2})",
            folds.measured,
            folds.of,
            session.metric.show_gain(&folds.gain, "held-out"),
            folds.luck
        )
    });
    let known = folds.and_then(|_| known(session, before)).unwrap_or_default();
    match ships {
        true => format!("{validation}{more}"),
        false => format!(
            "{validation}{more}: too little to be shipped (more validation rows would tell; {known}--significance 1 ships any gain)"
        ),
    }
}

/// A word on training rows that the untouched target answers better than others, so that they hide gains.
fn known(session: &Session, before: &Measured) -> Option<String> {
    let metric = &session.metric;
    let knows = knows(&before.train, &before.val, metric, session.config.significance);
    let [train, val] = [&before.train, &before.val].map(|tally| metric.show(tally.value()));
    knows.then(|| {
        format!(
            "the target answers training rows better than validation rows, {train} against {val}, and if it was trained on them \
             that hides gains: --folds 0 looks at validation alone; "
        )
    })
}
