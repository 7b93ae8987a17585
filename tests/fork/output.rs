//! A task's outcome together with what it wrote, whatever becomes of it.

use std::{
    collections::HashSet,
    io::{Read, Write},
    time::Duration,
};

use tokio_run_in_process::{Captured, Error, Output, Signal, Stdio, Task, Zygote, worker};

use crate::{
    harness::{multi_thread, send_signal},
    oracle::{undisturbed, undisturbed_with},
    output_faults::{MB, floods},
    runtimes::{block_on, elsewhere},
    seed::{hear, runtimes, say, sleep_for_ever},
    stdio::file,
};

crate::cases![
    every_outcome_has_its_output,
    the_output_of_a_task_that_does_not_begin,
    a_task_that_times_out_has_said_something,
    an_output_limit_holds_for_a_process_too,
    streams_that_were_set_go_where_they_were_set_to,
    output_without_tokio,
    waiting_with_output_for_a_process,
    output_without_a_zygote;
    60 => many_outputs_are_nobody_elses,
];

pub(crate) fn texts<T>(output: &Output<T>) -> (&str, &str) {
    (std::str::from_utf8(&output.stdout.bytes).unwrap(), std::str::from_utf8(&output.stderr.bytes).unwrap())
}

/// Ends in the way that it is asked to, having said so on both streams, stdout in the middle of a line.
fn ends(how: String) -> String {
    print!("to be {how}");
    eprintln!("will be {how}");
    match how.as_str() {
        "returned" => {}
        "panicked" => panic!("as asked"),
        "aborted" => {
            std::io::stdout().flush().unwrap();
            std::process::abort()
        }
        "exited" => std::process::exit(3),
        "cancelled" => worker::cancel_blocking(),
        other => unreachable!("{other}"),
    }
    how
}

async fn ends_async(how: String) -> String {
    if how == "cancelled" {
        print!("to be {how}");
        eprintln!("will be {how}");
        match worker::cancel().await {}
    }
    ends(how)
}

fn every_outcome_has_its_output() {
    undisturbed(|| async {
        for how in ["returned", "panicked", "aborted", "exited", "cancelled"] {
            let mut outputs = vec![("blocking", Task::new().output_blocking(ends, how.to_owned()).await)];
            for (runtime, task) in runtimes(&Task::new()) {
                outputs.push((runtime, task.output(ends_async, how.to_owned()).await));
            }
            for (runtime, output) in outputs {
                let (stdout, stderr) = texts(&output);
                assert_eq!(stdout, format!("to be {how}"), "{runtime}");
                assert!(stderr.starts_with(&format!("will be {how}\n")), "{runtime}: {stderr}");
                assert_eq!(stderr.contains("as asked"), how == "panicked", "{runtime}: {stderr}");
                assert_eq!((output.stdout.dropped, output.stderr.dropped), (0, 0));
                match (how, &output.result) {
                    ("returned", Ok(value)) => assert_eq!(value, how),
                    ("panicked", Err(error)) => assert_eq!(error.panic().unwrap().message(), "as asked"),
                    ("aborted", Err(error)) => assert_eq!(error.signal(), Some(Signal::ABRT)),
                    ("exited", Err(error)) => assert_eq!(error.exit_code(), Some(3)),
                    ("cancelled", Err(error)) => assert!(error.is_cancelled()),
                    other => panic!("{runtime}: {other:?}"),
                }
            }
        }
    });
}

fn nothing<T: std::fmt::Debug>(output: Output<T>) -> Error {
    assert_eq!((&output.stdout, &output.stderr), (&Captured::default(), &Captured::default()));
    output.result.unwrap_err()
}

fn the_output_of_a_task_that_does_not_begin() {
    undisturbed_with(Zygote::builder().max_processes(1), |zygote| async move {
        let talks = || println!("never");
        let busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let hasty = zygote.task().queue_timeout(Duration::from_millis(20));
        assert!(nothing(hasty.output_blocking(talks, ()).await).is_timeout());
        drop(busy);
        let astray = zygote.task().current_dir("/no/such/directory");
        assert!(matches!(nothing(astray.output_blocking(talks, ()).await), Error::Spawn { .. }));
        let invalid = zygote.task().env("a=b", "c");
        assert!(matches!(nothing(invalid.output_blocking(talks, ()).await), Error::InvalidOption { .. }));
        // Not polled, it does not begin.
        drop(zygote.task().output_blocking(talks, ()));
    });
}

fn output_without_a_zygote() {
    multi_thread().block_on(async {
        assert!(matches!(nothing(Task::new().output(async || (), ()).await), Error::NotInitialized));
    });
}

async fn takes_its_time() {
    println!("begun");
    worker::cancelled().await;
    println!("told to end");
    std::future::pending::<()>().await;
}

fn a_task_that_times_out_has_said_something() {
    undisturbed(|| async {
        let task = Task::new().timeout(Duration::from_millis(300)).grace_period(Duration::from_millis(300));
        let output = task.output(takes_its_time, ()).await;
        assert!(output.result.as_ref().unwrap_err().is_timeout(), "{output:?}");
        assert_eq!(texts(&output), ("begun\ntold to end\n", ""));
        // One that is deaf as well.
        let deaf = || {
            eprintln!("cannot hear");
            let _ignored = worker::signal(Signal::TERM).unwrap();
            sleep_for_ever();
        };
        let output = task.output_blocking(deaf, ()).await;
        assert!(output.result.as_ref().unwrap_err().is_timeout(), "{output:?}");
        assert_eq!(texts(&output), ("", "cannot hear\n"));
    });
}

