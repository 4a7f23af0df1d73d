//! How loud a source's answers are: what its logits are multiplied by before they teach.
//!
//! Distillation softens logits by a temperature, which supposes that their softmax are chances. A model that was trained to
//! something else (squared errors of one-hot vectors, say) may be right as often with outputs between 0 and 1, whose softmax is
//! nearly the same for all classes: as a teacher it says that nothing is known. So one factor is fitted to labelled rows, as in
//! temperature scaling (Guo et al., arXiv 1706.04599), and used where it is far above 1. Answers that are too loud are left
//! alone: they name classes, and made as quiet as a teacher is often wrong they say less than it knows (docs/transfer.md).
//!
//! Trees and their kin answer with chances themselves, behind no softmax that could be taken off: their logarithms are logits.

use super::batches::scaled;
use crate::data::{IGNORED, Layout};
use crate::onnx::Tensor;

/// How a source's answers become logits that teach.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Voice {
    /// They are logits but for this factor.
    Times(f64),
    /// They are chances.
    Chances,
}

/// A chance that is smaller counts as this: what a forest has never seen may be all the same.
const LEAST_CHANCE: f32 = 1e-2;

impl Voice {
    pub fn logits(self, answers: &Tensor) -> Tensor {
        match self {
            Self::Times(factor) => scaled(answers, factor),
            Self::Chances => {
                let logits: Vec<f32> = answers.to_f32().iter().map(|v| v.max(LEAST_CHANCE).ln()).collect();
                Tensor::f32(answers.shape(), &logits)
            }
        }
    }
}

/// Whether answers (rows × layout) are chances of two or more classes: none below 0, and 1 together.
pub fn are_chances(answers: &[f32], layout: Layout) -> bool {
    let width = layout.width().max(1);
    let whole = |row: &[f32], position| {
        let sum: f32 = layout.scores(row, position).sum();
        (sum - 1.0).abs() < 1e-3
    };
    layout.classes > 1
        && answers.iter().all(|v| *v >= 0.0)
        && answers.chunks_exact(width).all(|row| (0..layout.positions()).all(|p| whole(row, p)))
}

/// Factors up to this are no news: a model that was stopped early is quieter than it should be.
const USUAL: f64 = 4.0;
/// No factor is larger, or smaller than its inverse.
const MOST: f64 = 1e6;

/// What to multiply logits by, where they are far too quiet to be taken for what they are.
pub fn correction(answers: &[f32], labels: &[i64], layout: Layout) -> Option<f64> {
    fit(answers, labels, layout).filter(|factor| *factor > USUAL)
}

/// The factor for which the chances of `answers` (rows × layout) explain `labels` (rows × positions) best; `None` without labels that
/// count, or where the answers speak against them whatever the factor.
///
/// That is where cross-entropy is least, a convex function of the factor. Rows that are all right would have it grow without
/// bounds: so one label more than there are counts, which may be any class.
fn fit(answers: &[f32], labels: &[i64], layout: Layout) -> Option<f64> {
    let width = layout.width().max(1);
    let rows = answers.chunks_exact(width).zip(labels.chunks_exact(layout.positions().max(1)));
    let scores = |(row, labels): (&[f32], &[i64])| -> Vec<(Vec<f64>, usize)> {
        let counting = labels.iter().enumerate().filter(|(_, label)| **label != IGNORED);
        let of = |(position, label): (usize, &i64)| {
            let scores: Vec<f64> = layout.scores(row, position).map(f64::from).collect();
            let label = usize::try_from(*label).ok().filter(|label| *label < scores.len())?;
            scores.iter().all(|score| score.is_finite()).then_some((scores, label))
        };
        counting.filter_map(of).collect()
    };
    let all: Vec<(Vec<f64>, usize)> = rows.flat_map(scores).collect();
    if all.is_empty() {
        return None;
    }
    let doubt = 1.0 / (all.len() + 1) as f64;
    let slope =
        |factor: f64| all.iter().map(|(scores, label)| slope(scores, *label, factor, doubt)).sum::<f64>();
    let (mut low, mut high) = (-MOST.ln(), MOST.ln());
    if slope(low.exp()) >= 0.0 || slope(high.exp()) <= 0.0 {
        return None;
    }
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        match slope(middle.exp()) < 0.0 {
            true => low = middle,
            false => high = middle,
        }
    }
    Some(low.exp())
}

