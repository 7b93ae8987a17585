//! What comes back: values of all sizes, errors and what they say, and what a handle can be asked.

use std::{error::Error as StdError, future::pending, path::Path, time::Duration};

use tokio::io::AsyncWriteExt;
use tokio_run_in_process::{
    CapturedError, Error, ExitStatus, Signal, State, Stdio, Task, default_zygote, open_blocking_in_process,
    open_in_process, run_blocking_in_process, run_in_process, worker,
};

use crate::{
    harness::{eventually, is_alive, send_signal, without_warm_workers},
    options::exits,
    oracle::{scratch, undisturbed},
};

crate::cases![
    an_error_of_the_task_keeps_its_chain,
    errors_name_task_pid_and_cause,
    predicates_of_errors,
    errors_become_other_errors,
    usage_is_plausible,
    s25_an_outcome_stays,
    s22_states_can_be_waited_for,
    a_detached_task_goes_on,
    waiting_and_ending_at_once,
    s23_the_pid_is_the_workers,
    none_to_eight_arguments,
    nothing_and_a_little_travel;
    90 => large_values_travel,
];

#[derive(Debug)]
struct Outer(std::num::ParseIntError);

impl std::fmt::Display for Outer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the config is bad")
    }
}

impl StdError for Outer {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

fn an_error_of_the_task_keeps_its_chain() {
    undisturbed(|| async {
        let parse = async |text: String| -> Result<u32, CapturedError> { Ok(text.parse().map_err(Outer)?) };
        assert_eq!(run_in_process(parse, "7".to_owned()).await.unwrap().unwrap(), 7);
        let error = run_in_process(parse, "seven".to_owned()).await.unwrap().unwrap_err();
        assert_eq!(error.chain().collect::<Vec<_>>(), ["the config is bad", "invalid digit found in string"]);
        assert_eq!(format!("{error:#}"), "the config is bad: invalid digit found in string");
        assert!(error.type_name().ends_with("answers::Outer"), "{}", error.type_name());
        let error = error.into_error();
        assert_eq!(
            (error.to_string(), error.source().unwrap().to_string()),
            ("the config is bad".to_owned(), "invalid digit found in string".to_owned())
        );
        let plain = async || -> Result<(), String> { Err("in its own words".to_owned()) };
        assert_eq!(run_in_process(plain, ()).await.unwrap().unwrap_err(), "in its own words");
    });
}

fn errors_name_task_pid_and_cause() {
    undisturbed(|| async {
        let task =
            Task::new().name("subject").timeout(Duration::from_secs(10)).grace_period(Duration::from_millis(100));
        let raises = |signal: i32| {
            send_signal(std::process::id(), signal);
            std::thread::sleep(Duration::from_secs(60));
        };
        let cancels = async || -> () { match worker::cancel().await {} };
        let panics = async || -> () { panic!("in these words") };
        let process = task.open(pending::<()>, ()).await.unwrap();
        process.shutdown().await;
        let ended = process.wait().await.unwrap_err();
        let errors = [
            (task.run(exits, 7).await.unwrap_err(), "exited with code 7 and gave no result"),
            (task.run_blocking(raises, libc::SIGSEGV).await.unwrap_err(), "was killed by SIGSEGV"),
            (task.run_blocking(raises, libc::SIGKILL).await.unwrap_err(), "was killed by SIGKILL"),
            (task.run(panics, ()).await.unwrap_err(), "in these words"),
            (task.run(cancels, ()).await.unwrap_err(), "was cancelled"),
            (ended, "was cancelled"),
            (
                task.timeout(Duration::from_millis(400)).run(pending::<()>, ()).await.unwrap_err(),
                "ran longer than 400ms and was ended",
            ),
        ];
        for (error, cause) in errors {
            let id = error.task().unwrap();
            let pid = id.pid().unwrap();
            assert_eq!(id.name(), "subject");
            assert_eq!(id.to_string(), format!("task `subject` (pid {pid})"));
            assert!(pid > 1 && pid != std::process::id() && pid != default_zygote().unwrap().pid());
            let text = error.to_string();
            assert!(text.contains(&format!("task `subject` (pid {pid})")) && text.contains(cause), "{text}");
            assert!(!format!("{error:?}").is_empty());
        }
    });
}

fn predicates_of_errors() {
    undisturbed(|| async {
        let aborts = async || -> () { std::process::abort() };
        let panics = async || -> () { panic!("x") };
        let cancels = async || -> () { match worker::cancel().await {} };
        let hasty = Task::new().timeout(Duration::from_millis(30));
        let of = |error: &Error| {
            let flags = [error.is_timeout(), error.is_cancelled(), error.is_panic(), error.is_retryable()];
            (flags, error.signal(), error.exit_code(), error.panic().is_some())
        };
        let none = [false; 4];
        assert_eq!(of(&run_in_process(aborts, ()).await.unwrap_err()), (none, Some(Signal::ABRT), None, false));
        assert_eq!(of(&run_in_process(exits, 5).await.unwrap_err()), (none, None, Some(5), false));
        let panicked = [false, false, true, false];
        assert_eq!(of(&run_in_process(panics, ()).await.unwrap_err()), (panicked, None, None, true));
        let cancelled = [false, true, false, false];
        assert_eq!(of(&run_in_process(cancels, ()).await.unwrap_err()), (cancelled, None, None, false));
        let timed_out = [true, false, false, false];
        assert_eq!(of(&hasty.run(pending::<()>, ()).await.unwrap_err()), (timed_out, None, None, false));
    });
}

fn errors_become_other_errors() {
    fn is_error<T: StdError + Clone + Send + Sync + 'static>() {}
    is_error::<Error>();
    is_error::<tokio_run_in_process::StartError>();
    undisturbed(|| async {
        let error = run_in_process(exits, 5).await.unwrap_err();
        let copy = error.clone();
        assert_eq!((copy.to_string(), copy.exit_code()), (error.to_string(), Some(5)));
        let boxed: Box<dyn StdError + Send + Sync> = error.clone().into();
        assert_eq!(boxed.downcast_ref::<Error>().unwrap().exit_code(), Some(5));
        let io = std::io::Error::from(error);
        assert_eq!(io.kind(), std::io::ErrorKind::Other);
        assert_eq!(io.get_ref().unwrap().downcast_ref::<Error>().unwrap().exit_code(), Some(5));
        let cut = Task::new().timeout(Duration::ZERO).run(pending::<()>, ()).await.unwrap_err();
        assert_eq!(std::io::Error::from(cut).kind(), std::io::ErrorKind::TimedOut);
        let astray = Task::new().current_dir("/no/such").run(async || (), ()).await.unwrap_err();
        assert_eq!(
            astray.source().unwrap().downcast_ref::<std::io::Error>().unwrap().raw_os_error(),
            Some(libc::ENOENT)
        );
        assert_eq!(std::io::Error::from(astray).kind(), std::io::ErrorKind::NotFound);
        // A task may hand one on as its own error.
        let nested = async || -> Result<(), CapturedError> { Ok(run_in_process(exits, 1).await?) };
        let text = run_in_process(nested, ()).await.unwrap().unwrap_err().to_string();
        assert!(text.contains("a worker does not start workers"), "{text}");
    });
}

fn usage_is_plausible() {
    undisturbed(|| async {
        let spins = |millis: u64| {
            let mut n = 0_u64;
            // Its own clock, so that a busy machine does not matter.
            let used = || {
                let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: a live timespec.
                unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
                u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap()
            };
            while used() < millis {
                n = std::hint::black_box(n + 1);
            }
            n
        };
        let process = open_blocking_in_process(spins, 200).await.unwrap();
        process.wait().await.unwrap();
        let (status, usage) = process.exited().await;
        let usage = usage.unwrap();
        let time = usage.user_time + usage.system_time;
        assert_eq!(status, ExitStatus::Exited(0));
        assert!(time >= Duration::from_millis(190) && time < Duration::from_secs(5), "{usage:?}");
        let touches = |size: usize| std::hint::black_box(vec![1_u8; size]).iter().map(|&n| u64::from(n)).sum::<u64>();
        // The code of this program counts in whole where it is on huge pages.
        let size = if default_zygote().unwrap().capabilities().huge_text { 160 } else { 64 } << 20;
        let process = open_blocking_in_process(touches, size).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), size as u64);
        let large = process.exited().await.1.unwrap().max_rss;
        assert!((size as u64..4 * size as u64).contains(&large), "{large}");
        let process = open_in_process(async || tokio::time::sleep(Duration::from_millis(300)).await, ()).await.unwrap();
        let usage = process.exited().await.1.unwrap();
        assert!(usage.user_time + usage.system_time < Duration::from_millis(250), "it slept: {usage:?}");
        assert!(usage.max_rss > 0 && usage.max_rss < size as u64, "{usage:?}");
        // Asked again, the same.
        assert_eq!(process.exited().await, process.exited().await);
    });
}

