//! Reverse-mode autodiff over ONNX: a graph transformation, ONNX in, ONNX out, nothing executed.
//!
//! The driver here knows no operator. What an operator's gradient is stands in [`rules`], one file an operator
//! family, one line a table. Foreign graphs go through [`prepare`] first, so that rules see only the forms of
//! opset 18 and later, static shapes and plain operators. Look at [`backward`] and [`rules::Rule`].

mod bodies;
pub mod facts;
mod join;
pub mod lower;
pub mod ops;
pub mod prepare;
pub mod recompute;
pub mod rules;
mod survey;

use crate::error::{Error, Result};
use crate::onnx::{Builder, Node, ValueId, node_reads};
use rules::{Context, Kind};
use std::collections::{HashMap, HashSet};

/// Extends the builder's graph by the cotangents of `wrt`.
///
/// `seeds` pairs values with their cotangents (of the same shape and type): for a scalar loss, `(loss, 1)`.
/// Returns the cotangent of each of `wrt` that influences a seeded value; one that doesn't is absent.
/// A cotangent has the shape and type of its value. Nothing is emitted that no cotangent of `wrt` needs.
///
/// # Errors
/// [`Error::Node`] for an operator without a gradient on the way from `wrt` to a seeded value, or for a value on
/// that way whose shape isn't known.
pub fn backward(
    b: &mut Builder,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<HashMap<ValueId, ValueId>> {
    let nodes = b.graph().nodes.clone();
    backward_through(b, &nodes, seeds, wrt)
}

/// [`backward`] through some of the graph's nodes only: `nodes`, in topological order.
pub fn backward_through(
    b: &mut Builder,
    nodes: &[Node],
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<HashMap<ValueId, ValueId>> {
    let active = active_values(nodes, wrt);
    let mut cotangents: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
    for (value, cotangent) in seeds.iter().filter(|(value, _)| active.contains(value)) {
        cotangents.entry(value.clone()).or_default().push(cotangent.clone());
    }
    let before = b.graph().nodes.len();
    let outer_scope = b.scope().to_owned();
    for node in nodes.iter().rev() {
        if node.outputs.iter().flatten().any(|o| cotangents.contains_key(o)) {
            if !outer_scope.contains("grad/") {
                let outer = if outer_scope.is_empty() { String::new() } else { format!("{outer_scope}/") };
                b.set_scope(&format!("{outer}grad/{}", node.label()));
            }
            pull_back(b, node, &active, &mut cotangents, wrt)?;
        }
    }
    let mut found = HashMap::new();
    for value in wrt {
        if let Some(cotangent) = total(b, &mut cotangents, value) {
            found.insert(value.clone(), cotangent);
        }
    }
    b.set_scope(&outer_scope);
    drop_unused(b, before, found.values());
    Ok(found)
}

/// Adds to `cotangents` what `node` contributes to those of its inputs.
fn pull_back(
    b: &mut Builder,
    node: &Node,
    active: &HashSet<ValueId>,
    cotangents: &mut HashMap<ValueId, Vec<ValueId>>,
    wrt: &[ValueId],
) -> Result<()> {
    let wanted: Vec<bool> =
        node.inputs.iter().map(|i| i.as_ref().is_some_and(|i| active.contains(i))).collect();
    if !node_reads(node).iter().any(|value| active.contains(value)) {
        return Ok(());
    }
    let kind = match rules::kind(node) {
        Some(Kind::Stop) => return Ok(()),
        None => return Err(no_gradient(node, wrt)),
        Some(kind) => kind,
    };
    if let Some(unknown) =
        node.inputs.iter().chain(&node.outputs).flatten().find(|v| !b.facts().contains_key(*v))
    {
        return Err(Error::node(
            node,
            format!("has no gradient here: type and shape of '{unknown}' are not known"),
        ));
    }
    let outputs: Vec<Option<ValueId>> =
        node.outputs.iter().map(|o| total(b, cotangents, o.as_ref()?)).collect();
    let mut context =
        Context { b: &mut *b, node, cotangents: &outputs, wanted: &wanted, active, captured: vec![] };
    let inputs = match kind {
        Kind::Rule(rule) => rule(&mut context)?,
        Kind::Composed(forward) => rules::compose::compose(&mut context, forward)?,
        Kind::Stop => vec![],
    };
    for (value, cotangent) in context.captured {
        cotangents.entry(value).or_default().push(cotangent);
    }
    for ((input, cotangent), wanted) in node.inputs.iter().zip(inputs).zip(&wanted) {
        if let (Some(input), Some(cotangent), true) = (input, cotangent, wanted) {
            if b.shape(&cotangent) != b.shape(input) {
                let (is, should) = (b.shape(&cotangent), b.shape(input));
                let what =
                    format!("its rule gives '{input}', of shape {should:?}, a cotangent of shape {is:?}");
                return Err(Error::node(node, what));
            }
            cotangents.entry(input.clone()).or_default().push(cotangent);
        }
    }
    Ok(())
}

/// Values that depend on one of `wrt` through operators that don't stop cotangents.
fn active_values(nodes: &[Node], wrt: &[ValueId]) -> HashSet<ValueId> {
    let mut active: HashSet<ValueId> = wrt.iter().cloned().collect();
    for node in nodes {
        let stops = matches!(rules::kind(node), Some(Kind::Stop));
        if !stops && node_reads(node).iter().any(|i| active.contains(i)) {
            active.extend(node.outputs.iter().flatten().cloned());
        }
    }
    active
}

/// The sum of the cotangents that have arrived at `value`, leaving just that sum there.
fn total(
    b: &mut Builder,
    cotangents: &mut HashMap<ValueId, Vec<ValueId>>,
    value: &ValueId,
) -> Option<ValueId> {
    let mut parts = std::mem::take(cotangents.get_mut(value)?).into_iter();
    let mut sum = parts.next()?;
    for part in parts {
        sum = b.add(&sum, &part);
    }
    cotangents.insert(value.clone(), vec![sum.clone()]);
    Some(sum)
}

/// Takes back the nodes emitted since there were `before`, as far as none of `results` needs them.
fn drop_unused<'a>(b: &mut Builder, before: usize, results: impl Iterator<Item = &'a ValueId>) {
    let mut needed: HashSet<ValueId> = results.cloned().collect();
    let emitted = b.graph_mut().nodes.split_off(before);
    let mut kept: Vec<Node> = vec![];
    for node in emitted.into_iter().rev() {
        if node.outputs.iter().flatten().any(|o| needed.contains(o)) {
            needed.extend(node_reads(&node));
            kept.push(node);
        }
    }
    b.graph_mut().nodes.extend(kept.into_iter().rev());
}

fn no_gradient(node: &Node, wrt: &[ValueId]) -> Error {
    let reads = node_reads(node);
    let through: Vec<&str> = reads.iter().filter(|i| wrt.contains(i)).map(ValueId::as_str).collect();
    let what = match through.as_slice() {
        [] => "has no gradient, and stands between the loss and the weights".to_owned(),
        names => format!("has no gradient, and uses the weights {} directly", names.join(", ")),
    };
    Error::node(node, what).hint(match node.domain.as_str() {
        "com.microsoft.nchwc" => {
            "ONNX Runtime optimised this file for one kind of processor: give the one it was made from, or one optimised \
             up to level 'extended'"
        }
        _ => "freeze the weights before this node with --freeze GLOB, or see `onnx-merge ops` for what can be trained",
    })
}

#[cfg(all(test, feature = "tract"))]
mod tests;
