//! What a task can do with its worker's own sockets: say things that are no frames, half of one, too many; close them;
//! hand them to a process that stays.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsRawFd, FromRawFd},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tokio_run_in_process::{BlockingTask, Error, Phase, Signal, Task};

use crate::{
    harness::{eventually, is_alive, send_signal},
    oracle::undisturbed,
    tools::{Notes, note},
};

crate::cases![
    d43_garbage_instead_of_frames,
    d44_a_length_over_the_limit_costs_no_memory,
    d45_half_a_frame,
    d46_what_follows_the_first_result_does_not_count,
    d47_a_frame_that_comes_byte_by_byte,
    d53_a_worker_that_says_no_more,
    d54_a_worker_without_descriptors,
    d55_a_socket_under_another_number,
    d56_descriptors_from_a_worker,
    d58_a_grandchild_that_keeps_the_socket,
    d58_a_grandchild_that_talks_on;
    60 => d58_a_grandchild_that_floods_the_socket,
];

const JOB: i32 = 3;
const RETURNED: u64 = 2;
const LONG: Duration = Duration::from_secs(600);
const GRACE: Duration = Duration::from_millis(100);

/// A frame's header, of a task of some age.
pub(crate) fn header(kind: u64, length: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..8].copy_from_slice(&(kind | 1000 << 8).to_le_bytes());
    header[8..].copy_from_slice(&length.to_le_bytes());
    header
}

/// The frame of a result, a `u8`.
fn result(value: u8) -> Vec<u8> {
    [&header(RETURNED, 1)[..], &[value]].concat()
}

/// The worker's own socket, which this test gets hold of as hostile code would.
pub(crate) fn job() -> File {
    // SAFETY: nothing of the library's uses it until the task returns.
    let job = unsafe { File::from_raw_fd(JOB) };
    // So that a large write is a whole one.
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::fcntl(job.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    job
}

/// Writes as a hostile task does: whether anybody reads does not matter to it. The descriptor stays.
pub(crate) fn say(bytes: &[u8]) {
    let mut job = std::mem::ManuallyDrop::new(job());
    let _ = job.write_all(bytes);
}

/// What a hostile task does after it has spoken.
fn then(what: &str) -> u8 {
    match what {
        "stays" => std::thread::sleep(LONG),
        "exits" => std::process::exit(9),
        "crashes" => std::process::abort(),
        "panics" => panic!("in these words"),
        _ => {}
    }
    77
}

fn says(bytes: Vec<u8>, what: String) -> u8 {
    say(&bytes);
    then(&what)
}

/// The same by `run`, whose job is a quiet one, and by `open`: both read frames, each by its own code.
async fn both_ways(task: &Task, bytes: &[u8], what: &str) -> [Result<u8, Error>; 2] {
    let run = task.run_blocking(says, (bytes.to_vec(), what.to_owned())).await;
    let open = task.open_blocking(says, (bytes.to_vec(), what.to_owned()));
    let open = async { open.await?.wait().await }.await;
    [run, open]
}

/// The words of a breach of the protocol.
fn breach(outcome: Result<u8, Error>) -> String {
    match outcome.unwrap_err() {
        Error::Protocol { reason, .. } => reason,
        error => panic!("{error:?}"),
    }
}

fn d43_garbage_instead_of_frames() {
    undisturbed(|| async {
        let task = Task::new().grace_period(GRACE);
        // Less than a header says nothing yet.
        for size in [16_usize, 17, 100, 4096, 65_536] {
            for what in ["stays", "returns", "exits"] {
                for reason in both_ways(&task, &vec![0xa5; size], what).await.map(breach) {
                    assert!(reason.contains("unknown kind"), "{size}: {reason}");
                }
            }
        }
        fn says_a_lot(what: String) -> u8 {
            says(vec![0xa5; 16 << 20], what)
        }
        for what in ["stays", "returns", "exits"] {
            let reason = breach(task.run_blocking(says_a_lot, what.to_owned()).await);
            assert!(reason.contains("unknown kind"), "{reason}");
        }
    });
}

/// The most memory that this process had resident, in kilobytes.
pub(crate) fn peak() -> u64 {
    field("VmHWM:")
}

pub(crate) fn field(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn d44_a_length_over_the_limit_costs_no_memory() {
    undisturbed(|| async {
        let limit = 1 << 30;
        let task = Task::new().grace_period(GRACE).result_limit(limit);
        let _ = both_ways(&task, &header(RETURNED, limit + 1), "stays").await.map(breach);
        let (before, reserved) = (peak(), field("VmPeak:"));
        for length in [limit + 1, 1 << 40, 1 << 63, u64::MAX] {
            for reason in both_ways(&task, &header(RETURNED, length), "stays").await.map(breach) {
                assert!(reason.contains(&format!("{length} bytes where {limit} are allowed")), "{reason}");
            }
            // A report may have a megabyte at most, whatever a result may have; and no more than its header may follow
            // the others.
            for (kind, allowed) in [(3, 1 << 20), (4, 0), (5, 1 << 20)] {
                for reason in both_ways(&task, &header(kind, length), "stays").await.map(breach) {
                    assert!(reason.contains(&format!("where {allowed} are allowed")), "{reason}");
                }
            }
        }
        // As much as is allowed is announced, and next to nothing comes: memory grows with what comes.
        let hasty = task.clone().timeout(Duration::from_millis(200));
        let few = [&header(RETURNED, limit)[..], &[1; 1000]].concat();
        for outcome in both_ways(&hasty, &few, "stays").await {
            assert!(outcome.unwrap_err().is_timeout());
        }
        let (after, reserved_after) = (peak(), field("VmPeak:"));
        assert!(after < before + (8 << 10), "{before} kB became {after} kB");
        assert!(reserved_after < reserved + (256 << 10), "{reserved} kB became {reserved_after} kB");
    });
}

fn d45_half_a_frame() {
    undisturbed(|| async {
        let task = Task::new().grace_period(GRACE);
        let whole = [&header(RETURNED, 100)[..], &[1; 100]].concat();
        for cut in [1, 15, 16, 17, 115] {
            let half = &whole[..cut];
            for outcome in both_ways(&task, half, "exits").await {
                assert_eq!(outcome.unwrap_err().exit_code(), Some(9), "{cut}");
            }
            for outcome in both_ways(&task, half, "crashes").await {
                assert_eq!(outcome.unwrap_err().signal(), Some(Signal::ABRT), "{cut}");
            }
            for outcome in both_ways(&task.clone().timeout(Duration::from_millis(100)), half, "stays").await {
                let error = outcome.unwrap_err();
                assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{cut}: {error:?}");
            }
        }
        // What the library sends at the end is taken for the rest of it: a length that is too large, or never comes.
        for outcome in both_ways(&task, &header(RETURNED, 1)[..8], "returns").await {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::Protocol { .. } | Error::Exited { code: 0, .. }), "{error:?}");
        }
    });
}

