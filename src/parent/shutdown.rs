//! The end of a handle's work, in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    driver::Driver,
    lineage::Ancestor,
    race::{Either, race},
    zygote::{Inner, Zygote},
};
use crate::model::{Cause, Event};

/// How long what was killed may take to be gone, and a zygote without a worker to end.
const PATIENCE: Duration = Duration::from_secs(5);

impl Zygote {
    /// Ends the work of this zygote in order, and gives the number of tasks that had to be ended.
    ///
    /// From now on its tasks, those of all clones of the handle and of its pools, give
    /// [`Error::ShutDown`](crate::Error::ShutDown); those that wait for their turn, too. Tasks under way have `limit` to finish; the others are ended
    /// as if dropped: SIGTERM, and SIGKILL at the end of their grace period. Their outcome is
    /// [`Error::Cancelled`](crate::Error::Cancelled), unless they give a value all the same. When it is done, the warm
    /// workers and the zygote itself are gone too.
    ///
    /// It is for the end of the program, so also for what a signal handler starts:
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn serve() {}
    /// # tokio_run_in_process::block_on(async {
    /// tokio::select! {
    ///     () = serve() => {}
    ///     _ = tokio::signal::ctrl_c() => {
    ///         let zygote = tokio_run_in_process::default_zygote().unwrap();
    ///         let ended = zygote.shutdown(Duration::from_secs(10)).await;
    ///         println!("{ended} tasks did not finish in time");
    ///     }
    /// }
    /// # }).unwrap();
    /// ```
    ///
    /// Called again, it waits for the same end.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no new task starts all the same, and those under way go on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_run_in_process::{Error, Zygote};
    ///
    /// let zygote = Zygote::builder().start().unwrap();
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let process = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
    /// assert_eq!(zygote.shutdown(Duration::from_millis(50)).await, 1);
    /// assert!(process.wait().await.unwrap_err().is_cancelled());
    /// assert!(matches!(zygote.run_in_process(async || 1, ()).await, Err(Error::ShutDown)));
    /// # })
    /// ```
    pub async fn shutdown(&self, limit: Duration) -> usize {
        let inner = &self.0;
        if inner.check_owner().is_err() {
            return 0;
        }
        inner.close();
        let Ok(driver) = inner.driver() else { return 0 };
        let timer = |deadline: Option<Instant>| async move {
            match deadline {
                Some(deadline) => driver.enter(|| tokio::time::sleep_until(deadline.into())).await,
                None => std::future::pending().await,
            }
        };
        let mut ended = 0;
        if let Either::Second(()) = race(inner.until_idle(driver), timer(Instant::now().checked_add(limit))).await {
            let ids = driver.roster().ids(inner);
            ended = driver.roster().under_way(&ids);
            ids.iter().for_each(|&id| driver.tell(id, Event::End(Cause::Shutdown)));
            // Each is killed at the end of its grace period. Where somebody stopped the zygote, nobody says that it is gone.
            let killed = driver.roster().last_kill(&ids, Instant::now());
            race(inner.until_idle(driver), timer(killed.and_then(|killed| killed.checked_add(PATIENCE)))).await;
        }
        let link = inner.lineage.link();
        link.finish();
        // Somebody may have stopped it.
        let patience = driver.enter(|| tokio::time::sleep(inner.config.grace_period.min(PATIENCE)));
        race(link.has_ended(), patience).await;
        link.close();
        // If no other handle needs it, the ancestor goes with this.
        inner.lineage.set_ancestor(Ancestor::new(link, None));
        ended
    }
}

impl Inner {
    /// No task starts any more, and no worker stands ready.
    fn close(&self) {
        self.closing.send_replace(true);
        self.warm().close();
        self.let_idle_go();
    }

    pub(super) fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Ready when no task starts any more.
    pub(super) async fn is_closed(&self) {
        let mut closing = self.closing.subscribe();
        // The sender is `self`.
        let _ = closing.wait_for(|&closing| closing).await;
    }

    /// Waits until no process holds a task.
    async fn until_idle(self: &Arc<Self>, driver: &'static Driver) {
        loop {
            // Before the look: a worker that goes in between is not missed.
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            if driver.roster().ids(self).is_empty() {
                return;
            }
            gone.await;
        }
    }
}
