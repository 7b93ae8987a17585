//! Typed channels between processes.
//!
//! A channel is a pair of stream sockets of its own, so that nothing is ever sent on an armed job socket. A message is its
//! length (`u32`, little-endian) and its encoded value. The socket's buffer is the bound: who sends waits while it is full.

use std::{io, sync::Arc};

use super::{end, receiver::Receiver, sender::Sender};
use crate::sys::socket;

/// The largest encoded message, in bytes, of a channel that nobody gave another limit.
pub const MESSAGE_LIMIT: usize = 16 << 20;

/// A channel between this process and a task, or between two tasks: either end can be an argument, anywhere in it, any
/// number of times.
///
/// A message that was sent is in a buffer of the system, a few hundred kilobytes; when it is full, [`Sender::send`] waits.
/// When one end is dropped, or its process dies, however that happens, the other one is told: [`Receiver::recv`] gives
/// `None` after the last message, [`Sender::send`] gives [`ChannelError::Closed`].
///
/// An end that is passed leaves this process when the task executes. So a task must be under way while its messages are
/// awaited: [`open`](crate::Task::open) it, or poll `run` beside.
///
/// # Errors
///
/// The limit of descriptors: a channel is two.
///
/// ```
/// use tokio_run_in_process::{Receiver, Sender, block_on, channel, open_in_process};
///
/// async fn shout(mut words: Receiver<String>, mut answers: Sender<String>) -> u32 {
///     let mut count = 0;
///     while let Ok(Some(word)) = words.recv().await {
///         answers.send(word.to_uppercase()).await.unwrap();
///         count += 1;
///     }
///     count
/// }
///
/// block_on(async {
///     let (mut to_task, words) = channel::<String>().unwrap();
///     let (answers, mut from_task) = channel::<String>().unwrap();
///     let process = open_in_process(shout, (words, answers)).await.unwrap();
///     to_task.send("hello".into()).await.unwrap();
///     assert_eq!(from_task.recv().await.unwrap().as_deref(), Some("HELLO"));
///     drop(to_task); // the end of its words
///     assert_eq!(process.wait().await.unwrap(), 1);
/// })
/// .unwrap();
/// ```
pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    channel_with_limit(MESSAGE_LIMIT)
}

/// A [`channel`] whose messages are at most so many bytes (4 GiB at most). The limit holds on both ends. It is of bytes as
/// they travel: a value can take more memory than its bytes, a `Vec<Option<[u64; 32]>>` of `None`s 264 times as much.
///
/// # Errors
///
/// As [`channel`].
///
/// ```
/// use tokio_run_in_process::{ChannelError, block_on, channel_with_limit};
///
/// # block_on(async {
/// let (mut sender, _receiver) = channel_with_limit::<String>(100).unwrap();
/// let error = sender.send("x".repeat(100)).await.unwrap_err();
/// assert!(matches!(error, ChannelError::TooLarge { size: 101, limit: 100, .. }));
/// # }).unwrap();
/// ```
pub fn channel_with_limit<T>(limit: usize) -> io::Result<(Sender<T>, Receiver<T>)> {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let (sends, receives) = end::pair()?;
    Ok((Sender::new(sends, limit), Receiver::new(receives, limit)))
}

/// Why a message did not go, or did not come.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The other end is gone: it was dropped, or its process is.
    #[error("the other end of the channel is gone")]
    Closed,
    /// The other end went in the middle of a message.
    #[error("the other end of the channel went in the middle of a message")]
    Truncated,
    /// The message is larger than the channel allows. Nothing of it was sent.
    #[error(
        "a message of {size} bytes where the channel allows {limit}; channel_with_limit makes one that allows more"
    )]
    #[non_exhaustive]
    TooLarge {
        /// Its encoded size, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The message did not encode: in the words of the codec or of the value. Nothing of it was sent.
    #[error("a message does not encode: {0}")]
    Encode(String),
    /// The message did not decode. Those after it can be received all the same.
    #[error("a message does not decode: {0}")]
    Decode(String),
    /// The system's word.
    #[error("the channel failed: {0}")]
    Io(#[source] Arc<io::Error>),
}

impl ChannelError {
    pub(super) fn io(error: io::Error) -> Self {
        match socket::is_peer_gone(&error) {
            true => Self::Closed,
            false => Self::Io(Arc::new(error)),
        }
    }
}

impl From<ChannelError> for io::Error {
    fn from(error: ChannelError) -> Self {
        let kind = match &error {
            ChannelError::Closed => io::ErrorKind::BrokenPipe,
            ChannelError::Truncated => io::ErrorKind::UnexpectedEof,
            ChannelError::Io(e) => e.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
