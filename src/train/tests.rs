//! Losses over labels of positions, some of which don't count: against the formula, and the same however a batch is cut.

use super::TrainConfig;
use super::batches::Batches;
use super::examples::{Data, Examples};
use super::fit::LossProgram;
use super::loss::{Counting, cross_entropy, distillation};
use super::model_step::Objective;
use super::network::{Network, Purpose};
use super::ranks::Ranks;
use super::session::Split;
use crate::autodiff;
use crate::data::{Column, Dataset, IGNORED, Labels, Layout, Usages};
use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Model, Tensor, ValueId, WORKING_OPSET, save};
use crate::runtime::{Executor, TractExecutor, Value};
use std::path::Path;

/// Numbers that look random.
fn numbers(count: usize, seed: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729 + 13) % 1009) as f64 / 250.0 - 2.0).collect()
}

/// A loss of logits (rows × layout) and its gradient, as the graph has them.
fn measured(
    layout: Layout,
    rows: usize,
    logits: &[f64],
    labels: &[i64],
    emit: impl Fn(&mut Builder, &ValueId, &ValueId) -> ValueId,
) -> Result<(f64, Vec<f64>)> {
    let mut b = Builder::new("loss");
    let z = b.input("z", Fact::new(DType::F64, &layout.shape(rows)));
    let y = b.input("y", Fact::new(DType::I64, &layout.label_shape(rows)));
    let loss = emit(&mut b, &z, &y);
    let one = b.scalar_like(&loss, 1.0);
    let gradient = autodiff::backward(&mut b, &[(loss.clone(), one)], std::slice::from_ref(&z))?[&z].clone();
    b.output_as("loss", &loss);
    b.output_as("gradient", &gradient);
    let (mut graph, facts) = b.finish();
    graph.prune();
    let (graph, facts) = autodiff::lower::lower(graph, facts)?;
    let mut program = TractExecutor::new(1)?.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    let feeds = [
        Value::host(Tensor::f64(&layout.shape(rows), logits)),
        Value::host(Tensor::i64(&layout.label_shape(rows), labels)),
    ];
    let outputs = program.run(&feeds)?;
    Ok((outputs[0].scalar()?, outputs[1].to_host()?.to_f64()))
}

/// log softmax of the scores of one position.
fn log_chances(layout: Layout, row: &[f64], position: usize, temperature: f64) -> Vec<f64> {
    let (outer, inner) = (position / layout.after, position % layout.after);
    let at = |class: usize| row[(outer * layout.classes + class) * layout.after + inner] / temperature;
    let total: f64 = (0..layout.classes).map(|class| at(class).exp()).sum();
    (0..layout.classes).map(|class| at(class) - total.ln()).collect()
}

/// What `of` makes of the scores of each position that counts, on average.
fn mean(layout: Layout, labels: &[i64], of: impl Fn(usize, usize, i64) -> f64) -> f64 {
    let places = labels.iter().enumerate().filter(|(_, label)| **label != IGNORED);
    let terms: Vec<f64> = places
        .map(|(place, &label)| of(place / layout.positions(), place % layout.positions(), label))
        .collect();
    terms.iter().sum::<f64>() / terms.len() as f64
}

/// Central differences.
fn slopes(at: &[f64], of: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let moved = |i: usize, by: f64| {
        let mut at = at.to_vec();
        at[i] += by;
        of(&at)
    };
    (0..at.len()).map(|i| (moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5).collect()
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() < 1e-8, "{i}: {f} where {e} is expected");
    }
}

const LAYOUTS: [Layout; 4] = [
    Layout { before: 1, classes: 4, after: 1 },
    Layout { before: 3, classes: 4, after: 1 },
    Layout { before: 1, classes: 4, after: 6 },
    Layout { before: 2, classes: 3, after: 5 },
];
const ROWS: usize = 3;

/// Labels of which every third is none.
fn labels(layout: Layout) -> Vec<i64> {
    let label = |i: usize| if i % 3 == 1 { IGNORED } else { ((i * 5 + i / 4) % layout.classes) as i64 };
    (0..ROWS * layout.positions()).map(label).collect()
}

