//! Signals and terminals around a program with tasks: Ctrl-C, a terminal in the background or gone, storms of signals,
//! strangers among its children, tracers.

use std::{
    io::Read,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio as StdStdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio_run_in_process::{
    Signal, Task, Zygote, default_zygote, open_in_process, run_blocking_in_process, run_in_process,
};

use crate::{
    denied::everything,
    forks::{exit, fork, wait_for},
    harness::{eventually, helper, is_alive, multi_thread, parent_of, send_signal, skip},
    oracle::{undisturbed, undisturbed_with},
    tools::status,
};

crate::cases![
    f87_a_stranger_that_was_adopted_is_left_alone,
    f89_ctrl_c_is_the_programs_own,
    f90_a_program_in_the_background_of_its_terminal,
    f91_a_terminal_that_hangs_up,
    f93_a_worker_that_a_tracer_holds,
    f93_a_zygote_that_is_traced;
    60 => f92_a_storm_of_signals,
    f94_a_program_under_strace,
];
crate::helpers![in_the_background, hangs_up, everything_once];

fn f87_a_stranger_that_was_adopted_is_left_alone() {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }, 0);
    undisturbed(|| async {
        let strangers: Vec<i32> = (0..8)
            .map(|_| {
                let mut ends = [0; 2];
                // SAFETY: room for two descriptors.
                assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
                let child = fork();
                if child == 0 {
                    let stranger = fork();
                    if stranger == 0 {
                        exit(2);
                    }
                    // SAFETY: four live bytes.
                    unsafe { libc::write(ends[1], stranger.to_le_bytes().as_ptr().cast(), 4) };
                    exit(0);
                }
                assert_eq!(wait_for(child), 0);
                // SAFETY: just made, nobody else has them.
                let [mut read, _write] = ends.map(|end| std::fs::File::from(unsafe { OwnedFd::from_raw_fd(end) }));
                let mut pid = [0; 4];
                read.read_exact(&mut pid).unwrap();
                i32::from_le_bytes(pid)
            })
            .collect();
        for n in 0..50 {
            assert_eq!(run_in_process(async |n: u8| n, n).await.unwrap(), n);
        }
        for stranger in strangers {
            assert_eq!(parent_of(stranger.unsigned_abs()), Some(std::process::id()));
            assert_eq!(wait_for(stranger), 2, "nobody took its status");
        }
    });
}

/// All that a terminal sends to the foreground group reaches this program and nobody else.
fn f89_ctrl_c_is_the_programs_own() {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::getpgid(0) }.unsigned_abs(), std::process::id(), "a group of its own");
    undisturbed(|| async {
        let signals = [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1, libc::SIGWINCH];
        let mut heard = signals.map(|signal| {
            let kind = tokio::signal::unix::SignalKind::from_raw(signal);
            tokio::signal::unix::signal(kind).unwrap()
        });
        let waits = async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            7
        };
        let polled = open_in_process(waits, ()).await.unwrap();
        let blocking = tokio::spawn(run_blocking_in_process(
            || {
                std::thread::sleep(Duration::from_millis(300));
                7
            },
            (),
        ));
        for (signal, heard) in signals.into_iter().zip(&mut heard) {
            // SAFETY: touches no memory.
            assert_eq!(unsafe { libc::kill(0, signal) }, 0);
            heard.recv().await;
        }
        assert_eq!(polled.wait().await.unwrap(), 7);
        assert_eq!(blocking.await.unwrap().unwrap(), 7);
        assert!(is_alive(default_zygote().unwrap().pid()));
    });
}

