//! Whatever tiles compute it, a result is the same bit by bit.

use super::*;
use crate::onnx::{Attr, Builder, DType, Fact, Facts, Forms, Model, Tensor, ValueId, WORKING_OPSET};
use crate::runtime::wgpu::gpu::{Gpu, GpuOptions};
use crate::runtime::wgpu::{fuse, lower, program::Program};
use crate::runtime::{Compiled, Value};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Numbers between −1 and 1 that fill all of their bits.
fn noise(fact: &Fact, seed: u32) -> Value {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    Value::host(Tensor::f32(&fact.shape, &(0..fact.len()).map(|_| next()).collect::<Vec<_>>()))
}

/// The bits of all outputs, with every call by tiles of the given size that can be; and the kernels of those.
fn run(
    gpu: &Arc<Gpu>,
    model: &Model,
    facts: &Facts,
    tile: Option<Tile>,
) -> (Vec<Vec<u32>>, Vec<&'static str>) {
    let mut plan = lower::lower(model, facts, gpu.target()).unwrap();
    plan.prune();
    let mut calls = fuse::fuse(&plan, gpu.max_buffers);
    let mut taken = vec![];
    for call in &mut calls {
        let Some(tiling) = call.tiling.clone() else { continue };
        assert_eq!(tiling.forms[0].source(), call.source);
        let wanted = |form: &&Form| tile.is_none_or(|tile| form.tile == tile);
        if let Some(form) = tiling.forms.iter().find(wanted) {
            call.take(form);
            taken.push(form.kernel.name);
        }
    }
    let inputs: Vec<Value> = plan.inputs.iter().zip(1..).map(|(fact, seed)| noise(fact, seed)).collect();
    let mut program = Program::new(gpu, &plan, calls, None).unwrap();
    let outputs = program.run(&inputs).unwrap();
    let bits = |value: &Value| value.to_host().unwrap().elements::<u32>().into_owned();
    (outputs.iter().map(bits).collect(), taken)
}

/// Which kernels ran by which tiles.
type Seen = BTreeSet<(&'static str, Tile)>;

fn same_by_all_tiles(gpu: &Arc<Gpu>, what: &str, model: &Model, facts: &Facts, seen: &mut Seen) {
    let (usual, tiled) = run(gpu, model, facts, None);
    assert!(!tiled.is_empty(), "{what}: not by tiles");
    for tile in TILES {
        let (bits, taken) = run(gpu, model, facts, Some(tile));
        assert!(bits == usual, "{what} by tiles of {tile:?}");
        seen.extend(taken.into_iter().map(|kernel| (kernel, tile)));
    }
}

fn finish(mut b: Builder, outputs: &[ValueId]) -> (Model, Facts) {
    outputs.iter().for_each(|output| b.output(output));
    let (graph, facts) = b.finish();
    (Model::new(graph, WORKING_OPSET), facts)
}

#[test]
fn results_are_the_same_bit_by_bit_by_all_tiles() {
    let Ok(gpu) = Gpu::open(GpuOptions { allow_software: true, ..GpuOptions::default() }) else {
        return println!("skipped: no GPU, no software driver");
    };
    let mut seen = Seen::new();
    // Columns by fours or not, k cut into parts or not, whole steps or not; which operands are turned.
    let products: [(&[usize], &[usize], &[u32]); 4] = [
        (&[9, 20, 90], &[9, 90, 300], &[0, 2]),
        (&[130, 96], &[96, 132], &[0, 1, 2, 3]),
        (&[200, 1100], &[1100, 131], &[0, 3]),
        (&[3, 70, 33], &[3, 33, 260], &[1]),
    ];
    for (a, b, turns) in products {
        for turned in turns {
            let mut builder = Builder::new("product");
            let mut operand = |name: &str, shape: &[usize], turn: bool| {
                let mut shape = shape.to_vec();
                let rank = shape.len();
                if turn {
                    shape.swap(rank - 2, rank - 1);
                }
                let x = builder.input(name, Fact::new(DType::F32, &shape));
                if turn { builder.transpose_matrix(&x) } else { x }
            };
            let (x, y) = (operand("a", a, turned & 1 == 1), operand("b", b, turned & 2 == 2));
            let c = builder.matmul(&x, &y);
            let (model, facts) = finish(builder, &[c]);
            same_by_all_tiles(&gpu, &format!("{a:?} · {b:?}, turned {turned}"), &model, &facts, &mut seen);
        }
    }
    // Image, weight, stride, padding, groups.
    let convolutions: [(&[usize], &[usize], [i64; 3]); 3] = [
        (&[3, 66, 20, 20], &[70, 66, 3, 3], [1, 1, 1]),
        (&[2, 24, 23, 31], &[72, 24, 5, 5], [2, 2, 1]),
        (&[2, 140, 9, 9], &[160, 70, 3, 3], [1, 1, 2]),
    ];
    for (image, weight, [stride, pad, group]) in convolutions {
        let mut b = Builder::new("convolution");
        b.forms = Forms::Windows;
        let inputs =
            [("x", image), ("w", weight)].map(|(name, shape)| b.input(name, Fact::new(DType::F32, shape)));
        let attributes: [(&str, Attr); 3] =
            [("strides", vec![stride; 2].into()), ("pads", vec![pad; 4].into()), ("group", group.into())];
        let y = b.op_with("Conv", &[&inputs[0], &inputs[1]], &attributes);
        let shape = b.shape(&y);
        let seed = b.input("seed", Fact::new(DType::F32, &shape));
        let gradients = crate::autodiff::backward(&mut b, &[(y.clone(), seed)], &inputs).unwrap();
        let (model, facts) = finish(b, &[y, gradients[&inputs[0]].clone(), gradients[&inputs[1]].clone()]);
        same_by_all_tiles(&gpu, &format!("{image:?} by {weight:?}"), &model, &facts, &mut seen);
    }
    let all = ["conv_tiled", "matmul_tiled"].into_iter().flat_map(|name| TILES.map(|tile| (name, tile)));
    assert_eq!(seen, all.collect());
}
