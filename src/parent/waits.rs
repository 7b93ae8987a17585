//! Who waits, counted.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts as long as it lives.
pub(super) struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }

    /// `None` if `most` wait already.
    pub(super) fn among(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        let before = count.fetch_add(1, Relaxed);
        let waits = Self(count);
        (before < most).then_some(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
