//! What has become of operators since opset 7: one function turns a node of any opset into those of opset 18.
//!
//! Mostly attributes that are inputs now. Numbers in comments are the opsets that changed an operator.

use super::upgrade::{Kept, Upgrade};
use crate::error::{Error, Result};
use crate::onnx::{Attr, DType, Dim, Graph, Node, Tensor, ValueId, ValueInfo};

/// Emits the modern form of `node`, which is of operator set `version`.
pub fn modernise(up: &mut Upgrade<'_>, node: Node, version: i64) -> Result<()> {
    match node.op.as_str() {
        "Constant" => hoist(up, node),
        "Squeeze" | "Unsqueeze" if version < 13 => attribute_to_input(up, node, "axes", 1),
        "ReduceSum" if version < 13 => attribute_to_input(up, node, "axes", 1),
        "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean"
        | "ReduceMin" | "ReduceProd" | "ReduceSumSquare"
            if version < 18 =>
        {
            attribute_to_input(up, node, "axes", 1)
        }
        "Pad" if version < 11 => pad(up, node),
        "Slice" if version < 10 => slice(up, node),
        "Clip" if version < 11 => clip(up, node),
        "Upsample" => upsample(up, node),
        "Resize" => resize(up, node, version),
        "Dropout" => dropout(up, node),
        "BatchNormalization" if version < 14 => batch_normalization(up, node),
        "Softmax" | "LogSoftmax" | "Hardmax" if version < 13 => flattening(up, node),
        "Split" => split(up, node, version),
        "TopK" => top_k(up, node),
        "Swish" | "SwiGLU" => swish(up, node),
        // 20: another default.
        "DFT" if version < 20 && node.int("axis").is_none() => {
            up.push(node.with("axis", 1i64));
            Ok(())
        }
        "Scatter" => {
            up.push(Node { op: "ScatterElements".into(), ..node });
            Ok(())
        }
        "RoiAlign" if version < 16 => {
            up.push(node.with("coordinate_transformation_mode", "output_half_pixel"));
            Ok(())
        }
        "Scan" if version < 9 => scan(up, node),
        _ => {
            up.push(node);
            Ok(())
        }
    }
}

fn hoist(up: &mut Upgrade<'_>, node: Node) -> Result<()> {
    let unreadable = || Error::node(&node, "holds no constant that can be read");
    let (name, value) = node.attrs.first().ok_or_else(unreadable)?;
    let floats = |v: &[f32]| Tensor::f32(&[v.len()], v);
    let tensor = match (name.as_str(), value) {
        (_, Attr::Tensor(tensor)) => tensor.clone(),
        ("value_float", Attr::Float(v)) => Tensor::scalar(DType::F32, f64::from(*v)),
        ("value_floats", Attr::Floats(v)) => floats(v),
        ("value_int", Attr::Int(v)) => Tensor::i64(&[], &[*v]),
        ("value_ints", Attr::Ints(v)) => Tensor::i64(&[v.len()], v),
        // Strings: no weight and no arithmetic; the node stays as it is.
        _ => {
            up.push(node);
            return Ok(());
        }
    };
    let output = node.output(0).cloned().ok_or_else(unreadable)?;
    up.initializer(output, tensor);
    Ok(())
}

/// Puts a list of integers that was an attribute where it is an input now.
fn attribute_to_input(up: &mut Upgrade<'_>, mut node: Node, name: &str, index: usize) -> Result<()> {
    if let Some(Attr::Ints(values)) = node.attrs.shift_remove(name) {
        let id = up.ints(&node, name, &values);
        set_input(&mut node, index, id);
    }
    up.push(node);
    Ok(())
}

fn set_input(node: &mut Node, index: usize, id: ValueId) {
    if node.inputs.len() <= index {
        node.inputs.resize(index + 1, None);
    }
    node.inputs[index] = Some(id);
}

fn pad(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    let value = node.float_or("value", 0.0);
    node.attrs.shift_remove("value");
    if value != 0.0 {
        let dtype = up.dtype(node.input(0));
        let id = up.constant(&node, "value", Tensor::scalar(dtype, f64::from(value)));
        set_input(&mut node, 2, id);
    }
    attribute_to_input(up, node, "pads", 1)
}

