//! Which nodes get kernels of ours. What these compute: tests/parity/kernels.rs.

use super::*;
use crate::onnx::{Attr, Builder, DType, Fact, Tensor, ValueId, WORKING_OPSET};

/// Whether the last node of a graph gets a kernel of ours.
fn is_ours(build: impl Fn(&mut Builder) -> ValueId) -> bool {
    let mut b = Builder::new("case");
    let made = build(&mut b);
    b.output(&made);
    let (graph, facts) = b.finish();
    let mut model = Model::new(graph, WORKING_OPSET);
    let found = swap_in(&mut model, &facts, 1).is_some();
    let swapped = model.graph.nodes.last().is_some_and(|node| node.domain == DOMAIN);
    assert_eq!((found, model.opsets.contains_key(DOMAIN)), (swapped, swapped));
    swapped
}

fn convolution(op: &str, x: &[usize], w: &[usize], group: i64, constant: bool, dtype: DType) -> bool {
    is_ours(|b| {
        let x = b.input("x", Fact::new(dtype, x));
        let w = match constant {
            true => b.constant(Tensor::zeros(dtype, w)),
            false => b.input("w", Fact::new(dtype, w)),
        };
        b.op_with(op, &[&x, &w], &[("group", Attr::Int(group))])
    })
}

#[test]
fn convolutions_of_single_channels_are_ours() {
    let f32 = DType::F32;
    let image = [2, 6, 9, 9];
    assert!(convolution("Conv", &image, &[6, 1, 3, 3], 6, false, f32));
    assert!(convolution("ConvTranspose", &image, &[6, 1, 3, 3], 6, false, f32));
    // The gradient of weights: kernels as large as images.
    assert!(convolution("Conv", &[1, 12, 9, 9], &[6, 2, 8, 8], 6, false, f32));
    // ONNX Runtime is faster there.
    assert!(!convolution("Conv", &image, &[6, 1, 3, 3], 6, true, f32));
    assert!(!convolution("Conv", &image, &[6, 3, 3, 3], 2, false, f32));
    assert!(!convolution("Conv", &image, &[6, 6, 3, 3], 1, false, f32));
    assert!(!convolution("Conv", &image, &[6, 1, 3, 3], 6, false, DType::F64));
}

/// The operators of a graph's nodes as a session gets them.
fn swapped(build: impl Fn(&mut Builder) -> ValueId) -> Vec<String> {
    let mut b = Builder::new("case");
    let made = build(&mut b);
    b.output(&made);
    let (graph, facts) = b.finish();
    let mut model = Model::new(graph, WORKING_OPSET);
    swap_in(&mut model, &facts, 1);
    model.graph.nodes.iter().map(|node| node.op.clone()).collect()
}

#[test]
fn large_products_and_what_surrounds_them_are_ours() {
    if !onnx_merge_kernels::product::is_fast() {
        return;
    }
    let (f32, image) = (DType::F32, [2, 16, 20, 20]);
    assert!(convolution("Conv", &image, &[16, 16, 3, 3], 1, false, f32));
    assert!(convolution("ConvTranspose", &image, &[16, 16, 3, 3], 1, false, f32));
    // ONNX Runtime lays constant weights out for its own.
    assert!(!convolution("Conv", &image, &[16, 16, 3, 3], 1, true, f32));

    let input = |b: &mut Builder, name: &str, shape: &[usize]| b.input(name, Fact::new(f32, shape));
    let with_bias = |b: &mut Builder| {
        let (x, y, bias) = (input(b, "x", &[90, 80]), input(b, "y", &[70, 80]), input(b, "bias", &[70]));
        let y = b.transpose_matrix(&y);
        let product = b.matmul(&x, &y);
        b.add(&product, &bias)
    };
    assert_eq!(swapped(with_bias), [product::PRODUCT]);
    let heads = |b: &mut Builder| {
        let (x, y) = (input(b, "x", &[2, 3, 80, 90]), input(b, "y", &[2, 90, 3, 70]));
        let y = b.transpose(&y, &[0, 2, 1, 3]);
        let product = b.matmul(&x, &y);
        b.transpose(&product, &[0, 2, 1, 3])
    };
    assert_eq!(swapped(heads), [product::PRODUCT]);
    // All rows are one product where they lie next to each other.
    let sequence_first = |b: &mut Builder| {
        let (x, y) = (input(b, "x", &[80, 3, 90]), input(b, "y", &[90, 70]));
        let x = b.transpose(&x, &[1, 0, 2]);
        b.matmul(&x, &y)
    };
    assert_eq!(swapped(sequence_first), ["Transpose", product::PRODUCT]);
    let small = |b: &mut Builder| {
        let (x, y) = (input(b, "x", &[20, 20]), input(b, "y", &[20, 20]));
        b.matmul(&x, &y)
    };
    assert_eq!(swapped(small), ["MatMul"]);
}
