//! What has become of operators since opset 7: one function turns a node of any opset into those of opset 18.
//!
//! Mostly attributes that are inputs now. Numbers in comments are the opsets that changed an operator.

use super::upgrade::Upgrade;
use crate::error::{Error, Result};
use crate::onnx::{Attr, DType, Node, Tensor, ValueId};

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
        "Split" if version < 18 => split(up, node, version),
        "TopK" if version < 10 => top_k(up, node),
        "Scatter" => {
            up.push(Node { op: "ScatterElements".into(), ..node });
            Ok(())
        }
        "RoiAlign" if version < 16 => {
            up.push(node.with("coordinate_transformation_mode", "output_half_pixel"));
            Ok(())
        }
        "Scan" if version < 9 => {
            Err(Error::node(&node, "has the form of opset 8, which no later one can express")
                .hint("export the model again with opset 9 or later"))
        }
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

/// In inference, which is what models are trained from here, dropout passes its input on.
fn dropout(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    let training = node.input(2).is_some()
        && up.value(node.input(2)).is_none_or(|t| t.to_f64().first().is_some_and(|&v| v != 0.0));
    if training {
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
    if node.attrs.shift_remove("spatial").is_some_and(|s| s == Attr::Int(0)) {
        return Err(Error::node(
            &node,
            "normalises each position by itself (spatial = 0), which opset 9 abolished",
        ));
    }
    if node.outputs.iter().skip(1).any(Option::is_some) {
        return Err(Error::node(&node, "is in the training form of an opset before 14")
            .hint("export the model in evaluation mode"));
    }
    node.outputs.truncate(1);
    up.push(node);
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
    if node.input(1).is_none() {
        let parts = node.outputs.len() as i64;
        node = node.with("num_outputs", parts);
    }
    up.push(node);
    Ok(())
}

fn top_k(up: &mut Upgrade<'_>, mut node: Node) -> Result<()> {
    if let Some(Attr::Int(k)) = node.attrs.shift_remove("k") {
        let id = up.ints(&node, "k", &[k]);
        set_input(&mut node, 1, id);
    }
    up.push(node);
    Ok(())
}
