//! Inputs made up where there are no data: smooth noise, most of it moved to where the source is sure of its answer.
//!
//! Such inputs can carry the source's knowledge into the target, but nothing measured on them says how good the target is
//! on real ones.

use super::datasets::DataSets;
use super::loss;
use super::network::{Network, Purpose};
use super::ranks::Ranks;
use super::schedule::generator;
use super::{Event, Observer, TrainConfig};
use crate::autodiff;
use crate::data::{Column, DataOptions, Dataset, Layout};
use crate::error::{Error, Result};
use crate::lpka::resample::resampling;
use crate::onnx::{Builder, DType, Fact, Tensor, ValueId};
use crate::runtime::{Compiled, Executor, Value};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Steps an arm takes on made-up inputs, unless the user says otherwise. After a few hundred the target is worse than it
/// was (docs/transfer.md): the source's answers have replaced what it knew, but not yet well enough.
pub const DEFAULT_STEPS: usize = 1000;

const TRAIN_ROWS: usize = 1024;
const VAL_ROWS: usize = 256;
/// Most steps towards the source's certainty; each batch takes a share of them, so that the inputs differ in how far they go.
const STEPS: usize = 40;
/// How far a value in 0…1 moves in a step.
const RATE: f32 = 0.05;
/// Weight of the difference of neighbouring pixels.
const SMOOTHNESS: f64 = 0.5;
const STREAM: u64 = 4;

/// Makes up training and validation inputs for `source`, with values in 0…1 before `options` are applied.
///
/// # Errors
/// A source whose inputs can't be made up: whole numbers (such as words), or sizes that its file leaves open.
pub fn invent(
    source: &Path,
    options: &DataOptions,
    config: &TrainConfig,
    (executor, ranks): (&dyn Executor, &Ranks),
    observer: &mut dyn Observer,
) -> Result<DataSets> {
    observer.event(&Event::Phase("inventing"));
    let network = {
        let of = config.src_of.as_deref();
        Network::open(source, config.batch.max(1), Purpose { of, ..Purpose::default() }, executor)?
    };
    if let Some((id, fact)) = network.inputs.iter().find(|(_, fact)| !fact.dtype.is_float()) {
        let what = format!("takes {} at its input '{id}', which can't be made up", fact.dtype);
        return Err(Error::model(source, what).hint("give data, with or without labels: --data FILE"));
    }
    let mut random = generator(config.seed, STREAM, 0);
    let mut certainty = match Certainty::of(&network, executor) {
        Ok(program) => Some(program),
        Err(why) => {
            observer.event(&Event::Note(&format!("the made-up inputs stay noise: {why}")));
            None
        }
    };
    let mut columns: Vec<Vec<f32>> = network.inputs.iter().map(|_| vec![]).collect();
    let batches = (TRAIN_ROWS + VAL_ROWS).div_ceil(network.batch);
    for batch in 0..batches {
        let mut rows: Vec<Vec<f32>> =
            network.inputs.iter().map(|(_, fact)| noise(&fact.shape, network.batch, &mut random)).collect();
        if let Some(certainty) = certainty.as_mut().filter(|_| batch % 4 != 3) {
            let steps = random.random_range(STEPS / 4..=STEPS);
            certainty.seek(&network, &mut rows, options, steps, batch)?;
        }
        columns.iter_mut().zip(rows).for_each(|(column, rows)| column.extend(rows));
    }
    // Where they were sought with other rounding, they have gone elsewhere.
    columns.iter_mut().for_each(|column| *column = ranks.first_floats(column));
    let part = |from: usize, count: usize| dataset(&network, &columns, from, count, options);
    Ok(DataSets {
        train: part(0, TRAIN_ROWS)?,
        val: Some(part(TRAIN_ROWS, VAL_ROWS)?),
        test: None,
        unlabelled: None,
        made_of: vec![],
    })
}

fn dataset(
    network: &Network,
    columns: &[Vec<f32>],
    from: usize,
    count: usize,
    options: &DataOptions,
) -> Result<Dataset> {
    let column = |((id, fact), values): (&(ValueId, Fact), &Vec<f32>)| {
        let shape = [&[count], &fact.shape[1..]].concat();
        let width = fact.shape[1..].iter().product::<usize>();
        let values = Tensor::f32(&shape, &values[from * width..(from + count) * width]);
        Column { name: id.to_string(), values }
    };
    let mut dataset = Dataset::new(network.inputs.iter().zip(columns).map(column).collect(), None)?;
    dataset.options = options.clone();
    dataset.path = "made-up inputs".into();
    Ok(dataset)
}

/// Rows of values in 0…1: for images blobs of random size and contrast, else independent numbers.
fn noise(shape: &[usize], rows: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    let width: usize = shape.iter().skip(1).product();
    let [.., h, w] = *shape else { return (0..rows * width).map(|_| random.random()).collect() };
    if shape.len() < 4 || h < 4 || w < 4 {
        return (0..rows * width).map(|_| random.random()).collect();
    }
    let mut all = Vec::with_capacity(rows * width);
    for _ in 0..rows {
        let cells = random.random_range(2..=6usize.min(h).min(w));
        let by = resampling(&[cells, cells], &[h, w]);
        let (middle, contrast) = (random.random_range(0.3..0.7f32), random.random_range(1.0..4.0f32));
        for _ in 0..width / (h * w) {
            let coarse: Vec<f32> = (0..cells * cells).map(|_| random.random()).collect();
            for pixel in 0..h * w {
                let value: f32 = by.row(pixel).iter().zip(&coarse).map(|(share, v)| share * v).sum();
                all.push((0.5 + contrast * (value - middle)).clamp(0.0, 1.0));
            }
        }
    }
    all
}

