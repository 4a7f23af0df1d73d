//! Rows that are measured although their very inputs are trained on: what they show says little of new ones.

use super::{Column, Dataset};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};

/// More bytes of inputs aren't looked through: a tenth of a second or so.
const MOST: usize = 256 << 20;

/// How many of some rows have the inputs of one of `trained`, byte by byte; `None` where inputs differ in kind, or are too large to
/// be looked through.
pub fn known(trained: (&Dataset, &[usize]), rows: (&Dataset, &[usize])) -> Option<usize> {
    let sides = [trained, rows];
    let size: usize = sides.iter().map(|(set, rows)| rows.len() * row_bytes(set)).sum();
    let kind = |set: &Dataset| -> Vec<_> {
        let of = |c: &Column| (c.name.clone(), c.values.dtype(), c.row_shape().to_vec());
        set.inputs.iter().map(of).collect()
    };
    if size > MOST || kind(trained.0) != kind(rows.0) {
        return None;
    }
    let [trained, rows] = sides.map(hashes);
    let trained: HashSet<u64> = trained.into_iter().collect();
    Some(rows.iter().filter(|row| trained.contains(row)).count())
}

fn row_bytes(set: &Dataset) -> usize {
    set.inputs.iter().map(|column| column.values.bytes().len() / set.rows().max(1)).sum()
}

/// A number for each row. Of two different ones in 2⁶⁴ it is the same: not where a count of rows makes a note.
fn hashes((set, rows): (&Dataset, &[usize])) -> Vec<u64> {
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
        assert_eq!(known((&ours, &[0, 1, 2]), (&theirs, &[0, 1, 2])), Some(2));
        assert_eq!(known((&ours, &[2]), (&theirs, &[0, 1, 2])), Some(0));
        assert_eq!(known((&ours, &[0, 1]), (&ours, &[1, 2])), Some(1));
        let mut other = set(&[1.0, 2.0]);
        other.inputs.pop();
        assert_eq!(known((&ours, &[0]), (&other, &[0])), None);
    }
}
