//! `--train-bn`: batches normalised by their own statistics, running ones that follow and are shipped.

use crate::merge::{only_weights_differ, report, run};
use crate::transcript::Sandbox;
use onnx_merge::onnx::{Attr, Builder, DType, Dim, Fact, Model, Tensor, ValueId};

const DATA: &str = "--data digits_train100.npz --val digits_val.npz --test digits_test.npz --threads 1";

/// An untrained classifier of digits with a layer of batch normalisation, and one of a frozen name.
pub fn classifier() -> Model {
    let mut b = Builder::new("classifier");
    let image = b.input("image", Fact::new(DType::F32, &[1, 1, 8, 8]));
    let mut state = 1u32;
    let mut draw = |count: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next()).collect()
    };
    let mut x = b.reshape(&image, &[1, 64]);
    for (name, from, to) in [("first", 64, 32), ("second", 32, 16)] {
        let matrix = b.initializer(&format!("{name}.weight"), Tensor::f32(&[from, to], &draw(from * to)));
        let mut vector =
            |what: &str, v: f32| b.initializer(&format!("{name}.{what}"), Tensor::f32(&[to], &vec![v; to]));
        let parameters =
            [("scale", 1.0), ("shift", 0.0), ("mean", 0.0), ("var", 1.0)].map(|(n, v)| vector(n, v));
        let hidden = b.matmul(&x, &matrix);
        let inputs: Vec<&ValueId> = std::iter::once(&hidden).chain(&parameters).collect();
        let normal = b.op_with("BatchNormalization", &inputs, &[("momentum", Attr::Float(0.8))]);
        b.set_fact(&normal, Fact::new(DType::F32, &[1, to]));
        x = b.op("Relu", &[&normal]);
    }
    let head = b.initializer("head", Tensor::f32(&[16, 10], &draw(160)));
    let y = b.matmul(&x, &head);
    b.output(&y);
    let mut graph = b.finish().0;
    let flat =
        graph.nodes.iter().find(|n| n.is("Reshape")).and_then(|n| n.input(1).cloned()).expect("a reshape");
    graph.initializers.insert(flat, Tensor::i64(&[2], &[-1, 64]));
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        info.shape.as_mut().expect("a shape")[0] = Dim::Named("N".into());
    }
    Model::new(graph, 18)
}

fn sandbox() -> Sandbox {
    Sandbox::digits().model("norm.onnx", &classifier())
}

fn weights(sandbox: &Sandbox, name: &str) -> Vec<(String, Tensor)> {
    let model = onnx_merge::onnx::read(sandbox.path(name)).expect("a model").model;
    model.graph.initializers.into_iter().map(|(id, t)| (id.to_string(), t)).collect()
}

/// Names of what differs between two models.
fn changed(sandbox: &Sandbox, before: &str, after: &str) -> Vec<String> {
    let pairs = weights(sandbox, before).into_iter().zip(weights(sandbox, after));
    pairs.filter(|(a, b)| a.1.bytes() != b.1.bytes()).map(|(a, _)| a.0).collect()
}

#[test]
fn running_statistics_are_trained_and_shipped_only_when_asked_for() {
    let sandbox = sandbox();
    let tune = format!("tune norm.onnx {DATA} --executor tract --steps 100 --lr 0.01 --batch 25");
    report(&sandbox, &format!("{tune} -o plain.onnx"), 0);
    let plain = changed(&sandbox, "norm.onnx", "plain.onnx");
    assert!(!plain.iter().any(|n| n.ends_with("mean") || n.ends_with("var")), "{plain:?}");
    let trained = report(&sandbox, &format!("{tune} -o out.onnx --train-bn --freeze second.*"), 0);
    only_weights_differ(&sandbox, "norm.onnx", "out.onnx");
    let mut names = changed(&sandbox, "norm.onnx", "out.onnx");
    names.sort();
    assert_eq!(names, ["first.mean", "first.scale", "first.shift", "first.var", "first.weight", "head"]);
    let roles: Vec<&str> = trained.changed.iter().map(|c| c.role.as_str()).collect();
    assert!(roles.contains(&"RunningStat"), "{roles:?}");
    // What was measured is what is in the file.
    let output = run(&sandbox, "eval out.onnx --data digits_test.npz --executor tract --json");
    let eval: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (found, said) =
        (eval["accuracy"].as_f64().expect("a number"), trained.shipped.test.expect("test data"));
    assert!((found - said).abs() < 1e-6, "{found} and {said}");
    let repeated = report(&sandbox, "--config out.onnx.merge.toml -o again.onnx", 0);
    assert_eq!(trained.output.expect("a file").sha256, repeated.output.expect("a file").sha256);
}

#[test]
fn knowledge_moves_into_a_model_in_training_form_on_every_executor() {
    let sandbox = sandbox();
    // The sandbox has no variables of its own.
    let ort = std::env::var("ORT_DYLIB_PATH").map(|library| format!("ort --ort-lib {library}"));
    for executor in std::iter::once("tract".to_owned()).chain(ort.ok()) {
        let merge = format!(
            "digits_cnn.onnx norm.onnx -o out.onnx {DATA} --executor {executor} --method kd --steps 150 --lr 0.01 --train-bn"
        );
        let report = report(&sandbox, &merge, 0);
        assert!(report.shipped.val > report.untouched.val, "{executor}");
        assert!(changed(&sandbox, "norm.onnx", "out.onnx").iter().any(|n| n == "second.var"), "{executor}");
    }
}

#[test]
fn what_cannot_be_normalised_by_batches_is_refused() {
    let sandbox = sandbox();
    sandbox.transcript(
        "$ onnx-merge tune digits_mlp.onnx -o x.onnx --data digits_train100.npz --train-bn
         ...
         error: digits_mlp.onnx: has no batch normalisation [..]
         hint: exporters fold it [..]
         [exit 3]
         $ onnx-merge tune norm.onnx -o x.onnx --data digits_train100.npz --train-bn --batch 1
         ...
         error: --train-bn needs steps of two rows or more: a single one has no variance
         hint: raise --batch
         [exit 2]",
    );
}

#[cfg(unix)]
#[test]
fn statistics_go_on_where_an_interrupted_run_stopped() {
    a_resumed_run_is_whole(&sandbox(), "norm.onnx --train-bn");
}

/// A run of `tune` that is interrupted under its second seed, then resumed, gives the same bytes as without an interruption.
#[cfg(unix)]
pub fn a_resumed_run_is_whole(sandbox: &Sandbox, model: &str) {
    let arguments = |output: &str, more: &str| -> Vec<String> {
        let all = format!(
            "tune {model} -o {output} --data digits_train100.npz --val digits_val.npz --steps 1200 --lr 0.01 --seeds 2 \
             --executor tract --threads 1 {more}"
        );
        all.split_whitespace().map(str::to_owned).collect()
    };
    let whole = sandbox.program(&arguments("whole.onnx", "")).output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let mut child =
        sandbox.program(&arguments("out.onnx", "-q")).stdout(std::process::Stdio::null()).spawn().unwrap();
    let run = sandbox.path("out.onnx.checkpoint").join("run.json");
    while !run.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended without a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let resumed = sandbox.program(&arguments("out.onnx", "--resume")).output().unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    let bytes = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
    assert!(bytes("out.onnx") == bytes("whole.onnx"), "the resumed run differs");
}
