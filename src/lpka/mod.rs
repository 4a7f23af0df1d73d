//! The low-rank parametric knowledge adapter, and the optimiser, as ONNX graphs.
//!
//! Knows parameter graphs, the graph builder and autodiff; nothing of data, losses or the model's forward pass. [`build`] makes
//! an [`UpdateProgram`]: a graph that takes `dL/dW′`, updates the adapter's parameters θ and the target's own weights W, and
//! gives the next merged weights W′. Without a source it is plain fine-tuning, by the same optimiser.
//!
//! `interface` and `structured` hold the interface maps, `low_rank` deltas for fine-tuning, `tokens` the token transfer layers, `paper` the preset
//! of that name, `optimizer` AdamW and SGD, `update` puts the pieces into one program.

mod controls;
mod interface;
mod lens;
mod low_rank;
mod optimizer;
mod paper;
mod parameters;
pub(crate) mod resample;
mod structured;
#[cfg(all(test, feature = "tract"))]
mod tests;
mod tokens;
mod update;

pub use controls::{shuffled, untrained};
pub use interface::selection;
pub use lens::{Lens, Seen};

use crate::error::{Error, Result};
use crate::onnx::{Fact, Facts, Model, Tensor, ValueId};
use crate::params::{InterfaceId, Matrix, Pairing, ParamGraph, WeightId};
use crate::runtime::{Executor, State, StepProgram};
use crate::train::{Preset, TrainConfig};
use parameters::Plan;
use std::collections::HashMap;

/// A model as the adapter sees it.
#[derive(Clone)]
pub struct Side<'a> {
    pub graph: &'a ParamGraph,
    /// Initializers by name; of the target all that are trainable, of the source all there are.
    pub weights: HashMap<ValueId, Tensor>,
}

impl Side<'_> {
    /// An interface by the weights that write it, for people.
    fn name_of(&self, interface: InterfaceId) -> String {
        let interface = self.graph.interface(interface);
        let names: Vec<&str> =
            interface.producers.iter().map(|&id| self.graph.weight(id).name.as_str()).collect();
        match names.as_slice() {
            [] => "input".to_owned(),
            [one] => (*one).to_owned(),
            [one, other] => format!("{one} + {other}"),
            [first, .., last] => format!("{first} … {last}"),
        }
    }
}

/// A source as the adapter sees it.
#[derive(Clone)]
pub struct Origin<'a> {
    pub side: Side<'a>,
    pub pairing: &'a Pairing,
    /// (target, source) interfaces whose maps the model step wants too, to hold activations against each other.
    pub aligned: Vec<(InterfaceId, InterfaceId)>,
    /// Where these aren't simply even selections.
    pub choices: Choices,
    pub mixtures: Mixtures,
    pub cells: Cells,
}

/// For (target, source) interfaces which source channel each target channel starts from; which cell of a channel, where [`Cells`] has them.
pub type Choices = HashMap<(InterfaceId, InterfaceId), Vec<usize>>;

/// For (target, source) interfaces whose channels are free to be mixed, as nothing nonlinear is made of each: the mixtures that a target starts
/// from, target channels × source channels.
pub type Mixtures = HashMap<(InterfaceId, InterfaceId), Matrix>;

/// For (target, source) interfaces where only the source has a grid of positions: the grid whose cells count as channels of
/// their own there, channel by channel. A dense layer's unit can be what a convolution makes at one place, not what it makes
/// everywhere.
pub type Cells = HashMap<(InterfaceId, InterfaceId), Vec<usize>>;

