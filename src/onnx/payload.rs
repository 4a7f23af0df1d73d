//! Turns the payload of one `TensorProto`, in any of ONNX's encodings, into a [`Tensor`].
//!
//! Payloads that lie in one piece and in their final form stay where they are, in the memory map; others
//! (numbers coded as varints, unpacked or split fields) are decoded. External data is only read from regular
//! files inside the model's folder. Look at [`Site`] and [`Encoding`].

use super::scan::Cut;
use super::wire::{Coding, Field, varint};
use super::{DType, SiteId, Tensor, element_count};
use crate::error::{Error, Result};
use memmap2::Mmap;
use onnx_protobuf::TensorProto;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Where and how a model file holds one tensor.
#[derive(Clone, Debug)]
pub struct Site {
    /// The tensor's own name in the file; empty for most tensors in attributes.
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    pub(super) cut: Cut,
}

impl Site {
    /// The bytes of the model file that hold the payload, or that depend on its length.
    pub(super) fn own_bytes(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let lengths = self.cut.enclosing.iter().map(|e| e.length.clone());
        lengths.chain(self.cut.fields.iter().map(|f| f.whole.clone()))
    }
}

/// How a payload is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// The little-endian elements, one after the other, at this place of the model file: `raw_data`, or a packed
    /// `float_data` or `double_data`.
    InPlace(Range<usize>),
    /// Fields of this number that must be decoded and, when changed, built anew.
    Typed(u32),
    /// At this place of another file.
    External { location: String, file: PathBuf, range: Range<usize> },
    /// No elements, so no payload.
    Empty,
}

/// A memory-mapped model file, and the side files it names.
pub(super) struct Store {
    pub path: PathBuf,
    pub map: Arc<Mmap>,
    pub cuts: Vec<Cut>,
    pub sites: Vec<Option<Site>>,
    sides: HashMap<String, (PathBuf, Option<Arc<Mmap>>)>,
}

impl Store {
    pub fn new(path: &Path, map: Arc<Mmap>, cuts: Vec<Cut>) -> Self {
        let sites = cuts.iter().map(|_| None).collect();
        Self { path: path.to_owned(), map, cuts, sites, sides: HashMap::new() }
    }

    /// The tensor that a skeleton's `TensorProto` stands for.
    pub fn tensor(&mut self, proto: &TensorProto) -> Result<Tensor> {
        let label = if proto.name.is_empty() { "(unnamed)" } else { &proto.name };
        let index = proto.raw_data.as_slice().try_into().map(u32::from_le_bytes);
        let index = index.map_err(|_| Error::tensor(label, "is described twice"))?;
        let cut = self.cuts.get(index as usize).cloned().unwrap_or_default();
        let (tensor, encoding) = self.decode(proto, &cut).map_err(|e| named(e, label))?;
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        if let Some(slot) = self.sites.get_mut(index as usize) {
            *slot = Some(Site { name: proto.name.clone(), dtype, shape, encoding, cut });
        }
        Ok(tensor.with_site(Some(SiteId(index))))
    }

