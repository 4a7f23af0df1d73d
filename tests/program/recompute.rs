//! `--recompute`: forward values computed twice instead of being kept, gradients and all else as they were.

use crate::transcript::{Sandbox, python};
use onnx_merge::onnx::{Builder, DType, Dim, Fact, Model, Tensor, WORKING_OPSET, read};
use std::path::Path;
use std::process::Command;

/// Residual blocks of a dense layer and activations, `width` wide; by far most of its memory is forward values.
fn deep(blocks: usize, rows: usize, width: usize) -> Model {
    let mut b = Builder::new("deep");
    let mut x = b.input("x", Fact::new(DType::F32, &[rows, width]));
    for i in 0..blocks {
        let numbers: Vec<f32> =
            (0..width * width).map(|k| ((k * 37 + i * 11) % 101) as f32 / 800.0 - 0.06).collect();
        let w = b.initializer(&format!("w{i}"), Tensor::f32(&[width, width], &numbers));
        let product = b.matmul(&x, &w);
        let (activated, gate) = (b.op("Tanh", &[&product]), b.op("Sigmoid", &[&product]));
        let gated = b.mul(&activated, &gate);
        x = b.add(&x, &gated);
    }
    b.output_as("y", &x);
    Model::new(b.finish().0, WORKING_OPSET)
}

/// Residual blocks of convolutions over small images, with an open batch.
fn convolutions(blocks: usize) -> Model {
    let mut b = Builder::new("convolutions");
    let mut x = b.input("x", Fact::new(DType::F32, &[2, 4, 8, 8]));
    for i in 0..blocks {
        let numbers: Vec<f32> =
            (0..4 * 4 * 9).map(|k| ((k * 29 + i * 7) % 31) as f32 / 120.0 - 0.12).collect();
        let w = b.initializer(&format!("w{i}"), Tensor::f32(&[4, 4, 3, 3], &numbers));
        let y = b.op_with("Conv", &[&x, &w], &[("pads", vec![1i64; 4].into())]);
        let y = b.op("Relu", &[&y]);
        x = b.add(&x, &y);
    }
    b.output_as("y", &x);
    let mut graph = b.finish().0;
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        info.shape.as_mut().expect("a shape")[0] = Dim::Named("N".into());
    }
    Model::new(graph, WORKING_OPSET)
}

/// Runs two graphs of equal inputs and outputs in ONNX Runtime, unoptimised and optimised: outputs must be equal bit for bit, or but for
/// what fusions round otherwise. Prints the nodes that optimising leaves of each, and the most bytes that a run of each added.
const BESIDE: &str = r#"
import sys, numpy as np, onnx, onnxruntime as ort

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key + ":"))

def run(path, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.optimized_model_filepath = path + ".optimised"
    session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
    nodes = len(onnx.load(path + ".optimised").graph.node)
    rng = np.random.default_rng(0)
    feeds = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 4 for d in i.shape]
        wide = i.type == "tensor(int64)"
        feeds[i.name] = rng.integers(0, 10, shape) if wide else rng.uniform(0.1, 0.5, shape).astype(np.float32)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    outputs = session.run(None, feeds)
    return outputs, nodes, status("VmHWM") - before - sum(y.nbytes for y in outputs)

for level in [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]:
    (a, before, most), (b, after, less) = [run(path, level) for path in sys.argv[1:3]]
    if level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL:
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b))
    for x, y in zip(a, b):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(x).max())
    print(before, after, most, less)
"#;

