//! Weights as matrices: the one place that knows how each operator lays its weight out.

use crate::onnx::{DType, Tensor};
use serde::Serialize;
use std::borrow::Cow;

/// A dense row-major matrix.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    /// # Panics
    /// When `data` hasn't `rows · cols` elements: a programming error.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * cols, "{} elements for a {rows} x {cols} matrix", data.len());
        Self { rows, cols, data }
    }
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }
    pub fn at(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.cols + j]
    }
    /// These rows; all of it where none are named.
    fn picked(&self, rows: &[usize]) -> Cow<'_, Self> {
        let data = || rows.iter().flat_map(|&i| self.row(i)).copied().collect();
        match rows {
            [] => Cow::Borrowed(self),
            _ => Cow::Owned(Self::new(rows.len(), self.cols, data())),
        }
    }
    /// The product with another, summed in float64.
    ///
    /// # Panics
    /// Where their sizes don't fit: a programming error.
    pub fn times(&self, other: &Self) -> Self {
        assert_eq!(self.cols, other.rows, "a product of matrices that don't fit");
        let mut data = Vec::with_capacity(self.rows * other.cols);
        for i in 0..self.rows {
            let mut sums = vec![0.0; other.cols];
            for (j, &a) in self.row(i).iter().enumerate() {
                sums.iter_mut().zip(other.row(j)).for_each(|(sum, b)| *sum += f64::from(a) * f64::from(*b));
            }
            data.extend(sums.into_iter().map(|v| v as f32));
        }
        Self::new(self.rows, other.cols, data)
    }
    /// Each row as often as this, one after the other.
    pub fn repeated(&self, times: usize) -> Self {
        let data = (0..self.rows).flat_map(|i| self.row(i).repeat(times)).collect();
        Self::new(self.rows * times, self.cols, data)
    }
    /// As a float32 tensor of shape `[rows, cols]`.
    pub fn to_tensor(&self) -> Tensor {
        Tensor::f32(&[self.rows, self.cols], &self.data)
    }
    /// Root mean square deviation from the mean of all elements; 0 for an empty matrix.
    pub fn std(&self) -> f32 {
        let n = self.data.len().max(1) as f64;
        let mean = self.data.iter().map(|&v| v as f64).sum::<f64>() / n;
        (self.data.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n).sqrt() as f32
    }
}

/// How a weight is a matrix of `out` rows and `inn · taps` columns.
///
/// The initializer, reshaped to `split`, transposed by `perm`, reshaped to [`MatrixView::matrix_shape`] is that matrix.
/// Rows of one group lie together: group `g` has rows `g · out/group` to `(g+1) · out/group`, which read input
/// features `g · inn` to `(g+1) · inn`. Where `order` isn't empty, row i of the matrix is row `order[i]` of that one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MatrixView {
    /// Output features of all groups together.
    pub out: usize,
    /// Input features of one group.
    pub inn: usize,
    /// Sizes of the spatial kernel; empty for linear layers.
    pub taps: Vec<usize>,
    pub group: usize,
    /// The shape the initializer is first reshaped to (often its own).
    pub split: Vec<usize>,
    /// The axes of `split` in the order: groups, output features, input features, taps.
    pub perm: Vec<usize>,
    /// Rows as they are stored, where the model cuts the weight up and puts it together in another order; empty where it doesn't.
    pub order: Vec<usize>,
}

