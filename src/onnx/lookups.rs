//! Inputs that are places in tables, such as the numbers of words in an embedding. Look at [`lookups`].

use super::infer::normalise_axis;
use super::{Graph, Node, ValueId};
use std::collections::HashMap;

/// An input whose values count the entries of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lookup {
    pub input: ValueId,
    /// The tensor of the table.
    pub table: ValueId,
    /// Entries of the table: an input holds −`size` to `size` − 1.
    pub size: usize,
}

/// What the inputs of a graph look up in its tensors, as far as the graph alone shows: the smallest table of each input. Inside
/// the bodies of nodes nothing is looked for.
pub fn lookups(graph: &Graph) -> Vec<Lookup> {
    let integers = graph.required_inputs().filter(|i| i.dtype.is_some_and(|d| d.is_int()));
    let mut origins: HashMap<&ValueId, &ValueId> = integers.map(|i| (&i.id, &i.id)).collect();
    let mut aliases: HashMap<&ValueId, &ValueId> = HashMap::new();
    let mut found: Vec<Lookup> = vec![];
    for node in &graph.nodes {
        let (Some(first), Some(output)) = (node.input(0), node.output(0)) else { continue };
        if let Some(origin) = origins.get(first).copied().filter(|_| keeps_values(node)) {
            origins.insert(output, origin);
        }
        if node.is("Identity") {
            aliases.insert(output, aliases.get(first).copied().unwrap_or(first));
        }
        let table = aliases.get(first).copied().unwrap_or(first);
        let input = node.input(1).and_then(|indices| origins.get(indices)).filter(|_| node.is("Gather"));
        let size = graph.initializers.get(table).and_then(|tensor| entries(node, tensor.shape()));
        if let (Some(&input), Some(size)) = (input, size) {
            found.push(Lookup { input: input.clone(), table: table.clone(), size });
        }
    }
    found.sort_by_key(|lookup| lookup.size);
    let mut smallest: Vec<Lookup> = vec![];
    for lookup in found {
        if !smallest.iter().any(|other| other.input == lookup.input) {
            smallest.push(lookup);
        }
    }
    smallest
}

/// Whether a node's output holds the whole numbers of its first input, perhaps in another shape.
fn keeps_values(node: &Node) -> bool {
    ["Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"]
        .iter()
        .any(|op| node.is(op))
}

fn entries(gather: &Node, table: &[usize]) -> Option<usize> {
    normalise_axis(gather.int_or("axis", 0), table.len()).map(|axis| table[axis])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attr, Builder, DType, Fact, Tensor};

    #[test]
    fn tables_are_found_behind_casts_and_reshapes() {
        let mut b = Builder::new("words");
        let words = b.input("words", Fact::new(DType::I32, &[2, 3]));
        let numbers = b.input("numbers", Fact::new(DType::F32, &[2, 3]));
        let large = b.initializer("large", Tensor::zeros(DType::F32, &[9, 2]));
        let small = b.initializer("small", Tensor::zeros(DType::F32, &[2, 5]));
        let shared = b.op("Identity", &[&small]);
        let wide = b.cast(&words, DType::I64);
        let flat = b.op("Flatten", &[&wide]);
        let outputs = [
            b.op("Gather", &[&large, &words]),
            b.op_with("Gather", &[&shared, &flat], &[("axis", Attr::Int(-1))]),
            // A table that is fed, and numbers that are computed, say nothing.
            b.op("Gather", &[&numbers, &words]),
        ];
        outputs.iter().for_each(|output| b.output(output));
        let expected = Lookup { input: "words".into(), table: "small".into(), size: 5 };
        assert_eq!(lookups(&b.finish().0), [expected]);
    }
}