/// What [`BESIDE`] prints: for each level nodes of both, and bytes of both.
fn beside(sandbox: &Sandbox, python: &Path, graphs: [&str; 2]) -> Vec<[i64; 4]> {
    let output = Command::new(python)
        .args(["-c", BESIDE, graphs[0], graphs[1]])
        .current_dir(sandbox.path("."))
        .env("ORT_DISABLE_TELEMETRY", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let numbers = |line: &str| {
        let all: Vec<i64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        <[i64; 4]>::try_from(all).unwrap()
    };
    String::from_utf8(output.stdout).unwrap().lines().map(numbers).collect()
}

#[test]
fn gradients_of_networks_are_the_same_under_onnx_runtime_and_what_is_computed_twice_stays() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::digits()
        .fixtures(&["digits_transformer.onnx"])
        .model("convolutions.onnx", &convolutions(12))
        .model("norm.onnx", &crate::train_bn::classifier());
    for (model, more) in [
        ("convolutions.onnx", "--loss sum --gradients-only"),
        ("convolutions.onnx", "--loss sum"),
        ("digits_transformer.onnx", "--optimizer sgd"),
        ("digits_transformer.onnx", "--gradients-only --batch 16"),
        ("norm.onnx", "--train-bn --optimizer momentum"),
    ] {
        sandbox.transcript(&format!(
            "$ onnx-merge grad {model} {more} -o plain.onnx --executor tract
             ...
             $ onnx-merge grad {model} {more} -o again.onnx --recompute --executor tract
             note: [..] nodes are computed twice, [..] of the forward pass's arithmetic: a step's values take [..] at most instead of [..]
             ..."
        ));
        for [before, after, ..] in beside(&sandbox, &python, ["plain.onnx", "again.onnx"]) {
            let nodes = |file: &str| read(sandbox.path(file)).unwrap().model.graph.nodes.len() as i64;
            let added = nodes("again.onnx") - nodes("plain.onnx");
            assert!(
                2 * (after - before) > added,
                "{model}: {before} nodes became {after}, {added} were added"
            );
        }
    }
}

#[test]
fn onnx_runtime_holds_less() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::new().model("deep.onnx", &deep(24, 1024, 128));
    sandbox.transcript(
        "$ onnx-merge grad deep.onnx --loss sum --gradients-only --batch 1024 -o plain.onnx --executor tract
         ...
         $ onnx-merge grad deep.onnx --loss sum --gradients-only --batch 1024 -o again.onnx --recompute --executor tract
         ...
         $ onnx-merge grad deep.onnx --loss sum --gradients-only --batch 1024 -o half.onnx --recompute 24MB --executor tract
         ...",
    );
    for graph in ["again.onnx", "half.onnx"] {
        for [.., most, less] in beside(&sandbox, &python, ["plain.onnx", graph]) {
            println!("{graph}: {less} bytes instead of {most}");
            assert!(4 * less < 3 * most, "{graph}: {less} bytes instead of {most}");
        }
    }
}

#[test]
fn training_is_the_same() {
    let sandbox =
        Sandbox::digits().fixtures(&["digits_train.npz"]).model("norm.onnx", &crate::train_bn::classifier());
    let train =
        "--steps 60 --lr 0.01 --significance 1 --data digits_train.npz --val digits_val.npz --executor tract";
    for job in [
        "tune digits_mlp.onnx",
        "tune norm.onnx --train-bn",
        "digits_cnn.onnx digits_mlp.onnx --method lpka+kd",
    ] {
        sandbox.transcript(&format!(
            "$ onnx-merge {job} {train} -o plain.onnx --report plain.html
             ...
             $ onnx-merge {job} {train} -o again.onnx --recompute 1KB --report again.html
             ...
             note: --recompute 1KB: [..] is the least that was found
             ..."
        ));
        let weights = |file: &str| read(sandbox.path(file)).unwrap().model.graph.initializers;
        for ((id, plain), again) in weights("plain.onnx").into_iter().zip(weights("again.onnx").into_values())
        {
            assert!(plain.bytes() == again.bytes(), "{job}: {id}");
        }
    }
}

#[test]
fn what_is_no_limit_is_refused() {
    Sandbox::digits().transcript(
        "$ onnx-merge grad digits_mlp.onnx -o g.onnx --recompute 5 --executor tract
         error: invalid value '5' for '--recompute [<SIZE>]': '5' is no size (such as 512MB or 2GiB)
         ...
         [exit 2]
         $ onnx-merge tune digits_mlp.onnx -o out.onnx --data digits_train100.npz --recompute lots
         error: invalid value 'lots' for '--recompute [<SIZE>]': 'lots' is no size (such as 512MB or 2GiB)
         ...
         [exit 2]
         $ onnx-merge grad digits_mlp.onnx -o g.onnx --recompute 1MB --executor tract
         error: --recompute 1MB needs known sizes, and these are open: [..]
         hint: give them by --batch N and --shape NAME=SIZES, or leave out the size to save as much memory as possible
         [exit 2]
         $ missing g.onnx
         $ onnx-merge grad digits_mlp.onnx -o g.onnx --recompute 1MB --batch 8 --executor tract
         note: nothing is computed twice: a step's values take [..] at most, as estimated
         ...
         $ onnx-merge grad digits_cnn.onnx -o g.onnx --recompute 1KB --batch 8 --executor tract
         note: [..]
         note: --recompute 1KB: [..] is the least that was found
         ...",
    );
}
