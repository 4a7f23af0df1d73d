//! Operators of ONNX Runtime's own domain, `com.microsoft`, which its optimiser and exporters put into models.
//!
//! All are fusions, so all are taken apart again (see [`super::compose`]). Definitions: ONNX Runtime's
//! `docs/ContribOperators.md`.

use super::{Outputs, Row, composed, norm, quant, rule};
use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Attr, Builder, Node, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    // In the default domain, though no ONNX operator.
    rule("SimplifiedLayerNormalization", norm::root_mean_square),
    composed("com.microsoft::BiasGelu", gelu),
    composed("com.microsoft::BiasSoftmax", bias_softmax),
    rule("com.microsoft::DequantizeLinear", quant::dequantize),
    composed("com.microsoft::EmbedLayerNormalization", embedding_normalisation),
    composed("com.microsoft::FastGelu", fast_gelu),
    composed("com.microsoft::FusedConv", fused_conv),
    composed("com.microsoft::FusedGemm", fused_gemm),
    composed("com.microsoft::FusedMatMul", fused_matmul),
    composed("com.microsoft::Gelu", gelu),
    composed("com.microsoft::MatMulNBits", matmul_few_bits),
    composed("com.microsoft::NhwcConv", channels_last_conv),
    composed("com.microsoft::NhwcFusedConv", channels_last_conv),
    rule("com.microsoft::QuantizeLinear", quant::quantize),
    composed("com.microsoft::QuickGelu", quick_gelu),
    composed("com.microsoft::SkipLayerNormalization", |b, node| skip_normalisation(b, node, true)),
    composed("com.microsoft::SkipSimplifiedLayerNormalization", |b, node| skip_normalisation(b, node, false)),
];

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

/// A convolution with the attributes of `node`.
fn plain_conv(b: &mut Builder, node: &Node, x: &ValueId, w: &ValueId) -> ValueId {
    let kept = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
    let attrs: Vec<(&str, Attr)> =
        kept.iter().filter_map(|&n| Some((n, node.attrs.get(n)?.clone()))).collect();
    b.op_full("", "Conv", &[Some(x), Some(w), node.input(2)], &attrs, 1).remove(0)
}

fn activation_params(node: &Node) -> Vec<f32> {
    match node.attrs.get("activation_params") {
        Some(Attr::Floats(values)) => values.clone(),
        _ => vec![],
    }
}

/// `activation(Conv(X, W, B) + Z)`.
fn fused_conv(b: &mut Builder, node: &Node) -> Outputs {
    let (x, w) = (input(node, 0)?, input(node, 1)?);
    let mut y = plain_conv(b, node, x, w);
    if let Some(z) = node.input(3) {
        y = b.add(&y, z);
    }
    Ok(vec![Some(activation(b, node, y, &activation_params(node))?)])
}

/// The same with channels last, those of the weights perhaps too (`NhwcConv`).
fn channels_last_conv(b: &mut Builder, node: &Node) -> Outputs {
    let (x, w) = (input(node, 0)?, input(node, 1)?);
    let rank = b.rank(x);
    let forth: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let back: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let group = node.int_or("group", 1).max(1) as usize;
    let inputs = b.shape(x)[rank - 1] / group;
    let shape = b.shape(w);
    let kernel: Vec<usize> = node.ints("kernel_shape").unwrap_or(&[]).iter().map(|&k| k as usize).collect();
    let last = shape[rank - 1] == inputs && (shape[1] != inputs || shape[1..rank - 1] == kernel[..]);
    let w = if node.op == "NhwcConv" && last { b.transpose(w, &forth) } else { w.clone() };
    let x = b.transpose(x, &forth);
    let mut y = plain_conv(b, node, &x, &w);
    if let Some(z) = node.input(3) {
        let z = b.transpose(z, &forth);
        y = b.add(&y, &z);
    }
    let y = activation(b, node, y, &activation_params(node))?;
    Ok(vec![Some(b.transpose(&y, &back))])
}

/// `softmax(x + bias)` over all axes from `axis` on.
fn bias_softmax(b: &mut Builder, node: &Node) -> Outputs {
    let sum = b.add(input(node, 0)?, input(node, 1)?);
    let shape = b.shape(&sum);
    let axis = normalise_axis(node.int_or("axis", 1), shape.len())
        .ok_or_else(|| Error::node(node, "its axis doesn't fit its input"))?;
    let inner: usize = shape[axis..].iter().product();
    let flat = b.reshape(&sum, &[shape[..axis].iter().product(), inner]);
    let soft = b.softmax(&flat, -1);
    Ok(vec![Some(b.reshape(&soft, &shape))])
}

