//! Elementwise parts of a step over large state, run piece by piece and in place.
//!
//! An optimiser's update of a weight makes a dozen values as large as the weight, and new ones for those it replaces. Piece by
//! piece these stay in the processor's caches, and moments are written where the old ones were. Knows graphs, nothing of
//! optimisers. Look at [`split`] and [`Part::run`].

use super::step::State;
use super::{Compiled, Executor, Value};
use crate::error::{Error, Result};
use crate::onnx::{DType, Fact, Facts, Graph, Model, Node, Tensor, ValueId, ValueInfo, node_reads};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Tensors of so many elements are worth it.
const LARGE: usize = 1 << 20;
/// Elements of a piece: a dozen of them fit into a processor's cache.
const PIECE: usize = 1 << 16;
const ELEMENTWISE: [&str; 13] =
    ["Add", "Sub", "Mul", "Div", "Sqrt", "Neg", "Abs", "Min", "Max", "Pow", "Reciprocal", "Cast", "Identity"];

/// A part of a program, by the names of its values.
pub(super) struct Found {
    /// Large graph inputs, all of one shape, and inputs of one element.
    pub large: Vec<ValueId>,
    pub single: Vec<ValueId>,
    /// Graph outputs of that shape.
    pub outputs: Vec<ValueId>,
    pub facts: Vec<Fact>,
    model: Model,
    known: Facts,
}

/// Takes the parts out of a program: what is left of it, with what the parts read of it as further outputs. `None` where
/// there is no part.
pub(super) fn split(model: &Model, facts: &Facts, state: &[State]) -> Option<(Model, Vec<Found>)> {
    let graph = &model.graph;
    let mut found = vec![];
    let mut taken: HashSet<usize> = HashSet::new();
    for nodes in groups(graph, facts) {
        if let Some(part) = part(model, facts, &nodes).filter(|part| holds_state(part, state)) {
            taken.extend(nodes);
            found.push(part);
        }
    }
    if found.is_empty() {
        return None;
    }
    let gone: HashSet<&ValueId> =
        found.iter().flat_map(|part| part.large.iter().chain(&part.outputs)).collect();
    let mut rest = model.clone();
    let nodes = std::mem::take(&mut rest.graph.nodes).into_iter().enumerate();
    rest.graph.nodes = nodes.filter(|(i, _)| !taken.contains(i)).map(|(_, node)| node).collect();
    rest.graph.inputs.retain(|input| !gone.contains(&input.id));
    rest.graph.outputs.retain(|output| !gone.contains(&output.id));
    let made: HashSet<ValueId> =
        rest.graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten().cloned()).collect();
    for id in found.iter().flat_map(|part| &part.single).filter(|id| made.contains(*id)) {
        if !rest.graph.outputs.iter().any(|output| output.id == *id) {
            rest.graph.outputs.push(ValueInfo::new(id.clone(), facts.get(id)?));
        }
    }
    Some((rest, found))
}

fn holds_state(part: &Found, state: &[State]) -> bool {
    part.outputs
        .iter()
        .all(|output| state.iter().any(|s| s.output == *output && part.large.contains(&s.input)))
}

