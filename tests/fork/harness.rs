//! The driver, and what the cases share.

use std::{
    future::Future,
    io::Read,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use tokio_run_in_process::Zygote;

/// One test.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Generous: it is only there so that a hang ends.
    pub(crate) deadline: Duration,
    pub(crate) body: fn(),
}

/// Lists functions as cases, each under its own name: `cases![a, b; 60 => c, d]` gives `c` and `d` sixty seconds and the
/// others thirty.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)? $(; $seconds:literal => $($slow:ident),* $(,)?)*) => {
        pub(crate) const CASES: &[$crate::harness::Case] = &[
            $($crate::harness::Case { name: stringify!($name), deadline: std::time::Duration::from_secs(30), body: $name },)*
            $($($crate::harness::Case {
                name: stringify!($slow), deadline: std::time::Duration::from_secs($seconds), body: $slow,
            },)*)*
        ];
    };
}

/// Lists functions that are programs which cases start with [`helper`]: they are no tests by themselves.
#[macro_export]
macro_rules! helpers {
    ($($name:ident),* $(,)?) => {
        pub(crate) const HELPERS: &[$crate::harness::Case] = &[
            $($crate::harness::Case { name: stringify!($name), deadline: std::time::Duration::ZERO, body: $name },)*
        ];
    };
}

const SKIPPED: i32 = 77;

pub(crate) fn main(cases: Vec<Case>, helpers: Vec<Case>) -> ExitCode {
    if let Some(name) = std::env::var_os("CASE") {
        let case = cases.iter().chain(&helpers).find(|case| *case.name == *name).expect("a case of this name");
        // What the case's tasks inherit should be what a program of the user's has.
        // SAFETY: there is one thread.
        unsafe { std::env::remove_var("CASE") };
        if std::env::var_os("TOKIO_RUN_IN_PROCESS_TEST_WARM").is_some_and(|warm| warm == "off") {
            without_warm_workers();
        }
        tokio_run_in_process::test_support::limit_capabilities(&capabilities());
        if capabilities() == "pidfd" {
            // It has to hold in one of the runs whether there is much to do or not.
            tokio_run_in_process::test_support::announce_less();
        }
        (case.body)();
        return ExitCode::SUCCESS;
    }
    let trials = cases.into_iter().map(|case| Trial::test(case.name, move || run(case)));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// This binary, to be started as one of the [`helpers!`](crate::helpers).
pub(crate) fn helper(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("CASE", name);
    command
}

/// For a case that counts or stops what a zygote has: none of its workers stands ready. Called before the zygote starts.
pub(crate) fn without_warm_workers() {
    // SAFETY: there is one thread.
    unsafe { std::env::set_var("TOKIO_RUN_IN_PROCESS_WARM", "0") };
}

/// The capability set under test: `all`, `pidfd` or `none`.
pub(crate) fn capabilities() -> String {
    if cfg!(tokio_run_in_process_portable) {
        return "none".to_owned();
    }
    std::env::var("TOKIO_RUN_IN_PROCESS_TEST_CAPS").unwrap_or_else(|_| "all".to_owned())
}

fn run(case: Case) -> Result<(), Failed> {
    let program = std::env::current_exe()?;
    let (mut output, writer) = UnixStream::pair()?;
    let mut child = {
        let mut command = Command::new(program);
        command
            .env("CASE", case.name)
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(writer.try_clone()?))
            .stderr(OwnedFd::from(writer));
        // A group of its own, so that a case that hangs goes with all that it started there.
        command.process_group(0).spawn()?
    };
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = output.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > case.deadline {
            let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let ended = Instant::now();
    // A process that outlived the case may hold the pipe; that is a failure of its own.
    while !reader.is_finished() && ended.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
    if !reader.is_finished() {
        return Err("something outlived the case and holds its output".into());
    }
    let text = reader.join().unwrap_or_default();
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) if status.code() == Some(SKIPPED) => {
            eprintln!("skipped: {}: {}", case.name, text.trim());
            Ok(())
        }
        Some(status) => Err(format!("{status}\n{text}").into()),
        None => Err(format!("not done within {:?}\n{text}", case.deadline).into()),
    }
}

/// Ends the case as skipped, visibly.
pub(crate) fn skip(reason: &str) -> ! {
    println!("{reason}");
    std::process::exit(SKIPPED)
}

/// Starts the process-wide zygote, runs the future on a multi-thread runtime, and checks that nothing is left.
pub(crate) fn with_default<F: Future<Output = ()>>(body: impl FnOnce() -> F) {
    tokio_run_in_process::init().unwrap();
    let zygote = tokio_run_in_process::default_zygote().unwrap();
    multi_thread().block_on(async {
        body().await;
        nothing_is_left(&zygote).await;
    });
}

pub(crate) fn multi_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Waits until the zygote has no child, alive or zombie, but those that stand ready, and no task has a place or a socket.
pub(crate) async fn nothing_is_left(zygote: &Zygote) {
    // One that is ordered counts as ready: as many children may be a task's worker and all but one of the ready ones.
    let none = || zygote.metrics().alive == 0 && children(zygote.pid()).len() == zygote.metrics().warm;
    eventually("no worker is left", none).await;
}

/// Waits, at most ten seconds, until `holds`.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Polls a future once, and gives what goes on from there, or has the value already.
pub(crate) async fn begin<F: Future>(future: F) -> std::pin::Pin<Box<impl Future<Output = F::Output>>> {
    use std::task::Poll;
    let mut future = Box::pin(future);
    let first = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    Box::pin(async move {
        match first {
            Poll::Ready(value) => value,
            Poll::Pending => future.await,
        }
    })
}

/// Sends a signal to a process of the test's.
pub(crate) fn send_signal(pid: u32, signal: i32) {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) }, 0);
}

/// The children of a process, zombies too.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if parent_of(child) == Some(pid) {
            found.push(child);
        }
    }
    found
}

/// The state letter and the parent of a process, from /proc/PID/stat.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A process that is being reaped has none any more.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    stat(pid).map(|(_, parent)| parent).filter(|&parent| parent != 0)
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// What the descriptors of a process are, sorted: `number -> target`.
pub(crate) fn descriptors(pid: u32) -> Vec<(u32, String)> {
    let mut found: Vec<(u32, String)> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, target.to_string_lossy().into_owned()))
        })
        .filter(|(_, target)| !target.ends_with("/fd"))
        .collect();
    found.sort();
    found
}
