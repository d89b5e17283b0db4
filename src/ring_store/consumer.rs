//! The consumers' side: minibatches as a stream for async tasks, and as an iterator for threads.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::ring_store::core::Shared;
use crate::ring_store::core::consuming::{ConsumerState, Next};
use crate::ring_store::error::{LaneId, ReadError};
use crate::ring_store::minibatch::Minibatch;
use crate::ring_store::ready::Lent;
use crate::ring_store::stats::Stats;
use crate::rows::closed::ClosedBy;
use crate::waiting::wait::{WORTH_LOGGING, wait, wait_long};
use futures::Stream;

/// A consumer of a [`RingStore`](crate::RingStore): a stream of its minibatches.
///
/// The stream ends when the store is closed and drained, or is aborted. If the store was closed with an error
/// ([`RingStore::close_with`](crate::RingStore::close_with)), each consumer yields the error once, after the last minibatch. If the
/// writer panicked, the stream yields [`ReadError::Poisoned`] and ends. Any executor can poll the stream. A clone is another
/// consumer: each minibatch goes to one consumer. Dropping the last consumer closes the store, because no row could be served any
/// more.
///
/// # Cancel safety
/// Dropping a future of the next minibatch loses no minibatch.
pub struct Minibatches {
    pub(crate) shared: Arc<Shared>,
    state: ConsumerState,
    waiting_since: Instant,
    /// Whether the stream has yielded an error that ends it.
    ended: bool,
}

impl Minibatches {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let state = shared.add_consumer();
        Minibatches { shared, state, waiting_since: Instant::now(), ended: false }
    }

    /// Returns a future of the next minibatch, which yields `None` at the end.
    ///
    /// It works as `StreamExt::next`. In addition, dropping the future ends the wait that [`stats`](Self::stats) counts.
    ///
    /// # Errors
    /// The future yields [`ReadError::Failed`] once, after the last minibatch of a store that was closed with an error. It yields
    /// [`ReadError::Aborted`] if this consumer was made after an abort, and [`ReadError::Poisoned`] if the writer panicked.
    ///
    /// # Cancel safety
    /// Dropping the future loses no minibatch.
    #[expect(clippy::should_implement_trait, reason = "named after StreamExt::next, which it replaces")]
    pub fn next(&mut self) -> NextMinibatch<'_> {
        NextMinibatch { minibatches: self }
    }

    /// Returns a future of the next minibatch, which yields `Ok(None)` at the end. It works as `TryStreamExt::try_next`.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    ///
    /// # Cancel safety
    /// Dropping the future loses no minibatch.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use activation_store::RingStore;
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(16).build()?;
    /// let mut minibatches = store.minibatches();
    /// let _ = store.extend(Array2::<f32>::zeros((20, 4)), "mlp")?;
    /// store.close();
    /// let mut rows = 0;
    /// while let Some(minibatch) = minibatches.try_next().await? {
    ///     rows += minibatch.rows();
    /// }
    /// assert_eq!(rows, 20);
    /// # Ok(())
    /// # }
    /// # futures::executor::block_on(example()).unwrap();
    /// ```
    pub fn try_next(&mut self) -> TryNextMinibatch<'_> {
        TryNextMinibatch { next: self.next() }
    }

    /// Iterates over minibatches on this thread. Works inside and outside a runtime.
    ///
    /// # Errors
    /// Each item may be an error, as the future of [`next`](Self::next).
    ///
    /// # Blocking
    /// Blocks this thread while no minibatch is ready. In an async task this blocks a thread of the executor.
    pub fn blocking(&mut self) -> Blocking<'_> {
        Blocking { minibatches: self }
    }

    /// Blocks this thread until a minibatch is ready, but no longer than `timeout`. `Ok(None)` at the end.
    ///
    /// # Errors
    /// [`ReadError::Timeout`] if no minibatch was ready in time, or [`ReadError::LaneMissing`] if a resumed store waits for a lane that no
    /// producer has opened. Otherwise as [`next`](Self::next), but after
    /// [`ReadError::Aborted`] or [`ReadError::Poisoned`] every later call returns the same error.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Minibatch>, ReadError> {
        let deadline = Instant::now().checked_add(timeout);
        match wait(deadline, |context| self.poll(context)) {
            Some(next) => next.transpose(),
            None => {
                self.shared.stop_waiting(&mut self.state);
                let missing = self.missing_lane();
                Err(missing.map_or(ReadError::Timeout(timeout), |lane| ReadError::LaneMissing { after: timeout, lane }))
            }
        }
    }

    /// The lane that a resumed store waits for: it was open when the store was saved, and no producer has opened it. `None` if there is
    /// none. [`next_timeout`](Self::next_timeout) names it in its error, too.
    #[must_use]
    pub fn missing_lane(&self) -> Option<LaneId> {
        self.shared.missing_lane()
    }

    /// The store's counts, all taken at the same moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Closes the store, as [`RingStore::close`](crate::RingStore::close): it takes no more rows. So a trainer can stop the
    /// producers, and still drain the rows that are left.
    pub fn close(&self) {
        self.shared.close(None);
    }

    /// Aborts the store, as [`RingStore::abort`](crate::RingStore::abort): it takes no more rows, and discards the rows in it.
    pub fn abort(&self) {
        self.shared.discard(ClosedBy::Abort);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Minibatch, ReadError>>> {
        let waited = self.state.waiting;
        let mut next = self.shared.next(&mut self.state, None);
        if matches!(next, Next::Nothing) {
            // Looks once more while it leaves its waker. So it misses no minibatch that became ready between the two looks.
            next = self.shared.next(&mut self.state, Some(context.waker().clone()));
        }
        let item = match next {
            Next::Minibatch(Lent { part, ordinal }) => {
                Some(Ok(Minibatch::new(part, self.shared.config.layout.clone(), ordinal)))
            }
            Next::Error(error) => Some(Err(error)),
            Next::End => None,
            Next::Nothing => {
                if !waited {
                    self.waiting_since = Instant::now();
                }
                return Poll::Pending;
            }
        };
        if waited && self.waiting_since.elapsed() >= WORTH_LOGGING {
            tracing::debug!(waited = ?self.waiting_since.elapsed(), "a consumer has waited for producers");
        }
        Poll::Ready(item)
    }

    /// Polls as an iterator does: an error that every call would repeat is the last item.
    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Minibatch, ReadError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll(context));
        self.ended = matches!(&next, Some(Err(ReadError::Poisoned { .. } | ReadError::Aborted)));
        Poll::Ready(next)
    }
}

