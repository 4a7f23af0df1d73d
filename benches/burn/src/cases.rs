//! The cases of `benches/wgpu/cases.rs`, as burn's user writes them.

use burn::backend::{Dispatch, DispatchTensor, ops::ModuleOps};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData, activation, module};
use serde::Deserialize;

/// An operator with its sizes. The bench's own type has the same names, and says what they mean.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Case {
    Product {
        batch: usize,
        m: usize,
        k: usize,
        n: usize,
    },
    Conv {
        #[serde(flatten)]
        conv: Conv,
        pass: Pass,
    },
    Softmax {
        rows: usize,
        cols: usize,
        #[allow(dead_code, reason = "other passes are refused when they are read")]
        pass: Forward,
    },
    LayerNorm {
        rows: usize,
        cols: usize,
        pass: Pass,
    },
    AddGelu {
        rows: usize,
        cols: usize,
    },
    Sum {
        rows: usize,
        cols: usize,
        axis: usize,
    },
    Transpose {
        rows: usize,
        cols: usize,
    },
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Conv {
    n: usize,
    c: usize,
    size: usize,
    o: usize,
    kernel: usize,
    stride: usize,
    group: usize,
}

/// The one pass of what is measured forward only.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    Forward,
}

#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    Forward,
    Input,
    Weight,
}

/// One run: registers the work and gives what comes of it.
pub type Step = Box<dyn FnOnce() -> DispatchTensor + Send>;

/// A case with its inputs on a device.
pub struct Operator {
    prepare: Box<dyn Fn() -> Step>,
    /// How many runs may be prepared at a time: those of a gradient hold a forward pass each.
    pub at_once: usize,
}

impl Operator {
    fn new<const D: usize>(run: impl Fn() -> Tensor<D> + Clone + Send + 'static) -> Self {
        let prepare = move || -> Step {
            let run = run.clone();
            Box::new(move || run().into_dispatch())
        };
        Operator { prepare: Box::new(prepare), at_once: usize::MAX }
    }
    pub fn prepare(&self) -> Step {
        (self.prepare)()
    }
}

impl Case {
    /// Every tensor is float32, with values from −1 to 1.
    pub fn on(&self, device: &Device) -> Operator {
        match *self {
            Case::Product { batch: 1, m, k, n } => {
                let (a, b) = (values([m, k], 0, device), values([k, n], 1, device));
                Operator::new(move || a.clone().matmul(b.clone()))
            }
            Case::Product { batch, m, k, n } => {
                let (a, b) = (values([batch, m, k], 0, device), values([batch, k, n], 1, device));
                Operator::new(move || a.clone().matmul(b.clone()))
            }
            Case::Conv { conv, pass } => conv.on(pass, device),
            Case::Softmax { rows, cols, .. } => {
                let x = values([rows, cols], 0, device);
                Operator::new(move || activation::softmax(x.clone(), 1))
            }
            Case::LayerNorm { rows, cols, pass: Pass::Forward } => {
                let (x, scale, bias) = layer_norm_inputs(rows, cols, device);
                Operator::new(move || layer_norm(&x, &scale, &bias))
            }
            Case::LayerNorm { rows, cols, pass } => layer_norm_gradient(rows, cols, pass, device),
            Case::AddGelu { rows, cols } => {
                let (x, y) = (values([rows, cols], 0, device), values([rows, cols], 1, device));
                Operator::new(move || x.clone() + activation::gelu(y.clone()))
            }
            Case::Sum { rows, cols, axis } => {
                let x = values([rows, cols], 0, device);
                Operator::new(move || x.clone().sum_dim(axis))
            }
            // A transposed tensor is a view; to reshape it, burn has to write it out.
            Case::Transpose { rows, cols } => {
                let x = values([rows, cols], 0, device);
                Operator::new(move || x.clone().transpose().reshape([rows * cols]))
            }
        }
    }
}

impl Conv {
    fn on(self, pass: Pass, device: &Device) -> Operator {
        let x = values([self.n, self.c, self.size, self.size], 0, device);
        let w = values([self.o, self.c / self.group, self.kernel, self.kernel], 1, device);
        let options = ConvOptions::new([self.stride; 2], [self.kernel / 2; 2], [1; 2], self.group);
        let out = (self.size + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1;
        let cotangent = || values([self.n, self.o, out, out], 2, device);
        match pass {
            Pass::Forward => {
                Operator::new(move || module::conv2d(x.clone(), w.clone(), None, options.clone()))
            }
            Pass::Weight => {
                let g = cotangent();
                Operator::new(move || {
                    module::conv2d_weight_backward(x.clone(), w.clone(), g.clone(), options.clone())
                })
            }
            // What burn's autodiff calls. Tensors have no method for it.
            Pass::Input => {
                let g = cotangent();
                Operator::new(move || {
                    let [x, w, g] = [&x, &w, &g].map(|t| t.clone().into_dispatch());
                    Tensor::<4>::from_dispatch(Dispatch::conv2d_x_backward(x, w, g, options.clone()))
                })
            }
        }
    }
}

type LayerNormInputs = (Tensor<2>, Tensor<1>, Tensor<1>);

fn layer_norm_inputs(rows: usize, cols: usize, device: &Device) -> LayerNormInputs {
    (values([rows, cols], 0, device), values([cols], 1, device), values([cols], 2, device))
}

fn layer_norm(x: &Tensor<2>, scale: &Tensor<1>, bias: &Tensor<1>) -> Tensor<2> {
    module::layer_norm(x.clone(), scale.clone(), Some(bias.clone()), 1e-5)
}

/// By autodiff, for a cotangent of ones: burn has no operator for it. Forward passes are not a part of the run.
fn layer_norm_gradient(rows: usize, cols: usize, pass: Pass, device: &Device) -> Operator {
    let (mut x, mut scale, bias) = layer_norm_inputs(rows, cols, &device.clone().autodiff());
    match pass {
        Pass::Weight => scale = scale.require_grad(),
        _ => x = x.require_grad(),
    }
    let prepare = move || -> Step {
        let y = layer_norm(&x, &scale, &bias);
        let (x, scale) = (x.clone(), scale.clone());
        Box::new(move || {
            let mut found = y.backward();
            match pass {
                Pass::Weight => scale.grad_remove(&mut found).map(Tensor::into_dispatch),
                _ => x.grad_remove(&mut found).map(Tensor::into_dispatch),
            }
            .expect("what requires a gradient has one")
        })
    };
    Operator { prepare: Box::new(prepare), at_once: 16 }
}

/// The bench's own values of its `k`-th input.
fn values<const D: usize>(shape: [usize; D], k: usize, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    Tensor::from_data(TensorData::new((0..count).map(|i| value(i, k)).collect(), shape), device)
}

fn value(i: usize, k: usize) -> f32 {
    ((i * 7919 + k * 31) % 1999) as f32 / 999.0 - 1.0
}

#[cfg(test)]
mod tests;
