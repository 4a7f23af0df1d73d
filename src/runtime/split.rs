//! The GPU with a CPU executor behind it: what has no kernel runs on the CPU, in as few parts as the graph allows.
//!
//! Each node is asked for on the GPU first. Nodes of one device that don't wait for the other form a *stage*, a graph
//! of its own; values cross between stages only. Knows no operators. Look at [`SplitExecutor`].

use super::profile::{Profile, TO_CPU, TO_GPU, part_of, size_of, watched};
use super::wgpu::{Survey, WgpuExecutor};
use super::{Compiled, Executor, Value};
use crate::error::{Error, Result};
use crate::onnx::{Facts, Forms, Graph, Model, Node, Tensor, ValueId, ValueInfo, WORKING_OPSET, node_reads};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Runs graphs on a GPU as far as it can, and the rest on the CPU.
pub struct SplitExecutor {
    gpu: Arc<WgpuExecutor>,
    cpu: Arc<dyn Executor>,
    profile: Option<Profile>,
    /// Operators that ran on the CPU, with why.
    elsewhere: Mutex<BTreeMap<String, String>>,
}

impl SplitExecutor {
    pub fn new(gpu: Arc<WgpuExecutor>, cpu: Arc<dyn Executor>, profile: Option<Profile>) -> Self {
        Self { gpu, cpu, profile, elsewhere: Mutex::default() }
    }
    /// A program that runs on one of the two.
    fn whole(&self, executor: Arc<dyn Executor>, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        let compiled = executor.compile(model, facts)?;
        Ok(match &self.profile {
            Some(profile) => watched(compiled, executor, profile, part_of(model)),
            None => compiled,
        })
    }
    /// Operators of the programs compiled so far that run on the CPU, with why.
    pub fn elsewhere(&self) -> BTreeMap<String, String> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Executor for SplitExecutor {
    fn name(&self) -> &'static str {
        self.gpu.name()
    }
    fn device(&self) -> String {
        let elsewhere = self.elsewhere();
        match elsewhere.is_empty() {
            true => self.gpu.device(),
            false => {
                let operators: Vec<&str> = elsewhere.keys().map(String::as_str).collect();
                format!("{}; {} on {}", self.gpu.device(), operators.join(", "), self.cpu.device())
            }
        }
    }
    fn misses(&self, model: &Model) -> Vec<String> {
        let mut rest = model.clone();
        rest.graph.nodes.retain(|node| !WgpuExecutor::covers(node));
        self.cpu.misses(&rest)
    }
    fn compile(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        let survey = self.gpu.survey(model, facts);
        if survey.unprepared {
            // Preparation runs graphs as they come, to learn their shapes.
            if model.opset() < WORKING_OPSET {
                let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
                elsewhere.entry("graphs of older opsets".into()).or_insert_with(|| "not prepared".into());
            }
            return self.whole(self.cpu.clone(), model, facts);
        }
        if survey.refusals.iter().all(Option::is_none) {
            return self.whole(self.gpu.clone(), model, facts);
        }
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, refusal) in model.graph.nodes.iter().zip(&survey.refusals) {
            if let Some(why) = refusal {
                elsewhere.entry(node.qualified_op()).or_insert_with(|| why.clone());
            }
        }
        drop(elsewhere);
        Ok(Box::new(Program::new(self, model, &survey)?))
    }
    /// To the GPU; what it has no element type for stays on the host.
    fn upload(&self, tensor: &Tensor) -> Result<Value> {
        match WgpuExecutor::takes(tensor.dtype()) {
            true => self.gpu.upload(tensor),
            false => Ok(Value::host(tensor.clone())),
        }
    }
    fn holds(&self, value: &Value) -> bool {
        self.gpu.holds(value)
    }
    fn forms(&self) -> Forms {
        self.gpu.forms()
    }
    fn finish(&self) -> Result<()> {
        self.gpu.finish()
    }
}

