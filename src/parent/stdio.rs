//! A worker's stdin, stdout and stderr, and the parent's ends of the pipes.
//!
//! A pipe that the worker writes is always read by the driver: into a buffer while somebody may still read it, into
//! nothing when the buffer is full and nobody does. So a worker that prints never waits for a caller that does not read.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::unix::pipe,
    sync::Notify,
};

use super::{driver::Driver, race::race, worker::Worker};
use crate::sys;

/// How much of a pipe's output is kept while nobody reads it.
const BUFFER: usize = 1 << 20;

/// What one of a worker's standard streams is connected to, as in [`std::process::Stdio`].
///
/// ```
/// use tokio_run_in_process::{Stdio, Task};
///
/// tokio_run_in_process::block_on(async {
///     let quiet = Task::new().stdout(Stdio::null());
///     quiet.run(async || println!("nobody sees this"), ()).await.unwrap();
/// })
/// .unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Stdio(Repr);

#[derive(Clone, Debug)]
enum Repr {
    Inherit,
    Null,
    Piped,
    Fd(Arc<OwnedFd>),
}

impl Stdio {
    /// For stdout and stderr: what the program had when the zygote was started (the default). For stdin: what the
    /// program has now.
    pub fn inherit() -> Self {
        Self(Repr::Inherit)
    }

    /// `/dev/null`. The default for stdin.
    pub fn null() -> Self {
        Self(Repr::Null)
    }

    /// A pipe, whose other end [`Process`](crate::Process) gives. Up to 1 MiB of what the worker writes is kept for a
    /// reader that comes late; while nobody has taken the reader, more is dropped and counted
    /// ([`PipeReader::dropped`]), so the worker is never held up.
    pub fn piped() -> Self {
        Self(Repr::Piped)
    }
}

impl From<OwnedFd> for Stdio {
    /// Any open file, socket or pipe.
    fn from(fd: OwnedFd) -> Self {
        Self(Repr::Fd(Arc::new(fd)))
    }
}

impl From<std::fs::File> for Stdio {
    fn from(file: std::fs::File) -> Self {
        OwnedFd::from(file).into()
    }
}

/// The parent's ends of a worker's pipes.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) outputs: [Option<OwnedFd>; 2],
}

/// Opens what the three settings ask for: which of 0, 1, 2 are replaced, by what, and the parent's ends.
pub(super) fn open(settings: &[Stdio; 3], null: &Arc<OwnedFd>) -> io::Result<([bool; 3], Vec<Arc<OwnedFd>>, Pipes)> {
    let (mut replaced, mut fds, mut pipes) = ([false; 3], Vec::new(), Pipes::default());
    for (number, setting) in settings.iter().enumerate() {
        let fd = match (&setting.0, number) {
            // The zygote has the program's stdout and stderr, and /dev/null as its stdin.
            (Repr::Null, 0) | (Repr::Inherit, 1 | 2) => continue,
            (Repr::Null, _) => null.clone(),
            (Repr::Inherit, _) => Arc::new(io::stdin().as_fd().try_clone_to_owned()?),
            (Repr::Fd(fd), _) => fd.clone(),
            (Repr::Piped, 0) => {
                let (read, write) = sys::fd::pipe()?;
                pipes.stdin = Some(write);
                Arc::new(read)
            }
            (Repr::Piped, _) => {
                let (read, write) = sys::fd::pipe()?;
                pipes.outputs[number - 1] = Some(read);
                Arc::new(write)
            }
        };
        replaced[number] = true;
        fds.push(fd);
    }
    Ok((replaced, fds, pipes))
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: VecDeque<u8>,
    /// Somebody holds a `PipeReader`: then a full buffer holds the worker up, as a pipe does.
    taken: bool,
    /// Nobody reads it, or ever will.
    released: bool,
    ended: bool,
    dropped: u64,
    reader: Option<Waker>,
}

/// What the driver read from a worker's stdout or stderr.
#[derive(Debug, Default)]
pub(super) struct Output {
    buffer: Mutex<Buffer>,
    /// The reader made room, or went away.
    changed: Notify,
}

impl Output {
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to read a pipe, on the driver.
    pub(super) fn read(driver: &'static Driver, pipe: OwnedFd, worker: Arc<Worker>) -> io::Result<Arc<Self>> {
        let pipe = driver.enter(|| pipe::Receiver::from_owned_fd(pipe))?;
        let output = Arc::new(Self::default());
        driver.spawn(pump(pipe, output.clone(), worker));
        Ok(output)
    }

    pub(super) fn take(self: Arc<Self>) -> PipeReader {
        self.buffer().taken = true;
        PipeReader { output: self, owner: sys::process::pid() }
    }

    /// Nobody will ask for it any more.
    pub(super) fn release(&self) {
        {
            let mut buffer = self.buffer();
            (buffer.taken, buffer.released) = (false, true);
            buffer.bytes = VecDeque::new();
        }
        self.changed.notify_one();
    }
}

/// Reads a pipe to its end, whatever becomes of the bytes.
async fn pump(pipe: pipe::Receiver, output: Arc<Output>, worker: Arc<Worker>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        // With the worker gone and no one to read, an escaped grandchild that holds the pipe is nobody's concern.
        if output.buffer().released && worker.status.borrow().exit.is_some() {
            return;
        }
        if output.buffer().room() == 0 {
            output.changed.notified().await;
            continue;
        }
        race(pipe.readable(), race(output.changed.notified(), worker_gone(&worker))).await;
        // Only now: somebody may have taken the reader meanwhile, and misses nothing that is read from here on.
        let room = output.buffer().room().min(bytes.len());
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
async fn worker_gone(worker: &Worker) {
    if worker.status.borrow().exit.is_some() {
        return std::future::pending().await;
    }
    worker.wait_until(|status| status.exit.is_some()).await;
}

impl Buffer {
    /// How much may be read now.
    fn room(&self) -> usize {
        if self.taken { BUFFER.saturating_sub(self.bytes.len()) } else { usize::MAX }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.released {
            return;
        }
        let keep = bytes.len().min(BUFFER.saturating_sub(self.bytes.len()));
        self.bytes.extend(&bytes[..keep]);
        self.dropped += (bytes.len() - keep) as u64;
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
    output: Arc<Output>,
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
        let mut buffer = self.output.buffer();
        if buffer.bytes.is_empty() {
            if buffer.ended {
                return Poll::Ready(Ok(()));
            }
            buffer.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
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

/// Writes to a worker's stdin; dropping it, or shutting it down, is the end of the input. Works on any runtime.
#[derive(Debug)]
pub struct PipeWriter {
    pipe: Option<pipe::Sender>,
    owner: i32,
}

impl PipeWriter {
    pub(super) fn new(driver: &Driver, pipe: OwnedFd) -> io::Result<Self> {
        let pipe = driver.enter(|| pipe::Sender::from_owned_fd(pipe))?;
        Ok(Self { pipe: Some(pipe), owner: sys::process::pid() })
    }

    fn pipe(&mut self) -> io::Result<Pin<&mut pipe::Sender>> {
        self.pipe.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn close(&mut self) {
        let pipe = self.pipe.take();
        // A fork of the parent shares the reactor's kernel object: leaving would unregister the parent's pipe.
        if self.owner != sys::process::pid() {
            std::mem::forget(pipe);
        }
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = self.pipe()?;
        sys::signal::without_sigpipe(|| pipe.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}
