//! Corners that no corpus case visits, with gradients known by hand, run on the embedded executor.

use super::backward;
use crate::onnx::{Attr, Builder, DType, Fact, Model, Tensor, ValueId, WORKING_OPSET};
use crate::runtime::{Executor, TractExecutor, Value};
use crate::{Error, Result};

/// The gradient of the sum of `f`'s value with respect to each of the inputs, in float64.
fn gradients(
    inputs: &[(&[usize], &[f64])],
    f: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> Result<Vec<Option<Vec<f64>>>> {
    let mut b = Builder::new("corner");
    let ids: Vec<ValueId> =
        (0..inputs.len()).map(|i| b.input(&format!("x{i}"), Fact::new(DType::F64, inputs[i].0))).collect();
    let y = f(&mut b, &ids);
    let fact = b.fact(&y).clone();
    let one = b.constant(Tensor::scalar(fact.dtype, 1.0));
    let ones = b.expand(&one, &fact.shape);
    let found = backward(&mut b, &[(y, ones)], &ids)?;
    let reached: Vec<&ValueId> = ids.iter().filter(|id| found.contains_key(*id)).collect();
    reached.iter().for_each(|id| drop(b.output_as(&format!("{id}.grad"), &found[*id])));
    let (mut graph, facts) = b.finish();
    if reached.is_empty() {
        return Ok(vec![None; ids.len()]);
    }
    graph.prune();
    let feeds: Vec<Value> =
        inputs.iter().map(|(shape, values)| Value::host(Tensor::f64(shape, values))).collect();
    let mut program = TractExecutor::new(1)?.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    let mut results = program.run(&feeds)?.into_iter();
    ids.iter()
        .map(|id| match found.contains_key(id) {
            true => Ok(Some(
                results.next().ok_or_else(|| Error::executor("test", "too few"))?.to_host()?.to_f64(),
            )),
            false => Ok(None),
        })
        .collect()
}

fn gradient(x: &[f64], f: impl FnOnce(&mut Builder, &ValueId) -> ValueId) -> Vec<f64> {
    let found = gradients(&[(&[x.len()], x)], |b, ids| f(b, &ids[0])).unwrap();
    found.into_iter().next().flatten().unwrap_or_default()
}

#[test]
fn a_value_used_many_times_collects_every_use() {
    // x·x + x
    let g = gradient(&[1.0, 2.0, -3.0], |b, x| {
        let square = b.mul(x, x);
        b.add(&square, x)
    });
    assert_eq!(g, [3.0, 5.0, -5.0]);
}

#[test]
fn an_input_that_is_the_output_gets_the_seed() {
    assert_eq!(gradient(&[4.0, 5.0], |_, x| x.clone()), [1.0, 1.0]);
}

#[test]
fn broadcasting_is_summed_away() {
    let found = gradients(&[(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), (&[], &[2.0])], |b, ids| {
        b.mul(&ids[0], &ids[1])
    });
    assert_eq!(found.unwrap(), [Some(vec![2.0; 6]), Some(vec![21.0])]);
}

#[test]
fn ties_share_evenly() {
    assert_eq!(gradient(&[1.0, 3.0, 3.0], |b, x| b.reduce("ReduceMax", x, &[0], false)), [0.0, 0.5, 0.5]);
    let found =
        gradients(&[(&[2], &[1.0, 2.0]), (&[2], &[1.0, 5.0])], |b, ids| b.op("Max", &[&ids[0], &ids[1]]));
    assert_eq!(found.unwrap(), [Some(vec![0.5, 0.0]), Some(vec![0.5, 1.0])]);
}

#[test]
fn zero_poisons_neither_roots_nor_powers_nor_norms() {
    assert_eq!(gradient(&[0.0, 4.0], |b, x| b.op("Sqrt", &[x])), [0.0, 0.25]);
    let power = |exponent: f64| {
        move |b: &mut Builder, x: &ValueId| {
            let exponent = b.scalar_like(x, exponent);
            b.op("Pow", &[x, &exponent])
        }
    };
    assert_eq!(gradient(&[0.0, 4.0], power(0.5)), [0.0, 0.25]);
    assert_eq!(gradient(&[0.0, 4.0], power(0.0)), [0.0, 0.0]);
    assert_eq!(gradient(&[0.0, 2.0], power(3.0)), [0.0, 12.0]);
    assert_eq!(gradient(&[0.0, 0.0], |b, x| b.reduce("ReduceL2", x, &[0], true)), [0.0, 0.0]);
}

#[test]
fn a_product_knows_the_others_where_one_is_zero() {
    let product = |b: &mut Builder, x: &ValueId| b.reduce("ReduceProd", x, &[0], false);
    assert_eq!(gradient(&[2.0, 3.0, 4.0], product), [12.0, 8.0, 6.0]);
    assert_eq!(gradient(&[0.0, 3.0, 4.0], product), [12.0, 0.0, 0.0]);
    assert_eq!(gradient(&[0.0, 3.0, 0.0], product), [0.0, 0.0, 0.0]);
}

#[test]
fn steps_and_reversals_of_slices_are_undone() {
    let slice = |start: i64, end: i64, step: i64| {
        move |b: &mut Builder, x: &ValueId| {
            let [start, end, axis, step] = [start, end, 0, step].map(|v| b.ints(&[v]));
            let y = b.op("Slice", &[x, &start, &end, &axis, &step]);
            let weights: Vec<f64> = (1..=b.fact(&y).len()).map(|v| v as f64).collect();
            let weights = b.constant(Tensor::f64(&[weights.len()], &weights));
            b.mul(&y, &weights)
        }
    };
    assert_eq!(gradient(&[0.0; 6], slice(1, 6, 2)), [0.0, 1.0, 0.0, 2.0, 0.0, 3.0]);
    assert_eq!(gradient(&[0.0; 5], slice(-1, -6, -2)), [3.0, 0.0, 2.0, 0.0, 1.0]);
    assert_eq!(gradient(&[0.0; 4], slice(2, 2, 1)), [0.0; 4]);
}

#[test]
fn rows_gathered_twice_and_from_the_back_add_up() {
    let g = gradient(&[0.0; 3], |b, x| {
        let index = b.ints(&[0, 0, -1]);
        b.op("Gather", &[x, &index])
    });
    assert_eq!(g, [2.0, 0.0, 1.0]);
}

#[test]
fn triangles_pass_what_they_keep() {
    let found = gradients(&[(&[2, 2], &[1.0; 4])], |b, ids| {
        let kept = b.op_with("Trilu", &[&ids[0]], &[("upper", Attr::Int(0))]);
        b.mul_scalar(&kept, 3.0)
    });
    assert_eq!(found.unwrap(), [Some(vec![3.0, 0.0, 3.0, 3.0])]);
}

#[test]
fn what_nothing_reaches_has_no_gradient_and_emits_nothing() {
    let found = gradients(&[(&[2], &[1.0, 2.0]), (&[2], &[1.0, 2.0])], |b, ids| {
        let floor = b.op("Floor", &[&ids[1]]);
        b.mul(&ids[0], &floor)
    });
    assert_eq!(found.unwrap(), [Some(vec![1.0, 2.0]), None]);
    let mut b = Builder::new("unused");
    let x = b.input("x", Fact::new(DType::F32, &[2]));
    let y = b.op("Exp", &[&x]);
    let z = b.op("Floor", &[&y]);
    let one = b.zeros_like(&z);
    let before = b.graph().nodes.len();
    assert!(backward(&mut b, &[(z, one)], &[x]).unwrap().is_empty());
    assert_eq!(b.graph().nodes.len(), before);
}

#[test]
fn an_operator_without_a_gradient_is_named() {
    let result = gradients(&[(&[2], &[1.0, 2.0])], |b, ids| {
        let y = b.op("NoSuchOperator", &[&ids[0]]);
        b.set_fact(&y, Fact::new(DType::F64, &[2]));
        y
    });
    let message = result.unwrap_err().to_string();
    assert!(message.contains("NoSuchOperator") && message.contains("x0"), "{message}");
}
