//! The ways to run a function in a process: ours, and what else a program could do.

use std::{
    future::Future,
    io::Read,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};
use tokio_run_in_process::{Pool, Zygote};

/// Set in the environment of this program when it is to be the child of a re-exec.
pub(crate) const REEXEC: &str = "TOKIO_RUN_IN_PROCESS_BENCH_REEXEC";

/// Between two requests that are apart, at least. The timer of tokio makes one or two milliseconds of it.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);
/// Between two that are back to back.
pub(crate) const NONE: Duration = Duration::ZERO;

const N: u64 = 10;
const VALUE: u64 = 55;

async fn fib(n: u64) -> u64 {
    if n <= 1 { n } else { Box::pin(fib(n - 1)).await + Box::pin(fib(n - 2)).await }
}

/// The whole program after a re-exec. No runtime: the other side gets the benefit of the doubt.
pub(crate) fn be_reexecuted() {
    fn fib(n: u64) -> u64 {
        if n <= 1 { n } else { fib(n - 1) + fib(n - 2) }
    }
    println!("{}", fib(std::hint::black_box(N)));
}

/// Tasks that did not give their values, though nothing was done to them.
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Counts a failure. The measurement goes on: a run takes minutes.
pub(crate) fn failed(error: &dyn std::error::Error) {
    eprintln!("A TASK FAILED: {error}");
    FAILURES.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
}

/// What failed so far.
pub(crate) fn failures() -> Vec<String> {
    FAILURES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// One of ours.
#[derive(Clone)]
pub(crate) enum Way {
    Run(Zygote),
    Open(Zygote),
    Pool(Pool),
}

impl Way {
    /// Whether it gave its value. A failure is counted, and shown at the end.
    async fn once(&self) -> bool {
        let value = match self {
            Self::Run(zygote) => zygote.run_in_process(fib, N).await,
            Self::Open(zygote) => match zygote.open_in_process(fib, N).await {
                Ok(process) => process.wait().await,
                Err(error) => Err(error),
            },
            Self::Pool(pool) => pool.run(fib, N).await,
        };
        match value {
            Ok(value) => assert_eq!(value, VALUE),
            Err(error) => {
                failed(&error);
                return false;
            }
        }
        true
    }

    async fn each(self, n: usize, pause: Duration) -> Vec<Duration> {
        let mut times = Vec::with_capacity(n);
        for _ in 0..n {
            rest(pause).await;
            let start = Instant::now();
            if self.once().await {
                times.push(start.elapsed());
            }
        }
        times
    }

    async fn many(self, in_flight: usize, time: Duration) -> f64 {
        let start = Instant::now();
        let callers = (0..in_flight).map(|_| {
            let way = self.clone();
            tokio::spawn(async move {
                let mut done = 0_u32;
                while start.elapsed() < time {
                    done += u32::from(way.once().await);
                }
                done
            })
        });
        let mut done = 0;
        for caller in callers.collect::<Vec<_>>() {
            done += caller.await.unwrap();
        }
        f64::from(done) / start.elapsed().as_secs_f64()
    }
}

/// Ours, ready to be used, and the runtimes of the caller.
pub(crate) struct Ways {
    multi: Runtime,
    current: Runtime,
    pub(crate) cold: Way,
    pub(crate) warm: Way,
    pub(crate) open: Way,
    pub(crate) pool: Way,
    /// The same with room for 64 tasks at a time, which is more than the default.
    pub(crate) wide_cold: Way,
    pub(crate) wide_warm: Way,
    pub(crate) wide_pool: Way,
}

/// Workers of the pool that throughput is measured with.
pub(crate) const POOL_WORKERS: usize = 8;

impl Ways {
    /// After `init`.
    pub(crate) fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let default = tokio_run_in_process::default_zygote()?;
        let wide = Zygote::builder().max_processes(64).start()?;
        Ok(Self {
            multi: Builder::new_multi_thread().worker_threads(2).enable_all().build()?,
            current: Builder::new_current_thread().enable_all().build()?,
            cold: Way::Run(Zygote::builder().warm(0).start()?),
            warm: Way::Run(default.clone()),
            open: Way::Open(default.clone()),
            pool: Way::Pool(default.pool().build()?),
            wide_cold: Way::Run(Zygote::builder().warm(0).max_processes(64).start()?),
            wide_pool: Way::Pool(wide.pool().workers(POOL_WORKERS).build()?),
            wide_warm: Way::Run(wide),
        })
    }

    /// The latency of so many tasks, one after another, on a runtime with two threads.
    pub(crate) fn latencies(&self, way: &Way, n: usize, pause: Duration) -> Vec<Duration> {
        self.on_worker(way.clone().each(n, pause))
    }

    /// The same on a runtime with the one thread.
    pub(crate) fn latencies_current_thread(&self, way: &Way, n: usize, pause: Duration) -> Vec<Duration> {
        self.current.block_on(way.clone().each(n, pause))
    }

    /// Tasks per second with so many in flight.
    pub(crate) fn rate(&self, way: &Way, in_flight: usize, time: Duration) -> f64 {
        self.on_worker(way.clone().many(in_flight, time))
    }

    /// On a thread of the multi-thread runtime, where a server's requests are.
    pub(crate) fn on_worker<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.multi.block_on(async { tokio::spawn(future).await.unwrap() })
    }
}

pub(crate) async fn rest(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

fn reexec() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    // The path is Cargo's; it would slow down the loader.
    command.env(REEXEC, "1").env_remove("LD_LIBRARY_PATH").stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn check(printed: &str) {
    assert_eq!(printed.trim().parse(), Ok(VALUE), "what the re-executed program printed");
}

pub(crate) fn reexec_by_std(n: usize, pause: Duration) -> Vec<Duration> {
    let mut command = reexec();
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        std::thread::sleep(pause);
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert!(child.wait().unwrap().success());
        check(&printed);
        times.push(start.elapsed());
    }
    times
}
