//! How rows of one shape fill an input of another: what a reshape bridges, and channels first or last. Look at [`place`].

use crate::onnx::Dim;

/// Where a row of data goes in an input.
pub struct Place {
    /// The shape of one row as the model takes it.
    pub row_shape: Vec<usize>,
    /// Whether the input has a batch dimension.
    pub batched: bool,
    /// The batch size that the file fixes.
    pub fixed_batch: Option<usize>,
    pub order: Option<Reorder>,
}

/// A change between channels-first and channels-last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reorder {
    ChannelsLast([usize; 3]),
    ChannelsFirst([usize; 3]),
}

impl Reorder {
    /// The elements of a row, of `size` bytes each, in the other order.
    pub fn apply(self, from: &[u8], size: usize) -> Vec<u8> {
        let mut to = Vec::with_capacity(from.len());
        let mut take = |at: usize| to.extend_from_slice(&from[at * size..][..size]);
        match self {
            Reorder::ChannelsLast([c, h, w]) => {
                (0..h * w).for_each(|p| (0..c).for_each(|c| take(c * h * w + p)));
            }
            Reorder::ChannelsFirst([c, h, w]) => {
                (0..c).for_each(|k| (0..h * w).for_each(|p| take(p * c + k)));
            }
        }
        to
    }
}

/// The shape of one row as the model takes it: its declared shape without the batch dimension, with unknown
/// dimensions taken from the data; and how its values are reordered. `None` where the data can't fill it.
pub fn place(declared: Option<&[Dim]>, stored: &[usize]) -> Option<Place> {
    let (row_shape, batched, fixed_batch) = row_place(declared, stored)?;
    let order = match grouped(stored, &row_shape) {
        true => None,
        false => Some(reorder(stored, &row_shape)?),
    };
    Some(Place { row_shape, batched, fixed_batch, order })
}

/// The shape of one row, whether the model has a batch dimension, and the size to which it is fixed.
fn row_place(declared: Option<&[Dim]>, stored: &[usize]) -> Option<(Vec<usize>, bool, Option<usize>)> {
    let Some(declared) = declared else {
        return Some((stored.to_vec(), true, None));
    };
    let elements: usize = stored.iter().product();
    let fixed = match declared.first() {
        Some(Dim::Known(d)) => Some(*d),
        Some(_) => None,
        None => {
            return (elements == 1).then(|| (vec![], false, None));
        }
    };
    if let Some(row_shape) = fill(&declared[1..], stored) {
        return Some((row_shape, true, fixed));
    }
    Some((fill(declared, stored)?, false, None))
}

/// Unknown dimensions filled in so that the number of elements is that of the stored row.
fn fill(dims: &[Dim], stored: &[usize]) -> Option<Vec<usize>> {
    let elements: usize = stored.iter().product();
    let known: usize = dims.iter().map(|d| if let Dim::Known(d) = d { *d } else { 1 }).product();
    let open = dims.iter().filter(|d| !matches!(d, Dim::Known(_))).count();
    let rest = elements.checked_div(known).filter(|rest| rest * known == elements)?;
    let same_rank = dims.len() == stored.len();
    let filled: Vec<usize> = dims
        .iter()
        .enumerate()
        .map(|(i, d)| match d {
            Dim::Known(d) => *d,
            _ if open == 1 => rest,
            _ if same_rank => stored[i],
            _ => 1,
        })
        .collect();
    (filled.iter().product::<usize>() == elements).then_some(filled)
}

/// Whether one shape is the other with neighbouring dimensions joined: then a reshape keeps its meaning.
fn grouped(a: &[usize], b: &[usize]) -> bool {
    let products = |shape: &[usize]| -> Vec<usize> {
        let mut products: Vec<usize> = shape
            .iter()
            .scan(1, |product, d| {
                *product *= d;
                Some(*product)
            })
            .filter(|p| *p > 1)
            .collect();
        products.dedup();
        products
    };
    let (a, b) = (products(a), products(b));
    a.iter().all(|p| b.contains(p)) || b.iter().all(|p| a.contains(p))
}

fn reorder(stored: &[usize], wanted: &[usize]) -> Option<Reorder> {
    match (stored, wanted) {
        (&[c @ 1..=4, h, w], &[a, b, d]) if (a, b, d) == (h, w, c) => Some(Reorder::ChannelsLast([c, h, w])),
        (&[h, w, c @ 1..=4], &[a, b, d]) if (a, b, d) == (c, h, w) => Some(Reorder::ChannelsFirst([c, h, w])),
        _ => None,
    }
}
