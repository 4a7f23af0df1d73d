//! Sums of slices that have zeros around them become concatenations.
//!
//! Readers that take a value apart, as attention does with queries, keys and values that one projection makes, each give
//! it a cotangent of their own part, with zeros where the others are. To add those up goes through memory three
//! times for each; to put them side by side, once for all.

use crate::onnx::{Attr, Facts, Graph, Node, ValueId};
use std::collections::{HashMap, HashSet};

/// Turns each sum of `Pad`s whose insides lie side by side, and together fill an axis, into a `Concat`. Sums that anything
/// else is part of stay. What isn't read any more is left for [`Graph::prune`].
///
/// A sum with zeros and a concatenation differ in one thing: −0 + 0 is 0.
pub fn join(graph: &mut Graph, facts: &Facts) {
    let sums = Sums { graph, facts, producers: graph.producers(), uses: uses(graph) };
    let joined: Vec<(usize, Node)> =
        (0..graph.nodes.len()).filter_map(|i| Some((i, sums.concatenation(i)?))).collect();
    for (i, node) in joined {
        graph.nodes[i] = node;
    }
}

struct Sums<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    producers: HashMap<&'a ValueId, usize>,
    uses: HashMap<ValueId, usize>,
}

/// A value with zeros before and behind it along one axis.
struct Part<'a> {
    data: &'a ValueId,
    axis: usize,
    /// Where it lies on that axis.
    start: usize,
    end: usize,
}

impl<'a> Sums<'a> {
    /// What node `i` is instead, if it is the last of such a sum's additions.
    fn concatenation(&self, i: usize) -> Option<Node> {
        let node = &self.graph.nodes[i];
        let sum = node.output(0).filter(|_| node.is("Add"))?;
        let mut parts = vec![];
        self.parts(node, sum, &mut parts)?;
        let axis = parts.first()?.axis;
        parts.sort_by_key(|part| part.start);
        let ends = parts.iter().map(|part| part.end);
        let side_by_side = std::iter::once(0).chain(ends).eq(parts
            .iter()
            .map(|part| part.start)
            .chain([self.facts.get(sum)?.shape.get(axis).copied()?]));
        if !side_by_side || parts.iter().any(|part| part.axis != axis) {
            return None;
        }
        let inputs: Vec<&ValueId> = parts.iter().map(|part| part.data).collect();
        let mut concat = Node::new("Concat", &inputs, &[sum]).with("axis", Attr::Int(axis as i64));
        concat.name.clone_from(&node.name);
        Some(concat)
    }

    /// Adds to `parts` all that the addition `node` adds up to `sum`; `None` if anything else is among it.
    fn parts(&self, node: &'a Node, sum: &ValueId, parts: &mut Vec<Part<'a>>) -> Option<()> {
        for operand in node.inputs.iter().flatten() {
            let maker = &self.graph.nodes[*self.producers.get(operand)?];
            if self.uses.get(operand) != Some(&1)
                || self.facts.get(operand)?.shape != self.facts.get(sum)?.shape
            {
                return None;
            }
            match maker.is("Add") {
                true => self.parts(maker, sum, parts)?,
                false => parts.push(self.part(maker)?),
            }
        }
        Some(())
    }

    fn part(&self, pad: &'a Node) -> Option<Part<'a>> {
        let zeros =
            pad.is("Pad") && pad.inputs.len() == 2 && matches!(pad.str("mode"), None | Some("constant"));
        let data = pad.input(0).filter(|_| zeros)?;
        let pads = self.graph.initializers.get(pad.input(1)?)?.to_i64();
        let shape = &self.facts.get(data)?.shape;
        let (before, behind) = pads.split_at_checked(shape.len())?;
        let padded: Vec<usize> = (0..shape.len()).filter(|&i| before[i] != 0 || behind[i] != 0).collect();
        let &[axis] = padded.as_slice() else { return None };
        let start = usize::try_from(before[axis]).ok()?;
        Some(Part { data, axis, start, end: start + shape[axis] })
    }
}

/// How often each value is read.
fn uses(graph: &Graph) -> HashMap<ValueId, usize> {
    let mut uses: HashMap<ValueId, usize> = HashMap::new();
    let ends: HashSet<&ValueId> = graph.outputs.iter().map(|output| &output.id).collect();
    let reads = graph.nodes.iter().flat_map(crate::onnx::node_reads).chain(ends.into_iter().cloned());
    for value in reads {
        *uses.entry(value).or_default() += 1;
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Builder, DType, Fact};

    /// The operators left of the sum of slices that begin and end at these places of an axis of six.
    fn left(slices: &[[i64; 2]]) -> Vec<String> {
        let mut b = Builder::new("slices");
        let padded: Vec<ValueId> = slices
            .iter()
            .map(|&[start, end]| {
                let x =
                    b.input(&format!("x{start}_{end}"), Fact::new(DType::F32, &[2, (end - start) as usize]));
                let pads = b.ints(&[0, start, 0, 6 - end]);
                b.op("Pad", &[&x, &pads])
            })
            .collect();
        let sum = padded.iter().skip(1).fold(padded[0].clone(), |sum, part| b.add(&sum, part));
        b.output_as("y", &sum);
        let (mut graph, facts) = b.finish();
        join(&mut graph, &facts);
        graph.prune();
        graph.nodes.iter().map(|node| node.op.clone()).filter(|op| op != "Identity").collect()
    }

    #[test]
    fn slices_that_fill_an_axis_are_put_side_by_side_in_whatever_order_they_come() {
        assert_eq!(left(&[[4, 6], [2, 4], [0, 2]]), ["Concat"]);
        assert_eq!(left(&[[0, 1], [3, 6], [1, 3]]), ["Concat"]);
    }

    #[test]
    fn slices_with_gaps_or_with_something_in_common_are_added_up() {
        assert_eq!(left(&[[0, 2], [4, 6]]), ["Pad", "Pad", "Add"]);
        assert_eq!(left(&[[0, 4], [3, 6]]), ["Pad", "Pad", "Add"]);
        assert_eq!(left(&[[1, 3], [3, 6]]), ["Pad", "Pad", "Add"]);
    }

    #[test]
    fn a_part_that_is_read_elsewhere_too_stays() {
        let mut b = Builder::new("read twice");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let (front, back) = (b.ints(&[0, 2]), b.ints(&[2, 0]));
        let (first, second) = (b.op("Pad", &[&x, &front]), b.op("Pad", &[&x, &back]));
        let sum = b.add(&first, &second);
        b.output_as("y", &sum);
        b.output_as("z", &first);
        let (mut graph, facts) = b.finish();
        join(&mut graph, &facts);
        assert!(graph.nodes.iter().all(|node| !node.is("Concat")));
    }
}
