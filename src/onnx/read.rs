//! Reading a model file: memory map, skeleton, graph.
//!
//! The file is hostile until proven otherwise: what isn't a sound ONNX model is refused in bounded time and
//! memory with an error that says what it is instead. Look at [`read`] and [`ModelFile`].

use super::payload::{Encoding, Site, Store};
use super::{Graph, Model, SiteId, Tensor, ValueId, convert, scan};
use crate::error::{Error, Result};
use memmap2::Mmap;
use onnx_protobuf::{Message, ModelProto};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The oldest operator set whose operators are understood.
const OLDEST_OPSET: i64 = 7;
/// The newest IR version known to be backwards compatible with this reader.
const NEWEST_IR: i64 = 14;

/// A model and the file it came from. The payloads of its tensors stay in the memory-mapped file.
pub struct ModelFile {
    pub path: PathBuf,
    pub model: Model,
    /// Where each tensor lies, by [`SiteId`].
    pub sites: Vec<Site>,
    pub(super) map: Arc<Mmap>,
}

impl ModelFile {
    pub fn site(&self, id: SiteId) -> Option<&Site> {
        self.sites.get(id.0 as usize)
    }
    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
    /// The side files that hold external data, without repetition.
    pub fn side_files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = vec![];
        for site in &self.sites {
            if let Encoding::External { file, .. } = &site.encoding
                && !files.contains(&file.as_path())
            {
                files.push(file);
            }
        }
        files
    }
    /// The ranges of the file that hold no tensor's payload, nor a length that depends on one: what surgery never
    /// changes.
    pub fn frame(&self) -> Vec<Range<usize>> {
        let mut own: Vec<Range<usize>> = self.sites.iter().flat_map(Site::own_bytes).collect();
        own.sort_by_key(|range| range.start);
        let mut frame = vec![];
        let mut at = 0;
        for range in own {
            if range.start > at {
                frame.push(at..range.start);
            }
            at = at.max(range.end);
        }
        if at < self.map.len() {
            frame.push(at..self.map.len());
        }
        frame
    }
    /// Refuses NaN and infinity in real-valued weights.
    pub fn check_finite(&self) -> Result<()> {
        check_finite(&self.model.graph).map_err(|e| e.context(self.path.display().to_string()))
    }
}

/// Reads a model.
///
/// # Errors
/// [`Error::Io`] where the file can't be opened, [`Error::Model`] (or an error about a node or tensor, in the
/// context of the file) for anything that isn't a sound ONNX model of opset 7 or later.
pub fn read(path: impl AsRef<Path>) -> Result<ModelFile> {
    let path = path.as_ref();
    let map = Arc::new(map_file(path)?);
    let (skeleton, cuts) = scan::skeleton(&map).map_err(|malformed| {
        let what = format!(
            "is damaged, cut off, or not an ONNX model ({} at byte {})",
            malformed.what, malformed.at
        );
        unreadable(path, &map, what)
    })?;
    let proto = ModelProto::parse_from_bytes(&skeleton)
        .map_err(|e| unreadable(path, &map, format!("is damaged or not an ONNX model ({e})")))?;
    check_header(path, &map, &proto)?;
    let mut store = Store::new(path, map, cuts);
    let model = convert::model(&proto, &mut store).map_err(|e| {
        e.or_hint("the file is not valid: export it again; onnx.checker.check_model looks for more")
            .context(path.display().to_string())
    })?;
    let sites: Option<Vec<Site>> = store.sites.into_iter().collect();
    let sites = sites.ok_or_else(|| Error::model(path, "describes one tensor several times over"))?;
    Ok(ModelFile { path: path.to_owned(), model, sites, map: store.map })
}

/// Refuses NaN and infinity in the graph's real-valued initializers, naming the tensor and the element. Infinite
/// scalars (bounds) and attention masks of zeros and −∞ are no weights and pass.
pub fn check_finite(graph: &Graph) -> Result<()> {
    let check = |id: &ValueId, tensor: &Tensor| match tensor.first_non_finite() {
        Some(i) if !is_bound_or_mask(tensor) => {
            Err(Error::tensor(id.as_str(), format!("element {i} is NaN or infinite")))
        }
        _ => Ok(()),
    };
    for (id, tensor) in &graph.initializers {
        check(id, tensor)?;
    }
    for node in &graph.nodes {
        if let (true, Some(tensor), Some(id)) = (node.is("Constant"), node.tensor("value"), node.output(0)) {
            check(id, tensor)?;
        }
        node.subgraphs().try_for_each(check_finite)?;
    }
    Ok(())
}

