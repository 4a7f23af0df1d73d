//! The `grad` job: from a model file to a graph of standard operators that computes a loss and its gradients, or that
//! takes a whole training step, for any ONNX runtime.
//!
//! [`build`] is the way in. `sizes` makes the working graph for fixed sizes, `emit` differentiates it,
//! `generalise` opens the sizes again, which a graph built for other sizes proves, by its nodes or by a run beside it; then
//! comes what the `optimizer` does. Executors are used to probe and to prove.

mod emit;
mod formula;
mod generalise;
mod job;
mod mask;
pub mod names;
pub mod optimizer;
mod sizes;
mod sparse;
#[cfg(all(test, feature = "tract"))]
mod tests;
mod weights;

use crate::autodiff::facts::unrunnable;
use crate::autodiff::prepare::{self, Kept};
use crate::autodiff::recompute::{Budget, Saving};
use crate::error::{Error, Result};
use crate::onnx::{Dim, Graph, Model, ModelFile, Tensor, ValueId};
use crate::runtime::Executor;
use crate::train::dropout;
pub use emit::ClassAxis;
use job::Job;
use names::Names;
use optimizer::Optimizer;
use sizes::{Symbol, baked_batch};
use std::path::Path;

/// What is differentiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LossKind {
    /// Mean cross-entropy of int64 class labels, one a row or one for each of its positions.
    CrossEntropy,
    /// Mean squared error against values of the output's shape.
    MeanSquaredError,
    /// The sum of all elements of all float outputs; no labels.
    Sum,
}

/// What the graph gives.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Form {
    /// `loss` and `NAME.grad` of weights and values, the weights kept as constants.
    Gradients,
    /// `loss` and the next state: weights, moments and counter are inputs.
    Step(Optimizer),
}

/// What to build.
pub struct Request {
    /// Globs over names of weights, for [`Form::Gradients`] also of inputs, or the name of a value inside; none means all that
    /// training changes.
    pub wrt: Vec<String>,
    pub loss: LossKind,
    pub form: Form,
    /// Rows; `None` for any number, or the batch that the file fixes where that can't be freed.
    pub batch: Option<usize>,
    /// Shapes of inputs, `None` where a dimension stays as the file has it.
    pub shapes: Vec<(String, Vec<Option<usize>>)>,
    /// The output that labels are compared with; `None` for the first of real values.
    pub output: Option<String>,
    /// Axis of its classes for cross-entropy, counted with the batch's (from the end if negative); `None` for the usual one.
    pub class_axis: Option<i64>,
    /// The label of what cross-entropy leaves out.
    pub ignored: i64,
    /// Batch normalisation by the statistics of the batch.
    pub train_bn: bool,
    /// What the values inside are to be brought down to, by computing some of the forward pass again.
    pub recompute: Option<Budget>,
    /// The seed of `Dropout` that drops; `None` where it passes everything on.
    pub dropout: Option<u64>,
    /// Globs over the names of embedding tables whose gradients are to be rows of them, where they can; none means no table.
    pub sparse: Vec<String>,
}

impl Request {
    /// Of all weights, at whatever sizes the file leaves, as it was exported.
    pub fn new(loss: LossKind, form: Form) -> Self {
        Self {
            wrt: vec![],
            loss,
            form,
            batch: None,
            shapes: vec![],
            output: None,
            class_axis: None,
            ignored: crate::data::IGNORED,
            train_bn: false,
            recompute: None,
            dropout: None,
            sparse: vec![],
        }
    }
}

/// What was built.
pub struct Built {
    pub model: Model,
    /// First values of the state inputs, by name; empty for [`Form::Gradients`].
    pub state: Vec<(String, Tensor)>,
    /// The weights that have a gradient or are moved.
    pub weights: Vec<ValueId>,
    /// The inputs and the values inside that have a gradient.
    pub values: Vec<ValueId>,
    /// Of the weights and values asked for, those that the loss doesn't depend on.
    pub idle: Vec<ValueId>,
    /// Tables whose gradients are rows, and those that had to stay dense, with why.
    pub sparse: Vec<ValueId>,
    pub dense: Vec<(ValueId, String)>,
    /// Where the classes of cross-entropy lie, if there is a label for each position of a row.
    pub classes: Option<ClassAxis>,
    /// Names of dimensions that stayed open.
    pub open: Vec<String>,
    /// Dimensions that were to be open and have a size, and why.
    pub fixed: Vec<(String, usize)>,
    pub why_fixed: Option<String>,
    pub names: Names,
    /// What recomputation comes to, where that was asked for: for [`USUAL_ROWS`] and small other sizes where these are open.
    pub saving: Option<Saving>,
}

/// Rows that memory is planned for where their number is open: the main job's default.
pub const USUAL_ROWS: usize = 64;

