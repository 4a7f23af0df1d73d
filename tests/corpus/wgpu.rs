//! ONNX's own operator cases on the GPU executor, against the outputs that come with them.
//!
//! Every case whose operators all have kernels and whose tensors have element types of the GPU takes part; the rest is
//! counted by reason. Runs on a software driver, too.

use crate::cases::{folders, tensor};
use onnx_merge::autodiff::facts::probe;
use onnx_merge::autodiff::prepare::{specialise, upgrade};
use onnx_merge::onnx::{DType, Fact, Facts, Graph, Model, Tensor, ValueId, ValueInfo, read};
use onnx_merge::runtime::{Executor, ExecutorChoice, ExecutorOptions, Value, WgpuExecutor, open};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Cases that aren't compared, by the beginning of their names, and why.
const LISTED: &[(&str, &str)] = &[
    ("test_bernoulli", "draws random numbers"),
    ("test_training_dropout", "draws random numbers"),
    // The corpus takes input size × scale for the output's size; ONNX Runtime, and so the kernel, the size it has.
    ("test_resize_downsample_scales_cubic_align_corners", "judges differ on the size that corners align to"),
    ("test_resize_downsample_scales_linear_align_corners", "judges differ on the size that corners align to"),
];

/// Relative error allowed for float32: that of ONNX's own backend tests.
const RELATIVE: f64 = 1e-3;
/// Absolute error allowed for float32.
const ABSOLUTE: f64 = 1e-5;

enum Verdict {
    Passed,
    /// Why the case is none for this executor.
    LeftOut(String),
    Failed(String),
}

struct Case {
    name: String,
    model: Model,
    inputs: Vec<(ValueId, Tensor)>,
    outputs: Vec<Tensor>,
}

/// Reads a case; `None` where an input or output is no tensor of numbers.
fn load(folder: &Path) -> Option<Case> {
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let model = read(folder.join("model.onnx")).ok()?.model;
    let file = |kind: &str, i: usize| {
        let bytes = std::fs::read(folder.join(format!("test_data_set_0/{kind}_{i}.pb"))).ok()?;
        tensor(&bytes)
    };
    let ids = model.graph.required_inputs().map(|i| i.id.clone()).enumerate();
    let inputs = ids.map(|(i, id)| Some((id, file("input", i)?))).collect::<Option<_>>()?;
    let outputs = (0..model.graph.outputs.len()).map(|i| file("output", i)).collect::<Option<_>>()?;
    Some(Case { name, model, inputs, outputs })
}

/// The model with what follows from shapes alone worked out, and facts of every value: as declared for single nodes,
/// else by running the case once on the CPU, as preparation does.
fn settle(case: &Case, model: Model, cpu: &dyn Executor) -> Option<(Model, Facts)> {
    let mut facts: Facts = case.inputs.iter().map(|(id, t)| (id.clone(), Fact::of(t))).collect();
    for (info, tensor) in model.graph.outputs.iter().zip(&case.outputs) {
        facts.insert(info.id.clone(), Fact::of(tensor));
    }
    let known = |id: &ValueId| facts.contains_key(id);
    if model.graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()).all(known) {
        return Some((model, facts));
    }
    let inputs: HashMap<ValueId, Tensor> = case.inputs.iter().cloned().collect();
    let mut model = model;
    model.graph.outputs.iter_mut().for_each(|o| (o.dtype, o.shape) = (None, None));
    let model = specialise(&model, &probe(cpu, &model, &inputs).ok()?).ok()?;
    facts.extend(probe(cpu, &model, &inputs).ok()?.facts);
    Some((model, facts))
}

/// Inputs of real numbers that say how, not what.
const SETTINGS: &[&str] = &["roi", "scales"];