/// A terminal: our end, and the end of the program that it is for.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: room for both; the rest may be null.
    let made = unsafe {
        libc::openpty(&raw mut ours, &raw mut theirs, std::ptr::null_mut(), std::ptr::null(), std::ptr::null())
    };
    if made != 0 {
        skip("no terminal to be had");
    }
    for end in [ours, theirs] {
        // SAFETY: touches no memory.
        unsafe { libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: just made, nobody else has it.
    let ours = unsafe { OwnedFd::from_raw_fd(ours) };
    // SAFETY: as above.
    (ours, unsafe { OwnedFd::from_raw_fd(theirs) })
}

/// A program whose terminal it is.
fn on_terminal(name: &str, terminal: &OwnedFd) -> Command {
    let mut program = helper(name);
    let end = || StdStdio::from(terminal.try_clone().unwrap());
    program.stdin(end()).stdout(end()).stderr(end());
    let own_it = || {
        // SAFETY: touches no memory.
        unsafe { libc::setsid() };
        // SAFETY: makes the terminal at 0 the session's.
        match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: only async-signal-safe calls.
    unsafe { program.pre_exec(own_it) };
    program
}

/// Keeps reading what a program prints there, so that it is not held up; says it once the program is gone.
fn drain(ours: OwnedFd) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut file, mut bytes) = (std::fs::File::from(ours), Vec::new());
        // It ends in an error once nobody has the other end.
        let _ = file.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn f90_a_program_in_the_background_of_its_terminal() {
    let (ours, theirs) = terminal();
    let mut program = on_terminal("in_the_background", &theirs).spawn().unwrap();
    drop(theirs);
    let text = drain(ours);
    let status = program.wait().unwrap();
    let text = text.join().unwrap();
    assert!(status.success(), "{status}: {text}");
    assert!(text.contains("printed by a task"), "{text}");
}

/// Not in the foreground, on a terminal that stops whoever reads or prints there.
fn in_the_background() {
    // SAFETY: plain numbers, all of which may be zero.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: a live struct to fill.
    assert_eq!(unsafe { libc::tcgetattr(0, &raw mut modes) }, 0);
    modes.c_lflag |= libc::TOSTOP;
    // SAFETY: a live struct.
    assert_eq!(unsafe { libc::tcsetattr(0, libc::TCSANOW, &raw const modes) }, 0);
    let mut foreground = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::tcsetpgrp(0, foreground.id().try_into().unwrap()) }, 0);
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(async {
        let uses_terminal = || {
            println!("printed by a task");
            std::io::stdin().read_line(&mut String::new()).unwrap()
        };
        assert_eq!(run_blocking_in_process(uses_terminal, ()).await.unwrap(), 0, "stdin is empty");
        assert_eq!(run_in_process(async move || uses_terminal(), ()).await.unwrap(), 0);
        let process = open_in_process(std::future::pending::<()>, ()).await.unwrap();
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    });
    foreground.kill().unwrap();
    foreground.wait().unwrap();
}

fn f91_a_terminal_that_hangs_up() {
    let (ours, theirs) = terminal();
    let log = crate::tools::Notes::new("f91");
    let mut program = on_terminal("hangs_up", &theirs).env("LOG", log.path()).spawn().unwrap();
    drop(theirs);
    let start = Instant::now();
    while !log.text().contains("ready") {
        assert!(start.elapsed() < Duration::from_secs(10), "it is not ready");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(ours);
    let status = program.wait().unwrap();
    assert!(status.success(), "{status}: {}", log.text());
    assert!(log.text().contains("done"), "{}", log.text());
}

fn hangs_up() {
    let log = std::env::var("LOG").unwrap();
    let hook = log.clone();
    std::panic::set_hook(Box::new(move |info| crate::tools::note(&hook, &info.to_string())));
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(async {
        let mut hung_up = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).unwrap();
        let task = Task::new().grace_period(Duration::from_secs(600));
        let process = task.open(std::future::pending::<()>, ()).await.unwrap();
        crate::tools::note(&log, "ready ");
        hung_up.recv().await;
        assert!(is_alive(default_zygote().unwrap().pid()) && is_alive(process.pid()));
        // Nobody sees what it prints, which is its own affair.
        let prints = || {
            use std::io::Write;
            let _ = writeln!(std::io::stdout(), "to nobody");
            7
        };
        assert_eq!(run_blocking_in_process(prints, ()).await.unwrap(), 7);
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    });
    crate::tools::note(&log, "done");
}

static STORM: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: libc::c_int) {
    STORM.fetch_add(1, Relaxed);
}

