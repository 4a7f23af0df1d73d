//! Convolutions of many channels as [products](crate::product): images with their padding, in which windows are offsets.
//!
//! With Y the coarse side and X the dense one, `y[o] = Σ_k w[k] · x[o·stride + k·dilation − begin]`
//! ([ONNX Conv](https://onnx.ai/onnx/operators/onnx__Conv.html)), summed over X's channels too.

use crate::Axis;
use crate::planes::copy;
use crate::product::Offsets;

/// Planes laid out with what is around them.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Down a plane, and along its rows.
    size: [usize; 2],
    before: [usize; 2],
    /// With what is around it, or what is seen of it.
    whole: [usize; 2],
}

impl Frame {
    /// Whether planes can be read as they are.
    fn is_bare(&self) -> bool {
        self.before == [0, 0] && self.whole.iter().zip(self.size).all(|(&whole, size)| whole <= size)
    }
    fn pitch(&self) -> usize {
        if self.is_bare() { self.size[1] } else { self.whole[1] }
    }
    fn plane(&self) -> usize {
        if self.is_bare() { self.size[0] * self.size[1] } else { self.whole[0] * self.whole[1] }
    }

    /// Whole planes one after the other, in `room` where they can't be read as they are.
    pub fn lay_out<'a>(&self, planes: &'a [f32], room: &'a mut Vec<f32>) -> &'a [f32] {
        if self.is_bare() {
            return planes;
        }
        let [height, width] = self.size;
        let [top, left] = self.before;
        let (rows, visible) =
            (height.min(self.whole[0].saturating_sub(top)), width.min(self.whole[1].saturating_sub(left)));
        room.clear();
        room.resize(planes.len() / (height * width) * self.plane(), 0.0);
        for (from, to) in planes.chunks_exact(height * width).zip(room.chunks_exact_mut(self.plane())) {
            let to = to.chunks_exact_mut(self.whole[1]).skip(top);
            for (from, to) in from.chunks_exact(width).zip(to).take(rows) {
                copy(&from[..visible], &mut to[left..]);
            }
        }
        room
    }
}

/// The windows of a convolution.
pub struct Windows {
    axes: [Axis; 2],
    channels: usize,
    frame: Frame,
}

impl Windows {
    /// Over images of so many channels on the dense side.
    pub fn new(axes: [Axis; 2], channels: usize) -> Self {
        let frame = Frame {
            size: axes.map(|axis| axis.dense),
            before: axes.map(|axis| axis.begin),
            whole: axes.map(|axis| axis.seen()),
        };
        Self { axes, channels, frame }
    }
    /// How images of the dense side are laid out.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }
    /// Where each window of some images begins.
    pub fn places(&self, images: usize) -> Offsets {
        let [down, along] = self.axes;
        let (pitch, plane) = (self.frame.pitch(), self.frame.plane());
        let of = move |image: usize, row: usize| image * self.channels * plane + row * down.stride * pitch;
        let rows = (0..images).flat_map(move |image| (0..down.coarse).map(move |row| of(image, row)));
        Offsets::new(rows.flat_map(move |row| (0..along.coarse).map(move |o| row + o * along.stride)))
    }
    /// The elements of a window, in the order of weights.
    pub fn taps(&self) -> Offsets {
        let [down, along] = self.axes;
        let (pitch, plane) = (self.frame.pitch(), self.frame.plane());
        let of = move |channel: usize, k: usize| channel * plane + k * down.dilation * pitch;
        let rows = (0..self.channels).flat_map(move |channel| (0..down.kernel).map(move |k| of(channel, k)));
        Offsets::new(rows.flat_map(move |row| (0..along.kernel).map(move |k| row + k * along.dilation)))
    }
}

/// The gradient of a convolution with respect to its dense side: which elements of the coarse side each element of the dense
/// side was part of. Elements in the same position towards the stride have the same taps.
pub struct Scatter {
    axes: [Axis; 2],
    /// On the dense side, then on the coarse one.
    channels: [usize; 2],
    frame: Frame,
    classes: Vec<[Class; 2]>,
}

/// Every `stride`-th element of an axis, and the taps by which windows see them.
#[derive(Clone)]
struct Class {
    first: usize,
    count: usize,
    /// Each with the window that sees the first element by it, which may be one before the first or after the last.
    taps: Vec<(usize, isize)>,
}

