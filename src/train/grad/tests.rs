//! The step graphs against the program's own trainer and against the formulas in float64.

use super::optimizer::{Optimizer, Rule};
use super::*;
use crate::lpka;
use crate::onnx::{Builder, DType, Fact, Facts};
use crate::runtime::{Runner, State, StepProgram, TractExecutor, Value};
use crate::train::TrainConfig;
use crate::train::model_step::{LABELS, Objective};
use crate::train::network::{Network, Purpose};
use std::collections::HashMap;
use std::sync::Arc;

const ROWS: usize = 8;

fn request(form: Form) -> Request {
    Request { batch: Some(ROWS), ..Request::new(LossKind::CrossEntropy, form) }
}

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/digits_mlp.onnx")
}

/// The batch of a step: made up, but the same for everybody.
fn batch(step: usize) -> (Tensor, Tensor) {
    let x: Vec<f32> = (0..ROWS * 64).map(|i| ((i * 7 + step * 13) % 17) as f32 / 17.0).collect();
    let y: Vec<i64> = (0..ROWS).map(|i| ((i + step) % 10) as i64).collect();
    (Tensor::f32(&[ROWS, 1, 8, 8], &x), Tensor::i64(&[ROWS], &y))
}

/// The weights after some steps of the exported step graph.
fn stepped(built: &Built, executor: Arc<dyn Executor>, steps: usize, rate: f64) -> HashMap<String, Vec<f64>> {
    let facts = built.model.graph.required_inputs().filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
    let state = built.state.iter().map(|(name, initial)| State {
        input: ValueId::new(name),
        output: ValueId::new(format!("{name}.next")),
        initial: initial.clone(),
    });
    let program = StepProgram { model: built.model.clone(), facts, state: state.collect() };
    let mut runner = Runner::new(executor, &program).unwrap();
    for step in 0..steps {
        let (x, y) = batch(step);
        let rate = Value::host(Tensor::scalar(crate::onnx::DType::F32, rate));
        let fed = [("image".into(), Value::host(x)), ("label".into(), Value::host(y)), ("lr".into(), rate)];
        runner.step(&fed).unwrap();
    }
    let of = |id: &ValueId| (id.to_string(), runner.state(id).unwrap().to_f64());
    built.weights.iter().map(of).collect()
}

