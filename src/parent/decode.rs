//! From a result's bytes to its value.

use std::{
    any::TypeId,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{
    error::{Coded, Error, TaskId},
    pass,
    wire::{beside, payload},
};

/// An outcome that stays, and that several may ask for.
pub(super) type Kept = Arc<Result<Bytes, Error>>;

/// The outcome, decoded anew.
pub(super) async fn decode_kept<T>(outcome: Kept, task: impl FnOnce() -> TaskId) -> Result<T, Error>
where
    T: DeserializeOwned + Send + 'static,
{
    match &*outcome {
        Err(error) => Err(error.clone()),
        Ok(bytes) => decode(bytes.clone(), task).await,
    }
}

/// The same for a caller who cannot wait.
pub(super) fn decode_kept_here<T: DeserializeOwned>(outcome: &Kept, task: impl FnOnce() -> TaskId) -> Result<T, Error> {
    let bytes = outcome.as_ref().as_ref().map_err(Error::clone)?;
    decode_here(bytes).map_err(|reason| Error::Decode { task: task(), what: Coded::Result, reason })
}

/// Larger results are decoded off the runtime's threads.
const IN_PLACE: usize = 64 << 10;

/// Decodes a result.
pub(super) async fn decode<T>(bytes: Bytes, task: impl FnOnce() -> TaskId) -> Result<T, Error>
where
    T: DeserializeOwned + Send + 'static,
{
    // To wake another thread takes longer than to decode bytes, which are not looked at.
    let quick = bytes.len() <= IN_PLACE || TypeId::of::<T>() == TypeId::of::<pass::Bytes>();
    let decoded = if quick || tokio::runtime::Handle::try_current().is_err() {
        decode_here(&bytes)
    } else {
        let theirs = bytes.clone();
        let decode = move || {
            let decoded = decode_here(&theirs);
            // Before the value is there: who gets it may find that it is the only owner of its bytes.
            drop(theirs);
            decoded
        };
        // tokio panics if it needs a thread and cannot have one, and a runtime that is shutting down takes no more work.
        let elsewhere = match catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(decode))) {
            Ok(decoding) => decoding.await.ok(),
            Err(_) => None,
        };
        elsewhere.unwrap_or_else(|| decode_here(&bytes))
    };
    drop(bytes);
    decoded.map_err(|reason| Error::Decode { task: task(), what: Coded::Result, reason })
}

fn decode_here<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, String> {
    beside::decoding(bytes.clone(), None, || payload::decode_caught(bytes)).map_err(|e| e.to_string())
}
