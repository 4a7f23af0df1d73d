//! Graphs that the GPU can't run whole: the rest runs on the CPU, and the numbers are the same.

use crate::wgpu::{GPU, distance, noise};
use onnx_merge::Result;
use onnx_merge::onnx::{Builder, DType, Fact, Facts, Model, Tensor, ValueId, WORKING_OPSET};
use onnx_merge::runtime::{Executor, Profile, SplitExecutor, TractExecutor, Value};
use onnx_merge::train::model_step::Objective;
use onnx_merge::train::network::{Network, Purpose};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn split(profile: Option<Profile>) -> Result<Option<SplitExecutor>> {
    let Some(gpu) = &*GPU else { return Ok(None) };
    Ok(Some(SplitExecutor::new(gpu.clone(), Arc::new(TractExecutor::new(1)?), profile)))
}

fn run(executor: &dyn Executor, model: &Model, facts: &Facts, feeds: &[Tensor]) -> Result<Vec<Tensor>> {
    let feeds: Vec<Value> = feeds.iter().cloned().map(Value::host).collect();
    executor.compile(model, facts)?.run(&feeds)?.iter().map(Value::to_host).collect()
}

/// Two detours over float64, which the GPU doesn't have, one after the other and one on a branch of its own.
fn detours() -> (Model, Facts, Vec<Tensor>) {
    let mut b = Builder::new("detours");
    let x = b.input("x", Fact::new(DType::F32, &[4, 6]));
    let w = b.input("w", Fact::new(DType::F32, &[6, 6]));
    let detour = |b: &mut Builder, v: &ValueId| {
        let wide = b.cast(v, DType::F64);
        let twice = b.add(&wide, &wide);
        b.cast(&twice, DType::F32)
    };
    let first = b.matmul(&x, &w);
    let second = detour(&mut b, &first);
    let third = b.op("Tanh", &[&second]);
    let fourth = detour(&mut b, &third);
    let branch = detour(&mut b, &x);
    let sum = b.add(&fourth, &branch);
    let constant = b.initializer("constant", Tensor::f32(&[2], &[3.0, 4.0]));
    for output in [&sum, &second, &x, &constant, &sum] {
        b.output(output);
    }
    let (graph, facts) = b.finish();
    (Model::new(graph, WORKING_OPSET), facts, vec![noise(&[4, 6], 1), noise(&[6, 6], 2)])
}

#[test]
fn what_has_no_kernel_runs_on_the_cpu_in_between() -> Result<()> {
    let profile = Profile::default();
    let Some(split) = split(Some(profile.clone()))? else { return Ok(()) };
    let (model, facts, feeds) = detours();
    assert_eq!(split.misses(&model), Vec::<String>::new());
    assert!(!split.device().contains("Cast"));
    let expected = run(&TractExecutor::new(1)?, &model, &facts, &feeds)?;
    let got = run(&split, &model, &facts, &feeds)?;
    for (got, expected) in got.iter().zip(&expected) {
        assert!(distance(got, expected) <= 1e-6);
    }
    assert!(split.device().contains("Add, Cast on CPU"), "{}", split.device());
    let lines = profile.lines();
    let count = |what: &str| lines.iter().filter(|l| l.what.contains(what)).map(|l| l.count).sum::<usize>();
    // GPU: product; tanh; sum. CPU: the first detour with the branch, then the second.
    assert_eq!((count("vulkan"), count("tract")), (3, 2), "{lines:?}");
    assert!(count("crossing to the CPU") >= 2 && count("crossing to the GPU") >= 2, "{lines:?}");
    Ok(())
}

