//! Examples as the programs want them: bound to the target's inputs, and cut into parts.

use super::metric::{Tally, Truth};
use super::model_step::Objective;
use super::network::Network;
use super::session::Split;
use crate::data::{
    Answer, Bound, Classes, Dataset, Groups, IGNORED, Known, Labels, Layout, Placement, by_class, classes,
    folds, split,
};
use crate::error::{Error, Result};
use crate::onnx::{DType, Graph, Tensor};
use crate::report::Rows;
use std::collections::{BTreeMap, HashSet};

/// All data of a run, bound to the target's inputs.
pub struct Examples {
    train: Part,
    val: Part,
    test: Part,
    unlabelled: Part,
    /// Of which two training rows each of those is made; empty where it isn't.
    made_of: Vec<[usize; 2]>,
    /// Rows of the training data that aren't trained on for now, but measured.
    held_out: Vec<usize>,
    /// Of all parts.
    class_names: Vec<String>,
    /// Where classes lie in answers, once labels are read as such.
    layout: Layout,
    notes: Vec<String>,
}

/// Some rows of a data set.
pub(super) struct Part {
    pub(super) bound: Option<Bound>,
    dataset: Option<Dataset>,
    /// Which rows of the data set these are.
    rows: Vec<usize>,
    classes: Option<Classes>,
    /// What a label of each class counts in the metric; empty where all count alike.
    weights: Vec<f64>,
    vectors: Vec<f32>,
}

impl Part {
    fn new(dataset: Option<Dataset>, graph: &Graph, rows: Option<Vec<usize>>) -> Result<Self> {
        let bound = dataset.as_ref().map(|d| d.bind_to(graph)).transpose()?;
        let all = dataset.as_ref().map_or(0, Dataset::rows);
        let rows = rows.unwrap_or_else(|| (0..all).collect());
        Ok(Part { bound, dataset, rows, classes: None, weights: vec![], vectors: vec![] })
    }
    fn labels(&self) -> Option<&Labels> {
        self.dataset.as_ref()?.labels.as_ref()
    }
    fn groups(&self) -> Option<&Groups> {
        self.dataset.as_ref()?.groups.as_ref()
    }
    /// Its rows (numbers within the part) of each class, where each row has one label; without those that don't count.
    fn by_class(&self) -> Option<BTreeMap<i64, Vec<usize>>> {
        let classes = self.classes.as_ref()?;
        let mut of_class = by_class(&classes.pick(&self.rows, self.rows.len()));
        of_class.remove(&IGNORED);
        Some(of_class)
    }
    /// Numbers in a row's vector.
    fn width(&self) -> usize {
        self.vectors.len() / self.dataset.as_ref().map_or(1, Dataset::rows).max(1)
    }
}

/// Share of the training data that becomes validation data where none was given.
const VALIDATION_SHARE: f64 = 0.2;

/// More than this share of one class is worth a word.
const MOST_OF_ONE: f64 = 0.75;

/// Some rows of a data set; `None` for all.
type Chosen = Option<Vec<usize>>;

/// Which rows of the training data are for training, and which of the validation data for validation, where that is the same. Groups
/// stay whole.
///
/// # Errors
/// A single row or group, which can't be divided, and groups that aren't there.
pub fn divide(train: &Dataset, val: Option<&Dataset>, seed: u64) -> Result<(Chosen, Chosen)> {
    let groups = train.expect_groups()?;
    if val.is_some() {
        return Ok((None, None));
    }
    if let Some(groups) = groups {
        let parts = groups.split(VALIDATION_SHARE, seed).ok_or_else(|| {
            Error::data(&train.path, "all rows are of one group: none is left to validate with")
                .hint("give rows of other groups by --val, or name another array or column by --groups")
        })?;
        let [ours, theirs] = parts.map(Some);
        return Ok((ours, theirs));
    }
    if train.rows() < 2 {
        return Err(Error::data(&train.path, "has a single row: too few to train and to validate"));
    }
    let mut parts = split(train.rows(), &[1.0 - VALIDATION_SHARE, VALIDATION_SHARE], seed).into_iter();
    Ok((parts.next(), parts.next()))
}

/// A word of warning where rows that are measured are of groups that are trained on.
fn known_groups(train: &Dataset, other: Option<&Dataset>, part: &str) -> Option<String> {
    let (ours, theirs) = train.groups.as_ref().zip(other?.groups.as_ref())?;
    let shared = theirs.shared_with(ours);
    (shared > 0).then(|| {
        format!("{shared} groups of the {part} rows have rows among the training ones: what is measured there says less of new groups")
    })
}

