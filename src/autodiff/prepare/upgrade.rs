//! Upgrading: functions inlined, constants hoisted out of nodes and subgraphs, operators in the forms of opset 18 and
//! later.
//!
//! Look at [`upgrade`]; what is done to an operator stands in [`super::forms`].

use super::check::{check, check_size};
use super::names::{hoist, make_unique, rename_reads};
use super::{forms, functions};
use crate::error::{Error, Result};
use crate::onnx::infer::{Operand, infer};
use crate::onnx::{
    Attr, DType, Dim, Fact, Function, Graph, Model, Names, Node, Tensor, ValueId, ValueInfo, WORKING_OPSET,
};
use std::collections::{HashMap, HashSet};

/// Functions that call functions deeper than this are taken for a cycle.
const MAX_DEPTH: usize = 64;
/// Inlining may not blow up a model beyond this number of nodes.
const MAX_NODES: usize = 1_000_000;

/// The same model in the forms of opset 18 or, where it is newer, of its own opset: without functions, without
/// `Constant` nodes, and without initializers among its inputs or inside subgraphs. Every value has a name of its own,
/// inside subgraphs too.
///
/// Constants keep their [`crate::onnx::SiteId`] and take the name of their node's output.
///
/// # Errors
/// [`Error::Node`] for functions that contain themselves and for old forms without a modern counterpart.
pub fn upgrade(model: &Model) -> Result<Model> {
    upgraded(model, Kept::None)
}

/// Which `Dropout` nodes stay for training that drops: in inference form, which passes its input on, with a constant ratio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    None,
    /// Those that have that form.
    Idle,
    /// Those in training form, too.
    All,
}

/// [`upgrade`] with some `Dropout` kept.
///
/// # Errors
/// As [`upgrade`].
pub fn upgrade_with_dropout(model: &Model, kept: Kept) -> Result<Model> {
    upgraded(model, kept)
}

fn upgraded(model: &Model, dropout: Kept) -> Result<Model> {
    let opset = model.functions.iter().filter_map(|f| f.opsets.get("")).fold(model.opset(), |a, &b| a.max(b));
    let opset = opset.max(WORKING_OPSET);
    let mut opsets = model.opsets.clone();
    for (domain, &version) in model.functions.iter().flat_map(|f| &f.opsets) {
        let known = opsets.entry(domain.clone()).or_insert(version);
        *known = (*known).max(version);
    }
    opsets.insert(String::new(), opset);
    opsets.retain(|domain, _| !model.functions.iter().any(|f| f.domain == *domain) || is_standard(domain));
    let mut named = model.graph.clone();
    make_unique(&mut named);
    let mut upgrade = Upgrade { dropout, ..Upgrade::new(model, &named) };
    let mut graph = upgrade.graph(&named, model.opset())?;
    hoist(&mut graph);
    let ir_version = if opset >= 21 { 10 } else { 8 };
    Ok(Model { graph, ir_version, opsets, functions: vec![], producer: model.producer.clone() })
}

fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx.ml" | "com.microsoft")
}

/// The state of an upgrade: what has been emitted, and what is known of its values.
pub(super) struct Upgrade<'a> {
    pub dropout: Kept,
    functions: HashMap<(&'a str, &'a str), &'a Function>,
    names: Names,
    emitted: usize,
    depth: usize,
    /// Element types and ranks; sizes are guesses where the file leaves them open.
    facts: HashMap<ValueId, Fact>,
    constants: HashMap<ValueId, Tensor>,
    /// Why a node that was emitted can't stay.
    refused: Option<Error>,
    /// The graph being emitted.
    out: Graph,
}

impl<'a> Upgrade<'a> {
    fn new(model: &'a Model, named: &Graph) -> Self {
        let key = |f: &'a Function| ((f.domain.as_str(), f.name.as_str()), f);
        Self {
            dropout: Kept::None,
            functions: model.functions.iter().map(key).collect(),
            names: Names::of(named),
            emitted: 0,
            depth: 0,
            facts: HashMap::new(),
            constants: HashMap::new(),
            refused: None,
            out: Graph::default(),
        }
    }

    /// Upgrades a graph whose nodes are of operator set `version`.
    pub fn graph(&mut self, graph: &Graph, version: i64) -> Result<Graph> {
        let outside = std::mem::take(&mut self.out);
        self.out.name = graph.name.clone();
        self.out.outputs = graph.outputs.clone();
        self.out.inputs = graph.required_inputs().cloned().collect();
        for input in &graph.inputs {
            if let Some(fact) = guess(input) {
                self.facts.insert(input.id.clone(), fact);
            }
        }
        for (id, tensor) in &graph.initializers {
            self.initializer(id.clone(), tensor.clone());
        }
        self.nodes(graph.nodes.clone(), version)?;
        self.settle_outputs();
        Ok(std::mem::replace(&mut self.out, outside))
    }

