//! A start by least squares: the target's layers, one after the other, are given the weights that bring what they make of
//! their inputs closest to what the paired layers of the source make of the same examples.
//!
//! Wanted of a layer whose interface is paired is the source's value before its nonlinearity, of the channels chosen by
//! [`choice::leading`], on the target's grid; of the head the source's answers, where they are the target's kind; of any other
//! layer behind a fitted one, what the target itself made there before, from its new inputs. No labels are read. The adapter
//! goes on from there (docs/transfer.md).

mod choice;
mod normal;

pub use choice::leading;

use super::align::View;
use super::batches::{Data, Examples};
use super::guide::Guide;
use super::network::Network;
use super::session::Split;
use crate::error::Result;
use crate::onnx::{DType, Tensor, ValueId};
use crate::params::{InterfaceId, InterfaceKind, Layer, Pairing};
use crate::runtime::{Executor, Value};
use std::collections::HashMap;

/// Most rows that are looked at.
const MOST_ROWS: usize = 2048;
/// Most numbers that are kept of what is wanted (a quarter of a gigabyte).
const MOST_NUMBERS: usize = 1 << 26;

/// The layers of a target that can be fitted, and how it runs.
pub struct Learner {
    layers: Vec<Layer>,
    /// Shows what the layers make, with weights as they came.
    own: Guide,
}

/// What a source can show them.
pub struct Tutor {
    guide: Guide,
    /// For each of the learner's layers that is paired: the pair of interfaces, and the view that shows it.
    lessons: HashMap<usize, Lesson>,
}

enum Lesson {
    Hidden { pair: (InterfaceId, InterfaceId), view: usize },
    Answer,
}

/// The source channels that stand for a pair's target channels.
pub type Choices = HashMap<(InterfaceId, InterfaceId), Vec<usize>>;

impl Learner {
    /// # Errors
    /// Where the target can't run on the data.
    pub fn open(target: &Network, data: Data<'_>, executor: &dyn Executor) -> Result<Self> {
        let layers = Layer::all(&target.model.graph, &target.facts, &target.params, target.batch);
        let views: Vec<View> =
            layers.iter().map(|l| View::new(l.settled.clone(), l.settled.grid.clone())).collect();
        let own = Guide::open(target, data, &views.iter().collect::<Vec<_>>(), executor)?;
        Ok(Self { layers, own })
    }
}

impl Tutor {
    /// `None` where no layer of the target corresponds to one of the source.
    ///
    /// # Errors
    /// Where the source can't read the data.
    pub fn open(
        (target, learner): (&Network, &Learner),
        source: &Network,
        pairing: &Pairing,
        teaches: bool,
        data: Data<'_>,
        executor: &dyn Executor,
    ) -> Result<Option<Self>> {
        let theirs = Layer::all(&source.model.graph, &source.facts, &source.params, source.batch);
        let made_by = |layers: &Network, id: InterfaceId, layer: &Layer| {
            layers.params.weight(layer.weight).output_use().is_some_and(|u| u.interface == id)
        };
        let mut views = vec![];
        let mut lessons = HashMap::new();
        for (i, layer) in learner.layers.iter().enumerate() {
            let Some(to) = target.params.weight(layer.weight).output_use().map(|u| u.interface) else {
                continue;
            };
            if target.params.interface(to).kind != InterfaceKind::Hidden {
                if teaches && layer.settled.value == target.head.answer && layer.settled.grid.is_empty() {
                    lessons.insert(i, Lesson::Answer);
                }
                continue;
            }
            let Some(from) = pairing.source_of(to) else { continue };
            let Some(other) = theirs.iter().find(|l| made_by(source, from, l)) else { continue };
            // A grid tells nothing of a single value, nor the reverse.
            if other.settled.grid.len() == layer.settled.grid.len() {
                lessons.insert(i, Lesson::Hidden { pair: (to, from), view: views.len() });
                views.push(View::new(other.settled.clone(), layer.settled.grid.clone()));
            }
        }
        if !lessons.values().any(|l| matches!(l, Lesson::Hidden { .. })) {
            return Ok(None);
        }
        let guide = Guide::open(source, data, &views.iter().collect::<Vec<_>>(), executor)?;
        Ok(Some(Self { guide, lessons }))
    }
}

