//! Memory that is counted: what reads an input must not ask for more than its size allows.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The elements that an input may claim although they take none of its bytes.
const FREE: usize = 8 << 20;
/// The largest of the types takes so many bytes of memory for one of the input, twice, since vectors grow by moving.
const FACTOR: usize = 512;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator, whose arguments and answers pass unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if LIVE.fetch_add(layout.size(), Relaxed) + layout.size() > LIMIT.load(Relaxed) {
            // Nothing may be allocated from here on, not by the panic either.
            LIMIT.store(usize::MAX, Relaxed);
            panic!("{} bytes more than this input may have", layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

pub fn run(bytes: &[u8], read: impl FnOnce(&[u8])) {
    LIMIT.store(LIVE.load(Relaxed) + FREE + FACTOR * bytes.len(), Relaxed);
    read(bytes);
    LIMIT.store(usize::MAX, Relaxed);
}
