//! The life of one worker as its parent sees it: a pure machine from events to actions.
//!
//! There is one owner of escalation, this machine: SIGTERM is asked for once, SIGKILL at the end of the grace period,
//! and whoever started it (a dropped future, a timeout, `shutdown()`) need not stay around.

use std::time::{Duration, Instant};

use super::{Cause, Phase};

/// What a worker that has ended by itself has at least to be gone: its grace period is for one that is ended.
const LEAVING: Duration = Duration::from_secs(1);

/// The times that bound one task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the order to fork until the task executes.
    pub(crate) startup: Duration,
    /// From the start of execution until the outcome.
    pub(crate) running: Option<Duration>,
    /// From SIGTERM to SIGKILL; also what a worker has for its exit once its outcome is known.
    pub(crate) grace: Duration,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The worker said that it starts the task.
    Executing,
    /// The worker's last frame was read.
    Finished,
    /// It sent what the protocol does not allow.
    Violated,
    /// The parent wants it to end.
    End(Cause),
    /// The deadline passed.
    Deadline {
        /// So long ago that this program itself must have slept (stopped, or the machine suspended).
        overslept: bool,
    },
    /// The worker was reaped.
    Exited,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    None,
    /// SIGTERM, then SIGCONT so that a stopped worker can end.
    Terminate,
    /// SIGKILL.
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Executing,
    /// The outcome is known; the process should be on its way out.
    Leaving,
    /// SIGTERM was sent.
    Ending,
    /// SIGKILL was sent.
    Killed,
    Gone,
}

/// The life of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle {
    stage: Stage,
    limits: Limits,
    /// Why the parent ended it; the first reason stays.
    cause: Option<Cause>,
    /// When the next `Event::Deadline` is due.
    deadline: Option<Instant>,
}

impl Lifecycle {
    /// A worker that is ordered `now`.
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        Self { stage: Stage::Starting, limits, cause: None, deadline: now.checked_add(limits.startup) }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Whether it has not said yet that it executes.
    pub(crate) fn is_starting(&self) -> bool {
        self.stage == Stage::Starting
    }

    /// How long it has between SIGTERM and SIGKILL.
    pub(crate) fn grace(&self) -> Duration {
        self.limits.grace
    }

    /// Whether its task has no outcome yet, and was not asked to end.
    pub(crate) fn is_under_way(&self) -> bool {
        matches!(self.stage, Stage::Starting | Stage::Executing)
    }

    /// Whether it was asked to end, and still has its grace period.
    pub(crate) fn is_ending(&self) -> bool {
        self.stage == Stage::Ending
    }

    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Action {
        match (event, self.stage) {
            (Event::Exited, _) => self.enter(Stage::Gone, None),
            (Event::Executing, Stage::Starting) => {
                let deadline = self.limits.running.and_then(|limit| now.checked_add(limit));
                self.enter(Stage::Executing, deadline)
            }
            // A worker that has sent its outcome leaves at once; one that does not is helped along (FAULTS row 15).
            (Event::Finished, Stage::Starting | Stage::Executing) => {
                self.enter(Stage::Leaving, now.checked_add(self.limits.grace.max(LEAVING)))
            }
            (Event::Violated, Stage::Starting | Stage::Executing | Stage::Ending) => self.kill(),
            (Event::End(cause), Stage::Starting | Stage::Executing) => self.terminate(cause, now),
            // The worker may have come up long ago, and what it said waits to be read: it gets its time again.
            (Event::Deadline { overslept: true }, Stage::Starting) => {
                self.enter(Stage::Starting, now.checked_add(self.limits.startup))
            }
            // Nothing that can still run user code politely: it did not come up at all.
            (Event::Deadline { .. }, Stage::Starting) => {
                self.cause = Some(Cause::TimedOut(Phase::Starting));
                self.kill()
            }
            (Event::Deadline { .. }, Stage::Executing) => self.terminate(Cause::TimedOut(Phase::Running), now),
            (Event::Deadline { .. }, Stage::Leaving | Stage::Ending) => self.kill(),
            // SIGKILL is final; after the outcome only the exit matters; ending twice is ending once.
            _ => Action::None,
        }
    }

    fn terminate(&mut self, cause: Cause, now: Instant) -> Action {
        self.cause = Some(cause);
        if self.limits.grace.is_zero() {
            return self.kill();
        }
        self.enter(Stage::Ending, now.checked_add(self.limits.grace));
        Action::Terminate
    }

