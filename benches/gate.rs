//! Whether the gate holds: random pairs of models with random options, bad ones among them. What is shipped must not be worse
//! than the untouched target on test rows by more than sampling noise, and what is refused must be refused with a reason.
//!
//!     ONNX_MERGE_GATE_MODELS=/path/to/models:/path/to/more ONNX_MERGE_TRANSFER_DATA=/path/to/data cargo bench --bench gate
//!
//! Models are the fixtures and every ONNX file directly in the folders named; without these the fixtures alone. A target is
//! a model that answers some data set, scaled in one of the usual ways, at twice the rate of guessing; a source is one of
//! the same data, or any model at all. `ONNX_MERGE_BENCH_PAIRS` (50) and `…_SEED` (0) choose the pairs, `…_OUT` where files go
//! (`target/gate`), `…_PROGRAM` another build of the program. Pairs already in `results.jsonl` there are not run
//! again. Exit code 1 where the gate failed. Figures: docs/transfer.md.

use onnx_merge::data::{read_npz, write_npz};
use onnx_merge::onnx::Tensor;
use onnx_merge::{Error, Result};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How images are usually scaled for a model.
const SCALES: [&[&str]; 4] = [
    &[],
    &["--scale", "1/255"],
    &["--scale", "1/255", "--mean", "0.1307", "--std", "0.3081"],
    &["--scale", "1/255", "--mean", "0.4914,0.4822,0.4465", "--std", "0.2471,0.2435,0.2616"],
];
/// A run of more seconds of training is cut short by the program itself.
const SECONDS: &str = "60";

struct DataSet {
    name: String,
    parts: [PathBuf; 3],
    classes: usize,
}

/// A model with data that it answers.
struct Target<'a> {
    model: &'a PathBuf,
    data: &'a DataSet,
    scale: &'static [&'static str],
    accuracy: f64,
}

struct Bench {
    out: PathBuf,
    seed: u64,
    results: Mutex<Vec<Json>>,
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let number = |name: &str, default| variable(name).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (pairs, seed) = (number("PAIRS", 50) as usize, number("SEED", 0));
    let out = variable("OUT").map_or_else(|| root.join("target/gate"), PathBuf::from);
    std::fs::create_dir_all(&out).map_err(|e| Error::io(&out, e))?;
    let mut folders = vec![root.join("fixtures")];
    folders.extend(std::env::var_os("ONNX_MERGE_GATE_MODELS").iter().flat_map(std::env::split_paths));
    let models: Vec<PathBuf> = folders.iter().flat_map(|f| files_in(f, ".onnx")).collect();
    let mut sets = data_sets(&root.join("fixtures"))?;
    if let Some(folder) = std::env::var_os("ONNX_MERGE_TRANSFER_DATA") {
        sets.extend(data_sets(Path::new(&folder))?);
    }
    let targets = in_parallel(models.len(), |i| target(&models[i], &sets));
    let targets: Vec<Target<'_>> = targets.into_iter().flatten().collect();
    eprintln!("{} models, {} of them targets, {} data sets", models.len(), targets.len(), sets.len());
    for Target { model, data, scale, accuracy } in &targets {
        eprintln!("  {}: {} {}, {:.1} %", model.display(), data.name, scale.join(" "), accuracy * 100.0);
    }
    if targets.is_empty() {
        return Err(Error::usage("no model answers any of the data"));
    }
    let path = out.join("results.jsonl");
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let known = known.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let bench = Bench { out, seed, results: Mutex::new(known) };
    in_parallel(pairs, |pair| {
        if let Err(error) = bench.pair(pair, &models, &targets) {
            eprintln!("pair {pair}: {error}");
        }
    });
    let results = bench.results.lock().map_err(|_| Error::usage("a pair panicked"))?;
    let failures = publish(&results, seed);
    std::process::exit(i32::from(failures > 0))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("ONNX_MERGE_BENCH_{name}")).ok()
}

