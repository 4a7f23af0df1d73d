//! Operators with a weight matrix (convolutions, products, embeddings, attention) and normalisations.

use super::labels::{Atom, Labels};
use super::{Form, Walk};
use crate::onnx::{Node, ValueId};
use crate::params::{MatrixView, Role};

/// Follows channels through `node`, if it is one of these.
pub fn visit(walk: &mut Walk, node: &Node) -> bool {
    match node.op.as_str() {
        "Conv" | "FusedConv" | "NhwcFusedConv" => conv(walk, node, 0, 1, Some(2)),
        "ConvInteger" => conv(walk, node, 0, 1, None),
        "QLinearConv" => conv(walk, node, 0, 3, Some(8)),
        "ConvTranspose" => conv_transpose(walk, node),
        "Gemm" | "FusedGemm" => gemm(walk, node),
        "MatMul" | "FusedMatMul" | "TransposeMatMul" | "MatMulInteger" => product(walk, node, 0, 1),
        "QLinearMatMul" => product(walk, node, 0, 3),
        "Gather" if walk.is_stored(node.input(0)) => embedding(walk, node),
        "BatchNormalization" => norm(
            walk,
            node,
            1,
            &[(1, Role::NormScale), (2, Role::NormShift), (3, Role::RunningStat), (4, Role::RunningStat)],
        ),
        "InstanceNormalization" | "GroupNormalization" | "GroupNorm" => {
            norm(walk, node, 1, &[(1, Role::NormScale), (2, Role::NormShift)])
        }
        "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization" => {
            norm(walk, node, -1, &[(1, Role::NormScale), (2, Role::NormShift)])
        }
        "SkipLayerNormalization" => {
            skip_norm(walk, node, &[(2, Role::NormScale), (3, Role::NormShift), (4, Role::Bias)])
        }
        "SkipSimplifiedLayerNormalization" => skip_norm(walk, node, &[(2, Role::NormScale), (3, Role::Bias)]),
        "Attention" if node.domain == "com.microsoft" => fused_attention(walk, node),
        "Attention" | "MultiHeadAttention" => attention(walk, node),
        _ => return false,
    }
    true
}

fn identity(form: &Form) -> bool {
    form.perm.iter().enumerate().all(|(i, &p)| i == p)
}

fn form(walk: &Walk, weight: &ValueId) -> Option<Form> {
    let form = walk.stored.get(weight)?.form.clone()?;
    (walk.shape(weight) == Some(form.shape().as_slice())).then_some(form)
}

/// The level of a value that a layer is applied to.
fn level(walk: &Walk, value: Option<&ValueId>) -> usize {
    value.and_then(|v| walk.values.get(v)).map_or(0, |s| s.level)
}

fn conv(walk: &mut Walk, node: &Node, x: usize, w: usize, bias: Option<usize>) {
    let (Some(input), Some(weight)) = (node.input(x), node.input(w)) else {
        return;
    };
    let Some(shape) = walk.shape(weight).filter(|s| s.len() >= 2) else {
        return;
    };
    let channel_axis = if node.op.starts_with("Nhwc") {
        walk.shape(input).map_or(1, |s| s.len().saturating_sub(1))
    } else {
        1
    };
    let group = usize::try_from(node.int_or("group", 1)).unwrap_or(1).max(1);
    let (out, inn) = (shape[0], shape[1]);
    let features = walk.channels(Some(input), channel_axis);
    let depthwise = group > 1 && inn == 1 && features.len() == group;
    if out % group != 0 || features.len() != group * inn {
        return;
    }
    let made = match depthwise {
        true => features.iter().flat_map(|&a| vec![a; out / group]).collect(),
        false => walk.atoms.fresh(out),
    };
    if walk.is_stored(Some(weight)) {
        let view = form(walk, weight).map(|form| MatrixView {
            out,
            inn,
            taps: shape[2..].to_vec(),
            group,
            split: form.split,
            perm: form.perm,
            order: vec![],
        });
        let role = if depthwise { Role::DepthwiseConv } else { Role::Conv };
        walk.matrix(node, weight, role, view, (features, made.clone()));
    }
    finish(walk, node, bias, channel_axis, made, level(walk, Some(input)));
}

