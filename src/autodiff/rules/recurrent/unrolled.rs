//! A direction written out step by step.

use super::cell::step;
use super::layer::{Direction, Layer, part};
use super::{Ran, where_running};
use crate::error::Result;
use crate::onnx::{Builder, ValueId};

pub fn run(b: &mut Builder, layer: &Layer<'_>, mut d: Direction) -> Result<Ran> {
    let mut ys: Vec<Option<ValueId>> = vec![None; layer.steps];
    for k in 0..layer.steps {
        let t = if d.reverse { layer.steps - 1 - k } else { k };
        let projected = part(b, &d.projected, t, 0);
        let running = layer.running.as_ref().map(|running| part(b, running, t, 0));
        let made = step(b, layer, &d, &projected, &d.h, d.c.as_ref())?;
        // A finished sequence keeps its state (one that runs backwards: hasn't started) and puts out zeros.
        let zero = b.scalar_like(&made.h, 0.0);
        ys[t] = Some(where_running(b, running.as_ref(), made.h.clone(), &zero));
        d.h = where_running(b, running.as_ref(), made.h, &d.h);
        d.c = made.c.zip(d.c).map(|(new, old)| where_running(b, running.as_ref(), new, &old));
    }
    let ys: Vec<ValueId> = ys.iter().flatten().map(|y| b.unsqueeze(y, &[0])).collect();
    let y = b.concat(&ys.iter().collect::<Vec<_>>(), 0);
    Ok(Ran { y, h: d.h, c: d.c })
}
