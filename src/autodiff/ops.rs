//! What can be trained through: every operator of the standard, and of vendors where there is a rule, with how it is
//! handled and by whom it is run. Look at [`ops`].

use super::rules::{self, Kind};
use crate::onnx::{Graph, Model, Node, ValueId};
use serde::Serialize;
use std::collections::BTreeMap;

/// An operator, as `onnx-merge ops` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Operator {
    /// `""` for the standard operators.
    pub domain: String,
    pub op: String,
    /// The operator sets that may use it, oldest first: `"7-28"`; `"1"` for vendors' operators.
    pub opsets: String,
    pub kind: Handling,
    /// Names of the executors that run it.
    pub executors: Vec<&'static str>,
    /// Of those, the ones that run its gradient too.
    pub backward: Vec<&'static str>,
    /// The tests that judge its gradient; see [`checks`].
    pub checks: Vec<&'static str>,
}

/// Operators with a gradient that ONNX's own operator cases show no real values of.
const NOT_IN_CORPUS: &str = "ConvInteger DequantizeLinear Dropout DynamicQuantizeLinear GlobalLpPool \
     MatMulInteger MaxRoiPool QLinearConv QLinearMatMul QuantizeLinear RoiAlign SimplifiedLayerNormalization Trilu";

/// The tests of `tests/corpus` beside the operator cases, and the operators whose gradients they judge.
const CHECKS: [(&str, &str); 5] = [
    (
        "torch",
        "AveragePool BatchNormalization Conv ConvTranspose GRU GlobalAveragePool GlobalLpPool GlobalMaxPool \
         GroupNormalization InstanceNormalization LRN LSTM LayerNormalization LogSoftmax LpNormalization LpPool \
         MaxPool MeanVarianceNormalization NegativeLogLikelihoodLoss RMSNormalization RNN Resize Softmax \
         SoftmaxCrossEntropyLoss",
    ),
    (
        "kernels",
        "DFT MaxRoiPool RoiAlign SimplifiedLayerNormalization com.microsoft::Attention com.microsoft::BiasGelu \
         com.microsoft::EmbedLayerNormalization com.microsoft::FastGelu com.microsoft::FusedConv \
         com.microsoft::FusedGemm com.microsoft::FusedMatMul com.microsoft::Gelu \
         com.microsoft::GroupQueryAttention com.microsoft::MatMulNBits com.microsoft::MultiHeadAttention \
         com.microsoft::QuickGelu com.microsoft::RotaryEmbedding com.microsoft::SkipLayerNormalization \
         com.microsoft::SkipSimplifiedLayerNormalization",
    ),
    ("control", "If Loop Scan"),
    (
        "quantised",
        "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear",
    ),
    ("corners", "Trilu"),
];

/// The tests that judge an operator's gradient: `corpus` for ONNX's own cases and central differences, `torch` for
/// PyTorch's autograd, `kernels` for central differences through ONNX Runtime's kernel, and three for special kinds.
pub fn checks(name: &str) -> Vec<&'static str> {
    let listed = |list: &str| list.split_whitespace().any(|op| op == name);
    let differentiable = rules::table().any(|row| row.0 == name && !matches!(row.1, Kind::Stop));
    let corpus = differentiable && !name.contains("::") && !listed(NOT_IN_CORPUS);
    let others = CHECKS.iter().filter(|(_, list)| listed(list)).map(|(test, _)| *test);
    corpus.then_some("corpus").into_iter().chain(others).collect()
}

/// How an operator behaves under differentiation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Handling {
    /// A gradient rule.
    Rule,
    /// The gradient of its definition in other operators.
    Composed,
    /// Rewritten into other operators first.
    Lowered,
    /// No derivative, or zero almost everywhere: it ends a cotangent silently.
    Stop,
    /// An error, where it stands between trained weights and the loss.
    None,
}

impl Handling {
    pub fn name(self) -> &'static str {
        match self {
            Handling::Rule => "rule",
            Handling::Composed => "composed",
            Handling::Lowered => "lowered",
            Handling::Stop => "stop",
            Handling::None => "none",
        }
    }
}

/// The oldest operator set that is read, and the newest whose operators are known here.
const OPSETS: (i64, i64) = (7, 28);

/// Standard operators that preparation replaces, with the last operator set that has them, if that is over.
const LOWERED: [(&str, Option<i64>); 5] =
    [("Constant", None), ("Scatter", Some(10)), ("SwiGLU", None), ("Swish", None), ("Upsample", Some(9))];

