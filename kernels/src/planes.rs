//! Convolutions of one plane by one kernel, as depthwise convolutions and their gradients are made of.
//!
//! With Y the coarse side and X the dense one, `y[o] = Σ_k w[k] · x[o·stride + k·dilation − begin]` along both axes
//! ([ONNX Conv](https://onnx.ai/onnx/operators/onnx__Conv.html)). Rows of X are laid out by their residues modulo the
//! stride, with the padding written out, so that whatever the stride and dilation a tap reads as many neighbouring elements
//! as there are outputs in a row. With a stride of one down the image the rows lie one after the other, and all of them are one
//! long row whose gaps nobody looks at.

use crate::Vectors;

/// Elements worked on at once.
const LANES: usize = 16;
/// Taps whose sums are held in registers at once.
const TAPS: usize = 4;

/// Calls a function below in the form for these vectors.
macro_rules! dispatch {
    ($vectors:expr, $function:ident($($argument:expr),*)) => {
        match $vectors {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 | Vectors::Avx512 => {
                // SAFETY: the processor has what the function is compiled for.
                unsafe { wide::$function($($argument),*) }
            }
            _ => $function::<{ cfg!(target_arch = "aarch64") }>($($argument),*),
        }
    };
}

/// One axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    pub dense: usize,
    pub coarse: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub begin: usize,
}

impl Axis {
    /// Padded elements that some window sees.
    pub(crate) fn seen(&self) -> usize {
        (self.coarse.max(1) - 1) * self.stride + (self.kernel.max(1) - 1) * self.dilation + 1
    }
}

/// Planes of one geometry: down the image, and along its rows.
pub struct Planes {
    down: Axis,
    along: Axis,
    /// From a row of the laid out image to the next, and from one residue of a row to the next.
    pitch: usize,
    phase: usize,
    /// Spans of neighbouring outputs: their number, their length in whole lanes, and from one to the next in the image and in
    /// the laid out outputs.
    spans: usize,
    span: usize,
    image_step: usize,
    /// From one row of outputs to the next, laid out.
    output_pitch: usize,
    /// Where each tap of the kernel begins to read.
    taps: Vec<usize>,
    /// Those that the processor has.
    pub(crate) vectors: Vectors,
}

/// Room for one plane of each side, laid out.
#[derive(Default)]
pub struct Room {
    image: Vec<f32>,
    outputs: Vec<f32>,
}

impl Planes {
    pub fn new(down: Axis, along: Axis) -> Self {
        let phase = along.seen().div_ceil(along.stride);
        let pitch = along.stride * phase;
        // Rows next to each other are one span.
        let whole = down.stride == 1 && along.stride == 1;
        let (spans, span, output_pitch) = match whole {
            true => (1, (down.coarse.max(1) - 1) * pitch + along.coarse, pitch),
            false => (down.coarse, along.coarse, along.coarse.next_multiple_of(LANES)),
        };
        let offset =
            |axis: &Axis, k: usize| (k * axis.dilation % axis.stride, k * axis.dilation / axis.stride);
        let rows = (0..down.kernel).map(|k| k * down.dilation * pitch);
        let taps = rows
            .flat_map(|row| {
                (0..along.kernel).map(move |k| {
                    let (residue, place) = offset(&along, k);
                    row + residue * phase + place
                })
            })
            .collect();
        let span = span.next_multiple_of(LANES);
        let (image_step, vectors) = (down.stride * pitch, Vectors::here());
        Self { down, along, pitch, phase, spans, span, image_step, output_pitch, taps, vectors }
    }

    /// Planes whose [`convolve`](Planes::convolve) is what [`scatter`](Planes::scatter) is to those of these axes, by the kernel's
    /// elements in reverse order: without a stride there are such, and small planes take half as long so.
    pub fn turned(down: Axis, along: Axis) -> Option<Self> {
        let turned = |axis: Axis| {
            let begin = ((axis.kernel.max(1) - 1) * axis.dilation).checked_sub(axis.begin)?;
            (axis.stride == 1).then_some(Axis { dense: axis.coarse, coarse: axis.dense, begin, ..axis })
        };
        Some(Self::new(turned(down)?, turned(along)?))
    }

    /// Elements of a plane of the dense side.
    pub fn dense(&self) -> usize {
        self.down.dense * self.along.dense
    }
    /// Elements of a plane of the coarse side.
    pub fn coarse(&self) -> usize {
        self.down.coarse * self.along.coarse
    }
    /// Elements of a kernel.
    pub fn kernel(&self) -> usize {
        self.taps.len()
    }

