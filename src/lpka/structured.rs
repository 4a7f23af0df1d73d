//! Interface maps at work: source matrices carried into target weights through the maps of their two sides.
//!
//! `T = (P_out B_s)(P_in A_s)ᵀ` with the source's rank-r factors B_s = U√Σ and A_s = V√Σ, kernels and flattened positions
//! resampled first; the layer adds `g · ρ · T` to the target's own W, which starts at `(1 − g₀) · W`.

use super::interface::{InterfaceMap, Start, codes};
use super::lens::{Attended, Columns};
use super::parameters::{Base, Emitted, Layer, Linked, Noise, ParamId, Parameters, Plan};
use super::resample::{resample_positions, resampling};
use super::{Means, Origin, Side, Transfer, tensor_of};
use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Tensor, ValueId};
use crate::params::{
    InterfaceId, InterfaceKind, InterfaceUse, Matrix, MatrixView, Role, Weight, WeightId, low_rank,
};
use crate::runtime::Executor;
use crate::train::AdapterConfig;

/// All weights that interface maps carry, and the maps they share.
struct Mapped {
    maps: Vec<InterfaceMap>,
    /// For each map what its sides are called.
    names: Vec<(String, String)>,
    weights: Vec<MappedWeight>,
    /// Places of the maps that the model step wants.
    shown: Vec<usize>,
}

struct MappedWeight {
    base: usize,
    view: MatrixView,
    /// Blocks that make up P_out B_s, one below the other: `out_t × r`.
    rows: Vec<Block>,
    /// Blocks that make up P_in A_s: `(in_t · taps) × r`.
    cols: Vec<Block>,
    rank: usize,
    gate: ParamId,
    /// ρ.
    scale: f64,
}

/// Factors of the source along a run of target features.
struct Block {
    /// Which map brings source channels to target channels; `None` where channels correspond as they are.
    map: Option<usize>,
    /// The target channels this run uses, where it isn't all of them.
    part: Option<(usize, usize)>,
    /// `C_s × (positions · taps · r)`.
    factors: Tensor,
    channels: usize,
    positions: usize,
    position_major: bool,
}

impl Layer for Mapped {
    fn gates(&self) -> Vec<(usize, ParamId)> {
        self.weights.iter().map(|weight| (weight.base, weight.gate)).collect()
    }
    fn emit(&self, b: &mut Builder, values: &[ValueId], _: &mut Noise<'_>) -> Emitted {
        let maps: Vec<ValueId> = self.maps.iter().map(|map| map.emit(b, values)).collect();
        let addition = |weight: &MappedWeight| {
            let rows = weight.rows(b, &maps);
            let gate = b.mul_scalar(&values[weight.gate.0], weight.scale);
            let rows = b.mul(&rows, &gate);
            (weight.base, weight.emit(b, rows, &maps))
        };
        let additions = self.weights.iter().map(addition).collect();
        Emitted { additions, maps: self.shown.iter().map(|&i| maps[i].clone()).collect() }
    }
    fn attended(&self, b: &mut Builder, values: &[ValueId], _: &[Base]) -> Vec<Attended> {
        let seen = |(map, (target, source)): (&InterfaceMap, &(String, String))| Attended {
            target: target.clone(),
            source: Columns::Channels(source.clone()),
            value: map.emit(b, values),
        };
        self.maps.iter().zip(&self.names).map(seen).collect()
    }
}

impl MappedWeight {
    fn rows(&self, b: &mut Builder, maps: &[ValueId]) -> ValueId {
        stacked(b, &self.rows, maps, self.rank)
    }
    /// `rows` times the mapped input factors, laid out as the target's weight.
    fn emit(&self, b: &mut Builder, rows: ValueId, maps: &[ValueId]) -> ValueId {
        let cols = stacked(b, &self.cols, maps, self.rank);
        let cols = b.transpose(&cols, &[1, 0]);
        let matrix = b.matmul(&rows, &cols);
        weight_of(b, &matrix, &self.view)
    }
}

