//! Models with a label for each position of a row: taggers, segmentation networks.

use crate::merge::{report, run};
use crate::transcript::Sandbox;
use onnx_merge::onnx::{Builder, DType, Dim, Fact, Model, Tensor, ValueId, ValueInfo, WORKING_OPSET, read};

const QUICK: &str = "-o out.onnx --executor tract --steps 150 --lr 0.05";
const KINDS: usize = 4;
const ROWS: usize = 60;

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729 + 13) % 1009) as f32 / 250.0 - 2.0).collect()
}

/// A model of rows of `words` words, three numbers each, that gives scores of four kinds for each.
fn tagger(words: usize, seed: usize, end: impl FnOnce(&mut Builder, &ValueId)) -> Model {
    let mut b = Builder::new("tagger");
    let x = b.input("x", Fact::new(DType::F32, &[1, words, 3]));
    let hidden: Vec<f32> = numbers(3 * 16, seed).iter().map(|v| 0.3 * v).collect();
    let w = b.initializer("hidden", Tensor::f32(&[3, 16], &hidden));
    let h = b.matmul(&x, &w);
    let h = b.op("Relu", &[&h]);
    let w = b.initializer("head", Tensor::f32(&[16, KINDS], &vec![0.01; 16 * KINDS]));
    let y = b.matmul(&h, &w);
    end(&mut b, &y);
    Model::new(b.finish().0, WORKING_OPSET)
}

fn tags(b: &mut Builder, y: &ValueId) {
    b.output_as("tags", y);
}

/// Words, and the largest of each one's numbers, or that there is no word: rows have one to `words` of them.
fn sentences(words: usize, none: i64) -> (Tensor, Tensor) {
    let x = numbers(ROWS * words * 3, 3);
    let kind = |(place, word): (usize, &[f32])| match place % words > place / words % words {
        true => none,
        false if word.iter().all(|&v| v < 0.0) => 3,
        false => (0..3).reduce(|best, i| if word[i] > word[best] { i } else { best }).unwrap() as i64,
    };
    let kinds: Vec<i64> = x.chunks(3).enumerate().map(kind).collect();
    (Tensor::f32(&[ROWS, words, 3], &x), Tensor::i64(&[ROWS, words], &kinds))
}

fn accuracy(sandbox: &Sandbox, arguments: &str) -> serde_json::Value {
    let said = run(sandbox, &format!("eval {arguments} --executor tract --json")).stdout;
    serde_json::from_slice(&said).unwrap()
}

#[test]
fn one_hot_labels_of_positions_are_classes() {
    let (x, y) = sentences(5, 0);
    let marks: Vec<f32> =
        y.to_i64().iter().flat_map(|&kind| (0..KINDS).map(move |k| f32::from(k as i64 == kind))).collect();
    let marks = Tensor::f32(&[ROWS, 5, KINDS], &marks);
    let sandbox = Sandbox::new().model("m.onnx", &tagger(5, 1, tags));
    let sandbox = sandbox.npz("d.npz", &[("x", &x), ("y", &y)]).npz("hot.npz", &[("x", &x), ("y", &marks)]);
    let of = |data: &str| report(&sandbox, &format!("tune m.onnx {QUICK} --data {data} --val {data}"), 0);
    let [plain, hot] = ["d.npz", "hot.npz"].map(of);
    assert_eq!(hot.metric.name, "accuracy");
    assert_eq!(hot.output.unwrap().sha256, plain.output.unwrap().sha256);
}

#[test]
fn a_tagger_learns_from_the_words_that_there_are() {
    let (x, y) = sentences(5, -100);
    let sandbox = Sandbox::new().model("m.onnx", &tagger(5, 1, tags)).npz("d.npz", &[("x", &x), ("y", &y)]);
    let report = report(&sandbox, &format!("tune m.onnx {QUICK} --data d.npz --val d.npz"), 0);
    assert_eq!(report.metric.name, "accuracy");
    assert!(report.shipped.val > Some(0.9), "{:?}", report.shipped);
    for note in ["the 4 classes lie on axis 2 of output 'tags'", "of the 300 training labels are -100"] {
        assert!(report.notes.iter().any(|n| n.contains(note)), "{note}: {:?}", report.notes);
    }
    let figures = accuracy(&sandbox, "out.onnx --data d.npz");
    let found = figures["accuracy"].as_f64().unwrap();
    assert!((found - report.shipped.val.unwrap()).abs() < 1e-9, "{figures}");
    let words = y.to_i64().iter().filter(|&&kind| kind >= 0).count();
    assert_eq!(figures["labels"].as_u64(), Some(words as u64));
}

