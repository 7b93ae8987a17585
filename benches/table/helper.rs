//! Small processes of this image, forked before the program has anything: yardsticks, which do nothing but fork, `_exit`
//! and wait; a peer that sends back what it gets; and one that only moves bytes.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    ptr,
    time::{Duration, Instant},
};

/// Bytes of one ping.
pub(crate) const PING: usize = 64;

/// An order to a helper: three numbers, of which the first says what is wanted. The answer is a count and as many numbers.
type Order = [u64; 3];
const LATENCIES: u64 = 1;
const RATE: u64 = 2;
const TAKE: u64 = 3;
const GIVE: u64 = 4;

/// The parent's end of a yardstick.
pub(crate) struct Yardstick(UnixStream);

/// The parent's end of the process that moves bytes.
pub(crate) struct Mover(UnixStream);

/// All that is forked.
pub(crate) struct Helpers {
    pub(crate) yardstick: Yardstick,
    /// Another, for the machine's limit with two processes that fork.
    pub(crate) second: Yardstick,
    /// One that keeps itself and its children on one CPU.
    pub(crate) same_cpu: Yardstick,
    pub(crate) mover: Mover,
    pub(crate) echo: UnixStream,
}

type Life = fn(UnixStream) -> io::Result<()>;

/// Forks them. The caller has one thread.
pub(crate) fn fork_all() -> io::Result<Helpers> {
    let pinned: Life = |line| {
        pin_to_this_cpu();
        measure(line)
    };
    let lives: [Life; 5] = [measure, measure, pinned, move_bytes, echo];
    let pairs: Vec<_> = lives.iter().map(|_| UnixStream::pair()).collect::<io::Result<_>>()?;
    for (n, life) in lives.into_iter().enumerate() {
        if fork() == 0 {
            // Only its own end stays, so that it sees the end of this process.
            let Some((_, end)) = pairs.into_iter().nth(n) else { exit() };
            let _ = life(end);
            exit();
        }
    }
    let mut ours = pairs.into_iter().map(|(ours, _)| ours);
    let mut next = || ours.next().ok_or(io::ErrorKind::NotFound);
    Ok(Helpers {
        yardstick: Yardstick(next()?),
        second: Yardstick(next()?),
        same_cpu: Yardstick(next()?),
        mover: Mover(next()?),
        echo: next()?,
    })
}

impl Yardstick {
    /// How long each of `n` forks took, from `fork` to the return of `waitpid`, with a pause between them.
    pub(crate) fn latencies(&mut self, n: usize, pause: Duration) -> Vec<Duration> {
        order(&mut self.0, [LATENCIES, n as u64, nanos(pause)]);
        answer(&mut self.0).into_iter().map(Duration::from_nanos).collect()
    }

    /// Forks per second with `in_flight` children at a time.
    pub(crate) fn rate(&mut self, in_flight: usize, time: Duration) -> f64 {
        self.begin_rate(in_flight, time);
        self.end_rate()
    }

    /// The same in two steps, so that two can do it at once.
    pub(crate) fn begin_rate(&mut self, in_flight: usize, time: Duration) {
        order(&mut self.0, [RATE, in_flight as u64, nanos(time)]);
    }

    pub(crate) fn end_rate(&mut self) -> f64 {
        let answer = answer(&mut self.0);
        answer[0] as f64 / Duration::from_nanos(answer[1]).as_secs_f64()
    }
}

impl Mover {
    /// How long the other process took to receive so many bytes into fresh memory and to say so.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Duration {
        let start = Instant::now();
        order(&mut self.0, [TAKE, bytes.len() as u64, 0]);
        self.0.write_all(bytes).expect(ALIVE);
        answer(&mut self.0);
        start.elapsed()
    }

    /// How long it took to receive so many from it.
    pub(crate) fn receive(&mut self, count: usize) -> Duration {
        let start = Instant::now();
        order(&mut self.0, [GIVE, count as u64, 0]);
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).expect(ALIVE);
        std::hint::black_box(&bytes);
        start.elapsed()
    }
}

const ALIVE: &str = "a helper lives as long as the benchmark";

fn order(line: &mut UnixStream, order: Order) {
    let order: Vec<u8> = order.into_iter().flat_map(u64::to_le_bytes).collect();
    line.write_all(&order).expect(ALIVE);
}

