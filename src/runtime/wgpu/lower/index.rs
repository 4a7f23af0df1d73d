//! Operators that find elements by index, or indices of elements.

use super::{Elem, GROUP, Lowering, Node, Op, Operand, Outcome, Row, View, Walk, axis_of, kernel, reduce};
use crate::onnx::Tensor;

pub const TABLE: &[Row] = &[
    ("ArgMax", arg_best),
    ("ArgMin", arg_best),
    ("CumSum", cum_sum),
    ("EyeLike", eye_like),
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("OneHot", one_hot),
    ("Range", range),
    ("ReverseSequence", reverse_sequence),
    ("TopK", top_k),
];

pub fn expect_index(operand: &Operand) -> Outcome {
    match operand.elem {
        Elem::I32 => Ok(()),
        other => Err(format!("indices are {other:?}")),
    }
}

/// Operands of a gather, seen over the output's dimensions.
struct Picks {
    shape: Vec<usize>,
    /// Strides of the data along the output's dimensions; 0 where an index stands.
    data: Vec<i32>,
    index: Vec<i32>,
    /// (size, stride) of the axes that the components of an index stand for.
    axes: Vec<(usize, i32)>,
    /// Stride between the components of an index.
    component: i32,
}

fn pick(l: &mut Lowering, x: &Operand, index: &Operand, picks: &Picks) -> Outcome<Operand> {
    expect_index(index)?;
    let n: usize = picks.shape.iter().product();
    if n > 0 && picks.axes.iter().any(|axis| axis.0 == 0) {
        return Err("indices into an axis of size 0".into());
    }
    let walk = Walk::new(&picks.shape, &[&picks.data, &picks.index]);
    let mut params = vec![n as i32, walk.rank(), x.view.offset, index.view.offset];
    params.extend([picks.axes.len() as i32, picks.component]);
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    params.extend(picks.axes.iter().map(|axis| axis.0 as i32));
    params.extend(picks.axes.iter().map(|axis| axis.1));
    let y = l.fresh(x.elem, &picks.shape)?;
    l.call(kernel::GATHER, &[], params, &[x, index], &[&y], n.div_ceil(GROUP));
    Ok(y)
}

fn gather(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, index) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let axis = axis_of(node.int_or("axis", 0), x.view.rank())?;
    let known = l.known_ints(node, 1).ok().flatten();
    let y = match known.and_then(|known| evenly(&known, x.view.shape[axis])) {
        Some((start, step, count)) => {
            let view = x.view.sliced(axis, start, step, count);
            let shape = l.out_shape(node, 0)?;
            l.reshape(&Operand { view, ..x }, &shape)?
        }
        None => along_axis(l, &x, &index, axis)?,
    };
    l.set(node, 0, y)
}

/// First, distance and count of indices into `size` elements that lie evenly: a slice.
fn evenly(indices: &[i64], size: usize) -> Option<(i64, i64, usize)> {
    let size = size as i64;
    let places: Vec<i64> = indices.iter().map(|&i| if i < 0 { i + size } else { i }).collect();
    let step = places.get(1).map_or(1, |second| second - places[0]);
    let even = places.windows(2).all(|pair| pair[1] - pair[0] == step);
    let inside = places.iter().all(|place| (0..size).contains(place));
    (even && inside).then_some((*places.first()?, step, places.len()))
}

/// The elements of `x` along `axis` that `index` names; its dimensions take the axis's place.
pub fn along_axis(l: &mut Lowering, x: &Operand, index: &Operand, axis: usize) -> Outcome<Operand> {
    let none = |n: usize| vec![0; n];
    let (before, after) = (axis, x.view.rank() - axis - 1);
    let picks = Picks {
        shape: [&x.view.shape[..axis], &index.view.shape, &x.view.shape[axis + 1..]].concat(),
        data: [&x.view.strides[..axis], &none(index.view.rank()), &x.view.strides[axis + 1..]].concat(),
        index: [&none(before)[..], &index.view.strides, &none(after)].concat(),
        axes: vec![(x.view.shape[axis], x.view.strides[axis])],
        component: 0,
    };
    pick(l, x, index, &picks)
}

fn gather_elements(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, index) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let axis = axis_of(node.int_or("axis", 0), x.view.rank())?;
    if let Some(y) = one_a_row(l, &x, &index, axis)? {
        return l.set(node, 0, y);
    }
    let mut data = x.view.strides.clone();
    data[axis] = 0;
    let picks = Picks {
        shape: index.view.shape.clone(),
        data,
        index: index.view.strides.clone(),
        axes: vec![(x.view.shape[axis], x.view.strides[axis])],
        component: 0,
    };
    let y = pick(l, &x, &index, &picks)?;
    l.set(node, 0, y)
}

