//! Examples as the programs want them: bound to the models' inputs, cut into parts, batched, augmented, and
//! answered by the teacher.

use super::TrainConfig;
use super::metric::{Tally, Truth};
use super::model_step::Objective;
use super::network::Network;
use super::schedule::{Sampler, generator, stream};
use super::session::Split;
use crate::data::{Bound, Dataset, Fill, Labels, Shift, split};
use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor, ValueInfo};
use crate::report::Rows;
use crate::runtime::{Compiled, Executor, Value};

/// All data of a run, bound to the target's inputs.
pub struct Examples {
    train: Part,
    val: Part,
    test: Part,
    /// The same training data, bound to the source's inputs, where it fits them.
    notes: Vec<String>,
}

/// Some rows of a data set.
struct Part {
    bound: Option<Bound>,
    dataset: Option<Dataset>,
    /// Which rows of the data set these are.
    rows: Vec<usize>,
    classes: Vec<i64>,
    vectors: Vec<f32>,
}

impl Part {
    fn new(dataset: Option<&Dataset>, inputs: &[ValueInfo], rows: Option<Vec<usize>>) -> Result<Self> {
        let bound = dataset.map(|d| d.bind(inputs)).transpose()?;
        let all = dataset.map_or(0, Dataset::rows);
        let rows = rows.unwrap_or_else(|| (0..all).collect());
        Ok(Part { bound, dataset: dataset.cloned(), rows, classes: vec![], vectors: vec![] })
    }
    fn labels(&self) -> Option<&Labels> {
        self.dataset.as_ref()?.labels.as_ref()
    }
}

/// Share of the training data that becomes validation data where none was given.
const VALIDATION_SHARE: f64 = 0.2;

impl Examples {
    /// Binds data to `inputs`, the target's as its file declares them. Without `val`, a fifth of the training
    /// rows is set aside for it.
    pub fn new(
        train: &Dataset,
        val: Option<&Dataset>,
        test: Option<&Dataset>,
        inputs: &[ValueInfo],
        seed: u64,
    ) -> Result<Self> {
        let mut notes = vec![];
        let (train_rows, val_rows) = match val {
            Some(_) => (None, None),
            None if train.rows() < 2 => {
                return Err(Error::data(&train.path, "has a single row: too few to train and to validate"));
            }
            None => {
                let parts = split(train.rows(), &[1.0 - VALIDATION_SHARE, VALIDATION_SHARE], seed);
                let mut parts = parts.into_iter();
                (parts.next(), parts.next())
            }
        };
        let train_part = Part::new(Some(train), inputs, train_rows)?;
        let val_part = Part::new(Some(val.unwrap_or(train)), inputs, val_rows)?;
        if val.is_none() {
            notes.push(format!(
                "no --val was given: {} of the {} training rows are kept for validation",
                val_part.rows.len(),
                train.rows()
            ));
        }
        let test_part = Part::new(test, inputs, None)?;
        if let Some(bound) = &train_part.bound {
            notes.extend(bound.notes.iter().cloned());
        }
        Ok(Self { train: train_part, val: val_part, test: test_part, notes })
    }

