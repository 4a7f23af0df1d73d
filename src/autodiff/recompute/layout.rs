//! What of the forward pass is computed again, and when; and what a run holds in memory then.
//!
//! Look at [`Layout::of`], which follows from a [`Choice`], and [`usage`].

use super::cursor::Cursor;
use super::tape::Tape;

/// What is decided; the rest follows.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The segment that each forward step is in; segments follow each other.
    pub segments: Vec<usize>,
    /// Segments from this one on keep what they made. The last one always does: its way back begins where its way forward ends.
    pub kept_from: usize,
    /// What cost more than this for each byte of it is kept, too.
    pub dearest: f64,
}

/// One thing that a run does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Event {
    Step(usize),
    /// A segment begins to be computed again.
    Begin,
    /// A value in a new guise, which is there only when what came before has been done.
    Guard {
        value: usize,
    },
    /// A forward step a second time, reading the last guard in place of `guarded`.
    Again {
        step: usize,
        guarded: Option<usize>,
    },
}

/// The whole run.
pub struct Layout {
    pub events: Vec<Event>,
    /// Stores whose values stay until the way back has read them.
    pub kept: Vec<bool>,
    /// Forward steps that are taken twice, and their cost.
    pub again: usize,
    pub cost: f64,
}

impl Layout {
    /// The run in which nothing is computed again.
    pub fn plain(tape: &Tape<'_>) -> Self {
        let events = (0..tape.steps.len()).map(Event::Step).collect();
        Self { events, kept: vec![true; tape.values.len()], again: 0, cost: 0.0 }
    }

    pub fn of(tape: &Tape<'_>, choice: &Choice) -> Self {
        let kept = kept(tape, choice);
        let wanted = Wanted::of(tape, choice, &kept);
        let mut events: Vec<Event> = (0..tape.forward).map(Event::Step).collect();
        let mut guards = Guards { tape, guarded: vec![false; tape.values.len()] };
        for (step, segment) in (tape.forward..tape.steps.len()).zip(&wanted.begins) {
            for &segment in segment {
                events.push(Event::Begin);
                guards.begin();
                for &copied in &wanted.copies[segment] {
                    let fresh = |value: &usize| {
                        tape.forward_maker(*value).is_some() && !kept[tape.values[*value].store]
                    };
                    let ordered = tape.steps[copied].reads.iter().any(fresh);
                    let guarded = if ordered { None } else { guards.before(copied, &mut events) };
                    events.push(Event::Again { step: copied, guarded });
                }
            }
            events.push(Event::Step(step));
        }
        let copies = || wanted.copies.iter().flatten();
        let cost = copies().map(|&step| tape.steps[step].cost).sum();
        Self { events, again: copies().count(), cost, kept }
    }
}

/// Which stores hold their values until the way back needs them.
fn kept(tape: &Tape<'_>, choice: &Choice) -> Vec<bool> {
    let mut kept = vec![true; tape.values.len()];
    for (step, segment) in tape.steps.iter().zip(&choice.segments) {
        for &value in step.makes.iter().filter(|&&value| tape.values[value].store == value) {
            let bytes = tape.values[value].fact.map_or(1, |fact| fact.bytes().max(1)) as f64;
            let dear = step.cost / bytes > choice.dearest;
            kept[value] = !step.repeats || *segment >= choice.kept_from || dear;
        }
    }
    // What later segments read lies at a cut. Steps that can't be repeated have what they read from elsewhere, too.
    for (step, segment) in tape.steps.iter().zip(&choice.segments) {
        for &value in &step.reads {
            let store = tape.values[value].store;
            if tape.forward_maker(store).is_some_and(|maker| choice.segments[maker] != *segment) {
                kept[store] = true;
            }
        }
    }
    for value in tape.values.iter().filter(|value| value.is_output) {
        kept[value.store] = true;
    }
    kept
}

/// What the way back wants that isn't kept.
struct Wanted {
    /// Forward steps, segment by segment, in order.
    copies: Vec<Vec<usize>>,
    /// The segments that begin to be computed again before each step of the way back.
    begins: Vec<Vec<usize>>,
}

impl Wanted {
    fn of(tape: &Tape<'_>, choice: &Choice, kept: &[bool]) -> Self {
        let count = choice.segments.last().map_or(0, |last| last + 1);
        let mut wanted =
            Self { copies: vec![vec![]; count], begins: vec![vec![]; tape.steps.len() - tape.forward] };
        let mut again = vec![false; tape.forward];
        let mut begun = vec![false; count];
        let lost = |value: usize| tape.forward_maker(value).filter(|_| !kept[tape.values[value].store]);
        let mut stack = vec![];
        for (begins, step) in wanted.begins.iter_mut().zip(&tape.steps[tape.forward..]) {
            for maker in step.reads.iter().filter_map(|&value| lost(value)) {
                let segment = choice.segments[maker];
                if !std::mem::replace(&mut begun[segment], true) {
                    begins.push(segment);
                }
                stack.push(maker);
            }
            while let Some(step) = stack.pop() {
                if !std::mem::replace(&mut again[step], true) {
                    stack.extend(tape.steps[step].reads.iter().filter_map(|&value| lost(value)));
                }
            }
        }
        for step in (0..tape.forward).filter(|&step| again[step]) {
            wanted.copies[choice.segments[step]].push(step);
        }
        wanted
    }
}

/// Puts guards before what would otherwise be the same as in the forward pass.
struct Guards<'a> {
    tape: &'a Tape<'a>,
    /// Values that the segment has guarded; not given ones, whose guards serve one step each.
    guarded: Vec<bool>,
}

impl Guards<'_> {
    fn begin(&mut self) {
        self.guarded.fill(false);
    }

    /// Sees to it that `step` reads a guard; gives the value that it alone reads through one.
    fn before(&mut self, step: usize, events: &mut Vec<Event>) -> Option<usize> {
        let step = &self.tape.steps[step];
        if step.reads.iter().any(|&value| self.guarded[value]) {
            return None;
        }
        let value = *step.guardable.first()?;
        events.push(Event::Guard { value });
        if self.tape.is_given(value) {
            return Some(value);
        }
        self.guarded[value] = true;
        None
    }
}

/// What a run takes, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Values in memory at a time, at most.
    pub peak: u64,
    /// Forward values that are there when the way back begins.
    pub kept: u64,
}

/// Follows a run, and counts the bytes of values from where they are made to where they are last read. Inputs, constants and
/// outputs aren't counted.
pub fn usage(tape: &Tape<'_>, layout: &Layout) -> Usage {
    let last = Cursor::last_reads(tape, layout, true);
    let mut cursor = Cursor::new(tape, layout);
    let mut there = vec![false; cursor.instances()];
    let (mut live, mut usage) = (0, Usage::default());
    let mut touched: Vec<(usize, u64)> = vec![];
    for (at, event) in layout.events.iter().enumerate() {
        if at == tape.forward {
            usage.kept = live;
        }
        cursor.advance(*event, |access| {
            let memory = access.memory;
            touched.push((memory, access.bytes));
            if access.made && !std::mem::replace(&mut there[memory], true) {
                live += access.bytes;
            }
        });
        usage.peak = usage.peak.max(live);
        for (memory, bytes) in touched.drain(..) {
            if last[memory] <= at && std::mem::replace(&mut there[memory], false) {
                live -= bytes;
            }
        }
    }
    usage
}
