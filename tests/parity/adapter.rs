//! The adapter step of every preset on the GPU against tract, on the fixtures' real models.

use crate::wgpu::{GPU, distance, noise};
use onnx_merge::Result;
use onnx_merge::lpka::{self, Side, UpdateProgram};
use onnx_merge::onnx::{Tensor, ValueId};
use onnx_merge::params::Pairing;
use onnx_merge::runtime::{Executor, Runner, TractExecutor, Value, WgpuExecutor};
use onnx_merge::train::network::Network;
use onnx_merge::train::{Optimizer, Preset, TrainConfig};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn side(network: &Network) -> Side<'_> {
    let weights = &network.model.graph.initializers;
    let of = |name: &ValueId| Some((name.clone(), weights.get(name)?.clone()));
    Side {
        graph: &network.params,
        weights: network.params.weights.iter().filter_map(|w| of(&w.name)).collect(),
    }
}

fn update(
    target: &Path,
    source: &Path,
    preset: Preset,
    optimizer: Optimizer,
    tract: &TractExecutor,
) -> Result<UpdateProgram> {
    let target = Network::open(target, 4, None, tract)?;
    let source = Network::open(source, 4, None, tract)?;
    let mut config = TrainConfig { optimizer, ..TrainConfig::default() };
    config.adapter.preset = preset;
    let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
    let order: Vec<ValueId> = target.trainable(&[])?.into_iter().map(|(name, _)| name).collect();
    lpka::build(&side(&target), Some(&side(&source)), &pairing, &order, &config, 0.5, tract, 3)
}

/// The outputs after each of `count` steps with gradients and random numbers that don't depend on the executor.
fn steps(
    executor: Arc<dyn Executor>,
    program: &UpdateProgram,
    count: u32,
) -> Result<(Vec<HashMap<ValueId, Tensor>>, f64)> {
    let mut runner = Runner::new(executor, &program.step_program())?;
    let mut all = vec![];
    let mut seconds = f64::INFINITY;
    for step in 0..count {
        let mut feeds = vec![(program.learning_rate.clone(), Value::host(Tensor::f32(&[], &[1e-3])))];
        for (k, (_, input)) in program.gradients.iter().enumerate() {
            let values = noise(&program.facts[input].shape, 100 * step + k as u32);
            feeds.push((input.clone(), Value::host(values)));
        }
        for (k, (input, fact)) in program.noise.iter().enumerate() {
            let values: Vec<f32> = noise(&fact.shape, 7000 + 100 * step + k as u32)
                .to_f32()
                .iter()
                .map(|v| 0.5 * v + 0.5)
                .collect();
            feeds.push((input.clone(), Value::host(Tensor::f32(&fact.shape, &values))));
        }
        let start = Instant::now();
        let outputs = runner.step(&feeds)?;
        let outputs = outputs.into_iter().map(|(id, v)| Ok((id, v.to_host()?))).collect::<Result<_>>()?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
        all.push(outputs);
    }
    Ok((all, seconds))
}

/// Of the elements of all outputs, the share that is more than `tolerance` apart, and the worst output.
fn differing(
    got: &HashMap<ValueId, Tensor>,
    expected: &HashMap<ValueId, Tensor>,
    tolerance: f64,
) -> (f64, String) {
    let (mut wrong, mut all, mut worst) = (0, 0, (0.0, String::new()));
    for (id, expected) in expected {
        let (a, b) = (got[id].to_f64(), expected.to_f64());
        wrong += a.iter().zip(&b).filter(|(x, y)| !((*x - *y).abs() <= tolerance * (1.0 + y.abs()))).count();
        all += b.len();
        let apart = distance(&got[id], expected);
        if !(apart <= worst.0) {
            worst = (apart, id.to_string());
        }
    }
    (wrong as f64 / all as f64, format!("{} is {:e} apart", worst.1, worst.0))
}

/// Runs five steps on both; with `ONNX_MERGE_PROFILE` set, says where the GPU's time goes.
fn compare(
    name: &str,
    program: &UpdateProgram,
    gpu: &Arc<WgpuExecutor>,
    tract: &Arc<TractExecutor>,
) -> Result<Vec<(f64, String)>> {
    assert_eq!(gpu.misses(&program.model), Vec::<String>::new(), "{name}");
    let (expected, on_cpu) = steps(tract.clone(), program, 5)?;
    let start = Instant::now();
    let (got, on_gpu) = steps(gpu.clone(), program, 5)?;
    let first = start.elapsed().as_secs_f64() - 4.0 * on_gpu;
    println!(
        "{name}: {} nodes; {:.2} ms a step ({first:.2} s the first) on {}, {:.2} ms on {}",
        program.model.graph.nodes.len(),
        1e3 * on_gpu,
        gpu.device(),
        1e3 * on_cpu,
        tract.device(),
    );
    if std::env::var_os("ONNX_MERGE_PROFILE").is_some() {
        let inputs: Vec<Value> = program
            .model
            .graph
            .required_inputs()
            .map(|input| {
                let state = program.state.iter().find(|s| s.input == input.id).map(|s| s.initial.clone());
                Value::host(state.unwrap_or_else(|| noise(&program.facts[&input.id].shape, 1)))
            })
            .collect();
        for time in gpu.profile(&program.model, &program.facts, &inputs)? {
            println!("    {:14} {:4} dispatches {:8.2} ms", time.kernel, time.dispatches, 1e3 * time.seconds);
        }
        println!("    {} kernels compiled so far", gpu.kernels());
    }
    Ok(got.iter().zip(&expected).map(|(got, expected)| differing(got, expected, 1e-4)).collect())
}

/// With plain gradient steps every number agrees. AdamW's first steps are the gradient's signs, so where a gradient
/// is zero but for rounding the executors may go opposite ways: there nearly every number agrees.
#[test]
fn the_adapter_step_gives_the_same_numbers_on_the_gpu() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let tract = Arc::new(TractExecutor::new(2)?);
    let mlp = ("digits_mlp.onnx", "digits_cnn.onnx");
    let cnn = ("digits_small_cnn.onnx", "digits_cnn.onnx");
    for (pair, preset, optimizer, allowed) in [
        (mlp, Preset::Structured, Optimizer::Sgd, 0.0),
        (cnn, Preset::Residual, Optimizer::Sgd, 0.0),
        (cnn, Preset::Structured, Optimizer::Adamw, 0.01),
        (cnn, Preset::Paper, Optimizer::Adamw, 0.01),
    ] {
        let program = update(&fixture(pair.0), &fixture(pair.1), preset, optimizer, &tract)?;
        let name = format!("{} {preset:?} {optimizer:?}", pair.0);
        for (step, (share, worst)) in compare(&name, &program, gpu, &tract)?.into_iter().enumerate() {
            println!("    step {step}: {:.4} % differ, {worst}", 100.0 * share);
            assert!(share <= allowed, "{name}, step {step}: {:.4} % differ, {worst}", 100.0 * share);
        }
    }
    Ok(())
}
