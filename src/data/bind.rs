//! Fits a data set to a model's inputs, and makes batches of it.

use super::augment::{Fill, Shift, shift_images};
use super::{Column, Dataset, Labels, show};
use crate::error::{Error, ONLY_NUMBERS, Result};
use crate::onnx::{DType, Dim, Fact, Tensor, ValueId, ValueInfo};
use half::f16;
use std::path::PathBuf;

/// A data set that fits a model's inputs.
#[derive(Clone)]
pub struct Bound {
    /// In the order of the model's inputs.
    pub inputs: Vec<BoundInput>,
    /// What was done to make the data fit, in sentences for the user.
    pub notes: Vec<String>,
    path: PathBuf,
    rows: usize,
}

/// A column of data that feeds an input of the model.
#[derive(Clone)]
pub struct BoundInput {
    pub id: ValueId,
    pub dtype: DType,
    /// The shape of one row as the model takes it, without a batch dimension.
    pub row_shape: Vec<usize>,
    /// Whether the model's input has a batch dimension (its first) at all.
    pub batched: bool,
    /// The batch size the model is fixed to, where it is.
    pub fixed_batch: Option<usize>,
    column: Column,
    /// Per element of a stored row: `value · factor + offset`. One pair for all, or one each.
    affine: Vec<(f64, f64)>,
    /// Stored rows are channels × height × width, the model takes height × width × channels, or the reverse.
    order: Option<Reorder>,
}

/// A change between channels-first and channels-last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reorder {
    ChannelsLast([usize; 3]),
    ChannelsFirst([usize; 3]),
}

impl Dataset {
    /// Fits this data to a model's inputs: by name, or the only column to the only input. Shapes may differ by
    /// what a reshape bridges (1 × 28 × 28 for 784 × 1), and by channels first or last.
    ///
    /// # Errors
    /// [`Error::Data`] where an input finds no data, or data that doesn't fit: elements a row, shape,
    /// whole numbers for integer inputs, NaN and infinity.
    pub fn bind(&self, inputs: &[ValueInfo]) -> Result<Bound> {
        let mut bound = Bound { inputs: vec![], notes: vec![], path: self.path.clone(), rows: self.rows() };
        for (i, input) in inputs.iter().enumerate() {
            let column = self.column_for(inputs, i)?;
            let fitted = self.fit(input, column, &mut bound.notes)?;
            bound.inputs.push(fitted);
        }
        if self.options.transforms() && !bound.inputs.iter().any(|i| i.dtype.is_float()) {
            return Err(
                self.refuse("scale, mean and std are given, but the model takes whole numbers".into())
            );
        }
        Ok(bound)
    }

    fn refuse(&self, what: String) -> Error {
        Error::data(&self.path, what)
    }

    fn column_for(&self, inputs: &[ValueInfo], i: usize) -> Result<&Column> {
        let name = inputs[i].id.as_str();
        if let Some(column) = self.inputs.iter().find(|c| c.name == name) {
            return Ok(column);
        }
        let alone = inputs.len() == 1 && self.inputs.len() == 1;
        if alone || self.positional && inputs.len() == self.inputs.len() {
            return Ok(&self.inputs[i]);
        }
        let have: Vec<&str> = self.inputs.iter().map(|c| c.name.as_str()).collect();
        Err(self
            .refuse(format!("nothing in it feeds the model's input '{name}'; it holds {}", have.join(", "))))
    }

    fn fit(&self, input: &ValueInfo, column: &Column, notes: &mut Vec<String>) -> Result<BoundInput> {
        let dtype = input.dtype.filter(|d| d.is_float() || d.is_int() || *d == DType::Bool);
        let dtype = dtype.ok_or_else(|| {
            self.refuse(format!("the model's input '{}' takes no numbers, so no data can feed it", input.id))
                .hint(ONLY_NUMBERS)
        })?;
        let stored = column.row_shape();
        let Place { row_shape, batched, fixed_batch } =
            place(input.shape.as_deref(), stored).ok_or_else(|| self.misfit(input, column))?;
        let order = match grouped(stored, &row_shape) {
            true => None,
            false => Some(reorder(stored, &row_shape).ok_or_else(|| self.misfit(input, column))?),
        };
        if order.is_some() {
            notes.push(format!(
                "'{}' is reordered from {} to {} (channels first or last)",
                column.name,
                show(stored),
                show(&row_shape)
            ));
        }
        self.check_values(input, dtype, column)?;
        let affine = if dtype.is_float() { self.affine(column)? } else { vec![(1.0, 0.0)] };
        let column = column.clone();
        Ok(BoundInput { id: input.id.clone(), dtype, row_shape, batched, fixed_batch, column, affine, order })
    }

