//! AVX-512: 32 registers of 16 numbers.

use super::{Blocks, MAX_LANES, Simd, compiled};
use crate::product::micro::{self, Tile};
use crate::product::source::{self, Source};
use std::arch::x86_64::*;
use std::ops::Range;

pub struct Avx512;

fn mask(count: usize) -> u16 {
    u16::MAX >> (16 - count)
}

impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const MAX_ROWS: &[usize] = &[1, 14, 12, 8];
    // A block of B and what is read meanwhile fit a second cache of 1 MiB.
    const BLOCKS: Blocks = Blocks { depths: 256, rows: 256, columns: 960, near_b: false };

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat(value: f32) -> __m512 {
        _mm512_set1_ps(value)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, sum)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const f32, count: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { if count == 16 { _mm512_loadu_ps(from) } else { _mm512_maskz_loadu_ps(mask(count), from) } }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn load_halves(low: *const f32, high: *const f32) -> __m512 {
        // SAFETY: the caller's.
        let (low, high) = unsafe { (_mm256_loadu_ps(low), _mm256_loadu_ps(high)) };
        _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn gather(base: *const f32, offsets: *const u32, count: usize) -> __m512 {
        let mask = mask(count);
        // SAFETY: the caller's.
        unsafe {
            let offsets = _mm512_maskz_loadu_epi32(mask, offsets.cast());
            _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, offsets, base)
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(to: *mut f32, vector: __m512, count: usize) {
        // SAFETY: the caller's.
        unsafe {
            if count == 16 {
                _mm512_storeu_ps(to, vector);
            } else {
                _mm512_mask_storeu_ps(to, mask(count), vector);
            }
        }
    }

    /// First in fours of numbers, then fours of fours.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn transpose(rows: &mut [__m512; MAX_LANES]) {
        let mut pairs = *rows;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        // In `fours[4 i + j]`, quarter q: column 4 q + j of rows 4 i to 4 i + 3.
        let mut fours = pairs;
        for i in 0..4 {
            for (j, from) in [(0, 0), (2, 1)] {
                let (upper, lower) = (pairs[4 * i + from], pairs[4 * i + from + 2]);
                fours[4 * i + j] = _mm512_shuffle_ps::<0x44>(upper, lower);
                fours[4 * i + j + 1] = _mm512_shuffle_ps::<0xEE>(upper, lower);
            }
        }
        for j in 0..4 {
            let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
            let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
            let (even_below, odd_below) =
                (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xDD>(c, d));
            rows[j] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
            rows[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
            rows[8 + j] = _mm512_shuffle_f32x4::<0xDD>(even, even_below);
            rows[12 + j] = _mm512_shuffle_f32x4::<0xDD>(odd, odd_below);
        }
    }

    compiled! { Avx512:
        #[target_feature(enable = "avx512f,avx512dq")]
        1: 1 2 3; 2: 1 2 3; 3: 1 2 3; 4: 1 2 3; 5: 1 2 3; 6: 1 2 3; 7: 1 2 3; 8: 1 2 3;
        9: 1 2; 10: 1 2; 11: 1 2; 12: 1 2;
        13: 1; 14: 1;
    }
}
