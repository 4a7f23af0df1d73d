//! The sources of a run: their networks, how they pair with the target, and what they can do on the data.

use super::align::{Alignment, Show, alignments, cells};
use super::arms::SourceKind;
use super::examples::{Data, Examples};
use super::fitted::{Teaching, Tutor, Unit, choose, mixtures};
use super::guide::{Guide, can_teach};
use super::loudness::{self, Voice};
use super::network::{Network, Purpose};
use super::ranks::Ranks;
use super::session::Split;
use super::{Event, Observer, Preset, TrainConfig};
use crate::error::{Error, Result};
use crate::lpka::{self, Choices, Mixtures, Origin, Side};
use crate::onnx::{Tensor, ValueId};
use crate::params::{InterfaceId, Pairing, Role, Weight};
use crate::runtime::{Executor, Value};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// A model whose knowledge is wanted.
pub struct Source {
    pub network: Network,
    pub pairing: Pairing,
    /// The same without weights, for arms that carry none.
    pub hints: Pairing,
    /// Runs it on the target's data; `None` where it can't read them.
    pub guide: Option<Guide>,
    pub teaches: bool,
    /// What its answers are before they teach.
    pub voice: Voice,
    pub alignments: Vec<Alignment>,
    /// Its weights at earlier times, the earliest first; it itself comes after the last.
    pub past: Vec<Weights>,
    /// Shows the target's layers what to make, where it can.
    tutor: Option<Tutor>,
    /// Which of its channels, or mixtures of them, stand for the target's, by kind of source and seed.
    choices: HashMap<(SourceKind, u64), (Choices, Mixtures)>,
    /// Standard deviations of the target's activations as it came, one an alignment.
    deviations: Vec<f64>,
}

/// Training rows that tell how loud its answers should be.
const MEASURED: usize = 1000;

/// Weights by name.
pub type Weights = HashMap<ValueId, Tensor>;

/// A source in one arm.
#[derive(Clone, Default)]
pub struct Part {
    /// Its weights as its guide takes them, where they aren't as they came.
    pub weights: Option<Vec<Value>>,
    /// What its activations are multiplied by, one an alignment.
    pub scales: Vec<f64>,
}

impl Source {
    /// Pairs a source with the target and finds out what it can do on the data, and for those of the target's layers that
    /// are to be fitted.
    pub fn open(
        network: Network,
        (target, layers): (&Network, &[Unit]),
        data: Data<'_>,
        config: &TrainConfig,
        executor: &dyn Executor,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let itself = itself(target, &network);
        let mut pairing = match itself && config.map.is_empty() {
            true => Pairing::within(&target.params),
            false => Pairing::automatic(&target.params, &network.params, &config.map)?,
        };
        if !config.adapt.is_empty() {
            pairing.restrict(target.named(&config.adapt, "--adapt")?);
        }
        let structured = config.adapter.preset == Preset::Structured;
        let mut alignments = match config.align > 0.0 && structured {
            true => alignments(target, &network, &pairing),
            false => vec![],
        };
        let views: Vec<&dyn Show> = alignments.iter().map(|a| &a.theirs as &dyn Show).collect();
        let mut note = |why: Error| {
            observer.event(&Event::Note(&format!("the source can't teach by its answers: {why}")));
        };
        let mut teaches = can_teach(&network, target).map_err(&mut note).is_ok();
        let guide = match Guide::open(&network, data, &views, executor) {
            Ok(guide) => {
                for note in guide.notes() {
                    observer.event(&Event::Note(&format!("for the source, {note}")));
                }
                Some(guide)
            }
            Err(why) => {
                if teaches {
                    note(why);
                }
                (teaches, alignments) = (false, vec![]);
                None
            }
        };
        let hints = Pairing { weights: vec![], ..pairing.clone() };
        let mut source = Self {
            network,
            pairing,
            hints,
            guide,
            teaches,
            voice: Voice::Times(1.0),
            alignments,
            past: vec![],
            tutor: None,
            choices: HashMap::new(),
            deviations: vec![],
        };
        if !layers.is_empty() && structured && source.guide.is_some() && !itself {
            let Source { network, pairing, .. } = &source;
            let pairs = (pairing, &cells(&source.alignments));
            source.tutor = Tutor::open((target, layers), network, pairs, teaches, data, executor)?;
        }
        Ok(source)
    }
    /// Whether it can show the target's layers what to make.
    pub fn fits(&self) -> bool {
        self.tutor.is_some()
    }

