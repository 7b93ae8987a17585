//! The program's code and constants on huge pages (feature `huge-text`).
//!
//! A page table entry for two megabytes instead of one for four kilobytes: a fork copies one for all of the code, and its
//! child runs on it without a fault. The linker has to keep the segments of the program as far apart, or two of them
//! share such a page: `-z max-page-size=0x200000`. Anything that is not as it must be leaves the code where it is.
//!
//! On x86-64 only, where the kernel's huge pages have this size and code may be written and then run as it is.

use std::{fs, io, ops::Range, ptr};

use super::{check, text};

/// Of one huge page.
const HUGE: usize = 2 << 20;

/// Moves what it can of the program's own image. Says whether any of its code was moved.
///
/// For a process with one thread, all signals blocked.
pub(in crate::sys) fn move_image() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return false };
    let mut code = false;
    for segment in image() {
        code |= onto_huge_pages(&segment, &maps).is_ok() && segment.protection & libc::PROT_EXEC != 0;
    }
    code
}

/// A segment of the program that is read or run and never written, as its file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    range: Range<usize>,
    protection: libc::c_int,
}

impl Segment {
    /// In whole pages, as it is mapped.
    fn pages(&self) -> Range<usize> {
        self.range.start / 4096 * 4096..self.range.end.next_multiple_of(4096)
    }
}

/// What the program itself has of such: not its libraries, which are linked closer together.
fn image() -> Vec<Segment> {
    let constant = |segment: super::Segment| {
        let is = |flag| segment.flags & flag != 0;
        let protection = libc::PROT_READ | if is(libc::PF_X) { libc::PROT_EXEC } else { 0 };
        let range = usize::try_from(segment.range.0).ok()?..usize::try_from(segment.range.1).ok()?;
        (segment.own && is(libc::PF_R) && !is(libc::PF_W)).then_some(Segment { range, protection })
    };
    super::segments().into_iter().filter_map(constant).collect()
}

/// The huge pages of a segment, if it has them for itself: `maps` is /proc/self/maps (proc_pid_maps(5)).
fn place(segment: &Segment, maps: &str) -> Option<Range<usize>> {
    let (start, end) = (segment.range.start / HUGE * HUGE, segment.range.end.next_multiple_of(HUGE));
    let own = segment.pages();
    let mut covered = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        if to <= start || end <= from {
            continue;
        }
        let mut permissions = rest.bytes();
        let is_as_linked = permissions.next() == Some(b'r')
            && permissions.next() == Some(b'-')
            && (permissions.next() == Some(b'x')) == (segment.protection & libc::PROT_EXEC != 0)
            && permissions.next() == Some(b'p');
        if from < own.start || own.end < to || !is_as_linked {
            return None;
        }
        covered += to - from;
    }
    (covered == own.len()).then_some(start..end)
}

fn onto_huge_pages(segment: &Segment, maps: &str) -> io::Result<()> {
    let not_here = || io::Error::from(io::ErrorKind::Unsupported);
    let place = place(segment, maps).ok_or_else(not_here)?;
    // A copy of a probe's breakpoint would be one that the kernel knows nothing of.
    if segment.protection & libc::PROT_EXEC != 0 && !text::is_as_in_the_file(&segment.pages()) {
        return Err(not_here());
    }
    let room = Room::new(place.len() + HUGE)?;
    let (start, size) = (room.0.next_multiple_of(HUGE), place.len());
    // SAFETY: within the room, which is nobody else's.
    check(unsafe { libc::madvise(start as *mut libc::c_void, size, libc::MADV_HUGEPAGE) })?;
    let copy = start + (segment.range.start - place.start);
    // SAFETY: the segment is mapped to read, as `place` has seen, and the room is as large.
    unsafe { ptr::copy_nonoverlapping(segment.range.start as *const u8, copy as *mut u8, segment.range.len()) };
    // On small ones it would only be memory of its own, that a fork copies the whole page table of.
    if huge_bytes(start, &fs::read_to_string("/proc/self/smaps")?) != Some(size) {
        return Err(not_here());
    }
    // SAFETY: within the room, which is not written any more.
    check(unsafe { libc::mprotect(start as *mut libc::c_void, size, segment.protection) })?;
    let (from, to) = (start as *mut libc::c_void, place.start as *mut libc::c_void);
    // SAFETY: the same bytes are at every address of the segment before and after, and nothing else is in its huge pages. The
    // kernel looks at all that may fail before it unmaps what was there.
    let moved = unsafe { libc::mremap(from, size, size, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to) };
    if moved == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many bytes of the mapping at an address are on huge pages: `smaps` is /proc/self/smaps (proc_pid_smaps(5)).
fn huge_bytes(address: usize, smaps: &str) -> Option<usize> {
    let head = format!("{address:x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head)).skip(1);
    let kilobytes = lines.find_map(|line| line.strip_prefix("AnonHugePages:"))?;
    Some(kilobytes.trim().strip_suffix(" kB")?.parse::<usize>().ok()? << 10)
}

/// Memory of its own, unmapped as far as it is still there.
struct Room(usize, usize);

impl Room {
    fn new(size: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, where the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(start as usize, size)) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: what was moved away is not in this range any more; the rest nobody uses.
        let _ = unsafe { libc::munmap(self.0 as *mut libc::c_void, self.1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
400000-405000 r--p 00000000 fe:00 7 /bin/program
600000-740000 r-xp 00200000 fe:00 7 /bin/program
800000-900000 r--p 00400000 fe:00 7 /bin/program
900000-902000 rw-p 00500000 fe:00 7 /bin/program
7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0 [vdso]
";

    fn code(range: Range<usize>) -> Segment {
        Segment { range, protection: libc::PROT_READ | libc::PROT_EXEC }
    }

    #[test]
    fn a_segment_moves_if_its_huge_pages_are_its_own() {
        assert_eq!(place(&code(0x60_0000..0x73_f010), MAPS), Some(0x60_0000..0x80_0000));
        assert_eq!(place(&code(0x60_1100..0x73_f010), &MAPS.replace("600000-", "601000-")), Some(0x60_0000..0x80_0000));
        let constants = Segment { range: 0x40_0000..0x40_4e00, protection: libc::PROT_READ };
        assert_eq!(place(&constants, MAPS), Some(0x40_0000..0x60_0000));
    }

    #[test]
    fn a_segment_stays_if_something_else_is_there() {
        let shares = Segment { range: 0x80_0000..0x90_0000, protection: libc::PROT_READ };
        assert_eq!(place(&shares, MAPS), None, "what is written begins in the same huge page");
        assert_eq!(place(&code(0x60_0000..0x74_1000), MAPS), None, "part of it is not mapped");
        let segment = code(0x60_0000..0x73_f010);
        for other in ["rwxp", "r--p", "r-xs", "---p"] {
            assert_eq!(place(&segment, &MAPS.replacen("r-xp", other, 1)), None, "{other}");
        }
        assert_eq!(place(&segment, "nonsense"), None);
        assert_eq!(place(&segment, ""), None);
    }

    #[test]
    fn the_kernel_says_what_is_on_huge_pages() {
        let smaps = "\
200000-400000 rw-p 00000000 00:00 0
Size:               2048 kB
AnonHugePages:      2048 kB
400000-600000 rw-p 00000000 00:00 0
AnonHugePages:         0 kB
";
        assert_eq!(huge_bytes(0x20_0000, smaps), Some(HUGE));
        assert_eq!(huge_bytes(0x40_0000, smaps), Some(0));
        assert_eq!(huge_bytes(0x60_0000, smaps), None);
    }
}