    fn misfit(&self, input: &ValueInfo, column: &Column) -> Error {
        let wants: Vec<String> = input.shape.iter().flatten().map(Dim::to_string).collect();
        let error = self.refuse(format!(
            "a row of '{}' is {}, but the model's input '{}' is {}",
            column.name,
            show(column.row_shape()),
            input.id,
            wants.join("×")
        ));
        match self.class_names.is_empty() || column.image_shape().is_none() {
            true => error,
            false => error.hint(
                "images are given as channels × height × width: --size HEIGHTxWIDTH resizes them, and where all are grey \
                 there is one channel",
            ),
        }
    }

    /// Finite reals; whole numbers in range where the model takes integers.
    fn check_values(&self, input: &ValueInfo, dtype: DType, column: &Column) -> Result<()> {
        let values = &column.values;
        let per_row = column.row_shape().iter().product::<usize>().max(1);
        if let Some(at) = first_non_finite(values) {
            return Err(self.refuse(format!(
                "'{}' has a NaN or infinity in row {}",
                column.name,
                at / per_row
            )));
        }
        let Some((low, high)) = range(dtype) else { return Ok(()) };
        if values.dtype() == dtype {
            return Ok(());
        }
        let bad = |v: f64| v.fract() != 0.0 || v < low || v > high;
        let row_bytes = per_row * values.dtype().size().unwrap_or(1);
        for (row, bytes) in values.bytes().chunks(row_bytes.max(1)).enumerate() {
            let mut found = None;
            each(values.dtype(), bytes, |v| found = found.or(bad(v).then_some(v)));
            if let Some(v) = found {
                let what = format!(
                    "'{}' holds {v} in row {row}, but the model's input '{}' is {dtype}",
                    column.name, input.id
                );
                return Err(self.refuse(what));
            }
        }
        Ok(())
    }

    /// Scale, mean and std as factor and offset: one pair, or one an element of a row.
    fn affine(&self, column: &Column) -> Result<Vec<(f64, f64)>> {
        let options = &self.options;
        let scale = options.scale.unwrap_or(1.0);
        let channels = options.mean.len().max(options.std.len());
        let at = |values: &[f64], i: usize, default: f64| match values {
            [] => default,
            [one] => *one,
            many => many[i],
        };
        for (what, values) in [("mean", &options.mean), ("std", &options.std)] {
            if !matches!(values.len(), 0 | 1) && values.len() != channels {
                return Err(Error::usage(format!(
                    "{what} has {} numbers, the other {channels}",
                    values.len()
                )));
            }
        }
        if options.std.iter().any(|s| *s <= 0.0) {
            return Err(Error::usage("std must be above zero"));
        }
        let pair = |c: usize| {
            let std = at(&options.std, c, 1.0);
            (scale / std, -at(&options.mean, c, 0.0) / std)
        };
        if channels <= 1 {
            return Ok(vec![pair(0)]);
        }
        let shape = column.row_shape();
        let inner: usize = if shape.first() == Some(&channels) {
            shape[1..].iter().product()
        } else if shape.last() == Some(&channels) {
            1
        } else {
            return Err(self.refuse(format!(
                "mean or std has {channels} numbers, but a row of '{}' is {}",
                column.name,
                show(shape)
            )));
        };
        let count: usize = shape.iter().product();
        Ok((0..count).map(|i| pair(i / inner % channels)).collect())
    }
}

