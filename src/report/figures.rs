//! Scores and gains, and how they are written for people.

use serde::{Deserialize, Serialize};

/// What is compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metric {
    /// `"accuracy"` or `"balanced accuracy"` (shares, 0 to 1), or `"mse"`.
    pub name: String,
    pub better: Better,
}

/// Which direction of a metric is the good one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

impl Metric {
    pub fn accuracy() -> Self {
        Self { name: "accuracy".into(), better: Better::Higher }
    }
    /// The mean over classes of the share of each that is right.
    pub fn balanced_accuracy() -> Self {
        Self { name: "balanced accuracy".into(), better: Better::Higher }
    }
    pub fn mse() -> Self {
        Self { name: "mse".into(), better: Better::Lower }
    }
    /// Whether values are shares, 0 to 1, of what is right.
    pub fn is_share(&self) -> bool {
        self.better == Better::Higher
    }
    /// How much better `after` is than `before`; negative when it is worse.
    pub fn gain(&self, before: f64, after: f64) -> f64 {
        match self.better {
            Better::Higher => after - before,
            Better::Lower => before - after,
        }
    }
    /// What values are, where [`Self::show`] doesn't tell.
    pub fn caption(&self) -> &str {
        match self.name.as_str() {
            "accuracy" => "",
            "mse" => "mean squared error",
            other => other,
        }
    }
    /// A value for people: accuracies in percent.
    pub fn show(&self, value: f64) -> String {
        match self.is_share() {
            true => format!("{:.2} %", value * 100.0),
            false => format!("{value:.5}"),
        }
    }
    /// `mean ± standard error` for people.
    pub fn show_spread(&self, values: &[f64]) -> String {
        match (mean_and_stderr(values), self.is_share()) {
            (None, _) => "–".into(),
            (Some((mean, None)), _) => self.show(mean),
            (Some((mean, Some(error))), true) => format!("{:.2} ± {:.2} %", mean * 100.0, error * 100.0),
            (Some((mean, Some(error))), false) => format!("{mean:.5} ± {error:.5}"),
        }
    }
    /// A gain with its standard error, where it has one, for people.
    pub fn show_worth(&self, worth: &Worth) -> String {
        let mean = self.show_difference(worth.mean);
        let Some(stderr) = worth.stderr else { return mean };
        let spread = self.show_difference(stderr).trim_start_matches('+').to_owned();
        format!("{} ± {spread}", mean.replace(" points", ""))
    }
    /// A gain on some rows: `+1.20 ± 0.40 points on 300 test rows`.
    pub fn show_gain(&self, gain: &Worth, part: &str) -> String {
        format!("{} on {} {part} rows", self.show_worth(gain), gain.n)
    }
    /// A gain or a spread for people: points for accuracies.
    pub fn show_difference(&self, difference: f64) -> String {
        match self.is_share() {
            true => format!("{:+.2} points", difference * 100.0),
            false => format!("{difference:+.5}"),
        }
    }
}

/// A metric on each part of the data; `None` where it was not measured.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Scores {
    pub train: Option<f64>,
    pub val: Option<f64>,
    pub test: Option<f64>,
}

/// A gain on each part of the data that wasn't trained on, positive when it is better, in the metric's unit; `n` counts rows.
/// The spread is that of the rows: how sure the gain of *this* file is, not of another run.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Gains {
    pub val: Option<Worth>,
    pub test: Option<Worth>,
}

/// What training rows showed of a gain that validation left open: the winner was trained again without one fold of them after the
/// other, and measured on that fold.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Folds {
    /// How many folds were measured, until it was clear that the others couldn't make up for them.
    pub measured: usize,
    /// How many there are.
    pub of: usize,
    /// The gain over the rows of validation and of these folds. A row of a fold counts less than one of validation.
    pub gain: Worth,
    /// The chance that luck alone shows as much.
    pub luck: f64,
}

/// A mean of paired differences, positive when it is a gain: over seeds (the real source's arm minus the better of its empty
/// twins, say) or over rows.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Worth {
    pub mean: f64,
    /// Standard error of the mean; `None` (null) with a single difference.
    pub stderr: Option<f64>,
    pub n: usize,
}

impl Worth {
    /// From the differences; `None` for none.
    pub fn of(differences: &[f64]) -> Option<Self> {
        let (mean, stderr) = mean_and_stderr(differences)?;
        Some(Self { mean, stderr, n: differences.len() })
    }
    /// How far a mean over rows is from luck, in one sentence.
    pub fn certainty(&self) -> String {
        let Some(stderr) = self.stderr else { return "It was measured on one row: not at all.".into() };
        if stderr <= 0.0 {
            return format!("All {} rows say the same.", self.n);
        }
        let times = self.mean / stderr;
        let means = match times.abs() {
            3.0.. => "other rows of this kind would show it too",
            2.0.. => "other rows of this kind would most likely show it too",
            _ => "other rows might not show it",
        };
        format!("{times:.1} times its standard error over {} rows: {means}.", self.n)
    }
}

/// The mean, and the standard error of the mean where there are at least two values.
pub fn mean_and_stderr(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let stderr = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
    Some((mean, stderr))
}
