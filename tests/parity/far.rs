//! Functions far from zero: what overflows on the way there mustn't show in what comes out, on any executor.

use crate::executors::all;
use crate::wgpu::GPU;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Model, Node, Tensor, ValueId, WORKING_OPSET};
use onnx_merge::runtime::{Executor, Value};
use std::sync::Arc;

/// `op` of `x` along its only axis, on one executor; `None` where it doesn't have the operator.
fn value(executor: &dyn Executor, dtype: DType, op: &str, x: &[f64]) -> Option<Vec<f64>> {
    let mut b = Builder::new("far");
    let id = b.input("x", Fact::new(dtype, &[x.len()]));
    let y = match op {
        "ReduceLogSumExp" | "ReduceL2" => b.reduce(op, &id, &[0], true),
        "Softmax" | "LogSoftmax" => b.op_with(op, &[&id], &[("axis", Attr::Int(0))]),
        _ => {
            let y = ValueId::new("y");
            b.set_fact(&y, Fact::new(dtype, &[x.len()]));
            b.push(Node::new(op, &[&id], &[&y]));
            y
        }
    };
    b.output(&y);
    let (graph, facts) = b.finish();
    let mut program = executor.compile(&Model::new(graph, WORKING_OPSET), &facts).ok()?;
    let y = program.run(&[Value::host(Tensor::from_f64(dtype, &[x.len()], x))]).ok()?;
    Some(y[0].to_host().ok()?.to_f64())
}

#[test]
fn nothing_overflows_on_the_way() {
    let far: [f64; 5] = [-3000.0, -200.0, 0.0, 200.0, 3000.0];
    let (selu, selu_low) = (1.050_700_987_355_480_5, -1.758_099_340_847_376_6);
    let rectified = [0.0, 0.0, 0.0, 200.0, 3000.0];
    let cases: [(&str, [f64; 5]); 15] = [
        ("LogSoftmax", [-6000.0, -3200.0, -3000.0, -2800.0, 0.0]),
        ("Softmax", [0.0, 0.0, 0.0, 0.0, 1.0]),
        ("ReduceLogSumExp", [3000.0; 5]),
        ("Sigmoid", [0.0, 0.0, 0.5, 1.0, 1.0]),
        ("Tanh", [-1.0, -1.0, 0.0, 1.0, 1.0]),
        ("Erf", [-1.0, -1.0, 0.0, 1.0, 1.0]),
        ("Softplus", [0.0, 0.0, std::f64::consts::LN_2, 200.0, 3000.0]),
        ("Softsign", far.map(|x| x / (1.0 + x.abs()))),
        ("Elu", [-1.0, -1.0, 0.0, 200.0, 3000.0]),
        ("Celu", [-1.0, -1.0, 0.0, 200.0, 3000.0]),
        ("Selu", [selu_low, selu_low, 0.0, 200.0 * selu, 3000.0 * selu]),
        ("Gelu", rectified),
        ("Mish", rectified),
        ("HardSwish", rectified),
        ("Swish", rectified),
    ];
    let (mut wrong, mut ran) = (vec![], 0);
    let gpu = GPU.clone().map(|gpu| (gpu as Arc<dyn Executor>, DType::F32));
    let cpus = all().into_iter().flat_map(|cpu| [(cpu.clone(), DType::F64), (cpu, DType::F32)]);
    for (executor, dtype) in cpus.chain(gpu) {
        for (op, expected) in cases {
            let Some(y) = value(&*executor, dtype, op, &far) else {
                println!("{} has no {op} of {dtype}", executor.name());
                continue;
            };
            ran += 1;
            // ONNX Runtime 1.32 takes eˣ for Softplus in float64, though not in float32.
            if (executor.name(), dtype, op) == ("ort", DType::F64, "Softplus") {
                continue;
            }
            // A sigmoid that is 2·10⁻⁹ instead of 0 is near enough, also three thousand times.
            let near = |(y, e): (&f64, f64)| (y - e).abs() <= 1e-5 + 1e-6 * e.abs();
            if !y.iter().zip(expected).all(near) {
                wrong.push(format!("{} {dtype} {op}: {y:?} instead of {expected:?}", executor.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ran >= 20, "only {ran} were run");
}
