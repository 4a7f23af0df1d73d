//! What knowledge is worth: every setting of the paper, every arm, several seeds, through the program itself.
//!
//!     ONNX_MERGE_TRANSFER_DATA=/path/to/data cargo bench --bench transfer
//!
//! The folder holds `digits_image_train.npz` and the like (see `data.rs`), those in `ONNX_MERGE_GATE_MODELS` the models of
//! others that `settings.rs` names; settings whose files are missing are left out, so that without them the fixtures alone are measured. Sources, targets and headroom donors are trained on the spot, a
//! fresh split and fresh weights a seed, each process on one thread and as many at once as there are cores.
//!
//! Results go to `target/transfer/results.jsonl`, a line a run, and what is there is not run again: interrupt it, go on later.
//! At the end a table is printed, and written with a drawing as `table.md`, `results.json` and `plot.svg` beside it.
//! `ONNX_MERGE_BENCH_SEEDS` (5), `…_STEPS` (300), `…_SETTINGS` and `…_RUNS` (names with commas between) choose what
//! is run; `…_OUT` another folder, `…_PROGRAM` another build of the program. Figures and what they mean: docs/transfer.md.

mod data;
mod networks;
mod settings;
mod starts;
mod table;

use data::Task;
use onnx_merge::{Error, Result};
use serde_json::{Value as Json, json};
use settings::{Kind, RUNS, Run, SETTINGS, Setting, Start};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Steps that a source, or a donor of headroom, is trained.
const SOURCE_STEPS: &str = "1200";

struct Bench {
    out: PathBuf,
    steps: String,
    tasks: HashMap<&'static str, Task>,
    runs: Vec<&'static Run>,
    results: Mutex<Vec<Json>>,
}