/// The standard operators by the operator set they came with (7 for all before it).
const STANDARD: &[(i64, &str)] = &[
    (
        7,
        "Abs Acos Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Clip \
         Concat Constant Conv ConvTranspose Cos DepthToSpace Div Dropout Elu Equal Exp Flatten \
         Floor GRU Gather Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater HardSigmoid \
         Hardmax Identity If InstanceNormalization LRN LSTM LeakyRelu Less Log LogSoftmax Loop \
         LpNormalization LpPool MatMul Max MaxPool MaxRoiPool Mean Min Mul Multinomial Neg Not Or \
         PRelu Pad Pow RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike \
         Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin \
         ReduceProd ReduceSum ReduceSumSquare Relu Reshape Selu Shape Sigmoid Sin Size Slice \
         Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK \
         Transpose Unsqueeze Upsample Xor",
    ),
    (8, "Expand Scan"),
    (
        9,
        "Acosh Asinh Atanh Compress ConstantOfShape Cosh Erf EyeLike IsNaN MaxUnpool \
         MeanVarianceNormalization NonZero OneHot Scatter Shrink Sign Sinh TfIdfVectorizer Where",
    ),
    (
        10,
        "ConvInteger DequantizeLinear IsInf MatMulInteger Mod NonMaxSuppression QLinearConv \
         QLinearMatMul QuantizeLinear Resize ReverseSequence RoiAlign StringNormalizer \
         ThresholdedRelu",
    ),
    (
        11,
        "BitShift ConcatFromSequence CumSum Det DynamicQuantizeLinear GatherElements GatherND \
         Range Round ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty \
         SequenceErase SequenceInsert SequenceLength SplitToSequence Unique",
    ),
    (12, "Celu Einsum GreaterOrEqual LessOrEqual NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"),
    (14, "HardSwish Trilu"),
    (15, "Bernoulli CastLike Optional OptionalGetElement OptionalHasElement"),
    (16, "GridSample"),
    (
        17,
        "BlackmanWindow DFT HammingWindow HannWindow LayerNormalization MelWeightMatrix STFT \
         SequenceMap",
    ),
    (18, "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im GroupNormalization Mish"),
    (19, "DeformConv"),
    (20, "AffineGrid Gelu ImageDecoder RegexFullMatch StringConcat StringSplit"),
    (23, "Attention RMSNormalization RotaryEmbedding"),
    (24, "Swish TensorScatter"),
    (26, "BitCast CumProd"),
    (27, "CausalConvWithState LinearAttention"),
    (28, "SwiGLU"),
];

/// An executor's name, and whether it runs an operator.
pub type Runner<'a> = (&'static str, &'a dyn Fn(&Model) -> bool);

/// Every known operator, by domain and name, and which of `runners` run it.
pub fn ops(runners: &[Runner<'_>]) -> Vec<Operator> {
    let kinds: BTreeMap<(&str, &str), Kind> = rules::table().map(|row| (split(row.0), row.1)).collect();
    let mut names: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for (first, list) in STANDARD {
        names.extend(list.split_whitespace().map(|op| (("", op), *first)));
    }
    for &(domain, op) in kinds.keys() {
        names.entry((domain, op)).or_insert(1);
    }
    names
        .into_iter()
        .map(|((domain, op), first)| {
            let lowered = LOWERED.iter().find(|row| domain.is_empty() && row.0 == op);
            let kind = match (lowered, kinds.get(&(domain, op))) {
                (Some(_), _) => Handling::Lowered,
                (_, Some(Kind::Rule(_))) => Handling::Rule,
                (_, Some(Kind::Composed(_))) => Handling::Composed,
                (_, Some(Kind::Stop)) => Handling::Stop,
                (_, None) => Handling::None,
            };
            let last = lowered.and_then(|row| row.1).unwrap_or(OPSETS.1);
            let opsets = match first {
                1 => "1".to_owned(),
                _ => format!("{}-{last}", first.max(OPSETS.0)),
            };
            let alone = alone(domain, op);
            let able = runners.iter().filter(|(_, runs)| runs(&alone));
            let executors: Vec<&'static str> = able.map(|(name, _)| *name).collect();
            let name = if domain.is_empty() { op.to_owned() } else { format!("{domain}::{op}") };
            let mut backward = executors.clone();
            if matches!(kind, Handling::Stop | Handling::None) {
                backward.clear();
            }
            let checks = checks(&name);
            Operator {
                domain: domain.to_owned(),
                op: op.to_owned(),
                opsets,
                kind,
                executors,
                backward,
                checks,
            }
        })
        .collect()
}

/// Table rows name operators of other domains `domain::Op`.
fn split(name: &'static str) -> (&'static str, &'static str) {
    name.split_once("::").unwrap_or(("", name))
}

/// A model of this operator alone, to ask executors about.
fn alone(domain: &str, op: &str) -> Model {
    let node = Node { domain: domain.to_owned(), ..Node::new(op, &[], &[&ValueId::new("y")]) };
    Model::new(Graph { nodes: vec![node], ..Graph::default() }, OPSETS.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_rule_table_is_listed_once() {
        let all = ops(&[]);
        let mut names: Vec<(&str, &str)> = all.iter().map(|o| (o.domain.as_str(), o.op.as_str())).collect();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for row in rules::table() {
            assert!(names.contains(&split(row.0)), "{} is missing", row.0);
        }
        let of = |op: &str| all.iter().find(|o| o.op == op).map(|o| (o.kind, o.opsets.as_str()));
        assert_eq!(of("Gelu").map(|o| o.0), Some(Handling::Rule));
        assert_eq!(of("Trilu"), Some((Handling::Rule, "14-28")));
        assert_eq!(of("DFT").map(|o| o.0), Some(Handling::Composed));
        assert_eq!(checks("Softmax"), ["corpus", "torch"]);
        assert_eq!(checks("If"), ["corpus", "control"]);
        assert!(checks("Shape").is_empty());
        assert_eq!(of("Upsample"), Some((Handling::Lowered, "7-9")));
        assert_eq!(of("Loop").map(|o| o.0), Some(Handling::Rule));
        assert_eq!(of("Shape").map(|o| o.0), Some(Handling::Stop));
    }
}
