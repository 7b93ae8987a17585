//! What a worker finds: its descriptors, signals, hash keys and random numbers, whatever the parent did before `init`
//! or after it.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
    time::Duration,
};

use tokio_run_in_process::{Stdio, Task, Zygote, open_in_process, run_blocking_in_process, run_in_process};

use crate::{
    harness::{capabilities, descriptors, helper, multi_thread, send_signal, skip},
    oracle::undisturbed,
};

crate::cases![
    a_blocking_task_holds_its_own_descriptors_only,
    a_task_holds_besides_what_its_runtime_opens,
    workers_among_siblings_hold_their_own_descriptors_only,
    a_runtime_used_before_init_does_not_matter,
    signals_are_as_in_a_fresh_program,
    sigpipe_stays_as_it_was_at_init,
    a_worker_leads_its_session,
    hash_keys_and_random_numbers_differ,
    a_worker_is_born_with_its_code_mapped,
    code_that_was_patched_stays_as_it_is,
];
crate::helpers![counts_its_faults];

fn open_files() -> Vec<i32> {
    (0..10).map(|_| std::fs::File::open("/etc/passwd").unwrap().into_raw_fd()).collect()
}

pub(crate) fn own() -> Vec<(u32, String)> {
    descriptors(std::process::id())
}

pub(crate) fn numbers(found: &[(u32, String)]) -> Vec<u32> {
    found.iter().map(|&(number, _)| number).collect()
}

/// What descriptors are, without what tells two of a kind apart: sorted.
fn kinds(found: &[(u32, String)]) -> Vec<String> {
    let mut kinds: Vec<_> = found.iter().map(|(_, target)| target.split(":[").next().unwrap().to_owned()).collect();
    kinds.sort();
    kinds
}

/// Opens what a program may have open, inheritable too, and a listening socket.
fn clutter() -> std::net::TcpListener {
    for fd in open_files() {
        // SAFETY: touches no memory.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    // Far above the others.
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::dup2(0, 900) }, 900);
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

fn a_blocking_task_holds_its_own_descriptors_only() {
    let _listener = clutter();
    undisturbed(|| async {
        let after = open_files();
        let found = run_blocking_in_process(own, ()).await.unwrap();
        assert_eq!(numbers(&found), [0, 1, 2, 3], "{found:?}");
        assert_eq!(found[0].1, "/dev/null");
        assert!(found[3].1.starts_with("socket:"), "{found:?}");
        let piped = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let found = piped.run_blocking(own, ()).await.unwrap();
        assert_eq!(numbers(&found), [0, 1, 2, 3], "{found:?}");
        assert!(found[..3].iter().all(|(_, target)| target.starts_with("pipe:")), "{found:?}");
        for fd in after {
            // SAFETY: opened above, owned by nobody.
            assert_eq!(unsafe { libc::close(fd) }, 0);
        }
    });
}

fn a_task_holds_besides_what_its_runtime_opens() {
    let _listener = clutter();
    undisturbed(|| async {
        let after = open_files();
        let opens = || {
            let before = own();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let with = own();
            drop(runtime);
            with.into_iter().filter(|descriptor| !before.contains(descriptor)).collect::<Vec<_>>()
        };
        let runtimes = run_blocking_in_process(opens, ()).await.unwrap();
        let found = run_in_process(async || own(), ()).await.unwrap();
        assert_eq!(numbers(&found)[..4], [0, 1, 2, 3], "{found:?}");
        assert_eq!(kinds(&found[4..]), kinds(&runtimes), "{found:?}");
        // Nor does waiting for its signals take another one.
        let waited = async || {
            tokio::time::sleep(Duration::from_millis(1)).await;
            own()
        };
        assert_eq!(kinds(&run_in_process(waited, ()).await.unwrap()), kinds(&found));
        for fd in after {
            // SAFETY: opened above, owned by nobody.
            assert_eq!(unsafe { libc::close(fd) }, 0);
        }
    });
}

fn workers_among_siblings_hold_their_own_descriptors_only() {
    undisturbed(|| async {
        let tasks: Vec<_> = (0..200).map(|_| tokio::spawn(run_blocking_in_process(own, ()))).collect();
        let mut sockets = HashSet::new();
        for task in tasks {
            let found = task.await.unwrap().unwrap();
            assert_eq!(numbers(&found), [0, 1, 2, 3], "{found:?}");
            sockets.insert(found[3].1.clone());
        }
        assert_eq!(sockets.len(), 200);
    });
}

