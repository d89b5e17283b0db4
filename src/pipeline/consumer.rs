//! The consumers' side: a stream of minibatches, and the same for threads.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::sync::futures::OwnedNotified;

use crate::error::{ClosedBy, ReadError};
use crate::pipeline::exchange::{Exchange, Next};
use crate::pipeline::minibatch::Minibatch;
use crate::pipeline::sync::wait;

/// A consumer of a [`RingStore`](crate::RingStore): a stream of its minibatches.
///
/// Ends once the store is closed and drained. Yields an error where an earlier write failed unseen
/// ([`ReadError::FailedWrite`]): the minibatches go on behind it, so a loop that must not lose any logs it and continues.
/// If the writer panicked, yields that and ends. Any executor can poll it. A clone is another consumer: each minibatch
/// goes to one of them. Dropping the last one closes the store, for nobody could ever serve its rows.
///
/// # Cancel safety
/// Dropping a future of the next minibatch loses nothing.
pub struct Minibatches {
    exchange: Arc<Exchange>,
    /// Kept allocated between waits.
    arrival: Pin<Box<OwnedNotified>>,
    /// Whether this consumer has found no minibatch, and counts as waiting since.
    waiting: bool,
    since: Instant,
    /// Whether it has yielded the writer's panic.
    told_poison: bool,
}

impl Minibatches {
    pub(crate) fn new(exchange: Arc<Exchange>) -> Self {
        exchange.add_consumer();
        let arrival = Box::pin(exchange.arrivals.clone().notified_owned());
        Minibatches { exchange, arrival, waiting: false, since: Instant::now(), told_poison: false }
    }

    /// Iterates on this thread, blocking it while no minibatch is ready. Works inside and outside a runtime, but blocks
    /// an executor's thread.
    pub fn blocking(&mut self) -> Blocking<'_> {
        Blocking { minibatches: self }
    }

    /// Blocks this thread until a minibatch is ready, but no longer than `timeout`; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError::Timeout`] if none was ready in time, otherwise as the stream; a panic of the writer each time.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Minibatch>, ReadError> {
        let deadline = Instant::now().checked_add(timeout);
        match wait(deadline, |context| self.poll(context)) {
            Some(next) => next.transpose(),
            None => {
                self.exchange.stop_waiting(&mut self.waiting);
                Err(ReadError::Timeout(timeout))
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Minibatch, ReadError>>> {
        loop {
            let waited = self.waiting;
            let next = match self.exchange.next(&mut self.waiting) {
                Next::Minibatch(minibatch) => Some(Ok(minibatch)),
                Next::Error(error) => Some(Err(error)),
                Next::End => None,
                Next::Nothing if waited => {
                    ready!(self.arrival.as_mut().poll(context));
                    self.arm();
                    continue;
                }
                Next::Nothing => {
                    tracing::debug!("no minibatch is ready: a consumer waits for producers");
                    self.since = Instant::now();
                    // Armed before looking once more, so that nothing arrives unseen in between.
                    self.arm();
                    continue;
                }
            };
            if waited {
                tracing::debug!(waited = ?self.since.elapsed(), "the consumer goes on");
            }
            return Poll::Ready(next);
        }
    }

    /// As an iterator: the writer's panic is the last item.
    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Minibatch, ReadError>>> {
        if self.told_poison {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll(context));
        self.told_poison = matches!(&next, Some(Err(error)) if error.is_poisoned());
        Poll::Ready(next)
    }

    fn arm(&mut self) {
        self.arrival.set(self.exchange.arrivals.clone().notified_owned());
        self.arrival.as_mut().enable();
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
        Minibatches::new(self.exchange.clone())
    }
}

impl Drop for Minibatches {
    fn drop(&mut self) {
        self.exchange.stop_waiting(&mut self.waiting);
        if self.exchange.remove_consumer() == 0 && self.exchange.fate.close(ClosedBy::NoConsumers) {
            self.exchange.abandon();
        }
    }
}

impl fmt::Debug for Minibatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minibatches").finish_non_exhaustive()
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
        wait(None, |context| self.minibatches.poll_item(context)).flatten()
    }
}
