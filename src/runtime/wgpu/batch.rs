//! Which calls go to the device together: those of one kernel that don't depend on each other, as one dispatch.
//!
//! A dispatch costs the host as much for a small product as for a large one, and an adapter's step is thousands of small
//! ones. Tensors of calls that go together lie in one buffer, the *arena*. Knows no device. Look at [`Batching`].

use super::plan::{Call, Origin, Plan, StorageId};
use super::together::together;
use std::collections::{BTreeMap, HashMap};

/// Workgroups of a call at most, to go with others: larger ones fill a device by themselves.
const MAX_GROUPS: usize = 4096;

/// A dispatch.
#[derive(Debug)]
pub struct Batch {
    /// All of one text.
    pub calls: Vec<Call>,
}

impl Batch {
    /// What its calls read and write, as often as they do.
    pub fn tensors(&self) -> impl Iterator<Item = StorageId> {
        self.calls.iter().flat_map(Call::tensors)
    }
}

/// Calls, and what doesn't depend on which of them go together.
pub struct Batching<'a> {
    plan: &'a Plan,
    calls: &'a [Call],
    barred: Vec<bool>,
    order: Order,
}

impl<'a> Batching<'a> {
    /// No dispatch binds more than `max_buffers` tensors.
    pub fn new(plan: &'a Plan, calls: &'a [Call], max_buffers: usize) -> Self {
        let order = Order::of(calls, plan.storages.len());
        Batching { plan, calls, barred: barred(plan, calls, max_buffers), order }
    }
    /// The calls in an order that respects what they read of each other, those together that can be; none with a tensor of
    /// more than `max_len` elements.
    pub fn batches(&self, max_len: usize) -> Vec<Batch> {
        let Batching { calls, order, .. } = self;
        let small = |id: StorageId| self.plan.storages[id].len <= max_len && !self.barred[id];
        let joins = |call: &Call| call.groups <= MAX_GROUPS && call.tensors().all(small);
        let mut kinds = Kinds::default();
        let kind_of: Vec<usize> = calls.iter().map(|call| kinds.of(call, joins(call))).collect();
        for (i, &kind) in kind_of.iter().enumerate() {
            *kinds.list[kind].ahead.entry(order.ahead[i]).or_default() += 1;
        }
        let mut waits_for = order.waits_for.clone();
        let ready = |i: &usize| waits_for[*i] == 0;
        (0..calls.len()).filter(ready).for_each(|i| kinds.list[kind_of[i]].ready.push(i));
        let mut batches = vec![];
        while let Some(members) = kinds.next(&order.ahead) {
            for &next in members.iter().flat_map(|&i| &order.then[i]) {
                waits_for[next] -= 1;
                if waits_for[next] == 0 {
                    kinds.list[kind_of[next]].ready.push(next);
                }
            }
            batches.push(Batch { calls: members.into_iter().map(|i| calls[i].clone()).collect() });
        }
        batches
    }
}

/// Which storages must not lie in the arena: those of calls that can only go alone, for which the arena can't be read and
/// written at once, and constants that are outputs, which are handed out as they are.
fn barred(plan: &Plan, calls: &[Call], max_buffers: usize) -> Vec<bool> {
    let mut barred = vec![false; plan.storages.len()];
    let constant = |id: StorageId| matches!(plan.storages[id].origin, Origin::Constant(_));
    plan.outputs.iter().for_each(|&(id, _)| barred[id] = constant(id));
    let mut known: HashMap<&str, bool> = HashMap::new();
    for call in calls {
        let can = *known.entry(&call.source).or_insert_with(|| together(&call.source).is_some());
        if !can || call.tensors().count() > max_buffers {
            call.tensors().for_each(|id| barred[id] = true);
        }
    }
    barred
}

/// How calls depend on each other.
struct Order {
    /// For each call those that wait for it.
    then: Vec<Vec<usize>>,
    /// For each call how many it waits for.
    waits_for: Vec<usize>,
    /// The longest chain of calls that wait for each.
    ahead: Vec<usize>,
}

