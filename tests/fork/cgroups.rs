//! Control groups: what a task started ends with it, wherever that went.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio as StdStdio},
    time::Duration,
};

use tokio_run_in_process::{Error, Task, Zygote, default_zygote};

use crate::{
    harness::{descriptors, eventually, helper, is_alive, multi_thread, parent_of, send_signal, skip, with_default},
    oracle::{scratch, undisturbed},
    recovery::{both, go},
    tools::{Notes, note},
};

crate::cases![
    what_a_task_left_ends_with_it,
    however_a_task_ends_what_it_left_does,
    groups_of_many_tasks_at_once,
    directories_that_come_and_go,
    more_directories_than_are_remembered,
    a_group_ends_with_a_program_that_is_killed,
    a_group_ends_with_a_worker_whose_zygote_was_killed,
    what_is_no_directory_of_groups,
];
crate::helpers![contains];

/// A directory for groups. It goes with the value, which fails if a group is left in it.
struct Delegated(PathBuf);

impl Delegated {
    fn new(name: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let Some(root) = root else { skip("no control groups, version 2") };
        let path = PathBuf::from(root).join(format!("fork-{}-{name}", std::process::id()));
        if let Err(e) = std::fs::create_dir(&path) {
            skip(&format!("no control group of ours: {e}"));
        }
        Self(path)
    }

    fn groups(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    fn task(&self) -> Task {
        Task::new().cgroup(&self.0)
    }

    async fn is_empty(&self) {
        eventually("no group is left", || self.groups().is_empty()).await;
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir(&self.0).unwrap();
        }
    }
}

