//! From graphs built for fixed sizes to one graph for any: what differs between them is a function of the sizes.
//!
//! Gradient rules rely on static shapes, so that a graph is built several times, for sizes that differ in one
//! dimension at a time. Where the results have the same nodes, the constants that differ are replaced by what
//! computes them from the shapes of the inputs. A graph built for sizes that none of this was derived from is the
//! witness: the result is right where it gives that graph, node by node and constant by constant. Look at [`generalise`].

use super::formula::{Formula, Seen, Sizes};
use crate::autodiff::prepare::rename_reads;
use crate::onnx::{Attr, Builder, Dim, Facts, Graph, Node, Tensor, ValueId, ValueInfo, alike};
use std::collections::HashMap;

/// A dimension that stays open: its name, and an input's axis that shows its size.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    pub name: String,
    pub input: ValueId,
    pub axis: usize,
}

/// A graph built for some sizes of the open dimensions.
pub struct Sample {
    pub sizes: Vec<usize>,
    pub graph: Graph,
}

/// A graph for any sizes.
pub struct General {
    pub graph: Graph,
    /// Whether it gives the witness. Where it doesn't, it may still be right: the same thing can be computed in several
    /// ways, and which is chosen may depend on the sizes.
    pub witnessed: bool,
}

/// The graph that `base` and `others` are instances of. `others[i]` differs from `base` in the size of `open[i]` only.
///
/// # Errors
/// Why they are no instances of one graph, as far as can be seen.
pub fn generalise(
    open: &[Open],
    base: &Sample,
    others: &[Sample],
    witness: &Sample,
) -> Result<General, String> {
    if others.iter().any(|other| other.graph.nodes.len() != base.graph.nodes.len()) {
        return Err("the number of operations depends on the sizes".into());
    }
    let shell = Graph { nodes: vec![], outputs: vec![], ..base.graph.clone() };
    let mut b = Builder::on(shell, Facts::new());
    reserve(&mut b, &base.graph);
    let sizes = measure(&mut b, open);
    let twins = others.iter().map(Twin::new).collect();
    let mut work = Work { base, twins, witness: Some(Twin::new(witness)), sizes, made: HashMap::new() };
    for i in 0..base.graph.nodes.len() {
        let node = work.node(&mut b, i)?;
        b.graph_mut().nodes.push(node);
    }
    let (mut graph, _) = b.finish();
    graph.outputs = base.graph.outputs.clone();
    if !work.twins.iter().all(|twin| twin.same_outputs(&base.graph)) {
        return Err("the outputs depend on the sizes".into());
    }
    let witnessed = work.witness.is_some_and(|twin| {
        twin.sample.graph.nodes.len() == base.graph.nodes.len() && twin.same_outputs(&base.graph)
    });
    open_shapes(&mut graph, open, base, others);
    graph.prune();
    Ok(General { graph, witnessed })
}

/// Names that are taken by nodes that are still to come.
fn reserve(b: &mut Builder, graph: &Graph) {
    for node in &graph.nodes {
        b.reserve(node.outputs.iter().flatten().cloned().chain([ValueId::new(node.name.as_str())]));
    }
}

/// Emits the sizes of the open dimensions.
fn measure(b: &mut Builder, open: &[Open]) -> Sizes {
    b.set_scope("sizes");
    let size = |open: &Open| {
        let shape = b.op("Shape", &[&open.input]);
        let axis = b.constant(Tensor::i64(&[], &[open.axis as i64]));
        b.op_with("Gather", &[&shape, &axis], &[("axis", Attr::Int(0))])
    };
    Sizes::new(open.iter().map(size).collect())
}

