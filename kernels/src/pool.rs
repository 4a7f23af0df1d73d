//! The gradient of max-pooling, a plane at a time.

use crate::{Axis, Vectors};
use std::ops::Range;

/// Windows over a plane: down it, and along its rows.
pub struct Pool {
    down: Axis,
    along: Axis,
    /// Whether equal maxima share a window's cotangent; else the first of them gets it.
    shared: bool,
    /// The elements that windows see down the plane and along its rows.
    lines: Vec<Seen>,
    columns: Vec<Seen>,
    /// Those that the processor has.
    pub(crate) vectors: Vectors,
}

/// What a window sees of an axis, with steps of the dilation.
struct Seen {
    range: Range<usize>,
    step: usize,
}

impl Seen {
    /// Window `o` of an axis.
    fn new(axis: &Axis, o: usize) -> Self {
        let padded = (0..axis.kernel).map(|k| o * axis.stride + k * axis.dilation);
        let mut seen = padded.filter_map(|at| at.checked_sub(axis.begin)).filter(|&at| at < axis.dense);
        let first = seen.next();
        let last = seen.next_back().or(first);
        let range = first.zip(last).map_or(0..0, |(first, last)| first..last + 1);
        Self { range, step: axis.dilation }
    }
}

impl Pool {
    pub fn new(down: Axis, along: Axis, shared: bool) -> Self {
        let seen = |axis: &Axis| (0..axis.coarse).map(|o| Seen::new(axis, o)).collect();
        Self { lines: seen(&down), columns: seen(&along), down, along, shared, vectors: Vectors::here() }
    }
    /// Elements of a plane of the dense side.
    pub fn dense(&self) -> usize {
        self.down.dense * self.along.dense
    }
    /// Elements of a plane of the coarse side.
    pub fn coarse(&self) -> usize {
        self.down.coarse * self.along.coarse
    }

    /// The cotangent of planes `x` whose windows have the maxima `y` with cotangents `dy`
    /// ([ONNX MaxPool](https://onnx.ai/onnx/operators/onnx__MaxPool.html)): each goes to the elements of its window that equal the
    /// maximum.
    pub fn gradient(&self, x: &[f32], y: &[f32], dy: &[f32], dx: &mut [f32]) {
        let pairs = |axis: &Axis| (axis.kernel, axis.stride, axis.dilation, axis.begin) == (2, 2, 1, 0);
        let full = |axis: &Axis| 2 * axis.coarse == axis.dense;
        let axes = [&self.down, &self.along];
        if self.shared && axes.into_iter().all(|axis| pairs(axis) && full(axis)) {
            return match self.vectors {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the processor has what the function is compiled for.
                Vectors::Avx2 | Vectors::Avx512 => unsafe {
                    two_by_two_wide(self.along.coarse, [x, y, dy], dx)
                },
                _ => two_by_two(self.along.coarse, [x, y, dy], dx),
            };
        }
        let (dense, coarse) = (self.dense(), self.coarse());
        let planes = x.chunks_exact(dense).zip(y.chunks_exact(coarse)).zip(dy.chunks_exact(coarse));
        for (((x, y), dy), dx) in planes.zip(dx.chunks_exact_mut(dense)) {
            self.plane(x, y, dy, dx);
        }
    }

    fn plane(&self, x: &[f32], y: &[f32], dy: &[f32], dx: &mut [f32]) {
        dx.fill(0.0);
        let width = self.along.dense;
        let windows =
            self.lines.iter().flat_map(|lines| self.columns.iter().map(move |columns| (lines, columns)));
        for (((lines, columns), &maximum), &cotangent) in windows.zip(y).zip(dy) {
            // Calls for each winner, until one says that it is enough.
            let each = |visit: &mut dyn FnMut(usize) -> bool| {
                for line in lines.range.clone().step_by(lines.step) {
                    for column in columns.range.clone().step_by(columns.step) {
                        let at = line * width + column;
                        if x[at] == maximum && !visit(at) {
                            return;
                        }
                    }
                }
            };
            let mut winners = 0u32;
            if self.shared {
                each(&mut |_| {
                    winners += 1;
                    true
                });
            }
            let share = if self.shared { cotangent / winners as f32 } else { cotangent };
            each(&mut |at| {
                dx[at] += share;
                self.shared
            });
        }
    }
}

/// The commonest of all: windows of two by two, side by side, `coarse` in a row; equal maxima share. Without a branch, since nobody
/// can foretell who wins.
#[inline(always)]
fn two_by_two(coarse: usize, [x, y, dy]: [&[f32]; 3], dx: &mut [f32]) {
    let width = 2 * coarse;
    let rows = x.chunks_exact(2 * width).zip(dx.chunks_exact_mut(2 * width));
    for ((x, dx), (y, dy)) in rows.zip(y.chunks_exact(coarse).zip(dy.chunks_exact(coarse))) {
        let (upper, lower) = x.split_at(width);
        let x = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
        let (upper, lower) = dx.split_at_mut(width);
        let dx = upper.as_chunks_mut::<2>().0.iter_mut().zip(lower.as_chunks_mut::<2>().0);
        for (((x, dx), &y), &dy) in x.zip(dx).zip(y).zip(dy) {
            let won = [x.0[0], x.0[1], x.1[0], x.1[1]].map(|v| u32::from(v == y));
            let share = (dy / (won[0] + won[1] + won[2] + won[3]) as f32).to_bits();
            let part = won.map(|won| f32::from_bits(won.wrapping_neg() & share));
            (*dx.0, *dx.1) = ([part[0], part[1]], [part[2], part[3]]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn two_by_two_wide(coarse: usize, from: [&[f32]; 3], dx: &mut [f32]) {
    two_by_two(coarse, from, dx);
}
