//! Uses that are refused, each by its own error, and what goes on undisturbed beside them: too late, twice, not at all,
//! in a worker.

use std::{
    future::Future,
    pin::pin,
    sync::Mutex,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio_run_in_process::{
    Error, MAX_PROCESSES, Open, Run, StartError, Task, Zygote, default_zygote, init, open_blocking_in_process,
    open_in_process, relay_signals, run_blocking_in_process, run_in_process,
};

use crate::{
    forks::{exit, fork, wait_for},
    harness::{descriptors, is_alive, multi_thread, nothing_is_left, parent_of, send_signal, without_warm_workers},
    oracle::{threads, undisturbed, undisturbed_with},
};

crate::cases![
    a_second_thread_is_refused,
    a_runtime_is_refused,
    a_second_init_is_refused,
    a_call_without_init_is_refused,
    a_malformed_variable_is_an_error,
    well_formed_variables_are_used,
    an_option_of_zero_processes_is_an_error,
    a_later_zygote_is_forked_from_the_first,
    without_a_zygote_left_the_first_rules_apply_again,
    a_worker_does_not_start_workers,
    a_worker_cannot_use_what_it_inherited;
    60 => many_zygotes_in_turn,
];
crate::helpers![];

fn own() -> Vec<(u32, String)> {
    descriptors(std::process::id())
}

pub(crate) fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// `eventually` where there is no runtime.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) async fn answer() -> u8 {
    42
}

/// The process-wide zygote works.
fn works() {
    assert_eq!(multi_thread().block_on(run_in_process(answer, ())).unwrap(), 42);
}

fn a_second_thread_is_refused() {
    let before = own();
    let (leave, stay) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stay.recv());
    for error in [init().unwrap_err(), Zygote::builder().start().unwrap_err()] {
        assert!(matches!(error, StartError::MultiThreaded { threads: 2, .. }), "{error:?}");
        let text = error.to_string();
        for part in ["2 threads", "first thing in main", "fn main() {", "tokio_run_in_process::init()"] {
            assert!(text.contains(part), "{text}");
        }
    }
    let error = tokio_run_in_process::block_on(async {}).unwrap_err();
    assert!(matches!(error, StartError::MultiThreaded { threads: 2, .. }), "{error:?}");
    assert_eq!(own(), before, "nothing is left behind");
    drop(leave);
    thread.join().unwrap().unwrap_err();
    until("the thread is gone", || threads() == 1);
    init().unwrap();
    works();
}

fn a_runtime_is_refused() {
    let refuse = || {
        let errors = [
            init().unwrap_err(),
            Zygote::builder().start().unwrap_err(),
            // Not tokio's panic about a runtime within a runtime.
            tokio_run_in_process::block_on(async {}).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, StartError::InsideRuntime), "{error:?}");
            let text = error.to_string();
            for part in ["#[tokio::main]", "plain main", "tokio_run_in_process::init()", "Runtime::new()"] {
                assert!(text.contains(part), "{text}");
            }
        }
    };
    let before = own();
    let runtimes = || {
        [
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            // One thread and no reactor that could be copied: still not the place.
            tokio::runtime::Builder::new_current_thread().build().unwrap(),
        ]
    };
    for runtime in runtimes() {
        runtime.block_on(async {
            refuse();
            tokio::spawn(async move { refuse() }).await.unwrap();
        });
        let _inside = runtime.enter();
        refuse();
    }
    until("the runtimes' threads are gone", || threads() == 1);
    let left: Vec<_> = own().into_iter().filter(|found| !before.contains(found)).collect();
    // tokio keeps its signal pair for good.
    assert!(left.iter().all(|(_, target)| target.starts_with("socket:")) && left.len() <= 2, "{left:?}");
    init().unwrap();
    works();
}

fn a_second_init_is_refused() {
    undisturbed(|| async {
        let error = init().unwrap_err();
        assert!(matches!(error, StartError::AlreadyInitialized), "{error:?}");
        assert!(error.to_string().contains("Zygote::builder()"), "{error}");
        std::thread::spawn(|| assert!(matches!(init(), Err(StartError::AlreadyInitialized)))).join().unwrap();
        assert!(matches!(tokio_run_in_process::block_on(async {}), Err(StartError::AlreadyInitialized)));
    });
}