fn d46_what_follows_the_first_result_does_not_count() {
    undisturbed(|| async {
        let task = Task::new().grace_period(GRACE);
        let more = [result(6), header(3, 1 << 20).to_vec(), header(RETURNED, u64::MAX).to_vec(), vec![0xff; 300_000]];
        for what in ["stays", "returns", "exits", "crashes", "panics"] {
            for more in &more {
                let bytes = [result(5), more.clone()].concat();
                for outcome in both_ways(&task, &bytes, what).await {
                    assert_eq!(outcome.unwrap(), 5, "then it {what}");
                }
            }
            for outcome in both_ways(&task, &result(5), what).await {
                assert_eq!(outcome.unwrap(), 5, "then it {what}");
            }
            // Nor does it after a self-made cancellation.
            for outcome in both_ways(&task, &[header(4, 0).to_vec(), result(5)].concat(), what).await {
                assert!(outcome.unwrap_err().is_cancelled(), "then it {what}");
            }
        }
        // It began before it was asked to, or begins twice.
        let again = header(1, 0);
        let open = task.open_blocking(says, (again.to_vec(), "stays".to_owned())).await.unwrap();
        assert!(breach(open.wait().await).contains("Executing where Terminal"));
    });
}

fn byte_by_byte(bytes: Vec<u8>) -> u8 {
    for byte in bytes {
        say(&[byte]);
        std::thread::sleep(Duration::from_millis(1));
    }
    then("stays")
}

fn d47_a_frame_that_comes_byte_by_byte() {
    undisturbed(|| async {
        let task = Task::new().grace_period(GRACE);
        let text = "x".repeat(300);
        // As the codec has it: a length in three bytes, then the text.
        let body = [&[251, 44, 1][..], text.as_bytes()].concat();
        let bytes = [&header(RETURNED, body.len() as u64)[..], &body].concat();
        let slow = |bytes: Vec<u8>| -> String { format!("{}", byte_by_byte(bytes)) };
        assert_eq!(task.run_blocking(slow, bytes.clone()).await.unwrap(), text);
        assert_eq!(task.open_blocking(slow, bytes).await.unwrap().wait().await.unwrap(), text);
    });
}

fn shuts_down(what: String) -> u8 {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::shutdown(JOB, libc::SHUT_WR) }, 0);
    then(&what)
}

/// Its end says nothing about the task, which may be busy: how the process ends is the outcome, or a limit is.
fn d53_a_worker_that_says_no_more() {
    undisturbed(|| async { silent(shuts_down).await });
}

fn closes_all(what: String) -> u8 {
    for number in 0..1024 {
        // SAFETY: a plain function, which uses none of them.
        unsafe { libc::close(number) };
    }
    then(&what)
}

