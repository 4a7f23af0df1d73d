//! A model file made ready for training: prepared, lifted to batches, with its facts, weights and head.

use super::align::Alignment;
use super::batch_norm;
use super::dropout::{self, Drops};
pub use super::head::Head;
use super::head::{find_head, no_answer};
use super::model_step::{self, ModelStep, Objective};
use crate::autodiff::facts::{probe, unrunnable};
use crate::autodiff::prepare::{self, Kept, Lifting};
use crate::autodiff::recompute::Budget;
use crate::data::{Dataset, Layout};
use crate::error::{Error, Result, ResultExt};
use crate::onnx::{Dim, Fact, Facts, Forms, Graph, Model, ModelFile, Tensor, ValueId, ValueInfo};
use crate::params::{ParamGraph, Role, WeightId};
use crate::patterns::Patterns;
use crate::runtime::Executor;
use std::path::Path;
use std::sync::Arc;

/// A model that can be run on batches, differentiated, and written back.
pub struct Network {
    pub file: Arc<ModelFile>,
    /// The working graph: plain operators of opset 18 or later, for [`Network::batch`] rows.
    pub model: Model,
    pub facts: Facts,
    /// Rows a run sees: the batch asked for, or 1 where the batch dimension couldn't be freed.
    pub batch: usize,
    pub lifting: Lifting,
    /// What must be fed, in the order of the graph's inputs.
    pub inputs: Vec<(ValueId, Fact)>,
    pub head: Head,
    pub params: ParamGraph,
    /// Running statistics that follow those of the batch in training; none unless [asked for](Network::train_norms).
    pub following: Vec<ValueId>,
    /// What steps' values are to be brought down to.
    pub recompute: Option<Budget>,
    /// Random numbers that its steps are fed; none unless opened [for that](Purpose::dropout).
    pub drops: Drops,
    /// Those of the executor that it was opened with.
    forms: Forms,
}

/// What a model is opened for.
#[derive(Clone, Copy, Default)]
pub struct Purpose<'a> {
    /// Dimensions that the file leaves open are taken from its rows, where those fit.
    pub data: Option<&'a Dataset>,
    /// The output that is compared with labels; the first that can be, where none is named.
    pub of: Option<&'a str>,
    /// Whether its `Dropout` is to drop in training steps.
    pub dropout: bool,
}

impl<'a> Purpose<'a> {
    pub fn on(data: &'a Dataset) -> Self {
        Self { data: Some(data), ..Self::default() }
    }
}

impl Network {
    /// Reads `path` and prepares it for `batch` rows of the data in `purpose`.
    ///
    /// # Errors
    /// A file that can't be read, run or prepared, or that has no such output with an answer for each row.
    pub fn open(path: &Path, batch: usize, purpose: Purpose<'_>, executor: &dyn Executor) -> Result<Self> {
        Self::open_source(path, batch, purpose, executor)?.answering(purpose)
    }

    /// The same for a model whose weights are what matters: where no output answers row by row, its head is
    /// [empty](Head::is_empty).
    pub fn open_source(
        path: &Path,
        batch: usize,
        purpose: Purpose<'_>,
        executor: &dyn Executor,
    ) -> Result<Self> {
        let file = Arc::new(crate::onnx::read(path)?);
        file.check_finite()?;
        Self::of_file(file, batch, purpose, executor)
    }

    /// The same model for another number of rows.
    pub fn for_rows(self, batch: usize, purpose: Purpose<'_>, executor: &dyn Executor) -> Result<Self> {
        Self::of_file(self.file, batch, purpose, executor)?.answering(purpose)
    }

    fn of_file(
        file: Arc<ModelFile>,
        batch: usize,
        purpose: Purpose<'_>,
        executor: &dyn Executor,
    ) -> Result<Self> {
        let path = file.path.display().to_string();
        let declared: Vec<ValueInfo> = file.model.graph.required_inputs().cloned().collect();
        let bound = purpose.data.and_then(|d| d.bind(&declared).ok());
        let rows = bound.map(|b| b.facts(1)).unwrap_or_default();
        let network = Self::prepare(file, batch, (&rows, purpose), executor)
            .map_err(|e| unrunnable(e).context(path))?;
        match purpose.dropout && network.drops.is_empty() {
            true => Err(dropout::none_in(&network.file.path)),
            false => Ok(network),
        }
    }

