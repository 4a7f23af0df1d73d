//! Everything a run depends on besides the models and the data; what `merge.toml` holds.

pub use crate::autodiff::recompute::Budget;
pub use crate::runtime::{ExecutorChoice, Precision};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What kind of answer the target gives, which decides loss and metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Classes give classification, vectors regression, no labels matching the source's outputs.
    #[default]
    Auto,
    /// Cross-entropy; the metric is accuracy.
    Classify,
    /// Mean squared error, which is also the metric (lower is better).
    Regress,
    /// Imitate the source's outputs; no labels needed.
    MatchOutputs,
}

/// How knowledge is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Tries what applies, briefly, and goes on with what validates best.
    #[default]
    Auto,
    Lpka,
    #[serde(rename = "lpka+kd")]
    LpkaKd,
    Kd,
    /// The source's activations teach, and none of its weights are read (arXiv 1412.6550).
    Features,
    #[serde(rename = "features+kd")]
    FeaturesKd,
    Finetune,
}

/// The form of the adapter (LPKA).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Interface maps where interfaces match, token transfer layers elsewhere.
    #[default]
    Structured,
    /// Token transfer layers everywhere, behind gates that start at zero.
    Residual,
    /// As MergeNet's reference implementation does it.
    Paper,
}

/// What the adapter's arms start from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Validation chooses; a gate that was asked for means `Mapped`.
    #[default]
    Auto,
    /// Layers fitted to the source's by least squares, where the source can read the data.
    Fitted,
    /// The target's own weights, or mapped ones of the source, as the gate says.
    Mapped,
}

/// How the learning rate moves over the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    #[default]
    Cosine,
    Constant,
}

/// The optimiser of the target's weights and of the adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    #[default]
    Adamw,
    /// With momentum 0.9.
    Sgd,
}

impl Optimizer {
    /// Learning rates that are tried where none is asked for, from low to high.
    pub fn rates(self) -> [f64; 3] {
        [1.0, 3.0, 10.0].map(|times| times * self.unit())
    }
    /// Those that are tried where these leave an arm worse than it began, from high to low.
    pub fn low_rates(self) -> [f64; 2] {
        [0.1, 0.01].map(|times| times * self.unit())
    }
    fn unit(self) -> f64 {
        match self {
            Optimizer::Adamw => 1e-3,
            Optimizer::Sgd => 1e-2,
        }
    }
}

/// The adapter's form and size.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdapterConfig {
    pub preset: Preset,
    /// Rank of the tokens, at most.
    pub rank: usize,
    /// Width d of queries and keys.
    pub width: usize,
    /// Attention heads of token transfer layers.
    pub heads: usize,
    /// Stacked token transfer layers: one measured as good as two, at half the size (docs/transfer.md).
    pub depth: usize,
    /// Dropout on attention and feed-forward parts of token transfer layers.
    pub dropout: f64,
    /// Gate at the start, g₀; `None` lets validation choose among 0, ½ and 1.
    pub gate: Option<f64>,
    /// T_cycle. `paper` preset: steps between replacements of the target's weights, 5 by default. Sources that change
    /// while the target trains: steps between refreshes of what the adapter reads of them.
    pub cycle: Option<usize>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            preset: Preset::Structured,
            rank: 16,
            width: 32,
            heads: 4,
            depth: 1,
            dropout: 0.1,
            gate: None,
            cycle: None,
        }
    }
}

