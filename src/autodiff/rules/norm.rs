//! Normalisation layers.
//!
//! All that subtract a mean and divide by a deviation share one formula, [`standardised_gradient`].

use super::compose::compose;
use super::{Context, Cotangents, Row, rule};
use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Attr, Builder, Node, ValueId};

pub const TABLE: &[Row] = &[
    rule("BatchNormalization", batch),
    rule("GroupNormalization", group),
    rule("InstanceNormalization", instance),
    rule("LRN", local_response),
    rule("LayerNormalization", layer),
    rule("LpNormalization", lp),
    rule("MeanVarianceNormalization", mean_variance),
    rule("RMSNormalization", root_mean_square),
];

/// `[C]` as `[C, 1, …]`, to broadcast along axis 1 of a tensor of `rank`.
fn per_channel(b: &mut Builder, v: &ValueId, rank: usize) -> ValueId {
    let shape = [&[b.fact(v).len()], &vec![1; rank.saturating_sub(2)][..]].concat();
    b.reshape(v, &shape)
}

/// Sums over everything but axis 1.
fn channel_sums(b: &mut Builder, v: &ValueId) -> ValueId {
    let shape = b.shape(v);
    if shape.len() < 2 {
        return b.sum_all(v);
    }
    let flat = b.reshape(v, &[shape[0], shape[1], shape[2..].iter().product()]);
    b.sum(&flat, &[0, 2], false)
}

fn inverse_deviation(b: &mut Builder, variance: &ValueId, epsilon: f64) -> ValueId {
    let shifted = b.add_scalar(variance, epsilon);
    let deviation = b.op("Sqrt", &[&shifted]);
    b.op("Reciprocal", &[&deviation])
}

/// What standardising over some axes makes: `normal = (x − mean) · inverse`.
struct Standardised {
    normal: ValueId,
    inverse: ValueId,
}

fn standardise(b: &mut Builder, x: &ValueId, axes: &[i64], epsilon: f64, centre: bool) -> Standardised {
    let centred = if centre {
        let mean = b.mean(x, axes, true);
        b.sub(x, &mean)
    } else {
        x.clone()
    };
    let squares = b.mul(&centred, &centred);
    let variance = b.mean(&squares, axes, true);
    let inverse = inverse_deviation(b, &variance, epsilon);
    Standardised { normal: b.mul(&centred, &inverse), inverse }
}

/// The cotangent of x, from `g`, that of `normal`: `inverse · (g − mean(g) − normal · mean(g · normal))`,
/// without the middle term where no mean was subtracted (Ba et al. 2016, Zhang and Sennrich 2019).
fn standardised_gradient(
    b: &mut Builder,
    s: &Standardised,
    g: &ValueId,
    axes: &[i64],
    centre: bool,
) -> ValueId {
    let along = b.mul(g, &s.normal);
    let along = b.mean(&along, axes, true);
    let along = b.mul(&s.normal, &along);
    let mut rest = b.sub(g, &along);
    if centre {
        let mean = b.mean(g, axes, true);
        rest = b.sub(&rest, &mean);
    }
    b.mul(&rest, &s.inverse)
}

fn batch(c: &mut Context<'_>) -> Cotangents {
    let epsilon = f64::from(c.node.float_or("epsilon", 1e-5));
    if c.node.int_or("training_mode", 0) != 0 {
        return batch_training(c);
    }
    let (x, scale, mean, variance) = (c.input(0)?, c.input(1)?, c.input(3)?, c.input(4)?);
    let dy = c.cotangent()?;
    let rank = c.b.rank(&x);
    let dtype = c.b.dtype(&x);
    let b = &mut *c.b;
    let scale = b.cast(&scale, dtype);
    let (mean, variance) = (b.cast(&mean, dtype), b.cast(&variance, dtype));
    let inverse = inverse_deviation(b, &variance, epsilon);
    let gain = b.mul(&scale, &inverse);
    let dx = c.wants(0).then(|| {
        let gain = per_channel(c.b, &gain, rank);
        c.b.mul(&dy, &gain)
    });
    let db = (c.wants(2) || c.wants(3)).then(|| channel_sums(c.b, &dy));
    let dscale = (c.wants(1) || c.wants(4)).then(|| {
        let mean = per_channel(c.b, &mean, rank);
        let centred = c.b.sub(&x, &mean);
        let along = c.b.mul(&dy, &centred);
        let along = channel_sums(c.b, &along);
        c.b.mul(&along, &inverse)
    });
    let dmean = c.wants(3).then_some(&db).and_then(|db| db.as_ref()).map(|db| {
        let pull = c.b.mul(db, &gain);
        c.b.neg(&pull)
    });
    let dvariance = c.wants(4).then_some(&dscale).and_then(|d| d.as_ref()).map(|dscale| {
        let pull = c.b.mul(dscale, &gain);
        let pull = c.b.mul(&pull, &inverse);
        c.b.mul_scalar(&pull, -0.5)
    });
    let types: Vec<_> = (0..5).map(|i| c.optional(i).map(|v| c.b.dtype(&v))).collect();
    let mut all = vec![dx, dscale, db, dmean, dvariance];
    for (cotangent, dtype) in all.iter_mut().zip(types) {
        *cotangent = cotangent.take().zip(dtype).map(|(cotangent, dtype)| c.b.cast(&cotangent, dtype));
    }
    Ok(all)
}

