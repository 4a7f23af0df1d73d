//! Pooling: maxima, averages and p-norms of windows or of whole images.
//!
//! Maxima pass their cotangent to the element that won: where windows lie side by side by comparing (equal ones
//! share it), elsewhere by the indices that the forward operator reports (the first of equal ones). Averages are linear and separable (see [`super::separable`]).

use super::separable::{AxisMap, pull_back};
use super::window::Geometry;
use super::{Context, Cotangents, Row, rule};
use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, DType, Fact, Forms, Tensor, ValueId, kernels};

pub const TABLE: &[Row] = &[
    rule("MaxPool", max_pool),
    rule("AveragePool", average_pool),
    rule("LpPool", lp_pool),
    rule("GlobalAveragePool", global_average_pool),
    rule("GlobalMaxPool", global_max_pool),
    rule("GlobalLpPool", global_lp_pool),
    rule("MaxUnpool", max_unpool),
];

fn geometry(c: &Context<'_>, x: &ValueId, y: &ValueId) -> Result<Geometry> {
    let kernel: Vec<usize> = c.node.ints("kernel_shape").unwrap_or(&[]).iter().map(|&k| k as usize).collect();
    let (x, y) = (&c.b.fact(x).shape, &c.b.fact(y).shape);
    match (x.get(2..), y.get(2..)) {
        (Some(dense), Some(coarse)) if dense.len() == kernel.len() => Geometry::of(c, &kernel, dense, coarse),
        _ => Err(c.refuse("its kernel_shape doesn't fit its input")),
    }
}

/// `[N · C, spatial]`.
fn planes(b: &mut Builder, v: &ValueId) -> ValueId {
    let shape = b.shape(v);
    b.reshape(v, &[shape[0] * shape[1], shape[2..].iter().product()])
}

fn max_pool(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let geometry = geometry(c, &x, &y)?;
    if matches!(c.b.forms, Forms::Kernels { .. }) && c.b.dtype(&x) == DType::F32 && geometry.rank() == 2 {
        return Ok(vec![Some(by_kernel(c.b, [&x, &y, &dy], &geometry))]);
    }
    if tiles(&geometry) {
        return Ok(vec![Some(tiled_maxima(c.b, &x, &y, &dy, &geometry))]);
    }
    let shape = c.b.shape(&x);
    let indices = winners(c, &x, &y)?;
    // ONNX counts from the start of the whole tensor, tract from the start of the plane.
    let indices = planes(c.b, &indices);
    let size = c.b.constant(Tensor::scalar(DType::I64, shape[2..].iter().product::<usize>() as f64));
    let indices = c.b.op("Mod", &[&indices, &size]);
    let updates = planes(c.b, &dy);
    let zero = c.b.scalar_like(&dy, 0.0);
    let zeros = c.b.expand(&zero, &[shape[0] * shape[1], shape[2..].iter().product()]);
    let mut attrs = vec![("axis", Attr::Int(1))];
    if !geometry.disjoint() {
        attrs.push(("reduction", Attr::from("add")));
    }
    let dx = c.b.op_with("ScatterElements", &[&zeros, &indices, &updates], &attrs);
    Ok(vec![Some(c.b.reshape(&dx, &shape))])
}

/// By one operator of ours.
fn by_kernel(b: &mut Builder, [x, y, dy]: [&ValueId; 3], g: &Geometry) -> ValueId {
    let sizes = |sizes: &[usize]| Attr::Ints(sizes.iter().map(|&size| size as i64).collect());
    let attrs = [
        ("kernel_shape", sizes(&g.kernel)),
        ("strides", sizes(&g.stride)),
        ("dilations", sizes(&g.dilation)),
        ("pads", Attr::Ints(g.begin.clone())),
        ("shared", Attr::from(tiles(g))),
    ];
    let inputs = [x, y, dy].map(Some);
    let dx = b.op_full(kernels::DOMAIN, kernels::MAX_POOL_GRADIENT, &inputs, &attrs, 1).remove(0);
    let fact = b.fact(x).clone();
    b.set_fact(&dx, fact);
    dx
}

/// Whether the windows of an image or a line lie side by side from its beginning.
fn tiles(g: &Geometry) -> bool {
    g.rank() <= 2
        && (0..g.rank())
            .all(|i| g.stride[i] == g.kernel[i] && g.dilation[i] == 1 && g.begin[i] == 0 && g.end(i) <= 0)
}

