//! Operands of products, and how they are packed.

use super::simd::{MAX_LANES, Simd, announce};
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

    /// Writes lines as panels of `width`, each depth by depth, and anything for lines that aren't there.
    ///
    /// # Panics
    /// Where there is no room.
    ///
    /// # Safety
    /// They must have been [checked](Operand::check). The processor must have the vectors.
    pub(super) unsafe fn pack<S: Simd>(
        &self,
        lines: Range<usize>,
        depths: Range<usize>,
        width: usize,
        to: &mut [f32],
    ) {
        assert!(to.len() >= lines.len().div_ceil(width) * width * depths.len());
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Matrix(matrix) => S::pack(matrix, lines, depths, width, to),
                Self::Patches(patches) => S::pack(patches, lines, depths, width, to),
            }
        }
    }
}

/// How the elements of an operand are read.
pub trait Source {
    /// Whether elements of neighbouring lines, rather than depths, are best read together.
    fn across(&self) -> bool;

    /// Panics where there aren't so many lines and depths.
    fn check(&self, lines: usize, depths: usize);

    /// Elements from one on, of the next lines if [`across`](Source::across), else of the next depths; zeros after the first `count`.
    ///
    /// # Safety
    /// They must have been [checked](Source::check). The processor must have the vectors.
    unsafe fn vector<S: Simd>(&self, line: usize, depth: usize, count: usize) -> S::Vector;

    /// Tells the processor that an element is read soon, should there be such a one.
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
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, line: usize, depth: usize, count: usize) -> S::Vector {
        let first = line * self.line + depth * self.depth;
        // SAFETY: the caller's.
        unsafe { S::load(self.elements.as_ptr().add(first), count) }
    }
    #[inline(always)]
    fn announce(&self, line: usize, depth: usize) {
        announce(self.elements.as_ptr().wrapping_add(line * self.line + depth * self.depth));
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
    /// How many offsets from each one on follow each other by one, up to the widest vector.
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
                runs[i - 1] = (runs[i] + 1).min(MAX_LANES as u8);
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
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, line: usize, depth: usize, count: usize) -> S::Vector {
        let (place, tap) = self.at(line, depth);
        // SAFETY: the caller's: places and taps are as many as checked, and no sum of offsets is beyond the image.
        unsafe {
            let base = self.image.as_ptr().add(*self.taps.offsets.get_unchecked(tap) as usize);
            let offsets = self.places.offsets.as_ptr().add(place);
            let runs = self.places.runs.as_ptr().add(place);
            let (run, half) = (usize::from(*runs), S::LANES / 2);
            let first = base.add(*offsets as usize);
            if run >= count {
                return S::load(first, count);
            }
            if run == half && count == S::LANES && usize::from(*runs.add(half)) >= half {
                return S::load_halves(first, base.add(*offsets.add(half) as usize));
            }
            S::gather(base, offsets, count)
        }
    }
}

/// What [`Operand::pack`] is for one kind of operand.
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn pack<S: Simd>(
    source: &impl Source,
    lines: Range<usize>,
    depths: Range<usize>,
    width: usize,
    to: &mut [f32],
) {
    // SAFETY: the caller's.
    unsafe {
        match source.across() {
            true => copy::<S>(source, lines, depths, width, to),
            false => turn::<S>(source, lines, depths, width, to),
        }
    }
}

/// Depths that are copied side by side: what is read for one panel is next to what is read for the one after.
const SIDE_BY_SIDE: usize = 8;

/// # Safety
/// As [`pack`]'s.
#[inline(always)]
unsafe fn copy<S: Simd>(
    source: &impl Source,
    lines: Range<usize>,
    depths: Range<usize>,
    width: usize,
    to: &mut [f32],
) {
    let panel = width * depths.len();
    for first in depths.clone().step_by(SIDE_BY_SIDE) {
        let some = first..depths.end.min(first + SIDE_BY_SIDE);
        for (line, to) in lines.clone().step_by(width).zip(to.chunks_exact_mut(panel)) {
            let wide = width.min(lines.end - line);
            let to = &mut to[(first - depths.start) * width..];
            assert!((some.len() - 1) * width + wide <= to.len());
            for (i, depth) in some.clone().enumerate() {
                // SAFETY: the caller's; there is room, as asserted.
                unsafe {
                    let row = to.as_mut_ptr().add(i * width);
                    if width <= S::LANES {
                        // What follows in the panel is written later. Whole vectors are faster.
                        let most = if i * width + S::LANES <= to.len() { S::LANES } else { wide };
                        S::store(row, source.vector::<S>(line, depth, wide), most);
                        source.announce(line, depth + SIDE_BY_SIDE);
                        continue;
                    }
                    for at in (0..wide).step_by(S::LANES) {
                        let count = S::LANES.min(wide - at);
                        S::store(row.add(at), source.vector::<S>(line + at, depth, count), count);
                        source.announce(line + at, depth + SIDE_BY_SIDE);
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`pack`]'s.
#[inline(always)]
unsafe fn turn<S: Simd>(
    source: &impl Source,
    lines: Range<usize>,
    depths: Range<usize>,
    width: usize,
    to: &mut [f32],
) {
    let panel = width * depths.len();
    for (line, to) in lines.clone().step_by(width).zip(to.chunks_exact_mut(panel.max(1))) {
        let end = lines.end.min(line + width);
        for (at, line) in (line..end).step_by(S::LANES).enumerate() {
            let count = S::LANES.min(end - line);
            for depth in depths.clone().step_by(S::LANES) {
                let deep = S::LANES.min(depths.end - depth);
                let to = &mut to[(depth - depths.start) * width + at * S::LANES..];
                // As above.
                let spills = width <= S::LANES && (deep - 1) * width + S::LANES <= to.len();
                let most = if spills { S::LANES } else { count };
                assert!((deep - 1) * width + most <= to.len());
                // SAFETY: the caller's; there is room, as asserted.
                unsafe {
                    let mut vectors = [S::splat(0.0); MAX_LANES];
                    for i in 0..S::LANES {
                        if i < count {
                            vectors[i] = source.vector::<S>(line + i, depth, deep);
                            source.announce(line + count + i, depth);
                        }
                    }
                    S::transpose(&mut vectors);
                    for i in 0..S::LANES {
                        if i < deep {
                            S::store(to.as_mut_ptr().add(i * width), vectors[i], most);
                        }
                    }
                }
            }
        }
    }
}
