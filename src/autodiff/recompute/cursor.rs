//! Which instance of a value each thing that a run does reads: the first, a guard's, or that of the second time.

use super::layout::{Event, Layout};
use super::tape::Tape;

/// One reading or making of a value.
pub struct Access {
    pub value: usize,
    /// A number for this instance of it: below [`Cursor::instances`], and the value's own for the first.
    pub instance: usize,
    /// The same for the memory that it lies in.
    pub memory: usize,
    pub bytes: u64,
    pub made: bool,
}

/// Goes through the events of a layout.
pub struct Cursor<'a> {
    tape: &'a Tape<'a>,
    layout: &'a Layout,
    /// The instance of each value that is read now.
    current: Vec<usize>,
    guards: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(tape: &'a Tape<'a>, layout: &'a Layout) -> Self {
        Self { tape, layout, current: (0..tape.values.len()).collect(), guards: 0 }
    }

    /// How many instances there may be.
    pub fn instances(&self) -> usize {
        2 * self.tape.values.len() + self.layout.events.len()
    }

    /// The event in which each instance, or each memory, is read last; 0 for those that nothing reads.
    pub fn last_reads(tape: &'a Tape<'a>, layout: &'a Layout, of_memory: bool) -> Vec<usize> {
        let mut cursor = Self::new(tape, layout);
        let mut last = vec![0; cursor.instances()];
        for (at, event) in layout.events.iter().enumerate() {
            cursor.advance(*event, |access| {
                if !access.made {
                    last[if of_memory { access.memory } else { access.instance }] = at;
                }
            });
        }
        last
    }

    /// Tells `visit` what an event reads, in the order of [`super::tape::Step::reads`], and then what it makes.
    pub fn advance(&mut self, event: Event, mut visit: impl FnMut(Access)) {
        let (tape, count) = (self.tape, self.tape.values.len());
        match event {
            Event::Begin => {}
            Event::Step(step) => {
                let step = &tape.steps[step];
                step.reads.iter().for_each(|&value| visit(self.access(value, self.current[value], false)));
                step.makes.iter().for_each(|&value| visit(self.access(value, value, true)));
            }
            Event::Guard { value } => {
                visit(self.access(value, self.current[value], false));
                let guard = self.last_guard() + 1;
                self.guards += 1;
                visit(self.access(value, guard, true));
                if !tape.is_given(value) {
                    self.current[value] = guard;
                }
            }
            Event::Again { step, guarded } => {
                let step = &tape.steps[step];
                for &value in &step.reads {
                    let own = guarded == Some(value);
                    let instance = if own { self.last_guard() } else { self.current[value] };
                    visit(self.access(value, instance, false));
                }
                for &value in &step.makes {
                    visit(self.access(value, count + value, true));
                    if !self.layout.kept[tape.values[value].store] {
                        self.current[value] = count + value;
                    }
                }
            }
        }
    }

    fn last_guard(&self) -> usize {
        2 * self.tape.values.len() + self.guards - 1
    }

    fn access(&self, value: usize, instance: usize, made: bool) -> Access {
        let (tape, count) = (self.tape, self.tape.values.len());
        let store = tape.values[value].store;
        let (memory, bytes) = match instance / count {
            0 => (store, tape.bytes[store]),
            1 => (count + store, tape.bytes[store]),
            _ => (instance, tape.values[value].fact.map_or(0, |fact| fact.bytes() as u64)),
        };
        Access { value, instance, memory, bytes, made }
    }
}
