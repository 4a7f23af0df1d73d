//! Attention in all its spellings: ONNX's own, and the fusions of ONNX Runtime. All become [`attend`], in primitives.
//!
//! Masks select, they aren't added: a masked score is replaced by a large negative number and its probability by 0, so
//! that rows without any key give zeros and no NaN, forwards and backwards.

use super::{Outputs, Row, composed};
use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, DType, Node, Tensor, ValueId};

pub const TABLE: &[Row] = &[
    composed("Attention", attention),
    composed("RotaryEmbedding", rotary_embedding),
    composed("com.microsoft::Attention", fused_attention),
    composed("com.microsoft::GroupQueryAttention", group_query_attention),
    composed("com.microsoft::MultiHeadAttention", multi_head_attention),
    composed("com.microsoft::RotaryEmbedding", fused_rotary_embedding),
];

fn input(node: &Node, i: usize) -> Result<&ValueId> {
    node.input(i).ok_or_else(|| Error::node(node, format!("input {i} is missing")))
}

/// A positive number of heads.
fn heads(node: &Node, name: &str) -> Result<usize> {
    let count = node.int(name).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    count.ok_or_else(|| Error::node(node, format!("has no {name}")))
}

/// `[batch, length, heads · size]` as `[batch, heads, length, size]`.
fn split_heads(b: &mut Builder, v: &ValueId, heads: usize) -> ValueId {
    let shape = b.shape(v);
    let split = b.reshape(v, &[shape[0], shape[1], heads, shape[2] / heads]);
    b.transpose(&split, &[0, 2, 1, 3])
}

/// The other way.
fn join_heads(b: &mut Builder, v: &ValueId) -> ValueId {
    let shape = b.shape(v);
    let last = b.transpose(v, &[0, 2, 1, 3]);
    b.reshape(&last, &[shape[0], shape[2], shape[1] * shape[3]])
}

/// Each head `times` times, one after the other.
fn repeat_heads(b: &mut Builder, v: &ValueId, times: usize) -> ValueId {
    if times == 1 {
        return v.clone();
    }
    let shape = b.shape(v);
    let [n, h, l, d] = [shape[0], shape[1], shape[2], shape[3]];
    let column = b.reshape(v, &[n, h, 1, l, d]);
    let wide = b.expand(&column, &[n, h, times, l, d]);
    b.reshape(&wide, &[n, h * times, l, d])
}

fn and(b: &mut Builder, a: Option<ValueId>, other: ValueId) -> ValueId {
    match a {
        Some(a) => b.op("And", &[&a, &other]),
        None => other,
    }
}

/// A number below every score.
fn lowest(dtype: DType) -> f64 {
    if dtype == DType::F16 { -3e4 } else { -1e30 }
}

/// What modifies the scores.
#[derive(Default)]
struct Scores {
    scale: f64,
    softcap: f64,
    /// Added, in shapes that broadcast to `[batch, heads, queries, keys]`.
    bias: Option<ValueId>,
    /// Which keys a query may see.
    allowed: Option<ValueId>,
    /// One more score a head, whose probability goes nowhere.
    sink: Option<ValueId>,
}

/// What attention makes on the way: scores, scores after the cap, with the bias, probabilities; and its output.
struct Attended {
    raw: ValueId,
    capped: ValueId,
    biased: ValueId,
    probabilities: ValueId,
    output: ValueId,
}

