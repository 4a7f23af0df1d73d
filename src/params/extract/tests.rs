//! Behaviour on graphs made for the purpose.

use crate::onnx::{Attr, Builder, DType, Fact, Tensor, ValueId};
use crate::params::{InterfaceKind, ParamGraph, Role, Weight};

/// A weight of pseudo-random values.
fn weight(b: &mut Builder, name: &str, shape: &[usize]) -> ValueId {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 + 11) % 101) as f32 / 101.0 - 0.5).collect();
    b.initializer(name, Tensor::f32(shape, &values))
}

fn input(b: &mut Builder, shape: &[usize]) -> ValueId {
    b.input("x", Fact::new(DType::F32, shape))
}

fn conv(b: &mut Builder, x: &ValueId, name: &str, shape: &[usize], group: i64) -> ValueId {
    let w = weight(b, name, shape);
    let pads: Vec<i64> = vec![(shape[2] / 2) as i64; 4];
    b.op_with("Conv", &[x, &w], &[("group", group.into()), ("pads", pads.into())])
}

fn extract(b: Builder) -> ParamGraph {
    let (graph, facts) = b.finish();
    ParamGraph::of_graph(&graph, &facts).unwrap()
}

fn by_name<'g>(g: &'g ParamGraph, name: &str) -> &'g Weight {
    g.weight(g.find(name).unwrap_or_else(|| panic!("no weight {name} in {g:#?}")))
}

#[test]
fn a_convolution_reaches_a_linear_layer_through_flatten() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 1, 28, 28]);
    let w = weight(&mut b, "conv", &[8, 1, 3, 3]);
    let bias = weight(&mut b, "conv_bias", &[8]);
    let y = b.op("Conv", &[&x, &w, &bias]);
    let y = b.op("Relu", &[&y]);
    let y = b.op_with(
        "MaxPool",
        &[&y],
        &[("kernel_shape", vec![2i64, 2].into()), ("strides", vec![2i64, 2].into())],
    );
    let y = b.op("Flatten", &[&y]);
    let f = weight(&mut b, "fc", &[10, 8 * 169]);
    let c = weight(&mut b, "fc_bias", &[10]);
    let y = b.op_with("Gemm", &[&y, &f, &c], &[("transB", Attr::Int(1))]);
    b.output(&y);
    let g = extract(b);
    assert_eq!(g.matrices().count(), 2);
    let kinds: Vec<_> = g.interfaces.iter().map(|i| (i.kind, i.channels, i.depth)).collect();
    use InterfaceKind::*;
    assert_eq!(kinds, [(Input, 1, 0), (Hidden, 8, 1), (Output, 10, 2)]);
    let fc = by_name(&g, "fc");
    let side = fc.input_use().unwrap();
    assert_eq!((side.channels, side.positions, side.grid.as_slice()), (8, 169, [13, 13].as_slice()));
    assert!(side.is_channel_major() && !side.is_position_major());
    assert_eq!(side.features().nth(170), Some(170));
    assert_eq!(by_name(&g, "conv_bias").role, Role::Bias);
    assert_eq!(g.interfaces[1].vectors, [g.find("conv_bias").unwrap()]);
    assert_eq!(g.edges.list(), [(g.find("conv").unwrap(), g.find("fc").unwrap())]);
    assert_eq!((by_name(&g, "conv").depth, fc.depth, fc.relative_depth), (0, 1, 1.0));
}

#[test]
fn an_image_that_is_flattened_at_once_keeps_its_one_channel() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 1, 28, 28]);
    let y = b.op("Flatten", &[&x]);
    let w = weight(&mut b, "fc", &[784, 32]);
    let y = b.matmul(&y, &w);
    b.output(&y);
    let g = extract(b);
    let fc = by_name(&g, "fc");
    assert_eq!(
        (fc.input_use().unwrap().channels, fc.input_use().unwrap().grid.as_slice()),
        (1, [28, 28].as_slice())
    );
    assert_eq!(fc.view.as_ref().unwrap().perm, [1, 0]);
}

#[test]
fn a_channels_last_flatten_is_position_major() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 3, 8, 8]);
    let y = conv(&mut b, &x, "conv", &[6, 3, 3, 3], 1);
    let y = b.transpose(&y, &[0, 2, 3, 1]);
    let y = b.reshape(&y, &[2, 384]);
    let w = weight(&mut b, "fc", &[384, 5]);
    let y = b.matmul(&y, &w);
    let bias = weight(&mut b, "bias", &[5]);
    let y = b.add(&y, &bias);
    b.output(&y);
    let g = extract(b);
    let side = by_name(&g, "fc").input_use().unwrap();
    assert!(side.is_position_major() && !side.is_channel_major());
    assert_eq!(side.grid, [8, 8]);
    assert_eq!(by_name(&g, "bias").role, Role::Bias);
}

