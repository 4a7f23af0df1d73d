//! The settings of transfer, one by one, through the real program.

use crate::merge::{only_weights_differ, report, run};
use crate::transcript::Sandbox;
use onnx_merge::data::{read_npz, write_npz};
use onnx_merge::onnx::{self, Attr, DType, Fact, Node, Tensor, ValueId, ValueInfo};
use onnx_merge::params::{Matrix, low_rank};
use onnx_merge::report::{ArmSource, Report};

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
    let without = report(&sandbox, &format!("{run} --made-rows 0"), 0);
    let with = report(&sandbox, &format!("{run} --unlabelled digits_train.npz"), 0);
    assert!(test(&with) > test(&without) + 0.01, "{} and {}", test(&without), test(&with));
    let repeated = report(&sandbox, "--config merge.toml", 0);
    assert_eq!(with.output.unwrap().sha256, repeated.output.unwrap().sha256);
}

#[test]
fn a_recurrent_layer_learns_what_anothers_gates_sum_up() {
    let sandbox = Sandbox::digits().fixtures(&["digits_lstm.onnx", "digits_small_lstm.onnx"]);
    let run = format!(
        "digits_lstm.onnx digits_small_lstm.onnx -o out.onnx {DATA} --steps 60 --method lpka+kd --start fitted"
    );
    let fitted = report(&sandbox, &run, 0);
    let untouched = fitted.untouched.test.expect("test data was given");
    assert!(test(&fitted) > untouched + 0.15, "{untouched} and {}", test(&fitted));
    only_weights_differ(&sandbox, "digits_small_lstm.onnx", "out.onnx");
}

#[test]
fn rows_made_of_others_serve_transfer() {
    let sandbox = sandbox();
    let run = format!(
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka+kd --start fitted --steps 150"
    );
    let without = report(&sandbox, &format!("{run} --made-rows 0"), 0);
    let with = report(&sandbox, &run, 0);
    assert!(test(&with) > test(&without), "{} and {}", test(&without), test(&with));
    let repeated = report(&sandbox, "--config merge.toml", 0);
    assert_eq!(with.output.unwrap().sha256, repeated.output.unwrap().sha256);
    let all = read_npz(&sandbox.path("digits_train.npz")).unwrap();
    let one: Vec<(String, Tensor)> =
        all.into_iter().map(|(name, values)| (name, values.rows(0..1))).collect();
    write_npz(&sandbox.path("one.npz"), &one).unwrap();
    sandbox.transcript(
        "$ onnx-merge digits_cnn.onnx digits_small_cnn.onnx -o x.onnx --data digits_train.npz --made-rows 9 --unlabelled digits_train.npz -q
         error: --made-rows have no labels, and --unlabelled gives such rows
         hint: leave out one of the two
         [exit 2]
         $ onnx-merge digits_cnn.onnx digits_small_cnn.onnx -o x.onnx --data one.npz --val digits_val.npz --made-rows 9 -q
         error: one.npz: no rows can be made of these (--made-rows)
         hint: it needs two training rows at least; of several inputs each must be an image or words
         [exit 3]",
    );
}

#[test]
fn activations_teach_without_weights() {
    let sandbox = sandbox();
    let run = format!("digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA}");
    let features = report(&sandbox, &format!("{run} --method features"), 0);
    assert_eq!(features.method, "features");
    assert!(test(&features) > features.untouched.test.unwrap() + 0.02, "{}", test(&features));
    let both = report(&sandbox, &format!("{run} --method features+kd --start fitted"), 0);
    assert_eq!(both.arms[0].name, "features+kd, fitted");
    assert!(test(&both) > test(&features));
    sandbox.transcript(&format!(
        "$ onnx-merge digits_cnn.onnx digits_small_cnn.onnx -o x.onnx {DATA} --method features --align 0 -q
         error: this method can't be used here: the source can't read the target's data, or none of its activations \
         corresponds to the target's (or --align is 0)
         hint: `--method auto` uses whatever applies
         [exit 2]"
    ));
}

#[test]
fn knowledge_goes_only_where_it_may() {
    let sandbox = sandbox();
    let run = format!(
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --start fitted --steps 100 --lr 0"
    );
    let report = report(&sandbox, &format!("{run} --adapt fc*"), 0);
    let moved = report.changed.iter().filter(|c| c.relative_change > 1e-6);
    let changed: Vec<&str> = moved.map(|c| c.initializer.as_str()).collect();
    assert_eq!(changed, ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
    sandbox.transcript(&format!(
        "$ onnx-merge digits_cnn.onnx digits_small_cnn.onnx -o x.onnx {DATA} --adapt 'layer*' -q
         error: --adapt 'layer*' matches no weight of digits_small_cnn.onnx
         hint: `onnx-merge inspect` lists the weights' names
         [exit 2]"
    ));
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
         [exit 3]",
    );
}

