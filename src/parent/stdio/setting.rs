//! What a worker's stdin, stdout and stderr are connected to.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

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

/// What of a task's output is kept, unless the task says otherwise.
pub(in crate::parent) const OUTPUT_LIMIT: u64 = 1 << 20;

/// The parent's ends of a worker's pipes.
#[derive(Debug, Default)]
pub(in crate::parent) struct Pipes {
    pub(in crate::parent) stdin: Option<OwnedFd>,
    pub(in crate::parent) outputs: [Option<Outlet>; 2],
}

/// A pipe that the worker writes, and what is done with what it writes.
#[derive(Debug)]
pub(in crate::parent) struct Outlet {
    pipe: OwnedFd,
    limit: usize,
}

impl Outlet {
    /// Lets the driver read it.
    pub(in crate::parent) fn connect(
        self,
        driver: &'static Driver,
        worker: Arc<Worker>,
    ) -> io::Result<Option<Arc<OutputPipe>>> {
        OutputPipe::read(driver, self.pipe, worker, self.limit).map(Some)
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
            (Repr::Null, _) => null.clone(),
            (Repr::Inherit, _) => Arc::new(io::stdin().as_fd().try_clone_to_owned()?),
            (Repr::Fd(fd), _) => fd.clone(),
            (Repr::Piped, 0) => {
                let (read, write) = sys::fd::pipe()?;
                pipes.stdin = Some(write);
                Arc::new(read)
            }
            (Repr::Piped, _) => {
                let (pipe, write) = sys::fd::pipe()?;
                pipes.outputs[number - 1] = Some(Outlet { pipe, limit });
                Arc::new(write)
            }
        };
        replaced[number] = true;
        fds.push(fd);
    }
    Ok((replaced, fds, pipes))
}
