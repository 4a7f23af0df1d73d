//! Where the activations of an interface can be read: the value that a matrix of the next layer takes in.
//!
//! That is the last value before the channels are mixed again: after bias, normalisation, nonlinearity and pooling.

use super::{InterfaceId, ParamGraph, Role, Weight};
use crate::onnx::{Builder, Facts, Graph, Node, ValueId};
use std::collections::HashSet;

/// A value that holds an interface's activations, and how they lie in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Reading {
    pub value: ValueId,
    pub rows: usize,
    pub channels: usize,
    /// Sizes of what lies beside the channels: height and width, or a sequence; empty for a single position.
    pub grid: Vec<usize>,
    channels_last: bool,
}

impl Reading {
    /// Finds where `interface` can be read in `graph`, which holds `rows` rows. `None` where no consumer takes all of its
    /// channels in an order that is understood.
    pub fn find(
        graph: &Graph,
        facts: &Facts,
        params: &ParamGraph,
        interface: InterfaceId,
        rows: usize,
    ) -> Option<Self> {
        let consumers = params.interface(interface).consumers.iter().map(|&id| params.weight(id));
        consumers.filter_map(|weight| Self::of_consumer(graph, facts, params, weight, rows)).next()
    }

    fn of_consumer(
        graph: &Graph,
        facts: &Facts,
        params: &ParamGraph,
        weight: &Weight,
        rows: usize,
    ) -> Option<Self> {
        let part = weight.input_use()?;
        let channels = params.interface(part.interface).channels;
        if (part.start, part.offset, part.channels) != (0, 0, channels) {
            return None;
        }
        let value = data_of(graph, weight)?;
        let shape = &facts.get(&value)?.shape;
        let count: usize = shape.iter().product();
        let positions = count / (rows * channels).max(1);
        if count == 0 || positions * rows * channels != count {
            return None;
        }
        let of_grid = |grid: &[usize]| -> Vec<usize> { if positions == 1 { vec![] } else { grid.to_vec() } };
        let convolves = matches!(weight.role, Role::Conv | Role::DepthwiseConv | Role::ConvTranspose);
        let (grid, channels_last) = if convolves {
            (shape.len() > 2 && shape[0] == rows && shape[1] == channels)
                .then(|| (of_grid(&shape[2..]), false))?
        } else if part.positions == 1 {
            (shape.last() == Some(&channels)).then(|| (of_grid(&[positions]), true))?
        } else if part.positions == positions && shape.last() == Some(&part.len()) {
            let ordered = part.is_channel_major() || part.is_position_major();
            ordered.then(|| (of_grid(&part.grid), !part.is_channel_major()))?
        } else {
            return None;
        };
        Some(Self { value, rows, channels, grid, channels_last })
    }

    /// A value that holds `channels` channels on its axis 1, or on its last.
    pub fn at(
        value: ValueId,
        facts: &Facts,
        rows: usize,
        channels: usize,
        channels_last: bool,
    ) -> Option<Self> {
        let shape = &facts.get(&value)?.shape;
        let (&first, rest) = shape.split_first()?;
        let (&found, grid) = if channels_last { rest.split_last()? } else { rest.split_first()? };
        let grid = if grid.iter().product::<usize>() == 1 { vec![] } else { grid.to_vec() };
        ((first, found) == (rows, channels)).then_some(Self { value, rows, channels, grid, channels_last })
    }

    pub fn positions(&self) -> usize {
        self.grid.iter().product()
    }

    /// The same, its positions seen as an image's, line by line, where they stand in one line and `grid` is an image's whose proportions they make: so a
    /// transformer's patches meet a convolution's picture.
    pub fn folded(mut self, grid: &[usize]) -> Self {
        if let (&[count], &[height, width]) = (self.grid.as_slice(), grid) {
            let fits = |lines: &usize| count % lines == 0 && lines * width == count / lines * height;
            if let Some(lines) = (1..=count).find(fits) {
                self.grid = vec![lines, count / lines];
            }
        }
        self
    }

    /// Emits the activations as rows × channels × positions.
    pub fn emit(&self, b: &mut Builder) -> ValueId {
        let (rows, channels, positions) = (self.rows, self.channels, self.positions());
        match self.channels_last {
            false => b.reshape(&self.value, &[rows, channels, positions]),
            true => {
                let cells = b.reshape(&self.value, &[rows, positions, channels]);
                b.transpose(&cells, &[0, 2, 1])
            }
        }
    }
}

/// What the node that uses `weight` applies it to.
fn data_of(graph: &Graph, weight: &Weight) -> Option<ValueId> {
    node_of(graph, weight)?.input(0).cloned()
}

/// The node that applies `weight` to data.
pub(super) fn node_of<'a>(graph: &'a Graph, weight: &Weight) -> Option<&'a Node> {
    let mut forms: HashSet<&ValueId> = HashSet::from([&weight.name]);
    for node in &graph.nodes {
        let at = node.inputs.iter().position(|i| i.as_ref().is_some_and(|i| forms.contains(i)));
        match (at, node.op.as_str()) {
            (Some(0), "Transpose" | "Cast" | "Identity") => forms.extend(node.outputs.iter().flatten()),
            (Some(1), "Conv" | "ConvTranspose" | "MatMul") => return Some(node),
            (Some(1), "Gemm") if !transposes_data(node) => return Some(node),
            _ => {}
        }
    }
    None
}

fn transposes_data(node: &Node) -> bool {
    node.int("transA").unwrap_or(0) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_patches_is_an_image_of_the_same_proportions() {
        let on = |grid: &[usize]| Reading {
            value: ValueId::new("x"),
            rows: 1,
            channels: 1,
            grid: grid.to_vec(),
            channels_last: true,
        };
        let folded = |count: usize, grid: &[usize]| on(&[count]).folded(grid).grid;
        assert_eq!(folded(16, &[8, 8]), [4, 4]);
        assert_eq!(folded(8, &[3, 6]), [2, 4]);
        // A token more, for the class; and what is no image.
        assert_eq!(folded(17, &[8, 8]), [17]);
        assert_eq!(folded(16, &[8]), [16]);
        assert_eq!(on(&[]).folded(&[8, 8]).grid, [0; 0]);
        assert_eq!(on(&[4, 4]).folded(&[8, 8]).grid, [4, 4]);
    }
}