#[test]
fn the_exported_step_moves_weights_as_the_programs_own_trainer_does() {
    let executor: Arc<dyn Executor> = Arc::new(TractExecutor::new(1).unwrap());
    let (rate, steps) = (0.01, 5);
    let config = TrainConfig { weight_decay: 0.1, ..TrainConfig::default() };
    let network = Network::open(&fixture(), ROWS, Purpose::default(), &*executor).unwrap();
    let weights = network.trainable(&[]).unwrap();
    let names: Vec<ValueId> = weights.iter().map(|(id, _)| id.clone()).collect();
    let model_step =
        network.step(&names, Objective::Classes { layout: network.head.layout, ignores: false }).unwrap();
    let side = lpka::Side { graph: &network.params, weights: weights.iter().cloned().collect() };
    let update = lpka::build(&side, &[], &model_step.weights, &config, 0.0, &*executor, 0).unwrap();
    let mut update_runner = Runner::new(executor.clone(), &update.step_program()).unwrap();
    let mut program = executor.compile(&model_step.model, &model_step.facts).unwrap();
    let mut merged: HashMap<ValueId, Value> =
        update.initial.iter().map(|(id, t)| (id.clone(), Value::host(t.clone()))).collect();
    for step in 0..steps {
        let (x, y) = batch(step);
        let inputs = model_step.model.graph.required_inputs().map(|i| match i.id.as_str() {
            "image" => Value::host(x.clone()),
            LABELS => Value::host(y.clone()),
            _ => merged[&i.id].clone(),
        });
        let outputs = program.run(&inputs.collect::<Vec<_>>()).unwrap();
        let mut fed: Vec<(ValueId, Value)> =
            vec![(update.learning_rate.clone(), Value::host(Tensor::scalar(crate::onnx::DType::F32, rate)))];
        for (weight, gradient) in model_step.weights.iter().zip(&outputs[1..]) {
            let input = update.gradients.iter().find(|(w, _)| w == weight).unwrap().1.clone();
            fed.push((input, gradient.clone()));
        }
        let next = update_runner.step(&fed).unwrap();
        for (weight, output) in &update.merged {
            merged.insert(weight.clone(), next[output].clone());
        }
    }
    let rule = Rule::Adamw { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let form = Form::Step(Optimizer { rule, weight_decay: 0.1, clip: 0.0 });
    let file = crate::onnx::read(fixture()).unwrap();
    let built = build(&file, &request(form), &*executor).unwrap();
    let ours = stepped(&built, executor, steps, rate);
    assert_eq!(ours.len(), merged.len());
    for (id, value) in &merged {
        let theirs = value.to_host().unwrap().to_f64();
        let worst = ours[id.as_str()].iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // Where a gradient is as small as the rounding of its sum, Adam's direction is anybody's guess.
        let off = ours[id.as_str()].iter().zip(&theirs).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
        assert!(off * 200 <= theirs.len() && worst < rate, "{id}: {worst}, {off} of {}", theirs.len());
    }
}

#[test]
fn plain_descent_and_momentum_follow_their_formulas() {
    let executor: Arc<dyn Executor> = Arc::new(TractExecutor::new(1).unwrap());
    let file = crate::onnx::read(fixture()).unwrap();
    let rate = 0.1;
    let gradients = build(&file, &request(Form::Gradients), &*executor).unwrap();
    let facts =
        gradients.model.graph.required_inputs().filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
    let (x, y) = batch(0);
    let outputs = executor
        .compile(&gradients.model, &facts)
        .and_then(|mut program| program.run(&[Value::host(x), Value::host(y)]))
        .unwrap();
    for rule in [Rule::Sgd, Rule::Momentum { momentum: 0.9 }] {
        let form = Form::Step(Optimizer { rule, weight_decay: 0.0, clip: 0.0 });
        let built = build(&file, &request(form), &*executor).unwrap();
        let after = stepped(&built, executor.clone(), 1, rate);
        for (id, gradient) in gradients.weights.iter().zip(&outputs[1..]) {
            let before = file.model.graph.initializers[id].to_f64();
            let gradient = gradient.to_host().unwrap().to_f64();
            for ((w, g), now) in before.iter().zip(&gradient).zip(&after[id.as_str()]) {
                assert!((w - rate * g - now).abs() < 1e-6, "{id}: {w} - {rate}·{g} is not {now}");
            }
        }
    }
}

#[test]
fn a_step_with_batch_statistics_moves_the_running_ones() {
    let executor = TractExecutor::new(1).unwrap();
    let mut b = crate::onnx::Builder::new("norm");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("norm.onnx");
    let x = b.input("x", Fact::new(crate::onnx::DType::F32, &[4, 3]));
    let mut vector = |name: &str, v: f32| b.initializer(name, Tensor::f32(&[3], &[v, v + 0.5, v + 1.0]));
    let [scale, shift, mean, variance] =
        [("scale", 1.0), ("shift", 0.0), ("mean", 0.2), ("var", 1.0)].map(|(name, v)| vector(name, v));
    let y = b.op_with("BatchNormalization", &[&x, &scale, &shift, &mean, &variance], &[]);
    b.set_fact(&y, Fact::new(crate::onnx::DType::F32, &[4, 3]));
    b.output(&y);
    crate::onnx::save(&Model::new(b.finish().0, 18), &path).unwrap();
    let file = crate::onnx::read(&path).unwrap();
    let form = Form::Step(Optimizer { rule: Rule::Sgd, weight_decay: 0.0, clip: 0.0 });
    let request =
        Request { loss: LossKind::MeanSquaredError, batch: Some(4), train_bn: true, ..request(form) };
    let built = build(&file, &request, &executor).unwrap();
    let names: Vec<&str> = built.state.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["scale", "shift", "mean", "var"]);
    let facts: Facts =
        built.model.graph.required_inputs().filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
    let x = Tensor::f32(&[4, 3], &[1., 2., 3., 3., 2., 1., 0., 4., 8., 4., 0., 4.]);
    let fed: HashMap<&str, Tensor> = HashMap::from([
        ("x", x),
        ("label", Tensor::f32(&[4, 3], &[0.0; 12])),
        ("lr", Tensor::scalar(crate::onnx::DType::F32, 0.0)),
    ]);
    let state: HashMap<&str, Tensor> = built.state.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    let feeds: Vec<Value> = built
        .model
        .graph
        .required_inputs()
        .map(|i| Value::host(fed.get(i.id.as_str()).unwrap_or_else(|| &state[i.id.as_str()]).clone()))
        .collect();
    let outputs = executor.compile(&built.model, &facts).unwrap().run(&feeds).unwrap();
    let at = |name: &str| {
        let position = built.model.graph.outputs.iter().position(|o| o.id.as_str() == name).unwrap();
        outputs[position].to_host().unwrap().to_f64()
    };
    // Means 2, 2, 4 and biased variances 2.5, 2, 6.5, with ONNX's momentum of 0.9.
    let close = |a: &[f64], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close(&at("mean.next"), [0.38, 0.83, 1.48]), "{:?}", at("mean.next"));
    assert!(close(&at("var.next"), [1.15, 1.55, 2.45]), "{:?}", at("var.next"));
}

