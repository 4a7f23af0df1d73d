//! Weights that a model cuts into rows and puts together in another order before it uses them, as PyTorch's exporters do with the
//! gates of recurrent layers.

use crate::onnx::{Facts, Graph, Node, ValueId};
use std::collections::HashMap;

/// A row of an initializer that is seen as rows of a given width.
pub type Row = (ValueId, usize);

/// Follows values back to initializers.
pub struct Pieces<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    producers: HashMap<&'a ValueId, usize>,
}

impl<'a> Pieces<'a> {
    pub fn new(graph: &'a Graph, facts: &'a Facts) -> Self {
        Self { graph, facts, producers: graph.producers() }
    }

    /// The initializers' rows that a value consists of, its elements seen as rows of `width` along its last axes. `None` where it is
    /// made in any other way than by cutting, joining and reshaping.
    pub fn rows(&self, value: &ValueId, width: usize) -> Option<Vec<Row>> {
        let shape = self.shape(value)?;
        if let Some(tensor) = self.graph.initializers.get(value) {
            let count = tensor.len() / width.max(1);
            return (count * width == tensor.len()).then(|| (0..count).map(|i| (value.clone(), i)).collect());
        }
        let node = &self.graph.nodes[*self.producers.get(value)?];
        let first = node.input(0)?;
        match node.op.as_str() {
            "Identity" | "Cast" | "Squeeze" | "Unsqueeze" | "Reshape" => self.rows(first, width),
            "Slice" => {
                let (axis, range) = self.cut(node)?;
                let of_one = step(self.shape(first)?, axis, width)?;
                let rows = self.rows(first, width)?;
                Some(rows.get(range.start * of_one..range.end * of_one)?.to_vec())
            }
            "Concat" => {
                let axis = crate::onnx::infer::normalise_axis(node.int("axis")?, shape.len())?;
                step(shape, axis, width)?;
                let parts = node.inputs.iter().flatten().map(|part| self.rows(part, width));
                Some(parts.collect::<Option<Vec<_>>>()?.concat())
            }
            _ => None,
        }
    }

    /// The one initializer that a value is all rows of, and their order.
    pub fn permuted(&self, value: &ValueId, width: usize) -> Option<(ValueId, Vec<usize>)> {
        let rows = self.rows(value, width)?;
        let root = rows.first()?.0.clone();
        let order: Vec<usize> = rows.iter().filter(|(id, _)| *id == root).map(|(_, row)| *row).collect();
        let mut all = order.clone();
        all.sort_unstable();
        let whole = self.graph.initializers.get(&root)?.len() == order.len() * width;
        (whole && order.len() == rows.len() && all.iter().copied().eq(0..all.len())).then_some((root, order))
    }

    /// The one initializer that all of a value comes from, as it lies or turned or in another order.
    pub fn root(&self, value: &ValueId, width: usize) -> Option<ValueId> {
        let mut value = value;
        loop {
            if self.graph.initializers.contains_key(value) {
                return Some(value.clone());
            }
            let node = &self.graph.nodes[*self.producers.get(value)?];
            match node.op.as_str() {
                "Transpose" | "Identity" | "Cast" | "Squeeze" | "Unsqueeze" | "Reshape" => {
                    value = node.input(0)?
                }
                _ => return self.permuted(value, width).map(|(root, _)| root),
            }
        }
    }

    fn shape(&self, value: &ValueId) -> Option<&[usize]> {
        self.facts.get(value).map(|fact| &fact.shape[..])
    }

    /// Axis and range of a `Slice` along one axis, step by step.
    fn cut(&self, node: &Node) -> Option<(usize, std::ops::Range<usize>)> {
        let number = |i: usize| match self.graph.initializers.get(node.input(i)?)?.to_i64().as_ref() {
            &[only] => Some(only),
            _ => None,
        };
        let shape = self.shape(node.input(0)?)?;
        let axis = if node.input(3).is_some() { number(3)? } else { 0 };
        let axis = crate::onnx::infer::normalise_axis(axis, shape.len())?;
        let size = shape[axis] as i64;
        let bound = |at: i64| (if at < 0 { at + size } else { at }).clamp(0, size) as usize;
        let plain = node.input(4).is_none() || number(4)? == 1;
        let (start, end) = (bound(number(1)?), bound(number(2)?));
        (plain && start <= end).then_some((axis, start..end))
    }
}

/// How many rows of `width` an element along `axis` has, where nothing but axes of size one come before it.
fn step(shape: &[usize], axis: usize, width: usize) -> Option<usize> {
    let inner: usize = shape[axis + 1..].iter().product();
    let leads = shape[..axis].iter().all(|&d| d == 1);
    (leads && width > 0 && inner.is_multiple_of(width)).then(|| inner / width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Builder, DType, Fact, Tensor};

    #[test]
    fn gates_in_another_order_are_followed_back() {
        let mut b = Builder::new("test");
        let w = b.initializer("w", Tensor::zeros(DType::F32, &[6, 4]));
        let mut cut = |from: i64, to: i64| b.slice(&w, &[from], &[to], &[0]);
        let parts = [cut(4, 6), cut(0, 2), cut(2, i64::MAX - 4)];
        let third = b.slice(&parts[2], &[0], &[-2], &[0]);
        let joined = b.concat(&[&parts[0], &parts[1], &third], 0);
        let value = b.unsqueeze(&joined, &[0]);
        let half = b.unsqueeze(&parts[0], &[0]);
        let turned = b.transpose(&w, &[1, 0]);
        b.set_fact(&value, Fact::new(DType::F32, &[1, 6, 4]));
        let (graph, facts) = b.finish();
        let pieces = Pieces::new(&graph, &facts);
        assert_eq!(pieces.permuted(&value, 4), Some((w.clone(), vec![4, 5, 0, 1, 2, 3])));
        assert_eq!(pieces.rows(&half, 4), Some(vec![(w.clone(), 4), (w.clone(), 5)]));
        assert_eq!(pieces.permuted(&half, 4), None);
        assert_eq!(pieces.rows(&turned, 4), None);
    }
}
