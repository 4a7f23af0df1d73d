//! `onnx-merge pack`: weights from an archive into a model file, whose other bytes stay as they are.

use super::args::required;
use crate::error::{Error, Result};
use crate::onnx::{SiteId, surgery};
use std::collections::HashMap;
use std::path::PathBuf;

/// Puts weights into a model: its file with the bytes of these weights replaced, and nothing else different.
///
/// Arrays of the archive are found by the names of the model's weights. What else a training step keeps (NAME.m,
/// NAME.v, step) is passed over. Half-precision weights are rounded from float32.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  onnx-merge pack model.onnx trained.npz -o trained.onnx")]
pub struct Args {
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Arrays by the names of weights, as numpy.savez writes them
    #[arg(value_name = "WEIGHTS.npz")]
    weights: PathBuf,
    /// The model to write
    #[arg(short, long, value_name = "FILE.onnx")]
    output: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<u8> {
    let output = required(&args.output, "an output", "say where to write the model: -o out.onnx")?;
    let file = crate::onnx::read(&args.model)?;
    // Training names what lies inside functions, branches and constants after this.
    let upgraded = crate::autodiff::prepare::upgrade(&file.model)?;
    let sites: HashMap<String, SiteId> =
        upgraded.graph.initializers.iter().filter_map(|(id, t)| Some((id.to_string(), t.site?))).collect();
    let mut changes = vec![];
    let mut unknown = vec![];
    for (name, tensor) in crate::data::read_npz(&args.weights)? {
        match sites.get(&name) {
            Some(&site) => changes.push((site, tensor)),
            None if is_optimizer_state(&name, &sites) => {}
            None => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        let what = format!("{} has no weight {}", args.model.display(), unknown.join(", "));
        return Err(Error::data(&args.weights, what).hint("`onnx-merge inspect` lists the weights' names"));
    }
    if changes.is_empty() {
        return Err(Error::data(&args.weights, format!("holds no weight of {}", args.model.display())));
    }
    let written = surgery::write(&file, &changes, &output)?;
    super::print(&format!("{}: {} weights written\n", written.path.display(), changes.len()))?;
    Ok(0)
}

/// What a step graph of `grad` keeps beside weights.
fn is_optimizer_state(name: &str, sites: &HashMap<String, SiteId>) -> bool {
    let of_weight = |ending: &str| name.strip_suffix(ending).is_some_and(|weight| sites.contains_key(weight));
    name.trim_end_matches('_') == "step" || of_weight(".m") || of_weight(".v")
}
