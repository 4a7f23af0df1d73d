//! Fuses elementwise operations and reductions of rows into as few kernels as their dependencies allow.
//!
//! Operations are placed one after the other. One joins an earlier kernel over as many elements when all it reads is there
//! by then: what that kernel itself computes stays in registers, what others computed before is read through strides. A
//! kernel that a reduction joins is one of rows; from then on, what there is one of for each row can join, too. Kernels are
//! written so that equal chains get equal texts, and so share one pipeline. Knows no device. Look at [`fuse`].

mod again;
mod elements;
mod operands;
mod rows;
#[cfg(test)]
mod tests;

use super::plan::{Call, Elem, Fold, Kind, Map, Op, Operand, Origin, Plan, StorageId};
use super::view::View;
use std::collections::HashMap;

/// Operations in one kernel at most: drivers compile long kernels slowly.
const MAX_OPERATIONS: usize = 40;
/// Reductions in one kernel at most: each takes workgroup memory.
const MAX_FOLDS: usize = 8;
/// How far back a kernel to join is looked for.
const LOOK_BACK: usize = 64;

/// The plan's operations as kernel calls, in order. No kernel binds more than `max_buffers` tensors.
pub fn fuse(plan: &Plan, max_buffers: usize) -> Vec<Call> {
    let mut fuser = Fuser {
        plan,
        uses: plan.uses(),
        ready: vec![None; plan.storages.len()],
        placed: vec![],
        maps: HashMap::new(),
        kept: again::kept(plan),
        max_buffers,
    };
    for op in &plan.ops {
        fuser.place(op);
    }
    let Fuser { placed, uses, .. } = fuser;
    placed
        .into_iter()
        .map(|step| match step {
            Placed::Call(call) => call,
            Placed::Group(group) => {
                let group = group.live(plan, &uses);
                match group.outer {
                    None => elements::into_call(&group, &uses),
                    Some(outer) => rows::into_call(&group, outer, &uses),
                }
            }
        })
        .collect()
}

enum Placed<'a> {
    Call(Call),
    Group(Group<'a>),
}

struct Fuser<'a> {
    plan: &'a Plan,
    uses: Vec<usize>,
    /// Which placed step makes a storage complete.
    ready: Vec<Option<usize>>,
    placed: Vec<Placed<'a>>,
    /// Elementwise operations so far, by what they make.
    maps: HashMap<StorageId, Guest<'a>>,
    /// What is in memory whoever else reads it.
    kept: Vec<bool>,
    max_buffers: usize,
}

/// An operation that looks for a kernel.
#[derive(Clone, Copy)]
struct Guest<'a> {
    does: Does<'a>,
    inputs: &'a [Operand],
    /// What is walked: of a reduction, its input.
    shape: &'a [usize],
    out: StorageId,
    elem: Elem,
    /// Whether it is done once more, where its value is at hand for others.
    again: bool,
}

#[derive(Clone, Copy)]
enum Does<'a> {
    Map(&'a str),
    /// With the number of rows.
    Fold(Kind, usize),
}

