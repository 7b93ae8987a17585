//! Cancellation where pids are not as usual: in namespaces, and when they are used again.

use std::{
    future::pending,
    os::unix::process::ExitStatusExt,
    process::{Child, Command},
    time::{Duration, Instant},
};

use tokio_run_in_process::{Process, Signal, Task, Zygote};

use crate::{
    harness::{children, eventually, is_alive, multi_thread, parent_of, skip, without_warm_workers},
    oracle::{no_core_files, undisturbed},
    tools::{Notes, dead, must_succeed, note, signal, stop, unshared},
};

crate::cases![
    c36_the_program_is_the_init_of_its_namespace,
    c36_a_task_with_a_namespace_of_its_own,
    c38_a_pid_that_means_another_process_is_not_signalled,
];
crate::helpers![recycles_pids];

const GRACE: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(600);

const PRIVATE_PIDS: [&str; 2] = ["-pf", "--mount-proc"];

/// It is pid 1, where signals at their default action do nothing; its workers are not.
fn c36_the_program_is_the_init_of_its_namespace() {
    must_succeed(&mut unshared(&PRIVATE_PIDS, "everyday"));
}

/// What the task started is the init of a namespace, deaf to SIGTERM by the kernel's rule, and parent of what it starts.
fn c36_a_task_with_a_namespace_of_its_own() {
    drop(unshared(&PRIVATE_PIDS, "everyday"));
    undisturbed(|| async {
        #[expect(clippy::zombie_processes, reason = "it is killed with its worker's group")]
        let with_namespace = |path: String, stays: bool| {
            // SAFETY: touches no memory.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
            let init = Command::new("sh").args(["-c", "sleep 1000 & sleep 1000 & wait"]).spawn().unwrap();
            note(&path, &format!(" pid={} ", init.id()));
            eventually_blocking(|| children(init.id()).len() == 2);
            for child in children(init.id()) {
                note(&path, &format!(" pid={child} "));
            }
            if stays {
                // SAFETY: ignores the signal.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            }
            note(&path, "ready");
            std::thread::sleep(LONG);
        };
        for stays in [false, true] {
            let notes = Notes::new(&format!("c36-{stays}"));
            let task = Task::new().grace_period(GRACE);
            let process = task.open_blocking(with_namespace, (notes.path(), stays)).await.unwrap();
            notes.say("ready").await;
            let (pids, start) = (notes.pids(), Instant::now());
            assert!(pids.len() == 3 && pids.iter().all(|&pid| is_alive(pid)));
            signal(pids[0], libc::SIGTERM);
            let (status, _) = process.shutdown().await;
            assert_eq!(status.signal(), Some(if stays { Signal::KILL } else { Signal::TERM }));
            for pid in pids {
                let after = dead(pid, start).await;
                assert!(!stays || after >= GRACE, "{after:?}");
            }
        }
    });
}

fn eventually_blocking(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "never");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn c38_a_pid_that_means_another_process_is_not_signalled() {
    let mut command = unshared(&PRIVATE_PIDS, "recycles_pids");
    if !std::path::Path::new("/proc/sys/kernel/ns_last_pid").exists() {
        skip("no ns_last_pid");
    }
    must_succeed(&mut command);
}

/// Starts a program that has the pid which `gone` had.
fn innocent(gone: u32) -> Child {
    for _ in 0..1000 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (gone - 1).to_string()).unwrap();
        // By fork alone, in which no thread takes a number in between.
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        if child.id() == gone {
            return child;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("{gone} was not to be had");
}

fn is_esrch(result: std::io::Result<()>) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ESRCH));
}

/// Does to a process that is gone all that can be done.
async fn harass(process: Process<u8>) {
    is_esrch(process.terminate());
    is_esrch(process.kill());
    is_esrch(process.send_signal(Signal::USR1));
    process.shutdown().await;
    drop(process);
}

async fn is_unharmed(mut innocent: Child) {
    // Whatever was sent by mistake has arrived when another zygote's worker has come and gone.
    for _ in 0..3 {
        let canary = Zygote::builder().start();
        if let Ok(canary) = canary {
            canary.run_in_process(async || (), ()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(innocent.try_wait().unwrap().is_none(), "it was killed");
    innocent.kill().unwrap();
    assert_eq!(innocent.wait().unwrap().signal(), Some(libc::SIGKILL));
}

/// Runs as pid 1.
fn recycles_pids() {
    assert_eq!(std::process::id(), 1);
    no_core_files();
    // A warm worker that takes another's place may take the number.
    without_warm_workers();
    // The second is forked from the first, which is adopted by pid 1.
    let zygotes = [Zygote::builder().start().unwrap(), Zygote::builder().start().unwrap()];
    multi_thread().block_on(async {
        // It returned and was reaped.
        let process = zygotes[1].open_in_process(async || 7_u8, ()).await.unwrap();
        process.exited().await;
        let innocent_one = innocent(process.pid());
        harass(process).await;
        is_unharmed(innocent_one).await;
        // It was killed by somebody.
        let process = zygotes[1].open_in_process(pending::<u8>, ()).await.unwrap();
        signal(process.pid(), libc::SIGKILL);
        process.exited().await;
        let innocent_one = innocent(process.pid());
        harass(process).await;
        is_unharmed(innocent_one).await;
        // It is dead and nobody has noticed yet: its pid is not to be had, so the signal cannot go astray.
        let process = zygotes[1].open_in_process(pending::<u8>, ()).await.unwrap();
        stop(zygotes[1].pid()).await;
        signal(process.pid(), libc::SIGKILL);
        dead(process.pid(), Instant::now()).await;
        let _ = process.terminate();
        signal(zygotes[1].pid(), libc::SIGCONT);
        process.exited().await;
        let innocent_one = innocent(process.pid());
        drop(process);
        is_unharmed(innocent_one).await;
        // Its zygote and the ancestor of that died before it, and pid 1 reaps.
        let process = zygotes[0].open_in_process(pending::<u8>, ()).await.unwrap();
        let serving = zygotes[0].pid();
        let both = [parent_of(serving).unwrap(), serving];
        both.iter().for_each(|&pid| signal(pid, libc::SIGKILL));
        for pid in both {
            reap(pid).await;
        }
        signal(process.pid(), libc::SIGKILL);
        reap(process.pid()).await;
        let innocent_one = innocent(process.pid());
        let _ = (process.terminate(), process.kill());
        process.wait().await.unwrap_err();
        let _ = (process.terminate(), process.kill());
        process.shutdown().await;
        drop(process);
        is_unharmed(innocent_one).await;
    });
}

/// Reaps a child that was adopted.
async fn reap(pid: u32) {
    let pid = i32::try_from(pid).unwrap();
    // SAFETY: no status is asked for.
    eventually("it can be reaped", || unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == pid).await;
}
