//! Starts that copy: the rivals of an adapter, and the measure of what there is to carry.

use super::networks::Network;
use onnx_merge::Result;
use onnx_merge::onnx::{Graph, Tensor, ValueId, read, save};
use std::path::Path;

/// Whether weight selection has a rule for these two: chains of the same make, without gates.
pub fn select_between(source: Network, target: Network) -> bool {
    use Network::{Hourglass, Recurrent, Residual};
    let other = matches!(source, Residual { .. } | Recurrent { .. } | Hourglass { .. });
    std::mem::discriminant(&source) == std::mem::discriminant(&target) && !other
}

/// The target with every tensor that `donor` has in the same shape; with its head only if all others fit.
pub fn copy(donor: &Graph, target: &Path, out: &Path) -> Result<()> {
    let fits = |name: &ValueId, tensor: &Tensor| {
        donor.initializers.get(name).filter(|found| found.shape() == tensor.shape()).cloned()
    };
    let model = read(target)?.model;
    let all = model.graph.initializers.iter().all(|(name, tensor)| fits(name, tensor).is_some());
    replace(target, out, |name, tensor| {
        fits(name, tensor).filter(|_| all || !name.as_str().starts_with("head"))
    })
}

/// The target with an even selection of the source's rows, columns and layers: Initializing Models with Larger Ones.
///
/// A flattened grid's columns are channel × position, and both are selected from.
pub fn selection(source: &Graph, target: &Path, out: &Path) -> Result<()> {
    let file = read(target)?;
    let layers = |graph: &Graph, kind: &str| {
        graph
            .initializers
            .keys()
            .filter(|n| n.as_str().starts_with(kind) && n.as_str().ends_with("weight"))
            .count()
    };
    let theirs = |name: &str| -> Option<ValueId> {
        let (layer, part) = name.split_once('.')?;
        let kind = layer.trim_end_matches(char::is_numeric);
        let number: usize = layer[kind.len()..].parse().unwrap_or(1);
        let (of, from) = (layers(&file.model.graph, kind), layers(source, kind));
        let layer = match layer == kind {
            true => kind.to_owned(),
            false => format!("{kind}{}", 1 + (number - 1) * from / of.max(1)),
        };
        Some(ValueId::new(format!("{layer}.{part}")))
    };
    let channels = |graph: &Graph| {
        let last = graph.initializers.iter().rfind(|(n, _)| n.as_str().starts_with("conv"));
        last.map_or(1, |(_, bias)| bias.shape()[0])
    };
    let flattened = [channels(source), channels(&file.model.graph)];
    replace(target, out, |name, tensor| {
        let found = source.initializers.get(&theirs(name.as_str())?)?;
        // Other answers want another head.
        let head = name.as_str().starts_with("head") && found.shape()[0] != tensor.shape()[0];
        if found.shape().len() != tensor.shape().len() || head {
            return None;
        }
        let split = |shape: &[usize], channels: usize| match (name.as_str(), shape) {
            ("fc1.weight", &[rows, columns]) => vec![rows, channels, columns / channels],
            _ => shape.to_vec(),
        };
        let values = select(
            &found.to_f64(),
            &split(found.shape(), flattened[0]),
            &split(tensor.shape(), flattened[1]),
        );
        Some(Tensor::from_f64(tensor.dtype(), tensor.shape(), &values))
    })
}

/// Of each axis as many entries as wanted, evenly spread.
fn select(values: &[f64], from: &[usize], to: &[usize]) -> Vec<f64> {
    let count: usize = to.iter().product();
    (0..count)
        .map(|flat| {
            let (mut rest, mut at, mut stride) = (flat, 0, 1);
            for (&n, &m) in from.iter().zip(to).rev() {
                at += (rest % m) * n / m * stride;
                (rest, stride) = (rest / m, stride * n);
            }
            values[at]
        })
        .collect()
}

fn replace(target: &Path, out: &Path, with: impl Fn(&ValueId, &Tensor) -> Option<Tensor>) -> Result<()> {
    let mut model = read(target)?.model;
    for (name, tensor) in &mut model.graph.initializers {
        if let Some(other) = with(name, tensor) {
            *tensor = other;
        }
    }
    save(&model, out)
}