/// Declares the dimensions of inputs and outputs that differ between the samples as open.
fn open_shapes(graph: &mut Graph, open: &[Open], base: &Sample, others: &[Sample]) {
    for (i, info) in graph.inputs.iter_mut().enumerate() {
        for (k, dim) in info.shape.iter_mut().flatten().enumerate() {
            let at = |g: &Graph| g.inputs.get(i).and_then(|x| x.shape.as_ref()?.get(k).cloned());
            let own = at(&base.graph);
            let differing: Vec<usize> = (0..others.len()).filter(|&j| at(&others[j].graph) != own).collect();
            *dim = match differing.as_slice() {
                [] => continue,
                [one] if own == Some(Dim::Known(base.sizes[*one])) => Dim::Named(open[*one].name.clone()),
                _ => Dim::Unknown,
            };
        }
    }
    for (i, info) in graph.outputs.iter_mut().enumerate() {
        if others.iter().any(|o| o.graph.outputs.get(i).map(|x| &x.shape) != Some(&info.shape)) {
            info.shape = None;
        }
    }
}

/// Takes back what a graph inside a node, and those inside it, declare of dimensions that `others` have otherwise.
fn declare_open(graph: &mut Graph, others: &[&Graph]) {
    let open = |infos: &mut [ValueInfo], others: &dyn Fn(usize) -> Vec<Option<Vec<Dim>>>| {
        for (i, info) in infos.iter_mut().enumerate() {
            for (k, dim) in info.shape.iter_mut().flatten().enumerate() {
                let differs = |shape: &Option<Vec<Dim>>| shape.as_ref().and_then(|s| s.get(k)) != Some(dim);
                if others(i).iter().any(differs) {
                    *dim = Dim::Unknown;
                }
            }
        }
    };
    open(&mut graph.inputs, &|i| others.iter().map(|o| o.inputs[i].shape.clone()).collect());
    open(&mut graph.outputs, &|i| others.iter().map(|o| o.outputs[i].shape.clone()).collect());
    for (n, node) in graph.nodes.iter_mut().enumerate() {
        for (i, inner) in node.subgraphs_mut().enumerate() {
            let others: Vec<&Graph> = others.iter().filter_map(|o| o.nodes[n].subgraphs().nth(i)).collect();
            declare_open(inner, &others);
        }
    }
}

/// A graph that should be the base's at other sizes, and what its values are called there.
struct Twin<'a> {
    sample: &'a Sample,
    names: HashMap<&'a ValueId, &'a ValueId>,
}

impl<'a> Twin<'a> {
    fn new(sample: &'a Sample) -> Self {
        let inputs = sample.graph.inputs.iter().map(|i| (&i.id, &i.id));
        Self { sample, names: inputs.collect() }
    }
    /// Its `i`th node, where that does what `node` does.
    fn node(&self, i: usize, node: &Node) -> Option<&'a Node> {
        let same = |t: &&Node| {
            let omitted = |ids: &[Option<ValueId>]| ids.iter().map(Option::is_none).collect::<Vec<_>>();
            alike(node, t).is_some()
                && omitted(&t.inputs) == omitted(&node.inputs)
                && t.outputs.len() == node.outputs.len()
        };
        self.sample.graph.nodes.get(i).filter(same)
    }
    fn constant(&self, id: &ValueId) -> Option<&'a Tensor> {
        self.sample.graph.initializers.get(id)
    }
    /// Notes that the outputs of its node are those of the base's.
    fn learn(&mut self, twin: &'a Node, node: &'a Node) {
        let pairs = twin.outputs.iter().zip(&node.outputs);
        self.names.extend(pairs.filter_map(|(t, o)| Some((t.as_ref()?, o.as_ref()?))));
    }
    fn same_outputs(&self, base: &Graph) -> bool {
        let ours = self.sample.graph.outputs.iter().map(|o| self.names.get(&o.id).copied());
        ours.eq(base.outputs.iter().map(|o| Some(&o.id)))
    }
}

/// A constant, and what it is called in each twin.
type Key<'a> = (&'a ValueId, Vec<&'a ValueId>);

struct Work<'a> {
    base: &'a Sample,
    twins: Vec<Twin<'a>>,
    /// As long as it is what the formulas say.
    witness: Option<Twin<'a>>,
    sizes: Sizes,
    /// What stands for a constant of the base and its twins; nothing where it is the same everywhere.
    made: HashMap<Key<'a>, Option<(Formula, ValueId)>>,
}