#[test]
fn cross_entropy_is_the_mean_over_labels_that_count() -> Result<()> {
    for layout in LAYOUTS {
        let (width, labels) = (layout.width(), labels(layout));
        let expected = |z: &[f64]| {
            mean(layout, &labels, |row, position, label| {
                -log_chances(layout, &z[row * width..][..width], position, 1.0)[label as usize]
            })
        };
        let z = numbers(ROWS * width, 1);
        let (loss, gradient) = measured(layout, ROWS, &z, &labels, |b, z, y| {
            let counting = Counting::new(b, z, y, IGNORED, None);
            cross_entropy(b, z, y, Some(&counting))
        })?;
        close(&[loss], &[expected(&z)]);
        close(&gradient, &slopes(&z, expected));
        // Where all count, the plain mean is the same.
        let all: Vec<i64> = labels.iter().map(|&label| label.max(0)).collect();
        let plain = measured(layout, ROWS, &z, &all, |b, z, y| cross_entropy(b, z, y, None))?;
        let counted = measured(layout, ROWS, &z, &all, |b, z, y| {
            let counting = Counting::new(b, z, y, IGNORED, None);
            cross_entropy(b, z, y, Some(&counting))
        })?;
        close(&[plain.0], &[counted.0]);
        close(&plain.1, &counted.1);
    }
    Ok(())
}

#[test]
fn distillation_is_the_mean_divergence_over_labels_that_count() -> Result<()> {
    const T: f64 = 2.5;
    for layout in LAYOUTS {
        let (width, labels) = (layout.width(), labels(layout));
        let teacher = numbers(ROWS * width, 9);
        let divergence = |z: &[f64], row: usize, position: usize| {
            let [p, q] = [z, &teacher].map(|z| log_chances(layout, &z[row * width..][..width], position, T));
            T * T * q.iter().zip(&p).map(|(q, p)| q.exp() * (q - p)).sum::<f64>()
        };
        let all = vec![0; labels.len()];
        for (truth, counts) in [(&labels, true), (&all, false)] {
            let expected = |z: &[f64]| mean(layout, truth, |row, position, _| divergence(z, row, position));
            let z = numbers(ROWS * width, 4);
            let (loss, gradient) = measured(layout, ROWS, &z, truth, |b, z, y| {
                let teacher = b.constant(Tensor::f64(&layout.shape(ROWS), &teacher));
                let counting = counts.then(|| Counting::new(b, z, y, IGNORED, None));
                distillation(b, z, &teacher, T, counting.as_ref())
            })?;
            close(&[loss], &[expected(&z)]);
            close(&gradient, &slopes(&z, expected));
        }
    }
    Ok(())
}

#[test]
fn what_does_not_count_may_be_infinite_and_nothing_may_count() -> Result<()> {
    let layout = Layout::rows(2);
    let emit = |b: &mut Builder, z: &ValueId, y: &ValueId| {
        let counting = Counting::new(b, z, y, IGNORED, None);
        cross_entropy(b, z, y, Some(&counting))
    };
    let z = [f64::NEG_INFINITY, 0.0, 1.0, 1.0];
    let (loss, gradient) = measured(layout, 2, &z, &[IGNORED, 0], emit)?;
    close(&[loss], &[2f64.ln()]);
    close(&gradient, &[0.0, 0.0, -0.5, 0.5]);
    let (loss, gradient) = measured(layout, 2, &z, &[IGNORED, IGNORED], emit)?;
    close(&[loss], &[0.0]);
    close(&gradient, &[0.0; 4]);
    Ok(())
}

/// A tagger: of each of four words (three numbers each) one of five kinds.
fn tagger(path: &Path) -> Result<()> {
    let mut b = Builder::new("tagger");
    let x = b.input("x", Fact::new(DType::F32, &[1, 4, 3]));
    let single = |values: Vec<f64>| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let w = b.initializer("w", Tensor::f32(&[3, 5], &single(numbers(15, 2))));
    let y = b.matmul(&x, &w);
    b.output_as("y", &y);
    save(&Model::new(b.finish().0, WORKING_OPSET), path)
}

/// Eight sentences, of one to four words that count.
fn sentences() -> Dataset {
    let x: Vec<f32> = numbers(8 * 12, 5).iter().map(|&v| v as f32).collect();
    let values = Tensor::f32(&[8, 4, 3], &x);
    let tags: Vec<i64> =
        (0..32).map(|i| if i % 4 > i / 4 % 4 { IGNORED } else { (i * 3 % 5) as i64 }).collect();
    let labels = Labels::from_tensor(Path::new("d"), "y", &Tensor::i64(&[8, 4], &tags)).unwrap();
    Dataset::new(vec![Column { name: "x".into(), values }], Some(labels)).unwrap()
}

