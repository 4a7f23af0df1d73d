//! Products on matrix units against float64: by the kernel itself where the device has them, and everywhere by the same text with
//! blocks of 16 × 16 multiplied by ordinary means.

use super::*;
use crate::onnx::{Builder, DType, Fact, Facts, Model, Tensor, WORKING_OPSET};
use crate::runtime::wgpu::gpu::{Gpu, GpuOptions, MATRIX_MEMORY};
use crate::runtime::wgpu::kernel::alone;
use crate::runtime::wgpu::lower::{MatrixUnits, Target, lower};
use crate::runtime::wgpu::{fuse, program::Program};
use crate::runtime::{Compiled, Precision, Value};
use half::f16;
use std::collections::BTreeSet;
use std::sync::Arc;
use wgpu::naga;

#[test]
fn kernels_are_valid_and_share_as_much_memory_as_is_said() {
    let layout = |bits: usize| Layout { along: bits & 1 == 1, vectors: bits & 2 == 2 };
    for (rows, columns, terms) in [(256, 256, 64), (300, 260, 64), (256, 130, 50)] {
        for bits in 0..16 {
            let grid = Grid { matrices: 1, rows, columns, terms };
            let product = Product { grid, layouts: [layout(bits % 4), layout(bits / 4)], part: 64 };
            for form in product.tiling([2, 2], 1, u32::MAX).forms {
                let text = alone(&form.source(), 13);
                let module = naga::front::wgsl::parse_str(&text)
                    .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
                let mut validator = naga::valid::Validator::new(
                    naga::valid::ValidationFlags::all(),
                    MATMUL_COOP.capabilities(),
                );
                validator.validate(&module).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
                let variables = module.global_variables.iter().map(|(_, variable)| variable);
                let shared = variables.filter(|v| v.space == naga::AddressSpace::WorkGroup);
                let bytes: u32 = shared.map(|v| module.types[v.ty].inner.size(module.to_ctx())).sum();
                assert_eq!(bytes as usize, product.memory(form.tile), "{:?}", form.tile);
                assert!(!LARGE.contains(&form.tile) || bytes <= MATRIX_MEMORY);
            }
        }
    }
}

/// A product of matrices, some of them turned, and what is known of its result.
struct Case {
    model: Model,
    facts: Facts,
    inputs: Vec<Value>,
    /// In float64, of operands rounded to float16; and the same of their magnitudes.
    exact: Vec<f64>,
    magnitude: Vec<f64>,
}

/// `a · b` over the last two axes, an operand turned by each bit of `turned`, their elements below `sizes`.
fn case(a: &[usize], b: &[usize], turned: u32, sizes: [f32; 2]) -> Case {
    let mut builder = Builder::new("product");
    let mut values = vec![];
    let mut operand = |name: &str, shape: &[usize], turn: bool| {
        let mut shape = shape.to_vec();
        let rank = shape.len();
        if turn {
            shape.swap(rank - 2, rank - 1);
        }
        let (mut state, size) = (values.len() as u32 + 1, sizes[values.len()]);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            size * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        let fact = Fact::new(DType::F32, &shape);
        values.push((0..fact.len()).map(|_| next()).collect::<Vec<f32>>());
        let x = builder.input(name, fact);
        if turn { builder.transpose_matrix(&x) } else { x }
    };
    let (x, y) = (operand("a", a, turned & 1 == 1), operand("b", b, turned & 2 == 2));
    let c = builder.matmul(&x, &y);
    builder.output(&c);
    let (graph, facts) = builder.finish();
    let [m, k, n] = [a[a.len() - 2], a[a.len() - 1], b[b.len() - 1]];
    let rounded: Vec<Vec<f64>> = values.iter().map(|values| rounded(values)).collect();
    let (mut exact, mut magnitude) = (vec![], vec![]);
    for batch in 0..a[..a.len() - 2].iter().product() {
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let place = |turn: bool, r: usize, c: usize, sizes: [usize; 2]| {
                batch * sizes[0] * sizes[1] + if turn { c * sizes[0] + r } else { r * sizes[1] + c }
            };
            let terms = (0..k).map(|l| {
                rounded[0][place(turned & 1 == 1, i, l, [m, k])]
                    * rounded[1][place(turned & 2 == 2, l, j, [k, n])]
            });
            exact.push(terms.clone().sum());
            magnitude.push(terms.map(f64::abs).sum());
        }
    }
    let shapes = graph.required_inputs().map(|input| facts[&input.id].shape.clone());
    let inputs = shapes.zip(&values).map(|(shape, v)| Value::host(Tensor::f32(&shape, v))).collect();
    Case { model: Model::new(graph, WORKING_OPSET), facts, inputs, exact, magnitude }
}

