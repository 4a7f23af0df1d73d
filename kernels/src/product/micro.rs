//! The innermost loop: a tile of the result, held in registers, from packed panels of both operands.

/// Elements of a vector.
pub const LANES: usize = 16;
/// Vectors in a row of a tile at most.
pub const MAX_VECTORS: usize = 3;
/// Rows of a tile at most, by the vectors in each: with those of B and one of A they fit 32 registers.
pub const MAX_ROWS: [usize; MAX_VECTORS + 1] = [1, 14, 12, 8];

/// Whether the loop is written for this processor. Elsewhere other libraries' are faster.
pub fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A tile of `high` rows and `wide` columns, from panels of `height` rows and `width` columns a depth.
pub struct Tile<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub height: usize,
    pub width: usize,
    pub high: usize,
    pub wide: usize,
}

/// Writes (or adds) the tile to `c`, in rows that are `step` apart.
///
/// # Safety
/// The tile's elements must be there, and nobody else's meanwhile.
pub unsafe fn multiply(tile: &Tile<'_>, c: *mut f32, step: usize, adds: bool) {
    assert!(tile.a.len() / tile.height == tile.b.len() / tile.width && tile.high <= tile.height);
    assert!(tile.wide.next_multiple_of(LANES) <= tile.width);
    #[cfg(target_arch = "x86_64")]
    if is_fast() {
        // SAFETY: the processor has what the functions are compiled for; the rest is the caller's.
        return unsafe { wide::multiply(tile, c, step, adds) };
    }
    // SAFETY: the caller's.
    unsafe { multiply_anywhere(tile, c, step, adds) }
}

/// The same on any processor.
///
/// # Safety
/// As above.
pub unsafe fn multiply_anywhere(tile: &Tile<'_>, c: *mut f32, step: usize, adds: bool) {
    for i in 0..tile.high {
        for j in 0..tile.wide {
            let depths = tile.a.chunks_exact(tile.height).zip(tile.b.chunks_exact(tile.width));
            let sum: f32 = depths.map(|(a, b)| a[i] * b[j]).sum();
            // SAFETY: the caller's.
            let to = unsafe { &mut *c.add(i * step + j) };
            *to = if adds { *to + sum } else { sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{LANES, Tile};
    use std::arch::x86_64::*;

    /// # Safety
    /// As [`super::multiply`]'s, and the processor must have AVX-512.
    pub unsafe fn multiply(tile: &Tile<'_>, c: *mut f32, step: usize, adds: bool) {
        macro_rules! choose {
            ($($rows:literal: $($vectors:literal)*;)*) => {
                match (tile.high, tile.wide.div_ceil(LANES)) {
                    // SAFETY: the caller's.
                    $($(($rows, $vectors) => unsafe { rows::<$rows, $vectors>(tile, c, step, adds) },)*)*
                    shape => unreachable!("no tiles of {shape:?}"),
                }
            };
        }
        choose! {
            1: 1 2 3; 2: 1 2 3; 3: 1 2 3; 4: 1 2 3; 5: 1 2 3; 6: 1 2 3; 7: 1 2 3; 8: 1 2 3;
            9: 1 2; 10: 1 2; 11: 1 2; 12: 1 2;
            13: 1; 14: 1;
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn rows<const ROWS: usize, const VECTORS: usize>(
        tile: &Tile<'_>,
        c: *mut f32,
        step: usize,
        adds: bool,
    ) {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for (a, b) in tile.a.chunks_exact(tile.height).zip(tile.b.chunks_exact(tile.width)) {
            debug_assert!(a.len() >= ROWS && b.len() >= VECTORS * LANES);
            let mut vectors = [_mm512_setzero_ps(); VECTORS];
            for j in 0..VECTORS {
                // SAFETY: panels are as wide as their tiles' vectors.
                vectors[j] = unsafe { _mm512_loadu_ps(b.as_ptr().add(j * LANES)) };
            }
            for i in 0..ROWS {
                // SAFETY: panels are as high as their tiles.
                let value = _mm512_set1_ps(unsafe { *a.get_unchecked(i) });
                for j in 0..VECTORS {
                    sums[i][j] = _mm512_fmadd_ps(value, vectors[j], sums[i][j]);
                }
            }
        }
        let last = u16::MAX >> (VECTORS * LANES - tile.wide);
        for i in 0..ROWS {
            for j in 0..VECTORS {
                let mask = if j + 1 == VECTORS { last } else { u16::MAX };
                // SAFETY: the caller's; of the last vector only what belongs to the tile.
                unsafe {
                    let to = c.add(i * step + j * LANES);
                    let before = if adds { _mm512_maskz_loadu_ps(mask, to) } else { _mm512_setzero_ps() };
                    _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(sums[i][j], before));
                }
            }
        }
    }
}
