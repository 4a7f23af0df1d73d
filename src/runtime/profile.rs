//! Where the time of a run goes: spans by part and device, and what crosses from one device to another.
//!
//! A [`Profile`] is handed to executors when they are opened; each of their runs adds its spans. While a profile is
//! taken, runs are waited for, so that a span ends when its work does: the whole takes longer than without.

use super::{Compiled, Executor, Value};
use crate::error::Result;
use crate::onnx::{Facts, Forms, Model, Tensor};
use serde_json::{Value as Json, json};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Spans of a run, shared by all its executors.
#[derive(Clone)]
pub struct Profile(Arc<Record>);

struct Record {
    begun: Instant,
    spans: Mutex<Vec<Span>>,
}

/// A stretch of work.
#[derive(Clone, Debug)]
struct Span {
    /// The program it belongs to: `"model step"`, `"update"`.
    part: String,
    work: Work,
    start: f64,
    seconds: f64,
}

#[derive(Clone, PartialEq, Debug)]
enum Work {
    /// A run on a device, crossings excepted.
    Run { device: String },
    /// Tensors moved, with their bytes.
    Crossing { way: &'static str, bytes: usize },
}

/// A line of the table: all spans of one part that do the same.
#[derive(Clone, Debug)]
pub struct Line {
    pub part: String,
    /// A device, or which way tensors cross.
    pub what: String,
    pub count: usize,
    pub seconds: f64,
    /// Bytes moved; 0 for runs.
    pub bytes: usize,
}

/// Which way tensors cross, for people.
pub const TO_GPU: &str = "crossing to the GPU";
pub const TO_CPU: &str = "crossing to the CPU";

impl Default for Profile {
    fn default() -> Self {
        Self(Arc::new(Record { begun: Instant::now(), spans: Mutex::default() }))
    }
}

/// Two handles are equal when they write to the same record.
impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for Profile {}
impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Profile({} spans)", self.spans().len())
    }
}

impl Profile {
    fn spans(&self) -> MutexGuard<'_, Vec<Span>> {
        self.0.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn measure<T>(&self, part: &str, work: Work, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = self.0.begun.elapsed().as_secs_f64();
        let result = f();
        let seconds = self.0.begun.elapsed().as_secs_f64() - start;
        self.spans().push(Span { part: part.to_owned(), work, start, seconds });
        result
    }
    /// Does `f`, a run of `part` on `device`.
    pub fn run<T>(&self, part: &str, device: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
        self.measure(part, Work::Run { device: device.to_owned() }, f)
    }
    /// Does `f`, which moves `bytes` between devices.
    pub fn crossing<T>(
        &self,
        part: &str,
        way: &'static str,
        bytes: usize,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.measure(part, Work::Crossing { way, bytes }, f)
    }
    /// The table: by part in the order of their first span, the most expensive first within each.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = vec![];
        let mut parts: Vec<String> = vec![];
        for span in self.spans().iter() {
            let (what, bytes) = match &span.work {
                Work::Run { device } => (device.as_str(), 0),
                Work::Crossing { way, bytes } => (*way, *bytes),
            };
            if !parts.contains(&span.part) {
                parts.push(span.part.clone());
            }
            match lines.iter_mut().find(|l| l.part == span.part && l.what == what) {
                Some(line) => {
                    line.count += 1;
                    line.seconds += span.seconds;
                    line.bytes += bytes;
                }
                None => lines.push(Line {
                    part: span.part.clone(),
                    what: what.to_owned(),
                    count: 1,
                    seconds: span.seconds,
                    bytes,
                }),
            }
        }
        let place = |line: &Line| parts.iter().position(|p| *p == line.part);
        lines.sort_by(|a, b| place(a).cmp(&place(b)).then(b.seconds.total_cmp(&a.seconds)));
        lines
    }
    /// All spans in the form that chrome://tracing and Perfetto open.
    pub fn trace(&self) -> Json {
        let spans = self.spans();
        let mut rows: Vec<&str> = vec![];
        let events: Vec<Json> = spans
            .iter()
            .map(|span| {
                let (row, name, args) = match &span.work {
                    Work::Run { device } => (device.as_str(), span.part.as_str(), json!({})),
                    Work::Crossing { way, bytes } => (*way, span.part.as_str(), json!({ "bytes": bytes })),
                };
                let tid = rows.iter().position(|r| *r == row).unwrap_or_else(|| {
                    rows.push(row);
                    rows.len() - 1
                });
                json!({
                    "ph": "X", "pid": 1, "tid": tid, "name": name, "cat": row,
                    "ts": span.start * 1e6, "dur": span.seconds * 1e6, "args": args,
                })
            })
            .collect();
        let names = rows.iter().enumerate().map(|(tid, row)| {
            json!({ "ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": { "name": row } })
        });
        json!({ "displayTimeUnit": "ms", "traceEvents": names.chain(events).collect::<Vec<_>>() })
    }
}

