//! From what was seen of a worker to the one outcome of its task.

use serde::{Deserialize, Serialize};

use super::{ExitStatus, PanicReport};

/// Where a task was when a limit cut it.
///
/// ```
/// use std::time::Duration;
/// use tokio_run_in_process::{Error, Phase, Task, block_on};
///
/// block_on(async {
///     let task = Task::new().timeout(Duration::from_millis(20));
///     match task.run(std::future::pending::<()>, ()).await {
///         Err(Error::TimedOut { phase, .. }) => assert_eq!(phase, Phase::Running),
///         other => panic!("{other:?}"),
///     }
/// })
/// .unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// It waited for its turn.
    Queued,
    /// Its worker was being made ready.
    Starting,
    /// It was running.
    Running,
}

/// Why the parent ended a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its future or its `Process` was dropped.
    Dropped,
    /// `shutdown()` was called.
    Shutdown,
    /// A limit cut it.
    TimedOut(Phase),
}

/// What a worker could not do for its task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// An option could not be applied; no user code ran.
    Setup {
        /// What was attempted, for people.
        what: String,
        /// The system's error number, 0 if it was not the system.
        errno: i32,
    },
    /// The arguments did not decode.
    Decode(String),
    /// The result did not encode.
    Encode(String),
    /// The result is larger than allowed.
    TooLarge {
        /// Its encoded size.
        size: u64,
        /// What was allowed.
        limit: u64,
    },
}

/// The last frame of a worker. `B` is an encoded result, as the worker has it or as the parent has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Terminal<B> {
    Returned(B),
    Panicked(Box<PanicReport>),
    /// The task cancelled itself.
    Cancelled,
    Failed(Failure),
}

/// Why there is no value. The parent adds the task's name and pid to make it an [`Error`](crate::Error).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Panicked(Box<PanicReport>),
    Cancelled,
    TimedOut(Phase),
    Failed(Failure),
    /// It ended without a word, before (`started: false`) or while the task ran.
    Exited {
        status: ExitStatus,
        started: bool,
    },
    /// It broke the protocol.
    Protocol(String),
}

