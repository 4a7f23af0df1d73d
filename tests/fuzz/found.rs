//! What fuzzing found once, as it was found.

use onnx_merge::autodiff::backward;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Tensor, ValueId};

/// The gradient of one operator on `x`, whose output has the facts given.
fn gradient(op: &str, axis: Option<i64>, shape: &[usize]) -> onnx_merge::Result<()> {
    let mut b = Builder::new("found");
    let x = b.input("x", Fact::new(DType::F64, shape));
    let attributes: Vec<(&str, Attr)> = axis.into_iter().map(|axis| ("axis", Attr::Int(axis))).collect();
    let y = b.op_with(op, &[&x], &attributes);
    b.set_fact(&y, Fact::new(DType::F64, shape));
    let seed = b.zeros_like(&y);
    backward(&mut b, &[(y, seed)], &[x]).map(drop)
}

#[test]
fn gradients_along_axes_that_are_not_there_are_refused() {
    for op in ["Softmax", "LogSoftmax", "LpNormalization"] {
        assert!(gradient(op, Some(-4), &[2, 3]).is_err(), "{op}");
        assert!(gradient(op, Some(1), &[2, 3]).is_ok(), "{op}");
    }
    assert!(gradient("GlobalMaxPool", None, &[3, 2]).is_err());
}

#[test]
fn shapes_that_cannot_be_are_not_inferred() {
    let known = |op: &str, shape: &[usize], constants: &[Tensor], attributes: &[(&str, Attr)]| {
        let mut b = Builder::new("found");
        let x = b.input("x", Fact::new(DType::F64, shape));
        let rest: Vec<ValueId> = constants.iter().map(|t| b.constant(t.clone())).collect();
        let inputs: Vec<&ValueId> = [&x].into_iter().chain(&rest).collect();
        let y = b.op_with(op, &inputs, attributes);
        b.facts().get(&y).map(|fact| fact.shape.clone())
    };
    let ints = |v: &[i64]| Tensor::i64(&[v.len()], v);
    let weights = |shape: &[usize]| Tensor::zeros(DType::F64, shape);
    let strides = [("strides", Attr::Ints(vec![0, 1]))];
    let ellipsis = [("equation", Attr::Str("...i,...i->...".into()))];
    assert_eq!(known("Conv", &[1, 2, 4, 4], &[weights(&[2])], &[]), None);
    assert_eq!(known("ConvTranspose", &[1, 2, 4, 4], &[weights(&[2])], &[]), None);
    assert_eq!(known("Conv", &[1, 2, 4, 4], &[weights(&[2, 2, 1, 1])], &strides), None);
    assert_eq!(known("Pad", &[2], &[ints(&[i64::MAX, i64::MAX])], &[]), None);
    assert_eq!(known("Tile", &[4], &[ints(&[i64::MAX])], &[]), None);
    assert_eq!(known("Einsum", &[2, 2], &[weights(&[2, 2])], &ellipsis), None);
    let backwards = [ints(&[-1]), ints(&[i64::MIN]), ints(&[0]), ints(&[-1])];
    assert_eq!(known("Slice", &[0], &backwards, &[]), Some(vec![0]));
}

#[test]
fn indices_of_no_axes_give_all_of_it() {
    let mut b = Builder::new("found");
    let x = b.input("x", Fact::new(DType::F64, &[2, 3]));
    let indices = b.constant(Tensor::i64(&[4, 0], &[]));
    let y = b.op("GatherND", &[&x, &indices]);
    b.set_fact(&y, Fact::new(DType::F64, &[4, 2, 3]));
    let seed = b.zeros_like(&y);
    let gradients = backward(&mut b, &[(y, seed)], std::slice::from_ref(&x)).expect("a gradient");
    assert_eq!(b.shape(&gradients[&x]), [2, 3]);
}
