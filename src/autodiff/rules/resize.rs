//! Resize: interpolation along each axis is a small constant matrix, and its gradient that matrix transposed.
//!
//! The matrices follow the operator's specification (and `onnx.reference`) for nearest, linear and cubic
//! interpolation, with and without antialiasing, in all coordinate transformations. Scales may come from anywhere:
//! they are recovered from constants where they are constants and from the sizes otherwise.

use super::separable::{AxisMap, pull_back};
use super::{Context, Cotangents, Row, rule};
use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;

pub const TABLE: &[Row] = &[rule("Resize", resize)];

/// The attributes of a `Resize` node, read once.
struct Interpolation {
    mode: String,
    transformation: String,
    nearest: String,
    cubic: f64,
    exclude_outside: bool,
    antialias: bool,
}

/// One axis that changes.
struct Axis {
    axis: usize,
    input: usize,
    output: usize,
    scale: f64,
    /// The region of interest, in units of the input's size.
    roi: (f64, f64),
}

fn resize(c: &mut Context<'_>) -> Cotangents {
    let (x, y, dy) = (c.input(0)?, c.output(0)?, c.cotangent()?);
    let how = Interpolation {
        mode: c.node.str("mode").unwrap_or("nearest").to_owned(),
        transformation: c.node.str("coordinate_transformation_mode").unwrap_or("half_pixel").to_owned(),
        nearest: c.node.str("nearest_mode").unwrap_or("round_prefer_floor").to_owned(),
        cubic: f64::from(c.node.float_or("cubic_coeff_a", -0.75)),
        exclude_outside: c.node.int_or("exclude_outside", 0) != 0,
        antialias: c.node.int_or("antialias", 0) != 0,
    };
    let mut maps = vec![];
    for axis in axes(c, &c.b.shape(&x), &c.b.shape(&y), &how)? {
        maps.push(axis_map(&axis, &how).ok_or_else(|| {
            Error::node(
                c.node,
                format!("interpolation '{}' with '{}' is unknown", how.mode, how.transformation),
            )
        })?);
    }
    Ok(vec![Some(pull_back(c.b, &dy, &maps))])
}

fn axes(c: &Context<'_>, from: &[usize], to: &[usize], how: &Interpolation) -> Result<Vec<Axis>> {
    let constant = |i: usize| c.node.input(i).and_then(|v| c.b.constant_value(v)).map(|t| t.to_f64());
    let named = c.node.ints("axes").map(<[i64]>::to_vec);
    let named = named.unwrap_or_else(|| (0..from.len() as i64).collect());
    let named: Vec<usize> = named.iter().filter_map(|&a| normalise_axis(a, from.len())).collect();
    let roi = constant(1).filter(|r| r.len() == 2 * named.len());
    if how.transformation == "tf_crop_and_resize" && roi.is_none() {
        return Err(c.refuse("its region of interest isn't constant"));
    }
    let sized = c.node.input(3).is_some();
    if !sized {
        // Rounded sizes don't tell the scales.
        c.constant(2)?;
    }
    let scales = constant(2).filter(|s| s.len() == named.len());
    let free = c.node.str("keep_aspect_ratio_policy").unwrap_or("stretch") == "stretch";
    let ratio = |axis: usize| to[axis] as f64 / from[axis].max(1) as f64;
    let sizes = constant(3).filter(|s| s.len() == named.len());
    // With the other policies one scale holds for all axes, and sizes are rounded from it.
    let common = sizes.filter(|_| !free).map(|sizes| {
        let ratios = named.iter().zip(&sizes).map(|(&axis, size)| size / from[axis].max(1) as f64);
        match c.node.str("keep_aspect_ratio_policy") {
            Some("not_larger") => ratios.fold(f64::INFINITY, f64::min),
            _ => ratios.fold(0.0, f64::max),
        }
    });
    Ok(named
        .iter()
        .enumerate()
        .map(|(k, &axis)| Axis {
            axis,
            input: from[axis],
            output: to[axis],
            scale: scales.as_ref().map(|s| s[k]).or(common).unwrap_or_else(|| ratio(axis)),
            roi: roi.as_ref().map_or((0.0, 1.0), |r| (r[k], r[k + named.len()])),
        })
        .filter(|a| a.input != a.output || a.scale != 1.0 || how.transformation == "tf_crop_and_resize")
        .collect())
}

