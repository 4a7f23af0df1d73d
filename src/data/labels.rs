//! What rows are labelled with: classes, or vectors of numbers.

use super::classes::in_order;
use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor};
use std::collections::HashMap;
use std::path::Path;

/// A label a row.
#[derive(Clone, PartialEq, Debug)]
pub enum Labels {
    /// Class indices.
    Classes(Vec<i64>),
    /// Vectors (or higher tensors) of numbers: a tensor whose first dimension counts rows.
    Vectors(Tensor),
}

impl Labels {
    /// Integers with one number a row are classes; everything else is vectors.
    pub fn from_tensor(path: &Path, name: &str, values: &Tensor) -> Result<Self> {
        let dtype = values.dtype();
        if values.rank() == 0 {
            return Err(Error::data(path, format!("'{name}' is a single number, not a label a row")));
        }
        let single = values.shape()[1..].iter().all(|&d| d == 1);
        if single && (dtype.is_int() || dtype == DType::Bool) {
            return Ok(Labels::Classes(values.to_i64().into_owned()));
        }
        if let Some(at) = values.first_non_finite() {
            let row = at / values.shape()[1..].iter().product::<usize>().max(1);
            return Err(Error::data(path, format!("label '{name}' of row {row} is NaN or infinite")));
        }
        Ok(Labels::Vectors(values.clone()))
    }

    /// Labels written as text, with the names of their classes: whole numbers are classes, other numbers values, anything else
    /// names of classes, numbered in their order.
    pub fn from_words(path: &Path, words: &[String]) -> Result<(Self, Vec<String>)> {
        if let Ok(classes) = words.iter().map(|w| w.parse()).collect::<Result<_, _>>() {
            return Ok((Labels::Classes(classes), vec![]));
        }
        if let Ok(values) = words.iter().map(|w| w.parse()).collect::<Result<Vec<f64>, _>>() {
            let values = Tensor::f64(&[values.len(), 1], &values);
            return Ok((Labels::from_tensor(path, "label", &values)?, vec![]));
        }
        if let Some(row) = words.iter().position(String::is_empty) {
            return Err(Error::data(path, format!("the label of row {row} is empty")));
        }
        let names = in_order(words.to_vec());
        let numbers: HashMap<&String, i64> = names.iter().zip(0..).collect();
        let classes = words.iter().map(|word| numbers[word]).collect();
        Ok((Labels::Classes(classes), names))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Labels::Classes(classes) => classes.len(),
            Labels::Vectors(values) => values.shape().first().copied().unwrap_or(0),
        }
    }

    /// Numbers a row: 1 for classes.
    pub fn width(&self) -> usize {
        match self {
            Labels::Classes(_) => 1,
            Labels::Vectors(values) => values.shape()[1..].iter().product(),
        }
    }

    /// One more than the highest class; 0 for vectors.
    pub fn class_count(&self) -> usize {
        match self {
            Labels::Classes(classes) => classes.iter().max().map_or(0, |&m| (m + 1).max(0) as usize),
            Labels::Vectors(_) => 0,
        }
    }

    /// Whether these are classes where nobody says so, of a model that answers with `width` numbers: their indices (0 and 1 for a
    /// single number), one-hot vectors, or whole numbers of which such a model gives several.
    pub fn are_classes(&self, width: usize) -> bool {
        match self {
            Labels::Classes(classes) => width != 1 || classes.iter().all(|class| matches!(class, 0 | 1)),
            Labels::Vectors(values) => {
                one_hot(values, width).is_some() || width > 1 && whole_numbers(values).is_some()
            }
        }
    }

    /// The labels as classes, each below `count`. Vectors of one whole number a row are taken for classes,
    /// one-hot vectors of `count` numbers a row as well.
    pub fn classes(&self, path: &Path, count: usize) -> Result<Vec<i64>> {
        let classes = match self {
            Labels::Classes(classes) => classes.clone(),
            Labels::Vectors(values) => {
                whole_numbers(values).or_else(|| one_hot(values, count)).ok_or_else(|| {
                    let width = self.width();
                    Error::data(path, format!("its labels are vectors of {width} numbers, not classes"))
                        .hint("for regression, say --task regress")
                })?
            }
        };
        match classes.iter().position(|&c| c < 0 || c as u64 >= count as u64) {
            None => Ok(classes),
            Some(row) => {
                let last = count.saturating_sub(1);
                let label = classes[row];
                let what = format!(
                    "the label of row {row} is {label}, but the model tells {count} classes apart (0 to {last})"
                );
                let error = Error::data(path, what);
                let from_one = classes.iter().all(|&c| c >= 1 && c as u64 <= count as u64);
                Err(match from_one {
                    true => error.hint("classes count from 0 on: take 1 from each label"),
                    false => error.hint(
                        "classes are numbered like the outputs that tell them apart, from 0 on; values to hit are given with --task regress",
                    ),
                })
            }
        }
    }

    /// The labels as vectors of `width` numbers, row after row.
    pub fn vectors(&self, path: &Path, width: usize) -> Result<Vec<f32>> {
        if self.width() != width {
            let what =
                format!("its labels have {} numbers a row, but the model's output has {width}", self.width());
            return Err(Error::data(path, what).hint(
                "labels are compared with the first output that has real values for each row: one number for each of its",
            ));
        }
        Ok(match self {
            Labels::Classes(classes) => classes.iter().map(|&c| c as f32).collect(),
            Labels::Vectors(values) => values.to_f32().into_owned(),
        })
    }
}

