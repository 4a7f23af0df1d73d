//! The GPU executor against tract: every operator it has a kernel for, and a training loop.
//!
//! Runs on any GPU, or on a software driver (Mesa's llvmpipe); without either, a line says that it was skipped.

use onnx_merge::Result;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Facts, Forms, Model, Tensor, ValueId, WORKING_OPSET};
use onnx_merge::runtime::{Executor, TractExecutor, Value, WgpuExecutor};
use std::sync::{Arc, LazyLock};

/// The device that all tests share.
pub static GPU: LazyLock<Option<Arc<WgpuExecutor>>> =
    LazyLock::new(|| WgpuExecutor::open(true).inspect_err(|e| println!("skipped: {e}")).ok().map(Arc::new));

fn tract() -> Result<TractExecutor> {
    TractExecutor::new(2)
}

/// Numbers between −1 and 1, the same every time.
pub fn noise(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::f32(shape, &values)
}

/// A graph under construction with the values to feed it.
struct Case {
    b: Builder,
    feeds: Vec<Tensor>,
}

impl Case {
    fn new() -> Self {
        Case { b: Builder::new("case"), feeds: vec![] }
    }
    fn feed(&mut self, tensor: Tensor) -> ValueId {
        let name = format!("x{}", self.feeds.len());
        let id = self.b.input(&name, Fact::of(&tensor));
        self.feeds.push(tensor);
        id
    }
    fn noise(&mut self, shape: &[usize]) -> ValueId {
        let seed = self.feeds.len() as u32 + 1;
        self.feed(noise(shape, seed))
    }
    fn positive(&mut self, shape: &[usize]) -> ValueId {
        let x = noise(shape, self.feeds.len() as u32 + 1);
        let values: Vec<f32> = x.to_f32().iter().map(|v| v.abs() + 0.1).collect();
        self.feed(Tensor::f32(shape, &values))
    }
    fn finish(self, outputs: &[ValueId]) -> (Model, Facts, Vec<Value>) {
        let mut b = self.b;
        for output in outputs {
            b.output(output);
        }
        let (graph, facts) = b.finish();
        (Model::new(graph, WORKING_OPSET), facts, self.feeds.into_iter().map(Value::host).collect())
    }
}

fn run(executor: &dyn Executor, model: &Model, facts: &Facts, feeds: &[Value]) -> Result<Vec<Tensor>> {
    executor.compile(model, facts)?.run(feeds)?.iter().map(Value::to_host).collect()
}

/// How far two tensors are apart, relative to 1 + size.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
    let apart = |(x, y): (f64, f64)| {
        if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() / (1.0 + y.abs()) }
    };
    a.to_f64()
        .into_iter()
        .zip(b.to_f64())
        .map(apart)
        .fold(0.0, |m: f64, d| if d.is_nan() { f64::NAN } else { m.max(d) })
}

/// Builds a graph and asserts that the GPU and tract agree on all its outputs.
fn agree(what: &str, tolerance: f64, build: impl FnOnce(&mut Case) -> Vec<ValueId>) -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let mut case = Case::new();
    let outputs = build(&mut case);
    let (model, facts, feeds) = case.finish(&outputs);
    assert_eq!(gpu.misses(&model), Vec::<String>::new(), "{what}");
    let expected = run(&tract()?, &model, &facts, &feeds).map_err(|e| e.context(format!("{what}, tract")))?;
    let got = run(&**gpu, &model, &facts, &feeds).map_err(|e| e.context(format!("{what}, wgpu")))?;
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let apart = distance(got, expected);
        assert!(apart <= tolerance, "{what}, output {i}: {apart:e} apart\n{got:?}\n{expected:?}");
    }
    Ok(())
}

#[test]
fn unary_operators() -> Result<()> {
    agree("any real", 2e-5, |c| {
        let x = c.noise(&[3, 50]);
        let x = c.b.mul_scalar(&x, 4.0);
        let ops = [
            "Abs",
            "Neg",
            "Exp",
            "Sign",
            "Tanh",
            "Erf",
            "Sigmoid",
            "Relu",
            "Floor",
            "Ceil",
            "Sin",
            "Cos",
            "Atan",
            "Softplus",
            "Softsign",
            "HardSwish",
            "Elu",
            "Selu",
            "LeakyRelu",
            "HardSigmoid",
            "Round",
        ];
        ops.iter().map(|op| c.b.op(op, &[&x])).collect()
    })?;
    agree("positive", 2e-5, |c| {
        let x = c.positive(&[7, 9]);
        ["Log", "Sqrt", "Reciprocal"].iter().map(|op| c.b.op(op, &[&x])).collect()
    })
}

