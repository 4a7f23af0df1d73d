//! Attributes that executors believe without looking: with impossible ones tract 0.23 loops for ages or reads memory that
//! isn't its own. Look at [`check`].

use crate::error::{Error, Result};
use crate::onnx::infer::normalise_axis;
use crate::onnx::{Fact, Node};

const WINDOWED: [&str; 8] =
    ["AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "MaxUnpool", "QLinearConv"];
/// Have channels on the second axis of their first input, where tract looks for them without asking whether it is there.
const CHANNELLED: [&str; 9] = [
    "BatchNormalization",
    "DepthToSpace",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "SpaceToDepth",
];
/// Work along an axis of their first input.
const ALONG: [&str; 11] = [
    "ArgMax",
    "ArgMin",
    "Concat",
    "Gather",
    "GatherElements",
    "LayerNormalization",
    "LpNormalization",
    "RMSNormalization",
    "ScatterElements",
    "Split",
    "TopK",
];
/// The longest window along an axis.
const LONGEST: i64 = 1 << 31;

/// Refuses a node whose attributes can't be, given the rank of its first input where that is known.
pub fn check(node: &Node, rank: Option<usize>) -> Result<()> {
    match node.op.as_str() {
        _ if !node.domain.is_empty() => Ok(()),
        op if ALONG.contains(&op) => check_axis(node, rank),
        op if CHANNELLED.contains(&op) => check_axes(node, 2, rank),
        op if WINDOWED.contains(&op) => check_axes(node, 3, rank).and_then(|()| check_window(node, rank)),
        _ => Ok(()),
    }
}

fn check_axis(node: &Node, rank: Option<usize>) -> Result<()> {
    // A scalar has no last axis either.
    let usual = node.op.ends_with("Normalization").then_some(-1);
    match (node.int("axis").or(usual), rank) {
        (Some(axis), Some(rank)) if normalise_axis(axis, rank).is_none() => {
            Err(Error::node(node, format!("works along axis {axis}, but its input has {rank} axes")))
        }
        _ => Ok(()),
    }
}

fn check_axes(node: &Node, least: usize, rank: Option<usize>) -> Result<()> {
    match rank {
        Some(rank) if rank < least => {
            let what = format!(
                "wants rows, channels and maybe space, {least} axes at least, but its input has {rank}"
            );
            Err(Error::node(node, what))
        }
        _ => Ok(()),
    }
}

/// Kernel, strides and dilations: one a spatial axis, from 1 on; two pads an axis, from 0 on.
fn check_window(node: &Node, rank: Option<usize>) -> Result<()> {
    let mut spatial = rank.map(|rank| rank.saturating_sub(2));
    let lists = [("kernel_shape", 1, 1), ("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2)];
    for (name, least, an_axis) in lists {
        let Some(list) = node.ints(name) else { continue };
        let axes = *spatial.get_or_insert(list.len() / an_axis);
        let fits = axes > 0 && list.len() == axes * an_axis;
        if !fits || !list.iter().all(|v| (least..LONGEST).contains(v)) {
            return Err(Error::node(node, format!("its {name} {list:?} can't be, for {axes} axes of space")));
        }
    }
    Ok(())
}

/// Values up to this size are let through without a look at the memory.
const SMALL: usize = 1 << 28;

/// Refuses a node that makes something larger than the memory there is: executors would ask for it, and end the process.
pub fn check_size(node: &Node, made: &[Fact]) -> Result<()> {
    let largest = made.iter().max_by_key(|fact| fact.bytes()).filter(|fact| fact.bytes() > SMALL);
    let Some(fact) = largest else { return Ok(()) };
    let free = crate::memory::available();
    if fact.bytes() as u64 <= free {
        return Ok(());
    }
    let what =
        format!("makes a value of shape {:?}, but only {} MiB of memory are free", fact.shape, free >> 20);
    Err(Error::node(node, what))
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::onnx::{Node, ValueId};

    #[test]
    fn impossible_attributes_are_refused() {
        let (x, y) = (ValueId::new("x"), ValueId::new("y"));
        let node = |op: &str| Node::new(op, &[&x], &[&y]);
        let pool = |kernel: &[i64]| node("MaxPool").with("kernel_shape", kernel);
        let (square, image) = ([2, 2].as_slice(), Some(4));
        assert!(check(&pool(square).with("pads", vec![0, 0, 1, 1]), image).is_ok());
        assert!(check(&node("Conv"), image).is_ok() && check(&pool(square), None).is_ok());
        assert!(check(&pool(&[]), Some(2)).is_err() && check(&pool(&[]), None).is_err());
        assert!(check(&pool(square), Some(3)).is_err() && check(&pool(&[2, 0]), image).is_err());
        assert!(check(&pool(square).with("strides", vec![1, i64::MAX]), image).is_err());
        assert!(check(&pool(square).with("pads", vec![0, 0, 0, -1]), image).is_err());
        assert!(check(&node("Conv"), Some(2)).is_err() && check(&node("Conv"), None).is_ok());
        let flat = |rank| check(&node("BatchNormalization"), Some(rank));
        assert!(flat(0).is_err() && flat(1).is_err() && flat(2).is_ok());
        assert!(check(&node("LayerNormalization"), Some(0)).is_err());
        let normal = |axis: i64| check(&node("LayerNormalization").with("axis", axis), Some(2));
        assert!(normal(-1).is_ok() && normal(-2).is_ok() && normal(-3).is_err() && normal(2).is_err());
    }
}