/// The cotangents with the statistics of the batch itself.
fn batch_training(c: &mut Context<'_>) -> Cotangents {
    compose(c, batch_forward)
}

/// Emits the layer in primitives. In training form the statistics are those of the batch, and running ones go on
/// as `old · momentum + new · (1 − momentum)`.
pub fn batch_forward(b: &mut Builder, node: &Node) -> Result<Vec<Option<ValueId>>> {
    let input = |i: usize| node.input(i).ok_or_else(|| Error::node(node, format!("input {i} is missing")));
    let (x, scale, bias, old_mean, old_variance) = (input(0)?, input(1)?, input(2)?, input(3)?, input(4)?);
    let epsilon = f64::from(node.float_or("epsilon", 1e-5));
    let (rank, dtype) = (b.rank(x), b.dtype(x));
    let (scale, bias) = (b.cast(scale, dtype), b.cast(bias, dtype));
    if node.int_or("training_mode", 0) == 0 {
        let (mean, variance) = (b.cast(old_mean, dtype), b.cast(old_variance, dtype));
        let inverse = inverse_deviation(b, &variance, epsilon);
        let gain = b.mul(&scale, &inverse);
        let shift = b.mul(&mean, &gain);
        let shift = b.sub(&bias, &shift);
        let (gain, shift) = (per_channel(b, &gain, rank), per_channel(b, &shift, rank));
        let scaled = b.mul(x, &gain);
        return Ok(vec![Some(b.add(&scaled, &shift))]);
    }
    let momentum = f64::from(node.float_or("momentum", 0.9));
    let axes: Vec<i64> = (0..rank as i64).filter(|&a| a != 1).collect();
    let mean = b.mean(x, &axes, true);
    let centred = b.sub(x, &mean);
    let squares = b.mul(&centred, &centred);
    let variance = b.mean(&squares, &axes, true);
    let inverse = inverse_deviation(b, &variance, epsilon);
    let normal = b.mul(&centred, &inverse);
    let (scale, bias) = (per_channel(b, &scale, rank), per_channel(b, &bias, rank));
    let scaled = b.mul(&normal, &scale);
    let mut outputs = vec![Some(b.add(&scaled, &bias))];
    for (old, new) in [(old_mean, &mean), (old_variance, &variance)] {
        let (flat, dtype) = (b.shape(old), b.dtype(old));
        let new = b.reshape(new, &flat);
        let new = b.cast(&new, dtype);
        let kept = b.mul_scalar(old, momentum);
        let added = b.mul_scalar(&new, 1.0 - momentum);
        outputs.push(Some(b.add(&kept, &added)));
    }
    Ok(outputs)
}

fn layer(c: &mut Context<'_>) -> Cotangents {
    affine_over_last(c, -1, true)
}

pub fn root_mean_square(c: &mut Context<'_>) -> Cotangents {
    affine_over_last(c, -1, false)
}

/// Emits a normalisation over the last axis: by the operator for it, or, without a mean, in primitives (the operator
/// is younger than the working opset).
pub fn normalised(
    b: &mut Builder,
    x: &ValueId,
    gamma: &ValueId,
    beta: Option<&ValueId>,
    epsilon: Attr,
    centre: bool,
) -> ValueId {
    if centre {
        let attrs = [("axis", Attr::Int(-1)), ("epsilon", epsilon)];
        return b.op_full("", "LayerNormalization", &[Some(x), Some(gamma), beta], &attrs, 1).remove(0);
    }
    let epsilon = if let Attr::Float(epsilon) = epsilon { f64::from(epsilon) } else { 0.0 };
    let s = standardise(b, x, &[-1], epsilon, false);
    b.mul(&s.normal, gamma)
}

