//! `onnx-merge diff`: which weights of two versions of a model differ, how much, and whether anything else does.

use super::terminal::{Paint, table};
use crate::error::Result;
use crate::onnx::{Attr, Graph, ModelFile, Node, Tensor, read};
use serde::Serialize;
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;

/// Compares two versions of a model: their weights by number, everything else byte by byte.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  onnx-merge diff target.onnx out.onnx")]
pub struct Args {
    /// The model before
    #[arg(value_name = "A")]
    before: PathBuf,
    /// The model after
    #[arg(value_name = "B")]
    after: PathBuf,
    /// Show unchanged weights too
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How one tensor differs.
#[derive(Serialize)]
struct Change {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    /// `‖b − a‖ / ‖a‖` (Frobenius); absent where shape or type differ or the elements aren't numbers.
    relative: Option<f64>,
    max_abs: Option<f64>,
    /// What differs besides numbers.
    note: Option<String>,
}

impl Change {
    fn is_change(&self) -> bool {
        self.note.is_some() || self.max_abs.is_some_and(|m| m != 0.0)
    }
}

pub fn run(args: Args) -> Result<u8> {
    let (a, b) = (read(&args.before)?, read(&args.after)?);
    let changes = compare(&a, &b);
    let rest = rest_differs(&a, &b);
    let changed = changes.iter().filter(|c| c.is_change()).count();
    if args.json {
        let shown: Vec<&Change> = changes.iter().filter(|c| args.all || c.is_change()).collect();
        super::print_json(&json!({
            "before": args.before.display().to_string(),
            "after": args.after.display().to_string(),
            "tensors": changes.len(),
            "changed": changed,
            "rest_identical": rest.is_none(),
            "rest": rest,
            "changes": shown,
        }))?;
        return Ok(0);
    }
    let paint = Paint::stdout();
    let names = ["tensor", "shape", "relative change", "greatest change", ""];
    let mut rows = vec![names.iter().map(|n| paint.dim(n)).collect::<Vec<_>>()];
    for change in changes.iter().filter(|c| args.all || c.is_change()) {
        let number = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.3e}"));
        let shape: Vec<String> = change.shape.iter().map(|d| d.to_string()).collect();
        let relative = change.relative.map_or("–".into(), |r| format!("{:.2} %", 100.0 * r));
        let note = change.note.clone().unwrap_or_default();
        rows.push(vec![change.name.clone(), shape.join("×"), relative, number(change.max_abs), note]);
    }
    let mut text = if rows.len() > 1 { table(&rows) + "\n" } else { String::new() };
    text += &format!("{changed} of {} tensors differ; ", changes.len());
    text += &match rest {
        None => "everything else is the same, byte by byte\n".to_owned(),
        Some(what) => format!("and so does something else: {what}\n"),
    };
    super::print(&text)?;
    Ok(0)
}

/// All tensors of both files, in the order of the first, then what only the second has.
fn compare(a: &ModelFile, b: &ModelFile) -> Vec<Change> {
    let (before, after) = (tensors(&a.model.graph), tensors(&b.model.graph));
    let by_name: HashMap<&str, &Tensor> = after.iter().map(|(name, t)| (name.as_str(), *t)).collect();
    let known: HashMap<&str, &Tensor> = before.iter().map(|(name, t)| (name.as_str(), *t)).collect();
    let mut changes: Vec<Change> =
        before.iter().map(|(name, t)| change(name, Some(t), by_name.get(name.as_str()).copied())).collect();
    let added = after.iter().filter(|(name, _)| !known.contains_key(name.as_str()));
    changes.extend(added.map(|(name, t)| change(name, None, Some(t))));
    changes
}

fn change(name: &str, a: Option<&Tensor>, b: Option<&Tensor>) -> Change {
    let shown = a.or(b);
    let mut change = Change {
        name: name.to_owned(),
        shape: shown.map(|t| t.shape().to_vec()).unwrap_or_default(),
        dtype: shown.map(|t| t.dtype().to_string()).unwrap_or_default(),
        relative: None,
        max_abs: None,
        note: None,
    };
    match (a, b) {
        (Some(_), None) => change.note = Some("only in the first".into()),
        (None, _) => change.note = Some("only in the second".into()),
        (Some(a), Some(b)) if a.shape() != b.shape() || a.dtype() != b.dtype() => {
            change.note = Some(format!("became {}{:?}", b.dtype(), b.shape()));
        }
        (Some(a), Some(b)) if a.bytes() == b.bytes() => {
            (change.relative, change.max_abs) = (Some(0.0), Some(0.0))
        }
        (Some(a), Some(b)) if a.is_readable() => numbers(&mut change, &a.to_f64(), &b.to_f64()),
        _ => change.note = Some("differs, and isn't made of numbers".into()),
    }
    change
}

fn numbers(change: &mut Change, a: &[f64], b: &[f64]) {
    let (mut norm, mut distance, mut most, mut broken) = (0.0, 0.0, 0.0f64, 0);
    for (x, y) in a.iter().zip(b) {
        if x == y || (x.is_nan() && y.is_nan()) {
            norm += if x.is_finite() { x * x } else { 0.0 };
        } else if (x - y).is_finite() {
            norm += x * x;
            distance += (x - y) * (x - y);
            most = most.max((x - y).abs());
        } else {
            broken += 1;
        }
    }
    change.max_abs = Some(most);
    change.relative =
        if norm > 0.0 { Some((distance / norm).sqrt()) } else { (distance == 0.0).then_some(0.0) };
    if broken > 0 {
        change.note = Some(format!("{broken} elements became, or were, NaN or infinite"));
    }
}

