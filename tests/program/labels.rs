//! What labels mean, in the forms in which people have them.

use crate::merge::{report, run};
use crate::transcript::{Sandbox, npy, npy_of, npy_words};
use onnx_merge::onnx::{Builder, DType, Fact, Model, Tensor, ValueId, WORKING_OPSET};

const QUICK: &str = "-o out.onnx --executor tract --steps 200 --lr 0.05";

/// A linear model of two numbers, with `weights` for each number that comes out of `end`.
fn linear(weights: &[[f32; 2]], end: impl FnOnce(&mut Builder, &ValueId) -> ValueId) -> Model {
    let mut b = Builder::new("linear");
    let x = b.input("x", Fact::new(DType::F32, &[1, 2]));
    let columns: Vec<f32> = (0..2).flat_map(|i| weights.iter().map(move |w| w[i])).collect();
    let w = b.initializer("w", Tensor::f32(&[2, weights.len()], &columns));
    let y = b.matmul(&x, &w);
    let y = end(&mut b, &y);
    b.output_as("y", &y);
    Model::new(b.finish().0, WORKING_OPSET)
}

fn as_it_is(_: &mut Builder, y: &ValueId) -> ValueId {
    y.clone()
}

/// Forty points, and which of them lie on the right.
fn points() -> (Tensor, Vec<bool>) {
    let x: Vec<f32> = (0..80i32).map(|i| ((i * 37 + 11) % 80 - 40) as f32 / 20.0 + 0.01).collect();
    let right = x.chunks(2).map(|point| point[0] > 0.0).collect();
    (Tensor::f32(&[40, 2], &x), right)
}

#[test]
fn a_word_is_the_same_class_in_every_table() {
    let truth = linear(&[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], as_it_is);
    let rows = |kinds: &[(&str, &str)]| {
        let lines: Vec<String> =
            kinds.iter().map(|(kind, point)| format!("{point},{kind}\n").repeat(8)).collect();
        format!("a,b,kind\n{}", lines.concat())
    };
    let kinds = [("ant", "3,0"), ("bee", "-3,0"), ("cat", "0,3")];
    let sandbox = Sandbox::new()
        .model("m.onnx", &truth)
        .file("all.csv", rows(&kinds))
        .file("some.csv", rows(&kinds[1..]));
    for (train, val) in [("all.csv", "some.csv"), ("some.csv", "all.csv")] {
        let report = report(&sandbox, &format!("tune m.onnx {QUICK} --data {train} --val {val}"), 4);
        assert_eq!(report.untouched.val, Some(1.0), "trained on {train}");
    }
    sandbox.transcript(
        "$ onnx-merge eval m.onnx --data some.csv --executor tract
         note: the classes are numbered in the order of their names: 0 'bee', 1 'cat'
         note: 2 classes have names, but the model tells 3 apart: [..]
         m.onnx: accuracy 0.00 %, [..]
         $ onnx-merge tune m.onnx -o out.onnx --data some.csv --executor tract --steps 2 --lr 0
         ...
         note: there are no training rows of 1 of the 3 classes that the model tells apart: it may unlearn these
         ...
         [exit 4]",
    );
}

#[test]
fn a_word_is_the_same_class_in_every_array() {
    let truth = linear(&[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], as_it_is);
    let (words, points) = (["ant", "bee", "cat"], [3.0, 0.0, -3.0, 0.0, 0.0, 3.0]);
    let arrays = |from: usize| {
        let x = Tensor::f32(&[8 * (3 - from), 2], &points[2 * from..].repeat(8));
        [("x", npy(&x)), ("y", npy_words(&words[from..].repeat(8)))]
    };
    let objects = [("x", npy(&Tensor::f32(&[1, 2], &[0.0; 2]))), ("y", npy_of("|O", &[1], &[0; 8]))];
    let sandbox = Sandbox::new()
        .model("m.onnx", &truth)
        .archive("all.npz", arrays(0))
        .archive("some.npz", arrays(1))
        .archive("objects.npz", objects);
    for (train, val) in [("all.npz", "some.npz"), ("some.npz", "all.npz")] {
        let report = report(&sandbox, &format!("tune m.onnx {QUICK} --data {train} --val {val}"), 4);
        assert_eq!(report.untouched.val, Some(1.0), "trained on {train}");
    }
    sandbox.transcript(
        "$ onnx-merge eval m.onnx --data all.npz --executor tract
         note: the classes are numbered in the order of their names: 0 'ant', 1 'bee', 2 'cat'
         m.onnx: accuracy 100.00 %, [..]
         $ onnx-merge eval m.onnx --data objects.npz --executor tract
         error: objects.npz: array 'y': arrays of Python objects (pickled) are not read, because reading them runs code; \
         array.astype(str) makes words of objects[..]
         [exit 3]
         $ onnx-merge eval m.onnx --data all.npz --label x --executor tract
         error: all.npz: array 'y': it holds text: words can only be labels (--label names their array)
         [exit 3]",
    );
}

