//! NumPy's `.npy` and `.npz`.
//!
//! The values are taken as bytes, without a detour through Rust's own types, and where they lie uncompressed in the
//! file they stay in a memory map. A header is not believed: sizes are checked against the file and against memory
//! before anything is allocated.

mod header;

use super::labels::Labels;
use super::options::DataOptions;
use super::{Column, Dataset, Form, Groups, check_memory, words};
use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor};
use header::Header;
use memmap2::Mmap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Names that mean labels, unless told otherwise.
const LABEL_NAMES: [&str; 5] = ["y", "label", "labels", "target", "targets"];

/// Opens `x.npy` with or without `y.npy`.
pub fn open_pair(x: &Path, y: Option<&Path>, options: &DataOptions) -> Result<Dataset> {
    let labels = y.map(|y| read_npy(y)?.labels(y, "y")).transpose()?;
    let values = read_npy(x)?.numbers().map_err(|what| Error::data(x, what))?;
    let inputs = vec![Column { name: "x".into(), values }];
    Ok(dataset(x, inputs, labels, options))
}

/// Opens an `.npz` archive: one array is the labels, the others are inputs by name.
pub fn open_npz(path: &Path, options: &DataOptions) -> Result<Dataset> {
    let mut archive = Npz::open(path)?;
    let names = archive.names()?;
    let label = label_name(path, &names, options)?;
    let (mut inputs, mut labels, mut groups) = (vec![], None, None);
    for name in names {
        if Some(&name) == label.as_ref() {
            labels = Some(archive.read(&name)?.labels(path, &name)?);
        } else if Some(&name) == options.groups.as_ref() {
            let (numbers, words) = archive.read(&name)?.labels(path, &name)?;
            groups = Some(Groups::from_labels(path, &name, &numbers, &words)?);
        } else {
            inputs.push(Column { values: archive.numbers(&name)?, name });
        }
    }
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Dataset { groups, ..dataset(path, inputs, labels, options) })
}

fn dataset(
    path: &Path,
    inputs: Vec<Column>,
    labels: Option<(Labels, Vec<String>)>,
    options: &DataOptions,
) -> Dataset {
    let (labels, class_names) = labels.unzip();
    Dataset {
        path: path.to_owned(),
        inputs,
        labels,
        class_names: class_names.unwrap_or_default(),
        groups: None,
        options: options.clone(),
        form: Form::Named,
    }
}

fn label_name(path: &Path, names: &[String], options: &DataOptions) -> Result<Option<String>> {
    if let Some(label) = &options.label {
        return match names.contains(label) {
            true => Ok(Some(label.clone())),
            false => Err(Error::data(
                path,
                format!("there is no array '{label}' in it, only {}", names.join(", ")),
            )),
        };
    }
    if let Some(label) = LABEL_NAMES.iter().find(|l| names.iter().any(|n| n == *l)) {
        return Ok(Some(label.to_string()));
    }
    // What `numpy.savez(file, x, y)` writes.
    let unnamed = names.len() == 2 && names.iter().all(|n| n == "arr_0" || n == "arr_1");
    Ok(unnamed.then(|| "arr_1".to_owned()))
}

/// Every array of an `.npz` archive, by name.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let mut archive = Npz::open(path)?;
    let names = archive.names()?;
    names.into_iter().map(|name| Ok((name.clone(), archive.numbers(&name)?))).collect()
}

/// Writes arrays as an uncompressed `.npz` archive, replacing the file in one go.
pub fn write_npz(path: &Path, arrays: &[(String, Tensor)]) -> Result<()> {
    let fail = |e: &dyn std::fmt::Display| Error::data(path, format!("can't be written ({e})"));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(std::io::Cursor::new(vec![]));
    for (name, tensor) in arrays {
        zip.start_file(format!("{name}.npy"), stored).map_err(|e| fail(&e))?;
        zip.write_all(&npy_header(tensor).ok_or_else(|| fail(&"no array of this type"))?)
            .map_err(|e| fail(&e))?;
        zip.write_all(tensor.bytes()).map_err(|e| fail(&e))?;
    }
    let bytes = zip.finish().map_err(|e| fail(&e))?.into_inner();
    crate::onnx::atomic::write(path, &bytes)
}

