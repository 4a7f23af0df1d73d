//! Kernels of ours for standard operators that ONNX Runtime runs slowly, registered as operators of a domain of our own.
//!
//! A node that one of them fits goes by that domain in the session's copy of the graph; what it means stays the same, and files
//! never see the domain. Which nodes, and what it brings: `docs/autodiff.md`.

mod convolution;
mod select;

use crate::onnx::{Facts, Graph, Model, Node};
use ::ort::operator::{ComputeContext, OperatorDomain};
use ::ort::value::{DynTensorValueType, Shape, ValueRef, ValueRefMut};
use std::sync::{Mutex, PoisonError};

const DOMAIN: &str = "onnx_merge.cpu";

/// An operator of the standard's that has a kernel here.
struct Row {
    op: &'static str,
    /// Whether the kernel can do this node, and is faster.
    fits: fn(&Node, &Facts, &Graph) -> bool,
}

const TABLE: &[Row] = &[
    Row { op: "Conv", fits: convolution::fits },
    Row { op: "ConvTranspose", fits: convolution::fits_transposed },
    Row { op: "Where", fits: select::fits },
];

/// All kernels, for sessions to know.
pub fn domain() -> ::ort::Result<OperatorDomain> {
    let domain = OperatorDomain::new(DOMAIN)?;
    let domain = domain.add(convolution::Convolution { transposed: false })?;
    let domain = domain.add(convolution::Convolution { transposed: true })?;
    domain.add(select::Select)
}

/// Hands over the nodes that kernels of ours fit; whether there are any.
pub fn swap_in(model: &mut Model, facts: &Facts) -> bool {
    let graph = &model.graph;
    let fits = |node: &Node| {
        let known = |row: &Row| row.op == node.op && (row.fits)(node, facts, graph);
        node.domain.is_empty() && TABLE.iter().any(known)
    };
    let chosen: Vec<usize> = (0..graph.nodes.len()).filter(|&i| fits(&graph.nodes[i])).collect();
    for &i in &chosen {
        DOMAIN.clone_into(&mut model.graph.nodes[i].domain);
    }
    if !chosen.is_empty() {
        model.opsets.insert(DOMAIN.to_owned(), 1);
    }
    !chosen.is_empty()
}

fn input(context: &ComputeContext, i: usize) -> ::ort::Result<ValueRef<'_>> {
    context.input(i)?.ok_or_else(|| ::ort::Error::new(format!("input {i} is missing")))
}

fn output<'a>(context: &'a ComputeContext, shape: &[i64]) -> ::ort::Result<ValueRefMut<'a>> {
    context
        .output(0, Shape::new(shape.iter().copied()))?
        .ok_or_else(|| ::ort::Error::new("no output is wanted"))
}

/// A tensor of elements of one byte, such as booleans, of which nobody knows whether all are 0 or 1.
fn bytes<'a>(value: &'a ValueRef<'_>) -> ::ort::Result<(Vec<i64>, &'a [u8])> {
    let tensor = value.view().downcast::<DynTensorValueType>()?;
    let shape = tensor.shape().to_vec();
    let count = tensor.shape().num_elements();
    let elements: *const u8 = tensor.data_ptr().cast();
    match elements.is_null() || count == 0 {
        true => Ok((shape, &[])),
        // SAFETY: a tensor of elements of one byte each, as the operator's declaration demands, dense and in the processor's
        // memory; it lives as long as the value, which the node only reads.
        false => Ok((shape, unsafe { std::slice::from_raw_parts(elements, count) })),
    }
}

/// Makes `whole` part by part, each `size` elements long, on the threads of the session.
fn each_part(
    context: &ComputeContext,
    whole: &mut [f32],
    size: usize,
    make: impl Fn(usize, &mut [f32]) + Send + Sync,
) -> ::ort::Result<()> {
    let parts: Vec<Mutex<&mut [f32]>> = whole.chunks_mut(size.max(1)).map(Mutex::new).collect();
    context.par_for(parts.len(), 0, |i| {
        if let Some(part) = parts.get(i) {
            make(i, &mut part.lock().unwrap_or_else(PoisonError::into_inner));
        }
    })
}

#[cfg(test)]
mod tests;
