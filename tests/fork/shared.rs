//! Memory that processes share: one copy of it for all of them, which nobody can change, and nothing is left of it.

use std::{
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio_run_in_process::{
    Bytes, Pool, Shared, Signal, Task, Zygote, open_in_process, run_blocking_in_process, run_in_process,
};

use crate::{
    bytes::{is_made, made},
    harness::eventually,
    oracle::{undisturbed, undisturbed_with},
    seed::{run_everywhere, runtimes},
    tools::{Notes, note},
};

crate::cases![
    shared_memory_reaches_every_kind_of_task,
    shared_memory_of_every_size,
    shared_memory_in_other_values,
    a_result_has_a_copy,
    a_worker_cannot_write_it,
    its_maker_may_let_go_of_it,
    workers_let_go_of_it_after_a_task,
    a_generation_has_what_its_preload_kept,
    none_is_made_at_the_limit_of_descriptors,
    a_builder_is_filled_in_place;
    60 => a_hundred_tasks_have_one_copy,
    a_thousand_leave_nothing,
];

async fn takes(shared: Shared, size: usize) -> bool {
    is_made(&shared, size)
}

fn plain_takes(shared: Shared, size: usize) -> bool {
    is_made(&shared, size)
}

fn shared_memory_reaches_every_kind_of_task() {
    undisturbed(|| async {
        let size = 3 << 20;
        let shared = Shared::new(made(size)).unwrap();
        for (way, came) in run_everywhere(&Task::new(), takes, plain_takes, (shared.clone(), size)).await {
            assert!(came.unwrap(), "{way}");
        }
        let process = open_in_process(takes, (shared.clone(), size)).await.unwrap();
        assert!(process.wait().await.unwrap());
        let pool = Pool::builder().workers(2).build().unwrap();
        for _ in 0..5 {
            assert!(pool.run(takes, (shared.clone(), size)).await.unwrap());
            assert!(pool.run_blocking(plain_takes, (shared.clone(), size)).await.unwrap());
            assert!(pool.open(takes, (shared.clone(), size)).await.unwrap().wait().await.unwrap());
        }
        drop(pool);
    });
}

fn shared_memory_of_every_size() {
    undisturbed(|| async {
        for size in [0, 1, 4095, 4096, 4097, (64 << 10) + 1, (2 << 20) - 1, 2 << 20, (5 << 20) + 3] {
            let shared = Shared::new(made(size)).unwrap();
            assert!(is_made(&shared, size) && is_made(&shared.to_bytes(), size), "{size}");
            assert!(run_in_process(takes, (shared, size)).await.unwrap(), "{size}");
        }
    });
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Index {
    name: String,
    tables: Vec<(u32, Shared)>,
    spare: Option<Box<Shared>>,
    plain: Bytes,
}

fn shared_memory_in_other_values() {
    undisturbed(|| async {
        let one = Shared::new(made(10_000)).unwrap();
        let tables =
            (0..300).map(|n| (n, if n % 3 == 0 { one.clone() } else { Shared::new(made(n as usize)).unwrap() }));
        let index = Index {
            name: "all".to_owned(),
            tables: tables.collect(),
            spare: Some(Box::new(one.clone())),
            plain: made(100_000).into(),
        };
        let is_right = |index: &Index| {
            let right = |(n, table): &(u32, Shared)| is_made(table, if n % 3 == 0 { 10_000 } else { *n as usize });
            index.tables.len() == 300 && index.tables.iter().all(right) && is_made(&index.plain, 100_000)
        };
        for (runtime, task) in runtimes(&Task::new()) {
            let pages = async |index: Index| {
                assert!(is_made(index.spare.as_ref().unwrap(), 10_000));
                index
            };
            // What comes back is a copy.
            let came = task.run(pages, index.clone()).await.unwrap();
            assert!(is_right(&came) && came == index, "{runtime}");
            // It can be given on, as bytes.
            assert!(is_right(&task.run(pages, came).await.unwrap()), "{runtime}");
        }
    });
}

fn a_result_has_a_copy() {
    undisturbed(|| async {
        let size = 2 << 20;
        let shared = Shared::new(made(size)).unwrap();
        let came = run_in_process(async |shared: Shared| shared, shared).await.unwrap();
        assert!(is_made(&came, size));
        let makes = async |size: usize| Shared::new(made(size)).unwrap();
        assert!(is_made(&run_in_process(makes, size).await.unwrap(), size), "one that a worker made");
    });
}

/// In a worker that has one: the descriptor of its memory.
fn memory_fd() -> RawFd {
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut found = numbers.filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        let is_memory = target.starts_with("/memfd:") || target.starts_with("/dev/shm/");
        is_memory.then(|| entry.file_name().to_str().unwrap().parse().unwrap())
    });
    found.next().expect("a descriptor of memory")
}

