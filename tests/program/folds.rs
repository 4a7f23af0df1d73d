//! Held-out folds of the training rows, where few validation rows leave open whether a gain is luck.

use crate::merge::{only_weights_differ, report};
use crate::transcript::Sandbox;
use onnx_merge::data::{read_npz, write_npz};
use onnx_merge::onnx::Tensor;
use onnx_merge::report::Report;

/// The digits, of whose validation rows only the first `val` are there.
fn sandbox(val: usize) -> Sandbox {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx", "digits_train.npz"]);
    let all = read_npz(&sandbox.path("digits_val.npz")).unwrap();
    let some: Vec<(String, Tensor)> =
        all.into_iter().map(|(name, values)| (name, values.rows(0..val))).collect();
    write_npz(&sandbox.path("few.npz"), &some).unwrap();
    sandbox
}

const DATA: &str =
    "--data digits_train.npz --val few.npz --test digits_test.npz --executor tract --threads 1";

fn test_gain(report: &Report) -> f64 {
    report.gains.test.map_or(0.0, |gain| gain.mean)
}

/// One row more of 30: only the training rows tell that this is no luck.
#[test]
fn training_rows_tell_a_gain_that_few_validation_rows_leave_open() {
    let sandbox = sandbox(30);
    let run = format!("tune digits_small_cnn.onnx -o out.onnx {DATA} --steps 60 --lr 0.01");
    let alone = report(&sandbox, &format!("{run} --folds 0"), 4);
    assert!(alone.folds.is_none() && alone.notes.iter().any(|note| note.contains("luck alone")));
    sandbox.transcript("$ same out.onnx digits_small_cnn.onnx");
    let asked = report(&sandbox, &format!("{run} --log run.jsonl"), 0);
    let folds = asked.folds.unwrap();
    assert_eq!((folds.measured, folds.of, folds.gain.n), (4, 4, 30 + 947));
    assert!(folds.luck < 0.01 && test_gain(&asked) > 0.05, "{folds:?}");
    only_weights_differ(&sandbox, "digits_small_cnn.onnx", "out.onnx");
    let log = std::fs::read_to_string(sandbox.path("run.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let rows = lines.iter().filter(|l| l["event"] == "fold").filter_map(|l| l["rows"].as_u64());
    assert_eq!(rows.sum::<u64>(), 947);
    // What is shipped was trained on all rows.
    let any = report(&sandbox, &format!("{run} --significance 1"), 0);
    assert!(any.folds.is_none());
    assert_eq!(any.output.unwrap().sha256, asked.output.unwrap().sha256);
}

/// Taught by a worse source, a target gets the last of twelve validation rows right, and many others wrong.
#[test]
fn training_rows_tell_luck() {
    let sandbox = sandbox(12);
    let run = format!(
        "digits_small_cnn.onnx digits_cnn.onnx -o out.onnx {DATA} --method lpka+kd --made-rows 20 --steps 20 --lr 0.01"
    );
    let kept = report(&sandbox, &run, 4);
    let folds = kept.folds.unwrap();
    assert!(folds.gain.mean < 0.0 && folds.luck > 0.9, "{folds:?}");
    assert!(folds.measured < folds.of, "the first ones were enough: {folds:?}");
    sandbox.transcript("$ same out.onnx digits_cnn.onnx");
    let lucky = report(&sandbox, &format!("{run} --significance 1"), 0);
    assert!(test_gain(&lucky) < -0.05, "{:?}", lucky.gains);
}

/// The teacher, which is the target itself, was trained on these rows and answers 98 % of them, and 84 % of others.
#[test]
fn a_source_that_knows_the_training_rows_leaves_the_gain_open() {
    let sandbox = sandbox(150);
    let run = "digits_small_cnn.onnx digits_small_cnn.onnx -o out.onnx --data digits_train100.npz --val few.npz --executor tract \
               --threads 1 --method kd --made-rows 0 --steps 60 --lr 0.01";
    let kept = report(&sandbox, run, 4);
    assert!(kept.folds.is_none());
    assert!(
        kept.notes.iter().any(|note| note.contains("it may have been trained on them")),
        "{:?}",
        kept.notes
    );
}

/// A gain that luck shows in one of sixteen cases asks the training rows. The target was trained on these, which hides gains, and a
/// note says so.
#[test]
fn a_gain_that_is_hardly_luck_asks_them_too() {
    let sandbox = sandbox(150);
    let run = "tune digits_small_cnn.onnx -o out.onnx --data digits_train100.npz --val few.npz --test digits_test.npz --executor tract \
               --threads 1 --steps 60 --lr 0.003";
    let kept = report(&sandbox, run, 4);
    assert!(kept.folds.is_some_and(|folds| folds.luck > 0.16), "{:?}", kept.folds);
    let note = "the target answers training rows better than validation rows, 98.00 % against 84.00 %";
    assert!(kept.notes.iter().any(|n| n.contains("(0.") && n.contains(note)), "{:?}", kept.notes);
    let alone = report(&sandbox, &format!("{run} --folds 0"), 0);
    assert!(alone.gains.val.is_some_and(|gain| gain.mean > 0.02) && test_gain(&alone) > 0.0);
}

/// Interrupted between two folds, a run measures only the others when it is resumed.
#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_with_the_next_fold() {
    let sandbox = sandbox(30);
    let arguments = |more: &str| -> Vec<String> {
        let all = format!(
            "tune digits_small_cnn.onnx -o out.onnx {DATA} --steps 60 --lr 0.01 --log run.jsonl --json {more}"
        );
        all.split_whitespace().map(str::to_owned).collect()
    };
    let whole = sandbox.program(&arguments("")).output().unwrap();
    let whole: Report = serde_json::from_slice(&whole.stdout).unwrap();
    let run = sandbox.path("out.onnx.checkpoint").join("run.json");
    let mut child = sandbox
        .program(&arguments(""))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !std::fs::read_to_string(&run).is_ok_and(|state| state.contains("fold-0")) {
        assert!(child.try_wait().unwrap().is_none(), "the run ended without a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    sandbox.transcript("$ same out.onnx digits_small_cnn.onnx");

    let before = std::fs::read_to_string(sandbox.path("run.jsonl")).unwrap().lines().count();
    let resumed = sandbox.program(&arguments("--resume")).output().unwrap();
    let resumed: Report = serde_json::from_slice(&resumed.stdout).unwrap();
    let log = std::fs::read_to_string(sandbox.path("run.jsonl")).unwrap();
    let arms = log.lines().skip(before).filter(|line| line.contains("\"event\":\"step\""));
    assert!(arms.clone().count() > 0 && !arms.clone().any(|line| line.contains("without fold 1 of 4")));
    assert_eq!(resumed.folds, whole.folds);
    assert_eq!(resumed.output.unwrap().sha256, whole.output.unwrap().sha256);
    sandbox.transcript("$ missing out.onnx.checkpoint");
}

#[test]
fn a_single_fold_is_refused() {
    sandbox(12).transcript(
        "$ onnx-merge tune digits_cnn.onnx -o out.onnx --data digits_train.npz --folds 1
         error: invalid value '1' for '--folds <N>': a single fold would leave nothing to train on: 2 or more, or 0 for none
         ...
         [exit 2]",
    );
}
