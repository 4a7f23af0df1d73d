//! Rearrangements: what only moves, copies or drops elements. Each gradient is the move back; copies add up, and
//! what was dropped gets 0.

use super::index::add_at;
use super::{Context, Cotangents, Row, rule, stop};
use crate::error::Result;
use crate::onnx::infer::slice_range;
use crate::onnx::{Attr, Builder, Fact, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    stop("Bernoulli"),
    rule("CenterCropPad", center_crop_pad),
    rule("Concat", concat),
    stop("Constant"),
    stop("ConstantOfShape"),
    rule("DepthToSpace", |c| blocks_back(c, true)),
    rule("Expand", |c| c.pull(|b, g, x, _| b.sum_to(g, &b.shape(x)))),
    stop("EyeLike"),
    rule("Flatten", reshape_back),
    stop("Multinomial"),
    rule("Pad", pad),
    stop("RandomNormal"),
    stop("RandomNormalLike"),
    stop("RandomUniform"),
    stop("RandomUniformLike"),
    stop("Range"),
    rule("Reshape", reshape_back),
    stop("Shape"),
    stop("Size"),
    rule("Slice", slice),
    rule("SpaceToDepth", |c| blocks_back(c, false)),
    rule("Split", split),
    rule("Squeeze", reshape_back),
    rule("Tile", tile),
    rule("Transpose", transpose),
    rule("Trilu", triangle),
    rule("Unsqueeze", reshape_back),
];

/// The same triangle of g. The diagonal is always named: not every executor takes the operator without it.
fn triangle(c: &mut Context<'_>) -> Cotangents {
    let upper = [("upper", Attr::Int(c.node.int_or("upper", 1)))];
    let k = match c.optional(1) {
        Some(k) => k,
        None => c.b.constant(Tensor::i64(&[], &[0])),
    };
    c.pull(|b, g, _, _| b.op_with("Trilu", &[g, &k], &upper))
}

fn reshape_back(c: &mut Context<'_>) -> Cotangents {
    c.pull(|b, g, x, _| b.reshape(g, &b.shape(x)))
}

