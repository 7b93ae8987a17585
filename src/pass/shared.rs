//! Bytes in memory that processes share.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::Bytes;
use crate::{
    sys::memory::{Draft, Mapping},
    wire::beside::{self, Passed},
};

/// Bytes that are made once and then given to any number of tasks without being copied: each worker maps the same
/// memory, read-only.
///
/// On Linux it is a sealed `memfd_create(2)`: nobody can change it any more, in any process. macOS has no seals: it is
/// shared memory (`shm_open(3)`) of which workers get a descriptor that cannot write. Each `Shared` holds one descriptor
/// in this process, whatever its size; a clone shares it.
///
/// In a worker it stays mapped until the task is done. In a result, or with another codec, it travels as bytes, and is
/// then an ordinary copy.
///
/// # Errors
///
/// Making one fails as the system says: out of memory, or of descriptors.
///
/// ```
/// use tokio_run_in_process::{Shared, block_on, run_in_process};
///
/// async fn count(table: Shared, byte: u8) -> usize {
///     table.iter().filter(|&&b| b == byte).count()
/// }
///
/// block_on(async {
///     let table = Shared::new(b"a large table").unwrap();
///     assert_eq!(run_in_process(count, (table.clone(), b'a')).await.unwrap(), 3);
///     assert_eq!(run_in_process(count, (table, b'l')).await.unwrap(), 2);
/// })
/// .unwrap();
/// ```
#[derive(Clone)]
pub struct Shared {
    bytes: bytes::Bytes,
    /// By which others get it; `None` if it is an ordinary copy.
    fd: Option<Arc<OwnedFd>>,
}

impl Shared {
    /// Memory with a copy of these bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> io::Result<Self> {
        let bytes = bytes.as_ref();
        let mut builder = Self::builder(bytes.len())?;
        builder.copy_from_slice(bytes);
        builder.finish()
    }

    /// Memory of a fixed size, to be filled in place.
    pub fn builder(size: usize) -> io::Result<SharedBuilder> {
        Draft::new(size).map(SharedBuilder)
    }

    fn of(mapping: Mapping, fd: Arc<OwnedFd>) -> Self {
        Self { bytes: bytes::Bytes::from_owner(mapping), fd: Some(fd) }
    }

    /// The same bytes as [`Bytes`], not copied.
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.clone().into()
    }
}

/// Memory for a [`Shared`] that is not finished yet: a slice of bytes, zeros at first.
///
/// ```
/// use tokio_run_in_process::Shared;
///
/// let mut squares = Shared::builder(10).unwrap();
/// for (n, square) in squares.iter_mut().enumerate() {
///     *square = (n * n) as u8;
/// }
/// let squares = squares.finish().unwrap();
/// assert_eq!(squares[9], 81);
/// ```
pub struct SharedBuilder(Draft);

impl SharedBuilder {
    /// Fixes the bytes: from now on nobody changes them.
    pub fn finish(self) -> io::Result<Shared> {
        let (fd, mapping) = self.0.finish()?;
        Ok(Shared::of(mapping, Arc::new(fd)))
    }
}

impl Deref for SharedBuilder {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl DerefMut for SharedBuilder {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl fmt::Debug for SharedBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBuilder").field("len", &self.len()).finish()
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Shared {}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// How it travels.
#[derive(Serialize, Deserialize)]
enum Travelling {
    Mapped { size: u64, fd: u32 },
    Copied(Bytes),
}

impl Serialize for Shared {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let travelling = match &self.fd {
            Some(fd) if beside::takes_fds() => {
                // Nobody waits for it to be closed.
                let fd = beside::leave_fd(Passed { fd: fd.clone(), owned: false }).map_err(ser::Error::custom)?;
                Travelling::Mapped { size: self.len() as u64, fd }
            }
            _ => Travelling::Copied(self.to_bytes()),
        };
        travelling.serialize(serializer)
    }
}

/// What the task of this worker was given. To unmap takes as long as a fifth of a small task, so its caller has the result
/// first.
static GIVEN: Mutex<Vec<bytes::Bytes>> = Mutex::new(Vec::new());

fn given() -> MutexGuard<'static, Vec<bytes::Bytes>> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task is done: in a worker that goes on.
pub(crate) fn let_go() {
    let given = std::mem::take(&mut *given());
    drop(given);
}

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Travelling::deserialize(deserializer)? {
            Travelling::Copied(bytes) => Ok(Self { bytes: bytes.into(), fd: None }),
            Travelling::Mapped { size, fd } => {
                let fd = beside::take_fd(fd).map_err(de::Error::custom)?;
                let size = usize::try_from(size).map_err(de::Error::custom)?;
                // From the parent, so it is what it says (only there can descriptors come along).
                let mapping = Mapping::read_only(&fd, size).map_err(de::Error::custom)?;
                let shared = Self::of(mapping, Arc::new(fd));
                given().push(shared.bytes.clone());
                Ok(shared)
            }
        }
    }
}