/// To 11 bits, as if float16 ended nowhere near.
fn rounded(values: &[f32]) -> Vec<f64> {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = 2.0f64.powi(14 - largest.log2().floor() as i32);
    values.iter().map(|&v| f16::from_f64(f64::from(v) * scale).to_f64() / scale).collect()
}

type Shape = &'static [usize];
/// Which operands are turned, and the tiles.
type Way = (u32, Tile);

/// Cases, each with tiles to compute it by.
fn cases() -> Vec<(Case, Tile)> {
    // Whole tiles and edges; rows of C at multiples of 16 bytes or not; parts of k; ends of k within a quadruple; bands.
    let products: [(Shape, Shape, &[Way]); 5] = [
        (&[256, 64], &[64, 256], &[(0, [4, 2]), (1, [2, 4]), (2, [2, 2]), (3, [1, 2])]),
        (&[130, 96], &[96, 132], &[(0, [2, 2])]),
        (&[200, 550], &[550, 131], &[(1, [2, 1]), (3, [1, 2])]),
        (&[3, 70, 35], &[3, 35, 260], &[(0, [1, 1]), (3, [2, 2])]),
        (&[1200, 36], &[36, 200], &[(0, [1, 1])]),
    ];
    let usual = products.into_iter().flat_map(|(a, b, ways)| {
        ways.iter().map(move |&(turned, tile)| (case(a, b, turned, [1.0; 2]), tile))
    });
    // Far beyond float16 on both ends, and the powers of two that belong to it beyond float32 together.
    let extreme = [[1e9, 1e-12], [1e-20, 1e-12]].map(|sizes| (case(&[64, 32], &[32, 64], 0, sizes), [1, 1]));
    usual.chain(extreme).collect()
}

/// What comes out by tiles of the given size, and the largest deviation as a share of the terms' magnitudes; `None` where no call
/// has such tiles.
fn run(gpu: &Arc<Gpu>, case: &Case, tile: Tile, text: impl Fn(String) -> String) -> Option<(Vec<f32>, f64)> {
    let units = MatrixUnits { memory: gpu.report.workgroup_memory, from: 0, each: 0 };
    let target = Target { matrix_units: Some(units), ..gpu.target() };
    let mut plan = lower(&case.model, &case.facts, target).unwrap();
    plan.prune();
    let mut calls = fuse::fuse(&plan, gpu.max_buffers);
    let call = calls.iter_mut().find(|call| call.tiling.is_some()).unwrap();
    let tiling = call.tiling.clone().unwrap();
    let form = tiling.forms.iter().find(|form| form.tile == tile)?;
    assert_eq!(form.kernel, MATMUL_COOP);
    call.take(form);
    call.source = text(std::mem::take(&mut call.source));
    let mut program = Program::new(gpu, &plan, calls, None).unwrap();
    let outputs = program.run(&case.inputs).unwrap();
    let got = outputs[0].to_host().unwrap().to_f32().into_owned();
    assert_eq!(got.len(), case.exact.len());
    let deviations = got.iter().zip(&case.exact).zip(&case.magnitude);
    let shares = deviations.map(|((&got, exact), magnitude)| (f64::from(got) - exact).abs() / magnitude);
    let worst = shares.fold(0.0, f64::max);
    Some((got, worst))
}

/// The kernel's text with eight sums of a block for each invocation, and operands that are read where they lie.
fn without_matrix_units(text: String) -> String {
    const BLOCKS: &str = "
var<private> own: i32;
struct Block { at: i32, row: i32, column: i32 }
fn by_rows(at: i32, line: i32) -> Block { return Block(4 * at, 4 * line, 1); }
fn by_columns(at: i32, line: i32) -> Block { return Block(4 * at, 1, 4 * line); }
fn halves(v: vec4<f32>) -> vec2<u32> { return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)); }
fn multiply_add(a: Block, b: Block, sums: array<f32, 8>) -> array<f32, 8> {
    var s = sums;
    for (var e = 0; e < 8; e++) {
        let row = (own + 32 * e) / 16;
        let column = own % 16;
        for (var k = 0; k < 16; k++) {
            let x = a.at + row * a.row + k * a.column;
            let y = b.at + k * b.row + column * b.column;
            s[e] += unpack2x16float(tile_a[x / 4][x / 2 % 2])[x % 2] * unpack2x16float(tile_b[y / 4][y / 2 % 2])[y % 2];
        }
    }
    return s;
}
fn scaled(sums: array<f32, 8>, x: f32, y: f32) -> array<f32, 8> {
    var s = sums;
    for (var e = 0; e < 8; e++) { s[e] = s[e] * x * y; }
    return s;
}
fn store_in_c(sums: array<f32, 8>, at: i32, line: i32) {
    var s = sums;
    for (var e = 0; e < 8; e++) { c[at + (own + 32 * e) / 16 * line + own % 16] = s[e]; }
}
";
    const STORE_BLOCK: &str = "