/// A run of nodes on one device.
struct Stage {
    on_gpu: bool,
    program: Box<dyn Compiled>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    /// Values that nobody needs after this stage.
    last: Vec<usize>,
}

struct Program {
    stages: Vec<Stage>,
    /// Where the program's inputs and outputs stand among the values.
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    /// Outputs that are constants of the graph.
    constants: Vec<(usize, Value)>,
    count: usize,
    gpu: Arc<WgpuExecutor>,
    cpu: Arc<dyn Executor>,
    watch: Option<(Profile, String)>,
}

/// Numbers for values.
#[derive(Default)]
struct Numbers(HashMap<ValueId, usize>);

impl Numbers {
    fn of(&mut self, id: &ValueId) -> usize {
        let next = self.0.len();
        *self.0.entry(id.clone()).or_insert(next)
    }
}

/// The stage of every node: even on the GPU, odd on the CPU, none before those it reads from.
fn stages(graph: &Graph, on_gpu: &[bool]) -> Vec<usize> {
    let mut made: HashMap<&ValueId, usize> = HashMap::new();
    let mut stages = vec![];
    for (node, &gpu) in graph.nodes.iter().zip(on_gpu) {
        let after = node_reads(node).iter().filter_map(|id| made.get(id).copied()).max().unwrap_or(0);
        let stage = after + usize::from((after % 2 == 0) != gpu);
        made.extend(node.outputs.iter().flatten().map(|id| (id, stage)));
        stages.push(stage);
    }
    stages
}

impl Program {
    fn new(executor: &SplitExecutor, model: &Model, survey: &Survey) -> Result<Self> {
        let graph = &model.graph;
        let on_gpu: Vec<bool> = survey.refusals.iter().map(Option::is_none).collect();
        let stage_of = stages(graph, &on_gpu);
        let mut numbers = Numbers::default();
        let inputs: Vec<usize> = graph.required_inputs().map(|i| numbers.of(&i.id)).collect();
        let outputs: Vec<usize> = graph.outputs.iter().map(|o| numbers.of(&o.id)).collect();
        let mut constants = vec![];
        for output in &graph.outputs {
            if let Some(tensor) = graph.initializers.get(&output.id) {
                constants.push((numbers.of(&output.id), executor.upload(tensor)?));
            }
        }
        let mut stages = vec![];
        for stage in 0..=stage_of.iter().copied().max().unwrap_or(0) {
            let inside = |i: usize| stage_of[i] == stage;
            let nodes: Vec<Node> =
                graph.nodes.iter().enumerate().filter(|(i, _)| inside(*i)).map(|(_, n)| n.clone()).collect();
            if nodes.is_empty() {
                continue;
            }
            let outside = graph.nodes.iter().enumerate().filter(|(i, _)| !inside(*i)).map(|(_, n)| n);
            let part = part(model, nodes, outside, &survey.facts);
            let gpu = stage % 2 == 0;
            let program = match gpu {
                true => executor.gpu.compile(&part, &survey.facts)?,
                false => executor.cpu.compile(&part, &survey.facts)?,
            };
            let inputs = part.graph.inputs.iter().map(|i| numbers.of(&i.id)).collect();
            let outputs = part.graph.outputs.iter().map(|o| numbers.of(&o.id)).collect();
            stages.push(Stage { on_gpu: gpu, program, inputs, outputs, last: vec![] });
        }
        let mut program = Program {
            stages,
            inputs,
            outputs,
            constants,
            count: numbers.0.len(),
            gpu: executor.gpu.clone(),
            cpu: executor.cpu.clone(),
            watch: executor.profile.clone().map(|p| (p, part_of(model))),
        };
        program.note_last_uses();
        Ok(program)
    }
    fn note_last_uses(&mut self) {
        let mut later: HashSet<usize> = self.outputs.iter().copied().collect();
        for stage in self.stages.iter_mut().rev() {
            stage.last = stage.inputs.iter().copied().filter(|i| later.insert(*i)).collect();
        }
    }
    /// A stage's input where the stage runs.
    fn bring(&self, value: &Value, to_gpu: bool) -> Result<Value> {
        if self.gpu.holds(value) == to_gpu {
            return Ok(value.clone());
        }
        let bytes = size_of(value);
        let (way, to): (_, &dyn Executor) = if to_gpu { (TO_GPU, &*self.gpu) } else { (TO_CPU, &*self.cpu) };
        let cross = || to.upload(&value.to_host()?);
        match &self.watch {
            Some((profile, part)) => profile.crossing(part, way, bytes, cross),
            None => cross(),
        }
    }
}