fn axis_map(a: &Axis, how: &Interpolation) -> Option<AxisMap> {
    let mut map = AxisMap::zeros(a.axis, a.output, a.input);
    for output in 0..a.output {
        let at = coordinate(a, output, &how.transformation)?;
        let outside = at < 0.0 || at > (a.input - 1) as f64;
        if how.transformation == "tf_crop_and_resize" && outside {
            // The constant `extrapolation_value` stands here.
            continue;
        }
        match how.mode.as_str() {
            "nearest" => {
                let index = nearest(at, &how.nearest)?;
                map.add(output, index.clamp(0.0, (a.input - 1) as f64) as usize, 1.0);
            }
            mode => neighbours(&mut map, a, output, at, mode, how)?,
        }
    }
    Some(map)
}

/// The coordinate in the input that output element `o` looks at (operator specification of `Resize`).
fn coordinate(a: &Axis, o: usize, transformation: &str) -> Option<f64> {
    let (o, input, output) = (o as f64, a.input as f64, a.output as f64);
    Some(match transformation {
        "half_pixel" => (o + 0.5) / a.scale - 0.5,
        "half_pixel_symmetric" => {
            let adjustment = output / (a.scale * input);
            let offset = input / 2.0 * (1.0 - adjustment);
            offset + (o + 0.5) / a.scale - 0.5
        }
        "pytorch_half_pixel" if a.output <= 1 => 0.0,
        "pytorch_half_pixel" => (o + 0.5) / a.scale - 0.5,
        "align_corners" if a.output <= 1 => 0.0,
        "align_corners" => o * (input - 1.0) / (output - 1.0),
        "asymmetric" => o / a.scale,
        "tf_half_pixel_for_nn" => (o + 0.5) / a.scale,
        "tf_crop_and_resize" if a.output <= 1 => 0.5 * (a.roi.0 + a.roi.1) * (input - 1.0),
        "tf_crop_and_resize" => {
            a.roi.0 * (input - 1.0) + o * (a.roi.1 - a.roi.0) * (input - 1.0) / (output - 1.0)
        }
        _ => return None,
    })
}

fn nearest(at: f64, mode: &str) -> Option<f64> {
    Some(match mode {
        "round_prefer_floor" => (at - 0.5).ceil(),
        "round_prefer_ceil" => (at + 0.5).floor(),
        "floor" => at.floor(),
        "ceil" => at.ceil(),
        _ => return None,
    })
}

/// The weights of the elements around `at`: the kernel of the mode, widened when antialiasing shrinks.
fn neighbours(
    map: &mut AxisMap,
    a: &Axis,
    output: usize,
    at: f64,
    mode: &str,
    how: &Interpolation,
) -> Option<()> {
    let (kernel, reach): (fn(f64, f64) -> f64, f64) = match mode {
        "linear" => (|d, _| (1.0 - d.abs()).max(0.0), 1.0),
        "cubic" => (cubic, 2.0),
        _ => return None,
    };
    let shrink = if how.antialias { a.scale.min(1.0) } else { 1.0 };
    let last = a.input as i64 - 1;
    let first = (at - reach / shrink).floor() as i64;
    let mut taps: Vec<(i64, f64)> = (first..=(at + reach / shrink).ceil() as i64)
        .map(|i| (i, kernel((i as f64 - at) * shrink, how.cubic)))
        .filter(|tap| tap.1 != 0.0)
        .collect();
    if how.exclude_outside {
        taps.retain(|tap| (0..=last).contains(&tap.0));
    }
    if how.exclude_outside || how.antialias {
        let total: f64 = taps.iter().map(|tap| tap.1).sum();
        taps.iter_mut().for_each(|tap| tap.1 /= total);
    }
    for (i, weight) in taps {
        map.add(output, i.clamp(0, last) as usize, weight);
    }
    Some(())
}

/// Cubic convolution (Keys 1981) with coefficient `a`.
fn cubic(d: f64, a: f64) -> f64 {
    let d = d.abs();
    match d {
        _ if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        _ if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}
