//! The process-wide zygote and the free functions that use it.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    run::{Open, Run},
    task::Task,
    zygote::{Inner, Zygote},
};
use crate::{
    error::{Error, StartError},
    sys::role::{self, Role},
    task::{AsyncTask, BlockingTask},
};

static DEFAULT: RwLock<Option<Zygote>> = RwLock::new(None);
static FORMER: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// Starts the process-wide zygote, which the free functions use. Call it once, first thing in `main`: after privileges
/// were dropped, the program daemonised and log subscribers are installed, before anything starts a thread, so not under
/// `#[tokio::main]`.
///
/// # Errors
///
/// As [`ZygoteBuilder::start`](crate::ZygoteBuilder::start), and [`StartError::AlreadyInitialized`] the second time.
///
/// ```
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     tokio_run_in_process::init()?;
///     tokio::runtime::Runtime::new()?.block_on(async {
///         let sum = tokio_run_in_process::run_in_process(async |a: u32, b: u32| a + b, (1, 2)).await?;
///         assert_eq!(sum, 3);
///         Ok(())
///     })
/// }
/// ```
pub fn init() -> Result<(), StartError> {
    if role::get() != Role::Parent {
        return Err(StartError::InsideWorker);
    }
    // One after the other, should two threads call it.
    let mut default = DEFAULT.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(zygote) = &*default {
        return Err(match zygote.0.check_owner() {
            Ok(()) => StartError::AlreadyInitialized,
            Err(_) => StartError::WrongProcess,
        });
    }
    *default = Some(Zygote::builder().start()?);
    Ok(())
}

/// Makes this the process-wide zygote, which the free functions and [`Task::new`](crate::Task::new) use from now on; gives
/// the one before. So a program that has [preloaded](Zygote::preload) its next generation goes over to it: tasks that are
/// under way finish where they are. A [`Pool`](crate::Pool) stays with the zygote that it was made of.
///
/// ```
/// use tokio_run_in_process::{block_on, default_zygote, run_in_process, set_default_zygote, worker};
///
/// block_on(async {
///     let next = default_zygote().unwrap().preload(|| "tables".to_owned(), ()).await.unwrap();
///     let before = set_default_zygote(next);
///     drop(before); // ends with its last task
///     let tables = run_in_process(async || worker::preloaded::<String>().cloned(), ()).await.unwrap();
///     assert_eq!(tables.as_deref(), Some("tables"));
/// })
/// .unwrap();
/// ```
pub fn set_default_zygote(zygote: Zygote) -> Option<Zygote> {
    let before = DEFAULT.write().unwrap_or_else(PoisonError::into_inner).replace(zygote);
    let mut former = FORMER.lock().unwrap_or_else(PoisonError::into_inner);
    former.retain(|zygote| zygote.strong_count() > 0);
    former.extend(before.iter().map(|zygote| Arc::downgrade(&zygote.0)));
    before
}

/// The process-wide zygote, and those that were it before and still have a task or a handle: each once.
pub(super) fn process_wide() -> Vec<Zygote> {
    let mut zygotes: Vec<Zygote> = default_zygote().into_iter().collect();
    for former in FORMER.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
        if !zygotes.iter().any(|zygote| Arc::ptr_eq(&zygote.0, &former)) {
            zygotes.push(Zygote(former));
        }
    }
    zygotes
}

/// The process-wide zygote: the one that [`init`] started, or that [`set_default_zygote`] set since.
///
/// # Errors
///
/// [`Error::NotInitialized`] without `init`, [`Error::InsideWorker`] in a worker.
///
/// ```
/// tokio_run_in_process::init().unwrap();
/// let zygote = tokio_run_in_process::default_zygote().unwrap();
/// println!("pid {}, up to {} processes", zygote.pid(), zygote.available_processes());
/// ```
pub fn default_zygote() -> Result<Zygote, Error> {
    if role::get() != Role::Parent {
        return Err(Error::InsideWorker);
    }
    DEFAULT.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::NotInitialized)
}

/// How long the last words of tasks may take to become events.
#[cfg(feature = "tracing")]
const FLUSH: std::time::Duration = std::time::Duration::from_secs(1);

/// Starts the process-wide zygote, builds a multi-thread tokio runtime with I/O and timers, and runs a future on it: the
/// whole of `main` for most programs.
///
/// # Errors
///
/// As [`init`], and what building the runtime gives.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let answer = tokio_run_in_process::block_on(async {
///     tokio_run_in_process::run_in_process(async || 42, ()).await
/// })??;
/// assert_eq!(answer, 42);
/// # Ok(()) }
/// ```
pub fn block_on<F: Future>(future: F) -> Result<F::Output, StartError> {
    init()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(StartError::system("build the runtime"))?;
    let output = runtime.block_on(future);
    // Its tasks may hold processes, which end with it.
    drop(runtime);
    #[cfg(feature = "tracing")]
    super::stdio::flush_traced(FLUSH);
    Ok(output)
}