/// `softmax(q · kᵀ · scale + bias) · v` over `[batch, heads, length, size]` (Vaswani et al. 2017).
fn attend(b: &mut Builder, q: &ValueId, k: &ValueId, v: &ValueId, scores: &Scores) -> Attended {
    let times = b.shape(q)[1] / b.shape(k)[1].max(1);
    let (k, v) = (repeat_heads(b, k, times), repeat_heads(b, v, times));
    let scaled = b.mul_scalar(q, scores.scale);
    let keys = b.transpose_matrix(&k);
    let raw = b.matmul(&scaled, &keys);
    let mut capped = raw.clone();
    if scores.softcap > 0.0 {
        let inner = b.mul_scalar(&raw, 1.0 / scores.softcap);
        let inner = b.op("Tanh", &[&inner]);
        capped = b.mul_scalar(&inner, scores.softcap);
    }
    let low = b.scalar_like(&raw, lowest(b.dtype(&raw)));
    let mut allowed = scores.allowed.clone();
    let mut biased = capped.clone();
    if let Some(bias) = &scores.bias {
        let dtype = b.dtype(&raw);
        let bias = b.cast(bias, dtype);
        // A bias may hold −∞ for what is hidden.
        let seen = b.op("Greater", &[&bias, &low]);
        let zero = b.scalar_like(&bias, 0.0);
        let finite = b.where_(&seen, &bias, &zero);
        biased = b.add(&biased, &finite);
        allowed = Some(and(b, allowed, seen));
    }
    if let Some(allowed) = &allowed {
        biased = b.where_(allowed, &biased, &low);
    }
    let shape = b.shape(&biased);
    let mut probabilities = match &scores.sink {
        Some(sink) => {
            let sink = b.reshape(sink, &[1, shape[1], 1, 1]);
            let sink = b.expand(&sink, &[shape[0], shape[1], shape[2], 1]);
            let all = b.concat(&[&biased, &sink], -1);
            let all = b.softmax(&all, -1);
            b.slice(&all, &[0], &[shape[3] as i64], &[3])
        }
        None => b.softmax(&biased, -1),
    };
    if let Some(allowed) = &allowed {
        let zero = b.scalar_like(&raw, 0.0);
        probabilities = b.where_(allowed, &probabilities, &zero);
    }
    let output = b.matmul(&probabilities, &v);
    Attended { raw, capped, biased, probabilities, output }
}

/// `[1, 1, queries, keys]`: whether the key is within the window around the query, whose position is its number plus
/// `offset` (`[batch, 1, 1, 1]`, or none for 0).
fn window(
    b: &mut Builder,
    [queries, keys]: [usize; 2],
    offset: Option<&ValueId>,
    left: Option<i64>,
    right: Option<i64>,
) -> Option<ValueId> {
    if left.is_none() && right.is_none() {
        return None;
    }
    let position = b.constant(Tensor::i64(&[1, 1, queries, 1], &(0..queries as i64).collect::<Vec<_>>()));
    let position = match offset {
        Some(offset) => b.add(&position, offset),
        None => position,
    };
    let key = b.constant(Tensor::i64(&[1, 1, 1, keys], &(0..keys as i64).collect::<Vec<_>>()));
    let behind = b.sub(&position, &key);
    let mut allowed = None;
    if let Some(left) = left {
        let left = b.scalar_like(&behind, left as f64);
        allowed = Some(b.op("LessOrEqual", &[&behind, &left]));
    }
    if let Some(right) = right {
        let right = b.scalar_like(&behind, -right as f64);
        let near = b.op("GreaterOrEqual", &[&behind, &right]);
        allowed = Some(and(b, allowed, near));
    }
    allowed
}

/// `[batch, 1, 1, keys]`: keys before the given length of their row.
fn before(b: &mut Builder, lengths: &ValueId, keys: usize) -> ValueId {
    let batch = b.fact(lengths).len();
    let lengths = b.cast(lengths, DType::I64);
    let lengths = b.reshape(&lengths, &[batch, 1, 1, 1]);
    let key = b.constant(Tensor::i64(&[1, 1, 1, keys], &(0..keys as i64).collect::<Vec<_>>()));
    b.op("Less", &[&key, &lengths])
}

