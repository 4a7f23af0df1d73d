//! The networks that are trained, as ONNX files with fresh weights.

use super::data::Task;
use onnx_merge::Result;
use onnx_merge::onnx::{Attr, Builder, DType, Dim, Fact, Model, Tensor, ValueId, WORKING_OPSET, save};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Pooled no further than this side.
const SMALLEST_SIDE: usize = 4;

/// A network's make; what goes in and out is the task's.
#[derive(Clone, Copy, PartialEq)]
pub enum Network {
    /// 3×3 convolutions (1-dimensional over words, after an embedding) with ReLU and pooling, a hidden layer, a head.
    Convolutions { channels: &'static [usize], hidden: usize },
    /// Hidden layers with ReLU over the flattened input, and a head.
    Dense { hidden: &'static [usize] },
}

/// Writes the network with fresh weights: Kaiming's uniform start, biases zero.
pub fn write(network: Network, task: &Task, seed: u64, path: &Path) -> Result<()> {
    let mut maker = Maker { b: Builder::new("network"), random: ChaCha8Rng::seed_from_u64(seed) };
    let mut shape = vec![1];
    shape.extend(&task.input);
    let dtype = if task.vocabulary.is_some() { DType::I64 } else { DType::F32 };
    let mut x = maker.b.input("input", Fact::new(dtype, &shape));
    if let (Some(words), Network::Convolutions { channels, .. }) = (task.vocabulary, network) {
        let table = maker.weight("embedding.weight", &[words, channels[0]], 3);
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
    };
    if maker.b.rank(&x) > 2 {
        x = maker.b.op_with("Flatten", &[&x], &[("axis", 1i64.into())]);
    }
    for (i, &width) in hidden.iter().enumerate() {
        let sum = maker.linear(&format!("fc{}", i + 1), &x, width);
        x = maker.b.op("Relu", &[&sum]);
    }
    let answer = maker.linear("head", &x, task.outputs);
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
    fn linear(&mut self, name: &str, x: &ValueId, width: usize) -> ValueId {
        let features = self.b.shape(x)[1];
        let weight = self.weight(&format!("{name}.weight"), &[width, features], features);
        let bias = self.bias(&format!("{name}.bias"), width);
        self.b.op_with("Gemm", &[x, &weight, &bias], &[("transB", 1i64.into())])
    }
}
