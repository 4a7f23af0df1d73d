//! Whole model steps (forward, loss, backward, descent) of the fixtures on the GPU against the CPU, over many steps.

use crate::wgpu::{GPU, distance, noise};
use onnx_merge::Result;
use onnx_merge::onnx::{Builder, DType, Model, Tensor, ValueId};
use onnx_merge::runtime::{
    Executor, ExecutorChoice, ExecutorOptions, Runner, State, StepProgram, Value, open,
};
use onnx_merge::train::model_step::{LABELS, Objective};
use onnx_merge::train::network::{Network, Purpose};
use std::path::Path;
use std::sync::Arc;

const BATCH: usize = 8;
const CLASSES: usize = 10;

/// The model step of a fixture with plain gradient descent behind it, and its inputs' facts.
pub fn descent(path: &Path, rate: f64, executor: &dyn Executor) -> Result<StepProgram> {
    let network = Network::open(path, BATCH, Purpose::default(), executor)?;
    let weights = network.trainable(&[])?;
    let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
    let step = network.step(&names, Objective::Classes { layout: network.head.layout, ignores: false })?;
    let mut b = Builder::on(step.model.graph.clone(), step.facts);
    let mut state = vec![];
    for weight in &step.weights {
        let gradient = ValueId::new(format!("{weight}.grad"));
        let change = b.mul_scalar(&gradient, rate);
        let next = b.sub(weight, &change);
        let output = b.output_as(&format!("{weight}.next"), &next);
        let initial = weights.iter().find(|(id, _)| id == weight).map(|(_, t)| t.clone());
        state.extend(initial.map(|initial| State { input: weight.clone(), output, initial }));
    }
    let (graph, facts) = b.finish();
    Ok(StepProgram { model: Model { graph, ..step.model }, facts, state })
}

/// The losses of `count` steps on a few batches that come round again, and the weights after them.
fn run(executor: Arc<dyn Executor>, program: &StepProgram, count: u32) -> Result<(Vec<f64>, Vec<Tensor>)> {
    let mut runner = Runner::new(executor, program)?;
    let feeds: Vec<ValueId> = program.feeds().cloned().collect();
    let loss = runner.fetch(&"merge.loss".into())?;
    let mut losses = vec![];
    for step in 0..count {
        let round = step % 4;
        for (k, id) in feeds.iter().enumerate() {
            let fact = &program.facts[id];
            let value = match id.as_str() {
                LABELS => {
                    let classes: Vec<i64> =
                        (0..BATCH as i64).map(|i| (i * 7 + round as i64) % CLASSES as i64).collect();
                    Tensor::i64(&[BATCH], &classes)
                }
                _ if fact.dtype == DType::F32 => noise(&fact.shape, 31 * round + k as u32),
                _ => Tensor::zeros(fact.dtype, &fact.shape),
            };
            runner.set(runner.feed(id)?, Value::host(value))?;
        }
        losses.push(runner.run()?.scalar(loss)?);
    }
    let weights = program.state.iter().map(|s| runner.state(&s.input)).collect::<Result<_>>()?;
    Ok((losses, weights))
}

/// 50 steps of a network whose loss falls: a wrong gradient anywhere would show.
#[test]
fn whole_model_steps_give_the_same_numbers_on_the_gpu() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let cpu =
        open(ExecutorChoice::Auto, &ExecutorOptions { threads: Some(1), ..ExecutorOptions::default() })?;
    // A model is looked at on a CPU.
    let with_fallback = open(
        ExecutorChoice::Wgpu,
        &ExecutorOptions { allow_software_gpu: true, ..ExecutorOptions::default() },
    )?;
    for (name, rate, steps) in [
        ("digits_mlp.onnx", 0.05, 50),
        ("digits_small_cnn.onnx", 0.05, 20),
        ("digits_cnn.onnx", 0.02, 50),
        ("digits_transformer.onnx", 0.02, 50),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        let (expected, theirs) = run(cpu.clone(), &descent(&path, rate, &*cpu)?, steps)?;
        // Each has the operators that it is fast at.
        let program = descent(&path, rate, &*with_fallback)?;
        assert_eq!(gpu.misses(&program.model), Vec::<String>::new(), "{name}");
        let begun = std::time::Instant::now();
        let (got, ours) = run(gpu.clone(), &program, steps)?;
        let seconds = begun.elapsed().as_secs_f64();
        let apart =
            got.iter().zip(&expected).map(|(g, e)| (g - e).abs() / (1.0 + e.abs())).fold(0.0, f64::max);
        let weights = ours.iter().zip(&theirs).map(|(g, e)| distance(g, e)).fold(0.0, f64::max);
        println!(
            "{name}: {} nodes, {steps} steps in {seconds:.1} s; loss {:.3} to {:.3}; losses {apart:.1e} apart, weights {weights:.1e} ({} against {})",
            program.model.graph.nodes.len(),
            got[0],
            got[got.len() - 1],
            gpu.device(),
            cpu.name()
        );
        assert!(got[got.len() - 1] < 0.8 * got[0], "{name}: {got:?}");
        assert!(apart <= 1e-3, "{name}: losses {apart:e} apart\n{got:?}\n{expected:?}");
        assert!(weights <= 1e-3, "{name}: weights {weights:e} apart");
    }
    Ok(())
}
