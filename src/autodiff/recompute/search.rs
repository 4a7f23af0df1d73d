//! Finds the layout that fits a budget at the least cost, or takes the least memory.
//!
//! Segments are made as in Chen et al., *Training Deep Nets with Sublinear Memory Cost* (arXiv 1604.06174): of about as many bytes
//! each, cut where few are alive. How long they are, which of the first ones are computed again, and what is too dear for that,
//! is tried out: following a run takes no longer than reading its nodes. Look at [`search`].

use super::budget::Budget;
use super::layout::{Choice, Layout, Usage, usage};
use super::tape::{Step, Tape};

/// Numbers of segments that are tried.
const SEGMENTS: [usize; 16] = [2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128];
/// Shrinking segments stay larger than one part in so many of the first.
const SMALLEST: u64 = 8;
/// Segments may go on for so many values that are too large for them.
const SOME: u64 = 3;
/// So many choices of the least memory are improved on.
const REFINED: usize = 4;
/// Parts of what the way back reads, in bytes, that are kept because nothing costs more for each byte.
const DEAREST: [f64; 8] = [0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85];
/// Layouts within this of the least memory are as good as the least; of them the cheapest is taken.
const AS_GOOD: f64 = 1.02;
/// No more steps are followed than this in all: a few seconds.
const EFFORT: usize = 50_000_000;

/// The layout to take, and what it takes.
pub fn search(tape: &Tape<'_>, budget: Budget) -> (Layout, Usage) {
    let plain = Layout::plain(tape);
    let whole = usage(tape, &plain);
    if matches!(budget, Budget::Bytes(bytes) if whole.peak <= bytes) {
        return (plain, whole);
    }
    let mut tried = Tried { tape, left: EFFORT, found: vec![(plain, whole)] };
    let mut rated: Vec<_> =
        choices(tape).into_iter().filter_map(|choice| Some((tried.peak(&choice)?, choice))).collect();
    rated.sort_by_key(|(peak, _)| *peak);
    rated.iter().take(REFINED).for_each(|(peak, choice)| tried.merge_segments(choice, *peak));
    if let Budget::Bytes(bytes) = budget {
        let fitting = rated.iter().filter(|(peak, _)| *peak <= bytes);
        fitting.for_each(|(_, choice)| tried.keep_more(choice, bytes));
    }
    tried.best(budget)
}

struct Tried<'a> {
    tape: &'a Tape<'a>,
    /// Steps that may still be followed.
    left: usize,
    found: Vec<(Layout, Usage)>,
}

impl Tried<'_> {
    /// The peak of a choice; `None` where there is no time left for it.
    fn peak(&mut self, choice: &Choice) -> Option<u64> {
        self.left = self.left.checked_sub(self.tape.steps.len())?;
        let layout = Layout::of(self.tape, choice);
        let usage = usage(self.tape, &layout);
        // Layouts are as long as the graph: only those that may be the best stay.
        let worse = |(other, used): &(Layout, Usage)| other.cost <= layout.cost && used.peak <= usage.peak;
        if !self.found.iter().any(worse) {
            self.found.retain(|(other, used)| other.cost < layout.cost || used.peak < usage.peak);
            self.found.push((layout, usage));
        }
        Some(usage.peak)
    }

    /// Segments that follow each other as one, wherever that takes less memory.
    fn merge_segments(&mut self, choice: &Choice, mut least: u64) {
        let (mut choice, mut cut) = (choice.clone(), 1);
        while choice.kept_from > 1 && cut <= choice.kept_from {
            let merged = choice.segments.iter().map(|&segment| segment - usize::from(segment >= cut));
            let merged = Choice {
                segments: merged.collect(),
                kept_from: choice.kept_from - 1,
                dearest: choice.dearest,
            };
            match self.peak(&merged) {
                Some(peak) if peak < least => (choice, least) = (merged, peak),
                Some(_) => cut += 1,
                None => return,
            }
        }
    }

    /// Fewer of the first segments computed again, as long as that fits.
    fn keep_more(&mut self, choice: &Choice, bytes: u64) {
        let (mut fails, mut fits) = (0, choice.kept_from);
        while fits - fails > 1 {
            let middle = fails + (fits - fails) / 2;
            match self.peak(&Choice { kept_from: middle, ..choice.clone() }) {
                Some(peak) if peak <= bytes => fits = middle,
                Some(_) => fails = middle,
                None => return,
            }
        }
    }

    fn best(self, budget: Budget) -> (Layout, Usage) {
        let least = self.found.iter().map(|(_, usage)| usage.peak).min().unwrap_or_default();
        let enough = match budget {
            Budget::Bytes(bytes) if least <= bytes => bytes,
            _ => (least as f64 * AS_GOOD) as u64,
        };
        let fitting = self.found.into_iter().filter(|(_, usage)| usage.peak <= enough);
        let cheapest = fitting.min_by(|(a, _), (b, _)| a.cost.total_cmp(&b.cost));
        cheapest.unwrap_or_else(|| {
            let plain = Layout::plain(self.tape);
            let whole = usage(self.tape, &plain);
            (plain, whole)
        })
    }
}

