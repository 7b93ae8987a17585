//! Bytes of all sizes, there and back: whole, in time for others, and within their limits.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio_run_in_process::{
    Bytes, Coded, Error, Fd, Phase, Pool, Shared, Signal, Task, Zygote, default_zygote, open_in_process,
    run_blocking_in_process, run_in_process,
};

use crate::{
    harness::{begin, children, eventually},
    options::spawn_error,
    oracle::{no_core_files, undisturbed, undisturbed_with},
    orphans::Life,
    runtimes::{current_thread, elsewhere},
    seed::runtimes,
    tools::{Notes, note},
};

crate::cases![
    many_pieces_in_one_value,
    an_argument_limit_is_exact,
    what_travels_by_descriptor_does_not_count,
    a_result_that_the_parent_has_no_memory_for,
    arguments_that_the_worker_has_no_memory_for;
    90 => every_size_travels,
    other_types_of_bytes_travel,
    d59_arguments_that_are_not_read,
    d59_transfers_that_are_dropped_half_way,
    d59_a_worker_that_is_killed_while_it_reads_or_writes,
    d59_a_warm_worker_that_is_killed_while_it_reads,
    large_values_both_ways_at_once,
    others_go_on_beside_64_megabytes,
    others_go_on_beside_a_gigabyte,
];

/// Bytes of which each place is told from every other: a period that fits no buffer, and a number in each megabyte.
pub(crate) fn made(size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let (number, left) = (bytes.len() / SECTION, size - bytes.len());
        bytes.extend_from_slice(&number.to_le_bytes()[..left.min(8)]);
        let end = (number * SECTION + SECTION).min(size);
        while bytes.len() < end {
            let part = part(bytes.len(), end);
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

/// Whether these are `made` bytes.
pub(crate) fn is_made(bytes: &[u8], size: usize) -> bool {
    let section = |(number, section): (usize, &[u8])| {
        let (head, mut rest) = section.split_at(section.len().min(8));
        let (mut at, end) = (number * SECTION + head.len(), number * SECTION + section.len());
        while at < end {
            let part = part(at, end);
            if !rest.starts_with(part) {
                return false;
            }
            rest = &rest[part.len()..];
            at += part.len();
        }
        number.to_le_bytes().starts_with(head)
    };
    bytes.len() == size && bytes.chunks(SECTION).enumerate().all(section)
}

const SECTION: usize = 1 << 20;
const PERIOD: usize = 4093;

fn part(at: usize, end: usize) -> &'static [u8] {
    static PATTERN: [u8; PERIOD] = {
        let (mut pattern, mut n) = ([0; PERIOD], 0);
        while n < PERIOD {
            pattern[n] = (n * 7 + n / 251) as u8;
            n += 1;
        }
        pattern
    };
    let start = at % PERIOD;
    &PATTERN[start..(start + end - at).min(PERIOD)]
}

async fn takes(bytes: Bytes, size: usize) -> bool {
    is_made(&bytes, size)
}

async fn gives(size: usize) -> Bytes {
    made(size).into()
}

async fn echoes(bytes: Bytes) -> Bytes {
    bytes
}

/// The thresholds of both sides, with the headers and lengths that are before the bytes.
fn sizes() -> Vec<usize> {
    let mut sizes = vec![0, 1, 250, 251, 65_535, 65_536, 3 << 20, (5 << 20) + 1];
    for threshold in [2048, 4096, 16 << 10, 64 << 10, 106_432, 128 << 10, 212_992, 256 << 10, 1 << 20] {
        let before = [0, 3, 5, 16, 19, 21, 48, 51, 53, 67, 69];
        sizes.extend(
            before.iter().flat_map(|before| [threshold - before - 1, threshold - before, threshold - before + 1]),
        );
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn every_size_travels() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for (n, size) in sizes().into_iter().enumerate() {
            let bytes = Bytes::from(made(size));
            let came = match n % 4 {
                0 => run_in_process(echoes, bytes.clone()).await,
                1 => open_in_process(echoes, bytes.clone()).await.unwrap().wait().await,
                2 => run_blocking_in_process(|bytes: Bytes| bytes, bytes.clone()).await,
                _ => pool.run(echoes, bytes.clone()).await,
            };
            assert!(came.unwrap() == bytes, "{size}, way {}", n % 4);
            assert!(run_in_process(takes, (bytes.clone(), size)).await.unwrap(), "{size}");
            assert!(is_made(&run_in_process(gives, size).await.unwrap(), size), "{size}");
            assert!(pool.run(takes, (bytes.clone(), size)).await.unwrap(), "{size}");
            assert!(is_made(&pool.run(gives, size).await.unwrap(), size), "{size}");
        }
        drop(pool);
    });
}

