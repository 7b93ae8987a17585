//! Programs in odd places: without /proc, in a bare chroot, as another user, from a file that is gone, where process
//! numbers run out.

use std::{ffi::CString, future::pending, os::unix::ffi::OsStrExt, time::Duration};

use tokio::task::JoinSet;
use tokio_run_in_process::{Error, Signal, Task, Zygote, default_zygote, run_blocking_in_process, run_in_process};

use crate::{
    denied::{become_nobody, everything},
    harness::{eventually, multi_thread, parent_of, skip},
    load::{Fate, Way, call, is_right},
    oracle::{no_core_files, scratch, undisturbed, undisturbed_with},
    tools::{must_succeed, unshared},
};

crate::cases![
    e75_a_program_whose_file_is_gone,
    g98_without_proc,
    g101_a_bare_chroot,
    g102_another_user_before_init,
    g102_another_user_after_init,
    g102_a_task_that_becomes_another_user;
    120 => g106_many_workers_at_once,
    g109_process_numbers_that_wrap_around,
];
crate::helpers![removes_its_file, without_proc, wraps_around];

/// The zygote and its workers need nothing of it: they are copies of what runs.
fn e75_a_program_whose_file_is_gone() {
    let copy = scratch("e75");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let status = std::process::Command::new(&copy).env("CASE", "removes_its_file").status().unwrap();
    assert!(status.success(), "{status}");
    assert!(!std::path::Path::new(&copy).exists());
}

fn removes_its_file() {
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(async {
        everything(&default_zygote().unwrap()).await;
        std::fs::remove_file(std::env::current_exe().unwrap()).unwrap();
        everything(&default_zygote().unwrap()).await;
    });
}

/// What can be asked for where nothing can be looked up: no /proc to check with.
async fn blind() {
    for n in 0..20 {
        assert_eq!(run_in_process(async |n: u8| n, n).await.unwrap(), n);
    }
    let open = || {
        // SAFETY: touches no memory.
        (0..100).filter(|&number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0).collect::<Vec<i32>>()
    };
    assert_eq!(run_blocking_in_process(open, ()).await.unwrap(), [0, 1, 2, 3]);
    let error = run_in_process(async || -> u8 { std::process::exit(9) }, ()).await.unwrap_err();
    assert_eq!(error.exit_code(), Some(9));
    let error = run_in_process(async || -> u8 { panic!("no") }, ()).await.unwrap_err();
    assert!(error.is_panic());
    let task = Task::new().grace_period(Duration::from_secs(600));
    let process = task.open(pending::<()>, ()).await.unwrap();
    assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    let task = Task::new().timeout(Duration::from_millis(50)).grace_period(Duration::ZERO);
    assert!(task.run_blocking(|| std::thread::sleep(Duration::from_secs(600)), ()).await.unwrap_err().is_timeout());
    let later = Zygote::builder().start().unwrap();
    assert_eq!(later.run_in_process(async |n: u8| n, 8).await.unwrap(), 8);
}

fn g98_without_proc() {
    must_succeed(&mut unshared(&["-m", "--propagation", "private"], "without_proc"));
}

fn without_proc() {
    no_core_files();
    // The second time it is gone.
    let again = std::env::var_os("DENIED").is_some();
    // SAFETY: a live C string.
    if !again && unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) } != 0 {
        skip("/proc cannot be taken away");
    }
    assert!(!std::path::Path::new("/proc/self").exists());
    let all = (0..300).map(|_| std::fs::File::open("/dev/null").unwrap()).collect::<Vec<_>>();
    // Without close_range as well there is only the count.
    if again {
        crate::denied::deny(&[crate::denied::Denied(libc::SYS_close_range, None)], libc::ENOSYS);
    } else {
        let status = helper_again();
        assert!(status.success(), "without close_range: {status}");
    }
    tokio_run_in_process::init().unwrap();
    multi_thread().block_on(blind());
    drop(all);
}

/// This helper once more, where /proc/self/exe is not there to say which program it is.
fn helper_again() -> std::process::ExitStatus {
    let program = std::env::args_os().next().unwrap();
    std::process::Command::new(program).env("CASE", "without_proc").env("DENIED", "1").status().unwrap()
}

/// A folder with nothing in it but what stdin needs.
fn g101_a_bare_chroot() {
    let root = scratch("g101");
    std::fs::create_dir_all(format!("{root}/dev")).unwrap();
    let null = CString::new(std::path::Path::new(&root).join("dev/null").as_os_str().as_bytes()).unwrap();
    // SAFETY: a live C string.
    let made = unsafe { libc::mknod(null.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) } == 0;
    let path = CString::new(root.as_bytes()).unwrap();
    let child = crate::forks::fork();
    if child == 0 {
        let done = std::panic::catch_unwind(|| {
            // SAFETY: a live C string.
            assert_eq!(unsafe { libc::chroot(path.as_ptr()) }, 0);
            std::env::set_current_dir("/").unwrap();
            no_core_files();
            tokio_run_in_process::init().unwrap();
            multi_thread().block_on(blind());
            // What was needed is open.
            std::fs::remove_file("/dev/null").unwrap();
            multi_thread().block_on(blind());
        });
        crate::forks::exit(i32::from(done.is_err()));
    }
    let status = crate::forks::wait_for(child);
    let _ = std::fs::remove_dir_all(root);
    if !made {
        skip("no device can be made here");
    }
    assert_eq!(status, 0);
}

