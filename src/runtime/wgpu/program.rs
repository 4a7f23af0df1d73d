//! A plan on a device: memory for every storage, a pipeline for every call, and one command buffer a run.
//!
//! Intermediate results share buffers (*slots*) that are free again after their last reader. Outputs get
//! fresh buffers each run, so they can be the next run's inputs without a copy. Look at [`Program`].

use super::gpu::{Gpu, Memory};
use super::kernel::{block_words, kernel_name};
use super::plan::{Call, Origin, Plan, StorageId};
use super::value::WgpuValue;
use crate::error::{Error, Result};
use crate::onnx::Fact;
use crate::runtime::{Compiled, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// Runs that may wait on the device before the host waits for them.
const IN_FLIGHT: usize = 2;

/// Where a storage lives.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Place {
    Input(usize),
    /// An index into [`Program::resident`]: constants and slots, the same buffer every run.
    Resident(usize),
    /// An output of this run.
    Fresh(usize),
    /// Nobody needs it.
    Nowhere,
}

/// Where a program's time goes: the dispatches of one kernel file, timed one by one.
#[derive(Clone, Debug)]
pub struct KernelTime {
    pub kernel: String,
    pub dispatches: usize,
    pub seconds: f64,
}

struct Step {
    kernel: String,
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    /// Byte range of its parameters.
    params: (u64, u64),
    buffers: Vec<StorageId>,
    groups: (u32, u32),
    /// Where no input or output takes part.
    bound: Option<wgpu::BindGroup>,
}

/// A compiled graph.
pub struct Program {
    gpu: Arc<Gpu>,
    steps: Vec<Step>,
    params: Option<Arc<wgpu::Buffer>>,
    places: Vec<Place>,
    lens: Vec<usize>,
    resident: Vec<Arc<Memory>>,
    fresh: Vec<StorageId>,
    inputs: Vec<Fact>,
    outputs: Vec<(StorageId, Fact)>,
    submitted: std::collections::VecDeque<wgpu::SubmissionIndex>,
}

