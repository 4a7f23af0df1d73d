//! Elementwise operators: each one WGSL expression of its inputs, fused with its neighbours later.

use super::{Elem, Lowering, Node, Operand, Outcome, Row};
use crate::onnx::DType;

pub const TABLE: &[Row] = &[
    ("Abs", unary),
    ("Acos", unary),
    ("Acosh", unary),
    ("Add", arithmetic),
    ("And", logic),
    ("Asin", unary),
    ("Asinh", unary),
    ("Atan", unary),
    ("Atanh", unary),
    ("Cast", cast),
    ("CastLike", cast),
    ("BitwiseAnd", bitwise),
    ("BitwiseNot", bitwise_not),
    ("BitwiseOr", bitwise),
    ("BitwiseXor", bitwise),
    ("Ceil", unary),
    ("Celu", activation),
    ("Clip", clip),
    ("Cos", unary),
    ("Cosh", unary),
    ("Div", arithmetic),
    ("Dropout", dropout),
    ("Elu", activation),
    ("Equal", comparison),
    ("Erf", unary),
    ("Exp", unary),
    ("Floor", unary),
    ("Gelu", gelu),
    ("Greater", comparison),
    ("GreaterOrEqual", comparison),
    ("HardSigmoid", activation),
    ("HardSwish", unary),
    ("Identity", identity),
    ("IsInf", is_inf),
    ("IsNaN", is_nan),
    ("LeakyRelu", activation),
    ("Less", comparison),
    ("LessOrEqual", comparison),
    ("Log", unary),
    ("Max", fold),
    ("Mean", mean),
    ("Min", fold),
    ("Mish", unary),
    ("Mod", modulo),
    ("Mul", arithmetic),
    ("Neg", unary),
    ("Not", not),
    ("Or", logic),
    ("PRelu", prelu),
    ("Pow", pow),
    ("Reciprocal", unary),
    ("Relu", unary),
    ("Round", unary),
    ("Selu", activation),
    ("Shrink", activation),
    ("Sigmoid", unary),
    ("Sign", unary),
    ("Sin", unary),
    ("Sinh", unary),
    ("Softplus", unary),
    ("Softsign", unary),
    ("Sqrt", unary),
    ("Sub", arithmetic),
    ("Sum", fold),
    ("Swish", activation),
    ("Tan", unary),
    ("Tanh", unary),
    ("ThresholdedRelu", activation),
    ("Where", where_),
    ("Xor", logic),
];

/// Expressions of one float32 value; those in `INTEGER` hold for int32 as well.
fn unary_expr(op: &str) -> Option<&'static str> {
    Some(match op {
        "Abs" => "abs({0})",
        "Acos" => "acos({0})",
        "Acosh" => "acosh({0})",
        "Asin" => "asin({0})",
        "Asinh" => "asinh({0})",
        "Atan" => "atan({0})",
        "Atanh" => "atanh({0})",
        "Ceil" => "ceil({0})",
        "Cos" => "cos({0})",
        "Cosh" => "cosh({0})",
        "Erf" => "erf({0})",
        "Exp" => "exp({0})",
        "Floor" => "floor({0})",
        "HardSwish" => "{0} * clamp({0} / 6.0 + 0.5, 0.0, 1.0)",
        "Log" => "ln({0})",
        "Mish" => "{0} * tanh_safe(softplus({0}))",
        "Neg" => "-{0}",
        "Reciprocal" => "1.0 / {0}",
        "Relu" => "max({0}, 0.0)",
        "Round" => "round({0})",
        "Sigmoid" => "sigmoid({0})",
        "Sign" => "sign({0})",
        "Sin" => "sin({0})",
        "Sinh" => "sinh({0})",
        "Softplus" => "softplus({0})",
        "Softsign" => "{0} / (1.0 + abs({0}))",
        "Sqrt" => "sqrt({0})",
        "Tan" => "tan({0})",
        "Tanh" => "tanh_safe({0})",
        _ => return None,
    })
}

const INTEGER: &[&str] = &["Abs", "Neg", "Sign"];

fn unary(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let expr = unary_expr(&node.op).ok_or("has no kernel")?;
    if x.elem != Elem::F32 && !(x.elem == Elem::I32 && INTEGER.contains(&node.op.as_str())) {
        return Err(format!("is supported for float32 only, not {:?}", x.elem));
    }
    let y = l.map(expr, &[&x], x.elem)?;
    l.set(node, 0, y)
}

/// Two numeric inputs of one type.
fn numbers(l: &mut Lowering, node: &Node) -> Outcome<(Operand, Operand)> {
    let (a, b) = (l.arg(node, 0)?, l.arg(node, 1)?);
    match a.elem == b.elem && a.elem != Elem::Bool {
        true => Ok((a, b)),
        false => Err(format!("inputs of types {:?} and {:?}", a.elem, b.elem)),
    }
}

