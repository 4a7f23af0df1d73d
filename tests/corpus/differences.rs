//! Central differences along a random direction, and the gradient that the program builds, side by side.

use onnx_merge::autodiff::{
    backward,
    facts::{Probe, probe},
};
use onnx_merge::onnx::{Builder, DType, Fact, Facts, Graph, Model, Tensor, ValueId};
use onnx_merge::runtime::{Executor, Value};
use onnx_merge::{Error, Result};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// How a derivative is taken and judged.
#[derive(Clone, Copy)]
pub struct Manner {
    /// The step along the direction.
    pub step: f64,
    /// The error that passes, relative to the size of what is added up.
    pub tolerance: f64,
    /// How far the point is moved at random, so that ties and kinks are passed by.
    pub jitter: f64,
}

impl Manner {
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Manner { step: 1e-6, tolerance: 1e-6, jitter: 1e-3 },
            _ => Manner { step: 1e-2, tolerance: 2e-2, jitter: 1e-3 },
        }
    }
}

/// What came out.
pub struct Outcome {
    /// |analytic − numeric| less what rounding explains, relative to Σ|gradient · direction| + |numeric|.
    pub error: f64,
    pub analytic: f64,
    pub numeric: f64,
    /// How many of the varied values have a gradient.
    pub reached: usize,
}

/// A model whose derivative is taken: at `point`, along the values of `varied`.
pub struct Subject<'a> {
    pub model: &'a Model,
    /// All that must be fed, and weights to vary.
    pub point: HashMap<ValueId, Tensor>,
    pub varied: Vec<ValueId>,
}

/// Why nothing came out.
pub enum Miss {
    /// The executor can't run the model itself, or not in this type.
    Forward(Error),
    /// No real output depends on a real input.
    NothingReal,
    /// No gradient could be built.
    Gradient(Error),
    /// The executor can't run the gradient.
    Backward(Error),
    /// Values aren't finite at this point.
    NotFinite,
}

/// Compares the derivative of Σ cotangent · output along a random direction with the graph's gradient.
pub fn compare(
    executor: &dyn Executor,
    subject: &Subject<'_>,
    manner: Manner,
    seed: u64,
) -> Result<Outcome, Miss> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut point = subject.point.clone();
    for id in &subject.varied {
        if let Some(tensor) = point.get_mut(id) {
            let moved = |x: f64, rng: &mut ChaCha8Rng| {
                x + manner.jitter * (rng.random_range(-1.0..1.0) + x * rng.random_range(-1.0..1.0))
            };
            *tensor = map(tensor, |x| moved(x, &mut rng));
        }
    }
    let free = freed(subject.model, &subject.varied);
    let probed = probe(executor, &free, &point).map_err(Miss::Forward)?;
    let free = fold(&free, &probed);
    let facts = probed.facts;
    let outputs: Vec<(ValueId, Fact)> = real_outputs(&free.graph, &facts);
    let varied: Vec<ValueId> = subject.varied.clone();
    if outputs.is_empty() || varied.is_empty() {
        return Err(Miss::NothingReal);
    }
    // What isn't finite (masked scores) isn't looked at.
    let base = run(executor, &only(&free, &outputs), &facts, &point).map_err(Miss::Forward)?;
    let seeds: Vec<Tensor> = base
        .iter()
        .map(|y| zip(&random(&Fact::of(y), &mut rng), y, |c, y| if y.is_finite() { c } else { 0.0 }))
        .collect();
    let (gradient, reached) =
        gradient_model(&free, &facts, &outputs, &seeds, &varied).map_err(Miss::Gradient)?;
    let forward = only(&free, &outputs);
    let mut program = executor.compile(&forward, &facts).map_err(Miss::Forward)?;
    let direction: HashMap<&ValueId, Tensor> =
        varied.iter().filter_map(|id| Some((id, random(facts.get(id)?, &mut rng)))).collect();
    let mut along = |step: f64| -> Result<(f64, f64), Miss> {
        let feeds = feeds(&forward.graph, |id| {
            let base = point.get(id)?;
            Some(match direction.get(id) {
                Some(v) => zip(base, v, |x, v| x + step * v),
                None => base.clone(),
            })
        });
        let values = feeds.and_then(|feeds| program.run(&feeds)).map_err(Miss::Forward)?;
        let mut sums = (0.0, 0.0);
        for (value, (_, seed)) in values.iter().zip(outputs.iter().zip(&seeds)) {
            let value = value.to_host().map_err(Miss::Forward)?;
            for (y, c) in value.to_f64().iter().zip(seed.to_f64()).filter(|(_, c)| *c != 0.0) {
                sums = (sums.0 + y * c, sums.1 + (y * c).powi(2));
            }
        }
        Ok(sums)
    };
    let (up, down) = (along(manner.step)?, along(-manner.step)?);
    let numeric = (up.0 - down.0) / (2.0 * manner.step);
    if !numeric.is_finite() {
        return Err(Miss::NotFinite);
    }
    let grads = run(executor, &gradient, &facts, &point).map_err(Miss::Backward)?;
    let (mut analytic, mut size) = (0.0, 0.0);
    for (id, grad) in reached.iter().zip(&grads) {
        let direction = direction.get(id).map(Tensor::to_f64).unwrap_or_default();
        for (g, v) in grad.to_f64().iter().zip(direction) {
            analytic += g * v;
            size += (g * v).abs();
        }
    }
    let rounding = if facts.get(&varied[0]).is_some_and(|f| f.dtype == DType::F64) { 1e-16 } else { 1e-7 };
    // Roundings of many terms add up like a random walk.
    let noise = 20.0 * rounding * up.1.sqrt() / manner.step;
    // An error as small as rounding explains counts as none.
    let error = ((analytic - numeric).abs() - noise).max(0.0) / (size + numeric.abs()).max(1e-3);
    let error = if error.is_nan() { f64::INFINITY } else { error };
    Ok(Outcome { error, analytic, numeric, reached: reached.len() })
}

