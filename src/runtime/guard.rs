//! Keeps panics of executors inside: they become errors, and print nothing.
//!
//! Executors are other people's code fed with graphs of unknown people; some of them panic where they should
//! refuse. Look at [`guarded`].

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static SILENT: Cell<usize> = const { Cell::new(0) };
}

/// Worker threads whose name starts like this print no panics: rayon hands them on to the waiting thread.
pub(crate) const WORKER_NAME: &str = "onnx-merge-worker";

/// Runs `f`; a panic inside it comes back as its message.
///
/// What `f` borrows mutably may be left half-changed by a panic; throw it away then.
pub(crate) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    install_hook();
    SILENT.set(SILENT.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(f));
    SILENT.set(SILENT.get() - 1);
    result.map_err(|panic| {
        let message =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("internal failure: {}", message.unwrap_or("no message"))
    })
}

/// Puts a hook before the present one that says nothing about panics that [`guarded`] will report.
fn install_hook() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let worker = std::thread::current().name().is_some_and(|name| name.starts_with(WORKER_NAME));
            if SILENT.get() == 0 && !worker {
                previous(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        let error = guarded(|| panic!("shape {}", 3)).err();
        assert_eq!(error.as_deref(), Some("internal failure: shape 3"));
        assert_eq!(guarded(|| 7), Ok(7));
    }
}
