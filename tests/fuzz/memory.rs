//! A limit on the memory of this process: no file of a few kilobytes is worth a gigabyte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const LIMIT: usize = 1 << 30;

#[global_allocator]
static LIMITED: Limited = Limited(AtomicUsize::new(0));

/// The system's allocator, which has nothing left beyond [`LIMIT`].
struct Limited(AtomicUsize);

// SAFETY: memory comes from the system's allocator and goes back to it with the layout it came with; null means that
// there was none.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.0.fetch_add(layout.size(), Relaxed) + layout.size() > LIMIT {
            self.0.fetch_sub(layout.size(), Relaxed);
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's layout is passed on as it is.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises, `pointer` came from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}
