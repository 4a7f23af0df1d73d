//! A benchmark of a second: what an executor makes of the work that training consists of.

use super::{Executor, Value};
use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Model, Tensor, WORKING_OPSET};
use std::time::{Duration, Instant};

/// Rows and columns of the matrices multiplied.
const SIZE: usize = 512;
/// Products in a run, each of the one before.
const CHAIN: usize = 4;

/// Billions of floating-point operations a second in products of matrices of 512 × 512, over about `seconds`.
///
/// # Errors
/// When the executor can't run them.
pub fn gigaflops(executor: &dyn Executor, seconds: f64) -> Result<f64> {
    let mut b = Builder::new("benchmark");
    let fact = Fact::new(DType::F32, &[SIZE, SIZE]);
    let x = b.input("x", fact.clone());
    let w = b.input("w", fact);
    let mut y = x;
    for _ in 0..CHAIN {
        y = b.matmul(&y, &w);
    }
    b.output(&y);
    let (graph, facts) = b.finish();
    let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    // Rows that sum to one keep the numbers where they are.
    let values = Tensor::f32(&[SIZE, SIZE], &vec![1.0 / SIZE as f32; SIZE * SIZE]);
    let inputs: Vec<Value> = vec![executor.upload(&values)?, executor.upload(&values)?];
    let mut run = || -> Result<()> {
        program.run(&inputs)?;
        executor.finish()
    };
    // Executors finish compiling when they first run.
    run()?;
    let begun = Instant::now();
    let mut runs = 0;
    while runs == 0 || begun.elapsed() < Duration::from_secs_f64(seconds) {
        run()?;
        runs += 1;
    }
    let operations = 2.0 * (SIZE as f64).powi(3) * (CHAIN * runs) as f64;
    Ok(operations / begun.elapsed().as_secs_f64() / 1e9)
}
