//! Elementwise operators: activations keep channels, sums unite them, constants are vectors on them.

use super::Walk;
use super::labels::{Atom, Labels};
use crate::onnx::{Node, ValueId};
use crate::params::Role;

/// Operators of one computed operand whose result has its channels; other operands are settings, not weights.
const UNARY: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BiasSplitGelu",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "CumSum",
    "DequantizeLinear",
    "Dropout",
    "DynamicQuantizeLinear",
    "Elu",
    "Erf",
    "Exp",
    "FakeQuant",
    "FastGelu",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "IsInf",
    "IsNaN",
    "LRN",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Mish",
    "Neg",
    "Not",
    "QuantizeLinear",
    "QuickGelu",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Trilu",
    "ReverseSequence",
    "LogSoftmax",
];

/// Follows channels through `node`, if it is one of these.
pub fn visit(walk: &mut Walk, node: &Node) -> bool {
    match node.op.as_str() {
        // With a bias of its own in com.microsoft.
        "FastGelu" | "BiasGelu" | "BiasAdd" if node.input(1).is_some() => several(walk, node),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Min" | "Max" | "Sum" | "Mean" | "PRelu"
        | "Where" | "And" | "Or" | "Xor" | "Equal" | "Greater" | "GreaterOrEqual" | "Less"
        | "LessOrEqual" | "QLinearAdd" => several(walk, node),
        op if UNARY.contains(&op) => {
            walk.set(node.output(0), walk.labels(node.input(0)));
            if node.is("Dropout") {
                walk.set(node.output(1), walk.labels(node.input(0)));
            }
        }
        _ => return false,
    }
    true
}

fn several(walk: &mut Walk, node: &Node) {
    let (stored, computed): (Vec<&ValueId>, Vec<&ValueId>) =
        node.inputs.iter().flatten().partition(|i| walk.is_stored(Some(i)));
    let mut labels: Option<Labels> = None;
    for &value in &computed {
        labels = match (labels, walk.labels(Some(value))) {
            (Some(a), Some(b)) => a.meet(&b, &mut walk.atoms),
            (a, b) => a.or(b),
        };
    }
    // A residual sum labels what had no labels yet, so that its other users see the same channels.
    for &value in &computed {
        if let (Some(labels), None, Some(shape)) = (&labels, walk.labels(Some(value)), walk.shape(value))
            && labels.fits(shape)
            && walk.values.get(value).is_some_and(|s| !s.sources.is_empty())
        {
            walk.set(Some(value), Some(labels.clone()));
        }
    }
    for value in stored {
        let base = computed.first().copied();
        if let Some(found) = parameter(walk, node, value, base, labels.as_ref()) {
            labels = Some(found);
        }
    }
    walk.set(node.output(0), labels);
}

/// A constant operand: a bias, a scale, a table of positions; or just a number of the formula. Gives the labels of the
/// computed operand where the constant shows which axis its channels are on.
fn parameter(
    walk: &mut Walk,
    node: &Node,
    value: &ValueId,
    base: Option<&ValueId>,
    labels: Option<&Labels>,
) -> Option<Labels> {
    // Conditions, thresholds and masks are no weights.
    if !matches!(
        node.op.as_str(),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "PRelu" | "BiasGelu" | "FastGelu" | "BiasAdd" | "QLinearAdd"
    ) {
        return None;
    }
    let base = base?;
    let shape = walk.shape(value)?;
    let state = walk.values.get(base)?;
    let (level, learned) = (state.level, !state.sources.is_empty());
    let rank = walk.shape(base)?.len();
    let wide: Vec<usize> = (0..shape.len()).filter(|&i| shape[i] > 1).collect();
    let bare_bias = node.is("Add") && walk.bare.contains(base);
    // Constants before the first layer are preprocessing; single numbers belong to the formula, but for biases.
    if !learned || (wide.is_empty() && (shape.is_empty() || !bare_bias)) {
        return None;
    }
    let mut made = None;
    let labels = match (labels, wide.as_slice()) {
        (Some(labels), _) => labels.clone(),
        (None, [axis])
            if rank >= shape.len()
                && walk.shape(base)?.get(rank - shape.len() + axis) == shape.get(*axis) =>
        {
            let axis = rank - shape.len() + axis;
            let atoms = walk.channels(Some(base), axis);
            made = Some(Labels::on_axis(rank, axis, atoms.clone()));
            Labels::on_axis(rank, axis, atoms)
        }
        // On no known channel: a mask, anchors of a detector, or something that can't be told from them.
        _ => return None,
    };
    let channels = on_constant(&labels, rank, shape).unwrap_or_default();
    let varied = labels.atoms.len();
    let role = match node.op.as_str() {
        _ if channels.len() != varied => Role::Other,
        "Add" if walk.scaled.contains(base) => Role::NormShift,
        "Add" | "Sub" | "BiasGelu" | "FastGelu" | "BiasAdd" | "QLinearAdd" => Role::Bias,
        "Mul" => Role::NormScale,
        _ => Role::Other,
    };
    if role == Role::NormScale {
        walk.scaled.extend(node.output(0).cloned());
    }
    walk.vector(node, Some(value), role, &channels, level.saturating_sub(1));
    made
}

/// The channel of each element of a constant of `shape` that is broadcast against a value of `rank` with these labels.
fn on_constant(labels: &Labels, rank: usize, shape: &[usize]) -> Option<Vec<Atom>> {
    let lead = rank.checked_sub(shape.len())?;
    if labels.shape.len() != rank || labels.shape[..lead].iter().any(|&d| d != 1) {
        return None;
    }
    Labels { shape: labels.shape[lead..].to_vec(), atoms: labels.atoms.clone() }.expand(shape)
}
