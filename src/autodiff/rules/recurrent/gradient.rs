//! Back through a recurrent layer: a `Scan` from the last step to the first that does only what depends on the step after.
//!
//! But for the products with the recurrent weights a step is computed element by element, so that its Jacobian has one number
//! for each element of a sum or a state. These *slopes* are taken for all steps at once, outside of the loop, by
//! differentiating the functions of [`super::cell`]: that holds for every activation, limit, peephole and mask. In the loop
//! the cotangents of the states are multiplied by slopes and by the recurrent weights; the gradients of all weights are one
//! product each, over all steps.

use super::cell::{gate, gru_after, gru_reset, gru_state, lstm_cell, lstm_shown};
use super::layer::{Direction, Layer, part, split};
use super::scanned::{self, Scanned, time};
use super::where_running;
use crate::autodiff::backward_through;
use crate::autodiff::rules::scan::{Scan, Slices, cut};
use crate::autodiff::rules::{Context, Cotangents};
use crate::error::Result;
use crate::onnx::{Attr, Builder, DType, Node, RecurrentOp as Cell, ValueId};

/// The cotangents of all inputs but the lengths.
pub fn gradient(c: &mut Context<'_>, layer: &Layer<'_>) -> Cotangents {
    let first = |b: &mut Builder, cotangent: &Option<ValueId>, perm: &[usize]| match cotangent {
        Some(g) if layer.batch_first => Some(b.transpose(g, perm)),
        cotangent => cotangent.clone(),
    };
    let given = |i: usize| c.cotangents.get(i).cloned().flatten();
    let (y, h, cell) = (given(0), given(1), given(2));
    let (y, h, cell) =
        (first(c.b, &y, &[1, 2, 0, 3]), first(c.b, &h, &[1, 0, 2]), first(c.b, &cell, &[1, 0, 2]));
    let mut parts = vec![];
    for d in 0..layer.directions {
        let mut of = |v: &Option<ValueId>, axis: usize| v.as_ref().map(|v| part(c.b, v, d, axis));
        let seeds = Seeds { y: of(&y, 1), h: of(&h, 0), c: of(&cell, 0) };
        let direction = Direction::of(c.b, layer, d)?;
        parts.push(one_direction(c.b, layer, &direction, seeds)?);
    }
    let b = &mut *c.b;
    let mut x = parts[0].x.clone();
    for part in &parts[1..] {
        x = b.add(&x, &part.x);
    }
    let x = if layer.batch_first { b.transpose(&x, &[1, 0, 2]) } else { x };
    let mut stacked = |of: &dyn Fn(&Gradients) -> Option<ValueId>| {
        let parts: Vec<ValueId> = parts.iter().filter_map(of).map(|part| b.unsqueeze(&part, &[0])).collect();
        (!parts.is_empty()).then(|| b.concat(&parts.iter().collect::<Vec<_>>(), 0))
    };
    let (w, r) = (stacked(&|p| Some(p.weights.clone())), stacked(&|p| Some(p.recurrent.clone())));
    let (bias, peepholes) = (stacked(&|p| Some(p.bias.clone())), stacked(&|p| p.peepholes.clone()));
    let (h, cell) = (stacked(&|p| Some(p.h.clone())), stacked(&|p| p.c.clone()));
    let (h, cell) = (first(b, &h, &[1, 0, 2]), first(b, &cell, &[1, 0, 2]));
    let all = vec![Some(x), w, r, bias, None, h, cell, peepholes];
    Ok(all.into_iter().take(c.node.inputs.len()).collect())
}

/// The cotangents of what a direction gives, in the order of time.
struct Seeds {
    y: Option<ValueId>,
    h: Option<ValueId>,
    c: Option<ValueId>,
}

/// The cotangents of what a direction is given, without the axis of directions.
struct Gradients {
    x: ValueId,
    weights: ValueId,
    recurrent: ValueId,
    bias: ValueId,
    peepholes: Option<ValueId>,
    h: ValueId,
    c: Option<ValueId>,
}

