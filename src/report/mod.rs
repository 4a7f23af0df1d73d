//! What a run found out: one serialisable [`Report`], as JSON for programs and as one HTML page for people.
//!
//! Knows nothing of how the numbers came about. Field names and meanings of the JSON form are a promise to
//! other programs: whoever changes one raises [`SCHEMA`].

mod figures;
mod html;
mod plot;

pub use figures::{Better, Folds, Gains, Metric, Scores, Worth, mean_and_stderr};
pub use html::{document, escape, name};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of the JSON form.
pub const SCHEMA: u32 = 1;

/// Everything a run found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    pub outcome: Outcome,
    /// The arm that was chosen, by the name of its method: `"lpka+kd"`, `"finetune"`, …
    pub method: String,
    /// The adapter's preset, where the method has an adapter.
    pub preset: Option<String>,
    pub executors: Executors,
    pub metric: Metric,
    /// What answers were compared with.
    #[serde(default)]
    pub truth: Truth,
    /// The target as it came.
    pub untouched: Scores,
    /// The target as it was written; equal to `untouched` where nothing was gained.
    pub shipped: Scores,
    /// `shipped` against `untouched`, row by row; null where the target was kept.
    #[serde(default)]
    pub gains: Gains,
    /// What training rows showed where validation alone left a gain open; null where they weren't asked.
    #[serde(default)]
    pub folds: Option<Folds>,
    pub arms: Vec<Arm>,
    /// What the source's knowledge was worth; absent without control arms.
    pub source_worth: Option<Worth>,
    /// What the arm whose source has these controls gained over those that have no adapter; empty without control arms.
    #[serde(default)]
    pub rivals: Vec<Rival>,
    pub changed: Vec<Changed>,
    pub seconds: Seconds,
    /// The file written, if one was.
    pub output: Option<Output>,
    /// File names of the models, for people.
    #[serde(default)]
    pub source: Option<PathBuf>,
    #[serde(default)]
    pub target: PathBuf,
    /// Rows of training, validation and test data.
    #[serde(default)]
    pub rows: Rows,
    /// Whether the scores were measured on data of the user, not on made-up inputs.
    #[serde(default = "yes")]
    pub verified: bool,
    /// Sentences the user should read, in the order they came up.
    #[serde(default)]
    pub notes: Vec<String>,
    #[serde(default)]
    pub curves: Vec<Curve>,
    /// Which source channels, tokens or layers each target layer attends to.
    #[serde(default)]
    pub attention: Vec<Attention>,
}

fn yes() -> bool {
    true
}

impl Report {
    /// The report as one HTML page that needs nothing else.
    pub fn html(&self) -> String {
        html::page(self)
    }

    /// What a gain says of the output, whose name goes before it.
    pub fn praise(&self) -> &'static str {
        match self.truth {
            Truth::Labels => "is better than its target",
            Truth::Source => "answers more like the source than its target does",
        }
    }

    /// What the source's knowledge was worth, in one sentence; `None` without control arms.
    pub fn worth_sentence(&self) -> Option<String> {
        let worth = self.source_worth?;
        let mean = self.metric.show_worth(&worth);
        let what = "against the better of a shuffled and an untrained source";
        let worth = match worth.stderr {
            None => format!("The source's knowledge was worth {mean} {what} (one seed: take it with care)."),
            Some(stderr) => {
                let clear = match (worth.n, worth.mean.abs() > 2.0 * stderr) {
                    (..3, _) => " So few seeds can mislead: use more.",
                    (_, true) => "",
                    (_, false) => " That is within the noise: nothing shown.",
                };
                format!("The source's knowledge was worth {mean} {what}, over {} seeds.{clear}", worth.n)
            }
        };
        Some([worth, self.rivals_sentence()].join(" ").trim_end().to_owned())
    }

    /// What was gained over the rivals; empty where there were none.
    fn rivals_sentence(&self) -> String {
        let gain = |rival: &Rival| {
            let gain = self.metric.show_worth(&rival.gain);
            let name = match rival.arm.as_str() {
                "kd" => "distillation",
                "finetune" => "fine-tuning",
                other => other,
            };
            format!("{gain} over {name}")
        };
        match self.rivals.as_slice() {
            [] => String::new(),
            rivals => format!("Its arm gained {}.", rivals.iter().map(gain).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// A gain over an arm without an adapter, seed by seed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rival {
    /// `"kd"` or `"finetune"`.
    pub arm: String,
    pub gain: Worth,
}

/// How the run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The output is better than the target on validation, and was written.
    Gain,
    /// The output imitates the source better on made-up inputs, and was written. Whether it is better on real ones is not known.
    Unverified,
    /// No arm beat the untouched target by the least gain asked for: the target's weights were kept.
    NoGain,
    /// Stopped by the user; what was best by then was written.
    Interrupted,
}

/// What answers are compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Truth {
    #[default]
    Labels,
    /// The answers of the source.
    Source,
}