impl<'a> Work<'a> {
    /// The base's `i`th node, with what differs between the twins computed.
    fn node(&mut self, b: &mut Builder, i: usize) -> Result<Node, String> {
        let base = self.base;
        let node = &base.graph.nodes[i];
        let depends = || format!("'{}' ({}) depends on the sizes", node.label(), node.op);
        let twins: Option<Vec<&'a Node>> = self.twins.iter().map(|twin| twin.node(i, node)).collect();
        let twins = twins.ok_or_else(depends)?;
        let seen = self.witness.as_ref().and_then(|witness| witness.node(i, node));
        if seen.is_none() {
            self.witness = None;
        }
        let mut general = node.clone();
        for (k, id) in node.inputs.iter().enumerate() {
            let Some(id) = id else { continue };
            let ids = twins.iter().filter_map(|t| t.inputs[k].as_ref()).collect();
            let seen = seen.and_then(|s| s.inputs[k].as_ref());
            let value = self
                .value(b, (id, ids), seen)
                .map_err(|why| format!("'{}' ({}) reads a constant that {why}", node.label(), node.op))?;
            general.inputs[k] = Some(value);
        }
        self.captured(b, (node, &twins, seen), &mut general)?;
        for (twin, other) in self.twins.iter_mut().zip(twins) {
            twin.learn(other, node);
        }
        if let (Some(witness), Some(other)) = (&mut self.witness, seen) {
            witness.learn(other, node);
        }
        Ok(general)
    }

    /// What the graphs inside a node take from outside and declare themselves, as [`Work::node`].
    fn captured(
        &mut self,
        b: &mut Builder,
        (node, twins, seen): (&'a Node, &[&'a Node], Option<&'a Node>),
        general: &mut Node,
    ) -> Result<(), String> {
        if node.subgraphs().next().is_none() {
            return Ok(());
        }
        let beside = |other: &'a Node| alike(node, other).unwrap_or_default();
        let (others, seen) = (twins.iter().map(|t| beside(t)).collect::<Vec<_>>(), seen.map(beside));
        for (k, (id, _)) in beside(node).into_iter().enumerate() {
            let ids = others.iter().map(|pairs| pairs[k].1).collect();
            let there = seen.as_ref().map(|pairs| pairs[k].1);
            let value = self.value(b, (id, ids), there).map_err(|why| {
                format!("'{}' ({}) reads inside it a constant that {why}", node.label(), node.op)
            })?;
            if value != *id {
                rename_reads(std::slice::from_mut(general), id, &value);
            }
        }
        for (i, inner) in general.subgraphs_mut().enumerate() {
            let others: Vec<&Graph> = twins.iter().filter_map(|t| t.subgraphs().nth(i)).collect();
            declare_open(inner, &others);
        }
        Ok(())
    }

    /// The value that stands for one of the base and its twins; `seen` is what the witness has there.
    fn value(&mut self, b: &mut Builder, key: Key<'a>, seen: Option<&'a ValueId>) -> Result<ValueId, String> {
        let (id, ids) = &key;
        let id = *id;
        let Some(tensor) = self.base.graph.initializers.get(id) else {
            let named = |twin: &Twin<'_>, other: &ValueId| twin.names.get(other) == Some(&id);
            if !self.twins.iter().zip(ids).all(|(twin, other)| named(twin, other)) {
                return Err("is another value at other sizes".into());
            }
            self.witness.take_if(|witness| !seen.is_some_and(|other| named(witness, other)));
            return Ok(id.clone());
        };
        if !self.made.contains_key(&key) {
            let made = self.constant(b, tensor, ids)?;
            self.made.insert(key.clone(), made);
        }
        let made = self.made[&key].as_ref();
        self.witness.take_if(|witness| {
            let there = seen.and_then(|other| witness.constant(other));
            !there.is_some_and(|there| match made {
                Some((formula, _)) => formula.gives(&witness.sample.sizes, there),
                None => there == tensor,
            })
        });
        Ok(made.map_or(id, |(_, value)| value).clone())
    }

