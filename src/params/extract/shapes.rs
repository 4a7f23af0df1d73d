//! Operators that move elements about: pooling, reshaping, transposing, joining and cutting.

use super::labels::{Labels, is_permutation};
use super::{Form, Stored, Walk};
use crate::onnx::infer::{normalise_axis, slice_range};
use crate::onnx::{Node, ValueId};

/// Follows channels through `node`, if it is one of these.
pub fn visit(walk: &mut Walk, node: &Node) -> bool {
    let labels = match node.op.as_str() {
        "MaxPool"
        | "AveragePool"
        | "LpPool"
        | "GlobalAveragePool"
        | "GlobalMaxPool"
        | "GlobalLpPool"
        | "Resize"
        | "Upsample"
        | "GridSample"
        | "Expand"
        | "RotaryEmbedding"
        | "QLinearGlobalAveragePool"
        | "QLinearAveragePool" => walk.labels(node.input(0)).and_then(|l| ranked(walk, node, l)),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => reshape(walk, node),
        "Transpose" => {
            walk.labels(node.input(0)).and_then(|l| l.transpose(&permutation(node, l.shape.len())))
        }
        "Concat" => concat(walk, node),
        "Split" => return split(walk, node),
        "Slice" => slice(walk, node),
        "Gather" => gather(walk, node),
        "Pad" => pad(walk, node),
        "Tile" => tile(walk, node),
        "DepthToSpace" => depth_to_space(walk, node),
        "SpaceToDepth" => space_to_depth(walk, node),
        "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" | "NonMaxSuppression" | "ConstantOfShape"
        | "RandomNormalLike" | "RandomUniformLike" | "Range" | "OneHot" | "TopK" => None,
        op if op.starts_with("Reduce") => reduce(walk, node),
        _ => return false,
    };
    walk.set(node.output(0), labels);
    true
}

/// What becomes of a value made of initializers alone.
pub fn stored(walk: &mut Walk, node: &Node) {
    let inputs: Vec<&ValueId> = node.inputs.iter().flatten().collect();
    let first = inputs.first().and_then(|i| walk.stored.get(*i)).cloned();
    let output = node.output(0).cloned();
    let shape = output.as_ref().and_then(|o| walk.shape(o));
    let moved = match (node.op.as_str(), &first) {
        ("Identity" | "Cast" | "Dropout", Some(first)) => Some(first.clone()),
        ("DequantizeLinear", Some(first)) => Some(Stored { quantised: true, ..first.clone() }),
        ("Transpose", Some(first)) => {
            Some(Stored { form: first.form.as_ref().and_then(|f| transposed(f, node)), ..first.clone() })
        }
        ("Reshape" | "Squeeze" | "Unsqueeze" | "Flatten", Some(first)) => {
            let form = first.form.as_ref().zip(shape).and_then(|(form, shape)| reshaped(form, shape));
            Some(Stored { form, ..first.clone() })
        }
        // The shape of a weight is no weight.
        ("Shape" | "Size" | "ConstantOfShape" | "Range", _) => {
            Some(Stored { roots: vec![], form: None, quantised: false })
        }
        _ => None,
    };
    let made = moved.unwrap_or_else(|| {
        let mut roots: Vec<ValueId> =
            inputs.iter().filter_map(|i| walk.stored.get(*i)).flat_map(|s| s.roots.clone()).collect();
        roots.sort();
        roots.dedup();
        Stored { roots, form: None, quantised: false }
    });
    for output in node.outputs.iter().flatten() {
        walk.stored.insert(output.clone(), made.clone());
    }
}

fn transposed(form: &Form, node: &Node) -> Option<Form> {
    let order = permutation(node, form.perm.len());
    if !is_permutation(&order) {
        return None;
    }
    let perm = order.iter().map(|&i| form.perm.get(i).copied()).collect::<Option<Vec<_>>>()?;
    Some(Form { split: form.split.clone(), perm })
}

