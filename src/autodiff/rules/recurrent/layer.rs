//! What a recurrent layer is given: its attributes, its weights and states by direction, the masks of its sequences.

use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, DType, Node, RecurrentOp as Cell, Tensor, ValueId};

/// An activation function with its parameters.
#[derive(Clone)]
pub struct Activation {
    name: String,
    alpha: Option<f64>,
    beta: Option<f64>,
}

impl Activation {
    pub fn apply(&self, b: &mut Builder, node: &Node, v: &ValueId) -> Result<ValueId> {
        let one = |name: &'static str, value: Option<f64>, default: f64| {
            (name, Attr::Float(value.unwrap_or(default) as f32))
        };
        let affine = |b: &mut Builder, v: &ValueId, alpha: f64, beta: f64| {
            let scaled = b.mul_scalar(v, alpha);
            b.add_scalar(&scaled, beta)
        };
        Ok(match self.name.to_ascii_lowercase().as_str() {
            "sigmoid" => b.op("Sigmoid", &[v]),
            "tanh" => b.op("Tanh", &[v]),
            "relu" => b.op("Relu", &[v]),
            "softsign" => b.op("Softsign", &[v]),
            "softplus" => b.op("Softplus", &[v]),
            "leakyrelu" => b.op_with("LeakyRelu", &[v], &[one("alpha", self.alpha, 0.01)]),
            "thresholdedrelu" => b.op_with("ThresholdedRelu", &[v], &[one("alpha", self.alpha, 1.0)]),
            "elu" => b.op_with("Elu", &[v], &[one("alpha", self.alpha, 1.0)]),
            "hardsigmoid" => {
                let attrs = [one("alpha", self.alpha, 0.2), one("beta", self.beta, 0.5)];
                b.op_with("HardSigmoid", &[v], &attrs)
            }
            "affine" => affine(b, v, self.alpha.unwrap_or(1.0), self.beta.unwrap_or(0.0)),
            "scaledtanh" => {
                let inner = b.mul_scalar(v, self.beta.unwrap_or(1.0));
                let inner = b.op("Tanh", &[&inner]);
                b.mul_scalar(&inner, self.alpha.unwrap_or(1.0))
            }
            _ => return Err(Error::node(node, format!("activation '{}' is unknown", self.name))),
        })
    }
}

/// Everything about the layer that is the same in both directions.
pub struct Layer<'a> {
    pub node: &'a Node,
    pub cell: Cell,
    pub hidden: usize,
    pub batch: usize,
    pub steps: usize,
    pub directions: usize,
    pub clip: Option<f64>,
    pub coupled: bool,
    pub linear_before_reset: bool,
    /// Whether the batch comes before the time in the node's inputs and outputs.
    pub batch_first: bool,
    /// `[steps, batch, inputs]`.
    pub x: ValueId,
    /// Whether each row's sequence still goes on at each step: `[steps, batch, 1]`. `None` when all are of full length.
    pub running: Option<ValueId>,
    activations: Vec<Vec<Activation>>,
}

impl<'a> Layer<'a> {
    pub fn of(b: &mut Builder, node: &'a Node) -> Result<Self> {
        let cell = Cell::of(node).unwrap_or(Cell::Rnn);
        let (x, w) = (required(node, 0)?, required(node, 1)?);
        let batch_first = node.int_or("layout", 0) != 0;
        let x = if batch_first { b.transpose(&x, &[1, 0, 2]) } else { x };
        let (x_shape, w_shape) = (b.shape(&x), b.shape(&w));
        let (&[steps, batch, _], &[directions, rows, _]) = (&x_shape[..], &w_shape[..]) else {
            return Err(Error::node(
                node,
                format!("its input has shape {x_shape:?}, its weights {w_shape:?}"),
            ));
        };
        let mut layer = Layer {
            node,
            cell,
            hidden: rows / cell.gates(),
            batch,
            steps,
            directions,
            clip: node.float("clip").map(f64::from).filter(|&clip| clip > 0.0),
            coupled: node.int_or("input_forget", 0) != 0,
            linear_before_reset: node.int_or("linear_before_reset", 0) != 0,
            batch_first,
            x,
            running: None,
            activations: activations(node, cell, directions),
        };
        layer.running = node.input(4).and_then(|lengths| running(b, lengths, &layer));
        Ok(layer)
    }
    /// Whether the reset gate multiplies the state before the recurrent product, which then takes two products a step.
    pub fn resets_first(&self) -> bool {
        self.cell == Cell::Gru && !self.linear_before_reset
    }
}

fn required(node: &Node, i: usize) -> Result<ValueId> {
    node.input(i).cloned().ok_or_else(|| Error::node(node, format!("input {i} is missing")))
}

/// Masks from `sequence_lens`; none where they are constants that say nothing new.
fn running(b: &mut Builder, lengths: &ValueId, layer: &Layer<'_>) -> Option<ValueId> {
    let full = |t: &Tensor| t.to_i64().iter().all(|&n| n == layer.steps as i64);
    if b.constant_value(lengths).is_some_and(full) {
        return None;
    }
    let lengths = b.cast(lengths, DType::I64);
    let lengths = b.reshape(&lengths, &[1, layer.batch, 1]);
    let times: Vec<i64> = (0..layer.steps as i64).collect();
    let times = b.constant(Tensor::i64(&[layer.steps, 1, 1], &times));
    Some(b.op("Greater", &[&lengths, &times]))
}

