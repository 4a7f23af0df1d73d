//! The library's one error type.
//!
//! Every variant carries what a user needs to act: the file, node or tensor concerned, and, where there
//! is one, a hint. The command line maps [`Error::exit_code`] to the process's exit status; nothing else
//! in the library knows about exit codes.

use std::path::{Path, PathBuf};

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do where an input takes something else than numbers.
pub const ONLY_NUMBERS: &str =
    "only what works on numbers can be trained: onnx.utils.extract_model cuts off what comes before";

/// Everything that can go wrong, by what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line or the configuration asks for something that makes no sense.
    #[error("{what}")]
    Usage { what: String },
    /// A model file that can't be read, or that can't be trained.
    #[error("{}: {what}", file.display())]
    Model { file: PathBuf, what: String },
    /// A node of a model that stands in the way. `node` is the name shown by `inspect` and Netron.
    #[error("node '{node}' ({op}): {what}")]
    Node { node: String, op: String, what: String },
    /// A tensor of a model whose contents or description are unusable.
    #[error("tensor '{tensor}': {what}")]
    Tensor { tensor: String, what: String },
    /// A data file that can't be read or doesn't fit the model.
    #[error("{}: {what}", file.display())]
    Data { file: PathBuf, what: String },
    /// Training produced NaN or infinity and can't go on.
    #[error("step {step}: {what}")]
    Diverged { step: usize, what: String },
    /// An executor that isn't there, or that failed.
    #[error("executor {executor}: {what}")]
    Executor { executor: &'static str, what: String },
    /// A device that worked and doesn't any more: taken away, reset by its driver, out of time.
    #[error("executor {executor}: {what}")]
    DeviceLost { executor: &'static str, what: String },
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", file.display())]
    Io { file: PathBuf, source: std::io::Error },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Another error, with the file or step it happened in.
    #[error("{context}: {source}")]
    In { context: String, source: Box<Error> },
    /// Another error, with advice.
    #[error("{source}")]
    Hint { source: Box<Error>, hint: String },
}

impl Error {
    pub fn usage(what: impl Into<String>) -> Self {
        Error::Usage { what: what.into() }
    }
    pub fn model(file: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Model { file: file.as_ref().to_owned(), what: what.into() }
    }
    pub fn data(file: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Data { file: file.as_ref().to_owned(), what: what.into() }
    }
    pub fn tensor(tensor: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Tensor { tensor: tensor.into(), what: what.into() }
    }
    pub fn node(node: &crate::onnx::Node, what: impl Into<String>) -> Self {
        Error::Node { node: node.label(), op: node.qualified_op(), what: what.into() }
    }
    pub fn executor(executor: &'static str, what: impl std::fmt::Display) -> Self {
        Error::Executor { executor, what: what.to_string() }
    }
    pub fn io(file: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { file: file.as_ref().to_owned(), source }
    }

    /// Says where it happened, in front of what happened.
    pub fn context(self, context: impl Into<String>) -> Self {
        Error::In { context: context.into(), source: Box::new(self) }
    }
    /// Adds what to do about it; printed on a line of its own, as `hint: …`.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Error::Hint { source: Box::new(self), hint: hint.into() }
    }
    /// The same where nothing nearer to the cause has said what to do.
    pub fn or_hint(self, hint: impl Into<String>) -> Self {
        if self.hints().is_empty() { self.hint(hint) } else { self }
    }
    /// All hints attached to this error, outermost first.
    pub fn hints(&self) -> Vec<&str> {
        match self {
            Error::Hint { source, hint } => {
                let mut all = vec![hint.as_str()];
                all.extend(source.hints());
                all
            }
            Error::In { source, .. } => source.hints(),
            _ => vec![],
        }
    }
    /// Whether the same work may succeed on another device.
    pub fn is_device_lost(&self) -> bool {
        match self {
            Error::DeviceLost { .. } => true,
            Error::In { source, .. } | Error::Hint { source, .. } => source.is_device_lost(),
            _ => false,
        }
    }
    /// Whether training left what numbers can hold.
    pub fn is_divergence(&self) -> bool {
        match self {
            Error::Diverged { .. } => true,
            Error::In { source, .. } | Error::Hint { source, .. } => source.is_divergence(),
            _ => false,
        }
    }
    /// The exit status a program should end with: 2 usage, 3 input refused, 5 executor, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage { .. } => 2,
            Error::Executor { .. } | Error::DeviceLost { .. } => 5,
            Error::Interrupted => 130,
            Error::In { source, .. } | Error::Hint { source, .. } => source.exit_code(),
            _ => 3,
        }
    }
}

/// Adds context to the error of a `Result`.
pub trait ResultExt<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
    fn hint(self, hint: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.context(context()))
    }
    fn hint(self, hint: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.hint(hint()))
    }
}
