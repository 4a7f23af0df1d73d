//! Step programs: a graph that is run again and again, with state that stays on the executor's device.
//!
//! Knows executors and values, nothing of losses or optimisers. A [`StepProgram`] says what the state is, a
//! [`Runner`] runs it. Positions of inputs and outputs are looked up once ([`Runner::feed`],
//! [`Runner::fetch`]), so that a step costs no lookups by name.

use super::pieces::{self, Part};
use super::{Compiled, Executor, Value};
use crate::error::{Error, Result};
use crate::onnx::{Fact, Facts, Model, Tensor, ValueId};
use std::collections::HashMap;
use std::sync::Arc;

/// A value that a step reads and the next step reads anew: a weight, a moment, a counter.
#[derive(Clone, Debug)]
pub struct State {
    /// The graph input that reads it.
    pub input: ValueId,
    /// The graph output that makes its next value, of the same type and shape.
    pub output: ValueId,
    /// What the first step reads.
    pub initial: Tensor,
}

/// A graph to be run step by step. Inputs that aren't state are *feeds*; any output can be fetched.
#[derive(Clone, Debug)]
pub struct StepProgram {
    pub model: Model,
    /// At least the facts of all inputs; of all values where they are known.
    pub facts: Facts,
    pub state: Vec<State>,
}

impl StepProgram {
    /// The inputs that must be fed, in the graph's order.
    pub fn feeds(&self) -> impl Iterator<Item = &ValueId> {
        let is_state = |id: &ValueId| self.state.iter().any(|s| s.input == *id);
        self.model.graph.required_inputs().map(|i| &i.id).filter(move |id| !is_state(id))
    }
}

/// The position of an input of a [`Runner`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feed(usize);

/// The position of an output of a [`Runner`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch(usize);

/// The position of a state of a [`Runner`], as in [`StepProgram::state`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateId(usize);

/// What a step made.
pub struct Outputs(Vec<Value>);

impl Outputs {
    /// The value of an output; it stays on the device.
    pub fn get(&self, fetch: Fetch) -> &Value {
        &self.0[fetch.0]
    }
    /// The first element of an output: losses and metrics.
    pub fn scalar(&self, fetch: Fetch) -> Result<f64> {
        self.get(fetch).scalar()
    }
}

/// The state at some moment. Costs no copy: values never change, a step makes new ones.
#[derive(Clone)]
pub struct Snapshot(Vec<Value>);

/// A compiled step program with its state.
pub struct Runner {
    executor: Arc<dyn Executor>,
    /// All but the parts that are run piece by piece; nothing where they are all there is.
    program: Option<Box<dyn Compiled>>,
    /// Places of its inputs and outputs among all; what it makes for parts comes after its outputs.
    program_inputs: Vec<usize>,
    program_outputs: Vec<usize>,
    parts: Vec<Placed>,
    inputs: Vec<Input>,
    outputs: Vec<ValueId>,
    output_index: HashMap<ValueId, usize>,
    /// What the next step reads, by input; `None` where nothing has been fed yet.
    values: Vec<Option<Value>>,
    state: Vec<StateSlot>,
}

struct Input {
    id: ValueId,
    fact: Option<Fact>,
}

struct StateSlot {
    input: usize,
    output: usize,
    initial: Tensor,
}

/// A part that is run piece by piece, and the places of its values.
struct Placed {
    part: Part,
    large: Vec<usize>,
    single: Vec<Single>,
    outputs: Vec<usize>,
}

/// Where an input of one element comes from: what the step is given, or what the program makes.
enum Single {
    Given(usize),
    Made(usize),
}

