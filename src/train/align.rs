//! Alignment by activations: where both models read the same inputs, each paired interface's activations in the target
//! should be the mapped activations of the source.
//!
//! The term of the loss is λ · ‖a_t − P a_s‖² / var(P a_s), a mean over interfaces and elements. Its gradient goes to the
//! target's activations, and so to W′, and to P, and so to the maps' parameters; the variance is taken as a constant.
//! It wants neither labels nor a common head.

use super::network::Network;
use crate::error::Result;
use crate::lpka::{Cells, resample::resampling};
use crate::onnx::{Builder, DType, Fact, Facts, Model, Tensor, ValueId};
use crate::params::{InterfaceId, InterfaceKind, Matrix, Pairing, Reading};

/// Something inside a model that can be looked at.
pub trait Show {
    /// Emits float32 rows × channels × positions.
    fn emit(&self, b: &mut Builder) -> ValueId;
}

/// Activations on a grid of positions.
#[derive(Clone)]
pub struct View {
    reading: Reading,
    grid: Vec<usize>,
    /// Whether each cell of the grid counts as a channel of its own, channel by channel.
    cells: bool,
}

impl View {
    /// A reading on a grid of its own, or on another.
    pub fn new(reading: Reading, grid: Vec<usize>) -> Self {
        Self { reading, grid, cells: false }
    }
    /// A reading of which each cell of a grid counts as a channel of its own.
    pub fn of_cells(reading: Reading, grid: Vec<usize>) -> Self {
        Self { reading, grid, cells: true }
    }
    /// Rows, channels and positions.
    fn shape(&self) -> [usize; 3] {
        let (rows, channels, positions) =
            (self.reading.rows, self.reading.channels, self.grid.iter().product::<usize>());
        if self.cells { [rows, channels * positions, 1] } else { [rows, channels, positions] }
    }
}

impl Show for View {
    fn emit(&self, b: &mut Builder) -> ValueId {
        let activations = self.reading.emit(b);
        let mut activations = b.cast(&activations, DType::F32);
        if self.reading.grid != self.grid {
            let by = b.constant(averaging(&self.reading.grid, &self.grid));
            activations = b.matmul(&activations, &by);
        }
        if self.cells { b.reshape(&activations, &self.shape()) } else { activations }
    }
}

/// Positions of one grid as averages of another's: from × to.
fn averaging(from: &[usize], to: &[usize]) -> Tensor {
    let by = resampling(from, to);
    let mut data = vec![0.0; by.data.len()];
    for i in 0..by.rows {
        let sum: f32 = by.row(i).iter().sum();
        for j in 0..by.cols {
            data[j * by.rows + i] = by.at(i, j) / sum;
        }
    }
    Matrix::new(by.cols, by.rows, data).to_tensor()
}

/// An interface of the target that is held against one of a source.
#[derive(Clone)]
pub struct Alignment {
    pub target: InterfaceId,
    pub source: InterfaceId,
    pub ours: View,
    pub theirs: View,
}

impl Alignment {
    /// Channels of the source, cell by cell where these count.
    pub fn channels(&self) -> usize {
        self.theirs.shape()[1]
    }
}

/// Where cells of the source's grids count as channels of their own.
pub fn cells(alignments: &[Alignment]) -> Cells {
    let told_apart = alignments.iter().filter(|a| a.theirs.cells);
    told_apart.map(|a| ((a.target, a.source), a.theirs.grid.clone())).collect()
}

/// The paired hidden interfaces that can be read in both models, seen on the smaller of their grids; where only the source has one,
/// cell by cell.
pub fn alignments(target: &Network, source: &Network, pairing: &Pairing) -> Vec<Alignment> {
    let read = |network: &Network, id: InterfaceId| {
        let hidden = network.params.interface(id).kind == InterfaceKind::Hidden;
        let find = || Reading::find(&network.model.graph, &network.facts, &network.params, id, network.batch);
        hidden.then(find).flatten()
    };
    let of = |&(to, from): &(InterfaceId, InterfaceId)| {
        let (ours, theirs) = (read(target, to)?, read(source, from)?);
        let (ours, theirs) = (ours.clone().folded(&theirs.grid), theirs.folded(&ours.grid));
        let smaller = if theirs.positions() < ours.positions() { &theirs.grid } else { &ours.grid };
        let grid = smaller.clone();
        let cells = if grid.is_empty() { cells_of(&theirs) } else { vec![] };
        let theirs = match cells.is_empty() {
            true => View::new(theirs, grid.clone()),
            false => View::of_cells(theirs, cells),
        };
        Some(Alignment { target: to, source: from, ours: View::new(ours, grid), theirs })
    };
    pairing.interfaces.iter().filter_map(of).collect()
}