/// The header of format 2.0, padded so that the values are aligned.
fn npy_header(tensor: &Tensor) -> Option<Vec<u8>> {
    let descr = match tensor.dtype() {
        DType::F64 => "<f8",
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::I16 => "<i2",
        DType::I8 => "|i1",
        DType::U64 => "<u8",
        DType::U32 => "<u4",
        DType::U16 => "<u2",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
        _ => return None,
    };
    let shape: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let preamble = b"\x93NUMPY\x02\x00";
    while !(preamble.len() + 4 + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let length = u32::try_from(text.len()).ok()?.to_le_bytes();
    Some([&preamble[..], &length, text.as_bytes()].concat())
}

/// The values of an array.
enum Values {
    Numbers(Tensor),
    /// Words: the last dimension counts a word's characters ([`words::decode`]).
    Text(Tensor),
}

impl Values {
    fn numbers(self) -> Result<Tensor, String> {
        match self {
            Values::Numbers(tensor) => Ok(tensor),
            Values::Text(_) => {
                Err("it holds text: words can only be labels (--label names their array)".into())
            }
        }
    }

    /// A label a row, and the names of the classes where these are words.
    fn labels(self, path: &Path, name: &str) -> Result<(Labels, Vec<String>)> {
        match self {
            Values::Numbers(tensor) => Ok((Labels::from_tensor(path, name, &tensor)?, vec![])),
            Values::Text(characters) => {
                let words = words::decode(&characters)
                    .map_err(|what| Error::data(path, format!("array '{name}': {what}")))?;
                Labels::from_words(path, &words)
            }
        }
    }
}

fn read_npy(path: &Path) -> Result<Values> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let map = Arc::new(map(path, &file)?);
    let mut bytes: &[u8] = &map;
    let array = Array::read(&mut bytes).map_err(|what| Error::data(path, what))?;
    let start = map.len() - bytes.len();
    array.check_length(bytes.len() as u64).map_err(|what| Error::data(path, what))?;
    let end = start + array.bytes as usize;
    array.mapped(&map, start..end).map_err(|what| Error::data(path, what))
}

/// An open `.npz`: a zip archive with one `.npy` an array.
struct Npz {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    map: Arc<Mmap>,
}

impl Npz {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let map = Arc::new(map(path, &file)?);
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|e| {
            Error::data(path, format!("not a readable .npz archive ({e})")).hint("numpy.savez writes them")
        })?;
        Ok(Self { path: path.to_owned(), archive, map })
    }

    /// Names of the arrays, as NumPy gives them.
    fn names(&self) -> Result<Vec<String>> {
        let unreadable = |e| Error::data(&self.path, format!("an entry's name can't be read ({e})"));
        let files = self.archive.file_names().collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        Ok(files.iter().filter_map(|file| file.strip_suffix(".npy")).map(str::to_owned).collect())
    }

    fn numbers(&mut self, name: &str) -> Result<Tensor> {
        let values = self.read(name)?;
        values.numbers().map_err(|what| Error::data(&self.path, format!("array '{name}': {what}")))
    }

    fn read(&mut self, name: &str) -> Result<Values> {
        let Self { path, archive, map } = self;
        let fail = |what: String| Error::data(&*path, format!("array '{name}': {what}"));
        let mut entry = archive.by_name(&format!("{name}.npy")).map_err(|e| fail(e.to_string()))?;
        let (start, size) = (entry.data_start(), entry.size());
        let stored = entry.compressed_size() == size && entry.compression() == CompressionMethod::Stored;
        let array = Array::read(&mut entry).map_err(fail)?;
        array.check_length(size.saturating_sub(array.offset as u64)).map_err(fail)?;
        if stored {
            let start = start.and_then(|s| usize::try_from(s).ok()?.checked_add(array.offset));
            let range = start.and_then(|s| Some(s..s.checked_add(array.bytes as usize)?));
            let range = range.filter(|r| r.end <= map.len());
            let range = range.ok_or_else(|| fail("it ends after the end of the file".into()))?;
            return array.mapped(map, range).map_err(fail);
        }
        check_memory(path, &format!("array '{name}'"), array.bytes)?;
        let mut values = vec![];
        values.try_reserve_exact(array.bytes as usize).map_err(|e| fail(e.to_string()))?;
        entry.take(array.bytes).read_to_end(&mut values).map_err(|e| fail(format!("damaged ({e})")))?;
        array.owned(values).map_err(fail)
    }
}

/// What an array's header says.
struct Array {
    /// Of numbers, or of the characters of words.
    dtype: DType,
    shape: Vec<usize>,
    /// Bytes of all values.
    bytes: u64,
    /// Bytes before the values.
    offset: usize,
    big_endian: bool,
    columns_first: bool,
    text: bool,
}

