#![doc = include_str!("../README.md")]
// Says of each item which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod model;
mod parent;
mod pass;
mod sys;
mod task;
mod wire;
pub mod worker;
mod zygote;

pub use error::{Coded, Error, StartError, TaskId};
pub use model::{CapturedError, ExitStatus, Frame, Latency, PanicReport, Phase, Signal, State, Usage};
#[cfg(feature = "tracing")]
pub use parent::flush_traced;
pub use parent::{
    Capabilities, Captured, Finished, MAX_PROCESSES, Map, Metrics, Open, Output, PipeReader, PipeWriter, Pool,
    PoolBuilder, PoolOpen, PoolRun, PoolTask, Preload, Process, Relay, Run, RunOutput, Stdio, Task, WARM_WORKERS, Wait,
    Zygote, ZygoteBuilder, block_on, default_zygote, init, open_blocking_in_process, open_in_process, relay_signals,
    run_blocking_in_process, run_in_process, set_default_zygote,
};
pub use pass::{
    Bytes, Caller, ChannelError, Descriptor, Fd, MESSAGE_LIMIT, Receiver, Reply, Responder, Sender, Shared,
    SharedBuilder, call_channel, channel, channel_with_limit,
};
pub use task::{AsyncTask, BlockingTask, Runtime, WorkerTask};
#[cfg(feature = "smol")]
pub use worker::Smol;

/// For the tests of this crate: not part of its interface.
#[doc(hidden)]
pub mod test_support {
    /// Switches kernel capabilities off, as if this kernel lacked them: `all`, `pidfd` or `none`. Call it before the
    /// first zygote.
    pub fn limit_capabilities(set: &str) {
        use crate::sys::caps::{ALL, PIDFD_ONLY, mask};
        mask(match set {
            "pidfd" => PIDFD_ONLY,
            "none" => 0,
            _ => ALL,
        });
    }

    /// Has workers announce no task that nobody looks at before its outcome, as when there is much to do.
    pub fn announce_less() {
        crate::parent::dispatch::ALWAYS_QUIET.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// About the median time of this zygote's lone tasks, in nanoseconds, whose workers say that they begin, and of those
    /// whose workers do not; 0 where there was none.
    pub fn times_with_and_without_word(zygote: &crate::Zygote) -> (u64, u64) {
        crate::parent::dispatch::times_with_and_without_word(zygote)
    }

    /// What the parent does with a result's bytes.
    #[cfg(fuzzing)]
    pub fn read_value(bytes: &[u8]) {
        crate::wire::fuzz::value(bytes);
    }

    /// What the parent does with what comes over a job's socket.
    #[cfg(fuzzing)]
    pub fn read_frames(bytes: &[u8]) {
        crate::wire::fuzz::frames(bytes);
    }
}
