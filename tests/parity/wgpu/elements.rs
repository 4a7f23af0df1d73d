//! Operators element by element, along rows, and such as move elements about.

use super::agree;
use onnx_merge::Result;
use onnx_merge::onnx::{Attr, DType, Tensor, ValueId};

#[test]
fn unary_operators() -> Result<()> {
    agree("any real", 2e-5, |c| {
        let x = c.noise(&[3, 50]);
        let x = c.b.mul_scalar(&x, 4.0);
        let ops = [
            "Abs",
            "Neg",
            "Exp",
            "Sign",
            "Tanh",
            "Erf",
            "Sigmoid",
            "Relu",
            "Floor",
            "Ceil",
            "Sin",
            "Cos",
            "Atan",
            "Softplus",
            "Softsign",
            "HardSwish",
            "Elu",
            "Selu",
            "LeakyRelu",
            "HardSigmoid",
            "Round",
        ];
        ops.iter().map(|op| c.b.op(op, &[&x])).collect()
    })?;
    agree("positive", 2e-5, |c| {
        let x = c.positive(&[7, 9]);
        ["Log", "Sqrt", "Reciprocal"].iter().map(|op| c.b.op(op, &[&x])).collect()
    })
}

#[test]
fn binary_operators_broadcast() -> Result<()> {
    for (a, b) in
        [(&[4, 5][..], &[4, 5][..]), (&[4, 5], &[5]), (&[4, 1], &[1, 5]), (&[2, 1, 3], &[4, 1]), (&[], &[3])]
    {
        agree(&format!("{a:?} with {b:?}"), 2e-5, |c| {
            let (x, y) = (c.positive(a), c.positive(b));
            let mut made: Vec<ValueId> = ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"]
                .iter()
                .map(|op| c.b.op(op, &[&x, &y]))
                .collect();
            let less = c.b.op("Less", &[&x, &y]);
            let more = c.b.op("GreaterOrEqual", &[&x, &y]);
            let equal = c.b.op("Equal", &[&x, &x]);
            let either = c.b.op("Or", &[&less, &more]);
            let both = c.b.op("And", &[&less, &either]);
            let not = c.b.op("Not", &[&both]);
            made.push(c.b.where_(&not, &x, &y));
            made.push(c.b.cast(&less, DType::F32));
            made.push(c.b.cast(&more, DType::I64));
            made.extend([equal, either, both, not]);
            made
        })?;
    }
    Ok(())
}

#[test]
fn integers_and_casts() -> Result<()> {
    agree("integers", 0.0, |c| {
        let x = c.feed(Tensor::i64(&[5], &[-7, -1, 0, 3, 1_000_000]));
        let y = c.feed(Tensor::i64(&[5], &[2, 3, 1, -2, 7]));
        let ops = ["Add", "Sub", "Mul", "Div"];
        let mut made: Vec<ValueId> = ops.iter().map(|op| c.b.op(op, &[&x, &y])).collect();
        let real = c.b.cast(&x, DType::F32);
        made.push(c.b.cast(&real, DType::I32));
        made.push(c.b.op("Equal", &[&x, &y]));
        made
    })
}

#[test]
fn powers_of_negative_numbers() -> Result<()> {
    agree("Pow", 2e-5, |c| {
        let x = c.noise(&[20]);
        [2.0, 3.0, 0.0, -1.0, -2.0]
            .iter()
            .map(|&p| {
                let p = c.b.scalar_like(&x, p);
                c.b.op("Pow", &[&x, &p])
            })
            .collect()
    })
}

#[test]
fn reductions_over_any_axes() -> Result<()> {
    for axes in [&[0][..], &[1], &[2], &[-1, 0], &[0, 1, 2], &[1, 2]] {
        for shape in [&[3, 4, 5][..], &[2, 70, 130]] {
            agree(&format!("{shape:?} over {axes:?}"), 5e-5, |c| {
                let x = c.noise(shape);
                let ops = [
                    "ReduceSum",
                    "ReduceMean",
                    "ReduceMax",
                    "ReduceMin",
                    "ReduceSumSquare",
                    "ReduceL2",
                    "ReduceL1",
                ];
                let mut made: Vec<ValueId> = ops.iter().map(|op| c.b.reduce(op, &x, axes, true)).collect();
                let x = c.b.transpose(&x, &[2, 0, 1]);
                made.push(c.b.sum(&x, axes, true));
                made
            })?;
        }
    }
    agree("to a scalar", 5e-5, |c| {
        let x = c.noise(&[40, 50]);
        vec![c.b.sum_all(&x), c.b.mean(&x, &[1], false)]
    })
}

