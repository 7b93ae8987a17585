//! The task itself fails: panics, exits, signals, and what it does to its own process.

use std::{
    io::Write,
    os::fd::FromRawFd,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::AsyncReadExt;
use tokio_run_in_process::{
    Coded, Error, ExitStatus, Signal, Stdio, Task, default_zygote, open_blocking_in_process, open_in_process,
    run_blocking_in_process, run_in_process, worker,
};

use crate::{
    harness::{children, eventually, without_warm_workers},
    oracle::undisturbed,
    tools::{Notes, note},
};

crate::cases![
    a01_a_panic_comes_back_with_its_text,
    a02_a_panic_without_text,
    a03_a_panic_while_panicking_aborts,
    a05_panics_beside_the_task_are_its_own_business,
    a06_a_panic_in_serialize,
    a07_a_panic_in_deserialize_of_the_arguments,
    a08_a_panic_in_deserialize_of_the_result,
    a09_a_stack_that_overflows,
    a10_exit_0_without_a_result_is_no_result,
    a12_odd_ways_to_exit,
    a14_what_would_crash_after_the_result_does_not_run,
    a14_a_crash_in_the_results_destructor_is_the_outcome,
    a15_a_worker_that_stays_after_its_result,
    a16_a_task_that_never_yields,
    a17_a_task_that_becomes_another_program,
    a18_what_a_task_does_to_its_process_stays_there;
    90 => a11_every_exit_code_comes_back,
    a11_every_exit_code_comes_back_after_terminate,
    a13_every_terminating_signal_comes_back,
    a13_every_signal_sent_from_outside_comes_back,
    a13_every_terminating_signal_comes_back_after_terminate,
];

fn a01_a_panic_comes_back_with_its_text() {
    undisturbed(|| async {
        let neighbour =
            open_in_process(async || tokio::time::sleep(Duration::from_millis(200)).await, ()).await.unwrap();
        let error = run_in_process(async || -> u8 { panic!("plain") }, ()).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "plain");
        let error = run_in_process(async |n: u8| -> u8 { panic!("formatted {n}") }, 7).await.unwrap_err();
        let report = error.panic().unwrap();
        assert_eq!(report.message(), "formatted 7");
        assert!(report.location().unwrap().contains("faults_task.rs:"), "{report:?}");
        let error = run_blocking_in_process(|n: u8| -> u8 { panic!("blocking {n}") }, 8).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "blocking 8");
        neighbour.wait().await.unwrap();
    });
}

struct DropsBadly;

impl Drop for DropsBadly {
    fn drop(&mut self) {
        panic!("in the payload's destructor");
    }
}

fn a02_a_panic_without_text() {
    undisturbed(|| async {
        let error = run_in_process(async || -> u8 { std::panic::panic_any(5_u32) }, ()).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "<non-string>");
        let error = run_in_process(async || -> u8 { std::panic::panic_any(DropsBadly) }, ()).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "<non-string>");
    });
}

fn a03_a_panic_while_panicking_aborts() {
    undisturbed(|| async {
        let twice = async || -> u8 {
            let _bad = DropsBadly;
            panic!("the first one");
        };
        let process = Task::new().stderr(Stdio::piped()).open(twice, ()).await.unwrap();
        let mut text = String::new();
        process.take_stderr().unwrap().read_to_string(&mut text).await.unwrap();
        assert!(text.contains("the first one") && text.contains("in the payload's destructor"), "{text}");
        assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::ABRT));
    });
}

static LOCK: Mutex<u32> = Mutex::new(0);

fn a05_panics_beside_the_task_are_its_own_business() {
    undisturbed(|| async {
        let holding = async || -> u8 {
            let _guard = LOCK.lock().unwrap();
            panic!("with a lock");
        };
        assert!(run_in_process(holding, ()).await.unwrap_err().is_panic());
        let locked = async || *LOCK.lock().unwrap();
        assert_eq!(run_in_process(locked, ()).await.unwrap(), 0, "the next worker's lock is not poisoned");
        drop(LOCK.lock().unwrap());
        let beside = async || {
            let thread = std::thread::spawn(|| panic!("in a thread")).join().is_err();
            let task = tokio::spawn(async { panic!("in a spawned task") }).await.is_err();
            std::thread::spawn(|| panic!("in a thread that nobody joins"));
            tokio::spawn(async { panic!("in a task that nobody joins") });
            tokio::task::yield_now().await;
            (thread, task)
        };
        assert_eq!(run_in_process(beside, ()).await.unwrap(), (true, true));
    });
}

