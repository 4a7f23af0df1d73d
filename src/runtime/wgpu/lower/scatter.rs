//! Operators that write or add updates at indexed places, with the same result every time.
//!
//! A few updates are looked through by every output element; many are first linked into a list for each destination
//! (`shaders/scatter_link.wgsl` and the two after it), so the work doesn't grow with their product.

use super::index::expect_index;
use super::{Elem, GROUP, Lowering, Node, Operand, Outcome, Row, Walk, axis_of, kernel};
use crate::onnx::Tensor;
use crate::runtime::wgpu::view::row_major;

pub const TABLE: &[Row] = &[("ScatterElements", scatter_elements), ("ScatterND", scatter_nd)];

/// Dimensions that the kernel for few updates keeps coordinates of.
const MAX_RANK: usize = 8;
/// Updates that every output element may look through.
const FEW: usize = 64;

/// Where updates go, seen over the data's dimensions.
struct Places {
    index: Vec<i32>,
    update: Vec<i32>,
    limits: Vec<usize>,
    /// Indices looked through, and the strides from one to the next in `index` and `update`.
    count: usize,
    step: (i32, i32),
    /// The axes that the components of an index stand for, and the stride between them.
    axes: Vec<usize>,
    component: i32,
}

/// The same, seen over the updates.
struct Updates {
    shape: Vec<usize>,
    index: Vec<i32>,
    update: Vec<i32>,
    /// What a step along each dimension adds to the number of the destination.
    to: Vec<i32>,
    /// Elements an update fills.
    fill: usize,
}

fn scatter(
    l: &mut Lowering,
    node: &Node,
    [x, index, update]: [&Operand; 3],
    at: &Places,
    updates: &Updates,
) -> Outcome {
    expect_index(index)?;
    if update.elem != x.elem {
        return Err(format!("updates of {:?} for {:?}", update.elem, x.elem));
    }
    let combine = match node.str("reduction").unwrap_or("none") {
        "none" => "u",
        "add" if x.elem != Elem::Bool => "v + u",
        "mul" if x.elem != Elem::Bool => "v * u",
        "max" => "max(v, u)",
        "min" => "min(v, u)",
        other => return Err(format!("reduction '{other}' is unknown for {:?}", x.elem)),
    };
    let values = [("type", x.elem.wgsl()), ("combine", combine)];
    let y = match at.count <= FEW && x.view.rank() <= MAX_RANK {
        true => look_through(l, [x, index, update], at, &values)?,
        false => linked(l, [x, index, update], at, updates, &values)?,
    };
    l.set(node, 0, y)
}

fn look_through(
    l: &mut Lowering,
    [x, index, update]: [&Operand; 3],
    at: &Places,
    values: &[(&str, &str)],
) -> Outcome<Operand> {
    let n = x.view.len();
    let mut params =
        vec![n as i32, x.view.rank() as i32, x.view.offset, index.view.offset, update.view.offset];
    params.extend([at.count as i32, at.step.0, at.step.1, at.axes.len() as i32, at.component]);
    params.extend(x.view.shape.iter().map(|&d| d as i32));
    params.extend(x.view.strides.iter().chain(&at.index).chain(&at.update));
    params.extend(at.limits.iter().map(|&d| d.min(i32::MAX as usize) as i32));
    params.extend(at.axes.iter().map(|&a| a as i32));
    let y = l.fresh(x.elem, &x.view.shape)?;
    l.call(kernel::SCATTER, values, params, &[x, index, update], &[&y], n.div_ceil(GROUP));
    Ok(y)
}

