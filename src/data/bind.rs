//! Fits a data set to a model's inputs, and makes batches of it.

use super::augment::{Fill, Shift, shift_images};
use super::made::Usages;
use super::pictures::Recolour;
use super::place::{Place, Reorder, place};
use super::{Column, Dataset, Form, Labels, show};
use crate::error::{Error, ONLY_NUMBERS, Result};
use crate::onnx::{self, DType, Dim, Fact, Graph, Lookup, Tensor, ValueId, ValueInfo};
use half::f16;
use std::borrow::Cow;
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
    /// What gives pictures as many channels as the model takes, before all else.
    recolour: Option<Recolour>,
    /// Per element of a stored row: `value · factor + offset`. One pair for all, or one each.
    affine: Vec<(f64, f64)>,
    /// Stored rows are channels × height × width, the model takes height × width × channels, or the reverse.
    order: Option<Reorder>,
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
            let dtype = self.number_type(input)?;
            let column = self.column_for(inputs, i)?;
            let fitted = self.fit(input, dtype, column, &mut bound.notes)?;
            bound.inputs.push(fitted);
        }
        if self.options.transforms() && !bound.inputs.iter().any(|i| i.dtype.is_float()) {
            return Err(
                self.refuse("scale, mean and std are given, but the model takes whole numbers".into())
            );
        }
        Ok(bound)
    }

    /// Fits this data to the inputs of a graph, and looks whether what is to be found in its tables is in them.
    ///
    /// # Errors
    /// As [`Self::bind`], and for places that a table hasn't got.
    pub fn bind_to(&self, graph: &Graph) -> Result<Bound> {
        let inputs: Vec<ValueInfo> = graph.required_inputs().cloned().collect();
        let bound = self.bind(&inputs)?;
        for lookup in onnx::lookups(graph) {
            bound
                .inputs
                .iter()
                .filter(|i| i.id == lookup.input)
                .try_for_each(|i| self.check_lookup(i, &lookup))?;
        }
        Ok(bound)
    }

    /// What a graph makes of each column, added to what others do.
    ///
    /// # Errors
    /// As [`Self::bind_to`].
    pub fn add_usages(&self, graph: &Graph, usages: &mut Usages) -> Result<()> {
        let lookups = onnx::lookups(graph);
        for input in self.bind_to(graph)?.inputs {
            let usage = usages.entry(input.column.name.clone()).or_default();
            let found = lookups.iter().find(|lookup| lookup.input == input.id).map(|lookup| lookup.size);
            usage.words = usage.words.into_iter().chain(found).min();
            usage.shapes.push(input.row_shape);
        }
        Ok(())
    }

    fn check_lookup(&self, input: &BoundInput, lookup: &Lookup) -> Result<()> {
        let Lookup { table, size, .. } = lookup;
        let places = -(*size as f64)..*size as f64;
        let Some((row, value)) = input.column.find(|value| !places.contains(&value)) else { return Ok(()) };
        let what = format!(
            "'{}' holds {value} in row {row}, but the model's input '{}' counts the entries of '{table}', which has {size} (0 to {})",
            input.column.name,
            input.id,
            size.saturating_sub(1)
        );
        Err(self.refuse(what).hint(
            "words must be numbered as for the model, by its own vocabulary, in which unknown ones mostly share a number",
        ))
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
        if alone || self.form == Form::Positional && inputs.len() == self.inputs.len() {
            return Ok(&self.inputs[i]);
        }
        let have: Vec<&str> = self.inputs.iter().map(|c| c.name.as_str()).collect();
        let what = format!("nothing in it feeds the model's input '{name}'; it holds {}", have.join(", "));
        Err(self.refuse(what).hint(format!(
            "name an array '{name}' (only a single one for a single input may be called otherwise)"
        )))
    }

    fn number_type(&self, input: &ValueInfo) -> Result<DType> {
        let dtype = input.dtype.filter(|d| d.is_float() || d.is_int() || *d == DType::Bool);
        dtype.ok_or_else(|| {
            self.refuse(format!("the model's input '{}' takes no numbers, so no data can feed it", input.id))
                .hint(ONLY_NUMBERS)
        })
    }

    fn fit(
        &self,
        input: &ValueInfo,
        dtype: DType,
        column: &Column,
        notes: &mut Vec<String>,
    ) -> Result<BoundInput> {
        let stored = column.row_shape();
        let (recolour, shape, place) = self.place(input, stored).ok_or_else(|| self.misfit(input, column))?;
        let Place { row_shape, batched, fixed_batch, order } = place;
        if order.is_some() {
            notes.push(format!(
                "'{}' is reordered from {} to {} (channels first or last)",
                column.name,
                show(&shape),
                show(&row_shape)
            ));
        }
        if let Form::Pictures(pictures) = self.form {
            notes.extend(pictures.note(shape[0]));
        }
        self.check_values(input, dtype, column)?;
        let affine = if dtype.is_float() { self.affine(&column.name, &shape)? } else { vec![(1.0, 0.0)] };
        Ok(BoundInput {
            id: input.id.clone(),
            dtype,
            row_shape,
            batched,
            fixed_batch,
            column: column.clone(),
            recolour,
            affine,
            order,
        })
    }

    /// How rows of the shape `stored` fill an input, after which change of channels, and their shape after that.
    fn place(&self, input: &ValueInfo, stored: &[usize]) -> Option<(Option<Recolour>, Vec<usize>, Place)> {
        let declared = input.shape.as_deref();
        let as_it_is = place(declared, stored).map(|place| (None, stored.to_vec(), place));
        let Form::Pictures(_) = self.form else { return as_it_is };
        let recoloured = Recolour::of(stored)
            .and_then(|(recolour, shape)| Some((Some(recolour), shape.to_vec(), place(declared, &shape)?)));
        // Three channels also fill a batch of three grey pictures.
        let (batched, others): (Vec<_>, Vec<_>) =
            as_it_is.into_iter().chain(recoloured).partition(|(.., place)| place.batched);
        batched.into_iter().chain(others).next()
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
        match self.form {
            Form::Pictures(_) => {
                error.hint("images are given as channels × height × width: --size HEIGHTxWIDTH resizes them")
            }
            _ => error,
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
        match column.find(|v| v.fract() != 0.0 || v < low || v > high) {
            None => Ok(()),
            Some((row, v)) => Err(self.refuse(format!(
                "'{}' holds {v} in row {row}, but the model's input '{}' is {dtype}",
                column.name, input.id
            ))),
        }
    }

    /// Scale, mean and std as factor and offset: one pair, or one an element of a row.
    fn affine(&self, name: &str, shape: &[usize]) -> Result<Vec<(f64, f64)>> {
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
        let inner: usize = if shape.first() == Some(&channels) {
            shape[1..].iter().product()
        } else if shape.last() == Some(&channels) {
            1
        } else {
            return Err(self.refuse(format!(
                "mean or std has {channels} numbers, but a row of '{name}' is {}",
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
            input.push_row(row, &mut bytes);
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

impl Column {
    /// The first value that is `wanted`, and its row.
    fn find(&self, wanted: impl Fn(f64) -> bool) -> Option<(usize, f64)> {
        let dtype = self.values.dtype();
        let per_row = self.row_shape().iter().product::<usize>().max(1);
        let row_bytes = per_row * dtype.size().unwrap_or(1);
        self.values.bytes().chunks(row_bytes).enumerate().find_map(|(row, bytes)| {
            let mut found = None;
            each(dtype, bytes, |v| found = found.or(wanted(v).then_some(v)));
            found.map(|value| (row, value))
        })
    }
}

impl BoundInput {
    /// Channels, height and width where a row is a plain image that the model takes channels first.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        let shape = self.column.image_shape().filter(|_| self.order.is_none() && self.dtype.is_float())?;
        Some(match self.recolour {
            Some(_) => Recolour::of(&shape)?.1,
            None => shape,
        })
    }

    fn push_row(&self, row: usize, out: &mut Vec<u8>) {
        let values = &self.column.values;
        let per_row: usize = self.column.row_shape().iter().product();
        let row_bytes = per_row * values.dtype().size().unwrap_or(1);
        let stored = &values.bytes()[row * row_bytes..][..row_bytes];
        let stored = match self.recolour {
            Some(recolour) => Cow::Owned(recolour.apply(stored)),
            None => Cow::Borrowed(stored),
        };
        let start = out.len();
        convert(values.dtype(), &stored, self.dtype, &self.affine, out);
        if let Some(order) = self.order {
            let moved = order.apply(&out[start..], self.dtype.size().unwrap_or(1));
            out.truncate(start);
            out.extend(moved);
        }
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

#[cfg(test)]
mod tests {
    use super::super::DataOptions;
    use super::super::pictures::Pictures;
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
    fn pictures_get_the_channels_that_the_model_takes() {
        let pictures = |shape: &[usize], grey: usize| Dataset {
            form: Form::Pictures(Pictures { all: 1, grey, transparent: 0 }),
            ..bytes(shape)
        };
        let fitted = |set: &Dataset, dims: &[i64]| {
            let bound = set.bind(&[input(DType::F32, dims)]).unwrap();
            (bound.batch(&[0], 1).unwrap()[0].to_f32().into_owned(), bound.notes.len())
        };
        let mut grey = pictures(&[1, 1, 1, 2], 1);
        assert_eq!(fitted(&grey, &[-1, 1, 1, 2]), (vec![0., 1.], 0));
        assert_eq!(fitted(&grey, &[-1, 3, 1, 2]), (vec![0., 1., 0., 1., 0., 1.], 1));
        assert_eq!(fitted(&grey, &[-1, 1, 2, 3]), (vec![0., 0., 0., 1., 1., 1.], 2));
        grey.options.mean = vec![1., 2., 3.];
        assert_eq!(fitted(&grey, &[-1, 3, 1, 2]).0, [-1., 0., -2., -1., -3., -2.]);
        let colour = pictures(&[1, 3, 1, 2], 0);
        assert_eq!(fitted(&colour, &[-1, 2]), (vec![2., 3.], 1));
        assert!(bytes(&[1, 1, 1, 2]).bind(&[input(DType::F32, &[-1, 3, 1, 2])]).is_err());
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
