//! From parsed protobuf messages to the intermediate representation.
//!
//! Gets the skeleton of a model (see [`super::scan`]) and fetches each tensor's payload from the [`Store`].
//! Checks that graphs are well formed: every value made once and before it is read.

use super::payload::Store;
use super::{Attr, DType, Dim, Function, Graph, Model, Node, Tensor, ValueId, ValueInfo, element_count};
use crate::error::{Error, Result};
use indexmap::IndexMap;
use onnx_protobuf::attribute_proto::AttributeType as Type;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, TensorProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use std::collections::{HashMap, HashSet};

/// The whole model. The caller has checked that there is a graph.
pub(super) fn model(proto: &ModelProto, store: &mut Store) -> Result<Model> {
    let graph = graph(&proto.graph, store, &HashSet::new())?;
    let functions = proto.functions.iter().map(|f| function(f, store)).collect::<Result<_>>()?;
    Ok(Model {
        graph,
        ir_version: proto.ir_version,
        opsets: opsets(&proto.opset_import),
        functions,
        producer: [proto.producer_name.trim(), proto.producer_version.trim()].join(" ").trim().to_owned(),
    })
}

fn opsets(imports: &[OperatorSetIdProto]) -> IndexMap<String, i64> {
    imports.iter().map(|import| (domain(&import.domain), import.version)).collect()
}

fn domain(name: &str) -> String {
    if name == "ai.onnx" { String::new() } else { name.to_owned() }
}

/// A graph whose surroundings define the values `outer`.
fn graph(proto: &GraphProto, store: &mut Store, outer: &HashSet<ValueId>) -> Result<Graph> {
    let mut graph = Graph { name: proto.name.clone(), ..Graph::default() };
    graph.inputs = proto.input.iter().map(value_info).collect::<Result<_>>()?;
    graph.outputs = proto.output.iter().map(value_info).collect::<Result<_>>()?;
    let mut known = HashSet::new();
    for input in &graph.inputs {
        if !known.insert(input.id.clone()) {
            return Err(twice(&input.id));
        }
    }
    for tensor in &proto.initializer {
        insert(&mut graph, ValueId::new(&tensor.name), store.tensor(tensor)?)?;
    }
    for sparse in &proto.sparse_initializer {
        insert(&mut graph, ValueId::new(&sparse.values.name), dense(sparse)?)?;
    }
    known.extend(graph.initializers.keys().cloned());
    let mut scope: HashSet<ValueId> = outer.union(&known).cloned().collect();
    scope.extend(proto.node.iter().flat_map(|n| &n.output).filter(|name| !name.is_empty()).map(ValueId::new));
    let mut constants: HashMap<ValueId, usize> = HashMap::new();
    for proto in &proto.node {
        let node = node(proto, store, &scope)?;
        // Of constants that share a name the last one counts, as in ONNX Runtime: some exporters write such.
        if let (true, Some(id)) = (node.is("Constant"), node.output(0).cloned()) {
            if let Some(&earlier) = constants.get(&id) {
                graph.nodes[earlier] = node;
                continue;
            }
            constants.insert(id, graph.nodes.len());
        }
        if let Some(id) = node.outputs.iter().flatten().find(|id| !known.insert((*id).clone())) {
            return Err(twice(id));
        }
        graph.nodes.push(node);
    }
    sort(&mut graph.nodes, &known)?;
    let reads = super::outer_reads(&graph);
    if let Some(id) = reads.iter().find(|id| !outer.contains(*id)) {
        let reader = graph.nodes.iter().find(|n| super::node_reads(n).contains(id));
        return Err(match reader {
            Some(node) => Error::node(node, format!("reads '{id}', which nothing makes")),
            None => Error::tensor(id.as_str(), "is an output of the graph, but nothing makes it"),
        });
    }
    Ok(graph)
}

fn insert(graph: &mut Graph, id: ValueId, tensor: Tensor) -> Result<()> {
    if id.as_str().is_empty() {
        return Err(Error::tensor("(unnamed)", "is an initializer without a name"));
    }
    match graph.initializers.insert(id.clone(), tensor) {
        Some(_) => Err(twice(&id)),
        None => Ok(()),
    }
}

fn twice(id: &ValueId) -> Error {
    Error::tensor(id.as_str(), "is defined twice: values of an ONNX graph may be made only once")
}

