//! What rows say of a gain: how large it is, and how often luck alone shows as much.
//!
//! Both models see the same rows, so rows are compared one by one: what makes a row hard cancels out.

use super::metric::Tally;
use crate::report::{Metric, Worth};
use std::collections::HashMap;

/// The gains of rows, positive where the second model is better, summed up.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Evidence {
    rows: usize,
    /// As how many independent rows they count.
    weight: f64,
    sum: f64,
    squares: f64,
    wins: f64,
    losses: f64,
    /// Whether a row is either right or wrong.
    counted: bool,
}

impl Evidence {
    /// Of the same rows, measured with two models.
    pub fn of(before: &Tally, after: &Tally, metric: &Metric) -> Self {
        let gains = gains(before, after, metric);
        let count = |sign: f64| gains.iter().filter(|gain| *gain * sign > 0.0).count() as f64;
        Self {
            rows: gains.len(),
            weight: gains.len() as f64,
            sum: gains.iter().sum(),
            squares: gains.iter().map(|gain| gain * gain).sum(),
            wins: count(1.0),
            losses: count(-1.0),
            counted: metric.is_share() && before.is_of_rows(),
        }
    }

    /// The same, where rows with the same number in `groups` go up and down together: they count as few independent rows as the
    /// variance of their mean gain says, by groups and by rows (the design effect; by groups as in Liang and Zeger, 1986, times
    /// n / (n − 1) for n groups). Of one group nothing is independent.
    pub fn by_groups(before: &Tally, after: &Tally, metric: &Metric, groups: Option<&[usize]>) -> Self {
        let all = Self::of(before, after, metric);
        let Some(groups) = groups else { return all };
        let mean = all.sum / all.weight;
        let mut sums: HashMap<usize, f64> = HashMap::new();
        let mut squares = 0.0;
        for (gain, group) in gains(before, after, metric).iter().zip(groups) {
            let gap = gain - mean;
            *sums.entry(*group).or_default() += gap;
            squares += gap * gap;
        }
        let count = sums.len() as f64;
        let by_groups = sums.values().map(|sum| sum * sum).sum::<f64>() * count / (count - 1.0);
        match (count > 1.0, squares > 0.0) {
            (false, _) => all.counting(1.0 / all.weight.max(1.0)),
            (true, true) => all.counting((squares / by_groups).min(1.0)),
            // Nothing is seen of how they vary: as many as there are groups.
            (true, false) => all.counting(count / all.weight),
        }
    }

    /// The same rows, each of which counts as `share` of one.
    pub fn counting(self, share: f64) -> Self {
        Self {
            weight: self.weight * share,
            sum: self.sum * share,
            squares: self.squares * share,
            wins: self.wins * share,
            losses: self.losses * share,
            ..self
        }
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            weight: self.weight + other.weight,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            wins: self.wins + other.wins,
            losses: self.losses + other.losses,
            counted: self.counted && other.counted,
        }
    }

    /// What as many rows as `weight` independent ones could say, if these had bad luck: their gain is higher by a standard error.
    pub fn hoped(self, weight: f64) -> Self {
        let more = self.gain().and_then(|gain| gain.stderr).unwrap_or(0.0) * self.weight;
        let of_wins = (0.5 * more).min(self.losses);
        Self {
            sum: self.sum + more,
            squares: self.squares + (2.0 * self.sum + more) * more / self.weight,
            wins: self.wins + more - of_wins,
            losses: self.losses - of_wins,
            ..self
        }
        .counting(weight / self.weight)
    }

    /// As how many independent rows they count.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The mean gain and its standard error over the rows; `None` without any.
    pub fn gain(&self) -> Option<Worth> {
        let mean = self.sum / self.weight;
        let variance = (self.squares / self.weight - mean * mean).max(0.0);
        let stderr = (self.weight > 1.0).then(|| (variance / (self.weight - 1.0)).sqrt());
        (self.rows > 0).then_some(Worth { mean, stderr, n: self.rows })
    }

    /// The chance that a model which is no better shows as much: of accuracies of rows by the sign test (among the rows that one
    /// gets right and the other doesn't, each way is as likely), of errors, and of rows with several labels, by the normal
    /// distribution of their mean gain. One-sided.
    pub fn luck(&self) -> f64 {
        if self.counted {
            return sign_test(self.wins, self.losses);
        }
        match self.gain() {
            Some(Worth { mean, stderr: Some(stderr), .. }) if stderr > 0.0 => above(mean / stderr),
            // All rows gained the same, or there is a single one.
            Some(Worth { mean, n, .. }) if mean > 0.0 && n > 1 => 0.0,
            _ => 1.0,
        }
    }
}

/// The gain of each row.
fn gains(before: &Tally, after: &Tally, metric: &Metric) -> Vec<f64> {
    before.rows().iter().zip(&after.rows()).map(|(b, a)| metric.gain(*b, *a)).collect()
}

