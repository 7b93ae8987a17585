//! What a worker writes, on its way to whoever reads it.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::unix::pipe,
    sync::Notify,
    task::coop::poll_proceed,
};

use super::super::{driver::Driver, race::race, worker::Worker};
use crate::sys;

/// How much a reader that is slow may leave unread before the worker is held up.
const BUFFER: usize = 1 << 20;
/// What is read at a time.
pub(super) const PIECE: usize = 64 << 10;
/// After so many pieces it is the turn of whatever else the driver has to do.
pub(super) const PIECES: u64 = 8;

#[derive(Debug)]
struct Buffer {
    bytes: VecDeque<u8>,
    /// How much is kept for a reader that comes late.
    limit: usize,
    /// Somebody holds a `PipeReader`: then a full buffer holds the worker up, as a pipe does.
    taken: bool,
    /// Nobody reads it, or ever will.
    released: bool,
    /// The worker is gone, and what it left in the pipe has been read.
    settled: bool,
    ended: bool,
    dropped: u64,
    reader: Option<Waker>,
}

/// What the driver read from a worker's stdout or stderr.
#[derive(Debug)]
pub(in crate::parent) struct OutputPipe {
    buffer: Mutex<Buffer>,
    /// The reader made room, or went away.
    changed: Notify,
}

impl OutputPipe {
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to read a pipe, on the driver.
    pub(super) fn read(
        driver: &'static Driver,
        pipe: OwnedFd,
        worker: Arc<Worker>,
        limit: usize,
    ) -> io::Result<Arc<Self>> {
        let pipe = driver.enter(|| pipe::Receiver::from_owned_fd(pipe))?;
        let output = Arc::new(Self { buffer: Mutex::new(Buffer::new(limit)), changed: Notify::new() });
        driver.spawn(pump(pipe, output.clone(), worker));
        Ok(output)
    }

    pub(in crate::parent) fn take(self: Arc<Self>) -> PipeReader {
        self.buffer().taken = true;
        PipeReader { output: self, owner: sys::process::pid() }
    }

    /// Nobody will ask for it any more.
    pub(in crate::parent) fn release(&self) {
        {
            let mut buffer = self.buffer();
            (buffer.taken, buffer.released) = (false, true);
            buffer.bytes = VecDeque::new();
        }
        self.changed.notify_one();
    }