impl Array {
    /// Reads a header, and stops where the values begin.
    fn read(reader: &mut impl Read) -> Result<Self, String> {
        let Header { element, columns_first, shape, length } = Header::read(reader)?;
        let dims = shape.into_iter().chain(element.characters).map(|d| usize::try_from(d).ok());
        let shape: Vec<usize> = dims.collect::<Option<_>>().ok_or("its shape is too large")?;
        let count = crate::onnx::element_count(&shape).ok_or("its shape is too large")?;
        let size = element.dtype.size().unwrap_or(1);
        let bytes = (count as u64).checked_mul(size as u64).ok_or("its shape is too large")?;
        let text = element.characters.is_some();
        Ok(Array {
            dtype: element.dtype,
            shape,
            bytes,
            offset: length,
            big_endian: element.big_endian,
            // One word a row lies the same in both orders.
            columns_first: columns_first && !text,
            text,
        })
    }

    fn check_length(&self, there: u64) -> Result<(), String> {
        match there == self.bytes {
            true => Ok(()),
            false => Err(format!(
                "{} of shape {:?} takes {} bytes, but {there} are there",
                self.dtype, self.shape, self.bytes
            )),
        }
    }

    fn mapped(self, map: &Arc<Mmap>, range: std::ops::Range<usize>) -> Result<Values, String> {
        if self.big_endian || self.columns_first {
            return self.owned(map[range].to_vec());
        }
        let tensor = Tensor::mapped(self.dtype, &self.shape, map.clone(), range);
        Ok(self.values(tensor.map_err(|e| e.to_string())?))
    }

