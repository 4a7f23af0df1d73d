//! Sampling of images between pixels, at places that are computed: grids, deformable convolution, regions of interest.
//!
//! All read the image by [`Sampler`] at real-valued coordinates, in primitives, so that image and coordinates both get
//! gradients; rounded coordinates pass none.

use super::{Outputs, Row, composed};
use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, DType, Node, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    composed("AffineGrid", affine_grid),
    composed("DeformConv", deform_conv),
    composed("GridSample", grid_sample),
    composed("MaxRoiPool", max_roi_pool),
    composed("RoiAlign", roi_align),
];

fn input(node: &Node, i: usize) -> Result<&ValueId> {
    node.input(i).ok_or_else(|| Error::node(node, format!("input {i} is missing")))
}

/// What lies outside an image.
#[derive(Clone, Copy, PartialEq)]
enum Outside {
    Zeros,
    Border,
    Reflection,
}

/// How values between pixels come about.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// An image as rows of channels, to be read at places.
struct Sampler {
    /// `[images · pixels, channels]`.
    rows: ValueId,
    /// Sizes of the spatial axes.
    spatial: Vec<usize>,
    dtype: DType,
}

impl Sampler {
    /// For `x` of shape `[images, channels, spatial…]`.
    fn of(b: &mut Builder, x: &ValueId) -> Self {
        let shape = b.shape(x);
        let pixels: usize = shape[2..].iter().product();
        let flat = b.reshape(x, &[shape[0], shape[1], pixels]);
        let last = b.transpose(&flat, &[0, 2, 1]);
        let rows = b.reshape(&last, &[shape[0] * pixels, shape[1]]);
        Sampler { rows, spatial: shape[2..].to_vec(), dtype: b.dtype(x) }
    }

    /// `[places…, channels]`: the pixels at whole-numbered (but real-typed) coordinates inside the image.
    /// `image` says which image each place is in.
    fn pixels(&self, b: &mut Builder, image: &ValueId, places: &[ValueId]) -> ValueId {
        let mut at = image.clone();
        for (axis, place) in places.iter().enumerate() {
            at = b.mul_scalar(&at, self.spatial[axis] as f64);
            let place = b.cast(place, DType::I64);
            at = b.add(&at, &place);
        }
        b.op_with("Gather", &[&self.rows, &at], &[("axis", Attr::Int(0))])
    }

    /// `[places…, channels]`: a weighted sum over the neighbours of each place. `corners` gives for each axis the
    /// neighbours' coordinates and weights.
    fn blend(&self, b: &mut Builder, image: &ValueId, corners: &[Vec<(ValueId, ValueId)>]) -> ValueId {
        let mut sum: Option<ValueId> = None;
        for choice in choices(corners) {
            let places: Vec<ValueId> = choice.iter().map(|c| c.0.clone()).collect();
            let mut weight = choice[0].1.clone();
            for (_, factor) in &choice[1..] {
                weight = b.mul(&weight, factor);
            }
            let pixels = self.pixels(b, image, &places);
            let weight = b.unsqueeze(&weight, &[-1]);
            let part = b.mul(&pixels, &weight);
            sum = Some(match sum {
                Some(sum) => b.add(&sum, &part),
                None => part,
            });
        }
        sum.unwrap_or_else(|| b.constant(Tensor::scalar(self.dtype, 0.0)))
    }
}

/// Every way to take one of each.
fn choices(corners: &[Vec<(ValueId, ValueId)>]) -> Vec<Vec<(ValueId, ValueId)>> {
    let mut all = vec![vec![]];
    for axis in corners {
        all = all
            .iter()
            .flat_map(|c| axis.iter().map(move |k| [&c[..], std::slice::from_ref(k)].concat()))
            .collect();
    }
    all
}

/// Numbers `0, 1, …` of images, to broadcast over places of rank `rank` whose first axis is the image.
fn image_numbers(b: &mut Builder, images: usize, rank: usize) -> ValueId {
    let mut shape = vec![1; rank];
    shape[0] = images;
    b.constant(Tensor::i64(&shape, &(0..images as i64).collect::<Vec<_>>()))
}