impl Stream for Minibatches {
    type Item = Result<Minibatch, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(context)
    }
}

impl Clone for Minibatches {
    fn clone(&self) -> Self {
        Minibatches::new(self.shared.clone())
    }
}

impl Drop for Minibatches {
    fn drop(&mut self) {
        self.shared.remove_consumer(&mut self.state);
    }
}

impl fmt::Debug for Minibatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minibatches").finish_non_exhaustive()
    }
}

/// The future of the next minibatch, from [`Minibatches::next`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct NextMinibatch<'a> {
    minibatches: &'a mut Minibatches,
}

impl Future for NextMinibatch<'_> {
    type Output = Option<Result<Minibatch, ReadError>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.minibatches.poll_item(context)
    }
}

impl Drop for NextMinibatch<'_> {
    fn drop(&mut self) {
        self.minibatches.shared.stop_waiting(&mut self.minibatches.state);
    }
}

/// The future of the next minibatch, from [`Minibatches::try_next`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct TryNextMinibatch<'a> {
    next: NextMinibatch<'a>,
}

impl Future for TryNextMinibatch<'_> {
    type Output = Result<Option<Minibatch>, ReadError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.next).poll(context).map(Option::transpose)
    }
}

/// An iterator over minibatches that blocks its thread, from [`Minibatches::blocking`].
#[derive(Debug)]
pub struct Blocking<'a> {
    minibatches: &'a mut Minibatches,
}

impl Iterator for Blocking<'_> {
    type Item = Result<Minibatch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let shared = self.minibatches.shared.clone();
        wait_long(|context| self.minibatches.poll_item(context), || shared.notice_waiting_consumer()).flatten()
    }
}
