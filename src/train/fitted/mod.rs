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
use crate::params::{InterfaceId, InterfaceKind, InterfaceUse, Layer, Pairing, Role, Weight, outputs};
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
    /// For those of the learner's layers that have a partner: what they learn.
    lessons: HashMap<usize, Lesson>,
}

enum Lesson {
    /// What a view shows.
    Hidden {
        parts: Vec<Part>,
        view: usize,
    },
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
            layers.iter().map(|l| View::new(l.made().clone(), l.made().grid.clone())).collect();
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
        let known = Layer::all(&source.model.graph, &source.facts, &source.params, source.batch);
        let mut views = vec![];
        let mut lessons = HashMap::new();
        for spaces in spaces_of(target, &learner.layers) {
            let source_of = |&id: &InterfaceId| pairing.source_of(id);
            let Some(others) = spaces.iter().map(source_of).collect::<Option<Vec<_>>>() else { continue };
            if spaces.iter().any(|&id| target.params.interface(id).kind != InterfaceKind::Hidden) {
                continue;
            }
            let makers = makers_of(target, &learner.layers, &spaces);
            for (i, other) in partners(&makers, &makers_of(source, &known, &others)) {
                let (ours, theirs) = (learner.layers[i].made(), known[other].made());
                // A grid tells nothing of a single value, nor the reverse.
                let weights = (weight_of(target, &learner.layers[i]), weight_of(source, &known[other]));
                let fits = ours.grid.len() == theirs.grid.len();
                if let Some(parts) = parts(weights.0, weights.1).filter(|_| fits) {
                    lessons.insert(i, Lesson::Hidden { parts, view: views.len() });
                    views.push(View::new(theirs.clone(), ours.grid.clone()));
                }
            }
        }
        let head = learner.layers.iter().position(|l| l.made().value == target.head.answer);
        if let Some(head) = head.filter(|&i| teaches && learner.layers[i].made().grid.is_empty()) {
            lessons.insert(head, Lesson::Answer);
        }
        if !lessons.values().any(|l| matches!(l, Lesson::Hidden { .. })) {
            return Ok(None);
        }
        let guide = Guide::open(source, data, &views.iter().collect::<Vec<_>>(), executor)?;
        Ok(Some(Self { guide, lessons }))
    }
}

fn weight_of<'a>(network: &'a Network, layer: &Layer) -> &'a Weight {
    network.params.weight(layer.weight)
}

/// The interfaces that a layer makes, in the order of its features.
fn made_spaces(network: &Network, layer: &Layer) -> Vec<InterfaceId> {
    outputs(weight_of(network, layer)).iter().map(|part| part.interface).collect()
}

/// What layers make, each once.
fn spaces_of(network: &Network, layers: &[Layer]) -> Vec<Vec<InterfaceId>> {
    let mut all: Vec<Vec<InterfaceId>> = layers.iter().map(|layer| made_spaces(network, layer)).collect();
    all.sort();
    all.dedup();
    all
}

/// Places and kinds of the layers that make just these interfaces.
fn makers_of(network: &Network, layers: &[Layer], spaces: &[InterfaceId]) -> Vec<(usize, Kind)> {
    let makes = |(_, layer): &(usize, &Layer)| made_spaces(network, layer) == spaces;
    let kind = |layer: &Layer| Kind {
        adds: layer.sum.is_some(),
        depthwise: weight_of(network, layer).role == Role::DepthwiseConv,
    };
    layers.iter().enumerate().filter(makes).map(|(i, layer)| (i, kind(layer))).collect()
}

/// A part of a layer's features and the source's features that correspond to it.
struct Part {
    pair: (InterfaceId, InterfaceId),
    ours: InterfaceUse,
    theirs: InterfaceUse,
}

/// The parts of two layers that make paired interfaces; `None` where these lie otherwise.
fn parts(target: &Weight, source: &Weight) -> Option<Vec<Part>> {
    let part = |(ours, theirs): (&InterfaceUse, &InterfaceUse)| {
        let pair = (ours.interface, theirs.interface);
        (ours.positions == theirs.positions).then(|| Part {
            pair,
            ours: ours.clone(),
            theirs: theirs.clone(),
        })
    };
    outputs(target).into_iter().zip(outputs(source)).map(part).collect()
}