#[test]
fn another_label_may_mean_that_there_is_none() {
    let (x, y) = sentences(5, 255);
    Sandbox::new().model("m.onnx", &tagger(5, 1, tags)).npz("d.npz", &[("x", &x), ("y", &y)]).transcript(
        "$ onnx-merge tune m.onnx -o out.onnx --data d.npz --executor tract --steps 2 -q
         error: d.npz: the label at position 1 of row 0 is 255, but the model tells 4 classes apart (0 to 3)
         hint: if 255 means that there is no label, --ignore-label=255 leaves it out
         [exit 3]
         $ onnx-merge eval m.onnx --data d.npz --executor tract --ignore-label 255
         note: the 4 classes lie on axis 2 of output 'tags'
         m.onnx: accuracy [..] %, mean IoU [..] %, cross-entropy [..] (60 rows, [..] labels, output 'tags', [..])",
    );
}

#[test]
fn which_axis_has_the_classes_can_be_said_where_two_fit() {
    let (x, y) = sentences(KINDS, -100);
    let sandbox =
        Sandbox::new().model("m.onnx", &tagger(KINDS, 1, tags)).npz("d.npz", &[("x", &x), ("y", &y)]);
    sandbox.transcript(
        "$ onnx-merge eval m.onnx --data d.npz --executor tract
         note: the 4 classes lie on axis 2 of output 'tags': axis 1 would fit the labels as well (--class-axis 1, if that is meant)
         m.onnx: accuracy [..]
         $ onnx-merge eval m.onnx --data d.npz --executor tract --class-axis 1
         note: the 4 classes lie on axis 1 of output 'tags'
         m.onnx: accuracy [..]
         $ onnx-merge eval m.onnx --data d.npz --executor tract --class-axis -1
         note: the 4 classes lie on axis 2 of output 'tags'
         m.onnx: accuracy [..]
         $ onnx-merge tune m.onnx -o out.onnx --data d.npz --executor tract --class-axis 3
         ...
         error: d.npz: its labels are 4 a row, which are no classes along axis 3 of the model's 4×4 a row
         hint: labels of each position have the answer's shape without the axis of its classes: [..]
         [exit 3]",
    );
    let report = report(&sandbox, &format!("tune m.onnx {QUICK} --class-axis 2 --data d.npz --val d.npz"), 0);
    assert!(report.shipped.val > Some(0.9), "{:?}", report.shipped);
}

#[test]
fn pixels_have_classes_on_the_axis_that_pytorch_has_them_on() {
    // The same words, as a picture of two by three whose channels are their numbers.
    let mut b = Builder::new("segmentation");
    let x = b.input("x", Fact::new(DType::F32, &[1, 3, 2, 3]));
    let hidden: Vec<f32> = numbers(16 * 3, 1).iter().map(|v| 0.3 * v).collect();
    let w = b.initializer("hidden", Tensor::f32(&[16, 3, 1, 1], &hidden));
    let h = b.op("Conv", &[&x, &w]);
    let h = b.op("Relu", &[&h]);
    let w = b.initializer("head", Tensor::f32(&[KINDS, 16, 1, 1], &[0.01; 16 * KINDS]));
    let y = b.op("Conv", &[&h, &w]);
    let y = b.softmax(&y, 1);
    b.output_as("pixels", &y);
    let model = Model::new(b.finish().0, WORKING_OPSET);
    let (words, kinds) = sentences(6, -100);
    let words = words.to_f32();
    let at = |i: usize| (i / 18 * 6 + i % 6) * 3 + i % 18 / 6;
    let pixels: Vec<f32> = (0..ROWS * 18).map(|i| words[at(i)]).collect();
    let sandbox = Sandbox::new().model("m.onnx", &model).npz(
        "d.npz",
        &[("x", &Tensor::f32(&[ROWS, 3, 2, 3], &pixels)), ("y", &kinds.reshaped(&[ROWS, 1, 2, 3]))],
    );
    let report = report(&sandbox, &format!("tune m.onnx {QUICK} --data d.npz --val d.npz"), 0);
    assert!(report.shipped.val > Some(0.9), "{:?}", report.shipped);
    let found = accuracy(&sandbox, "out.onnx --data d.npz")["accuracy"].as_f64().unwrap();
    assert!((found - report.shipped.val.unwrap()).abs() < 1e-9, "{found}");
}

#[test]
fn numbers_of_positions_tell_two_classes_apart() {
    let (x, y) = sentences(5, -100);
    let first: Vec<i64> =
        y.to_i64().iter().map(|&kind| if kind < 0 { kind } else { i64::from(kind == 0) }).collect();
    let mask = |b: &mut Builder, y: &ValueId| {
        let first = b.slice(y, &[0], &[1], &[2]);
        let chance = b.op("Sigmoid", &[&first]);
        b.output_as("first", &chance);
    };
    let sandbox = Sandbox::new()
        .model("m.onnx", &tagger(5, 1, mask))
        .npz("d.npz", &[("x", &x), ("y", &Tensor::i64(&[ROWS, 5], &first))]);
    let report = report(&sandbox, &format!("tune m.onnx {QUICK} --data d.npz --val d.npz"), 0);
    assert_eq!(report.metric.name, "accuracy");
    assert!(report.shipped.val > Some(0.9), "{:?}", report.shipped);
    let found = accuracy(&sandbox, "out.onnx --data d.npz")["accuracy"].as_f64().unwrap();
    assert!((found - report.shipped.val.unwrap()).abs() < 1e-9, "{found}");
}

