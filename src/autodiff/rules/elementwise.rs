//! Functions of one value, element by element.
//!
//! In formulas x is the input, y the output, g the cotangent of y; `[c]` is 1 where c holds and else 0. At a kink
//! the derivative is that of the side which PyTorch takes.

use super::{Context, Cotangents, Outputs, Row, composed, rule, stop};
use crate::onnx::{Builder, DType, Tensor, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub const TABLE: &[Row] = &[
    // sign x
    rule("Abs", |c| c.slope(|b, x, _| b.op("Sign", &[x]))),
    // −1 / √(1 − x²)
    rule("Acos", |c| {
        c.pull(|b, g, x, _| {
            let root = root_one_minus_square(b, x);
            let ratio = b.div(g, &root);
            b.neg(&ratio)
        })
    }),
    // 1 / √((x − 1)(x + 1))
    rule("Acosh", |c| {
        c.pull(|b, g, x, _| {
            let (low, high) = (b.add_scalar(x, -1.0), b.add_scalar(x, 1.0));
            let product = b.mul(&low, &high);
            let root = b.op("Sqrt", &[&product]);
            b.div(g, &root)
        })
    }),
    // 1 / √(1 − x²)
    rule("Asin", |c| {
        c.pull(|b, g, x, _| {
            let root = root_one_minus_square(b, x);
            b.div(g, &root)
        })
    }),
    // 1 / √(x² + 1)
    rule("Asinh", |c| {
        c.pull(|b, g, x, _| {
            let square = square(b, x);
            let sum = b.add_scalar(&square, 1.0);
            let root = b.op("Sqrt", &[&sum]);
            b.div(g, &root)
        })
    }),
    // 1 / (1 + x²)
    rule("Atan", |c| {
        c.pull(|b, g, x, _| {
            let square = square(b, x);
            let sum = b.add_scalar(&square, 1.0);
            b.div(g, &sum)
        })
    }),
    // 1 / (1 − x²)
    rule("Atanh", |c| {
        c.pull(|b, g, x, _| {
            let slope = one_minus_square(b, x);
            b.div(g, &slope)
        })
    }),
    rule("Cast", cast),
    rule("CastLike", cast),
    stop("Ceil"),
    rule("Celu", celu),
    rule("Clip", clip),
    // −sin x
    rule("Cos", |c| {
        c.slope(|b, x, _| {
            let sin = b.op("Sin", &[x]);
            b.neg(&sin)
        })
    }),
    // sinh x
    rule("Cosh", |c| c.slope(|b, x, _| b.op("Sinh", &[x]))),
    rule("Dropout", dropout),
    rule("Elu", elu),
    // 2/√π · exp(−x²)
    rule("Erf", |c| {
        c.slope(|b, x, _| {
            let bell = bell(b, x, 1.0);
            b.mul_scalar(&bell, 2.0 / PI.sqrt())
        })
    }),
    // y
    rule("Exp", |c| c.slope(|_, _, y| y.clone())),
    stop("Floor"),
    rule("Gelu", gelu),
    rule("HardSigmoid", hard_sigmoid),
    // 0 up to −3, 1 from 3, x/3 + ½ between
    rule("HardSwish", |c| {
        c.slope(|b, x, _| {
            let third = b.mul_scalar(x, 1.0 / 3.0);
            let line = b.add_scalar(&third, 0.5);
            let (zero, one) = (b.scalar_like(x, 0.0), b.scalar_like(x, 1.0));
            let ends = [-3.0, 3.0].map(|end| b.scalar_like(x, end));
            let (below, above) =
                (b.op("LessOrEqual", &[x, &ends[0]]), b.op("GreaterOrEqual", &[x, &ends[1]]));
            let capped = b.where_(&above, &one, &line);
            b.where_(&below, &zero, &capped)
        })
    }),
    // 1
    rule("Identity", |c| c.pull(|_, g, _, _| g.clone())),
    stop("IsInf"),
    stop("IsNaN"),
    rule("LeakyRelu", leaky_relu),
    // 1 / x
    rule("Log", |c| c.pull(|b, g, x, _| b.div(g, x))),
    rule("Mish", mish),
    // −1
    rule("Neg", |c| c.pull(|b, g, _, _| b.neg(g))),
    rule("PRelu", prelu),
    // −y²
    rule("Reciprocal", |c| {
        c.slope(|b, _, y| {
            let square = square(b, y);
            b.neg(&square)
        })
    }),
    // [y > 0]
    rule("Relu", |c| {
        c.pull(|b, g, _, y| {
            let positive = greater(b, y, 0.0);
            keep(b, &positive, g)
        })
    }),
    stop("Round"),
    rule("Selu", selu),
    rule("Shrink", shrink),
    // y (1 − y)
    rule("Sigmoid", |c| {
        c.slope(|b, _, y| {
            let rest = b.scalar_sub(1.0, y);
            b.mul(y, &rest)
        })
    }),
    stop("Sign"),
    // cos x
    rule("Sin", |c| c.slope(|b, x, _| b.op("Cos", &[x]))),
    // cosh x
    rule("Sinh", |c| c.slope(|b, x, _| b.op("Cosh", &[x]))),
    // σ(x)
    rule("Softplus", |c| c.slope(|b, x, _| sigmoid(b, x))),
    // 1 / (1 + |x|)²
    rule("Softsign", |c| {
        c.pull(|b, g, x, _| {
            let size = b.op("Abs", &[x]);
            let sum = b.add_scalar(&size, 1.0);
            let square = square(b, &sum);
            b.div(g, &square)
        })
    }),
    // 1 / 2y; 0 at the vertical tangent in x = 0, so that one zero doesn't poison every weight
    rule("Sqrt", |c| {
        c.pull(|b, g, _, y| {
            let double = b.add(y, y);
            let ratio = b.div(g, &double);
            unless_zero(b, y, &ratio)
        })
    }),
    composed("SwiGLU", swiglu),
    rule("Swish", swish),
    // 1 + y²
    rule("Tan", |c| {
        c.slope(|b, _, y| {
            let square = square(b, y);
            b.add_scalar(&square, 1.0)
        })
    }),
    // 1 − y²
    rule("Tanh", |c| c.slope(|b, _, y| one_minus_square(b, y))),
    rule("ThresholdedRelu", |c| {
        // [x > α]
        let alpha = c.node.float_or("alpha", 1.0) as f64;
        c.pull(|b, g, x, _| {
            let above = greater(b, x, alpha);
            keep(b, &above, g)
        })
    }),
];

/// x > 0: 1, else exp(x / α).
fn celu(c: &mut Context<'_>) -> Cotangents {
    let alpha = c.node.float_or("alpha", 1.0) as f64;
    c.slope(|b, x, _| exponential_tail(b, x, alpha, 1.0, 1.0))
}

/// x > 0: 1, else α exp(x).
fn elu(c: &mut Context<'_>) -> Cotangents {
    let alpha = c.node.float_or("alpha", 1.0) as f64;
    c.slope(|b, x, _| exponential_tail(b, x, 1.0, alpha, 1.0))
}

/// x > 0: γ, else γ α exp(x).
fn selu(c: &mut Context<'_>) -> Cotangents {
    // The specification's defaults, which are float32 numbers.
    let alpha = c.node.float_or("alpha", 1.673_263_2) as f64;
    let gamma = c.node.float_or("gamma", 1.050_701) as f64;
    c.slope(|b, x, _| exponential_tail(b, x, 1.0, gamma * alpha, gamma))
}

/// x > 0: `right`, else `left · exp(x / width)`. The exponent is capped at 0: the branch not taken can't overflow.
fn exponential_tail(b: &mut Builder, x: &ValueId, width: f64, left: f64, right: f64) -> ValueId {
    let zero = b.scalar_like(x, 0.0);
    let negative = b.op("Min", &[x, &zero]);
    let scaled = b.mul_scalar(&negative, 1.0 / width);
    let exp = b.op("Exp", &[&scaled]);
    let tail = b.mul_scalar(&exp, left);
    let right = b.scalar_like(x, right);
    let positive = greater(b, x, 0.0);
    b.where_(&positive, &right, &tail)
}

/// y = min(max(x, low), high). Where `high` cuts, it gets g; else where `low` cuts, it does; else x. On a bound itself the bound
/// gets g, as in PyTorch, so that ReLU6 passes nothing at 0.
fn clip(c: &mut Context<'_>) -> Cotangents {
    let (g, x) = (c.cotangent()?, c.input(0)?);
    let (low, high) = (c.optional(1), c.optional(2));
    let raised = match &low {
        Some(low) => c.b.op("Max", &[&x, low]),
        None => x.clone(),
    };
    let mut rest = g;
    let mut parts = vec![None, None, None];
    // Masks are compared with the untouched side, so that NaN goes the way of x.
    for (i, bound, op, value) in [(2, high, "GreaterOrEqual", &raised), (1, low, "LessOrEqual", &x)] {
        let Some(bound) = bound else { continue };
        let cut = c.b.op(op, &[value, &bound]);
        if c.wants(i) {
            let shape = c.b.shape(&bound);
            let part = keep(c.b, &cut, &rest);
            parts[i] = Some(c.b.sum_to(&part, &shape));
        }
        rest = drop(c.b, &cut, &rest);
    }
    parts[0] = Some(rest);
    Ok(parts)
}

/// Back to the input's type; integers and booleans stop the cotangent, but for integers that stand for real numbers.
fn cast(c: &mut Context<'_>) -> Cotangents {
    let (from, to) = (c.b.dtype(&c.input(0)?), c.b.dtype(&c.output(0)?));
    match (from.is_float(), to.is_float()) {
        (true, true) => c.pull(|b, g, _, _| b.cast(g, from)),
        (false, true) if super::quant::is_quantised(c) => c.pull(|_, g, _, _| g.clone()),
        _ => Ok(vec![]),
    }
}

/// `a · σ(αa) · b`.
fn swiglu(b: &mut Builder, node: &crate::onnx::Node) -> Outputs {
    let input =
        |i: usize| node.input(i).ok_or_else(|| crate::Error::node(node, format!("input {i} is missing")));
    let (gate, value) = (input(0)?, input(1)?);
    let scaled = b.mul_scalar(gate, f64::from(node.float_or("alpha", 1.0)));
    let open = b.op("Sigmoid", &[&scaled]);
    let gated = b.mul(gate, &open);
    Ok(vec![Some(b.mul(&gated, value))])
}

/// The identity at inference; in training form g · mask / (1 − ratio), with the mask that the node puts out.
fn dropout(c: &mut Context<'_>) -> Cotangents {
    let training = c.constant(2)?.is_some_and(|t| t.to_f64().first().is_some_and(|&v| v != 0.0));
    if !training {
        return c.pull(|_, g, _, _| g.clone());
    }
    let x = c.input(0)?;
    let Some(mask) = c.node.output(1).cloned() else {
        return Err(c.refuse("in training form has a gradient only where it also puts out its mask"));
    };
    let ratio = match c.optional(1) {
        Some(ratio) => ratio,
        None => c.b.constant(Tensor::scalar(c.b.dtype(&x), 0.5)),
    };
    c.pull(|b, g, _, _| {
        let ratio = b.cast(&ratio, b.dtype(g));
        let kept_share = b.scalar_sub(1.0, &ratio);
        let scaled = b.div(g, &kept_share);
        keep(b, &mask, &scaled)
    })
}

/// Φ(x) + x φ(x), exactly or with the tanh approximation's own derivative.
fn gelu(c: &mut Context<'_>) -> Cotangents {
    if c.node.str("approximate") == Some("tanh") {
        return c.slope(gelu_tanh_slope);
    }
    c.slope(|b, x, _| {
        let scaled = b.mul_scalar(x, FRAC_1_SQRT_2);
        let erf = b.op("Erf", &[&scaled]);
        let half = b.mul_scalar(&erf, 0.5);
        let cumulative = b.add_scalar(&half, 0.5);
        let bell = bell(b, x, 0.5);
        let density = b.mul_scalar(&bell, 1.0 / (2.0 * PI).sqrt());
        let moment = b.mul(x, &density);
        b.add(&cumulative, &moment)
    })
}

/// y = x/2 · (1 + t), t = tanh u, u = √(2/π) (x + 0.044715 x³):
/// y′ = (1 + t)/2 + x/2 · (1 − t²) · √(2/π) (1 + 3 · 0.044715 x²).
fn gelu_tanh_slope(b: &mut Builder, x: &ValueId, _: &ValueId) -> ValueId {
    let (scale, cubic) = ((2.0 / PI).sqrt(), 0.044715);
    let square = square(b, x);
    let factor = b.mul_scalar(&square, scale * cubic);
    let factor = b.add_scalar(&factor, scale);
    let u = b.mul(x, &factor);
    let t = b.op("Tanh", &[&u]);
    let u_slope = b.mul_scalar(&square, 3.0 * scale * cubic);
    let u_slope = b.add_scalar(&u_slope, scale);
    let t_slope = one_minus_square(b, &t);
    let t_slope = b.mul(&t_slope, &u_slope);
    let moment = b.mul(x, &t_slope);
    let sum = b.add(&t, &moment);
    let sum = b.add_scalar(&sum, 1.0);
    b.mul_scalar(&sum, 0.5)
}

/// α where 0 < y < 1.
fn hard_sigmoid(c: &mut Context<'_>) -> Cotangents {
    let alpha = c.node.float_or("alpha", 0.2) as f64;
    c.pull(|b, g, _, y| {
        let (above, below) = (greater(b, y, 0.0), less(b, y, 1.0));
        let inside = b.op("And", &[&above, &below]);
        let scaled = b.mul_scalar(g, alpha);
        keep(b, &inside, &scaled)
    })
}

/// x > 0: 1, else α.
fn leaky_relu(c: &mut Context<'_>) -> Cotangents {
    let alpha = c.node.float_or("alpha", 0.01) as f64;
    c.pull(|b, g, x, _| {
        let scaled = b.mul_scalar(g, alpha);
        let positive = greater(b, x, 0.0);
        b.where_(&positive, g, &scaled)
    })
}

/// y = x t, t = tanh(softplus x): y′ = t + x (1 − t²) σ(x).
fn mish(c: &mut Context<'_>) -> Cotangents {
    c.slope(|b, x, _| {
        let softplus = b.op("Softplus", &[x]);
        let t = b.op("Tanh", &[&softplus]);
        let t_slope = one_minus_square(b, &t);
        let sigmoid = sigmoid(b, x);
        let t_slope = b.mul(&t_slope, &sigmoid);
        let moment = b.mul(x, &t_slope);
        b.add(&t, &moment)
    })
}

/// dx = x > 0: g, else g · slope; dslope = the sum of g x over x < 0.
fn prelu(c: &mut Context<'_>) -> Cotangents {
    let (g, x, slope) = (c.cotangent()?, c.input(0)?, c.input(1)?);
    let positive = greater(c.b, &x, 0.0);
    let dx = c.if_wanted(0, |c| {
        let scaled = c.b.mul(&g, &slope);
        Ok(c.b.where_(&positive, &g, &scaled))
    })?;
    let dslope = c.if_wanted(1, |c| {
        let product = c.b.mul(&g, &x);
        let part = drop(c.b, &positive, &product);
        let shape = c.b.shape(&slope);
        Ok(c.b.sum_to(&part, &shape))
    })?;
    Ok(vec![dx, dslope])
}

/// [|x| > λ]
fn shrink(c: &mut Context<'_>) -> Cotangents {
    let lambda = c.node.float_or("lambd", 0.5) as f64;
    c.pull(|b, g, x, _| {
        let size = b.op("Abs", &[x]);
        let outside = greater(b, &size, lambda);
        keep(b, &outside, g)
    })
}

/// y = x s, s = σ(αx): y′ = s + αx s (1 − s).
fn swish(c: &mut Context<'_>) -> Cotangents {
    let alpha = c.node.float_or("alpha", 1.0) as f64;
    c.slope(|b, x, _| {
        let scaled = b.mul_scalar(x, alpha);
        let s = sigmoid(b, &scaled);
        let rest = b.scalar_sub(1.0, &s);
        let bend = b.mul(&scaled, &rest);
        let factor = b.add_scalar(&bend, 1.0);
        b.mul(&s, &factor)
    })
}

fn square(b: &mut Builder, x: &ValueId) -> ValueId {
    b.mul(x, x)
}

/// (1 − x)(1 + x), exact near ±1 where 1 − x² isn't.
fn one_minus_square(b: &mut Builder, x: &ValueId) -> ValueId {
    let (low, high) = (b.scalar_sub(1.0, x), b.add_scalar(x, 1.0));
    b.mul(&low, &high)
}

fn root_one_minus_square(b: &mut Builder, x: &ValueId) -> ValueId {
    let difference = one_minus_square(b, x);
    b.op("Sqrt", &[&difference])
}

/// exp(−k x²).
fn bell(b: &mut Builder, x: &ValueId, k: f64) -> ValueId {
    let square = square(b, x);
    let exponent = b.mul_scalar(&square, -k);
    b.op("Exp", &[&exponent])
}

/// σ(x) = 1 / (1 + exp(−x)): `Sigmoid` itself, except in float64, where not every executor has it.
fn sigmoid(b: &mut Builder, x: &ValueId) -> ValueId {
    if b.dtype(x) != DType::F64 {
        return b.op("Sigmoid", &[x]);
    }
    let minus = b.neg(x);
    let exp = b.op("Exp", &[&minus]);
    let sum = b.add_scalar(&exp, 1.0);
    b.op("Reciprocal", &[&sum])
}

pub(super) fn greater(b: &mut Builder, x: &ValueId, than: f64) -> ValueId {
    let than = b.scalar_like(x, than);
    b.op("Greater", &[x, &than])
}
pub(super) fn less(b: &mut Builder, x: &ValueId, than: f64) -> ValueId {
    let than = b.scalar_like(x, than);
    b.op("Less", &[x, &than])
}
/// g where the mask holds, else 0 (not a product: 0 · ∞ is NaN).
pub(super) fn keep(b: &mut Builder, mask: &ValueId, g: &ValueId) -> ValueId {
    let zero = b.scalar_like(g, 0.0);
    b.where_(mask, g, &zero)
}
/// 0 where the mask holds, else g.
pub(super) fn drop(b: &mut Builder, mask: &ValueId, g: &ValueId) -> ValueId {
    let zero = b.scalar_like(g, 0.0);
    b.where_(mask, &zero, g)
}
/// 0 where x is 0, else g.
pub(super) fn unless_zero(b: &mut Builder, x: &ValueId, g: &ValueId) -> ValueId {
    let zero = b.scalar_like(x, 0.0);
    let is_zero = b.op("Equal", &[x, &zero]);
    drop(b, &is_zero, g)
}
