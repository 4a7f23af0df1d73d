//! Convolutions of every stride, dilation, padding and group, and their transposes: sums over sliding windows.
//!
//! Both become [`Sum`]s, see `shaders/window.wgsl`. A transposed convolution is one for each residue of its stride:
//! output elements of one residue see the same taps, so nothing is scattered and no tap is wasted.

use super::window::{AXES, Windows, spatial};
use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, expect_f32, kernel, linear, reduce};
use crate::runtime::wgpu::view::row_major;

pub const TABLE: &[Row] = &[("Conv", conv), ("ConvTranspose", conv_transpose)];

/// Width and height of the tiled kernel's tiles.
const TILE: usize = 64;
/// Rows from which tiles are worth while; below, most of a tile would be empty.
const TILED_FROM: usize = 16;
/// Taps that a part of a split sum has at least.
const PART: usize = 256;
/// Taps from which a workgroup shares an output, where there are few.
const DEEP_FROM: usize = 1024;
/// Workgroups that keep a GPU busy; sums with fewer are split where they are long.
const BUSY: usize = 256;
/// Workgroups that large tiles must leave.
const MANY_TILES: usize = 128;

struct Tap {
    w: i32,
    x: i32,
    place: [i32; AXES],
}

/// `Y[g, r, p] = Σ_t W[g, r, t] · X[g, p, t]`, over windows `p`.
struct Sum<'a> {
    x: &'a Operand,
    w: &'a Operand,
    rows: usize,
    groups: usize,
    taps: Vec<Tap>,
    images: usize,
    windows: [usize; AXES],
    /// Strides of W from row to row and from group to group.
    w_steps: [i32; 2],
    /// Offset in X of the first window, and stride from group to group.
    x_base: i32,
    x_group: i32,
    /// Offset in Y, and strides from row to row and from group to group.
    y_base: i32,
    y_steps: [i32; 2],
    sizes: [usize; AXES],
    first: [i32; AXES],
    step: [i32; AXES],
    /// Strides from image to image and from window to window.
    x_strides: [i32; 1 + AXES],
    y_strides: [i32; 1 + AXES],
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
            let along_taps = self.along_taps();
            let wide = |quads: [usize; 2]| Shape::Tiled { quads, along_taps };
            let fits = |[r, c]: [usize; 2]| {
                let full = (r == 1 || self.rows > TILE) && (c == 1 || !along_taps);
                let work = self.work(wide([r, c]));
                full && work * self.parts_of(work, PART) >= MANY_TILES
            };
            let best = [[2, 2], [2, 1], [1, 2]].into_iter().find(|&quads| fits(quads));
            return wide(best.unwrap_or([1, 1]));
        }
        match taps >= DEEP_FROM && self.outputs() < BUSY * GROUP {
            true => Shape::Deep,
            false => Shape::Direct,
        }
    }
    /// Workgroups without splitting.
    fn work(&self, shape: Shape) -> usize {
        match shape {
            Shape::Tiled { quads: [r, c], .. } => {
                self.groups * self.rows.div_ceil(TILE * r) * self.columns().div_ceil(TILE * c)
            }
            Shape::Deep => self.outputs(),
            Shape::Direct => self.outputs().div_ceil(GROUP),
        }
    }
    /// Whether neighbours in memory are neighbouring taps rather than neighbouring windows.
    fn along_taps(&self) -> bool {
        let next = self.taps.windows(2).filter(|pair| pair[1].x - pair[0].x == 1).count();
        self.windows[AXES - 1] < 16 && 4 * next >= 3 * self.taps.len()
    }
    /// Whether some window reaches beyond the image.
    fn padded(&self) -> bool {
        (0..AXES).any(|i| {
            let places = || self.taps.iter().map(|tap| tap.place[i]);
            let last = self.first[i] + self.step[i] * (self.windows[i] as i32 - 1);
            let (low, high) = (places().min().unwrap_or(0), places().max().unwrap_or(0));
            self.first[i].min(last) + low < 0 || self.first[i].max(last) + high >= self.sizes[i] as i32
        })
    }
    fn parts_of(&self, work: usize, part: usize) -> usize {
        (BUSY / work.max(1)).min(self.taps.len() / part).max(1)
    }
    /// Parts that a long sum is cut into where there is too little else to do at once.
    fn parts(&self) -> usize {
        let shape = self.shape();
        self.parts_of(self.work(shape), if shape == Shape::Deep { DEEP_FROM } else { PART })
    }
    /// Adds the dispatch; partial sums stand in `y` one behind the other, `part_stride` apart.
    fn emit(&self, l: &mut Lowering, y: &Operand, parts: usize, part_stride: usize) -> Outcome {
        let mut table = Vec::with_capacity(4 * self.taps.len().max(1));
        for tap in &self.taps {
            let [z, y, x] = tap.place;
            if tap.place.iter().any(|&p| i16::try_from(p).is_err()) {
                return Err("windows that reach over 32,767 elements are not supported on the GPU".into());
            }
            table.extend([tap.w, tap.x, (y << 16) | (x & 0xffff), z]);
        }
        if table.is_empty() {
            table.resize(4, 0);
        }
        let table = l.table(table)?;
        let int = |v: usize| v as i32;
        let taps = self.taps.len();
        let mut params = vec![int(self.rows), int(taps), int(self.columns()), int(self.groups)];
        params.extend([int(parts), int(taps.div_ceil(parts))]);
        params.extend([self.w.view.offset, self.w_steps[0], self.w_steps[1]]);
        params.extend([self.x_base, self.x_group]);
        params.extend([self.y_base, self.y_steps[1], self.y_steps[0], int(part_stride)]);
        params.extend(self.sizes.map(int));
        params.extend(self.first.iter().chain(&self.step));
        params.extend(self.windows.map(int));
        params.extend(self.x_strides.iter().chain(&self.y_strides));
        let shape = self.shape();
        let reads = [self.w, self.x, &table];
        match shape {
            Shape::Tiled { quads: [r, c], along_taps } => {
                let number = |v: usize| v.to_string();
                let values = [
                    ("quads_r", number(r)),
                    ("quads_c", number(c)),
                    ("along_taps", number(along_taps.into())),
                    ("columns_read", number(if along_taps { 0 } else { 4 * c })),
                    ("padded", number(self.padded().into())),
                ];
                let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
                l.call(kernel::CONV_TILED, &values, params, &reads, &[y], self.work(shape) * parts);
            }
            Shape::Deep => l.call(kernel::CONV_DEEP, &[], params, &reads, &[y], self.work(shape) * parts),
            Shape::Direct => {
                let groups = (parts * self.outputs()).div_ceil(GROUP);
                l.call(kernel::CONV_DIRECT, &[], params, &reads, &[y], groups);
            }
        }
        Ok(())
    }
}

