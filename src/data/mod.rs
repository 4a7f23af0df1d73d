//! Data sets: from files to batches of tensors that fit a model's inputs.
//!
//! Rows keep the element type they are stored in, and uncompressed arrays stay in memory-mapped files; only
//! the rows of a batch are converted. Knows tensors and shapes, nothing of graphs or training. Start with
//! [`open`], [`Dataset`] and [`Bound`].

mod augment;
mod bind;
mod class_labels;
pub mod classes;
mod csv;
mod groups;
mod images;
mod known;
mod labels;
mod layout;
mod made;
mod npy;
mod options;
mod pictures;
mod place;
mod split;
mod testset;
mod words;

pub use augment::{Fill, Shift, shift_images};
pub use bind::{Bound, BoundInput};
pub use class_labels::{Classes, IGNORED};
pub use groups::Groups;
pub use known::Known;
pub use labels::Labels;
pub use layout::{Answer, Layout, Placement};
pub use made::{Made, Usages};
pub use npy::{read_npz, write_npz};
pub use options::{DataOptions, parse_number, parse_numbers, parse_size};
pub use split::{by_class, folds, split};

use crate::error::{Error, Result};
use crate::onnx::Tensor;
use pictures::Pictures;
use std::path::{Path, PathBuf};

/// Rows of inputs, with or without labels.
#[derive(Clone)]
pub struct Dataset {
    /// Where it came from, for messages.
    pub path: PathBuf,
    pub inputs: Vec<Column>,
    pub labels: Option<Labels>,
    /// Names of the classes, where the data have them (image folders, labels that are words).
    pub class_names: Vec<String>,
    /// Which rows belong together, where the options name an array or column of theirs that is there.
    pub groups: Option<Groups>,
    pub options: DataOptions,
    form: Form,
}

/// How inputs find their place in a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// By name, or alone.
    Named,
    /// In the order of the model's inputs, whatever their names.
    Positional,
    /// One input, of pictures: they get as many channels as the model takes.
    Pictures(Pictures),
}

/// One input of every row: a tensor whose first dimension counts rows.
#[derive(Clone)]
pub struct Column {
    pub name: String,
    pub values: Tensor,
}

impl Column {
    /// The shape of one row.
    pub fn row_shape(&self) -> &[usize] {
        self.values.shape().get(1..).unwrap_or(&[])
    }
    /// Channels, height and width, where a row looks like an image in that order (1, 3 or 4 channels, or a
    /// plain matrix of one).
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        image_shape(self.row_shape())
    }
}

/// The same of a row's shape.
fn image_shape(shape: &[usize]) -> Option<[usize; 3]> {
    match *shape {
        [c @ (1 | 3 | 4), h, w] if h >= 8 && w >= 8 => Some([c, h, w]),
        [h, w] if h >= 8 && w >= 8 && h == w => Some([1, h, w]),
        _ => None,
    }
}

/// Opens a data set, whatever its format: `.npz`, `.npy` (alone, as `x.npy,y.npy`, or a folder with both),
/// `.csv`, a folder with one folder of images a class, a folder of ONNX `test_data_set_*`.
///
/// # Errors
/// [`Error::Io`] for files that can't be read, [`Error::Data`] for contents that make no data set.
pub fn open(path: &Path, options: &DataOptions) -> Result<Dataset> {
    let dataset = match Format::of(path)? {
        Format::Npz => npy::open_npz(path, options)?,
        Format::Npy(x, y) => npy::open_pair(&x, y.as_deref(), options)?,
        Format::Csv => csv::open(path, options)?,
        Format::Images => images::open(path, options)?,
        Format::TestSets(folders) => testset::open(path, &folders, options)?,
    };
    dataset.checked()
}

enum Format {
    Npz,
    Npy(PathBuf, Option<PathBuf>),
    Csv,
    Images,
    TestSets(Vec<PathBuf>),
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        if let Some((x, y)) = path.to_str().and_then(|p| p.split_once(',')).filter(|_| !path.exists()) {
            return Ok(Format::Npy(x.trim().into(), Some(y.trim().into())));
        }
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if kind.is_dir() {
            return Self::of_folder(path);
        }
        if kind.len() == 0 {
            return Err(Error::data(path, "the file is empty"));
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        match extension.as_str() {
            "npz" => Ok(Format::Npz),
            "npy" => Ok(Format::Npy(path.to_owned(), None)),
            "csv" | "tsv" => Ok(Format::Csv),
            _ => Err(Error::data(path, "no data format known by this name").hint(FORMATS)),
        }
    }

    fn of_folder(path: &Path) -> Result<Self> {
        if path.join("x.npy").is_file() {
            let y = path.join("y.npy");
            return Ok(Format::Npy(path.join("x.npy"), y.is_file().then_some(y)));
        }
        let mut folders = subfolders(path)?;
        if path.join("input_0.pb").is_file() {
            return Ok(Format::TestSets(vec![path.to_owned()]));
        }
        let is_set = |f: &PathBuf| {
            f.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("test_data_set"))
        };
        match (folders.iter().any(is_set), folders.is_empty()) {
            (true, _) => {
                folders.retain(is_set);
                Ok(Format::TestSets(folders))
            }
            (false, false) => Ok(Format::Images),
            (false, true) => Err(Error::data(path, "this folder holds no data set").hint(FORMATS)),
        }
    }
}

const FORMATS: &str = "data can be FILE.npz (x, y), X.npy,Y.npy, FILE.csv, a folder with one folder of images \
                       a class, or a folder of ONNX test_data_set_* folders";