fn a_worker_cannot_write_it() {
    undisturbed(|| async {
        let shared = Shared::new(made(100_000)).unwrap();
        let writes = async |shared: Shared| {
            // SAFETY: not sound, which is the point: nobody may get away with it.
            unsafe { shared.as_ptr().cast_mut().write_volatile(1) };
        };
        assert_eq!(run_in_process(writes, shared.clone()).await.unwrap_err().signal(), Some(Signal::SEGV));
        let tries = async |shared: Shared| {
            let (fd, size) = (memory_fd(), shared.len());
            let (both, start) = (libc::PROT_READ | libc::PROT_WRITE, shared.as_ptr().cast_mut());
            // SAFETY: a new mapping, at a place of the kernel's choice.
            let mapped = unsafe { libc::mmap(std::ptr::null_mut(), size, both, libc::MAP_SHARED, fd, 0) };
            // SAFETY: changes what may be done with whole pages, not what is in them.
            let protected = unsafe { libc::mprotect(start.cast(), size, both) };
            // SAFETY: touches no memory.
            let cut = unsafe { libc::ftruncate(fd, 0) };
            // SAFETY: touches no memory.
            let grown = unsafe { libc::ftruncate(fd, 1 << 20) };
            // SAFETY: one live byte.
            let written = unsafe { libc::pwrite(fd, [1_u8].as_ptr().cast(), 1, 0) };
            let done = [
                ("mapped", mapped != libc::MAP_FAILED),
                ("protected", protected == 0),
                ("cut", cut == 0),
                ("grown", grown == 0),
                ("written", written == 1),
            ];
            done.map(|(what, done)| if done { what } else { "" }).concat()
        };
        assert_eq!(run_in_process(tries, shared.clone()).await.unwrap(), "");
        assert!(is_made(&shared, 100_000));
    });
}

fn its_maker_may_let_go_of_it() {
    undisturbed(|| async {
        let size = 1 << 20;
        let notes = Notes::new("kept");
        let keeps = async |path: String, shared: Shared, size: usize| {
            note(&path, "has it");
            while !std::fs::read_to_string(&path).unwrap().contains("let go") {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            is_made(&shared, size)
        };
        let shared = Shared::new(made(size)).unwrap();
        let run = tokio::spawn(run_in_process(keeps, (notes.path(), shared.clone(), size)));
        let process = open_in_process(keeps, (notes.path(), shared.clone(), size)).await.unwrap();
        drop(shared);
        eventually("both have it", || notes.text().matches("has it").count() == 2).await;
        note(&notes.path(), "let go");
        assert!(run.await.unwrap().unwrap());
        assert!(process.wait().await.unwrap());
    });
}

/// How many pieces of shared memory a process has mapped.
fn mapped_memory(pid: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains("/memfd:tokio") || line.contains("/dev/shm/trip")).count()
}

fn a_generation_has_what_its_preload_kept() {
    undisturbed(|| async {
        let shared = Shared::new(made(1 << 20)).unwrap();
        let look = async || mapped_memory(std::process::id());
        let root = tokio_run_in_process::default_zygote().unwrap();
        let dropped = root.preload(|a: Shared| a.len(), shared.clone()).await.unwrap();
        assert_eq!(dropped.run_in_process(look, ()).await.unwrap(), 0);
        let kept = root.preload(|a: Shared, b: Shared| (a, b.len()), (shared.clone(), shared)).await.unwrap();
        assert_eq!(kept.run_in_process(look, ()).await.unwrap(), 1);
    });
}

fn workers_let_go_of_it_after_a_task() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        let pid = pool.run(async || std::process::id(), ()).await.unwrap();
        let shared = Shared::new(made(1 << 20)).unwrap();
        for _ in 0..20 {
            let look = async |a: Shared, b: Shared| a.len() + b.len();
            assert_eq!(pool.run(look, (shared.clone(), shared.clone())).await.unwrap(), 2 << 20);
        }
        assert_eq!(pool.run(async || std::process::id(), ()).await.unwrap(), pid);
        eventually("nothing is mapped", || mapped_memory(pid) == 0).await;
        drop(pool);
    });
}