#[test]
fn one_number_tells_two_classes_apart() {
    let (x, right) = points();
    let model = linear(&[[0.1, 1.0]], |b, y| b.op("Sigmoid", &[y]));
    let classes: Vec<i64> = right.iter().map(|&right| i64::from(right)).collect();
    let sandbox = Sandbox::new()
        .model("m.onnx", &model)
        .npz("d.npz", &[("x", &x), ("y", &Tensor::i64(&[40], &classes))]);
    let report = report(&sandbox, &format!("tune m.onnx {QUICK} --data d.npz --val d.npz"), 0);
    assert_eq!(report.metric.name, "accuracy");
    assert!(report.shipped.val > report.untouched.val);
    let eval = |model: &str| {
        let said = run(&sandbox, &format!("eval {model} --data d.npz --executor tract --json")).stdout;
        serde_json::from_slice::<serde_json::Value>(&said).unwrap()["accuracy"].as_f64()
    };
    assert_eq!((eval("m.onnx"), eval("out.onnx")), (report.untouched.val, report.shipped.val));
}

#[test]
fn whole_numbers_are_values_of_a_model_that_gives_one() {
    let (x, right) = points();
    let scores: Vec<i64> = right.iter().map(|&right| if right { 7 } else { 3 }).collect();
    let sandbox = Sandbox::new()
        .model("m.onnx", &linear(&[[1.0, 0.0]], as_it_is))
        .npz("d.npz", &[("x", &x), ("y", &Tensor::i64(&[40], &scores))]);
    let report =
        report(&sandbox, &format!("tune m.onnx {QUICK} --data d.npz --val d.npz --significance 1"), 0);
    assert_eq!(report.metric.name, "mse");
    sandbox.transcript(
        "$ onnx-merge eval m.onnx --data d.npz --executor tract
         m.onnx: mean squared error [..]",
    );
}

#[test]
fn one_hot_vectors_are_classes() {
    let (x, right) = points();
    let vectors: Vec<f32> =
        right.iter().flat_map(|&right| if right { [0.0, 1.0] } else { [1.0, 0.0] }).collect();
    let sandbox = Sandbox::new()
        .model("m.onnx", &linear(&[[1.0, 0.0], [-1.0, 0.0]], as_it_is))
        .npz("d.npz", &[("x", &x), ("y", &Tensor::f32(&[40, 2], &vectors))]);
    let report = report(&sandbox, &format!("tune m.onnx {QUICK} --data d.npz --val d.npz"), 0);
    assert_eq!(report.metric.name, "accuracy");
    sandbox.transcript(
        "$ onnx-merge eval out.onnx --data d.npz --executor tract
         out.onnx: accuracy [..]",
    );
}

#[test]
fn labels_that_count_from_one_are_recognised() {
    let (x, right) = points();
    let classes: Vec<i64> = right.iter().map(|&right| 1 + i64::from(right)).collect();
    let single = Tensor::i64(&[40], &[1; 40]);
    Sandbox::new()
        .model("m.onnx", &linear(&[[0.0, 1.0], [0.1, 0.0]], as_it_is))
        .npz("from_one.npz", &[("x", &x), ("y", &Tensor::i64(&[40], &classes))])
        .npz("single.npz", &[("x", &x), ("y", &single)])
        .transcript(
            "$ onnx-merge tune m.onnx -o out.onnx --data from_one.npz --executor tract --steps 2 -q
             error: from_one.npz: the label of row [..] is 2, but the model tells 2 classes apart (0 to 1)
             hint: classes count from 0 on: take 1 from each label
             [exit 3]
             $ onnx-merge tune m.onnx -o out.onnx --data single.npz --executor tract --steps 2 --lr 0
             ...
             note: all training rows are of class 1: the target learns to answer nothing else
             ...
             [exit 4]",
        );
}