    fn part(&self, split: Split) -> &Part {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
            Split::Test => &self.test,
        }
    }
    fn parts(&mut self) -> [&mut Part; 3] {
        [&mut self.train, &mut self.val, &mut self.test]
    }
    pub fn rows(&self, split: Split) -> usize {
        self.part(split).rows.len()
    }
    pub fn row_counts(&self) -> Rows {
        Rows { train: self.rows(Split::Train), val: self.rows(Split::Val), test: self.rows(Split::Test) }
    }
    /// What was done to the data, for the user.
    pub fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
    pub fn has_classes(&self) -> bool {
        matches!(self.train.labels(), Some(Labels::Classes(_)))
    }
    pub fn has_labels(&self) -> bool {
        self.train.labels().is_some()
    }

    /// Reads all labels as classes below `count`.
    ///
    /// # Errors
    /// Labels missing from a part, or out of range: the file and the row are named.
    pub fn use_classes(&mut self, count: usize) -> Result<()> {
        for part in self.parts() {
            let Some(dataset) = &part.dataset else { continue };
            part.classes = dataset.expect_labels()?.classes(&dataset.path, count)?;
        }
        Ok(())
    }
    /// Reads all labels as vectors of `width` numbers.
    pub fn use_vectors(&mut self, width: usize) -> Result<()> {
        for part in self.parts() {
            let Some(dataset) = &part.dataset else { continue };
            part.vectors = dataset.expect_labels()?.vectors(&dataset.path, width)?;
        }
        Ok(())
    }

    /// The inputs of some rows of a part (numbers within the part), for `target`'s batch.
    pub fn inputs(&self, split: Split, picked: &[usize], target: &Network) -> Result<Vec<Tensor>> {
        let part = self.part(split);
        let rows: Vec<usize> = picked.iter().map(|&i| part.rows[i]).collect();
        match &part.bound {
            Some(bound) => bound.batch_as(&rows, target.batch, &target.inputs),
            None => Ok(vec![]),
        }
    }

    /// Compares answers for some rows of a part with their labels.
    pub fn tally(&self, split: Split, picked: &[usize], answer: &Tensor, tally: &mut Tally) {
        let part = self.part(split);
        let rows: Vec<usize> = picked.iter().map(|&i| part.rows[i]).collect();
        if part.classes.is_empty() {
            let width = part.vectors.len() / part.dataset.as_ref().map_or(1, Dataset::rows).max(1);
            let wanted = Labels::pick(&part.vectors, width, &rows, rows.len());
            tally.add(answer, &Truth::Vectors(&wanted), rows.len());
        } else {
            let labels = Labels::pick(&part.classes, 1, &rows, rows.len());
            tally.add(answer, &Truth::Classes(&labels), rows.len());
        }
    }

    /// The labels of some rows of the training part, as the objective's program takes them.
    fn label_tensor(&self, objective: Objective, rows: &[usize], batch: usize) -> Option<Tensor> {
        match objective {
            Objective::Classes | Objective::ClassesAndTeacher { .. } => {
                Some(Tensor::i64(&[batch], &Labels::pick(&self.train.classes, 1, rows, batch)))
            }
            Objective::Vectors { width } => {
                let values = Labels::pick(&self.train.vectors, width, rows, batch);
                Some(Tensor::f32(&[batch, width], &values))
            }
            Objective::Teacher { .. } => None,
        }
    }
}

/// The source, answering for the target's data.
pub struct Teacher {
    train: Bound,
    val: Option<Bound>,
    test: Option<Bound>,
    program: Box<dyn Compiled>,
    inputs: Vec<(crate::onnx::ValueId, crate::onnx::Fact)>,
    batch: usize,
    width: usize,
}

/// The data sets of a run.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    pub train: &'a Dataset,
    pub val: Option<&'a Dataset>,
    pub test: Option<&'a Dataset>,
}

impl Teacher {
    /// # Errors
    /// Why this source can't teach this target on this data: inputs that don't fit, answers of another width.
    pub fn open(source: &Network, data: Data<'_>, target: &Network, executor: &dyn Executor) -> Result<Self> {
        if source.head.width != target.head.width {
            return Err(Error::model(
                &source.file.path,
                format!(
                    "answers with {} numbers a row, the target with {}",
                    source.head.width, target.head.width
                ),
            ));
        }
        let declared: Vec<ValueInfo> = source.file.model.graph.required_inputs().cloned().collect();
        let bind = |d: Option<&Dataset>| d.map(|d| d.bind(&declared)).transpose();
        let (model, facts) = source.forward(&[])?;
        Ok(Self {
            train: data.train.bind(&declared)?,
            val: bind(data.val)?,
            test: bind(data.test)?,
            program: executor.compile(&model, &facts)?,
            inputs: source.inputs.clone(),
            batch: source.batch,
            width: source.head.width,
        })
    }

    /// The source's answers to rows of a data set: a tensor of `rows.len()` × width. `shift` moves images first.
    fn answer(&mut self, split: Split, rows: &[usize], shift: Option<Shift>) -> Result<Tensor> {
        let bound = match split {
            Split::Train => &self.train,
            Split::Val => self.val.as_ref().unwrap_or(&self.train),
            Split::Test => self.test.as_ref().unwrap_or(&self.train),
        };
        let mut values: Vec<f32> = Vec::with_capacity(rows.len() * self.width);
        for chunk in rows.chunks(self.batch.max(1)) {
            let batch = bound.batch_as(chunk, self.batch, &self.inputs)?;
            let batch = match shift {
                Some(shift) => bound.shifted(batch, &[shift], Fill::Roll)?,
                None => batch,
            };
            let feeds: Vec<Value> = batch.into_iter().map(Value::host).collect();
            let outputs = self.program.run(&feeds)?;
            let answer = outputs.first().map(Value::to_host).transpose()?;
            let answer = answer.ok_or_else(|| Error::data(bound.path(), "the source gave no answer"))?;
            values.extend(answer.to_f32().iter().take(chunk.len() * self.width));
        }
        Ok(Tensor::f32(&[rows.len(), self.width], &values))
    }