/// Brings nodes into an order in which values are made before they are read; keeps the given one if it is.
fn sort(nodes: &mut Vec<Node>, own: &HashSet<ValueId>) -> Result<()> {
    let mut maker: HashMap<ValueId, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        maker.extend(node.outputs.iter().flatten().filter(|o| own.contains(*o)).map(|o| (o.clone(), i)));
    }
    let needs: Vec<Vec<usize>> = nodes
        .iter()
        .map(|node| super::node_reads(node).iter().filter_map(|v| maker.get(v).copied()).collect())
        .collect();
    if needs.iter().enumerate().all(|(i, needs)| needs.iter().all(|&n| n < i)) {
        return Ok(());
    }
    // Depth-first, with a stack of our own: hostile graphs are deep.
    let (mut order, mut state) = (vec![], vec![0u8; nodes.len()]);
    for root in 0..nodes.len() {
        let mut stack = vec![(root, 0)];
        while let Some((node, next)) = stack.pop() {
            if next == 0 {
                if state[node] == 2 {
                    continue;
                }
                state[node] = 1;
            }
            match needs[node].get(next) {
                Some(&needed) => {
                    stack.push((node, next + 1));
                    match state[needed] {
                        0 => stack.push((needed, 0)),
                        1 => {
                            return Err(Error::node(
                                &nodes[needed],
                                "depends on its own output: the graph has a cycle",
                            ));
                        }
                        _ => {}
                    }
                }
                None => {
                    state[node] = 2;
                    order.push(node);
                }
            }
        }
    }
    let mut taken: Vec<Option<Node>> = std::mem::take(nodes).into_iter().map(Some).collect();
    *nodes = order.into_iter().filter_map(|i| taken[i].take()).collect();
    Ok(())
}

fn value_info(proto: &ValueInfoProto) -> Result<ValueInfo> {
    let id = ValueId::new(&proto.name);
    let Some(type_proto::Value::TensorType(tensor)) = &proto.type_.value else {
        return Ok(ValueInfo { id, dtype: None, shape: None });
    };
    let dim = |d: &tensor_shape_proto::Dimension| match &d.value {
        // Old exporters write -1 for "any".
        Some(tensor_shape_proto::dimension::Value::DimValue(v)) => {
            usize::try_from(*v).map_or(Dim::Unknown, Dim::Known)
        }
        Some(tensor_shape_proto::dimension::Value::DimParam(name)) if !name.is_empty() => {
            Dim::Named(name.clone())
        }
        _ => Dim::Unknown,
    };
    let shape: Option<Vec<Dim>> = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dim).collect());
    let known: Vec<usize> =
        shape.iter().flatten().filter_map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect();
    if element_count(&known).is_none_or(|n| n > isize::MAX as usize / 16) {
        return Err(Error::tensor(
            &proto.name,
            format!("its declared shape {known:?} is larger than any memory"),
        ));
    }
    let dtype = Some(tensor.elem_type).filter(|&t| t != 0).map(DType::from_onnx);
    Ok(ValueInfo { id, dtype, shape })
}

fn names(list: &[String]) -> Vec<Option<ValueId>> {
    list.iter().map(|name| (!name.is_empty()).then(|| ValueId::new(name))).collect()
}

/// Functions that share a name are told apart by their overload.
fn overloaded(name: &str, overload: &str) -> String {
    if overload.is_empty() { name.to_owned() } else { format!("{name}:{overload}") }
}

fn node(proto: &NodeProto, store: &mut Store, scope: &HashSet<ValueId>) -> Result<Node> {
    let mut node = Node {
        name: proto.name.clone(),
        op: overloaded(&proto.op_type, &proto.overload),
        domain: domain(&proto.domain),
        inputs: names(&proto.input),
        outputs: names(&proto.output),
        attrs: IndexMap::new(),
    };
    for proto in &proto.attribute {
        let value = attribute(proto, store, scope)?;
        if node.attrs.insert(proto.name.clone(), value).is_some() {
            return Err(Error::node(&node, format!("has the attribute '{}' twice", proto.name)));
        }
    }
    Ok(node)
}