    /// It as a tutor in an arm.
    pub fn teaching(&mut self, kind: SourceKind, seed: u64) -> Option<Teaching<'_>> {
        let weights = self.side(kind, seed, None).weights;
        let (choices, mixtures) = self.choices.get(&(kind, seed))?;
        Some(Teaching { tutor: self.tutor.as_mut()?, weights, choices, mixtures })
    }

    /// Whether a channel of it stands for every channel of the target's interface, alignment by alignment, in an arm that
    /// starts from a fit.
    pub fn replaces(&self, kind: SourceKind, seed: u64) -> Vec<bool> {
        let choices =
            self.choices.get(&(kind, seed)).filter(|_| self.tutor.as_ref().is_some_and(|t| !t.complete));
        let distinct = |choice: &Vec<usize>| choice.iter().collect::<HashSet<_>>().len() == choice.len();
        let whole =
            |a: &Alignment| choices.and_then(|(c, _)| c.get(&(a.target, a.source))).is_none_or(distinct);
        self.alignments.iter().map(whole).collect()
    }

    /// Chooses which of its channels stand for the target's in an arm, by its activations on `rows` of the training data.
    pub fn choose(
        &mut self,
        target: &Network,
        kind: SourceKind,
        seed: u64,
        rows: &[usize],
        ranks: &Ranks,
    ) -> Result<()> {
        if self.choices.contains_key(&(kind, seed)) {
            return Ok(());
        }
        let weights = self.side(kind, seed, None).weights;
        let Some(guide) = &mut self.guide else { return Ok(()) };
        let other = (kind != SourceKind::Real).then(|| guide.with(&weights));
        let views = guide.sample(rows, other.as_deref())?;
        let mut choices = Choices::new();
        for &(to, from) in &self.pairing.interfaces {
            let seen = self.alignments.iter().position(|a| (a.target, a.source) == (to, from));
            let ours = target.params.interface(to).channels;
            let chosen = seen.and_then(|i| choose(views.get(i)?, ours, directions(target, to)));
            let all = || self.network.params.interface(from).channels;
            let theirs = seen.map_or_else(all, |i| self.alignments[i].channels());
            let chosen = chosen.unwrap_or_else(|| lpka::selection(ours, theirs));
            // The adapter's shape depends on it.
            choices.insert((to, from), ranks.first_numbers(&chosen));
        }
        let mut mixtures = mixtures(target, &self.network, &self.pairing, &weights);
        mixtures.values_mut().for_each(|mixture| mixture.data = ranks.first_floats(&mixture.data));
        self.choices.insert((kind, seed), (choices, mixtures));
        Ok(())
    }

    /// What it answers to training rows (numbers within the part), as it teaches it.
    pub fn answers(&mut self, examples: &Examples, split: Split, picked: &[usize]) -> Result<Option<Tensor>> {
        let Some(guide) = self.guide.as_mut().filter(|_| self.teaches) else { return Ok(None) };
        let answers = guide.answers(split, &examples.places(split, picked), None)?;
        Ok(Some(self.voice.logits(&answers)))
    }

    /// Finds out how loud its answers should be, where labels of classes tell; what was done, in a sentence.
    pub fn tune_loudness(&mut self, examples: &Examples) -> Result<Option<String>> {
        let rows = examples.spread(MEASURED);
        let Some((labels, layout)) = examples.classes(&rows) else { return Ok(None) };
        let Some(answers) = self.answers(examples, Split::Train, &rows)? else { return Ok(None) };
        if !self.network.head.softmax && loudness::are_chances(&answers.to_f32(), layout) {
            self.voice = Voice::Chances;
            return Ok(Some(
                "the source's answers are chances: as a teacher's their logarithms are taken".into(),
            ));
        }
        let Some(factor) = loudness::correction(&answers.to_f32(), &labels, layout) else { return Ok(None) };
        self.voice = Voice::Times(factor);
        Ok(Some(format!(
            "the source's answers aren't logits of the usual scale: as a teacher's they are multiplied by {factor:.3}, with which they \
             explain the training labels best"
        )))
    }

    /// Its choices are made anew, by other rows perhaps.
    pub fn forget(&mut self) {
        self.choices.clear();
    }

    /// Reads the source's weights at earlier times.
    pub fn remember(&mut self, checkpoints: &[PathBuf], executor: &dyn Executor) -> Result<()> {
        let now = self.weights();
        for path in checkpoints {
            let then = Network::open_source(path, self.network.batch, Purpose::default(), executor)?;
            let mut weights = Weights::new();
            for (name, tensor) in &now {
                let found = then.model.graph.initializers.get(name);
                let found = found.filter(|t| t.shape() == tensor.shape()).ok_or_else(|| {
                    Error::model(
                        path,
                        format!("is no checkpoint of the source: it has no weight '{name}' of that shape"),
                    )
                })?;
                weights.insert(name.clone(), found.clone());
            }
            self.past.push(weights);
        }
        Ok(())
    }

    fn weights(&self) -> Weights {
        let of = |name: &ValueId| self.network.model.graph.initializers.get(name).cloned();
        let all = self.network.params.weights.iter();
        all.filter_map(|w| Some((w.name.clone(), of(&w.name)?))).collect()
    }

    /// Its weights in an arm; `moved` are those that are other than they came.
    fn side(&self, kind: SourceKind, seed: u64, moved: Option<&Weights>) -> Side<'_> {
        let mut weights = self.weights();
        weights.extend(moved.into_iter().flatten().map(|(id, t)| (id.clone(), t.clone())));
        let side = Side { graph: &self.network.params, weights };
        match kind {
            SourceKind::Shuffled => lpka::shuffled(&side, seed),
            SourceKind::Untrained => lpka::untrained(&side, seed),
            _ => side,
        }
    }

    /// What the adapter reads of it.
    pub fn origin(&self, kind: SourceKind, seed: u64, moved: Option<&Weights>) -> Origin<'_> {
        let mut origin = Origin::new(self.side(kind, seed, moved), &self.pairing);
        (origin.choices, origin.mixtures) = self.choices.get(&(kind, seed)).cloned().unwrap_or_default();
        origin.cells = cells(&self.alignments);
        origin.aligned = self.alignments.iter().map(|a| (a.target, a.source)).collect();
        origin
    }

    /// It in an arm; `rows` are training rows to measure activations on.
    pub fn part(
        &mut self,
        kind: SourceKind,
        seed: u64,
        moved: Option<&Weights>,
        rows: &[usize],
    ) -> Result<Part> {
        let other = kind != SourceKind::Real || moved.is_some();
        let tensors = other.then(|| self.side(kind, seed, moved).weights);
        let Some(guide) = &mut self.guide else { return Ok(Part::default()) };
        let weights = tensors.map(|tensors| guide.with(&tensors));
        if self.alignments.is_empty() {
            return Ok(Part { weights, scales: vec![] });
        }
        let theirs = guide.deviations(rows, weights.as_deref())?;
        // A dead interface has nothing to say: its activations become zeros, which the loss ignores.
        let scale =
            |(ours, theirs): (&f64, &f64)| Some(ours / theirs).filter(|s| s.is_normal()).unwrap_or(0.0);
        Ok(Part { weights, scales: self.deviations.iter().zip(&theirs).map(scale).collect() })
    }
}

