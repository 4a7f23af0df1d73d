//! Rows of numbers: how much each varies, and rows that exchange some of them and move a little.

use crate::onnx::Tensor;
use rand::{Rng, RngExt};
use std::collections::HashSet;

/// How far a number is moved, in standard deviations of its column.
const MOVED: f64 = 0.2;

/// Correlation of neighbouring columns, on average, from which on they are a series: a sound, or an image laid flat. Those of a table of
/// houses have 0.0 to 0.1, of flat images of digits and things 0.6 to 0.9.
const SERIES: f64 = 0.4;
/// Fewer columns than these are a table, whatever they hold.
const SHORTEST: usize = 8;

/// How the numbers of some rows vary, column by column.
pub struct Spread {
    columns: Vec<Extremes>,
    /// Whether neighbouring columns are alike.
    pub is_series: bool,
}

struct Extremes {
    deviation: f64,
    least: f64,
    most: f64,
    /// Whether all are whole numbers.
    whole: bool,
}

impl Spread {
    pub fn of(values: &Tensor, rows: &[usize]) -> Self {
        let picked: Vec<Vec<f64>> = rows.iter().map(|&row| values.rows(row..row + 1).to_f64()).collect();
        let width = picked.first().map_or(0, Vec::len);
        let column = |c: usize| Extremes::of(&picked.iter().map(|row| row[c]).collect::<Vec<_>>());
        Self {
            columns: (0..width).map(column).collect(),
            is_series: width >= SHORTEST && alikeness(&picked, width) >= SERIES,
        }
    }

    /// A row for each two: the first, with some of the second's numbers in their places. How many is drawn evenly.
    pub fn exchange(
        &self,
        values: &Tensor,
        of: impl Iterator<Item = [usize; 2]>,
        random: &mut impl Rng,
    ) -> Tensor {
        let mut mixed = vec![];
        for pair in of {
            let [one, other] = pair.map(|row| values.rows(row..row + 1).to_f64());
            let share: f64 = random.random();
            let pick = |(a, b): (f64, f64)| if random.random::<f64>() < share { b } else { a };
            mixed.extend(one.into_iter().zip(other).map(pick));
        }
        let rows = mixed.len() / self.columns.len().max(1);
        Tensor::from_f64(values.dtype(), &[&[rows], &values.shape()[1..]].concat(), &mixed)
    }

    /// The same moved a little, evenly to either side. Numbers stay between the least and the most of their column, whole ones
    /// whole, and those of columns with one or two values, such as yes and no, where they are.
    pub fn jitter(&self, values: &Tensor, random: &mut impl Rng) -> Tensor {
        let mut moved = values.to_f64();
        for row in moved.chunks_mut(self.columns.len().max(1)) {
            for (value, column) in row.iter_mut().zip(&self.columns) {
                let by = 2.0 * random.random::<f64>() - 1.0;
                // Of evenly drawn numbers between −1 and 1 the standard deviation is 1/√3.
                *value = column.nearest(*value + by * 3f64.sqrt() * column.deviation);
            }
        }
        if !values.dtype().is_float() {
            moved.iter_mut().for_each(|value| *value = value.round());
        }
        Tensor::from_f64(values.dtype(), values.shape(), &moved)
    }
}

impl Extremes {
    /// The deviation is that of the movement.
    fn of(values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        let some = values.iter().map(|v| v.to_bits()).collect::<HashSet<_>>().len() > 2;
        Self {
            deviation: if some { MOVED * variance.sqrt() } else { 0.0 },
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            whole: values.iter().all(|v| v.fract() == 0.0),
        }
    }
    fn nearest(&self, value: f64) -> f64 {
        let value = if self.whole { value.round() } else { value };
        value.max(self.least).min(self.most)
    }
}

/// The mean correlation of neighbouring columns, of those that vary.
fn alikeness(rows: &[Vec<f64>], width: usize) -> f64 {
    let count = rows.len().max(1) as f64;
    let mean = |of: &dyn Fn(&[f64]) -> f64| rows.iter().map(|row| of(row)).sum::<f64>() / count;
    let (mut sum, mut pairs) = (0.0, 0);
    for c in 1..width {
        let means = [c - 1, c].map(|c| mean(&|row| row[c]));
        let product =
            |i: usize, j: usize| mean(&|row| (row[c - 1 + i] - means[i]) * (row[c - 1 + j] - means[j]));
        let correlation = product(0, 1) / (product(0, 0) * product(1, 1)).sqrt();
        if correlation.is_finite() {
            (sum, pairs) = (sum + correlation, pairs + 1);
        }
    }
    sum / pairs.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn numbers_stay_of_their_kind() {
        // A number, a whole one, a yes or no, a constant.
        let row = |i: usize| [0.1 * i as f64, (3 * i) as f64, (i % 2) as f64, 7.5];
        let table = Tensor::f64(&[20, 4], &(0..20).flat_map(row).collect::<Vec<_>>());
        let rows: Vec<usize> = (5..20).collect();
        let spread = Spread::of(&table, &rows);
        assert!(!spread.is_series);
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mixed = spread.exchange(&table, (0..500).map(|i| [5 + i % 15, 19 - i % 7]), &mut random);
        let moved = spread.jitter(&mixed, &mut random);
        assert_eq!((moved.shape(), moved.dtype()), (&[500, 4][..], table.dtype()));
        let moved = moved.to_f64();
        for new in moved.chunks(4) {
            assert!((0.5..=1.9001).contains(&new[0]) && (15.0..=57.0).contains(&new[1]));
            assert!(new[1].fract() == 0.0 && [0.0, 1.0].contains(&new[2]) && new[3] == 7.5);
        }
        let exchanged = mixed.to_f64().chunks(4).filter(|row| (30.0 * row[0] - row[1]).abs() > 1e-6).count();
        assert!((150..350).contains(&exchanged), "{exchanged} of 500 have numbers of both");
        let by: Vec<f64> = moved.chunks(4).zip(mixed.to_f64().chunks(4)).map(|(a, b)| a[0] - b[0]).collect();
        let deviation = (by.iter().map(|v| v * v).sum::<f64>() / 500.0).sqrt();
        assert!((0.06..0.09).contains(&deviation), "{deviation}, a fifth of 0.43 but for the ends");
    }

    #[test]
    fn neighbours_of_a_series_are_alike() {
        let wave = |i: usize| (0..30).map(move |t| ((t + 7 * i) as f64 * 0.3).sin());
        let series = Tensor::f64(&[9, 30], &(0..9).flat_map(wave).collect::<Vec<_>>());
        assert!(Spread::of(&series, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).is_series);
        let noise = |i: usize| ((i * 7907) % 1013) as f64;
        let noise = Tensor::f64(&[9, 30], &(0..270).map(noise).collect::<Vec<_>>());
        assert!(!Spread::of(&noise, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).is_series);
    }
}
