//! The main job on the fixtures, through the real program.

use crate::transcript::Sandbox;
use onnx_merge::onnx::{self, Tensor, ValueId};
use onnx_merge::report::Report;
use onnx_protobuf::{Message, ModelProto};
use std::process::Output;

pub fn run(sandbox: &Sandbox, arguments: &str) -> Output {
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    sandbox.program(&arguments).output().expect("the program starts")
}

/// Runs with `--json` and reads what it says.
pub fn report(sandbox: &Sandbox, arguments: &str, status: i32) -> Report {
    let output = run(sandbox, &format!("{arguments} --json"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments}\n{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{stderr}"))
}

const DATA: &str = "--data digits_train100.npz --val digits_val.npz --test digits_test.npz --executor tract";

#[test]
fn a_better_target_comes_out() {
    let sandbox = Sandbox::digits();
    let arguments = format!("digits_cnn.onnx digits_mlp.onnx -o out.onnx {DATA} --report out.html");
    let report = report(&sandbox, &arguments, 0);
    let (before, after) = (report.untouched, report.shipped);
    assert!(
        (before.val.unwrap() - 0.84).abs() < 0.01 && (before.test.unwrap() - 0.862).abs() < 0.01,
        "{before:?}"
    );
    assert!(after.val.unwrap() > before.val.unwrap() + 0.02, "{before:?} to {after:?}");
    assert!(after.test.unwrap() > before.test.unwrap(), "{before:?} to {after:?}");
    assert_eq!((report.schema, report.metric.name.as_str()), (1, "accuracy"));
    assert_eq!(report.executors.model.name, "tract");
    assert!(!report.changed.is_empty());
    only_weights_differ(&sandbox, "digits_mlp.onnx", "out.onnx");
    sandbox.transcript(
        "$ exists out.html
         $ exists merge.toml
         $ missing out.onnx.checkpoint
         $ onnx-merge eval out.onnx --data digits_test.npz --executor tract
         out.onnx: accuracy [..] (500 rows, output 'logits', [..])",
    );
    let eval = run(&sandbox, "eval out.onnx --data digits_test.npz --executor tract --json");
    let eval: serde_json::Value = serde_json::from_slice(&eval.stdout).unwrap();
    assert!((eval["accuracy"].as_f64().unwrap() - after.test.unwrap()).abs() < 1e-6);
}

/// Everything but the initializers' bytes is as it was.
pub fn only_weights_differ(sandbox: &Sandbox, before: &str, after: &str) {
    let bytes = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
    assert_eq!(bytes(before).len(), bytes(after).len());
    let stripped = |name: &str| {
        let mut model = ModelProto::parse_from_bytes(&bytes(name)).unwrap();
        for tensor in &mut model.graph.mut_or_insert_default().initializer {
            tensor.raw_data.clear();
        }
        model.write_to_bytes().unwrap()
    };
    assert!(stripped(before) == stripped(after), "{before} and {after} differ in more than weights");
}

#[test]
fn other_pairs_of_architectures_get_better() {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
    for source in ["digits_cnn.onnx", "digits_mlp.onnx"] {
        let arguments = format!(
            "{source} digits_small_cnn.onnx -o out.onnx {DATA} --steps 120 --method lpka+kd --gate 0 --lr 0.003"
        );
        let report = report(&sandbox, &arguments, 0);
        assert!(report.shipped.val > report.untouched.val, "from {source}");
        only_weights_differ(&sandbox, "digits_small_cnn.onnx", "out.onnx");
    }
}

#[test]
fn the_same_run_gives_the_same_bytes_and_its_file_repeats_it() {
    let sandbox = Sandbox::digits();
    let run = format!(
        "digits_cnn.onnx digits_mlp.onnx -o out.onnx {DATA} --steps 80 --method lpka+kd --gate 0 --seed 3"
    );
    let first = report(&sandbox, &run, 0);
    sandbox.transcript("$ copy out.onnx first.onnx\n$ rm out.onnx");
    let second = report(&sandbox, "--config merge.toml", 0);
    sandbox.transcript("$ same out.onnx first.onnx");
    assert_eq!(first.output.unwrap().sha256, second.output.unwrap().sha256);
}

#[test]
fn without_a_gain_the_target_is_kept() {
    let sandbox = Sandbox::digits();
    let arguments = format!(
        "digits_cnn.onnx digits_mlp.onnx -o out.onnx {DATA} --steps 8 --method finetune --min-gain 0.5"
    );
    let report = report(&sandbox, &arguments, 4);
    assert_eq!(report.untouched, report.shipped);
    assert!(report.changed.is_empty());
    sandbox.transcript("$ same out.onnx digits_mlp.onnx");
}

/// One row more of 250 is luck as often as not, and isn't shipped.
#[test]
fn a_gain_that_may_be_luck_is_not_shipped() {
    let sandbox = Sandbox::digits();
    let report = report(&sandbox, &format!("tune digits_mlp.onnx -o out.onnx {DATA} --steps 100"), 4);
    assert!(report.arms[0].val[0] > report.untouched.val.unwrap());
    assert!(report.notes.iter().any(|note| note.contains("which luck alone does with a chance of 0.")));
    sandbox.transcript("$ same out.onnx digits_mlp.onnx");
}

/// What was best before counts: here nothing was better than the untouched target.
#[test]
fn an_arm_that_diverges_takes_no_more_steps() {
    let sandbox = Sandbox::digits();
    let arguments = format!("tune digits_mlp.onnx -o out.onnx {DATA} --steps 12 --lr 1e30 --warmup 0");
    let output = run(&sandbox, &arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the loss is") && stderr.contains("it takes no more steps"), "{stderr}");
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    sandbox.transcript("$ same out.onnx digits_mlp.onnx");
}

/// Three rates are tried, each in a training of an eighth of the steps; then it is as if the best had been asked for. A rate that was is not questioned.
#[test]
fn validation_chooses_the_learning_rate() {
    let sandbox = Sandbox::digits().fixtures(&["digits_train.npz"]);
    let run = "tune digits_mlp.onnx -o out.onnx --data digits_train.npz --val digits_val.npz --executor tract --steps 96 \
               --log run.jsonl";
    let chosen = report(&sandbox, run, 0);
    let text = std::fs::read_to_string(sandbox.path("run.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps = |arm: &str| {
        let of = |l: &&serde_json::Value| l["event"] == "step" && l["arm"] == arm;
        lines.iter().filter(of).filter_map(|l| l["step"].as_u64()).collect::<Vec<_>>()
    };
    for rate in ["0.001", "0.003", "0.01"] {
        assert_eq!(steps(&format!("finetune, lr {rate}")), (1..=12).collect::<Vec<_>>(), "{rate}");
    }
    assert_eq!(steps("finetune"), (1..=96).collect::<Vec<_>>());
    let rate = |report: &Report| report.arms[0].lr[0];
    assert!([0.001, 0.003, 0.01].contains(&rate(&chosen)), "{:?}", rate(&chosen));
    let asked = report(&sandbox, &format!("{run} --lr {}", rate(&chosen)), 0);
    assert_eq!(rate(&asked), rate(&chosen));
    assert_eq!(asked.output.unwrap().sha256, chosen.output.unwrap().sha256);
    let text = std::fs::read_to_string(sandbox.path("run.jsonl")).unwrap();
    assert!(!text.contains("finetune, lr"));
}

/// A fit to the source is worth the effort of the whole training, whether short ones come before it or not.
#[test]
fn a_fit_is_the_same_whether_its_rate_was_chosen_or_asked_for() {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
    let run = format!(
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --start fitted --steps 96 --significance 1"
    );
    let chosen = report(&sandbox, &run, 0);
    let asked = report(&sandbox, &format!("{run} --lr {}", chosen.arms[0].lr[0]), 0);
    assert_eq!(asked.output.unwrap().sha256, chosen.output.unwrap().sha256);
}

/// Inputs 2,550 times as large and weights 2,550 times as small: the usual rates move such weights too far.
#[test]
fn a_network_that_reads_raw_pixels_is_trained_at_a_lower_rate() {
    let sandbox = Sandbox::digits();
    let mut model = onnx::read(sandbox.path("digits_mlp.onnx")).unwrap().model;
    let weight = &mut model.graph.initializers[&ValueId::new("fc1.weight")];
    let small: Vec<f32> = weight.to_f32().iter().map(|w| w / 2550.0).collect();
    *weight = Tensor::f32(weight.shape(), &small);
    onnx::save(&model, sandbox.path("raw.onnx")).unwrap();
    let run = format!("tune raw.onnx -o out.onnx {DATA} --scale 2550 --steps 160 --significance 1");
    let report = report(&sandbox, &run, 0);
    assert!([1e-4, 1e-5].contains(&report.arms[0].lr[0]), "{:?}", report.arms);
    assert!(report.shipped.val > report.untouched.val);
}

/// A line of JSON for everything that happens, in order; every step among them.
#[test]
fn a_log_has_every_step() {
    let sandbox = Sandbox::digits();
    let arguments = format!(
        "tune digits_mlp.onnx -o out.onnx {DATA} --steps 96 --lr 0.003 --significance 1 --log run.jsonl"
    );
    report(&sandbox, &arguments, 0);
    let text = std::fs::read_to_string(sandbox.path("run.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |event: &str| lines.iter().filter(|l| l["event"] == event).collect::<Vec<_>>();
    let steps: Vec<u64> = of("step").iter().filter_map(|l| l["step"].as_u64()).collect();
    assert_eq!(steps, (1..=96).collect::<Vec<_>>());
    assert!(of("step").iter().all(|l| l["arm"] == "finetune" && l["loss"].as_f64().is_some()));
    assert_eq!(of("validation").len(), 12);
    let times: Vec<f64> = lines.iter().filter_map(|l| l["t"].as_f64()).collect();
    assert!(times.len() == lines.len() && times.is_sorted());
    let end = lines.last().unwrap();
    assert!(
        end["event"] == "end" && end["outcome"] == "gain" && end["gains"]["val"]["mean"].as_f64() > Some(0.0)
    );
}

#[test]
fn a_model_is_tuned_without_a_source() {
    let sandbox = Sandbox::digits();
    let report =
        report(&sandbox, &format!("tune digits_mlp.onnx -o out.onnx {DATA} --steps 100 --significance 1"), 0);
    assert_eq!(report.method, "finetune");
    assert!(report.shipped.val > report.untouched.val);
}

#[test]
fn control_arms_say_what_the_source_was_worth() {
    let sandbox = Sandbox::digits();
    let arguments = format!(
        "digits_cnn.onnx digits_mlp.onnx -o out.onnx {DATA} --steps 40 --method lpka+kd --gate 0 --ablate --seeds 2 --folds 0"
    );
    let report = report(&sandbox, &arguments, 0);
    let sources: Vec<String> = report.arms.iter().map(|a| format!("{:?}", a.source)).collect();
    for source in ["Real", "Shuffled", "Untrained", "None"] {
        assert!(sources.iter().any(|s| s == source), "{sources:?}");
    }
    assert_eq!(report.source_worth.map(|w| w.n), Some(2));
}
