//! What came out: means over seeds with their standard errors, and paired differences.

use onnx_merge::onnx::atomic;
use onnx_merge::report::{Metric, mean_and_stderr};
use onnx_merge::{Error, Result};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// What is compared with what, and why.
const PAIRS: [(&str, &str); 22] = [
    ("lpka fitted", "lpka fitted, shuffled source"),
    ("lpka fitted", "lpka fitted, untrained source"),
    ("lpka fitted", "finetune"),
    ("lpka fitted", "kd"),
    ("lpka fitted", "selection"),
    ("lpka+kd fitted", "lpka+kd fitted, shuffled source"),
    ("lpka+kd fitted", "lpka+kd fitted, untrained source"),
    ("lpka+kd fitted", "kd"),
    ("lpka+kd fitted", "features+kd"),
    ("lpka+kd fitted", "features+kd fitted"),
    ("lpka fitted", "features"),
    ("features", "finetune"),
    ("features+kd", "kd"),
    ("lpka+kd fitted", "uncut"),
    ("lpka mapped", "lpka mapped, shuffled source"),
    ("lpka mapped", "lpka mapped, untrained source"),
    ("lpka mapped", "finetune"),
    ("lpka closed", "lpka closed, shuffled source"),
    ("lpka closed", "finetune"),
    ("headroom", "finetune"),
    ("reference", "finetune"),
    ("auto", "reference"),
];

/// An arm's metric on test by seed.
type Scores = BTreeMap<u64, f64>;

struct Cell {
    setting: String,
    kind: String,
    labels: u64,
    metric: Metric,
    arms: Vec<(String, Scores)>,
}

/// The runs recorded so far; none where there is no file yet. A line cut off by an interruption is left out.
pub fn read(path: &Path) -> Result<Vec<Json>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Prints the table and writes it, the figures behind it and a drawing.
pub fn publish(results: &[Json], out: &Path) -> Result<()> {
    let cells = cells(results);
    let table = markdown(&cells);
    println!("{table}");
    let figures: Vec<Json> = cells.iter().map(Cell::json).collect();
    atomic::write(&out.join("table.md"), table.as_bytes())?;
    atomic::write(&out.join("results.json"), json!(figures).to_string().as_bytes())?;
    atomic::write(&out.join("plot.svg"), plot(&cells).as_bytes())
}

fn cells(results: &[Json]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = vec![];
    for record in results {
        let (Some(name), Some(seed)) = (record["setting"].as_str(), record["seed"].as_u64()) else {
            continue;
        };
        let Ok(metric) = serde_json::from_value(record["metric"].clone()) else { continue };
        let at = cells.iter().position(|c| c.setting == name).unwrap_or_else(|| {
            cells.push(Cell {
                setting: name.into(),
                kind: record["kind"].as_str().unwrap_or_default().into(),
                labels: record["labels"].as_u64().unwrap_or_default(),
                metric,
                arms: vec![],
            });
            cells.len() - 1
        });
        let cell = &mut cells[at];
        if let Some(score) = record["untouched"].as_f64() {
            cell.put("untouched", seed, score);
        }
        for arm in record["arms"].as_array().into_iter().flatten() {
            if let (Some(arm_name), Some(score)) = (arm["name"].as_str(), arm["test"][0].as_f64()) {
                cell.put(&called(arm_name, record["run"].as_str().unwrap_or_default()), seed, score);
            }
        }
    }
    cells
}

/// `lpka, gate 1, shuffled source` of the run `mapped` is `lpka mapped, shuffled source`.
fn called(arm: &str, run: &str) -> String {
    let start = |part: &str| part.starts_with("gate ") || part == "fitted";
    let mut parts: Vec<String> = arm.split(", ").filter(|part| !start(part)).map(str::to_owned).collect();
    if let Some(first) = parts.first_mut().filter(|first| first.starts_with("lpka")) {
        *first = format!("{first} {}", run.trim_end_matches("+kd"));
    }
    parts.join(", ")
}

