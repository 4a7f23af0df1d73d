//! Operators of ONNX Runtime's own domain, `com.microsoft`, which its optimiser and exporters put into models.
//!
//! All are fusions, so all are taken apart again (see [`super::compose`]). Definitions: ONNX Runtime's
//! `docs/ContribOperators.md`.

use super::compose::compose;
use super::{Context, Cotangents, Row, norm, quant, rule};
use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, Node, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    // In the default domain, though no ONNX operator.
    rule("SimplifiedLayerNormalization", norm::root_mean_square),
    rule("com.microsoft::BiasGelu", |c| compose(c, gelu)),
    rule("com.microsoft::DequantizeLinear", quant::dequantize),
    rule("com.microsoft::FastGelu", |c| compose(c, fast_gelu)),
    rule("com.microsoft::FusedConv", |c| compose(c, fused_conv)),
    rule("com.microsoft::FusedGemm", |c| compose(c, fused_gemm)),
    rule("com.microsoft::FusedMatMul", |c| compose(c, fused_matmul)),
    rule("com.microsoft::Gelu", |c| compose(c, gelu)),
    rule("com.microsoft::QuantizeLinear", quant::quantize),
    rule("com.microsoft::QuickGelu", |c| compose(c, quick_gelu)),
    rule("com.microsoft::SkipLayerNormalization", |c| skip_normalisation(c, true)),
    rule("com.microsoft::SkipSimplifiedLayerNormalization", |c| skip_normalisation(c, false)),
];

type Outputs = Result<Vec<Option<ValueId>>>;

fn input(node: &Node, i: usize) -> Result<&ValueId> {
    node.input(i).ok_or_else(|| Error::node(node, format!("input {i} is missing")))
}

/// The first input plus the second, where there is one.
fn biased(b: &mut Builder, node: &Node) -> Result<ValueId> {
    let x = input(node, 0)?;
    Ok(node.input(1).map_or_else(|| x.clone(), |bias| b.add(x, bias)))
}

