//! Makes graphs: emits nodes in order, names values, shares constants, and keeps the facts of everything emitted.
//!
//! All emitted nodes are in the form of opset 18 and later (axes of reductions as inputs, and so on).

use super::infer::{Operand, infer, normalise_axis};
use super::{Attr, DType, Fact, Facts, Graph, Names, Node, Tensor, ValueId, ValueInfo};
use std::collections::HashMap;

/// The operator set that graphs made by this program are written in, unless a model needs a newer one.
pub const WORKING_OPSET: i64 = 18;

/// Builds a graph, from nothing or on top of an existing one.
///
/// Methods that emit a node return the value it makes. Facts of emitted values are inferred, so that
/// [`Builder::shape`] and [`Builder::dtype`] answer for every value the builder has seen.
pub struct Builder {
    /// Which of several equal formulations rules emit.
    pub forms: Forms,
    graph: Graph,
    facts: Facts,
    scope: String,
    names: Names,
    constants: HashMap<(DType, Vec<usize>, Vec<u8>), ValueId>,
}

/// What is fast where a graph will run. Results are the same but for rounding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Forms {
    /// Matrix products: CPU executors, and files for others.
    #[default]
    Products,
    /// Matrix products, but in single precision and over two axes convolutions as large as images for depthwise ones, and
    /// operators of our own ([`super::kernels`]): ONNX Runtime with kernels of ours.
    Kernels {
        /// Whether those of products are faster than ONNX Runtime's on this processor.
        products: bool,
    },
    /// Convolutions of every shape, as large as images: our GPU executor.
    Windows,
}

impl Builder {
    pub fn new(name: &str) -> Self {
        Self::on(Graph { name: name.to_owned(), ..Graph::default() }, Facts::new())
    }
    /// Goes on with `graph`, whose values have the given facts.
    pub fn on(graph: Graph, mut facts: Facts) -> Self {
        let names = Names::of(&graph);
        for (id, tensor) in &graph.initializers {
            facts.entry(id.clone()).or_insert_with(|| Fact::of(tensor));
        }
        Self { forms: Forms::default(), graph, facts, scope: String::new(), names, constants: HashMap::new() }
    }
    pub fn finish(self) -> (Graph, Facts) {
        (self.graph, self.facts)
    }
    pub fn graph(&self) -> &Graph {
        &self.graph
    }
    pub fn graph_mut(&mut self) -> &mut Graph {
        &mut self.graph
    }
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
    /// Names of values emitted from now on begin with `scope/`, so that graphs stay readable in Netron.
    pub fn set_scope(&mut self, scope: &str) {
        self.scope = scope.to_owned();
    }
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The fact of a value.
    ///
    /// # Panics
    /// When the value is unknown, or was made by an operator that [`infer`] has no rule for: a programming error.
    pub fn fact(&self, value: &ValueId) -> &Fact {
        self.facts.get(value).unwrap_or_else(|| panic!("no fact for value '{value}'"))
    }
    pub fn shape(&self, value: &ValueId) -> Vec<usize> {
        self.fact(value).shape.clone()
    }
    pub fn rank(&self, value: &ValueId) -> usize {
        self.fact(value).shape.len()
    }
    pub fn dtype(&self, value: &ValueId) -> DType {
        self.fact(value).dtype
    }
    /// The value of a constant of this graph.
    pub fn constant_value(&self, value: &ValueId) -> Option<&Tensor> {
        self.graph.initializers.get(value)
    }
    pub fn set_fact(&mut self, value: &ValueId, fact: Fact) {
        self.facts.insert(value.clone(), fact);
    }

    /// Declares an input.
    pub fn input(&mut self, name: &str, fact: Fact) -> ValueId {
        let id = ValueId::new(name);
        self.graph.inputs.push(ValueInfo::new(id.clone(), &fact));
        self.names.reserve([id.clone()]);
        self.facts.insert(id.clone(), fact);
        id
    }
    /// Declares an output.
    pub fn output(&mut self, value: &ValueId) {
        let info = ValueInfo::new(value.clone(), self.fact(value));
        self.graph.outputs.push(info);
    }
    /// Declares an output under a name of its own.
    pub fn output_as(&mut self, name: &str, value: &ValueId) -> ValueId {
        let id = ValueId::new(name);
        let fact = self.fact(value).clone();
        self.graph.nodes.push(Node::new("Identity", &[value], &[&id]));
        self.graph.outputs.push(ValueInfo::new(id.clone(), &fact));
        self.names.reserve([id.clone()]);
        self.facts.insert(id.clone(), fact);
        id
    }
    /// Keeps names from being given to anything else.
    pub fn reserve(&mut self, names: impl IntoIterator<Item = ValueId>) {
        self.names.reserve(names);
    }
    /// A name nobody has yet, made from `hint`.
    pub fn fresh(&mut self, hint: &str) -> ValueId {
        match self.scope.as_str() {
            "" => self.names.fresh(hint),
            scope => self.names.fresh(&format!("{scope}/{hint}")),
        }
    }