impl Runner {
    /// Compiles `program` on `executor` and puts the initial state on its device.
    ///
    /// # Errors
    /// What [`Executor::compile`] refuses, and state whose input, output or shape doesn't fit the graph.
    pub fn new(executor: Arc<dyn Executor>, program: &StepProgram) -> Result<Self> {
        let graph = &program.model.graph;
        let inputs: Vec<Input> = graph
            .required_inputs()
            .map(|i| Input { id: i.id.clone(), fact: program.facts.get(&i.id).cloned().or_else(|| i.fact()) })
            .collect();
        let outputs: Vec<ValueId> = graph.outputs.iter().map(|o| o.id.clone()).collect();
        let output_index: HashMap<_, _> =
            outputs.iter().cloned().enumerate().map(|(i, id)| (id, i)).collect();
        let mut state = Vec::with_capacity(program.state.len());
        for part in &program.state {
            let missing =
                |id: &ValueId, what: &str| Error::tensor(id.as_str(), format!("state needs a graph {what}"));
            let input = inputs.iter().position(|i| i.id == part.input);
            state.push(StateSlot {
                input: input.ok_or_else(|| missing(&part.input, "input without initializer of this name"))?,
                output: *output_index
                    .get(&part.output)
                    .ok_or_else(|| missing(&part.output, "output of this name"))?,
                initial: part.initial.clone(),
            });
        }
        let whole = || (program.model.clone(), vec![]);
        let pieces =
            executor.on_host().then(|| pieces::split(&program.model, &program.facts, &program.state));
        let (rest, found) = pieces.flatten().unwrap_or_else(whole);
        let place = |id: &ValueId| inputs.iter().position(|input| input.id == *id);
        let mut parts = vec![];
        for found in &found {
            let single = found.single.iter().filter_map(|id| match place(id) {
                Some(given) => Some(Single::Given(given)),
                None => rest.graph.outputs.iter().position(|o| o.id == *id).map(Single::Made),
            });
            let outputs: Vec<usize> = found.outputs.iter().map(|id| output_index[id]).collect();
            let replaced = |output: &usize| {
                let slot = state.iter().find(|slot| slot.output == *output)?;
                found.large.iter().position(|id| inputs[slot.input].id == *id)
            };
            let replaces = outputs.iter().filter_map(replaced).collect();
            parts.push(Placed {
                part: Part::new(found, replaces, &*executor)?,
                large: found.large.iter().filter_map(place).collect(),
                single: single.collect(),
                outputs,
            });
        }
        let program_inputs = rest.graph.required_inputs().filter_map(|input| place(&input.id)).collect();
        let program_outputs =
            rest.graph.outputs.iter().filter_map(|o| output_index.get(&o.id).copied()).collect();
        let compiled = match rest.graph.outputs.is_empty() {
            true => None,
            false => Some(executor.compile(&rest, &program.facts)?),
        };
        let values = inputs.iter().map(|_| None).collect();
        let mut runner = Self {
            executor,
            program: compiled,
            program_inputs,
            program_outputs,
            parts,
            inputs,
            outputs,
            output_index,
            values,
            state,
        };
        runner.reset()?;
        Ok(runner)
    }

    pub fn executor(&self) -> &Arc<dyn Executor> {
        &self.executor
    }
    /// The outputs, in the order of [`Runner::run`]'s.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Where to feed the input `id`.
    pub fn feed(&self, id: &ValueId) -> Result<Feed> {
        let position = self.inputs.iter().position(|i| i.id == *id);
        position.map(Feed).ok_or_else(|| Error::tensor(id.as_str(), "the step has no such input"))
    }
    /// Where to fetch the output `id`.
    pub fn fetch(&self, id: &ValueId) -> Result<Fetch> {
        let position = self.output_index.get(id).copied();
        position.map(Fetch).ok_or_else(|| Error::tensor(id.as_str(), "the step has no such output"))
    }
    /// Which state is read through the input `id`.
    pub fn state_id(&self, id: &ValueId) -> Result<StateId> {
        let position = self.state.iter().position(|s| self.inputs.get(s.input).is_some_and(|i| i.id == *id));
        position.map(StateId).ok_or_else(|| Error::tensor(id.as_str(), "the step has no such state"))
    }

    /// Feeds an input, for all steps from now on until it is fed anew. The value may live anywhere; one
    /// that lives on the host is moved to the device here, once.
    ///
    /// # Errors
    /// When type or shape aren't what the program was compiled for.
    pub fn set(&mut self, feed: Feed, value: Value) -> Result<()> {
        self.check(feed.0, &value)?;
        let value = match value.downcast::<Tensor>() {
            // Parts read what they are given on the host.
            Some(tensor) if self.program_inputs.contains(&feed.0) => self.executor.upload(tensor)?,
            _ => value,
        };
        self.values[feed.0] = Some(value);
        Ok(())
    }

    /// Lets go of what an input was fed: it must be fed anew before the next step.
    pub fn clear(&mut self, feed: Feed) {
        self.values[feed.0] = None;
    }