/// Most cells that are told apart in an interface.
const MOST_CELLS: usize = 1024;

/// A reading's grid, coarser where there would be too many cells; `[]` for one position.
fn cells_of(reading: &Reading) -> Vec<usize> {
    let mut grid = reading.grid.clone();
    while reading.channels * grid.iter().product::<usize>() > MOST_CELLS {
        let Some(largest) = grid.iter_mut().max().filter(|size| **size > 1) else { break };
        *largest = largest.div_ceil(2);
    }
    if grid.iter().all(|&size| size == 1) { vec![] } else { grid }
}

/// An alignment inside a model step: where its inputs are.
pub struct Term<'a> {
    alignment: &'a Alignment,
    source: ValueId,
    map: Option<ValueId>,
}

/// Name of the step graph's inputs for source activations and for maps.
const ACTIVATIONS: &str = "merge.activations";
const MAP: &str = "merge.map";

impl<'a> Term<'a> {
    /// Declares the input for the source's activations.
    pub fn declare(b: &mut Builder, index: usize, alignment: &'a Alignment) -> Self {
        let [_, channels, positions] = alignment.theirs.shape();
        let rows = alignment.ours.reading.rows;
        let fact = Fact::new(DType::F32, &[rows, channels, positions]);
        let source = b.input(&format!("{ACTIVATIONS}{index}"), fact);
        Self { alignment, source, map: None }
    }
    /// Declares the input for the map; returns it.
    pub fn declare_map(&mut self, b: &mut Builder, index: usize) -> ValueId {
        let shape = [self.alignment.ours.shape()[1], self.alignment.channels()];
        let map = b.input(&format!("{MAP}{index}"), Fact::new(DType::F32, &shape));
        self.map = Some(map.clone());
        map
    }
    /// Emits the term, and the cotangents of the activations and of the mapped activations under it.
    pub fn emit(&self, b: &mut Builder, weight: f64) -> Option<(ValueId, [(ValueId, ValueId); 2])> {
        let ours = self.alignment.ours.emit(b);
        let theirs = b.matmul(self.map.as_ref()?, &self.source);
        let count = b.fact(&ours).len().max(1) as f64;
        let gap = b.sub(&ours, &theirs);
        let over = inverse_variance(b, &theirs);
        let over = b.mul_scalar(&over, weight / count);
        let square = b.mul(&gap, &gap);
        let total = b.sum_all(&square);
        let term = b.mul(&total, &over);
        let twice = b.mul_scalar(&over, 2.0);
        let pull = b.mul(&gap, &twice);
        let push = b.neg(&pull);
        Some((term, [(ours, pull), (theirs, push)]))
    }
}

/// One over the variance of all elements, and nothing where there is none: a source that is dead teaches nothing.
fn inverse_variance(b: &mut Builder, x: &ValueId) -> ValueId {
    let count = b.fact(x).len().max(1) as f64;
    let mean = b.sum_all(x);
    let mean = b.mul_scalar(&mean, 1.0 / count);
    let centred = b.sub(x, &mean);
    let square = b.mul(&centred, &centred);
    let variance = b.sum_all(&square);
    let variance = b.mul_scalar(&variance, 1.0 / count);
    let square = b.mul(&variance, &variance);
    let floor = b.add_scalar(&square, DEAD * DEAD);
    b.div(&variance, &floor)
}

/// Variances about this and below count as none; activations come scaled to those of the untouched target.
const DEAD: f64 = 1e-6;

/// The forward pass of a model with its trainable weights as inputs (after the model's own): its answer, then `views`.
pub fn observed(network: &Network, views: &[&dyn Show]) -> Result<(Model, Facts, Vec<ValueId>)> {
    let (mut b, weights) = freed(network)?;
    b.output_as("merge.answer", &network.head.answer);
    for (i, view) in views.iter().enumerate() {
        let activations = view.emit(&mut b);
        b.output_as(&format!("merge.view{i}"), &activations);
    }
    let (model, facts) = settled(network, b)?;
    Ok((model, facts, weights))
}

