//! Arrays, which compilers make vectors of where they know the processor to have any.

use super::{Blocks, MAX_LANES, SMALL_BLOCKS, Simd, compiled};
use crate::product::micro::{self, Tile};
use crate::product::source::{self, Source};
use std::array::from_fn;
use std::ops::Range;

pub struct Plain;

impl Simd for Plain {
    type Vector = [f32; 4];
    const LANES: usize = 4;
    const MAX_ROWS: &[usize] = &[1, 6, 4];
    const BLOCKS: Blocks = SMALL_BLOCKS;

    #[inline]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }
    #[inline]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], sum: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] * b[i] + sum[i])
    }
    #[inline]
    unsafe fn load(from: *const f32, count: usize) -> [f32; 4] {
        // SAFETY: the caller's.
        from_fn(|i| if i < count { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline]
    unsafe fn load_halves(low: *const f32, high: *const f32) -> [f32; 4] {
        // SAFETY: the caller's.
        unsafe { [*low, *low.add(1), *high, *high.add(1)] }
    }
    #[inline]
    unsafe fn gather(base: *const f32, offsets: *const u32, count: usize) -> [f32; 4] {
        // SAFETY: the caller's.
        from_fn(|i| if i < count { unsafe { *base.add(*offsets.add(i) as usize) } } else { 0.0 })
    }
    #[inline]
    unsafe fn store(to: *mut f32, vector: [f32; 4], count: usize) {
        for i in 0..count {
            // SAFETY: the caller's.
            unsafe { *to.add(i) = vector[i] };
        }
    }
    #[inline]
    unsafe fn transpose(rows: &mut [[f32; 4]; MAX_LANES]) {
        let before = *rows;
        for i in 0..4 {
            rows[i] = from_fn(|j| before[j][i]);
        }
    }

    compiled! { Plain:
        1: 1 2; 2: 1 2; 3: 1 2; 4: 1 2;
        5: 1; 6: 1;
    }
}
