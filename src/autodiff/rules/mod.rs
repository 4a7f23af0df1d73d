//! The gradient rules: one table from operator to rule, one file an operator family.
//!
//! A rule gets a node, the cotangents of its outputs and a builder, and returns the cotangents of its inputs.
//! To add an operator, write its rule in the file of its family and add a line to that file's `TABLE`; the
//! generated tests find it there.

mod arithmetic;
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
mod shape;
mod softmax;

use crate::error::Result;
use crate::onnx::{Builder, Node, ValueId};

/// What a rule sees.
pub struct Context<'a> {
    pub b: &'a mut Builder,
    pub node: &'a Node,
    /// The cotangent of each output; `None` where nothing downstream depends on it.
    pub cotangents: &'a [Option<ValueId>],
    /// Whether anybody needs the cotangent of each input.
    pub wanted: &'a [bool],
}

impl Context<'_> {
    /// Input `i`, which the operator's specification makes mandatory.
    pub fn input(&self, i: usize) -> Result<ValueId> {
        self.optional(i).ok_or_else(|| crate::Error::node(self.node, format!("input {i} is missing")))
    }
    pub fn optional(&self, i: usize) -> Option<ValueId> {
        self.node.input(i).cloned()
    }
    pub fn output(&self, i: usize) -> Result<ValueId> {
        let output = self.node.output(i).cloned();
        output.ok_or_else(|| crate::Error::node(self.node, format!("output {i} is missing")))
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
}

/// The cotangents of a node's inputs, in their order; missing ones at the end may be left out.
pub type Cotangents = Result<Vec<Option<ValueId>>>;

/// Gives the cotangents of a node's inputs.
pub type Rule = fn(&mut Context<'_>) -> Cotangents;

/// How an operator behaves under differentiation.
#[derive(Clone, Copy)]
pub enum Kind {
    Rule(Rule),
    /// Has no derivative, or zero almost everywhere: comparisons, indices, shapes, integers.
    Stop,
}

/// A line of an operator family's table.
pub type Row = (&'static str, Kind);

/// What the table says of a node's operator; `None` when it says nothing.
pub fn kind(node: &Node) -> Option<Kind> {
    if !node.domain.is_empty() {
        return None;
    }
    table().find(|row| row.0 == node.op).map(|row| row.1)
}

/// Every operator of the default domain with a rule or a stop.
pub fn table() -> impl Iterator<Item = &'static Row> {
    let families = [
        arithmetic::TABLE,
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
        shape::TABLE,
        softmax::TABLE,
    ];
    families.into_iter().flatten()
}