/// The gradient, with respect to its inputs, of how unsure the source is of given classes.
struct Certainty {
    program: Box<dyn Compiled>,
    layout: Layout,
}

impl Certainty {
    fn of(network: &Network, executor: &dyn Executor) -> Result<Self> {
        let layout = network.head.layout;
        if layout.classes < 2 {
            return Err(Error::model(&network.file.path, "answers with a single number, not with classes"));
        }
        let mut b = Builder::on(network.model.graph.clone(), network.facts.clone());
        let inputs: Vec<ValueId> = network.inputs.iter().map(|(id, _)| id.clone()).collect();
        b.graph_mut().outputs.clear();
        b.set_scope("certainty");
        let labels = layout.label_shape(network.batch);
        let labels = b.input("certainty.labels", Fact::new(DType::I64, &labels));
        let answer = b.reshape(&network.head.answer, &layout.shape(network.batch));
        let answer = b.cast(&answer, DType::F32);
        let mut total = loss::cross_entropy(&mut b, &answer, &labels, None);
        for input in &inputs {
            if let Some(rough) = roughness(&mut b, input) {
                let rough = b.mul_scalar(&rough, SMOOTHNESS);
                total = b.add(&total, &rough);
            }
        }
        let one = b.scalar_like(&total, 1.0);
        let gradients = autodiff::backward(&mut b, &[(total, one)], &inputs)?;
        for input in &inputs {
            let gradient = match gradients.get(input) {
                Some(gradient) => gradient.clone(),
                None => b.zeros_like(input),
            };
            b.output_as(&format!("certainty.{input}"), &gradient);
        }
        let (mut graph, facts) = b.finish();
        graph.prune();
        let (graph, facts) = autodiff::lower::lower(graph, facts)?;
        let mut model = network.model.clone();
        model.graph = graph;
        Ok(Self { program: executor.compile(&model, &facts)?, layout })
    }

    /// Moves a batch of rows to where the source is surer, each to a class of its own (or classes from there on), by the direction of Adam.
    fn seek(
        &mut self,
        network: &Network,
        rows: &mut [Vec<f32>],
        options: &DataOptions,
        steps: usize,
        batch: usize,
    ) -> Result<()> {
        let declared: Vec<_> = network.file.model.graph.required_inputs().cloned().collect();
        let picked: Vec<usize> = (0..network.batch).collect();
        let positions = self.layout.positions();
        let class =
            |i: usize| ((batch * network.batch + i / positions + i % positions) % self.layout.classes) as i64;
        let labels: Vec<i64> = (0..network.batch * positions).map(class).collect();
        let labels = Tensor::i64(&self.layout.label_shape(network.batch), &labels);
        let mut moments: Vec<Vec<(f32, f32)>> = rows.iter().map(|r| vec![(0.0, 0.0); r.len()]).collect();
        for step in 1..=steps {
            let bound = dataset(network, rows, 0, network.batch, options)?.bind(&declared)?;
            let inputs = bound.batch_as(&picked, network.batch, &network.inputs)?;
            let mut feeds: Vec<Value> = inputs.into_iter().map(Value::host).collect();
            feeds.push(Value::host(labels.clone()));
            let gradients = self.program.run(&feeds)?;
            let unbiased = |beta: f32| 1.0 / (1.0 - beta.powi(step as i32));
            for ((row, moments), gradient) in rows.iter_mut().zip(&mut moments).zip(&gradients) {
                let gradient = gradient.to_host()?;
                for ((x, (m, v)), g) in row.iter_mut().zip(moments).zip(gradient.to_f32().iter()) {
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.99 * *v + 0.01 * g * g;
                    let pull = *m * unbiased(0.9) / ((*v * unbiased(0.99)).sqrt() + 1e-12);
                    *x = (*x - RATE * pull).clamp(0.0, 1.0);
                }
            }
        }
        Ok(())
    }
}

/// The mean squared difference of neighbours along the last two axes of an image.
fn roughness(b: &mut Builder, x: &ValueId) -> Option<ValueId> {
    let shape = b.shape(x);
    if shape.len() < 4 || shape[shape.len() - 2..].iter().any(|&d| d < 4) {
        return None;
    }
    let mut sum: Option<ValueId> = None;
    for axis in shape.len() - 2..shape.len() {
        let (size, axis) = (shape[axis] as i64, axis as i64);
        let (left, right) = (b.slice(x, &[0], &[size - 1], &[axis]), b.slice(x, &[1], &[size], &[axis]));
        let mean = loss::mean_squared_error(b, &left, &right);
        let mean = b.cast(&mean, DType::F32);
        sum = Some(match sum {
            Some(sum) => b.add(&sum, &mean),
            None => mean,
        });
    }
    sum
}