fn a_call_without_init_is_refused() {
    let check = |error: Error| {
        assert!(matches!(error, Error::NotInitialized), "{error:?}");
        assert!(error.to_string().contains("tokio_run_in_process::init() first thing in main"), "{error}");
        assert!(!error.is_retryable() && error.task().is_none());
    };
    multi_thread().block_on(async {
        check(run_in_process(answer, ()).await.unwrap_err());
        check(open_in_process(answer, ()).await.unwrap_err());
        check(run_blocking_in_process(|| 1, ()).await.unwrap_err());
        check(open_blocking_in_process(|| 1, ()).await.unwrap_err());
        check(Task::new().name("t").run(answer, ()).await.unwrap_err());
        check(default_zygote().unwrap_err());
        check(relay_signals().map(drop).unwrap_err());
    });
    // Without a runtime too, at once.
    assert!(matches!(poll_once(run_in_process(answer, ())), Poll::Ready(Err(Error::NotInitialized))));
    until("the runtime's threads are gone", || threads() == 1);
    init().unwrap();
    works();
}

const MAX_PROCS: &str = "TOKIO_RUN_IN_PROCESS_MAX_PROCS";
const STARTUP: &str = "TOKIO_RUN_IN_PROCESS_STARTUP_TIMEOUT";

fn set(name: &str, value: impl AsRef<std::ffi::OsStr>) {
    assert_eq!(threads(), 1);
    // SAFETY: one thread.
    unsafe { std::env::set_var(name, value) };
}

fn unset(name: &str) {
    assert_eq!(threads(), 1);
    // SAFETY: one thread.
    unsafe { std::env::remove_var(name) };
}

fn a_malformed_variable_is_an_error() {
    use std::os::unix::ffi::OsStrExt;
    let before = own();
    let check = |variable: &'static str, bad: &std::ffi::OsStr| {
        set(variable, bad);
        let overridden = Zygote::builder().max_processes(1).startup_timeout(Duration::from_secs(9));
        for error in [init().unwrap_err(), overridden.start().unwrap_err()] {
            let StartError::Config { name, value, .. } = &error else { panic!("{error:?}") };
            assert_eq!((*name, &**value), (variable, &*bad.to_string_lossy()));
            let text = error.to_string();
            assert!(text.contains(variable) && text.contains(&format!("{value:?}")), "{text}");
        }
        unset(variable);
    };
    for bad in ["", "0", "-1", "1.5", "many", "0x10", "99999999999999999999999", "3 4"] {
        check(MAX_PROCS, bad.as_ref());
    }
    for bad in ["", "0", "0.0", "-1", "soon", "inf", "NaN", "1e300", "5s", "1,5"] {
        check(STARTUP, bad.as_ref());
    }
    for variable in [MAX_PROCS, STARTUP] {
        check(variable, std::ffi::OsStr::from_bytes(b"1\xff"));
    }
    assert_eq!(own(), before, "nothing is left behind");
    init().unwrap();
    works();
}

