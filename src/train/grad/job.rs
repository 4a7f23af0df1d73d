//! One request being carried out: which dimensions can stay open, what proves it, and what is left where they can't.

use super::emit::{self, ClassAxis, Emitted, Moving, Plan, emit};
use super::generalise::{Open, Sample, generalise};
use super::names::Names;
use super::optimizer::Slot;
use super::sizes::{PROBED, Symbol, Working, feeds, sized, symbols};
use super::weights::{self, Targets};
use super::{Built, Form, Request, USUAL_ROWS, sparse};
use crate::autodiff::prepare::{self, OPEN_SIZES};
use crate::autodiff::recompute::{Budget, Saving};
use crate::error::{Error, Result};
use crate::onnx::{Dim, Fact, Facts, Graph, Model, ModelFile, Tensor, ValueId};
use crate::runtime::{Executor, Value};
use crate::train::batch_norm;
use std::collections::{HashMap, HashSet};

/// A request for one file, and what has been found out of it.
pub struct Job<'a> {
    pub file: &'a ModelFile,
    /// Upgraded, in float32 or wider, with open dimensions.
    pub model: Model,
    /// The batch that the file fixes, to be freed.
    pub baked: Option<(Symbol, usize)>,
    pub request: &'a Request,
    pub executor: &'a dyn Executor,
    pub names: Names,
    pub output: Option<ValueId>,
    /// Why a dimension couldn't stay open.
    pub why: Option<String>,
    /// The batch that the file fixes, and why it couldn't be freed.
    pub stuck: Option<(usize, String)>,
}

/// Sizes for open dimensions, three a dimension: to build with, to see what differs, and to prove it with. Coprime ones
/// first; then ones that networks with several halvings accept.
const COPRIME: [[usize; 3]; 6] =
    [[3, 4, 5], [11, 13, 17], [19, 23, 29], [31, 37, 41], [43, 47, 53], [59, 61, 67]];
const EVEN: [[usize; 3]; 6] =
    [[3, 4, 5], [64, 96, 160], [128, 192, 224], [256, 288, 320], [352, 384, 416], [448, 480, 544]];

