//! The operator cases: reading them, and turning them into float64.

use onnx_merge::autodiff::prepare::upgrade;
use onnx_merge::onnx::{Attr, DType, Graph, Model, Tensor, ValueId, read};
use onnx_merge::{Error, Result};
use onnx_protobuf::{Message, TensorProto};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A model of one operator (or of its definition in simpler ones) and example inputs.
pub struct Case {
    pub name: String,
    pub model: Model,
    pub inputs: HashMap<ValueId, Tensor>,
}

/// The folders of all cases, in order; `None` where the corpus isn't there.
pub fn folders() -> Option<Vec<PathBuf>> {
    let corpus = std::env::var_os("ONNX_NODE_CORPUS")?;
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(corpus).ok()?.flatten().map(|entry| entry.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    Some(folders)
}

/// Reads a case; `None` where an input is no tensor of numbers.
pub fn load(folder: &Path) -> Result<Option<Case>> {
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut model = read(folder.join("model.onnx"))?.model;
    // Types of outputs follow from those of the inputs; some of them stay float32 whatever the inputs are.
    for output in &mut model.graph.outputs {
        (output.dtype, output.shape) = (None, None);
    }
    let mut inputs = HashMap::new();
    for (i, input) in model.graph.required_inputs().enumerate() {
        let file = folder.join(format!("test_data_set_0/input_{i}.pb"));
        let Ok(bytes) = std::fs::read(&file) else { return Ok(None) };
        let Some(tensor) = tensor(&bytes) else { return Ok(None) };
        inputs.insert(input.id.clone(), finite(&tensor));
    }
    Ok(Some(Case { name, model, inputs }))
}

/// NaN and infinities, which some cases hold on purpose, have no derivatives: replaced by ordinary numbers.
fn finite(tensor: &Tensor) -> Tensor {
    if tensor.first_non_finite().is_none() {
        return tensor.clone();
    }
    let ordinary = |v: f64| match v {
        v if v.is_finite() => v,
        f64::INFINITY => 1.5,
        f64::NEG_INFINITY => -3.0,
        _ => 0.5,
    };
    let values: Vec<f64> = tensor.to_f64().into_iter().map(ordinary).collect();
    Tensor::from_f64(tensor.dtype(), tensor.shape(), &values)
}

pub fn tensor(bytes: &[u8]) -> Option<Tensor> {
    let proto = TensorProto::parse_from_bytes(bytes).ok()?;
    let shape: Vec<usize> = proto.dims.iter().map(|&d| d as usize).collect();
    let dtype = DType::from_onnx(proto.data_type);
    dtype.size()?;
    Tensor::new(dtype, &shape, proto.raw_data).ok()
}

/// Operators with an attribute that names an element type.
const TYPED: [(&str, &str); 6] = [
    ("Cast", "to"),
    ("EyeLike", "dtype"),
    ("RandomNormal", "dtype"),
    ("RandomNormalLike", "dtype"),
    ("RandomUniform", "dtype"),
    ("RandomUniformLike", "dtype"),
];

/// Inputs that the specification wants in float32 whatever the others are.
const SINGLE: [(&str, usize); 2] = [("Resize", 2), ("Upsample", 1)];

impl Case {
    /// In the forms of opset 18, with `settings` and everything but real numbers fixed to what the case feeds.
    pub fn prepare(&mut self, settings: &BTreeSet<ValueId>) -> Result<()> {
        let (fixed, real): (HashMap<_, _>, HashMap<_, _>) = std::mem::take(&mut self.inputs)
            .into_iter()
            .partition(|(id, t)| !t.dtype().is_float() || settings.contains(id));
        self.inputs = real;
        self.model.graph.inputs.retain(|input| !fixed.contains_key(&input.id));
        self.model.graph.initializers.extend(fixed);
        self.model = upgrade(&self.model)?;
        Ok(())
    }
    /// Makes every real value of the case one of type `to`.
    pub fn convert(&mut self, to: DType) -> Result<()> {
        self.inputs.values_mut().for_each(|t| *t = real(t, to));
        convert_graph(&mut self.model.graph, to)?;
        let nodes = &self.model.graph.nodes;
        let single =
            nodes.iter().flat_map(|n| SINGLE.iter().filter(|s| n.is(s.0)).filter_map(|s| n.input(s.1)));
        for id in single.cloned().collect::<Vec<_>>() {
            if let Some(tensor) = self.inputs.get_mut(&id) {
                *tensor = tensor.cast(DType::F32);
            }
            if let Some(input) = self.model.graph.inputs.iter_mut().find(|input| input.id == id) {
                input.dtype = Some(DType::F32);
            }
            if let Some(tensor) = self.model.graph.initializers.get_mut(&id) {
                *tensor = tensor.cast(DType::F32);
            }
        }
        Ok(())
    }
}

fn real(tensor: &Tensor, to: DType) -> Tensor {
    if tensor.dtype().is_float() { tensor.cast(to) } else { tensor.clone() }
}

fn convert_graph(graph: &mut Graph, to: DType) -> Result<()> {
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        info.dtype = info.dtype.map(|d| if d.is_float() { to } else { d });
    }
    graph.initializers.values_mut().for_each(|t| *t = real(t, to));
    for node in &mut graph.nodes {
        for attr in node.attrs.values_mut() {
            if let Attr::Tensor(tensor) = attr {
                *tensor = real(tensor, to);
            }
        }
        if node.is("Constant") {
            constant(node, to);
        }
        if let Some((_, name)) = TYPED.iter().find(|(op, _)| node.is(op))
            && let Some(Attr::Int(dtype)) = node.attrs.get_mut(*name)
            && DType::from_onnx(*dtype as i32).is_float()
        {
            *dtype = i64::from(to.to_onnx());
        }
        for inner in node.subgraphs_mut() {
            convert_graph(inner, to)?;
        }
    }
    if graph.initializers.values().any(|t| matches!(t.dtype(), DType::Other(_))) {
        return Err(Error::tensor("", "an element type without arithmetic"));
    }
    Ok(())
}

/// Real numbers in attributes are float32 by definition; as tensors they can be anything.
fn constant(node: &mut onnx_merge::onnx::Node, to: DType) {
    let tensor = match (node.attrs.get("value_float"), node.attrs.get("value_floats")) {
        (Some(Attr::Float(v)), _) => Tensor::scalar(to, f64::from(*v)),
        (_, Some(Attr::Floats(v))) => {
            Tensor::from_f64(to, &[v.len()], &v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())
        }
        _ => return,
    };
    node.attrs.clear();
    node.attrs.insert("value".into(), Attr::Tensor(tensor));
}
