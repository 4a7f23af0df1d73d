//! Chains: elementwise nodes that lie close together, made one operator of ours.
//!
//! ONNX Runtime reads and writes memory for every node, and takes a microsecond to start each. Nodes are placed one after
//! the other here: one joins an earlier chain over as many elements that has something to do with it, if all it reads is there
//! by then, or if the chain can wait until now because nobody has read from it. Truths (comparisons) that chains alone read are
//! made again in each of them. Look at [`fuse`].

mod left;
mod steps;
#[cfg(test)]
mod tests;

use super::kernels::chain::{CHAIN, Chained, WHICH};
use crate::onnx::kernels::DOMAIN;
use crate::onnx::{DType, Fact, Facts, Graph, Node, ValueId, node_reads};
use onnx_merge_kernels::Chain;
use onnx_merge_kernels::chain::Arg;
use std::collections::{HashMap, HashSet};

/// How far back a chain to join is looked for. What it makes earlier than needed takes memory meanwhile.
const LOOK_BACK: usize = 16;
/// Truths in a chain at most that are made of each other: each is made again for all who read it.
const MAX_HEIGHT: usize = 4;
/// Nodes in a chain at most.
const MAX_NODES: usize = 64;

/// Puts chains in the place of nodes; the chains, in the order of their numbers.
pub fn fuse(graph: &mut Graph, facts: &Facts) -> Vec<Chained> {
    // A chain has results.
    graph.prune();
    let mut fuser = Fuser::new(graph, facts);
    (0..graph.nodes.len()).for_each(|i| fuser.place(i));
    let needed = fuser.needed();
    let mut chains = vec![];
    let written: Option<Vec<Node>> = fuser
        .placed
        .iter()
        .filter_map(|placed| match placed {
            Placed::Node(i) => Some(Some(graph.nodes[*i].clone())),
            Placed::Group(group) => Some(fuser.write(group, &needed, &mut chains)),
            Placed::Moved => None,
        })
        .collect();
    debug_assert!(written.is_some(), "what joins a chain can be written down");
    match written {
        Some(nodes) => graph.nodes = nodes,
        None => chains.clear(),
    }
    chains
}

enum Placed {
    Node(usize),
    Group(Group),
    /// What has moved to a later place.
    Moved,
}

/// Nodes that may become a chain.
struct Group {
    shape: Vec<usize>,
    nodes: Vec<usize>,
    /// All that its nodes read, but for truths made inside.
    reads: HashSet<ValueId>,
}

struct Fuser<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    producers: HashMap<&'a ValueId, usize>,
    /// Nodes that stay what they are.
    left: HashSet<usize>,
    /// Nodes whose truths only chains read.
    inside: HashSet<usize>,
    placed: Vec<Placed>,
    /// Where values are made; inputs and initializers nowhere.
    homes: HashMap<ValueId, usize>,
    /// Places from which others have read.
    read: Vec<bool>,
}