/// Panics when it is encoded, or decoded in one kind of process.
#[derive(Debug, Default)]
struct Touchy {
    encode: bool,
    decode_in_worker: bool,
    decode_in_parent: bool,
}

impl Serialize for Touchy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!self.encode, "encoding");
        (self.encode, self.decode_in_worker, self.decode_in_parent).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (encode, decode_in_worker, decode_in_parent): (bool, bool, bool) = Deserialize::deserialize(deserializer)?;
        assert!(!(decode_in_worker && worker::is_worker()), "decoding in the worker");
        assert!(!decode_in_parent || worker::is_worker(), "decoding in the parent");
        Ok(Self { encode, decode_in_worker, decode_in_parent })
    }
}

fn a06_a_panic_in_serialize() {
    undisturbed(|| async {
        let error = run_in_process(async || Touchy { encode: true, ..Touchy::default() }, ()).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "encoding");
    });
}

fn a07_a_panic_in_deserialize_of_the_arguments() {
    undisturbed(|| async {
        let arguments = Touchy { decode_in_worker: true, ..Touchy::default() };
        let error = run_in_process(async |_: Touchy| (), arguments).await.unwrap_err();
        assert_eq!(error.panic().unwrap().message(), "decoding in the worker");
    });
}

fn a08_a_panic_in_deserialize_of_the_result() {
    undisturbed(|| async {
        let bad = async || Touchy { decode_in_parent: true, ..Touchy::default() };
        let error = run_in_process(bad, ()).await.unwrap_err();
        assert!(matches!(error, Error::Decode { what: Coded::Result, .. }), "{error:?}");
        let process = open_in_process(bad, ()).await.unwrap();
        for _ in 0..2 {
            assert!(matches!(process.wait().await, Err(Error::Decode { what: Coded::Result, .. })));
            assert!(matches!(process.try_wait(), Some(Err(Error::Decode { what: Coded::Result, .. }))));
        }
    });
}

#[expect(unconditional_recursion, reason = "that is its purpose")]
fn dig(n: u64) -> u64 {
    let bytes = std::hint::black_box([n; 64]);
    dig(bytes[7] + 1) + bytes[3]
}

fn a09_a_stack_that_overflows() {
    undisturbed(|| async {
        let overflowed = |error: Error| matches!(error.signal(), Some(Signal::SEGV | Signal::ABRT));
        assert!(overflowed(run_in_process(async || dig(0), ()).await.unwrap_err()));
        assert!(overflowed(run_blocking_in_process(|| dig(0), ()).await.unwrap_err()));
        let threaded = || std::thread::Builder::new().stack_size(64 << 10).spawn(|| dig(0)).unwrap().join().is_ok();
        assert!(overflowed(run_blocking_in_process(threaded, ()).await.unwrap_err()));
    });
}

fn a10_exit_0_without_a_result_is_no_result() {
    undisturbed(|| async {
        for error in [
            run_in_process(async || -> u8 { std::process::exit(0) }, ()).await.unwrap_err(),
            run_blocking_in_process(|| -> u8 { std::process::exit(0) }, ()).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::Exited { code: 0, .. }), "{error:?}");
        }
    });
}

fn a11_every_exit_code_comes_back() {
    undisturbed(|| async {
        let leave = async |code: i32| -> u8 { std::process::exit(code) };
        let tasks: Vec<_> = (0..=255).map(|code| (code, tokio::spawn(run_in_process(leave, code)))).collect();
        for (code, task) in tasks {
            assert_eq!(task.await.unwrap().unwrap_err().exit_code(), Some(code));
        }
        // SAFETY: it ends the process.
        let leave = |code: i32| -> u8 { unsafe { libc::_exit(code) } };
        for code in [0, 1, 127, 128, 255] {
            let process = open_blocking_in_process(leave, code).await.unwrap();
            assert_eq!(process.wait().await.unwrap_err().exit_code(), Some(code));
            assert_eq!(process.exited().await.0, ExitStatus::Exited(code));
        }
    });
}

