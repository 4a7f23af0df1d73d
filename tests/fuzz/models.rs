//! Preparing models: sound files whose graphs have been changed are lifted to a batch, seen as parameters, and
//! differentiated, or refused.

use crate::edits::{fixture, small_model};
use crate::target;
use bolero::TypeGenerator;
use onnx_merge::autodiff::{backward, facts::probe, prepare};
use onnx_merge::onnx::{self, Attr, Builder, Dim, Model, Node, Tensor, ValueId};
use onnx_merge::params::ParamGraph;
use onnx_merge::runtime::TractExecutor;
use std::sync::LazyLock;

#[derive(Debug, TypeGenerator)]
pub struct Changed {
    model: u8,
    changes: Vec<Change>,
    batch: u8,
}

/// One change of a graph.
#[derive(Clone, Debug, TypeGenerator)]
enum Change {
    Node { node: u8, change: NodeChange },
    Swap { a: u8, b: u8 },
    Remove { node: u8 },
    Size { input: u8, axis: u8, size: Size },
    Rank { input: u8, rank: u8 },
    Weight { which: u8, shape: WeightShape },
    Output { value: u16 },
    Opset { version: u8 },
}

#[derive(Clone, Debug, TypeGenerator)]
enum NodeChange {
    /// An attribute gets other integers, or a wrong kind.
    Attribute {
        which: u8,
        value: Value,
    },
    /// An attribute that is usual for somebody else.
    Foreign {
        name: u8,
        value: Value,
    },
    Operator {
        op: u8,
    },
    Input {
        which: u8,
        value: Option<u16>,
    },
}

#[derive(Clone, Debug, TypeGenerator)]
enum Value {
    Int(i8),
    Large(i64),
    Ints(Vec<i8>),
    Text,
}

#[derive(Clone, Debug, TypeGenerator)]
enum Size {
    Known(u8),
    Large(u16),
    Huge(u64),
    Named,
    Unknown,
}

#[derive(Clone, Debug, TypeGenerator)]
enum WeightShape {
    Flat,
    Scalar,
    Empty,
    Reversed,
    One,
    /// Integers are used as shapes and axes.
    Number(i64),
}

impl Value {
    fn attr(&self) -> Attr {
        match self {
            Value::Int(v) => Attr::Int((*v).into()),
            Value::Large(v) => Attr::Int(*v),
            Value::Ints(v) => Attr::Ints(v.iter().take(5).map(|&v| v.into()).collect()),
            Value::Text => Attr::Str("SAME_UPPER".into()),
        }
    }
}

static SEEDS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let names = ["digits_mlp", "digits_small_cnn", "digits_transformer"];
    let read = |name: &&str| onnx::read(fixture(&format!("{name}.onnx"))).expect("a fixture").model;
    names.iter().map(read).chain([small_model()]).collect()
});

const NAMES: [&str; 12] = [
    "axis",
    "axes",
    "perm",
    "strides",
    "pads",
    "kernel_shape",
    "dilations",
    "group",
    "auto_pad",
    "keepdims",
    "to",
    "transB",
];
const OPERATORS: [&str; 24] = [
    "Relu",
    "Softmax",
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "MatMul",
    "Gemm",
    "Reshape",
    "Transpose",
    "Flatten",
    "Concat",
    "Gather",
    "ReduceMean",
    "Expand",
    "ConstantOfShape",
    "Shape",
    "Slice",
    "Tile",
    "Squeeze",
    "Unsqueeze",
    "BatchNormalization",
    "LSTM",
    "Range",
    "Where",
];

impl Change {
    fn apply(&self, model: &mut Model) {
        let graph = &mut model.graph;
        let made = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
        let values: Vec<ValueId> = made.chain(graph.initializers.keys()).cloned().collect();
        let value = |v: u16| nth(&values, v).and_then(|at| values.get(at).cloned());
        match self {
            Change::Swap { a, b } => {
                if let (Some(a), Some(b)) = (nth(&graph.nodes, *a), nth(&graph.nodes, *b)) {
                    graph.nodes.swap(a, b);
                }
            }
            Change::Remove { node } => {
                let at = nth(&graph.nodes, *node);
                at.map(|at| graph.nodes.remove(at));
            }
            Change::Size { input, axis, size } => {
                let input = nth(&graph.inputs, *input).map(|at| &mut graph.inputs[at]);
                let shape = input.and_then(|input| input.shape.as_mut());
                if let Some((shape, at)) = shape.and_then(|s| nth(s, *axis).map(|at| (s, at))) {
                    shape[at] = size.dim();
                }
            }
            Change::Rank { input, rank } => {
                if let Some(at) = nth(&graph.inputs, *input) {
                    let shape = graph.inputs[at].shape.get_or_insert_default();
                    shape.resize(usize::from(rank % 6), Dim::Known(2));
                }
            }
            Change::Weight { which, shape } => {
                let at = usize::from(*which) % graph.initializers.len().max(1);
                if let Some((_, tensor)) = graph.initializers.get_index_mut(at) {
                    *tensor = shape.of(tensor);
                }
            }
            Change::Output { value: v } => {
                if let (Some(output), Some(id)) = (graph.outputs.first_mut(), value(*v)) {
                    output.id = id;
                }
            }
            Change::Opset { version } => {
                model.opsets.insert(String::new(), i64::from(version % 18) + 7);
            }
            Change::Node { node, change } => {
                if let Some(at) = nth(&graph.nodes, *node) {
                    change.apply(&mut graph.nodes[at], value);
                }
            }
        }
    }
}

