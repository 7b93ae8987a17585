//! One worker as everybody in the parent shares it: what is known of it, and a way to wait for more.

use std::{
    num::NonZeroU32,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    error::{Error, TaskId},
    model::{Cause, ExitStatus, State, Usage, WorkerId},
    sys::process::Since,
};

/// How a worker ended, as far as the parent can know.
#[derive(Clone, Debug)]
pub(super) enum Exit {
    /// The zygote, or the kernel, said it.
    Reaped { status: ExitStatus, usage: Option<Usage> },
    /// It was never forked: the error number.
    NotForked(i32),
    /// The zygote died, and nobody can say.
    Lost,
}

/// What is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Status {
    pub(super) pid: Option<u32>,
    /// It said `Executing`.
    pub(super) started: bool,
    /// It was stopped at least once.
    pub(super) stopped: bool,
    /// Why the parent ended it.
    pub(super) cause: Option<Cause>,
    /// The zygote died; only the job socket tells of this worker now.
    pub(super) orphaned: bool,
    /// It must end and no signal reaches it: whoever has our end of the job socket closes it, which does.
    pub(super) cut: bool,
    pub(super) exit: Option<Exit>,
    /// The result's bytes, or why there are none. Set for `Process` handles.
    pub(super) outcome: Option<Arc<Result<Bytes, Error>>>,
}

impl Status {
    /// Whether the pid is known, or never will be.
    pub(super) fn has_pid(&self) -> bool {
        self.pid.is_some() || self.orphaned || self.exit.is_some()
    }

    /// Whether a handle to it may be given out, or never will be.
    pub(super) fn is_open(&self) -> bool {
        self.started && self.has_pid() || self.outcome.is_some()
    }

    pub(super) fn state(&self) -> State {
        match (&self.outcome, &self.exit, self.started) {
            (Some(_), Some(_), _) => State::Exited,
            (Some(_), None, _) => State::Finished,
            (None, _, true) => State::Executing,
            (None, _, false) => State::Starting,
        }
    }
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) name: Arc<str>,
    pub(super) status: watch::Sender<Status>,
    /// Its pid by its own word, said before anything of the user's ran, and when that was heard.
    said: OnceLock<(u32, Since)>,
}

impl Worker {
    pub(super) fn new(id: WorkerId, name: Arc<str>) -> Arc<Self> {
        Arc::new(Self { id, name, status: watch::Sender::new(Status::default()), said: OnceLock::new() })
    }

    /// Hears who it is from itself. The zygote's word may come later than the task's end, if that is quick or the zygote is
    /// stopped. Who waits is told with `started`.
    pub(super) fn says(&self, pid: Option<NonZeroU32>) {
        if let Some(pid) = pid.filter(|pid| self.said.set((pid.get(), Since::now())).is_ok()) {
            self.status.send_if_modified(|status| {
                status.pid.get_or_insert(pid.get());
                false
            });
        }
    }

    pub(super) fn said(&self) -> Option<(u32, Since)> {
        self.said.get().copied()
    }

    pub(super) fn task_id(&self) -> TaskId {
        TaskId { name: self.name.clone(), pid: self.status.borrow().pid }
    }

    /// Waits until `condition` holds, and gives what is known then.
    pub(super) async fn wait_until(&self, condition: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.status.subscribe();
        // The sender lives in `self`, so the channel is not closed.
        let found = status.wait_for(condition).await.map(|status| status.clone());
        found.unwrap_or_else(|_| self.status.borrow().clone())
    }
}
