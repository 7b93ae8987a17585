//! Pipes to a worker and from it: read, not read, read slowly, held by others.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_run_in_process::{Error, PipeReader, Signal, State, Stdio, Task, default_zygote, open_blocking_in_process};

use crate::{
    harness::{eventually, is_alive, send_signal},
    oracle::{descriptors_at_rest, undisturbed, undisturbed_with},
    stdio::file,
};

crate::cases![
    a_task_with_pipes_is_reusable,
    d60_output_that_nobody_reads_holds_nothing_up,
    d60_what_is_kept_is_the_beginning,
    all_of_the_output_arrives,
    a_reader_that_is_slow_holds_the_worker_up,
    a_reader_that_lags_behind_leaves_its_thread_to_others,
    a_reader_that_is_dropped_lets_the_worker_go_on,
    stdin_is_written_and_ends,
    stdin_that_nobody_takes_ends_with_wait,
    a_worker_that_does_not_read_its_stdin,
    d58_a_grandchild_that_keeps_the_pipes_holds_nothing_up,
    d58_nobody_reads_what_a_grandchild_keeps,
    the_output_ends_with_a_worker_that_is_killed,
    pipes_of_a_task_that_does_not_start;
    60 => both_directions_at_once,
];

const MB: usize = 1 << 20;

/// Bytes that tell where they belong.
fn pattern(from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 13 & 0xff).unwrap()).collect()
}

fn write_pattern(out: &mut impl Write, size: usize) {
    for from in (0..size).step_by(1 << 16) {
        out.write_all(&pattern(from, size.min(from + (1 << 16)))).unwrap();
    }
}

pub(crate) async fn read_all(mut reader: PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn a_task_with_pipes_is_reusable() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped());
        let prints = |n: u8| print!("{n}");
        let (a, b) = (task.open_blocking(prints, 1).await.unwrap(), task.open_blocking(prints, 2).await.unwrap());
        let (b, a) = (read_all(b.take_stdout().unwrap()).await, read_all(a.take_stdout().unwrap()).await);
        assert_eq!((&*a, &*b), (&b"1"[..], &b"2"[..]));
        let process = task.open_blocking(prints, 3).await.unwrap();
        assert!(process.take_stdin().is_none() && process.take_stderr().is_none(), "not piped");
        assert!(process.take_stdout().is_some() && process.take_stdout().is_none(), "once");
        let plain = open_blocking_in_process(|| (), ()).await.unwrap();
        assert!(plain.take_stdin().is_none() && plain.take_stdout().is_none() && plain.take_stderr().is_none());
    });
}

const FLOOD: usize = 10 * MB;

fn floods() -> usize {
    std::thread::scope(|scope| {
        scope.spawn(|| write_pattern(&mut std::io::stdout(), FLOOD));
        scope.spawn(|| write_pattern(&mut std::io::stderr(), FLOOD));
    });
    FLOOD
}

fn d60_output_that_nobody_reads_holds_nothing_up() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        assert_eq!(task.run_blocking(floods, ()).await.unwrap(), FLOOD);
        let process = task.open_blocking(floods, ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), FLOOD);
        process.exited().await;
        // Without anybody who asks at all.
        task.open_blocking(floods, ()).await.unwrap().detach();
        let process = task.open_blocking(floods, ()).await.unwrap();
        assert_eq!(process.await.unwrap(), FLOOD);
    });
}

fn d60_what_is_kept_is_the_beginning() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = task.open_blocking(floods, ()).await.unwrap();
        process.wait().await.unwrap();
        process.exited().await;
        for mut reader in [process.take_stdout().unwrap(), process.take_stderr().unwrap()] {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.unwrap();
            let kept = bytes.len();
            assert!((MB..FLOOD).contains(&kept), "{kept}");
            assert_eq!(reader.dropped(), (FLOOD - kept) as u64);
            assert!(bytes[..MB] == pattern(0, MB), "the first megabyte is what came first");
            // At the end it stays.
            assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
        }
    });
}

fn all_of_the_output_arrives() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        let begins = || {
            // So that the readers are there before there is much to read.
            let mut byte = [0];
            std::io::stdin().read_exact(&mut byte).unwrap();
            floods()
        };
        let process = task.stdin(Stdio::piped()).open_blocking(begins, ()).await.unwrap();
        let (mut stdout, mut stderr) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
        process.take_stdin().unwrap().write_all(b"x").await.unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (a, b) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        assert_eq!((a.unwrap(), b.unwrap()), (FLOOD, FLOOD));
        let expected = pattern(0, FLOOD);
        assert!(out == expected && err == expected);
        assert_eq!((stdout.dropped(), stderr.dropped()), (0, 0));
        assert_eq!(process.wait().await.unwrap(), FLOOD);
    });
}

