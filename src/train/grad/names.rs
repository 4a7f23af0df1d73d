//! The names that a gradient graph promises its user, and how the model's own values make room for them.

use crate::autodiff::prepare;
use crate::onnx::{Graph, ValueId};
use std::collections::{HashMap, HashSet};

/// Names of the graph's own inputs and outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub loss: String,
    pub label: String,
    pub rate: String,
    pub step: String,
}

/// Endings of names that belong to a weight, the first to other values, too.
pub const GRADIENT: &str = "grad";
/// Endings of a gradient that is [rows](super::sparse) of a table.
pub const ROWS: &str = "rows";
pub const VALUES: &str = "values";
pub const NEXT: &str = "next";
pub const FIRST_MOMENT: &str = "m";
pub const SECOND_MOMENT: &str = "v";

impl Names {
    /// `loss`, `label`, `lr` and `step`, with an underscore behind where an input or a weight of the model has that
    /// name already.
    pub fn free_in(graph: &Graph) -> Self {
        let fixed = fixed_names(graph);
        let free = |name: &str| {
            let mut name = name.to_owned();
            while fixed.contains(name.as_str()) {
                name.push('_');
            }
            name
        };
        Self { loss: free("loss"), label: free("label"), rate: free("lr"), step: free("step") }
    }

    /// Gives values inside the graph other names, where they have one of these; returns old and new names.
    pub fn clear(&self, graph: &mut Graph) -> HashMap<ValueId, ValueId> {
        let mut reserved: HashSet<ValueId> =
            [&self.loss, &self.label, &self.rate, &self.step].into_iter().map(ValueId::new).collect();
        reserved.insert(ValueId::new(format!("{}.{NEXT}", self.step)));
        for id in graph.initializers.iter().filter(|(_, t)| t.dtype().is_float()).map(|(id, _)| id) {
            let endings = [GRADIENT, NEXT, FIRST_MOMENT, SECOND_MOMENT].map(|e| format!("{id}.{e}"));
            reserved.extend(endings.iter().map(ValueId::new));
            reserved.extend([ROWS, VALUES].map(|part| ValueId::new(format!("{id}.{GRADIENT}.{part}"))));
            reserved.extend(endings[2..].iter().map(|e| ValueId::new(format!("{e}.{NEXT}"))));
        }
        let inside = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
        let values = graph.inputs.iter().map(|input| &input.id).chain(inside.clone());
        reserved.extend(values.map(|id| ValueId::new(format!("{id}.{GRADIENT}"))));
        let renamed: HashMap<ValueId, ValueId> = inside
            .filter(|id| reserved.contains(*id))
            .map(|id| (id.clone(), ValueId::new(format!("{id}~inside"))))
            .collect();
        prepare::rename(&mut graph.nodes, &renamed);
        for output in &mut graph.outputs {
            if let Some(name) = renamed.get(&output.id) {
                output.id = name.clone();
            }
        }
        renamed
    }
}

fn fixed_names(graph: &Graph) -> HashSet<&str> {
    graph.inputs.iter().map(|i| i.id.as_str()).chain(graph.initializers.keys().map(ValueId::as_str)).collect()
}
