//! What a task can be given, each option alone and at its limits, and that it stays with its task.

use std::{
    error::Error as StdError,
    ffi::{OsStr, OsString},
    future::pending,
    io::Write,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
    time::{Duration, Instant},
};

use tokio::io::AsyncReadExt;
use tokio_run_in_process::{
    Error, Phase, Process, Signal, State, Stdio, Task, Zygote, default_zygote, run_blocking_in_process, run_in_process,
    worker,
};

use crate::{
    harness::{eventually, is_alive, send_signal},
    oracle::{scratch, undisturbed, undisturbed_with},
};

crate::cases![
    a_name_is_seen_everywhere,
    odd_names,
    a_timeout_counts_from_the_start_of_execution,
    a_queue_timeout_cuts_the_wait_alone,
    a_startup_timeout_is_the_tasks_own,
    c42_times_at_their_limits,
    a_grace_period_is_kept,
    no_grace_period_is_sigkill_at_once,
    d52_a_result_limit_is_exact,
    s04_variables_of_the_environment,
    a_clear_environment,
    options_that_cannot_be_used,
    a_working_directory,
    options_stay_with_their_task,
];

pub(crate) fn spawn_error(error: &Error) -> (&str, &std::io::Error) {
    match error {
        Error::Spawn { step, source, .. } => (step, source),
        other => panic!("{other:?}"),
    }
}

fn comm() -> String {
    std::fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned()
}

fn a_name_is_seen_everywhere() {
    undisturbed(|| async {
        let task = Task::new().name("a-name-that-is-long");
        let look = async || (worker::name().map(str::to_owned), comm());
        let (name, comm) = task.run(look, ()).await.unwrap();
        assert_eq!((name.as_deref(), &*comm), (Some("a-name-that-is-long"), "a-name-that-is-"));
        let process = task.open(pending::<()>, ()).await.unwrap();
        assert_eq!(process.name(), "a-name-that-is-long");
        assert!(format!("{process:?}").contains("a-name-that-is-long"), "{process:?}");
        process.kill().unwrap();
        let error = process.wait().await.unwrap_err();
        assert_eq!(error.task().unwrap().name(), "a-name-that-is-long");
        assert!(error.to_string().contains("`a-name-that-is-long`"), "{error}");
        // Without one it is the function's path, in errors alone.
        assert_eq!(run_blocking_in_process(|| worker::name().map(str::to_owned), ()).await.unwrap(), None);
        let error = run_in_process(exits, 3).await.unwrap_err();
        assert!(error.task().unwrap().name().ends_with("options::exits"), "{error}");
    });
}

pub(crate) async fn exits(code: i32) {
    std::process::exit(code)
}

fn odd_names() {
    undisturbed(|| async {
        for name in ["", "with\0zero", "ümläute und mehr davon", "a\nb", &"x".repeat(100_000)] {
            let task = Task::new().name(name);
            let seen = task.run_blocking(|| worker::name().map(str::to_owned), ()).await.unwrap();
            assert_eq!(seen.as_deref(), Some(name));
            assert_eq!(task.run(exits, 1).await.unwrap_err().task().unwrap().name(), name);
        }
    });
}

fn a_timeout_counts_from_the_start_of_execution() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let limit = Duration::from_millis(400);
        let task = zygote.task().name("limited").timeout(limit).grace_period(Duration::from_secs(20));
        // Queued for longer than its timeout, it still runs.
        let busy = zygote.open_in_process(pending::<()>, ()).await.unwrap();
        let queued = tokio::spawn(task.run(async |n: u8| n, 7));
        tokio::time::sleep(2 * limit).await;
        busy.shutdown().await;
        assert_eq!(queued.await.unwrap().unwrap(), 7);
        // The caller does not wait for the end of a task that is cut.
        let stubborn = async || {
            let mut terminated = worker::signal(Signal::TERM).unwrap();
            terminated.recv().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let start = Instant::now();
        let error = task.run(stubborn, ()).await.unwrap_err();
        let elapsed = start.elapsed();
        assert!(elapsed >= limit, "{elapsed:?}");
        let Error::TimedOut { phase: Phase::Running, limit: told, task: id, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*told, id.name()), (limit, "limited"));
        assert!(id.pid().is_some() && !error.is_retryable() && error.is_timeout());
        assert!(error.to_string().contains("ran longer than 400ms"), "{error}");
        // It holds its turn until it has ended.
        assert_eq!(zygote.available_processes(), 0);
        let process = task.open(stubborn, ()).await.unwrap();
        assert!(process.wait().await.unwrap_err().is_timeout());
        assert_eq!(process.state(), State::Finished, "cut, and not gone yet");
        // Its own way to end is its exit, and not the outcome.
        assert!(process.exited().await.0.success());
        assert!(process.wait().await.unwrap_err().is_timeout());
        // One that ends in time does not hear of it.
        assert_eq!(zygote.task().timeout(Duration::from_secs(60)).run(async |n: u8| n, 8).await.unwrap(), 8);
    });
}