/// Which kernel sums, and how.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// Tiles of 64 rows and columns, times `quads`.
    Tiled { quads: [usize; 2], along_taps: bool },
    /// A workgroup an output.
    Deep,
    /// An invocation an output.
    Direct,
}

fn dot(a: &[i32; AXES], b: &[i32; AXES]) -> i32 {
    (0..AXES).map(|i| a[i] * b[i]).sum()
}

/// An image's stride, then those of the spatial axes times `step`.
fn steps(strides: &[i32], step: &[i32; AXES]) -> [i32; 1 + AXES] {
    let s: [i32; AXES] = spatial(&strides[2..], 0);
    [strides[0], s[0] * step[0], s[1] * step[1], s[2] * step[2]]
}

/// Checks that a weight has the input's rank, and the group count.
fn groups_of(node: &Node, x: &Operand, w: &Operand) -> Outcome<usize> {
    expect_f32(x)?;
    expect_f32(w)?;
    let group = usize::try_from(node.int_or("group", 1)).ok().filter(|&g| g > 0).ok_or("group is below 1")?;
    if x.view.rank() < 3 || w.view.rank() != x.view.rank() {
        return Err("the weight's and the input's dimensions don't fit".into());
    }
    Ok(group)
}

fn with_bias(l: &mut Lowering, node: &Node, y: Operand) -> Outcome {
    let y = match l.optional(node, 2)? {
        Some(bias) => {
            let shape: Vec<usize> =
                (0..y.view.rank() - 1).map(|i| if i == 0 { bias.view.len() } else { 1 }).collect();
            let bias = l.reshape(&bias, &shape)?;
            l.map_f32("{0} + {1}", &[&y, &bias])?
        }
        None => y,
    };
    l.set(node, 0, y)
}