/// `work(0)` to `work(count − 1)`, as many at once as there are cores; the results in order.
fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        break;
                    }
                    let result = work(i);
                    if let Ok(mut done) = done.lock() {
                        done.push((i, result));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

fn files_in(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let fits = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(ending));
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(fits).collect();
    files.sort();
    files
}

/// Files NAME_train.npz, NAME_val.npz and NAME_test.npz whose `y` is classes.
fn data_sets(folder: &Path) -> Result<Vec<DataSet>> {
    let mut sets = vec![];
    for train in files_in(folder, "_train.npz") {
        let name = train.file_name().unwrap_or_default().to_string_lossy().replace("_train.npz", "");
        let part = |part: &str| folder.join(format!("{name}_{part}.npz"));
        let parts = [train, part("val"), part("test")];
        let arrays = read_npz(&parts[0])?;
        let labels = arrays.iter().find(|(n, y)| n == "y" && y.dtype().is_int());
        if let (Some((_, y)), true) = (labels, parts.iter().all(|p| p.is_file())) {
            let classes = 1 + y.to_i64().iter().max().copied().unwrap_or(0) as usize;
            sets.push(DataSet { name, parts, classes });
        }
    }
    Ok(sets)
}

fn program() -> Command {
    Command::new(variable("PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_onnx-merge").into()))
}

/// Accuracy by the program's own `eval`, where it can tell.
fn accuracy(model: &Path, data: &Path, scale: &[&str]) -> Option<f64> {
    let mut command = program();
    command.arg("eval").arg(model).arg("--data").arg(data).args(scale).args(["--json", "--threads", "1"]);
    let done = command.stderr(Stdio::null()).output().ok()?;
    serde_json::from_slice::<Json>(&done.stdout).ok()?["accuracy"].as_f64()
}

/// The data and the scale that a model answers best.
fn target<'a>(model: &'a PathBuf, sets: &'a [DataSet]) -> Option<Target<'a>> {
    let tried = sets.iter().flat_map(|data| SCALES.map(|scale| (data, scale)));
    let judged = tried.filter_map(|(data, scale)| {
        let accuracy = accuracy(model, &data.parts[1], scale)?;
        (accuracy * data.classes as f64 > 2.0).then_some(Target { model, data, scale, accuracy })
    });
    judged.max_by(|a, b| a.accuracy.total_cmp(&b.accuracy))
}