fn main() -> Result<()> {
    let seeds: u64 = variable("SEEDS").and_then(|s| s.parse().ok()).unwrap_or(5);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = variable("OUT").map_or_else(|| root.join("target/transfer"), PathBuf::from);
    std::fs::create_dir_all(&out).map_err(|e| Error::io(&out, e))?;
    let chosen = |list: Option<String>, name: &str| {
        list.is_none_or(|names| names.split(',').any(|n| n.trim() == name))
    };
    let folder = std::env::var_os("ONNX_MERGE_TRANSFER_DATA").map(PathBuf::from);
    let mut tasks = HashMap::new();
    let mut settings = vec![];
    for setting in SETTINGS.iter().filter(|s| chosen(variable("SETTINGS"), s.name)) {
        for (task, _) in [setting.source, setting.target] {
            if !tasks.contains_key(task)
                && let Some(loaded) = data::load(task, folder.as_deref())?
            {
                tasks.insert(task, loaded);
            }
        }
        let sides = [setting.source, setting.target];
        match sides.iter().all(|(task, network)| tasks.contains_key(task) && network.exists()) {
            true => settings.push(setting),
            false => eprintln!(
                "{}: no data (ONNX_MERGE_TRANSFER_DATA) or no models (ONNX_MERGE_GATE_MODELS), left out",
                setting.name
            ),
        }
    }
    let results = Mutex::new(table::read(&out.join("results.jsonl"))?);
    let runs = RUNS.iter().filter(|r| chosen(variable("RUNS"), r.name)).collect();
    let bench = Bench { out, steps: variable("STEPS").unwrap_or("300".into()), tasks, runs, results };
    let units: Vec<(&Setting, u64)> =
        (0..seeds).flat_map(|seed| settings.iter().map(move |&s| (s, seed))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((setting, seed)) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = bench.unit(setting, *seed) {
                eprintln!("{} seed {seed}: {e}", setting.name);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let results = bench.results.lock().map_err(|_| Error::usage("a run panicked"))?;
    table::publish(&results, &bench.out)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("ONNX_MERGE_BENCH_{name}")).ok()
}

/// What a setting and a seed work with.
struct Files {
    folder: PathBuf,
    few: PathBuf,
    source: PathBuf,
    target: PathBuf,
}

impl Bench {
    /// Every run of one setting with one seed that isn't recorded yet.
    fn unit(&self, setting: &Setting, seed: u64) -> Result<()> {
        let missing: Vec<&Run> = self
            .runs
            .iter()
            .copied()
            .filter(|run| self.applies(run, setting) && !self.done(setting, seed, run))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let files = self.prepare(setting, seed)?;
        for run in missing {
            // What can't be done with these models says nothing of what can.
            match self.run(setting, seed, run, &files) {
                Ok(record) => self.record(record)?,
                Err(why) => eprintln!("{} seed {seed}: {}: {why}", setting.name, run.name),
            }
        }
        Ok(())
    }

    /// Whether a run says anything in a setting.
    fn applies(&self, run: &Run, setting: &Setting) -> bool {
        let itself = setting.kind == Kind::Itself;
        let sides = [setting.source.1, setting.target.1];
        let (source, target) = (&self.tasks[setting.source.0], &self.tasks[setting.target.0]);
        let readable = target.train.x.iter().any(|(name, _)| *name == source.input.0);
        match run.start {
            Start::Shown => !itself && readable,
            Start::Taught => !itself && readable && setting.kind != Kind::Task,
            Start::Selected => !itself && starts::select_between(setting.source.1, setting.target.1),
            Start::Headroom => !itself && sides.iter().all(|network| network.found().is_none()),
            Start::Joint => !itself && setting.source.1.found().is_none(),
            Start::Pair | Start::Target => true,
        }
    }

    fn done(&self, setting: &Setting, seed: u64, run: &Run) -> bool {
        let same = |r: &Json| r["setting"] == setting.name && r["seed"] == seed && r["run"] == run.name;
        self.results.lock().is_ok_and(|results| results.iter().any(same))
    }

    fn record(&self, record: Json) -> Result<()> {
        let path = self.out.join("results.jsonl");
        let mut results = self.results.lock().map_err(|_| Error::usage("a run panicked"))?;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| Error::io(&path, e))?;
        writeln!(file, "{record}").map_err(|e| Error::io(&path, e))?;
        results.push(record);
        Ok(())
    }

    /// Deals the rows and trains the source on its task and the target on its few labels.
    fn prepare(&self, setting: &Setting, seed: u64) -> Result<Files> {
        let folder = self.out.join(setting.name).join(seed.to_string());
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let at = |name: &str| folder.join(name);
        let files = Files {
            few: at("few.npz"),
            source: match setting.kind {
                Kind::Itself => at("target.onnx"),
                _ => setting.source.1.found().unwrap_or_else(|| at("source.onnx")),
            },
            target: setting.target.1.found().unwrap_or_else(|| at("target.onnx")),
            folder: folder.clone(),
        };
        let task = &self.tasks[setting.target.0];
        task.deal(setting.labels, seed).0.save(&files.few)?;
        for (name, network, task) in
            [("target", setting.target.1, setting.target.0), ("source", setting.source.1, setting.source.0)]
        {
            let task = &self.tasks[task];
            task.val.save(&at(&format!("{name}_val.npz")))?;
            task.test.save(&at(&format!("{name}_test.npz")))?;
            if network.found().is_none() {
                let fresh = at(&format!("{name}_fresh.onnx"));
                networks::write(network, task, seed * 2 + (name == "source") as u64, &fresh)?;
            }
        }
        self.rest(setting, seed).save(&at("rest.npz"))?;
        if !files.target.exists() {
            self.tune(
                &at("target_fresh.onnx"),
                &files.few,
                &at("target_val.npz"),
                &self.steps,
                &files.target,
            )?;
        }
        if !files.source.exists() {
            let (fresh, val) = (at("source_fresh.onnx"), at("source_val.npz"));
            self.tune(&fresh, &at("rest.npz"), &val, SOURCE_STEPS, &files.source)?;
        }
        Ok(files)
    }

    /// What the source is trained on: rows that the target has no labels of.
    fn rest(&self, setting: &Setting, seed: u64) -> data::Rows {
        let rows = &self.tasks[setting.source.0];
        // Tasks over the same pictures are dealt alike, so that these rows are never the target's either.
        rows.deal(setting.labels, seed).1
    }

    /// Trains a model alone on some data.
    fn tune(&self, model: &Path, data: &Path, val: &Path, steps: &str, out: &Path) -> Result<()> {
        let mut command = program();
        command.arg("tune").arg(model).arg("-o").arg(out).arg("--data").arg(data).arg("--val").arg(val);
        report(command.args(["--steps", steps, "--lr", "0.002"])).map(drop)
    }

    fn run(&self, setting: &Setting, seed: u64, run: &Run, files: &Files) -> Result<Json> {
        let at = |name: &str| files.folder.join(name);
        let mut command = program();
        match run.start {
            Start::Pair | Start::Shown | Start::Taught => command.arg(&files.source).arg(&files.target),
            Start::Joint => command
                .arg(&files.source)
                .arg(&files.target)
                .args(["--joint", "--src-data"])
                .arg(at("rest.npz")),
            Start::Target => command.arg("tune").arg(&files.target),
            Start::Selected => {
                let start = at("selected.onnx");
                let source = onnx_merge::onnx::read(&files.source)?.model.graph;
                starts::selection(&source, &files.target, &start)?;
                command.arg("tune").arg(start)
            }
            Start::Headroom => {
                let (fresh, donor, start) = (at("donor_fresh.onnx"), at("donor.onnx"), at("headroom.onnx"));
                networks::write(setting.target.1, &self.tasks[setting.source.0], seed * 2 + 1, &fresh)?;
                self.tune(&fresh, &at("rest.npz"), &at("source_val.npz"), SOURCE_STEPS, &donor)?;
                let donor = onnx_merge::onnx::read(&donor)?.model.graph;
                starts::copy(&donor, &files.target, &start)?;
                command.arg("tune").arg(start)
            }
        };
        let ([mean, std], [their_mean, their_std]) = (setting.target.1.wants(), setting.source.1.wants());
        if (mean, std) != ("0", "1") {
            command.args(["--mean", mean, "--std", std]);
        }
        let two = !matches!(run.start, Start::Target | Start::Selected | Start::Headroom);
        if two && (mean, std) != (their_mean, their_std) {
            command.args(["--src-mean", their_mean, "--src-std", their_std]);
        }
        command.arg("-o").arg(at("out.onnx")).arg("--data").arg(&files.few);
        command.arg("--val").arg(at("target_val.npz")).arg("--test").arg(at("target_test.npz"));
        command.args(["--steps", &self.steps, "--seed", &seed.to_string()]).args(run.args);
        let report = report(&mut command)?;
        let arms = match run.arms {
            true => report["arms"].clone(),
            false => {
                let (val, test) = (&report["shipped"]["val"], &report["shipped"]["test"]);
                json!([{ "name": run.name, "source": "none", "val": [val], "test": [test] }])
            }
        };
        eprintln!("{} seed {seed}: {} done", setting.name, run.name);
        let labels = setting.labels.min(self.tasks[setting.target.0].train.len());
        let copied = matches!(run.start, Start::Selected | Start::Headroom);
        let untouched = if copied { &Json::Null } else { &report["untouched"]["test"] };
        Ok(json!({
            "setting": setting.name, "kind": setting.kind.name(), "labels": labels, "seed": seed,
            "run": run.name, "metric": report["metric"], "untouched": untouched, "arms": arms,
            "method": report["method"], "seconds": report["seconds"]["train"], "steps": self.steps,
        }))
    }
}

fn program() -> Command {
    Command::new(variable("PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_onnx-merge").into()))
}

/// Runs the program to its end and reads its report. A target that was kept is a result too; how likely luck is, is judged over
/// seeds here, not by the program's gate.
fn report(command: &mut Command) -> Result<Json> {
    let done = command
        .args(["--json", "--quiet", "--threads", "1", "--significance", "1"])
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| Error::usage(format!("the program doesn't start: {e}")))?;
    match done.status.code() {
        Some(0 | 4) => serde_json::from_slice(&done.stdout)
            .map_err(|e| Error::usage(format!("the program's report can't be read: {e}"))),
        _ => Err(Error::usage(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr)))),
    }
}
