//! The fork of a zygote.
//!
//! ```text
//! parent --fork--> throw-away process --fresh thread, fork--> ancestor --fork--> zygote that serves
//!        reaps it
//! ```
//!
//! The throw-away process exists so that the ancestor is born on a thread whose thread-locals nobody has touched: the hash
//! keys and random generators that the program's main thread already used would otherwise be those of every worker.

use std::{
    convert::Infallible,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use super::{
    inherited,
    lineage::{self, Ancestor},
    link::Link,
    zygote::Inner,
};
use crate::{
    error::StartError,
    sys::{
        self, ParentWatch, fd,
        process::{self, SingleThreaded},
        role::{self, Role},
        signal::{self, SignalSet},
        socket,
    },
    wire::control::{FACT_SIZE, Fact, Order},
    zygote::serve::{Origin, serve},
};

/// A zygote that serves.
pub(super) struct Launched {
    pub(super) link: Link,
    pub(super) pid: i32,
    pub(super) huge_text: bool,
}

/// Forks a zygote, with the ancestor that can fork the next one: from this process, or from one that is there.
pub(super) fn launch(timeout: Duration) -> Result<(Launched, Arc<Ancestor>), StartError> {
    if role::get() != Role::Parent {
        return Err(StartError::InsideWorker);
    }
    if lineage::is_of_another_process() {
        return Err(StartError::WrongProcess);
    }
    let family: Vec<_> = lineage::family().into_iter().filter(|inner| inner.lineage.pristine).collect();
    let signal_pair = family.is_empty() && inherited::may_have_signal_pair();
    for inner in family.iter().rev() {
        if let Some(found) = from_family(inner, timeout)? {
            return Ok(found);
        }
    }
    let (ours, theirs) = socket::pair().map_err(StartError::system("make a socket pair"))?;
    fork_first(&theirs, ParentWatch::new(), signal_pair)?;
    drop(theirs);
    let ended = || StartError::system("wait for the zygote")(io::Error::other("it ended before it was ready"));
    let ready = wait_until_ready(ours, timeout).map_err(StartError::system("wait for the zygote"))?;
    let ancestor = Ancestor::new(Arc::new(ready.ok_or_else(ended)?.link), None);
    let launched = from_another(&ancestor.link, timeout)?.ok_or_else(ended)?;
    Ok((launched, ancestor))
}

/// A zygote forked from the ancestor of another handle, or `None` if that handle has none any more.
fn from_family(inner: &Arc<Inner>, timeout: Duration) -> Result<Option<(Launched, Arc<Ancestor>)>, StartError> {
    let mut ancestor = inner.lineage.ancestor();
    loop {
        if let Some(launched) = from_another(&ancestor.link, timeout)? {
            return Ok(Some((launched, ancestor)));
        }
        if !(0..DYING_MS).any(|_| {
            ancestor.link.is_dead() || {
                std::thread::sleep(Duration::from_millis(1));
                false
            }
        }) {
            return Err(StartError::system("fork the zygote")(io::Error::from_raw_os_error(libc::EAGAIN)));
        }
        // The one that serves becomes the ancestor as soon as the driver hears of it. It forks nothing for another handle
        // before that: it would take it along when its own is dropped. If that is gone, too, the driver has nothing to do,
        // and no thread is started: the first zygote can be forked again.
        if inner.lineage.link().is_dead() || inner.driver().is_err() {
            return Ok(None);
        }
        match inner.lineage.ancestor_after(&ancestor, timeout) {
            Some(next) => ancestor = next,
            None => return Ok(None),
        }
    }
}

/// How long the end of a dead zygote's socket may be hidden by a child that it had just forked.
const DYING_MS: u64 = 20;

/// A zygote forked from another, or `None` if that one is lost: the next one may do it.
///
/// That an order could be sent proves little. A child that a killed zygote has just forked holds the zygote's socket until
/// it has closed its copy, and the order goes down with it; the end of `ours` says so, and says too that nobody carries it
/// out any more.
fn from_another(source: &Link, timeout: Duration) -> Result<Option<Launched>, StartError> {
    let (ours, theirs) = socket::pair().map_err(StartError::system("make a socket pair"))?;
    let theirs = Arc::new(theirs);
    if order(source, &theirs, ParentWatch::new().as_ref()).is_err() {
        return Ok(None);
    }
    drop(theirs);
    wait_until_ready(ours, timeout).map_err(StartError::system("wait for the zygote"))
}

/// Orders a zygote from another.
pub(super) fn order(link: &Link, control: &Arc<OwnedFd>, watch: Option<&ParentWatch>) -> io::Result<()> {
    let watch = watch.and_then(ParentWatch::as_fd).map(|watch| watch.try_clone_to_owned()).transpose()?.map(Arc::new);
    let fds: Vec<&Arc<OwnedFd>> = std::iter::once(control).chain(watch.as_ref()).collect();
    link.send(Order::ForkZygote { watched: watch.is_some() }, &fds)
}

/// Forks the first zygote of this process, which must have one thread.
fn fork_first(control: &OwnedFd, watch: Option<ParentWatch>, signal_pair: bool) -> Result<(), StartError> {
    let proof = match SingleThreaded::check().map_err(StartError::system("count the threads"))? {
        // A current-thread runtime has no second thread, but its reactor must not be copied.
        Ok(_) if tokio::runtime::Handle::try_current().is_ok() => return Err(StartError::InsideRuntime),
        Ok(proof) => proof,
        Err(_) if tokio::runtime::Handle::try_current().is_ok() => return Err(StartError::InsideRuntime),
        Err(threads) => return Err(StartError::MultiThreaded { threads }),
    };
    // What is buffered now would be printed by every worker again.
    let _ = io::stdout().flush();
    sys::env::flush_c_streams();
    let parent = process::pid();
    let mut control = Some(control.as_fd().try_clone_to_owned().map_err(StartError::system("copy a socket"))?);
    let mut watch = watch;
    let forked = process::fork(proof, || {
        // No signal may reach the program's handlers in a copy of it.
        SignalSet::all().apply();
        if signal_pair {
            inherited::reserve_signal_pair();
        }
        throw_away(control.take().expect("the child runs once"), watch.take(), parent)
    });
    drop((control, watch));
    let child = forked.map_err(StartError::system("fork"))?;
    let status = match process::reap(child) {
        Ok((status, _)) => status,
        // Somebody waits for every child, or ignores SIGCHLD: how the zygote fares is seen on its socket.
        Err(_) => 0,
    };
    match (status >> 8) & 0xff {
        0 => Ok(()),
        errno => Err(StartError::system("fork the zygote")(io::Error::from_raw_os_error(errno))),
    }
}

/// The throw-away process: forks the zygote from a fresh thread and ends.
fn throw_away(control: OwnedFd, watch: Option<ParentWatch>, parent: i32) -> Infallible {
    let forked = process::on_fresh_thread(move |proof| {
        process::fork(proof, move || serve(control, watch, parent, Origin::Program))
    });
    match forked.and_then(|forked| forked) {
        Ok(_) => process::exit(0),
        Err(e) => process::exit(e.raw_os_error().unwrap_or(libc::EAGAIN)),
    }
}

/// The zygote at the other end, or `None` if there is none any more.
fn wait_until_ready(control: OwnedFd, timeout: Duration) -> io::Result<Option<Launched>> {
    use std::os::fd::AsRawFd;
    let mut bytes = [0; FACT_SIZE];
    let mut filled = 0;
    let mut fds = Vec::new();
    while filled < FACT_SIZE {
        if !signal::wait_readable(control.as_raw_fd(), Some(timeout))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // At the limit it does without the rope.
        match socket::receive_at_the_limit(control.as_fd(), &mut bytes[filled..], &mut fds, true)?.bytes {
            0 => return Ok(None),
            n => filled += n,
        }
    }
    match Fact::decode(&bytes).map_err(io::Error::other)? {
        Fact::Ready { pid, huge_text } => Ok(Some(Launched { link: Link::new(control, fds.pop()), pid, huge_text })),
        fact => Err(io::Error::other(format!("{fact:?} where Ready was expected"))),
    }
}

/// `/dev/null` for tasks that ask for it, opened once: later there may be no such path.
pub(super) fn open_null() -> Result<OwnedFd, StartError> {
    fd::null().map_err(StartError::system("open /dev/null"))
}
