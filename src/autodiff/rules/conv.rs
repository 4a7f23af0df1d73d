//! Convolution and transposed convolution, in any number of dimensions, grouped or not.
//!
//! The gradient with respect to the data is the other kind of convolution with the same weights. The gradient with
//! respect to the weights has several forms in standard operators, none of them best everywhere:
//! see [`WeightForm`], and `docs/autodiff.md` for the figures behind the choice.

use super::window::Geometry;
use super::{Context, Cotangents, Row, rule};
use crate::error::Result;
use crate::onnx::{Attr, Builder, DType, Fact, Forms, Tensor, ValueId, kernels};

pub const TABLE: &[Row] =
    &[rule("Col2Im", columns_to_image), rule("Conv", conv), rule("ConvTranspose", conv_transpose)];

fn conv(c: &mut Context<'_>) -> Cotangents {
    let (x, w, dy) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let geometry = Geometry::of(c, spatial(c, &w)?, spatial(c, &x)?, spatial(c, &dy)?)?;
    let group = group(c)?;
    let dx = c.wants(0).then(|| transposed(c.b, &dy, &w, &geometry, group));
    let dw = c.wants(1).then(|| weight_gradient(c.b, &x, &dy, &geometry, group));
    let db = c.wants(2).then(|| bias_gradient(c.b, &dy));
    Ok(vec![dx, dw, db])
}

/// `Y = ConvTranspose(X, W)` is the gradient of `X = Conv(Y, W)` with respect to its data, so the roles of X and Y
/// change places throughout.
fn conv_transpose(c: &mut Context<'_>) -> Cotangents {
    let (x, w, dy) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let geometry = Geometry::of(c, spatial(c, &w)?, spatial(c, &dy)?, spatial(c, &x)?)?;
    let group = group(c)?;
    let dx = c.wants(0).then(|| direct(c.b, &dy, &w, &geometry, group));
    let dw = c.wants(1).then(|| weight_gradient(c.b, &dy, &x, &geometry, group));
    let db = c.wants(2).then(|| bias_gradient(c.b, &dy));
    Ok(vec![dx, dw, db])
}

fn spatial<'a>(c: &'a Context<'_>, value: &ValueId) -> Result<&'a [usize]> {
    let shape = &c.b.fact(value).shape;
    shape.get(2..).ok_or_else(|| c.refuse(format!("'{value}' has rank {}, too few", shape.len())))
}

fn group(c: &Context<'_>) -> Result<usize> {
    let group = c.node.int_or("group", 1);
    usize::try_from(group).ok().filter(|&g| g > 0).ok_or_else(|| c.refuse(format!("group is {group}")))
}

fn ints(values: &[usize]) -> Attr {
    Attr::Ints(values.iter().map(|&v| v as i64).collect())
}

/// `Conv` of a dense tensor, giving the coarse one.
fn direct(b: &mut Builder, x: &ValueId, w: &ValueId, g: &Geometry, group: usize) -> ValueId {
    let x = g.crop(b, x, 2);
    let attrs = [
        ("strides", ints(&g.stride)),
        ("dilations", ints(&g.dilation)),
        ("pads", Attr::Ints(g.pads())),
        ("group", Attr::Int(group as i64)),
    ];
    b.op_with("Conv", &[&x, w], &attrs)
}

/// `ConvTranspose` of a coarse tensor, giving the dense one: elements that no window reaches come out as zeros, by
/// `output_padding`.
fn transposed(b: &mut Builder, y: &ValueId, w: &ValueId, g: &Geometry, group: usize) -> ValueId {
    let grown: Vec<i64> = (0..g.rank()).map(|i| (-g.end(i)).max(0)).collect();
    let mut attrs = vec![
        ("strides", ints(&g.stride)),
        ("dilations", ints(&g.dilation)),
        ("pads", Attr::Ints(g.pads())),
        ("group", Attr::Int(group as i64)),
    ];
    if grown.iter().any(|&p| p > 0) {
        attrs.push(("output_padding", Attr::Ints(grown)));
    }
    b.op_with("ConvTranspose", &[y, w], &attrs)
}

fn bias_gradient(b: &mut Builder, dy: &ValueId) -> ValueId {
    let shape = b.shape(dy);
    let flat = b.reshape(dy, &[shape[0], shape[1], shape[2..].iter().product()]);
    b.sum(&flat, &[0, 2], false)
}

