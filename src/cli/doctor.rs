//! `onnx-merge doctor`: what can run here, and why something can't.

use super::args::{ExecutorArgs, executor_options};
use super::terminal::Paint;
use crate::error::Result;
use crate::runtime::{ExecutorChoice, ExecutorOptions, Gpu, Health, KernelCache, bench, diagnose, open};
use crate::train::TrainConfig;
use serde_json::json;
use std::fmt::Write;

/// Shows which executors are there, what they would run on, and why one can't be used.
#[derive(clap::Args)]
#[command(
    after_help = "Compiled GPU kernels are kept for the next start. Deleting the folder that is shown clears them;\n\
                  ONNX_MERGE_CACHE=FOLDER keeps them elsewhere, ONNX_MERGE_CACHE=off nowhere.\n\n\
                  Examples:\n  onnx-merge doctor\n  onnx-merge doctor --ort-lib /opt/onnxruntime/lib --json"
)]
pub struct Args {
    #[command(flatten)]
    executor: ExecutorArgs,
    /// Multiply matrices for a second on each executor
    #[arg(long)]
    bench: bool,
    /// Write the result as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<u8> {
    let mut config = TrainConfig::default();
    args.executor.apply(&mut config);
    let options = executor_options(&config);
    let diagnosis = diagnose(&options);
    let speeds = if args.bench { benchmarks(&options) } else { vec![] };
    if args.json {
        let libraries: Vec<_> = diagnosis
            .libraries
            .iter()
            .map(|l| {
                json!({
                    "path": l.path,
                    "origin": l.origin,
                    "version": l.version.map(|v| v.to_string()),
                    "problem": l.problem,
                })
            })
            .collect();
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "threads": std::thread::available_parallelism().map_or(1, usize::from),
            "executors": diagnosis.executors,
            "libraries": libraries,
            "gpus": diagnosis.gpus,
            "kernel_cache": diagnosis.kernel_cache,
            "gigaflops": speeds.iter().cloned().collect::<serde_json::Map<_, _>>(),
        });
        super::print_json(&value)?;
        return Ok(0);
    }
    let paint = Paint::stdout();
    let mut text = format!(
        "onnx-merge {}, {} threads\n\n",
        env!("CARGO_PKG_VERSION"),
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    diagnosis.executors.iter().for_each(|health| describe(&mut text, paint, health));
    if !diagnosis.libraries.is_empty() {
        text += "\nONNX Runtime libraries found:\n";
    }
    for library in &diagnosis.libraries {
        let version = library.version.map_or("unknown version".into(), |v| v.to_string());
        let problem = library.problem.as_ref().map_or(String::new(), |p| format!(" – {p}"));
        let _ = writeln!(text, "  {version}  {} ({}){problem}", library.path.display(), library.origin);
    }
    if !diagnosis.gpus.is_empty() {
        text += "\nGPUs found:\n";
    }
    diagnosis.gpus.iter().for_each(|gpu| describe_gpu(&mut text, gpu));
    if let Some(KernelCache { folder, bytes }) = &diagnosis.kernel_cache {
        let size = bytes.div_ceil(1 << 10);
        let _ = writeln!(text, "\nCompiled GPU kernels: {size} KiB in {}", folder.display());
    }
    if !speeds.is_empty() {
        text += "\nProducts of 512 × 512 matrices:\n";
    }
    for (executor, speed) in &speeds {
        let speed = speed.as_f64().map_or("failed".into(), |s| format!("{s:.1} GFLOP/s"));
        let _ = writeln!(text, "  {executor:<6} {speed}");
    }
    super::print(&text)?;
    Ok(0)
}

/// Executors that can be opened, with billions of floating-point operations a second; null where the benchmark fails.
fn benchmarks(options: &ExecutorOptions) -> Vec<(String, serde_json::Value)> {
    let choices = [ExecutorChoice::Ort, ExecutorChoice::Tract, ExecutorChoice::Wgpu];
    let opened = choices.iter().filter_map(|&choice| open(choice, options).ok());
    opened
        .map(|e| {
            let speed = bench::gigaflops(&*e, 1.0).ok().map(|s| (s * 10.0).round() / 10.0);
            (e.name().to_owned(), json!(speed))
        })
        .collect()
}

fn describe_gpu(text: &mut String, gpu: &Gpu) {
    let _ = writeln!(text, "  {} ({}, {}; {})", gpu.name, gpu.kind, gpu.backend, gpu.driver);
    let _ = writeln!(
        text,
        "      tensors up to {} MiB, workgroup memory {} KiB, {} workgroups a dimension",
        gpu.max_tensor >> 20,
        gpu.workgroup_memory >> 10,
        gpu.max_groups
    );
    if !gpu.features.is_empty() {
        let _ = writeln!(text, "      {}", gpu.features.join(", "));
    }
}

fn describe(text: &mut String, paint: Paint, health: &Health) {
    let (mark, what) = match (&health.device, &health.problem) {
        (Some(device), _) => (paint.green("ok "), device.as_str()),
        (None, Some(problem)) => (paint.yellow("no "), problem.as_str()),
        (None, None) => (paint.yellow("no "), "not there"),
    };
    let _ = writeln!(text, "{mark} {:<6} {what}", health.executor);
    for hint in &health.hints {
        let _ = writeln!(text, "           {} {hint}", paint.cyan("hint:"));
    }
}
