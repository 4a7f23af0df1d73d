//! Gradient checkpointing: forward values that a step has no room for are computed again on the way back instead of being kept.
//!
//! A pass over a finished step graph, whatever made it; gradient rules don't know of it. Graphs stay of standard operators: nodes
//! of the forward pass occur twice, the second time behind *guards*, without which executors would find both equal and keep the first.
//! Look at [`recompute`].

mod budget;
mod cursor;
mod layout;
mod search;
mod tape;
#[cfg(all(test, feature = "tract"))]
mod tests;
mod write;

use crate::onnx::{Facts, Graph, ValueId};
pub use budget::Budget;
use budget::readable;
use layout::{Layout, usage};
use search::search;
use serde::Serialize;
use tape::Tape;

/// What recomputation comes to: bytes of values between a step's inputs and its outputs, as they follow from shapes. An executor
/// needs its own workspace beside them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Saving {
    /// Forward values that are kept for the way back.
    pub kept: u64,
    pub kept_without: u64,
    /// Values in memory at a time, at most.
    pub peak: u64,
    pub peak_without: u64,
    /// Nodes that are computed twice.
    pub nodes: usize,
    /// What part of the forward pass's arithmetic they are.
    pub share: f64,
    pub budget: Budget,
}

impl Saving {
    /// Whether what was asked for can't be had.
    pub fn misses(&self) -> bool {
        matches!(self.budget, Budget::Bytes(bytes) if self.peak > bytes)
    }

    /// All of it in words.
    pub fn notes(&self) -> Vec<String> {
        let sizes = [self.peak, self.peak_without, self.kept, self.kept_without];
        let [peak, peak_without, kept, kept_without] = sizes.map(readable);
        let mut notes = vec![match self.nodes {
            0 => format!("nothing is computed twice: a step's values take {peak} at most, as estimated"),
            nodes => format!(
                "{nodes} nodes are computed twice, {:.0} % of the forward pass's arithmetic: a step's values take {peak} at most \
                 instead of {peak_without}, as estimated, and {kept} of them wait for the way back instead of {kept_without}",
                100.0 * self.share
            ),
        }];
        if let (true, Budget::Bytes(bytes)) = (self.misses(), self.budget) {
            notes.push(format!("--recompute {}: {peak} is the least that was found", Budget::Bytes(bytes)));
        }
        notes
    }
}

/// A step graph.
pub struct Whole<'a> {
    pub graph: Graph,
    pub facts: Facts,
    /// What the forward pass ends in: the loss, then other outputs that are no gradients.
    pub ends: &'a [ValueId],
}

/// Rewrites a step graph so that its values fit `budget`; where nothing does, so that they take the least that was found. Values that
/// depend on chance are kept. `sizes` are the facts that memory is counted by, where the graph is for any sizes, and its own facts for
/// small ones.
///
/// Without a fact, a value counts nothing, and is kept.
pub fn recompute(whole: Whole<'_>, sizes: Option<&Facts>, budget: Budget) -> (Graph, Facts, Saving) {
    let Whole { graph, facts, ends } = whole;
    let tape = Tape::of(&graph, sizes.unwrap_or(&facts), ends);
    let without = usage(&tape, &Layout::plain(&tape));
    let (layout, with) = search(&tape, budget);
    let work: f64 = tape.steps[..tape.forward].iter().map(|step| step.cost).sum();
    let saving = Saving {
        kept: with.kept,
        kept_without: without.kept,
        peak: with.peak,
        peak_without: without.peak,
        nodes: layout.again,
        share: if work > 0.0 { layout.cost / work } else { 0.0 },
        budget,
    };
    if layout.again == 0 {
        return (graph, facts, saving);
    }
    let (graph, facts) = write::write(&graph, &facts, &tape, &layout, ends);
    (graph, facts, saving)
}