/// `x/2 · (1 + erf(x/√2))`.
fn gelu(b: &mut Builder, node: &Node) -> Outputs {
    let x = biased(b, node)?;
    let inner = b.mul_scalar(&x, std::f64::consts::FRAC_1_SQRT_2);
    let inner = b.op("Erf", &[&inner]);
    half_of(b, &x, &inner)
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
fn fast_gelu(b: &mut Builder, node: &Node) -> Outputs {
    let x = biased(b, node)?;
    let square = b.mul(&x, &x);
    let cubic = b.mul_scalar(&square, 0.044715);
    let factor = b.add_scalar(&cubic, 1.0);
    let inner = b.mul(&x, &factor);
    let inner = b.mul_scalar(&inner, (2.0 / std::f64::consts::PI).sqrt());
    let inner = b.op("Tanh", &[&inner]);
    half_of(b, &x, &inner)
}

/// `x/2 · (1 + v)`.
fn half_of(b: &mut Builder, x: &ValueId, v: &ValueId) -> Outputs {
    let half = b.mul_scalar(x, 0.5);
    let shifted = b.add_scalar(v, 1.0);
    Ok(vec![Some(b.mul(&half, &shifted))])
}

/// `x · σ(αx)`.
fn quick_gelu(b: &mut Builder, node: &Node) -> Outputs {
    let x = input(node, 0)?;
    let scaled = b.mul_scalar(x, f64::from(node.float_or("alpha", 1.702)));
    let gate = b.op("Sigmoid", &[&scaled]);
    Ok(vec![Some(b.mul(x, &gate))])
}

/// `α · op(A) · op(B)`, where op may swap the last two axes, or move the first axis before the last.
fn fused_matmul(b: &mut Builder, node: &Node) -> Outputs {
    let mut side = |i: usize, name: &str| -> Result<ValueId> {
        let mut v = input(node, i)?.clone();
        let rank = b.rank(&v);
        if node.int_or(&format!("transBatch{name}"), 0) != 0 && rank > 2 {
            let perm: Vec<usize> = (1..rank - 1).chain([0, rank - 1]).collect();
            v = b.transpose(&v, &perm);
        }
        if node.int_or(&format!("trans{name}"), 0) != 0 && rank > 1 {
            v = b.transpose_matrix(&v);
        }
        Ok(v)
    };
    let (left, right) = (side(0, "A")?, side(1, "B")?);
    let product = b.matmul(&left, &right);
    let alpha = node.float_or("alpha", 1.0);
    Ok(vec![Some(if alpha == 1.0 { product } else { b.mul_scalar(&product, f64::from(alpha)) })])
}

fn activation(b: &mut Builder, node: &Node, v: ValueId, parameters: &[f32]) -> Result<ValueId> {
    let parameter = |i: usize, default: f32| parameters.get(i).copied().unwrap_or(default);
    let name = node.str("activation").unwrap_or("");
    Ok(match name {
        "" => v,
        "Relu" | "Tanh" | "Sigmoid" | "HardSwish" | "Softplus" => b.op(name, &[&v]),
        "LeakyRelu" => b.op_with(name, &[&v], &[("alpha", Attr::Float(parameter(0, 0.01)))]),
        "HardSigmoid" => {
            let attrs = [("alpha", Attr::Float(parameter(0, 0.2))), ("beta", Attr::Float(parameter(1, 0.5)))];
            b.op_with(name, &[&v], &attrs)
        }
        "Clip" => {
            let dtype = b.dtype(&v);
            let low = b.constant(Tensor::scalar(dtype, f64::from(parameter(0, f32::MIN))));
            let high = b.constant(Tensor::scalar(dtype, f64::from(parameter(1, f32::MAX))));
            b.op(name, &[&v, &low, &high])
        }
        _ => return Err(Error::node(node, format!("activation '{name}' has no gradient here"))),
    })
}

/// `activation(Conv(X, W, B) + Z)`.
fn fused_conv(b: &mut Builder, node: &Node) -> Outputs {
    let inputs = [Some(input(node, 0)?), Some(input(node, 1)?), node.input(2)];
    let named = |name: &&str| node.attrs.contains_key(*name);
    let kept = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
    let attrs: Vec<(&str, Attr)> =
        kept.iter().filter(|n| named(n)).map(|&n| (n, node.attrs[n].clone())).collect();
    let mut y = b.op_full("", "Conv", &inputs, &attrs, 1).remove(0);
    if let Some(z) = node.input(3) {
        y = b.add(&y, z);
    }
    let parameters = match node.attrs.get("activation_params") {
        Some(Attr::Floats(values)) => values.clone(),
        _ => vec![],
    };
    Ok(vec![Some(activation(b, node, y, &parameters)?)])
}

fn fused_gemm(b: &mut Builder, node: &Node) -> Outputs {
    let inputs = [Some(input(node, 0)?), Some(input(node, 1)?), node.input(2)];
    let kept = ["alpha", "beta", "transA", "transB"];
    let attrs: Vec<(&str, Attr)> =
        kept.iter().filter_map(|&n| Some((n, node.attrs.get(n)?.clone()))).collect();
    let y = b.op_full("", "Gemm", &inputs, &attrs, 1).remove(0);
    let parameters: Vec<f32> =
        ["activation_alpha", "activation_beta"].iter().filter_map(|n| node.float(n)).collect();
    Ok(vec![Some(activation(b, node, y, &parameters)?)])
}

/// `normalise(input + skip + bias) · gamma + beta`; the fourth output is the sum itself. Without a mean, the inputs
/// lack beta.
fn skip_normalisation(c: &mut Context<'_>, centre: bool) -> Cotangents {
    compose(c, |b, node| {
        let (x, skip, gamma) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
        let (beta, bias) = if centre { (node.input(3), node.input(4)) } else { (None, node.input(3)) };
        let mut sum = b.add(x, skip);
        if let Some(bias) = bias {
            sum = b.add(&sum, bias);
        }
        let epsilon = Attr::Float(node.float_or("epsilon", 1e-12));
        let y = norm::normalised(b, &sum, gamma, beta, epsilon, centre);
        Ok(vec![Some(y), None, None, Some(sum)])
    })
}