/// A matrix in the layout of its weight, split as [`MatrixView::split`] says.
pub(super) fn weight_of(b: &mut Builder, matrix: &ValueId, view: &MatrixView) -> ValueId {
    let axes: Vec<usize> = view.perm.iter().map(|&p| view.split[p]).collect();
    let stored = rows_in(b, matrix, &view.inverse_order());
    let matrix = b.reshape(&stored, &axes);
    b.transpose(&matrix, &view.inverse_perm())
}

/// These rows of a matrix; all of it where none are named.
pub(super) fn rows_in(b: &mut Builder, matrix: &ValueId, rows: &[usize]) -> ValueId {
    if rows.is_empty() {
        return matrix.clone();
    }
    let rows = b.ints(&rows.iter().map(|&i| i as i64).collect::<Vec<_>>());
    b.op_with("Gather", &[matrix, &rows], &[("axis", 0i64.into())])
}

fn stacked(b: &mut Builder, blocks: &[Block], maps: &[ValueId], rank: usize) -> ValueId {
    let parts: Vec<ValueId> = blocks.iter().map(|block| block.emit(b, maps, rank)).collect();
    b.concat(&parts.iter().collect::<Vec<_>>(), 0)
}

impl Block {
    fn emit(&self, b: &mut Builder, maps: &[ValueId], rank: usize) -> ValueId {
        let factors = b.constant(self.factors.clone());
        let inner = self.factors.shape()[1] / self.positions;
        let mut mapped = match self.map {
            None => factors,
            Some(map) => {
                let map = match self.part {
                    Some((start, end)) => b.slice(&maps[map], &[start as i64], &[end as i64], &[0]),
                    None => maps[map].clone(),
                };
                b.matmul(&map, &factors)
            }
        };
        if self.position_major && self.positions > 1 {
            let cells = b.reshape(&mapped, &[self.channels, self.positions, inner]);
            mapped = b.transpose(&cells, &[1, 0, 2]);
        }
        b.reshape(&mapped, &[self.channels * self.positions * inner / rank, rank])
    }
}

/// Adds interface maps to a plan wherever the pairing says they fit. Returns the target matrices that got one.
/// `gate` gives this source's share of g₀ for a target matrix.
pub(super) fn add(
    plan: &mut Plan,
    target: &Side<'_>,
    origin: &Origin<'_>,
    config: &AdapterConfig,
    gate: &dyn Fn(WeightId) -> f64,
    executor: &dyn Executor,
) -> Result<Vec<WeightId>> {
    let (source, pairing) = (&origin.side, origin.pairing);
    let mut planner = Planner { target, origin, config, wanted: vec![] };
    let mut weights = vec![];
    for pair in &pairing.weights {
        let (Some(base), Some(from)) = (plan.base_of(&target.graph.weight(pair.target).name), pair.source)
        else {
            continue;
        };
        if let Some(mut weight) = planner.weight(base, pair.target, from) {
            let name = format!("{}/gate", plan.bases[base].weight);
            weight.gate = plan.parameters.filled(name, &[], gate(pair.target) as f32);
            weights.push((pair.target, from, weight));
        }
    }
    let (ids, layer): (Vec<_>, Vec<_>) = weights.into_iter().map(|(t, s, w)| ((t, s), w)).unzip();
    let shown: Vec<usize> = origin.aligned.iter().map(|&(to, from)| planner.place(to, from)).collect();
    for &place in &shown {
        let (channels, others) = planner.sizes(place);
        let name = ValueId::new(format!("map/{}", plan.maps.len()));
        plan.maps.push(Linked { name, fact: Fact::new(DType::F32, &[channels, others]) });
    }
    let mut mapped =
        Mapped { maps: planner.maps(&mut plan.parameters), names: planner.names(), weights: layer, shown };
    let live = mapped.measure(plan, executor)?;
    let mut keep = live.iter();
    mapped.weights.retain(|_| keep.next().copied().unwrap_or(false));
    let ids: Vec<_> = ids.into_iter().zip(&live).filter(|(_, live)| **live).map(|(ids, _)| ids).collect();
    for (weight, (to, from)) in mapped.weights.iter().zip(&ids) {
        let base = &plan.bases[weight.base];
        let own = tensor_of(target, &base.weight)?;
        plan.parameters.replace(base.parameter, gate(*to), own, &vec![0.0; own.len()]);
        plan.transfers.push(Transfer {
            target: base.weight.clone(),
            sources: vec![source.graph.weight(*from).name.clone()],
            by: Means::InterfaceMaps,
        });
    }
    let targets: Vec<WeightId> = ids.into_iter().map(|(t, _)| t).collect();
    start_vectors(plan, target, origin, &targets, gate);
    if !mapped.weights.is_empty() || !mapped.shown.is_empty() {
        plan.layers.push(Box::new(mapped));
    }
    Ok(targets)
}

