//! Makes `Scan` nodes: a body's nodes are emitted like any others, and then cut out of the graph again ([`cut`]); constants
//! stay outside. Knows no operator. Look at [`Scan`].

use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Attr, Builder, Fact, Graph, Node, ValueId, ValueInfo};

/// How a tensor is taken apart for the iterations, or put together from them.
#[derive(Clone, Copy, PartialEq)]
pub struct Slices {
    pub axis: i64,
    /// Whether the first iteration has the last slice.
    pub backwards: bool,
}

/// Takes the nodes emitted since there were `start` out of the graph, as far as `outputs` needs them: a body.
pub fn cut(b: &mut Builder, start: usize, name: &str, inputs: &[ValueId], outputs: &[ValueId]) -> Graph {
    let info = |b: &Builder, id: &ValueId| ValueInfo::new(id.clone(), b.fact(id));
    let mut graph = Graph {
        name: name.to_owned(),
        inputs: inputs.iter().map(|id| info(b, id)).collect(),
        outputs: outputs.iter().map(|id| info(b, id)).collect(),
        nodes: b.graph_mut().nodes.split_off(start),
        ..Graph::default()
    };
    graph.prune();
    graph
}

/// A `Scan` in the making: first what goes in, then the nodes of the body, then [`cut`] and [`Scan::finish`].
#[derive(Default)]
pub struct Scan {
    /// What the body knows the carried values as.
    pub carried: Vec<ValueId>,
    initial: Vec<ValueId>,
    fed: Vec<(ValueId, Slices)>,
    slices: Vec<ValueId>,
}

impl Scan {
    /// Carries a value from iteration to iteration, from `initial` on; what the body knows it as.
    pub fn carry(&mut self, b: &mut Builder, initial: ValueId) -> ValueId {
        let inner = b.fresh("carried");
        let fact = b.fact(&initial).clone();
        b.set_fact(&inner, fact);
        self.initial.push(initial);
        self.carried.push(inner.clone());
        inner
    }
    /// Feeds `whole` in slices; what the body knows a slice as.
    pub fn feed(&mut self, b: &mut Builder, whole: &ValueId, slices: Slices) -> ValueId {
        let slice = b.fresh("slice");
        let mut fact = b.fact(whole).clone();
        if let Some(axis) = normalise_axis(slices.axis, fact.rank()) {
            fact.shape.remove(axis);
        }
        b.set_fact(&slice, fact);
        self.fed.push((whole.clone(), slices));
        self.slices.push(slice.clone());
        slice
    }
    /// What is carried into the first iteration.
    pub fn initial(&self) -> &[ValueId] {
        &self.initial
    }
    pub fn body_inputs(&self) -> Vec<ValueId> {
        [&self.carried[..], &self.slices].concat()
    }
    /// Emits the node, for `node`; `results` says how the body's outputs after the carried ones are collected. Gives the
    /// last values of what was carried, then what was collected.
    ///
    /// # Errors
    /// [`Error::Node`] where nothing is fed.
    pub fn finish(
        self,
        b: &mut Builder,
        node: &Node,
        body: Graph,
        results: &[Slices],
    ) -> Result<Vec<ValueId>> {
        let Some((first, slices)) = self.fed.first() else {
            return Err(Error::node(node, "has no gradient: nothing tells how often it runs"));
        };
        let shape = b.shape(first);
        let length = normalise_axis(slices.axis, shape.len()).map_or(1, |axis| shape[axis]);
        let axes = |list: &mut dyn Iterator<Item = Slices>| {
            let list: Vec<Slices> = list.collect();
            let axes = list.iter().map(|s| s.axis).collect::<Vec<i64>>();
            (Attr::Ints(axes), Attr::Ints(list.iter().map(|s| i64::from(s.backwards)).collect()))
        };
        let (input_axes, input_directions) = axes(&mut self.fed.iter().map(|f| f.1));
        let (output_axes, output_directions) = axes(&mut results.iter().copied());
        let facts: Vec<Fact> = body.outputs.iter().filter_map(ValueInfo::fact).collect();
        let mut attrs = vec![
            ("body", Attr::Graph(Box::new(body))),
            ("num_scan_inputs", Attr::Int(self.fed.len() as i64)),
            ("scan_input_axes", input_axes),
            ("scan_input_directions", input_directions),
        ];
        if !results.is_empty() {
            attrs.extend([("scan_output_axes", output_axes), ("scan_output_directions", output_directions)]);
        }
        let inputs: Vec<Option<&ValueId>> =
            self.initial.iter().chain(self.fed.iter().map(|f| &f.0)).map(Some).collect();
        let made = b.op_full("", "Scan", &inputs, &attrs, self.initial.len() + results.len());
        for (i, (value, mut fact)) in made.iter().zip(facts).enumerate() {
            if let Some(slices) = i.checked_sub(self.initial.len()).map(|i| results[i]) {
                let axis = normalise_axis(slices.axis, fact.rank() + 1).unwrap_or(0);
                fact.shape.insert(axis, length);
            }
            b.set_fact(value, fact);
        }
        Ok(made)
    }
}