impl Program {
    pub fn new(gpu: &Arc<Gpu>, plan: &Plan, calls: Vec<Call>) -> Result<Self> {
        let calls: Vec<Call> = calls.into_iter().filter(|call| call.groups > 0).collect();
        let mut program = Self {
            gpu: gpu.clone(),
            steps: vec![],
            params: None,
            places: vec![Place::Nowhere; plan.storages.len()],
            lens: plan.storages.iter().map(|s| s.len).collect(),
            resident: vec![],
            fresh: vec![],
            inputs: plan.inputs.clone(),
            outputs: plan.outputs.clone(),
            submitted: Default::default(),
        };
        program.place_ends(plan, &calls)?;
        program.place_slots(plan, &calls)?;
        program.add_steps(&calls)?;
        Ok(program)
    }
    /// Inputs, constants that some kernel reads, and outputs.
    fn place_ends(&mut self, plan: &Plan, calls: &[Call]) -> Result<()> {
        let mut read = vec![false; plan.storages.len()];
        calls.iter().flat_map(|call| &call.reads).for_each(|&r| read[r] = true);
        plan.outputs.iter().for_each(|&(s, _)| read[s] = true);
        for (id, storage) in plan.storages.iter().enumerate() {
            match &storage.origin {
                Origin::Input(k) => self.places[id] = Place::Input(*k),
                Origin::Constant(words) if read[id] => {
                    self.places[id] = Place::Resident(self.resident.len());
                    self.resident.push(self.gpu.filled(words)?);
                }
                _ => {}
            }
        }
        for &(id, _) in &plan.outputs {
            if plan.storages[id].origin == Origin::Computed && self.places[id] == Place::Nowhere {
                self.places[id] = Place::Fresh(self.fresh.len());
                self.fresh.push(id);
            }
        }
        Ok(())
    }
    /// Gives every intermediate result a slot: the smallest free one that is large enough and not wastefully
    /// so, or a new one.
    fn place_slots(&mut self, plan: &Plan, calls: &[Call]) -> Result<()> {
        let mut last_use: HashMap<StorageId, usize> = HashMap::new();
        for (i, call) in calls.iter().enumerate() {
            last_use.extend(call.reads.iter().chain(&call.writes).map(|&s| (s, i)));
        }
        let mut slots: Vec<(usize, usize)> = vec![]; // (elements, index into `resident`)
        let mut free: Vec<usize> = vec![];
        let mut slot_of: HashMap<StorageId, usize> = HashMap::new();
        for (i, call) in calls.iter().enumerate() {
            // Tensors without elements are read, but nobody writes them.
            for &id in call.reads.iter().chain(&call.writes) {
                if self.places[id] != Place::Nowhere {
                    continue;
                }
                let need = plan.storages[id].len;
                let fits = |&&slot: &&usize| slots[slot].0 >= need && slots[slot].0 <= need.max(64) * 4;
                let slot = match free.iter().filter(fits).min_by_key(|&&slot| slots[slot].0).copied() {
                    Some(slot) => {
                        free.retain(|&other| other != slot);
                        slot
                    }
                    None => {
                        slots.push((need, self.resident.len()));
                        self.resident.push(self.gpu.buffer(need)?);
                        slots.len() - 1
                    }
                };
                self.places[id] = Place::Resident(slots[slot].1);
                slot_of.insert(id, slot);
            }
            for id in call.reads.iter().chain(&call.writes) {
                if last_use.get(id) == Some(&i)
                    && let Some(slot) = slot_of.remove(id)
                {
                    free.push(slot);
                }
            }
        }
        Ok(())
    }
    fn add_steps(&mut self, calls: &[Call]) -> Result<()> {
        let gpu = self.gpu.clone();
        let mut params: Vec<i32> = vec![];
        for call in calls {
            let (start, words) = (params.len(), block_words(call.params.len()));
            params.extend(&call.params);
            params.resize((start + words).next_multiple_of(gpu.uniform_alignment / 4), 0);
            let rows = call.groups.div_ceil(gpu.max_groups as usize);
            let columns = call.groups.div_ceil(rows);
            if rows > gpu.max_groups as usize {
                return Err(Error::executor("wgpu", "a tensor is too large for one dispatch"));
            }
            let pipeline = gpu.pipeline(&call.source)?;
            self.steps.push(Step {
                kernel: kernel_name(&call.source).to_owned(),
                layout: pipeline.get_bind_group_layout(0),
                pipeline,
                params: (start as u64 * 4, words as u64 * 4),
                buffers: call.reads.iter().chain(&call.writes).copied().collect(),
                groups: (columns as u32, rows as u32),
                bound: None,
            });
        }
        let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: (params.len().max(4) * 4) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&params));
        self.params = Some(Arc::new(buffer));
        for i in 0..self.steps.len() {
            let stays = |&id: &StorageId| matches!(self.places[id], Place::Resident(_));
            if self.steps[i].buffers.iter().all(stays) {
                self.steps[i].bound = Some(self.bind(&self.steps[i], &[], &[])?);
            }
        }
        gpu.check()
    }
    /// The buffer of a storage in this run.
    fn memory<'a>(
        &'a self,
        id: StorageId,
        inputs: &'a [Arc<Memory>],
        fresh: &'a [Arc<Memory>],
    ) -> Result<&'a Arc<Memory>> {
        let found = match self.places[id] {
            Place::Input(k) => inputs.get(k),
            Place::Resident(k) => self.resident.get(k),
            Place::Fresh(k) => fresh.get(k),
            Place::Nowhere => None,
        };
        found.ok_or_else(|| Error::executor("wgpu", "a value of the plan has no memory"))
    }
    fn bind(&self, step: &Step, inputs: &[Arc<Memory>], fresh: &[Arc<Memory>]) -> Result<wgpu::BindGroup> {
        let (offset, size) = step.params;
        let params = self.params.as_ref().ok_or_else(|| Error::executor("wgpu", "no parameters"))?;
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: params,
                offset,
                size: std::num::NonZeroU64::new(size),
            }),
        }];
        for (i, &id) in step.buffers.iter().enumerate() {
            let resource = self.memory(id, inputs, fresh)?.buffer.as_entire_binding();
            entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource });
        }
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &step.layout, entries: &entries };
        Ok(self.gpu.device.create_bind_group(&descriptor))
    }
    fn receive(&self, values: &[Value]) -> Result<Vec<Arc<Memory>>> {
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
                Some(own) if Arc::ptr_eq(own.memory.gpu(), &self.gpu) => Ok(own.memory.clone()),
                _ => Ok(WgpuValue::upload(&self.gpu, &value.to_host()?)?.memory),
            }
        };
        values.iter().zip(&self.inputs).enumerate().map(one).collect()
    }
    fn encode(
        &self,
        steps: &[Step],
        inputs: &[Arc<Memory>],
        fresh: &[Arc<Memory>],
    ) -> Result<wgpu::CommandBuffer> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for step in steps {
            self.dispatch(&mut pass, step, inputs, fresh)?;
        }
        drop(pass);
        Ok(encoder.finish())
    }
    fn dispatch(
        &self,
        pass: &mut wgpu::ComputePass,
        step: &Step,
        inputs: &[Arc<Memory>],
        fresh: &[Arc<Memory>],
    ) -> Result<()> {
        pass.set_pipeline(&step.pipeline);
        match &step.bound {
            Some(bound) => pass.set_bind_group(0, bound, &[]),
            None => pass.set_bind_group(0, &self.bind(step, inputs, fresh)?, &[]),
        }
        pass.dispatch_workgroups(step.groups.0, step.groups.1, 1);
        Ok(())
    }
    fn fresh(&self) -> Result<Vec<Arc<Memory>>> {
        self.fresh.iter().map(|&id| self.gpu.buffer(self.lens[id])).collect()
    }
    /// Runs once, and says what each kernel file took, most expensive first: by the device's own clock, or, where it
    /// has none, by waiting for every dispatch, which adds the cost of submitting it.
    ///
    /// # Errors
    /// As [`Compiled::run`].
    pub fn profile(&self, inputs: &[Value]) -> Result<Vec<KernelTime>> {
        let (inputs, fresh) = (self.receive(inputs)?, self.fresh()?);
        let mut seconds = vec![];
        for steps in self.steps.chunks(wgpu::QUERY_SET_MAX_QUERIES as usize / 2) {
            seconds.extend(match self.gpu.tick {
                Some(tick) => self.clocked(steps, &inputs, &fresh, tick)?,
                None => self.waited_for(steps, &inputs, &fresh)?,
            });
        }
        let mut times: Vec<KernelTime> = vec![];
        for (step, seconds) in self.steps.iter().zip(seconds) {
            match times.iter_mut().find(|time| time.kernel == step.kernel) {
                Some(time) => {
                    time.dispatches += 1;
                    time.seconds += seconds;
                }
                None => times.push(KernelTime { kernel: step.kernel.clone(), dispatches: 1, seconds }),
            }
        }
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(times)
    }
    /// Seconds of each of `steps` by the device's clock, each in a pass of its own.
    fn clocked(
        &self,
        steps: &[Step],
        inputs: &[Arc<Memory>],
        fresh: &[Arc<Memory>],
        tick: f64,
    ) -> Result<Vec<f64>> {
        let device = &self.gpu.device;
        let count = 2 * steps.len() as u32;
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("profile"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let stamps = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("profile"),
            size: u64::from(count) * 8,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        for (step, at) in steps.iter().zip((0..).step_by(2)) {
            let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(at),
                end_of_pass_write_index: Some(at + 1),
            });
            let mut pass =
                encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
            self.dispatch(&mut pass, step, inputs, fresh)?;
        }
        encoder.resolve_query_set(&queries, 0..count, &stamps, 0);
        self.gpu.queue.submit([encoder.finish()]);
        let ticks: Vec<u64> = self.gpu.read_as(&stamps, count as usize)?;
        Ok(ticks.chunks(2).map(|t| t[1].saturating_sub(t[0]) as f64 * tick / 1e9).collect())
    }
    /// Seconds of each of `steps` by the host's clock.
    fn waited_for(&self, steps: &[Step], inputs: &[Arc<Memory>], fresh: &[Arc<Memory>]) -> Result<Vec<f64>> {
        let one = |step: &Step| {
            let start = std::time::Instant::now();
            let commands = self.encode(std::slice::from_ref(step), inputs, fresh)?;
            let index = self.gpu.queue.submit([commands]);
            self.gpu.wait(Some(index))?;
            Ok(start.elapsed().as_secs_f64())
        };
        steps.iter().map(one).collect()
    }
}

impl Compiled for Program {
    fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>> {
        let inputs = self.receive(inputs)?;
        let fresh = self.fresh()?;
        if !self.steps.is_empty() {
            let commands = self.encode(&self.steps, &inputs, &fresh)?;
            self.submitted.push_back(self.gpu.queue.submit([commands]));
        }
        if self.submitted.len() > IN_FLIGHT {
            let oldest = self.submitted.pop_front();
            self.gpu.wait(oldest)?;
        }
        self.gpu.check()?;
        let value = |(id, fact): &(StorageId, Fact)| {
            let memory = self.memory(*id, &inputs, &fresh)?.clone();
            Ok(Value::new(WgpuValue { memory, fact: fact.clone() }))
        };
        self.outputs.iter().map(value).collect()
    }
}