/// An executor whose runs are written to a profile.
pub struct Profiled {
    pub inner: Arc<dyn Executor>,
    pub profile: Profile,
}

impl Executor for Profiled {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn device(&self) -> String {
        self.inner.device()
    }
    fn misses(&self, model: &Model) -> Vec<String> {
        self.inner.misses(model)
    }
    fn compile(&self, model: &Model, facts: &Facts) -> Result<Box<dyn Compiled>> {
        let compiled = self.inner.compile(model, facts)?;
        Ok(watched(compiled, self.inner.clone(), &self.profile, part_of(model)))
    }
    fn on_host(&self) -> bool {
        self.inner.on_host()
    }
    fn upload(&self, tensor: &Tensor) -> Result<Value> {
        self.inner.upload(tensor)
    }
    fn holds(&self, value: &Value) -> bool {
        self.inner.holds(value)
    }
    fn lanes(&self) -> NonZeroUsize {
        self.inner.lanes()
    }
    fn enough(&self) -> Option<usize> {
        self.inner.enough()
    }
    fn forms(&self) -> Forms {
        self.inner.forms()
    }
    fn finish(&self) -> Result<()> {
        self.inner.finish()
    }
}

/// What a program is called in the table.
pub fn part_of(model: &Model) -> String {
    match model.graph.name.as_str() {
        "" => "model".to_owned(),
        name => name.to_owned(),
    }
}

/// `compiled`, a program of `executor`, whose runs are written to `profile`.
pub fn watched(
    inner: Box<dyn Compiled>,
    executor: Arc<dyn Executor>,
    profile: &Profile,
    part: String,
) -> Box<dyn Compiled> {
    Box::new(Watched { inner, executor, profile: profile.clone(), part })
}

/// Bytes of a value.
pub fn size_of(value: &Value) -> usize {
    value.fact().bytes()
}

struct Watched {
    inner: Box<dyn Compiled>,
    executor: Arc<dyn Executor>,
    profile: Profile,
    part: String,
}

impl Compiled for Watched {
    fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>> {
        let Watched { inner, executor, profile, part } = self;
        let foreign = |value: &&Value| !executor.holds(value);
        let bytes: usize = inputs.iter().filter(foreign).map(size_of).sum();
        let moved: Vec<Value>;
        let mut inputs = inputs;
        if executor.name() == "wgpu" && bytes > 0 {
            moved = profile.crossing(part, TO_GPU, bytes, || {
                let to_device = |value: &Value| match executor.holds(value) {
                    true => Ok(value.clone()),
                    false => executor.upload(&value.to_host()?),
                };
                inputs.iter().map(to_device).collect::<Result<_>>()
            })?;
            inputs = &moved;
        }
        profile.run(part, &executor.device(), || {
            let outputs = inner.run(inputs)?;
            executor.finish()?;
            Ok(outputs)
        })
    }
    fn run_each(&mut self, runs: &[Vec<Value>]) -> Result<Vec<Vec<Value>>> {
        if self.executor.lanes() == NonZeroUsize::MIN || runs.len() < 2 {
            return runs.iter().map(|inputs| self.run(inputs)).collect();
        }
        let Watched { inner, executor, profile, part } = self;
        profile.run(part, &executor.device(), || inner.run_each(runs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_a_part_add_up_and_come_out_as_a_trace() -> Result<()> {
        let profile = Profile::default();
        for _ in 0..3 {
            profile.run("model step", "a GPU", || Ok(()))?;
            profile.crossing("model step", TO_CPU, 8, || Ok(()))?;
        }
        profile.run("update", "a CPU", || Ok(()))?;
        let lines = profile.lines();
        let counts: Vec<_> = lines.iter().map(|l| (l.part.as_str(), l.count, l.bytes)).collect();
        assert_eq!(counts.len(), 3);
        assert!(counts.contains(&("model step", 3, 0)) && counts.contains(&("model step", 3, 24)));
        assert_eq!(lines[2].what, "a CPU");
        let trace = profile.trace();
        let events = trace["traceEvents"].as_array().map(Vec::len);
        assert_eq!(events, Some(3 + 7));
        Ok(())
    }
}
