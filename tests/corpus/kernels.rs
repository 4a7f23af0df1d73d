//! Operators that ONNX's own cases don't cover, against the kernels of ONNX Runtime: what the definition in primitives
//! computes, and the gradient by central differences.

use crate::differences::{Manner, Miss, Subject, compare};
use crate::gradients::{differentiable, judges, said};
use onnx_merge::autodiff::facts::probe;
use onnx_merge::autodiff::rules::{self, Kind};
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Graph, Model, Node, Tensor, ValueId, ValueInfo};
use onnx_merge::runtime::{Executor, Value};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::sync::Arc;

/// One input of a case.
#[derive(Clone)]
pub enum Given {
    /// Random reals of this shape, with respect to which is differentiated.
    Real(&'static [usize]),
    /// A constant.
    Fixed(Tensor),
    Missing,
}
use Given::{Fixed, Missing, Real};

pub struct Case {
    /// `domain::Op`, and what is special about the case.
    pub name: &'static str,
    attrs: Vec<(&'static str, Attr)>,
    inputs: Vec<Given>,
    outputs: usize,
    pub opset: i64,
}

pub fn case(name: &'static str, attrs: &[(&'static str, Attr)], inputs: &[Given]) -> Case {
    Case { name, attrs: attrs.to_vec(), inputs: inputs.to_vec(), outputs: 1, opset: 18 }
}

impl Case {
    pub fn outputs(self, outputs: usize) -> Self {
        Case { outputs, ..self }
    }
    pub fn opset(self, opset: i64) -> Self {
        Case { opset, ..self }
    }
    /// The model of the operator alone.
    pub fn model(&self) -> (Model, HashMap<ValueId, Tensor>, Vec<ValueId>) {
        let qualified = self.name.split(' ').next().unwrap();
        let (domain, op) = qualified.split_once("::").unwrap_or(("", qualified));
        let mut rng = ChaCha8Rng::seed_from_u64(13);
        let mut graph = Graph { name: "kernel".into(), ..Graph::default() };
        let mut point = HashMap::new();
        let mut node = Node { op: op.into(), domain: domain.into(), ..Node::default() };
        for (i, given) in self.inputs.iter().enumerate() {
            let id = ValueId::new(format!("x{i}"));
            match given {
                Missing => {
                    node.inputs.push(None);
                    continue;
                }
                Fixed(tensor) => drop(graph.initializers.insert(id.clone(), tensor.clone())),
                Real(shape) => {
                    let fact = Fact::new(DType::F32, shape);
                    let values = distinct(fact.len(), &mut rng);
                    point.insert(id.clone(), Tensor::from_f64(DType::F32, shape, &values));
                    graph.inputs.push(ValueInfo::new(id.clone(), &fact));
                }
            }
            node.inputs.push(Some(id));
        }
        node.outputs = (0..self.outputs).map(|i| Some(ValueId::new(format!("y{i}")))).collect();
        node.attrs = self.attrs.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        graph.outputs = node.outputs.iter().flatten().map(untyped).collect();
        let varied = graph.inputs.iter().map(|i| i.id.clone()).collect();
        graph.nodes = vec![node];
        let mut model = Model::new(graph, self.opset);
        if !domain.is_empty() {
            model.opsets.insert(domain.into(), 1);
        }
        (model, point, varied)
    }
}

/// Numbers in −1…1 in random order, none too close to another: maxima stay where they are.
fn distinct(count: usize, rng: &mut impl Rng) -> Vec<f64> {
    let mut values: Vec<f64> = (0..count).map(|i| 2.0 * (i as f64 + 0.5) / count as f64 - 1.0).collect();
    (1..count).rev().for_each(|i| values.swap(i, rng.random_range(0..=i)));
    values
}

fn untyped(id: &ValueId) -> ValueInfo {
    ValueInfo { id: id.clone(), dtype: None, shape: None }
}

fn floats(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_f64(DType::F32, shape, &values)
}

fn i32s(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::i64(shape, values).cast(DType::I32)
}

fn bytes(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..shape.iter().product()).map(|_| rng.random_range(0..=255u8)).collect();
    Tensor::new(DType::U8, shape, values).unwrap()
}