/// How to compute `dW[m, c, k] = Σ_{n,o} X[n, c, o·stride + k·dilation − begin] · dY[n, m, o]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightForm {
    /// A kernel of one element that sees every element once: one matrix product for each row of the batch, summed.
    Pointwise,
    /// One matrix product for each tap of the kernel, over strided slices of channels-last X. Batched over groups.
    Taps,
    /// Slices for all taps, channels first, under one another, and one product: for few input channels.
    Columns,
    /// A convolution of X with dY as its kernel, batch and channels exchanged.
    RoleSwap,
    /// An operator of our own.
    Kernel,
    /// Depthwise: for each tap of all axes but the last, one product of image rows for each channel, which holds
    /// the last axis's taps in sums along its diagonals.
    Rows,
}

/// The fastest form for a shape. The limits were measured with ONNX Runtime 1.32 on one thread; tract agrees in the
/// order wherever the difference is large (`docs/autodiff.md`).
///
/// Where convolutions of all shapes are fast ([`Forms::Windows`]), nothing is gained by slicing the image into operands of
/// products: the roles are swapped, whatever the shape (docs/gpu.md).
pub fn weight_form(
    g: &Geometry,
    group: usize,
    group_inputs: usize,
    group_outputs: usize,
    forms: Forms,
) -> WeightForm {
    let taps: usize = g.kernel.iter().product();
    let windows: usize = g.coarse.iter().product();
    let depthwise = group > 1 && group_inputs == 1 && group_outputs == 1;
    let whole = (0..g.rank()).all(|i| g.stride[i] == 1 && g.begin[i] == 0 && g.end(i) == 0);
    let ours = matches!(forms, Forms::Kernels { .. }) && g.rank() == 2;
    match () {
        _ if group == 1 && g.rank() == 2 && forms == (Forms::Kernels { products: true }) => {
            WeightForm::Kernel
        }
        _ if g.rank() == 0 => WeightForm::Pointwise,
        _ if group == 1 && taps == 1 && whole && windows >= 128 => WeightForm::Pointwise,
        _ if forms == Forms::Windows => WeightForm::RoleSwap,
        _ if ours && depthwise => WeightForm::RoleSwap,
        _ if depthwise && g.dense[g.rank() - 1] <= 112 => WeightForm::Rows,
        _ if group > 1 && group_inputs < 8 => WeightForm::RoleSwap,
        _ if group == 1 && group_inputs < 8 && taps >= 49 => WeightForm::RoleSwap,
        _ if group == 1 && group_inputs < 8 => WeightForm::Columns,
        _ => WeightForm::Taps,
    }
}

/// The gradient of a convolution's weights `[M, C / group, kernel…]`, from its dense side X `[N, C, …]` and the
/// cotangent of its coarse side dY `[N, M, …]`.
fn weight_gradient(b: &mut Builder, x: &ValueId, dy: &ValueId, g: &Geometry, group: usize) -> ValueId {
    let (channels, outputs) = (b.shape(x)[1], b.shape(dy)[1]);
    let forms = if b.dtype(x) == DType::F32 { b.forms } else { Forms::default() };
    let form = weight_form(g, group, channels / group, outputs / group, forms);
    weight_gradient_by(form, b, x, dy, g, group)
}

fn weight_gradient_by(
    form: WeightForm,
    b: &mut Builder,
    x: &ValueId,
    dy: &ValueId,
    g: &Geometry,
    group: usize,
) -> ValueId {
    let (channels, outputs) = (b.shape(x)[1], b.shape(dy)[1]);
    let dw = match form {
        WeightForm::Pointwise => pointwise(b, x, dy),
        WeightForm::Taps => taps(b, x, dy, g, group),
        WeightForm::Columns => columns(b, x, dy, g),
        WeightForm::RoleSwap => role_swap(b, x, dy, g, group),
        WeightForm::Rows => rows(b, x, dy, g),
        WeightForm::Kernel => by_kernel(b, x, dy, g),
    };
    b.reshape(&dw, &[&[outputs, channels / group], &g.kernel[..]].concat())
}

fn by_kernel(b: &mut Builder, x: &ValueId, dy: &ValueId, g: &Geometry) -> ValueId {
    let (channels, outputs) = (b.shape(x)[1], b.shape(dy)[1]);
    let x = g.crop(b, x, 2);
    let attrs = [
        ("kernel_shape", ints(&g.kernel)),
        ("strides", ints(&g.stride)),
        ("dilations", ints(&g.dilation)),
        ("pads", Attr::Ints(g.pads())),
    ];
    let inputs = [&x, dy].map(Some);
    let dw = b.op_full(kernels::DOMAIN, kernels::CONV_WEIGHT_GRADIENT, &inputs, &attrs, 1).remove(0);
    let fact = Fact::new(b.dtype(&x), &[&[outputs, channels], &g.kernel[..]].concat());
    b.set_fact(&dw, fact);
    dw
}

