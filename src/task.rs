//! Functions that can be run in a process, and their addresses.
//!
//! # Safety
//!
//! A task is named by the address of a monomorphised function. That is sound because zygote and worker are forks of the
//! same image, and the parent refuses an address in code that was loaded after the zygote was forked. An address
//! travels only in a job, from the parent to a worker. The function itself has no state: `F` is zero-sized and `Copy`,
//! checked when it is monomorphised, so a value of it can be made from nothing in the worker.

#![allow(unsafe_code, reason = "the fenced room of addresses: see above")]

use std::{
    any::Any,
    fmt,
    future::Future,
    mem,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    model::Failure,
    wire::{
        beside,
        payload::{self, CodecError},
        rope::Rope,
    },
};

/// An async function or non-capturing closure of zero to eight arguments.
///
/// `A` are its arguments: `()`, `a`, `(a, b)` ... `M` tells the arities apart and is always inferred. You do not
/// implement this trait; every function whose arguments and result are `serde` types has it.
///
/// A closure must not capture anything: what the task needs goes into its arguments. That is checked when the program
/// is built (`cargo build`; `cargo check` does not get that far):
///
/// ```compile_fail
/// # tokio_run_in_process::block_on(async {
/// let captured = 5_u64;
/// // A closure given to run_in_process must not capture anything.
/// tokio_run_in_process::run_in_process(async move |n: u64| n + captured, 1).await
/// # }).unwrap().unwrap();
/// ```
///
/// Nor does a call with the wrong number or types of arguments:
///
/// ```compile_fail
/// # async fn add(a: u64, b: u64) -> u64 { a + b }
/// # tokio_run_in_process::block_on(async {
/// tokio_run_in_process::run_in_process(add, (1, 2, 3)).await
/// # }).unwrap().unwrap();
/// ```
///
/// Nor a type that does not serialise:
///
/// ```compile_fail
/// # async fn count(words: Words) -> usize { words.0.len() }
/// struct Words(Vec<String>); // add #[derive(serde::Serialize, serde::Deserialize)]
/// # tokio_run_in_process::block_on(async {
/// tokio_run_in_process::run_in_process(count, Words(vec![])).await
/// # }).unwrap().unwrap();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run in a process with arguments of type `{A}`",
    label = "not an async function of these arguments that captures nothing",
    note = "give an async function or closure of zero to eight arguments; a closure must not capture anything: what it needs goes into its arguments",
    note = "arguments are given as `()`, `a`, `(a, b)`, ... and their number and types must be those of the function",
    note = "a plain (not async) function runs with `run_blocking_in_process`"
)]
pub trait AsyncTask<A, M>: Copy + 'static {
    /// What the function returns.
    type Output;

    #[doc(hidden)]
    fn call(self, arguments: A) -> impl Future<Output = Self::Output>;
}

/// A plain function or non-capturing closure of zero to eight arguments, which may block: see
/// [`AsyncTask`], which differs only in `async`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run in a process with arguments of type `{A}`",
    label = "not a function of these arguments that captures nothing",
    note = "give a function or closure of zero to eight arguments; a closure must not capture anything: what it needs goes into its arguments",
    note = "arguments are given as `()`, `a`, `(a, b)`, ... and their number and types must be those of the function"
)]
///
/// ```
/// use tokio_run_in_process::{block_on, run_blocking_in_process};
///
/// block_on(async {
///     let sum = |numbers: Vec<u64>| numbers.iter().sum::<u64>();
///     assert_eq!(run_blocking_in_process(sum, vec![1, 2, 3]).await.unwrap(), 6);
/// })
/// .unwrap();
/// ```
pub trait BlockingTask<A, M>: Copy + 'static {
    /// What the function returns.
    type Output;

    #[doc(hidden)]
    fn call(self, arguments: A) -> Self::Output;
}

