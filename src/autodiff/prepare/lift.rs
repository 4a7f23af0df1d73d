//! Lifting: from a model for the number of rows that its export fixed (mostly one) to one for a whole batch.
//!
//! A model whose batch is open just gets its number of rows; for others [`super::trace`] rewrites what is fixed.
//! Either way the result is only believed after a run: the batch must give what its rows give one by one.
//! Look at [`lift`].

use super::specialise::settle;
use super::trace::trace;
use crate::autodiff::facts::example_inputs;
use crate::error::Result;
use crate::onnx::{Dim, Fact, Facts, Graph, Model, Tensor, ValueId, ValueInfo};
use crate::runtime::{Compiled, Executor, Value};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How a model came to its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifting {
    /// Its batch was fixed; the rewritten model gives the same as the original row by row.
    Proved,
    /// Its batch is open, and rows don't influence each other.
    Already,
    /// Neither could be shown: it must be run as it was exported, and here is why.
    SingleRows { why: String },
}

/// A model of known input shapes, specialised to them.
#[derive(Clone, Debug)]
pub struct Lifted {
    pub model: Model,
    pub lifting: Lifting,
    /// An input of the right shapes, for probing.
    pub example: HashMap<ValueId, Tensor>,
    /// Outputs of several rows that were seen to hold the values of each row side by side along their first axis.
    pub by_rows: HashSet<ValueId>,
}

/// Sizes tried for dimensions, other than the batch, that the file leaves open.
pub const OPEN_SIZES: [usize; 9] = [16, 64, 512, 8, 3, 32, 128, 224, 1];
/// Proving stops after this time, once a few rows have been compared.
const PATIENCE: Duration = Duration::from_millis(500);
const FEWEST_CHECKED: usize = 4;
/// Largest difference between batch and single rows, relative to the largest element.
const TOLERANCE: f64 = 1e-3;

/// Frees the batch of an upgraded model and fixes it to `batch` rows.
///
/// Inputs without a batch (scalars, states of another layout) keep their shapes. Outputs that don't carry the
/// batch may be dropped. The model returned is specialised to its shapes (see [`super::specialise`]).
///
/// # Errors
/// When the model can't be run at all on inputs of the declared shapes.
pub fn lift(model: &Model, batch: usize, executor: &dyn Executor) -> Result<Lifted> {
    let axes = batch_axes(&model.graph);
    let rows = fixed_rows(&model.graph, &axes);
    let (single, example, facts) = runnable(model, &axes, rows, executor)?;
    let fallback = |why: String| {
        let (model, example) = (single.clone(), example.clone());
        Ok(Lifted { model, lifting: Lifting::SingleRows { why }, example, by_rows: HashSet::new() })
    };
    if axes.is_empty() {
        return fallback("no input has a dimension for the batch".into());
    }
    let from = rows.unwrap_or(1);
    if batch == from {
        return Ok(Lifted { model: single, lifting: Lifting::Already, example, by_rows: HashSet::new() });
    }
    let mut reference = match prover(&single, executor) {
        Ok(program) => program,
        Err(e) => return fallback(e.to_string()),
    };
    let mut why = String::new();
    if rows.is_none() {
        let open = pin(model, &resized(&example_facts(&example), &axes, 1, batch));
        match prove(&open, true, &mut *reference, &single, &axes, from, batch, executor) {
            Ok(lifted) => return Ok(lifted),
            Err(reason) => why = reason,
        }
    }
    let traced = trace(&single.graph, &facts, &axes, from, batch).and_then(|graph| {
        let traced = Model { graph, ..single.clone() };
        let pinned = pin(&traced, &resized(&example_facts(&example), &axes, from, batch));
        prove(&pinned, false, &mut *reference, &single, &axes, from, batch, executor)
    });
    match traced {
        Ok(lifted) => Ok(lifted),
        Err(reason) if why.is_empty() || rows.is_some() => fallback(reason),
        Err(reason) if reason == why => fallback(reason),
        Err(reason) => fallback(format!("{why}; {reason}")),
    }
}

/// The batch axis of each input that has one: the first axis where it is 1, open, or as long as the first
/// input's; else the first open axis, as in states of recurrent layers.
pub fn batch_axes(graph: &Graph) -> HashMap<ValueId, usize> {
    let inputs: Vec<&ValueInfo> =
        graph.required_inputs().filter(|i| i.shape.as_ref().is_some_and(|s| !s.is_empty())).collect();
    let dims = |i: &ValueInfo| i.shape.clone().unwrap_or_default();
    let open = |d: &Dim| !matches!(d, Dim::Known(_));
    let first = inputs.first().and_then(|i| dims(i).into_iter().next());
    let named = inputs.iter().find_map(|i| match dims(i).first() {
        Some(Dim::Named(name)) => Some(name.clone()),
        _ => None,
    });
    let mut axes = HashMap::new();
    for input in &inputs {
        let dims = dims(input);
        let by_name =
            named.as_ref().and_then(|n| dims.iter().position(|d| matches!(d, Dim::Named(m) if m == n)));
        let leads = dims.first().is_some_and(|d| open(d) || *d == Dim::Known(1) || Some(d) == first.as_ref());
        // Beside inputs whose batch is open, an input without an open dimension has none.
        let axis =
            by_name.or_else(|| leads.then_some(0)).or_else(|| dims.iter().position(open)).or_else(|| {
                let one = dims.iter().position(|d| *d == Dim::Known(1));
                one.filter(|_| first == Some(Dim::Known(1)))
            });
        if let Some(axis) = axis {
            axes.insert(input.id.clone(), axis);
        }
    }
    axes
}

