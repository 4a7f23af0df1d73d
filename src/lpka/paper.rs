//! The preset `paper`: MergeNet's own training scheme (arXiv 2404.13322), in which the adapter's output *replaces* the target's weights.
//!
//! Every f steps (T_cycle) `W ← LPKA(W, S; θ)`; in between the target takes ordinary steps on its own loss. At the end of a
//! cycle θ follows the surrogate gradient of personalised hypernetworks (pFedHN, Shamsian et al. 2021): the VJP of
//! `LPKA(W, S; θ)` with the cotangent `LPKA(W, S; θ) − W_after`. The adapter of a weight is a stack of attentions of its rows
//! and columns over the rows and columns of one source matrix, the four averaged, behind a gate:
//!
//! ```text
//! X ← X + gate · ¼ Σ attention(rows | columns of X, rows | columns of S)
//! ```
//!
//! Attention weights are averaged over heads, value projections are products of two factors, and the feed-forward parts of
//! the reference are left out.

use super::lens::{Attended, Columns, Lens};
use super::optimizer::{self, Flats};
use super::parameters::{Base, ParamId, Parameters, Plan};
use super::structured::{rows_in, weight_of};
use super::tokens::{attention, normalised};
use super::update::{facts_of, outputs, run_once};
use super::{Means, Side, Transfer, UpdateProgram};
use crate::autodiff;
use crate::error::Result;
use crate::onnx::{Builder, DType, Fact, Model, Tensor, ValueId, WORKING_OPSET};
use crate::params::{Matrix, MatrixView, Pairing};
use crate::runtime::{Executor, State, Value};
use crate::train::{AdapterConfig, TrainConfig};

/// Steps from one replacement to the next unless the user says otherwise: the longest of the reference's, which has 1 to 5. At 1 the
/// weights run away from what they have learnt (docs/transfer.md).
const T_CYCLE: usize = 5;

/// The adapter of one weight.
struct Replacement {
    base: usize,
    view: MatrixView,
    /// Of the weight as it is stored, which the view may split otherwise.
    shape: Vec<usize>,
    /// Of the source weight.
    name: ValueId,
    /// Rows of the source matrix, and its columns, over its standard deviation.
    source: [Matrix; 2],
    stages: Vec<[Stage; 4]>,
    gate: ParamId,
    width: usize,
    heads: usize,
}

/// One attention.
struct Stage {
    query: ParamId,
    key: ParamId,
    value: (ParamId, ParamId),
}

