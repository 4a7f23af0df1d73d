//! Reductions over any axes; see [`over`].

use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, View, Walk, axis_of, kernel};

pub const TABLE: &[Row] = &[
    ("ReduceL1", reduce),
    ("ReduceL2", reduce),
    ("ReduceLogSum", reduce),
    ("ReduceLogSumExp", reduce),
    ("ReduceMax", reduce),
    ("ReduceMean", reduce),
    ("ReduceMin", reduce),
    ("ReduceProd", reduce),
    ("ReduceSum", reduce),
    ("ReduceSumSquare", reduce),
];

/// Rows shorter than this are reduced by one invocation each.
const SHORT: usize = 32;
/// From this many rows on, one invocation each keeps a GPU busy.
const MANY: usize = 16_384;

/// A reduction: `finish(combine over all v of map(v))`, from a start value.
struct Kind {
    map: &'static str,
    combine: &'static str,
    finish: &'static str,
    start: f32,
    start_i32: i32,
}

fn kind(op: &str) -> Option<Kind> {
    let sum = Kind { map: "v", combine: "a + b", finish: "v", start: 0.0, start_i32: 0 };
    Some(match op {
        "ReduceSum" => sum,
        "ReduceMean" => Kind { finish: "v / len", ..sum },
        "ReduceL1" => Kind { map: "abs(v)", ..sum },
        "ReduceL2" => Kind { map: "v * v", finish: "sqrt(v)", ..sum },
        "ReduceLogSum" => Kind { finish: "log(v)", ..sum },
        "ReduceSumSquare" => Kind { map: "v * v", ..sum },
        "ReduceProd" => Kind { combine: "a * b", start: 1.0, start_i32: 1, ..sum },
        "ReduceMax" => Kind { combine: "max(a, b)", start: f32::NEG_INFINITY, start_i32: i32::MIN, ..sum },
        "ReduceMin" => Kind { combine: "min(a, b)", start: f32::INFINITY, start_i32: i32::MAX, ..sum },
        _ => return None,
    })
}

fn reduce(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let mut axes = match l.known_ints(node, 1)? {
        Some(axes) => axes,
        None => node.ints("axes").unwrap_or(&[]).to_vec(),
    };
    if axes.is_empty() {
        if node.int_or("noop_with_empty_axes", 0) != 0 {
            return l.set(node, 0, x);
        }
        axes = (0..x.view.rank() as i64).collect();
    }
    let axes = axes.iter().map(|&a| axis_of(a, x.view.rank())).collect::<Outcome<Vec<_>>>()?;
    let y = match node.op.as_str() {
        "ReduceLogSumExp" => log_sum_exp(l, &x, &axes)?,
        op => over(l, op, &x, &axes)?,
    };
    let shape = l.out_shape(node, 0)?;
    let y = l.reshape(&y, &shape)?;
    l.set(node, 0, y)
}

/// With the largest element taken out first, so that nothing overflows.
fn log_sum_exp(l: &mut Lowering, x: &Operand, axes: &[usize]) -> Outcome<Operand> {
    let largest = over(l, "ReduceMax", x, axes)?;
    let shifted = l.map_f32("exp({0} - {1})", &[x, &largest])?;
    let sum = over(l, "ReduceSum", &shifted, axes)?;
    l.map_f32("ln({0}) + {1}", &[&sum, &largest])
}

/// Reduces `x` over `axes`, which stay as dimensions of size 1.
pub fn over(l: &mut Lowering, op: &str, x: &Operand, axes: &[usize]) -> Outcome<Operand> {
    let kind = kind(op).ok_or("has no kernel")?;
    let start = match x.elem {
        Elem::F32 => kind.start.to_bits() as i32,
        Elem::I32 if matches!(op, "ReduceL2" | "ReduceLogSum") => {
            return Err("is supported for float32 only".into());
        }
        Elem::I32 => kind.start_i32,
        Elem::Bool => return Err("booleans can't be reduced".into()),
    };
    let View { shape, strides, offset } = &x.view;
    let part = |hit: bool| {
        let dims = (0..shape.len()).filter(move |i| axes.contains(i) == hit);
        let (sizes, steps): (Vec<usize>, Vec<i32>) = dims.map(|i| (shape[i], strides[i])).unzip();
        (sizes.iter().product::<usize>(), Walk::new(&sizes, &[&steps]))
    };
    let ((n, kept), (len, reduced)) = (part(false), part(true));
    let out_shape: Vec<usize> =
        (0..shape.len()).map(|i| if axes.contains(&i) { 1 } else { shape[i] }).collect();
    let y = l.fresh(x.elem, &out_shape)?;
    let mut params = vec![n as i32, len as i32, *offset, start, kept.rank(), reduced.rank()];
    for walk in [&kept, &reduced] {
        params.extend(walk.dims.iter().chain(&walk.strides[0]));
    }
    let (kernel, groups) = match len < SHORT || n >= MANY {
        true => (kernel::REDUCE_ROWS, n.div_ceil(GROUP)),
        false => (kernel::REDUCE_GROUP, n),
    };
    let values =
        [("type", x.elem.wgsl()), ("map", kind.map), ("combine", kind.combine), ("finish", kind.finish)];
    l.call(kernel, &values, params, &[x], &[&y], groups);
    Ok(y)
}
