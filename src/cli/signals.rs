//! Ctrl-C: once to stop soon with the best so far, twice to quit at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Says whether the user asked to stop.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// From now on Ctrl-C, and the polite signals to terminate, are counted instead of ending the process. One of `several`
    /// says nothing to them and is ended by its launcher, which sends them also where another one failed.
    pub fn install(several: bool) -> Self {
        let interrupt = Self::default();
        let count = interrupt.0.clone();
        // A second handler in one process can't happen; without any, Ctrl-C still ends the program.
        let _ = ctrlc::set_handler(move || {
            let before = count.fetch_add(1, Ordering::Relaxed);
            if several {
                return;
            }
            if before > 0 {
                std::process::exit(130);
            }
            let _ = writeln!(
                std::io::stderr(),
                "\nstopping soon, keeping the best so far (again to quit at once)"
            );
        });
        // Launchers pass this one on to all their processes. Where it can't be caught, it ends them as it would have.
        #[cfg(all(unix, feature = "mpi"))]
        if several {
            let _ = signal_hook::flag::register_usize(signal_hook::consts::SIGUSR1, interrupt.0.clone(), 1);
        }
        interrupt
    }
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}
