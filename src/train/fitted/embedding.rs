//! What a narrower target keeps of a table of the source's, such as an embedding of words: mixtures of its channels.
//!
//! Where nothing nonlinear lies between a table and the layers that read it, no channel is more than a coordinate. With E the entries
//! (channels × entries), C their covariance and W the readers' matrices, what the readers make of entries changes least where
//! V E is kept, k × entries: V = Zᵀ C^(−½), Z the k leading eigenvectors of C^½ (Σ WᵀW) C^½. This is reduced-rank regression of
//! W E on E (Izenman, 1975). Only weights say so: entries count that no example shows.

use crate::lpka::Mixtures;
use crate::onnx::{Graph, Node, Tensor, ValueId};
use crate::params::{InterfaceId, InterfaceUse, Matrix, MatrixView, Pairing, Role, Weight};
use crate::train::network::Network;
use nalgebra::DMatrix;
use std::collections::HashMap;

/// The widest table that is mixed: its covariance is decomposed.
const WIDEST: usize = 1024;
/// Entries that its covariance is taken of.
const ENTRIES: usize = 8192;

/// For paired interfaces that tables alone make, wider in the source, and that both models' layers read as they are: V (target channels × source
/// channels), scaled to the entries' own deviation. `weights` are the source's, by name.
pub fn mixtures(
    target: &Network,
    source: &Network,
    pairing: &Pairing,
    weights: &HashMap<ValueId, Tensor>,
) -> Mixtures {
    let mix = |&(to, from): &(InterfaceId, InterfaceId)| {
        let (ours, theirs) = (target.params.interface(to).channels, source.params.interface(from).channels);
        if ours >= theirs || theirs > WIDEST {
            return None;
        }
        table(target, to).filter(|table| is_read_plainly(target, table))?;
        let table = table(source, from).filter(|table| is_read_plainly(source, table))?;
        let entries = table.view.as_ref()?.matrix_of(weights.get(&table.name)?);
        let readers = readings(source, from, weights)?;
        Some(((to, from), leading(&covariance(&entries)?, &readers, ours)?))
    };
    pairing.interfaces.iter().filter_map(mix).collect()
}

/// The only table that makes an interface, where nothing else does.
fn table(network: &Network, interface: InterfaceId) -> Option<&Weight> {
    let interface = network.params.interface(interface);
    let &[only] = interface.producers.as_slice() else { return None };
    let table = network.params.weight(only);
    (table.role == Role::Embedding && interface.vectors.is_empty()).then_some(table)
}

/// Whether what a table gives reaches matrices only, and only moved, cut, padded or averaged on the way.
fn is_read_plainly(network: &Network, table: &Weight) -> bool {
    let graph = &network.model.graph;
    let consumers = graph.consumers();
    let mut values: Vec<&ValueId> = looked_up(graph, &table.name).collect();
    let mut read = false;
    while let Some(value) = values.pop() {
        if graph.outputs.iter().any(|output| output.id == *value) {
            return false;
        }
        for node in consumers.get(value).into_iter().flatten().map(|&at| &graph.nodes[at]) {
            match node.op.as_str() {
                "Shape" => {}
                "Conv" | "MatMul" | "Gemm" | "LSTM" | "GRU" | "RNN" if node.input(0) == Some(value) => {
                    read = true
                }
                _ if is_passive(node) => values.extend(node.outputs.iter().flatten()),
                _ => return false,
            }
        }
    }
    read
}

fn looked_up<'g>(graph: &'g Graph, table: &'g ValueId) -> impl Iterator<Item = &'g ValueId> {
    let looks = move |node: &&Node| node.is("Gather") && node.input(0) == Some(table);
    graph.nodes.iter().filter(looks).filter_map(|node| node.output(0))
}

