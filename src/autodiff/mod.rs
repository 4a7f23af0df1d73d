//! Reverse-mode autodiff over ONNX: a graph transformation, ONNX in, ONNX out, nothing executed.
//!
//! The driver here knows no operator. What an operator's gradient is stands in [`rules`], one file an operator
//! family, one line a table. Foreign graphs go through [`prepare`] first, so that rules see only the forms of
//! opset 18 and later, static shapes and plain operators. Look at [`backward`] and [`rules::Rule`].

pub mod facts;
pub mod prepare;
pub mod rules;

use crate::error::{Error, Result};
use crate::onnx::{Builder, Node, ValueId};
use rules::{Context, Kind};
use std::collections::{HashMap, HashSet};

/// Extends the builder's graph by the cotangents of `wrt`.
///
/// `seeds` pairs values with their cotangents (of the same shape and type): for a scalar loss, `(loss, 1)`.
/// Returns the cotangent of each of `wrt` that influences a seeded value; one that doesn't is absent.
/// Every value of the graph must have a fact.
///
/// # Errors
/// [`Error::Node`] for an operator without a gradient on the way from `wrt` to a seeded value.
pub fn backward(
    b: &mut Builder,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<HashMap<ValueId, ValueId>> {
    let nodes = b.graph().nodes.clone();
    let active = active_values(&nodes, wrt);
    let mut cotangents: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
    for (value, cotangent) in seeds {
        cotangents.entry(value.clone()).or_default().push(cotangent.clone());
    }
    let outer_scope = b.scope().to_owned();
    for node in nodes.iter().rev() {
        let outputs: Vec<Option<ValueId>> = node
            .outputs
            .iter()
            .map(|o| o.as_ref().filter(|o| active.contains(*o)).and_then(|o| total(b, &mut cotangents, o)))
            .collect();
        let wanted: Vec<bool> =
            node.inputs.iter().map(|i| i.as_ref().is_some_and(|i| active.contains(i))).collect();
        if outputs.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        let rule = match rules::kind(node) {
            Some(Kind::Rule(rule)) => rule,
            Some(Kind::Stop) => continue,
            None => return Err(no_gradient(node, wrt)),
        };
        b.set_scope(&format!("grad/{}", node.label()));
        let mut context = Context { b, node, cotangents: &outputs, wanted: &wanted };
        let inputs = rule(&mut context)?;
        for ((input, cotangent), wanted) in node.inputs.iter().zip(inputs).zip(&wanted) {
            if let (Some(input), Some(cotangent), true) = (input, cotangent, wanted) {
                debug_assert_eq!(b.shape(&cotangent), b.shape(input), "cotangent of {input} in {}", node.label());
                cotangents.entry(input.clone()).or_default().push(cotangent);
            }
        }
    }
    b.set_scope(&outer_scope);
    let mut found = HashMap::new();
    for value in wrt {
        if let Some(cotangent) = total(b, &mut cotangents, value) {
            found.insert(value.clone(), cotangent);
        }
    }
    Ok(found)
}

/// Values that depend on one of `wrt` through real-valued operators.
fn active_values(nodes: &[Node], wrt: &[ValueId]) -> HashSet<ValueId> {
    let mut active: HashSet<ValueId> = wrt.iter().cloned().collect();
    for node in nodes {
        let stops = matches!(rules::kind(node), Some(Kind::Stop));
        if !stops && crate::onnx::node_reads(node).iter().any(|i| active.contains(i)) {
            active.extend(node.outputs.iter().flatten().cloned());
        }
    }
    active
}

/// The sum of the cotangents that have arrived at `value`, leaving just that sum there.
fn total(b: &mut Builder, cotangents: &mut HashMap<ValueId, Vec<ValueId>>, value: &ValueId) -> Option<ValueId> {
    let parts = cotangents.get_mut(value)?;
    let mut parts_now = std::mem::take(parts).into_iter();
    let mut sum = parts_now.next()?;
    for part in parts_now {
        sum = b.add(&sum, &part);
    }
    cotangents.insert(value.clone(), vec![sum.clone()]);
    Some(sum)
}

fn no_gradient(node: &Node, wrt: &[ValueId]) -> Error {
    let through: Vec<&str> =
        node.inputs.iter().flatten().filter(|i| wrt.contains(i)).map(ValueId::as_str).collect();
    let what = match through.as_slice() {
        [] => "has no gradient, and stands between the loss and the weights".to_owned(),
        names => format!("has no gradient, and uses the weights {} directly", names.join(", ")),
    };
    Error::node(node, what).hint(
        "freeze the weights before this node with --freeze GLOB, or see `onnx-merge ops` for what can be trained",
    )
}
