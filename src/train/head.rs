//! Where a model's answer is: the logits behind a final softmax.
//!
//! Training looks at logits, as cross-entropy from them is exact where probabilities saturate.

use crate::onnx::{Facts, Graph, Node, ValueId, infer::normalise_axis};

/// The logits that `output` is the softmax (or its logarithm) of, a row each; `None` where it doesn't end in one that
/// covers whole rows.
pub fn logits_before(graph: &Graph, facts: &Facts, output: &ValueId) -> Option<ValueId> {
    let producers = graph.producers();
    let rows = rows_of(facts, output)?;
    let mut at = output.clone();
    loop {
        let node = &graph.nodes[*producers.get(&at)?];
        let input = node.input(0)?;
        let fact = facts.get(input).filter(|f| f.dtype.is_float() && !f.is_empty())?;
        if node.is("Softmax") || node.is("LogSoftmax") {
            let axis = normalise_axis(node.int_or("axis", -1), fact.rank())?;
            let whole_rows = fact.len() == rows * fact.shape[axis] && axis >= usize::from(fact.rank() > 1);
            return (whole_rows && rows_of(facts, input) == Some(rows)).then(|| input.clone());
        }
        if !passes(node) || facts.get(&at).map(|f| f.len()) != Some(fact.len()) {
            return None;
        }
        at = input.clone();
    }
}

/// Rows of an answer: its first dimension; a vector is one row.
pub fn rows_of(facts: &Facts, value: &ValueId) -> Option<usize> {
    let shape = &facts.get(value)?.shape;
    Some(if shape.len() < 2 { 1 } else { shape[0] })
}

/// Operators that leave the elements and their order as they are.
fn passes(node: &Node) -> bool {
    ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"].iter().any(|op| node.is(op))
}
