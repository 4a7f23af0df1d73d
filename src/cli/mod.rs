//! The command line: arguments in, results on stdout, messages on stderr, an exit code out.
//!
//! One file a subcommand. What was typed (`args`) is apart from what it means (the library's own types).
//! Exit codes: 0 gain shipped, 2 usage, 3 input refused, 4 no gain, 5 executor, 6 unverified, 130
//! interrupted.

mod args;
mod completions;
mod config;
mod diff;
mod doctor;
mod eval;
mod grad;
mod idle;
mod inspect;
mod log;
mod merge;
mod ops;
mod pack;
mod profile;
mod ranks;
mod signals;
mod tensorboard;
mod terminal;

use crate::error::{Error, Result};
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Moves knowledge from one ONNX model into another, and writes the second with better weights.
///
/// Reads SRC and TGT, trains a low-rank parametric knowledge adapter between their weights on your data, and
/// writes TGT with only its weights' bytes changed. The output is kept only if it is better on validation data.
#[derive(Parser)]
#[command(
    name = "onnx-merge",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
#[command(after_long_help = EXAMPLES, after_help = "See `onnx-merge --help` for examples and exit codes.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    merge: merge::Args,
}

const EXAMPLES: &str = "\
Examples:
  onnx-merge cnn.onnx mlp.onnx -o better.onnx --data train.npz --scale 1/255
  onnx-merge cnn.onnx mlp.onnx -o better.onnx --data train.npz --val val.npz --test test.npz --report report.html
  onnx-merge big.onnx small.onnx -o out.onnx --data photos/ --size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  onnx-merge cnn.onnx mlp.onnx -o better.onnx --data train.npz --ablate --seeds 3 --json
  onnx-merge cnn.onnx mlp.onnx -o taught.onnx                      without data: the source teaches, unverified
  onnx-merge --config merge.toml
  mpirun -n 4 --bind-to none onnx-merge cnn.onnx mlp.onnx -o better.onnx --data train.npz   in a build with --features mpi

Exit codes:
  0    the output is better than the target and was written
  2    the command line or the configuration makes no sense
  3    a model or the data was refused
  4    nothing beat the untouched target: its weights were kept
  5    an executor is unavailable or failed
  6    written, but there were no data to tell whether it is better
  130  interrupted; the best so far was saved";

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // one value a process
enum Command {
    Tune(merge::TuneArgs),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Eval(eval::Args),
    Grad(grad::Args),
    Pack(pack::Args),
    Ops(ops::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

/// Runs what the process's arguments ask for.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if ranks::talks() {
                let _ = error.print();
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let trains = matches!(cli.command, None | Some(Command::Tune(_)));
    ExitCode::from(ranks::run(trains, |ranks| match cli.command {
        None => merge::run(cli.merge, ranks),
        Some(Command::Tune(args)) => merge::tune(args, ranks),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Diff(args)) => diff::run(args),
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Grad(args)) => grad::run(args),
        Some(Command::Pack(args)) => pack::run(args),
        Some(Command::Ops(args)) => ops::run(args),
        Some(Command::Doctor(args)) => doctor::run(args),
        Some(Command::Completions(args)) => completions::run(args, Cli::command()),
    }))
}

/// Writes a result to stdout. A reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
        _ => Ok(()),
    }
}

/// Writes a result as JSON, over several lines.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::usage(format!("no JSON for this: {e}")))?;
    print(&(text + "\n"))
}