/// A GRU over sequences of any length: its loops hold nothing that depends on the sizes.
#[test]
fn a_recurrent_layer_stays_open_in_time_and_batch() {
    use crate::onnx::{Builder, DType, Node};
    let dir = tempfile::tempdir().unwrap();
    let gradients = |sizes_are_known: bool| {
        let mut b = Builder::new("sequences");
        let x = b.input("x", Fact::new(DType::F32, &[6, 4, 2]));
        let mut weight = |name: &str, shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| ((i * 7 + 3) % 11) as f32 / 11.0 - 0.5).collect();
            b.initializer(name, Tensor::f32(shape, &values))
        };
        let (w, r) = (weight("w", &[1, 9, 2]), weight("r", &[1, 9, 3]));
        let last = ValueId::new("last");
        let mut node = Node::new("GRU", &[&x, &w, &r], &[]).with("hidden_size", 3);
        node.outputs = vec![None, Some(last.clone())];
        b.push(node);
        b.set_fact(&last, Fact::new(DType::F32, &[1, 4, 3]));
        b.output(&last);
        let mut model = Model::new(b.finish().0, 18);
        model.graph.outputs[0].shape = None;
        if !sizes_are_known {
            model.graph.inputs[0].shape =
                Some(vec![Dim::Named("time".into()), Dim::Named("rows".into()), Dim::Known(2)]);
        }
        let path = dir.path().join("sequences.onnx");
        crate::onnx::save(&model, &path).unwrap();
        let executor = TractExecutor::new(1).unwrap();
        let request = Request { loss: LossKind::Sum, batch: None, ..request(Form::Gradients) };
        let built = build(&crate::onnx::read(&path).unwrap(), &request, &executor).unwrap();
        let x: Vec<f32> = (0..48).map(|i| ((i * 5) % 13) as f32 / 13.0).collect();
        let facts = Facts::from([("x".into(), Fact::new(DType::F32, &[6, 4, 2]))]);
        let mut program = executor.compile(&built.model, &facts).unwrap();
        let outputs = program.run(&[Value::host(Tensor::f32(&[6, 4, 2], &x))]).unwrap();
        let outputs = outputs.iter().map(|o| o.to_host().unwrap().to_f64()).collect::<Vec<_>>();
        (built.open, outputs)
    };
    let (open, found) = gradients(false);
    assert_eq!(open, ["time", "rows"]);
    let (fixed, expected) = gradients(true);
    assert!(fixed.is_empty() && expected.len() == 3);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found} is not {expected}");
    }
}

