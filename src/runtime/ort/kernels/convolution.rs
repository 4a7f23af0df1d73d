//! [Conv](https://onnx.ai/onnx/operators/onnx__Conv.html) and
//! [ConvTranspose](https://onnx.ai/onnx/operators/onnx__ConvTranspose.html): of many channels as [products](super::unfolded), and of
//! a channel at a time, which are depthwise convolutions and both of their gradients.
//!
//! Of the latter ONNX Runtime makes a matrix product of each group, with one row and an unfolded image: a twentieth of what a core
//! can do. (Its fast depthwise convolution wants constant weights, which weights in training aren't.)

use super::{PART, each_part, input, output, unfit, unfolded};
use crate::onnx::{DType, Fact, Facts, Graph, Node};
use ::ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ::ort::value::TensorElementType;
use onnx_merge_kernels::{Axis, Planes, Room};
use std::cell::RefCell;

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// What both operators have as attributes.
#[derive(Clone)]
pub struct Window {
    strides: [usize; 2],
    dilations: [usize; 2],
    /// Before each axis, then after each.
    pads: [usize; 4],
    group: usize,
}

impl Window {
    /// Of two axes; `None` where something is negative or not given as numbers.
    fn new(ints: impl Fn(&str) -> Option<Vec<i64>>, group: i64) -> Option<Self> {
        fn whole<const N: usize>(given: Option<Vec<i64>>, default: usize) -> Option<[usize; N]> {
            let Some(given) = given else { return Some([default; N]) };
            let given: Option<Vec<usize>> = given.into_iter().map(|v| usize::try_from(v).ok()).collect();
            given?.try_into().ok()
        }
        let (strides, dilations) = (whole(ints("strides"), 1)?, whole(ints("dilations"), 1)?);
        let nonzero = |values: [usize; 2]| !values.contains(&0);
        let window =
            Self { strides, dilations, pads: whole(ints("pads"), 0)?, group: usize::try_from(group).ok()? };
        (nonzero(strides) && nonzero(dilations) && window.group > 0).then_some(window)
    }

    fn of(node: &Node) -> Option<Self> {
        let explicit = matches!(node.str("auto_pad"), None | Some("NOTSET"));
        let given = |name: &str| node.ints(name).map(<[i64]>::to_vec);
        Self::new(given, node.int_or("group", 1)).filter(|_| explicit)
    }

    pub fn of_kernel(context: &KernelContext<'_>) -> ::ort::Result<Self> {
        let group = context.get::<i64>("group").unwrap_or(1);
        Self::new(|name| context.get::<Vec<i64>>(name), group)
            .ok_or_else(|| ::ort::Error::new("attributes of no convolution over two axes"))
    }

    /// Of an axis of 0 (down) or 1 (along), with `x` on the dense side and `y` on the coarse one.
    pub fn axis(&self, axis: usize, dense: usize, coarse: usize, kernel: usize) -> Axis {
        let (stride, dilation) = (self.strides[axis], self.dilations[axis]);
        Axis { dense, coarse, kernel, stride, dilation, begin: self.pads[axis] }
    }

    /// Outputs of a convolution along an axis.
    pub fn coarse(&self, axis: usize, dense: usize, kernel: usize) -> Option<usize> {
        let padded = dense + self.pads[axis] + self.pads[axis + 2];
        let reach = (kernel.checked_sub(1)?) * self.dilations[axis] + 1;
        Some(padded.checked_sub(reach)? / self.strides[axis] + 1)
    }
}

fn images<'a>(node: &Node, facts: &'a Facts) -> Option<[&'a Fact; 3]> {
    let fact = |id: Option<&Option<crate::onnx::ValueId>>| {
        let fact = facts.get(id?.as_ref()?)?;
        let dense = fact.shape.len() == 4 && !fact.shape.contains(&0) && fact.dtype == DType::F32;
        dense.then_some(fact)
    };
    Some([fact(node.inputs.first())?, fact(node.inputs.get(1))?, fact(node.outputs.first())?])
}

fn is_constant(node: &Node, graph: &Graph, i: usize) -> bool {
    node.inputs.get(i).and_then(Option::as_ref).is_some_and(|id| graph.initializers.contains_key(id))
}

/// Elements of kernels that are what is called one, even where images are smaller.
const SMALL_KERNEL: usize = 25;
/// Products of so many multiplications are worth unfolding for.
const MANY: usize = 1 << 16;