/// Whether every window is one element, and each image fills the tiles of a matrix product but for a seventh.
fn is_product(windows: &Windows, x: &Operand, shape: &[usize]) -> bool {
    let places: usize = shape[2..].iter().product();
    let single = windows.elements().count() == 1 && windows.stride == [1; AXES] && windows.begin == [0; AXES];
    let filled = 7 * places.next_multiple_of(2 * TILE) <= 8 * places;
    single && x.view.shape[2..] == shape[2..] && places.is_multiple_of(4) && filled
}

/// `w · x` at every place of every image, `w` of outputs × inputs.
fn pointwise(l: &mut Lowering, w: &Operand, x: &Operand, shape: &[usize]) -> Outcome<Operand> {
    let image = l.reshape(x, &[shape[0], x.view.shape[1], shape[2..].iter().product()])?;
    let y = linear::product(l, w, &image)?;
    l.reshape(&y, shape)
}

fn conv(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, w) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let groups = groups_of(node, &x, &w)?;
    let shape = l.out_shape(node, 0)?;
    let (inputs, rows) = (w.view.shape[1], w.view.shape[0] / groups);
    if x.view.shape[1] != inputs * groups || shape.len() != x.view.rank() || w.view.shape[0] != rows * groups
    {
        return Err("channels, groups and the weight's shape don't fit".into());
    }
    let windows = Windows::of(node, &w.view.shape[2..], &x.view.shape[2..], &shape[2..])?;
    if groups == 1 && is_product(&windows, &x, &shape) {
        let w = l.reshape(&w, &[rows, inputs])?;
        let y = pointwise(l, &w, &x, &shape)?;
        return with_bias(l, node, y);
    }
    let (xs, ws) = (spatial(&x.view.strides[2..], 0), spatial(&w.view.strides[2..], 0));
    let mut taps = vec![];
    for c in 0..inputs as i32 {
        for k in windows.elements() {
            let place = [0, 1, 2].map(|i| k[i] * windows.dilation[i]);
            let (w, x) = (c * w.view.strides[1] + dot(&k, &ws), c * x.view.strides[1] + dot(&place, &xs));
            taps.push(Tap { w, x, place });
        }
    }
    let strides = row_major(&shape);
    let first = windows.begin.map(|b| -b);
    let sum = Sum {
        x: &x,
        w: &w,
        rows,
        groups,
        taps,
        images: shape[0],
        windows: spatial(&shape[2..], 1),
        w_steps: [w.view.strides[0], rows as i32 * w.view.strides[0]],
        x_base: x.view.offset + dot(&first, &xs),
        x_group: inputs as i32 * x.view.strides[1],
        y_base: 0,
        y_steps: [strides[1], rows as i32 * strides[1]],
        sizes: spatial(&x.view.shape[2..], 1),
        first,
        step: windows.stride,
        x_strides: steps(&x.view.strides, &windows.stride),
        y_strides: steps(&strides, &[1; AXES]),
    };
    let y = emit_all(l, &[sum], &shape)?;
    with_bias(l, node, y)
}

