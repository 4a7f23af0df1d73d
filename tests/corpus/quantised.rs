//! Quantised layers, straight-through: where nothing saturates, their gradients are those of the same layers with the
//! dequantised weights in real numbers.

use crate::kernels::{ort, run};
use onnx_merge::autodiff::{backward, facts::probe};
use onnx_merge::onnx::{Builder, DType, Fact, Graph, Model, Node, Tensor, ValueId, ValueInfo};
use onnx_merge::runtime::Executor;
use std::collections::HashMap;

fn id(name: &str) -> ValueId {
    ValueId::new(name)
}

/// `outputs = op(inputs)` in words.
fn node(text: &str) -> Node {
    let (outputs, call) = text.split_once(" = ").unwrap();
    let mut words = call.split(' ');
    let op = words.next().unwrap().to_owned();
    let ids = |words: &mut dyn Iterator<Item = &str>| words.map(|w| Some(id(w))).collect();
    Node { op, inputs: ids(&mut words), outputs: ids(&mut outputs.split(' ')), ..Node::default() }
}

/// A model from `x` to `y`.
fn model(x: &Tensor, constants: &[(&str, Tensor)], nodes: Vec<Node>) -> Model {
    let graph = Graph {
        name: "quantised".into(),
        inputs: vec![ValueInfo::new(id("x"), &Fact::of(x))],
        outputs: vec![ValueInfo { id: id("y"), dtype: None, shape: None }],
        nodes,
        initializers: constants.iter().map(|(name, tensor)| (id(name), tensor.clone())).collect(),
    };
    Model::new(graph, 18)
}

/// y and dΣ(y · seed)/dx, where the seed counts up.
fn gradient(executor: &dyn Executor, model: &Model, x: &Tensor) -> (Tensor, Tensor) {
    let point = HashMap::from([(id("x"), x.clone())]);
    let probed = probe(executor, model, &point).unwrap();
    let mut b = Builder::on(model.graph.clone(), probed.facts);
    let fact = b.fact(&id("y")).clone();
    let seed: Vec<f64> = (0..fact.len()).map(|i| (i % 5) as f64 - 1.5).collect();
    let seed = b.constant(Tensor::from_f64(DType::F32, &fact.shape, &seed));
    let found = backward(&mut b, &[(id("y"), seed)], &[id("x")]).unwrap();
    b.output_as("x.grad", &found[&id("x")]);
    let model = Model { graph: b.finish().0, ..model.clone() };
    let mut results = run(executor, &model, &point).unwrap().into_iter();
    (results.next().unwrap(), results.next().unwrap())
}