/// The derivative of −Σ t log softmax(f · scores) by the factor f, where t is the label but for `doubt`, which all classes share.
fn slope(scores: &[f64], label: usize, factor: f64, doubt: f64) -> f64 {
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut total, mut expected) = (0.0, 0.0);
    for score in scores {
        let chance = (factor * (score - highest)).exp();
        total += chance;
        expected += chance * score;
    }
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    expected / total - (1.0 - doubt) * scores[label] - doubt * mean
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of so many rows of four classes whose softmax are the chances of their labels, and labels drawn by these.
    fn calibrated(rows: usize) -> (Vec<f32>, Vec<i64>) {
        let number = |i: usize| ((i * 7919 + 13) % 1009) as f64 / 1009.0;
        let logits: Vec<f64> = (0..4 * rows).map(|i| 4.0 * number(i * i + i)).collect();
        let label = |(row, scores): (usize, &[f64])| {
            let total: f64 = scores.iter().map(|z| z.exp()).sum();
            let mut left = number(row * 31 + 5) * total;
            let drawn = scores.iter().position(|z| {
                left -= z.exp();
                left < 0.0
            });
            drawn.unwrap_or(3) as i64
        };
        let labels = logits.chunks(4).enumerate().map(label).collect();
        (logits.iter().map(|z| *z as f32).collect(), labels)
    }

    fn scaled(logits: &[f32], by: f32) -> Vec<f32> {
        logits.iter().map(|z| z * by).collect()
    }

    #[test]
    fn chances_are_told_from_logits() {
        let rows = Layout::rows(2);
        assert!(are_chances(&[0.25, 0.75, 1.0, 0.0], rows));
        assert!(!are_chances(&[0.25, 0.7], rows) && !are_chances(&[1.5, -0.5], rows));
        assert!(!are_chances(&[1.0, 1.0], Layout::rows(1)));
        let logits = Voice::Chances.logits(&Tensor::f32(&[1, 2], &[1.0, 0.0])).to_f32().into_owned();
        assert_eq!(logits, [0.0, 0.01f32.ln()]);
    }

    #[test]
    fn the_factor_undoes_any_scale() {
        let (logits, labels) = calibrated(1000);
        let own = fit(&logits, &labels, Layout::rows(4)).unwrap();
        assert!((own - 1.0).abs() < 0.15, "{own}");
        assert_eq!(correction(&logits, &labels, Layout::rows(4)), None);
        for by in [0.01, 0.1, 20.0] {
            let answers = scaled(&logits, by);
            let found = fit(&answers, &labels, Layout::rows(4)).unwrap();
            assert!((found * f64::from(by) / own - 1.0).abs() < 1e-3, "{found} for {by}");
            let corrected = correction(&answers, &labels, Layout::rows(4));
            assert_eq!(corrected, Some(found).filter(|_| by < 1.0), "{by}");
        }
    }

    #[test]
    fn rows_that_are_all_right_keep_a_factor_within_bounds() {
        let one_hot: Vec<f32> = (0..100).map(|i| f32::from(u8::from(i / 10 == i % 10))).collect();
        let labels: Vec<i64> = (0..10).collect();
        let quiet = correction(&one_hot, &labels, Layout::rows(10)).unwrap();
        assert!((4.0..8.0).contains(&quiet), "{quiet}");
        // Trained to the end by cross-entropy: as loud as such models are.
        assert_eq!(correction(&scaled(&one_hot, 10.0), &labels, Layout::rows(10)), None);
    }

    #[test]
    fn answers_that_say_nothing_are_left_alone() {
        let layout = Layout::rows(2);
        assert_eq!(fit(&[1.0, 0.0, 0.0, 1.0], &[1, 0], layout), None);
        assert_eq!(fit(&[0.5; 4], &[1, 0], layout), None);
        assert_eq!(fit(&[1.0, 0.0], &[IGNORED], layout), None);
        assert_eq!(fit(&[f32::NAN, 0.0], &[1], layout), None);
    }

    #[test]
    fn labels_of_positions_count_where_they_lie() {
        let (logits, labels) = calibrated(400);
        // Two rows of classes × positions, half of the positions in each.
        let layout = Layout { before: 1, classes: 4, after: 200 };
        let at = |i: usize| logits[(i / 800 * 200 + i % 200) * 4 + i % 800 / 200];
        let moved: Vec<f32> = (0..1600).map(at).collect();
        let (rows, places) = (fit(&logits, &labels, Layout::rows(4)), fit(&moved, &labels, layout));
        assert!((rows.unwrap() - places.unwrap()).abs() < 1e-9);
    }
}