/// Builds the update program of the preset.
pub(super) fn assemble(
    mut plan: Plan,
    sides: (&Side<'_>, &Side<'_>),
    pairing: &Pairing,
    config: &TrainConfig,
    gate: f64,
    executor: &dyn Executor,
) -> Result<UpdateProgram> {
    let own = plan.parameters.list.len();
    let adapters = replacements(&mut plan, sides, pairing, &config.adapter, gate);
    let (ours, theta) =
        (Flats::of(&plan.parameters, 0..own), Flats::of(&plan.parameters, own..plan.parameters.list.len()));
    let mut b = Builder::new("update");
    let gradients: Vec<ValueId> = (plan.bases.iter())
        .map(|base| b.input(&format!("grad/{}", base.weight), Fact::new(base.dtype, &base.shape)))
        .collect();
    let rate = b.input("learning_rate", Fact::new(DType::F32, &[]));
    let weights = ours.inputs(&mut b, "flat");
    let given = ours.inputs(&mut b, "given");
    let old_theta = theta.inputs(&mut b, "theta");
    let mut state = vec![];

    b.set_scope("target");
    let casts: Vec<Option<ValueId>> = gradients.iter().map(|g| Some(b.cast(g, DType::F32))).collect();
    let gathered = ours.gathered(&mut b, &casts);
    let after = optimizer::emit(&mut b, &ours, &weights, gathered, &rate, config, "target/", &mut state);

    b.set_scope("surrogate");
    let (given_views, after_views) = (ours.views(&mut b, &given), ours.views(&mut b, &after));
    let theta_views = theta.views(&mut b, &old_theta);
    let mut seeds = vec![];
    for adapter in &adapters {
        let replaced = adapter.emit(&mut b, &given_views, &theta_views, own);
        let error = b.sub(&replaced, &after_views[plan.bases[adapter.base].parameter.0]);
        seeds.push((replaced, error));
    }
    let cotangents = autodiff::backward(&mut b, &seeds, &theta_views)?;
    let cotangents: Vec<_> = theta_views.iter().map(|v| cotangents.get(v).cloned()).collect();
    let gathered = theta.gathered(&mut b, &cotangents);
    let first = state.len();
    let new_theta =
        optimizer::emit(&mut b, &theta, &old_theta, gathered, &rate, config, "theta/", &mut state);

    b.set_scope("replace");
    let theta_new_views = theta.views(&mut b, &new_theta);
    let mut views = after_views.clone();
    for adapter in &adapters {
        let place = plan.bases[adapter.base].parameter.0;
        views[place] = adapter.emit(&mut b, &after_views, &theta_new_views, own);
    }
    let replaced = ours.gathered(&mut b, &views.into_iter().map(Some).collect::<Vec<_>>());

    b.set_scope("cycle");
    let cycle = Cycle::new(&mut b, config.adapter.cycle.unwrap_or(T_CYCLE), &mut state);
    for moment in &mut state[first..] {
        // The counter's own state comes last and always moves.
        if moment.input.as_str() != CYCLE {
            moment.output = cycle.at_end(&mut b, &moment.output, &moment.input);
        }
    }
    let pairs = |inputs: &[ValueId], outputs: Vec<ValueId>, flats: &Flats| -> Vec<State> {
        let initial = flats.initial(&plan.parameters);
        let made = inputs.iter().zip(outputs).zip(initial);
        made.map(|((input, output), initial)| State { input: input.clone(), output, initial }).collect()
    };
    let select = |b: &mut Builder, new: &[ValueId], old: &[ValueId]| -> Vec<ValueId> {
        new.iter().zip(old).map(|(n, o)| cycle.at_end(b, n, o)).collect()
    };
    let next = select(&mut b, &replaced, &after);
    let kept = select(&mut b, &after, &given);
    let learnt = select(&mut b, &new_theta, &old_theta);
    let merged = ours.views(&mut b, &next);
    state.extend(pairs(&weights, next, &ours));
    state.extend(pairs(&given, kept, &ours));
    state.extend(pairs(&old_theta, learnt, &theta));
    b.set_scope("");
    // Identities: one value may be the next of several states.
    for (i, part) in state.iter_mut().enumerate() {
        part.output = b.output_as(&format!("next/{i}"), &part.output);
    }
    let merged = outputs(&mut b, &plan, "merged", merged);

    let initial = first_weights(&plan, &adapters, (&ours, &theta), own, executor)?;
    for part in &mut state {
        if let Some(flat) = weights.iter().position(|w| *w == part.input) {
            part.initial = initial.1[flat].clone();
        }
    }
    let (mut graph, facts) = b.finish();
    // Intermediate outputs that the optimiser declared for its own states are outputs under other names now.
    let wanted = |id: &ValueId| merged.contains(id) || state.iter().any(|s| s.output == *id);
    graph.outputs.retain(|o| wanted(&o.id));
    graph.prune();
    let names = || plan.bases.iter().map(|base| base.weight.clone());
    let merged: Vec<_> = names().zip(merged).collect();
    Ok(UpdateProgram {
        facts: facts_of(&graph, facts),
        model: Model::new(graph, WORKING_OPSET),
        gradients: names().zip(gradients).collect(),
        clean: merged.clone(),
        merged,
        state,
        learning_rate: rate,
        noise: vec![],
        restart: None,
        initial: names().zip(initial.0).collect(),
        adapter_parameters: plan.parameters.count() - plan.own,
        maps: vec![],
        transfers: plan.transfers,
        lens: Lens::new(|b| {
            let (weights, thetas) = (ours.inputs(b, "flat"), theta.inputs(b, "theta"));
            let (weights_views, thetas_views) = (ours.views(b, &weights), theta.views(b, &thetas));
            let seen =
                |adapter: &Replacement| adapter.attended(b, &weights_views, &thetas_views, own, &plan.bases);
            let seen = adapters.iter().filter_map(seen).collect();
            ([weights, thetas].concat(), seen)
        }),
    })
}

const CYCLE: &str = "cycle_step";

/// Counts the steps of a cycle.
struct Cycle {
    /// Whether this step is the last of its cycle; `None` where every step is.
    end: Option<ValueId>,
}