fn slice(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    for (index, name) in ["starts", "ends", "axes"].into_iter().enumerate() {
        if let Some(Attr::Ints(values)) = node.attrs.shift_remove(name) {
            let id = up.ints(&node, name, &values);
            set_input(&mut node, index + 1, id);
        }
    }
    up.push(node);
    Ok(())
}

fn clip(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    let dtype = up.dtype(node.input(0));
    for (index, name) in ["min", "max"].into_iter().enumerate() {
        if let Some(Attr::Float(value)) = node.attrs.shift_remove(name) {
            let bound = Tensor::scalar(dtype, f64::from(value));
            // Bounds like the greatest float32 are infinite in float16: no bound at all.
            if bound.first_non_finite().is_none() {
                let id = up.constant(&node, name, bound);
                set_input(&mut node, index + 1, id);
            }
        }
    }
    up.push(node);
    Ok(())
}

/// Upsample (7: scales as attribute; 9: as input) is Resize with asymmetric coordinates.
fn upsample(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    let scales = match node.attrs.shift_remove("scales") {
        Some(Attr::Floats(scales)) => up.constant(&node, "scales", Tensor::f32(&[scales.len()], &scales)),
        _ => node.input(1).cloned().ok_or_else(|| Error::node(&node, "has no scales"))?,
    };
    node.inputs = vec![node.input(0).cloned(), None, Some(scales)];
    asymmetric(up, node);
    Ok(())
}

fn resize(up: &mut Upgrade<'_>, mut node: Node, version: i64) -> Result<()> {
    // 10: Resize(X, scales), as Upsample but downwards too.
    if version < 11 {
        node.inputs = vec![node.input(0).cloned(), None, node.input(1).cloned()];
        asymmetric(up, node);
        return Ok(());
    }
    // 13: what isn't meant is left out, where it was an empty tensor before.
    for input in node.inputs.iter_mut().skip(1) {
        if up.value(input.as_ref()).is_some_and(Tensor::is_empty) {
            *input = None;
        }
    }
    while node.inputs.last().is_some_and(Option::is_none) {
        node.inputs.pop();
    }
    up.push(node);
    Ok(())
}

/// The coordinates of Upsample and of Resize in opset 10. "Nearest" rounds up when the image shrinks.
fn asymmetric(up: &mut Upgrade<'_>, mut node: Node) {
    node.op = "Resize".into();
    let shrinks = up.value(node.input(2)).is_some_and(|scales| scales.to_f64().iter().any(|&s| s < 1.0));
    if node.str("mode") == Some("bilinear") {
        node = node.with("mode", "linear");
    }
    if node.str("mode").unwrap_or("nearest") == "nearest" {
        node = node.with("nearest_mode", if shrinks { "ceil" } else { "floor" });
    }
    up.push(node.with("coordinate_transformation_mode", "asymmetric"));
}

/// In inference, which is what models are trained from here, dropout passes its input on. It stays where training is to drop, and
/// what share is known.
fn dropout(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    let training = match node.input(2) {
        Some(_) => up.value(node.input(2)).map(|t| t.to_f64().first().is_some_and(|&v| v != 0.0)),
        None => Some(false),
    };
    let ratio = match node.input(1) {
        Some(_) => up.value(node.input(1)).and_then(|t| t.to_f64().first().copied()),
        None => Some(f64::from(node.float_or("ratio", 0.5))),
    };
    let kept = match up.dropout {
        Kept::None => false,
        Kept::Idle => training == Some(false),
        Kept::All => training.is_some(),
    };
    if let Some(ratio) = ratio.filter(|&ratio| kept && ratio > 0.0) {
        let ratio = up.constant(&node, "ratio", Tensor::scalar(DType::F32, ratio));
        node.attrs.clear();
        node.inputs.truncate(1);
        node.inputs.push(Some(ratio));
        up.push(node);
        return Ok(());
    }
    if training != Some(false) {
        // The gradient needs to know what was dropped.
        if node.output(1).is_none() {
            let mask = up.fresh(&format!("{}/mask", node.label()));
            node.outputs.resize(2, None);
            node.outputs[1] = Some(mask);
        }
        up.push(node);
        return Ok(());
    }
    if let Some(mask) = node.output(1).cloned() {
        // The mask of inference: true everywhere, in the input's shape.
        let input = node.input(0).cloned().ok_or_else(|| Error::node(&node, "has no input"))?;
        let shape = up.fresh(&format!("{mask}/shape"));
        up.push(Node::new("Shape", &[&input], &[&shape]));
        up.push(Node::new("ConstantOfShape", &[&shape], &[&mask]).with("value", Tensor::bool(&[1], &[true])));
    }
    node.op = "Identity".into();
    node.attrs.clear();
    node.inputs.truncate(1);
    node.outputs.truncate(1);
    up.push(node);
    Ok(())
}