impl<'a> Fuser<'a> {
    fn new(graph: &'a Graph, facts: &'a Facts) -> Self {
        let mut fuser = Self {
            graph,
            facts,
            producers: graph.producers(),
            left: left::left(graph),
            inside: HashSet::new(),
            placed: vec![],
            homes: HashMap::new(),
            read: vec![],
        };
        let consumers = graph.consumers();
        let outputs: HashSet<&ValueId> = graph.outputs.iter().map(|output| &output.id).collect();
        // Backwards: a truth can be inside if those that are made of it are.
        let mut heights: HashMap<usize, usize> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            let Some(fact) = fuser.result(i).filter(|fact| fact.dtype == DType::Bool) else { continue };
            let readers = node.output(0).filter(|id| !outputs.contains(id)).and_then(|id| consumers.get(id));
            // How many truths are made of it one after the other, where chains alone read it.
            let above = |reader: &usize| {
                let same = fuser.result(*reader).is_some_and(|made| made.shape == fact.shape);
                let above = if fuser.is_chained(*reader) { Some(0) } else { heights.get(reader).copied() };
                above.filter(|_| same)
            };
            let above: Option<Vec<usize>> = readers.and_then(|readers| readers.iter().map(above).collect());
            let height = above.and_then(|above| above.into_iter().max()).map(|above| above + 1);
            if let Some(height) = height.filter(|&height| height <= MAX_HEIGHT) {
                heights.insert(i, height);
            }
        }
        fuser.inside.extend(heights.into_keys());
        fuser
    }

    fn result(&self, i: usize) -> Option<&'a Fact> {
        steps::result(&self.graph.nodes[i], self.facts)
    }
    /// Whether a node may be one of a chain's.
    fn is_chained(&self, i: usize) -> bool {
        self.result(i).is_some_and(|fact| fact.dtype == DType::F32) && !self.left.contains(&i)
    }

    /// What a node reads, with what truths inside are made of in their place.
    fn reads(&self, i: usize) -> Vec<ValueId> {
        let node = &self.graph.nodes[i];
        let through = |id: &ValueId| match self.made_inside(id) {
            Some(truth) => self.reads(truth),
            None => vec![id.clone()],
        };
        node.inputs.iter().flatten().flat_map(through).collect()
    }
    fn made_inside(&self, id: &ValueId) -> Option<usize> {
        self.producers.get(id).copied().filter(|truth| self.inside.contains(truth))
    }

    fn place(&mut self, i: usize) {
        if self.inside.contains(&i) {
            return;
        }
        let node = &self.graph.nodes[i];
        let shape = self.result(i).filter(|_| self.is_chained(i)).map(|fact| &fact.shape);
        let (at, reads) = match shape {
            None => (self.push(Placed::Node(i)), node_reads(node)),
            Some(shape) => {
                let reads = self.reads(i);
                let at = self.host(shape, &reads).unwrap_or_else(|| {
                    let (nodes, reads) = (vec![], HashSet::new());
                    self.push(Placed::Group(Group { shape: shape.clone(), nodes, reads }))
                });
                if let Placed::Group(group) = &mut self.placed[at] {
                    group.nodes.push(i);
                    group.reads.extend(reads.iter().cloned());
                }
                (at, reads)
            }
        };
        for id in &reads {
            let home = self.homes.get(id).copied().filter(|&home| home != at);
            if let Some(home) = home.filter(|&home| !self.absorb(home, at)) {
                self.read[home] = true;
            }
        }
        self.homes.extend(node.outputs.iter().flatten().map(|id| (id.clone(), at)));
    }
    fn push(&mut self, placed: Placed) -> usize {
        self.placed.push(placed);
        self.read.push(false);
        self.placed.len() - 1
    }

    /// The place of a chain for a node that reads `reads`; a chain that can wait is moved here for it.
    fn host(&mut self, shape: &[usize], reads: &[ValueId]) -> Option<usize> {
        let whole = |id: &ValueId| self.facts.get(id).is_some_and(|fact| fact.shape == shape);
        let related = |at: usize, group: &Group| {
            reads.iter().any(|id| self.homes.get(id) == Some(&at) || (whole(id) && group.reads.contains(id)))
        };
        let ready = |at: usize| reads.iter().all(|id| self.homes.get(id).is_none_or(|&home| home <= at));
        let near = self.placed.len().saturating_sub(LOOK_BACK)..self.placed.len();
        let at = near.rev().find(|&at| match &self.placed[at] {
            Placed::Group(group) => {
                let room = group.shape == shape && group.nodes.len() < MAX_NODES;
                room && related(at, group) && (ready(at) || !self.read[at])
            }
            _ => false,
        })?;
        if ready(at) {
            return Some(at);
        }
        let group = std::mem::replace(&mut self.placed[at], Placed::Moved);
        let later = self.push(group);
        self.settle(later);
        Some(later)
    }

    /// Makes the chain at `from` part of a later one that reads from it, if nobody else has; whether it did.
    fn absorb(&mut self, from: usize, at: usize) -> bool {
        let [Placed::Group(early), Placed::Group(late)] = [from, at].map(|at| &self.placed[at]) else {
            return false;
        };
        let room = early.shape == late.shape && early.nodes.len() + late.nodes.len() <= MAX_NODES;
        if !room || self.read[from] || from + LOOK_BACK < at {
            return false;
        }
        let early = std::mem::replace(&mut self.placed[from], Placed::Moved);
        if let (Placed::Group(early), Placed::Group(late)) = (early, &mut self.placed[at]) {
            late.nodes.splice(..0, early.nodes);
            late.reads.extend(early.reads);
        }
        self.settle(at);
        true
    }
    /// Notes where what a group makes is made.
    fn settle(&mut self, at: usize) {
        let Placed::Group(group) = &self.placed[at] else { return };
        let made = group.nodes.iter().flat_map(|&i| self.graph.nodes[i].outputs.iter().flatten());
        self.homes.extend(made.map(|id| (id.clone(), at)));
    }

    /// What somebody reads from another place.
    fn needed(&self) -> HashSet<ValueId> {
        let mut needed: HashSet<ValueId> =
            self.graph.outputs.iter().map(|output| output.id.clone()).collect();
        for (at, placed) in self.placed.iter().enumerate() {
            match placed {
                Placed::Node(i) => needed.extend(node_reads(&self.graph.nodes[*i])),
                Placed::Group(group) => {
                    let others = group.reads.iter().filter(|&id| self.homes.get(id) != Some(&at));
                    needed.extend(others.cloned());
                }
                Placed::Moved => {}
            }
        }
        needed
    }

    /// Whether ONNX Runtime is slow at a node: its `Where` has a branch an element, ten times the time of arithmetic where they
    /// are mixed, and where an operand is repeated between its own axes it goes a few elements at a time.
    fn pays_alone(&self, node: &Node) -> bool {
        let result = node.output(0).and_then(|id| self.facts.get(id));
        let interleaved = |id: &ValueId| {
            let shapes = self.facts.get(id).zip(result);
            let spread = shapes.and_then(|(operand, result)| steps::spread(&operand.shape, &result.shape));
            spread.is_some_and(|spread| spread.is_interleaved())
        };
        let slow = |id: &ValueId| self.made_inside(id).is_some() || interleaved(id);
        node.is("Where") || node.inputs.iter().flatten().any(slow)
    }

    /// A group as one node: the node that it is, or the next of the chains.
    fn write(&self, group: &Group, needed: &HashSet<ValueId>, chains: &mut Vec<Chained>) -> Option<Node> {
        if let [alone] = group.nodes[..] {
            let node = &self.graph.nodes[alone];
            if !self.pays_alone(node) {
                return Some(node.clone());
            }
        }
        let mut writer =
            Writer { fuser: self, known: HashMap::new(), inputs: vec![], written: Default::default() };
        for &i in &group.nodes {
            writer.node(i)?;
        }
        let made = group.nodes.iter().filter_map(|&i| self.graph.nodes[i].output(0));
        let results: Vec<&ValueId> = made.filter(|id| needed.contains(id)).collect();
        let Writer { known, inputs, written, .. } = writer;
        let places = results.iter().map(|id| match known.get(id) {
            Some(&Arg::Step(step)) => Some(step),
            _ => None,
        });
        let facts = inputs.iter().map(|id| self.facts.get(id)).collect::<Option<Vec<_>>>()?;
        let spreads =
            facts.iter().map(|fact| steps::spread(&fact.shape, &group.shape)).collect::<Option<_>>()?;
        let len = group.shape.iter().product();
        let chain = Chain::new(len, spreads, &written.steps, &places.collect::<Option<Vec<_>>>()?)?;
        let mut node =
            Node::new(CHAIN, &inputs.iter().collect::<Vec<_>>(), &results).with(WHICH, chains.len() as i64);
        node.name.clone_from(&self.graph.nodes[*group.nodes.last()?].name);
        DOMAIN.clone_into(&mut node.domain);
        chains.push(Chained::new(chain, &facts, &group.shape));
        Some(node)
    }
}

