//! Random graphs: operators joined as they come, differentiated, and compared with central differences.
//!
//! What single-operator cases can't show: values used several times, broadcasting between anything, cotangents that
//! meet. Every graph follows from its seed, which a failure prints.

use crate::differences::{Manner, Miss, Subject, compare};
use crate::gradients::judges;
use onnx_merge::autodiff::backward;
use onnx_merge::autodiff::lower::lower;
use onnx_merge::autodiff::recompute::{Budget, Whole, recompute};
use onnx_merge::onnx::infer::infer_graph;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Facts, Graph, Model, Tensor, ValueId};
use onnx_merge::runtime::Value;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

const GRAPHS: u64 = 400;
/// The test ends after this time, once [`FEWEST`] graphs have been compared.
const PATIENCE: Duration = Duration::from_secs(20);
const FEWEST: usize = 50;

#[test]
fn random_graphs_agree_with_central_differences() {
    onnx_merge::runtime::silence_telemetry();
    let judges = judges();
    let double: Vec<_> = judges.iter().filter(|(_, dtype)| *dtype == DType::F64).collect();
    let (begun, mut compared, mut skipped, mut worst) = (Instant::now(), 0, BTreeMap::new(), 0.0f64);
    let (mut nodes, mut failures) = (0, vec![]);
    for seed in 0..GRAPHS {
        if compared >= FEWEST && begun.elapsed() > PATIENCE {
            break;
        }
        let (model, point) = random_graph(seed);
        let varied: Vec<ValueId> = model.graph.inputs.iter().map(|i| i.id.clone()).collect();
        let subject = Subject { model: &model, point, varied };
        let manner = Manner::of(DType::F64);
        let mut said = String::new();
        let mut passed = None;
        // Another direction where a kink was hit; another judge where one lacks a kernel.
        'judges: for (executor, _) in &double {
            for direction in 1..4 {
                match compare(&**executor, &subject, manner, direction) {
                    Ok(outcome) if outcome.error <= manner.tolerance => {
                        passed = Some(outcome.error);
                        break 'judges;
                    }
                    Ok(outcome) => said = format!("{:.3e} for {:.3e}", outcome.analytic, outcome.numeric),
                    Err(Miss::Gradient(e)) => {
                        said = format!("no gradient: {e}");
                        break 'judges;
                    }
                    Err(Miss::Backward(e)) => {
                        said = format!("{} can't run the gradient: {e}", executor.name());
                        break;
                    }
                    Err(Miss::Forward(_)) => break,
                    Err(Miss::NothingReal | Miss::NotFinite) => {}
                }
            }
        }
        match (passed, said.as_str()) {
            (Some(error), _) => {
                compared += 1;
                nodes += model.graph.nodes.len();
                worst = worst.max(error);
            }
            (None, "") => {
                *skipped.entry("not run by any executor in float64, or not finite").or_insert(0) += 1
            }
            (None, why) => failures.push(format!("seed {seed}: {why}: {}", operators(&model))),
        }
    }
    println!(
        "{compared} random graphs of {nodes} nodes agree, worst error {worst:.1e}; left out: {skipped:?}"
    );
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    assert!(failures.is_empty(), "{} random graphs fail", failures.len());
    assert!(double.is_empty() || compared >= FEWEST, "only {compared} graphs were compared");
}

