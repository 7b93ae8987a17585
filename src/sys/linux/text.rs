//! Code that forks of this process map at once.

use std::{fs, io, ops::Range};

use super::{check, code_modules, page_size};

/// Linux 6.13; of files 6.15. Not in `libc` yet.
const MADV_GUARD_INSTALL: libc::c_int = 102;
const MADV_GUARD_REMOVE: libc::c_int = 103;

/// The code of the program and of every library that is loaded now, in whole pages.
pub(in crate::sys) fn code_segments() -> Vec<Range<usize>> {
    let size = page_size();
    let whole = |(start, end): (u64, u64)| {
        let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
        Some(start / size * size..end.div_ceil(size) * size)
    };
    code_modules().0.into_iter().filter_map(whole).collect()
}

/// /proc/pid/pagemap (proc_pid_pagemap(5)) of a segment: a word for each page.
fn page_map(segment: &Range<usize>) -> io::Result<Vec<u64>> {
    let size = page_size();
    let mut words = vec![0; segment.len() / size * 8];
    let map = fs::File::open("/proc/self/pagemap")?;
    std::os::unix::fs::FileExt::read_exact_at(&map, &mut words, (segment.start / size * 8) as u64)?;
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).unwrap_or(0);
    Ok(words.chunks_exact(8).map(word).collect())
}

const MAPPED: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is the file's, and not a copy of this process.
const OF_FILE: u64 = 1 << 61;

/// Which pages of a segment this process has mapped.
pub(in crate::sys) fn mapped_pages(segment: &Range<usize>) -> io::Result<Vec<usize>> {
    let size = page_size();
    let words = page_map(segment)?.into_iter().enumerate();
    Ok(words.filter(|(_, word)| word & MAPPED != 0).map(|(n, _)| segment.start + n * size).collect())
}

/// Whether nobody wrote to a segment of code: a debugger, a tool that patches functions, relocations in text.
pub(super) fn is_as_in_the_file(segment: &Range<usize>) -> bool {
    let is_ours = |word: &u64| word & SWAPPED != 0 || word & (MAPPED | OF_FILE) == MAPPED;
    page_map(segment).is_ok_and(|words| !words.iter().any(is_ours))
}

/// Lets a segment of code count as a mapping with pages of its own, and unmaps all of it: what is run is mapped again.
///
/// For a process with one thread, all signals blocked.
pub(in crate::sys) fn copy_at_fork(segment: &Range<usize>) -> io::Result<()> {
    /// Nothing of the three functions that run in between is as far from its beginning.
    const REACH: usize = 64 << 10;
    let page = segment.end - page_size();
    let runs =
        [copy_at_fork as *const () as usize, guard_and_back as *const () as usize, libc::madvise as *const () as usize];
    // What somebody wrote would be lost below.
    if runs.iter().any(|&address| address.abs_diff(page) < REACH) || !is_as_in_the_file(segment) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    guard_and_back(page)?;
    // SAFETY: pages of a file that nobody wrote: they come back as they were.
    check(unsafe { libc::madvise(segment.start as *mut libc::c_void, segment.len(), libc::MADV_DONTNEED) }).map(drop)
}

/// A guard, which any access would hit, for a moment in which nobody can.
#[inline(never)]
fn guard_and_back(page: usize) -> io::Result<()> {
    let (page, size) = (page as *mut libc::c_void, page_size());
    // SAFETY: one page of code, which nobody runs before the next line: there is one thread and no signal, and what it runs
    // is elsewhere.
    check(unsafe { libc::madvise(page, size, MADV_GUARD_INSTALL) })?;
    // SAFETY: the same page, as it was.
    check(unsafe { libc::madvise(page, size, MADV_GUARD_REMOVE) }).map(drop)
}

/// Maps a page of code, and its neighbours as the kernel likes.
pub(in crate::sys) fn map_page(page: usize) {
    // SAFETY: changes nothing but the page table.
    let _ = unsafe { libc::madvise(page as *mut libc::c_void, page_size(), libc::MADV_POPULATE_READ) };
}
