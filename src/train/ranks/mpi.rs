//! Several processes, over MPI.
//!
//! MPI's own errors (a peer that is gone, a connection that broke) end all ranks: that is its default, and nothing here
//! changes it.

use super::Launch;
use crate::error::{Error, Result};
use mpi::Threading;
use mpi::collective::{CommunicatorCollectives, Root, SystemOperation};
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::Equivalence;
use std::time::{Duration, Instant};

/// The processes that were started together.
pub struct Job {
    world: SimpleCommunicator,
    /// Where ranks meet that fail: whatever the others are waiting for in `world`.
    failures: SimpleCommunicator,
    neighbours: usize,
    /// Ends MPI when it is dropped, so it comes last.
    _universe: Universe,
}

/// How long a rank that fails waits for all others to fail too.
const MEETING: Duration = Duration::from_secs(3);
/// Numbers that MPI is given at once: it counts in 32 bits.
const AT_ONCE: usize = 1 << 24;

impl Job {
    /// Starts MPI. `None` for a process that a launcher started alone.
    pub fn join(launch: Launch) -> Result<Option<Self>> {
        // Executors have threads, but only this one ever calls MPI.
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(Error::usage("MPI was started in this process before"));
        };
        let world = universe.world();
        let size = world.size() as usize;
        if size == 1 && launch.size > 1 {
            let what = format!("the launcher started {} processes, but MPI knows of one", launch.size);
            return Err(Error::usage(what).hint(
                "the launcher belongs to another MPI than the one this program was built with: start it with that one's",
            ));
        }
        if threading < Threading::Funneled {
            return Err(Error::usage("this MPI library doesn't allow a program to have threads"));
        }
        if size == 1 {
            return Ok(None);
        }
        let failures = world.duplicate();
        let neighbours = world.split_shared(world.rank()).size() as usize;
        Ok(Some(Self { world, failures, neighbours, _universe: universe }))
    }

    pub fn size(&self) -> usize {
        self.world.size() as usize
    }
    pub fn index(&self) -> usize {
        self.world.rank() as usize
    }
    /// Ranks on this machine, this one among them.
    pub fn neighbours(&self) -> usize {
        self.neighbours
    }

    pub fn sum<T: Equivalence + Default + Clone>(&self, numbers: &[T]) -> Vec<T> {
        let mut sums = vec![T::default(); numbers.len()];
        for (numbers, sums) in numbers.chunks(AT_ONCE).zip(sums.chunks_mut(AT_ONCE)) {
            self.world.all_reduce_into(numbers, sums, SystemOperation::sum());
        }
        sums
    }

    /// Replaces `bytes` with the first rank's, which must be as many.
    pub fn broadcast(&self, bytes: &mut [u8]) {
        for bytes in bytes.chunks_mut(AT_ONCE) {
            self.world.process_at_rank(0).broadcast_into(bytes);
        }
    }

    pub fn all_fail(&self) -> bool {
        let mut meeting = self.failures.immediate_barrier();
        let begun = Instant::now();
        loop {
            match meeting.test() {
                Ok(_) => return true,
                Err(unfinished) if begun.elapsed() < MEETING => meeting = unfinished,
                Err(unfinished) => {
                    // What was begun can't be taken back; the caller ends the process.
                    std::mem::forget(unfinished);
                    return false;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn abort(&self, code: u8) -> ! {
        self.world.abort(i32::from(code))
    }
}

impl Drop for Job {
    /// MPI ends when all ranks end it, which the others won't while this one panics.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(101);
        }
    }
}
