//! Tensors in GPU memory.

use super::gpu::{Gpu, Memory};
use super::plan::{from_words, words};
use crate::error::{Error, Result};
use crate::onnx::{Fact, Tensor};
use crate::runtime::DeviceValue;
use std::sync::Arc;

/// A row-major tensor in a buffer, one 32-bit word an element.
pub struct WgpuValue {
    pub(super) memory: Arc<Memory>,
    /// The element of the buffer that it begins at.
    pub(super) start: usize,
    pub(super) fact: Fact,
}

impl WgpuValue {
    pub(super) fn upload(gpu: &Arc<Gpu>, tensor: &Tensor) -> Result<Self> {
        let words = words(tensor).map_err(|e| Error::executor("wgpu", e))?;
        if words.len() as u64 * 4 > gpu.max_bytes() {
            let (size, limit) = (words.len() >> 18, gpu.max_bytes() >> 20);
            let what = format!(
                "a tensor of {size} MiB is larger than the {limit} MiB that this GPU can bind at once"
            );
            return Err(Error::executor("wgpu", what));
        }
        Ok(Self { memory: gpu.filled(&words)?, start: 0, fact: Fact::of(tensor) })
    }
}

impl DeviceValue for WgpuValue {
    fn fact(&self) -> Fact {
        self.fact.clone()
    }
    fn to_host(self: std::sync::Arc<Self>) -> Result<Tensor> {
        let words = self.memory.gpu().read(&self.memory, self.start, self.fact.len())?;
        let tensor = from_words(&self.fact, &words);
        tensor.ok_or_else(|| Error::executor("wgpu", format!("{:?} can't be read back", self.fact)))
    }
}