/// The number of rows the file fixes; `None` where it is open in all inputs.
fn fixed_rows(graph: &Graph, axes: &HashMap<ValueId, usize>) -> Option<usize> {
    graph.required_inputs().find_map(|i| match i.shape.as_ref()?.get(*axes.get(&i.id)?)? {
        Dim::Known(n) => Some((*n).max(1)),
        _ => None,
    })
}

/// The model as exported, with open dimensions set to sizes for which it runs.
fn runnable(
    model: &Model,
    axes: &HashMap<ValueId, usize>,
    rows: Option<usize>,
    executor: &dyn Executor,
) -> Result<(Model, HashMap<ValueId, Tensor>, Facts)> {
    let open = |i: &ValueInfo| {
        let dims = i.shape.iter().flatten().enumerate();
        dims.filter(|(k, d)| axes.get(&i.id) != Some(k) && !matches!(d, Dim::Known(_))).count()
    };
    let sizes = match model.graph.required_inputs().map(open).sum::<usize>() {
        0 => &OPEN_SIZES[..1],
        _ => &OPEN_SIZES[..],
    };
    let (mut first_error, mut fallback) = (None, None);
    for &size in sizes {
        let mut sized = model.clone();
        for input in &mut sized.graph.inputs {
            let axis = axes.get(&input.id).copied();
            for (k, dim) in input.shape.iter_mut().flatten().enumerate() {
                if !matches!(dim, Dim::Known(_)) {
                    *dim = Dim::Known(if Some(k) == axis { rows.unwrap_or(1) } else { size });
                }
            }
        }
        forget_output_shapes(&mut sized.graph);
        let example = example_inputs(&sized.graph, 1, 7)?;
        match settle(&sized, executor, &example) {
            // Better a size for which all branches run than one for which only some do.
            Ok((settled, probe)) if all_known(&settled.graph, &probe.facts) => {
                return Ok((settled, example, probe.facts));
            }
            Ok((settled, probe)) => fallback = fallback.or(Some((settled, example, probe.facts))),
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    if let Some(found) = fallback {
        return Ok(found);
    }
    Err(first_error.unwrap_or_else(|| crate::Error::usage("the model has no inputs")))
}

/// Whether every value inside the bodies of nodes has facts.
fn all_known(graph: &Graph, facts: &Facts) -> bool {
    let mut bodies = graph.nodes.iter().flat_map(|n| n.subgraphs());
    bodies.all(|body| super::own_names(body).all(|id| facts.contains_key(id)) && all_known(body, facts))
}

fn forget_output_shapes(graph: &mut Graph) {
    graph.outputs.iter_mut().for_each(|o| o.shape = None);
}

fn example_facts(example: &HashMap<ValueId, Tensor>) -> Facts {
    example.iter().map(|(id, t)| (id.clone(), Fact::of(t))).collect()
}

/// Input facts for another number of rows.
fn resized(facts: &Facts, axes: &HashMap<ValueId, usize>, from: usize, to: usize) -> Facts {
    let mut facts = facts.clone();
    for (id, &axis) in axes {
        if let Some(size) = facts.get_mut(id).and_then(|f| f.shape.get_mut(axis)) {
            *size = *size / from * to;
        }
    }
    facts
}

/// Declares inputs with exact shapes, and outputs without.
fn pin(model: &Model, facts: &Facts) -> Model {
    let mut model = model.clone();
    for input in &mut model.graph.inputs {
        if let Some(fact) = facts.get(&input.id) {
            *input = ValueInfo::new(input.id.clone(), fact);
        }
    }
    forget_output_shapes(&mut model.graph);
    model
}

fn prover(model: &Model, executor: &dyn Executor) -> Result<Box<dyn Compiled>> {
    let facts = model.graph.required_inputs().filter_map(|i| Some((i.id.clone(), i.fact()?))).collect();
    executor.compile(model, &facts)
}

/// Runs `lifted` on random rows and `reference` on the same rows, `from` at a time. Returns the model, settled if
/// its batch was `open`, and the rows; or why they don't agree.
#[allow(clippy::too_many_arguments)]
fn prove(
    lifted: &Model,
    open: bool,
    reference: &mut dyn Compiled,
    single: &Model,
    axes: &HashMap<ValueId, usize>,
    from: usize,
    to: usize,
    executor: &dyn Executor,
) -> Result<Lifted, String> {
    let text = |e: crate::Error| e.to_string();
    let mut example = example_inputs(&lifted.graph, to, 11).map_err(text)?;
    let model = match open {
        true => settle(lifted, executor, &example).map_err(text)?.0,
        false => lifted.clone(),
    };
    let feeds: Vec<Value> =
        model.graph.required_inputs().filter_map(|i| example.get(&i.id).cloned().map(Value::host)).collect();
    let batch = prover(&model, executor).and_then(|mut program| program.run(&feeds)).map_err(text)?;
    let ids = |m: &Model| m.graph.outputs.iter().map(|o| o.id.clone()).collect::<Vec<_>>();
    let batch: HashMap<ValueId, Tensor> = ids(&model).into_iter().zip(hosted(batch)?).collect();
    let started = Instant::now();
    let (mut compared, mut by_rows) = (0, HashSet::new());
    for (turn, start) in spread(to, from).into_iter().enumerate() {
        if turn >= FEWEST_CHECKED && started.elapsed() > PATIENCE {
            break;
        }
        let rows: Vec<usize> = (start..start + from).map(|r| r % to).collect();
        let feeds: Option<Vec<Value>> = single
            .graph
            .required_inputs()
            .map(|i| {
                let tensor = example.get(&i.id)?;
                let part =
                    axes.get(&i.id).map_or_else(|| tensor.clone(), |&axis| take(tensor, axis, to, &rows));
                Some(Value::host(part))
            })
            .collect();
        let parts = reference.run(&feeds.ok_or("an input is missing")?).map_err(text)?;
        for (id, part) in ids(single).iter().zip(hosted(parts)?) {
            let Some(whole) = batch.get(id) else { continue };
            let Some(axis) = agrees(id, whole, &part, from, to, &rows)? else { continue };
            compared += 1;
            if axis == 0 {
                by_rows.insert(id.clone());
            }
        }
    }
    if compared == 0 {
        return Err("no output has a row for each row of the batch".into());
    }
    // The example that goes out need not be random rows in particular; these are at hand.
    example.retain(|id, _| model.graph.inputs.iter().any(|i| i.id == *id));
    let lifting = if open { Lifting::Already } else { Lifting::Proved };
    Ok(Lifted { model, lifting, example, by_rows })
}

fn hosted(values: Vec<Value>) -> Result<Vec<Tensor>, String> {
    values.iter().map(|v| v.to_host().map_err(|e| e.to_string())).collect()
}

/// First rows of the groups to compare, the ends first.
fn spread(to: usize, from: usize) -> Vec<usize> {
    let mut starts: Vec<usize> = (0..to).step_by(from).collect();
    let last = starts.len() - 1;
    starts.sort_by_key(|&s| {
        let i = s / from;
        if i == 0 {
            0
        } else if i == last {
            1
        } else {
            2 + i.reverse_bits() % 61
        }
    });
    starts
}

/// The given rows of `tensor`, whose `axis` holds `count` rows.
fn take(tensor: &Tensor, axis: usize, count: usize, rows: &[usize]) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let outer: usize = shape[..axis].iter().product();
    let factor = shape[axis] / count;
    let row = factor * shape[axis + 1..].iter().product::<usize>() * tensor.dtype().size().unwrap_or(0);
    shape[axis] = factor * rows.len();
    let bytes = tensor.bytes();
    let mut out = Vec::with_capacity(outer * rows.len() * row);
    for o in 0..outer {
        for &r in rows {
            let at = (o * count + r) * row;
            out.extend_from_slice(bytes.get(at..at + row).unwrap_or_default());
        }
    }
    Tensor::new(tensor.dtype(), &shape, out).unwrap_or_else(|_| tensor.clone())
}

/// The axis along which `whole` has `part` in its `rows`; `None` where the output has no rows to compare.
fn agrees(
    id: &ValueId,
    whole: &Tensor,
    part: &Tensor,
    from: usize,
    to: usize,
    rows: &[usize],
) -> Result<Option<usize>, String> {
    let (a, b) = (whole.shape(), part.shape());
    let differs = |(x, y): (&usize, &usize)| x != y;
    let axis = a.iter().zip(b).position(differs).filter(|_| a.len() == b.len());
    let Some(axis) = axis else { return Ok(None) };
    let fits = b[axis] % from == 0 && a[axis] == b[axis] / from * to && a[axis + 1..] == b[axis + 1..];
    if !fits {
        return Err(format!("output '{id}' has shape {b:?} for {from} rows and {a:?} for {to}"));
    }
    if !whole.is_readable() {
        return Ok(None);
    }
    let (got, expected) = (take(whole, axis, to, rows).to_f64(), part.to_f64());
    let largest = expected.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    if !expected.is_empty() && expected.iter().all(|v| !v.is_finite()) {
        return Err(format!("output '{id}' is not finite on random inputs, so that nothing can be compared"));
    }
    let tolerance = if whole.dtype().is_float() { TOLERANCE * largest + 1e-6 } else { 0.0 };
    let wrong = got.iter().zip(&expected).find(|(g, e)| g != e && (*g - *e).abs() > tolerance);
    match wrong {
        Some((g, e)) => {
            Err(format!("output '{id}' of a batch differs from that of its rows ({g:.6} for {e:.6})"))
        }
        None => Ok(Some(axis)),
    }
}