#[test]
fn residual_sums_share_an_interface() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 3, 8, 8]);
    let a = conv(&mut b, &x, "a", &[6, 3, 3, 3], 1);
    let h = conv(&mut b, &a, "h", &[4, 6, 1, 1], 1);
    let c = conv(&mut b, &h, "c", &[6, 4, 3, 3], 1);
    let y = b.add(&a, &c);
    let y = b.mean(&y, &[2, 3], true);
    let y = b.op("Flatten", &[&y]);
    let w = weight(&mut b, "fc", &[6, 5]);
    let y = b.matmul(&y, &w);
    b.output(&y);
    let g = extract(b);
    let stream = by_name(&g, "a").output_use().unwrap().interface;
    assert_eq!(by_name(&g, "c").output_use().unwrap().interface, stream);
    assert_eq!(by_name(&g, "fc").input_use().unwrap().interface, stream);
    assert_eq!(g.interface(stream).producers.len(), 2);
    assert_eq!(g.interface(stream).consumers.len(), 2);
    assert_eq!(g.interface(stream).depth, 1);
    let id = |n: &str| g.find(n).unwrap();
    assert_eq!(
        g.edges.list(),
        [(id("a"), id("h")), (id("a"), id("fc")), (id("h"), id("c")), (id("c"), id("fc"))]
    );
}

#[test]
fn concatenation_has_offsets_and_a_residual_across_it_cuts_the_sum() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 3, 8, 8]);
    let p = conv(&mut b, &x, "p", &[4, 3, 1, 1], 1);
    let q = conv(&mut b, &x, "q", &[2, 3, 1, 1], 1);
    let joined = b.concat(&[&p, &q], 1);
    let r = conv(&mut b, &joined, "r", &[6, 6, 3, 3], 1);
    let sum = b.add(&joined, &r);
    let y = b.reshape(&sum, &[2, 384]);
    let w = weight(&mut b, "fc", &[384, 5]);
    let y = b.matmul(&y, &w);
    b.output(&y);
    let g = extract(b);
    let parts = |name: &str| -> Vec<(usize, usize, usize)> {
        by_name(&g, name).input.iter().map(|u| (u.offset, u.channels, u.positions)).collect()
    };
    assert_eq!(parts("r"), [(0, 4, 1), (4, 2, 1)]);
    assert_eq!(parts("fc"), [(0, 4, 64), (256, 2, 64)]);
    assert_eq!(by_name(&g, "r").output.len(), 2);
    assert_eq!(by_name(&g, "r").output[0].interface, by_name(&g, "p").output_use().unwrap().interface);
}

#[test]
fn depthwise_convolutions_and_normalisation_stay_on_their_interface() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 3, 8, 8]);
    let y = conv(&mut b, &x, "a", &[6, 3, 1, 1], 1);
    let y = conv(&mut b, &y, "dw", &[6, 1, 3, 3], 6);
    let parameters: Vec<ValueId> =
        ["scale", "shift", "mean", "var"].iter().map(|n| weight(&mut b, n, &[6])).collect();
    let all: Vec<&ValueId> = std::iter::once(&y).chain(&parameters).collect();
    let y = b.op("BatchNormalization", &all);
    b.set_fact(&y, Fact::new(DType::F32, &[2, 6, 8, 8]));
    let y = conv(&mut b, &y, "b", &[5, 6, 1, 1], 1);
    b.output(&y);
    let g = extract(b);
    let stream = by_name(&g, "a").output_use().unwrap().interface;
    let dw = by_name(&g, "dw");
    assert_eq!(dw.role, Role::DepthwiseConv);
    assert_eq!((dw.input_use().unwrap().interface, dw.output_use().unwrap().interface), (stream, stream));
    assert_eq!(dw.view.as_ref().unwrap().matrix_shape(), [6, 9]);
    assert_eq!(by_name(&g, "b").input_use().unwrap().interface, stream);
    assert_eq!(g.interface(stream).vectors.len(), 4);
    assert_eq!(by_name(&g, "scale").role, Role::NormScale);
    assert!(!by_name(&g, "mean").is_trainable());
}

