//! Products, convolutions and contractions, of every size and layout.

use super::{Case, GPU, agree, distance, run, tract};
use onnx_merge::Result;
use onnx_merge::onnx::{Attr, DType, Fact, Forms, ValueId};

#[test]
fn matrix_products_of_all_sizes_and_layouts() -> Result<()> {
    let cases: [(&[usize], &[usize]); 18] = [
        // Few rows, but much to do.
        (&[16, 20, 144], &[16, 144, 256]),
        // Vectors along k and along columns, long sums in parts, many large tiles.
        (&[64, 36], &[36, 68]),
        (&[40, 5000], &[5000, 36]),
        (&[3, 2100], &[2100, 5]),
        (&[16, 256, 24], &[16, 24, 260]),
        (&[16, 255, 23], &[16, 23, 257]),
        (&[33, 130, 12], &[33, 12, 260]),
        (&[3, 4], &[4, 5]),
        (&[70, 33], &[33, 65]),
        (&[64, 64], &[64, 64]),
        (&[129, 17], &[17, 40]),
        (&[1, 300], &[300, 7]),
        (&[5, 3, 4], &[5, 4, 6]),
        (&[5, 3, 4], &[4, 6]),
        (&[2, 1, 33, 40], &[3, 40, 50]),
        (&[4], &[4, 3]),
        (&[3, 4], &[4]),
        (&[6, 4], &[2, 3, 4, 5]),
    ];
    for (a, b) in cases {
        let long = a.last().is_some_and(|&k| k > 1000);
        agree(&format!("{a:?}·{b:?}"), if long { 1e-4 } else { 2e-5 }, |c| {
            let (x, y) = (c.noise(a), c.noise(b));
            vec![c.b.matmul(&x, &y)]
        })?;
    }
    agree("transposed operands, by vectors", 2e-5, |c| {
        let (x, y) = (c.noise(&[2, 40, 72]), c.noise(&[2, 52, 40]));
        let (x, y) = (c.b.transpose_matrix(&x), c.b.transpose_matrix(&y));
        vec![c.b.matmul(&x, &y)]
    })?;
    agree("transposed operands", 2e-5, |c| {
        let (x, y) = (c.noise(&[2, 40, 70]), c.noise(&[2, 50, 40]));
        let (x, y) = (c.b.transpose_matrix(&x), c.b.transpose_matrix(&y));
        vec![c.b.matmul(&x, &y)]
    })
}

/// Image, weight, stride, padding, groups.
type Convolution = (&'static [usize], &'static [usize], i64, i64, i64);