#[test]
fn a_model_can_be_its_own_source() {
    let sandbox = sandbox();
    let run = format!(
        "digits_small_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka+kd --gate 0 --steps 200 \
         --significance 1"
    );
    let report = report(&sandbox, &run, 0);
    assert!(report.shipped.val > report.untouched.val);
    assert_eq!(report.preset.as_deref(), Some("structured"));
}

#[test]
fn checkpoints_that_never_change_change_nothing() {
    let sandbox = sandbox();
    sandbox.transcript("$ copy digits_cnn.onnx step_9.onnx\n$ copy digits_cnn.onnx step_10.onnx");
    for (preset, more) in
        [("structured", "--gate 1 --made-rows 0"), ("residual", "--gate 0"), ("paper", "--gate 0")]
    {
        let run = format!(
            "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --preset {preset} {more} \
             --steps 90 --lr 0.003 --significance 1"
        );
        let plain = report(&sandbox, &run, 0);
        let followed = report(&sandbox, &format!("{run} --trajectory step_*.onnx"), 0);
        assert_eq!(plain.output.unwrap().sha256, followed.output.unwrap().sha256, "{preset}");
    }
}

#[test]
fn a_fit_to_the_source_needs_hardly_any_training() {
    let sandbox = sandbox().fixtures(&["digits_transformer.onnx"]);
    let arguments = format!(
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --start fitted --steps 24 --ablate"
    );
    let found = report(&sandbox, &arguments, 0);
    let test = |source: ArmSource| {
        let arm = found.arms.iter().find(|a| a.source == source && a.name.starts_with("lpka, fitted"));
        arm.expect("the arm and its twins were trained").test[0]
    };
    assert!(test(ArmSource::Real) > 0.93, "{}", test(ArmSource::Real));
    for twin in [ArmSource::Shuffled, ArmSource::Untrained] {
        assert!(test(twin) < 0.9, "{twin:?}: {}", test(twin));
    }
    let repeated = report(&sandbox, "--config merge.toml", 0);
    assert_eq!(found.output.unwrap().sha256, repeated.output.unwrap().sha256);
    sandbox.transcript(
        "$ onnx-merge digits_cnn.onnx digits_transformer.onnx -o x.onnx --data digits_val.npz --method lpka --start fitted
         ...
         error: this method can't be used here: the source can't read the target's data, or none of its layers corresponds [..]
         hint: `--method auto` uses whatever applies
         [exit 2]",
    );
}

/// Pictures and their negatives, row for row: each model reads the array that is named as its input.
#[test]
fn models_that_see_the_same_things_otherwise_learn_from_paired_rows() {
    let sandbox = sandbox();
    for name in ["digits_train100.npz", "digits_val.npz", "digits_test.npz"] {
        let mut arrays = read_npz(&sandbox.path(name)).unwrap();
        let image = arrays.iter().find(|(name, _)| name == "x").unwrap().1.clone();
        let negative: Vec<f32> = image.to_f32().iter().map(|v| 1.0 - v).collect();
        arrays.retain(|(name, _)| name != "x");
        arrays.push(("negative".into(), Tensor::f32(image.shape(), &negative)));
        arrays.push(("image".into(), image));
        write_npz(&sandbox.path(&format!("paired_{name}")), &arrays).unwrap();
    }
    let mut model = onnx_merge::onnx::read(sandbox.path("digits_small_cnn.onnx")).unwrap().model;
    let (old, new) = (model.graph.inputs[0].id.clone(), ValueId::new("negative"));
    model.graph.inputs[0].id = new.clone();
    for input in model.graph.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten()) {
        if *input == old {
            *input = new.clone();
        }
    }
    onnx_merge::onnx::save(&model, sandbox.path("negatives.onnx")).unwrap();
    let found = report(
        &sandbox,
        "digits_cnn.onnx negatives.onnx -o out.onnx --data paired_digits_train100.npz --val paired_digits_val.npz \
         --test paired_digits_test.npz --executor tract --method lpka --start fitted --steps 24",
        0,
    );
    assert!(found.untouched.test.unwrap() < 0.5, "{:?}", found.untouched);
    assert!(test(&found) > 0.9, "{}", test(&found));
}

