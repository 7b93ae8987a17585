//! What a worker reads and writes: where its 0, 1 and 2 go, and what was printed before the result is
//! seen.

use std::{
    fs::File,
    io::{Seek, Write},
    time::{Duration, Instant},
};

use tokio::io::AsyncReadExt;
use tokio_run_in_process::{Signal, Stdio, Task, run_blocking_in_process};

use crate::{
    oracle::{scratch, undisturbed},
    pipes::read_all,
};

crate::cases![
    null_inherit_and_files,
    a_file_as_stdin,
    what_was_printed_is_out_before_the_result,
    a_thread_that_keeps_stdout_locked_does_not_keep_the_result,
    a_panic_and_an_exit_flush_what_was_printed,
];

/// What 0, 1 and 2 are.
fn targets() -> [String; 3] {
    [0, 1, 2].map(|number| {
        let path = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

pub(crate) fn file(name: &str) -> (String, File) {
    let path = scratch(name);
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    (path, file)
}

fn null_inherit_and_files() {
    undisturbed(|| async {
        let ours = targets();
        let null = "/dev/null".to_owned();
        let found = run_blocking_in_process(targets, ()).await.unwrap();
        assert_eq!(found, [null.clone(), ours[1].clone(), ours[2].clone()], "the default");
        let all = |stdio: fn() -> Stdio| Task::new().stdin(stdio()).stdout(stdio()).stderr(stdio());
        assert_eq!(all(Stdio::null).run_blocking(targets, ()).await.unwrap(), [&*null, &null, &null]);
        assert_eq!(all(Stdio::inherit).run_blocking(targets, ()).await.unwrap(), ours);
        let found = all(Stdio::piped).run_blocking(targets, ()).await.unwrap();
        assert!(found.iter().all(|target| target.starts_with("pipe:")), "{found:?}");
        let unique: std::collections::HashSet<_> = found.iter().collect();
        assert_eq!(unique.len(), 3);
        let files = ["in", "out", "err"].map(file);
        let [stdin, stdout, stderr] = files.each_ref().map(|(_, file)| Stdio::from(file.try_clone().unwrap()));
        let task = Task::new().stdin(stdin).stdout(stdout).stderr(stderr);
        let prints = || {
            print!("to stdout");
            eprint!("to stderr");
            targets()
        };
        assert_eq!(task.run_blocking(prints, ()).await.unwrap(), files.each_ref().map(|(path, _)| path.clone()));
        // A second run goes on in the same file, since that is one open file.
        task.run_blocking(prints, ()).await.unwrap();
        let texts = files.map(|(path, _)| {
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            text
        });
        assert_eq!(texts, ["", "to stdoutto stdout", "to stderrto stderr"]);
        // One file in two places.
        let (path, both) = file("both");
        let task = Task::new().stdout(both.try_clone().unwrap()).stderr(both);
        let turns = || {
            println!("1");
            eprintln!("2");
            println!("3");
        };
        task.run_blocking(turns, ()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n3\n");
        std::fs::remove_file(&path).unwrap();
    });
}

fn a_file_as_stdin() {
    undisturbed(|| async {
        let (path, mut file) = file("stdin");
        file.write_all(b"line 1\nline 2\n").unwrap();
        file.rewind().unwrap();
        let reads = || std::io::read_to_string(std::io::stdin()).unwrap();
        let text = Task::new().stdin(file).run_blocking(reads, ()).await.unwrap();
        assert_eq!(text, "line 1\nline 2\n");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(run_blocking_in_process(reads, ()).await.unwrap(), "", "the default is empty");
        // A socket, a pipe.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        (&ours).write_all(b"by socket").unwrap();
        drop(ours);
        let task = Task::new().stdin(std::os::fd::OwnedFd::from(theirs));
        assert_eq!(task.run_blocking(reads, ()).await.unwrap(), "by socket");
    });
}

unsafe extern "C" {
    fn printf(format: *const libc::c_char, ...) -> libc::c_int;
}

fn what_was_printed_is_out_before_the_result() {
    undisturbed(|| async {
        let (path, out) = file("printed");
        let task = Task::new().stdout(out);
        let prints = |n: u32| {
            print!("rust {n}");
            // SAFETY: a format without arguments.
            unsafe { printf(c", C".as_ptr()) };
            n
        };
        let seen = |from: usize| std::fs::read_to_string(&path).unwrap()[from..].to_owned();
        let mut at = 0;
        for n in 0..50 {
            assert_eq!(task.run_blocking(prints, n).await.unwrap(), n);
            let text = seen(at);
            assert_eq!(text, format!("rust {n}, C"));
            at += text.len();
            task.run(async |n: u32| print!("async {n}"), n).await.unwrap();
            let text = seen(at);
            assert_eq!(text, format!("async {n}"));
            at += text.len();
        }
        let lines = || {
            println!("a line");
            print!("and a half");
        };
        task.run_blocking(lines, ()).await.unwrap();
        assert_eq!(seen(at), "a line\nand a half");
        std::fs::remove_file(&path).unwrap();
    });
}

fn a_thread_that_keeps_stdout_locked_does_not_keep_the_result() {
    undisturbed(|| async {
        let locks = || {
            let (locked, wait) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut stdout = std::io::stdout().lock();
                write!(stdout, "half a line").unwrap();
                locked.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(60));
            });
            wait.recv().unwrap();
            7
        };
        let task = Task::new().stdout(Stdio::piped());
        let start = Instant::now();
        assert_eq!(task.run_blocking(locks, ()).await.unwrap(), 7);
        assert_eq!(task.run(async move || locks(), ()).await.unwrap(), 7);
        let process = task.open_blocking(locks, ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 7);
        assert!(process.exited().await.0.success());
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        // One that lets go in time does not lose anything.
        let lets_go = || {
            let (locked, wait) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut stdout = std::io::stdout().lock();
                write!(stdout, "half a line").unwrap();
                locked.send(()).unwrap();
                drop(stdout);
                std::thread::sleep(Duration::from_secs(60));
            });
            wait.recv().unwrap();
        };
        let process = task.open_blocking(lets_go, ()).await.unwrap();
        process.wait().await.unwrap();
        assert_eq!(read_all(process.take_stdout().unwrap()).await, b"half a line");
    });
}

fn a_panic_and_an_exit_flush_what_was_printed() {
    undisturbed(|| async {
        let task = Task::new().stdout(Stdio::piped()).stderr(Stdio::piped());
        let panics = || -> () {
            print!("before the panic");
            panic!("now")
        };
        let process = task.open_blocking(panics, ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap_err().panic().unwrap().message(), "now");
        assert_eq!(read_all(process.take_stdout().unwrap()).await, b"before the panic");
        let text = String::from_utf8(read_all(process.take_stderr().unwrap()).await).unwrap();
        assert!(text.contains("now") && text.contains("stdio.rs:"), "{text}");
        let exits = async || -> () {
            print!("before the exit");
            std::process::exit(3)
        };
        let process = task.open(exits, ()).await.unwrap();
        assert_eq!(process.wait().await.unwrap_err().exit_code(), Some(3));
        assert_eq!(read_all(process.take_stdout().unwrap()).await, b"before the exit");
        let ended = async || {
            print!("before the end");
            println!();
            print!("half");
            std::future::pending::<()>().await;
        };
        let process = task.open(ended, ()).await.unwrap();
        let mut stdout = process.take_stdout().unwrap();
        stdout.read_exact(&mut [0; 15]).await.unwrap();
        process.terminate().unwrap();
        assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::TERM));
        assert_eq!(read_all(stdout).await, b"half");
    });
}
