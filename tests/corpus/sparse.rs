//! Gradients of embedding tables as rows, and the steps that move only those: against PyTorch's sparse gradients, SGD and
//! SparseAdam (`torch_refs/sparse.py` made them), and against the dense step where both must be the same.

use crate::torch_refs::executors;
use onnx_merge::onnx::{Attr, Builder, DType, Dim, Fact, Model, Tensor, ValueId, WORKING_OPSET, read, save};
use onnx_merge::runtime::{
    Executor, ExecutorChoice, ExecutorOptions, Runner, State, StepProgram, Value, open,
};
use onnx_merge::train::grad::optimizer::{Optimizer, Rule};
use onnx_merge::train::grad::{Built, Form, LossKind, Request, build};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const STEPS: usize = 4;
const RATE: f64 = 0.05;
const ADAM: Rule = Rule::Adamw { beta1: 0.9, beta2: 0.999, epsilon: 1e-12 };

fn reference(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/torch_refs").join(file)
}

fn arrays() -> HashMap<String, Tensor> {
    onnx_merge::data::read_npz(&reference("sparse.npz")).unwrap().into_iter().collect()
}

fn built(path: &Path, form: Form, sparse: &[&str], executor: &dyn Executor) -> onnx_merge::Result<Built> {
    with_loss(LossKind::CrossEntropy, path, form, sparse, executor)
}

fn with_loss(
    loss: LossKind,
    path: &Path,
    form: Form,
    sparse: &[&str],
    executor: &dyn Executor,
) -> onnx_merge::Result<Built> {
    let request = Request {
        sparse: sparse.iter().map(|glob| (*glob).to_owned()).collect(),
        ..Request::new(loss, form)
    };
    build(&read(path).unwrap(), &request, executor)
}

fn step(rule: Rule, weight_decay: f64, clip: f64) -> Form {
    Form::Step(Optimizer { rule, weight_decay, clip })
}

/// All of the state after each of some steps; `feeds` gives the inputs of each.
fn stepped(
    built: &Built,
    executor: Arc<dyn Executor>,
    feeds: &[HashMap<&str, Tensor>],
) -> Vec<HashMap<String, Tensor>> {
    let rate = Tensor::scalar(DType::F32, RATE);
    let states: HashMap<&str, &Tensor> = built.state.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let of = |name: &str| Fact::of(states.get(name).copied().or(feeds[0].get(name)).unwrap_or(&rate));
    let inputs = built.model.graph.required_inputs();
    let facts = inputs.map(|i| (i.id.clone(), of(i.id.as_str()))).collect();
    let state = built.state.iter().map(|(name, initial)| State {
        input: ValueId::new(name),
        output: ValueId::new(format!("{name}.next")),
        initial: initial.clone(),
    });
    let program = StepProgram { model: built.model.clone(), facts, state: state.collect() };
    let mut runner = Runner::new(executor, &program).unwrap();
    let mut after = vec![];
    for fed in feeds {
        let mut fed: Vec<(ValueId, Value)> =
            fed.iter().map(|(name, t)| (ValueId::new(*name), Value::host(t.clone()))).collect();
        fed.push(("lr".into(), Value::host(rate.clone())));
        runner.step(&fed).unwrap();
        let now = |(name, _): &(String, Tensor)| (name.clone(), runner.state(&ValueId::new(name)).unwrap());
        after.push(built.state.iter().map(now).collect());
    }
    after
}

fn fed(arrays: &HashMap<String, Tensor>, step: usize) -> HashMap<&'static str, Tensor> {
    ["ids", "key", "label"].map(|name| (name, arrays[&format!("in.{step}.{name}")].clone())).into()
}

fn feeds(arrays: &HashMap<String, Tensor>) -> Vec<HashMap<&'static str, Tensor>> {
    (0..STEPS).map(|step| fed(arrays, step)).collect()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.to_f64().iter().zip(b.to_f64()).fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()))
}

#[test]
fn steps_follow_pytorchs_sgd_and_sparse_adam() {
    let arrays = arrays();
    for executor in executors() {
        for (name, rule) in [("sgd", Rule::Sgd), ("adam", ADAM)] {
            let step = built(&reference("sparse.onnx"), step(rule, 0.0, 0.0), &["*"], &*executor).unwrap();
            assert_eq!(step.open, ["rows"]);
            assert_eq!(step.sparse, ["table".into()]);
            for (k, state) in stepped(&step, executor.clone(), &feeds(&arrays)).iter().enumerate() {
                for weight in ["table", "weight"] {
                    let off = distance(&state[weight], &arrays[&format!("{name}.{k}.{weight}")]);
                    assert!(off < 5e-6, "{} {name}, step {k}: {weight} is off by {off}", executor.name());
                }
            }
        }
    }
}

/// What each row gets in all.
fn summed(rows: &Tensor, values: &Tensor, size: usize) -> Vec<Vec<f64>> {
    let width = values.len() / rows.len();
    let mut sums = vec![vec![0.0; width]; size];
    for (&row, entry) in rows.to_i64().iter().zip(values.to_f64().chunks(width)) {
        sums[row as usize].iter_mut().zip(entry).for_each(|(s, v)| *s += v);
    }
    sums
}

