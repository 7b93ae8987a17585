//! The sending end of a channel.

use std::{
    fmt,
    future::poll_fn,
    io,
    marker::PhantomData,
    os::fd::BorrowedFd,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use tokio::task::coop::{consume_budget, poll_proceed};

use super::{
    channel::ChannelError,
    end::{End, Way},
};
use crate::{
    sys::socket,
    wire::{
        beside,
        payload::{self, CodecError},
        rope::Rope,
    },
};

/// Sends messages to the [`Receiver`](crate::Receiver) of its [`channel`](crate::channel), in any process.
///
/// Dropped, it ends the channel: the receiver gets what was sent, then `None`. Of what was [fed](Sender::feed) it gets what
/// goes at once; [`flush`](Sender::flush) first.
pub struct Sender<T> {
    end: End,
    limit: u32,
    unsent: Unsent,
    _message: PhantomData<fn(T)>,
}

/// What was accepted and is not with the system yet.
#[derive(Default)]
struct Unsent {
    rope: Rope,
    sent: usize,
}

/// How much is gathered by [`Sender::feed`] before it is sent.
const GATHER: usize = 64 << 10;

impl<T> Sender<T> {
    pub(super) fn new(end: End, limit: u32) -> Self {
        Self { end, limit, unsent: Unsent::default(), _message: PhantomData }
    }

    /// Sends what was [fed](Self::feed) and is not sent yet.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Closed`], or what the system says.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn flush(&mut self) -> Result<(), ChannelError> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        let Self { end, unsent, .. } = self;
        if unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        // Who receives as fast as this sends would else keep the thread.
        let turn = ready!(poll_proceed(context));
        let sent = ready!(end.poll(context, |socket| unsent.send(socket)));
        turn.made_progress();
        Poll::Ready(sent.map_err(ChannelError::io))
    }

    /// Whether the receiver is gone. `false` may be old when you read it.
    pub fn is_closed(&self) -> bool {
        for _ in 0..MOST_WASTE {
            match self.end.now(ended) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Waits until the receiver is gone.
    ///
    /// # Errors
    ///
    /// The limit of descriptors: it takes one while it waits. The end of the runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn closed(&self) -> io::Result<()> {
        let mut end = self.end.duplicate(Way::Receives)?;
        while !poll_fn(|context| end.poll(context, ended)).await? {
            consume_budget().await;
        }
        Ok(())
    }
}

/// How much of what comes from the wrong side is thrown away at a time, and how often: more than the system keeps.
const WASTE: usize = 4096;
const MOST_WASTE: usize = 256;

/// Whether the other end is gone. Nothing ever comes this way but the end; what a damaged process sends all the same is
/// thrown away. `WouldBlock`: it is there, and sent nothing.
fn ended(socket: BorrowedFd<'_>) -> io::Result<bool> {
    match socket::receive(socket, &mut [0; WASTE], &mut Vec::new(), false) {
        Ok(n) => Ok(n == 0),
        // It went with messages that it had not received.
        Err(e) if socket::is_peer_gone(&e) => Ok(true),
        Err(e) => Err(e),
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a message. Waits while the channel is full.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the receiver is gone, or the message does not encode or is too large; then nothing of it was sent.
    /// [`ChannelError::Io`] is what the system says if it is waited for, which takes a descriptor; this message may then go
    /// out before the next one.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the message was not sent, or it goes out before the next one: never a part of it, unless
    /// the sender is dropped too while the channel is full. Then the receiver gets [`ChannelError::Truncated`].
    ///
    /// ```
    /// use tokio_run_in_process::{ChannelError, block_on, channel};
    ///
    /// # block_on(async {
    /// let (mut sender, mut receiver) = channel().unwrap();
    /// sender.send((1, "one".to_owned())).await.unwrap();
    /// assert_eq!(receiver.recv().await.unwrap(), Some((1, "one".to_owned())));
    /// drop(receiver);
    /// assert!(matches!(sender.send((2, "two".to_owned())).await, Err(ChannelError::Closed)));
    /// # }).unwrap();
    /// ```
    pub async fn send(&mut self, message: T) -> Result<(), ChannelError> {
        // What a send before left half-way is first.
        self.flush().await?;
        self.accept(&message)?;
        self.flush().await
    }

    /// Takes a message that need not go at once: several are sent together, with the next [`flush`](Self::flush) or when
    /// they are many. For many small messages. End with a [`flush`](Self::flush): of what is left when the sender is
    /// dropped only that goes out which need not wait, and the rest is lost.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// As [`send`](Self::send).
    ///
    /// ```
    /// # use tokio_run_in_process::{block_on, channel};
    /// # block_on(async {
    /// let (mut sender, mut receiver) = channel().unwrap();
    /// for n in 0..100 {
    ///     sender.feed(n).await.unwrap();
    /// }
    /// sender.flush().await.unwrap();
    /// assert_eq!(receiver.recv().await.unwrap(), Some(0));
    /// # }).unwrap();
    /// ```
    pub async fn feed(&mut self, message: T) -> Result<(), ChannelError> {
        consume_budget().await;
        if self.unsent.len() >= GATHER {
            self.flush().await?;
        }
        self.accept(&message)
    }

    /// [`send`](Self::send) for a plain function: the thread waits while the channel is full.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn blocking_send(&mut self, message: T) -> Result<(), ChannelError> {
        self.blocking_flush()?;
        self.accept(&message)?;
        self.blocking_flush()
    }

    /// [`flush`](Self::flush) for a plain function.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn blocking_flush(&mut self) -> Result<(), ChannelError> {
        let Self { end, unsent, .. } = self;
        end.block(|socket| unsent.send(socket)).map_err(ChannelError::io)
    }

    /// Sends what goes without waiting, and says whether that is all.
    pub(super) fn flush_now(&mut self) -> Result<bool, ChannelError> {
        let Self { end, unsent, .. } = self;
        match end.now(|socket| unsent.send(socket)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            sent => sent.map(|()| true).map_err(ChannelError::io),
        }
    }

    pub(super) fn end(&self) -> &End {
        &self.end
    }

    pub(super) fn accept(&mut self, message: &T) -> Result<(), ChannelError> {
        let mut rope = Rope::from(vec![0; 4]);
        let limit = u64::from(self.limit);
        let (encoded, _) = beside::encoding(false, || payload::encode_into(message, &mut rope, limit));
        encoded.map_err(|e| match e {
            CodecError::TooLarge { size, limit } => ChannelError::TooLarge { size, limit },
            e => ChannelError::Encode(e.to_string()),
        })?;
        let length = u32::try_from(rope.len() - 4).unwrap_or(u32::MAX);
        rope.head_mut()[..4].copy_from_slice(&length.to_le_bytes());
        self.unsent.push(rope);
        Ok(())
    }
}

impl Unsent {
    fn len(&self) -> usize {
        self.rope.len() - self.sent
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, rope: Rope) {
        if self.is_empty() {
            *self = Self { rope, sent: 0 };
        } else {
            self.rope.append(rope);
        }
    }

    /// Sends all of it, or fails with `WouldBlock` half-way.
    fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while !self.is_empty() {
            let (slices, count) = self.rope.slices(self.sent, socket::AT_ONCE);
            self.sent += socket::send_slices(socket, &slices[..count], &[], false)?;
        }
        // Its pieces are somebody's memory.
        *self = Self::default();
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    /// What was fed goes out as far as it does without waiting.
    fn drop(&mut self) {
        let Self { end, unsent, .. } = self;
        if !unsent.is_empty() && end.is_ours() {
            let _ = end.now(|socket| unsent.send(socket));
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("unsent", &self.unsent.len()).finish_non_exhaustive()
    }
}

impl<T> Serialize for Sender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.unsent.is_empty() {
            return Err(ser::Error::custom("a sender that was fed must be flushed before it is passed on"));
        }
        (&self.end, self.limit).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (end, limit) = Deserialize::deserialize(deserializer)?;
        Ok(Self::new(end, limit))
    }
}
