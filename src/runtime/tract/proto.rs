//! Our graphs as tract's own protobuf types, without going through bytes: payloads are copied once.
//!
//! Also smooths what tract's importer trips over: initializers that are inputs too, nodes without a name or
//! with the name of another, outputs that no node makes, constants that a body reads from outside. Look at [`model`].

use crate::error::{Error, Result};
use crate::onnx::{
    Attr, Dim, Facts, Graph, Model, Node, Tensor, ValueId, ValueInfo, node_reads, outer_reads,
};
use std::collections::HashSet;
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};

/// `model` for tract's importer. Inputs get exactly the facts given, so that every shape is known.
pub fn model(model: &Model, facts: &Facts) -> Result<pb::ModelProto> {
    let mut main = graph(&model.graph, &[])?;
    main.input = model
        .graph
        .required_inputs()
        .map(|info| {
            let fact = facts.get(&info.id).cloned().or_else(|| info.fact()).ok_or_else(|| {
                Error::tensor(info.id.as_str(), "the shape of this input is needed to compile the graph")
            })?;
            Ok(value_info(&ValueInfo::new(info.id.clone(), &fact)))
        })
        .collect::<Result<_>>()?;
    Ok(pb::ModelProto {
        ir_version: 8,
        opset_import: model
            .opsets
            .iter()
            .map(|(domain, &version)| pb::OperatorSetIdProto { domain: domain.clone(), version })
            .collect(),
        graph: Some(main),
        ..Default::default()
    })
}

/// A tensor with its payload as raw bytes.
fn tensor(name: &str, tensor: &Tensor) -> Result<pb::TensorProto> {
    if !tensor.is_readable() {
        return Err(Error::tensor(name, format!("{} values can't be read here", tensor.dtype())));
    }
    Ok(pb::TensorProto {
        name: name.to_owned(),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: tensor.dtype().to_onnx(),
        raw_data: tensor.bytes().to_vec(),
        ..Default::default()
    })
}

/// Outputs that are inputs or initializers go through an `Identity`: the importer forgets the facts of
/// values that are both. So do outputs of bodies that are read inside: it reads there what it makes of the output.
fn give_outputs_a_node(graph: &Graph, inside: bool, proto: &mut pb::GraphProto) {
    let made: HashSet<&str> =
        graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()).map(|id| id.as_str()).collect();
    let read: HashSet<ValueId> =
        if inside { graph.nodes.iter().flat_map(node_reads).collect() } else { HashSet::new() };
    let mut taken: HashSet<String> = made.iter().map(|&s| s.to_owned()).collect();
    let free = |name: &str| made.contains(name) && !read.contains(&ValueId::new(name));
    for output in proto.output.iter_mut().filter(|o| !free(&o.name)) {
        let mut name = format!("{}/out", output.name);
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        proto.node.push(pb::NodeProto {
            name: name.clone(),
            op_type: "Identity".into(),
            input: vec![std::mem::replace(&mut output.name, name.clone())],
            output: vec![name],
            ..Default::default()
        });
    }
}

/// The elements of the largest constant that is copied into a body.
const SMALL: usize = 1024;

/// `graph`, inside of those `around` it, the innermost last.
fn graph(graph: &Graph, around: &[&Graph]) -> Result<pb::GraphProto> {
    let mut taken: HashSet<String> = graph.initializers.keys().map(ToString::to_string).collect();
    taken.extend(graph.inputs.iter().map(|i| i.id.to_string()));
    let inside = [around, &[graph]].concat();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let mut name = node.label();
        while !taken.insert(name.clone()) {
            name.push('\'');
        }
        nodes.push(self::node(node, name, &inside)?);
    }
    let own = graph.initializers.iter().map(|(id, t)| tensor(id.as_str(), t));
    let mut initializer = own.collect::<Result<Vec<_>>>()?;
    // What a body reads from outside is a variable to tract, also where a shape hangs on it.
    let outside = if around.is_empty() { vec![] } else { outer_reads(graph) };
    let mut seen = HashSet::new();
    for id in outside.into_iter().filter(|id| seen.insert(id.clone())) {
        let constant = around.iter().rev().find_map(|graph| graph.initializers.get(&id));
        if let Some(constant) = constant.filter(|t| t.len() <= SMALL) {
            initializer.push(tensor(id.as_str(), constant)?);
        }
    }
    let mut proto = pb::GraphProto {
        name: graph.name.clone(),
        node: nodes,
        initializer,
        input: graph.required_inputs().map(value_info).collect(),
        output: graph.outputs.iter().map(|o| untyped(o.id.as_str())).collect(),
        ..Default::default()
    };
    give_outputs_a_node(graph, !around.is_empty(), &mut proto);
    Ok(proto)
}

