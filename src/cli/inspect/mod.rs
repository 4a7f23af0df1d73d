//! `onnx-merge inspect`: a model's parameter graph, and how a source would pair with it.

use super::args::{ExecutorArgs, choice};
use super::terminal::{Paint, message, table};
use crate::autodiff::{facts, prepare};
use crate::error::Result;
use crate::onnx::infer::{Operand, infer};
use crate::onnx::{Dim, Fact, Facts, Graph, Model, ValueInfo, read};
use crate::params::{InterfaceKind, InterfaceUse, MatrixView, Pairing, ParamGraph, Weight, spectrum};
use crate::runtime::{self, Executor};
use crate::train::TrainConfig;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Shows a model's weights, the channel spaces between them, and what a source could give it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  onnx-merge inspect model.onnx
  onnx-merge inspect target.onnx source.onnx
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
    model: Model,
    params: ParamGraph,
    /// Squared Frobenius norm of each matrix, by weight.
    energy: Vec<Option<f64>>,
}

pub fn run(args: Args) -> Result<u8> {
    let format = if args.json { Format::Json } else { args.format };
    let spectra = matches!(format, Format::Table | Format::Json);
    let model = inspect(&args.model, &args.executor, spectra)?;
    let source = args.source.as_ref().map(|path| inspect(path, &args.executor, false)).transpose()?;
    let pairing =
        source.as_ref().map(|s| Pairing::automatic(&model.params, &s.params, &args.map)).transpose()?;
    let both = source.as_ref().zip(pairing.as_ref());
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
    Ok(Inspected { path: path.to_owned(), model, params, energy })
}

/// The model without what can be computed beforehand, and facts from a run on made-up inputs; free dimensions are
/// tried in several sizes.
fn probed(model: &Model, config: &TrainConfig) -> Result<(Model, Facts)> {
    let options = runtime::ExecutorOptions {
        threads: config.threads,
        ort_lib: config.ort_lib.clone(),
        allow_software_gpu: config.allow_software_gpu,
        profile: None,
    };
    let executor = runtime::open(config.executor, &options)?;
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
    let mut facts: Facts =
        graph.initializers.iter().map(|(id, tensor)| (id.clone(), Fact::of(tensor))).collect();
    for input in graph.required_inputs() {
        let dims = input.shape.iter().flatten().map(|d| if let Dim::Known(d) = d { *d } else { 1 });
        let fact = input
            .dtype
            .zip(input.shape.as_ref())
            .map(|(dtype, _)| Fact::new(dtype, &dims.collect::<Vec<_>>()));
        facts.extend(fact.map(|fact| (input.id.clone(), fact)));
    }
    for node in &graph.nodes {
        let operands: Option<Vec<Option<Operand<'_>>>> = node
            .inputs
            .iter()
            .map(|input| match input {
                None => Some(None),
                Some(id) => {
                    facts.get(id).map(|fact| Some(Operand { fact, value: graph.initializers.get(id) }))
                }
            })
            .collect();
        if let Some(made) = operands.and_then(|operands| infer(node, &operands)) {
            let named = node.outputs.iter().cloned().zip(made);
            facts.extend(named.filter_map(|(output, fact)| Some((output?, fact))).collect::<Vec<_>>());
        }
    }
    facts
}

/// Sums over a parameter graph.
#[derive(Serialize)]
struct Totals {
    weights: usize,
    matrices: usize,
    vectors: usize,
    tied: usize,
    interfaces: usize,
    parameters: usize,
    trainable_parameters: usize,
    matrix_parameters: usize,
}

fn totals(params: &ParamGraph) -> Totals {
    let sum = |keep: &dyn Fn(&&Weight) -> bool| params.weights.iter().filter(keep).map(Weight::len).sum();
    Totals {
        weights: params.weights.len(),
        matrices: params.matrices().count(),
        vectors: params.weights.len() - params.matrices().count(),
        tied: params.weights.iter().filter(|w| w.nodes.len() > 1).count(),
        interfaces: params.interfaces.len(),
        parameters: sum(&|_| true),
        trainable_parameters: sum(&|w| w.is_trainable()),
        matrix_parameters: sum(&|w| w.view.is_some()),
    }
}