impl Examples {
    /// Binds data to the inputs of `graph`, the target's as its file has it. Without `val`, a fifth of the training
    /// rows is set aside for it.
    pub fn new(data: Data<'_>, graph: &Graph, seed: u64) -> Result<Self> {
        let Data { train, val, test, unlabelled, made_of } = data;
        let labelled: Vec<&Dataset> = [Some(train), val, test].into_iter().flatten().collect();
        let class_names = classes::common(&labelled)?;
        let numbered = |set: &Dataset| set.clone().numbered_as(&class_names);
        let mut notes = vec![];
        let (train_rows, val_rows) = divide(train, val, seed)?;
        let train_part = Part::new(Some(numbered(train)), graph, train_rows)?;
        let val_part = Part::new(Some(numbered(val.unwrap_or(train))), graph, val_rows)?;
        if val.is_none() {
            notes.push(format!(
                "no --val was given: {} of the {} training rows are kept for validation{}",
                val_part.rows.len(),
                train.rows(),
                train.groups.as_ref().map_or(String::new(), |groups| {
                    let all: Vec<usize> = (0..train.rows()).collect();
                    format!(", those of {} of {} groups", groups.count(&val_part.rows), groups.count(&all))
                })
            ));
        }
        notes.extend(known_groups(train, val, "validation"));
        notes.extend(known_groups(train, test, "test"));
        let test_part = Part::new(test.map(numbered), graph, None)?;
        let unlabelled = Part::new(unlabelled.cloned(), graph, None)?;
        if let Some(bound) = &train_part.bound {
            notes.extend(bound.notes.iter().cloned());
        }
        Ok(Self {
            train: train_part,
            val: val_part,
            test: test_part,
            unlabelled,
            made_of: made_of.to_vec(),
            held_out: vec![],
            class_names,
            layout: Layout::default(),
            notes,
        })
    }

    pub(super) fn part(&self, split: Split) -> &Part {
        match split {
            Split::Train | Split::HeldOut => &self.train,
            Split::Val => &self.val,
            Split::Test => &self.test,
            Split::Unlabelled => &self.unlabelled,
        }
    }
    fn parts(&mut self) -> [&mut Part; 3] {
        [&mut self.train, &mut self.val, &mut self.test]
    }
    /// The rows of a part, as numbers within its data set.
    fn chosen(&self, split: Split) -> &[usize] {
        match split {
            Split::HeldOut => &self.held_out,
            split => &self.part(split).rows,
        }
    }
    pub fn rows(&self, split: Split) -> usize {
        self.chosen(split).len()
    }
    /// Some rows of a part, as numbers within its data set.
    pub fn places(&self, split: Split, picked: &[usize]) -> Vec<usize> {
        let chosen = self.chosen(split);
        picked.iter().map(|&i| chosen[i]).collect()
    }

    /// Deals the training part's rows (numbers within the part) out to `count` folds; whole groups where there are such, else classes
    /// evenly, where each row is of one.
    pub fn folds(&self, count: usize) -> Vec<Vec<usize>> {
        let rows = &self.train.rows;
        if let Some(groups) = self.train.groups() {
            return groups.folds(rows, count);
        }
        let classes = self.train.classes.as_ref().filter(|_| !self.labels_have_places());
        folds(&classes.map_or_else(|| vec![0; rows.len()], |classes| classes.pick(rows, rows.len())), count)
    }

    /// Most folds that the training part's rows can be dealt out to.
    pub fn most_folds(&self) -> usize {
        let rows = &self.train.rows;
        self.train.groups().map_or(rows.len(), |groups| groups.count(rows))
    }

    /// A number for each row of a part that is the same within a group, where it has groups.
    pub fn groups(&self, split: Split) -> Option<Vec<usize>> {
        Some(self.part(split).groups()?.of(self.chosen(split)))
    }

