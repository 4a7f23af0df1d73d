//! `onnx-merge inspect`: a model's parameter graph, and how a source would pair with it.

mod layout;
mod page;
mod text;

use super::args::{ExecutorArgs, choice, executor_options};
use super::terminal::message;
use crate::autodiff::{facts, prepare};
use crate::error::Result;
use crate::onnx::infer::infer_graph;
use crate::onnx::surgery::refuse_overwriting;
use crate::onnx::{Dim, Fact, Facts, Graph, Model, ValueInfo, atomic, read};
use crate::params::{Pairing, ParamGraph, spectrum};
use crate::runtime::{self, Executor};
use crate::train::TrainConfig;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use text::{as_json, as_table};

/// Shows a model's weights, the channel spaces between them, and what a source could give it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-merge inspect model.onnx
  onnx-merge inspect target.onnx source.onnx
  onnx-merge inspect target.onnx source.onnx --html pairing.html
  onnx-merge inspect model.onnx --format dot | dot -Tsvg > model.svg")]
pub struct Args {
    /// The model to look at
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A source: show what MODEL would take from it
    #[arg(value_name = "SRC")]
    source: Option<PathBuf>,
    /// How to show it
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = choice::<Format>(&["table", "json", "dot", "mermaid"]))]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
    /// Draw it instead, as one page for a browser that needs nothing else
    #[arg(long, value_name = "PATH", conflicts_with_all = ["format", "json"])]
    html: Option<PathBuf>,
    /// Pair weights by name: 'target_glob=source_glob' (may be repeated)
    #[arg(long, value_name = "TGT=SRC", requires = "source")]
    map: Vec<String>,
    #[command(flatten)]
    executor: ExecutorArgs,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Table,
    Json,
    Dot,
    Mermaid,
}

/// A model and its parameter graph, with spectra where they are shown.
struct Inspected {
    path: PathBuf,
    /// As the file declares them.
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    model: Model,
    params: ParamGraph,
    /// Squared Frobenius norm of each matrix, by weight.
    energy: Vec<Option<f64>>,
}

