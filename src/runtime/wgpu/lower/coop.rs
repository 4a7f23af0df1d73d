//! Matrix products on matrix units: which tiles there are, and how the subgroups of a workgroup share one.
//!
//! See `shaders/matmul_coop.wgsl`. Knows no nodes. Look at [`Product`].

use super::linear::Layout;
use super::tiles::{Grid, TILE, Tile};
use super::{Lowering, MatrixUnits, Operand, Outcome, View, Walk, reduce};
use crate::runtime::wgpu::kernel::MATMUL_COOP;
use crate::runtime::wgpu::plan::{Kind, Tiling};

/// Rows, columns and terms of products that fill a tile.
const LEAST: [usize; 3] = [TILE, TILE, 32];
/// Length of a step along k.
pub const DEPTH: usize = 32;
/// Rows and columns of what a subgroup multiplies at once.
const BLOCK: usize = 16;
/// Subgroups of a workgroup.
const SUBGROUPS: usize = 8;
/// Larger tiles, the best first: those that are taken unless others are found to be faster.
pub const LARGE: [Tile; 3] = [[2, 2], [1, 2], [2, 1]];
const TILES: [Tile; 6] = [[1, 1], [1, 2], [2, 1], [2, 2], [2, 4], [4, 2]];

/// Whether a product fills a tile, and comes to enough multiplications.
pub fn pays(grid: &Grid, units: &MatrixUnits) -> bool {
    let [m, n, k] = [grid.rows, grid.columns, grid.terms];
    let elements = grid.matrices.saturating_mul(m * k + k * n + m * n);
    let filled = [m, n, k].iter().zip(LEAST).all(|(&size, least)| size >= least);
    filled && grid.work() >= units.from && grid.work() / elements >= units.each
}

/// What elements are multiplied by before they are rounded: the power of two that brings the largest to 2¹⁴ or above, below
/// 2¹⁵. The exponent is read from its bits; 253 is the largest that has a reciprocal.
const SCALE: Kind = Kind {
    map: "abs(v)",
    combine: "max(a, b)",
    finish: "bitcast<f32>(u32(clamp(268 - i32(bitcast<u32>(v) >> 23u), 1, 253)) << 23u)",
    start: 0.0,
    start_i32: 0,
};

/// What `x` is multiplied by before it is rounded to float16, so that nothing overflows and only what is smaller than 2⁻³⁹ of the
/// largest element vanishes: an operand of one element.
pub fn scale(l: &mut Lowering, x: &Operand) -> Outcome<Operand> {
    // The largest is the same whatever the shape: read as it lies in memory, and once.
    let mut order: Vec<usize> = (0..x.view.rank()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(x.view.strides[i]));
    let sorted = x.view.permuted(&order);
    let walk = Walk::new(&sorted.shape, &[&sorted.strides]);
    let shape = walk.dims.iter().map(|&d| d as usize).collect();
    let view = View { shape, strides: walk.strides[0].clone(), offset: x.view.offset };
    if let Some(known) = l.scales.get(&(x.storage, view.clone())) {
        return Ok(known.clone());
    }
    let axes: Vec<usize> = (0..view.rank()).collect();
    let scale = reduce::by_kind(l, SCALE, &Operand { view: view.clone(), ..x.clone() }, &axes)?;
    l.scales.insert((x.storage, view), scale.clone());
    Ok(scale)
}

/// A product for matrix units.
pub struct Product {
    pub grid: Grid,
    /// A's and B's.
    pub layouts: [Layout; 2],
    /// Terms of a part of k.
    pub part: usize,
}

impl Product {
    /// By tiles of the `usual` size, and by all others for which a workgroup has the memory, cut into `parts`.
    pub fn tiling(&self, usual: Tile, parts: usize, memory: u32) -> Tiling {
        let fits = |tile: &Tile| self.memory(*tile) <= memory as usize;
        let tiles: Vec<Tile> = TILES.into_iter().filter(fits).collect();
        self.grid.tiling(MATMUL_COOP, usual, &tiles, parts, |tile| self.values(tile))
    }
    /// Rows of C begin at multiples of 16 bytes: blocks can be stored where they belong.
    fn is_direct(&self) -> bool {
        self.grid.columns.is_multiple_of(4)
    }
    fn has_edges(&self, [r, c]: Tile) -> bool {
        let filled = self.grid.rows.is_multiple_of(TILE * r) && self.grid.columns.is_multiple_of(TILE * c);
        !(filled && self.is_direct())
    }
    /// Bytes that a workgroup shares.
    fn memory(&self, tile: Tile) -> usize {
        const PADDING: usize = 8;
        let of = |(layout, quads): (&Layout, usize)| match layout.along {
            true => TILE * quads * (DEPTH + PADDING),
            false => DEPTH * (TILE * quads + PADDING),
        };
        let halves: usize = self.layouts.iter().zip(tile).map(of).sum();
        2 * halves + if self.has_edges(tile) { 4 * SUBGROUPS * BLOCK * BLOCK } else { 0 }
    }
    /// What the kernel's placeholders are filled with.
    fn values(&self, tile: Tile) -> Vec<(&'static str, String)> {
        let ([r, c], [a, b]) = (tile, self.layouts);
        let whole = self.grid.terms.is_multiple_of(DEPTH) && self.part.is_multiple_of(DEPTH);
        // Two or four subgroups side by side, more across than down where the tile is wide.
        let subs = if c > r { 4 } else { 2 };
        let blocks = [TILE / BLOCK * r * subs / SUBGROUPS, TILE / BLOCK * c / subs];
        let by_rows = |yes: bool| if yes { "coopLoadT" } else { "coopLoad" }.to_owned();
        let number = |v: usize| v.to_string();
        let flag = |v: bool| usize::from(v).to_string();
        vec![
            ("quads_m", number(r)),
            ("quads_n", number(c)),
            ("subs", number(subs)),
            ("blocks_m", number(blocks[0])),
            ("blocks_n", number(blocks[1])),
            ("depth", number(DEPTH)),
            ("slices", number(DEPTH / BLOCK)),
            ("buffers", number(1)),
            ("whole", flag(whole)),
            ("along_a", flag(a.along)),
            ("along_b", flag(b.along)),
            ("vectors_a", flag(a.vectors)),
            ("vectors_b", flag(b.vectors)),
            // Vectors that an invocation loads a step.
            ("loads_a", number(r * DEPTH / BLOCK)),
            ("loads_b", number(c * DEPTH / BLOCK)),
            // A's rows are lines, B's columns.
            ("read_a", by_rows(a.along)),
            ("read_b", by_rows(!b.along)),
            ("direct", flag(self.is_direct())),
            ("edges", flag(self.has_edges(tile))),
        ]
    }
}

#[cfg(test)]
mod tests;
