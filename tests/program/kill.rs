//! A kill at any moment leaves either the old or the complete new output.

use crate::transcript::Sandbox;
use std::time::{Duration, Instant};

#[test]
fn a_kill_leaves_the_old_or_the_new_file() {
    let sandbox = Sandbox::digits();
    let arguments: Vec<String> = "digits_cnn.onnx digits_mlp.onnx -o out.onnx --data digits_train100.npz \
         --val digits_val.npz --steps 40 --method finetune --executor tract --threads 1 -q"
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let began = Instant::now();
    let output = sandbox.program(&arguments).output().unwrap();
    let whole = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let new = std::fs::read(sandbox.path("out.onnx")).unwrap();
    let rounds = 12;
    for round in 0..rounds {
        std::fs::write(sandbox.path("out.onnx"), "old").unwrap();
        let mut child = sandbox.program(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        // Evenly over the run, denser around its end, where the file is written.
        let share = if round % 2 == 0 { round as f64 / rounds as f64 } else { 0.9 + 0.015 * round as f64 };
        std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * share));
        let _ = child.kill();
        child.wait().unwrap();
        let now = std::fs::read(sandbox.path("out.onnx")).unwrap();
        assert!(now == b"old" || now == new, "round {round}: {} bytes", now.len());
    }
}
