//! What a write returns: a future of its outcome.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::unconstrained;

use crate::error::{ClosedBy, WriteError};
use crate::pipeline::fate::Fate;
use crate::pipeline::sync::wait_for;

/// Rows that a store has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many rows.
    pub rows: usize,
    /// The position of the first in the sequence of rows that its component has taken on its lane.
    pub first_row: u64,
}

/// The pending outcome of a write.
///
/// A future that any executor can poll, and that a thread can [`wait`](WriteHandle::wait) on. It resolves when the
/// store holds the rows within its bounds (in the ring, or set aside until their other components come), or with the
/// error. Memory lent with the batch has been released by then, or, if the rows were set aside, once the writes of their
/// other components have resolved, too.
///
/// # Cancel safety
/// Dropping the handle neither cancels nor loses the write. If the write fails all the same, the next call on the
/// store reports it.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use activation_store::RingStore;
/// use ndarray::Array2;
///
/// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(64).build()?;
/// let handle = store.extend(Array2::<f32>::zeros((16, 4)), 0)?; // returns at once
/// let written = handle.await?; // waits while the ring is full
/// assert_eq!((written.rows, written.first_row), (16, 0));
/// # Ok(())
/// # }
/// # futures::executor::block_on(example()).unwrap();
/// ```
#[must_use = "a write is done without its handle being awaited, but only the handle makes its caller wait while the store is full"]
pub struct WriteHandle {
    state: State,
}

enum State {
    Done(Result<Written, WriteError>),
    Pending { outcome: oneshot::Receiver<Outcome>, fate: Arc<Fate> },
}

#[derive(Debug)]
enum Outcome {
    Written(Written),
    /// The store's fate says why.
    Lost,
}

/// The writer's end of a [`WriteHandle`]. Dropping it tells the handle that the rows were not taken.
#[derive(Debug)]
pub(crate) struct Reply(Option<oneshot::Sender<Outcome>>);

impl Reply {
    pub(crate) fn done(mut self, written: Written) {
        self.send(Outcome::Written(written));
    }

    fn send(&mut self, outcome: Outcome) {
        if let Some(handle) = self.0.take() {
            // Nobody need be listening.
            let _ = handle.send(outcome);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Outcome::Lost);
    }
}

impl WriteHandle {
    /// A handle whose outcome is known, for stores that write at once.
    pub fn ready(outcome: Result<Written, WriteError>) -> Self {
        WriteHandle { state: State::Done(outcome) }
    }

    pub(crate) fn pending(fate: Arc<Fate>) -> (Reply, Self) {
        let (sender, outcome) = oneshot::channel();
        (Reply(Some(sender)), WriteHandle { state: State::Pending { outcome, fate } })
    }

    /// Whether the outcome is known.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Done(_) => true,
            State::Pending { outcome, .. } => !outcome.is_empty() || outcome.is_terminated(),
        }
    }

    /// Blocks this thread until the outcome is known. Works inside and outside a runtime.
    ///
    /// # Errors
    /// The write's error.
    pub fn wait(mut self) -> Result<Written, WriteError> {
        wait_for(&mut self, None).unwrap_or(Err(WriteError::Closed(ClosedBy::Close)))
    }

    /// Blocks this thread until the outcome is known, but no longer than `timeout`: `None` if it is not known by then.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<Written, WriteError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

/// Polls outside `tokio`'s budget of polls per turn: a task that blocks on one handle after another never ends its turn,
/// and would be told to wait for the next.
fn poll_now<T>(
    receiver: &mut oneshot::Receiver<T>,
    context: &mut Context<'_>,
) -> Poll<Result<T, oneshot::error::RecvError>> {
    pin!(unconstrained(receiver)).poll(context)
}

impl Future for WriteHandle {
    type Output = Result<Written, WriteError>;

    /// May be polled again after completion, and then gives the same outcome.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Pending { outcome, fate } = &mut self.state {
            let outcome = match poll_now(outcome, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Outcome::Written(written))) => Ok(written),
                Poll::Ready(Ok(Outcome::Lost) | Err(_)) => Err(fate.cause()),
            };
            self.state = State::Done(outcome);
        }
        match &self.state {
            State::Done(outcome) => Poll::Ready(outcome.clone()),
            State::Pending { .. } => Poll::Pending,
        }
    }
}

impl fmt::Debug for WriteHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_done() { "WriteHandle(done)" } else { "WriteHandle(pending)" })
    }
}

/// A future that resolves when everything handed to the store before is in its ring.
///
/// Any executor can poll it; a thread can [`wait`](Flush::wait).
///
/// # Cancel safety
/// Dropping it has no effect.
#[must_use = "only awaiting or waiting tells when the rows are in"]
pub struct Flush {
    done: oneshot::Receiver<()>,
    fate: Arc<Fate>,
    /// Kept once known.
    outcome: Option<Result<(), WriteError>>,
}

impl Flush {
    /// `done` resolves, or is dropped where the store ended.
    pub(crate) fn new(done: oneshot::Receiver<()>, fate: Arc<Fate>) -> Self {
        Flush { done, fate, outcome: None }
    }

    /// Blocks this thread until the rows are in. Works inside and outside a runtime.
    ///
    /// # Errors
    /// As awaiting: an earlier write's failure that nobody has seen, or why the rows will never be in.
    pub fn wait(mut self) -> Result<(), WriteError> {
        wait_for(&mut self, None).unwrap_or(Ok(()))
    }

    /// Blocks this thread until the rows are in, but no longer than `timeout`: `None` if they are not in by then.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<(), WriteError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

impl Future for Flush {
    type Output = Result<(), WriteError>;

    /// May be polled again after completion, and then gives the same outcome.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.outcome.is_none() {
            let done = std::task::ready!(poll_now(&mut this.done, context));
            this.outcome = Some(match (this.fate.take_unseen(), done) {
                (Some(error), _) => Err(error),
                (None, Ok(())) => Ok(()),
                (None, Err(_)) => match this.fate.cause() {
                    // The writer ended because it had nothing left to do.
                    WriteError::Closed(ClosedBy::Close) => Ok(()),
                    cause => Err(cause),
                },
            });
        }
        this.outcome.clone().map_or(Poll::Pending, Poll::Ready)
    }
}

impl fmt::Debug for Flush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flush").finish_non_exhaustive()
    }
}