/// The one outcome of a task, from its worker's last words and its exit. `None` while neither is known.
///
/// A valid complete frame wins over the exit status, a limit that already cut the task wins over both
/// (`FAULTS` rule D4), and a task that `shutdown()` ended and that says nothing is cancelled, however it died.
pub(crate) fn settle<B>(
    cause: Option<Cause>,
    started: bool,
    words: Option<Result<Terminal<B>, String>>,
    exit: Option<ExitStatus>,
) -> Option<Result<B, Ending>> {
    let ended_by_us = match cause {
        Some(Cause::TimedOut(phase)) => return Some(Err(Ending::TimedOut(phase))),
        Some(Cause::Dropped | Cause::Shutdown) => true,
        None => false,
    };
    match (words, exit) {
        (Some(Ok(Terminal::Returned(bytes))), _) => Some(Ok(bytes)),
        (Some(Ok(Terminal::Panicked(report))), _) => Some(Err(Ending::Panicked(report))),
        (Some(Ok(Terminal::Cancelled)), _) => Some(Err(Ending::Cancelled)),
        (Some(Ok(Terminal::Failed(failure))), _) => Some(Err(Ending::Failed(failure))),
        (Some(Err(_)) | None, Some(ExitStatus::Signaled { .. })) if ended_by_us => Some(Err(Ending::Cancelled)),
        (Some(Err(_)) | None, Some(ExitStatus::Exited(0))) if ended_by_us && !started => Some(Err(Ending::Cancelled)),
        (Some(Err(violation)), _) => Some(Err(Ending::Protocol(violation))),
        (None, Some(status)) => Some(Err(Ending::Exited { status, started })),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(
        cause: Option<Cause>,
        started: bool,
        words: Option<Result<Terminal<Vec<u8>>, String>>,
        exit: Option<ExitStatus>,
    ) -> Option<Result<Vec<u8>, Ending>> {
        super::settle(cause, started, words, exit)
    }
    use crate::model::Signal;

    fn killed(signal: Signal) -> ExitStatus {
        ExitStatus::from_raw(signal.number())
    }

    #[test]
    fn a_frame_wins_over_the_exit_status() {
        for exit in [None, Some(ExitStatus::Exited(3)), Some(killed(Signal::SEGV)), Some(ExitStatus::Unknown)] {
            for cause in [None, Some(Cause::Dropped), Some(Cause::Shutdown)] {
                let returned = settle(cause, true, Some(Ok(Terminal::Returned(vec![1]))), exit);
                assert_eq!(returned, Some(Ok(vec![1])));
                let cancelled = settle(cause, true, Some(Ok(Terminal::Cancelled)), exit);
                assert_eq!(cancelled, Some(Err(Ending::Cancelled)));
            }
        }
    }

    #[test]
    fn a_limit_wins_over_everything() {
        for phase in [Phase::Starting, Phase::Running] {
            let cause = Some(Cause::TimedOut(phase));
            for words in [None, Some(Ok(Terminal::Returned(vec![1]))), Some(Err("x".into()))] {
                for exit in [None, Some(killed(Signal::KILL))] {
                    assert_eq!(settle(cause, true, words.clone(), exit), Some(Err(Ending::TimedOut(phase))));
                }
            }
        }
    }

    #[test]
    fn a_silent_end_is_told_by_the_kernel() {
        for started in [false, true] {
            for status in [ExitStatus::Exited(0), ExitStatus::Exited(255), killed(Signal::KILL), ExitStatus::Unknown] {
                let ending = settle(None, started, None, Some(status));
                assert_eq!(ending, Some(Err(Ending::Exited { status, started })));
            }
        }
        assert_eq!(settle(None, true, None, None), None);
    }

    #[test]
    fn a_task_that_shutdown_killed_is_cancelled() {
        let cause = Some(Cause::Shutdown);
        assert_eq!(settle(cause, true, None, Some(killed(Signal::TERM))), Some(Err(Ending::Cancelled)));
        assert_eq!(settle(cause, true, None, Some(killed(Signal::KILL))), Some(Err(Ending::Cancelled)));
        let status = ExitStatus::Exited(7);
        assert_eq!(settle(cause, true, None, Some(status)), Some(Err(Ending::Exited { status, started: true })));
        assert_eq!(settle(cause, true, None, None), None, "it has not ended yet");
    }

    #[test]
    fn a_broken_protocol_is_named() {
        let words = Some(Err("frame of kind 77".to_owned()));
        assert_eq!(settle(None, true, words.clone(), None), Some(Err(Ending::Protocol("frame of kind 77".into()))));
        let ending = settle(None, true, words, Some(killed(Signal::KILL)));
        assert_eq!(ending, Some(Err(Ending::Protocol("frame of kind 77".into()))));
    }

    /// More that becomes known later never changes an outcome that was there before, but for a limit that cut it.
    #[test]
    fn an_outcome_does_not_depend_on_who_was_first() {
        use crate::model::random::Random;
        let mut random = Random(0x0c);
        let causes = [None, Some(Cause::Dropped), Some(Cause::Shutdown), Some(Cause::TimedOut(Phase::Running))];
        let words = [
            None,
            Some(Ok(Terminal::Returned(vec![7]))),
            Some(Ok(Terminal::Cancelled)),
            Some(Ok(Terminal::Failed(Failure::Decode("x".into())))),
            Some(Err("no frame".to_owned())),
        ];
        let exits = [None, Some(ExitStatus::Exited(0)), Some(ExitStatus::Exited(3)), Some(ExitStatus::Unknown)]
            .into_iter()
            .chain([Signal::TERM, Signal::KILL].map(|signal| Some(killed(signal))))
            .collect::<Vec<_>>();
        for _ in 0..20_000 {
            let (cause, started) = (random.one_of(&causes), random.below(2) == 0);
            let (words, exit) = (random.one_of(&words), random.one_of(&exits));
            let outcome = settle(cause, started, words.clone(), exit);
            let told = format!("{cause:?}, {started}, {words:?}, {exit:?}: {outcome:?}");
            assert_eq!(outcome.is_none(), words.is_none() && exit.is_none() && !is_limit(cause), "{told}");
            match (&words, &outcome) {
                _ if is_limit(cause) => assert_eq!(outcome, Some(Err(Ending::TimedOut(Phase::Running))), "{told}"),
                // A value, whatever its process did then.
                (Some(Ok(Terminal::Returned(bytes))), Some(Ok(value))) => assert_eq!(bytes, value, "{told}"),
                (Some(Ok(Terminal::Returned(_))), _) => panic!("a value was lost: {told}"),
                (_, Some(Ok(_))) => panic!("a value from nowhere: {told}"),
                (Some(Ok(_)), _) => assert_eq!(outcome, settle(cause, started, words.clone(), None), "{told}"),
                _ => {}
            }
            // Nobody but us and the task cancels.
            let by_itself = cause.is_none() && !matches!(words, Some(Ok(Terminal::Cancelled)));
            assert!(!by_itself || outcome != Some(Err(Ending::Cancelled)), "{told}");
        }
    }

    fn is_limit(cause: Option<Cause>) -> bool {
        matches!(cause, Some(Cause::TimedOut(_)))
    }
}
