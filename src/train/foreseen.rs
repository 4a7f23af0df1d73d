//! What a model will answer with, as far as its file tells: so that data which don't fit it are refused before anything is
//! run. Look at [`answer`].

use super::head::find_head;
use crate::autodiff::prepare;
use crate::data::{Answer, Bound};
use crate::onnx::infer::infer_graph;
use crate::onnx::{Dim, Fact, Facts, Graph, Model, ValueInfo};
use std::collections::{HashMap, HashSet};

/// Rows of the batch that shapes are followed for, where the file leaves it open: what has as many grows with it.
const ROWS: usize = 2;

/// The answer of `model` to a row of the data that are bound to it, of the output that `of` names or the first that can be.
///
/// `None` where the file doesn't tell: then a run shows it ([`super::network`]). Sizes that follow from those of inputs and
/// weights go before declared ones, which exporters get wrong.
pub fn answer(model: &Model, bound: &Bound, of: Option<&str>) -> Option<Answer> {
    let rows = bound.fixed_batch().unwrap_or(ROWS);
    let mut graph = prepare::upgrade(model).ok()?.graph;
    let fed: Facts = bound.facts(rows).into_iter().collect();
    let sizes = named_sizes(&graph, &fed);
    let mut facts = infer_graph(&graph, fed);
    let asked: Vec<&ValueInfo> =
        graph.outputs.iter().filter(|output| of.is_none_or(|of| output.id.as_str() == of)).collect();
    // Of several outputs some may not have the batch's rows, which isn't seen where these are one.
    let sole = asked.len() == 1;
    if !sole && bound.fixed_batch().is_some() {
        return None;
    }
    for output in asked {
        if !facts.contains_key(&output.id) {
            facts.insert(output.id.clone(), declared(output, &sizes, sole.then_some(rows))?);
        }
    }
    Some(find_head(&mut graph, &mut facts, rows, &HashSet::new(), of)?.known())
}

/// How long the axes are that inputs have names for.
fn named_sizes(graph: &Graph, fed: &Facts) -> HashMap<String, usize> {
    let mut sizes = HashMap::new();
    for input in graph.required_inputs() {
        let Some(fact) = fed.get(&input.id) else { continue };
        for (dim, &size) in input.shape.iter().flatten().zip(&fact.shape) {
            if let Dim::Named(name) = dim {
                sizes.insert(name.clone(), size);
            }
        }
    }
    sizes
}

/// What the file says of an output, whose `first` axis may be open.
fn declared(output: &ValueInfo, sizes: &HashMap<String, usize>, first: Option<usize>) -> Option<Fact> {
    let size = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Known(size) => Some(*size),
        Dim::Named(name) if sizes.contains_key(name) => sizes.get(name).copied(),
        _ => first.filter(|_| axis == 0),
    };
    let shape: Option<Vec<usize>> = output.shape.as_ref()?.iter().enumerate().map(size).collect();
    Some(Fact { dtype: output.dtype?, shape: shape? })
}
