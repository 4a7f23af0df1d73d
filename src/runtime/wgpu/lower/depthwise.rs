//! Sums over sliding windows that need no table of taps: those of depthwise convolutions, whose windows or taps are few and whose
//! text is written out for them. See `shaders/conv_depthwise.wgsl` and `shaders/conv_depthwise_weight.wgsl`.
//!
//! Knows no nodes. Look at [`Depthwise`].

use super::sums::Sum;
use super::window::AXES;
use super::{GROUP, Lowering, Operand, kernel};

/// Elements of a kernel at most: what its sums take is written out.
const MAX_KERNEL: usize = 49;
/// Elements of an image at most that an invocation holds.
const MAX_HELD: usize = 100;
/// Outputs, or taps, that an invocation takes at once: the first of these that all are full with; the first rather than fewer
/// outputs than [`FEW`].
const DOWN: [usize; 7] = [4, 7, 6, 5, 3, 2, 1];
const FEW: usize = 3;
/// Workgroups that keep a GPU busy; where there are fewer, long sums are split.
const BUSY: usize = 2048;

/// How an invocation goes along the rows of an image.
#[derive(Clone, Copy, PartialEq)]
pub struct Depthwise {
    /// Whether windows are few and taps are many: the gradient of weights.
    of_weight: bool,
    /// Outputs, or taps, below each other that it takes at once.
    down: usize,
    /// Elements of a kernel along y and x: taps, or windows.
    kernel: [usize; 2],
    /// Rows of the image from one output (or tap) to the next, and from one of the kernel's elements to the next.
    step: i32,
    apart: i32,
    /// Where the first and, along y, the uppermost of the kernel's elements looks.
    top: i32,
    /// Whether the kernel's last row is the uppermost in the image.
    upwards: bool,
}

/// Along y and x.
const YX: [usize; 2] = [1, 2];