impl Bound {
    /// Number of rows in the data.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The data's file, for messages.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The fact of every input for a batch of so many rows.
    pub fn facts(&self, batch: usize) -> Vec<(ValueId, Fact)> {
        let shape = |i: &BoundInput| match i.batched {
            true => [&[batch], &i.row_shape[..]].concat(),
            false => i.row_shape.clone(),
        };
        self.inputs.iter().map(|i| (i.id.clone(), Fact::new(i.dtype, &shape(i)))).collect()
    }

    /// The batch size the model is fixed to, where it is: 1 for most exports.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.inputs.iter().find_map(|i| if i.batched { i.fixed_batch } else { Some(1) })
    }

    /// The given rows, as one tensor an input. Fewer rows than `batch` are filled up by repeating the last.
    pub fn batch(&self, rows: &[usize], batch: usize) -> Result<Vec<Tensor>> {
        let facts = self.facts(batch);
        self.inputs.iter().zip(&facts).map(|(input, (_, fact))| self.one(input, rows, batch, fact)).collect()
    }

    /// As [`Self::batch`], with shapes (of as many elements) that the caller knows better, by input.
    pub fn batch_as(&self, rows: &[usize], batch: usize, facts: &[(ValueId, Fact)]) -> Result<Vec<Tensor>> {
        let mut tensors = self.batch(rows, batch)?;
        for (tensor, input) in tensors.iter_mut().zip(&self.inputs) {
            let Some((_, fact)) = facts.iter().find(|(id, _)| *id == input.id) else { continue };
            if fact.len() != tensor.len() {
                let what =
                    format!("{batch} rows make {:?}, but '{}' is {:?}", tensor.shape(), input.id, fact.shape);
                return Err(Error::data(&self.path, what).hint(
                    "the model's rows can't be told apart: a row of the data must be all that it takes in one run",
                ));
            }
            *tensor = tensor.cast(fact.dtype).reshaped(&fact.shape);
        }
        Ok(tensors)
    }

    /// Whether any input looks like images, which [`Self::shifted`] can move.
    pub fn has_images(&self) -> bool {
        self.inputs.iter().any(|i| i.image_shape().is_some())
    }

    /// The batch with its images moved: image `i` by `shifts[i % shifts.len()]`.
    pub fn shifted(&self, mut batch: Vec<Tensor>, shifts: &[Shift], fill: Fill) -> Result<Vec<Tensor>> {
        for (tensor, input) in batch.iter_mut().zip(&self.inputs) {
            let Some([c, h, w]) = input.image_shape() else { continue };
            let shape = tensor.shape().to_vec();
            let images = tensor.reshaped(&[tensor.len() / (c * h * w), c, h, w]);
            *tensor = shift_images(&images, shifts, fill)?.reshaped(&shape);
        }
        Ok(batch)
    }

    fn one(&self, input: &BoundInput, rows: &[usize], batch: usize, fact: &Fact) -> Result<Tensor> {
        if rows.is_empty() || rows.len() > batch || rows.iter().any(|&r| r >= self.rows) {
            return Err(Error::data(&self.path, format!("rows {rows:?} make no batch of {batch}")));
        }
        let per_row: usize = input.row_shape.iter().product();
        let mut bytes = Vec::with_capacity(batch * per_row * input.dtype.size().unwrap_or(4));
        for &row in rows {
            input.push_row(row, per_row, &mut bytes);
        }
        let row_bytes = bytes.len() / rows.len();
        for _ in rows.len()..batch {
            let last = bytes.len() - row_bytes;
            bytes.extend_from_within(last..);
        }
        Tensor::new(input.dtype, &fact.shape, bytes)
    }
}

impl Labels {
    /// Labels of a batch: class indices as they are, rows repeated as [`Bound::batch`] repeats them.
    pub fn pick<T: Copy>(values: &[T], width: usize, rows: &[usize], batch: usize) -> Vec<T> {
        let last = rows.last().copied().unwrap_or(0);
        let rows = rows.iter().copied().chain(std::iter::repeat(last)).take(batch);
        rows.flat_map(|r| values[r * width..][..width].iter().copied()).collect()
    }
}