    /// Leaves a fold's rows out of training, and the rows that are made of them, until [`Self::take_back`]; whether there are
    /// others left.
    pub fn leave_out(&mut self, fold: &[usize]) -> bool {
        self.held_out = self.places(Split::Train, fold);
        let out: HashSet<usize> = self.held_out.iter().copied().collect();
        self.train.rows.retain(|row| !out.contains(row));
        let had = !self.unlabelled.rows.is_empty();
        let made_of = &self.made_of;
        let apart =
            |made: &usize| made_of.get(*made).is_none_or(|of| of.iter().all(|row| !out.contains(row)));
        self.unlabelled.rows.retain(apart);
        !self.train.rows.is_empty() && (!had || !self.unlabelled.rows.is_empty())
    }
    /// All rows are trained on again.
    pub fn take_back(&mut self) {
        self.train.rows.append(&mut self.held_out);
        self.train.rows.sort_unstable();
        if !self.made_of.is_empty() {
            self.unlabelled.rows = (0..self.made_of.len()).collect();
        }
    }
    pub fn row_counts(&self) -> Rows {
        Rows { train: self.rows(Split::Train), val: self.rows(Split::Val), test: self.rows(Split::Test) }
    }
    /// What was done to the data, and is to be known of them, for the user. Looks all rows through.
    pub fn notes(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(self.copies()).collect()
    }
    /// A word of warning where rows are measured whose very inputs are trained on, one in a hundred at least.
    fn copies(&self) -> Vec<String> {
        let trained = self.train.dataset.as_ref().and_then(|set| Known::of(set, &self.train.rows));
        let note = |(part, name): (&Part, &str)| {
            let (count, all) =
                (trained.as_ref()?.count(part.dataset.as_ref()?, &part.rows)?, part.rows.len());
            (count > 0 && count * 100 >= all).then(|| {
                format!(
                    "{count} of {all} {name} rows have the very inputs of training rows: what is measured there says less of \
                     new ones (--groups keeps copies on one side)"
                )
            })
        };
        [(&self.val, "validation"), (&self.test, "test")].into_iter().filter_map(note).collect()
    }
    /// How the training labels are classes of such answers, where nobody says so; `None` where they aren't.
    pub fn placement(&self, answer: &Answer) -> Option<Placement> {
        let dataset = self.train.dataset.as_ref()?;
        self.train.labels()?.placement(answer, &dataset.options)
    }
    /// The same where they are said to be classes.
    ///
    /// # Errors
    /// No labels, or such as don't correspond to the answers.
    pub fn class_placement(&self, answer: &Answer) -> Result<Placement> {
        let Some(dataset) = &self.train.dataset else {
            return Err(Error::usage("there are no training data"));
        };
        dataset.expect_labels()?.class_placement(&dataset.path, answer, &dataset.options)
    }
    /// Whether the labels are classes of such answers. Who says on which axis these lie says that they are.
    pub fn are_classes(&self, answer: &Answer) -> bool {
        let said = self.train.dataset.as_ref().is_some_and(|dataset| dataset.options.class_axis.is_some());
        said && self.has_labels() || self.placement(answer).is_some()
    }
    /// The parts that labels are read of.
    fn labelled(&self) -> impl Iterator<Item = &Dataset> {
        [&self.train, &self.val, &self.test].into_iter().filter_map(|part| part.dataset.as_ref())
    }
    /// # Errors
    /// A part without labels.
    pub fn expect_labels(&self) -> Result<()> {
        self.labelled().try_for_each(|dataset| dataset.expect_labels().map(|_| ()))
    }
    /// # Errors
    /// What [`Self::use_classes`] of such answers would refuse.
    pub fn check_classes(&self, answer: &Answer) -> Result<()> {
        let layout = self.class_placement(answer)?.layout.told_apart();
        self.labelled().try_for_each(|dataset| dataset.classes(layout).map(|_| ()))
    }
    /// # Errors
    /// What [`Self::use_vectors`] would refuse.
    pub fn check_vectors(&self, width: usize) -> Result<()> {
        self.labelled().try_for_each(|dataset| dataset.expect_labels()?.check_width(&dataset.path, width))
    }

    /// Whether a row has several labels, each at its place: then images can't be moved without them.
    pub fn labels_have_places(&self) -> bool {
        self.layout.positions() > 1
    }
    /// The training data as the target's inputs take them.
    pub fn bound(&self) -> Option<&Bound> {
        self.train.bound.as_ref()
    }
    /// Whether some input of the target is an image.
    pub fn has_images(&self) -> bool {
        self.train.bound.as_ref().is_some_and(Bound::has_images)
    }
    pub fn has_labels(&self) -> bool {
        self.train.labels().is_some()
    }

