//! From a working graph to a loss and the gradients of weights ([`emit`]), and from there to a whole training step
//! ([`finish`]).
//!
//! Differentiating knows fixed shapes only; [`super::generalise`] opens them again. What an optimiser does is the same at all
//! sizes, so that it comes after that, once.

use super::mask;
use super::names::{GRADIENT, Names, ROWS, VALUES};
use super::optimizer::{self, Slot};
use super::sizes::Working;
use super::sparse::{self, Read, Rows};
use super::weights::Chosen;
use super::{Form, LossKind};
use crate::autodiff;
use crate::autodiff::recompute::{Budget, Saving, Whole, recompute};
use crate::data::Answer;
use crate::error::{Error, Result};
use crate::onnx::{Builder, DType, Fact, Facts, Graph, Tensor, ValueId, ValueInfo};
use crate::train::batch_norm;
use crate::train::dropout;
use crate::train::head::{both_logits, logit_before, logits_before};
use crate::train::loss::{self, Counting};
use crate::train::model_step::free_weights;
use std::collections::{HashMap, HashSet};

/// What is built, whatever the sizes.
pub struct Plan {
    pub loss: LossKind,
    pub form: Form,
    pub names: Names,
    /// The output that `label` is compared with, where one was named.
    pub output: Option<ValueId>,
    /// Axis of its classes, where one was named.
    pub class_axis: Option<i64>,
    /// The label of what doesn't count.
    pub ignored: i64,
    pub weights: Vec<Chosen>,
    /// Inputs and values inside whose gradients are wanted, too; none for a step.
    pub values: Vec<ValueId>,
    pub train_bn: bool,
    /// What values between the forward pass and the gradients are to be brought down to.
    pub recompute: Option<Budget>,
    /// Tables that were to have gradients of rows, and why they don't.
    pub dense: Vec<(ValueId, String)>,
    /// The seed of dropout, where anything is dropped.
    pub dropout: Option<u64>,
}

/// What came of it. The outputs are the loss, then the gradients that the form asks for; for a step, those of what moves and
/// then the next running statistics.
pub struct Emitted {
    pub graph: Graph,
    pub facts: Facts,
    pub moving: Moving,
    /// Weights and values that the loss doesn't depend on.
    pub idle: Vec<ValueId>,
    /// Where the classes of cross-entropy lie, if not in whole rows.
    pub classes: Option<ClassAxis>,
}

/// An axis of an output that its classes lie on.
pub struct ClassAxis {
    pub output: ValueId,
    pub axis: usize,
}

/// The gradient of a weight.
#[derive(Clone, Debug)]
pub enum Gradient {
    Whole(ValueId),
    Rows(Rows),
}

impl Gradient {
    /// That of a weight that the loss doesn't depend on.
    fn zeros(b: &mut Builder, weight: &Chosen) -> Self {
        if weight.sparse {
            return Self::Rows(sparse::none_of(b, &weight.value));
        }
        let zero = b.constant(Tensor::scalar(weight.value.dtype(), 0.0));
        Self::Whole(b.expand(&zero, weight.value.shape()))
    }
    fn parts(&self) -> Vec<&ValueId> {
        match self {
            Self::Whole(gradient) => vec![gradient],
            Self::Rows(rows) => vec![&rows.indices, &rows.values],
        }
    }
}

/// What a step changes; the graph's last inputs.
#[derive(Default)]
pub struct Moving {
    /// With their gradients.
    weights: Vec<(Chosen, Gradient)>,
    /// With what they are at the start.
    statistics: Vec<(batch_norm::Statistic, Tensor)>,
    /// The number of steps taken, where the graph depends on it.
    counter: Option<(ValueId, Tensor)>,
}

impl Moving {
    /// The inputs with what they are at the start.
    pub fn initial(&self) -> impl Iterator<Item = (&ValueId, &Tensor)> {
        let weights = self.weights.iter().map(|(weight, _)| (&weight.name, &weight.value));
        let statistics = self.statistics.iter().map(|(statistic, initial)| (&statistic.name, initial));
        weights.chain(statistics).chain(self.counter.iter().map(|(name, initial)| (name, initial)))
    }
    /// What the forward pass ends in beside the loss.
    fn ends(&self) -> impl Iterator<Item = &ValueId> {
        self.statistics.iter().map(|(statistic, _)| &statistic.next)
    }
}

