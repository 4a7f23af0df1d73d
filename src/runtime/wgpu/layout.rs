//! Where every tensor of a program lies.
//!
//! Tensors of calls that go together lie in the *arena*, one buffer: inputs first (copies of what is given), then outputs (which
//! are copied out after a run), constants, and what is needed in between, in ranges that are used again after their last
//! reader. Others have buffers of their own, intermediate results in *slots*, used again likewise. Knows no device. Look at
//! [`arrange`].

use super::batch::{Batch, Batching};
use super::plan::{Call, Origin, Plan, StorageId};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Elements that ranges of the arena begin and end at multiples of: 256 bytes, as bindings want it.
pub const ALIGNMENT: usize = 64;

/// Elements of the tensors at most whose calls may go together: all of these are tried.
const LARGEST: [usize; 5] = [1 << 20, 1 << 18, 1 << 17, 1 << 16, 1 << 14];
/// Elements whose copying into the arena and out of it costs a device what a dispatch costs the host: a few microseconds.
const COPIED: usize = 1 << 19;

/// The calls as dispatches, and where their tensors lie. Some go together where that halves the work at least, and where the
/// arena, which is bound as a whole, takes no more than `max_bytes`.
pub fn arrange(plan: &Plan, calls: &[Call], max_buffers: usize, max_bytes: u64) -> (Vec<Batch>, Layout) {
    let batching = Batching::new(plan, calls, max_buffers);
    let choice = |largest: usize| {
        let batches = batching.batches(largest);
        let layout = Layout::new(plan, &batches);
        (layout.arena as u64 * 4 <= max_bytes).then_some((batches, layout))
    };
    let cost = |(batches, layout): &(Vec<Batch>, Layout)| batches.len() + layout.copied(plan) / COPIED;
    let best = LARGEST.into_iter().filter_map(choice).min_by_key(cost);
    best.filter(|best| 2 * cost(best) <= calls.len()).unwrap_or_else(|| {
        let alone: Vec<Batch> = calls.iter().map(|call| Batch { calls: vec![call.clone()] }).collect();
        let layout = Layout::new(plan, &alone);
        (alone, layout)
    })
}

/// Where a storage lies.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Place {
    /// In the buffer of the program's input of this position.
    Input(usize),
    /// An index into [`Layout::own`].
    Own(usize),
    /// An index into [`Layout::fresh`].
    Fresh(usize),
    /// From this element of the arena on.
    Arena(usize),
    /// Nobody needs it.
    Nowhere,
}

/// What a buffer of the program's own holds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Own {
    Constant(StorageId),
    /// Intermediate results of so many elements at most.
    Slot(usize),
}

pub struct Layout {
    pub places: Vec<Place>,
    /// Buffers that are the same every run.
    pub own: Vec<Own>,
    /// Outputs that get a new buffer every run.
    pub fresh: Vec<StorageId>,
    /// Elements of the arena.
    pub arena: usize,
    /// Inputs that are copied into the arena, and where to.
    pub copied_in: Vec<(usize, usize)>,
    /// The outputs in the arena: copied, all together, to a new buffer every run.
    pub copied_out: Range<usize>,
    /// Constants that stand in the arena, and where.
    pub constants: Vec<(StorageId, usize)>,
}

/// Elements that `len` elements take in the arena.
pub fn padded(len: usize) -> usize {
    len.max(1).next_multiple_of(ALIGNMENT)
}