/// Moves coordinates outside `low…high` inside by mirroring.
fn reflected(b: &mut Builder, x: &ValueId, low: f64, high: f64) -> ValueId {
    let span = high - low;
    if span <= 0.0 {
        let nothing = b.mul_scalar(x, 0.0);
        return b.add_scalar(&nothing, low);
    }
    let shifted = b.add_scalar(x, -low);
    let turns = b.mul_scalar(&shifted, 0.5 / span);
    let turns = b.op("Floor", &[&turns]);
    let whole = b.mul_scalar(&turns, 2.0 * span);
    let phase = b.sub(&shifted, &whole);
    let centred = b.add_scalar(&phase, -span);
    let distance = b.op("Abs", &[&centred]);
    b.scalar_sub(high, &distance)
}

fn clipped(b: &mut Builder, x: &ValueId, low: f64, high: f64) -> ValueId {
    let (low, high) = (b.scalar_like(x, low), b.scalar_like(x, high));
    b.op("Clip", &[x, &low, &high])
}

/// 1 where `low ≤ x ≤ high`, else 0.
fn within(b: &mut Builder, x: &ValueId, low: f64, high: f64) -> ValueId {
    let dtype = b.dtype(x);
    let (low, high) = (b.scalar_like(x, low), b.scalar_like(x, high));
    let (above, below) = (b.op("GreaterOrEqual", &[x, &low]), b.op("LessOrEqual", &[x, &high]));
    let both = b.op("And", &[&above, &below]);
    b.cast(&both, dtype)
}

/// Coordinates (in pixels) of the neighbours along an axis, and their weights.
fn neighbours(
    b: &mut Builder,
    x: &ValueId,
    size: usize,
    (mode, outside, aligned): (Mode, Outside, bool),
) -> Vec<(ValueId, ValueId)> {
    let last = size as f64 - 1.0;
    let (low, high) = if aligned { (0.0, last) } else { (-0.5, last + 0.5) };
    let moved = match outside {
        Outside::Zeros => x.clone(),
        Outside::Border => {
            let inside = within(b, x, low, high);
            let inside = b.cast(&inside, DType::Bool);
            let border = clipped(b, x, 0.0, last);
            b.where_(&inside, x, &border)
        }
        Outside::Reflection => reflected(b, x, low, high),
    };
    let one = b.scalar_like(x, 1.0);
    let weighted: Vec<(ValueId, ValueId)> = match mode {
        Mode::Nearest => {
            let at = b.op("Round", &[&moved]);
            let shape = b.shape(&at);
            vec![(at, b.expand(&one, &shape))]
        }
        Mode::Linear => {
            let at = b.op("Floor", &[&moved]);
            let part = b.sub(&moved, &at);
            let rest = b.scalar_sub(1.0, &part);
            let next = b.add_scalar(&at, 1.0);
            vec![(at, rest), (next, part)]
        }
        Mode::Cubic => {
            let at = b.op("Floor", &[&moved]);
            let part = b.sub(&moved, &at);
            cubic_weights(b, &part)
                .into_iter()
                .enumerate()
                .map(|(k, weight)| (b.add_scalar(&at, k as f64 - 1.0), weight))
                .collect()
        }
    };
    weighted
        .into_iter()
        .map(|(at, weight)| match outside {
            Outside::Zeros => {
                let inside = within(b, &at, 0.0, last);
                (clipped(b, &at, 0.0, last), b.mul(&weight, &inside))
            }
            Outside::Border => (clipped(b, &at, 0.0, last), weight),
            Outside::Reflection => {
                let at = reflected(b, &at, low, high);
                (clipped(b, &at, 0.0, last), weight)
            }
        })
        .collect()
}