fn linked(
    l: &mut Lowering,
    [x, index, update]: [&Operand; 3],
    at: &Places,
    updates: &Updates,
    values: &[(&str, &str)],
) -> Outcome<Operand> {
    let n = x.view.len();
    let (destinations, entries) = (n / updates.fill.max(1), updates.shape.iter().product::<usize>());
    let head = l.fresh(Elem::I32, &[destinations])?;
    let next = l.fresh(Elem::I32, &[entries])?;
    let nothing = l.constant(&Tensor::i32(&[], &[-1]))?;
    let nothing = l.broadcast(&nothing, &[destinations])?;
    l.copy(&nothing, &head);

    let walk = Walk::new(&updates.shape, &[&updates.index, &updates.to]);
    let mut params = vec![entries as i32, index.view.offset, at.axes.len() as i32, at.component, walk.rank()];
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    let whole = row_major(&x.view.shape);
    for &axis in &at.axes {
        params.extend([x.view.shape[axis] as i32, whole[axis] / updates.fill.max(1) as i32]);
    }
    l.call(kernel::SCATTER_LINK, &[], params, &[index], &[&head, &next], entries.div_ceil(GROUP));
    let params = vec![destinations as i32];
    l.call(kernel::SCATTER_ORDER, &[], params, &[], &[&head, &next], destinations.div_ceil(GROUP));

    let y = l.fresh(x.elem, &x.view.shape)?;
    let part: Vec<i32> = match updates.fill {
        1 => vec![0; x.view.rank()],
        _ => at.update.clone(),
    };
    let walk = Walk::new(&x.view.shape, &[&x.view.strides, &part]);
    let list = Walk::new(&updates.shape, &[&updates.update]);
    let mut params = vec![n as i32, updates.fill as i32, x.view.offset, update.view.offset, walk.rank()];
    params.extend(walk.dims.iter().chain(walk.strides.iter().flatten()));
    params.push(list.rank());
    params.extend(list.dims.iter().chain(&list.strides[0]));
    l.call(kernel::SCATTER_APPLY, values, params, &[x, update, &head, &next], &[&y], n.div_ceil(GROUP));
    Ok(y)
}

fn scatter_elements(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, index, update) = (l.arg(node, 0)?, l.arg(node, 1)?, l.arg(node, 2)?);
    let axis = axis_of(node.int_or("axis", 0), x.view.rank())?;
    if index.view.rank() != x.view.rank() || update.view.shape != index.view.shape {
        return Err("data, indices and updates differ in shape".into());
    }
    if let Some(y) = one_a_line(l, node, [&x, &index, &update], axis)? {
        return l.set(node, 0, y);
    }
    let without_axis = |strides: &[i32]| {
        let mut strides = strides.to_vec();
        strides[axis] = 0;
        strides
    };
    let mut limits = index.view.shape.clone();
    limits[axis] = usize::MAX;
    let places = Places {
        index: without_axis(&index.view.strides),
        update: without_axis(&update.view.strides),
        limits,
        count: index.view.shape[axis],
        step: (index.view.strides[axis], update.view.strides[axis]),
        axes: vec![axis],
        component: 0,
    };
    let updates = Updates {
        shape: index.view.shape.clone(),
        index: index.view.strides.clone(),
        update: update.view.strides.clone(),
        to: without_axis(&row_major(&x.view.shape)),
        fill: 1,
    };
    scatter(l, node, [&x, &index, &update], &places, &updates)
}

/// Where every line along the axis has one update that replaces or adds: elementwise, so that it fuses.
fn one_a_line(
    l: &mut Lowering,
    node: &Node,
    [x, index, update]: [&Operand; 3],
    axis: usize,
) -> Outcome<Option<Operand>> {
    let expr = match node.str("reduction").unwrap_or("none") {
        "none" => "select({0}, {2}, select({1}, {1} + {4}, {1} < 0) == {3})",
        "add" if x.elem != Elem::Bool => "select({0}, {0} + {2}, select({1}, {1} + {4}, {1} < 0) == {3})",
        _ => return Ok(None),
    };
    let mut lines = x.view.shape.clone();
    lines[axis] = 1;
    if index.view.shape != lines || index.elem != Elem::I32 || update.elem != x.elem {
        return Ok(None);
    }
    let place = l.counter(x.view.rank(), axis, x.view.shape[axis])?;
    let size = l.scalar_i32(x.view.shape[axis])?;
    l.map(expr, &[x, index, update, &place, &size], x.elem).map(Some)
}

fn scatter_nd(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, index, update) = (l.arg(node, 0)?, l.arg(node, 1)?, l.arg(node, 2)?);
    let Some((&q, rows)) = index.view.shape.split_last() else {
        return Err("indices need a dimension".into());
    };
    let count: usize = rows.iter().product();
    let rest = x.view.shape.get(q..).ok_or("an index has more components than the data has dimensions")?;
    let index = l.reshape(&index, &[count, q])?;
    let update = l.reshape(&update, &[&[count], rest].concat())?;
    let places = Places {
        index: vec![0; x.view.rank()],
        update: [&vec![0; q][..], &update.view.strides[1..]].concat(),
        limits: vec![usize::MAX; x.view.rank()],
        count,
        step: (index.view.strides[0], update.view.strides[0]),
        axes: (0..q).collect(),
        component: index.view.strides[1],
    };
    let updates = Updates {
        shape: vec![count],
        index: vec![index.view.strides[0]],
        update: vec![update.view.strides[0]],
        to: vec![0],
        fill: rest.iter().product(),
    };
    scatter(l, node, [&x, &index, &update], &places, &updates)
}