/// What [`Outcome::NoGain`] means, in one sentence.
pub const KEPT: &str = "Nothing clearly beat the untouched target on validation: its weights were kept.";

impl Outcome {
    /// The process's exit status: 0 gain shipped, 4 target kept, 6 written without data to verify it, 130 interrupted.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Gain => 0,
            Outcome::NoGain => 4,
            Outcome::Unverified => 6,
            Outcome::Interrupted => 130,
        }
    }
}

/// What ran the two step programs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Executors {
    pub model: ExecutorUsed,
    /// Absent for methods without an adapter.
    pub adapter: Option<ExecutorUsed>,
}

/// An executor and what it ran on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExecutorUsed {
    /// `"ort"`, `"tract"` or `"wgpu"`.
    pub name: String,
    pub device: String,
}

/// Row counts of the data's parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rows {
    pub train: usize,
    pub val: usize,
    pub test: usize,
}

/// One way of training, over all its seeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Arm {
    pub name: String,
    pub source: ArmSource,
    /// The metric on validation, a number a seed.
    pub val: Vec<f64>,
    /// The metric on test, a number a seed; empty where it was not measured.
    pub test: Vec<f64>,
    /// The highest learning rate, a number a seed.
    #[serde(default)]
    pub lr: Vec<f64>,
}

/// What an arm had for a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ArmSource {
    Real,
    /// The source's weights with their values shuffled: same statistics, no knowledge.
    Shuffled,
    /// The source's architecture, freshly initialised.
    Untrained,
    None,
}

/// An initializer whose bytes differ from the target's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Changed {
    pub initializer: String,
    pub role: String,
    /// ‖after − before‖ / ‖before‖, Frobenius.
    pub relative_change: f64,
}

/// Wall-clock seconds by phase.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Seconds {
    pub read: f64,
    pub plan: f64,
    pub train: f64,
    pub write: f64,
}

/// The file that was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Output {
    pub path: PathBuf,
    pub sha256: String,
}

/// How one arm's training went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Curve {
    pub arm: String,
    pub seed: u64,
    /// (step, training loss).
    pub loss: Vec<(usize, f64)>,
    /// (step, metric on validation).
    pub val: Vec<(usize, f64)>,
}

