//! Memory that is asked for with few page faults, and memory that processes share.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use memfd::{FileSeal, Memfd, MemfdOptions};

use super::page_size;

/// Has the kernel map memory that will be written soon: at once, or with huge pages as it is written. A wish.
pub(in crate::sys) fn map_soon(region: &mut [MaybeUninit<u8>], huge: bool) {
    if cfg!(tokio_run_in_process_portable) {
        return;
    }
    let size = page_size();
    let range = region.as_mut_ptr_range();
    let (start, end) = ((range.start as usize).next_multiple_of(size), range.end as usize / size * size);
    if start < end {
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_POPULATE_WRITE };
        // SAFETY: whole pages within the region, which keep what is in them: populated, they are as after a first write.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
    }
}

/// A file in memory (memfd_create(2)) that can be sealed.
pub(in crate::sys) fn sealable(size: u64) -> io::Result<OwnedFd> {
    let memory = MemfdOptions::new().close_on_exec(true).allow_sealing(true).create("tokio-run-in-process");
    let memory = memory.map_err(cause)?.into_file();
    memory.set_len(size)?;
    Ok(memory.into())
}

/// Sees that there is memory for all of it.
pub(in crate::sys) fn allocate(fd: &impl AsFd, size: u64) -> io::Result<()> {
    let size = i64::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        match nix::fcntl::posix_fallocate(fd, 0, size) {
            Err(nix::Error::EINTR) => {}
            allocated => return Ok(allocated?),
        }
    }
}

/// From now on nobody can write it, or make it larger or smaller. `EBUSY` while it is mapped for writing.
pub(in crate::sys) fn seal(fd: OwnedFd) -> io::Result<OwnedFd> {
    let memory = Memfd::try_from_fd(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealWrite, FileSeal::SealSeal];
    memory.add_seals(&seals).map_err(cause)?;
    Ok(memory.into_file().into())
}

fn cause(error: memfd::Error) -> io::Error {
    match error {
        memfd::Error::Create(e) | memfd::Error::AddSeals(e) | memfd::Error::GetSeals(e) => e,
    }
}

/// A forked child does not get this mapping.
pub(in crate::sys) fn keep_from_forks(start: *mut libc::c_void, size: usize) {
    // SAFETY: says something of a mapping only.
    let _ = unsafe { libc::madvise(start, size, libc::MADV_DONTFORK) };
}