/// Starts what leaves the worker's process group and has another parent; gives its pid.
fn daemon() -> u32 {
    // `setsid` of a group's leader forks.
    let script = "setsid -f sh -c 'echo $$; exec sleep 1000' | { read pid; echo $pid; }";
    let output = Command::new("sh").args(["-c", script]).stderr(StdStdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

async fn leaves_one() -> u32 {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(own.contains("/tokio-run-in-process-"), "{own}");
    daemon()
}

/// It has not ended before `path` is there.
async fn leaves_one_when_told(path: String) -> u32 {
    while !go(&path) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    leaves_one().await
}

async fn gone(pid: u32) {
    eventually("what it left is gone", || !is_alive(pid)).await;
}

fn what_a_task_left_ends_with_it() {
    let (delegated, path) = (Delegated::new("left"), scratch("go"));
    with_default(|| async {
        // So it is without.
        let left = Task::new().run_blocking(daemon, ()).await.unwrap();
        assert!(is_alive(left));
        send_signal(left, libc::SIGKILL);
        for _ in 0..5 {
            gone(delegated.task().run(leaves_one, ()).await.unwrap()).await;
            gone(delegated.task().run_blocking(daemon, ()).await.unwrap()).await;
            // What was left is gone before its group is, and `open` waits for neither.
            delegated.is_empty().await;
            let process = delegated.task().open(leaves_one_when_told, path.clone()).await.unwrap();
            assert_eq!(delegated.groups().len(), 1);
            std::fs::write(&path, "").unwrap();
            gone(process.wait().await.unwrap()).await;
            std::fs::remove_file(&path).unwrap();
            delegated.is_empty().await;
        }
        assert_eq!(Task::new().run(async || 7, ()).await.unwrap(), 7);
    });
}

async fn says_and_ends(path: String, how: String) {
    note(&path, &format!(" pid={} ", daemon()));
    match &*how {
        "exits" => std::process::exit(3),
        "aborts" => std::process::abort(),
        "panics" => panic!("as it should"),
        _ => std::future::pending().await,
    }
}

fn however_a_task_ends_what_it_left_does() {
    let delegated = Delegated::new("ends");
    crate::oracle::no_core_files();
    with_default(|| async {
        for how in ["exits", "aborts", "panics", "is timed out", "is dropped", "is killed"] {
            let notes = Notes::new(&format!("cgroup-{}", how.replace(' ', "-")));
            let task = delegated.task().grace_period(Duration::from_millis(100));
            let task = if how == "is timed out" { task.timeout(Duration::from_secs(1)) } else { task };
            let process = task.open(says_and_ends, (notes.path(), how.to_owned())).await.unwrap();
            eventually("it left something", || !notes.pids().is_empty()).await;
            match how {
                "is dropped" => drop(process),
                _ => {
                    if how == "is killed" {
                        send_signal(process.pid(), libc::SIGKILL);
                    }
                    process.wait().await.unwrap_err();
                }
            }
            gone(notes.pids()[0]).await;
            delegated.is_empty().await;
        }
    });
}

fn groups_of_many_tasks_at_once() {
    let delegated = Delegated::new("many");
    with_default(|| async {
        assert_eq!(delegated.task().run(async || 7, ()).await.unwrap(), 7);
        // With the directory, which stays open.
        let zygote = default_zygote().unwrap().pid();
        let before = descriptors(zygote).len();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200_u64 {
            tasks.spawn(delegated.task().run(async |n: u64| n, n));
        }
        let mut sum = 0;
        while let Some(outcome) = tasks.join_next().await {
            sum += outcome.unwrap().unwrap();
        }
        assert_eq!(sum, 199 * 200 / 2);
        delegated.is_empty().await;
        eventually("no descriptor is left", || descriptors(zygote).len() == before).await;
    });
}

/// Waits until nobody is in the directory, and removes it.
async fn remove(dir: &PathBuf) {
    eventually("it is empty", || std::fs::remove_dir(dir).is_ok()).await;
}

fn directories_that_come_and_go() {
    let delegated = Delegated::new("come");
    with_default(|| async {
        let zygotes = || {
            let serving = default_zygote().unwrap().pid();
            [serving, parent_of(serving).unwrap()].map(|pid| descriptors(pid).len())
        };
        let before = zygotes();
        for n in 0..100 {
            // In turn of the same name and of another.
            let dir = delegated.0.join(format!("task-{}", n / 2));
            std::fs::create_dir(&dir).unwrap();
            gone(Task::new().cgroup(&dir).run(leaves_one, ()).await.unwrap()).await;
            remove(&dir).await;
        }
        // The last one, and a worker that is about to be forked.
        let few = |(now, before)| now <= before + 3;
        eventually("few descriptors are left", || zygotes().into_iter().zip(before).all(few)).await;
    });
}

fn more_directories_than_are_remembered() {
    const DIRS: usize = 150;
    let delegated = Delegated::new("more");
    let dirs: Vec<_> = (0..DIRS).map(|n| delegated.0.join(n.to_string())).collect();
    dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    with_default(|| async {
        let zygote = default_zygote().unwrap().pid();
        let before = descriptors(zygote).len();
        for _ in 0..2 {
            for dir in &dirs {
                gone(Task::new().cgroup(dir).run(leaves_one, ()).await.unwrap()).await;
            }
        }
        eventually("each is open once", || descriptors(zygote).len() <= before + DIRS + 3).await;
        for dir in &dirs {
            remove(dir).await;
        }
    });
}

/// A program whose tasks leave something; says what, and waits for its end.
fn contains() {
    let dir = std::env::var("DELEGATED").unwrap();
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(async {
        let mut pids = Vec::new();
        let mut processes = Vec::new();
        for _ in 0..5 {
            let notes = Notes::new(&format!("cgroup-{}", processes.len()));
            let arguments = (notes.path(), "stays".to_owned());
            processes.push(Task::new().cgroup(&dir).open(says_and_ends, arguments).await.unwrap());
            eventually("it left something", || !notes.pids().is_empty()).await;
            pids.push(notes.pids()[0].to_string());
        }
        println!("{}", pids.join(" "));
        std::future::pending::<()>().await
    });
}

fn a_group_ends_with_a_program_that_is_killed() {
    let delegated = Delegated::new("killed");
    let mut program = helper("contains").env("DELEGATED", &delegated.0).stdout(StdStdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.len() == 5 && pids.iter().all(|&pid| is_alive(pid)), "{line}");
    assert_eq!(delegated.groups().len(), 5);
    program.kill().unwrap();
    program.wait().unwrap();
    multi_thread().block_on(async {
        for pid in pids {
            gone(pid).await;
        }
        delegated.is_empty().await;
    });
}

fn a_group_ends_with_a_worker_whose_zygote_was_killed() {
    let delegated = Delegated::new("zygote");
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let notes = Notes::new("cgroup-zygote");
        let task = zygote.task().cgroup(&delegated.0).grace_period(Duration::from_millis(100));
        let process = task.open(says_and_ends, (notes.path(), "stays".to_owned())).await.unwrap();
        eventually("it left something", || !notes.pids().is_empty()).await;
        let before = both(&zygote);
        if !crate::lost_zygote::inherits() {
            drop(process);
            gone(notes.pids()[0]).await;
            return delegated.is_empty().await;
        }
        before.serving.kill();
        eventually("it is gone", || before.serving.is_over()).await;
        process.shutdown().await;
        gone(notes.pids()[0]).await;
        delegated.is_empty().await;
        // The next zygote knows nothing of the directory yet.
        gone(task.run(leaves_one, ()).await.unwrap()).await;
        delegated.is_empty().await;
    });
}

fn what_is_no_directory_of_groups() {
    undisturbed(|| async {
        let error = Task::new().cgroup("relative").run(async || 1, ()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidOption { .. }) && error.to_string().contains("relative"), "{error}");
        for (dir, why) in [("/tmp", "control groups"), ("/nowhere/at/all", "No such file"), ("/dev/null", "directory")]
        {
            let error = Task::new().cgroup(dir).open(async || 1, ()).await.unwrap_err();
            assert!(matches!(error, Error::Spawn { .. }), "{error:?}");
            assert!(error.to_string().contains(dir) && error.to_string().contains(why), "{error}");
        }
        assert!(default_zygote().is_ok());
    });
}
