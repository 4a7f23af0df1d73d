//! A layer that mixes channels and the filter a channel behind it, as mobile networks have them, learn from one convolution
//! of the source's.
//!
//! A channel of the filter sees one mixture of the inputs, where a convolution sees every input through taps of its own. So the
//! convolution that comes closest to what a channel is to make, inputs × taps, is split into a mixture and a filter: p dᵀ, its
//! leading singular vectors where inputs are measured in their deviations (separable filters, as in arXiv 1405.3866). The
//! mixture is given here; the filter is fitted behind it, to what the nonlinearity between them leaves.

use super::Unit;
use super::normal::Sums;
use crate::onnx::{Attr, Node};
use crate::params::{Layer, Matrix, MatrixView};
use crate::train::network::Network;
use nalgebra::{DMatrix, DVector};

/// A mixture's mean, in its deviations: most of it gets past a rectifier, and little meets the end of one that is cut off above.
const MEAN: f64 = 1.0;
/// Deviations that count, over the largest: a channel that is nearly constant gets no large weight.
const FEWEST: f64 = 0.02;

/// What a channel of the first layer is to leave: `weights` · inputs + `offset`.
pub struct Mixture {
    pub weights: Vec<f64>,
    pub offset: f64,
}

/// Whether these are a layer that mixes channels position by position and a filter a channel.
pub fn are(network: &Network, mixer: &Unit, filter: &Unit) -> bool {
    let layers = mixer.layer().zip(filter.layer());
    layers.is_some_and(|(mixer, filter)| as_one(network, mixer, filter).is_some())
}

/// Both as one convolution that sees all inputs at all taps, where they make as much as that.
pub fn as_one(network: &Network, mixer: &Layer, filter: &Layer) -> Option<(Layer, MatrixView)> {
    let [view, its] = [mixer, filter].map(|layer| network.params.weight(layer.weight).view.as_ref());
    let (view, its) = (view?, its?);
    let ints =
        |node: &Node, name: &str, usual: i64| node.ints(name).is_none_or(|v| v.iter().all(|&x| x == usual));
    let steps = ints(&mixer.node, "strides", 1) && ints(&mixer.node, "pads", 0);
    let mixes = mixer.node.is("Conv") && view.tap_count() == 1 && view.group == 1 && steps;
    let filters = filter.node.is("Conv") && its.inn == 1 && its.group == view.out && its.out == view.out;
    if !(mixes && filters) || mixer.sum.is_some() || filter.sum.is_some() {
        return None;
    }
    let mut node = filter.node.clone();
    node.attrs.insert("group".into(), Attr::Int(1));
    let whole = Layer {
        data: mixer.data.clone(),
        node,
        bias: None,
        scale: vec![1.0; its.out],
        shift: vec![0.0; its.out],
        ..filter.clone()
    };
    let view = MatrixView { inn: view.inn, group: 1, ..its.clone() };
    Some((whole, view))
}

/// The mixtures for the equations of both as one convolution. A channel of the source for which several channels stand gives each of
/// them another part of itself; none for a channel that stands for no feature.
pub fn mixtures(sums: Sums, view: &MatrixView, features: &[Option<usize>]) -> Option<Vec<Option<Mixture>>> {
    let (inputs, taps) = (view.inn, view.tap_count());
    let middle: Vec<usize> = (0..inputs).map(|i| i * taps + taps / 2).collect();
    let (means, covariances) = sums.moments(&middle)?;
    let deviations: Vec<f64> = (0..inputs).map(|i| covariances[(i, i)].max(0.0).sqrt()).collect();
    let least = FEWEST * deviations.iter().fold(0.0f64, |a, &b| a.max(b));
    let deviations: Vec<f64> = deviations.into_iter().map(|d| d.max(least)).collect();
    let (ones, zeros) = (vec![1.0; view.out], vec![0.0; view.out]);
    let (matrix, _) = sums.solve(&ones, &zeros, None)?;
    let mixture = |c: usize| {
        let feature = (*features.get(c)?)?;
        let part = features[..c].iter().filter(|other| **other == Some(feature)).count();
        let weights = split(&matrix, c, &deviations, part)?;
        let mean: f64 = weights.iter().zip(&means).map(|(w, m)| w * m).sum();
        let weights = DVector::from_vec(weights);
        let deviation = (weights.transpose() * &covariances * &weights)[(0, 0)].sqrt();
        // What follows a rectifier is far from its mean on one side only: that side passes.
        let by = if mean < 0.0 { -1.0 } else { 1.0 } / deviation;
        let offset = MEAN - by * mean;
        by.is_finite().then(|| Mixture { weights: weights.iter().map(|w| by * w).collect(), offset })
    };
    Some((0..view.out).map(mixture).collect())
}

