//! Operators of which tract computes something else than ONNX says, or nothing (tract 0.23), written out in others that it gets right:
//!
//! - `BatchNormalization` wants its parameters to be constants;
//! - `Celu` lacks the factor α before its exponential: α · Elu(x/α) has it;
//! - `LogSoftmax`, `ReduceLogSumExp` and `Softplus` take exponentials that overflow, or logarithms of what vanished: the largest
//!   is to be taken out before;
//! - `Selu` has constants of six digits where none are given.
//!
//! Look at [`mended`].

use crate::onnx::{Graph, Model, Node, Tensor, ValueId, WORKING_OPSET};
use std::borrow::Cow;

const BATCH_NORMALIZATION: &str = "BatchNormalization";

/// What an operator is written out as, where this node of it needs that.
type Remedy = fn(&mut Written<'_>, &Node) -> Option<()>;

const REMEDIES: [(&str, Remedy); 6] = [
    (BATCH_NORMALIZATION, batch_normalization),
    ("Celu", celu),
    ("LogSoftmax", log_softmax),
    ("ReduceLogSumExp", log_sum_exp),
    ("Selu", selu),
    ("Softplus", softplus),
];

/// `model` without nodes that tract gets wrong. It is expected in the opset that everything here is written in.
pub fn mended(model: Cow<'_, Model>) -> Cow<'_, Model> {
    if model.opset() < WORKING_OPSET || !needs(&model.graph) {
        return model;
    }
    let mut model = model.into_owned();
    mend(&mut model.graph);
    Cow::Owned(model)
}

fn remedy(graph: &Graph, node: &Node) -> Option<Remedy> {
    let constant = |i: usize| node.input(i).is_some_and(|id| graph.initializers.contains_key(id));
    let is_sound = node.is(BATCH_NORMALIZATION) && (1..5).all(constant);
    REMEDIES.iter().find(|(op, _)| node.is(op) && !is_sound).map(|(_, remedy)| *remedy)
}

fn needs(graph: &Graph) -> bool {
    graph.nodes.iter().any(|node| remedy(graph, node).is_some() || node.subgraphs().any(needs))
}

fn mend(graph: &mut Graph) {
    let mut nodes = vec![];
    for mut node in std::mem::take(&mut graph.nodes) {
        node.subgraphs_mut().for_each(mend);
        let written = remedy(graph, &node).and_then(|remedy| {
            let (x, y) = (node.input(0)?, node.output(0)?);
            let mut written = Written { graph, x, y, nodes: vec![] };
            remedy(&mut written, &node)?;
            Some(written.nodes)
        });
        nodes.extend(written.unwrap_or_else(|| vec![node]));
    }
    graph.nodes = nodes;
}

/// Nodes that stand for one of input `x` and output `y`.
struct Written<'a> {
    graph: &'a mut Graph,
    x: &'a ValueId,
    y: &'a ValueId,
    nodes: Vec<Node>,
}

impl Written<'_> {
    fn name(&self) -> ValueId {
        ValueId::new(format!("{}~{}", self.y, self.nodes.len()))
    }
    fn op(&mut self, op: &str, inputs: &[&ValueId]) -> ValueId {
        self.node(Node::new(op, inputs, &[]))
    }
    fn node(&mut self, mut node: Node) -> ValueId {
        let output = self.name();
        node.outputs = vec![Some(output.clone())];
        self.nodes.push(node);
        output
    }
    fn constant(&mut self, value: Tensor) -> ValueId {
        // Their number tells those apart that are made between the same two nodes.
        let constant = ValueId::new(format!("{}/constant{}", self.name(), self.graph.initializers.len()));
        self.graph.initializers.insert(constant.clone(), value);
        constant
    }
    /// A scalar of x's type.
    fn scalar(&mut self, value: f32) -> ValueId {
        let constant = self.constant(Tensor::f32(&[], &[value]));
        self.op("CastLike", &[&constant, self.x])
    }
    /// The last node, which makes `y`.
    fn finish(&mut self, mut node: Node) -> Option<()> {
        node.outputs = vec![Some(self.y.clone())];
        self.nodes.push(node);
        Some(())
    }
}

/// (x − mean) / √(variance + ε) · scale + bias, a channel a row of positions whatever space there is.
fn batch_normalization(w: &mut Written<'_>, node: &Node) -> Option<()> {
    if node.int_or("training_mode", 0) == 1 {
        return None;
    }
    let (rows, column) = (w.constant(Tensor::i64(&[3], &[0, 0, -1])), w.constant(Tensor::i64(&[1], &[1])));
    let mut parameter = |i: usize| {
        let value = w.op("CastLike", &[node.input(i)?, w.x]);
        Some(w.op("Unsqueeze", &[&value, &column]))
    };
    let (scale, bias, mean, variance) = (parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?);
    let epsilon = w.scalar(node.float_or("epsilon", 1e-5));
    let x = w.op("Reshape", &[w.x, &rows]);
    let centred = w.op("Sub", &[&x, &mean]);
    let variance = w.op("Add", &[&variance, &epsilon]);
    let deviation = w.op("Sqrt", &[&variance]);
    let normal = w.op("Div", &[&centred, &deviation]);
    let scaled = w.op("Mul", &[&normal, &scale]);
    let moved = w.op("Add", &[&scaled, &bias]);
    let shape = w.op("Shape", &[w.x]);
    w.finish(Node::new("Reshape", &[&moved, &shape], &[]))
}

