//! The networks that are trained, as ONNX files with fresh weights.

use super::data::Task;
use onnx_merge::Result;
use onnx_merge::onnx::{Attr, Builder, DType, Dim, Fact, Model, Tensor, ValueId, WORKING_OPSET, save};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};

/// Pooled no further than this side.
const SMALLEST_SIDE: usize = 4;

/// A network's make; what goes in and out is the task's.
#[derive(Clone, Copy, PartialEq)]
pub enum Network {
    /// 3×3 convolutions (1-dimensional over words, after an embedding) with ReLU and pooling, a hidden layer, a head.
    Convolutions { channels: &'static [usize], hidden: usize },
    /// Hidden layers with ReLU over the flattened input, and a head.
    Dense { hidden: &'static [usize] },
    /// Two stages of residual blocks, the second at half the side and twice the width, an average over positions, a head.
    Residual { width: usize, blocks: usize, block: Block },
    /// Recurrent layers over words, or over the columns of an image, and a head on the states after the last.
    Recurrent { cell: Cell, hidden: &'static [usize] },
    /// Words, or patches of 2 × 2 pixels, with learned positions; blocks of attention and of two linear layers, each behind a normalisation; an
    /// average, a head (arXiv 1706.03762, 2010.11929, the normalisation first).
    Transformer { width: usize, heads: usize, blocks: usize },
    /// Convolutions at half the side, and a transposed one back up; an image comes out.
    Hourglass { outer: usize, inner: usize },
    /// A model that others trained, as it came.
    File(Made),
}

/// A file among those of `ONNX_MERGE_GATE_MODELS`, and how it wants values of 0…1.
#[derive(Clone, Copy, PartialEq)]
pub struct Made {
    pub file: &'static str,
    pub mean: &'static str,
    pub std: &'static str,
}

impl Network {
    /// Where the file is, of a model that others trained.
    pub fn found(self) -> Option<PathBuf> {
        let Network::File(made) = self else { return None };
        let folders = std::env::var_os("ONNX_MERGE_GATE_MODELS")?;
        std::env::split_paths(&folders).map(|folder| folder.join(made.file)).find(|path| path.is_file())
    }
    /// Whether it is made here, or there.
    pub fn exists(self) -> bool {
        !matches!(self, Network::File(_)) || self.found().is_some()
    }
    /// Mean and deviation of the values it wants, where its data are 0…1.
    pub fn wants(self) -> [&'static str; 2] {
        match self {
            Network::File(made) => [made.mean, made.std],
            _ => ["0", "1"],
        }
    }
}

/// What is repeated.
#[derive(Clone, Copy, PartialEq)]
pub enum Cell {
    Lstm,
    Gru,
}

/// What is added to a residual stream.
#[derive(Clone, Copy, PartialEq)]
pub enum Block {
    /// Two 3×3 convolutions (arXiv 1512.03385).
    Plain,
    /// Three times as many channels, filtered one by one, and back (arXiv 1801.04381).
    Inverted,
}

/// Writes the network with fresh weights: Kaiming's uniform start, biases zero.
pub fn write(network: Network, task: &Task, seed: u64, path: &Path) -> Result<()> {
    let mut maker = Maker { b: Builder::new("network"), random: ChaCha8Rng::seed_from_u64(seed) };
    let mut shape = vec![1];
    let (input, sizes) = &task.input;
    shape.extend(sizes);
    let dtype = if task.vocabulary.is_some() { DType::I64 } else { DType::F32 };
    let mut x = maker.b.input(input, Fact::new(dtype, &shape));
    if let (
        Some(words),
        Network::Convolutions { channels: widths, .. } | Network::Recurrent { hidden: widths, .. },
    ) = (task.vocabulary, network)
    {
        let table = maker.weight("embedding.weight", &[words, widths[0]], 100);
        let found = maker.b.op("Gather", &[&table, &x]);
        x = maker.b.transpose(&found, &[0, 2, 1]);
    }
    let hidden: &[usize] = match &network {
        Network::Convolutions { channels, hidden } => {
            for (i, &width) in channels.iter().enumerate() {
                x = maker.convolution(&format!("conv{}", i + 1), &x, width);
            }
            if task.vocabulary.is_some() {
                x = maker.b.reduce("ReduceMax", &x, &[2], false);
            }
            std::slice::from_ref(hidden)
        }
        Network::Dense { hidden } => hidden,
        &Network::Recurrent { cell, hidden } => {
            x = maker.sequence(&x);
            for (i, &width) in hidden.iter().enumerate() {
                x = maker.recurrent(&format!("{i}"), &x, cell, width, i + 1 == hidden.len());
            }
            &[]
        }
        &Network::Transformer { width, heads, blocks } => {
            x = maker.tokens(&x, width, task.vocabulary);
            for i in 0..blocks {
                x = maker.attention(&format!("blocks.{i}.attention"), &x, heads);
                x = maker.mlp(&format!("blocks.{i}.mlp"), &x);
            }
            x = maker.norm("norm", &x);
            x = maker.b.mean(&x, &[1], false);
            &[]
        }
        Network::File(_) => &[],
        &Network::Hourglass { outer, inner } => {
            let end = maker.b.shape(&x)[1];
            x = maker.filter("conv1", &x, outer, (3, 2), 1);
            x = maker.b.op("Relu", &[&x]);
            x = maker.filter("conv2", &x, inner, (3, 1), 1);
            x = maker.b.op("Relu", &[&x]);
            x = maker.doubled("up", &x, outer);
            x = maker.b.op("Relu", &[&x]);
            x = maker.filter("head", &x, end, (3, 1), 1);
            &[]
        }
        &Network::Residual { width, blocks, block } => {
            for stage in 1..=2 {
                x = maker.filter(&format!("stem{stage}"), &x, width * stage, (3, stage), 1);
                x = maker.b.op("Relu", &[&x]);
                for i in 1..=blocks {
                    x = maker.block(&format!("stage{stage}.{i}"), &x, block);
                }
            }
            x = maker.b.mean(&x, &[2, 3], false);
            &[]
        }
    };
    let images = matches!(network, Network::Hourglass { .. });
    if maker.b.rank(&x) > 2 && !images {
        x = maker.b.op_with("Flatten", &[&x], &[("axis", 1i64.into())]);
    }
    for (i, &width) in hidden.iter().enumerate() {
        let sum = maker.linear(&format!("fc{}", i + 1), &x, width);
        x = maker.b.op("Relu", &[&sum]);
    }
    let answer = if images { x } else { maker.linear("head", &x, task.outputs) };
    maker.b.output_as("output", &answer);
    let (mut graph, _) = maker.b.finish();
    for value in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        if let Some(batch) = value.shape.as_mut().and_then(|s| s.first_mut()) {
            *batch = Dim::Named("batch".into());
        }
    }
    save(&Model::new(graph, WORKING_OPSET), path)
}

struct Maker {
    b: Builder,
    random: ChaCha8Rng,
}

impl Maker {
    fn weight(&mut self, name: &str, shape: &[usize], fan_in: usize) -> ValueId {
        let bound = (6.0 / fan_in as f32).sqrt();
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.random.random_range(-bound..bound)).collect();
        self.b.initializer(name, Tensor::f32(shape, &values))
    }
    fn bias(&mut self, name: &str, width: usize) -> ValueId {
        self.b.initializer(name, Tensor::zeros(DType::F32, &[width]))
    }
    /// 3 wide along each axis of space, same size, ReLU, pooled by two where there are two axes with room.
    fn convolution(&mut self, name: &str, x: &ValueId, width: usize) -> ValueId {
        let shape = self.b.shape(x);
        let axes = shape.len() - 2;
        let mut kernel = vec![width, shape[1]];
        kernel.extend(vec![3; axes]);
        let weight = self.weight(&format!("{name}.weight"), &kernel, shape[1] * 3usize.pow(axes as u32));
        let bias = self.bias(&format!("{name}.bias"), width);
        let same: Attr = vec![1i64; 2 * axes].into();
        let x = self.b.op_with("Conv", &[x, &weight, &bias], &[("pads", same)]);
        let x = self.b.op("Relu", &[&x]);
        if axes < 2 || shape[2] <= SMALLEST_SIDE {
            return x;
        }
        let two: Attr = vec![2i64; 2].into();
        self.b.op_with("MaxPool", &[&x], &[("kernel_shape", two.clone()), ("strides", two)])
    }
    /// A convolution over images: a kernel of some side, and a stride.
    fn filter(
        &mut self,
        name: &str,
        x: &ValueId,
        width: usize,
        (side, stride): (usize, usize),
        group: usize,
    ) -> ValueId {
        let inn = self.b.shape(x)[1] / group;
        let weight = self.weight(&format!("{name}.weight"), &[width, inn, side, side], inn * side * side);
        let bias = self.bias(&format!("{name}.bias"), width);
        let attributes: [(&str, Attr); 3] = [
            ("pads", vec![side as i64 / 2; 4].into()),
            ("strides", vec![stride as i64; 2].into()),
            ("group", (group as i64).into()),
        ];
        self.b.op_with("Conv", &[x, &weight, &bias], &attributes)
    }
    /// A transposed convolution to twice the side.
    fn doubled(&mut self, name: &str, x: &ValueId, width: usize) -> ValueId {
        let shape = self.b.shape(x);
        let weight = self.weight(&format!("{name}.weight"), &[shape[1], width, 2, 2], shape[1]);
        let bias = self.bias(&format!("{name}.bias"), width);
        let made =
            self.b.op_with("ConvTranspose", &[x, &weight, &bias], &[("strides", vec![2i64; 2].into())]);
        self.b.set_fact(&made, Fact::new(DType::F32, &[shape[0], width, 2 * shape[2], 2 * shape[3]]));
        made
    }
    fn block(&mut self, name: &str, x: &ValueId, block: Block) -> ValueId {
        let width = self.b.shape(x)[1];
        let (first, wide) = match block {
            Block::Plain => (3, width),
            Block::Inverted => (1, 3 * width),
        };
        let y = self.filter(&format!("{name}.in"), x, wide, (first, 1), 1);
        let mut y = self.b.op("Relu", &[&y]);
        if block == Block::Inverted {
            y = self.filter(&format!("{name}.each"), &y, wide, (3, 1), wide);
            y = self.b.op("Relu", &[&y]);
        }
        let y = self.filter(&format!("{name}.out"), &y, width, (first, 1), 1);
        let x = self.b.add(x, &y);
        if block == Block::Plain { self.b.op("Relu", &[&x]) } else { x }
    }
    /// Words, or the columns of a grey image, as steps × rows × features.
    fn sequence(&mut self, x: &ValueId) -> ValueId {
        let x = if self.b.rank(x) == 4 { self.b.squeeze(x, &[1]) } else { x.clone() };
        self.b.transpose(&x, &[2, 0, 1])
    }
    /// All states, or those after the last step.
    fn recurrent(&mut self, name: &str, x: &ValueId, cell: Cell, width: usize, last: bool) -> ValueId {
        let (op, gates, attributes) = match cell {
            Cell::Lstm => ("LSTM", 4, vec![]),
            Cell::Gru => ("GRU", 3, vec![("linear_before_reset", Attr::Int(1))]),
        };
        let attributes = [attributes, vec![("hidden_size", Attr::Int(width as i64))]].concat();
        let features = self.b.shape(x)[2];
        let inputs = self.weight(&format!("rnn.weight_ih_l{name}"), &[1, gates * width, features], 6 * width);
        let states = self.weight(&format!("rnn.weight_hh_l{name}"), &[1, gates * width, width], 6 * width);
        let bias = self
            .b
            .initializer(&format!("rnn.bias_l{name}"), Tensor::zeros(DType::F32, &[1, 2 * gates * width]));
        let made = self.b.op_full("", op, &[x, &inputs, &states, &bias].map(Some), &attributes, 2);
        let shape = self.b.shape(x);
        self.b.set_fact(&made[0], Fact::new(DType::F32, &[shape[0], 1, shape[1], width]));
        self.b.set_fact(&made[1], Fact::new(DType::F32, &[1, shape[1], width]));
        if last { self.b.squeeze(&made[1], &[0]) } else { self.b.squeeze(&made[0], &[1]) }
    }
    /// Rows × tokens × width: entries of a table for words, of an image patches, and a position added to each.
    fn tokens(&mut self, x: &ValueId, width: usize, vocabulary: Option<usize>) -> ValueId {
        let x = match vocabulary {
            Some(words) => {
                let table = self.weight("embedding.weight", &[words, width], 100);
                self.b.op("Gather", &[&table, x])
            }
            None => {
                let channels = self.b.shape(x)[1];
                let weight = self.weight("patches.weight", &[width, channels, 2, 2], 4 * channels);
                let bias = self.bias("patches.bias", width);
                let two: Attr = vec![2i64; 2].into();
                let x = self.b.op_with("Conv", &[x, &weight, &bias], &[("strides", two)]);
                let x = self.reshaped(&x, &[0, width as i64, -1]);
                self.b.transpose(&x, &[0, 2, 1])
            }
        };
        let count = self.b.shape(&x)[1];
        let positions = self.weight("positions", &[1, count, width], 1000);
        self.b.add(&x, &positions)
    }
    /// The first axis, the rows, stays open where `sizes` begin with 0.
    fn reshaped(&mut self, x: &ValueId, sizes: &[i64]) -> ValueId {
        let sizes = self.b.ints(sizes);
        self.b.op("Reshape", &[x, &sizes])
    }
    fn norm(&mut self, name: &str, x: &ValueId) -> ValueId {
        let width = self.b.shape(x)[2];
        let ones = Tensor::f32(&[width], &vec![1.0; width]);
        let scale = self.b.initializer(&format!("{name}.weight"), ones);
        let bias = self.bias(&format!("{name}.bias"), width);
        self.b.op("LayerNormalization", &[x, &scale, &bias])
    }
    /// Of every token, as exporters write a linear layer for more than two axes.
    fn of_tokens(&mut self, name: &str, x: &ValueId, width: usize) -> ValueId {
        let features = self.b.shape(x)[2];
        let weight = self.weight(&format!("{name}.weight"), &[features, width], 2 * features);
        let bias = self.bias(&format!("{name}.bias"), width);
        let product = self.b.op("MatMul", &[x, &weight]);
        self.b.add(&product, &bias)
    }
    /// The stream with what heads of attention add to it.
    fn attention(&mut self, name: &str, x: &ValueId, heads: usize) -> ValueId {
        let (width, heads) = (self.b.shape(x)[2], heads as i64);
        let normal = self.norm(&format!("{name}.norm"), x);
        let [query, key, value] = [("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])]
            .map(|(part, order)| {
                let made = self.of_tokens(&format!("{name}.{part}"), &normal, width);
                let split = self.reshaped(&made, &[0, -1, heads, width as i64 / heads]);
                self.b.transpose(&split, &order)
            });
        let scores = self.b.matmul(&query, &key);
        let scores = self.b.mul_scalar(&scores, (heads as f64 / width as f64).sqrt());
        let shares = self.b.softmax(&scores, -1);
        let seen = self.b.matmul(&shares, &value);
        let seen = self.b.transpose(&seen, &[0, 2, 1, 3]);
        let seen = self.reshaped(&seen, &[0, -1, width as i64]);
        let out = self.of_tokens(&format!("{name}.out"), &seen, width);
        self.b.add(x, &out)
    }
    /// The stream with what two linear layers add to it, the first twice as wide.
    fn mlp(&mut self, name: &str, x: &ValueId) -> ValueId {
        let width = self.b.shape(x)[2];
        let normal = self.norm(&format!("{name}.norm"), x);
        let wide = self.of_tokens(&format!("{name}.in"), &normal, 2 * width);
        let wide = self.gelu(&wide);
        let out = self.of_tokens(&format!("{name}.out"), &wide, width);
        self.b.add(x, &out)
    }
    /// As it is written below opset 20.
    fn gelu(&mut self, x: &ValueId) -> ValueId {
        let share = self.b.mul_scalar(x, 0.5f64.sqrt());
        let share = self.b.op("Erf", &[&share]);
        let share = self.b.add_scalar(&share, 1.0);
        let product = self.b.mul(x, &share);
        self.b.mul_scalar(&product, 0.5)
    }
    fn linear(&mut self, name: &str, x: &ValueId, width: usize) -> ValueId {
        let features = self.b.shape(x)[1];
        let weight = self.weight(&format!("{name}.weight"), &[width, features], features);
        let bias = self.bias(&format!("{name}.bias"), width);
        self.b.op_with("Gemm", &[x, &weight, &bias], &[("transB", 1i64.into())])
    }
}
