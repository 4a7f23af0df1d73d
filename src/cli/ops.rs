//! `onnx-merge ops`: which operators can be trained through.

use super::args::{ExecutorArgs, executor_options};
use super::terminal::table;
use crate::autodiff::ops::{Handling, Operator, ops};
use crate::error::Result;
use crate::runtime::{self, Executor};
use crate::train::TrainConfig;
use std::sync::Arc;

/// Lists the operators that training understands, and how.
///
/// rule: has a gradient. composed: has that of its definition in other operators. lowered: is rewritten into operators
/// that have one. stop: has none by nature (comparisons, indices, shapes). Every other operator stands in the way only
/// between trained weights and the loss. The last column names the tests that judge the gradient.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  onnx-merge ops | grep Conv\n  onnx-merge ops --json")]
pub struct Args {
    #[command(flatten)]
    executor: ExecutorArgs,
    /// Write the list as one JSON array, operators without a gradient included
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<u8> {
    let mut config = TrainConfig::default();
    args.executor.apply(&mut config);
    let options = executor_options(&config);
    let choices = [runtime::ExecutorChoice::Ort, runtime::ExecutorChoice::Tract];
    let there: Vec<Arc<dyn Executor>> =
        choices.into_iter().filter_map(|choice| runtime::open(choice, &options).ok()).collect();
    let executors: Vec<&dyn Executor> = there.iter().map(|executor| &**executor).collect();
    let operators = ops(&executors);
    if args.json {
        super::print_json(&operators)?;
        return Ok(0);
    }
    let shown = operators.iter().filter(|o| o.kind != Handling::None);
    let rows: Vec<Vec<String>> = shown.map(row).collect();
    super::print(&table(&rows))?;
    Ok(0)
}

fn row(operator: &Operator) -> Vec<String> {
    let name = match operator.domain.as_str() {
        "" => operator.op.clone(),
        domain => format!("{domain}::{}", operator.op),
    };
    let checks = operator.checks.join(" ");
    vec![name, operator.opsets.clone(), operator.executors.join(" "), operator.kind.name().into(), checks]
}