    /// One step: reads feeds and state, replaces the state.
    ///
    /// # Errors
    /// When an input was never fed, or the executor fails. The state is then what it was, unless a part of it was being
    /// replaced piece by piece: then there is none to go on from.
    pub fn run(&mut self) -> Result<Outputs> {
        let unfed = self.values.iter().position(Option::is_none);
        if let Some(input) = unfed.and_then(|i| self.inputs.get(i)) {
            return Err(Error::tensor(input.id.as_str(), "this input of the step was never fed"));
        }
        let inputs: Vec<Value> = self.program_inputs.iter().filter_map(|&i| self.values[i].clone()).collect();
        let made = match &mut self.program {
            Some(program) => program.run(&inputs)?,
            None => vec![],
        };
        drop(inputs);
        let mut outputs: Vec<Option<Value>> = vec![None; self.outputs.len()];
        for (&place, value) in self.program_outputs.iter().zip(&made) {
            outputs[place] = Some(value.clone());
        }
        for Placed { part, large, single, outputs: places } in &mut self.parts {
            let single: Vec<Value> = single
                .iter()
                .filter_map(|single| match single {
                    Single::Given(i) => self.values[*i].clone(),
                    Single::Made(i) => made.get(*i).cloned(),
                })
                .collect();
            let replaced = |i: usize| self.state.iter().any(|slot| slot.input == i);
            let large = large.iter().filter_map(|&i| match replaced(i) {
                // Given up, so that it can be written over.
                true => self.values[i].take(),
                false => self.values[i].clone(),
            });
            for (&place, value) in places.iter().zip(part.run(large.collect(), &single)?) {
                outputs[place] = Some(value);
            }
        }
        let outputs: Vec<Value> = outputs.into_iter().flatten().collect();
        for slot in &self.state {
            self.values[slot.input] = Some(outputs[slot.output].clone());
        }
        Ok(Outputs(outputs))
    }

    /// One step by names: feeds, runs, and gives all outputs. For code where a lookup doesn't matter.
    pub fn step(&mut self, feeds: &[(ValueId, Value)]) -> Result<HashMap<ValueId, Value>> {
        for (id, value) in feeds {
            let feed = self.feed(id)?;
            self.set(feed, value.clone())?;
        }
        let outputs = self.run()?;
        Ok(self.outputs.iter().cloned().zip(outputs.0).collect())
    }