/// Everything about training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainConfig {
    pub task: Task,
    /// The target's output that labels and the source's answers are compared with; `None` for the first that can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// The source's output that the target is compared with, where it isn't the one of the same name, or the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_of: Option<String>,
    pub method: Method,
    pub adapter: AdapterConfig,
    pub start: Start,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    /// Optimiser steps an arm; `None` derives them from `epochs`, or from the size of the data.
    pub steps: Option<usize>,
    pub epochs: Option<f64>,
    /// Seconds all of training may take.
    pub time: Option<f64>,
    /// Rows a step.
    pub batch: usize,
    /// Highest learning rate; `None` lets validation choose, arm by arm, among [`Optimizer::rates`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Steps of linear warm-up.
    pub warmup: usize,
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 switches clipping off.
    pub clip: f64,
    /// Distillation: temperature, and the share α of the teacher in the loss.
    pub temperature: f64,
    pub alpha: f64,
    /// Fine-tuning alone: train deltas of at most this rank instead of whole matrices.
    pub low_rank: Option<usize>,
    /// The source is trained beside the target.
    pub joint: bool,
    /// Weight of the alignment of activations in the loss of the adapter's arms; 0 switches it off.
    pub align: f64,
    /// Images are shifted by up to so many pixels in each direction; `None` decides by the input's shape.
    pub shift: Option<usize>,
    /// Rows without labels made of training rows; `None` makes some where there are few training rows and no
    /// others.
    pub made_rows: Option<usize>,
    /// Stop after so many validations without a better one; 0 never.
    pub patience: usize,
    pub seed: u64,
    /// How often every arm is repeated, with seeds `seed`, `seed + 1`, …
    pub seeds: usize,
    /// Every class counts alike, whatever its share of the rows: in the metric, and in batches.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub balanced: bool,
    /// Batch normalisation by the statistics of the batch, which the running ones follow.
    pub train_bn: bool,
    /// What a run's values are to be brought down to, by computing some of the forward pass again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Budget>,
    /// `Dropout` nodes of the target drop in training steps.
    pub train_dropout: bool,
    /// Weights (globs over their names) that stay as they are.
    pub freeze: Vec<String>,
    /// `target glob=source glob` pairs that refine the automatic pairing.
    pub map: Vec<String>,
    /// The only weights of the target (globs) that knowledge is carried to; all are trained.
    pub adapt: Vec<String>,
    /// Run the control arms too.
    pub ablate: bool,
    /// The smallest gain on validation that is shipped, in the metric's unit (0.01 is one point of accuracy).
    pub min_gain: f64,
    /// The largest chance, by luck alone, of what validation shows that is shipped; 1 ships any gain.
    pub significance: f64,
    /// Where validation leaves a gain open: into how many folds the training rows are dealt, each of which is left out of a
    /// training of the winner and measured; 0 for none, `None` by how many rows there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folds: Option<usize>,
    pub executor: ExecutorChoice,
    /// The adapter's executor, where it isn't the model's.
    pub adapter_executor: Option<ExecutorChoice>,
    /// Of the operands of large products, on a GPU.
    pub precision: Precision,
    pub allow_software_gpu: bool,
    pub threads: Option<usize>,
    pub ort_lib: Option<PathBuf>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            task: Task::Auto,
            of: None,
            src_of: None,
            method: Method::Auto,
            adapter: AdapterConfig::default(),
            start: Start::Auto,
            optimizer: Optimizer::Adamw,
            schedule: Schedule::Cosine,
            steps: None,
            epochs: None,
            time: None,
            batch: 64,
            lr: None,
            warmup: 10,
            weight_decay: 1e-4,
            clip: 0.0,
            temperature: 4.0,
            alpha: 0.7,
            low_rank: None,
            joint: false,
            align: 1.0,
            shift: None,
            made_rows: None,
            patience: 0,
            seed: 0,
            seeds: 1,
            balanced: false,
            train_bn: false,
            recompute: None,
            train_dropout: false,
            freeze: vec![],
            map: vec![],
            adapt: vec![],
            ablate: false,
            min_gain: 0.0,
            significance: 0.16,
            folds: None,
            executor: ExecutorChoice::Auto,
            adapter_executor: None,
            precision: Precision::F32,
            allow_software_gpu: false,
            threads: None,
            ort_lib: None,
        }
    }
}

impl TrainConfig {
    /// Whether some arm has an adapter; the control arms have one whatever the method.
    pub fn adapts(&self) -> bool {
        self.ablate || matches!(self.method, Method::Auto | Method::Lpka | Method::LpkaKd)
    }

    /// Whether some arm has maps between the models' interfaces.
    pub fn has_maps(&self) -> bool {
        self.adapts() || matches!(self.method, Method::Features | Method::FeaturesKd)
    }

    /// Whether some arm learns from the source's answers beside labels.
    pub fn distils(&self) -> bool {
        let taught = matches!(self.method, Method::Auto | Method::LpkaKd | Method::Kd | Method::FeaturesKd);
        self.ablate || taught
    }

    /// Whether some arm may start from layers fitted to the source's.
    pub fn fits(&self) -> bool {
        let asked = match self.start {
            Start::Auto => self.adapter.gate.is_none(),
            start => start == Start::Fitted,
        };
        asked && self.has_maps() && self.adapter.preset == Preset::Structured
    }

    /// Whether some arm may learn from rows without labels: by distillation, by alignment or by a fit.
    pub fn wants_unlabelled(&self) -> bool {
        let aligns = self.has_maps() && self.adapter.preset == Preset::Structured && self.align > 0.0;
        self.distils() || self.task == Task::MatchOutputs || aligns || self.fits()
    }
}
