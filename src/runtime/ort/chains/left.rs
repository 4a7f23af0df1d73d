//! What is left to ONNX Runtime: elementwise nodes that its optimiser makes part of a kernel which it runs anyway.

use crate::onnx::{Graph, Node, ValueId};
use std::collections::{HashMap, HashSet};

/// Indices of nodes that no chain should take.
pub fn left(graph: &Graph) -> HashSet<usize> {
    let look = Look {
        graph,
        producers: graph.producers(),
        consumers: graph.consumers(),
        outputs: graph.outputs.iter().map(|output| &output.id).collect(),
    };
    let nodes = || graph.nodes.iter().enumerate();
    let mut left: HashSet<usize> = nodes()
        .filter(|(_, node)| look.activates(node) || look.completes_product(node))
        .map(|(i, _)| i)
        .collect();
    nodes().filter(|(_, node)| node.is("Erf")).for_each(|(_, erf)| left.extend(look.around_erf(erf)));
    left
}

struct Look<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a ValueId, usize>,
    consumers: HashMap<ValueId, Vec<usize>>,
    outputs: HashSet<&'a ValueId>,
}

impl<'a> Look<'a> {
    /// The node that makes a value which nothing reads but one node.
    fn only_for_one(&self, id: &ValueId) -> Option<&'a Node> {
        self.reader(id)?;
        self.producers.get(id).map(|&i| &self.graph.nodes[i])
    }
    /// The only reader of a value.
    fn reader(&self, id: &ValueId) -> Option<usize> {
        match self.consumers.get(id)?[..] {
            [reader] if !self.outputs.contains(id) => Some(reader),
            _ => None,
        }
    }

    /// An activation right after a convolution or product.
    fn activates(&self, node: &Node) -> bool {
        let before = || node.input(0).and_then(|id| self.only_for_one(id));
        (node.is("Relu") || node.is("Clip"))
            && before().is_some_and(|before| before.is("Conv") || before.is("Gemm"))
    }

    /// A bias added to a product, or a number it is multiplied by.
    fn completes_product(&self, node: &Node) -> bool {
        let known = |id: &ValueId| self.graph.initializers.get(id).is_some_and(|t| t.len() == 1);
        let product = |id: &ValueId| self.only_for_one(id).is_some_and(|node| node.is("MatMul"));
        let inputs = || node.inputs.iter().flatten();
        let scales = (node.is("Mul") || node.is("Div")) && inputs().any(known);
        let scales_operand = || {
            let reader = node.output(0).and_then(|id| self.reader(id));
            reader.is_some_and(|i| self.graph.nodes[i].is("MatMul"))
        };
        let biases = node.is("Add") && inputs().any(|id| !self.producers.contains_key(id));
        (scales && (inputs().any(product) || scales_operand())) || (biases && inputs().any(product))
    }

    /// x · ½ · (1 + erf(x / √2)), which becomes `Gelu` where nobody else reads what is in between.
    fn around_erf(&self, erf: &Node) -> Vec<usize> {
        let mut around = vec![];
        if erf.output(0).is_none_or(|id| self.reader(id).is_none()) {
            return around;
        }
        around.extend(
            erf.input(0).filter(|id| self.reader(id).is_some()).and_then(|id| self.producers.get(id)),
        );
        let mut made = erf.output(0);
        for _ in 0..3 {
            // Where gradients read what is in between, as they do in training, nothing is made of it.
            let Some(reader) = made.and_then(|id| self.reader(id)) else { return vec![] };
            around.push(reader);
            made = self.graph.nodes[reader].output(0);
        }
        around
    }
}
