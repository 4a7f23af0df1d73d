//! Steps of the fixtures' networks under every executor against PyTorch eager, in one run.
//!
//!     ONNX_MERGE_TORCH=/path/to/python cargo bench --bench steps
//!
//! The variable names a Python that has torch; without it only this program is measured. ONNX_MERGE_ONNXSIM names one that has
//! onnxsim, too, whose own training loop then takes part. Every case runs in a process
//! of its own, so that peak memory and the time to the first step are its own too; rounds alternate between the two
//! sides, since a machine's speed drifts. `ONNX_MERGE_BENCH_THREADS`, `…_BATCH`, `…_STEPS` and `…_ROUNDS` change the
//! size, `…_EXECUTORS` which executors run (`ort,tract`), `…_DEVICE` where PyTorch runs (`cpu`). With `…_MODELS` naming a
//! folder, the larger networks that `torch_steps.py export FOLDER` writes there take part. `…_SOFTWARE` allows a software
//! driver as a GPU, `…_CASES=resnet18,encoder` leaves only these networks, `…_CACHE` names a folder for compiled GPU
//! kernels, `…_PRECISION=f16` rounds large products on a GPU. Figures and what they mean: docs/benchmarks.md.

use onnx_merge::lpka::{self, Origin, Side};
use onnx_merge::onnx::{DType, Tensor, ValueId};
use onnx_merge::params::Pairing;
use onnx_merge::runtime::{self, Executor, ExecutorChoice, ExecutorOptions, Precision, Runner, Value};
use onnx_merge::train::fit::{Done, LossProgram};
use onnx_merge::train::model_step::Objective;
use onnx_merge::train::network::{Network, Purpose};
use onnx_merge::train::{TrainConfig, runs};
use onnx_merge::{Error, Result};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// (kind, network): the model's own step, and the adapter's that carries `digits_cnn` into the network.
const CASES: &[(&str, &str)] = &[
    ("model", "digits_cnn"),
    ("model", "digits_small_cnn"),
    ("model", "digits_transformer"),
    ("adapter", "digits_small_cnn"),
];

/// Larger networks, which PyTorch's side writes; those of the adapter come from torchvision.
const LARGE: &[(&str, &str)] =
    &[("model", "resnet18"), ("model", "mobilenet"), ("model", "encoder"), ("adapter", "mobilenet_v2")];

/// Where the adapter into a network comes from.
fn source_of(network: &str) -> &'static str {
    if network == "mobilenet_v2" { "resnet50" } else { "digits_cnn" }
}

struct Size {
    threads: usize,
    batch: usize,
    steps: usize,
    rounds: usize,
}

fn main() -> Result<()> {
    runtime::silence_telemetry();
    let begun = Instant::now();
    let args: Vec<String> = std::env::args().collect();
    let number = |name: &str, default| {
        let text = std::env::var(format!("ONNX_MERGE_BENCH_{name}")).ok();
        text.and_then(|t| t.parse().ok()).unwrap_or(default)
    };
    let size = Size {
        threads: number("THREADS", 1),
        batch: number("BATCH", 64),
        steps: number("STEPS", 200),
        rounds: number("ROUNDS", 3),
    };
    match args.iter().position(|a| a == "--case").and_then(|at| args.get(at + 1..at + 4)) {
        Some([executor, kind, network]) => case(executor, kind, network, &size, begun),
        _ => {
            all(&size);
            Ok(())
        }
    }
}

