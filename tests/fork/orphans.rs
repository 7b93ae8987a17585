//! A program, its zygote, or both end in the middle of everything: what becomes of the workers.
//!
//! The program that ends is [`crowd`], started by the case, which tells the pids of all that it started.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus as StdStatus, Stdio as StdStdio},
    time::{Duration, Instant},
};

use tokio::io::{AsyncBufReadExt, BufReader as AsyncBufReader};
use tokio_run_in_process::{Error, Process, Stdio, Zygote};

use crate::{
    harness::{capabilities, eventually, helper, multi_thread, parent_of, skip},
    oracle::no_core_files,
};

crate::cases![
    f76_a_killed_program_leaves_no_worker,
    f76_a_killed_program_and_its_zygote_leave_no_worker,
    f76_a_program_killed_while_it_starts_tasks_leaves_none,
    f76_grandchildren_go_with_their_worker,
    f77_a_bystander_with_copies_of_all_descriptors_saves_no_worker,
    f78_however_a_program_ends_its_workers_end,
    f76_a_stopped_zygote_keeps_no_worker,
    f76_a_stopped_ancestor_keeps_no_worker,
    f76_two_stopped_zygotes_keep_no_worker,
    f77_a_stopped_zygote_and_bystanders_keep_no_worker,
    f77_a_stopped_ancestor_and_bystanders_keep_no_worker,
    f83_a_program_that_becomes_another_leaves_no_worker,
];

crate::helpers![crowd, restless];

/// A process, which another that gets its pid later is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) pid: u32,
    began: u64,
}

impl Life {
    /// The state letter and when it began (clock ticks since boot), from /proc/PID/stat.
    fn stat(pid: u32) -> Option<(char, u64)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some((fields[0].chars().next()?, fields[19].parse().ok()?))
    }

    pub(crate) fn of(pid: u32) -> Self {
        Self::try_of(pid).unwrap_or_else(|| panic!("there is no process {pid}"))
    }

    pub(crate) fn try_of(pid: u32) -> Option<Self> {
        Self::stat(pid).map(|(_, began)| Self { pid, began })
    }

    pub(crate) fn state(self) -> Option<char> {
        Self::stat(self.pid).filter(|&(_, began)| began == self.began).map(|(state, _)| state)
    }

    /// Whether it has ended. Pid 1 may take its time to reap it.
    pub(crate) fn is_over(self) -> bool {
        matches!(self.state(), None | Some('Z' | 'X'))
    }

    pub(crate) fn signal(self, signal: i32) {
        // SAFETY: touches no memory.
        unsafe { libc::kill(i32::try_from(self.pid).unwrap(), signal) };
    }

    pub(crate) fn kill(self) {
        if !self.is_over() {
            self.signal(libc::SIGKILL);
        }
    }
}

// What the workers of the crowd do. Each says when it does so, and the pid of a child if it has one.

fn say(child: u32) {
    println!("{child}");
    std::io::stdout().flush().unwrap();
}

pub(crate) fn rest() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(600));
    }
}

async fn asleep() {
    say(0);
    std::future::pending().await
}

fn blocked() {
    say(0);
    rest()
}

fn busy() {
    say(0);
    loop {
        std::hint::spin_loop();
    }
}

async fn busy_for_ever_in_one_poll() {
    busy();
}

/// Ignores what can be ignored, but for the one signal that the library needs where the kernel cannot kill.
pub(crate) fn stubborn() {
    for signal in (1..=64).filter(|&signal| signal != libc::SIGIO) {
        // SAFETY: an ignored signal needs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    say(0);
    rest()
}

fn deaf() {
    // SAFETY: an all-zero set is a valid one.
    let mut all = unsafe { std::mem::zeroed() };
    // SAFETY: a live set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: a live set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    say(0);
    rest()
}

fn stopped() {
    say(0);
    // SAFETY: touches no memory; as any signal without a handler it is for the whole process.
    unsafe { libc::raise(libc::SIGSTOP) };
    rest()
}

#[expect(clippy::zombie_processes, reason = "they are to end together")]
fn parental() {
    let child = Command::new("sleep").arg("600").stdout(StdStdio::null()).spawn().unwrap();
    say(child.id());
    rest()
}

fn threaded() {
    std::thread::spawn(|| rest());
    std::thread::spawn(|| rest());
    say(0);
    rest()
}

async fn open(zygote: &Zygote, kind: &str) -> Result<Process<()>, Error> {
    let task = zygote.task().stdout(Stdio::piped());
    match kind {
        "asleep" => task.open(asleep, ()).await,
        "blocked" => task.open_blocking(blocked, ()).await,
        "busy" => task.open_blocking(busy, ()).await,
        "polling" => task.open(busy_for_ever_in_one_poll, ()).await,
        "stubborn" => task.open_blocking(stubborn, ()).await,
        "deaf" => task.open_blocking(deaf, ()).await,
        "stopped" => task.open_blocking(stopped, ()).await,
        "parental" => task.open_blocking(parental, ()).await,
        "threaded" => task.open_blocking(threaded, ()).await,
        _ => panic!("no kind of worker: {kind}"),
    }
}

/// Opens a worker, waits until it does what it is to do, and gives its child's pid, or 0.
pub(crate) async fn open_until_it_says_so(zygote: &Zygote, kind: &str) -> (Process<()>, u32) {
    let process = open(zygote, kind).await.unwrap();
    let mut line = String::new();
    AsyncBufReader::new(process.take_stdout().unwrap()).read_line(&mut line).await.unwrap();
    if kind == "stopped" {
        eventually("it is stopped", || matches!(Life::stat(process.pid()), Some(('T', _)))).await;
    }
    (process, line.trim().parse().unwrap())
}

/// A fork of this program, without exec, that holds what the program holds now, and waits.
fn fork_a_bystander() -> u32 {
    // SAFETY: the child only waits, by a call that is async-signal-safe.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: touches no memory.
            unsafe { libc::pause() };
        },
        pid => u32::try_from(pid).unwrap(),
    }
}

