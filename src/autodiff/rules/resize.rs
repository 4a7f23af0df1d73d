//! Resize: interpolation along each axis is a small constant matrix (see [`crate::onnx::resize`]), and its gradient
//! that matrix transposed.

use super::separable::{AxisMap, pull_back};
use super::{Context, Cotangents, Row, rule};
use crate::error::Error;
use crate::onnx::resize::Interpolation;

pub const TABLE: &[Row] = &[rule("Resize", resize)];

fn resize(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let how = Interpolation::of(c.node);
    let constant = |i: usize| c.node.input(i).and_then(|v| c.b.constant_value(v)).map(|t| t.to_f64());
    let axes = how
        .axes(&c.b.shape(&x), &c.b.shape(&y), c.node.input(3).is_some(), constant)
        .map_err(|what| c.refuse(what))?;
    let mut maps = vec![];
    for axis in axes {
        let taps = how.taps(&axis).ok_or_else(|| {
            Error::node(
                c.node,
                format!("interpolation '{}' with '{}' is unknown", how.mode, how.transformation),
            )
        })?;
        let mut map = AxisMap::zeros(axis.axis, axis.output, axis.input);
        for (output, taps) in taps.iter().enumerate() {
            taps.iter().for_each(|&(input, weight)| map.add(output, input, weight));
        }
        maps.push(map);
    }
    Ok(vec![Some(pull_back(c.b, &dy, &maps))])
}