    fn kill(&mut self) -> Action {
        self.enter(Stage::Killed, None);
        Action::Kill
    }

    fn enter(&mut self, stage: Stage, deadline: Option<Instant>) -> Action {
        self.stage = stage;
        self.deadline = deadline;
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DEADLINE: Event = Event::Deadline { overslept: false };

    fn life(running: Option<Duration>, grace: Duration) -> (Lifecycle, Instant) {
        let now = Instant::now();
        (Lifecycle::new(Limits { startup: 5 * SECOND, running, grace }, now), now)
    }

    #[test]
    fn a_task_that_ends_by_itself_is_left_alone() {
        let (mut life, now) = life(None, SECOND);
        assert_eq!(life.deadline(), Some(now + 5 * SECOND));
        assert_eq!(life.on(Event::Executing, now), Action::None);
        assert_eq!(life.deadline(), None);
        assert_eq!(life.on(Event::Finished, now), Action::None);
        assert_eq!(life.deadline(), Some(now + SECOND));
        assert_eq!(life.on(Event::Exited, now), Action::None);
        assert_eq!((life.deadline(), life.cause()), (None, None));
    }

    #[test]
    fn a15_a_worker_that_stays_after_its_result_is_killed() {
        let (mut life, now) = life(None, SECOND);
        life.on(Event::Executing, now);
        life.on(Event::Finished, now);
        assert_eq!(life.on(DEADLINE, now + SECOND), Action::Kill);
        assert_eq!(life.cause(), None);
    }

    #[test]
    fn ending_escalates_once() {
        let (mut life, now) = life(None, 2 * SECOND);
        life.on(Event::Executing, now);
        assert_eq!(life.on(Event::End(Cause::Dropped), now), Action::Terminate);
        assert_eq!(life.on(Event::End(Cause::Shutdown), now), Action::None);
        assert_eq!(life.cause(), Some(Cause::Dropped));
        assert_eq!(life.deadline(), Some(now + 2 * SECOND));
        assert_eq!(life.on(Event::Finished, now), Action::None, "a frame does not call off the escalation");
        assert_eq!(life.on(DEADLINE, now + 2 * SECOND), Action::Kill);
        assert_eq!(life.on(Event::End(Cause::Shutdown), now), Action::None);
        assert_eq!(life.deadline(), None);
    }

    #[test]
    fn c42_zero_and_endless_times_are_sound() {
        let (mut life, now) = life(Some(Duration::ZERO), Duration::ZERO);
        life.on(Event::Executing, now);
        assert_eq!(life.deadline(), Some(now));
        assert_eq!(life.on(DEADLINE, now), Action::Kill);
        let limits = Limits { startup: Duration::MAX, running: Some(Duration::MAX), grace: Duration::MAX };
        let mut endless = Lifecycle::new(limits, now);
        assert_eq!(endless.deadline(), None);
        endless.on(Event::Executing, now);
        assert_eq!(endless.deadline(), None);
        assert_eq!(endless.on(Event::End(Cause::Shutdown), now), Action::Terminate);
        assert_eq!(endless.deadline(), None);
    }

    #[test]
    fn s18_a_worker_that_does_not_come_up_is_killed() {
        let (mut life, now) = life(Some(SECOND), SECOND);
        assert_eq!(life.on(DEADLINE, now + 5 * SECOND), Action::Kill);
        assert_eq!(life.cause(), Some(Cause::TimedOut(Phase::Starting)));
    }

    #[test]
    fn c40_a_program_that_slept_does_not_blame_its_workers() {
        let (mut life, now) = life(None, SECOND);
        assert_eq!(life.on(Event::Deadline { overslept: true }, now + 60 * SECOND), Action::None);
        assert_eq!(life.deadline(), Some(now + 65 * SECOND));
        assert_eq!(life.on(Event::Executing, now + 60 * SECOND), Action::None);
        assert_eq!(life.cause(), None);
    }

    #[test]
    fn the_timeout_counts_from_the_start_of_execution() {
        let (mut life, now) = life(Some(SECOND), SECOND);
        life.on(Event::Executing, now + 3 * SECOND);
        assert_eq!(life.deadline(), Some(now + 4 * SECOND));
        assert_eq!(life.on(DEADLINE, now + 4 * SECOND), Action::Terminate);
        assert_eq!(life.cause(), Some(Cause::TimedOut(Phase::Running)));
    }

    /// What holds whatever happens, in whatever order: events come late, twice, or never.
    #[test]
    fn every_order_of_events_is_sound() {
        use crate::model::random::Random;
        let mut random = Random(0x11fe);
        let times = [Duration::ZERO, SECOND / 1000, SECOND, Duration::MAX];
        for round in 0..20_000 {
            let running = random.one_of(&[None, Some(Duration::ZERO), Some(SECOND), Some(Duration::MAX)]);
            let (startup, grace) = (random.one_of(&times), random.one_of(&times));
            let mut now = Instant::now();
            let mut life = Lifecycle::new(Limits { startup, running, grace }, now);
            let (mut terminated, mut killed, mut gone, mut finished) = (0, 0, false, false);
            let mut cause = None;
            for _ in 0..16 {
                now += random.one_of(&[Duration::ZERO, SECOND / 500, 2 * SECOND]);
                // A deadline is an event only where there is one, and then not before it is due.
                let deadline = life.deadline().map(|due| {
                    now = now.max(due);
                    Event::Deadline { overslept: random.below(4) == 0 }
                });
                let event = random.one_of(&[
                    Event::Executing,
                    Event::Finished,
                    Event::Violated,
                    Event::End(Cause::Dropped),
                    Event::End(Cause::Shutdown),
                    Event::Exited,
                    deadline.unwrap_or(Event::Executing),
                ]);
                let (before, due) = (life.stage, life.deadline());
                let action = life.on(event, now);
                let told = format!("round {round}: {event:?} at {before:?} gave {action:?}, {life:?}");
                terminated += u32::from(action == Action::Terminate);
                killed += u32::from(action == Action::Kill);
                assert!(terminated <= 1 && killed <= 1, "asked twice: {told}");
                assert!(!gone || action == Action::None, "a signal for nobody: {told}");
                assert!(killed == 0 || action != Action::Terminate, "SIGTERM after SIGKILL: {told}");
                assert!(!finished || action != Action::Terminate, "its outcome was known: {told}");
                assert!(rank(life.stage) >= rank(before), "backwards: {told}");
                // Who waits for what: a killed or a gone one for nothing.
                let waits = !matches!(life.stage, Stage::Killed | Stage::Gone);
                assert!(waits || life.deadline().is_none(), "a deadline that nobody needs: {told}");
                let endless = matches!(life.stage, Stage::Executing)
                    && running.is_none_or(|time| time == Duration::MAX)
                    || matches!(life.stage, Stage::Ending | Stage::Leaving) && grace == Duration::MAX
                    || life.stage == Stage::Starting && startup == Duration::MAX;
                assert_eq!(life.deadline().is_some(), waits && !endless, "{told}");
                // Whoever is late gets no more time by being asked again.
                assert!(life.stage != before || life.deadline() == due || before == Stage::Starting, "{told}");
                assert!(cause.is_none() || life.cause() == cause, "the first reason stays: {told}");
                cause = life.cause();
                gone |= event == Event::Exited;
                finished |= matches!(before, Stage::Starting | Stage::Executing) && event == Event::Finished;
            }
        }
    }

    fn rank(stage: Stage) -> u8 {
        match stage {
            Stage::Starting => 0,
            Stage::Executing => 1,
            // Neither follows the other.
            Stage::Leaving | Stage::Ending => 2,
            Stage::Killed => 3,
            Stage::Gone => 4,
        }
    }

    /// However it goes, deadlines alone bring every worker to its end.
    #[test]
    fn deadlines_alone_end_it() {
        let now = Instant::now();
        for first in [Event::Executing, Event::Finished, Event::End(Cause::Dropped), Event::Violated] {
            let mut life = Lifecycle::new(Limits { startup: SECOND, running: Some(SECOND), grace: SECOND }, now);
            let mut actions = vec![life.on(first, now)];
            while let Some(due) = life.deadline() {
                actions.push(life.on(DEADLINE, due));
            }
            assert_eq!(actions.last(), Some(&Action::Kill), "{first:?}: {actions:?}");
            assert!(actions.len() <= 3, "{actions:?}");
        }
    }
}
