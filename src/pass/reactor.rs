//! The reactor for sockets that are polled where there is no tokio: by another executor.
//!
//! In the parent it is the driver's. A worker that has no tokio gets a thread, with its first wait.

use std::{
    io,
    sync::{Mutex, PoisonError, mpsc},
};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::sys::process::pid;

/// Whose it is: a forked child has the handle, but not the thread.
static REACTOR: Mutex<Option<(i32, Handle)>> = Mutex::new(None);

/// Makes a runtime that stays the reactor of this process, if it has none.
pub(crate) fn offer(runtime: &Handle) {
    let mut reactor = REACTOR.lock().unwrap_or_else(PoisonError::into_inner);
    if reactor.as_ref().is_none_or(|(owner, _)| *owner != pid()) {
        *reactor = Some((pid(), runtime.clone()));
    }
}

/// The reactor of this process.
pub(super) fn get() -> io::Result<Handle> {
    let mut reactor = REACTOR.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, runtime)) = reactor.as_ref().filter(|(owner, _)| *owner == pid()) {
        return Ok(runtime.clone());
    }
    // The thread first: a runtime that got none would be dropped inside the caller's, perhaps, where tokio panics.
    let (give, take) = mpsc::channel::<Runtime>();
    std::thread::Builder::new().name("channels".to_owned()).stack_size(128 << 10).spawn(move || {
        if let Ok(runtime) = take.recv() {
            runtime.block_on(std::future::pending::<()>());
        }
    })?;
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let handle = runtime.handle().clone();
    // It waits for this.
    let _ = give.send(runtime);
    *reactor = Some((pid(), handle.clone()));
    Ok(handle)
}
