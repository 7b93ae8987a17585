//! One function over many items.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use super::PoolRun;
use crate::error::Error;

/// The tasks, as they come: an iterator's are all there.
type Tasks<T> = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<PoolRun<T>>> + Send>;

enum Slot<T> {
    Running(PoolRun<T>),
    Done(Result<T, Error>),
}

/// The results of [`Pool::map`](crate::Pool::map) (and `map_stream`, with the feature `stream`), in the order of the items
/// unless [`unordered`](Self::unordered).
///
/// Items are taken, encoded and run only as results are asked for, and at most so many at a time as
/// [`concurrency`](Self::concurrency) says (by default one for each worker). Dropping it ends the tasks that run.
/// With the feature `stream` it is a `futures_core::Stream`.
///
/// ```
/// use tokio_run_in_process::{Pool, block_on};
///
/// async fn half(n: u32) -> u32 {
///     if n % 2 == 0 { n / 2 } else { panic!("{n} is odd") }
/// }
///
/// block_on(async {
///     let pool = Pool::builder().workers(2).build().unwrap();
///     let mut halves = pool.map(half, [2, 3, 4]).unordered();
///     let (mut sum, mut failed) = (0, 0);
///     while let Some(result) = halves.next().await {
///         match result {
///             Ok(n) => sum += n,
///             Err(error) => { assert!(error.is_panic()); failed += 1 } // costs nobody else
///         }
///     }
///     assert_eq!((sum, failed), (3, 1));
/// })
/// .unwrap();
/// ```
#[must_use = "it runs nothing unless results are asked for"]
pub struct Map<T> {
    tasks: Tasks<T>,
    slots: VecDeque<Slot<T>>,
    concurrency: usize,
    ordered: bool,
    exhausted: bool,
}

impl<T> Map<T> {
    pub(super) fn new(mut tasks: impl Iterator<Item = PoolRun<T>> + Send + 'static, concurrency: usize) -> Self {
        Self::of(Box::new(move |_| Poll::Ready(tasks.next())), concurrency)
    }

    #[cfg(feature = "stream")]
    pub(super) fn of_stream<S: futures_core::Stream + Send + 'static>(
        items: S,
        mut start: impl FnMut(S::Item) -> PoolRun<T> + Send + 'static,
        concurrency: usize,
    ) -> Self {
        let mut items = Box::pin(items);
        Self::of(
            Box::new(move |context| items.as_mut().poll_next(context).map(|item| item.map(&mut start))),
            concurrency,
        )
    }

    fn of(tasks: Tasks<T>, concurrency: usize) -> Self {
        Self { tasks, slots: VecDeque::new(), concurrency, ordered: true, exhausted: false }
    }

    /// How many items are under way at a time, at most.
    ///
    /// They hold workers until this is asked for results: a task of the same pool that is awaited between two results may
    /// wait for ever unless there are more workers than that.
    ///
    /// # Panics
    ///
    /// If `most` is 0.
    pub fn concurrency(mut self, most: usize) -> Self {
        assert!(most > 0, "nothing would ever run");
        self.concurrency = most;
        self
    }

    /// Gives results as they come, not in the order of the items.
    pub fn unordered(mut self) -> Self {
        self.ordered = false;
        self
    }

    /// The next result; `None` after the last.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped: the tasks stay under way.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// All results, or the first error, which ends the tasks that still run.
    ///
    /// # Errors
    ///
    /// The first [`Error`] of a task.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the tasks that run are ended, and results that it had are lost.
    pub async fn collect(mut self) -> Result<Vec<T>, Error> {
        let mut results = Vec::new();
        while let Some(result) = self.next().await {
            results.push(result?);
        }
        Ok(results)
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<T, Error>>> {
        while !self.exhausted && self.slots.len() < self.concurrency {
            match (self.tasks)(context) {
                Poll::Ready(Some(task)) => self.slots.push_back(Slot::Running(task)),
                Poll::Ready(None) => self.exhausted = true,
                Poll::Pending => break,
            }
        }
        for slot in &mut self.slots {
            if let Slot::Running(task) = slot {
                if let Poll::Ready(result) = Pin::new(task).poll(context) {
                    *slot = Slot::Done(result);
                }
            }
        }
        let is_done = |slot: &Slot<T>| matches!(slot, Slot::Done(_));
        let at = if self.ordered {
            self.slots.front().is_some_and(is_done).then_some(0)
        } else {
            self.slots.iter().position(is_done)
        };
        match at.and_then(|at| self.slots.remove(at)) {
            Some(Slot::Done(result)) => Poll::Ready(Some(result)),
            _ if self.exhausted && self.slots.is_empty() => Poll::Ready(None),
            _ => Poll::Pending,
        }
    }
}

#[cfg(feature = "stream")]
impl<T> futures_core::Stream for Map<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        (*self).poll_next(context)
    }
}

impl<T> Unpin for Map<T> {}

impl<T> fmt::Debug for Map<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("under_way", &self.slots.len()).finish_non_exhaustive()
    }
}