fn a_queue_timeout_cuts_the_wait_alone() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let limit = Duration::from_millis(150);
        let task = zygote.task().name("hasty").queue_timeout(limit);
        let nap = async || tokio::time::sleep(Duration::from_millis(500)).await;
        task.run(nap, ()).await.unwrap();
        let busy = task.open(pending::<()>, ()).await.unwrap();
        let start = Instant::now();
        let error = task.run(nap, ()).await.unwrap_err();
        assert!(start.elapsed() >= limit && start.elapsed() < Duration::from_secs(10));
        let Error::TimedOut { phase: Phase::Queued, limit: told, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*told, error.is_retryable()), (limit, true));
        assert!(error.to_string().contains("task `hasty` waited for its turn longer than 150ms"), "{error}");
        assert_eq!(error.task().unwrap().pid(), None);
        assert!(task.open(nap, ()).await.unwrap_err().is_timeout());
        assert!(task.clone().queue_timeout(Duration::ZERO).run(nap, ()).await.unwrap_err().is_timeout());
        // Who waits behind it is not disturbed, and who was given up does not take a turn.
        let patient = tokio::spawn(zygote.run_in_process(async || 1, ()));
        busy.shutdown().await;
        assert_eq!(patient.await.unwrap().unwrap(), 1);
        eventually("its turn is free", || zygote.available_processes() == 1).await;
        task.clone().queue_timeout(Duration::ZERO).run(nap, ()).await.unwrap();
    });
}

fn a_startup_timeout_is_the_tasks_own() {
    undisturbed(|| async {
        let zygote = default_zygote().unwrap();
        let signal = |signal| send_signal(zygote.pid(), signal);
        let path = scratch("ran");
        signal(libc::SIGSTOP);
        let limit = Duration::from_millis(200);
        let task = Task::new().name("slow").startup_timeout(limit);
        let touch = |path: String| std::fs::write(path, "ran").unwrap();
        let start = Instant::now();
        let both = tokio::join!(task.run_blocking(touch, path.clone()), task.open_blocking(touch, path.clone()));
        assert!(start.elapsed() >= limit && start.elapsed() < Duration::from_secs(10));
        signal(libc::SIGCONT);
        for error in [both.0.unwrap_err(), both.1.unwrap_err()] {
            let Error::TimedOut { phase: Phase::Starting, limit: told, .. } = &error else { panic!("{error:?}") };
            assert_eq!((*told, error.is_retryable()), (limit, true));
            assert!(error.to_string().contains("not ready within 200ms"), "{error}");
        }
        crate::harness::nothing_is_left(&zygote).await;
        assert!(!Path::new(&path).exists(), "a task that timed out before its start did run");
        // It says nothing about how long the task may run.
        let nap = async || tokio::time::sleep(Duration::from_millis(3500)).await;
        Task::new().startup_timeout(Duration::from_secs(3)).run(nap, ()).await.unwrap();
    });
}

fn c42_times_at_their_limits() {
    undisturbed(|| async {
        let endless = Task::new()
            .timeout(Duration::MAX)
            .queue_timeout(Duration::MAX)
            .startup_timeout(Duration::MAX)
            .grace_period(Duration::MAX);
        assert_eq!(endless.run(async || 1, ()).await.unwrap(), 1);
        let process = endless.open(pending::<()>, ()).await.unwrap();
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
        for n in 0..20 {
            let nothing = Task::new().timeout(Duration::ZERO);
            match nothing.run(async |n: u8| n, n).await {
                Ok(value) => assert_eq!(value, n),
                Err(error) => assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{error:?}"),
            }
            let error = nothing.run(pending::<()>, ()).await.unwrap_err();
            assert!(matches!(error, Error::TimedOut { phase: Phase::Running, .. }), "{error:?}");
            match Task::new().startup_timeout(Duration::ZERO).run(async |n: u8| n, n).await {
                Ok(value) => assert_eq!(value, n),
                Err(error) => assert!(error.is_timeout(), "{error:?}"),
            }
        }
        let both = Task::new().timeout(Duration::ZERO).grace_period(Duration::ZERO);
        assert!(both.run(pending::<()>, ()).await.unwrap_err().is_timeout());
    });
}

