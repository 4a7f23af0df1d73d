//! The gradient rules: one table from operator to rule, one file an operator family.
//!
//! A rule gets a node, the cotangents of its outputs and a builder, and returns the cotangents of its inputs.
//! To add an operator, write its rule in the file of its family and add a line to that file's `TABLE`; the
//! generated tests find it there.

mod arithmetic;
mod attention;
pub(super) mod compose;
mod contrib;
mod control;
mod conv;
mod elementwise;
mod index;
mod loss;
mod matmul;
mod norm;
mod pool;
mod quant;
mod recurrent;
mod reduce;
mod resize;
mod sampling;
mod scan;
mod separable;
mod sequence;
mod shape;
mod signal;
mod softmax;
mod window;

use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Builder, Node, Tensor, ValueId};
pub(crate) use index::from_front;
use std::collections::HashSet;

/// What a rule sees.
pub struct Context<'a> {
    pub b: &'a mut Builder,
    pub node: &'a Node,
    /// The cotangent of each output; `None` where nothing downstream depends on it.
    pub cotangents: &'a [Option<ValueId>],
    /// Whether anybody needs the cotangent of each input.
    pub wanted: &'a [bool],
    /// The values whose cotangents somebody needs.
    pub active: &'a HashSet<ValueId>,
    /// What a rule gives besides: cotangents of values that the node's subgraphs take from outside.
    pub captured: Vec<(ValueId, ValueId)>,
}

impl Context<'_> {
    /// Input `i`, which the operator's specification makes mandatory.
    pub fn input(&self, i: usize) -> Result<ValueId> {
        self.optional(i).ok_or_else(|| self.refuse(format!("input {i} is missing")))
    }
    pub fn optional(&self, i: usize) -> Option<ValueId> {
        self.node.input(i).cloned()
    }
    pub fn output(&self, i: usize) -> Result<ValueId> {
        let output = self.node.output(i).cloned();
        output.ok_or_else(|| self.refuse(format!("output {i} is missing")))
    }
    /// The cotangent of the first output; zeros where nothing depends on it.
    pub fn cotangent(&mut self) -> Result<ValueId> {
        match self.cotangents.first().cloned().flatten() {
            Some(cotangent) => Ok(cotangent),
            None => {
                let output = self.output(0)?;
                Ok(self.b.zeros_like(&output))
            }
        }
    }
    pub fn wants(&self, i: usize) -> bool {
        self.wanted.get(i).copied().unwrap_or(false)
    }

    /// For a function of its first input: `cotangent(b, g, x, y)` gives the cotangent of x from that of y.
    pub fn pull(
        &mut self,
        cotangent: impl FnOnce(&mut Builder, &ValueId, &ValueId, &ValueId) -> ValueId,
    ) -> Cotangents {
        let (g, x, y) = (self.cotangent()?, self.input(0)?, self.output(0)?);
        Ok(vec![Some(cotangent(self.b, &g, &x, &y))])
    }
    /// For a function applied element by element: `slope(b, x, y)` is its derivative, and `g · slope` the result.
    pub fn slope(&mut self, slope: impl FnOnce(&mut Builder, &ValueId, &ValueId) -> ValueId) -> Cotangents {
        self.pull(|b, g, x, y| {
            let slope = slope(b, x, y);
            b.mul(g, &slope)
        })
    }
    /// The cotangent of input `i` by `make`, if anybody needs it.
    pub fn if_wanted(
        &mut self,
        i: usize,
        make: impl FnOnce(&mut Self) -> Result<ValueId>,
    ) -> Result<Option<ValueId>> {
        if self.wants(i) { make(self).map(Some) } else { Ok(None) }
    }
    pub fn shape(&self, i: usize) -> Result<Vec<usize>> {
        Ok(self.b.shape(&self.input(i)?))
    }
    /// The value of input `i` where it is a constant of the graph; `None` where the input is left out.
    ///
    /// # Errors
    /// When the input is computed at run time.
    pub fn constant(&self, i: usize) -> Result<Option<Tensor>> {
        let Some(input) = self.optional(i) else { return Ok(None) };
        match self.b.constant_value(&input) {
            Some(value) => Ok(Some(value.clone())),
            None => Err(self.refuse(format!("has a gradient only where its input '{input}' is a constant"))),
        }
    }
    /// The integers of constant input `i`, as [`Context::constant`].
    pub fn constant_ints(&self, i: usize) -> Result<Option<Vec<i64>>> {
        Ok(self.constant(i)?.map(|t| t.to_i64().into_owned()))
    }
    /// `axis` counted from the front of `rank` axes.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        normalise_axis(axis, rank).ok_or_else(|| self.refuse(format!("axis {axis} of {rank} axes")))
    }
    /// An error that names this node.
    pub fn refuse(&self, what: impl Into<String>) -> Error {
        Error::node(self.node, what)
    }
}

/// The cotangents of a node's inputs, in their order; missing ones at the end may be left out.
pub type Cotangents = Result<Vec<Option<ValueId>>>;

/// Gives the cotangents of a node's inputs.
pub type Rule = fn(&mut Context<'_>) -> Cotangents;

/// How an operator behaves under differentiation.
#[derive(Clone, Copy)]
pub enum Kind {
    Rule(Rule),
    /// Is defined by other operators, and differentiated through them.
    Composed(Lowering),
    /// Has no derivative, or zero almost everywhere: comparisons, indices, shapes, integers.
    Stop,
}

/// A line of an operator family's table; operators of other domains are named `domain::Op`.
pub type Row = (&'static str, Kind);

const fn rule(op: &'static str, rule: Rule) -> Row {
    (op, Kind::Rule(rule))
}
const fn composed(op: &'static str, forward: Lowering) -> Row {
    (op, Kind::Composed(forward))
}
const fn stop(op: &'static str) -> Row {
    (op, Kind::Stop)
}

/// What the table says of a node's operator; `None` when it says nothing.
pub fn kind(node: &Node) -> Option<Kind> {
    match node.domain.as_str() {
        "" => table().find(|row| row.0 == node.op).map(|row| row.1),
        _ => {
            let name = node.qualified_op();
            table().find(|row| row.0 == name).map(|row| row.1)
        }
    }
}

/// The values of a node's outputs; `None` for those that aren't made.
pub type Outputs = Result<Vec<Option<ValueId>>>;

/// Emits what a node computes in primitives; gives its outputs.
pub type Lowering = fn(&mut Builder, &Node) -> Outputs;

/// How to write out a layer that some executors only run with constant parameters.
pub(super) fn lowering(node: &Node) -> Option<Lowering> {
    match (node.domain.as_str(), node.op.as_str()) {
        ("", "BatchNormalization") => Some(norm::batch_forward),
        ("", "GRU" | "LSTM" | "RNN") => Some(recurrent::forward),
        _ => None,
    }
}

/// Every operator with a rule or a stop.
pub fn table() -> impl Iterator<Item = &'static Row> {
    let families = [
        arithmetic::TABLE,
        attention::TABLE,
        contrib::TABLE,
        control::TABLE,
        conv::TABLE,
        elementwise::TABLE,
        index::TABLE,
        loss::TABLE,
        matmul::TABLE,
        norm::TABLE,
        pool::TABLE,
        quant::TABLE,
        recurrent::TABLE,
        reduce::TABLE,
        resize::TABLE,
        sampling::TABLE,
        sequence::TABLE,
        shape::TABLE,
        signal::TABLE,
        softmax::TABLE,
    ];
    families.into_iter().flatten()
}