impl Cell {
    fn put(&mut self, arm: &str, seed: u64, score: f64) {
        match self.arms.iter_mut().find(|(name, _)| name == arm) {
            // The same arm comes from several runs: the first counts.
            Some((_, scores)) => _ = scores.entry(seed).or_insert(score),
            None => self.arms.push((arm.into(), Scores::from([(seed, score)]))),
        }
    }
    fn scores(&self, arm: &str) -> Option<&Scores> {
        self.arms.iter().find(|(name, _)| name == arm).map(|(_, scores)| scores)
    }
    /// How much better `a` is than `b`, seed for seed.
    fn differences(&self, a: &str, b: &str) -> Vec<f64> {
        let (Some(a), Some(b)) = (self.scores(a), self.scores(b)) else { return vec![] };
        a.iter().filter_map(|(seed, value)| Some(self.metric.gain(*b.get(seed)?, *value))).collect()
    }
    fn json(&self) -> Json {
        let arms: Vec<Json> = self
            .arms
            .iter()
            .map(|(name, scores)| {
                let values: Vec<f64> = scores.values().copied().collect();
                let (mean, stderr) = mean_and_stderr(&values).unwrap_or((f64::NAN, None));
                json!({ "arm": name, "mean": mean, "stderr": stderr, "by_seed": scores })
            })
            .collect();
        let pairs: Vec<Json> = self
            .pairs()
            .map(|(a, b, differences)| {
                let (mean, stderr) = mean_and_stderr(&differences).unwrap_or((f64::NAN, None));
                json!({ "arm": a, "against": b, "mean": mean, "stderr": stderr, "n": differences.len() })
            })
            .collect();
        json!({
            "setting": self.setting, "kind": self.kind, "labels": self.labels, "metric": self.metric,
            "arms": arms, "paired_differences": pairs,
        })
    }
    /// (arm, against, differences) of every comparison there are figures for.
    fn pairs(&self) -> impl Iterator<Item = (&'static str, &'static str, Vec<f64>)> {
        let all = PAIRS.iter().map(|&(a, b)| (a, b, self.differences(a, b)));
        all.filter(|(.., differences)| !differences.is_empty())
    }
}

fn markdown(cells: &[Cell]) -> String {
    let mut text = String::new();
    for cell in cells {
        let _ = writeln!(
            text,
            "\n## {} ({}, {} labels, {})\n",
            cell.setting, cell.kind, cell.labels, cell.metric.name
        );
        let _ = writeln!(text, "| arm | test | seeds | against fine-tuning |\n|---|---|---|---|");
        for (name, scores) in &cell.arms {
            let values: Vec<f64> = scores.values().copied().collect();
            let gain = match name.as_str() {
                "finetune" | "untouched" => String::new(),
                _ => difference(&cell.metric, &cell.differences(name, "finetune")),
            };
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {gain} |",
                cell.metric.show_spread(&values),
                values.len()
            );
        }
        let _ = writeln!(text, "\n| difference, seed for seed | |\n|---|---|");
        for (a, b, differences) in cell.pairs() {
            let _ = writeln!(text, "| {a} − {b} | {} |", difference(&cell.metric, &differences));
        }
    }
    text
}

/// A paired difference, bold where it is more than two standard errors from nothing.
fn difference(metric: &Metric, values: &[f64]) -> String {
    let Some((mean, stderr)) = mean_and_stderr(values) else { return String::new() };
    let Some(stderr) = stderr else { return metric.show_difference(mean) };
    let (factor, digits) = if metric.name == "accuracy" { (100.0, 2) } else { (1.0, 5) };
    let text = format!("{:+.digits$} ± {:.digits$}", mean * factor, stderr * factor);
    match mean.abs() > 2.0 * stderr {
        true => format!("**{text}**"),
        false => text,
    }
}

const WIDTH: f64 = 720.0;
const LABELS: f64 = 230.0;
const ROW: f64 = 18.0;

/// A row an arm: the mean and two standard errors to both sides, a scale of its own for each setting.
fn plot(cells: &[Cell]) -> String {
    let mut body = String::new();
    let mut y = 0.0;
    for cell in cells {
        y += 2.0 * ROW;
        let title = format!("{}: {}, {} labels, {}", cell.setting, cell.kind, cell.labels, cell.metric.name);
        let _ = writeln!(body, "<text x=\"8\" y=\"{y}\" font-weight=\"bold\">{title}</text>");
        let rows: Vec<(&str, f64, f64)> = cell
            .arms
            .iter()
            .filter_map(|(name, scores)| {
                let values: Vec<f64> = scores.values().copied().collect();
                let (mean, stderr) = mean_and_stderr(&values)?;
                Some((name.as_str(), mean, 2.0 * stderr.unwrap_or(0.0)))
            })
            .collect();
        let low = rows.iter().map(|r| r.1 - r.2).fold(f64::INFINITY, f64::min);
        let high = rows.iter().map(|r| r.1 + r.2).fold(f64::NEG_INFINITY, f64::max);
        let x = |value: f64| LABELS + (value - low) / (high - low).max(1e-9) * (WIDTH - LABELS - 80.0);
        for (name, mean, spread) in rows {
            y += ROW;
            let colour =
                if name.starts_with("lpka") && !name.contains("source") { "#c2410c" } else { "#475569" };
            let (from, to, middle, line) = (x(mean - spread), x(mean + spread), x(mean), y - 4.0);
            let _ = writeln!(
                body,
                "<text x=\"{:.0}\" y=\"{y}\" text-anchor=\"end\">{name}</text><path d=\"M{from:.1} {line}H{to:.1}\" \
                 stroke=\"{colour}\"/><circle cx=\"{middle:.1}\" cy=\"{line}\" r=\"3.5\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{y}\">{}</text>",
                LABELS - 12.0,
                to + 8.0,
                cell.metric.show(mean)
            );
        }
    }
    let height = y + ROW;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}
