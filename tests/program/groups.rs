//! Rows that belong together (`--groups`).

use crate::merge::report;
use crate::transcript::{Sandbox, pick};
use onnx_merge::data::{read_npz, write_npz};
use onnx_merge::onnx::Tensor;

const RUN: &str = "--executor tract --threads 1 --shift 0";

/// Digits of a fixture, each `copies` times in a row: `alike.npz` says by `who` which are the same one, `plain.npz` doesn't.
fn copied(fixture: &str, rows: usize, copies: usize) -> Sandbox {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx", "digits_train.npz"]);
    let twice = |(name, values): (String, Tensor)| {
        let picked: Vec<usize> = (0..rows * copies).map(|row| row / copies).collect();
        (name, pick(&values, &picked))
    };
    let mut arrays: Vec<(String, Tensor)> =
        read_npz(&sandbox.path(fixture)).unwrap().into_iter().map(twice).collect();
    write_npz(&sandbox.path("plain.npz"), &arrays).unwrap();
    let who: Vec<i64> = (0..rows * copies).map(|row| 7000 + (row / copies) as i64).collect();
    arrays.push(("who".into(), Tensor::i64(&[who.len()], &who)));
    write_npz(&sandbox.path("alike.npz"), &arrays).unwrap();
    sandbox
}

/// Without `--val`, a fifth of the groups is set aside, not of each group a fifth: validation is as hard as the test.
#[test]
fn validation_rows_are_of_groups_of_their_own() {
    let sandbox = copied("digits_val.npz", 100, 5);
    let run = |data: &str, code| {
        let run = format!("tune digits_small_cnn.onnx -o out.onnx --data {data} --steps 80 --lr 0.02 {RUN}");
        let report = report(&sandbox, &format!("{run} --significance 1 --folds 0"), code);
        (report.arms[0].val[0], report.notes)
    };
    let (known, notes) = run("plain.npz", 0);
    let note = "100 of 100 validation rows have the very inputs of training rows";
    assert!(notes.iter().any(|n| n.contains(note)), "{notes:?}");
    assert!(known > 0.97, "copies of what was trained on are all right: {known}");
    // Rows of the same kind, of which the target is as often wrong after training as before.
    let (new, notes) = run("alike.npz --groups who", 4);
    assert!(new < 0.9, "{new}");
    let note = "100 of the 500 training rows are kept for validation, those of 20 of 100 groups";
    assert!(notes.iter().any(|n| n.contains(note)), "{notes:?}");
}

/// One digit of 30 more is no proof, also where each is there twenty times.
#[test]
fn copies_of_a_row_are_no_further_evidence() {
    let sandbox = copied("digits_val.npz", 30, 20);
    let run = |val: &str, code| {
        let run = format!(
            "tune digits_small_cnn.onnx -o out.onnx --data digits_train.npz --val {val} --steps 60 --lr 0.01 {RUN}"
        );
        report(&sandbox, &format!("{run} --folds 0"), code)
    };
    let sure = run("plain.npz", 0);
    assert!(sure.gains.val.is_some_and(|gain| gain.mean > 0.0));
    let mut with = read_npz(&sandbox.path("digits_train.npz")).unwrap();
    let rows = with[0].1.shape()[0];
    with.push(("who".into(), Tensor::i64(&[rows], &(0..rows as i64).collect::<Vec<_>>())));
    write_npz(&sandbox.path("digits_train.npz"), &with).unwrap();
    let open = run("alike.npz --groups who", 4);
    assert!(open.notes.iter().any(|note| note.contains("luck alone")), "{:?}", open.notes);
}

#[test]
fn groups_are_told_from_inputs_and_measured_one_by_one() {
    let sandbox = copied("digits_test.npz", 20, 3);
    sandbox.transcript(
        "
        $ onnx-merge eval digits_small_cnn.onnx --data alike.npz --executor tract
        error: alike.npz: nothing in it feeds the model's input 'image'; it holds who, x
         hint: name an array 'image' (only a single one for a single input may be called otherwise)
        [exit 3]
        $ onnx-merge eval digits_small_cnn.onnx --data alike.npz --groups who --executor tract
        digits_small_cnn.onnx: accuracy 80.00 % [..]
        accuracy of 20 groups: 0.00 % ('70[..]', 3 rows) to 100.00 % ('70[..]', 3 rows)
        $ onnx-merge eval digits_small_cnn.onnx --data plain.npz --groups who --executor tract
        error: plain.npz: there is no array or column 'who' in it
         hint: --groups names an array of an .npz, or a column of a table, that says which rows belong together
        [exit 3]
        $ onnx-merge tune digits_small_cnn.onnx -o out.onnx --data plain.npz --groups who --executor tract
        reading
        error: plain.npz: there is no array or column 'who' in it
         hint: --groups names an array of an .npz, or a column of a table, that says which rows belong together
        [exit 3]
        ",
    );
}