fn store_in_blocks(sums: array<f32, 8>, at: u32, line: i32) {
    var s = sums;
    for (var e = 0; e < 8; e++) { blocks[i32(at) + (own + 32 * e) / 16 * line + own % 16] = s[e]; }
}
";
    let has_edges = text.contains("&blocks[");
    let lines = text.lines().filter(|line| !line.starts_with("enable ")).map(|line| match line.trim() {
        line if line.starts_with("coopStoreT(") => {
            let (to, from) = line.split_once(", &").map(|(a, b)| (b, a)).unwrap();
            let (name, at) = to.split_once('[').unwrap();
            let (at, stride) = at.rsplit_once("], ").unwrap();
            format!("store_in_{name}({}, {at}, {stride}", &from["coopStoreT(".len()..])
        }
        line if line.starts_with("let sums = ") => {
            line.replace("let sums = ", "let sums = scaled(").replace(" * ", ", ").replace(';', ");")
        }
        _ => line.to_owned(),
    });
    let mut text = lines.collect::<Vec<_>>().join("\n") + BLOCKS + if has_edges { STORE_BLOCK } else { "" };
    for (from, to) in [
        ("array<vec4<f16>", "array<vec2<u32>"),
        ("vec4<f16>(", "halves("),
        ("coopLoadT<coop_mat16x16<f16, A>>(&tile_a[", "by_rows("),
        ("coopLoad<coop_mat16x16<f16, A>>(&tile_a[", "by_columns("),
        ("coopLoadT<coop_mat16x16<f16, B>>(&tile_b[", "by_rows("),
        ("coopLoad<coop_mat16x16<f16, B>>(&tile_b[", "by_columns("),
        ("], LINE_A)", ", LINE_A)"),
        ("], LINE_B)", ", LINE_B)"),
        ("coop_mat16x16<f32, C>()", "array<f32, 8>()"),
        ("coopMultiplyAdd(", "multiply_add("),
        (
            ", @builtin(subgroup_id) subgroup: u32) {",
            ") {\n    let subgroup = lane / 32u;\n    own = i32(lane % 32u);",
        ),
    ] {
        text = text.replace(from, to);
    }
    assert_eq!(text.matches("coop").count(), 1, "beside the kernel's name");
    text
}

#[test]
fn products_are_right_whatever_the_tiles_and_layouts() {
    let gpu = Gpu::open(GpuOptions { allow_software: true, ..GpuOptions::default() });
    let Ok(gpu) = gpu else { return println!("skipped: no GPU, no software driver") };
    let mut seen = BTreeSet::new();
    for (i, (case, tile)) in cases().iter().enumerate() {
        let (_, worst) = run(&gpu, case, *tile, without_matrix_units).unwrap();
        assert!(worst < 1e-6, "case {i} by tiles of {tile:?}: {worst:e} apart");
        seen.insert(*tile);
    }
    assert_eq!(seen, BTreeSet::from(TILES));
}

#[test]
fn matrix_units_give_what_float16_operands_give_and_the_same_by_all_tiles() {
    let options = GpuOptions { allow_software: true, precision: Precision::F16, ..GpuOptions::default() };
    let Ok(gpu) = Gpu::open(options) else { return println!("skipped: no GPU, no software driver") };
    if !gpu.matrix_units {
        return println!("skipped: {} has no matrix units for float16", gpu.report.name);
    }
    for (i, (case, _)) in cases().iter().enumerate() {
        let mut usual: Option<Vec<f32>> = None;
        for tile in TILES {
            let Some((got, worst)) = run(&gpu, case, tile, |text| text) else { continue };
            println!("case {i} by tiles of {tile:?}: {worst:e} apart");
            assert!(worst < 1e-5, "case {i} by tiles of {tile:?}: {worst:e} apart");
            let (again, _) = run(&gpu, case, tile, |text| text).unwrap();
            assert!(got == again, "case {i} by tiles of {tile:?}: another result the second time");
            assert!(
                *usual.get_or_insert_with(|| got.clone()) == got,
                "case {i} by tiles of {tile:?}: other bits"
            );
        }
    }
}
