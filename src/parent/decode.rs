//! From a result's bytes to its value.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use crate::{
    error::{Coded, Error, TaskId},
    wire::payload::{self, CodecError},
};

/// An outcome that stays, and that several may ask for.
pub(super) type Kept = Arc<Result<Vec<u8>, Error>>;

/// The outcome, decoded anew.
pub(super) async fn decode_kept<T>(outcome: Kept, task: impl FnOnce() -> TaskId) -> Result<T, Error>
where
    T: DeserializeOwned + Send + 'static,
{
    match &*outcome {
        Err(error) => Err(error.clone()),
        Ok(_) => decode(Value(outcome), task).await,
    }
}

/// The same for a caller who cannot wait.
pub(super) fn decode_kept_here<T: DeserializeOwned>(outcome: &Kept, task: impl FnOnce() -> TaskId) -> Result<T, Error> {
    let bytes = outcome.as_ref().as_ref().map_err(Error::clone)?;
    decode_here(bytes).map_err(|reason| Error::Decode { task: task(), what: Coded::Result, reason })
}

/// The bytes of one.
struct Value(Kept);

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Larger results are decoded off the runtime's threads.
const IN_PLACE: usize = 64 << 10;

/// Decodes a result. A panic of the value's `Deserialize` is an error like any other.
pub(super) async fn decode<T>(
    bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    task: impl FnOnce() -> TaskId,
) -> Result<T, Error>
where
    T: DeserializeOwned + Send + 'static,
{
    let small = bytes.as_ref().len() <= IN_PLACE;
    let decoded = if small || tokio::runtime::Handle::try_current().is_err() {
        decode_here(bytes.as_ref())
    } else {
        let bytes = Arc::new(bytes);
        let theirs = bytes.clone();
        let decoding = tokio::task::spawn_blocking(move || decode_here((*theirs).as_ref()));
        // A runtime that is shutting down takes no more work.
        decoding.await.unwrap_or_else(|_| decode_here((*bytes).as_ref()))
    };
    decoded.map_err(|reason| Error::Decode { task: task(), what: Coded::Result, reason })
}

fn decode_here<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(|| payload::decode(bytes))) {
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
