//! What identifies a run: everything that decides its result, by parts, so that it can be said which of them differ.

use super::MergeRequest;
use super::examples::Data;
use crate::data::{Dataset, Groups, Labels};
use crate::error::{Error, Result};
use crate::onnx::{self, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Of the models, the data and the options of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// What was said, as it is typed.
    options: BTreeMap<String, String>,
    /// Digests of what was read.
    contents: BTreeMap<String, String>,
}

impl Fingerprint {
    /// # Errors
    /// A model's file that can't be read.
    pub fn of(request: &MergeRequest) -> Result<Self> {
        let mut print = Self::default();
        print.note_options("", &request.config)?;
        print.note_options("", &request.data.train.options)?;
        if let Some(theirs) = &request.source_data {
            print.note_options("src-", &theirs.train.options)?;
        }
        for (i, path) in request.models().enumerate() {
            let part = match i {
                0 => "the target".to_owned(),
                _ if i <= request.sources.len() => format!("source {i}"),
                _ => format!("checkpoint {} of the trajectory", i - request.sources.len()),
            };
            print.contents.insert(part, of_model(path)?);
        }
        print.note_data("", request.data.borrow());
        if let Some(joint) = &request.joint_data {
            print.note_options("src-data ", &joint.train.options)?;
            print.note_data("the source's ", joint.borrow());
        }
        Ok(print)
    }

    /// What isn't the same as `then`, for people.
    pub fn differences(&self, then: &Self) -> Vec<String> {
        let keys: BTreeSet<&String> = self.options.keys().chain(then.options.keys()).collect();
        let shown = |value: Option<&String>| value.map_or("not given", String::as_str).to_owned();
        let options = keys.into_iter().filter_map(|key| {
            let (now, then) = (self.options.get(key), then.options.get(key));
            (now != then).then(|| format!("--{key} ({} then, {} now)", shown(then), shown(now)))
        });
        let keys: BTreeSet<&String> = self.contents.keys().chain(then.contents.keys()).collect();
        let contents = keys.into_iter().filter(|key| self.contents.get(*key) != then.contents.get(*key));
        options.chain(contents.cloned()).collect()
    }

    /// Notes every field by its name, those of nested ones too.
    fn note_options(&mut self, prefix: &str, options: &impl Serialize) -> Result<()> {
        let json = serde_json::to_value(options)
            .map_err(|e| Error::usage(format!("this run's options have no JSON form: {e}")))?;
        self.note_fields(prefix, &json);
        Ok(())
    }

    fn note_fields(&mut self, prefix: &str, fields: &Value) {
        for (name, value) in fields.as_object().into_iter().flatten() {
            match value {
                Value::Object(_) => self.note_fields(prefix, value),
                // As if it had been left out.
                Value::Null => {}
                Value::String(text) => {
                    self.options.insert(format!("{prefix}{name}"), text.clone());
                }
                other => {
                    self.options.insert(format!("{prefix}{name}"), other.to_string());
                }
            }
        }
    }

    fn note_data(&mut self, whose: &str, data: Data<'_>) {
        let Data { train, val, test, unlabelled, .. } = data;
        let parts = [
            ("training data", Some(train)),
            ("validation data", val),
            ("test data", test),
            ("rows without labels", unlabelled),
        ];
        for (part, dataset) in parts {
            let Some(dataset) = dataset else { continue };
            self.contents.insert(format!("the inputs of {whose}{part}"), of_inputs(dataset));
            self.contents.insert(format!("the labels of {whose}{part}"), of_labels(dataset));
            if let Some(groups) = &dataset.groups {
                self.contents.insert(format!("the groups of {whose}{part}"), of_groups(groups));
            }
        }
    }
}

fn of_model(path: &Path) -> Result<String> {
    let file = onnx::read(path)?;
    let mut hash = Sha256::new();
    hash.update(file.bytes());
    for side in file.side_files() {
        add_file(&mut hash, side).map_err(|e| Error::io(side, e))?;
    }
    Ok(hex(hash))
}

fn add_file(hash: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    loop {
        let read = reader.fill_buf()?;
        if read.is_empty() {
            return Ok(());
        }
        hash.update(read);
        let count = read.len();
        reader.consume(count);
    }
}

fn of_inputs(dataset: &Dataset) -> String {
    let mut hash = Sha256::new();
    for column in &dataset.inputs {
        add(&mut hash, column.name.as_bytes());
        add_tensor(&mut hash, &column.values);
    }
    hex(hash)
}

fn of_labels(dataset: &Dataset) -> String {
    let mut hash = Sha256::new();
    match &dataset.labels {
        None => {}
        Some(Labels::Classes(classes)) => add_tensor(&mut hash, &Tensor::i64(&[classes.len()], classes)),
        Some(Labels::Vectors(values)) => add_tensor(&mut hash, values),
    }
    dataset.class_names.iter().for_each(|name| add(&mut hash, name.as_bytes()));
    hex(hash)
}

fn of_groups(groups: &Groups) -> String {
    let mut hash = Sha256::new();
    for (name, rows) in groups.each() {
        add(&mut hash, name.as_bytes());
        add(&mut hash, &rows.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<u8>>());
    }
    hex(hash)
}

fn add_tensor(hash: &mut Sha256, tensor: &Tensor) {
    add(hash, format!("{} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
    hash.update(tensor.bytes());
}

/// Bytes that end where they end.
fn add(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