    fn constant(
        &mut self,
        b: &mut Builder,
        tensor: &Tensor,
        ids: &[&ValueId],
    ) -> Result<Option<(Formula, ValueId)>, String> {
        let there = |(i, (twin, id)): (usize, (&Twin<'a>, &&ValueId))| {
            Some((twin.sample.sizes[i], twin.constant(id)?))
        };
        let others: Option<Vec<(usize, &Tensor)>> =
            self.twins.iter().zip(ids).enumerate().map(there).collect();
        let others = others.ok_or("is computed at other sizes")?;
        if others.iter().all(|(_, other)| *other == tensor) {
            return Ok(None);
        }
        let formula = Formula::of(&Seen { sizes: &self.base.sizes, tensor, others: &others })?;
        let value = formula.emit(b, &mut self.sizes);
        Ok(Some((formula, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DType, Fact};

    /// Mean of the squares of an `[n, t, 4]` input, flattened by a reshape to known sizes, and its last column.
    fn instance(n: usize, t: usize) -> Sample {
        let mut b = Builder::new("instance");
        let x = b.input("x", Fact::new(DType::F32, &[n, t, 4]));
        let flat = b.reshape(&x, &[n * t, 4]);
        let square = b.mul(&flat, &flat);
        let total = b.sum_all(&square);
        let mean = b.mul_scalar(&total, 1.0 / (n * t) as f64);
        b.output_as("mean", &mean);
        let last = b.slice(&x, &[t as i64 - 1], &[t as i64], &[1]);
        b.output_as("last", &last);
        Sample { sizes: vec![n, t], graph: b.finish().0 }
    }

    fn open(name: &str, axis: usize) -> Open {
        Open { name: name.into(), input: "x".into(), axis }
    }

    #[test]
    fn what_differs_between_instances_is_computed_from_the_sizes() {
        let open = [open("N", 0), open("T", 1)];
        let others = [instance(5, 13), instance(3, 17)];
        let general = generalise(&open, &instance(3, 13), &others, &instance(7, 19)).unwrap();
        assert!(general.witnessed);
        let graph = general.graph;
        let dims = graph.inputs[0].shape.clone().unwrap();
        assert_eq!(dims, [Dim::Named("N".into()), Dim::Named("T".into()), Dim::Known(4)]);
        let fixed: Vec<i64> = graph
            .initializers
            .values()
            .filter(|t| t.dtype() == DType::I64)
            .flat_map(|t| t.to_i64().into_owned())
            .collect();
        assert!(!fixed.contains(&13) && !fixed.contains(&39), "{fixed:?}");
    }

    #[test]
    fn a_witness_of_another_graph_is_none() {
        let open = [open("N", 0), open("T", 1)];
        let others = [instance(5, 13), instance(3, 17)];
        // Right for (7, 19), but not for these sizes; another constant; another node.
        let mislabelled = Sample { sizes: vec![7, 23], ..instance(7, 19) };
        let mut scaled = instance(7, 19);
        for tensor in scaled.graph.initializers.values_mut().filter(|t| t.dtype() == DType::F32) {
            *tensor = Tensor::from_f64(DType::F32, tensor.shape(), &vec![0.25; tensor.len()]);
        }
        let mut renamed = instance(7, 19);
        renamed.graph.nodes[1].op = "Max".into();
        for witness in [mislabelled, scaled, renamed] {
            assert!(!generalise(&open, &instance(3, 13), &others, &witness).unwrap().witnessed);
        }
    }

    #[test]
    fn instances_of_different_graphs_are_refused() {
        let other = |n: usize| {
            let mut sample = instance(n, 13);
            sample.graph.nodes[0] = sample.graph.nodes[0].clone().with("allowzero", n as i64);
            sample
        };
        let open = [open("N", 0)];
        let strip = |mut s: Sample| {
            s.sizes.truncate(1);
            s
        };
        let why = generalise(&open, &strip(other(3)), &[strip(other(5))], &strip(other(7))).err().unwrap();
        assert!(why.contains("Reshape"), "{why}");
    }
}