impl Job<'_> {
    pub fn run(&mut self) -> Result<Built> {
        if let Some(batch) = self.request.batch {
            if fixed_rows(&self.model.graph).is_some_and(|own| own != batch) {
                let path = self.file.path.display().to_string();
                let working = Working::lifted(&self.model, batch, self.executor, &path)?;
                return self.fixed(working, vec![]);
            }
            for symbol in symbols(&self.model.graph, true).iter().filter(|s| s.batch) {
                self.model = sized(&self.model, &[(symbol, batch)]);
            }
        } else if let Some((batch, own)) = self.baked.take() {
            self.expect_sizes(std::slice::from_ref(&batch))?;
            match self.freed(batch) {
                Ok(built) => return Ok(built),
                Err(why) => self.stuck = Some((own, why)),
            }
        }
        let all = symbols(&self.model.graph, false);
        if all.is_empty() {
            let working = Working::of(&self.model, self.executor)?;
            return self.fixed(working, vec![]);
        }
        self.expect_sizes(&all)?;
        for symbols in [all.clone(), symbols(&self.model.graph, true)] {
            if let Some(built) = self.open(&symbols, &[])? {
                return Ok(built);
            }
        }
        self.partly_open()
    }

    /// Refuses a limit in bytes for a graph of any size.
    fn expect_sizes(&self, open: &[Symbol]) -> Result<()> {
        let Some(budget @ Budget::Bytes(_)) = self.request.recompute else { return Ok(()) };
        let names: Vec<&str> = open.iter().map(|symbol| symbol.name.as_str()).collect();
        let what =
            format!("--recompute {budget} needs known sizes, and these are open: {}", names.join(", "));
        Err(Error::usage(what).hint(
            "give them by --batch N and --shape NAME=SIZES, or leave out the size to save as much memory as possible",
        ))
    }

    /// For any number of rows, though the file fixes one; or why that can't be had.
    fn freed(&mut self, batch: Symbol) -> Result<Built, String> {
        let open = [vec![batch], symbols(&self.model.graph, false)].concat();
        let built = self.open(&open, &[]).map_err(|e| reason(&e))?;
        built.ok_or_else(|| self.why.take().unwrap_or_default())
    }

    /// Only the batch stays open, or nothing does.
    fn partly_open(&mut self) -> Result<Built> {
        let unified = symbols(&self.model.graph, true);
        let (batch, others): (Vec<Symbol>, Vec<Symbol>) = unified.into_iter().partition(|s| s.batch);
        let sizes = if others.is_empty() { &OPEN_SIZES[..1] } else { &OPEN_SIZES[..] };
        let mut first_error = None;
        for &size in sizes {
            let mut fixed: Vec<(&Symbol, usize)> = others.iter().map(|s| (s, size)).collect();
            let whole = self.model.clone();
            if !others.is_empty() && !batch.is_empty() {
                self.model = sized(&whole, &fixed);
                let why = self.why.clone();
                let built = self.open(&batch, &fixed);
                self.model = whole.clone();
                match built? {
                    Some(mut built) => {
                        built.why_fixed = why;
                        return Ok(built);
                    }
                    None => self.why = why.or(self.why.take()),
                }
            }
            fixed.extend(batch.iter().map(|s| (s, 1)));
            match Working::of(&sized(&whole, &fixed), self.executor) {
                Ok(working) => {
                    let fixed = fixed.iter().map(|(s, n)| (s.name.clone(), *n)).collect();
                    return self.fixed(working, fixed);
                }
                Err(e) => first_error = first_error.or(Some(e)),
            }
        }
        Err(first_error
            .unwrap_or_else(|| Error::usage("the model has no inputs"))
            .or_hint("say how large its inputs are: --shape NAME=1,3,224,224"))
    }

    /// One graph, for the sizes it was built with.
    fn fixed(&mut self, working: Working, fixed: Vec<(String, usize)>) -> Result<Built> {
        let working = self.prepared(working)?;
        let plan = self.plan(&working)?;
        let Emitted { graph, mut facts, moving, idle, classes } = emit(&working, &plan)?;
        let done = emit::finish(graph, (&mut facts, None), moving, &plan);
        let model = self.finished(done.graph, &working);
        if prepare::has_varying_shapes(&working.model.graph) {
            self.try_out(&model, &facts, &done.state)?;
        }
        Ok(self.built(model, &plan, (done.state, done.saving), (idle, classes), vec![], fixed))
    }

    /// Refuses a graph that runs on the inputs that its shapes were seen with, and not on others: shapes inside it
    /// depend on the data. One that the executor can't run at all is for another runtime to judge.
    fn try_out(&self, model: &Model, facts: &Facts, state: &[Slot]) -> Result<()> {
        let Ok(mut program) = self.executor.compile(model, facts) else { return Ok(()) };
        let given: Vec<(ValueId, Tensor)> =
            state.iter().map(|s| (ValueId::new(&s.name), s.initial.clone())).collect();
        let mut run = |seed: u64| -> Result<()> {
            let fed = feeds(&model.graph, &given, seed)?;
            let values: Vec<Value> = fed.into_iter().map(|(_, t)| Value::host(t)).collect();
            program.run(&values).map(drop)
        };
        if run(PROBED).is_err() {
            return Ok(());
        }
        match [11, 12, 13].into_iter().find_map(|seed| run(seed).err()) {
            Some(e) => {
                let what = format!(
                    "has values whose shape depends on the data, so that its gradient can't be laid out ({e})"
                );
                Err(Error::model(&self.file.path, what)
                    .hint("--wrt names weights behind what makes such shapes, if there are any"))
            }
            None => Ok(()),
        }
    }

    /// One graph for any sizes of `open`; `None` where it can't be had, which [`Job::why`] then explains.
    fn open(&mut self, open: &[Symbol], fixed: &[(&Symbol, usize)]) -> Result<Option<Built>> {
        if open.len() > COPRIME.len() {
            self.why = Some(format!("{} dimensions are open", open.len()));
            return Ok(None);
        }
        for family in [COPRIME, EVEN] {
            let base_sizes = sizes_of(open, &family, |_| 0);
            let base = match self.working(open, &base_sizes) {
                Ok(working) => working,
                Err(e) => {
                    self.why = self.why.take().or(Some(reason(&e)));
                    continue;
                }
            };
            let plan = self.plan(&base)?;
            let Emitted { graph, mut facts, moving, idle, classes } = emit(&base, &plan)?;
            let (mut others, mut usual) = (vec![], None);
            for i in 0..open.len() {
                let sizes = sizes_of(open, &family, |k| usize::from(k == i));
                match self.working(open, &sizes) {
                    Ok(working) => {
                        let other = emit(&working, &plan)?;
                        if open[i].batch && plan.recompute.is_some() {
                            usual = Some(with_usual_rows((&facts, base_sizes[i]), (&other.facts, sizes[i])));
                        }
                        others.push(Sample { sizes, graph: other.graph });
                    }
                    Err(e) => self.why = Some(reason(&e)),
                }
            }
            if others.len() < open.len() {
                continue;
            }
            let dims: Vec<Open> = open
                .iter()
                .map(|s| Open { name: s.name.clone(), input: s.places[0].0.clone(), axis: s.places[0].1 })
                .collect();
            let sample = Sample { sizes: base_sizes, graph };
            let proved = self.witness(open, &sizes_of(open, &family, |_| 2), &plan).and_then(|witness| {
                let general = generalise(&dims, &sample, &others, &witness.sample)?;
                if general.witnessed {
                    return Ok(general.graph);
                }
                let model = self.finished(general.graph, &base);
                self.prove(&model, &witness, &moving)?;
                Ok(model.graph)
            });
            match proved {
                Ok(graph) => {
                    let done = emit::finish(graph, (&mut facts, usual.as_ref()), moving, &plan);
                    let model = self.finished(done.graph, &base);
                    let names = open.iter().map(|s| s.name.clone()).collect();
                    let fixed = fixed.iter().map(|(s, n)| (s.name.clone(), *n)).collect();
                    let done = (done.state, done.saving);
                    return Ok(Some(self.built(model, &plan, done, (idle, classes), names, fixed)));
                }
                Err(why) => {
                    self.why = Some(why);
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    fn working(&self, open: &[Symbol], sizes: &[usize]) -> Result<Working> {
        let assigned: Vec<(&Symbol, usize)> = open.iter().zip(sizes.iter().copied()).collect();
        let working =
            Working::with(&self.model, &assigned, self.executor, &self.file.path.display().to_string())?;
        self.prepared(working)
    }

    /// The working graph in the form that the request's options take.
    fn prepared(&self, mut working: Working) -> Result<Working> {
        if !self.request.sparse.is_empty() {
            (working.model.graph, working.facts) = sparse::taken_apart(working.model.graph, working.facts)?;
        }
        Ok(working)
    }

    /// The graph for sizes that the open one isn't made from.
    fn witness(&self, open: &[Symbol], sizes: &[usize], plan: &Plan) -> Result<Witness, String> {
        let build = || {
            let working = self.working(open, sizes)?;
            let Emitted { graph, facts, .. } = emit(&working, plan)?;
            Ok(Witness { sample: Sample { sizes: sizes.to_vec(), graph }, facts, working })
        };
        build().map_err(|e: Error| e.to_string())
    }

    /// Runs the open graph at the witness's sizes, beside the witness.
    fn prove(&self, model: &Model, witness: &Witness, moving: &Moving) -> Result<(), String> {
        let text = |e: Error| e.to_string();
        let graph = &witness.sample.graph;
        let given: Vec<(ValueId, Tensor)> =
            moving.initial().map(|(name, initial)| (name.clone(), initial.clone())).collect();
        let fed: HashMap<ValueId, Tensor> = feeds(graph, &given, 11).map_err(text)?.into_iter().collect();
        let facts: Facts = fed.iter().map(|(id, t)| (id.clone(), Fact::of(t))).collect();
        let run = |model: &Model, facts: &Facts| -> Result<Vec<Tensor>> {
            let order: Vec<Value> = model
                .graph
                .required_inputs()
                .filter_map(|i| fed.get(&i.id).map(|t| Value::host(t.clone())))
                .collect();
            self.executor.compile(model, facts)?.run(&order)?.iter().map(Value::to_host).collect()
        };
        let expected = run(&self.finished(graph.clone(), &witness.working), &witness.facts).map_err(text)?;
        let found = run(model, &facts).map_err(text)?;
        for ((a, b), output) in expected.iter().zip(&found).zip(&model.graph.outputs) {
            let (a, b) = (a.to_f64(), b.to_f64());
            let largest = a.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
            let differs = |(x, y): (&f64, &f64)| {
                let close = (x - y).abs() <= 1e-3 * largest + 1e-7;
                x != y && !(x.is_nan() && y.is_nan()) && !close
            };
            if a.len() != b.len() || a.iter().zip(&b).any(differs) {
                return Err(format!("at other sizes '{}' is no longer right", output.id));
            }
        }
        Ok(())
    }

    fn plan(&self, working: &Working) -> Result<Plan> {
        // Weights that no output depends on have been dropped, but may have been asked for.
        let mut whole = working.model.clone();
        for (id, tensor) in self.model.graph.initializers.iter().filter(|(_, t)| t.dtype().is_float()) {
            whole.graph.initializers.entry(id.clone()).or_insert_with(|| tensor.clone());
        }
        let used = [&self.model.graph, &working.model.graph];
        let Targets { mut weights, values } =
            weights::select(&whole, &used, &working.facts, &self.request.wrt, &self.file.path)?;
        if let (Form::Step(_), Some(value)) = (&self.request.form, values.first()) {
            return Err(Error::usage(format!("--wrt: '{value}' is no weight, and a step changes weights"))
                .hint("--gradients-only gives the gradient of an input or of a value inside"));
        }
        let graph = &working.model.graph;
        if self.request.train_bn && batch_norm::statistics(graph, |_| true).is_empty() {
            return Err(batch_norm::none_in(&self.file.path));
        }
        let dense = sparse::choose(&mut weights, graph, &self.request.sparse, &self.file.path)?;
        Ok(Plan {
            loss: self.request.loss,
            form: self.request.form,
            names: self.names.clone(),
            output: self.output.clone(),
            class_axis: self.request.class_axis,
            ignored: self.request.ignored,
            weights,
            values,
            train_bn: self.request.train_bn,
            recompute: self.request.recompute,
            dense,
            dropout: self.request.dropout,
        })
    }

    fn finished(&self, graph: Graph, working: &Working) -> Model {
        let producer = "onnx-merge".to_owned();
        Model { graph, producer, ..Model { graph: Graph::default(), ..working.model.clone() } }
    }

    fn built(
        &mut self,
        model: Model,
        plan: &Plan,
        (state, saving): (Vec<Slot>, Option<Saving>),
        (idle, classes): (Vec<ValueId>, Option<ClassAxis>),
        open: Vec<String>,
        mut fixed: Vec<(String, usize)>,
    ) -> Built {
        if let Some((rows, why)) = self.stuck.take() {
            fixed.insert(0, ("batch".into(), rows));
            self.why = self.why.take().or(Some(why));
        }
        let still: HashSet<&ValueId> = idle.iter().collect();
        let moved = |w: &ValueId| !still.contains(w);
        let why_fixed = if fixed.is_empty() { None } else { self.why.take() };
        Built {
            model,
            state: state.into_iter().map(|s| (s.name, s.initial)).collect(),
            weights: plan.weights.iter().map(|w| w.name.clone()).filter(moved).collect(),
            values: plan.values.iter().filter(|v| moved(v)).cloned().collect(),
            idle,
            sparse: plan.weights.iter().filter(|w| w.sparse).map(|w| w.name.clone()).collect(),
            dense: plan.dense.clone(),
            classes,
            open,
            fixed,
            why_fixed,
            names: plan.names.clone(),
            saving,
        }
    }
}

/// Facts for the rows that are usual in training, from those for two other numbers of rows: what differs in these grows on.
fn with_usual_rows((facts, rows): (&Facts, usize), (others, more): (&Facts, usize)) -> Facts {
    let grown = |(&size, &other): (&usize, &usize)| match (other.checked_sub(size), more - rows) {
        (Some(growth), run) if growth % run == 0 => size + growth / run * (USUAL_ROWS - rows),
        _ => size,
    };
    let fact = |(id, fact): (&ValueId, &Fact)| {
        let other = others.get(id).filter(|other| other.rank() == fact.rank()).unwrap_or(fact);
        let shape: Vec<usize> = fact.shape.iter().zip(&other.shape).map(grown).collect();
        (id.clone(), Fact::new(fact.dtype, &shape))
    };
    facts.iter().map(fact).collect()
}

/// A graph that the open one has to agree with.
struct Witness {
    sample: Sample,
    facts: Facts,
    working: Working,
}

/// A size of each dimension, the smallest ones for the batch: for the `i`th the one that `which(i)` says of its three.
fn sizes_of(open: &[Symbol], family: &[[usize; 3]; 6], which: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..open.len()).collect();
    order.sort_by_key(|&i| !open[i].batch);
    let mut sizes = vec![1; open.len()];
    for (row, &i) in order.iter().enumerate() {
        sizes[i] = family[row][which(i)];
    }
    sizes
}

/// What an error says of a model, without its name.
fn reason(error: &Error) -> String {
    match error {
        Error::Hint { source, .. } => reason(source),
        Error::Model { what, .. } => what.clone(),
        other => other.to_string(),
    }
}

/// The batch that the file fixes.
fn fixed_rows(graph: &Graph) -> Option<usize> {
    let axes = prepare::batch_axes(graph);
    graph.required_inputs().find_map(|i| match i.shape.as_ref()?.get(*axes.get(&i.id)?)? {
        Dim::Known(n) => Some(*n),
        _ => None,
    })
}
