//! The first steps of a worker, from its birth to its task.
//!
//! Up to the commit point no user code runs. All signals are blocked until then (the zygote blocked them), so one that
//! arrives early is neither lost nor kills a half-made worker: it is delivered when the handlers can do something with
//! it.

use std::{
    ffi::{CString, OsStr},
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use bytes::Bytes;

use super::{NAME, execute, farewell, host, pool};
use crate::{
    model::{Failure, Signal, Terminal},
    sys::{
        arm, cgroup, env, fd, process, reserved,
        role::{self, Role},
        set_name,
        signal::{self, SignalSet},
        socket::{self, Received},
        wake,
    },
    task::{Arguments, Entry},
    wire::{
        control::Prepare,
        frame,
        job::{self, HEADER_SIZE, Header, Host, Options},
    },
};

/// The number of a worker's job socket.
const JOB_FD: i32 = 3;

/// What a worker's handlers are, for the zygote to install once for all its workers: it blocks all signals, so they
/// never run there.
pub(crate) fn handle_signals() -> io::Result<()> {
    signal::handle(Signal::TERM, wake::COUNT)?;
    signal::handle(Signal::INT, wake::COUNT)?;
    arm::prepare()
}

/// The whole life of a worker. Called in the child of the zygote's fork. `rehearse`: no task waits for it yet.
/// `kept`: descriptors that a preload opened. `name`: of its control group, should its task ask for one.
pub(crate) fn main(job: OwnedFd, prepare: Prepare, rehearse: bool, kept: &[RawFd], name: cgroup::Name) -> ! {
    role::set(Role::Worker);
    // The zygote's own descriptors go first: nothing of a worker's siblings or of the parent may outlive this line.
    let Ok(job) = fd::move_to(job, JOB_FD, true) else { process::exit(1) };
    fd::close_from(JOB_FD + 1, kept);
    // Without it only a task that uses tokio can fail, and says so.
    let _ = reserved::fill(JOB_FD + 1);
    // Fails only for the leader of a group, which a process just forked is not.
    let _ = process::new_session();
    signal::reset(Signal::CHLD);
    let runtime = (prepare == Prepare::Tokio).then(host::build_tokio);
    let aimed = arm::aim(&job);
    // Under load a spare has its task before it has come up.
    if rehearse && !socket::has_input(job.as_raw_fd()) {
        farewell::rehearse();
        if let Some(Ok(runtime)) = &runtime {
            host::rehearse(runtime);
        }
    }

    let read = Job::read(&job);
    wake::set_job(job.as_raw_fd());
    let mut task = match read {
        Ok(task) => task,
        Err(e) if e.kind() == io::ErrorKind::OutOfMemory => {
            farewell::say(Terminal::Failed(setup("make room for its arguments", &e)))
        }
        // The parent is gone, or took the job back. Nobody waits for an answer.
        Err(_) => process::exit(0),
    };
    let arguments = match task.apply(name).and_then(|()| task.arguments()) {
        Ok(arguments) => arguments,
        Err(failure) => farewell::say(Terminal::Failed(failure)),
    };
    // Before the commit point: such a task has not begun, and may be tried again.
    if let (Host::Tokio | Host::Pool, Some(Err(e))) = (&task.header.host, &runtime) {
        farewell::say(Terminal::Failed(setup("build its tokio runtime", e)))
    }
    if task.header.host == Host::Blocking {
        // Nothing polls a plain function: a signal acts at once, unless the task takes it over.
        signal::reset(Signal::TERM);
        signal::reset(Signal::INT);
    }
    if let Err(e) = aimed.and_then(|()| arm::arm(&job)) {
        farewell::say(Terminal::Failed(setup("arm the job socket", &e)))
    }
    SignalSet::empty().apply();
    // The commit point: no user code runs if the parent took the job back, which this says. A caller that waits for the
    // outcome only is not woken for it; to the parent such a task began when its job was read.
    let committed = if task.header.quiet {
        socket::is_heard(&job)
    } else {
        socket::send(job.as_fd(), &frame::executing(process::pid()), &[], false).is_ok()
    };
    if !committed {
        process::exit(0)
    }
    farewell::task_begins();
    let entry = Entry::from_job(task.header.entry);
    let future = entry.enter(arguments, task.header.result_limit);
    match task.header.host {
        Host::Pool => execute::run(job, Box::pin(pool::serve(future)), Host::Tokio, runtime),
        host => execute::run(job, future, host, runtime),
    }
}

pub(crate) struct Job {
    pub(crate) header: Header,
    options: Options,
    arguments: Bytes,
    fds: Vec<OwnedFd>,
    /// This process could not have as many descriptors as came with it.
    fds_are_lost: bool,
}

impl Job {
    /// Reads the job, blocking: a worker has nothing else to do.
    pub(crate) fn read(socket: &OwnedFd) -> io::Result<Self> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let (mut fds, mut fds_are_lost) = (Vec::new(), false);
        let mut count = |received: Received| {
            fds_are_lost |= received.dropped;
            match received.bytes {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                n => Ok(n),
            }
        };
        // Nothing follows a job, so one call takes the whole of most.
        let mut buffer = [0; 2048];
        let mut filled = 0;
        while filled < HEADER_SIZE {
            filled += count(socket::receive_at_the_limit(socket.as_fd(), &mut buffer[filled..], &mut fds, true)?)?;
        }
        let header = buffer.first_chunk().and_then(Header::decode).ok_or_else(malformed)?;
        let mut rest = &buffer[HEADER_SIZE..filled];
        let mut exactly = |size: u64| -> io::Result<Vec<u8>> {
            let size = usize::try_from(size).map_err(|_| malformed())?;
            let (here, later) = rest.split_at(size.min(rest.len()));
            rest = later;
            let mut bytes = here.to_vec();
            while bytes.len() < size {
                let most = size - bytes.len();
                count(socket::receive_into(socket.as_fd(), &mut bytes, most, &mut fds, true)?)?;
            }
            Ok(bytes)
        };
        let options = exactly(header.options)?;
        let arguments = exactly(header.arguments)?.into();
        if fds.len() != usize::from(header.fds) && !fds_are_lost {
            return Err(malformed());
        }
        let options = job::decode_options(&options).ok_or_else(malformed)?;
        Ok(Self { header, options, arguments, fds, fds_are_lost })
    }

    /// The arguments, with the descriptors in them.
    pub(crate) fn arguments(&mut self) -> Result<Arguments, Failure> {
        self.check_fds()?;
        Ok(Arguments { bytes: mem::take(&mut self.arguments), fds: mem::take(&mut self.fds) })
    }

    fn check_fds(&self) -> Result<(), Failure> {
        if self.fds_are_lost {
            return Err(setup("receive its descriptors", &io::Error::from_raw_os_error(libc::EMFILE)));
        }
        Ok(())
    }

    /// Applies the task's options to this process.
    fn apply(&mut self, name: cgroup::Name) -> Result<(), Failure> {
        self.check_fds()?;
        let options = mem::take(&mut self.options);
        let lines = usize::from(self.header.host == Host::Pool);
        let ours = options.stdio.into_iter().filter(|&replaced| replaced).count() + lines;
        let later = self.fds.split_off(ours.min(self.fds.len()));
        let fds = mem::replace(&mut self.fds, later);
        apply(options, fds, self.header.host, name)
    }
}

