//! The end of a worker: what it printed goes out, then its last frame, then the process.

use std::{
    io::{self, IoSlice, Write},
    os::fd::BorrowedFd,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::{
    model::{Signal, Terminal},
    sys::{self, arm, process, signal, socket, wake},
    wire::{
        frame,
        rope::{Rope, SLICES},
    },
};

static SAID: AtomicBool = AtomicBool::new(false);
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// The task begins now.
pub(super) fn task_begins() {
    let _ = BEGAN.set(Instant::now());
}

/// Sends the terminal frame and ends the process. Whoever comes second (two threads of a task that panic in an abort
/// build) waits for the first to end it.
pub(super) fn say(terminal: Terminal<Rope>) -> ! {
    if SAID.swap(true, Ordering::SeqCst) {
        // However long: the caller may take its time over a large result.
        loop {
            std::thread::park();
        }
    }
    flush();
    let code = match terminal {
        Terminal::Returned(_) | Terminal::Cancelled => 0,
        Terminal::Failed(_) => 1,
        // As a Rust program that panics.
        Terminal::Panicked(_) => 101,
    };
    if let Some(job) = wake::job() {
        let age = BEGAN.get().map_or(Duration::ZERO, |began| began.elapsed().max(Duration::from_nanos(1)));
        let (header, body) = frame::encode(terminal, age);
        // Before the frame: once it is read the parent may close its end at any time.
        arm::disarm(job);
        let _ = send(job, &header, &body);
        // The send woke the caller, mostly on this processor, where it would wait until this process is torn down, which
        // takes longer than all the rest. It goes first.
        process::yield_now();
    }
    process::exit(code)
}

/// Sends a frame, waiting as long as it takes.
pub(crate) fn send(socket: BorrowedFd<'_>, header: &[u8], body: &Rope) -> io::Result<()> {
    let mut sent = 0;
    socket::make_room(socket, body.len());
    while sent < header.len() + body.len() {
        let head = &header[sent.min(header.len())..];
        let (rest, count) = body.slices(sent.saturating_sub(header.len()), usize::MAX);
        let mut slices = [IoSlice::new(head); 1 + SLICES];
        slices[1..=count].copy_from_slice(&rest[..count]);
        sent += socket::send_slices(socket, &slices[..=count], &[], true)?;
    }
    Ok(())
}

/// In a worker that has time: touches the code that its end will run, which each process must map for itself.
pub(super) fn rehearse() {
    flush_streams();
    drop(frame::encode(Terminal::Returned(vec![0].into()), Instant::now().elapsed()));
    process::yield_now();
}

/// Ends the process by a signal, so that its exit status names it.
pub(super) fn die_of(signal: Signal) -> ! {
    flush();
    if let Some(job) = wake::job() {
        arm::disarm(job);
    }
    signal::reset(signal);
    process::raise(signal);
    // Not reached: the signal is neither blocked nor handled.
    process::exit(128 + signal.number())
}

/// Flushes what the task printed. Another thread may hold the lock of stdout for as long as it likes, so with more than
/// one thread alive a helper flushes, and gets a tenth of a second.
fn flush() {
    if sys::is_alone() && !std::thread::panicking() {
        return flush_streams();
    }
    let (done, wait) = mpsc::channel();
    let helper = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        flush_streams();
        let _ = done.send(());
    });
    if helper.is_ok() {
        let _ = wait.recv_timeout(Duration::from_millis(100));
    }
}

fn flush_streams() {
    let _ = std::io::stdout().flush();
    sys::env::flush_c_streams();
}