/// Builds the gradient graph of a working graph.
///
/// # Errors
/// What [`autodiff::backward`] refuses, and a model whose outputs the loss makes no sense of.
pub fn emit(working: &Working, plan: &Plan) -> Result<Emitted> {
    let (mut graph, facts) = match plan.dropout {
        Some(seed) => dropping(working, plan, seed),
        None => (working.model.graph.clone(), working.facts.clone()),
    };
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|o| o.id.clone()).collect();
    let inputs: Vec<ValueInfo> = working.model.graph.required_inputs().cloned().collect();
    let here: Vec<&Chosen> =
        plan.weights.iter().filter(|w| graph.initializers.contains_key(&w.name)).collect();
    let names: Vec<ValueId> = here.iter().map(|w| w.name.clone()).collect();
    let read: Vec<ValueId> = plan.values.iter().map(|value| in_float32(&graph, value)).collect();
    let tables = tables(&graph, &here)?;
    let statistics = match plan.train_bn {
        true => batch_norm::to_training(&mut graph, |_| true),
        false => vec![],
    };
    let constants = graph.initializers.clone();
    let stepping = matches!(plan.form, Form::Step(_));
    let mut freed = vec![];
    if stepping {
        let named: HashSet<&ValueId> = names.iter().collect();
        freed.extend(names.iter().cloned());
        freed.extend(statistics.iter().map(|s| s.name.clone()).filter(|s| !named.contains(s)));
        free_weights(&mut graph, &facts, &freed)?;
    }
    graph.inputs = inputs.clone();
    graph.outputs.clear();
    let mut b = Builder::on(graph, facts);
    for (input, fact) in inputs.iter().filter_map(|i| Some((&i.id, i.fact()?))) {
        b.set_fact(input, fact);
    }
    batch_norm::facts(&mut b);
    b.reserve(freed.iter().cloned());
    b.set_scope("loss");
    let (loss, classes) = loss_of(&mut b, working, plan, &outputs)?;
    let counter = plan.dropout.map(|_| (ValueId::new(&plan.names.step), Tensor::i64(&[], &[0])));
    if let (Some((step, first)), Form::Gradients) = (&counter, &plan.form) {
        b.graph_mut().inputs.push(ValueInfo::new(step.clone(), &Fact::of(first)));
    }
    let one = b.scalar_like(&loss, 1.0);
    b.set_scope("");
    let gradients = gradients(&mut b, &[(loss.clone(), one)], &here, &tables, &read)?;
    b.output_as(&plan.names.loss, &loss);
    let asked = plan.weights.iter().map(|w| (&w.name, &w.name)).chain(plan.values.iter().zip(&read));
    let idle = asked.filter(|(_, value)| !gradients.contains_key(*value)).map(|(name, _)| name.clone());
    let idle: Vec<ValueId> = idle.collect();
    let mut moving = Moving::default();
    match &plan.form {
        Form::Gradients => {
            for weight in &plan.weights {
                let gradient = match gradients.get(&weight.name) {
                    Some(gradient) => gradient.clone(),
                    None => Gradient::zeros(&mut b, weight),
                };
                let name = format!("{}.{GRADIENT}", weight.name);
                match gradient {
                    Gradient::Whole(gradient) => drop(b.output_as(&name, &gradient)),
                    Gradient::Rows(rows) => {
                        b.output_as(&format!("{name}.{ROWS}"), &rows.indices);
                        b.output_as(&format!("{name}.{VALUES}"), &rows.values);
                    }
                }
            }
            for (value, read) in plan.values.iter().zip(&read) {
                let gradient = match gradients.get(read) {
                    Some(Gradient::Whole(gradient)) => gradient.clone(),
                    _ => b.zeros_like(read),
                };
                // An input that nothing reads is still in half precision.
                let gradient = wide(&mut b, &gradient);
                b.output_as(&format!("{value}.{GRADIENT}"), &gradient);
            }
        }
        Form::Step(_) => {
            let moved = |w: &&Chosen| Some(((*w).clone(), gradients.get(&w.name)?.clone()));
            moving.weights.extend(here.iter().filter_map(moved));
            moving.counter = counter;
            let weights: HashSet<&ValueId> = moving.weights.iter().map(|(w, _)| &w.name).collect();
            let others = statistics.into_iter().filter(|s| !weights.contains(&s.name));
            let found: Vec<_> = others.filter_map(|s| Some((constants.get(&s.name)?.clone(), s))).collect();
            moving.statistics.extend(found.into_iter().map(|(initial, statistic)| (statistic, initial)));
            declare(&mut b, &moving);
        }
    }
    let (mut graph, facts) = b.finish();
    // What was freed and doesn't move goes back to being a constant.
    let moved: HashSet<&ValueId> = moving.initial().map(|(name, _)| name).collect();
    for id in freed.iter().filter(|id| !moved.contains(id)) {
        graph.initializers.insert(id.clone(), constants[id].clone());
    }
    graph.prune();
    let (graph, facts) = autodiff::lower::lower(graph, facts)?;
    Ok(Emitted { graph, facts, moving, idle, classes })
}