    fn decode(&mut self, proto: &TensorProto, cut: &Cut) -> Result<(Tensor, Encoding)> {
        let refuse = |what: String| Error::tensor("", what);
        let dtype = DType::from_onnx(proto.data_type);
        let shape: Option<Vec<usize>> = proto.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape =
            shape.ok_or_else(|| refuse(format!("has a negative dimension in its shape {:?}", proto.dims)))?;
        let count =
            element_count(&shape).filter(|n| n.checked_mul(16).is_some_and(|n| n <= isize::MAX as usize));
        let count = count.ok_or_else(|| refuse(format!("its shape {shape:?} is larger than any memory")))?;
        if proto.data_type == 0 {
            return Err(refuse("has no element type".into()));
        }
        if proto.segment.is_some() {
            return Err(refuse("is stored in segments, which ONNX Runtime doesn't read either".into()));
        }
        let is_external = proto.data_location.value() == 1;
        let is_raw = is_external || cut.fields.iter().any(|f| f.number == 9 && !f.body.is_empty());
        if dtype == DType::Str && is_raw {
            let what = "holds strings as raw bytes, where nothing says which ends where";
            return Err(refuse(what.into()).hint("ONNX has `string_data` for strings"));
        }
        if is_external {
            return self.external(proto, dtype, &shape, count);
        }
        // raw_data isn't repeated: the last one counts. Typed fields may come in several pieces.
        let mut fields: Vec<&Field> = cut.fields.iter().filter(|f| !f.body.is_empty()).collect();
        if let Some(raw) = fields.iter().rposition(|f| f.number == 9) {
            let raw = fields.remove(raw);
            fields.retain(|f| f.number != 9);
            fields.insert(0, raw);
        }
        let Some(&first) = fields.first() else {
            return match count {
                0 => Ok((empty(dtype, &shape)?, Encoding::Empty)),
                _ => Err(refuse(format!("its shape {shape:?} takes {count} elements, but it holds no data"))),
            };
        };
        if let Some(other) = fields.iter().find(|f| f.number != first.number) {
            return Err(refuse(format!(
                "holds its data twice (fields {} and {})",
                first.number, other.number
            )));
        }
        let fixed = matches!((first.number, dtype), (9, _) | (4, DType::F32) | (10, DType::F64));
        if fixed && fields.len() == 1 && first.coding == Coding::Bytes {
            let tensor = self.mapped(dtype, &shape, self.map.clone(), first.body.clone())?;
            return Ok((tensor, Encoding::InPlace(first.body.clone())));
        }
        let bytes = match (first.number, dtype) {
            (6, DType::Str) => fields.iter().flat_map(|f| &self.map[f.whole.clone()]).copied().collect(),
            _ => typed(&self.map, &fields, dtype).map_err(refuse)?,
        };
        let tensor = match dtype.size() {
            Some(_) => Tensor::new(dtype, &shape, bytes)?,
            None => Tensor::opaque(dtype, &shape, bytes),
        };
        Ok((tensor, Encoding::Typed(first.number)))
    }

    fn mapped(&self, dtype: DType, shape: &[usize], map: Arc<Mmap>, range: Range<usize>) -> Result<Tensor> {
        match dtype.size() {
            Some(_) => Tensor::mapped(dtype, shape, map, range),
            None => Ok(Tensor::opaque(dtype, shape, map.get(range).unwrap_or_default().to_vec())),
        }
    }

    fn external(
        &mut self,
        proto: &TensorProto,
        dtype: DType,
        shape: &[usize],
        count: usize,
    ) -> Result<(Tensor, Encoding)> {
        let refuse = |what: String| Error::tensor("", what);
        let entry =
            |key: &str| proto.external_data.iter().rev().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse::<usize>().map(Some).map_err(|_| {
                refuse(format!("its external data has the {key} '{text}', which isn't a number"))
            }),
        };
        let location = entry("location").filter(|l| !l.is_empty());
        let location = location.ok_or_else(|| refuse("is external, but names no file".into()))?.to_owned();
        let (file, map) = self.side(&location)?;
        let size = map.as_ref().map_or(0, |m| m.len());
        let offset = number("offset")?.unwrap_or(0);
        let expected = dtype.size().and_then(|s| s.checked_mul(count));
        let length = match (number("length")?, expected) {
            (Some(length), _) => length,
            (None, Some(expected)) => expected,
            (None, None) => size.saturating_sub(offset),
        };
        let range = offset.checked_add(length).filter(|&end| end <= size).map(|end| offset..end);
        let range = range.ok_or_else(|| {
            refuse(format!(
                "its {length} bytes from {offset} on end after the end of '{location}' ({size} bytes)"
            ))
            .hint("the side file is cut off or belongs to another model")
        })?;
        let tensor = match map {
            Some(map) => self.mapped(dtype, shape, map, range.clone())?,
            None => Tensor::new(dtype, shape, vec![])?,
        };
        Ok((tensor, Encoding::External { location, file, range }))
    }

    /// The side file of that name, mapped; `None` for an empty one.
    fn side(&mut self, location: &str) -> Result<(PathBuf, Option<Arc<Mmap>>)> {
        if let Some(side) = self.sides.get(location) {
            return Ok(side.clone());
        }
        let file = inside_folder(&self.path, location)?;
        let opened = std::fs::File::open(&file).map_err(|e| Error::io(&file, e))?;
        // SAFETY: as for the model file, see `read::map_file`.
        let map = match opened.metadata().map_err(|e| Error::io(&file, e))?.len() {
            0 => None,
            _ => Some(Arc::new(unsafe { Mmap::map(&opened) }.map_err(|e| Error::io(&file, e))?)),
        };
        self.sides.insert(location.to_owned(), (file.clone(), map.clone()));
        Ok((file, map))
    }
}

