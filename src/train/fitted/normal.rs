//! Least squares for one layer: the weights that bring its output closest to what is wanted, on the inputs it has.
//!
//! minimise ‖X Wᵀ + 1 bᵀ − Y‖² + λ‖W‖², X a row per example and position (a convolution's patches side by side), by the normal
//! equations. XᵀX and XᵀY are summed up by the executor, batch by batch; only they come to the host, and are solved in
//! float64.

use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Facts, Model, Tensor, ValueId};
use crate::params::{Layer, Matrix, MatrixView};
use crate::train::align::{freed, settled};
use crate::train::network::Network;
use nalgebra::{Cholesky, DMatrix};

/// Layers of more input features than this have normal equations too large to be worth it.
pub const MOST_FEATURES: usize = 4096;
/// λ over the mean of the diagonal of XᵀX.
const RIDGE: f64 = 1e-2;
/// The same for b: only against a singular matrix.
const RIDGE_OF_BIAS: f64 = 1e-6;

/// Names of what is wanted of a layer (rows × channels × positions), and of which rows count (0 or 1), among the inputs.
pub const WANTED: &str = "fit.wanted";
const COUNTS: &str = "fit.counts";

/// The forward pass up to a layer: the model's inputs, its weights, what it is wanted to leave and which rows count in; the normal
/// equations out.
pub fn program(network: &Network, layer: &Layer, view: &MatrixView) -> Result<(Model, Facts)> {
    let (mut b, _) = freed(network)?;
    let reading = &layer.settled;
    let (rows, channels, positions) = (reading.rows, reading.channels, reading.positions());
    let groups = view.group;
    let mut wanted = b.input(WANTED, Fact::new(DType::F32, &[rows, channels, positions]));
    let inputs = inputs(&mut b, layer, view, positions);
    if let Some(sum) = &layer.sum {
        // What it is added to is there already.
        let other = sum.other.emit(&mut b);
        let other = b.cast(&other, DType::F32);
        wanted = b.sub(&wanted, &other);
    }
    let wanted = b.reshape(&wanted, &[rows, groups, channels / groups, positions]);
    let wanted = b.transpose(&wanted, &[1, 0, 3, 2]);
    let wanted = b.reshape(&wanted, &[groups, rows * positions, channels / groups]);
    equations(&mut b, &inputs, &wanted, rows);
    settled(network, b)
}

/// Emits, behind [`WANTED`], the input that says which of `rows` count, and [X 1]ᵀ[X 1] and [X 1]ᵀY of `inputs` and `wanted`:
/// groups × (rows · positions) × features.
pub fn equations(b: &mut Builder, inputs: &ValueId, wanted: &ValueId, rows: usize) {
    let shape = b.shape(inputs);
    let (groups, count) = (shape[0], shape[1]);
    let counts = b.input(COUNTS, Fact::new(DType::F32, &[rows]));
    let counts = b.reshape(&counts, &[1, rows, 1, 1]);
    let counts = b.expand(&counts, &[groups, rows, count / rows, 1]);
    let counts = b.reshape(&counts, &[groups, count, 1]);
    let inputs = b.mul(inputs, &counts);
    let inputs = b.concat(&[&inputs, &counts], 2);
    let turned = b.transpose(&inputs, &[0, 2, 1]);
    let gram = b.matmul(&turned, &inputs);
    let cross = b.matmul(&turned, wanted);
    b.output_as("fit.gram", &gram);
    b.output_as("fit.cross", &cross);
}

/// X: groups × (rows · positions) × features, what each output is a linear function of in the order of the matrix's columns.
fn inputs(b: &mut Builder, layer: &Layer, view: &MatrixView, positions: usize) -> ValueId {
    let (groups, features, rows) = (view.group, view.cols(), layer.settled.rows);
    let data = b.cast(&layer.data, DType::F32);
    if !matches!(layer.node.op.as_str(), "Conv" | "ConvTranspose") {
        return b.reshape(&data, &[1, rows * positions, features]);
    }
    // A convolution with one filter for each input channel and tap lays the patches side by side; a transposed one what each
    // channel and tap adds to a position.
    let filters = b.constant(filters(view, layer.node.op == "ConvTranspose"));
    let attributes: Vec<_> = layer.node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    let patches = b.op_with(&layer.node.op, &[&data, &filters], &attributes);
    let patches = b.reshape(&patches, &[rows, groups, features, positions]);
    let patches = b.transpose(&patches, &[1, 0, 3, 2]);
    b.reshape(&patches, &[groups, rows * positions, features])
}

/// Weights that show each input channel of a group at each tap as a channel of its own, as `Conv` or `ConvTranspose` wants them.
fn filters(view: &MatrixView, transposed: bool) -> Tensor {
    let (features, taps) = (view.cols(), view.tap_count());
    let shape = match transposed {
        false => [view.group * features, view.inn],
        true => [view.group * view.inn, features],
    };
    let mut values = vec![0.0; shape[0] * shape[1] * taps];
    for group in 0..view.group {
        for (channel, tap) in (0..view.inn).flat_map(|channel| (0..taps).map(move |tap| (channel, tap))) {
            let shown = channel * taps + tap;
            let (row, column) = match transposed {
                false => (group * features + shown, channel),
                true => (group * view.inn + channel, shown),
            };
            values[(row * shape[1] + column) * taps + tap] = 1.0;
        }
    }
    Tensor::f32(&[&shape[..], &view.taps[..]].concat(), &values)
}

