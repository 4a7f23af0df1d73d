//! What training large weights takes of memory, looked at from outside.

use crate::transcript::Sandbox;
use onnx_merge::onnx::{Builder, DType, Fact, Model, Tensor, WORKING_OPSET};
use std::process::{Child, Stdio};
use std::time::Duration;

const WIDTH: usize = 4096;
const CLASSES: usize = 4;
/// Bytes of the one large weight.
const WEIGHT: usize = WIDTH * WIDTH * 4;
/// Everything else: the program, the small weights, activations.
const REST: usize = 48 << 20;

/// Numbers in −0.02…0.02, the same every time.
fn noise(shape: &[usize]) -> Tensor {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.04
    };
    Tensor::f32(shape, &(0..shape.iter().product()).map(|_| next()).collect::<Vec<_>>())
}

fn classifier() -> Model {
    let mut b = Builder::new("classifier");
    let x = b.input("x", Fact::new(DType::F32, &[1, WIDTH]));
    let large = b.initializer("large", noise(&[WIDTH, WIDTH]));
    let head = b.initializer("head", noise(&[WIDTH, CLASSES]));
    let hidden = b.matmul(&x, &large);
    let hidden = b.op("Relu", &[&hidden]);
    let y = b.matmul(&hidden, &head);
    b.output(&y);
    Model::new(b.finish().0, WORKING_OPSET)
}

/// The most memory that is no file's while a process runs.
fn most_private_memory(child: &mut Child) -> usize {
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().expect("a child").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let now = line.and_then(|kilobytes| kilobytes.split_whitespace().next()?.parse::<usize>().ok());
        most = most.max(now.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(2));
    }
    most
}

/// AdamW needs a weight, its gradient and two moments. Kept weights lie in a file, new ones are written over the old ones.
#[test]
fn training_a_large_weight_takes_four_times_its_memory() {
    let Some(library) = std::env::var_os("ORT_DYLIB_PATH") else {
        eprintln!("skipped: no ONNX Runtime (tests/run has one)");
        return;
    };
    let labels: Vec<i64> = (0..8).map(|i| i % CLASSES as i64).collect();
    let rows = [("x", &noise(&[8, WIDTH])), ("y", &Tensor::i64(&[8], &labels))];
    let sandbox = Sandbox::new().model("large.onnx", &classifier()).npz("rows.npz", &rows);
    let arguments = "tune large.onnx -o out.onnx --data rows.npz --val rows.npz --steps 6 --batch 2 --lr 0.003 \
                     --executor ort --threads 1 -q";
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let mut program = sandbox.program(&arguments);
    let mut child =
        program.env("ORT_DYLIB_PATH", library).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let most = most_private_memory(&mut child);
    assert!(child.wait().unwrap().code().is_some_and(|code| code == 0 || code == 4));
    assert!(most < 4 * WEIGHT + REST, "{most} bytes for a weight of {WEIGHT}");
    assert!(most > 3 * WEIGHT, "{most} bytes: the large weight wasn't trained");
}