fn d54_a_worker_without_descriptors() {
    undisturbed(|| async { silent(closes_all).await });
}

async fn silent<F: BlockingTask<String, fn(String), Output = u8>>(task: F) {
    let gentle = Task::new().grace_period(GRACE);
    let hasty = gentle.clone().timeout(Duration::from_millis(200));
    for by_open in [false, true] {
        let run = async |options: &Task, what: &str| match by_open {
            false => options.run_blocking(task, what.to_owned()).await,
            true => options.open_blocking(task, what.to_owned()).await?.wait().await,
        };
        // Its value has no way back.
        assert_eq!(run(&gentle, "returns").await.unwrap_err().exit_code(), Some(0));
        assert_eq!(run(&gentle, "exits").await.unwrap_err().exit_code(), Some(9));
        assert_eq!(run(&gentle, "crashes").await.unwrap_err().signal(), Some(Signal::ABRT));
        assert_eq!(run(&gentle, "panics").await.unwrap_err().exit_code(), Some(101));
        let error = run(&hasty, "stays").await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{error:?}");
    }
    // It can be ended, by a signal: there is nothing left that could be closed.
    let process = gentle.open_blocking(task, "stays".to_owned()).await.unwrap();
    let pid = process.pid();
    assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    assert!(process.wait().await.unwrap_err().is_cancelled());
    drop(gentle.open_blocking(task, "stays".to_owned()).await.unwrap());
    eventually("it is gone", || !is_alive(pid)).await;
}

/// Starts a process outside the worker's session and group, which has all the worker's descriptors and does this.
pub(crate) fn daemon(path: &str, body: impl FnOnce()) {
    use crate::forks::{exit, fork, wait_for};
    let child = fork();
    if child == 0 {
        // SAFETY: touches no memory.
        unsafe { libc::setsid() };
        if fork() == 0 {
            note(path, &format!(" pid={} ready ", std::process::id()));
            body();
            exit(0);
        }
        exit(0);
    }
    assert_eq!(wait_for(child), 0);
    let start = Instant::now();
    while !std::fs::read_to_string(path).unwrap_or_default().contains("ready") {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends what a task left behind.
pub(crate) fn end(notes: &Notes) {
    for pid in notes.pids() {
        if is_alive(pid) {
            send_signal(pid, libc::SIGKILL);
        }
    }
}

fn leaves_a_daemon(path: String, what: String) -> u8 {
    daemon(&path, || std::thread::sleep(LONG));
    then(&what)
}

fn on_stdin(path: String, what: String) -> u8 {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::dup2(JOB, 0) }, 0);
    leaves_a_daemon(path, what)
}

fn d55_a_socket_under_another_number() {
    undisturbed(|| async { kept(on_stdin, "d55").await });
}

fn d58_a_grandchild_that_keeps_the_socket() {
    undisturbed(|| async { kept(leaves_a_daemon, "d58").await });
}

async fn kept<F: BlockingTask<(String, String), fn(String, String), Output = u8>>(task: F, name: &str) {
    let gentle = Task::new().grace_period(GRACE);
    for what in ["returns", "exits", "crashes", "panics", "stays"] {
        for by_open in [false, true] {
            let notes = Notes::new(&format!("{name}-{what}-{by_open}"));
            let arguments = (notes.path(), what.to_owned());
            let outcome = match (by_open, what) {
                (false, "stays") => {
                    gentle.clone().timeout(Duration::from_millis(500)).run_blocking(task, arguments).await
                }
                (false, _) => gentle.run_blocking(task, arguments).await,
                (true, _) => {
                    let process = gentle.open_blocking(task, arguments).await.unwrap();
                    if what == "stays" {
                        notes.say("ready").await;
                        process.shutdown().await;
                    }
                    process.exited().await;
                    process.wait().await
                }
            };
            let fine = match (what, &outcome) {
                ("returns", Ok(77)) => true,
                ("exits", Err(error)) => error.exit_code() == Some(9),
                ("crashes", Err(error)) => error.signal() == Some(Signal::ABRT),
                ("panics", Err(error)) => error.is_panic(),
                ("stays", Err(error)) => error.is_cancelled() || !by_open && error.is_timeout(),
                _ => false,
            };
            assert!(fine, "{what}, by open {by_open}: {outcome:?}");
            assert_eq!(notes.pids().len(), 1);
            end(&notes);
        }
    }
}

