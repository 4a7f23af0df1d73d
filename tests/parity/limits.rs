//! What a GPU can't do is a clear error, and never a wrong number: size limits, too little memory, a lost device.

use crate::wgpu::{GPU, distance, noise};
use onnx_merge::Result;
use onnx_merge::onnx::{Builder, DType, Fact, Facts, Model, Tensor, WORKING_OPSET};
use onnx_merge::runtime::{
    Executor, ExecutorOptions, SplitExecutor, TractExecutor, Value, WgpuExecutor, gpu_where_it_pays,
};
use std::sync::Arc;

/// `x + x·x` for `n` elements, and its input.
fn square(n: usize) -> (Model, Facts, Value) {
    let mut b = Builder::new("square");
    let x = b.input("x", Fact::new(DType::F32, &[n]));
    let square = b.mul(&x, &x);
    let sum = b.add(&x, &square);
    b.output(&sum);
    let (graph, facts) = b.finish();
    (Model::new(graph, WORKING_OPSET), facts, Value::host(noise(&[n], 1)))
}

#[test]
fn dispatches_of_more_than_65535_workgroups_are_folded() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let n = 64 * 65_535 + 1000;
    let (model, facts, x) = square(n);
    let got = gpu.compile(&model, &facts)?.run(std::slice::from_ref(&x))?.remove(0).to_host()?;
    let expected: Vec<f32> = x.to_host()?.to_f32().iter().map(|v| v + v * v).collect();
    assert!(distance(&got, &Tensor::f32(&[n], &expected)) <= 1e-6);
    Ok(())
}

#[test]
fn tensors_beyond_the_largest_binding_are_refused_and_run_on_the_cpu() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    // Only where a tensor that is too large is still small enough for a test.
    let n = gpu.max_tensor_bytes() as usize / 4 + 16;
    if n > 1 << 26 {
        return Ok(());
    }
    let mut b = Builder::new("wide");
    let x = b.input("x", Fact::new(DType::F32, &[n / 16 + 1, 1]));
    let wide = b.expand(&x, &[n / 16 + 1, 16]);
    let narrow = b.op("Neg", &[&x]);
    let twice = b.op("Exp", &[&wide]);
    let sum = b.sum(&twice, &[0, 1], false);
    let small = b.sum(&narrow, &[0, 1], false);
    b.output(&sum);
    b.output(&small);
    let (graph, facts) = b.finish();
    let model = Model::new(graph, WORKING_OPSET);
    let error = gpu.compile(&model, &facts).err().map(|e| (e.exit_code(), e.to_string()));
    assert!(error.as_ref().is_some_and(|e| e.0 == 5 && e.1.contains("(Exp): a tensor of ")), "{error:?}");
    let split = SplitExecutor::new(gpu.clone(), Arc::new(TractExecutor::new(1)?), None);
    let zeros = Value::host(Tensor::zeros(DType::F32, &[n / 16 + 1, 1]));
    let got = split.compile(&model, &facts)?.run(&[zeros])?;
    let expected = (16 * (n / 16 + 1)) as f64;
    assert!((got[0].scalar()? - expected).abs() <= 1e-3 * expected);
    assert!(split.device().contains("Exp"), "{}", split.device());
    Ok(())
}

#[test]
fn too_little_memory_is_an_error_with_advice_and_passes() -> Result<()> {
    let Ok(gpu) = WgpuExecutor::open(true) else { return Ok(()) };
    let (model, facts, x) = square(1 << 20);
    gpu.limit_memory(6 << 20);
    let failed = gpu.compile(&model, &facts).and_then(|mut p| p.run(std::slice::from_ref(&x)));
    let error = failed.err().ok_or_else(|| onnx_merge::Error::usage("it fitted"))?;
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("out of GPU memory"), "{error}");
    assert!(error.hints().iter().any(|hint| hint.contains("--batch")), "{:?}", error.hints());
    // The device itself is well: with enough memory the same program runs.
    gpu.limit_memory(64 << 20);
    gpu.compile(&model, &facts)?.run(&[x])?[0].to_host()?;
    Ok(())
}

#[test]
fn buffers_that_wait_are_given_back_when_memory_is_short() -> Result<()> {
    let Ok(gpu) = WgpuExecutor::open(true) else { return Ok(()) };
    gpu.limit_memory(8 << 20);
    for n in [1 << 20, (1 << 20) + 4096, (1 << 20) + 8192] {
        drop(gpu.upload(&Tensor::zeros(DType::F32, &[n]))?);
    }
    assert!(gpu.idle_bytes() <= 8 << 20);
    Ok(())
}

#[test]
fn a_lost_device_is_an_error_and_another_one_can_be_opened() -> Result<()> {
    let Ok(gpu) = WgpuExecutor::open(true) else { return Ok(()) };
    let (model, facts, x) = square(1000);
    let mut program = gpu.compile(&model, &facts)?;
    let made = program.run(std::slice::from_ref(&x))?.remove(0);
    gpu.lose_device();
    let errors = [
        program.run(std::slice::from_ref(&x)).err(),
        made.to_host().err(),
        gpu.upload(&Tensor::zeros(DType::F32, &[3])).err(),
        gpu.compile(&model, &facts).err(),
    ];
    for error in errors {
        let error = error.ok_or_else(|| onnx_merge::Error::usage("a lost device went on working"))?;
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("the device was lost"), "{error}");
        assert!(error.hints().iter().any(|hint| hint.contains("--resume")), "{:?}", error.hints());
    }
    let other = WgpuExecutor::open(true)?;
    other.compile(&model, &facts)?.run(&[x])?[0].to_host()?;
    Ok(())
}

/// A GPU is taken by itself where the work is worth it, there is one that may be used, and it has all kernels.
#[test]
fn large_steps_move_to_a_gpu() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let product = |n: usize, op: &str| {
        let mut b = Builder::new("product");
        let x = b.input("x", Fact::new(DType::F32, &[n, n]));
        let y = b.matmul(&x, &x);
        let y = b.op(op, &[&y]);
        b.set_fact(&y, Fact::new(DType::F32, &[n, n]));
        b.output(&y);
        let (graph, facts) = b.finish();
        (Model::new(graph, WORKING_OPSET), facts)
    };
    let options = ExecutorOptions { allow_software_gpu: true, ..ExecutorOptions::default() };
    let taken = |(model, facts): (Model, Facts), runs: usize, options: &ExecutorOptions| {
        gpu_where_it_pays(&model, &facts, runs, options).map(|e| e.name())
    };
    assert_eq!(taken(product(1000, "Relu"), 1, &options), Some("wgpu"));
    assert_eq!(taken(product(300, "Relu"), 1, &options), None);
    assert_eq!(taken(product(300, "Relu"), 20, &options), Some("wgpu"));
    assert_eq!(taken(product(1000, "Det"), 1, &options), None);
    if gpu.device().contains("software") {
        assert_eq!(taken(product(1000, "Relu"), 1, &ExecutorOptions::default()), None);
    }
    Ok(())
}
