//! Whether two nodes do the same, down to the graphs inside them, whatever the values in these are called. Look at [`alike`].

use super::{Attr, Graph, Node, ValueId};
use std::collections::{HashMap, HashSet};

/// Whether `b` makes of its inputs what `a` makes of its own: the same operator, the same attributes. Graphs inside them may
/// name their values otherwise, and declare other shapes. Gives what these graphs take from outside, side by side; `None`
/// where the nodes differ.
pub fn alike<'a>(a: &'a Node, b: &'a Node) -> Option<Vec<(&'a ValueId, &'a ValueId)>> {
    let mut pairs = Pairs::default();
    pairs.nodes(a, b).then_some(pairs.outer)
}

#[derive(Default)]
struct Pairs<'a> {
    own: HashMap<&'a ValueId, &'a ValueId>,
    /// What the values of `own` stand for.
    taken: HashSet<&'a ValueId>,
    outer: Vec<(&'a ValueId, &'a ValueId)>,
}

impl<'a> Pairs<'a> {
    fn nodes(&mut self, a: &'a Node, b: &'a Node) -> bool {
        let simple = |node: &Node| node.subgraphs().next().is_none();
        if a.op != b.op || a.domain != b.domain {
            return false;
        }
        if simple(a) {
            return a.attrs == b.attrs;
        }
        a.attrs.len() == b.attrs.len()
            && a.attrs.iter().all(|(name, a)| b.attrs.get(name).is_some_and(|b| self.attributes(a, b)))
    }

    fn attributes(&mut self, a: &'a Attr, b: &'a Attr) -> bool {
        match (a, b) {
            (Attr::Graph(a), Attr::Graph(b)) => self.graphs(a, b),
            (Attr::Graphs(a), Attr::Graphs(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.graphs(a, b))
            }
            _ => a == b,
        }
    }

    fn graphs(&mut self, a: &'a Graph, b: &'a Graph) -> bool {
        let sizes = |g: &Graph| (g.inputs.len(), g.outputs.len(), g.nodes.len(), g.initializers.len());
        if sizes(a) != sizes(b) {
            return false;
        }
        for (a, b) in a.inputs.iter().zip(&b.inputs) {
            if a.dtype != b.dtype {
                return false;
            }
            self.make(&a.id, &b.id);
        }
        for ((a, x), (b, y)) in a.initializers.iter().zip(&b.initializers) {
            if x != y {
                return false;
            }
            self.make(a, b);
        }
        a.nodes.iter().zip(&b.nodes).all(|(a, b)| self.inner(a, b))
            && a.outputs.iter().zip(&b.outputs).all(|(a, b)| self.read(&a.id, &b.id))
    }

    /// A node inside.
    fn inner(&mut self, a: &'a Node, b: &'a Node) -> bool {
        if a.inputs.len() != b.inputs.len() || a.outputs.len() != b.outputs.len() {
            return false;
        }
        let read = a.inputs.iter().zip(&b.inputs).all(|pair| match pair {
            (Some(a), Some(b)) => self.read(a, b),
            (a, b) => a == b,
        });
        let same = read && self.nodes(a, b);
        same && a.outputs.iter().zip(&b.outputs).all(|pair| match pair {
            (Some(a), Some(b)) => {
                self.make(a, b);
                true
            }
            (a, b) => a == b,
        })
    }

    fn make(&mut self, a: &'a ValueId, b: &'a ValueId) {
        self.own.insert(a, b);
        self.taken.insert(b);
    }

    fn read(&mut self, a: &'a ValueId, b: &'a ValueId) -> bool {
        match self.own.get(a) {
            Some(own) => *own == b,
            None if self.taken.contains(b) => false,
            None => {
                self.outer.push((a, b));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::ValueInfo;

    /// A loop whose body adds to what it carries a value from outside; `prefix` begins the names inside.
    fn adding(prefix: &str, outer: &str, op: &str, dims: &[usize]) -> Node {
        let id = |name: &str| ValueId::new(format!("{prefix}{name}"));
        let info =
            |name: &str| ValueInfo::new(id(name), &crate::onnx::Fact::new(crate::onnx::DType::F32, dims));
        let sum = Node::new(op, &[&id("state"), &ValueId::new(outer)], &[&id("next")]);
        let body = Graph {
            name: "body".into(),
            inputs: vec![info("state"), info("slice")],
            outputs: vec![info("next")],
            nodes: vec![sum],
            ..Graph::default()
        };
        let mut node = Node::new("Scan", &[], &[]);
        node.attrs.insert("body".into(), Attr::Graph(Box::new(body)));
        node
    }

    #[test]
    fn names_inside_and_declared_shapes_dont_matter_but_work_does() {
        let one = adding("a/", "w", "Add", &[2]);
        let (renamed, other) = (adding("b/", "v", "Add", &[3]), adding("b/", "w", "Mul", &[2]));
        let (w, v) = (ValueId::new("w"), ValueId::new("v"));
        assert_eq!(alike(&one, &renamed), Some(vec![(&w, &v)]));
        assert_eq!(alike(&one, &other), None);
        // What is made inside one must not be what the other takes from outside.
        let captured = adding("b/", "b/state", "Add", &[2]);
        assert_eq!(alike(&one, &captured), None);
        assert_eq!(alike(&one, &one.clone().with("num_scan_inputs", 1)), None);
    }
}