/// Builds the graph that `request` asks for.
///
/// # Errors
/// [`Error::Usage`] for patterns and names that match nothing; [`Error::Node`] for an operator without a gradient
/// between the weights and the loss, with its domain and version; what the executor says where it can't run the model.
pub fn build(file: &ModelFile, request: &Request, executor: &dyn Executor) -> Result<Built> {
    let upgraded = match request.dropout {
        Some(_) => prepare::upgrade_with_dropout(&file.model, Kept::All)?,
        None => prepare::upgrade(&file.model)?,
    };
    if request.dropout.is_some() && !dropout::any(&upgraded.graph) {
        return Err(dropout::none_in(&file.path));
    }
    let mut model = prepare::widen(&upgraded);
    let names = Names::free_in(&model.graph);
    let renamed = names.clear(&mut model.graph);
    let output = request.output.as_ref().map(|name| {
        let id = ValueId::new(name);
        renamed.get(&id).cloned().unwrap_or(id)
    });
    let baked = baked_batch(&model.graph).filter(|(batch, _)| !is_asked_for(batch, &request.shapes));
    set_shapes(&mut model.graph, &request.shapes)?;
    let mut job = Job { file, model, baked, request, executor, names, output, why: None, stuck: None };
    job.run().map_err(|e| match with_version(unrunnable(e), file) {
        named if names_file(&named) => named,
        other => other.context(file.path.display().to_string()),
    })
}

/// Whether an error is about the command line, or says itself which file it is about.
fn names_file(error: &Error) -> bool {
    match error {
        Error::Usage { .. } | Error::Model { .. } => true,
        Error::Hint { source, .. } => names_file(source),
        _ => false,
    }
}

/// Whether `shapes` give a size to an axis of `symbol`.
fn is_asked_for(symbol: &Symbol, shapes: &[(String, Vec<Option<usize>>)]) -> bool {
    let given = |id: &ValueId, axis: usize| {
        shapes.iter().any(|(name, sizes)| name == id.as_str() && sizes.get(axis).is_some_and(Option::is_some))
    };
    symbol.places.iter().any(|(id, axis)| given(id, *axis))
}

fn set_shapes(graph: &mut Graph, shapes: &[(String, Vec<Option<usize>>)]) -> Result<()> {
    let known: Vec<String> = graph.required_inputs().map(|i| i.id.to_string()).collect();
    for (name, sizes) in shapes {
        let refuse = |what: String| Err(Error::usage(format!("--shape {name}: {what}")));
        let Some(input) = graph.inputs.iter_mut().find(|i| i.id.as_str() == name) else {
            return refuse(format!("the model has no such input, only {}", known.join(", ")));
        };
        let dims = input.shape.get_or_insert_with(|| vec![Dim::Unknown; sizes.len()]);
        if dims.len() != sizes.len() {
            return refuse(format!("the input has {} dimensions, not {}", dims.len(), sizes.len()));
        }
        for (dim, size) in dims.iter_mut().zip(sizes) {
            match (&*dim, size) {
                (Dim::Known(own), Some(size)) if own != size => {
                    return refuse(format!("the file fixes {own} where {size} is asked for"));
                }
                (_, Some(size)) => *dim = Dim::Known(*size),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Names the version of an operator that stands in the way, and the options of this job.
fn with_version(error: Error, file: &ModelFile) -> Error {
    match error {
        Error::Node { node, op, what } => {
            let (domain, name) = op.split_once("::").unwrap_or(("", &op));
            let version = file.model.opsets.get(domain).copied();
            let domain = if domain.is_empty() { "ai.onnx" } else { domain };
            let op = match version {
                Some(version) => format!("{domain}::{name} of version {version}"),
                None => format!("{domain}::{name}"),
            };
            Error::Node { node, op, what }
        }
        Error::In { context, source } => Error::In { context, source: Box::new(with_version(*source, file)) },
        Error::Hint { source, hint } => {
            let hint = hint.replace(
                "freeze the weights before this node with --freeze GLOB",
                "name weights behind this node with --wrt GLOB",
            );
            Error::Hint { source: Box::new(with_version(*source, file)), hint }
        }
        other => other,
    }
}

/// Where a step graph's first state is written: beside it, as `.npz`.
pub fn state_path(graph: &Path) -> std::path::PathBuf {
    graph.with_extension("npz")
}

#[cfg(test)]
mod messages {
    use super::*;

    #[test]
    fn an_operator_without_a_gradient_is_named_with_domain_and_version() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/digits_mlp.onnx");
        let file = crate::onnx::read(path).unwrap();
        let node = |op: &str, domain: &str| {
            let node = crate::onnx::Node {
                domain: domain.into(),
                ..crate::onnx::Node::new(op, &[], &[&"y".into()])
            };
            let error = Error::node(&node, "has no gradient").hint("use --freeze GLOB").context("m.onnx");
            with_version(error, &file)
        };
        let version = file.model.opset();
        let text = node("Unique", "").to_string();
        assert_eq!(text, format!("m.onnx: node 'y' (ai.onnx::Unique of version {version}): has no gradient"));
        assert_eq!(
            node("Odd", "com.example").to_string(),
            "m.onnx: node 'y' (com.example::Odd): has no gradient"
        );
        assert_eq!(node("Odd", "com.example").exit_code(), 3);
    }
}
