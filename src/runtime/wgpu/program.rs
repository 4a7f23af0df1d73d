//! A plan on a device: memory for every storage, and one command buffer a run.
//!
//! Outputs get fresh buffers each run, so they can be the next run's inputs without the host's doing. Look at [`Program`].

use super::gpu::{Gpu, Memory};
use super::layout::{Layout, Own, Place, arrange, padded};
use super::plan::{Call, Origin, Plan, StorageId};
use super::search::Search;
use super::step::{Bound, Params, Step, prepare};
use super::value::WgpuValue;
use crate::error::{Error, Result};
use crate::onnx::Fact;
use crate::runtime::{Compiled, Value};
use std::sync::Arc;

/// Runs that may wait on the device before the host waits for them.
const IN_FLIGHT: usize = 2;

/// A compiled graph.
pub struct Program {
    pub(super) gpu: Arc<Gpu>,
    pub(super) steps: Vec<Step>,
    layout: Layout,
    lens: Vec<usize>,
    /// Parameters of the dispatches of one call, and of those of many.
    alone: wgpu::Buffer,
    together: wgpu::Buffer,
    arena: Option<Arc<Memory>>,
    own: Vec<Arc<Memory>>,
    inputs: Vec<Fact>,
    /// For each output where it is after a run.
    outputs: Vec<(Place, Fact)>,
    submitted: std::collections::VecDeque<wgpu::SubmissionIndex>,
}

/// What is another buffer every run.
pub(super) struct Run {
    /// The buffers of inputs, and the elements that these begin at.
    inputs: Vec<(Arc<Memory>, usize)>,
    fresh: Vec<Arc<Memory>>,
    /// What is copied out of the arena.
    outputs: Option<Arc<Memory>>,
}