fn as_json(model: &Inspected, pairing: Option<(&Inspected, &Pairing)>) -> serde_json::Value {
    let weights: Vec<serde_json::Value> = model
        .params
        .weights
        .iter()
        .zip(&model.energy)
        .map(|(weight, energy)| {
            let mut entry = json!(weight);
            entry["rank_95"] = json!(energy.and_then(|e| spectrum::rank_at(&weight.spectrum, e, 0.95)));
            entry["trainable"] = json!(weight.is_trainable());
            entry
        })
        .collect();
    let name = |i: &Inspected, id| i.params.weight(id).name.to_string();
    json!({
        "model": model.path.display().to_string(),
        "producer": model.model.producer,
        "totals": totals(&model.params),
        "weights": weights,
        "interfaces": model.params.interfaces,
        "edges": model.params.edges,
        "pairing": pairing.map(|(source, pairing)| json!({
            "source": source.path.display().to_string(),
            "source_totals": totals(&source.params),
            "interfaces": pairing.interfaces,
            "weights": pairing.weights.iter().map(|p| json!({
                "target": name(model, p.target),
                "source": p.source.map(|s| name(source, s)),
                "candidates": p.candidates.iter().map(|&c| name(source, c)).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })),
    })
}

fn as_table(model: &Inspected, pairing: Option<(&Inspected, &Pairing)>) -> String {
    let paint = Paint::stdout();
    let params = &model.params;
    let mut text = format!("{}\n", paint.bold(&model.path.display().to_string()));
    let mut rows = vec![heading(
        paint,
        &["weight", "role", "shape", "matrix", "depth", "rank 95 %", "σ₁", "from", "to", "users"],
    )];
    for (weight, energy) in params.weights.iter().zip(&model.energy) {
        let plain = weight.dtype == crate::onnx::DType::F32;
        let role = if plain {
            weight.role.name().to_owned()
        } else {
            format!("{} {}", weight.role.name(), weight.dtype)
        };
        rows.push(vec![
            shortened(weight.name.as_str()),
            role,
            product(&weight.shape),
            weight.view.as_ref().map(view).unwrap_or_default(),
            weight.depth.to_string(),
            energy.map(|e| rank(&weight.spectrum, e)).unwrap_or_default(),
            weight.spectrum.first().map(|s| format!("{s:.3}")).unwrap_or_default(),
            sides(params, &weight.input),
            sides(params, &weight.output),
            if weight.nodes.len() > 1 { format!("{} (tied)", weight.nodes.len()) } else { "1".into() },
        ]);
    }
    text += &table(&rows);
    let t = totals(params);
    text += &format!(
        "\n{} weights: {} matrices, {} vectors and others, {} tied; {} numbers, {} of them trainable, {} in matrices\n",
        t.weights, t.matrices, t.vectors, t.tied, t.parameters, t.trainable_parameters, t.matrix_parameters
    );
    text += &interface_table(params, paint);
    if let Some((source, pairing)) = pairing {
        text += &pairing_table(model, source, pairing, paint);
    }
    text
}

fn heading(paint: Paint, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| paint.dim(name)).collect()
}

fn interface_table(params: &ParamGraph, paint: Paint) -> String {
    let mut rows =
        vec![heading(paint, &["interface", "kind", "channels", "depth", "written by", "read by", "vectors"])];
    for (i, interface) in params.interfaces.iter().enumerate() {
        let kind = match interface.kind {
            InterfaceKind::Input => "input",
            InterfaceKind::Hidden => "hidden",
            InterfaceKind::Output => "output",
        };
        let names = |ids: &[crate::params::WeightId]| match ids {
            [] => "–".to_owned(),
            [one] => shortened(params.weight(*one).name.as_str()),
            [one, rest @ ..] => format!("{} + {}", shortened(params.weight(*one).name.as_str()), rest.len()),
        };
        rows.push(vec![
            label(params, i),
            kind.into(),
            interface.channels.to_string(),
            interface.depth.to_string(),
            names(&interface.producers),
            names(&interface.consumers),
            interface.vectors.len().to_string(),
        ]);
    }
    format!("\n{}", table(&rows))
}

fn pairing_table(model: &Inspected, source: &Inspected, pairing: &Pairing, paint: Paint) -> String {
    let name = |i: &Inspected, id| shortened(i.params.weight(id).name.as_str());
    let mut rows = vec![heading(paint, &["target weight", "through interface maps", "else by tokens from"])];
    for pair in &pairing.weights {
        let tokens: Vec<String> = pair.candidates.iter().take(3).map(|&c| name(source, c)).collect();
        let more = pair.candidates.len().saturating_sub(3);
        let tokens = if more > 0 { format!("{} + {more}", tokens.join(", ")) } else { tokens.join(", ") };
        rows.push(vec![
            name(model, pair.target),
            pair.source.map_or("–".into(), |s| name(source, s)),
            tokens,
        ]);
    }
    let interfaces: Vec<String> = pairing
        .interfaces
        .iter()
        .map(|&(t, s)| {
            let channels = (model.params.interface(t).channels, source.params.interface(s).channels);
            format!(
                "{} ({}) ← {} ({})",
                label(&model.params, t.0),
                channels.0,
                label(&source.params, s.0),
                channels.1
            )
        })
        .collect();
    let interfaces = if interfaces.is_empty() { "none".into() } else { interfaces.join(", ") };
    format!(
        "\nfrom {}\ninterfaces: {interfaces}\n{}",
        paint.bold(&source.path.display().to_string()),
        table(&rows)
    )
}

/// `i3`, with what it is.
fn label(params: &ParamGraph, index: usize) -> String {
    match params.interfaces[index].kind {
        InterfaceKind::Input => format!("in{index}"),
        InterfaceKind::Hidden => format!("h{index}"),
        InterfaceKind::Output => format!("out{index}"),
    }
}

fn sides(params: &ParamGraph, uses: &[InterfaceUse]) -> String {
    let one = |u: &InterfaceUse| {
        let positions = if u.positions > 1 { format!("·{}", product(&u.grid)) } else { String::new() };
        format!("{}{positions}", label(params, u.interface.0))
    };
    match uses {
        [] => "–".into(),
        [one_use] => one(one_use),
        [first, rest @ ..] => format!("{} + {}", one(first), rest.len()),
    }
}

fn view(view: &MatrixView) -> String {
    let groups = if view.group > 1 { format!(" /{}", view.group) } else { String::new() };
    match view.taps.as_slice() {
        [] => format!("{}×{}{groups}", view.out, view.inn),
        taps => format!("{}×{}·{}{groups}", view.out, view.inn, product(taps)),
    }
}

fn rank(values: &[f32], energy: f64) -> String {
    match spectrum::rank_at(values, energy, 0.95) {
        Some(rank) => rank.to_string(),
        None => format!("> {}", values.len()),
    }
}

fn product(sizes: &[usize]) -> String {
    sizes.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("×")
}

/// A name that fits a column: its end says more than its middle.
fn shortened(name: &str) -> String {
    const WIDTH: usize = 36;
    let letters: Vec<char> = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match letters.len() {
        n if n <= WIDTH => letters.into_iter().collect(),
        n => letters[..10].iter().chain(&['…']).chain(&letters[n - (WIDTH - 11)..]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Role;

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
                model.params.to_dot();
                model.params.to_mermaid();
                Pairing::automatic(&model.params, &model.params, &[]).unwrap();
            }
        }
    }
}
