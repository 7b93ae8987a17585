//! Which of our processes this is. A fork copies the answer, so each process sets its own right after its birth.

use std::sync::atomic::{AtomicU8, Ordering};

/// The role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// The user's program.
    Parent = 0,
    Zygote = 1,
    Worker = 2,
}

static ROLE: AtomicU8 = AtomicU8::new(Role::Parent as u8);

pub(crate) fn set(role: Role) {
    ROLE.store(role as u8, Ordering::Relaxed);
}

pub(crate) fn get() -> Role {
    match ROLE.load(Ordering::Relaxed) {
        0 => Role::Parent,
        1 => Role::Zygote,
        _ => Role::Worker,
    }
}
