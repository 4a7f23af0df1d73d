//! Products of matrices, `C = A · B`, of operands that lie in memory in whatever way an [`Operand`] tells: transposed, strided, or
//! as the columns that a convolution unfolds an image to, which are never written out.
//!
//! As in [BLIS](https://github.com/flame/blis): blocks of both operands are packed so that the innermost loop ([`micro`]) reads
//! them from one end to the other, a block of B from the second cache, a panel of A from the first. Every element is the sum of
//! its products in the same order, whatever part of the result is asked for.

mod micro;
mod simd;
mod source;
#[cfg(test)]
mod tests;

pub use source::{Matrix, Offsets, Operand, Patches};

use crate::Vectors;
use micro::Tile;
use simd::{Simd, plain::Plain};
#[cfg(target_arch = "x86_64")]
use simd::{avx2::Avx2, avx512::Avx512};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Whether products are fast on this processor. Elsewhere other libraries' are faster.
pub fn is_fast() -> bool {
    Vectors::here() > Vectors::Plain
}

/// Where a product's elements go: row `i` and column `j` to `start + rows · i + columns[j]`, or `start + rows · i + j`.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub start: usize,
    pub rows: usize,
    pub columns: Option<&'a [usize]>,
}

impl Place<'_> {
    fn at(&self, i: usize, j: usize) -> usize {
        self.start + self.rows * i + self.columns.map_or(j, |columns| columns[j])
    }
    /// Whether these columns lie one after the other. Those of a list ascend.
    fn is_dense(&self, columns: Range<usize>) -> bool {
        self.columns.is_none_or(|list| list[columns.end - 1] - list[columns.start] == columns.len() - 1)
    }
}

/// Elements that several threads write to, each its own.
pub struct Shared<'a> {
    first: *mut f32,
    len: usize,
    _elements: PhantomData<&'a mut [f32]>,
}

// SAFETY: a pointer to plain numbers; who writes where is settled by [`Product::part`].
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(elements: &'a mut [f32]) -> Self {
        Self { first: elements.as_mut_ptr(), len: elements.len(), _elements: PhantomData }
    }
}

/// `C[m, n] = A[m, k] · B[k, n]`, or `C +=` that.
pub struct Product<'a> {
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    pub depth: usize,
    pub place: Place<'a>,
    /// Whether the product is added to what is there.
    pub adds: bool,
}

/// Packed blocks of both operands.
#[derive(Default)]
struct Room {
    a: Vec<Line>,
    b: Vec<Line>,
}

/// Elements of a line of the cache.
const LINE: usize = 16;

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _elements: [f32; LINE],
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

fn room(lines: &mut Vec<Line>, elements: usize) -> &mut [f32] {
    let wanted = elements.div_ceil(LINE);
    if lines.len() < wanted {
        lines.resize(wanted, Line { _elements: [0.0; LINE] });
    }
    // SAFETY: lines are arrays of numbers, without gaps between them.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) }
}

/// `whole` in parts of equal size, none larger than `most`: the size.
fn even(whole: usize, most: usize) -> usize {
    whole.div_ceil(whole.div_ceil(most).max(1)).max(1)
}

