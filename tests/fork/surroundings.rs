//! Programs in an odd state: without stdio, with SIGPIPE at its default.

use std::{os::unix::process::CommandExt, process::Command, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_run_in_process::{Error, Phase, Stdio, Task, default_zygote, run_blocking_in_process, run_in_process};

use crate::{
    harness::{helper, is_alive, multi_thread, send_signal, without_warm_workers},
    misuse::answer,
    oracle::{scratch, undisturbed},
};

crate::cases![f88_sigpipe_at_its_default_does_no_harm, g104_programs_without_stdio];
crate::helpers![without_stdio];

fn f88_sigpipe_at_its_default_does_no_harm() {
    without_warm_workers();
    // SAFETY: the default action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    undisturbed(|| async {
        assert_eq!(run_in_process(answer, ()).await.unwrap(), 42);
        // A job that is larger than the socket takes, for a worker that goes away before it read it all.
        let zygote = default_zygote().unwrap();
        let signal_zygote = |signal| send_signal(zygote.pid(), signal);
        for _ in 0..5 {
            let task = Task::new().startup_timeout(Duration::from_millis(200));
            signal_zygote(libc::SIGSTOP);
            let large = tokio::spawn(task.run(async |text: String| text.len(), "x".repeat(8 << 20)));
            let error = large.await.unwrap().unwrap_err();
            signal_zygote(libc::SIGCONT);
            assert!(matches!(error, Error::TimedOut { phase: Phase::Starting, .. }), "{error:?}");
        }
        // A worker's stdin whose worker is gone.
        let task = Task::new().stdin(Stdio::piped());
        let process = task.open(std::future::pending::<()>, ()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        stdin.write_all(b"x").await.unwrap();
        process.kill().unwrap();
        process.exited().await;
        let error = stdin.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let pending = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!((pending("SigPnd:"), pending("ShdPnd:")), (0, 0));
    });
}

fn g104_programs_without_stdio() {
    for at_start in [false, true] {
        for closed in ["0", "1", "2", "01", "12", "02", "012"] {
            let log = scratch("without-stdio");
            let mut program = helper("without_stdio");
            program.env("LOG", &log);
            if at_start {
                close_at_start(&mut program, closed);
            } else {
                program.env("CLOSE", closed);
            }
            let status = program.status().unwrap();
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(status.success() && text == "done", "{closed} at start {at_start}: {status}, {text}");
            std::fs::remove_file(&log).unwrap();
        }
    }
}

fn close_at_start(program: &mut Command, closed: &'static str) {
    let close = move || {
        for number in closed.bytes() {
            // SAFETY: the child's own.
            unsafe { libc::close(i32::from(number - b'0')) };
        }
        Ok(())
    };
    // SAFETY: only async-signal-safe calls.
    unsafe { program.pre_exec(close) };
}

/// What 0, 1 and 2 are.
fn stdio() -> Vec<String> {
    let target = |number| std::fs::read_link(format!("/proc/self/fd/{number}"));
    (0..3)
        .map(|number| target(number).map_or("closed".to_owned(), |path| path.to_string_lossy().into_owned()))
        .collect()
}

fn without_stdio() {
    let log = std::env::var("LOG").unwrap();
    std::panic::set_hook(Box::new({
        let log = log.clone();
        move |info| std::fs::write(&log, info.to_string()).unwrap()
    }));
    let closed = std::env::var("CLOSE").unwrap_or_default();
    for number in closed.bytes() {
        // SAFETY: nobody else's.
        unsafe { libc::close(i32::from(number - b'0')) };
    }
    tokio_run_in_process::init().unwrap();
    let runtime = multi_thread();
    let before = stdio();
    runtime.block_on(async {
        let look = || {
            print!("to wherever");
            eprintln!("to wherever");
            stdio()
        };
        for _ in 0..2 {
            for found in [
                run_blocking_in_process(look, ()).await.unwrap(),
                run_in_process(async move || look(), ()).await.unwrap(),
            ] {
                // The harness reads a socket.
                let fine = found
                    .iter()
                    .all(|path| path == "/dev/null" || path.starts_with("pipe:") || path.starts_with("socket:"));
                assert!(fine, "a worker's stdio: {found:?}");
            }
        }
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = task.open_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap(), ());
        let process = process.await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        stdin.write_all(b"abc").await.unwrap();
        drop(stdin);
        let mut text = String::new();
        process.take_stdout().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((&*text, process.wait().await.unwrap()), ("abc", 3));
        // What took these numbers was the program's own; nothing of the library's did.
        assert_eq!(stdio(), before);
        let zygote = default_zygote().unwrap().pid();
        assert!(is_alive(zygote));
    });
    std::fs::write(&log, "done").unwrap();
}
