//! Linear interpolation between grids: kernels and flattened positions of one size brought to another.

use crate::params::Matrix;

/// The matrix that resamples values on the grid `from` to the grid `to` (linear in each direction, edges of cells aligned,
/// as PyTorch's `interpolate(align_corners=False)`): `to` cells × `from` cells.
///
/// Between a grid and none (`[]`, a single value): a grid's values are summed up, a single value goes to the middle, which is
/// what makes a 1×1 convolution and a linear layer the same. Grids of different rank are seen as one-dimensional.
pub(crate) fn resampling(from: &[usize], to: &[usize]) -> Matrix {
    let (rows, cols) = (to.iter().product::<usize>(), from.iter().product::<usize>());
    match (from, to) {
        _ if from == to => identity(rows),
        (_, []) => Matrix::new(1, cols, vec![1.0; cols]),
        ([], _) => {
            let mut data = vec![0.0; rows];
            let middle = to.iter().fold(0, |index, &size| index * size + size / 2);
            data[middle] = 1.0;
            Matrix::new(rows, 1, data)
        }
        _ if from.len() == to.len() => {
            let axes = from.iter().zip(to).map(|(&f, &t)| linear(f, t));
            axes.fold(identity(1), |all, axis| kronecker(&all, &axis))
        }
        _ => linear(cols, rows),
    }
}

/// `channels × (positions · inner)` with its positions resampled by `by`.
pub(super) fn resample_positions(by: &Matrix, channels: usize, inner: usize, data: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; channels * by.rows * inner];
    for c in 0..channels {
        for to in 0..by.rows {
            let cells = by.row(to).iter().enumerate().filter(|(_, share)| **share != 0.0);
            for (from, share) in cells {
                let source = &data[(c * by.cols + from) * inner..][..inner];
                let target = &mut out[(c * by.rows + to) * inner..][..inner];
                target.iter_mut().zip(source).for_each(|(t, s)| *t += share * s);
            }
        }
    }
    out
}

fn linear(from: usize, to: usize) -> Matrix {
    let mut data = vec![0.0; to * from];
    for i in 0..to {
        let at = ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let share = at - low as f32;
        data[i * from + low] += 1.0 - share;
        data[i * from + high] += share;
    }
    Matrix::new(to, from, data)
}

fn identity(n: usize) -> Matrix {
    let mut data = vec![0.0; n * n];
    data.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
    Matrix::new(n, n, data)
}

fn kronecker(a: &Matrix, b: &Matrix) -> Matrix {
    let (rows, cols) = (a.rows * b.rows, a.cols * b.cols);
    let value = |i: usize| {
        let (r, c) = (i / cols, i % cols);
        a.at(r / b.rows, c / b.cols) * b.at(r % b.rows, c % b.cols)
    };
    Matrix::new(rows, cols, (0..rows * cols).map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `F.interpolate(torch.arange(25.).reshape(1, 1, 5, 5), size=3, mode="bilinear")`
    #[test]
    fn kernels_shrink_as_in_pytorch() {
        let kernel: Vec<f32> = (0..25).map(|v| v as f32).collect();
        let small = resample_positions(&resampling(&[5, 5], &[3, 3]), 1, 1, &kernel);
        let expected = [2.0, 3.6666667, 5.3333335, 10.333333, 12.0, 13.666667, 18.666666, 20.333334, 22.0];
        assert!(small.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{small:?}");
    }

    #[test]
    fn a_grid_of_one_and_a_single_value_are_the_same() {
        assert_eq!(resampling(&[], &[3, 3]).data, [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(resampling(&[2, 2], &[]).data, [1.0; 4]);
        assert_eq!(resampling(&[4], &[2, 2]).rows, 4);
    }
}
