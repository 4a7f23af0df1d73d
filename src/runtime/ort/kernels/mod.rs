//! Kernels of ours for standard operators that ONNX Runtime runs slowly, registered as operators of a domain of our own.
//!
//! A node that one of them fits goes by that domain in the session's copy of the graph; what it means stays the same, and files
//! never see the domain. Which nodes, and what it brings: `docs/autodiff.md`.

pub mod chain;
mod convolution;
mod pool;
pub mod product;
mod rows;
mod unfolded;

use crate::onnx::kernels::DOMAIN;
use crate::onnx::{Facts, Graph, Model, Node};
use ::ort::operator::{ComputeContext, OperatorDomain};
use ::ort::value::{DynTensorValueType, Shape, ValueRef, ValueRefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// An operator of the standard's that has a kernel here.
struct Row {
    op: &'static str,
    /// Whether the kernel can do this node, and is faster.
    fits: fn(&Node, &Facts, &Graph) -> bool,
}

const TABLE: &[Row] = &[
    Row { op: "Conv", fits: convolution::fits },
    Row { op: "ConvTranspose", fits: convolution::fits_transposed },
];

/// The kernels that a session's graph names.
pub struct Kernels {
    threads: usize,
    chains: Arc<[chain::Chained]>,
}

impl Kernels {
    /// For sessions to know.
    pub fn domain(&self) -> ::ort::Result<OperatorDomain> {
        let (domain, threads) = (OperatorDomain::new(DOMAIN)?, self.threads);
        let domain = domain.add(convolution::Convolution { transposed: false, threads })?;
        let domain = domain.add(convolution::Convolution { transposed: true, threads })?;
        let domain = domain.add(pool::MaxPoolGradient)?;
        let domain = domain.add(product::Products { threads })?;
        let domain = domain.add(rows::RowSums { threads })?;
        let domain = domain.add(unfolded::ConvWeightGradient { threads })?;
        domain.add(chain::Chains(self.chains.clone()))
    }
}

/// Hands over the nodes that kernels of ours fit, if there are any.
pub fn swap_in(model: &mut Model, facts: &Facts, threads: usize) -> Option<Kernels> {
    let graph = &model.graph;
    let fits = |node: &Node| {
        let known = |row: &Row| row.op == node.op && (row.fits)(node, facts, graph);
        node.domain.is_empty() && TABLE.iter().any(known)
    };
    let chosen: Vec<usize> = (0..graph.nodes.len()).filter(|&i| fits(&graph.nodes[i])).collect();
    for &i in &chosen {
        DOMAIN.clone_into(&mut model.graph.nodes[i].domain);
    }
    if onnx_merge_kernels::product::is_fast() {
        super::products::swap_in(&mut model.graph, facts);
    }
    let chains = super::chains::fuse(&mut model.graph, facts);
    let any = model.graph.nodes.iter().any(|node| node.domain == DOMAIN);
    any.then(|| {
        model.opsets.insert(DOMAIN.to_owned(), 1);
        Kernels { threads, chains: chains.into() }
    })
}

fn input(context: &ComputeContext, i: usize) -> ::ort::Result<ValueRef<'_>> {
    context.input(i)?.ok_or_else(|| ::ort::Error::new(format!("input {i} is missing")))
}

fn output<'a>(context: &'a ComputeContext, i: usize, shape: &[i64]) -> ::ort::Result<ValueRefMut<'a>> {
    context
        .output(i, Shape::new(shape.iter().copied()))?
        .ok_or_else(|| ::ort::Error::new(format!("output {i} isn't wanted")))
}

/// A tensor of elements of one byte, such as booleans, of which nobody knows whether all are 0 or 1.
fn bytes<'a>(value: &'a ValueRef<'_>) -> ::ort::Result<&'a [u8]> {
    let tensor = value.view().downcast::<DynTensorValueType>()?;
    let count = tensor.shape().num_elements();
    let elements: *const u8 = tensor.data_ptr().cast();
    match elements.is_null() || count == 0 {
        true => Ok(&[]),
        // SAFETY: a tensor of elements of one byte each, as the operator's declaration demands, dense and in the processor's
        // memory; it lives as long as the value, which the node only reads.
        false => Ok(unsafe { std::slice::from_raw_parts(elements, count) }),
    }
}

fn unfit() -> ::ort::Error {
    ::ort::Error::new("shapes don't fit together")
}

/// Elements that one thread makes before it asks for more.
const PART: usize = 1 << 15;

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
