//! Data that don't fit the model are refused before anything is run, so that nobody waits for that.

use crate::transcript::Sandbox;
use onnx_merge::data::{Column, Dataset, Labels};
use onnx_merge::onnx::{Builder, DType, Dim, Fact, Facts, Model, Tensor, WORKING_OPSET};
use onnx_merge::runtime::{Compiled, Executor, ExecutorOptions, Value};
use onnx_merge::train::{self, DataSets, MergeRequest, Ranks, Silent, Task, TrainConfig};
use onnx_merge::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// Runs nothing.
struct Idle;

const ASKED: &str = "was asked to run something";

impl Executor for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }
    fn device(&self) -> String {
        String::new()
    }
    fn misses(&self, _: &Model) -> Vec<String> {
        vec![]
    }
    fn compile(&self, _: &Model, _: &Facts) -> Result<Box<dyn Compiled>> {
        Err(Error::executor("idle", ASKED))
    }
    fn upload(&self, _: &Tensor) -> Result<Value> {
        Err(Error::executor("idle", ASKED))
    }
    fn holds(&self, _: &Value) -> bool {
        false
    }
}

/// A model of rows of four numbers: as exporters write it, for one row or any number, its answer's shape worked out through a
/// `Shape` or not.
fn model(answer: &[usize], open: bool, declared_only: bool) -> Model {
    let width: usize = answer.iter().product();
    let mut b = Builder::new("small");
    let x = b.input("x", Fact::new(DType::F32, &[1, 4]));
    let w = b.initializer("w", Tensor::f32(&[4, width], &vec![0.1; 4 * width]));
    let y = b.matmul(&x, &w);
    let shape = [&[1], answer].concat();
    let y = match declared_only {
        false => b.reshape(&y, &shape),
        true => {
            let z = b.constant(Tensor::zeros(DType::F32, &shape));
            let sizes = b.op("Shape", &[&z]);
            b.op("Reshape", &[&y, &sizes])
        }
    };
    b.set_fact(&y, Fact::new(DType::F32, &shape));
    b.output_as("y", &y);
    let mut graph = b.finish().0;
    if open {
        let first = |shape: &mut Option<Vec<Dim>>| {
            if let Some(first) = shape.as_mut().and_then(|shape| shape.first_mut()) {
                *first = Dim::Named("N".into());
            }
        };
        graph.inputs.iter_mut().for_each(|input| first(&mut input.shape));
        graph.outputs.iter_mut().for_each(|output| first(&mut output.shape));
    }
    Model::new(graph, WORKING_OPSET)
}

fn dataset(width: usize, labels: Option<Tensor>) -> Dataset {
    let rows = 10;
    let x = Tensor::f32(&[rows, width], &vec![0.5; rows * width]);
    let labels = labels.map(|labels| Labels::from_tensor(Path::new("data"), "y", &labels).expect("labels"));
    Dataset::new(vec![Column { name: "x".into(), values: x }], labels).expect("a data set")
}

fn classes(of: impl Fn(usize) -> i64) -> Option<Tensor> {
    Some(Tensor::i64(&[10], &(0..10).map(of).collect::<Vec<_>>()))
}

/// What merging with an executor that can't run anything says.
fn refusal(target: &Model, train: Dataset, val: Option<Dataset>, task: Task) -> String {
    let sandbox = Sandbox::new().model("tgt.onnx", target);
    let request = MergeRequest {
        sources: vec![],
        target: sandbox.path("tgt.onnx"),
        output: sandbox.path("out.onnx"),
        data: DataSets { train, val, test: None, unlabelled: None, made_of: vec![] },
        invented: false,
        source_data: None,
        joint_data: None,
        trajectory: vec![],
        config: TrainConfig { task, ..TrainConfig::default() },
        resume: false,
        model_executor: Arc::new(Idle),
        adapter_executor: Arc::new(Idle),
        movable: false,
        options: ExecutorOptions::default(),
        ranks: Ranks::default(),
    };
    match train::merge(request, &mut Silent) {
        Ok(_) => panic!("nothing was run, and yet there is a result"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_runs() {
    let good = || dataset(4, classes(|i| i as i64 % 3));
    for (open, declared_only) in [(false, false), (true, false), (false, true), (true, true)] {
        let target = model(&[3], open, declared_only);
        let said = |train: Dataset, val: Option<Dataset>| refusal(&target, train, val, Task::Auto);
        let case = format!("batch open: {open}, by its declared shape: {declared_only}");
        // That the executor is asked at all once nothing is wrong.
        assert!(said(good(), Some(good())).contains(ASKED), "{case}");
        let wrong = [
            (said(dataset(5, classes(|_| 0)), None), "a row of 'x' is 5"),
            (said(good(), Some(dataset(5, classes(|_| 0)))), "a row of 'x' is 5"),
            (said(dataset(4, None), None), "no labels to learn from"),
            (said(good(), Some(dataset(4, None))), "there are no labels"),
            (said(dataset(4, classes(|i| i as i64 / 3)), None), "the label of row 9 is 3"),
            (said(good(), Some(dataset(4, classes(|i| 1 - i as i64)))), "the label of row 2 is -1"),
            (
                said(dataset(4, Some(Tensor::f32(&[10, 7], &[0.5; 70]))), None),
                "its labels have 7 numbers a row, but the model's output has 3",
            ),
        ];
        for (said, expected) in wrong {
            assert!(said.contains(expected), "{case}: {said}");
        }
    }
}

#[test]
fn labels_of_positions_are_refused_as_soon() {
    let target = model(&[6, 3], false, false);
    let labels =
        |positions: usize, class: i64| Some(Tensor::i64(&[10, positions], &vec![class; 10 * positions]));
    let said = |labels| refusal(&target, dataset(4, labels), None, Task::Classify);
    assert!(said(labels(6, 2)).contains(ASKED));
    assert!(said(labels(5, 2)).contains("its labels are 5 a row"), "{}", said(labels(5, 2)));
    assert!(said(labels(6, 3)).contains("the label at position 0 of row 0 is 3"), "{}", said(labels(6, 3)));
}

#[test]
fn eval_refuses_before_it_looks_for_an_executor() {
    let labels = |values: &[i64]| Tensor::i64(&[values.len()], values);
    let x = Tensor::f32(&[2, 4], &[0.5; 8]);
    let sandbox = Sandbox::new()
        .model("m.onnx", &model(&[3], false, false))
        .npz("range.npz", &[("x", &x), ("y", &labels(&[0, 3]))])
        .npz("none.npz", &[("x", &x)])
        .npz("good.npz", &[("x", &x), ("y", &labels(&[0, 2]))]);
    sandbox.transcript(
        "$ onnx-merge eval m.onnx --data range.npz --executor ort --ort-lib nothing.so\n\
         error: range.npz: the label of row 1 is 3, but the model tells 3 classes apart (0 to 2)\n...\n[exit 3]\n\
         $ onnx-merge eval m.onnx --data none.npz --executor ort --ort-lib nothing.so\n\
         error: none.npz: there are no labels\n...\n[exit 3]\n\
         $ onnx-merge eval m.onnx --data good.npz --executor ort --ort-lib nothing.so\n\
         error: [..]nothing.so[..]\n...\n[exit 5]\n",
    );
}
