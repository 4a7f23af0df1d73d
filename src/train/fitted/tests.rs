//! Networks get back, by least squares alone, what they have lost.

use super::*;
use crate::data::{self, DataOptions};
use crate::lpka::selection;
use crate::onnx::{Attr, Builder, DType, Dim, Fact, Model};
use crate::params::{InterfaceId, Pairing};
use crate::runtime::TractExecutor;
use crate::train::align::{alignments, cells};
use crate::train::network::Purpose;
use crate::train::session::Split;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Makes up weights.
#[derive(Default)]
struct Weights(usize);

impl Weights {
    /// Values between half of `scale` and its opposite.
    fn make(&mut self, b: &mut Builder, shape: &[usize], scale: f32) -> ValueId {
        self.0 += 1;
        let value = |i: usize| ((i * 7907 + self.0 * 104_729) % 1013) as f32 / 1013.0 - 0.5;
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| scale * value(i)).collect();
        b.initializer(&format!("w{}", self.0), Tensor::f32(shape, &values))
    }
}

/// Writes what has been built, a model for one image at a time.
fn save(mut b: Builder, answer: &ValueId, path: &Path) -> Result<()> {
    b.output(answer);
    let (mut graph, _) = b.finish();
    graph.inputs[0].shape = Some([1, 1, 8, 8].map(Dim::Known).to_vec());
    crate::onnx::save(&Model::new(graph, crate::onnx::WORKING_OPSET), path)
}

/// How a block widens its stream: by one convolution, or by a mixture of channels and a filter for each.
#[derive(Clone, Copy, PartialEq)]
enum Widening {
    Whole,
    Split,
}

/// A stem, a block that adds to a stream, and a head.
fn with_a_stream(path: &Path, widening: Widening) -> Result<()> {
    let mut b = Builder::new("block");
    let mut weights = Weights::default();
    let x = b.input("image", Fact::new(DType::F32, &[1, 1, 8, 8]));
    let pads = [("pads", vec![1i64; 4].into())];
    let stem = weights.make(&mut b, &[6, 1, 3, 3], 4.0 / 9f32.sqrt());
    let x = b.op_with("Conv", &[&x, &stem], &pads);
    let x = b.op("Relu", &[&x]);
    let side = if widening == Widening::Whole { 3 } else { 1 };
    let expand = weights.make(&mut b, &[12, 6, side, side], 4.0 / ((6 * side * side) as f32).sqrt());
    let y = b.op_with("Conv", &[&x, &expand], &[("pads", vec![side as i64 / 2; 4].into())]);
    let mut y = b.op("Relu", &[&y]);
    if widening == Widening::Split {
        let filter = weights.make(&mut b, &[12, 1, 3, 3], 4.0 / 9f32.sqrt());
        y = b.op_with("Conv", &[&y, &filter], &[("pads", vec![1i64; 4].into()), ("group", 12i64.into())]);
        y = b.op("Relu", &[&y]);
    }
    let project = weights.make(&mut b, &[6, 12, 1, 1], 4.0 / 12f32.sqrt());
    let y = b.op("Conv", &[&y, &project]);
    let x = b.add(&x, &y);
    let x = b.op_with("Flatten", &[&x], &[("axis", 1i64.into())]);
    let head = weights.make(&mut b, &[384, 10], 4.0 / 384f32.sqrt());
    let answer = b.matmul(&x, &head);
    save(b, &answer, path)
}

/// Down to half the side and up again, with a head on all pixels.
fn with_an_hourglass(path: &Path) -> Result<()> {
    let mut b = Builder::new("hourglass");
    let mut weights = Weights::default();
    let x = b.input("image", Fact::new(DType::F32, &[1, 1, 8, 8]));
    let two = || ("strides", Attr::from(vec![2i64; 2]));
    let down = weights.make(&mut b, &[6, 1, 3, 3], 1.3);
    let x = b.op_with("Conv", &[&x, &down], &[two(), ("pads", vec![1i64; 4].into())]);
    let x = b.op("Relu", &[&x]);
    let up = weights.make(&mut b, &[6, 5, 3, 3], 1.5);
    let bias = weights.make(&mut b, &[5], 0.2);
    let pads = ("pads", Attr::from(vec![1i64, 1, 0, 0]));
    let x = b.op_with("ConvTranspose", &[&x, &up, &bias], &[two(), pads]);
    b.set_fact(&x, Fact::new(DType::F32, &[1, 5, 8, 8]));
    let x = b.op("Relu", &[&x]);
    let x = b.op_with("Flatten", &[&x], &[("axis", 1i64.into())]);
    let head = weights.make(&mut b, &[320, 10], 0.4);
    let answer = b.matmul(&x, &head);
    save(b, &answer, path)
}

