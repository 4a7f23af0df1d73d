//! The settings of transfer, one by one, through the real program.

use crate::merge::report;
use crate::transcript::Sandbox;
use onnx_merge::report::Report;

const DATA: &str = "--data digits_train100.npz --val digits_val.npz --test digits_test.npz --executor tract";

fn sandbox() -> Sandbox {
    Sandbox::digits().fixtures(&["digits_small_cnn.onnx", "digits_train.npz"])
}

fn test(report: &Report) -> f64 {
    report.shipped.test.expect("test data was given")
}

#[test]
fn alignment_by_activations_lifts_the_adapter() {
    let sandbox = sandbox();
    let run = format!("digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --gate 1");
    let plain = report(&sandbox, &format!("{run} --align 0"), 0);
    let aligned = report(&sandbox, &run, 0);
    assert!(test(&aligned) > test(&plain) + 0.01, "{} and {}", test(&plain), test(&aligned));
}

#[test]
fn unlabelled_data_serves_alignment_and_distillation() {
    let sandbox = sandbox();
    let run = format!(
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka+kd --gate 1 --steps 150"
    );
    let without = report(&sandbox, &run, 0);
    let with = report(&sandbox, &format!("{run} --unlabelled digits_train.npz"), 0);
    assert!(test(&with) > test(&without) + 0.01, "{} and {}", test(&without), test(&with));
    let repeated = report(&sandbox, "--config merge.toml", 0);
    assert_eq!(with.output.unwrap().sha256, repeated.output.unwrap().sha256);
}

#[test]
fn several_sources_help_together() {
    let sandbox = sandbox();
    let run = format!(
        "digits_cnn.onnx digits_small_cnn.onnx --src digits_mlp.onnx -o out.onnx {DATA} --method lpka+kd --gate 1 --steps 150"
    );
    let both = report(&sandbox, &run, 0);
    assert!(both.shipped.val > both.untouched.val);
    sandbox.transcript(
        "$ onnx-merge digits_cnn.onnx digits_small_cnn.onnx --src nothing.onnx -o x.onnx --data digits_val.npz
         error: nothing.onnx: [..]
         ...",
    );
}

#[test]
fn a_model_can_be_its_own_source() {
    let sandbox = sandbox();
    let run = format!(
        "digits_small_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka+kd --gate 0 --steps 200"
    );
    let report = report(&sandbox, &run, 0);
    assert!(report.shipped.val > report.untouched.val);
    assert_eq!(report.preset.as_deref(), Some("structured"));
}
