//! LSTM, GRU and RNN, unrolled over time in primitives.
//!
//! The products of all inputs with the input weights are one matrix product for the whole sequence; each step then
//! costs one product with the recurrent weights. See [`Cell`].

use super::{Row, composed};
use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, DType, Node, Tensor, ValueId};

pub const TABLE: &[Row] = &[composed("GRU", forward), composed("LSTM", forward), composed("RNN", forward)];

/// The kind of a recurrent layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// Gates in the order input, output, forget, cell (ONNX's `iofc`).
    Lstm,
    /// Gates in the order update, reset, hidden (`zrh`).
    Gru,
    Rnn,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Lstm => 4,
            Cell::Gru => 3,
            Cell::Rnn => 1,
        }
    }
    fn default_activations(self) -> &'static [&'static str] {
        match self {
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Rnn => &["Tanh"],
        }
    }
}

/// An activation function with its parameters.
#[derive(Clone)]
struct Activation {
    name: String,
    alpha: Option<f64>,
    beta: Option<f64>,
}

impl Activation {
    fn apply(&self, b: &mut Builder, node: &Node, v: &ValueId) -> Result<ValueId> {
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

/// Everything about the layer that is the same at every step.
struct Layer {
    cell: Cell,
    hidden: usize,
    batch: usize,
    steps: usize,
    clip: Option<f64>,
    coupled: bool,
    linear_before_reset: bool,
    /// For each step, whether each row's sequence still goes on: `[batch, 1]`. Empty when all are of full length.
    running: Vec<ValueId>,
}

/// The parameters and the state of one direction.
struct Direction {
    /// `x · Wᵀ + b` for every step, `[batch, gates · hidden]`.
    projected: Vec<ValueId>,
    /// `[hidden, gates · hidden]`.
    recurrent: ValueId,
    /// The recurrent bias, where it can't be added to the input's: `[gates · hidden]`.
    recurrent_bias: Option<ValueId>,
    /// `[hidden]` for the input, output and forget gate.
    peepholes: Option<Vec<ValueId>>,
    activations: Vec<Activation>,
    h: ValueId,
    c: Option<ValueId>,
}

/// Emits the layer; returns Y, Y_h and, for LSTM, Y_c.
pub fn forward(b: &mut Builder, node: &Node) -> Result<Vec<Option<ValueId>>> {
    let cell = match node.op.as_str() {
        "LSTM" => Cell::Lstm,
        "GRU" => Cell::Gru,
        _ => Cell::Rnn,
    };
    let input =
        |i: usize| node.input(i).cloned().ok_or_else(|| Error::node(node, format!("input {i} is missing")));
    let (x, w) = (input(0)?, input(1)?);
    let batch_first = node.int_or("layout", 0) != 0;
    let x = if batch_first { b.transpose(&x, &[1, 0, 2]) } else { x };
    let (x_shape, w_shape) = (b.shape(&x), b.shape(&w));
    let (&[steps, batch, _], &[directions, rows, _]) = (&x_shape[..], &w_shape[..]) else {
        return Err(Error::node(node, format!("its input has shape {x_shape:?}, its weights {w_shape:?}")));
    };
    let mut layer = Layer {
        cell,
        hidden: rows / cell.gates(),
        batch,
        steps,
        clip: node.float("clip").map(f64::from).filter(|&clip| clip > 0.0),
        coupled: node.int_or("input_forget", 0) != 0,
        linear_before_reset: node.int_or("linear_before_reset", 0) != 0,
        running: vec![],
    };
    if let Some(lengths) = node.input(4) {
        layer.running = running(b, lengths, &layer);
    }
    let activations = activations(node, cell, directions);
    let (mut ys, mut hs, mut cs) = (vec![], vec![], vec![]);
    for d in 0..directions {
        let reverse = d == 1 || node.str("direction") == Some("reverse");
        let direction = direction(b, node, &layer, &x, d, batch_first, activations[d].clone())?;
        let (y, h, c) = run(b, node, &layer, direction, reverse)?;
        let each: Vec<ValueId> = y.iter().map(|y| b.reshape(y, &[1, 1, batch, layer.hidden])).collect();
        ys.push(b.concat(&each.iter().collect::<Vec<_>>(), 0));
        hs.push(b.reshape(&h, &[1, batch, layer.hidden]));
        if let Some(c) = c {
            cs.push(b.reshape(&c, &[1, batch, layer.hidden]));
        }
    }
    let mut join = |parts: &[ValueId], axis: i64, perm: &[usize]| {
        let whole = b.concat(&parts.iter().collect::<Vec<_>>(), axis);
        if batch_first { b.transpose(&whole, perm) } else { whole }
    };
    let mut outputs = vec![Some(join(&ys, 1, &[2, 0, 1, 3])), Some(join(&hs, 0, &[1, 0, 2]))];
    if cell == Cell::Lstm {
        outputs.push(Some(join(&cs, 0, &[1, 0, 2])));
    }
    Ok(outputs)
}

/// Masks from `sequence_lens`; none where they are constants that say nothing new.
fn running(b: &mut Builder, lengths: &ValueId, layer: &Layer) -> Vec<ValueId> {
    let full = |t: &Tensor| t.to_i64().iter().all(|&n| n == layer.steps as i64);
    if b.constant_value(lengths).is_some_and(full) {
        return vec![];
    }
    let lengths = b.cast(lengths, DType::I64);
    let lengths = b.reshape(&lengths, &[layer.batch, 1]);
    (0..layer.steps)
        .map(|t| {
            let t = b.scalar_like(&lengths, t as f64);
            b.op("Greater", &[&lengths, &t])
        })
        .collect()
}

/// The activations of each direction; parameters are handed out in order to those that take them.
fn activations(node: &Node, cell: Cell, directions: usize) -> Vec<Vec<Activation>> {
    let defaults = cell.default_activations();
    let named = match node.attrs.get("activations") {
        Some(Attr::Strs(names)) => names.clone(),
        _ => vec![],
    };
    let floats = |name: &str| match node.attrs.get(name) {
        Some(Attr::Floats(values)) => values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(),
        _ => vec![],
    };
    let (mut alphas, mut betas) =
        (floats("activation_alpha").into_iter(), floats("activation_beta").into_iter());
    let mut all = (0..directions * defaults.len()).map(|k| {
        let name = named.get(k).cloned().unwrap_or_else(|| defaults[k % defaults.len()].to_owned());
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
    (0..directions).map(|_| all.by_ref().take(defaults.len()).collect()).collect()
}

/// Row `d` of an input that has one a direction, without that axis.
fn part(b: &mut Builder, v: &ValueId, d: usize, axis: usize) -> ValueId {
    let mut shape = b.shape(v);
    let v =
        if shape[axis] == 1 { v.clone() } else { b.slice(v, &[d as i64], &[d as i64 + 1], &[axis as i64]) };
    shape.remove(axis);
    b.reshape(&v, &shape)
}

fn split(b: &mut Builder, v: &ValueId, axis: usize, parts: usize) -> Vec<ValueId> {
    if parts == 1 {
        return vec![v.clone()];
    }
    let size = b.shape(v)[axis] / parts;
    let sizes = b.ints(&vec![size as i64; parts]);
    b.op_full("", "Split", &[Some(v), Some(&sizes)], &[("axis", Attr::Int(axis as i64))], parts)
}

fn direction(
    b: &mut Builder,
    node: &Node,
    layer: &Layer,
    x: &ValueId,
    d: usize,
    batch_first: bool,
    activations: Vec<Activation>,
) -> Result<Direction> {
    let input = |i: usize| node.input(i).cloned();
    let missing = |i: usize| Error::node(node, format!("input {i} is missing"));
    let w = part(b, &input(1).ok_or_else(|| missing(1))?, d, 0);
    let r = part(b, &input(2).ok_or_else(|| missing(2))?, d, 0);
    let (w, recurrent) = (b.transpose(&w, &[1, 0]), b.transpose(&r, &[1, 0]));
    let mut projected = b.matmul(x, &w);
    let mut recurrent_bias = None;
    if let Some(bias) = input(3) {
        let bias = part(b, &bias, d, 0);
        let halves = split(b, &bias, 0, 2);
        projected = b.add(&projected, &halves[0]);
        // The reset gate multiplies the recurrent bias too, so there it can't move to the input's side.
        match layer.linear_before_reset {
            true => recurrent_bias = Some(halves[1].clone()),
            false => projected = b.add(&projected, &halves[1]),
        }
    }
    let width = layer.cell.gates() * layer.hidden;
    let steps = split(b, &projected, 0, layer.steps);
    let projected = steps.iter().map(|p| b.reshape(p, &[layer.batch, width])).collect();
    let state = |b: &mut Builder, v: Option<ValueId>| match v {
        Some(v) => part(b, &v, d, if batch_first { 1 } else { 0 }),
        None => {
            let dtype = b.dtype(x);
            let zero = b.constant(Tensor::scalar(dtype, 0.0));
            b.expand(&zero, &[layer.batch, layer.hidden])
        }
    };
    let h = state(b, input(5));
    let c = (layer.cell == Cell::Lstm).then(|| state(b, input(6)));
    let peepholes = match (layer.cell, input(7)) {
        (Cell::Lstm, Some(p)) => {
            let p = part(b, &p, d, 0);
            Some(split(b, &p, 0, 3))
        }
        _ => None,
    };
    Ok(Direction { projected, recurrent, recurrent_bias, peepholes, activations, h, c })
}

/// The outputs of every step in the order of time, and the last states.
fn run(
    b: &mut Builder,
    node: &Node,
    layer: &Layer,
    mut d: Direction,
    reverse: bool,
) -> Result<(Vec<ValueId>, ValueId, Option<ValueId>)> {
    let mut ys = vec![None; layer.steps];
    for k in 0..layer.steps {
        let t = if reverse { layer.steps - 1 - k } else { k };
        let projected = d.projected[t].clone();
        let (h, c) = match layer.cell {
            Cell::Lstm => lstm_step(b, node, layer, &d, &projected)?,
            Cell::Gru => (gru_step(b, node, layer, &d, &projected)?, None),
            Cell::Rnn => (rnn_step(b, node, layer, &d, &projected)?, None),
        };
        let Some(running) = layer.running.get(t) else {
            ys[t] = Some(h.clone());
            (d.h, d.c) = (h, c);
            continue;
        };
        // A finished sequence keeps its state (one that runs backwards: hasn't started) and puts out zeros.
        let zero = b.scalar_like(&h, 0.0);
        ys[t] = Some(b.where_(running, &h, &zero));
        d.h = b.where_(running, &h, &d.h);
        d.c = c.zip(d.c).map(|(new, old)| b.where_(running, &new, &old));
    }
    Ok((ys.into_iter().flatten().collect(), d.h, d.c))
}

/// Limits what goes into an activation, where the layer says so.
fn clipped(b: &mut Builder, layer: &Layer, v: ValueId) -> ValueId {
    match layer.clip {
        None => v,
        Some(clip) => {
            let (low, high) = (b.scalar_like(&v, -clip), b.scalar_like(&v, clip));
            b.op("Clip", &[&v, &low, &high])
        }
    }
}

/// `i, f = σ(…)`, `c' = f · c + i · tanh(…)`, `h' = o · tanh(c')`; peepholes let gates see the cell.
fn lstm_step(
    b: &mut Builder,
    node: &Node,
    layer: &Layer,
    d: &Direction,
    projected: &ValueId,
) -> Result<(ValueId, Option<ValueId>)> {
    let cell = d.c.clone().ok_or_else(|| Error::node(node, "has no cell state"))?;
    let product = b.matmul(&d.h, &d.recurrent);
    let sum = b.add(projected, &product);
    let gates = split(b, &sum, 1, 4);
    let peep = |b: &mut Builder, gate: usize, peephole: usize, cell: &ValueId| match &d.peepholes {
        Some(p) => {
            let seen = b.mul(&p[peephole], cell);
            b.add(&gates[gate], &seen)
        }
        None => gates[gate].clone(),
    };
    let [f, g, h] = &d.activations[..] else { return Err(Error::node(node, "needs three activations")) };
    let i = peep(b, 0, 0, &cell);
    let i = clipped(b, layer, i);
    let i = f.apply(b, node, &i)?;
    let forget = if layer.coupled {
        b.scalar_sub(1.0, &i)
    } else {
        let forget = peep(b, 2, 2, &cell);
        let forget = clipped(b, layer, forget);
        f.apply(b, node, &forget)?
    };
    let candidate = clipped(b, layer, gates[3].clone());
    let candidate = g.apply(b, node, &candidate)?;
    let kept = b.mul(&forget, &cell);
    let added = b.mul(&i, &candidate);
    let cell = b.add(&kept, &added);
    let o = peep(b, 1, 1, &cell);
    let o = clipped(b, layer, o);
    let o = f.apply(b, node, &o)?;
    let shown = h.apply(b, node, &cell)?;
    Ok((b.mul(&o, &shown), Some(cell)))
}

/// `z, r = σ(…)`, `h' = (1 − z) · tanh(…) + z · h`.
fn gru_step(
    b: &mut Builder,
    node: &Node,
    layer: &Layer,
    d: &Direction,
    projected: &ValueId,
) -> Result<ValueId> {
    let [f, g] = &d.activations[..] else { return Err(Error::node(node, "needs two activations")) };
    let inputs = split(b, projected, 1, 3);
    let weights = split(b, &d.recurrent, 1, 3);
    let biases = d.recurrent_bias.as_ref().map(|bias| split(b, bias, 0, 3));
    let from_state = |b: &mut Builder, gate: usize, h: &ValueId| {
        let product = b.matmul(h, &weights[gate]);
        biases.as_ref().map_or(product.clone(), |biases| b.add(&product, &biases[gate]))
    };
    let gate = |b: &mut Builder, k: usize| {
        let product = from_state(b, k, &d.h);
        let sum = b.add(&inputs[k], &product);
        let sum = clipped(b, layer, sum);
        f.apply(b, node, &sum)
    };
    let (z, r) = (gate(b, 0)?, gate(b, 1)?);
    let reset = if layer.linear_before_reset {
        let product = from_state(b, 2, &d.h);
        b.mul(&r, &product)
    } else {
        let state = b.mul(&r, &d.h);
        from_state(b, 2, &state)
    };
    let candidate = b.add(&inputs[2], &reset);
    let candidate = clipped(b, layer, candidate);
    let candidate = g.apply(b, node, &candidate)?;
    let difference = b.sub(&d.h, &candidate);
    let kept = b.mul(&z, &difference);
    Ok(b.add(&candidate, &kept))
}

fn rnn_step(
    b: &mut Builder,
    node: &Node,
    layer: &Layer,
    d: &Direction,
    projected: &ValueId,
) -> Result<ValueId> {
    let [f] = &d.activations[..] else { return Err(Error::node(node, "needs one activation")) };
    let product = b.matmul(&d.h, &d.recurrent);
    let sum = b.add(projected, &product);
    let sum = clipped(b, layer, sum);
    f.apply(b, node, &sum)
}
