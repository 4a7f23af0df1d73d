//! Sums over sliding windows: which kernel computes one, and its table of taps. See `shaders/window.wgsl`.
//! [`super::depthwise`] has those that need no table.
//!
//! Knows no nodes. Look at [`Sum`].

use super::depthwise::Depthwise;
use super::tiles::{DEPTH, Grid, PART, TILES, Tile, parts_of};
use super::window::AXES;
use super::{GROUP, Lowering, Operand, Outcome, kernel};

/// Larger tiles of the tiled kernel, the best first.
const LARGE: [Tile; 2] = [[2, 1], [1, 2]];
/// Rows from which tiles are worth while; below, most of a tile would be empty.
const TILED_FROM: usize = 16;
/// Taps from which a workgroup shares an output, where there are few.
const DEEP_FROM: usize = 1024;
/// Rows and windows that an invocation of the direct kernel computes at most.
const DIRECT: [usize; 2] = [4, 4];
/// Invocations that the direct kernel keeps, however much each could compute.
const MANY_INVOCATIONS: usize = 65_536;
/// Outputs from which an invocation each keeps a GPU busy.
const MANY_OUTPUTS: usize = 256 * GROUP;
/// A place that no image has.
const NOWHERE: i32 = 1 << 30;
/// The bit of taps that are missing; those below it are of places.
const MISSING: u32 = 31;

/// An element of a row of W, and what it meets in every window.
struct Tap {
    /// Offsets in W, and in X from where the window begins.
    w: i32,
    x: i32,
    /// Place in the window.
    place: [i32; AXES],
}

/// Taps in the order that they are summed in: channels, and in each the elements of a window along z, y, x.
pub struct Lattice {
    pub channels: usize,
    pub counts: [usize; AXES],
    /// Offset in W of the first, and strides from channel to channel and from element to element.
    pub w_first: i32,
    pub w_channel: i32,
    pub w_strides: [i32; AXES],
    /// Stride in X from channel to channel, and X's own along the axes.
    pub x_channel: i32,
    pub x_strides: [i32; AXES],
    /// Place of the first in the window, and distance from element to element.
    pub first: [i32; AXES],
    pub step: [i32; AXES],
}

impl Lattice {
    pub fn len(&self) -> usize {
        self.channels * self.counts.iter().product::<usize>()
    }
    fn taps(&self) -> Vec<Tap> {
        let [nz, ny, nx] = self.counts.map(|n| n as i32);
        let mut taps = Vec::with_capacity(self.len());
        for c in 0..self.channels as i32 {
            for i in 0..nz * ny * nx {
                let at = [i / (ny * nx), i / nx % ny, i % nx];
                let place = [0, 1, 2].map(|a| self.first[a] + at[a] * self.step[a]);
                taps.push(Tap {
                    w: self.w_first + c * self.w_channel + dot(&at, &self.w_strides),
                    x: c * self.x_channel + dot(&place, &self.x_strides),
                    place,
                });
            }
        }
        taps
    }
}

pub fn dot(a: &[i32; AXES], b: &[i32; AXES]) -> i32 {
    (0..AXES).map(|i| a[i] * b[i]).sum()
}

/// `Y[g, r, p] = Σ_t W[g, r, t] · X[g, p, t]`, over windows `p`.
pub struct Sum<'a> {
    pub x: &'a Operand,
    pub w: &'a Operand,
    pub rows: usize,
    pub groups: usize,
    pub taps: Lattice,
    pub images: usize,
    pub windows: [usize; AXES],
    /// Strides of W from row to row and from group to group.
    pub w_steps: [i32; 2],
    /// Offset in X of the first window, and stride from group to group.
    pub x_base: i32,
    pub x_group: i32,
    /// Offset in Y, and strides from row to row and from group to group.
    pub y_base: i32,
    pub y_steps: [i32; 2],
    pub sizes: [usize; AXES],
    pub first: [i32; AXES],
    pub step: [i32; AXES],
    /// Strides from image to image and from window to window.
    pub x_strides: [i32; 1 + AXES],
    pub y_strides: [i32; 1 + AXES],
}