impl Bench {
    /// One pair, unless it is known.
    fn pair(&self, pair: usize, models: &[PathBuf], targets: &[Target<'_>]) -> Result<()> {
        let same = |r: &Json| r["pair"] == pair && r["seed"] == self.seed;
        if self.results.lock().is_ok_and(|known| known.iter().any(same)) {
            return Ok(());
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed << 32 | pair as u64);
        let Some(target) = targets.choose(&mut random) else { return Ok(()) };
        let fellows: Vec<&PathBuf> = match random.random_bool(0.5) {
            true => targets.iter().filter(|t| t.data.name == target.data.name).map(|t| t.model).collect(),
            false => models.iter().collect(),
        };
        let Some(source) = fellows.choose(&mut random) else { return Ok(()) };
        let folder = self.out.join(format!("{}-{pair}", self.seed));
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let mut options = options(&mut random);
        options.extend(data(target, &folder, &mut random)?);
        let out = folder.join("out.onnx");
        std::fs::remove_file(&out).ok();
        let mut command = program();
        command.arg(source).arg(target.model).arg("-o").arg(&out).args(&options).args(target.scale);
        command.args(["--time", SECONDS, "--json", "--quiet", "--threads", "1"]);
        let done = command.output().map_err(|e| Error::usage(format!("the program doesn't start: {e}")))?;
        let report: Json = serde_json::from_slice(&done.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        let test = &target.data.parts[2];
        let measured = [target.model, out.as_path()].map(|model| accuracy(model, test, target.scale));
        let (verdict, why) = verdict(done.status.code(), &report, &said, target.model, &out, measured);
        eprintln!("pair {pair}: {verdict} {why}");
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.record(json!({
            "pair": pair, "seed": self.seed, "source": name(source), "target": name(target.model),
            "data": target.data.name, "options": options.join(" "), "verdict": verdict, "why": why,
            "method": report["method"], "before": measured[0], "after": measured[1], "gain": report["gains"]["test"],
            "on_validation": report["gains"]["val"],
        }))
    }

    fn record(&self, record: Json) -> Result<()> {
        let path = self.out.join("results.jsonl");
        let mut results = self.results.lock().map_err(|_| Error::usage("a pair panicked"))?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        writeln!(file.map_err(|e| Error::io(&path, e))?, "{record}").map_err(|e| Error::io(&path, e))?;
        results.push(record);
        Ok(())
    }
}

/// What came of a pair, and why.
fn verdict(
    code: Option<i32>,
    report: &Json,
    said: &str,
    target: &Path,
    out: &Path,
    measured: [Option<f64>; 2],
) -> (&'static str, String) {
    let last = said.lines().find(|line| line.contains("error")).unwrap_or(said).to_owned();
    match code {
        Some(0) => {
            let (gain, spread) = (&report["gains"]["test"]["mean"], &report["gains"]["test"]["stderr"]);
            let (Some(gain), Some(spread)) = (gain.as_f64(), spread.as_f64()) else {
                return ("BROKEN", "the report has no gain on test".into());
            };
            let said = format!("{:+.2} ± {:.2} points", gain * 100.0, spread * 100.0);
            match measured {
                [Some(before), Some(after)] if (after - before - gain).abs() < 1e-6 => {
                    (if gain < -2.0 * spread { "WORSE" } else { "shipped" }, said)
                }
                _ => ("BROKEN", format!("the report says {said}, eval {measured:?}")),
            }
        }
        Some(4) => match std::fs::read(target).ok() == std::fs::read(out).ok() {
            true => ("kept", String::new()),
            false => ("BROKEN", "the target was kept, but the output differs from it".into()),
        },
        Some(2 | 3 | 5) if out.exists() => ("BROKEN", format!("refused, but there is an output: {last}")),
        Some(2 | 3 | 5) if !last.is_empty() => ("refused", last),
        code => ("BROKEN", format!("exit code {code:?}: {last}")),
    }
}

/// Options of a run, from sensible to absurd.
fn options(random: &mut ChaCha8Rng) -> Vec<String> {
    const CHOICES: &[(&str, &[&str])] = &[
        ("--method", &["auto", "auto", "lpka", "lpka+kd", "kd", "finetune"]),
        ("--preset", &["structured", "residual", "paper"]),
        ("--start", &["auto", "fitted", "mapped"]),
        ("--batch", &["1", "7", "32", "200"]),
        ("--steps", &["2", "10", "40", "150"]),
        ("--optimizer", &["adamw", "sgd"]),
        ("--schedule", &["cosine", "constant"]),
        ("--weight-decay", &["0", "0.01", "1", "30"]),
        ("--clip", &["0", "1"]),
        ("--rank", &["1", "4", "64"]),
        ("--gate", &["0", "0.5", "1"]),
        ("--shift", &["0", "2", "9"]),
        ("--temperature", &["0.5", "4", "30"]),
        ("--alpha", &["0", "1"]),
        ("--align", &["0", "30"]),
        ("--dropout", &["0", "0.9"]),
        ("--patience", &["1", "3"]),
    ];
    let mut options = vec![];
    // Some runs are nearly the default's, others nothing like it.
    let often = *[0.05, 0.2, 0.4].choose(random).unwrap_or(&0.0);
    for (name, values) in CHOICES {
        if let (true, Some(value)) = (random.random_bool(often), values.choose(random)) {
            options.extend([(*name).to_owned(), (*value).to_owned()]);
        }
    }
    if random.random_bool(2.0 * often) {
        let rate = 10f64.powf(random.random_range(-5.0..1.0));
        options.extend(["--lr".to_owned(), format!("{rate:.6}")]);
    }
    options.extend(["--seed".to_owned(), random.random_range(0..1000).to_string()]);
    options
}

/// Some training rows, at times with wrong labels, and validation rows of their own or none; all test rows.
fn data(target: &Target<'_>, folder: &Path, random: &mut ChaCha8Rng) -> Result<Vec<String>> {
    let [train, val, test] = &target.data.parts;
    let own_validation = random.random_bool(0.5);
    let wrong = if own_validation && random.random_bool(0.4) { random.random_range(0.0..1.0) } else { 0.0 };
    let path = |name: &str| folder.join(name);
    let few = random.random_range(25..600);
    deal(train, few, wrong, target.data.classes, &path("train.npz"), random)?;
    let mut options = vec!["--data".into(), path("train.npz").display().to_string()];
    if own_validation {
        let few = random.random_range(20..600);
        deal(val, few, 0.0, target.data.classes, &path("val.npz"), random)?;
        options.extend(["--val".into(), path("val.npz").display().to_string()]);
    }
    options.extend(["--test".into(), test.display().to_string()]);
    Ok(options)
}

/// Writes `count` random rows of a file, a share of them with `wrong` labels.
fn deal(
    from: &Path,
    count: usize,
    wrong: f64,
    classes: usize,
    to: &Path,
    random: &mut ChaCha8Rng,
) -> Result<()> {
    let arrays = read_npz(from)?;
    let all = arrays.first().map_or(0, |(_, tensor)| tensor.shape()[0]);
    let mut rows: Vec<usize> = (0..all).collect();
    rows.shuffle(random);
    rows.truncate(count);
    let mut dealt = vec![];
    for (name, tensor) in arrays {
        let picked: Vec<f64> = rows.iter().flat_map(|&row| tensor.rows(row..row + 1).to_f64()).collect();
        let mut shape = tensor.shape().to_vec();
        shape[0] = rows.len();
        let mut values = picked;
        if name == "y" {
            let mislead = |_: &f64| random.random_range(0..classes) as f64;
            let misled: Vec<f64> = values.iter().map(mislead).collect();
            values.iter_mut().zip(misled).for_each(|(value, other)| {
                if random.random_bool(wrong) {
                    *value = other;
                }
            });
        }
        dealt.push((name, Tensor::from_f64(tensor.dtype(), &shape, &values)));
    }
    write_npz(to, &dealt)
}

/// Prints every pair and the sum; returns how many failed.
fn publish(results: &[Json], seed: u64) -> usize {
    let mut results: Vec<&Json> = results.iter().filter(|r| r["seed"] == seed).collect();
    results.sort_by_key(|r| r["pair"].as_u64());
    println!("| source | target | came of it | gain on test, points | options |\n|---|---|---|---|---|");
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    for r in &results {
        let why = text(&r["why"]).replace('|', "/");
        let options = text(&r["options"]);
        let options = options.split(" --data").next().unwrap_or_default();
        let (verdict, gain) = match r["verdict"].as_str() {
            Some("shipped" | "WORSE") => (text(&r["verdict"]), why),
            _ => (format!("{} {why}", text(&r["verdict"])), String::new()),
        };
        println!("| {} | {} | {verdict} | {gain} | `{options}` |", text(&r["source"]), text(&r["target"]));
    }
    let count = |verdict: &str| results.iter().filter(|r| r["verdict"] == verdict).count();
    let [shipped, kept, refused, worse, broken] =
        ["shipped", "kept", "refused", "WORSE", "BROKEN"].map(count);
    println!(
        "\n{} pairs: {} shipped, of them {worse} worse by more than two standard errors; {kept} targets kept; {refused} \
         refused; {broken} broken",
        results.len(),
        shipped + worse
    );
    worse + broken
}