/// One group whose products are large enough, of sizes as `Conv`'s: weights, then the windows of an image.
fn fits_product(window: &Window, w: &Fact, windows: usize) -> bool {
    let large = w.shape.iter().product::<usize>() * windows >= MANY;
    onnx_merge_kernels::product::is_fast() && window.group == 1 && large
}

/// One group, or one input channel a group, or the gradient of such a convolution's weights: one output a group, of kernels larger than it.
pub fn fits(node: &Node, facts: &Facts, graph: &Graph) -> bool {
    let (Some(window), Some([x, w, y])) = (Window::of(node), images(node, facts)) else { return false };
    let area = |fact: &Fact| fact.shape[2] * fact.shape[3];
    let depthwise = w.shape[1] == 1 && area(w) <= area(y).max(SMALL_KERNEL) && !is_constant(node, graph, 1);
    let gradient = x.shape[0] == 1 && w.shape[0] == window.group && area(w) > area(y);
    let product = fits_product(&window, w, y.shape[0] * area(y)) && !is_constant(node, graph, 1);
    product || window.group > 1 && (depthwise || gradient)
}

/// One group, or one channel a group on both sides.
pub fn fits_transposed(node: &Node, facts: &Facts, _: &Graph) -> bool {
    let (Some(window), Some([x, w, _])) = (Window::of(node), images(node, facts)) else { return false };
    let explicit = node.ints("output_shape").is_none();
    let depthwise = window.group > 1 && x.shape[1] == window.group && w.shape[1] == 1;
    let product = fits_product(&window, w, x.shape[0] * x.shape[2] * x.shape[3]);
    (depthwise || product) && explicit
}

pub struct Convolution {
    pub transposed: bool,
    pub threads: usize,
}

impl Operator for Convolution {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        if self.transposed { "ConvTranspose" } else { "Conv" }
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let image_and_weights = [TensorElementType::Float32; 2].map(OperatorInput::required);
        image_and_weights.into_iter().chain([OperatorInput::optional(TensorElementType::Float32)])
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }
    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ::ort::Result<Self::Kernel<'attr>> {
        let (window, threads) = (Window::of_kernel(context)?, self.threads);
        if !self.transposed {
            return Ok(Box::new(move |context: &ComputeContext| match window.group {
                1 => unfolded::convolve(context, &window, threads),
                _ => convolve(context, &window),
            }));
        }
        let grown = context.get::<Vec<i64>>("output_padding").unwrap_or_else(|| vec![0; 2]);
        Ok(Box::new(move |context: &ComputeContext| transposed(context, &window, &grown, threads)))
    }
}

/// The four sizes of an image or of weights.
pub fn sizes(shape: &[i64]) -> ::ort::Result<[usize; 4]> {
    let sizes: Vec<usize> =
        shape.iter().filter_map(|&d| usize::try_from(d).ok()).filter(|&d| d > 0).collect();
    sizes.try_into().map_err(|_| ::ort::Error::new(format!("a shape of {shape:?}")))
}

/// One number for each of some channels, zeros where none are given.
pub fn bias(context: &ComputeContext, channels: usize) -> ::ort::Result<Vec<f32>> {
    let Some(bias) = context.input(2)? else { return Ok(vec![0.0; channels]) };
    let (_, bias) = bias.try_extract_tensor::<f32>()?;
    if bias.len() == channels { Ok(bias.to_vec()) } else { Err(unfit()) }
}

/// Makes plane by plane. Small ones are handed out together: each by itself would take longer than what is done with it.
fn each_plane(
    context: &ComputeContext,
    planes: &mut [f32],
    plane: usize,
    make: impl Fn(usize, &mut [f32]) + Send + Sync,
) -> ::ort::Result<()> {
    let together = PART.div_ceil(plane);
    each_part(context, planes, together * plane, |part, planes| {
        for (i, plane) in planes.chunks_exact_mut(plane).enumerate() {
            make(part * together + i, plane);
        }
    })
}