#[test]
fn softmax_and_normalisation() -> Result<()> {
    for (shape, axis) in [(&[4, 7][..], -1), (&[3, 100], 1), (&[5, 6, 4], 1), (&[2, 3], 0)] {
        agree(&format!("{shape:?} along {axis}"), 2e-5, |c| {
            let x = c.noise(shape);
            let x = c.b.mul_scalar(&x, 30.0);
            vec![c.b.softmax(&x, axis), c.b.op_with("LogSoftmax", &[&x], &[("axis", axis.into())])]
        })?;
    }
    agree("LayerNormalization", 2e-5, |c| {
        let (x, scale, bias) = (c.noise(&[4, 3, 20]), c.noise(&[20]), c.noise(&[20]));
        vec![c.b.op_with(
            "LayerNormalization",
            &[&x, &scale, &bias],
            &[("axis", (-1).into()), ("epsilon", Attr::Float(1e-3))],
        )]
    })
}

/// Rows of one invocation and of many, held in registers or not, with operands that lie in every way.
#[test]
fn rows_of_all_lengths() -> Result<()> {
    for [rows, len] in
        [[3, 2], [130, 7], [65, 64], [5, 1000], [9, 1001], [130, 4100], [129, 9000], [128, 9001]]
    {
        agree(&format!("{rows} rows of {len}"), 5e-5, |c| {
            let (wide, turned) = (c.noise(&[rows, len + 1]), c.noise(&[len, rows]));
            let (scale, shift) = (c.noise(&[len]), c.noise(&[rows, 1]));
            let x = c.b.slice(&wide, &[1], &[len as i64 + 1], &[1]);
            let turned = c.b.transpose(&turned, &[1, 0]);
            let scaled = c.b.mul(&x, &scale);
            let shifted = c.b.add(&scaled, &shift);
            let z = c.b.mul(&shifted, &turned);
            let y = c.b.softmax(&z, -1);
            let along = c.b.mul(&y, &z);
            let total = c.b.sum(&along, &[1], true);
            let rest = c.b.sub(&z, &total);
            let mean = c.b.mean(&z, &[1], false);
            let column = c.b.sum(&rest, &[0], false);
            vec![c.b.mul(&y, &rest), c.b.op("Exp", &[&mean]), column, shifted]
        })?;
        agree(&format!("cross-entropy of {rows} rows of {len}"), 5e-5, |c| {
            let x = c.noise(&[rows, len]);
            let labels: Vec<i64> = (0..rows).map(|i| (i * 7 % len) as i64 - (i % 2 * len) as i64).collect();
            let labels = c.b.constant(Tensor::i64(&[rows, 1], &labels));
            let log_p = c.b.op_with("LogSoftmax", &[&x], &[("axis", Attr::Int(-1))]);
            let picked = c.b.op_with("GatherElements", &[&log_p, &labels], &[("axis", Attr::Int(1))]);
            let seed = c.noise(&[rows, 1]);
            let found =
                onnx_merge::autodiff::backward(&mut c.b, &[(picked.clone(), seed)], std::slice::from_ref(&x));
            vec![found.expect("all have rules")[&x].clone(), picked]
        })?;
    }
    Ok(())
}

