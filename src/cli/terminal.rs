//! What people see while a run goes on: progress bars on a terminal, plain lines in a log. All on stderr.

use super::signals::Interrupt;
use crate::error::Error;
use crate::train::{Event, Observer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Writes a message to stderr; nobody listening is no reason to stop.
pub fn message(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `error: …` and its hints.
pub fn print_error(error: &Error) {
    let paint = Paint::stderr();
    message(format!("{} {error}", paint.red("error:")));
    for hint in error.hints() {
        message(format!("{} {hint}", paint.cyan("hint:")));
    }
}

/// Colours, where they are wanted: on a terminal, unless `NO_COLOR` is set.
#[derive(Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    pub fn stderr() -> Self {
        Self(std::io::stderr().is_terminal() && wanted())
    }
    pub fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && wanted())
    }
    fn ansi(self, code: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    pub fn bold(self, text: &str) -> String {
        self.ansi(1, text)
    }
    pub fn red(self, text: &str) -> String {
        self.ansi(31, text)
    }
    pub fn green(self, text: &str) -> String {
        self.ansi(32, text)
    }
    pub fn yellow(self, text: &str) -> String {
        self.ansi(33, text)
    }
    pub fn cyan(self, text: &str) -> String {
        self.ansi(36, text)
    }
    pub fn dim(self, text: &str) -> String {
        self.ansi(2, text)
    }
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Shows a run on stderr, and passes Ctrl-C on to it.
pub struct Watcher {
    interrupt: Interrupt,
    paint: Paint,
    /// Absent in a log.
    bar: Option<ProgressBar>,
    quiet: bool,
    terminal: bool,
    arm: String,
    steps: usize,
    loss: f64,
    metric: Option<(f64, f64)>,
    last_line: Instant,
}

impl Watcher {
    pub fn new(interrupt: Interrupt, quiet: bool) -> Self {
        let paint = Paint::stderr();
        Self {
            interrupt,
            paint,
            bar: None,
            quiet,
            terminal: std::io::stderr().is_terminal(),
            arm: String::new(),
            steps: 0,
            loss: f64::NAN,
            metric: None,
            last_line: Instant::now(),
        }
    }

    fn line(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.suspend(|| message(text)),
            None => message(text),
        }
    }

    fn start_arm(&mut self, arm: &str, seed: u64, steps: usize) {
        self.arm = format!("{arm}, seed {seed}");
        (self.steps, self.loss, self.metric) = (steps, f64::NAN, None);
        self.last_line = Instant::now();
        if self.quiet {
            return;
        }
        if !self.terminal {
            return self.line(format!("training {} for up to {steps} steps", self.arm));
        }
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr_with_hz(8));
        let style = "{prefix} {bar:24} {pos}/{len} {msg} {elapsed}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.set_prefix(self.arm.clone());
        self.bar = Some(bar);
    }

    fn step(&mut self, step: usize, loss: f64, speed: f64) {
        self.loss = loss;
        let metric =
            self.metric.map_or(String::new(), |(now, best)| format!(" val {now:.4} (best {best:.4})"));
        if let Some(bar) = &self.bar {
            bar.set_position(step as u64);
            bar.set_message(format!("loss {loss:.4}{metric} {speed:.0} rows/s"));
        } else if !self.quiet && self.last_line.elapsed() > Duration::from_secs(10) {
            self.last_line = Instant::now();
            self.line(format!(
                "  {}: step {step}/{}, loss {loss:.4}{metric}, {speed:.0} rows/s",
                self.arm, self.steps
            ));
        }
    }

    /// Says what an arm came to.
    fn end_arm(&mut self, result: String) {
        self.clear_bar();
        if !self.quiet {
            self.line(format!("  {}: {result}", self.arm));
        }
    }

    fn clear_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Watcher {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Phase(_) = event {
            // What was interrupted has not ended.
            self.clear_bar();
        }
        match *event {
            Event::Phase(phase) if !self.quiet => self.line(self.paint.dim(phase)),
            Event::Note(text) if !self.quiet => self.line(format!("{} {text}", self.paint.cyan("note:"))),
            Event::Phase(_) | Event::Note(_) => {}
            Event::Warning(text) => self.line(format!("{} {text}", self.paint.yellow("warning:"))),
            Event::ArmStart { arm, seed, steps } => self.start_arm(arm, seed, steps),
            Event::Step { step, loss, rows_per_second, .. } => self.step(step, loss, rows_per_second),
            Event::Validation { metric, best, .. } => self.metric = Some((metric, best)),
            Event::Fold { rows, untouched, metric, .. } => self.end_arm(format!(
                "{metric:.4} on the {rows} rows that were left out, the untouched target {untouched:.4}"
            )),
            Event::ArmEnd { metric, .. } => self.end_arm(format!("{metric:.4} on validation")),
        }
    }
    fn interrupted(&self) -> bool {
        self.interrupt.requested()
    }
}

/// Columns of text, the first left-aligned, the others right-aligned.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| visible(t)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - visible(cell));
            line += &if i == 0 { format!("{cell}{pad}") } else { format!("   {pad}{cell}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Characters that take space on a terminal.
fn visible(text: &str) -> usize {
    let mut inside = false;
    let visible = |c: &char| {
        let was = inside;
        inside = (*c == '\x1b') || (inside && *c != 'm');
        !was && !inside
    };
    text.chars().filter(visible).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_colours() {
        let rows = [vec!["a".into(), "\x1b[1m10\x1b[0m".into()], vec!["bcd".into(), "5".into()]];
        assert_eq!(table(&rows), "a     \x1b[1m10\x1b[0m\nbcd    5\n");
    }
}
