//! Gathering and scattering by index.
//!
//! The adjoint of reading at some places is adding there, and the other way round: `Gather*` and `Scatter*` are
//! each other's gradients. Indices themselves get no cotangent.

use super::elementwise::unless_zero;
use super::reduce::WithoutZeros;
use super::{Context, Cotangents, Row, rule, stop};
use crate::onnx::{Attr, Builder, DType, Fact, Forms, Tensor, ValueId, kernels};
use std::collections::HashMap;

pub const TABLE: &[Row] = &[
    rule("Compress", compress),
    rule("Gather", |c| {
        let (x, indices, g) = (c.input(0)?, c.input(1)?, c.cotangent()?);
        let shape = c.b.shape(&x);
        let axis = c.axis(c.node.int_or("axis", 0), shape.len())?;
        Ok(vec![Some(add_at(c.b, &shape, axis, &indices, &g))])
    }),
    rule("GatherElements", |c| {
        let (x, indices, g) = (c.input(0)?, c.input(1)?, c.cotangent()?);
        let by = Indexing::Elements { axis: c.node.int_or("axis", 0) };
        let zeros = c.b.zeros_like(&x);
        Ok(vec![Some(by.scatter(c.b, &zeros, &indices, &g, "add"))])
    }),
    rule("GatherND", |c| {
        let (x, indices, g) = (c.input(0)?, c.input(1)?, c.cotangent()?);
        let batch = usize::try_from(c.node.int_or("batch_dims", 0)).unwrap_or(0);
        let indices = with_batch_coordinates(c.b, &indices, batch);
        let shape = c.b.shape(&x);
        Ok(vec![Some(add_at_tuples(c.b, &shape, &indices, &g))])
    }),
    stop("NonZero"),
    rule("OneHot", one_hot),
    // The same reversal again.
    rule("ReverseSequence", |c| {
        let lengths = c.input(1)?;
        let attrs = [
            ("batch_axis", Attr::Int(c.node.int_or("batch_axis", 1))),
            ("time_axis", Attr::Int(c.node.int_or("time_axis", 0))),
        ];
        c.pull(|b, g, _, _| b.op_with("ReverseSequence", &[g, &lengths], &attrs))
    }),
    rule("ScatterElements", |c| {
        let axis = c.node.int_or("axis", 0);
        scatter(c, Indexing::Elements { axis })
    }),
    rule("ScatterND", |c| scatter(c, Indexing::Tuples)),
    rule("TensorScatter", tensor_scatter),
    stop("Unique"),
];

/// A zero tensor of `shape` to which `g` is added at `indices` along `axis`: the adjoint of `Gather`.
/// `g` has the indices' axes in place of `axis`. As rows of a matrix, so that every row is added as a whole.
pub(super) fn add_at(
    b: &mut Builder,
    shape: &[usize],
    axis: usize,
    indices: &ValueId,
    g: &ValueId,
) -> ValueId {
    if let Some(padded) = add_in_a_row(b, shape, axis, indices, g) {
        return padded;
    }
    let index_rank = b.rank(indices);
    let count = b.fact(indices).len();
    let rank = b.rank(g);
    let indexed: Vec<usize> = (axis..axis + index_rank).collect();
    let others: Vec<usize> = (0..rank).filter(|i| !indexed.contains(i)).collect();
    let front = b.transpose(g, &[indexed, others].concat());
    let mut rest = shape.to_vec();
    let size = rest.remove(axis);
    let width: usize = rest.iter().product();
    let rows = b.reshape(&front, &[count, width]);
    let indices = from_front(b, indices, size);
    let sum = add_rows(b, size, &indices, &rows);
    let sum = b.reshape(&sum, &[&[size], &rest[..]].concat());
    // The axis goes back from the front to its place.
    let mut perm: Vec<usize> = (1..shape.len()).collect();
    perm.insert(axis, 0);
    b.transpose(&sum, &perm)
}

/// In so many rounds at most rows are added whole, each time to places that differ.
const ROUNDS: usize = 4;