/// Cubic convolution with a = −¾ (Keys 1981), for the four neighbours of a place `t` between the middle two.
fn cubic_weights(b: &mut Builder, t: &ValueId) -> Vec<ValueId> {
    const A: f64 = -0.75;
    let polynomial = |b: &mut Builder, t: &ValueId, c: [f64; 4]| {
        let mut sum = b.mul_scalar(t, c[3]);
        for k in (0..3).rev() {
            sum = b.add_scalar(&sum, c[k]);
            if k > 0 {
                sum = b.mul(&sum, t);
            }
        }
        sum
    };
    // |d| ≤ 1: (a+2)d³ − (a+3)d² + 1; 1 < |d| < 2: ad³ − 5ad² + 8ad − 4a.
    let near = [1.0, 0.0, -(A + 3.0), A + 2.0];
    let far = [-4.0 * A, 8.0 * A, -5.0 * A, A];
    let (u, before, after) = (b.scalar_sub(1.0, t), b.add_scalar(t, 1.0), b.scalar_sub(2.0, t));
    vec![
        polynomial(b, &before, far),
        polynomial(b, t, near),
        polynomial(b, &u, near),
        polynomial(b, &after, far),
    ]
}

/// `[images, places…, channels]` as `[images, channels, places…]`.
fn channels_second(b: &mut Builder, v: &ValueId) -> ValueId {
    let rank = b.rank(v);
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    b.transpose(v, &perm)
}

fn grid_sample(b: &mut Builder, node: &Node) -> Outputs {
    let (x, grid) = (input(node, 0)?, input(node, 1)?);
    let mode = match node.str("mode").unwrap_or("linear") {
        "nearest" => Mode::Nearest,
        "linear" | "bilinear" => Mode::Linear,
        "cubic" | "bicubic" => Mode::Cubic,
        other => return Err(Error::node(node, format!("mode '{other}' has no gradient"))),
    };
    let outside = match node.str("padding_mode").unwrap_or("zeros") {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" => Outside::Reflection,
        other => return Err(Error::node(node, format!("padding_mode '{other}' has no gradient"))),
    };
    let aligned = node.int_or("align_corners", 0) != 0;
    let sampler = Sampler::of(b, x);
    let grid = b.cast(grid, sampler.dtype);
    let (shape, axes) = (b.shape(&grid), sampler.spatial.len());
    if shape.last() != Some(&axes) {
        return Err(Error::node(node, format!("its grid has shape {shape:?} for {axes} spatial axes")));
    }
    let places = &shape[..shape.len() - 1];
    let mut corners = vec![];
    for (axis, &size) in sampler.spatial.clone().iter().enumerate() {
        // The grid names the last axis first.
        let k = (axes - 1 - axis) as i64;
        let normal = b.slice(&grid, &[k], &[k + 1], &[shape.len() as i64 - 1]);
        let normal = b.reshape(&normal, places);
        let size_ = size as f64;
        let (scale, shift) = if aligned {
            ((size_ - 1.0) / 2.0, (size_ - 1.0) / 2.0)
        } else {
            (size_ / 2.0, (size_ - 1.0) / 2.0)
        };
        let scaled = b.mul_scalar(&normal, scale);
        let pixel = b.add_scalar(&scaled, shift);
        corners.push(neighbours(b, &pixel, size, (mode, outside, aligned)));
    }
    let image = image_numbers(b, places[0], places.len());
    let sampled = sampler.blend(b, &image, &corners);
    Ok(vec![Some(channels_second(b, &sampled))])
}

/// `grid = positions · θᵀ`, where the positions are a constant.
fn affine_grid(b: &mut Builder, node: &Node) -> Outputs {
    let theta = input(node, 0)?;
    let size = input(node, 1)?;
    let size =
        b.constant_value(size).map(|t| t.to_i64().iter().map(|&d| d.max(0) as usize).collect::<Vec<_>>());
    let size = size.filter(|s| s.len() > 2);
    let size = size.ok_or_else(|| Error::node(node, "has a gradient only where its size is a constant"))?;
    let shape = [&size[..1], &size[2..], &[size.len() - 2]].concat();
    let (axes, dtype) = (shape[shape.len() - 1], b.dtype(theta));
    let sizes = &shape[1..shape.len() - 1];
    let aligned = node.int_or("align_corners", 0) != 0;
    let count: usize = sizes.iter().product();
    let mut positions = vec![];
    for flat in 0..count {
        let mut rest = flat;
        // The last axis, x, comes first, as in the grid.
        for &size in sizes.iter().rev() {
            let (i, n) = ((rest % size) as f64, size as f64);
            rest /= size;
            positions.push(match (aligned, size) {
                (true, 1) => 0.0,
                (true, _) => 2.0 * i / (n - 1.0) - 1.0,
                (false, _) => (2.0 * i + 1.0) / n - 1.0,
            });
        }
        positions.push(1.0);
    }
    let positions = b.constant(Tensor::from_f64(dtype, &[count, axes + 1], &positions));
    let transposed = b.transpose(theta, &[0, 2, 1]);
    let grid = b.matmul(&positions, &transposed);
    Ok(vec![Some(b.reshape(&grid, &shape))])
}