#[test]
fn binary_operators_broadcast() -> Result<()> {
    for (a, b) in
        [(&[4, 5][..], &[4, 5][..]), (&[4, 5], &[5]), (&[4, 1], &[1, 5]), (&[2, 1, 3], &[4, 1]), (&[], &[3])]
    {
        agree(&format!("{a:?} with {b:?}"), 2e-5, |c| {
            let (x, y) = (c.positive(a), c.positive(b));
            let mut made: Vec<ValueId> = ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"]
                .iter()
                .map(|op| c.b.op(op, &[&x, &y]))
                .collect();
            let less = c.b.op("Less", &[&x, &y]);
            let more = c.b.op("GreaterOrEqual", &[&x, &y]);
            let equal = c.b.op("Equal", &[&x, &x]);
            let either = c.b.op("Or", &[&less, &more]);
            let both = c.b.op("And", &[&less, &either]);
            let not = c.b.op("Not", &[&both]);
            made.push(c.b.where_(&not, &x, &y));
            made.push(c.b.cast(&less, DType::F32));
            made.push(c.b.cast(&more, DType::I64));
            made.extend([equal, either, both, not]);
            made
        })?;
    }
    Ok(())
}

#[test]
fn integers_and_casts() -> Result<()> {
    agree("integers", 0.0, |c| {
        let x = c.feed(Tensor::i64(&[5], &[-7, -1, 0, 3, 1_000_000]));
        let y = c.feed(Tensor::i64(&[5], &[2, 3, 1, -2, 7]));
        let ops = ["Add", "Sub", "Mul", "Div"];
        let mut made: Vec<ValueId> = ops.iter().map(|op| c.b.op(op, &[&x, &y])).collect();
        let real = c.b.cast(&x, DType::F32);
        made.push(c.b.cast(&real, DType::I32));
        made.push(c.b.op("Equal", &[&x, &y]));
        made
    })
}

#[test]
fn powers_of_negative_numbers() -> Result<()> {
    agree("Pow", 2e-5, |c| {
        let x = c.noise(&[20]);
        [2.0, 3.0, 0.0, -1.0, -2.0]
            .iter()
            .map(|&p| {
                let p = c.b.scalar_like(&x, p);
                c.b.op("Pow", &[&x, &p])
            })
            .collect()
    })
}

#[test]
fn matrix_products_of_all_sizes_and_layouts() -> Result<()> {
    let cases: [(&[usize], &[usize]); 17] = [
        // Vectors along k and along columns, long sums in parts, many large tiles.
        (&[64, 36], &[36, 68]),
        (&[40, 5000], &[5000, 36]),
        (&[3, 2100], &[2100, 5]),
        (&[16, 256, 24], &[16, 24, 260]),
        (&[16, 255, 23], &[16, 23, 257]),
        (&[33, 130, 12], &[33, 12, 260]),
        (&[3, 4], &[4, 5]),
        (&[70, 33], &[33, 65]),
        (&[64, 64], &[64, 64]),
        (&[129, 17], &[17, 40]),
        (&[1, 300], &[300, 7]),
        (&[5, 3, 4], &[5, 4, 6]),
        (&[5, 3, 4], &[4, 6]),
        (&[2, 1, 33, 40], &[3, 40, 50]),
        (&[4], &[4, 3]),
        (&[3, 4], &[4]),
        (&[6, 4], &[2, 3, 4, 5]),
    ];
    for (a, b) in cases {
        let long = a.last().is_some_and(|&k| k > 1000);
        agree(&format!("{a:?}·{b:?}"), if long { 1e-4 } else { 2e-5 }, |c| {
            let (x, y) = (c.noise(a), c.noise(b));
            vec![c.b.matmul(&x, &y)]
        })?;
    }
    agree("transposed operands, by vectors", 2e-5, |c| {
        let (x, y) = (c.noise(&[2, 40, 72]), c.noise(&[2, 52, 40]));
        let (x, y) = (c.b.transpose_matrix(&x), c.b.transpose_matrix(&y));
        vec![c.b.matmul(&x, &y)]
    })?;
    agree("transposed operands", 2e-5, |c| {
        let (x, y) = (c.noise(&[2, 40, 70]), c.noise(&[2, 50, 40]));
        let (x, y) = (c.b.transpose_matrix(&x), c.b.transpose_matrix(&y));
        vec![c.b.matmul(&x, &y)]
    })
}

/// Image, weight, stride, padding, groups.
type Convolution = (&'static [usize], &'static [usize], i64, i64, i64);

