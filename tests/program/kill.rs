//! A kill at any moment leaves either the old or the complete new output; Ctrl-C keeps the best so far.

use crate::transcript::Sandbox;
use onnx_merge::report::Report;
use std::process::Command;
use std::time::{Duration, Instant};

/// `ONNX_MERGE_KILLS` of them (12).
#[test]
fn a_kill_leaves_the_old_or_the_new_file() {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
    let arguments: Vec<String> =
        "digits_cnn.onnx digits_small_cnn.onnx -o out.onnx --data digits_train100.npz \
         --val digits_val.npz --steps 100 --method finetune --executor tract --threads 1 -q"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
    let began = Instant::now();
    let output = sandbox.program(&arguments).output().unwrap();
    let whole = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let new = std::fs::read(sandbox.path("out.onnx")).unwrap();
    let rounds: usize = std::env::var("ONNX_MERGE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let (mut old, mut complete) = (0, 0);
    for round in 0..rounds {
        std::fs::write(sandbox.path("out.onnx"), "old").unwrap();
        let mut child = sandbox.program(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        // Evenly over the run, denser around its end, where the file is written.
        let along = round as f64 / rounds as f64;
        let share = if round % 2 == 0 { along } else { 0.9 + 0.18 * along };
        std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * share));
        let _ = child.kill();
        child.wait().unwrap();
        let now = std::fs::read(sandbox.path("out.onnx")).unwrap();
        assert!(now == b"old" || now == new, "round {round}: {} bytes", now.len());
        if now == new { complete += 1 } else { old += 1 }
    }
    println!("{rounds} kills: {old} left the old file, {complete} the complete new one");
}

/// Where time is limited, how many steps that means is decided once: a resumed run keeps to it, and its learning rate ends with it.
#[cfg(unix)]
#[test]
fn a_resumed_run_keeps_to_the_steps_that_its_time_had_room_for() {
    let sandbox = Sandbox::digits();
    let arguments = |more: &str| -> Vec<String> {
        let all = format!(
            "tune digits_mlp.onnx -o out.onnx --data digits_train100.npz --val digits_val.npz --steps 1000000 --lr 0.003 \
             --time 4s --executor tract --threads 1 --log run.jsonl -q {more}"
        );
        all.split_whitespace().map(str::to_owned).collect()
    };
    let log = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(sandbox.path("run.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let of = |lines: &[serde_json::Value], event: &str, field: &str| -> Vec<f64> {
        lines.iter().filter(|line| line["event"] == event).filter_map(|line| line[field].as_f64()).collect()
    };
    let mut child = sandbox.program(&arguments("")).stderr(std::process::Stdio::null()).spawn().unwrap();
    while of(&log(), "step", "step").len() < 100 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let run = std::fs::read(sandbox.path("out.onnx.checkpoint").join("run.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&run).unwrap();
    let planned = state["steps"].as_f64().unwrap();
    assert!(planned < 1e6, "{planned} steps in 4 s");

    let before = log().len();
    sandbox.program(&arguments("--resume")).output().unwrap();
    let resumed = &log()[before..];
    assert_eq!(of(resumed, "arm", "steps"), [planned]);
    let steps = of(resumed, "step", "step");
    assert_eq!(steps[0], state["arms"][0]["step"].as_f64().unwrap() + 1.0);
    let (last, rate) = (steps[steps.len() - 1], *of(resumed, "step", "learning_rate").last().unwrap());
    // The cosine of all planned steps; on a busy machine the clock comes before their end.
    let due = 0.003 * 0.5 * (1.0 + (std::f64::consts::PI * last / planned).cos());
    assert!((rate - due).abs() < 0.01 * 0.003, "at step {last} of {planned} the learning rate is {rate}");
}

/// Interrupted when the learning rate of the first of two arms is chosen, or when one is trained; then resumed: the same bytes as
/// without an interruption.
#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let sandbox = Sandbox::digits();
    let arguments = |output: &str, more: &str| -> Vec<String> {
        let all = format!(
            "digits_cnn.onnx digits_mlp.onnx -o {output} --data digits_train100.npz --val digits_val.npz \
             --steps 240 --method lpka+kd --executor tract --threads 1 {more}"
        );
        all.split_whitespace().map(str::to_owned).collect()
    };
    let whole = sandbox.program(&arguments("whole.onnx", "")).output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let run = sandbox.path("out.onnx.checkpoint").join("run.json");
    let steps = || -> Vec<u64> {
        let text = std::fs::read(&run).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        state["arms"].as_array().into_iter().flatten().filter_map(|arm| arm["step"].as_u64()).collect()
    };
    for trained in [false, true] {
        let mut child = sandbox
            .program(&arguments("out.onnx", "--json"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !steps().iter().any(|&steps| steps > 0 || !trained) {
            assert!(child.try_wait().unwrap().is_none(), "the run ended without a checkpoint");
            std::thread::sleep(Duration::from_millis(5));
        }
        let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(interrupted.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        let report: Report = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report.shipped.val >= report.untouched.val);
        assert!(sandbox.path("out.onnx").exists(), "the best so far is kept");
        let steps = steps();
        assert!(steps.iter().sum::<u64>() < 2 * 240, "stopped early: {steps:?}");
        assert!(trained || steps == [0] || steps == [0, 0], "before an arm was trained: {steps:?}");

        let other = sandbox.program(&arguments("out.onnx", "--resume --lr 0.5")).output().unwrap();
        assert_eq!(other.status.code(), Some(3), "a checkpoint of other options is refused");
        let resumed = sandbox.program(&arguments("out.onnx", "--resume")).output().unwrap();
        assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
        let bytes = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
        assert!(bytes("out.onnx") == bytes("whole.onnx"), "the resumed run differs");
        assert!(!run.exists(), "a complete run leaves no checkpoint");
    }
}