fn celu(w: &mut Written<'_>, node: &Node) -> Option<()> {
    let alpha = node.float("alpha").filter(|&alpha| alpha != 1.0)?;
    // α is a float32 by the specification, whatever x is.
    let alpha = w.scalar(alpha);
    let scaled = w.op("Div", &[w.x, &alpha]);
    let elu = w.op("Elu", &[&scaled]);
    w.finish(Node::new("Mul", &[&elu, &alpha], &[]))
}

/// (x − max x) − log Σ exp(x − max x)
fn log_softmax(w: &mut Written<'_>, node: &Node) -> Option<()> {
    let axes = w.constant(Tensor::i64(&[1], &[node.int_or("axis", -1)]));
    let largest = w.op("ReduceMax", &[w.x, &axes]);
    let shifted = w.op("Sub", &[w.x, &largest]);
    let exponentials = w.op("Exp", &[&shifted]);
    let sum = w.op("ReduceSum", &[&exponentials, &axes]);
    let log = w.op("Log", &[&sum]);
    w.finish(Node::new("Sub", &[&shifted, &log], &[]))
}

/// m + log Σ exp(x − m), m the largest finite x.
fn log_sum_exp(w: &mut Written<'_>, node: &Node) -> Option<()> {
    let axes = node.input(1);
    if axes.is_none() && node.int_or("noop_with_empty_axes", 0) == 1 {
        return None;
    }
    let reduce = |op: &str, value: &ValueId| {
        let inputs: Vec<&ValueId> = [value].into_iter().chain(axes).collect();
        Node::new(op, &inputs, &[]).with("keepdims", 1)
    };
    let largest = w.node(reduce("ReduceMax", w.x));
    // An infinite one taken from itself would be no number.
    let (low, high) = (w.scalar(f32::MIN), w.scalar(f32::MAX));
    let largest = w.op("Clip", &[&largest, &low, &high]);
    let shifted = w.op("Sub", &[w.x, &largest]);
    let exponentials = w.op("Exp", &[&shifted]);
    let sum = w.node(reduce("ReduceSum", &exponentials));
    let log = w.op("Log", &[&sum]);
    if node.int_or("keepdims", 1) == 1 {
        return w.finish(Node::new("Add", &[&log, &largest], &[]));
    }
    let kept = w.op("Add", &[&log, &largest]);
    let inputs: Vec<&ValueId> = [&kept].into_iter().chain(axes).collect();
    w.finish(Node::new("Squeeze", &inputs, &[]))
}

fn selu(w: &mut Written<'_>, node: &Node) -> Option<()> {
    let [alpha, gamma] = [("alpha", 1.673_263_2), ("gamma", 1.050_701)]
        .map(|(name, default): (&str, f32)| node.float_or(name, default));
    w.finish(Node::new("Selu", &[w.x], &[]).with("alpha", alpha).with("gamma", gamma))
}

/// max(x, 0) + log(1 + e) with e = exp(−|x|). The logarithm is 2 · artanh(e / (2 + e)), which keeps small e.
fn softplus(w: &mut Written<'_>, _: &Node) -> Option<()> {
    let (zero, two) = (w.scalar(0.0), w.scalar(2.0));
    let size = w.op("Abs", &[w.x]);
    let less = w.op("Neg", &[&size]);
    let e = w.op("Exp", &[&less]);
    let sum = w.op("Add", &[&e, &two]);
    let ratio = w.op("Div", &[&e, &sum]);
    let half = w.op("Atanh", &[&ratio]);
    let log = w.op("Mul", &[&half, &two]);
    let rectified = w.op("Max", &[w.x, &zero]);
    w.finish(Node::new("Add", &[&rectified, &log], &[]))
}

#[cfg(test)]
mod tests {
    use crate::onnx::{Attr, Builder, DType, Fact, Model, Tensor, WORKING_OPSET};
    use crate::runtime::{Executor, TractExecutor, Value};