#[test]
fn one_of_several_outputs_can_be_named() {
    let two = |b: &mut Builder, y: &ValueId| {
        let axes = b.ints(&[1]);
        let topic = b.op_with("ReduceMean", &[y, &axes], &[("keepdims", 0i64.into())]);
        b.output_as("topic", &topic);
        b.output_as("tags", y);
    };
    let (x, y) = sentences(5, -100);
    let sandbox = Sandbox::new().model("m.onnx", &tagger(5, 1, two)).npz("d.npz", &[("x", &x), ("y", &y)]);
    sandbox.transcript(
        "$ onnx-merge tune m.onnx -o out.onnx --data d.npz --executor tract --steps 2 -q
         error: d.npz: its labels have 5 numbers a row, but the model's output has 4
         hint: labels are compared with the first output that has real values for each row, or the one that --of names: [..]
         [exit 3]
         $ onnx-merge tune m.onnx -o out.onnx --data d.npz --executor tract --of nope -q
         error: m.onnx: the model has no output 'nope'
         hint: its outputs are topic, tags
         [exit 2]",
    );
    let report = report(&sandbox, &format!("tune m.onnx {QUICK} --of tags --data d.npz --val d.npz"), 0);
    assert!(report.shipped.val > Some(0.9), "{:?}", report.shipped);
    for option in ["--of", "--output"] {
        let found = accuracy(&sandbox, &format!("out.onnx --data d.npz {option} tags"))["accuracy"].as_f64();
        assert!((found.unwrap() - report.shipped.val.unwrap()).abs() < 1e-9, "{found:?}");
    }
}

#[test]
fn a_tagger_teaches_another_and_none_with_other_kinds() {
    let (x, y) = sentences(5, -100);
    let few = (Tensor::f32(&[6, 5, 3], &x.to_f32()[..90]), Tensor::i64(&[6, 5], &y.to_i64()[..30]));
    let others = |b: &mut Builder, y: &ValueId| {
        let more = b.concat(&[y, y], 2);
        b.output_as("tags", &more);
    };
    let sandbox = Sandbox::new()
        .model("m.onnx", &tagger(5, 1, tags))
        .model("fresh.onnx", &tagger(5, 2, tags))
        .model("others.onnx", &tagger(5, 1, others))
        .npz("d.npz", &[("x", &x), ("y", &y)])
        .npz("few.npz", &[("x", &few.0), ("y", &few.1)]);
    let source = report(
        &sandbox,
        "tune m.onnx -o src.onnx --executor tract --steps 150 --lr 0.05 --data d.npz --val d.npz",
        0,
    );
    assert!(source.shipped.val > Some(0.9), "{:?}", source.shipped);
    let kd = format!("src.onnx fresh.onnx --method kd {QUICK} --data few.npz --unlabelled d.npz --val d.npz");
    let taught = report(&sandbox, &kd, 0);
    let alone = report(
        &sandbox,
        "tune fresh.onnx -o alone.onnx --executor tract --steps 150 --lr 0.05 --data few.npz --val d.npz",
        0,
    );
    assert!(taught.shipped.val > alone.shipped.val, "{:?} {:?}", taught.shipped, alone.shipped);
    sandbox.transcript(
        "$ onnx-merge others.onnx m.onnx --method kd -o out.onnx --executor tract --steps 2 --data d.npz
         ...
         note: the source can't teach by its answers: others.onnx: answers with 40 numbers a row, the target with 20
         ...
         [exit 2]",
    );
}

#[test]
fn gradients_take_a_label_for_each_position() {
    let mut open = tagger(5, 1, tags);
    open.graph.inputs[0] = ValueInfo {
        shape: Some(vec![Dim::Named("rows".into()), Dim::Named("words".into()), Dim::Known(3)]),
        ..open.graph.inputs[0].clone()
    };
    open.graph.outputs[0].shape = None;
    let sandbox = Sandbox::new().model("m.onnx", &open);
    sandbox.transcript(
        "$ onnx-merge grad m.onnx --gradients-only -o g.onnx --executor tract
         note: the classes lie on axis 2 of output 'tags', and each of its other places has a label (--class-axis chooses)
         g.onnx: the loss and the gradients of 2 weights, [..] nodes, open: rows, words
         $ onnx-merge grad m.onnx --gradients-only -o g.onnx --executor tract --class-axis 3
         error: --class-axis 3: output 'tags' has shape [3, 11, 4], whose first axis counts rows
         [exit 2]",
    );
    let graph = read(sandbox.path("g.onnx")).unwrap().model.graph;
    let label = graph.required_inputs().last().unwrap();
    let dims = [Dim::Named("rows".into()), Dim::Named("words".into())];
    assert_eq!((label.id.as_str(), label.shape.as_deref()), ("label", Some(&dims[..])));
}
