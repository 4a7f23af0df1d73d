//! Operands of products, and how they are packed.

use super::micro::LANES;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

/// An operand: rows of A or columns of B are its lines, along which its depths are summed over.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    Matrix(Matrix<'a>),
    Patches(Patches<'a>),
}

impl Operand<'_> {
    /// Panics where there aren't so many lines and depths.
    pub fn check(&self, lines: usize, depths: usize) {
        match self {
            Self::Matrix(matrix) => matrix.check(lines, depths),
            Self::Patches(patches) => patches.check(lines, depths),
        }
    }

    /// Writes lines as panels of `width`, each depth by depth. They must have been [checked](Operand::check); lines that aren't
    /// there are left as they are.
    pub fn pack(&self, lines: Range<usize>, depths: Range<usize>, width: usize, to: &mut [f32]) {
        match self {
            Self::Matrix(matrix) => pack(matrix, lines, depths, width, to),
            Self::Patches(patches) => pack(patches, lines, depths, width, to),
        }
    }
}

/// How the elements of an operand are read.
pub(super) trait Source {
    /// Whether elements of neighbouring lines, rather than depths, are best read together.
    fn across(&self) -> bool;

    /// Panics where there aren't so many lines and depths.
    fn check(&self, lines: usize, depths: usize);

    fn element(&self, line: usize, depth: usize) -> f32;

    /// Elements from one on, of the next lines if [`across`](Source::across), else of the next depths; zeros after the first `count`.
    ///
    /// # Safety
    /// They must have been [checked](Source::check). The processor must have AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn vector(&self, line: usize, depth: usize, count: usize) -> __m512;

    /// Tells the processor that an element is read soon, should there be such a one.
    #[cfg(target_arch = "x86_64")]
    fn announce(&self, _line: usize, _depth: usize) {}
}

/// A matrix in memory: from one line to the next, and from one depth to the next; one of the two is 1.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub elements: &'a [f32],
    pub line: usize,
    pub depth: usize,
}

impl Source for Matrix<'_> {
    fn across(&self) -> bool {
        self.line == 1
    }
    fn check(&self, lines: usize, depths: usize) {
        assert!(self.line == 1 || self.depth == 1);
        let last = (lines.max(1) - 1) * self.line + (depths.max(1) - 1) * self.depth;
        assert!(lines * depths == 0 || last < self.elements.len());
    }
    fn element(&self, line: usize, depth: usize) -> f32 {
        self.elements[line * self.line + depth * self.depth]
    }
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn vector(&self, line: usize, depth: usize, count: usize) -> __m512 {
        let first = line * self.line + depth * self.depth;
        // SAFETY: the caller's.
        unsafe { load(self.elements.as_ptr().add(first), count) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn announce(&self, line: usize, depth: usize) {
        let element = self.elements.as_ptr().wrapping_add(line * self.line + depth * self.depth);
        // SAFETY: no address is wrong to announce.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(element.cast()) };
    }
}

/// Images unfolded: element (place, tap) is that at the sum of their offsets, so that every window's elements are those of its
/// place and all taps.
#[derive(Clone, Copy)]
pub struct Patches<'a> {
    pub image: &'a [f32],
    pub places: &'a Offsets,
    pub taps: &'a Offsets,
    /// Whether places are the lines and taps the depths.
    pub places_are_lines: bool,
}

/// Offsets into an image.
pub struct Offsets {
    offsets: Vec<u32>,
    /// How many offsets from each one on follow each other by one, up to a vector.
    runs: Vec<u8>,
}

impl Offsets {
    /// # Panics
    /// Where an offset is beyond what processors gather by.
    pub fn new(offsets: impl IntoIterator<Item = usize>) -> Self {
        let offsets: Vec<u32> =
            offsets.into_iter().map(|o| i32::try_from(o).expect("too large an image") as u32).collect();
        let mut runs = vec![1u8; offsets.len()];
        for i in (1..offsets.len()).rev() {
            if offsets[i - 1] + 1 == offsets[i] {
                runs[i - 1] = (runs[i] + 1).min(LANES as u8);
            }
        }
        Self { offsets, runs }
    }
    pub fn len(&self) -> usize {
        self.offsets.len()
    }
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }
}

impl Patches<'_> {
    fn at(&self, line: usize, depth: usize) -> (usize, usize) {
        if self.places_are_lines { (line, depth) } else { (depth, line) }
    }
}

