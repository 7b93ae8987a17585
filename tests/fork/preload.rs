//! Generations: zygotes that ran the user's function before they serve.

use std::{
    collections::HashMap,
    io::{Read, Seek},
    os::fd::AsRawFd,
    sync::OnceLock,
    time::Duration,
};

use tokio_run_in_process::{
    Error, Pool, Sender, Shared, Signal, Zygote, channel, default_zygote, run_in_process, worker,
};

use crate::{
    harness::{eventually, multi_thread, nothing_is_left, parent_of, send_signal},
    oracle::{no_core_files, scratch, undisturbed},
};

crate::cases![
    a_task_finds_what_was_preloaded,
    statics_that_a_preload_filled_are_there,
    files_that_a_preload_opened_are_open,
    shared_memory_that_a_preload_made_is_not_copied,
    a_preload_says_how_far_it_is,
    a_preload_that_panics,
    a_preload_that_exits_or_is_killed,
    a_preload_that_takes_too_long,
    a_preload_that_is_dropped,
    a_preload_that_leaves_a_thread,
    a_preload_whose_arguments_do_not_decode,
    a_generation_is_recovered_without_running_its_preload_again,
    a_preload_that_wants_to_hear_of_its_children,
    a_generation_of_a_generation,
    generations_share_the_count_of_processes,
    workers_of_a_generation_draw_different_numbers,
    a_pool_of_a_generation,
    an_old_generation_ends_with_its_last_task;
    90 => a_generation_is_replaced_under_load_without_losing_a_task,
    a_thousand_tasks_read_half_a_gigabyte,
];

type Table = HashMap<u64, String>;

fn load(size: u64) -> Table {
    (0..size).map(|n| (n, format!("row {n}"))).collect()
}

async fn look_up(n: u64) -> Option<String> {
    worker::preloaded::<Table>()?.get(&n).cloned()
}

fn a_task_finds_what_was_preloaded() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().preload(load, 1000).await.unwrap();
        for n in [0, 500, 999] {
            assert_eq!(zygote.run_in_process(look_up, n).await.unwrap(), Some(format!("row {n}")));
        }
        assert_eq!(zygote.run_in_process(look_up, 1000).await.unwrap(), None);
        let process = zygote.open_blocking_in_process(|| worker::preloaded::<Table>().map(HashMap::len), ()).await;
        assert_eq!(process.unwrap().await.unwrap(), Some(1000));
        assert_eq!(run_in_process(look_up, 1).await.unwrap(), None, "not in the other zygote");
        assert!(worker::preloaded::<Table>().is_none(), "not here");
        assert!(zygote.run_in_process(async || worker::preloaded::<u8>().is_none(), ()).await.unwrap());
        nothing_is_left(&zygote).await;
    });
}

static WORDS: OnceLock<Vec<String>> = OnceLock::new();

fn statics_that_a_preload_filled_are_there() {
    undisturbed(|| async {
        let fill = |words: Vec<String>| WORDS.set(words).unwrap();
        let zygote = default_zygote().unwrap().preload(fill, vec!["one".to_owned(), "two".into()]).await.unwrap();
        let words = zygote.run_in_process(async || WORDS.get().cloned(), ()).await.unwrap().unwrap();
        assert_eq!(words, ["one", "two"]);
        assert!(WORDS.get().is_none());
    });
}

fn files_that_a_preload_opened_are_open() {
    undisturbed(|| async {
        let path = scratch("database");
        std::fs::write(&path, "contents").unwrap();
        let open = |path: String| std::fs::File::open(path).unwrap();
        let zygote = default_zygote().unwrap().preload(open, path.clone()).await.unwrap();
        let read = async || {
            let mut file = worker::preloaded::<std::fs::File>().unwrap();
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            (text, file.as_raw_fd())
        };
        for _ in 0..10 {
            let (text, number) = zygote.run_in_process(read, ()).await.unwrap();
            assert_eq!(text, "contents");
            assert!(number > 4, "{number}");
        }
        std::fs::remove_file(path).unwrap();
    });
}

