//! Which operations become one kernel; knows no device.

use super::super::kernel::alone;
use super::*;
use crate::autodiff;
use crate::onnx::{Attr, Builder, DType, Fact, Model, Tensor, ValueId, WORKING_OPSET};
use crate::runtime::wgpu::kernel::kernel_name;
use crate::runtime::wgpu::lower;
use wgpu::naga;

/// The calls of a graph that some code builds.
fn calls(build: impl FnOnce(&mut Builder) -> ValueId) -> Vec<Call> {
    let mut b = Builder::new("case");
    let output = build(&mut b);
    b.output(&output);
    let (mut graph, facts) = b.finish();
    graph.prune();
    let (graph, facts) = autodiff::lower::lower(graph, facts).unwrap();
    let target = lower::Target { max_bytes: 1 << 30, matrix_units: None };
    let mut plan = lower::lower(&Model::new(graph, WORKING_OPSET), &facts, target).unwrap();
    plan.prune();
    let mut calls = fuse(&plan, 16);
    calls.retain(|call| call.groups > 0);
    calls
}

fn names(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| kernel_name(&call.source)).collect()
}

fn input(b: &mut Builder, name: &str, shape: &[usize]) -> ValueId {
    b.input(name, Fact::new(DType::F32, shape))
}

/// The gradient of an operator's first input, a matrix; the others are as long as its rows.
fn gradient(op: &str, operands: usize, rows: usize, len: usize) -> Vec<Call> {
    calls(|b| {
        let x = input(b, "x", &[rows, len]);
        let others: Vec<ValueId> = (1..operands).map(|i| input(b, &format!("x{i}"), &[len])).collect();
        let inputs: Vec<&ValueId> = std::iter::once(&x).chain(&others).collect();
        let y = b.op(op, &inputs);
        b.set_fact(&y, Fact::new(DType::F32, &[rows, len]));
        let seed = input(b, "seed", &[rows, len]);
        autodiff::backward(b, &[(y, seed)], std::slice::from_ref(&x)).unwrap().remove(&x).unwrap()
    })
}

fn assert_valid(call: &Call) {
    let text = alone(&call.source, call.params.len());
    let module =
        naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}\n{text}", e.emit_to_string(&text)));
    let flags = naga::valid::ValidationFlags::all();
    let mut validator = naga::valid::Validator::new(flags, naga::valid::Capabilities::empty());
    if let Err(e) = validator.validate(&module) {
        panic!("{}\n{text}", e.emit_to_string(&text));
    }
}

#[test]
fn gradients_of_normalisations_are_one_kernel() {
    for (op, operands) in
        [("Softmax", 1), ("LogSoftmax", 1), ("LayerNormalization", 3), ("RMSNormalization", 2)]
    {
        for len in [2, 7, 64, 1000, 1001, 4100, 9000, 9001] {
            let calls = gradient(op, operands, 130, len);
            assert_eq!(names(&calls), ["rows"], "{op} of {len}");
            assert_valid(&calls[0]);
        }
    }
}

#[test]
fn equal_chains_over_other_numbers_of_rows_share_a_text() {
    let text = |rows| gradient("LayerNormalization", 3, rows, 100).remove(0).source;
    assert_eq!(text(130), text(4000));
}

#[test]
fn a_loss_and_its_gradient_are_one_kernel_of_rows() {
    let calls = calls(|b| {
        let x = input(b, "x", &[200, 10]);
        let labels = b.constant(Tensor::i64(&[200, 1], &[3; 200]));
        let log_p = b.op_with("LogSoftmax", &[&x], &[("axis", Attr::Int(1))]);
        let picked = b.op_with("GatherElements", &[&log_p, &labels], &[("axis", Attr::Int(1))]);
        let seed = input(b, "seed", &[]);
        let share = b.mul_scalar(&seed, 0.005);
        let share = b.expand(&share, &[200, 1]);
        let found = autodiff::backward(b, &[(picked.clone(), share)], std::slice::from_ref(&x)).unwrap();
        b.mul(&found[&x], &picked)
    });
    assert_eq!(names(&calls), ["elementwise", "rows"]);
}

#[test]
fn few_long_rows_are_split() {
    assert!(!names(&gradient("Softmax", 1, 2, 100_000)).contains(&"rows"));
}

#[test]
fn what_a_product_needs_stays_before_it() {
    let calls = calls(|b| {
        let (x, w) = (input(b, "x", &[64, 64]), input(b, "w", &[64, 64]));
        let y = b.softmax(&x, -1);
        let z = b.matmul(&y, &w);
        let z = b.softmax(&z, -1);
        b.add(&z, &y)
    });
    assert_eq!(names(&calls), ["rows", "matmul_tiled 1×1", "rows"]);
}

#[test]
fn steps_of_an_activation_are_computed_again_on_the_way_back() {
    let calls = calls(|b| {
        let (x, w, bias) = (input(b, "x", &[64, 64]), input(b, "w", &[64, 64]), input(b, "bias", &[64]));
        let product = b.matmul(&x, &w);
        let shifted = b.add(&product, &bias);
        let active = b.op("Gelu", &[&shifted]);
        let y = b.matmul(&active, &w);
        let seed = input(b, "seed", &[64, 64]);
        let found = autodiff::backward(b, &[(y.clone(), seed)], std::slice::from_ref(&x)).unwrap();
        b.add(&y, &found[&x])
    });
    let active = calls.iter().find(|call| kernel_name(&call.source) == "elementwise").unwrap();
    assert_eq!(active.writes.len(), 1, "only what the next product reads");
}