fn conv_transpose(walk: &mut Walk, node: &Node) {
    let (Some(input), Some(weight)) = (node.input(0), node.input(1)) else {
        return;
    };
    let Some(shape) = walk.shape(weight).filter(|s| s.len() >= 2) else {
        return;
    };
    let group = usize::try_from(node.int_or("group", 1)).unwrap_or(1).max(1);
    let features = walk.channels(Some(input), 1);
    if shape[0] % group != 0 || features.len() != shape[0] {
        return;
    }
    let (inn, out) = (shape[0] / group, shape[1] * group);
    let depthwise = group > 1 && inn == 1;
    let made = match depthwise {
        true => features.iter().flat_map(|&a| vec![a; shape[1]]).collect(),
        false => walk.atoms.fresh(out),
    };
    if walk.is_stored(Some(weight)) {
        let view = form(walk, weight).filter(identity).map(|_| MatrixView {
            out,
            inn,
            taps: shape[2..].to_vec(),
            group,
            split: [&[group, inn, shape[1]], &shape[2..]].concat(),
            perm: [0, 2, 1].into_iter().chain(3..shape.len() + 1).collect(),
            order: vec![],
        });
        let role = if depthwise { Role::DepthwiseConv } else { Role::ConvTranspose };
        walk.matrix(node, weight, role, view, (features, made.clone()));
    }
    finish(walk, node, Some(2), 1, made, level(walk, Some(input)));
}

/// Labels the output of a layer, and notes its bias.
fn finish(walk: &mut Walk, node: &Node, bias: Option<usize>, axis: usize, made: Vec<Atom>, depth: usize) {
    match bias.and_then(|i| node.input(i)) {
        Some(bias) => walk.vector(node, Some(bias), Role::Bias, &made, depth),
        None => walk.bare.extend(node.output(0).cloned()),
    }
    walk.set_channels(node.output(0), axis, made);
}

fn gemm(walk: &mut Walk, node: &Node) {
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else {
        return;
    };
    let flag = |name: &str| node.int_or(name, 0) != 0;
    let depth = level(walk, Some(a)).max(level(walk, Some(b)));
    match (walk.is_stored(Some(a)), walk.is_stored(Some(b))) {
        (false, true) => {
            let features = walk.channels(Some(a), if flag("transA") { 0 } else { 1 });
            let made = linear(walk, node, b, flag("transB"), features);
            finish(walk, node, Some(2), 1, made, depth);
        }
        (true, false) => {
            let features = walk.channels(Some(b), if flag("transB") { 1 } else { 0 });
            let made = linear(walk, node, a, !flag("transA"), features);
            finish(walk, node, Some(2), 0, made, depth);
        }
        _ => {
            let inner_a = walk.channels(Some(a), if flag("transA") { 0 } else { 1 });
            let inner_b = walk.channels(Some(b), if flag("transB") { 1 } else { 0 });
            walk.atoms.unite_all(&inner_a, &inner_b);
        }
    }
}

/// Notes a plain matrix whose rows (`rows_are_outputs`) or columns are output features; gives the output channels.
fn linear(
    walk: &mut Walk,
    node: &Node,
    weight: &ValueId,
    rows_are_outputs: bool,
    features: Vec<Atom>,
) -> Vec<Atom> {
    let Some(&[rows, cols]) = walk.shape(weight) else {
        return vec![];
    };
    let (out, inn) = if rows_are_outputs { (rows, cols) } else { (cols, rows) };
    if features.len() != inn {
        return vec![];
    }
    let made = walk.atoms.fresh(out);
    let view = form(walk, weight).map(|form| MatrixView {
        out,
        inn,
        taps: vec![],
        group: 1,
        perm: if rows_are_outputs { form.perm } else { form.perm.into_iter().rev().collect() },
        split: form.split,
        order: vec![],
    });
    walk.matrix(node, weight, Role::Linear, view, (features, made.clone()));
    made
}

fn product(walk: &mut Walk, node: &Node, left: usize, right: usize) {
    let (Some(a), Some(b)) = (node.input(left), node.input(right)) else {
        return;
    };
    let (Some(shape_a), Some(shape_b)) = (walk.shape(a), walk.shape(b)) else {
        return;
    };
    if shape_a.is_empty() || shape_b.is_empty() {
        return;
    }
    let flag = |name: &str| node.int_or(name, 0) != 0;
    let (swap_a, swap_b) = (flag("transA"), flag("transB"));
    let out_rank = node.output(0).and_then(|o| walk.shape(o)).map_or(0, <[usize]>::len);
    let last = |shape: &[usize], back: usize| shape.len().saturating_sub(back);
    match (walk.is_stored(Some(a)), walk.is_stored(Some(b))) {
        (false, true) if shape_b.len() == 2 && out_rank >= 1 => {
            let features =
                walk.channels(Some(a), last(shape_a, if swap_a && shape_a.len() > 1 { 2 } else { 1 }));
            let made = linear(walk, node, b, swap_b, features);
            finish(walk, node, None, out_rank - 1, made, level(walk, Some(a)));
        }
        (false, true) if shape_b.len() > 2 && !swap_a && !swap_b => batched(walk, node, a, b),
        (true, false) if shape_a.len() == 2 && shape_b.len() >= 2 && out_rank >= 2 => {
            let features = walk.channels(Some(b), last(shape_b, if swap_b { 1 } else { 2 }));
            let made = linear(walk, node, a, !swap_a, features);
            finish(walk, node, None, out_rank - 2, made, level(walk, Some(b)));
        }
        (false, false) if shape_a.len() > 1 && shape_b.len() > 1 => {
            let inner_a = if swap_a { 2 } else { 1 };
            let inner_b = if swap_b { 1 } else { 2 };
            contract(
                walk,
                node,
                (a, last(shape_a, inner_a)),
                (b, last(shape_b, inner_b)),
                !swap_a && !swap_b,
            );
        }
        _ => walk.note_unknown(node),
    }
}

