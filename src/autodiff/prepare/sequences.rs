//! Sequences of tensors whose lengths are known: their elements become values of their own, so that no rule meets one.
//!
//! Exporters write `chunk`, `unbind` and `split` with them. What can't be followed stays as it is. Look at [`unpack`].

use crate::onnx::infer::normalise_axis;
use crate::onnx::{Facts, Graph, Names, Node, Tensor, ValueId};
use std::collections::HashMap;

/// Replaces what reads a known sequence by what reads its elements. The sequences themselves stay, for [`Graph::prune`].
pub fn unpack(graph: &mut Graph, facts: &Facts) {
    if !graph.nodes.iter().any(|n| n.domain.is_empty() && n.op.contains("Sequence")) {
        return;
    }
    let names = Names::of(graph);
    let nodes = std::mem::take(&mut graph.nodes);
    let mut work = Work { graph, facts, names, known: HashMap::new() };
    for node in nodes {
        if work.replace(&node).is_none() {
            work.graph.nodes.push(node);
        }
    }
}

struct Work<'a> {
    graph: &'a mut Graph,
    facts: &'a Facts,
    names: Names,
    /// The elements of each sequence.
    known: HashMap<ValueId, Vec<ValueId>>,
}

impl Work<'_> {
    /// Emits what does the work of a node on sequences; nothing where it has to stay.
    fn replace(&mut self, node: &Node) -> Option<()> {
        if !node.domain.is_empty() {
            return None;
        }
        let output = node.output(0)?;
        let sequence = || self.known.get(node.input(0)?).cloned();
        match node.op.as_str() {
            "SequenceEmpty" => drop(self.known.insert(output.clone(), vec![])),
            "SequenceConstruct" => {
                let elements: Option<Vec<ValueId>> = node.inputs.iter().cloned().collect();
                self.known.insert(output.clone(), elements?);
            }
            "SplitToSequence" => {
                let elements = self.split(node)?;
                self.known.insert(output.clone(), elements);
            }
            "SequenceInsert" => {
                let (mut elements, new) = (sequence()?, node.input(1)?.clone());
                let at = match node.input(2) {
                    Some(_) => self.position(node, 2, elements.len() + 1)?,
                    None => elements.len(),
                };
                elements.insert(at, new);
                self.known.insert(output.clone(), elements);
            }
            "SequenceErase" => {
                let mut elements = sequence()?;
                let at = match node.input(1) {
                    Some(_) => self.position(node, 1, elements.len())?,
                    None => elements.len().checked_sub(1)?,
                };
                elements.remove(at);
                self.known.insert(output.clone(), elements);
            }
            "SequenceAt" => {
                let elements = sequence()?;
                let element = elements.get(self.position(node, 1, elements.len())?)?;
                self.graph.nodes.push(Node::new("Identity", &[element], &[output]));
                return Some(());
            }
            "SequenceLength" => {
                let length = Tensor::i64(&[], &[sequence()?.len() as i64]);
                self.graph.initializers.insert(output.clone(), length);
                return Some(());
            }
            "ConcatFromSequence" => {
                let elements = sequence()?;
                return self.concat(node, &elements, output);
            }
            _ => return None,
        }
        // Something else may read the sequence as such.
        self.graph.nodes.push(node.clone());
        Some(())
    }

    /// A constant place in a sequence of `count`, from the front.
    fn position(&self, node: &Node, input: usize, count: usize) -> Option<usize> {
        let place = *self.graph.initializers.get(node.input(input)?)?.to_i64().first()?;
        normalise_axis(place, count)
    }

    fn split(&mut self, node: &Node) -> Option<Vec<ValueId>> {
        let (data, output) = (node.input(0)?, node.output(0)?);
        let shape = &self.facts.get(data)?.shape;
        let axis = normalise_axis(node.int_or("axis", 0), shape.len())?;
        let size = shape[axis] as i64;
        let parts = match node.input(1) {
            None => vec![1; shape[axis]],
            Some(split) => {
                let split = self.graph.initializers.get(split)?;
                match (split.rank(), split.to_i64().first()) {
                    (0, Some(&step)) if step > 0 => {
                        (0..size).step_by(step as usize).map(|at| step.min(size - at)).collect()
                    }
                    (1, _) => split.to_i64().into_owned(),
                    _ => return None,
                }
            }
        };
        let squeezes = node.input(1).is_none() && node.int_or("keepdims", 1) == 0;
        let names: Vec<ValueId> = (0..parts.len()).map(|i| self.fresh(&format!("{output}/{i}"))).collect();
        if names.is_empty() || parts.iter().any(|&part| part < 0) || parts.iter().sum::<i64>() != size {
            return None;
        }
        let sizes = self.ints(&format!("{output}/sizes"), &parts);
        let whole = Node::new("Split", &[data, &sizes], &names.iter().collect::<Vec<_>>());
        self.graph.nodes.push(whole.with("axis", axis as i64));
        if !squeezes {
            return Some(names);
        }
        let axes = self.ints(&format!("{output}/axes"), &[axis as i64]);
        let squeeze = |name: &ValueId| {
            let flat = self.fresh(&format!("{name}/flat"));
            self.graph.nodes.push(Node::new("Squeeze", &[name, &axes], &[&flat]));
            flat
        };
        Some(names.iter().map(squeeze).collect())
    }

    fn concat(&mut self, node: &Node, elements: &[ValueId], output: &ValueId) -> Option<()> {
        let axis = node.int("axis")?;
        let mut parts = elements.to_vec();
        if elements.is_empty() {
            return None;
        }
        if node.int_or("new_axis", 0) != 0 {
            let axes = self.ints(&format!("{output}/axes"), &[axis]);
            for part in &mut parts {
                let wide = self.fresh(&format!("{part}/wide"));
                self.graph.nodes.push(Node::new("Unsqueeze", &[part, &axes], &[&wide]));
                *part = wide;
            }
        }
        let joined = Node::new("Concat", &parts.iter().collect::<Vec<_>>(), &[output]);
        self.graph.nodes.push(joined.with("axis", axis));
        Some(())
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> ValueId {
        let id = self.fresh(name);
        self.graph.initializers.insert(id.clone(), Tensor::i64(&[values.len()], values));
        id
    }
    fn fresh(&mut self, hint: &str) -> ValueId {
        self.names.fresh(hint)
    }
}
