//! The model step: a batch and the weights in; the loss and its gradient with respect to the weights out.

use super::align::{Alignment, Term};
use super::batch_norm::{self, Statistic};
use super::dropout;
use super::loss::{self, Counting};
use crate::autodiff;
use crate::autodiff::recompute::{Budget, Saving, Whole, recompute};
use crate::data::{IGNORED, Layout};
use crate::error::{Error, Result};
use crate::onnx::{Builder, DType, Fact, Facts, Forms, Graph, Model, Tensor, ValueId, ValueInfo};
use std::collections::HashSet;

/// What the loss compares the model's answer with. Classes lie as `layout` says; some labels may be [`IGNORED`] where it
/// `ignores`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Objective {
    /// Cross-entropy with int64 class labels.
    Classes { layout: Layout, ignores: bool },
    /// Mean squared error against vectors of `width` numbers a row.
    Vectors { width: usize },
    /// The source's answer alone: distillation where it is logits, mean squared error otherwise.
    Teacher { layout: Layout, logits: bool, temperature: f64 },
    /// Cross-entropy blended with distillation from logits: (1 − α)·CE + α·T²·KL.
    ClassesAndTeacher { layout: Layout, ignores: bool, temperature: f64, alpha: f64 },
    /// Mean squared errors against vectors and against the source's answer: (1 − α)·‖z − y‖² + α·‖z − t‖².
    VectorsAndTeacher { width: usize, alpha: f64 },
    /// Nothing but the alignment terms.
    AlignmentAlone,
}

impl Objective {
    pub fn wants_labels(self) -> bool {
        !matches!(self, Objective::Teacher { .. } | Objective::AlignmentAlone)
    }
    /// Whether some labels don't count.
    pub fn ignores(self) -> bool {
        matches!(
            self,
            Objective::Classes { ignores: true, .. } | Objective::ClassesAndTeacher { ignores: true, .. }
        )
    }
    pub fn wants_teacher(self) -> bool {
        use Objective::*;
        matches!(self, Teacher { .. } | ClassesAndTeacher { .. } | VectorsAndTeacher { .. })
    }
}

/// A differentiated model. The graph's inputs are the model's own, then random numbers (one a `Dropout` that drops), `labels`, `counted` (by how much sums over labels are divided)
/// and `teacher` (where the objective wants them), the source's activations (one an alignment), the weights in the order given, and the maps (one an
/// alignment); its outputs are the loss, then a gradient a weight, then a gradient a map, then what the batch's mean or variance was
/// for each running statistic that follows.
pub struct ModelStep {
    pub model: Model,
    pub facts: Facts,
    /// The weights that influence the loss, in the order of inputs and gradients.
    pub weights: Vec<ValueId>,
    /// The inputs for maps.
    pub maps: Vec<ValueId>,
    /// Running statistics that follow those of the batch.
    pub statistics: Vec<Statistic>,
    /// What recomputation comes to, where that was asked for.
    pub saving: Option<Saving>,
}

impl ModelStep {
    /// The same with as much of the forward pass computed again as `budget` demands.
    pub fn recomputing(mut self, budget: Budget) -> Self {
        let outputs: Vec<ValueId> = self.model.graph.outputs.iter().map(|o| o.id.clone()).collect();
        let gradients = 1..outputs.len() - self.statistics.len();
        let ends = outputs.iter().enumerate().filter(|(i, _)| !gradients.contains(i));
        let ends: Vec<ValueId> = ends.map(|(_, id)| id.clone()).collect();
        let graph = std::mem::take(&mut self.model.graph);
        let saving;
        (self.model.graph, self.facts, saving) =
            recompute(Whole { graph, facts: self.facts, ends: &ends }, None, budget);
        self.saving = Some(saving);
        self
    }
}

/// Name of the step graph's input for labels, where no value of the model is called so.
pub const LABELS: &str = "merge.labels";
pub const COUNTED: &str = "merge.counted";
pub const TEACHER: &str = "merge.teacher";

/// Turns the initializers `weights` into inputs, which come after the graph's own.
///
/// An initializer that is also an input is a constant to some runtimes, so each weight is exactly one of them.
pub fn free_weights(graph: &mut Graph, facts: &Facts, weights: &[ValueId]) -> Result<()> {
    let own: Vec<ValueInfo> = graph.required_inputs().cloned().collect();
    graph.inputs = own;
    for weight in weights {
        let tensor = graph
            .initializers
            .get(weight)
            .ok_or_else(|| Error::tensor(weight.as_str(), "is not an initializer of the prepared graph"))?;
        debug_assert!(facts.get(weight).is_none_or(|f| f.shape == tensor.shape()));
        graph.inputs.push(ValueInfo::new(weight.clone(), &Fact::of(tensor)));
    }
    let freed: HashSet<&ValueId> = weights.iter().collect();
    graph.initializers.retain(|id, _| !freed.contains(id));
    Ok(())
}

