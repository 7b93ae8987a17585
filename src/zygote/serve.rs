//! The zygote's life: what it does to itself at its birth, and its loop.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use super::{
    children::{Child, Children},
    estate::Estate,
    groups::Groups,
    preload,
};
use crate::{
    model::{Signal, WorkerId},
    sys::{
        self, ParentWatch, arm, fd,
        process::{self, Change, SingleThreaded},
        reserved,
        role::{self, Role},
        signal::{self, SignalSet},
        socket,
        table::Table,
        text,
    },
    wire::control::{Fact, ORDER_SIZE, Order, OrderBytes, Prepare},
    worker,
};

/// The descriptors of a zygote beside 0, 1, 2.
const CONTROL_FD: i32 = 3;
const WATCH_FD: i32 = 4;

/// How many orders for spares are read ahead.
const MOST_SPARES: usize = 16;

/// Where a zygote comes from.
pub(crate) enum Origin {
    /// The program: everything is still to be done.
    Program,
    /// Another zygote, which reads this table when the new one is gone. The new one writes it.
    Zygote {
        table: Option<Table>,
        /// Descriptors of a preload, which stay open.
        kept: Vec<RawFd>,
    },
}

/// The life of a zygote: runs in the child of the fork that made it, on its only thread, all signals blocked. `watch`
/// says when the process `parent` is gone. Returns only as far as `Infallible`: it ends the process.
pub(crate) fn serve(control: OwnedFd, watch: Option<ParentWatch>, parent: i32, origin: Origin) -> Infallible {
    match Zygote::prepare(control, watch, parent, origin) {
        Ok(mut zygote) => {
            let program_is_gone = zygote.serve().unwrap_or(false);
            zygote.leave(program_is_gone)
        }
        // The parent sees the end of the control socket before any `Ready`.
        Err(e) => process::exit(e.raw_os_error().unwrap_or(1)),
    }
}

pub(super) struct Zygote {
    control: OwnedFd,
    watch: Option<OwnedFd>,
    parent: i32,
    pub(super) children: Children,
    /// Who forked this zygote, if that was another one.
    pub(super) ancestor: Option<i32>,
    /// Descriptors that a preload opened: every process that is forked from here on has them.
    kept: Vec<RawFd>,
    /// For the ancestor: the workers.
    table: Option<Table>,
    /// What this one forked other zygotes for.
    pub(super) estate: Estate,
    pub(super) groups: Groups,
    /// Tells this process, if it is stopped, that the program is gone.
    _bell: Option<OwnedFd>,
    /// What the parent was not told yet, because the control socket is full.
    facts: VecDeque<Unsent>,
    /// A part of an order.
    order: Vec<u8>,
    /// Descriptors whose order is not complete. `None` stands for those of an order that did not come through: this
    /// process had no room for them.
    fds: VecDeque<Option<OwnedFd>>,
    /// Workers that no task waits for yet: forked one by one while no other order is there.
    spares: VecDeque<Spare>,
}

/// What follows a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    /// The parent is told.
    Announce,
    /// The worker has time, and uses it.
    Rehearse,
}

struct Spare {
    worker: WorkerId,
    prepare: Prepare,
    job: OwnedFd,
}

struct Unsent {
    fact: Fact,
    pidfd: Option<OwnedFd>,
    sent: usize,
}

