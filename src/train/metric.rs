//! What a model is judged by: accuracy for classes, mean squared error for vectors.

use crate::onnx::Tensor;
use crate::report::Metric;

/// How answers are measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Share of rows whose largest output is the label's.
    Accuracy,
    /// Mean over all elements.
    MeanSquaredError,
}

impl Measure {
    /// The name and direction that reports use.
    pub fn metric(self) -> Metric {
        match self {
            Measure::Accuracy => Metric::accuracy(),
            Measure::MeanSquaredError => Metric::mse(),
        }
    }
}

/// Whether `new` is better than `old`; NaN never is.
pub fn better(metric: &Metric, new: f64, old: f64) -> bool {
    !new.is_nan() && (old.is_nan() || metric.gain(old, new) > 0.0)
}

/// How far below the best a validation may lie and still count as equal to it: half the standard error of an
/// accuracy over `rows` rows; nothing for other metrics.
pub fn slack(metric: &Metric, best: f64, rows: usize) -> f64 {
    match metric.name.as_str() {
        "accuracy" if rows > 0 => 0.5 * (best * (1.0 - best) / rows as f64).max(0.0).sqrt(),
        _ => 0.0,
    }
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
    rows: Vec<f64>,
}

/// What answers are compared with.
pub enum Truth<'a> {
    Classes(&'a [i64]),
    Vectors(&'a [f32]),
}

impl Tally {
    pub fn new() -> Self {
        Self::default()
    }
    /// What was measured of each row.
    pub fn from(rows: Vec<f64>) -> Self {
        Self { rows }
    }
    /// Adds the first `rows` rows of `answers` (rows × width).
    pub fn add(&mut self, answers: &Tensor, truth: &Truth<'_>, rows: usize) {
        let values = answers.to_f32();
        let all_rows = answers.shape().first().copied().unwrap_or(1).max(1);
        let width = values.len() / all_rows;
        match truth {
            Truth::Classes(labels) => {
                let pairs = values.chunks_exact(width.max(1)).zip(*labels).take(rows);
                let right = |(row, &label): (&[f32], &i64)| argmax(row) == Some(label as usize);
                self.rows.extend(pairs.map(|pair| f64::from(u8::from(right(pair)))));
            }
            Truth::Vectors(wanted) => {
                let width = width.max(1);
                let pairs = values.chunks_exact(width).zip(wanted.chunks_exact(width)).take(rows);
                let squared = |(x, y): (&f32, &f32)| f64::from(x - y).powi(2);
                let error =
                    |(x, y): (&[f32], &[f32])| x.iter().zip(y).map(squared).sum::<f64>() / width as f64;
                self.rows.extend(pairs.map(error));
            }
        }
    }
    /// The mean over all rows so far; NaN without any.
    pub fn value(&self) -> f64 {
        self.rows.iter().sum::<f64>() / self.rows.len() as f64
    }
    /// Every row's own.
    pub fn rows(&self) -> &[f64] {
        &self.rows
    }
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
        tally.add(&answers, &Truth::Classes(&[1, 0, 1]), 2);
        assert_eq!(tally.value(), 0.5);
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
