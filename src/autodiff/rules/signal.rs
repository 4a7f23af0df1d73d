//! Fourier transforms: products with constant matrices of cosines and sines, one for the real and one for the imaginary
//! part. For the lengths that spectrograms have, that is as fast as anything else that standard operators can do.

use super::separable::AxisMap;
use super::{Outputs, Row, composed};
use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Attr, Builder, Node, Tensor, ValueId};
use std::f64::consts::TAU;

pub const TABLE: &[Row] = &[composed("DFT", dft), composed("STFT", stft)];

/// A transform along one axis of values whose last axis holds real and imaginary parts.
struct Transform {
    axis: usize,
    /// Its length; inputs are cut off or filled up with zeros to it.
    length: usize,
    inverse: bool,
    onesided: bool,
}

impl Transform {
    /// `Σ_n trig(2π k n / length) · x_n`, for `outputs` × `inputs` elements.
    fn map(&self, inputs: usize, outputs: usize, weight: impl Fn(usize, usize, f64) -> f64) -> AxisMap {
        let mut map = AxisMap::zeros(self.axis, outputs, inputs);
        for output in 0..outputs {
            for input in 0..inputs.min(self.length) {
                // Reduced before it becomes real, so that long transforms stay exact.
                let turn = (output * input % self.length.max(1)) as f64 / self.length.max(1) as f64;
                map.add(output, input, weight(output, input, TAU * turn));
            }
        }
        map
    }

    fn apply(&self, b: &mut Builder, x: &ValueId) -> ValueId {
        let shape = b.shape(x);
        let last = shape.len() - 1;
        let inputs = shape[self.axis];
        let real = b.slice(x, &[0], &[1], &[last as i64]);
        let imaginary = (shape[last] == 2).then(|| b.slice(x, &[1], &[2], &[last as i64]));
        if self.inverse && self.onesided {
            // Half a spectrum stands for its mirror image too.
            let twice = |k: usize| if k == 0 || 2 * k == self.length { 1.0 } else { 2.0 };
            let (n, scale) = (self.length, 1.0 / self.length as f64);
            let half = n / 2 + 1;
            let kept = |k: usize| if k < half { twice(k) * scale } else { 0.0 };
            let cosines = self.map(inputs, n, |_, k, turn| kept(k) * turn.cos());
            let mut y = cosines.apply(b, &real);
            if let Some(imaginary) = imaginary {
                let sines = self.map(inputs, n, |_, k, turn| -kept(k) * turn.sin());
                let part = sines.apply(b, &imaginary);
                y = b.add(&y, &part);
            }
            return y;
        }
        let outputs = if self.onesided { self.length / 2 + 1 } else { self.length };
        let (sign, scale) = if self.inverse { (1.0, 1.0 / self.length as f64) } else { (-1.0, 1.0) };
        let cosines = self.map(inputs, outputs, |_, _, turn| scale * turn.cos());
        let sines = self.map(inputs, outputs, |_, _, turn| sign * scale * turn.sin());
        let (mut re, mut im) = (cosines.apply(b, &real), sines.apply(b, &real));
        if let Some(imaginary) = imaginary {
            let (along, across) = (cosines.apply(b, &imaginary), sines.apply(b, &imaginary));
            re = b.sub(&re, &across);
            im = b.add(&im, &along);
        }
        b.concat(&[&re, &im], last as i64)
    }
}

/// The whole number that input `i` holds; an error where it isn't a constant.
fn whole(b: &Builder, node: &Node, i: usize) -> Result<Option<i64>> {
    let Some(id) = node.input(i) else { return Ok(None) };
    match b.constant_value(id).and_then(|t| t.to_i64().first().copied()) {
        Some(value) => Ok(Some(value)),
        None => Err(Error::node(node, format!("has a gradient only where its input '{id}' is a constant"))),
    }
}

fn dft(b: &mut Builder, node: &Node) -> Outputs {
    let x = node.input(0).ok_or_else(|| Error::node(node, "input 0 is missing"))?;
    let shape = b.shape(x);
    // An attribute up to opset 19, an input since.
    let axis = whole(b, node, 2)?.or(node.int("axis")).unwrap_or(-2);
    let axis = normalise_axis(axis, shape.len())
        .ok_or_else(|| Error::node(node, "its axis doesn't fit its input"))?;
    let (inverse, onesided) = (node.int_or("inverse", 0) != 0, node.int_or("onesided", 0) != 0);
    let length = match whole(b, node, 1)? {
        Some(length) => usize::try_from(length).unwrap_or(0),
        None if inverse && onesided => 2 * shape[axis].saturating_sub(1),
        None => shape[axis],
    };
    let transform = Transform { axis, length, inverse, onesided };
    Ok(vec![Some(transform.apply(b, x))])
}

/// Frames of the signal, weighted by the window, transformed.
fn stft(b: &mut Builder, node: &Node) -> Outputs {
    let x = node.input(0).ok_or_else(|| Error::node(node, "input 0 is missing"))?;
    let positive = |value: Option<i64>| value.and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0);
    let step = positive(whole(b, node, 1)?).ok_or_else(|| Error::node(node, "has no frame_step"))?;
    let signal = *b.shape(x).get(1).ok_or_else(|| Error::node(node, "its signal has no length"))?;
    let window = node.input(2).map(|window| b.fact(window).len());
    let length = positive(whole(b, node, 3)?).or(window).unwrap_or(signal);
    let frames = signal.checked_sub(length).map_or(0, |rest| rest / step + 1);
    let places = (0..frames).flat_map(|f| (0..length).map(move |i| (f * step + i) as i64));
    let places = Tensor::i64(&[frames, length], &places.collect::<Vec<_>>());
    let places = b.constant(places);
    let x = match b.rank(x) {
        2 => b.unsqueeze(x, &[2]),
        _ => x.clone(),
    };
    let mut framed = b.op_with("Gather", &[&x, &places], &[("axis", Attr::Int(1))]);
    if let Some(window) = node.input(2) {
        let window = b.reshape(window, &[length, 1]);
        framed = b.mul(&framed, &window);
    }
    let onesided = node.int_or("onesided", 1) != 0;
    let transform = Transform { axis: 2, length, inverse: false, onesided };
    Ok(vec![Some(transform.apply(b, &framed))])
}
