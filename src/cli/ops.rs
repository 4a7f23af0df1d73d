//! `onnx-merge ops`: which operators can be trained through.

use super::terminal::table;
use crate::autodiff::rules::{self, Kind};
use crate::error::Result;
use serde::Serialize;

/// Lists the operators that training understands, and how.
///
/// rule: has a gradient. stop: has none by nature (comparisons, indices, shapes). Operators that are not listed
/// stand in the way only between trained weights and the loss.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  onnx-merge ops | grep Conv\n  onnx-merge ops --json")]
pub struct Args {
    /// Write the list as one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    domain: String,
    op: String,
    kind: &'static str,
}

pub fn run(args: Args) -> Result<u8> {
    let lines = lines();
    if args.json {
        super::print_json(&lines)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|l| match l.domain.as_str() {
            "" => vec![l.op.clone(), l.kind.into()],
            domain => vec![format!("{domain}::{}", l.op), l.kind.into()],
        })
        .collect();
    super::print(&table(&rows))?;
    Ok(0)
}

fn lines() -> Vec<Line> {
    let line = |&(name, kind): &rules::Row| {
        let (domain, op) = name.split_once("::").unwrap_or(("", name));
        let kind = match kind {
            Kind::Rule(_) => "rule",
            Kind::Stop => "stop",
        };
        Line { domain: domain.into(), op: op.into(), kind }
    };
    let mut lines: Vec<Line> = rules::table().map(line).collect();
    lines.sort();
    lines
}
