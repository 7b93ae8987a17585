//! The code that every worker runs, mapped by the fork that makes it.
//!
//! A fork leaves the pages of files out, since a fault can fill them in: so every worker faults its way through the same
//! few hundred pages of code, in some twenty-five faults. Of a mapping that has (or might have) pages of its own a fork
//! copies the whole page table. The zygote lets its code count as such a mapping, and keeps in its page table just what a
//! rehearsal needed: copying that is cheaper than the faults (a cold task takes 8 % less, and eight at a time get 15 %
//! more done).
//!
//! Nothing depends on it. Where the kernel is too old, or /proc is missing, workers fault.

use std::{
    io,
    ops::Range,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{
    caps::{Capability, has},
    os,
    process::{self, SingleThreaded},
    signal, socket,
};
use crate::model::Signal;

/// A rehearsal takes a millisecond or two.
const TOO_LONG: Duration = Duration::from_secs(1);

/// Whether some of it was moved, by this process or one that it was forked from.
static ON_HUGE_PAGES: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_on_huge_pages() -> bool {
    ON_HUGE_PAGES.load(Ordering::Relaxed)
}

/// In a zygote that has no children yet: with the feature `huge-text`, puts the program's code on huge pages, if it was
/// linked for that.
pub(crate) fn move_to_huge_pages() {
    if cfg!(feature = "huge-text") && has(Capability::HugeText) {
        ON_HUGE_PAGES.store(os::huge::move_image(), Ordering::Relaxed);
    }
}

/// In a zygote that has no children yet: lets its forks map the code that `rehearse` runs. `rehearse` runs in a child.
pub(crate) fn map_at_fork(rehearse: impl FnOnce()) {
    if !has(Capability::TextAtFork) {
        return;
    }
    let code = os::text::code_segments();
    let Ok(pages) = pages_of(rehearse, &code) else { return };
    if pages.is_empty() {
        return;
    }
    let copied: Vec<&Range<usize>> = code.iter().filter(|segment| os::text::copy_at_fork(segment).is_ok()).collect();
    for page in pages.chunks_exact(size_of::<usize>()) {
        let Ok(page) = page.try_into().map(usize::from_le_bytes) else { return };
        if copied.iter().any(|segment| segment.contains(&page)) {
            os::text::map_page(page);
        }
    }
}

/// The pages of code that a child has mapped when it has rehearsed: their addresses, one after another. An error if the
/// child did not come to its end.
fn pages_of(rehearse: impl FnOnce(), code: &[Range<usize>]) -> io::Result<Vec<u8>> {
    let (ours, theirs) = socket::pair()?;
    let mut child = Some(rehearse);
    let pid = process::fork(SingleThreaded::just_forked(), || {
        if let Some(rehearse) = child.take() {
            rehearse();
        }
        let pages = code.iter().flat_map(|segment| os::text::mapped_pages(segment).unwrap_or_default());
        let bytes: Vec<u8> = pages.flat_map(usize::to_le_bytes).collect();
        // What its parent is about to do. Should that run code of the very page that it takes away for a moment (a linker may
        // put anything there), then this process is killed, and its parent does not try.
        for segment in code {
            let _ = os::text::copy_at_fork(segment);
        }
        let sent = socket::send_all(theirs.as_fd(), &bytes);
        process::exit(i32::from(sent.is_err()))
    })?;
    drop(theirs);
    let pages = receive(&ours);
    if pages.is_err() {
        let _ = process::signal_child(pid, Signal::KILL);
    }
    let (status, _) = process::reap(pid)?;
    if status == 0 { pages } else { Err(io::ErrorKind::Other.into()) }
}

/// All that comes.
fn receive(socket: &impl AsFd) -> io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if !signal::wait_readable(socket.as_fd().as_raw_fd(), Some(TOO_LONG))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match socket::receive(socket.as_fd(), &mut buffer, &mut Vec::new(), true)? {
            0 => return Ok(bytes),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}