impl BoundInput {
    /// Channels, height and width where a row is a plain image that the model takes channels first.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        self.column.image_shape().filter(|_| self.order.is_none() && self.dtype.is_float())
    }

    fn push_row(&self, row: usize, per_row: usize, out: &mut Vec<u8>) {
        let values = &self.column.values;
        let row_bytes = per_row * values.dtype().size().unwrap_or(1);
        let stored = &values.bytes()[row * row_bytes..][..row_bytes];
        let start = out.len();
        convert(values.dtype(), stored, self.dtype, &self.affine, out);
        if let Some(order) = self.order {
            let moved = order.apply(&out[start..], self.dtype.size().unwrap_or(1));
            out.truncate(start);
            out.extend(moved);
        }
    }
}

impl Reorder {
    fn apply(self, from: &[u8], size: usize) -> Vec<u8> {
        let mut to = Vec::with_capacity(from.len());
        let mut take = |at: usize| to.extend_from_slice(&from[at * size..][..size]);
        match self {
            Reorder::ChannelsLast([c, h, w]) => {
                (0..h * w).for_each(|p| (0..c).for_each(|c| take(c * h * w + p)));
            }
            Reorder::ChannelsFirst([c, h, w]) => {
                (0..c).for_each(|k| (0..h * w).for_each(|p| take(p * c + k)));
            }
        }
        to
    }
}

/// Calls `f` with every element as `f64`.
fn each(dtype: DType, bytes: &[u8], mut f: impl FnMut(f64)) {
    macro_rules! all {
        ($t:ty) => {
            bytes
                .chunks_exact(size_of::<$t>())
                .for_each(|b| f(<$t>::from_le_bytes(b.try_into().unwrap_or_default()) as f64))
        };
    }
    match dtype {
        DType::F32 => all!(f32),
        DType::F64 => all!(f64),
        DType::F16 => {
            bytes.chunks_exact(2).for_each(|b| f(f16::from_bits(u16::from_le_bytes([b[0], b[1]])).to_f64()))
        }
        DType::BF16 => bytes
            .chunks_exact(2)
            .for_each(|b| f(half::bf16::from_bits(u16::from_le_bytes([b[0], b[1]])).to_f64())),
        DType::I8 => all!(i8),
        DType::I16 => all!(i16),
        DType::I32 => all!(i32),
        DType::I64 => all!(i64),
        DType::U8 | DType::Bool => bytes.iter().for_each(|&b| f(b as f64)),
        DType::U16 => all!(u16),
        DType::U32 => all!(u32),
        DType::U64 => all!(u64),
        DType::Str | DType::Other(_) => {}
    }
}

fn convert(from: DType, bytes: &[u8], to: DType, affine: &[(f64, f64)], out: &mut Vec<u8>) {
    if from == to && affine == [(1.0, 0.0)] {
        return out.extend_from_slice(bytes);
    }
    let mut i = 0;
    let mut next = |v: f64| {
        let (factor, offset) = affine[if affine.len() == 1 { 0 } else { i }];
        i += 1;
        v * factor + offset
    };
    match to {
        DType::F32 => each(from, bytes, |v| out.extend((next(v) as f32).to_le_bytes())),
        _ => {
            let mut values = vec![];
            each(from, bytes, |v| values.push(next(v)));
            out.extend_from_slice(Tensor::from_f64(to, &[values.len()], &values).bytes());
        }
    }
}

fn first_non_finite(values: &Tensor) -> Option<usize> {
    if !values.dtype().is_float() {
        return None;
    }
    let (mut at, mut found) = (0, None);
    each(values.dtype(), values.bytes(), |v| {
        if found.is_none() && !v.is_finite() {
            found = Some(at);
        }
        at += 1;
    });
    found
}

