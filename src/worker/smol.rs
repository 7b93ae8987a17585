//! The smol runtime for workers: `async-io` and `async-executor`.

use std::{cell::RefCell, future::Future, io, os::unix::net::UnixStream, rc::Rc};

use async_executor::LocalExecutor;
use async_io::Async;

use super::signals;
use crate::task::{Runtime, WorkerTask};

/// Runs a task on smol's parts, `async-io` and `async-executor`, instead of tokio: `Task::new().runtime::<Smol>()`.
///
/// ```
/// use std::time::Duration;
/// use tokio_run_in_process::{Smol, Task};
///
/// async fn nap() -> u32 {
///     async_io::Timer::after(Duration::from_millis(1)).await;
///     Smol::spawn(async { 42 }).await
/// }
///
/// tokio_run_in_process::block_on(async {
///     assert_eq!(Task::new().runtime::<Smol>().run(nap, ()).await.unwrap(), 42);
/// })
/// .unwrap();
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Smol;

thread_local! {
    /// There is one where a task runs on smol.
    static EXECUTOR: RefCell<Option<Rc<LocalExecutor<'static>>>> = const { RefCell::new(None) };
}

impl Smol {
    /// Spawns a future, which need not be `Send`, on the executor of this task.
    ///
    /// # Panics
    ///
    /// Anywhere but on the own thread of a task with `.runtime::<Smol>()`: nobody would poll it.
    pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> async_executor::Task<T> {
        let executor = EXECUTOR.with_borrow(Clone::clone);
        executor.expect("Smol::spawn is for the thread of a task that runs with `.runtime::<Smol>()`").spawn(future)
    }
}

impl Runtime for Smol {
    fn run(task: WorkerTask) {
        let executor = Rc::new(LocalExecutor::new());
        EXECUTOR.set(Some(executor.clone()));
        async_io::block_on(executor.run(task));
        // Only a signal gets here. With the last reference go the tasks that were spawned: their destructors run.
        drop(EXECUTOR.take());
        drop(executor);
    }
}

/// Watches a socket with smol's reactor.
pub(super) async fn watch(socket: UnixStream) {
    let Ok(socket) = Async::new_nonblocking(socket) else { return std::future::pending().await };
    let socket = std::mem::ManuallyDrop::new(socket);
    loop {
        if socket.readable().await.is_err() {
            return std::future::pending().await;
        }
        match io::Read::read(&mut socket.get_ref(), &mut [0; 64]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) | Ok(0) => {
                signals::poked();
                return std::future::pending().await;
            }
            Ok(_) => signals::poked(),
        }
    }
}
