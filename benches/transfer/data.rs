//! The tasks that knowledge moves between, and how their rows are dealt out.

use onnx_merge::data::{read_npz, write_npz};
use onnx_merge::onnx::{DType, Tensor};
use onnx_merge::{Error, Result};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};

/// Most validation rows: with few labels nobody has many.
const VALIDATION: usize = 500;

/// Inputs and truths, row for row.
#[derive(Clone)]
pub struct Rows {
    /// By the names of models' inputs: what the target reads, then the same things as others see them.
    pub x: Vec<(String, Tensor)>,
    pub y: Tensor,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.y.shape()[0]
    }
    fn pick(&self, rows: &[usize]) -> Self {
        let x = self.x.iter().map(|(name, x)| (name.clone(), pick(x, rows))).collect();
        Self { x, y: pick(&self.y, rows) }
    }
    pub fn save(&self, path: &Path) -> Result<()> {
        write_npz(path, &[&self.x[..], &[("y".into(), self.y.clone())]].concat())
    }
}

/// A task with its data.
pub struct Task {
    pub train: Rows,
    pub val: Rows,
    pub test: Rows,
    /// Name and shape of the input, the batch left out.
    pub input: (String, Vec<usize>),
    /// Words, where inputs are numbers of words.
    pub vocabulary: Option<usize>,
    /// Classes, or numbers to predict.
    pub outputs: usize,
}

/// A task by its name, or `None` where its files aren't there.
pub fn load(name: &str, folder: Option<&Path>) -> Result<Option<Task>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let (folder, stem, input, pooled, scale) = match name {
        "digits" => (Some(fixtures.as_path()), "digits", "image", 1, 1.0),
        "mnist" => (folder, "digits_image", "x", 1, 1.0 / 255.0),
        "cifar" => (folder, "objects_image", "x", 1, 1.0 / 255.0),
        "images" | "parity" | "value" | "edges" | "clean" => {
            (folder, "digits_image", "image", 2, 1.0 / 255.0)
        }
        "speech" | "bands" => (folder, "digits_speech", "spectrogram", 2, 1.0),
        "objects" => (folder, "objects_image", "photograph", 2, 1.0 / 255.0),
        "reviews" => (folder, "reviews_text", "words", 1, 1.0),
        "housing" => (folder, "housing_table", "table", 1, 1.0),
        _ => return Err(Error::usage(format!("there is no task '{name}'"))),
    };
    let file = |part: &str| folder.map(|f| f.join(format!("{stem}_{part}.npz"))).filter(|p| p.is_file());
    let (Some(train), Some(val), Some(test)) = (file("train"), file("val"), file("test")) else {
        return Ok(None);
    };
    let open = |path: &PathBuf| -> Result<Rows> {
        let (raw, y) = read(path)?;
        let seen = match raw.rank() {
            4 => average(&raw, pooled, scale),
            _ => raw.clone(),
        };
        let mut x = vec![(input.to_owned(), seen)];
        match name {
            "edges" => x.insert(0, ("edges".into(), average(&edges(&raw), pooled, scale))),
            "bands" => x.insert(0, ("bands".into(), bands(&raw))),
            "clean" => {
                let noisy = noisy(&x[0].1);
                let clean = std::mem::replace(&mut x[0].1, noisy);
                return Ok(Rows { x, y: clean });
            }
            _ => {}
        }
        Ok(Rows { x, y: relabel(name, &y) })
    };
    let (mut train, mut val, mut test) = (open(&train)?, open(&val)?, open(&test)?);
    if name == "housing" {
        let like = train.x[0].1.clone();
        for rows in [&mut train, &mut val, &mut test] {
            rows.x[0].1 = standardised(&rows.x[0].1, &like);
        }
    }
    let some: Vec<usize> = (0..val.len().min(VALIDATION)).collect();
    val = val.pick(&some);
    let outputs = match train.y.dtype().is_float() {
        true => train.y.shape()[1..].iter().product(),
        false => 1 + train.y.to_i64().iter().max().copied().unwrap_or(0) as usize,
    };
    let (input, x) = &train.x[0];
    let vocabulary = (x.dtype() == DType::I64)
        .then(|| [&train, &val, &test].iter().flat_map(|r| r.x[0].1.to_i64().into_owned()).max())
        .flatten()
        .map(|most| most as usize + 1);
    let input = (input.clone(), x.shape()[1..].to_vec());
    Ok(Some(Task { train, val, test, input, vocabulary, outputs }))
}

impl Task {
    /// `labels` training rows, and the rest of them (or all, where none is left), dealt by `seed`.
    pub fn deal(&self, labels: usize, seed: u64) -> (Rows, Rows) {
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let (few, rest) = order.split_at(labels.min(order.len()));
        let rest = if rest.is_empty() { few } else { rest };
        (self.train.pick(few), self.train.pick(rest))
    }
}

