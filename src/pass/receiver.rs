//! The receiving end of a channel.

use std::{
    fmt,
    future::poll_fn,
    io,
    marker::PhantomData,
    mem,
    os::fd::BorrowedFd,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use tokio::task::coop::poll_proceed;

use super::{Bytes, channel::ChannelError, end::End, stream::receive};
use crate::wire::{
    beside,
    payload::{self, CodecError},
};

/// Receives what the [`Sender`](crate::Sender) of its [`channel`](crate::channel) sends, in any process.
///
/// With the feature `stream` it is a `futures_core::Stream`.
pub struct Receiver<T> {
    end: End,
    incoming: Incoming,
    _message: PhantomData<fn() -> T>,
}

impl<T> Receiver<T> {
    pub(super) fn new(end: End, limit: u32) -> Self {
        Self::with(end, Incoming { limit, bytes: Vec::new(), taken: 0, ended: false })
    }

    fn with(end: End, incoming: Incoming) -> Self {
        Self { end, incoming, _message: PhantomData }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Waits for the next message. `None`: the sender is gone, and there will be none.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the message does not decode, or the sender broke off in the middle of one or sent what is no
    /// message. After [`ChannelError::Decode`] the next one can be received. After [`ChannelError::Io`] too, later: that is
    /// what the system says if it is waited for, which takes a descriptor. After any other there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: it may be one branch of a `select!`.
    ///
    /// ```
    /// use tokio_run_in_process::{Sender, block_on, channel, open_in_process};
    ///
    /// async fn count(mut progress: Sender<u32>) {
    ///     for n in 1..=3 {
    ///         progress.send(n).await.unwrap();
    ///     }
    /// }
    ///
    /// block_on(async {
    ///     let (sender, mut receiver) = channel().unwrap();
    ///     let process = open_in_process(count, sender).await.unwrap();
    ///     let mut seen = Vec::new();
    ///     while let Some(n) = receiver.recv().await.unwrap() {
    ///         seen.push(n);
    ///     }
    ///     assert_eq!(seen, [1, 2, 3]);
    ///     process.wait().await.unwrap();
    /// })
    /// .unwrap();
    /// ```
    pub async fn recv(&mut self) -> Result<Option<T>, ChannelError> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// One poll of [`recv`](Self::recv).
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<T>, ChannelError>> {
        self.poll_message(context, decode)
    }

    /// [`recv`](Self::recv) for a plain function: the thread waits.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn blocking_recv(&mut self) -> Result<Option<T>, ChannelError> {
        self.block_message(decode)
    }
}

/// By how the bytes of the next message are waited for, and what is made of it.
impl<T> Receiver<T> {
    pub(super) fn poll_message<M>(
        &mut self,
        context: &mut Context<'_>,
        read: impl FnOnce(Message<'_>) -> Result<M, ChannelError>,
    ) -> Poll<Result<Option<M>, ChannelError>> {
        // Who sends as fast as this receives would else keep the thread: nothing here waits while messages are there.
        let turn = ready!(poll_proceed(context));
        let message = self.message(|end, incoming| end.poll(context, |socket| incoming.receive(socket)), read);
        if message.is_ready() {
            turn.made_progress();
        }
        message
    }

    pub(super) fn block_message<M>(
        &mut self,
        read: impl FnOnce(Message<'_>) -> Result<M, ChannelError>,
    ) -> Result<Option<M>, ChannelError> {
        let receive = |end: &mut End, incoming: &mut Incoming| end.block(|socket| incoming.receive(socket));
        match self.message(|end, incoming| Poll::Ready(receive(end, incoming)), read) {
            Poll::Ready(message) => message,
            Poll::Pending => unreachable!("it waited"),
        }
    }

    /// Pending: there is none now.
    pub(super) fn message_now<M>(
        &mut self,
        read: impl FnOnce(Message<'_>) -> Result<M, ChannelError>,
    ) -> Poll<Result<Option<M>, ChannelError>> {
        let receive = |end: &mut End, incoming: &mut Incoming| match end.now(|socket| incoming.receive(socket)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            received => Poll::Ready(received),
        };
        self.message(receive, read)
    }

    fn message<M>(
        &mut self,
        mut receive: impl FnMut(&mut End, &mut Incoming) -> Poll<io::Result<usize>>,
        read: impl FnOnce(Message<'_>) -> Result<M, ChannelError>,
    ) -> Poll<Result<Option<M>, ChannelError>> {
        let Self { end, incoming, .. } = self;
        loop {
            if let Some(message) = incoming.next() {
                return Poll::Ready(message.and_then(read).map(Some));
            }
            if incoming.ended {
                return Poll::Ready(incoming.end());
            }
            let received = ready!(receive(end, incoming));
            incoming.ended |= received.map_err(ChannelError::io)? == 0;
        }
    }

    pub(super) fn end(&self) -> &End {
        &self.end
    }
}

/// A whole message.
pub(super) enum Message<'a> {
    /// One of many.
    Among(&'a [u8]),
    /// A large one, which need not be copied.
    Alone(bytes::Bytes),
}

impl Message<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Among(bytes) => bytes,
            Self::Alone(bytes) => bytes,
        }
    }
}

/// Decodes a message. Its bytes are input.
pub(super) fn decode<T: DeserializeOwned>(message: Message<'_>) -> Result<T, ChannelError> {
    let decoded = match message {
        Message::Among(bytes) => beside::decoding(bytes::Bytes::new(), None, || payload::decode_caught(bytes)),
        Message::Alone(bytes) => beside::decoding(bytes.clone(), None, || payload::decode_caught(&bytes)),
    };
    decoded.map_err(|e| match e {
        CodecError::TooLarge { size, limit } => ChannelError::TooLarge { size, limit },
        e => ChannelError::Decode(e.to_string()),
    })
}

/// What came and was not asked for yet.
struct Incoming {
    limit: u32,
    bytes: Vec<u8>,
    /// How many of the bytes were given out.
    taken: usize,
    ended: bool,
}

/// How much is received at a time.
const CHUNK: usize = 64 << 10;

impl Incoming {
    /// The length of the next message, once it is there.
    fn length(&self) -> Option<usize> {
        let length = self.bytes[self.taken..].first_chunk().map(|length| u32::from_le_bytes(*length));
        length.map(|length| length as usize)
    }

    /// The next message, if it is whole.
    fn next(&mut self) -> Option<Result<Message<'_>, ChannelError>> {
        let length = self.length()?;
        if length > self.limit as usize {
            self.ended = true;
            self.bytes = Vec::new();
            self.taken = 0;
            return Some(Err(ChannelError::TooLarge { size: length as u64, limit: self.limit.into() }));
        }
        let start = self.taken + 4;
        let end = start + length;
        if self.bytes.len() < end {
            return None;
        }
        if self.taken == 0 && self.bytes.len() == end && length >= CHUNK {
            return Some(Ok(Message::Alone(bytes::Bytes::from(mem::take(&mut self.bytes)).slice(start..))));
        }
        self.taken = end;
        Some(Ok(Message::Among(&self.bytes[start..end])))
    }

    /// Receives more. Of a large message no more than is missing, so that it is alone when it is whole; and no more than
    /// came, so that memory grows as bytes arrive.
    fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        let (whole, here) = (self.length().map_or(0, |length| 4 + length), self.bytes.len());
        let most = if whole > CHUNK { (whole - here).min(here.max(CHUNK)) } else { CHUNK };
        receive(socket, &mut self.bytes, most)
    }

    fn end<T>(&mut self) -> Result<Option<T>, ChannelError> {
        let cut = self.taken < mem::take(&mut self.bytes).len();
        self.taken = 0;
        if cut { Err(ChannelError::Truncated) } else { Ok(None) }
    }
}

