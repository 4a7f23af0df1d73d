//! A step graph as numbers: what is made when, of how many bytes, from what, and at what cost.
//!
//! Values that only look at another's memory (a reshape's result) share its *store*. Look at [`Tape`].

use crate::autodiff::prepare::is_random;
use crate::onnx::{DType, Fact, Facts, Graph, Node, ValueId, node_reads};
use crate::runtime::multiply_adds_of;
use std::collections::{HashMap, HashSet};

/// Elements read or written that take as long as one multiplication with its addition takes of a matrix product: the first is
/// limited by memory (one core of a server reads 10 GB/s, and does 50 to 150 GFLOP/s).
const ELEMENT: f64 = 16.0;
/// The same for each element that loops, branches and operators of many steps put out, whose work isn't known.
const UNKNOWN: f64 = 16.0 * ELEMENT;

/// A node.
pub struct Step {
    /// Its place in the graph.
    pub node: usize,
    pub reads: Vec<usize>,
    pub makes: Vec<usize>,
    /// In multiply-adds.
    pub cost: f64,
    /// Whether it may be taken twice.
    pub repeats: bool,
    /// Of the values it reads, those that a guard can stand before, the smallest first.
    pub guardable: Vec<usize>,
}

pub struct Known<'a> {
    pub id: &'a ValueId,
    pub fact: Option<&'a Fact>,
    /// The value in whose memory this one lies: itself, or another that it is a view of.
    pub store: usize,
    /// The step that makes it; `None` for inputs and constants.
    pub maker: Option<usize>,
    pub is_output: bool,
}

/// The nodes in the order of a run, those that the loss needs first.
pub struct Tape<'a> {
    pub steps: Vec<Step>,
    /// How many of the steps are the forward pass.
    pub forward: usize,
    pub values: Vec<Known<'a>>,
    /// Bytes of what lies in each store; 0 for inputs and constants, for outputs, which are there in any case, and for views.
    pub bytes: Vec<u64>,
}

impl<'a> Tape<'a> {
    /// The tape of a graph in topological order, whose forward pass ends in `ends`.
    pub fn of(graph: &'a Graph, facts: &'a Facts, ends: &[ValueId]) -> Self {
        let mut tape = Self { steps: vec![], forward: 0, values: vec![], bytes: vec![] };
        let mut places: HashMap<&'a ValueId, usize> = HashMap::new();
        let forward = needed(graph, ends);
        let outputs: HashSet<&ValueId> = graph.outputs.iter().map(|o| &o.id).collect();
        let starts = graph.inputs.iter().map(|i| &i.id).chain(graph.initializers.keys());
        let made = graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten());
        for id in starts.chain(made) {
            let place = tape.values.len();
            if *places.entry(id).or_insert(place) == place {
                let (fact, is_output) = (facts.get(id), outputs.contains(id));
                tape.values.push(Known { id, fact, store: place, maker: None, is_output });
            }
        }
        for want in [true, false] {
            for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| forward[*i] == want) {
                let step = tape.step(i, node, graph, facts, &places);
                tape.steps.push(step);
            }
            if want {
                tape.forward = tape.steps.len();
            }
        }
        tape.weigh();
        tape
    }

    fn step(
        &mut self,
        i: usize,
        node: &Node,
        graph: &Graph,
        facts: &Facts,
        places: &HashMap<&ValueId, usize>,
    ) -> Step {
        let place = |id: &ValueId| places.get(id).copied();
        let mut reads: Vec<usize> = node_reads(node).iter().filter_map(place).collect();
        reads.sort_unstable();
        reads.dedup();
        let makes: Vec<usize> = node.outputs.iter().flatten().filter_map(place).collect();
        for &value in &makes {
            self.values[value].maker = Some(self.steps.len());
        }
        if let (true, [view], Some(of)) = (is_view(node), &makes[..], node.input(0).and_then(place)) {
            self.values[*view].store = self.values[of].store;
        }
        let mut guardable: Vec<usize> = node
            .inputs
            .iter()
            .flatten()
            .filter(|id| !graph.initializers.contains_key(*id) && facts.get(*id).is_some_and(can_be_guarded))
            .filter_map(place)
            .collect();
        guardable.sort_by_key(|&value| self.values[value].fact.map_or(0, Fact::bytes));
        let from_outside = reads.iter().all(|&value| self.values[self.values[value].store].maker.is_none());
        let cost = cost(node, facts);
        let known = makes.iter().all(|&value| self.values[value].fact.is_some());
        // What is made of weights alone, or of the batch without effort, is little beside the rest.
        let repeats = known && !is_random(node) && !guardable.is_empty() && (cost.worth || !from_outside);
        Step { node: i, reads, makes, cost: cost.total, repeats, guardable }
    }

    fn weigh(&mut self) {
        let mut bytes: Vec<u64> = vec![0; self.values.len()];
        for (place, value) in self.values.iter().enumerate() {
            if value.store == place && value.maker.is_some() {
                bytes[place] = value.fact.map_or(0, |fact| fact.bytes() as u64);
            }
        }
        for value in self.values.iter().filter(|value| value.is_output) {
            bytes[value.store] = 0;
        }
        self.bytes = bytes;
    }

    /// The forward step that made a value, unless that is there anyway.
    pub fn forward_maker(&self, value: usize) -> Option<usize> {
        self.values[value].maker.filter(|&maker| maker < self.forward)
    }
    /// Whether the memory of a value is an input's or a constant's.
    pub fn is_given(&self, value: usize) -> bool {
        self.values[self.values[value].store].maker.is_none()
    }
}

/// Which nodes `ends` depend on.
fn needed(graph: &Graph, ends: &[ValueId]) -> Vec<bool> {
    let mut wanted: HashSet<ValueId> = ends.iter().cloned().collect();
    let mut needed = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if node.outputs.iter().flatten().any(|output| wanted.contains(output)) {
            needed[i] = true;
            wanted.extend(node_reads(node));
        }
    }
    needed
}

/// Whether a node's output lies where its first input does: executors don't copy it.
fn is_view(node: &Node) -> bool {
    node.domain.is_empty()
        && matches!(node.op.as_str(), "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze")
}

fn can_be_guarded(fact: &Fact) -> bool {
    matches!(fact.dtype, DType::F32 | DType::F64 | DType::Bool) && fact.rank() > 0 && !fact.is_empty()
}

struct Cost {
    total: f64,
    /// Whether it is more than going through memory.
    worth: bool,
}

fn cost(node: &Node, facts: &Facts) -> Cost {
    if is_view(node) {
        return Cost { total: 0.0, worth: false };
    }
    let count = |values: &[Option<ValueId>]| -> f64 {
        values.iter().flatten().filter_map(|id| facts.get(id)).map(|fact| fact.len() as f64).sum()
    };
    let (read, made) = (count(&node.inputs), count(&node.outputs));
    let products = multiply_adds_of(node, facts);
    let inside = node.subgraphs().next().is_some();
    let unknown = inside || matches!(node.op.as_str(), "LSTM" | "GRU" | "RNN" | "Einsum" | "Attention");
    let more = products.unwrap_or(if unknown { UNKNOWN * made } else { 0.0 });
    Cost { total: more + ELEMENT * (read + made), worth: more > 0.0 }
}
