//! Rows made of others, without labels: whoever can answer such rows, a source, teaches by them.
//!
//! Of images two are warped ([`warp`]), and a rectangle of the one is pasted into the other, as in CutMix (arXiv 1905.04899),
//! but without its mixed labels. Into one sentence words of another are pasted in the same way, and some become any word of the
//! vocabulary ([`vocabulary`]), for few sentences hold few words. Rows of a table exchange some of their values, those of a series a run of them,
//! and all move a little ([`spread`]). Several inputs of a row show the same thing: what isn't cut alike in all of them is blended in all.
//! What each is worth: docs/transfer.md.

mod spread;
mod vocabulary;
mod warp;

use super::{Column, Dataset, image_shape};
use crate::onnx::{DType, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spread::Spread;
use std::collections::HashMap;
use vocabulary::Vocabulary;
use warp::Warp;

/// What models make of a column.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Words of the smallest vocabulary that its numbers are looked up in, where they are.
    pub words: Option<usize>,
    /// The shapes that rows are taken in.
    pub shapes: Vec<Vec<usize>>,
}

/// What models make of columns, by name.
pub type Usages = HashMap<String, Usage>;

/// A part of something, from a start on, both as shares of the whole.
#[derive(Clone, Copy)]
struct Extent {
    length: f64,
    start: f64,
}

impl Extent {
    fn draw(random: &mut impl Rng) -> Self {
        Extent { length: random.random(), start: random.random() }
    }
    /// At least one of `whole` places, and never all of more than one.
    fn within(self, whole: usize) -> std::ops::Range<usize> {
        let length = 1 + (self.length * whole.saturating_sub(1) as f64) as usize;
        let start = (self.start * (whole - length + 1) as f64) as usize;
        start..start + length
    }
}

/// How a new row is made: most of the first of two rows, and a part of the second.
struct Recipe {
    of: [usize; 2],
    warps: [Warp; 2],
    down: Extent,
    right: Extent,
}

impl Recipe {
    fn draw(rows: &[usize], random: &mut impl Rng) -> Self {
        let mut pick = || rows[random.random_range(0..rows.len())];
        let of = [pick(), pick()];
        let warps = [Warp::draw(random), Warp::draw(random)];
        Self { of, warps, down: Extent::draw(random), right: Extent::draw(random) }
    }
    /// How much of a blend is of the first row, evenly drawn. Nothing is cut of what is blended, so that the number is free.
    fn share(&self) -> f64 {
        self.down.length
    }
}

/// Rows made of others.
pub struct Made {
    pub dataset: Dataset,
    /// Of which two rows each is made.
    pub of: Vec<[usize; 2]>,
}

impl Dataset {
    /// `count` rows made of `rows` of this data set, without labels; the same for the same seed. Several inputs of a row are
    /// warped and cut in the same way, as they show the same thing; where one of them is neither an image nor words in a row, all are blended. `None` for
    /// fewer than two rows, and where nothing can be made of an input.
    pub fn make_rows(&self, rows: &[usize], count: usize, usages: &Usages, seed: u64) -> Option<Made> {
        let kinds = self.kinds(usages)?;
        if rows.len() < 2 || count == 0 {
            return None;
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let recipes: Vec<Recipe> = (0..count).map(|_| Recipe::draw(rows, &mut random)).collect();
        let mut made = |(column, kind): (&Column, &Kind)| {
            let values = kind.make(&column.values, rows, &recipes, &mut random)?;
            Some(Column { name: column.name.clone(), values })
        };
        let inputs = self.inputs.iter().zip(&kinds).map(&mut made).collect::<Option<_>>()?;
        let dataset = Dataset { inputs, labels: None, ..self.clone() };
        Some(Made { dataset, of: recipes.iter().map(|recipe| recipe.of).collect() })
    }

    /// What each input's rows are.
    fn kinds(&self, usages: &Usages) -> Option<Vec<Kind>> {
        let alone = self.inputs.len() == 1;
        let used = |column: &Column| usages.get(&column.name).cloned().unwrap_or_default();
        let kind = |column: &Column| Kind::of(column, &used(column), alone);
        let real = |column: &Column| column.values.dtype().is_float();
        match self.inputs.iter().map(kind).collect() {
            None if !alone && self.inputs.iter().all(real) => Some(vec![Kind::View; self.inputs.len()]),
            kinds => kinds,
        }
    }
}

/// What an input's rows are.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// So many of them, of a vocabulary.
    Words(usize, Option<usize>),
    Image(Grid),
    /// Numbers that lie in a grid, and look like no image.
    Field(Grid),
    /// So many of them, a series or in no order.
    Numbers(usize),
    /// One of several ways in which the same thing is seen. A blend of two things is seen as the blend of how they are seen, as far as one
    /// view is linear in the other (means, sums, transforms).
    View,
}