/// The case with those inputs as constants that say how, not what: single numbers, whole numbers and booleans behind
/// the first input.
fn with_settings(case: &Case, model: &Model) -> (Model, Vec<(ValueId, Tensor)>) {
    let mut model = model.clone();
    let mut fed = vec![];
    for (i, (id, tensor)) in case.inputs.iter().enumerate() {
        let setting = !tensor.dtype().is_float() || tensor.len() == 1 || SETTINGS.contains(&id.as_str());
        if i == 0 || !setting {
            fed.push((id.clone(), tensor.clone()));
        } else {
            model.graph.inputs.retain(|input| input.id != *id);
            model.graph.initializers.insert(id.clone(), tensor.clone());
        }
    }
    (model, fed)
}

fn run(
    gpu: &WgpuExecutor,
    model: &Model,
    facts: &Facts,
    fed: &[(ValueId, Tensor)],
) -> Result<Vec<Tensor>, String> {
    let mut program = gpu.compile(model, facts).map_err(|e| e.to_string())?;
    let feeds: Vec<Value> = fed.iter().map(|(_, t)| Value::host(t.clone())).collect();
    let made = program.run(&feeds).map_err(|e| e.to_string())?;
    made.iter().map(Value::to_host).collect::<onnx_merge::Result<_>>().map_err(|e| e.to_string())
}

/// The model three times over, side by side: kernels then run for several calls at once. What the second is fed is halved
/// where it is real, so that nobody can take another's numbers for its own.
fn thrice(model: &Model, facts: &Facts, fed: &[(ValueId, Tensor)]) -> (Model, Facts, Vec<(ValueId, Tensor)>) {
    let mut all =
        Model { graph: Graph { name: model.graph.name.clone(), ..Graph::default() }, ..model.clone() };
    let (mut all_facts, mut all_fed) = (Facts::default(), vec![]);
    for turn in 0..3 {
        let name = |id: &ValueId| ValueId::new(format!("{id}/{turn}"));
        let graph = model.graph.clone();
        all.graph.nodes.extend(graph.nodes.into_iter().map(|mut node| {
            node.inputs.iter_mut().chain(&mut node.outputs).flatten().for_each(|id| *id = name(id));
            node
        }));
        let named = |mut info: ValueInfo| {
            info.id = name(&info.id);
            info
        };
        all.graph.inputs.extend(graph.inputs.into_iter().map(named));
        all.graph.outputs.extend(graph.outputs.into_iter().map(named));
        all.graph.initializers.extend(graph.initializers.iter().map(|(id, t)| (name(id), t.clone())));
        all_facts.extend(facts.iter().map(|(id, fact)| (name(id), fact.clone())));
        all_fed.extend(fed.iter().map(|(id, tensor)| match tensor.dtype() == DType::F32 && turn == 1 {
            true => {
                let halves: Vec<f32> = tensor.to_f32().iter().map(|v| v / 2.0).collect();
                (name(id), Tensor::f32(tensor.shape(), &halves))
            }
            false => (name(id), tensor.clone()),
        }));
    }
    (all, all_facts, all_fed)
}