impl Cycle {
    fn new(b: &mut Builder, length: usize, state: &mut Vec<State>) -> Self {
        if length <= 1 {
            return Self { end: None };
        }
        let count = b.input(CYCLE, Fact::new(DType::F32, &[]));
        let next = b.add_scalar(&count, 1.0);
        let length = b.scalar_like(&next, length as f64);
        let end = b.op("GreaterOrEqual", &[&next, &length]);
        let zero = b.scalar_like(&next, 0.0);
        let next = b.where_(&end, &zero, &next);
        state.push(State { input: count, output: next, initial: Tensor::scalar(DType::F32, 0.0) });
        Self { end: Some(end) }
    }
    fn at_end(&self, b: &mut Builder, new: &ValueId, old: &ValueId) -> ValueId {
        match &self.end {
            Some(end) => b.where_(end, new, old),
            None => new.clone(),
        }
    }
}

/// W′ and the flat weights after the first replacement.
fn first_weights(
    plan: &Plan,
    adapters: &[Replacement],
    (ours, theta): (&Flats, &Flats),
    own: usize,
    executor: &dyn Executor,
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let mut b = Builder::new("start");
    let weights = ours.inputs(&mut b, "flat");
    let thetas = theta.inputs(&mut b, "theta");
    let (mut views, thetas) = (ours.views(&mut b, &weights), theta.views(&mut b, &thetas));
    let given = views.clone();
    for adapter in adapters {
        views[plan.bases[adapter.base].parameter.0] = adapter.emit(&mut b, &given, &thetas, own);
    }
    let flat = ours.gathered(&mut b, &views.iter().cloned().map(Some).collect::<Vec<_>>());
    let count = outputs(&mut b, plan, "merged", views).len();
    for (i, flat) in flat.iter().enumerate() {
        b.output_as(&format!("next/{i}"), flat);
    }
    let feeds =
        [ours, theta].iter().flat_map(|f| f.initial(&plan.parameters)).map(Value::host).collect::<Vec<_>>();
    let (graph, facts) = b.finish();
    let mut tensors = run_once(executor, graph, facts, &feeds)?;
    let flat = tensors.split_off(count);
    Ok((tensors, flat))
}

fn replacements(
    plan: &mut Plan,
    (target, source): (&Side<'_>, &Side<'_>),
    pairing: &Pairing,
    config: &AdapterConfig,
    gate: f64,
) -> Vec<Replacement> {
    let mut all = vec![];
    for pair in &pairing.weights {
        let weight = target.graph.weight(pair.target);
        let (Some(base), Some(view)) = (plan.base_of(&weight.name), weight.view.as_ref()) else { continue };
        let nearest = pair.source.into_iter().chain(pair.candidates.iter().copied()).find_map(|id| {
            let other = source.graph.weight(id);
            let matrix = other.view.as_ref()?.matrix_of(source.weights.get(&other.name)?);
            let std = matrix.std();
            std.is_normal().then(|| {
                let data = matrix.data.iter().map(|v| v / std).collect();
                (other.name.clone(), Matrix::new(matrix.rows, matrix.cols, data))
            })
        });
        let Some((name, matrix)) = nearest else { continue };
        let size = (view.out, view.cols());
        all.push(replacement(
            &mut plan.parameters,
            &plan.bases[base],
            base,
            view,
            size,
            (name.clone(), matrix),
            config,
            gate,
        ));
        plan.transfers.push(Transfer { target: weight.name.clone(), sources: vec![name], by: Means::Tokens });
    }
    all
}