/// Some exporters store a dense layer's weight by positions and channels, and reshape it on the way.
#[test]
fn weights_that_are_stored_in_another_shape_are_adapted() {
    let sandbox = sandbox();
    let mut model = onnx_merge::onnx::read(sandbox.path("digits_mlp.onnx")).unwrap().model;
    let (name, stored, shape) = (ValueId::new("fc1.weight"), ValueId::new("stored"), ValueId::new("shape"));
    let weight = model.graph.initializers.shift_remove(&name).unwrap();
    let &[outputs, 64] = weight.shape() else { panic!("{:?}", weight.shape()) };
    model.graph.initializers.insert(stored.clone(), Tensor::f32(&[outputs, 8, 8], &weight.to_f32()));
    model.graph.initializers.insert(shape.clone(), Tensor::i64(&[2], &[outputs as i64, 64]));
    model.graph.nodes.insert(0, Node::new("Reshape", &[&stored, &shape], &[&name]));
    onnx_merge::onnx::save(&model, sandbox.path("stored.onnx")).unwrap();
    for preset in ["structured", "residual", "paper"] {
        let arguments = format!(
            "digits_cnn.onnx stored.onnx -o out.onnx {DATA} --method lpka --gate 1 --steps 12 --preset {preset} \
             --significance 1"
        );
        let output = run(&sandbox, &arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 4)), "{preset}: {stderr}");
    }
}

/// A model whose only output is a mean over all rows answers for none of them; its weights can be carried all the same.
#[test]
fn a_source_without_answers_gives_its_weights() {
    let sandbox = sandbox();
    let mut model = onnx_merge::onnx::read(sandbox.path("digits_cnn.onnx")).unwrap().model;
    let mut mean = Node::new("ReduceMean", &[&model.graph.outputs[0].id], &[&ValueId::new("mean")]);
    mean.attrs.insert("keepdims".into(), Attr::Int(0));
    model.graph.nodes.push(mean);
    model.graph.outputs = vec![ValueInfo::new(ValueId::new("mean"), &Fact::new(DType::F32, &[]))];
    onnx_merge::onnx::save(&model, sandbox.path("mean.onnx")).unwrap();
    let arguments =
        format!("mean.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --gate 0 --steps 60");
    let found = report(&sandbox, &arguments, 0);
    assert_eq!(found.arms[0].source, ArmSource::Real);
}

#[test]
fn a_trajectory_of_checkpoints_is_followed() {
    let sandbox = sandbox();
    run(
        &sandbox,
        "tune digits_cnn.onnx -o step_1.onnx --data digits_val.npz --lr 0.01 --steps 40 --executor tract --significance 1",
    );
    let arguments = format!(
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --gate 1 --steps 120 \
         --significance 1"
    );
    let plain = report(&sandbox, &arguments, 0);
    let followed = report(&sandbox, &format!("{arguments} --trajectory step_*.onnx"), 0);
    assert_ne!(plain.output.unwrap().sha256, followed.output.unwrap().sha256);
    let repeated = report(&sandbox, "--config out.onnx.merge.toml", 0);
    assert_eq!(followed.shipped, repeated.shipped);
    sandbox.transcript(
        "$ onnx-merge digits_cnn.onnx digits_small_cnn.onnx -o x.onnx --data digits_val.npz --executor tract --trajectory digits_mlp.onnx
         ...
         error: digits_mlp.onnx: is no checkpoint of the source: it has no weight '[..]' of that shape
         [exit 3]
         $ onnx-merge digits_cnn.onnx digits_small_cnn.onnx -o x.onnx --data digits_val.npz --trajectory nothing_*.onnx
         error: --trajectory 'nothing_*.onnx' names no file
         [exit 2]",
    );
}

#[test]
fn a_source_is_trained_beside_the_target() {
    let sandbox = sandbox();
    let arguments = format!(
        "digits_mlp.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka+kd --gate 0 --steps 120 --lr 0.003"
    );
    let frozen = report(&sandbox, &arguments, 0);
    let joint = report(&sandbox, &format!("{arguments} --joint --src-data digits_train.npz --cycle 20"), 0);
    assert_ne!(frozen.output.unwrap().sha256, joint.output.unwrap().sha256);
    assert!(joint.shipped.val > joint.untouched.val);
}

