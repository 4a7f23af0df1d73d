//! The program itself on the GPU: model and adapter from the first step to the last.

use std::path::Path;
use std::process::{Command, Output};

/// A merge of the digits in `folder`, with compiled kernels kept in `cache`.
fn merge(folder: &Path, cache: &Path, arguments: &[&str]) -> std::io::Result<Output> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let fixture = |name: &str| fixtures.join(name).display().to_string();
    Command::new(env!("CARGO_BIN_EXE_onnx-merge"))
        .current_dir(folder)
        .env("ONNX_MERGE_CACHE", cache)
        .args([fixture("digits_cnn.onnx"), fixture("digits_mlp.onnx")])
        .args([
            "-o",
            "out.onnx",
            "--data",
            &fixture("digits_train100.npz"),
            "--val",
            &fixture("digits_val.npz"),
        ])
        .args(["--scale", "1/255", "--steps", "8", "--batch", "16", "--method", "lpka", "--json", "--quiet"])
        .args(arguments)
        .output()
}

#[test]
fn a_merge_trains_model_and_adapter_on_the_gpu() -> std::io::Result<()> {
    if crate::wgpu::GPU.is_none() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let gpu = ["--executor", "wgpu", "--allow-software-gpu", "--profile", "trace.json"];
    let cache = folder.path().join("cache");
    let ran = merge(folder.path(), &cache, &gpu)?;
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(matches!(ran.status.code(), Some(0 | 4)), "{errors}");
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout)?;
    for part in ["model", "adapter"] {
        let used = &report["executors"][part];
        assert_eq!(used["name"], "wgpu");
        // Nothing of it ran elsewhere.
        assert!(!used["device"].as_str().unwrap_or_default().contains("CPU"), "{used}");
    }
    let table: Vec<&str> = errors.lines().collect();
    let begins = |part: &str| table.iter().any(|line| line.starts_with(part));
    assert!(begins("model step") && begins("update") && begins("forward"), "{errors}");
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path().join("trace.json"))?)?;
    let events = trace["traceEvents"].as_array().map_or(0, Vec::len);
    assert!(events > 16, "{events} events");

    // The second run finds what the first one compiled, if the driver gives that away.
    let doctor = Command::new(env!("CARGO_BIN_EXE_onnx-merge"))
        .args(["doctor", "--json"])
        .env("ONNX_MERGE_CACHE", &cache)
        .output()?;
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout)?;
    assert_eq!(doctor["kernel_cache"]["folder"].as_str().map(Path::new), Some(&*cache));
    let kept = doctor["kernel_cache"]["bytes"].as_u64().unwrap_or_default();
    let gives_away = doctor["gpus"].to_string().contains("pipeline cache");
    assert_eq!(kept > 0, gives_away, "{doctor}");

    let again = tempfile::tempdir()?;
    let twin = merge(again.path(), &cache, &gpu[..3])?;
    let twin: serde_json::Value = serde_json::from_slice(&twin.stdout)?;
    assert_eq!(twin["output"]["sha256"], report["output"]["sha256"], "the same seed gave other weights");

    let cpu = tempfile::tempdir()?;
    let cpu = merge(cpu.path(), Path::new("off"), &["--executor", "tract"])?;
    let cpu: serde_json::Value = serde_json::from_slice(&cpu.stdout)?;
    let score = |report: &serde_json::Value| report["shipped"]["val"].as_f64().unwrap_or(f64::NAN);
    assert!((score(&cpu) - score(&report)).abs() <= 0.02, "{cpu} {report}");
    Ok(())
}