impl Layout {
    pub fn new(plan: &Plan, batches: &[Batch]) -> Self {
        let mut layout = Layout {
            places: vec![Place::Nowhere; plan.storages.len()],
            own: vec![],
            fresh: vec![],
            arena: 0,
            copied_in: vec![],
            copied_out: 0..0,
            constants: vec![],
        };
        let mut shared = vec![false; plan.storages.len()];
        let together = batches.iter().filter(|batch| batch.calls.len() > 1);
        together.flat_map(|batch| batch.tensors()).for_each(|id| shared[id] = true);
        let mut arena = Ranges::default();
        layout.place_ends(plan, batches, &shared, &mut arena);
        layout.place_rest(plan, batches, &shared, &mut arena);
        layout.arena = arena.end;
        layout
    }
    /// Elements that a run copies.
    fn copied(&self, plan: &Plan) -> usize {
        self.copied_in.iter().map(|&(k, _)| padded(plan.inputs[k].len())).sum::<usize>()
            + self.copied_out.len()
    }
    /// Inputs, outputs, and constants that some kernel reads.
    fn place_ends(&mut self, plan: &Plan, batches: &[Batch], shared: &[bool], arena: &mut Ranges) {
        let mut read = vec![false; plan.storages.len()];
        batches.iter().flat_map(Batch::tensors).for_each(|id| read[id] = true);
        plan.outputs.iter().for_each(|&(id, _)| read[id] = true);
        for (id, storage) in plan.storages.iter().enumerate() {
            if let Origin::Input(k) = storage.origin {
                self.places[id] = match shared[id] {
                    true => {
                        let at = arena.take(padded(storage.len));
                        self.copied_in.push((k, at));
                        Place::Arena(at)
                    }
                    false => Place::Input(k),
                };
            }
        }
        self.copied_out = arena.end..arena.end;
        for &(id, _) in &plan.outputs {
            if plan.storages[id].origin == Origin::Computed && self.places[id] == Place::Nowhere {
                self.places[id] = match shared[id] {
                    true => Place::Arena(arena.take(padded(plan.storages[id].len))),
                    false => {
                        self.fresh.push(id);
                        Place::Fresh(self.fresh.len() - 1)
                    }
                };
            }
        }
        self.copied_out.end = arena.end;
        for (id, storage) in plan.storages.iter().enumerate() {
            if let (Origin::Constant(words), true) = (&storage.origin, read[id]) {
                self.places[id] = match shared[id] {
                    true => {
                        let at = arena.take(padded(words.len()));
                        self.constants.push((id, at));
                        Place::Arena(at)
                    }
                    false => {
                        self.own.push(Own::Constant(id));
                        Place::Own(self.own.len() - 1)
                    }
                };
            }
        }
    }
    /// Intermediate results, from the first dispatch that names them until the last.
    fn place_rest(&mut self, plan: &Plan, batches: &[Batch], shared: &[bool], arena: &mut Ranges) {
        let mut last_use: HashMap<StorageId, usize> = HashMap::new();
        for (i, batch) in batches.iter().enumerate() {
            last_use.extend(batch.tensors().map(|id| (id, i)));
        }
        let mut slots = Slots::default();
        let mut slot_of: HashMap<StorageId, usize> = HashMap::new();
        for (i, batch) in batches.iter().enumerate() {
            let mut over = vec![];
            // Tensors without elements are read, but nobody writes them.
            for id in batch.tensors() {
                let len = plan.storages[id].len;
                if self.places[id] == Place::Nowhere {
                    self.places[id] = match shared[id] {
                        true => Place::Arena(arena.take(padded(len))),
                        false => {
                            let slot = slots.take(len, &mut self.own);
                            slot_of.insert(id, slot);
                            Place::Own(slots.list[slot].1)
                        }
                    };
                }
                if last_use.get(&id) == Some(&i) {
                    last_use.remove(&id);
                    over.push(id);
                }
            }
            for id in over {
                let constant = matches!(plan.storages[id].origin, Origin::Constant(_));
                match (slot_of.remove(&id), self.places[id]) {
                    (Some(slot), _) => slots.free.push(slot),
                    (None, Place::Arena(at)) if !constant && !self.copied_out.contains(&at) => {
                        arena.give_back(at, padded(plan.storages[id].len));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Buffers for intermediate results.
#[derive(Default)]
struct Slots {
    /// (elements, index into [`Layout::own`]).
    list: Vec<(usize, usize)>,
    free: Vec<usize>,
}

impl Slots {
    /// The smallest free one that is large enough and not wastefully so, or a new one.
    fn take(&mut self, need: usize, own: &mut Vec<Own>) -> usize {
        let fits = |&&slot: &&usize| self.list[slot].0 >= need && self.list[slot].0 <= need.max(64) * 4;
        match self.free.iter().filter(fits).min_by_key(|&&slot| self.list[slot].0).copied() {
            Some(slot) => {
                self.free.retain(|&other| other != slot);
                slot
            }
            None => {
                self.list.push((need, own.len()));
                own.push(Own::Slot(need));
                self.list.len() - 1
            }
        }
    }
}

/// Ranges of the arena.
#[derive(Default)]
struct Ranges {
    end: usize,
    /// Free ranges: where they begin, and how long they are.
    free: BTreeMap<usize, usize>,
}

impl Ranges {
    /// The shortest free range that is long enough, or new elements at the end.
    fn take(&mut self, len: usize) -> usize {
        let fitting = self.free.iter().filter(|(_, free)| **free >= len).min_by_key(|(_, free)| **free);
        if let Some((at, free)) = fitting.map(|(&at, &free)| (at, free)) {
            self.free.remove(&at);
            if free > len {
                self.free.insert(at + len, free - len);
            }
            return at;
        }
        // The last free range may reach the end.
        let at = match self.free.last_key_value() {
            Some((&at, &free)) if at + free == self.end => {
                self.free.remove(&at);
                at
            }
            _ => self.end,
        };
        self.end = at + len;
        at
    }
    fn give_back(&mut self, mut at: usize, mut len: usize) {
        if let Some((&before, &free)) = self.free.range(..at).next_back()
            && before + free == at
        {
            self.free.remove(&before);
            (at, len) = (before, len + free);
        }
        if let Some(free) = self.free.remove(&(at + len)) {
            len += free;
        }
        self.free.insert(at, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{DType, Fact};
    use crate::runtime::wgpu::kernel::COPY;
    use crate::runtime::wgpu::plan::Storage;

    fn call(from: StorageId, to: StorageId) -> Call {
        let source = COPY.expand(&[("type", "u32"), ("width", "1"), ("vectors", "0"), ("scalars", "1")]);
        Call { source, params: vec![], reads: vec![from], writes: vec![to], groups: 1, tiling: None }
    }

    /// `chains` inputs, each copied `links` times; the last copy of each is an output.
    fn chains(chains: usize, links: usize) -> (Plan, Vec<Call>) {
        let (mut plan, mut calls) = (Plan::default(), vec![]);
        for chain in 0..chains {
            let len = 100 * (chain + 1);
            let fact = Fact::new(DType::F32, &[len]);
            plan.storages.push(Storage { origin: Origin::Input(chain), len });
            plan.inputs.push(fact.clone());
            for _ in 0..links {
                calls.push(call(plan.storages.len() - 1, plan.storages.len()));
                plan.storages.push(Storage { origin: Origin::Computed, len });
            }
            plan.outputs.push((plan.storages.len() - 1, fact));
        }
        (plan, calls)
    }

    #[test]
    fn what_is_needed_at_a_time_lies_apart_and_the_rest_is_used_again() {
        let (plan, calls) = chains(7, 20);
        let (batches, layout) = arrange(&plan, &calls, 8, 1 << 20);
        assert_eq!(batches.iter().map(|b| b.calls.len()).collect::<Vec<_>>(), [7; 20]);
        let at = |id: StorageId| match layout.places[id] {
            Place::Arena(at) => at..at + padded(plan.storages[id].len),
            other => panic!("storage {id} is at {other:?}"),
        };
        for batch in &batches {
            let mut taken: Vec<Range<usize>> = batch.tensors().map(at).collect();
            taken.extend(plan.outputs.iter().map(|&(id, _)| at(id)));
            taken.sort_by_key(|range| range.start);
            taken.dedup();
            assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start), "{taken:?}");
        }
        let once: usize = plan.inputs.iter().map(|fact| padded(fact.len())).sum();
        assert!(layout.arena <= 4 * once, "{} for {once}", layout.arena);
        assert_eq!((layout.copied_in.len(), layout.copied_out.len()), (7, once));
    }

    #[test]
    fn calls_go_alone_where_going_together_saves_little() {
        for (chains, max_bytes) in [(chains(1, 20), 1 << 20), (chains(7, 20), 1 << 10)] {
            let (batches, layout) = arrange(&chains.0, &chains.1, 8, max_bytes);
            assert_eq!((batches.len(), layout.arena), (chains.1.len(), 0));
        }
    }

    #[test]
    fn free_ranges_join() {
        let mut ranges = Ranges::default();
        let taken: Vec<usize> = (0..4).map(|_| ranges.take(10)).collect();
        assert_eq!(taken, [0, 10, 20, 30]);
        [10, 30, 20].into_iter().for_each(|at| ranges.give_back(at, 10));
        assert_eq!((ranges.take(30), ranges.end), (10, 40));
        ranges.give_back(10, 30);
        assert_eq!((ranges.take(40), ranges.end), (10, 50));
    }
}
