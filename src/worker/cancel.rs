//! Cancellation as a task sees it: asked for from outside, or by the task itself.

use std::{
    convert::Infallible,
    future::{Future, pending, poll_fn},
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
};

use super::{
    farewell, is_worker,
    signals::{self, Signals},
};
use crate::model::{Signal, Terminal};

/// `cancelled()` was ready: the task cleans up and must not be dropped any more.
static CANCELLED: AtomicBool = AtomicBool::new(false);
static CANCELS_ITSELF: AtomicBool = AtomicBool::new(false);

/// Ready once the task is asked to end, by SIGTERM (its caller dropped it, a timeout, `terminate()`) or SIGINT.
///
/// While this is being awaited, such a signal does not drop the task's future: the task has the grace period to clean up
/// in its own way and return, and what it returns is its outcome if somebody still waits for it. If nobody awaits this
/// when the signal arrives, the future is dropped as usual. Outside a worker it is never ready.
///
/// Works in any runtime. Polled by a plain function's own executor it waits for ever; there, use
/// [`signal`](crate::worker::signal()).
///
/// # Cancel safety
///
/// Dropped before it is ready, the signals act as before. Afterwards every call is ready at once.
///
/// ```
/// use std::time::Duration;
/// use tokio_run_in_process::{block_on, open_in_process, worker};
///
/// async fn counts() -> u32 {
///     let mut n = 0;
///     let mut cancelled = std::pin::pin!(worker::cancelled());
///     loop {
///         tokio::select! {
///             () = &mut cancelled => return n,
///             () = tokio::time::sleep(Duration::from_millis(1)) => n += 1,
///         }
///     }
/// }
///
/// block_on(async {
///     let process = open_in_process(counts, ()).await.unwrap();
///     tokio::time::sleep(Duration::from_millis(100)).await;
///     process.shutdown().await;
///     assert!(process.wait().await.unwrap() > 0);
/// })
/// .unwrap();
/// ```
pub async fn cancelled() {
    if !is_worker() {
        return pending().await;
    }
    if is_cancelled() {
        return;
    }
    let (mut term, mut int) = (Signals::new(Signal::TERM), Signals::new(Signal::INT));
    {
        let mut either = (pin!(term.recv()), pin!(int.recv()));
        poll_fn(|cx| match (either.0.as_mut().poll(cx), either.1.as_mut().poll(cx)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        })
        .await;
    }
    CANCELLED.store(true, Ordering::SeqCst);
    term.keep();
    int.keep();
}

/// Whether [`cancelled`] has been ready in this task.
pub fn is_cancelled() -> bool {
    CANCELLED.load(Ordering::SeqCst)
}

/// The task cancels itself: its future is dropped, and its caller gets
/// [`Error::Cancelled`](crate::Error::Cancelled). Never ready.
///
/// # Panics
///
/// Outside a worker, where there is nobody to tell.
///
/// # Cancel safety
///
/// Nothing happens before the future is polled; from then on the task is cancelled.
///
/// ```
/// use tokio_run_in_process::{Error, run_in_process, worker};
///
/// async fn gives_up() -> u32 {
///     match worker::cancel().await {}
/// }
///
/// tokio_run_in_process::block_on(async {
///     assert!(matches!(run_in_process(gives_up, ()).await, Err(Error::Cancelled { .. })));
/// })
/// .unwrap();
/// ```
pub async fn cancel() -> Infallible {
    assert!(is_worker(), "cancel was called outside a worker");
    CANCELS_ITSELF.store(true, Ordering::SeqCst);
    signals::wake_root();
    pending().await
}

pub(super) fn cancels_itself() -> bool {
    CANCELS_ITSELF.load(Ordering::SeqCst)
}

/// What unwinds a plain function that cancels itself.
pub(super) struct CancelPayload;

/// The same for a plain function: unwinds it, so that its destructors run (in a `panic = "abort"` build it just ends).
/// On another thread than the task's own it ends the task without unwinding it.
///
/// # Panics
///
/// Outside a worker.
///
/// ```
/// use tokio_run_in_process::{block_on, run_blocking_in_process, worker};
///
/// fn gives_up(n: u32) -> u32 {
///     if n > 9 { worker::cancel_blocking() } else { n }
/// }
///
/// block_on(async {
///     assert_eq!(run_blocking_in_process(gives_up, 9).await.unwrap(), 9);
///     assert!(run_blocking_in_process(gives_up, 10).await.unwrap_err().is_cancelled());
/// })
/// .unwrap();
/// ```
pub fn cancel_blocking() -> ! {
    assert!(is_worker(), "cancel_blocking was called outside a worker");
    if cfg!(panic = "unwind") && super::execute::on_task_thread() {
        std::panic::resume_unwind(Box::new(CancelPayload))
    }
    farewell::say(Terminal::Cancelled)
}
