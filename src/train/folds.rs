//! More rows where validation leaves open whether a gain is luck: the winner is trained again without one fold of the training rows
//! after the other, and compared with the untouched target on that fold.
//!
//! What is shipped was trained on all rows: the folds say how good that way of training is. Nothing is chosen by them. Rows that are
//! made of one are left out with it ([`Session::leave_out`]); of rows that belong together otherwise their
//! groups tell, or else only their place in the file ([`crate::data::folds`]).

use super::arms::SourceKind;
use super::checkpoint::FoldsState;
use super::contest::Contest;
use super::evidence::{Evidence, knows};
use super::gate::{Candidate, Measured};
use super::metric::{Row, Tally};
use super::results::{Chosen, Winner};
use super::session::{Session, Split};
use super::{Event, Observer};
use crate::error::Result;
use crate::onnx::{Tensor, ValueId};
use crate::report::{Folds, Metric, Worth};
use std::time::Instant;

/// Halves of so many training rows are enough to train on, at half the cost of four folds.
const MANY_ROWS: usize = 2000;

/// How many folds, where nobody says.
fn folds_for(rows: usize) -> usize {
    if rows < MANY_ROWS { 4 } else { 2 }
}

/// Folds that gain more than validation by so many standard errors aren't like it: both models, or the source, know them.
const TOO_GOOD: f64 = 2.0;

/// What a row of one of `count` folds counts beside one of validation. Trainings without single folds share most of their rows, so
/// that their gains go up and down together: the variance of their mean is that of independent ones times 1 + n · test / train rows
/// (Nadeau and Bengio, Inference for the generalization error, 2003), which is 1 + n / (n − 1) here.
fn share(count: usize) -> f64 {
    let count = count as f64;
    1.0 / (1.0 + count / (count - 1.0))
}

/// What asking came to.
#[derive(Default)]
pub struct Answer {
    /// `None` where they weren't asked, or can't tell.
    pub folds: Option<Folds>,
    /// Why they can't.
    pub note: Option<String>,
}

/// Asks the training rows, where validation leaves the gain of `candidate` open and they could tell.
///
/// # Errors
/// A training that fails, other than by divergence.
pub fn ask(
    contest: &mut Contest<'_>,
    chosen: &Chosen,
    candidate: &Candidate,
    before: &Measured,
    observer: &mut dyn Observer,
) -> Result<Answer> {
    let config = &contest.session.config;
    let rows = before.train.measured().len();
    let wanted = config.folds.unwrap_or_else(|| folds_for(rows));
    let (count, limit) = (wanted.min(contest.session.examples().most_folds()), config.significance);
    let (Some(winner), false) = (&chosen.winner, contest.stopped || count < 2) else {
        return Ok(Answer::default());
    };
    let folds = contest.session.examples().folds(count);
    let groups = contest.session.examples().groups(Split::Train);
    let mut inquiry = Inquiry { val: candidate.evidence, seen: None, share: share(count), rows };
    if !candidate.is_open(config) || folds.iter().any(Vec::is_empty) || inquiry.at_best() > limit {
        return Ok(Answer::default());
    }
    if let Some(why) = knows_them(contest.session, chosen)?.or_else(|| too_slow(contest, winner, count)) {
        return Ok(Answer { folds: None, note: Some(why) });
    }
    observer.event(&Event::Note(&announcement(winner, count, candidate.gain, &contest.session.metric)));
    let (mut measured, mut gains) = (0, vec![]);
    for (i, fold) in folds.iter().enumerate() {
        let Some(tally) = without(contest, chosen, winner, (i, &folds), observer)? else {
            return Ok(Answer::default());
        };
        let untouched = Tally::from(fold.iter().map(|&row| before.train.measured()[row]).collect());
        let metric = &contest.session.metric;
        let groups: Option<Vec<usize>> =
            groups.as_ref().map(|groups| fold.iter().map(|&row| groups[row]).collect());
        let seen = Evidence::by_groups(&untouched, &tally, metric, groups.as_deref());
        let (rows, untouched, value) = (fold.len(), untouched.value(), tally.value());
        observer.event(&Event::Fold { fold: i + 1, folds: count, rows, untouched, metric: value });
        measured += 1;
        gains.push(seen);
        inquiry.seen = gains.iter().copied().reduce(Evidence::and);
        if inquiry.at_best() > limit {
            break;
        }
    }
    if let Some(why) = inquiry.too_good() {
        return Ok(Answer { folds: None, note: Some(why.to_owned()) });
    }
    let all = inquiry.all();
    let folds = all.gain().map(|gain| Folds { measured, of: count, gain, luck: all.luck() });
    Ok(Answer { folds, note: None })
}

/// What is known so far.
struct Inquiry {
    val: Evidence,
    /// Of folds.
    seen: Option<Evidence>,
    share: f64,
    /// Of all folds.
    rows: usize,
}

