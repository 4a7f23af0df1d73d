//! What products want of a processor's vectors: the one place that knows instructions.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod plain;

use super::micro::Tile;
use super::source::Source;
use std::ops::Range;

/// Elements of the widest vectors.
pub const MAX_LANES: usize = 16;

/// How products are cut into blocks.
pub struct Blocks {
    /// Depths in a block.
    pub depths: usize,
    /// Rows of A in a block, about, and columns of B.
    pub rows: usize,
    pub columns: usize,
    /// Which operand's panel stays in the first cache, while the other's block is read from the second: B's, else A's.
    pub near_b: bool,
}

/// A panel of B fits half a first cache of 32 KiB, a block of A a third of a second one of 256 KiB. More rows of C than these
/// would be more pages than are found at once.
const SMALL_BLOCKS: Blocks = Blocks { depths: 256, rows: 72, columns: 960, near_b: true };

/// Vectors of some instructions.
///
/// # Safety
/// Of all functions: the processor must have the instructions. Where addresses are taken, the elements must be there, `count` of
/// them, which is at most [`LANES`](Simd::LANES).
pub trait Simd {
    type Vector: Copy;
    /// Elements of a vector.
    const LANES: usize;
    /// Rows of a tile at most, by the vectors in each: with those of B and one of A they fit the registers. The last is for the
    /// widest tiles.
    const MAX_ROWS: &[usize];
    const BLOCKS: Blocks;

    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, sum: Self::Vector) -> Self::Vector;
    /// Zeros after the first `count`.
    unsafe fn load(from: *const f32, count: usize) -> Self::Vector;
    /// Half a vector from each address.
    unsafe fn load_halves(low: *const f32, high: *const f32) -> Self::Vector;
    /// The elements at these offsets, zeros after the first `count`.
    unsafe fn gather(base: *const f32, offsets: *const u32, count: usize) -> Self::Vector;
    unsafe fn store(to: *mut f32, vector: Self::Vector, count: usize);
    /// Rows become columns, of as many vectors as each has lanes.
    unsafe fn transpose(rows: &mut [Self::Vector; MAX_LANES]);

    /// [`super::micro::tile`] of the tile's shape, compiled for the instructions.
    unsafe fn multiply(tile: &Tile<'_>, c: *mut f32, step: usize, adds: bool);
    /// [`super::source::pack`], compiled for the instructions.
    unsafe fn pack(
        source: &impl Source,
        lines: Range<usize>,
        depths: Range<usize>,
        width: usize,
        to: &mut [f32],
    );
}

/// Tells the processor that an element is needed soon, should there be such a one.
#[inline(always)]
pub fn announce(element: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no address is wrong to announce.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(element.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = element;
}

/// [`Simd::multiply`] for the shapes of tiles (rows: vectors) that there are, and [`Simd::pack`], both compiled as the attributes say.
macro_rules! compiled {
    ($this:ty: $(#[$features:meta])* $($rows:literal: $($vectors:literal)*;)*) => {
        unsafe fn multiply(tile: &Tile<'_>, c: *mut f32, step: usize, adds: bool) {
            $(#[$features])*
            unsafe fn rows<const ROWS: usize, const VECTORS: usize>(
                tile: &Tile<'_>,
                c: *mut f32,
                step: usize,
                adds: bool,
            ) {
                // SAFETY: the caller's.
                unsafe { micro::tile::<$this, ROWS, VECTORS>(tile, c, step, adds) }
            }
            match (tile.high, tile.wide.div_ceil(Self::LANES)) {
                // SAFETY: the caller's.
                $($(($rows, $vectors) => unsafe { rows::<$rows, $vectors>(tile, c, step, adds) },)*)*
                shape => unreachable!("no tiles of {shape:?}"),
            }
        }

        $(#[$features])*
        unsafe fn pack(
            source: &impl Source,
            lines: Range<usize>,
            depths: Range<usize>,
            width: usize,
            to: &mut [f32],
        ) {
            // SAFETY: the caller's.
            unsafe { source::pack::<Self>(source, lines, depths, width, to) }
        }
    };
}
use compiled;