fn g102_another_user_before_init() {
    become_nobody();
    undisturbed(|| async { everything(&default_zygote().unwrap()).await });
}

/// Its workers are the superuser's still, so it may not signal them: its zygote does.
fn g102_another_user_after_init() {
    no_core_files();
    tokio_run_in_process::init().unwrap();
    become_nobody();
    let zygote = default_zygote().unwrap();
    multi_thread().block_on(async {
        everything(&zygote).await;
        // SAFETY: touches no memory.
        assert_eq!(run_blocking_in_process(|| unsafe { libc::geteuid() }, ()).await.unwrap(), 0);
        crate::harness::nothing_is_left(&zygote).await;
    });
}

fn g102_a_task_that_becomes_another_user() {
    let changes = |stays: bool| -> u32 {
        become_nobody();
        if stays {
            std::thread::sleep(Duration::from_secs(600));
        }
        // SAFETY: touches no memory.
        unsafe { libc::geteuid() }
    };
    // SAFETY: touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        skip("only the superuser can become another");
    }
    undisturbed(|| async {
        assert_eq!(run_blocking_in_process(changes, false).await.unwrap(), 65_534);
        let process = Task::new().open_blocking(changes, true).await.unwrap();
        let user = || crate::tools::status(process.pid(), "Uid").is_some_and(|ids| ids.starts_with("65534"));
        eventually("it is another user's", user).await;
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    });
}

/// `MANY=5000` by hand.
fn g106_many_workers_at_once() {
    let many: usize = std::env::var("MANY").map_or(600, |many| many.parse().unwrap());
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live limit to fill.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = 4 * many as u64 + 256;
    // SAFETY: a live limit.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        skip("not so many descriptors");
    }
    undisturbed_with(Zygote::builder().max_processes(many), |zygote| async move {
        let task = zygote.task().startup_timeout(Duration::from_secs(100)).timeout(Duration::from_secs(100));
        let start = std::time::Instant::now();
        let mut opening = JoinSet::new();
        for n in 0..many as u64 {
            let task = task.clone();
            // Each stays until it is told to go on.
            let waits = |n: u64| {
                let mut line = String::new();
                std::io::stdin().read_line(&mut line).unwrap();
                (n, line)
            };
            let task = task.stdin(tokio_run_in_process::Stdio::piped());
            opening.spawn(async move { (n, task.open_blocking(waits, n).await.unwrap()) });
        }
        let all = opening.join_all().await;
        let up = start.elapsed();
        assert_eq!((all.len(), zygote.available_processes()), (many, 0));
        for (n, process) in &all {
            let mut stdin = process.take_stdin().unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stdin, format!("{n}").as_bytes()).await.unwrap();
        }
        for (n, process) in all {
            assert_eq!(process.wait().await.unwrap(), (n, n.to_string()));
            assert_eq!(parent_of(process.pid()).unwrap_or(zygote.pid()), zygote.pid());
        }
        println!("{many} workers stood after {up:?}, all were done after {:?}", start.elapsed());
    });
}

fn g109_process_numbers_that_wrap_around() {
    must_succeed(&mut unshared(&["-pf", "--mount-proc"], "wraps_around"));
}

/// Few numbers, each of which means many processes in turn, while some are signalled.
fn wraps_around() {
    // Since Linux 6.14 each namespace has its own.
    if std::fs::write("/proc/sys/kernel/pid_max", "400").is_err() || std::process::id() != 1 {
        skip("the number of processes cannot be limited");
    }
    no_core_files();
    let zygote = Zygote::builder().max_processes(24).start().unwrap();
    multi_thread().block_on(async {
        let mut tasks = JoinSet::new();
        for index in 0..1500_u64 {
            if tasks.len() == 24 {
                tasks.join_next().await.unwrap().unwrap();
            }
            let zygote = zygote.clone();
            tasks.spawn(async move {
                if index % 5 == 4 {
                    let process = zygote.open_in_process(pending::<()>, ()).await.unwrap();
                    assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
                    // Whoever has its number now is not meant.
                    assert_eq!(process.kill().unwrap_err().raw_os_error(), Some(libc::ESRCH));
                    return;
                }
                let fate = [Fate::Return, Fate::Exit, Fate::Return, Fate::Panic][(index % 4) as usize];
                let quiet = zygote.task().stderr(tokio_run_in_process::Stdio::null());
                let outcome = call(quiet, index, [Way::Run, Way::Open][(index % 2) as usize], fate).await;
                let right = is_right(index, fate, &outcome) || matches!(&outcome, Err(Error::Spawn { .. }));
                assert!(right, "{index}, {fate:?}: {outcome:?}");
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        crate::harness::nothing_is_left(&zygote).await;
    });
}
