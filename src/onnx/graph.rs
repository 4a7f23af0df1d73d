//! The one intermediate representation: ONNX graphs, with names interned and attributes typed.
//!
//! Knows nothing of files (see [`super::read`]), gradients or executors. Look at [`Graph`] first.

use super::{DType, Tensor};
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The name of a value: an edge of the graph. Cheap to clone and to hash; equal names are the same value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ValueId {
    name: Arc<str>,
    /// Of the name, once and for all: names are long, and looked up everywhere.
    hash: u64,
}

impl ValueId {
    pub fn new(name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self { name: Arc::from(name), hash: hasher.finish() }
    }
    pub fn as_str(&self) -> &str {
        &self.name
    }
}
impl Default for ValueId {
    fn default() -> Self {
        Self::new("")
    }
}
impl Hash for ValueId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}
impl From<&str> for ValueId {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}
impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
impl fmt::Debug for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.name)
    }
}

/// What is known of a value before it is computed: its element type and its exact shape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fact {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Fact {
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.to_vec() }
    }
    pub fn of(tensor: &Tensor) -> Self {
        Self::new(tensor.dtype(), tensor.shape())
    }
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Number of elements (saturating).
    pub fn len(&self) -> usize {
        super::element_count(&self.shape).unwrap_or(usize::MAX)
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of the elements, where they have a fixed size (saturating); else their number.
    pub fn bytes(&self) -> usize {
        self.len().saturating_mul(self.dtype.size().unwrap_or(1))
    }
}

/// Facts by value.
pub type Facts = HashMap<ValueId, Fact>;

/// One dimension of a declared input or output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dim {
    Known(usize),
    Named(String),
    Unknown,
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(size) => write!(f, "{size}"),
            Self::Named(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// A declared input, output or intermediate value. `dtype` is `None` for sequences, maps and optionals;
/// `shape` is `None` where even the rank is unknown.
#[derive(Clone, PartialEq, Debug)]
pub struct ValueInfo {
    pub id: ValueId,
    pub dtype: Option<DType>,
    pub shape: Option<Vec<Dim>>,
}

impl ValueInfo {
    pub fn new(id: ValueId, fact: &Fact) -> Self {
        let shape = fact.shape.iter().map(|&d| Dim::Known(d)).collect();
        Self { id, dtype: Some(fact.dtype), shape: Some(shape) }
    }
    /// The fact, where every dimension is known.
    pub fn fact(&self) -> Option<Fact> {
        let shape = self.shape.as_ref()?.iter().map(|d| match d {
            Dim::Known(d) => Some(*d),
            _ => None,
        });
        Some(Fact { dtype: self.dtype?, shape: shape.collect::<Option<_>>()? })
    }
}

/// An attribute value.
#[derive(Clone, PartialEq, Debug)]
pub enum Attr {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Floats(Vec<f32>),
    Str(String),
    Strs(Vec<String>),
    Tensor(Tensor),
    Graph(Box<Graph>),
    Graphs(Vec<Graph>),
    /// Inside a function body: the name of the function's attribute that is meant, and the ONNX number of its
    /// type.
    Ref {
        name: String,
        kind: i32,
    },
    /// Anything else, kept as the bytes of its `AttributeProto`.
    Other(Vec<u8>),
}

impl From<i64> for Attr {
    fn from(v: i64) -> Self {
        Attr::Int(v)
    }
}
impl From<bool> for Attr {
    fn from(v: bool) -> Self {
        Attr::Int(v as i64)
    }
}
impl From<f32> for Attr {
    fn from(v: f32) -> Self {
        Attr::Float(v)
    }
}
impl From<&str> for Attr {
    fn from(v: &str) -> Self {
        Attr::Str(v.to_owned())
    }
}
impl From<Vec<i64>> for Attr {
    fn from(v: Vec<i64>) -> Self {
        Attr::Ints(v)
    }
}
impl From<&[i64]> for Attr {
    fn from(v: &[i64]) -> Self {
        Attr::Ints(v.to_vec())
    }
}
impl From<Tensor> for Attr {
    fn from(v: Tensor) -> Self {
        Attr::Tensor(v)
    }
}

/// An operator applied to values.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Node {
    /// May be empty: names of nodes are optional in ONNX.
    pub name: String,
    pub op: String,
    /// Normalised: the default domain is `""`, never `"ai.onnx"`.
    pub domain: String,
    /// `None` where an optional input is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// `None` where an optional output isn't wanted.
    pub outputs: Vec<Option<ValueId>>,
    pub attrs: IndexMap<String, Attr>,
}