/// Says on stdout that SIGTERM is taken over, waits for it, and then ends as `end` says.
async fn end_after_sigterm(end: impl FnOnce()) {
    let mut terminated = worker::signal(Signal::TERM).unwrap();
    println!("ready");
    std::io::stdout().flush().unwrap();
    terminated.recv().await;
    end();
    std::future::pending().await
}

/// Terminates a task once it is ready for that, and gives its outcome and its exit.
async fn terminated(
    task: impl Future<Output = Result<tokio_run_in_process::Process<()>, Error>>,
) -> (Error, ExitStatus) {
    let process = task.await.unwrap();
    let mut ready = [0; 6];
    process.take_stdout().unwrap().read_exact(&mut ready).await.unwrap();
    process.terminate().unwrap();
    (process.wait().await.unwrap_err(), process.exited().await.0)
}

fn a11_every_exit_code_comes_back_after_terminate() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped());
        let end = async |code: i32| end_after_sigterm(|| std::process::exit(code)).await;
        let tasks: Vec<_> = (0..=255).map(|code| (code, tokio::spawn(terminated(task.open(end, code))))).collect();
        for (code, task) in tasks {
            let (error, status) = task.await.unwrap();
            assert_eq!((error.exit_code(), status), (Some(code), ExitStatus::Exited(code)));
        }
    });
}

extern "C" fn exit_7() {
    // SAFETY: it ends the process.
    unsafe { libc::_exit(7) }
}

unsafe extern "C" {
    fn quick_exit(code: libc::c_int) -> !;
}

fn a12_odd_ways_to_exit() {
    undisturbed(|| async {
        let in_atexit = async || -> u8 {
            // SAFETY: the handler is a function of this program.
            assert_eq!(unsafe { libc::atexit(exit_7) }, 0);
            std::process::exit(0)
        };
        assert_eq!(run_in_process(in_atexit, ()).await.unwrap_err().exit_code(), Some(7));
        // SAFETY: it ends the process.
        let quick = async || -> u8 { unsafe { quick_exit(9) } };
        assert_eq!(run_in_process(quick, ()).await.unwrap_err().exit_code(), Some(9));
        // The main thread ends and another goes on: not an end yet.
        let headless = || -> u8 {
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                // SAFETY: it ends the process.
                unsafe { libc::_exit(5) }
            });
            // SAFETY: ends this thread alone; it owns nothing that the other uses.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!()
        };
        let process = open_blocking_in_process(headless, ()).await.unwrap();
        let opened = Instant::now();
        let error = process.wait().await.unwrap_err();
        assert_eq!(error.exit_code(), Some(5), "{error:?} after {:?}", opened.elapsed());
    });
}

/// Signals whose default action ends a process. 32 and 33 are the C library's own.
fn terminating_signals() -> impl Iterator<Item = i32> {
    const OTHER: [i32; 9] = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
        0,
    ];
    (1..=64).filter(|signal| !OTHER.contains(signal))
}

/// Gives a signal that is not at its default in a worker its default action. Not through the C library, which keeps 32
/// and 33 for itself.
fn make_default(signal: i32) {
    // SIGPIPE stays ignored as Rust has it, and SIGIO is the library's where the kernel cannot kill by itself.
    if [libc::SIGPIPE, libc::SIGIO, 32, 33].contains(&signal) {
        let action = [0_u64; 4];
        // SAFETY: an all-zero kernel sigaction: the default action, no flags.
        let set = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), std::ptr::null::<u8>(), 8) };
        assert_eq!(set, 0);
    }
}

