//! Preparation judged by running: outputs before and after must agree, on every real model there is.

use super::*;
use crate::autodiff::facts::example_inputs;
use crate::onnx::{Builder, DType, Fact, Facts, Model, Tensor, ValueId};
use crate::runtime::{Executor, ExecutorChoice, ExecutorOptions, Value, open};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn real_models() -> Vec<PathBuf> {
    let Some(shared) = std::env::var_os("ONNX_MERGE_SHARED") else {
        println!("skipped: ONNX_MERGE_SHARED is not set");
        return vec![];
    };
    let only = std::env::var("ONNX_MERGE_ONLY").unwrap_or_default();
    let mut files = vec![];
    for folder in ["models", "models/zoo"] {
        for entry in std::fs::read_dir(Path::new(&shared).join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "onnx") && path.to_string_lossy().contains(&only) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn executor() -> Arc<dyn Executor> {
    open(ExecutorChoice::Auto, &ExecutorOptions { threads: Some(1), ..Default::default() }).unwrap()
}

fn outputs(
    model: &Model,
    example: &HashMap<ValueId, Tensor>,
    executor: &dyn Executor,
) -> crate::Result<HashMap<ValueId, Tensor>> {
    let facts: Facts = example.iter().map(|(id, t)| (id.clone(), Fact::of(t))).collect();
    let feeds: Vec<Value> =
        model.graph.required_inputs().map(|i| Value::host(example[&i.id].clone())).collect();
    let values = executor.compile(model, &facts)?.run(&feeds)?;
    model.graph.outputs.iter().zip(values).map(|(o, v)| Ok((o.id.clone(), v.to_host()?))).collect()
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let close = |(x, y): (&f64, &f64)| {
        (x - y).abs() <= 1e-4 * (1.0 + y.abs()) || x == y || (x.is_nan() && y.is_nan())
    };
    a.shape() == b.shape() && a.dtype() == b.dtype() && a.to_f64().iter().zip(&b.to_f64()).all(close)
}

#[test]
fn preparing_real_models_keeps_their_values() {
    let executor = executor();
    let (mut proved, mut open, mut single, mut refused) = (0, 0, 0, 0);
    for path in real_models() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let file = crate::onnx::read(&path).unwrap();
        let upgraded = upgrade(&file.model).unwrap();
        match lift(&upgraded, 3, &*executor) {
            Ok(lifted) => {
                let what = match &lifted.lifting {
                    Lifting::Proved => {
                        proved += 1;
                        "proved".to_owned()
                    }
                    Lifting::Already => {
                        open += 1;
                        "open".to_owned()
                    }
                    Lifting::SingleRows { why } => {
                        single += 1;
                        // What was settled must still give what the file gives.
                        let (a, b) = (
                            outputs(&file.model, &lifted.example, &*executor),
                            outputs(&lifted.model, &lifted.example, &*executor),
                        );
                        if let (Ok(a), Ok(b)) = (a, b) {
                            let random = file.model.graph.nodes.iter().any(|n| n.op.starts_with("Random"));
                            for (id, tensor) in b {
                                assert!(random || same(&tensor, &a[&id]), "{name}: output {id} has changed");
                            }
                        }
                        format!("single rows: {why}")
                    }
                };
                println!("{name}: {what}");
            }
            Err(e) => {
                refused += 1;
                println!("{name}: refused: {e}");
            }
        }
    }
    println!("{proved} proved, {open} open, {single} single rows, {refused} refused");
}

/// A convolutional net whose export fixed the batch to 1 in a Reshape.
fn fixed_to_one() -> Model {
    let mut b = Builder::new("fixed");
    let x = b.input("x", Fact::new(DType::F32, &[1, 1, 4, 4]));
    let w =
        b.initializer("w", Tensor::f32(&[2, 1, 3, 3], &(0..18).map(|i| i as f32 * 0.1).collect::<Vec<_>>()));
    let h = b.op_with("Conv", &[&x, &w], &[("auto_pad", "SAME_UPPER".into())]);
    b.set_fact(&h, Fact::new(DType::F32, &[1, 2, 4, 4]));
    let h = b.reshape(&h, &[1, 32]);
    let v =
        b.initializer("v", Tensor::f32(&[32, 3], &(0..96).map(|i| (i % 7) as f32 * 0.1).collect::<Vec<_>>()));
    let y = b.matmul(&h, &v);
    b.output(&y);
    Model::new(b.finish().0, 18)
}

#[test]
fn a_batch_of_one_is_lifted_and_proved() {
    let executor = executor();
    let model = fixed_to_one();
    let lifted = lift(&model, 5, &*executor).unwrap();
    assert_eq!(lifted.lifting, Lifting::Proved);
    let y = outputs(&lifted.model, &lifted.example, &*executor).unwrap();
    assert_eq!(y.values().next().unwrap().shape(), [5, 3]);
    assert!(lifted.model.graph.nodes.iter().all(|n| n.str("auto_pad").is_none()));
}

#[test]
fn rows_that_influence_each_other_stay_single() {
    let mut b = Builder::new("mixing");
    let x = b.input("x", Fact::new(DType::F32, &[1, 4]));
    let mean = b.mean(&x, &[0], true);
    let y = b.sub(&x, &mean);
    b.output(&y);
    let lifted = lift(&Model::new(b.finish().0, 18), 3, &*executor()).unwrap();
    assert!(
        matches!(&lifted.lifting, Lifting::SingleRows { why } if why.contains("reduces over the rows")),
        "{:?}",
        lifted.lifting
    );
}

#[test]
fn decided_branches_are_inlined() {
    use crate::onnx::{Attr, Graph, Node, ValueInfo};
    let mut b = Builder::new("branch");
    let x = b.input("x", Fact::new(DType::F32, &[2, 2]));
    let shape = b.op("Shape", &[&x]);
    let (one, two) = (b.constant(Tensor::i64(&[], &[1])), b.constant(Tensor::i64(&[], &[2])));
    let size = b.op("Gather", &[&shape, &one]);
    let condition = b.op("Equal", &[&size, &two]);
    let branch = |op: &str| {
        let node = Node::new(op, &[&x], &[&ValueId::new("inner")]);
        let info = ValueInfo::new(ValueId::new("inner"), &Fact::new(DType::F32, &[2, 2]));
        Attr::Graph(Box::new(Graph {
            name: op.into(),
            nodes: vec![node],
            outputs: vec![info],
            ..Graph::default()
        }))
    };
    let y = ValueId::new("y");
    b.push(
        Node::new("If", &[&condition], &[&y])
            .with("then_branch", branch("Abs"))
            .with("else_branch", branch("Neg")),
    );
    b.set_fact(&y, Fact::new(DType::F32, &[2, 2]));
    b.output(&y);
    let model = Model::new(b.finish().0, 18);
    let example = example_inputs(&model.graph, 1, 1).unwrap();
    let (settled, _) = settle(&model, &*executor(), &example).unwrap();
    let ops: Vec<&str> = settled.graph.nodes.iter().map(|n| n.op.as_str()).collect();
    assert_eq!(ops, ["Abs", "Identity"]);
}

/// A vector of five numbers, cut into twos, 7 and 8 put in front, joined without the last part, and that part alone.
fn sequences() -> Model {
    let mut b = Builder::new("sequences");
    let x = b.input("x", Fact::new(DType::F32, &[5]));
    let (two, front, last) = (Tensor::i64(&[], &[2]), Tensor::i64(&[], &[0]), Tensor::i64(&[], &[-1]));
    let [two, front, last] = [two, front, last].map(|t| b.constant(t));
    let new = b.constant(Tensor::f32(&[2], &[7.0, 8.0]));
    let parts = b.op_with("SplitToSequence", &[&x, &two], &[("axis", 0i64.into())]);
    let more = b.op("SequenceInsert", &[&parts, &new, &front]);
    let end = b.op("SequenceAt", &[&more, &last]);
    let fewer = b.op("SequenceErase", &[&more]);
    let joined = b.op_with("ConcatFromSequence", &[&fewer], &[("axis", 0i64.into())]);
    for id in [&joined, &end] {
        b.set_fact(id, Fact::new(DType::F32, &[0]));
        b.output(id);
    }
    let mut model = Model::new(b.finish().0, 18);
    model.graph.outputs.iter_mut().for_each(|o| o.shape = None);
    model
}

#[test]
fn sequences_of_known_length_are_taken_apart() {
    let executor = executor();
    let model = sequences();
    let example = HashMap::from([("x".into(), Tensor::f32(&[5], &[1.0, 2.0, 3.0, 4.0, 5.0]))]);
    if executor.name() != "ort" {
        println!("skipped: only ONNX Runtime runs sequences");
        return;
    }
    let (settled, probed) = settle(&model, &*executor, &example).unwrap();
    assert!(settled.graph.nodes.iter().all(|n| !n.op.contains("Sequence")), "{:?}", settled.graph.nodes);
    let made = settled.graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
    made.for_each(|id| assert!(probed.facts.contains_key(id), "{id} has no fact"));
    let before = outputs(&model, &example, &*executor).unwrap();
    let after = outputs(&settled, &example, &*executor).unwrap();
    assert_eq!(before, after);
    assert!(after.values().any(|t| *t.to_f32() == [7.0, 8.0, 1.0, 2.0, 3.0, 4.0]), "{after:?}");
}

#[test]
fn scales_of_images_that_are_put_together_become_constants() {
    let mut b = Builder::new("resize");
    let x = b.input("x", Fact::new(DType::F32, &[1, 1, 2, 2]));
    let (one, two) = (Tensor::f32(&[2], &[1.0, 1.0]), Tensor::f32(&[2], &[2.0, 2.0]));
    let (one, two) = (b.constant(one), b.constant(two));
    let scales = b.concat(&[&one, &two], 0);
    let y = b.op_full("", "Resize", &[Some(&x), None, Some(&scales)], &[], 1).remove(0);
    b.set_fact(&y, Fact::new(DType::F32, &[1, 1, 4, 4]));
    b.output(&y);
    let model = Model::new(b.finish().0, 18);
    let example = example_inputs(&model.graph, 1, 1).unwrap();
    let (settled, _) = settle(&model, &*executor(), &example).unwrap();
    assert_eq!(settled.graph.initializers[&scales].to_f64(), [1.0, 1.0, 2.0, 2.0]);
    assert_eq!(settled.graph.nodes.len(), 1);
}