/// One element of each row of what is computed on the way: a sum of the row with all others left out, which fuses with what
/// computes it, as in a cross-entropy.
fn one_a_row(l: &mut Lowering, x: &Operand, index: &Operand, axis: usize) -> Outcome<Option<Operand>> {
    let mut rows = x.view.shape.clone();
    rows[axis] = 1;
    let computed = l.plan.ops.iter().any(|op| matches!(op, Op::Map(map) if map.out == x.storage));
    let fuses = computed && x.elem == Elem::F32 && reduce::goes_by_rows(&x.view, &[axis]);
    if !fuses || index.view.shape != rows || index.elem != Elem::I32 {
        return Ok(None);
    }
    let place = l.counter(x.view.rank(), axis, x.view.shape[axis])?;
    let size = l.scalar_i32(x.view.shape[axis])?;
    let expr = "select(0.0, {0}, clamp(select({1}, {1} + {3}, {1} < 0), 0, {3} - 1) == {2})";
    let alone = l.map_f32(expr, &[x, index, &place, &size])?;
    reduce::over(l, "ReduceSum", &alone, &[axis]).map(Some)
}

fn gather_nd(l: &mut Lowering, node: &Node) -> Outcome {
    let batch = usize::try_from(node.int_or("batch_dims", 0)).map_err(|_| "batch_dims is negative")?;
    let (x, index) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let (&[ref rows @ .., q], &[ref row_strides @ .., component]) =
        (index.view.shape.as_slice(), index.view.strides.as_slice())
    else {
        return Err("indices need a dimension".into());
    };
    let rest =
        x.view.shape.get(batch + q..).ok_or("an index has more components than the data has dimensions")?;
    if batch > rows.len() {
        return Err("batch_dims are more than the indices have".into());
    }
    let picks = Picks {
        shape: [rows, rest].concat(),
        data: [&x.view.strides[..batch], &vec![0; rows.len() - batch], &x.view.strides[batch + q..]].concat(),
        index: [row_strides, &vec![0; rest.len()]].concat(),
        axes: (batch..batch + q).map(|k| (x.view.shape[k], x.view.strides[k])).collect(),
        component,
    };
    let y = pick(l, &x, &index, &picks)?;
    l.set(node, 0, y)
}

/// Each row of a batch read backwards as far as it counts, the rest as it stands.
fn reverse_sequence(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let rank = x.view.rank();
    let lens = l.known_ints(node, 1)?.ok_or("lengths are missing")?;
    let (batch, time) =
        (axis_of(node.int_or("batch_axis", 1), rank)?, axis_of(node.int_or("time_axis", 0), rank)?);
    let size = x.view.shape[time] as i64;
    if batch == time || lens.len() != x.view.shape[batch] {
        return Err("lengths and axes don't fit".into());
    }
    let place = |t: i64, len: i64| (if t < len { len - 1 - t } else { t }) as i32;
    let table: Vec<i32> = lens.iter().flat_map(|&len| (0..size).map(move |t| place(t, len))).collect();
    let index = l.table(table)?;
    let mut data = x.view.strides.clone();
    data[time] = 0;
    let mut strides = vec![0; rank];
    (strides[batch], strides[time]) = (size as i32, 1);
    let axes = vec![(x.view.shape[time], x.view.strides[time])];
    let picks = Picks { shape: x.view.shape.clone(), data, index: strides, axes, component: 0 };
    let y = pick(l, &x, &index, &picks)?;
    l.set(node, 0, y)
}

/// A view without one axis, and that axis's size and stride.
fn rows_of(view: &View, axis: usize) -> (Vec<usize>, Vec<i32>) {
    let mut rows = (view.shape.clone(), view.strides.clone());
    rows.0.remove(axis);
    rows.1.remove(axis);
    rows
}

fn cum_sum(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let axis = l.known_ints(node, 1)?.and_then(|a| a.first().copied()).ok_or("the axis is missing")?;
    let axis = axis_of(axis, x.view.rank())?;
    if x.elem == Elem::Bool {
        return Err("booleans can't be summed".into());
    }
    let y = l.fresh(x.elem, &x.view.shape)?;
    let len = x.view.shape[axis];
    let turn = |view: &View| match node.int_or("reverse", 0) != 0 && len > 0 {
        true => view.sliced(axis, len as i64 - 1, -1, len),
        false => view.clone(),
    };
    let (from, to) = (turn(&x.view), turn(&y.view));
    let ((rows, steps), (_, to_steps)) = (rows_of(&from, axis), rows_of(&to, axis));
    let walk = Walk::new(&rows, &[&steps, &to_steps]);
    let n: usize = rows.iter().product();
    let mut params = vec![n as i32, len as i32, from.offset, from.strides[axis], to.offset, to.strides[axis]];
    params.extend([node.int_or("exclusive", 0) as i32, walk.rank()]);
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    let groups = if len == 0 { 0 } else { n.div_ceil(GROUP) };
    l.call(kernel::SCAN, &[("type", x.elem.wgsl())], params, &[&x], &[&y], groups);
    l.set(node, 0, y)
}

