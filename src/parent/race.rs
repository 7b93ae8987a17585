//! Two futures, of which the first that is ready counts.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

/// Which one was ready.
pub(super) enum Either<A, B> {
    First(A),
    Second(B),
}

/// Polls both, the first one first. The other is dropped.
pub(super) async fn race<A: Future, B: Future>(first: A, second: B) -> Either<A::Output, B::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| {
        if let Poll::Ready(value) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(value));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}
