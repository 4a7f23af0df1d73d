//! The target before and after, on every part of the data, and how sure the difference is.

use super::session::{Session, Split};
use crate::error::Result;
use crate::report::{Gains, Metric, Scores, Worth};
use crate::runtime::Value;

/// A model's scores, with those of the single rows of validation and test.
pub struct Measured {
    pub scores: Scores,
    val: Vec<f64>,
    test: Vec<f64>,
}

/// Measures the target with `weights`, or as it came.
pub fn measure(session: &mut Session, weights: Option<&[Value]>) -> Result<Measured> {
    let weights = weights.map_or_else(|| session.original(), <[Value]>::to_vec);
    let mut on = |split| session.tally(&weights, split);
    let (train, val, test) = (on(Split::Train)?, on(Split::Val)?, on(Split::Test)?);
    let [train, on_val, on_test] = [&train, &val, &test].map(|t| Some(t.value()).filter(|v| !v.is_nan()));
    let scores = Scores { train, val: on_val, test: on_test };
    Ok(Measured { scores, val: val.into_rows(), test: test.into_rows() })
}

impl Measured {
    /// What was gained since `before`, each row against itself: both models see the same rows, so that what makes a row hard
    /// cancels out.
    pub fn gains(&self, before: &Measured, metric: &Metric) -> Gains {
        let over = |before: &[f64], after: &[f64]| {
            let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| metric.gain(*b, *a)).collect();
            Worth::of(&differences)
        };
        Gains { val: over(&before.val, &self.val), test: over(&before.test, &self.test) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_paired_row_by_row() {
        let measured = |val: &[f64], test: &[f64]| Measured {
            scores: Scores::default(),
            val: val.to_vec(),
            test: test.to_vec(),
        };
        let before = measured(&[1.0, 0.0, 0.0, 1.0], &[]);
        let gains = measured(&[1.0, 1.0, 0.0, 1.0], &[]).gains(&before, &Metric::accuracy());
        let val = gains.val.unwrap();
        assert_eq!((val.mean, val.n), (0.25, 4));
        assert!((val.stderr.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(gains.test, None);
        let errors = measured(&[0.5, 2.0], &[]).gains(&measured(&[1.0, 2.0], &[]), &Metric::mse());
        assert_eq!(errors.val.unwrap().mean, 0.25);
    }
}