    fn value(dtype: DType, op: &str, attrs: &[(&str, Attr)], x: &[f64]) -> Vec<f64> {
        let mut b = Builder::new(op);
        let fact = Fact::new(dtype, &[x.len()]);
        let id = b.input("x", fact.clone());
        let y = b.op_with(op, &[&id], attrs);
        b.set_fact(&y, fact);
        b.output(&y);
        let (graph, facts) = b.finish();
        let model = Model::new(graph, WORKING_OPSET);
        let mut program = TractExecutor::new(1).unwrap().compile(&model, &facts).unwrap();
        let x = Tensor::from_f64(dtype, &[x.len()], x);
        program.run(&[Value::host(x)]).unwrap()[0].to_host().unwrap().to_f64()
    }

    fn check(dtype: DType, op: &str, attrs: &[(&str, Attr)], x: &[f64], expected: &[f64]) {
        let y = value(dtype, op, attrs, x);
        let close = |(y, e): (&f64, &f64)| y == e || (y - e).abs() < 1e-6 * e.abs();
        assert!(y.len() == expected.len() && y.iter().zip(expected).all(close), "{op} {dtype}: {y:?}");
    }

    #[test]
    fn operators_are_what_onnx_says() {
        let infinite = f64::NEG_INFINITY;
        for dtype in [DType::F32, DType::F64] {
            let celu = [0.5 * ((-2.0f64).exp() - 1.0), 0.0, 2.0];
            check(dtype, "Celu", &[("alpha", Attr::Float(0.5))], &[-1.0, 0.0, 2.0], &celu);
            let small = (-20.0f64).exp();
            check(dtype, "Softplus", &[], &[infinite, -20.0, 500.0], &[0.0, small, 500.0]);
            check(dtype, "LogSoftmax", &[], &[infinite, 500.0, -500.0], &[infinite, 0.0, -1000.0]);
            check(dtype, "Selu", &[], &[1.0], &[1.050_701]);
            let own = [("alpha", Attr::Float(2.0)), ("gamma", Attr::Float(3.0))];
            check(dtype, "Selu", &own, &[-1.0, 1.0], &[6.0 * ((-1.0f64).exp() - 1.0), 3.0]);
        }
    }

    #[test]
    fn a_batch_normalization_may_have_computed_parameters() {
        for space in [vec![], vec![2], vec![2, 1, 2]] {
            let shape = [vec![1, 2], space].concat();
            let mut b = Builder::new("norm");
            let x = b.input("x", Fact::new(DType::F32, &shape));
            let parameters: Vec<_> = ["scale", "bias", "mean", "variance"]
                .map(|name| b.input(name, Fact::new(DType::F32, &[2])))
                .into_iter()
                .collect();
            let inputs: Vec<_> = std::iter::once(&x).chain(&parameters).collect();
            let y = b.op_with("BatchNormalization", &inputs, &[("epsilon", Attr::Float(1.0))]);
            b.set_fact(&y, Fact::new(DType::F32, &shape));
            b.output(&y);
            let (graph, facts) = b.finish();
            let model = Model::new(graph, WORKING_OPSET);
            let mut program = TractExecutor::new(1).unwrap().compile(&model, &facts).unwrap();
            let size: usize = shape.iter().product();
            let values = [vec![5.0; size], vec![2.0, 3.0], vec![0.0, 1.0], vec![4.0, 1.0], vec![0.0, 3.0]];
            let shapes = [&shape[..], &[2], &[2], &[2], &[2]];
            let feeds: Vec<Value> =
                shapes.iter().zip(&values).map(|(s, v)| Value::host(Tensor::f32(s, v))).collect();
            let y = program.run(&feeds).unwrap()[0].to_host().unwrap();
            let expected: Vec<f64> = (0..size).map(|i| if i < size / 2 { 2.0 } else { 7.0 }).collect();
            assert_eq!((y.shape(), y.to_f64()), (&shape[..], expected));
        }
    }

    #[test]
    fn sums_of_exponentials_do_not_overflow() {
        for keepdims in [0, 1] {
            for (x, expected) in [
                ([700.0, 700.0], 700.0 + std::f64::consts::LN_2),
                ([f64::NEG_INFINITY; 2], f64::NEG_INFINITY),
                ([f64::INFINITY, 0.0], f64::INFINITY),
            ] {
                let mut b = Builder::new("sum");
                let id = b.input("x", Fact::new(DType::F32, &[2]));
                let y = b.reduce("ReduceLogSumExp", &id, &[0], keepdims == 1);
                b.output(&y);
                let (graph, facts) = b.finish();
                let model = Model::new(graph, WORKING_OPSET);
                let mut program = TractExecutor::new(1).unwrap().compile(&model, &facts).unwrap();
                let y = program.run(&[Value::host(Tensor::from_f64(DType::F32, &[2], &x))]).unwrap();
                let y = y[0].to_host().unwrap();
                assert_eq!(y.shape(), &vec![1; keepdims][..]);
                assert!(y.to_f64()[0] == expected || (y.to_f64()[0] - expected).abs() < 1e-4, "{y:?}");
            }
        }
    }
}