    /// Reads all labels as classes that lie so in answers; returns whether some of the training data's don't count.
    ///
    /// # Errors
    /// Labels missing from a part, or out of range: the file and the row are named.
    pub fn use_classes(&mut self, layout: Layout) -> Result<bool> {
        self.layout = layout;
        for part in self.parts() {
            let Some(dataset) = &part.dataset else { continue };
            part.classes = Some(dataset.classes(layout)?);
        }
        self.notes.extend(classes::numbering(&self.class_names));
        self.notes.extend(classes::doubt(&self.class_names, layout.classes));
        self.notes.extend(self.places_and_gaps());
        self.notes.extend(self.untaught());
        Ok(self.train.classes.as_ref().is_some_and(Classes::some_ignored))
    }

    /// Counts every class alike from now on, whatever its share of the rows: in what is measured, and in [`Self::balance`].
    ///
    /// # Errors
    /// Rows that aren't of one class each.
    pub fn count_classes_alike(&mut self) -> Result<()> {
        if self.train.classes.is_none() || self.labels_have_places() {
            return Err(Error::usage(
                "--balanced counts classes alike, but these rows aren't of one class each",
            )
            .hint("leave it out; of positions with labels of their own, eval gives the mean IoU"));
        }
        for part in self.parts() {
            let Some(of_class) = part.by_class() else { continue };
            let all: usize = of_class.values().map(Vec::len).sum();
            let share = |rows: &Vec<usize>| all as f64 / (of_class.len() * rows.len()) as f64;
            let last = of_class.keys().next_back().map_or(0, |last| last + 1);
            part.weights = (0..last).map(|class| of_class.get(&class).map_or(0.0, share)).collect();
        }
        Ok(())
    }

    /// The training rows (numbers within the part) of each class, where classes count alike.
    pub fn balance(&self) -> Option<Vec<Vec<usize>>> {
        let of_class = self.train.by_class().filter(|_| !self.train.weights.is_empty())?;
        Some(of_class.into_values().collect())
    }

    /// Says so where classes are so uneven that accuracy hides what becomes of most of them.
    pub fn note_uneven_classes(&mut self) {
        self.notes.extend(self.uneven());
    }

    /// How uneven classes are, where accuracy hides what becomes of most of them.
    fn uneven(&self) -> Option<String> {
        let of_class = self.train.by_class().filter(|_| !self.labels_have_places())?;
        let all: usize = of_class.values().map(Vec::len).sum();
        let (class, count) =
            of_class.iter().map(|(class, rows)| (class, rows.len())).max_by_key(|of| of.1)?;
        (of_class.len() > 1 && count as f64 > MOST_OF_ONE * all as f64).then(|| {
            format!(
                "{count} of {all} training rows are of class {class}: accuracy says little of the others (--balanced counts all \
                 classes alike)"
            )
        })
    }

    /// How many labels there are, where it isn't one a row.
    fn places_and_gaps(&self) -> Option<String> {
        let (classes, positions) = (self.train.classes.as_ref()?, self.layout.positions());
        let counted = classes.counted(&self.train.rows);
        let all = self.train.rows.len() * positions;
        let ignored = self.train.dataset.as_ref().map_or(IGNORED, |dataset| dataset.options.ignored());
        let gaps = (counted < all).then(|| {
            format!("{} of the {all} training labels are {ignored}, which leaves them out", all - counted)
        });
        match (positions, gaps) {
            (1, gaps) => gaps,
            (_, gaps) => {
                let gaps = gaps.map(|gaps| format!("; {gaps}")).unwrap_or_default();
                Some(format!(
                    "each row has {positions} labels: loss and accuracy are means over all of them{gaps}"
                ))
            }
        }
    }

    /// What training does to classes of which it sees no row.
    fn untaught(&self) -> Option<String> {
        let count = self.layout.classes;
        let what = if self.labels_have_places() { "labels" } else { "rows" };
        let taught = self.train.classes.as_ref()?.of(&self.train.rows);
        let missing = count.saturating_sub(taught.len());
        let (all, one) = (taught.len() > 1, taught.first());
        match (missing, all, one) {
            (0, ..) | (_, _, None) => None,
            (_, false, Some(one)) => Some(format!(
                "all training {what} are of class {one}: the target learns to answer nothing else"
            )),
            _ => Some(format!(
                "there are no training {what} of {missing} of the {count} classes that the model tells apart: it may unlearn these"
            )),
        }
    }

    /// Reads all labels as vectors of `width` numbers.
    pub fn use_vectors(&mut self, width: usize) -> Result<()> {
        for part in self.parts() {
            let Some(dataset) = &part.dataset else { continue };
            part.vectors = dataset.expect_labels()?.vectors(&dataset.path, width)?;
        }
        Ok(())
    }

