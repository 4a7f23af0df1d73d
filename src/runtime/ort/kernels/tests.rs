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
