//! Rows made of others: a rectangle of one image pasted into another, as in CutMix (arXiv 1905.04899), but without its
//! mixed labels. Whoever can answer such rows, a source, teaches by them.

use super::{Column, Dataset};
use crate::onnx::{DType, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A part of something, from a start on, both as shares of the whole.
#[derive(Clone, Copy)]
struct Extent {
    length: f64,
    start: f64,
}

impl Extent {
    /// At least one of `whole` places, and never all of more than one.
    fn within(self, whole: usize) -> std::ops::Range<usize> {
        let length = 1 + (self.length * whole.saturating_sub(1) as f64) as usize;
        let start = (self.start * (whole - length + 1) as f64) as usize;
        start..start + length
    }
}

/// How a new row is made: most of `one`, and a rectangle of `other`.
struct Cut {
    one: usize,
    other: usize,
    down: Extent,
    right: Extent,
}

/// Rows made of others.
pub struct Mixed {
    pub dataset: Dataset,
    /// Of which two rows each is made.
    pub of: Vec<[usize; 2]>,
}

impl Dataset {
    /// `count` rows made of `rows` of this data set, without labels; the same for the same seed. Several inputs of a row are
    /// cut in the same place, as they show the same thing. `None` where an input isn't an image, or words in a row.
    pub fn cutmix(&self, rows: &[usize], count: usize, seed: u64) -> Option<Mixed> {
        let planes: Vec<[usize; 3]> = self.inputs.iter().map(plane).collect::<Option<_>>()?;
        if rows.len() < 2 || count == 0 {
            return None;
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut extent = || Extent { length: random.random(), start: random.random() };
        let sizes: Vec<(Extent, Extent)> = (0..count).map(|_| (extent(), extent())).collect();
        let mut pick = || rows[random.random_range(0..rows.len())];
        let cuts: Vec<Cut> =
            sizes.into_iter().map(|(down, right)| Cut { one: pick(), other: pick(), down, right }).collect();
        let inputs = self.inputs.iter().zip(planes).map(|(column, plane)| column.cut(plane, &cuts));
        let inputs = inputs.collect::<Option<_>>()?;
        let dataset = Dataset { inputs, labels: None, ..self.clone() };
        Some(Mixed { dataset, of: cuts.iter().map(|cut| [cut.one, cut.other]).collect() })
    }
}

/// Channels, height and width of an input's rows; words lie side by side.
fn plane(column: &Column) -> Option<[usize; 3]> {
    match (column.row_shape(), column.values.dtype()) {
        (&[length], DType::I64 | DType::I32) if length > 1 => Some([1, 1, length]),
        _ => column.image_shape(),
    }
}

impl Column {
    fn cut(&self, [channels, height, width]: [usize; 3], cuts: &[Cut]) -> Option<Column> {
        let size = self.values.dtype().size()?;
        let row = channels * height * width * size;
        let stored = self.values.bytes();
        let mut made = Vec::with_capacity(cuts.len() * row);
        for cut in cuts {
            let (one, other) = (&stored[cut.one * row..][..row], &stored[cut.other * row..][..row]);
            let start = made.len();
            made.extend_from_slice(one);
            let right = cut.right.within(width);
            for line in (0..channels).flat_map(|c| cut.down.within(height).map(move |y| c * height + y)) {
                let place = (line * width + right.start) * size..(line * width + right.end) * size;
                made[start..][place.clone()].copy_from_slice(&other[place]);
            }
        }
        let shape = [&[cuts.len()], self.row_shape()].concat();
        let values = Tensor::new(self.values.dtype(), &shape, made).ok()?;
        Some(Column { name: self.name.clone(), values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(name: &str, sign: f32) -> Column {
        let values: Vec<f32> = (0..4).flat_map(|i| [sign * i as f32; 64]).collect();
        Column { name: name.into(), values: Tensor::f32(&[4, 1, 8, 8], &values) }
    }

    #[test]
    fn a_row_shows_a_rectangle_of_another() {
        let dataset = Dataset::new(vec![images("x", 1.0), images("negative", -1.0)], None).unwrap();
        let Mixed { dataset: made, of } = dataset.cutmix(&[1, 3], 50, 7).unwrap();
        assert_eq!(made.rows(), 50);
        let (x, negative) = (made.inputs[0].values.to_f32(), made.inputs[1].values.to_f32());
        assert!(x.iter().zip(negative.iter()).all(|(a, b)| *a == -b), "both inputs are cut alike");
        assert!(x.iter().all(|v| [1.0, 3.0].contains(v)), "only the rows that were named are used");
        let mixed = x.chunks(64).filter(|row| row.contains(&1.0) && row.contains(&3.0));
        for row in mixed.clone() {
            let edge = row.iter().filter(|v| **v != row[0]).count();
            assert!(edge < 64);
        }
        assert!(mixed.count() > 10);
        let first = x.chunks(64).zip(&of).filter(|(_, [one, other])| one == other);
        assert!(first.clone().count() > 10 && first.clone().all(|(row, [one, _])| row[0] == *one as f32));
        let again = dataset.cutmix(&[1, 3], 50, 7).unwrap().dataset;
        assert_eq!(made.inputs[0].values, again.inputs[0].values);
    }

    #[test]
    fn tables_have_no_places_to_cut() {
        let table = Column { name: "x".into(), values: Tensor::f32(&[4, 3], &[0.0; 12]) };
        assert!(Dataset::new(vec![table], None).unwrap().cutmix(&[0, 1], 5, 0).is_none());
    }

    #[test]
    fn extents_lie_within() {
        for length in [0.0, 0.5, 0.999_999] {
            for start in [0.0, 0.5, 0.999_999] {
                for whole in [1, 2, 7] {
                    let part = Extent { length, start }.within(whole);
                    assert!(!part.is_empty() && part.end <= whole && (part.len() < whole || whole == 1));
                }
            }
        }
    }
}