impl Zygote {
    fn prepare(control: OwnedFd, watch: Option<ParentWatch>, parent: i32, origin: Origin) -> io::Result<Self> {
        role::set(Role::Zygote);
        SignalSet::all().apply();
        let (kept, table, ancestor) = match origin {
            Origin::Program => (Vec::new(), None, None),
            Origin::Zygote { table, kept } => (kept, table, Some(process::parent_pid())),
        };
        let watch = watch.and_then(|watch| watch.into_fd(parent));
        // Both out of the way of the numbers they get, then everything else goes.
        let control = fd::duplicate_above(control, WATCH_FD)?;
        let watch = watch.map(|watch| fd::duplicate_above(watch, WATCH_FD)).transpose()?;
        let control = fd::move_to(control, CONTROL_FD, true)?;
        let watch = watch.map(|watch| fd::move_to(watch, WATCH_FD, true)).transpose()?;
        let first = if watch.is_some() { WATCH_FD } else { CONTROL_FD } + 1;
        fd::close_from(first, &kept);
        // A worker without it says so, if its task needs it.
        let _ = reserved::hold(first);
        // What workers find at 0 unless they ask for something else. The program's stdin stays the program's.
        fd::replace_stdio(fd::null()?, 0)?;
        // A worker that prints must not print into whatever got the number of a stream that the program had closed.
        for number in [1, 2] {
            if !fd::is_open(number) {
                fd::replace_stdio(fd::null()?, number)?;
            }
        }
        // Away from the terminal and from signals to the program's group.
        let _ = process::new_session();
        signal::reset_all();
        signal::handle(Signal::CHLD, signal::child_ended)?;
        worker::handle_signals()?;
        worker::install_hook();
        sys::set_name(c"zygote");
        // One that was forked by another has it from there.
        if ancestor.is_none() {
            text::move_to_huge_pages();
            text::map_at_fork(worker::rehearse);
        }
        // Its other end goes to the parent, which only keeps it.
        let (bell, rope) = match socket::pair() {
            Ok((bell, rope)) if arm::go_on_at_hangup(&bell).is_ok() => (Some(bell), Some(rope)),
            _ => (None, None),
        };
        let mut zygote = Self {
            control,
            watch,
            parent,
            children: Children::default(),
            ancestor,
            kept,
            table,
            estate: Estate::default(),
            groups: Groups::new(parent),
            _bell: bell,
            facts: VecDeque::new(),
            order: Vec::with_capacity(64 * ORDER_SIZE),
            fds: VecDeque::new(),
            spares: VecDeque::new(),
        };
        zygote.tell(Fact::Ready { pid: process::pid(), huge_text: text::is_on_huge_pages() }, rope);
        Ok(zygote)
    }

    /// Serves until nobody needs it any more. `true`: the whole program is gone.
    fn serve(&mut self) -> io::Result<bool> {
        loop {
            // A child that ends after this line interrupts the wait below.
            if signal::take_child_ended() {
                self.reap()?;
            }
            if self.estate.is_unsettled() {
                self.settle();
            }
            if self.groups.is_unsettled() {
                self.groups.settle();
            }
            self.send_facts()?;
            // Unsent facts first: a zygote that read orders all the same could fill both directions and hang.
            let full = !self.facts.is_empty();
            let watch = self.watch.as_ref().map(AsRawFd::as_raw_fd);
            let limit = match full || self.spares.is_empty() {
                false => Some(Duration::ZERO),
                true => (self.estate.is_unsettled() || self.groups.is_unsettled()).then_some(LOOKS_AGAIN),
            };
            // Each holds a descriptor until it is forked.
            let read = !full && self.spares.len() < MOST_SPARES;
            let ready = signal::wait(self.control.as_raw_fd(), read, full, watch, limit)?;
            if ready.watch {
                return Ok(true);
            }
            if ready.control {
                if !self.read_orders()? {
                    return Ok(false);
                }
            } else if let Some(spare) = self.spares.pop_front() {
                self.fork_worker(spare.worker, spare.prepare, Then::Rehearse, spare.job);
            }
        }
    }

    /// Reports every child that ended: what is left of its group dies before its pid can mean another process.
    fn reap(&mut self) -> io::Result<()> {
        while !self.children.is_empty() || self.estate.inherits {
            let pid = match process::changed_child() {
                Ok(Some(Change::Ended(pid))) => pid,
                Ok(Some(Change::Stopped(pid))) => {
                    if let Some(worker) = self.children.worker_of(pid) {
                        self.tell(Fact::Stopped { worker }, None);
                    }
                    continue;
                }
                Ok(None) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
                Err(e) => return Err(e),
            };
            // Before it is taken for a stranger.
            self.settle();
            let child = self.children.remove(pid).or_else(|| self.estate.claim(pid).map(Child::Worker));
            if let Some(Child::Worker(worker)) = child {
                let _ = process::signal_group(pid, Signal::KILL);
                self.groups.end(worker);
                // Before the reap, or this process might be killed between that and the fact: its ancestor tells it then.
                if let Some(table) = &mut self.table {
                    match process::look_at_ended(pid) {
                        Some((status, usage)) => table.has_ended(worker, pid, status, usage),
                        None => table.forget(worker),
                    }
                }
            }
            let (status, usage) = process::reap(pid)?;
            match child {
                Some(Child::Worker(worker)) => self.tell(Fact::Exited { worker, pid, status, usage }, None),
                Some(Child::Zygote) => self.adopt(pid),
                // Left behind by somebody's child, far from a worker's group: it has no other parent.
                None => {}
            }
        }
        Ok(())
    }