macro_rules! arity {
    ($pattern:pat, $arguments:ty; $($name:ident $value:expr),*) => {
        // A closure that captures a `String` should hear that it captures, not that `String` is not `Copy`.
        #[diagnostic::do_not_recommend]
        impl<Function, Fut, $($name),*> AsyncTask<$arguments, fn($($name),*)> for Function
        where
            Function: FnOnce($($name),*) -> Fut + Copy + 'static,
            Fut: Future,
        {
            type Output = Fut::Output;

            fn call(self, $pattern: $arguments) -> impl Future<Output = Self::Output> {
                self($($value),*)
            }
        }

        #[diagnostic::do_not_recommend]
        impl<Function, Out, $($name),*> BlockingTask<$arguments, fn($($name),*)> for Function
        where
            Function: FnOnce($($name),*) -> Out + Copy + 'static,
        {
            type Output = Out;

            fn call(self, $pattern: $arguments) -> Out {
                self($($value),*)
            }
        }
    };
}

arity!((), (););
arity!(a, A; A a);
arity!((a, b), (A, B); A a, B b);
arity!((a, b, c), (A, B, C); A a, B b, C c);
arity!((a, b, c, d), (A, B, C, D); A a, B b, C c, D d);
arity!((a, b, c, d, e), (A, B, C, D, E); A a, B b, C c, D d, E e);
arity!((a, b, c, d, e, f), (A, B, C, D, E, F); A a, B b, C c, D d, E e, F f);
arity!((a, b, c, d, e, f, g), (A, B, C, D, E, F, G); A a, B b, C c, D d, E e, F f, G g);
arity!((a, b, c, d, e, f, g, h), (A, B, C, D, E, F, G, H); A a, B b, C c, D d, E e, F f, G g, H h);

/// What a worker makes of a job: the encoded result, or what went wrong with the bytes.
pub(crate) type Encoded = Result<Rope, Failure>;
pub(crate) type BoxedTask = Pin<Box<dyn Future<Output = Encoded>>>;

type EntryFn = fn(Arguments, u64) -> BoxedTask;

/// What a job brings for its function.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) bytes: Bytes,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What preloads made, the newest last. Written by the zygote's only thread that runs.
static PRELOADED: Mutex<Vec<&'static (dyn Any + Send + Sync)>> = Mutex::new(Vec::new());

/// The newest of this type.
pub(crate) fn preloaded<T: Any>() -> Option<&'static T> {
    let all = PRELOADED.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().rev().find_map(|made| made.downcast_ref())
}

/// The address of a task's function, monomorphised together with its codec.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry(u64);

impl Entry {
    pub(crate) fn of_async<F, A, M>(_function: F) -> Self
    where
        F: AsyncTask<A, M>,
        A: DeserializeOwned + 'static,
        F::Output: Serialize,
    {
        fn enter<F, A, M>(arguments: Arguments, limit: u64) -> BoxedTask
        where
            F: AsyncTask<A, M>,
            A: DeserializeOwned + 'static,
            F::Output: Serialize,
        {
            Box::pin(async move {
                let function = conjure::<F>();
                let output = function.call(decode::<A>(arguments)?).await;
                encode(&output, limit)
            })
        }
        Self::at(enter::<F, A, M>)
    }

    pub(crate) fn of_blocking<F, A, M>(_function: F) -> Self
    where
        F: BlockingTask<A, M>,
        A: DeserializeOwned + 'static,
        F::Output: Serialize,
    {
        fn enter<F, A, M>(arguments: Arguments, limit: u64) -> BoxedTask
        where
            F: BlockingTask<A, M>,
            A: DeserializeOwned + 'static,
            F::Output: Serialize,
        {
            Box::pin(async move {
                let output = conjure::<F>().call(decode::<A>(arguments)?);
                encode(&output, limit)
            })
        }
        Self::at(enter::<F, A, M>)
    }