/// The forward pass with its weights as inputs (after the model's own) and `outputs` as outputs.
pub fn forward(
    model: &Model,
    facts: &Facts,
    weights: &[ValueId],
    outputs: &[ValueId],
) -> Result<(Model, Facts)> {
    let mut model = model.clone();
    model.graph.name = "forward".to_owned();
    free_weights(&mut model.graph, facts, weights)?;
    let mut facts = facts.clone();
    for info in &model.graph.inputs {
        if let Some(fact) = info.fact() {
            facts.insert(info.id.clone(), fact);
        }
    }
    let (graph, facts) = {
        let mut b = Builder::on(model.graph, facts);
        b.graph_mut().outputs.clear();
        for (i, output) in outputs.iter().enumerate() {
            b.output_as(&format!("merge.out{i}"), output);
        }
        b.finish()
    };
    let (graph, facts) = autodiff::lower::lower(graph, facts)?;
    model.graph = graph;
    Ok((model, facts))
}

/// Builds the model step. `answer` is the value the loss looks at: rows × classes of logits, or any shape of
/// rows × … for vectors. `share` of the alignment terms is added to the loss. Layers whose running statistics are among
/// `following` normalise by the batch. `forms` are those of the executor that will run the step.
pub fn build(
    model: &Model,
    facts: &Facts,
    (weights, following): (&[ValueId], &[ValueId]),
    answer: &ValueId,
    objective: Objective,
    (alignments, share): (&[&Alignment], f64),
    forms: Forms,
) -> Result<ModelStep> {
    let mut model = model.clone();
    let mut graph = std::mem::take(&mut model.graph);
    graph.name = "model step".to_owned();
    graph.inputs = graph.required_inputs().cloned().collect();
    let (mut graph, facts) = dropout::fed(graph, facts.clone());
    let facts = &facts;
    let own = graph.required_inputs().count();
    let statistics = batch_norm::to_training(&mut graph, |id| following.contains(id));
    batch_norm::report_batch(&mut graph);
    let constants = graph.initializers.clone();
    free_weights(&mut graph, facts, weights)?;
    let mut b = Builder::on(graph, facts.clone());
    b.forms = forms;
    for info in b.graph().inputs.clone() {
        if let (Some(fact), false) = (info.fact(), facts.contains_key(&info.id)) {
            b.set_fact(&info.id, fact);
        }
    }
    batch_norm::facts(&mut b);
    b.graph_mut().outputs.clear();
    let frees = b.graph_mut().inputs.split_off(own);
    b.set_scope("loss");
    let mut loss = emit_loss(&mut b, answer, objective);
    let mut terms: Vec<Term<'_>> =
        alignments.iter().enumerate().map(|(i, a)| Term::declare(&mut b, i, a)).collect();
    b.graph_mut().inputs.extend(frees);
    let maps: Vec<ValueId> =
        terms.iter_mut().enumerate().map(|(i, term)| term.declare_map(&mut b, i)).collect();
    let one = b.scalar_like(&loss, 1.0);
    let mut seeds = vec![(loss.clone(), one)];
    for term in &terms {
        let Some((term, cotangents)) = term.emit(&mut b, share / terms.len() as f64) else { continue };
        let term = b.cast(&term, b.dtype(&loss));
        loss = b.add(&loss, &term);
        seeds.extend(cotangents);
    }
    b.set_scope("");
    let wanted = [weights, &maps].concat();
    let gradients = autodiff::backward(&mut b, &seeds, &wanted)?;
    b.output_as("merge.loss", &loss);
    let reached: Vec<ValueId> = weights.iter().filter(|w| gradients.contains_key(*w)).cloned().collect();
    for weight in &reached {
        b.output_as(&format!("{weight}.grad"), &gradients[weight]);
    }
    for map in &maps {
        let gradient = match gradients.get(map) {
            Some(gradient) => gradient.clone(),
            None => b.zeros_like(map),
        };
        b.output_as(&format!("{map}.grad"), &gradient);
    }
    for statistic in &statistics {
        b.output_as(&format!("{}.batch", statistic.name), &statistic.next);
    }
    let (mut graph, facts) = b.finish();
    // A weight that the loss depends on only through comparisons or indices goes back to being a constant.
    let idle: Vec<&ValueId> = weights.iter().filter(|w| !gradients.contains_key(*w)).collect();
    let constant: HashSet<&ValueId> = idle.iter().copied().collect();
    graph.inputs.retain(|input| !constant.contains(&input.id));
    graph.initializers.extend(idle.into_iter().map(|weight| (weight.clone(), constants[weight].clone())));
    graph.prune();
    let (graph, facts) = autodiff::lower::lower(graph, facts)?;
    model.graph = graph;
    Ok(ModelStep { model, facts, weights: reached, maps, statistics, saving: None })
}