/// The side file `location` of the model at `path`, if it is a regular file inside the model's folder.
fn inside_folder(path: &Path, location: &str) -> Result<PathBuf> {
    let refuse = |why: &str| {
        Error::tensor("", format!("its external data is in '{location}', which {why}"))
            .hint("external data is only read from the folder of its model")
    };
    let plain =
        Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !plain || location.contains('\0') {
        return Err(refuse("points outside the model's folder"));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = folder.join(location);
    let (real, home) = match (file.canonicalize(), folder.canonicalize()) {
        (Ok(real), Ok(home)) => (real, home),
        (Err(e), _) | (_, Err(e)) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::tensor(
                "",
                format!("its external data is in '{location}', which isn't there"),
            )
            .hint(format!("put the file beside the model, at {}", file.display())));
        }
        (Err(e), _) | (_, Err(e)) => return Err(Error::io(&file, e)),
    };
    match real.metadata() {
        _ if !real.starts_with(&home) => Err(refuse("leads outside the model's folder")),
        Ok(meta) if meta.is_file() => Ok(file),
        _ => Err(refuse("isn't a regular file")),
    }
}

fn empty(dtype: DType, shape: &[usize]) -> Result<Tensor> {
    match dtype.size() {
        Some(_) => Tensor::new(dtype, shape, vec![]),
        None => Ok(Tensor::opaque(dtype, shape, vec![])),
    }
}

/// Decodes the pieces of a typed data field into little-endian elements.
fn typed(file: &[u8], fields: &[&Field], dtype: DType) -> Result<Vec<u8>, String> {
    let number = fields.first().map_or(0, |f| f.number);
    let other = matches!(dtype, DType::Other(_));
    let width = dtype.size().unwrap_or(1);
    let fits = match number {
        4 => other || dtype == DType::F32,
        10 => other || dtype == DType::F64,
        7 => dtype == DType::I64,
        11 => matches!(dtype, DType::U32 | DType::U64),
        5 => {
            use DType::*;
            other || matches!(dtype, I32 | I16 | I8 | U16 | U8 | Bool | F16 | BF16)
        }
        _ => false,
    };
    if !fits {
        return Err(format!("holds {dtype}, but in a data field (number {number}) of another type"));
    }
    let mut out = vec![];
    for field in fields {
        let body = file.get(field.body.clone()).unwrap_or_default();
        match (number, field.coding) {
            (4, Coding::Fixed32 | Coding::Bytes) | (10, Coding::Fixed64 | Coding::Bytes) => {
                out.extend_from_slice(body)
            }
            (5 | 7 | 11, Coding::Varint(value)) => out.extend_from_slice(&value.to_le_bytes()[..width]),
            (5 | 7 | 11, Coding::Bytes) => {
                let mut at = 0;
                while at < body.len() {
                    let (value, next) = varint(body, at..body.len()).map_err(|m| m.what.to_owned())?;
                    out.extend_from_slice(&value.to_le_bytes()[..width]);
                    at = next;
                }
            }
            _ => return Err(format!("its data field (number {number}) is coded in an impossible way")),
        }
    }
    Ok(out)
}

/// Puts the tensor's name into an error that was made where it wasn't known.
fn named(error: Error, label: &str) -> Error {
    match error {
        Error::Tensor { tensor, what } if tensor.is_empty() => Error::tensor(label, what),
        Error::Hint { source, hint } => named(*source, label).hint(hint),
        other => other,
    }
}
