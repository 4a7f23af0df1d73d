//! Compiled kernels on disk, for the next start of the program.
//!
//! A driver trusts what it is given, so every file carries a checksum: one that is cut off, damaged, or of another device
//! or version counts as none and is replaced. No trouble with files is an error: kernels are compiled then. Look at
//! [`KernelCache`].

use crate::error::{Error, Result};
use crate::onnx::atomic;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What a file begins with; its last byte numbers the format.
const MAGIC: &[u8; 8] = b"OMKERNL\x01";
const HEADER: usize = MAGIC.len() + 32;
const EXTENSION: &str = "kernels";
/// Bytes of a file at most. One that would be larger is removed, so that the next run begins anew with its own kernels.
const LIMIT: usize = 64 << 20;

/// Where the user's programs keep what they can make again: the folder that `ONNX_MERGE_CACHE` names (`None` where it
/// says `off`), else `onnx-merge` in the system's folder for that.
pub fn user_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    if let Some(folder) = variable("ONNX_MERGE_CACHE") {
        return (folder != "off").then(|| folder.into());
    }
    let caches = match std::env::consts::OS {
        "windows" => variable("LOCALAPPDATA").map(PathBuf::from),
        "macos" => std::env::home_dir().map(|home| home.join("Library/Caches")),
        // Relative paths are to be ignored there.
        _ => variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| Some(std::env::home_dir()?.join(".cache"))),
    };
    caches.filter(|path| path.is_absolute()).map(|caches| caches.join("onnx-merge"))
}

/// Bytes of all kernels that are kept in a folder.
pub fn bytes_in(folder: &Path) -> u64 {
    files(folder).filter_map(|path| Some(path.metadata().ok()?.len())).sum()
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
}

/// The kernels that a device has compiled, in this run and earlier ones.
pub struct KernelCache {
    pub pipelines: wgpu::PipelineCache,
    /// Bytes that earlier runs left.
    pub found: usize,
    place: Place,
}

impl KernelCache {
    /// What `folder` keeps for this device; `None` where the driver doesn't give compiled kernels away.
    pub fn open(device: &wgpu::Device, adapter: &wgpu::AdapterInfo, folder: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let place = Place { folder: folder.to_owned(), device: wgpu::util::pipeline_cache_key(adapter)? };
        let data = place.read();
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the data is what `PipelineCache::get_data` gave this version of this program for this kind of device: its
        // checksum, which covers both names, is right. wgpu drops what another version of the driver made.
        let pipelines = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { pipelines, found: data.map_or(0, |data| data.len()), place })
    }
    /// Keeps what is new for later runs.
    pub fn store(&self) {
        // A lost device has none.
        let Some(data) = self.pipelines.get_data() else { return };
        // Drivers only ever add kernels, though perhaps in another order.
        if data.len() != self.found {
            // A folder that can't be written is one without kernels.
            let _ = self.place.write(&data);
        }
    }
}

/// Where a device's kernels are kept.
struct Place {
    folder: PathBuf,
    /// wgpu's name for this kind of device.
    device: String,
}

impl Place {
    fn name(&self) -> String {
        format!("{}-{}.{EXTENSION}", self.device, env!("CARGO_PKG_VERSION"))
    }
    fn path(&self) -> PathBuf {
        self.folder.join(self.name())
    }
    fn read(&self) -> Option<Vec<u8>> {
        let path = self.path();
        let meta = path.metadata().ok()?;
        if !meta.is_file() || meta.len() > LIMIT as u64 {
            return None;
        }
        unseal(&self.name(), std::fs::read(path).ok()?)
    }
    fn write(&self, data: &[u8]) -> Result<()> {
        let path = self.path();
        if HEADER + data.len() > LIMIT {
            return std::fs::remove_file(&path).map_err(|e| Error::io(&path, e));
        }
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        atomic::write(&path, &seal(&self.name(), data))?;
        // Those of other versions of this program.
        let prefix = format!("{}-", self.device);
        let of_device =
            |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix));
        for other in files(&self.folder).filter(|other| *other != path && of_device(other)) {
            let _ = std::fs::remove_file(other);
        }
        Ok(())
    }
}

/// A file's content: header, checksum, data. The checksum covers the file's name, too.
fn seal(name: &str, data: &[u8]) -> Vec<u8> {
    [MAGIC, checksum(name, data).as_slice(), data].concat()
}

/// The data of a file's content, where `seal` made it as it is.
fn unseal(name: &str, mut content: Vec<u8>) -> Option<Vec<u8>> {
    let (header, data) = content.split_at_checked(HEADER)?;
    let sum = header.strip_prefix(MAGIC)?;
    if sum != checksum(name, data) {
        return None;
    }
    Some(content.split_off(HEADER))
}

fn checksum(name: &str, data: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(name).chain_update([0]).chain_update(data).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &[u8] = b"what a driver made of kernels";

    #[test]
    fn only_what_was_written_as_it_is_is_handed_out() {
        let sealed = seal("gpu-1", DATA);
        assert_eq!(unseal("gpu-1", sealed.clone()).as_deref(), Some(DATA));
        assert_eq!(unseal("gpu-1", seal("gpu-1", b"")).as_deref(), Some(&b""[..]));
        assert_eq!(unseal("gpu-2", sealed.clone()), None, "another version or device");
        for length in 0..sealed.len() {
            assert_eq!(unseal("gpu-1", sealed[..length].to_vec()), None, "cut off after {length} bytes");
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal("gpu-1", flipped), None, "bit {bit}");
        }
        assert_eq!(unseal("gpu-1", [&sealed[..], b"\0"].concat()), None, "longer");
        assert_eq!(unseal("gpu-1", DATA.repeat(9)), None, "another program's file");
    }

    #[test]
    fn a_device_has_one_file_that_is_never_too_large() {
        let folder = tempfile::tempdir().unwrap();
        let place = |device: &str| Place { folder: folder.path().join("new"), device: device.into() };
        let (ours, other) = (place("gpu_1"), place("gpu_12"));
        assert_eq!(ours.read(), None);
        other.write(b"other").unwrap();
        let old = ours.folder.join("gpu_1-0.0.1.kernels");
        std::fs::write(&old, b"old").unwrap();
        ours.write(DATA).unwrap();
        assert_eq!(ours.read().as_deref(), Some(DATA));
        assert_eq!(other.read().as_deref(), Some(&b"other"[..]));
        assert!(!old.exists());
        assert_eq!(bytes_in(&ours.folder), (2 * HEADER + DATA.len() + 5) as u64);

        ours.write(&vec![0; LIMIT - HEADER]).unwrap();
        assert!(ours.read().is_some());
        ours.write(&vec![0; LIMIT]).unwrap();
        assert!(!ours.path().exists());
        std::fs::File::create(ours.path()).unwrap().set_len(LIMIT as u64 + 1).unwrap();
        assert_eq!(ours.read(), None);
    }

    #[test]
    fn a_folder_that_cannot_be_is_no_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let place = Place { folder: file, device: "gpu".into() };
        assert!(place.write(DATA).is_err());
        assert_eq!(place.read(), None);
        assert_eq!(bytes_in(&place.folder), 0);
    }
}