/// Columns of sampled pixels, times the weights (Dai et al. 2017; with masks Zhu et al. 2019).
fn deform_conv(b: &mut Builder, node: &Node) -> Outputs {
    let (x, w, offset) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
    let (xs, ws) = (b.shape(x), b.shape(w));
    // The output is as large as the field of offsets.
    let ys = [&[xs[0], ws[0]], &b.shape(offset)[2..]].concat();
    let (groups, offset_groups) =
        (node.int_or("group", 1).max(1) as usize, node.int_or("offset_group", 1).max(1) as usize);
    let axes = xs.len().saturating_sub(2);
    let (kernel, taps): (Vec<usize>, usize) = (ws[2..].to_vec(), ws[2..].iter().product());
    let window = crate::onnx::infer::Window::of(node, &kernel, axes)
        .ok_or_else(|| Error::node(node, "its kernel, strides, dilations or pads don't fit its input"))?;
    let places: usize = ys[2..].iter().product();
    let per_group = xs[1] / offset_groups;
    let images = xs[0] * offset_groups;
    let split = b.reshape(x, &[&[images, per_group], &xs[2..]].concat());
    let sampler = Sampler::of(b, &split);
    let offset = b.reshape(offset, &[images, taps, axes, places]);
    let mut corners = vec![];
    for (axis, &size) in xs[2..].iter().enumerate() {
        let mut base = vec![];
        for tap in 0..taps {
            let inner: usize = kernel[axis + 1..].iter().product();
            let k = tap / inner % kernel[axis];
            for place in 0..places {
                let inner: usize = ys[axis + 3..].iter().product();
                let o = place / inner % ys[axis + 2];
                base.push(
                    (o * window.stride[axis] + k * window.dilation[axis]) as f64 - window.pad[axis] as f64,
                );
            }
        }
        let base = b.constant(Tensor::from_f64(sampler.dtype, &[1, taps, places], &base));
        let moved = b.slice(&offset, &[axis as i64], &[axis as i64 + 1], &[2]);
        let moved = b.reshape(&moved, &[images, taps, places]);
        let pixel = b.add(&base, &moved);
        corners.push(neighbours(b, &pixel, size, (Mode::Linear, Outside::Zeros, true)));
    }
    let image = image_numbers(b, images, 3);
    // [images, taps, places, channels]
    let mut sampled = sampler.blend(b, &image, &corners);
    if let Some(mask) = node.input(4) {
        let mask = b.reshape(mask, &[images, taps, places, 1]);
        sampled = b.mul(&sampled, &mask);
    }
    let columns = b.transpose(&sampled, &[0, 3, 1, 2]);
    let rows = xs[1] / groups * taps;
    let columns = b.reshape(&columns, &[xs[0], groups, rows, places]);
    let weights = b.reshape(w, &[groups, ws[0] / groups, rows]);
    let product = b.matmul(&weights, &columns);
    let mut result = b.reshape(&product, &ys);
    if let Some(bias) = node.input(3) {
        let bias = b.reshape(bias, &[&[ws[0]], &vec![1; axes][..]].concat());
        result = b.add(&result, &bias);
    }
    Ok(vec![Some(result)])
}