#[test]
fn moving_elements() -> Result<()> {
    for (shape, perm) in [
        (vec![70, 45], vec![1, 0]),
        (vec![3, 33, 20, 2], vec![0, 2, 3, 1]),
        (vec![17, 2, 40, 3], vec![2, 1, 3, 0]),
        (vec![5, 64, 6, 6], vec![1, 0, 2, 3]),
        (vec![3, 132, 68], vec![0, 2, 1]),
    ] {
        agree(&format!("{shape:?} turned to {perm:?}"), 0.0, |c| {
            let x = c.noise(&shape);
            vec![c.b.transpose(&x, &perm)]
        })?;
    }
    agree("views", 0.0, |c| {
        let x = c.noise(&[4, 6, 5]);
        let turned = c.b.transpose(&x, &[2, 0, 1]);
        let flat = c.b.reshape(&turned, &[10, 12]);
        let cut = c.b.slice(&turned, &[1, -2], &[4, 6], &[1, 2]);
        let back = [c.b.ints(&[-1]), c.b.ints(&[-100]), c.b.ints(&[1]), c.b.ints(&[-2])];
        let backwards = c.b.op("Slice", &[&x, &back[0], &back[1], &back[2], &back[3]]);
        let parts = c.b.ints(&[2, 4]);
        let split = c.b.op_full("", "Split", &[Some(&x), Some(&parts)], &[("axis", Attr::Int(1))], 2);
        let row = c.noise(&[6, 1]);
        let wide = c.b.expand(&row, &[3, 6, 4]);
        let times = c.b.ints(&[2, 1, 3]);
        let tiled = c.b.op("Tile", &[&x, &times]);
        let joined = c.b.concat(&[&split[1], &x, &split[0]], 1);
        let squeezed = c.b.unsqueeze(&x, &[0, 2]);
        let sum = c.b.add(&turned, &turned);
        vec![turned, flat, cut, backwards, split[1].clone(), wide, tiled, joined, squeezed, sum]
    })?;
    agree("padding and triangles", 0.0, |c| {
        let x = c.noise(&[3, 4, 5]);
        let pads = c.b.ints(&[0, 1, 2, 1, 0, 3]);
        let value = c.b.scalar_like(&x, 0.5);
        let upper = c.b.op("Trilu", &[&x]);
        vec![c.b.op("Pad", &[&x, &pads]), c.b.op("Pad", &[&x, &pads, &value]), upper]
    })
}

#[test]
fn finding_elements_by_index() -> Result<()> {
    agree("gathers", 0.0, |c| {
        let x = c.noise(&[4, 6, 5]);
        let rows = c.feed(Tensor::i64(&[2, 3], &[0, -1, 3, 2, 5, 1]));
        let one = c.feed(Tensor::i64(&[], &[2]));
        let places: Vec<i64> = (0..4 * 2 * 5).map(|i| (i * 7 % 6) as i64).collect();
        let places = c.feed(Tensor::i64(&[4, 2, 5], &places));
        let tuples = c.feed(Tensor::i64(&[3, 2], &[0, 1, 3, 5, 2, 0]));
        vec![
            c.b.op_with("Gather", &[&x, &rows], &[("axis", Attr::Int(1))]),
            c.b.op_with("Gather", &[&x, &one], &[("axis", Attr::Int(0))]),
            c.b.op_with("GatherElements", &[&x, &places], &[("axis", Attr::Int(1))]),
            c.b.op("GatherND", &[&x, &tuples]),
        ]
    })?;
    agree("the best", 0.0, |c| {
        let x = c.noise(&[4, 6, 5]);
        let axis = |k: i64| [("axis", Attr::Int(k)), ("keepdims", Attr::Int(k % 2))];
        vec![c.b.op_with("ArgMax", &[&x], &axis(1)), c.b.op_with("ArgMin", &[&x], &axis(2))]
    })?;
    agree("running sums", 2e-5, |c| {
        let x = c.noise(&[4, 6]);
        let axis = c.b.constant(Tensor::i64(&[], &[1]));
        let attrs = [("reverse", Attr::Int(1)), ("exclusive", Attr::Int(1))];
        vec![c.b.op("CumSum", &[&x, &axis]), c.b.op_with("CumSum", &[&x, &axis], &attrs)]
    })
}

#[test]
fn scattering_with_repeated_places_is_deterministic() -> Result<()> {
    for reduction in ["none", "add"] {
        agree(reduction, 2e-5, |c| {
            let (x, rows, parts) = (c.noise(&[7, 3]), c.noise(&[4, 3]), c.noise(&[5, 2]));
            let repeat = if reduction == "add" { 2 } else { 6 };
            let places = c.feed(Tensor::i64(&[4, 1], &[2, 0, repeat, 5]));
            let attrs = [("reduction", Attr::from(reduction))];
            let by_rows = c.b.op_with("ScatterND", &[&x, &places, &rows], &attrs);
            let places = c.feed(Tensor::i64(&[5, 2], &[0, 1, 2, 3, repeat, -1, 1, 0, 3, 4]));
            let attrs = [("reduction", Attr::from(reduction)), ("axis", Attr::Int(0))];
            vec![by_rows, c.b.op_with("ScatterElements", &[&x, &places, &parts], &attrs)]
        })?;
    }
    Ok(())
}
