//! What becomes a chain. What chains compute: tests/parity/chains.rs.

use super::*;
use crate::onnx::{Builder, Fact, Tensor};

/// The operators of a graph after fusing, and how many results each chain has.
fn fused(build: impl Fn(&mut Builder) -> Vec<ValueId>) -> (Vec<String>, Vec<usize>) {
    let mut b = Builder::new("case");
    for output in build(&mut b) {
        b.output(&output);
    }
    let (mut graph, facts) = b.finish();
    let chains = fuse(&mut graph, &facts);
    assert_ordered(&graph);
    let ops = graph.nodes.iter().map(|node| node.op.clone()).collect();
    (ops, chains.iter().map(|chained| chained.chain.outputs()).collect())
}

/// Everything is made before it is read.
fn assert_ordered(graph: &Graph) {
    let mut known: HashSet<&ValueId> = graph.initializers.keys().collect();
    known.extend(graph.inputs.iter().map(|input| &input.id));
    for node in &graph.nodes {
        assert!(
            node.inputs.iter().flatten().all(|id| known.contains(id)),
            "{} comes too early",
            node.label()
        );
        known.extend(node.outputs.iter().flatten());
    }
    assert!(graph.outputs.iter().all(|output| known.contains(&output.id)));
}

fn matrix(b: &mut Builder, name: &str) -> ValueId {
    b.input(name, Fact::new(DType::F32, &[6, 70]))
}

#[test]
fn an_update_is_one_chain() {
    let (ops, results) = fused(|b| {
        let [w, m, v, g] = ["w", "m", "v", "g"].map(|name| matrix(b, name));
        let rate = b.input("rate", Fact::new(DType::F32, &[]));
        let moving = |b: &mut Builder, old: &ValueId, value: &ValueId| {
            let (kept, taken) = (b.mul_scalar(old, 0.9), b.mul_scalar(value, 0.1));
            b.add(&kept, &taken)
        };
        let m = moving(b, &m, &g);
        let square = b.mul(&g, &g);
        let v = moving(b, &v, &square);
        let root = b.op("Sqrt", &[&v]);
        let root = b.add_scalar(&root, 1e-8);
        let direction = b.div(&m, &root);
        let change = b.mul(&direction, &rate);
        vec![m, v, b.sub(&w, &change)]
    });
    assert_eq!((ops, results), (vec!["Chain".to_owned()], vec![3]));
}

#[test]
fn a_chain_does_not_reach_around_what_depends_on_it() {
    let (ops, _) = fused(|b| {
        let (x, y) = (matrix(b, "x"), matrix(b, "y"));
        let product = b.mul(&x, &y);
        let sum = b.add(&product, &x);
        let power = b.op("Exp", &[&sum]);
        let difference = b.sub(&power, &product);
        vec![b.mul(&difference, &sum)]
    });
    assert_eq!(ops, ["Chain", "Exp", "Chain"]);
}

#[test]
fn a_chain_that_nobody_has_read_waits() {
    let (ops, results) = fused(|b| {
        let (x, y) = (matrix(b, "x"), matrix(b, "y"));
        let product = b.mul(&x, &y);
        let power = b.op("Exp", &[&x]);
        vec![b.sub(&power, &product)]
    });
    assert_eq!((ops, results), (vec!["Exp".to_owned(), "Chain".to_owned()], vec![1]));
}

#[test]
fn truths_are_made_where_they_are_needed() {
    let relu_gradient = |b: &mut Builder, tell: bool| {
        let (x, g) = (matrix(b, "x"), matrix(b, "g"));
        let zero = b.constant(Tensor::scalar(DType::F32, 0.0));
        let positive = b.op("Greater", &[&x, &zero]);
        let chosen = b.where_(&positive, &g, &zero);
        if tell { vec![chosen, positive] } else { vec![chosen] }
    };
    assert_eq!(fused(|b| relu_gradient(b, false)).0, ["Chain"]);
    assert_eq!(fused(|b| relu_gradient(b, true)).0, ["Greater", "Chain"]);
}