fn setup(what: &str, error: &io::Error) -> Failure {
    Failure::Setup { what: what.to_owned(), errno: error.raw_os_error().unwrap_or(0) }
}

/// Applies the task's options to this process.
fn apply(options: Options, fds: Vec<OwnedFd>, host: Host, name: cgroup::Name) -> Result<(), Failure> {
    if let Some(dir) = &options.cgroup {
        let what = || format!("join a control group in {}", Path::new(dir).display());
        cgroup::join(dir, name).map_err(|e| match e.raw_os_error() {
            Some(errno) => Failure::Setup { what: what(), errno },
            None => Failure::Setup { what: format!("{}: {e}", what()), errno: 0 },
        })?;
    }
    let mut fds = fds.into_iter();
    for (number, replace) in (0..).zip(options.stdio) {
        if replace {
            let fd = fds.next().ok_or_else(|| setup("find the descriptors for stdio", &io::Error::other("")))?;
            fd::replace_stdio(fd, number).map_err(|e| setup("replace stdio", &e))?;
        }
    }
    if host == Host::Pool {
        pool::set_line(fds.next().ok_or_else(|| setup("find the line of its pool", &io::Error::other("")))?);
    }
    if options.env_clear {
        for (key, _) in std::env::vars_os() {
            env::remove(&key);
        }
    }
    for (key, value) in &options.env {
        match value {
            Some(value) => env::set(key, value),
            None => env::remove(key),
        }
    }
    if let Some(dir) = &options.current_dir {
        change_dir(dir).map_err(|e| setup(&format!("change to the directory {}", Path::new(dir).display()), &e))?;
    }
    if let Some(name) = options.name {
        if let Ok(name) = CString::new(name.as_bytes()) {
            set_name(&name);
        }
        let _ = NAME.set(name);
    }
    Ok(())
}

fn change_dir(dir: &OsStr) -> io::Result<()> {
    env::change_dir(&CString::new(dir.as_bytes())?)
}