fn attributes(stride: i64, pad: i64, group: i64) -> [(&'static str, Attr); 3] {
    [("strides", vec![stride; 2].into()), ("pads", vec![pad; 4].into()), ("group", group.into())]
}

/// Every kernel for sums over windows: large and small tiles, cut into parts, along taps, alone.
#[test]
fn convolutions_of_all_sizes() -> Result<()> {
    let cases: [Convolution; 16] = [
        (&[2, 3, 40, 44], &[70, 3, 3, 3], 1, 1, 1),
        (&[3, 20, 66, 66], &[130, 20, 3, 3], 1, 0, 1),
        (&[2, 130, 7, 9], &[140, 130, 3, 3], 1, 1, 1),
        (&[2, 24, 33, 31], &[40, 24, 5, 5], 2, 2, 1),
        (&[2, 70, 12, 12], &[66, 70, 1, 1], 1, 0, 1),
        (&[2, 70, 11, 11], &[66, 70, 1, 1], 1, 0, 1),
        (&[2, 12, 20, 20], &[12, 1, 3, 3], 2, 1, 12),
        (&[2, 6, 15, 13], &[12, 1, 5, 5], 1, 2, 6),
        (&[2, 3, 9, 14], &[3, 1, 7, 7], 1, 3, 3),
        (&[1, 3, 13, 9], &[3, 1, 2, 3], 3, 0, 3),
        // Several rows and windows an invocation.
        (&[2, 8, 380, 380], &[3, 8, 3, 3], 1, 1, 1),
        // Too many places along the axes for bits of their own.
        (&[2, 20, 40, 40], &[24, 20, 25, 25], 1, 12, 1),
        (&[2, 40, 9, 9], &[60, 20, 3, 3], 1, 1, 2),
        // As weight gradients with the roles swapped: few large windows.
        (&[20, 4, 30, 34], &[72, 4, 28, 32], 1, 0, 1),
        (&[9, 6, 24, 20], &[17, 6, 22, 18], 1, 0, 1),
        (&[1, 24, 42, 42], &[6, 4, 40, 40], 1, 0, 6),
    ];
    for (image, weight, stride, pad, group) in cases {
        agree(&format!("{image:?} by {weight:?}"), 2e-4, |c| {
            let (x, w) = (c.noise(image), c.noise(weight));
            vec![c.b.op_with("Conv", &[&x, &w], &attributes(stride, pad, group))]
        })?;
    }
    let transposed: [Convolution; 5] = [
        (&[2, 140, 7, 9], &[140, 130, 3, 3], 1, 1, 1),
        (&[3, 30, 20, 20], &[30, 70, 3, 3], 2, 1, 1),
        (&[2, 66, 12, 16], &[66, 70, 1, 1], 1, 0, 1),
        (&[2, 66, 11, 11], &[66, 70, 1, 1], 2, 0, 1),
        (&[2, 12, 10, 10], &[12, 1, 3, 3], 2, 1, 12),
    ];
    for (image, weight, stride, pad, group) in transposed {
        agree(&format!("{image:?} by {weight:?}, transposed"), 2e-4, |c| {
            let (x, w) = (c.noise(image), c.noise(weight));
            vec![c.b.op_with("ConvTranspose", &[&x, &w], &attributes(stride, pad, group))]
        })?;
    }
    Ok(())
}

/// An operator, its inputs' shapes, its attributes.
type Operation = (&'static str, &'static [&'static [usize]], Vec<(&'static str, Attr)>);

/// The gradients that only this executor is given: sums over windows with the roles swapped, normalisation as a whole.
#[test]
fn gradients_in_forms_for_the_gpu() -> Result<()> {
    let gradients = |forms: Forms, op: &str, shapes: &[&[usize]], attrs: &[(&str, Attr)]| -> Result<_> {
        let mut case = Case::new();
        case.b.forms = forms;
        let inputs: Vec<ValueId> = shapes.iter().map(|shape| case.noise(shape)).collect();
        let y = case.b.op_with(op, &inputs.iter().collect::<Vec<_>>(), attrs);
        if op.ends_with("Normalization") {
            case.b.set_fact(&y, Fact::new(DType::F32, shapes[0]));
        }
        let shape = case.b.shape(&y);
        let seed = case.noise(&shape);
        let found = onnx_merge::autodiff::backward(&mut case.b, &[(y, seed)], &inputs)?;
        let outputs: Vec<ValueId> = inputs.iter().map(|input| found[input].clone()).collect();
        Ok(case.finish(&outputs))
    };
    let Some(gpu) = &*GPU else { return Ok(()) };
    let conv = attributes;
    let cases: [Operation; 10] = [
        ("Conv", &[&[3, 8, 17, 19], &[24, 8, 3, 3]], conv(1, 1, 1).into()),
        ("Conv", &[&[2, 5, 18, 18], &[7, 5, 5, 5]], conv(2, 2, 1).into()),
        ("Conv", &[&[4, 6, 16, 16], &[6, 1, 3, 3]], conv(2, 1, 6).into()),
        ("Conv", &[&[5, 6, 17, 16], &[6, 1, 3, 3]], conv(1, 1, 6).into()),
        ("Conv", &[&[16, 4, 28, 14], &[8, 1, 5, 5]], conv(2, 2, 4).into()),
        ("Conv", &[&[24, 5, 7, 7], &[5, 1, 7, 7]], conv(1, 3, 5).into()),
        ("Conv", &[&[4, 8, 16, 16], &[12, 4, 3, 3]], conv(1, 1, 2).into()),
        ("Conv", &[&[2, 20, 12, 12], &[9, 20, 1, 1]], conv(1, 0, 1).into()),
        ("LayerNormalization", &[&[6, 5, 70], &[70], &[70]], vec![]),
        ("InstanceNormalization", &[&[3, 4, 9, 7], &[4], &[4]], vec![]),
    ];
    for (op, shapes, attrs) in cases {
        let (model, facts, feeds) = gradients(Forms::Products, op, shapes, &attrs)?;
        let expected = run(&tract()?, &model, &facts, &feeds)?;
        let (model, facts, feeds) = gradients(Forms::Windows, op, shapes, &attrs)?;
        let got = run(&**gpu, &model, &facts, &feeds)?;
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let apart = distance(got, expected);
            assert!(apart <= 1e-4, "{op} of {shapes:?}, gradient {i}: {apart:e} apart");
        }
    }
    Ok(())
}