fn well_formed_variables_are_used() {
    without_warm_workers();
    set(MAX_PROCS, " 3 ");
    set(STARTUP, "2.5");
    init().unwrap();
    assert_eq!(default_zygote().unwrap().available_processes(), 3);
    assert_eq!(Zygote::builder().max_processes(5).start().unwrap().available_processes(), 5, "the builder wins");
    let runtime = multi_thread();
    runtime.block_on(async {
        // The limit is the variable's: a worker that cannot come up is given up after it.
        let zygote = default_zygote().unwrap();
        let stop = |signal| send_signal(zygote.pid(), signal);
        stop(libc::SIGSTOP);
        let start = Instant::now();
        let error = run_in_process(answer, ()).await.unwrap_err();
        stop(libc::SIGCONT);
        let Error::TimedOut { phase, limit, .. } = &error else { panic!("{error:?}") };
        assert_eq!((*phase, *limit), (tokio_run_in_process::Phase::Starting, Duration::from_millis(2500)));
        assert!(start.elapsed() >= *limit && start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        nothing_is_left(&zygote).await;
        assert_eq!(run_in_process(answer, ()).await.unwrap(), 42);
    });
}

fn an_option_of_zero_processes_is_an_error() {
    let before = own();
    let error = Zygote::builder().max_processes(0).start().unwrap_err();
    let StartError::Config { name, value, .. } = &error else { panic!("{error:?}") };
    assert_eq!((*name, &**value), ("max_processes", "0"));
    assert!(error.to_string().contains("max_processes is \"0\""), "{error}");
    assert_eq!(own(), before);
    undisturbed_with(Zygote::builder().max_processes(usize::MAX), |zygote| async move {
        assert!(zygote.available_processes() > MAX_PROCESSES);
    });
}

static LATE: Mutex<u32> = Mutex::new(0);

fn a_later_zygote_is_forked_from_the_first() {
    undisturbed(|| async {
        // There are threads and a runtime by now, and this process is not what it was.
        assert!(threads() > 1);
        *LATE.lock().unwrap() = 9;
        let first = default_zygote().unwrap();
        let mut later = vec![Zygote::builder().start().unwrap()];
        later.push(std::thread::spawn(|| Zygote::builder().start().unwrap()).join().unwrap());
        for zygote in &later {
            assert_eq!(parent_of(zygote.pid()), parent_of(first.pid()), "the ancestor of all");
            let look = async || (*LATE.lock().unwrap(), std::process::id());
            let (late, pid) = zygote.run_in_process(look, ()).await.unwrap();
            assert_eq!(late, 0, "a pristine image");
            assert!(pid != std::process::id());
        }
        // Each lives on by itself.
        let second = later.pop().unwrap();
        drop(later);
        assert_eq!(second.run_in_process(answer, ()).await.unwrap(), 42);
        *LATE.lock().unwrap() = 0;
    });
}

fn without_a_zygote_left_the_first_rules_apply_again() {
    let zygote = Zygote::builder().start().unwrap();
    let runtime = multi_thread();
    assert_eq!(runtime.block_on(zygote.run_in_process(answer, ())).unwrap(), 42);
    let pid = zygote.pid();
    drop(zygote);
    until("the zygote is gone", || !is_alive(pid));
    runtime.block_on(async { assert!(matches!(init(), Err(StartError::InsideRuntime))) });
    drop(runtime);
    // The driver's is the second one: it stays.
    until("the runtime's threads are gone", || threads() == 2);
    assert!(matches!(init(), Err(StartError::MultiThreaded { threads: 2, .. })));
}

fn many_zygotes_in_turn() {
    undisturbed(|| async {
        let mut pids = Vec::new();
        for n in 0..50_u8 {
            let zygote = Zygote::builder().max_processes(2).start().unwrap();
            pids.push(zygote.pid());
            if n % 2 == 0 {
                assert_eq!(zygote.run_in_process(async |n: u8| n, n).await.unwrap(), n);
            }
            if n % 5 == 0 {
                // A task keeps its zygote, until it ends with its handle.
                let process = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
                drop(zygote);
                assert!(is_alive(pids[pids.len() - 1]));
                pids.push(process.pid());
            }
        }
        crate::harness::eventually("all are gone", || !pids.iter().any(|&pid| is_alive(pid))).await;
    });
}

/// What everything that starts something says in this process, by name.
fn refusals() -> Vec<(String, bool)> {
    fn inside<T>(result: Poll<Result<T, Error>>) -> bool {
        matches!(result, Poll::Ready(Err(Error::InsideWorker)))
    }
    let found = [
        ("init", matches!(init(), Err(StartError::InsideWorker))),
        ("start", matches!(Zygote::builder().start(), Err(StartError::InsideWorker))),
        ("block_on", matches!(tokio_run_in_process::block_on(async {}), Err(StartError::InsideWorker))),
        ("run_in_process", inside(poll_once(run_in_process(answer, ())))),
        ("open_in_process", inside(poll_once(open_in_process(answer, ())))),
        ("run_blocking_in_process", inside(poll_once(run_blocking_in_process(|| 1, ())))),
        ("open_blocking_in_process", inside(poll_once(open_blocking_in_process(|| 1, ())))),
        ("Task", inside(poll_once(Task::new().run(answer, ())))),
        ("default_zygote", matches!(default_zygote(), Err(Error::InsideWorker))),
        ("relay_signals", matches!(relay_signals(), Err(Error::InsideWorker))),
    ];
    found.map(|(name, refused)| (name.to_owned(), refused)).to_vec()
}

fn all_refused(found: &[(String, bool)]) {
    assert!(!found.is_empty() && found.iter().all(|&(_, refused)| refused), "{found:?}");
}

fn a_worker_does_not_start_workers() {
    undisturbed(|| async {
        let error = run_in_process(async || run_in_process(answer, ()).await.map_err(|e| e.to_string()), ()).await;
        let text = error.unwrap().unwrap_err();
        assert!(text.contains("a worker does not start workers"), "{text}");
        all_refused(&run_in_process(async || refusals(), ()).await.unwrap());
        all_refused(&run_blocking_in_process(refusals, ()).await.unwrap());
        all_refused(&run_blocking_in_process(|| std::thread::spawn(refusals).join().unwrap(), ()).await.unwrap());
        // In a child of a worker as well.
        let forks = || match fork() {
            0 => exit(i32::from(!refusals().iter().all(|&(_, refused)| refused))),
            child => wait_for(child),
        };
        assert_eq!(run_blocking_in_process(forks, ()).await.unwrap(), 0);
    });
}

type Handles = (Zygote, Task, Run<u8>, Open<u8>);

/// Made before the fork of the zygote whose workers look at them.
static INHERITED: Mutex<Option<Handles>> = Mutex::new(None);

fn a_worker_cannot_use_what_it_inherited() {
    without_warm_workers();
    init().unwrap();
    let lost = default_zygote().unwrap();
    let task = lost.task().name("inherited");
    let inherited = (lost.clone(), task.clone(), task.run(answer, ()), task.open(answer, ()));
    *INHERITED.lock().unwrap() = Some(inherited);
    // The next zygote is forked from this process, with all that, since there is no other to fork it from.
    let both = [parent_of(lost.pid()).unwrap(), lost.pid()];
    both.iter().for_each(|&pid| send_signal(pid, libc::SIGKILL));
    until("the first zygotes are gone", || both.iter().all(|&pid| !is_alive(pid)));
    let second = Zygote::builder().start().unwrap();
    // Here the first handle goes on: the ancestor of the second one forks a zygote for it.
    multi_thread().block_on(async {
        let (_, _, run, open) = INHERITED.lock().unwrap().take().unwrap();
        assert_eq!((run.await.unwrap(), open.await.unwrap().await.unwrap()), (42, 42));
        drop(lost);
        assert_eq!(second.run_in_process(answer, ()).await.unwrap(), 42);
    });
    undisturbed_with(Zygote::builder(), |third| async move {
        let uses = || {
            let (zygote, task, mut run, mut open) = INHERITED.lock().unwrap().take().unwrap();
            let mut found = refusals();
            let inside = |name: &str, refused| (name.to_owned(), refused);
            let refused = |result| matches!(result, Poll::Ready(Err(Error::InsideWorker)));
            found.push(inside("zygote", refused(poll_once(zygote.run_in_process(answer, ())))));
            found.push(inside("task", refused(poll_once(task.run(answer, ())))));
            found.push(inside("run", refused(poll_once(&mut run))));
            found.push(inside("open", matches!(poll_once(&mut open), Poll::Ready(Err(Error::InsideWorker)))));
            found.push(inside("relay", zygote.relay_signals().is_err()));
            drop((zygote, task, run, open));
            found
        };
        all_refused(&third.run_blocking_in_process(uses, ()).await.unwrap());
        all_refused(&third.run_in_process(async move || uses(), ()).await.unwrap());
    });
}