fn a_reader_that_lags_behind_leaves_its_thread_to_others() {
    undisturbed(|| async {
        let floods = || while std::io::stdout().write_all(&[7; 1 << 16]).is_ok() {};
        let process = Task::new().stdout(Stdio::piped()).open_blocking(floods, ()).await.unwrap();
        let mut stdout = tokio::io::BufReader::new(process.take_stdout().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let reads = async {
            while Instant::now() < deadline {
                assert_eq!(stdout.read_u8().await.unwrap(), 7);
            }
        };
        let given_up = tokio::time::timeout(Duration::from_millis(50), reads).await;
        assert!(given_up.is_err(), "it kept the thread");
        drop((stdout, process));
    });
}

fn a_reader_that_is_slow_holds_the_worker_up() {
    undisturbed(|| async {
        let (path, progress) = file("progress");
        // So that the reader is there before there is anything to read; and says how far it is.
        let begins = || {
            let mut byte = [0];
            std::io::stdin().read_exact(&mut byte).unwrap();
            for from in (0..FLOOD).step_by(1 << 16) {
                std::io::stdout().write_all(&pattern(from, from + (1 << 16))).unwrap();
                std::io::stderr().write_all(b".").unwrap();
            }
        };
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(progress);
        let process = task.open_blocking(begins, ()).await.unwrap();
        let mut stdout = process.take_stdout().unwrap();
        process.take_stdin().unwrap().write_all(b"x").await.unwrap();
        let mut bytes = vec![0; 1 << 16];
        stdout.read_exact(&mut bytes).await.unwrap();
        let written = || std::fs::metadata(&path).unwrap().len() << 16;
        eventually("the buffer fills", || written() >= MB as u64).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // What was read, the buffer, the pipe, and a piece.
        assert!(written() <= (1 << 16) + (MB as u64) + (1 << 16) + (1 << 16), "{}", written());
        assert_eq!(process.state(), State::Executing);
        stdout.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes == pattern(0, FLOOD));
        assert_eq!(stdout.dropped(), 0);
        process.wait().await.unwrap();
        std::fs::remove_file(&path).unwrap();
    });
}

fn a_reader_that_is_dropped_lets_the_worker_go_on() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        for early in [true, false] {
            let process = task.open_blocking(floods, ()).await.unwrap();
            let mut stdout = process.take_stdout().unwrap();
            if !early {
                stdout.read_exact(&mut vec![0; MB]).await.unwrap();
            }
            drop(stdout);
            assert_eq!(process.wait().await.unwrap(), FLOOD);
        }
    });
}

fn cat() -> u64 {
    std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap()
}

fn stdin_is_written_and_ends() {
    undisturbed(|| async {
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped());
        for shut_down in [false, true] {
            let process = task.open_blocking(cat, ()).await.unwrap();
            let mut stdin = process.take_stdin().unwrap();
            assert!(process.take_stdin().is_none());
            stdin.write_all(b"some ").await.unwrap();
            stdin.write_all(b"data").await.unwrap();
            stdin.flush().await.unwrap();
            if shut_down {
                stdin.shutdown().await.unwrap();
                assert_eq!(stdin.write_all(b"x").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
            } else {
                drop(stdin);
            }
            assert_eq!(read_all(process.take_stdout().unwrap()).await, b"some data");
            assert_eq!(process.wait().await.unwrap(), 9);
        }
        // An async task reads it too.
        let echo = async || {
            let mut text = String::new();
            tokio::io::stdin().read_to_string(&mut text).await.unwrap();
            text
        };
        let process = task.open(echo, ()).await.unwrap();
        process.take_stdin().unwrap().write_all(b"async").await.unwrap();
        assert_eq!(process.wait().await.unwrap(), "async");
    });
}