struct Leaves(String);

impl Drop for Leaves {
    fn drop(&mut self) {
        std::fs::write(&self.0, "dropped").unwrap();
    }
}

/// Says that it is ready, and by a file that its destructors ran.
pub(crate) async fn leaves(path: String) {
    let _leaves = Leaves(path);
    println!("ready");
    std::io::stdout().flush().unwrap();
    pending::<()>().await;
}

pub(crate) async fn ready<T>(process: &Process<T>) {
    process.take_stdout().unwrap().read_exact(&mut [0; 6]).await.unwrap();
}

fn a_grace_period_is_kept() {
    undisturbed(|| async {
        let path = scratch("graceful");
        let task = Task::new().stdout(Stdio::piped()).grace_period(Duration::from_secs(60));
        let process = task.open(leaves, path.clone()).await.unwrap();
        ready(&process).await;
        process.shutdown().await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "dropped");
        std::fs::remove_file(&path).unwrap();
        let period = Duration::from_millis(400);
        let stubborn = || {
            let _taken_over = worker::signal(Signal::TERM).unwrap();
            println!("ready");
            std::thread::sleep(Duration::from_secs(60));
        };
        let task = task.grace_period(period);
        let process = task.open_blocking(stubborn, ()).await.unwrap();
        ready(&process).await;
        let start = Instant::now();
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::KILL));
        assert!(start.elapsed() >= period && start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    });
}

fn no_grace_period_is_sigkill_at_once() {
    undisturbed(|| async {
        let path = scratch("no-grace");
        let task = Task::new().stdout(Stdio::piped()).grace_period(Duration::ZERO);
        let process = task.open(leaves, path.clone()).await.unwrap();
        ready(&process).await;
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::KILL));
        assert!(process.wait().await.unwrap_err().is_cancelled());
        // Dropped, and cut by a limit.
        let process = task.open(leaves, path.clone()).await.unwrap();
        ready(&process).await;
        let pid = process.pid();
        drop(process);
        eventually("it is gone", || !is_alive(pid)).await;
        let process = task.timeout(Duration::from_millis(300)).open(leaves, path.clone()).await.unwrap();
        assert!(process.wait().await.unwrap_err().is_timeout());
        assert_eq!(process.exited().await.0.signal(), Some(Signal::KILL));
        assert!(!Path::new(&path).exists(), "no destructor ran");
    });
}

fn d52_a_result_limit_is_exact() {
    undisturbed(|| async {
        // A string is its length, in one byte up to 250, in three up to 65535, and its bytes.
        let text = async |n: usize| "x".repeat(n);
        for (n, size) in [(0, 1), (250, 251), (251, 254), (65_535, 65_538), (65_536, 65_541), (300_000, 300_005)] {
            assert_eq!(Task::new().result_limit(size).run(text, n).await.unwrap().len(), n);
            let task = Task::new().name("big").result_limit(size - 1);
            for error in [task.run(text, n).await.unwrap_err(), {
                let process = task.open(text, n).await.unwrap();
                process.wait().await.unwrap_err()
            }] {
                let Error::TooLarge { size: told, limit, task: id, .. } = &error else { panic!("{error:?}") };
                assert_eq!((*told, *limit, id.name()), (size, size - 1, "big"));
                assert!(
                    error.to_string().contains(&format!("{size} bytes where result_limit allows {limit}")),
                    "{error}"
                );
            }
        }
        Task::new().result_limit(0).run(async || (), ()).await.unwrap();
        assert!(matches!(
            Task::new().result_limit(0).run(async || 1_u8, ()).await,
            Err(Error::TooLarge { size: 1, limit: 0, .. })
        ));
        assert_eq!(Task::new().result_limit(u64::MAX).run(text, 3).await.unwrap(), "xxx");
        // It is no limit of the arguments.
        let length = async |text: String| text.len();
        assert_eq!(Task::new().result_limit(9).run(length, "x".repeat(1 << 20)).await.unwrap(), 1 << 20);
    });
    undisturbed_with(Zygote::builder().result_limit(4), |zygote| async move {
        let text = async |n: usize| "x".repeat(n);
        assert_eq!(zygote.run_in_process(text, 3).await.unwrap(), "xxx");
        assert!(matches!(zygote.run_in_process(text, 4).await, Err(Error::TooLarge { size: 5, limit: 4, .. })));
        assert_eq!(zygote.task().result_limit(5).run(text, 4).await.unwrap(), "xxxx", "the task's own wins");
    });
}

