//! Everything that can become of a task, for as long as one likes: `TOKIO_RUN_IN_PROCESS_TEST_SOAK` has the seconds.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, Write},
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, Serialize};
use tokio::task::JoinSet;
use tokio_run_in_process::{
    Bytes, Coded, Error, Fd, Pool, Receiver, Sender, Shared, Signal, Stdio, Task, Zygote, channel, worker,
};

use crate::{
    harness::{descriptors, eventually},
    oracle::undisturbed_with,
    tools::{Random, status},
};

// Every task has its own time; the whole has what it is given.
crate::cases![; 1_000_000 => g108_every_outcome_again_and_again];

const SEED: u64 = 0x50a4;
const GRACE: Duration = Duration::from_millis(200);

/// No bytes are one.
#[derive(Serialize)]
struct Never(u8);

impl<'de> Deserialize<'de> for Never {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer)?;
        Err(serde::de::Error::custom("never"))
    }
}

const OUTCOMES: [&str; 17] = [
    "value",
    "large value",
    "panic",
    "exit",
    "signal",
    "killed",
    "dropped",
    "shut down",
    "cancels itself",
    "timeout",
    "too large",
    "undecodable",
    "channel",
    "descriptor",
    "shared",
    "bytes",
    "pool",
];

async fn echo(mut incoming: Receiver<u64>, mut outgoing: Sender<u64>) -> u64 {
    let mut sum = 0;
    while let Some(n) = incoming.recv().await.unwrap() {
        outgoing.send(n + 1).await.unwrap();
        sum += n;
    }
    sum
}

async fn one(task: Task, pool: Pool, what: &'static str, n: u64) -> Result<(), Error> {
    match what {
        "value" => assert_eq!(task.run(async |n: u64| n + 1, n).await?, n + 1),
        "large value" => {
            let size = usize::try_from(n % 300_000).unwrap();
            let text = task.run_blocking(|size: usize| "x".repeat(size), size).await?;
            assert_eq!(text.len(), size);
        }
        "panic" => {
            let error = task.run(async |n: u64| -> u8 { panic!("panic of {n}") }, n).await.unwrap_err();
            assert_eq!(error.panic().expect("a panic").message(), format!("panic of {n}"));
        }
        "exit" => {
            let code = (n % 256) as i32;
            let error = task.run_blocking(|code: i32| -> u8 { std::process::exit(code) }, code).await.unwrap_err();
            assert_eq!(error.exit_code(), Some(code));
        }
        "signal" => {
            let error = task.run(async || -> u8 { std::process::abort() }, ()).await.unwrap_err();
            assert_eq!(error.signal(), Some(Signal::ABRT));
        }
        "killed" => {
            let process = task.open(std::future::pending::<u8>, ()).await?;
            process.kill().unwrap();
            assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::KILL));
        }
        "dropped" => {
            let run = task.run(std::future::pending::<u8>, ());
            let soon = tokio::time::timeout(Duration::from_micros(n % 3000), run);
            assert!(soon.await.is_err());
        }
        "shut down" => {
            let process = task.open(std::future::pending::<u8>, ()).await?;
            process.shutdown().await;
            assert!(process.wait().await.unwrap_err().is_cancelled());
        }
        "cancels itself" => {
            let cancels = async || -> u8 { match worker::cancel().await {} };
            assert!(task.run(cancels, ()).await.unwrap_err().is_cancelled());
        }
        "timeout" => {
            let hasty = task.timeout(Duration::from_millis(n % 20));
            assert!(hasty.run(std::future::pending::<u8>, ()).await.unwrap_err().is_timeout());
        }
        "too large" => {
            let error = task.result_limit(100).run(async || "x".repeat(1000), ()).await.unwrap_err();
            assert!(matches!(error, Error::TooLarge { what: Coded::Result, limit: 100, .. }), "{error:?}");
        }
        "undecodable" => {
            let error = task.run(async || Never(7), ()).await.map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Decode { .. }), "{error:?}");
        }
        "channel" => {
            let (mut to, incoming) = channel().unwrap();
            let (outgoing, mut from) = channel().unwrap();
            let process = task.open(echo, (incoming, outgoing)).await?;
            for n in 0..20 {
                to.send(n).await.unwrap();
                assert_eq!(from.recv().await.unwrap(), Some(n + 1));
            }
            drop(to);
            assert_eq!(process.wait().await?, 190);
        }
        "descriptor" => {
            // SAFETY: a live name; the descriptor is nobody else's.
            let made = unsafe { libc::memfd_create(c"soak".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(made >= 0);
            // SAFETY: as above.
            let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(made) };
            file.write_all(&n.to_le_bytes()).unwrap();
            file.rewind().unwrap();
            let reads = |file: Fd<File>| {
                let mut bytes = [0; 8];
                file.into_inner().unwrap().read_exact(&mut bytes).unwrap();
                u64::from_le_bytes(bytes)
            };
            assert_eq!(task.run_blocking(reads, Fd::new(file).unwrap()).await?, n);
        }
        "shared" => {
            let shared = Shared::new(vec![7; 50_000]).unwrap();
            let sum = |shared: Shared| shared.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            assert_eq!(task.run_blocking(sum, shared).await?, 350_000);
        }
        "bytes" => {
            let bytes = Bytes::from(vec![n as u8; 200_000]);
            assert!(task.run(async |bytes: Bytes| bytes, bytes.clone()).await? == bytes);
        }
        "pool" => match n % 4 {
            0 => {
                let error = pool.run(async |code: i32| -> u8 { std::process::exit(code) }, 7).await.unwrap_err();
                assert_eq!(error.exit_code(), Some(7));
            }
            _ => assert_eq!(pool.run(async |n: u64| n * 2, n / 2).await?, n / 2 * 2),
        },
        other => unreachable!("{other}"),
    }
    Ok(())
}