/// An index into `all`, if there is any.
fn nth<T>(all: &[T], at: impl Into<usize>) -> Option<usize> {
    (!all.is_empty()).then(|| at.into() % all.len())
}

impl NodeChange {
    fn apply(&self, node: &mut Node, value: impl Fn(u16) -> Option<ValueId>) {
        match self {
            NodeChange::Attribute { which, value } => {
                let at = usize::from(*which) % node.attrs.len().max(1);
                if let Some((_, attribute)) = node.attrs.get_index_mut(at) {
                    *attribute = value.attr();
                }
            }
            NodeChange::Foreign { name, value } => {
                node.attrs.insert(NAMES[usize::from(*name) % NAMES.len()].into(), value.attr());
            }
            NodeChange::Operator { op } => node.op = OPERATORS[usize::from(*op) % OPERATORS.len()].into(),
            NodeChange::Input { which, value: v } => {
                let at = usize::from(*which) % (node.inputs.len() + 1);
                node.inputs.resize(node.inputs.len().max(at + 1), None);
                node.inputs[at] = v.and_then(value);
            }
        }
    }
}

impl Size {
    fn dim(&self) -> Dim {
        match self {
            Size::Known(d) => Dim::Known((*d).into()),
            Size::Large(d) => Dim::Known(usize::from(*d) % 1000),
            Size::Huge(d) => Dim::Known(*d as usize),
            Size::Named => Dim::Named("n".into()),
            Size::Unknown => Dim::Unknown,
        }
    }
}

impl WeightShape {
    fn of(&self, tensor: &Tensor) -> Tensor {
        let dtype = tensor.dtype();
        if !tensor.is_readable() {
            return tensor.clone();
        }
        match self {
            WeightShape::Flat => tensor.reshaped(&[tensor.len()]),
            WeightShape::Scalar => Tensor::scalar(dtype, 1.0),
            WeightShape::Empty => Tensor::zeros(dtype, &[0]),
            WeightShape::Reversed => {
                tensor.reshaped(&tensor.shape().iter().rev().copied().collect::<Vec<_>>())
            }
            WeightShape::One => tensor.reshaped(&[&[1], tensor.shape()].concat()),
            WeightShape::Number(v) => Tensor::from_f64(dtype, tensor.shape(), &vec![*v as f64; tensor.len()]),
        }
    }
}

target!(models, 60, prepared_or_refused);

fn prepared_or_refused(changed: &Changed) {
    let mut model = SEEDS[usize::from(changed.model) % SEEDS.len()].clone();
    for change in changed.changes.iter().take(4).filter(|_| !model.graph.nodes.is_empty()).collect::<Vec<_>>()
    {
        change.apply(&mut model);
        if model.graph.nodes.is_empty() {
            return;
        }
    }
    // What no reader would let through isn't looked at.
    let path = crate::edits::scratch("changed.onnx");
    let Ok(bytes) = onnx::to_bytes(&model) else { return };
    std::fs::write(&path, bytes).expect("a file");
    let Ok(file) = onnx::read(&path) else { return };
    let executor = TractExecutor::new(1).expect("an executor");
    let Ok(upgraded) = prepare::upgrade(&file.model) else { return };
    let Ok(lifted) = prepare::lift(&upgraded, usize::from(changed.batch % 5) + 1, &executor) else { return };
    let Ok(probed) = probe(&executor, &lifted.model, &lifted.example) else { return };
    let mut facts = probed.facts;
    facts.extend(lifted.model.graph.initializers.iter().map(|(id, t)| (id.clone(), onnx::Fact::of(t))));
    let _ = ParamGraph::of_graph(&lifted.model.graph, &facts);
    let outputs: Vec<ValueId> = lifted.model.graph.outputs.iter().map(|o| o.id.clone()).collect();
    let weights: Vec<ValueId> = lifted
        .model
        .graph
        .initializers
        .iter()
        .filter(|(_, t)| t.dtype().is_float())
        .map(|(id, _)| id.clone())
        .collect();
    let mut b = Builder::on(lifted.model.graph.clone(), facts);
    let known = outputs.into_iter().filter(|id| b.facts().get(id).is_some_and(|f| f.dtype.is_float()));
    let seeds: Vec<(ValueId, ValueId)> =
        known.collect::<Vec<_>>().into_iter().map(|id| (id.clone(), b.zeros_like(&id))).collect();
    let _ = backward(&mut b, &seeds, &weights);
}