/// The derivative of this model is 1e-8 times its input, which is nothing in half precision.
#[test]
fn a_half_precision_model_with_gradients_below_what_half_precision_holds_is_trained() {
    use crate::onnx::ValueInfo;
    let half = |v: f64| Tensor::scalar(DType::F16, v);
    assert_eq!(half(1e-8).to_f64(), [0.0], "the test would show nothing");
    let mut b = Builder::new("faint");
    let x = b.input("x", Fact::new(DType::F16, &[1, 2]));
    let w = b.initializer("w", Tensor::from_f64(DType::F16, &[2, 2], &[0.5, -0.5, 0.25, 1.0]));
    let mut y = b.matmul(&x, &w);
    let faint = b.constant(half(1e-4));
    for _ in 0..2 {
        y = b.mul(&y, &faint);
    }
    b.output(&y);
    let mut model = Model::new(b.finish().0, 18);
    model.graph.outputs = vec![ValueInfo::new(y, &Fact::new(DType::F16, &[1, 2]))];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faint.onnx");
    crate::onnx::save(&model, &path).unwrap();
    let file = crate::onnx::read(&path).unwrap();
    let executor: Arc<dyn Executor> = Arc::new(TractExecutor::new(1).unwrap());
    let rule = Rule::Adamw { beta1: 0.9, beta2: 0.999, epsilon: 1e-12 };
    let forms = [Form::Gradients, Form::Step(Optimizer { rule, weight_decay: 0.0, clip: 0.0 })];
    for form in forms {
        let request = Request { loss: LossKind::Sum, batch: Some(1), wrt: vec!["w".into()], ..request(form) };
        let built = build(&file, &request, &*executor).unwrap();
        let state: HashMap<&str, &Tensor> = built.state.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let x = Tensor::from_f64(DType::F16, &[1, 2], &[1.0, -2.0]);
        let rate = Tensor::scalar(DType::F32, 0.01);
        let feeds = built.model.graph.required_inputs().map(|i| match i.id.as_str() {
            "x" => Value::host(x.clone()),
            "lr" => Value::host(rate.clone()),
            name => Value::host(state[name].clone()),
        });
        let facts = built.model.graph.required_inputs().filter_map(|i| Some((i.id.clone(), i.fact()?)));
        let feeds: Vec<Value> = feeds.collect();
        let outputs = executor.compile(&built.model, &facts.collect()).unwrap().run(&feeds).unwrap();
        let name = if matches!(form, Form::Gradients) { "w.grad" } else { "w.next" };
        let at = built.model.graph.outputs.iter().position(|o| o.id.as_str() == name).unwrap();
        let found = outputs[at].to_host().unwrap();
        assert_eq!(found.dtype(), DType::F32);
        // Adam's first step is the sign of the gradient times the rate, however small that is.
        let expected = match name {
            "w.grad" => [1e-8, 1e-8, -2e-8, -2e-8],
            _ => [0.49, -0.51, 0.26, 1.01],
        };
        let close = |(f, e): (&f64, f64)| (f - e).abs() < 2e-3 * e.abs();
        assert!(found.to_f64().iter().zip(expected).all(close), "{name}: {:?}", found.to_f64());
    }
}

/// Binary cross-entropy, mean of log(1 + eᶻ) − y z, for a number a row and a number a pixel, as they are and behind a sigmoid.
#[test]
fn one_number_for_each_label_tells_two_classes_apart() {
    let executor = TractExecutor::new(1).unwrap();
    let z = [-2.0, 0.5, 1.0, 3.0f32];
    let labels = [0i64, 0, 1, 1];
    let term = |(z, &y): (&f32, &i64)| (1.0 + f64::from(*z).exp()).ln() - y as f64 * f64::from(*z);
    let expected = z.iter().zip(&labels).map(term).sum::<f64>() / 4.0;
    for (shape, label) in [(&[4, 1][..], &[4][..]), (&[1, 1, 2, 2], &[1, 2, 2])] {
        for sigmoid in [false, true] {
            let mut b = Builder::new("binary");
            let x = b.input("x", Fact::new(crate::onnx::DType::F32, shape));
            let w = b.initializer("w", Tensor::f32(&[1], &[1.0]));
            let mut y = b.mul(&x, &w);
            if sigmoid {
                y = b.op("Sigmoid", &[&y]);
            }
            b.output_as("y", &y);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("binary.onnx");
            crate::onnx::save(&Model::new(b.finish().0, crate::onnx::WORKING_OPSET), &path).unwrap();
            let wrt = vec!["w".to_owned()];
            let request = Request { wrt, batch: Some(shape[0]), ..request(Form::Gradients) };
            let built = build(&crate::onnx::read(&path).unwrap(), &request, &executor).unwrap();
            let inputs = built.model.graph.required_inputs();
            let facts = inputs.filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
            let feeds = [Tensor::f32(shape, &z), Tensor::i64(label, &labels)].map(Value::host);
            let outputs = executor.compile(&built.model, &facts).unwrap().run(&feeds).unwrap();
            let loss = outputs[0].scalar().unwrap();
            assert!((loss - expected).abs() < 1e-6, "{shape:?}, {sigmoid}: {loss}, {expected}");
        }
    }
}