#[test]
fn transposed_and_reshaped_weights_are_seen_through() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 12]);
    let w = weight(&mut b, "w", &[7, 12]);
    let t = b.transpose(&w, &[1, 0]);
    let y = b.matmul(&x, &t);
    let v = weight(&mut b, "v", &[7, 3, 1, 1]);
    let v2 = b.reshape(&v, &[7, 3]);
    let z = b.matmul(&y, &v2);
    b.output(&z);
    let g = extract(b);
    let first = by_name(&g, "w").view.as_ref().unwrap();
    assert_eq!((first.out, first.inn, first.is_plain()), (7, 12, true));
    let second = by_name(&g, "v").view.as_ref().unwrap();
    assert_eq!((second.out, second.inn, second.perm.as_slice()), (3, 7, [1, 0].as_slice()));
    assert_eq!(
        by_name(&g, "v").input_use().unwrap().interface,
        by_name(&g, "w").output_use().unwrap().interface
    );
}

#[test]
fn tied_weights_are_one_vertex() {
    let mut b = Builder::new("test");
    let ids = b.input("ids", Fact::new(DType::I64, &[2, 5]));
    let table = weight(&mut b, "table", &[11, 6]);
    let x = b.op("Gather", &[&table, &ids]);
    b.set_fact(&x, Fact::new(DType::F32, &[2, 5, 6]));
    let w = weight(&mut b, "w", &[6, 6]);
    let y = b.matmul(&x, &w);
    let y = b.add(&x, &y);
    let head = b.transpose(&table, &[1, 0]);
    let z = b.matmul(&y, &head);
    b.output(&z);
    let g = extract(b);
    assert_eq!(g.weights.len(), 2);
    let table = by_name(&g, "table");
    assert_eq!((table.role, table.nodes.len()), (Role::Embedding, 2));
    assert_eq!(table.view.as_ref().unwrap().matrix_shape(), [6, 11]);
    assert_eq!(g.interfaces.len(), 2);
}

#[test]
fn attention_shares_queries_with_keys_and_values_with_the_projection() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 5, 12]);
    let embed = weight(&mut b, "embed", &[12, 12]);
    let x = b.matmul(&x, &embed);
    let mut heads = vec![];
    for name in ["q", "k", "v"] {
        let w = weight(&mut b, name, &[12, 8]);
        let bias = weight(&mut b, &format!("{name}_bias"), &[8]);
        let y = b.matmul(&x, &w);
        let y = b.add(&bias, &y);
        let y = b.reshape(&y, &[2, 5, 2, 4]);
        heads.push(b.transpose(&y, &[0, 2, 1, 3]));
    }
    let k = b.transpose_matrix(&heads[1]);
    let scores = b.matmul(&heads[0], &k);
    let scores = b.mul_scalar(&scores, 0.5);
    let p = b.softmax(&scores, -1);
    let y = b.matmul(&p, &heads[2]);
    let y = b.transpose(&y, &[0, 2, 1, 3]);
    let y = b.reshape(&y, &[2, 5, 8]);
    let w = weight(&mut b, "proj", &[8, 12]);
    let y = b.matmul(&y, &w);
    let y = b.add(&x, &y);
    let gamma = weight(&mut b, "gamma", &[12]);
    let y = b.op("LayerNormalization", &[&y, &gamma]);
    let y = b.mean(&y, &[1], false);
    let w = weight(&mut b, "head", &[12, 3]);
    let y = b.matmul(&y, &w);
    b.output(&y);
    let g = extract(b);
    let out = |name: &str| by_name(&g, name).output_use().unwrap().interface;
    assert_eq!(out("q"), out("k"));
    assert_ne!(out("q"), out("v"));
    assert_eq!(out("v"), by_name(&g, "proj").input_use().unwrap().interface);
    assert_eq!(out("embed"), out("proj"));
    assert_eq!(out("q_bias"), out("q"));
    assert_eq!(g.interface(out("q")).channels, 8);
    assert_eq!(by_name(&g, "gamma").role, Role::NormScale);
    let used: Vec<_> = g.interfaces.iter().map(|i| i.kind).collect();
    use InterfaceKind::*;
    assert_eq!(used, [Input, Hidden, Hidden, Hidden, Output]);
}

#[test]
fn a_mask_over_positions_unites_no_channels() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 3, 8, 8]);
    let y = conv(&mut b, &x, "a", &[6, 3, 1, 1], 1);
    let m = conv(&mut b, &y, "m", &[1, 6, 1, 1], 1);
    let m = b.op("Sigmoid", &[&m]);
    let y = b.mul(&y, &m);
    let y = conv(&mut b, &y, "b", &[5, 6, 1, 1], 1);
    b.output(&y);
    let g = extract(b);
    assert_eq!(
        by_name(&g, "b").input_use().unwrap().interface,
        by_name(&g, "a").output_use().unwrap().interface
    );
    assert_eq!(g.interface(by_name(&g, "a").output_use().unwrap().interface).channels, 6);
}

