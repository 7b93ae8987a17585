//! Room for many bytes, and memory that processes share.
//!
//! A page fault costs microseconds on a virtual machine, as much as to copy the page twice.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr, slice,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    caps::{Capability, has},
    check, os,
    process::pid,
};

/// From here on huge pages, if the system gives them on request, else pages one by one.
const HUGE: usize = 4 << 20;
/// Up to here page faults are left to happen.
const FEW: usize = 128 << 10;

/// Makes room for `more` bytes, and has the kernel map what is new of it with few faults.
///
/// # Errors
///
/// `ENOMEM`, instead of the end of the program.
pub(crate) fn reserve(bytes: &mut Vec<u8>, more: usize) -> io::Result<()> {
    if bytes.capacity() - bytes.len() >= more {
        return Ok(());
    }
    bytes.try_reserve_exact(more).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let new = bytes.spare_capacity_mut();
    if new.len() >= FEW {
        let huge = new.len() >= HUGE;
        os::memory::map_soon(new, huge);
    }
    Ok(())
}

/// Memory of a fixed size, while this process fills it.
#[derive(Debug)]
pub(crate) struct Draft {
    write: OwnedFd,
    /// Without seals: by which it will be read, and by which it cannot be written.
    read: Option<OwnedFd>,
    mapping: Mapping,
}

impl Draft {
    /// Zeros.
    pub(crate) fn new(size: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::InvalidInput);
        let len = u64::try_from(size).map_err(|_| too_large())?;
        let (write, read) = if has(Capability::Seals) {
            (os::memory::sealable(len)?, None)
        } else {
            let (write, read) = named(len)?;
            (write, Some(read))
        };
        let mapping = Mapping::new(&write, size, libc::PROT_READ | libc::PROT_WRITE)?;
        if size > 0 {
            // A child of the program would keep it from being sealed.
            os::memory::keep_from_forks(mapping.start, size);
        }
        Ok(Self { write, read, mapping })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.mapping.as_ref()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped for writing, so long and so long-lived; other processes have no descriptor of it yet.
        unsafe { slice::from_raw_parts_mut(self.mapping.start.cast(), self.mapping.size) }
    }

    /// Fixes it. It is read by the descriptor, by which nobody can change it, nor, where memory can be sealed, in any way.
    pub(crate) fn finish(self) -> io::Result<(OwnedFd, Mapping)> {
        let size = self.mapping.size;
        drop(self.mapping);
        let fd = match self.read {
            Some(read) => read,
            None => os::memory::seal(self.write)?,
        };
        let mapping = Mapping::new(&fd, size, libc::PROT_READ)?;
        Ok((fd, mapping))
    }
}

/// Shared memory by a name (shm_open(3)) that is gone when this returns: to write it, and to read it only.
fn named(size: u64) -> io::Result<(OwnedFd, OwnedFd)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        // macOS allows 31 bytes.
        let name = format!("/trip-{:x}-{:x}", pid(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name)?;
        let write = match open_named(&name, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        let read = open_named(&name, libc::O_RDONLY);
        // SAFETY: a string that ends with a zero.
        let _ = unsafe { libc::shm_unlink(name.as_ptr()) };
        let write = fs::File::from(write);
        if size > 0 {
            write.set_len(size)?;
            // It lies where little room may be (a /dev/shm of 64 MB): to lack it is an error here, and SIGBUS later.
            os::memory::allocate(&write, size)?;
        }
        return Ok((write.into(), read?));
    }
}

fn open_named(name: &CString, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a string that ends with a zero. (The third argument is an `int` where arguments vary in number.)
    let fd = check(unsafe { libc::shm_open(name.as_ptr(), flags, 0o600) })?;
    // SAFETY: just opened, and nobody else has it.
    super::fd::above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A whole file in memory, mapped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut libc::c_void,
    size: usize,
}

// SAFETY: it owns its pages, and gives them to be read only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Memory that this process made, or that its parent sent it: fixed in size and content.
    pub(crate) fn read_only(fd: impl AsFd, size: usize) -> io::Result<Self> {
        Self::new(&fd, size, libc::PROT_READ)
    }

    fn new(fd: &impl AsFd, size: usize, protection: libc::c_int) -> io::Result<Self> {
        if size == 0 {
            return Ok(Self { start: ptr::NonNull::<u8>::dangling().as_ptr().cast(), size });
        }
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd.as_fd().as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start, size })
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: mapped so long and so long-lived; nobody writes it (see `read_only`, and `Draft`, which owns its own).
        unsafe { slice::from_raw_parts(self.start.cast(), self.size) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: mapped by `new`, and no reference outlives this value.
            let _ = unsafe { libc::munmap(self.start, self.size) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn finished(bytes: &[u8]) -> (OwnedFd, Mapping) {
        let mut draft = Draft::new(bytes.len()).unwrap();
        draft.bytes_mut().copy_from_slice(bytes);
        draft.finish().unwrap()
    }

    #[test]
    fn what_was_filled_in_is_read_by_all_and_written_by_none() {
        let bytes = vec![7; 100_000];
        let (fd, mapping) = finished(&bytes);
        assert_eq!(mapping.as_ref(), bytes);
        let other = Mapping::read_only(&fd, bytes.len()).unwrap();
        assert_eq!(other.as_ref(), bytes);
        assert!(Mapping::new(&fd, bytes.len(), libc::PROT_READ | libc::PROT_WRITE).is_err());
        let mut file = fs::File::from(fd);
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn nothing_is_nothing() {
        let (fd, mapping) = finished(&[]);
        assert!(mapping.as_ref().is_empty());
        assert!(Mapping::read_only(fd, 0).unwrap().as_ref().is_empty());
    }

    #[test]
    fn memory_without_seals_is_the_same_to_its_users() {
        let (write, read) = named(5).unwrap();
        fs::File::from(write).write_all(b"hello").unwrap();
        assert_eq!(Mapping::read_only(&read, 5).unwrap().as_ref(), b"hello");
        assert!(Mapping::new(&read, 5, libc::PROT_READ | libc::PROT_WRITE).is_err());
        assert!(fs::File::from(read).write_all(b"x").is_err());
    }

    #[test]
    fn room_is_made_or_refused() {
        let mut bytes = vec![1];
        reserve(&mut bytes, 10 << 20).unwrap();
        assert!(bytes.capacity() > 10 << 20);
        assert_eq!(bytes, [1]);
        assert_eq!(reserve(&mut bytes, usize::MAX / 4).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    }
}
