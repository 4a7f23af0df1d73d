//! LSTM, GRU and RNN, in primitives.
//!
//! The products of all inputs with the input weights are one matrix product for the whole sequence. What is left for each
//! step ([`cell`]) is the body of a `Scan` ([`scanned`]), or written out step by step where there are few ([`unrolled`]).
//! [`gradient`] goes back through the sequence with another `Scan`.

mod cell;
mod gradient;
mod layer;
mod scanned;
mod unrolled;

use super::compose::compose;
use super::{Context, Cotangents, Outputs, Row, rule};
use crate::onnx::{Builder, Node, RecurrentOp as Cell, ValueId};
use layer::{Direction, Layer};

pub const TABLE: &[Row] = &[rule("GRU", backward), rule("LSTM", backward), rule("RNN", backward)];

/// Sequences of up to this many steps are written out: a loop has its own cost (docs/autodiff.md).
const FEW_STEPS: usize = 2;

/// What one direction of a layer gives.
struct Ran {
    /// In the order of time, `[steps, batch, hidden]`.
    y: ValueId,
    /// The last states, `[batch, hidden]`.
    h: ValueId,
    c: Option<ValueId>,
}

/// Emits the layer; returns Y, Y_h and, for LSTM, Y_c.
pub fn forward(b: &mut Builder, node: &Node) -> Outputs {
    emit(b, node, FEW_STEPS)
}

/// [`forward`], written out where there are no more than `few` steps.
fn emit(b: &mut Builder, node: &Node, few: usize) -> Outputs {
    let layer = Layer::of(b, node)?;
    let mut ran = vec![];
    for d in 0..layer.directions {
        let direction = Direction::of(b, &layer, d)?;
        ran.push(match layer.steps <= few {
            true => unrolled::run(b, &layer, direction)?,
            false => scanned::run(b, &layer, &direction)?.ran,
        });
    }
    let mut join = |parts: Vec<&ValueId>, axis: usize, perm: &[usize]| {
        let parts: Vec<ValueId> = parts.into_iter().map(|part| b.unsqueeze(part, &[axis as i64])).collect();
        let whole = b.concat(&parts.iter().collect::<Vec<_>>(), axis as i64);
        if layer.batch_first { b.transpose(&whole, perm) } else { whole }
    };
    let y = join(ran.iter().map(|r| &r.y).collect(), 1, &[2, 0, 1, 3]);
    let h = join(ran.iter().map(|r| &r.h).collect(), 0, &[1, 0, 2]);
    let mut outputs = vec![Some(y), Some(h)];
    if layer.cell == Cell::Lstm {
        outputs.push(Some(join(ran.iter().filter_map(|r| r.c.as_ref()).collect(), 0, &[1, 0, 2])));
    }
    Ok(outputs)
}

fn backward(c: &mut Context<'_>) -> Cotangents {
    let node = c.node;
    let layer = Layer::of(c.b, node)?;
    match layer.steps <= FEW_STEPS {
        true => compose(c, forward),
        false => gradient::gradient(c, &layer),
    }
}

/// `new` where a row's sequence goes on, else `old`; `new` where all go on.
fn where_running(b: &mut Builder, running: Option<&ValueId>, new: ValueId, old: &ValueId) -> ValueId {
    match running {
        Some(running) => b.where_(running, &new, old),
        None => new,
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests;
