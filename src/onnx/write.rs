//! Writing graphs as ONNX files: for executors, and for people who want to look at them.
//!
//! Not for the program's output, which keeps the target's bytes: see [`super::surgery`].

use super::wire::{Coding, Fields, put_header, varint_len};
use super::{Attr, DType, Dim, Function, Graph, Model, Node, Tensor, ValueId, ValueInfo, atomic};
use crate::error::{Error, Result};
use onnx_protobuf::attribute_proto::AttributeType as Type;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use std::io::Write;
use std::path::Path;

/// Protobuf messages end at 2 GiB.
const LIMIT: usize = i32::MAX as usize;

/// The model as the bytes of a `.onnx` file, all tensors inside it.
///
/// # Errors
/// [`Error::Usage`] for a model of more than 2 GiB.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    let parts = Parts::of(model)?.limited()?;
    let mut out = Vec::with_capacity(parts.length());
    parts.write(&mut out).map_err(|e| Error::usage(format!("the model can't be written: {e}")))?;
    Ok(out)
}

/// Writes the model to a file, replacing it in one go.
pub fn save(model: &Model, path: impl AsRef<Path>) -> Result<()> {
    Parts::of(model)?.limited()?.replace(path.as_ref())
}

/// The same for files that only this program reads, which may be of any size.
pub fn save_any_size(model: &Model, path: impl AsRef<Path>) -> Result<()> {
    Parts::of(model)?.replace(path.as_ref())
}

/// What a file is put together from: all but the initializers encoded; those are written by hand, so that their payloads are
/// copied once and not three times.
struct Parts<'a> {
    envelope: Vec<u8>,
    /// The graph without initializers.
    rest: Vec<u8>,
    /// Each initializer without its payload, and the length of the whole.
    initializers: Vec<(Vec<u8>, usize, &'a Tensor)>,
}

impl<'a> Parts<'a> {
    fn of(model: &'a Model) -> Result<Self> {
        let payload_field = |tensor: &Tensor| match (tensor.dtype(), tensor.bytes().len()) {
            (DType::Str, length) => length,
            (_, length) => 1 + varint_len(length as u64) + length,
        };
        let part = |(id, tensor): (&ValueId, &'a Tensor)| {
            let head = encode(&tensor_head(id.as_str(), tensor))?;
            let length = head.len() + payload_field(tensor);
            Ok((head, length, tensor))
        };
        let initializers = model.graph.initializers.iter().map(part).collect::<Result<_>>()?;
        Ok(Self {
            envelope: encode(&envelope(model)?)?,
            rest: encode(&graph(&model.graph, false)?)?,
            initializers,
        })
    }

    fn graph_length(&self) -> usize {
        let fields = self.initializers.iter().map(|&(_, length, _)| 1 + varint_len(length as u64) + length);
        self.rest.len() + fields.sum::<usize>()
    }
    fn length(&self) -> usize {
        let graph = self.graph_length();
        self.envelope.len() + 1 + varint_len(graph as u64) + graph
    }

    fn limited(self) -> Result<Self> {
        match self.length() > LIMIT {
            true => Err(Error::usage("the model has more than 2 GiB, the most that one ONNX file can hold")),
            false => Ok(self),
        }
    }

    fn replace(&self, path: &Path) -> Result<()> {
        atomic::replace(path, |out| self.write(out).map_err(|e| Error::io(path, e)))
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let header = |number, length| {
            let mut header = vec![];
            put_header(&mut header, number, length);
            header
        };
        out.write_all(&self.envelope)?;
        out.write_all(&header(7, self.graph_length()))?;
        out.write_all(&self.rest)?;
        for (head, length, tensor) in &self.initializers {
            out.write_all(&header(5, *length))?;
            out.write_all(head)?;
            if tensor.dtype() != DType::Str {
                out.write_all(&header(9, tensor.bytes().len()))?;
            }
            out.write_all(tensor.bytes())?;
        }
        Ok(())
    }
}

fn encode(message: &impl Message) -> Result<Vec<u8>> {
    message.write_to_bytes().map_err(|e| Error::usage(format!("the model can't be written: {e}")))
}

/// Everything but the graph.
fn envelope(model: &Model) -> Result<ModelProto> {
    Ok(ModelProto {
        ir_version: model.ir_version,
        producer_name: model.producer.clone(),
        opset_import: opsets(model.opsets.iter()),
        functions: model.functions.iter().map(function).collect::<Result<_>>()?,
        ..Default::default()
    })
}

fn opsets<'a>(opsets: impl Iterator<Item = (&'a String, &'a i64)>) -> Vec<OperatorSetIdProto> {
    opsets
        .map(|(domain, &version)| OperatorSetIdProto {
            domain: domain.clone(),
            version,
            ..Default::default()
        })
        .collect()
}

fn graph(graph: &Graph, with_initializers: bool) -> Result<GraphProto> {
    let initializers = graph.initializers.iter().filter(|_| with_initializers);
    Ok(GraphProto {
        name: if graph.name.is_empty() { "graph".into() } else { graph.name.clone() },
        node: graph.nodes.iter().map(node).collect::<Result<_>>()?,
        input: graph.inputs.iter().map(value_info).collect(),
        output: graph.outputs.iter().map(value_info).collect(),
        initializer: initializers.map(|(id, t)| tensor(id.as_str(), t)).collect(),
        ..Default::default()
    })
}

