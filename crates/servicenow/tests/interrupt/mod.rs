//! Interrupting what is being done.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

/// Drops a future after it was polled so often; `None` if it was not done by then.
pub async fn at_most<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