fn other_types_of_bytes_travel() {
    undisturbed(|| async {
        for size in [0, 1, 2047, 4096, 16 << 10, (64 << 10) + 1, 212_992, (1 << 20) - 1, (3 << 20) + 7] {
            for (runtime, task) in runtimes(&Task::new()) {
                let came = task.run(async |bytes: bytes::Bytes| bytes, made(size).into()).await.unwrap();
                assert!(is_made(&came, size), "{runtime}, {size}");
                let came = task.run(async |bytes: ByteBuf| bytes, ByteBuf::from(made(size))).await.unwrap();
                assert!(is_made(&came, size), "{runtime}, {size}");
                let came = task.run(async |bytes: Vec<u8>| bytes, made(size)).await.unwrap();
                assert!(is_made(&came, size), "{runtime}, {size}");
                // Encoded alike, so one can be received as another.
                let mixed = async |a: Bytes, b: bytes::Bytes| (ByteBuf::from(a.into_vec()), Bytes::from(b));
                let (a, b) = task.run(mixed, (made(size).into(), made(size).into())).await.unwrap();
                assert!(is_made(&a, size) && is_made(&b, size), "{runtime}, {size}");
            }
        }
    });
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Album {
    title: String,
    cover: Option<Bytes>,
    pages: Vec<Bytes>,
    notes: BTreeMap<u32, Bytes>,
    nested: Option<Box<Album>>,
    end: u8,
}

impl Album {
    /// Pieces that are sent from where they are, with smaller ones and other values in between.
    fn of(count: usize) -> Self {
        let piece = |n: usize| Bytes::from(made([16 << 10, 100, (16 << 10) + 1, 0, 20_000, (16 << 10) - 1][n % 6] + n));
        Self {
            title: "x".repeat(count),
            cover: Some(made(300_000).into()),
            pages: (0..count).map(piece).collect(),
            notes: (0..count).map(|n| (n as u32, piece(n + 3))).collect(),
            nested: Some(Box::new(Self { cover: Some(piece(2)), end: 5, ..Self::default() })),
            end: 7,
        }
    }
}

fn many_pieces_in_one_value() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for count in [1, 7, 8, 9, 200] {
            let album = Album::of(count);
            for (runtime, task) in runtimes(&Task::new()) {
                assert!(
                    task.run(async |album: Album| album, album.clone()).await.unwrap() == album,
                    "{runtime} {count}"
                );
            }
            assert!(run_blocking_in_process(|album: Album| album, album.clone()).await.unwrap() == album, "{count}");
            assert!(pool.run(async |album: Album| album, album.clone()).await.unwrap() == album, "{count}");
        }
        // The same bytes many times over: each goes by itself.
        let piece = Bytes::from(made(16 << 10));
        let pieces = vec![piece.clone(); 1000];
        let came = run_in_process(async |pieces: Vec<Bytes>| pieces, pieces).await.unwrap();
        assert!(came.len() == 1000 && came.iter().all(|came| *came == piece));
    });
}

/// Lets something happen on a runtime of one thread, while another task there wants to act every five milliseconds, and
/// gives how long that had to wait at most.
fn beside_a_heartbeat(act: impl AsyncFnOnce()) -> Duration {
    current_thread().block_on(async {
        let worst = Arc::new(Mutex::new(Duration::ZERO));
        let heart = tokio::spawn({
            let worst = worst.clone();
            async move {
                loop {
                    let before = Instant::now();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let mut worst = worst.lock().unwrap();
                    *worst = worst.max(before.elapsed());
                }
            }
        });
        tokio::task::yield_now().await;
        act().await;
        // One more beat, which shows the last gap.
        tokio::time::sleep(Duration::from_millis(10)).await;
        heart.abort();
        let worst = *worst.lock().unwrap();
        worst
    })
}