/// Declares what moves as inputs, and what [`finish`] needs for each as outputs.
fn declare(b: &mut Builder, moving: &Moving) {
    for (name, initial) in moving.initial() {
        b.graph_mut().inputs.push(ValueInfo::new(name.clone(), &Fact::of(initial)));
    }
    moving.weights.iter().flat_map(|(_, gradient)| gradient.parts()).for_each(|part| b.output(part));
    moving.statistics.iter().for_each(|(statistic, _)| b.output(&statistic.next));
}

/// The whole of what was asked for.
pub struct Finished {
    pub graph: Graph,
    /// What goes from step to step, with its first values.
    pub state: Vec<Slot>,
    pub saving: Option<Saving>,
}

/// The whole of what was asked for, from a graph of [`emit`] or what is general about several: forward values computed again where
/// memory is to be saved, and for a step the update, next weights, moments and running statistics. Adds to the facts those of new
/// values. `usual` are facts for usual sizes of what is open, by which memory is counted.
pub fn finish(
    mut graph: Graph,
    (facts, usual): (&mut Facts, Option<&Facts>),
    moving: Moving,
    plan: &Plan,
) -> Finished {
    let saving = plan.recompute.map(|budget| {
        let loss = ValueId::new(&plan.names.loss);
        let ends: Vec<ValueId> = std::iter::once(&loss).chain(moving.ends()).cloned().collect();
        let saving;
        let whole = Whole { graph: std::mem::take(&mut graph), facts: std::mem::take(facts), ends: &ends };
        (graph, *facts, saving) = recompute(whole, usual, budget);
        saving
    });
    let Form::Step(optimizer) = &plan.form else { return Finished { graph, state: vec![], saving } };
    let mut b = Builder::on(graph, std::mem::take(facts));
    let own = b.graph().inputs.len() - moving.initial().count();
    b.graph_mut().inputs.truncate(own);
    b.graph_mut().outputs.truncate(1);
    let counts = moving.counter.is_some();
    let mut state = optimizer::emit(&mut b, optimizer, &plan.names, &moving.weights, counts);
    for (statistic, initial) in moving.statistics {
        b.graph_mut().inputs.push(ValueInfo::new(statistic.name.clone(), &Fact::of(&initial)));
        optimizer::next_value(&mut b, statistic.name.as_str(), &statistic.next, initial, &mut state);
    }
    let graph;
    (graph, *facts) = b.finish();
    Finished { graph, state, saving }
}

/// A value in the type that the working graph computes in: inputs in half precision are cast before anything reads them.
fn in_float32(graph: &Graph, value: &ValueId) -> ValueId {
    let half =
        graph.inputs.iter().any(|i| i.id == *value && matches!(i.dtype, Some(DType::F16 | DType::BF16)));
    let cast = graph.nodes.iter().find(|n| half && n.is("Cast") && n.input(0) == Some(value));
    cast.and_then(|n| n.output(0)).unwrap_or(value).clone()
}

/// The working graph with its dropout in training form.
fn dropping(working: &Working, plan: &Plan, seed: u64) -> (Graph, Facts) {
    let step = ValueId::new(&plan.names.step);
    let mut facts = working.facts.clone();
    facts.insert(step.clone(), Fact::new(DType::I64, &[]));
    dropout::to_training(working.model.graph.clone(), facts, |b, i, fact, ratio| {
        mask::kept(b, &step, [seed, i as u64], &fact.shape, ratio)
    })
}

/// The lookups of the tables among `weights`.
fn tables<'a>(graph: &Graph, weights: &[&'a Chosen]) -> Result<HashMap<&'a ValueId, Vec<Read>>> {
    let of = |table: &&'a Chosen| match sparse::reads(graph, &table.name) {
        Ok(reads) => Ok((&table.name, reads)),
        Err(why) => Err(Error::tensor(table.name.as_str(), format!("has no gradient of rows here: {why}"))),
    };
    weights.iter().copied().filter(|w| w.sparse).map(|table| of(&table)).collect()
}

