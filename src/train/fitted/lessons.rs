//! What the layers of a target learn from a source: which of its layers is whose partner, and what is wanted then.

use super::{Unit, mixed};
use crate::error::Result;
use crate::lpka::{Cells, Choices, Mixtures};
use crate::onnx::{Tensor, ValueId};
use crate::params::{
    Cell, InterfaceId, InterfaceKind, InterfaceUse, Matrix, MatrixView, Pairing, Role, Weight, WeightId,
};
use crate::runtime::Executor;
use crate::train::align::{Show, View};
use crate::train::examples::Data;
use crate::train::guide::Guide;
use crate::train::network::Network;
use std::collections::HashMap;

/// What a source can show them.
pub struct Tutor {
    pub(super) guide: Guide,
    /// For those of the target's layers that have a partner: what they learn.
    pub(super) lessons: HashMap<usize, Lesson>,
    tables: Vec<Table>,
    /// Whether it teaches every layer behind the first that it teaches. Where it doesn't, some layer wants what it was given before, and
    /// the target's channels that no channel of the source stands for stay as they are.
    pub(in crate::train) complete: bool,
}

pub(super) enum Lesson {
    /// What a view shows; of a layer that only mixes channels for a filter a channel behind it, what that filter is to make.
    Hidden { parts: Vec<Part>, view: usize, filter: Option<usize> },
    /// The source's answer to a row.
    Answer,
    /// Its answer at every position, as a view shows it.
    Answers { view: usize },
}

impl Tutor {
    /// `None` where no layer of the target corresponds to one of the source.
    ///
    /// # Errors
    /// Where the source can't read the data.
    pub fn open(
        (target, layers): (&Network, &[Unit]),
        source: &Network,
        (pairing, cells): (&Pairing, &Cells),
        teaches: bool,
        data: Data<'_>,
        executor: &dyn Executor,
    ) -> Result<Option<Self>> {
        let known = Unit::all(source);
        let mut views: Vec<Box<dyn Show>> = vec![];
        let mut lessons = HashMap::new();
        for spaces in spaces_of(target, layers) {
            let source_of = |&id: &InterfaceId| pairing.source_of(id);
            let Some(others) = spaces.iter().map(source_of).collect::<Option<Vec<_>>>() else { continue };
            if spaces.iter().any(|&id| target.params.interface(id).kind != InterfaceKind::Hidden) {
                continue;
            }
            let makers = makers_of(target, layers, &spaces);
            for Partner { layer, filter, other } in partners(&makers, &makers_of(source, &known, &others)) {
                let shown = &layers[filter.unwrap_or(layer)];
                if filter.is_some() && !mixed::are(target, &layers[layer], shown) {
                    continue;
                }
                if let Some((parts, view)) = lesson((target, shown), (source, &known[other]), cells) {
                    lessons.insert(layer, Lesson::Hidden { parts, view: views.len(), filter });
                    views.push(view);
                }
            }
        }
        let head = |network: &Network, units: &[Unit]| units.iter().position(|unit| answers(network, unit));
        if let Some(at) = head(target, layers).filter(|_| teaches) {
            let lesson = match (layers[at].grid().is_empty(), head(source, &known)) {
                (true, _) => Some(Lesson::Answer),
                (false, Some(other)) if layers[at].shown() == known[other].shown() => {
                    views.push(Box::new(known[other].clone()));
                    Some(Lesson::Answers { view: views.len() - 1 })
                }
                _ => None,
            };
            lessons.extend(lesson.map(|lesson| (at, lesson)));
        }
        lessons.retain(|&i, _| layers[i].weights().iter().all(|&id| pairing.allows(id)));
        if !lessons.values().any(|l| matches!(l, Lesson::Hidden { .. })) {
            return Ok(None);
        }
        let guide =
            Guide::open(source, data, &views.iter().map(|view| &**view).collect::<Vec<_>>(), executor)?;
        let first = lessons.keys().min().copied().unwrap_or(0);
        let complete = (first..layers.len()).all(|i| lessons.contains_key(&i));
        Ok(Some(Self { guide, lessons, tables: tables(target, source, pairing), complete }))
    }
}

/// Whether a network's answer is what this unit makes.
fn answers(network: &Network, unit: &Unit) -> bool {
    unit.layer().is_some_and(|layer| layer.made().value == network.head.answer)
}

