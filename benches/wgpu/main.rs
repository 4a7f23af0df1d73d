//! Operators on the GPU executor against PyTorch and burn on the same device, in one run.
//!
//!     ONNX_MERGE_TORCH=/path/to/python ONNX_MERGE_BURN=/path/to/burn-ops cargo bench --bench wgpu
//!
//! The first variable names a Python whose torch sees the GPU, the second programs built from `benches/burn` (several are
//! parted by colons, as in PATH; a column is named after its file); without them only this program is measured. Device time
//! is by the device's own clock, summed over the dispatches of a run; wall time is per run of many in a row, submitting
//! included. On PyTorch's side both are by CUDA's events over many runs in a row, on burn's by the device's own clock, from a
//! run's first dispatch to its last. Everything is float32, PyTorch's TF32 off, but for cases of `f16`: on this side operands
//! are rounded while they are read (`--precision f16`), on PyTorch's operands and results are float16.
//! `ONNX_MERGE_BENCH_CASES` chooses cases by a part of their names, `ONNX_MERGE_BENCH_SOFTWARE=1` allows a software
//! driver (figures then say nothing about GPUs), `ONNX_MERGE_BENCH_KERNELS=1` shows the kernels of each case. Figures:
//! docs/benchmarks-gpu.md.

mod cases;

use cases::Case;
use onnx_merge::onnx::Tensor;
use onnx_merge::runtime::{self, Executor, GpuOptions, Precision, Value, WgpuExecutor};
use onnx_merge::{Error, Result};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a case is repeated, about.
const LONG_ENOUGH: Duration = Duration::from_millis(150);

fn main() -> Result<()> {
    runtime::silence_telemetry();
    let setting = |name: &str| std::env::var(format!("ONNX_MERGE_BENCH_{name}")).unwrap_or_default();
    let options = GpuOptions { allow_software: setting("SOFTWARE") == "1", ..GpuOptions::default() };
    let gpu = match WgpuExecutor::open_with(options) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("no GPU to measure: {error}");
            return Ok(());
        }
    };
    let half = WgpuExecutor::open_with(GpuOptions { precision: Precision::F16, ..options })?;
    let only = setting("CASES");
    let wanted = |case: &Case| case.name().contains(&only) && (half.rounds() || !case.is_half());
    let cases: Vec<Case> = cases::all().into_iter().filter(wanted).collect();
    let peers = peers(&cases);
    println!("{}\n", half.device());
    print!("| operator | dispatches | device, ms | rate | wall, ms |");
    peers.iter().for_each(|peer| print!(" {0}, ms | device ÷ {0} |", peer.name));
    println!("\n|---|---|---|---|---|{}", "---|---|".repeat(peers.len()));
    for (i, case) in cases.iter().enumerate() {
        let m = match measure(if case.is_half() { &half } else { &gpu }, case) {
            Ok(m) => m,
            Err(error) => {
                println!("| {} | can't run: {error} | | | |{}", case.name(), " | |".repeat(peers.len()));
                continue;
            }
        };
        let (device, wall, rate) = (m.device * 1e3, m.wall * 1e3, case.work().rate(m.device));
        print!("| {} | {} | {device:.3} | {rate} | {wall:.3} |", case.name(), m.dispatches);
        for peer in &peers {
            match peer.seconds.get(i).copied().flatten() {
                Some(theirs) => print!(" {:.3} | {:.2} |", theirs * 1e3, m.device / theirs),
                None => print!(" – | – |"),
            }
        }
        println!();
    }
    Ok(())
}

struct Measured {
    dispatches: usize,
    device: f64,
    wall: f64,
}

fn measure(gpu: &WgpuExecutor, case: &Case) -> Result<Measured> {
    let (model, facts) = case.graph()?;
    let mut inputs: Vec<Value> = vec![];
    for (k, input) in model.graph.required_inputs().enumerate() {
        let fact = &facts[&input.id];
        let values: Vec<f32> =
            (0..fact.len()).map(|i| ((i * 7919 + k * 31) % 1999) as f32 / 999.0 - 1.0).collect();
        inputs.push(gpu.upload(&Tensor::f32(&fact.shape, &values))?);
    }
    let mut program = gpu.compile(&model, &facts)?;
    program.run(&inputs)?;
    gpu.finish()?;
    let begun = Instant::now();
    let mut runs = 0;
    while runs < 3 || (begun.elapsed() < LONG_ENOUGH && runs < 500) {
        program.run(&inputs)?;
        runs += 1;
    }
    gpu.finish()?;
    let wall = begun.elapsed().as_secs_f64() / f64::from(runs);
    let times = gpu.profile(&model, &facts, &inputs)?;
    if std::env::var("ONNX_MERGE_BENCH_KERNELS").is_ok() {
        for time in &times {
            eprintln!("    {} × {}: {:.3} ms", time.kernel, time.dispatches, time.seconds * 1e3);
        }
    }
    Ok(Measured {
        dispatches: times.iter().map(|t| t.dispatches).sum(),
        device: times.iter().map(|t| t.seconds).sum(),
        wall,
    })
}

/// Another program's seconds of every case; none where it can't do one.
struct Peer {
    name: String,
    seconds: Vec<Option<f64>>,
}

/// Those that are asked for, less those that fail.
fn peers(cases: &[Case]) -> Vec<Peer> {
    let mut programs = vec![];
    if let Some(python) = std::env::var_os("ONNX_MERGE_TORCH") {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/wgpu/torch_ops.py");
        let script = if script.exists() { script } else { "benches/wgpu/torch_ops.py".into() };
        let mut command = Command::new(python);
        command.arg(script);
        programs.push(("PyTorch".to_string(), command));
    }
    let burn = std::env::var_os("ONNX_MERGE_BURN").unwrap_or_default();
    for program in std::env::split_paths(&burn).filter(|program| !program.as_os_str().is_empty()) {
        let name = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        programs.push((name, Command::new(program)));
    }
    let ask = |(name, command)| match ask(command, cases) {
        Ok(seconds) => Some(Peer { name, seconds }),
        Err(error) => {
            eprintln!("{name} failed: {error}");
            None
        }
    };
    programs.into_iter().filter_map(ask).collect()
}

/// A program's answer: it reads the cases as JSON and prints seconds as JSON.
fn ask(
    mut program: Command,
    cases: &[Case],
) -> std::result::Result<Vec<Option<f64>>, Box<dyn std::error::Error>> {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| Error::usage("it takes no input"))?;
    stdin.write_all(&serde_json::to_vec(cases)?)?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(output.status.to_string().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