impl Mapped {
    /// Sets each ρ by the standard deviation of the first T. Tells which weights have anything to carry at all.
    fn measure(&mut self, plan: &Plan, executor: &dyn Executor) -> Result<Vec<bool>> {
        if self.weights.is_empty() {
            return Ok(vec![]);
        }
        let first = plan.parameters.evaluate(executor, |b, values| {
            let maps: Vec<ValueId> = self.maps.iter().map(|map| map.emit(b, values)).collect();
            for (i, weight) in self.weights.iter().enumerate() {
                let rows = weight.rows(b, &maps);
                let mapped = weight.emit(b, rows, &maps);
                b.output_as(&format!("mapped/{i}"), &mapped);
            }
        })?;
        let mut live = vec![];
        for (weight, first) in self.weights.iter_mut().zip(first) {
            let own = &plan.parameters.list[plan.bases[weight.base].parameter.0].initial;
            weight.scale = std(own) / std(&first);
            live.push(weight.scale.is_normal());
        }
        Ok(live)
    }
}

fn std(tensor: &Tensor) -> f64 {
    Matrix::new(1, tensor.len(), tensor.to_f32().into_owned()).std() as f64
}

/// Finds blocks, and which maps they want.
struct Planner<'a> {
    target: &'a Side<'a>,
    origin: &'a Origin<'a>,
    config: &'a AdapterConfig,
    /// (target interface, source interface) of each map, once.
    wanted: Vec<(InterfaceId, InterfaceId)>,
}