impl Sum<'_> {
    fn columns(&self) -> usize {
        self.images * self.windows.iter().product::<usize>()
    }
    fn outputs(&self) -> usize {
        self.groups * self.rows * self.columns()
    }
    /// The kernel for these sizes.
    fn shape(&self) -> Shape {
        let taps = self.taps.len();
        if self.rows >= TILED_FROM && self.columns() >= TILED_FROM && taps >= 8 {
            return Shape::Tiled(self.grid().usual(&LARGE));
        }
        let deep = taps >= DEEP_FROM && self.outputs() < MANY_OUTPUTS;
        if let Some(depthwise) = Depthwise::of(self, deep) {
            return Shape::Depthwise(depthwise);
        }
        match deep {
            true => Shape::Deep,
            false => Shape::Direct(self.block()),
        }
    }
    /// Rows and columns of an invocation of the direct kernel.
    fn block(&self) -> [usize; 2] {
        // No more blocks of rows than need be, of equal height.
        let rows = self.rows.max(1);
        let tall = rows.div_ceil(rows.div_ceil(DIRECT[0]));
        let blocks = |&[r, c]: &[usize; 2]| self.groups * rows.div_ceil(r) * self.columns().div_ceil(c);
        let sizes = [[tall, DIRECT[1]], [tall, DIRECT[1] / 2], [tall, 1]];
        sizes.into_iter().find(|size| blocks(size) >= MANY_INVOCATIONS).unwrap_or([1, 1])
    }
    fn grid(&self) -> Grid {
        Grid { matrices: self.groups, rows: self.rows, columns: self.columns(), terms: self.taps.len() }
    }
    /// Whether neighbours in memory are neighbouring taps rather than neighbouring windows.
    fn along_taps(&self, taps: &[Tap]) -> bool {
        let next = taps.windows(2).filter(|pair| pair[1].x - pair[0].x == 1).count();
        self.windows[AXES - 1] < 16 && 4 * next >= 3 * taps.len()
    }
    /// Whether columns 4 i … 4 i + 3 are neighbours in Y, and the first of them lies at a multiple of four.
    fn quadruples(&self, part_stride: usize) -> bool {
        let [image, z, y, x] = self.y_strides;
        let [_, ny, nx] = self.windows.map(|n| n as i32);
        // Axes of one window have no stride to speak of.
        let dense = x == 1 && (ny == 1 || y == nx) && (self.windows[0] == 1 || z == ny * nx);
        let even = |v: i32| v % 4 == 0;
        let windows = self.windows.iter().product::<usize>();
        dense
            && windows.is_multiple_of(4)
            && part_stride.is_multiple_of(4)
            && [self.y_base, self.y_steps[0], self.y_steps[1], image].into_iter().all(even)
    }
    /// Whether a tap at `place` of window `window` along `axis` is outside the image.
    pub fn hidden(&self, axis: usize, window: usize, place: i32) -> bool {
        let at = self.first[axis] + self.step[axis] * window as i32 + place;
        at < 0 || at >= self.sizes[axis] as i32
    }
    /// Parts that a long sum is cut into where there is too little else to do at once.
    pub fn parts(&self) -> usize {
        let taps = self.taps.len();
        match self.shape() {
            Shape::Tiled(tile) => self.grid().parts(tile),
            Shape::Depthwise(depthwise) => depthwise.parts(self),
            Shape::Deep => parts_of(self.outputs(), taps, DEEP_FROM),
            Shape::Direct(_) => parts_of(self.outputs().div_ceil(GROUP), taps, PART),
        }
    }
    /// Adds the dispatch; partial sums stand in `y` one behind the other, `part_stride` apart.
    ///
    /// # Errors
    /// Windows that reach too far.
    pub fn emit(&self, l: &mut Lowering, y: &Operand, parts: usize, part_stride: usize) -> Outcome {
        let shape = self.shape();
        if let Shape::Depthwise(depthwise) = shape {
            depthwise.emit(l, self, y, parts, part_stride);
            return Ok(());
        }
        let tiled = matches!(shape, Shape::Tiled(_));
        let taps = self.taps.taps();
        // Steps in tiles are whole, and the table has two more for what is read ahead.
        let mut part = taps.len().div_ceil(parts);
        let mut count = taps.len();
        if tiled {
            part = part.next_multiple_of(DEPTH);
            count = parts * part + 2 * DEPTH;
        }
        let check = self.check(&taps, tiled && parts * part > taps.len());
        let table = l.table(table(&taps, &check, count)?)?;
        let reads = [self.w, self.x, &table];
        let params = self.params([count, parts, part], part_stride);
        let number = |v: usize| v.to_string();
        match shape {
            Shape::Tiled(tile) => {
                let along_taps = self.along_taps(&taps);
                let values = |tile| values(tile, &check, along_taps, self.quadruples(part_stride));
                let tiling = self.grid().tiling(kernel::CONV_TILED, tile, &TILES, parts, values);
                l.call_tiled(tiling, params, &reads, &[y]);
            }
            Shape::Direct([rows, columns]) => {
                let blocks = self.rows.div_ceil(rows) * self.columns().div_ceil(columns);
                let groups = (parts * self.groups * blocks).div_ceil(GROUP);
                let values = [("check", check.mode()), ("rows", rows), ("columns", columns)]
                    .map(|(k, v)| (k, number(v)));
                let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
                l.call(kernel::CONV_DIRECT, &values, params, &reads, &[y], groups);
            }
            Shape::Deep | Shape::Depthwise(_) => {
                let values = [("check", &*number(check.mode()))];
                l.call(kernel::CONV_DEEP, &values, params, &reads, &[y], parts * self.outputs());
            }
        }
        Ok(())
    }
    /// The words of `shaders/window.wgsl`; `taps` are how many the table has, parts, and taps of a part.
    fn params(&self, [taps, parts, part]: [usize; 3], part_stride: usize) -> Vec<i32> {
        let int = |v: usize| v as i32;
        let mut params = vec![int(self.rows), int(taps), int(self.columns()), int(self.groups)];
        params.extend([int(parts), int(part)]);
        params.extend([self.w.view.offset, self.w_steps[0], self.w_steps[1]]);
        params.extend([self.x_base, self.x_group]);
        params.extend([self.y_base, self.y_steps[1], self.y_steps[0], int(part_stride)]);
        params.extend(self.sizes.map(int));
        params.extend(self.first.iter().chain(&self.step));
        params.extend(self.windows.map(int));
        params.extend(self.x_strides.iter().chain(&self.y_strides));
        params
    }
    /// The cheapest way to tell what lies outside the image; taps are `missing` where the table has more than there are.
    ///
    /// A tap's place and a window's place say it together, axis by axis. Where one of the two takes few values, each of
    /// them gets a bit: whoever has the value sets it, and the other side sets the bits of the values that it doesn't
    /// fit. What meets is outside.
    fn check(&self, taps: &[Tap], missing: bool) -> Check {
        let mut places: [Vec<i32>; AXES] = [0, 1, 2].map(|i| taps.iter().map(|tap| tap.place[i]).collect());
        places.iter_mut().for_each(|p| {
            p.sort_unstable();
            p.dedup();
        });
        // Axes along which nothing is hidden take no bits.
        let is_cut = |i: usize| {
            (0..self.windows[i]).any(|window| places[i].iter().any(|&p| self.hidden(i, window, p)))
        };
        let cut = [0, 1, 2].map(is_cut);
        if cut == [false; AXES] && !missing {
            return Check::Nothing;
        }
        let count = |sizes: [usize; AXES]| -> usize { (0..AXES).filter(|&i| cut[i]).map(|i| sizes[i]).sum() };
        let (by_place, by_window) = (count([0, 1, 2].map(|i| places[i].len())), count(self.windows));
        if by_place.min(by_window) > MISSING as usize {
            return Check::Places;
        }
        let mut bits = Bits { taps: vec![0; taps.len()], windows: self.windows.map(|n| vec![0; n]) };
        let mut first_bit = 0;
        for i in (0..AXES).filter(|&i| cut[i]) {
            let values = if by_place <= by_window { places[i].len() } else { self.windows[i] };
            for (value, bit) in (first_bit..first_bit + values).enumerate() {
                let bit = 1u32 << bit;
                let of_tap = |place: i32| match by_place <= by_window {
                    true => places[i][value] == place,
                    false => self.hidden(i, value, place),
                };
                let of_window = |window: usize| match by_place <= by_window {
                    true => self.hidden(i, window, places[i][value]),
                    false => window == value,
                };
                let of_taps = bits.taps.iter_mut().zip(taps);
                of_taps.filter(|(_, tap)| of_tap(tap.place[i])).for_each(|(bits, _)| *bits |= bit);
                let windows = bits.windows[i].iter_mut().enumerate();
                windows.filter(|&(window, _)| of_window(window)).for_each(|(_, bits)| *bits |= bit);
            }
            first_bit += values;
        }
        bits.windows[AXES - 1].iter_mut().for_each(|bits| *bits |= 1 << MISSING);
        Check::Bits(bits)
    }
}

