//! What rows are labelled with: a class, classes of positions, or vectors of numbers.

use super::classes::in_order;
use super::layout::{Answer, Layout, Placement};
use super::{Classes, DataOptions, show};
use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor};
use std::collections::HashMap;
use std::path::Path;

/// A label a row, or several.
#[derive(Clone, PartialEq, Debug)]
pub enum Labels {
    /// Class indices, one a row.
    Classes(Vec<i64>),
    /// Vectors (or higher tensors) of numbers, class indices of positions among them: a tensor whose first dimension counts
    /// rows.
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

    /// Where nobody says what these are: how they are classes of such an answer, by its shape; `None` where they are numbers
    /// to hit. Classes are indices (0 and 1 where there is one number for each label), one-hot vectors, of positions too, or whole
    /// numbers of which such a model gives several.
    pub fn placement(&self, answer: &Answer, options: &DataOptions) -> Option<Placement> {
        self.as_classes(answer, options, false)
    }

    /// The same where they are said to be classes.
    ///
    /// # Errors
    /// Shapes that don't correspond.
    pub fn class_placement(&self, path: &Path, answer: &Answer, options: &DataOptions) -> Result<Placement> {
        self.as_classes(answer, options, true).ok_or_else(|| self.misfit(path, answer, options))
    }

    fn as_classes(&self, answer: &Answer, options: &DataOptions, asked: bool) -> Option<Placement> {
        let width = answer.width();
        let ignored = options.ignored();
        let two = |values: &Tensor| all_whole(values, |class| matches!(class, 0 | 1) || class == ignored);
        let place = |layout| Some(Placement { layout, axis: None, other: None });
        let values = match self {
            Labels::Vectors(values) => values,
            // Chances of each position can't be compared with a label a row.
            Labels::Classes(_) if answer.softmax.is_some_and(|layout| layout.positions() > 1) => return None,
            Labels::Classes(classes) => {
                let few = |class: &i64| matches!(class, 0 | 1) || *class == ignored;
                return place(Layout::rows(width)).filter(|_| asked || width != 1 || classes.iter().all(few));
            }
        };
        if one_hot(values, Layout::rows(width)).is_some() || self.width() == 1 && (asked || width > 1) {
            let whole = self.width() > 1 || all_whole(values, |_| true);
            return place(Layout::rows(width)).filter(|_| whole);
        }
        let shape = &values.shape()[1..];
        let fits = |&layout: &Layout| one_hot(values, layout).is_some();
        if let Some(place) = answer.same_layout(shape, options.class_axis, fits) {
            return Some(place);
        }
        let found = answer.layout_for(shape, options.class_axis);
        let indices = values.dtype().is_int() || values.dtype() == DType::Bool;
        match found {
            Some(place) => Some(place).filter(|_| all_whole(values, |_| true)),
            None if self.width() == width && width > 1 && answer.softmax.is_none() && (asked || indices) => {
                place(Layout { before: 1, classes: 1, after: width }).filter(|_| two(values))
            }
            None => None,
        }
    }

    fn misfit(&self, path: &Path, answer: &Answer, options: &DataOptions) -> Error {
        let (answers, ours) = (show(&answer.shape), self.width());
        let shape = match self {
            Labels::Vectors(values) if ours > 1 => show(&values.shape()[1..]),
            Labels::Vectors(_) => {
                let what = "its labels are numbers, not all of them whole, and no classes";
                return Error::data(path, what).hint("for regression, say --task regress");
            }
            Labels::Classes(_) => {
                let what = format!(
                    "it has one label a row, but the model tells classes apart at each position of its {answers}"
                );
                return Error::data(path, what).hint("--of chooses another output of the model");
            }
        };
        let along = options.class_axis.map(|axis| format!(" along axis {axis}")).unwrap_or_default();
        let what = format!(
            "its labels are {shape} a row, which are no classes{along} of the model's {answers} a row"
        );
        Error::data(path, what).hint(
            "labels of each position have the answer's shape without the axis of its classes: N×T for N×T×C, N×H×W for \
             N×C×H×W; for regression, say --task regress",
        )
    }

