//! A matrix at work: what it is applied to, and what it leaves before anything nonlinear.

use super::{InterfaceUse, ParamGraph, Reading, Role, WeightId};
use crate::onnx::{Facts, Graph, Node, Tensor, ValueId};
use std::collections::HashMap;

/// A convolution, transposed or not, or linear layer: `settled = scale · (W x + b) + shift`, channel by channel, which may be added to something
/// else.
#[derive(Clone, Debug)]
pub struct Layer {
    pub weight: WeightId,
    /// The node that applies it.
    pub node: Node,
    /// What it is applied to.
    pub data: ValueId,
    /// b, where there is one.
    pub bias: Option<ValueId>,
    /// The last value before a nonlinearity, a branch, a sum with other values, or the end.
    pub settled: Reading,
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
    /// The sum with other values that follows, as in a residual stream.
    pub sum: Option<Sum>,
}

/// A layer's output added to something else.
#[derive(Clone, Debug)]
pub struct Sum {
    pub total: Reading,
    pub other: Reading,
}

impl Layer {
    /// What the layer leaves: the sum, or else its own output.
    pub fn made(&self) -> &Reading {
        self.sum.as_ref().map_or(&self.settled, |sum| &sum.total)
    }

    /// All such layers of a model for `rows` rows, in the order in which it uses them.
    pub fn all(graph: &Graph, facts: &Facts, params: &ParamGraph, rows: usize) -> Vec<Self> {
        let model = Known { graph, facts, consumers: graph.consumers() };
        params.matrices().filter_map(|(id, _)| Self::find(&model, params, id, rows)).collect()
    }

    fn find(model: &Known<'_>, params: &ParamGraph, id: WeightId, rows: usize) -> Option<Self> {
        let Known { graph, facts, .. } = *model;
        let weight = params.weight(id);
        let view = weight.view.as_ref()?;
        let whole = weight.output.iter().map(InterfaceUse::len).sum::<usize>() == view.out;
        let known =
            matches!(weight.role, Role::Conv | Role::DepthwiseConv | Role::ConvTranspose | Role::Linear);
        if !(known && whole && weight.nodes.len() == 1) {
            return None;
        }
        let node = super::reading::node_of(graph, weight)?.clone();
        let plain = node.float_or("alpha", 1.0) == 1.0 && node.float_or("beta", 1.0) == 1.0;
        let data = node.input(0).filter(|_| plain)?.clone();
        let convolves = weight.role != Role::Linear;
        let channels = Channels { model, count: view.out, axis: convolves.then_some(1) };
        let mut value = node.output(0)?.clone();
        let mut bias = node.input(2).cloned();
        if let (None, Some((next, operand))) = (&bias, channels.addition(&value)) {
            (value, bias) = (next, Some(operand));
        }
        if bias.as_ref().is_some_and(|b| !graph.initializers.contains_key(b)) {
            return None;
        }
        let (settled, scale, shift) = channels.settle(value);
        let read = |value: ValueId| Reading::at(value, facts, rows, view.out, !convolves);
        let sum = channels
            .sum(&settled)
            .and_then(|(total, other)| Some(Sum { total: read(total)?, other: read(other)? }));
        let settled = read(settled)?;
        Some(Self { weight: id, node, data, bias, settled, scale, shift, sum })
    }
}

/// A graph, and what is known of its values.
struct Known<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    consumers: HashMap<ValueId, Vec<usize>>,
}

/// Follows values whose channels stay apart.
struct Channels<'a> {
    model: &'a Known<'a>,
    count: usize,
    /// The axis of the channels; the last where there is none.
    axis: Option<usize>,
}

