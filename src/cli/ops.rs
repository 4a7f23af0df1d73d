//! `onnx-merge ops`: which operators can be trained through.

use super::args::{ExecutorArgs, executor_options};
use super::terminal::table;
use crate::autodiff::ops::{Handling, Operator, Runner, ops};
use crate::error::Result;
use crate::onnx::Model;
use crate::runtime::{self, Executor};
use crate::train::TrainConfig;
use std::sync::Arc;

/// Lists the operators that training understands, and how.
///
/// rule: has a gradient. composed: has that of its definition in other operators. lowered: is rewritten into operators
/// that have one. stop: has none by nature (comparisons, indices, shapes). Every other operator stands in the way only
/// between trained weights and the loss. The third column names executors that run the operator and its gradient: wgpu where it has a kernel
/// of its own (what a gradient wants beyond, a CPU executor runs). The last one names the tests that judge the gradient.
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
    let asked =
        there.iter().map(|executor| (executor.name(), |model: &Model| executor.misses(model).is_empty()));
    let asked: Vec<_> = asked.collect();
    #[cfg_attr(not(feature = "wgpu"), allow(unused_mut))]
    let mut runners: Vec<Runner<'_>> = asked.iter().map(|(name, runs)| (*name, runs as _)).collect();
    // What it has kernels for doesn't depend on the device, of which there may be none. It leaves the rest to others.
    #[cfg(feature = "wgpu")]
    runners.push(("wgpu", &|model: &Model| model.graph.nodes.iter().all(runtime::WgpuExecutor::covers)));
    let operators = ops(&runners);
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