impl Depthwise {
    /// `None` where the sums are not of this form. `deep`: few outputs of many taps.
    pub fn of(sum: &Sum<'_>, deep: bool) -> Option<Self> {
        let taps = &sum.taps;
        let flat = sum.windows[0] == 1 && taps.counts[0] == 1 && !sum.hidden(0, 0, taps.first[0]);
        let fits = if deep { sum.images == 1 } else { taps.channels == 1 };
        if !flat || !fits || sum.taps.len() == 0 || sum.sizes.contains(&0) {
            return None;
        }
        let (kernel, many) = match deep {
            true => (YX.map(|i| sum.windows[i]), taps.counts[1]),
            false => (YX.map(|i| taps.counts[i]), sum.windows[1]),
        };
        let (step, apart) = if deep { (taps.step[1], sum.step[1]) } else { (sum.step[1], taps.step[1]) };
        if step < 0 || kernel[0] * kernel[1] > MAX_KERNEL {
            return None;
        }
        let last = (kernel[0] as i32 - 1) * apart;
        let form = |down: usize| Depthwise {
            of_weight: deep,
            down,
            kernel,
            step,
            apart: apart.abs(),
            top: sum.first[1] + taps.first[1] + last.min(0),
            upwards: apart < 0,
        };
        let held = || DOWN.into_iter().map(form).filter(|form| form.reach() * kernel[1] <= MAX_HELD);
        let full = held().find(|form| many.is_multiple_of(form.down));
        // An output too many is left out, a tap can't be.
        full.filter(|form| deep || form.down >= many.min(FEW)).or_else(|| held().next())
    }
    /// Rows of the image that what an invocation takes at once sees.
    fn reach(&self) -> usize {
        (self.down - 1) * self.step as usize + (self.kernel[0] - 1) * self.apart as usize + 1
    }
    /// Parts that the sums are cut into.
    pub fn parts(&self, sum: &Sum<'_>) -> usize {
        match self.of_weight {
            true => (BUSY / (sum.groups * sum.rows).max(1)).min(self.blocks(sum) / GROUP).max(1),
            false => 1,
        }
    }
    /// Blocks of taps that an invocation takes at once.
    fn blocks(&self, sum: &Sum<'_>) -> usize {
        sum.taps.len() / self.down
    }
    /// Adds the dispatch; see [`Sum::emit`].
    pub fn emit(&self, l: &mut Lowering, sum: &Sum<'_>, y: &Operand, parts: usize, part_stride: usize) {
        let values = [
            ("down", self.down),
            ("tall", self.kernel[0]),
            ("wide", self.kernel[1]),
            ("step", self.step as usize),
            ("apart", self.apart as usize),
            ("reach", self.reach()),
        ];
        let values = values.map(|(name, value)| (name, value.to_string()));
        let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
        let reads = [sum.w, sum.x];
        if self.of_weight {
            let groups = parts * sum.groups * sum.rows;
            let params = self.weight_params(sum, parts, part_stride);
            l.call(kernel::CONV_DEPTHWISE_WEIGHT, &values, params, &reads, &[y], groups);
        } else {
            let columns = sum.windows[1].div_ceil(self.down) * sum.windows[2];
            let groups = (sum.images * sum.groups * sum.rows * columns).div_ceil(GROUP);
            l.call(kernel::CONV_DEPTHWISE, &values, self.params(sum), &reads, &[y], groups);
        }
    }
    /// The words of `shaders/conv_depthwise.wgsl`.
    fn params(&self, sum: &Sum<'_>) -> Vec<i32> {
        let int = |v: usize| v as i32;
        let taps = &sum.taps;
        let mut params = vec![int(sum.images), int(sum.groups), int(sum.rows)];
        params.extend(YX.map(|i| int(sum.windows[i])));
        let mut w_strides = YX.map(|i| taps.w_strides[i]);
        let mut w_first = sum.w.view.offset + taps.w_first;
        if self.upwards {
            w_first += (int(self.kernel[0]) - 1) * w_strides[0];
            w_strides[0] = -w_strides[0];
        }
        params.extend([w_first, sum.w_steps[1], sum.w_steps[0], w_strides[0], w_strides[1]]);
        params.extend([self.origin(sum), sum.x_strides[0], sum.x_group]);
        params.extend(YX.map(|i| taps.x_strides[i]));
        params.extend(YX.map(|i| int(sum.sizes[i])));
        params.extend([self.top, sum.first[2] + taps.first[2], sum.step[2], taps.step[2]]);
        let [image, _, down, across] = sum.y_strides;
        params.extend([sum.y_base, image, sum.y_steps[1], sum.y_steps[0], down, across]);
        params
    }
    /// The words of `shaders/conv_depthwise_weight.wgsl`.
    fn weight_params(&self, sum: &Sum<'_>, parts: usize, part_stride: usize) -> Vec<i32> {
        let int = |v: usize| v as i32;
        let taps = &sum.taps;
        let mut params = vec![int(sum.rows), int(sum.groups), int(parts)];
        params.extend([int(self.blocks(sum).div_ceil(parts)), int(taps.channels)]);
        params.extend(YX.map(|i| int(taps.counts[i])));
        params.extend([sum.w.view.offset + taps.w_first, sum.w_steps[1], sum.w_steps[0], taps.w_channel]);
        params.extend(YX.map(|i| taps.w_strides[i]));
        params.extend([self.origin(sum), sum.x_group, taps.x_channel]);
        params.extend(YX.map(|i| taps.x_strides[i]));
        params.extend(YX.map(|i| int(sum.sizes[i])));
        params.extend([self.top, sum.first[2] + taps.first[2], taps.step[2], sum.step[2]]);
        let (mut first, [_, _, mut down, across]) = (sum.y_base, sum.y_strides);
        if self.upwards {
            first += (int(self.kernel[0]) - 1) * down;
            down = -down;
        }
        params.extend([first, int(part_stride), sum.y_steps[1], sum.y_steps[0], down, across]);
        params
    }
    /// Where X's element at place 0, 0 of the first image and group lies.
    fn origin(&self, sum: &Sum<'_>) -> i32 {
        let xs = &sum.taps.x_strides;
        let z = sum.first[0] + sum.taps.first[0];
        sum.x_base - (0..AXES).map(|i| sum.first[i] * xs[i]).sum::<i32>() + z * xs[0]
    }
}
