//! `onnx-merge grad`: a model's gradients, or a whole training step, as an ONNX graph.

use super::args::{ExecutorArgs, executor_options, positive, required};
use super::terminal::message;
use crate::autodiff::recompute::Budget;
use crate::error::{Error, Result};
use crate::runtime;
use crate::train::TrainConfig;
use crate::train::grad::optimizer::{Optimizer, Rule};
use crate::train::grad::{self, Built, ClassAxis, Form, LossKind, Request};
use clap::ValueEnum;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Writes the training step of a model, or its gradients alone, as a graph of standard operators that any ONNX
/// runtime runs.
///
/// The step takes the model's inputs, `label`, `lr` and the state (weights, moments, step counter) and gives `loss`
/// and the next state: input NAME, output NAME.next. Its first state is written beside it, as .npz; `onnx-merge pack`
/// puts trained weights back into the model. With --gradients-only the weights stay inside, and the outputs are `loss`
/// and NAME.grad for each weight, and for each input and value inside that --wrt names. A model that ends in a softmax is
/// differentiated through its logits.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-merge grad model.onnx -o step.onnx
  onnx-merge grad model.onnx --loss mse --optimizer momentum --wrt 'head.*' -o step.onnx
  onnx-merge grad model.onnx --loss sum --gradients-only -o gradients.onnx
  onnx-merge grad model.onnx --gradients-only --wrt image -o saliency.onnx")]
pub struct Args {
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The graph to write
    #[arg(short, long, value_name = "FILE.onnx")]
    output: Option<PathBuf>,
    /// Weights to differentiate with respect to, by name; with --gradients-only also inputs, or the name of a value inside (may be
    /// repeated) [default: all that training changes]
    #[arg(long, value_name = "GLOB")]
    wrt: Vec<String>,
    /// Cross-entropy, mean squared error, or the sum of all elements of all outputs
    #[arg(long, value_enum, value_name = "LOSS", default_value = "ce")]
    loss: Loss,
    /// Give the gradients, without an optimiser
    #[arg(long)]
    gradients_only: bool,
    /// Rows [default: any number; those the file fixes where its rows can't be told apart]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// The shape of an input whose dimensions the file leaves open, such as images=?,3,224,224 (may be repeated)
    #[arg(long, value_name = "NAME=SIZES", value_parser = shape)]
    shape: Vec<(String, Vec<Option<usize>>)>,
    /// The output that labels are compared with [default: the first with real values]
    #[arg(long = "of", value_name = "OUTPUT")]
    of: Option<String>,
    /// Axis of that output's classes, counted with the batch's (-1 for the last), where each position of a row has a label of its own
    /// [default: the softmax's, else the last of three axes, or axis 1 of more]
    #[arg(long, value_name = "AXIS", allow_hyphen_values = true)]
    class_axis: Option<i64>,
    /// The label of what doesn't count [default: -100]
    #[arg(long, value_name = "LABEL", allow_hyphen_values = true)]
    ignore_label: Option<i64>,
    /// Normalise batches by their own statistics, and let the running ones follow
    #[arg(long)]
    train_bn: bool,
    /// Compute forward values again on the way back instead of keeping them all: as few as keep what lies between the step's inputs and
    /// outputs below SIZE (512MB, 2GiB); without SIZE, for as little memory as possible
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "least")]
    recompute: Option<Budget>,
    /// Let Dropout nodes drop; what a step keeps depends on the input `step`, which counts steps from 0, and --seed
    #[arg(long)]
    train_dropout: bool,
    /// Seed of dropout
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Give embedding tables gradients of the rows that the batch looks up, NAME.grad.rows and NAME.grad.values, and move only these
    /// rows in a step; all such tables, or those named =GLOB (may be repeated)
    #[arg(long, value_name = "GLOB", num_args = 0..=1, require_equals = true, default_missing_value = "*")]
    sparse: Vec<String>,
    #[command(flatten)]
    update: UpdateArgs,
    #[command(flatten)]
    executor: ExecutorArgs,
    /// Describe the graph as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Update")]