/// What the tiled kernel's text is filled with.
fn values([r, c]: Tile, check: &Check, along_taps: bool, vectors: bool) -> Vec<(&'static str, String)> {
    let along_taps = usize::from(along_taps);
    let number = |v: usize| v.to_string();
    vec![
        ("quads_r", number(r)),
        ("quads_c", number(c)),
        ("loads_w", number(r)),
        ("loads_x", number(c)),
        ("along_taps", number(along_taps)),
        ("along_columns", number(1 - along_taps)),
        ("check", number(check.mode())),
        ("y", if vectors { "vec4<f32>" } else { "f32" }.to_owned()),
        ("vectors", number(usize::from(vectors))),
        ("scalars", number(if vectors { 0 } else { 4 })),
    ]
}

/// `count` taps, and behind them the windows' bits along x, y, z.
fn table(taps: &[Tap], check: &Check, count: usize) -> Outcome<Vec<i32>> {
    let mut table = Vec::with_capacity(4 * count.max(1));
    for (t, tap) in taps.iter().enumerate() {
        let [z, y, x] = tap.place;
        if tap.place.iter().any(|&p| i16::try_from(p).is_err()) {
            return Err("windows that reach over 32,767 elements are not supported on the GPU".into());
        }
        table.extend(match check {
            Check::Bits(bits) => [tap.w, tap.x, bits.taps[t] as i32, 0],
            Check::Nothing | Check::Places => [tap.w, tap.x, (y << 16) | (x & 0xffff), z],
        });
    }
    // What no window sees; only its address counts, which is one that can be read.
    let address = taps.first().map_or([0; 2], |tap| [tap.w, tap.x]);
    let missing = match check {
        Check::Bits(_) => [address[0], address[1], 1 << MISSING, 0],
        Check::Nothing | Check::Places => [address[0], address[1], 0, NOWHERE],
    };
    (taps.len()..count).for_each(|_| table.extend(missing));
    if let Check::Bits(bits) = check {
        table.extend(bits.windows.iter().rev().flatten().flat_map(|&bits| [bits as i32, 0, 0, 0]));
    }
    if table.is_empty() {
        table.resize(4, 0);
    }
    Ok(table)
}

/// How a kernel tells a place outside the image from one inside.
enum Check {
    /// There is none.
    Nothing,
    Bits(Bits),
    /// By its coordinates.
    Places,
}

impl Check {
    fn mode(&self) -> usize {
        match self {
            Check::Nothing => 0,
            Check::Bits(_) => 1,
            Check::Places => 2,
        }
    }
}

/// A tap is outside the image in a window where its bits meet the window's along some axis.
struct Bits {
    taps: Vec<u32>,
    windows: [Vec<u32>; AXES],
}

/// Which kernel sums, and how.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Tiled(Tile),
    /// Without a table of taps.
    Depthwise(Depthwise),
    /// A workgroup an output.
    Deep,
    /// An invocation so many rows and columns.
    Direct([usize; 2]),
}