/// Planes of lines of places, each of which holds so many elements side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Grid {
    planes: usize,
    lines: usize,
    places: usize,
    elements: usize,
}

impl Kind {
    /// Numbers that aren't an image can't be cut as another input is: they are made of others only where they are `alone`.
    fn of(column: &Column, used: &Usage, alone: bool) -> Option<Self> {
        let (shape, dtype) = (column.row_shape(), column.values.dtype());
        let axes: Vec<usize> = shape.iter().copied().filter(|&d| d != 1).collect();
        if let (&[length], DType::I64 | DType::I32) = (shape, dtype)
            && length > 1
        {
            return Some(Self::Words(length, used.words));
        }
        let mut shapes = std::iter::once(shape).chain(used.shapes.iter().map(Vec::as_slice));
        match (shapes.find_map(Grid::of_image), axes.as_slice()) {
            (Some(grid), _) => Some(Self::Image(grid)),
            _ if !(alone && is_continuous(dtype)) => None,
            (_, &[count]) => Some(Self::Numbers(count)),
            (_, [planes @ .., lines, places]) => {
                let planes = planes.iter().product();
                Some(Self::Field(Grid { planes, lines: *lines, places: *places, elements: 1 }))
            }
            _ => None,
        }
    }

    /// A row for each recipe.
    fn make(
        &self,
        values: &Tensor,
        rows: &[usize],
        recipes: &[Recipe],
        random: &mut impl Rng,
    ) -> Option<Tensor> {
        match *self {
            Self::Words(places, words) => {
                let cut = Grid { planes: 1, lines: 1, places, elements: 1 }.cut(values, recipes, false)?;
                let replace = |size| Vocabulary::of(values, rows, size).replace(&cut, random);
                Some(words.map(replace).unwrap_or(cut))
            }
            Self::Image(grid) => grid.cut(values, recipes, is_continuous(values.dtype())),
            Self::Field(grid) => {
                Some(Spread::of(values, rows).jitter(&grid.cut(values, recipes, false)?, random))
            }
            Self::Numbers(places) => {
                let spread = Spread::of(values, rows);
                let line = Grid { planes: 1, lines: 1, places, elements: 1 };
                let mixed = match spread.is_series {
                    true => line.cut(values, recipes, false)?,
                    false => spread.exchange(values, recipes.iter().map(|recipe| recipe.of), random),
                };
                Some(spread.jitter(&mixed, random))
            }
            Self::View => Some(blend(values, recipes)),
        }
    }
}

/// λ a + (1 − λ) b of two rows each, as in mixup (arXiv 1710.09412), λ even between 0 and 1.
fn blend(values: &Tensor, recipes: &[Recipe]) -> Tensor {
    let blended = recipes.iter().flat_map(|recipe| {
        let [a, b] = recipe.of.map(|at| values.rows(at..at + 1).to_f64());
        let share = recipe.share();
        a.into_iter().zip(b).map(move |(a, b)| share * a + (1.0 - share) * b)
    });
    let blended: Vec<f64> = blended.collect();
    Tensor::from_f64(values.dtype(), &[&[recipes.len()], &values.shape()[1..]].concat(), &blended)
}

/// Whether there is anything between two values.
fn is_continuous(dtype: DType) -> bool {
    dtype.is_float() || dtype == DType::U8
}