/// What comes out of the loop.
struct Pulled {
    /// The cotangent of the input's part of the sums, `[steps, batch, gates · hidden]`.
    projected: ValueId,
    /// For each recurrent product of a step: its cotangent, and what was multiplied by the weights.
    products: Vec<(ValueId, ValueId)>,
    peepholes: Option<ValueId>,
    h: ValueId,
    c: Option<ValueId>,
}

fn one_direction(b: &mut Builder, layer: &Layer<'_>, d: &Direction, seeds: Seeds) -> Result<Gradients> {
    let ran = scanned::run(b, layer, d)?;
    let way = Way { layer, d, seeds };
    let pulled = match layer.cell {
        Cell::Lstm => way.lstm(b, &ran)?,
        Cell::Gru if layer.resets_first() => way.gru_resetting_first(b, &ran)?,
        Cell::Gru => way.gru(b, &ran)?,
        Cell::Rnn => way.rnn(b, &ran)?,
    };
    let flat = |b: &mut Builder, v: &ValueId| {
        let width = b.shape(v)[2];
        b.reshape(v, &[layer.steps * layer.batch, width])
    };
    let mut over_all = |cotangent: &ValueId, multiplied: &ValueId| {
        let (g, v) = (flat(b, cotangent), flat(b, multiplied));
        b.op_with("Gemm", &[&g, &v], &[("transA", Attr::Int(1))])
    };
    let weights = over_all(&pulled.projected, &layer.x);
    let recurrent: Vec<ValueId> = pulled.products.iter().map(|(g, v)| over_all(g, v)).collect();
    let recurrent = b.concat(&recurrent.iter().collect::<Vec<_>>(), 0);
    let input_bias = b.sum(&pulled.projected, &[0, 1], false);
    let recurrent_bias = match &d.recurrent_bias {
        Some(_) => b.sum(&pulled.products[0].0, &[0, 1], false),
        None => input_bias.clone(),
    };
    Ok(Gradients {
        x: b.matmul(&pulled.projected, &d.weights),
        weights,
        recurrent,
        bias: b.concat(&[&input_bias, &recurrent_bias], 0),
        peepholes: pulled.peepholes,
        h: pulled.h,
        c: pulled.c,
    })
}

/// The way back through one direction.
struct Way<'a> {
    layer: &'a Layer<'a>,
    d: &'a Direction,
    seeds: Seeds,
}

/// The slopes of a step with one recurrent product, for all steps.
struct Slopes {
    /// Of the new state (of an LSTM: of what a gate changes, the cell or what is shown of it) by the sums.
    sums: ValueId,
    /// Of the new state by the old one, past the sums; `None` for none.
    past: Option<ValueId>,
    /// Of an LSTM's new state by its new cell, and of that by the old cell.
    cell: Option<(ValueId, ValueId)>,
}

