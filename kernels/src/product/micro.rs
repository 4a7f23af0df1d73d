//! The innermost loop: a tile of the result, held in registers, from packed panels of both operands.

use super::LINE;
use super::simd::{Simd, announce};

/// A tile of `high` rows and `wide` columns, from panels of `height` rows and `width` columns a depth.
pub struct Tile<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub depths: usize,
    pub height: usize,
    pub width: usize,
    pub high: usize,
    pub wide: usize,
}

/// Writes (or adds) the tile to `c`, in rows that are `step` apart.
///
/// # Safety
/// The tile's elements must be there, and nobody else's meanwhile. The processor must have the vectors.
pub unsafe fn multiply<S: Simd>(tile: &Tile<'_>, c: *mut f32, step: usize, adds: bool) {
    assert!(tile.a.len() == tile.depths * tile.height && tile.high <= tile.height);
    assert!(tile.b.len() == tile.depths * tile.width && tile.wide.next_multiple_of(S::LANES) <= tile.width);
    // SAFETY: the caller's.
    unsafe { S::multiply(tile, c, step, adds) }
}

/// The same for tiles of so many rows, and columns that so many vectors hold.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    tile: &Tile<'_>,
    c: *mut f32,
    step: usize,
    adds: bool,
) {
    // SAFETY: the caller's; panels are as high and as wide as their tiles' vectors.
    unsafe {
        for i in 0..ROWS {
            for j in (0..VECTORS * S::LANES).step_by(LINE) {
                announce(c.wrapping_add(i * step + j));
            }
        }
        let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b) = (tile.a.as_ptr(), tile.b.as_ptr());
        for _ in 0..tile.depths {
            let mut vectors = [S::splat(0.0); VECTORS];
            for j in 0..VECTORS {
                vectors[j] = S::load(b.add(j * S::LANES), S::LANES);
            }
            for i in 0..ROWS {
                let value = S::splat(*a.add(i));
                for j in 0..VECTORS {
                    sums[i][j] = S::mul_add(value, vectors[j], sums[i][j]);
                }
            }
            (a, b) = (a.add(tile.height), b.add(tile.width));
        }
        let last = tile.wide - (VECTORS - 1) * S::LANES;
        for i in 0..ROWS {
            for j in 0..VECTORS {
                let count = if j + 1 == VECTORS { last } else { S::LANES };
                let to = c.add(i * step + j * S::LANES);
                let before = if adds { S::load(to, count) } else { S::splat(0.0) };
                S::store(to, S::add(sums[i][j], before), count);
            }
        }
    }
}
