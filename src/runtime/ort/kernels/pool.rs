//! The gradient of [MaxPool](https://onnx.ai/onnx/operators/onnx__MaxPool.html), which ONNX has no operator for: its rule
//! (`autodiff/rules/pool.rs`) writes it as one of ours where the graph is for ONNX Runtime, whose own ways there are slow: indices of
//! maxima with `ScatterElements`, or comparisons with maxima that are repeated.

use super::{PART, each_part, input, output};
use crate::onnx::kernels::MAX_POOL_GRADIENT;
use ::ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ::ort::value::TensorElementType;
use onnx_merge_kernels::{Axis, Pool};

/// Of x, the maxima, and their cotangents. Attributes are those of `MaxPool` over two axes, with the padding before each; and whether
/// equal maxima share.
pub struct MaxPoolGradient;

impl Operator for MaxPoolGradient {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        MAX_POOL_GRADIENT
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [TensorElementType::Float32; 3].map(OperatorInput::required)
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }
    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ::ort::Result<Self::Kernel<'attr>> {
        let pair = |name: &str| {
            let given = context.get::<Vec<i64>>(name).unwrap_or_default();
            let sizes: Vec<usize> = given.into_iter().filter_map(|v| usize::try_from(v).ok()).collect();
            <[usize; 2]>::try_from(sizes).map_err(|_| ::ort::Error::new(format!("{name} aren't two sizes")))
        };
        let [kernel, strides, dilations, begin] =
            [pair("kernel_shape")?, pair("strides")?, pair("dilations")?, pair("pads")?];
        let shared = context.get::<i64>("shared").unwrap_or(0) != 0;
        if [kernel, strides, dilations].as_flattened().contains(&0) {
            return Err(::ort::Error::new("windows of no elements, or that don't move"));
        }
        let axis = move |i: usize, dense: usize, coarse: usize| Axis {
            dense,
            coarse,
            kernel: kernel[i],
            stride: strides[i],
            dilation: dilations[i],
            begin: begin[i],
        };
        Ok(Box::new(move |context: &ComputeContext| {
            compute(context, |[h, w], [oh, ow]| Pool::new(axis(0, h, oh), axis(1, w, ow), shared))
        }))
    }
}

fn compute(context: &ComputeContext, pool: impl Fn([usize; 2], [usize; 2]) -> Pool) -> ::ort::Result<()> {
    let (x, y, dy) = (input(context, 0)?, input(context, 1)?, input(context, 2)?);
    let ((dense, x), (coarse, y)) = (x.try_extract_tensor::<f32>()?, y.try_extract_tensor::<f32>()?);
    let (_, dy) = dy.try_extract_tensor::<f32>()?;
    let image = |shape: &[i64]| match *shape {
        [n, c, h, w] if n * c * h * w > 0 => Ok(([n, c], [h as usize, w as usize])),
        _ => Err(::ort::Error::new(format!("a shape of {shape:?}"))),
    };
    let ((planes, dense_sizes), (coarse_planes, coarse_sizes)) = (image(dense)?, image(coarse)?);
    if planes != coarse_planes || y.len() != dy.len() {
        return Err(::ort::Error::new("shapes don't fit together"));
    }
    let pool = pool(dense_sizes, coarse_sizes);
    let mut dx = output(context, 0, dense)?;
    let (_, dx) = dx.try_extract_tensor_mut::<f32>()?;
    let (dense, coarse) = (pool.dense(), pool.coarse());
    // Small planes together: handing out each would take longer than its gradient.
    let planes = PART.div_ceil(dense);
    each_part(context, dx, planes * dense, |part, dx| {
        let from = part * planes;
        let to = from + dx.len() / dense;
        let (x, coarse) = (&x[from * dense..to * dense], from * coarse..to * coarse);
        pool.gradient(x, &y[coarse.clone()], &dy[coarse], dx);
    })
}