/// A matrix of zeros and of `size` rows, to which `rows` (`[count, width]`) are added at `indices` (`count` of them, from the front).
///
/// Where kernels of ours run, by one of them. Else element by element where any rows may belong to one place: ONNX Runtime shares
/// out the rows of `ScatterND` over its threads, and sums that two of them add to lose parts (microsoft/onnxruntime#18048, version
/// 1.32 too).
fn add_rows(b: &mut Builder, size: usize, indices: &ValueId, rows: &ValueId) -> ValueId {
    if matches!(b.forms, Forms::Kernels { .. }) && b.dtype(rows) == DType::F32 {
        return by_kernel(b, size, indices, rows);
    }
    let (count, width) = (b.shape(rows)[0], b.shape(rows)[1]);
    let zero = b.constant(Tensor::scalar(b.dtype(rows), 0.0));
    let zeros = b.expand(&zero, &[size, width]);
    let by_rows = b.forms == Forms::Windows;
    let known = b.constant_value(indices).filter(|_| !by_rows).map(|known| known.to_i64().into_owned());
    if let Some((rounds, known)) = known.map(|known| (rounds(&known), known))
        && rounds.len() <= ROUNDS
    {
        return rounds.iter().fold(zeros, |sum, places| {
            let targets: Vec<i64> = places.iter().map(|&place| known[place]).collect();
            let targets = b.constant(Tensor::i64(&[places.len(), 1], &targets));
            let part = taken(b, rows, places);
            Indexing::Tuples.scatter(b, &sum, &targets, &part, "add")
        });
    }
    let indices = b.cast(indices, DType::I64);
    let indices = b.reshape(&indices, &[count, 1]);
    if by_rows {
        return Indexing::Tuples.scatter(b, &zeros, &indices, rows, "add");
    }
    let indices = b.expand(&indices, &[count, width]);
    Indexing::Elements { axis: 0 }.scatter(b, &zeros, &indices, rows, "add")
}

/// By one operator of ours, which sums on several threads without losing any.
fn by_kernel(b: &mut Builder, size: usize, indices: &ValueId, rows: &ValueId) -> ValueId {
    let (attrs, width) = ([("size", Attr::Int(size as i64))], b.shape(rows)[1]);
    let indices = b.cast(indices, DType::I64);
    let inputs = [Some(&indices), Some(rows)];
    let sums = b.op_full(kernels::DOMAIN, kernels::ROW_SUMS, &inputs, &attrs, 1).remove(0);
    b.set_fact(&sums, Fact::new(DType::F32, &[size, width]));
    sums
}

/// The places of `indices`, in as few groups as have no index twice: first occurrences, second ones, and so on.
fn rounds(indices: &[i64]) -> Vec<Vec<usize>> {
    let (mut rounds, mut seen): (Vec<Vec<usize>>, HashMap<i64, usize>) = (vec![], HashMap::new());
    for (place, &index) in indices.iter().enumerate() {
        let before = seen.entry(index).or_default();
        if *before == rounds.len() {
            rounds.push(vec![]);
        }
        rounds[*before].push(place);
        *before += 1;
    }
    rounds
}

/// The rows of a matrix at these places; no node where they are all of them.
fn taken(b: &mut Builder, rows: &ValueId, places: &[usize]) -> ValueId {
    if places.len() == b.shape(rows)[0] {
        return rows.clone();
    }
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let places = b.ints(&places);
    b.op_with("Gather", &[rows, &places], &[("axis", Attr::Int(0))])
}

/// The adjoint of `GatherND`: a zero tensor of `shape` to which `g` is added at the places that tuples of `indices` name.
fn add_at_tuples(b: &mut Builder, shape: &[usize], indices: &ValueId, g: &ValueId) -> ValueId {
    let mut tuples = b.shape(indices);
    let tuple = tuples.pop().unwrap_or(1);
    let (indexed, rest) = shape.split_at(tuple);
    let count = tuples.iter().product();
    let places = places(b, indexed, indices, count);
    let rows = b.reshape(g, &[count, rest.iter().product()]);
    let sum = add_rows(b, indexed.iter().product(), &places, &rows);
    b.reshape(&sum, shape)
}

/// Where each of `count` tuples of `indices` points in a tensor of these sizes, counted element by element.
fn places(b: &mut Builder, indexed: &[usize], indices: &ValueId, count: usize) -> ValueId {
    if indexed.is_empty() {
        return b.ints(&vec![0; count]);
    }
    let tuple = indexed.len();
    let indices = b.reshape(indices, &[count, tuple]);
    let sizes: Vec<i64> = indexed.iter().map(|&d| d as i64).collect();
    let strides: Vec<i64> = (0..tuple).map(|k| sizes[k + 1..].iter().product()).collect();
    let (sizes, strides) = (b.ints(&sizes), b.ints(&strides));
    let wrapped = b.add(&indices, &sizes);
    let negative = super::elementwise::less(b, &indices, 0.0);
    let places = b.where_(&negative, &wrapped, &indices);
    let places = b.mul(&places, &strides);
    b.sum(&places, &[1], false)
}