impl Node {
    pub fn new(op: &str, inputs: &[&ValueId], outputs: &[&ValueId]) -> Self {
        Node {
            op: op.to_owned(),
            inputs: inputs.iter().map(|&v| Some(v.clone())).collect(),
            outputs: outputs.iter().map(|&v| Some(v.clone())).collect(),
            ..Default::default()
        }
    }
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.attrs.insert(name.to_owned(), value.into());
        self
    }
    /// `Op` or `domain::Op`.
    pub fn qualified_op(&self) -> String {
        match self.domain.as_str() {
            "" => self.op.clone(),
            domain => format!("{domain}::{}", self.op),
        }
    }
    /// A name for messages: the node's own, or that of its first output.
    pub fn label(&self) -> String {
        match (self.name.is_empty(), self.outputs.iter().flatten().next()) {
            (true, Some(output)) => output.to_string(),
            _ => self.name.clone(),
        }
    }
    /// Whether this is operator `op` of the default domain.
    pub fn is(&self, op: &str) -> bool {
        self.domain.is_empty() && self.op == op
    }
    pub fn input(&self, index: usize) -> Option<&ValueId> {
        self.inputs.get(index)?.as_ref()
    }
    pub fn output(&self, index: usize) -> Option<&ValueId> {
        self.outputs.get(index)?.as_ref()
    }
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attrs.get(name)? {
            Attr::Int(v) => Some(*v),
            _ => None,
        }
    }
    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attrs.get(name)? {
            Attr::Ints(v) => Some(v),
            _ => None,
        }
    }
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attrs.get(name)? {
            Attr::Float(v) => Some(*v),
            _ => None,
        }
    }
    pub fn float_or(&self, name: &str, default: f32) -> f32 {
        self.float(name).unwrap_or(default)
    }
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.attrs.get(name)? {
            Attr::Str(v) => Some(v),
            _ => None,
        }
    }
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.attrs.get(name)? {
            Attr::Tensor(v) => Some(v),
            _ => None,
        }
    }
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        match self.attrs.get(name)? {
            Attr::Graph(v) => Some(v),
            _ => None,
        }
    }
    /// The graphs inside this node (`If`, `Loop`, `Scan`).
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attrs.values().flat_map(|attr| match attr {
            Attr::Graph(g) => std::slice::from_ref(&**g),
            Attr::Graphs(gs) => gs,
            _ => &[],
        })
    }
    pub fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attrs.values_mut().flat_map(|attr| match attr {
            Attr::Graph(g) => std::slice::from_mut(&mut **g),
            Attr::Graphs(gs) => gs,
            _ => &mut [],
        })
    }
}

/// A graph: nodes in topological order, the values they start from and the values they end in.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    pub name: String,
    pub inputs: Vec<ValueInfo>,
    pub outputs: Vec<ValueInfo>,
    pub nodes: Vec<Node>,
    pub initializers: IndexMap<ValueId, Tensor>,
}

impl Graph {
    /// The inputs a caller must feed: those without an initializer (in IR 3 weights are inputs too).
    pub fn required_inputs(&self) -> impl Iterator<Item = &ValueInfo> {
        self.inputs.iter().filter(|input| !self.initializers.contains_key(&input.id))
    }
    /// Which node makes each value.
    pub fn producers(&self) -> HashMap<&ValueId, usize> {
        let mut producers = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            producers.extend(node.outputs.iter().flatten().map(|output| (output, i)));
        }
        producers
    }
    /// Which nodes (by index) read each value, including from inside their subgraphs; once per node.
    pub fn consumers(&self) -> HashMap<ValueId, Vec<usize>> {
        let mut consumers: HashMap<ValueId, Vec<usize>> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for value in node_reads(node) {
                let readers = consumers.entry(value).or_default();
                if readers.last() != Some(&i) {
                    readers.push(i);
                }
            }
        }
        consumers
    }
    /// Drops nodes and initializers that no output needs. Inputs stay as declared.
    pub fn prune(&mut self) {
        let mut needed: HashSet<&ValueId> = self.outputs.iter().map(|o| &o.id).collect();
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().flatten().any(|o| needed.contains(o)) {
                keep[i] = true;
                needed.extend(reads(node));
            }
        }
        let kept: Vec<bool> = self.initializers.keys().map(|id| needed.contains(id)).collect();
        let (mut keep, mut kept) = (keep.into_iter(), kept.into_iter());
        self.nodes.retain(|_| keep.next().unwrap_or(true));
        self.initializers.retain(|_, _| kept.next().unwrap_or(true));
    }
}

/// Every value a node reads: its inputs, and what its subgraphs take from outside.
pub fn node_reads(node: &Node) -> Vec<ValueId> {
    reads(node).cloned().collect()
}

/// Values a subgraph takes from the graphs around it.
pub fn outer_reads(graph: &Graph) -> Vec<ValueId> {
    taken_from_outside(graph).into_iter().cloned().collect()
}

fn reads(node: &Node) -> impl Iterator<Item = &ValueId> {
    node.inputs.iter().flatten().chain(node.subgraphs().flat_map(taken_from_outside))
}

fn taken_from_outside(graph: &Graph) -> Vec<&ValueId> {
    let mut known: HashSet<&ValueId> = graph.initializers.keys().collect();
    known.extend(graph.inputs.iter().map(|i| &i.id));
    let mut taken = vec![];
    for node in &graph.nodes {
        // A list, as the type of an iterator over nodes in nodes would hold itself.
        let inside: Vec<&ValueId> = node.subgraphs().flat_map(taken_from_outside).collect();
        taken.extend(node.inputs.iter().flatten().chain(inside).filter(|v| !known.contains(v)));
        known.extend(node.outputs.iter().flatten());
    }
    taken.extend(graph.outputs.iter().map(|o| &o.id).filter(|v| !known.contains(v)));
    taken
}

/// An ONNX function: an operator defined by a body of other operators.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Function {
    pub domain: String,
    pub name: String,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// Attributes without a default, by name.
    pub attributes: Vec<String>,
    /// Attributes with a default.
    pub defaults: IndexMap<String, Attr>,
    pub nodes: Vec<Node>,
    pub opsets: IndexMap<String, i64>,
}

/// A whole model: a graph, the operator sets its nodes mean, and functions.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Model {
    pub graph: Graph,
    pub ir_version: i64,
    /// Version by domain (the default domain is `""`).
    pub opsets: IndexMap<String, i64>,
    pub functions: Vec<Function>,
    pub producer: String,
}

impl Model {
    /// A model around a graph that this program made.
    pub fn new(graph: Graph, opset: i64) -> Self {
        Model {
            graph,
            ir_version: if opset >= 21 { 10 } else { 8 },
            opsets: IndexMap::from([(String::new(), opset)]),
            functions: vec![],
            producer: "onnx-merge".into(),
        }
    }
    /// The version of the default operator set.
    pub fn opset(&self) -> i64 {
        self.opsets.get("").copied().unwrap_or(1)
    }
}
