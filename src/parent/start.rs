//! The start of a task that the driver carries on.

use super::{
    dispatch::{Prepared, Tries},
    process::Process,
    stdio::Pipes,
    worker::Status,
};
use crate::error::Error;

/// Starts a task and gives its handle once it executes, so that a signal sent through it is never lost.
pub(super) async fn open<T>(prepared: Prepared, pipes: Pipes) -> Result<Process<T>, Error> {
    let (process, status) = start(prepared, pipes).await?;
    match status.outcome.as_deref() {
        Some(Err(error)) if !status.started => Err(error.clone()),
        // The zygote died before it told the pid, and a handle without one is none.
        None if status.pid.is_none() => Err(Error::ZygoteLost { task: process.task_id(), started: Some(true) }),
        _ => Ok(process),
    }
}

/// Starts a task, and gives what is known of it once it executes or will not.
pub(super) async fn start<T>(mut prepared: Prepared, pipes: Pipes) -> Result<(Process<T>, Status), Error> {
    prepared.announce = true;
    let mut tries = Tries::new(&prepared);
    loop {
        let mut process = Process::of(tries.line().await?, prepared.zygote.clone());
        let status = process.wait_until(Status::is_open).await;
        let early = status.outcome.as_deref().and_then(|outcome| outcome.as_ref().err()).filter(|_| !status.started);
        match early {
            // It did not begin: another worker will do it, unseen.
            Some(error) if tries.go_on(error).await => {}
            _ => {
                process.connect(pipes)?;
                return Ok((process, status));
            }
        }
    }
}