fn convolve(context: &ComputeContext, window: &Window) -> ::ort::Result<()> {
    let (x, w) = (input(context, 0)?, input(context, 1)?);
    let ((x_shape, x), (w_shape, w)) = (x.try_extract_tensor::<f32>()?, w.try_extract_tensor::<f32>()?);
    let ([n, channels, height, width], [outputs, inner, kh, kw]) = (sizes(x_shape)?, sizes(w_shape)?);
    let group = window.group;
    let [oh, ow] = [window.coarse(0, height, kh), window.coarse(1, width, kw)].map(|size| size.unwrap_or(0));
    let fits = channels == group * inner && outputs % group == 0 && oh * ow > 0;
    if !fits {
        return Err(unfit());
    }
    let bias = bias(context, outputs)?;
    let mut y = output(context, 0, &[n, outputs, oh, ow].map(|d| d as i64))?;
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    let (image, kernel) = (height * width, kh * kw);
    if inner == 1 && kernel <= (oh * ow).max(SMALL_KERNEL) {
        let planes = Planes::new(window.axis(0, height, oh, kh), window.axis(1, width, ow, kw));
        return each_plane(context, y, planes.coarse(), |i, y| {
            let (row, channel) = (i / outputs, i % outputs);
            let x = &x[(row * channels + channel / (outputs / group)) * image..][..image];
            let w = &w[channel * kernel..][..kernel];
            ROOM.with_borrow_mut(|room| planes.convolve(x, w, bias[channel], y, room));
        });
    }
    // The kernels are the coarse sides of convolutions whose kernels are looked for: strides and dilations change places.
    let swapped = Window { strides: window.dilations, dilations: window.strides, pads: window.pads, group };
    let planes = Planes::new(swapped.axis(0, height, kh, oh), swapped.axis(1, width, kw, ow));
    each_plane(context, y, planes.kernel(), |i, y| {
        let (row, channel) = (i / outputs, i % outputs);
        let x = &x[(row * channels + channel / (outputs / group) * inner) * image..][..inner * image];
        let w = &w[channel * inner * kernel..][..inner * kernel];
        y.fill(bias[channel]);
        for (x, w) in x.chunks_exact(image).zip(w.chunks_exact(kernel)) {
            ROOM.with_borrow_mut(|room| planes.correlate(x, w, y, room));
        }
    })
}

fn transposed(context: &ComputeContext, window: &Window, grown: &[i64], threads: usize) -> ::ort::Result<()> {
    let (y, w) = (input(context, 0)?, input(context, 1)?);
    let ((y_shape, y), (w_shape, w)) = (y.try_extract_tensor::<f32>()?, w.try_extract_tensor::<f32>()?);
    let ([n, channels, oh, ow], [groups, inner, kh, kw]) = (sizes(y_shape)?, sizes(w_shape)?);
    let dense = |axis: usize, coarse: usize, kernel: usize| {
        let grown = usize::try_from(*grown.get(axis)?).ok()?;
        let reach = (coarse - 1) * window.strides[axis] + (kernel - 1) * window.dilations[axis] + 1;
        (reach + grown).checked_sub(window.pads[axis] + window.pads[axis + 2]).filter(|&size| size > 0)
    };
    let (height, width) = (dense(0, oh, kh).ok_or_else(unfit)?, dense(1, ow, kw).ok_or_else(unfit)?);
    if window.group == 1 {
        return unfolded::transposed(context, window, [height, width], threads);
    }
    let fits = channels == window.group && groups == channels && inner == 1;
    if !fits {
        return Err(unfit());
    }
    let bias = bias(context, channels)?;
    let mut x = output(context, 0, &[n, channels, height, width].map(|d| d as i64))?;
    let (_, x) = x.try_extract_tensor_mut::<f32>()?;
    let axes = (window.axis(0, height, oh, kh), window.axis(1, width, ow, kw));
    let planes = Planes::new(axes.0, axes.1);
    let (coarse, kernel) = (planes.coarse(), planes.kernel());
    let turned = Planes::turned(axes.0, axes.1);
    let reversed: Vec<f32> = w.chunks_exact(kernel).flat_map(|w| w.iter().rev()).copied().collect();
    each_plane(context, x, planes.dense(), |i, x| {
        let channel = i % channels;
        let (y, at, bias) =
            (&y[i * coarse..][..coarse], channel * kernel..(channel + 1) * kernel, bias[channel]);
        ROOM.with_borrow_mut(|room| match &turned {
            Some(turned) => turned.convolve(y, &reversed[at], bias, x, room),
            None => planes.scatter(y, &w[at], bias, x, room),
        });
    })
}