fn arithmetic(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = numbers(l, node)?;
    let expr = match node.op.as_str() {
        "Add" => "{0} + {1}",
        "Sub" => "{0} - {1}",
        "Mul" => "{0} * {1}",
        _ => "{0} / {1}",
    };
    let y = l.map(expr, &[&a, &b], a.elem)?;
    l.set(node, 0, y)
}

fn pow(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let expr = match (a.elem, b.elem) {
        (Elem::F32, Elem::F32) => "power({0}, {1})",
        (Elem::F32, Elem::I32) => "power({0}, f32({1}))",
        (Elem::I32, Elem::I32) => "power_i32({0}, {1})",
        (a, b) => return Err(format!("inputs of types {a:?} and {b:?}")),
    };
    let y = l.map(expr, &[&a, &b], a.elem)?;
    l.set(node, 0, y)
}

fn modulo(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = numbers(l, node)?;
    let truncated = node.int_or("fmod", 0) != 0;
    let expr = match (a.elem, truncated) {
        (_, true) => "{0} % {1}",
        (Elem::I32, false) => "(({0} % {1}) + {1}) % {1}",
        _ => return Err("fmod = 0 is defined for integers only".into()),
    };
    let y = l.map(expr, &[&a, &b], a.elem)?;
    l.set(node, 0, y)
}

/// `Max`, `Min` and `Sum` of any number of inputs.
fn fold(l: &mut Lowering, node: &Node) -> Outcome {
    let expr = match node.op.as_str() {
        "Max" => "max({0}, {1})",
        "Min" => "min({0}, {1})",
        _ => "{0} + {1}",
    };
    let mut y = l.arg(node, 0)?;
    for i in 1..node.inputs.len() {
        let x = l.arg(node, i)?;
        y = l.map(expr, &[&y, &x], y.elem)?;
    }
    l.set(node, 0, y)
}

fn mean(l: &mut Lowering, node: &Node) -> Outcome {
    let mut y = l.arg(node, 0)?;
    for i in 1..node.inputs.len() {
        let x = l.arg(node, i)?;
        y = l.map_f32("{0} + {1}", &[&y, &x])?;
    }
    let share = l.scalar(1.0 / node.inputs.len() as f32)?;
    let y = l.map_f32("{0} * {1}", &[&y, &share])?;
    l.set(node, 0, y)
}

fn comparison(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let expr = match node.op.as_str() {
        "Equal" => "select(0u, 1u, {0} == {1})",
        "Greater" => "select(0u, 1u, {0} > {1})",
        "GreaterOrEqual" => "select(0u, 1u, {0} >= {1})",
        "Less" => "select(0u, 1u, {0} < {1})",
        _ => "select(0u, 1u, {0} <= {1})",
    };
    let y = l.map(expr, &[&a, &b], Elem::Bool)?;
    l.set(node, 0, y)
}

fn logic(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let expr = match node.op.as_str() {
        "And" => "{0} & {1}",
        "Or" => "{0} | {1}",
        _ => "{0} ^ {1}",
    };
    let y = l.map(expr, &[&a, &b], Elem::Bool)?;
    l.set(node, 0, y)
}

fn not(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let y = l.map("1u - {0}", &[&x], Elem::Bool)?;
    l.set(node, 0, y)
}

/// By its bits, since compilers may assume that no NaN exists.
fn is_nan(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let expr = "select(0u, 1u, (bitcast<u32>({0}) & 0x7fffffffu) > 0x7f800000u)";
    let y = l.map(expr, &[&x], Elem::Bool)?;
    l.set(node, 0, y)
}

/// By its bits, for the same reason.
fn is_inf(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let detects = |sign: &str| node.int_or(sign, 1) != 0;
    let expr = match (detects("detect_positive"), detects("detect_negative")) {
        (true, true) => "select(0u, 1u, (bitcast<u32>({0}) & 0x7fffffffu) == 0x7f800000u)",
        (true, false) => "select(0u, 1u, bitcast<u32>({0}) == 0x7f800000u)",
        (false, true) => "select(0u, 1u, bitcast<u32>({0}) == 0xff800000u)",
        (false, false) => "select(0u, 0u, bitcast<u32>({0}) == 0u)",
    };
    let y = l.map(expr, &[&x], Elem::Bool)?;
    l.set(node, 0, y)
}

fn bitwise(l: &mut Lowering, node: &Node) -> Outcome {
    let (a, b) = numbers(l, node)?;
    if a.elem != Elem::I32 {
        return Err("whole numbers are needed".into());
    }
    let expr = match node.op.as_str() {
        "BitwiseAnd" => "{0} & {1}",
        "BitwiseOr" => "{0} | {1}",
        _ => "{0} ^ {1}",
    };
    let y = l.map(expr, &[&a, &b], Elem::I32)?;
    l.set(node, 0, y)
}

fn bitwise_not(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    if x.elem != Elem::I32 {
        return Err("whole numbers are needed".into());
    }
    let y = l.map("~{0}", &[&x], Elem::I32)?;
    l.set(node, 0, y)
}