/// Runs an async function in a fresh process and gives its result.
///
/// `function` is any async function or closure that captures nothing, of zero to eight arguments, given as `()`, `a`,
/// `(a, b)` ...; arguments and result are `serde` types. It runs on a fresh single-threaded tokio runtime in a process
/// forked for it alone. The arguments are encoded when this is called, so the future is `Send` whatever they are.
///
/// # Errors
///
/// [`Error`], by cause.
///
/// # Cancel safety
///
/// Dropping the future ends the task: SIGTERM at once, SIGKILL at the end of its grace period.
///
/// ```
/// use tokio_run_in_process::{block_on, run_in_process};
///
/// async fn fib(n: u64) -> u64 {
///     if n <= 1 { n } else { Box::pin(fib(n - 1)).await + Box::pin(fib(n - 2)).await }
/// }
///
/// block_on(async {
///     assert_eq!(run_in_process(fib, 10).await.unwrap(), 55);
/// })
/// .unwrap();
/// ```
pub fn run_in_process<F, A, M>(function: F, arguments: A) -> Run<F::Output>
where
    F: AsyncTask<A, M>,
    A: Serialize + DeserializeOwned + 'static,
    F::Output: Serialize + DeserializeOwned + Send + 'static,
{
    Task::new().run(function, arguments)
}

/// Starts an async function in a fresh process and gives a handle to it once it executes.
///
/// # Errors
///
/// [`Error`], if the task could not start.
///
/// # Cancel safety
///
/// Dropping the future, and later the [`Process`](crate::Process), ends the task as with [`run_in_process`].
///
/// ```
/// use tokio_run_in_process::{block_on, open_in_process};
///
/// block_on(async {
///     let process = open_in_process(async || std::process::id(), ()).await.unwrap();
///     // ... do other things here ...
///     assert_eq!(process.pid(), process.wait().await.unwrap());
/// })
/// .unwrap();
/// ```
pub fn open_in_process<F, A, M>(function: F, arguments: A) -> Open<F::Output>
where
    F: AsyncTask<A, M>,
    A: Serialize + DeserializeOwned + 'static,
    F::Output: Serialize + DeserializeOwned + Send + 'static,
{
    Task::new().open(function, arguments)
}

/// Runs a plain function in a fresh process, without a runtime there, and gives its result. It may block.
///
/// It cannot be dropped half-way, so SIGTERM kills it at once unless it took the signal over
/// ([`worker::signal`](crate::worker::signal())).
///
/// # Errors
///
/// [`Error`], by cause.
///
/// # Cancel safety
///
/// Dropping the future ends the task, as with [`run_in_process`].
///
/// ```
/// use tokio_run_in_process::{block_on, run_blocking_in_process};
///
/// fn checksum(text: String) -> u32 {
///     text.bytes().map(u32::from).sum()
/// }
///
/// block_on(async {
///     assert_eq!(run_blocking_in_process(checksum, "abc".to_owned()).await.unwrap(), 294);
/// })
/// .unwrap();
/// ```
pub fn run_blocking_in_process<F, A, M>(function: F, arguments: A) -> Run<F::Output>
where
    F: BlockingTask<A, M>,
    A: Serialize + DeserializeOwned + 'static,
    F::Output: Serialize + DeserializeOwned + Send + 'static,
{
    Task::new().run_blocking(function, arguments)
}

/// Starts a plain function in a fresh process and gives a handle to it: [`run_blocking_in_process`] in the background.
///
/// # Errors
///
/// [`Error`], if the task could not start.
///
/// ```
/// use tokio_run_in_process::{block_on, open_blocking_in_process};
///
/// block_on(async {
///     let process = open_blocking_in_process(|a: u8, b: u8| a * b, (6, 7)).await.unwrap();
///     assert_eq!(process.await.unwrap(), 42);
/// })
/// .unwrap();
/// ```
pub fn open_blocking_in_process<F, A, M>(function: F, arguments: A) -> Open<F::Output>
where
    F: BlockingTask<A, M>,
    A: Serialize + DeserializeOwned + 'static,
    F::Output: Serialize + DeserializeOwned + Send + 'static,
{
    Task::new().open_blocking(function, arguments)
}