/// Whether a model answers the rows of `some` better than others, beyond what luck shows with a chance of `significance`.
pub fn knows(some: &Tally, others: &Tally, metric: &Metric, significance: f64) -> bool {
    let worths =
        |tally: &Tally| -> Vec<f64> { tally.rows().iter().map(|row| metric.gain(0.0, *row)).collect() };
    luck_between(&worths(some), &worths(others)) <= significance
}

/// The chance that the mean of `high`'s rows is higher than that of `low`'s by luck alone; for rows that aren't the same.
fn luck_between(high: &[f64], low: &[f64]) -> f64 {
    let [high, low] = [high, low].map(Worth::of);
    let error = |worth: Worth| worth.stderr.map(|stderr| stderr * stderr);
    let of = |(high, low): (Worth, Worth)| {
        let spread = (error(high)? + error(low)?).sqrt();
        match (high.mean - low.mean, spread) {
            (difference, 0.0) => Some(if difference > 0.0 { 0.0 } else { 1.0 }),
            (difference, spread) => Some(above(difference / spread)),
        }
    };
    high.zip(low).and_then(of).unwrap_or(1.0)
}

/// How likely the normal distribution exceeds so many standard deviations.
pub fn above(deviations: f64) -> f64 {
    0.5 * libm::erfc(deviations / std::f64::consts::SQRT_2)
}

/// The chance of at least `wins` heads among `wins + losses` throws of a fair coin: the regularised incomplete beta function of ½,
/// which parts of throws have too.
fn sign_test(wins: f64, losses: f64) -> f64 {
    match wins > losses {
        true => beta_of_half(wins, losses + 1.0),
        false if wins > 0.0 => 1.0 - beta_of_half(losses + 1.0, wins),
        false => 1.0,
    }
}