/// The whole numbers a type can hold; `None` for real types.
fn range(dtype: DType) -> Option<(f64, f64)> {
    Some(match dtype {
        DType::Bool => (0.0, 1.0),
        DType::I8 => (i8::MIN as f64, i8::MAX as f64),
        DType::I16 => (i16::MIN as f64, i16::MAX as f64),
        DType::I32 => (i32::MIN as f64, i32::MAX as f64),
        DType::I64 => (-(2f64.powi(63)), 2f64.powi(63)),
        DType::U8 => (0.0, u8::MAX as f64),
        DType::U16 => (0.0, u16::MAX as f64),
        DType::U32 => (0.0, u32::MAX as f64),
        DType::U64 => (0.0, 2f64.powi(64)),
        _ => return None,
    })
}

struct Place {
    row_shape: Vec<usize>,
    batched: bool,
    fixed_batch: Option<usize>,
}

/// The shape of one row as the model takes it: its declared shape without the batch dimension, with unknown
/// dimensions taken from the data. `None` where the data can't fill it.
fn place(declared: Option<&[Dim]>, stored: &[usize]) -> Option<Place> {
    let Some(declared) = declared else {
        return Some(Place { row_shape: stored.to_vec(), batched: true, fixed_batch: None });
    };
    let elements: usize = stored.iter().product();
    let fixed = match declared.first() {
        Some(Dim::Known(d)) => Some(*d),
        Some(_) => None,
        None => {
            return (elements == 1).then(|| Place { row_shape: vec![], batched: false, fixed_batch: None });
        }
    };
    if let Some(row_shape) = fill(&declared[1..], stored) {
        return Some(Place { row_shape, batched: true, fixed_batch: fixed });
    }
    let row_shape = fill(declared, stored)?;
    Some(Place { row_shape, batched: false, fixed_batch: None })
}

/// Unknown dimensions filled in so that the number of elements is that of the stored row.
fn fill(dims: &[Dim], stored: &[usize]) -> Option<Vec<usize>> {
    let elements: usize = stored.iter().product();
    let known: usize = dims.iter().map(|d| if let Dim::Known(d) = d { *d } else { 1 }).product();
    let open = dims.iter().filter(|d| !matches!(d, Dim::Known(_))).count();
    let rest = elements.checked_div(known).filter(|rest| rest * known == elements)?;
    let same_rank = dims.len() == stored.len();
    let filled: Vec<usize> = dims
        .iter()
        .enumerate()
        .map(|(i, d)| match d {
            Dim::Known(d) => *d,
            _ if open == 1 => rest,
            _ if same_rank => stored[i],
            _ => 1,
        })
        .collect();
    (filled.iter().product::<usize>() == elements).then_some(filled)
}

/// Whether one shape is the other with neighbouring dimensions joined: then a reshape keeps its meaning.
fn grouped(a: &[usize], b: &[usize]) -> bool {
    let products = |shape: &[usize]| -> Vec<usize> {
        let mut products: Vec<usize> = shape
            .iter()
            .scan(1, |product, d| {
                *product *= d;
                Some(*product)
            })
            .filter(|p| *p > 1)
            .collect();
        products.dedup();
        products
    };
    let (a, b) = (products(a), products(b));
    a.iter().all(|p| b.contains(p)) || b.iter().all(|p| a.contains(p))
}