impl Grid {
    /// Channels first or last.
    fn of_image(shape: &[usize]) -> Option<Self> {
        let channels_last = || match *shape {
            [height, width, channels] => Some((image_shape(&[channels, height, width])?, 1, channels)),
            _ => None,
        };
        let channels_first = image_shape(shape).map(|image| (image, image[0], 1));
        let ([_, lines, places], planes, elements) = channels_first.or_else(channels_last)?;
        Some(Self { planes, lines, places, elements })
    }

    /// Rows cut from two others each, which are `warped` first.
    fn cut(&self, values: &Tensor, recipes: &[Recipe], warped: bool) -> Option<Tensor> {
        let size = values.dtype().size()? * self.elements;
        let row = |at: usize, warp: &Warp| match warped {
            true => warp.apply(&values.rows(at..at + 1), [self.lines, self.places, self.elements]),
            false => values.rows(at..at + 1),
        };
        let mut bytes = Vec::with_capacity(recipes.len() * self.planes * self.lines * self.places * size);
        for recipe in recipes {
            let start = bytes.len();
            bytes.extend_from_slice(row(recipe.of[0], &recipe.warps[0]).bytes());
            let other = row(recipe.of[1], &recipe.warps[1]);
            let (down, right) = (recipe.down.within(self.lines), recipe.right.within(self.places));
            for line in (0..self.planes).flat_map(|plane| down.clone().map(move |y| plane * self.lines + y)) {
                let run = (line * self.places + right.start) * size..(line * self.places + right.end) * size;
                bytes[start..][run.clone()].copy_from_slice(&other.bytes()[run]);
            }
        }
        Tensor::new(values.dtype(), &[&[recipes.len()], &values.shape()[1..]].concat(), bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, values: Tensor) -> Column {
        Column { name: name.into(), values }
    }
    fn images(name: &str, sign: f32) -> Column {
        let values: Vec<f32> = (0..4).flat_map(|i| [sign * i as f32; 64]).collect();
        column(name, Tensor::f32(&[4, 1, 8, 8], &values))
    }

    #[test]
    fn a_row_shows_a_rectangle_of_another() {
        let dataset = Dataset::new(vec![images("x", 1.0), images("negative", -1.0)], None).unwrap();
        let Made { dataset: made, of } = dataset.make_rows(&[1, 3], 50, &Usages::new(), 7).unwrap();
        assert_eq!(made.rows(), 50);
        let (x, negative) = (made.inputs[0].values.to_f32(), made.inputs[1].values.to_f32());
        assert!(x.iter().zip(negative.iter()).all(|(a, b)| *a == -b), "both inputs are made alike");
        assert!(x.iter().all(|v| [1.0, 3.0].contains(v)), "only the rows that were named are used");
        let mixed = x.chunks(64).filter(|row| row.contains(&1.0) && row.contains(&3.0));
        for row in mixed.clone() {
            let edge = row.iter().filter(|v| **v != row[0]).count();
            assert!(edge < 64);
        }
        assert!(mixed.count() > 10);
        let first = x.chunks(64).zip(&of).filter(|(_, [one, other])| one == other);
        assert!(first.clone().count() > 10 && first.clone().all(|(row, [one, _])| row[0] == *one as f32));
        let again = dataset.make_rows(&[1, 3], 50, &Usages::new(), 7).unwrap().dataset;
        assert_eq!(made.inputs[0].values, again.inputs[0].values);
    }

    #[test]
    fn images_are_warped_and_words_are_not() {
        let pixels: Vec<u8> = (0..128).collect();
        let pictures = Tensor::new(DType::U8, &[2, 1, 8, 8], pixels).unwrap();
        let words = Tensor::i64(&[2, 5], &[1, 2, 3, 4, 5, 11, 12, 13, 14, 15]);
        let columns = vec![column("picture", pictures.clone()), column("words", words)];
        let dataset = Dataset::new(columns, None).unwrap();
        let made = dataset.make_rows(&[0, 1], 20, &Usages::new(), 3).unwrap().dataset;
        assert_eq!(made.inputs[0].values.dtype(), DType::U8);
        let rows: Vec<&[u8]> = made.inputs[0].values.bytes().chunks(64).collect();
        assert!(rows.iter().all(|row| *row != &pictures.bytes()[..64] && *row != &pictures.bytes()[64..]));
        let sentences = made.inputs[1].values.to_i64();
        assert!(sentences.chunks(5).all(|row| row.iter().zip(1..).all(|(word, at)| word % 10 == at)));
    }

    /// Pixels are those of the same image with channels first.
    #[test]
    fn channels_may_come_last_and_shapes_be_the_models() {
        let [channels, pixels] = [3, 64];
        let first: Vec<f32> = (0..2 * channels * pixels).map(|i| (i * 7 % 31) as f32).collect();
        let last = |values: &[f32]| -> Vec<f32> {
            let image = |image: &[f32]| -> Vec<f32> {
                (0..image.len()).map(|i| image[i % channels * pixels + i / channels]).collect()
            };
            values.chunks(channels * pixels).flat_map(image).collect()
        };
        let made = |shape: &[usize], values: &[f32], usages: &Usages| {
            let dataset = Dataset::new(vec![column("x", Tensor::f32(shape, values))], None).unwrap();
            let made = dataset.make_rows(&[0, 1], 9, usages, 3).unwrap().dataset.inputs.remove(0).values;
            assert_eq!(made.shape()[1..], shape[1..]);
            made.to_f32().into_owned()
        };
        let expected = made(&[2, 3, 8, 8], &first, &Usages::new());
        assert_eq!(made(&[2, 8, 8, 3], &last(&first), &Usages::new()), last(&expected));
        let usage = Usage { words: None, shapes: vec![vec![192], vec![3, 8, 8]] };
        assert_eq!(made(&[2, 192], &first, &Usages::from([("x".into(), usage)])), expected);
    }

    #[test]
    fn numbers_are_mixed_alone_only() {
        let table = || column("x", Tensor::f32(&[4, 3], &[0.0; 12]));
        let kind = |columns: Vec<Column>| Kind::of(&columns[0], &Usage::default(), columns.len() == 1);
        assert_eq!(kind(vec![table()]), Some(Kind::Numbers(3)));
        assert_eq!(kind(vec![table(), images("y", 1.0)]), None);
        let series = Grid { planes: 1, lines: 2, places: 50, elements: 1 };
        assert_eq!(kind(vec![column("x", Tensor::f32(&[4, 2, 50], &[0.0; 400]))]), Some(Kind::Field(series)));
        assert_eq!(kind(vec![column("x", Tensor::zeros(DType::I64, &[4, 2, 50]))]), None);
        let numbered = column("n", Tensor::zeros(DType::I64, &[4, 3, 2]));
        let dataset = Dataset::new(vec![images("y", 1.0), numbered], None).unwrap();
        assert!(dataset.make_rows(&[0, 1], 5, &Usages::new(), 0).is_none());
    }

    /// A view that is linear in the other is so in rows that nobody saw.
    #[test]
    fn views_that_cant_be_cut_alike_are_blended_alike() {
        let pictures: Vec<f32> = (0..4 * 64).map(|i| (i * 37 % 101) as f32).collect();
        let mean = |picture: &[f32]| {
            picture.chunks(32).map(|half| half.iter().sum::<f32>() / 32.0).collect::<Vec<_>>()
        };
        let means: Vec<f32> = pictures.chunks(64).flat_map(mean).collect();
        let columns = [("picture", vec![4, 1, 8, 8], &pictures), ("means", vec![4, 2], &means)];
        let columns = columns.map(|(name, shape, values)| column(name, Tensor::f32(&shape, values)));
        let dataset = Dataset::new(columns.into(), None).unwrap();
        let made = dataset.make_rows(&[0, 3], 60, &Usages::new(), 5).unwrap().dataset;
        let [pictures, means] = [0, 1].map(|i| made.inputs[i].values.to_f32().into_owned());
        let apart = pictures.chunks(64).flat_map(mean).zip(&means).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-4);
        let known = |row: &[f32]| dataset.inputs[1].values.to_f32().chunks(2).any(|other| other == row);
        assert!(means.chunks(2).filter(|row| !known(row)).count() > 10);
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