/// Cosines and sines of `count` positions and `pairs` frequencies.
fn caches(count: usize, pairs: usize) -> [Tensor; 2] {
    let angle = |i: usize| (i / pairs) as f64 / 10f64.powf((i % pairs) as f64 / pairs as f64);
    [f64::cos as fn(f64) -> f64, f64::sin].map(|f| {
        let values: Vec<f64> = (0..count * pairs).map(|i| f(angle(i))).collect();
        Tensor::from_f64(DType::F32, &[count, pairs], &values)
    })
}

fn cases() -> Vec<Case> {
    let int = |v: i64| Attr::Int(v);
    let heads = ("num_heads", int(2));
    let [cos, sin] = caches(8, 2);
    let (cos, sin) = (Fixed(cos), Fixed(sin));
    let [wide_cos, wide_sin] = caches(8, 8).map(Fixed);
    let lengths = Fixed(i32s(&[2], &[2, 3]));
    let mask = Fixed(i32s(&[2, 3], &[1, 1, 0, 1, 1, 1]));
    let mut all = vec![
        case("com.microsoft::Gelu", &[], &[Real(&[2, 5])]),
        case("com.microsoft::FastGelu", &[], &[Real(&[2, 5]), Real(&[5])]),
        case("com.microsoft::BiasGelu", &[], &[Real(&[2, 5]), Real(&[5])]),
        case("com.microsoft::QuickGelu", &[("alpha", Attr::Float(1.3))], &[Real(&[2, 5])]),
        case(
            "com.microsoft::SkipLayerNormalization",
            &[("epsilon", Attr::Float(1e-3))],
            &[Real(&[2, 3, 4]), Real(&[2, 3, 4]), Real(&[4]), Real(&[4]), Real(&[4])],
        ),
        case(
            "com.microsoft::SkipSimplifiedLayerNormalization",
            &[("epsilon", Attr::Float(1e-3))],
            &[Real(&[2, 3, 4]), Real(&[2, 3, 4]), Real(&[4]), Real(&[4])],
        ),
        case(
            "SimplifiedLayerNormalization",
            &[("epsilon", Attr::Float(1e-3)), ("axis", int(-1))],
            &[Real(&[2, 3, 4]), Real(&[4])],
        ),
        case(
            "com.microsoft::EmbedLayerNormalization",
            &[("epsilon", Attr::Float(1e-3))],
            &[
                Fixed(i32s(&[2, 3], &[0, 4, 2, 1, 4, 3])),
                Fixed(i32s(&[2, 3], &[0, 1, 1, 0, 0, 1])),
                Real(&[5, 4]),
                Real(&[6, 4]),
                Real(&[2, 4]),
                Real(&[4]),
                Real(&[4]),
            ],
        )
        .outputs(2),
        case(
            "com.microsoft::FusedMatMul",
            &[("transA", int(1)), ("transB", int(1)), ("alpha", Attr::Float(0.7))],
            &[Real(&[2, 4, 3]), Real(&[2, 5, 4])],
        ),
        case(
            "com.microsoft::FusedGemm",
            &[("activation", "LeakyRelu".into()), ("activation_alpha", Attr::Float(0.2)), ("transB", int(1))],
            &[Real(&[3, 4]), Real(&[5, 4]), Real(&[5])],
        ),
        case(
            "com.microsoft::FusedConv",
            &[
                ("activation", "Tanh".into()),
                ("pads", vec![1i64, 1, 1, 1].into()),
                ("strides", vec![2i64, 1].into()),
            ],
            &[Real(&[2, 3, 6, 5]), Real(&[4, 3, 3, 3]), Real(&[4])],
        ),
        case(
            "com.microsoft::Attention masked by lengths",
            std::slice::from_ref(&heads),
            &[Real(&[2, 3, 4]), Real(&[4, 12]), Real(&[12]), lengths.clone()],
        ),
        case(
            "com.microsoft::Attention masked by keys, causal",
            &[heads.clone(), ("unidirectional", int(1)), ("scale", Attr::Float(0.3))],
            &[Real(&[2, 3, 4]), Real(&[4, 12]), Real(&[12]), mask.clone(), Missing, Real(&[1, 2, 3, 3])],
        ),
        case(
            "com.microsoft::Attention with a past",
            std::slice::from_ref(&heads),
            &[Real(&[2, 3, 4]), Real(&[4, 12]), Real(&[12]), Missing, Real(&[2, 2, 2, 5, 2])],
        )
        .outputs(2),
        case(
            "com.microsoft::MultiHeadAttention",
            std::slice::from_ref(&heads),
            &[
                Real(&[2, 3, 4]),
                Real(&[2, 5, 4]),
                Real(&[2, 5, 6]),
                Real(&[14]),
                Missing,
                Real(&[1, 2, 3, 5]),
            ],
        ),
        case(
            "com.microsoft::MultiHeadAttention masked, causal",
            &[heads.clone(), ("unidirectional", int(1))],
            &[Real(&[2, 3, 4]), Real(&[2, 3, 4]), Real(&[2, 3, 4]), Missing, mask],
        ),
        case(
            "com.microsoft::GroupQueryAttention",
            &[heads.clone(), ("kv_num_heads", int(1)), ("do_rotary", int(1)), ("local_window_size", int(2))],
            &[
                Real(&[2, 3, 32]),
                Real(&[2, 3, 16]),
                Real(&[2, 3, 16]),
                Missing,
                Missing,
                Fixed(i32s(&[2], &[2, 2])),
                Fixed(i32s(&[], &[3])),
                wide_cos,
                wide_sin,
            ],
        )
        .outputs(3),
        case(
            "com.microsoft::GroupQueryAttention capped, smooth",
            &[heads, ("kv_num_heads", int(2)), ("softcap", Attr::Float(2.0)), ("smooth_softmax", int(1))],
            &[
                Real(&[1, 3, 16]),
                Real(&[1, 3, 16]),
                Real(&[1, 3, 16]),
                Missing,
                Missing,
                Fixed(i32s(&[1], &[2])),
                Fixed(i32s(&[], &[3])),
            ],
        )
        .outputs(3),
        case(
            "RoiAlign",
            &[
                ("output_height", int(2)),
                ("output_width", int(3)),
                ("sampling_ratio", int(2)),
                ("spatial_scale", Attr::Float(0.5)),
            ],
            &[
                Real(&[2, 3, 6, 7]),
                Fixed(Tensor::f32(&[2, 4], &[0.7, 1.1, 9.3, 8.9, -3.0, 2.2, 16.1, 13.3])),
                Fixed(Tensor::i64(&[2], &[1, 0])),
            ],
        ),
        case(
            "RoiAlign by its largest, unshifted",
            &[
                ("output_height", int(2)),
                ("output_width", int(2)),
                ("sampling_ratio", int(1)),
                ("mode", "max".into()),
                ("coordinate_transformation_mode", "output_half_pixel".into()),
            ],
            &[
                Real(&[1, 2, 6, 7]),
                Fixed(Tensor::f32(&[1, 4], &[0.7, 1.1, 5.3, 4.9])),
                Fixed(Tensor::i64(&[1], &[0])),
            ],
        ),
        case(
            "MaxRoiPool",
            &[("pooled_shape", vec![2i64, 3].into()), ("spatial_scale", Attr::Float(0.5))],
            &[
                Real(&[2, 3, 6, 7]),
                Fixed(Tensor::f32(&[2, 5], &[1.0, 1.0, 0.0, 9.0, 8.0, 0.0, 4.0, 3.0, 5.0, 12.0])),
            ],
        ),
    ];
    for (name, shape) in [
        ("com.microsoft::RotaryEmbedding", &[2usize, 3, 8] as &[usize]),
        ("com.microsoft::RotaryEmbedding with heads apart", &[2, 2, 3, 4]),
    ] {
        for interleaved in [0, 1] {
            all.push(case(
                name,
                &[("interleaved", int(interleaved))],
                &[Real(shape), Fixed(Tensor::i64(&[2, 3], &[0, 1, 2, 5, 3, 7])), cos.clone(), sin.clone()],
            ));
        }
    }
    for bits in [4usize, 8] {
        let blob = 16 * bits / 8;
        all.push(case(
            if bits == 4 {
                "com.microsoft::MatMulNBits of 4 bits"
            } else {
                "com.microsoft::MatMulNBits of 8 bits"
            },
            &[("K", int(20)), ("N", int(3)), ("bits", int(bits as i64)), ("block_size", int(16))],
            &[Real(&[2, 20]), Fixed(bytes(&[3, 2, blob], 5)), Fixed(floats(&[3, 2], 6))],
        ));
    }
    all.push(case(
        "com.microsoft::MatMulNBits with zero points",
        &[("K", int(32)), ("N", int(3)), ("bits", int(4)), ("block_size", int(16))],
        &[Real(&[2, 32]), Fixed(bytes(&[3, 2, 8], 5)), Fixed(floats(&[3, 2], 6)), Fixed(bytes(&[3, 1], 7))],
    ));
    all.push(case("DFT", &[("axis", int(1))], &[Real(&[2, 5, 2])]).opset(17));
    all
}