fn attention(b: &mut Builder, node: &Node) -> Outputs {
    let (mut q, mut k, mut v) = (input(node, 0)?.clone(), input(node, 1)?.clone(), input(node, 2)?.clone());
    let packed = b.rank(&q) == 3;
    if packed {
        let (q_heads, kv_heads) = (heads(node, "q_num_heads")?, heads(node, "kv_num_heads")?);
        q = split_heads(b, &q, q_heads);
        (k, v) = (split_heads(b, &k, kv_heads), split_heads(b, &v, kv_heads));
    }
    let size = b.shape(&q)[3];
    let mut past = 0;
    if let (Some(past_key), Some(past_value)) = (node.input(4), node.input(5)) {
        past = b.shape(past_key)[2];
        k = b.concat(&[past_key, &k], 2);
        v = b.concat(&[past_value, &v], 2);
    }
    let (queries, keys) = (b.shape(&q)[2], b.shape(&k)[2]);
    let mut scores = Scores {
        scale: node.float("scale").map_or(1.0 / (size as f64).sqrt(), f64::from),
        softcap: f64::from(node.float_or("softcap", 0.0)),
        ..Scores::default()
    };
    if let Some(mask) = node.input(3) {
        let mut mask = mask.clone();
        let shape = b.shape(&mask);
        let missing = shape.last().map_or(0, |&last| keys.saturating_sub(last));
        let boolean = b.dtype(&mask) == DType::Bool;
        if missing > 0 && shape.last() != Some(&1) {
            let wide = [&shape[..shape.len() - 1], &[missing]].concat();
            let filler = match boolean {
                true => b.constant(Tensor::bool(&[], &[false])),
                false => b.scalar_like(&mask, lowest(b.dtype(&mask)) * 2.0),
            };
            let filler = b.expand(&filler, &wide);
            mask = b.concat(&[&mask, &filler], -1);
        }
        match boolean {
            true => scores.allowed = Some(mask),
            false => scores.bias = Some(mask),
        }
    }
    let offset = match node.input(6) {
        Some(lengths) if past == 0 => {
            let seen = before(b, lengths, keys);
            scores.allowed = Some(and(b, scores.allowed.take(), seen));
            let batch = b.fact(lengths).len();
            let lengths = b.cast(lengths, DType::I64);
            let lengths = b.reshape(&lengths, &[batch, 1, 1, 1]);
            Some(b.add_scalar(&lengths, -(queries as f64)))
        }
        _ => (past > 0).then(|| b.constant(Tensor::i64(&[1, 1, 1, 1], &[past as i64]))),
    };
    let bound = |name: &str| node.int(name).filter(|&size| size >= 0);
    let mut right = bound("right_window_size");
    if node.int_or("is_causal", 0) != 0 {
        right = Some(0);
    }
    if let Some(near) = window(b, [queries, keys], offset.as_ref(), bound("left_window_size"), right) {
        scores.allowed = Some(and(b, scores.allowed.take(), near));
    }
    let attended = attend(b, &q, &k, &v, &scores);
    let shown = match node.int_or("qk_matmul_output_mode", 0) {
        1 => attended.capped,
        2 => attended.biased,
        3 => attended.probabilities,
        _ => attended.raw,
    };
    let output = if packed { join_heads(b, &attended.output) } else { attended.output };
    Ok(vec![Some(output), Some(k), Some(v), Some(shown)])
}

/// `com.microsoft::Attention`: one product makes queries, keys and values.
fn fused_attention(b: &mut Builder, node: &Node) -> Outputs {
    let (x, w) = (input(node, 0)?, input(node, 1)?);
    if node.int_or("do_rotary", 0) != 0 {
        return Err(Error::node(node, "has no gradient with do_rotary"));
    }
    let count = heads(node, "num_heads")?;
    let mut all = b.matmul(x, w);
    if let Some(bias) = node.input(2) {
        all = b.add(&all, bias);
    }
    let width = b.shape(&all)[2] as i64;
    let sizes: Vec<i64> = match node.ints("qkv_hidden_sizes") {
        Some(sizes) if sizes.len() == 3 => sizes.to_vec(),
        _ => vec![width / 3; 3],
    };
    let mut parts = vec![];
    let mut start = 0;
    for size in sizes {
        let part = b.slice(&all, &[start], &[start + size], &[2]);
        parts.push(split_heads(b, &part, count));
        start += size;
    }
    let (q, mut k, mut v) = (parts[0].clone(), parts[1].clone(), parts[2].clone());
    let mut past_length = 0;
    if let Some(past) = node.input(4) {
        let shape = b.shape(past);
        past_length = shape[3];
        let halves: Vec<ValueId> = (0..2)
            .map(|i| {
                let half = b.slice(past, &[i], &[i + 1], &[0]);
                b.reshape(&half, &shape[1..])
            })
            .collect();
        k = b.concat(&[&halves[0], &k], 2);
        v = b.concat(&[&halves[1], &v], 2);
    }
    let mut scores = plain_scores(b, node, &q);
    scores.bias = node.input(5).cloned();
    scores.allowed = padding(b, node, 3, [b.shape(&q)[0], b.shape(&q)[2], b.shape(&k)[2]])?;
    causal(b, node, "unidirectional", &q, &k, past_length, &mut scores);
    let attended = attend(b, &q, &k, &v, &scores);
    let (key, value) = (b.unsqueeze(&k, &[0]), b.unsqueeze(&v, &[0]));
    let present = b.concat(&[&key, &value], 0);
    Ok(vec![Some(join_heads(b, &attended.output)), Some(present)])
}