fn attribute(proto: &AttributeProto, store: &mut Store, scope: &HashSet<ValueId>) -> Result<Attr> {
    if !proto.ref_attr_name.is_empty() {
        return Ok(Attr::Ref { name: proto.ref_attr_name.clone(), kind: proto.type_.value() });
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let kept = || {
        let bytes = proto.write_to_bytes();
        bytes
            .map(Attr::Other)
            .map_err(|e| Error::tensor(&proto.name, format!("attribute can't be kept: {e}")))
    };
    Ok(match kind(proto) {
        Some(Type::INT) => Attr::Int(proto.i),
        Some(Type::INTS) => Attr::Ints(proto.ints.clone()),
        Some(Type::FLOAT) => Attr::Float(proto.f),
        Some(Type::FLOATS) => Attr::Floats(proto.floats.clone()),
        Some(Type::STRING) => match text(&proto.s) {
            Some(text) => Attr::Str(text),
            None => kept()?,
        },
        Some(Type::STRINGS) => match proto.strings.iter().map(|s| text(s)).collect() {
            Some(texts) => Attr::Strs(texts),
            None => kept()?,
        },
        Some(Type::TENSOR) if proto.t.is_some() => Attr::Tensor(store.tensor(&proto.t)?),
        Some(Type::GRAPH) if proto.g.is_some() => Attr::Graph(Box::new(graph(&proto.g, store, scope)?)),
        Some(Type::GRAPHS) => {
            Attr::Graphs(proto.graphs.iter().map(|g| graph(g, store, scope)).collect::<Result<_>>()?)
        }
        Some(Type::SPARSE_TENSOR) if proto.sparse_tensor.is_some() => {
            Attr::Tensor(dense(&proto.sparse_tensor)?)
        }
        _ => kept()?,
    })
}

/// The kind of an attribute; guessed from what is set where an old file doesn't say.
fn kind(proto: &AttributeProto) -> Option<Type> {
    let guess = [
        (proto.t.is_some(), Type::TENSOR),
        (proto.g.is_some(), Type::GRAPH),
        (!proto.ints.is_empty(), Type::INTS),
        (!proto.floats.is_empty(), Type::FLOATS),
        (!proto.strings.is_empty(), Type::STRINGS),
        (!proto.graphs.is_empty(), Type::GRAPHS),
        (!proto.s.is_empty(), Type::STRING),
        (proto.f != 0.0, Type::FLOAT),
    ];
    match proto.type_.enum_value() {
        Ok(Type::UNDEFINED) => Some(guess.iter().find(|(set, _)| *set).map_or(Type::INT, |(_, kind)| *kind)),
        Ok(kind) => Some(kind),
        Err(_) => None,
    }
}

/// A sparse tensor with all its zeros. It has no site: its bytes can't take other values.
fn dense(proto: &SparseTensorProto) -> Result<Tensor> {
    let values: &TensorProto = &proto.values;
    let refuse = |what: &str| Error::tensor(&values.name, what);
    let shape: Option<Vec<usize>> = proto.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let dtype = DType::from_onnx(values.data_type);
    let total = shape.as_deref().and_then(element_count).filter(|&n| n <= 1 << 30);
    let (Some(shape), Some(total), Some(width)) = (shape, total, dtype.size()) else {
        return Err(refuse("is a sparse tensor of impossible shape or type"));
    };
    let elements: Vec<u8> = match dtype {
        _ if !values.raw_data.is_empty() => values.raw_data.clone(),
        DType::F32 => bytemuck::cast_slice(&values.float_data).to_vec(),
        DType::F64 => bytemuck::cast_slice(&values.double_data).to_vec(),
        DType::I64 => bytemuck::cast_slice(&values.int64_data).to_vec(),
        _ => values.int32_data.iter().flat_map(|v| v.to_le_bytes()[..width.min(4)].to_vec()).collect(),
    };
    let indices: Vec<i64> = match proto.indices.raw_data.is_empty() {
        true => proto.indices.int64_data.clone(),
        false => bytemuck::pod_collect_to_vec(
            proto.indices.raw_data.get(..proto.indices.raw_data.len() / 8 * 8).unwrap_or_default(),
        ),
    };
    let count = elements.len() / width;
    let rank = if proto.indices.dims.len() == 2 { shape.len() } else { 1 };
    if indices.len() != count.saturating_mul(rank) {
        return Err(refuse("is a sparse tensor whose indices don't match its values"));
    }
    let mut bytes = vec![0; total * width];
    for (i, element) in elements.chunks_exact(width).enumerate() {
        let index = indices.get(i * rank..(i + 1) * rank).unwrap_or_default();
        let flat = match rank {
            1 => index.first().and_then(|&v| usize::try_from(v).ok()),
            _ => index.iter().zip(&shape).try_fold(0usize, |at, (&v, &d)| {
                usize::try_from(v).ok().filter(|&v| v < d).and_then(|v| at.checked_mul(d)?.checked_add(v))
            }),
        };
        let target =
            flat.and_then(|f| bytes.get_mut(f.checked_mul(width)?..)).and_then(|b| b.get_mut(..width));
        target
            .ok_or_else(|| refuse("is a sparse tensor with an index outside its shape"))?
            .copy_from_slice(element);
    }
    Tensor::new(dtype, &shape, bytes)
}

fn function(proto: &FunctionProto, store: &mut Store) -> Result<Function> {
    let ids = |list: &[String]| list.iter().map(ValueId::new).collect::<Vec<_>>();
    let inputs = ids(&proto.input);
    let mut scope: HashSet<ValueId> = inputs.iter().cloned().collect();
    scope.extend(proto.node.iter().flat_map(|n| &n.output).map(ValueId::new));
    let mut nodes = proto.node.iter().map(|n| node(n, store, &scope)).collect::<Result<Vec<_>>>()?;
    let own = nodes.iter().flat_map(|n| n.outputs.iter().flatten().cloned()).collect();
    sort(&mut nodes, &own).map_err(|e| e.context(format!("function '{}'", proto.name)))?;
    let defaults = proto.attribute_proto.iter().map(|a| Ok((a.name.clone(), attribute(a, store, &scope)?)));
    Ok(Function {
        domain: domain(&proto.domain),
        name: overloaded(&proto.name, &proto.overload),
        inputs,
        outputs: ids(&proto.output),
        attributes: proto.attribute.clone(),
        defaults: defaults.collect::<Result<_>>()?,
        nodes,
        opsets: opsets(&proto.opset_import),
    })
}
