//! The adapter step of every preset on the GPU against tract, on the fixtures' real models.

use crate::wgpu::{GPU, distance, noise};
use onnx_merge::Result;
use onnx_merge::lpka::{self, Origin, Side, UpdateProgram};
use onnx_merge::onnx::{Tensor, ValueId};
use onnx_merge::params::Pairing;
use onnx_merge::runtime::{Executor, Runner, TractExecutor, Value, WgpuExecutor};
use onnx_merge::train::network::{Network, Purpose};
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
    let target = Network::open(target, 4, Purpose::default(), tract)?;
    let source = Network::open(source, 4, Purpose::default(), tract)?;
    let mut config = TrainConfig { optimizer, ..TrainConfig::default() };
    config.adapter.preset = preset;
    let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
    let order: Vec<ValueId> = target.trainable(&[])?.into_iter().map(|(name, _)| name).collect();
    lpka::build(&side(&target), &[Origin::new(side(&source), &pairing)], &order, &config, 0.5, tract, 3)
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

type Tensors = HashMap<ValueId, Tensor>;

/// Runs five steps on both; with `ONNX_MERGE_PROFILE` set, says where the GPU's time goes.
fn compare(
    name: &str,
    program: &UpdateProgram,
    gpu: &Arc<WgpuExecutor>,
    tract: &Arc<TractExecutor>,
) -> Result<Vec<(Tensors, Tensors)>> {
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
            println!(
                "    {:14} {:4} calls {:4} dispatches {:8.2} ms",
                time.kernel,
                time.calls,
                time.dispatches,
                1e3 * time.seconds
            );
        }
        println!("    {} kernels compiled so far", gpu.kernels());
    }
    Ok(got.into_iter().zip(expected).collect())
}

/// Plain gradient steps show the gradient itself: every number agrees.
#[test]
fn the_adapter_step_gives_the_same_numbers_on_the_gpu() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let tract = Arc::new(TractExecutor::new(2)?);
    let cnn = fixture("digits_cnn.onnx");
    for (target, preset) in [
        ("digits_mlp.onnx", Preset::Structured),
        ("digits_small_cnn.onnx", Preset::Residual),
        ("digits_small_cnn.onnx", Preset::Paper),
    ] {
        let program = update(&fixture(target), &cnn, preset, Optimizer::Sgd, &tract)?;
        let name = format!("{target} {preset:?}");
        for (step, (got, expected)) in compare(&name, &program, gpu, &tract)?.into_iter().enumerate() {
            for (id, expected) in &expected {
                let apart = distance(&got[id], expected);
                assert!(apart <= 1e-4, "{name}, step {step}, {id}: {apart:e} apart");
            }
        }
    }
    Ok(())
}

#[test]
fn fifty_steps_of_the_adapter_stay_together() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let tract = Arc::new(TractExecutor::new(2)?);
    let (target, source) = (fixture("digits_mlp.onnx"), fixture("digits_cnn.onnx"));
    let program = update(&target, &source, Preset::Structured, Optimizer::Sgd, &tract)?;
    let (expected, _) = steps(tract, &program, 50)?;
    let (got, _) = steps(gpu.clone(), &program, 50)?;
    let mut worst: f64 = 0.0;
    for (got, expected) in got.iter().zip(&expected) {
        for (id, expected) in expected {
            let apart = distance(&got[id], expected);
            assert!(apart <= 1e-3, "{id}: {apart:e} apart");
            worst = worst.max(apart);
        }
    }
    println!("50 steps of the adapter: {worst:.1e} apart at most");
    Ok(())
}

/// AdamW's first step is as long for a gradient of rounding errors as for any other, so there executors may
/// differ by the learning rate. The moments agree everywhere, and parameters wherever the gradient is more than
/// that.
#[test]
fn adamw_differs_only_where_the_gradient_is_rounding() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let tract = Arc::new(TractExecutor::new(2)?);
    let (target, source) = (fixture("digits_small_cnn.onnx"), fixture("digits_cnn.onnx"));
    let program = update(&target, &source, Preset::Structured, Optimizer::Adamw, &tract)?;
    let (got, expected) = compare("AdamW", &program, gpu, &tract)?.swap_remove(0);
    let state = |name: String| program.state.iter().find(|s| s.input.as_str() == name).map(|s| &s.output);
    let moments =
        program.state.iter().filter_map(|s| s.input.as_str().strip_prefix("moments/")?.strip_suffix("/m"));
    let mut flats = 0;
    for index in moments {
        let flat = format!("flat{index}");
        let (Some(new), Some(m), Some(v)) =
            (state(flat.clone()), state(format!("moments/{index}/m")), state(format!("moments/{index}/v")))
        else {
            continue;
        };
        let moment = expected[m].to_f64();
        let largest = moment.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        for id in [m, v] {
            assert!(distance(&got[id], &expected[id]) <= 1e-6, "{id}");
        }
        let (ours, theirs) = (got[new].to_f64(), expected[new].to_f64());
        let apart = |i: usize| (ours[i] - theirs[i]).abs();
        let differ: Vec<usize> = (0..ours.len()).filter(|&i| apart(i) > 1e-5 || apart(i).is_nan()).collect();
        let steepest = differ.iter().map(|&i| moment[i].abs()).fold(0.0, f64::max);
        println!(
            "    {flat}: {} of {} differ; |m| there at most {steepest:e}, anywhere {largest:e}",
            differ.len(),
            ours.len()
        );
        for &i in &differ {
            assert!(
                moment[i].abs() <= 1e-6 * largest && apart(i) <= 2.1e-3,
                "{flat}[{i}]: {} apart, m {}",
                apart(i),
                moment[i]
            );
        }
        flats += 1;
    }
    assert!(flats > 0, "the optimiser's state has other names");
    Ok(())
}
