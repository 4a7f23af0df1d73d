//! Chains of elementwise nodes ([`super::super::chains`]) as one operator, which makes all their results in one pass.

use super::{PART, bytes, input, output};
use crate::onnx::{DType, Fact};
use ::ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ::ort::value::TensorElementType;
use onnx_merge_kernels::chain::{Chain, Elements, Room};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

/// The operator's name.
pub const CHAIN: &str = "Chain";
/// Its attribute: which of the session's chains a node is.
pub const WHICH: &str = "chain";

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// A chain, with what its results look like.
pub struct Chained {
    pub chain: Chain,
    pub shape: Vec<i64>,
    /// Which inputs are truths.
    pub truths: Vec<bool>,
}

impl Chained {
    pub fn new(chain: Chain, inputs: &[&Fact], shape: &[usize]) -> Self {
        let truths = inputs.iter().map(|fact| fact.dtype == DType::Bool).collect();
        Self { chain, shape: shape.iter().map(|&d| d as i64).collect(), truths }
    }
}

/// The operator of all of a session's chains.
pub struct Chains(pub Arc<[Chained]>);

impl Operator for Chains {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        CHAIN
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::variadic(0)]
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::variadic(1).homogenous(TensorElementType::Float32)]
    }
    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ::ort::Result<Self::Kernel<'attr>> {
        let which = context.get::<i64>(WHICH).and_then(|i| usize::try_from(i).ok());
        let which = which.filter(|&i| i < self.0.len()).ok_or_else(|| ::ort::Error::new("no such chain"))?;
        let chains = self.0.clone();
        Ok(Box::new(move |context: &ComputeContext| compute(context, &chains[which])))
    }
}

fn compute(context: &ComputeContext, chained: &Chained) -> ::ort::Result<()> {
    let Chained { chain, shape, truths } = chained;
    let values = (0..truths.len()).map(|i| input(context, i)).collect::<::ort::Result<Vec<_>>>()?;
    let elements = values.iter().zip(truths).map(|(value, &truth)| {
        Ok(match truth {
            true => Elements::Bytes(bytes(value)?),
            false => Elements::Floats(value.try_extract_tensor::<f32>()?.1),
        })
    });
    let elements = elements.collect::<::ort::Result<Vec<_>>>()?;
    let mut results =
        (0..chain.outputs()).map(|i| output(context, i, shape)).collect::<::ort::Result<Vec<_>>>()?;
    let mut parts: Vec<Vec<&mut [f32]>> = vec![];
    for result in &mut results {
        let (_, result) = result.try_extract_tensor_mut::<f32>()?;
        if result.len() != chain.len() {
            return Err(::ort::Error::new("a result of another shape"));
        }
        parts.resize_with(result.len().div_ceil(PART), Vec::new);
        parts.iter_mut().zip(result.chunks_mut(PART)).for_each(|(part, piece)| part.push(piece));
    }
    if !chain.fits(&elements) {
        return Err(::ort::Error::new("inputs of other shapes"));
    }
    let parts: Vec<Mutex<Vec<&mut [f32]>>> = parts.into_iter().map(Mutex::new).collect();
    context.par_for(parts.len(), 0, |i| {
        let Some(part) = parts.get(i) else { return };
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        ROOM.with_borrow_mut(|room| chain.run(&elements, &mut part, i * PART, room));
    })
}
