//! Where classes lie in a model's answers: a label for each row, or one for each position of a row, as taggers and segmentation
//! networks have them. Look at [`Layout`]; [`Answer::layout_for`] finds it by shapes.

/// A row of answers as three axes, `before` × `classes` × `after`. There is a label for each of the `before` × `after` positions,
/// in that order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    pub before: usize,
    pub classes: usize,
    pub after: usize,
}

impl Layout {
    /// A label a row.
    pub fn rows(classes: usize) -> Self {
        Self { before: 1, classes, after: 1 }
    }

    /// Classes along an axis of a row's shape.
    pub fn along(shape: &[usize], axis: usize) -> Self {
        let product = |dims: &[usize]| dims.iter().product();
        Self { before: product(&shape[..axis]), classes: shape[axis], after: product(&shape[axis + 1..]) }
    }

    /// The same with both of two classes where there is one number for each label, the chance or the logit of the second.
    pub fn told_apart(self) -> Self {
        Self { classes: self.classes.max(2), ..self }
    }

    /// Labels a row.
    pub fn positions(self) -> usize {
        self.before * self.after
    }

    /// Numbers a row.
    pub fn width(self) -> usize {
        self.positions() * self.classes
    }

    /// The shape in which axis 1 of so many rows' answers are the classes.
    pub fn shape(self, rows: usize) -> Vec<usize> {
        let outer = [rows * self.before, self.classes];
        if self.after == 1 { outer.to_vec() } else { [&outer[..], &[self.after]].concat() }
    }

    /// The same for a number a position: labels, or whether they count.
    pub fn label_shape(self, rows: usize) -> Vec<usize> {
        let mut shape = self.shape(rows);
        shape.remove(1);
        shape
    }

    /// What a row's answer says about one position, class by class.
    pub fn scores<T: Copy>(self, row: &[T], position: usize) -> impl Iterator<Item = T> + '_ {
        let (outer, inner) = (position / self.after, position % self.after);
        row[outer * self.classes * self.after + inner..]
            .iter()
            .step_by(self.after)
            .take(self.classes)
            .copied()
    }
}

/// What is known of a model's answer to a row before labels are looked at.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answer {
    /// Without the batch's dimension.
    pub shape: Vec<usize>,
    /// What the softmax that the model ends in runs over, where it does.
    pub softmax: Option<Layout>,
}

/// How labels are classes of an answer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Placement {
    pub layout: Layout,
    /// Axis of the classes, counted with the batch's dimension, where positions have labels of their own.
    pub axis: Option<usize>,
    /// Another that would do as well.
    pub other: Option<usize>,
}

impl Placement {
    /// Which axis of an output was taken for that of the classes, where positions have labels of their own.
    pub fn told(&self, output: &str) -> Option<String> {
        let (axis, count) = (self.axis?, self.layout.classes);
        let other = self.other.map(|other| {
            format!(": axis {other} would fit the labels as well (--class-axis {other}, if that is meant)")
        });
        let other = other.unwrap_or_default();
        Some(format!("the {count} classes lie on axis {axis} of output '{output}'{other}"))
    }
}

