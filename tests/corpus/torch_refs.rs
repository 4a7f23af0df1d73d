//! Gradients against PyTorch's autograd, on every executor of this machine.
//!
//! `torch_refs/make.py` made the references; its first lines say what they hold.

use crate::gradients::{differentiable, said};
use onnx_merge::autodiff::{backward, facts::probe, lower::lower};
use onnx_merge::onnx::{Builder, Fact, Facts, Graph, Model, Tensor, ValueId, read};
use onnx_merge::runtime::{Executor, ExecutorChoice, ExecutorOptions, Value, open};
use onnx_merge::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest difference from PyTorch that is taken for rounding, relative to the largest element.
const TOLERANCE: f64 = 2e-5;

/// A model, what it is fed, and what PyTorch makes of it.
struct Case {
    name: String,
    model: Model,
    feeds: BTreeMap<ValueId, Tensor>,
    values: BTreeMap<ValueId, Tensor>,
    seeds: BTreeMap<ValueId, Tensor>,
    grads: BTreeMap<ValueId, Tensor>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/torch_refs")
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::data(folder(), what.to_string())
}

fn arrays(file: &str) -> Result<BTreeMap<String, Tensor>> {
    Ok(onnx_merge::data::read_npz(&folder().join(file))?.into_iter().collect())
}

/// The single-operator cases of `operators.npz`.
fn operators() -> Result<Vec<Case>> {
    let arrays = arrays("operators.npz")?;
    let scratch = tempfile::tempdir().map_err(bad)?;
    let mut cases = vec![];
    for (key, bytes) in &arrays {
        let Some(name) = key.strip_suffix(".model") else { continue };
        let path = scratch.path().join(format!("{name}.onnx"));
        std::fs::write(&path, bytes.bytes()).map_err(bad)?;
        let model = read(&path)?.model;
        let data = arrays.get(&format!("{name}.data")).ok_or_else(|| bad(name))?.to_f64();
        let mut data = data.into_iter();
        let mut take = |fact: &Fact| {
            let numbers: Vec<f64> = data.by_ref().take(fact.len()).collect();
            Tensor::from_f64(fact.dtype, &fact.shape, &numbers)
        };
        let facts = |infos: &[onnx_merge::onnx::ValueInfo]| -> Result<Vec<(ValueId, Fact)>> {
            let known = |i: &onnx_merge::onnx::ValueInfo| Some((i.id.clone(), i.fact()?));
            infos.iter().map(|i| known(i).ok_or_else(|| bad(&i.id))).collect()
        };
        let (inputs, outputs) = (facts(&model.graph.inputs)?, facts(&model.graph.outputs)?);
        let mut all = |list: &[(ValueId, Fact)]| -> BTreeMap<ValueId, Tensor> {
            list.iter().map(|(id, fact)| (id.clone(), take(fact))).collect()
        };
        let (feeds, values, seeds, mut grads) = (all(&inputs), all(&outputs), all(&outputs), all(&inputs));
        grads.retain(|_, g| g.dtype().is_float() && g.first_non_finite().is_none());
        cases.push(Case { name: name.to_owned(), model, feeds, values, seeds, grads });
    }
    Ok(cases)
}

/// The facts of everything a one-operator graph holds.
fn declared(graph: &Graph) -> Facts {
    let infos = graph.inputs.iter().chain(&graph.outputs);
    infos.filter_map(|info| Some((info.id.clone(), info.fact()?))).collect()
}

pub fn executors() -> Vec<Arc<dyn Executor>> {
    let options = ExecutorOptions { threads: Some(1), ..ExecutorOptions::default() };
    let mut found = vec![];
    for choice in [ExecutorChoice::Tract, ExecutorChoice::Ort] {
        match open(choice, &options) {
            Ok(executor) => found.push(executor),
            Err(error) => println!("skipped: {error}"),
        }
    }
    found
}

/// The largest difference relative to the largest element (at least 1).
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    if got.shape() != want.shape() {
        return f64::INFINITY;
    }
    let (got, want) = (got.to_f64(), want.to_f64());
    let size = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    got.iter().zip(&want).fold(0.0, |m: f64, (g, w)| match (g - w).abs() / size {
        d if d.is_nan() => f64::INFINITY,
        d => m.max(d),
    })
}