    /// Itself, if an output answers row by row.
    fn answering(self, purpose: Purpose<'_>) -> Result<Self> {
        match self.head.is_empty() {
            true => Err(no_answer(&self.model.graph, &self.facts, self.batch, purpose.of)
                .context(self.file.path.display().to_string())),
            false => Ok(self),
        }
    }

    /// Why training must run single rows, where it must.
    pub fn single_rows_because(&self) -> Option<&str> {
        match &self.lifting {
            Lifting::SingleRows { why } => Some(why),
            _ => None,
        }
    }

    fn prepare(
        file: Arc<ModelFile>,
        batch: usize,
        (rows, purpose): (&[(ValueId, Fact)], Purpose<'_>),
        executor: &dyn Executor,
    ) -> Result<Self> {
        let upgraded = match purpose.dropout {
            true => prepare::upgrade_with_dropout(&file.model, Kept::Idle)?,
            false => prepare::upgrade(&file.model)?,
        };
        let mut model = prepare::widen(&upgraded);
        settle_inputs(&mut model.graph, rows);
        let lifted = prepare::lift(&model, batch, executor)?;
        let batch = if matches!(lifted.lifting, Lifting::SingleRows { .. }) { 1 } else { batch };
        let model = lifted.model;
        let probed = probe(executor, &model, &lifted.example)?;
        let mut model = prepare::specialise(&model, &probed)?;
        let mut probed = probe(executor, &model, &lifted.example)?;
        let inputs = input_facts(&model.graph, &probed.facts)?;
        let params = ParamGraph::extract(&model, &probed.facts)?;
        let head = find_head(&mut model.graph, &mut probed.facts, batch, &lifted.by_rows, purpose.of);
        let head = head.unwrap_or_default();
        let (facts, lifting, forms) = (probed.facts, lifted.lifting, executor.forms());
        let (following, recompute) = (vec![], None);
        let drops = Drops::of(&model.graph, &facts, batch);
        Ok(Self {
            file,
            model,
            facts,
            batch,
            lifting,
            inputs,
            head,
            params,
            following,
            recompute,
            drops,
            forms,
        })
    }

    /// Classes lie as labels say. A model that answers with one number for each label, the chance or the logit of the second of two
    /// classes, then answers with logits of both.
    pub fn lay_out(&mut self, layout: Layout) {
        self.head.lay_out(layout, &mut self.model.graph, &mut self.facts, self.batch);
    }

    /// Refuses a model whose answers to the same rows differ from run to run: nothing that is measured could be trusted.
    pub fn check_repeatable(&self) -> Result<()> {
        let mut graph = self.model.graph.clone();
        graph.outputs = vec![ValueInfo { id: self.head.answer.clone(), dtype: None, shape: None }];
        graph.prune();
        let Some(node) = prepare::random_node(&graph) else { return Ok(()) };
        let error = Error::node(
            node,
            "gives something else in each run, so that nothing measured can be trusted",
        )
        .hint(
            "export the model in evaluation mode, where random nodes are left out or stand for their means",
        );
        Err(error.context(self.file.path.display().to_string()))
    }

    /// Bytes that the forward pass makes of each row.
    pub fn row_bytes(&self) -> usize {
        let made = self.model.graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten());
        made.filter_map(|id| self.facts.get(id)).map(Fact::bytes).sum::<usize>() / self.batch.max(1)
    }
    /// Bytes of all weights that training changes.
    pub fn weight_bytes(&self) -> usize {
        self.weights().iter().filter_map(|id| self.facts.get(id)).map(Fact::bytes).sum()
    }

    /// The initial values of all trainable weights that `freeze` doesn't name, in the parameter graph's order.
    ///
    /// # Errors
    /// When nothing is left to train, or a pattern matches nothing.
    pub fn trainable(&self, freeze: &[String]) -> Result<Vec<(ValueId, Tensor)>> {
        let frozen = self.named(freeze, "--freeze")?;
        let trained: Vec<(ValueId, Tensor)> = self
            .params
            .weights
            .iter()
            .filter(|w| is_trained(w.role) && w.dtype.is_float() && w.site.is_some())
            .filter(|w| !frozen.iter().any(|&id| self.params.weight(id).name == w.name))
            .filter_map(|w| Some((w.name.clone(), self.model.graph.initializers.get(&w.name)?.clone())))
            .collect();
        if trained.is_empty() {
            return Err(Error::model(&self.file.path, "has no trainable weights").hint(
                "a target needs float weights in layers such as Conv, Gemm, MatMul; see `onnx-merge inspect`",
            ));
        }
        Ok(trained)
    }

