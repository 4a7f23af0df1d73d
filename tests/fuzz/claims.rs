//! What claims to be larger than any memory is refused before memory is asked for.

use crate::edits::{field, model_around, scratch, tensor};
use onnx_merge::autodiff::prepare;
use onnx_merge::data::{DataOptions, open};
use onnx_merge::onnx::{self, Attr, Builder, DType, Fact, Model, Tensor};
use onnx_merge::runtime::TractExecutor;
use std::io::Write;

const MANY: i64 = 1_000_000_000_000_000;

fn npy(count: i64) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}\n");
    [b"\x93NUMPY\x01\x00", &(text.len() as u16).to_le_bytes()[..], text.as_bytes(), &[0; 64]].concat()
}

fn npz(method: zip::CompressionMethod) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    archive.start_file("x.npy", options).expect("an entry");
    archive.write_all(&npy(MANY)).expect("an array");
    archive.finish().expect("an archive").into_inner()
}

#[test]
fn data_that_claims_too_much_is_refused() {
    use zip::CompressionMethod::{Deflated, Stored};
    for (name, bytes) in [("x.npy", npy(MANY)), ("a.npz", npz(Stored)), ("b.npz", npz(Deflated))] {
        std::fs::write(scratch(name), bytes).expect("a file");
        let error = open(&scratch(name), &DataOptions::default()).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains("64 are there")), "{name}: {error:?}");
    }
}

#[test]
fn weights_that_claim_too_much_are_refused() {
    for payload in [vec![], field(9, &[0; 64]), field(4, &[0; 64])] {
        let path = scratch("claims.onnx");
        std::fs::write(&path, model_around(&tensor(DType::F32, MANY as u64, &payload))).expect("a file");
        assert!(onnx::read(&path).is_err());
    }
}

/// `x + f(x)` over inputs and shapes of a model's own choosing.
fn model(input: usize, claim: impl FnOnce(&mut Builder) -> onnx::ValueId) -> Model {
    let mut b = Builder::new("claims");
    let x = b.input("x", Fact::new(DType::F32, &[1, input]));
    let large = claim(&mut b);
    let mean = b.op_with("ReduceMean", &[&large], &[("keepdims", Attr::Int(0))]);
    let y = b.op("Add", &[&x, &mean]);
    b.set_fact(&y, Fact::new(DType::F32, &[1, input]));
    b.output(&y);
    Model::new(b.finish().0, 18)
}

#[test]
fn models_that_ask_for_too_much_are_refused() {
    let one = |b: &mut Builder| b.constant(Tensor::f32(&[1], &[1.0]));
    let many = |b: &mut Builder| b.ints(&[MANY]);
    let models = [
        model(MANY as usize, one),
        model(1, |b| {
            let shape = many(b);
            b.op("ConstantOfShape", &[&shape])
        }),
        model(1, |b| {
            let (value, shape) = (one(b), many(b));
            b.op("Expand", &[&value, &shape])
        }),
        model(1, |b| {
            let (value, times) = (one(b), many(b));
            b.op("Tile", &[&value, &times])
        }),
        model(1, |b| {
            let (value, pads) = (one(b), b.ints(&[0, MANY]));
            b.op("Pad", &[&value, &pads])
        }),
    ];
    let executor = TractExecutor::new(1).expect("an executor");
    for (i, model) in models.iter().enumerate() {
        let prepared = prepare::upgrade(model).and_then(|model| prepare::lift(&model, 2, &executor));
        assert!(prepared.is_err(), "model {i}");
    }
}
