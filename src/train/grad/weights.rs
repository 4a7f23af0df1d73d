//! Which of a model's tensors are differentiated with respect to.
//!
//! Knows graphs and the parameter graph's roles. Look at [`select`].

use crate::error::{Error, Result};
use crate::onnx::{DType, Facts, Graph, Model, Node, Tensor, ValueId};
use crate::params::{ParamGraph, Role};
use crate::patterns::Patterns;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Inputs of operators that set something and aren't learned: bounds, scales of images, steps of quantisation.
const SETTINGS: &[(&str, &[usize])] = &[
    ("Bernoulli", &[0]),
    ("Clip", &[1, 2]),
    ("DequantizeLinear", &[1, 2]),
    ("Dropout", &[1, 2]),
    ("NonMaxSuppression", &[2, 3, 4]),
    ("OneHot", &[1, 2]),
    ("Pad", &[2]),
    ("QuantizeLinear", &[1, 2]),
    ("Range", &[0, 1, 2]),
    ("Resize", &[1, 2]),
    ("Upsample", &[1]),
];

/// A weight to differentiate with respect to, as the working graph holds it.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub name: ValueId,
    /// In the working graph's element type: half-precision weights in float32.
    pub value: Tensor,
    /// Whether an optimiser may shrink it: matrices and kernels, not biases and norms.
    pub decays: bool,
    /// Whether its gradient is [rows](super::sparse) of it.
    pub sparse: bool,
}

/// What to differentiate with respect to, in the order in which the file has it.
#[derive(Default)]
pub struct Targets {
    pub weights: Vec<Chosen>,
    /// Inputs of the graph, and values inside, that hold real numbers.
    pub values: Vec<ValueId>,
}

/// What `patterns` name (globs; none means `*`).
///
/// A pattern picks from what training changes: real numbers that are no running statistics, bounds or scalars of a
/// formula. One that names nothing of these may name any other float tensor of the file, else inputs (`*` never does), else
/// it may be the name of a value inside. `used` are the graphs that show what the tensors are used for.
///
/// # Errors
/// [`Error::Usage`] for a pattern that names nothing, [`Error::Model`] for a model without float weights.
pub fn select(
    model: &Model,
    used: &[&Graph],
    facts: &Facts,
    patterns: &[String],
    path: &Path,
) -> Result<Targets> {
    let params = ParamGraph::extract(model, facts)?;
    let roles: HashMap<&ValueId, Role> = params.weights.iter().map(|w| (&w.name, w.role)).collect();
    let graph = &model.graph;
    let is_weight = |t: &Tensor| t.dtype().is_float() && t.site.is_some() && !t.is_empty();
    let all: Vec<&ValueId> =
        graph.initializers.iter().filter(|(_, t)| is_weight(t)).map(|(id, _)| id).collect();
    let learned: HashSet<ValueId> = used.iter().flat_map(|graph| learned_inputs(graph)).collect();
    let trained = |id: &ValueId| match roles.get(id) {
        Some(Role::RunningStat) => false,
        Some(role) if *role != Role::Other => true,
        _ => learned.contains(id) && graph.initializers.get(id).is_some_and(|t| t.len() > 1),
    };
    let everything = ["*".to_owned()];
    let patterns = if patterns.is_empty() { &everything } else { patterns };
    let inputs = graph.required_inputs().filter(|i| i.dtype.is_some_and(DType::is_float)).map(|i| &i.id);
    let made = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
    let inside = made.filter(|id| facts.get(*id).is_some_and(|f| f.dtype.is_float()));
    let (inputs, inside): (Vec<&ValueId>, Vec<&ValueId>) = (inputs.collect(), inside.collect());
    let mut picked: HashSet<&ValueId> = HashSet::new();
    for pattern in patterns {
        let names = Patterns::new(&[pattern])?;
        let named: Vec<&ValueId> = all.iter().copied().filter(|id| names.matches(id.as_str())).collect();
        let mut found: Vec<&ValueId> = named.iter().copied().filter(|id| trained(id)).collect();
        if found.is_empty() && pattern != "*" {
            found = named;
        }
        if found.is_empty() && pattern != "*" {
            found = inputs.iter().copied().filter(|id| names.matches(id.as_str())).collect();
        }
        if found.is_empty() {
            found = inside.iter().copied().filter(|id| id.as_str() == pattern).collect();
        }
        if found.is_empty() && pattern == "*" {
            return Err(Error::model(path, "has no float weights to differentiate with respect to")
                .hint("`onnx-merge inspect` shows what the model holds"));
        }
        if found.is_empty() {
            let what =
                format!("--wrt '{pattern}' matches no float weight, input or value of {}", path.display());
            return Err(Error::usage(what).hint("`onnx-merge inspect` lists their names"));
        }
        picked.extend(found);
    }
    let weights = all.into_iter().filter(|id| picked.contains(id)).map(|id| Chosen {
        name: id.clone(),
        value: graph.initializers[id].clone(),
        decays: graph.initializers[id].rank() > 1,
        sparse: false,
    });
    let weights = weights.collect();
    let values = inputs.into_iter().chain(inside).filter(|id| picked.contains(id)).cloned().collect();
    Ok(Targets { weights, values })
}

/// Values that some node reads as more than a setting.
fn learned_inputs(graph: &Graph) -> HashSet<ValueId> {
    let mut learned = HashSet::new();
    for node in &graph.nodes {
        let settings = SETTINGS.iter().find(|(op, _)| node.is(op)).map_or(&[][..], |(_, places)| places);
        let inputs = node.inputs.iter().enumerate().filter(|(i, _)| !settings.contains(i));
        learned.extend(inputs.filter_map(|(_, id)| id.clone()));
        learned.extend(inner_reads(node));
    }
    learned
}

fn inner_reads(node: &Node) -> impl Iterator<Item = ValueId> + '_ {
    node.subgraphs().flat_map(learned_inputs)
}