pub fn run(
    executor: &dyn Executor,
    model: &Model,
    point: &HashMap<ValueId, Tensor>,
) -> Result<Vec<Tensor>, String> {
    let facts = model.graph.required_inputs().filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
    let feeds: Vec<Value> =
        model.graph.required_inputs().map(|i| Value::host(point[&i.id].clone())).collect();
    let values = executor.compile(model, &facts).and_then(|mut program| program.run(&feeds));
    values.and_then(|values| values.iter().map(Value::to_host).collect()).map_err(|e| e.to_string())
}

/// The largest difference between the kernel's outputs and those of the definition in primitives.
fn forward_difference(
    executor: &dyn Executor,
    model: &Model,
    point: &HashMap<ValueId, Tensor>,
) -> Result<f64, String> {
    let node = &model.graph.nodes[0];
    let Some(Kind::Composed(forward)) = rules::kind(node) else { return Ok(0.0) };
    let probed = probe(executor, model, point).map_err(|e| e.to_string())?;
    let mut graph = model.graph.clone();
    graph.nodes.clear();
    graph.outputs.clear();
    let mut b = Builder::on(graph, probed.facts);
    let made = forward(&mut b, node).map_err(|e| e.to_string())?;
    let mut kernel = model.clone();
    kernel.graph.outputs.clear();
    for (i, (value, output)) in made.iter().zip(&node.outputs).enumerate() {
        if let (Some(value), Some(output)) = (value, output) {
            b.output_as(&format!("made{i}"), value);
            kernel.graph.outputs.push(untyped(output));
        }
    }
    let written = Model { graph: b.finish().0, ..model.clone() };
    let (a, b) = (run(executor, &kernel, point)?, run(executor, &written, point)?);
    let mut largest = 0.0f64;
    for (a, b) in a.iter().zip(&b) {
        if a.shape() != b.shape() {
            return Err(format!("shape {:?} instead of {:?}", b.shape(), a.shape()));
        }
        let difference = |(a, b): (&f64, &f64)| (a - b).abs() / (1.0 + a.abs());
        largest = a.to_f64().iter().zip(&b.to_f64()).map(difference).fold(largest, f64::max);
    }
    Ok(largest)
}

