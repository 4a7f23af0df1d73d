//! Bad corners on ONNX Runtime in float64: saturation, ties, zeros, empty tensors, masks without a key. What comes out is
//! finite, and right where there is something right to say.

use crate::kernels::{ort, run};
use onnx_merge::autodiff::backward;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Model, Node, Tensor, ValueId};
use std::collections::HashMap;

type Function = fn(&mut Builder, &[ValueId]) -> ValueId;

/// The gradient of Σ f with respect to each input; `None` without ONNX Runtime.
fn gradients(inputs: &[(&[usize], &[f64])], f: Function) -> Option<Vec<Vec<f64>>> {
    let executor = ort()?;
    let mut b = Builder::new("corner");
    let ids: Vec<ValueId> =
        (0..inputs.len()).map(|i| b.input(&format!("x{i}"), Fact::new(DType::F64, inputs[i].0))).collect();
    let y = f(&mut b, &ids);
    let one = b.constant(Tensor::scalar(DType::F64, 1.0));
    let shape = b.shape(&y);
    let ones = b.expand(&one, &shape);
    let found = backward(&mut b, &[(y, ones)], &ids).unwrap();
    for id in &ids {
        b.output_as(&format!("{id}.grad"), &found[id]);
    }
    let (mut graph, _) = b.finish();
    graph.prune();
    let point: HashMap<ValueId, Tensor> = ids
        .iter()
        .zip(inputs)
        .map(|(id, (shape, values))| (id.clone(), Tensor::f64(shape, values)))
        .collect();
    let results = run(&*executor, &Model::new(graph, 18), &point).unwrap();
    Some(results.iter().map(Tensor::to_f64).collect())
}

fn check(name: &str, x: &[f64], expected: &[f64], f: Function) {
    let Some(found) = gradients(&[(&[x.len()], x)], f) else { return };
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * (1.0 + b.abs());
    assert!(
        found[0].len() == expected.len() && found[0].iter().zip(expected).all(close),
        "{name}: {:?} instead of {expected:?}",
        found[0]
    );
}

#[test]
fn saturated_functions_have_the_slopes_of_their_asymptotes() {
    let far = [-800.0, 800.0];
    check("Sigmoid", &far, &[0.0, 0.0], |b, x| b.op("Sigmoid", &[&x[0]]));
    check("Tanh", &far, &[0.0, 0.0], |b, x| b.op("Tanh", &[&x[0]]));
    check("Softplus", &far, &[0.0, 1.0], |b, x| b.op("Softplus", &[&x[0]]));
    check("Elu", &far, &[0.0, 1.0], |b, x| b.op("Elu", &[&x[0]]));
    check("Erf", &far, &[0.0, 0.0], |b, x| b.op("Erf", &[&x[0]]));
    check("HardSigmoid", &far, &[0.0, 0.0], |b, x| b.op("HardSigmoid", &[&x[0]]));
    check("HardSwish", &far, &[0.0, 1.0], |b, x| b.op("HardSwish", &[&x[0]]));
    check("Softsign", &[0.0], &[1.0], |b, x| b.op("Softsign", &[&x[0]]));
    let composed: [(&str, Function); 2] =
        [("Mish", |b, x| made(b, "Mish", x)), ("Celu", |b, x| made(b, "Celu", x))];
    for (name, f) in composed {
        let Some(found) = gradients(&[(&[2], &far)], f) else { return };
        assert!(found[0][0].abs() < 1e-9 && (found[0][1] - 1.0).abs() < 1e-9, "{name}: {found:?}");
    }
}

/// An operator of which only the gradient is run, so that no executor needs to know it.
fn made(b: &mut Builder, op: &str, x: &[ValueId]) -> ValueId {
    let y = ValueId::new("y");
    let fact = b.fact(&x[0]).clone();
    b.set_fact(&y, fact);
    b.push(Node::new(op, &[&x[0]], &[&y]));
    y
}

#[test]
fn large_numbers_do_not_overflow() {
    check("ReduceLogSumExp", &[1000.0, 1000.0], &[0.5, 0.5], |b, x| {
        b.reduce("ReduceLogSumExp", &x[0], &[0], true)
    });
    check("Softmax", &[1000.0, 0.0, -1000.0], &[0.0, 0.0, 0.0], |b, x| b.softmax(&x[0], 0));
    check("LogSoftmax", &[1000.0, 0.0], &[-1.0, 1.0], |b, x| {
        b.op_with("LogSoftmax", &[&x[0]], &[("axis", Attr::Int(0))])
    });
    check("ReduceL2", &[3e150, 4e150], &[0.6, 0.8], |b, x| b.reduce("ReduceL2", &x[0], &[0], true));
}