/// A tutor as an arm has it.
pub struct Teaching<'a> {
    pub tutor: &'a mut Tutor,
    /// Its weights, by name, where they aren't as they came.
    pub weights: Option<HashMap<ValueId, Tensor>>,
    pub choices: &'a Choices,
}

/// Weights of the target to start from, by name: those that were fitted, of `trainable` ones. Where several tutors teach a
/// layer, the first does.
pub fn fit(
    target: &Network,
    learner: &mut Learner,
    mut teachings: Vec<Teaching<'_>>,
    trainable: &[(ValueId, Tensor)],
    examples: &Examples,
    executor: &dyn Executor,
) -> Result<HashMap<ValueId, Tensor>> {
    let numbers: usize = learner.layers.iter().map(|l| l.settled.channels * l.settled.positions()).sum();
    let count = MOST_ROWS.min(MOST_NUMBERS / numbers.max(1)).max(1);
    let rows = Rows::some(examples, count);
    let own = rows.observe(&mut learner.own, None)?;
    let mut seen = vec![];
    for teaching in &mut teachings {
        let weights = teaching.weights.as_ref().map(|w| teaching.tutor.guide.with(w));
        seen.push(rows.observe(&mut teaching.tutor.guide, weights.as_deref())?);
    }
    let mut fitted: HashMap<ValueId, Tensor> = HashMap::new();
    for (i, layer) in learner.layers.iter().enumerate() {
        let lesson = teachings.iter().zip(&seen).find_map(|(t, seen)| t.wanted(i, layer, seen));
        let wanted = match lesson {
            Some(wanted) => wanted,
            None if fitted.is_empty() => continue,
            None => own[i + 1].clone(),
        };
        let weight = target.params.weight(layer.weight);
        let may = |id: &ValueId| trainable.iter().any(|(name, _)| name == id);
        let Some(view) = weight.view.as_ref().filter(|v| v.cols() <= normal::MOST_FEATURES) else { continue };
        if !may(&weight.name) || layer.scale.iter().any(|s| !s.is_normal()) {
            continue;
        }
        let (model, facts) = normal::program(target, layer, view)?;
        let mut program = executor.compile(&model, &facts)?;
        let now = learner.own.with(&fitted);
        let mut sums = normal::Sums::new(view.cols(), view.out);
        for (feeds, wanted, counts) in rows.batches(target, examples, &wanted)? {
            let mut feeds: Vec<Value> = feeds.into_iter().map(Value::host).collect();
            feeds.extend(now.iter().cloned());
            feeds.extend([Value::host(wanted), Value::host(counts)]);
            if let [gram, cross] = &program.run(&feeds)?[..] {
                sums.add(&gram.to_host()?, &cross.to_host()?);
            }
        }
        let bias = layer.bias.as_ref().filter(|id| may(id));
        let fixed = match (&layer.bias, bias) {
            (_, Some(_)) => None,
            (Some(id), None) => target.model.graph.initializers.get(id).map(Tensor::to_f64),
            (None, None) => Some(vec![0.0; view.out]),
        };
        let Some((matrix, offset)) = sums.solve(&layer.scale, &layer.shift, fixed.as_deref()) else {
            continue;
        };
        fitted.insert(weight.name.clone(), view.tensor_of(&matrix, &weight.shape, weight.dtype));
        if let Some((id, old)) = bias.zip(bias.and_then(|id| target.model.graph.initializers.get(id))) {
            fitted.insert(id.clone(), Tensor::from_f64(old.dtype(), old.shape(), &offset));
        }
    }
    Ok(fitted)
}