fn check(executor: &dyn Executor, case: &Case) -> Result<String, String> {
    let (model, point, varied) = case.model();
    let forward = forward_difference(executor, &model, &point)?;
    if forward > 1e-4 {
        return Err(format!("the definition differs by {forward:.1e}"));
    }
    let mut worst = 0.0f64;
    for seed in 1..4 {
        let subject = Subject { model: &model, point: point.clone(), varied: varied.clone() };
        let manner = Manner { step: 2e-3, jitter: 0.0, ..Manner::of(DType::F32) };
        match compare(executor, &subject, manner, seed) {
            Ok(outcome) if outcome.error <= manner.tolerance && outcome.reached == varied.len() => {
                worst = worst.max(outcome.error);
            }
            Ok(o) => {
                return Err(format!(
                    "{} for {}, {} of {} reached",
                    o.analytic,
                    o.numeric,
                    o.reached,
                    varied.len()
                ));
            }
            Err(Miss::Forward(e)) => return Err(format!("doesn't run: {e}")),
            Err(Miss::Gradient(e)) => return Err(format!("no gradient: {e}")),
            Err(Miss::Backward(e)) => return Err(format!("its gradient doesn't run: {e}")),
            Err(_) => return Err("nothing to compare".into()),
        }
    }
    Ok(format!("forward within {forward:.1e}, gradient within {worst:.1e}"))
}

