//! Rows that are measured although their very inputs are trained on: what they show says little of new ones.

use super::{Column, Dataset};
use crate::onnx::DType;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};

/// More bytes of inputs aren't looked through: a tenth of a second or so.
const MOST: usize = 256 << 20;

/// The inputs of the rows that are trained on.
pub struct Known {
    kind: Vec<(String, DType, Vec<usize>)>,
    hashes: HashSet<u64>,
    /// Bytes that may still be looked through.
    left: usize,
}

impl Known {
    /// `None` where they are too large to be looked through.
    pub fn of(set: &Dataset, rows: &[usize]) -> Option<Self> {
        let left = MOST.checked_sub(rows.len() * row_bytes(set))?;
        Some(Self { kind: kind(set), hashes: hashes(set, rows).into_iter().collect(), left })
    }

    /// How many of some rows have the inputs of one of them, byte by byte; `None` where inputs differ in kind, or are too large.
    pub fn count(&self, set: &Dataset, rows: &[usize]) -> Option<usize> {
        let alike = rows.len() * row_bytes(set) <= self.left && kind(set) == self.kind;
        alike.then(|| hashes(set, rows).iter().filter(|row| self.hashes.contains(row)).count())
    }
}

/// Names, types and row shapes of a set's inputs.
fn kind(set: &Dataset) -> Vec<(String, DType, Vec<usize>)> {
    let of = |c: &Column| (c.name.clone(), c.values.dtype(), c.row_shape().to_vec());
    set.inputs.iter().map(of).collect()
}

fn row_bytes(set: &Dataset) -> usize {
    set.inputs.iter().map(|column| column.values.bytes().len() / set.rows().max(1)).sum()
}

/// A number for each row. Of two different ones in 2⁶⁴ it is the same: not where a count of rows makes a note.
fn hashes(set: &Dataset, rows: &[usize]) -> Vec<u64> {
    let mut hashers = vec![DefaultHasher::new(); rows.len()];
    for column in &set.inputs {
        let bytes = column.values.bytes();
        let width = bytes.len() / set.rows().max(1);
        for (hasher, row) in hashers.iter_mut().zip(rows) {
            hasher.write(&bytes[row * width..][..width]);
        }
    }
    hashers.iter().map(Hasher::finish).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Tensor;

    fn set(values: &[f32]) -> Dataset {
        let column = |name: &str, values| Column { name: name.into(), values };
        let shape = [values.len() / 2, 2];
        let beside = Tensor::i64(&[shape[0]], &vec![1; shape[0]]);
        Dataset::new(vec![column("a", Tensor::f32(&shape, values)), column("b", beside)], None).unwrap()
    }

    #[test]
    fn rows_are_known_by_all_of_their_inputs() {
        let (ours, theirs) = (set(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), set(&[3.0, 4.0, 4.0, 3.0, 1.0, 2.0]));
        let known =
            |rows: &[usize], (set, others): (&Dataset, &[usize])| Known::of(&ours, rows)?.count(set, others);
        assert_eq!(known(&[0, 1, 2], (&theirs, &[0, 1, 2])), Some(2));
        assert_eq!(known(&[2], (&theirs, &[0, 1, 2])), Some(0));
        assert_eq!(known(&[0, 1], (&ours, &[1, 2])), Some(1));
        let mut other = set(&[1.0, 2.0]);
        other.inputs.pop();
        assert_eq!(known(&[0], (&other, &[0])), None);
    }
}