fn agree(x: &Tensor, quantised: &Model, real: &Model, rounding: f64) {
    let Some(executor) = ort() else {
        println!("skipped: ONNX Runtime isn't here");
        return;
    };
    let ((y, dx), (real_y, real_dx)) = (gradient(&*executor, quantised, x), gradient(&*executor, real, x));
    let far = |a: &Tensor, b: &Tensor| {
        a.to_f64().iter().zip(&b.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(far(&y, &real_y) <= rounding, "values: {:?} for {:?}", y.to_f64(), real_y.to_f64());
    assert!(far(&dx, &real_dx) <= 1e-4, "gradients: {:?} for {:?}", dx.to_f64(), real_dx.to_f64());
    assert!(real_dx.to_f64().iter().any(|&v| v != 0.0));
}

fn spread(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::from_f64(DType::F32, shape, &(0..count).map(|i| (i as f64 * 0.37).sin()).collect::<Vec<_>>())
}

fn i8s(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::i64(shape, &(0..count as i64).map(|i| (i * 37) % 100 - 50).collect::<Vec<_>>()).cast(DType::I8)
}

fn scalar(dtype: DType, value: f64) -> Tensor {
    Tensor::scalar(dtype, value)
}

/// `(w − zero) · scale`.
fn dequantised(w: &Tensor, zero: f64, scale: f64) -> Tensor {
    let values: Vec<f64> = w.to_f64().iter().map(|v| (v - zero) * scale).collect();
    Tensor::from_f64(DType::F32, w.shape(), &values)
}

fn scales(zero: DType) -> Vec<(&'static str, Tensor)> {
    vec![
        ("xs", scalar(DType::F32, 0.01)),
        ("xz", scalar(zero, 3.0)),
        ("ws", scalar(DType::F32, 0.02)),
        ("wz", scalar(DType::I8, 5.0)),
        ("ys", scalar(DType::F32, 0.1)),
        ("yz", scalar(zero, 1.0)),
    ]
}

#[test]
fn dynamically_quantised_products_pass_the_gradient_of_real_ones() {
    let (x, w) = (spread(&[3, 4]), i8s(&[4, 2]));
    let quantised = model(
        &x,
        &[("w", w.clone()), ("wz", scalar(DType::I8, 5.0)), ("ws", scalar(DType::F32, 0.02))],
        vec![
            node("q s z = DynamicQuantizeLinear x"),
            node("sum = MatMulInteger q w z wz"),
            node("real = Cast sum").with("to", 1i64),
            node("both = Mul s ws"),
            node("y = Mul real both"),
        ],
    );
    let real = model(&x, &[("w", dequantised(&w, 5.0, 0.02))], vec![node("y = MatMul x w")]);
    agree(&x, &quantised, &real, 0.05);
}

#[test]
fn dynamically_quantised_convolutions_pass_the_gradient_of_real_ones() {
    let (x, w) = (spread(&[2, 3, 5, 5]), i8s(&[4, 3, 3, 3]).cast(DType::U8));
    let pads = ("pads", vec![1i64, 0, 1, 0]);
    let quantised = model(
        &x,
        &[("w", w.clone()), ("wz", scalar(DType::U8, 128.0)), ("ws", scalar(DType::F32, 0.02))],
        vec![
            node("q s z = DynamicQuantizeLinear x"),
            node("sum = ConvInteger q w z wz").with(pads.0, pads.1.clone()),
            node("real = Cast sum").with("to", 1i64),
            node("both = Mul s ws"),
            node("y = Mul real both"),
        ],
    );
    let real =
        model(&x, &[("w", dequantised(&w, 128.0, 0.02))], vec![node("y = Conv x w").with(pads.0, pads.1)]);
    agree(&x, &quantised, &real, 0.4);
}

#[test]
fn quantised_products_pass_the_gradient_of_real_ones() {
    let (x, w) = (spread(&[3, 4]), i8s(&[4, 2]));
    let mut constants = scales(DType::I8);
    constants.push(("w", w.clone()));
    let quantised = model(
        &x,
        &constants,
        vec![
            node("q = QuantizeLinear x xs xz"),
            node("p = QLinearMatMul q xs xz w ws wz ys yz"),
            node("y = DequantizeLinear p ys yz"),
        ],
    );
    let real = model(&x, &[("w", dequantised(&w, 5.0, 0.02))], vec![node("y = MatMul x w")]);
    agree(&x, &quantised, &real, 0.1);
}

#[test]
fn quantised_convolutions_pass_the_gradient_of_real_ones() {
    let (x, w) = (spread(&[2, 2, 5, 5]), i8s(&[4, 2, 3, 3]));
    let mut constants = scales(DType::I8);
    // Weights have a scale and a zero point for each channel, and there is a bias.
    constants.retain(|c| c.0 != "ws" && c.0 != "wz");
    constants.push(("ws", Tensor::f32(&[4], &[0.02, 0.01, 0.02, 0.015])));
    constants.push(("wz", Tensor::i64(&[4], &[0, 0, 0, 0]).cast(DType::I8)));
    constants.push(("w", w.clone()));
    constants.push(("bias", Tensor::i64(&[4], &[100, -50, 0, 70]).cast(DType::I32)));
    let attrs = |node: Node| {
        node.with("strides", vec![2i64, 1])
            .with("pads", vec![1i64, 1, 1, 1])
            .with("kernel_shape", vec![3i64, 3])
    };
    let quantised = model(
        &x,
        &constants,
        vec![
            node("q = QuantizeLinear x xs xz"),
            attrs(node("p = QLinearConv q xs xz w ws wz ys yz bias")),
            node("y = DequantizeLinear p ys yz"),
        ],
    );
    let scale = [0.02, 0.01, 0.02, 0.015];
    let values: Vec<f64> = w.to_f64().iter().enumerate().map(|(i, v)| v * scale[i / 18]).collect();
    let bias: Vec<f64> = [100.0, -50.0, 0.0, 70.0].iter().zip(scale).map(|(b, s)| b * s * 0.01).collect();
    let real = model(
        &x,
        &[
            ("w", Tensor::from_f64(DType::F32, &[4, 2, 3, 3], &values)),
            ("b", Tensor::from_f64(DType::F32, &[4], &bias)),
        ],
        vec![attrs(node("y = Conv x w b"))],
    );
    agree(&x, &quantised, &real, 0.15);
}

#[test]
fn what_saturates_gets_nothing() {
    let Some(executor) = ort() else { return };
    let (x, w) = (spread(&[3, 4]), i8s(&[4, 2]));
    let mut constants = scales(DType::I8);
    constants.retain(|c| c.0 != "ys");
    constants.push(("ys", scalar(DType::F32, 1e-4)));
    constants.push(("w", w));
    let quantised = model(
        &x,
        &constants,
        vec![
            node("q = QuantizeLinear x xs xz"),
            node("p = QLinearMatMul q xs xz w ws wz ys yz"),
            node("y = DequantizeLinear p ys yz"),
        ],
    );
    let (_, dx) = gradient(&*executor, &quantised, &x);
    assert!(dx.to_f64().iter().all(|&v| v == 0.0), "{:?}", dx.to_f64());
}