#[test]
fn gemm_with_every_flag() -> Result<()> {
    for flags in 0..4 {
        agree(&format!("Gemm {flags}"), 2e-5, |c| {
            let (ta, tb) = (flags & 1 != 0, flags & 2 != 0);
            let x = c.noise(if ta { &[20, 6] } else { &[6, 20] });
            let y = c.noise(if tb { &[7, 20] } else { &[20, 7] });
            let z = c.noise(&[7]);
            let attrs = [("transA", ta.into()), ("transB", tb.into())];
            let scaled = [
                ("transA", ta.into()),
                ("transB", tb.into()),
                ("alpha", Attr::Float(0.5)),
                ("beta", Attr::Float(2.0)),
            ];
            vec![c.b.op_with("Gemm", &[&x, &y], &attrs), c.b.op_with("Gemm", &[&x, &y, &z], &scaled)]
        })?;
    }
    Ok(())
}

#[test]
fn reductions_over_any_axes() -> Result<()> {
    for axes in [&[0][..], &[1], &[2], &[-1, 0], &[0, 1, 2], &[1, 2]] {
        for shape in [&[3, 4, 5][..], &[2, 70, 130]] {
            agree(&format!("{shape:?} over {axes:?}"), 5e-5, |c| {
                let x = c.noise(shape);
                let ops = [
                    "ReduceSum",
                    "ReduceMean",
                    "ReduceMax",
                    "ReduceMin",
                    "ReduceSumSquare",
                    "ReduceL2",
                    "ReduceL1",
                ];
                let mut made: Vec<ValueId> = ops.iter().map(|op| c.b.reduce(op, &x, axes, true)).collect();
                let x = c.b.transpose(&x, &[2, 0, 1]);
                made.push(c.b.sum(&x, axes, true));
                made
            })?;
        }
    }
    agree("to a scalar", 5e-5, |c| {
        let x = c.noise(&[40, 50]);
        vec![c.b.sum_all(&x), c.b.mean(&x, &[1], false)]
    })
}

/// A kernel of rows is left without what a later kernel computes again for itself, and without the operands of that.
#[test]
fn what_is_computed_again_elsewhere_leaves_its_first_kernel() -> Result<()> {
    agree("computed again", 5e-5, |c| {
        let (x, z, w) = (c.noise(&[130, 40]), c.noise(&[130, 40]), c.noise(&[130, 40]));
        let (a, b) = (c.noise(&[130, 8]), c.noise(&[8, 40]));
        let product = c.b.mul(&x, &z);
        let sums = c.b.sum(&product, &[1], true);
        let sum = c.b.add(&x, &w);
        let again = c.b.op("Tanh", &[&sum]);
        let other = c.b.matmul(&a, &b);
        let weighted = c.b.mul(&other, &w);
        vec![sums, c.b.mul(&weighted, &again)]
    })
}

