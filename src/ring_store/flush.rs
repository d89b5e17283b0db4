//! The future of a flush: it waits until the store holds everything that was handed over.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ring_store::core::Shared;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::waiting::handle::poll_now;
use crate::waiting::wait::wait_for;

/// A future that resolves when the store holds all rows that were handed over before the flush: in the ring, or set aside.
///
/// Any executor can poll it. A thread can [`wait`](Flush::wait). Made by [`RingStore::flush`](crate::RingStore::flush).
///
/// # Errors
/// The future yields [`WriteError::Unmatched`] if rows were dropped because another component's rows never came. Each flush
/// reports one lane that lost rows, once. If 1,024 lanes wait for a flush, only [`stats`](crate::RingStore::stats) counts what further
/// lanes lose. The future yields another [`WriteError`] if the store is aborted or poisoned.
///
/// # Cancel safety
/// Dropping the future has no effect.
#[must_use = "only awaiting or waiting tells when the rows are in"]
pub struct Flush {
    shared: Arc<Shared>,
    done: oneshot::Receiver<Result<(), WriteError>>,
    /// The outcome, kept once it is known.
    outcome: Option<Result<(), WriteError>>,
}

impl Flush {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (reply, done) = oneshot::channel();
        shared.flush(reply);
        Flush { shared, done, outcome: None }
    }

    /// Blocks this thread until the store holds the rows. Works inside and outside a runtime.
    ///
    /// # Errors
    /// As the future: see [`Flush`].
    pub fn wait(mut self) -> Result<(), WriteError> {
        wait_for(&mut self, None).unwrap_or(Ok(()))
    }

    /// Blocks this thread until the store holds the rows, but no longer than `timeout`. `None` if it does not hold them by then.
    ///
    /// # Errors
    /// As the future: see [`Flush`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<(), WriteError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

impl Future for Flush {
    type Output = Result<(), WriteError>;

    /// Polls the future. After completion you may poll it again, and get the same outcome.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.outcome.is_none() {
            let done = ready!(poll_now(&mut this.done, context)).unwrap_or(Err(ClosedBy::Abort.into()));
            // Takes the report only now, so that a dropped flush leaves its report to the next flush.
            let unmatched = || this.shared.lock().unmatched.pop_front().map_or(Ok(()), Err);
            this.outcome = Some(done.and_then(|()| unmatched()));
        }
        this.outcome.clone().map_or(Poll::Pending, Poll::Ready)
    }
}

impl fmt::Debug for Flush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flush").finish_non_exhaustive()
    }
}