/// [`add_at`] for indices known beforehand that follow each other, as where projections lie one behind the other: zeros
/// before and behind `g`.
fn add_in_a_row(
    b: &mut Builder,
    shape: &[usize],
    axis: usize,
    indices: &ValueId,
    g: &ValueId,
) -> Option<ValueId> {
    let known = b.constant_value(indices)?.to_i64().into_owned();
    let (size, count) = (shape[axis] as i64, known.len() as i64);
    let first = known.first().map(|&i| if i < 0 { i + size } else { i })?;
    let follows = |(k, &i): (usize, &i64)| (i - first - k as i64) % size == 0;
    if first < 0 || first + count > size || !known.iter().enumerate().all(follows) {
        return None;
    }
    let whole = [&shape[..axis], &[known.len()], &shape[axis + 1..]].concat();
    let g = b.reshape(g, &whole);
    let mut pads = vec![0; 2 * shape.len()];
    pads[axis] = first;
    pads[shape.len() + axis] = size - first - count;
    let pads = b.ints(&pads);
    Some(b.op("Pad", &[&g, &pads]))
}

/// Indices into an axis of `size` elements, negative ones counted from the front instead of the back.
pub(crate) fn from_front(b: &mut Builder, indices: &ValueId, size: usize) -> ValueId {
    if let Some(known) = b.constant_value(indices) {
        let wrap = |&i: &i64| if i < 0 { i + size as i64 } else { i };
        let known = Tensor::i64(known.shape(), &known.to_i64().iter().map(wrap).collect::<Vec<_>>());
        return b.constant(known);
    }
    let wrapped = b.add_scalar(indices, size as f64);
    let negative = super::elementwise::less(b, indices, 0.0);
    b.where_(&negative, &wrapped, indices)
}

/// `GatherND` indices with `batch_dims`, as plain ones: each tuple with the place in the batch in front.
fn with_batch_coordinates(b: &mut Builder, indices: &ValueId, batch: usize) -> ValueId {
    if batch == 0 {
        return indices.clone();
    }
    let mut shape = b.shape(indices);
    shape.pop();
    let count: usize = shape.iter().product();
    let mut coordinates = Vec::with_capacity(count * batch);
    for flat in 0..count {
        let mut rest = flat;
        let mut place: Vec<i64> = vec![0; shape.len()];
        for (i, &d) in shape.iter().enumerate().rev() {
            place[i] = (rest % d) as i64;
            rest /= d;
        }
        coordinates.extend(&place[..batch]);
    }
    shape.push(batch);
    let coordinates = b.constant(Tensor::i64(&shape, &coordinates));
    b.concat(&[&coordinates, indices], -1)
}

/// How indices name places.
#[derive(Clone, Copy)]
enum Indexing {
    /// One index an element, along an axis (`ScatterElements`).
    Elements { axis: i64 },
    /// One tuple a block (`ScatterND`).
    Tuples,
}

impl Indexing {
    fn gather(self, b: &mut Builder, from: &ValueId, indices: &ValueId) -> ValueId {
        match self {
            Indexing::Elements { axis } => {
                b.op_with("GatherElements", &[from, indices], &[("axis", axis.into())])
            }
            Indexing::Tuples => b.op("GatherND", &[from, indices]),
        }
    }
    fn scatter(
        self,
        b: &mut Builder,
        onto: &ValueId,
        indices: &ValueId,
        values: &ValueId,
        reduction: &str,
    ) -> ValueId {
        let reduction = ("reduction", Attr::from(reduction));
        match self {
            Indexing::Elements { axis } => {
                let attrs = [("axis", Attr::Int(axis)), reduction];
                b.op_with("ScatterElements", &[onto, indices, values], &attrs)
            }
            Indexing::Tuples => b.op_with("ScatterND", &[onto, indices, values], &[reduction]),
        }
    }
}

/// y is `data` with `updates` put in, added, multiplied, or compared at `indices`.
fn scatter(c: &mut Context<'_>, by: Indexing) -> Cotangents {
    let (data, indices, updates) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let (g, y) = (c.cotangent()?, c.output(0)?);
    let b = &mut *c.b;
    let (d_data, d_updates) = match c.node.str("reduction").unwrap_or("none") {
        "none" => {
            let zeros = b.zeros_like(&updates);
            (by.scatter(b, &g, &indices, &zeros, "none"), by.gather(b, &g, &indices))
        }
        "add" => (g.clone(), by.gather(b, &g, &indices)),
        "mul" => scatter_product(b, by, [&data, &indices, &updates, &g]),
        "max" | "min" => scatter_extremum(b, by, [&data, &indices, &updates, &g, &y]),
        other => return Err(c.refuse(format!("reduction '{other}' has no gradient"))),
    };
    Ok(vec![Some(d_data), None, Some(d_updates)])
}

/// Each factor gets g times the product of the other factors at its place (see [`WithoutZeros`]).
fn scatter_product(
    b: &mut Builder,
    by: Indexing,
    [data, indices, updates, g]: [&ValueId; 4],
) -> (ValueId, ValueId) {
    let one = b.scalar_like(data, 1.0);
    let ones = b.expand(&one, &b.shape(data));
    let factor = by.scatter(b, &ones, indices, updates, "mul");
    let d_data = b.mul(g, &factor);
    let factors = WithoutZeros::of(b, updates);
    let zeros = b.zeros_like(data);
    let product = by.scatter(b, data, indices, &factors.values, "mul");
    let product = b.mul(g, &product);
    let count = by.scatter(b, &zeros, indices, &factors.is_zero, "add");
    let (product, count) = (by.gather(b, &product, indices), by.gather(b, &count, indices));
    (d_data, factors.product_of_others(b, &product, &count))
}