/// `Σ_n dY_n · X_nᵀ`.
fn pointwise(b: &mut Builder, x: &ValueId, dy: &ValueId) -> ValueId {
    let (x_shape, y_shape) = (b.shape(x), b.shape(dy));
    let flat = |s: &[usize]| [s[0], s[1], s[2..].iter().product()];
    let x = b.reshape(x, &flat(&x_shape));
    let dy = b.reshape(dy, &flat(&y_shape));
    let xt = b.transpose(&x, &[0, 2, 1]);
    let products = b.matmul(&dy, &xt);
    b.sum(&products, &[0], false)
}

/// `[N, groups · A, spatial…]` to `[groups, A, N · spatial]`.
fn channels_first(b: &mut Builder, v: &ValueId, group: usize) -> ValueId {
    let shape = b.shape(v);
    let perm: Vec<usize> = [1, 0].into_iter().chain(2..shape.len()).collect();
    let v = b.transpose(v, &perm);
    b.reshape(&v, &[group, shape[1] / group, shape[0] * shape[2..].iter().product::<usize>()])
}

fn taps(b: &mut Builder, x: &ValueId, dy: &ValueId, g: &Geometry, group: usize) -> ValueId {
    let (n, channels, outputs) = (b.shape(x)[0], b.shape(x)[1], b.shape(dy)[1]);
    let windows = n * g.coarse.iter().product::<usize>();
    let (cg, mg) = (channels / group, outputs / group);
    let mut dyt = channels_first(b, dy, group);
    // Channels last, with the groups in front where there are any.
    let first = if group == 1 { 1 } else { 2 };
    let last = if group == 1 {
        dyt = b.reshape(&dyt, &[outputs, windows]);
        let perm: Vec<usize> = [0].into_iter().chain(2..g.rank() + 2).chain([1]).collect();
        b.transpose(x, &perm)
    } else {
        let split = b.reshape(x, &[&[n, group, cg], &g.dense[..]].concat());
        let perm: Vec<usize> = [1, 0].into_iter().chain(3..g.rank() + 3).chain([2]).collect();
        b.transpose(&split, &perm)
    };
    let padded = g.pad(b, &last, first, g.rank());
    let mut parts = vec![];
    for offsets in g.taps(0..g.rank()) {
        let seen = g.tap(b, &padded, first, &offsets);
        let seen = if group == 1 {
            b.reshape(&seen, &[windows, cg])
        } else {
            b.reshape(&seen, &[group, windows, cg])
        };
        let product = b.matmul(&dyt, &seen);
        parts.push(b.reshape(&product, &[group * mg, cg, 1]));
    }
    b.concat(&parts.iter().collect::<Vec<_>>(), 2)
}

fn columns(b: &mut Builder, x: &ValueId, dy: &ValueId, g: &Geometry) -> ValueId {
    let (n, channels, outputs) = (b.shape(x)[0], b.shape(x)[1], b.shape(dy)[1]);
    let windows = n * g.coarse.iter().product::<usize>();
    let padded = g.pad(b, x, 2, g.rank());
    let perm: Vec<usize> = [1, 0].into_iter().chain(2..g.rank() + 2).collect();
    let padded = b.transpose(&padded, &perm);
    let taps = g.taps(0..g.rank());
    let parts: Vec<ValueId> = taps.iter().map(|offsets| g.tap(b, &padded, 2, offsets)).collect();
    let stacked = b.concat(&parts.iter().collect::<Vec<_>>(), 0);
    let stacked = b.reshape(&stacked, &[taps.len() * channels, windows]);
    let dyt = channels_first(b, dy, 1);
    let dyt = b.reshape(&dyt, &[outputs, windows]);
    let product = b.op_with("Gemm", &[&dyt, &stacked], &[("transB", Attr::Int(1))]);
    let product = b.reshape(&product, &[outputs, taps.len(), channels]);
    b.transpose(&product, &[0, 2, 1])
}

