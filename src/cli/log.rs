//! `--log run.jsonl`: everything that happens in a run, one JSON object a line, for programs that follow it.
//!
//! Fields are described in docs/following-a-run.md and are a promise to other programs.

use super::tensorboard::Board;
use super::terminal::Watcher;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::train::{Event, Observer, StepTaken};
use serde_json::{Map, Value as Json, json};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Whoever follows a run.
pub struct Audience {
    pub watcher: Watcher,
    pub log: Option<Log>,
    pub board: Option<Board>,
}

impl Audience {
    /// Writes how the run ended, and says what couldn't be written.
    pub fn finish(self, report: &Report) -> Result<()> {
        let board = self.board.map_or(Ok(()), Board::finish);
        self.log.map_or(Ok(()), |log| log.finish(report)).and(board)
    }
}

impl Observer for Audience {
    fn event(&mut self, event: &Event<'_>) {
        self.watcher.event(event);
        self.log.iter_mut().for_each(|log| log.event(event));
        self.board.iter_mut().for_each(|board| board.event(event));
    }
    fn step(&mut self, taken: &StepTaken) {
        self.log.iter_mut().for_each(|log| log.step(taken));
        self.board.iter_mut().for_each(|board| board.step(taken));
    }
    fn interrupted(&self) -> bool {
        self.watcher.interrupted()
    }
}

/// Whoever follows the file sees a line no later than this, or when the next one is written.
const FLUSHED_EVERY: Duration = Duration::from_millis(200);

/// A log that is being written.
pub struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    begun: Instant,
    flushed: Instant,
    arm: String,
    seed: u64,
    /// The first write that failed: training goes on, and it is said at the end.
    failed: Option<std::io::Error>,
}

impl Log {
    /// Begins a log, or goes on with one.
    pub fn open(path: &Path, goes_on: bool) -> Result<Self> {
        let file = OpenOptions::new().create(true).write(true).append(goes_on).truncate(!goes_on).open(path);
        let file = file.map_err(|e| Error::io(path, e))?;
        let now = Instant::now();
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            begun: now,
            flushed: now,
            arm: String::new(),
            seed: 0,
            failed: None,
        })
    }

    pub fn event(&mut self, event: &Event<'_>) {
        match *event {
            Event::Phase(phase) => self.line("phase", json!({ "phase": phase })),
            Event::Note(text) => self.line("note", json!({ "text": text })),
            Event::Warning(text) => self.line("warning", json!({ "text": text })),
            Event::ArmStart { arm, seed, steps } => {
                (self.arm, self.seed) = (arm.to_owned(), seed);
                self.line("arm", json!({ "arm": arm, "seed": seed, "steps": steps }));
            }
            Event::Validation { step, metric, best } => {
                let own = json!({ "step": step, "metric": metric, "best": best });
                self.of_arm("validation", own);
            }
            Event::ArmEnd { metric, .. } => self.of_arm("arm_end", json!({ "metric": metric })),
            Event::Fold { fold, folds, rows, untouched, metric } => {
                let own = json!({ "fold": fold, "folds": folds, "rows": rows, "untouched": untouched, "metric": metric });
                self.of_arm("fold", own);
            }
            // Every step comes by itself.
            Event::Step { .. } => {}
        }
    }

    pub fn step(&mut self, taken: &StepTaken) {
        let StepTaken { step, loss, learning_rate, seconds } = *taken;
        let own = json!({ "step": step, "loss": loss, "learning_rate": learning_rate, "seconds": seconds });
        self.of_arm("step", own);
    }

    /// Writes how the run ended, and says what of the log couldn't be written.
    fn finish(mut self, report: &Report) -> Result<()> {
        let Report { outcome, method, metric, untouched, shipped, gains, folds, .. } = report;
        let own = json!({
            "outcome": outcome, "method": method, "metric": metric.name, "untouched": untouched, "shipped": shipped,
            "gains": gains, "folds": folds,
        });
        self.line("end", own);
        let failed = self.failed.take().or_else(|| self.file.flush().err());
        failed.map_or(Ok(()), |e| {
            Err(Error::io(&self.path, e).hint("the model is written; its log is not whole"))
        })
    }

    fn of_arm(&mut self, event: &str, own: Json) {
        let mut fields = json!({ "arm": self.arm, "seed": self.seed });
        if let (Json::Object(fields), Json::Object(own)) = (&mut fields, own) {
            fields.extend(own);
        }
        self.line(event, fields);
    }

    fn line(&mut self, event: &str, own: Json) {
        if self.failed.is_some() {
            return;
        }
        let seconds = (self.begun.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        let mut fields =
            Map::from_iter([("t".to_owned(), json!(seconds)), ("event".to_owned(), json!(event))]);
        if let Json::Object(own) = own {
            fields.extend(own);
        }
        let mut written = writeln!(self.file, "{}", Json::Object(fields));
        if written.is_ok() && (event != "step" || self.flushed.elapsed() > FLUSHED_EVERY) {
            self.flushed = Instant::now();
            written = self.file.flush();
        }
        self.failed = written.err();
    }
}