/// I½(a, b) for a ≥ b, by its continued fraction (DLMF 8.17.22, evaluated by Lentz's method): some dozens of terms where a and b are
/// in the thousands.
fn beta_of_half(a: f64, b: f64) -> f64 {
    const X: f64 = 0.5;
    const TERMS: usize = 10_000;
    let log_beta = libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    let mut d = 1.0 / (1.0 - (a + b) * X / (a + 1.0));
    let (mut c, mut fraction) = (1.0, d);
    for m in (1..TERMS).map(|m| m as f64) {
        let even = m * (b - m) * X / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * X / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for term in [even, odd] {
            d = 1.0 / (1.0 + term * d);
            c = 1.0 + term / c;
            fraction *= d * c;
        }
        if (fraction / before - 1.0).abs() < 1e-12 {
            break;
        }
    }
    ((a + b) * X.ln() - log_beta).exp() * fraction / a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metric::Row;

    /// Of rows with `count` labels each.
    fn evidence(before: &[f64], after: &[f64], count: f64, metric: &Metric) -> Evidence {
        let tally = |sums: &[f64]| Tally::from(sums.iter().map(|&sum| Row { sum, count }).collect());
        Evidence::of(&tally(before), &tally(after), metric)
    }

    /// `wins` rows that only the second model gets right, `losses` that only the first does, and others.
    fn counts(wins: usize, losses: usize, others: usize) -> Evidence {
        let [wins, losses, others] = [(0.0, 1.0, wins), (1.0, 0.0, losses), (1.0, 1.0, others)]
            .map(|(before, after, n)| vec![(before, after); n]);
        let (before, after): (Vec<f64>, Vec<f64>) = [wins, losses, others].concat().into_iter().unzip();
        evidence(&before, &after, 1.0, &Metric::accuracy())
    }

    #[test]
    fn gains_are_paired_row_by_row() {
        let gain =
            evidence(&[1.0, 0.0, 0.0, 1.0], &[1.0, 1.0, 0.0, 1.0], 1.0, &Metric::accuracy()).gain().unwrap();
        assert_eq!((gain.mean, gain.n), (0.25, 4));
        assert!((gain.stderr.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(counts(0, 0, 0).gain(), None);
        assert_eq!(evidence(&[1.0, 2.0], &[0.5, 2.0], 1.0, &Metric::mse()).gain().unwrap().mean, 0.25);
    }

    #[test]
    fn rows_of_a_group_count_as_much_as_they_differ() {
        let metric = Metric::accuracy();
        let evidence = |gains: &[f64], groups: Option<&[usize]>| {
            let tally =
                |sums: Vec<f64>| Tally::from(sums.iter().map(|&sum| Row { sum, count: 1.0 }).collect());
            let before = tally(gains.iter().map(|gain| f64::from(*gain < 0.0)).collect());
            let after = tally(gains.iter().map(|gain| f64::from(*gain > 0.0)).collect());
            Evidence::by_groups(&before, &after, &metric, groups)
        };
        // Each row ten times is each row once, but for n / (n − 1).
        let rows: Vec<f64> = [vec![1.0; 6], vec![-1.0; 2], vec![0.0; 32]].concat();
        let copies: Vec<f64> = rows.iter().flat_map(|gain| [*gain; 10]).collect();
        let groups: Vec<usize> = (0..400).map(|row| row / 10).collect();
        let (once, ten) = (evidence(&rows, None), evidence(&copies, Some(&groups)));
        assert!((ten.weight() - 39.0).abs() < 1e-9, "{}", ten.weight());
        assert!((ten.luck() - once.luck()).abs() < 0.01 && evidence(&copies, None).luck() < 1e-4);
        assert_eq!((ten.gain().unwrap().mean, ten.gain().unwrap().n), (once.gain().unwrap().mean, 400));
        assert!(
            (ten.gain().unwrap().stderr.unwrap() / once.gain().unwrap().stderr.unwrap() - 1.0).abs() < 0.02
        );
        // Groups in which nothing goes together take nothing away, and one group says next to nothing.
        let scattered: Vec<usize> = (0..400).map(|row| row % 40).collect();
        assert_eq!(evidence(&copies, Some(&scattered)).weight(), 400.0);
        assert!(evidence(&copies, Some(&[0; 400])).luck() > 0.3);
        assert_eq!(evidence(&[1.0; 8], Some(&[0, 0, 1, 1, 2, 2, 3, 3])).weight(), 4.0);
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
            let found = counts(wins, losses, 3).luck();
            assert!((found - expected).abs() < 1e-9, "{wins} to {losses}: {found}");
        }
        let many = sign_test(5_100.0, 4_900.0);
        assert!((many - 0.0233).abs() < 1e-3, "{many}");
        // Between whole throws it goes from one to the next.
        let chances: Vec<f64> = (0..=8).map(|i| sign_test(f64::from(i) / 2.0, 1.5)).collect();
        assert!(chances.windows(2).all(|pair| pair[0] > pair[1]), "{chances:?}");
        assert!((sign_test(3.0, 0.5) + sign_test(1.5, 2.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn luck_of_errors_follows_their_spread() {
        let luck = |before: &[f64], after: &[f64]| evidence(before, after, 1.0, &Metric::mse()).luck();
        // Half of the time any gain is luck where it is nothing beside its spread.
        assert!((luck(&[1.0, 1.0, 2.0, 2.0], &[0.0, 2.0, 1.0, 3.0]) - 0.5).abs() < 1e-9);
        let sure = luck(&[1.0, 1.1, 0.9, 1.2], &[0.1, 0.3, 0.2, 0.2]);
        assert!(sure < 1e-6, "{sure}");
        assert_eq!(luck(&[1.0], &[0.5]), 1.0);
        assert_eq!(luck(&[1.0, 2.0], &[0.5, 1.5]), 0.0);
    }

    #[test]
    fn rows_of_several_labels_differ_by_how_many_are_right() {
        let luck = |before: &[f64], after: &[f64]| evidence(before, after, 10.0, &Metric::accuracy()).luck();
        // One row lost much more than the others won: nothing that a count of rows would tell.
        let found = luck(&[10.0, 5.0, 5.0, 5.0], &[1.0, 6.0, 6.0, 6.0]);
        assert!(found > 0.5, "{found}");
        assert!(luck(&[1.0, 2.0, 3.0, 4.0], &[6.0, 8.0, 8.0, 9.0]) < 1e-6);
    }

    #[test]
    fn more_rows_say_the_same_more_surely_and_shares_of_rows_less() {
        let (some, more) = (counts(6, 4, 90), counts(60, 40, 900));
        let both = some.and(more.counting(0.5));
        assert_eq!(both.gain().map(|gain| gain.n), Some(1100));
        assert!((both.gain().unwrap().mean - 0.02).abs() < 1e-12);
        assert!(more.luck() < both.luck() && both.luck() < some.luck());
    }

    #[test]
    fn rows_to_come_may_gain_a_standard_error_more() {
        let errors = evidence(&[1.0, 2.0, 3.0, 4.0], &[0.9, 1.7, 3.0, 4.0], 1.0, &Metric::mse());
        for some in [counts(6, 4, 90), counts(2, 0, 30), errors] {
            let (now, hoped) = (some.gain().unwrap(), some.hoped(900.0).gain().unwrap());
            assert!((hoped.mean - now.mean - now.stderr.unwrap()).abs() < 1e-12);
            // As many rows would be as sure of the higher gain as these are of theirs.
            let spread = |gain: Worth, weight: f64| gain.stderr.unwrap() * (weight - 1.0).sqrt();
            let before = spread(now, some.weight());
            assert!((spread(hoped, 900.0) - before).abs() < 1e-9, "{some:?}");
            assert!(some.hoped(900.0).luck() < some.luck());
        }
        assert_eq!(counts(1, 1, 8).hoped(10.0).wins.round(), 2.0);
    }

    #[test]
    fn means_of_other_rows_differ_by_both_spreads() {
        let rows = |right: usize, all: usize| -> Vec<f64> {
            (0..all).map(|i| f64::from(u8::from(i < right))).collect()
        };
        assert!(luck_between(&rows(100, 100), &rows(45, 50)) < 0.02);
        assert!((luck_between(&rows(90, 100), &rows(45, 50)) - 0.5).abs() < 1e-9);
        assert_eq!(luck_between(&rows(5, 5), &rows(7, 7)), 1.0);
        assert_eq!(luck_between(&rows(1, 1), &rows(0, 9)), 1.0);
    }
}