/// Loss and gradient of one step over eight rows, in runs of `rows` each.
fn step(path: &Path, data: &Dataset, rows: usize) -> Result<Vec<f64>> {
    let executor = TractExecutor::new(1)?;
    let mut network = Network::open(path, rows, Purpose::on(data), &executor)?;
    let data = Data { train: data, val: Some(data), test: None, unlabelled: None, made_of: &[] };
    let mut examples = Examples::new(data, &network.file.model.graph, 0)?;
    let layout = examples.class_placement(&network.head.known())?.layout;
    network.lay_out(layout);
    let ignores = examples.use_classes(layout)?;
    assert!(ignores);
    let objective = Objective::Classes { layout, ignores };
    let model_step = network.step(&["w".into()], objective)?;
    let mut program = LossProgram::new(&model_step, &["w".into()], &executor, true)?;
    let config = TrainConfig { batch: 8, ..TrainConfig::default() };
    let ranks = Ranks::default();
    let mut batches = Batches::new(&examples, &network, objective, vec![], &config, (0, &ranks));
    let weights = [Value::host(network.model.graph.initializers[&ValueId::new("w")].clone())];
    let feeds = batches.step(0)?;
    assert_eq!(feeds.len(), 8 / rows);
    let done = program.run(feeds, &weights, None)?;
    Ok(std::iter::once(done.loss).chain(done.gradients[0].to_host()?.to_f64()).collect())
}

#[test]
fn a_batch_that_is_cut_has_the_gradient_of_the_whole() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tagger.onnx");
    tagger(&path)?;
    let data = sentences();
    let whole = step(&path, &data, 8)?;
    for rows in [4, 2, 1] {
        for (i, (cut, whole)) in step(&path, &data, rows)?.iter().zip(&whole).enumerate() {
            assert!((cut - whole).abs() < 1e-6, "{i}: {cut} in runs of {rows} rows, {whole} in one");
        }
    }
    Ok(())
}

/// With a fold go its rows and those that are made of them; then all come back.
#[test]
fn a_fold_leaves_nothing_of_its_rows_behind() -> Result<()> {
    let picture = |i: usize| [i as f32; 64];
    let values = Tensor::f32(&[12, 1, 8, 8], &(0..12).flat_map(picture).collect::<Vec<f32>>());
    let classes: Vec<i64> = (0..12).map(|i| i % 3).collect();
    let labels = Labels::from_tensor(Path::new("d"), "y", &Tensor::i64(&[12], &classes)).unwrap();
    let train = Dataset::new(vec![Column { name: "x".into(), values }], Some(labels))?;
    let made = train.make_rows(&(0..12).collect::<Vec<_>>(), 40, &Usages::new(), 1).unwrap();
    let mut b = Builder::new("reader");
    let x = b.input("x", Fact::new(DType::F32, &[4, 1, 8, 8]));
    let y = b.add(&x, &x);
    b.output_as("y", &y);
    let data = Data {
        train: &train,
        val: Some(&train),
        test: None,
        unlabelled: Some(&made.dataset),
        made_of: &made.of,
    };
    let mut examples = Examples::new(data, &b.finish().0, 0)?;
    examples.use_classes(Layout::rows(3))?;
    let rows =
        |examples: &Examples, split| examples.places(split, &(0..examples.rows(split)).collect::<Vec<_>>());
    let folds = examples.folds(2);
    assert_eq!(folds, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]);
    for fold in &folds {
        assert!(examples.leave_out(fold));
        assert_eq!(rows(&examples, Split::HeldOut), *fold);
        assert!(rows(&examples, Split::Train).iter().all(|row| !fold.contains(row)));
        let left = rows(&examples, Split::Unlabelled);
        let apart = |row: &usize| made.of[*row].iter().all(|one| !fold.contains(one));
        assert_eq!(left, (0..40).filter(apart).collect::<Vec<_>>());
        assert!(!left.is_empty());
        examples.take_back();
        assert_eq!((rows(&examples, Split::Train), examples.rows(Split::HeldOut)), ((0..12).collect(), 0));
        assert_eq!(examples.rows(Split::Unlabelled), 40);
    }
    assert!(!examples.leave_out(&(0..12).collect::<Vec<_>>()));
    Ok(())
}