fn weight_of<'a>(network: &'a Network, layer: &Unit) -> &'a Weight {
    network.params.weight(layer.weight())
}

/// What a layer learns from one of the source's, and where that shows; `None` where there is nothing in it for it.
fn lesson(
    (target, ours): (&Network, &Unit),
    (source, theirs): (&Network, &Unit),
    cells: &Cells,
) -> Option<(Vec<Part>, Box<dyn Show>)> {
    match (ours, theirs) {
        (Unit::Layer(our), Unit::Layer(their)) => {
            let grid = &our.made().grid;
            let mut parts = parts(&weight_of(target, ours).output, &weight_of(source, theirs).output)?;
            // Not the other way: a transformer that learnt its hidden layers from convolutions lost two points (docs/transfer-tried.md).
            let their = their.made().clone().folded(grid);
            let view = match parts.as_mut_slice() {
                _ if grid.len() == their.grid.len() => View::new(their, grid.clone()),
                // A single value learns from one of a grid's cells; a grid from no single value.
                [part] if grid.is_empty() => {
                    let cells = cells.get(&part.pair)?;
                    part.cells = cells.iter().product();
                    View::of_cells(their, cells.clone())
                }
                _ => return None,
            };
            Some((parts, Box::new(view) as Box<dyn Show>))
        }
        (Unit::Cell(our), Unit::Cell(their)) if our.is_like(their) => {
            let parts = parts_of_cells((target, our), (source, their))?;
            Some((parts, Box::new(Unit::Cell(their.clone()))))
        }
        _ => None,
    }
}

/// The same for what [`Cell::emit`] shows: twice the gates, and once or twice the states.
fn parts_of_cells(
    (target, ours): (&Network, &Cell),
    (source, theirs): (&Network, &Cell),
) -> Option<Vec<Part>> {
    let gates =
        parts(&target.params.weight(ours.inputs).output, &source.params.weight(theirs.inputs).output)?;
    let states =
        parts(&target.params.weight(ours.recurrence).input, &source.params.weight(theirs.recurrence).input)?;
    let mut all = vec![];
    for sums in 0..2 {
        all.extend(gates.iter().map(|part| part.moved([sums * ours.sums(), sums * theirs.sums()])));
    }
    for more in 0..=usize::from(ours.resets_before()) {
        let offset = |cell: &Cell| 2 * cell.sums() + more * cell.directions * cell.hidden;
        all.extend(states.iter().map(|part| part.moved([offset(ours), offset(theirs)])));
    }
    Some(all)
}

/// The interfaces that a layer makes, in the order of its features.
fn made_spaces(network: &Network, layer: &Unit) -> Vec<InterfaceId> {
    InterfaceUse::in_order(&weight_of(network, layer).output).iter().map(|part| part.interface).collect()
}

/// What layers make, each once.
fn spaces_of(network: &Network, layers: &[Unit]) -> Vec<Vec<InterfaceId>> {
    let mut all: Vec<Vec<InterfaceId>> = layers.iter().map(|layer| made_spaces(network, layer)).collect();
    all.sort();
    all.dedup();
    all
}

/// Places and kinds of the layers that make just these interfaces.
fn makers_of(network: &Network, layers: &[Unit], spaces: &[InterfaceId]) -> Vec<(usize, Kind)> {
    let makes = |(_, layer): &(usize, &Unit)| made_spaces(network, layer) == spaces;
    let kind = |layer: &Unit| Kind {
        adds: layer.layer().is_some_and(|layer| layer.sum.is_some()),
        depthwise: weight_of(network, layer).role == Role::DepthwiseConv,
        recurrent: layer.layer().is_none(),
    };
    layers.iter().enumerate().filter(makes).map(|(i, layer)| (i, kind(layer))).collect()
}

/// A part of a layer's features and the source's features that correspond to it.
pub(super) struct Part {
    pair: (InterfaceId, InterfaceId),
    ours: InterfaceUse,
    theirs: InterfaceUse,
    /// How many cells of each of the source's features count as one of their own.
    cells: usize,
}

