//! Finds ONNX Runtime's shared library on this machine.
//!
//! Looks at names and file headers only; nothing is loaded here, except a library whose name doesn't tell its
//! version (see [`Candidate::probe`]). Look at [`find`] and [`Candidate`].

use crate::error::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};

/// The oldest ONNX Runtime that can be used: the API version that this program asks for (`api-17`).
pub const OLDEST: Version = Version(1, 17, 0);

/// A release of ONNX Runtime.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The first `x.y` or `x.y.z` in `text`.
    pub fn parse(text: &str) -> Option<Self> {
        let start = text.find(|c: char| c.is_ascii_digit())?;
        let mut numbers = text.get(start..)?.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().ok()
        });
        Some(Version(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    }
}

/// A file that may be ONNX Runtime's library.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    pub path: PathBuf,
    /// Where it was found, for people: `"the active virtual environment"`.
    pub origin: &'static str,
    /// From the file's name; `None` where that doesn't tell.
    pub version: Option<Version>,
    /// Why it can't be used.
    pub problem: Option<String>,
}

impl Candidate {
    /// Looks at one file.
    pub fn inspect(path: &Path, origin: &'static str) -> Self {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let version = version_in_name(&path);
        let problem = header_problem(&path).or_else(|| too_old(version));
        Candidate { path, origin, version, problem }
    }
    /// Asks the library itself for its version where its name doesn't tell. This loads it: only after
    /// [`super::silence_telemetry`].
    #[cfg(feature = "ort")]
    pub fn probe(&mut self) {
        if self.version.is_none() && self.problem.is_none() {
            match super::ort::version_of(&self.path) {
                Ok(version) => {
                    self.problem = too_old(Some(version));
                    self.version = Some(version);
                }
                Err(problem) => self.problem = Some(problem),
            }
        }
    }
    /// What is said about it where it was asked for by name but can't be used.
    fn refusal(&self) -> Error {
        let problem = self.problem.as_deref().unwrap_or("it can't be used");
        Error::executor("ort", format!("{} ({}): {problem}", self.path.display(), self.origin)).hint(HINT)
    }
}

/// What to do when there is no usable library.
pub const HINT: &str = "install it with `pip install onnxruntime` in an active virtual environment, or name the \
                        library with --ort-lib FILE; `onnx-merge doctor` lists what was found";

/// What to do about a model that tract can't run.
pub const BEYOND_TRACT: &str = "ONNX Runtime runs more than tract, the built-in executor: install it with `pip install onnxruntime` in \
                                an active virtual environment, or name its library with --ort-lib FILE, and leave out --executor tract";

/// The library to use: the one asked for, or the newest usable one of the first place that has any.
///
/// # Errors
/// [`Error::Executor`] when the one asked for can't be used, or when there is none.
pub fn find(explicit: Option<&Path>) -> Result<Candidate> {
    let mut all = candidates(explicit);
    for candidate in &mut all {
        #[cfg(feature = "ort")]
        candidate.probe();
        if candidate.problem.is_none() {
            return Ok(candidate.clone());
        }
    }
    match all.as_slice() {
        [] => Err(Error::executor("ort", "no ONNX Runtime library was found").hint(HINT)),
        [first, ..] => Err(first.refusal()),
    }
}

/// Every file that may be the library, best first. One asked for by option or by `ORT_DYLIB_PATH` is the only one.
pub fn candidates(explicit: Option<&Path>) -> Vec<Candidate> {
    if let Some(path) = explicit {
        return vec![Candidate::inspect(&library_in(path), "--ort-lib")];
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        return vec![Candidate::inspect(&library_in(Path::new(&path)), "ORT_DYLIB_PATH")];
    }
    let mut all: Vec<Candidate> = vec![];
    for (origin, folders) in places() {
        let files = folders.iter().flat_map(|folder| libraries(folder));
        let mut here: Vec<Candidate> = files.map(|path| Candidate::inspect(&path, origin)).collect();
        here.sort_by_key(|c| (c.problem.is_some(), std::cmp::Reverse(c.version)));
        for candidate in here {
            if !all.iter().any(|c| c.path == candidate.path) {
                all.push(candidate);
            }
        }
    }
    all
}