/// The program: opens the workers that `CROWD` lists (`busy=3,stopped=2`), tells everybody's pid, and when its stdin
/// ends it ends as `CROWD_END` says.
fn crowd() {
    no_core_files();
    let end = std::env::var("CROWD_END").unwrap();
    let bystanders = end == "bystanders";
    if bystanders {
        println!("bystander {}", fork_a_bystander());
    }
    let zygote = Zygote::builder().max_processes(250).warm(16).start().unwrap();
    println!("zygote {}", zygote.pid());
    println!("ancestor {}", parent_of(zygote.pid()).unwrap());
    let runtime = multi_thread();
    let processes = runtime.block_on(async {
        let mut processes = Vec::new();
        for entry in std::env::var("CROWD").unwrap().split(',') {
            let (kind, count) = entry.split_once('=').unwrap();
            for _ in 0..count.parse().unwrap() {
                let (process, child) = open_until_it_says_so(&zygote, kind).await;
                println!("{kind} {}", process.pid());
                if child != 0 {
                    println!("grandchild {child}");
                }
                processes.push(process);
            }
        }
        processes
    });
    if bystanders {
        println!("bystander {}", fork_a_bystander());
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    match end.as_str() {
        "return" => {}
        // As if every handle were in a static.
        "return with live handles" => std::mem::forget((processes, zygote)),
        "detach" => processes.into_iter().for_each(Process::detach),
        "exit" => std::process::exit(3),
        "exit from a thread" => std::thread::spawn(|| std::process::exit(4)).join().unwrap(),
        "abort" => std::process::abort(),
        "panic" => panic!("in main"),
        "exec" => panic!("{}", Command::new("sleep").arg("600").exec()),
        end => panic!("no way to end: {end}"),
    }
}

/// A crowd that is up. Whatever is left of it goes with this.
struct Crowd {
    program: Child,
    stdin: Option<ChildStdin>,
    zygote: Life,
    ancestor: Life,
    workers: Vec<(String, Life)>,
    bystanders: Vec<Life>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        self.zygote.kill();
        self.ancestor.kill();
        self.workers.iter().map(|(_, life)| life).chain(&self.bystanders).for_each(|life| life.kill());
    }
}

impl Crowd {
    fn start(workers: &str, end: &str) -> Self {
        let mut command = helper("crowd");
        command.env("CROWD", workers).env("CROWD_END", end).stdin(StdStdio::piped()).stdout(StdStdio::piped());
        let mut program = command.spawn().unwrap();
        let stdin = program.stdin.take();
        let (mut workers, mut bystanders, mut zygote, mut ancestor) = (Vec::new(), Vec::new(), None, None);
        // Not to its end: a bystander holds it, too.
        for line in BufReader::new(program.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if line == "ready" {
                let (zygote, ancestor) = (zygote.unwrap(), ancestor.unwrap());
                return Self { program, stdin, zygote, ancestor, workers, bystanders };
            }
            let (what, pid) = line.split_once(' ').unwrap();
            let life = Life::of(pid.parse().unwrap());
            match what {
                "zygote" => zygote = Some(life),
                "ancestor" => ancestor = Some(life),
                "bystander" => bystanders.push(life),
                kind => workers.push((kind.to_owned(), life)),
            }
        }
        let _ = program.kill();
        panic!("the program ended before it was ready: {}", program.wait().unwrap())
    }