fn s25_an_outcome_stays() {
    undisturbed(|| async {
        let process = open_in_process(async || "x".repeat(100_000), ()).await.unwrap();
        let (a, b) = tokio::join!(process.wait(), process.wait());
        assert_eq!((a.unwrap().len(), b.unwrap().len()), (100_000, 100_000));
        assert_eq!(process.wait().await.unwrap().len(), 100_000);
        assert_eq!(process.try_wait().unwrap().unwrap().len(), 100_000);
        process.exited().await;
        assert_eq!(process.wait().await.unwrap().len(), 100_000);
        assert_eq!(process.shutdown().await.0, ExitStatus::Exited(0), "too late to change anything");
        assert_eq!(process.wait().await.unwrap().len(), 100_000);
        let esrch = process.terminate().unwrap_err().raw_os_error();
        assert_eq!(esrch, Some(libc::ESRCH));
        assert_eq!(process.await.unwrap().len(), 100_000);
        let process = open_in_process(exits, 6).await.unwrap();
        for _ in 0..3 {
            assert_eq!(process.wait().await.unwrap_err().exit_code(), Some(6));
            assert_eq!(process.try_wait().unwrap().unwrap_err().exit_code(), Some(6));
        }
        assert_eq!(process.exited().await.0, ExitStatus::Exited(6));
        assert_eq!(process.await.unwrap_err().exit_code(), Some(6));
        assert_eq!(open_in_process(async || 5, ()).await.unwrap().await.unwrap(), 5, "IntoFuture");
        // A wait that is given up changes nothing.
        let process = open_in_process(async || tokio::time::sleep(Duration::from_millis(200)).await, ()).await.unwrap();
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(10), process.wait()).await.is_err());
        }
        assert!(process.try_wait().is_none());
        process.wait().await.unwrap();
    });
}