/// In inference nothing is dropped.
fn dropout(l: &mut Lowering, node: &Node) -> Outcome {
    if node.input(2).is_some() && l.known_floats(node, 2).is_none_or(|t| t.iter().any(|&v| v != 0.0)) {
        return Err("training_mode is not supported on the GPU".into());
    }
    let x = l.arg(node, 0)?;
    if node.output(1).is_some() {
        let all = l.constant(&crate::onnx::Tensor::bool(&[], &[true]))?;
        let all = l.broadcast(&all, &x.view.shape)?;
        l.set(node, 1, all)?;
    }
    l.set(node, 0, x)
}

fn where_(l: &mut Lowering, node: &Node) -> Outcome {
    let (condition, a, b) = (l.arg(node, 0)?, l.arg(node, 1)?, l.arg(node, 2)?);
    let y = l.map("select({2}, {1}, {0} != 0u)", &[&condition, &a, &b], a.elem)?;
    l.set(node, 0, y)
}

fn identity(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    l.set(node, 0, x)
}

fn cast(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let to = match node.is("Cast") {
        true => Elem::of(DType::from_onnx(node.int_or("to", 0) as i32))?,
        false => l.arg(node, 1)?.elem,
    };
    let y = match (x.elem, to) {
        (from, to) if from == to => x,
        (Elem::F32, Elem::I32) | (Elem::Bool, Elem::I32) => l.map("i32({0})", &[&x], to)?,
        (_, Elem::F32) => l.map("f32({0})", &[&x], to)?,
        (Elem::F32, _) => l.map("select(0u, 1u, {0} != 0.0)", &[&x], to)?,
        _ => l.map("select(0u, 1u, {0} != 0)", &[&x], to)?,
    };
    l.set(node, 0, y)
}

fn clip(l: &mut Lowering, node: &Node) -> Outcome {
    let mut y = l.arg(node, 0)?;
    for (i, attr, expr) in [(1, "min", "max({0}, {1})"), (2, "max", "min({0}, {1})")] {
        let bound = match (l.optional(node, i)?, node.float(attr)) {
            (Some(bound), _) => bound,
            (None, Some(bound)) => l.scalar(bound)?,
            (None, None) => continue,
        };
        y = l.map(expr, &[&y, &bound], y.elem)?;
    }
    l.set(node, 0, y)
}

fn prelu(l: &mut Lowering, node: &Node) -> Outcome {
    let (x, slope) = (l.arg(node, 0)?, l.arg(node, 1)?);
    let y = l.map_f32("select({0} * {1}, {0}, {0} >= 0.0)", &[&x, &slope])?;
    l.set(node, 0, y)
}

fn gelu(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let expr = match node.str("approximate") {
        Some("tanh") => "0.5 * {0} * (1.0 + tanh_safe(0.7978845608 * ({0} + 0.044715 * {0} * {0} * {0})))",
        _ => "0.5 * {0} * (1.0 + erf({0} * 0.7071067812))",
    };
    let y = l.map_f32(expr, &[&x])?;
    l.set(node, 0, y)
}

/// Activations with attributes, which become scalar operands so that all share one kernel.
fn activation(l: &mut Lowering, node: &Node) -> Outcome {
    let x = l.arg(node, 0)?;
    let (expr, defaults): (_, &[(&str, f32)]) = match node.op.as_str() {
        "Celu" => ("max({0}, 0.0) + min({1} * (exp(min({0}, 0.0) / {1}) - 1.0), 0.0)", &[("alpha", 1.0)]),
        "Elu" => ("select({1} * (exp(min({0}, 0.0)) - 1.0), {0}, {0} > 0.0)", &[("alpha", 1.0)]),
        "HardSigmoid" => ("clamp({1} * {0} + {2}, 0.0, 1.0)", &[("alpha", 0.2), ("beta", 0.5)]),
        "Shrink" => (
            "select(select(0.0, {0} - {1}, {0} > {2}), {0} + {1}, {0} < -{2})",
            &[("bias", 0.0), ("lambd", 0.5)],
        ),
        "Swish" => ("{0} * sigmoid({1} * {0})", &[("alpha", 1.0)]),
        "LeakyRelu" => ("select({0} * {1}, {0}, {0} >= 0.0)", &[("alpha", 0.01)]),
        "Selu" => (
            "{2} * select({1} * (exp(min({0}, 0.0)) - 1.0), {0}, {0} > 0.0)",
            &[("alpha", 1.673_263_2), ("gamma", 1.050_701)],
        ),
        _ => ("select(0.0, {0}, {0} > {1})", &[("alpha", 1.0)]),
    };
    let mut inputs = vec![x];
    for &(name, default) in defaults {
        inputs.push(l.scalar(node.float_or(name, default))?);
    }
    let y = l.map_f32(expr, &inputs.iter().collect::<Vec<_>>())?;
    l.set(node, 0, y)
}
