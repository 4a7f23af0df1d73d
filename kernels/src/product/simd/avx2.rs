//! AVX2 with FMA: 16 registers of 8 numbers.

use super::{Blocks, MAX_LANES, SMALL_BLOCKS, Simd, compiled};
use crate::product::micro::{self, Tile};
use crate::product::source::{self, Source};
use std::arch::x86_64::*;
use std::ops::Range;

pub struct Avx2;

/// All bits of the first `count` lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn mask(count: usize) -> __m256i {
    const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    let from = &ONES_THEN_ZEROS[8 - count..][..8];
    // SAFETY: eight numbers.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    const MAX_ROWS: &[usize] = &[1, 14, 6];
    const BLOCKS: Blocks = SMALL_BLOCKS;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn splat(value: f32) -> __m256 {
        _mm256_set1_ps(value)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn mul_add(a: __m256, b: __m256, sum: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, sum)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(from: *const f32, count: usize) -> __m256 {
        // SAFETY: the caller's.
        unsafe { if count == 8 { _mm256_loadu_ps(from) } else { _mm256_maskload_ps(from, mask(count)) } }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_halves(low: *const f32, high: *const f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu2_m128(high, low) }
    }
    /// One by one: many processors take longer for the instruction that gathers.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn gather(base: *const f32, offsets: *const u32, count: usize) -> __m256 {
        // SAFETY: the caller's.
        let at = |i: usize| unsafe { *base.add(*offsets.add(i) as usize) };
        if count == 8 {
            return _mm256_setr_ps(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
        }
        let mut elements = [0.0; 8];
        for i in 0..count {
            elements[i] = at(i);
        }
        // SAFETY: eight numbers.
        unsafe { _mm256_loadu_ps(elements.as_ptr()) }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(to: *mut f32, vector: __m256, count: usize) {
        // SAFETY: the caller's.
        unsafe {
            if count == 8 {
                _mm256_storeu_ps(to, vector);
            } else {
                _mm256_maskstore_ps(to, mask(count), vector);
            }
        }
    }

    /// First in fours of numbers, then halves change places.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn transpose(rows: &mut [__m256; MAX_LANES]) {
        // In `fours[4 i + j]`, half h: column 4 h + j of rows 4 i to 4 i + 3.
        let mut fours = [_mm256_setzero_ps(); 8];
        for i in [0, 4] {
            let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
            let (low, low_below) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (high, high_below) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            fours[i] = _mm256_shuffle_ps::<0x44>(low, low_below);
            fours[i + 1] = _mm256_shuffle_ps::<0xEE>(low, low_below);
            fours[i + 2] = _mm256_shuffle_ps::<0x44>(high, high_below);
            fours[i + 3] = _mm256_shuffle_ps::<0xEE>(high, high_below);
        }
        for j in 0..4 {
            rows[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
            rows[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
        }
    }

    compiled! { Avx2:
        #[target_feature(enable = "avx2,fma")]
        1: 1 2; 2: 1 2; 3: 1 2; 4: 1 2; 5: 1 2; 6: 1 2;
        7: 1; 8: 1; 9: 1; 10: 1; 11: 1; 12: 1; 13: 1; 14: 1;
    }
}