    /// Zeros for a plane of the dense side, with what the last span's lanes reach beyond it.
    fn clear_image(&self, image: &mut Vec<f32>) {
        image.clear();
        image.resize(self.down.seen() * self.pitch + self.span, 0.0);
    }
    fn clear_outputs(&self, outputs: &mut Vec<f32>) {
        outputs.clear();
        outputs.resize(self.spans.max(1) * self.span, 0.0);
    }

    /// For each row of the dense side that windows see: where it begins in a plane, and where laid out.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let (begin, seen) = (self.down.begin, self.down.seen());
        let visible = (0..self.down.dense).filter(move |row| row + begin < seen);
        visible.map(move |row| (row * self.along.dense, (row + begin) * self.pitch))
    }
    /// How many elements of a row windows see, from its first.
    fn visible(&self) -> usize {
        self.along.dense.min(self.along.seen().saturating_sub(self.along.begin))
    }

    /// For each residue of the padded axis that a row has: its first such element, and where that is in the laid out row.
    fn residues(&self) -> impl Iterator<Item = (usize, usize)> {
        let (stride, begin) = (self.along.stride, self.along.begin);
        let first =
            move |first: usize| (first, (begin + first) % stride * self.phase + (begin + first) / stride);
        (0..stride.min(self.visible())).map(first)
    }

    fn lay_out(&self, x: &[f32], image: &mut Vec<f32>) {
        self.clear_image(image);
        let visible = self.visible();
        for (from, to) in self.rows() {
            let row = &x[from..from + visible];
            for (first, at) in self.residues() {
                let (row, to) = (&row[first..], &mut image[to + at..]);
                match self.along.stride {
                    1 => copy(row, to),
                    2 => {
                        let (pairs, rest) = row.as_chunks::<2>();
                        to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair[0]);
                        rest.iter().for_each(|last| to[pairs.len()] = *last);
                    }
                    stride => {
                        to.iter_mut().zip(row.iter().step_by(stride)).for_each(|(to, from)| *to = *from)
                    }
                }
            }
        }
    }

    fn gather(&self, image: &[f32], x: &mut [f32]) {
        x.fill(0.0);
        let visible = self.visible();
        for (to, from) in self.rows() {
            let row = &mut x[to..to + visible];
            for (first, at) in self.residues() {
                let (row, from) = (&mut row[first..], &image[from + at..]);
                match self.along.stride {
                    1 => copy(&from[..row.len()], row),
                    2 => {
                        let (pairs, rest) = row.as_chunks_mut::<2>();
                        pairs.iter_mut().zip(from).for_each(|(pair, from)| pair[0] = *from);
                        rest.iter_mut().for_each(|last| *last = from[pairs.len()]);
                    }
                    stride => row.iter_mut().step_by(stride).zip(from).for_each(|(to, from)| *to = *from),
                }
            }
        }
    }

    fn lay_out_outputs(&self, y: &[f32], outputs: &mut Vec<f32>) {
        self.clear_outputs(outputs);
        for (row, values) in y.chunks_exact(self.along.coarse).enumerate() {
            copy(values, &mut outputs[row * self.output_pitch..]);
        }
    }

    /// `y = w ∗ x + bias`, by every tap for some outputs at a time.
    pub fn convolve(&self, x: &[f32], w: &[f32], bias: f32, y: &mut [f32], room: &mut Room) {
        self.lay_out(x, &mut room.image);
        self.clear_outputs(&mut room.outputs);
        for (span, outputs) in room.outputs.chunks_exact_mut(self.span).enumerate() {
            let image = &room.image[span * self.image_step..];
            dispatch!(self.vectors, convolve(image, &self.taps, w, bias, outputs));
        }
        for (row, values) in y.chunks_exact_mut(self.along.coarse).enumerate() {
            let from = row * self.output_pitch;
            copy(&room.outputs[from..from + values.len()], values);
        }
    }

    /// `x = Σ_k w[k] · y`, the gradient of [`Planes::convolve`] with respect to x: what it does to y is done backwards.
    pub fn scatter(&self, y: &[f32], w: &[f32], bias: f32, x: &mut [f32], room: &mut Room) {
        self.clear_image(&mut room.image);
        self.lay_out_outputs(y, &mut room.outputs);
        for (span, outputs) in room.outputs.chunks_exact(self.span).enumerate() {
            let image = &mut room.image[span * self.image_step..];
            dispatch!(self.vectors, scatter(image, &self.taps, w, outputs));
        }
        self.gather(&room.image, x);
        if bias != 0.0 {
            x.iter_mut().for_each(|value| *value += bias);
        }
    }

    /// `w[k] += Σ_o y[o] · x[o, k]`, the gradient with respect to w.
    pub fn correlate(&self, x: &[f32], y: &[f32], w: &mut [f32], room: &mut Room) {
        self.lay_out(x, &mut room.image);
        self.lay_out_outputs(y, &mut room.outputs);
        let Self { image_step, taps, span, .. } = self;
        dispatch!(self.vectors, correlate(&room.image, *image_step, taps, &room.outputs, *span, w));
    }
}