impl Way<'_> {
    fn lstm(&self, b: &mut Builder, ran: &Scanned) -> Result<Pulled> {
        let (layer, d) = (self.layer, self.d);
        let (Some(first), Some(history)) = (&d.c, &ran.c) else { unreachable!("an LSTM has a cell") };
        let old = self.before(b, first, history);
        let gates = split(b, &ran.sums[0], &[layer.hidden; 4]);
        let mut cell = old.clone();
        let wrt = [gates[0].clone(), gates[2].clone(), gates[3].clone(), old.clone()];
        let into_cell = slopes(b, &wrt, |b| {
            cell = lstm_cell(b, layer, d, &gates, &old)?;
            Ok(cell.clone())
        })?;
        let wrt = [gates[1].clone(), cell.clone()];
        let shown = slopes(b, &wrt, |b| lstm_shown(b, layer, d, &gates[1], &cell))?;
        let sums = b.concat(&[&into_cell[0], &shown[0], &into_cell[1], &into_cell[2]], 2);
        let slopes = Slopes {
            sums: self.masked(b, sums, 0.0),
            past: None,
            cell: Some((self.masked(b, shown[1].clone(), 0.0), self.masked(b, into_cell[3].clone(), 1.0))),
        };
        let mut pulled = self.pull(b, ran, slopes)?.0;
        if d.peepholes.is_some() {
            let sums = split(b, &pulled.projected, &[layer.hidden; 4]);
            let seen = [(&sums[0], &old), (&sums[1], history), (&sums[2], &old)].map(|(g, cell)| {
                let each = b.mul(g, cell);
                b.sum(&each, &[0, 1], false)
            });
            pulled.peepholes = Some(b.concat(&seen.iter().collect::<Vec<_>>(), 0));
        }
        Ok(pulled)
    }

    fn rnn(&self, b: &mut Builder, ran: &Scanned) -> Result<Pulled> {
        let sums = slopes(b, &ran.sums, |b| gate(b, self.layer, self.d, 0, &ran.sums[0]))?.remove(0);
        let slopes = Slopes { sums: self.masked(b, sums, 0.0), past: None, cell: None };
        Ok(self.pull(b, ran, slopes)?.0)
    }

    fn gru(&self, b: &mut Builder, ran: &Scanned) -> Result<Pulled> {
        let (layer, d) = (self.layer, self.d);
        let old = self.before(b, &d.h, &ran.h);
        let inputs = split(b, &d.projected, &[layer.hidden; 3]);
        let products = split(b, &ran.sums[0], &[layer.hidden; 3]);
        let wrt = [&products[..], &[inputs[2].clone(), old.clone()]].concat();
        let found = slopes(b, &wrt, |b| gru_after(b, layer, d, &inputs, &products, &old))?;
        let sums = b.concat(&[&found[0], &found[1], &found[2]], 2);
        let slopes = Slopes {
            sums: self.masked(b, sums, 0.0),
            past: Some(self.masked(b, found[4].clone(), 1.0)),
            cell: None,
        };
        let (mut pulled, total) = self.pull(b, ran, slopes)?;
        let Some(total) = total else { unreachable!("a GRU's cotangents are collected") };
        // The reset gate stands between the candidate's two parts.
        let candidate = self.masked(b, found[3].clone(), 0.0);
        let candidate = b.mul(&total, &candidate);
        let gates = b.slice(&pulled.projected, &[0], &[2 * layer.hidden as i64], &[2]);
        pulled.projected = b.concat(&[&gates, &candidate], 2);
        Ok(pulled)
    }

    /// The loop of a step with one recurrent product. Gives for a GRU the whole cotangents of the states after each step, too.
    fn pull(&self, b: &mut Builder, ran: &Scanned, slopes: Slopes) -> Result<(Pulled, Option<ValueId>)> {
        let (layer, d) = (self.layer, self.d);
        let mut scan = Scan::default();
        let (h, cell, y) = self.begin(b, &mut scan, ran);
        let sums = scan.feed(b, &slopes.sums, self.time());
        let past = slopes.past.or_else(|| self.resting(b));
        let past = past.map(|past| scan.feed(b, &past, self.time()));
        let by_cell =
            slopes.cell.map(|(shown, kept)| [shown, kept].map(|slope| scan.feed(b, &slope, self.time())));
        let start = b.graph().nodes.len();
        let total = y.map_or(h.clone(), |y| b.add(&h, &y));
        let (mut total_cell, mut kept) = (None, None);
        let mut changed = vec![&total; layer.cell.gates()];
        if let (Some(cell), Some([shown, slope])) = (&cell, &by_cell) {
            let through = b.mul(&total, shown);
            let total_cell = &*total_cell.insert(b.add(cell, &through));
            changed = vec![total_cell, &total, total_cell, total_cell];
            let through = b.mul(total_cell, slope);
            kept = Some(faded(b, &through));
        }
        let changed = b.concat(&changed, 1);
        let by_sums = b.mul(&changed, &sums);
        let mut before = b.matmul(&by_sums, &d.recurrent[0]);
        if let Some(past) = past {
            let direct = b.mul(&total, &past);
            before = b.add(&before, &direct);
        }
        let mut outputs = vec![faded(b, &before)];
        outputs.extend(kept);
        let states = outputs.len();
        outputs.push(by_sums);
        if layer.cell == Cell::Gru {
            outputs.push(b.op("Identity", &[&total]));
        }
        let body = cut(b, start, "step/gradient", &scan.body_inputs(), &outputs);
        let made = scan.finish(b, layer.node, body, &vec![self.time(); outputs.len() - states])?;
        let by_sums = made[states].clone();
        let multiplied = self.before(b, &d.h, &ran.h);
        let pulled = Pulled {
            projected: by_sums.clone(),
            products: vec![(by_sums, multiplied)],
            peepholes: None,
            h: made[0].clone(),
            c: (states == 2).then(|| made[1].clone()),
        };
        Ok((pulled, made.into_iter().nth(states + 1)))
    }

    /// Two products a step: that of the candidate sees the state after its reset.
    fn gru_resetting_first(&self, b: &mut Builder, ran: &Scanned) -> Result<Pulled> {
        let (layer, d) = (self.layer, self.d);
        let old = self.before(b, &d.h, &ran.h);
        let gates = split(b, &ran.sums[0], &[layer.hidden; 2]);
        let mut reset = old.clone();
        let wrt = [gates[1].clone(), old.clone()];
        let of_reset = slopes(b, &wrt, |b| {
            reset = gru_reset(b, layer, d, &gates[1], &old)?;
            Ok(reset.clone())
        })?;
        let wrt = [gates[0].clone(), ran.sums[1].clone(), old.clone()];
        let of_state = slopes(b, &wrt, |b| gru_state(b, layer, d, &gates[0], &ran.sums[1], &old))?;
        let mut scan = Scan::default();
        let (h, _, y) = self.begin(b, &mut scan, ran);
        let mut feed = |b: &mut Builder, slope: &ValueId, resting: f64| {
            let slope = self.masked(b, slope.clone(), resting);
            scan.feed(b, &slope, self.time())
        };
        let (by_reset, reset_by_old) = (feed(b, &of_reset[0], 0.0), feed(b, &of_reset[1], 0.0));
        let (by_update, by_candidate) = (feed(b, &of_state[0], 0.0), feed(b, &of_state[1], 0.0));
        let by_old = feed(b, &of_state[2], 1.0);
        let start = b.graph().nodes.len();
        let total = y.map_or(h.clone(), |y| b.add(&h, &y));
        let candidate = b.mul(&total, &by_candidate);
        let to_reset = b.matmul(&candidate, &d.recurrent[1]);
        let (update, resets) = (b.mul(&total, &by_update), b.mul(&to_reset, &by_reset));
        let gates = b.concat(&[&update, &resets], 1);
        let through = b.matmul(&gates, &d.recurrent[0]);
        let (past, past_reset) = (b.mul(&total, &by_old), b.mul(&to_reset, &reset_by_old));
        let past = b.add(&past, &past_reset);
        let before = b.add(&through, &past);
        let outputs = [faded(b, &before), gates, candidate];
        let body = cut(b, start, "step/gradient", &scan.body_inputs(), &outputs);
        let made = scan.finish(b, layer.node, body, &[self.time(); 2])?;
        Ok(Pulled {
            projected: b.concat(&[&made[1], &made[2]], 2),
            products: vec![(made[1].clone(), old), (made[2].clone(), reset)],
            peepholes: None,
            h: made[0].clone(),
            c: None,
        })
    }

    /// Carries the cotangents of the states, and feeds Y's; what the body knows the three as.
    fn begin(
        &self,
        b: &mut Builder,
        scan: &mut Scan,
        ran: &Scanned,
    ) -> (ValueId, Option<ValueId>, Option<ValueId>) {
        let or_zeros = |b: &mut Builder, seed: &Option<ValueId>, like: &ValueId| match seed {
            Some(seed) => seed.clone(),
            None => b.zeros_like(like),
        };
        let h = or_zeros(b, &self.seeds.h, &ran.ran.h);
        let h = scan.carry(b, h);
        let c = ran.ran.c.as_ref().map(|c| or_zeros(b, &self.seeds.c, c));
        let c = c.map(|c| scan.carry(b, c));
        let y = self.seeds.y.clone().map(|y| self.masked(b, y, 0.0));
        (h, c, y.map(|y| scan.feed(b, &y, self.time())))
    }

    /// The order in which the way back goes through time.
    fn time(&self) -> Slices {
        let time = time(self.d);
        Slices { backwards: !time.backwards, ..time }
    }

    /// `slope` where a row's sequence goes on, else `resting`.
    fn masked(&self, b: &mut Builder, slope: ValueId, resting: f64) -> ValueId {
        let rest = b.scalar_like(&slope, resting);
        where_running(b, self.layer.running.as_ref(), slope, &rest)
    }

    /// 1 where a row's sequence doesn't go on and the state stays as it is, else 0: `[steps, batch, 1]`.
    fn resting(&self, b: &mut Builder) -> Option<ValueId> {
        let running = self.layer.running.as_ref()?;
        let (zero, one) = (b.scalar_like(&self.d.h, 0.0), b.scalar_like(&self.d.h, 1.0));
        Some(b.where_(running, &zero, &one))
    }

    /// The states before each step: `first`, and those after each but the last.
    fn before(&self, b: &mut Builder, first: &ValueId, history: &ValueId) -> ValueId {
        let (first, steps) = (b.unsqueeze(first, &[0]), self.layer.steps as i64);
        match self.d.reverse {
            false => {
                let others = b.slice(history, &[0], &[steps - 1], &[0]);
                b.concat(&[&first, &others], 0)
            }
            true => {
                let others = b.slice(history, &[1], &[steps], &[0]);
                b.concat(&[&others, &first], 0)
            }
        }
    }
}