/// tokio keeps a socket pair for signals in a static, which a worker inherits without the descriptors.
fn a_runtime_used_before_init_does_not_matter() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    drop(runtime);
    undisturbed(|| async {
        let naps = async || {
            let (mut a, mut b) = tokio::net::UnixStream::pair().unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut a, b"x").await.unwrap();
            tokio::io::AsyncReadExt::read_u8(&mut b).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            7
        };
        for _ in 0..20 {
            assert_eq!(run_in_process(naps, ()).await.unwrap(), 7);
        }
        let process = open_in_process(async || std::future::pending::<()>().await, ()).await.unwrap();
        process.terminate().unwrap();
        assert_eq!(process.wait().await.unwrap_err().signal(), Some(tokio_run_in_process::Signal::TERM));
        let child = async || tokio::process::Command::new("true").status().await.is_ok_and(|status| status.success());
        assert!(run_in_process(child, ()).await.unwrap(), "a task that uses tokio's signals");
    });
}

/// Pending, blocked, ignored and caught signals, as /proc has them.
pub(crate) fn signals() -> [u64; 4] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    [field("SigPnd:") | field("ShdPnd:"), field("SigBlk:"), field("SigIgn:"), field("SigCgt:")]
}

pub(crate) const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The C library's own two, which it does not let a program set: what runs the test may have left one ignored.
pub(crate) const LIBC: u64 = bit(32) | bit(33);

/// SIGIO has a handler where the kernel cannot kill by itself.
pub(crate) fn allowed() -> u64 {
    LIBC | if capabilities() == "all" { 0 } else { bit(libc::SIGIO) }
}

extern "C" fn nothing(_: libc::c_int) {}

fn signals_are_as_in_a_fresh_program() {
    let set = |signal, action| {
        // SAFETY: the action is a function, or one of the constants.
        unsafe { libc::signal(signal, action) };
    };
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGCHLD, libc::SIGTERM] {
        set(signal, libc::SIG_IGN);
    }
    for signal in [libc::SIGUSR1, libc::SIGALRM, 64] {
        set(signal, nothing as *const () as libc::sighandler_t);
    }
    let mut all = std::mem::MaybeUninit::uninit();
    // SAFETY: room for a set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set is initialised by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
    send_signal(std::process::id(), libc::SIGUSR2);
    undisturbed(|| async {
        let [pending, blocked, ignored, caught] = run_in_process(async || signals(), ()).await.unwrap();
        assert_eq!((pending, blocked, ignored & !LIBC), (0, 0, bit(libc::SIGPIPE)));
        assert_eq!(caught & !allowed(), bit(libc::SIGTERM) | bit(libc::SIGINT), "{caught:x}");
        let [pending, blocked, ignored, caught] = run_blocking_in_process(signals, ()).await.unwrap();
        assert_eq!((pending, blocked, ignored & !LIBC), (0, 0, bit(libc::SIGPIPE)));
        assert_eq!(caught & !allowed(), 0, "{caught:x}");
    });
}

fn sigpipe_stays_as_it_was_at_init() {
    // SAFETY: the default action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    undisturbed(|| async {
        // SAFETY: later changes are the parent's alone.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        assert_eq!(run_in_process(async || signals()[2] & !LIBC, ()).await.unwrap(), 0);
        let writes = || {
            // A pipe: std's sockets ask the kernel for no signal.
            let mut ends = [0; 2];
            // SAFETY: room for two descriptors.
            assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
            // SAFETY: just made, nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(ends[0]) });
            // SAFETY: as above.
            let mut writer = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(ends[1]) });
            std::io::Write::write_all(&mut writer, b"x").is_err()
        };
        let error = run_blocking_in_process(writes, ()).await.unwrap_err();
        assert_eq!(error.signal(), Some(tokio_run_in_process::Signal::PIPE));
    });
}

fn a_worker_leads_its_session() {
    undisturbed(|| async {
        let ids = || {
            // SAFETY: touches no memory.
            let session = unsafe { libc::getsid(0) };
            // SAFETY: touches no memory.
            let group = unsafe { libc::getpgid(0) };
            (i32::try_from(std::process::id()).unwrap(), session, group)
        };
        let (pid, session, group) = run_blocking_in_process(ids, ()).await.unwrap();
        assert_eq!((session, group), (pid, pid));
    });
}

