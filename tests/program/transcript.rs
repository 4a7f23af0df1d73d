//! Tests that read like a terminal: commands after `$`, and what they print.
//!
//! A command's output is its stderr, then its stdout, line by line. In what is expected `...` stands for any
//! number of lines, `[..]` for anything within a line, `[exit N]` at the end for the exit status (0 otherwise).
//! Besides the program there are `exists FILE`, `missing FILE`, `same FILE FILE`, `copy FILE FILE` and `rm FILE`.

use onnx_merge::onnx::{DType, Model, Tensor};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The Python that tests/run sets up, with the packages of tests/requirements.txt; says so where there is none.
pub fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    if !python.exists() {
        eprintln!("skipped: no Python environment in .venv (tests/run makes one)");
        return None;
    }
    Some(python)
}

/// A folder for one test.
pub struct Sandbox(tempfile::TempDir);

impl Sandbox {
    /// An empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// Puts files of the repository's `fixtures` into the folder.
    pub fn fixtures(self, names: &[&str]) -> Self {
        for name in names {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
            std::fs::copy(&from, self.path(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        self
    }
    /// The digits' models and data.
    pub fn digits() -> Self {
        Self::new().fixtures(&[
            "digits_cnn.onnx",
            "digits_mlp.onnx",
            "digits_train100.npz",
            "digits_val.npz",
            "digits_test.npz",
        ])
    }
    pub fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.path(name), bytes).expect("a file");
        self
    }
    pub fn model(self, name: &str, model: &Model) -> Self {
        onnx_merge::onnx::save(model, self.path(name)).expect("a model");
        self
    }
    /// An uncompressed `.npz` of these arrays.
    pub fn npz(self, name: &str, arrays: &[(&str, &Tensor)]) -> Self {
        self.archive(name, arrays.iter().map(|(array, tensor)| (*array, npy(tensor))))
    }
    /// The same of arrays as `.npy`.
    pub fn archive<'a>(self, name: &str, arrays: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Self {
        let file = std::fs::File::create(self.path(name)).expect("a file");
        let stored =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        let mut archive = zip::ZipWriter::new(file);
        for (array, bytes) in arrays {
            archive.start_file(format!("{array}.npy"), stored).expect("an entry");
            std::io::Write::write_all(&mut archive, &bytes).expect("an array");
        }
        archive.finish().expect("an archive");
        self
    }

    /// The program with some arguments, in this folder, without an ONNX Runtime from the environment.
    pub fn program(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-merge"));
        command.args(arguments).current_dir(self.0.path());
        command.env_remove("ORT_DYLIB_PATH").env("NO_COLOR", "1").env("ONNX_MERGE_CACHE", "off");
        command
    }

    /// Types every command of a transcript and compares what is printed.
    pub fn transcript(&self, text: &str) -> &Self {
        let mut lines: VecDeque<&str> = text.lines().map(str::trim).skip_while(|l| l.is_empty()).collect();
        while let Some(line) = lines.pop_front() {
            let Some(command) = line.strip_prefix("$ ") else {
                assert!(line.is_empty(), "not a command: {line}");
                continue;
            };
            let mut expected = vec![];
            while lines.front().is_some_and(|l| !l.starts_with("$ ")) {
                expected.extend(lines.pop_front());
            }
            while expected.last().is_some_and(|l| l.is_empty()) {
                expected.pop();
            }
            self.command(command, &expected);
        }
        self
    }

    fn command(&self, command: &str, expected: &[&str]) {
        let mut words = words(command);
        let variables: Vec<(String, String)> = std::iter::from_fn(|| {
            let (name, value) = words.first()?.split_once('=')?;
            let pair = (name.to_owned(), value.to_owned());
            words.remove(0);
            Some(pair)
        })
        .collect();
        let path = |i: usize| self.path(&words[i]);
        let read = |i: usize| std::fs::read(path(i)).unwrap_or_else(|e| panic!("{command}: {e}"));
        match words[0].as_str() {
            "onnx-merge" => {
                let output = self.program(&words[1..]).envs(variables).output().expect("the program starts");
                compare(command, &output, expected);
            }
            "exists" => assert!(path(1).exists(), "{} is missing", words[1]),
            "missing" => assert!(!path(1).exists(), "{} is there", words[1]),
            "same" => assert!(read(1) == read(2), "{} and {} differ", words[1], words[2]),
            "copy" => drop(std::fs::copy(path(1), path(2)).expect("a copy")),
            "rm" => std::fs::remove_file(path(1)).expect("a file less"),
            other => panic!("no such command: {other}"),
        }
    }
}