fn shared_memory_that_a_preload_made_is_not_copied() {
    const SIZE: usize = 64 << 20;
    fn make() -> Shared {
        let mut shared = Shared::builder(SIZE).unwrap();
        shared.fill(7);
        shared.finish().unwrap()
    }
    async fn sum() -> (u64, u64) {
        let shared = worker::preloaded::<Shared>();
        let sum = shared.map_or(0, |shared| shared.iter().map(|&byte| u64::from(byte)).sum());
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        (sum, line.split_whitespace().nth(1).unwrap().parse().unwrap())
    }
    undisturbed(|| async {
        // What a worker has without.
        let (nothing, before) = default_zygote().unwrap().run_in_process(sum, ()).await.unwrap();
        assert_eq!(nothing, 0);
        let zygote = default_zygote().unwrap().preload(make, ()).await.unwrap();
        for _ in 0..3 {
            let (sum, own) = zygote.run_in_process(sum, ()).await.unwrap();
            assert_eq!(sum, 7 * SIZE as u64);
            assert!(own < before + (8 << 10), "{own} kB of its own, {before} before");
        }
    });
}

/// 500 megabytes on the heap, built once.
fn a_thousand_tasks_read_half_a_gigabyte() {
    const STEP: usize = 1024;
    const STEPS: usize = (500 << 20) / (STEP * size_of::<u32>());
    fn make() -> Vec<u32> {
        let mut table = vec![0; STEPS * STEP];
        table.iter_mut().step_by(STEP).zip(1..).for_each(|(entry, n)| *entry = n);
        table
    }
    /// Every page of a tenth of it; and the kilobytes that are the worker's own, if that is asked for.
    async fn read(n: usize, measure: bool) -> (u64, u64) {
        let table = worker::preloaded::<Vec<u32>>().unwrap();
        let sum = table.iter().step_by(STEP).skip(n % 10).step_by(10).map(|&entry| u64::from(entry)).sum();
        (sum, if measure { private() } else { 0 })
    }
    fn private() -> u64 {
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let kilobytes = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        rollup.lines().filter(|line| line.starts_with("Private_")).map(kilobytes).sum()
    }
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().preload(make, ()).await.unwrap();
        let mut tasks = tokio::task::JoinSet::<Result<(u64, u64), Error>>::new();
        let (mut sums, mut most) = (0, 0);
        for n in 0..1000 {
            if tasks.len() == 8 {
                let (sum, own) = tasks.join_next().await.unwrap().unwrap().unwrap();
                (sums, most) = (sums + sum, most.max(own));
            }
            tasks.spawn(zygote.run_in_process(read, (n, n % 50 == 0)));
        }
        while let Some(outcome) = tasks.join_next().await {
            let (sum, own) = outcome.unwrap().unwrap();
            (sums, most) = (sums + sum, most.max(own));
        }
        let once = (STEPS * (STEPS + 1) / 2) as u64;
        assert_eq!(sums, 100 * once);
        println!("a task has at most {most} kB of its own");
        assert!((1..4 << 10).contains(&most), "{most} kB of its own");
    });
}

fn a_preload_says_how_far_it_is() {
    fn slowly(mut progress: Sender<u32>) {
        for n in 0..3 {
            progress.blocking_send(n).unwrap();
        }
    }
    undisturbed(|| async {
        let (sender, mut progress) = channel().unwrap();
        let zygote = default_zygote().unwrap();
        let (made, seen) = tokio::join!(async { zygote.preload(slowly, sender).await }, async {
            let mut seen = Vec::new();
            while let Some(n) = progress.recv().await.unwrap() {
                seen.push(n);
            }
            seen
        });
        made.unwrap();
        assert_eq!(seen, [0, 1, 2]);
    });
}

fn a_preload_that_panics() {
    undisturbed(|| async {
        let fails = |n: u8| -> u8 { panic!("no table number {n}") };
        match default_zygote().unwrap().preload(fails, 7).await.unwrap_err() {
            Error::Panicked { report, .. } => {
                assert_eq!(report.message(), "no table number 7");
                assert!(report.location().unwrap().contains("preload.rs"), "{report:?}");
            }
            other => panic!("{other:?}"),
        }
    });
}