#[allow(clippy::too_many_arguments)]
fn replacement(
    parameters: &mut Parameters,
    of: &Base,
    base: usize,
    view: &MatrixView,
    (out, cols): (usize, usize),
    (name, source): (ValueId, Matrix),
    config: &AdapterConfig,
    gate: f64,
) -> Replacement {
    let cost = |d: usize| 8 * d * (out + cols + source.rows + source.cols);
    let mut width = config.width.max(4);
    while width > 4 && cost(width) * config.depth.max(1) > out * cols {
        width = (width / 2).max(4);
    }
    let heads = (1..=config.heads.clamp(1, width)).rev().find(|h| width.is_multiple_of(*h)).unwrap_or(1);
    let mut stage = |l: usize, which: usize| {
        let (own, other) = ([cols, out][which / 2], [source.cols, source.rows][which % 2]);
        let named = |part: &str| format!("{}/{l}/{which}/{part}", of.weight);
        let k = width.div_ceil(2);
        Stage {
            query: parameters.uniform(named("query"), &[own, width], own),
            key: parameters.uniform(named("key"), &[other, width], other),
            value: (
                parameters.uniform(named("value_in"), &[other, k], other),
                parameters.uniform(named("value_out"), &[k, own], k),
            ),
        }
    };
    let stages = (0..config.depth.max(1)).map(|l| std::array::from_fn(|which| stage(l, which))).collect();
    let std = Matrix::new(
        1,
        of.shape.iter().product(),
        parameters.list[of.parameter.0].initial.to_f32().into_owned(),
    )
    .std();
    let columns = (0..source.cols).flat_map(|j| (0..source.rows).map(move |i| (i, j)));
    let columns = Matrix::new(source.cols, source.rows, columns.map(|(i, j)| source.at(i, j)).collect());
    // The gate is in units of the weight's own spread.
    let gate = parameters.filled(format!("{}/gate", of.weight), &[], gate as f32 * std);
    let shape = of.shape.clone();
    Replacement {
        base,
        view: view.clone(),
        shape,
        name,
        source: [source, columns],
        stages,
        gate,
        width,
        heads,
    }
}

impl Replacement {
    /// LPKA(W, S; θ), in the shape of the weight; `weights` are the target's, `theta` the adapters' own, which begin at
    /// parameter `own`.
    fn emit(&self, b: &mut Builder, weights: &[ValueId], theta: &[ValueId], own: usize) -> ValueId {
        let at = |id: ParamId| &theta[id.0 - own];
        let mut x = self.matrix(b, weights);
        for stages in &self.stages {
            let rows = normalised(b, &x);
            let columns = b.transpose(&x, &[1, 0]);
            let columns = normalised(b, &columns);
            let mut parts = vec![];
            for (which, stage) in stages.iter().enumerate() {
                let tokens = if which < 2 { &rows } else { &columns };
                let source = b.constant(self.source[which % 2].to_tensor());
                let share = self.attention(b, tokens, &source, [at(stage.query), at(stage.key)]);
                let value = b.matmul(&source, at(stage.value.0));
                let value = b.matmul(&value, at(stage.value.1));
                let taken = b.matmul(&share, &value);
                parts.push(if which < 2 { taken } else { b.transpose(&taken, &[1, 0]) });
            }
            let mut sum = parts[0].clone();
            for part in &parts[1..] {
                sum = b.add(&sum, part);
            }
            let mean = b.mul_scalar(&sum, 0.25);
            let gated = b.mul(&mean, at(self.gate));
            x = b.add(&x, &gated);
        }
        let weight = weight_of(b, &x, &self.view);
        b.reshape(&weight, &self.shape)
    }

    /// The weight as `out × in`. Bases are the first parameters, in their order.
    fn matrix(&self, b: &mut Builder, weights: &[ValueId]) -> ValueId {
        let x = b.reshape(&weights[self.base], &self.view.split);
        let x = b.transpose(&x, &self.view.perm);
        let x = b.reshape(&x, &self.view.matrix_shape());
        rows_in(b, &x, &self.view.order)
    }

    fn attention(
        &self,
        b: &mut Builder,
        tokens: &ValueId,
        source: &ValueId,
        [query, key]: [&ValueId; 2],
    ) -> ValueId {
        let query = b.matmul(tokens, query);
        let key = b.matmul(source, key);
        attention(b, &query, &key, self.width, self.heads)
    }

    /// The first attention of rows over rows: output features of the target over those of the source.
    fn attended(
        &self,
        b: &mut Builder,
        weights: &[ValueId],
        theta: &[ValueId],
        own: usize,
        bases: &[Base],
    ) -> Option<Attended> {
        let stage = &self.stages.first()?[0];
        let at = |id: ParamId| &theta[id.0 - own];
        let x = self.matrix(b, weights);
        let rows = normalised(b, &x);
        let source = b.constant(self.source[0].to_tensor());
        Some(Attended {
            target: bases[self.base].weight.to_string(),
            source: Columns::Channels(self.name.to_string()),
            value: self.attention(b, &rows, &source, [at(stage.query), at(stage.key)]),
        })
    }
}