/// Runs every case under every side, and prints a table in Markdown.
fn all(size: &Size) {
    let torch = std::env::var_os("ONNX_MERGE_TORCH").map(PathBuf::from);
    let onnxsim = std::env::var_os("ONNX_MERGE_ONNXSIM").map(PathBuf::from);
    let only = std::env::var("ONNX_MERGE_BENCH_CASES").ok();
    println!("batch {}, {} thread(s), best of {} rounds\n", size.batch, size.threads, size.rounds);
    println!(
        "| step | side | fastest, ms | ÷ PyTorch | median, ms | first step, s | memory of the step, MB | ÷ PyTorch | whole process, MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let executors = std::env::var("ONNX_MERGE_BENCH_EXECUTORS").unwrap_or_else(|_| "ort,tract".into());
    let large = if std::env::var_os("ONNX_MERGE_BENCH_MODELS").is_some() { LARGE } else { &[] };
    for &(kind, network) in CASES.iter().chain(large) {
        if only.as_ref().is_some_and(|only| !only.split(',').any(|name| name == network)) {
            continue;
        }
        // onnxsim knows no adapters.
        let peer = onnxsim.as_ref().filter(|_| kind == "model");
        let sides: Vec<&str> = torch
            .iter()
            .map(|_| "PyTorch")
            .chain(peer.iter().map(|_| "onnxsim"))
            .chain(executors.split(','))
            .collect();
        let mut results: Vec<Option<Json>> = vec![None; sides.len()];
        for _ in 0..size.rounds {
            for (side, best) in sides.iter().zip(&mut results) {
                let result = match (*side, &torch, peer) {
                    ("PyTorch", Some(python), _) => by_python(python, "torch_steps.py", kind, network, size),
                    ("onnxsim", _, Some(python)) => {
                        by_python(python, "onnxsim_steps.py", kind, network, size)
                    }
                    _ => by_us(side, kind, network),
                };
                *best = better(best.take(), result);
            }
        }
        let reference = torch.as_ref().and_then(|_| results.first().cloned().flatten());
        for (side, result) in sides.iter().zip(&results) {
            let Some(result) = result else {
                println!("| {kind} {network} | {side} | can't run | | | | | | |");
                continue;
            };
            let of = |json: &Json, key: &str| json[key].as_f64().unwrap_or(f64::NAN);
            let ratio = |f: &dyn Fn(&Json) -> f64| reference.as_ref().map_or(f64::NAN, |r| f(result) / f(r));
            println!(
                "| {kind} {network} | {side} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.2} | {:.0} |",
                of(result, "seconds") * 1e3,
                ratio(&|json| of(json, "seconds")),
                of(result, "median") * 1e3,
                of(result, "first"),
                step_memory_of(result) / 1e6,
                ratio(&step_memory_of),
                of(result, "peak") / 1e6,
            );
        }
    }
}

/// A folder of this repository: where it was built, or where it was carried to and is run.
fn here(folder: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    if built.exists() { built } else { folder.into() }
}

/// The smaller of two results, figure by figure: noise only ever adds.
fn better(a: Option<Json>, b: Option<Json>) -> Option<Json> {
    let (Some(a), Some(b)) = (a.clone(), b.clone()) else { return a.or(b) };
    let least = |key: &str| {
        let (a, b) = (a[key].as_f64().unwrap_or(f64::INFINITY), b[key].as_f64().unwrap_or(f64::INFINITY));
        a.min(b)
    };
    let smaller = if step_memory_of(&a) <= step_memory_of(&b) { &a } else { &b };
    Some(json!({
        "seconds": least("seconds"), "median": least("median"), "first": least("first"), "peak": smaller["peak"], "idle": smaller["idle"],
        "held": smaller["held"],
    }))
}

fn step_memory_of(json: &Json) -> f64 {
    json["held"].as_f64().unwrap_or(f64::INFINITY) - json["idle"].as_f64().unwrap_or(0.0)
}

fn by_python(python: &Path, script: &str, kind: &str, network: &str, size: &Size) -> Option<Json> {
    let script = here("benches").join(script);
    let numbers = [size.batch, size.threads, size.steps].map(|n| n.to_string());
    last_line(Command::new(python).arg(script).args([kind, network]).args(numbers))
}

fn by_us(executor: &str, kind: &str, network: &str) -> Option<Json> {
    let program = std::env::current_exe().ok()?;
    last_line(Command::new(program).args(["--case", executor, kind, network]))
}

/// What a program prints last, as JSON, with the most memory it held of its own while it ran.
fn last_line(command: &mut Command) -> Option<Json> {
    let mut child = command.stderr(Stdio::inherit()).stdout(Stdio::piped()).spawn().ok()?;
    let mut most = 0;
    while child.try_wait().ok()?.is_none() {
        most = most.max(anonymous(&child.id().to_string()));
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut json: Json = serde_json::from_str(text.lines().last()?).ok()?;
    json["held"] = json!(most);
    Some(json)
}

/// One case in this process; prints one line of JSON.
fn case(executor: &str, kind: &str, network: &str, size: &Size, begun: Instant) -> Result<()> {
    let choice = match executor {
        "ort" => ExecutorChoice::Ort,
        "wgpu" => ExecutorChoice::Wgpu,
        _ => ExecutorChoice::Tract,
    };
    let allow_software_gpu = std::env::var_os("ONNX_MERGE_BENCH_SOFTWARE").is_some();
    let options = ExecutorOptions {
        threads: Some(size.threads),
        allow_software_gpu,
        kernel_cache: std::env::var_os("ONNX_MERGE_BENCH_CACHE").map(PathBuf::from),
        precision: match std::env::var("ONNX_MERGE_BENCH_PRECISION").as_deref() {
            Ok("f16") => Precision::F16,
            _ => Precision::default(),
        },
        ..ExecutorOptions::default()
    };
    let executor = runtime::open(choice, &options)?;
    #[cfg(feature = "wgpu")]
    if kind.ends_with("kernels") {
        return kernels(&executor, kind, network, size.batch);
    }
    let idle = anonymous("self");
    let mut step = match kind {
        "model" => model_step(&executor, network, size.batch)?,
        // Its gradients are given: one row will do.
        _ => adapter_step(&executor, network, if network == "mobilenet_v2" { 1 } else { size.batch })?,
    };
    step()?;
    let first = begun.elapsed().as_secs_f64();
    for _ in 0..size.steps / 10 {
        step()?;
    }
    let mut times = vec![];
    for _ in 0..size.steps {
        let begun = Instant::now();
        step()?;
        times.push(begun.elapsed());
    }
    times.sort();
    let at = |i: usize| times.get(i).copied().unwrap_or(Duration::ZERO).as_secs_f64();
    let (fastest, median) = (at(0), at(times.len() / 2));
    println!(
        "{}",
        json!({ "seconds": fastest, "median": median, "first": first, "peak": peak(), "idle": idle })
    );
    Ok(())
}

type Step = Box<dyn FnMut() -> Result<()>>;

/// Where a network's file is.
fn path_of(network: &str) -> PathBuf {
    let name = format!("{network}.onnx");
    let mut path = here("fixtures").join(&name);
    if let (false, Some(folder)) = (path.exists(), std::env::var_os("ONNX_MERGE_BENCH_MODELS")) {
        path = Path::new(&folder).join(name);
    }
    path
}

fn open(executor: &Arc<dyn Executor>, network: &str, batch: usize) -> Result<Network> {
    Network::open(&path_of(network), batch, Purpose::default(), &**executor)
}

/// Forward, backward and AdamW on all weights, cut into runs as training does it.
fn model_step(executor: &Arc<dyn Executor>, network: &str, batch: usize) -> Result<Step> {
    let network = runs::open_target(&path_of(network), batch, Purpose::default(), &**executor)?;
    let weights = network.trainable(&[])?;
    let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
    let step = network.step(&names, Objective::Classes { layout: network.head.layout, ignores: false })?;
    let mut program = LossProgram::new(&step, &step.weights, &**executor, network.batch < batch)?;
    let target = Side { graph: &network.params, weights: weights.into_iter().collect() };
    let config = TrainConfig::default();
    let update = lpka::build(&target, &[], &step.weights, &config, 0.0, &**executor, 0)?;
    let mut runner = Runner::new(executor.clone(), &update.step_program())?;
    let mut feeds: Vec<Value> = vec![];
    for (_, fact) in &network.inputs {
        let values: Vec<f64> = (0..fact.len()).map(|i| (i % 17) as f64 / 16.0).collect();
        feeds.push(Value::host(Tensor::from_f64(fact.dtype, &fact.shape, &values)));
    }
    let labels: Vec<i64> = (0..network.batch as i64).map(|i| i % 10).collect();
    feeds.push(Value::host(Tensor::i64(&[network.batch], &labels)));
    let feeds = vec![feeds; batch / network.batch];
    let links = Links::new(&runner, &update, &step.weights)?;
    let mut merged = links.first;
    Ok(Box::new(move || {
        let Done { loss, gradients, .. } = program.run(feeds.clone(), &merged, None)?;
        if !loss.is_finite() {
            return Err(Error::usage("the loss is not finite"));
        }
        for (feed, gradient) in links.gradients.iter().zip(gradients) {
            runner.set(*feed, gradient)?;
        }
        runner.set(links.rate, Value::host(Tensor::scalar(DType::F32, 1e-3)))?;
        let outputs = runner.run()?;
        links.gradients.iter().for_each(|feed| runner.clear(*feed));
        merged = links.merged.iter().map(|fetch| outputs.get(*fetch).clone()).collect();
        Ok(())
    }))
}

/// Prints what each kernel of a network's model step takes on the GPU, or of the adapter's into it:
/// `--case wgpu kernels NETWORK`, `--case wgpu adapter_kernels NETWORK`.
#[cfg(feature = "wgpu")]
fn kernels(executor: &Arc<dyn Executor>, kind: &str, network: &str, batch: usize) -> Result<()> {
    let (model, facts, known) = match kind {
        "kernels" => {
            let network = open(executor, network, batch)?;
            let weights = network.trainable(&[])?;
            let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
            let step =
                network.step(&names, Objective::Classes { layout: network.head.layout, ignores: false })?;
            (step.model, step.facts, weights)
        }
        _ => {
            let (update, _) = adapter(executor, network, 1)?;
            let state = update.state.into_iter().map(|state| (state.input, state.initial));
            (update.model, update.facts, state.collect())
        }
    };
    let gpu = runtime::WgpuExecutor::open(true)?;
    let mut inputs = vec![];
    for input in model.graph.required_inputs() {
        let value = known.iter().find(|(id, _)| *id == input.id).map(|(_, tensor)| tensor.clone());
        let fact = &facts[&input.id];
        inputs.push(gpu.upload(&value.unwrap_or_else(|| Tensor::zeros(fact.dtype, &fact.shape)))?);
    }
    let times = gpu.profile(&model, &facts, &inputs)?;
    println!("{}, {} kernels", gpu.device(), gpu.kernels());
    for time in times {
        let (calls, milliseconds) = (time.calls, time.seconds * 1e3);
        println!("{:16} {calls:5} calls {:5} dispatches {milliseconds:9.3} ms", time.kernel, time.dispatches);
    }
    Ok(())
}

/// The adapter's step for fixed gradients: backward through the maps, AdamW, the next merged weights.
fn adapter_step(executor: &Arc<dyn Executor>, network: &str, batch: usize) -> Result<Step> {
    let (update, names) = adapter(executor, network, batch)?;
    let mut runner = Runner::new(executor.clone(), &update.step_program())?;
    let links = Links::new(&runner, &update, &names)?;
    for (feed, value) in links.gradients.iter().zip(&links.first) {
        let fact = value.fact();
        let values: Vec<f64> =
            (0..fact.len()).map(|i| 1e-3 * ((i * 7919 % 1000) as f64 / 500.0 - 1.0)).collect();
        runner.set(*feed, Value::host(Tensor::from_f64(fact.dtype, &fact.shape, &values)))?;
    }
    for (id, fact) in &update.noise {
        let feed = runner.feed(id)?;
        runner.set(feed, Value::host(Tensor::from_f64(fact.dtype, &fact.shape, &vec![0.5; fact.len()])))?;
    }
    runner.set(links.rate, Value::host(Tensor::scalar(DType::F32, 1e-3)))?;
    Ok(Box::new(move || runner.run().map(|_| ())))
}

/// The update that carries a source's knowledge into a network, and the weights it is made for.
fn adapter(
    executor: &Arc<dyn Executor>,
    network: &str,
    batch: usize,
) -> Result<(lpka::UpdateProgram, Vec<ValueId>)> {
    let (target, source) = (open(executor, network, batch)?, open(executor, source_of(network), batch)?);
    let weights = target.trainable(&[])?;
    let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
    let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
    let known = |network: &Network| -> Vec<(ValueId, Tensor)> {
        let of = |id: &ValueId| network.model.graph.initializers.get(id).cloned();
        network.params.weights.iter().filter_map(|w| Some((w.name.clone(), of(&w.name)?))).collect()
    };
    let from = Side { graph: &source.params, weights: known(&source).into_iter().collect() };
    let to = Side { graph: &target.params, weights: weights.into_iter().collect() };
    let config = TrainConfig::default();
    let update = lpka::build(&to, &[Origin::new(from, &pairing)], &names, &config, 0.5, &**executor, 0)?;
    Ok((update, names))
}

/// Where the update program meets the model step.
struct Links {
    gradients: Vec<runtime::Feed>,
    merged: Vec<runtime::Fetch>,
    rate: runtime::Feed,
    first: Vec<Value>,
}

impl Links {
    fn new(runner: &Runner, update: &lpka::UpdateProgram, weights: &[ValueId]) -> Result<Self> {
        let of = |pairs: &[(ValueId, ValueId)], weight: &ValueId| {
            let found = pairs.iter().find(|(w, _)| w == weight).map(|(_, v)| v.clone());
            found.ok_or_else(|| Error::tensor(weight.as_str(), "is not part of the update"))
        };
        let first = |weight: &ValueId| {
            let found = update.initial.iter().find(|(w, _)| w == weight).map(|(_, t)| Value::host(t.clone()));
            found.ok_or_else(|| Error::tensor(weight.as_str(), "has no first value"))
        };
        Ok(Self {
            gradients: weights
                .iter()
                .map(|w| runner.feed(&of(&update.gradients, w)?))
                .collect::<Result<_>>()?,
            merged: weights.iter().map(|w| runner.fetch(&of(&update.merged, w)?)).collect::<Result<_>>()?,
            rate: runner.feed(&update.learning_rate)?,
            first: weights.iter().map(first).collect::<Result<_>>()?,
        })
    }
}

/// The largest resident memory of this process so far, in bytes.
fn peak() -> u64 {
    memory("self", "VmHWM:")
}

/// What a process holds in memory now apart from files' pages (programs, libraries), in bytes.
fn anonymous(process: &str) -> u64 {
    memory(process, "RssAnon:")
}

/// A figure of a process's memory, in bytes; 0 where the system doesn't tell.
fn memory(process: &str, figure: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(figure));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