/// The model with the initializers among `varied` as inputs instead.
fn freed(model: &Model, varied: &[ValueId]) -> Model {
    let mut model = model.clone();
    for id in varied {
        if let Some(tensor) = model.graph.initializers.shift_remove(id)
            && !model.graph.inputs.iter().any(|input| input.id == *id)
        {
            model.graph.inputs.push(onnx_merge::onnx::ValueInfo::new(id.clone(), &Fact::of(&tensor)));
        }
    }
    model
}

/// The model with these outputs alone.
fn only(model: &Model, outputs: &[(ValueId, Fact)]) -> Model {
    let mut model = model.clone();
    model.graph.outputs.retain(|o| outputs.iter().any(|(id, _)| *id == o.id));
    model.graph.prune();
    model
}

/// Whole numbers that the model computes (shapes, axes, pads) as constants, where a rule may ask for them.
fn fold(model: &Model, probed: &Probe) -> Model {
    let mut model = model.clone();
    let Graph { nodes, initializers, .. } = &mut model.graph;
    nodes.retain(|node| {
        let known = |id: &ValueId| probed.values.get(id).filter(|t| t.dtype().is_int());
        let fixed = node.outputs.iter().flatten().all(|o| known(o).is_some());
        if fixed {
            initializers
                .extend(node.outputs.iter().flatten().filter_map(|o| Some((o.clone(), known(o)?.clone()))));
        }
        !fixed
    });
    model
}

fn real_outputs(graph: &Graph, facts: &Facts) -> Vec<(ValueId, Fact)> {
    let made = |id: &ValueId| graph.nodes.iter().any(|n| n.outputs.iter().flatten().any(|o| o == id));
    let outputs = graph.outputs.iter().filter(|o| made(&o.id));
    let known = outputs.filter_map(|o| Some((o.id.clone(), facts.get(&o.id)?.clone())));
    known.filter(|(_, fact)| fact.dtype.is_float() && !fact.is_empty()).collect()
}

/// The model that computes the cotangents of `varied`, as far as there are any, and which have one.
fn gradient_model(
    model: &Model,
    facts: &Facts,
    outputs: &[(ValueId, Fact)],
    seeds: &[Tensor],
    varied: &[ValueId],
) -> Result<(Model, Vec<ValueId>)> {
    let mut gradient = model.clone();
    gradient.graph.outputs.clear();
    let mut b = Builder::on(gradient.graph, facts.clone());
    let seeds: Vec<(ValueId, ValueId)> =
        outputs.iter().zip(seeds).map(|((id, _), seed)| (id.clone(), b.constant(seed.clone()))).collect();
    let found = backward(&mut b, &seeds, varied)?;
    let reached: Vec<ValueId> = varied.iter().filter(|id| found.contains_key(*id)).cloned().collect();
    for id in &reached {
        let cotangent = &found[id];
        b.output_as(&format!("{id}.grad"), cotangent);
    }
    let (mut graph, _) = b.finish();
    graph.prune();
    Ok((Model { graph, ..gradient }, reached))
}

fn run(
    executor: &dyn Executor,
    model: &Model,
    facts: &Facts,
    point: &HashMap<ValueId, Tensor>,
) -> Result<Vec<Tensor>> {
    if model.graph.outputs.is_empty() {
        return Ok(vec![]);
    }
    let feeds = feeds(&model.graph, |id| point.get(id).cloned())?;
    executor.compile(model, facts)?.run(&feeds)?.iter().map(Value::to_host).collect()
}

fn feeds(graph: &Graph, value: impl Fn(&ValueId) -> Option<Tensor>) -> Result<Vec<Value>> {
    let missing = |id: &ValueId| Error::tensor(id.as_str(), "no value");
    graph.required_inputs().map(|i| Ok(Value::host(value(&i.id).ok_or_else(|| missing(&i.id))?))).collect()
}

fn random(fact: &Fact, rng: &mut impl Rng) -> Tensor {
    let values: Vec<f64> = (0..fact.len()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_f64(fact.dtype, &fact.shape, &values)
}

fn map(tensor: &Tensor, f: impl FnMut(f64) -> f64) -> Tensor {
    let values: Vec<f64> = tensor.to_f64().into_iter().map(f).collect();
    Tensor::from_f64(tensor.dtype(), tensor.shape(), &values)
}

fn zip(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let values: Vec<f64> = a.to_f64().into_iter().zip(b.to_f64()).map(|(a, b)| f(a, b)).collect();
    Tensor::from_f64(a.dtype(), a.shape(), &values)
}