/// A column of the regions' coordinates, scaled: `[regions, 1, 1]`.
fn edge(b: &mut Builder, rois: &ValueId, column: i64, scale: f64) -> ValueId {
    let regions = b.shape(rois)[0];
    let edge = b.slice(rois, &[column], &[column + 1], &[1]);
    let edge = b.reshape(&edge, &[regions, 1, 1]);
    b.mul_scalar(&edge, scale)
}

/// A fixed number of samples for each bin of each region, averaged (or the largest of their weighted neighbours, as ONNX
/// has it for `max`).
fn roi_align(b: &mut Builder, node: &Node) -> Outputs {
    let (x, rois, images) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
    let (xs, regions) = (b.shape(x), b.shape(rois)[0]);
    let scale = f64::from(node.float_or("spatial_scale", 1.0));
    let bins =
        [node.int_or("output_height", 1).max(1) as usize, node.int_or("output_width", 1).max(1) as usize];
    let half = node.str("coordinate_transformation_mode").unwrap_or("half_pixel") == "half_pixel";
    let ratio = node.int_or("sampling_ratio", 0);
    let samples = usize::try_from(ratio).ok().filter(|&r| r > 0).ok_or_else(|| {
        Error::node(node, "has no gradient with an adaptive number of samples (sampling_ratio = 0)")
            .hint("export the model with a fixed sampling_ratio, such as 2")
    })?;
    let sampler = Sampler::of(b, x);
    let rois = b.cast(rois, sampler.dtype);
    let mut corners = vec![];
    let mut valid: Vec<ValueId> = vec![];
    for (axis, (first, last)) in [(1, 3), (0, 2)].into_iter().enumerate() {
        let size = xs[axis + 2] as f64;
        let shift = if half { -0.5 } else { 0.0 };
        let (start, end) = (edge(b, &rois, first, scale), edge(b, &rois, last, scale));
        let (start, end) = (b.add_scalar(&start, shift), b.add_scalar(&end, shift));
        let mut length = b.sub(&end, &start);
        if !half {
            let one = b.scalar_like(&length, 1.0);
            length = b.op("Max", &[&length, &one]);
        }
        // Sample s of bin k is at start + (k + (s + ½) / samples) · length / bins.
        let n = bins[axis] * samples;
        let at: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5) / n as f64).collect();
        let shape = if axis == 0 { [1, n, 1] } else { [1, 1, n] };
        let at = b.constant(Tensor::from_f64(sampler.dtype, &shape, &at));
        let along = b.mul(&length, &at);
        let place = b.add(&start, &along);
        valid.push(within(b, &place, -1.0, size));
        let place = clipped(b, &place, 0.0, size - 1.0);
        let low = b.op("Floor", &[&place]);
        let part = b.sub(&place, &low);
        let rest = b.scalar_sub(1.0, &part);
        let next = b.add_scalar(&low, 1.0);
        let next = clipped(b, &next, 0.0, size - 1.0);
        corners.push(vec![(low, rest), (next, part)]);
    }
    let image = b.cast(images, DType::I64);
    let image = b.reshape(&image, &[regions, 1, 1]);
    let all_valid = b.mul(&valid[0], &valid[1]);
    let all_valid = b.unsqueeze(&all_valid, &[-1]);
    let split = [regions, bins[0], samples, bins[1], samples, xs[1]];
    let mut pooled = match node.str("mode").unwrap_or("avg") {
        "max" => {
            let mut parts = vec![];
            for choice in choices(&corners) {
                let part = sampler.blend(b, &image, &choice.into_iter().map(|k| vec![k]).collect::<Vec<_>>());
                parts.push(b.mul(&part, &all_valid));
            }
            let largest = b.op("Max", &parts.iter().collect::<Vec<_>>());
            let largest = b.reshape(&largest, &split);
            b.reduce("ReduceMax", &largest, &[2, 4], false)
        }
        _ => {
            let sampled = sampler.blend(b, &image, &corners);
            let sampled = b.mul(&sampled, &all_valid);
            let sampled = b.reshape(&sampled, &split);
            b.mean(&sampled, &[2, 4], false)
        }
    };
    pooled = b.transpose(&pooled, &[0, 3, 1, 2]);
    Ok(vec![Some(pooled)])
}

