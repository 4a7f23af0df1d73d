//! A step of a recurrent layer. But for the products with the recurrent weights, all of it is computed element by element, so
//! that the same functions serve one step and, with an axis of time in front, all steps at once. Look at [`step`].

use super::layer::{Activation, Direction, Layer, split};
use crate::error::{Error, Result};
use crate::onnx::{Builder, RecurrentOp as Cell, ValueId};

/// What a step makes.
pub struct Step {
    pub h: ValueId,
    pub c: Option<ValueId>,
    /// What the gates' activations are taken of. With the input's part, where that is added later: see [`step`].
    pub sums: Vec<ValueId>,
}

/// One step from the state `h`, `c`; `projected` is the input's part, `[batch, gates · hidden]`.
///
/// `sums` of LSTM and RNN: `projected + h · Rᵀ`. Of a GRU that resets the product: `h · Rᵀ + b`. Of one that resets the
/// state: those of both gates, then that of the candidate, with the input's part.
pub fn step(
    b: &mut Builder,
    layer: &Layer<'_>,
    d: &Direction,
    projected: &ValueId,
    h: &ValueId,
    c: Option<&ValueId>,
) -> Result<Step> {
    let n = layer.hidden;
    if layer.resets_first() {
        let inputs = split(b, projected, &[2 * n, n]);
        let product = b.matmul(h, &d.recurrent_t[0]);
        let gates = b.add(&inputs[0], &product);
        let parts = split(b, &gates, &[n, n]);
        let reset = gru_reset(b, layer, d, &parts[1], h)?;
        let product = b.matmul(&reset, &d.recurrent_t[1]);
        let candidate = b.add(&inputs[1], &product);
        let h = gru_state(b, layer, d, &parts[0], &candidate, h)?;
        return Ok(Step { h, c: None, sums: vec![gates, candidate] });
    }
    let mut sum = b.matmul(h, &d.recurrent_t[0]);
    if layer.cell == Cell::Gru {
        if let Some(bias) = &d.recurrent_bias {
            sum = b.add(&sum, bias);
        }
        let (inputs, products) = (split(b, projected, &[n; 3]), split(b, &sum, &[n; 3]));
        let h = gru_after(b, layer, d, &inputs, &products, h)?;
        return Ok(Step { h, c: None, sums: vec![sum] });
    }
    let sum = b.add(projected, &sum);
    let sums = vec![sum.clone()];
    if layer.cell == Cell::Rnn {
        return Ok(Step { h: gate(b, layer, d, 0, &sum)?, c: None, sums });
    }
    let cell = c.ok_or_else(|| Error::node(layer.node, "has no cell state"))?;
    let gates = split(b, &sum, &[n; 4]);
    let cell = lstm_cell(b, layer, d, &gates, cell)?;
    let h = lstm_shown(b, layer, d, &gates[1], &cell)?;
    Ok(Step { h, c: Some(cell), sums })
}

/// Activation `k` of what the layer's limit leaves of `sum`.
pub fn gate(b: &mut Builder, layer: &Layer<'_>, d: &Direction, k: usize, sum: &ValueId) -> Result<ValueId> {
    let limited = match layer.clip {
        None => sum.clone(),
        Some(clip) => {
            let (low, high) = (b.scalar_like(sum, -clip), b.scalar_like(sum, clip));
            b.op("Clip", &[sum, &low, &high])
        }
    };
    activation(layer, d, k)?.apply(b, layer.node, &limited)
}

fn activation<'d>(layer: &Layer<'_>, d: &'d Direction, k: usize) -> Result<&'d Activation> {
    d.activations.get(k).ok_or_else(|| Error::node(layer.node, format!("needs {} activations", k + 1)))
}

/// A gate's sum with what it sees of the cell.
fn peep(b: &mut Builder, d: &Direction, sum: &ValueId, peephole: usize, cell: &ValueId) -> ValueId {
    match &d.peepholes {
        Some(p) => {
            let seen = b.mul(&p[peephole], cell);
            b.add(sum, &seen)
        }
        None => sum.clone(),
    }
}

/// `c' = f · c + i · g(…)` with `i, f = σ(…)`, from the sums of all gates.
pub fn lstm_cell(
    b: &mut Builder,
    layer: &Layer<'_>,
    d: &Direction,
    gates: &[ValueId],
    cell: &ValueId,
) -> Result<ValueId> {
    let sum = peep(b, d, &gates[0], 0, cell);
    let i = gate(b, layer, d, 0, &sum)?;
    let forget = if layer.coupled {
        b.scalar_sub(1.0, &i)
    } else {
        let sum = peep(b, d, &gates[2], 2, cell);
        gate(b, layer, d, 0, &sum)?
    };
    let candidate = gate(b, layer, d, 1, &gates[3])?;
    let kept = b.mul(&forget, cell);
    let added = b.mul(&i, &candidate);
    Ok(b.add(&kept, &added))
}

/// `h' = σ(…) · tanh(c')`, from the sum of the output gate.
pub fn lstm_shown(
    b: &mut Builder,
    layer: &Layer<'_>,
    d: &Direction,
    sum: &ValueId,
    cell: &ValueId,
) -> Result<ValueId> {
    let sum = peep(b, d, sum, 1, cell);
    let o = gate(b, layer, d, 0, &sum)?;
    let shown = activation(layer, d, 2)?.apply(b, layer.node, cell)?;
    Ok(b.mul(&o, &shown))
}

/// The state that a GRU's candidate sees: `r · h`.
pub fn gru_reset(
    b: &mut Builder,
    layer: &Layer<'_>,
    d: &Direction,
    sum: &ValueId,
    h: &ValueId,
) -> Result<ValueId> {
    let r = gate(b, layer, d, 0, sum)?;
    Ok(b.mul(&r, h))
}

/// `h' = (1 − z) · g(…) + z · h`, from the sums of the update gate and the candidate.
pub fn gru_state(
    b: &mut Builder,
    layer: &Layer<'_>,
    d: &Direction,
    update: &ValueId,
    candidate: &ValueId,
    h: &ValueId,
) -> Result<ValueId> {
    let z = gate(b, layer, d, 0, update)?;
    let candidate = gate(b, layer, d, 1, candidate)?;
    let difference = b.sub(h, &candidate);
    let kept = b.mul(&z, &difference);
    Ok(b.add(&candidate, &kept))
}

/// [`gru_state`] where the reset gate multiplies the product: from the input's and the state's part of every gate's sum.
pub fn gru_after(
    b: &mut Builder,
    layer: &Layer<'_>,
    d: &Direction,
    inputs: &[ValueId],
    products: &[ValueId],
    h: &ValueId,
) -> Result<ValueId> {
    let update = b.add(&inputs[0], &products[0]);
    let sum = b.add(&inputs[1], &products[1]);
    let reset = gru_reset(b, layer, d, &sum, &products[2])?;
    let candidate = b.add(&inputs[2], &reset);
    gru_state(b, layer, d, &update, &candidate, h)
}
