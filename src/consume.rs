//! The consumers' side: a stream of minibatches, and the same for threads.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::sync::futures::OwnedNotified;

use crate::error::{ClosedBy, ReadError};
use crate::exchange::{Exchange, Next};
use crate::minibatch::Minibatch;
use crate::sync::wait;

/// A consumer of a [`RingStore`](crate::RingStore): a stream of its minibatches.
///
/// Yields an error where an earlier write failed unseen (once; the next minibatch follows) or the writer panicked, and
/// ends once the store is closed and drained. Any executor can poll it. A clone is another consumer: each minibatch goes
/// to one of them. Dropping the last one closes the store, for nobody could ever serve its rows.
///
/// # Cancel safety
/// Dropping a future of the next minibatch loses nothing.
pub struct Minibatches {
    exchange: Arc<Exchange>,
    /// Kept allocated between waits.
    arrival: Pin<Box<OwnedNotified>>,
    /// Since when this consumer waits, if it does.
    waiting: Option<Instant>,
}

impl Minibatches {
    pub(crate) fn new(exchange: Arc<Exchange>) -> Self {
        exchange.add_consumer();
        let arrival = Box::pin(exchange.arrivals.clone().notified_owned());
        Minibatches { exchange, arrival, waiting: None }
    }

    /// Iterates on this thread, blocking it while no minibatch is ready. Works inside and outside a runtime, but blocks
    /// an executor's thread.
    pub fn blocking(&mut self) -> Blocking<'_> {
        Blocking { minibatches: self }
    }

    /// Blocks this thread until a minibatch is ready, but no longer than `timeout`; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError::Timeout`] if none was ready in time, otherwise as the stream.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Minibatch>, ReadError> {
        let deadline = Instant::now().checked_add(timeout);
        match wait(deadline, |context| self.poll(context)) {
            Some(next) => next.transpose(),
            None => {
                if let Some(since) = self.waiting.take() {
                    self.exchange.count(|counts| counts.consumer_wait += since.elapsed());
                }
                Err(ReadError::Timeout(timeout))
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Minibatch, ReadError>>> {
        loop {
            let waiting = self.waiting;
            let next = match self.exchange.next(|| waiting.map_or(Duration::ZERO, |since| since.elapsed())) {
                Next::Minibatch(minibatch) => Some(Ok(minibatch)),
                Next::Error(error) => Some(Err(error)),
                Next::End => None,
                Next::Nothing => {
                    if self.waiting.is_none() {
                        // Armed before looking once more, so that nothing arrives unseen in between.
                        self.waiting = Some(Instant::now());
                        self.arm();
                    } else {
                        ready!(self.arrival.as_mut().poll(context));
                        self.arm();
                    }
                    continue;
                }
            };
            if let Some(since) = self.waiting.take() {
                tracing::trace!(waited = ?since.elapsed(), "a consumer waited for a minibatch");
            }
            return Poll::Ready(next);
        }
    }

    fn arm(&mut self) {
        self.arrival.set(self.exchange.arrivals.clone().notified_owned());
        self.arrival.as_mut().enable();
    }
}

impl Stream for Minibatches {
    type Item = Result<Minibatch, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

impl Clone for Minibatches {
    fn clone(&self) -> Self {
        Minibatches::new(self.exchange.clone())
    }
}

impl Drop for Minibatches {
    fn drop(&mut self) {
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
        wait(None, |context| self.minibatches.poll(context)).flatten()
    }
}