/// What may be on a busy machine. A caller that reads or sends everything before others have their turn takes longer.
const LATE: Duration = Duration::from_secs(1);

fn others_go_on_beside(size: usize, times: usize) {
    undisturbed(|| async {
        let bytes = Bytes::from(made(size));
        let task = Task::new().startup_timeout(Duration::from_secs(60));
        let pool = Pool::builder().workers(1).build().unwrap();
        for _ in 0..times {
            for way in 0..5 {
                let late = elsewhere(|| {
                    beside_a_heartbeat(async || match way {
                        0 => assert!(task.run(takes, (bytes.clone(), size)).await.unwrap()),
                        1 => assert!(task.run(gives, size).await.unwrap().len() == size),
                        2 => assert!(task.run(echoes, bytes.clone()).await.unwrap().len() == size),
                        3 => {
                            let process = task.open(echoes, bytes.clone()).await.unwrap();
                            assert!(process.wait().await.unwrap().len() == size);
                        }
                        _ => assert!(pool.run(echoes, bytes.clone()).await.unwrap().len() == size),
                    })
                });
                println!("{size} bytes, way {way}: others waited {late:?} at most");
                assert!(late < LATE, "{size} bytes, way {way}: {late:?}");
            }
        }
        // What came is right, which was not looked at while others waited.
        assert!(task.run(echoes, bytes.clone()).await.unwrap() == bytes);
    });
}

fn others_go_on_beside_64_megabytes() {
    others_go_on_beside(64 << 20, 3);
}

fn others_go_on_beside_a_gigabyte() {
    others_go_on_beside(1_000_000_000, 1);
}

/// Without warm workers, so that the only child of the zygote is the task's.
fn cold() -> tokio_run_in_process::ZygoteBuilder {
    Zygote::builder().warm(0).grace_period(Duration::from_millis(200))
}

async fn only_child(zygote: &Zygote) -> Life {
    eventually("it is born", || children(zygote.pid()).len() == 1).await;
    Life::of(children(zygote.pid())[0])
}

const MUCH: usize = 64 << 20;

fn d59_arguments_that_are_not_read() {
    undisturbed_with(cold().startup_timeout(Duration::from_millis(300)), |zygote| async move {
        let notes = Notes::new("never");
        let never = async |path: String, _: Bytes| note(&path, "ran");
        let arguments = (notes.path(), Bytes::from(made(MUCH)));
        // What fits is sent at the first poll; a worker that is stopped then has not begun.
        let run = begin(zygote.run_in_process(never, arguments.clone())).await;
        only_child(&zygote).await.signal(libc::SIGSTOP);
        let error = run.await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { phase: Phase::Starting, .. }), "{error:?}");
        eventually("it is gone", || zygote.metrics().alive == 0).await;
        // Dropped instead.
        let run = begin(zygote.run_in_process(never, arguments.clone())).await;
        only_child(&zygote).await.signal(libc::SIGSTOP);
        drop(run);
        eventually("it is gone", || zygote.metrics().alive == 0).await;
        // Nobody is blocked by it, the driver neither: others have their turn on each runtime meanwhile.
        let stopped = Life::of(zygote.pid());
        stopped.signal(libc::SIGSTOP);
        let late = elsewhere(|| {
            beside_a_heartbeat(async || {
                let (run, open) =
                    (zygote.run_in_process(never, arguments.clone()), zygote.open_in_process(never, arguments.clone()));
                let (run, open) = tokio::join!(run, open);
                for error in [run.unwrap_err(), open.unwrap_err()] {
                    assert!(matches!(error, Error::TimedOut { phase: Phase::Starting, .. }), "{error:?}");
                    assert!(error.is_retryable());
                }
            })
        });
        stopped.signal(libc::SIGCONT);
        assert!(late < LATE, "{late:?}");
        assert_eq!(notes.text(), "");
    });
}

