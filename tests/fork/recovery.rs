//! A zygote that dies is replaced: what becomes of the tasks, the handles and the pools, and what their exits are.

use std::time::Duration;

use tokio_run_in_process::{Error, Pool, Process, Zygote};

use crate::{
    harness::{children, eventually, multi_thread, parent_of, skip},
    lost_zygote::{inherits, soon},
    oracle::scratch,
    orphans::Life,
    tools::{Random, note},
};

crate::cases![
    e61_either_zygote_dies_in_turn,
    e61_handles_outlive_the_ancestor_that_they_share,
    e61_a_handle_lives_on_when_the_one_it_recovered_from_is_dropped,
    e61_a_pool_outlives_its_zygotes,
    e61_handles_dropped_while_they_recover_leave_nothing,
    e61_a_handle_started_while_the_ancestor_is_dead,
    e61_no_process_for_the_next_zygote,
    e61_both_dead_is_an_error_at_once,
    e61_both_dead_the_ancestor_first,
];

/// The zygote that serves and the one that forked it.
pub(crate) struct Both {
    pub(crate) ancestor: Life,
    pub(crate) serving: Life,
}

pub(crate) fn both(zygote: &Zygote) -> Both {
    try_both(zygote).expect("both are there")
}

/// The same while they come and go.
pub(crate) fn try_both(zygote: &Zygote) -> Option<Both> {
    let serving = Life::try_of(zygote.pid()).filter(|serving| !serving.is_over())?;
    let ancestor = Life::try_of(parent_of(serving.pid)?)?;
    let name = std::fs::read_to_string(format!("/proc/{}/comm", ancestor.pid)).ok()?;
    // One whose ancestor is gone has another parent for a moment.
    (name.trim() == "zygote").then_some(Both { ancestor, serving })
}

/// Waits until this handle has two zygotes, none of them of `before`.
pub(crate) async fn recovered(zygote: &Zygote, before: &Both) -> Both {
    let fresh = || try_both(zygote).filter(|now| now.serving != before.serving && now.ancestor != before.serving);
    eventually("another one serves", || fresh().is_some()).await;
    fresh().unwrap_or_else(|| both(zygote))
}

pub(crate) async fn kill(life: Life) {
    life.kill();
    eventually("it is gone", || life.is_over()).await;
}

pub(crate) fn go(path: &str) -> bool {
    std::path::Path::new(path).exists()
}

async fn patient(path: String, n: u64) -> u64 {
    note(&format!("{path}-begun"), "x");
    while !go(&path) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    n * 1_000_003
}

/// Tasks that run until they may end, and then must have their values.
pub(crate) struct Patients {
    pub(crate) path: String,
    runs: Vec<tokio::task::JoinHandle<Result<u64, Error>>>,
    pub(crate) opened: Vec<Process<u64>>,
}

impl Patients {
    pub(crate) async fn begin(zygote: &Zygote, name: &str) -> Self {
        let path = scratch(name);
        let runs: Vec<_> = (0..4).map(|n| tokio::spawn(zygote.run_in_process(patient, (path.clone(), n)))).collect();
        let mut opened = Vec::new();
        for n in 4..8 {
            opened.push(zygote.open_in_process(patient, (path.clone(), n)).await.unwrap());
        }
        let patients = Self { path, runs, opened };
        eventually("all have begun", || patients.begun() == 8).await;
        patients
    }

    pub(crate) fn begun(&self) -> usize {
        std::fs::read_to_string(format!("{}-begun", self.path)).unwrap_or_default().len()
    }

    pub(crate) async fn end(self) {
        std::fs::write(&self.path, "").unwrap();
        let mut values = Vec::new();
        for run in self.runs {
            values.push(soon("a value of run", run).await.unwrap().unwrap());
        }
        for process in &self.opened {
            values.push(soon("a value of open", process.wait()).await.unwrap());
            soon("an exit", process.exited()).await;
        }
        assert_eq!(values, (0..8).map(|n| n * 1_000_003).collect::<Vec<_>>());
        let begun = format!("{}-begun", self.path);
        assert_eq!(std::fs::read_to_string(&begun).unwrap().len(), 8, "none began twice");
        std::fs::remove_file(begun).unwrap();
        std::fs::remove_file(self.path).unwrap();
    }
}

/// The next tasks work, and their exits are reported.
pub(crate) async fn works(zygote: &Zygote) {
    works_and(zygote, inherits()).await;
}

/// The same where both of its zygotes may have died a moment ago. A warm worker of theirs may have done it: init reaps that in
/// its own time.
async fn works_anyhow(zygote: &Zygote) {
    works_and(zygote, false).await;
}

async fn works_and(zygote: &Zygote, reported: bool) {
    for n in 0..2 {
        assert_eq!(soon("run", zygote.run_in_process(async |n: u8| n, n)).await.unwrap(), n);
        let process = match soon("open", zygote.open_in_process(async |n: u8| n, n)).await {
            // It was with a zygote that was dying, and nobody else knows its pid.
            Err(Error::ZygoteLost { started: Some(true), .. }) if !reported => continue,
            opened => opened.unwrap(),
        };
        assert_eq!(soon("wait", process.wait()).await.unwrap(), n);
        let (status, usage) = soon("an exit", process.exited()).await;
        // It may have been with a worker of one that was dying.
        assert!(status.success() && usage.is_some() || !reported, "{status:?} {usage:?}");
    }
}