/// A reshape of a transposed initializer can only add and drop axes of size 1.
fn reshaped(form: &Form, shape: &[usize]) -> Option<Form> {
    if form.perm.iter().enumerate().all(|(i, &p)| i == p) {
        let same = form.split.iter().product::<usize>() == shape.iter().product::<usize>();
        return same.then(|| Form { split: shape.to_vec(), perm: (0..shape.len()).collect() });
    }
    let now = form.shape();
    let wide = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    if wide(&now) != wide(shape) {
        return None;
    }
    // The axes that matter, numbered by their place in the initializer, then idle ones at the end.
    let kept: Vec<usize> = form.perm.iter().copied().filter(|&p| form.split[p] != 1).collect();
    let mut order = kept.clone();
    order.sort_unstable();
    let mut split: Vec<usize> = order.iter().map(|&p| form.split[p]).collect();
    let mut kept = kept.iter().map(|p| order.binary_search(p).unwrap_or(0));
    let mut perm = vec![];
    for &size in shape {
        if size == 1 {
            split.push(1);
            perm.push(split.len() - 1);
        } else {
            perm.push(kept.next()?);
        }
    }
    Some(Form { split, perm })
}

fn permutation(node: &Node, rank: usize) -> Vec<usize> {
    match node.ints("perm") {
        Some(perm) => perm.iter().map(|&p| usize::try_from(p).unwrap_or(usize::MAX)).collect(),
        None => (0..rank).rev().collect(),
    }
}

/// The same labels for an output of perhaps more axes.
fn ranked(walk: &Walk, node: &Node, labels: Labels) -> Option<Labels> {
    let rank = walk.shape(node.output(0)?)?.len();
    let mut shape = vec![1; rank.checked_sub(labels.shape.len())?];
    shape.extend(&labels.shape);
    Some(Labels { shape, ..labels })
}

fn reshape(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let (from, to) = (walk.shape(node.input(0)?)?, walk.shape(node.output(0)?)?);
    let (labels, grid) = walk.labels(node.input(0))?.reshape(from, to)?;
    if let (Some(&atom), false) = (labels.atoms.first(), grid.is_empty()) {
        walk.grids.push((atom, grid));
    }
    Some(labels)
}

fn concat(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let rank = walk.shape(node.output(0)?)?.len();
    let axis = normalise_axis(node.int_or("axis", 0), rank)?;
    let inputs: Vec<ValueId> = node.inputs.iter().flatten().cloned().collect();
    let known: Vec<Labels> = inputs.iter().filter_map(|i| walk.labels(Some(i))).collect();
    let along = known.iter().any(|l| l.shape.get(axis).is_some_and(|&d| d > 1));
    let across = known.iter().any(|l| l.axes().iter().any(|&i| i != axis));
    if known.is_empty() || (along && across) {
        return None;
    }
    if across {
        // Joined along positions: the channels of all parts are the same.
        let mut all = known.into_iter();
        let mut joined = all.next()?;
        for part in all {
            joined = joined.meet(&part, &mut walk.atoms)?;
        }
        return Some(joined);
    }
    let mut parts = vec![];
    for input in &inputs {
        let size = *walk.shape(input)?.get(axis)?;
        let atoms = match walk.is_stored(Some(input)) {
            true => walk.atoms.fresh(size),
            false => walk.channels(Some(input), axis),
        };
        parts.push((Labels::on_axis(rank, axis, atoms), size));
    }
    Labels::concat(&parts, axis)
}

fn split(walk: &mut Walk, node: &Node) -> bool {
    let shape = node.input(0).and_then(|x| walk.shape(x));
    let (Some(labels), Some(shape)) = (walk.labels(node.input(0)), shape) else {
        return true;
    };
    let Some(axis) = normalise_axis(node.int_or("axis", 0), shape.len()) else {
        return true;
    };
    let mut start = 0;
    for output in &node.outputs {
        // An unnamed output has no fact: what comes after it can't be placed.
        let Some(size) = output.as_ref().and_then(|o| walk.shape(o)).and_then(|s| s.get(axis)) else {
            return true;
        };
        let part = labels.select(axis, &(start..start + size).collect::<Vec<_>>());
        walk.set(output.as_ref(), part);
        start += size;
    }
    true
}

