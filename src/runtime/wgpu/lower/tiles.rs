//! Tiles that matrix products and sums over windows are computed by: how large they are, and into how many parts a long sum is
//! cut.
//!
//! Which tiles are the fastest differs from device to device; [`super::super::search`] finds out. Parts don't depend on it,
//! so results don't, either. Knows no nodes. Look at [`Grid`].

use crate::runtime::wgpu::kernel::Kernel;
use crate::runtime::wgpu::plan::{Form, Tiling};

/// Width and height of the smallest tiles; larger ones are twice that, in one direction or both.
pub const TILE: usize = 64;
/// Length of a step along a sum.
pub const DEPTH: usize = 16;
/// Terms that a part of a split sum has at least.
pub const PART: usize = 256;
/// Workgroups that keep a GPU busy; where there are fewer, long sums are split.
const BUSY: usize = 256;
/// Workgroups that larger tiles must leave; with fewer, smaller ones share the work better.
const MANY_TILES: usize = 128;

/// Height and width of a tile, in those of the smallest.
pub type Tile = [usize; 2];
pub const TILES: [Tile; 4] = [[1, 1], [1, 2], [2, 1], [2, 2]];

/// Parts that sums of `terms` are cut into where `groups` workgroups compute them whole, at least `part` terms each.
pub fn parts_of(groups: usize, terms: usize, part: usize) -> usize {
    (BUSY / groups.max(1)).min(terms / part).max(1)
}

/// So many matrices, each element of which is a sum.
#[derive(Clone, Copy)]
pub struct Grid {
    pub matrices: usize,
    pub rows: usize,
    pub columns: usize,
    pub terms: usize,
}

impl Grid {
    /// Multiplications with an addition each.
    pub fn work(&self) -> usize {
        [self.rows, self.columns, self.terms].into_iter().fold(self.matrices, usize::saturating_mul)
    }
    /// Workgroups without splitting.
    pub fn tiles(&self, [r, c]: Tile) -> usize {
        self.matrices * self.rows.div_ceil(TILE * r) * self.columns.div_ceil(TILE * c)
    }
    pub fn parts(&self, tile: Tile) -> usize {
        parts_of(self.tiles(tile), self.terms, PART)
    }
    /// Whether no half of a tile is always empty.
    fn fills(&self, [r, c]: Tile) -> bool {
        (r == 1 || self.rows > TILE * r / 2) && (c == 1 || self.columns > TILE * c / 2)
    }
    /// The first of `large` that leaves enough to do at once, else the smallest tile.
    pub fn usual(&self, large: &[Tile]) -> Tile {
        let fits = |&tile: &Tile| self.fills(tile) && self.tiles(tile) * self.parts(tile) >= MANY_TILES;
        large.iter().copied().find(fits).unwrap_or([1, 1])
    }
    /// A kernel by tiles of the `usual` size, and by those of the other sizes of `tiles`, cut into `parts`.
    pub fn tiling(
        &self,
        kernel: Kernel,
        usual: Tile,
        tiles: &[Tile],
        parts: usize,
        values: impl Fn(Tile) -> Vec<(&'static str, String)>,
    ) -> Tiling {
        let form = |tile| Form { tile, kernel, values: values(tile), groups: self.tiles(tile) * parts };
        let others = tiles.iter().copied().filter(|&tile| tile != usual && self.fills(tile));
        Tiling { work: self.work(), forms: std::iter::once(usual).chain(others).map(form).collect() }
    }
}

#[cfg(test)]
mod tests;