fn arg_best(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let axis = axis_of(node.int_or("axis", 0), x.view.rank())?;
    let better = match (node.op.as_str(), node.int_or("select_last_index", 0) != 0) {
        ("ArgMax", false) => "v > best",
        ("ArgMax", true) => "v >= best",
        (_, false) => "v < best",
        (_, true) => "v <= best",
    };
    let y = best(l, &x, axis, better)?;
    let shape = l.out_shape(node, 0)?;
    let y = l.reshape(&y, &shape)?;
    l.set(node, 0, y)
}

/// The index of the best element along `axis`, which is gone from the result.
pub fn best(l: &mut Lowering, x: &Operand, axis: usize, better: &str) -> Outcome<Operand> {
    if x.view.shape[axis] == 0 {
        return Err("an axis of size 0 has no best element".into());
    }
    let (rows, steps) = rows_of(&x.view, axis);
    let walk = Walk::new(&rows, &[&steps]);
    let n: usize = rows.iter().product();
    let mut params =
        vec![n as i32, x.view.shape[axis] as i32, x.view.offset, x.view.strides[axis], walk.rank()];
    params.extend(walk.dims.iter().chain(&walk.strides[0]));
    let y = l.fresh(Elem::I32, &rows)?;
    let values = [("type", x.elem.wgsl()), ("better", better)];
    l.call(kernel::ARGBEST, &values, params, &[x], &[&y], n.div_ceil(GROUP));
    Ok(y)
}

/// The best elements along an axis, in order. They come sorted where the order doesn't matter, too.
fn top_k(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    if x.elem == Elem::Bool {
        return Err("booleans have no order".into());
    }
    let axis = axis_of(node.int_or("axis", -1), x.view.rank())?;
    let shape = l.out_shape(node, 0)?;
    let better = if node.int_or("largest", 1) != 0 { "u > v" } else { "u < v" };
    let (values, indices) = (l.fresh(x.elem, &shape)?, l.fresh(Elem::I32, &shape)?);
    let ((rows, steps), (_, to_steps)) = (rows_of(&x.view, axis), rows_of(&values.view, axis));
    let walk = Walk::new(&rows, &[&steps, &to_steps]);
    let n: usize = x.view.len();
    let mut params = vec![n as i32, x.view.shape[axis] as i32, shape[axis] as i32, x.view.offset];
    params.extend([x.view.strides[axis], values.view.strides[axis], walk.rank()]);
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    let texts = [("type", x.elem.wgsl()), ("better", better)];
    l.call(kernel::TOPK, &texts, params, &[&x], &[&values, &indices], n.div_ceil(GROUP));
    l.set(node, 0, values)?;
    l.set(node, 1, indices)
}

/// By comparison with 0, 1, 2…, so nothing is scattered.
fn one_hot(l: &mut Lowering, node: &Node) -> Outcome {
    let (index, values) = (l.arg(node, 0)?, l.arg(node, 2)?);
    expect_index(&index)?;
    let shape = l.out_shape(node, 0)?;
    let axis = axis_of(node.int_or("axis", -1), shape.len())?;
    let depth = shape[axis] as i32;
    let counter = l.counter(shape.len(), axis, shape[axis])?;
    let depth = l.constant(&Tensor::i32(&[], &[depth]))?;
    let mut wide = index.view.shape.clone();
    wide.insert(axis, 1);
    let index = l.reshape(&index, &wide)?;
    let part = |k: i64| {
        let one = values.view.sliced(0, k, 1, 1);
        Operand { view: View { shape: vec![], strides: vec![], offset: one.offset }, ..values.clone() }
    };
    let expr = "select({2}, {3}, {0} == {1} || {0} + {4} == {1})";
    let y = l.map(expr, &[&index, &counter, &part(0), &part(1), &depth], values.elem)?;
    l.set(node, 0, y)
}

/// With limits known before running: a constant.
fn range(l: &mut Lowering, node: &Node) -> Outcome {
    let limits: Vec<Tensor> = (0..3)
        .map(|i| node.input(i).and_then(|id| l.constants.get(id)).cloned().ok_or("limits must be constants"))
        .collect::<Result<_, _>>()?;
    let first = |i: usize| limits[i].to_f64().first().copied().unwrap_or(0.0);
    let n = l.out_shape(node, 0)?.first().copied().unwrap_or(0);
    let values: Vec<f64> = (0..n).map(|i| first(0) + i as f64 * first(2)).collect();
    l.set_constant(node, 0, Tensor::from_f64(limits[0].dtype(), &[n], &values));
    Ok(())
}

fn eye_like(l: &mut Lowering, node: &Node) -> Outcome {
    let id = node.output(0).ok_or("output 0 is missing")?;
    let fact = l.fact(id)?;
    let &[rows, cols] = fact.shape.as_slice() else { return Err("a matrix is needed".into()) };
    let k = node.int_or("k", 0);
    let value = |i: usize| ((i % cols) as i64 - (i / cols) as i64 == k) as u8 as f64;
    let values: Vec<f64> = (0..rows * cols).map(value).collect();
    Elem::of(fact.dtype)?;
    l.set_constant(node, 0, Tensor::from_f64(fact.dtype, &fact.shape, &values));
    Ok(())
}
