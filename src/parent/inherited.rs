//! A tokio runtime that was used before `init`: what it leaves in the statics that every worker inherits.
//!
//! With its `signal` or `process` feature tokio makes one socket pair for the whole process, with the first runtime, and
//! every later runtime watches a duplicate of one end. In a worker that number is closed, or, worse, means something
//! else. tokio does not tell the number, but it can be seen: a new runtime has a descriptor for a socket that was there
//! before.
//!
//! What is not mended: a signal that such a runtime listened to before `init` does not reach tokio in a worker any more,
//! since tokio believes its handler to stand, and a worker's signals are at their defaults.

use crate::sys::{fd, reserved};

/// In the program, before the library makes sockets of its own: whether there may be such a pair. Mostly there is not.
pub(super) fn may_have_signal_pair() -> bool {
    fd::sockets().len() >= 2
}

/// In the throw-away process, which has what the program had open: sees to it that workers find that pair.
pub(super) fn reserve_signal_pair() {
    let build = || tokio::runtime::Builder::new_current_thread().enable_all().build().ok();
    if let Some(pair) = reserved::find(build) {
        reserved::reserve(pair);
    }
}
