//! What a pool's workers are made with.

use std::{io::Read, time::Duration};

use tokio_run_in_process::{Coded, Error, Pool, Stdio, Task, Zygote, worker};

use crate::{
    hosts::NeverRuns,
    oracle::{scratch, undisturbed, undisturbed_with},
};

crate::cases![
    a_pools_workers_have_the_options_of_its_task,
    limits_of_a_pools_tasks,
    options_that_a_pools_workers_cannot_have,
    a_pools_workers_are_of_its_zygote,
];

fn a_pools_workers_have_the_options_of_its_task() {
    undisturbed(|| async {
        let path = scratch("pool-worker");
        let worker = Task::new().env("COLOUR", "blue").env_remove("PATH").current_dir("/");
        let worker = worker.name("unseen").stdout(std::fs::File::create(&path).unwrap());
        let pool = Pool::builder().name("painters").workers(2).max_tasks_per_worker(2);
        // They are there when it is initialized, in every worker, of which there are several one after another.
        let initialize = async || println!("{} in {:?}", var("COLOUR"), std::env::current_dir().unwrap());
        let pool = pool.initializer(initialize).worker(worker).build().unwrap();
        let look = || (var("COLOUR"), var("PATH"), worker::name().map(str::to_owned));
        for _ in 0..5 {
            let seen = pool.run_blocking(look, ()).await;
            assert_eq!(seen.unwrap(), ("blue".to_owned(), "none".to_owned(), Some("painters".to_owned())));
        }
        drop(pool);
        let mut text = String::new();
        std::fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "blue in \"/\"\n".repeat(3));
        std::fs::remove_file(path).unwrap();
        assert_ne!(var("PATH"), "none");
    });
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or("none".to_owned())
}

fn limits_of_a_pools_tasks() {
    undisturbed(|| async {
        let worker = Task::new().argument_limit(100).result_limit(200);
        let pool = Pool::builder().worker(worker).build().unwrap();
        let thrice = |text: String| text.repeat(3);
        assert_eq!(pool.run_blocking(thrice, "x".repeat(60)).await.unwrap().len(), 180);
        let error = pool.run_blocking(thrice, "x".repeat(90)).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: Coded::Result, limit: 200, .. }), "{error:?}");
        let error = pool.run_blocking(thrice, "x".repeat(101)).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: Coded::Arguments, limit: 100, .. }), "{error:?}");
        // Neither cost its worker.
        assert_eq!(pool.idle_workers(), 1);
    });
}

fn options_that_a_pools_workers_cannot_have() {
    undisturbed(|| async {
        let second = Duration::from_secs(1);
        for (worker, word) in [
            (Task::new().timeout(second), "task_timeout"),
            (Task::new().queue_timeout(second), "queue_timeout"),
            (Task::new().runtime::<NeverRuns>(), "runtime"),
            (Task::new().stdout(Stdio::piped()), "pipe"),
            (Task::new().stdin(Stdio::piped()), "pipe"),
            (Task::new().env("A=B", "c"), "A=B"),
        ] {
            let error = Pool::builder().name("mistake").worker(worker).build().unwrap_err();
            let Error::InvalidOption { task, reason, .. } = &error else { panic!("{error:?}") };
            assert!(reason.contains(word), "{reason}");
            assert_eq!((task.name(), task.pid()), ("mistake", None));
        }
    });
}

fn a_pools_workers_are_of_its_zygote() {
    let other = Zygote::builder().warm(0).start().unwrap();
    let worker = other.task().env("A", "b");
    undisturbed_with(Zygote::builder().warm(0), |zygote| async move {
        let pool = zygote.pool().worker(worker).build().unwrap();
        let seen = pool.run(async || (var("A"), std::os::unix::process::parent_id()), ()).await.unwrap();
        assert_eq!(seen, ("b".to_owned(), zygote.pid()));
    });
}