impl Teaching<'_> {
    /// What is wanted of a layer, rows × channels × positions, where this tutor has something to say.
    fn wanted(&self, index: usize, layer: &Layer, seen: &[Tensor]) -> Option<Tensor> {
        match self.tutor.lessons.get(&index)? {
            Lesson::Answer => {
                let answer = seen.first()?;
                let rows = answer.shape()[0];
                (answer.len() == rows * layer.settled.channels)
                    .then(|| answer.reshaped(&[rows, layer.settled.channels, 1]))
            }
            Lesson::Hidden { pair, view } => Some(picked(seen.get(view + 1)?, self.choices.get(pair)?)),
        }
    }
}

/// Some channels of rows × channels × positions.
fn picked(seen: &Tensor, choice: &[usize]) -> Tensor {
    let &[rows, channels, positions] = seen.shape() else { return seen.clone() };
    let values = seen.to_f32();
    let mut out = Vec::with_capacity(rows * choice.len() * positions);
    for row in values.chunks(channels * positions) {
        choice.iter().for_each(|&c| out.extend_from_slice(&row[c * positions..(c + 1) * positions]));
    }
    Tensor::f32(&[rows, choice.len(), positions], &out)
}

/// The rows that are looked at, by the part of the data they are in.
struct Rows<'a> {
    examples: &'a Examples,
    parts: Vec<(Split, Vec<usize>)>,
}

impl<'a> Rows<'a> {
    fn some(examples: &'a Examples, count: usize) -> Self {
        let mut left = count;
        let mut parts = vec![];
        for split in [Split::Train, Split::Unlabelled] {
            let some = examples.rows(split).min(left);
            left -= some;
            parts.push((split, (0..some).collect()));
        }
        Self { examples, parts }
    }
    /// A guide's answer and views on all rows.
    fn observe(&self, guide: &mut Guide, weights: Option<&[Value]>) -> Result<Vec<Tensor>> {
        let mut all: Vec<(Vec<usize>, Vec<f32>)> = vec![];
        for (split, rows) in self.parts.iter().filter(|(_, rows)| !rows.is_empty()) {
            let places = self.examples.places(*split, rows);
            let seen = guide.observe(*split, &places, None, weights)?;
            all.resize_with(seen.len(), Default::default);
            for ((shape, values), part) in all.iter_mut().zip(&seen) {
                *shape = part.shape()[1..].to_vec();
                values.extend(part.to_f32().iter());
            }
        }
        let tensor = |(shape, values): &(Vec<usize>, Vec<f32>)| {
            let width: usize = shape.iter().product();
            Tensor::f32(&[&[values.len() / width.max(1)], &shape[..]].concat(), values)
        };
        Ok(all.iter().map(tensor).collect())
    }
    /// The target's inputs, what is wanted, and which rows count, batch by batch.
    fn batches(
        &self,
        target: &Network,
        examples: &Examples,
        wanted: &Tensor,
    ) -> Result<Vec<(Vec<Tensor>, Tensor, Tensor)>> {
        let size = target.batch.max(1);
        let width: usize = wanted.shape()[1..].iter().product();
        let values = wanted.to_f32();
        let mut at = 0;
        let mut batches = vec![];
        for (split, rows) in &self.parts {
            for some in rows.chunks(size) {
                let mut part = values[at * width..(at + some.len()) * width].to_vec();
                part.resize(size * width, 0.0);
                let mut counts = vec![1.0; some.len()];
                counts.resize(size, 0.0);
                let shape = [&[size], &wanted.shape()[1..]].concat();
                let feeds = examples.inputs(*split, some, target)?;
                batches.push((feeds, Tensor::f32(&shape, &part), Tensor::f32(&[size], &counts)));
                at += some.len();
            }
        }
        Ok(batches)
    }
}