#[test]
fn gradients_are_the_rows_that_pytorch_gives() {
    let arrays = arrays();
    for executor in executors() {
        let gradients = built(&reference("sparse.onnx"), Form::Gradients, &["tab*"], &*executor).unwrap();
        let outputs: Vec<&str> = gradients.model.graph.outputs.iter().map(|o| o.id.as_str()).collect();
        assert_eq!(outputs, ["loss", "table.grad.rows", "table.grad.values", "weight.grad"]);
        let fed = fed(&arrays, 0);
        let inputs: Vec<Tensor> =
            gradients.model.graph.required_inputs().map(|i| fed[i.id.as_str()].clone()).collect();
        let facts =
            gradients.model.graph.required_inputs().zip(&inputs).map(|(i, t)| (i.id.clone(), Fact::of(t)));
        let mut program = executor.compile(&gradients.model, &facts.collect()).unwrap();
        let outputs = program.run(&inputs.into_iter().map(Value::host).collect::<Vec<_>>()).unwrap();
        let [rows, values] = [1, 2].map(|i| outputs[i].to_host().unwrap());
        assert_eq!(values.shape(), [15, 5]);
        // An entry for each id, lookup by lookup, where PyTorch has one for two ids of a row here and there.
        let ids = [&fed["ids"], &fed["key"]].map(|ids| ids.to_i64().into_owned()).concat();
        assert_eq!(rows.to_i64()[..], ids.iter().map(|id| id.rem_euclid(13)).collect::<Vec<i64>>());
        let expected = summed(&arrays["rows"], &arrays["values"], 13);
        for (found, expected) in summed(&rows, &values, 13).iter().zip(&expected) {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}

/// Where no decay moves the other rows, plain descent is the dense step to the bit, clipped or not.
#[test]
fn plain_descent_is_the_dense_step() {
    let feeds = feeds(&arrays());
    for executor in executors() {
        for clip in [0.0, 0.05] {
            let run = |sparse: &[&str]| {
                let form = step(Rule::Sgd, 0.0, clip);
                let built = built(&reference("sparse.onnx"), form, sparse, &*executor).unwrap();
                stepped(&built, executor.clone(), &feeds).pop().unwrap()
            };
            let (rows, dense, free) = (run(&["*"]), run(&[]), arrays());
            for name in ["table", "weight"] {
                assert_eq!(distance(&rows[name], &dense[name]), 0.0, "{} {name}", executor.name());
            }
            let unclipped = distance(&rows["table"], &free["sgd.3.table"]) < 1e-5;
            assert_eq!(unclipped, clip == 0.0, "the limit is never reached");
        }
    }
}

/// With every row in the batch there is nothing that a lazy step leaves out; otherwise the rest stays as it is, moments and all.
#[test]
fn moments_and_decay_are_those_of_the_dense_step_for_rows_that_are_looked_up() {
    let all: Vec<i64> = (0..13).chain([2, 2, 12]).collect();
    let label = Tensor::i64(&[4], &[0, 1, 2, 0]);
    let whole = HashMap::from([
        ("ids", Tensor::i64(&[4, 4], &all)),
        ("key", Tensor::i64(&[4], &[3, 3, -1, 0])),
        ("label", label.clone()),
    ]);
    let few = HashMap::from([
        ("ids", Tensor::i64(&[4, 4], &[1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, -12])),
        ("key", Tensor::i64(&[4], &[1, 1, 2, 2])),
        ("label", label),
    ]);
    for executor in executors() {
        for rule in [ADAM, Rule::Momentum { momentum: 0.9 }] {
            let run = |sparse: &[&str]| {
                let form = step(rule, 0.1, 0.5);
                let built = built(&reference("sparse.onnx"), form, sparse, &*executor).unwrap();
                stepped(&built, executor.clone(), &[whole.clone(), whole.clone(), few.clone()])
            };
            let (rows, dense) = (run(&["*"]), run(&[]));
            for (name, expected) in &dense[1] {
                let off = distance(&rows[1][name], expected);
                assert!(off < 1e-6, "{} {rule:?}: {name} is off by {off}", executor.name());
            }
            for (name, now) in rows[2].iter().filter(|(name, _)| name.starts_with("table")) {
                let (before, now) = (rows[1][name].to_f64(), now.to_f64());
                let moved: Vec<usize> =
                    (0..13).filter(|r| before[r * 5..r * 5 + 5] != now[r * 5..r * 5 + 5]).collect();
                assert_eq!(moved, [1, 2], "{} {rule:?}: {name}", executor.name());
            }
        }
    }
}

/// Rows of words and of segments, looked up by a fused operator; positions are the same in every step.
fn fused(path: &Path, masked: bool) {
    let mut b = Builder::new("fused");
    let shape = Fact::new(DType::I32, &[2, 3]);
    let [words, segments] = ["words", "segments"].map(|name| b.input(name, shape.clone()));
    let mut table = |name: &str, rows: usize| {
        let values: Vec<f32> = (0..rows * 4).map(|i| ((i * 7 + rows) % 11) as f32 / 11.0 - 0.4).collect();
        b.initializer(name, Tensor::f32(&[rows, 4], &values))
    };
    let [word, position, segment] =
        [("word", 9), ("position", 5), ("segment", 2)].map(|(name, rows)| table(name, rows));
    let scale = b.initializer("scale", Tensor::f32(&[4], &[1.0, 0.5, -1.0, 2.0]));
    let shift = b.initializer("shift", Tensor::f32(&[4], &[0.1; 4]));
    let inputs = [&words, &segments, &word, &position, &segment, &scale, &shift].map(Some);
    let made = b.op_full("com.microsoft", "EmbedLayerNormalization", &inputs, &[], 2);
    b.set_fact(&made[0], Fact::new(DType::F32, &[2, 3, 4]));
    let square = b.mul(&made[0], &made[0]);
    b.output_as("y", &square);
    if masked {
        b.set_fact(&made[1], Fact::new(DType::I32, &[2]));
        b.output_as("mask", &made[1]);
    }
    let mut model = Model::new(b.finish().0, WORKING_OPSET);
    model.opsets.insert("com.microsoft".into(), 1);
    save(&model, path).unwrap();
}

#[test]
fn fused_embeddings_have_gradients_of_rows() {
    let Some(executor) = executors().into_iter().find(|executor| executor.name() == "ort") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fused.onnx");
    let ids = |values: &[i32]| Tensor::i32(&[2, 3], values);
    let feeds = [ids(&[0, 3, 3, 8, 3, 1]), ids(&[0, 0, 1, 1, 1, 0])];
    let run = |sparse: &[&str]| -> HashMap<String, Tensor> {
        let built = with_loss(LossKind::Sum, &path, Form::Gradients, sparse, &*executor).unwrap();
        let inputs = built.model.graph.required_inputs().zip(&feeds);
        let facts = inputs.map(|(i, t)| (i.id.clone(), Fact::of(t))).collect();
        let mut program = executor.compile(&built.model, &facts).unwrap();
        let outputs = program.run(&feeds.clone().map(Value::host)).unwrap();
        let names = built.model.graph.outputs.iter().map(|o| o.id.to_string());
        names.zip(outputs.iter().map(|o| o.to_host().unwrap())).collect()
    };
    fused(&path, false);
    let (rows, dense) = (run(&["*"]), run(&[]));
    for (name, size) in [("word", 9), ("segment", 2)] {
        let [indices, values] = ["rows", "values"].map(|part| &rows[&format!("{name}.grad.{part}")]);
        let found = summed(indices, values, size).concat();
        let expected = dense[&format!("{name}.grad")].to_f64();
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: {found:?}");
    }
    assert!(distance(&rows["position.grad"], &dense["position.grad"]) < 1e-5);
    fused(&path, true);
    let why = with_loss(LossKind::Sum, &path, Form::Gradients, &["*"], &*executor).err().unwrap();
    assert!(why.to_string().contains("no embedding table"), "{why}");
}

/// Sums of rows that many ids share, by ONNX Runtime with several threads: it shares `ScatterND` out without a lock.
#[test]
fn nothing_is_lost_where_many_ids_name_one_row() {
    let options = ExecutorOptions { threads: Some(4), ..ExecutorOptions::default() };
    let Ok(executor) = open(ExecutorChoice::Ort, &options) else {
        println!("skipped: no ONNX Runtime");
        return;
    };
    let (count, rows, width) = (20_000, 50, 64);
    let ids: Vec<i64> = (0..count).map(|i| (i * i + i / 7) % rows).collect();
    let expected = |row: i64| ids.iter().filter(|&&id| id == row).count() as f64;
    for tuples in [false, true] {
        let mut b = Builder::new("lookups");
        let x = b.input("ids", Fact::new(DType::I64, &[count as usize, 1]));
        let table = b.initializer("table", Tensor::zeros(DType::F32, &[rows as usize, width]));
        let y = match tuples {
            true => b.op("GatherND", &[&table, &x]),
            false => b.op_with("Gather", &[&table, &x], &[("axis", Attr::Int(0))]),
        };
        b.output_as("y", &y);
        let mut model = Model::new(b.finish().0, WORKING_OPSET);
        model.graph.inputs[0].shape.as_mut().unwrap()[0] = Dim::Named("count".into());
        model.graph.outputs[0].shape = None;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lookups.onnx");
        save(&model, &path).unwrap();
        let built = with_loss(LossKind::Sum, &path, Form::Gradients, &[], &*executor).unwrap();
        let ids = Tensor::i64(&[count as usize, 1], &ids);
        let facts = [(ValueId::new("ids"), Fact::of(&ids))].into();
        let mut program = executor.compile(&built.model, &facts).unwrap();
        for _ in 0..10 {
            let outputs = program.run(&[Value::host(ids.clone())]).unwrap();
            let found = outputs[1].to_host().unwrap().to_f64();
            let right = |(i, v): (usize, &f64)| *v == expected((i / width) as i64);
            assert!(found.iter().enumerate().all(right), "tuples: {tuples}");
        }
    }
}
