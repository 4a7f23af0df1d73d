//! Writes a model file again with the payloads of some tensors replaced and nothing else different.
//!
//! Works on bytes, not on the graph: what this program doesn't understand of a file survives as well as what it
//! does. Payloads of fixed length are overwritten; numbers coded as varints change the length of their field,
//! and then the lengths of the messages around it. External data goes into copies of the side files, beside the
//! output. Look at [`write()`].

use super::payload::{Encoding, Site};
use super::scan::Enclosing;
use super::wire::{Coding, Field, put_header, put_varint};
use super::{DType, ModelFile, SiteId, Tensor, atomic};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What has been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub path: PathBuf,
    /// Size of the model file.
    pub bytes: u64,
    /// SHA-256 of the model file, in hexadecimal.
    pub sha256: String,
    /// The files with external data beside it.
    pub side_files: Vec<PathBuf>,
}

/// A range of the old file and what stands there in the new one.
struct Splice {
    range: Range<usize>,
    bytes: Vec<u8>,
}

impl Splice {
    fn growth(&self) -> i64 {
        self.bytes.len() as i64 - self.range.len() as i64
    }
}

/// Writes `file` to `out` with the payloads at the given sites replaced. Each tensor must have its site's shape;
/// its elements are rounded to the site's element type (to nearest, ties to even).
///
/// The output appears in one go, complete and synced, with its side files, if any, just before it.
///
/// # Errors
/// [`Error::Usage`] where `out`, or a side file beside it, is a file that the model was read from.
/// [`Error::Tensor`] for a change of another shape, of something that isn't a number, or with elements that are
/// not finite in the site's type. [`Error::Io`] where writing fails. Old files at `out` and beside it are untouched then.
pub fn write(file: &ModelFile, changes: &[(SiteId, Tensor)], out: &Path) -> Result<Written> {
    write_if(file, changes, out, |_| Ok(()))
}