pub fn ort() -> Option<Arc<dyn Executor>> {
    onnx_merge::runtime::silence_telemetry();
    judges().into_iter().map(|(executor, _)| executor).find(|executor| executor.name() == "ort")
}

#[test]
fn definitions_of_vendors_operators_agree_with_their_kernels() {
    let Some(executor) = ort() else {
        println!("skipped: ONNX Runtime isn't here");
        return;
    };
    let mut failures = vec![];
    for case in cases() {
        match check(&*executor, &case) {
            Ok(line) => println!("{}: {line}", case.name),
            Err(why) => failures.push(format!("{}: {why}", case.name)),
        }
    }
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    assert!(failures.is_empty(), "{} operators fail", failures.len());
    let all = cases();
    let here = |op: &str| all.iter().any(|case| case.name.split(' ').next() == Some(op));
    let wrong: Vec<&str> = differentiable().filter(|op| said(op, "kernels") != here(op)).collect();
    assert!(wrong.is_empty(), "the table of checks is wrong about {}", wrong.join(" "));
}

/// No CPU kernel judges these: their definitions against what their documentation says, in standard operators.
#[test]
fn operators_without_a_kernel_mean_what_their_documentation_says() {
    let Some(executor) = ort() else { return };
    let conv = |b: &mut Builder, x: &[ValueId]| {
        let image = b.transpose(&x[0], &[0, 3, 1, 2]);
        let y = b.op_with("Conv", &[&image, &x[1], &x[2]], &[("pads", vec![1i64, 0, 1, 0].into())]);
        b.transpose(&y, &[0, 2, 3, 1])
    };
    let pads = ("pads", Attr::Ints(vec![1, 0, 1, 0]));
    let kernel = ("kernel_shape", Attr::Ints(vec![3, 2]));
    type Reference<'a> = &'a dyn Fn(&mut Builder, &[ValueId]) -> ValueId;
    let cases: [(Case, Reference<'_>); 4] = [
        (
            case(
                "com.microsoft::BiasSoftmax",
                &[("axis", Attr::Int(3))],
                &[Real(&[2, 2, 3, 4]), Real(&[2, 1, 1, 4])],
            ),
            &|b, x| {
                let sum = b.add(&x[0], &x[1]);
                b.softmax(&sum, 3)
            },
        ),
        (
            case(
                "com.microsoft::NhwcFusedConv",
                &[pads.clone(), kernel.clone()],
                &[Real(&[2, 5, 6, 3]), Real(&[4, 3, 3, 2]), Real(&[4])],
            ),
            &conv,
        ),
        (
            case(
                "com.microsoft::NhwcConv",
                &[pads.clone(), kernel.clone()],
                &[Real(&[2, 5, 6, 3]), Real(&[4, 3, 3, 2]), Real(&[4])],
            ),
            &conv,
        ),
        (
            case(
                "com.microsoft::NhwcConv weights channels-last",
                &[pads, kernel],
                &[Real(&[2, 5, 6, 5]), Real(&[4, 3, 2, 5]), Real(&[4])],
            ),
            &|b, x| {
                let w = b.transpose(&x[1], &[0, 3, 1, 2]);
                conv(b, &[x[0].clone(), w, x[2].clone()])
            },
        ),
    ];
    for (case, reference) in cases {
        let (model, point, inputs) = case.model();
        let mut graph = model.graph.clone();
        let node = graph.nodes.remove(0);
        graph.outputs.clear();
        let facts = graph.inputs.iter().filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
        let mut b = Builder::on(graph, facts);
        let Some(Kind::Composed(forward)) = rules::kind(&node) else {
            panic!("{} isn't composed", case.name)
        };
        let made = forward(&mut b, &node).unwrap().remove(0).unwrap();
        let expected = reference(&mut b, &inputs);
        b.output_as("made", &made);
        b.output_as("expected", &expected);
        let written = Model { graph: b.finish().0, ..model };
        let results = run(&*executor, &written, &point).unwrap();
        let far = results[0].to_f64().iter().zip(&results[1].to_f64()).any(|(a, b)| (a - b).abs() > 1e-5);
        assert!(results[0].shape() == results[1].shape() && !far, "{}", case.name);
    }
}