/// [X 1]ᵀ[X 1] and [X 1]ᵀY of each group, summed over batches.
pub struct Sums {
    groups: Vec<(DMatrix<f64>, DMatrix<f64>)>,
}

impl Sums {
    pub fn new(view: &MatrixView) -> Self {
        let size = view.cols() + 1;
        let zeros = (DMatrix::zeros(size, size), DMatrix::zeros(size, view.out / view.group));
        Self { groups: vec![zeros; view.group] }
    }
    pub fn add(&mut self, gram: &Tensor, cross: &Tensor) {
        let (grams, crosses) = (gram.to_f64(), cross.to_f64());
        let (g, c) = (grams.len() / self.groups.len(), crosses.len() / self.groups.len());
        let parts = grams.chunks(g).zip(crosses.chunks(c));
        for ((gram, cross), (more, further)) in self.groups.iter_mut().zip(parts) {
            *gram += DMatrix::from_row_iterator(gram.nrows(), gram.ncols(), more.iter().copied());
            *cross += DMatrix::from_row_iterator(cross.nrows(), cross.ncols(), further.iter().copied());
        }
    }

    /// Of the first group's features: their means, and the covariances of those `at` these places.
    pub fn moments(&self, at: &[usize]) -> Option<(Vec<f64>, DMatrix<f64>)> {
        let (gram, _) = self.groups.first()?;
        let (features, count) = (gram.nrows() - 1, gram[(gram.nrows() - 1, gram.nrows() - 1)]);
        let means: Vec<f64> = (0..features).map(|i| gram[(i, features)] / count).collect();
        let of = |i, j| gram[(at[i], at[j])] / count - means[at[i]] * means[at[j]];
        let covariances = DMatrix::from_fn(at.len(), at.len(), of);
        Some((at.iter().map(|&i| means[i]).collect(), covariances))
    }

    /// W (out × features) and b for which `scale · (W x + b) + shift` is closest to what was wanted; `bias` holds b where it
    /// can't be changed. `None` where the equations have no finite solution.
    pub fn solve(self, scale: &[f64], shift: &[f64], bias: Option<&[f64]>) -> Option<(Matrix, Vec<f64>)> {
        let mut weights = vec![];
        let mut offsets = vec![];
        let features = self.groups.first()?.0.nrows() - 1;
        for (gram, cross) in self.groups {
            let range = offsets.len()..offsets.len() + cross.ncols();
            let (scale, shift) = (&scale[range.clone()], &shift[range.clone()]);
            let solved = solve(gram, cross, scale, shift, bias.map(|b| &b[range]))?;
            for column in solved.column_iter() {
                weights.extend(column.rows(0, features).iter().map(|v| *v as f32));
                offsets.push(bias.map_or_else(|| column[features], |b| b[offsets.len()]));
            }
        }
        Some((Matrix::new(offsets.len(), features, weights), offsets))
    }
}

/// One group's weights, a column a channel, b behind them where it isn't given.
fn solve(
    mut gram: DMatrix<f64>,
    mut cross: DMatrix<f64>,
    scale: &[f64],
    shift: &[f64],
    bias: Option<&[f64]>,
) -> Option<DMatrix<f64>> {
    let features = gram.nrows() - 1;
    let total = gram.column(features).into_owned();
    for (c, mut wanted) in cross.column_iter_mut().enumerate() {
        wanted -= &total * (shift[c] + scale[c] * bias.map_or(0.0, |b| b[c]));
        wanted /= scale[c];
    }
    let mean = gram.diagonal().rows(0, features).mean();
    for i in 0..features {
        gram[(i, i)] += RIDGE * mean;
    }
    gram[(features, features)] += RIDGE_OF_BIAS * mean;
    let size = if bias.is_some() { features } else { features + 1 };
    let gram = gram.view((0, 0), (size, size)).into_owned();
    let solved = Cholesky::new(gram)?.solve(&cross.rows(0, size).into_owned());
    solved.iter().all(|v| v.is_finite()).then_some(solved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::DVector;

    /// What a source's layer makes is linear in what it reads, so a fit is its matrix times a map of what the source reads onto what the target
    /// reads, and what maps that are trained later change is that map.
    #[test]
    fn a_fit_is_the_sources_matrix_behind_an_interface_map() {
        let (rows, ours, theirs, outputs) = (40, 3, 5, 2);
        let number = |i: usize, j: usize| ((i * 7907 + j * 104_729) % 1013) as f64 / 1013.0 - 0.5;
        let read = DMatrix::from_fn(rows, ours + 1, |i, j| if j < ours { number(i, j) } else { 1.0 });
        let theirs = DMatrix::from_fn(rows, theirs, |i, j| number(i + 7, j + 3) + read[(i, j % ours)]);
        let matrix = DMatrix::from_fn(outputs, theirs.ncols(), |i, j| number(i + 70, j + 30));
        let fit = |wanted: &DMatrix<f64>| {
            let sums = Sums { groups: vec![(read.transpose() * &read, read.transpose() * wanted)] };
            let ones = vec![1.0; wanted.ncols()];
            let (weights, offsets) = sums.solve(&ones, &vec![0.0; ones.len()], None).unwrap();
            let weights =
                DMatrix::from_row_iterator(weights.rows, ours, weights.data.iter().map(|v| *v as f64));
            (weights, DVector::from_vec(offsets))
        };
        let (map, shift) = fit(&theirs);
        let (weights, offsets) = fit(&(&theirs * matrix.transpose()));
        assert!((weights - &matrix * map).amax() < 1e-6);
        assert!((offsets - matrix * shift).amax() < 1e-6);
    }
}