/// `Y = normalise(X over axis…) · scale + bias`, where scale and bias broadcast to X.
fn affine_over_last(c: &mut Context<'_>, default_axis: i64, centre: bool) -> Cotangents {
    let (x, scale) = (c.input(0)?, c.input(1)?);
    let epsilon = f64::from(c.node.float_or("epsilon", 1e-5));
    let rank = c.b.rank(&x);
    let axis = c.node.int_or("axis", default_axis);
    let axis = normalise_axis(axis, rank)
        .ok_or_else(|| c.refuse(format!("axis {axis} of a tensor of rank {rank}")))?;
    let axes: Vec<i64> = (axis as i64..rank as i64).collect();
    if c.cotangents.iter().skip(1).any(Option::is_some) {
        return layer_with_statistics(c, &axes, epsilon);
    }
    let dy = c.cotangent()?;
    let bias = c.optional(2);
    let s = standardise(c.b, &x, &axes, epsilon, centre);
    let dx = c.wants(0).then(|| {
        let g = c.b.mul(&dy, &scale);
        standardised_gradient(c.b, &s, &g, &axes, centre)
    });
    let dscale = c.wants(1).then(|| {
        let along = c.b.mul(&dy, &s.normal);
        let shape = c.b.shape(&scale);
        c.b.sum_to(&along, &shape)
    });
    let dbias = bias.filter(|_| c.wants(2)).map(|bias| {
        let shape = c.b.shape(&bias);
        c.b.sum_to(&dy, &shape)
    });
    Ok(vec![dx, dscale, dbias])
}

/// The seldom case that a loss depends on the mean or the deviation, too.
fn layer_with_statistics(c: &mut Context<'_>, axes: &[i64], epsilon: f64) -> Cotangents {
    let (x, scale, bias) = (c.input(0)?, c.input(1)?, c.optional(2));
    compose(c, |b, _| {
        let mean = b.mean(&x, axes, true);
        let centred = b.sub(&x, &mean);
        let squares = b.mul(&centred, &centred);
        let variance = b.mean(&squares, axes, true);
        let inverse = inverse_deviation(b, &variance, epsilon);
        let normal = b.mul(&centred, &inverse);
        let mut y = b.mul(&normal, &scale);
        if let Some(bias) = &bias {
            y = b.add(&y, bias);
        }
        Ok(vec![Some(y), Some(mean), Some(inverse)])
    })
}

fn instance(c: &mut Context<'_>) -> Cotangents {
    let x = c.input(0)?;
    let channels = c.b.shape(&x).get(1).copied().unwrap_or(1);
    grouped(c, channels)
}

fn group(c: &mut Context<'_>) -> Cotangents {
    let groups = c.node.int_or("num_groups", 1).max(1) as usize;
    grouped(c, groups)
}

/// Standardises each of `groups` groups of channels of each row; scale and bias are given for each channel or
/// (until opset 20) for each group.
fn grouped(c: &mut Context<'_>, groups: usize) -> Cotangents {
    let (x, scale, dy) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let epsilon = f64::from(c.node.float_or("epsilon", 1e-5));
    let shape = c.b.shape(&x);
    let fits = shape.len() >= 2 && shape[1].is_multiple_of(groups);
    let channels = shape.get(1).copied().filter(|_| fits);
    let channels = channels.ok_or_else(|| c.refuse(format!("{groups} groups don't divide {shape:?}")))?;
    let per_group = c.b.fact(&scale).len() != channels;
    let within: usize = shape[1..].iter().product::<usize>() / groups;
    let b = &mut *c.b;
    let grouped = b.reshape(&x, &[shape[0], groups, within]);
    let s = standardise(b, &grouped, &[2], epsilon, true);
    let dx = c.wants(0).then(|| {
        let b = &mut *c.b;
        let scale = if per_group {
            let scale = b.reshape(&scale, &[groups, 1]);
            let scale = b.expand(&scale, &[groups, channels / groups]);
            b.reshape(&scale, &[channels])
        } else {
            scale.clone()
        };
        let scale = per_channel(b, &scale, shape.len());
        let g = b.mul(&dy, &scale);
        let g = b.reshape(&g, &[shape[0], groups, within]);
        let dx = standardised_gradient(b, &s, &g, &[2], true);
        b.reshape(&dx, &shape)
    });
    let totals = |c: &mut Context<'_>, i: usize, v: &ValueId| {
        c.wants(i).then(|| match per_group {
            true => {
                let v = c.b.reshape(v, &[shape[0], groups, within]);
                channel_sums(c.b, &v)
            }
            false => channel_sums(c.b, v),
        })
    };
    let normal = c.b.reshape(&s.normal, &shape);
    let along = c.b.mul(&dy, &normal);
    let dscale = totals(c, 1, &along);
    let dbias = totals(c, 2, &dy);
    Ok(vec![dx, dscale, dbias])
}