    /// What a zygote runs once; its result stays there.
    pub(crate) fn of_preload<F, A, M>(_function: F) -> Self
    where
        F: BlockingTask<A, M>,
        A: DeserializeOwned + 'static,
        F::Output: Send + Sync + 'static,
    {
        fn enter<F, A, M>(arguments: Arguments, _limit: u64) -> BoxedTask
        where
            F: BlockingTask<A, M>,
            A: DeserializeOwned + 'static,
            F::Output: Send + Sync + 'static,
        {
            Box::pin(async move {
                let made = conjure::<F>().call(decode::<A>(arguments)?);
                PRELOADED.lock().unwrap_or_else(PoisonError::into_inner).push(Box::leak(Box::new(made)));
                Ok(Rope::default())
            })
        }
        Self::at(enter::<F, A, M>)
    }

    fn at(function: EntryFn) -> Self {
        Self(function as usize as u64)
    }

    pub(crate) fn address(self) -> u64 {
        self.0
    }

    /// In the worker: the function that the parent named in its job.
    pub(crate) fn from_job(address: u64) -> Self {
        Self(address)
    }

    /// In the worker: makes the task. Nothing of it runs before its first poll.
    pub(crate) fn enter(self, arguments: Arguments, result_limit: u64) -> BoxedTask {
        // SAFETY: the address came from `at` in the parent, whose image this process shares (see the module's page).
        let function = unsafe { mem::transmute::<usize, EntryFn>(self.0 as usize) };
        function(arguments, result_limit)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:#x})", self.0)
    }
}

/// Makes the one value of a zero-sized function type. Any other type is refused when it is monomorphised.
fn conjure<F: Copy>() -> F {
    const {
        assert!(
            mem::size_of::<F>() == 0,
            "a function given to run_in_process must not capture anything and must not be a function pointer: \
             name the function itself, and pass what it needs as arguments"
        );
    }
    // SAFETY: `F` has no bytes; it is inhabited, since the parent was given a value of it; and it is `Copy`, so one
    // more value breaks no promise of the type.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

fn decode<A: DeserializeOwned>(arguments: Arguments) -> Result<A, Failure> {
    let Arguments { bytes, fds } = arguments;
    let decoded = beside::decoding(bytes.clone(), Some(fds), || payload::decode(&bytes));
    decoded.map_err(|e| match e {
        CodecError::TooLarge { size, limit } => Failure::TooLarge { size, limit },
        e => Failure::Decode(bounded(e.to_string())),
    })
}

fn encode<T: Serialize>(value: &T, limit: u64) -> Encoded {
    let mut rope = Rope::default();
    let (encoded, _) = beside::encoding(false, || payload::encode_into(value, &mut rope, limit));
    match encoded {
        Ok(()) => Ok(rope),
        Err(CodecError::TooLarge { size, limit }) => Err(Failure::TooLarge { size, limit }),
        Err(e) => Err(Failure::Encode(bounded(e.to_string()))),
    }
}

/// A message of the user's own may be of any length; a frame may not.
fn bounded(mut text: String) -> String {
    const MAX: usize = 64 * 1024;
    if let Some((end, _)) = text.char_indices().find(|&(i, _)| i >= MAX) {
        text.truncate(end);
    }
    text
}

/// A task as a worker's runtime runs it: it hands its outcome on by itself and gives nothing.
///
/// See [`Runtime`].
#[must_use = "a task does nothing unless it is run"]
pub struct WorkerTask(Pin<Box<dyn Future<Output = ()>>>);

impl WorkerTask {
    pub(crate) fn new(task: impl Future<Output = ()> + 'static) -> Self {
        Self(Box::pin(task))
    }
}

impl Future for WorkerTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for WorkerTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerTask")
    }
}