fn whole_numbers(values: &Tensor) -> Option<Vec<i64>> {
    let single = values.shape()[1..].iter().all(|&d| d == 1);
    let numbers = if single { values.to_f64() } else { return None };
    numbers.iter().map(|v| (v.fract() == 0.0 && v.abs() < 1e15).then_some(*v as i64)).collect()
}

fn one_hot(values: &Tensor, count: usize) -> Option<Vec<i64>> {
    let width: usize = values.shape()[1..].iter().product();
    if width != count || width < 2 {
        return None;
    }
    let class = |row: &[f64]| {
        let at = row.iter().position(|&v| v == 1.0)?;
        row.iter().enumerate().all(|(i, &v)| i == at || v == 0.0).then_some(at as i64)
    };
    values.to_f64().chunks(width).map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: Tensor) -> Labels {
        Labels::from_tensor(Path::new("d.npz"), "y", &values).unwrap()
    }

    #[test]
    fn integers_are_classes_and_reals_are_vectors() {
        assert_eq!(labels(Tensor::i64(&[3, 1], &[0, 2, 1])), Labels::Classes(vec![0, 2, 1]));
        assert_eq!(labels(Tensor::f32(&[2, 3], &[0.0; 6])).width(), 3);
        assert_eq!(labels(Tensor::bool(&[2], &[true, false])).class_count(), 2);
        let scores = labels(Tensor::i64(&[2], &[0, 7]));
        assert!(scores.are_classes(8) && !scores.are_classes(1));
        assert!(labels(Tensor::i64(&[2], &[0, 1])).are_classes(1));
        let written_as_reals = labels(Tensor::f32(&[2], &[0.0, 1.0]));
        assert!(written_as_reals.are_classes(2) && !written_as_reals.are_classes(1));
        let one_hot = labels(Tensor::f32(&[2, 3], &[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]));
        assert!(one_hot.are_classes(3) && !one_hot.are_classes(1));
        assert!(!labels(Tensor::f32(&[1, 3], &[0.5, 0.5, 0.0])).are_classes(3));
    }

    #[test]
    fn classes_out_of_range_are_refused_with_their_row() {
        let message =
            |v: &[i64]| labels(Tensor::i64(&[v.len()], v)).classes(Path::new("d.npz"), 3).unwrap_err();
        assert!(message(&[0, 3]).to_string().contains("the label of row 1 is 3"));
        assert!(message(&[-1]).to_string().contains("row 0 is -1"));
    }

    #[test]
    fn reals_that_mean_classes_are_read_as_such() {
        let path = Path::new("d.npz");
        assert_eq!(labels(Tensor::f32(&[2], &[1.0, 0.0])).classes(path, 2).unwrap(), [1, 0]);
        assert_eq!(labels(Tensor::f32(&[2, 2], &[0.0, 1.0, 1.0, 0.0])).classes(path, 2).unwrap(), [1, 0]);
        assert!(labels(Tensor::f32(&[1], &[0.5])).classes(path, 2).is_err());
    }

    #[test]
    fn a_label_that_is_not_a_number_is_refused() {
        let nan = Tensor::f32(&[2, 1], &[0.0, f32::NAN]);
        assert!(Labels::from_tensor(Path::new("d"), "y", &nan).unwrap_err().to_string().contains("row 1"));
    }
}