/// Computed again or kept, forward values are the same, and so are gradients.
#[test]
fn recomputation_leaves_the_gradients_of_random_graphs_as_they_are() {
    onnx_merge::runtime::silence_telemetry();
    let judges = judges();
    let Some((tract, _)) = judges.iter().find(|(executor, _)| executor.name() == "tract") else { return };
    let (mut same, mut twice) = (0, 0);
    for seed in 0..GRAPHS {
        let (model, point) = random_graph(seed);
        let Some((graph, facts, loss)) = gradients_of_the_sum(&model) else { continue };
        let run = |graph: &Graph, facts: &Facts| -> Option<Vec<Vec<u8>>> {
            let model = Model::new(graph.clone(), 18);
            let fed: Vec<Value> =
                graph.required_inputs().map(|input| Value::host(point[&input.id].clone())).collect();
            let outputs = tract.compile(&model, facts).ok()?.run(&fed).ok()?;
            Some(outputs.iter().map(|y| y.to_host().unwrap().bytes().to_vec()).collect())
        };
        let Some(expected) = run(&graph, &facts) else { continue };
        let (again, facts, saving) = recompute(Whole { graph, facts, ends: &[loss] }, None, Budget::Least);
        assert!(saving.peak <= saving.peak_without, "seed {seed}: {saving:?}");
        assert_eq!(run(&again, &facts).as_ref(), Some(&expected), "seed {seed}: {}", operators(&model));
        same += 1;
        twice += saving.nodes;
    }
    println!("{same} random graphs have the same gradients, {twice} nodes being computed twice");
    assert!(same >= FEWEST && twice >= FEWEST, "{same} graphs, {twice} nodes");
}

/// The graph that computes the sum of all outputs and its gradients by all inputs.
fn gradients_of_the_sum(model: &Model) -> Option<(Graph, Facts, ValueId)> {
    let fed = model.graph.inputs.iter().filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
    let facts = infer_graph(&model.graph, fed);
    let mut graph = model.graph.clone();
    let outputs: Vec<ValueId> = std::mem::take(&mut graph.outputs).into_iter().map(|o| o.id).collect();
    let inputs: Vec<ValueId> = graph.inputs.iter().map(|i| i.id.clone()).collect();
    let mut b = Builder::on(graph, facts);
    let mut loss: Option<ValueId> = None;
    for output in &outputs {
        let sum = b.sum_all(output);
        loss = Some(loss.map_or(sum.clone(), |so_far| b.add(&so_far, &sum)));
    }
    let loss = loss?;
    let one = b.scalar_like(&loss, 1.0);
    let gradients = backward(&mut b, &[(loss.clone(), one)], &inputs).ok()?;
    b.output(&loss);
    inputs.iter().filter_map(|input| gradients.get(input)).for_each(|gradient| b.output(gradient));
    let (graph, facts) = b.finish();
    let (graph, facts) = lower(graph, facts).ok()?;
    Some((graph, facts, loss))
}

fn operators(model: &Model) -> String {
    model.graph.nodes.iter().map(|n| n.op.as_str()).collect::<Vec<_>>().join(" ")
}

/// A graph of a few inputs and up to a dozen operators, all of whose loose ends are outputs.
fn random_graph(seed: u64) -> (Model, HashMap<ValueId, Tensor>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut b = Builder::new("random");
    let mut point = HashMap::new();
    let mut values: Vec<ValueId> = vec![];
    for i in 0..rng.random_range(1..4) {
        let shape: Vec<usize> = (0..rng.random_range(1..4)).map(|_| rng.random_range(1..5)).collect();
        let id = b.input(&format!("x{i}"), Fact::new(DType::F64, &shape));
        let count = shape.iter().product();
        let numbers: Vec<f64> = (0..count).map(|_| rng.random_range(-1.5..1.5)).collect();
        point.insert(id.clone(), Tensor::f64(&shape, &numbers));
        values.push(id);
    }
    for _ in 0..rng.random_range(3..12) {
        // Recent values first, so that graphs are deep as well as wide.
        let pick = |rng: &mut ChaCha8Rng| {
            let back = rng.random_range(0..values.len()).min(rng.random_range(0..values.len()));
            values[values.len() - 1 - back].clone()
        };
        let (x, y) = (pick(&mut rng), pick(&mut rng));
        // What changes nothing (a reshape to the same shape) gives its input back.
        if let Some(made) = operator(&mut b, &mut rng, &x, &y).filter(|made| !values.contains(made)) {
            values.push(made);
        }
    }
    let read: Vec<ValueId> =
        b.graph().nodes.iter().flat_map(|n| n.inputs.iter().flatten().cloned()).collect();
    for value in values.iter().filter(|v| !read.contains(v)) {
        b.output_as(&format!("{value}.out"), value);
    }
    (Model::new(b.finish().0, 18), point)
}

