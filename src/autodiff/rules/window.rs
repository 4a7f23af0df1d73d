//! The geometry of sliding windows, as the gradients of convolution and pooling need it.
//!
//! Everything follows from the sizes on both sides of the node, so that `auto_pad`, `ceil_mode` and rows that no
//! window reaches need no cases of their own. See [`Geometry`].

use super::Context;
use crate::error::{Error, Result};
use crate::onnx::infer::Window;
use crate::onnx::{Builder, ValueId};

/// Windows sliding over the spatial axes of one tensor (`dense`, the input of a convolution), one window for each
/// position of another (`coarse`, its output).
pub struct Geometry {
    pub kernel: Vec<usize>,
    pub stride: Vec<usize>,
    pub dilation: Vec<usize>,
    /// Padding before the first element; see [`Geometry::end`] for the other side.
    pub begin: Vec<i64>,
    /// Padding after the last element as the node declares it (or as `auto_pad` implies).
    pub declared_end: Vec<i64>,
    pub dense: Vec<usize>,
    pub coarse: Vec<usize>,
}

impl Geometry {
    /// Reads the attributes of the node, for spatial sizes `dense` and `coarse`.
    pub fn of(c: &Context<'_>, kernel: &[usize], dense: &[usize], coarse: &[usize]) -> Result<Self> {
        let n = dense.len();
        let unfit = || Error::node(c.node, "its kernel, strides, dilations or pads don't fit its input");
        let window = Window::of(c.node, kernel, n).filter(|_| coarse.len() == n).ok_or_else(unfit)?;
        let mut geometry = Geometry {
            kernel: window.kernel,
            stride: window.stride,
            dilation: window.dilation,
            begin: window.pad[..n].to_vec(),
            declared_end: window.pad[n..].to_vec(),
            dense: dense.to_vec(),
            coarse: coarse.to_vec(),
        };
        let mode = c.node.str("auto_pad").unwrap_or("NOTSET");
        let reversed = c.node.is("ConvTranspose");
        if mode.starts_with("SAME") || (reversed && c.node.ints("output_shape").is_some()) {
            let grown = |i: usize| c.node.ints("output_padding").and_then(|p| p.get(i)).copied().unwrap_or(0);
            for i in 0..n {
                let total = (geometry.cover(i) + grown(i) - dense[i] as i64).max(0);
                // The odd element goes to the end for SAME_UPPER; transposed convolutions default to the beginning.
                let small = total / 2;
                geometry.begin[i] = if mode == "SAME_UPPER" { small } else { total - small };
                geometry.declared_end[i] = total - geometry.begin[i];
            }
        } else if mode == "VALID" {
            geometry.begin.fill(0);
            geometry.declared_end.fill(0);
        }
        Ok(geometry)
    }
    pub fn rank(&self) -> usize {
        self.kernel.len()
    }
    /// Elements a window spans along axis `i`, gaps included.
    pub fn extent(&self, i: usize) -> i64 {
        (self.kernel[i] as i64 - 1) * self.dilation[i] as i64 + 1
    }
    /// Elements from the start of the first window to the end of the last.
    pub fn cover(&self, i: usize) -> i64 {
        self.stride[i] as i64 * (self.coarse[i] as i64 - 1) + self.extent(i)
    }
    /// Padding after the last element so that the windows end exactly there; negative where some elements at the
    /// end are in no window.
    pub fn end(&self, i: usize) -> i64 {
        self.cover(i) - self.dense[i] as i64 - self.begin[i]
    }
    /// Whether no element is in two windows.
    pub fn disjoint(&self) -> bool {
        (0..self.rank()).all(|i| self.stride[i] as i64 >= self.extent(i))
    }
    /// `[begins…, ends…]` with ends cut at zero, as a convolution's `pads`.
    pub fn pads(&self) -> Vec<i64> {
        self.begin.iter().copied().chain((0..self.rank()).map(|i| self.end(i).max(0))).collect()
    }
    /// `x` (spatial axes from `first` on) without the elements at its end that no window reaches.
    pub fn crop(&self, b: &mut Builder, x: &ValueId, first: usize) -> ValueId {
        let cut: Vec<usize> = (0..self.rank()).filter(|&i| self.end(i) < 0).collect();
        if cut.is_empty() {
            return x.clone();
        }
        let ends: Vec<i64> = cut.iter().map(|&i| self.dense[i] as i64 + self.end(i)).collect();
        let axes: Vec<i64> = cut.iter().map(|&i| (first + i) as i64).collect();
        b.slice(x, &vec![0; cut.len()], &ends, &axes)
    }
    /// The offsets of the taps of a window along the given axes, row-major.
    pub fn taps(&self, axes: std::ops::Range<usize>) -> Vec<Vec<i64>> {
        let mut taps = vec![vec![]];
        for i in axes {
            let offsets = (0..self.kernel[i]).map(|k| (k * self.dilation[i]) as i64);
            taps = taps.iter().flat_map(|t| offsets.clone().map(move |o| [&t[..], &[o]].concat())).collect();
        }
        taps
    }
    /// Of a padded tensor whose spatial axes `axes` start at `first`: the elements that tap `offsets` of every
    /// window sees.
    pub fn tap(&self, b: &mut Builder, padded: &ValueId, first: usize, offsets: &[i64]) -> ValueId {
        let shape = b.shape(padded);
        let n = offsets.len();
        let ends: Vec<i64> =
            (0..n).map(|i| offsets[i] + (self.stride[i] * (self.coarse[i] - 1)) as i64 + 1).collect();
        if (0..n).all(|i| offsets[i] == 0 && self.stride[i] == 1 && ends[i] == shape[first + i] as i64) {
            return padded.clone();
        }
        let axes: Vec<i64> = (0..n).map(|i| (first + i) as i64).collect();
        let steps: Vec<i64> = self.stride[..n].iter().map(|&s| s as i64).collect();
        let (starts, ends, axes, steps) = (b.ints(offsets), b.ints(&ends), b.ints(&axes), b.ints(&steps));
        b.op("Slice", &[padded, &starts, &ends, &axes, &steps])
    }
    /// `x` with zeros around its first `n` spatial axes, which start at `first`, so that all windows fit.
    pub fn pad(&self, b: &mut Builder, x: &ValueId, first: usize, n: usize) -> ValueId {
        let rank = b.rank(x);
        let mut pads = vec![0; 2 * rank];
        for i in 0..n {
            pads[first + i] = self.begin[i];
            pads[rank + first + i] = self.end(i).max(0);
        }
        if pads.iter().all(|&p| p == 0) {
            return x.clone();
        }
        let pads = b.ints(&pads);
        b.op("Pad", &[x, &pads])
    }
}