/// Scale alone; 0 stands for the usual one.
fn plain_scores(b: &Builder, node: &Node, q: &ValueId) -> Scores {
    let usual = 1.0 / (b.shape(q)[3] as f64).sqrt();
    let scale = node.float("scale").map(f64::from).filter(|&s| s != 0.0).unwrap_or(usual);
    Scores { scale, ..Scores::default() }
}

/// Hides the future where the attribute says so.
fn causal(
    b: &mut Builder,
    node: &Node,
    name: &str,
    q: &ValueId,
    k: &ValueId,
    past: usize,
    scores: &mut Scores,
) {
    if node.int_or(name, 0) != 0 {
        let offset = b.constant(Tensor::i64(&[1, 1, 1, 1], &[past as i64]));
        let sizes = [b.shape(q)[2], b.shape(k)[2]];
        if let Some(seen) = window(b, sizes, Some(&offset), None, Some(0)) {
            scores.allowed = Some(and(b, scores.allowed.take(), seen));
        }
    }
}

/// The masks of ONNX Runtime: the number of keys of each row, or 1 for each key (of each query) that counts.
fn padding(
    b: &mut Builder,
    node: &Node,
    i: usize,
    [batch, queries, keys]: [usize; 3],
) -> Result<Option<ValueId>> {
    let Some(mask) = node.input(i).cloned() else { return Ok(None) };
    let shape = b.shape(&mask);
    let wide = match shape[..] {
        [n] if n == batch => return Ok(Some(before(b, &mask, keys))),
        [n, t] if n == batch && t == keys => [batch, 1, 1, keys],
        [n, s, t] if n == batch && s == queries && t == keys => [batch, 1, queries, keys],
        [n, 1, s, t] if n == batch && s == queries && t == keys => [batch, 1, queries, keys],
        _ => return Err(Error::node(node, format!("has no gradient with a mask of shape {shape:?}"))),
    };
    let mask = b.reshape(&mask, &wide);
    let zero = b.scalar_like(&mask, 0.0);
    Ok(Some(b.op("Greater", &[&mask, &zero])))
}

fn multi_head_attention(b: &mut Builder, node: &Node) -> Outputs {
    let count = heads(node, "num_heads")?;
    let query = input(node, 0)?.clone();
    let packed = |b: &mut Builder, v: &ValueId, i: i64| {
        // [batch, length, heads, parts, size]
        let shape = b.shape(v);
        let part = b.slice(v, &[i], &[i + 1], &[3]);
        let part = b.reshape(&part, &[shape[0], shape[1], shape[2], shape[4]]);
        b.transpose(&part, &[0, 2, 1, 3])
    };
    let (mut q, mut k, mut v);
    match (node.input(1), node.input(2)) {
        (None, _) if b.rank(&query) == 5 => {
            (q, k, v) = (packed(b, &query, 0), packed(b, &query, 1), packed(b, &query, 2));
        }
        (Some(key), None) if b.rank(key) == 5 => {
            q = split_heads(b, &query, count);
            (k, v) = (packed(b, key, 0), packed(b, key, 1));
        }
        (Some(key), Some(value)) => {
            q = split_heads(b, &query, count);
            let side = |b: &mut Builder, x: &ValueId| {
                if b.rank(x) == 4 { x.clone() } else { split_heads(b, x, count) }
            };
            (k, v) = (side(b, key), side(b, value));
        }
        _ => return Err(Error::node(node, "has no gradient with its inputs packed like this")),
    }
    if let Some(bias) = node.input(3) {
        let mut start = 0;
        for part in [&mut q, &mut k, &mut v] {
            let size = b.shape(part)[3];
            let end = start + (count * size) as i64;
            let slice = b.slice(bias, &[start], &[end], &[0]);
            let slice = b.reshape(&slice, &[1, count, 1, size]);
            *part = b.add(part, &slice);
            start = end;
        }
    }
    let mut past = 0;
    if let (Some(past_key), Some(past_value)) = (node.input(6), node.input(7)) {
        past = b.shape(past_key)[2];
        k = b.concat(&[past_key, &k], 2);
        v = b.concat(&[past_value, &v], 2);
    }
    let mut scores = plain_scores(b, node, &q);
    scores.bias = node.input(5).cloned();
    scores.allowed = padding(b, node, 4, [b.shape(&q)[0], b.shape(&q)[2], b.shape(&k)[2]])?;
    causal(b, node, "unidirectional", &q, &k, past, &mut scores);
    let attended = attend(b, &q, &k, &v, &scores);
    Ok(vec![Some(join_heads(b, &attended.output)), Some(k), Some(v), Some(attended.biased)])
}

