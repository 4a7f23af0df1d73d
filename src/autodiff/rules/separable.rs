//! Linear maps that act on each axis by itself: average pooling, resizing, window sums.
//!
//! Such a map is one small constant matrix an axis; its gradient multiplies by the transposes. See [`AxisMap`].

use crate::onnx::{Builder, Tensor, ValueId};

/// `y[o] = Σ_i weights[o][i] · x[i]` along one axis.
pub struct AxisMap {
    pub axis: usize,
    pub outputs: usize,
    pub inputs: usize,
    /// `[outputs, inputs]`, row-major.
    pub weights: Vec<f64>,
}

impl AxisMap {
    pub fn zeros(axis: usize, outputs: usize, inputs: usize) -> Self {
        AxisMap { axis, outputs, inputs, weights: vec![0.0; outputs * inputs] }
    }
    pub fn add(&mut self, output: usize, input: usize, weight: f64) {
        self.weights[output * self.inputs + input] += weight;
    }
    fn is_identity(&self) -> bool {
        self.inputs == self.outputs
            && (0..self.weights.len())
                .all(|k| self.weights[k] == f64::from(k / self.inputs == k % self.inputs))
    }
    fn transposed(&self) -> Vec<f64> {
        let mut t = vec![0.0; self.weights.len()];
        for o in 0..self.outputs {
            for i in 0..self.inputs {
                t[i * self.outputs + o] = self.weights[o * self.inputs + i];
            }
        }
        t
    }
    /// The map itself.
    pub fn apply(&self, b: &mut Builder, x: &ValueId) -> ValueId {
        self.multiply(b, x, [self.outputs, self.inputs], &self.weights, &self.transposed())
    }
    /// Its transpose, which takes cotangents of outputs to cotangents of inputs.
    pub fn apply_transposed(&self, b: &mut Builder, dy: &ValueId) -> ValueId {
        self.multiply(b, dy, [self.inputs, self.outputs], &self.transposed(), &self.weights)
    }
    /// `matrix` (of `to × from`) along the axis of `x`; `flipped` is its transpose.
    fn multiply(
        &self,
        b: &mut Builder,
        x: &ValueId,
        [to, from]: [usize; 2],
        matrix: &[f64],
        flipped: &[f64],
    ) -> ValueId {
        if self.is_identity() {
            return x.clone();
        }
        let dtype = b.dtype(x);
        let mut shape = b.shape(x);
        let before: usize = shape[..self.axis].iter().product();
        let after: usize = shape[self.axis + 1..].iter().product();
        shape[self.axis] = to;
        let product = if after == 1 {
            let flat = b.reshape(x, &[before, from]);
            let matrix = b.constant(Tensor::from_f64(dtype, &[from, to], flipped));
            b.matmul(&flat, &matrix)
        } else {
            let flat = b.reshape(x, &[before, from, after]);
            let matrix = b.constant(Tensor::from_f64(dtype, &[to, from], matrix));
            b.matmul(&matrix, &flat)
        };
        b.reshape(&product, &shape)
    }
}

/// The cotangent of the input of a map that is a product of maps of single axes.
pub fn pull_back(b: &mut Builder, dy: &ValueId, maps: &[AxisMap]) -> ValueId {
    // Shrinking axes first keeps the products small.
    let mut order: Vec<&AxisMap> = maps.iter().collect();
    order.sort_by(|p, q| (p.inputs * q.outputs).cmp(&(q.inputs * p.outputs)));
    order.iter().fold(dy.clone(), |v, map| map.apply_transposed(b, &v))
}