/// A folder asked for means the library in it.
fn library_in(path: &Path) -> PathBuf {
    let mut inside = libraries(path);
    inside.sort_by_key(|p| version_in_name(p));
    inside.pop().unwrap_or_else(|| path.to_owned())
}

/// Folders to look into, by what they are called, in the order of preference.
fn places() -> Vec<(&'static str, Vec<PathBuf>)> {
    let mut places = vec![];
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    places.push(("beside the program", beside.iter().flat_map(|d| [d.clone(), d.join("lib")]).collect()));
    for (variable, origin) in
        [("VIRTUAL_ENV", "the active virtual environment"), ("CONDA_PREFIX", "the active conda environment")]
    {
        if let Some(prefix) = std::env::var_os(variable).map(PathBuf::from) {
            let mut folders = packages_below(&prefix);
            folders.push(prefix.join("lib"));
            places.push((origin, folders));
        }
    }
    let here = std::env::current_dir().unwrap_or_default();
    let project = here.ancestors().map(|d| d.join(".venv")).find(|d| d.is_dir());
    places.push(("the project's .venv", project.iter().flat_map(|p| packages_below(p)).collect()));
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE")).map(PathBuf::from);
    places.push((
        "the user's Python packages",
        home.iter().flat_map(|h| packages_below(&h.join(".local"))).collect(),
    ));
    let system = ["/usr/local", "/usr", "/opt/homebrew"].map(PathBuf::from);
    places.push(("the system's Python packages", system.iter().flat_map(|p| packages_below(p)).collect()));
    let mut folders: Vec<PathBuf> = system.iter().flat_map(|p| [p.join("lib"), p.join("lib64")]).collect();
    folders.push(Path::new("/usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH)));
    places.push(("the system's libraries", folders));
    places
}

/// `onnxruntime/capi` in every Python's packages below an installation prefix.
fn packages_below(prefix: &Path) -> Vec<PathBuf> {
    let mut bases = vec![prefix.join("Lib")];
    for lib in [prefix.join("lib"), prefix.join("lib64")] {
        let pythons = entries(&lib).into_iter().filter(|p| name_of(p).starts_with("python"));
        let mut pythons: Vec<PathBuf> = pythons.collect();
        pythons.sort_by_key(|p| std::cmp::Reverse(Version::parse(name_of(p))));
        bases.extend(pythons);
    }
    let packages = bases.iter().flat_map(|b| [b.join("site-packages"), b.join("dist-packages")]);
    packages.map(|p| p.join("onnxruntime").join("capi")).filter(|p| p.is_dir()).collect()
}

/// Files in `folder` that are named like the library.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|path| is_library_name(name_of(path)) && path.is_file()).collect()
}

fn is_library_name(name: &str) -> bool {
    match std::env::consts::OS {
        "windows" => name.eq_ignore_ascii_case("onnxruntime.dll"),
        "macos" => name.starts_with("libonnxruntime.") && name.ends_with(".dylib"),
        _ => name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so."),
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// `libonnxruntime.so.1.32.0` and `libonnxruntime.1.32.0.dylib` tell; a single number (`.so.1`) doesn't.
fn version_in_name(path: &Path) -> Option<Version> {
    Version::parse(name_of(path).strip_prefix("libonnxruntime")?)
}

fn too_old(version: Option<Version>) -> Option<String> {
    let version = version.filter(|&v| v < OLDEST)?;
    Some(format!("ONNX Runtime {version} is too old, {} or newer is needed", OLDEST))
}

/// Why the file can't be a library for this machine, seen from its first bytes. Loading a file of which the end is
/// missing kills the process, so that is looked at here too.
fn header_problem(path: &Path) -> Option<String> {
    let (head, length) = match read_head(path) {
        Ok(read) => read,
        Err(error) => return Some(error.to_string()),
    };
    let foreign = |what: &str| Some(format!("it is a library for {what}, this program runs on {}", here()));
    match head.get(..4) {
        Some([0x7f, b'E', b'L', b'F']) if cfg!(target_os = "linux") => elf_problem(&head, length),
        Some([0x7f, b'E', b'L', b'F']) => foreign("Linux"),
        Some([0xcf, 0xfa, 0xed, 0xfe] | [0xca, 0xfe, 0xba, 0xbe]) if cfg!(target_os = "macos") => None,
        Some([0xcf, 0xfa, 0xed, 0xfe] | [0xca, 0xfe, 0xba, 0xbe]) => foreign("macOS"),
        Some([b'M', b'Z', ..]) if cfg!(target_os = "windows") => None,
        Some([b'M', b'Z', ..]) => foreign("Windows"),
        _ => Some("it is not a shared library".into()),
    }
}

fn here() -> String {
    format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)
}

fn read_head(path: &Path) -> std::io::Result<(Vec<u8>, u64)> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut head = vec![];
    file.take(4096).read_to_end(&mut head)?;
    Ok((head, length))
}

/// Checks class, machine and the extent of the loaded segments ("Executable and Linkable Format", System V ABI).
fn elf_problem(head: &[u8], length: u64) -> Option<String> {
    let u16_at = |at: usize| head.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
    let u64_at = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let machine = match (head.get(4), u16_at(18)) {
        (Some(2), Some(62)) => "x86_64",
        (Some(2), Some(183)) => "aarch64",
        (Some(2), Some(243)) => "riscv64",
        _ => "another processor",
    };
    if machine != std::env::consts::ARCH {
        return Some(format!("it is a library for {machine}, this program runs on {}", here()));
    }
    let table = u64_at(32)? as usize;
    let (size, count) = (u16_at(54)? as usize, u16_at(56)? as usize);
    let ends = (0..count).filter_map(|i| {
        let entry = table.checked_add(i.checked_mul(size)?)?;
        u64_at(entry + 8)?.checked_add(u64_at(entry + 32)?)
    });
    match ends.max() {
        Some(end) if end <= length => None,
        _ => Some("the end of the file is missing".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_names_and_compared_as_numbers() {
        let version = |name: &str| version_in_name(Path::new(name));
        assert_eq!(version("/x/libonnxruntime.so.1.32.0"), Some(Version(1, 32, 0)));
        assert_eq!(version("libonnxruntime.1.9.1.dylib"), Some(Version(1, 9, 1)));
        assert_eq!(version("libonnxruntime.so"), None);
        assert_eq!(version("libonnxruntime.so.1"), None);
        assert!(Version(1, 9, 0) < Version(1, 17, 0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_no_library_of_this_machine_is_refused_before_loading() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes)
                .map(|()| Candidate::inspect(&path, "test").problem.unwrap_or_default())
        };
        assert_eq!(file("libonnxruntime.so.1.20.0", b"no")?, "it is not a shared library");
        assert!(file("libonnxruntime.so.1.20.1", b"MZ\0\0")?.contains("Windows"));
        let mut elf = std::fs::read(std::env::current_exe()?)?;
        assert_eq!(file("libonnxruntime.so.1.20.2", &elf)?, "");
        assert!(file("libonnxruntime.so.1.8.2", &elf)?.contains("too old"));
        elf.truncate(5000);
        assert_eq!(file("libonnxruntime.so.1.20.3", &elf)?, "the end of the file is missing");
        elf[18] = 8;
        assert!(file("libonnxruntime.so.1.20.4", &elf)?.contains("another processor"));
        Ok(())
    }

    #[test]
    fn a_missing_file_asked_for_is_named_with_a_hint() {
        let error = find(Some(Path::new("/nowhere/libonnxruntime.so"))).expect_err("it doesn't exist");
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("/nowhere/libonnxruntime.so"), "{error}");
        assert_eq!(error.hints(), [HINT]);
    }
}