impl Answer {
    pub fn of_shape(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), softmax: None }
    }

    /// Numbers a row.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where classes lie if each row has labels of shape `labels`: along the axis without which the answer's shape is theirs,
    /// dimensions of 1 aside. Of several it is `chosen` (counted with the batch's dimension, from the end if negative), the
    /// softmax's, the last of two, or the first of more, as PyTorch has it.
    pub fn layout_for(&self, labels: &[usize], chosen: Option<i64>) -> Option<Placement> {
        let long = |dims: &[usize]| -> Vec<usize> { dims.iter().copied().filter(|&d| d != 1).collect() };
        let labels = long(labels);
        let fits = |&axis: &usize| {
            let rest = [&self.shape[..axis], &self.shape[axis + 1..]].concat();
            self.shape[axis] > 1 && long(&rest) == labels
        };
        let axes = self.in_order((0..self.shape.len()).filter(fits), chosen);
        let axis = *axes.first()?;
        let sure = chosen.is_some() || self.is_softmax(axis);
        let other = axes.get(1).filter(|_| !sure).map(|other| other + 1);
        Some(Placement { layout: Layout::along(&self.shape, axis), axis: Some(axis + 1), other })
    }

    /// Whether the softmax runs along an axis.
    fn is_softmax(&self, axis: usize) -> bool {
        self.softmax == Some(Layout::along(&self.shape, axis))
    }

    /// Axes that classes may lie on, the likeliest first; only the `chosen` one, where there is such.
    fn in_order(&self, axes: impl Iterator<Item = usize>, chosen: Option<i64>) -> Vec<usize> {
        let mut axes: Vec<usize> = axes.collect();
        if self.shape.len() <= 2 {
            axes.reverse();
        }
        axes.sort_by_key(|&axis| !self.is_softmax(axis));
        axes.retain(|&axis| chosen.is_none_or(|chosen| Some(axis) == self.axis(chosen)));
        axes
    }

    /// Where classes lie if each row has labels of the answer's own shape that are one-hot along an axis, of several that
    /// [`Self::layout_for`] would look at first. `None` where a row has no positions, or no axis is.
    pub fn same_layout(
        &self,
        labels: &[usize],
        chosen: Option<i64>,
        one_hot: impl Fn(&Layout) -> bool,
    ) -> Option<Placement> {
        let long = (0..self.shape.len()).filter(|&axis| self.shape[axis] > 1);
        if labels != self.shape || long.clone().count() < 2 {
            return None;
        }
        let place = |axis| (axis, Layout::along(&self.shape, axis));
        let (axis, layout) =
            self.in_order(long, chosen).into_iter().map(place).find(|(_, layout)| one_hot(layout))?;
        Some(Placement { layout, axis: Some(axis + 1), other: None })
    }

    /// Where classes lie by the answer alone: for a label a row where a single axis is longer than 1, else as
    /// [`Answer::layout_for`] chooses. `None` for an axis that there isn't.
    pub fn usual_layout(&self, chosen: Option<i64>) -> Option<Placement> {
        let several = self.shape.iter().filter(|&&d| d > 1).count() > 1;
        let softmax = |axis: &usize| self.softmax == Some(Layout::along(&self.shape, *axis));
        let axis = match chosen {
            Some(chosen) => Some(self.axis(chosen)?),
            None if !several => None,
            None => (0..self.shape.len()).find(softmax).or(Some(if self.shape.len() > 2 { 0 } else { 1 })),
        };
        let layout = axis.map_or(Layout::rows(self.width()), |axis| Layout::along(&self.shape, axis));
        Some(Placement { layout, axis: axis.map(|axis| axis + 1), other: None })
    }

    /// An axis of a row by its place in the whole answer.
    fn axis(&self, chosen: i64) -> Option<usize> {
        let rank = self.shape.len() as i64 + 1;
        let axis = if chosen < 0 { chosen + rank } else { chosen };
        (1..rank).contains(&axis).then(|| axis as usize - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(answer: &[usize], labels: &[usize], chosen: Option<i64>) -> Option<(usize, Option<usize>)> {
        let place = Answer::of_shape(answer).layout_for(labels, chosen)?;
        Some((place.axis?, place.other))
    }

    #[test]
    fn classes_lie_along_the_axis_that_labels_lack() {
        assert_eq!(axis(&[7, 5], &[7], None), Some((2, None)));
        assert_eq!(axis(&[5, 7], &[7], None), Some((1, None)));
        assert_eq!(axis(&[5, 8, 9], &[8, 9], None), Some((1, None)));
        assert_eq!(axis(&[5, 8, 9], &[1, 8, 9], None), Some((1, None)));
        assert_eq!(axis(&[8, 9, 5], &[8, 9], None), Some((3, None)));
        assert_eq!(axis(&[3, 5, 8, 9], &[3, 8, 9], None), Some((2, None)));
        assert_eq!(axis(&[7, 5], &[6], None), None);
        assert_eq!(axis(&[7, 1], &[7], None), None);
    }

    #[test]
    fn where_two_axes_fit_one_is_taken_and_the_other_named() {
        assert_eq!(axis(&[6, 6], &[6], None), Some((2, Some(1))));
        assert_eq!(axis(&[6, 6, 6], &[6, 6], None), Some((1, Some(2))));
        assert_eq!(axis(&[6, 6], &[6], Some(1)), Some((1, None)));
        assert_eq!(axis(&[6, 6], &[6], Some(-2)), Some((1, None)));
        assert_eq!(axis(&[6, 6], &[6], Some(3)), None);
        assert_eq!(axis(&[6, 6], &[6], Some(0)), None);
        let softmax = Some(Layout::along(&[6, 6], 0));
        let place = Answer { shape: vec![6, 6], softmax }.layout_for(&[6], None).unwrap();
        assert_eq!((place.axis, place.other), (Some(1), None));
    }

    #[test]
    fn an_answer_alone_has_a_usual_layout() {
        let usual = |shape: &[usize], chosen| Answer::of_shape(shape).usual_layout(chosen).map(|f| f.layout);
        assert_eq!(usual(&[5], None), Some(Layout::rows(5)));
        assert_eq!(usual(&[5, 1, 1], None), Some(Layout::rows(5)));
        assert_eq!(usual(&[7, 5], None), Some(Layout { before: 7, classes: 5, after: 1 }));
        assert_eq!(usual(&[5, 8, 9], None), Some(Layout { before: 1, classes: 5, after: 72 }));
        assert_eq!(usual(&[7, 5], Some(1)), Some(Layout { before: 1, classes: 7, after: 5 }));
        assert_eq!(usual(&[7, 5], Some(3)), None);
    }

    #[test]
    fn scores_of_a_position_are_picked_in_steps() {
        let row: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let layout = Layout { before: 2, classes: 3, after: 2 };
        assert_eq!(layout.scores(&row, 0).collect::<Vec<_>>(), [0.0, 2.0, 4.0]);
        assert_eq!(layout.scores(&row, 3).collect::<Vec<_>>(), [7.0, 9.0, 11.0]);
        assert_eq!((layout.shape(4), layout.label_shape(4)), (vec![8, 3, 2], vec![8, 2]));
        assert_eq!((Layout::rows(3).shape(4), Layout::rows(3).label_shape(4)), (vec![4, 3], vec![4]));
    }
}
