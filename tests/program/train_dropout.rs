//! `--train-dropout`: nodes of the file drop in training steps, and nowhere else.

use crate::merge::{only_weights_differ, report, run};
use crate::transcript::Sandbox;
use onnx_merge::onnx::{Model, Node, Tensor, ValueId, read};

const DATA: &str = "--data digits_train100.npz --val digits_val.npz --test digits_test.npz";

/// The fixture's MLP with `Dropout` of 0.4 behind its first ReLU: the ratio is an input, as from operator set 12 on.
pub fn dropping(sandbox: &Sandbox) -> Model {
    let mut model = read(sandbox.path("digits_mlp.onnx")).expect("the fixture").model;
    let graph = &mut model.graph;
    let at = graph.nodes.iter().position(|node| node.is("Relu")).expect("a ReLU");
    let active = graph.nodes[at].output(0).expect("an output").clone();
    let [all, ratio] = ["before/dropout", "ratio"].map(ValueId::new);
    graph.nodes[at].outputs[0] = Some(all.clone());
    let mut node = Node::new("Dropout", &[&all, &ratio], &[&active]);
    node.name = "dropout".into();
    graph.nodes.insert(at + 1, node);
    graph.initializers.insert(ratio, Tensor::f32(&[], &[0.4]));
    model
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::digits();
    let model = dropping(&sandbox);
    sandbox.model("drop.onnx", &model)
}

#[test]
fn what_is_dropped_changes_training_and_nothing_else() {
    let sandbox = sandbox();
    let distil = |output: &str, more: &str| {
        let command = format!(
            "digits_cnn.onnx drop.onnx -o {output} {DATA} --executor tract --method kd --steps 150 --lr 0.003 --significance 1 {more}"
        );
        report(&sandbox, &command, 0)
    };
    let sha256 = |report: &onnx_merge::report::Report| report.output.clone().expect("a file").sha256;
    let plain = distil("plain.onnx", "--threads 1");
    let dropped = distil("out.onnx", "--threads 1 --train-dropout");
    assert_ne!(sha256(&plain), sha256(&dropped));
    // Nothing drops where the untouched model is measured.
    assert_eq!(plain.untouched.test, dropped.untouched.test);
    only_weights_differ(&sandbox, "drop.onnx", "out.onnx");
    assert_eq!(sha256(&dropped), sha256(&distil("again.onnx", "--threads 1 --train-dropout")));
    assert_ne!(sha256(&dropped), sha256(&distil("other.onnx", "--threads 1 --train-dropout --seed 1")));
    let output = run(&sandbox, "eval out.onnx --data digits_test.npz --executor tract --json");
    let eval: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (found, said) =
        (eval["accuracy"].as_f64().expect("a number"), dropped.shipped.test.expect("test data"));
    assert!((found - said).abs() < 1e-6, "{found} and {said}");
}

#[test]
fn every_executor_drops() {
    let sandbox = sandbox();
    let ort = std::env::var("ORT_DYLIB_PATH").map(|library| format!("ort --ort-lib {library}"));
    for executor in std::iter::once("tract".to_owned()).chain(ort.ok()) {
        let merge = format!(
            "digits_cnn.onnx drop.onnx -o out.onnx {DATA} --threads 1 --executor {executor} --method lpka+kd --steps 120 --lr 0.003 --significance 1"
        );
        let [plain, dropped] =
            ["", "--train-dropout"].map(|more| report(&sandbox, &format!("{merge} {more}"), 0));
        assert!(dropped.shipped.val > dropped.untouched.val, "{executor}");
        assert_ne!(
            plain.output.expect("a file").sha256,
            dropped.output.expect("a file").sha256,
            "{executor}"
        );
    }
}

#[test]
fn a_model_without_dropout_is_refused() {
    Sandbox::digits().transcript(
        "$ onnx-merge tune digits_mlp.onnx -o x.onnx --data digits_train100.npz --train-dropout
         ...
         error: digits_mlp.onnx: has no Dropout that could drop in training (--train-dropout)
         hint: most exporters leave it out [..]
         [exit 3]
         $ onnx-merge grad digits_mlp.onnx -o x.onnx --train-dropout --executor tract
         error: digits_mlp.onnx: has no Dropout that could drop in training (--train-dropout)
         hint: most exporters leave it out [..]
         [exit 3]
         $ missing x.onnx",
    );
}

#[cfg(unix)]
#[test]
fn a_resumed_run_drops_the_same() {
    crate::train_bn::a_resumed_run_is_whole(&sandbox(), "drop.onnx --train-dropout");
}