/// How it ended can be seen on new kernels only.
fn is_end(error: &Error, expected: impl Fn(&Error) -> bool) -> bool {
    expected(error) || matches!(error, Error::ZygoteLost { started: None, .. })
}

fn a_preload_that_exits_or_is_killed() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let error = zygote.preload(|| std::process::exit(3), ()).await.map(drop).unwrap_err();
        assert!(is_end(&error, |e| matches!(e, Error::Exited { code: 3, .. })), "{error:?}");
        no_core_files();
        let error = zygote.preload(|| std::process::abort(), ()).await.map(drop).unwrap_err();
        assert!(is_end(&error, |e| e.signal() == Some(Signal::ABRT)), "{error:?}");
    });
}

fn forever() {
    loop {
        std::thread::park();
    }
}

fn a_preload_that_takes_too_long() {
    undisturbed(|| async {
        let preload = default_zygote().unwrap().preload(forever, ()).timeout(Duration::from_millis(50));
        assert!(preload.await.unwrap_err().is_timeout());
    });
}

fn a_preload_that_is_dropped() {
    undisturbed(|| async {
        let preload = default_zygote().unwrap().preload(forever, ());
        assert!(tokio::time::timeout(Duration::from_millis(50), preload.into_future()).await.is_err());
    });
}

fn a_preload_that_leaves_a_thread() {
    undisturbed(|| async {
        let leaves = || drop(std::thread::spawn(forever));
        let error = default_zygote().unwrap().preload(leaves, ()).await.unwrap_err().to_string();
        assert!(error.contains("1 threads running"), "{error}");
        let joins = || std::thread::spawn(|| 42).join().unwrap();
        let zygote = default_zygote().unwrap().preload(joins, ()).await.unwrap();
        assert_eq!(zygote.run_in_process(async || worker::preloaded::<i32>().copied(), ()).await.unwrap(), Some(42));
    });
}

fn a_preload_whose_arguments_do_not_decode() {
    #[derive(serde::Serialize)]
    struct Wrong;
    impl<'de> serde::Deserialize<'de> for Wrong {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("never"))
        }
    }
    undisturbed(|| async {
        let error = default_zygote().unwrap().preload(|_: Wrong| (), Wrong).await.unwrap_err();
        assert!(matches!(&error, Error::Decode { reason, .. } if reason.contains("never")), "{error:?}");
    });
}

async fn kill(pid: u32) {
    send_signal(pid, libc::SIGKILL);
    eventually("it is gone", || !crate::harness::is_alive(pid)).await;
}

fn a_generation_is_recovered_without_running_its_preload_again() {
    fn once(path: String) -> u32 {
        std::fs::OpenOptions::new().write(true).create_new(true).open(path).unwrap();
        std::process::id()
    }
    undisturbed(|| async {
        let path = scratch("once");
        let zygote = default_zygote().unwrap().preload(once, path.clone()).await.unwrap();
        let made_by = async || worker::preloaded::<u32>().copied();
        let first = zygote.run_in_process(made_by, ()).await.unwrap();
        for round in 0..6 {
            let (serving, ancestor) = (zygote.pid(), parent_of(zygote.pid()).unwrap());
            // The ancestor's end makes the one that serves the next ancestor.
            kill(if round % 2 == 0 { serving } else { ancestor }).await;
            eventually("another one serves", || zygote.pid() != serving).await;
            assert_eq!(zygote.run_in_process(made_by, ()).await.unwrap(), first, "round {round}");
        }
        std::fs::remove_file(path).unwrap();
    });
}

extern "C" fn nothing(_: libc::c_int) {}

/// The ancestor hears of its own all the same: of a zygote that is gone, and of the workers that it inherits from it.
fn a_preload_that_wants_to_hear_of_its_children() {
    fn handles() {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGCHLD, nothing as *const () as libc::sighandler_t) };
    }
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().preload(handles, ()).await.unwrap();
        for _ in 0..3 {
            let task = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
            let serving = zygote.pid();
            kill(serving).await;
            eventually("another one serves", || zygote.pid() != serving).await;
            send_signal(task.pid(), libc::SIGKILL);
            let exited = tokio::time::timeout(Duration::from_secs(5), task.exited()).await.expect("its end is told");
            if crate::lost_zygote::inherits() {
                assert_eq!(exited.0.signal(), Some(Signal::KILL));
            }
        }
    });
}

