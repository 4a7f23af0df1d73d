//! Resize: interpolation along each axis is a small sparse matrix.
//!
//! The matrices follow the operator's specification (and `onnx.reference`) for nearest, linear and cubic
//! interpolation, with and without antialiasing, in all coordinate transformations. Scales may come from anywhere:
//! they are recovered from constants where they are constants and from the sizes otherwise. Look at
//! [`Interpolation`].

use super::Node;
use super::infer::normalise_axis;

/// The attributes of a `Resize` node, read once.
pub struct Interpolation {
    pub mode: String,
    pub transformation: String,
    nearest: String,
    cubic: f64,
    exclude_outside: bool,
    antialias: bool,
    policy: String,
    axes: Option<Vec<i64>>,
}

/// One axis that changes.
pub struct Axis {
    pub axis: usize,
    pub input: usize,
    pub output: usize,
    scale: f64,
    /// The region of interest, in units of the input's size.
    roi: (f64, f64),
}

/// For each output element the input elements it is made of, with their weights.
pub type Taps = Vec<Vec<(usize, f64)>>;

impl Interpolation {
    pub fn of(node: &Node) -> Self {
        let text = |name: &str, default: &str| node.str(name).unwrap_or(default).to_owned();
        Interpolation {
            mode: text("mode", "nearest"),
            transformation: text("coordinate_transformation_mode", "half_pixel"),
            nearest: text("nearest_mode", "round_prefer_floor"),
            cubic: f64::from(node.float_or("cubic_coeff_a", -0.75)),
            exclude_outside: node.int_or("exclude_outside", 0) != 0,
            antialias: node.int_or("antialias", 0) != 0,
            policy: text("keep_aspect_ratio_policy", "stretch"),
            axes: node.ints("axes").map(<[i64]>::to_vec),
        }
    }

    /// The axes that change between shapes `from` and `to`. `sized` says that the node has sizes, and `constant` gives
    /// an input's elements where they are known.
    ///
    /// # Errors
    /// When the region of interest or the scales are needed and aren't known.
    pub fn axes(
        &self,
        from: &[usize],
        to: &[usize],
        sized: bool,
        constant: impl Fn(usize) -> Option<Vec<f64>>,
    ) -> Result<Vec<Axis>, &'static str> {
        let named = self.axes.clone().unwrap_or_else(|| (0..from.len() as i64).collect());
        let named: Vec<usize> = named.iter().filter_map(|&a| normalise_axis(a, from.len())).collect();
        let roi = constant(1).filter(|r| r.len() == 2 * named.len());
        if self.transformation == "tf_crop_and_resize" && roi.is_none() {
            return Err("its region of interest isn't constant");
        }
        // Rounded sizes don't tell the scales.
        if !sized && constant(2).is_none() {
            return Err("its scales aren't constant");
        }
        let scales = constant(2).filter(|s| s.len() == named.len());
        let ratio = |axis: usize| to[axis] as f64 / from[axis].max(1) as f64;
        let sizes = constant(3).filter(|s| s.len() == named.len());
        // With the other policies one scale holds for all axes, and sizes are rounded from it.
        let common = sizes.filter(|_| self.policy != "stretch").map(|sizes| {
            let ratios = named.iter().zip(&sizes).map(|(&axis, size)| size / from[axis].max(1) as f64);
            match self.policy.as_str() {
                "not_larger" => ratios.fold(f64::INFINITY, f64::min),
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
            .filter(|a| a.input != a.output || a.scale != 1.0 || self.transformation == "tf_crop_and_resize")
            .collect())
    }

    /// The map along one axis; `None` for unknown modes. With `tf_crop_and_resize`, elements without taps are the
    /// constant `extrapolation_value`.
    pub fn taps(&self, a: &Axis) -> Option<Taps> {
        let mut all = vec![];
        for output in 0..a.output {
            let at = coordinate(a, output, &self.transformation)?;
            let last = (a.input.max(1) - 1) as f64;
            let outside = at < 0.0 || at > last;
            all.push(match self.mode.as_str() {
                _ if self.transformation == "tf_crop_and_resize" && outside => vec![],
                "nearest" => vec![(nearest(at, &self.nearest)?.clamp(0.0, last) as usize, 1.0)],
                _ => self.neighbours(a, at)?,
            });
        }
        Some(all)
    }

    /// The weights of the elements around `at`: the kernel of the mode, widened when antialiasing shrinks.
    fn neighbours(&self, a: &Axis, at: f64) -> Option<Vec<(usize, f64)>> {
        let (kernel, reach): (fn(f64, f64) -> f64, f64) = match self.mode.as_str() {
            "linear" => (|d, _| (1.0 - d.abs()).max(0.0), 1.0),
            "cubic" => (cubic, 2.0),
            _ => return None,
        };
        let shrink = if self.antialias { a.scale.min(1.0) } else { 1.0 };
        let last = a.input as i64 - 1;
        let first = (at - reach / shrink).floor() as i64;
        let mut taps: Vec<(i64, f64)> = (first..=(at + reach / shrink).ceil() as i64)
            .map(|i| (i, kernel((i as f64 - at) * shrink, self.cubic)))
            .filter(|tap| tap.1 != 0.0)
            .collect();
        if self.exclude_outside {
            taps.retain(|tap| (0..=last).contains(&tap.0));
        }
        if self.exclude_outside || self.antialias {
            let total: f64 = taps.iter().map(|tap| tap.1).sum();
            taps.iter_mut().for_each(|tap| tap.1 /= total);
        }
        Some(taps.into_iter().map(|(i, weight)| (i.clamp(0, last) as usize, weight)).collect())
    }
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

/// Cubic convolution (Keys 1981) with coefficient `a`.
fn cubic(d: f64, a: f64) -> f64 {
    let d = d.abs();
    match d {
        _ if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        _ if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}
