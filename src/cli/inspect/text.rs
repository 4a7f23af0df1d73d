//! What `inspect` prints: tables for people, JSON for programs.

use super::Inspected;
use crate::cli::terminal::{Paint, table};
use crate::onnx::{Dim, ValueInfo};
use crate::params::{
    InterfaceKind, InterfaceUse, MatrixView, Pairing, ParamGraph, Weight, WeightId, spectrum,
};
use serde::Serialize;
use serde_json::json;

/// Sums over a parameter graph.
#[derive(Serialize)]
pub struct Totals {
    pub weights: usize,
    pub matrices: usize,
    pub vectors: usize,
    pub tied: usize,
    pub interfaces: usize,
    pub parameters: usize,
    pub trainable_parameters: usize,
    pub matrix_parameters: usize,
}

pub fn totals(params: &ParamGraph) -> Totals {
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

pub fn as_json(model: &Inspected, pairing: Option<(&Inspected, &Pairing)>) -> serde_json::Value {
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
        "inputs": model.inputs.iter().map(declared_json).collect::<Vec<_>>(),
        "outputs": model.outputs.iter().map(declared_json).collect::<Vec<_>>(),
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

pub fn as_table(model: &Inspected, pairing: Option<(&Inspected, &Pairing)>) -> String {
    let paint = Paint::stdout();
    let params = &model.params;
    let mut text = format!("{}\n", paint.bold(&model.path.display().to_string()));
    text += &ends_table(model);
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

/// What the file declares of its inputs and outputs: arrays of data go by these names.
fn ends_table(model: &Inspected) -> String {
    let row = |kind: &str, info: &ValueInfo| {
        let dtype = info.dtype.map_or("not a tensor".into(), |dtype| dtype.to_string());
        let shape = info.shape.as_ref().map(|dims| dims.iter().map(Dim::to_string).collect::<Vec<_>>());
        vec![kind.to_owned(), info.id.to_string(), dtype, shape.map_or("?".into(), |dims| dims.join("×"))]
    };
    let inputs = model.inputs.iter().map(|info| row("input", info));
    let rows: Vec<_> = inputs.chain(model.outputs.iter().map(|info| row("output", info))).collect();
    format!("{}\n", table(&rows))
}

fn declared_json(info: &ValueInfo) -> serde_json::Value {
    let dim = |dim: &Dim| match dim {
        Dim::Known(size) => json!(size),
        Dim::Named(name) => json!(name),
        Dim::Unknown => json!(null),
    };
    json!({
        "name": info.id.to_string(),
        "dtype": info.dtype.map(|dtype| dtype.to_string()),
        "shape": info.shape.as_ref().map(|dims| dims.iter().map(dim).collect::<Vec<_>>()),
    })
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
        let names = |ids: &[WeightId]| match ids {
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
pub fn label(params: &ParamGraph, index: usize) -> String {
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

pub fn view(view: &MatrixView) -> String {
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

pub fn product(sizes: &[usize]) -> String {
    sizes.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("×")
}

/// A name that fits a column: its end says more than its middle.
pub fn shortened(name: &str) -> String {
    const WIDTH: usize = 36;
    let letters: Vec<char> = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match letters.len() {
        n if n <= WIDTH => letters.into_iter().collect(),
        n => letters[..10].iter().chain(&['…']).chain(&letters[n - (WIDTH - 11)..]).collect(),
    }
}