    /// The labels as classes of answers of this layout.
    ///
    /// # Errors
    /// A label that is none of them nor [left out](DataOptions::ignored), with its place; nothing but labels that are left out.
    pub fn classes(&self, path: &Path, layout: Layout, options: &DataOptions) -> Result<Classes> {
        let values = match self {
            Labels::Classes(classes) => Tensor::i64(&[classes.len()], classes),
            Labels::Vectors(values) => one_hot(values, layout).unwrap_or_else(|| values.clone()),
        };
        let rows = self.rows();
        let values = match values.len() == rows * layout.positions() {
            true => values.reshaped(&[rows, layout.positions()]),
            false => return Err(self.misfit(path, &Answer::of_shape(&[layout.width()]), options)),
        };
        Classes::checked(path, values, layout, options.ignored())
    }

    /// # Errors
    /// Labels that aren't vectors of `width` numbers.
    pub fn check_width(&self, path: &Path, width: usize) -> Result<()> {
        if self.width() != width {
            let what =
                format!("its labels have {} numbers a row, but the model's output has {width}", self.width());
            return Err(Error::data(path, what).hint(
                "labels are compared with the first output that has real values for each row, or the one that --of names: one \
                 number for each of its, or a class for each of its positions",
            ));
        }
        Ok(())
    }

    /// The labels as vectors of `width` numbers, row after row.
    ///
    /// # Errors
    /// As [`Self::check_width`].
    pub fn vectors(&self, path: &Path, width: usize) -> Result<Vec<f32>> {
        self.check_width(path, width)?;
        Ok(match self {
            Labels::Classes(classes) => classes.iter().map(|&c| c as f32).collect(),
            Labels::Vectors(values) => values.to_f32().into_owned(),
        })
    }
}

/// Whether all elements are whole numbers that pass.
fn all_whole(values: &Tensor, passes: impl Fn(i64) -> bool) -> bool {
    let whole = |v: &f64| v.fract() == 0.0 && v.abs() < 1e15 && passes(*v as i64);
    chunks(values).all(|chunk| chunk.to_f64().iter().all(whole))
}

/// All elements, some at a time: labels of positions may be many, and are often stored in single bytes.
pub(super) fn chunks(values: &Tensor) -> impl Iterator<Item = Tensor> + '_ {
    const ELEMENTS: usize = 1 << 16;
    let flat = values.reshaped(&[values.len()]);
    (0..flat.len()).step_by(ELEMENTS).map(move |at| flat.rows(at..flat.len().min(at + ELEMENTS)))
}