pub fn run(args: Args) -> Result<u8> {
    let format = if args.json { Format::Json } else { args.format };
    if let Some(out) = &args.html {
        let inputs: Vec<&Path> =
            [Some(&args.model), args.source.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
        refuse_overwriting(out, &inputs)?;
    }
    let spectra = args.html.is_none() && matches!(format, Format::Table | Format::Json);
    let model = inspect(&args.model, &args.executor, spectra)?;
    let source = args.source.as_ref().map(|path| inspect(path, &args.executor, false)).transpose()?;
    let pairing =
        source.as_ref().map(|s| Pairing::automatic(&model.params, &s.params, &args.map)).transpose()?;
    let both = source.as_ref().zip(pairing.as_ref());
    if let Some(out) = &args.html {
        atomic::write(out, page::page(&model, both).as_bytes())?;
        message(format!("{} shows it in any browser", out.display()));
        return Ok(0);
    }
    match format {
        Format::Table => super::print(&as_table(&model, both))?,
        Format::Json => super::print_json(&as_json(&model, both))?,
        Format::Dot => super::print(&model.params.to_dot())?,
        Format::Mermaid => super::print(&model.params.to_mermaid())?,
    }
    Ok(0)
}

fn inspect(path: &Path, executor: &ExecutorArgs, spectra: bool) -> Result<Inspected> {
    let file = read(path)?;
    let inside = |e: crate::Error| e.context(path.display().to_string());
    let model = prepare::upgrade(&file.model).map_err(inside)?;
    let mut config = TrainConfig::default();
    executor.apply(&mut config);
    let (model, facts) = match probed(&model, &config) {
        Ok(found) => found,
        Err(error) => {
            message(format!("note: shapes are guessed, for {} doesn't run here: {error}", path.display()));
            let facts = guessed(&model.graph);
            (model, facts)
        }
    };
    let mut params = ParamGraph::extract(&model, &facts).map_err(inside)?;
    let mut energy = vec![None; params.weights.len()];
    if spectra {
        params.compute_spectra(&model.graph);
        for (weight, energy) in params.weights.iter().zip(&mut energy) {
            let tensor = model.graph.initializers.get(&weight.name);
            *energy = weight.view.as_ref().zip(tensor).map(|(view, t)| spectrum::energy(&view.matrix_of(t)));
        }
    }
    let graph = &file.model.graph;
    let (inputs, outputs) = (graph.required_inputs().cloned().collect(), graph.outputs.clone());
    Ok(Inspected { path: path.to_owned(), inputs, outputs, model, params, energy })
}

/// The model without what can be computed beforehand, and facts from a run on made-up inputs; free dimensions are
/// tried in several sizes.
fn probed(model: &Model, config: &TrainConfig) -> Result<(Model, Facts)> {
    let executor = runtime::open(config.executor, &executor_options(config))?;
    let mut first_error = None;
    for size in [32, 1, 256, 640] {
        match probed_at(executor.as_ref(), model, size) {
            Ok(found) => return Ok(found),
            Err(error) => first_error = first_error.or(Some(error)),
        }
        let free = |i: &ValueInfo| i.shape.iter().flatten().skip(1).any(|d| !matches!(d, Dim::Known(_)));
        if !model.graph.required_inputs().any(free) {
            break;
        }
    }
    // Where no one size fits all free dimensions, what training does may.
    if let Ok(lifted) = prepare::lift(model, 1, executor.as_ref()) {
        let facts = facts::probe(executor.as_ref(), &lifted.model, &lifted.example)?.facts;
        return Ok((lifted.model, facts));
    }
    Err(first_error.unwrap_or_else(|| crate::Error::usage("the model can't be tried out")))
}

fn probed_at(executor: &dyn Executor, model: &Model, size: usize) -> Result<(Model, Facts)> {
    let mut model = model.clone();
    for input in &mut model.graph.inputs {
        for dim in input.shape.iter_mut().flatten().skip(1).filter(|d| !matches!(d, Dim::Known(_))) {
            *dim = Dim::Known(size);
        }
    }
    let inputs = facts::example_inputs(&model.graph, 2, 0)?;
    let probe = facts::probe(executor, &model, &inputs)?;
    let model = prepare::specialise(&model, &probe)?;
    let facts = facts::probe(executor, &model, &inputs)?.facts;
    Ok((model, facts))
}

/// What can be known of shapes without running anything.
fn guessed(graph: &Graph) -> Facts {
    let input = |input: &ValueInfo| {
        let dims = input.shape.iter().flatten().map(|d| if let Dim::Known(d) = d { *d } else { 1 });
        let (dtype, _) = input.dtype.zip(input.shape.as_ref())?;
        Some((input.id.clone(), Fact::new(dtype, &dims.collect::<Vec<_>>())))
    };
    infer_graph(graph, graph.required_inputs().filter_map(input).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Role, Weight};

    fn open(path: &Path) -> Result<Inspected> {
        inspect(path, &ExecutorArgs::default(), true)
    }
    fn fixture(name: &str) -> Inspected {
        open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)).unwrap()
    }
    fn count(model: &Inspected, role: Role) -> usize {
        model.params.weights.iter().filter(|w| w.role == role).count()
    }

    #[test]
    fn the_fixtures_pair_as_their_layers_suggest() {
        let (cnn, small) = (fixture("digits_cnn.onnx"), fixture("digits_small_cnn.onnx"));
        assert_eq!((count(&cnn, Role::Conv), count(&cnn, Role::Linear)), (3, 2));
        assert!(cnn.params.weights.iter().all(|w| w.role == Role::Bias || w.view.is_some()));
        let pairing = Pairing::automatic(&small.params, &cnn.params, &[]).unwrap();
        // Input, two convolutions, the first linear layer, output; the convolution that the source has more is left out.
        assert_eq!(pairing.interfaces.len(), 5);
        assert_eq!(pairing.weights.iter().filter(|p| p.source.is_some()).count(), 3);
        let text = as_table(&small, Some((&cnn, &pairing)));
        assert!(text.contains("4 matrices") && text.contains("digits_cnn.onnx"), "{text}");
        assert_eq!(as_json(&small, Some((&cnn, &pairing)))["totals"]["matrices"], 4);
        let page = page::page(&small, Some((&cnn, &pairing)));
        let drawn = |class: &str| page.matches(&format!("class=\"{class}")).count();
        assert_eq!((drawn("node matrix"), drawn("pair maps")), (4 + 5, 3), "{page}");
        let mlp = fixture("digits_mlp.onnx");
        assert!(!Pairing::automatic(&mlp.params, &cnn.params, &[]).unwrap().interfaces.is_empty());
    }

    #[test]
    fn both_exports_of_the_transformer_have_one_residual_stream() {
        for name in ["digits_transformer.onnx", "digits_transformer_dynamo.onnx"] {
            let model = fixture(name);
            assert_eq!((count(&model, Role::Linear), model.params.matrices().count()), (10, 10), "{name}");
            let stream = model.params.interfaces.iter().find(|i| i.producers.len() == 5);
            let stream =
                stream.unwrap_or_else(|| panic!("{name}: no stream in {:#?}", model.params.interfaces));
            assert_eq!((stream.channels, stream.consumers.len()), (32, 5), "{name}");
        }
    }

    /// (file, convolutions, depthwise convolutions, linear layers)
    const SHARED: [(&str, usize, usize, usize); 10] = [
        ("cifar_deep_kw", 4, 0, 2),
        ("cifar_marabou_medium", 2, 0, 3),
        ("cifar_resnet_2b", 6, 0, 2),
        ("face_rfb_320", 34, 18, 0),
        ("face_slim_320", 23, 19, 0),
        ("lightgbm", 0, 0, 0),
        ("mnist_convnet_maxpool", 1, 0, 1),
        ("mnist_fc_256x2", 0, 0, 3),
        ("mnist_fc_256x6", 0, 0, 7),
        ("mnist_rten", 3, 0, 1),
    ];

    #[test]
    fn models_made_by_others_have_the_layers_they_say() {
        let Some(shared) = std::env::var_os("ONNX_MERGE_SHARED").map(PathBuf::from) else {
            return eprintln!("skipped: ONNX_MERGE_SHARED isn't set");
        };
        for (name, convolutions, depthwise, linear) in SHARED {
            let model = open(&shared.join("models").join(name).with_extension("onnx")).unwrap();
            let found =
                (count(&model, Role::Conv), count(&model, Role::DepthwiseConv), count(&model, Role::Linear));
            assert_eq!(found, (convolutions, depthwise, linear), "{name}");
            let connected = |w: &Weight| !w.input.is_empty() && !w.output.is_empty();
            assert!(model.params.matrices().all(|(_, w)| connected(w)), "{name}");
        }
        // Whatever it is: an answer or an error, and the same graph drawn in each form.
        for entry in std::fs::read_dir(shared.join("models/zoo")).into_iter().flatten().flatten() {
            if let Ok(model) = open(&entry.path()) {
                as_table(&model, None);
                as_json(&model, None);
                page::page(&model, None);
                model.params.to_dot();
                model.params.to_mermaid();
                Pairing::automatic(&model.params, &model.params, &[]).unwrap();
            }
        }
    }
}
