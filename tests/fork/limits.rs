//! Limits that a task runs into, set by itself or by whoever runs the program: how it ends is what the kernel did, and
//! a limit of the task's is none of its parent's.

use std::time::Duration;

use tokio_run_in_process::{Signal, Task, default_zygote, run_blocking_in_process, run_in_process};

use crate::{
    harness::{is_alive, skip},
    oracle::{scratch, undisturbed},
    tools::note,
};

crate::cases![
    b19_memory_that_is_not_given,
    b20_killed_by_the_memory_limit_of_a_group,
    b22_a_limit_of_processor_time,
    b23_a_limit_of_file_size_does_not_touch_results,
    b24_a_task_without_a_descriptor_to_spare,
    b25_a_large_crash_with_cores_allowed,
];

type Resource = libc::__rlimit_resource_t;

fn limit(resource: Resource, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: a live limit.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
}

fn touch(size: usize) -> u64 {
    std::hint::black_box(vec![1_u8; size]).iter().step_by(4096).map(|&byte| u64::from(byte)).sum()
}

fn b19_memory_that_is_not_given() {
    undisturbed(|| async {
        let greedy = |size: usize| {
            limit(libc::RLIMIT_AS, 1 << 30, 1 << 30);
            touch(size)
        };
        let error = run_blocking_in_process(greedy, 4 << 30).await.unwrap_err();
        assert_eq!(error.signal(), Some(Signal::ABRT), "{error:?}");
        assert_eq!(run_blocking_in_process(greedy, 4096).await.unwrap(), 1);
        // A task that asks first goes on.
        let careful = async || {
            limit(libc::RLIMIT_AS, 1 << 30, 1 << 30);
            Vec::<u8>::new().try_reserve_exact(4 << 30).is_err()
        };
        assert!(run_in_process(careful, ()).await.unwrap());
    });
}

/// A group of processes that may have 40 MiB. It goes with the value.
struct Group(String);

impl Group {
    fn new() -> Self {
        let path = format!("/sys/fs/cgroup/memory/fork-{}", std::process::id());
        if let Err(e) = std::fs::create_dir(&path) {
            skip(&format!("no memory group: {e}"));
        }
        let group = Self(path);
        if let Err(e) = std::fs::write(group.file("memory.limit_in_bytes"), (40 << 20).to_string()) {
            drop(group);
            skip(&format!("no memory limit: {e}"));
        }
        // Or it would be moved out to disk.
        let _ = std::fs::write(group.file("memory.memsw.limit_in_bytes"), (40 << 20).to_string());
        group
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn b20_killed_by_the_memory_limit_of_a_group() {
    let group = Group::new();
    undisturbed(|| async {
        let greedy = |procs: String, size: usize| {
            note(&procs, &std::process::id().to_string());
            touch(size)
        };
        let procs = group.file("cgroup.procs");
        for _ in 0..3 {
            let error = run_blocking_in_process(greedy, (procs.clone(), 200 << 20)).await.unwrap_err();
            assert_eq!((error.signal(), error.is_cancelled()), (Some(Signal::KILL), false), "{error:?}");
            assert!(is_alive(default_zygote().unwrap().pid()));
        }
        assert_eq!(run_blocking_in_process(greedy, (procs, 4096)).await.unwrap(), 1);
    });
    drop(group);
}

fn b22_a_limit_of_processor_time() {
    let spins = |hard: u64| -> u8 {
        limit(libc::RLIMIT_CPU, 1, hard);
        loop {
            std::hint::spin_loop();
        }
    };
    undisturbed(|| async {
        let (soft, hard) = tokio::join!(run_blocking_in_process(spins, 60), run_blocking_in_process(spins, 1));
        for (outcome, signal) in [(soft, Signal::from(libc::SIGXCPU)), (hard, Signal::KILL)] {
            let error = outcome.unwrap_err();
            assert_eq!((error.signal(), error.is_cancelled()), (Some(signal), false), "{error:?}");
        }
    });
}

/// They do not travel in files.
fn b23_a_limit_of_file_size_does_not_touch_results() {
    undisturbed(|| async {
        let large = |size: usize| {
            limit(libc::RLIMIT_FSIZE, 0, 0);
            "x".repeat(size)
        };
        assert_eq!(run_blocking_in_process(large, 8 << 20).await.unwrap().len(), 8 << 20);
        // What does write one is told, by the signal that says so.
        let writes = |path: String| {
            limit(libc::RLIMIT_FSIZE, 0, 0);
            std::fs::write(path, "x").is_err()
        };
        let path = scratch("b23");
        let error = run_blocking_in_process(writes, path.clone()).await.unwrap_err();
        assert_eq!(error.signal(), Some(Signal::from(libc::SIGXFSZ)), "{error:?}");
        let _ = std::fs::remove_file(path);
    });
}

fn b24_a_task_without_a_descriptor_to_spare() {
    undisturbed(|| async {
        let without = |count: u64, text: String| {
            limit(libc::RLIMIT_NOFILE, count, count);
            assert!(std::fs::File::open("/dev/null").is_err());
            text
        };
        for count in [0, 1, 3, 4] {
            let text = "x".repeat(3 << 20);
            assert_eq!(run_blocking_in_process(without, (count, text.clone())).await.unwrap(), text);
            let polled = async move |count: u64, text: String| without(count, text);
            assert_eq!(run_in_process(polled, (count, text.clone())).await.unwrap(), text);
        }
        // It can be ended as well.
        let stays = async |_: u8| {
            limit(libc::RLIMIT_NOFILE, 0, 0);
            std::future::pending::<()>().await
        };
        let process = Task::new().grace_period(Duration::from_secs(600)).open(stays, 0).await.unwrap();
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    });
}

/// A core file is the program's own choice: a worker has the limit that the program had at `init`. The outcome is exact
/// either way.
fn b25_a_large_crash_with_cores_allowed() {
    undisturbed(|| async {
        let crashes = |size: usize| -> () {
            let held = vec![1_u8; size];
            std::hint::black_box(&held);
            std::process::abort()
        };
        let size = 256 << 20;
        let error = run_blocking_in_process(crashes, size).await.unwrap_err();
        let tokio_run_in_process::Error::Signaled { signal: Signal::ABRT, core_dumped, .. } = error else {
            panic!("{error:?}")
        };
        assert!(!core_dumped, "the limit was nothing");
        // The superuser may raise what is inherited.
        let folder = scratch("b25");
        std::fs::create_dir(&folder).unwrap();
        let dumps = |size: usize| -> () {
            let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: a live limit.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const all) };
            let held = vec![1_u8; size];
            std::hint::black_box(&held);
            std::process::abort()
        };
        let task = Task::new().current_dir(&folder);
        let error = task.run_blocking(dumps, 8 << 20).await.unwrap_err();
        assert_eq!(error.signal(), Some(Signal::ABRT), "{error:?}");
        std::fs::remove_dir_all(folder).unwrap();
    });
}
