//! Kernels and containers that deny system calls: what is built on them is done in another way, or refused with the
//! reason. The filter is installed before `init`, so parent, zygote and workers all have it.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, Shared, Signal, StartError, Zygote, default_zygote, run_in_process};

use crate::{
    harness::{eventually, is_alive, skip},
    hygiene::{numbers, own},
    oracle::{undisturbed, undisturbed_with},
    tools::{Notes, stubborn, stubborn_blocking},
};

crate::cases![
    e65_a_zygote_that_cannot_fork_for_a_while,
    e66_a_program_that_cannot_fork,
    g96_memfd_create_is_denied,
    g97_pidfds_are_denied,
    g97_clone3_is_not_there,
    a_program_that_can_have_no_thread,
    a_program_that_can_have_no_thread_more,
    g98_close_range_is_denied,
    g99_what_newer_kernels_add_is_denied,
    g99_sigkill_on_hang_up_is_denied,
    g100_what_containers_forbid,
    g100_a_task_that_can_start_no_thread,
];

/// A call that fails: its number, and, for one call of many in one number, an argument with its value.
pub(crate) struct Denied(pub(crate) libc::c_long, pub(crate) Option<(u32, u32)>);

const fn all_of(call: libc::c_long) -> Denied {
    Denied(call, None)
}

/// From now on these calls fail in this process and in all that it starts.
pub(crate) fn deny(calls: &[Denied], errno: i32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let mut program = Vec::new();
    for &Denied(call, argument) in calls {
        program.push(op(LOAD, 0, 0));
        program.push(op(EQUAL, u32::try_from(call).unwrap(), if argument.is_some() { 3 } else { 1 }));
        if let Some((number, value)) = argument {
            // The lower half, of a little-endian machine.
            program.push(op(LOAD, 16 + 8 * number, 0));
            program.push(op(EQUAL, value, 1));
        }
        program.push(op(RETURN, libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap(), 0));
    }
    program.push(op(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    let filter = libc::sock_fprog { len: program.len().try_into().unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: a live program of that length.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) } != 0 {
        skip("no seccomp here");
    }
}

/// Runs `body` in a process of its own for each errno: a filter stays.
fn for_each(errnos: &[i32], body: impl Fn(i32)) {
    use crate::forks::{exit, fork, wait_for};
    for &errno in errnos {
        let child = fork();
        if child == 0 {
            // The case has a deadline.
            // SAFETY: touches no memory.
            unsafe { libc::alarm(0) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(errno)));
            exit(i32::from(done.is_err()));
        }
        assert_eq!(wait_for(child), 0, "with error {errno}");
    }
}

const LONG: Duration = Duration::from_secs(600);

/// What the library is for, each by what the filters above take away: descriptors, signals, exits, memory, birth.
pub(crate) async fn everything(zygote: &Zygote) {
    let task = zygote.task();
    assert_eq!(task.run(async |n: u8| n, 7).await.unwrap(), 7);
    let text = task.run_blocking(|text: String| text + "!", "x".repeat(3 << 20)).await.unwrap();
    assert_eq!(text.len(), (3 << 20) + 1);
    assert_eq!(numbers(&task.run_blocking(own, ()).await.unwrap()), [0, 1, 2, 3]);
    let shared = Shared::new([7; 100_000]).unwrap();
    let sum = |shared: Shared| shared.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    assert_eq!(task.run_blocking(sum, shared).await.unwrap(), 700_000);
    for code in [1, 255] {
        let error = task.run(async |code: i32| -> u8 { std::process::exit(code) }, code).await.unwrap_err();
        assert_eq!(error.exit_code(), Some(code));
    }
    let error = task.run_blocking(|| -> u8 { std::process::abort() }, ()).await.unwrap_err();
    assert_eq!(error.signal(), Some(Signal::ABRT));
    let error = task.run(async || -> u8 { panic!("no") }, ()).await.unwrap_err();
    assert!(error.is_panic());
    // Ended politely, by a limit, by force, and by nobody but a drop.
    let process = task.clone().grace_period(LONG).open(pending::<()>, ()).await.unwrap();
    assert_eq!(process.shutdown().await.0.signal(), Some(Signal::TERM));
    let error = task.clone().timeout(Duration::from_millis(50)).run(pending::<()>, ()).await.unwrap_err();
    assert!(error.is_timeout());
    let grace = Duration::from_millis(100);
    let notes = [Notes::new("polled"), Notes::new("blocking")];
    let hard = task.clone().grace_period(grace);
    let processes =
        [hard.open(stubborn, notes[0].path()).await, hard.open_blocking(stubborn_blocking, notes[1].path()).await];
    for (process, notes) in processes.into_iter().zip(&notes) {
        let process = process.unwrap();
        notes.say("ready").await;
        let start = Instant::now();
        assert_eq!(process.shutdown().await.0.signal(), Some(Signal::KILL));
        assert!(start.elapsed() >= grace);
    }
    let process = hard.open_blocking(|| std::thread::sleep(LONG), ()).await.unwrap();
    let pid = process.pid();
    process.send_signal(Signal::CONT).unwrap();
    drop(process);
    eventually("it is gone", || !is_alive(pid)).await;
    let later = Zygote::builder().start().unwrap();
    assert_eq!(later.run_in_process(async |n: u8| n, 8).await.unwrap(), 8);
}