/// What differs from PyTorch, one line a tensor.
fn differences(case: &Case, facts: Facts, executor: &dyn Executor) -> Result<Vec<String>> {
    let mut b = Builder::on(case.model.graph.clone(), facts);
    let mut feeds = case.feeds.clone();
    let mut seeds = vec![];
    for (output, seed) in &case.seeds {
        let id = b.input(&format!("seed.{output}"), Fact::of(seed));
        feeds.insert(id.clone(), seed.clone());
        seeds.push((output.clone(), id));
    }
    let wrt: Vec<ValueId> = case.grads.keys().cloned().collect();
    let cotangents = backward(&mut b, &seeds, &wrt)?;
    let mut wanted: Vec<(String, &Tensor)> =
        case.values.iter().map(|(id, t)| (format!("value of {id}"), t)).collect();
    for (id, want) in &case.grads {
        let Some(cotangent) = cotangents.get(id) else {
            return Ok(vec![format!("no cotangent of {id}")]);
        };
        b.output(cotangent);
        wanted.push((format!("cotangent of {id}"), want));
    }
    let (graph, facts) = b.finish();
    let (mut graph, facts) = lower(graph, facts)?;
    // Values first: outputs are compared in this order.
    let order: Vec<ValueId> = case.values.keys().cloned().collect();
    graph.outputs[..order.len()].sort_by_key(|o| order.iter().position(|id| *id == o.id));
    let mut model = case.model.clone();
    model.graph = graph;
    let mut program = executor.compile(&model, &facts)?;
    let inputs: Vec<Value> = model
        .graph
        .required_inputs()
        .map(|input| feeds.get(&input.id).cloned().map(Value::host).ok_or_else(|| bad(&input.id)))
        .collect::<Result<_>>()?;
    let outputs = program.run(&inputs)?;
    let mut lines = vec![];
    for ((what, want), got) in wanted.iter().zip(outputs) {
        let distance = distance(&got.to_host()?, want);
        if distance > TOLERANCE {
            lines.push(format!("{what} is off by {distance:.1e}"));
        }
    }
    Ok(lines)
}

/// Why the executor can't judge: it doesn't run the model itself, or gets its value wrong. ONNX Runtime must.
fn cannot_judge(case: &Case, executor: &dyn Executor) -> Option<String> {
    let forward = || -> Result<Option<String>> {
        let mut model = case.model.clone();
        let facts;
        (model.graph, facts) = lower(model.graph, declared(&case.model.graph))?;
        let mut program = executor.compile(&model, &facts)?;
        let inputs: Vec<Value> = case
            .model
            .graph
            .required_inputs()
            .filter_map(|i| case.feeds.get(&i.id))
            .cloned()
            .map(Value::host)
            .collect();
        let outputs = program.run(&inputs)?;
        for (info, got) in case.model.graph.outputs.iter().zip(outputs) {
            let want = case.values.get(&info.id).ok_or_else(|| bad(&info.id))?;
            if distance(&got.to_host()?, want) > TOLERANCE {
                return Ok(Some(format!("it gets {} wrong", info.id)));
            }
        }
        Ok(None)
    };
    if executor.name() == "ort" { None } else { forward().unwrap_or_else(|error| Some(error.to_string())) }
}

fn compare(cases: &[Case], facts: impl Fn(&Case, &dyn Executor) -> Result<Facts>) -> Result<()> {
    let (mut failures, mut passed) = (vec![], 0);
    for executor in executors() {
        for case in cases {
            let name = executor.name();
            if let Some(why) = cannot_judge(case, &*executor) {
                println!("skipped: {name} doesn't run {}: {why}", case.name);
                continue;
            }
            let outcome = facts(case, &*executor).and_then(|facts| differences(case, facts, &*executor));
            match outcome {
                Ok(lines) if lines.is_empty() => passed += 1,
                Ok(lines) => failures.push(format!("{name} {}: {}", case.name, lines.join(", "))),
                Err(error) => failures.push(format!("{name} {}: {error}", case.name)),
            }
        }
    }
    println!("{passed} agree with PyTorch");
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn operators_agree_with_pytorch() -> Result<()> {
    let cases = operators()?;
    let here = |op: &str| cases.iter().any(|case| case.model.graph.nodes.iter().any(|node| node.is(op)));
    let wrong: Vec<&str> = differentiable().filter(|op| said(op, "torch") != here(op)).collect();
    assert!(wrong.is_empty(), "the table of checks is wrong about {}", wrong.join(" "));
    compare(&cases, |case, _| Ok(declared(&case.model.graph)))
}

/// The exported networks, with the constants of `Constant` nodes as initializers.
fn networks() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for name in ["network_cnn", "network_mlp", "network_transformer"] {
        let mut model = read(folder().join(format!("{name}.onnx")))?.model;
        let graph = &mut model.graph;
        graph.nodes.retain(|node| match (node.is("Constant"), node.tensor("value"), node.output(0)) {
            (true, Some(value), Some(output)) => {
                graph.initializers.insert(output.clone(), value.clone());
                false
            }
            _ => true,
        });
        let arrays = arrays(&format!("{name}.npz"))?;
        let part = |prefix: &str| -> BTreeMap<ValueId, Tensor> {
            let named = arrays.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?, v)));
            named.map(|(k, v)| (ValueId::new(k), v.clone())).collect()
        };
        let (feeds, values, seeds, grads) = (part("in."), part("value."), part("seed."), part("grad."));
        cases.push(Case { name: name.to_owned(), model, feeds, values, seeds, grads });
    }
    Ok(cases)
}

#[test]
fn exported_networks_agree_with_pytorch() -> Result<()> {
    compare(&networks()?, |case, executor| {
        let feeds = case.feeds.iter().map(|(id, t)| (id.clone(), t.clone())).collect();
        Ok(probe(executor, &case.model, &feeds)?.facts)
    })
}