fn s22_states_can_be_waited_for() {
    undisturbed(|| async {
        let waits = || {
            std::io::stdin().read_line(&mut String::new()).unwrap();
            42
        };
        let process = Task::new().stdin(Stdio::piped()).open_blocking(waits, ()).await.unwrap();
        assert_eq!(process.state(), State::Executing);
        for reached in [State::Queued, State::Starting, State::Executing] {
            process.wait_for_state(reached).await;
        }
        assert!(process.try_wait().is_none());
        let early = tokio::time::timeout(Duration::from_millis(50), process.wait_for_state(State::Finished)).await;
        assert!(early.is_err());
        process.take_stdin().unwrap().write_all(b"go\n").await.unwrap();
        process.wait_for_state(State::Finished).await;
        assert_eq!(process.try_wait().unwrap().unwrap(), 42);
        process.wait_for_state(State::Exited).await;
        assert_eq!((process.state(), process.exited().await.0), (State::Exited, ExitStatus::Exited(0)));
    });
}

fn a_detached_task_goes_on() {
    undisturbed(|| async {
        let path = scratch("detached");
        let work = async |path: String| {
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::fs::write(path, "done").unwrap();
        };
        open_in_process(work, path.clone()).await.unwrap().detach();
        eventually("it is done", || std::fs::read_to_string(&path).is_ok_and(|text| text == "done")).await;
        std::fs::remove_file(&path).unwrap();
        // Dropped instead, it is not done.
        let process = open_in_process(work, path.clone()).await.unwrap();
        let pid = process.pid();
        drop(process);
        eventually("it is gone", || !is_alive(pid)).await;
        assert!(!Path::new(&path).exists());
        // Its limits go on as well.
        let task = Task::new().timeout(Duration::from_millis(100)).grace_period(Duration::ZERO);
        let process = task.open(pending::<()>, ()).await.unwrap();
        let pid = process.pid();
        process.detach();
        eventually("its time is over", || !is_alive(pid)).await;
    });
}

fn waiting_and_ending_at_once() {
    undisturbed(|| async {
        let process = open_in_process(pending::<()>, ()).await.unwrap();
        let error = tokio::select! {
            outcome = process.wait() => outcome.unwrap_err(),
            () = async {
                process.terminate().unwrap();
                pending::<()>().await
            } => unreachable!(),
        };
        assert_eq!(error.signal(), Some(Signal::TERM));
        let process = open_in_process(pending::<()>, ()).await.unwrap();
        let (outcome, (status, _), again) = tokio::join!(process.wait(), process.shutdown(), process.shutdown());
        assert!(outcome.unwrap_err().is_cancelled());
        assert_eq!((status, again.0), (status, status));
        // From another thread as well, by reference.
        let process = open_in_process(pending::<()>, ()).await.unwrap();
        std::thread::scope(|scope| scope.spawn(|| process.kill().unwrap()).join().unwrap());
        assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::KILL));
        for bad in [-1, 0, 65, i32::MAX] {
            assert_eq!(process.send_signal(bad).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
    });
}

