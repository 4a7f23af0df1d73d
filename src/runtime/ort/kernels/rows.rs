//! Sums of rows by the places they belong to, the gradient of [Gather](https://onnx.ai/onnx/operators/onnx__Gather.html). ONNX Runtime
//! loses parts of them where rows are added by several threads (`autodiff/rules/index.rs`), and element by element it takes six times
//! as long as one thread does here.

use super::{PART, each_part, input, output, unfit};
use crate::onnx::kernels::ROW_SUMS;
use ::ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ::ort::value::TensorElementType;

/// Of n places, from the front, and rows (`[n, width]`): `[size, width]`, `size` being an attribute.
pub struct RowSums {
    pub threads: usize,
}

impl Operator for RowSums {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        ROW_SUMS
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [TensorElementType::Int64, TensorElementType::Float32].map(OperatorInput::required)
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }
    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ::ort::Result<Self::Kernel<'attr>> {
        let threads = self.threads;
        let size: i64 = context.get("size").filter(|&size| size >= 0).ok_or_else(unfit)?;
        Ok(Box::new(move |context: &ComputeContext| compute(context, size, threads)))
    }
}

/// Each thread makes a range of the sums and goes through all places for it: no two add to one row.
fn compute(context: &ComputeContext, size: i64, threads: usize) -> ::ort::Result<()> {
    let (places, rows) = (input(context, 0)?, input(context, 1)?);
    let ((_, places), (shape, rows)) =
        (places.try_extract_tensor::<i64>()?, rows.try_extract_tensor::<f32>()?);
    let [count, width] = shape[..] else { return Err(unfit()) };
    if count != places.len() as i64 {
        return Err(unfit());
    }
    if let Some(place) = places.iter().find(|place| !(0..size).contains(place)) {
        return Err(::ort::Error::new(format!("an index of {place} into an axis of {size}")));
    }
    let mut sums = output(context, 0, &[size, width])?;
    let (_, sums) = sums.try_extract_tensor_mut::<f32>()?;
    let width = width as usize;
    let part = (size as usize).div_ceil(threads.max(1)).max(PART.div_ceil(width.max(1)));
    each_part(context, sums, part * width, |i, sums| {
        onnx_merge_kernels::add_rows(places, rows, width, (i * part) as i64, sums);
    })
}
