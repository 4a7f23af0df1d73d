//! Instances of ONNX functions: the body with the caller's values and attributes in place of its own.

use crate::error::{Error, Result};
use crate::onnx::{Attr, Function, Graph, Node, ValueId};
use std::collections::HashMap;

/// The nodes that `node`, a call of `function`, stands for. `fresh` gives names nobody has.
pub fn instantiate(
    function: &Function,
    node: &Node,
    fresh: &mut dyn FnMut(&str) -> ValueId,
) -> Result<Vec<Node>> {
    if node.inputs.len() > function.inputs.len() || node.outputs.len() > function.outputs.len() {
        return Err(Error::node(node, "has more inputs or outputs than its function"));
    }
    let mut names: HashMap<ValueId, Option<ValueId>> = HashMap::new();
    for (i, input) in function.inputs.iter().enumerate() {
        names.insert(input.clone(), node.input(i).cloned());
    }
    // A body may pass an input straight through; the caller's output is then made by an Identity.
    let mut passed = vec![];
    for (i, output) in function.outputs.iter().enumerate() {
        match (node.output(i), names.get(output)) {
            (Some(caller), Some(Some(input))) => passed.push(Node::new("Identity", &[input], &[caller])),
            (Some(caller), None) => {
                names.insert(output.clone(), Some(caller.clone()));
            }
            _ => {}
        }
    }
    let mut instance = Instance { function, call: node, names, fresh };
    let mut nodes = instance.nodes(&function.nodes);
    nodes.extend(passed);
    Ok(nodes)
}

struct Instance<'a> {
    function: &'a Function,
    call: &'a Node,
    /// Names of the body to names of the caller; `None` for optional inputs left out.
    names: HashMap<ValueId, Option<ValueId>>,
    fresh: &'a mut dyn FnMut(&str) -> ValueId,
}

impl Instance<'_> {
    fn nodes(&mut self, body: &[Node]) -> Vec<Node> {
        body.iter().map(|node| self.node(node)).collect()
    }

    fn node(&mut self, node: &Node) -> Node {
        let inputs = node.inputs.iter().map(|i| self.read(i.as_ref()?)).collect();
        let attrs =
            node.attrs.iter().filter_map(|(name, value)| Some((name.clone(), self.attribute(value)?)));
        let attrs = attrs.collect();
        let outputs = node.outputs.iter().map(|o| o.as_ref().map(|o| self.define(o))).collect();
        let name = match node.name.is_empty() {
            true => String::new(),
            false => format!("{}/{}", self.call.label(), node.name),
        };
        Node { name, op: node.op.clone(), domain: node.domain.clone(), inputs, outputs, attrs }
    }

    fn read(&self, id: &ValueId) -> Option<ValueId> {
        self.names.get(id).cloned().unwrap_or_else(|| Some(id.clone()))
    }

    fn define(&mut self, id: &ValueId) -> ValueId {
        if let Some(Some(name)) = self.names.get(id) {
            return name.clone();
        }
        let name = (self.fresh)(&format!("{}/{id}", self.call.label()));
        self.names.insert(id.clone(), Some(name.clone()));
        name
    }

    /// `None` for a reference to an attribute that the call leaves out and that has no default.
    fn attribute(&mut self, value: &Attr) -> Option<Attr> {
        Some(match value {
            Attr::Ref { name, .. } => {
                self.call.attrs.get(name).or_else(|| self.function.defaults.get(name))?.clone()
            }
            Attr::Graph(graph) => Attr::Graph(Box::new(self.graph(graph))),
            Attr::Graphs(graphs) => Attr::Graphs(graphs.iter().map(|g| self.graph(g)).collect()),
            other => other.clone(),
        })
    }

    fn graph(&mut self, graph: &Graph) -> Graph {
        let outside = self.names.clone();
        let mut out = Graph { name: graph.name.clone(), ..Graph::default() };
        for input in &graph.inputs {
            self.names.remove(&input.id);
            let mut input = input.clone();
            input.id = self.define(&input.id);
            out.inputs.push(input);
        }
        for (id, tensor) in &graph.initializers {
            self.names.remove(id);
            let id = self.define(id);
            out.initializers.insert(id, tensor.clone());
        }
        out.nodes = self.nodes(&graph.nodes);
        out.outputs = graph.outputs.clone();
        for output in &mut out.outputs {
            output.id = self.read(&output.id).unwrap_or_else(|| output.id.clone());
        }
        self.names = outside;
        out
    }
}
