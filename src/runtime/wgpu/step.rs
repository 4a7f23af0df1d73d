//! Dispatches: pipelines, what each binds, and the words that say which parameters it has. Look at [`prepare`].

use super::batch::Batch;
use super::gpu::Gpu;
use super::kernel::{alone, block_words, kernel_name};
use super::layout::{ALIGNMENT, Layout, Place};
use super::plan::{Call, StorageId};
use super::together::together;
use crate::error::{Error, Result};

/// A dispatch, ready to go.
pub struct Step {
    pub kernel: String,
    pub calls: usize,
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub params: Params,
    pub tensors: Vec<Bound>,
    pub groups: (u32, u32),
    /// Where it binds the same every run.
    pub bound: Option<wgpu::BindGroup>,
}

/// What a dispatch binds at 0: (first byte, bytes).
#[derive(Clone, Copy)]
pub enum Params {
    /// One call's parameters, a part of [`Words::alone`].
    Alone(u64, u64),
    /// The table of many calls, a part of [`Words::together`].
    Together(u64, u64),
}

/// What stands for a tensor in a dispatch.
#[derive(Clone, Copy, PartialEq)]
pub enum Bound {
    Storage(StorageId),
    /// The whole arena, of which a table says the place.
    Arena,
}

/// The parameters of all dispatches.
#[derive(Default)]
pub struct Words {
    pub alone: Vec<i32>,
    pub together: Vec<i32>,
}

/// The dispatches of `batches`, and their parameters.
///
/// # Errors
/// When a dispatch is too large for the device, or a kernel can't be compiled.
pub fn prepare(gpu: &Gpu, layout: &Layout, batches: &[Batch]) -> Result<(Vec<Step>, Words)> {
    let (preparing, mut words) = (Preparing { gpu, layout }, Words::default());
    let one = |batch: &Batch| match batch.calls.as_slice() {
        [call] if !preparing.in_arena(call) => preparing.alone(call, &mut words.alone),
        calls => preparing.together(calls, &mut words.together),
    };
    let steps = batches.iter().map(one).collect::<Result<_>>()?;
    Ok((steps, words))
}

struct Preparing<'a> {
    gpu: &'a Gpu,
    layout: &'a Layout,
}

impl Preparing<'_> {
    /// Whether a call reads and writes the arena, which can't be bound for both but as a whole.
    fn in_arena(&self, call: &Call) -> bool {
        let there =
            |ids: &[StorageId]| ids.iter().any(|&id| matches!(self.layout.places[id], Place::Arena(_)));
        there(&call.reads) && there(&call.writes)
    }
    fn alone(&self, call: &Call, words: &mut Vec<i32>) -> Result<Step> {
        let start = words.len();
        words.extend(&call.params);
        words.resize(start + block_words(call.params.len()), 0);
        let params = Params::Alone(start as u64 * 4, (words.len() - start) as u64 * 4);
        words.resize(words.len().next_multiple_of(self.gpu.uniform_alignment / 4), 0);
        let groups = self.folded(call.groups)?;
        let tensors = call.tensors().map(Bound::Storage).collect();
        self.step(&alone(&call.source, call.params.len()), 1, params, tensors, groups)
    }
    fn together(&self, calls: &[Call], words: &mut Vec<i32>) -> Result<Step> {
        let missing = || Error::executor("wgpu", "a kernel has no form for many calls");
        let call = calls.first().ok_or_else(missing)?;
        let kernel = together(&call.source).ok_or_else(missing)?;
        let groups = self.folded(calls.iter().map(|call| call.groups).sum())?;
        let start = words.len();
        // Two words a workgroup, then the blocks.
        let rows = (groups.0 * groups.1) as usize;
        let mut whose: Vec<i32> = Vec::with_capacity(2 * rows);
        let mut blocks: Vec<i32> = vec![];
        for call in calls {
            let block = (2 * rows + blocks.len()) as i32;
            (0..call.groups as i32).for_each(|group| whose.extend([block, group]));
            for (id, width) in call.tensors().zip(&kernel.widths) {
                blocks.push(match self.layout.places[id] {
                    Place::Arena(at) => (at / width) as i32,
                    _ => 0,
                });
            }
            blocks.extend(&call.params);
        }
        // What rounds the dispatch up comes after the last call's own workgroups: kernels leave that out.
        while let (true, [.., block, group]) = (whose.len() < 2 * rows, whose.as_slice()) {
            let next = [*block, *group + 1];
            whose.extend(next);
        }
        words.extend(whose);
        words.extend(blocks);
        let params = Params::Together(start as u64 * 4, (words.len() - start) as u64 * 4);
        words.resize(words.len().next_multiple_of(ALIGNMENT), 0);
        let bound = |id| match self.layout.places[id] {
            Place::Arena(_) => Bound::Arena,
            _ => Bound::Storage(id),
        };
        self.step(&kernel.text, calls.len(), params, call.tensors().map(bound).collect(), groups)
    }
    fn step(
        &self,
        text: &str,
        calls: usize,
        params: Params,
        tensors: Vec<Bound>,
        groups: (u32, u32),
    ) -> Result<Step> {
        let (kernel, pipeline) = (kernel_name(text).to_owned(), self.gpu.pipeline(text)?);
        let layout = pipeline.get_bind_group_layout(0);
        Ok(Step { kernel, calls, pipeline, layout, params, tensors, groups, bound: None })
    }
    /// So many workgroups as columns and rows, perhaps a few more.
    fn folded(&self, groups: usize) -> Result<(u32, u32)> {
        let most = self.gpu.max_groups as usize;
        let rows = groups.div_ceil(most);
        match rows <= most {
            true => Ok((groups.div_ceil(rows) as u32, rows as u32)),
            false => Err(Error::executor("wgpu", "a tensor is too large for one dispatch")),
        }
    }
}
