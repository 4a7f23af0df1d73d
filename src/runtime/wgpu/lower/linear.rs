//! Matrix products. Transposes are only other strides; `Gemm`'s scaling and bias fuse with what follows.

use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, Walk, expect_f32, kernel};
use crate::onnx::infer::broadcast;

pub const TABLE: &[Row] = &[("Gemm", gemm), ("MatMul", matmul)];

/// Rows and columns of C above which the tiled kernel is used; below, tiles would mostly be empty.
const TILED_FROM: usize = 32;
/// Width and height of the tiled kernel's tiles.
const TILE: usize = 64;

fn matmul(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let shape = l.out_shape(node, 0)?;
    let row = |o: Operand| match o.view.rank() {
        1 => {
            let n = o.view.shape[0];
            Operand {
                view: super::View { shape: vec![1, n], strides: vec![0, o.view.strides[0]], ..o.view },
                ..o
            }
        }
        _ => o,
    };
    let b = match b.view.rank() {
        1 => transposed(row(b)),
        _ => b,
    };
    let c = product(l, &row(a), &b)?;
    let c = l.reshape(&c, &shape)?;
    l.set(node, 0, c)
}

fn gemm(l: &mut Lowering, node: &Node) -> Outcome {
    let (mut a, mut b) = (l.arg(node, 0)?, l.arg(node, 1)?);
    if node.int_or("transA", 0) != 0 {
        a = transposed(a);
    }
    if node.int_or("transB", 0) != 0 {
        b = transposed(b);
    }
    let mut y = product(l, &a, &b)?;
    let (alpha, beta) = (node.float_or("alpha", 1.0), node.float_or("beta", 1.0));
    if alpha != 1.0 {
        let alpha = l.scalar(alpha)?;
        y = l.map_f32("{0} * {1}", &[&y, &alpha])?;
    }
    if let Some(c) = l.optional(node, 2)? {
        y = match beta == 1.0 {
            true => l.map_f32("{0} + {1}", &[&y, &c])?,
            false => {
                let beta = l.scalar(beta)?;
                l.map_f32("{0} + {1} * {2}", &[&y, &c, &beta])?
            }
        };
    }
    l.set(node, 0, y)
}

/// Swaps the last two axes.
fn transposed(o: Operand) -> Operand {
    let mut perm: Vec<usize> = (0..o.view.rank()).collect();
    let rank = perm.len();
    perm.swap(rank - 2, rank - 1);
    Operand { view: o.view.permuted(&perm), ..o }
}

/// `a · b` over the last two axes; the axes before broadcast.
pub fn product(l: &mut Lowering, a: &Operand, b: &Operand) -> Outcome<Operand> {
    expect_f32(a)?;
    expect_f32(b)?;
    let (ra, rb) = (a.view.rank(), b.view.rank());
    if ra < 2 || rb < 2 {
        return Err("matrices need two dimensions".into());
    }
    let (m, k, n) = (a.view.shape[ra - 2], a.view.shape[ra - 1], b.view.shape[rb - 1]);
    let batch =
        broadcast(&a.view.shape[..ra - 2], &b.view.shape[..rb - 2]).ok_or("batches don't broadcast")?;
    if b.view.shape[rb - 2] != k {
        return Err(format!("{m}×{k} times {}×{n}", b.view.shape[rb - 2]));
    }
    // A matrix that all batches share as B makes the batch just more rows of A.
    if rb == 2
        && ra > 2
        && let Some(view) = a.view.reshaped(&[a.view.len() / k.max(1), k])
        && k > 0
    {
        let rows = Operand { view, ..a.clone() };
        let c = product(l, &rows, b)?;
        return l.reshape(&c, &[&batch[..], &[m, n]].concat());
    }
    let c = l.fresh(Elem::F32, &[&batch[..], &[m, n]].concat())?;
    let (va, vb) = (
        a.view.broadcast(&[&batch[..], &[m, k]].concat()),
        b.view.broadcast(&[&batch[..], &[k, n]].concat()),
    );
    let rank = batch.len();
    let walk = Walk::new(&batch, &[&va.strides[..rank], &vb.strides[..rank]]);
    let batches: usize = batch.iter().product();
    let mut params: Vec<i32> = [m, k, n, batches].iter().map(|&d| d as i32).collect();
    params.extend([va.offset, va.strides[rank], va.strides[rank + 1]]);
    params.extend([vb.offset, vb.strides[rank], vb.strides[rank + 1]]);
    params.push(walk.rank());
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    let (kernel, groups) = match m >= TILED_FROM && n >= TILED_FROM && k >= 8 {
        true => (kernel::MATMUL_TILED, batches * m.div_ceil(TILE) * n.div_ceil(TILE)),
        false => (kernel::MATMUL_SMALL, (batches * m * n).div_ceil(GROUP)),
    };
    l.call(kernel, &[], params, &[a, b], &[&c], groups);
    Ok(c)
}