impl Program {
    /// The tiles of large calls are chosen by `search`, where there is one.
    ///
    /// # Errors
    /// When memory is short, a dispatch too large for the device, or a kernel can't be compiled.
    pub fn new(gpu: &Arc<Gpu>, plan: &Plan, calls: Vec<Call>, search: Option<&Search>) -> Result<Self> {
        let calls: Vec<Call> = calls.into_iter().filter(|call| call.groups > 0).collect();
        let (mut batches, layout) = arrange(plan, &calls, gpu.max_buffers, gpu.max_bytes());
        if let Some(search) = search {
            search.choose(gpu, plan, &mut batches);
        }
        let arena = (layout.arena > 0).then(|| gpu.buffer(layout.arena)).transpose()?;
        let words = |id: StorageId| match &plan.storages[id].origin {
            Origin::Constant(words) => words.as_slice(),
            _ => &[],
        };
        let own = layout.own.iter().map(|own| match own {
            Own::Constant(id) => gpu.filled(words(*id)),
            Own::Slot(len) => gpu.buffer(*len),
        });
        let own = own.collect::<Result<_>>()?;
        if let Some(arena) = &arena {
            for &(id, at) in &layout.constants {
                gpu.queue.write_buffer(&arena.buffer, at as u64 * 4, bytemuck::cast_slice(words(id)));
            }
        }
        let result = |(id, fact): &(StorageId, Fact)| match plan.storages[*id].origin {
            Origin::Input(k) => (Place::Input(k), fact.clone()),
            _ => (layout.places[*id], fact.clone()),
        };
        let (steps, words) = prepare(gpu, &layout, &batches)?;
        let mut program = Self {
            gpu: gpu.clone(),
            steps,
            lens: plan.storages.iter().map(|s| s.len).collect(),
            alone: parameters(gpu, &words.alone, wgpu::BufferUsages::UNIFORM),
            together: parameters(gpu, &words.together, wgpu::BufferUsages::STORAGE),
            arena,
            own,
            inputs: plan.inputs.clone(),
            outputs: plan.outputs.iter().map(result).collect(),
            layout,
            submitted: Default::default(),
        };
        program.bind_what_stays()?;
        Ok(program)
    }
    /// Binds once what is the same every run.
    fn bind_what_stays(&mut self) -> Result<()> {
        let stays = |bound: &Bound| match *bound {
            Bound::Arena => true,
            Bound::Storage(id) => matches!(self.layout.places[id], Place::Own(_) | Place::Arena(_)),
        };
        let none = Run { inputs: vec![], fresh: vec![], outputs: None };
        let bind = |step: &Step| step.tensors.iter().all(stays).then(|| self.bind(step, &none)).transpose();
        let bound = self.steps.iter().map(bind).collect::<Result<Vec<_>>>()?;
        self.steps.iter_mut().zip(bound).for_each(|(step, bound)| step.bound = bound);
        self.gpu.check()
    }
    /// The buffer of a place in this run, and the element there.
    fn memory<'a>(&'a self, place: Place, run: &'a Run) -> Result<(&'a Arc<Memory>, usize)> {
        let found = match place {
            Place::Input(k) => run.inputs.get(k).map(|(memory, start)| (memory, *start)),
            Place::Own(k) => self.own.get(k).map(|memory| (memory, 0)),
            Place::Fresh(k) => run.fresh.get(k).map(|memory| (memory, 0)),
            Place::Arena(at) => self.arena.as_ref().map(|memory| (memory, at)),
            Place::Nowhere => None,
        };
        found.ok_or_else(|| Error::executor("wgpu", "a value of the plan has no memory"))
    }
    fn bind(&self, step: &Step, run: &Run) -> Result<wgpu::BindGroup> {
        let mut ranges = vec![match step.params {
            Params::Alone(offset, size) => range(&self.alone, offset, size),
            Params::Together(offset, size) => range(&self.together, offset, size),
        }];
        for bound in &step.tensors {
            ranges.push(match (bound, &self.arena) {
                (Bound::Storage(id), _) => {
                    let (memory, start) = self.memory(self.layout.places[*id], run)?;
                    range(&memory.buffer, start as u64 * 4, padded(self.lens[*id]) as u64 * 4)
                }
                (Bound::Arena, Some(arena)) => range(&arena.buffer, 0, arena.buffer.size()),
                (Bound::Arena, None) => return Err(Error::executor("wgpu", "no arena")),
            });
        }
        let entry = |(i, range)| wgpu::BindGroupEntry {
            binding: i as u32,
            resource: wgpu::BindingResource::Buffer(range),
        };
        let entries: Vec<_> = ranges.into_iter().enumerate().map(entry).collect();
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &step.layout, entries: &entries };
        Ok(self.gpu.device.create_bind_group(&descriptor))
    }
    pub(super) fn begin(&self, values: &[Value]) -> Result<Run> {
        let fresh =
            self.layout.fresh.iter().map(|&id| self.gpu.buffer(self.lens[id])).collect::<Result<_>>()?;
        let out = self.layout.copied_out.len();
        let outputs = (out > 0).then(|| self.gpu.buffer(out)).transpose()?;
        Ok(Run { inputs: self.receive(values)?, fresh, outputs })
    }
    fn receive(&self, values: &[Value]) -> Result<Vec<(Arc<Memory>, usize)>> {
        if values.len() != self.inputs.len() {
            let (given, needed) = (values.len(), self.inputs.len());
            return Err(Error::executor("wgpu", format!("{given} inputs were given, {needed} are needed")));
        }
        let one = |(i, (value, fact)): (usize, (&Value, &Fact))| {
            if value.fact() != *fact {
                let got = value.fact();
                return Err(Error::executor("wgpu", format!("input {i} is {got:?}, not {fact:?}")));
            }
            match value.downcast::<WgpuValue>() {
                Some(own) if Arc::ptr_eq(own.memory.gpu(), &self.gpu) => Ok((own.memory.clone(), own.start)),
                _ => Ok((WgpuValue::upload(&self.gpu, &value.to_host()?)?.memory, 0)),
            }
        };
        values.iter().zip(&self.inputs).enumerate().map(one).collect()
    }
    /// Copies inputs into the arena: what lies side by side here and there, as the state of the run before does, at once.
    pub(super) fn copy_in(&self, encoder: &mut wgpu::CommandEncoder, run: &Run) {
        let Some(arena) = &self.arena else { return };
        let mut copies: Vec<(&wgpu::Buffer, usize, usize, usize)> = vec![];
        for &(k, to) in &self.layout.copied_in {
            let ((memory, from), len) = (&run.inputs[k], padded(self.inputs[k].len()));
            match copies.last_mut() {
                Some((buffer, first, at, all))
                    if **buffer == memory.buffer && *first + *all == *from && *at + *all == to =>
                {
                    *all += len;
                }
                _ => copies.push((&memory.buffer, *from, to, len)),
            }
        }
        for (buffer, from, to, len) in copies {
            let [from, to, len] = [from, to, len].map(|elements| elements as u64 * 4);
            encoder.copy_buffer_to_buffer(buffer, from, &arena.buffer, to, len);
        }
    }
    pub(super) fn copy_out(&self, encoder: &mut wgpu::CommandEncoder, run: &Run) {
        if let (Some(arena), Some(outputs)) = (&self.arena, &run.outputs) {
            let out = &self.layout.copied_out;
            let [from, len] = [out.start, out.len()].map(|elements| elements as u64 * 4);
            encoder.copy_buffer_to_buffer(&arena.buffer, from, &outputs.buffer, 0, len);
        }
    }
    pub(super) fn dispatch(&self, pass: &mut wgpu::ComputePass, step: &Step, run: &Run) -> Result<()> {
        pass.set_pipeline(&step.pipeline);
        match &step.bound {
            Some(bound) => pass.set_bind_group(0, bound, &[]),
            None => pass.set_bind_group(0, &self.bind(step, run)?, &[]),
        }
        pass.dispatch_workgroups(step.groups.0, step.groups.1, 1);
        Ok(())
    }
    fn encode(&self, run: &Run) -> Result<wgpu::CommandBuffer> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        self.copy_in(&mut encoder, run);
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for step in &self.steps {
            self.dispatch(&mut pass, step, run)?;
        }
        drop(pass);
        self.copy_out(&mut encoder, run);
        Ok(encoder.finish())
    }
    /// The value of an output after a run.
    fn value(&self, place: Place, fact: &Fact, run: &Run) -> Result<Value> {
        let (memory, start) = match (place, &run.outputs) {
            (Place::Arena(at), Some(outputs)) => (outputs, at - self.layout.copied_out.start),
            _ => self.memory(place, run)?,
        };
        Ok(Value::new(WgpuValue { memory: memory.clone(), start, fact: fact.clone() }))
    }
}

/// A buffer of parameters.
fn parameters(gpu: &Gpu, words: &[i32], usage: wgpu::BufferUsages) -> wgpu::Buffer {
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("parameters"),
        size: (words.len().max(4) * 4) as u64,
        usage: usage | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(words));
    buffer
}

fn range(buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(size) }
}

impl Compiled for Program {
    fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>> {
        let run = self.begin(inputs)?;
        if !self.steps.is_empty() {
            let commands = self.encode(&run)?;
            self.submitted.push_back(self.gpu.queue.submit([commands]));
        }
        if self.submitted.len() > IN_FLIGHT {
            let oldest = self.submitted.pop_front();
            self.gpu.wait(oldest)?;
        }
        self.gpu.check()?;
        self.outputs.iter().map(|(place, fact)| self.value(*place, fact, &run)).collect()
    }
}
