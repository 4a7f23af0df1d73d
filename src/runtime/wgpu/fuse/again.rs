//! Computes again what would have to be written for a later kernel to read, from what is in memory anyway: as on the way
//! back through an activation function, whose steps on the way forward then need no memory.

use super::{Fuser, Guest, MAX_OPERATIONS, Placed, Seat};
use crate::runtime::wgpu::plan::{Op, Origin, Plan, StorageId};

/// Operations that make one value again at most.
const MAX_STEPS: usize = 12;
/// Values this many times smaller than what is made from them cost nothing to read.
const SMALL: usize = 8;

/// By storage: whether it is in memory in any case, as kernels of other kinds and the host have to do with it.
pub fn kept(plan: &Plan) -> Vec<bool> {
    let mut kept: Vec<bool> = plan.storages.iter().map(|s| s.origin != Origin::Computed).collect();
    plan.outputs.iter().for_each(|&(output, _)| kept[output] = true);
    for op in &plan.ops {
        if let Op::Call(call) = op {
            call.reads.iter().chain(&call.writes).for_each(|&s| kept[s] = true);
        }
    }
    kept
}

impl<'a> Fuser<'a> {
    /// Has the kernel `at` compute again what an operation would read of earlier ones. Says how the operation stands then;
    /// `None`, and nothing changes, where there is no such thing.
    pub fn prepare(&mut self, guest: &Guest<'a>, at: usize) -> Option<Seat> {
        let mut steps = vec![];
        for input in guest.inputs {
            let elsewhere = self.ready[input.storage].is_some_and(|made| made < at);
            if elsewhere && !self.is_here(input.storage, at) && !self.kept[input.storage] {
                self.steps(input.storage, at, &mut steps)?;
            }
        }
        let Placed::Group(group) = &self.placed[at] else { return None };
        if steps.is_empty() || group.made.len() + steps.len() >= MAX_OPERATIONS {
            return None;
        }
        let (before, uses) = (group.clone(), self.uses.clone());
        let mut join = |step: &Guest<'a>| {
            let seat = self.seat(step, at)?;
            self.join(step, at, seat);
            Some(())
        };
        let joined = steps.iter().try_for_each(&mut join);
        let seat = joined.and_then(|()| self.seat(guest, at));
        if seat.is_none() {
            self.placed[at] = Placed::Group(before);
            self.uses = uses;
        }
        seat
    }
    /// The operations that make a value, from at most one tensor of its size that isn't read yet; `None` where that
    /// can't be.
    fn steps(&self, storage: StorageId, at: usize, steps: &mut Vec<Guest<'a>>) -> Option<()> {
        let large = self.maps.get(&storage)?.len();
        let (mut look, mut sources) = (vec![storage], vec![]);
        let mut found: Vec<Guest<'a>> = vec![];
        while let Some(storage) = look.pop() {
            let known = self.is_here(storage, at) || steps.iter().chain(&found).any(|s| s.out == storage);
            let small = self.plan.storages[storage].len * SMALL <= large;
            if known || small {
                continue;
            }
            if self.kept[storage] {
                if !sources.contains(&storage) {
                    sources.push(storage);
                }
                continue;
            }
            let guest = self.maps.get(&storage)?;
            found.push(Guest { again: true, ..*guest });
            look.extend(guest.inputs.iter().map(|input| input.storage));
        }
        if sources.len() > 1 || found.len() > MAX_STEPS {
            return None;
        }
        // Storages are numbered in the order of operations.
        found.sort_by_key(|guest| guest.out);
        steps.extend(found);
        Some(())
    }
    fn is_here(&self, storage: StorageId, at: usize) -> bool {
        matches!(&self.placed[at], Placed::Group(group) if group.touches(storage))
    }
}