#[test]
fn softmax_and_normalisation() -> Result<()> {
    for (shape, axis) in [(&[4, 7][..], -1), (&[3, 100], 1), (&[5, 6, 4], 1), (&[2, 3], 0)] {
        agree(&format!("{shape:?} along {axis}"), 2e-5, |c| {
            let x = c.noise(shape);
            let x = c.b.mul_scalar(&x, 30.0);
            vec![c.b.softmax(&x, axis), c.b.op_with("LogSoftmax", &[&x], &[("axis", axis.into())])]
        })?;
    }
    agree("LayerNormalization", 2e-5, |c| {
        let (x, scale, bias) = (c.noise(&[4, 3, 20]), c.noise(&[20]), c.noise(&[20]));
        vec![c.b.op_with(
            "LayerNormalization",
            &[&x, &scale, &bias],
            &[("axis", (-1).into()), ("epsilon", Attr::Float(1e-3))],
        )]
    })
}

/// Rows of one invocation and of many, held in registers or not, with operands that lie in every way.
#[test]
fn rows_of_all_lengths() -> Result<()> {
    for [rows, len] in
        [[3, 2], [130, 7], [65, 64], [5, 1000], [9, 1001], [130, 4100], [129, 9000], [128, 9001]]
    {
        agree(&format!("{rows} rows of {len}"), 5e-5, |c| {
            let (wide, turned) = (c.noise(&[rows, len + 1]), c.noise(&[len, rows]));
            let (scale, shift) = (c.noise(&[len]), c.noise(&[rows, 1]));
            let x = c.b.slice(&wide, &[1], &[len as i64 + 1], &[1]);
            let turned = c.b.transpose(&turned, &[1, 0]);
            let scaled = c.b.mul(&x, &scale);
            let shifted = c.b.add(&scaled, &shift);
            let z = c.b.mul(&shifted, &turned);
            let y = c.b.softmax(&z, -1);
            let along = c.b.mul(&y, &z);
            let total = c.b.sum(&along, &[1], true);
            let rest = c.b.sub(&z, &total);
            let mean = c.b.mean(&z, &[1], false);
            let column = c.b.sum(&rest, &[0], false);
            vec![c.b.mul(&y, &rest), c.b.op("Exp", &[&mean]), column, shifted]
        })?;
        agree(&format!("cross-entropy of {rows} rows of {len}"), 5e-5, |c| {
            let x = c.noise(&[rows, len]);
            let labels: Vec<i64> = (0..rows).map(|i| (i * 7 % len) as i64 - (i % 2 * len) as i64).collect();
            let labels = c.b.constant(Tensor::i64(&[rows, 1], &labels));
            let log_p = c.b.op_with("LogSoftmax", &[&x], &[("axis", Attr::Int(-1))]);
            let picked = c.b.op_with("GatherElements", &[&log_p, &labels], &[("axis", Attr::Int(1))]);
            let seed = c.noise(&[rows, 1]);
            let found =
                onnx_merge::autodiff::backward(&mut c.b, &[(picked.clone(), seed)], std::slice::from_ref(&x));
            vec![found.expect("all have rules")[&x].clone(), picked]
        })?;
    }
    Ok(())
}

#[test]
fn moving_elements() -> Result<()> {
    for (shape, perm) in [
        (vec![70, 45], vec![1, 0]),
        (vec![3, 33, 20, 2], vec![0, 2, 3, 1]),
        (vec![17, 2, 40, 3], vec![2, 1, 3, 0]),
        (vec![5, 64, 6, 6], vec![1, 0, 2, 3]),
        (vec![3, 132, 68], vec![0, 2, 1]),
    ] {
        agree(&format!("{shape:?} turned to {perm:?}"), 0.0, |c| {
            let x = c.noise(&shape);
            vec![c.b.transpose(&x, &perm)]
        })?;
    }
    agree("views", 0.0, |c| {
        let x = c.noise(&[4, 6, 5]);
        let turned = c.b.transpose(&x, &[2, 0, 1]);
        let flat = c.b.reshape(&turned, &[10, 12]);
        let cut = c.b.slice(&turned, &[1, -2], &[4, 6], &[1, 2]);
        let back = [c.b.ints(&[-1]), c.b.ints(&[-100]), c.b.ints(&[1]), c.b.ints(&[-2])];
        let backwards = c.b.op("Slice", &[&x, &back[0], &back[1], &back[2], &back[3]]);
        let parts = c.b.ints(&[2, 4]);
        let split = c.b.op_full("", "Split", &[Some(&x), Some(&parts)], &[("axis", Attr::Int(1))], 2);
        let row = c.noise(&[6, 1]);
        let wide = c.b.expand(&row, &[3, 6, 4]);
        let times = c.b.ints(&[2, 1, 3]);
        let tiled = c.b.op("Tile", &[&x, &times]);
        let joined = c.b.concat(&[&split[1], &x, &split[0]], 1);
        let squeezed = c.b.unsqueeze(&x, &[0, 2]);
        let sum = c.b.add(&turned, &turned);
        vec![turned, flat, cut, backwards, split[1].clone(), wide, tiled, joined, squeezed, sum]
    })?;
    agree("padding and triangles", 0.0, |c| {
        let x = c.noise(&[3, 4, 5]);
        let pads = c.b.ints(&[0, 1, 2, 1, 0, 3]);
        let value = c.b.scalar_like(&x, 0.5);
        let upper = c.b.op("Trilu", &[&x]);
        vec![c.b.op("Pad", &[&x, &pads]), c.b.op("Pad", &[&x, &pads, &value]), upper]
    })
}

