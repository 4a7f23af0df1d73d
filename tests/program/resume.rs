//! A checkpoint is only gone on from by the same run: anything else that decides the result is named, and refused.

use crate::transcript::Sandbox;
use onnx_merge::data::read_npz;
use onnx_merge::onnx::Tensor;
use std::time::Duration;

const RUN: &str = "tune digits_mlp.onnx -o out.onnx --data train.npz --val val.npz --steps 2000 \
                   --executor tract --threads 1 -q";

/// Data with two arrays of labels, of which the second row's may be another in the first; so may the first row's input.
fn data(sandbox: Sandbox, part: &str, shift: f32, label: i64) -> Sandbox {
    let fixture = if part == "train" { "digits_train100.npz" } else { "digits_val.npz" };
    let arrays = read_npz(&sandbox.path(fixture)).expect("the fixture");
    let array = |name: &str| &arrays.iter().find(|(own, _)| own == name).expect("an array").1;
    let mut x = array("x").to_f32().into_owned();
    x[7] += shift;
    let mut y = array("y").to_i64().into_owned();
    let other = Tensor::i64(&[y.len()], &y);
    y[1] = label;
    let (x, y) = (Tensor::f32(array("x").shape(), &x), Tensor::i64(&[y.len()], &y));
    sandbox.npz(&format!("{part}.npz"), &[("image", &x), ("y", &y), ("other", &other)])
}

/// Begins the run, and ends it once there is a checkpoint: when the learning rate is chosen.
fn begin(sandbox: &Sandbox) {
    let mut child = sandbox.program(&words(RUN)).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !sandbox.path("out.onnx.checkpoint").join("run.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn what_differs_from_the_interrupted_run_is_named() {
    let sandbox = data(data(Sandbox::digits(), "val", 0.0, 3), "train", 0.0, 3);
    begin(&sandbox);
    let refused = |sandbox: &Sandbox, command: &str, differs: &str| {
        sandbox.transcript(&format!(
            "$ onnx-merge {command} --resume\n\
             error: out.onnx.checkpoint/run.json: is of another run: this one differs in {differs}\n\
             hint: repeat the interrupted run's command [..]\n[exit 3]\n"
        ));
    };
    let with =
        |sandbox: &Sandbox, more: &str, differs: &str| refused(sandbox, &format!("{RUN} {more}"), differs);
    with(&sandbox, "--scale 0.5", "--scale (not given then, 0.5 now)");
    with(
        &sandbox,
        "--mean 0.5 --std 2",
        "--mean (not given then, [0.5] now), --std (not given then, [2.0] now)",
    );
    with(&sandbox, "--ignore-label 9", "--ignore-label (not given then, 9 now)");
    with(
        &sandbox,
        "--label other",
        "--label (not given then, other now), the inputs of training data, the inputs of validation data, \
         the labels of training data, the labels of validation data",
    );
    with(&sandbox, "--seed 5", "--seed (0 then, 5 now)");
    with(&sandbox, "--test digits_test.npz", "the inputs of test data, the labels of test data");
    refused(
        &sandbox,
        &RUN.replace("--val val.npz", "--val digits_test.npz"),
        "the inputs of validation data, the labels of validation data",
    );
    refused(&sandbox, &RUN.replace("2000", "2001"), "--steps (2000 then, 2001 now)");

    let sandbox = data(sandbox, "train", 0.0, 4);
    refused(&sandbox, RUN, "the labels of training data");
    let sandbox = data(sandbox, "train", 1.0, 3);
    refused(&sandbox, RUN, "the inputs of training data");
    let sandbox = data(sandbox, "train", 0.0, 3);
    let model = std::fs::read(sandbox.path("digits_mlp.onnx")).unwrap();
    std::fs::copy(sandbox.path("digits_cnn.onnx"), sandbox.path("digits_mlp.onnx")).unwrap();
    refused(&sandbox, RUN, "the target");

    // And nothing else stands in the way: with all as it was, the run goes on.
    let sandbox = sandbox.file("digits_mlp.onnx", model);
    let resumed = sandbox.program(&words(&format!("{RUN} --resume"))).output().unwrap();
    assert!(matches!(resumed.status.code(), Some(0 | 4)), "{}", String::from_utf8_lossy(&resumed.stderr));
}
