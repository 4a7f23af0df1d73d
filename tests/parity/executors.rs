//! What every executor must do alike: element types, shapes, state without copies, errors with names.

use onnx_merge::Result;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Model, Node, Tensor, ValueId, WORKING_OPSET};
use onnx_merge::runtime::{Executor, ExecutorChoice, ExecutorOptions, Value, open};
use std::sync::Arc;

/// Every executor of this machine.
pub fn all() -> Vec<Arc<dyn Executor>> {
    let options = ExecutorOptions { threads: Some(2), ..ExecutorOptions::default() };
    let mut found = vec![];
    for choice in [ExecutorChoice::Ort, ExecutorChoice::Tract] {
        match open(choice, &options) {
            Ok(executor) => found.push(executor),
            Err(error) => println!("skipped: {error}"),
        }
    }
    found
}

#[test]
fn every_element_type_survives_the_way_there_and_back() -> Result<()> {
    use DType::*;
    for executor in all() {
        for dtype in [F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, Bool] {
            if executor.name() == "tract" && dtype == BF16 {
                continue;
            }
            let tensor = Tensor::from_f64(dtype, &[2, 2], &[0.0, 1.0, 1.0, 0.0]);
            let there = executor.upload(&tensor)?;
            assert_eq!(there.fact(), Fact::of(&tensor));
            assert_eq!(there.to_host()?, tensor, "{} {dtype}", executor.name());
        }
        for shape in [&[][..], &[0], &[3, 0, 2]] {
            let tensor = Tensor::zeros(DType::F32, shape);
            assert_eq!(executor.upload(&tensor)?.to_host()?, tensor, "{} {shape:?}", executor.name());
        }
    }
    Ok(())
}

#[test]
fn outputs_may_be_inputs_and_may_repeat() -> Result<()> {
    for executor in all() {
        let mut b = Builder::new("passthrough");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let y = b.neg(&x);
        b.output(&x);
        b.output(&y);
        b.output(&y);
        let (graph, facts) = b.finish();
        let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
        let outputs = program.run(&[Value::host(Tensor::f32(&[2], &[1.0, 2.0]))])?;
        let got: Vec<Vec<f64>> = outputs.iter().map(|v| Ok(v.to_host()?.to_f64())).collect::<Result<_>>()?;
        assert_eq!(got, [[1.0, 2.0], [-1.0, -2.0], [-1.0, -2.0]], "{}", executor.name());
    }
    Ok(())
}

#[test]
fn an_output_fed_back_is_not_changed_by_later_runs() -> Result<()> {
    for executor in all() {
        let mut b = Builder::new("count");
        let x = b.input("x", Fact::new(DType::F32, &[1000]));
        let y = b.add_scalar(&x, 1.0);
        b.output(&y);
        let (graph, facts) = b.finish();
        let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
        let zero = Value::host(Tensor::zeros(DType::F32, &[1000]));
        let one = program.run(&[zero])?.remove(0);
        let two = program.run(std::slice::from_ref(&one))?.remove(0);
        program.run(std::slice::from_ref(&two))?;
        assert_eq!((one.scalar()?, two.scalar()?), (1.0, 2.0), "{}", executor.name());
    }
    Ok(())
}

#[test]
fn values_of_one_executor_are_taken_by_another() -> Result<()> {
    let executors = all();
    for from in &executors {
        for to in &executors {
            let value = from.upload(&Tensor::f32(&[2], &[3.0, 4.0]))?;
            let mut b = Builder::new("negate");
            let x = b.input("x", Fact::new(DType::F32, &[2]));
            let y = b.neg(&x);
            b.output(&y);
            let (graph, facts) = b.finish();
            let y = to.compile(&Model::new(graph, WORKING_OPSET), &facts)?.run(&[value])?.remove(0);
            assert_eq!(y.to_host()?.to_f64(), [-3.0, -4.0], "{} to {}", from.name(), to.name());
        }
    }
    Ok(())
}

#[test]
fn what_cannot_run_is_an_error_of_the_executor_and_names_the_node() -> Result<()> {
    for executor in all() {
        let mut b = Builder::new("unknown");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let y = ValueId::new("y");
        b.push(Node { name: "the node".into(), ..Node::new("Frobnicate", &[&x], &[&y]) });
        b.set_fact(&y, Fact::new(DType::F32, &[2]));
        b.output(&y);
        let (graph, facts) = b.finish();
        let error = executor.compile(&Model::new(graph, WORKING_OPSET), &facts).err();
        let text = error.as_ref().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(error.map(|e| e.exit_code()), Some(5), "{}", executor.name());
        assert!(text.contains("Frobnicate"), "{text}");
        assert!(executor.name() == "ort" || text.contains("'the node'"), "{text}");

        let mut b = Builder::new("mismatch");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let shape = b.ints(&[7]);
        let y = b.op_with("Reshape", &[&x, &shape], &[("allowzero", Attr::Int(0))]);
        b.set_fact(&y, Fact::new(DType::F32, &[7]));
        b.output(&y);
        let (graph, facts) = b.finish();
        let run = executor
            .compile(&Model::new(graph, WORKING_OPSET), &facts)
            .and_then(|mut p| p.run(&[Value::host(Tensor::f32(&[2], &[0.0, 0.0]))]));
        assert_eq!(run.err().map(|e| e.exit_code()), Some(5), "{}", executor.name());
    }
    Ok(())
}

/// ONNX Runtime takes minutes to optimise graphs that are much longer, so that it doesn't from ten thousand nodes on.
#[test]
fn long_graphs_run_too() -> Result<()> {
    let count = 10_500;
    let mut b = Builder::new("long");
    let x = b.input("x", Fact::new(DType::F64, &[2]));
    let mut y = x.clone();
    for _ in 0..count {
        y = b.add(&y, &x);
    }
    b.output(&y);
    let (graph, facts) = b.finish();
    let model = Model::new(graph, WORKING_OPSET);
    for executor in all() {
        let x = Value::host(Tensor::f64(&[2], &[1.0, -2.0]));
        let got = executor.compile(&model, &facts)?.run(&[x])?.remove(0).to_host()?.to_f64();
        let times = f64::from(count + 1);
        assert_eq!(got, [times, -2.0 * times], "{}", executor.name());
    }
    Ok(())
}

/// A file's messages end at 2 GiB, and a session's copies of such weights would fill the memory.
#[test]
fn onnx_runtime_reads_large_weights_where_they_are() -> Result<()> {
    let Some(executor) = all().into_iter().find(|executor| executor.name() == "ort") else { return Ok(()) };
    let (rows, width) = ((1 << 21) + 8, 256);
    // Pages that nobody touches take no memory.
    let mut bytes = vec![0; rows * width * 4];
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&7f32.to_le_bytes());
    let mut b = Builder::new("table");
    let row = b.input("row", Fact::new(DType::I64, &[1]));
    let table = b.initializer("table", Tensor::new(DType::F32, &[rows, width], bytes)?);
    let y = b.op("Gather", &[&table, &row]);
    b.output(&y);
    let (graph, facts) = b.finish();
    let before = private_memory();
    let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    let found = program.run(&[Value::host(Tensor::i64(&[1], &[rows as i64 - 1]))])?.remove(0).to_host()?;
    assert_eq!(found.to_f64().last(), Some(&7.0));
    // Other tests run beside this one.
    let taken = private_memory().saturating_sub(before);
    assert!(taken < 1 << 30, "{taken} bytes");
    Ok(())
}

/// Bytes of this process that are no file's, as far as the system tells.
fn private_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|kilobytes| kilobytes.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) << 10
}