    /// The source's answers to a part's rows, as truth for `match-outputs`.
    pub fn truth(&mut self, examples: &Examples, split: Split, picked: &[usize]) -> Result<Tensor> {
        let rows: Vec<usize> = picked.iter().map(|&i| examples.part(split).rows[i]).collect();
        self.answer(split, &rows, None)
    }
}

/// Feeds of the model step, step by step.
pub struct Batches<'a> {
    examples: &'a Examples,
    target: &'a Network,
    objective: Objective,
    teacher: Option<&'a mut Teacher>,
    sampler: Sampler,
    batch: usize,
    shift: usize,
    seed: u64,
}

impl<'a> Batches<'a> {
    pub fn new(
        examples: &'a Examples,
        target: &'a Network,
        objective: Objective,
        teacher: Option<&'a mut Teacher>,
        config: &TrainConfig,
        seed: u64,
    ) -> Self {
        let images = examples.train.bound.as_ref().is_some_and(Bound::has_images);
        let shift = match config.shift {
            Some(shift) => shift,
            None if images => default_shift(examples),
            None => 0,
        };
        let batch = config.batch.max(1);
        let sampler = Sampler::new(examples.rows(Split::Train), batch, seed);
        Self {
            examples,
            target,
            objective,
            teacher,
            sampler,
            batch,
            shift: if images { shift } else { 0 },
            seed,
        }
    }
    pub fn rows_per_step(&self) -> usize {
        self.batch
    }

    /// The runs of step `step`: each the model's inputs, then labels, then the teacher's answers. One run, or as
    /// many as rows where the model takes single rows.
    pub fn step(&mut self, step: usize) -> Result<Vec<Vec<Value>>> {
        let part = &self.examples.train;
        let rows: Vec<usize> = self.sampler.rows_of(step).into_iter().map(|i| part.rows[i]).collect();
        let Some(bound) = &part.bound else { return Ok(vec![]) };
        let shift = (self.shift > 0).then(|| {
            let mut random = generator(self.seed, stream::AUGMENT, step as u64);
            Shift::draw(self.shift, &mut random)
        });
        let mut runs = vec![];
        for chunk in rows.chunks(self.target.batch.max(1)) {
            let batch = bound.batch_as(chunk, self.target.batch, &self.target.inputs)?;
            let batch = match shift {
                Some(shift) => bound.shifted(batch, &[shift], Fill::Roll)?,
                None => batch,
            };
            let mut feeds: Vec<Value> = batch.into_iter().map(Value::host).collect();
            let labels = self.examples.label_tensor(self.objective, chunk, self.target.batch);
            feeds.extend(labels.map(Value::host));
            if let Some(teacher) = &mut self.teacher {
                let mut padded = chunk.to_vec();
                padded.resize(self.target.batch, chunk[chunk.len() - 1]);
                let answer = teacher.answer(Split::Train, &padded, shift)?;
                debug_assert_eq!(answer.dtype(), DType::F32);
                feeds.push(Value::host(answer));
            }
            runs.push(feeds);
        }
        Ok(runs)
    }
}

/// Below so many training rows, images are shifted unless the user says otherwise.
const FEW_ROWS: usize = 2000;

/// Few images are moved by up to a fourteenth of their side: 2 pixels for 28, none for 8. With thousands of rows
/// shifts cost more than they bring (docs/transfer.md).
fn default_shift(examples: &Examples) -> usize {
    if examples.rows(Split::Train) >= FEW_ROWS {
        return 0;
    }
    let shapes = examples.train.dataset.iter().flat_map(|d| &d.inputs).filter_map(|c| c.image_shape());
    shapes.map(|[_, h, w]| h.min(w) / 14).min().unwrap_or(0)
}