fn slice(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let shape = walk.shape(node.input(0)?)?;
    let mut labels = walk.labels(node.input(0))?;
    let (starts, ends) = (walk.ints_of(node, "starts", 1)?, walk.ints_of(node, "ends", 2)?);
    let axes = walk.ints_of(node, "axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = walk.ints(node.input(4)).unwrap_or_else(|| vec![1; starts.len()]);
    for (k, &axis) in axes.iter().enumerate() {
        let axis = normalise_axis(axis, shape.len())?;
        if labels.shape[axis] == 1 {
            continue;
        }
        let (start, end, step) = slice_range(shape[axis], *starts.get(k)?, *ends.get(k)?, *steps.get(k)?)?;
        let mut picked = vec![];
        let mut at = start;
        while (step > 0 && at < end) || (step < 0 && at > end) {
            picked.push(usize::try_from(at).ok()?);
            at += step;
        }
        labels = labels.select(axis, &picked)?;
    }
    Some(labels)
}

fn gather(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let shape = walk.shape(node.input(0)?)?;
    let labels = walk.labels(node.input(0))?;
    let axis = normalise_axis(node.int_or("axis", 0), shape.len())?;
    let indices_rank = walk.shape(node.input(1)?)?.len();
    let picked = match (labels.shape[axis], walk.ints(node.input(1))) {
        (1, _) => labels,
        (size, Some(indices)) => {
            let wrapped = indices.iter().map(|&i| normalise_axis(i, size)).collect::<Option<Vec<_>>>()?;
            labels.select(axis, &wrapped)?
        }
        _ => return None,
    };
    let mut now = picked.shape.clone();
    let size = now.remove(axis);
    match indices_rank {
        1 => now.insert(axis, size),
        _ if size == 1 => (0..indices_rank).for_each(|_| now.insert(axis, 1)),
        _ => return None,
    }
    Some(Labels { shape: now, atoms: picked.atoms })
}

fn pad(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let (from, to) = (walk.shape(node.input(0)?)?, walk.shape(node.output(0)?)?);
    let labels = walk.labels(node.input(0))?;
    if labels.axes().iter().all(|&i| from.get(i) == to.get(i)) {
        return Some(labels);
    }
    // New channels, as in the shortcuts of some residual networks.
    let pads =
        walk.ints_of(node, "pads", 1).filter(|p| p.len() == 2 * from.len() && node.input(3).is_none())?;
    let &[axis] = labels.axes().as_slice() else {
        return None;
    };
    let count = |v: i64| usize::try_from(v).ok();
    let mut atoms = walk.atoms.fresh(count(pads[axis])?);
    atoms.extend(&labels.atoms);
    atoms.extend(walk.atoms.fresh(count(pads[axis + from.len()])?));
    Some(Labels::on_axis(from.len(), axis, atoms))
}

fn tile(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let (from, to) = (walk.shape(node.input(0)?)?, walk.shape(node.output(0)?)?);
    let mut labels = walk.labels(node.input(0))?;
    for axis in labels.axes() {
        let picked: Vec<usize> = (0..*to.get(axis)?).map(|i| i % from[axis]).collect();
        labels = labels.select(axis, &picked)?;
    }
    Some(labels)
}

/// Each channel of the result collects `blocksize²` of the input's, which so become one.
fn depth_to_space(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let shape = walk.shape(node.input(0)?)?;
    let &[_, c, _, _] = shape else {
        return None;
    };
    let block = usize::try_from(node.int("blocksize")?).ok()?.pow(2);
    walk.labels(node.input(0))?;
    let atoms = walk.channels(node.input(0), 1);
    let channels = c.checked_div(block)?;
    let of = |channel: usize, k: usize| match node.str("mode") {
        Some("CRD") => channel * block + k,
        _ => k * channels + channel,
    };
    for channel in 0..channels {
        (1..block).for_each(|k| walk.atoms.unite(atoms[of(channel, 0)], atoms[of(channel, k)]));
    }
    Some(Labels::on_axis(4, 1, (0..channels).map(|channel| atoms[of(channel, 0)]).collect()))
}

fn space_to_depth(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let block = usize::try_from(node.int("blocksize")?).ok()?.pow(2);
    walk.labels(node.input(0))?;
    let atoms = walk.channels(node.input(0), 1);
    Some(Labels::on_axis(4, 1, atoms.repeat(block)))
}

fn reduce(walk: &mut Walk, node: &Node) -> Option<Labels> {
    let shape = walk.shape(node.input(0)?)?;
    let labels = walk.labels(node.input(0))?;
    let given = walk.ints_of(node, "axes", 1).unwrap_or_default();
    if given.is_empty() {
        return (node.int_or("noop_with_empty_axes", 0) != 0).then_some(labels);
    }
    let axes: Vec<usize> = given.iter().map(|&a| normalise_axis(a, shape.len())).collect::<Option<_>>()?;
    if axes.iter().any(|&a| labels.shape[a] > 1) {
        return None;
    }
    if node.int_or("keepdims", 1) != 0 {
        return Some(labels);
    }
    let kept = (0..shape.len()).filter(|i| !axes.contains(i)).map(|i| labels.shape[i]).collect();
    Some(Labels { shape: kept, atoms: labels.atoms })
}