struct UpdateArgs {
    #[arg(long, value_enum, value_name = "NAME", default_value = "adamw")]
    optimizer: OptimizerName,
    /// Share of a matrix that goes with each step, times the learning rate; biases and norms don't shrink
    #[arg(long, value_name = "X", value_parser = positive, default_value = "0.0001")]
    weight_decay: f64,
    #[arg(long, value_name = "X", value_parser = positive, default_value = "0.9")]
    momentum: f64,
    #[arg(long, value_name = "X", value_parser = positive, default_value = "0.9")]
    beta1: f64,
    #[arg(long, value_name = "X", value_parser = positive, default_value = "0.999")]
    beta2: f64,
    #[arg(long, value_name = "X", value_parser = positive, default_value = "1e-8")]
    epsilon: f64,
    /// Largest norm of all gradients together [default: no limit]
    #[arg(long, value_name = "X", value_parser = positive, default_value = "0", hide_default_value = true)]
    clip: f64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Loss {
    Ce,
    Mse,
    Sum,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum OptimizerName {
    Sgd,
    Momentum,
    Adamw,
}

impl UpdateArgs {
    fn optimizer(&self) -> Result<Optimizer> {
        for (name, value) in [("momentum", self.momentum), ("beta1", self.beta1), ("beta2", self.beta2)] {
            if value >= 1.0 {
                return Err(Error::usage(format!("--{name} {value} is not below 1")));
            }
        }
        let (beta1, beta2, epsilon) = (self.beta1, self.beta2, self.epsilon);
        let rule = match self.optimizer {
            OptimizerName::Sgd => Rule::Sgd,
            OptimizerName::Momentum => Rule::Momentum { momentum: self.momentum },
            OptimizerName::Adamw if beta1 <= 0.0 || beta2 <= 0.0 => {
                return Err(Error::usage("--beta1 and --beta2 must be above 0"));
            }
            OptimizerName::Adamw => Rule::Adamw { beta1, beta2, epsilon },
        };
        Ok(Optimizer { rule, weight_decay: self.weight_decay, clip: self.clip })
    }
}

/// `NAME=?,3,224,224`.
fn shape(text: &str) -> Result<(String, Vec<Option<usize>>), String> {
    let wrong = || format!("'{text}' is not of the form NAME=SIZES, such as images=?,3,224,224");
    let (name, sizes) = text.rsplit_once('=').ok_or_else(wrong)?;
    let size = |s: &str| match s.trim() {
        "?" => Some(None),
        number => number.parse::<usize>().ok().filter(|&n| n > 0).map(Some),
    };
    let sizes: Option<Vec<Option<usize>>> = sizes.split([',', 'x']).map(size).collect();
    Ok((name.to_owned(), sizes.ok_or_else(wrong)?))
}

pub fn run(args: Args) -> Result<u8> {
    let output = required(&args.output, "an output", "say where to write the graph: -o step.onnx")?;
    let form = match args.gradients_only {
        true => Form::Gradients,
        false => Form::Step(args.update.optimizer()?),
    };
    let file = crate::onnx::read(&args.model)?;
    file.check_finite()?;
    crate::onnx::surgery::refuse_overwriting(&output, &[&args.model])?;
    let mut config = TrainConfig::default();
    args.executor.apply(&mut config);
    let executor = runtime::open(config.executor, &executor_options(&config))?;
    let request = Request {
        wrt: args.wrt.clone(),
        loss: match args.loss {
            Loss::Ce => LossKind::CrossEntropy,
            Loss::Mse => LossKind::MeanSquaredError,
            Loss::Sum => LossKind::Sum,
        },
        form,
        batch: args.batch.map(|n| n as usize),
        shapes: args.shape.clone(),
        output: args.of.clone(),
        class_axis: args.class_axis,
        ignored: args.ignore_label.unwrap_or(crate::data::IGNORED),
        train_bn: args.train_bn,
        recompute: args.recompute,
        dropout: args.train_dropout.then_some(args.seed),
        sparse: args.sparse.clone(),
    };
    let built = grad::build(&file, &request, &*executor)?;
    if !args.gradients_only && built.state.is_empty() {
        return Err(Error::model(&args.model, "has no weight that the loss depends on"));
    }
    crate::onnx::save(&built.model, &output)?;
    let state = (!built.state.is_empty()).then(|| grad::state_path(&output));
    if let Some(path) = &state {
        crate::data::write_npz(path, &built.state)?;
    }
    notes(&built);
    match args.json {
        true => super::print_json(&described(&built, &output, state.as_deref()))?,
        false => super::print(&summary(&built, &output, state.as_deref()))?,
    }
    Ok(0)
}

fn notes(built: &Built) {
    if let Some(ClassAxis { output, axis }) = &built.classes {
        message(format!(
            "note: the classes lie on axis {axis} of output '{output}', and each of its other places has a label (--class-axis chooses)"
        ));
    }
    for (table, why) in &built.dense {
        message(format!("note: '{table}' keeps a dense gradient: {why}"));
    }
    if !built.fixed.is_empty() {
        let sizes: Vec<String> = built.fixed.iter().map(|(name, n)| format!("{name} = {n}")).collect();
        let why = built.why_fixed.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        message(format!("note: these sizes are fixed: {}{why}", sizes.join(", ")));
        message("hint: choose others with --batch N and --shape NAME=SIZES");
    }
    if !built.idle.is_empty() {
        let names: Vec<&str> = built.idle.iter().take(5).map(|id| id.as_str()).collect();
        let more = if built.idle.len() > 5 { ", …" } else { "" };
        message(format!(
            "note: the loss doesn't depend on {} of the tensors asked for: {}{more}",
            built.idle.len(),
            names.join(", ")
        ));
    }
    if let Some(saving) = &built.saving {
        saving.notes().iter().for_each(|note| message(format!("note: {note}")));
        if !built.open.is_empty() {
            let rows = grad::USUAL_ROWS;
            message(format!(
                "hint: that is for {rows} rows and small sizes of what else is open; --batch and --shape fix them"
            ));
        }
    }
}

fn batch(built: &Built) -> String {
    match built.open.as_slice() {
        [] => "fixed shapes".to_owned(),
        open => format!("open: {}", open.join(", ")),
    }
}

fn summary(built: &Built, output: &Path, state: Option<&Path>) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let weights = count(built.weights.len(), "weight");
    let values = count(built.values.len(), "value");
    let of = match (built.weights.is_empty(), built.values.is_empty()) {
        (_, true) => weights.clone(),
        (true, false) => values,
        (false, false) => format!("{weights} and {values}"),
    };
    let (nodes, sizes) = (built.model.graph.nodes.len(), batch(built));
    match state {
        None => format!("{}: the loss and the gradients of {of}, {nodes} nodes, {sizes}\n", output.display()),
        Some(state) => format!(
            "{}: a training step of {weights}, {nodes} nodes, {sizes}\n{}: its first state, {} arrays\n",
            output.display(),
            state.display(),
            built.state.len()
        ),
    }
}

fn described(built: &Built, output: &Path, state: Option<&Path>) -> serde_json::Value {
    let graph = &built.model.graph;
    json!({
        "output": output.display().to_string(),
        "state": state.map(|s| s.display().to_string()),
        "nodes": graph.nodes.len(),
        "inputs": graph.required_inputs().map(|i| i.id.as_str()).collect::<Vec<_>>(),
        "outputs": graph.outputs.iter().map(|o| o.id.as_str()).collect::<Vec<_>>(),
        "weights": built.weights.iter().map(|w| w.as_str()).collect::<Vec<_>>(),
        "values": built.values.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
        "idle": built.idle.iter().map(|w| w.as_str()).collect::<Vec<_>>(),
        "sparse": built.sparse.iter().map(|w| w.as_str()).collect::<Vec<_>>(),
        "dense": built.dense.iter().map(|(name, why)| json!({"name": name.as_str(), "why": why})).collect::<Vec<_>>(),
        "class_axis": built.classes.as_ref().map(|classes| classes.axis),
        "open": built.open,
        "fixed": built.fixed.iter().map(|(name, size)| json!({"name": name, "size": size})).collect::<Vec<_>>(),
        "why_fixed": built.why_fixed,
        "recompute": built.saving,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_may_have_gaps() {
        assert_eq!(shape("x=?,3,8").unwrap(), ("x".to_owned(), vec![None, Some(3), Some(8)]));
        assert_eq!(shape("a=b=1x2").unwrap(), ("a=b".to_owned(), vec![Some(1), Some(2)]));
        assert!(shape("x").is_err() && shape("x=0").is_err() && shape("x=1,,2").is_err());
    }
}
