//! A direction as a `Scan` over time, with what the way back needs of it.

use super::cell::step;
use super::layer::{Direction, Layer};
use super::{Ran, where_running};
use crate::autodiff::rules::scan::{Scan, Slices, cut};
use crate::error::Result;
use crate::onnx::{Builder, ValueId};

/// A run, and what it went through; all in the order of time.
pub struct Scanned {
    pub ran: Ran,
    /// The states after each step, `[steps, batch, hidden]`.
    pub h: ValueId,
    pub c: Option<ValueId>,
    /// Each of [`super::cell::Step::sums`], `[steps, batch, …]`.
    pub sums: Vec<ValueId>,
}

/// The order in which a direction goes through time.
pub fn time(d: &Direction) -> Slices {
    Slices { axis: 0, backwards: d.reverse }
}

pub fn run(b: &mut Builder, layer: &Layer<'_>, d: &Direction) -> Result<Scanned> {
    let mut scan = Scan::default();
    let h = scan.carry(b, d.h.clone());
    let c = d.c.clone().map(|c| scan.carry(b, c));
    let projected = scan.feed(b, &d.projected, time(d));
    let running = layer.running.as_ref().map(|running| scan.feed(b, running, time(d)));
    let start = b.graph().nodes.len();
    let made = step(b, layer, d, &projected, &h, c.as_ref())?;
    // A finished sequence keeps its state (one that runs backwards: hasn't started) and puts out zeros.
    let mut outputs = vec![where_running(b, running.as_ref(), made.h, &h)];
    outputs.extend(made.c.zip(c).map(|(new, old)| where_running(b, running.as_ref(), new, &old)));
    let states = outputs.len();
    for i in 0..states {
        outputs.push(b.op("Identity", &[&outputs[i]]));
    }
    outputs.extend(made.sums);
    let body = cut(b, start, "step", &scan.body_inputs(), &outputs);
    let collected = vec![time(d); outputs.len() - states];
    let mut made = scan.finish(b, layer.node, body, &collected)?;
    let sums = made.split_off(2 * states);
    let second = |i: usize| (states == 2).then(|| made[i].clone());
    let (h, c, all_h, all_c) = (made[0].clone(), second(1), made[states].clone(), second(states + 1));
    let zero = b.scalar_like(&all_h, 0.0);
    let y = where_running(b, layer.running.as_ref(), all_h.clone(), &zero);
    Ok(Scanned { ran: Ran { y, h, c }, h: all_h, c: all_c, sums })
}