/// The inverse permutation.
fn transpose(c: &mut Context<'_>) -> Cotangents {
    let rank = c.shape(0)?.len();
    let perm: Vec<usize> = match c.node.ints("perm") {
        Some(perm) => perm.iter().map(|&axis| c.axis(axis, rank)).collect::<Result<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let inverse: Vec<usize> = (0..rank).map(|i| perm.iter().position(|&p| p == i).unwrap_or(i)).collect();
    c.pull(|b, g, _, _| b.transpose(g, &inverse))
}

/// The sum over the copies: along each axis they are the outer half of a split of the axis.
fn tile(c: &mut Context<'_>) -> Cotangents {
    c.pull(|b, g, x, y| {
        let (from, to) = (b.shape(x), b.shape(y));
        if b.fact(y).is_empty() {
            return b.zeros_like(x);
        }
        let split: Vec<usize> = from.iter().zip(&to).flat_map(|(&d, &t)| [t / d, d]).collect();
        let copies: Vec<i64> = (0..from.len()).filter(|&i| to[i] != from[i]).map(|i| 2 * i as i64).collect();
        let mut sum = b.reshape(g, &split);
        if !copies.is_empty() {
            sum = b.sum(&sum, &copies, false);
        }
        b.reshape(&sum, &from)
    })
}

/// Each part its slice of g.
fn concat(c: &mut Context<'_>) -> Cotangents {
    let g = c.cotangent()?;
    let axis = c.axis(c.node.int_or("axis", 1), c.b.rank(&g))?;
    let mut start = 0;
    let mut parts = vec![];
    for i in 0..c.node.inputs.len() {
        let end = start + c.shape(i)?[axis] as i64;
        parts.push(c.if_wanted(i, |c| Ok(c.b.slice(&g, &[start], &[end], &[axis as i64])))?);
        start = end;
    }
    Ok(parts)
}

/// The parts' cotangents joined, zeros where there is none.
fn split(c: &mut Context<'_>) -> Cotangents {
    let axis = c.node.int_or("axis", 0);
    let mut parts = vec![];
    for (i, output) in c.node.outputs.iter().enumerate() {
        match (c.cotangents.get(i).cloned().flatten(), output) {
            (Some(g), _) => parts.push(g),
            (None, Some(output)) => parts.push(c.b.zeros_like(output)),
            (None, None) => {
                return Err(c.refuse(format!("has a gradient only where its output {i} has a name")));
            }
        }
    }
    Ok(vec![Some(c.b.concat(&parts.iter().collect::<Vec<_>>(), axis))])
}

/// One axis of a slice or of a crop: `count` elements of an axis of `size`, from `start` in steps of `step`.
struct Range {
    axis: usize,
    size: usize,
    start: i64,
    step: i64,
    count: usize,
}

/// g put back into zeros: where the slice's bounds are constants by padding, else by position.
fn slice(c: &mut Context<'_>) -> Cotangents {
    let Some(ranges) = constant_ranges(c)? else { return slice_by_position(c) };
    c.pull(|b, g, x, _| {
        if b.fact(g).is_empty() {
            return b.zeros_like(x);
        }
        let mut spread = g.clone();
        for range in ranges.iter().filter(|r| r.step != 1 && r.count > 1) {
            spread = spread_out(b, &spread, range.axis, range.count, range.step);
        }
        let mut pads = vec![(0, 0); b.rank(x)];
        for range in &ranges {
            let last = range.start + (range.count as i64 - 1) * range.step;
            let (low, high) = (range.start.min(last), range.start.max(last));
            pads[range.axis] = (low, range.size as i64 - 1 - high);
        }
        zero_pad(b, &spread, &pads)
    })
}

/// Undoes `count` steps of `step` along an axis: elements |step| apart with zeros between, turned round if negative.
fn spread_out(b: &mut Builder, g: &ValueId, axis: usize, count: usize, step: i64) -> ValueId {
    let mut g = g.clone();
    if step < 0 {
        let backwards = b.ints(&(0..count as i64).rev().collect::<Vec<_>>());
        g = b.op_with("Gather", &[&g, &backwards], &[("axis", Attr::Int(axis as i64))]);
    }
    let gap = step.unsigned_abs() as usize;
    if gap == 1 {
        return g;
    }
    let shape = b.shape(&g);
    let columns = b.reshape(&g, &[&shape[..=axis], &[1], &shape[axis + 1..]].concat());
    let mut pads = vec![(0, 0); shape.len() + 1];
    pads[axis + 1] = (0, gap as i64 - 1);
    let columns = zero_pad(b, &columns, &pads);
    let mut joined = shape;
    joined[axis] = count * gap;
    let line = b.reshape(&columns, &joined);
    // The zeros after the last element aren't between two.
    b.slice(&line, &[0], &[((count - 1) * gap + 1) as i64], &[axis as i64])
}

/// What a `Slice` with constant bounds takes along each of its axes; `None` if a bound is computed at run time.
fn constant_ranges(c: &Context<'_>) -> Result<Option<Vec<Range>>> {
    let known = |i: usize| c.optional(i).is_none_or(|v| c.b.constant_value(&v).is_some());
    if !(1..5).all(known) {
        return Ok(None);
    }
    let (from, to) = (c.shape(0)?, c.b.shape(&c.output(0)?));
    let starts = c.constant_ints(1)?.unwrap_or_default();
    let ends = c.constant_ints(2)?.unwrap_or_default();
    let axes = c.constant_ints(3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = c.constant_ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    let mut ranges = vec![];
    for (k, &axis) in axes.iter().enumerate() {
        let axis = c.axis(axis, from.len())?;
        let bounds = starts.get(k).zip(ends.get(k)).zip(steps.get(k));
        let Some((start, _, step)) = bounds.and_then(|((&s, &e), &step)| slice_range(from[axis], s, e, step))
        else {
            return Err(c.refuse("its bounds, axes and steps don't fit together"));
        };
        ranges.push(Range { axis, size: from[axis], start, step, count: to[axis] });
    }
    Ok(Some(ranges))
}

/// The node itself, applied to the positions of x, tells where each element of g belongs.
fn slice_by_position(c: &mut Context<'_>) -> Cotangents {
    let node = c.node;
    c.pull(|b, g, x, y| {
        let (from, to) = (b.shape(x), b.shape(y));
        let (size, count) = (from.iter().product(), to.iter().product());
        let positions = b.constant(Tensor::i64(&from, &(0..size as i64).collect::<Vec<_>>()));
        let mut inputs: Vec<Option<&ValueId>> = node.inputs.iter().map(Option::as_ref).collect();
        inputs[0] = Some(&positions);
        let taken = b.op_full("", "Slice", &inputs, &[], 1).remove(0);
        b.set_fact(&taken, Fact::new(crate::onnx::DType::I64, &to));
        let (taken, g) = (b.reshape(&taken, &[count]), b.reshape(g, &[count]));
        let zero = b.scalar_like(&g, 0.0);
        let zeros = b.expand(&zero, &[size]);
        let back = b.op_with("ScatterElements", &[&zeros, &taken, &g], &[("axis", Attr::Int(0))]);
        b.reshape(&back, &from)
    })
}

/// x with zeros (begin, end) around it along each axis; negative numbers cut off instead. Cuts are slices, because
/// not every executor pads by negative numbers.
pub(super) fn zero_pad(b: &mut Builder, x: &ValueId, pads: &[(i64, i64)]) -> ValueId {
    let mut x = x.clone();
    let shape = b.shape(&x);
    let cut: Vec<usize> = (0..pads.len()).filter(|&i| pads[i].0 < 0 || pads[i].1 < 0).collect();
    if !cut.is_empty() {
        let starts: Vec<i64> = cut.iter().map(|&i| -pads[i].0.min(0)).collect();
        let ends: Vec<i64> = cut.iter().map(|&i| shape[i] as i64 + pads[i].1.min(0)).collect();
        x = b.slice(&x, &starts, &ends, &cut.iter().map(|&i| i as i64).collect::<Vec<_>>());
    }
    if pads.iter().all(|p| p.0 <= 0 && p.1 <= 0) {
        return x;
    }
    let begins = pads.iter().map(|p| p.0.max(0));
    let all: Vec<i64> = begins.chain(pads.iter().map(|p| p.1.max(0))).collect();
    let pads = b.ints(&all);
    b.op("Pad", &[&x, &pads])
}

/// Cuts the padding off; copied elements (`reflect`, `edge`, `wrap`) add up at their origins. The constant that was
/// padded with gets the sum of the rest.
fn pad(c: &mut Context<'_>) -> Cotangents {
    let (x, g) = (c.input(0)?, c.cotangent()?);
    let shape = c.b.shape(&x);
    let given = c.constant_ints(1)?.unwrap_or_default();
    let axes = c.constant_ints(3)?.unwrap_or_else(|| (0..shape.len() as i64).collect());
    let mut pads = vec![(0, 0); shape.len()];
    for (k, &axis) in axes.iter().enumerate() {
        let (Some(&begin), Some(&end)) = (given.get(k), given.get(k + axes.len())) else {
            return Err(c.refuse("has fewer pads than its axes need"));
        };
        pads[c.axis(axis, shape.len())?] = (begin, end);
    }
    let mode = c.node.str("mode").unwrap_or("constant").to_owned();
    if mode != "constant" {
        return Ok(vec![Some(fold_copies(c, g, &shape, &pads, &mode)?)]);
    }
    let cuts: Vec<(i64, i64)> = pads.iter().map(|p| (-p.0, -p.1)).collect();
    let inner = zero_pad(c.b, &g, &cuts);
    let constant = c.if_wanted(2, |c| {
        let (all, kept) = (c.b.sum_all(&g), c.b.sum_all(&inner));
        let rest = c.b.sub(&all, &kept);
        let shape = c.shape(2)?;
        Ok(c.b.reshape(&rest, &shape))
    })?;
    Ok(vec![Some(inner), None, constant])
}

/// Axis after axis: adds each element of g to the one it was copied from.
fn fold_copies(
    c: &mut Context<'_>,
    mut g: ValueId,
    shape: &[usize],
    pads: &[(i64, i64)],
    mode: &str,
) -> Result<ValueId> {
    for (axis, &(begin, end)) in pads.iter().enumerate().filter(|(_, p)| **p != (0, 0)) {
        let size = shape[axis] as i64;
        let origin = |i: i64| match mode {
            "edge" => Some(i.clamp(0, size - 1)),
            "wrap" => Some(i.rem_euclid(size)),
            "reflect" if size == 1 => Some(0),
            "reflect" => {
                let phase = i.rem_euclid(2 * size - 2);
                Some(phase.min(2 * size - 2 - phase))
            }
            _ => None,
        };
        let origins: Option<Vec<i64>> = (-begin..size + end).map(origin).collect();
        let Some(origins) = origins else {
            return Err(c.refuse(format!("mode '{mode}' has no gradient")));
        };
        let mut target = c.b.shape(&g);
        target[axis] = shape[axis];
        let origins = c.b.ints(&origins);
        g = add_at(c.b, &target, axis, &origins, &g);
    }
    Ok(g)
}

/// Crops become pads and pads crops; the odd element is on the same side.
fn center_crop_pad(c: &mut Context<'_>) -> Cotangents {
    c.pull(|b, g, x, y| {
        let (from, to) = (b.shape(x), b.shape(y));
        let pads = from.iter().zip(&to).map(|(&from, &to)| match from >= to {
            true => ((from - to) as i64 / 2, (from - to) as i64 - (from - to) as i64 / 2),
            false => (-((to - from) as i64 / 2), -((to - from) as i64 - (to - from) as i64 / 2)),
        });
        let pads: Vec<(i64, i64)> = pads.collect();
        zero_pad(b, g, &pads)
    })
}

/// `DepthToSpace` (`to_space`) and `SpaceToDepth` are a reshape, a transposition and a reshape: done backwards.
fn blocks_back(c: &mut Context<'_>, to_space: bool) -> Cotangents {
    let block = c.node.int("blocksize").and_then(|s| usize::try_from(s).ok()).filter(|&s| s > 0);
    let Some(s) = block else { return Err(c.refuse("its blocksize is missing")) };
    let columns_first = c.node.str("mode") == Some("CRD");
    if c.shape(0)?.len() != 4 {
        return Err(c.refuse("has a gradient for images (rank 4) only"));
    }
    c.pull(|b, g, x, _| {
        let shape = b.shape(x);
        let shape = [shape[0], shape[1], shape[2], shape[3]];
        let [n, d, h, w] = shape;
        match to_space {
            // DCR: [n, s, s, d', h, w] → [n, d', h, s, w, s]; CRD: [n, d', s, s, h, w] → the same.
            true => {
                let blocks = b.reshape(g, &[n, d / (s * s), h, s, w, s]);
                let back = if columns_first { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
                let depth = b.transpose(&blocks, &back);
                b.reshape(&depth, &shape)
            }
            // [n, d, h', s, w', s] → [n, s, s, d, h', w']
            false => {
                let blocks =
                    if columns_first { [n, d, s, s, h / s, w / s] } else { [n, s, s, d, h / s, w / s] };
                let back = if columns_first { [0, 1, 4, 2, 5, 3] } else { [0, 3, 4, 1, 5, 2] };
                let blocks = b.reshape(g, &blocks);
                let space = b.transpose(&blocks, &back);
                b.reshape(&space, &shape)
            }
        }
    })
}
