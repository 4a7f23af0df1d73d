//! Ctrl-C: once to stop soon with the best so far, twice to quit at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Says whether the user asked to stop.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// From now on Ctrl-C, and the polite signals to terminate, are counted instead of ending the process.
    pub fn install() -> Self {
        let interrupt = Self::default();
        let count = interrupt.0.clone();
        // A second handler in one process can't happen; without any, Ctrl-C still ends the program.
        let _ = ctrlc::set_handler(move || {
            if count.fetch_add(1, Ordering::Relaxed) > 0 {
                std::process::exit(130);
            }
            let _ = writeln!(
                std::io::stderr(),
                "\nstopping soon, keeping the best so far (again to quit at once)"
            );
        });
        interrupt
    }
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}