/// Nodes that large values connect, by their places.
fn groups(graph: &Graph, facts: &Facts) -> Vec<Vec<usize>> {
    let large = |id: &ValueId| facts.get(id).is_some_and(|fact| fact.len() >= LARGE);
    let mut group: Vec<usize> = (0..graph.nodes.len()).collect();
    let mut seen: HashMap<ValueId, usize> = HashMap::new();
    let mut touched = HashSet::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let values = node_reads(node).into_iter().chain(node.outputs.iter().flatten().cloned());
        for id in values.filter(large) {
            touched.insert(i);
            if let Some(&other) = seen.get(&id) {
                let (from, to) = (group[other], group[i]);
                group.iter_mut().filter(|g| **g == from).for_each(|g| *g = to);
            }
            seen.insert(id, i);
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in (0..graph.nodes.len()).filter(|i| touched.contains(i)) {
        groups.entry(group[i]).or_default().push(i);
    }
    groups.into_values().collect()
}

/// These nodes as a part of their own, if they are elementwise.
fn part(model: &Model, facts: &Facts, places: &[usize]) -> Option<Found> {
    let graph = &model.graph;
    let nodes: Vec<&Node> = places.iter().map(|&i| &graph.nodes[i]).collect();
    let shape = &facts.get(nodes.first()?.output(0)?)?.shape;
    let whole = |id: &ValueId| facts.get(id).is_some_and(|fact| fact.shape == *shape);
    let single = |id: &ValueId| facts.get(id).is_some_and(|fact| fact.len() == 1 && fact.rank() <= 1);
    let sound = |node: &&Node| {
        let plain = node.domain.is_empty() && ELEMENTWISE.contains(&node.op.as_str());
        let reads = node.inputs.iter().all(|i| i.as_ref().is_some_and(|id| whole(id) || single(id)));
        plain && reads && node.outputs.iter().all(|o| o.as_ref().is_some_and(whole))
    };
    if !nodes.iter().all(sound) {
        return None;
    }
    let made: HashSet<&ValueId> = nodes.iter().flat_map(|n| n.outputs.iter().flatten()).collect();
    let given: HashSet<&ValueId> = graph.required_inputs().map(|input| &input.id).collect();
    let (mut large, mut singles): (Vec<ValueId>, Vec<ValueId>) = (vec![], vec![]);
    let mut own = Graph { name: "part".into(), ..Graph::default() };
    for id in nodes.iter().flat_map(|n| n.inputs.iter().flatten()).filter(|id| !made.contains(id)) {
        match graph.initializers.get(id) {
            Some(tensor) if single(id) => drop(own.initializers.insert(id.clone(), tensor.clone())),
            None if single(id) => push_new(&mut singles, id),
            None if given.contains(id) => push_new(&mut large, id),
            _ => return None,
        }
    }
    let outputs: Vec<ValueId> =
        graph.outputs.iter().map(|o| o.id.clone()).filter(|id| made.contains(id)).collect();
    let piece = |id: &ValueId| facts.get(id).map(|fact| Fact::new(fact.dtype, &[PIECE]));
    let mut known = Facts::new();
    for id in made.into_iter().chain(&large) {
        known.insert(id.clone(), piece(id)?);
    }
    for id in singles.iter().chain(own.initializers.keys()) {
        known.insert(id.clone(), facts.get(id)?.clone());
    }
    own.inputs = large.iter().chain(&singles).map(|id| ValueInfo::new(id.clone(), &known[id])).collect();
    own.outputs = outputs.iter().map(|id| ValueInfo::new(id.clone(), &known[id])).collect();
    own.nodes = nodes.into_iter().cloned().collect();
    let facts = outputs.iter().map(|id| facts.get(id).cloned()).collect::<Option<_>>()?;
    let model = Model { graph: own, ..model.clone() };
    Some(Found { large, single: singles, outputs, facts, model, known })
}

fn push_new(list: &mut Vec<ValueId>, id: &ValueId) {
    if !list.contains(id) {
        list.push(id.clone());
    }
}

/// A part that is ready to run.
pub(super) struct Part {
    program: Box<dyn Compiled>,
    /// Of each output: its type and shape, and which large input it replaces.
    outputs: Vec<(Fact, usize)>,
}

impl Part {
    pub fn new(found: &Found, replaces: Vec<usize>, executor: &dyn Executor) -> Result<Self> {
        let program = executor.compile(&found.model, &found.known)?;
        Ok(Self { program, outputs: found.facts.iter().cloned().zip(replaces).collect() })
    }

    /// Runs the part. Large inputs that nobody else has are written over by what replaces them.
    ///
    /// # Errors
    /// What the executor refuses; the inputs that were given up are lost then.
    pub fn run(&mut self, large: Vec<Value>, single: &[Value]) -> Result<Vec<Value>> {
        let mut sources = large.into_iter().map(Source::of).collect::<Result<Vec<_>>>()?;
        let mut apart: Vec<Option<Vec<u8>>> = vec![];
        for (fact, replaced) in &self.outputs {
            let place = matches!(&sources[*replaced], Source::Own(.., dtype) if *dtype == fact.dtype);
            apart.push((!place).then(|| Vec::with_capacity(fact.bytes())));
        }
        let count = self.outputs.first().map_or(0, |(fact, _)| fact.len());
        for start in (0..count).step_by(PIECE) {
            let len = PIECE.min(count - start);
            let mut feeds =
                sources.iter().map(|source| source.piece(start, len)).collect::<Result<Vec<_>>>()?;
            feeds.extend_from_slice(single);
            let made = self.program.run(&feeds)?;
            drop(feeds);
            for ((value, apart), (fact, replaced)) in made.iter().zip(&mut apart).zip(&self.outputs) {
                let (tensor, size) = (value.to_host()?, fact.dtype.size().unwrap_or(1));
                let bytes = &tensor.bytes()[..len * size];
                match (apart, &mut sources[*replaced]) {
                    (Some(apart), _) => apart.extend_from_slice(bytes),
                    (None, Source::Own(old, _)) => old[start * size..][..len * size].copy_from_slice(bytes),
                    (None, Source::Shared(_)) => return Err(Error::usage("a part has no place to write to")),
                }
            }
        }
        let mut outputs = vec![];
        for (apart, (fact, replaced)) in apart.into_iter().zip(&self.outputs) {
            let bytes = match (apart, &mut sources[*replaced]) {
                (Some(apart), _) => apart,
                (None, Source::Own(old, _)) => std::mem::take(old),
                (None, Source::Shared(_)) => vec![],
            };
            outputs.push(Value::host(Tensor::new(fact.dtype, &fact.shape, bytes)?));
        }
        Ok(outputs)
    }
}

/// A large input.
enum Source {
    /// Somebody else has it too.
    Shared(Tensor),
    Own(Vec<u8>, DType),
}

impl Source {
    fn of(value: Value) -> Result<Self> {
        let tensor = value.into_host()?;
        let dtype = tensor.dtype();
        Ok(match tensor.into_bytes() {
            Ok(bytes) => Source::Own(bytes, dtype),
            Err(tensor) => Source::Shared(tensor),
        })
    }

    /// A piece, filled up with zeros where there are fewer elements.
    fn piece(&self, start: usize, len: usize) -> Result<Value> {
        let (bytes, dtype) = match self {
            Source::Shared(tensor) => (tensor.bytes(), tensor.dtype()),
            Source::Own(bytes, dtype) => (&bytes[..], *dtype),
        };
        let size = dtype.size().unwrap_or(1);
        let mut piece = bytes[start * size..][..len * size].to_vec();
        piece.resize(PIECE * size, 0);
        Ok(Value::host(Tensor::new(dtype, &[PIECE], piece)?))
    }
}
