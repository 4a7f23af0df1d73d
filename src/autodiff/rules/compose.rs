//! Gradients of composite operators: emit the same computation in primitives, let the driver differentiate that.
//!
//! For operators that are seldom on the hot path, or whose textbook gradient is longer than their definition.
//! The emitted forward part is computed again by the gradient graph. See [`compose`].

use super::{Context, Cotangents, Outputs};
use crate::error::ResultExt;
use crate::onnx::{Builder, Node, ValueId};

/// The cotangents of a node's inputs by way of `forward`, which emits primitives that compute the node's outputs
/// (in their order; `None` for outputs without a derivative).
pub fn compose(c: &mut Context<'_>, forward: impl FnOnce(&mut Builder, &Node) -> Outputs) -> Cotangents {
    let mut wrt: Vec<ValueId> = vec![];
    for (i, input) in c.node.inputs.iter().enumerate() {
        if let Some(input) = input.as_ref().filter(|input| c.wants(i) && !wrt.contains(input)) {
            wrt.push(input.clone());
        }
    }
    let start = c.b.graph().nodes.len();
    let made = forward(c.b, c.node)?;
    let emitted = c.b.graph().nodes[start..].to_vec();
    let pairs = made.into_iter().zip(c.cotangents);
    let seeds: Vec<(ValueId, ValueId)> =
        pairs.filter_map(|(value, cotangent)| value.zip(cotangent.clone())).collect();
    let mut found = crate::autodiff::backward_through(c.b, &emitted, &seeds, &wrt)
        .context(|| format!("inside node '{}' ({})", c.node.label(), c.node.qualified_op()))?;
    // An input used twice gets its whole cotangent at its first use.
    Ok(c.node.inputs.iter().map(|input| input.as_ref().and_then(|input| found.remove(input))).collect())
}