/// For the sum of squares that of an input is `2 · w ⊙ (w x)` and that of `w x` is `2 · w x`, at any number of rows, and in float32
/// where they are in half precision.
#[test]
fn inputs_and_values_inside_have_gradients_where_they_are_named() {
    let executor = TractExecutor::new(1).unwrap();
    let weights = [0.5, -1.0, 2.0, 0.25];
    for dtype in [DType::F32, DType::F16] {
        let mut b = Builder::new("squares");
        let x = b.input("x", Fact::new(dtype, &[1, 4]));
        let w = b.initializer("w", Tensor::from_f64(dtype, &[4], &weights));
        b.input("unread", Fact::new(dtype, &[1, 4]));
        let scaled = b.mul(&x, &w);
        let square = b.mul(&scaled, &scaled);
        b.output_as("y", &square);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("squares.onnx");
        crate::onnx::save(&Model::new(b.finish().0, crate::onnx::WORKING_OPSET), &path).unwrap();
        let file = crate::onnx::read(&path).unwrap();
        let wrt = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let asked = Request {
            wrt: wrt(&["x", "un*", scaled.as_str()]),
            loss: LossKind::Sum,
            batch: None,
            ..request(Form::Gradients)
        };
        let built = build(&file, &asked, &executor).unwrap();
        assert_eq!(
            (built.weights.len(), &built.values[..], &built.idle[..]),
            (0, &["x".into(), scaled.clone()][..], &["unread".into()][..])
        );
        assert_eq!(built.open, ["batch"]);
        let x = [1.0, -2.0, 0.5, 3.0, 0.0, 1.0, 1.0, -1.0];
        let feeds = built.model.graph.required_inputs().map(|_| Tensor::from_f64(dtype, &[2, 4], &x));
        let feeds: Vec<Value> = feeds.map(Value::host).collect();
        let facts = built.model.graph.required_inputs().map(|i| (i.id.clone(), Fact::new(dtype, &[2, 4])));
        let outputs = executor.compile(&built.model, &facts.collect()).unwrap().run(&feeds).unwrap();
        let names: Vec<&str> = built.model.graph.outputs.iter().map(|o| o.id.as_str()).collect();
        assert_eq!(names, ["loss", "x.grad", "unread.grad", &format!("{scaled}.grad")]);
        let found: Vec<Tensor> = outputs[1..].iter().map(|o| o.to_host().unwrap()).collect();
        assert!(found.iter().all(|g| g.dtype() == DType::F32 && g.shape() == [2, 4]), "{found:?}");
        let pairs = x.iter().zip(weights.iter().cycle());
        let (of_x, of_scaled) = pairs.map(|(x, w)| (2.0 * w * w * x, 2.0 * w * x)).unzip();
        let exact: [Vec<f64>; 3] = [of_x, vec![0.0; 8], of_scaled];
        assert_eq!(found.iter().map(Tensor::to_f64).collect::<Vec<_>>(), exact);
        // Without a name none is meant, and a step has no use for one.
        let all = Request { wrt: wrt(&["*"]), loss: LossKind::Sum, batch: None, ..request(Form::Gradients) };
        assert!(build(&file, &all, &executor).unwrap().values.is_empty());
        let rule = Rule::Momentum { momentum: 0.9 };
        let form = Form::Step(Optimizer { rule, weight_decay: 0.0, clip: 0.0 });
        let step = Request { wrt: wrt(&["x"]), loss: LossKind::Sum, batch: None, ..request(form) };
        let error = build(&file, &step, &executor).err().unwrap();
        assert_eq!((error.exit_code(), error.to_string().contains("'x' is no weight")), (2, true), "{error}");
    }
}

