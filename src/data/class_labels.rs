//! Labels that have been read as classes. Look at [`Classes`].

use super::Labels;
use super::labels::chunks;
use super::layout::Layout;
use crate::error::{Error, Result};
use crate::onnx::Tensor;
use std::collections::BTreeSet;
use std::path::Path;

/// The label of what is left out of losses and metrics: padding, pieces of words. What PyTorch and transformers use.
pub const IGNORED: i64 = -100;

/// A class for each position of each row, some of which may be left out. They stay in the type and place they are stored in.
pub struct Classes {
    /// Rows × positions of whole numbers.
    values: Tensor,
    /// What is stored where a position is left out.
    ignored: i64,
    /// How many positions of each row count, where any is left out.
    counts: Option<Vec<u32>>,
}

impl Classes {
    /// `values` are rows × positions of whole numbers.
    pub(super) fn checked(path: &Path, values: Tensor, layout: Layout, ignored: i64) -> Result<Self> {
        let (rows, positions) = (values.shape()[0], layout.positions());
        let mut counts = vec![0; rows];
        let mut place = 0;
        for chunk in chunks(&values) {
            for &class in chunk.to_i64().iter() {
                if class != ignored {
                    if class < 0 || class as u64 >= layout.classes as u64 {
                        return Err(stranger(path, &values, place, class, layout));
                    }
                    counts[place / positions] += 1;
                }
                place += 1;
            }
        }
        let all = |count: &u32| *count as usize == positions;
        match counts.iter().all(|&count| count == 0) {
            true => {
                Err(Error::data(path, format!("all its labels are {ignored}, which leaves everything out")))
            }
            false => Ok(Self { ignored, counts: Some(counts).filter(|c| !c.iter().all(all)), values }),
        }
    }

    /// Whether any position is left out.
    pub fn some_ignored(&self) -> bool {
        self.counts.is_some()
    }

    /// How many positions of some rows count.
    pub fn counted(&self, rows: &[usize]) -> usize {
        match &self.counts {
            Some(counts) => rows.iter().map(|&row| counts[row] as usize).sum(),
            None => rows.len() * self.values.shape()[1],
        }
    }

    /// The labels of some rows, [`IGNORED`] for what is left out, the last row repeated up to `batch`.
    pub fn pick(&self, rows: &[usize], batch: usize) -> Vec<i64> {
        let own: Vec<i64> = rows.iter().flat_map(|&row| self.row(row)).collect();
        let order: Vec<usize> = (0..rows.len()).collect();
        Labels::pick(&own, self.values.shape()[1], &order, batch)
    }

    fn row(&self, row: usize) -> Vec<i64> {
        let stored = self.values.rows(row..row + 1);
        let known = |&class: &i64| if class == self.ignored { IGNORED } else { class };
        stored.to_i64().iter().map(known).collect()
    }

    /// The classes that some rows have.
    pub fn of(&self, rows: &[usize]) -> BTreeSet<i64> {
        rows.iter().flat_map(|&row| self.row(row)).filter(|&class| class != IGNORED).collect()
    }
}

/// A label that the model doesn't know.
fn stranger(path: &Path, values: &Tensor, place: usize, class: i64, layout: Layout) -> Error {
    let count = layout.classes;
    let (row, position) = (place / layout.positions(), place % layout.positions());
    let at = match layout.positions() {
        1 => format!("of row {row}"),
        _ => format!("at position {position} of row {row}"),
    };
    let last = count.saturating_sub(1);
    let what = format!("the label {at} is {class}, but the model tells {count} classes apart (0 to {last})");
    let all =
        |passes: &dyn Fn(i64) -> bool| chunks(values).all(|c| c.to_i64().iter().all(|&class| passes(class)));
    let known = |class: i64| class >= 0 && (class as u64) < count as u64;
    let hint = if all(&|class| class >= 1 && class as u64 <= count as u64) {
        "classes count from 0 on: take 1 from each label".to_owned()
    } else if (class < 0 || class == 255) && all(&|other| other == class || known(other)) {
        format!("if {class} means that there is no label, --ignore-label={class} leaves it out")
    } else {
        "classes are numbered like the outputs that tell them apart, from 0 on; values to hit are given with --task regress"
            .to_owned()
    };
    Error::data(path, what).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { before: 2, classes: 3, after: 1 };

    fn read(values: &[i64], ignored: i64) -> Result<Classes> {
        let values = Tensor::i64(&[values.len() / 2, 2], values);
        Classes::checked(Path::new("d.npz"), values, LAYOUT, ignored)
    }

    #[test]
    fn what_is_ignored_does_not_count() {
        let classes = read(&[0, 255, 255, 255, 2, 1], 255).unwrap();
        assert!(classes.some_ignored());
        assert_eq!((classes.counted(&[0, 1]), classes.counted(&[2])), (1, 2));
        assert_eq!(classes.pick(&[2, 0], 3), [2, 1, 0, IGNORED, 0, IGNORED]);
        assert_eq!(classes.of(&[0, 1]).into_iter().collect::<Vec<_>>(), [0]);
        let all = read(&[0, 1], IGNORED).unwrap();
        assert_eq!((all.some_ignored(), all.counted(&[0])), (false, 2));
    }

    #[test]
    fn strangers_are_named_with_their_place() {
        let message = |values: &[i64]| {
            let error = read(values, IGNORED).err().unwrap();
            format!("{error} {:?}", error.hints())
        };
        let text = message(&[0, 1, 2, 255]);
        assert!(text.contains("the label at position 1 of row 1 is 255"), "{text}");
        assert!(text.contains("--ignore-label=255"), "{text}");
        assert!(message(&[1, 3]).contains("take 1 from each"));
        assert!(message(&[-1, 7]).contains("numbered like the outputs"));
        assert!(message(&[-100, -100]).contains("all its labels are -100"));
    }
}