fn role_swap(b: &mut Builder, x: &ValueId, dy: &ValueId, g: &Geometry, group: usize) -> ValueId {
    let (n, channels) = (b.shape(x)[0], b.shape(x)[1]);
    let x = g.crop(b, x, 2);
    let sizes = b.shape(&x)[2..].to_vec();
    let split = b.reshape(&x, &[&[n, group, channels / group], &sizes[..]].concat());
    let perm: Vec<usize> = [2, 1, 0].into_iter().chain(3..g.rank() + 3).collect();
    let swapped = b.transpose(&split, &perm);
    let swapped = b.reshape(&swapped, &[&[channels / group, group * n], &sizes[..]].concat());
    let perm: Vec<usize> = [1, 0].into_iter().chain(2..g.rank() + 2).collect();
    let kernel = b.transpose(dy, &perm);
    let attrs = [
        ("strides", ints(&g.dilation)),
        ("dilations", ints(&g.stride)),
        ("pads", Attr::Ints(g.pads())),
        ("group", Attr::Int(group as i64)),
    ];
    let dw = b.op_with("Conv", &[&swapped, &kernel], &attrs);
    b.transpose(&dw, &perm)
}

fn rows(b: &mut Builder, x: &ValueId, dy: &ValueId, g: &Geometry) -> ValueId {
    let (n, channels) = (b.shape(x)[0], b.shape(x)[1]);
    let last = g.rank() - 1;
    let (wide, narrow) = (g.dense[last], g.coarse[last]);
    let lines = n * g.coarse[..last].iter().product::<usize>();
    let perm: Vec<usize> = [1, 0].into_iter().chain(2..g.rank() + 2).collect();
    let padded = g.pad(b, x, 2, last);
    let padded = b.transpose(&padded, &perm);
    let dyt = b.transpose(dy, &perm);
    let dyt = b.reshape(&dyt, &[channels, lines, narrow]);
    let mut parts = vec![];
    for offsets in g.taps(0..last) {
        let seen = if last == 0 { padded.clone() } else { g.tap(b, &padded, 2, &offsets) };
        let seen = b.reshape(&seen, &[channels, lines, wide]);
        let seen = b.transpose(&seen, &[0, 2, 1]);
        let product = b.matmul(&seen, &dyt);
        parts.push(b.reshape(&product, &[channels, 1, wide * narrow]));
    }
    let products = b.concat(&parts.iter().collect::<Vec<_>>(), 1);
    let products = b.reshape(&products, &[channels * parts.len(), wide * narrow]);
    let diagonals = diagonals(b, x, g, last);
    b.matmul(&products, &diagonals)
}

/// The matrix `[dense · coarse, kernel]` that sums, for each tap, the pairs (element, window) it brings together.
fn diagonals(b: &mut Builder, like: &ValueId, g: &Geometry, axis: usize) -> ValueId {
    let (wide, narrow, kernel) = (g.dense[axis], g.coarse[axis], g.kernel[axis]);
    let mut sums = vec![0.0; wide * narrow * kernel];
    for k in 0..kernel {
        for window in 0..narrow {
            let at = (window * g.stride[axis] + k * g.dilation[axis]) as i64 - g.begin[axis];
            if let Some(at) = usize::try_from(at).ok().filter(|&at| at < wide) {
                sums[(at * narrow + window) * kernel + k] = 1.0;
            }
        }
    }
    let dtype = b.dtype(like);
    b.constant(Tensor::from_f64(dtype, &[wide * narrow, kernel], &sums))
}

/// Blocks were added up to an image: each gets back what it sees of the image's cotangent.
fn columns_to_image(c: &mut Context<'_>) -> Cotangents {
    let (shape, g) = (c.shape(0)?, c.cotangent()?);
    let whole = |list: Option<Vec<i64>>| -> Vec<usize> {
        list.unwrap_or_default().iter().filter_map(|&d| usize::try_from(d).ok()).collect()
    };
    let (image, block) = (whole(c.constant_ints(1)?), whole(c.constant_ints(2)?));
    let unfit = || c.refuse("its blocks don't fit its image");
    let window = crate::onnx::infer::Window::of(c.node, &block, image.len()).ok_or_else(unfit)?;
    let coarse: Option<Vec<usize>> = (0..image.len()).map(|i| window.output(i, image[i])).collect();
    let geometry = Geometry::of(c, &block, &image, &coarse.ok_or_else(unfit)?)?;
    let channels = c.b.shape(&g)[1];
    let n = geometry.rank();
    let cropped = geometry.crop(c.b, &g, 2);
    let padded = geometry.pad(c.b, &cropped, 2, n);
    let places: usize = geometry.coarse.iter().product();
    let seen: Vec<ValueId> = geometry
        .taps(0..n)
        .iter()
        .map(|offsets| {
            let tap = geometry.tap(c.b, &padded, 2, offsets);
            c.b.reshape(&tap, &[shape[0], channels, 1, places])
        })
        .collect();
    let columns = c.b.concat(&seen.iter().collect::<Vec<_>>(), 2);
    Ok(vec![Some(c.b.reshape(&columns, &shape))])
}
