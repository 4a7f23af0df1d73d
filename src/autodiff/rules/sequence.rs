//! State-space and linear-attention layers: recurrences over a sequence, unrolled over time in primitives.

use super::{Outputs, Row, composed};
use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, Node, Tensor, ValueId};

pub const TABLE: &[Row] =
    &[composed("CausalConvWithState", causal_conv), composed("LinearAttention", linear_attention)];

fn input(node: &Node, i: usize) -> Result<&ValueId> {
    node.input(i).ok_or_else(|| Error::node(node, format!("input {i} is missing")))
}

/// A depthwise convolution over the past state followed by the input.
fn causal_conv(b: &mut Builder, node: &Node) -> Outputs {
    let (x, w) = (input(node, 0)?, input(node, 1)?);
    let (shape, kernel) = (b.shape(x), b.shape(w)[2]);
    let whole = match node.input(3) {
        _ if kernel == 1 => x.clone(),
        Some(past) => b.concat(&[past, x], 2),
        None => {
            let zero = b.scalar_like(x, 0.0);
            let zeros = b.expand(&zero, &[shape[0], shape[1], kernel - 1]);
            b.concat(&[&zeros, x], 2)
        }
    };
    let attrs = [("group", Attr::Int(shape[1] as i64)), ("kernel_shape", Attr::Ints(vec![kernel as i64]))];
    let mut y = b.op_full("", "Conv", &[Some(&whole), Some(w), node.input(2)], &attrs, 1).remove(0);
    if matches!(node.str("activation"), Some("silu" | "swish")) {
        let gate = b.op("Sigmoid", &[&y]);
        y = b.mul(&y, &gate);
    }
    let length = b.shape(&whole)[2] as i64;
    let state = b.slice(&whole, &[length - (kernel as i64 - 1)], &[length], &[2]);
    Ok(vec![Some(y), Some(state)])
}

/// `S ← e^g · S`, `S ← S + k ⊗ β(v − Sᵀk)`, `o = scale · Sᵀq` for each step, with those of the terms that the rule has
/// (Yang et al. 2024).
fn linear_attention(b: &mut Builder, node: &Node) -> Outputs {
    let rule = node.str("update_rule").unwrap_or("gated_delta").to_owned();
    let heads = |name: &str| {
        let count = node.int(name).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        count.ok_or_else(|| Error::node(node, format!("has no {name}")))
    };
    let (q_heads, kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    let (q, k, v) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
    let shape = b.shape(q);
    let (batch, steps) = (shape[0], shape[1]);
    let (d_k, d_v) = (shape[2] / q_heads, b.shape(v)[2] / kv_heads);
    let scale = node.float("scale").map(f64::from).filter(|&s| s != 0.0).unwrap_or(1.0 / (d_k as f64).sqrt());
    // Step t of an input as [batch, heads, …].
    let at = |b: &mut Builder, x: &ValueId, t: usize, shape: &[usize]| {
        let slice = b.slice(x, &[t as i64], &[t as i64 + 1], &[1]);
        b.reshape(&slice, shape)
    };
    let mut state = match node.input(3) {
        Some(past) => {
            let dtype = b.dtype(q);
            b.cast(past, dtype)
        }
        None => {
            let zero = b.scalar_like(q, 0.0);
            b.expand(&zero, &[batch, kv_heads, d_k, d_v])
        }
    };
    let decay = node.input(4).filter(|_| rule.starts_with("gated"));
    let beta = node.input(5).filter(|_| rule.ends_with("delta"));
    let mut outputs = vec![];
    for t in 0..steps {
        if let Some(decay) = decay {
            let width = b.shape(decay)[2] / kv_heads;
            let g = at(b, decay, t, &[batch, kv_heads, width, 1]);
            let factor = b.op("Exp", &[&g]);
            state = b.mul(&state, &factor);
        }
        let key = at(b, k, t, &[batch, kv_heads, d_k, 1]);
        let mut value = at(b, v, t, &[batch, kv_heads, 1, d_v]);
        if rule.ends_with("delta") {
            let row = b.transpose_matrix(&key);
            let retrieved = b.matmul(&row, &state);
            value = b.sub(&value, &retrieved);
            if let Some(beta) = beta {
                let width = b.shape(beta)[2];
                let beta = at(b, beta, t, &[batch, width, 1, 1]);
                value = b.mul(&value, &beta);
            }
        }
        let written = b.mul(&key, &value);
        state = b.add(&state, &written);
        let query = at(b, q, t, &[batch, kv_heads, q_heads / kv_heads, d_k]);
        let read = b.matmul(&query, &state);
        let read = b.mul_scalar(&read, scale);
        outputs.push(b.reshape(&read, &[batch, 1, q_heads * d_v]));
    }
    let output = match outputs.as_slice() {
        [] => b.constant(Tensor::from_f64(b.dtype(q), &[batch, 0, q_heads * d_v], &[])),
        some => b.concat(&some.iter().collect::<Vec<_>>(), 1),
    };
    Ok(vec![Some(output), Some(state)])
}