fn is_bound_or_mask(tensor: &Tensor) -> bool {
    tensor.rank() == 0 || tensor.to_f64().iter().all(|&v| v == 0.0 || v == f64::NEG_INFINITY)
}

pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let io = |e| Error::io(path, e);
    let meta = std::fs::metadata(path).map_err(io)?;
    if meta.is_dir() {
        return Err(Error::model(path, "is a folder, not a model file"));
    }
    if !meta.is_file() {
        return Err(Error::model(path, "is not a regular file"));
    }
    if meta.len() == 0 {
        return Err(Error::model(path, "is empty"));
    }
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is only read, and only as plain bytes. Another process that shortens the file meanwhile
    // ends this one with a signal, as with every memory-mapped file; output is never written in place.
    unsafe { Mmap::map(&file) }.map_err(io)
}

/// An error for a file that isn't a model; says what it is if that can be told.
fn unreadable(path: &Path, bytes: &[u8], what: String) -> Error {
    let at = |i: usize, magic: &[u8]| bytes.get(i..).is_some_and(|b| b.starts_with(magic));
    let (what, hint) = if at(4, b"ORTM") {
        ("is in ONNX Runtime's own ORT format", "use the .onnx file that it was converted from")
    } else if at(0, b"version https://git-lfs") {
        ("is a Git LFS pointer, not the model itself", "fetch the model with `git lfs pull`")
    } else if at(0, b"PK\x03\x04") {
        (
            "is a zip archive (a PyTorch checkpoint?)",
            "export the model to ONNX, for example with torch.onnx.export",
        )
    } else if at(4, b"TFL3") {
        ("is a TensorFlow Lite model", "convert it with tf2onnx")
    } else if at(0, b"\x89HDF") {
        ("is an HDF5 file (a Keras model?)", "convert it with tf2onnx")
    } else if at(0, b"\x1f\x8b") {
        ("is compressed with gzip", "unpack it first")
    } else if bytes.iter().all(|b| b.is_ascii()) && bytes.first().is_some_and(|b| b.is_ascii_graphic()) {
        ("is a text file, not an ONNX model", "check the path, or whether a download returned an error page")
    } else {
        return Error::model(path, what);
    };
    Error::model(path, what).hint(hint)
}

fn check_header(path: &Path, bytes: &[u8], proto: &ModelProto) -> Result<()> {
    if proto.graph.is_none() {
        return Err(unreadable(path, bytes, "holds no graph: it is cut off or not an ONNX model".into()));
    }
    if proto.ir_version < 3 {
        let what = format!("has IR version {}; versions 3 to {NEWEST_IR} are understood", proto.ir_version);
        return Err(unreadable(path, bytes, what));
    }
    if proto.ir_version > NEWEST_IR {
        let what =
            format!("has IR version {}, newer than {NEWEST_IR}, the newest understood", proto.ir_version);
        return Err(Error::model(path, what).hint("export the model with an older `ir_version`"));
    }
    if proto.opset_import.is_empty() {
        return Err(Error::model(path, "names no operator set: it is cut off or damaged"));
    }
    // Pipelines of other domains often declare an old default set and use no more of it than these.
    let timeless = |op: &str| matches!(op, "Identity" | "Constant");
    let default = |domain: &str| matches!(domain, "" | "ai.onnx");
    let old = proto.opset_import.iter().find(|o| default(&o.domain) && o.version < OLDEST_OPSET);
    match old {
        Some(set) if proto.graph.node.iter().any(|n| default(&n.domain) && !timeless(&n.op_type)) => {
            let what =
                format!("uses operator set {}; sets from {OLDEST_OPSET} on are understood", set.version);
            Err(Error::model(path, what).hint(
                "raise it with onnx.version_converter.convert_version(model, 13), or export the model again",
            ))
        }
        _ => Ok(()),
    }
}