    /// The weights whose names match any of the patterns that `option` gave.
    ///
    /// # Errors
    /// When a pattern isn't one, or matches nothing.
    pub fn named(&self, patterns: &[String], option: &str) -> Result<Vec<WeightId>> {
        let mut found = vec![];
        for pattern in patterns {
            let names = Patterns::new(&[pattern])?;
            let weights = self.params.weights.iter().enumerate();
            let matching = weights.filter(|(_, w)| names.matches(w.name.as_str())).map(|(i, _)| WeightId(i));
            let before = found.len();
            found.extend(matching);
            if found.len() == before {
                let what = format!("{option} '{pattern}' matches no weight of {}", self.file.path.display());
                return Err(Error::usage(what).hint("`onnx-merge inspect` lists the weights' names"));
            }
        }
        Ok(found)
    }

    /// Makes training normalise by the statistics of each batch, but for layers with a statistic that `freeze` names.
    ///
    /// # Errors
    /// Where there is no such layer, or where a run has a single row.
    pub fn train_norms(&mut self, freeze: &[String]) -> Result<()> {
        let frozen = Patterns::new(freeze)?;
        let initializers = &self.model.graph.initializers;
        let stored = |id: &ValueId| initializers.get(id).is_some_and(|t| t.site.is_some());
        let free = |id: &ValueId| stored(id) && !frozen.matches(id.as_str());
        let following = batch_norm::statistics(&self.model.graph, free);
        batch_norm::check(&self.file.path, &following, self.batch, self.single_rows_because())?;
        self.following = following;
        Ok(())
    }

    /// The weights that training changes, whether or not their bytes can be found in the file.
    pub fn weights(&self) -> Vec<ValueId> {
        let trained = self.params.weights.iter().filter(|w| is_trained(w.role) && w.dtype.is_float());
        let names = trained.map(|w| w.name.clone());
        names.filter(|name| self.model.graph.initializers.contains_key(name)).collect()
    }

    /// The model step for `objective` with respect to `weights`.
    pub fn step(&self, weights: &[ValueId], objective: Objective) -> Result<ModelStep> {
        self.aligned_step(weights, objective, &[], 0.0)
    }

    /// The same with `share` times the alignment terms in the loss.
    pub fn aligned_step(
        &self,
        weights: &[ValueId],
        objective: Objective,
        alignments: &[&Alignment],
        share: f64,
    ) -> Result<ModelStep> {
        let (answer, terms) = (&self.head.answer, (alignments, share));
        let weights = (weights, &self.following[..]);
        let step = model_step::build(&self.model, &self.facts, weights, answer, objective, terms, self.forms)
            .context(|| self.file.path.display().to_string())?;
        Ok(match self.recompute {
            Some(budget) => step.recomputing(budget),
            None => step,
        })
    }

    /// The forward pass: the batch, then `weights`, in; the answer out.
    pub fn forward(&self, weights: &[ValueId]) -> Result<(Model, Facts)> {
        model_step::forward(&self.model, &self.facts, weights, std::slice::from_ref(&self.head.answer))
    }
}

fn is_trained(role: Role) -> bool {
    !matches!(role, Role::RunningStat | Role::Other)
}

/// Fills in dimensions that the file leaves open, all but the first, from facts for a batch of one.
fn settle_inputs(graph: &mut Graph, rows: &[(ValueId, Fact)]) {
    for input in &mut graph.inputs {
        let Some((_, fact)) = rows.iter().find(|(id, _)| *id == input.id) else { continue };
        let Some(shape) = input.shape.as_mut().filter(|s| s.len() == fact.rank()) else { continue };
        for (dim, &size) in shape.iter_mut().zip(&fact.shape).skip(1) {
            if !matches!(dim, Dim::Known(_)) {
                *dim = Dim::Known(size);
            }
        }
    }
}

fn input_facts(graph: &Graph, facts: &Facts) -> Result<Vec<(ValueId, Fact)>> {
    let fact = |id: &ValueId| {
        facts.get(id).cloned().ok_or_else(|| Error::tensor(id.as_str(), "is an input of unknown shape"))
    };
    graph.required_inputs().map(|i| Ok((i.id.clone(), fact(&i.id)?))).collect()
}
