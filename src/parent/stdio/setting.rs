//! What a worker's stdin, stdout and stderr are connected to.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

#[cfg(feature = "tracing")]
use super::traced::Tracer;
use super::{
    super::{driver::Driver, worker::Worker},
    reader::OutputPipe,
};
use crate::sys;

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
    /// At a level of its own, or that of the stream.
    #[cfg(feature = "tracing")]
    Traced(Option<tracing::Level>),
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

    /// A pipe, whose other end [`Process`](crate::Process) gives. The first megabyte that the worker writes
    /// ([`Task::output_limit`](crate::Task::output_limit)) is kept for a reader that comes late; while nobody has taken
    /// the reader, more is dropped and counted ([`PipeReader::dropped`](crate::PipeReader::dropped)), so the worker is
    /// never held up.
    pub fn piped() -> Self {
        Self(Repr::Piped)
    }

    /// For stdout and stderr, with the feature `tracing`: every line becomes a `tracing` event of this program, with the
    /// line as its message; lines of stdout at the level `INFO`, of stderr at `WARN`.
    ///
    /// The target is `tokio_run_in_process::stdio`, and the fields are `task` (its name), `pid` and `stream` (`stdout` or
    /// `stderr`). A line of more than 16 KiB becomes several events, all but the last with `cut = true`. What is not
    /// UTF-8 is replaced. The events belong to the span and go to the subscriber that were current when the task was
    /// run or opened.
    ///
    /// They are made on a thread that the library starts for it, soon after the line was printed and perhaps after the
    /// task's outcome: see [`flush_traced`](crate::flush_traced). A subscriber that is slower than the task costs lines:
    /// up to 1 MiB waits for it, what is more is dropped, and an event at `WARN` says where and how much (`dropped`). What
    /// a grandchild prints after the task's process is gone is not read.
    ///
    /// ```
    /// use tokio_run_in_process::{Stdio, Task, block_on};
    ///
    /// async fn work() {
    ///     println!("half done"); // INFO tokio_run_in_process::stdio: half done task="worker" pid=4711 stream="stdout"
    /// }
    ///
    /// // Install a subscriber here.
    /// block_on(async {
    ///     let task = Task::new().name("worker").stdout(Stdio::traced()).stderr(Stdio::traced());
    ///     task.run(work, ()).await.unwrap();
    /// })
    /// .unwrap();
    /// ```
    #[cfg(feature = "tracing")]
    pub fn traced() -> Self {
        Self(Repr::Traced(None))
    }

    /// The same at a level of one's choice.
    ///
    /// ```
    /// use tokio_run_in_process::{Stdio, Task, block_on};
    ///
    /// block_on(async {
    ///     let task = Task::new().stderr(Stdio::traced_at(tracing::Level::ERROR));
    ///     task.run(async || eprintln!("this is serious"), ()).await.unwrap();
    /// })
    /// .unwrap();
    /// ```
    #[cfg(feature = "tracing")]
    pub fn traced_at(level: tracing::Level) -> Self {
        Self(Repr::Traced(Some(level)))
    }

    pub(in crate::parent) fn is_piped(&self) -> bool {
        matches!(self.0, Repr::Piped)
    }

    pub(in crate::parent) fn is_traced(&self) -> bool {
        match self.0 {
            #[cfg(feature = "tracing")]
            Repr::Traced(_) => true,
            _ => false,
        }
    }
}

impl From<OwnedFd> for Stdio {
    /// Any open file, socket or pipe.
    fn from(fd: OwnedFd) -> Self {
        Self(Repr::Fd(Arc::new(fd)))
    }
}

/// As `std::process::Stdio` is made: from a file, or from the other end of a child's pipe.
macro_rules! from_owner_of_fd {
    ($($owner:ty)*) => {$(
        impl From<$owner> for Stdio {
            fn from(owner: $owner) -> Self {
                OwnedFd::from(owner).into()
            }
        }
    )*};
}

from_owner_of_fd!(std::fs::File std::process::ChildStdin std::process::ChildStdout std::process::ChildStderr);

/// What of a task's output is kept, unless the task says otherwise.
pub(in crate::parent) const OUTPUT_LIMIT: u64 = 1 << 20;

/// The parent's ends of a worker's pipes.
#[derive(Debug, Default)]
pub(in crate::parent) struct Pipes {
    pub(in crate::parent) stdin: Option<OwnedFd>,
    pub(in crate::parent) outputs: [Option<Outlet>; 2],
}

/// A pipe that the worker writes, and what becomes of what it writes.
#[derive(Debug)]
pub(in crate::parent) struct Outlet {
    pipe: OwnedFd,
    to: Sink,
}

#[derive(Debug)]
enum Sink {
    /// A buffer, up to so many bytes while nobody reads it.
    Buffer(usize),
    #[cfg(feature = "tracing")]
    Events(Tracer),
}

impl Outlet {
    /// Lets the driver read it. Gives it if somebody may read it here.
    pub(in crate::parent) fn connect(
        self,
        driver: &'static Driver,
        worker: Arc<Worker>,
    ) -> io::Result<Option<Arc<OutputPipe>>> {
        match self.to {
            Sink::Buffer(limit) => OutputPipe::read(driver, self.pipe, worker, limit).map(Some),
            #[cfg(feature = "tracing")]
            Sink::Events(tracer) => tracer.connect(driver, self.pipe, worker).map(|()| None),
        }
    }
}

/// Opens what the three settings ask for: which of 0, 1, 2 are replaced, by what, and the parent's ends. What is not set
/// is what the zygote has: the program's stdout and stderr, and /dev/null as its stdin.
pub(in crate::parent) fn open(
    settings: &[Option<Stdio>; 3],
    null: &Arc<OwnedFd>,
    limit: usize,
) -> io::Result<([bool; 3], Vec<Arc<OwnedFd>>, Pipes)> {
    let (mut replaced, mut fds, mut pipes) = ([false; 3], Vec::new(), Pipes::default());
    for (number, setting) in settings.iter().enumerate() {
        let Some(Stdio(setting)) = setting else { continue };
        let fd = match (setting, number) {
            (Repr::Null, 0) | (Repr::Inherit, 1 | 2) => continue,
            // The task refuses it.
            #[cfg(feature = "tracing")]
            (Repr::Traced(_), 0) => continue,
            (Repr::Null, _) => null.clone(),
            (Repr::Inherit, _) => Arc::new(io::stdin().as_fd().try_clone_to_owned()?),
            (Repr::Fd(fd), _) => fd.clone(),
            (Repr::Piped, 0) => {
                let (read, write) = sys::fd::pipe()?;
                pipes.stdin = Some(write);
                Arc::new(read)
            }
            (Repr::Piped, _) => outlet(&mut pipes, number, Sink::Buffer(limit))?,
            #[cfg(feature = "tracing")]
            (Repr::Traced(level), _) => outlet(&mut pipes, number, Sink::Events(Tracer::here(number, *level)))?,
        };
        replaced[number] = true;
        fds.push(fd);
    }
    Ok((replaced, fds, pipes))
}

/// Makes a pipe for stdout (1) or stderr (2), and gives the worker's end.
fn outlet(pipes: &mut Pipes, number: usize, to: Sink) -> io::Result<Arc<OwnedFd>> {
    let (pipe, write) = sys::fd::pipe()?;
    pipes.outputs[number - 1] = Some(Outlet { pipe, to });
    Ok(Arc::new(write))
}