fn emit_loss(b: &mut Builder, answer: &ValueId, objective: Objective) -> ValueId {
    let shape = b.shape(answer);
    let rows = shape[0];
    let width = shape[1..].iter().product();
    let flat = b.reshape(answer, &[rows, width]);
    let flat = if b.dtype(&flat) == DType::F64 { flat } else { b.cast(&flat, DType::F32) };
    let dtype = b.dtype(&flat);
    let vectors = |b: &mut Builder| b.input(LABELS, Fact::new(dtype, &[rows, width]));
    let teacher = |b: &mut Builder| b.input(TEACHER, Fact::new(DType::F32, &[rows, width]));
    // Logits, their labels, and which of these count.
    let classes = |b: &mut Builder, layout: Layout, ignores: bool| {
        let logits = b.reshape(&flat, &layout.shape(rows));
        let labels = b.input(LABELS, Fact::new(DType::I64, &layout.label_shape(rows)));
        let counting = ignores.then(|| {
            let count = b.input(COUNTED, Fact::new(DType::F32, &[]));
            Counting::new(b, &logits, &labels, IGNORED, Some(&count))
        });
        (logits, labels, counting)
    };
    match objective {
        Objective::Classes { layout, ignores } => {
            let (logits, labels, counting) = classes(b, layout, ignores);
            loss::cross_entropy(b, &logits, &labels, counting.as_ref())
        }
        Objective::Vectors { .. } => {
            let wanted = vectors(b);
            loss::mean_squared_error(b, &flat, &wanted)
        }
        Objective::Teacher { layout, logits: true, temperature } => {
            let teacher = teacher(b);
            let [logits, teacher] = [&flat, &teacher].map(|z| b.reshape(z, &layout.shape(rows)));
            loss::distillation(b, &logits, &teacher, temperature, None)
        }
        Objective::Teacher { .. } => {
            let teacher = teacher(b);
            let teacher = b.cast(&teacher, dtype);
            loss::mean_squared_error(b, &flat, &teacher)
        }
        Objective::VectorsAndTeacher { alpha, .. } => {
            let wanted = vectors(b);
            let teacher = teacher(b);
            let teacher = b.cast(&teacher, dtype);
            let hard = loss::mean_squared_error(b, &flat, &wanted);
            let soft = loss::mean_squared_error(b, &flat, &teacher);
            loss::blend(b, &hard, &soft, alpha)
        }
        Objective::AlignmentAlone => b.constant(Tensor::zeros(DType::F32, &[])),
        Objective::ClassesAndTeacher { layout, ignores, temperature, alpha } => {
            let (logits, labels, counting) = classes(b, layout, ignores);
            let teacher = teacher(b);
            let teacher = b.reshape(&teacher, &layout.shape(rows));
            let hard = loss::cross_entropy(b, &logits, &labels, counting.as_ref());
            let soft = loss::distillation(b, &logits, &teacher, temperature, counting.as_ref());
            loss::blend(b, &hard, &soft, alpha)
        }
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::runtime::{Executor, TractExecutor, Value};

    #[test]
    fn vectors_and_a_teacher_count_by_their_shares() -> Result<()> {
        let mut b = Builder::new("test");
        let x = b.input("x", Fact::new(DType::F32, &[2, 2]));
        let loss = emit_loss(&mut b, &x, Objective::VectorsAndTeacher { width: 2, alpha: 0.75 });
        b.output_as("loss", &loss);
        let (graph, facts) = b.finish();
        let inputs: Vec<&str> = graph.inputs.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(inputs, ["x", LABELS, TEACHER]);
        let model = Model::new(graph, crate::onnx::WORKING_OPSET);
        let feed = |values: [f32; 4]| Value::host(Tensor::f32(&[2, 2], &values));
        let feeds = [feed([1.0, 2.0, 3.0, 4.0]), feed([1.0, 2.0, 3.0, 8.0]), feed([1.0, 0.0, 3.0, 4.0])];
        let loss = TractExecutor::new(1)?.compile(&model, &facts)?.run(&feeds)?[0].scalar()?;
        assert!((loss - (0.25 * 4.0 + 0.75 * 1.0)).abs() < 1e-6, "{loss}");
        Ok(())
    }
}