impl Planner<'_> {
    /// The maps that are wanted.
    fn maps(&self, parameters: &mut Parameters) -> Vec<InterfaceMap> {
        let rank = self.config.rank.max(1);
        let mut make = |&(to, from): &(InterfaceId, InterfaceId)| {
            let (target, source) = (self.target.graph.interface(to), self.origin.side.graph.interface(from));
            let cells = self.origin.cell_count(to, from);
            let theirs = codes(&self.origin.side, source, rank).map(|codes| codes.repeated(cells));
            let codes = codes(self.target, target, rank).zip(theirs);
            let choice = self.origin.choice(to, from, target.channels);
            let name = format!("map{}", to.0);
            let channels = self.origin.channels(to, from);
            let fits = |m: &&Matrix| (m.rows, m.cols) == (target.channels, channels);
            let start =
                Start { choice: &choice, mixture: self.origin.mixtures.get(&(to, from)).filter(fits) };
            InterfaceMap::new(&name, (start, channels), codes, self.config, parameters)
        };
        self.wanted.iter().map(&mut make).collect()
    }

    /// What the sides of each map are called.
    fn names(&self) -> Vec<(String, String)> {
        let of = |&(to, from): &(InterfaceId, InterfaceId)| {
            (self.target.name_of(to), self.origin.side.name_of(from))
        };
        self.wanted.iter().map(of).collect()
    }

    /// How target weight `to` is carried from source weight `from`; `None` where their layouts don't correspond.
    fn weight(&mut self, base: usize, to: WeightId, from: WeightId) -> Option<MappedWeight> {
        let wanted = self.wanted.len();
        let weight = self.mapped(base, to, from);
        if weight.is_none() {
            self.wanted.truncate(wanted);
        }
        weight
    }

    fn mapped(&mut self, base: usize, to: WeightId, from: WeightId) -> Option<MappedWeight> {
        let (to, from) = (self.target.graph.weight(to), self.origin.side.graph.weight(from));
        let (view, other) = (to.view.as_ref()?, from.view.as_ref()?);
        let depthwise = |v: &MatrixView| v.group > 1 && v.inn == 1;
        if !(depthwise(view) && depthwise(other)) && (view.group > 1 || other.group > 1) {
            return None;
        }
        let matrix =
            with_taps(&other.matrix_of(self.origin.side.weights.get(&from.name)?), &other.taps, &view.taps);
        let taps = view.tap_count();
        let factors = low_rank(&matrix, self.config.rank.max(1));
        let rank = factors.rank();
        if rank == 0 || !factors.s.iter().all(|s| s.is_finite()) {
            return None;
        }
        let rows = self.side(&to.output, &from.output, view.out, &factors.left(), rank)?;
        let right = factors.right();
        let right = Matrix::new(other.inn, taps * rank, right.data);
        let cols = match depthwise(view) {
            true => vec![Block::direct(&right)],
            false => self.side(&to.input, &from.input, view.inn, &right, taps * rank)?,
        };
        Some(MappedWeight {
            base,
            view: view.clone(),
            rows,
            cols,
            rank,
            gate: ParamId(usize::MAX),
            scale: 1.0,
        })
    }

    /// The blocks of one side: its features in order, from `factors` with a row a source feature.
    fn side(
        &mut self,
        to: &[InterfaceUse],
        from: &[InterfaceUse],
        features: usize,
        factors: &Matrix,
        inner: usize,
    ) -> Option<Vec<Block>> {
        let mut end = 0;
        let mut blocks = vec![];
        for to in InterfaceUse::in_order(to) {
            let wanted = self.origin.pairing.source_of(to.interface)?;
            let from = from.iter().find(|u| u.interface == wanted)?;
            let ordered = to.is_channel_major() || to.is_position_major();
            if to.offset != end || !ordered {
                return None;
            }
            end += to.len();
            blocks.push(self.block(to, from, factors, inner)?);
        }
        (end == features && !blocks.is_empty()).then_some(blocks)
    }

    fn block(
        &mut self,
        to: &InterfaceUse,
        from: &InterfaceUse,
        factors: &Matrix,
        inner: usize,
    ) -> Option<Block> {
        let cells = self.origin.cells(to.interface, from.interface);
        // What is the same at all positions isn't a matter of one of them.
        if !cells.is_empty() && (to.positions != 1 || from.positions == 1) {
            return None;
        }
        let map = self.map(to.interface, from.interface)?;
        let channels = self.origin.side.graph.interface(from.interface).channels;
        // A row a channel of the whole source interface; channels that the weight doesn't use stay zero.
        let mut data = vec![0.0; channels * from.positions * inner];
        for (i, feature) in from.features().enumerate() {
            let place = (from.start * from.positions + i) * inner;
            data.get_mut(place..place + inner)?
                .copy_from_slice(factors.data.get(feature * inner..(feature + 1) * inner)?);
        }
        let grid = if cells.is_empty() { &to.grid } else { cells };
        let data = match from.positions == grid.iter().product::<usize>() {
            true => data,
            false => resample_positions(&resampling(&from.grid, grid), channels, inner, &data),
        };
        let channels = self.origin.channels(to.interface, from.interface);
        let whole = to.channels == self.target.graph.interface(to.interface).channels;
        if map.is_none() && !(whole && channels == to.channels) {
            return None;
        }
        Some(Block {
            map,
            part: (!whole).then_some((to.start, to.start + to.channels)),
            factors: Tensor::f32(&[channels, to.positions * inner], &data),
            channels: to.channels,
            positions: to.positions,
            position_major: !to.is_channel_major(),
        })
    }

    /// The place of the map between two interfaces: `Some(None)` for the identity, `None` where there can't be one.
    fn map(&mut self, to: InterfaceId, from: InterfaceId) -> Option<Option<usize>> {
        let (target, source) = (self.target.graph.interface(to), self.origin.side.graph.interface(from));
        let outer = target.kind == source.kind && target.kind != InterfaceKind::Hidden;
        if outer && target.channels == source.channels {
            return Some(None);
        }
        if target.kind == InterfaceKind::Output || source.channels == 0 || target.channels == 0 {
            return None;
        }
        Some(Some(self.place(to, from)))
    }
    /// The place of the map between two interfaces, which is wanted from now on.
    fn place(&mut self, to: InterfaceId, from: InterfaceId) -> usize {
        self.wanted.iter().position(|pair| *pair == (to, from)).unwrap_or_else(|| {
            self.wanted.push((to, from));
            self.wanted.len() - 1
        })
    }
    /// Target and source channels of the map at a place.
    fn sizes(&self, place: usize) -> (usize, usize) {
        let (to, from) = self.wanted[place];
        (self.target.graph.interface(to).channels, self.origin.channels(to, from))
    }
}

