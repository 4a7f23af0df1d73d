//! The processes that train together, each with a share of every step's rows: who this one is, and what they tell each
//! other.
//!
//! Knows nothing of models or training. Look at [`Ranks`]. All ranks go the same way through a run: what one of them asks
//! here, all ask, in the same order, so whatever the way depends on must be the same everywhere, or the first rank's.

#[cfg(not(feature = "mpi"))]
mod alone;
mod gradients;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;

#[cfg(not(feature = "mpi"))]
use alone::Job;
#[cfg(feature = "mpi")]
use mpi::Job;

pub use gradients::sum_gradients;
pub use launch::Launch;

use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor, ValueId};
use std::ops::Range;
use std::rc::Rc;

/// All processes of a run, seen from one of them. A process by itself is the first of one, and pays nothing for it.
#[derive(Clone, Default)]
pub struct Ranks(Option<Rc<Job>>);

impl Ranks {
    /// The processes that `mpirun` started this one with; without it this one alone, and MPI isn't touched.
    ///
    /// # Errors
    /// [`Error::Usage`] where there are several, but this program was built without the feature `mpi`.
    pub fn join() -> Result<Self> {
        match Launch::find() {
            Some(launch) => Ok(Self(Job::join(launch)?.map(Rc::new))),
            None => Ok(Self(None)),
        }
    }

    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |job| job.size())
    }
    pub fn index(&self) -> usize {
        self.0.as_ref().map_or(0, |job| job.index())
    }
    /// Whether this is the one that talks, writes, and decides what only one can.
    pub fn is_first(&self) -> bool {
        self.index() == 0
    }
    pub fn are_several(&self) -> bool {
        self.0.is_some()
    }
    /// Threads for this rank where nobody said how many: its part of those of its machine. `None` for a process alone.
    pub fn threads(&self) -> Option<usize> {
        let neighbours = self.0.as_ref()?.neighbours();
        Some((crate::runtime::all_threads() / neighbours.max(1)).max(1))
    }

    /// This rank's part of `count` things: one after the other, as equal as can be, and empty for some where there are
    /// fewer things than ranks.
    pub fn share(&self, count: usize) -> Range<usize> {
        part(count, self.index(), self.size())
    }

    /// The sum over all ranks of each number, the same on all of them.
    fn sum(&self, numbers: Vec<f32>) -> Vec<f32> {
        match &self.0 {
            Some(job) => job.sum(&numbers),
            None => numbers,
        }
    }
    /// The same in double precision.
    pub fn sum_wide(&self, numbers: Vec<f64>) -> Vec<f64> {
        match &self.0 {
            Some(job) => job.sum(&numbers),
            None => numbers,
        }
    }

    /// What the first rank says to a question that each might answer otherwise.
    pub fn decide(&self, own: bool) -> bool {
        self.first([u8::from(own)]) != [0]
    }
    /// The first rank's number.
    pub fn first_number(&self, own: f64) -> f64 {
        f64::from_le_bytes(self.first(own.to_le_bytes()))
    }
    /// The first rank's numbers, which must be as many.
    pub fn first_floats(&self, own: &[f32]) -> Vec<f32> {
        let mut numbers = own.to_vec();
        if let Some(job) = &self.0 {
            job.broadcast(bytemuck::cast_slice_mut(&mut numbers));
        }
        numbers
    }
    /// The same of whole ones.
    pub fn first_numbers(&self, own: &[usize]) -> Vec<usize> {
        let Some(job) = &self.0 else { return own.to_vec() };
        let mut bytes: Vec<u8> = own.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
        job.broadcast(&mut bytes);
        bytes.as_chunks().0.iter().map(|&n| u64::from_le_bytes(n) as usize).collect()
    }
    fn first<const N: usize>(&self, mut bytes: [u8; N]) -> [u8; N] {
        if let Some(job) = &self.0 {
            job.broadcast(&mut bytes);
        }
        bytes
    }

    /// What `make` gives on the first rank; it isn't called on the others.
    ///
    /// # Errors
    /// Those of `make`, on the first rank.
    pub fn first_bytes(&self, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let mut bytes = if self.is_first() { make()? } else { vec![] };
        if let Some(job) = &self.0 {
            let length = u64::from_le_bytes(self.first((bytes.len() as u64).to_le_bytes()));
            bytes.resize(length as usize, 0);
            job.broadcast(&mut bytes);
        }
        Ok(bytes)
    }
    /// The same for named tensors.
    pub fn first_tensors(
        &self,
        make: impl FnOnce() -> Result<Vec<(ValueId, Tensor)>>,
    ) -> Result<Vec<(ValueId, Tensor)>> {
        if !self.are_several() {
            return make();
        }
        let own = if self.is_first() { make()? } else { vec![] };
        let describe =
            |(id, t): &(ValueId, Tensor)| (id.to_string(), t.dtype().to_onnx(), t.shape().to_vec());
        let described: Vec<(String, i32, Vec<usize>)> = own.iter().map(describe).collect();
        let broken =
            |e: serde_json::Error| Error::usage(format!("the first rank's tensors have no text: {e}"));
        let described = self.first_bytes(|| serde_json::to_vec(&described).map_err(broken))?;
        let described: Vec<(String, i32, Vec<usize>)> = serde_json::from_slice(&described).map_err(broken)?;
        let mut own = own.into_iter();
        let mut all = vec![];
        for (name, dtype, shape) in described {
            let mine = own.next();
            let bytes =
                self.first_bytes(|| Ok(mine.map_or(vec![], |(_, tensor)| tensor.bytes().to_vec())))?;
            all.push((ValueId::new(name), Tensor::new(DType::from_onnx(dtype), &shape, bytes)?));
        }
        Ok(all)
    }

    /// Whether all ranks have the same number.
    pub fn agree_on(&self, number: u64) -> bool {
        let differs = u64::from_le_bytes(self.first(number.to_le_bytes())) != number;
        self.sum_wide(vec![f64::from(u8::from(differs))]) == [0.0]
    }

    /// Whether all ranks are failing now, as they do where each reads the same wrong input. Waits a moment for them; where
    /// they don't all come, nothing can be asked any more, and this one must [`Ranks::abort`].
    pub fn all_fail(&self) -> bool {
        self.0.as_ref().is_none_or(|job| job.all_fail())
    }
    /// Ends all ranks at once.
    pub fn abort(&self, code: u8) -> ! {
        match &self.0 {
            Some(job) => job.abort(code),
            None => std::process::exit(i32::from(code)),
        }
    }
}

/// Part `index` of `parts` of the numbers below `count`.
fn part(count: usize, index: usize, parts: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_and_complete() {
        for (count, parts) in [(64, 4), (10, 4), (3, 5), (0, 2), (7, 1)] {
            let shares: Vec<_> = (0..parts).map(|i| part(count, i, parts)).collect();
            assert_eq!(shares.iter().cloned().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
            let lengths = || shares.iter().map(Range::len);
            assert!(lengths().max() <= lengths().min().map(|least| least + 1), "{count} among {parts}");
        }
    }

    #[test]
    fn a_process_alone_is_the_first_and_only_one() {
        let ranks = Ranks::default();
        assert_eq!((ranks.size(), ranks.index(), ranks.share(10), ranks.threads()), (1, 0, 0..10, None));
        assert!(ranks.decide(true) && !ranks.decide(false) && ranks.agree_on(7) && ranks.all_fail());
        assert_eq!(ranks.first_number(0.5), 0.5);
        assert_eq!(ranks.first_bytes(|| Ok(vec![1, 2])).unwrap(), [1, 2]);
        assert_eq!(ranks.sum_wide(vec![0.25]), [0.25]);
    }
}