/// The tensor of `shape` that the sums fill together.
fn emit_all(l: &mut Lowering, sums: &[Sum<'_>], shape: &[usize]) -> Outcome<Operand> {
    let parts = sums.iter().map(Sum::parts).min().unwrap_or(1);
    let y = l.fresh(Elem::F32, &[&[parts], shape].concat())?;
    for sum in sums {
        sum.emit(l, &y, parts, shape.iter().product())?;
    }
    // The parts are added in order, so the result is the same every time.
    let y = if parts == 1 { y } else { reduce::over(l, "ReduceSum", &y, &[0])? };
    l.reshape(&y, shape)
}

/// Output element `i` along an axis sees the inputs `j` with `i = j · stride + k · dilation − begin`: for `i = residue +
/// stride · o`, those taps `k` for which `(residue + begin − k · dilation) / stride` is whole, at that place plus `o`.
fn conv_transpose(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, w) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let groups = groups_of(node, &x, &w)?;
    let shape = l.out_shape(node, 0)?;
    let (inputs, rows) = (w.view.shape[0] / groups, w.view.shape[1]);
    if x.view.shape[1] != w.view.shape[0] || shape.len() != x.view.rank() || shape[1] != rows * groups {
        return Err("channels, groups and the weight's shape don't fit".into());
    }
    let windows = Windows::of(node, &w.view.shape[2..], &shape[2..], &x.view.shape[2..])?;
    if groups == 1 && is_product(&windows, &x, &shape) {
        let w = l.reshape(&w, &[inputs, rows])?;
        let y = pointwise(l, &linear::transposed(w), &x, &shape)?;
        return with_bias(l, node, y);
    }
    let (xs, ws) = (spatial(&x.view.strides[2..], 0), spatial(&w.view.strides[2..], 0));
    let strides = row_major(&shape);
    let (out, ys) = (spatial(&shape[2..], 1), spatial(&strides[2..], 0));
    let stride = windows.stride;
    let mut sums = vec![];
    for residue in residues(&stride) {
        let count =
            [0, 1, 2].map(|i| (out[i] as i32 - residue[i] + stride[i] - 1).div_euclid(stride[i]).max(0));
        let mut taps = vec![];
        for c in 0..inputs as i32 {
            for k in windows.elements() {
                let reach = [0, 1, 2].map(|i| residue[i] + windows.begin[i] - k[i] * windows.dilation[i]);
                if (0..AXES).all(|i| reach[i] % stride[i] == 0) {
                    let place = [0, 1, 2].map(|i| reach[i] / stride[i]);
                    let w = c * w.view.strides[0] + dot(&k, &ws);
                    taps.push(Tap { w, x: c * x.view.strides[1] + dot(&place, &xs), place });
                }
            }
        }
        let sum = Sum {
            x: &x,
            w: &w,
            rows,
            groups,
            taps,
            images: shape[0],
            windows: count.map(|n| n as usize),
            w_steps: [w.view.strides[1], inputs as i32 * w.view.strides[0]],
            x_base: x.view.offset,
            x_group: inputs as i32 * x.view.strides[1],
            y_base: dot(&residue, &ys),
            y_steps: [strides[1], rows as i32 * strides[1]],
            sizes: spatial(&x.view.shape[2..], 1),
            first: [0; AXES],
            step: [1; AXES],
            x_strides: steps(&x.view.strides, &[1; AXES]),
            y_strides: steps(&strides, &stride),
        };
        sums.push(sum);
    }
    let y = emit_all(l, &sums, &shape)?;
    with_bias(l, node, y)
}

/// All positions below `stride`.
fn residues(stride: &[i32; AXES]) -> Vec<[i32; AXES]> {
    let [sz, sy, sx] = *stride;
    let mut all = vec![];
    for z in 0..sz {
        for y in 0..sy {
            all.extend((0..sx).map(|x| [z, y, x]));
        }
    }
    all
}
