//! Workers that run, or are done, before their zygote has told of them.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio_run_in_process::{Error, Process, Signal, Zygote};

use crate::{
    harness::{capabilities, eventually},
    oracle::{scratch, undisturbed_with},
    orphans::Life,
    seed::{never, runtimes},
};

crate::cases![s23_the_pid_is_there_before_the_zygote_tells_it, s21_a_signal_does_not_wait_for_a_stopped_zygote];

static PROGRAM: AtomicU32 = AtomicU32::new(0);
/// While there is a file of this name a zygote stops itself after each fork.
static STOPS: OnceLock<String> = OnceLock::new();

/// What runs in a zygote after each fork, before it can tell of it.
extern "C" fn dawdle() {
    if std::process::id() == PROGRAM.load(Ordering::Relaxed) {
        return;
    }
    match STOPS.get() {
        None => std::thread::sleep(Duration::from_millis(200)),
        Some(file) if std::fs::exists(file).unwrap() => {
            // SAFETY: touches no memory.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
        Some(_) => {}
    }
}

fn let_zygotes_dawdle() {
    PROGRAM.store(std::process::id(), Ordering::Relaxed);
    // SAFETY: the function stays, and takes nothing that another thread could have held when the process was forked.
    assert_eq!(unsafe { libc::pthread_atfork(None, Some(dawdle), None) }, 0);
}

fn s23_the_pid_is_there_before_the_zygote_tells_it() {
    let_zygotes_dawdle();
    undisturbed_with(Zygote::builder().warm(0).result_limit(100), |zygote| async move {
        // The task is over first, well or badly.
        let work = |length: usize| (std::process::id(), "x".repeat(length));
        for length in [1, 1000] {
            for (runtime, task) in runtimes(&zygote.task()) {
                let process = task.open(async move |length: usize| work(length), length).await.unwrap();
                knows_its_pid(process, runtime, length).await;
            }
            knows_its_pid(zygote.task().open_blocking(work, length).await.unwrap(), "blocking", length).await;
        }
    });
}

async fn knows_its_pid(process: Process<(u32, String)>, runtime: &str, length: usize) {
    let pid = process.pid();
    assert_ne!(pid, 0, "{runtime}: {length}");
    match process.wait().await {
        Ok((own, _)) => assert_eq!((own, length), (pid, 1), "{runtime}"),
        Err(error) => {
            assert!(matches!(error, Error::TooLarge { .. }), "{runtime}: {error:?}");
            assert_eq!((error.task().unwrap().pid(), length), (Some(pid), 1000), "{runtime}");
        }
    }
    process.exited().await;
    assert_eq!(process.pid(), pid, "{runtime}: {length}");
}

fn s21_a_signal_does_not_wait_for_a_stopped_zygote() {
    let file = STOPS.get_or_init(|| scratch("stops"));
    let_zygotes_dawdle();
    undisturbed_with(Zygote::builder().warm(0), |zygote| async move {
        let stopped = Life::of(zygote.pid());
        for signal in [Signal::TERM, Signal::KILL] {
            std::fs::write(file, "").unwrap();
            let process = zygote.task().open(never, ()).await.unwrap();
            assert_eq!(stopped.state(), Some('T'));
            std::fs::remove_file(file).unwrap();
            let worker = Life::of(process.pid());
            process.send_signal(signal).unwrap();
            // Without a descriptor that means it the zygote has to be asked, when it can be.
            if capabilities() != "none" {
                eventually("it is over", || worker.is_over()).await;
                assert_eq!(stopped.state(), Some('T'));
            }
            stopped.signal(libc::SIGCONT);
            assert_eq!(process.exited().await.0.signal(), Some(signal));
            assert_eq!(process.wait().await.unwrap_err().signal(), Some(signal));
        }
    });
}
