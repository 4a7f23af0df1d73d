//! `onnx-merge completions`: scripts that teach a shell the command line.

use crate::error::Result;
use clap_complete::Shell;

/// Writes a completion script for a shell to stdout.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  onnx-merge completions bash > ~/.local/share/bash-completion/completions/onnx-merge"
)]
pub struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: Args, mut command: clap::Command) -> Result<u8> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut command, "onnx-merge", &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