fn is_passive(node: &Node) -> bool {
    [
        "AveragePool",
        "Cast",
        "Flatten",
        "GlobalAveragePool",
        "Identity",
        "Pad",
        "ReduceMean",
        "ReduceSum",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
    .iter()
    .any(|op| node.is(op))
}

/// Σ WᵀW over all that read an interface, at every place and tap.
fn readings(
    network: &Network,
    interface: InterfaceId,
    weights: &HashMap<ValueId, Tensor>,
) -> Option<DMatrix<f64>> {
    let channels = network.params.interface(interface).channels;
    let mut sum = DMatrix::zeros(channels, channels);
    for &reader in &network.params.interface(interface).consumers {
        let reader = network.params.weight(reader);
        let view = reader.view.as_ref()?;
        let matrix = view.matrix_of(weights.get(&reader.name)?);
        for used in reader.input.iter().filter(|used| used.interface == interface) {
            for at in (0..used.positions).flat_map(|p| (0..view.tap_count()).map(move |tap| (p, tap))) {
                let part = at_place(&matrix, view, used, at, channels);
                sum += part.transpose() * part;
            }
        }
    }
    Some(sum)
}

/// What a reader does with an interface's channels at one place of its input and one tap: out × channels.
fn at_place(
    matrix: &Matrix,
    view: &MatrixView,
    used: &InterfaceUse,
    (place, tap): (usize, usize),
    channels: usize,
) -> DMatrix<f64> {
    let mut part = DMatrix::zeros(matrix.rows, channels);
    for c in 0..used.channels {
        let column = used.feature(c, place) * view.tap_count() + tap;
        (0..matrix.rows).for_each(|row| part[(row, used.start + c)] = f64::from(matrix.at(row, column)));
    }
    part
}

/// The covariance of a table's entries, or of some of them; `None` where these hold no finite numbers.
fn covariance(table: &Matrix) -> Option<DMatrix<f64>> {
    let step = table.cols.div_ceil(ENTRIES).max(1);
    let count = table.cols.div_ceil(step);
    let mut entries = DMatrix::from_fn(table.rows, count, |c, i| f64::from(table.at(c, i * step)));
    for mut row in entries.row_iter_mut() {
        let mean = row.mean();
        row.add_scalar_mut(-mean);
    }
    let covariance = &entries * entries.transpose() / count.max(1) as f64;
    covariance.iter().all(|v| v.is_finite()).then_some(covariance)
}

/// V of the formula above, with as many rows.
fn leading(covariance: &DMatrix<f64>, readings: &DMatrix<f64>, rows: usize) -> Option<Matrix> {
    let (root, inverse) = (power(covariance, 0.5), power(covariance, -0.5));
    let kept = (&root * readings * &root).symmetric_eigen();
    let mut order: Vec<usize> = (0..kept.eigenvalues.len()).collect();
    order.sort_by(|&a, &b| kept.eigenvalues[b].total_cmp(&kept.eigenvalues[a]));
    let deviation = (covariance.trace() / covariance.nrows().max(1) as f64).sqrt();
    let row = |&at: &usize| kept.eigenvectors.column(at).transpose() * &inverse * deviation;
    let data: Vec<f32> = order
        .iter()
        .take(rows)
        .flat_map(|at| row(at).iter().map(|v| *v as f32).collect::<Vec<_>>())
        .collect();
    let live = data.iter().all(|v| v.is_finite()) && data.iter().any(|v| *v != 0.0);
    live.then(|| Matrix::new(rows, covariance.nrows(), data))
}

/// A symmetric matrix with its eigenvalues raised to a power; what hardly varies is nothing.
fn power(matrix: &DMatrix<f64>, power: f64) -> DMatrix<f64> {
    let parts = matrix.clone().symmetric_eigen();
    let least = 1e-9 * parts.eigenvalues.max();
    let raised = parts.eigenvalues.map(|v| if v > least { v.powf(power) } else { 0.0 });
    &parts.eigenvectors * DMatrix::from_diagonal(&raised) * parts.eigenvectors.transpose()
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::onnx::{Builder, DType, Dim, Fact, Model, WORKING_OPSET, save};
    use crate::runtime::TractExecutor;
    use crate::train::network::Purpose;
    use std::path::Path;

    /// Words, a table, maybe a nonlinearity, a convolution over the words and a head.
    fn reader(path: &Path, channels: usize, bent: bool) -> Result<()> {
        let mut b = Builder::new("reader");
        let number = |i: usize| ((i * 7907) % 1013) as f32 / 1013.0 - 0.5;
        let tensor = |shape: &[usize]| {
            Tensor::f32(shape, &(0..shape.iter().product()).map(number).collect::<Vec<_>>())
        };
        let words = b.input("words", Fact::new(DType::I64, &[1, 7]));
        let table = b.initializer("table", tensor(&[40, channels]));
        let found = b.op("Gather", &[&table, &words]);
        let mut x = b.transpose(&found, &[0, 2, 1]);
        if bent {
            x = b.op("Relu", &[&x]);
        }
        let kernel = b.initializer("kernel", tensor(&[5, channels, 3]));
        let x = b.op_with("Conv", &[&x, &kernel], &[("pads", vec![1i64, 1].into())]);
        let x = b.op("Relu", &[&x]);
        b.set_fact(&x, Fact::new(DType::F32, &[1, 5, 7]));
        let x = b.reshape(&x, &[1, 35]);
        let head = b.initializer("head", tensor(&[35, 2]));
        let answer = b.matmul(&x, &head);
        b.output(&answer);
        let (mut graph, _) = b.finish();
        graph.inputs[0].shape = Some(vec![Dim::Known(1), Dim::Known(7)]);
        save(&Model::new(graph, WORKING_OPSET), path)
    }

    #[test]
    fn tables_are_mixed_where_nothing_bends_what_they_give() -> Result<()> {
        let executor = TractExecutor::new(1)?;
        let folder = tempfile::tempdir().expect("a folder for the models");
        let open = |name: &str, channels: usize, bent: bool| {
            let path = folder.path().join(name);
            reader(&path, channels, bent)?;
            Network::open(&path, 4, Purpose::default(), &executor)
        };
        let (wide, narrow, bent) =
            (open("wide.onnx", 6, false)?, open("narrow.onnx", 2, false)?, open("bent.onnx", 6, true)?);
        let found = |target: &Network, source: &Network| -> Result<Vec<(usize, usize)>> {
            let pairing = Pairing::automatic(&target.params, &source.params, &[])?;
            let weights = source.model.graph.initializers.clone().into_iter().collect();
            let all = mixtures(target, source, &pairing, &weights);
            Ok(all.values().map(|mixture| (mixture.rows, mixture.cols)).collect())
        };
        assert_eq!(found(&narrow, &wide)?, [(2, 6)]);
        assert!(found(&narrow, &bent)?.is_empty() && found(&wide, &narrow)?.is_empty());
        Ok(())
    }

    /// Entries vary in four directions, readers look at two of them.
    #[test]
    fn what_readers_look_at_is_kept() {
        let number = |i: usize, j: usize| ((i * 7907 + j * 104_729) % 1013) as f64 / 1013.0 - 0.5;
        let entries = DMatrix::from_fn(4, 50, |i, j| (4 - i) as f64 * number(i, j));
        let turn = DMatrix::from_fn(4, 4, |i, j| number(i + 3, j + 5)).qr().q();
        let looks = DMatrix::from_fn(3, 4, |i, j| if j < 2 { number(i, j + 9) } else { 0.0 });
        // The two that vary least, in other coordinates.
        let swapped = DMatrix::from_fn(4, 50, |i, j| entries[(3 - i, j)]);
        let (table, reader) = (&turn * swapped, looks * turn.transpose());
        let stored = Matrix::new(4, 50, table.transpose().iter().map(|v| *v as f32).collect());
        let mixture = leading(&covariance(&stored).unwrap(), &(reader.transpose() * &reader), 2).unwrap();
        let kept = DMatrix::from_row_iterator(2, 4, mixture.data.iter().map(|v| f64::from(*v))) * &table;
        // What the readers make of the entries follows from what was kept.
        let wanted = &reader * &table;
        let gram = (&kept * kept.transpose()).try_inverse().unwrap();
        let left = &wanted - &wanted * kept.transpose() * gram * &kept;
        assert!(left.norm() < 0.02 * wanted.norm(), "{} of {}", left.norm(), wanted.norm());
    }
}