fn raise(signal: i32) {
    let pid = i32::try_from(std::process::id()).unwrap();
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn a13_every_terminating_signal_comes_back() {
    undisturbed(|| async {
        let polled = async |signal: i32| -> u8 {
            make_default(signal);
            raise(signal);
            std::future::pending().await
        };
        let blocking = |signal: i32| -> u8 {
            make_default(signal);
            raise(signal);
            loop {
                std::thread::park();
            }
        };
        let both = terminating_signals().flat_map(|signal| {
            let tasks = [run_in_process(polled, signal), run_blocking_in_process(blocking, signal)];
            tasks.map(|task| (signal, tokio::spawn(task)))
        });
        for (signal, task) in both.collect::<Vec<_>>() {
            let error = task.await.unwrap().unwrap_err();
            assert_eq!(error.signal(), Some(Signal::from(signal)), "{error:?}");
        }
        let abort = run_in_process(async || -> u8 { std::process::abort() }, ()).await.unwrap_err();
        assert_eq!(abort.signal(), Some(Signal::ABRT));
    });
}

fn a13_every_signal_sent_from_outside_comes_back() {
    undisturbed(|| async {
        for signal in terminating_signals().filter(|&signal| ![libc::SIGPIPE, libc::SIGIO, 32, 33].contains(&signal)) {
            let polled = open_in_process(async || std::future::pending::<()>().await, ()).await.unwrap();
            let blocking = open_blocking_in_process(|| std::thread::sleep(Duration::from_secs(60)), ()).await.unwrap();
            for process in [polled, blocking] {
                process.send_signal(signal).unwrap();
                assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::from(signal)));
                assert_eq!(process.exited().await.0.signal(), Some(Signal::from(signal)));
            }
        }
    });
}

fn a13_every_terminating_signal_comes_back_after_terminate() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped());
        let end = async |signal: i32| {
            end_after_sigterm(|| {
                make_default(signal);
                if signal == libc::SIGTERM {
                    // SAFETY: the default action.
                    unsafe { libc::signal(signal, libc::SIG_DFL) };
                }
                raise(signal);
            })
            .await;
        };
        let tasks = terminating_signals().map(|signal| (signal, tokio::spawn(terminated(task.open(end, signal)))));
        for (signal, task) in tasks.collect::<Vec<_>>() {
            let (error, status) = task.await.unwrap();
            assert_eq!((error.signal(), status.signal()), (Some(signal.into()), Some(signal.into())), "{error:?}");
        }
    });
}

extern "C" fn crash() {
    std::process::abort();
}

struct Crashes;

impl Drop for Crashes {
    fn drop(&mut self) {
        crash();
    }
}

thread_local! {
    static CRASHES: std::cell::RefCell<Option<Crashes>> = const { std::cell::RefCell::new(None) };
}

fn a14_what_would_crash_after_the_result_does_not_run() {
    undisturbed(|| async {
        let task = async || {
            // SAFETY: the handler is a function of this program.
            assert_eq!(unsafe { libc::atexit(crash) }, 0);
            CRASHES.set(Some(Crashes));
            std::mem::forget(tokio::spawn(async {
                let _crashes = Crashes;
                std::future::pending::<()>().await
            }));
            tokio::task::yield_now().await;
            5
        };
        let process = open_in_process(task, ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 5);
        assert_eq!(process.exited().await.0, ExitStatus::Exited(0));
    });
}

#[derive(Serialize, Deserialize)]
struct Parting {
    abort: bool,
}

impl Drop for Parting {
    fn drop(&mut self) {
        if worker::is_worker() {
            assert!(self.abort, "parting");
            crash();
        }
    }
}

/// The result is dropped before it is sent: one outcome, and never a value that a crash follows.
fn a14_a_crash_in_the_results_destructor_is_the_outcome() {
    undisturbed(|| async {
        let error = run_in_process(async || Parting { abort: true }, ()).await.err().unwrap();
        assert_eq!(error.signal(), Some(Signal::ABRT));
        let error = run_in_process(async || Parting { abort: false }, ()).await.err().unwrap();
        assert_eq!(error.panic().unwrap().message(), "parting");
    });
}

/// A frame of the wire: a result of this length follows.
fn returned(length: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = 2;
    header[8..].copy_from_slice(&length.to_le_bytes());
    header
}

fn a15_a_worker_that_stays_after_its_result() {
    undisturbed(|| async {
        let stays = || -> u8 {
            // SAFETY: a worker's job socket, which this test gets hold of as hostile code would.
            let mut job = unsafe { std::fs::File::from_raw_fd(3) };
            job.write_all(&returned(1)).unwrap();
            job.write_all(&[9]).unwrap();
            std::thread::sleep(Duration::from_secs(60));
            0
        };
        let task = Task::new().grace_period(Duration::from_millis(200));
        let start = Instant::now();
        assert_eq!(task.run_blocking(stays, ()).await.unwrap(), 9);
        let process = task.open_blocking(stays, ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 9);
        assert_eq!(process.exited().await.0.signal(), Some(Signal::KILL));
        assert!(start.elapsed() < Duration::from_secs(10));
        // A thread that is left behind does not keep a worker.
        let leaks = async || drop(std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60))));
        let process = open_in_process(leaks, ()).await.unwrap();
        process.wait().await.unwrap();
        assert_eq!(process.exited().await.0, ExitStatus::Exited(0));
    });
}

