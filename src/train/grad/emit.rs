//! From a working graph to a loss and the gradients of weights ([`emit`]), and from there to a whole training step
//! ([`finish`]).
//!
//! Differentiating knows fixed shapes only; [`super::generalise`] opens them again. What an optimiser does is the same at all
//! sizes, so that it comes after that, once.

use super::names::{GRADIENT, Names};
use super::optimizer::{self, Slot};
use super::sizes::Working;
use super::weights::Chosen;
use super::{Form, LossKind};
use crate::autodiff;
use crate::data::Answer;
use crate::error::{Error, Result};
use crate::onnx::{Builder, DType, Fact, Facts, Graph, Tensor, ValueId, ValueInfo};
use crate::train::batch_norm;
use crate::train::head::{both_logits, logit_before, logits_before};
use crate::train::loss::{self, Counting};
use crate::train::model_step::free_weights;
use std::collections::HashSet;

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

/// What a step changes; the graph's last inputs.
#[derive(Default)]
pub struct Moving {
    /// With their gradients.
    weights: Vec<(Chosen, ValueId)>,
    /// With what they are at the start.
    statistics: Vec<(batch_norm::Statistic, Tensor)>,
}

impl Moving {
    /// The inputs with what they are at the start.
    pub fn initial(&self) -> impl Iterator<Item = (&ValueId, &Tensor)> {
        let weights = self.weights.iter().map(|(weight, _)| (&weight.name, &weight.value));
        weights.chain(self.statistics.iter().map(|(statistic, initial)| (&statistic.name, initial)))
    }
}

/// Builds the gradient graph of a working graph.
///
/// # Errors
/// What [`autodiff::backward`] refuses, and a model whose outputs the loss makes no sense of.
pub fn emit(working: &Working, plan: &Plan) -> Result<Emitted> {
    let mut graph = working.model.graph.clone();
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|o| o.id.clone()).collect();
    let inputs: Vec<ValueInfo> = graph.required_inputs().cloned().collect();
    let here: Vec<&Chosen> =
        plan.weights.iter().filter(|w| graph.initializers.contains_key(&w.name)).collect();
    let names: Vec<ValueId> = here.iter().map(|w| w.name.clone()).collect();
    let read: Vec<ValueId> = plan.values.iter().map(|value| in_float32(&graph, value)).collect();
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
        free_weights(&mut graph, &working.facts, &freed)?;
    }
    graph.inputs = inputs.clone();
    graph.outputs.clear();
    let mut b = Builder::on(graph, working.facts.clone());
    for (input, fact) in inputs.iter().filter_map(|i| Some((&i.id, i.fact()?))) {
        b.set_fact(input, fact);
    }
    batch_norm::facts(&mut b);
    b.reserve(freed.iter().cloned());
    b.set_scope("loss");
    let (loss, classes) = loss_of(&mut b, working, plan, &outputs)?;
    let one = b.scalar_like(&loss, 1.0);
    b.set_scope("");
    let wrt = [&names[..], &read].concat();
    let gradients = autodiff::backward(&mut b, &[(loss.clone(), one)], &wrt)?;
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
                    None => zeros(&mut b, &weight.value),
                };
                b.output_as(&format!("{}.{GRADIENT}", weight.name), &gradient);
            }
            for (value, read) in plan.values.iter().zip(&read) {
                let gradient = gradients.get(read).cloned().unwrap_or_else(|| b.zeros_like(read));
                // An input that nothing reads is still in half precision.
                let gradient = wide(&mut b, &gradient);
                b.output_as(&format!("{value}.{GRADIENT}"), &gradient);
            }
        }
        Form::Step(_) => {
            let moved = |w: &&Chosen| Some(((*w).clone(), gradients.get(&w.name)?.clone()));
            moving.weights.extend(here.iter().filter_map(moved));
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
    moving.weights.iter().for_each(|(_, gradient)| b.output(gradient));
    moving.statistics.iter().for_each(|(statistic, _)| b.output(&statistic.next));
}

/// The whole of what was asked for, from a graph of [`emit`] or what is general about several: for a step with the update,
/// next weights, moments and running statistics. Adds to the facts those of new values. Gives what goes from step to step,
/// with its first values.
pub fn finish(graph: Graph, facts: &mut Facts, moving: Moving, plan: &Plan) -> (Graph, Vec<Slot>) {
    let Form::Step(optimizer) = &plan.form else { return (graph, vec![]) };
    let mut b = Builder::on(graph, std::mem::take(facts));
    let own = b.graph().inputs.len() - moving.initial().count();
    b.graph_mut().inputs.truncate(own);
    b.graph_mut().outputs.truncate(1);
    let mut state = optimizer::emit(&mut b, optimizer, &plan.names, &moving.weights);
    for (statistic, initial) in moving.statistics {
        b.graph_mut().inputs.push(ValueInfo::new(statistic.name.clone(), &Fact::of(&initial)));
        optimizer::next_value(&mut b, statistic.name.as_str(), &statistic.next, initial, &mut state);
    }
    let graph;
    (graph, *facts) = b.finish();
    (graph, state)
}

/// A value in the type that the working graph computes in: inputs in half precision are cast before anything reads them.
fn in_float32(graph: &Graph, value: &ValueId) -> ValueId {
    let half =
        graph.inputs.iter().any(|i| i.id == *value && matches!(i.dtype, Some(DType::F16 | DType::BF16)));
    let cast = graph.nodes.iter().find(|n| half && n.is("Cast") && n.input(0) == Some(value));
    cast.and_then(|n| n.output(0)).unwrap_or(value).clone()
}

fn zeros(b: &mut Builder, like: &Tensor) -> ValueId {
    let zero = b.constant(Tensor::scalar(like.dtype(), 0.0));
    b.expand(&zero, like.shape())
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
