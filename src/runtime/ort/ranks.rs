//! Operands of as many axes as the result has.
//!
//! Where a result's last axis has one element, as in the update of the weights of a 1×1 convolution, ONNX Runtime (1.32) takes
//! operands of fewer axes than the result, scalars for instance, element by element: fifty to a hundred times as long as the same
//! numbers with ones in front of their shape (docs/benchmarks.md).

use crate::onnx::{Facts, Graph, Names, Node, Tensor, ValueId, element_count};
use std::collections::HashMap;

/// Operators whose operands broadcast against each other.
const BROADCASTING: [&str; 17] = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Where",
];
/// Elements below which nothing is gained.
const FEW: usize = 64;

/// Gives operands that slow their node down a `Reshape`.
pub fn pad(graph: &mut Graph, facts: &Facts) {
    if !graph.nodes.iter().any(|node| rank(node, facts).is_some()) {
        return;
    }
    // Taken while all nodes are in the graph: what is new must not be called like any of them.
    let mut reshaped = Reshaped { names: Names::of(graph), known: HashMap::new() };
    for mut node in std::mem::take(&mut graph.nodes) {
        if let Some(rank) = rank(&node, facts) {
            for input in node.inputs.iter_mut().flatten() {
                let short = facts.get(input).filter(|fact| fact.shape.len() < rank);
                if let Some(fact) = short {
                    let ones = std::iter::repeat_n(1, rank - fact.shape.len());
                    let shape: Vec<usize> = ones.chain(fact.shape.iter().copied()).collect();
                    *input = reshaped.of(graph, input, shape);
                }
            }
        }
        graph.nodes.push(node);
    }
}

/// The axes of what a node makes, if it's one that operands of fewer axes slow down.
fn rank(node: &Node, facts: &Facts) -> Option<usize> {
    let broadcasts = node.domain.is_empty() && BROADCASTING.contains(&node.op.as_str());
    let result = facts.get(node.outputs.first().filter(|_| broadcasts)?.as_ref()?)?;
    let slow = result.shape.last() == Some(&1) && element_count(&result.shape)? >= FEW;
    slow.then_some(result.shape.len())
}

/// Values that have been reshaped.
struct Reshaped {
    /// Those of the graph.
    names: Names,
    known: HashMap<(ValueId, Vec<usize>), ValueId>,
}

impl Reshaped {
    fn of(&mut self, graph: &mut Graph, id: &ValueId, shape: Vec<usize>) -> ValueId {
        let key = (id.clone(), shape);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let [output, sizes] =
            ["reshaped", "reshaped/shape"].map(|what| self.names.fresh(&format!("{id}/{what}")));
        let dims: Vec<i64> = key.1.iter().map(|&d| d as i64).collect();
        graph.initializers.insert(sizes.clone(), Tensor::i64(&[dims.len()], &dims));
        graph.nodes.push(Node::new("Reshape", &[id, &sizes], &[&output]));
        self.known.insert(key, output.clone());
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Builder, DType, Fact};

    #[test]
    fn no_name_is_that_of_a_later_node() {
        let mut b = Builder::new("case");
        let x = b.input("x", Fact::new(DType::F32, &[100, 1]));
        let rate = b.input("rate", Fact::new(DType::F32, &[]));
        let product = b.op("Mul", &[&x, &rate]);
        let last = b.neg(&product);
        b.output(&last);
        let (mut graph, facts) = b.finish();
        let taken = ValueId::new("rate/reshaped");
        graph.nodes[1].outputs = vec![Some(taken.clone())];
        pad(&mut graph, &facts);
        let made = graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten());
        assert_eq!(made.filter(|&id| *id == taken).count(), 1);
        assert_eq!(
            graph.nodes.iter().map(|node| node.op.as_str()).collect::<Vec<_>>(),
            ["Reshape", "Mul", "Neg"]
        );
    }
}