fn reorder(stored: &[usize], wanted: &[usize]) -> Option<Reorder> {
    match (stored, wanted) {
        (&[c @ 1..=4, h, w], &[a, b, d]) if (a, b, d) == (h, w, c) => Some(Reorder::ChannelsLast([c, h, w])),
        (&[h, w, c @ 1..=4], &[a, b, d]) if (a, b, d) == (c, h, w) => Some(Reorder::ChannelsFirst([c, h, w])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::DataOptions;
    use super::*;

    fn input(dtype: DType, dims: &[i64]) -> ValueInfo {
        let dim = |&d: &i64| if d < 0 { Dim::Unknown } else { Dim::Known(d as usize) };
        ValueInfo { id: "in".into(), dtype: Some(dtype), shape: Some(dims.iter().map(dim).collect()) }
    }
    fn data(values: Tensor) -> Dataset {
        Dataset::new(vec![Column { name: "x".into(), values }], None).unwrap()
    }
    fn bytes(shape: &[usize]) -> Dataset {
        let count: usize = shape.iter().product();
        data(Tensor::new(DType::U8, shape, (0..count).map(|i| i as u8).collect()).unwrap())
    }

    #[test]
    fn mere_reshapes_fit_and_others_do_not() {
        let digits = bytes(&[2, 1, 4, 4]);
        assert_eq!(digits.bind(&[input(DType::F32, &[1, 16, 1])]).unwrap().facts(2)[0].1.shape, [2, 16, 1]);
        assert_eq!(
            digits.bind(&[input(DType::F32, &[-1, -1, 4, 4])]).unwrap().facts(3)[0].1.shape,
            [3, 1, 4, 4]
        );
        assert_eq!(digits.bind(&[input(DType::F32, &[1, 1, 4, 4])]).unwrap().fixed_batch(), Some(1));
        let message = digits.bind(&[input(DType::F32, &[1, 17])]).err().unwrap().to_string();
        assert!(message.contains("a row of 'x' is 1×4×4, but the model's input 'in' is 1×17"), "{message}");
        assert!(bytes(&[2, 6, 4]).bind(&[input(DType::F32, &[1, 4, 6])]).is_err());
    }

    #[test]
    fn channels_are_moved_where_the_model_wants_them() {
        let bound = bytes(&[1, 3, 2, 2]).bind(&[input(DType::F32, &[-1, 2, 2, 3])]).unwrap();
        let batch = bound.batch(&[0], 1).unwrap();
        assert_eq!(&*batch[0].to_f32(), [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]);
        assert_eq!(bound.notes.len(), 1);
        let back = bytes(&[1, 2, 2, 3]).bind(&[input(DType::F32, &[-1, 3, 2, 2])]).unwrap();
        assert_eq!(&back.batch(&[0], 1).unwrap()[0].to_f32()[..4], [0., 3., 6., 9.]);
    }

    #[test]
    fn values_are_scaled_per_channel_and_batches_filled_up() {
        let mut set = bytes(&[2, 2, 2]);
        set.options =
            DataOptions { scale: Some(0.5), mean: vec![1.0, 0.0], std: vec![1.0, 2.0], ..Default::default() };
        let bound = set.bind(&[input(DType::F32, &[-1, 2, 2])]).unwrap();
        let batch = bound.batch(&[1], 2).unwrap();
        assert_eq!(&*batch[0].to_f32(), [1.0, 1.5, 1.5, 1.75, 1.0, 1.5, 1.5, 1.75]);
        assert_eq!(Labels::pick(&[7, 8], 1, &[1], 3), [8, 8, 8]);
    }

    #[test]
    fn integers_must_be_whole_and_in_range() {
        let refusal = |values: &[f32]| {
            data(Tensor::f32(&[values.len(), 1], values))
                .bind(&[input(DType::U8, &[-1, 1])])
                .err()
                .unwrap()
                .to_string()
        };
        assert!(refusal(&[1.0, 0.5]).contains("holds 0.5 in row 1"));
        assert!(refusal(&[256.0]).contains("holds 256 in row 0"));
        assert!(refusal(&[f32::NAN]).contains("NaN or infinity in row 0"));
        let fine = data(Tensor::f32(&[2, 1], &[1.0, 2.0])).bind(&[input(DType::I64, &[-1, 1])]).unwrap();
        assert_eq!(fine.batch(&[0, 1], 2).unwrap()[0], Tensor::i64(&[2, 1], &[1, 2]));
    }

    #[test]
    fn inputs_are_found_by_name() {
        let column = |name: &str, v: f32| Column { name: name.into(), values: Tensor::f32(&[1, 1], &[v]) };
        let set = Dataset::new(vec![column("b", 1.0), column("a", 2.0)], None).unwrap();
        let named = |n: &str| ValueInfo { id: n.into(), ..input(DType::F32, &[-1, 1]) };
        let batch = set.bind(&[named("a"), named("b")]).unwrap().batch(&[0], 1).unwrap();
        assert_eq!((batch[0].to_f64()[0], batch[1].to_f64()[0]), (2.0, 1.0));
        assert!(set.bind(&[named("c")]).err().unwrap().to_string().contains("nothing in it feeds"));
    }
}