/// Words of a command line; single quotes keep spaces together.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

fn compare(command: &str, output: &Output, expected: &[&str]) {
    let (status, expected) = match expected.split_last() {
        Some((last, rest)) if last.starts_with("[exit ") => {
            (last.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number"), rest)
        }
        _ => (0, expected),
    };
    let text = [&output.stderr[..], &output.stdout[..]].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let trimmed: Vec<&str> = lines.iter().copied().filter(|l| !l.is_empty()).collect();
    let code = output.status.code();
    assert!(
        matches(&trimmed, expected) && code == Some(status),
        "\n$ {command}\n{text}[exit {code:?}]\n\nexpected:\n{}\n[exit {status}]\n",
        expected.join("\n")
    );
}

/// Whether lines fit a pattern in which `...` stands for any number of lines.
fn matches(lines: &[&str], pattern: &[&str]) -> bool {
    match (lines, pattern) {
        (_, ["..."]) => true,
        (_, ["...", rest @ ..]) => (0..=lines.len()).any(|i| matches(&lines[i..], rest)),
        ([], []) => true,
        ([line, lines @ ..], [wanted, rest @ ..]) => fits(line, wanted) && matches(lines, rest),
        _ => false,
    }
}

/// Whether a line fits a pattern in which `[..]` stands for anything.
fn fits(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split("[..]");
    let Some(mut rest) = parts.next().and_then(|start| line.strip_prefix(start)) else { return false };
    let parts: Vec<&str> = parts.collect();
    for (i, part) in parts.iter().enumerate() {
        let found = if i + 1 == parts.len() {
            rest.ends_with(part).then(|| rest.len() - part.len())
        } else {
            rest.find(part)
        };
        match found {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// Some rows of a tensor, in this order.
pub fn pick(values: &Tensor, rows: &[usize]) -> Tensor {
    let shape = [&[rows.len()], &values.shape()[1..]].concat();
    let width: usize = shape[1..].iter().product();
    let numbers = values.to_f64();
    let picked: Vec<f64> = rows.iter().flat_map(|row| numbers[row * width..][..width].to_vec()).collect();
    Tensor::from_f64(values.dtype(), &shape, &picked)
}

/// A tensor as `.npy`.
pub fn npy(tensor: &Tensor) -> Vec<u8> {
    let descr = match tensor.dtype() {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        other => panic!("no {other} in tests"),
    };
    npy_of(descr, tensor.shape(), tensor.bytes())
}

/// Words as NumPy's `<U…`.
pub fn npy_words(words: &[&str]) -> Vec<u8> {
    let longest = words.iter().map(|word| word.chars().count()).max().unwrap_or(0);
    let padded = |word: &&str| word.chars().chain(std::iter::repeat('\0')).take(longest).collect::<Vec<_>>();
    let bytes: Vec<u8> = words.iter().flat_map(padded).flat_map(|c| (c as u32).to_le_bytes()).collect();
    npy_of(&format!("<U{longest}"), &[words.len()], &bytes)
}

/// `.npy` of values of the type `descr`.
pub fn npy_of(descr: &str, shape: &[usize], values: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values);
    bytes
}

#[test]
fn patterns_fit_what_they_should() {
    assert!(fits("a 12 b", "a [..] b") && fits("ab", "ab") && fits("abc", "[..]c") && fits("x.x", "[..]x"));
    assert!(!fits("abc", "ab") && !fits("abc", "[..]b"));
    assert!(matches(&["a", "b", "c"], &["a", "...", "c"]) && matches(&[], &["..."]));
    assert!(!matches(&["a", "b"], &["a"]) && !matches(&["a"], &["a", "b"]));
}