    fn owned(self, mut values: Vec<u8>) -> Result<Values, String> {
        let size = self.dtype.size().unwrap_or(1);
        if self.big_endian {
            values.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        if self.columns_first && values.len() as u64 == self.bytes {
            values = row_major(&values, &self.shape, size);
        }
        let tensor = Tensor::new(self.dtype, &self.shape, values);
        Ok(self.values(tensor.map_err(|e| e.to_string())?))
    }

    fn values(&self, tensor: Tensor) -> Values {
        if self.text { Values::Text(tensor) } else { Values::Numbers(tensor) }
    }
}

/// From "Fortran order" (first index fastest) to row-major.
fn row_major(values: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut step = 1;
    for &d in shape {
        strides.push(step);
        step *= d;
    }
    let mut index = vec![0usize; shape.len()];
    let mut at = 0;
    let mut ordered = Vec::with_capacity(values.len());
    for _ in 0..step {
        ordered.extend_from_slice(&values[at * size..][..size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    ordered
}

fn map(path: &Path, file: &File) -> Result<Mmap> {
    // SAFETY: the map is read-only. Another process that shortens the file meanwhile could end this one, as
    // with every memory-mapped file; no memory of ours is at risk.
    unsafe { Mmap::map(file) }.map_err(|e| Error::io(PathBuf::from(path), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn npy(descr: &str, order: bool, shape: &str, values: &[u8]) -> Vec<u8> {
        let order = if order { "True" } else { "False" };
        let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(values);
        bytes
    }
    fn read(bytes: &[u8]) -> Result<Tensor> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        read_npy(file.path())?.numbers().map_err(|what| Error::data(file.path(), what))
    }
    fn refusal(bytes: &[u8]) -> String {
        read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn types_and_orders_are_read() {
        assert_eq!(read(&npy("|u1", false, "(2, 2)", &[1, 2, 3, 4])).unwrap().to_f64(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(read(&npy("|u1", true, "(2, 2)", &[1, 2, 3, 4])).unwrap().to_f64(), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(read(&npy(">i2", false, "(1,)", &[1, 0])).unwrap().to_f64(), [256.0]);
        assert_eq!(read(&npy("<f2", false, "(1,)", &[0, 0x3c])).unwrap().to_f64(), [1.0]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        use DType::{Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        let dtypes = [Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let array = |dtype: DType| (dtype.to_string(), Tensor::from_f64(dtype, &[1, 2], &[0.0, 1.0]));
        let arrays: Vec<_> = dtypes.into_iter().map(array).collect();
        write_npz(&path, &arrays).unwrap();
        for ((name, tensor), (name_again, again)) in arrays.iter().zip(read_npz(&path).unwrap()) {
            let form = |t: &Tensor| (t.dtype(), t.shape().to_vec(), t.to_f64());
            assert_eq!((name, form(tensor)), (&name_again, form(&again)));
        }
    }

    #[test]
    fn headers_are_not_believed() {
        assert!(refusal(&npy("<f4", false, "(4,)", &[0; 8])).contains("takes 16 bytes, but 8 are there"));
        assert!(refusal(&npy("<f8", false, "(4294967296, 4294967296)", &[])).contains("too large"));
        assert!(refusal(&npy("|O", false, "(1,)", &[0; 8])).contains("pickled"));
        assert!(refusal(&npy("<c8", false, "(1,)", &[0; 8])).contains("type <c8 are not read"));
        assert!(refusal(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").contains("claims"));
        assert!(refusal(b"\x93NUMPY\x01\x00\xff").contains("cut off"));
        assert!(refusal(b"PK\x03\x04aaaaaaaaaaaa").contains("not a NumPy array"));
    }

    fn npz(entries: &[(&str, Vec<u8>)]) -> Result<Dataset> {
        let file = tempfile::Builder::new().suffix(".npz").tempfile().unwrap();
        let mut writer = ZipWriter::new(file.reopen().unwrap());
        // Both ways in which NumPy writes: savez_compressed and savez.
        let methods = [CompressionMethod::Deflated, CompressionMethod::Stored];
        for ((name, bytes), method) in entries.iter().zip(methods.iter().cycle()) {
            let options = SimpleFileOptions::default().compression_method(*method);
            writer.start_file(format!("{name}.npy"), options).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        super::super::open(file.path(), &DataOptions::default())
    }

    #[test]
    fn archives_hold_inputs_and_labels() {
        let x = npy("|u1", false, "(2, 3)", &[1, 2, 3, 4, 5, 6]);
        let y = npy("|i1", false, "(2,)", &[1, 0]);
        for (a, b) in [("x", "y"), ("arr_0", "arr_1"), ("images", "label")] {
            let set = npz(&[(a, x.clone()), (b, y.clone())]).unwrap();
            assert_eq!(set.inputs[0].values.to_f64(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            assert_eq!(set.labels, Some(Labels::Classes(vec![1, 0])));
        }
        assert!(npz(&[("x", x.clone())]).unwrap().labels.is_none());
        let message = npz(&[("x", x), ("y", npy("|i1", false, "(1,)", &[1]))]).err().unwrap().to_string();
        assert!(message.contains("2 rows of 'x', but 1 labels"), "{message}");
    }

    #[test]
    fn words_are_labels_with_names() {
        let x = npy("|u1", false, "(3, 1)", &[1, 2, 3]);
        let codes = |text: &str, big: bool| -> Vec<u8> {
            let code = |c| if big { u32::to_be_bytes(c) } else { u32::to_le_bytes(c) };
            text.chars().flat_map(|c| code(c as u32)).collect()
        };
        for y in [
            npy("|S2", false, "(3,)", b"b\0aab\0"),
            npy("<U2", true, "(3, 1)", &codes("b\0aab\0", false)),
            npy(">U2", false, "(3,)", &codes("b\0aab\0", true)),
        ] {
            let set = npz(&[("x", x.clone()), ("y", y.clone())]).unwrap();
            assert_eq!(
                (set.labels, set.class_names),
                (Some(Labels::Classes(vec![1, 0, 1])), vec!["aa".into(), "b".into()])
            );
            let message = npz(&[("x", y)]).err().unwrap().to_string();
            assert!(message.contains("array 'x': it holds text"), "{message}");
        }
        let numbers = npz(&[("x", x.clone()), ("y", npy("|S1", false, "(3,)", b"201"))]).unwrap();
        assert_eq!((numbers.labels, numbers.class_names), (Some(Labels::Classes(vec![2, 0, 1])), vec![]));
        for (descr, text) in [("|S1", &b"a\0b"[..]), ("|S0", b""), ("|S1", b"a\xffb")] {
            assert!(npz(&[("x", x.clone()), ("y", npy(descr, false, "(3,)", text))]).is_err());
        }
    }

    #[test]
    fn an_archive_that_claims_more_than_it_holds_is_refused() {
        let bomb = npy("<f4", false, "(1099511627776,)", &[0; 64]);
        let message = npz(&[("x", bomb)]).err().unwrap().to_string();
        assert!(message.contains("takes 4398046511104 bytes, but 64 are there"), "{message}");
        let objects = npz(&[("x", npy("|O", false, "(1,)", &[0; 8]))]).err().unwrap().to_string();
        assert!(objects.contains("array 'x': arrays of Python objects"), "{objects}");
        assert!(npz(&[]).err().unwrap().to_string().contains("no inputs"));
    }
}
