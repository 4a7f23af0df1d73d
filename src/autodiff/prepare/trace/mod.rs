//! Follows the batch through a graph, and rewrites what is fixed to the old number of rows on the way.
//!
//! The graph is settled (shapes are constants, see [`super::settle`]) and its values have facts for `from` rows.
//! Of each value it is decided whether it carries the batch, and on which axis: in the new graph that axis is
//! `to / from` times as long, with the batch as its outermost factor. Whether that is right is not proved here but
//! by running both graphs. Look at [`trace`].

mod rules;

use crate::onnx::{Facts, Graph, Names, Node, Tensor, ValueId, node_reads};
use std::collections::HashMap;

/// How a value relates to the batch.
#[derive(Clone, Debug, PartialEq)]
enum Carries {
    /// Rows along this axis.
    Rows(usize),
    /// Something that mixes rows, or that couldn't be followed, and why.
    Unknown(String),
}

/// `graph` for `to` rows instead of `from`, given the batch axes of its inputs. Outputs that don't carry the batch
/// are dropped.
///
/// # Errors
/// Why no output could be followed.
pub fn trace(
    graph: &Graph,
    facts: &Facts,
    axes: &HashMap<ValueId, usize>,
    from: usize,
    to: usize,
) -> Result<Graph, String> {
    let carries = axes.iter().map(|(id, &axis)| (id.clone(), Carries::Rows(axis))).collect();
    let mut out = graph.clone();
    out.nodes.clear();
    let mut tracer = Tracer { facts, carries, out, names: Names::of(graph), from, to };
    for node in &graph.nodes {
        tracer.node(node);
    }
    let carries = tracer.carries;
    let mut out = tracer.out;
    let followed = |id: &ValueId| matches!(carries.get(id), Some(Carries::Rows(_)));
    if !graph.outputs.iter().any(|o| followed(&o.id)) {
        let why = graph.outputs.iter().find_map(|o| match carries.get(&o.id) {
            Some(Carries::Unknown(why)) => Some(why.clone()),
            _ => None,
        });
        return Err(why.unwrap_or_else(|| "no output depends on an input with rows".into()));
    }
    out.outputs.retain(|o| followed(&o.id));
    out.prune();
    Ok(out)
}

struct Tracer<'a> {
    facts: &'a Facts,
    carries: HashMap<ValueId, Carries>,
    out: Graph,
    names: Names,
    from: usize,
    to: usize,
}

/// The batch axis of each output of a node.
type Rule = Result<Vec<usize>, String>;

const ELEMENTWISE: &str = " Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid \
    HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh \
    Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Cast Add Sub Mul Div Pow Mod Max Min Sum Mean PRelu And Or Xor \
    Equal Greater GreaterOrEqual Less LessOrEqual BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Where \
    FastGelu BiasGelu QuickGelu RandomNormalLike RandomUniformLike Bernoulli ";
const IMAGES: &str = " Conv ConvTranspose ConvInteger QLinearConv MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool \
    GlobalLpPool BatchNormalization InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth FusedConv \
    NhwcConv Scaler Normalizer LinearClassifier LinearRegressor TreeEnsembleClassifier TreeEnsembleRegressor Imputer \
    SVMClassifier SVMRegressor Binarizer ";