impl Part {
    /// Puts the source's feature for each of the target's in its place.
    fn pick(&self, choice: &[usize], features: &mut [usize]) -> Option<()> {
        let feature =
            |u: &InterfaceUse, c: usize, p: usize| u.offset + c * u.channel_stride + p * u.position_stride;
        for c in 0..self.ours.channels {
            let channel = choice.get(self.ours.start + c)?.checked_sub(self.theirs.start)?;
            if channel >= self.theirs.channels {
                return None;
            }
            for p in 0..self.ours.positions {
                *features.get_mut(feature(&self.ours, c, p))? = feature(&self.theirs, channel, p);
            }
        }
        Some(())
    }
}

/// What kind of maker of an interface a layer is.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    /// Whether it adds to what is there already.
    adds: bool,
    depthwise: bool,
}

/// Which source layer each layer of the target learns from, among those that make two paired interfaces. The k-th of its kind
/// learns from the one that is as far along, the last from the last. Where channels are also filtered one by one in only one of
/// the two, there is nothing to learn: a channel can't become another there.
fn partners(ours: &[(usize, Kind)], theirs: &[(usize, Kind)]) -> Vec<(usize, usize)> {
    let filters = |all: &[(usize, Kind)]| all.iter().any(|(_, kind)| kind.depthwise);
    if filters(ours) != filters(theirs) {
        return vec![];
    }
    let mut found = vec![];
    for &(layer, kind) in ours {
        let like = |all: &[(usize, Kind)]| -> Vec<usize> {
            all.iter().filter(|(_, k)| *k == kind).map(|(i, _)| *i).collect()
        };
        let (mine, others) = (like(ours), like(theirs));
        let rank = mine.iter().position(|&i| i == layer).unwrap_or(0);
        let at = ((rank + 1) * others.len() / mine.len().max(1)).max(1) - 1;
        // A chain and a stream: what either leaves last.
        let last = theirs.last().filter(|_| (ours.len(), others.len()) == (1, 0)).map(|(i, _)| *i);
        found.extend(others.get(at).copied().or(last).map(|other| (layer, other)));
    }
    found
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
        let mut sums = normal::Sums::new(view);
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
            Lesson::Hidden { parts, view } => {
                let mut features = vec![0; layer.settled.channels];
                parts.iter().try_for_each(|p| p.pick(self.choices.get(&p.pair)?, &mut features))?;
                Some(picked(seen.get(view + 1)?, &features))
            }
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
    use crate::onnx::{Builder, DType, Dim, Fact, Model};
    use crate::runtime::TractExecutor;
    use std::path::{Path, PathBuf};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
    }

    /// A block as mobile networks have it: a stem, a filter a channel, a projection onto the stream, and a head.
    fn with_a_stream(path: &Path) -> Result<()> {
        let mut b = Builder::new("block");
        let mut count = 0;
        let mut weight = |b: &mut Builder, shape: &[usize], fan_in: usize| {
            count += 1;
            let value = |i: usize| ((i * 7907 + count * 104_729) % 1013) as f32 / 1013.0 - 0.5;
            let scale = 4.0 / (fan_in as f32).sqrt();
            let values: Vec<f32> = (0..shape.iter().product()).map(|i| scale * value(i)).collect();
            b.initializer(&format!("w{count}"), Tensor::f32(shape, &values))
        };
        let x = b.input("image", Fact::new(DType::F32, &[1, 1, 8, 8]));
        let pads = [("pads", vec![1i64; 4].into())];
        let stem = weight(&mut b, &[6, 1, 3, 3], 9);
        let x = b.op_with("Conv", &[&x, &stem], &pads);
        let x = b.op("Relu", &[&x]);
        let expand = weight(&mut b, &[12, 6, 1, 1], 6);
        let y = b.op("Conv", &[&x, &expand]);
        let y = b.op("Relu", &[&y]);
        let filter = weight(&mut b, &[12, 1, 3, 3], 9);
        let y = b.op_with("Conv", &[&y, &filter], &[("pads", vec![1i64; 4].into()), ("group", 12i64.into())]);
        let y = b.op("Relu", &[&y]);
        let project = weight(&mut b, &[6, 12, 1, 1], 12);
        let y = b.op("Conv", &[&y, &project]);
        let x = b.add(&x, &y);
        let x = b.op_with("Flatten", &[&x], &[("axis", 1i64.into())]);
        let head = weight(&mut b, &[384, 10], 384);
        let answer = b.matmul(&x, &head);
        b.output(&answer);
        let (mut graph, _) = b.finish();
        graph.inputs[0].shape = Some([1, 1, 8, 8].map(Dim::Known).to_vec());
        crate::onnx::save(&Model::new(graph, crate::onnx::WORKING_OPSET), path)
    }

    /// Takes a network's matrices away from a copy of it and fits the copy to it: on how many of 200 rows the copy then answers the
    /// same class, before and after. Nothing but least squares, no labels.
    fn regained(path: &Path, layers: usize) -> Result<(usize, usize)> {
        let executor = TractExecutor::new(1)?;
        let folder = tempfile::tempdir().expect("a folder for the copy");
        let blank = folder.path().join("blank.onnx");
        let mut model = crate::onnx::read(path)?.model;
        for (i, tensor) in model.graph.initializers.values_mut().enumerate() {
            if tensor.dtype().is_float() && [2, 4].contains(&tensor.rank()) {
                let noise = |at: usize| ((at + i) * 7919 % 1009) as f32 / 1009.0 - 0.5;
                *tensor = Tensor::f32(tensor.shape(), &(0..tensor.len()).map(noise).collect::<Vec<_>>());
            }
        }
        crate::onnx::save(&model, &blank)?;
        let train = data::open(&fixture("digits_train.npz"), &DataOptions::default())?;
        let all = Data { train: &train, val: None, test: None, unlabelled: None };
        let source = Network::open(path, 32, Some(&train), &executor)?;
        let target = Network::open(&blank, 32, Some(&train), &executor)?;
        let declared: Vec<_> = target.file.model.graph.required_inputs().cloned().collect();
        let examples = Examples::new(all, &declared, 0)?;
        let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
        let mut learner = Learner::open(&target, all, &executor)?;
        let names: Vec<&str> =
            learner.layers.iter().map(|l| target.params.weight(l.weight).name.as_str()).collect();
        assert_eq!(names.len(), layers, "{names:?}");
        let tutor = Tutor::open((&target, &learner), &source, &pairing, true, all, &executor)?;
        let mut tutor = tutor.expect("the same layers correspond");
        assert_eq!(tutor.lessons.len(), layers, "every layer has its partner");
        let channels = |id: InterfaceId| target.params.interface(id).channels;
        let choices = pairing.interfaces.iter().map(|&p| (p, (0..channels(p.0)).collect())).collect();
        let teaching = Teaching { tutor: &mut tutor, weights: None, choices: &choices };
        let trainable = target.trainable(&[])?;
        let fitted = fit(&target, &mut learner, vec![teaching], &trainable, &examples, &executor)?;
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
        Ok((same(&own[0], &wanted[0]), same(&now[0], &wanted[0])))
    }

    #[test]
    fn a_chain_of_layers_gets_back_what_it_has_lost() -> Result<()> {
        let (before, after) = regained(&fixture("digits_small_cnn.onnx"), 4)?;
        assert!(before < 60 && after > 190, "{before}, {after}");
        Ok(())
    }

    #[test]
    fn streams_and_filters_of_single_channels_get_back_what_they_have_lost() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder for the model");
        let path = folder.path().join("block.onnx");
        with_a_stream(&path)?;
        let (before, after) = regained(&path, 5)?;
        assert!(before < 100 && after > 180, "{before}, {after}");
        Ok(())
    }

    #[test]
    fn a_transformer_gets_back_what_it_has_lost() -> Result<()> {
        let (before, after) = regained(&fixture("digits_transformer.onnx"), 10)?;
        assert!(before < 60 && after > 150, "{before}, {after}");
        Ok(())
    }
}