/// The same where `check` has nothing against the new model, which it finds complete, with its side files, in a folder
/// beside the old one.
///
/// # Errors
/// As [`write`], or whatever `check` returns.
pub fn write_if(
    file: &ModelFile,
    changes: &[(SiteId, Tensor)],
    out: &Path,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<Written> {
    let mut inputs = file.side_files();
    inputs.push(&file.path);
    refuse_overwriting(out, &inputs)?;
    let mut splices = vec![];
    let mut rebuilt: Vec<&Site> = vec![];
    let mut sides: HashMap<&Path, Vec<Splice>> = HashMap::new();
    for (id, tensor) in last_changes(changes) {
        let site =
            file.site(id).ok_or_else(|| Error::tensor("", format!("no site {} in the model", id.0)))?;
        let bytes = payload(site, tensor)?;
        match &site.encoding {
            Encoding::InPlace(range) => splices.push(Splice { range: range.clone(), bytes }),
            Encoding::Typed(_) => {
                splices.extend(rebuild(site, &bytes)?);
                rebuilt.push(site);
            }
            Encoding::External { file, range, .. } => {
                sides.entry(file).or_default().push(Splice { range: range.clone(), bytes });
            }
            Encoding::Empty => {}
        }
    }
    fix_lengths(&mut splices, &rebuilt)?;
    in_order(&mut splices, out)?;
    let mut batch = atomic::Batch::beside(&out.canonicalize().unwrap_or_else(|_| out.to_owned()))?;
    let side_files = add_sides(&mut batch, file, sides, out)?;
    let (mut bytes, mut sha256) = (0, String::new());
    let name = Path::new(out.file_name().unwrap_or_default());
    let staged = batch.add(name, out, |to| {
        (bytes, sha256) = put_spliced(file.bytes(), &splices, to)?;
        Ok(())
    })?;
    check(&staged)?;
    batch.commit()?;
    Ok(Written { path: out.to_owned(), bytes, sha256, side_files })
}

/// Refuses an output path that is one of the inputs, under whatever name.
pub fn refuse_overwriting(out: &Path, inputs: &[&Path]) -> Result<()> {
    match inputs.iter().find(|input| same_file(out, input)) {
        Some(input) => Err(Error::usage(format!(
            "the output {} is the input {}: inputs are never overwritten",
            out.display(),
            input.display()
        ))
        .hint("name another file")),
        None => Ok(()),
    }
}

/// Whether two paths lead to one file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (std::fs::metadata(a), std::fs::metadata(b)) {
        use std::os::unix::fs::MetadataExt;
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// One change a site, in file order; the last one given counts.
fn last_changes(changes: &[(SiteId, Tensor)]) -> impl Iterator<Item = (SiteId, &Tensor)> {
    changes.iter().map(|(id, tensor)| (*id, tensor)).collect::<BTreeMap<_, _>>().into_iter()
}

/// The new payload of a site, in its element type.
fn payload(site: &Site, tensor: &Tensor) -> Result<Vec<u8>> {
    let refuse = |what: String| Err(Error::tensor(&site.name, what));
    if tensor.shape() != site.shape {
        return refuse(format!("has shape {:?} in the file, its new value {:?}", site.shape, tensor.shape()));
    }
    if site.dtype.size().is_none() || !tensor.is_readable() {
        return refuse(format!("holds {}, which can't be changed", site.dtype));
    }
    let rounded = tensor.cast(site.dtype);
    if let Some(i) = rounded.first_non_finite() {
        let value = tensor.to_f64().get(i).copied().unwrap_or(f64::NAN);
        return refuse(format!("element {i} of its new value is {value}, which {} can't hold", site.dtype));
    }
    Ok(rounded.bytes().to_vec())
}

/// The typed field of a site, coded as it was: packed or not.
fn rebuild(site: &Site, bytes: &[u8]) -> Result<Vec<Splice>> {
    let Encoding::Typed(number) = site.encoding else { return Ok(vec![]) };
    let fields: Vec<&Field> =
        site.cut.fields.iter().filter(|f| f.number == number && !f.body.is_empty()).collect();
    let width = site.dtype.size().unwrap_or(1);
    let fixed = matches!(number, 4 | 10);
    let packed = fields.first().is_some_and(|f| f.coding == Coding::Bytes);
    let mut coded = vec![];
    for element in bytes.chunks_exact(width) {
        if !packed {
            // Wire types: 0 varint, 1 eight bytes, 5 four bytes.
            let wire = match number {
                4 => 5,
                10 => 1,
                _ => 0,
            };
            put_varint(&mut coded, u64::from(number) << 3 | wire);
        }
        match fixed {
            true => coded.extend_from_slice(element),
            false => put_varint(&mut coded, widen(element, site.dtype)),
        }
    }
    if packed {
        let mut field = vec![];
        put_header(&mut field, number, coded.len());
        field.extend_from_slice(&coded);
        coded = field;
    }
    let mut coded = Some(coded);
    // The first piece takes it all; further pieces go.
    Ok(fields
        .iter()
        .map(|f| Splice { range: f.whole.clone(), bytes: coded.take().unwrap_or_default() })
        .collect())
}

/// An element as protobuf codes it: signed types extended to 64 bits, all others by zeros.
fn widen(element: &[u8], dtype: DType) -> u64 {
    let negative = matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64)
        && element.last().is_some_and(|&b| b & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide.iter_mut().zip(element).for_each(|(to, &from)| *to = from);
    u64::from_le_bytes(wide)
}

/// Adds the splices that correct the lengths of all messages around rebuilt fields, innermost first.
fn fix_lengths(splices: &mut Vec<Splice>, rebuilt: &[&Site]) -> Result<()> {
    let mut messages: Vec<(usize, &Enclosing)> =
        rebuilt.iter().flat_map(|site| site.cut.enclosing.iter().enumerate()).collect();
    messages.sort_by_key(|(depth, m)| (std::cmp::Reverse(*depth), m.body.start));
    messages.dedup_by_key(|(_, m)| m.length.start);
    for (_, message) in messages {
        let inside = |s: &&Splice| message.body.start <= s.range.start && s.range.end <= message.body.end;
        let growth: i64 = splices.iter().filter(inside).map(Splice::growth).sum();
        if growth != 0 {
            let length = message.body.len() as i64 + growth;
            if length > i64::from(i32::MAX) {
                return Err(Error::usage(
                    "with its new weights the model exceeds 2 GiB, the most one file can hold",
                ));
            }
            let mut bytes = vec![];
            put_varint(&mut bytes, length as u64);
            splices.push(Splice { range: message.length.clone(), bytes });
        }
    }
    Ok(())
}

/// Sorts the splices of the file at `path`.
fn in_order(splices: &mut [Splice], path: &Path) -> Result<()> {
    splices.sort_by_key(|s| (s.range.start, s.range.end));
    match splices.windows(2).any(|w| w[0].range.end > w[1].range.start) {
        true => Err(Error::model(path, "two changed tensors share their bytes in the file")),
        false => Ok(()),
    }
}

/// Writes `old` with its splices to `to`; returns size and hash.
fn put_spliced(old: &[u8], splices: &[Splice], to: &mut File) -> io::Result<(u64, String)> {
    let mut to = BufWriter::with_capacity(1 << 20, to);
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    let mut put = |bytes: &[u8]| {
        hash.update(bytes);
        size += bytes.len() as u64;
        to.write_all(bytes)
    };
    let mut at = 0;
    for splice in splices {
        put(old.get(at..splice.range.start).unwrap_or_default())?;
        put(&splice.bytes)?;
        at = splice.range.end;
    }
    put(old.get(at..).unwrap_or_default())?;
    to.flush()?;
    Ok((size, hash.finalize().iter().map(|b| format!("{b:02x}")).collect()))
}

/// The same for a file too large to be looked at: between the splices the system copies, without the bytes passing through
/// this process, and without copying at all where the file system can share them.
fn copy_spliced(mut old: File, splices: &[Splice], to: &mut File) -> io::Result<()> {
    let mut at = 0;
    for splice in splices {
        let (start, end) = (splice.range.start as u64, splice.range.end as u64);
        io::copy(&mut (&mut old).take(start - at), to)?;
        to.write_all(&splice.bytes)?;
        at = old.seek(SeekFrom::Start(end))?;
    }
    io::copy(&mut old, to).map(drop)
}

/// Adds the side files that the output needs, patched.
fn add_sides(
    batch: &mut atomic::Batch,
    file: &ModelFile,
    mut changed: HashMap<&Path, Vec<Splice>>,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let folder = out.parent().unwrap_or(Path::new(""));
    let mut inputs = file.side_files();
    inputs.push(&file.path);
    let mut copies: Vec<PathBuf> = vec![];
    let mut seen = BTreeSet::new();
    for site in &file.sites {
        let Encoding::External { location, file: side, .. } = &site.encoding else { continue };
        let (name, copy) = (Path::new(location), folder.join(location));
        if !seen.insert(copy.clone()) {
            continue;
        }
        let mut splices = changed.remove(side.as_path()).unwrap_or_default();
        splices.sort_by_key(|s| s.range.start);
        // Tied weights share their bytes; each change of them is then the same.
        splices.dedup_by(|b, a| a.range == b.range && a.bytes == b.bytes);
        if same_file(&copy, side) && splices.is_empty() {
            batch.show(name, side)?;
            continue;
        }
        if copy == *out || inputs.iter().any(|input| same_file(&copy, input)) {
            let what = format!("{} holds the model's own weights and would be overwritten", copy.display());
            return Err(Error::usage(what)
                .hint("choose an output in another folder: external data is written beside it"));
        }
        refuse_shared(file, side, &splices)?;
        in_order(&mut splices, side)?;
        let old = File::open(side).map_err(|e| Error::io(side, e))?;
        batch.add(name, &copy, |to| copy_spliced(old, &splices, to))?;
        copies.push(copy);
    }
    Ok(copies)
}

/// Refuses to change bytes that an unchanged tensor uses too.
fn refuse_shared(file: &ModelFile, side: &Path, splices: &[Splice]) -> Result<()> {
    for site in &file.sites {
        let Encoding::External { file: of, range, .. } = &site.encoding else { continue };
        let overlaps =
            |s: &&Splice| s.range.start < range.end && range.start < s.range.end && s.range != *range;
        if of == side && splices.iter().any(|s| overlaps(&s)) {
            let what = format!("shares some of its bytes in {} with another tensor", side.display());
            return Err(Error::tensor(&site.name, what));
        }
    }
    Ok(())
}
