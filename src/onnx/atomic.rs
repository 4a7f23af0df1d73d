//! Writing files so that at any moment, whatever happens, either the old or the complete new one is there.

use crate::error::{Error, Result};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Replaces the file at `path` by what `fill` writes: into a temporary file in the same folder, which is synced
/// and then renamed.
///
/// # Errors
/// Whatever `fill` returns, or [`Error::Io`] (no such folder, no permission, disk full). The old file, if there
/// is one, is untouched then, and nothing is left behind.
pub fn replace<T>(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    replace_if(path, fill, |_| Ok(()))
}

/// The same where `check` has nothing against the new file, which it finds complete beside the old one.
///
/// # Errors
/// As [`replace`], or whatever `check` returns.
pub fn replace_if<T>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<T>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<T> {
    let io = |e: std::io::Error| Error::io(path, e);
    // A symbolic link stays, and what it points to is replaced.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match std::fs::metadata(&target) {
        Ok(meta) if meta.is_dir() => return Err(io(std::io::ErrorKind::IsADirectory.into())),
        Ok(meta) if !meta.is_file() => {
            return Err(Error::usage(format!("{} isn't a regular file", path.display())));
        }
        _ => {}
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onnx-merge-").suffix(".tmp");
    let file = builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let done = fill(&mut out)?;
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    permissions(file.as_file(), &target).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    check(file.path())?;
    file.persist(&target).map_err(|e| io(e.error))?;
    // Some file systems can't sync a folder; the rename has happened all the same.
    let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    Ok(done)
}

/// Replaces the file at `path` by `bytes`, see [`replace`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |out| out.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// Gives the temporary file, which only its owner can read, the mode of the file it replaces or of a new file.
#[cfg(unix)]
fn permissions(file: &std::fs::File, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_or(0o644, |meta| meta.permissions().mode() & 0o777);
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn permissions(_: &std::fs::File, _: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"old").unwrap();
        let failed = replace(&path, |out| {
            out.write_all(b"half").map_err(|e| Error::io(&path, e))?;
            Err::<(), _>(Error::Interrupted)
        });
        assert!(failed.is_err());
        let refused = replace_if(
            &path,
            |out| out.write_all(b"bad").map_err(|e| Error::io(&path, e)),
            |new| Err(Error::usage(String::from_utf8(std::fs::read(new).unwrap()).unwrap())),
        );
        assert_eq!(refused.unwrap_err().to_string(), "bad", "what is checked is complete");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
