//! Code that forks of this process map at once: none, a fork here maps what the kernel likes.

use std::{io, ops::Range};

pub(in crate::sys) fn code_segments() -> Vec<Range<usize>> {
    Vec::new()
}

pub(in crate::sys) fn mapped_pages(_segment: &Range<usize>) -> io::Result<Vec<usize>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn copy_at_fork(_segment: &Range<usize>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn map_page(_page: usize) {}