#[test]
fn a_training_loop_keeps_its_state_on_the_device() -> Result<()> {
    // A device of its own, so that nobody else's buffers are counted.
    let Ok(gpu) = WgpuExecutor::open(true) else { return Ok(()) };
    let (model, facts, feeds) = mlp_step();
    let tract = tract()?;
    let mut ours = gpu.compile(&model, &facts)?;
    let mut theirs = tract.compile(&model, &facts)?;
    let (mut state, mut reference) = (feeds.clone(), feeds.clone());
    let (mut first, mut last) = (f64::NAN, f64::NAN);
    let mut idle = 0;
    for step in 0..50 {
        if step == 10 {
            idle = gpu.idle_bytes();
        }
        let out = ours.run(&state)?;
        let expected = theirs.run(&reference)?;
        last = out[0].scalar()?;
        if step == 0 {
            first = last;
        }
        assert!(
            (last - expected[0].scalar()?).abs() <= 1e-4,
            "step {step}: {last} {}",
            expected[0].scalar()?
        );
        let n = out.len() - 1;
        state[2..2 + n].clone_from_slice(&out[1..]);
        reference[2..2 + n].clone_from_slice(&expected[1..]);
    }
    assert!(last < 0.5 * first, "loss went from {first} to {last}");
    for (a, b) in state.iter().zip(&reference) {
        assert!(distance(&a.to_host()?, &b.to_host()?) <= 1e-4);
    }
    assert_eq!(gpu.idle_bytes(), idle, "device memory grows from step to step");
    Ok(())
}

/// A step of AdamW on a two-layer perceptron with a squared loss; the gradient is written out by hand.
fn mlp_step() -> (Model, Facts, Vec<Value>) {
    let mut c = Case::new();
    let (x, y) = (c.noise(&[32, 12]), c.noise(&[32, 3]));
    let shapes: [&[usize]; 4] = [&[12, 40], &[40], &[40, 3], &[3]];
    let weights: Vec<ValueId> = shapes.iter().map(|s| c.noise(s)).collect();
    let zeros = |c: &mut Case| -> Vec<ValueId> {
        shapes.iter().map(|s| c.feed(Tensor::zeros(DType::F32, s))).collect()
    };
    let (m, v) = (zeros(&mut c), zeros(&mut c));
    let time = c.feed(Tensor::f32(&[], &[0.0]));
    let b = &mut c.b;
    let h = b.matmul(&x, &weights[0]);
    let h = b.add(&h, &weights[1]);
    let a = b.op("Tanh", &[&h]);
    let o = b.matmul(&a, &weights[2]);
    let o = b.add(&o, &weights[3]);
    let e = b.sub(&o, &y);
    let e2 = b.mul(&e, &e);
    let loss = b.mean(&e2, &[0, 1], false);
    let g = b.mul_scalar(&e, 2.0 / 96.0);
    let at = b.transpose_matrix(&a);
    let wt = b.transpose_matrix(&weights[2]);
    let xt = b.transpose_matrix(&x);
    let ga = b.matmul(&g, &wt);
    let a2 = b.mul(&a, &a);
    let slope = b.scalar_sub(1.0, &a2);
    let gh = b.mul(&ga, &slope);
    let grads = [b.matmul(&xt, &gh), b.sum(&gh, &[0], false), b.matmul(&at, &g), b.sum(&g, &[0], false)];
    let time = b.add_scalar(&time, 1.0);
    let correction = |b: &mut Builder, beta: f64| {
        let beta = b.scalar_like(&time, beta);
        let power = b.op("Pow", &[&beta, &time]);
        b.scalar_sub(1.0, &power)
    };
    let (c1, c2) = (correction(b, 0.9), correction(b, 0.999));
    let (mut ws, mut ms, mut vs) = (vec![], vec![], vec![]);
    for i in 0..4 {
        let mix = |b: &mut Builder, old: &ValueId, new: &ValueId, beta: f64| {
            let (old, new) = (b.mul_scalar(old, beta), b.mul_scalar(new, 1.0 - beta));
            b.add(&old, &new)
        };
        let square = b.mul(&grads[i], &grads[i]);
        let (m, v) = (mix(b, &m[i], &grads[i], 0.9), mix(b, &v[i], &square, 0.999));
        let (mh, vh) = (b.div(&m, &c1), b.div(&v, &c2));
        let root = b.op("Sqrt", &[&vh]);
        let root = b.add_scalar(&root, 1e-8);
        let step = b.div(&mh, &root);
        let decay = b.mul_scalar(&weights[i], 0.01);
        let step = b.add(&step, &decay);
        let step = b.mul_scalar(&step, 0.02);
        ws.push(b.sub(&weights[i], &step));
        ms.push(m);
        vs.push(v);
    }
    let outputs = [vec![loss], ws, ms, vs, vec![time]].concat();
    c.finish(&outputs)
}