#[test]
fn graphs_whose_shapes_are_unknown_run_on_the_cpu() -> Result<()> {
    let Some(split) = split(None)? else { return Ok(()) };
    let mut b = Builder::new("open");
    let x = b.input("x", Fact::new(DType::F32, &[5]));
    let places = b.op("NonZero", &[&x]);
    b.set_fact(&places, Fact::new(DType::I64, &[1, 3]));
    b.output(&places);
    let (mut graph, mut facts) = b.finish();
    facts.remove(&places);
    graph.outputs[0].shape = None;
    let feeds = [Tensor::f32(&[5], &[1.0, 0.0, 2.0, 0.0, 3.0])];
    let got = run(&split, &Model::new(graph, WORKING_OPSET), &facts, &feeds)?;
    assert_eq!(got[0], Tensor::i64(&[1, 3], &[0, 2, 4]));
    Ok(())
}

/// Models that others made: files directly in the folder of shared models.
fn models() -> Vec<PathBuf> {
    let Some(shared) = std::env::var_os("ONNX_MERGE_SHARED") else { return vec![] };
    let entries = std::fs::read_dir(Path::new(&shared).join("models")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    files
}

/// Models that take a software driver a minute or so, which run when asked for by ONNX_MERGE_MODELS.
const LONG: &[&str] = &["face_rfb_320.onnx", "face_slim_320.onnx", "light_shufflenet.onnx"];
/// Constant weights that drive activations to the ends of float32, where rounding is all there is to compare.
const SATURATED: &str = "light_resnet50.onnx";

/// What a model step's answer is compared with.
fn objective(network: &Network) -> Objective {
    Objective::Vectors { width: network.head.width() }
}

/// One model step of each: the loss and every gradient on the GPU against tract.
#[test]
fn steps_of_whole_models_agree() -> Result<()> {
    let cpu = TractExecutor::new(2)?;
    let only = std::env::var("ONNX_MERGE_MODELS").unwrap_or_default();
    for path in models() {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.contains(&only) || (only.is_empty() && LONG.contains(&name.as_str())) || name == SATURATED {
            continue;
        }
        // Files that nobody can train are other tests' business.
        let Ok(network) = Network::open(&path, 2, Purpose::default(), &cpu) else { continue };
        let Ok(weights) = network.trainable(&[]) else { continue };
        let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
        let Ok(step) = network.step(&names, objective(&network)) else { continue };
        let Some(split) = split(None)? else { return Ok(()) };
        let mut feeds = vec![];
        for (k, input) in step.model.graph.required_inputs().enumerate() {
            let weight = weights.iter().find(|(id, _)| *id == input.id).map(|(_, t)| t.clone());
            let fact = &step.facts[&input.id];
            let made = || match fact.dtype {
                DType::F32 => noise(&fact.shape, k as u32 + 1),
                _ => Tensor::zeros(fact.dtype, &fact.shape),
            };
            feeds.push(weight.unwrap_or_else(made));
        }
        let Ok(expected) = run(&cpu, &step.model, &step.facts, &feeds) else {
            println!("{name}: tract can't run it");
            continue;
        };
        let begun = std::time::Instant::now();
        let got = run(&split, &step.model, &step.facts, &feeds).map_err(|e| e.context(name.clone()))?;
        let seconds = begun.elapsed().as_secs_f64();
        let mut worst: (f64, String) = (0.0, String::new());
        for ((got, expected), output) in got.iter().zip(&expected).zip(&step.model.graph.outputs) {
            // Gradients of very different sizes: each relative to its largest number.
            let largest = expected.to_f64().iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
            let apart = got.to_f64().into_iter().zip(expected.to_f64()).map(|(g, e)| (g - e).abs() / largest);
            let apart = apart.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            if apart > worst.0 {
                worst = (apart, output.id.to_string());
            }
        }
        let nodes = step.model.graph.nodes.len();
        println!("{name}: {nodes} nodes, {seconds:.1} s, {:.1e} apart ({})", worst.0, worst.1);
        for (op, why) in split.elsewhere() {
            println!("    on the CPU: {op}: {why}");
        }
        assert!(worst.0 <= 2e-3, "{name}: {} is {:e} apart", worst.1, worst.0);
    }
    Ok(())
}
