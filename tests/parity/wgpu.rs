//! The GPU executor against tract: every operator it has a kernel for, and a training loop.
//!
//! Runs on any GPU, or on a software driver (Mesa's llvmpipe); without either, a line says that it was skipped.

mod elements;
mod products;

use onnx_merge::Result;
use onnx_merge::onnx::{Builder, DType, Fact, Facts, Model, Tensor, ValueId, WORKING_OPSET};
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

/// A part of 2²⁰ elements has a dispatch of its own: dense, turned, or with channels that aren't whole vectors.
#[test]
fn large_parts_of_a_concatenation_are_copied_one_by_one() -> Result<()> {
    agree("large concatenation", 0.0, |c| {
        let x = c.noise(&[1024, 1024]);
        let y = c.noise(&[1026, 1024]);
        let turned = c.b.transpose(&y, &[1, 0]);
        let odd = c.noise(&[1024, 1031]);
        vec![c.b.concat(&[&x, &turned, &odd], 1)]
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
