//! From a working graph to a loss and the gradients of weights, or to a whole training step.
//!
//! Knows fixed shapes only; [`super::generalise`] opens them again. Look at [`emit`].

use super::names::{GRADIENT, Names};
use super::optimizer::{self, Optimizer, Slot};
use super::sizes::Working;
use super::weights::Chosen;
use super::{Form, LossKind};
use crate::autodiff;
use crate::error::{Error, Result};
use crate::onnx::{Builder, DType, Fact, Facts, Graph, Tensor, ValueId, ValueInfo};
use crate::train::batch_norm;
use crate::train::head::{logits_before, rows_of};
use crate::train::loss;
use crate::train::model_step::free_weights;
use std::collections::HashSet;

/// What is built, whatever the sizes.
pub struct Plan {
    pub loss: LossKind,
    pub form: Form,
    pub names: Names,
    /// The output that `label` is compared with, where one was named.
    pub output: Option<ValueId>,
    pub weights: Vec<Chosen>,
    pub train_bn: bool,
}

/// What came of it.
pub struct Emitted {
    pub graph: Graph,
    pub facts: Facts,
    /// What goes from step to step, with its first values.
    pub state: Vec<Slot>,
    /// Weights that the loss doesn't depend on.
    pub idle: Vec<ValueId>,
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
    let loss = loss_of(&mut b, working, plan, &outputs)?;
    let one = b.scalar_like(&loss, 1.0);
    b.set_scope("");
    let gradients = autodiff::backward(&mut b, &[(loss.clone(), one)], &names)?;
    b.output_as(&plan.names.loss, &loss);
    let idle: Vec<ValueId> =
        plan.weights.iter().map(|w| w.name.clone()).filter(|w| !gradients.contains_key(w)).collect();
    let mut state = vec![];
    match &plan.form {
        Form::Gradients => {
            for weight in &plan.weights {
                let gradient = match gradients.get(&weight.name) {
                    Some(gradient) => gradient.clone(),
                    None => zeros(&mut b, &weight.value),
                };
                b.output_as(&format!("{}.{GRADIENT}", weight.name), &gradient);
            }
        }
        Form::Step(optimizer) => {
            let moved = |w: &&Chosen| Some(((*w).clone(), gradients.get(&w.name)?.clone()));
            let moved: Vec<(Chosen, ValueId)> = here.iter().filter_map(moved).collect();
            state = step(&mut b, optimizer, plan, &moved, &statistics, &constants);
        }
    }
    let (mut graph, facts) = b.finish();
    // What was freed and doesn't move goes back to being a constant.
    let moving: HashSet<&str> = state.iter().map(|s| s.name.as_str()).collect();
    for id in freed.iter().filter(|id| !moving.contains(id.as_str())) {
        graph.initializers.insert(id.clone(), constants[id].clone());
    }
    graph.prune();
    let (graph, facts) = autodiff::lower::lower(graph, facts)?;
    Ok(Emitted { graph, facts, state, idle })
}

/// The update: next weights, moments and running statistics.
fn step(
    b: &mut Builder,
    optimizer: &Optimizer,
    plan: &Plan,
    moved: &[(Chosen, ValueId)],
    statistics: &[batch_norm::Statistic],
    constants: &indexmap::IndexMap<ValueId, Tensor>,
) -> Vec<Slot> {
    let mut state = optimizer::emit(b, optimizer, &plan.names, moved);
    let weights: HashSet<&ValueId> = moved.iter().map(|(w, _)| &w.name).collect();
    for statistic in statistics.iter().filter(|s| !weights.contains(&s.name)) {
        let Some(initial) = constants.get(&statistic.name).cloned() else { continue };
        b.graph_mut().inputs.push(ValueInfo::new(statistic.name.clone(), &Fact::of(&initial)));
        optimizer::next_value(b, statistic.name.as_str(), &statistic.next, initial, &mut state);
    }
    state
}

fn zeros(b: &mut Builder, like: &Tensor) -> ValueId {
    let zero = b.constant(Tensor::scalar(like.dtype(), 0.0));
    b.expand(&zero, like.shape())
}

fn nothing_real(outputs: &[ValueId]) -> Error {
    Error::tensor(list(outputs), "no output of the model has real values")
        .hint(crate::train::head::REAL_ANSWER)
}

fn loss_of(b: &mut Builder, working: &Working, plan: &Plan, outputs: &[ValueId]) -> Result<ValueId> {
    let real = |id: &ValueId| working.facts.get(id).is_some_and(|f| f.dtype.is_float() && !f.is_empty());
    if plan.loss == LossKind::Sum {
        let real: Vec<ValueId> = outputs.iter().filter(|id| real(id)).cloned().collect();
        return loss::sum_of(b, &real).ok_or_else(|| nothing_real(outputs));
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
            Ok(loss::mean_squared_error(b, &answer, &label))
        }
    }
}

/// From the logits where the output is their softmax, as training does.
fn cross_entropy(b: &mut Builder, working: &Working, plan: &Plan, output: &ValueId) -> Result<ValueId> {
    let answer =
        logits_before(&working.model.graph, &working.facts, output).unwrap_or_else(|| output.clone());
    let rows = rows_of(&working.facts, &answer).unwrap_or(1);
    let classes = b.fact(&answer).len() / rows.max(1);
    if classes < 2 {
        let what =
            format!("has shape {:?}: cross-entropy needs a row of two classes or more", b.shape(output));
        return Err(Error::tensor(output.as_str(), what)
            .hint("choose --loss mse or --loss sum, or another output with --of"));
    }
    let answer = b.reshape(&answer, &[rows, classes]);
    let answer = wide(b, &answer);
    let label = b.input(&plan.names.label, Fact::new(DType::I64, &[rows]));
    Ok(loss::cross_entropy(b, &answer, &label))
}

/// In float32, or float64 where it is that.
fn wide(b: &mut Builder, value: &ValueId) -> ValueId {
    if b.dtype(value) == DType::F64 { value.clone() } else { b.cast(value, DType::F32) }
}

fn list(ids: &[ValueId]) -> String {
    ids.iter().map(ValueId::as_str).collect::<Vec<_>>().join(", ")
}