/// The gradients of `weights` and `values`, as far as what the `seeds` pair with cotangents depends on them.
fn gradients(
    b: &mut Builder,
    seeds: &[(ValueId, ValueId)],
    weights: &[&Chosen],
    tables: &HashMap<&ValueId, Vec<Read>>,
    values: &[ValueId],
) -> Result<HashMap<ValueId, Gradient>> {
    let whole = weights.iter().filter(|w| !w.sparse).map(|w| w.name.clone());
    let reads = weights.iter().filter_map(|w| tables.get(&w.name)).flatten();
    let wrt: Vec<ValueId> =
        whole.chain(reads.map(|read| read.found.clone())).chain(values.iter().cloned()).collect();
    let cotangents = autodiff::backward(b, seeds, &wrt)?;
    let whole = |value: &ValueId| cotangents.get(value).cloned().map(Gradient::Whole);
    let mut gradients: HashMap<ValueId, Gradient> =
        values.iter().filter_map(|value| Some((value.clone(), whole(value)?))).collect();
    for weight in weights {
        let gradient = match tables.get(&weight.name) {
            Some(reads) => sparse::gathered(b, weight.value.shape(), reads, &cotangents).map(Gradient::Rows),
            None => whole(&weight.name),
        };
        gradients.extend(gradient.map(|gradient| (weight.name.clone(), gradient)));
    }
    Ok(gradients)
}

fn nothing_real(outputs: &[ValueId]) -> Error {
    Error::tensor(list(outputs), "no output of the model has real values")
        .hint(crate::train::head::REAL_ANSWER)
}

/// The loss, and where its classes lie, if not in whole rows.
fn loss_of(
    b: &mut Builder,
    working: &Working,
    plan: &Plan,
    outputs: &[ValueId],
) -> Result<(ValueId, Option<ClassAxis>)> {
    let real = |id: &ValueId| working.facts.get(id).is_some_and(|f| f.dtype.is_float() && !f.is_empty());
    if plan.loss == LossKind::Sum {
        let real: Vec<ValueId> = outputs.iter().filter(|id| real(id)).cloned().collect();
        return Ok((loss::sum_of(b, &real).ok_or_else(|| nothing_real(outputs))?, None));
    }
    let output = match &plan.output {
        Some(named) => Some(named).filter(|id| outputs.contains(id) && real(id)),
        None => outputs.iter().find(|id| real(id)),
    };
    let output = output.ok_or_else(|| match &plan.output {
        Some(named) => Error::usage(format!("--of '{named}': the model has no such output of real values"))
            .hint(format!("it has {}", list(outputs))),
        None => nothing_real(outputs),
    })?;
    match plan.loss {
        LossKind::CrossEntropy => cross_entropy(b, working, plan, output),
        _ => {
            let answer = wide(b, output);
            let fact = b.fact(&answer).clone();
            let label = b.input(&plan.names.label, fact);
            Ok((loss::mean_squared_error(b, &answer, &label), None))
        }
    }
}

/// From the logits where the output is their softmax, as training does. There is a label for each row, or each of its positions: for
/// all that the output says apart from its classes.
fn cross_entropy(
    b: &mut Builder,
    working: &Working,
    plan: &Plan,
    output: &ValueId,
) -> Result<(ValueId, Option<ClassAxis>)> {
    let whole = b.shape(output);
    let (rows, shape) = if whole.len() < 2 { (1, &whole[..]) } else { (whole[0], &whole[1..]) };
    let logits = logits_before(&working.model.graph, &working.facts, output, rows);
    let known = Answer { shape: shape.to_vec(), softmax: logits.as_ref().map(|(_, layout)| *layout) };
    let place = known.usual_layout(plan.class_axis).ok_or_else(|| {
        let axis = plan.class_axis.unwrap_or_default();
        let what = format!(
            "--class-axis {axis}: output '{output}' has shape {whole:?}, whose first axis counts rows"
        );
        Error::usage(what)
    })?;
    let layout = place.layout;
    let answer = if layout.classes < 2 {
        // One number for each label: the logit of the second of two classes, or its chance.
        let logit = logit_before(&working.model.graph, &working.facts, output);
        both_logits(b, &logit, layout, rows)
    } else {
        let answer = logits.map_or_else(|| output.clone(), |(logits, _)| logits);
        b.reshape(&answer, &layout.shape(rows))
    };
    let answer = wide(b, &answer);
    let mut shape = whole;
    match place.axis {
        Some(axis) => drop(shape.remove(axis)),
        None => shape = vec![rows],
    }
    let label = b.input(&plan.names.label, Fact::new(DType::I64, &shape));
    let label = b.reshape(&label, &layout.label_shape(rows));
    let counting = Counting::new(b, &answer, &label, plan.ignored, None);
    let loss = loss::cross_entropy(b, &answer, &label, Some(&counting));
    Ok((loss, place.axis.map(|axis| ClassAxis { output: output.clone(), axis })))
}

/// In float32, or float64 where it is that.
fn wide(b: &mut Builder, value: &ValueId) -> ValueId {
    if b.dtype(value) == DType::F64 { value.clone() } else { b.cast(value, DType::F32) }
}

fn list(ids: &[ValueId]) -> String {
    ids.iter().map(ValueId::as_str).collect::<Vec<_>>().join(", ")
}