/// A stack of matrices, `[…, in, out]`: one group each (or a plain matrix with idle axes).
fn batched(walk: &mut Walk, node: &Node, a: &ValueId, b: &ValueId) {
    let (Some(shape_a), Some(shape_b), Some(form)) = (walk.shape(a), walk.shape(b), form(walk, b)) else {
        return walk.note_unknown(node);
    };
    let (lead, inn, out) =
        (&shape_b[..shape_b.len() - 2], shape_b[shape_b.len() - 2], shape_b[shape_b.len() - 1]);
    let group: usize = lead.iter().product();
    let Some(out_shape) = node.output(0).and_then(|o| walk.shape(o)) else {
        return;
    };
    let mut perm = form.perm.clone();
    perm.swap(shape_b.len() - 2, shape_b.len() - 1);
    let view =
        MatrixView { out: group * out, inn, taps: vec![], group, split: form.split, perm, order: vec![] };
    let features = match group {
        1 => walk.channels(Some(a), shape_a.len() - 1),
        _ => stacked(walk, a, shape_a, lead, inn),
    };
    let made = walk.atoms.fresh(group * out);
    walk.matrix(node, b, Role::Linear, Some(view), (features, made.clone()));
    let mut shape = vec![1; out_shape.len()];
    let at = out_shape.len().saturating_sub(shape_b.len());
    if at + shape_b.len() == out_shape.len() {
        shape[at..at + lead.len()].copy_from_slice(lead);
        shape[out_shape.len() - 1] = out;
        walk.set(node.output(0), Some(Labels { shape, atoms: made }));
    }
    walk.bare.extend(node.output(0).cloned());
}

/// The features each matrix of a stack reads: its own channels where the labels vary over the stack.
fn stacked(walk: &mut Walk, a: &ValueId, shape_a: &[usize], lead: &[usize], inn: usize) -> Vec<Atom> {
    let mut wanted = vec![1; shape_a.len()];
    let rank = shape_a.len();
    if rank < lead.len() + 2 {
        let one = walk.channels(Some(a), rank - 1);
        return one.repeat(lead.iter().product());
    }
    wanted[rank - 2 - lead.len()..rank - 2].copy_from_slice(lead);
    wanted[rank - 1] = inn;
    match walk.labels(Some(a)).and_then(|l| l.expand(&wanted)) {
        Some(all) => all,
        None => walk.channels(Some(a), rank - 1).repeat(lead.iter().product()),
    }
}

/// A product of two computed values: the channels summed over are one space; what remains keeps its labels where only
/// one operand has channels beyond them (attention weights times values).
fn contract(walk: &mut Walk, node: &Node, a: (&ValueId, usize), b: (&ValueId, usize), plain: bool) {
    let labels = |walk: &Walk, v: (&ValueId, usize)| walk.labels(Some(v.0)).filter(|l| l.shape.len() > v.1);
    let varies = |l: &Option<Labels>, axis: usize| l.as_ref().is_some_and(|l| l.shape[axis] > 1);
    let (left, right) = (labels(walk, a), labels(walk, b));
    let (over_a, over_b) = (varies(&left, a.1), varies(&right, b.1));
    if let (true, true, Some(left), Some(right)) = (over_a, over_b, &left, &right) {
        // Both as […, inner] with the free axis gone.
        let front = |l: &Labels, axis: usize| {
            let free = if axis == l.shape.len() - 1 { axis - 1 } else { l.shape.len() - 1 };
            (l.shape[free] == 1).then(|| {
                let mut perm: Vec<usize> = (0..l.shape.len()).filter(|&i| i != axis).collect();
                perm.push(axis);
                l.transpose(&perm)
            })
        };
        if let (Some(Some(left)), Some(Some(right))) = (front(left, a.1), front(right, b.1)) {
            left.meet(&right, &mut walk.atoms);
        }
        return;
    }
    if !plain || over_a || over_b {
        return;
    }
    let rank = node.output(0).and_then(|o| walk.shape(o)).map_or(0, <[usize]>::len);
    let kept = [right, left].into_iter().flatten().find(|l| l.shape.len() == rank && l.atoms.len() > 1);
    walk.set(node.output(0), kept);
}

