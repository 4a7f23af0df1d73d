//! Gradients stay what they are, bit for bit, and memory falls to what was asked for.

use super::cursor::Cursor;
use super::*;
use crate::autodiff::{backward, lower};
use crate::onnx::{Attr, Builder, DType, Fact, Model, Node, Tensor, WORKING_OPSET};
use crate::runtime::{Executor, TractExecutor, Value};
use std::collections::HashSet;

/// For 64 rows, `depth` blocks of dense layer, tanh, and a product with a gate, with a connection around each, and the gradients of all weights.
fn deep(depth: usize, width: usize) -> (Graph, Facts, Vec<ValueId>) {
    let mut b = Builder::new("deep");
    let mut x = b.input("x", Fact::new(DType::F32, &[64, width]));
    let mut weights = vec![];
    for i in 0..depth {
        let w = b.input(&format!("w{i}"), Fact::new(DType::F32, &[width, width]));
        let product = b.matmul(&x, &w);
        let activated = b.op("Tanh", &[&product]);
        let gate = b.op("Sigmoid", &[&product]);
        let gated = b.mul(&activated, &gate);
        x = b.add(&x, &gated);
        weights.push(w);
    }
    let square = b.mul(&x, &x);
    let loss = b.sum_all(&square);
    let one = b.scalar_like(&loss, 1.0);
    let gradients = backward(&mut b, &[(loss.clone(), one)], &weights).unwrap();
    let loss = b.output_as("loss", &loss);
    for w in &weights {
        b.output_as(&format!("{w}.grad"), &gradients[w]);
    }
    let (graph, facts) = b.finish();
    let (graph, facts) = lower::lower(graph, facts).unwrap();
    (graph, facts, vec![loss])
}

/// The graph that puts out the loss and its gradients.
fn with_gradients(mut b: Builder, loss: &ValueId, wrt: &[ValueId]) -> (Graph, Facts) {
    let one = b.scalar_like(loss, 1.0);
    let gradients = backward(&mut b, &[(loss.clone(), one)], wrt).unwrap();
    b.output(loss);
    wrt.iter().for_each(|value| b.output(&gradients[value]));
    b.finish()
}

fn rewritten(graph: Graph, facts: Facts, ends: &[ValueId], budget: Budget) -> (Graph, Facts, Saving) {
    recompute(Whole { graph, facts, ends }, None, budget)
}

fn run(graph: &Graph, facts: &Facts) -> Vec<Vec<u8>> {
    let executor = TractExecutor::new(1).unwrap();
    let inputs: Vec<Value> = graph
        .required_inputs()
        .enumerate()
        .map(|(k, input)| {
            let fact = input.fact().unwrap();
            let numbers: Vec<f32> =
                (0..fact.len()).map(|i| ((i * 7 + k * 3) % 11) as f32 / 11.0 - 0.5).collect();
            Value::host(Tensor::f32(&fact.shape, &numbers))
        })
        .collect();
    let model = Model::new(graph.clone(), WORKING_OPSET);
    let outputs = executor.compile(&model, facts).unwrap().run(&inputs).unwrap();
    outputs.iter().map(|output| output.to_host().unwrap().bytes().to_vec()).collect()
}

#[test]
fn gradients_stay_bit_for_bit_and_memory_falls() {
    let (graph, facts, ends) = deep(24, 8);
    let expected = run(&graph, &facts);
    let (least, known, saving) = rewritten(graph.clone(), facts.clone(), &ends, Budget::Least);
    assert!(saving.peak * 3 < saving.peak_without, "{saving:?}");
    assert!(saving.kept < saving.kept_without && saving.share <= 1.0 && !saving.misses(), "{saving:?}");
    assert_eq!(run(&least, &known), expected);
    let mut peaks = vec![];
    for bytes in [saving.peak, saving.peak_without / 2, saving.peak_without * 4 / 5, saving.peak_without] {
        let (graph, facts, saving) = rewritten(graph.clone(), facts.clone(), &ends, Budget::Bytes(bytes));
        assert!(saving.peak <= bytes && !saving.misses(), "{bytes}: {saving:?}");
        assert_eq!(run(&graph, &facts), expected);
        peaks.push((saving.share, saving.nodes));
    }
    assert!(peaks.is_sorted_by(|a, b| a.0 >= b.0), "{peaks:?}");
    assert_eq!(peaks[3], (0.0, 0));
}

#[test]
fn what_is_cheap_is_computed_again_before_products_are() {
    let (graph, facts, ends) = deep(24, 64);
    let plain = Tape::of(&graph, &facts, &ends);
    let whole = usage(&plain, &Layout::plain(&plain)).peak;
    let (again, ..) = rewritten(graph.clone(), facts.clone(), &ends, Budget::Bytes(whole * 7 / 10));
    let products = |graph: &Graph| graph.nodes.iter().filter(|n| n.is("MatMul")).count();
    assert!(again.nodes.len() > graph.nodes.len());
    assert_eq!(products(&again), products(&graph));
    let (again, ..) = rewritten(graph.clone(), facts, &ends, Budget::Least);
    assert!(products(&again) > products(&graph));
}

#[test]
fn a_budget_that_nothing_reaches_is_told() {
    let (graph, facts, ends) = deep(6, 8);
    let (_, _, least) = rewritten(graph.clone(), facts.clone(), &ends, Budget::Least);
    let (_, _, saving) = rewritten(graph, facts, &ends, Budget::Bytes(1));
    assert!(saving.misses() && saving.peak == least.peak, "{saving:?}");
}

