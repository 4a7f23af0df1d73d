//! Convolutions of every stride, dilation, padding and group, and their transposes: sums over sliding windows.
//!
//! Both become [`Sum`]s, see `shaders/window.wgsl`. A transposed convolution is one for each residue of its stride:
//! output elements of one residue see the same taps, so nothing is scattered and no tap is wasted.

use super::sums::{Lattice, Sum, dot};
use super::tiles::TILE;
use super::window::{AXES, Windows, spatial};
use super::{Elem, Lowering, Node, Operand, Outcome, Row, expect_f32, linear, reduce};
use crate::runtime::wgpu::view::row_major;

pub const TABLE: &[Row] = &[("Conv", conv), ("ConvTranspose", conv_transpose)];

/// An image's stride, then those of the spatial axes times `step`.
fn steps(strides: &[i32], step: &[i32; AXES]) -> [i32; 1 + AXES] {
    let s: [i32; AXES] = spatial(&strides[2..], 0);
    [strides[0], s[0] * step[0], s[1] * step[1], s[2] * step[2]]
}

/// Checks that a weight has the input's rank, and the group count.
fn groups_of(node: &Node, x: &Operand, w: &Operand) -> Outcome<usize> {
    expect_f32(x)?;
    expect_f32(w)?;
    let group = usize::try_from(node.int_or("group", 1)).ok().filter(|&g| g > 0).ok_or("group is below 1")?;
    if x.view.rank() < 3 || w.view.rank() != x.view.rank() {
        return Err("the weight's and the input's dimensions don't fit".into());
    }
    Ok(group)
}

fn with_bias(l: &mut Lowering, node: &Node, y: Operand) -> Outcome {
    let y = match l.optional(node, 2)? {
        Some(bias) => {
            let shape: Vec<usize> =
                (0..y.view.rank() - 1).map(|i| if i == 0 { bias.view.len() } else { 1 }).collect();
            let bias = l.reshape(&bias, &shape)?;
            l.map_f32("{0} + {1}", &[&y, &bias])?
        }
        None => y,
    };
    l.set(node, 0, y)
}

/// Whether every window is one element, and each image fills the tiles of a matrix product but for a seventh.
fn is_product(windows: &Windows, x: &Operand, shape: &[usize]) -> bool {
    let places: usize = shape[2..].iter().product();
    let single = windows.elements().count() == 1 && windows.stride == [1; AXES] && windows.begin == [0; AXES];
    let filled = 7 * places.next_multiple_of(2 * TILE) <= 8 * places;
    single && x.view.shape[2..] == shape[2..] && places.is_multiple_of(4) && filled
}

/// `w · x` at every place of every image, `w` of outputs × inputs.
fn pointwise(l: &mut Lowering, w: &Operand, x: &Operand, shape: &[usize]) -> Outcome<Operand> {
    let image = l.reshape(x, &[shape[0], x.view.shape[1], shape[2..].iter().product()])?;
    let y = linear::product(l, w, &image)?;
    l.reshape(&y, shape)
}

/// The input of a grouped convolution before it was copied so that groups and their channels are one dimension, where it was:
/// sums tell them apart, so they needn't lie evenly. Its view has a dimension of each. (Gradients of grouped weights exchange
/// images and channels.)
fn before_copy(l: &Lowering, x: &Operand, groups: usize, inputs: usize) -> Option<Operand> {
    let from = l.copied_from(x)?;
    let (shape, strides) = (&from.view.shape, &from.view.strides);
    let split = shape.len() == x.view.rank() + 1
        && shape[..3] == [x.view.shape[0], groups, inputs]
        && shape[3..] == x.view.shape[2..]
        && strides[3..] == x.view.strides[2..];
    split.then_some(from)
}

fn conv(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, w) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let groups = groups_of(node, &x, &w)?;
    let shape = l.out_shape(node, 0)?;
    let (inputs, rows) = (w.view.shape[1], w.view.shape[0] / groups);
    if x.view.shape[1] != inputs * groups || shape.len() != x.view.rank() || w.view.shape[0] != rows * groups
    {
        return Err("channels, groups and the weight's shape don't fit".into());
    }
    let windows = Windows::of(node, &w.view.shape[2..], &x.view.shape[2..], &shape[2..])?;
    if groups == 1 && is_product(&windows, &x, &shape) {
        let w = l.reshape(&w, &[rows, inputs])?;
        let y = pointwise(l, &w, &x, &shape)?;
        return with_bias(l, node, y);
    }
    let (sizes, mut x_strides) = (spatial(&x.view.shape[2..], 1), x.view.strides.clone());
    let (mut x, mut x_group) = (x, inputs as i32 * x_strides[1]);
    if let Some(from) = before_copy(l, &x, groups, inputs) {
        x_strides = from.view.strides.clone();
        x_group = x_strides.remove(1);
        x = from;
    }
    let (xs, ws) = (spatial(&x_strides[2..], 0), spatial(&w.view.strides[2..], 0));
    let taps = Lattice {
        channels: inputs,
        counts: windows.kernel,
        w_first: 0,
        w_channel: w.view.strides[1],
        w_strides: ws,
        x_channel: x_strides[1],
        x_strides: xs,
        first: [0; AXES],
        step: windows.dilation,
    };
    let strides = row_major(&shape);
    let first = windows.begin.map(|b| -b);
    let sum = Sum {
        x: &x,
        w: &w,
        rows,
        groups,
        taps,
        images: shape[0],
        windows: spatial(&shape[2..], 1),
        w_steps: [w.view.strides[0], rows as i32 * w.view.strides[0]],
        x_base: x.view.offset + dot(&first, &xs),
        x_group,
        y_base: 0,
        y_steps: [strides[1], rows as i32 * strides[1]],
        sizes,
        first,
        step: windows.stride,
        x_strides: steps(&x_strides, &windows.stride),
        y_strides: steps(&strides, &[1; AXES]),
    };
    let y = emit_all(l, &[sum], &shape)?;
    with_bias(l, node, y)
}

