//! Descriptors of a generation: whose numbers they are, and what every worker has for itself.

use std::{
    collections::HashSet,
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};
use tokio_run_in_process::{Signal, default_zygote, worker};

use crate::{
    harness::{eventually, parent_of},
    hygiene::own,
    oracle::{scratch, undisturbed},
    recovery::{both, kill, recovered},
};

crate::cases![
    files_of_a_preload_do_not_get_the_numbers_of_a_runtime_used_before_init,
    a_preload_that_used_tokio_leaves_every_worker_signals_of_its_own,
    a_runtime_that_a_preload_keeps_works,
];

const FILES: u64 = 12;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn use_tokio() {
    runtime().block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
}

/// It takes the lowest numbers that are free.
fn open(path: String) -> Vec<File> {
    use_tokio();
    (0..FILES).map(|_| File::open(&path).unwrap()).collect()
}

/// The sockets that a worker has, beside what it shares with others on purpose.
fn sockets() -> HashSet<String> {
    own().into_iter().filter(|(number, target)| *number > 2 && target.starts_with("socket:")).map(|fd| fd.1).collect()
}

/// A worker's files are those of the preload, and its runtime hears its signals.
async fn look() -> (u64, HashSet<String>) {
    let mut usr1 = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1()).unwrap();
    for _ in 0..3 {
        // SAFETY: the signal has a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        tokio::time::timeout(Duration::from_secs(5), usr1.recv()).await.expect("the signal arrives");
    }
    let ended = tokio::process::Command::new("true").status().await.unwrap();
    assert!(ended.success());
    let files = worker::preloaded::<Vec<File>>().unwrap();
    let right = |file: &&File| {
        let mut text = [0; 8];
        file.as_raw_fd() > 4 && file.read_exact_at(&mut text, 0).is_ok() && &text == b"contents"
    };
    (files.iter().filter(right).count() as u64, sockets())
}

/// Before and after the loss of each zygote, all workers have the files, and sockets that no other has.
fn has_files_and_sockets_of_its_own() {
    undisturbed(|| async {
        let path = scratch("file");
        std::fs::write(&path, "contents").unwrap();
        let zygote = default_zygote().unwrap().preload(open, path.clone()).await.unwrap();
        let mut seen = HashSet::new();
        for round in 0..3 {
            for _ in 0..3 {
                let (files, sockets) = zygote.run_in_process(look, ()).await.unwrap();
                assert_eq!(files, FILES, "round {round}");
                for socket in sockets {
                    assert!(seen.insert(socket.clone()), "{socket} is another's, too");
                }
            }
            let before = both(&zygote);
            kill(if round == 0 { before.serving } else { before.ancestor }).await;
            if round == 0 {
                recovered(&zygote, &before).await;
            } else {
                let serves = || parent_of(zygote.pid()) == Some(before.serving.pid);
                eventually("the next one serves", serves).await;
            }
        }
        // One of another generation too.
        let next = zygote.preload(open, path.clone()).await.unwrap();
        assert_eq!(next.run_in_process(look, ()).await.unwrap().0, FILES);
        std::fs::remove_file(path).unwrap();
    });
}

fn files_of_a_preload_do_not_get_the_numbers_of_a_runtime_used_before_init() {
    use_tokio();
    has_files_and_sockets_of_its_own();
}

fn a_preload_that_used_tokio_leaves_every_worker_signals_of_its_own() {
    has_files_and_sockets_of_its_own();
}

fn a_runtime_that_a_preload_keeps_works() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap().preload(runtime, ()).await.unwrap();
        let uses = || {
            let runtime = worker::preloaded::<Runtime>().unwrap();
            runtime.block_on(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                7
            })
        };
        for _ in 0..5 {
            assert_eq!(zygote.run_blocking_in_process(uses, ()).await.unwrap(), 7);
            assert_eq!(zygote.run_in_process(async || 8, ()).await.unwrap(), 8);
        }
        let process = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    });
}