/// Rows of an image, one after the other, and a head on the states after the last.
fn with_a_cell(path: &Path, (op, gates): (&str, usize), direction: &str, reset: i64) -> Result<()> {
    const HIDDEN: usize = 12;
    let mut b = Builder::new("sequence");
    let mut weights = Weights::default();
    let directions = if direction == "bidirectional" { 2 } else { 1 };
    let x = b.input("image", Fact::new(DType::F32, &[1, 1, 8, 8]));
    let x = b.reshape(&x, &[1, 8, 8]);
    let x = b.transpose(&x, &[1, 0, 2]);
    let w = weights.make(&mut b, &[directions, gates * HIDDEN, 8], 2.0);
    let r = weights.make(&mut b, &[directions, gates * HIDDEN, HIDDEN], 1.0);
    let biases = weights.make(&mut b, &[directions, 2 * gates * HIDDEN], 0.5);
    let mut attributes: Vec<(&str, Attr)> =
        vec![("hidden_size", (HIDDEN as i64).into()), ("direction", Attr::Str(direction.into()))];
    if op == "GRU" {
        attributes.push(("linear_before_reset", reset.into()));
    }
    let inputs = [&x, &w, &r, &biases].map(Some);
    let states = b.op_full("", op, &inputs, &attributes, 2).remove(1);
    b.set_fact(&states, Fact::new(DType::F32, &[directions, 1, HIDDEN]));
    let states = b.transpose(&states, &[1, 0, 2]);
    let states = b.reshape(&states, &[1, directions * HIDDEN]);
    let head = weights.make(&mut b, &[directions * HIDDEN, 10], 2.0);
    let answer = b.matmul(&states, &head);
    save(b, &answer, path)
}

/// [`taught`] by the network itself.
fn regained(path: &Path, layers: usize) -> Result<(usize, usize)> {
    taught(path, path, layers)
}

/// Takes its matrices away from a copy of a network and fits the copy to a source: on how many of 200 rows the copy then answers the
/// same class as the source, before and after. Nothing but least squares, no labels.
fn taught(path: &Path, source: &Path, layers: usize) -> Result<(usize, usize)> {
    let executor = TractExecutor::new(1)?;
    let folder = tempfile::tempdir().expect("a folder for the copy");
    let blank = folder.path().join("blank.onnx");
    let mut model = crate::onnx::read(path)?.model;
    for (i, tensor) in model.graph.initializers.values_mut().enumerate() {
        if tensor.dtype().is_float() && (2..=4).contains(&tensor.rank()) {
            let noise = |at: usize| ((at + i) * 7919 % 1009) as f32 / 1009.0 - 0.5;
            *tensor = Tensor::f32(tensor.shape(), &(0..tensor.len()).map(noise).collect::<Vec<_>>());
        }
    }
    crate::onnx::save(&model, &blank)?;
    let train = data::open(&fixture("digits_train.npz"), &DataOptions::default())?;
    let all = Data { train: &train, val: None, test: None, unlabelled: None, made_of: &[] };
    let source = Network::open(source, 32, Purpose::on(&train), &executor)?;
    let target = Network::open(&blank, 32, Purpose::on(&train), &executor)?;
    let examples = Examples::new(all, &target.file.model.graph, 0)?;
    let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
    let mut learner = Learner::open(&target, Unit::all(&target), all, &executor)?;
    let names: Vec<&str> =
        learner.layers.iter().map(|l| target.params.weight(l.weight()).name.as_str()).collect();
    assert_eq!(names.len(), layers, "{names:?}");
    let grids = alignments(&target, &source, &pairing);
    let cells = cells(&grids);
    let pairs = (&pairing, &cells);
    let tutor = Tutor::open((&target, &learner.layers), &source, pairs, true, all, &executor)?;
    let mut tutor = tutor.expect("the same layers correspond");
    assert_eq!(tutor.lessons.len(), layers, "every layer has its partner");
    let choice = |&(to, from): &(InterfaceId, InterfaceId)| {
        let cells = cells.get(&(to, from)).map_or(1, |grid| grid.iter().product());
        let theirs = source.params.interface(from).channels * cells;
        ((to, from), selection(target.params.interface(to).channels, theirs))
    };
    let choices = pairing.interfaces.iter().map(choice).collect();
    let weights = source.model.graph.initializers.clone().into_iter().collect();
    let mixtures =
        mixtures(&target, &source, &pairing, &source.model.graph.initializers.clone().into_iter().collect());
    let teaching = Teaching { tutor: &mut tutor, weights, choices: &choices, mixtures: &mixtures };
    let trainable = target.trainable(&[])?;
    let fitted = fit(&target, &mut learner, vec![teaching], &trainable, &examples, 1 << 16, &executor)?;
    let rows: Vec<usize> = (0..200).collect();
    let weights = learner.own.with(&fitted);
    let own = learner.own.observe(Split::Train, &rows, None, None)?;
    let now = learner.own.observe(Split::Train, &rows, None, Some(&weights))?;
    let wanted = tutor.guide.observe(Split::Train, &rows, None, None)?;
    let same = |a: &Tensor, b: &Tensor| {
        let best = |t: &Tensor, row: usize| {
            let values = t.to_f32()[row * 10..(row + 1) * 10].to_vec();
            (0..10).max_by(|&i, &j| values[i].total_cmp(&values[j]))
        };
        rows.iter().filter(|&&r| best(a, r) == best(b, r)).count()
    };
    Ok((same(&own[0], &wanted[0]), same(&now[0], &wanted[0])))
}