/// Every number of segments with every limit to what is computed again.
fn choices(tape: &Tape<'_>) -> Vec<Choice> {
    let lives = Lives::of(tape);
    let mut cuttings: Vec<Vec<usize>> = vec![];
    let manners = [(false, 0), (true, 0), (false, SOME), (true, SOME)];
    for (count, manner) in SEGMENTS.into_iter().flat_map(|count| manners.map(|manner| (count, manner))) {
        let segments = lives.segments(tape, count, manner);
        if segments.last().is_some_and(|&last| last > 0) && !cuttings.contains(&segments) {
            cuttings.push(segments);
        }
    }
    let dearest = dearest(tape);
    let mut choices = vec![];
    for segments in cuttings {
        let kept_from = segments.last().copied().unwrap_or_default();
        let choice = |&dearest: &f64| Choice { segments: segments.clone(), kept_from, dearest };
        choices.extend(dearest.iter().map(choice));
    }
    choices
}

/// Bytes that each forward step makes of what the way back reads.
fn wanted(tape: &Tape<'_>) -> Vec<u64> {
    let mut read = vec![false; tape.values.len()];
    for step in &tape.steps[tape.forward..] {
        step.reads.iter().for_each(|&value| read[tape.values[value].store] = true);
    }
    let bytes = |&value: &usize| if read[value] { tape.bytes[value] } else { 0 };
    tape.steps[..tape.forward].iter().map(|step| step.makes.iter().map(bytes).sum()).collect()
}

/// How long the forward pass itself needs its values.
struct Lives {
    /// The forward step that reads each store last; 0 for none.
    last: Vec<usize>,
    /// Bytes that lie across a cut before each forward step.
    across: Vec<u64>,
    /// Bytes that are made before each forward step, and in all, of what the way back reads.
    upto: Vec<u64>,
}

impl Lives {
    fn of(tape: &Tape<'_>) -> Self {
        let mut last = vec![0; tape.values.len()];
        for (at, step) in tape.steps[..tape.forward].iter().enumerate() {
            step.reads.iter().for_each(|&value| last[tape.values[value].store] = at);
        }
        let (mut begins, mut ends) = (vec![0; tape.forward + 1], vec![0; tape.forward + 1]);
        for (store, &last) in last.iter().enumerate() {
            if let Some(maker) = tape.forward_maker(store).filter(|&maker| maker < last) {
                begins[maker + 1] += tape.bytes[store];
                ends[last + 1] += tape.bytes[store];
            }
        }
        let mut live = 0;
        let after = begins.iter().zip(&ends).map(|(begins, ends)| {
            live = live + begins - ends;
            live
        });
        let across = after.collect();
        let mut upto = vec![0];
        for bytes in wanted(tape) {
            upto.push(upto.last().unwrap_or(&0) + bytes);
        }
        Self { last, across, upto }
    }

    /// The segment of each forward step, where the first is to have one part in `count` of what the way back reads, and the others as many; or
    /// where they are `shrinking`, less by what lies across the cuts before them, as that is still there when they are computed
    /// again. Each ends where the least is alive, half its size around where it should, or among `some` values as large as that
    /// where it closes.
    fn segments(&self, tape: &Tape<'_>, count: usize, (shrinking, some): (bool, u64)) -> Vec<usize> {
        let (upto, whole) = (&self.upto, self.upto[tape.forward]);
        let first = whole / count as u64;
        let (mut segments, mut segment, mut from, mut kept) = (vec![], 0, 0, 0);
        while from < tape.forward {
            let size = if shrinking { first.saturating_sub(kept).max(first / SMALLEST) } else { first };
            let place = |bytes: u64| upto.partition_point(|&u| u < upto[from] + bytes);
            let near = place(size / 2).max(from + 1);
            // Where single values are as large as segments are to be, a good place may come after some of them.
            let large = upto[near.min(tape.forward)] - upto[near.min(tape.forward) - 1];
            let far = place((size + size / 2).max(some * large));
            let window = near..far.max(near + 1).min(tape.forward);
            let rest = whole - upto[from];
            let best = |&at: &usize| (self.across[at], upto[at].abs_diff(upto[from] + size));
            let cut = match rest < size + size / 2 {
                true => tape.forward,
                false => window.min_by_key(best).unwrap_or(tape.forward),
            };
            kept += self.first_across(tape, from, cut);
            segments.resize(cut, segment);
            (from, segment) = (cut, segment + 1);
        }
        segments
    }

    /// Bytes made from one cut on that lie across the next.
    fn first_across(&self, tape: &Tape<'_>, from: usize, cut: usize) -> u64 {
        let made = tape.steps[from..cut].iter().flat_map(|step| &step.makes);
        let across = made.filter(|&&value| tape.values[value].store == value && self.last[value] >= cut);
        across.map(|&value| tape.bytes[value]).sum()
    }
}

/// Costs for each byte above which values are kept, so that all of them take the parts of [`DEAREST`].
fn dearest(tape: &Tape<'_>) -> Vec<f64> {
    let made = |step: &Step| step.makes.iter().map(|&value| tape.bytes[value]).sum::<u64>();
    let steps = tape.steps[..tape.forward].iter().zip(wanted(tape)).filter(|(step, _)| step.repeats);
    let mut rated: Vec<(f64, u64)> =
        steps.map(|(step, wanted)| (step.cost / made(step).max(1) as f64, wanted)).collect();
    rated.sort_by(|a, b| b.0.total_cmp(&a.0));
    let whole: u64 = rated.iter().map(|(_, bytes)| bytes).sum();
    let mut limits: Vec<f64> = vec![];
    for part in DEAREST {
        let mut taken = 0;
        let limit = rated.iter().find(|(_, bytes)| {
            taken += bytes;
            taken as f64 > part * whole as f64
        });
        let limit = limit.filter(|_| part > 0.0).map_or(f64::INFINITY, |(rate, _)| *rate);
        if !limits.contains(&limit) {
            limits.push(limit);
        }
    }
    limits
}