fn variables() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

fn variable(name: String) -> Option<Vec<u8>> {
    std::env::var_os(name).map(OsString::into_vec)
}

fn s04_variables_of_the_environment() {
    undisturbed(|| async {
        let here = variables();
        assert_eq!(run_blocking_in_process(variables, ()).await.unwrap(), here);
        let strange = OsStr::from_bytes(b"\xff\xfe = \x01\n");
        let strange_name = OsStr::from_bytes(b"OPTION_\xff");
        let task = Task::new()
            .env("OPTION_A", "a")
            .env("OPTION_B", strange)
            .env(strange_name, "c")
            .env("OPTION_D", "")
            .env("OPTION_E", "first")
            .env("OPTION_E", "second")
            .envs([("OPTION_F", "f"), ("OPTION_G", "g")])
            .env("OPTION_H", "x".repeat(200_000))
            .env("OPTION_I", "i")
            .env_remove("OPTION_I")
            .env_remove("OPTION_J")
            .env("OPTION_J", "j")
            .env_remove("PATH")
            .env_remove("OPTION_NEVER");
        let there: std::collections::HashMap<_, _> =
            task.run_blocking(variables, ()).await.unwrap().into_iter().collect();
        let get = |name: &str| there.get(OsStr::new(name)).map(OsString::as_os_str);
        let is = |name: &str, value: &str| assert_eq!(get(name), Some(OsStr::new(value)), "{name}");
        is("OPTION_A", "a");
        is("OPTION_D", "");
        is("OPTION_E", "second");
        is("OPTION_F", "f");
        is("OPTION_G", "g");
        is("OPTION_J", "j");
        assert_eq!(get("OPTION_B"), Some(strange));
        assert_eq!(there.get(strange_name).unwrap(), "c");
        assert_eq!(get("OPTION_H").unwrap().len(), 200_000);
        assert!(get("OPTION_I").is_none() && get("PATH").is_none() && std::env::var_os("PATH").is_some());
        assert_eq!(there.len(), here.len() - 1 + 9);
        assert_eq!(variables(), here, "the parent's is as it was");
        // C code sees the same, and an async task.
        let by_c = async || {
            // SAFETY: a live C string; one thread.
            let value = unsafe { libc::getenv(c"OPTION_A".as_ptr()) };
            // SAFETY: getenv gives a C string or null.
            (!value.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(value) }.to_str().unwrap().to_owned())
        };
        assert_eq!(task.run(by_c, ()).await.unwrap().as_deref(), Some("a"));
    });
}

fn a_clear_environment() {
    undisturbed(|| async {
        assert_eq!(Task::new().env_clear().run_blocking(variables, ()).await.unwrap(), []);
        let task = Task::new().env("OPTION_BEFORE", "1").env_clear().env("OPTION_AFTER", "2");
        assert_eq!(task.run_blocking(variables, ()).await.unwrap(), [("OPTION_AFTER".into(), "2".into())]);
        assert!(!variables().is_empty());
    });
}

