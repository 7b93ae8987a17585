//! Where a task is on its way. It only ever moves forward.

/// Where a task is on its way. It runs only forward, so states can be compared.
///
/// ```
/// use tokio_run_in_process::State;
///
/// assert!(State::Executing.is_before(State::Finished));
/// assert!(State::Exited.is_on_or_after(State::Finished));
/// assert!(State::Executing.is_next(State::Finished));
/// assert!(!State::Starting.is_next(State::Finished));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum State {
    /// It waits for its turn: as many processes as allowed hold a task.
    Queued,
    /// Its worker is being made ready.
    Starting,
    /// The worker runs the task.
    Executing,
    /// The outcome is known.
    Finished,
    /// The worker's process is gone and was reaped.
    Exited,
}

impl State {
    /// Every state, in order.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Starting, Self::Executing, Self::Finished, Self::Exited];

    /// Whether `next` is the state that follows directly.
    pub const fn is_next(self, next: Self) -> bool {
        next as u8 == self as u8 + 1
    }

    /// Whether this state comes before `other`.
    pub const fn is_before(self, other: Self) -> bool {
        (self as u8) < other as u8
    }

    /// Whether this state is `other` or comes after it.
    pub const fn is_on_or_after(self, other: Self) -> bool {
        !self.is_before(other)
    }
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn s20_the_order_holds_for_every_pair() {
        for (i, a) in State::ALL.into_iter().enumerate() {
            for (j, b) in State::ALL.into_iter().enumerate() {
                assert_eq!(a.is_next(b), j == i + 1, "{a:?} {b:?}");
                assert_eq!(a.is_before(b), i < j, "{a:?} {b:?}");
                assert_eq!(a.is_on_or_after(b), i >= j, "{a:?} {b:?}");
                assert_eq!(a < b, i < j);
            }
        }
    }
}