fn batch_normalization(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    let each_position = node.attrs.shift_remove("spatial").is_some_and(|s| s == Attr::Int(0));
    if node.outputs.iter().skip(1).any(Option::is_some) {
        return Err(Error::node(&node, "is in the training form of an opset before 14")
            .hint("export the model in evaluation mode"));
    }
    node.outputs.truncate(1);
    match each_position {
        true => normalise_positions(up, node),
        false => {
            up.push(node);
            Ok(())
        }
    }
}

/// 7, with `spatial = 0`: every position has its own statistics, in tensors of the shape of a row.
fn normalise_positions(up: &mut Upgrade<'_>, node: Node) -> Result<()> {
    let input =
        |i: usize| node.input(i).cloned().ok_or_else(|| Error::node(&node, format!("input {i} is missing")));
    let (x, scale, bias, mean, variance) = (input(0)?, input(1)?, input(2)?, input(3)?, input(4)?);
    let output = node.output(0).cloned().ok_or_else(|| Error::node(&node, "has no output"))?;
    let epsilon = Tensor::scalar(up.dtype(Some(&x)), f64::from(node.float_or("epsilon", 1e-5)));
    let epsilon = up.constant(&node, "epsilon", epsilon);
    let mut emit = |op: &str, inputs: &[&ValueId]| {
        let made = up.fresh(&format!("{output}/{op}"));
        up.push(Node::new(op, inputs, &[&made]));
        made
    };
    let centred = emit("Sub", &[&x, &mean]);
    let shifted = emit("Add", &[&variance, &epsilon]);
    let deviation = emit("Sqrt", &[&shifted]);
    let normal = emit("Div", &[&centred, &deviation]);
    let scaled = emit("Mul", &[&normal, &scale]);
    up.push(Node::new("Add", &[&scaled, &bias], &[&output]));
    Ok(())
}

/// Before 13, softmax and its kin worked on the axes from `axis` on together.
fn flattening(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    let axis = node.int_or("axis", 1);
    let missing = |what: &str| Error::node(&node, format!("has no {what}"));
    let input = node.input(0).cloned().ok_or_else(|| missing("input"))?;
    let output = node.output(0).cloned().ok_or_else(|| missing("output"))?;
    node.attrs.insert("axis".into(), Attr::Int(-1));
    if axis == -1 || up.rank(Some(&input)).is_some_and(|rank| axis == rank as i64 - 1) {
        up.push(node);
        return Ok(());
    }
    let (flat, soft) = (up.fresh(&format!("{output}/flat")), up.fresh(&format!("{output}/soft")));
    let shape = up.fresh(&format!("{output}/shape"));
    up.push(Node::new("Shape", &[&input], &[&shape]));
    up.push(Node::new("Flatten", &[&input], &[&flat]).with("axis", axis));
    node.inputs = vec![Some(flat)];
    node.outputs = vec![Some(soft.clone())];
    up.push(node);
    up.push(Node::new("Reshape", &[&soft, &shape], &[&output]));
    Ok(())
}

/// 13: the parts are an input. 18: without it, the number of parts must be said.
fn split(up: &mut Upgrade<'_>, mut node: Node, version: i64) -> Result<()> {
    if version < 13
        && let Some(Attr::Ints(parts)) = node.attrs.shift_remove("split")
    {
        let id = up.ints(&node, "split", &parts);
        set_input(&mut node, 1, id);
    }
    if node.input(1).is_none() && version < 18 {
        let parts = node.outputs.len() as i64;
        node = node.with("num_outputs", parts);
    }
    // The gradient puts all parts together again.
    for i in 0..node.outputs.len() {
        if node.output(i).is_none() {
            node.outputs[i] = Some(up.fresh(&format!("{}/part{i}", node.label())));
        }
    }
    up.push(node);
    Ok(())
}