#[cfg(feature = "stream")]
impl<T: DeserializeOwned> futures_core::Stream for Receiver<T> {
    type Item = Result<T, ChannelError>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_recv(context).map(Result::transpose)
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("ended", &self.incoming.ended).finish_non_exhaustive()
    }
}

/// One that is passed on takes along what it received and was not asked for.
impl<T> Serialize for Receiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Incoming { limit, bytes, taken, ended } = &self.incoming;
        (&self.end, limit, Bytes::from(&bytes[*taken..]), ended).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (end, limit, bytes, ended) = <(End, u32, Bytes, bool)>::deserialize(deserializer)?;
        Ok(Self::with(end, Incoming { limit, bytes: bytes.into_vec(), taken: 0, ended }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(bytes: &[u8], limit: u32) -> Incoming {
        Incoming { limit, bytes: bytes.to_vec(), taken: 0, ended: false }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&u32::try_from(message.len()).unwrap().to_le_bytes(), message].concat()
    }

    #[test]
    fn messages_come_out_as_they_went_in_whatever_the_pieces() {
        let messages: Vec<Vec<u8>> = (0..20).map(|n| vec![n; n as usize]).collect();
        let stream: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        for piece in [1, 3, 4, 7, 64, stream.len()] {
            let mut incoming = incoming(&[], 100);
            let mut seen = Vec::new();
            for chunk in stream.chunks(piece) {
                incoming.bytes.extend_from_slice(chunk);
                while let Some(message) = incoming.next() {
                    let Ok(Message::Among(message)) = message else { panic!("not a small one") };
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(seen, messages);
            assert!(matches!(incoming.end::<()>(), Ok(None)));
        }
    }

    #[test]
    fn a_large_message_that_is_alone_is_not_copied() {
        let mut incoming = incoming(&framed(&vec![7; CHUNK]), u32::MAX);
        let place = incoming.bytes[4..].as_ptr();
        assert!(matches!(incoming.next(), Some(Ok(Message::Alone(bytes))) if bytes.as_ptr() == place));
        assert!(incoming.next().is_none());
    }

    #[test]
    fn a_length_beyond_the_limit_ends_it_before_anything_is_allocated() {
        let mut incoming = incoming(&u32::MAX.to_le_bytes(), 100);
        assert!(matches!(incoming.next(), Some(Err(ChannelError::TooLarge { size: 0xffff_ffff, limit: 100 }))));
        assert!(incoming.ended && incoming.bytes.capacity() == 0);
        assert!(matches!(incoming.end::<()>(), Ok(None)));
    }

    #[test]
    fn the_end_in_the_middle_of_a_message_is_an_error_once() {
        let mut incoming = incoming(&framed(b"hello")[..6], 100);
        assert!(incoming.next().is_none());
        assert!(matches!(incoming.end::<()>(), Err(ChannelError::Truncated)));
        assert!(matches!(incoming.end::<()>(), Ok(None)));
    }
}