/// A runtime of your own for workers: [`Task::runtime`](crate::Task::runtime) takes the type that implements it.
///
/// It is built in the worker, after the task's options were applied, and lives for one task.
///
/// ```
/// use tokio_run_in_process::{Runtime, Task, WorkerTask};
///
/// struct TwoThreads;
///
/// impl Runtime for TwoThreads {
///     fn run(task: WorkerTask) {
///         tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(task)
///     }
/// }
///
/// async fn threads() -> usize {
///     tokio::runtime::Handle::current().metrics().num_workers()
/// }
///
/// tokio_run_in_process::block_on(async {
///     assert_eq!(Task::new().runtime::<TwoThreads>().run(threads, ()).await.unwrap(), 2);
/// })
/// .unwrap();
/// ```
pub trait Runtime: 'static {
    /// Runs the task to its end, on the thread that calls. It ends the process's work: what this function does after
    /// the task is done (waiting for other threads, say) is cut off.
    fn run(task: WorkerTask);
}

/// The address of a runtime's `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuntimeEntry(u64);

impl RuntimeEntry {
    pub(crate) fn of<R: Runtime>() -> Self {
        let run: fn(WorkerTask) = R::run;
        Self(run as usize as u64)
    }

    pub(crate) fn address(self) -> u64 {
        self.0
    }

    /// In the worker: the runtime that the parent named in its job.
    pub(crate) fn from_job(address: u64) -> Self {
        Self(address)
    }

    pub(crate) fn run(self, task: WorkerTask) {
        // SAFETY: the address came from `of` in the parent, whose image this process shares (see the module's page).
        let run = unsafe { mem::transmute::<usize, fn(WorkerTask)>(self.0 as usize) };
        run(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn add(a: u64, b: u64) -> u64 {
        a + b
    }

    fn run(mut task: BoxedTask) -> Encoded {
        match task.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(encoded) => encoded,
            std::task::Poll::Pending => panic!("not ready"),
        }
    }

    fn bytes<T: Serialize>(value: T) -> Rope {
        let mut bytes = Rope::default();
        payload::encode_into(&value, &mut bytes, u64::MAX).unwrap();
        bytes
    }

    fn arguments<T: Serialize>(value: T) -> Arguments {
        Arguments { bytes: bytes(value).into_bytes(), fds: Vec::new() }
    }

    fn call<F: AsyncTask<A, M>, A: DeserializeOwned + Serialize + 'static, M>(f: F, a: A) -> Encoded
    where
        F::Output: Serialize,
    {
        let entry = Entry::from_job(Entry::of_async(f).address());
        run(entry.enter(arguments(a), 100))
    }

    #[test]
    fn every_shape_is_a_task() {
        async fn generic<T: std::ops::Not<Output = T>>(value: T) -> T {
            !value
        }
        assert_eq!(call(add, (1, 2)), Ok(bytes(3_u64)));
        assert_eq!(call(async || 5_u8, ()), Ok(bytes(5_u8)));
        assert_eq!(call(|n: u32| async move { n + 1 }, 1), Ok(bytes(2_u32)));
        assert_eq!(call(generic::<bool>, true), Ok(bytes(false)));
        assert_eq!(call(async |pair: (u8, u8)| pair.0 + pair.1, (1, 2)), Ok(bytes(3_u8)));
        let sum = async |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| a + b + c + d + e + f + g + h;
        assert_eq!(call(sum, (1, 2, 3, 4, 5, 6, 7, 8)), Ok(bytes(36_u8)));
    }

    #[test]
    fn plain_functions_are_tasks_too() {
        let entry = Entry::of_blocking(|a: u64, b: u64| a * b);
        assert_eq!(run(entry.enter(arguments((6_u64, 7_u64)), 100)), Ok(bytes(42_u64)));
    }

    #[test]
    fn bytes_that_are_wrong_are_a_failure() {
        let entry = Entry::of_async(add);
        assert!(matches!(run(entry.enter(Arguments::default(), 100)), Err(Failure::Decode(_))));
        assert!(matches!(run(entry.enter(arguments((1_u64, 2_u64)), 0)), Err(Failure::TooLarge { size: 1, limit: 0 })));
    }
}