/// `y = x ⊙ q(w)` with steps of 0.1 up to ±12.8: the gradient is x, and 0 where the weight lies outside.
#[test]
fn a_quantised_weight_gets_its_gradient_straight_through_however_few_elements_it_has() {
    let executor = TractExecutor::new(1).unwrap();
    let mut b = Builder::new("quantised");
    let x = b.input("x", Fact::new(DType::F32, &[1, 3]));
    let w = b.initializer("w", Tensor::f32(&[3], &[0.44, -20.0, 3.0]));
    let (scale, zero) =
        (b.constant(Tensor::scalar(DType::F32, 0.1)), b.constant(Tensor::scalar(DType::I8, 0.0)));
    let q = b.op_full("", "QuantizeLinear", &[Some(&w), Some(&scale), Some(&zero)], &[], 1).remove(0);
    b.set_fact(&q, Fact::new(DType::I8, &[3]));
    let rounded = b.op_full("", "DequantizeLinear", &[Some(&q), Some(&scale), Some(&zero)], &[], 1).remove(0);
    b.set_fact(&rounded, Fact::new(DType::F32, &[3]));
    let y = b.mul(&x, &rounded);
    b.output_as("y", &y);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quantised.onnx");
    crate::onnx::save(&Model::new(b.finish().0, crate::onnx::WORKING_OPSET), &path).unwrap();
    let asked = Request { loss: LossKind::Sum, batch: Some(1), ..request(Form::Gradients) };
    let built = build(&crate::onnx::read(&path).unwrap(), &asked, &executor).unwrap();
    assert_eq!((&built.weights[..], built.idle.len()), (&["w".into()][..], 0));
    let facts = [(ValueId::new("x"), Fact::new(DType::F32, &[1, 3]))].into();
    let fed = [Value::host(Tensor::f32(&[1, 3], &[1.0, 2.0, 4.0]))];
    let outputs = executor.compile(&built.model, &facts).unwrap().run(&fed).unwrap();
    assert_eq!(outputs[1].to_host().unwrap().to_f64(), [1.0, 0.0, 4.0]);
}

/// A class token that an export has stored for each of its two rows: for three rows Σ(t²) is 3 t², and both copies get half of
/// its slope, so that they stay alike.
#[test]
fn a_constant_that_is_stored_once_a_row_stays_the_same_for_all() {
    let executor = TractExecutor::new(1).unwrap();
    let mut b = Builder::new("token");
    let x = b.input("x", Fact::new(DType::F32, &[2, 2, 3]));
    let token = b.initializer("token", Tensor::f32(&[2, 1, 3], &[1.0, -2.0, 0.5, 1.0, -2.0, 0.5]));
    let joined = b.concat(&[&token, &x], 1);
    let square = b.mul(&joined, &joined);
    b.output_as("y", &square);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token.onnx");
    crate::onnx::save(&Model::new(b.finish().0, crate::onnx::WORKING_OPSET), &path).unwrap();
    let asked = Request { loss: LossKind::Sum, batch: None, ..request(Form::Gradients) };
    let built = build(&crate::onnx::read(&path).unwrap(), &asked, &executor).unwrap();
    assert_eq!(built.open, ["batch"]);
    let facts = [(ValueId::new("x"), Fact::new(DType::F32, &[3, 2, 3]))].into();
    let fed = [Value::host(Tensor::f32(&[3, 2, 3], &[0.0; 18]))];
    let outputs = executor.compile(&built.model, &facts).unwrap().run(&fed).unwrap();
    assert_eq!(outputs[1].to_host().unwrap().to_f64(), [3.0, -6.0, 1.5, 3.0, -6.0, 1.5]);
}