/// Max-pooling by windows side by side: compares the input with the maxima, repeated for each element of their
/// windows, and shares the cotangent between equal ones. The forward pass needs no indices, which executors compute
/// slowly.
fn tiled_maxima(b: &mut Builder, x: &ValueId, y: &ValueId, dy: &ValueId, g: &Geometry) -> ValueId {
    let (shape, coarse) = (b.shape(x), b.shape(y));
    let dtype = b.dtype(x);
    let seen = g.crop(b, x, 2);
    let seen_shape = b.shape(&seen);
    let last = g.rank() - 1;
    let (wide, narrow) = (seen_shape[last + 2], coarse[last + 2]);
    let mut columns = AxisMap::zeros(1, wide, narrow);
    (0..wide).for_each(|i| columns.add(i, i / g.kernel[last], 1.0));
    // Rows repeat by broadcasting, columns by a product.
    let lines = coarse[..last + 2].iter().product::<usize>();
    let rows = if last == 0 { 1 } else { g.kernel[0] };
    let repeated = |b: &mut Builder, v: &ValueId| {
        let flat = b.reshape(v, &[lines, narrow]);
        let wider = columns.apply(b, &flat);
        b.reshape(&wider, &[lines, 1, wide])
    };
    let maxima = repeated(b, y);
    let blocks = b.reshape(&seen, &[lines, rows, wide]);
    let won = b.op("Equal", &[&blocks, &maxima]);
    let won = b.cast(&won, dtype);
    let image = b.reshape(&won, &seen_shape);
    let sizes: Vec<i64> = g.kernel.iter().map(|&k| k as i64).collect();
    let attrs = [("kernel_shape", Attr::Ints(sizes.clone())), ("strides", Attr::Ints(sizes.clone()))];
    let shared = b.op_with("AveragePool", &[&image], &attrs);
    let winners = b.mul_scalar(&shared, sizes.iter().product::<i64>() as f64);
    let share = b.div(dy, &winners);
    let share = repeated(b, &share);
    let dx = b.mul(&won, &share);
    let dx = b.reshape(&dx, &seen_shape);
    if seen_shape == shape {
        return dx;
    }
    let mut pads = vec![0; 2 * shape.len()];
    (0..shape.len()).for_each(|i| pads[shape.len() + i] = (shape[i] - seen_shape[i]) as i64);
    let pads = b.ints(&pads);
    b.op("Pad", &[&dx, &pads])
}

/// The row-major indices of the maxima: the node's second output, which it gets where it has none.
fn winners(c: &mut Context<'_>, x: &ValueId, y: &ValueId) -> Result<ValueId> {
    let column_major = c.node.int_or("storage_order", 0) != 0;
    match c.node.output(1) {
        Some(indices) if !column_major => return Ok(indices.clone()),
        Some(_) => {
            let mut attrs = c.node.attrs.clone();
            attrs.shift_remove("storage_order");
            let attrs: Vec<(&str, Attr)> = attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            let made = c.b.op_full("", "MaxPool", &[Some(x)], &attrs, 2);
            for value in &made {
                let dtype = if *value == made[0] { c.b.dtype(y) } else { DType::I64 };
                let fact = Fact::new(dtype, &c.b.shape(y));
                c.b.set_fact(value, fact);
            }
            return Ok(made[1].clone());
        }
        None => {}
    }
    let indices = c.b.fresh("Indices");
    let fact = Fact::new(DType::I64, &c.b.shape(y));
    c.b.set_fact(&indices, fact);
    let producer = c.b.graph_mut().nodes.iter_mut().find(|node| node.output(0) == Some(y));
    let producer = producer.ok_or_else(|| Error::node(c.node, "isn't part of the graph"))?;
    producer.outputs.resize(2, None);
    producer.outputs[1] = Some(indices.clone());
    Ok(indices)
}

/// The windows' weights along one axis: `weight(window, elements inside the input, elements that count)`.
fn window_map(g: &Geometry, i: usize, count_padding: bool, weight: impl Fn(usize) -> f64) -> AxisMap {
    let mut map = AxisMap::zeros(i + 2, g.coarse[i], g.dense[i]);
    for window in 0..g.coarse[i] {
        let start = (window * g.stride[i]) as i64 - g.begin[i];
        let at: Vec<i64> = (0..g.kernel[i]).map(|k| start + (k * g.dilation[i]) as i64).collect();
        let inside = |p: i64| p >= 0 && p < g.dense[i] as i64;
        // Padding that `ceil_mode` adds beyond what the node declares never counts.
        let counted = |p: i64| inside(p) || count_padding && p < g.dense[i] as i64 + g.declared_end[i];
        let counts = at.iter().filter(|&&p| counted(p)).count();
        for &p in at.iter().filter(|&&p| inside(p)) {
            map.add(window, p as usize, weight(counts));
        }
    }
    map
}

fn average_pool(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let g = geometry(c, &x, &y)?;
    let count_padding = c.node.int_or("count_include_pad", 0) != 0;
    let maps: Vec<AxisMap> =
        (0..g.rank()).map(|i| window_map(&g, i, count_padding, |n| 1.0 / n.max(1) as f64)).collect();
    Ok(vec![Some(pull_back(c.b, &dy, &maps))])
}

