//! Tests that fork. Each case runs in a fresh, single-threaded process of its own: this binary runs itself again with
//! `CASE=<name>`, with a deadline, so a hang is a failure and one case's process-wide effects are nobody else's.
//!
//! `TOKIO_RUN_IN_PROCESS_TEST_CAPS=pidfd` (or `none`) switches kernel capabilities off in every case.

#![allow(unsafe_code, reason = "cases call the kernel as a program of the user's would")]

mod abort;
mod answers;
mod begun;
mod bytes;
mod calls;
mod cgroups;
mod channel_ends;
mod channels;
mod crowd;
mod denied;
#[cfg(feature = "metrics")]
mod facade;
mod faults_cancel;
mod faults_cleanup;
mod faults_deaf;
mod faults_pids;
mod faults_task;
mod faults_time;
mod fds;
mod fds_owned;
mod forks;
mod harness;
mod hostile_sockets;
mod hostile_values;
mod hosts;
mod huge_text;
mod hygiene;
mod large;
mod limits;
mod load;
mod lost_zygote;
mod metrics;
mod misuse;
mod mutants;
mod neighbours;
mod options;
mod oracle;
mod orphans;
mod output;
mod output_faults;
mod pipes;
mod places;
mod pool;
mod pool_ends;
mod pool_room;
mod pool_tasks;
mod pool_waits;
mod pool_worker;
mod preload;
mod preload_fds;
mod recovery;
mod recovery_exits;
mod recovery_load;
mod recovery_loops;
mod runtimes;
mod seed;
mod seed_escalation;
mod seed_handle;
mod seed_limits;
mod seed_outcomes;
mod seed_relay;
mod seed_signals;
mod shared;
mod shutdown;
mod soak;
mod stdio;
mod stopping;
mod surroundings;
mod terminals;
mod tools;
#[cfg(feature = "tracing")]
mod traced;
#[cfg(feature = "tracing")]
mod traced_faults;
#[cfg(feature = "tracing")]
mod traced_log;
mod untold;
mod warm;
mod warm_lost;
mod word;

use harness::Case;

fn cases() -> Vec<Case> {
    [
        abort::CASES,
        answers::CASES,
        begun::CASES,
        cgroups::CASES,
        calls::CASES,
        channel_ends::CASES,
        channels::CASES,
        #[cfg(feature = "smol")]
        channels::SMOL_CASES,
        bytes::CASES,
        #[cfg(feature = "metrics")]
        facade::CASES,
        crowd::CASES,
        denied::CASES,
        faults_cancel::CASES,
        faults_cleanup::CASES,
        faults_deaf::CASES,
        faults_pids::CASES,
        faults_task::CASES,
        faults_time::CASES,
        fds::CASES,
        fds_owned::CASES,
        forks::CASES,
        hostile_sockets::CASES,
        hostile_values::CASES,
        hosts::CASES,
        huge_text::CASES,
        hygiene::CASES,
        large::CASES,
        limits::CASES,
        load::CASES,
        lost_zygote::CASES,
        metrics::CASES,
        misuse::CASES,
        mutants::CASES,
        neighbours::CASES,
        options::CASES,
        orphans::CASES,
        output::CASES,
        output_faults::CASES,
        pipes::CASES,
        places::CASES,
        pool::CASES,
        pool_ends::CASES,
        pool_room::CASES,
        pool_tasks::CASES,
        #[cfg(feature = "stream")]
        pool_tasks::STREAM_CASES,
        pool_waits::CASES,
        pool_worker::CASES,
        preload::CASES,
        preload_fds::CASES,
        recovery::CASES,
        recovery_exits::CASES,
        recovery_loops::CASES,
        recovery_load::CASES,
        runtimes::CASES,
        seed::CASES,
        seed_escalation::CASES,
        seed_handle::CASES,
        seed_limits::CASES,
        seed_outcomes::CASES,
        seed_relay::CASES,
        seed_signals::CASES,
        shared::CASES,
        shutdown::CASES,
        soak::CASES,
        stdio::CASES,
        stopping::CASES,
        surroundings::CASES,
        terminals::CASES,
        #[cfg(feature = "tracing")]
        traced::CASES,
        #[cfg(feature = "tracing")]
        traced_faults::CASES,
        untold::CASES,
        warm::CASES,
        warm_lost::CASES,
        word::CASES,
    ]
    .concat()
}

/// What cases start as programs of their own.
fn helpers() -> Vec<Case> {
    [
        cgroups::HELPERS,
        faults_pids::HELPERS,
        faults_time::HELPERS,
        hygiene::HELPERS,
        misuse::HELPERS,
        orphans::HELPERS,
        seed_relay::HELPERS,
        places::HELPERS,
        surroundings::HELPERS,
        terminals::HELPERS,
        #[cfg(feature = "tracing")]
        traced::HELPERS,
        warm::HELPERS,
        warm_lost::HELPERS,
    ]
    .concat()
}

fn main() -> std::process::ExitCode {
    harness::main(cases(), helpers())
}