impl<'a> Guest<'a> {
    fn map(map: &'a Map) -> Self {
        let does = Does::Map(map.expr);
        Guest { does, inputs: &map.inputs, shape: &map.shape, out: map.out, elem: map.elem, again: false }
    }
    fn fold(fold: &'a Fold) -> Self {
        let does = Does::Fold(fold.kind, fold.rows);
        let (input, shape) = (std::slice::from_ref(&fold.input), &fold.input.view.shape);
        Guest { does, inputs: input, shape, out: fold.out, elem: fold.input.elem, again: false }
    }
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

impl<'a> Fuser<'a> {
    fn place(&mut self, op: &'a Op) {
        let guest = match op {
            Op::Call(call) => {
                call.writes.iter().for_each(|&w| self.ready[w] = Some(self.placed.len()));
                return self.placed.push(Placed::Call(call.clone()));
            }
            Op::Map(map) if map.shape.contains(&0) => return,
            Op::Map(map) => Guest::map(map),
            Op::Fold(fold) => Guest::fold(fold),
        };
        self.unite(&guest);
        let found = self.host(&guest).or_else(|| {
            self.placed.push(Placed::Group(Group::new(guest.shape)));
            let at = self.placed.len() - 1;
            self.seat(&guest, at).map(|seat| (at, seat))
        });
        debug_assert!(found.is_some(), "an operation finds room in a kernel of its own");
        if let Some((at, seat)) = found {
            let seat = self.prepare(&guest, at).unwrap_or(seat);
            self.join(&guest, at, seat);
        }
        if matches!(guest.does, Does::Map(_)) {
            self.maps.insert(guest.out, guest);
        }
    }
    /// Where an operation reads what several kernels make, tries to have the last of them out of the way, so that the
    /// operation can join an earlier one.
    fn unite(&mut self, guest: &Guest) {
        let mut homes: Vec<usize> = guest.inputs.iter().filter_map(|i| self.ready[i.storage]).collect();
        homes.sort_unstable();
        homes.dedup();
        let Some(last) = homes.pop() else { return };
        for home in homes {
            let Some(to) = self.clear(last, home, false) else { continue };
            if self.moves(last, to) || self.clear(last, to, true).is_some() {
                return;
            }
        }
    }
    /// Puts what the kernel `from` needs (and, where `with_it`, itself) before the kernel `to`. Says where that is then;
    /// `None`, and nothing changes, where something of it depends on `to` or isn't a kernel of ours to move.
    fn clear(&mut self, from: usize, to: usize, with_it: bool) -> Option<usize> {
        let mut moving = if with_it { vec![from] } else { vec![] };
        let mut seen = vec![from];
        while let Some(at) = seen.pop() {
            let Placed::Group(group) = &self.placed[at] else { return None };
            for made in group.loads.iter().filter_map(|load| self.ready[load.storage]) {
                if made == to && (at != from || with_it) {
                    return None;
                }
                if made > to && !moving.contains(&made) {
                    moving.push(made);
                    seen.push(made);
                }
            }
        }
        moving.sort_unstable();
        for (step, to) in moving.iter().zip(to..) {
            self.placed[to..=*step].rotate_right(1);
            for made in self.ready.iter_mut().flatten() {
                match *made {
                    at if at == *step => *made = to,
                    at if (to..*step).contains(&at) => *made += 1,
                    _ => {}
                }
            }
        }
        Some(to + moving.len())
    }
    /// Moves all operations of the kernel `from` into the earlier `to`; nothing changes where one of them can't join.
    fn moves(&mut self, from: usize, to: usize) -> bool {
        let (Placed::Group(leaving), Placed::Group(joined)) = (&self.placed[from], &self.placed[to]) else {
            return false;
        };
        let (guests, before, uses) = (leaving.guests.clone(), joined.clone(), self.uses.clone());
        if guests.iter().any(|guest| guest.again) {
            return false;
        }
        for (k, guest) in guests.iter().enumerate() {
            let Some(seat) = self.seat(guest, to) else {
                guests[..k].iter().for_each(|moved| self.ready[moved.out] = Some(from));
                self.placed[to] = Placed::Group(before);
                self.uses = uses;
                return false;
            };
            self.join(guest, to, seat);
        }
        self.placed[from] = Placed::Group(Group::new(&[]));
        true
    }
    fn join(&mut self, guest: &Guest<'a>, at: usize, seat: Seat) {
        let Placed::Group(group) = &mut self.placed[at] else { return };
        for (input, view) in guest.inputs.iter().zip(&seat.views) {
            // What is computed again has one reader more, and is itself read where it is.
            self.uses[input.storage] += usize::from(guest.again);
            if group.local(input.storage, view).is_some_and(|i| group.made[i].again) {
                self.uses[input.storage] -= 1;
            }
        }
        group.add(self.plan, guest, seat);
        if !guest.again {
            self.ready[guest.out] = Some(at);
        }
    }
    /// The kernel that an operation can join: the first that can have it, among those it depends on or shares an operand
    /// with.
    fn host(&self, guest: &Guest) -> Option<(usize, Seat)> {
        let earliest = guest.inputs.iter().filter_map(|i| self.ready[i.storage]).max().unwrap_or(0);
        let from = earliest.max(self.placed.len().saturating_sub(LOOK_BACK));
        (from..self.placed.len()).find_map(|at| match &self.placed[at] {
            Placed::Group(group) if guest.inputs.iter().any(|i| group.touches(i.storage)) => {
                self.seat(guest, at).map(|seat| (at, seat))
            }
            _ => None,
        })
    }
    /// How the kernel `at` would have an operation; `None` where it can't.
    fn seat(&self, guest: &Guest, at: usize) -> Option<Seat> {
        let Placed::Group(group) = &self.placed[at] else { return None };
        let seat = group.seat(self.plan, guest)?;
        let there = |(i, view): (&Operand, &View)| match self.ready[i.storage] {
            Some(made) if made == at => group.local(i.storage, view).is_some(),
            Some(made) => made < at,
            None => true,
        };
        let new = |(i, view): &(&Operand, &View)| {
            group.local(i.storage, view).is_none() && !group.reads(i.storage) && !is_number(self.plan, i)
        };
        let operands = || guest.inputs.iter().zip(&seat.views);
        let buffers = group.buffers() + group.pending(&self.uses) + operands().filter(new).count() + 1;
        let folds = group.made.iter().filter(|made| matches!(made.by, By::Fold(_))).count();
        let room = group.made.len() < MAX_OPERATIONS && folds < MAX_FOLDS && buffers <= self.max_buffers;
        (room && operands().all(there)).then_some(seat)
    }
}

/// How an operation would stand in a group.
struct Seat {
    per: Per,
    /// Its operands as the group walks them.
    views: Vec<View>,
    /// [`Group::outer`] from then on.
    outer: Option<usize>,
}

/// How often something is computed.
#[derive(Clone, Copy, PartialEq)]
enum Per {
    Element,
    Row,
}

/// A kernel in the making.
#[derive(Clone)]
struct Group<'a> {
    /// The operations, in order.
    guests: Vec<Guest<'a>>,
    /// Without dimensions of size 1.
    shape: Vec<usize>,
    /// In a kernel of rows: how many leading dimensions count them.
    outer: Option<usize>,
    /// What is read from memory, in order of first use.
    loads: Vec<Load>,
    /// Numbers known before running: the words.
    numbers: Vec<u32>,
    /// What is computed, in order.
    made: Vec<Made>,
    /// Where in `made` a storage is.
    names: HashMap<StorageId, usize>,
}

