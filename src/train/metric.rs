//! What a model is judged by: accuracy for classes, mean squared error for vectors.

use crate::data::{IGNORED, Layout};
use crate::onnx::Tensor;
use crate::report::Metric;

/// How answers are measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Share of labels that have the largest of their outputs.
    Accuracy,
    /// The mean of that over classes: every label counts by how rare its class is.
    BalancedAccuracy,
    /// Mean over all elements.
    MeanSquaredError,
}

impl Measure {
    /// The name and direction that reports use.
    pub fn metric(self) -> Metric {
        match self {
            Measure::Accuracy => Metric::accuracy(),
            Measure::BalancedAccuracy => Metric::balanced_accuracy(),
            Measure::MeanSquaredError => Metric::mse(),
        }
    }
}

/// Whether `new` is better than `old`; NaN never is.
pub fn better(metric: &Metric, new: f64, old: f64) -> bool {
    !new.is_nan() && (old.is_nan() || metric.gain(old, new) > 0.0)
}

/// How far below the best a validation may lie and still count as equal to it: half the standard error of an
/// accuracy over `rows` independent rows; nothing for other metrics.
pub fn slack(metric: &Metric, best: f64, rows: usize) -> f64 {
    match metric.is_share() && rows > 0 {
        true => 0.5 * (best * (1.0 - best) / rows as f64).max(0.0).sqrt(),
        false => 0.0,
    }
}

/// Of an accuracy over `rows` independent rows; none is known of other metrics.
pub fn two_standard_errors(metric: &Metric, value: f64, rows: usize) -> f64 {
    4.0 * slack(metric, value, rows)
}

/// The mean squared error of vectors' mean as an answer to each of them (rows × `width`): what there is to explain.
pub fn spread(vectors: &[f32], width: usize) -> f64 {
    let count = (vectors.len() / width.max(1)).max(1) as f64;
    let moment = |column: usize, power: i32| {
        let cells = vectors.iter().skip(column).step_by(width.max(1));
        cells.map(|&v| f64::from(v).powi(power)).sum::<f64>() / count
    };
    let variance = |column: usize| moment(column, 2) - moment(column, 1).powi(2);
    (0..width).map(variance).sum::<f64>() / width.max(1) as f64
}

/// Collects a measure row by row, batch by batch.
#[derive(Default)]
pub struct Tally {
    rows: Vec<Row>,
}

/// What was measured of a row.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Row {
    /// The sum over its labels that count.
    pub sum: f64,
    /// How many these are, or what they count together; 1 for a vector.
    pub count: f64,
}

/// What answers are compared with.
pub enum Truth<'a> {
    /// A class for each position of each row, or [`IGNORED`], and what a label of each class counts, where that isn't 1.
    Classes(&'a [i64], Layout, &'a [f64]),
    Vectors(&'a [f32]),
}

impl Tally {
    pub fn new() -> Self {
        Self::default()
    }
    /// What was measured of each row.
    pub fn from(rows: Vec<Row>) -> Self {
        Self { rows }
    }
    /// Adds the first `rows` rows of `answers` (rows × width).
    pub fn add(&mut self, answers: &Tensor, truth: &Truth<'_>, rows: usize) {
        let values = answers.to_f32();
        let all_rows = answers.shape().first().copied().unwrap_or(1).max(1);
        let width = (values.len() / all_rows).max(1);
        let answers = values.chunks_exact(width);
        match truth {
            Truth::Classes(labels, layout, weights) => {
                let pairs = answers.zip(labels.chunks_exact(layout.positions().max(1))).take(rows);
                self.rows.extend(pairs.map(|(row, labels)| right(row, labels, *layout, weights)));
            }
            Truth::Vectors(wanted) => {
                let pairs = answers.zip(wanted.chunks_exact(width)).take(rows);
                let squared = |(x, y): (&f32, &f32)| f64::from(x - y).powi(2);
                let error =
                    |(x, y): (&[f32], &[f32])| x.iter().zip(y).map(squared).sum::<f64>() / width as f64;
                self.rows.extend(pairs.map(|pair| Row { sum: error(pair), count: 1.0 }));
            }
        }
    }
    /// The mean over all that counts so far; NaN without any.
    pub fn value(&self) -> f64 {
        self.sum(|row| row.sum) / self.sum(|row| row.count)
    }
    fn sum(&self, of: impl Fn(&Row) -> f64) -> f64 {
        self.rows.iter().map(of).sum()
    }
    /// Every row's own.
    pub fn measured(&self) -> &[Row] {
        &self.rows
    }
    /// Every row's share in the value: their mean is that. A row's own measure, where each has one label.
    pub fn rows(&self) -> Vec<f64> {
        let mean = self.sum(|row| row.count) / self.rows.len() as f64;
        self.rows.iter().map(|row| row.sum / mean).collect()
    }
    /// Whether no row has more than one label that counts, nor one that counts more.
    pub fn is_of_rows(&self) -> bool {
        self.rows.iter().all(|row| row.count <= 1.0)
    }
    /// How many labels of independent rows would tell an accuracy as exactly as these do: positions of one row are right or wrong
    /// together.
    pub fn independent(&self) -> usize {
        let (n, value) = (self.rows.len(), self.value());
        if self.is_of_rows() {
            return self.sum(|row| row.count) as usize;
        }
        let mean = self.sum(|row| row.count) / n as f64;
        let off = |row: &Row| ((row.sum - value * row.count) / mean).powi(2);
        let squared_error = self.sum(off) / (n * n.saturating_sub(1)) as f64;
        let count = value * (1.0 - value) / squared_error;
        // Rows that count more than others are as few.
        let few = self.sum(|row| row.count).powi(2) / self.sum(|row| row.count * row.count);
        let (least, most) = (few.min(n as f64), self.sum(|row| row.count).max(n as f64));
        // All right or all wrong, or a single row: nothing is seen of how they vary.
        if count.is_finite() { count.clamp(least, most) as usize } else { least as usize }
    }
}