fn value_info(info: &ValueInfo) -> ValueInfoProto {
    let mut proto = ValueInfoProto { name: info.id.as_str().to_owned(), ..Default::default() };
    if let Some(dtype) = info.dtype {
        let shape = info
            .shape
            .as_ref()
            .map(|dims| TensorShapeProto { dim: dims.iter().map(dimension).collect(), ..Default::default() });
        let tensor =
            type_proto::Tensor { elem_type: dtype.to_onnx(), shape: shape.into(), ..Default::default() };
        let value = Some(type_proto::Value::TensorType(tensor));
        proto.type_ = Some(TypeProto { value, ..Default::default() }).into();
    }
    proto
}

fn dimension(dim: &Dim) -> tensor_shape_proto::Dimension {
    use tensor_shape_proto::dimension::Value;
    let value = match dim {
        Dim::Known(n) => Some(Value::DimValue(*n as i64)),
        Dim::Named(name) => Some(Value::DimParam(name.clone())),
        Dim::Unknown => None,
    };
    tensor_shape_proto::Dimension { value, ..Default::default() }
}

fn names(ids: &[Option<ValueId>]) -> Vec<String> {
    ids.iter().map(|id| id.as_ref().map_or(String::new(), |id| id.to_string())).collect()
}

/// Name and overload of a function or operator, see `convert::overloaded`.
fn split_overload(name: &str) -> (String, String) {
    let (name, overload) = name.split_once(':').unwrap_or((name, ""));
    (name.to_owned(), overload.to_owned())
}

fn node(node: &Node) -> Result<NodeProto> {
    let (op_type, overload) = split_overload(&node.op);
    Ok(NodeProto {
        name: node.name.clone(),
        op_type,
        overload,
        domain: node.domain.clone(),
        input: names(&node.inputs),
        output: names(&node.outputs),
        attribute: node.attrs.iter().map(|(name, value)| attribute(name, value)).collect::<Result<_>>()?,
        ..Default::default()
    })
}

fn attribute(name: &str, value: &Attr) -> Result<AttributeProto> {
    let mut proto = AttributeProto { name: name.to_owned(), ..Default::default() };
    let kind = match value {
        Attr::Int(v) => {
            proto.i = *v;
            Type::INT
        }
        Attr::Ints(v) => {
            proto.ints = v.clone();
            Type::INTS
        }
        Attr::Float(v) => {
            proto.f = *v;
            Type::FLOAT
        }
        Attr::Floats(v) => {
            proto.floats = v.clone();
            Type::FLOATS
        }
        Attr::Str(v) => {
            proto.s = v.clone().into_bytes();
            Type::STRING
        }
        Attr::Strs(v) => {
            proto.strings = v.iter().map(|s| s.clone().into_bytes()).collect();
            Type::STRINGS
        }
        Attr::Tensor(v) => {
            proto.t = Some(tensor("", v)).into();
            Type::TENSOR
        }
        Attr::Graph(v) => {
            proto.g = Some(graph(v, true)?).into();
            Type::GRAPH
        }
        Attr::Graphs(v) => {
            proto.graphs = v.iter().map(|g| graph(g, true)).collect::<Result<_>>()?;
            Type::GRAPHS
        }
        Attr::Ref { name, kind } => {
            proto.ref_attr_name = name.clone();
            proto.type_ = onnx_protobuf_enum(*kind);
            return Ok(proto);
        }
        Attr::Other(bytes) => {
            return AttributeProto::parse_from_bytes(bytes)
                .map_err(|e| Error::usage(format!("the attribute '{name}' can't be written: {e}")));
        }
    };
    proto.type_ = kind.into();
    Ok(proto)
}

fn onnx_protobuf_enum(kind: i32) -> protobuf::EnumOrUnknown<Type> {
    protobuf::EnumOrUnknown::from_i32(kind)
}

/// A tensor without its payload.
fn tensor_head(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: tensor.dtype().to_onnx(),
        ..Default::default()
    }
}

fn tensor(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = tensor_head(name, tensor);
    match tensor.dtype() {
        DType::Str => {
            let bytes = tensor.bytes();
            let strings = Fields::new(bytes, 0..bytes.len()).flatten().filter(|f| f.coding == Coding::Bytes);
            proto.string_data = strings.filter_map(|f| bytes.get(f.body).map(<[u8]>::to_vec)).collect();
        }
        _ => proto.raw_data = tensor.bytes().to_vec(),
    }
    proto
}

fn function(function: &Function) -> Result<FunctionProto> {
    let ids = |list: &[ValueId]| list.iter().map(|id| id.to_string()).collect();
    let (name, overload) = split_overload(&function.name);
    let defaults = function.defaults.iter().map(|(name, value)| attribute(name, value));
    Ok(FunctionProto {
        name,
        overload,
        domain: function.domain.clone(),
        input: ids(&function.inputs),
        output: ids(&function.outputs),
        attribute: function.attributes.clone(),
        attribute_proto: defaults.collect::<Result<_>>()?,
        node: function.nodes.iter().map(node).collect::<Result<_>>()?,
        opset_import: opsets(function.opsets.iter()),
        ..Default::default()
    })
}