/// Which options some data have a use for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Uses {
    /// [`DataOptions::size`].
    pub size: bool,
    /// [`DataOptions::label`].
    pub label: bool,
}

impl Uses {
    /// Why there is none for a size.
    pub const NO_SIZE: &str = "only the images of a folder are resized, and there is none";
    /// Why there is none for a label's name.
    pub const NO_LABEL: &str = "labels have a name in .npz and .csv files only, and there is none";

    /// Of all data at `paths`; what can't be opened has any use, until it is opened.
    pub fn of(paths: &[&Path]) -> Self {
        let formats: Vec<Option<Format>> = paths.iter().map(|path| Format::of(path).ok()).collect();
        let any = |uses: fn(&Format) -> bool| formats.iter().any(|f| f.as_ref().is_none_or(uses));
        Self {
            size: any(|format| matches!(format, Format::Images)),
            label: any(|format| matches!(format, Format::Npz | Format::Csv)),
        }
    }
}

/// The folders in a folder, sorted by name (numbers by value).
fn subfolders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut folders = vec![];
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(path, e))?.path();
        if entry.is_dir() {
            folders.push(entry);
        }
    }
    folders.sort_by_cached_key(|f| natural_key(&file_name(f)));
    Ok(folders)
}

/// The last part of a path, as text.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A row's shape, for messages.
pub fn show(shape: &[usize]) -> String {
    match shape {
        [] => "a single number".into(),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×"),
    }
}

/// A key that sorts `set_10` after `set_9`.
pub fn natural_key(name: &str) -> (String, u64, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse().unwrap_or(0);
    (stem.to_owned(), number, name.to_owned())
}

impl Dataset {
    /// A data set from tensors in memory, whose first dimension counts rows.
    pub fn new(inputs: Vec<Column>, labels: Option<Labels>) -> Result<Self> {
        let dataset = Dataset {
            path: PathBuf::from("data"),
            inputs,
            labels,
            class_names: vec![],
            groups: None,
            options: DataOptions::default(),
            form: Form::Named,
        };
        dataset.checked()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.inputs.first().and_then(|c| c.values.shape().first()).copied().unwrap_or(0)
    }

    /// The shape of one row of every input, by the data's own names. Which of them feeds which input of a
    /// model, and in what shape, [`Dataset::bind`] finds out.
    pub fn row_shapes(&self) -> std::collections::HashMap<String, Vec<usize>> {
        self.inputs.iter().map(|c| (c.name.clone(), c.row_shape().to_vec())).collect()
    }

    /// Labels, or an error that says they are missing.
    pub fn expect_labels(&self) -> Result<&Labels> {
        self.labels.as_ref().ok_or_else(|| {
            Error::data(&self.path, "there are no labels")
                .hint("an .npz file holds them in an array named 'y'")
        })
    }

    /// The labels as classes of answers of this layout.
    ///
    /// # Errors
    /// As [`Self::expect_labels`] and [`Labels::classes`].
    pub fn classes(&self, layout: Layout) -> Result<Classes> {
        self.expect_labels()?.classes(&self.path, layout, &self.options)
    }

    /// At least one input and one row, and as many of each input and label.
    fn checked(self) -> Result<Self> {
        let fail = |what: String| Err(Error::data(&self.path, what));
        let Some(first) = self.inputs.first() else {
            return fail("there are no inputs in it".into());
        };
        for column in &self.inputs {
            if column.values.rank() == 0 {
                return fail(format!("'{}' is a single number, not rows", column.name));
            }
            if column.values.shape()[0] != self.rows() {
                let (n, m) = (self.rows(), column.values.shape()[0]);
                return fail(format!("'{}' has {n} rows, but '{}' has {m}", first.name, column.name));
            }
        }
        if self.rows() == 0 {
            return fail("there are no rows in it".into());
        }
        if let Some(labels) = &self.labels
            && labels.rows() != self.rows()
        {
            return fail(format!(
                "there are {} rows of '{}', but {} labels",
                self.rows(),
                first.name,
                labels.rows()
            ));
        }
        if let Some(groups) = &self.groups
            && groups.rows() != self.rows()
        {
            let name = self.options.groups.as_deref().unwrap_or_default();
            let (n, m) = (self.rows(), groups.rows());
            return fail(format!("there are {n} rows of '{}', but {m} of '{name}'", first.name));
        }
        Ok(self)
    }

    /// Without groups these rows aren't refused, whatever the options say.
    pub fn with_or_without_groups(mut self) -> Self {
        if self.groups.is_none() {
            self.options.groups = None;
        }
        self
    }

    /// The groups that the options ask for.
    ///
    /// # Errors
    /// There are none.
    pub fn expect_groups(&self) -> Result<Option<&Groups>> {
        match (&self.options.groups, &self.groups) {
            (None, _) => Ok(None),
            (Some(_), Some(groups)) => Ok(Some(groups)),
            (Some(name), None) => Err(Error::data(&self.path, format!("there is no array or column '{name}' in it"))
                .hint("--groups names an array of an .npz, or a column of a table, that says which rows belong together")),
        }
    }
}

/// Refuses sizes that can't fit into memory, before anything is allocated for them.
fn check_memory(path: &Path, what: &str, bytes: u64) -> Result<()> {
    let limit = crate::memory::available();
    match bytes > limit {
        false => Ok(()),
        true => Err(Error::data(
            path,
            format!("{what} takes {} MiB, but only {} MiB of memory are free", bytes >> 20, limit >> 20),
        )
        .hint("arrays in .npy files and in uncompressed .npz files (numpy.savez) are read from the disk as needed")),
    }
}
