//! The two futures of a task: to its outcome, and to a handle.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use serde::de::DeserializeOwned;

use super::{
    decode,
    dispatch::{Prepared, Tries},
    process::Process,
    start,
    stdio::Pipes,
};
use crate::error::Error;

type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// The future of [`run_in_process`](crate::run_in_process) and its like: runs the task when it is polled, and ends it
/// when it is dropped.
///
/// Once polled it has its turn, or waits for it: left alone then, it keeps the place that it has or gets
/// ([`max_processes`](crate::ZygoteBuilder::max_processes)) from others. Await it, drop it, or have it polled by a task.
#[must_use = "futures do nothing unless they are awaited"]
pub struct Run<T>(BoxFuture<T>);

/// The future of [`open_in_process`](crate::open_in_process) and its like: gives the handle once the task executes.
#[must_use = "futures do nothing unless they are awaited"]
pub struct Open<T>(BoxFuture<Process<T>>);

impl<T: DeserializeOwned + Send + 'static> Run<T> {
    pub(super) fn new(prepared: Result<(Prepared, Pipes), Error>) -> Self {
        Self(Box::pin(async move {
            let (mut prepared, pipes) = prepared?;
            let here = tokio::runtime::Handle::try_current().is_ok();
            if !here || pipes.stdin.is_some() || pipes.outputs.iter().any(Option::is_some) {
                // Another executor polls this, or there are pipes to read: the driver can.
                return start::open::<T>(prepared, pipes).await?.into_value().await;
            }
            prepared.job_may_be_quiet();
            let mut tries = Tries::new(&prepared);
            loop {
                let line = tries.line().await?;
                let worker = line.worker().clone();
                match line.register()?.hold().await {
                    Ok(bytes) => return decode::decode(bytes, || worker.task_id()).await,
                    Err(error) if tries.go_on(&error).await => {}
                    Err(error) => return Err(error),
                }
            }
        }))
    }
}

impl<T: DeserializeOwned + Send + 'static> Open<T> {
    pub(super) fn new(prepared: Result<(Prepared, Pipes), Error>) -> Self {
        Self(Box::pin(async move {
            let (prepared, pipes) = prepared?;
            start::open(prepared, pipes).await
        }))
    }
}

impl<T> Future for Run<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<T> Future for Open<T> {
    type Output = Result<Process<T>, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for Run<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Run")
    }
}

impl<T> fmt::Debug for Open<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open")
    }
}
