//! Zygotes that are stopped, that die again and again, and what escaped from their workers.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio as StdStdio},
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, Zygote};

use crate::{
    harness::{children, eventually, is_alive, multi_thread, parent_of},
    lost_zygote::{inherits, soon},
    orphans::Life,
    recovery::{Patients, both, kill, try_both, works},
    tools::{Notes, note, stop},
};

crate::cases![
    e63_a_stopped_zygote_disturbs_nothing_that_runs,
    e63_a_stopped_zygote_holds_no_outcome_up,
    e61_a_crash_loop_is_seen_and_ends,
    e61_a_slow_crash_loop_is_seen_and_ends,
    e61_what_escaped_from_a_worker_is_reaped_and_let_alone,
];

fn e63_a_stopped_zygote_disturbs_nothing_that_runs() {
    let short = Duration::from_millis(400);
    let zygote = Zygote::builder().warm(0).startup_timeout(short).start().unwrap();
    multi_thread().block_on(async {
        for (which, dies) in [(true, false), (false, false), (false, true), (true, true)] {
            let patients = Patients::begin(&zygote, "stopped").await;
            let before = both(&zygote);
            let stopped = if which { before.serving } else { before.ancestor };
            stop(stopped.pid).await;
            if dies {
                // The other one: this one cannot do its part before it goes on.
                kill(if which { before.ancestor } else { before.serving }).await;
            }
            if which || dies {
                let error = soon("an error", zygote.run_in_process(async || 1, ())).await.unwrap_err();
                match error {
                    Error::TimedOut { .. } | Error::ZygoteLost { started: Some(false), .. } => {}
                    error => panic!("{error:?}"),
                }
            } else {
                works(&zygote).await;
            }
            assert_eq!(patients.begun(), 8);
            std::fs::write(&patients.path, "").unwrap();
            for process in &patients.opened {
                soon("a value, all the same", process.wait()).await.unwrap();
            }
            stopped.signal(libc::SIGCONT);
            patients.end().await;
            let start = Instant::now();
            while zygote.run_in_process(async || 1, ()).await.is_err() {
                assert!(start.elapsed() < Duration::from_secs(10), "it does not recover");
            }
            works(&zygote).await;
            eventually("two zygotes", || try_both(&zygote).is_some()).await;
        }
        eventually("all are gone", || zygote.metrics().alive == 0).await;
    });
}

async fn panics_when_told(path: String) {
    note(&path, " ready ");
    while !std::fs::read_to_string(&path).unwrap().contains("now") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("on purpose")
}

/// An outcome that is not good names its worker. The zygote would say who that is.
fn e63_a_stopped_zygote_holds_no_outcome_up() {
    let zygote = Zygote::builder().warm(0).start().unwrap();
    multi_thread().block_on(async {
        for quiet in [false, true] {
            if quiet {
                tokio_run_in_process::test_support::announce_less();
            }
            let notes = Notes::new("panics");
            let running = tokio::spawn(zygote.run_in_process(panics_when_told, notes.path()));
            notes.say("ready").await;
            let serving = both(&zygote).serving;
            stop(serving.pid).await;
            note(&notes.path(), "now");
            let error = soon("the outcome", running).await.unwrap().unwrap_err();
            assert!(error.is_panic(), "{error:?}");
            assert!(quiet || error.task().unwrap().pid().is_some(), "it said itself who it is: {error}");
            serving.signal(libc::SIGCONT);
            eventually("it is gone", || zygote.metrics().alive == 0).await;
            works(&zygote).await;
        }
    });
}

fn e61_a_crash_loop_is_seen_and_ends() {
    kill_each_at(Duration::ZERO);
}

/// As late as the first step of a zygote may come on a busy machine.
fn e61_a_slow_crash_loop_is_seen_and_ends() {
    kill_each_at(Duration::from_millis(20));
}

fn kill_each_at(age: Duration) {
    let zygote = Zygote::builder().warm(0).start().unwrap();
    multi_thread().block_on(async {
        works(&zygote).await;
        let ancestor = both(&zygote).ancestor;
        let start = Instant::now();
        let mut killed = std::collections::BTreeSet::new();
        while start.elapsed() < Duration::from_secs(2) {
            for child in children(ancestor.pid) {
                if is_alive(child) {
                    tokio::time::sleep(age).await;
                    Life::try_of(child).inspect(|life| life.kill());
                    killed.insert(child);
                }
            }
        }
        // It waits longer and longer: two thousand milliseconds have room for eleven doublings, and some did not come up.
        println!("{} were killed", killed.len());
        assert!(killed.len() < 20, "{}", killed.len());
        works(&zygote).await;
        assert!((1..=killed.len() as u64).contains(&zygote.metrics().zygotes_lost));
    });
}

/// Starts a process far from its worker's group that has lost its parent, and gives its pid.
fn escape(how: String) -> u32 {
    let script = match &*how {
        "stopped" => "kill -STOP $$",
        "deaf" => "trap '' TERM HUP INT CONT; while :; do sleep 1; done",
        _ => "sleep 0.3",
    };
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(StdStdio::null()).stdout(StdStdio::null()).stderr(StdStdio::null());
    let leave = || {
        // SAFETY: touches no memory.
        unsafe { libc::setsid() };
        Ok(())
    };
    // SAFETY: it calls what is async-signal-safe only: the shell is left by its parent, a session of its own.
    unsafe { command.pre_exec(leave) };
    command.spawn().unwrap().id()
}

fn e61_what_escaped_from_a_worker_is_reaped_and_let_alone() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let before = both(&zygote);
        let mut escaped = Vec::new();
        for how in ["stopped", "deaf", "brief"] {
            let pid = zygote.run_blocking_in_process(escape, how.to_owned()).await.unwrap();
            escaped.push(Life::of(pid));
        }
        let [stopped, deaf, brief] = escaped[..] else { panic!() };
        eventually("it is stopped", || stopped.state() == Some('T')).await;
        eventually("its worker is gone", || zygote.metrics().alive == 0).await;
        if inherits() {
            assert_eq!(parent_of(deaf.pid), Some(before.ancestor.pid));
            eventually("one is reaped", || brief.state().is_none()).await;
        }
        kill(before.serving).await;
        works(&zygote).await;
        let patients = Patients::begin(&zygote, "beside").await;
        kill(before.ancestor).await;
        works(&zygote).await;
        patients.end().await;
        // Another zygote inherits no more, and goes without them.
        let now = both(&zygote);
        let start = Instant::now();
        drop(zygote);
        eventually("they are gone", || now.ancestor.is_over() && now.serving.is_over()).await;
        println!("gone after {:?}", start.elapsed());
        assert!(!stopped.is_over() && !deaf.is_over(), "nobody's business");
        for life in [stopped, deaf] {
            life.kill();
        }
    });
}