impl Block {
    /// Factors that no channel map applies to.
    fn direct(factors: &Matrix) -> Self {
        Self {
            map: None,
            part: None,
            factors: factors.to_tensor(),
            channels: factors.rows,
            positions: 1,
            position_major: false,
        }
    }
}

/// A matrix of `out × (in · taps)` with its kernels resampled.
pub(super) fn with_taps(matrix: &Matrix, from: &[usize], to: &[usize]) -> Matrix {
    if from == to {
        return matrix.clone();
    }
    let by = resampling(from, to);
    let inn = matrix.cols / by.cols.max(1);
    let data = resample_positions(&by, matrix.rows * inn, 1, &matrix.data);
    Matrix::new(matrix.rows, inn * by.rows, data)
}

/// Biases, scales and shifts of mapped layers start as the share g₀ of the source's, picked by the maps' hard start.
fn start_vectors(
    plan: &mut Plan,
    target: &Side<'_>,
    origin: &Origin<'_>,
    mapped: &[WeightId],
    gate: &dyn Fn(WeightId) -> f64,
) {
    let source = &origin.side;
    for &(to, from) in &origin.pairing.interfaces {
        let (interface, other) = (target.graph.interface(to), source.graph.interface(from));
        if interface.producers.is_empty() || !interface.producers.iter().all(|p| mapped.contains(p)) {
            continue;
        }
        let gate = gate(interface.producers[0]);
        if gate == 0.0 {
            continue;
        }
        for role in [Role::Bias, Role::NormScale, Role::NormShift] {
            let of = |side: &Side<'_>, ids: &[WeightId], channels: usize| -> Vec<Weight> {
                let all = ids.iter().map(|&id| side.graph.weight(id));
                all.filter(|w| w.role == role && w.len() == channels).cloned().collect()
            };
            let ours = of(target, &interface.vectors, interface.channels);
            let theirs = of(source, &other.vectors, other.channels);
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let (Some(base), Some(own)) = (plan.base_of(&ours.name), target.weights.get(&ours.name))
                else {
                    continue;
                };
                let Some(tensor) = source.weights.get(&theirs.name) else { continue };
                let values = tensor.to_f32();
                let choice = origin.choice(to, from, interface.channels);
                let cells = origin.cell_count(to, from);
                let picked: Vec<f32> = choice.into_iter().map(|i| values[i / cells]).collect();
                plan.parameters.replace(plan.bases[base].parameter, gate, own, &picked);
                plan.transfers.push(Transfer {
                    target: ours.name.clone(),
                    sources: vec![theirs.name.clone()],
                    by: Means::MappedStart,
                });
            }
        }
    }
}
