//! How much arithmetic a graph is, and whether that is worth the way to a GPU.

use super::Executor;
use super::select::{ExecutorChoice, ExecutorOptions, open};
use crate::onnx::{Facts, Graph, Model, Node, ValueId};
use std::sync::Arc;

/// Multiplications and additions of a training step from which a GPU is taken. At a tenth of it, a GPU's step is a
/// fraction of a CPU's, but compiling kernels takes as long as is gained over a usual run (docs/benchmarks-gpu.md).
const WORTH_A_GPU: f64 = 1e9;
/// A step is a forward pass and, for each of its products, two of the same size on the way back.
const PASSES: f64 = 3.0;

/// Multiplications with an addition in one run of `graph`, in its convolutions and matrix products; the rest is little
/// beside them. A node whose sizes aren't in `facts` counts nothing.
pub fn multiply_adds(graph: &Graph, facts: &Facts) -> f64 {
    graph.nodes.iter().filter_map(|node| multiply_adds_of(node, facts)).sum()
}

/// Those of one node; `None` for one that is neither a convolution nor a product, or whose sizes aren't known.
pub fn multiply_adds_of(node: &Node, facts: &Facts) -> Option<f64> {
    let shape = |id: Option<&ValueId>| facts.get(id?).map(|fact| fact.shape.as_slice());
    let size = |shape: &[usize]| shape.iter().product::<usize>() as f64;
    let (x, w, y) = (shape(node.input(0))?, shape(node.input(1))?, shape(node.output(0))?);
    Some(match node.op.as_str() {
        // What a kernel sees of one output channel, and of one input channel.
        "Conv" => size(y) * size(w.get(1..)?),
        "ConvTranspose" => size(x) * size(w.get(1..)?),
        "MatMul" => size(y) * *x.last()? as f64,
        "Gemm" => size(y) * x[usize::from(node.int_or("transA", 0) == 0).min(x.len().checked_sub(1)?)] as f64,
        _ => return None,
    })
}

/// A GPU for a training step whose forward pass is `model`, `runs` times a step: where there is a discrete one (or a software
/// driver that `options` allow), it has kernels for everything, and the work is worth it.
pub fn gpu_where_it_pays(
    model: &Model,
    facts: &Facts,
    runs: usize,
    options: &ExecutorOptions,
) -> Option<Arc<dyn Executor>> {
    if PASSES * runs as f64 * multiply_adds(&model.graph, facts) < WORTH_A_GPU {
        return None;
    }
    found(model, options)
}

#[cfg(feature = "wgpu")]
fn found(model: &Model, options: &ExecutorOptions) -> Option<Arc<dyn Executor>> {
    let covered = model.graph.nodes.iter().all(super::WgpuExecutor::covers);
    let fit = |kind: &str| kind == "discrete GPU" || (options.allow_software_gpu && kind == "software");
    let there = || super::wgpu::adapters().iter().any(|adapter| fit(adapter.kind));
    (covered && there()).then(|| open(ExecutorChoice::Wgpu, options).ok()).flatten()
}

#[cfg(not(feature = "wgpu"))]
fn found(_: &Model, _: &ExecutorOptions) -> Option<Arc<dyn Executor>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attr, Builder, DType, Fact};

    #[test]
    fn convolutions_and_products_are_counted() {
        let mut b = Builder::new("work");
        let x = b.input("x", Fact::new(DType::F32, &[2, 6, 10, 10]));
        let w = b.input("w", Fact::new(DType::F32, &[4, 3, 3, 3]));
        let y = b.op_with("Conv", &[&x, &w], &[("group", Attr::Int(2))]);
        let flat = b.reshape(&y, &[2, 256]);
        let v = b.input("v", Fact::new(DType::F32, &[256, 5]));
        let u = b.input("u", Fact::new(DType::F32, &[7, 2]));
        let z = b.matmul(&flat, &v);
        let z = b.op_with("Gemm", &[&u, &z], &[("transA", Attr::Int(0))]);
        b.output(&z);
        let (graph, facts) = b.finish();
        let expected = (2 * 4 * 64 * 3 * 9) + (2 * 5 * 256) + (7 * 5 * 2);
        assert_eq!(multiply_adds(&graph, &facts), f64::from(expected));
    }
}
