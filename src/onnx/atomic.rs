//! Writing files so that at any moment, whatever happens, either the old or the complete new one is there.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Replaces the file at `path` by what `fill` writes: into a temporary file in the same folder, which is synced
/// and then renamed.
///
/// # Errors
/// Whatever `fill` returns, or [`Error::Io`] (no such folder, no permission, disk full). The old file, if there
/// is one, is untouched then, and nothing is left behind.
pub fn replace<T>(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let io = |e: std::io::Error| Error::io(path, e);
    let target = destination(path)?;
    let folder = folder_of(&target);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onnx-merge-").suffix(".tmp");
    let file = builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let done = fill(&mut out)?;
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    permissions(file.as_file(), &target).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(&target).map_err(|e| io(e.error))?;
    sync(folder);
    Ok(done)
}

/// Files that are written beside one another in a folder of their own, can be looked at there, and take their places
/// together: all of them, or where that fails none.
///
/// A process that is killed between the first and the last rename, an instant, leaves some of them in place. Look at
/// [`Batch::add`] and [`Batch::commit`].
pub struct Batch {
    folder: TempDir,
    /// Where each file is, and where it goes.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Batch {
    /// A batch whose last file goes to `path`.
    ///
    /// # Errors
    /// No such folder, or no permission to write there.
    pub fn beside(path: &Path) -> Result<Self> {
        let folder = folder_of(path);
        let mut builder = tempfile::Builder::new();
        let made = builder.prefix(".onnx-merge-").suffix(".tmp").tempdir_in(folder);
        Ok(Self { folder: made.map_err(|e| Error::io(folder, e))?, files: vec![] })
    }

    /// Writes a file, known as `name` within the batch, that goes to `path`; returns where it is until then.
    ///
    /// # Errors
    /// [`Error::Io`], also for what `fill` returns.
    pub fn add(
        &mut self,
        name: &Path,
        path: &Path,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<PathBuf> {
        let io = |e: std::io::Error| Error::io(path, e);
        let target = destination(path)?;
        let staged = self.place(name)?;
        let mut file = File::create_new(&staged).map_err(io)?;
        fill(&mut file).map_err(io)?;
        permissions(&file, &target).map_err(io)?;
        file.sync_all().map_err(io)?;
        self.files.push((staged.clone(), target));
        Ok(staged)
    }

    /// Shows a file that is in its place already to those who look at the batch, as `name`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn show(&self, name: &Path, path: &Path) -> Result<()> {
        let staged = self.place(name)?;
        // Not every file system has links.
        std::fs::hard_link(path, &staged)
            .or_else(|_| std::fs::copy(path, &staged).map(drop))
            .map_err(|e| Error::io(path, e))
    }

    fn place(&self, name: &Path) -> Result<PathBuf> {
        let staged = self.folder.path().join(name);
        let folder = folder_of(&staged);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        Ok(staged)
    }

    /// Moves all files to their places, in the order they were added.
    ///
    /// # Errors
    /// [`Error::Io`]; then every place is as it was.
    pub fn commit(self) -> Result<()> {
        let mut moved: Vec<Moved> = vec![];
        for (i, (staged, target)) in self.files.iter().enumerate() {
            let done = Moved::place(staged, target, self.folder.path().join(format!("{i}.old")));
            match done {
                Ok(done) => moved.push(done),
                Err(error) => {
                    moved.into_iter().rev().for_each(Moved::undo);
                    return Err(Error::io(target, error));
                }
            }
        }
        let folders: BTreeSet<&Path> = self.files.iter().map(|(_, target)| folder_of(target)).collect();
        folders.into_iter().for_each(sync);
        Ok(())
    }
}

/// A file that took its place.
struct Moved {
    target: PathBuf,
    /// What was there before.
    old: Option<PathBuf>,
}

impl Moved {
    fn place(staged: &Path, target: &Path, backup: PathBuf) -> std::io::Result<Self> {
        let old = match std::fs::metadata(target) {
            Ok(there) if there.is_file() => {
                // With a link the place is never empty; not every file system has them.
                std::fs::hard_link(target, &backup).or_else(|_| std::fs::rename(target, &backup))?;
                Some(backup)
            }
            Ok(_) => return Err(std::io::ErrorKind::IsADirectory.into()),
            Err(_) => {
                std::fs::create_dir_all(folder_of(target))?;
                None
            }
        };
        let moved = Self { target: target.to_owned(), old };
        match std::fs::rename(staged, target) {
            Ok(()) => Ok(moved),
            Err(error) => {
                if moved.old.is_some() {
                    moved.undo();
                }
                Err(error)
            }
        }
    }

    /// As far as that is possible: it happens after another failure, which is the one to tell.
    fn undo(self) {
        let _ = match &self.old {
            Some(old) => std::fs::rename(old, &self.target),
            None => std::fs::remove_file(&self.target),
        };
    }
}

/// Where a file goes that replaces the one at `path`: a symbolic link stays, and what it points to is replaced.
fn destination(path: &Path) -> Result<PathBuf> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match std::fs::metadata(&target) {
        Ok(meta) if meta.is_dir() => Err(Error::io(path, std::io::ErrorKind::IsADirectory.into())),
        Ok(meta) if !meta.is_file() => Err(Error::usage(format!("{} isn't a regular file", path.display()))),
        _ => Ok(target),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Some file systems can't sync a folder; its files have been renamed all the same.
fn sync(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Replaces the file at `path` by `bytes`, see [`replace`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |out| out.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// Gives the temporary file, which only its owner can read, the mode of the file it replaces or of a new file.
#[cfg(unix)]
fn permissions(file: &File, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_or(0o644, |meta| meta.permissions().mode() & 0o777);
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn permissions(_: &File, _: &Path) -> std::io::Result<()> {
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
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
    /// The files of a folder, with what is in them.
    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let files = entries.filter(|path| path.is_file());
        let mut all: Vec<_> = files.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect();
        all.sort();
        all
    }

    #[test]
    fn files_take_their_places_together_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write(&at("side"), b"old").unwrap();
        write(&at("main"), b"old").unwrap();
        let before = contents(folder.path());
        let fill = |text: &'static [u8]| move |file: &mut File| file.write_all(text);
        let batch = || {
            let mut batch = Batch::beside(&at("main")).unwrap();
            for name in ["side", "another", "main"] {
                let staged = batch.add(Path::new(name), &at(name), fill(b"new")).unwrap();
                assert_eq!(std::fs::read(staged).unwrap(), b"new");
            }
            batch
        };
        // Not committed; then a place that can't be taken, after two that were.
        drop(batch());
        assert_eq!(contents(folder.path()), before);
        let blocked = batch();
        std::fs::remove_file(at("main")).unwrap();
        std::fs::create_dir_all(at("main/full")).unwrap();
        assert!(blocked.commit().is_err());
        std::fs::remove_dir_all(at("main")).unwrap();
        write(&at("main"), b"old").unwrap();
        assert_eq!(contents(folder.path()), before);
        batch().commit().unwrap();
        let new = ["another", "main", "side"].map(|name| (name.to_owned(), b"new".to_vec()));
        assert_eq!(contents(folder.path()), new);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing is left behind");
    }
}