/// A line of /proc/PID/smaps_rollup, in bytes.
fn rollup(text: &str, what: &str) -> usize {
    let line = text.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn a_hundred_tasks_have_one_copy() {
    undisturbed_with(Zygote::builder().max_processes(100), |zygote| async move {
        let size = 256 << 20;
        let mut builder = Shared::builder(size).unwrap();
        builder.copy_from_slice(&made(size));
        let shared = builder.finish().unwrap();
        // Mapped here too, so that a worker which is the only other one has none of it for itself.
        assert!(is_made(&shared, size));
        let notes = Notes::new("all");
        // Each reads all of it, and tells what memory it has while all the others have it too.
        let reads = async |shared: Shared, size: usize, path: String, wait: bool| {
            let right = is_made(&shared, size);
            note(&path, "x");
            while wait && std::fs::metadata(&path).unwrap().len() < 10 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (right, std::fs::read_to_string("/proc/self/smaps_rollup").unwrap())
        };
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..100 {
            tasks.spawn(zygote.run_in_process(reads, (shared.clone(), size, notes.path(), n < 10)));
        }
        while let Some(came) = tasks.join_next().await {
            let (right, memory) = came.unwrap().unwrap();
            assert!(right);
            let private = rollup(&memory, "Private_Dirty:") + rollup(&memory, "Private_Clean:");
            assert!(rollup(&memory, "Rss:") >= size, "it read all of it: {memory}");
            assert!(private < 16 << 20, "{memory}");
        }
        let ours = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        assert!(rollup(&ours, "Rss:") < size + (64 << 20), "{ours}");
    });
}

fn none_is_made_at_the_limit_of_descriptors() {
    undisturbed(|| async {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live rlimit.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        let old = limit.rlim_cur;
        // The next descriptor would have this number.
        let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        for more in 0..2 {
            limit.rlim_cur = next as libc::rlim_t + more;
            // SAFETY: as above.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
            let made = Shared::new(b"x");
            if more == 0 {
                assert_eq!(made.unwrap_err().raw_os_error(), Some(libc::EMFILE));
            }
        }
        limit.rlim_cur = old;
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        assert_eq!(Shared::new(b"x").unwrap()[..], *b"x");
        // Far too much, and more than there can be.
        for size in [usize::MAX, isize::MAX as usize] {
            assert!(Shared::builder(size).is_err(), "{size}");
        }
    });
}

fn a_builder_is_filled_in_place() {
    undisturbed(|| async {
        let size = (1 << 20) + 5;
        let mut builder = Shared::builder(size).unwrap();
        assert!(builder.iter().all(|&byte| byte == 0));
        builder.copy_from_slice(&made(size));
        let shared = builder.finish().unwrap();
        assert!(run_in_process(takes, (shared, size)).await.unwrap());
        // Given up half-way; and a worker that is born meanwhile does not keep one from being finished.
        drop(Shared::builder(size).unwrap());
        let builder = Shared::builder(size).unwrap();
        run_in_process(async || (), ()).await.unwrap();
        let status = std::process::Command::new("true").status().unwrap();
        assert!(status.success());
        builder.finish().unwrap();
        // A task has its own.
        let makes = |size: usize| {
            let mut builder = Shared::builder(size).unwrap();
            builder[size - 1] = 7;
            builder.finish().unwrap()[size - 1]
        };
        assert_eq!(run_blocking_in_process(makes, size).await.unwrap(), 7);
    });
}

fn names_in_memory() -> Vec<String> {
    let entries = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = format!("trip-{:x}-", std::process::id());
    names.filter(|name| name.starts_with(&ours)).collect()
}

fn a_thousand_leave_nothing() {
    undisturbed(|| async {
        let size = 100_000;
        let before = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = |statm: &str| statm.split(' ').next().unwrap().parse::<usize>().unwrap();
        for round in 0..10 {
            let many: Vec<Shared> = (0..100).map(|_| Shared::new(made(size)).unwrap()).collect();
            let lengths = async |many: Vec<Shared>| many.iter().map(|shared| shared.len()).sum::<usize>();
            assert_eq!(run_in_process(lengths, many.clone()).await.unwrap(), 100 * size, "{round}");
            assert_eq!(names_in_memory(), Vec::<String>::new());
        }
        let after = std::fs::read_to_string("/proc/self/statm").unwrap();
        // All of them would be 25 000 pages.
        assert!(pages(&after) < pages(&before) + 10_000, "{before} {after}");
        assert_eq!(mapped_memory(std::process::id()), 0);
    });
}
