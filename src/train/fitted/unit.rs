//! What is fitted at once: a matrix and its bias, or the matrices of a recurrent layer.

use crate::onnx::{Builder, ValueId};
use crate::params::{Cell, Layer, WeightId};
use crate::train::align::{Show, View};
use crate::train::network::Network;

#[derive(Clone)]
pub enum Unit {
    Layer(Box<Layer>),
    Cell(Box<Cell>),
}

impl Unit {
    /// All units of a network, in the order in which it uses them.
    pub fn all(network: &Network) -> Vec<Self> {
        let Network { model, facts, params, batch, .. } = network;
        let layers = Layer::all(&model.graph, facts, params, *batch)
            .into_iter()
            .map(|layer| Self::Layer(Box::new(layer)));
        let cells =
            Cell::all(&model.graph, facts, params, *batch).into_iter().map(|cell| Self::Cell(Box::new(cell)));
        let mut all: Vec<Self> = layers.chain(cells).collect();
        all.sort_by_key(Self::weight);
        all
    }

    pub fn layer(&self) -> Option<&Layer> {
        match self {
            Self::Layer(layer) => Some(layer),
            Self::Cell(_) => None,
        }
    }
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Self::Layer(layer) => vec![layer.weight],
            Self::Cell(cell) => vec![cell.inputs, cell.recurrence],
        }
    }
    /// The weight it is known by; of a cell, that of its inputs.
    pub fn weight(&self) -> WeightId {
        match self {
            Self::Layer(layer) => layer.weight,
            Self::Cell(cell) => cell.inputs,
        }
    }
    /// Sizes of what lies beside the channels of what it makes.
    pub fn grid(&self) -> Vec<usize> {
        match self {
            Self::Layer(layer) => layer.made().grid.clone(),
            Self::Cell(cell) => vec![cell.steps],
        }
    }
    /// Channels and positions of what a fit of it is held against.
    pub fn shown(&self) -> [usize; 2] {
        match self {
            Self::Layer(layer) => [layer.settled.channels, layer.settled.positions()],
            Self::Cell(cell) => [cell.shown(), cell.steps],
        }
    }
}

impl Show for Unit {
    fn emit(&self, b: &mut Builder) -> ValueId {
        match self {
            Self::Layer(layer) => View::new(layer.made().clone(), layer.made().grid.clone()).emit(b),
            Self::Cell(cell) => cell.emit(b),
        }
    }
}