fn attributes(stride: i64, pad: i64, group: i64) -> [(&'static str, Attr); 3] {
    [("strides", vec![stride; 2].into()), ("pads", vec![pad; 4].into()), ("group", group.into())]
}

/// Every kernel for sums over windows: large and small tiles, cut into parts, along taps, alone.
#[test]
fn convolutions_of_all_sizes() -> Result<()> {
    let cases: [Convolution; 16] = [
        (&[2, 3, 40, 44], &[70, 3, 3, 3], 1, 1, 1),
        (&[3, 20, 66, 66], &[130, 20, 3, 3], 1, 0, 1),
        (&[2, 130, 7, 9], &[140, 130, 3, 3], 1, 1, 1),
        (&[2, 24, 33, 31], &[40, 24, 5, 5], 2, 2, 1),
        (&[2, 70, 12, 12], &[66, 70, 1, 1], 1, 0, 1),
        (&[2, 70, 11, 11], &[66, 70, 1, 1], 1, 0, 1),
        (&[2, 12, 20, 20], &[12, 1, 3, 3], 2, 1, 12),
        (&[2, 6, 15, 13], &[12, 1, 5, 5], 1, 2, 6),
        (&[2, 3, 9, 14], &[3, 1, 7, 7], 1, 3, 3),
        (&[1, 3, 13, 9], &[3, 1, 2, 3], 3, 0, 3),
        // Several rows and windows an invocation.
        (&[2, 8, 380, 380], &[3, 8, 3, 3], 1, 1, 1),
        // Too many places along the axes for bits of their own.
        (&[2, 20, 40, 40], &[24, 20, 25, 25], 1, 12, 1),
        (&[2, 40, 9, 9], &[60, 20, 3, 3], 1, 1, 2),
        // As weight gradients with the roles swapped: few large windows.
        (&[20, 4, 30, 34], &[72, 4, 28, 32], 1, 0, 1),
        (&[9, 6, 24, 20], &[17, 6, 22, 18], 1, 0, 1),
        (&[1, 24, 42, 42], &[6, 4, 40, 40], 1, 0, 6),
    ];
    for (image, weight, stride, pad, group) in cases {
        agree(&format!("{image:?} by {weight:?}"), 2e-4, |c| {
            let (x, w) = (c.noise(image), c.noise(weight));
            vec![c.b.op_with("Conv", &[&x, &w], &attributes(stride, pad, group))]
        })?;
    }
    let transposed: [Convolution; 5] = [
        (&[2, 140, 7, 9], &[140, 130, 3, 3], 1, 1, 1),
        (&[3, 30, 20, 20], &[30, 70, 3, 3], 2, 1, 1),
        (&[2, 66, 12, 16], &[66, 70, 1, 1], 1, 0, 1),
        (&[2, 66, 11, 11], &[66, 70, 1, 1], 2, 0, 1),
        (&[2, 12, 10, 10], &[12, 1, 3, 3], 2, 1, 12),
    ];
    for (image, weight, stride, pad, group) in transposed {
        agree(&format!("{image:?} by {weight:?}, transposed"), 2e-4, |c| {
            let (x, w) = (c.noise(image), c.noise(weight));
            vec![c.b.op_with("ConvTranspose", &[&x, &w], &attributes(stride, pad, group))]
        })?;
    }
    Ok(())
}

/// An operator, its inputs' shapes, its attributes.
type Operation = (&'static str, &'static [&'static [usize]], Vec<(&'static str, Attr)>);

/// The gradients that only this executor is given: sums over windows with the roles swapped, normalisation as a whole.
#[test]
fn gradients_in_forms_for_the_gpu() -> Result<()> {
    let gradients = |forms: Forms, op: &str, shapes: &[&[usize]], attrs: &[(&str, Attr)]| -> Result<_> {
        let mut case = Case::new();
        case.b.forms = forms;
        let inputs: Vec<ValueId> = shapes.iter().map(|shape| case.noise(shape)).collect();
        let y = case.b.op_with(op, &inputs.iter().collect::<Vec<_>>(), attrs);
        if op.ends_with("Normalization") {
            case.b.set_fact(&y, Fact::new(DType::F32, shapes[0]));
        }
        let shape = case.b.shape(&y);
        let seed = case.noise(&shape);
        let found = onnx_merge::autodiff::backward(&mut case.b, &[(y, seed)], &inputs)?;
        let outputs: Vec<ValueId> = inputs.iter().map(|input| found[input].clone()).collect();
        Ok(case.finish(&outputs))
    };
    let Some(gpu) = &*GPU else { return Ok(()) };
    let conv = attributes;
    let cases: [Operation; 10] = [
        ("Conv", &[&[3, 8, 17, 19], &[24, 8, 3, 3]], conv(1, 1, 1).into()),
        ("Conv", &[&[2, 5, 18, 18], &[7, 5, 5, 5]], conv(2, 2, 1).into()),
        ("Conv", &[&[4, 6, 16, 16], &[6, 1, 3, 3]], conv(2, 1, 6).into()),
        ("Conv", &[&[5, 6, 17, 16], &[6, 1, 3, 3]], conv(1, 1, 6).into()),
        ("Conv", &[&[16, 4, 28, 14], &[8, 1, 5, 5]], conv(2, 2, 4).into()),
        ("Conv", &[&[24, 5, 7, 7], &[5, 1, 7, 7]], conv(1, 3, 5).into()),
        ("Conv", &[&[4, 8, 16, 16], &[12, 4, 3, 3]], conv(1, 1, 2).into()),
        ("Conv", &[&[2, 20, 12, 12], &[9, 20, 1, 1]], conv(1, 0, 1).into()),
        ("LayerNormalization", &[&[6, 5, 70], &[70], &[70]], vec![]),
        ("InstanceNormalization", &[&[3, 4, 9, 7], &[4], &[4]], vec![]),
    ];
    for (op, shapes, attrs) in cases {
        let (model, facts, feeds) = gradients(Forms::Products, op, shapes, &attrs)?;
        let expected = run(&tract()?, &model, &facts, &feeds)?;
        let (model, facts, feeds) = gradients(Forms::Windows, op, shapes, &attrs)?;
        let got = run(&**gpu, &model, &facts, &feeds)?;
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let apart = distance(got, expected);
            assert!(apart <= 1e-4, "{op} of {shapes:?}, gradient {i}: {apart:e} apart");
        }
    }
    Ok(())
}

#[test]
fn gemm_with_every_flag() -> Result<()> {
    for flags in 0..4 {
        agree(&format!("Gemm {flags}"), 2e-5, |c| {
            let (ta, tb) = (flags & 1 != 0, flags & 2 != 0);
            let x = c.noise(if ta { &[20, 6] } else { &[6, 20] });
            let y = c.noise(if tb { &[7, 20] } else { &[20, 7] });
            let z = c.noise(&[7]);
            let attrs = [("transA", ta.into()), ("transB", tb.into())];
            let scaled = [
                ("transA", ta.into()),
                ("transB", tb.into()),
                ("alpha", Attr::Float(0.5)),
                ("beta", Attr::Float(2.0)),
            ];
            vec![c.b.op_with("Gemm", &[&x, &y], &attrs), c.b.op_with("Gemm", &[&x, &y, &z], &scaled)]
        })?;
    }
    Ok(())
}

#[test]
fn einsum_contracts_any_labels() -> Result<()> {
    for (equation, a, b) in [
        ("ij,jk->ik", &[3, 4][..], &[4, 5][..]),
        ("bij,bkj->bik", &[2, 3, 4], &[2, 5, 4]),
        ("ij,kj->ki", &[40, 33], &[50, 33]),
        ("bhqd,bkhd->bhqk", &[2, 3, 4, 5], &[2, 6, 3, 5]),
        ("ij,kl->ikjl", &[3, 4], &[2, 5]),
    ] {
        agree(equation, 2e-5, |c| {
            let (x, y) = (c.noise(a), c.noise(b));
            vec![c.b.op_with("Einsum", &[&x, &y], &[("equation", equation.into())])]
        })?;
    }
    Ok(())
}