impl Source for Patches<'_> {
    fn across(&self) -> bool {
        self.places_are_lines
    }
    fn check(&self, lines: usize, depths: usize) {
        let (places, taps) = self.at(lines, depths);
        let largest = |offsets: &[u32]| offsets.iter().max().map_or(0, |&offset| offset as usize);
        let last = largest(&self.places.offsets[..places]) + largest(&self.taps.offsets[..taps]);
        assert!(last < self.image.len() || lines * depths == 0);
    }
    fn element(&self, line: usize, depth: usize) -> f32 {
        let (place, tap) = self.at(line, depth);
        self.image[self.places.offsets[place] as usize + self.taps.offsets[tap] as usize]
    }
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn vector(&self, line: usize, depth: usize, count: usize) -> __m512 {
        let (place, tap) = self.at(line, depth);
        // SAFETY: the caller's: places and taps are as many as checked, and no sum of offsets is beyond the image.
        unsafe {
            let base = self.image.as_ptr().add(*self.taps.offsets.get_unchecked(tap) as usize);
            let offsets = self.places.offsets.as_ptr().add(place);
            let run = usize::from(*self.places.runs.get_unchecked(place));
            let first = base.add(*offsets as usize);
            if run >= count {
                return load(first, count);
            }
            if run == 8 && count == LANES && *self.places.runs.get_unchecked(place + 8) >= 8 {
                let second = base.add(*offsets.add(8) as usize);
                let low = _mm512_castps256_ps512(_mm256_loadu_ps(first));
                return _mm512_insertf32x8::<1>(low, _mm256_loadu_ps(second));
            }
            let mask = mask(count);
            let offsets = _mm512_maskz_loadu_epi32(mask, offsets.cast());
            _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, offsets, base)
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn mask(count: usize) -> u16 {
    u16::MAX >> (LANES - count)
}

/// # Safety
/// There must be `count` elements, at most a vector.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(first: *const f32, count: usize) -> __m512 {
    // SAFETY: the caller's.
    unsafe { if count == LANES { _mm512_loadu_ps(first) } else { _mm512_maskz_loadu_ps(mask(count), first) } }
}

fn pack(source: &impl Source, lines: Range<usize>, depths: Range<usize>, width: usize, to: &mut [f32]) {
    let panel = width * depths.len();
    assert!(to.len() >= lines.len().div_ceil(width) * panel);
    #[cfg(target_arch = "x86_64")]
    if super::is_fast() {
        // SAFETY: the processor has what the functions are compiled for.
        return unsafe {
            match source.across() {
                true => copy(source, lines, depths, width, to),
                false => turn(source, lines, depths, width, to),
            }
        };
    }
    pack_anywhere(source, lines, depths, width, to);
}

/// The same on any processor.
pub(super) fn pack_anywhere(
    source: &impl Source,
    lines: Range<usize>,
    depths: Range<usize>,
    width: usize,
    to: &mut [f32],
) {
    let panel = width * depths.len();
    for (line, to) in lines.clone().step_by(width).zip(to.chunks_exact_mut(panel.max(1))) {
        for (depth, to) in depths.clone().zip(to.chunks_exact_mut(width)) {
            for (line, to) in (line..lines.end).zip(to) {
                *to = source.element(line, depth);
            }
        }
    }
}

/// Depths that are copied side by side: what is read for one panel is next to what is read for the one after.
#[cfg(target_arch = "x86_64")]
const SIDE_BY_SIDE: usize = 8;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn copy(source: &impl Source, lines: Range<usize>, depths: Range<usize>, width: usize, to: &mut [f32]) {
    let panel = width * depths.len();
    for first in depths.clone().step_by(SIDE_BY_SIDE) {
        let some = first..depths.end.min(first + SIDE_BY_SIDE);
        for (line, to) in lines.clone().step_by(width).zip(to.chunks_exact_mut(panel)) {
            let end = lines.end.min(line + width);
            let to = &mut to[(first - depths.start) * width..];
            for (depth, to) in some.clone().zip(to.chunks_exact_mut(width)) {
                for (line, to) in (line..end).step_by(LANES).zip(to.chunks_mut(LANES)) {
                    let count = LANES.min(end - line);
                    // SAFETY: checked; `to` has as many elements.
                    unsafe { store(to, source.vector(line, depth, count), count) };
                    source.announce(line, depth + SIDE_BY_SIDE);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn turn(source: &impl Source, lines: Range<usize>, depths: Range<usize>, width: usize, to: &mut [f32]) {
    let panel = width * depths.len();
    for (line, to) in lines.clone().step_by(width).zip(to.chunks_exact_mut(panel.max(1))) {
        let end = lines.end.min(line + width);
        for (at, line) in (line..end).step_by(LANES).enumerate() {
            let count = LANES.min(end - line);
            for depth in depths.clone().step_by(LANES) {
                let deep = LANES.min(depths.end - depth);
                let mut vectors = [_mm512_setzero_ps(); LANES];
                for i in 0..LANES {
                    if i < count {
                        // SAFETY: checked.
                        vectors[i] = unsafe { source.vector(line + i, depth, deep) };
                        source.announce(line + count + i, depth);
                    }
                }
                transpose(&mut vectors);
                let to = &mut to[(depth - depths.start) * width + at * LANES..];
                assert!((deep - 1) * width + count <= to.len());
                for i in 0..LANES {
                    if i < deep {
                        // SAFETY: asserted.
                        unsafe { store(to.get_unchecked_mut(i * width..), vectors[i], count) };
                    }
                }
            }
        }
    }
}

/// # Safety
/// There must be `count` elements, at most a vector.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(to: &mut [f32], vector: __m512, count: usize) {
    debug_assert!(count <= to.len());
    // SAFETY: the caller's.
    unsafe {
        if count == LANES {
            _mm512_storeu_ps(to.as_mut_ptr(), vector);
        } else {
            _mm512_mask_storeu_ps(to.as_mut_ptr(), mask(count), vector);
        }
    }
}

/// Rows become columns: first in fours of numbers, then fours of fours.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512; LANES]) {
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