impl Inquiry {
    fn all(&self) -> Evidence {
        self.seen.map_or(self.val, |seen| self.val.and(seen.counting(self.share)))
    }

    /// The chance of luck that would be left if the folds to come gained as much as validation may mean.
    fn at_best(&self) -> f64 {
        let to_come = self.rows as f64 - self.seen.map_or(0.0, |seen| seen.weight());
        match to_come > 0.0 {
            true => self.all().and(self.val.hoped(to_come * self.share)).luck(),
            false => self.all().luck(),
        }
    }

    /// Why folds don't count that gain much more than validation does.
    fn too_good(&self) -> Option<&'static str> {
        let (folds, val) = (self.seen?.gain()?, self.val.gain()?);
        let spread = folds.stderr?.hypot(val.stderr?);
        (folds.mean - val.mean > TOO_GOOD * spread).then_some(
            "held-out training rows gain more than validation rows do, so they may not be of the same kind: they can't tell \
             whether the gain is luck",
        )
    }
}

/// What is about to be done and what it costs at most.
fn announcement(winner: &Winner, count: usize, gain: Worth, metric: &Metric) -> String {
    let part = match count {
        2 => "half".to_owned(),
        3 => "a third".to_owned(),
        4 => "a quarter".to_owned(),
        5 => "a fifth".to_owned(),
        _ => format!("one part in {count}"),
    };
    let (gain, steps) = (metric.show_gain(&gain, "validation"), winner.best.step);
    let time = seconds(winner, count).filter(|s| *s >= 1.0);
    let time = time.map_or(String::new(), |s| format!(", about {s:.0} s in all"));
    format!(
        "is {gain} luck? The winner is trained again without {part} of the training rows and measured on these, {count} times \
         with {steps} steps{time} (--folds 0 leaves that out)"
    )
}

/// What all folds take, as far as that is known.
fn seconds(winner: &Winner, count: usize) -> Option<f64> {
    Some(winner.pace? * (winner.best.step * count) as f64)
}

/// Why there is no time for it.
fn too_slow(contest: &Contest<'_>, winner: &Winner, count: usize) -> Option<String> {
    let left = contest.deadline?.saturating_duration_since(Instant::now()).as_secs_f64();
    let takes = seconds(winner, count)?;
    let slow = contest.session.ranks.decide(takes > left);
    slow.then(|| {
        format!("held-out training rows might tell whether the gain is luck, but that takes {takes:.0} s, and {left:.0} s are left")
    })
}

/// Why the training rows aren't new to what was trained, also where they are left out: its source answers them better than
/// others, and hands on what it knows.
fn knows_them(session: &mut Session, chosen: &Chosen) -> Result<Option<String>> {
    if !chosen.arm.teacher && chosen.arm.source != SourceKind::Real {
        return Ok(None);
    }
    let (Some(train), Some(val)) = (session.teacher_tally(Split::Train)?, session.teacher_tally(Split::Val)?)
    else {
        return Ok(None);
    };
    let knows = knows(&train, &val, &session.metric, session.config.significance);
    let [train, val] = [train.value(), val.value()].map(|value| session.metric.show(value));
    Ok(session.ranks.decide(knows).then(|| {
        format!(
            "the source answers training rows better than validation rows ({train} against {val}), so it may have been trained \
             on them: held out, they can't tell whether the gain is luck"
        )
    }))
}

/// Trains the winner without a fold and measures it there; `None` where that was stopped, or led nowhere.
fn without(
    contest: &mut Contest<'_>,
    chosen: &Chosen,
    winner: &Winner,
    (number, folds): (usize, &[Vec<usize>]),
    observer: &mut dyn Observer,
) -> Result<Option<Tally>> {
    let (arm, seed) = (&chosen.arm, winner.seed);
    let state = contest.state.folds.clone().filter(|state| state.arm == *arm && state.seed == seed);
    let mut state = state.unwrap_or_else(|| FoldsState { arm: arm.clone(), seed, files: vec![] });
    if let Some(file) = state.files.get(number) {
        return Ok(tally_from(&contest.checkpoint.load_arm(file)?.0));
    }
    let tally = match contest.session.leave_out(&folds[number]) {
        true => train(contest, chosen, winner, (number, folds.len()), observer),
        false => Ok(None),
    };
    contest.session.take_back();
    let tally = tally?;
    if let Some(tally) = &tally {
        let file = format!("fold-{number}.onnx");
        contest.checkpoint.save_arm(&file, &tensors_of(tally), &[])?;
        state.files.push(file);
        contest.state.folds = Some(state);
        contest.checkpoint.save_run(&contest.state)?;
    }
    Ok(tally)
}