impl<'a> Origin<'a> {
    pub fn new(side: Side<'a>, pairing: &'a Pairing) -> Self {
        Self {
            side,
            pairing,
            aligned: vec![],
            choices: Choices::new(),
            mixtures: Mixtures::new(),
            cells: Cells::new(),
        }
    }
    /// Which source channel each of so many target channels starts from.
    fn choice(&self, to: InterfaceId, from: InterfaceId, channels: usize) -> Vec<usize> {
        let known = self.choices.get(&(to, from)).filter(|c| c.len() == channels);
        known.cloned().unwrap_or_else(|| selection(channels, self.channels(to, from)))
    }
    /// The grid whose cells count as channels of their own; `[]` where channels are all there is.
    fn cells(&self, to: InterfaceId, from: InterfaceId) -> &[usize] {
        self.cells.get(&(to, from)).map_or(&[], Vec::as_slice)
    }
    /// How many of these each channel has; 1 where it counts as one.
    fn cell_count(&self, to: InterfaceId, from: InterfaceId) -> usize {
        self.cells(to, from).iter().product()
    }
    /// How many source channels a map has, cell by cell where these count.
    fn channels(&self, to: InterfaceId, from: InterfaceId) -> usize {
        self.side.graph.interface(from).channels * self.cell_count(to, from)
    }
}

/// Where an arm starts.
#[derive(Clone, Default)]
pub struct Start {
    /// g₀ (LPKA.md §3a): how much of the target's own weights is replaced by mapped source weights.
    pub gate: f64,
    /// W′ before the first step of these weights, whatever is mapped into them: W makes up for it.
    pub fitted: HashMap<ValueId, Tensor>,
}

impl From<f64> for Start {
    fn from(gate: f64) -> Self {
        Self { gate, fitted: HashMap::new() }
    }
}

/// The update step: gradients and state in, new state and merged weights out.
#[derive(Clone)]
pub struct UpdateProgram {
    pub model: Model,
    pub facts: Facts,
    /// (target weight, graph input that takes dL/dW′ in the weight's shape and element type).
    pub gradients: Vec<(ValueId, ValueId)>,
    /// (target weight, graph output with its next W′), for the next model step.
    pub merged: Vec<(ValueId, ValueId)>,
    /// The same without dropout, for validation and shipping; equal to `merged` where nothing is dropped.
    pub clean: Vec<(ValueId, ValueId)>,
    /// θ, W, moments, counters, and activations carried from the last forward pass to the next backward pass.
    pub state: Vec<State>,
    /// Scalar float32 input.
    pub learning_rate: ValueId,
    /// Inputs to be fed with fresh uniform random numbers in 0…1 each step.
    pub noise: Vec<(ValueId, Fact)>,
    /// (target weight, its W′ before the first step).
    pub initial: Vec<(ValueId, Tensor)>,
    /// Evaluates the formula anew at given parameters, for a program that takes over another's state; `None` where W′ is part of the state.
    pub restart: Option<Restart>,
    /// Trained numbers besides the target's own weights.
    pub adapter_parameters: usize,
    /// For each of [`Origin::aligned`], origin by origin, the name under which `gradients`, `merged`, `clean` and `initial`
    /// hold its map (target × source channels). Empty for presets without maps.
    pub maps: Vec<ValueId>,
    /// For each adapted weight of the target, in words, where its knowledge comes from.
    pub transfers: Vec<Transfer>,
    /// Shows what the adapter attends to.
    pub lens: Lens,
}

/// The formula by itself: parameters in (as the update step's state has them), then random numbers; all linked values out
/// (in the order of [`UpdateProgram::merged`]), then what the update step carries, then, where anything is dropped, the linked values
/// without that.
#[derive(Clone)]
pub struct Restart {
    pub model: Model,
    pub facts: Facts,
    /// State inputs of the update step: what goes in, and what comes out after the linked values.
    pub parameters: Vec<ValueId>,
    pub noise: Vec<Fact>,
    pub carried: Vec<ValueId>,
}

/// How one target weight gets knowledge.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    pub target: ValueId,
    pub sources: Vec<ValueId>,
    pub by: Means,
}

/// The kinds of transfer layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// The source's matrix itself, through maps of its input and output channels.
    InterfaceMaps,
    /// Attention from the target's low-rank tokens to the source's.
    Tokens,
    /// A vector started from the source's through the interface map, then trained directly.
    MappedStart,
}

impl UpdateProgram {
    pub fn step_program(&self) -> StepProgram {
        StepProgram { model: self.model.clone(), facts: self.facts.clone(), state: self.state.clone() }
    }
}