impl MatrixView {
    /// Number of kernel taps (1 for linear layers).
    pub fn tap_count(&self) -> usize {
        self.taps.iter().product()
    }
    pub fn cols(&self) -> usize {
        self.inn * self.tap_count()
    }
    /// `[out, inn · taps]`.
    pub fn matrix_shape(&self) -> [usize; 2] {
        [self.out, self.cols()]
    }
    /// Whether the initializer's elements already lie in the matrix's order.
    pub fn is_plain(&self) -> bool {
        self.order.is_empty() && self.perm.iter().enumerate().all(|(i, &p)| i == p)
    }
    /// For each stored row the matrix's, or nothing where they lie in order.
    pub fn inverse_order(&self) -> Vec<usize> {
        let mut inverse = vec![0; self.order.len()];
        for (i, &row) in self.order.iter().enumerate() {
            inverse[row] = i;
        }
        inverse
    }
    /// The permutation that leads back from the matrix's order to `split`.
    pub fn inverse_perm(&self) -> Vec<usize> {
        let mut inverse = vec![0; self.perm.len()];
        for (i, &p) in self.perm.iter().enumerate() {
            inverse[p] = i;
        }
        inverse
    }
    /// The matrix, all groups below each other; float64 and 16-bit weights are rounded or widened to float32.
    pub fn matrix_of(&self, tensor: &Tensor) -> Matrix {
        let data = permuted(&tensor.to_f32(), &self.split, &self.perm);
        Matrix::new(self.out, self.cols(), data).picked(&self.order).into_owned()
    }
    /// The matrix of one group.
    pub fn group_of(&self, tensor: &Tensor, group: usize) -> Matrix {
        let all = self.matrix_of(tensor);
        let rows = self.out / self.group;
        let data = all.data[group * rows * all.cols..(group + 1) * rows * all.cols].to_vec();
        Matrix::new(rows, all.cols, data)
    }
    /// The weight that has this matrix (all groups), in the initializer's own shape and element type.
    pub fn tensor_of(&self, matrix: &Matrix, shape: &[usize], dtype: DType) -> Tensor {
        let from: Vec<usize> = self.perm.iter().map(|&p| self.split[p]).collect();
        let stored = matrix.picked(&self.inverse_order());
        let data = permuted(&stored.data, &from, &self.inverse_perm());
        Tensor::f32(shape, &data).cast(dtype)
    }
}

/// `data` of the given shape with its axes in the order `perm`.
fn permuted(data: &[f32], shape: &[usize], perm: &[usize]) -> Vec<f32> {
    if perm.iter().enumerate().all(|(i, &p)| i == p) {
        return data.to_vec();
    }
    indices(shape, perm).into_iter().map(|i| data[i]).collect()
}

/// For each element of a tensor transposed by `perm`, in order, its flat index before.
pub(super) fn indices(shape: &[usize], perm: &[usize]) -> Vec<usize> {
    let mut stride = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        stride[i - 1] = stride[i] * shape[i];
    }
    let mut found = vec![0];
    for &axis in perm {
        found = found
            .iter()
            .flat_map(|&base| (0..shape[axis]).map(move |i| (base, i)))
            .map(|(base, i)| base + i * stride[axis])
            .collect();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_convolution_with_groups_is_rows_of_outputs_and_back() {
        // 4 input channels in 2 groups, 3 outputs a group, 2 taps.
        let tensor = Tensor::f32(&[4, 3, 2], &(0..24).map(|v| v as f32).collect::<Vec<_>>());
        let view = MatrixView {
            out: 6,
            inn: 2,
            taps: vec![2],
            group: 2,
            split: vec![2, 2, 3, 2],
            perm: vec![0, 2, 1, 3],
            order: vec![],
        };
        let matrix = view.matrix_of(&tensor);
        assert_eq!((matrix.rows, matrix.cols), (6, 4));
        // Group 1, output 2: inputs 2 and 3, both taps.
        assert_eq!(matrix.row(5), [16.0, 17.0, 22.0, 23.0]);
        assert_eq!(view.group_of(&tensor, 1).row(2), matrix.row(5));
        assert_eq!(view.tensor_of(&matrix, &[4, 3, 2], DType::F32), tensor);
    }

    #[test]
    fn rows_that_are_put_together_in_another_order_go_there_and_back() {
        let tensor = Tensor::f32(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let view = MatrixView {
            out: 3,
            inn: 2,
            taps: vec![],
            group: 1,
            split: vec![3, 2],
            perm: vec![0, 1],
            order: vec![2, 0, 1],
        };
        let matrix = view.matrix_of(&tensor);
        assert_eq!(matrix.data, [4.0, 5.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(view.tensor_of(&matrix, &[3, 2], DType::F32), tensor);
        assert!(!view.is_plain());
    }
}