fn stdin_that_nobody_takes_ends_with_wait() {
    undisturbed(|| async {
        let task = Task::new().stdin(Stdio::piped());
        let reads = || std::io::read_to_string(std::io::stdin()).unwrap().len();
        assert_eq!(task.run_blocking(reads, ()).await.unwrap(), 0);
        let process = task.open_blocking(reads, ()).await.unwrap();
        assert!(process.try_wait().is_none());
        assert_eq!(process.wait().await.unwrap(), 0);
        assert_eq!(task.open_blocking(reads, ()).await.unwrap().await.unwrap(), 0);
        // A detached one as well, and one whose pipe was taken keeps it.
        task.open_blocking(reads, ()).await.unwrap().detach();
        let process = task.open_blocking(reads, ()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        tokio::select! {
            result = process.wait() => panic!("{result:?}"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        stdin.write_all(b"12345").await.unwrap();
        drop(stdin);
        assert_eq!(process.wait().await.unwrap(), 5);
    });
}

fn a_worker_that_does_not_read_its_stdin() {
    undisturbed(|| async {
        let process = Task::new().stdin(Stdio::piped()).open(std::future::pending::<()>, ()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        let full = tokio::time::timeout(Duration::from_millis(300), stdin.write_all(&pattern(0, MB))).await;
        assert!(full.is_err(), "a pipe does not take a megabyte");
        process.terminate().unwrap();
        process.exited().await;
        let error = stdin.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    });
}

/// Starts a program in a session of its own, where the end of the worker does not reach it, and gives its pid.
fn leave_behind() -> u32 {
    let mut command = Command::new("sleep");
    let own_session = || {
        // SAFETY: touches no memory; async-signal-safe.
        unsafe { libc::setsid() };
        Ok(())
    };
    // SAFETY: only async-signal-safe calls.
    unsafe { command.pre_exec(own_session) };
    print!("left");
    command.arg("60").spawn().unwrap().id()
}

fn kill(pid: u32) {
    send_signal(pid, libc::SIGKILL);
}

fn d58_a_grandchild_that_keeps_the_pipes_holds_nothing_up() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let left = task.run_blocking(leave_behind, ()).await.unwrap();
        let process = task.open_blocking(leave_behind, ()).await.unwrap();
        let also_left = process.wait().await.unwrap();
        assert!(process.exited().await.0.success());
        assert!(start.elapsed() < Duration::from_secs(20));
        // What was printed is there though the stream has not ended.
        let mut stdout = process.take_stdout().unwrap();
        let mut text = [0; 4];
        stdout.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"left");
        assert!(tokio::time::timeout(Duration::from_millis(50), stdout.read(&mut text)).await.is_err());
        assert!(is_alive(left) && is_alive(also_left));
        kill(also_left);
        assert_eq!(read_all(stdout).await, b"");
        kill(left);
        // One in the worker's group dies with it, and the stream ends.
        let in_group = || drop(Command::new("sleep").arg("60").spawn().unwrap());
        let process = task.open_blocking(in_group, ()).await.unwrap();
        process.wait().await.unwrap();
        assert_eq!(read_all(process.take_stdout().unwrap()).await, b"");
    });
}

/// The library lets go of the pipes though they are still open at their other end.
fn d58_nobody_reads_what_a_grandchild_keeps() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        let zygote = default_zygote().unwrap();
        let before = descriptors_at_rest(&zygote).await;
        let mut left = Vec::new();
        for n in 0..60 {
            let process = task.open_blocking(leave_behind, ()).await.unwrap();
            left.push(process.wait().await.unwrap());
            if n % 3 != 0 {
                process.exited().await;
            }
            if n % 2 == 0 {
                let readers = (process.take_stdout(), process.take_stderr());
                drop(process);
                drop(readers);
            }
        }
        let start = Instant::now();
        let open = loop {
            let open = descriptors_at_rest(&zygote).await.saturating_sub(before);
            if open == 0 || start.elapsed() > Duration::from_secs(8) {
                break open;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert!(left.iter().all(|&pid| is_alive(pid)));
        left.into_iter().for_each(kill);
        assert_eq!(open, 0, "pipes of workers that are gone are still open");
    });
}

fn the_output_ends_with_a_worker_that_is_killed() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        let waits = || {
            println!("begun");
            std::thread::sleep(Duration::from_secs(60));
        };
        let process = task.open_blocking(waits, ()).await.unwrap();
        let (mut stdout, stderr) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
        stdout.read_exact(&mut [0; 6]).await.unwrap();
        let reading = tokio::spawn(read_all(stdout));
        process.kill().unwrap();
        assert_eq!(reading.await.unwrap(), b"");
        assert_eq!(read_all(stderr).await, b"");
        assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::KILL));
        // The readers outlive the handle, whose drop ends the task.
        let process = task.open_blocking(waits, ()).await.unwrap();
        let stdout = process.take_stdout().unwrap();
        drop(process);
        let text = read_all(stdout).await;
        assert!(text == b"begun\n" || text.is_empty(), "{text:?}");
    });
}

fn pipes_of_a_task_that_does_not_start() {
    undisturbed_with(tokio_run_in_process::Zygote::builder().max_processes(1), |zygote| async move {
        let busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
        let task = zygote.task().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        drop(task.open_blocking(cat, ()));
        drop(task.run_blocking(cat, ()));
        let hasty = task.clone().queue_timeout(Duration::from_millis(20));
        assert!(hasty.open_blocking(cat, ()).await.unwrap_err().is_timeout());
        assert!(hasty.run_blocking(cat, ()).await.unwrap_err().is_timeout());
        drop(busy);
        let astray = task.clone().current_dir("/no/such/directory");
        assert!(matches!(astray.open_blocking(cat, ()).await, Err(Error::Spawn { .. })));
        assert!(matches!(astray.run_blocking(cat, ()).await, Err(Error::Spawn { .. })));
    });
}

fn both_directions_at_once() {
    undisturbed(|| async {
        let task = Task::new().stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = task.open_blocking(cat, ()).await.unwrap();
        let (mut stdin, stdout) = (process.take_stdin().unwrap(), process.take_stdout().unwrap());
        let sent = pattern(0, FLOOD);
        let (written, read) = tokio::join!(
            async {
                stdin.write_all(&sent).await.unwrap();
                drop(stdin);
            },
            read_all(stdout)
        );
        let () = written;
        assert!(read == sent);
        assert_eq!(process.wait().await.unwrap(), FLOOD as u64);
    });
}