/// For prompts: without keys and values of the past.
fn group_query_attention(b: &mut Builder, node: &Node) -> Outputs {
    let (q_heads, kv_heads) = (heads(node, "num_heads")?, heads(node, "kv_num_heads")?);
    let query = input(node, 0)?.clone();
    let shape = b.shape(&query);
    let (batch, length) = (shape[0], shape[1]);
    let past = node.input(3).is_some_and(|past| b.shape(past)[2] > 0);
    let quantised = ["k_quant_type", "v_quant_type"].iter().any(|n| node.str(n).is_some_and(|t| t != "NONE"));
    if past || quantised || (14..17).any(|i| node.input(i).is_some()) {
        return Err(Error::node(node, "has a gradient only for prompts, without a cache or norms inside"));
    }
    let (q, k, v) = match (node.input(1), node.input(2)) {
        (Some(key), Some(value)) => (query, key.clone(), value.clone()),
        _ => {
            let size = shape[2] / (q_heads + 2 * kv_heads);
            let ends = [q_heads * size, (q_heads + kv_heads) * size, shape[2]].map(|end| end as i64);
            let part = |b: &mut Builder, start: i64, end: i64| b.slice(&query, &[start], &[end], &[2]);
            (part(b, 0, ends[0]), part(b, ends[0], ends[1]), part(b, ends[1], ends[2]))
        }
    };
    let (mut q, mut k, v) =
        (split_heads(b, &q, q_heads), split_heads(b, &k, kv_heads), split_heads(b, &v, kv_heads));
    if node.int_or("do_rotary", 0) != 0 {
        let interleaved = node.int_or("rotary_interleaved", 0) != 0;
        let positions = b.constant(Tensor::i64(&[1, length], &(0..length as i64).collect::<Vec<_>>()));
        let (cos, sin) = (input(node, 7)?.clone(), input(node, 8)?.clone());
        let [cos, sin] =
            [cos, sin].map(|cache| b.op_with("Gather", &[&cache, &positions], &[("axis", Attr::Int(0))]));
        q = rotated(b, &q, &cos, &sin, interleaved);
        k = rotated(b, &k, &cos, &sin, interleaved);
    }
    let mut scores = plain_scores(b, node, &q);
    scores.softcap = f64::from(node.float_or("softcap", 0.0));
    scores.bias = node.input(10).cloned();
    scores.sink = match node.input(11) {
        Some(sink) => Some(sink.clone()),
        None if node.int_or("smooth_softmax", 0) == 1 => {
            let zero = b.scalar_like(&q, 0.0);
            Some(b.expand(&zero, &[q_heads]))
        }
        None => None,
    };
    // The local window counts the query itself.
    let left = node.int("local_window_size").filter(|&size| size > 0).map(|size| size - 1);
    let right = (node.int_or("causal", 1) != 0).then_some(0);
    scores.allowed = window(b, [length, length], None, left, right);
    if right.is_none() && batch > 0 {
        let lengths = input(node, 5)?.clone();
        let lengths = b.cast(&lengths, DType::I64);
        let lengths = b.add_scalar(&lengths, 1.0);
        let seen = before(b, &lengths, length);
        scores.allowed = Some(and(b, scores.allowed.take(), seen));
    }
    let attended = attend(b, &q, &k, &v, &scores);
    Ok(vec![Some(join_heads(b, &attended.output)), Some(k), Some(v)])
}