#[derive(Clone, PartialEq)]
struct Load {
    storage: StorageId,
    /// Over the group's shape.
    view: View,
    elem: Elem,
}

/// A value of a group.
#[derive(Clone)]
struct Made {
    storage: StorageId,
    elem: Elem,
    per: Per,
    by: By,
    reads: Vec<Source>,
    /// How often the group itself reads it.
    inside: usize,
    /// Whether another group computes it for all others.
    again: bool,
}

#[derive(Clone)]
enum By {
    /// WGSL, with the names of what it reads.
    Map(String),
    /// Of the one value that it reads, and where the number stands that combining starts from.
    Fold((Kind, String)),
}

/// Where an operand comes from: an index into loads or into what is made.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Load(usize),
    Made(usize),
}

impl<'a> Group<'a> {
    fn new(shape: &[usize]) -> Self {
        Group {
            guests: vec![],
            shape: squeezed(shape),
            outer: None,
            loads: vec![],
            numbers: vec![],
            made: vec![],
            names: HashMap::new(),
        }
    }
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
    fn seat(&self, plan: &Plan, guest: &Guest) -> Option<Seat> {
        let outer = match (guest.does, self.outer) {
            (Does::Fold(_, rows), None) => {
                Some((0..self.shape.len()).find(|&outer| product(&self.shape[..outer]) == rows)?)
            }
            (_, outer) => outer,
        };
        let rows = outer.map(|outer| product(&self.shape[..outer]));
        let whole = guest.len() == self.len();
        let (per, read_per) = match guest.does {
            Does::Map(_) if whole => (Per::Element, Per::Element),
            Does::Map(_) if rows == Some(guest.len()) => (Per::Row, Per::Row),
            Does::Fold(_, count) if whole && rows == Some(count) => (Per::Row, Per::Element),
            _ => return None,
        };
        let views: Option<Vec<View>> =
            guest.inputs.iter().map(|i| self.walked(plan, i, read_per, outer)).collect();
        let views = views?;
        if let Some(outer) = outer {
            let loads = self.loads.iter().map(|load| &load.view).chain(&views);
            if !loads.into_iter().all(|view| rows::has_even_rows(view, outer)) {
                return None;
            }
        }
        Some(Seat { per, views, outer })
    }
    /// An operand's view over the group's shape, where strides can express it.
    fn walked(&self, plan: &Plan, operand: &Operand, per: Per, outer: Option<usize>) -> Option<View> {
        if is_number(plan, operand) {
            let strides = vec![0; self.shape.len()];
            return Some(View { shape: self.shape.clone(), strides, offset: operand.view.offset });
        }
        match per {
            Per::Element => operand.view.reshaped(&self.shape),
            Per::Row => Some(self.along_rows(operand.view.reshaped(&self.shape[..outer?])?)),
        }
    }
    /// The view of what there is one of for each row, over all elements.
    fn along_rows(&self, rows: View) -> View {
        let mut strides = rows.strides;
        strides.resize(self.shape.len(), 0);
        View { shape: self.shape.clone(), strides, offset: rows.offset }
    }
    /// The value computed here that an operand is.
    fn local(&self, storage: StorageId, view: &View) -> Option<usize> {
        let at = *self.names.get(&storage)?;
        let whole = match (self.made[at].per, self.outer) {
            (Per::Row, Some(outer)) => self.along_rows(View::contiguous(&self.shape[..outer])),
            _ => View::contiguous(&self.shape),
        };
        (*view == whole).then_some(at)
    }
    fn reads(&self, storage: StorageId) -> bool {
        self.loads.iter().any(|load| load.storage == storage)
    }
    fn touches(&self, storage: StorageId) -> bool {
        self.reads(storage) || self.names.contains_key(&storage)
    }
    /// The storages read, in order of first use.
    fn sources(&self) -> Vec<StorageId> {
        let mut storages: Vec<StorageId> = vec![];
        for load in &self.loads {
            push_new(&mut storages, load.storage);
        }
        storages
    }
    /// Buffers read.
    fn buffers(&self) -> usize {
        self.sources().len()
    }
    /// Values computed here that others read (or may come to read).
    fn pending(&self, uses: &[usize]) -> usize {
        self.written(uses).count()
    }
    /// The values that others read, by where they are in `made`.
    fn written(&self, uses: &[usize]) -> impl Iterator<Item = usize> {
        (0..self.made.len())
            .filter(|&i| !self.made[i].again && uses[self.made[i].storage] > self.made[i].inside)
    }
    /// The group without what nobody needs any more, as others compute it again.
    fn live(self, plan: &Plan, uses: &[usize]) -> Self {
        let mut live = vec![false; self.made.len()];
        self.written(uses).for_each(|i| live[i] = true);
        for i in (0..live.len()).rev() {
            if live[i] {
                let made = |source: &Source| if let Source::Made(j) = source { Some(*j) } else { None };
                self.made[i].reads.iter().filter_map(made).for_each(|j| live[j] = true);
            }
        }
        let mut rest = Group { outer: self.outer, ..Group::new(&self.shape) };
        let mut inside = vec![];
        for (i, guest) in self.guests.iter().enumerate().filter(|(i, _)| live[*i]) {
            let Some(seat) = rest.seat(plan, guest) else { return self };
            rest.add(plan, guest, seat);
            inside.push(self.made[i].inside);
        }
        // Others' readings are what `uses` has beyond this.
        rest.made.iter_mut().zip(inside).for_each(|(made, inside)| made.inside = inside);
        rest
    }
    fn add(&mut self, plan: &Plan, guest: &Guest<'a>, seat: Seat) {
        self.guests.push(*guest);
        self.outer = seat.outer;
        let mut reads = vec![];
        let mut names = vec![];
        for (input, view) in guest.inputs.iter().zip(seat.views) {
            names.push(match number(plan, input) {
                Some(word) => self.number(word, input.elem),
                None => {
                    let source = self.source(input, view);
                    reads.push(source);
                    source.name()
                }
            });
        }
        let by = match guest.does {
            Does::Map(expr) => {
                let filled =
                    |text: String, (i, name): (usize, &String)| text.replace(&format!("{{{i}}}"), name);
                By::Map(names.iter().enumerate().fold(expr.to_owned(), filled))
            }
            Does::Fold(kind, _) => By::Fold((kind, self.number(kind.start.to_bits(), Elem::F32))),
        };
        self.names.insert(guest.out, self.made.len());
        let (storage, elem, per) = (guest.out, guest.elem, seat.per);
        self.made.push(Made { storage, elem, per, by, reads, inside: 0, again: guest.again });
    }
    /// A number, as an expression: read from the parameters, so that it isn't part of the text.
    fn number(&mut self, word: u32, elem: Elem) -> String {
        let at = self.numbers.iter().position(|&w| w == word).unwrap_or_else(|| {
            self.numbers.push(word);
            self.numbers.len() - 1
        });
        match elem {
            Elem::F32 => format!("param_f32(NUMBERS + {at})"),
            Elem::I32 => format!("param(NUMBERS + {at})"),
            Elem::Bool => format!("u32(param(NUMBERS + {at}))"),
        }
    }
    /// Where an operand comes from; from now on a load if it isn't here yet.
    fn source(&mut self, operand: &Operand, view: View) -> Source {
        if let Some(at) = self.local(operand.storage, &view) {
            self.made[at].inside += 1;
            return Source::Made(at);
        }
        let load = Load { storage: operand.storage, view, elem: operand.elem };
        Source::Load(self.loads.iter().position(|l| *l == load).unwrap_or_else(|| {
            self.loads.push(load);
            self.loads.len() - 1
        }))
    }
}

impl Source {
    fn name(self) -> String {
        match self {
            Source::Load(i) => format!("a{i}"),
            Source::Made(i) => format!("v{i}"),
        }
    }
}

fn product(sizes: &[usize]) -> usize {
    sizes.iter().product()
}

fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&d| d != 1).collect()
}

/// The word of an operand that is one number known before running.
fn number(plan: &Plan, operand: &Operand) -> Option<u32> {
    match &plan.storages[operand.storage].origin {
        Origin::Constant(words) if words.len() == 1 => words.first().copied(),
        _ => None,
    }
}

fn is_number(plan: &Plan, operand: &Operand) -> bool {
    number(plan, operand).is_some()
}

fn push_new<T: PartialEq>(all: &mut Vec<T>, item: T) {
    if !all.contains(&item) {
        all.push(item);
    }
}