/// The class of each position, rows × positions, where each has a one for a single class and zeros for the others.
fn one_hot(values: &Tensor, layout: Layout) -> Option<Tensor> {
    let (rows, width) = (values.shape()[0], values.shape()[1..].iter().product::<usize>());
    if width != layout.width() || layout.classes < 2 {
        return None;
    }
    let mut classes = vec![];
    for row in 0..rows {
        // Row by row: most labels of this width are seen not to be one-hot in the first.
        let row = values.rows(row..row + 1);
        let row = row.to_f64();
        for position in 0..layout.positions() {
            let mut marks = layout.scores(&row, position).enumerate().filter(|&(_, v)| v != 0.0);
            match (marks.next(), marks.next()) {
                (Some((class, 1.0)), None) => classes.push(class as i32),
                _ => return None,
            }
        }
    }
    Some(Tensor::i32(&[rows, layout.positions()], &classes))
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
        assert_eq!(labels(Tensor::bool(&[2], &[true, false])), Labels::Classes(vec![1, 0]));
        let are_classes = |labels: &Labels, answer: &[usize]| {
            labels.placement(&Answer::of_shape(answer), &DataOptions::default()).is_some()
        };
        let scores = labels(Tensor::i64(&[2], &[0, 7]));
        assert!(are_classes(&scores, &[8]) && !are_classes(&scores, &[1]));
        assert!(are_classes(&labels(Tensor::i64(&[2], &[0, 1])), &[1]));
        let written_as_reals = labels(Tensor::f32(&[2], &[0.0, 1.0]));
        assert!(are_classes(&written_as_reals, &[2]) && !are_classes(&written_as_reals, &[1]));
        let one_hot = labels(Tensor::f32(&[2, 3], &[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]));
        assert!(are_classes(&one_hot, &[3]) && !are_classes(&one_hot, &[1]));
        assert!(!are_classes(&labels(Tensor::f32(&[1, 3], &[0.5, 0.5, 0.0])), &[3]));
    }

    #[test]
    fn positions_have_classes_where_shapes_say_so() {
        let place = |labels: &Labels, answer: &[usize]| {
            labels.placement(&Answer::of_shape(answer), &DataOptions::default()).map(|place| place.layout)
        };
        let tags = labels(Tensor::i64(&[2, 3], &[0, 4, -100, 1, 2, 3]));
        assert_eq!(place(&tags, &[3, 5]), Some(Layout { before: 3, classes: 5, after: 1 }));
        assert_eq!(place(&tags, &[5, 3]), Some(Layout { before: 1, classes: 5, after: 3 }));
        assert_eq!(place(&tags, &[3]), None);
        let mask = labels(Tensor::i64(&[1, 2, 2], &[0, 1, -100, 1]));
        assert_eq!(place(&mask, &[1, 2, 2]), Some(Layout { before: 1, classes: 1, after: 4 }));
        assert_eq!(place(&labels(Tensor::f32(&[1, 2, 2], &[0.0, 1.0, 1.0, 1.0])), &[1, 2, 2]), None);
        let marks = Tensor::f32(&[1, 2, 3], &[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        let layout = Layout { before: 2, classes: 3, after: 1 };
        assert_eq!(place(&labels(marks.clone()), &[2, 3]), Some(layout));
        assert_eq!(one_hot(&marks, layout).map(|t| t.to_i64().to_vec()), Some(vec![1, 0]));
        let two = Tensor::f32(&[1, 2, 3], &[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(place(&labels(two), &[2, 3]), None);
        let softmax = Some(Layout { before: 3, classes: 5, after: 1 });
        let of_rows = labels(Tensor::i64(&[2], &[0, 4]));
        let answer = Answer { shape: vec![3, 5], softmax };
        assert_eq!(of_rows.placement(&answer, &DataOptions::default()), None);
        let why = of_rows.class_placement(Path::new("d.npz"), &answer, &DataOptions::default()).unwrap_err();
        assert!(why.to_string().contains("one label a row"), "{why}");
        let why =
            tags.class_placement(Path::new("d.npz"), &Answer::of_shape(&[4, 5]), &DataOptions::default());
        assert!(why.unwrap_err().to_string().contains("its labels are 3 a row"));
    }

    /// The labels as classes of whole rows.
    fn classes(labels: &Labels, count: usize) -> Result<Vec<i64>> {
        let path = Path::new("d.npz");
        let place = labels.class_placement(path, &Answer::of_shape(&[count]), &DataOptions::default())?;
        let classes = labels.classes(path, place.layout, &DataOptions::default())?;
        Ok(classes.pick(&(0..labels.rows()).collect::<Vec<_>>(), labels.rows()))
    }

    #[test]
    fn classes_out_of_range_are_refused_with_their_row() {
        let message = |v: &[i64]| classes(&labels(Tensor::i64(&[v.len()], v)), 3).unwrap_err().to_string();
        assert!(message(&[0, 3]).contains("the label of row 1 is 3"));
        assert!(message(&[-1]).contains("row 0 is -1"));
    }

    #[test]
    fn reals_that_mean_classes_are_read_as_such() {
        assert_eq!(classes(&labels(Tensor::f32(&[2], &[1.0, 0.0])), 2).unwrap(), [1, 0]);
        assert_eq!(classes(&labels(Tensor::f32(&[2, 2], &[0.0, 1.0, 1.0, 0.0])), 2).unwrap(), [1, 0]);
        assert!(classes(&labels(Tensor::f32(&[1], &[0.5])), 2).is_err());
    }

    #[test]
    fn a_label_that_is_not_a_number_is_refused() {
        let nan = Tensor::f32(&[2, 1], &[0.0, f32::NAN]);
        assert!(Labels::from_tensor(Path::new("d"), "y", &nan).unwrap_err().to_string().contains("row 1"));
    }
}