/// `y = x / ‖x‖`; a zero vector stays zero and gets no cotangent.
fn lp(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let axis = [c.axis(c.node.int_or("axis", -1), c.b.rank(&x))? as i64];
    let one_norm = c.node.int_or("p", 2) == 1;
    let b = &mut *c.b;
    let norm = b.reduce(if one_norm { "ReduceL1" } else { "ReduceL2" }, &x, &axis, true);
    let direction = if one_norm { b.op("Sign", &[&x]) } else { y.clone() };
    let along = b.mul(&dy, &y);
    let along = b.sum(&along, &axis, true);
    let along = b.mul(&direction, &along);
    let across = b.sub(&dy, &along);
    let (zero, one) = (b.scalar_like(&x, 0.0), b.scalar_like(&x, 1.0));
    let empty = b.op("Equal", &[&norm, &zero]);
    let norm = b.where_(&empty, &one, &norm);
    let dx = b.div(&across, &norm);
    Ok(vec![Some(b.where_(&empty, &zero, &dx))])
}

/// `y = x · s^−β` with `s = bias + α/size · Σ_window x²` over neighbouring channels, hence
/// `dx = dy · s^−β − 2αβ/size · x · Σ_windowᵀ dy · x · s^(−β−1)` (Krizhevsky et al. 2012, section 3.3).
fn local_response(c: &mut Context<'_>) -> Cotangents {
    let (x, dy) = (c.input(0)?, c.cotangent()?);
    let size = c.node.int_or("size", 1).max(1) as usize;
    let (alpha, beta) = (f64::from(c.node.float_or("alpha", 1e-4)), f64::from(c.node.float_or("beta", 0.75)));
    let bias = f64::from(c.node.float_or("bias", 1.0));
    let shape = c.b.shape(&x);
    let b = &mut *c.b;
    let channels = shape[1];
    let mut window = super::separable::AxisMap::zeros(1, channels, channels);
    for centre in 0..channels {
        for other in centre.saturating_sub((size - 1) / 2)..(centre + size / 2 + 1).min(channels) {
            window.add(centre, other, 1.0);
        }
    }
    let squares = b.mul(&x, &x);
    let sums = window.apply(b, &squares);
    let sums = b.mul_scalar(&sums, alpha / size as f64);
    let sums = b.add_scalar(&sums, bias);
    let exponent = b.scalar_like(&x, -beta);
    let power = b.op("Pow", &[&sums, &exponent]);
    let direct = b.mul(&dy, &power);
    let inner = b.mul(&direct, &x);
    let inner = b.div(&inner, &sums);
    let inner = window.apply_transposed(b, &inner);
    let inner = b.mul(&inner, &x);
    let inner = b.mul_scalar(&inner, 2.0 * alpha * beta / size as f64);
    Ok(vec![Some(b.sub(&direct, &inner))])
}

/// `y = (x − mean) / (√(mean(x²) − mean²) + 1e−9)`, as the operator's function body has it.
fn mean_variance(c: &mut Context<'_>) -> Cotangents {
    let (x, dy) = (c.input(0)?, c.cotangent()?);
    let axes = c.node.ints("axes").unwrap_or(&[0, 2, 3]).to_vec();
    let b = &mut *c.b;
    let mean = b.mean(&x, &axes, true);
    let centred = b.sub(&x, &mean);
    let squares = b.mul(&centred, &centred);
    let variance = b.mean(&squares, &axes, true);
    let deviation = b.op("Sqrt", &[&variance]);
    let shifted = b.add_scalar(&deviation, 1e-9);
    let inverse = b.op("Reciprocal", &[&shifted]);
    let s = Standardised { normal: b.mul(&centred, &inverse), inverse };
    Ok(vec![Some(standardised_gradient(b, &s, &dy, &axes, true))])
}