/// The nodes of one stage as a model: what they read from elsewhere is an input, what others read of them an output.
fn part<'a>(
    model: &Model,
    nodes: Vec<Node>,
    outside: impl Iterator<Item = &'a Node>,
    facts: &Facts,
) -> Model {
    let graph = &model.graph;
    let made: HashSet<ValueId> = nodes.iter().flat_map(|n| n.outputs.iter().flatten().cloned()).collect();
    let mut wanted: HashSet<ValueId> = outside.flat_map(node_reads).collect();
    wanted.extend(graph.outputs.iter().map(|o| o.id.clone()));
    let info = |id: &ValueId| match facts.get(id) {
        Some(fact) => ValueInfo::new(id.clone(), fact),
        None => ValueInfo { id: id.clone(), dtype: None, shape: None },
    };
    let mut part = Graph { name: graph.name.clone(), ..Graph::default() };
    let mut seen = HashSet::new();
    for id in nodes.iter().flat_map(node_reads) {
        if made.contains(&id) || !seen.insert(id.clone()) {
            continue;
        }
        match graph.initializers.get(&id) {
            Some(tensor) => drop(part.initializers.insert(id, tensor.clone())),
            None => part.inputs.push(info(&id)),
        }
    }
    let outputs = nodes.iter().flat_map(|n| n.outputs.iter().flatten());
    part.outputs = outputs.filter(|id| wanted.contains(*id)).map(info).collect();
    part.nodes = nodes;
    Model { graph: part, ..model.clone() }
}

impl Compiled for Program {
    fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>> {
        if inputs.len() != self.inputs.len() {
            let (given, needed) = (inputs.len(), self.inputs.len());
            return Err(Error::executor("wgpu", format!("{given} inputs were given, {needed} are needed")));
        }
        let mut values: Vec<Option<Value>> = vec![None; self.count];
        for (&at, value) in self.inputs.iter().zip(inputs) {
            values[at] = Some(value.clone());
        }
        for (at, value) in &self.constants {
            values[*at] = Some(value.clone());
        }
        let missing = || Error::executor("wgpu", "a value of the split graph is missing");
        for i in 0..self.stages.len() {
            let on_gpu = self.stages[i].on_gpu;
            let feeds = self.stages[i]
                .inputs
                .iter()
                .map(|&at| self.bring(values[at].as_ref().ok_or_else(missing)?, on_gpu));
            let feeds = feeds.collect::<Result<Vec<_>>>()?;
            let stage = &mut self.stages[i];
            let mut run = || {
                let made = stage.program.run(&feeds)?;
                if on_gpu && self.watch.is_some() {
                    self.gpu.finish()?;
                }
                Ok(made)
            };
            let made = match &self.watch {
                Some((profile, part)) => {
                    let device = if on_gpu { self.gpu.device() } else { self.cpu.device() };
                    profile.run(part, &device, run)?
                }
                None => run()?,
            };
            for (&at, value) in self.stages[i].outputs.iter().zip(made) {
                values[at] = Some(value);
            }
            self.stages[i].last.iter().for_each(|&at| values[at] = None);
        }
        self.outputs.iter().map(|&at| values[at].clone().ok_or_else(missing)).collect()
    }
}