/// The axes of an image, as global pools take them all: none would mean every axis to a reduction.
fn spatial(c: &Context<'_>, x: &ValueId) -> Result<Vec<i64>> {
    match c.b.rank(x) as i64 {
        rank @ 3.. => Ok((2..rank).collect()),
        rank => Err(c.refuse(format!("pools over images, but its input has {rank} axes"))),
    }
}

fn global_average_pool(c: &mut Context<'_>) -> Cotangents {
    let (x, dy) = (c.input(0)?, c.cotangent()?);
    let shape = c.b.shape(&x);
    let count: usize = spatial(c, &x)?.iter().map(|&axis| shape[axis as usize]).product();
    let share = c.b.mul_scalar(&dy, 1.0 / count.max(1) as f64);
    Ok(vec![Some(c.b.expand(&share, &shape))])
}

/// Shares the cotangent between equal maxima.
fn global_max_pool(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let axes = spatial(c, &x)?;
    let won = c.b.op("Equal", &[&x, &y]);
    let dtype = c.b.dtype(&x);
    let won = c.b.cast(&won, dtype);
    let winners = c.b.sum(&won, &axes, true);
    let share = c.b.div(&dy, &winners);
    Ok(vec![Some(c.b.mul(&won, &share))])
}

/// `y = (Σ |x|^p)^(1/p)`, hence `∂y/∂x = sign(x) |x|^(p−1) y^(1−p)`, and zero where y is.
fn lp_pool(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let g = geometry(c, &x, &y)?;
    let p = c.node.int_or("p", 2) as f64;
    let scaled = lp_outer(c.b, &y, &dy, p);
    let maps: Vec<AxisMap> = (0..g.rank()).map(|i| window_map(&g, i, true, |_| 1.0)).collect();
    let spread = pull_back(c.b, &scaled, &maps);
    let inner = lp_inner(c.b, &x, p);
    Ok(vec![Some(c.b.mul(&spread, &inner))])
}

fn global_lp_pool(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let p = c.node.int_or("p", 2) as f64;
    let scaled = lp_outer(c.b, &y, &dy, p);
    let inner = lp_inner(c.b, &x, p);
    Ok(vec![Some(c.b.mul(&inner, &scaled))])
}

/// `dy · y^(1−p)`, zero where y is.
fn lp_outer(b: &mut Builder, y: &ValueId, dy: &ValueId, p: f64) -> ValueId {
    if p == 1.0 {
        return dy.clone();
    }
    let (zero, one) = (b.scalar_like(y, 0.0), b.scalar_like(y, 1.0));
    let empty = b.op("Equal", &[y, &zero]);
    let safe = b.where_(&empty, &one, y);
    let power = match p {
        2.0 => safe,
        _ => {
            let exponent = b.scalar_like(y, p - 1.0);
            b.op("Pow", &[&safe, &exponent])
        }
    };
    let scaled = b.div(dy, &power);
    b.where_(&empty, &zero, &scaled)
}

/// `sign(x) |x|^(p−1)`.
fn lp_inner(b: &mut Builder, x: &ValueId, p: f64) -> ValueId {
    if p == 2.0 {
        return x.clone();
    }
    let sign = b.op("Sign", &[x]);
    if p == 1.0 {
        return sign;
    }
    let size = b.op("Abs", &[x]);
    let exponent = b.scalar_like(x, p - 1.0);
    let power = b.op("Pow", &[&size, &exponent]);
    b.mul(&sign, &power)
}

/// Every element went to the place its index names, so its cotangent is fetched from there.
fn max_unpool(c: &mut Context<'_>) -> Cotangents {
    let (indices, dy) = (c.input(1)?, c.cotangent()?);
    let x = c.input(0)?;
    let (from, to) = (c.b.shape(&x), c.b.shape(&dy));
    let kernel: Vec<usize> = c.node.ints("kernel_shape").unwrap_or(&[]).iter().map(|&k| k as usize).collect();
    let g = Geometry::of(c, &kernel, &to[2..], &from[2..])?;
    // Indices count within the smallest output that the windows fill; a larger `output_shape` is padded.
    let ends: Vec<i64> = (0..g.rank()).map(|i| g.cover(i) - g.begin[i] - g.declared_end[i]).collect();
    let axes: Vec<i64> = (2..to.len() as i64).collect();
    let dy = c.b.slice(&dy, &vec![0; ends.len()], &ends, &axes);
    let (dy_len, len) = (c.b.fact(&dy).len(), c.b.fact(&x).len());
    let flat = c.b.reshape(&dy, &[dy_len]);
    let places = c.b.reshape(&indices, &[len]);
    let dx = c.b.op_with("Gather", &[&flat, &places], &[("axis", Attr::Int(0))]);
    Ok(vec![Some(c.b.reshape(&dx, &from))])
}
