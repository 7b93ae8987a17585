//! Inside a task: what the function that runs in a worker may ask of its process.
//!
//! A worker is forked for one task. SIGTERM and SIGINT end the task: its future is dropped where it waits, so that its
//! destructors run, then the runtime, then the process dies of that signal. A task that wants to clean up in its own
//! way awaits [`cancelled`], or takes a signal over with [`signal`].
//!
//! ```
//! use std::time::Duration;
//! use tokio_run_in_process::{open_in_process, worker};
//!
//! async fn polite() -> String {
//!     tokio::select! {
//!         () = tokio::time::sleep(Duration::from_secs(60)) => "done".into(),
//!         () = worker::cancelled() => "cleaned up".into(),
//!     }
//! }
//!
//! tokio_run_in_process::block_on(async {
//!     let process = open_in_process(polite, ()).await.unwrap();
//!     # tokio::time::sleep(Duration::from_millis(100)).await;
//!     process.terminate().unwrap();
//!     assert_eq!(process.wait().await.unwrap(), "cleaned up");
//! })
//! .unwrap();
//! ```

mod cancel;
mod execute;
mod farewell;
mod host;
mod panic;
mod pool;
mod prologue;
mod signals;
#[cfg(feature = "smol")]
mod smol;

pub use cancel::{cancel, cancel_blocking, cancelled, is_cancelled};
pub(crate) use farewell::send;
pub(crate) use panic::install_hook;
pub(crate) use prologue::{Job, handle_signals, main};
pub use signals::{Signals, signal};
#[cfg(feature = "smol")]
pub use smol::Smol;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    task::Poll,
};

use crate::{
    model::Terminal,
    sys::role::{self, Role},
    task::{self, Arguments, Entry},
    wire::rope::Rope,
};

static NAME: OnceLock<String> = OnceLock::new();

/// What a task's runtime is, for those who look what it opens.
pub(crate) fn build_runtime() -> Option<impl Sized> {
    host::build_tokio().ok()
}

/// Runs the code that every worker runs, in a process that ends then.
pub(crate) fn rehearse() {
    role::set(Role::Worker);
    if let Ok(runtime) = host::build_tokio() {
        host::rehearse(&runtime);
        // As in a worker: it ends with the process.
        std::mem::forget(runtime);
    }
    farewell::rehearse();
}

/// In a zygote that preloads: calls the function of a job.
pub(crate) fn call(entry: u64, arguments: Arguments) -> Terminal<Rope> {
    panic::catch_next();
    let mut task = Entry::from_job(entry).enter(arguments, 0);
    let called = catch_unwind(AssertUnwindSafe(|| {
        task.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }));
    // What it was given `Shared` and did not keep: every worker would have it.
    crate::pass::let_go();
    match called {
        Ok(Poll::Ready(Ok(rope))) => Terminal::Returned(rope),
        Ok(Poll::Ready(Err(failure))) => Terminal::Failed(failure),
        Ok(Poll::Pending) => unreachable!("a plain function is ready at its first poll"),
        Err(payload) => panic::caught(payload),
    }
}

/// What the function given to [`Zygote::preload`](crate::Zygote::preload) returned, if it was of this type. Of several
/// generations, one made from the other, the newest.
///
/// It is there in the zygotes and in every worker, at the same address, and never dropped.
///
/// ```
/// use tokio_run_in_process::{block_on, default_zygote, worker};
///
/// block_on(async {
///     let zygote = default_zygote().unwrap().preload(|n: usize| vec![7_u8; n], 1000).await.unwrap();
///     let length = async || worker::preloaded::<Vec<u8>>().map(|bytes| bytes.len());
///     assert_eq!(zygote.run_in_process(length, ()).await.unwrap(), Some(1000));
///     assert!(worker::preloaded::<Vec<u8>>().is_none(), "not here");
/// })
/// .unwrap();
/// ```
pub fn preloaded<T: std::any::Any + Send + Sync>() -> Option<&'static T> {
    task::preloaded()
}

/// Whether this process is a worker.
///
/// ```
/// use tokio_run_in_process::{run_in_process, worker};
///
/// tokio_run_in_process::block_on(async {
///     assert!(!worker::is_worker());
///     assert!(run_in_process(async || worker::is_worker(), ()).await.unwrap());
/// })
/// .unwrap();
/// ```
pub fn is_worker() -> bool {
    role::get() == Role::Worker
}

/// The name that the task was given, if it was given one.
///
/// ```
/// use tokio_run_in_process::{Task, worker};
///
/// tokio_run_in_process::block_on(async {
///     let name = Task::new().name("parser").run(async || worker::name().map(str::to_owned), ()).await;
///     assert_eq!(name.unwrap().as_deref(), Some("parser"));
/// })
/// .unwrap();
/// ```
pub fn name() -> Option<&'static str> {
    NAME.get().map(String::as_str)
}
