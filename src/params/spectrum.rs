//! Singular values and low-rank factors of weight matrices.
//!
//! Small matrices are decomposed exactly, large ones by subspace iteration from a fixed seed (Halko, Martinsson,
//! Tropp 2011, "Finding structure with randomness"), so that the same matrix always gives the same factors.
//! Everything runs through the Gram matrix of the shorter side in float64, whose squared condition costs nothing
//! visible in float32 factors.

use super::Matrix;
use nalgebra::{DMatrix, SymmetricEigen};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Up to this length of the shorter side all singular vectors are computed.
const EXACT: usize = 64;
/// Up to this length of the shorter side the Gram matrix is formed.
const GRAM: usize = 768;
/// Up to this length of the shorter side [`singular_values`] gives all of them.
const ALL_VALUES: usize = 512;
/// How many singular values of larger matrices [`singular_values`] gives.
const TOP_VALUES: usize = 64;

/// The leading part of a singular value decomposition: `M ≈ u · diag(s) · vᵀ`.
///
/// Columns of `u` and `v` are orthonormal; `s` falls. The entry of greatest magnitude of each column of `u` is
/// positive, which makes the signs unique.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `out × r`.
    pub u: Matrix,
    pub s: Vec<f32>,
    /// `in × r`.
    pub v: Matrix,
}

impl Factors {
    pub fn rank(&self) -> usize {
        self.s.len()
    }
    /// `u · √diag(s)`: a row of it is the *code* of an output channel.
    pub fn left(&self) -> Matrix {
        scaled(&self.u, &self.s)
    }
    /// `v · √diag(s)`.
    pub fn right(&self) -> Matrix {
        scaled(&self.v, &self.s)
    }
    /// `u · diag(s) · vᵀ`.
    pub fn product(&self) -> Matrix {
        let mut data = vec![0.0; self.u.rows * self.v.rows];
        for (i, row) in data.chunks_exact_mut(self.v.rows.max(1)).enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                *value = (0..self.rank()).map(|k| self.u.at(i, k) * self.s[k] * self.v.at(j, k)).sum();
            }
        }
        Matrix::new(self.u.rows, self.v.rows, data)
    }
}

fn scaled(m: &Matrix, s: &[f32]) -> Matrix {
    let data = m.data.iter().enumerate().map(|(i, v)| v * s[i % m.cols].sqrt()).collect();
    Matrix::new(m.rows, m.cols, data)
}

/// What is remembered of matrices decomposed before: by size, rank and SHA-256 of the elements.
type Known = HashMap<(usize, usize, usize, [u8; 32]), Factors>;
/// Numbers that all remembered factors hold together at most.
const REMEMBERED: usize = 1 << 26;

/// The factors of the best approximation of `matrix` by rank `rank` (less where the matrix is smaller than that).
///
/// Remembered: every arm of a contest, and every target weight that is paired with it, asks for the same ones.
pub fn low_rank(matrix: &Matrix, rank: usize) -> Factors {
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let digest = Sha256::digest(bytemuck::cast_slice::<f32, u8>(&matrix.data));
    let key = (matrix.rows, matrix.cols, rank, digest.into());
    // Another thread may have panicked; what it left is complete entries.
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(factors) = known().as_ref().and_then(|known| known.get(&key)) {
        return factors.clone();
    }
    let factors = decompose(matrix, rank);
    let mut guard = known();
    let known = guard.get_or_insert_default();
    let held: usize = known.keys().map(|&(rows, cols, rank, _)| (rows + cols) * rank).sum();
    if held > REMEMBERED {
        known.clear();
    }
    known.insert(key, factors.clone());
    factors
}

fn decompose(matrix: &Matrix, rank: usize) -> Factors {
    let short = matrix.rows.min(matrix.cols);
    let rank = rank.min(short);
    let a = Wide::of(matrix);
    let (vectors, values) = leading(&a, rank);
    let s: Vec<f64> = values.iter().map(|&l| l.max(0.0).sqrt()).collect();
    // The long side's vectors, orthonormal even where a singular value vanishes.
    let mut other = &a.transposed * &vectors;
    for (k, mut column) in other.column_iter_mut().enumerate() {
        column *= if s[k] > s[0] * 1e-7 { 1.0 / s[k] } else { 0.0 };
    }
    let (mut u, mut v) = if matrix.rows <= matrix.cols { (vectors, other) } else { (other, vectors) };
    for k in 0..rank {
        let greatest =
            u.column(k).iter().copied().fold(0.0f64, |best, x| if x.abs() > best.abs() { x } else { best });
        if greatest < 0.0 {
            u.column_mut(k).neg_mut();
            v.column_mut(k).neg_mut();
        }
    }
    Factors { u: row_major(&u), s: s.iter().map(|&s| s as f32).collect(), v: row_major(&v) }
}