/// Cotangents smaller than this are nothing.
const NOTHING: f32 = 1e-30;

/// A float32 cotangent without what has faded away. On a long way back most of it does, and processors take many times as long
/// for the numbers below float32's normal ones. A NaN goes, too, but not from the sums' cotangents, which had it before.
fn faded(b: &mut Builder, cotangent: &ValueId) -> ValueId {
    match b.dtype(cotangent) {
        DType::F32 => {
            b.op_with("Shrink", &[cotangent], &[("lambd", Attr::Float(NOTHING)), ("bias", Attr::Float(0.0))])
        }
        _ => cotangent.clone(),
    }
}

/// The derivative of each element that `make` emits with respect to the elements of `wrt` at the same place, which are all
/// that it may depend on besides constants.
fn slopes(
    b: &mut Builder,
    wrt: &[ValueId],
    make: impl FnOnce(&mut Builder) -> Result<ValueId>,
) -> Result<Vec<ValueId>> {
    let start = b.graph().nodes.len();
    let made = make(b)?;
    let nodes = b.graph().nodes[start..].to_vec();
    let one = b.scalar_like(&made, 1.0);
    let ones = b.expand(&one, &b.shape(&made));
    let after = b.graph().nodes.len();
    let mut found = backward_through(b, &nodes, &[(made, ones.clone())], wrt)?;
    drop_factor(b, after, &ones);
    Ok(wrt.iter().map(|v| found.remove(v).unwrap_or_else(|| b.zeros_like(v))).collect())
}

/// Takes multiplications by `ones` away from the nodes emitted since there were `start`, where the other factor has the
/// product's shape anyway.
fn drop_factor(b: &mut Builder, start: usize, ones: &ValueId) {
    for i in start..b.graph().nodes.len() {
        let node = &b.graph().nodes[i];
        let (true, [Some(left), Some(right)], Some(product)) =
            (node.is("Mul"), &node.inputs[..], node.output(0))
        else {
            continue;
        };
        let other = if left == ones { right } else { left };
        if (left == ones) != (right == ones) && b.shape(other) == b.shape(product) {
            b.graph_mut().nodes[i] = Node::new("Identity", &[&other.clone()], &[&product.clone()]);
        }
    }
}
