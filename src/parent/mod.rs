//! The user's program: the handles, and the driver behind them.
//!
//! The fast path (`run`) stays on the caller's runtime: it orders a worker, writes the job and reads the result there.
//! The driver, one thread with a small runtime of its own, does what must go on without a caller: it reads the zygote's
//! facts, keeps the deadlines of every worker, carries escalations to their end, and reads for `Process` handles.

mod bare;
mod builder;
mod capabilities;
mod config;
mod contain;
mod conversation;
mod decode;
pub(crate) mod dispatch;
mod driver;
#[cfg(feature = "tracing")]
mod events;
mod inherited;
mod init;
mod launch;
mod line;
mod lineage;
mod link;
mod metrics;
mod parcel;
mod pool;
mod preload;
mod process;
mod race;
mod relay;
mod roster;
mod run;
mod shutdown;
mod start;
mod stdio;
mod succession;
mod task;
mod waits;
mod warm;
mod word;
mod worker;
mod zygote;

pub use builder::ZygoteBuilder;
pub use capabilities::Capabilities;
pub use init::{
    block_on, default_zygote, init, open_blocking_in_process, open_in_process, run_blocking_in_process, run_in_process,
    set_default_zygote,
};
pub use metrics::{Finished, Metrics};
pub use pool::{Map, Pool, PoolBuilder, PoolOpen, PoolRun, PoolTask};
pub use preload::Preload;
pub use process::{Process, Wait};
pub use relay::{Relay, relay_signals};
pub use run::{Open, Run};
#[cfg(feature = "tracing")]
pub use stdio::flush_traced;
pub use stdio::{Captured, Output, PipeReader, PipeWriter, RunOutput, Stdio};
pub use task::Task;
pub use zygote::{MAX_PROCESSES, WARM_WORKERS, Zygote};