fn d59_transfers_that_are_dropped_half_way() {
    undisturbed_with(Zygote::builder().grace_period(Duration::from_millis(200)), |zygote| async move {
        let bytes = Bytes::from(made(MUCH));
        let pool = zygote.pool().workers(2).build().unwrap();
        for millis in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
            let within = Duration::from_millis(millis);
            let hasty = zygote.task().timeout(Duration::from_millis(10));
            let _ = tokio::time::timeout(within, zygote.run_in_process(takes, (bytes.clone(), MUCH))).await;
            let _ = tokio::time::timeout(within, zygote.run_in_process(gives, MUCH)).await;
            let _ = tokio::time::timeout(within, pool.run(echoes, bytes.clone())).await;
            if let Ok(process) = tokio::time::timeout(within, zygote.open_in_process(echoes, bytes.clone())).await {
                let _ = tokio::time::timeout(within, process.unwrap().wait()).await;
            }
            // It has them, and does not end by itself.
            let stays = async |_: Bytes| pending::<()>().await;
            let error = hasty.run(stays, bytes.clone()).await.unwrap_err();
            assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{error:?}");
        }
        drop(pool);
    });
}

fn d59_a_worker_that_is_killed_while_it_reads_or_writes() {
    undisturbed_with(cold(), |zygote| async move {
        let bytes = Bytes::from(made(MUCH));
        let run = begin(zygote.run_in_process(takes, (bytes.clone(), MUCH))).await;
        only_child(&zygote).await.kill();
        let error = run.await.unwrap_err();
        assert!(matches!(error, Error::EndedEarly { .. }) && error.is_retryable(), "{error:?}");
        let notes = Notes::new("gives");
        let gives = async |path: String| {
            note(&path, "now");
            Bytes::from(made(MUCH))
        };
        // Nobody reads, so it cannot be through.
        let run = begin(zygote.run_in_process(gives, notes.path())).await;
        notes.say("now").await;
        only_child(&zygote).await.kill();
        let error = run.await.unwrap_err();
        assert_eq!(error.signal(), Some(Signal::KILL), "{error:?}");
    });
}

fn d59_a_warm_worker_that_is_killed_while_it_reads() {
    undisturbed_with(Zygote::builder().warm(1), |zygote| async move {
        let album = Album::of(300);
        for _ in 0..5 {
            let all_stand = || zygote.metrics().warm == 1 && children(zygote.pid()).len() == 1;
            eventually("one stands", all_stand).await;
            let spare = only_child(&zygote).await;
            let run = begin(zygote.run_in_process(async |album: Album| album, album.clone())).await;
            spare.kill();
            assert!(run.await.unwrap() == album, "another one has it, whole");
        }
    });
}

fn large_values_both_ways_at_once() {
    undisturbed(|| async {
        let bytes = Bytes::from(made(8 << 20));
        let pool = Pool::builder().workers(2).build().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..40 {
            let (bytes, pool) = (bytes.clone(), pool.clone());
            tasks.spawn(async move {
                match n % 4 {
                    0 => run_in_process(echoes, bytes).await,
                    1 => open_in_process(echoes, bytes).await.unwrap().wait().await,
                    2 => run_blocking_in_process(|bytes: Bytes| bytes, bytes).await,
                    _ => pool.run(echoes, bytes).await,
                }
            });
        }
        while let Some(came) = tasks.join_next().await {
            assert!(came.unwrap().unwrap() == bytes);
        }
        drop(pool);
    });
}