impl Tracer<'_> {
    fn node(&mut self, node: &Node) {
        let reads = node_reads(node);
        let unknown = reads.iter().find_map(|r| match self.carries.get(r) {
            Some(Carries::Unknown(why)) => Some(why.clone()),
            _ => None,
        });
        let touched = reads.iter().any(|r| self.carries.contains_key(r));
        let inside = node.subgraphs().next().is_some();
        let before = self.out.nodes.len();
        let rule = match unknown {
            Some(why) => Err(why),
            None if !touched => {
                self.out.nodes.push(node.clone());
                return;
            }
            None if inside => Err(format!("'{}' ({}) computes inside a subgraph", node.label(), node.op)),
            None => {
                self.rule(node).map_err(|why| format!("'{}' ({}): {why}", node.label(), node.qualified_op()))
            }
        };
        if rule.is_err() {
            self.out.nodes.truncate(before);
            self.out.nodes.push(node.clone());
        }
        for (i, output) in node.outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            let carries = match &rule {
                Ok(axes) => match axes.get(i).or(axes.first()) {
                    Some(&axis) if self.divides(output, axis) => Carries::Rows(axis),
                    _ => Carries::Unknown(format!("'{}' ({}) loses the rows", node.label(), node.op)),
                },
                Err(why) => Carries::Unknown(why.clone()),
            };
            self.carries.insert(output.clone(), carries);
        }
    }

    fn divides(&self, id: &ValueId, axis: usize) -> bool {
        self.facts.get(id).and_then(|f| f.shape.get(axis)).is_some_and(|d| d % self.from == 0)
    }

    /// The batch axis of input `i`; `None` where it carries no batch.
    fn axis(&self, node: &Node, i: usize) -> Option<usize> {
        match self.carries.get(node.input(i)?)? {
            Carries::Rows(axis) => Some(*axis),
            Carries::Unknown(_) => None,
        }
    }
    fn shape(&self, id: Option<&ValueId>) -> Result<Vec<usize>, String> {
        let id = id.ok_or("an input is missing")?;
        self.facts.get(id).map(|f| f.shape.clone()).ok_or_else(|| format!("the shape of '{id}' is unknown"))
    }
    fn input_shape(&self, node: &Node, i: usize) -> Result<Vec<usize>, String> {
        self.shape(node.input(i))
    }
    fn ints(&self, node: &Node, i: usize) -> Result<Vec<i64>, String> {
        let constant = node.input(i).and_then(|id| self.out.initializers.get(id));
        constant.map(|t| t.to_i64().into_owned()).ok_or_else(|| format!("input {i} is computed from data"))
    }
    /// The first input's batch axis; an error where another carries the batch, or this one doesn't.
    fn only(&self, node: &Node) -> Result<usize, String> {
        if (1..node.inputs.len()).any(|i| self.axis(node, i).is_some()) {
            return Err("a parameter depends on the data".into());
        }
        self.axis(node, 0).ok_or_else(|| "a parameter depends on the data".into())
    }
    fn keep(&mut self, node: &Node) {
        self.out.nodes.push(node.clone());
    }
    fn fresh(&mut self, hint: &str) -> ValueId {
        self.names.fresh(hint)
    }
    fn constant(&mut self, node: &Node, what: &str, values: &[i64]) -> ValueId {
        let id = self.fresh(&format!("{}/{what}", node.label()));
        self.out.initializers.insert(id.clone(), Tensor::i64(&[values.len()], values));
        id
    }
    /// A shape with the new number of rows on `axis`.
    fn lifted(&self, shape: &[usize], axis: usize) -> Vec<i64> {
        let mut dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        if let Some(d) = dims.get_mut(axis) {
            *d = *d / self.from as i64 * self.to as i64;
        }
        dims
    }
    /// Keeps the node with input `i` replaced by constants.
    fn keep_with(&mut self, node: &Node, i: usize, what: &str, values: &[i64]) {
        let id = self.constant(node, what, values);
        let mut node = node.clone();
        node.inputs[i] = Some(id);
        self.out.nodes.push(node);
    }
    /// Repeats the row of a value without batch along `axis`: cell states, class tokens. Where the file has it several times over,
    /// it is their mean, so that all of them get the gradient and stay alike.
    fn widen(&mut self, id: &ValueId, axis: usize) -> Result<ValueId, String> {
        let shape = self.shape(Some(id))?;
        if shape.get(axis) != Some(&self.from) {
            return Err(format!("'{id}' has no axis for the rows"));
        }
        let anchor = Node::new("Expand", &[id], &[id]);
        let mut source = id.clone();
        if self.from > 1 {
            source = self.fresh(&format!("{id}/row"));
            let along = self.constant(&anchor, "axis", &[axis as i64]);
            let node = if self.facts.get(id).is_some_and(|f| f.dtype.is_float()) {
                Node::new("ReduceMean", &[id, &along], &[&source])
            } else {
                let bounds = [[0], [1]].map(|v| self.constant(&anchor, "bound", &v));
                Node::new("Slice", &[id, &bounds[0], &bounds[1], &along], &[&source])
            };
            self.out.nodes.push(node);
        }
        let dims = self.lifted(&shape, axis);
        let (dims, wide) = (self.constant(&anchor, "rows", &dims), self.fresh(&format!("{id}/wide")));
        self.out.nodes.push(Node::new("Expand", &[&source, &dims], &[&wide]));
        Ok(wide)
    }
    /// Keeps the node with every input of `which` that carries no batch widened along `axis`; the others must
    /// carry it there.
    fn keep_widened(&mut self, node: &Node, which: &[usize], axis: usize) -> Result<(), String> {
        let mut node = node.clone();
        for &i in which {
            let Some(id) = node.input(i).cloned() else { continue };
            match self.axis(&node, i) {
                Some(at) if at == axis => {}
                Some(_) => return Err("its inputs carry the rows on different axes".into()),
                None => node.inputs[i] = Some(self.widen(&id, axis)?),
            }
        }
        self.out.nodes.push(node);
        Ok(())
    }

    fn rule(&mut self, node: &Node) -> Rule {
        let op = node.op.as_str();
        let listed = |list: &str| list.contains(&format!(" {op} "));
        if listed(ELEMENTWISE) {
            let axis = self.broadcast(node)?;
            self.keep(node);
            return Ok(vec![axis]);
        }
        if listed(IMAGES) {
            return match self.only(node)? {
                0 => {
                    self.keep(node);
                    Ok(vec![0])
                }
                _ => Err("the rows aren't on its first axis".into()),
            };
        }
        match op {
            "MatMul" | "MatMulInteger" => self.matmul(node),
            "Gemm" => self.gemm(node),
            "Transpose" => self.transpose(node),
            "Reshape" | "Flatten" => self.reshape(node),
            "Squeeze" | "Unsqueeze" => self.squeeze(node),
            "Expand" => self.expand(node),
            "Concat" => self.concat(node),
            "Slice" => self.slice(node),
            "Split" => self.along(node, node.int_or("axis", 0)),
            "Gather" => self.gather(node),
            "GatherElements" | "ScatterElements" => self.elements(node),
            "GatherND" => self.gather_nd(node),
            "Softmax" | "LogSoftmax" | "Hardmax" | "LpNormalization" | "TopK" => {
                self.along(node, node.int_or("axis", -1))
            }
            "CumSum" => {
                let axis = self.ints(node, 1)?.first().copied().unwrap_or(0);
                self.along(node, axis)
            }
            "LayerNormalization"
            | "RMSNormalization"
            | "SimplifiedLayerNormalization"
            | "SkipLayerNormalization" => self.layer_norm(node),
            "MeanVarianceNormalization" => self.mean_variance(node),
            "ArgMax" | "ArgMin" => self.reduce(node, Some(vec![node.int_or("axis", 0)])),
            _ if op.starts_with("Reduce") && node.domain.is_empty() => self.reduce(node, None),
            "Pad" => self.pad(node),
            "Tile" => self.tile(node),
            "Resize" => self.resize(node),
            "LSTM" | "GRU" | "RNN" => self.recurrent(node),
            "OneHot" => self.one_hot(node),
            "Einsum" => self.einsum(node),
            "Trilu" => {
                let axis = self.only(node)?;
                self.keep(node);
                Ok(vec![axis])
            }
            "QuantizeLinear" | "DequantizeLinear" | "CastLike" => {
                let axis = self.only(node)?;
                self.keep(node);
                Ok(vec![axis])
            }
            _ => Err("rows can't be followed through this operator".into()),
        }
    }
}