fn e61_either_zygote_dies_in_turn() {
    let zygote = Zygote::builder().max_processes(64).start().unwrap();
    multi_thread().block_on(async {
        let first = Patients::begin(&zygote, "first").await;
        for round in 0..20 {
            let before = both(&zygote);
            kill(before.ancestor).await;
            works(&zygote).await;
            let now = recovered_from_ancestor(&zygote, &before).await;
            assert_eq!(now.ancestor, before.serving, "the one that served is the ancestor");
            let some = Patients::begin(&zygote, &format!("some-{round}")).await;
            kill(now.serving).await;
            works(&zygote).await;
            recovered(&zygote, &now).await;
            some.end().await;
        }
        first.end().await;
        eventually("all are gone", || zygote.metrics().alive == 0).await;
    });
}

async fn recovered_from_ancestor(zygote: &Zygote, before: &Both) -> Both {
    let fresh = || try_both(zygote).filter(|now| now.ancestor != before.ancestor);
    eventually("another ancestor", || fresh().is_some()).await;
    both(zygote)
}

fn e61_handles_outlive_the_ancestor_that_they_share() {
    let mut zygotes: Vec<_> = (0..3).map(|_| Zygote::builder().start().unwrap()).collect();
    multi_thread().block_on(async {
        let before: Vec<_> = zygotes.iter().map(both).collect();
        assert!(before.iter().all(|zygotes| zygotes.ancestor == before[0].ancestor), "one for all");
        let mut patients = Vec::new();
        for (n, zygote) in zygotes.iter().enumerate() {
            patients.push(Patients::begin(zygote, &format!("shared-{n}")).await);
        }
        kill(before[0].ancestor).await;
        for (zygote, before) in zygotes.iter().zip(&before) {
            works(zygote).await;
            recovered_from_ancestor(zygote, before).await;
        }
        for zygote in &zygotes {
            let before = both(zygote);
            kill(before.serving).await;
            works(zygote).await;
            recovered(zygote, &before).await;
        }
        // Each lives on by itself.
        drop(patients.remove(0));
        drop(zygotes.remove(0));
        for zygote in &zygotes {
            works(zygote).await;
            let before = both(zygote);
            kill(before.serving).await;
            works(zygote).await;
        }
        for patients in patients {
            patients.end().await;
        }
    });
}

fn e61_a_handle_lives_on_when_the_one_it_recovered_from_is_dropped() {
    let first = Zygote::builder().start().unwrap();
    let second = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let before = both(&second);
        // The first one's serving zygote becomes an ancestor, of both.
        before.ancestor.kill();
        before.serving.kill();
        eventually("they are gone", || before.ancestor.is_over() && before.serving.is_over()).await;
        works_anyhow(&second).await;
        works(&first).await;
        let patients = Patients::begin(&second, "recovered").await;
        drop(first);
        works(&second).await;
        patients.end().await;
        let before = both(&second);
        kill(before.serving).await;
        works(&second).await;
        recovered(&second, &before).await;
    });
}

fn e61_a_pool_outlives_its_zygotes() {
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        let pool: Pool = zygote.pool().workers(4).build().unwrap();
        let pids = async || {
            let pids: Vec<_> = pool.map(async |_: u8| std::process::id(), 0..40).collect().await.unwrap();
            std::collections::BTreeSet::from_iter(pids)
        };
        let first = pids().await;
        let path = scratch("pool");
        let run = tokio::spawn(pool.run(patient, (path.clone(), 5)));
        eventually("it has begun", || go(&format!("{path}-begun"))).await;
        let before = both(&zygote);
        kill(before.serving).await;
        assert!(pids().await.iter().any(|pid| first.contains(pid)), "its workers go on");
        recovered(&zygote, &before).await;
        kill(before.ancestor).await;
        let second = pids().await;
        for &pid in &second {
            if let Some(life) = Life::try_of(pid) {
                life.kill();
            }
        }
        std::fs::write(&path, "").unwrap();
        // Its worker was killed, or it has its value.
        let outcome = soon("an outcome", run).await.unwrap();
        assert!(
            matches!(outcome, Ok(5_000_015) | Err(Error::Signaled { .. } | Error::ZygoteLost { .. })),
            "{outcome:?}"
        );
        let third = soon("new workers", pids()).await;
        assert!(third.is_disjoint(&second), "{second:?} {third:?}");
        drop(pool);
        eventually("all are gone", || zygote.metrics().alive == 0).await;
        std::fs::remove_file(format!("{path}-begun")).unwrap();
        std::fs::remove_file(path).unwrap();
    });
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn e61_handles_dropped_while_they_recover_leave_nothing() {
    let keeper = Zygote::builder().warm(0).start().unwrap();
    multi_thread().block_on(async {
        works(&keeper).await;
        let ancestor = both(&keeper).ancestor;
        eventually("all are gone", || keeper.metrics().alive == 0).await;
        let descriptors = open_descriptors();
        let mut random = Random::new(7);
        for round in 0..40 {
            let zygote = Zygote::builder().warm(usize::try_from(round % 3).unwrap()).start().unwrap();
            if round % 2 == 0 {
                works(&zygote).await;
            }
            let run = tokio::spawn(zygote.run_in_process(std::future::pending::<()>, ()));
            Life::of(zygote.pid()).kill();
            tokio::time::sleep(Duration::from_micros(random.below(5000))).await;
            run.abort();
            drop(zygote);
        }
        eventually("only its own is left", || children(ancestor.pid) == [keeper.pid()]).await;
        eventually("no descriptor is left", || open_descriptors() <= descriptors).await;
        works(&keeper).await;
    });
}