/// Executors merge nodes that read the same, and put off nothing: both would undo the saving.
#[test]
fn every_copy_waits_for_the_way_back() {
    let (graph, facts, ends) = deep(24, 8);
    let plain = Tape::of(&graph, &facts, &ends);
    let late = plain.steps[plain.forward..].iter().flat_map(|step| &step.makes);
    let late: Vec<ValueId> = late.map(|&value| plain.values[value].id.clone()).chain(ends.clone()).collect();
    let (again, _, saving) = rewritten(graph.clone(), facts.clone(), &ends, Budget::Least);
    let mut shared = again.clone();
    lower::share(&mut shared);
    let own = |graph: &Graph| graph.nodes.iter().filter(|node| node.name.starts_with("again/")).count();
    assert_eq!(own(&shared), own(&again));
    assert!(own(&again) >= saving.nodes);
    let mut waits: HashSet<ValueId> = late.into_iter().collect();
    for node in &again.nodes {
        let waiting = node.inputs.iter().flatten().any(|id| waits.contains(id));
        assert!(waiting || !node.name.starts_with("again/"), "{}", node.name);
        waits.extend(node.outputs.iter().flatten().filter(|_| waiting).cloned());
    }
}

#[test]
fn chance_isnt_drawn_twice() {
    let mut b = Builder::new("noisy");
    let x = b.input("x", Fact::new(DType::F32, &[16, 8]));
    let mut y = x;
    let mut weights = vec![];
    for i in 0..12 {
        let w = b.input(&format!("w{i}"), Fact::new(DType::F32, &[8, 8]));
        y = b.matmul(&y, &w);
        let noise = b.op_with("RandomNormalLike", &[&y], &[("scale", Attr::Float(0.1))]);
        b.set_fact(&noise, Fact::new(DType::F32, &[16, 8]));
        let noisy = b.mul(&y, &noise);
        y = b.op("Tanh", &[&noisy]);
        weights.push(w);
    }
    let loss = b.sum_all(&y);
    let (graph, facts) = with_gradients(b, &loss, &weights);
    let random = |graph: &Graph| graph.nodes.iter().filter(|n| n.is("RandomNormalLike")).count();
    let (again, _, saving) = rewritten(graph.clone(), facts, std::slice::from_ref(&loss), Budget::Least);
    assert!(saving.nodes > 0 && saving.peak < saving.peak_without, "{saving:?}");
    assert_eq!(random(&again), random(&graph));
}

#[test]
fn a_loop_is_computed_again_as_a_whole() {
    let (graph, facts, ends) = looped(10);
    let (again, known, saving) = rewritten(graph.clone(), facts.clone(), &ends, Budget::Least);
    let loops = |graph: &Graph| graph.nodes.iter().filter(|n| n.is("Scan")).count();
    assert!(saving.peak < saving.peak_without && loops(&again) > loops(&graph), "{saving:?}");
    assert_eq!(run(&again, &known), run(&graph, &facts));
}

/// Layers that sum over time, `y[t] = tanh(x[t] · scale + y[t−1])`, as loops that read the scale from outside.
fn looped(depth: usize) -> (Graph, Facts, Vec<ValueId>) {
    let mut b = Builder::new("looped");
    let mut x = b.input("x", Fact::new(DType::F32, &[32, 16]));
    let mut scales = vec![];
    for i in 0..depth {
        let scale = b.input(&format!("scale{i}"), Fact::new(DType::F32, &[16]));
        let scaled = b.mul(&scale, &scale);
        let mut inner = Builder::new("body");
        let before = inner.input(&format!("before{i}"), Fact::new(DType::F32, &[16]));
        let now = inner.input(&format!("now{i}"), Fact::new(DType::F32, &[16]));
        inner.set_scope(&format!("body{i}"));
        inner.set_fact(&scaled, Fact::new(DType::F32, &[16]));
        let product = inner.mul(&now, &scaled);
        let sum = inner.add(&product, &before);
        let next = inner.op("Tanh", &[&sum]);
        inner.output(&next);
        let put = inner.op("Identity", &[&next]);
        inner.output(&put);
        let start = b.constant(Tensor::zeros(DType::F32, &[16]));
        let (last, all) = (b.fresh("last"), b.fresh("all"));
        let mut node = Node::new("Scan", &[&start, &x], &[&last, &all]).with("num_scan_inputs", 1);
        let (body, inner_facts) = inner.finish();
        node.attrs.insert("body".into(), Attr::Graph(Box::new(body)));
        inner_facts.into_iter().for_each(|(id, fact)| b.set_fact(&id, fact));
        b.set_fact(&last, Fact::new(DType::F32, &[16]));
        b.set_fact(&all, Fact::new(DType::F32, &[32, 16]));
        b.graph_mut().nodes.push(node);
        x = all;
        scales.push(scale);
    }
    let loss = b.sum_all(&x);
    let (graph, facts) = with_gradients(b, &loss, &scales);
    let (graph, facts) = lower::lower(graph, facts).unwrap();
    (graph, facts, vec![loss])
}

#[test]
fn usage_counts_what_is_still_to_be_read() {
    let mut b = Builder::new("chain");
    let x = b.input("x", Fact::new(DType::F32, &[4]));
    let mut y = b.op("Exp", &[&x]);
    for _ in 0..3 {
        let flat = b.reshape(&y, &[2, 2]);
        y = b.op("Exp", &[&flat]);
        y = b.reshape(&y, &[4]);
    }
    b.output(&y);
    let (graph, facts) = b.finish();
    let tape = Tape::of(&graph, &facts, std::slice::from_ref(&y));
    let layout = Layout::plain(&tape);
    // Reshapes are views, and the last value is an output: two of 16 bytes at a time.
    assert_eq!(usage(&tape, &layout).peak, 32);
    assert!(Cursor::last_reads(&tape, &layout, true).len() >= tape.values.len());
}