/// One operator on `x`, and on `y` where it takes two and the shapes fit; `None` where they don't.
fn operator(b: &mut Builder, rng: &mut ChaCha8Rng, x: &ValueId, y: &ValueId) -> Option<ValueId> {
    let (shape, other) = (b.shape(x), b.shape(y));
    let rank = shape.len();
    if b.fact(x).len() > 400 {
        return Some(b.mean(x, &[rank as i64 - 1], false));
    }
    let axis = rng.random_range(0..rank.max(1));
    let fits = onnx_merge::onnx::infer::broadcast(&shape, &other).is_some();
    let kind = rng.random_range(0..14);
    if rank == 0 && kind > 2 {
        return Some(b.op("Tanh", &[x]));
    }
    Some(match kind {
        0 | 1 => {
            const SMOOTH: [&str; 12] = [
                "Tanh",
                "Sigmoid",
                "Sin",
                "Cos",
                "Neg",
                "Abs",
                "Relu",
                "LeakyRelu",
                "Elu",
                "Softplus",
                "Erf",
                "Atan",
            ];
            b.op(SMOOTH[rng.random_range(0..SMOOTH.len())], &[x])
        }
        2 => {
            // Where a domain is half a line, of one more than the square.
            let square = b.mul(x, x);
            let above = b.add_scalar(&square, 1.0);
            b.op(["Sqrt", "Log", "Reciprocal"][rng.random_range(0..3)], &[&above])
        }
        3..=5 if fits => b.op(["Add", "Sub", "Mul", "Max", "Min"][rng.random_range(0..5)], &[x, y]),
        6 if fits => {
            let square = b.mul(y, y);
            let above = b.add_scalar(&square, 0.5);
            b.div(x, &above)
        }
        7 if rank > 1 && other.len() > 1 && shape[rank - 1] == other[other.len() - 2] => {
            onnx_merge::onnx::infer::broadcast(&shape[..rank - 2], &other[..other.len() - 2])?;
            b.matmul(x, y)
        }
        7 if rank > 1 => {
            let transposed = b.transpose_matrix(x);
            b.matmul(x, &transposed)
        }
        8 => {
            const REDUCE: [&str; 8] = [
                "ReduceSum",
                "ReduceMean",
                "ReduceMax",
                "ReduceMin",
                "ReduceLogSumExp",
                "ReduceSumSquare",
                "ReduceL1",
                "ReduceProd",
            ];
            b.reduce(REDUCE[rng.random_range(0..8)], x, &[axis as i64], rng.random_bool(0.5))
        }
        9 => b.op_with(
            ["Softmax", "LogSoftmax"][rng.random_range(0..2)],
            &[x],
            &[("axis", Attr::Int(axis as i64))],
        ),
        10 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.rotate_left(axis);
            b.transpose(x, &perm)
        }
        11 => {
            let count = b.fact(x).len();
            let flat = if rank > 1 { vec![shape[0], count / shape[0].max(1)] } else { vec![1, count] };
            b.reshape(x, &flat)
        }
        12 if shape == other => b.concat(&[x, y], axis as i64),
        12 if shape[axis] > 1 => b.slice(x, &[1], &[shape[axis] as i64], &[axis as i64]),
        13 => {
            let rows: Vec<i64> = (0..3).map(|_| rng.random_range(0..shape[axis]) as i64).collect();
            let rows = b.ints(&rows);
            b.op_with("Gather", &[x, &rows], &[("axis", Attr::Int(axis as i64))])
        }
        _ => b.op("Tanh", &[x]),
    })
}