    /// An unnamed constant; equal constants are shared.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        let key = (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec());
        if let Some(id) = self.constants.get(&key) {
            return id.clone();
        }
        let scope = std::mem::take(&mut self.scope);
        let id = self.fresh("const");
        self.scope = scope;
        self.facts.insert(id.clone(), Fact::of(&tensor));
        self.graph.initializers.insert(id.clone(), tensor);
        self.constants.insert(key, id.clone());
        id
    }
    /// A named constant of its own.
    pub fn initializer(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let id = self.fresh(name);
        self.facts.insert(id.clone(), Fact::of(&tensor));
        self.graph.initializers.insert(id.clone(), tensor);
        id
    }
    /// A scalar of the element type of `like`.
    pub fn scalar_like(&mut self, like: &ValueId, value: f64) -> ValueId {
        let dtype = self.dtype(like);
        self.constant(Tensor::scalar(dtype, value))
    }
    /// A one-dimensional int64 constant: axes, shapes, indices.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(Tensor::i64(&[values.len()], values))
    }
    pub fn zeros_like(&mut self, like: &ValueId) -> ValueId {
        let fact = self.fact(like).clone();
        let zero = self.constant(Tensor::scalar(fact.dtype, 0.0));
        self.expand(&zero, &fact.shape)
    }

    /// Emits a whole node whose output names are chosen; infers what facts it can.
    pub fn push(&mut self, node: Node) {
        let operands: Vec<Option<Operand<'_>>> = node
            .inputs
            .iter()
            .map(|input| {
                let id = input.as_ref()?;
                Some(Operand { fact: self.facts.get(id)?, value: self.graph.initializers.get(id) })
            })
            .collect();
        let complete = node.inputs.iter().zip(&operands).all(|(i, o)| i.is_none() || o.is_some());
        if let Some(facts) = complete.then(|| infer(&node, &operands)).flatten() {
            for (output, fact) in node.outputs.iter().zip(facts) {
                if let Some(output) = output {
                    self.facts.insert(output.clone(), fact);
                }
            }
        }
        self.names.reserve(node.outputs.iter().flatten().cloned());
        self.graph.nodes.push(node);
    }
    /// Emits a node as it was, facts of whose outputs are known from before; infers them where they aren't.
    pub fn keep(&mut self, node: Node) {
        match node.outputs.iter().flatten().all(|output| self.facts.contains_key(output)) {
            true => self.graph.nodes.push(node),
            false => self.push(node),
        }
    }
    /// Emits `op(inputs)` with one output.
    pub fn op(&mut self, op: &str, inputs: &[&ValueId]) -> ValueId {
        self.op_with(op, inputs, &[])
    }
    /// Emits `op(inputs; attributes)` with one output.
    pub fn op_with(&mut self, op: &str, inputs: &[&ValueId], attrs: &[(&str, Attr)]) -> ValueId {
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        self.op_full("", op, &inputs, attrs, 1).remove(0)
    }
    /// Emits a node of any domain, with optional inputs left out where `None`, and `outputs` outputs.
    pub fn op_full(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[Option<&ValueId>],
        attrs: &[(&str, Attr)],
        outputs: usize,
    ) -> Vec<ValueId> {
        let made: Vec<ValueId> = (0..outputs).map(|_| self.fresh(op)).collect();
        self.push(Node {
            name: made[0].to_string(),
            op: op.to_owned(),
            domain: domain.to_owned(),
            inputs: inputs.iter().map(|v| v.cloned()).collect(),
            outputs: made.iter().cloned().map(Some).collect(),
            attrs: attrs.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        });
        made
    }

    pub fn add(&mut self, a: &ValueId, b: &ValueId) -> ValueId {
        self.op("Add", &[a, b])
    }
    pub fn sub(&mut self, a: &ValueId, b: &ValueId) -> ValueId {
        self.op("Sub", &[a, b])
    }
    pub fn mul(&mut self, a: &ValueId, b: &ValueId) -> ValueId {
        self.op("Mul", &[a, b])
    }
    pub fn div(&mut self, a: &ValueId, b: &ValueId) -> ValueId {
        self.op("Div", &[a, b])
    }
    pub fn neg(&mut self, a: &ValueId) -> ValueId {
        self.op("Neg", &[a])
    }
    pub fn matmul(&mut self, a: &ValueId, b: &ValueId) -> ValueId {
        self.op("MatMul", &[a, b])
    }
    /// `a + c` for a plain number.
    pub fn add_scalar(&mut self, a: &ValueId, c: f64) -> ValueId {
        let c = self.scalar_like(a, c);
        self.add(a, &c)
    }
    /// `a · c` for a plain number.
    pub fn mul_scalar(&mut self, a: &ValueId, c: f64) -> ValueId {
        let c = self.scalar_like(a, c);
        self.mul(a, &c)
    }
    /// `c − a` for a plain number.
    pub fn scalar_sub(&mut self, c: f64, a: &ValueId) -> ValueId {
        let c = self.scalar_like(a, c);
        self.sub(&c, a)
    }
    pub fn where_(&mut self, condition: &ValueId, a: &ValueId, b: &ValueId) -> ValueId {
        self.op("Where", &[condition, a, b])
    }
    /// No node when the type is right already.
    pub fn cast(&mut self, a: &ValueId, to: DType) -> ValueId {
        match self.dtype(a) == to {
            true => a.clone(),
            false => self.op_with("Cast", &[a], &[("to", Attr::Int(to.to_onnx() as i64))]),
        }
    }
    /// No node when the shape is right already.
    pub fn reshape(&mut self, a: &ValueId, shape: &[usize]) -> ValueId {
        if self.shape(a) == shape {
            return a.clone();
        }
        let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let dims = self.ints(&dims);
        let zero_sized = shape.contains(&0);
        let attrs: &[(&str, Attr)] = if zero_sized { &[("allowzero", Attr::Int(1))] } else { &[] };
        self.op_with("Reshape", &[a, &dims], attrs)
    }
    /// No node when the shape is right already, nor where nothing is left: not every executor expands to that.
    pub fn expand(&mut self, a: &ValueId, shape: &[usize]) -> ValueId {
        if self.shape(a) == shape {
            return a.clone();
        }
        if shape.contains(&0) {
            let dtype = self.dtype(a);
            return self.constant(Tensor::from_f64(dtype, shape, &[]));
        }
        let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let dims = self.ints(&dims);
        self.op("Expand", &[a, &dims])
    }
    /// No node when `perm` changes nothing.
    pub fn transpose(&mut self, a: &ValueId, perm: &[usize]) -> ValueId {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return a.clone();
        }
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.op_with("Transpose", &[a], &[("perm", perm.into())])
    }
    /// Swaps the last two axes.
    pub fn transpose_matrix(&mut self, a: &ValueId) -> ValueId {
        let rank = self.rank(a);
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(a, &perm)
    }
    /// `ReduceSum`, `ReduceMean`, `ReduceMax`… over `axes` (negative ones count from the back).
    pub fn reduce(&mut self, op: &str, a: &ValueId, axes: &[i64], keepdims: bool) -> ValueId {
        let axes = self.ints(axes);
        self.op_with(op, &[a, &axes], &[("keepdims", keepdims.into())])
    }
    pub fn sum(&mut self, a: &ValueId, axes: &[i64], keepdims: bool) -> ValueId {
        self.reduce("ReduceSum", a, axes, keepdims)
    }
    pub fn mean(&mut self, a: &ValueId, axes: &[i64], keepdims: bool) -> ValueId {
        self.reduce("ReduceMean", a, axes, keepdims)
    }
    /// The sum of all elements, a scalar. By way of a reshape: not every executor reduces many axes to none.
    pub fn sum_all(&mut self, a: &ValueId) -> ValueId {
        let n = self.fact(a).len();
        let flat = self.reshape(a, &[n]);
        self.sum(&flat, &[0], false)
    }
    pub fn squeeze(&mut self, a: &ValueId, axes: &[i64]) -> ValueId {
        let rank = self.rank(a);
        let drop: Vec<usize> = axes.iter().filter_map(|&x| normalise_axis(x, rank)).collect();
        let shape = self.shape(a);
        let kept: Vec<usize> = (0..rank).filter(|i| !drop.contains(i)).map(|i| shape[i]).collect();
        self.reshape(a, &kept)
    }
    pub fn unsqueeze(&mut self, a: &ValueId, axes: &[i64]) -> ValueId {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[a, &axes])
    }
    pub fn concat(&mut self, parts: &[&ValueId], axis: i64) -> ValueId {
        match parts {
            [only] => (*only).clone(),
            _ => self.op_with("Concat", parts, &[("axis", axis.into())]),
        }
    }
    /// `a[start..end]` along each of `axes`.
    pub fn slice(&mut self, a: &ValueId, starts: &[i64], ends: &[i64], axes: &[i64]) -> ValueId {
        let (starts, ends, axes) = (self.ints(starts), self.ints(ends), self.ints(axes));
        self.op("Slice", &[a, &starts, &ends, &axes])
    }
    pub fn softmax(&mut self, a: &ValueId, axis: i64) -> ValueId {
        self.op_with("Softmax", &[a], &[("axis", axis.into())])
    }
    /// Undoes broadcasting: sums `a` down to `shape`, to which it must be broadcastable from.
    pub fn sum_to(&mut self, a: &ValueId, shape: &[usize]) -> ValueId {
        let from = self.shape(a);
        if from == shape {
            return a.clone();
        }
        let lead = from.len() - shape.len();
        let axes: Vec<i64> = (0..from.len())
            .filter(|&i| i < lead || (shape[i - lead] == 1 && from[i] != 1))
            .map(|i| i as i64)
            .collect();
        let summed = if axes.is_empty() { a.clone() } else { self.sum(a, &axes, true) };
        self.reshape(&summed, shape)
    }
}