fn embedding(walk: &mut Walk, node: &Node) {
    let Some(table) = node.input(0) else {
        return;
    };
    let real = walk.stored.get(table).is_some_and(|s| s.roots.iter().any(|r| walk.is_real(r)));
    let (Some(&[rows, dim]), 0, true) = (walk.shape(table), node.int_or("axis", 0), real) else {
        return walk.note_unknown(node);
    };
    let entries = walk.atoms.fresh(rows);
    walk.input_atoms.extend(&entries);
    let made = walk.atoms.fresh(dim);
    let view = form(walk, table).map(|form| MatrixView {
        out: dim,
        inn: rows,
        taps: vec![],
        group: 1,
        split: form.split,
        perm: form.perm.into_iter().rev().collect(),
        order: vec![],
    });
    walk.matrix(node, table, Role::Embedding, view, (entries, made.clone()));
    let rank = node.output(0).and_then(|o| walk.shape(o)).map_or(0, <[usize]>::len);
    if rank > 0 {
        walk.set_channels(node.output(0), rank - 1, made);
    }
}

fn norm(walk: &mut Walk, node: &Node, axis: i64, parameters: &[(usize, Role)]) {
    let Some(rank) = node.input(0).and_then(|x| walk.shape(x)).map(<[usize]>::len).filter(|&r| r > 0) else {
        return;
    };
    let axis = if axis < 0 { rank - 1 } else { (axis as usize).min(rank - 1) };
    let channels = walk.channels(node.input(0), axis);
    let depth = level(walk, node.input(0)).saturating_sub(1);
    for &(input, role) in parameters {
        walk.vector(node, node.input(input), role, &channels, depth);
    }
    walk.set(node.output(0), walk.labels(node.input(0)));
}

fn skip_norm(walk: &mut Walk, node: &Node, parameters: &[(usize, Role)]) {
    let (x, skip) = (walk.labels(node.input(0)), walk.labels(node.input(1)));
    let joined = match (x, skip) {
        (Some(x), Some(skip)) => x.meet(&skip, &mut walk.atoms),
        (x, skip) => x.or(skip),
    };
    let fits = |l: &Labels| node.input(0).and_then(|x| walk.shape(x)).is_some_and(|shape| l.fits(shape));
    if let Some(joined) = joined.filter(fits) {
        walk.set(node.input(0), Some(joined));
    }
    norm(walk, node, -1, parameters);
    // The sum of both inputs, where it is wanted.
    walk.set(node.output(3), walk.labels(node.input(0)));
}

/// `com.microsoft::Attention`: the three projections are one matrix, `[in, q + k + v]`.
fn fused_attention(walk: &mut Walk, node: &Node) {
    let (Some(x), Some(weight)) = (node.input(0), node.input(1)) else {
        return;
    };
    let (Some(rank), true) =
        (walk.shape(x).map(<[usize]>::len).filter(|&r| r > 0), walk.is_stored(Some(weight)))
    else {
        return walk.note_unknown(node);
    };
    let depth = level(walk, Some(x));
    let features = walk.channels(Some(x), rank - 1);
    let made = linear(walk, node, weight, false, features);
    walk.vector(node, node.input(2), Role::Bias, &made, depth);
    if made.len().is_multiple_of(3) && node.ints("qkv_hidden_sizes").is_none() {
        let size = made.len() / 3;
        walk.atoms.unite_all(&made[..size], &made[size..2 * size]);
        walk.set_channels(node.output(0), rank - 1, made[2 * size..].to_vec());
    }
}

/// Attention over computed queries, keys and values `[batch, time, channels]`.
fn attention(walk: &mut Walk, node: &Node) {
    let size = |walk: &Walk, i: usize| {
        node.input(i).and_then(|v| walk.shape(v)).filter(|s| s.len() == 3).map(|s| s[2])
    };
    let (q, k, v) = (size(walk, 0), size(walk, 1), size(walk, 2));
    if q.is_some() && q == k {
        let (q, k) = (walk.channels(node.input(0), 2), walk.channels(node.input(1), 2));
        walk.atoms.unite_all(&q, &k);
    }
    if q.is_some() && q == v {
        let values = walk.channels(node.input(2), 2);
        walk.set_channels(node.output(0), 2, values);
    }
}