fn options_that_cannot_be_used() {
    undisturbed(|| async {
        let invalid = |task: Task, names: &'static str| async move {
            let task = task.name("invalid");
            for error in [task.run(async || (), ()).await.unwrap_err(), task.open(async || (), ()).await.unwrap_err()] {
                let Error::InvalidOption { reason, .. } = &error else { panic!("{error:?}") };
                assert!(reason.contains(names), "{reason}");
                assert!(error.to_string().contains("`invalid` has an invalid option"), "{error}");
                assert!(!error.is_retryable() && error.task().unwrap().pid().is_none());
                assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::InvalidInput);
            }
        };
        invalid(Task::new().env("", "x"), "\"\" is not a name of a variable").await;
        invalid(Task::new().env("A=B", "x"), "\"A=B\" is not a name of a variable").await;
        invalid(Task::new().env("=", "x"), "\"=\" is not a name").await;
        invalid(Task::new().env("A\0", "x"), "is not a name of a variable").await;
        invalid(Task::new().env_remove("A=B"), "\"A=B\" is not a name of a variable").await;
        invalid(Task::new().env_remove(""), "\"\" is not a name of a variable").await;
        invalid(Task::new().env("OPTION", "a\0b"), "the value of the variable \"OPTION\" contains a zero byte").await;
        invalid(Task::new().current_dir("a\0b"), "contains a zero byte").await;
    });
}

fn directory() -> String {
    std::env::current_dir().unwrap().to_str().unwrap().to_owned()
}

fn a_working_directory() {
    undisturbed(|| async {
        let here = directory();
        assert_eq!(run_blocking_in_process(directory, ()).await.unwrap(), here);
        assert_eq!(Task::new().current_dir("/usr/bin").run_blocking(directory, ()).await.unwrap(), "/usr/bin");
        assert_eq!(Task::new().current_dir("/usr/..").run(async || directory(), ()).await.unwrap(), "/");
        let strange = std::env::temp_dir().join(OsStr::from_bytes(b"option-\xff"));
        std::fs::create_dir_all(&strange).unwrap();
        let bytes = || std::env::current_dir().unwrap().into_os_string().into_vec();
        let found = Task::new().current_dir(&strange).run_blocking(bytes, ()).await.unwrap();
        assert_eq!(found, std::fs::canonicalize(&strange).unwrap().into_os_string().into_vec());
        std::fs::remove_dir(&strange).unwrap();
        for (bad, errno) in [("/no/such/directory", libc::ENOENT), ("/etc/passwd", libc::ENOTDIR), ("", libc::ENOENT)] {
            let task = Task::new().name("astray").current_dir(bad);
            for error in
                [task.run(async || (), ()).await.unwrap_err(), task.open_blocking(|| (), ()).await.unwrap_err()]
            {
                let (step, source) = spawn_error(&error);
                assert_eq!((step, source.raw_os_error()), (&*format!("change to the directory {bad}"), Some(errno)));
                let text = error.to_string();
                assert!(text.contains("`astray`") && text.contains(bad) && error.source().is_some(), "{text}");
                assert!(!error.is_retryable());
            }
        }
        assert_eq!(directory(), here);
    });
}

fn options_stay_with_their_task() {
    undisturbed(|| async {
        let state = || {
            let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
            (variables(), directory(), comm(), worker::name().map(str::to_owned), limits)
        };
        let before = run_blocking_in_process(state, ()).await.unwrap();
        let here = (variables(), directory(), comm());
        let task = Task::new()
            .name("leaky")
            .env("OPTION", "1")
            .env_remove("PATH")
            .current_dir("/")
            .grace_period(Duration::ZERO);
        for _ in 0..3 {
            // Used again and again, the same each time.
            let (there, directory, comm, name, _) = task.run_blocking(state, ()).await.unwrap();
            assert!(there.contains(&("OPTION".into(), "1".into())) && there.iter().all(|(key, _)| key != "PATH"));
            assert_eq!((&*directory, &*comm, name.as_deref()), ("/", "leaky", Some("leaky")));
            assert_eq!(run_blocking_in_process(state, ()).await.unwrap(), before);
        }
        // A variant is another task.
        let variant = task.clone().env("OPTION", "2");
        let (a, b) =
            tokio::join!(task.run_blocking(variable, "OPTION".into()), variant.run_blocking(variable, "OPTION".into()));
        assert_eq!((a.unwrap(), b.unwrap()), (Some(b"1".to_vec()), Some(b"2".to_vec())));
        assert_eq!((variables(), directory(), comm()), here);
        // Of any type of function, open and run.
        assert_eq!(task.run(async |n: u8| n, 1).await.unwrap(), 1);
        assert_eq!(task.open(async |text: String| text, "x".into()).await.unwrap().wait().await.unwrap(), "x");
    });
}