fn check(gpu: &WgpuExecutor, cpu: &dyn Executor, case: &Case) -> Verdict {
    let covered = [DType::F32, DType::I32, DType::I64, DType::Bool];
    let foreign =
        case.inputs.iter().map(|(_, t)| t).chain(&case.outputs).find(|t| !covered.contains(&t.dtype()));
    if let Some(tensor) = foreign {
        return Verdict::LeftOut(format!("element type {}", tensor.dtype()));
    }
    let Ok(model) = upgrade(&case.model) else { return Verdict::LeftOut("no form of opset 18".into()) };
    let Some((model, facts)) = settle(case, model, cpu) else {
        return Verdict::LeftOut("shapes are known to no executor".into());
    };
    if let Some(miss) = gpu.misses(&model).first() {
        let op = miss.split(": ").nth(1).and_then(|m| m.split(' ').next()).unwrap_or("?").to_owned();
        return Verdict::LeftOut(format!("no kernel: {op}"));
    }
    let (mut model, mut fed) = (model, case.inputs.clone());
    let got = run(gpu, &model, &facts, &fed).or_else(|_| {
        (model, fed) = with_settings(case, &model);
        run(gpu, &model, &facts, &fed)
    });
    let got = match got {
        Ok(got) => got,
        Err(e) => {
            let what = e.split("): ").nth(1).unwrap_or(&e);
            // Without names.
            let what: String = what
                .split(" ('")
                .map(|part| part.rsplit("') ").next().unwrap_or(part))
                .collect::<Vec<_>>()
                .join(" ");
            return Verdict::LeftOut(format!("refused: {what}"));
        }
    };
    let (model, facts, fed) = thrice(&model, &facts, &fed);
    let many = match run(gpu, &model, &facts, &fed) {
        Ok(many) => many,
        Err(e) => return Verdict::Failed(format!("{}, three times: {e}", case.name)),
    };
    let count = got.len();
    let runs =
        [("alone", &got[..]), ("first of three", &many[..count]), ("last of three", &many[2 * count..])];
    for (run, got) in runs {
        for (i, (got, wanted)) in got.iter().zip(&case.outputs).enumerate() {
            if let Err(what) = agree(got, wanted) {
                return Verdict::Failed(format!("{}, output {i}, {run}: {what}", case.name));
            }
        }
    }
    Verdict::Passed
}

fn agree(got: &Tensor, wanted: &Tensor) -> Result<(), String> {
    if (got.dtype(), got.shape()) != (wanted.dtype(), wanted.shape()) {
        return Err(format!(
            "{} {:?}, not {} {:?}",
            got.dtype(),
            got.shape(),
            wanted.dtype(),
            wanted.shape()
        ));
    }
    let float = wanted.dtype() == DType::F32;
    for (k, (g, w)) in got.to_f64().into_iter().zip(wanted.to_f64()).enumerate() {
        let near = float && (g - w).abs() <= ABSOLUTE + RELATIVE * w.abs();
        if !(g == w || near || (g.is_nan() && w.is_nan())) {
            return Err(format!("element {k} is {g}, not {w}"));
        }
    }
    Ok(())
}

#[test]
fn operator_cases_on_the_gpu() {
    onnx_merge::runtime::silence_telemetry();
    let Some(folders) = folders() else {
        println!("skipped: ONNX_NODE_CORPUS names no folder of cases");
        return;
    };
    let gpu = match WgpuExecutor::open(true) {
        Ok(gpu) => gpu,
        Err(e) => return println!("skipped: {e}"),
    };
    let options = ExecutorOptions { threads: Some(1), ..ExecutorOptions::default() };
    let Ok(cpu) = open(ExecutorChoice::Auto, &options) else { return println!("skipped: no CPU executor") };
    let only = std::env::var("ONNX_MERGE_CASES").unwrap_or_default();
    let (mut passed, mut failures, mut operators) = (0, vec![], BTreeSet::new());
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    for folder in folders {
        let Some(case) = load(&folder) else {
            *left_out.entry("no tensors of numbers".into()).or_default() += 1;
            continue;
        };
        if !case.name.contains(&only) {
            continue;
        }
        let verdict = match LISTED.iter().find(|l| case.name.starts_with(l.0)) {
            Some((_, why)) => Verdict::LeftOut((*why).into()),
            None => check(&gpu, &*cpu, &case),
        };
        match verdict {
            Verdict::Passed => {
                passed += 1;
                operators.extend(case.model.graph.nodes.iter().map(|n| n.qualified_op()));
            }
            Verdict::LeftOut(why) => *left_out.entry(why).or_default() += 1,
            Verdict::Failed(what) => failures.push(what),
        }
    }
    println!("{passed} cases passed, over {} operators, on {}", operators.len(), gpu.device());
    let mut reasons: Vec<_> = left_out.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    println!("{} left out:", reasons.iter().map(|r| r.1).sum::<usize>());
    reasons.iter().for_each(|(why, count)| println!("  {count:4}  {why}"));
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    assert!(failures.is_empty(), "{} cases fail", failures.len());
    assert!(!only.is_empty() || passed > 500, "only {passed} cases took part");
}