/// The parts of the sides of two weights that lie in paired interfaces; `None` where these lie otherwise.
fn parts(target: &[InterfaceUse], source: &[InterfaceUse]) -> Option<Vec<Part>> {
    let part = |(ours, theirs): (&InterfaceUse, &InterfaceUse)| {
        let pair = (ours.interface, theirs.interface);
        (ours.positions == theirs.positions).then(|| Part {
            pair,
            ours: ours.clone(),
            theirs: theirs.clone(),
            cells: 1,
        })
    };
    let (ours, theirs) = (InterfaceUse::in_order(target), InterfaceUse::in_order(source));
    ours.into_iter().zip(theirs).map(part).collect()
}

impl Part {
    /// The same further back, in the target and in the source.
    fn moved(&self, [ours, theirs]: [usize; 2]) -> Self {
        let by = |part: &InterfaceUse, by| InterfaceUse { offset: part.offset + by, ..part.clone() };
        Self { ours: by(&self.ours, ours), theirs: by(&self.theirs, theirs), ..*self }
    }

    /// Puts the source's feature for each of the target's in its place; with `once`, none where the source's channel stands for
    /// another of the target's already.
    fn pick(&self, choice: &[usize], once: bool, features: &mut [Option<usize>]) -> Option<()> {
        for c in 0..self.ours.channels {
            let at = self.ours.start + c;
            let (channel, cell) = (choice.get(at)? / self.cells, choice[at] % self.cells);
            let channel = channel.checked_sub(self.theirs.start)?;
            if channel >= self.theirs.channels {
                return None;
            }
            let again = once && choice[..at].contains(&choice[at]);
            for p in 0..self.ours.positions {
                *features.get_mut(self.ours.feature(c, p))? =
                    (!again).then(|| self.theirs.feature(channel, p) * self.cells + cell);
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
    recurrent: bool,
}

/// A layer of the target, and the layer of the source that it learns from.
#[derive(Debug, PartialEq)]
struct Partner {
    layer: usize,
    /// The filter a channel behind it, for which it mixes channels.
    filter: Option<usize>,
    other: usize,
}

/// Which source layer each layer of the target learns from, among those that make two paired interfaces. The k-th of its kind
/// learns from the one that is as far along, the last from the last. Where channels are also filtered one by one in the target alone, mixer and
/// filter learn from one layer; where they are in the source alone, there is nothing to learn: a channel can't become another there.
fn partners(ours: &[(usize, Kind)], theirs: &[(usize, Kind)]) -> Vec<Partner> {
    let filters = |all: &[(usize, Kind)]| all.iter().any(|(_, kind)| kind.depthwise);
    if filters(ours) != filters(theirs) {
        let (&[(mixer, first), (filter, second)], Some(&(other, last))) = (ours, theirs.last()) else {
            return vec![];
        };
        let mixes = second.depthwise && !first.depthwise && !first.adds && !last.adds;
        let learns = |layer, filter| Partner { layer, filter, other };
        return if mixes { vec![learns(mixer, Some(filter)), learns(filter, None)] } else { vec![] };
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
        found.extend(others.get(at).copied().or(last).map(|other| Partner { layer, filter: None, other }));
    }
    found
}

/// Tables of as many entries, looked up into paired interfaces: nobody needs examples to copy one.
struct Table {
    pair: (InterfaceId, InterfaceId),
    ours: Weight,
    theirs: Weight,
}

fn tables(target: &Network, source: &Network, pairing: &Pairing) -> Vec<Table> {
    let of = |network: &Network, id: InterfaceId, may: &dyn Fn(WeightId) -> bool| -> Vec<Weight> {
        let makers = network.params.interface(id).producers.iter().filter(|&&w| may(w));
        let makers = makers.map(|&w| network.params.weight(w));
        makers.filter(|w| w.role == Role::Embedding && w.output_use().is_some()).cloned().collect()
    };
    let entries = |w: &Weight| w.view.as_ref().map(MatrixView::cols);
    let mut found = vec![];
    for &pair in &pairing.interfaces {
        let mut theirs = of(source, pair.1, &|_| true);
        for ours in of(target, pair.0, &|w| pairing.allows(w)) {
            if let Some(at) = theirs.iter().position(|w| entries(w) == entries(&ours)) {
                found.push(Table { pair, ours, theirs: theirs.remove(at) });
            }
        }
    }
    found
}

/// A tutor as an arm has it.
pub struct Teaching<'a> {
    pub tutor: &'a mut Tutor,
    /// The source's weights, by name.
    pub weights: HashMap<ValueId, Tensor>,
    pub choices: &'a Choices,
    pub mixtures: &'a Mixtures,
}

impl Teaching<'_> {
    /// The target's tables with mixtures of the source's channels, or else with the chosen ones.
    pub(super) fn copied(&self) -> Vec<(ValueId, Tensor)> {
        let copy = |table: &Table| {
            let (view, other) = (table.ours.view.as_ref()?, table.theirs.view.as_ref()?);
            let matrix = other.matrix_of(self.weights.get(&table.theirs.name)?);
            let matrix = match self.mixtures.get(&table.pair) {
                Some(mixture) => mixture.times(&matrix),
                None => {
                    let choice = self.choices.get(&table.pair)?;
                    let rows = choice.iter().map(|&c| (c < matrix.rows).then(|| matrix.row(c)));
                    Matrix::new(choice.len(), matrix.cols, rows.collect::<Option<Vec<_>>>()?.concat())
                }
            };
            if (matrix.rows, matrix.cols) != (view.out, view.cols()) {
                return None;
            }
            let ours = &table.ours;
            Some((ours.name.clone(), view.tensor_of(&matrix, &ours.shape, ours.dtype)))
        };
        self.tutor.tables.iter().filter_map(copy).collect()
    }
    /// What is wanted of a layer, where this tutor has something to say.
    pub(super) fn wanted(&self, index: usize, layer: &Unit, seen: &[Tensor]) -> Option<Wanted> {
        let [channels, _] = layer.shown();
        match self.tutor.lessons.get(&index)? {
            Lesson::Answer => {
                let answer = seen.first()?;
                let rows = answer.shape()[0];
                let fits = answer.len() == rows * channels;
                fits.then(|| Wanted::all(answer.reshaped(&[rows, channels, 1])))
            }
            Lesson::Answers { view } => Some(Wanted::all(seen.get(view + 1)?.clone())),
            &Lesson::Hidden { ref parts, view, filter } => {
                let mut features = vec![None; channels];
                let once = !self.tutor.complete;
                parts.iter().try_for_each(|p| p.pick(self.choices.get(&p.pair)?, once, &mut features))?;
                Some(Wanted { seen: seen.get(view + 1)?.clone(), features, filter })
            }
        }
    }
}

/// What a layer is to make.
pub(super) struct Wanted {
    /// Of a source: rows × channels × positions.
    seen: Tensor,
    /// For each channel of the target which of them; none for its own.
    pub(super) features: Vec<Option<usize>>,
    /// The layer that is to make it, where it isn't the one that learns, which mixes channels for it.
    pub(super) filter: Option<usize>,
}

impl Wanted {
    fn all(seen: Tensor) -> Self {
        let features = (0..seen.shape()[1]).map(Some).collect();
        Self { seen, features, filter: None }
    }
    /// Whether all of it is the source's.
    pub(super) fn is_whole(&self) -> bool {
        self.features.iter().all(Option::is_some)
    }
    /// Rows × channels × positions, with the target's `own` where the source has nothing (more) to say.
    pub(super) fn beside(&self, own: Option<&Tensor>) -> Option<Tensor> {
        let &[rows, theirs, positions] = self.seen.shape() else { return None };
        let channels = self.features.len();
        let values = self.seen.to_f32();
        let old = own.map(Tensor::to_f32);
        let mut out = Vec::with_capacity(rows * channels * positions);
        for row in 0..rows {
            for (c, feature) in self.features.iter().enumerate() {
                let (from, at) = match feature {
                    Some(feature) => (&values, row * theirs + feature),
                    None => (old.as_ref()?, row * channels + c),
                };
                out.extend_from_slice(from.get(at * positions..(at + 1) * positions)?);
            }
        }
        Some(Tensor::f32(&[rows, channels, positions], &out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_that_nothing_stands_for_keep_what_they_were() {
        let seen = Tensor::f32(&[2, 2, 1], &[1.0, 2.0, 3.0, 4.0]);
        let own = Tensor::f32(&[2, 3, 1], &[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]);
        let wanted = Wanted { seen: seen.clone(), features: vec![Some(1), None, Some(0)], filter: None };
        assert!(!wanted.is_whole() && Wanted::all(seen).is_whole());
        let both = wanted.beside(Some(&own)).expect("both are there");
        assert_eq!(&*both.to_f32(), [2.0, -2.0, 1.0, 4.0, -5.0, 3.0]);
        assert!(wanted.beside(None).is_none());
    }
}
