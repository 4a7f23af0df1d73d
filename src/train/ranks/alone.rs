//! What stands for MPI in a build without it: there is never a job.

use super::Launch;
use crate::error::{Error, Result};

/// Several processes: none of these can be made.
pub enum Job {}

impl Job {
    pub fn join(launch: Launch) -> Result<Option<Self>> {
        match launch.size {
            0 | 1 => Ok(None),
            size => {
                let what = format!(
                    "this is one of {size} processes, but this build trains in one: each would train alone"
                );
                Err(Error::usage(what).hint(
                    "start it without mpirun, or build it with `cargo build --release --features mpi` \
                     (docs/several-processes.md)",
                ))
            }
        }
    }
    pub fn size(&self) -> usize {
        match *self {}
    }
    pub fn index(&self) -> usize {
        match *self {}
    }
    pub fn neighbours(&self) -> usize {
        match *self {}
    }
    pub fn sum<T: Clone>(&self, _: &[T]) -> Vec<T> {
        match *self {}
    }
    pub fn broadcast(&self, _: &mut [u8]) {
        match *self {}
    }
    pub fn all_fail(&self) -> bool {
        match *self {}
    }
    pub fn abort(&self, _: u8) -> ! {
        match *self {}
    }
}
