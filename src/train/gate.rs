//! The gate: what was trained is shipped only if validation says that it is better, and that this is hardly luck.
//!
//! Both models see the same rows, so rows are compared one by one: what makes a row hard cancels out.

use super::metric::Tally;
use super::session::{Session, Split};
use crate::error::Result;
use crate::report::{Gains, Metric, Scores, Worth};
use crate::runtime::Value;

/// A model's scores, with those of the single rows of validation and test.
pub struct Measured {
    pub scores: Scores,
    val: Tally,
    test: Tally,
}

/// What came through the gate.
pub struct Passed {
    /// The weights to ship; `None` where the target is kept.
    pub weights: Option<Vec<Value>>,
    /// Of what is shipped.
    pub scores: Scores,
    pub gains: Gains,
    /// Why a gain wasn't enough.
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
    let [train, on_val, on_test] = [&train, &val, &test].map(|t| Some(t.value()).filter(|v| !v.is_nan()));
    let scores = Scores { train, val: on_val, test: on_test };
    Ok(Measured { scores, val, test })
}

/// Lets `best` through if it is better than the target `before` by the least gain asked for, and not by luck alone.
pub fn pass(session: &mut Session, best: Option<Vec<Value>>, before: &Measured) -> Result<Passed> {
    let kept = |note| Passed { weights: None, scores: before.scores, gains: Gains::default(), note };
    let Some(weights) = best else { return Ok(kept(None)) };
    let val = session.tally(&weights, Split::Val)?;
    let (metric, config) = (session.metric.clone(), &session.config);
    let Some(gain) = over(&before.val.rows(), &val.rows(), &metric) else { return Ok(kept(None)) };
    if !(gain.mean > 0.0 && gain.mean >= config.min_gain) {
        return Ok(kept(None));
    }
    let luck = chance(&before.val, &val, &metric);
    if luck > config.significance {
        return Ok(kept(Some(format!(
            "the best of what was tried gains {}, which luck alone does with a chance of {luck:.2}: too \
             little to be shipped (more validation rows would tell; --significance 1 ships any gain)",
            metric.show_gain(&gain, "validation")
        ))));
    }
    let after = measure_rest(session, &weights, val)?;
    let gains = Gains { val: Some(gain), test: over(&before.test.rows(), &after.test.rows(), &metric) };
    Ok(Passed { weights: Some(weights), scores: after.scores, gains, note: None })
}

/// The gains row by row; positive is better.
fn differences<'a>(
    before: &'a [f64],
    after: &'a [f64],
    metric: &'a Metric,
) -> impl Iterator<Item = f64> + 'a {
    before.iter().zip(after).map(|(b, a)| metric.gain(*b, *a))
}

fn over(before: &[f64], after: &[f64], metric: &Metric) -> Option<Worth> {
    Worth::of(&differences(before, after, metric).collect::<Vec<_>>())
}

/// The chance that a model which is no better looks as good as `after` does: of accuracies of rows by the sign test (among the rows
/// that one gets right and the other doesn't, each way is as likely), of errors, and of rows with several labels, by the
/// normal distribution of their mean difference. One-sided.
fn chance(before: &Tally, after: &Tally, metric: &Metric) -> f64 {
    let (rows, then) = (before.rows(), after.rows());
    if metric.name == "accuracy" && before.is_of_rows() {
        let count = |sign: f64| differences(&rows, &then, metric).filter(|d| d * sign > 0.0).count();
        return sign_test(count(1.0), count(-1.0));
    }
    match over(&rows, &then, metric) {
        Some(Worth { mean, stderr: Some(stderr), .. }) if stderr > 0.0 => {
            0.5 * libm::erfc(mean / stderr / std::f64::consts::SQRT_2)
        }
        // All rows gained the same, or there is a single one.
        Some(Worth { mean, n, .. }) if mean > 0.0 && n > 1 => 0.0,
        _ => 1.0,
    }
}

/// The chance of at least `wins` heads among `wins + losses` throws of a fair coin.
fn sign_test(wins: usize, losses: usize) -> f64 {
    let n = wins + losses;
    let factorial = |k: usize| libm::lgamma(k as f64 + 1.0);
    let of =
        |k: usize| (factorial(n) - factorial(k) - factorial(n - k) - n as f64 * std::f64::consts::LN_2).exp();
    (wins..=n).map(of).sum::<f64>().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metric::Row;

    #[test]
    fn gains_are_paired_row_by_row() {
        let gain = over(&[1.0, 0.0, 0.0, 1.0], &[1.0, 1.0, 0.0, 1.0], &Metric::accuracy()).unwrap();
        assert_eq!((gain.mean, gain.n), (0.25, 4));
        assert!((gain.stderr.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(over(&[], &[], &Metric::accuracy()), None);
        assert_eq!(over(&[1.0, 2.0], &[0.5, 2.0], &Metric::mse()).unwrap().mean, 0.25);
    }

    #[test]
    fn one_row_is_luck_and_five_are_not() {
        for (wins, losses, expected) in [
            (1, 0, 0.5),
            (2, 0, 0.25),
            (5, 0, 0.03125),
            (6, 2, 37.0 / 256.0),
            (0, 0, 1.0),
            (2, 2, 11.0 / 16.0),
        ] {
            let found = sign_test(wins, losses);
            assert!((found - expected).abs() < 1e-9, "{wins} to {losses}: {found}");
        }
        let many = sign_test(5_100, 4_900);
        assert!((many - 0.0233).abs() < 1e-3, "{many}");
    }

    /// The chance of what is between rows of one label each, or of several.
    fn luck(before: &[f64], after: &[f64], count: f64, metric: &Metric) -> f64 {
        let tally = |sums: &[f64]| Tally::from(sums.iter().map(|&sum| Row { sum, count }).collect());
        chance(&tally(before), &tally(after), metric)
    }

    #[test]
    fn luck_of_errors_follows_their_spread() {
        let mse = Metric::mse();
        // Half of the time any gain is luck where it is nothing beside its spread.
        assert!((luck(&[1.0, 1.0, 2.0, 2.0], &[0.0, 2.0, 1.0, 3.0], 1.0, &mse) - 0.5).abs() < 1e-9);
        let sure = luck(&[1.0, 1.1, 0.9, 1.2], &[0.1, 0.3, 0.2, 0.2], 1.0, &mse);
        assert!(sure < 1e-6, "{sure}");
        assert_eq!(luck(&[1.0], &[0.5], 1.0, &mse), 1.0);
    }

    #[test]
    fn rows_of_several_labels_differ_by_how_many_are_right() {
        let accuracy = Metric::accuracy();
        // One row lost much more than the others won: nothing that a count of rows would tell.
        let found = luck(&[10.0, 5.0, 5.0, 5.0], &[1.0, 6.0, 6.0, 6.0], 10.0, &accuracy);
        assert!(found > 0.5, "{found}");
        assert!(luck(&[1.0, 2.0, 3.0, 4.0], &[6.0, 8.0, 8.0, 9.0], 10.0, &accuracy) < 1e-6);
    }
}