fn f92_a_storm_of_signals() {
    // SAFETY: an all-zero sigaction is the default action; no SA_RESTART.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as *const () as usize;
    // SAFETY: a live sigaction, whose handler only counts.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) }, 0);
    // On a busy machine two hundred at once wait long for their turn.
    undisturbed_with(Zygote::builder().startup_timeout(Duration::from_secs(60)), |zygote| async move {
        let stop = Arc::new(AtomicBool::new(false));
        let storm = {
            let (stop, zygote) = (stop.clone(), zygote.pid());
            std::thread::spawn(move || {
                let me = std::process::id();
                while !stop.load(Relaxed) {
                    send_signal(zygote, libc::SIGUSR1);
                    // Each thread of ours in turn: those that wait in the kernel are interrupted there.
                    for thread in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
                        let thread: i32 = thread.file_name().to_str().unwrap().parse().unwrap();
                        // SAFETY: touches no memory. The thread may have ended.
                        unsafe { libc::syscall(libc::SYS_tgkill, me, thread, libc::SIGUSR1) };
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            })
        };
        everything(&zygote).await;
        let quick = (0..200_u32).map(|n| tokio::spawn(zygote.run_in_process(async |n: u32| n, n)));
        for (n, task) in (0..).zip(quick.collect::<Vec<_>>()) {
            assert_eq!(task.await.unwrap().unwrap(), n);
        }
        stop.store(true, Relaxed);
        storm.join().unwrap();
        println!("{} signals", STORM.load(Relaxed));
        assert!(STORM.load(Relaxed) > 1000, "it was no storm");
    });
}

/// Attaches to a process from a thread of its own, which stays its tracer until it is told to go.
pub(crate) fn trace(pid: u32) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (go, wait) = std::sync::mpsc::channel();
    let (attached, is_attached) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: seizing touches no memory of ours.
        attached.send(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) } == 0).unwrap();
        let _ = wait.recv();
    });
    if !is_attached.recv().unwrap() {
        skip("no tracing here");
    }
    (go, thread)
}

/// Processor time of this process and of its reaped children.
fn used() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// It is dead for everybody to see, and its status is not to be had before its tracer lets go.
fn f93_a_worker_that_a_tracer_holds() {
    undisturbed(|| async {
        for by_open in [true, false] {
            let (report, pid) = tokio::sync::oneshot::channel();
            let waiting = tokio::spawn(async move {
                let notes = crate::tools::Notes::new(&format!("f93-{by_open}"));
                let says = async |path: String| {
                    crate::tools::note(&path, &format!(" pid={} ready ", std::process::id()));
                    std::future::pending::<()>().await
                };
                if by_open {
                    let process = open_in_process(says, notes.path()).await.unwrap();
                    notes.say("ready").await;
                    report.send(process.pid()).unwrap();
                    return process.wait().await;
                }
                let run = run_in_process(says, notes.path());
                let told = async {
                    notes.say("ready").await;
                    report.send(notes.pids()[0]).unwrap();
                };
                tokio::join!(run, told).0
            });
            let pid = pid.await.unwrap();
            let (go, tracer) = trace(pid);
            send_signal(pid, libc::SIGKILL);
            eventually("it is dead", || status(pid, "State").is_some_and(|state| state.starts_with('Z'))).await;
            let (before, start) = (used(), Instant::now());
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (cost, wall) = (used() - before, start.elapsed());
            assert!(cost < wall / 2, "{cost:?} of {wall:?}: somebody asks again and again");
            drop(go);
            tracer.join().unwrap();
            assert_eq!(waiting.await.unwrap().unwrap_err().signal(), Some(Signal::KILL));
        }
    });
}

fn f93_a_zygote_that_is_traced() {
    undisturbed_with(Zygote::builder(), |zygote| async move {
        let (go, tracer) = trace(zygote.pid());
        // A tracer that sees each signal must pass it on; this one only looks at what it is not told to stop for.
        let run = async |n: u8| zygote.run_in_process(async |n: u8| n, n).await.unwrap();
        let first = tokio::time::timeout(Duration::from_millis(300), run(1)).await;
        drop(go);
        tracer.join().unwrap();
        // SIGCHLD stopped it, or not: either way it goes on.
        assert!(first.is_err() || first == Ok(1));
        for n in 0..20 {
            assert_eq!(run(n).await, n);
        }
    });
}

fn everything_once() {
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(async { everything(&default_zygote().unwrap()).await });
}

fn f94_a_program_under_strace() {
    let mut command = Command::new("strace");
    let program = helper("everything_once");
    command.args(["-f", "-qq", "-o", "/dev/null"]).arg(program.get_program()).env("CASE", "everything_once");
    match command.status() {
        Err(e) => skip(&format!("no strace: {e}")),
        Ok(status) => assert!(status.success(), "{status}"),
    }
}
