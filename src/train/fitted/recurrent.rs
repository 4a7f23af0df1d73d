//! Least squares for the gates of a recurrent layer: each is to sum up what the source's sums up, from the target's inputs and
//! from the states that the source has, as the target shall have them too ("teacher forcing").
//!
//! Sums over inputs and over states are fitted together where they are just added. In the third gate of a GRU the states come
//! through the reset gate, so there W and R are fitted each to its own part.

use super::normal;
use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Facts, Model, RecurrentOp, ValueId};
use crate::params::{Cell, Matrix, MatrixView};
use crate::train::align::{freed, settled};
use crate::train::network::Network;
use std::ops::Range;

/// What some gates of a cell learn together.
#[derive(Clone)]
pub struct Equation {
    gates: Range<usize>,
    part: Part,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// The sums, from inputs and states.
    All,
    /// W's part, from the inputs.
    Inputs,
    /// R's part, from the states, which the reset gate may have been at.
    States,
}

impl Equation {
    pub fn all(cell: &Cell) -> Vec<Self> {
        let equation = |gates, part| Self { gates, part };
        match cell.op {
            RecurrentOp::Gru => {
                let parts = [(0..2, Part::All), (2..3, Part::Inputs), (2..3, Part::States)];
                parts.map(|(gates, part)| equation(gates, part)).into()
            }
            _ => vec![equation(0..cell.gates, Part::All)],
        }
    }

    /// The shape of what is solved for: a group a direction.
    pub fn view(&self, cell: &Cell) -> MatrixView {
        let features = match self.part {
            Part::All => cell.features + cell.hidden,
            Part::Inputs => cell.features,
            Part::States => cell.hidden,
        };
        MatrixView {
            out: cell.directions * self.gates.len() * cell.hidden,
            inn: features,
            taps: vec![],
            group: cell.directions,
            split: vec![],
            perm: vec![],
            order: vec![],
        }
    }

    /// The forward pass up to a cell, as in [`normal::program`]; wanted is what [`Cell::emit`] shows.
    pub fn program(&self, network: &Network, cell: &Cell) -> Result<(Model, Facts)> {
        let (mut b, _) = freed(network)?;
        let wanted = b.input(normal::WANTED, Fact::new(DType::F32, &[cell.rows, cell.shown(), cell.steps]));
        let block = |b: &mut Builder, from: usize, rows: Range<usize>, of: usize| {
            block(b, cell, &wanted, from, rows, of)
        };
        let mut inputs = vec![];
        if self.part != Part::States {
            let x = cell.emit_inputs(&mut b);
            inputs.push(b.reshape(&x, &[cell.directions, cell.rows * cell.steps, cell.features]));
        }
        if self.part != Part::Inputs {
            let reset = self.part == Part::States && cell.resets_before();
            let from = 2 * cell.sums() + usize::from(reset) * cell.directions * cell.hidden;
            inputs.push(block(&mut b, from, 0..cell.hidden, cell.hidden));
        }
        let mut sums = vec![];
        for (part, from) in [(Part::Inputs, 0), (Part::States, cell.sums())] {
            if self.part == Part::All || self.part == part {
                sums.push(block(&mut b, from, self.range(cell), cell.gates * cell.hidden));
            }
        }
        let inputs = b.concat(&inputs.iter().collect::<Vec<_>>(), 2);
        let sum = sums.into_iter().reduce(|a, c| b.add(&a, &c));
        if let Some(sum) = sum {
            normal::equations(&mut b, &inputs, &sum, cell.rows);
        }
        settled(network, b)
    }

    /// b where it can't be changed, of the rows that are solved for.
    pub fn fixed(&self, cell: &Cell, biases: &[f64]) -> Vec<f64> {
        let value = |side, row| biases.get(bias_row(cell, side, row)).copied().unwrap_or(0.0);
        let of = |row| match self.part {
            Part::All => value(0, row) + value(1, row),
            Part::Inputs => value(0, row),
            Part::States => value(1, row),
        };
        self.rows(cell).map(of).collect()
    }

    /// Rows of one direction.
    fn range(&self, cell: &Cell) -> Range<usize> {
        self.gates.start * cell.hidden..self.gates.end * cell.hidden
    }

    /// Rows of W and R, in the order of the solution.
    fn rows<'a>(&'a self, cell: &'a Cell) -> impl Iterator<Item = usize> + 'a {
        let of_direction = cell.gates * cell.hidden;
        (0..cell.directions).flat_map(move |d| self.range(cell).map(move |row| d * of_direction + row))
    }

    /// Puts the solution in its place.
    pub fn place(&self, cell: &Cell, solution: &(Matrix, Vec<f64>), into: &mut Weights) {
        let (matrix, offset) = solution;
        for (i, row) in self.rows(cell).enumerate() {
            let (inputs, states) = match self.part {
                Part::All => matrix.row(i).split_at(cell.features),
                Part::Inputs => (matrix.row(i), &[][..]),
                Part::States => (&[][..], matrix.row(i)),
            };
            if self.part != Part::States {
                into.inputs[row * cell.features..][..cell.features].copy_from_slice(inputs);
                into.biases[bias_row(cell, 0, row)] = offset[i];
            }
            if self.part != Part::Inputs {
                into.recurrence[row * cell.hidden..][..cell.hidden].copy_from_slice(states);
                let own = if self.part == Part::All { 0.0 } else { offset[i] };
                into.biases[bias_row(cell, 1, row)] = own;
            }
        }
    }
}

/// W, R and the biases, row by row.
pub struct Weights {
    pub inputs: Vec<f32>,
    pub recurrence: Vec<f32>,
    pub biases: Vec<f64>,
}

impl Weights {
    pub fn new(cell: &Cell) -> Self {
        let rows = cell.sums();
        Self {
            inputs: vec![0.0; rows * cell.features],
            recurrence: vec![0.0; rows * cell.hidden],
            biases: vec![0.0; 2 * rows],
        }
    }
}

/// Where the biases have that of a row of W (side 0) or R (1).
fn bias_row(cell: &Cell, side: usize, row: usize) -> usize {
    let of_direction = cell.gates * cell.hidden;
    let (direction, row) = (row / of_direction, row % of_direction);
    (2 * direction + side) * of_direction + row
}

/// Some features of what is wanted: of `of` a direction, from `from` on, those in `rows`. Directions × (rows · steps) × features.
fn block(
    b: &mut Builder,
    cell: &Cell,
    wanted: &ValueId,
    from: usize,
    rows: Range<usize>,
    of: usize,
) -> ValueId {
    let Cell { directions, steps, .. } = *cell;
    let [start, end] = [from, from + directions * of].map(|at| at as i64);
    let part = b.slice(wanted, &[start], &[end], &[1]);
    let part = b.reshape(&part, &[cell.rows, directions, of, steps]);
    let part = b.slice(&part, &[rows.start as i64], &[rows.end as i64], &[2]);
    let part = b.transpose(&part, &[1, 0, 3, 2]);
    b.reshape(&part, &[directions, cell.rows * steps, rows.len()])
}