#[test]
fn long_ways_of_truths_are_cut() {
    let (ops, _) = fused(|b| {
        let (x, y) = (matrix(b, "x"), matrix(b, "y"));
        let mut truth = b.op("Greater", &[&x, &y]);
        // Each reads the one before twice: without an end, all would be made 2¹⁰⁰⁰⁰ times.
        for _ in 0..10_000 {
            truth = b.op("And", &[&truth, &truth]);
        }
        vec![b.where_(&truth, &x, &y)]
    });
    assert_eq!(ops.last().map(String::as_str), Some("Chain"));
    assert!(ops.iter().any(|op| op == "And"));
}

#[test]
fn single_nodes_stay_but_where_onnx_runtime_is_slow() {
    assert_eq!(
        fused(|b| {
            let x = matrix(b, "x");
            vec![b.neg(&x)]
        })
        .0,
        ["Neg"]
    );
    let product = |by: &[usize]| {
        fused(|b| {
            let (x, y) = (
                b.input("x", Fact::new(DType::F32, &[3, 4, 2, 5, 2])),
                b.input("y", Fact::new(DType::F32, by)),
            );
            vec![b.mul(&x, &y)]
        })
    };
    assert_eq!(product(&[4, 1, 1, 1]).0, ["Mul"]);
    assert_eq!(product(&[3, 4, 1, 5, 1]).0, ["Chain"]);
    let choice = |dtype: DType, y: &[usize]| {
        let chosen = fused(|b| {
            let condition = b.input("condition", Fact::new(DType::Bool, &[4, 5]));
            let (x, y) = (b.input("x", Fact::new(dtype, &[4, 5])), b.input("y", Fact::new(dtype, y)));
            vec![b.op("Where", &[&condition, &x, &y])]
        });
        chosen.0 == ["Chain"]
    };
    let f32 = DType::F32;
    assert!(choice(f32, &[4, 5]) && choice(f32, &[]) && choice(f32, &[5]) && choice(f32, &[4, 1]));
    assert!(!choice(DType::I64, &[4, 5]) && !choice(DType::F64, &[4, 5]));
}

#[test]
fn what_is_part_of_other_kernels_is_left() {
    let (ops, _) = fused(|b| {
        let x = b.input("x", Fact::new(DType::F32, &[2, 3, 8, 8]));
        let w = b.input("w", Fact::new(DType::F32, &[4, 3, 3, 3]));
        let y = b.op("Conv", &[&x, &w]);
        vec![b.op("Relu", &[&y])]
    });
    assert_eq!(ops, ["Conv", "Relu"]);
    let gelu = |b: &mut Builder, read: bool| {
        let x = matrix(b, "x");
        let (w, bias) =
            (b.input("w", Fact::new(DType::F32, &[70, 70])), b.constant(Tensor::zeros(DType::F32, &[70])));
        let product = b.matmul(&x, &w);
        let y = b.add(&product, &bias);
        // x · ½ · (1 + erf(x / √2))
        let scaled = b.mul_scalar(&y, std::f64::consts::FRAC_1_SQRT_2);
        let erf = b.op("Erf", &[&scaled]);
        let one_more = b.add_scalar(&erf, 1.0);
        let product = b.mul(&y, &one_more);
        let gelu = b.mul_scalar(&product, 0.5);
        if read { vec![gelu, one_more] } else { vec![gelu] }
    };
    let (ops, _) = fused(|b| gelu(b, false));
    assert_eq!(ops, ["MatMul", "Add", "Mul", "Erf", "Add", "Mul", "Mul"]);
    // Gradients read what is in between.
    let (ops, _) = fused(|b| gelu(b, true));
    assert_eq!(ops, ["MatMul", "Add", "Mul", "Erf", CHAIN]);
}

#[test]
fn operands_are_spread_by_the_rules_of_broadcasting() {
    let spread = |operand: &[usize], result: &[usize]| {
        steps::spread(operand, result).map(|spread| (spread.len(), spread.over()))
    };
    let shape = [2, 3, 4];
    for (operand, len) in
        [(&shape[..], 24), (&[], 1), (&[4], 4), (&[2, 1, 1], 2), (&[3, 1], 3), (&[2, 1, 4], 8)]
    {
        assert_eq!(spread(operand, &shape), Some((len, 24)));
    }
    assert_eq!(spread(&[1, 1], &[1, 1]), Some((1, 1)));
    assert_eq!(spread(&[5], &shape), None);
    assert_eq!(spread(&[1, 2, 3, 4], &shape), None);
}
