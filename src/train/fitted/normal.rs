//! Least squares for one layer: the weights that bring its output closest to what is wanted, on the inputs it has.
//!
//! minimise ‖X Wᵀ + 1 bᵀ − Y‖² + λ‖W‖², X a row per example and position (a convolution's patches side by side), by the normal
//! equations. XᵀX and XᵀY are summed up by the executor, batch by batch; only they come to the host, and are solved in
//! float64.

use crate::error::Result;
use crate::onnx::Facts;
use crate::onnx::{Builder, DType, Fact, Model, Tensor, ValueId};
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

/// The forward pass up to a layer: the model's inputs, its weights, what is wanted (rows × channels × positions) and which rows
/// count (0 or 1) in; [X 1]ᵀ[X 1] and [X 1]ᵀY out.
pub fn program(network: &Network, layer: &Layer, view: &MatrixView) -> Result<(Model, Facts)> {
    let (mut b, _) = freed(network)?;
    let reading = &layer.settled;
    let (rows, channels, positions) = (reading.rows, reading.channels, reading.positions());
    let wanted = b.input("fit.wanted", Fact::new(DType::F32, &[rows, channels, positions]));
    let counts = b.input("fit.counts", Fact::new(DType::F32, &[rows]));
    let counts = b.reshape(&counts, &[rows, 1]);
    let counts = b.expand(&counts, &[rows, positions]);
    let counts = b.reshape(&counts, &[rows * positions, 1]);
    let inputs = inputs(&mut b, layer, view, rows * positions);
    let inputs = b.mul(&inputs, &counts);
    let inputs = b.concat(&[&inputs, &counts], 1);
    let wanted = b.transpose(&wanted, &[0, 2, 1]);
    let wanted = b.reshape(&wanted, &[rows * positions, channels]);
    let turned = b.transpose(&inputs, &[1, 0]);
    let gram = b.matmul(&turned, &inputs);
    let cross = b.matmul(&turned, &wanted);
    b.output_as("fit.gram", &gram);
    b.output_as("fit.cross", &cross);
    settled(network, b)
}

/// X: what each output of the layer is a linear function of, in the order of the matrix's columns.
fn inputs(b: &mut Builder, layer: &Layer, view: &MatrixView, count: usize) -> ValueId {
    let features = view.cols();
    let data = b.cast(&layer.data, DType::F32);
    if layer.node.op != "Conv" {
        return b.reshape(&data, &[count, features]);
    }
    // A convolution with one filter for each input channel and tap lays the patches side by side.
    let mut each = vec![0.0; features * features];
    each.iter_mut().step_by(features + 1).for_each(|v| *v = 1.0);
    let filters = b.constant(Tensor::f32(&[&[features, view.inn], &view.taps[..]].concat(), &each));
    let attributes: Vec<_> = layer.node.attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    let patches = b.op_with("Conv", &[&data, &filters], &attributes);
    let rows = layer.settled.rows;
    let patches = b.reshape(&patches, &[rows, features, count / rows]);
    let patches = b.transpose(&patches, &[0, 2, 1]);
    b.reshape(&patches, &[count, features])
}

/// [X 1]ᵀ[X 1] and [X 1]ᵀY, summed over batches.
pub struct Sums {
    gram: DMatrix<f64>,
    cross: DMatrix<f64>,
}

impl Sums {
    pub fn new(features: usize, channels: usize) -> Self {
        Self {
            gram: DMatrix::zeros(features + 1, features + 1),
            cross: DMatrix::zeros(features + 1, channels),
        }
    }
    pub fn add(&mut self, gram: &Tensor, cross: &Tensor) {
        for (sum, part) in [(&mut self.gram, gram), (&mut self.cross, cross)] {
            *sum += DMatrix::from_row_iterator(sum.nrows(), sum.ncols(), part.to_f64());
        }
    }

    /// W (out × features) and b for which `scale · (W x + b) + shift` is closest to what was wanted; `bias` holds b where it
    /// can't be changed. `None` where the equations have no finite solution.
    pub fn solve(mut self, scale: &[f64], shift: &[f64], bias: Option<&[f64]>) -> Option<(Matrix, Vec<f64>)> {
        let features = self.gram.nrows() - 1;
        let total = self.gram.column(features).into_owned();
        for (c, mut wanted) in self.cross.column_iter_mut().enumerate() {
            let fixed = shift[c] + scale[c] * bias.map_or(0.0, |b| b[c]);
            wanted -= &total * fixed;
            wanted /= scale[c];
        }
        let mean = self.gram.diagonal().rows(0, features).mean();
        for i in 0..features {
            self.gram[(i, i)] += RIDGE * mean;
        }
        self.gram[(features, features)] += RIDGE_OF_BIAS * mean;
        let size = if bias.is_some() { features } else { features + 1 };
        let gram = self.gram.view((0, 0), (size, size)).into_owned();
        let solved = Cholesky::new(gram)?.solve(&self.cross.rows(0, size).into_owned());
        if !solved.iter().all(|v| v.is_finite()) {
            return None;
        }
        let channels = solved.ncols();
        let weights = (0..channels)
            .flat_map(|c| solved.column(c).rows(0, features).iter().map(|v| *v as f32).collect::<Vec<_>>());
        let matrix = Matrix::new(channels, features, weights.collect());
        let offset = match bias {
            Some(bias) => bias.to_vec(),
            None => solved.row(features).iter().copied().collect(),
        };
        Some((matrix, offset))
    }
}