/// The maximum of each bin of each region, along one axis after the other: what lies outside a bin is masked.
fn max_roi_pool(b: &mut Builder, node: &Node) -> Outputs {
    let (x, rois) = (input(node, 0)?, input(node, 1)?);
    let (xs, regions) = (b.shape(x), b.shape(rois)[0]);
    let scale = f64::from(node.float_or("spatial_scale", 1.0));
    let shape = node.ints("pooled_shape").filter(|s| s.len() == 2 && xs.len() == 4);
    let shape = shape.ok_or_else(|| Error::node(node, "its pooled_shape doesn't fit its input"))?.to_vec();
    let number = edge(b, rois, 0, 1.0);
    let number = b.cast(&number, DType::I64);
    let number = b.reshape(&number, &[regions]);
    let mut pooled = b.op_with("Gather", &[x, &number], &[("axis", Attr::Int(0))]);
    let dtype = b.dtype(x);
    let mut filled: Option<ValueId> = None;
    // Columns are image, x₁, y₁, x₂, y₂.
    for (axis, (first, last)) in [(1, (1, 3)), (0, (2, 4))] {
        let (size, bins) = (xs[axis + 2], shape[axis].max(1) as usize);
        let bounds = [first, last].map(|column| {
            let edge = edge(b, rois, column, scale);
            let half = b.add_scalar(&edge, 0.5);
            let whole = b.op("Floor", &[&half]);
            b.cast(&whole, dtype)
        });
        let length = b.sub(&bounds[1], &bounds[0]);
        let length = b.add_scalar(&length, 1.0);
        let one = b.scalar_like(&length, 1.0);
        let length = b.op("Max", &[&length, &one]);
        let bin = b.mul_scalar(&length, 1.0 / bins as f64);
        let number = Tensor::from_f64(dtype, &[1, bins, 1], &(0..bins).map(|k| k as f64).collect::<Vec<_>>());
        let number = b.constant(number);
        let begin = b.mul(&number, &bin);
        let begin = b.op("Floor", &[&begin]);
        let begin = b.add(&begin, &bounds[0]);
        let after = b.add_scalar(&number, 1.0);
        let end = b.mul(&after, &bin);
        let end = b.op("Ceil", &[&end]);
        let end = b.add(&end, &bounds[0]);
        let places = Tensor::from_f64(dtype, &[1, 1, size], &(0..size).map(|k| k as f64).collect::<Vec<_>>());
        let places = b.constant(places);
        let from = b.op("GreaterOrEqual", &[&places, &begin]);
        let until = b.op("Less", &[&places, &end]);
        // [regions, bins, size]
        let inside = b.op("And", &[&from, &until]);
        let any = b.cast(&inside, dtype);
        let any = b.reduce("ReduceMax", &any, &[2], false);
        let (mask_shape, wide_shape, any_shape) = match axis {
            1 => (
                vec![regions, 1, 1, bins, size],
                vec![regions, xs[1], xs[2], 1, size],
                vec![regions, 1, 1, bins],
            ),
            _ => {
                let width = b.shape(&pooled)[3];
                (
                    vec![regions, 1, bins, size, 1],
                    vec![regions, xs[1], 1, size, width],
                    vec![regions, 1, bins, 1],
                )
            }
        };
        let inside = b.reshape(&inside, &mask_shape);
        let wide = b.reshape(&pooled, &wide_shape);
        let lowest = b.scalar_like(&wide, if dtype == DType::F16 { -6e4 } else { -1e30 });
        let masked = b.where_(&inside, &wide, &lowest);
        pooled = b.reduce("ReduceMax", &masked, &[if axis == 1 { 4 } else { 3 }], false);
        let any = b.reshape(&any, &any_shape);
        filled = Some(match filled {
            Some(filled) => b.mul(&filled, &any),
            None => any,
        });
    }
    // Empty bins are 0.
    if let Some(filled) = filled {
        let filled = b.cast(&filled, DType::Bool);
        let zero = b.scalar_like(&pooled, 0.0);
        pooled = b.where_(&filled, &pooled, &zero);
    }
    Ok(vec![Some(pooled)])
}
