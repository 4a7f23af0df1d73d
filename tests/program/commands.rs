//! The smaller commands, help, and manners on a command line.

use crate::transcript::Sandbox;
use std::process::Stdio;

#[test]
fn a_command_line_without_sense_exits_with_2() {
    Sandbox::digits().transcript(
        "$ onnx-merge
         error: two models and an output are needed: onnx-merge SRC TGT -o OUT --data DATA
         hint: `onnx-merge --help` shows examples
         [exit 2]
         $ onnx-merge digits_cnn.onnx -o out.onnx
         error: TGT is missing: two models are needed, the source and the target
         hint: `onnx-merge tune TGT` trains one model without a source
         [exit 2]
         $ onnx-merge tune digits_mlp.onnx -o out.onnx
         error: training data is missing
         hint: say what to train on: --data train.npz
         [exit 2]
         $ onnx-merge digits_cnn.onnx digits_mlp.onnx -o out.onnx --data d.npz --map conv
         error: --map 'conv' is not of the form TGT=SRC
         [exit 2]
         $ onnx-merge digits_cnn.onnx digits_mlp.onnx -o out.onnx --data d.npz --alpha 2
         error: --alpha 2 is not between 0 and 1
         [exit 2]
         $ onnx-merge a b -o c --scale x
         error: invalid value 'x' for '--scale <NUMBER>': 'x' is not a number (such as 0.5 or 1/255)
         For more information, try '--help'.
         [exit 2]
         $ onnx-merge --config nothing.toml
         error: nothing.toml: No such file or directory (os error 2)
         [exit 2]
         $ onnx-merge --frobnicate
         ...
         [exit 2]",
    );
}

#[test]
fn every_command_has_help_with_examples() {
    let sandbox = Sandbox::new();
    for command in ["", "tune", "eval", "ops", "doctor", "completions", "inspect", "diff", "grad", "pack"] {
        let arguments: Vec<String> =
            [command, "--help"].iter().filter(|a| !a.is_empty()).map(|a| a.to_string()).collect();
        let output = sandbox.program(&arguments).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && help.contains("Example"), "{command}: {help}");
    }
}

#[test]
fn models_are_measured_as_their_makers_did() {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx", "digits_transformer.onnx"]);
    sandbox.transcript(
        "$ onnx-merge eval digits_cnn.onnx --data digits_test.npz --executor tract
         digits_cnn.onnx: accuracy 97.20 %, cross-entropy [..] (500 rows, output 'logits', [..] s on tract: [..])
         $ onnx-merge eval digits_small_cnn.onnx --data digits_test.npz --executor tract
         digits_small_cnn.onnx: accuracy 83.00 %, cross-entropy [..]
         $ onnx-merge eval digits_transformer.onnx --data digits_test.npz --executor tract
         digits_transformer.onnx: accuracy 72.20 %, cross-entropy [..]
         $ onnx-merge eval digits_cnn.onnx
         error: the data is missing
         hint: say what to measure on: --data test.npz
         [exit 2]
         $ onnx-merge eval digits_cnn.onnx --data digits_test.npz --output nope --executor tract
         error: digits_cnn.onnx: there is no such output of numbers; the model has logits
         [exit 2]",
    );
}

#[test]
fn the_doctor_knows_the_embedded_executor() {
    Sandbox::new().transcript(
        "$ onnx-merge doctor
         ...
         onnx-merge [..], [..] threads
         ...
         ok  tract [..]
         ...",
    );
}

/// Mesa's drivers complain where there is no desktop; who runs this in a terminal of a server can do nothing about it.
#[cfg(target_os = "linux")]
#[test]
fn drivers_keep_quiet_without_a_desktop() {
    let sandbox = Sandbox::new();
    let output = sandbox.program(&["doctor".into()]).env_remove("XDG_RUNTIME_DIR").output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn operators_are_listed() {
    Sandbox::new().transcript(
        "$ onnx-merge ops
         ...
         Conv  [..] rule [..]corpus torch
         ...",
    );
}

#[test]
fn completions_are_written_for_every_shell() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = sandbox.program(&["completions".into(), shell.into()]).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let sandbox = Sandbox::new();
    let mut child =
        sandbox.program(&["ops".into()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
