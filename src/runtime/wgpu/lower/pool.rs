//! Pooling: maxima, averages and p-norms of windows or of whole images.

use super::window::{AXES, Windows, spatial};
use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, expect_f32, kernel, reduce};

pub const TABLE: &[Row] = &[
    ("AveragePool", sum_pool),
    ("GlobalAveragePool", global),
    ("GlobalLpPool", global_lp),
    ("GlobalMaxPool", global),
    ("LpPool", sum_pool),
    ("MaxPool", max_pool),
];

struct Pool {
    windows: Windows,
    sizes: [usize; AXES],
    shape: Vec<usize>,
    n: usize,
}

impl Pool {
    fn of(l: &Lowering, node: &Node, x: &Operand) -> Outcome<Self> {
        let shape = l.out_shape(node, 0)?;
        let kernel: Vec<usize> =
            node.ints("kernel_shape").ok_or("kernel_shape is missing")?.iter().map(|&k| k as usize).collect();
        if x.view.rank() < 3 || shape.len() != x.view.rank() {
            return Err("an image is needed".into());
        }
        let windows = Windows::of(node, &kernel, &x.view.shape[2..], &shape[2..])?;
        let (sizes, n) = (spatial(&x.view.shape[2..], 1), shape.iter().product());
        Ok(Self { windows, sizes, shape, n })
    }
    /// The words that all pooling kernels share.
    fn params(&self, x: &Operand) -> Vec<i32> {
        let outputs: [usize; AXES] = spatial(&self.shape[2..], 1);
        let strides: [i32; AXES] = spatial(&x.view.strides[2..], 0);
        let mut params = vec![self.n as i32];
        params.extend(outputs.map(|d| d as i32));
        params.extend([self.shape[1] as i32, x.view.offset, x.view.strides[0], x.view.strides[1]]);
        params.extend(strides);
        params.extend(self.sizes.map(|d| d as i32));
        params.extend(self.windows.kernel.map(|d| d as i32));
        params.extend(self.windows.stride.iter().chain(&self.windows.dilation).chain(&self.windows.begin));
        params
    }
}

fn max_pool(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    if x.elem == Elem::Bool {
        return Err("booleans have no maxima".into());
    }
    let pool = Pool::of(l, node, &x)?;
    let [depth, height, width] = pool.sizes.map(|d| d as i32);
    let mut params = pool.params(&x);
    params.extend(match node.int_or("storage_order", 0) {
        0 => [height * width, width, 1],
        // Columns first: the order of all spatial axes turns round.
        _ => [1, depth, depth * height],
    });
    let y = l.fresh(x.elem, &pool.shape)?;
    let groups = pool.n.div_ceil(GROUP);
    let ty = ("type", x.elem.wgsl());
    if node.output(1).is_none() {
        l.call(kernel::POOL_MAX, &[ty, ("binding", ""), ("store", "")], params, &[&x], &[&y], groups);
        return l.set(node, 0, y);
    }
    let index = l.fresh(Elem::I32, &pool.shape)?;
    let binding = "@group(0) @binding(3) var<storage, read_write> index: array<i32>;";
    let values = [ty, ("binding", binding), ("store", "index[i] = plane * size + place;")];
    l.call(kernel::POOL_MAX, &values, params, &[&x], &[&y, &index], groups);
    l.set(node, 0, y)?;
    l.set(node, 1, index)
}

fn sum_pool(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let pool = Pool::of(l, node, &x)?;
    let p = node.int_or("p", 2);
    let (map, finish) = match (node.op.as_str(), p) {
        ("AveragePool", _) => ("v", "sum / max(count, 1.0)"),
        (_, 1) => ("abs(v)", "sum"),
        (_, 2) => ("v * v", "sqrt(sum)"),
        _ => ("pow(abs(v), p)", "pow(sum, 1.0 / p)"),
    };
    // Padding that `ceil_mode` adds beyond what the node declares never counts.
    let padded = node.op == "LpPool" || node.int_or("count_include_pad", 0) != 0;
    let mut params = pool.params(&x);
    for i in 0..AXES {
        params.push(pool.sizes[i] as i32 + if padded { pool.windows.end[i] } else { 0 });
    }
    params.push(if padded { i32::MIN / 2 } else { 0 });
    params.push((p as f32).to_bits() as i32);
    let y = l.fresh(Elem::F32, &pool.shape)?;
    let values = [("map", map), ("finish", finish)];
    l.call(kernel::POOL_SUM, &values, params, &[&x], &[&y], pool.n.div_ceil(GROUP));
    l.set(node, 0, y)
}

fn spatial_axes(x: &Operand) -> Vec<usize> {
    (2..x.view.rank()).collect()
}

fn global(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let op = if node.op == "GlobalMaxPool" { "ReduceMax" } else { "ReduceMean" };
    let y = reduce::over(l, op, &x, &spatial_axes(&x))?;
    l.set(node, 0, y)
}

fn global_lp(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    expect_f32(&x)?;
    let y = super::normal::norm(l, &x, node.int_or("p", 2), &spatial_axes(&x))?;
    l.set(node, 0, y)
}
