//! Every kind of case against its definition, in float64. Runs on the device that burn picks.

use super::*;
use burn::backend::{TensorMetadata, ops::FloatTensorOps};
use burn::tensor::DeviceKind;

#[test]
fn products() {
    for (batch, m, k, n) in [(1, 65, 130, 33), (3, 32, 16, 20)] {
        let (a, b) = (inputs(batch * m * k, 0), inputs(batch * k * n, 1));
        let expected = (0..batch * m * n).map(|i| {
            let (row, col, at) = (i / n, i % n, i / (m * n) * k * n);
            (0..k).map(|j| a[row * k + j] * b[at + j * n + col]).sum()
        });
        check(Case::Product { batch, m, k, n }, expected.collect());
    }
}

#[test]
fn convolutions() {
    let of = |c, size, o, kernel, stride, group| Conv { n: 2, c, size, o, kernel, stride, group };
    let convs = [of(8, 9, 6, 3, 2, 1), of(8, 9, 6, 3, 1, 1), of(8, 6, 8, 3, 1, 8), of(8, 7, 12, 1, 1, 1)];
    for conv in convs {
        for pass in [Pass::Forward, Pass::Input, Pass::Weight] {
            check(Case::Conv { conv, pass }, by_definition(conv, pass));
        }
    }
}

/// Every product of an image's element and a weight belongs to one output; the gradients exchange their roles.
fn by_definition(conv: Conv, pass: Pass) -> Vec<f64> {
    let Conv { n, c, size, o, kernel, stride, group } = conv;
    let out = (size + 2 * (kernel / 2) - kernel) / stride + 1;
    let (channels, kernels) = (c / group, o / group);
    let (x, w, g) = (
        inputs(n * c * size * size, 0),
        inputs(o * channels * kernel * kernel, 1),
        inputs(n * o * out * out, 2),
    );
    let (mut y, mut dx, mut dw) = (vec![0.0; g.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
    for at_y in 0..y.len() {
        let (col, row, to, image) =
            (at_y % out, at_y / out % out, at_y / (out * out) % o, at_y / (out * out * o));
        for tap in 0..channels * kernel * kernel {
            let (from, down, right) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
            let place =
                |at: usize, tap: usize| (at * stride + tap).checked_sub(kernel / 2).filter(|p| *p < size);
            let (Some(row), Some(col)) = (place(row, down), place(col, right)) else { continue };
            let channel = to / kernels * channels + from;
            let at_x = ((image * c + channel) * size + row) * size + col;
            let at_w = to * channels * kernel * kernel + tap;
            y[at_y] += x[at_x] * w[at_w];
            dx[at_x] += g[at_y] * w[at_w];
            dw[at_w] += g[at_y] * x[at_x];
        }
    }
    match pass {
        Pass::Forward => y,
        Pass::Input => dx,
        Pass::Weight => dw,
    }
}

const ROWS: usize = 40;
const COLS: usize = 70;

#[test]
fn softmax() {
    let rows = inputs(ROWS * COLS, 0);
    let expected = rows.chunks(COLS).flat_map(|row| {
        let total: f64 = row.iter().map(|v| v.exp()).sum();
        row.iter().map(move |v| v.exp() / total)
    });
    check(Case::Softmax { rows: ROWS, cols: COLS }, expected.collect());
}

#[test]
fn layer_norms() {
    let (x, scale, bias) = (inputs(ROWS * COLS, 0), inputs(COLS, 1), inputs(COLS, 2));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mut y, mut dx, mut dscale) = (vec![], vec![], vec![0.0; COLS]);
    for row in x.chunks(COLS) {
        let centre = mean(row);
        let squares: Vec<f64> = row.iter().map(|v| (v - centre).powi(2)).collect();
        let spread = (mean(&squares) + 1e-5).sqrt();
        let normal: Vec<f64> = row.iter().map(|v| (v - centre) / spread).collect();
        let along: Vec<f64> = normal.iter().zip(&scale).map(|(v, s)| v * s).collect();
        for i in 0..COLS {
            y.push(normal[i] * scale[i] + bias[i]);
            dx.push((scale[i] - mean(&scale) - normal[i] * mean(&along)) / spread);
            dscale[i] += normal[i];
        }
    }
    for (pass, expected) in [(Pass::Forward, y), (Pass::Input, dx), (Pass::Weight, dscale)] {
        check(Case::LayerNorm { rows: ROWS, cols: COLS, pass }, expected);
    }
}

#[test]
fn elementwise_sums_and_transposes() {
    let (x, y) = (inputs(ROWS * COLS, 0), inputs(ROWS * COLS, 1));
    let gelu = |v: f64| v * 0.5 * (1.0 + libm::erf(v / 2f64.sqrt()));
    let (rows, cols) = (ROWS, COLS);
    check(Case::AddGelu { rows, cols }, x.iter().zip(&y).map(|(x, y)| x + gelu(*y)).collect());
    check(Case::Sum { rows, cols, axis: 1 }, x.chunks(cols).map(|row| row.iter().sum()).collect());
    let column = |col: usize| x.iter().skip(col).step_by(cols).copied();
    check(Case::Sum { rows, cols, axis: 0 }, (0..cols).map(|col| column(col).sum()).collect());
    check(Case::Transpose { rows, cols }, (0..cols).flat_map(column).collect());
}

fn inputs(count: usize, k: usize) -> Vec<f64> {
    (0..count).map(|i| f64::from(value(i, k))).collect()
}

fn check(case: Case, expected: Vec<f64>) {
    let result = case.on(&Device::wgpu(DeviceKind::DefaultDevice)).prepare()();
    let count = result.shape().num_elements();
    let flat = Dispatch::float_reshape(result, [count].into());
    let found = Tensor::<1>::from_dispatch(flat).into_data();
    let found = found.try_to_vec::<f32>().expect("float32");
    assert_eq!(found.len(), expected.len(), "{case:?}");
    for (found, expected) in found.iter().zip(expected) {
        let apart = (f64::from(*found) - expected).abs();
        assert!(apart <= 1e-4 * (1.0 + expected.abs()), "{case:?}: {found}, not {expected}");
    }
}