/// Singular values, greatest first: all of a matrix whose shorter side is at most 512, else the greatest 64.
pub fn singular_values(matrix: &Matrix) -> Vec<f32> {
    let a = Wide::of(matrix);
    let mut values: Vec<f64> = match a.straight.nrows() {
        0 => vec![],
        n if n <= ALL_VALUES => a.gram().symmetric_eigenvalues().iter().copied().collect(),
        _ => leading(&a, TOP_VALUES).1,
    };
    values.sort_by(|a, b| b.total_cmp(a));
    values.iter().map(|&l| l.max(0.0).sqrt() as f32).collect()
}

/// How many of the given singular values hold `share` of the matrix's energy (its squared Frobenius norm `energy`);
/// `None` where the given ones don't reach it.
pub fn rank_at(values: &[f32], energy: f64, share: f64) -> Option<usize> {
    let mut sum = 0.0;
    if energy <= 0.0 {
        return Some(0);
    }
    // Rounding of float32 values must not hide that all of them together are everything.
    values
        .iter()
        .position(|&s| {
            sum += (s as f64).powi(2);
            sum >= energy * share * (1.0 - 1e-6)
        })
        .map(|k| k + 1)
}

/// The squared Frobenius norm.
pub fn energy(matrix: &Matrix) -> f64 {
    matrix.data.iter().map(|&v| (v as f64).powi(2)).sum()
}

/// The matrix, or its transpose where that has fewer rows, in float64; and the other of the two. Products with both go
/// through nalgebra's blocked kernels, while its `tr_mul` isn't blocked and its `transpose` takes a fifth of a decomposition.
struct Wide {
    straight: DMatrix<f64>,
    transposed: DMatrix<f64>,
}

impl Wide {
    fn of(matrix: &Matrix) -> Self {
        let number = |&v: &f32| if v.is_finite() { f64::from(v) } else { 0.0 };
        // nalgebra is column-major: our rows are its columns.
        let as_it_lies = DMatrix::from_iterator(matrix.cols, matrix.rows, matrix.data.iter().map(number));
        let turned = DMatrix::from_vec(matrix.rows, matrix.cols, turned(as_it_lies.as_slice(), matrix.cols));
        match matrix.rows <= matrix.cols {
            true => Self { straight: turned, transposed: as_it_lies },
            false => Self { straight: as_it_lies, transposed: turned },
        }
    }
    fn gram(&self) -> DMatrix<f64> {
        &self.straight * &self.transposed
    }
}

/// The elements of the transpose, from lines of `length`: square by square, so that both sides stay in the cache.
fn turned(data: &[f64], length: usize) -> Vec<f64> {
    const SQUARE: usize = 32;
    let mut out = vec![0.0; data.len()];
    let lines = data.len() / length.max(1);
    for i0 in (0..lines).step_by(SQUARE) {
        for j0 in (0..length).step_by(SQUARE) {
            for i in i0..(i0 + SQUARE).min(lines) {
                for j in j0..(j0 + SQUARE).min(length) {
                    out[j * lines + i] = data[i * length + j];
                }
            }
        }
    }
    out
}

/// The `rank` leading eigenpairs of `a · aᵀ`.
fn leading(a: &Wide, rank: usize) -> (DMatrix<f64>, Vec<f64>) {
    let n = a.straight.nrows();
    if rank == 0 {
        return (DMatrix::zeros(n, 0), vec![]);
    }
    if n <= EXACT.max(rank) {
        return sorted(SymmetricEigen::new(a.gram()), rank);
    }
    let block = (2 * rank + 8).min(n);
    let g = (n <= GRAM).then(|| a.gram());
    let apply = |q: &DMatrix<f64>| match &g {
        Some(g) => g * q,
        None => &a.straight * (&a.transposed * q),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0x6c70_6b61);
    let mut q = DMatrix::from_fn(n, block, |_, _| rng.next_u32() as f64 / u32::MAX as f64 - 0.5);
    let mut captured = 0.0;
    // Two products a step halve the orthonormalisations; their condition stays far within float64.
    let most = if g.is_some() { 10 } else { 3 };
    for step in 0.. {
        let orthonormal = q.qr().q();
        let once = apply(&orthonormal);
        // Rayleigh-Ritz in the subspace.
        let small = orthonormal.transpose() * &once;
        let (vectors, values) = sorted(SymmetricEigen::new((&small + small.transpose()) * 0.5), rank);
        let now: f64 = values.iter().sum();
        if step + 1 >= most || now - captured <= 1e-6 * now {
            return (orthonormal * vectors, values);
        }
        captured = now;
        q = apply(&once);
    }
    unreachable!("the loop above returns")
}