fn a_generation_of_a_generation() {
    undisturbed(|| async {
        let first = default_zygote().unwrap().preload(load, 10).await.unwrap();
        let second = first.preload(|n: u8| worker::preloaded::<Table>().map(|t| t.len() as u64 + u64::from(n)), 1);
        let second = second.await.unwrap();
        drop(first);
        let both =
            async || (worker::preloaded::<Table>().map(HashMap::len), worker::preloaded::<Option<u64>>().copied());
        for _ in 0..5 {
            assert_eq!(second.run_in_process(both, ()).await.unwrap(), (Some(10), Some(Some(11))));
        }
    });
}

fn generations_share_the_count_of_processes() {
    let zygote = Zygote::builder().max_processes(2).start().unwrap();
    multi_thread().block_on(async {
        let next = zygote.preload(load, 1).await.unwrap();
        let one = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let two = next.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        assert_eq!((zygote.available_processes(), next.available_processes()), (0, 0));
        let hasty = next.task().queue_timeout(Duration::from_millis(20));
        assert!(hasty.run(async || 1, ()).await.unwrap_err().is_timeout());
        drop(one);
        assert_eq!(next.run_in_process(async || 1, ()).await.unwrap(), 1);
        drop(two);
    });
}

fn workers_of_a_generation_draw_different_numbers() {
    fn draws() -> (u64, u64) {
        use std::hash::{BuildHasher, RandomState};
        (rand::random(), RandomState::new().hash_one(1))
    }
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().preload(draws, ()).await.unwrap();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..32 {
            let (a, b) = zygote.run_in_process(async || draws(), ()).await.unwrap();
            assert!(seen.insert(a) && seen.insert(b));
        }
    });
}

fn a_pool_of_a_generation() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().preload(load, 100).await.unwrap();
        let pool = zygote.pool().workers(2).build().unwrap();
        for n in 0..20 {
            assert_eq!(pool.run(look_up, n).await.unwrap(), Some(format!("row {n}")));
        }
        let _: Pool = pool;
    });
}

fn an_old_generation_ends_with_its_last_task() {
    undisturbed(|| async {
        let old = default_zygote().unwrap().preload(load, 10).await.unwrap();
        let (serving, ancestor) = (old.pid(), parent_of(old.pid()).unwrap());
        let (mut go, wait) = channel::<()>().unwrap();
        async fn patient(mut wait: tokio_run_in_process::Receiver<()>) -> Option<String> {
            wait.recv().await.unwrap();
            look_up(3).await
        }
        let task = old.open_in_process(patient, wait).await.unwrap();
        drop(old);
        go.send(()).await.unwrap();
        assert_eq!(task.wait().await.unwrap().as_deref(), Some("row 3"));
        drop(task);
        eventually("both are gone", || ![serving, ancestor].into_iter().any(crate::harness::is_alive)).await;
    });
}

fn a_generation_is_replaced_under_load_without_losing_a_task() {
    undisturbed(|| async {
        let root = default_zygote().unwrap();
        let current = std::sync::Arc::new(std::sync::Mutex::new((0, root.preload(|| 0_u64, ()).await.unwrap())));
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (current, stop) = (current.clone(), stop.clone());
            tasks.spawn(async move {
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (number, zygote) = current.lock().unwrap().clone();
                    let made = zygote.run_in_process(async || worker::preloaded::<u64>().copied(), ()).await;
                    assert_eq!(made.unwrap(), Some(number));
                    count += 1;
                }
                count
            });
        }
        for number in 1..=10 {
            let next = root.preload(|n: u64| n, number).await.unwrap();
            *current.lock().unwrap() = (number, next);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let counts = tasks.join_all().await;
        assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    });
}
