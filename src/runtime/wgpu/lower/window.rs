//! Sliding windows of convolutions and pools, in three dimensions whatever the node has.

use super::{Node, Outcome};
use crate::onnx::infer::Window;

/// Spatial axes z, y, x; those a node lacks have size 1.
pub const AXES: usize = 3;

/// Windows over the spatial axes of a tensor.
pub struct Windows {
    pub kernel: [usize; AXES],
    pub stride: [i32; AXES],
    pub dilation: [i32; AXES],
    /// Padding before the first element.
    pub begin: [i32; AXES],
    /// Padding after the last element, as declared.
    pub end: [i32; AXES],
}

/// The last axes of `values`, filled up with `fill` in front.
pub fn spatial<T: Copy>(values: &[T], fill: T) -> [T; AXES] {
    let mut out = [fill; AXES];
    out.iter_mut().rev().zip(values.iter().rev()).for_each(|(to, &from)| *to = from);
    out
}

impl Windows {
    /// Windows over a tensor of spatial sizes `dense`, one for each element of `coarse`. For transposed convolutions
    /// `dense` is the output.
    pub fn of(node: &Node, kernel: &[usize], dense: &[usize], coarse: &[usize]) -> Outcome<Self> {
        let n = dense.len();
        if n == 0 || n > AXES || coarse.len() != n {
            return Err(format!("{n} spatial dimensions are not supported on the GPU (1 to 3 are)"));
        }
        let unfit = "its kernel, strides, dilations or pads don't fit its input";
        let window = Window::of(node, kernel, n).ok_or(unfit)?;
        let mode = node.str("auto_pad").unwrap_or("NOTSET");
        let given = node.op == "ConvTranspose" && node.ints("output_shape").is_some();
        let (mut begin, mut end) = (window.pad[..n].to_vec(), window.pad[n..].to_vec());
        for i in 0..n {
            if mode == "VALID" {
                (begin[i], end[i]) = (0, 0);
            } else if mode.starts_with("SAME") || given {
                let extent = (window.kernel[i] as i64 - 1) * window.dilation[i] as i64 + 1;
                let grown = node.ints("output_padding").and_then(|p| p.get(i)).copied().unwrap_or(0);
                let cover = window.stride[i] as i64 * (coarse[i] as i64 - 1) + extent + grown;
                let total = (cover - dense[i] as i64).max(0);
                // The odd element goes to the end for SAME_UPPER.
                begin[i] = if mode == "SAME_UPPER" { total / 2 } else { total - total / 2 };
                end[i] = total - begin[i];
            }
        }
        let small = |v: &[i64]| -> Vec<i32> { v.iter().map(|&p| p as i32).collect() };
        let sizes = |v: &[usize]| -> Vec<i32> { v.iter().map(|&p| p as i32).collect() };
        Ok(Windows {
            kernel: spatial(&window.kernel, 1),
            stride: spatial(&sizes(&window.stride), 1),
            dilation: spatial(&sizes(&window.dilation), 1),
            begin: spatial(&small(&begin), 0),
            end: spatial(&small(&end), 0),
        })
    }
    /// The kernel's elements, row-major.
    pub fn elements(&self) -> impl Iterator<Item = [i32; AXES]> + '_ {
        let [kz, ky, kx] = self.kernel;
        (0..kz * ky * kx).map(move |k| [(k / (ky * kx)) as i32, (k / kx % ky) as i32, (k % kx) as i32])
    }
}