/// What should be drawn anew in every process: hash keys, a thread's generator, one more draw of it.
pub(crate) fn draws() -> [u64; 3] {
    [RandomState::new().hash_one(1), rand::random(), rand::Rng::random(&mut rand::rng())]
}

fn hash_keys_and_random_numbers_differ() {
    let mut seen = HashSet::new();
    let mut see = |drawn: [u64; 3]| assert!(drawn.into_iter().all(|number| seen.insert(number)), "drawn twice");
    see(draws());
    undisturbed(|| async {
        see(draws());
        // Its zygote is forked from the first one.
        let second = Zygote::builder().start().unwrap();
        let threaded = || std::thread::spawn(draws).join().unwrap();
        for _ in 0..50 {
            see(run_in_process(async || draws(), ()).await.unwrap());
            see(run_blocking_in_process(draws, ()).await.unwrap());
            see(run_blocking_in_process(threaded, ()).await.unwrap());
            see(second.run_in_process(async || draws(), ()).await.unwrap());
        }
        let spawned = async || (draws(), tokio::spawn(async { draws() }).await.unwrap());
        let (_, spawned) = run_in_process(spawned, ()).await.unwrap();
        see(spawned);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(null.as_raw_fd() > 2);
    });
}

/// Page faults of this process so far.
async fn faults() -> i64 {
    // SAFETY: plain numbers, all of which may be zero.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a live struct to fill.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) }, 0);
    usage.ru_minflt
}

/// As a program: prints how many faults a worker needs up to its task, with the capabilities it is told to have.
fn counts_its_faults() {
    let zygotes = [0, 1].map(|_| Zygote::builder().warm(0).start().unwrap());
    for zygote in zygotes {
        multi_thread().block_on(async {
            let mut least = i64::MAX;
            for _ in 0..5 {
                least = least.min(zygote.run_in_process(faults, ()).await.unwrap());
            }
            println!("{least}");
        });
    }
}

/// Whether this kernel has guard pages in mappings of files (Linux 6.15).
fn has_guards() -> bool {
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let (kind, access) = (libc::MAP_PRIVATE, libc::PROT_READ);
    // SAFETY: a mapping of its own.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, kind, file.as_raw_fd(), 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: nobody else knows of the page. MADV_GUARD_INSTALL.
    unsafe { libc::madvise(page, 4096, 102) == 0 }
}

fn a_worker_is_born_with_its_code_mapped() {
    if capabilities() != "all" || !has_guards() {
        skip("this kernel cannot");
    }
    let count = |capabilities| -> Vec<i64> {
        let output = helper("counts_its_faults").env("TOKIO_RUN_IN_PROCESS_TEST_CAPS", capabilities).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    };
    let (all, none) = (count("all"), count("none"));
    // The second zygote has it from the first.
    for (all, none) in all.iter().zip(&none) {
        assert!(all + 10 < *none, "{all} faults of {none}");
    }
    assert_eq!((all.len(), none.len()), (2, 2));
}

/// Whether the page of `patched` is a copy of this process, and not the file's.
async fn is_patched() -> bool {
    use std::os::unix::fs::FileExt;
    let mut word = [0; 8];
    let map = std::fs::File::open("/proc/self/pagemap").unwrap();
    map.read_exact_at(&mut word, (page_of_patched() / 4096 * 8) as u64).unwrap();
    // The page is mapped, for it runs.
    patched();
    u64::from_le_bytes(word) & (1 << 63 | 1 << 61) == 1 << 63
}

#[inline(never)]
fn patched() {
    std::hint::black_box(());
}

fn page_of_patched() -> usize {
    patched as *const () as usize / 4096 * 4096
}

/// Writes to this program's code, and leaves it as it is.
pub(crate) fn patch() {
    let page = page_of_patched() as *mut libc::c_void;
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: the page stays as it is, and is written to below only.
    if unsafe { libc::mprotect(page, 4096, all) } != 0 {
        skip("code cannot be written to here");
    }
    let byte = page.cast::<u8>();
    // SAFETY: a byte of the page.
    let same = unsafe { byte.read_volatile() };
    // SAFETY: the page can be written to; there is one thread.
    unsafe { byte.write_volatile(same) };
    // SAFETY: as it was.
    assert_eq!(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) }, 0);
}

fn code_that_was_patched_stays_as_it_is() {
    patch();
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        for _ in 0..3 {
            assert!(zygote.run_in_process(is_patched, ()).await.unwrap());
        }
    });
}