impl Order {
    fn of(calls: &[Call], storages: usize) -> Self {
        let mut written = vec![None; storages];
        let mut read_since: Vec<Vec<usize>> = vec![vec![]; storages];
        let mut then = vec![vec![]; calls.len()];
        let mut waits_for = vec![0; calls.len()];
        for (i, call) in calls.iter().enumerate() {
            let mut before: Vec<usize> = call.tensors().filter_map(|id| written[id]).collect();
            for &id in &call.writes {
                before.append(&mut read_since[id]);
            }
            call.reads.iter().for_each(|&id| read_since[id].push(i));
            call.writes.iter().for_each(|&id| written[id] = Some(i));
            before.retain(|&b| b != i);
            before.sort_unstable();
            before.dedup();
            waits_for[i] = before.len();
            before.iter().for_each(|&b: &usize| then[b].push(i));
        }
        let mut ahead = vec![0; calls.len()];
        for i in (0..calls.len()).rev() {
            ahead[i] = then[i].iter().map(|&next: &usize| ahead[next] + 1).max().unwrap_or(0);
        }
        Order { then, waits_for, ahead }
    }
}

/// Calls of one kernel that may go together, or one that goes alone.
#[derive(Default)]
struct Kind {
    ready: Vec<usize>,
    /// How many calls of it are left for each value of [`Order::ahead`].
    ahead: BTreeMap<usize, usize>,
}

#[derive(Default)]
struct Kinds {
    list: Vec<Kind>,
    by_text: HashMap<String, usize>,
}

impl Kinds {
    fn of(&mut self, call: &Call, joins: bool) -> usize {
        let new = self.list.len();
        let kind = match joins {
            true => *self.by_text.entry(call.source.clone()).or_insert(new),
            false => new,
        };
        if kind == new {
            self.list.push(Kind::default());
        }
        kind
    }
    /// The next calls to go: all that are ready of the kind that has the longest way to go. So kinds that are only of use
    /// near the end wait until more of theirs are ready.
    fn next(&mut self, ahead: &[usize]) -> Option<Vec<usize>> {
        let ready = self.list.iter_mut().filter(|kind| !kind.ready.is_empty());
        let kind = ready.rev().max_by_key(|kind| kind.ahead.last_key_value().map(|(&ahead, _)| ahead))?;
        let mut members = std::mem::take(&mut kind.ready);
        members.sort_unstable();
        for &i in &members {
            if let Some(count) = kind.ahead.get_mut(&ahead[i]) {
                *count -= 1;
                if *count == 0 {
                    kind.ahead.remove(&ahead[i]);
                }
            }
        }
        Some(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wgpu::kernel::{ARGBEST, COPY};
    use crate::runtime::wgpu::plan::Storage;

    fn call(kind: usize, reads: &[StorageId], write: StorageId) -> Call {
        let source = [COPY, ARGBEST][kind].expand(&[]);
        Call { source, params: vec![], reads: reads.to_vec(), writes: vec![write], groups: 1, tiling: None }
    }

    fn order(calls: &[Call], len: usize) -> Vec<Vec<StorageId>> {
        let storages = vec![Storage { origin: Origin::Computed, len }; 10];
        let plan = Plan { storages, ..Plan::default() };
        let writes = |batch: &Batch| batch.calls.iter().flat_map(|call| call.writes.clone()).collect();
        Batching::new(&plan, calls, 8).batches(64).iter().map(writes).collect()
    }

    #[test]
    fn independent_calls_of_a_kernel_go_together_and_those_near_the_end_wait() {
        // 1 and 3 come from 0; 2 from 1; 4 from 3; 5 and 6, of the other kernel, from 2 and 3.
        let calls = [
            call(0, &[0], 1),
            call(0, &[1], 2),
            call(1, &[2], 5),
            call(0, &[0], 3),
            call(1, &[3], 6),
            call(0, &[3], 4),
        ];
        assert_eq!(order(&calls, 64), [vec![1, 3], vec![2, 4], vec![5, 6]]);
        assert_eq!(order(&calls, 65).len(), 6, "too large to go together");
    }

    #[test]
    fn what_is_written_again_waits_for_those_who_read_it() {
        let calls = [call(0, &[0], 1), call(0, &[1], 2), call(0, &[3], 1), call(0, &[1], 4)];
        assert_eq!(order(&calls, 64), [vec![1], vec![2], vec![1], vec![4]]);
    }
}