/// Embeddings of words, positions and segments, added and normalised.
fn embedding_normalisation(b: &mut Builder, node: &Node) -> Outputs {
    let (words, word_table, position_table) = (input(node, 0)?, input(node, 2)?, input(node, 3)?);
    let rows = [("axis", Attr::Int(0))];
    let length = b.shape(words)[1] as i64;
    let mut sum = b.op_with("Gather", &[word_table, words], &rows);
    let positions = match node.input(8) {
        Some(positions) => positions.clone(),
        None => b.constant(Tensor::i64(&[1, length as usize], &(0..length).collect::<Vec<_>>())),
    };
    let positions = b.op_with("Gather", &[position_table, &positions], &rows);
    sum = b.add(&sum, &positions);
    if let (Some(segments), Some(table)) = (node.input(1), node.input(4)) {
        let segments = b.op_with("Gather", &[table, segments], &rows);
        sum = b.add(&sum, &segments);
    }
    let epsilon = Attr::Float(node.float_or("epsilon", 1e-12));
    let y = norm::normalised(b, &sum, input(node, 5)?, node.input(6), epsilon, true);
    Ok(vec![Some(y), None, Some(sum)])
}

/// `A · Wᵀ + bias`, where W is a constant of few bits a number: frozen, taken apart into real numbers here.
fn matmul_few_bits(b: &mut Builder, node: &Node) -> Outputs {
    let a = input(node, 0)?;
    let size = |name: &str| node.int(name).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let fixed = |b: &Builder, i: usize| node.input(i).and_then(|id| b.constant_value(id)).cloned();
    let unfit = || {
        Error::node(
            node,
            "has a gradient only where its packed weights are constants that fit its attributes",
        )
    };
    let (Some(k), Some(n), Some(bits), Some(block)) =
        (size("K"), size("N"), size("bits"), size("block_size"))
    else {
        return Err(unfit());
    };
    let (packed, scales) = (fixed(b, 1).ok_or_else(unfit)?, fixed(b, 2).ok_or_else(unfit)?);
    let blocks = k.div_ceil(block);
    let stride = (block * bits).div_ceil(8);
    let scales = scales.to_f64();
    if packed.bytes().len() != n * blocks * stride || scales.len() != n * blocks || bits > 8 {
        return Err(unfit());
    }
    let zeros = fixed(b, 3);
    let zero_stride = (blocks * bits).div_ceil(8);
    let zero = |row: usize, block: usize| match &zeros {
        None => Some((1u32 << (bits - 1)) as f64),
        Some(t) if t.dtype().is_float() => t.to_f64().get(row * blocks + block).copied(),
        Some(t) => bits_at(t.bytes().get(row * zero_stride..(row + 1) * zero_stride)?, block * bits, bits),
    };
    let mut values = Vec::with_capacity(n * k);
    for row in 0..n {
        for column in 0..k {
            let (at, within) = (row * blocks + column / block, column % block);
            let level = bits_at(&packed.bytes()[at * stride..(at + 1) * stride], within * bits, bits);
            let (level, zero) = level.zip(zero(row, column / block)).ok_or_else(unfit)?;
            values.push((level - zero) * scales[at]);
        }
    }
    let dtype = b.dtype(a);
    let mut transposed = vec![0.0; n * k];
    for row in 0..n {
        for column in 0..k {
            transposed[column * n + row] = values[row * k + column];
        }
    }
    let w = b.constant(Tensor::from_f64(dtype, &[k, n], &transposed));
    let mut y = b.matmul(a, &w);
    if let Some(bias) = node.input(5) {
        y = b.add(&y, bias);
    }
    Ok(vec![Some(y)])
}

/// `count` bits from bit `at` on, lowest first.
fn bits_at(bytes: &[u8], at: usize, count: usize) -> Option<f64> {
    let low = u32::from(*bytes.get(at / 8)?);
    let high = u32::from(bytes.get(at / 8 + 1).copied().unwrap_or(0));
    Some(f64::from((high << 8 | low) >> (at % 8) & ((1 << count) - 1)))
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
fn skip_normalisation(b: &mut Builder, node: &Node, centre: bool) -> Outputs {
    let (x, skip, gamma) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
    let (beta, bias) = if centre { (node.input(3), node.input(4)) } else { (None, node.input(3)) };
    let mut sum = b.add(x, skip);
    if let Some(bias) = bias {
        sum = b.add(&sum, bias);
    }
    let epsilon = Attr::Float(node.float_or("epsilon", 1e-12));
    let y = norm::normalised(b, &sum, gamma, beta, epsilon, centre);
    Ok(vec![Some(y), None, None, Some(sum)])
}