fn works() {
    undisturbed_with(Zygote::builder(), |zygote| async move { everything(&zygote).await });
}

fn g96_memfd_create_is_denied() {
    for_each(&[libc::ENOSYS, libc::EPERM, libc::EACCES], |errno| {
        deny(&[all_of(libc::SYS_memfd_create)], errno);
        works();
    });
}

fn g97_pidfds_are_denied() {
    for_each(&[libc::ENOSYS, libc::EPERM], |errno| {
        deny(
            &[all_of(libc::SYS_pidfd_open), all_of(libc::SYS_pidfd_send_signal), all_of(libc::SYS_pidfd_getfd)],
            errno,
        );
        works();
    });
    // They can be opened and are good for nothing.
    for_each(&[libc::EPERM], |errno| {
        deny(&[all_of(libc::SYS_pidfd_send_signal)], errno);
        works();
    });
}

/// As some containers have it, and the C library then takes the older call.
fn g97_clone3_is_not_there() {
    deny(&[all_of(libc::SYS_clone3)], libc::ENOSYS);
    works();
}

/// At the limit of processes, as in a container.
fn deny_threads() {
    deny(&[all_of(libc::SYS_clone3), all_of(libc::SYS_clone)], libc::EAGAIN);
}

fn a_program_that_can_have_no_thread() {
    tokio_run_in_process::init().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let blocked = || crate::tools::status(std::process::id(), "SigBlk").unwrap();
    let before = blocked();
    deny_threads();
    for _ in 0..2 {
        let error = runtime.block_on(run_in_process(async || 1, ())).unwrap_err();
        assert!(matches!(&error, Error::Spawn { step, .. } if step == "start the driver thread"), "{error:?}");
        assert!(error.is_retryable(), "{error:?}");
        assert_eq!(blocked(), before, "this thread hears signals as before");
    }
}

/// Larger results are decoded by a thread of the runtime, if there is one to be had.
fn a_program_that_can_have_no_thread_more() {
    tokio_run_in_process::init().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(run_in_process(async || 1, ()).await.unwrap(), 1);
        deny_threads();
        let text = run_in_process(async || "x".repeat(1 << 20), ()).await.unwrap();
        assert_eq!(text.len(), 1 << 20);
    });
}

fn g98_close_range_is_denied() {
    for_each(&[libc::ENOSYS, libc::EPERM], |errno| {
        deny(&[all_of(libc::SYS_close_range)], errno);
        works();
    });
}

const SO_PASSRIGHTS: u32 = 83;
const PIDFD_GET_INFO_TYPE: u32 = 0xff;

fn g99_what_newer_kernels_add_is_denied() {
    // Whatever the size of its struct is said to be, of the kernels so far.
    let info = |size: u32| 3 << 30 | size << 16 | PIDFD_GET_INFO_TYPE << 8 | 11;
    let mut calls: Vec<_> = [64, 72, 80, 88, 96].map(|size| Denied(libc::SYS_ioctl, Some((1, info(size))))).into();
    calls.push(Denied(libc::SYS_setsockopt, Some((2, SO_PASSRIGHTS))));
    calls.push(Denied(libc::SYS_prctl, Some((0, libc::PR_SET_CHILD_SUBREAPER.unsigned_abs()))));
    calls.push(Denied(libc::SYS_prctl, Some((0, libc::PR_GET_CHILD_SUBREAPER.unsigned_abs()))));
    // Guard pages.
    calls.push(Denied(libc::SYS_madvise, Some((2, 102))));
    calls.push(Denied(libc::SYS_madvise, Some((2, 103))));
    for_each(&[libc::ENOSYS, libc::EPERM, libc::EINVAL, libc::ENOPROTOOPT], |errno| {
        deny(&calls, errno);
        works();
    });
}