    /// At most `count` training rows (numbers within the part), evenly spread.
    pub fn spread(&self, count: usize) -> Vec<usize> {
        let all = self.rows(Split::Train);
        let count = count.min(all);
        (0..count).map(|i| i * all / count).collect()
    }
    /// The classes of some training rows (numbers within the part) and where they lie in answers, once they were read as such.
    pub fn classes(&self, picked: &[usize]) -> Option<(Vec<i64>, Layout)> {
        let classes = self.train.classes.as_ref()?;
        Some((classes.pick(&self.places(Split::Train, picked), picked.len()), self.layout))
    }

    /// The training rows' labels, where they were read as vectors, row after row.
    pub fn vectors(&self) -> Vec<f32> {
        let part = &self.train;
        Labels::pick(&part.vectors, part.width(), &part.rows, part.rows.len())
    }

    /// The inputs of some rows of a part (numbers within the part), for `target`'s batch.
    pub fn inputs(&self, split: Split, picked: &[usize], target: &Network) -> Result<Vec<Tensor>> {
        let rows = self.places(split, picked);
        match &self.part(split).bound {
            Some(bound) => bound.batch_as(&rows, target.batch, &target.inputs),
            None => Ok(vec![]),
        }
    }

    /// Compares answers for some rows of a part with their labels.
    pub fn tally(&self, split: Split, picked: &[usize], answer: &Tensor, tally: &mut Tally) {
        let (part, rows) = (self.part(split), self.places(split, picked));
        match &part.classes {
            None => {
                let wanted = Labels::pick(&part.vectors, part.width(), &rows, rows.len());
                tally.add(answer, &Truth::Vectors(&wanted), rows.len());
            }
            Some(classes) => {
                let labels = classes.pick(&rows, rows.len());
                tally.add(answer, &Truth::Classes(&labels, self.layout, &part.weights), rows.len());
            }
        }
    }

    /// The labels of some rows of the training part, as the objective's program takes them.
    pub(super) fn label_tensor(&self, objective: Objective, rows: &[usize], batch: usize) -> Option<Tensor> {
        match objective {
            Objective::Classes { layout, .. } | Objective::ClassesAndTeacher { layout, .. } => {
                let mut labels = self.train.classes.as_ref()?.pick(rows, batch);
                if objective.ignores() {
                    // Rows that fill up a run.
                    labels[rows.len() * layout.positions()..].fill(IGNORED);
                }
                Some(Tensor::i64(&layout.label_shape(batch), &labels))
            }
            Objective::Vectors { width } | Objective::VectorsAndTeacher { width, .. } => {
                let values = Labels::pick(&self.train.vectors, width, rows, batch);
                Some(Tensor::f32(&[batch, width], &values))
            }
            Objective::Teacher { .. } | Objective::AlignmentAlone => None,
        }
    }

    /// What each of the `runs` of a rank divides its sum over labels by, so that the mean of its runs and the weighted mean of the ranks
    /// is the mean over all labels of the step's `rows` that count, however they are shared out.
    pub(super) fn divisor(&self, rows: &[usize], runs: usize, weight: f64) -> Tensor {
        let counted = self.train.classes.as_ref().map_or(rows.len(), |classes| classes.counted(rows));
        Tensor::scalar(DType::F32, counted.max(1) as f64 * weight / runs.max(1) as f64)
    }
}

/// The data sets of a run.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    pub train: &'a Dataset,
    pub val: Option<&'a Dataset>,
    pub test: Option<&'a Dataset>,
    pub unlabelled: Option<&'a Dataset>,
    /// As in [`super::DataSets`].
    pub made_of: &'a [[usize; 2]],
}

/// Below so many training rows, images are shifted unless the user says otherwise.
const FEW_ROWS: usize = 2000;

/// Few images are moved by up to a fourteenth of their side: 2 pixels for 28, none for 8. With thousands of rows
/// shifts cost more than they bring (docs/transfer.md).
pub(super) fn default_shift(examples: &Examples) -> usize {
    // A fold that is left out for a while is no reason to train otherwise.
    if examples.rows(Split::Train) + examples.rows(Split::HeldOut) >= FEW_ROWS {
        return 0;
    }
    let shapes = examples.train.dataset.iter().flat_map(|d| &d.inputs).filter_map(|c| c.image_shape());
    shapes.map(|[_, h, w]| h.min(w) / 14).min().unwrap_or(0)
}