fn an_output_limit_holds_for_a_process_too() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).output_limit(10);
        let process = task.open_blocking(|| print!("0123456789abcdef"), ()).await.unwrap();
        let stdout = process.wait_with_output().await.stdout;
        assert_eq!((stdout.text().as_ref(), stdout.dropped), ("0123456789", 6));
        // One that is in time misses nothing, however little would be kept.
        let begins = || {
            let _ = std::io::stdin().read(&mut [0]).unwrap();
            floods(3);
        };
        for limit in [0, 10] {
            let task = task.clone().stdin(Stdio::piped()).stderr(Stdio::null()).output_limit(limit);
            let process = task.open_blocking(begins, ()).await.unwrap();
            let mut stdout = process.take_stdout().unwrap();
            drop(process.take_stdin());
            let mut bytes = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut bytes).await.unwrap();
            assert_eq!((bytes.len() as u64, stdout.dropped()), (3 * MB, 0));
        }
    });
}

fn streams_that_were_set_go_where_they_were_set_to() {
    undisturbed(|| async {
        let talks = || {
            println!("out");
            eprintln!("err");
        };
        let (path, log) = file("set");
        let output = Task::new().stdout(log).output_blocking(talks, ()).await;
        assert_eq!(texts(&output), ("", "err\n"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "out\n");
        std::fs::remove_file(&path).unwrap();
        for set in [Stdio::null(), Stdio::inherit()] {
            let output = Task::new().stderr(set).output_blocking(talks, ()).await;
            assert_eq!(texts(&output), ("out\n", ""));
        }
        let task = Task::new().stdout(Stdio::piped());
        assert_eq!(texts(&task.output_blocking(talks, ()).await), ("out\n", "err\n"));
        // The task itself is as it was.
        assert!(task.open_blocking(talks, ()).await.unwrap().take_stderr().is_none());
        // And a stdin that nobody could write to is at its end.
        let reads = || std::io::read_to_string(std::io::stdin()).unwrap();
        assert_eq!(task.clone().stdin(Stdio::piped()).output_blocking(reads, ()).await.result.unwrap(), "");
    });
}

fn output_without_tokio() {
    undisturbed(|| async {
        elsewhere(|| {
            block_on(async {
                let output = Task::new().output(ends_async, "returned".to_owned()).await;
                assert_eq!(texts(&output), ("to be returned", "will be returned\n"));
                let output = Task::new().output_blocking(floods, 5).await;
                assert_eq!((output.stdout.total(), output.stderr.total()), (5 * MB, 5 * MB));
            });
        });
    });
}

fn waiting_with_output_for_a_process() {
    undisturbed(|| async {
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let echo = || {
            let text = std::io::read_to_string(std::io::stdin()).unwrap();
            print!("out {text}");
            eprint!("err {text}");
            text.len()
        };
        let process = task.open_blocking(echo, ()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, b"abc").await.unwrap();
        drop(stdin);
        let output = process.wait_with_output().await;
        assert_eq!(texts(&output), ("out abc", "err abc"));
        assert_eq!(output.result.unwrap(), 3);
        // Nobody took its stdin; somebody took its stdout.
        let process = task.open_blocking(echo, ()).await.unwrap();
        let stdout = process.take_stdout().unwrap();
        let output = process.wait_with_output().await;
        assert_eq!(texts(&output), ("", "err "));
        assert_eq!(crate::pipes::read_all(stdout).await, b"out ");
        // Nothing is piped.
        let process = tokio_run_in_process::open_blocking_in_process(|| 7, ()).await.unwrap();
        let output = process.wait_with_output().await;
        assert_eq!((texts(&output), output.result.as_ref().unwrap()), (("", ""), &7));
        // Killed from outside.
        let says = || {
            eprintln!("ready");
            say("ready");
            sleep_for_ever();
        };
        let process = task.open_blocking(says, ()).await.unwrap();
        hear(&mut process.take_stdout().unwrap(), "ready").await;
        let pid = process.pid();
        let (output, ()) = tokio::join!(process.wait_with_output(), async { send_signal(pid, libc::SIGKILL) });
        assert_eq!(texts(&output), ("", "ready\n"));
        assert_eq!(output.result.unwrap_err().signal(), Some(Signal::KILL));
    });
}

fn many_outputs_are_nobody_elses() {
    undisturbed(|| async {
        let talks = |n: u64| {
            println!("stdout of {n}");
            eprintln!("stderr of {n}");
            n
        };
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200 {
            tasks.spawn(Task::new().output_blocking(talks, n));
        }
        let mut seen = HashSet::new();
        while let Some(output) = tasks.join_next().await {
            let output = output.unwrap();
            let n = *output.result.as_ref().unwrap();
            assert_eq!(texts(&output), (&*format!("stdout of {n}\n"), &*format!("stderr of {n}\n")));
            seen.insert(n);
        }
        assert_eq!(seen.len(), 200);
    });
}
