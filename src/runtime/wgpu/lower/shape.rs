//! Operators that only move elements. Most of them are views and cost nothing.

use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, View, axis_of, kernel};
use crate::onnx::infer::slice_range;
use crate::onnx::{Attr, DType, Tensor};
use std::fmt::Write;

pub const TABLE: &[Row] = &[
    ("Concat", concat),
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("DepthToSpace", blocks),
    ("Expand", expand),
    ("Flatten", reshape),
    ("Reshape", reshape),
    ("Shape", shape_of),
    ("Size", shape_of),
    ("Slice", slice),
    ("SpaceToDepth", blocks),
    ("Split", split),
    ("Squeeze", reshape),
    ("Tile", tile),
    ("Transpose", transpose),
    ("Trilu", trilu),
    ("Unsqueeze", reshape),
];

/// The tensor of a `Constant` node.
pub fn constant_tensor(node: &Node) -> Option<Tensor> {
    let (name, value) = node.attrs.first()?;
    Some(match (name.as_str(), value) {
        ("value", Attr::Tensor(t)) => t.clone(),
        ("value_float", Attr::Float(v)) => Tensor::f32(&[], &[*v]),
        ("value_floats", Attr::Floats(v)) => Tensor::f32(&[v.len()], v),
        ("value_int", Attr::Int(v)) => Tensor::i64(&[], &[*v]),
        ("value_ints", Attr::Ints(v)) => Tensor::i64(&[v.len()], v),
        _ => return None,
    })
}

fn constant(l: &mut Lowering, node: &Node) -> Outcome {
    let tensor = constant_tensor(node).ok_or("the form of its value isn't supported")?;
    l.set_constant(node, 0, tensor);
    Ok(())
}

/// `Shape` and `Size` of what is known already.
fn shape_of(l: &mut Lowering, node: &Node) -> Outcome {
    let id = node.input(0).ok_or("input 0 is missing")?;
    let dims: Vec<i64> = l.fact(id)?.shape.iter().map(|&d| d as i64).collect();
    if node.op == "Size" {
        l.set_constant(node, 0, Tensor::i64(&[], &[dims.iter().product()]));
        return Ok(());
    }
    let (start, end, _) = slice_range(dims.len(), node.int_or("start", 0), node.int_or("end", i64::MAX), 1)
        .ok_or("start or end is out of range")?;
    let part = dims.get(start as usize..end as usize).unwrap_or(&[]);
    l.set_constant(node, 0, Tensor::i64(&[part.len()], part));
    Ok(())
}

fn constant_of_shape(l: &mut Lowering, node: &Node) -> Outcome {
    let shape = l.out_shape(node, 0)?;
    let value = node.tensor("value").cloned().unwrap_or_else(|| Tensor::scalar(DType::F32, 0.0));
    let value = l.constant(&value.reshaped(&[]))?;
    l.set(node, 0, Operand { view: value.view.broadcast(&shape), ..value })
}

/// All operators that keep the elements in order: the output's shape says everything.
fn reshape(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let shape = l.out_shape(node, 0)?;
    let y = l.reshape(&x, &shape)?;
    l.set(node, 0, y)
}

fn expand(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let shape = l.out_shape(node, 0)?;
    let y = l.broadcast(&x, &shape)?;
    l.set(node, 0, y)
}

fn transpose(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let perm: Vec<usize> = match node.ints("perm") {
        Some(perm) => perm.iter().map(|&p| axis_of(p, x.view.rank())).collect::<Outcome<_>>()?,
        None => (0..x.view.rank()).rev().collect(),
    };
    l.set(node, 0, Operand { view: x.view.permuted(&perm), ..x })
}