fn answer(line: &mut UnixStream) -> Vec<u64> {
    let mut count = [0; 8];
    line.read_exact(&mut count).expect(ALIVE);
    let count = usize::try_from(u64::from_le_bytes(count)).expect("it fits in memory");
    let mut bytes = vec![0; 8 * count];
    line.read_exact(&mut bytes).expect(ALIVE);
    bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("eight bytes"))).collect()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn next_order(line: &mut UnixStream) -> io::Result<Order> {
    let mut order = [0; 24];
    line.read_exact(&mut order)?;
    Ok([0, 1, 2].map(|n| u64::from_le_bytes(std::array::from_fn(|i| order[8 * n + i]))))
}

fn say(line: &mut UnixStream, numbers: &[u64]) -> io::Result<()> {
    let numbers = std::iter::once(numbers.len() as u64).chain(numbers.iter().copied());
    line.write_all(&numbers.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
}

/// The life of a yardstick: until its parent is gone.
fn measure(mut line: UnixStream) -> io::Result<()> {
    loop {
        let [kind, count, time] = next_order(&mut line)?;
        let time = Duration::from_nanos(time);
        say(&mut line, &if kind == LATENCIES { fork_each(count, time) } else { fork_many(count, time) })?;
    }
}

fn fork_each(n: u64, pause: Duration) -> Vec<u64> {
    let mut times = Vec::new();
    for _ in 0..n {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let start = Instant::now();
        wait(fork_and_exit());
        times.push(nanos(start.elapsed()));
    }
    times
}

fn fork_many(in_flight: u64, time: Duration) -> Vec<u64> {
    const ANY: libc::pid_t = -1;
    let start = Instant::now();
    for _ in 0..in_flight {
        fork_and_exit();
    }
    let mut done = 0;
    while start.elapsed() < time {
        wait(ANY);
        done += 1;
        fork_and_exit();
    }
    let elapsed = nanos(start.elapsed());
    for _ in 0..in_flight {
        wait(ANY);
    }
    vec![done, elapsed]
}

/// The life of the mover. Each time in fresh memory, as a fresh process has nothing else.
fn move_bytes(mut line: UnixStream) -> io::Result<()> {
    loop {
        let [kind, count, _] = next_order(&mut line)?;
        let mut bytes = vec![u8::from(kind == GIVE); usize::try_from(count).unwrap_or(0)];
        if kind == GIVE {
            line.write_all(&bytes)?;
        } else {
            line.read_exact(&mut bytes)?;
            say(&mut line, &[u64::from(std::hint::black_box(&bytes).is_empty())])?;
        }
    }
}

/// The life of the peer.
fn echo(mut line: UnixStream) -> io::Result<()> {
    let mut ping = [0; PING];
    loop {
        line.read_exact(&mut ping)?;
        line.write_all(&ping)?;
    }
}

fn fork_and_exit() -> libc::pid_t {
    match fork() {
        0 => exit(),
        pid => pid,
    }
}

#[expect(unsafe_code, reason = "the yardstick is the bare system calls")]
fn fork() -> libc::pid_t {
    // SAFETY: the benchmark forks its helpers before it starts a thread, and they start none.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    pid
}

#[expect(unsafe_code, reason = "the yardstick is the bare system calls")]
fn exit() -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(0) }
}

#[expect(unsafe_code, reason = "the yardstick is the bare system calls")]
fn wait(pid: libc::pid_t) {
    // SAFETY: a null status is allowed.
    let reaped = unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    assert!(reaped > 0, "waitpid: {}", io::Error::last_os_error());
}

/// Keeps this process, and what it forks, on the CPU that it is on. Where that is not possible, the row is as any other.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the yardstick is the bare system calls")]
fn pin_to_this_cpu() {
    // SAFETY: takes nothing.
    let cpu = unsafe { libc::sched_getcpu() };
    // SAFETY: a set of bits, all of which may be zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: checks its bounds.
    unsafe { libc::CPU_SET(usize::try_from(cpu).unwrap_or(0), &mut set) };
    // SAFETY: the set is as large as said.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

#[cfg(not(target_os = "linux"))]
fn pin_to_this_cpu() {}

/// As many descriptors as this user may have: a thousand warm workers need a thousand.
#[expect(unsafe_code, reason = "std cannot set a limit")]
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: a valid limit.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
