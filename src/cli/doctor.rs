//! `onnx-merge doctor`: what can run here, and why something can't.

use super::args::{ExecutorArgs, executor_options};
use super::terminal::Paint;
use crate::error::Result;
use crate::runtime::{Health, diagnose};
use crate::train::TrainConfig;
use serde_json::json;
use std::fmt::Write;

/// Shows which executors are there, what they would run on, and why one can't be used.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  onnx-merge doctor\n  onnx-merge doctor --ort-lib /opt/onnxruntime/lib --json"
)]
pub struct Args {
    #[command(flatten)]
    executor: ExecutorArgs,
    /// Write the result as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<u8> {
    let mut config = TrainConfig::default();
    args.executor.apply(&mut config);
    let diagnosis = diagnose(&executor_options(&config));
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
    super::print(&text)?;
    Ok(0)
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
