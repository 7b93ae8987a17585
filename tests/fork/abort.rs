//! Panics in both kinds of builds: `ci/check.sh` runs this file once more with `-C panic=abort`.

use tokio_run_in_process::{Error, open_in_process, run_blocking_in_process, run_in_process, worker};

use crate::harness::with_default;

crate::cases![a04_a_panic_is_reported_in_an_abort_build_too, a04_a_task_cancels_itself_in_an_abort_build_too];

#[inline(never)]
fn inner_function() {
    panic!("child error {}", 42)
}

#[inline(never)]
async fn outer_function() {
    inner_function()
}

fn a04_a_panic_is_reported_in_an_abort_build_too() {
    with_default(|| async {
        let process = open_in_process(outer_function, ()).await.unwrap();
        let error = process.wait().await.unwrap_err();
        let report = error.panic().unwrap();
        assert_eq!(report.message(), "child error 42");
        assert!(report.location().unwrap().contains("abort.rs:"), "{report:?}");
        let text = error.to_string();
        for part in ["outer_function", "inner_function", &format!("pid {}", process.pid())] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(process.exited().await.0.code(), Some(101));
        // From another thread of the task it ends an abort build's process, and is nobody's business in the other.
        let threaded = run_in_process(async || std::thread::spawn(inner_function).join().is_err(), ()).await;
        match threaded {
            Ok(failed) => assert!(failed && cfg!(panic = "unwind")),
            Err(error) => assert!(error.is_panic() && cfg!(panic = "abort"), "{error}"),
        }
    });
}

fn a04_a_task_cancels_itself_in_an_abort_build_too() {
    with_default(|| async {
        let blocking = run_blocking_in_process(|| -> u8 { worker::cancel_blocking() }, ()).await;
        assert!(matches!(blocking, Err(Error::Cancelled { .. })), "{blocking:?}");
        let polled = run_in_process(async || -> u8 { match worker::cancel().await {} }, ()).await;
        assert!(matches!(polled, Err(Error::Cancelled { .. })), "{polled:?}");
    });
}