#[test]
fn finding_elements_by_index() -> Result<()> {
    agree("gathers", 0.0, |c| {
        let x = c.noise(&[4, 6, 5]);
        let rows = c.feed(Tensor::i64(&[2, 3], &[0, -1, 3, 2, 5, 1]));
        let one = c.feed(Tensor::i64(&[], &[2]));
        let places: Vec<i64> = (0..4 * 2 * 5).map(|i| (i * 7 % 6) as i64).collect();
        let places = c.feed(Tensor::i64(&[4, 2, 5], &places));
        let tuples = c.feed(Tensor::i64(&[3, 2], &[0, 1, 3, 5, 2, 0]));
        vec![
            c.b.op_with("Gather", &[&x, &rows], &[("axis", Attr::Int(1))]),
            c.b.op_with("Gather", &[&x, &one], &[("axis", Attr::Int(0))]),
            c.b.op_with("GatherElements", &[&x, &places], &[("axis", Attr::Int(1))]),
            c.b.op("GatherND", &[&x, &tuples]),
        ]
    })?;
    agree("the best", 0.0, |c| {
        let x = c.noise(&[4, 6, 5]);
        let axis = |k: i64| [("axis", Attr::Int(k)), ("keepdims", Attr::Int(k % 2))];
        vec![c.b.op_with("ArgMax", &[&x], &axis(1)), c.b.op_with("ArgMin", &[&x], &axis(2))]
    })?;
    agree("running sums", 2e-5, |c| {
        let x = c.noise(&[4, 6]);
        let axis = c.b.constant(Tensor::i64(&[], &[1]));
        let attrs = [("reverse", Attr::Int(1)), ("exclusive", Attr::Int(1))];
        vec![c.b.op("CumSum", &[&x, &axis]), c.b.op_with("CumSum", &[&x, &axis], &attrs)]
    })
}

#[test]
fn scattering_with_repeated_places_is_deterministic() -> Result<()> {
    for reduction in ["none", "add"] {
        agree(reduction, 2e-5, |c| {
            let (x, rows, parts) = (c.noise(&[7, 3]), c.noise(&[4, 3]), c.noise(&[5, 2]));
            let repeat = if reduction == "add" { 2 } else { 6 };
            let places = c.feed(Tensor::i64(&[4, 1], &[2, 0, repeat, 5]));
            let attrs = [("reduction", Attr::from(reduction))];
            let by_rows = c.b.op_with("ScatterND", &[&x, &places, &rows], &attrs);
            let places = c.feed(Tensor::i64(&[5, 2], &[0, 1, 2, 3, repeat, -1, 1, 0, 3, 4]));
            let attrs = [("reduction", Attr::from(reduction)), ("axis", Attr::Int(0))];
            vec![by_rows, c.b.op_with("ScatterElements", &[&x, &places, &parts], &attrs)]
        })?;
    }
    Ok(())
}

#[test]
fn einsum_contracts_any_labels() -> Result<()> {
    for (equation, a, b) in [
        ("ij,jk->ik", &[3, 4][..], &[4, 5][..]),
        ("bij,bkj->bik", &[2, 3, 4], &[2, 5, 4]),
        ("ij,kj->ki", &[40, 33], &[50, 33]),
        ("bhqd,bkhd->bhqk", &[2, 3, 4, 5], &[2, 6, 3, 5]),
        ("ij,kl->ikjl", &[3, 4], &[2, 5]),
    ] {
        agree(equation, 2e-5, |c| {
            let (x, y) = (c.noise(a), c.noise(b));
            vec![c.b.op_with("Einsum", &[&x, &y], &[("equation", equation.into())])]
        })?;
    }
    Ok(())
}

