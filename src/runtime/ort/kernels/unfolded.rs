//! Convolutions of many channels and both of their gradients, as products of weights and images whose windows are never written
//! out.

use super::convolution::{Window, bias, sizes};
use super::product::in_parts;
use super::{input, output, unfit};
use crate::onnx::kernels::CONV_WEIGHT_GRADIENT;
use ::ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ::ort::value::TensorElementType;
use onnx_merge_kernels::product::{Matrix, Offsets, Operand, Patches, Place, Product, Shared};
use onnx_merge_kernels::unfold::{Scatter, Windows};
use std::cell::RefCell;

thread_local! {
    /// Images with their padding.
    static IMAGES: RefCell<Vec<f32>> = RefCell::default();
}

/// Windows that one product is made of, if there are as many: enough for weights to be packed once for many.
const WINDOWS: usize = 2048;

/// Images that make so many windows.
fn at_once(windows: usize, images: usize) -> usize {
    images.div_ceil(images.div_ceil(WINDOWS.div_ceil(windows)))
}

pub fn convolve(context: &ComputeContext, window: &Window, threads: usize) -> ::ort::Result<()> {
    let (x, w) = (input(context, 0)?, input(context, 1)?);
    let ((x_shape, x), (w_shape, w)) = (x.try_extract_tensor::<f32>()?, w.try_extract_tensor::<f32>()?);
    let ([n, channels, height, width], [outputs, inner, kh, kw]) = (sizes(x_shape)?, sizes(w_shape)?);
    let [oh, ow] = [window.coarse(0, height, kh), window.coarse(1, width, kw)].map(|size| size.unwrap_or(0));
    if channels != inner || oh * ow == 0 {
        return Err(unfit());
    }
    let windows = Windows::new([window.axis(0, height, oh, kh), window.axis(1, width, ow, kw)], channels);
    let mut y = output(context, 0, &[n, outputs, oh, ow].map(|d| d as i64))?;
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    let biased = fill(context, y, oh * ow, outputs)?;
    let images = at_once(oh * ow, n);
    let (places, taps) = (windows.places(images), windows.taps());
    let columns: Vec<usize> =
        (0..images).flat_map(|image| (0..oh * ow).map(move |o| image * outputs * oh * ow + o)).collect();
    let image = channels * height * width;
    for (x, y) in x.chunks(images * image).zip(y.chunks_mut(images * outputs * oh * ow)) {
        IMAGES.with_borrow_mut(|room| {
            let patches = Patches {
                image: windows.frame().lay_out(x, room),
                places: &places,
                taps: &taps,
                places_are_lines: true,
            };
            let product = Product {
                a: Operand::Matrix(Matrix { elements: w, line: taps.len(), depth: 1 }),
                b: Operand::Patches(patches),
                depth: taps.len(),
                place: Place { start: 0, rows: oh * ow, columns: Some(&columns) },
                adds: biased,
            };
            in_parts(context, &product, [outputs, x.len() / image * oh * ow], threads, &Shared::new(y))
        })?;
    }
    Ok(())
}

/// Writes the bias of each channel to all of its elements; whether there is one.
fn fill(context: &ComputeContext, y: &mut [f32], plane: usize, channels: usize) -> ::ort::Result<bool> {
    let biased = context.input(2)?.is_some();
    if biased {
        let bias = bias(context, channels)?;
        y.chunks_exact_mut(plane).zip(bias.iter().cycle()).for_each(|(plane, &bias)| plane.fill(bias));
    }
    Ok(biased)
}