/// Measures how much the target's activations vary as it came, wherever they are aligned with a source's.
pub fn measure_target(
    sources: &mut [Source],
    target: &Network,
    data: Data<'_>,
    rows: &[usize],
    executor: &dyn Executor,
) -> Result<()> {
    let views = sources.iter().flat_map(|s| &s.alignments).map(|a| &a.ours as &dyn Show);
    let views: Vec<&dyn Show> = views.collect();
    if views.is_empty() {
        return Ok(());
    }
    let mut found = Guide::open(target, data, &views, executor)?.deviations(rows, None)?.into_iter();
    for source in sources {
        source.deviations = found.by_ref().take(source.alignments.len()).collect();
    }
    Ok(())
}

/// Parts of an interface that don't mix: a recurrent layer's states in each direction.
fn directions(network: &Network, interface: InterfaceId) -> usize {
    let makers = network.params.interface(interface).producers.iter().map(|&id| network.params.weight(id));
    let views = makers.filter(|w| w.role == Role::Recurrent).filter_map(|w| w.view.as_ref());
    views.map(|view| view.group).max().unwrap_or(1)
}

/// Whether the source is the target itself.
fn itself(target: &Network, source: &Network) -> bool {
    let (ours, theirs) = (&target.model.graph.initializers, &source.model.graph.initializers);
    let same = |w: &Weight| ours.get(&w.name).zip(theirs.get(&w.name)).is_some_and(|(a, b)| a == b);
    target.params.weights.len() == source.params.weights.len() && target.params.weights.iter().all(same)
}