/// g to whoever is y; equal ones share it evenly.
fn scatter_extremum(
    b: &mut Builder,
    by: Indexing,
    [data, indices, updates, g, y]: [&ValueId; 5],
) -> (ValueId, ValueId) {
    let dtype = b.dtype(g);
    let winner = by.gather(b, y, indices);
    let hits = [b.op("Equal", &[data, y]), b.op("Equal", &[updates, &winner])];
    let [data_hit, updates_hit] = hits.map(|hit| b.cast(&hit, dtype));
    let count = by.scatter(b, &data_hit, indices, &updates_hit, "add");
    let share = b.div(g, &count);
    let share = unless_zero(b, &count, &share);
    let d_data = b.mul(&share, &data_hit);
    let share = by.gather(b, &share, indices);
    (d_data, b.mul(&share, &updates_hit))
}

/// The adjoint of keeping the slices along an axis (or the elements of the flattened input) that a mask marks.
fn compress(c: &mut Context<'_>) -> Cotangents {
    let (x, condition, g) = (c.input(0)?, c.input(1)?, c.cotangent()?);
    let shape = c.b.shape(&x);
    let (axis, shape_seen) = match c.node.int("axis") {
        Some(axis) => (c.axis(axis, shape.len())?, shape.clone()),
        None => (0, vec![shape.iter().product()]),
    };
    let kept = c.b.shape(&g)[axis];
    let places = c.b.op("NonZero", &[&condition]);
    c.b.set_fact(&places, Fact::new(DType::I64, &[1, kept]));
    let places = c.b.reshape(&places, &[kept]);
    let dx = add_at(c.b, &shape_seen, axis, &places, &g);
    Ok(vec![Some(c.b.reshape(&dx, &shape))])
}

/// The `values` (off, on) get the sum of g over the cold and over the hot places.
fn one_hot(c: &mut Context<'_>) -> Cotangents {
    let (indices, depth, values) = (c.input(0)?, c.input(1)?, c.input(2)?);
    if !c.b.dtype(&values).is_float() {
        return Ok(vec![]);
    }
    let g = c.cotangent()?;
    let dtype = c.b.dtype(&g);
    let zero_one = c.b.constant(Tensor::from_f64(dtype, &[2], &[0.0, 1.0]));
    let axis = [("axis", Attr::Int(c.node.int_or("axis", -1)))];
    let hot = c.b.op_with("OneHot", &[&indices, &depth, &zero_one], &axis);
    let shape = c.b.shape(&g);
    c.b.set_fact(&hot, Fact::new(dtype, &shape));
    let on = c.b.mul(&g, &hot);
    let off = c.b.sub(&g, &on);
    let sums: Vec<ValueId> = [off, on]
        .iter()
        .map(|part| {
            let sum = c.b.sum_all(part);
            c.b.reshape(&sum, &[1])
        })
        .collect();
    Ok(vec![None, None, Some(c.b.concat(&[&sums[0], &sums[1]], 0))])
}

/// An update written into a cache at each row's own place: it gets what the cache has lost.
fn tensor_scatter(c: &mut Context<'_>) -> Cotangents {
    let (update, g) = (c.input(1)?, c.cotangent()?);
    let (whole, shape) = (c.b.shape(&g), c.b.shape(&update));
    let axis = c.axis(c.node.int_or("axis", -2), whole.len())?;
    let mut along = vec![1; shape.len()];
    along[axis] = shape[axis];
    let mut places = c.b.constant(Tensor::i64(&along, &(0..shape[axis] as i64).collect::<Vec<_>>()));
    if let Some(starts) = c.optional(2) {
        let mut column = vec![1; shape.len()];
        column[0] = shape[0];
        let starts = c.b.cast(&starts, DType::I64);
        let starts = c.b.reshape(&starts, &column);
        places = c.b.add(&places, &starts);
    }
    if c.node.str("mode") == Some("circular") {
        let size = c.b.constant(Tensor::i64(&[], &[whole[axis] as i64]));
        places = c.b.op("Mod", &[&places, &size]);
    }
    let places = c.b.expand(&places, &shape);
    let by = Indexing::Elements { axis: axis as i64 };
    let zeros = c.b.zeros_like(&update);
    let d_past = by.scatter(c.b, &g, &places, &zeros, "none");
    Ok(vec![Some(d_past), Some(by.gather(c.b, &g, &places))])
}
