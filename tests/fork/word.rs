//! Whether the worker of a lone task says that it begins depends on what takes less time here.

use std::time::Duration;

use tokio_run_in_process::{Zygote, test_support::times_with_and_without_word, worker};

use crate::{
    harness::{capabilities, without_warm_workers},
    oracle::undisturbed_with,
};

crate::cases![
    what_takes_less_time_is_learned_from_lone_tasks,
    it_is_learned_from_cold_tasks_where_no_worker_stands_ready
];

async fn learns(zygote: Zygote) {
    let before = times_with_and_without_word(&zygote);
    for _ in 0..4 {
        // The word starts the clock: these cannot do without.
        let task = zygote.task().timeout(Duration::from_secs(60));
        assert!(task.run(async || worker::is_worker(), ()).await.unwrap());
    }
    assert_eq!(times_with_and_without_word(&zygote), before);
    // Those that take their time themselves teach nothing of it.
    for _ in 0..20 {
        zygote.run_in_process(async || tokio::time::sleep(Duration::from_millis(20)).await, ()).await.unwrap();
    }
    let (spoken, unspoken) = times_with_and_without_word(&zygote);
    if capabilities() == "all" {
        let short = |nanos| nanos > 0 && nanos < 20_000_000;
        assert!(short(spoken) && short(unspoken), "{spoken} {unspoken}");
    } else {
        // All are without, or none can be.
        assert_eq!((spoken, unspoken), (0, 0));
    }
}

fn what_takes_less_time_is_learned_from_lone_tasks() {
    undisturbed_with(Zygote::builder(), learns);
}

fn it_is_learned_from_cold_tasks_where_no_worker_stands_ready() {
    without_warm_workers();
    undisturbed_with(Zygote::builder(), learns);
}