/// What is said by another process after the worker is dead is nobody's word, unless it was there in time.
fn d58_a_grandchild_that_talks_on() {
    fn task(path: String, what: String) -> u8 {
        daemon(&path, || {
            loop {
                say(&[0xee; 1000]);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        then(&what)
    }
    undisturbed(|| async {
        let gentle = Task::new().grace_period(GRACE);
        for what in ["exits", "returns", "stays"] {
            for by_open in [false, true] {
                let notes = Notes::new(&format!("d58-talks-{what}-{by_open}"));
                let arguments = (notes.path(), what.to_owned());
                let outcome = match by_open {
                    false => gentle.run_blocking(task, arguments).await,
                    true => async { gentle.open_blocking(task, arguments).await?.wait().await }.await,
                };
                match outcome {
                    Ok(77) => assert_eq!(what, "returns"),
                    Err(Error::Protocol { reason, .. }) => assert!(reason.contains("unknown kind"), "{reason}"),
                    Err(error) => assert_eq!((what, error.exit_code()), ("exits", Some(9)), "{error:?}"),
                    other => panic!("{other:?}"),
                }
                end(&notes);
            }
        }
    });
}

/// Ticks every five milliseconds on the runtime that calls it, and gives the longest gap when it is told to end.
pub(crate) struct Heartbeat(oneshot::Sender<()>, tokio::task::JoinHandle<Duration>);

impl Heartbeat {
    pub(crate) fn start() -> Self {
        let (end, mut ended) = oneshot::channel();
        let beats = tokio::spawn(async move {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while ended.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            longest
        });
        Self(end, beats)
    }

    pub(crate) async fn end(self) -> Duration {
        let _ = self.0.send(());
        self.1.await.unwrap()
    }
}

/// The worker announces all that it may send, and is dead; what it left behind sends as fast as it can. It is not heard
/// to its end.
fn d58_a_grandchild_that_floods_the_socket() {
    fn task(path: String, limit: u64) -> u8 {
        say(&header(RETURNED, limit));
        daemon(&path, || {
            let bytes = vec![7; 1 << 20];
            loop {
                say(&bytes);
            }
        });
        then("exits")
    }
    undisturbed(|| async {
        let limit = 16 << 30;
        let task_of = Task::new().grace_period(GRACE).result_limit(limit);
        for by_open in [false, true] {
            let notes = Notes::new(&format!("d58-floods-{by_open}"));
            let (before, heart, start) = (peak(), Heartbeat::start(), Instant::now());
            let outcome = match by_open {
                false => task_of.run_blocking(task, (notes.path(), limit)).await,
                true => async { task_of.open_blocking(task, (notes.path(), limit)).await?.wait().await }.await,
            };
            let took = start.elapsed();
            let gap = heart.end().await;
            end(&notes);
            println!("by open {by_open}: {took:?}, longest gap {gap:?}, {} MB more", (peak() - before) >> 10);
            assert_eq!(outcome.unwrap_err().exit_code(), Some(9));
            assert!(gap < Duration::from_secs(2), "{gap:?}");
        }
    });
}

/// Sends a descriptor with one byte, and gives the error number.
fn send_descriptor(fd: i32) -> i32 {
    let mut byte = 0xa5_u8;
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0_u64; 8];
    // SAFETY: plain numbers and pointers, all of which may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: a computation.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as _;
    // SAFETY: a live message.
    let head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the control buffer is large enough for one header and one descriptor.
    let head = unsafe { &mut *head };
    (head.cmsg_level, head.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    // SAFETY: a computation.
    head.cmsg_len = unsafe { libc::CMSG_LEN(4) } as _;
    // SAFETY: a computation.
    let data = unsafe { libc::CMSG_DATA(head) };
    // SAFETY: as above.
    unsafe { data.cast::<i32>().write_unaligned(fd) };
    // SAFETY: a live message.
    let sent = unsafe { libc::sendmsg(JOB, &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
}

/// Where the kernel lets them through they are closed unread: the oracle counts.
fn d56_descriptors_from_a_worker() {
    undisturbed(|| async {
        let sends = |count: u32| {
            // SAFETY: touches no memory.
            unsafe { libc::fcntl(JOB, libc::F_SETFL, 0) };
            let null = File::open("/dev/null").unwrap();
            let errors = (0..count).map(|_| send_descriptor(null.as_raw_fd())).collect::<Vec<_>>();
            (errors.iter().all(|&error| error == libc::EPERM), errors.contains(&0))
        };
        for count in [1, 100] {
            for by_open in [false, true] {
                let outcome = match by_open {
                    false => Task::new().run_blocking(sends, count).await,
                    true => async { Task::new().open_blocking(sends, count).await?.wait().await }.await,
                };
                match outcome {
                    Ok((refused, sent)) => assert!(refused && !sent),
                    // The bytes that came with them are no frame, or are the beginning of one.
                    Err(error) => {
                        assert_ne!(crate::harness::capabilities(), "all", "the kernel should refuse: {error:?}");
                        assert!(matches!(error, Error::Protocol { .. } | Error::Exited { code: 0, .. }), "{error:?}");
                    }
                }
            }
        }
    });
}