/// A source that tells even from odd by one number, trained on labels of its own.
#[test]
fn a_source_with_a_single_answer_is_trained_beside_the_target() {
    let sandbox = sandbox();
    let mut model = onnx::read(sandbox.path("digits_mlp.onnx")).unwrap().model;
    for name in ["fc3.weight", "fc3.bias"] {
        let tensor = &mut model.graph.initializers[&ValueId::new(name)];
        *tensor = tensor.rows(0..1);
    }
    model.graph.outputs[0].shape = None;
    let arrays = read_npz(&sandbox.path("digits_train.npz")).unwrap();
    let of = |name: &str| arrays.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let odd: Vec<i64> = of("y").to_i64().iter().map(|y| y % 2).collect();
    let (x, y) = (of("x"), Tensor::i64(&[odd.len()], &odd));
    let sandbox = sandbox.model("odd.onnx", &model).npz("odd.npz", &[("x", &x), ("y", &y)]);
    let run = format!(
        "odd.onnx digits_small_cnn.onnx -o out.onnx {DATA} --method lpka --gate 0 --steps 120 --lr 0.003"
    );
    let frozen = report(&sandbox, &run, 0);
    let joint = report(&sandbox, &format!("{run} --joint --src-data odd.npz --cycle 20"), 0);
    assert_ne!(frozen.output.unwrap().sha256, joint.output.unwrap().sha256);
}

#[test]
fn low_rank_deltas_are_baked_in() {
    let sandbox = sandbox();
    let tune = format!("tune digits_small_cnn.onnx {DATA} --steps 300 --lr 0.003 --folds 0");
    let full = report(&sandbox, &format!("{tune} -o full.onnx"), 0);
    let low = report(&sandbox, &format!("{tune} -o low.onnx --low-rank 4"), 0);
    assert!(low.shipped.val > low.untouched.val, "{:?} {:?}", low.untouched, low.shipped);
    only_weights_differ(&sandbox, "digits_small_cnn.onnx", "low.onnx");
    assert_ne!(full.output.unwrap().sha256, low.output.unwrap().sha256);
    assert_eq!(rank_of_change(&sandbox, "digits_small_cnn.onnx", "low.onnx", [48, 96]), 4);
}

/// The rank of the difference of the first matrix of that shape (or its transpose) between two models.
fn rank_of_change(sandbox: &Sandbox, before: &str, after: &str, shape: [usize; 2]) -> usize {
    let open =
        |name: &str| onnx_merge::onnx::read(sandbox.path(name)).expect("a model").model.graph.initializers;
    let (before, after) = (open(before), open(after));
    let fits = |t: &Tensor| t.shape() == shape || t.shape() == [shape[1], shape[0]];
    let (name, old) = before.iter().find(|(_, t)| fits(t)).expect("a matrix of that shape");
    let change = after[name].to_f32().iter().zip(old.to_f32().iter()).map(|(a, b)| a - b).collect();
    let factors = low_rank(&Matrix::new(old.shape()[0], old.shape()[1], change), 48);
    factors.s.iter().filter(|s| **s > 1e-4 * factors.s[0]).count()
}

#[test]
fn without_data_the_source_teaches_and_nothing_is_promised() {
    let sandbox = sandbox();
    let arguments =
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx --method lpka+kd --gate 1 --executor tract";
    let taught = report(&sandbox, arguments, 6);
    assert!(!taught.verified && taught.untouched.test.is_none());
    only_weights_differ(&sandbox, "digits_small_cnn.onnx", "out.onnx");
    let output = run(&sandbox, "eval out.onnx --data digits_test.npz --executor tract --json");
    let eval: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(eval["accuracy"].as_f64().expect("a number") > 0.84, "{eval}");
    sandbox.transcript(
        "$ onnx-merge digits_cnn.onnx digits_small_cnn.onnx -o x.onnx --method kd --steps 20 --executor tract
         ...
         x.onnx is unverified. There were no data: [..]
         [exit 6]",
    );
}

/// A twentieth of the logits is right as often, but its softmax says nothing: as a teacher it is made as loud as its labels allow.
#[test]
fn a_teacher_too_quiet_for_its_softmax_teaches_all_the_same() {
    let sandbox = sandbox();
    let mut model = onnx::read(sandbox.path("digits_cnn.onnx")).unwrap().model;
    for name in ["fc2.weight", "fc2.bias"] {
        let tensor = &mut model.graph.initializers[&ValueId::new(name)];
        let quiet: Vec<f32> = tensor.to_f32().iter().map(|w| w / 20.0).collect();
        *tensor = Tensor::f32(tensor.shape(), &quiet);
    }
    onnx::save(&model, sandbox.path("quiet.onnx")).unwrap();
    let run = |source: &str| {
        let run =
            format!("{source} digits_small_cnn.onnx -o out.onnx {DATA} --method kd --steps 150 --lr 0.01");
        report(&sandbox, &run, 0)
    };
    let (usual, quiet) = (run("digits_cnn.onnx"), run("quiet.onnx"));
    let told = |report: &Report| report.notes.iter().any(|note| note.contains("are multiplied by"));
    assert!(told(&quiet) && !told(&usual), "{:?}", usual.notes);
    assert!(test(&quiet) > test(&usual) - 0.02, "{} and {}", test(&quiet), test(&usual));
}