/// Then a worker looks for itself whether its parent is there.
fn g99_sigkill_on_hang_up_is_denied() {
    const F_SETSIG: u32 = 10;
    for_each(&[libc::EPERM, libc::EINVAL], |errno| {
        deny(&[Denied(libc::SYS_fcntl, Some((1, F_SETSIG)))], errno);
        works();
    });
}

/// The usual filter of containers: much is forbidden, nothing of it is needed.
fn g100_what_containers_forbid() {
    deny(&[all_of(libc::SYS_clone3)], libc::ENOSYS);
    let forbidden = [
        libc::SYS_acct,
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_clock_adjtime,
        libc::SYS_clock_settime,
        libc::SYS_delete_module,
        libc::SYS_finit_module,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fsopen,
        libc::SYS_get_mempolicy,
        libc::SYS_init_module,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_setup,
        libc::SYS_kcmp,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_lookup_dcookie,
        libc::SYS_mbind,
        libc::SYS_mount,
        libc::SYS_move_pages,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_perf_event_open,
        libc::SYS_personality,
        libc::SYS_pivot_root,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_request_key,
        libc::SYS_set_mempolicy,
        libc::SYS_setns,
        libc::SYS_settimeofday,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_userfaultfd,
        libc::SYS_vhangup,
    ];
    deny(&forbidden.map(all_of), libc::EPERM);
    undisturbed(|| async { everything(&default_zygote().unwrap()).await });
}

/// Its end needs none, though the call is forbidden that would say at once that there is no other thread.
fn g100_a_task_that_can_start_no_thread() {
    deny(&[all_of(libc::SYS_unshare)], libc::EPERM);
    undisturbed(|| async {
        let says = || {
            print!("last words");
            deny(&[all_of(libc::SYS_clone), all_of(libc::SYS_clone3)], libc::EPERM);
            std::thread::Builder::new().spawn(|| ()).unwrap_err();
            7
        };
        let output = default_zygote().unwrap().task().output_blocking(says, ()).await;
        assert_eq!(output.stdout.text(), "last words");
        assert_eq!(output.result.unwrap(), 7);
    });
}

/// The rule that holds for everybody but the superuser: no more processes.
fn e65_a_zygote_that_cannot_fork_for_a_while() {
    crate::harness::without_warm_workers();
    become_nobody();
    undisturbed_with(Zygote::builder().max_processes(64), |zygote| async move {
        let limit = |pid: u32, count: u64| {
            let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            let pid = i32::try_from(pid).unwrap();
            // SAFETY: a live limit; a null new one changes nothing.
            assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_NPROC, std::ptr::null(), &raw mut before) }, 0);
            let now = libc::rlimit { rlim_cur: count, ..before };
            // SAFETY: a live limit.
            assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_NPROC, &raw const now, std::ptr::null_mut()) }, 0);
            before.rlim_cur
        };
        let before = limit(zygote.pid(), 1);
        for _ in 0..20 {
            for error in [
                zygote.run_in_process(async || 1, ()).await.unwrap_err(),
                zygote.open_in_process(async || 1, ()).await.unwrap_err(),
            ] {
                let Error::Spawn { step, source, .. } = &error else { panic!("{error:?}") };
                assert_eq!((&**step, source.raw_os_error()), ("fork the worker", Some(libc::EAGAIN)));
                assert!(error.is_retryable());
            }
        }
        limit(zygote.pid(), before);
        everything(&zygote).await;
    });
}

/// From the superuser to a user without any rights, who can still be looked at.
pub(crate) fn become_nobody() {
    const NOBODY: u32 = 65_534;
    // SAFETY: touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        skip("only the superuser can become another");
    }
    // SAFETY: an empty list.
    assert_eq!(unsafe { libc::setgroups(0, std::ptr::null()) }, 0);
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::setgid(NOBODY) }, 0);
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::setuid(NOBODY) }, 0);
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }, 0);
}

fn e66_a_program_that_cannot_fork() {
    let denied = [all_of(libc::SYS_clone), all_of(libc::SYS_clone3)];
    for_each(&[libc::ENOMEM, libc::EAGAIN], |errno| {
        let before = own();
        deny(&denied, errno);
        for _ in 0..3 {
            let error = tokio_run_in_process::init().unwrap_err();
            let StartError::System { step, source, .. } = &error else { panic!("{error:?}") };
            assert_eq!((*step, source.raw_os_error()), ("fork", Some(errno)));
            assert_eq!(own(), before, "nothing is left behind");
        }
    });
}