impl Channels<'_> {
    /// The only node that reads a value which isn't an output.
    fn reader(&self, value: &ValueId) -> Option<&Node> {
        let &[only] = self.model.consumers.get(value)?.as_slice() else { return None };
        let end = self.model.graph.outputs.iter().any(|o| o.id == *value);
        (!end).then(|| &self.model.graph.nodes[only])
    }

    /// A constant with an element a channel, or one for all.
    fn constant(&self, id: &ValueId, beside: &ValueId) -> Option<Vec<f64>> {
        let tensor = self.model.graph.initializers.get(id).filter(|t| t.dtype().is_float())?;
        let rank = self.model.facts.get(beside)?.rank();
        let axis = self.axis.unwrap_or(rank - 1);
        let lies = |tensor: &Tensor| {
            let missing = rank.checked_sub(tensor.rank())?;
            let place = axis.checked_sub(missing)?;
            let others = tensor.shape().iter().enumerate().all(|(i, &d)| d == 1 || i == place);
            (others && tensor.len() == self.count).then(|| tensor.to_f64())
        };
        match tensor.len() {
            1 => Some(vec![tensor.to_f64()[0]; self.count]),
            _ => lies(tensor),
        }
    }

    /// The sum of `value` and a constant with an element a channel, and that constant.
    fn addition(&self, value: &ValueId) -> Option<(ValueId, ValueId)> {
        let node = self.reader(value).filter(|n| n.is("Add"))?;
        let operand = node.inputs.iter().flatten().find(|i| *i != value)?;
        let full = self.model.graph.initializers.get(operand)?.len() == self.count;
        self.constant(operand, value).filter(|_| full)?;
        Some((node.output(0)?.clone(), operand.clone()))
    }

    /// The sum of `value` and another of its shape, and that other.
    fn sum(&self, value: &ValueId) -> Option<(ValueId, ValueId)> {
        let node = self.reader(value).filter(|n| n.is("Add") || n.is("Sum") && n.inputs.len() == 2)?;
        let other = node.inputs.iter().flatten().find(|i| *i != value)?;
        let same = self.model.facts.get(other)?.shape == self.model.facts.get(value)?.shape;
        let total = node.output(0).filter(|_| same)?;
        Some((total.clone(), other.clone()))
    }

    /// Where `value` is last only scaled and shifted, and by what.
    fn settle(&self, mut value: ValueId) -> (ValueId, Vec<f64>, Vec<f64>) {
        let (mut scale, mut shift) = (vec![1.0; self.count], vec![0.0; self.count]);
        while let Some((next, by, plus)) = self.step(&value) {
            for c in 0..self.count {
                scale[c] *= by[c];
                shift[c] = shift[c] * by[c] + plus[c];
            }
            value = next;
        }
        (value, scale, shift)
    }

    /// The next value, as `by · value + plus`.
    fn step(&self, value: &ValueId) -> Option<(ValueId, Vec<f64>, Vec<f64>)> {
        let node = self.reader(value)?;
        let next = node.output(0)?.clone();
        let (one, zero) = (vec![1.0; self.count], vec![0.0; self.count]);
        let first = node.input(0) == Some(value);
        let other = node.inputs.iter().flatten().find(|i| *i != value);
        let constant = || self.constant(other?, value);
        let (by, plus) = match node.op.as_str() {
            "Identity" => (one, zero),
            "Add" => (one, constant()?),
            "Sub" if first => (one, constant()?.iter().map(|v| -v).collect()),
            "Mul" => (constant()?, zero),
            "Div" if first => (constant()?.iter().map(|v| 1.0 / v).collect(), zero),
            "BatchNormalization" if first && node.int_or("training_mode", 0) == 0 => {
                let part = |i: usize| self.model.graph.initializers.get(node.input(i)?).map(Tensor::to_f64);
                let (scale, shift, mean, variance) = (part(1)?, part(2)?, part(3)?, part(4)?);
                let epsilon = node.float_or("epsilon", 1e-5) as f64;
                let by: Vec<f64> =
                    scale.iter().zip(&variance).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
                let plus = (0..self.count).map(|c| shift[c] - by[c] * mean[c]).collect();
                (by, plus)
            }
            _ => return None,
        };
        Some((next, by, plus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Builder, DType, Fact};

    #[test]
    fn what_a_convolution_leaves_is_followed_through_scales_and_shifts() {
        let mut b = Builder::new("test");
        let x = b.input("x", Fact::new(DType::F32, &[2, 3, 8, 8]));
        let w = b.initializer("w", Tensor::zeros(DType::F32, &[2, 3, 3, 3]));
        let bias = b.initializer("b", Tensor::f32(&[2], &[0.5, 0.25]));
        let y = b.op("Conv", &[&x, &w, &bias]);
        let mut part = |name: &str, values: [f32; 2]| b.initializer(name, Tensor::f32(&[2], &values));
        let norm = [
            part("scale", [2.0, 3.0]),
            part("shift", [1.0, -1.0]),
            part("mean", [0.5, 0.0]),
            part("variance", [4.0, 1.0]),
        ];
        let inputs = [&y, &norm[0], &norm[1], &norm[2], &norm[3]];
        let y = b.op_with("BatchNormalization", &inputs, &[("epsilon", 0f32.into())]);
        b.set_fact(&y, Fact::new(DType::F32, &[2, 2, 6, 6]));
        let double = b.initializer("double", Tensor::f32(&[2, 1, 1], &[2.0, -2.0]));
        let y = b.mul(&y, &double);
        let relu = b.op("Relu", &[&y]);
        b.output(&relu);
        let (graph, facts) = b.finish();
        let params = ParamGraph::of_graph(&graph, &facts).unwrap();
        let layers = Layer::all(&graph, &facts, &params, 2);
        assert_eq!(layers.len(), 1);
        let layer = &layers[0];
        assert_eq!((&layer.data, &layer.settled.value), (&x, &y));
        assert_eq!((layer.settled.channels, &layer.settled.grid[..]), (2, &[6, 6][..]));
        assert_eq!(layer.bias.as_ref(), Some(&bias));
        // 2·(2/2·z + 1 − 2/2·0.5) and −2·(3·z − 1).
        assert_eq!((&layer.scale[..], &layer.shift[..]), (&[2.0, -6.0][..], &[1.0, 2.0][..]));
    }

    #[test]
    fn a_bias_added_behind_a_product_is_the_layers_own_and_a_stream_is_a_sum() {
        let mut b = Builder::new("test");
        let x = b.input("x", Fact::new(DType::F32, &[2, 5, 4]));
        let weight = |b: &mut Builder, name: &str, shape: &[usize]| {
            b.initializer(name, Tensor::zeros(DType::F32, shape))
        };
        let (w, v) = (weight(&mut b, "w", &[4, 6]), weight(&mut b, "v", &[6, 4]));
        let bias = weight(&mut b, "b", &[6]);
        let y = b.matmul(&x, &w);
        let y = b.add(&bias, &y);
        let h = b.op("Relu", &[&y]);
        let back = b.matmul(&h, &v);
        let sum = b.add(&back, &x);
        b.output(&sum);
        let (graph, facts) = b.finish();
        let params = ParamGraph::of_graph(&graph, &facts).unwrap();
        let layers = Layer::all(&graph, &facts, &params, 2);
        let first = layers.iter().find(|l| params.weight(l.weight).name == w).unwrap();
        assert_eq!(
            (first.bias.as_ref(), &first.settled.value, &first.settled.grid[..]),
            (Some(&bias), &y, &[5][..])
        );
        assert!(first.sum.is_none());
        let second = layers.iter().find(|l| params.weight(l.weight).name == v).unwrap();
        let stream = second.sum.as_ref().unwrap();
        assert_eq!((&second.settled.value, &stream.total.value, &stream.other.value), (&back, &sum, &x));
    }
}
