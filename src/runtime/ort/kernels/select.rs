//! [Where](https://onnx.ai/onnx/operators/onnx__Where.html), the gradient of everything that cuts off.
//!
//! ONNX Runtime's takes three passes and a branch an element, which random signs make ten to fifty times slower than
//! arithmetic; a product with a mask would be as fast as this, but makes NaN of an infinite cotangent that is to be left out.

use super::each_part;
use crate::onnx::{DType, Facts, Graph, Node};
use ::ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ::ort::value::TensorElementType;
use onnx_merge_kernels::{Operand, select};
use std::ops::Range;

pub fn fits(node: &Node, facts: &Facts, _: &Graph) -> bool {
    let fact = |id: Option<&Option<crate::onnx::ValueId>>| id?.as_ref().and_then(|id| facts.get(id));
    let inputs = || (0..3).map(|i| fact(node.inputs.get(i)));
    let output = fact(node.outputs.first()).filter(|f| !f.shape.contains(&0));
    let Some(output) = output else { return false };
    inputs().enumerate().all(|(i, input)| {
        let one =
            |shape: &[usize]| i > 0 && shape.len() <= output.shape.len() && shape.iter().all(|&d| d == 1);
        let dtype = if i == 0 { DType::Bool } else { DType::F32 };
        input.is_some_and(|f| f.dtype == dtype && (f.shape == output.shape || one(&f.shape)))
    })
}

pub struct Select;

impl Operator for Select {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "Where"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [TensorElementType::Bool, TensorElementType::Float32, TensorElementType::Float32]
            .map(OperatorInput::required)
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }
    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ::ort::Result<Self::Kernel<'attr>> {
        Ok(Box::new(compute))
    }
}

/// Elements of a part of the output that one thread makes.
const PART: usize = 1 << 15;

fn compute(context: &ComputeContext) -> ::ort::Result<()> {
    let (condition, x, y) = (super::input(context, 0)?, super::input(context, 1)?, super::input(context, 2)?);
    let (shape, condition) = super::bytes(&condition)?;
    let ((_, x), (_, y)) = (x.try_extract_tensor::<f32>()?, y.try_extract_tensor::<f32>()?);
    let mut output = super::output(context, &shape)?;
    let (_, output) = output.try_extract_tensor_mut::<f32>()?;
    if [x.len(), y.len()].iter().any(|&n| n != 1 && n != condition.len()) || output.len() != condition.len() {
        return Err(::ort::Error::new("shapes don't match"));
    }
    each_part(context, output, PART, |i, output| {
        let part = i * PART..i * PART + output.len();
        select(&condition[part.clone()], operand(x, &part), operand(y, &part), output);
    })
}

fn operand<'a>(values: &'a [f32], part: &Range<usize>) -> Operand<'a> {
    match values {
        [one] => Operand::One(*one),
        _ => Operand::Each(&values[part.clone()]),
    }
}