/// At how many positions of a row the largest score is the label's, of those that count.
fn right(row: &[f32], labels: &[i64], layout: Layout, weights: &[f64]) -> Row {
    let mut of_row = Row::default();
    let mut scores = Vec::with_capacity(layout.classes);
    for (position, &label) in labels.iter().enumerate().filter(|(_, label)| **label != IGNORED) {
        scores.clear();
        scores.extend(layout.scores(row, position));
        let weight = weights.get(label as usize).copied().unwrap_or(1.0);
        of_row.sum += weight * f64::from(u8::from(argmax(&scores) == Some(label as usize)));
        of_row.count += weight;
    }
    of_row
}

/// The index of the largest number; `None` where there is a NaN, which no answer should count as right.
pub fn argmax(row: &[f32]) -> Option<usize> {
    if row.iter().any(|v| v.is_nan()) {
        return None;
    }
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracies_of_few_rows_have_some_slack() {
        assert!((slack(&Metric::accuracy(), 0.9, 100) - 0.015).abs() < 1e-12);
        assert_eq!((slack(&Metric::accuracy(), 1.0, 100), slack(&Metric::mse(), 0.5, 100)), (0.0, 0.0));
    }

    #[test]
    fn accuracy_counts_only_real_rows_and_no_nan() {
        let mut tally = Tally::new();
        let answers = Tensor::f32(&[3, 2], &[0.1, 0.9, f32::NAN, 0.0, 9.0, 0.0]);
        tally.add(&answers, &Truth::Classes(&[1, 0, 1], Layout::rows(2), &[]), 2);
        assert_eq!((tally.value(), tally.is_of_rows(), tally.independent()), (0.5, true, 2));
        assert_eq!(tally.rows(), [1.0, 0.0]);
    }

    #[test]
    fn positions_count_alike_whatever_their_row() {
        let mut tally = Tally::new();
        let answers = Tensor::f32(&[2, 2, 3], &[1.0, 1.0, 0.0, 0.0, 2.0, 9.0, 5.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let layout = Layout { before: 1, classes: 2, after: 3 };
        tally.add(&answers, &Truth::Classes(&[0, 1, 0, IGNORED, IGNORED, 0], layout, &[]), 2);
        assert_eq!(tally.measured(), [Row { sum: 2.0, count: 3.0 }, Row { sum: 0.0, count: 1.0 }]);
        assert_eq!((tally.value(), tally.rows()), (0.5, vec![1.0, 0.0]));
        assert!(!tally.is_of_rows());
    }

    #[test]
    fn rare_classes_count_as_much_as_frequent_ones() {
        let mut tally = Tally::new();
        let answers = Tensor::f32(&[4, 2], &[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        tally.add(&answers, &Truth::Classes(&[0, 0, 0, 1], Layout::rows(2), &[2.0 / 3.0, 2.0]), 4);
        // Two of three, and none of one.
        assert!((tally.value() - 1.0 / 3.0).abs() < 1e-12 && !tally.is_of_rows());
        assert!((1..4).contains(&tally.independent()), "{}", tally.independent());
    }

    #[test]
    fn positions_of_a_row_tell_less_than_as_many_rows() {
        let of = |sums: &[f64]| Tally::from(sums.iter().map(|&sum| Row { sum, count: 10.0 }).collect());
        assert_eq!(of(&[10.0, 0.0, 10.0, 0.0]).independent(), 4);
        assert_eq!(of(&[5.0, 5.0, 6.0, 4.0]).independent(), 40);
        assert_eq!(of(&[10.0, 10.0]).independent(), 2);
        let some = of(&[7.0, 3.0, 9.0, 5.0, 2.0, 4.0]).independent();
        assert!(some > 6 && some < 60, "{some}");
    }

    #[test]
    fn what_is_the_same_in_every_row_needs_no_explanation() {
        assert!((spread(&[0.0, 5.0, 2.0, 5.0], 2) - 0.5).abs() < 1e-12);
        assert_eq!(spread(&[], 3), 0.0);
    }

    #[test]
    fn nan_is_never_better() {
        assert!(!better(&Metric::accuracy(), f64::NAN, 0.1) && !better(&Metric::mse(), f64::NAN, 9.0));
        assert!(better(&Metric::mse(), 1.0, f64::NAN));
    }
}