fn slice(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let given = |l: &Lowering, i: usize, attr: &str| -> Outcome<Option<Vec<i64>>> {
        Ok(l.known_ints(node, i)?.or_else(|| node.ints(attr).map(<[i64]>::to_vec)))
    };
    let starts = given(l, 1, "starts")?.ok_or("starts are missing")?;
    let ends = given(l, 2, "ends")?.ok_or("ends are missing")?;
    let axes = given(l, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = l.known_ints(node, 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    let mut view = x.view.clone();
    for i in 0..starts.len() {
        let axis = axis_of(axes[i], view.rank())?;
        let (start, end, step) =
            slice_range(x.view.shape[axis], starts[i], ends[i], steps[i]).ok_or("step is 0")?;
        let span = if step > 0 { end - start } else { start - end };
        let count = (span.max(0) as u64).div_ceil(step.unsigned_abs()) as usize;
        view = view.sliced(axis, start, step, count);
    }
    l.set(node, 0, Operand { view, ..x })
}

fn split(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let axis = axis_of(node.int_or("axis", 0), x.view.rank())?;
    let mut start = 0;
    for i in 0..node.outputs.len() {
        let count = l.out_shape(node, i)?[axis];
        let view = x.view.sliced(axis, start, 1, count);
        start += count as i64;
        l.set(node, i, Operand { view, ..x.clone() })?;
    }
    Ok(())
}

/// Parts that one dispatch joins: with the output, as many buffers as every GPU can bind.
const PARTS: usize = 7;
/// Elements from which a part is worth a dispatch of its own.
const LARGE_PART: usize = 1 << 20;

fn concat(l: &mut Lowering, node: &Node) -> Outcome {
    let shape = l.out_shape(node, 0)?;
    let axis = axis_of(node.int_or("axis", 0), shape.len())?;
    let first = l.arg(node, 0)?;
    let y = l.fresh(first.elem, &shape)?;
    let mut parts = vec![];
    for i in 0..node.inputs.len() {
        let part = l.arg(node, i)?;
        if part.view.rank() != shape.len() || part.elem != y.elem {
            return Err("its inputs differ in type or number of dimensions".into());
        }
        if part.view.shape[axis] > 0 {
            parts.push(part);
        }
    }
    let mut start = 0;
    for some in parts.chunks(PARTS) {
        let count: usize = some.iter().map(|part| part.view.shape[axis]).sum();
        let region = Operand { view: y.view.sliced(axis, start as i64, 1, count), ..y.clone() };
        start += count;
        if some.len() == 1 || some.iter().all(|part| part.view.len() >= LARGE_PART) {
            copy_each(l, some, axis, &region);
        } else {
            join(l, some, axis, &region);
        }
    }
    l.set(node, 0, y)
}

/// Copies `parts` to their places along `axis` of `region`: a dispatch each, but by vectors where memory allows it.
fn copy_each(l: &mut Lowering, parts: &[Operand], axis: usize, region: &Operand) {
    let mut start = 0;
    for part in parts {
        let count = part.view.shape[axis];
        l.copy(part, &Operand { view: region.view.sliced(axis, start, 1, count), ..region.clone() });
        start += count as i64;
    }
}

/// Joins `parts` along `axis` into `region`, in one dispatch.
fn join(l: &mut Lowering, parts: &[Operand], axis: usize, region: &Operand) {
    let keep: Vec<usize> =
        (0..region.view.rank()).filter(|&i| i == axis || region.view.shape[i] != 1).collect();
    let at = keep.iter().position(|&i| i == axis).unwrap_or(0);
    let (rank, n) = (keep.len(), region.view.len());
    let mut params = vec![n as i32, rank as i32, at as i32, region.view.offset];
    params.extend(keep.iter().map(|&i| region.view.shape[i] as i32));
    params.extend(keep.iter().map(|&i| region.view.strides[i]));
    let (mut bindings, mut picks) = (String::new(), String::new());
    let mut start = 0;
    for (k, part) in parts.iter().enumerate() {
        let words = params.len();
        let first = start;
        start += part.view.shape[axis] as i32;
        params.extend([start, part.view.offset - first * part.view.strides[axis]]);
        params.extend(keep.iter().map(|&i| part.view.strides[i]));
        let _ = writeln!(bindings, "@group(0) @binding({}) var<storage, read> x{k}: array<u32>;", k + 1);
        let otherwise = if k == 0 { "    " } else { " else " };
        let (offset, strides) = (words + 1, words + 2);
        let _ = write!(
            picks,
            "{otherwise}if (j < param({words})) {{ v = x{k}[param({offset}) + address(i, rank, 4, {strides})]; }}"
        );
    }
    let to = parts.len() + 1;
    let _ = write!(bindings, "@group(0) @binding({to}) var<storage, read_write> y: array<u32>;");
    let reads: Vec<&Operand> = parts.iter().collect();
    let values = [("bindings", bindings.as_str()), ("parts", picks.as_str())];
    l.call(kernel::CONCAT, &values, params, &reads, &[region], n.div_ceil(GROUP));
}

/// `[N, C, H, W]` cut into blocks, or put together again: reshapes around a transpose.
fn blocks(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let shape = l.out_shape(node, 0)?;
    let size = node.int("blocksize").and_then(|b| usize::try_from(b).ok()).filter(|&b| b > 0);
    let (Some(b), &[n, c, h, w]) = (size, x.view.shape.as_slice()) else {
        return Err("four dimensions and a blocksize are needed".into());
    };
    let (split, perm) = match (node.op.as_str(), node.str("mode").unwrap_or("DCR")) {
        ("SpaceToDepth", "CRD") => ([n, c, h / b, b, w / b, b], [0, 1, 3, 5, 2, 4]),
        ("SpaceToDepth", _) => ([n, c, h / b, b, w / b, b], [0, 3, 5, 1, 2, 4]),
        (_, "CRD") => ([n, c / (b * b), b, b, h, w], [0, 1, 4, 2, 5, 3]),
        _ => ([n, b, b, c / (b * b), h, w], [0, 3, 4, 1, 5, 2]),
    };
    let split = l.reshape(&x, &split)?;
    let turned = Operand { view: split.view.permuted(&perm), ..split };
    let y = l.reshape(&turned, &shape)?;
    l.set(node, 0, y)
}

/// Repeats by a copy from a view with one more dimension per axis, of stride 0.
fn tile(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let shape = l.out_shape(node, 0)?;
    let (mut sizes, mut strides) = (vec![], vec![]);
    for (i, &size) in x.view.shape.iter().enumerate() {
        sizes.extend([shape[i].checked_div(size).unwrap_or(1), size]);
        strides.extend([0, x.view.strides[i]]);
    }
    let repeated = Operand { view: View { shape: sizes, strides, offset: x.view.offset }, ..x };
    let y = l.contiguous(&repeated)?;
    l.set(node, 0, Operand { view: View::contiguous(&shape), ..y })
}

/// The upper or lower triangle, by a mask made on the host.
fn trilu(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let k = l.known_ints(node, 1)?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = node.int_or("upper", 1) != 0;
    let &[.., rows, cols] = x.view.shape.as_slice() else { return Err("a matrix is needed".into()) };
    let keep = |i: usize| {
        let diagonal = (i % cols) as i64 - (i / cols) as i64;
        if upper { diagonal >= k } else { diagonal <= k }
    };
    let mask = Tensor::bool(&[rows, cols], &(0..rows * cols).map(keep).collect::<Vec<_>>());
    let mask = l.constant(&mask)?;
    let expr = match x.elem {
        Elem::F32 => "select(0.0, {0}, {1} != 0u)",
        Elem::I32 => "select(0, {0}, {1} != 0u)",
        Elem::Bool => "{0} & {1}",
    };
    let y = l.map(expr, &[&x, &mask], x.elem)?;
    l.set(node, 0, y)
}