/// 8: a `Scan` for each row of a batch, which becomes a `Scan` over the rows around one over the sequence.
fn scan(up: &mut Upgrade<'_>, node: Node) -> Result<()> {
    if node.input(0).is_some() {
        return Err(Error::node(&node, "has sequences of different lengths, which opset 9 abolished")
            .hint("export the model again with opset 9 or later"));
    }
    let scanned = node.int_or("num_scan_inputs", 0);
    let given: Vec<ValueId> = node.inputs.iter().skip(1).flatten().cloned().collect();
    let body = node.graph("body").cloned().ok_or_else(|| Error::node(&node, "has no body"))?;
    let mut rows = Graph { name: format!("{}/row", node.label()), ..Graph::default() };
    for id in &given {
        let shape = up.rank(Some(id)).map(|rank| vec![Dim::Unknown; rank.saturating_sub(1)]);
        let row = up.fresh(&format!("{id}/row"));
        rows.inputs.push(ValueInfo { id: row, dtype: Some(up.dtype(Some(id))), shape });
    }
    let made: Vec<ValueId> = body.outputs.iter().map(|o| up.fresh(&format!("{}/row", o.id))).collect();
    for (id, output) in made.iter().zip(&body.outputs) {
        rows.outputs.push(ValueInfo { id: id.clone(), dtype: output.dtype, shape: None });
    }
    let inputs: Vec<&ValueId> = rows.inputs.iter().map(|i| &i.id).collect();
    let mut inner = Node::new("Scan", &inputs, &made.iter().collect::<Vec<_>>())
        .with("body", Attr::Graph(Box::new(body)))
        .with("num_scan_inputs", scanned);
    if let Some(directions) = node.ints("directions") {
        inner = inner.with("scan_input_directions", directions);
    }
    rows.nodes.push(inner);
    let mut outer = Node::new("Scan", &given.iter().collect::<Vec<_>>(), &[])
        .with("body", Attr::Graph(Box::new(rows)))
        .with("num_scan_inputs", given.len() as i64);
    outer.outputs = node.outputs;
    outer.name = node.name;
    up.push(outer);
    Ok(())
}

/// 24: `x · σ(αx)`; 28: that times a second input. Few executors have kernels for them.
fn swish(up: &mut Upgrade<'_>, node: Node) -> Result<()> {
    let input =
        |i: usize| node.input(i).cloned().ok_or_else(|| Error::node(&node, format!("input {i} is missing")));
    let (x, value) = (input(0)?, if node.op == "SwiGLU" { Some(input(1)?) } else { None });
    let output = node.output(0).cloned().ok_or_else(|| Error::node(&node, "has no output"))?;
    let fresh = |up: &mut Upgrade<'_>, what: &str| up.fresh(&format!("{output}/{what}"));
    let mut inner = x.clone();
    let alpha = node.float_or("alpha", 1.0);
    if alpha != 1.0 {
        let factor = up.constant(&node, "alpha", Tensor::scalar(up.dtype(Some(&x)), f64::from(alpha)));
        inner = fresh(up, "scaled");
        up.push(Node::new("Mul", &[&x, &factor], &[&inner]));
    }
    let gate = fresh(up, "gate");
    up.push(Node::new("Sigmoid", &[&inner], &[&gate]));
    match value {
        None => up.push(Node::new("Mul", &[&x, &gate], &[&output])),
        Some(value) => {
            let gated = fresh(up, "gated");
            up.push(Node::new("Mul", &[&x, &gate], &[&gated]));
            up.push(Node::new("Mul", &[&gated, &value], &[&output]));
        }
    }
    Ok(())
}

fn top_k(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    if let Some(Attr::Int(k)) = node.attrs.shift_remove("k") {
        let id = up.ints(&node, "k", &[k]);
        set_input(&mut node, 1, id);
    }
    // The gradient needs to know where the values came from.
    if node.output(1).is_none() {
        let places = up.fresh(&format!("{}/places", node.label()));
        node.outputs.resize(2, None);
        node.outputs[1] = Some(places);
    }
    up.push(node);
    Ok(())
}