#[test]
fn a_decoder_starts_with_positions_on_the_output_side() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 7]);
    let w = weight(&mut b, "fc", &[7, 6 * 16]);
    let y = b.matmul(&x, &w);
    let y = b.reshape(&y, &[2, 6, 4, 4]);
    let w = weight(&mut b, "up", &[6, 5, 2, 2]);
    let y = b.op_with("ConvTranspose", &[&y, &w], &[("strides", vec![2i64, 2].into())]);
    b.set_fact(&y, Fact::new(DType::F32, &[2, 5, 8, 8]));
    b.output(&y);
    let g = extract(b);
    let side = by_name(&g, "fc").output_use().unwrap();
    assert_eq!((side.channels, side.positions, side.grid.as_slice()), (6, 16, [4, 4].as_slice()));
    assert_eq!(by_name(&g, "up").view.as_ref().unwrap().matrix_shape(), [5, 24]);
    assert_eq!(by_name(&g, "up").role, Role::ConvTranspose);
}

#[test]
fn recurrent_gates_share_their_hidden_channels() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[5, 2, 3]);
    let (w, r) = (weight(&mut b, "w", &[1, 16, 3]), weight(&mut b, "r", &[1, 16, 4]));
    let bias = weight(&mut b, "bias", &[1, 32]);
    let y = b.op_with("LSTM", &[&x, &w, &r, &bias], &[("hidden_size", Attr::Int(4))]);
    b.set_fact(&y, Fact::new(DType::F32, &[5, 1, 2, 4]));
    let y = b.reshape(&y, &[5, 2, 4]);
    let h = weight(&mut b, "head", &[4, 2]);
    let y = b.matmul(&y, &h);
    b.output(&y);
    let g = extract(b);
    let side = by_name(&g, "w").output_use().unwrap();
    assert_eq!((side.channels, side.positions, side.channel_stride, side.position_stride), (4, 4, 1, 4));
    assert_eq!(by_name(&g, "r").input_use().unwrap().interface, side.interface);
    assert_eq!(by_name(&g, "head").input_use().unwrap().interface, side.interface);
    assert_eq!(by_name(&g, "bias").output_use().unwrap().positions, 8);
}

#[test]
fn unknown_operators_end_an_interface_and_preprocessing_is_no_weight() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 12]);
    let mean = weight(&mut b, "mean", &[12]);
    let x = b.sub(&x, &mean);
    let w = weight(&mut b, "a", &[12, 8]);
    let y = b.matmul(&x, &w);
    let table = weight(&mut b, "table", &[3, 3]);
    let y = b.op_full("vendor", "Mystery", &[Some(&y), Some(&table)], &[], 1).remove(0);
    b.set_fact(&y, Fact::new(DType::F32, &[2, 8]));
    let w = weight(&mut b, "b", &[8, 2]);
    let y = b.matmul(&y, &w);
    b.output(&y);
    let g = extract(b);
    assert_ne!(
        by_name(&g, "a").output_use().unwrap().interface,
        by_name(&g, "b").input_use().unwrap().interface
    );
    assert_eq!(by_name(&g, "table").role, Role::Other);
    assert!(g.find("mean").is_none());
    assert_eq!(g.edges.list().len(), 1);
}

#[test]
fn residual_blocks_all_lead_to_later_ones_and_take_room_by_their_number() {
    let blocks = 100;
    let mut b = Builder::new("test");
    let mut x = input(&mut b, &[2, 4, 8, 8]);
    for i in 0..blocks {
        let y = conv(&mut b, &x, &format!("conv{i}"), &[4, 4, 3, 3], 1);
        let y = b.op("Relu", &[&y]);
        x = b.add(&x, &y);
    }
    b.output(&x);
    let g = extract(b);
    assert_eq!(g.edges.list().len(), blocks * (blocks - 1) / 2);
    assert!(g.edges.size() < 8 * blocks, "{}", g.edges.size());
    assert_eq!(g.interfaces.last().map(|i| i.kind), Some(InterfaceKind::Output));
}

#[test]
fn quantised_weights_have_no_matrix() {
    let mut b = Builder::new("test");
    let x = input(&mut b, &[2, 4]);
    let w = b.initializer("w", Tensor::from_f64(DType::I8, &[4, 3], &[1.0; 12]));
    let scale = b.initializer("scale", Tensor::scalar(DType::F32, 0.1));
    let real = b.op("DequantizeLinear", &[&w, &scale]);
    b.set_fact(&real, Fact::new(DType::F32, &[4, 3]));
    let y = b.matmul(&x, &real);
    b.output(&y);
    let g = extract(b);
    let w = by_name(&g, "w");
    assert_eq!((w.role, w.view.is_none(), w.is_trainable()), (Role::Other, true, false));
    assert_eq!(w.output_use().unwrap().channels, 3);
}