#[test]
fn zeros_and_ties_poison_nothing() {
    check("LpNormalization", &[0.0, 0.0], &[0.0, 0.0], |b, x| {
        b.op_with("LpNormalization", &[&x[0]], &[("axis", Attr::Int(0))])
    });
    check("ReduceMin", &[2.0, 2.0, 3.0], &[0.5, 0.5, 0.0], |b, x| b.reduce("ReduceMin", &x[0], &[0], true));
    check("Clip at its bounds", &[-1.0, 0.0, 1.0], &[0.0, 1.0, 0.0], |b, x| {
        let (low, high) = (b.scalar_like(&x[0], -1.0), b.scalar_like(&x[0], 1.0));
        b.op("Clip", &[&x[0], &low, &high])
    });
    check("HardSwish at its ends", &[-3.0, 0.0, 3.0], &[0.0, 0.5, 1.0], |b, x| b.op("HardSwish", &[&x[0]]));
    check("Abs", &[0.0], &[0.0], |b, x| b.op("Abs", &[&x[0]]));
    check("Relu", &[0.0], &[0.0], |b, x| b.op("Relu", &[&x[0]]));
    check("CumProd", &[2.0, 0.0, 3.0], &[1.0, 8.0, 0.0], |b, x| {
        let axis = b.constant(Tensor::i64(&[], &[0]));
        let y = ValueId::new("y");
        let fact = b.fact(&x[0]).clone();
        b.set_fact(&y, fact);
        b.push(Node::new("CumProd", &[&x[0], &axis], &[&y]));
        y
    });
}

#[test]
fn empty_tensors_have_empty_gradients() {
    let empty: (&[usize], &[f64]) = (&[0, 3], &[]);
    let row: (&[usize], &[f64]) = (&[3], &[1.0, 2.0, 3.0]);
    let Some(found) = gradients(&[empty, row], |b, x| b.mul(&x[0], &x[1])) else { return };
    assert_eq!(found, [vec![], vec![0.0; 3]]);
    let square: (&[usize], &[f64]) = (&[3, 2], &[1.0; 6]);
    let found = gradients(&[empty, square], |b, x| b.matmul(&x[0], &x[1])).unwrap();
    assert_eq!(found, [vec![], vec![0.0; 6]]);
    let full: (&[usize], &[f64]) = (&[2, 3], &[1.0; 6]);
    let found = gradients(&[empty, full], |b, x| b.concat(&[&x[0], &x[1]], 0)).unwrap();
    assert_eq!(found, [vec![], vec![1.0; 6]]);
    let found = gradients(&[full], |b, x| {
        let none = b.constant(Tensor::i64(&[0], &[]));
        b.op("Gather", &[&x[0], &none])
    });
    assert_eq!(found.unwrap(), [vec![0.0; 6]]);
    let found = gradients(&[empty], |b, x| b.sum(&x[0], &[0], true)).unwrap();
    assert_eq!(found, [Vec::<f64>::new()]);
}

#[test]
fn a_query_without_a_key_gets_and_gives_nothing() {
    let q: (&[usize], &[f64]) = (&[1, 1, 2, 2], &[0.3, -0.2, 0.5, 0.1]);
    let Some(found) = gradients(&[q, q, q], |b, x| {
        let mask = b.constant(Tensor::bool(&[2, 2], &[false, false, true, true]));
        let y = ValueId::new("y");
        let fact = b.fact(&x[0]).clone();
        b.set_fact(&y, fact);
        b.push(Node::new("Attention", &[&x[0], &x[1], &x[2], &mask], &[&y]));
        y
    }) else {
        return;
    };
    assert!(found.iter().flatten().all(|v| v.is_finite()), "{found:?}");
    assert_eq!(found[0][..2], [0.0, 0.0]);
    // The second query spreads its weight, 1, over the two values.
    assert!((found[2][0] + found[2][2] - 1.0).abs() < 1e-12, "{found:?}");
}

#[test]
fn triangles_pass_what_they_keep() {
    let square: (&[usize], &[f64]) = (&[2, 2], &[1.0; 4]);
    let upper = gradients(&[square], |b, x| b.op("Trilu", &[&x[0]]));
    let lower = gradients(&[square], |b, x| {
        let k = b.constant(Tensor::i64(&[], &[-1]));
        b.op_with("Trilu", &[&x[0], &k], &[("upper", Attr::Int(0))])
    });
    if let (Some(upper), Some(lower)) = (upper, lower) {
        assert_eq!((&upper[0][..], &lower[0][..]), (&[1.0, 1.0, 0.0, 1.0][..], &[0.0, 0.0, 1.0, 0.0][..]));
    }
}