/// The inputs' weights in one of the parts that a channel's row of `matrix`, inputs × taps, is the sum of.
fn split(matrix: &Matrix, channel: usize, deviations: &[f64], part: usize) -> Option<Vec<f64>> {
    let (row, taps) = (matrix.row(channel), matrix.cols / deviations.len());
    let scaled =
        DMatrix::from_fn(deviations.len(), taps, |i, t| f64::from(row[i * taps + t]) * deviations[i]);
    let svd = scaled.svd(true, false);
    let mut order: Vec<usize> = (0..svd.singular_values.len()).collect();
    order.sort_by(|&a, &b| svd.singular_values[b].total_cmp(&svd.singular_values[a]));
    let u = svd.u?;
    let at = *order.get(part % order.len().max(1))?;
    Some(u.column(at).iter().zip(deviations).map(|(u, d)| u / d).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Tensor;

    /// A view of a convolution of one dimension.
    fn view(out: usize, inn: usize, taps: usize) -> MatrixView {
        let split = vec![1, out, inn, taps];
        MatrixView { out, inn, taps: vec![taps], group: 1, split, perm: vec![0, 1, 2, 3], order: vec![] }
    }

    #[test]
    fn a_sum_of_separable_filters_comes_apart_largest_first() {
        // W = 3 · (0.6, 0.8)(1, 0, 0)ᵀ + (−0.8, 0.6)(0, 0, 1)ᵀ on inputs without correlations, of mean 1 and deviation 1.
        let row: Vec<f64> = [[1.8, 0.0, -0.8], [2.4, 0.0, 0.6]].concat();
        let mut gram = vec![vec![1.0; 7]; 7];
        (0..6).for_each(|i| gram[i][i] = 2.0);
        let cross: Vec<f32> =
            gram.iter().map(|g| g.iter().zip(&row).map(|(g, w)| (g * w) as f32).sum()).collect();
        let gram: Vec<f32> = gram.concat().into_iter().map(|v| v as f32).collect();
        let view = view(3, 2, 3);
        let mut sums = Sums::new(&view);
        let cross: Vec<f32> = cross.into_iter().flat_map(|v| [v; 3]).collect();
        sums.add(&Tensor::f32(&[1, 7, 7], &gram), &Tensor::f32(&[1, 7, 3], &cross));
        let found = mixtures(sums, &view, &[Some(4), None, Some(4)]).expect("the equations have a solution");
        let [Some(first), None, Some(second)] = &found[..] else { panic!("one channel stands for nothing") };
        // Of deviation 1 and mean 1, whatever their sign was.
        for (mixture, expected) in [(first, [0.6, 0.8]), (second, [0.8, -0.6])] {
            let by = if expected.iter().sum::<f64>() < 0.0 { -1.0 } else { 1.0 };
            for (found, expected) in mixture.weights.iter().zip(expected) {
                assert!((found - by * expected).abs() < 0.02, "{:?}", mixture.weights);
            }
            let mean: f64 = mixture.weights.iter().sum::<f64>() + mixture.offset;
            assert!((mean - MEAN).abs() < 1e-9, "{mean}");
        }
    }
}