/// Of an image that is to have these sizes.
pub fn transposed(
    context: &ComputeContext,
    window: &Window,
    [height, width]: [usize; 2],
    threads: usize,
) -> ::ort::Result<()> {
    let (y, w) = (input(context, 0)?, input(context, 1)?);
    let ((y_shape, y), (w_shape, w)) = (y.try_extract_tensor::<f32>()?, w.try_extract_tensor::<f32>()?);
    let ([n, outputs, oh, ow], [filters, channels, kh, kw]) = (sizes(y_shape)?, sizes(w_shape)?);
    if outputs != filters {
        return Err(unfit());
    }
    let axes = [window.axis(0, height, oh, kh), window.axis(1, width, ow, kw)];
    let scatter = Scatter::new(axes, [channels, outputs]);
    let mut x = output(context, 0, &[n, channels, height, width].map(|d| d as i64))?;
    let (_, x) = x.try_extract_tensor_mut::<f32>()?;
    let biased = fill(context, x, height * width, channels)?;
    let images = at_once(height * width, n);
    let filters = scatter.filters();
    struct Part {
        columns: Vec<usize>,
        places: Offsets,
        taps: [Offsets; 2],
    }
    let part = |class| Part {
        columns: scatter.columns(class, images),
        places: scatter.places(class, images),
        taps: scatter.taps(class),
    };
    let parts: Vec<Part> = (0..scatter.classes()).map(part).collect();
    let image = outputs * oh * ow;
    for (y, x) in y.chunks(images * image).zip(x.chunks_mut(images * channels * height * width)) {
        IMAGES.with_borrow_mut(|room| {
            let some = y.len() / image;
            let y = scatter.frame().lay_out(y, room);
            let x = Shared::new(x);
            parts.iter().try_for_each(|part| {
                let [taps, weights] = &part.taps;
                let product = Product {
                    a: Operand::Patches(Patches {
                        image: w,
                        places: &filters,
                        taps: weights,
                        places_are_lines: true,
                    }),
                    b: Operand::Patches(Patches {
                        image: y,
                        places: &part.places,
                        taps,
                        places_are_lines: true,
                    }),
                    depth: taps.len(),
                    place: Place { start: 0, rows: height * width, columns: Some(&part.columns) },
                    adds: biased,
                };
                in_parts(context, &product, [channels, part.columns.len() / images * some], threads, &x)
            })
        })?;
    }
    Ok(())
}

/// The gradient of a convolution's weights, which ONNX has no operator for, from x and y's cotangent. Attributes are those of `Conv` over
/// two axes.
pub struct ConvWeightGradient {
    pub threads: usize,
}

impl Operator for ConvWeightGradient {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        CONV_WEIGHT_GRADIENT
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [TensorElementType::Float32; 2].map(OperatorInput::required)
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }
    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ::ort::Result<Self::Kernel<'attr>> {
        let window = Window::of_kernel(context)?;
        let kernel: Vec<usize> = context
            .get::<Vec<i64>>("kernel_shape")
            .unwrap_or_default()
            .into_iter()
            .filter_map(|size| usize::try_from(size).ok().filter(|&size| size > 0))
            .collect();
        let kernel = kernel.try_into().map_err(|_| ::ort::Error::new("kernel_shape isn't two sizes"))?;
        let threads = self.threads;
        Ok(Box::new(move |context: &ComputeContext| weight_gradient(context, &window, kernel, threads)))
    }
}

fn weight_gradient(
    context: &ComputeContext,
    window: &Window,
    [kh, kw]: [usize; 2],
    threads: usize,
) -> ::ort::Result<()> {
    let (x, dy) = (input(context, 0)?, input(context, 1)?);
    let ((x_shape, x), (y_shape, dy)) = (x.try_extract_tensor::<f32>()?, dy.try_extract_tensor::<f32>()?);
    let ([n, channels, height, width], [rows, outputs, oh, ow]) = (sizes(x_shape)?, sizes(y_shape)?);
    if rows != n {
        return Err(unfit());
    }
    let windows = Windows::new([window.axis(0, height, oh, kh), window.axis(1, width, ow, kw)], channels);
    let mut dw = output(context, 0, &[outputs, channels, kh, kw].map(|d| d as i64))?;
    let (_, dw) = dw.try_extract_tensor_mut::<f32>()?;
    let dw = Shared::new(dw);
    let images = at_once(oh * ow, n);
    let (places, taps) = (windows.places(images), windows.taps());
    let (plane, cotangents) = (oh * ow, outputs * oh * ow);
    let y_places =
        Offsets::new((0..images).flat_map(|image| (0..plane).map(move |o| image * cotangents + o)));
    let y_planes = Offsets::new((0..outputs).map(|output| output * plane));
    let image = channels * height * width;
    for (i, (x, dy)) in x.chunks(images * image).zip(dy.chunks(images * cotangents)).enumerate() {
        IMAGES.with_borrow_mut(|room| {
            let x = windows.frame().lay_out(x, room);
            let product = Product {
                a: Operand::Patches(Patches {
                    image: dy,
                    places: &y_places,
                    taps: &y_planes,
                    places_are_lines: false,
                }),
                b: Operand::Patches(Patches {
                    image: x,
                    places: &places,
                    taps: &taps,
                    places_are_lines: false,
                }),
                depth: dy.len() / cotangents * plane,
                place: Place { start: 0, rows: taps.len(), columns: None },
                adds: i > 0,
            };
            in_parts(context, &product, [outputs, taps.len()], threads, &dw)
        })?;
    }
    Ok(())
}