    /// The present state read through the input `id`, where it lives.
    pub fn state_value(&self, state: StateId) -> Value {
        let slot = &self.state[state.0];
        self.values[slot.input].clone().unwrap_or_else(|| Value::host(slot.initial.clone()))
    }
    /// The present state read through the input `id`, on the host.
    pub fn state(&self, id: &ValueId) -> Result<Tensor> {
        self.state_value(self.state_id(id)?).to_host()
    }
    /// Replaces the state read through the input `id`.
    pub fn set_state(&mut self, id: &ValueId, tensor: &Tensor) -> Result<()> {
        let slot = self.state_id(id)?;
        self.set(Feed(self.state[slot.0].input), Value::host(tensor.clone()))
    }
    /// The whole state, to come back to with [`Runner::restore`].
    pub fn snapshot(&self) -> Snapshot {
        Snapshot((0..self.state.len()).map(|i| self.state_value(StateId(i))).collect())
    }
    /// Goes back to a state of this runner, or of another of the same program.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        for (slot, value) in self.state.iter().zip(&snapshot.0) {
            self.values[slot.input] = Some(value.clone());
        }
    }
    /// Goes back to the initial state.
    pub fn reset(&mut self) -> Result<()> {
        for i in 0..self.state.len() {
            let slot = &self.state[i];
            let (feed, value) = (Feed(slot.input), Value::host(slot.initial.clone()));
            self.set(feed, value)?;
        }
        Ok(())
    }

    fn check(&self, input: usize, value: &Value) -> Result<()> {
        let Input { id, fact } = &self.inputs[input];
        let found = value.fact();
        match fact {
            Some(expected) if *expected != found => Err(Error::tensor(
                id.as_str(),
                format!(
                    "the step reads {} of shape {:?}, but was fed {} of shape {:?}",
                    expected.dtype, expected.shape, found.dtype, found.shape
                ),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::onnx::{Builder, DType, WORKING_OPSET};
    use crate::runtime::TractExecutor;

    /// `w ← w − rate · (w − x)`, `loss = Σ (w − x)²`.
    fn descent() -> Result<Runner> {
        let mut b = Builder::new("descent");
        let x = b.input("x", Fact::new(DType::F32, &[2]));
        let w = b.input("w", Fact::new(DType::F32, &[2]));
        let rate = b.input("rate", Fact::new(DType::F32, &[]));
        let error = b.sub(&w, &x);
        let square = b.mul(&error, &error);
        let loss = b.sum_all(&square);
        b.output_as("loss", &loss);
        let change = b.mul(&error, &rate);
        let next = b.sub(&w, &change);
        let output = b.output_as("w_next", &next);
        let (graph, facts) = b.finish();
        let state = vec![State { input: w, output, initial: Tensor::f32(&[2], &[0.0, 0.0]) }];
        let program = StepProgram { model: Model::new(graph, WORKING_OPSET), facts, state };
        assert_eq!(program.feeds().map(ValueId::as_str).collect::<Vec<_>>(), ["x", "rate"]);
        Runner::new(Arc::new(TractExecutor::new(1)?), &program)
    }

    #[test]
    fn state_moves_on_and_comes_back() -> Result<()> {
        let mut runner = descent()?;
        let (x, rate, loss) =
            (runner.feed(&"x".into())?, runner.feed(&"rate".into())?, runner.fetch(&"loss".into())?);
        runner.set(x, Value::host(Tensor::f32(&[2], &[4.0, -4.0])))?;
        runner.set(rate, Value::host(Tensor::f32(&[], &[0.5])))?;
        assert_eq!(runner.run()?.scalar(loss)?, 32.0);
        assert_eq!(runner.state(&"w".into())?.to_f64(), [2.0, -2.0]);
        let after_one = runner.snapshot();
        assert_eq!(runner.run()?.scalar(loss)?, 8.0);
        runner.restore(&after_one);
        assert_eq!(runner.state(&"w".into())?.to_f64(), [2.0, -2.0]);
        runner.reset()?;
        let outputs = runner.step(&[("rate".into(), Value::host(Tensor::f32(&[], &[1.0])))])?;
        assert_eq!(outputs[&"loss".into()].scalar()?, 32.0);
        assert_eq!(runner.state(&"w".into())?.to_f64(), [4.0, -4.0]);
        runner.set_state(&"w".into(), &Tensor::f32(&[2], &[1.0, 1.0]))?;
        assert_eq!(runner.state(&"w".into())?.to_f64(), [1.0, 1.0]);
        Ok(())
    }

    #[test]
    fn wrong_feeds_are_refused_by_name() -> Result<()> {
        let mut runner = descent()?;
        let error = runner.run().err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(error, "tensor 'x': this input of the step was never fed");
        let x = runner.feed(&"x".into())?;
        assert!(runner.set(x, Value::host(Tensor::f32(&[3], &[0.0; 3]))).is_err());
        assert!(runner.feed(&"nothing".into()).is_err());
        Ok(())
    }
    /// `m ← ¾ m + ¼ g`, `w ← w − rate · m / 2`, with a loss beside them.
    fn momentum(shape: &[usize]) -> Result<StepProgram> {
        let mut b = Builder::new("momentum");
        let [w, m, g] = ["w", "m", "g"].map(|name| b.input(name, Fact::new(DType::F32, shape)));
        let rate = b.input("rate", Fact::new(DType::F32, &[]));
        let half = b.mul_scalar(&rate, 0.5);
        let (kept, taken) = (b.mul_scalar(&m, 0.75), b.mul_scalar(&g, 0.25));
        let next_m = b.add(&kept, &taken);
        let step = b.mul(&next_m, &half);
        let next_w = b.sub(&w, &step);
        let loss = b.add_scalar(&half, 1.0);
        [&loss, &next_w, &next_m].into_iter().for_each(|value| b.output(value));
        let state = |input: ValueId, output: ValueId| State {
            input,
            output,
            initial: Tensor::zeros(DType::F32, shape),
        };
        let state = vec![state(w, next_w), state(m, next_m)];
        let (graph, facts) = b.finish();
        Ok(StepProgram { model: Model::new(graph, WORKING_OPSET), facts, state })
    }

    #[test]
    fn large_state_is_replaced_piece_by_piece_and_never_under_a_reader() -> Result<()> {
        // Not a whole number of pieces.
        let shape = [1100, 1000];
        let program = momentum(&shape)?;
        let mut runner = Runner::new(Arc::new(TractExecutor::new(1)?), &program)?;
        assert_eq!(runner.parts.len(), 1);
        let count = shape[0] * shape[1];
        let gradient: Vec<f32> = (0..count).map(|i| (i % 1013) as f32).collect();
        runner.set(runner.feed(&ValueId::new("g"))?, Value::host(Tensor::f32(&shape, &gradient)))?;
        let rate = runner.feed(&ValueId::new("rate"))?;
        runner.set(rate, Value::host(Tensor::scalar(DType::F32, 2.0)))?;
        let (mut w, mut m) = (vec![0.0f32; count], vec![0.0f32; count]);
        let mut read = vec![];
        for _ in 0..3 {
            let before = (runner.snapshot(), w.clone());
            let outputs = runner.run()?;
            assert_eq!(outputs.scalar(Fetch(0))?, 2.0);
            for ((w, m), g) in w.iter_mut().zip(&mut m).zip(&gradient) {
                *m = 0.75 * *m + 0.25 * g;
                *w -= *m;
            }
            assert_eq!(runner.state(&ValueId::new("w"))?.to_f32(), w);
            assert_eq!(runner.state(&ValueId::new("m"))?.to_f32(), m);
            read.push(before);
        }
        for (snapshot, w) in read {
            runner.restore(&snapshot);
            assert_eq!(runner.state(&ValueId::new("w"))?.to_f32(), w, "what was read stays as it was");
        }
        let small = Runner::new(Arc::new(TractExecutor::new(1)?), &momentum(&[10])?)?;
        assert!(small.parts.is_empty());
        Ok(())
    }
}