fn e61_a_handle_started_while_the_ancestor_is_dead() {
    let first = Zygote::builder().start().unwrap();
    // Nobody has heard of it: the driver is not even there.
    let before = both(&first);
    before.ancestor.kill();
    let second = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        works(&second).await;
        works(&first).await;
        let before = recovered_from_ancestor(&first, &before).await;
        before.ancestor.kill();
        let third = Zygote::builder().start().unwrap();
        let patients = Patients::begin(&third, "third").await;
        works(&first).await;
        drop(first);
        works(&second).await;
        drop(second);
        works(&third).await;
        patients.end().await;
        let before = both(&third);
        kill(before.serving).await;
        works(&third).await;
    });
}

/// Another user, who has no other process here.
const USER: u32 = 61_063;

fn e61_no_process_for_the_next_zygote() {
    // SAFETY: touches no memory.
    if unsafe { libc::getuid() } != 0 {
        skip("not root");
    }
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::setresuid(USER, USER, USER) }, 0);
    let zygote = Zygote::builder().warm(0).start().unwrap();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) }, 0);
    let before_all = limit.rlim_cur;
    let limit_of = |pid: u32, most: libc::rlim_t| {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: limit.rlim_max };
        let pid = i32::try_from(pid).unwrap();
        // SAFETY: a live rlimit.
        unsafe { libc::prlimit(pid, libc::RLIMIT_NPROC, &raw const limit, std::ptr::null_mut()) }
    };
    multi_thread().block_on(async {
        let patients = Patients::begin(&zygote, "user").await;
        let before = both(&zygote);
        assert_eq!(limit_of(before.ancestor.pid, 1), 0, "{}", std::io::Error::last_os_error());
        kill(before.serving).await;
        let late = tokio::spawn(zygote.run_in_process(async || 3, ()));
        let short = zygote.task().startup_timeout(Duration::from_millis(300)).run(async || 4, ());
        let error = soon("an error", short).await.unwrap_err();
        assert!(matches!(error, Error::ZygoteLost { started: Some(false), .. }), "{error:?}");
        assert!(!late.is_finished());
        assert_eq!(limit_of(before.ancestor.pid, before_all), 0);
        assert_eq!(soon("a value", late).await.unwrap().unwrap(), 3);
        works(&zygote).await;
        // The same when the one that serves has none for its successor.
        let before = both(&zygote);
        assert_eq!(limit_of(before.serving.pid, 1), 0);
        kill(before.ancestor).await;
        let error = soon("an error", zygote.run_in_process(async || 4, ())).await.unwrap_err();
        assert!(matches!(error, Error::Spawn { .. }), "{error:?}");
        assert_eq!(limit_of(before.serving.pid, before_all), 0);
        works(&zygote).await;
        recovered_from_ancestor(&zygote, &before).await;
        patients.end().await;
    });
}

fn e61_both_dead_is_an_error_at_once() {
    both_die(false);
}

fn e61_both_dead_the_ancestor_first() {
    both_die(true);
}

fn both_die(ancestor_first: bool) {
    let zygote = Zygote::builder().startup_timeout(Duration::from_secs(3600)).start().unwrap();
    multi_thread().block_on(async {
        let patients = Patients::begin(&zygote, "both").await;
        let Both { ancestor, serving } = both(&zygote);
        let mut lives = [ancestor, serving];
        if !ancestor_first {
            lives.reverse();
        }
        // Neither can do anything for the other, as if it were one moment.
        lives.iter().for_each(|life| life.signal(libc::SIGSTOP));
        lives.iter().for_each(|life| life.kill());
        let lost = |error: &Error| matches!(error, Error::ZygoteLost { started: Some(false), .. });
        let gone = async || loop {
            // It was with a spare before anybody knew.
            match soon("run", zygote.run_in_process(async || 1, ())).await {
                Ok(found) => assert_eq!(found, 1),
                Err(error) => return error,
            }
        };
        let error = gone().await;
        assert!(lost(&error), "{error:?}");
        let error = soon("open", zygote.open_in_process(async || 1, ())).await.unwrap_err();
        assert!(lost(&error), "{error:?}");
        patients.end().await;
        eventually("all are gone", || zygote.metrics().alive == 0).await;
    });
}
