//! A layout as a graph.
//!
//! What keeps the second time apart from the first is a *guard*: `Where(never, 0, value)`, where `never` is `|t| < −1`, with `t` a
//! sum of one number of each result that was there before the segment. So no executor can merge the two, or begin the second before it has
//! finished what it was to have done by then. NaN compares as false, so that the value is what it was in any case.

use super::cursor::Cursor;
use super::layout::{Event, Layout};
use super::tape::Tape;
use crate::autodiff::prepare::rename_reads;
use crate::onnx::{Builder, DType, Facts, Graph, Node, ValueId};
use std::collections::HashMap;

/// Names of all that is computed again begin so.
const SCOPE: &str = "again";

/// Writes the run of `layout`.
pub fn write(
    graph: &Graph,
    facts: &Facts,
    tape: &Tape<'_>,
    layout: &Layout,
    ends: &[ValueId],
) -> (Graph, Facts) {
    // Nodes are in it while the builder takes stock of names.
    let mut b = Builder::on(graph.clone(), facts.clone());
    b.graph_mut().nodes.clear();
    b.set_scope(SCOPE);
    let last = Cursor::last_reads(tape, layout, false);
    let mut cursor = Cursor::new(tape, layout);
    let mut writer = Writer {
        tape,
        graph,
        b,
        names: HashMap::new(),
        results: vec![],
        never: None,
        loss: ends.first().cloned(),
    };
    for (at, event) in layout.events.iter().enumerate() {
        let (mut read, mut made) = (vec![], vec![]);
        cursor.advance(*event, |access| {
            let list = if access.made { &mut made } else { &mut read };
            list.push((access.value, access.instance));
        });
        match *event {
            Event::Begin => {
                let later =
                    |&(value, instance): &(usize, usize)| last[instance] > at || tape.values[value].is_output;
                writer.results.retain(later);
                writer.begin();
            }
            Event::Step(step) => {
                let node = writer.reading(step, &read);
                writer.b.keep(node);
                if step >= tape.forward {
                    writer.results.extend(made);
                }
            }
            Event::Guard { value } => writer.guard(value, &read, &made),
            Event::Again { step, .. } => writer.again(step, &read, &made),
        }
    }
    let Writer { mut b, .. } = writer;
    b.set_scope("");
    b.finish()
}

struct Writer<'a> {
    tape: &'a Tape<'a>,
    graph: &'a Graph,
    b: Builder,
    /// Of instances that aren't a value's first.
    names: HashMap<usize, ValueId>,
    /// What the way back made since the last segment, with its instances.
    results: Vec<(usize, usize)>,
    /// What is false, once all is done that had to be before this segment.
    never: Option<ValueId>,
    loss: Option<ValueId>,
}

impl Writer<'_> {
    fn name(&self, value: usize, instance: usize) -> ValueId {
        self.names.get(&instance).unwrap_or(self.tape.values[value].id).clone()
    }

    /// A step's node, reading the given instances.
    fn reading(&self, step: usize, read: &[(usize, usize)]) -> Node {
        let mut node = self.graph.nodes[self.tape.steps[step].node].clone();
        for &(value, instance) in read.iter().filter(|(_, instance)| self.names.contains_key(instance)) {
            let name = self.name(value, instance);
            rename_reads(std::slice::from_mut(&mut node), self.tape.values[value].id, &name);
        }
        node
    }

    /// The condition of a segment's guards. Where the way back has made nothing since the last one, that one's stays.
    fn begin(&mut self) {
        let results: Vec<(usize, usize)> = std::mem::take(&mut self.results);
        let mut ids: Vec<ValueId> =
            results.iter().map(|&(value, instance)| self.name(value, instance)).collect();
        if self.never.is_none() {
            ids.extend(self.loss.clone());
        }
        let ones: Vec<ValueId> = ids.iter().filter_map(|id| self.one_of(id)).collect();
        if ones.is_empty() {
            return;
        }
        let b = &mut self.b;
        // One after the other: ONNX Runtime goes from a node to the one it reads that comes last in the file, and so gets at the results in
        // the order in which they were made, instead of holding all cotangents of a segment for gradients that are made last.
        let sum = ones[1..].iter().fold(ones[0].clone(), |sum, one| b.add(&sum, one));
        let sum = b.reshape(&sum, &[1]);
        let size = b.op("Abs", &[&sum]);
        let bound = b.scalar_like(&size, -1.0);
        self.never = Some(b.op("Less", &[&size, &bound]));
    }

    /// One number of a value, in float32, with only axes of length 1.
    fn one_of(&mut self, id: &ValueId) -> Option<ValueId> {
        let b = &mut self.b;
        let fact = b.facts().get(id).filter(|fact| fact.dtype.is_float() && !fact.is_empty())?;
        let rank = fact.rank();
        let one = match fact.shape.iter().all(|&size| size == 1) {
            true => id.clone(),
            false => {
                let axes: Vec<i64> = (0..rank as i64).collect();
                b.slice(id, &vec![0; rank], &vec![1; rank], &axes)
            }
        };
        Some(b.cast(&one, DType::F32))
    }

    fn guard(&mut self, value: usize, read: &[(usize, usize)], made: &[(usize, usize)]) {
        let (Some(never), [(_, before)], [(_, guard)]) = (self.never.clone(), read, made) else { return };
        let id = self.name(value, *before);
        let guarded = match self.b.dtype(&id) {
            DType::Bool => self.b.op("Or", &[&id, &never]),
            _ => {
                let zero = self.b.scalar_like(&id, 0.0);
                self.b.where_(&never, &zero, &id)
            }
        };
        self.names.insert(*guard, guarded);
    }

    fn again(&mut self, step: usize, read: &[(usize, usize)], made: &[(usize, usize)]) {
        let mut node = self.reading(step, read);
        for &(value, instance) in made {
            let id = self.tape.values[value].id;
            let name = self.b.fresh(id.as_str());
            if let Some(fact) = self.b.facts().get(id).cloned() {
                self.b.set_fact(&name, fact);
            }
            for output in node.outputs.iter_mut().flatten().filter(|output| *output == id) {
                *output = name.clone();
            }
            self.names.insert(instance, name);
        }
        if !node.name.is_empty() {
            node.name = self.b.fresh(&node.name).to_string();
        }
        self.b.keep(node);
    }
}