impl Product<'_> {
    /// Makes all of it.
    ///
    /// # Panics
    /// Where operands or places are smaller than `rows`, `columns` and the depth say.
    pub fn whole(&self, rows: usize, columns: usize, c: &mut [f32]) {
        // SAFETY: nobody else has the elements.
        unsafe { self.part(0..rows, 0..columns, &Shared::new(c)) }
    }

    /// Makes these rows of these columns.
    ///
    /// # Panics
    /// As above.
    ///
    /// # Safety
    /// Nobody else may read or write those elements of C meanwhile.
    pub unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>, c: &Shared<'_>) {
        // SAFETY: the caller's.
        unsafe { self.part_by(Vectors::here(), rows, columns, c) }
    }

    /// By these vectors.
    ///
    /// # Safety
    /// As above, and the processor must have them.
    unsafe fn part_by(&self, vectors: Vectors, rows: Range<usize>, columns: Range<usize>, c: &Shared<'_>) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        self.a.check(rows.end, self.depth);
        self.b.check(columns.end, self.depth);
        let ascends = |list: &[usize]| list[columns.clone()].is_sorted();
        assert!(self.place.columns.is_none_or(ascends));
        assert!(self.place.at(rows.end - 1, columns.end - 1) < c.len);
        ROOM.with_borrow_mut(|room| {
            // SAFETY: the caller's, and all elements are within C.
            unsafe {
                match vectors {
                    #[cfg(target_arch = "x86_64")]
                    Vectors::Avx512 => self.blocks::<Avx512>(rows, columns, c, room),
                    #[cfg(target_arch = "x86_64")]
                    Vectors::Avx2 => self.blocks::<Avx2>(rows, columns, c, room),
                    _ => self.blocks::<Plain>(rows, columns, c, room),
                }
            }
        });
    }

    /// # Safety
    /// As [`Product::part_by`]'s; rows and columns must be within the operands and C.
    unsafe fn blocks<S: Simd>(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        c: &Shared<'_>,
        space: &mut Room,
    ) {
        let vectors = even(columns.len().div_ceil(S::LANES), S::MAX_ROWS.len() - 1);
        let (width, height) = (vectors * S::LANES, even(rows.len(), S::MAX_ROWS[vectors]));
        let depths = even(self.depth, S::BLOCKS.depths);
        let rows_at_once = even(rows.len(), S::BLOCKS.rows).next_multiple_of(height);
        let columns_at_once = even(columns.len(), S::BLOCKS.columns).next_multiple_of(width);
        let a = room(&mut space.a, rows_at_once * depths);
        let b = room(&mut space.b, columns_at_once * depths);
        for j in columns.clone().step_by(columns_at_once) {
            let some_columns = j..columns.end.min(j + columns_at_once);
            for k in (0..self.depth.max(1)).step_by(depths) {
                let some_depths = k..self.depth.min(k + depths);
                // SAFETY: as this function's.
                unsafe { self.b.pack::<S>(some_columns.clone(), some_depths.clone(), width, b) };
                for i in rows.clone().step_by(rows_at_once) {
                    let some_rows = i..rows.end.min(i + rows_at_once);
                    // SAFETY: as this function's.
                    unsafe { self.a.pack::<S>(some_rows.clone(), some_depths.clone(), height, a) };
                    let block =
                        Block { a, b, height, width, depths: some_depths.len(), adds: self.adds || k > 0 };
                    // SAFETY: as this function's.
                    unsafe { self.tiles::<S>(&block, some_rows, some_columns.clone(), c) };
                }
            }
        }
    }

    /// # Safety
    /// As [`Product::blocks`]'s.
    unsafe fn tiles<S: Simd>(
        &self,
        block: &Block<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        c: &Shared<'_>,
    ) {
        let heights = || rows.clone().step_by(block.height);
        let widths = || columns.clone().step_by(block.width);
        // SAFETY: as this function's.
        let tile = |i: usize, j: usize| unsafe { self.tile::<S>(block, i, j, &rows, &columns, c) };
        match S::BLOCKS.near_b {
            true => widths().for_each(|j| heights().for_each(|i| tile(i, j))),
            false => heights().for_each(|i| widths().for_each(|j| tile(i, j))),
        }
    }

    /// The tile from row `i` and column `j` on.
    ///
    /// # Safety
    /// As [`Product::blocks`]'s.
    unsafe fn tile<S: Simd>(
        &self,
        block: &Block<'_>,
        i: usize,
        j: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
        c: &Shared<'_>,
    ) {
        let a = &block.a[(i - rows.start) * block.depths..][..block.depths * block.height];
        let b = &block.b[(j - columns.start) * block.depths..][..block.depths * block.width];
        let (high, wide) = (block.height.min(rows.end - i), block.width.min(columns.end - j));
        let &Block { depths, height, width, .. } = block;
        let tile = Tile { a, b, depths, height, width, high, wide };
        if self.place.is_dense(j..j + wide) {
            let first = self.place.at(i, j);
            // SAFETY: the tile's rows are `place.rows` apart and its columns next to each other, all within C, and the caller's
            // alone.
            return unsafe { micro::multiply::<S>(&tile, c.first.add(first), self.place.rows, block.adds) };
        }
        let mut aside = [0.0; MAX_TILE];
        assert!(block.height * block.width <= MAX_TILE);
        // SAFETY: there is room.
        unsafe { micro::multiply::<S>(&tile, aside.as_mut_ptr(), block.width, false) };
        for (i, values) in (i..i + high).zip(aside.chunks_exact(block.width)) {
            // SAFETY: as this function's.
            unsafe { self.spread(i, j, &values[..wide], block.adds, c) };
        }
    }

    /// Writes or adds values to the elements of row `i` from column `j` on, run by run of such as lie one after the other.
    ///
    /// # Safety
    /// As [`Product::blocks`]'s.
    unsafe fn spread(&self, i: usize, j: usize, mut values: &[f32], adds: bool, c: &Shared<'_>) {
        let columns = self.place.columns.map_or(&[][..], |columns| &columns[j..j + values.len()]);
        for run in columns.chunk_by(|a, b| a + 1 == *b) {
            let first = self.place.start + self.place.rows * i + run[0];
            // SAFETY: within C, and the caller's alone.
            let to = unsafe { std::slice::from_raw_parts_mut(c.first.add(first), run.len()) };
            let (some, rest) = values.split_at(run.len());
            match adds {
                true => to.iter_mut().zip(some).for_each(|(to, value)| *to += value),
                false => to.copy_from_slice(some),
            }
            values = rest;
        }
    }
}

/// Packed parts of both operands: panels of so many rows or columns.
struct Block<'a> {
    a: &'a [f32],
    b: &'a [f32],
    height: usize,
    width: usize,
    depths: usize,
    adds: bool,
}

/// Elements of the largest tile of all vectors.
const MAX_TILE: usize = 384;