/// A model's graph to go on with: its trainable weights are inputs, after its own, and it has no outputs yet.
pub fn freed(network: &Network) -> Result<(Builder, Vec<ValueId>)> {
    let weights = network.weights();
    let mut graph = network.model.graph.clone();
    super::model_step::free_weights(&mut graph, &network.facts, &weights)?;
    let mut facts = network.facts.clone();
    for info in &graph.inputs {
        if let Some(fact) = info.fact() {
            facts.insert(info.id.clone(), fact);
        }
    }
    let mut b = Builder::on(graph, facts);
    b.graph_mut().outputs.clear();
    Ok((b, weights))
}

/// What was begun with [`freed`], with nothing in it that no output needs.
pub fn settled(network: &Network, b: Builder) -> Result<(Model, Facts)> {
    let (mut graph, facts) = b.finish();
    graph.prune();
    let (graph, facts) = crate::autodiff::lower::lower(graph, facts)?;
    Ok((Model { graph, ..network.model.clone() }, facts))
}

/// Standard deviation of all elements.
pub fn deviation(tensor: &Tensor) -> f64 {
    Matrix::new(1, tensor.len(), tensor.to_f32().into_owned()).std() as f64
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::runtime::{Executor, TractExecutor, Value};
    use crate::train::model_step::Objective;
    use crate::train::network::Purpose;
    use std::path::Path;

    const ROWS: usize = 4;

    fn open(name: &str, executor: &dyn Executor) -> Network {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
        Network::open(&path, ROWS, Purpose::default(), executor).expect("a fixture")
    }

    fn noise(shape: &[usize], seed: usize) -> Tensor {
        let count: usize = shape.iter().product();
        let value = |i: usize| ((i + 1) * (2 * seed + 7919) % 1009) as f32 / 1009.0;
        Tensor::f32(shape, &(0..count).map(value).collect::<Vec<_>>())
    }

    /// The alignment step of a pair of fixtures, everything that is fed to it, and the target's activations.
    struct Case {
        program: Box<dyn crate::runtime::Compiled>,
        image: Tensor,
        source: Vec<Tensor>,
        weights: Vec<Tensor>,
        maps: Vec<Tensor>,
        ours: Vec<Tensor>,
    }

    impl Case {
        fn new(target: &str, source: &str) -> Result<Self> {
            let executor = TractExecutor::new(1)?;
            let (target, source) = (open(target, &executor), open(source, &executor));
            let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
            let found = alignments(&target, &source, &pairing);
            let views: Vec<&dyn Show> = found.iter().map(|a| &a.ours as &dyn Show).collect();
            let names = target.weights();
            let step = target.aligned_step(
                &names,
                Objective::AlignmentAlone,
                &found.iter().collect::<Vec<_>>(),
                1.0,
            )?;
            let weights: Vec<Tensor> =
                step.weights.iter().map(|w| target.model.graph.initializers[w].clone()).collect();
            let image = noise(&[ROWS, 1, 8, 8], 1);
            let (model, facts, names) = observed(&target, &views)?;
            let mut feeds = vec![Value::host(image.clone())];
            feeds.extend(names.iter().map(|n| Value::host(target.model.graph.initializers[n].clone())));
            let ours = executor.compile(&model, &facts)?.run(&feeds)?;
            let shape = |v: &View| v.shape();
            Ok(Self {
                program: executor.compile(&step.model, &step.facts)?,
                image,
                source: found.iter().enumerate().map(|(i, a)| noise(&shape(&a.theirs), 5 + i)).collect(),
                weights,
                maps: (found.iter().enumerate())
                    .map(|(i, a)| noise(&[a.ours.shape()[1], a.theirs.shape()[1]], 9 + i))
                    .collect(),
                ours: ours[1..].iter().map(Value::to_host).collect::<Result<_>>()?,
            })
        }
        /// The loss and all gradients.
        fn run(&mut self) -> Result<(f64, Vec<Tensor>)> {
            let feeds =
                std::iter::once(&self.image).chain(&self.source).chain(&self.weights).chain(&self.maps);
            let feeds: Vec<Value> = feeds.map(|t| Value::host(t.clone())).collect();
            let outputs = self.program.run(&feeds)?;
            let gradients = outputs[1..].iter().map(Value::to_host).collect::<Result<_>>()?;
            Ok((outputs[0].scalar()?, gradients))
        }
    }

    /// a_t − P a_s, channel by channel and row by row, and the variance of P a_s.
    fn gaps(ours: &Tensor, map: &Tensor, source: &Tensor) -> (Vec<f64>, f64) {
        let [rows, inn, cells] = source.shape() else { return (vec![], 0.0) };
        let (out, a, p, s) = (map.shape()[0], ours.to_f64(), map.to_f64(), source.to_f64());
        let mut mapped = vec![];
        for r in 0..*rows {
            for c in 0..out {
                for x in 0..*cells {
                    mapped.push((0..*inn).map(|k| p[c * inn + k] * s[(r * inn + k) * cells + x]).sum());
                }
            }
        }
        let n = mapped.len() as f64;
        let mean = mapped.iter().sum::<f64>() / n;
        let variance = mapped.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / n;
        (a.iter().zip(&mapped).map(|(a, m): (&f64, &f64)| a - m).collect(), variance)
    }

    #[test]
    fn the_loss_and_the_gradient_of_the_maps_are_those_of_the_formula() -> Result<()> {
        let mut case = Case::new("digits_small_cnn.onnx", "digits_cnn.onnx")?;
        let (loss, gradients) = case.run()?;
        let terms = case.maps.len() as f64;
        assert_eq!(terms, 3.0);
        let mut expected = 0.0;
        for (i, map) in case.maps.iter().enumerate() {
            let (gap, variance) = gaps(&case.ours[i], map, &case.source[i]);
            let n = gap.len() as f64;
            expected += gap.iter().map(|g| g * g).sum::<f64>() / n / variance / terms;
            let [rows, inn, cells] = case.source[i].shape() else { continue };
            let (out, s) = (map.shape()[0], case.source[i].to_f64());
            let found = gradients[case.weights.len() + i].to_f64();
            for (at, found) in found.iter().enumerate() {
                let (c, k) = (at / inn, at % inn);
                let cell = |r: usize, x: usize| gap[(r * out + c) * cells + x] * s[(r * inn + k) * cells + x];
                let sum: f64 =
                    (0..*rows).flat_map(|r| (0..*cells).map(move |x| (r, x))).map(|(r, x)| cell(r, x)).sum();
                let exact = -2.0 * sum / n / variance / terms;
                assert!((found - exact).abs() < 1e-4 * exact.abs().max(1e-3), "map {i}: {found} {exact}");
            }
        }
        assert!((loss - expected).abs() < 1e-4 * expected, "{loss} {expected}");
        Ok(())
    }

    #[test]
    fn the_gradient_of_the_weights_is_that_of_central_differences() -> Result<()> {
        for target in ["digits_small_cnn.onnx", "digits_transformer.onnx"] {
            let mut case = Case::new(target, "digits_cnn.onnx")?;
            let (_, gradients) = case.run()?;
            let directions: Vec<Tensor> =
                case.weights.iter().enumerate().map(|(i, w)| noise(w.shape(), 40 + i)).collect();
            let moved = |by: f64, weights: &[Tensor]| -> Vec<Tensor> {
                let one = |(w, d): (&Tensor, &Tensor)| {
                    let values: Vec<f64> =
                        w.to_f64().iter().zip(d.to_f64()).map(|(w, d)| w + by * (d - 0.5)).collect();
                    Tensor::from_f64(w.dtype(), w.shape(), &values)
                };
                weights.iter().zip(&directions).map(one).collect()
            };
            let slope: f64 = (gradients.iter().zip(&directions))
                .flat_map(|(g, d)| g.to_f64().into_iter().zip(d.to_f64()))
                .map(|(g, d)| g * (d - 0.5))
                .sum();
            let (original, step) = (case.weights.clone(), 2e-3);
            case.weights = moved(step, &original);
            let above = case.run()?.0;
            case.weights = moved(-step, &original);
            let below = case.run()?.0;
            let measured = (above - below) / (2.0 * step);
            assert!((slope - measured).abs() < 0.02 * slope.abs(), "{target}: {slope} {measured}");
        }
        Ok(())
    }

    #[test]
    fn a_dead_source_pulls_nowhere() -> Result<()> {
        let mut case = Case::new("digits_small_cnn.onnx", "digits_cnn.onnx")?;
        case.source.iter_mut().for_each(|s| *s = Tensor::zeros(DType::F32, s.shape()));
        let (loss, gradients) = case.run()?;
        assert_eq!(loss, 0.0);
        assert!(gradients.iter().all(|g| g.to_f64().iter().all(|v| *v == 0.0)));
        Ok(())
    }
}
