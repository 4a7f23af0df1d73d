//! Names of values and nodes that nobody has yet.

use super::{Graph, ValueId};
use std::collections::{HashMap, HashSet};

/// The names given so far.
#[derive(Clone, Debug, Default)]
pub struct Names {
    taken: HashSet<ValueId>,
    /// How many were made from each hint.
    counts: HashMap<String, usize>,
}

impl Names {
    /// Every name that occurs in `graph` and in the graphs inside it: those of nodes as well, because a node that is made is
    /// named after its value, and no two nodes of a model may have one name.
    pub fn of(graph: &Graph) -> Self {
        let mut names = Self::default();
        names.collect(graph);
        names
    }

    fn collect(&mut self, graph: &Graph) {
        self.reserve(graph.inputs.iter().chain(&graph.outputs).map(|info| info.id.clone()));
        self.reserve(graph.initializers.keys().cloned());
        for node in &graph.nodes {
            self.reserve(node.inputs.iter().chain(&node.outputs).flatten().cloned());
            self.reserve([ValueId::new(node.name.as_str())]);
            node.subgraphs().for_each(|inner| self.collect(inner));
        }
    }

    /// Keeps names from being given to anything else.
    pub fn reserve(&mut self, names: impl IntoIterator<Item = ValueId>) {
        self.taken.extend(names);
    }

    /// `hint`, or where that is taken `hint_1`, `hint_2`, …; taken from now on.
    pub fn fresh(&mut self, hint: &str) -> ValueId {
        let count = self.counts.entry(hint.to_owned()).or_insert(0);
        loop {
            let id = ValueId::new(if *count == 0 { hint.to_owned() } else { format!("{hint}_{count}") });
            *count += 1;
            if self.taken.insert(id.clone()) {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Node;

    #[test]
    fn no_name_is_given_twice() {
        let [x, y] = ["x", "x_1"].map(ValueId::new);
        let node = Node { name: "Relu_1".into(), ..Node::new("Relu", &[&x], &[&y]) };
        let graph = Graph { nodes: vec![node], ..Graph::default() };
        let mut names = Names::of(&graph);
        let made = ["x", "z", "x", "z", "Relu", "Relu"].map(|hint| names.fresh(hint));
        assert_eq!(made.map(|id| id.to_string()), ["x_2", "z", "x_3", "z_1", "Relu", "Relu_2"]);
    }
}