/// The error of arguments that are too large, of which nothing was started.
fn too_large(error: &Error, size: u64, limit: u64) {
    let Error::TooLarge { what: Coded::Arguments, size: told, limit: allowed, task, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((*told, *allowed, task.pid()), (size, limit, None));
    assert!(error.to_string().contains(&format!("{size} bytes where argument_limit allows {limit}")), "{error}");
    assert!(!error.is_retryable());
}

fn an_argument_limit_is_exact() {
    undisturbed(|| async {
        let started = || default_zygote().unwrap().metrics().started;
        let length = async |bytes: Bytes| bytes.len();
        for (n, size) in [(0, 1), (250, 251), (251, 254), (16_384, 16_387), (65_536, 65_541), (300_000, 300_005)] {
            let bytes = Bytes::from(made(n));
            for (runtime, task) in runtimes(&Task::new().argument_limit(size)) {
                assert_eq!(task.run(length, bytes.clone()).await.unwrap(), n, "{runtime}");
            }
            let before = started();
            let task = Task::new().argument_limit(size - 1);
            too_large(&task.run(length, bytes.clone()).await.unwrap_err(), size, size - 1);
            too_large(&task.open(length, bytes.clone()).await.unwrap_err(), size, size - 1);
            let plain = |bytes: Bytes| bytes.len();
            too_large(&task.run_blocking(plain, bytes.clone()).await.unwrap_err(), size, size - 1);
            too_large(&task.open_blocking(plain, bytes).await.unwrap_err(), size, size - 1);
            assert_eq!(started(), before, "no process was started for it");
        }
        assert_eq!(Task::new().argument_limit(0).run(async || 5, ()).await.unwrap(), 5);
        let error = Task::new().argument_limit(0).run(async |n: u8| n, 5).await.unwrap_err();
        too_large(&error, 1, 0);
        // It is no limit of the result.
        let came = Task::new().argument_limit(9).run(gives, 1 << 20).await.unwrap();
        assert!(is_made(&came, 1 << 20));
    });
    undisturbed_with(Zygote::builder().argument_limit(100), |zygote| async move {
        let length = async |bytes: Bytes| bytes.len();
        assert_eq!(zygote.run_in_process(length, vec![1; 99].into()).await.unwrap(), 99);
        too_large(&zygote.run_in_process(length, vec![1; 100].into()).await.unwrap_err(), 101, 100);
        let other = zygote.task().argument_limit(101);
        assert_eq!(other.run(length, vec![1; 100].into()).await.unwrap(), 100, "the task's own wins");
        let pool = zygote.pool().workers(1).build().unwrap();
        assert_eq!(pool.run(length, vec![1; 99].into()).await.unwrap(), 99);
        too_large(&pool.run(length, vec![1; 100].into()).await.unwrap_err(), 101, 100);
        drop(pool);
    });
}

fn what_travels_by_descriptor_does_not_count() {
    undisturbed(|| async {
        let shared = Shared::new(made(100_000)).unwrap();
        let file = Fd::new(std::fs::File::open("/dev/null").unwrap()).unwrap();
        let task = Task::new().argument_limit(10);
        let look = async |shared: Shared, file: Fd<std::fs::File>| {
            is_made(&shared, 100_000) && file.into_inner().unwrap().metadata().is_ok()
        };
        assert!(task.run(look, (shared, file)).await.unwrap());
    });
}

/// How much more memory this process, and what it starts, may map.
fn set_room(more: u64) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) }, 0);
    limit.rlim_cur = if more == u64::MAX { limit.rlim_max } else { pages * 4096 + more };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

fn a_result_that_the_parent_has_no_memory_for() {
    undisturbed(|| async {
        let size = 600 << 20;
        let pool = Pool::builder().workers(1).build().unwrap();
        assert!(pool.run(gives, 10).await.is_ok());
        set_room(300 << 20);
        let results = [
            run_in_process(gives, size).await,
            open_in_process(gives, size).await.unwrap().wait().await,
            pool.run(gives, size).await,
        ];
        set_room(u64::MAX);
        for result in results {
            let error = result.unwrap_err();
            let Error::Decode { what: Coded::Result, reason, .. } = &error else { panic!("{error:?}") };
            assert!(reason.contains("memory"), "{reason}");
        }
        assert!(is_made(&run_in_process(gives, size).await.unwrap(), size), "there is enough again");
        assert!(is_made(&pool.run(gives, 10).await.unwrap(), 10));
        drop(pool);
    });
}

fn arguments_that_the_worker_has_no_memory_for() {
    no_core_files();
    set_room(600 << 20);
    undisturbed(|| async {
        // The zygote, and so its workers, keep the limit.
        set_room(u64::MAX);
        let size = 900 << 20;
        let bytes = Bytes::from(vec![0; size]);
        let pool = Pool::builder().workers(1).build().unwrap();
        let length = async |bytes: Bytes| bytes.len();
        let outcomes = [
            run_in_process(length, bytes.clone()).await,
            match open_in_process(length, bytes.clone()).await {
                Ok(process) => process.wait().await,
                Err(error) => Err(error),
            },
            pool.run(length, bytes.clone()).await,
        ];
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert_eq!(spawn_error(&error).1.raw_os_error(), Some(libc::ENOMEM), "{error:?}");
            assert!(error.is_retryable());
        }
        assert_eq!(run_in_process(length, vec![0; 10 << 20].into()).await.unwrap(), 10 << 20);
        drop(pool);
    });
}