fn sorted(eigen: SymmetricEigen<f64, nalgebra::Dyn>, rank: usize) -> (DMatrix<f64>, Vec<f64>) {
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|&i, &j| eigen.eigenvalues[j].total_cmp(&eigen.eigenvalues[i]));
    order.truncate(rank);
    let values = order.iter().map(|&i| eigen.eigenvalues[i]).collect();
    (eigen.eigenvectors.select_columns(&order), values)
}

fn row_major(m: &DMatrix<f64>) -> Matrix {
    let data = (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect();
    Matrix::new(m.nrows(), m.ncols(), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix whose k-th singular value is about `decay^k`, plus noise.
    fn sample(rows: usize, cols: usize, decay: f32) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut uniform = |n: usize| -> Vec<f32> {
            (0..n).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).collect()
        };
        let (left, right) = (uniform(rows * 40), uniform(40 * cols));
        let mut data = uniform(rows * cols).iter().map(|v| v * 0.05).collect::<Vec<_>>();
        for i in 0..rows {
            for j in 0..cols {
                data[i * cols + j] += (0..40)
                    .map(|k| left[i * 40 + k] * decay.powi(k as i32) * right[k * cols + j])
                    .sum::<f32>();
            }
        }
        Matrix::new(rows, cols, data)
    }

    fn residual(m: &Matrix, f: &Factors) -> f64 {
        let p = f.product();
        m.data.iter().zip(&p.data).map(|(a, b)| ((a - b) as f64).powi(2)).sum()
    }

    #[test]
    fn factors_are_the_best_approximation() {
        for (rows, cols) in [(10, 40), (40, 10), (100, 300), (300, 100), (800, 900)] {
            let m = sample(rows, cols, 0.8);
            let rank = 8;
            let f = low_rank(&m, rank);
            let svd = DMatrix::from_row_slice(rows, cols, &m.data).map(|v| v as f64);
            let mut exact: Vec<f64> = if rows * cols <= 40_000 {
                svd.singular_values().iter().map(|s| s * s).collect()
            } else {
                Wide::of(&m).gram().symmetric_eigenvalues().iter().copied().collect()
            };
            exact.sort_by(|a, b| b.total_cmp(a));
            let best: f64 = exact[rank.min(exact.len())..].iter().sum();
            let got = residual(&m, &f);
            assert!(got <= best * (1.0 + 1e-3) + 1e-6, "{rows}x{cols}: residual {got}, the best is {best}");
            for k in 0..rank.min(exact.len()) {
                assert!(
                    (f.s[k] as f64 - exact[k].sqrt()).abs() < 2e-3 * exact[0].sqrt(),
                    "{rows}x{cols}: s[{k}]"
                );
            }
        }
    }

    #[test]
    fn columns_are_orthonormal_and_signs_fixed() {
        let f = low_rank(&sample(90, 200, 0.9), 12);
        for m in [&f.u, &f.v] {
            for i in 0..12 {
                for j in 0..12 {
                    let dot: f32 = (0..m.rows).map(|r| m.at(r, i) * m.at(r, j)).sum();
                    assert!(
                        (dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-4,
                        "columns {i} and {j}: {dot}"
                    );
                }
            }
        }
        for k in 0..12 {
            let column: Vec<f32> = (0..90).map(|i| f.u.at(i, k)).collect();
            let greatest = column.iter().copied().fold(0.0f32, |b, x| if x.abs() > b.abs() { x } else { b });
            assert!(greatest > 0.0);
        }
    }

    #[test]
    fn degenerate_matrices_have_factors() {
        let zero = low_rank(&Matrix::new(4, 6, vec![0.0; 24]), 3);
        assert_eq!(zero.s, [0.0; 3]);
        assert!(zero.product().data.iter().all(|&v| v == 0.0));
        assert_eq!(low_rank(&Matrix::new(1, 5, vec![1.0; 5]), 16).rank(), 1);
        assert_eq!(low_rank(&Matrix::default(), 16).rank(), 0);
        assert_eq!(
            rank_at(&singular_values(&Matrix::new(2, 2, vec![1.0, 0.0, 0.0, 1.0])), 2.0, 0.95),
            Some(2)
        );
    }

    #[test]
    fn a_layer_of_usual_size_takes_milliseconds() {
        let m = sample(256, 784, 0.97);
        let start = std::time::Instant::now();
        decompose(&m, 16);
        let took = start.elapsed();
        eprintln!("256 x 784, rank 16: {took:?}");
        assert!(took.as_millis() < 500, "{took:?}");
    }
}