/// Every tensor with a place in the file, by a name that is unique within it.
fn tensors(graph: &Graph) -> Vec<(String, &Tensor)> {
    let mut found = vec![];
    collect(graph, "", &mut found);
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (name, _) in &mut found {
        let times = seen.entry(name.clone()).or_insert(0);
        *times += 1;
        if *times > 1 {
            *name = format!("{name} #{times}");
        }
    }
    found
}

fn collect<'g>(graph: &'g Graph, scope: &str, found: &mut Vec<(String, &'g Tensor)>) {
    found.extend(graph.initializers.iter().map(|(id, tensor)| (format!("{scope}{id}"), tensor)));
    for node in &graph.nodes {
        for (attr, value) in &node.attrs {
            let inner = || format!("{scope}{}.{attr}/", node.label());
            match value {
                Attr::Tensor(tensor) => found.push((attribute_name(scope, node, attr), tensor)),
                Attr::Graph(inside) => collect(inside, &inner(), found),
                Attr::Graphs(all) => all.iter().for_each(|inside| collect(inside, &inner(), found)),
                _ => {}
            }
        }
    }
}

fn attribute_name(scope: &str, node: &Node, attr: &str) -> String {
    match (node.is("Constant"), node.output(0)) {
        (true, Some(output)) => format!("{scope}{output}"),
        _ => format!("{scope}{}.{attr}", node.label()),
    }
}

/// Whether the files differ outside the payloads of tensors, and where first.
fn rest_differs(a: &ModelFile, b: &ModelFile) -> Option<String> {
    let (frame_a, frame_b) = (a.frame(), b.frame());
    let mut bytes_a = frame_a.iter().flat_map(|r| r.clone()).filter_map(|i| Some((i, *a.bytes().get(i)?)));
    let mut bytes_b = frame_b.iter().flat_map(|r| r.clone()).filter_map(|i| Some((i, *b.bytes().get(i)?)));
    loop {
        match (bytes_a.next(), bytes_b.next()) {
            (None, None) => return None,
            (Some((_, x)), Some((_, y))) if x == y => {}
            (Some((i, _)), Some((j, _))) if i == j => return Some(format!("the files part at byte {i}")),
            (Some((i, _)), Some((j, _))) => {
                return Some(format!("the files part at byte {i} of the first, {j} of the second"));
            }
            (Some((i, _)), None) => {
                return Some(format!("the first goes on at byte {i}, where the second ends"));
            }
            (None, Some((j, _))) => {
                return Some(format!("the second goes on at byte {j}, where the first ends"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Builder, DType, Fact, Model, SiteId, save, surgery};

    fn model(dir: &std::path::Path, name: &str, value: f32, producer: &str) -> ModelFile {
        let mut b = Builder::new("test");
        let x = b.input("x", Fact::new(DType::F32, &[1, 2]));
        let w = b.initializer("w", Tensor::f32(&[2, 2], &[3.0, 0.0, 0.0, value]));
        let v = b.initializer("v", Tensor::f32(&[2], &[1.0, 2.0]));
        let y = b.matmul(&x, &w);
        let y = b.add(&y, &v);
        b.output(&y);
        let mut model = Model::new(b.finish().0, 18);
        model.producer = producer.into();
        let path = dir.join(name);
        save(&model, &path).unwrap();
        read(&path).unwrap()
    }

    #[test]
    fn changed_weights_are_measured_and_the_rest_compared() {
        let dir = tempfile::tempdir().unwrap();
        let a = model(dir.path(), "a.onnx", 4.0, "test");
        let b = model(dir.path(), "b.onnx", 5.0, "test");
        let changes = compare(&a, &b);
        let changed: Vec<&Change> = changes.iter().filter(|c| c.is_change()).collect();
        assert_eq!(changed.len(), 1);
        assert_eq!(
            (changed[0].name.as_str(), changed[0].relative, changed[0].max_abs),
            ("w", Some(0.2), Some(1.0))
        );
        assert_eq!(rest_differs(&a, &b), None);
        let c = model(dir.path(), "c.onnx", 4.0, "tess");
        assert_eq!(compare(&a, &c).iter().filter(|c| c.is_change()).count(), 0);
        assert!(rest_differs(&a, &c).is_some());
        assert!(rest_differs(&a, &model(dir.path(), "d.onnx", 4.0, "other")).is_some());
    }

    #[test]
    fn surgery_changes_payloads_only() {
        let dir = tempfile::tempdir().unwrap();
        let a = model(dir.path(), "a.onnx", 4.0, "test");
        let out = dir.path().join("out.onnx");
        let site = a.model.graph.initializers[&crate::onnx::ValueId::new("w")].site.unwrap_or(SiteId(0));
        surgery::write(&a, &[(site, Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]))], &out).unwrap();
        let b = read(&out).unwrap();
        assert_eq!(compare(&a, &b).iter().filter(|c| c.is_change()).count(), 1);
        assert_eq!(rest_differs(&a, &b), None);
    }
}
