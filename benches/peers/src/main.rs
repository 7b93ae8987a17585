//! Other ways to run a function in a process, measured on order: `peers SUBJECT`, then one order a line on stdin,
//! one answer a line on stdout. The benchmark of the library at the root of this repository starts one such process for
//! each subject, so that they do not disturb each other, and gives its orders in turn with its own rows.
//!
//! | order | answer |
//! | --- | --- |
//! | `latency COUNT PAUSE` | `ok` and each latency |
//! | `rate IN_FLIGHT TIME` | `ok`, how many were done, and in what time |
//! | `memory BYTES` | `ok`, with so much of it touched |
//!
//! All times are in nanoseconds. The job is `fib(10)`; the clock stops when the caller has its result.

use std::{
    error::Error,
    hint::black_box,
    io::{self, BufRead, Write},
    thread,
    time::{Duration, Instant},
};

const N: u64 = 10;
const VALUE: u64 = 55;

fn fib(n: u64) -> u64 {
    if n <= 1 { n } else { fib(n - 1) + fib(n - 2) }
}

/// What a peer does for one task. It says when it has the result; what it cleans up then is not counted as latency.
enum Subject {
    MemIsolate,
    ZygoteSpawn,
    Procspawn,
    ProcspawnPool(procspawn::Pool),
    /// This program, executed again.
    TokioReexec(tokio::runtime::Runtime),
    /// The library of this repository, without warm workers, in a program that has all of tokio.
    TokioFull(tokio::runtime::Runtime, tokio_run_in_process::Zygote),
}

/// Set in the environment of this program when it is to be the child of a re-exec.
const REEXEC: &str = "PEERS_REEXEC";

async fn reexec() -> Result<u64, Box<dyn Error + Send + Sync>> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    let output = command.env(REEXEC, "1").stdin(std::process::Stdio::null()).output().await?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

async fn fib_task(n: u64) -> u64 {
    if n <= 1 { n } else { Box::pin(fib_task(n - 1)).await + Box::pin(fib_task(n - 2)).await }
}

impl Subject {
    fn new(name: &str) -> Result<Self, Box<dyn Error>> {
        match name {
            "mem-isolate" => Ok(Self::MemIsolate),
            "zygote" => {
                // While there is one thread.
                zygote::Zygote::init();
                Ok(Self::ZygoteSpawn)
            }
            "procspawn" => Ok(Self::Procspawn),
            "procspawn-pool" => {
                let workers = thread::available_parallelism()?.get();
                Ok(Self::ProcspawnPool(procspawn::Pool::new(workers)?))
            }
            "tokio" => Ok(Self::TokioReexec(tokio::runtime::Runtime::new()?)),
            "cold-full" => {
                // While there is one thread.
                let zygote = tokio_run_in_process::Zygote::builder().warm(0).max_processes(64).start()?;
                Ok(Self::TokioFull(tokio::runtime::Runtime::new()?, zygote))
            }
            other => Err(format!("unknown subject {other:?}").into()),
        }
    }

    fn once(&self) -> Result<Duration, Box<dyn Error + Send + Sync>> {
        let n = black_box(N);
        let start = Instant::now();
        let mut spawned = None;
        let value = match self {
            Self::MemIsolate => mem_isolate::execute_in_isolated_process(|| fib(n))?,
            Self::ZygoteSpawn => spawned.insert(zygote::Zygote::global().spawn()).try_run(fib, n)?,
            Self::Procspawn => procspawn::spawn(n, fib).join()?,
            Self::ProcspawnPool(pool) => pool.spawn(n, fib).join()?,
            Self::TokioReexec(runtime) => runtime.block_on(reexec())?,
            Self::TokioFull(runtime, zygote) => runtime.block_on(zygote.run_in_process(fib_task, n))?,
        };
        let time = start.elapsed();
        drop(spawned);
        if value == VALUE { Ok(time) } else { Err(format!("fib gave {value}").into()) }
    }

    fn latencies(&self, count: u64, pause: Duration) -> Result<Vec<u64>, Box<dyn Error + Send + Sync>> {
        let mut times = Vec::new();
        for _ in 0..count {
            if !pause.is_zero() {
                thread::sleep(pause);
            }
            times.push(nanos(self.once()?));
        }
        Ok(times)
    }

    fn rate(&self, in_flight: u64, time: Duration) -> Result<Vec<u64>, Box<dyn Error + Send + Sync>> {
        let start = Instant::now();
        let caller = || {
            let mut done = 0;
            while start.elapsed() < time {
                self.once()?;
                done += 1;
            }
            Ok::<u64, Box<dyn Error + Send + Sync>>(done)
        };
        let done = thread::scope(|scope| {
            let callers: Vec<_> = (0..in_flight).map(|_| scope.spawn(caller)).collect();
            callers.into_iter().map(|caller| caller.join().map_err(|_| "a caller panicked")?).sum::<Result<u64, _>>()
        })?;
        Ok(vec![done, nanos(start.elapsed())])
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn answer(subject: &Subject, memory: &mut Vec<u8>, order: &str) -> Result<Vec<u64>, Box<dyn Error + Send + Sync>> {
    let words: Vec<&str> = order.split_whitespace().collect();
    match *words.as_slice() {
        ["latency", count, pause] => subject.latencies(count.parse()?, Duration::from_nanos(pause.parse()?)),
        ["rate", in_flight, time] => subject.rate(in_flight.parse()?, Duration::from_nanos(time.parse()?)),
        ["memory", bytes] => {
            *memory = Vec::new();
            *memory = black_box(vec![1; bytes.parse()?]);
            Ok(Vec::new())
        }
        _ => Err(format!("unknown order {order:?}").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::var_os(REEXEC).is_some() {
        println!("{}", fib(black_box(N)));
        return Ok(());
    }
    procspawn::init();
    let subject = Subject::new(&std::env::args().nth(1).unwrap_or_default())?;
    let mut memory = Vec::new();
    for order in io::stdin().lock().lines() {
        let line = match answer(&subject, &mut memory, &order?) {
            Ok(numbers) => numbers.into_iter().fold("ok".to_owned(), |line, number| format!("{line} {number}")),
            Err(error) => format!("error {}", error.to_string().replace('\n', " ")),
        };
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}