/// A matrix of attention, rows summing to about one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Attention {
    /// The arm whose adapter this is.
    #[serde(default)]
    pub arm: String,
    /// What the rows are: the target's layers, or the channels of one interface.
    pub target: String,
    /// What the columns are.
    pub source: String,
    /// Names of the rows; may be empty for channels.
    #[serde(default)]
    pub row_names: Vec<String>,
    #[serde(default)]
    pub column_names: Vec<String>,
    pub rows: usize,
    pub columns: usize,
    /// Row-major, `rows × columns`.
    pub values: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report with everything in it.
    pub(super) fn sample() -> Report {
        let arm = |name: &str, source, val: f64| Arm {
            name: name.into(),
            source,
            val: vec![val, val + 0.01],
            test: vec![],
            lr: vec![0.003, 0.001],
        };
        Report {
            schema: SCHEMA,
            outcome: Outcome::Gain,
            method: "lpka+kd".into(),
            preset: Some("structured".into()),
            executors: Executors::default(),
            metric: Metric::accuracy(),
            truth: Truth::Labels,
            untouched: Scores { train: Some(0.9), val: Some(0.8), test: None },
            shipped: Scores { train: Some(0.95), val: Some(0.9), test: None },
            gains: Gains { val: Worth::of(&[0.0, 0.2]), test: None },
            folds: Some(Folds { measured: 4, of: 4, gain: Worth::of(&[0.0, 0.2]).unwrap(), luck: 0.04 }),
            arms: vec![
                arm("lpka+kd", ArmSource::Real, 0.9),
                arm("lpka+kd, shuffled", ArmSource::Shuffled, 0.85),
            ],
            source_worth: Worth::of(&[0.05, 0.04]),
            rivals: vec![Rival { arm: "kd".into(), gain: Worth::of(&[0.02, 0.04]).unwrap() }],
            changed: vec![Changed {
                initializer: "fc.weight".into(),
                role: "linear".into(),
                relative_change: 0.3,
            }],
            seconds: Seconds::default(),
            output: Some(Output { path: "out.onnx".into(), sha256: "00".into() }),
            source: Some("src.onnx".into()),
            target: "tgt.onnx".into(),
            rows: Rows { train: 100, val: 50, test: 0 },
            verified: true,
            notes: vec!["a note".into()],
            curves: vec![Curve {
                arm: "lpka+kd".into(),
                seed: 0,
                loss: vec![(0, 2.0), (10, 1.0)],
                val: vec![(0, 0.8), (10, 0.9)],
            }],
            attention: vec![Attention {
                target: "conv1".into(),
                source: "conv1".into(),
                rows: 2,
                columns: 2,
                values: vec![0.9, 0.1, 0.2, 0.8],
                ..Default::default()
            }],
        }
    }

    #[test]
    fn the_json_form_keeps_its_promise() {
        let json = serde_json::to_value(sample()).unwrap();
        for key in [
            "schema",
            "method",
            "preset",
            "executors",
            "metric",
            "untouched",
            "shipped",
            "gains",
            "arms",
            "source_worth",
            "rivals",
            "changed",
            "seconds",
            "output",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["metric"]["better"], "higher");
        assert_eq!(json["arms"][1]["source"], "shuffled");
        assert_eq!(json["untouched"]["test"], serde_json::Value::Null);
        let back: Report = serde_json::from_value(json).unwrap();
        assert_eq!(back.outcome, Outcome::Gain);
    }

    /// docs/report.schema.json is what other programs rely on: it changes with the types, and never by itself. With
    /// ONNX_MERGE_WRITE_SCHEMA set it is written anew.
    #[test]
    fn the_schema_is_documented() {
        let mut schema = serde_json::to_value(schemars::schema_for!(Report)).unwrap();
        schema["title"] = "What onnx-merge prints with --json".into();
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.schema.json");
        if std::env::var_os("ONNX_MERGE_WRITE_SCHEMA").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap_or_default() == text,
            "ONNX_MERGE_WRITE_SCHEMA=1 writes it"
        );
    }

    #[test]
    fn worth_is_said_with_its_spread() {
        let sentence = sample().worth_sentence().unwrap();
        assert!(
            sentence.contains("worth +4.50 ± 0.50 points") && sentence.contains("So few seeds"),
            "{sentence}"
        );
        assert!(sentence.ends_with("Its arm gained +3.00 ± 1.00 points over distillation."), "{sentence}");
    }

    #[test]
    fn spreads_are_in_the_metrics_unit() {
        assert_eq!(Metric::accuracy().show_spread(&[0.5, 0.6]), "55.00 ± 5.00 %");
        assert_eq!(Metric::mse().show_spread(&[]), "–");
    }

    #[test]
    fn worth_is_the_mean_of_paired_differences() {
        let worth = Worth::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((worth.mean, worth.n), (2.0, 3));
        assert!((worth.stderr.unwrap() - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Worth::of(&[0.5]).unwrap().stderr, None);
        assert_eq!(Worth::of(&[]), None);
    }

    #[test]
    fn a_lower_error_is_a_gain() {
        assert!(Metric::mse().gain(2.0, 1.0) > 0.0);
        assert!(Metric::accuracy().gain(0.9, 0.8) < 0.0);
    }
}