/// Turns the first elements of each head, by pairs, by the angles whose cosines and sines are given for each position
/// (`[batch, length, pairs]`), for `x` of `[batch, heads, length, size]` (Su et al. 2021).
fn rotated(b: &mut Builder, x: &ValueId, cos: &ValueId, sin: &ValueId, interleaved: bool) -> ValueId {
    let shape = b.shape(x);
    let pairs = *b.shape(cos).last().unwrap_or(&0);
    let (cos, sin) = (b.unsqueeze(cos, &[1]), b.unsqueeze(sin, &[1]));
    let turned = 2 * pairs as i64;
    let moving = b.slice(x, &[0], &[turned], &[3]);
    let halves = match interleaved {
        true => [shape[0], shape[1], shape[2], pairs, 2],
        false => [shape[0], shape[1], shape[2], 2, pairs],
    };
    let axis = if interleaved { 4 } else { 3 };
    let grouped = b.reshape(&moving, &halves);
    let [first, second] = [0i64, 1].map(|i| {
        let part = b.slice(&grouped, &[i], &[i + 1], &[axis]);
        b.reshape(&part, &[shape[0], shape[1], shape[2], pairs])
    });
    let (a, c) = (b.mul(&cos, &first), b.mul(&sin, &second));
    let real = b.sub(&a, &c);
    let (a, c) = (b.mul(&sin, &first), b.mul(&cos, &second));
    let imaginary = b.add(&a, &c);
    let (real, imaginary) = (b.unsqueeze(&real, &[axis]), b.unsqueeze(&imaginary, &[axis]));
    let joined = b.concat(&[&real, &imaginary], axis);
    let joined = b.reshape(&joined, &[shape[0], shape[1], shape[2], 2 * pairs]);
    match 2 * pairs == shape[3] {
        true => joined,
        false => {
            let rest = b.slice(x, &[turned], &[shape[3] as i64], &[3]);
            b.concat(&[&joined, &rest], 3)
        }
    }
}

/// [`rotated`] for `x` with its heads apart or (in three dimensions) together.
fn rotate(
    b: &mut Builder,
    node: &Node,
    x: &ValueId,
    cos: &ValueId,
    sin: &ValueId,
    positions: Option<&ValueId>,
) -> Result<ValueId> {
    let packed = b.rank(x) == 3;
    let x4 = match packed {
        true => {
            // Without a number of heads, their size is that of the caches.
            let size = 2 * b.shape(cos).last().copied().unwrap_or(1).max(1);
            let count = heads(node, "num_heads").unwrap_or(b.shape(x)[2] / size);
            split_heads(b, x, count)
        }
        false => x.clone(),
    };
    let (mut cos, mut sin) = (cos.clone(), sin.clone());
    if let Some(positions) = positions {
        [cos, sin] =
            [cos, sin].map(|cache| b.op_with("Gather", &[&cache, positions], &[("axis", Attr::Int(0))]));
    }
    let interleaved = node.int_or("interleaved", 0) != 0;
    let turned = rotated(b, &x4, &cos, &sin, interleaved);
    Ok(if packed { join_heads(b, &turned) } else { turned })
}

fn rotary_embedding(b: &mut Builder, node: &Node) -> Outputs {
    let (x, cos, sin) = (input(node, 0)?, input(node, 1)?, input(node, 2)?);
    Ok(vec![Some(rotate(b, node, x, cos, sin, node.input(3))?)])
}

/// `com.microsoft::RotaryEmbedding`, whose positions may be given by the first one alone.
fn fused_rotary_embedding(b: &mut Builder, node: &Node) -> Outputs {
    let (x, positions, cos, sin) = (input(node, 0)?, input(node, 1)?, input(node, 2)?, input(node, 3)?);
    let shape = b.shape(x);
    let length = if shape.len() == 3 { shape[1] } else { shape[2] };
    let positions = match b.rank(positions) {
        1 => {
            let numbers = b.constant(Tensor::i64(&[1, length], &(0..length as i64).collect::<Vec<_>>()));
            b.add(&numbers, positions)
        }
        _ => positions.clone(),
    };
    Ok(vec![Some(rotate(b, node, x, cos, sin, Some(&positions))?)])
}
