//! Matrix products. Transposes are only other strides; `Gemm`'s scaling and bias fuse with what follows.

use super::coop;
use super::tiles::{DEPTH, Grid, PART, TILES, Tile, parts_of};
use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, View, Walk, expect_f32, kernel, reduce};
use crate::onnx::infer::broadcast;
use crate::runtime::wgpu::plan::Tiling;

pub const TABLE: &[Row] = &[("Gemm", gemm), ("MatMul", matmul)];

/// Rows and columns of C from which the tiled kernel is used; below, tiles would mostly be empty.
const TILED_FROM: usize = 32;
/// The same from so many multiplications on: tiles of which a quarter is used are faster by far than an invocation an element, where there
/// is much to do.
const MUCH: usize = 1 << 22;
const MUCH_TILED_FROM: usize = 16;
/// Larger tiles of the tiled kernel, the best first.
const LARGE: [Tile; 3] = [[2, 2], [1, 2], [2, 1]];

fn matmul(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let shape = l.out_shape(node, 0)?;
    let row = |o: Operand| match o.view.rank() {
        1 => {
            let n = o.view.shape[0];
            Operand { view: View { shape: vec![1, n], strides: vec![0, o.view.strides[0]], ..o.view }, ..o }
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
pub fn transposed(o: Operand) -> Operand {
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
    let (va, vb) = (
        a.view.broadcast(&[&batch[..], &[m, k]].concat()),
        b.view.broadcast(&[&batch[..], &[k, n]].concat()),
    );
    let rank = batch.len();
    let walk = Walk::new(&batch, &[&va.strides[..rank], &vb.strides[..rank]]);
    let batches: usize = batch.iter().product();
    let grid = Grid { matrices: batches, rows: m, columns: n, terms: k };
    let units = l.target.matrix_units.filter(|units| coop::pays(&grid, units));
    let (large, step) = if units.is_some() { (&coop::LARGE, coop::DEPTH) } else { (&LARGE, 4) };
    let least = if grid.work() >= MUCH { MUCH_TILED_FROM } else { TILED_FROM };
    let tile = (m >= least && n >= least && k >= 8).then(|| grid.usual(large));
    // Where an element is an invocation's, k is cut as well.
    let parts = match tile {
        Some(tile) => grid.parts(tile),
        None => parts_of((batches * m * n).div_ceil(GROUP), k, PART),
    };
    let mut params: Vec<i32> = [m, k, n, batches].iter().map(|&d| d as i32).collect();
    params.extend([va.offset, va.strides[rank], va.strides[rank + 1]]);
    params.extend([vb.offset, vb.strides[rank], vb.strides[rank + 1]]);
    let part = k.div_ceil(parts).next_multiple_of(step);
    params.extend([walk.rank(), parts as i32, part as i32]);
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    let to = l.fresh(Elem::F32, &[&[parts], &batch[..], &[m, n]].concat())?;
    match tile {
        None => {
            let groups = (parts * batches * m * n).div_ceil(GROUP);
            l.call(kernel::MATMUL_SMALL, &[], params, &[a, b], &[&to], groups);
        }
        Some(tile) => {
            let layouts = [
                Layout::of(&va, &walk.strides[0], [rank, rank + 1], [m, k]),
                Layout::of(&vb, &walk.strides[1], [rank + 1, rank], [n, k]),
            ];
            match units {
                Some(units) => {
                    let scales = [coop::scale(l, a)?, coop::scale(l, b)?];
                    let tiling = coop::Product { grid, layouts, part }.tiling(tile, parts, units.memory);
                    l.call_tiled(tiling, params, &[a, b, a, b, &scales[0], &scales[1]], &[&to]);
                }
                None => {
                    let tiling = tiled(&grid, layouts, tile, parts, part);
                    l.call_tiled(tiling, params, &[a, b, a, b], &[&to]);
                }
            }
        }
    }
    // The parts are added in order, so the result is the same every time.
    let c = if parts == 1 { to } else { reduce::over(l, "ReduceSum", &to, &[0])? };
    l.reshape(&c, &[&batch[..], &[m, n]].concat())
}

/// A product by the tiled kernel, in `parts` of `part` terms.
fn tiled(grid: &Grid, layouts: [Layout; 2], tile: Tile, parts: usize, part: usize) -> Tiling {
    let vectors = grid.columns.is_multiple_of(4);
    let whole = grid.terms.is_multiple_of(DEPTH) && part.is_multiple_of(DEPTH);
    let number = |v: usize| v.to_string();
    // 1 by vectors along k, 2 by vectors along the other axis, 0 by elements.
    let [load_a, load_b] = layouts.map(|layout| match layout {
        Layout { vectors: false, .. } => 0,
        Layout { along: true, .. } => 1,
        Layout { along: false, .. } => 2,
    });
    let values = |[down, across]: Tile| {
        vec![
            ("quads_m", number(down)),
            ("quads_n", number(across)),
            ("whole", number(usize::from(whole))),
            ("load_a", number(load_a)),
            ("load_b", number(load_b)),
            ("loads_a", number(down)),
            ("loads_b", number(across)),
            ("c", if vectors { "vec4<f32>" } else { "f32" }.to_owned()),
            ("vectors", number(usize::from(vectors))),
            ("scalars", number(if vectors { 0 } else { 4 })),
        ]
    };
    grid.tiling(kernel::MATMUL_TILED, tile, &TILES, parts, values)
}

/// How an operand lies in memory.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Its elements are closer along k than along the other axis.
    pub along: bool,
    /// In that direction they lie in dense, aligned quadruples.
    pub vectors: bool,
}

impl Layout {
    /// `axes` and `sizes` are those of the other axis and of k, `batch` the strides before them.
    fn of(view: &View, batch: &[i32], axes: [usize; 2], sizes: [usize; 2]) -> Self {
        let [other, k] = axes.map(|axis| view.strides[axis]);
        let even = |stride: i32| stride % 4 == 0;
        let aligned = even(view.offset) && batch.iter().all(|&s| even(s));
        let quads = |dense: i32, next: i32, size: usize| {
            aligned && dense == 1 && even(next) && size.is_multiple_of(4)
        };
        let (by_k, by_other) = (quads(k, other, sizes[1]), quads(other, k, sizes[0]));
        let closer = k.unsigned_abs() <= other.unsigned_abs();
        Layout { along: by_k || (!by_other && closer), vectors: by_k || by_other }
    }
}
