//! The consumers' side: a stream of minibatches, and the same for threads.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::error::{ClosedBy, ReadError};
use crate::pipeline::minibatch::Minibatch;
use crate::pipeline::ready::Lent;
use crate::pipeline::state::Shared;
use crate::pipeline::state::consuming::{ConsumerState, Next};
use crate::pipeline::stats::Stats;
use crate::pipeline::wait::{wait, wait_long};
use futures::Stream;

/// A consumer of a [`RingStore`](crate::RingStore): a stream of its minibatches.
///
/// It ends once the store is closed and drained, or aborted. After the last minibatch it yields the error that the store
/// was closed with ([`RingStore::close_with`](crate::RingStore::close_with)), once. If the writer panicked, it yields that
/// and ends. Any executor can poll it. A clone is another consumer: each minibatch goes to one of them. Dropping the last
/// consumer closes the store, since no row could ever be served.
///
/// # Cancel safety
/// Dropping a future of the next minibatch loses nothing.
pub struct Minibatches {
    pub(crate) shared: Arc<Shared>,
    state: ConsumerState,
    waiting_since: Instant,
    /// Whether it has yielded an error that ends it.
    ended: bool,
}

impl Minibatches {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let state = shared.add_consumer();
        Minibatches { shared, state, waiting_since: Instant::now(), ended: false }
    }

    /// The next minibatch; `None` at the end.
    ///
    /// As `StreamExt::next`, but dropping the future also ends the wait that `stats` counts.
    ///
    /// # Errors
    /// The future yields [`ReadError::Failed`] once, after the last minibatch of a store that was closed with an error;
    /// [`ReadError::Aborted`] if this consumer was made after an abort; [`ReadError::Poisoned`] if the writer panicked.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    #[expect(clippy::should_implement_trait, reason = "named after StreamExt::next, which it replaces")]
    pub fn next(&mut self) -> NextMinibatch<'_> {
        NextMinibatch { minibatches: self }
    }

    /// The next minibatch; `Ok(None)` at the end. As `TryStreamExt::try_next`; see [`next`](Self::next).
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

    /// Iterates on this thread, blocking it while no minibatch is ready. Works inside and outside a runtime, but blocks
    /// an executor's thread.
    pub fn blocking(&mut self) -> Blocking<'_> {
        Blocking { minibatches: self }
    }

    /// Blocks this thread until a minibatch is ready, but no longer than `timeout`; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError::Timeout`] if none was ready in time, otherwise as [`next`](Self::next); a panic of the writer, and a
    /// consumer made after an abort, each time.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Minibatch>, ReadError> {
        let deadline = Instant::now().checked_add(timeout);
        match wait(deadline, |context| self.poll(context)) {
            Some(next) => next.transpose(),
            None => {
                self.shared.stop_waiting(&mut self.state);
                Err(ReadError::Timeout(timeout))
            }
        }
    }

    /// Counts, all taken at the same moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Takes no more rows, as [`RingStore::close`](crate::RingStore::close): a trainer that has had enough stops the producers,
    /// and can still drain what is left.
    pub fn close(&self) {
        self.shared.close(None);
    }

    /// Takes no more rows and discards those there are, as [`RingStore::abort`](crate::RingStore::abort).
    pub fn abort(&self) {
        self.shared.discard(ClosedBy::Abort);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Minibatch, ReadError>>> {
        let waited = self.state.waiting;
        let mut next = self.shared.next(&mut self.state, None);
        if matches!(next, Next::Nothing) {
            // Looks once more as it leaves its waker, so that no arrival is missed in between.
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
                    tracing::debug!("no minibatch is ready: a consumer waits for producers");
                    self.waiting_since = Instant::now();
                }
                return Poll::Pending;
            }
        };
        if waited {
            tracing::debug!(waited = ?self.waiting_since.elapsed(), "the consumer goes on");
        }
        Poll::Ready(item)
    }

    /// As an iterator: an error that stays is the last item.
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

/// The future of the next minibatch; see [`Minibatches::next`].
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

/// The future of the next minibatch; see [`Minibatches::try_next`].
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

/// Iterates over minibatches on a thread; see [`Minibatches::blocking`].
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
