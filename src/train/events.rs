//! What training tells whoever watches: the terminal, a log, the report.

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A phase of the run begins: `"reading"`, `"inventing"`, `"planning"`, `"training"`, `"writing"`.
    Phase(&'a str),
    /// Something the user should know, in one sentence.
    Note(&'a str),
    /// Something that may make the result worse, in one sentence.
    Warning(&'a str),
    /// An arm begins: its name, its seed, and how many steps it will take at most.
    ArmStart { arm: &'a str, seed: u64, steps: usize },
    /// A step is done (not sent for every step where they are fast).
    Step { step: usize, loss: f64, learning_rate: f64, rows_per_second: f64 },
    /// The validation metric was computed.
    Validation { step: usize, metric: f64, best: f64 },
    /// An arm that was trained without a fold of the training rows was measured on these, after [`Event::ArmStart`] and instead
    /// of [`Event::ArmEnd`]: the fold's number from 1 of how many, its rows, and the metric of the untouched target and of the arm.
    Fold { fold: usize, folds: usize, rows: usize, untouched: f64, metric: f64 },
    /// The arm is over.
    ArmEnd { arm: &'a str, seed: u64, metric: f64 },
}

/// A step that an arm has taken.
#[derive(Clone, Copy, Debug)]
pub struct StepTaken {
    /// How many the arm has taken by now.
    pub step: usize,
    pub loss: f64,
    pub learning_rate: f64,
    /// How long it took.
    pub seconds: f64,
}

/// Watches a run, and may stop it.
pub trait Observer: Send {
    fn event(&mut self, event: &Event<'_>);
    /// Told of every single step, however fast they are.
    fn step(&mut self, _: &StepTaken) {}
    /// Asked after every step: `true` ends training soon, keeping the best so far.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}