/// [`leading`] channels of activations, rows × channels × positions.
pub fn choose(seen: &Tensor, count: usize) -> Option<Vec<usize>> {
    let &[_, channels, positions] = seen.shape() else { return None };
    if count >= channels {
        return None;
    }
    let values = seen.cast(DType::F32).to_f32().into_owned();
    let mut gram = vec![vec![0.0; channels]; channels];
    for row in values.chunks(channels * positions) {
        let channel = |c: usize| &row[c * positions..(c + 1) * positions];
        for i in 0..channels {
            for j in 0..=i {
                let product: f32 = channel(i).iter().zip(channel(j)).map(|(a, b)| a * b).sum();
                gram[i][j] += product as f64;
            }
        }
    }
    for i in 0..channels {
        for j in 0..i {
            gram[j][i] = gram[i][j];
        }
    }
    leading(gram, count)
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::data::{self, DataOptions};
    use crate::runtime::TractExecutor;
    use std::path::{Path, PathBuf};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
    }

    /// A network that lost what it knew makes what its source makes once it is fitted to it: nothing but least squares, no
    /// labels.
    #[test]
    fn a_fit_gives_back_what_an_untrained_copy_of_the_source_has_lost() -> Result<()> {
        let executor = TractExecutor::new(1)?;
        let folder = tempfile::tempdir().expect("a folder for the copy");
        let path = fixture("digits_small_cnn.onnx");
        let blank = folder.path().join("blank.onnx");
        let mut model = crate::onnx::read(&path)?.model;
        for (i, tensor) in model.graph.initializers.values_mut().enumerate() {
            if tensor.dtype().is_float() {
                let noise = |at: usize| ((at + i) * 7919 % 1009) as f32 / 1009.0 - 0.5;
                *tensor = Tensor::f32(tensor.shape(), &(0..tensor.len()).map(noise).collect::<Vec<_>>());
            }
        }
        crate::onnx::save(&model, &blank)?;
        let train = data::open(&fixture("digits_train.npz"), &DataOptions::default())?;
        let all = Data { train: &train, val: None, test: None, unlabelled: None };
        let source = Network::open(&path, 32, Some(&train), &executor)?;
        let target = Network::open(&blank, 32, Some(&train), &executor)?;
        let declared: Vec<_> = target.file.model.graph.required_inputs().cloned().collect();
        let examples = Examples::new(all, &declared, 0)?;
        let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
        let mut learner = Learner::open(&target, all, &executor)?;
        assert_eq!(learner.layers.len(), 4, "two convolutions and two linear layers");
        let tutor = Tutor::open((&target, &learner), &source, &pairing, true, all, &executor)?;
        let mut tutor = tutor.expect("the same layers correspond");
        let channels = |id: InterfaceId| target.params.interface(id).channels;
        let choices = pairing.interfaces.iter().map(|&p| (p, (0..channels(p.0)).collect())).collect();
        let teaching = Teaching { tutor: &mut tutor, weights: None, choices: &choices };
        let trainable = target.trainable(&[])?;
        let fitted = fit(&target, &mut learner, vec![teaching], &trainable, &examples, &executor)?;
        assert_eq!(fitted.len(), trainable.len(), "every weight and bias is fitted");
        let rows: Vec<usize> = (0..200).collect();
        let weights = learner.own.with(&fitted);
        let own = learner.own.observe(Split::Train, &rows, None, None)?;
        let now = learner.own.observe(Split::Train, &rows, None, Some(&weights))?;
        let wanted = tutor.guide.observe(Split::Train, &rows, None, None)?;
        let same = |a: &Tensor, b: &Tensor| {
            let best = |t: &Tensor, row: usize| {
                let values = t.to_f32()[row * 10..(row + 1) * 10].to_vec();
                (0..10).max_by(|&i, &j| values[i].total_cmp(&values[j]))
            };
            rows.iter().filter(|&&r| best(a, r) == best(b, r)).count()
        };
        assert!(same(&own[0], &wanted[0]) < 60, "the copy knew it all along");
        assert!(same(&now[0], &wanted[0]) > 190, "{} of 200", same(&now[0], &wanted[0]));
        Ok(())
    }
}