/// The same way from the start to the weights that won, by the same schedule, on the rows that are left.
fn train(
    contest: &mut Contest<'_>,
    chosen: &Chosen,
    winner: &Winner,
    (number, count): (usize, usize),
    observer: &mut dyn Observer,
) -> Result<Option<Tally>> {
    let arm = &chosen.arm;
    let (steps, rate) = winner.best.schedule;
    // The steps that a fit to the source is worth are those of a whole training.
    let mut fit = contest.begin(arm.clone(), winner.seed, (winner.steps, rate))?.fit;
    fit.steps = steps;
    let label = format!("{}, without fold {} of {count}", arm.label(), number + 1);
    observer.event(&Event::ArmStart { arm: &label, seed: winner.seed, steps: winner.best.step });
    match contest.session.advance(arm, &mut fit, winner.best.step, contest.deadline, observer) {
        Err(error) if error.is_divergence() => {
            observer.event(&Event::Warning(&format!("{label}: {error}")));
            return Ok(None);
        }
        arrived => contest.stopped |= !arrived?,
    }
    match contest.stopped {
        true => Ok(None),
        false => Ok(Some(contest.session.tally(&fit.weights(), Split::HeldOut)?)),
    }
}

const SUMS: &str = "sums";
const COUNTS: &str = "counts";

/// A tally as a checkpoint holds it.
fn tensors_of(tally: &Tally) -> Vec<(ValueId, Tensor)> {
    let column = |of: fn(&Row) -> f64| {
        let values: Vec<f64> = tally.measured().iter().map(of).collect();
        Tensor::f64(&[values.len()], &values)
    };
    vec![(ValueId::new(SUMS), column(|row| row.sum)), (ValueId::new(COUNTS), column(|row| row.count))]
}

fn tally_from(saved: &[(ValueId, Tensor)]) -> Option<Tally> {
    let find =
        |name: &str| saved.iter().find(|(id, _)| id.as_str() == name).map(|(_, tensor)| tensor.to_f64());
    let rows = find(SUMS)?.into_iter().zip(find(COUNTS)?).map(|(sum, count)| Row { sum, count });
    Some(Tally::from(rows.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of rows that only the trained model gets right, that only the target does, and of others.
    fn rows(wins: usize, losses: usize, others: usize) -> Evidence {
        let tally = |first: f64, second: f64| {
            let sums = [(first, wins), (second, losses), (1.0, others)];
            Tally::from(sums.iter().flat_map(|&(sum, n)| vec![Row { sum, count: 1.0 }; n]).collect())
        };
        Evidence::of(&tally(0.0, 1.0), &tally(1.0, 0.0), &Metric::accuracy())
    }

    fn inquiry(val: Evidence, seen: Option<Evidence>) -> Inquiry {
        Inquiry { val, seen, share: share(4), rows: 400 }
    }

    #[test]
    fn rows_of_folds_count_less_than_half() {
        assert_eq!([2, 3, 5].map(share), [1.0 / 3.0, 0.4, 4.0 / 9.0]);
        assert_eq!([100, 1999, 2000, 100_000].map(folds_for), [4, 4, 2, 2]);
    }

    #[test]
    fn folds_are_asked_while_they_could_tell() {
        // Three rows of a hundred are luck; four times as many, half counted, need not be.
        let (open, hardly) = (rows(3, 1, 96), rows(1, 0, 3000));
        assert!(open.luck() > 0.16 && inquiry(open, None).at_best() < 0.16);
        assert!(inquiry(hardly, None).at_best() > 0.16);
        // A first fold that speaks against it can be too much for the others.
        assert!(inquiry(open, Some(rows(4, 2, 94))).at_best() < 0.16);
        assert!(inquiry(open, Some(rows(0, 20, 80))).at_best() > 0.16);
    }

    #[test]
    fn all_folds_together_decide() {
        let (more, less) = (rows(20, 6, 374), rows(10, 9, 381));
        assert!(inquiry(rows(3, 1, 96), Some(more)).all().luck() < 0.05);
        assert!(inquiry(rows(3, 1, 96), Some(less)).all().luck() > 0.16);
        assert_eq!(inquiry(rows(3, 1, 96), Some(more)).all().gain().map(|gain| gain.n), Some(500));
        let done = inquiry(rows(3, 1, 96), Some(less));
        assert_eq!(done.at_best(), done.all().luck());
    }

    #[test]
    fn folds_that_gain_far_more_than_validation_do_not_count() {
        assert!(inquiry(rows(3, 1, 96), Some(rows(20, 6, 374))).too_good().is_none());
        assert!(inquiry(rows(3, 1, 96), Some(rows(80, 0, 320))).too_good().is_some());
        assert!(inquiry(rows(3, 1, 96), None).too_good().is_none());
    }

    #[test]
    fn what_was_measured_comes_back_from_a_checkpoint() {
        let tally = Tally::from(vec![Row { sum: 2.0, count: 3.0 }, Row { sum: 0.1, count: 1.0 }]);
        assert_eq!(tally_from(&tensors_of(&tally)).unwrap().measured(), tally.measured());
        assert!(tally_from(&[]).is_none());
    }
}