fn read(path: &Path) -> Result<(Tensor, Tensor)> {
    let mut arrays = read_npz(path)?;
    let mut take = |name: &str| {
        let at = arrays.iter().position(|(n, _)| n == name);
        at.map(|i| arrays.swap_remove(i).1)
            .ok_or_else(|| Error::usage(format!("{} has no array '{name}'", path.display())))
    };
    Ok((take("x")?, take("y")?))
}

/// The truth that a task asks for, from that of its data.
fn relabel(name: &str, y: &Tensor) -> Tensor {
    match name {
        "parity" => Tensor::i64(y.shape(), &y.to_i64().iter().map(|v| v % 2).collect::<Vec<_>>()),
        "value" => {
            let values: Vec<f32> = y.to_i64().iter().map(|&v| v as f32 / 9.0).collect();
            Tensor::f32(&[values.len(), 1], &values)
        }
        _ => y.clone(),
    }
}

fn pick(tensor: &Tensor, rows: &[usize]) -> Tensor {
    let width: usize = tensor.shape()[1..].iter().product();
    let values = tensor.to_f64();
    let some: Vec<f64> =
        rows.iter().flat_map(|&r| values[r * width..(r + 1) * width].iter().copied()).collect();
    let mut shape = tensor.shape().to_vec();
    shape[0] = rows.len();
    Tensor::from_f64(tensor.dtype(), &shape, &some)
}

/// Images `N × C × H × W` as float32 times `scale`, each `side × side` square of pixels averaged: a quarter of the time, and
/// digits stay legible.
fn average(x: &Tensor, side: usize, scale: f64) -> Tensor {
    let &[n, c, h, w] = x.shape() else { return x.clone() };
    let (height, width) = (h / side, w / side);
    let values = x.to_f64();
    let mut out = vec![];
    for plane in values.chunks(h * w).take(n * c) {
        for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
            let square = (0..side).flat_map(|a| (0..side).map(move |b| (a, b)));
            let sum: f64 = square.map(|(a, b)| plane[(i * side + a) * w + j * side + b]).sum();
            out.push(sum * scale / (side * side) as f64);
        }
    }
    Tensor::from_f64(DType::F32, &[n, c, height, width], &out)
}

/// How steep images are at each pixel: the length of Sobel's gradient.
fn edges(x: &Tensor) -> Tensor {
    let &[_, _, h, w] = x.shape() else { return x.clone() };
    let values = x.to_f64();
    let mut out = vec![];
    for plane in values.chunks(h * w) {
        let at =
            |i: usize, j: usize| plane[i.saturating_sub(1).min(h - 1) * w + j.saturating_sub(1).min(w - 1)];
        for (i, j) in (0..h).flat_map(|i| (0..w).map(move |j| (i, j))) {
            let row = |a: usize| at(i + a, j) + 2.0 * at(i + a, j + 1) + at(i + a, j + 2);
            let column = |b: usize| at(i, j + b) + 2.0 * at(i + 1, j + b) + at(i + 2, j + b);
            out.push(((row(2) - row(0)).hypot(column(2) - column(0)) / 4.0).min(255.0));
        }
    }
    Tensor::from_f64(DType::F32, x.shape(), &out)
}

/// Images with noise of a deviation of about 0.3.
fn noisy(x: &Tensor) -> Tensor {
    let values = x.to_f64();
    let mut random = ChaCha8Rng::seed_from_u64(values.len() as u64);
    let some: Vec<f64> = values.iter().map(|v| v + random.random_range(-0.5..0.5)).collect();
    Tensor::from_f64(DType::F32, x.shape(), &some)
}

/// How loud each band of a spectrogram is in each quarter of its time.
fn bands(x: &Tensor) -> Tensor {
    let &[n, _, h, w] = x.shape() else { return x.clone() };
    let quarter = w / 4;
    let values = x.to_f64();
    let means = values.chunks(w).flat_map(|band| {
        band.chunks(quarter).take(4).map(|part| part.iter().sum::<f64>() / quarter as f64).collect::<Vec<_>>()
    });
    Tensor::from_f64(DType::F32, &[n, 4 * h], &means.collect::<Vec<_>>())
}

/// Columns with the mean and deviation that `like` has taken out.
fn standardised(x: &Tensor, like: &Tensor) -> Tensor {
    let columns = like.shape()[1];
    let moments: Vec<(f64, f64)> = (0..columns)
        .map(|j| {
            let values: Vec<f64> = like.to_f64().into_iter().skip(j).step_by(columns).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, variance.sqrt().max(1e-9))
        })
        .collect();
    let values = x.to_f64();
    let scaled: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(i, v)| (v - moments[i % columns].0) / moments[i % columns].1)
        .collect();
    Tensor::from_f64(DType::F32, x.shape(), &scaled)
}