/// Builds the update program of an arm.
///
/// `trainable` are the target weights that the model step gives gradients for; `start` is g₀, or more. `executor` runs the
/// forward part once, for the first W′. Everything random follows from `seed`.
///
/// # Errors
/// [`Error::Tensor`] for a trainable weight that the target doesn't have or that isn't made of real numbers.
#[allow(clippy::too_many_arguments)]
pub fn build(
    target: &Side<'_>,
    origins: &[Origin<'_>],
    trainable: &[ValueId],
    config: &TrainConfig,
    start: impl Into<Start>,
    executor: &dyn Executor,
    seed: u64,
) -> Result<UpdateProgram> {
    let start = start.into();
    let gate = start.gate;
    let paper = config.adapter.preset == Preset::Paper;
    if let Some(origin) = origins.first().filter(|_| paper) {
        let plan = Plan::direct(target, trainable, config, seed)?;
        return paper::assemble(plan, (target, &origin.side), origin.pairing, config, gate, executor);
    }
    let mut plan = plan(target, origins, trainable, config, gate, executor, seed)?;
    plan.begin_at(&start.fitted, executor)?;
    update::assemble(&plan, config, executor, seed)
}

/// Whether an adapter would carry anything: whether [`build`] would list transfers or maps.
///
/// # Errors
/// As [`build`].
pub fn carries(
    target: &Side<'_>,
    origins: &[Origin<'_>],
    trainable: &[ValueId],
    config: &TrainConfig,
    executor: &dyn Executor,
) -> Result<bool> {
    let (gate, seed) = (0.0, config.seed);
    if config.adapter.preset == Preset::Paper {
        let program = build(target, origins, trainable, config, gate, executor, seed)?;
        return Ok(!program.transfers.is_empty());
    }
    let plan = plan(target, origins, trainable, config, gate, executor, seed)?;
    Ok(!plan.transfers.is_empty() || !plan.maps.is_empty())
}

/// What is trained in an arm, and how W′ comes of it.
#[allow(clippy::too_many_arguments)]
fn plan(
    target: &Side<'_>,
    origins: &[Origin<'_>],
    trainable: &[ValueId],
    config: &TrainConfig,
    gate: f64,
    executor: &dyn Executor,
    seed: u64,
) -> Result<Plan> {
    let mut plan = Plan::direct(target, trainable, config, seed)?;
    let adapter = &config.adapter;
    if let (Some(rank), []) = (config.low_rank, origins) {
        low_rank::add(&mut plan, target, rank.max(1));
    }
    for origin in origins {
        let (source, pairing) = (&origin.side, origin.pairing);
        match adapter.preset {
            Preset::Structured => {
                // Sources that carry to the same weight share its gate.
                let carries = |o: &Origin<'_>, weight: WeightId| {
                    o.pairing.weights.iter().any(|pair| pair.target == weight && pair.source.is_some())
                };
                let share = |weight: WeightId| {
                    gate / origins.iter().filter(|o| carries(o, weight)).count().max(1) as f64
                };
                let done = structured::add(&mut plan, target, origin, adapter, &share, executor)?;
                tokens::add(&mut plan, target, source, pairing, adapter, 0.0, &done, tokens::Fit::Required);
            }
            Preset::Residual | Preset::Paper => {
                tokens::add(&mut plan, target, source, pairing, adapter, gate, &[], tokens::Fit::Wanted);
            }
        }
    }
    Ok(plan)
}

/// The tensor of a weight, which must be there and be made of real numbers.
fn tensor_of<'a>(side: &'a Side<'_>, weight: &ValueId) -> Result<&'a Tensor> {
    let tensor = side
        .weights
        .get(weight)
        .ok_or_else(|| Error::tensor(weight.as_str(), "is not a weight of the model"))?;
    match tensor.dtype().is_float() {
        true => Ok(tensor),
        false => Err(Error::tensor(weight.as_str(), format!("{} can't be trained", tensor.dtype()))),
    }
}