/// The tensor of `shape` that the sums fill together.
fn emit_all(l: &mut Lowering, sums: &[Sum<'_>], shape: &[usize]) -> Outcome<Operand> {
    let parts = sums.iter().map(Sum::parts).min().unwrap_or(1);
    let y = l.fresh(Elem::F32, &[&[parts], shape].concat())?;
    for sum in sums {
        sum.emit(l, &y, parts, shape.iter().product())?;
    }
    // The parts are added in order, so the result is the same every time.
    let y = if parts == 1 { y } else { reduce::over(l, "ReduceSum", &y, &[0])? };
    l.reshape(&y, shape)
}

/// Output element `i` along an axis sees the inputs `j` with `i = j · stride + k · dilation − begin`: for `i = residue +
/// stride · o`, those taps `k` for which `(residue + begin − k · dilation) / stride` is whole, at that place plus `o`.
fn conv_transpose(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, w) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let groups = groups_of(node, &x, &w)?;
    let shape = l.out_shape(node, 0)?;
    let (inputs, rows) = (w.view.shape[0] / groups, w.view.shape[1]);
    if x.view.shape[1] != w.view.shape[0] || shape.len() != x.view.rank() || shape[1] != rows * groups {
        return Err("channels, groups and the weight's shape don't fit".into());
    }
    let windows = Windows::of(node, &w.view.shape[2..], &shape[2..], &x.view.shape[2..])?;
    if groups == 1 && is_product(&windows, &x, &shape) {
        let w = l.reshape(&w, &[inputs, rows])?;
        let y = pointwise(l, &linear::transposed(w), &x, &shape)?;
        return with_bias(l, node, y);
    }
    let (xs, ws) = (spatial(&x.view.strides[2..], 0), spatial(&w.view.strides[2..], 0));
    let strides = row_major(&shape);
    let (out, ys) = (spatial(&shape[2..], 1), spatial(&strides[2..], 0));
    let stride = windows.stride;
    let mut sums = vec![];
    for residue in residues(&stride) {
        let count =
            [0, 1, 2].map(|i| (out[i] as i32 - residue[i] + stride[i] - 1).div_euclid(stride[i]).max(0));
        let axes = [0, 1, 2].map(|i| Reach::of(&windows, i, residue[i]));
        let taps = Lattice {
            channels: inputs,
            counts: axes.map(|a| a.count),
            w_first: dot(&axes.map(|a| a.first), &ws),
            w_channel: w.view.strides[0],
            w_strides: [0, 1, 2].map(|i| axes[i].step * ws[i]),
            x_channel: x.view.strides[1],
            x_strides: xs,
            first: axes.map(|a| a.place),
            step: axes.map(|a| a.apart),
        };
        let sum = Sum {
            x: &x,
            w: &w,
            rows,
            groups,
            taps,
            images: shape[0],
            windows: count.map(|n| n as usize),
            w_steps: [w.view.strides[1], inputs as i32 * w.view.strides[0]],
            x_base: x.view.offset,
            x_group: inputs as i32 * x.view.strides[1],
            y_base: dot(&residue, &ys),
            y_steps: [strides[1], rows as i32 * strides[1]],
            sizes: spatial(&x.view.shape[2..], 1),
            first: [0; AXES],
            step: [1; AXES],
            x_strides: steps(&x.view.strides, &[1; AXES]),
            y_strides: steps(&strides, &stride),
        };
        sums.push(sum);
    }
    let y = emit_all(l, &sums, &shape)?;
    with_bias(l, node, y)
}

/// The taps along an axis that outputs of one residue see.
#[derive(Clone, Copy)]
struct Reach {
    count: usize,
    /// The first one, and how far the next is from it.
    first: i32,
    step: i32,
    /// Where the first one looks, and how far from there the next.
    place: i32,
    apart: i32,
}

impl Reach {
    fn of(windows: &Windows, axis: usize, residue: i32) -> Self {
        let (stride, dilation) = (windows.stride[axis], windows.dilation[axis]);
        let reach = |k: i32| residue + windows.begin[axis] - k * dilation;
        let mut seen = (0..windows.kernel[axis] as i32).filter(|&k| reach(k) % stride == 0);
        let first = seen.next();
        // They repeat after the least step that is a whole number of strides.
        let step = (1..=stride).find(|step| step * dilation % stride == 0).unwrap_or(stride);
        Reach {
            count: first.map_or(0, |_| 1 + seen.count()),
            first: first.unwrap_or(0),
            step,
            place: first.map_or(0, reach) / stride,
            apart: -(step * dilation / stride),
        }
    }
}

/// All positions below `stride`.
fn residues(stride: &[i32; AXES]) -> Vec<[i32; AXES]> {
    let [sz, sy, sx] = *stride;
    let mut all = vec![];
    for z in 0..sz {
        for y in 0..sy {
            all.extend((0..sx).map(|x| [z, y, x]));
        }
    }
    all
}