    /// Waits for all that the worker writes, and gives what was kept of it and how much was not. Not for what others
    /// write who hold the pipe when the worker is gone: they may hold it for ever.
    pub(super) async fn whole(&self) -> (Vec<u8>, u64) {
        poll_fn(|context| {
            let mut buffer = self.buffer();
            if buffer.ended || buffer.settled {
                return Poll::Ready((std::mem::take(&mut buffer.bytes).into(), buffer.dropped));
            }
            buffer.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Reads a pipe to its end, whatever becomes of the bytes.
async fn pump(pipe: pipe::Receiver, output: Arc<OutputPipe>, worker: Arc<Worker>) {
    let mut bytes = vec![0; PIECE];
    let mut rest = Rest::default();
    for turn in 1_u64.. {
        if turn % PIECES == 0 {
            // A pipe that is never empty would keep this thread.
            tokio::task::yield_now().await;
        }
        let gone = worker.status.borrow().exit.is_some();
        let (room, released, settled) = {
            let buffer = output.buffer();
            (buffer.room(), buffer.released, buffer.settled)
        };
        // With the worker gone and no one to read, an escaped grandchild that holds the pipe is nobody's concern.
        if released && gone {
            return;
        }
        if room == 0 {
            output.changed.notified().await;
            continue;
        }
        if gone && !settled {
            match rest.read(&pipe, &mut bytes[..room.min(PIECE)]) {
                Some(n) => output.buffer().keep(&bytes[..n]),
                None => output.buffer().settle(),
            }
            continue;
        }
        race(pipe.readable(), race(output.changed.notified(), worker_gone(&worker))).await;
        // Only now: somebody may have taken the reader meanwhile, and misses nothing that is read from here on.
        let room = output.buffer().room().min(PIECE);
        match pipe.try_read(&mut bytes[..room]) {
            _ if room == 0 => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) | Ok(0) => break,
            Ok(n) => output.buffer().keep(&bytes[..n]),
        }
    }
    let mut buffer = output.buffer();
    buffer.ended = true;
    buffer.wake();
}

/// Ready once, when the worker goes; never if it is gone already.
pub(super) async fn worker_gone(worker: &Worker) {
    if worker.status.borrow().exit.is_some() {
        return std::future::pending().await;
    }
    worker.wait_until(|status| status.exit.is_some()).await;
}

/// What a worker that is gone left in its pipe.
///
/// All of it is there, so it is read without the reactor, which may not have noticed yet; and counted when the worker was
/// seen to be gone, since a grandchild that holds the pipe may fill it again for ever.
#[derive(Default)]
pub(super) struct Rest(Option<usize>);

impl Rest {
    /// Reads some of it: `None` when there is no more.
    pub(super) fn read(&mut self, pipe: impl AsFd, bytes: &mut [u8]) -> Option<usize> {
        let left = self.0.get_or_insert_with(|| sys::fd::unread(&pipe).unwrap_or(0));
        let most = bytes.len().min(*left);
        let n = sys::fd::read(pipe, &mut bytes[..most]).ok().filter(|&n| n > 0)?;
        *left -= n;
        Some(n)
    }
}

impl Buffer {
    fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
            taken: false,
            released: false,
            settled: false,
            ended: false,
            dropped: 0,
            reader: None,
        }
    }

    /// How much may be read now.
    fn room(&self) -> usize {
        if self.taken { BUFFER.saturating_sub(self.bytes.len()) } else { usize::MAX }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.released {
            return;
        }
        // For a reader that is there no more is read than there is room.
        let room = if self.taken { bytes.len() } else { self.limit.saturating_sub(self.bytes.len()) };
        let keep = bytes.len().min(room);
        self.bytes.extend(&bytes[..keep]);
        self.dropped += (bytes.len() - keep) as u64;
        self.wake();
    }

    fn settle(&mut self) {
        self.settled = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Reads a worker's stdout or stderr. Works on any runtime; at the end of the stream it reads nothing.
///
/// ```
/// use tokio::io::AsyncReadExt;
/// use tokio_run_in_process::{Stdio, Task, block_on};
///
/// block_on(async {
///     let task = Task::new().stdout(Stdio::piped());
///     let process = task.open(async || println!("hello"), ()).await.unwrap();
///     let mut text = String::new();
///     process.take_stdout().unwrap().read_to_string(&mut text).await.unwrap();
///     assert_eq!(text, "hello\n");
/// })
/// .unwrap();
/// ```
#[derive(Debug)]
pub struct PipeReader {
    output: Arc<OutputPipe>,
    owner: i32,
}

impl PipeReader {
    /// How many bytes were dropped, because nobody had taken this reader and its buffer was full.
    pub fn dropped(&self) -> u64 {
        self.output.buffer().dropped
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Who reads more slowly than the worker writes never waits, and would keep the thread.
        let turn = ready!(poll_proceed(context));
        let mut buffer = self.output.buffer();
        if buffer.bytes.is_empty() && !buffer.ended {
            buffer.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        turn.made_progress();
        let (front, _) = buffer.bytes.as_slices();
        let n = front.len().min(out.remaining());
        out.put_slice(&front[..n]);
        buffer.bytes.drain(..n);
        drop(buffer);
        self.output.changed.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        // In a fork of the parent the buffer's lock may be held by a thread that does not exist there.
        if self.owner == sys::process::pid() {
            self.output.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_rest_is_what_is_there_when_it_is_asked_for() {
        let (read, write) = sys::fd::pipe().unwrap();
        let mut write = std::fs::File::from(write);
        write.write_all(&[1; 100]).unwrap();
        let (mut rest, mut bytes) = (Rest::default(), [0; 60]);
        assert_eq!(rest.read(&read, &mut bytes), Some(60));
        // Somebody else goes on.
        write.write_all(&[2; 100]).unwrap();
        assert_eq!(rest.read(&read, &mut bytes), Some(40));
        assert!(bytes[..40] == [1; 40]);
        assert_eq!(rest.read(&read, &mut bytes), None);
        let (read, write) = sys::fd::pipe().unwrap();
        assert_eq!(Rest::default().read(&read, &mut bytes), None, "nothing, and it does not wait");
        drop(write);
        assert_eq!(Rest::default().read(&read, &mut bytes), None);
    }

    #[test]
    fn a_buffer_keeps_the_beginning_and_counts_the_rest() {
        let mut buffer = Buffer::new(5);
        buffer.keep(b"abc");
        buffer.keep(b"defg");
        assert_eq!((buffer.bytes.make_contiguous(), buffer.dropped), (&mut b"abcde"[..].to_vec()[..], 2));
        assert_eq!(buffer.room(), usize::MAX);
        // A reader that is there gets everything, and there is only so much room for it.
        buffer.taken = true;
        assert_eq!(buffer.room(), BUFFER - 5);
        buffer.keep(b"hij");
        assert_eq!((buffer.bytes.len(), buffer.dropped), (8, 2));
        buffer.released = true;
        buffer.keep(b"klm");
        assert_eq!((buffer.bytes.len(), buffer.dropped), (8, 2));
    }
}
