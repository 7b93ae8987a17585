//! Plain values that every process of the library agrees on. No I/O, no clock, no platform: everything here is decided
//! from arguments and tested beside its code.

mod captured;
mod demand;
mod exit;
mod histogram;
mod lifecycle;
#[cfg(feature = "tracing")]
mod lines;
mod outcome;
#[cfg(test)]
pub(crate) mod random;
mod report;
mod signal;
mod state;

pub use captured::CapturedError;
pub(crate) use demand::Demand;
pub use exit::{ExitStatus, Usage};
pub use histogram::Latency;
pub(crate) use histogram::{BUCKETS, bucket};
pub(crate) use lifecycle::{Action, Event, Lifecycle, Limits};
#[cfg(feature = "tracing")]
pub(crate) use lines::{Line, Lines};
pub use outcome::Phase;
pub(crate) use outcome::{Cause, Ending, Failure, Terminal, settle};
pub use report::{Frame, PanicReport};
pub use signal::Signal;
pub use state::State;

/// Names one worker for the life of the parent; the parent counts them up, the zygote only repeats them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerId(pub(crate) u64);