    /// Upgrades and emits nodes of operator set `version`.
    fn nodes(&mut self, nodes: Vec<Node>, version: i64) -> Result<()> {
        for mut node in nodes {
            self.emitted += 1;
            if self.emitted > MAX_NODES {
                return Err(Error::node(
                    &node,
                    format!("inlining functions makes more than {MAX_NODES} nodes"),
                ));
            }
            if let Some(&function) = self.functions.get(&(node.domain.as_str(), node.op.as_str())) {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(Error::node(&node, "is a function that contains itself"));
                }
                let body = functions::instantiate(function, &node, &mut |hint| self.fresh(hint))?;
                let body_version = function.opsets.get("").copied().unwrap_or(version);
                self.nodes(body, body_version)?;
                self.depth -= 1;
                continue;
            }
            for attr in node.attrs.values_mut() {
                match attr {
                    Attr::Graph(graph) => **graph = self.graph(graph, version)?,
                    Attr::Graphs(graphs) => {
                        *graphs = graphs.iter().map(|g| self.graph(g, version)).collect::<Result<_>>()?;
                    }
                    _ => {}
                }
            }
            check(&node, node.input(0).and_then(|id| self.facts.get(id)).map(Fact::rank))?;
            match node.domain.as_str() {
                "" => forms::modernise(self, node, version)?,
                _ => self.push(node),
            }
            if let Some(refused) = self.refused.take() {
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Some executors can't hand out an initializer or an input as an output: puts an `Identity` before it.
    fn settle_outputs(&mut self) {
        let made: HashSet<ValueId> =
            self.out.nodes.iter().flat_map(|n| n.outputs.iter().flatten().cloned()).collect();
        for i in 0..self.out.outputs.len() {
            let id = self.out.outputs[i].id.clone();
            if made.contains(&id) || !self.out.initializers.contains_key(&id) {
                continue;
            }
            let renamed = self.fresh(id.as_str());
            if let Some(tensor) = self.out.initializers.get(&id).cloned() {
                self.out.initializers.insert(renamed.clone(), tensor);
            }
            rename_reads(&mut self.out.nodes, &id, &renamed);
            self.out.initializers.shift_remove(&id);
            self.out.nodes.push(Node::new("Identity", &[&renamed], &[&id]));
        }
    }

    /// A name nobody has.
    pub fn fresh(&mut self, hint: &str) -> ValueId {
        self.names.fresh(hint)
    }
    pub fn push(&mut self, node: Node) {
        self.learn(&node);
        self.out.nodes.push(node);
    }
    pub fn initializer(&mut self, id: ValueId, tensor: Tensor) {
        self.facts.insert(id.clone(), Fact::of(&tensor));
        if tensor.len() <= 64 {
            self.constants.insert(id.clone(), tensor.clone());
        }
        self.out.initializers.insert(id, tensor);
    }
    /// A new constant, named after the node that needs it.
    pub fn constant(&mut self, node: &Node, what: &str, tensor: Tensor) -> ValueId {
        let id = self.fresh(&format!("{}/{what}", node.label()));
        self.initializer(id.clone(), tensor);
        id
    }
    pub fn ints(&mut self, node: &Node, what: &str, values: &[i64]) -> ValueId {
        self.constant(node, what, Tensor::i64(&[values.len()], values))
    }
    /// The value of a small constant.
    pub fn value(&self, id: Option<&ValueId>) -> Option<&Tensor> {
        self.constants.get(id?)
    }
    pub fn rank(&self, id: Option<&ValueId>) -> Option<usize> {
        self.facts.get(id?).map(Fact::rank)
    }
    /// The element type of a value; float32 where it can't be told.
    pub fn dtype(&self, id: Option<&ValueId>) -> DType {
        id.and_then(|id| self.facts.get(id)).map_or(DType::F32, |f| f.dtype)
    }

    /// Notes element type and rank of what a node makes.
    fn learn(&mut self, node: &Node) {
        let operands: Vec<Option<Operand<'_>>> = node
            .inputs
            .iter()
            .map(|input| {
                let id = input.as_ref()?;
                Some(Operand { fact: self.facts.get(id)?, value: self.constants.get(id) })
            })
            .collect();
        let complete = node.inputs.iter().zip(&operands).all(|(i, o)| i.is_none() || o.is_some());
        // Without axes, Squeeze removes sizes of 1, and sizes may be guesses.
        let guessed = node.is("Squeeze") && node.inputs.len() < 2;
        let facts =
            if complete && node.domain.is_empty() && !guessed { infer(node, &operands) } else { None };
        let facts = facts.unwrap_or_default();
        self.refused = self.refused.take().or(check_size(node, &facts).err());
        for (output, fact) in node.outputs.iter().zip(facts) {
            if let Some(output) = output {
                self.facts.insert(output.clone(), fact);
            }
        }
        for output in node.outputs.iter().flatten() {
            let declared = self.out.outputs.iter().find(|o| o.id == *output).and_then(guess);
            if let (Some(fact), false) = (declared, self.facts.contains_key(output)) {
                self.facts.insert(output.clone(), fact);
            }
        }
    }
}

/// A fact with sizes of 1 for open dimensions: good for type and rank.
fn guess(info: &ValueInfo) -> Option<Fact> {
    let size = |dim: &Dim| if let Dim::Known(n) = dim { *n } else { 1 };
    Some(Fact { dtype: info.dtype?, shape: info.shape.as_ref()?.iter().map(size).collect() })
}