fn node(node: &Node, name: String, around: &[&Graph]) -> Result<pb::NodeProto> {
    let names = |ids: &[Option<crate::onnx::ValueId>]| {
        ids.iter().map(|id| id.as_ref().map(ToString::to_string).unwrap_or_default()).collect()
    };
    let attribute = node
        .attrs
        .iter()
        .map(|(key, attr)| {
            attribute(key, attr, around)
                .map_err(|e| e.context(format!("node '{}' ({})", node.label(), node.qualified_op())))
        })
        .collect::<Result<_>>()?;
    Ok(pb::NodeProto {
        name,
        op_type: node.op.clone(),
        domain: node.domain.clone(),
        input: names(&node.inputs),
        output: names(&node.outputs),
        attribute,
        ..Default::default()
    })
}

fn attribute(name: &str, attr: &Attr, around: &[&Graph]) -> Result<pb::AttributeProto> {
    let mut proto = pb::AttributeProto { name: name.to_owned(), ..Default::default() };
    let kind = match attr {
        Attr::Int(v) => {
            proto.i = *v;
            AttributeType::Int
        }
        Attr::Ints(v) => {
            proto.ints = v.clone();
            AttributeType::Ints
        }
        Attr::Float(v) => {
            proto.f = *v;
            AttributeType::Float
        }
        Attr::Floats(v) => {
            proto.floats = v.clone();
            AttributeType::Floats
        }
        Attr::Str(v) => {
            proto.s = v.clone().into_bytes();
            AttributeType::String
        }
        Attr::Strs(v) => {
            proto.strings = v.iter().map(|s| s.clone().into_bytes()).collect();
            AttributeType::Strings
        }
        Attr::Tensor(v) => {
            proto.t = Some(tensor(name, v)?);
            AttributeType::Tensor
        }
        Attr::Graph(v) => {
            proto.g = Some(graph(v, around)?);
            AttributeType::Graph
        }
        Attr::Graphs(v) => {
            proto.graphs = v.iter().map(|v| graph(v, around)).collect::<Result<_>>()?;
            AttributeType::Graphs
        }
        Attr::Ref { .. } | Attr::Other(_) => {
            return Err(Error::executor("tract", format!("attribute '{name}' is of a kind it can't read")));
        }
    };
    proto.r#type = kind as i32;
    Ok(proto)
}

fn value_info(info: &ValueInfo) -> pb::ValueInfoProto {
    let Some(dtype) = info.dtype else { return untyped(info.id.as_str()) };
    let dims = info.shape.as_ref().map(|shape| pb::TensorShapeProto {
        dim: shape.iter().map(|d| Dimension { value: dimension_value(d), ..Default::default() }).collect(),
    });
    let tensor = pb::type_proto::Tensor { elem_type: dtype.to_onnx(), shape: dims };
    let value = Some(pb::type_proto::Value::TensorType(tensor));
    pb::ValueInfoProto {
        name: info.id.to_string(),
        r#type: Some(pb::TypeProto { value, ..Default::default() }),
        ..Default::default()
    }
}

fn dimension_value(dim: &Dim) -> Option<dimension::Value> {
    match dim {
        Dim::Known(d) => Some(dimension::Value::DimValue(*d as i64)),
        Dim::Named(name) => Some(dimension::Value::DimParam(name.clone())),
        Dim::Unknown => None,
    }
}

fn untyped(name: &str) -> pb::ValueInfoProto {
    pb::ValueInfoProto { name: name.to_owned(), ..Default::default() }
}
