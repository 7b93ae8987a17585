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
    wire::{
        beside,
        payload::{self, CodecError},
    },
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

/// Decodes a result. A panic of the value's `Deserialize` is an error like any other.
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
        let decoding = tokio::task::spawn_blocking(move || {
            let decoded = decode_here(&theirs);
            // Before the value is there: who gets it may find that it is the only owner of its bytes.
            drop(theirs);
            decoded
        });
        // A runtime that is shutting down takes no more work.
        match decoding.await {
            Ok(decoded) => decoded,
            Err(_) => decode_here(&bytes),
        }
    };
    drop(bytes);
    decoded.map_err(|reason| Error::Decode { task: task(), what: Coded::Result, reason })
}

fn decode_here<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, String> {
    let decode = || beside::decoding(bytes.clone(), None, || payload::decode(bytes));
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(CodecError::Invalid(reason))) => Err(reason),
        Ok(Err(CodecError::TooLarge { size, limit })) => Err(format!("{size} bytes where {limit} are allowed")),
        Err(payload) => {
            // Its destructor could panic again.
            std::mem::forget(payload);
            Err("its Deserialize implementation panicked".to_owned())
        }
    }
}