#[test]
fn a_chain_of_layers_gets_back_what_it_has_lost() -> Result<()> {
    let (before, after) = regained(&fixture("digits_small_cnn.onnx"), 4)?;
    assert!(before < 60 && after > 190, "{before}, {after}");
    Ok(())
}

#[test]
fn streams_and_filters_of_single_channels_get_back_what_they_have_lost() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the model");
    let path = folder.path().join("block.onnx");
    with_a_stream(&path, Widening::Split)?;
    let (before, after) = regained(&path, 5)?;
    assert!(before < 100 && after > 180, "{before}, {after}");
    Ok(())
}

#[test]
fn mixers_and_filters_learn_from_whole_convolutions() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the models");
    let (split, whole) = (folder.path().join("split.onnx"), folder.path().join("whole.onnx"));
    with_a_stream(&split, Widening::Split)?;
    with_a_stream(&whole, Widening::Whole)?;
    let (before, after) = taught(&split, &whole, 5)?;
    assert!(before < 60 && after > 150, "{before}, {after}");
    Ok(())
}

#[test]
fn dense_layers_learn_from_cells_of_convolutions() -> Result<()> {
    let (before, after) = taught(&fixture("digits_mlp.onnx"), &fixture("digits_cnn.onnx"), 3)?;
    assert!(before < 60 && after > 150, "{before}, {after}");
    Ok(())
}

#[test]
fn transposed_convolutions_get_back_what_they_have_lost() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the model");
    let path = folder.path().join("hourglass.onnx");
    with_an_hourglass(&path)?;
    let (before, after) = regained(&path, 3)?;
    assert!(before < 100 && after > 180, "{before}, {after}");
    Ok(())
}

#[test]
fn recurrent_layers_get_back_what_they_have_lost() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the model");
    let path = folder.path().join("sequence.onnx");
    for (cell, direction, reset) in [
        (("LSTM", 4), "forward", 0),
        (("LSTM", 4), "bidirectional", 0),
        (("GRU", 3), "forward", 0),
        (("GRU", 3), "reverse", 1),
        (("RNN", 1), "forward", 0),
    ] {
        with_a_cell(&path, cell, direction, reset)?;
        let (before, after) = regained(&path, 2)?;
        assert!(before < 100 && after > 180, "{cell:?}, {direction}, {reset}: {before}, {after}");
    }
    Ok(())
}

#[test]
fn a_transformer_gets_back_what_it_has_lost() -> Result<()> {
    let (before, after) = regained(&fixture("digits_transformer.onnx"), 10)?;
    assert!(before < 60 && after > 150, "{before}, {after}");
    Ok(())
}