fn a16_a_task_that_never_yields() {
    undisturbed(|| async {
        let grace = Duration::from_millis(300);
        #[expect(clippy::empty_loop, reason = "it never yields")]
        let busy = async |path: String| -> u8 {
            note(&path, "busy");
            loop {}
        };
        let notes = Notes::new("busy");
        let process = Task::new().grace_period(grace).open(busy, notes.path()).await.unwrap();
        // Before its first poll it would end at once.
        eventually("it is busy", || !notes.text().is_empty()).await;
        let start = Instant::now();
        let (status, usage) = process.shutdown().await;
        assert!(start.elapsed() >= grace, "{:?}", start.elapsed());
        assert_eq!(status.signal(), Some(Signal::KILL));
        assert!(usage.unwrap().user_time > Duration::ZERO);
        assert!(process.wait().await.unwrap_err().is_cancelled());
    });
}

fn exec(program: &str) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    std::process::Command::new("/bin/sh").args(["-c", program]).exec()
}

fn a17_a_task_that_becomes_another_program() {
    undisturbed(|| async {
        for (program, code) in [("true".to_owned(), 0), ("exit 3".to_owned(), 3)] {
            let error =
                run_blocking_in_process(|program: String| exec(&program).to_string(), program).await.unwrap_err();
            assert_eq!(error.exit_code(), Some(code), "{error:?}");
        }
        let lists = async || exec("ls /proc/self/fd; sleep 0.1").to_string();
        let process = Task::new().stdout(Stdio::piped()).open(lists, ()).await.unwrap();
        let mut text = String::new();
        process.take_stdout().unwrap().read_to_string(&mut text).await.unwrap();
        // The last one is `ls`'s own.
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
        assert_eq!(process.wait().await.unwrap_err().exit_code(), Some(0));
    });
}

fn block_all_signals() {
    let mut all = std::mem::MaybeUninit::uninit();
    // SAFETY: room for a set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set is initialised by the call above.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
}

/// Where a process is: directory, root, umask, signal mask, session.
fn place() -> (String, bool, u32, String) {
    let directory = std::env::current_dir().unwrap().to_str().unwrap().to_owned();
    let status = std::fs::read_to_string("/proc/self/status");
    let mask = status.iter().flat_map(|text| text.lines()).find(|line| line.starts_with("SigBlk")).map(str::to_owned);
    // SAFETY: touches no memory.
    let umask = unsafe { libc::umask(0o22) };
    // SAFETY: touches no memory.
    unsafe { libc::umask(umask) };
    (directory, std::path::Path::new("/bin/sh").exists(), umask, mask.unwrap_or_default())
}

fn a18_what_a_task_does_to_its_process_stays_there() {
    without_warm_workers();
    undisturbed(|| async {
        let before = (place(), run_blocking_in_process(place, ()).await.unwrap());
        assert_eq!(before.0, before.1);
        let unruly = || {
            // SAFETY: a leader of a session already.
            assert_eq!(unsafe { libc::setsid() }, -1);
            // SAFETY: touches no memory.
            unsafe { libc::umask(0o777) };
            block_all_signals();
            std::env::set_current_dir("/proc").unwrap();
            // SAFETY: a live C string. Only root may; the rest is tried all the same.
            unsafe { libc::chroot(c".".as_ptr()) };
            // SAFETY: one thread.
            unsafe { std::env::set_var("UNRULY", "1") };
            std::process::id()
        };
        run_blocking_in_process(unruly, ()).await.unwrap();
        assert_eq!((place(), run_blocking_in_process(place, ()).await.unwrap()), before);
        assert!(!run_blocking_in_process(|| std::env::var_os("UNRULY").is_some(), ()).await.unwrap());
        // The value comes before the exit.
        let zygote = default_zygote().unwrap().pid();
        eventually("no worker is left", || children(zygote).is_empty()).await;
    });
}