#[test]
fn small_calls_of_a_kernel_go_as_one_dispatch() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let mut case = Case::new();
    let mut outputs = vec![];
    for i in 0..9 {
        let [a, b, c] = [[3 + i, 5 + 7 * i], [5 + 7 * i, 4], [4, 2 + i]].map(|shape| case.noise(&shape));
        let ab = case.b.matmul(&a, &b);
        outputs.push(case.b.matmul(&ab, &c));
    }
    let (model, facts, feeds) = case.finish(&outputs);
    let expected = run(&tract()?, &model, &facts, &feeds)?;
    let mut program = gpu.compile(&model, &facts)?;
    let got = program.run(&feeds)?;
    // What a run gave stays as it is while others run.
    let zeros = |value: &Value| Value::host(Tensor::zeros(DType::F32, &value.fact().shape));
    let none = program.run(&feeds.iter().map(zeros).collect::<Vec<_>>())?;
    for ((got, none), expected) in got.iter().zip(none).zip(expected) {
        assert!(distance(&got.to_host()?, &expected) < 1e-6);
        assert!(none.to_host()?.to_f32().iter().all(|&v| v == 0.0));
    }
    let times = gpu.profile(&model, &facts, &feeds)?;
    let counts: Vec<_> = times.iter().map(|t| (t.kernel.as_str(), t.calls, t.dispatches)).collect();
    assert_eq!(counts, [("matmul_small", 18, 2)]);
    Ok(())
}

#[test]
fn what_has_no_kernel_is_refused_by_name() {
    let Some(gpu) = &*GPU else { return };
    let mut c = Case::new();
    let x = c.noise(&[1, 4, 4]);
    let y = c.b.op_with("Det", &[&x], &[]);
    c.b.set_fact(&y, Fact::new(DType::F32, &[1]));
    let (model, facts, _) = c.finish(&[y]);
    assert_eq!(gpu.misses(&model), ["node 'Det': Det has no GPU kernel"]);
    let error = gpu.compile(&model, &facts).err().map(|e| (e.exit_code(), e.to_string()));
    assert_eq!(error, Some((5, "executor wgpu: node 'Det' (Det): has no kernel".to_owned())));

    let mut b = Builder::new("double");
    let x = b.input("x", Fact::new(DType::F64, &[3]));
    let y = b.neg(&x);
    b.output(&y);
    let (graph, facts) = b.finish();
    let error = gpu.compile(&Model::new(graph, WORKING_OPSET), &facts).err().map(|e| e.to_string());
    assert!(error.as_ref().is_some_and(|e| e.contains("input 'x': float64")), "{error:?}");
    assert!(gpu.upload(&Tensor::i64(&[1], &[1 << 40])).is_err());
}

#[test]
fn inputs_and_constants_may_be_outputs_and_values_are_never_overwritten() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let mut b = Builder::new("passthrough");
    let x = b.input("x", Fact::new(DType::F32, &[2, 3]));
    let constant = b.constant(Tensor::i64(&[2], &[5, -6]));
    let next = b.add_scalar(&x, 1.0);
    let turned = b.transpose(&x, &[1, 0]);
    let flat = b.reshape(&next, &[6]);
    for output in [&x, &next, &constant, &turned, &flat, &next] {
        b.output(output);
    }
    let (graph, facts) = b.finish();
    let mut program = gpu.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
    let start = Tensor::f32(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let first = program.run(&[Value::host(start.clone())])?;
    let second = program.run(&[first[1].clone()])?;
    program.run(&[second[1].clone()])?;
    assert_eq!(first[0].to_host()?, start);
    assert_eq!(first[1].to_host()?.to_f64(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(second[1].to_host()?.to_f64(), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(first[2].to_host()?, Tensor::i64(&[2], &[5, -6]));
    assert_eq!(first[3].to_host()?.to_f64(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(second[4].to_host()?.shape(), [6]);
    assert!(program.run(&[Value::host(Tensor::f32(&[3], &[0.0; 3]))]).is_err());
    assert!(program.run(&[]).is_err());
    Ok(())
}

#[test]
fn tensors_without_elements_pass_through() -> Result<()> {
    let Some(gpu) = &*GPU else { return Ok(()) };
    let mut b = Builder::new("empty");
    let (x, y) = (b.input("x", Fact::new(DType::F32, &[0, 3])), b.input("y", Fact::new(DType::F32, &[2, 3])));
    let twice = b.add(&x, &x);
    let sum = b.sum(&x, &[0], false);
    let joined = b.concat(&[&twice, &y], 0);
    for output in [&twice, &sum, &joined] {
        b.output(output);
    }
    let (graph, facts) = b.finish();
    let model = Model::new(graph, WORKING_OPSET);
    let feeds = [Value::host(Tensor::zeros(DType::F32, &[0, 3])), Value::host(noise(&[2, 3], 1))];
    let got = run(&**gpu, &model, &facts, &feeds)?;
    assert_eq!(got, [Tensor::zeros(DType::F32, &[0, 3]), Tensor::zeros(DType::F32, &[3]), noise(&[2, 3], 1)]);
    Ok(())
}
