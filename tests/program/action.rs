//! What the GitHub Action runs, as its runner would.

use crate::transcript::Sandbox;
use std::path::Path;
use std::process::Command;

/// Runs the action's script with inputs; its exit code, its outputs and its summary.
fn merge(sandbox: &Sandbox, inputs: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_BIN_EXE_onnx-merge"));
    let path = std::env::var("PATH").unwrap_or_default();
    let (outputs, summary) = (sandbox.path("outputs"), sandbox.path("summary"));
    let done = Command::new("bash")
        .arg(root.join("action/merge.sh"))
        .current_dir(sandbox.path("."))
        .env("PATH", format!("{}:{path}", program.parent().unwrap().display()))
        .env("RUNNER_TEMP", sandbox.path("."))
        .env("GITHUB_OUTPUT", &outputs)
        .env("GITHUB_STEP_SUMMARY", &summary)
        .envs(inputs.iter().copied())
        .output()
        .expect("bash");
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    eprintln!("{}", String::from_utf8_lossy(&done.stderr));
    (done.status.code(), read(&outputs), read(&summary))
}

#[test]
fn the_action_merges_gates_and_reports() {
    if Command::new("python3").arg("--version").output().is_err() {
        return eprintln!("skipped: no python3, which the action's runners have");
    }
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
    let inputs = [
        ("INPUT_SOURCE", "digits_cnn.onnx"),
        ("INPUT_TARGET", "digits_small_cnn.onnx"),
        ("INPUT_OUTPUT", "better.onnx"),
        ("INPUT_DATA", "digits_train100.npz"),
        ("INPUT_VAL", "digits_val.npz"),
        ("INPUT_TEST", "digits_test.npz"),
        ("INPUT_OPTIONS", "--method lpka --start fitted\n--steps 24\n--executor tract"),
    ];
    let (code, outputs, summary) = merge(&sandbox, &inputs);
    assert_eq!(code, Some(0));
    assert!(outputs.starts_with("outcome=gain\ngain=0."), "{outputs}");
    assert!(summary.contains("| test | 83.00 % | ") && summary.contains(" ± "), "{summary}");
    for file in ["better.onnx", "onnx-merge-report/report.html", "onnx-merge-report/run.jsonl"] {
        assert!(sandbox.path(file).is_file(), "{file}");
    }

    let demand = [&inputs[..], &[("INPUT_MIN_GAIN", "0.9"), ("INPUT_OUTPUT", "kept.onnx")]].concat();
    assert_eq!(merge(&sandbox, &demand).0, Some(4));
    sandbox.transcript("$ same kept.onnx digits_small_cnn.onnx");
    let relaxed = [&demand[..], &[("INPUT_FAIL_WITHOUT_GAIN", "false")]].concat();
    assert_eq!(merge(&sandbox, &relaxed).0, Some(0));
    let missing = [&inputs[..], &[("INPUT_TARGET", "nothing.onnx")]].concat();
    assert_eq!(merge(&sandbox, &missing).0, Some(3));
}