impl Class {
    fn all(axis: &Axis) -> Vec<Self> {
        let class = |first: usize| {
            let at = first + axis.begin;
            let taps = (0..axis.kernel).filter(|k| (k * axis.dilation) % axis.stride == at % axis.stride);
            let window = |k: usize| (at as isize - (k * axis.dilation) as isize) / axis.stride as isize;
            Self {
                first,
                count: (axis.dense - first).div_ceil(axis.stride),
                taps: taps.map(|k| (k, window(k))).collect(),
            }
        };
        (0..axis.stride.min(axis.dense)).map(class).collect()
    }
    /// The windows before the first that are asked for, and all with those.
    fn reach(classes: &[Self], axis: &Axis) -> (usize, usize) {
        let seen =
            || classes.iter().flat_map(|class| class.taps.iter().map(|&(_, window)| (window, class.count)));
        let before = seen().map(|(window, _)| -window).max().unwrap_or(0).max(0);
        let end = seen().map(|(window, count)| window + count as isize).max().unwrap_or(0);
        (before as usize, (end.max(axis.coarse as isize) + before) as usize)
    }
}

impl Scatter {
    /// With so many channels on the dense side and the coarse one.
    pub fn new(axes: [Axis; 2], channels: [usize; 2]) -> Self {
        let classes = axes.each_ref().map(Class::all);
        let [(top, height), (left, width)] = [0, 1].map(|i| Class::reach(&classes[i], &axes[i]));
        let frame = Frame { size: axes.map(|axis| axis.coarse), before: [top, left], whole: [height, width] };
        let both = |down: &Class| {
            let pairs = classes[1].iter().map(|along| [down.clone(), along.clone()]);
            pairs.collect::<Vec<_>>()
        };
        let classes = classes[0].iter().flat_map(both).collect();
        Self { axes, channels, frame, classes }
    }
    /// How images of the coarse side are laid out.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }
    pub fn classes(&self) -> usize {
        self.classes.len()
    }
    /// Where elements of a class are in some images of the dense side, from each image's channel on.
    pub fn columns(&self, class: usize, images: usize) -> Vec<usize> {
        let [down, along] = &self.classes[class];
        let [rows, width] = self.axes.map(|axis| axis.dense);
        let image = self.channels[0] * rows * width;
        let row =
            |image: usize, i: usize| image + (down.first + i * self.axes[0].stride) * width + along.first;
        let rows = (0..images).flat_map(|n| (0..down.count).map(move |i| row(n * image, i)));
        rows.flat_map(|row| (0..along.count).map(move |i| row + i * self.axes[1].stride)).collect()
    }
    /// What each of them reads first on the coarse side.
    pub fn places(&self, class: usize, images: usize) -> Offsets {
        let [down, along] = &self.classes[class];
        let (pitch, image) = (self.frame.pitch(), self.channels[1] * self.frame.plane());
        let rows = (0..images).flat_map(|n| (0..down.count).map(move |i| n * image + i * pitch));
        Offsets::new(rows.flat_map(|row| (0..along.count).map(move |i| row + i)))
    }
    /// For all channels of the coarse side and taps of a class: the offset from there, and that of the weight from those of its
    /// channel on the dense side.
    pub fn taps(&self, class: usize) -> [Offsets; 2] {
        let [down, along] = &self.classes[class];
        let (pitch, plane) = (self.frame.pitch(), self.frame.plane());
        let [height, width] = self.axes.map(|axis| axis.kernel);
        let filter = self.channels[0] * height * width;
        let [top, left] = self.frame.before.map(|before| before as isize);
        let taps = || {
            let rows =
                (0..self.channels[1]).flat_map(|channel| down.taps.iter().map(move |&tap| (channel, tap)));
            rows.flat_map(|row| along.taps.iter().map(move |&tap| (row, tap)))
        };
        let coarse = taps().map(|((channel, (_, i)), (_, j))| {
            channel * plane + (i + top) as usize * pitch + (j + left) as usize
        });
        let weights = taps().map(|((channel, (i, _)), (j, _))| channel * filter + i * width + j);
        [Offsets::new(coarse), Offsets::new(weights)]
    }
    /// The weights of each channel of the dense side.
    pub fn filters(&self) -> Offsets {
        let [height, width] = self.axes.map(|axis| axis.kernel);
        Offsets::new((0..self.channels[0]).map(|channel| channel * height * width))
    }
}