/// Resident kilobytes of the program and of its zygote, and how many descriptors both have, while nothing runs.
async fn held(zygote: &Zygote) -> [u64; 4] {
    eventually("all are gone", || zygote.metrics().alive == 0).await;
    crate::harness::nothing_is_left(zygote).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let resident = |pid| status(pid, "VmRSS").unwrap().trim_end_matches(" kB").trim().parse::<u64>().unwrap();
    let (we, they) = (std::process::id(), zygote.pid());
    [resident(we), resident(they), descriptors(we).len() as u64, descriptors(they).len() as u64]
}

fn g108_every_outcome_again_and_again() {
    let seconds = std::env::var("TOKIO_RUN_IN_PROCESS_TEST_SOAK").map_or(20, |seconds| seconds.parse().unwrap());
    let whole = Duration::from_secs(seconds);
    // SAFETY: there is one thread. A debug build takes long to print a backtrace, and nobody reads it.
    unsafe { std::env::remove_var("RUST_BACKTRACE") };
    println!("the seed is {SEED:#x}");
    // A number of spares that does not change.
    undisturbed_with(Zygote::builder().max_processes(24).warm(0), |zygote| async move {
        let mut random = Random::new(SEED);
        let mut counts = BTreeMap::<_, u64>::new();
        let (start, mut samples) = (Instant::now(), Vec::new());
        // The first eighth is for whatever is made once.
        for part in 1..=8 {
            let pool = zygote.pool().workers(3).max_tasks_per_worker(50).build().unwrap();
            let mut tasks = JoinSet::new();
            while start.elapsed() < whole * part / 8 {
                if tasks.len() == 30 {
                    let (what, outcome): (_, Result<(), Error>) = tasks.join_next().await.unwrap().unwrap();
                    outcome.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                }
                let (at, n) = (usize::try_from(random.below(17)).unwrap(), random.below(1 << 40));
                let (what, pool) = (OUTCOMES[at], pool.clone());
                *counts.entry(what).or_default() += 1;
                let task = zygote.task().stderr(Stdio::null()).grace_period(GRACE);
                tasks.spawn(async move {
                    let outcome = tokio::time::timeout(Duration::from_secs(60), one(task, pool, what, n)).await;
                    (what, outcome.unwrap_or_else(|_| panic!("no outcome: {what}, {n}")))
                });
            }
            while let Some(done) = tasks.join_next().await {
                let (what, outcome) = done.unwrap();
                outcome.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            }
            drop(pool);
            samples.push(held(&zygote).await);
        }
        println!("{} tasks, {counts:?}\n{samples:?}", counts.values().sum::<u64>());
        assert_eq!(counts.len(), OUTCOMES.len());
        let (first, last) = (samples[1], samples[7]);
        assert_eq!(first[2..], last[2..], "descriptors: {samples:?}");
        for process in [0, 1] {
            assert!(last[process] < first[process] + 4096, "memory grows: {samples:?}");
        }
    });
}