    /// Lets the program end in its own way.
    fn end(&mut self) -> StdStatus {
        self.stdin = None;
        self.program.wait().unwrap()
    }

    fn assert_alive(&self) {
        let over: Vec<_> = self.workers.iter().filter(|(_, life)| life.is_over()).collect();
        assert!(over.is_empty() && !self.zygote.is_over(), "ended too soon: {over:?}");
    }

    /// Waits until zygotes and workers are gone, and says how long after `start` that was.
    fn is_gone(&self, what: &str, start: Instant) {
        let zygotes = [("zygote".to_owned(), self.zygote), ("ancestor".to_owned(), self.ancestor)];
        loop {
            let all = self.workers.iter().chain(&zygotes);
            let left: Vec<_> = all.filter(|(_, life)| !life.is_over()).map(|(kind, life)| (kind, life.pid)).collect();
            let elapsed = start.elapsed();
            if left.is_empty() {
                println!("{what}: {} workers were gone after {} ms", self.workers.len(), elapsed.as_millis());
                assert!(elapsed < Duration::from_secs(5), "that is too late");
                return;
            }
            assert!(elapsed < Duration::from_secs(10), "{what}: still there: {left:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Fifty that a program may have, each kind in a bad moment.
const FIFTY: &str = "asleep=16,blocked=4,threaded=4,busy=3,polling=3,stubborn=8,deaf=4,stopped=8";
/// The same without those whom only SIGKILL ends.
const FIFTY_THAT_HEAR: &str = "asleep=22,blocked=6,threaded=6,busy=3,polling=3,stubborn=10";

fn f76_a_killed_program_leaves_no_worker() {
    let mut crowd = Crowd::start(FIFTY, "return");
    assert_eq!(crowd.workers.len(), 50);
    crowd.assert_alive();
    let start = Instant::now();
    crowd.program.kill().unwrap();
    crowd.is_gone("the program killed", start);
}

fn f76_a_killed_program_and_its_zygote_leave_no_worker() {
    let workers = if capabilities() == "all" {
        FIFTY
    } else {
        println!(
            "without workers that are stopped or block every signal: here only a SIGKILL by the kernel ends those"
        );
        FIFTY_THAT_HEAR
    };
    for zygote_first in [false, true] {
        let mut crowd = Crowd::start(workers, "return");
        assert_eq!(crowd.workers.len(), 50);
        crowd.assert_alive();
        let start = Instant::now();
        if zygote_first {
            crowd.zygote.kill();
            crowd.program.kill().unwrap();
        } else {
            crowd.program.kill().unwrap();
            crowd.zygote.kill();
        }
        crowd.is_gone(&format!("both killed, the zygote first: {zygote_first}"), start);
    }
}

/// A variable in whose value all that one program started can be recognised, workers that it never knew too.
const MARK: &str = "RESTLESS_MARK";

/// A program that starts tasks without end, so that there is one in every stage of its life.
fn restless() {
    no_core_files();
    let zygote = Zygote::builder().max_processes(30).start().unwrap();
    println!("{}", zygote.pid());
    multi_thread().block_on(async {
        for n in 0..60 {
            let zygote = zygote.clone();
            tokio::spawn(async move {
                loop {
                    let outcome = match n % 3 {
                        0 => zygote.run_in_process(async |n: u8| n, 1).await,
                        1 => zygote.run_blocking_in_process(|n: u8| n, 1).await,
                        // Stays until its handle is dropped.
                        _ => match zygote.open_blocking_in_process(|_: u8| -> u8 { rest() }, 1).await {
                            Ok(_) => Ok(1),
                            Err(e) => Err(e),
                        },
                    };
                    if outcome.is_err() {
                        return;
                    }
                }
            });
        }
        std::future::pending::<()>().await
    });
}

/// Every process whose program was started with this mark.
fn marked(mark: &str) -> Vec<u32> {
    let entry = format!("{MARK}={mark}");
    let is_marked = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == entry.as_bytes())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(is_marked).collect()
}

fn f76_a_program_killed_while_it_starts_tasks_leaves_none() {
    let mut random = 0x5eed_u64;
    for round in 0..20 {
        let mark = format!("{}-{round}", std::process::id());
        let mut program = helper("restless").env(MARK, &mark).stdout(StdStdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let zygote = Life::of(line.trim().parse().unwrap());
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((random >> 33) % 60_000));
        if round % 2 == 0 {
            zygote.kill();
        }
        let start = Instant::now();
        program.kill().unwrap();
        program.wait().unwrap();
        while !marked(&mark).is_empty() {
            if start.elapsed() > Duration::from_secs(10) {
                let left = marked(&mark);
                left.iter().for_each(|&pid| Life::of(pid).kill());
                panic!("still there in round {round}: {left:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("round {round}: all were gone after {} ms", start.elapsed().as_millis());
    }
}

fn f76_grandchildren_go_with_their_worker() {
    for zygote_too in [false, true] {
        let mut crowd = Crowd::start("parental=10", "return");
        assert_eq!(crowd.workers.len(), 20);
        crowd.assert_alive();
        let start = Instant::now();
        if zygote_too {
            crowd.zygote.kill();
        }
        crowd.program.kill().unwrap();
        crowd.is_gone(&format!("with children, the zygote killed too: {zygote_too}"), start);
    }
}

fn f77_a_bystander_with_copies_of_all_descriptors_saves_no_worker() {
    if capabilities() == "none" {
        skip("without pidfd a zygote on Linux has nothing but its socket, which the bystander holds open");
    }
    let mut crowd = Crowd::start(FIFTY, "bystanders");
    assert_eq!((crowd.workers.len(), crowd.bystanders.len()), (50, 2));
    crowd.assert_alive();
    let start = Instant::now();
    crowd.program.kill().unwrap();
    crowd.is_gone("the program killed, with bystanders", start);
    assert!(crowd.bystanders.iter().all(|life| !life.is_over()), "the bystanders are nobody's business");
}

/// Two hundred, and the spares.
const TWO_HUNDRED: &str =
    "asleep=70,blocked=30,threaded=10,busy=3,polling=3,stubborn=30,deaf=14,stopped=30,parental=5,asleep=5";

/// Who is stopped when the program is killed, and whether bystanders hold copies of all its descriptors.
fn f79_killed_with_stopped_zygotes(stopped: [bool; 2], end: &str) {
    if capabilities() != "all" {
        skip("without SIGKILL by the kernel a zygote that is stopped cannot do its part");
    }
    let mut crowd = Crowd::start(TWO_HUNDRED, end);
    crowd.assert_alive();
    for (life, stop) in [crowd.zygote, crowd.ancestor].into_iter().zip(stopped) {
        if stop {
            life.signal(libc::SIGSTOP);
            while life.state() != Some('T') {
                std::thread::yield_now();
            }
        }
    }
    let start = Instant::now();
    crowd.program.kill().unwrap();
    crowd.is_gone(&format!("stopped: {stopped:?}, {end}"), start);
    assert!(crowd.bystanders.iter().all(|life| !life.is_over()), "the bystanders are nobody's business");
}

fn f76_a_stopped_zygote_keeps_no_worker() {
    f79_killed_with_stopped_zygotes([true, false], "return");
}

fn f76_a_stopped_ancestor_keeps_no_worker() {
    f79_killed_with_stopped_zygotes([false, true], "return");
}

fn f76_two_stopped_zygotes_keep_no_worker() {
    f79_killed_with_stopped_zygotes([true, true], "return");
}

fn f77_a_stopped_zygote_and_bystanders_keep_no_worker() {
    f79_killed_with_stopped_zygotes([true, false], "bystanders");
}

fn f77_a_stopped_ancestor_and_bystanders_keep_no_worker() {
    f79_killed_with_stopped_zygotes([false, true], "bystanders");
}

fn f78_however_a_program_ends_its_workers_end() {
    for (end, code, signal) in [
        ("return", Some(0), None),
        ("return with live handles", Some(0), None),
        ("detach", Some(0), None),
        ("exit", Some(3), None),
        ("exit from a thread", Some(4), None),
        ("abort", None, Some(libc::SIGABRT)),
        ("panic", if cfg!(panic = "abort") { None } else { Some(101) }, cfg!(panic = "abort").then_some(libc::SIGABRT)),
    ] {
        let mut crowd = Crowd::start("asleep=2,blocked=1,busy=1,stubborn=2,deaf=1,stopped=2,parental=1", end);
        crowd.assert_alive();
        let start = Instant::now();
        let status = crowd.end();
        crowd.is_gone(end, start);
        assert_eq!((status.code(), status.signal()), (code, signal), "{end}");
    }
}

fn f83_a_program_that_becomes_another_leaves_no_worker() {
    let mut crowd = Crowd::start("asleep=4,blocked=2,busy=1,stubborn=2,deaf=1,stopped=2,parental=1", "exec");
    crowd.assert_alive();
    let program = Life::of(crowd.program.id());
    let start = Instant::now();
    crowd.stdin = None;
    crowd.is_gone("exec", start);
    assert!(!program.is_over(), "the other program runs");
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", program.pid)).unwrap().trim(), "sleep");
    crowd.program.kill().unwrap();
}
