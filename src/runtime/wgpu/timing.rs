//! Where a program's time goes, kernel by kernel. Look at [`Program::profile`].

use super::program::{Program, Run};
use super::step::Step;
use crate::error::Result;
use crate::runtime::Value;

/// The dispatches of one kernel file, timed one by one.
#[derive(Clone, Debug)]
pub struct KernelTime {
    pub kernel: String,
    /// Operations of the plan, several of which may go as one dispatch.
    pub calls: usize,
    pub dispatches: usize,
    pub seconds: f64,
}

impl Program {
    /// Runs once, and says what each kernel file took, most expensive first: by the device's own clock, or, where it
    /// has none, by waiting for every dispatch, which adds the cost of submitting it.
    ///
    /// # Errors
    /// As [`crate::runtime::Compiled::run`].
    pub fn profile(&self, inputs: &[Value]) -> Result<Vec<KernelTime>> {
        let run = self.begin(inputs)?;
        if self.gpu.tick.is_none() {
            // What was submitted before isn't to be waited for as part of the first dispatch.
            self.gpu.wait(None)?;
        }
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        self.copy_in(&mut encoder, &run);
        self.gpu.queue.submit([encoder.finish()]);
        let seconds = self.seconds(&self.steps, &run)?;
        let mut times: Vec<KernelTime> = vec![];
        for (step, seconds) in self.steps.iter().zip(seconds) {
            match times.iter_mut().find(|time| time.kernel == step.kernel) {
                Some(time) => {
                    time.calls += step.calls;
                    time.dispatches += 1;
                    time.seconds += seconds;
                }
                None => times.push(KernelTime {
                    kernel: step.kernel.clone(),
                    calls: step.calls,
                    dispatches: 1,
                    seconds,
                }),
            }
        }
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(times)
    }
    /// Seconds of each of `steps`, one after the other.
    pub(super) fn seconds(&self, steps: &[Step], run: &Run) -> Result<Vec<f64>> {
        let mut seconds = vec![];
        for steps in steps.chunks(wgpu::QUERY_SET_MAX_QUERIES as usize / 2) {
            seconds.extend(match self.gpu.tick {
                Some(tick) => self.clocked(steps, run, tick)?,
                None => self.waited_for(steps, run)?,
            });
        }
        Ok(seconds)
    }
    /// Seconds of each of `steps` by the device's clock, each in a pass of its own.
    fn clocked(&self, steps: &[Step], run: &Run, tick: f64) -> Result<Vec<f64>> {
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
            self.dispatch(&mut pass, step, run)?;
        }
        encoder.resolve_query_set(&queries, 0..count, &stamps, 0);
        self.gpu.queue.submit([encoder.finish()]);
        let ticks: Vec<u64> = self.gpu.read_as(&stamps, 0, count as usize)?;
        Ok(ticks.chunks(2).map(|t| t[1].saturating_sub(t[0]) as f64 * tick / 1e9).collect())
    }
    /// Seconds of each of `steps` by the host's clock.
    fn waited_for(&self, steps: &[Step], run: &Run) -> Result<Vec<f64>> {
        let one = |step: &Step| {
            let start = std::time::Instant::now();
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            self.dispatch(&mut encoder.begin_compute_pass(&Default::default()), step, run)?;
            let index = self.gpu.queue.submit([encoder.finish()]);
            self.gpu.wait(Some(index))?;
            Ok(start.elapsed().as_secs_f64())
        };
        steps.iter().map(one).collect()
    }
}