fn s23_the_pid_is_the_workers() {
    without_warm_workers();
    undisturbed(|| async {
        let process = open_in_process(async || std::process::id(), ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), process.pid());
        let process = open_in_process(pending::<()>, ()).await.unwrap();
        assert!(is_alive(process.pid()));
        process.shutdown().await;
        assert!(!Path::new(&format!("/proc/{}", process.pid())).exists(), "reaped");
    });
}

fn none_to_eight_arguments() {
    undisturbed(|| async {
        type S = String;
        #[expect(clippy::too_many_arguments, reason = "all of them")]
        async fn eight(a: u8, b: S, c: Option<S>, d: Vec<u8>, e: (u8, S), f: bool, g: f64, h: ()) -> S {
            format!("{a}{b}{c:?}{d:?}{e:?}{f}{g}{h:?}")
        }
        assert_eq!(run_in_process(async || 0, ()).await.unwrap(), 0);
        assert_eq!(run_in_process(async |a: u8| a, 1).await.unwrap(), 1);
        assert_eq!(run_in_process(async |a: u8, b: u8| a + b, (1, 2)).await.unwrap(), 3);
        assert_eq!(run_in_process(async |a: u8, b: u8, c: u8| a + b + c, (1, 2, 3)).await.unwrap(), 6);
        let four = async |a: u8, b: u8, c: u8, d: u8| a + b + c + d;
        assert_eq!(run_in_process(four, (1, 2, 3, 4)).await.unwrap(), 10);
        let five = async |a: u8, b: u8, c: u8, d: u8, e: u8| a + b + c + d + e;
        assert_eq!(run_in_process(five, (1, 2, 3, 4, 5)).await.unwrap(), 15);
        let six = async |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8| a + b + c + d + e + f;
        assert_eq!(run_in_process(six, (1, 2, 3, 4, 5, 6)).await.unwrap(), 21);
        let seven = async |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8| a + b + c + d + e + f + g;
        assert_eq!(run_in_process(seven, (1, 2, 3, 4, 5, 6, 7)).await.unwrap(), 28);
        let arguments = (1, "b".into(), Some("c".into()), vec![4], (5, "e".into()), true, 0.5, ());
        assert_eq!(run_in_process(eight, arguments).await.unwrap(), "1bSome(\"c\")[4](5, \"e\")true0.5()");
        let plain = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| a + b + c + d + e + f + g + h;
        assert_eq!(run_blocking_in_process(plain, (1, 2, 3, 4, 5, 6, 7, 8)).await.unwrap(), 36);
    });
}

/// Text that tells where it belongs.
fn text(size: usize) -> String {
    let filler = "0123456789abcdef".repeat(62);
    let mut text = String::with_capacity(size + 1000);
    while text.len() < size {
        text.push_str(&format!("{:08x}", text.len()));
        text.push_str(&filler);
    }
    text.truncate(size);
    text
}

fn nothing_and_a_little_travel() {
    undisturbed(|| async {
        // Around the sizes of a first read, a socket's buffer, and what is decoded in place.
        for at in [0_usize, 1, 1960, 2048, 4096, 65_536, 212_992, 262_144] {
            for size in [at.saturating_sub(1), at, at + 1] {
                let sent = text(size);
                assert_eq!(run_in_process(async |text: String| text, sent.clone()).await.unwrap(), sent, "{size}");
                let process = open_blocking_in_process(|text: String| text, sent.clone()).await.unwrap();
                assert_eq!(process.wait().await.unwrap(), sent, "{size}");
            }
        }
        run_in_process(async |nothing: (), more: ()| (nothing, more), ((), ())).await.unwrap();
    });
}

fn large_values_travel() {
    undisturbed(|| async {
        let size = 64 << 20;
        let sent = text(size);
        let length = run_in_process(async |text: String| text.len(), sent.clone()).await.unwrap();
        assert_eq!(length, size);
        assert!(run_in_process(async |size: usize| text(size), size).await.unwrap() == sent);
        assert!(run_in_process(async |text: String| text, sent.clone()).await.unwrap() == sent);
        let process = open_blocking_in_process(|text: String, n: u8| (text, n), (sent.clone(), 7)).await.unwrap();
        assert!(process.wait().await.unwrap() == (sent.clone(), 7));
        // Several at once, both ways.
        let medium = text(16 << 20);
        let tasks: Vec<_> =
            (0..4).map(|_| tokio::spawn(run_in_process(async |text: String| text, medium.clone()))).collect();
        for task in tasks {
            assert!(task.await.unwrap().unwrap() == medium);
        }
    });
}