/// Writes the nodes of a chain down.
struct Writer<'a, 'b> {
    fuser: &'b Fuser<'a>,
    known: HashMap<&'a ValueId, Arg>,
    inputs: Vec<ValueId>,
    written: steps::Written,
}

impl<'a> Writer<'a, '_> {
    fn node(&mut self, i: usize) -> Option<Arg> {
        let graph = self.fuser.graph;
        let node: &'a Node = &graph.nodes[i];
        let args = node.inputs.iter().map(|id| match id {
            Some(id) => self.arg(id).map(Some),
            None => Some(None),
        });
        let args = args.collect::<Option<Vec<_>>>()?;
        let made = self.written.node(node, &args)?;
        self.known.insert(node.output(0)?, made);
        Some(made)
    }

    fn arg(&mut self, id: &'a ValueId) -> Option<Arg> {
        if let Some(&known) = self.known.get(id) {
            return Some(known);
        }
        if let Some(truth) = self.fuser.made_inside(id) {
            return self.node(truth);
        }
        let arg = match steps::number(self.fuser.graph, id) {
            Some(number) => Arg::Constant(number),
            None => {
                self.inputs.push(id.clone());
                Arg::Input(self.inputs.len() - 1)
            }
        };
        self.known.insert(id, arg);
        Some(arg)
    }
}