    pub(super) fn tell(&mut self, fact: Fact, pidfd: Option<OwnedFd>) {
        self.facts.push_back(Unsent { fact, pidfd, sent: 0 });
    }

    fn send_facts(&mut self) -> io::Result<()> {
        while let Some(unsent) = self.facts.front_mut() {
            let bytes = unsent.fact.encode();
            let pidfd: Option<BorrowedFd<'_>> = unsent.pidfd.as_ref().map(AsFd::as_fd);
            match socket::send(self.control.as_fd(), &bytes[unsent.sent..], pidfd.as_slice(), false) {
                Ok(n) => {
                    unsent.sent += n;
                    // The descriptor went with the first byte.
                    unsent.pidfd = None;
                    if unsent.sent == bytes.len() {
                        if let (Some(table), Fact::Exited { worker, .. }) = (&mut self.table, unsent.fact) {
                            table.forget(worker);
                        }
                        self.facts.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if unsent.pidfd.is_some() && e.kind() != io::ErrorKind::BrokenPipe => {
                    // Too many descriptors in flight, or no memory for one: the parent can do without it.
                    unsent.pidfd = None;
                    if let Fact::Forked { pidfd, .. } = &mut unsent.fact {
                        *pidfd = false;
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads what there is and obeys. `false` at the end of the stream.
    fn read_orders(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 64 * ORDER_SIZE];
        let mut fds = Vec::new();
        let received = match socket::receive_at_the_limit(self.control.as_fd(), &mut bytes, &mut fds, false) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            result => result?,
        };
        let n = received.bytes;
        if n == 0 {
            return Ok(false);
        }
        // One call takes the descriptors of one message at most, and a message is one order.
        if received.dropped {
            self.fds.push_back(None);
        } else {
            self.fds.extend(fds.into_iter().map(Some));
        }
        self.order.extend_from_slice(&bytes[..n]);
        let mut at = 0;
        while let Some(bytes) = self.order.get(at..).and_then(|rest| rest.first_chunk::<ORDER_SIZE>()) {
            let bytes: OrderBytes = *bytes;
            at += ORDER_SIZE;
            self.obey(Order::decode(&bytes).map_err(io::Error::other)?)?;
            // At once, not after the next forks: should this process be killed among them, who was forked is known.
            self.send_facts()?;
        }
        self.order.drain(..at);
        Ok(true)
    }

    fn obey(&mut self, order: Order) -> io::Result<()> {
        match order {
            Order::Fork { worker, prepare, announce, spare } => {
                let Some(job) = self.next_fd()? else {
                    self.tell(Fact::NotForked { worker, errno: libc::EMFILE }, None);
                    return Ok(());
                };
                if spare {
                    self.spares.push_back(Spare { worker, prepare, job });
                } else {
                    self.fork_worker(worker, prepare, if announce { Then::Announce } else { Then::Nothing }, job);
                }
            }
            Order::Announce { worker } => {
                if let Some(at) = self.spares.iter().position(|spare| spare.worker == worker) {
                    // A task got it before it was forked.
                    if let Some(Spare { worker, prepare, job }) = self.spares.remove(at) {
                        self.fork_worker(worker, prepare, Then::Announce, job);
                    }
                } else {
                    self.announce_or_ask(worker);
                }
            }
            Order::Signal { worker, signal, group } => {
                // A worker that is gone already needs no signal.
                if let Some(pid) = self.pid_of(worker) {
                    if group {
                        let _ = process::signal_group(pid, signal);
                    }
                    let _ = process::signal_child(pid, signal);
                }
            }
            Order::Contain => {
                // At the limit of descriptors workers end as others do.
                if let Some(dir) = self.next_fd()? {
                    self.groups.add(dir);
                }
            }
            Order::Preload => {
                if let Some(line) = self.next_fd()? {
                    let mut opened = preload::run(line);
                    // The function, or what it used, may have wanted to hear of children of its own.
                    signal::handle(Signal::CHLD, signal::child_ended)?;
                    self.kept.append(&mut opened);
                    self.kept.sort_unstable();
                }
            }
            Order::ForkZygote { watched } => {
                let forked = match self.next_fd()? {
                    None => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                    Some(control) => {
                        let watch = watched.then(|| self.next_fd()).transpose()?.flatten();
                        self.fork_zygote(control, watch)
                    }
                };
                let errno = forked.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EAGAIN));
                self.tell(Fact::ZygoteForked { errno }, None);
            }
        }
        Ok(())
    }

    fn next_fd(&mut self) -> io::Result<Option<OwnedFd>> {
        self.fds.pop_front().ok_or_else(|| io::Error::other("an order came without its descriptor"))
    }

    fn fork_worker(&mut self, worker: WorkerId, prepare: Prepare, then: Then, job: OwnedFd) {
        self.children.reserve();
        // Taken out so that the child owns it; the parent's copy is dropped below, right after the fork.
        let mut job = Some(job);
        let slot = self.table.as_mut().and_then(|table| table.expect(worker));
        let forked = process::fork(SingleThreaded::just_forked(), || {
            let job = job.take().expect("the child runs once");
            // Its zygote may be killed before it notes the pid. From the next line on only zygotes have the memory.
            if let Some(table) = self.table.take() {
                table.is_born(slot, process::pid());
            }
            self.estate = Estate::default();
            worker::main(job, prepare, then == Then::Rehearse, &self.kept, self.groups.name(worker))
        });
        drop(job);
        match forked {
            Ok(pid) => {
                // Before the next wait: an exit is reported by this table.
                self.children.add(pid, Child::Worker(worker));
                if let Some(table) = &self.table {
                    table.is_born(slot, pid);
                }
                if then == Then::Announce {
                    self.announce(worker, pid);
                }
            }
            Err(e) => {
                if let Some(table) = &mut self.table {
                    table.forget(worker);
                }
                self.tell(Fact::NotForked { worker, errno: e.raw_os_error().unwrap_or(libc::EAGAIN) }, None);
            }
        }
    }

    /// Of a worker that was not reaped: the pid means no other process.
    pub(super) fn announce(&mut self, worker: WorkerId, pid: i32) {
        let pidfd = process::open_pidfd(pid);
        self.tell(Fact::Forked { worker, pid, pidfd: pidfd.is_some() }, pidfd);
    }

    /// Forks another zygote, from this thread, whose thread-locals nobody has touched: a zygote hashes nothing and draws no
    /// random number. A thread of its own, as at the first time, would leave its stack and its part of the heap to every
    /// worker of the other, which costs each of them some percent.
    fn fork_zygote(&mut self, control: OwnedFd, watch: Option<OwnedFd>) -> io::Result<()> {
        self.children.reserve();
        let parent = self.parent;
        let watch = watch.and_then(ParentWatch::from_fd).or_else(ParentWatch::inherited);
        // Both processes have it: the new one writes, this one reads when the other is gone.
        let mut table = if process::become_subreaper() { Some(Table::new()?) } else { None };
        self.estate.inherits |= table.is_some();
        let pid = process::fork(SingleThreaded::just_forked(), || {
            // Not its business, and it would be all its workers'.
            drop(self.table.take());
            self.estate = Estate::default();
            let kept = std::mem::take(&mut self.kept);
            serve(control, watch, parent, Origin::Zygote { table: table.take(), kept })
        })?;
        self.children.add(pid, Child::Zygote);
        self.estate.younger.push((pid, table));
        Ok(())
    }
}

/// When to look again whether a worker has said who it is.
const LOOKS_AGAIN: Duration = Duration::from_millis(1);

pub(super) fn kill_worker(pid: i32) {
    let _ = process::signal_group(pid, Signal::KILL);
    // Before its `setsid` a worker leads no group.
    let _ = process::signal_child(pid, Signal::KILL);
}