/// The functions below for processors with AVX2.
#[cfg(target_arch = "x86_64")]
mod wide {
    #[target_feature(enable = "avx2,fma")]
    pub fn convolve(image: &[f32], taps: &[usize], w: &[f32], bias: f32, outputs: &mut [f32]) {
        super::convolve::<true>(image, taps, w, bias, outputs);
    }
    #[target_feature(enable = "avx2,fma")]
    pub fn scatter(image: &mut [f32], taps: &[usize], w: &[f32], outputs: &[f32]) {
        super::scatter::<true>(image, taps, w, outputs);
    }
    #[target_feature(enable = "avx2,fma")]
    pub fn correlate(
        image: &[f32],
        step: usize,
        taps: &[usize],
        outputs: &[f32],
        span: usize,
        w: &mut [f32],
    ) {
        super::correlate::<true>(image, step, taps, outputs, span, w);
    }
}

/// Copies to where there is room. Rows of small planes are too short to call the library for.
#[inline(always)]
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    let to = &mut to[..from.len()];
    if from.len() >= LANES {
        return to.copy_from_slice(from);
    }
    let mut at = 0;
    at += copy_bit::<8>(from, to, at);
    at += copy_bit::<4>(from, to, at);
    at += copy_bit::<2>(from, to, at);
    copy_bit::<1>(from, to, at);
}

/// Copies `N` elements from `at` on if there are as many.
#[inline(always)]
fn copy_bit<const N: usize>(from: &[f32], to: &mut [f32], at: usize) -> usize {
    match (from[at..].first_chunk::<N>(), to[at..].first_chunk_mut::<N>()) {
        (Some(from), Some(to)) => {
            *to = *from;
            N
        }
        _ => 0,
    }
}

type Lanes = [f32; LANES];

/// `a · b + sum`, in one rounding where the processor does that at no cost.
#[inline(always)]
fn add_product<const FUSED: bool>(sum: &mut Lanes, a: &Lanes, b: &Lanes) {
    for lane in 0..LANES {
        sum[lane] = if FUSED { a[lane].mul_add(b[lane], sum[lane]) } else { a[lane] * b[lane] + sum[lane] };
    }
}

#[inline(always)]
fn lanes(values: &[f32], at: usize) -> &Lanes {
    values[at..].first_chunk().unwrap_or(&[0.0; LANES])
}

#[inline(always)]
fn convolve<const FUSED: bool>(image: &[f32], taps: &[usize], w: &[f32], bias: f32, outputs: &mut [f32]) {
    for (at, outputs) in outputs.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sum = [bias; LANES];
        for (&tap, &w) in taps.iter().zip(w) {
            add_product::<FUSED>(&mut sum, lanes(image, tap + at * LANES), &[w; LANES]);
        }
        *outputs = sum;
    }
}

#[inline(always)]
fn scatter<const FUSED: bool>(image: &mut [f32], taps: &[usize], w: &[f32], outputs: &[f32]) {
    for (&tap, &w) in taps.iter().zip(w) {
        let seen = image[tap..].as_chunks_mut::<LANES>().0;
        for (sum, output) in seen.iter_mut().zip(outputs.as_chunks::<LANES>().0) {
            add_product::<FUSED>(sum, output, &[w; LANES]);
        }
    }
}

#[inline(always)]
fn correlate<const FUSED: bool>(
    image: &[f32],
    step: usize,
    taps: &[usize],
    outputs: &[f32],
    span: usize,
    w: &mut [f32],
) {
    for (taps, w) in taps.chunks(TAPS).zip(w.chunks_mut(TAPS)) {
        let mut sums = [[0.0; LANES]; TAPS];
        let mut begin = [0; TAPS];
        begin[..taps.len()].copy_from_slice(taps);
        for outputs in outputs.chunks_exact(span) {
            for (at, output) in outputs.as_chunks::<LANES>().0.iter().enumerate() {
                for (sum, tap) in sums.iter_mut().zip(begin) {
                    add_product::<FUSED>(sum, lanes(image, tap + at * LANES), output);
                }
            }
            begin.iter_mut().for_each(|tap| *tap += step);
        }
        for (w, sum) in w.iter_mut().zip(sums) {
            *w += sum.iter().sum::<f32>();
        }
    }
}