/// The activations of each direction; parameters are handed out in order to those that take them.
fn activations(node: &Node, cell: Cell, directions: usize) -> Vec<Vec<Activation>> {
    let names = cell.activations(node, directions);
    let of_each = names.len() / directions.max(1);
    let floats = |name: &str| match node.attrs.get(name) {
        Some(Attr::Floats(values)) => values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(),
        _ => vec![],
    };
    let (mut alphas, mut betas) =
        (floats("activation_alpha").into_iter(), floats("activation_beta").into_iter());
    let mut all = names.into_iter().map(|name| {
        let lower = name.to_ascii_lowercase();
        let takes = |names: &[&str]| names.contains(&lower.as_str());
        let alpha = takes(&["leakyrelu", "thresholdedrelu", "elu", "hardsigmoid", "affine", "scaledtanh"]);
        let beta = takes(&["hardsigmoid", "affine", "scaledtanh"]);
        Activation {
            alpha: if alpha { alphas.next() } else { None },
            beta: if beta { betas.next() } else { None },
            name,
        }
    });
    (0..directions).map(|_| all.by_ref().take(of_each).collect()).collect()
}

/// Row `d` of a value that has one a direction, without that axis.
pub fn part(b: &mut Builder, v: &ValueId, d: usize, axis: usize) -> ValueId {
    let mut shape = b.shape(v);
    let v =
        if shape[axis] == 1 { v.clone() } else { b.slice(v, &[d as i64], &[d as i64 + 1], &[axis as i64]) };
    shape.remove(axis);
    b.reshape(&v, &shape)
}

/// `v` in pieces of these sizes along its last axis.
pub fn split(b: &mut Builder, v: &ValueId, sizes: &[usize]) -> Vec<ValueId> {
    if sizes.len() == 1 {
        return vec![v.clone()];
    }
    let axis = b.rank(v) as i64 - 1;
    let lengths = b.ints(&sizes.iter().map(|&s| s as i64).collect::<Vec<_>>());
    b.op_full("", "Split", &[Some(v), Some(&lengths)], &[("axis", Attr::Int(axis))], sizes.len())
}

/// The parameters and the first states of one direction.
pub struct Direction {
    /// Whether it goes from the last step to the first.
    pub reverse: bool,
    /// `[gates · hidden, inputs]`.
    pub weights: ValueId,
    /// `x · Wᵀ + b` for every step, `[steps, batch, gates · hidden]`.
    pub projected: ValueId,
    /// The recurrent weights, `[gates · hidden, hidden]`; of a GRU that [resets first](Layer::resets_first) those of the two
    /// gates, then the candidate's.
    pub recurrent: Vec<ValueId>,
    /// Transposed.
    pub recurrent_t: Vec<ValueId>,
    /// The recurrent bias, where it can't be added to the input's: `[gates · hidden]`.
    pub recurrent_bias: Option<ValueId>,
    /// `[hidden]` for the input, output and forget gate.
    pub peepholes: Option<Vec<ValueId>>,
    pub activations: Vec<Activation>,
    /// `[batch, hidden]`.
    pub h: ValueId,
    pub c: Option<ValueId>,
}

impl Direction {
    pub fn of(b: &mut Builder, layer: &Layer<'_>, d: usize) -> Result<Self> {
        let node = layer.node;
        let weights = part(b, &required(node, 1)?, d, 0);
        let r = part(b, &required(node, 2)?, d, 0);
        let recurrent = match layer.resets_first() {
            true => {
                let (gates, all) = (2 * layer.hidden as i64, 3 * layer.hidden as i64);
                vec![b.slice(&r, &[0], &[gates], &[0]), b.slice(&r, &[gates], &[all], &[0])]
            }
            false => vec![r],
        };
        let recurrent_t = recurrent.iter().map(|r| b.transpose(r, &[1, 0])).collect();
        let transposed = b.transpose(&weights, &[1, 0]);
        let mut projected = b.matmul(&layer.x, &transposed);
        let mut recurrent_bias = None;
        let width = layer.cell.gates() * layer.hidden;
        if let Some(bias) = node.input(3) {
            let bias = part(b, bias, d, 0);
            let halves = split(b, &bias, &[width, width]);
            projected = b.add(&projected, &halves[0]);
            // The reset gate multiplies the recurrent bias too, so there it can't move to the input's side.
            match layer.cell == Cell::Gru && layer.linear_before_reset {
                true => recurrent_bias = Some(halves[1].clone()),
                false => projected = b.add(&projected, &halves[1]),
            }
        }
        let state = |b: &mut Builder, v: Option<&ValueId>| match v {
            Some(v) => part(b, v, d, if layer.batch_first { 1 } else { 0 }),
            None => {
                let dtype = b.dtype(&layer.x);
                let zero = b.constant(Tensor::scalar(dtype, 0.0));
                b.expand(&zero, &[layer.batch, layer.hidden])
            }
        };
        let h = state(b, node.input(5));
        let c = (layer.cell == Cell::Lstm).then(|| state(b, node.input(6)));
        let peepholes = match (layer.cell, node.input(7)) {
            (Cell::Lstm, Some(p)) => {
                let p = part(b, p, d, 0);
                Some(split(b, &p, &[layer.hidden; 3]))
            }
            _ => None,
        };
        Ok(Direction {
            reverse: d == 1 || node.str("direction") == Some("reverse"),
            weights,
            projected,
            recurrent,
            recurrent_t,
            recurrent_bias,
            peepholes,
            activations: layer.activations[d].clone(),
            h,
            c,
        })
    }
}
