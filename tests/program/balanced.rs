//! Classes of uneven size (`--balanced`).

use crate::merge::{report, run};
use crate::transcript::{Sandbox, pick};
use onnx_merge::data::{read_npz, write_npz};
use onnx_merge::onnx::Tensor;
use std::collections::HashMap;

const RUN: &str = "--executor tract --threads 1 --shift 0 --folds 0 --significance 1";

/// All sevens, and at most `few` rows of each other digit.
fn mostly_sevens(from: &str, to: &str, few: usize, sandbox: &Sandbox) {
    let arrays = read_npz(&sandbox.path(from)).unwrap();
    let classes = arrays.iter().find(|(name, _)| name == "y").unwrap().1.to_i64().into_owned();
    let mut counts: HashMap<i64, usize> = HashMap::new();
    let mut keep = |class: &i64| {
        let count = counts.entry(*class).or_default();
        *count += 1;
        *class == 7 || *count <= few
    };
    let rows: Vec<usize> = (0..classes.len()).filter(|&row| keep(&classes[row])).collect();
    let some: Vec<(String, Tensor)> =
        arrays.iter().map(|(name, values)| (name.clone(), pick(values, &rows))).collect();
    write_npz(&sandbox.path(to), &some).unwrap();
}

/// Everything is chosen by what all classes come to, and said so.
#[test]
fn rare_classes_count_as_much_as_the_frequent_one() {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx", "digits_train.npz"]);
    mostly_sevens("digits_train.npz", "train.npz", 3, &sandbox);
    mostly_sevens("digits_val.npz", "val.npz", 4, &sandbox);
    let job = format!(
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx --data train.npz --val val.npz --test digits_test.npz --method lpka+kd --start fitted --steps 40 --lr 0.003 {RUN}"
    );
    let plain = report(&sandbox, &job, 0);
    assert!(
        plain.notes.iter().any(|note| note.contains("training rows are of class 7: accuracy says little"))
    );
    let balanced = report(&sandbox, &format!("{job} --balanced"), 0);
    assert_eq!(
        (plain.metric.name.as_str(), balanced.metric.name.as_str()),
        ("accuracy", "balanced accuracy")
    );
    assert!(!balanced.notes.iter().any(|note| note.contains("accuracy says little")));
    // As `eval` counts it, class by class.
    let judged = run(&sandbox, "eval digits_small_cnn.onnx --data val.npz --executor tract --json");
    let judged: serde_json::Value = serde_json::from_slice(&judged.stdout).unwrap();
    let untouched = [&plain, &balanced].map(|report| report.untouched.val.unwrap());
    for (own, name) in untouched.iter().zip(["accuracy", "balanced_accuracy"]) {
        assert!((own - judged[name].as_f64().unwrap()).abs() < 1e-9, "{name}: {own} {judged}");
    }
    assert!((untouched[0] - untouched[1]).abs() > 0.03, "{untouched:?}");
    let gain = balanced.gains.val.unwrap();
    assert!(gain.mean > 0.0 && gain.stderr.unwrap() > 0.01, "{gain:?}");
}

#[test]
fn what_has_no_classes_of_rows_cannot_be_balanced() {
    let values = Tensor::f32(&[6, 10], &[0.5; 60]);
    let images = Tensor::f32(&[6, 1, 8, 8], &vec![0.25; 6 * 64]);
    let sandbox = Sandbox::digits().npz("values.npz", &[("image", &images), ("y", &values)]);
    sandbox.transcript(
        "
        $ onnx-merge tune digits_mlp.onnx -o out.onnx --data values.npz --executor tract --balanced -q
        error: --balanced counts classes alike, but no labels are read as classes
         hint: leave it out, or say --task classify
        [exit 2]
        $ onnx-merge tune digits_mlp.onnx -o out.onnx --data values.npz --executor tract --balanced --task regress
        error: --balanced [..]
        ...
        [exit 2]
        $ missing out.onnx
        ",
    );
}
