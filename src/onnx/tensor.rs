//! Tensor values: an element type, a shape and little-endian bytes, owned or inside a memory-mapped file.

use super::DType;
use crate::error::{Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Where in a model file a tensor's payload lives; an index into [`super::ModelFile::sites`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SiteId(pub u32);

/// A dense tensor. Cloning is cheap (the payload is shared).
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    payload: Payload,
    /// Set for tensors read from a file, so that surgery can find the bytes again.
    pub site: Option<SiteId>,
}

#[derive(Clone)]
enum Payload {
    Owned(Arc<Vec<u8>>),
    Mapped(Arc<Mmap>, Range<usize>),
    /// In somebody else's hands, who doesn't change it.
    Held(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

/// The number of elements of a shape, or `None` where it overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor of `bytes` (little-endian, row-major), which must be exactly as long as the shape says.
    pub fn new(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Self> {
        check_length(dtype, shape, bytes.len())?;
        Ok(Self { dtype, shape: shape.to_vec(), payload: Payload::Owned(Arc::new(bytes)), site: None })
    }
    /// A tensor whose payload stays where `holder` has it.
    ///
    /// # Errors
    /// [`Error::Tensor`] where it isn't as long as the shape wants.
    pub fn held(dtype: DType, shape: &[usize], holder: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Result<Self> {
        check_length(dtype, shape, (*holder).as_ref().len())?;
        Ok(Self { dtype, shape: shape.to_vec(), payload: Payload::Held(holder), site: None })
    }
    /// A tensor whose payload stays in the memory map.
    pub fn mapped(dtype: DType, shape: &[usize], map: Arc<Mmap>, range: Range<usize>) -> Result<Self> {
        check_length(dtype, shape, range.len())?;
        if range.end > map.len() {
            return Err(Error::tensor("", "payload ends after the end of its file"));
        }
        Ok(Self { dtype, shape: shape.to_vec(), payload: Payload::Mapped(map, range), site: None })
    }
    /// A tensor whose elements the program can't read (strings, exotic types). `bytes` is what a file holds:
    /// `raw_data`, or for strings the `string_data` fields as coded in protobuf.
    pub fn opaque(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { dtype, shape: shape.to_vec(), payload: Payload::Owned(Arc::new(bytes)), site: None }
    }
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self::of(DType::F32, shape, bytemuck::cast_slice(values))
    }
    pub fn f64(shape: &[usize], values: &[f64]) -> Self {
        Self::of(DType::F64, shape, bytemuck::cast_slice(values))
    }
    pub fn i64(shape: &[usize], values: &[i64]) -> Self {
        Self::of(DType::I64, shape, bytemuck::cast_slice(values))
    }
    pub fn i32(shape: &[usize], values: &[i32]) -> Self {
        Self::of(DType::I32, shape, bytemuck::cast_slice(values))
    }
    pub fn bool(shape: &[usize], values: &[bool]) -> Self {
        Self::of(DType::Bool, shape, &values.iter().map(|&v| v as u8).collect::<Vec<_>>())
    }
    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let count = element_count(shape).unwrap_or(0);
        // Memory that is zero by itself takes no room until it is written to: not to be copied.
        let bytes = vec![0; count * dtype.size().unwrap_or(0)];
        Self { dtype, shape: shape.to_vec(), payload: Payload::Owned(Arc::new(bytes)), site: None }
    }
    /// `values`, rounded to a real or integer type of the given name.
    ///
    /// # Panics
    /// When the number of values isn't that of the shape: a programming error, never a user's.
    pub fn from_f64(dtype: DType, shape: &[usize], values: &[f64]) -> Self {
        macro_rules! raw {
            ($t:ty) => {
                values.iter().flat_map(|&v| (v as $t).to_le_bytes()).collect::<Vec<u8>>()
            };
        }
        let bytes = match dtype {
            DType::F64 => raw!(f64),
            DType::F32 => raw!(f32),
            DType::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
            DType::I64 => raw!(i64),
            DType::I32 => raw!(i32),
            DType::I16 => raw!(i16),
            DType::I8 => raw!(i8),
            DType::U64 => raw!(u64),
            DType::U32 => raw!(u32),
            DType::U16 => raw!(u16),
            DType::U8 => raw!(u8),
            DType::Bool => values.iter().map(|&v| (v != 0.0) as u8).collect(),
            DType::Str | DType::Other(_) => panic!("no numbers of type {dtype}"),
        };
        Self::of(dtype, shape, &bytes)
    }
    pub fn scalar(dtype: DType, value: f64) -> Self {
        Self::from_f64(dtype, &[], &[value])
    }

    fn of(dtype: DType, shape: &[usize], bytes: &[u8]) -> Self {
        let expected = element_count(shape).unwrap_or(usize::MAX).saturating_mul(dtype.size().unwrap_or(0));
        assert_eq!(bytes.len(), expected, "{} bytes for a {dtype} tensor of shape {shape:?}", bytes.len());
        Self { dtype, shape: shape.to_vec(), payload: Payload::Owned(Arc::new(bytes.to_vec())), site: None }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        element_count(&self.shape).unwrap_or(0)
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether the elements can be read (false for strings and element types unknown to this build).
    pub fn is_readable(&self) -> bool {
        self.dtype.size().is_some()
    }
    /// The payload, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        match &self.payload {
            Payload::Owned(bytes) => bytes,
            Payload::Mapped(map, range) => &map[range.clone()],
            Payload::Held(holder) => (**holder).as_ref(),
        }
    }
    /// Whether the payload lies in a file's memory map.
    pub fn is_mapped(&self) -> bool {
        matches!(self.payload, Payload::Mapped(..))
    }
    /// The payload, where nobody else has it; else the tensor again.
    pub fn into_bytes(self) -> std::result::Result<Vec<u8>, Self> {
        let Self { dtype, shape, payload, site } = self;
        match payload {
            Payload::Owned(bytes) => Arc::try_unwrap(bytes).map_err(|bytes| Self {
                dtype,
                shape,
                payload: Payload::Owned(bytes),
                site,
            }),
            payload => Err(Self { dtype, shape, payload, site }),
        }
    }
    /// The same payload under another shape of as many elements.
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        assert_eq!(element_count(shape), Some(self.len()), "reshape {:?} to {shape:?}", self.shape);
        Self { shape: shape.to_vec(), ..self.clone() }
    }
    /// A part of the first axis.
    ///
    /// # Panics
    /// When `range` reaches beyond that axis, or the elements have no fixed size.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let [all, inner @ ..] = self.shape() else { panic!("a scalar has no rows") };
        let row = self.bytes().len() / (*all).max(1);
        let shape = [&[range.len()], inner].concat();
        Self::of(self.dtype(), &shape, &self.bytes()[range.start * row..range.end * row])
    }
    pub fn with_site(mut self, site: Option<SiteId>) -> Self {
        self.site = site;
        self
    }

    /// All elements as `f64`; integers and booleans too. Empty for unreadable types.
    pub fn to_f64(&self) -> Vec<f64> {
        macro_rules! read {
            ($t:ty) => {
                self.elements::<$t>().iter().map(|&v| v as f64).collect()
            };
        }
        match self.dtype {
            DType::F64 => self.elements::<f64>().into_owned(),
            DType::F32 => read!(f32),
            DType::F16 => self.elements::<u16>().iter().map(|&v| f16::from_bits(v).to_f64()).collect(),
            DType::BF16 => self.elements::<u16>().iter().map(|&v| bf16::from_bits(v).to_f64()).collect(),
            DType::I64 => read!(i64),
            DType::I32 => read!(i32),
            DType::I16 => read!(i16),
            DType::I8 => read!(i8),
            DType::U64 => read!(u64),
            DType::U32 => read!(u32),
            DType::U16 => read!(u16),
            DType::U8 | DType::Bool => read!(u8),
            DType::Str | DType::Other(_) => vec![],
        }
    }
    /// All elements as `f32`, borrowed where the tensor is float32 and suitably aligned.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self.dtype {
            DType::F32 => self.elements::<f32>(),
            _ => Cow::Owned(self.to_f64().iter().map(|&v| v as f32).collect()),
        }
    }
    /// All elements as `i64`; fractions are cut off.
    pub fn to_i64(&self) -> Cow<'_, [i64]> {
        match self.dtype {
            DType::I64 => self.elements::<i64>(),
            _ => Cow::Owned(self.to_f64().iter().map(|&v| v as i64).collect()),
        }
    }
    /// The same values in another numeric type.
    pub fn cast(&self, dtype: DType) -> Self {
        match dtype == self.dtype {
            true => self.clone(),
            false => Self::from_f64(dtype, &self.shape, &self.to_f64()),
        }
    }
    /// The index of the first element that is NaN or infinite, if any.
    pub fn first_non_finite(&self) -> Option<usize> {
        match self.dtype {
            DType::F32 => self.elements::<f32>().iter().position(|v| !v.is_finite()),
            d if d.is_float() => self.to_f64().iter().position(|v| !v.is_finite()),
            _ => None,
        }
    }
    /// The elements as plain values of Rust type `T`, which must have the element type's size.
    pub fn elements<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self) -> Cow<'_, [T]> {
        match bytemuck::try_cast_slice(self.bytes()) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(self.bytes())),
        }
    }
}

fn check_length(dtype: DType, shape: &[usize], bytes: usize) -> Result<()> {
    let expected = element_count(shape).zip(dtype.size()).and_then(|(n, size)| n.checked_mul(size));
    match expected {
        Some(expected) if expected == bytes => Ok(()),
        Some(expected) => Err(Error::tensor(
            "",
            format!("{dtype} of shape {shape:?} takes {expected} bytes, but {bytes} are there"),
        )),
        None => Err(Error::tensor("", format!("{dtype} of shape {shape:?} has no fixed size in bytes"))),
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.len() <= 8 && self.is_readable() {
            write!(f, "={:?}", self.to_f64())?;
        }
        Ok(())
    }
}
