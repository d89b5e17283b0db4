//! What a write returns: a future of its outcome.

use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::unconstrained;

use crate::error::{ClosedBy, WriteError};
use crate::pipeline::wait::wait_for;

/// Rows that a store has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many rows, of each component that was written.
    pub rows: usize,
    /// The position of the first in the sequence of rows that its component has taken on its lane.
    pub first_row: u64,
}

/// The pending outcome of a write.
///
/// A future that any executor can poll, and that a thread can [`wait`](WriteHandle::wait) on. It resolves when the
/// store holds the rows within its bounds: in the ring, or set aside until the rows of their other components come. It
/// also resolves with the error if the store is aborted, has no consumer left, or fails. By then the store has released
/// memory lent with the batch. If the rows were set aside, the store releases the memory when it deals them.
///
/// # Cancel safety
/// Dropping the handle neither cancels nor loses the write.
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
    Pending(oneshot::Receiver<Result<Written, WriteError>>),
    /// Several writes, of which the last is resolved first.
    Several {
        left: Vec<WriteHandle>,
        outcome: Result<Written, WriteError>,
    },
}

/// Resolves a [`WriteHandle`]. Made by [`WriteHandle::pending`].
///
/// Dropping it without an outcome resolves the handle with [`WriteError::Closed`].
#[derive(Debug)]
pub struct WriteReply(Option<oneshot::Sender<Result<Written, WriteError>>>);

impl WriteReply {
    /// Resolves the handle, and wakes the caller that waits for it.
    pub fn resolve(mut self, outcome: Result<Written, WriteError>) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: Result<Written, WriteError>) {
        if let Some(handle) = self.0.take() {
            // The handle may have been dropped.
            let _ = handle.send(outcome);
        }
    }
}

impl Drop for WriteReply {
    fn drop(&mut self) {
        self.send(Err(WriteError::Closed(ClosedBy::Close)));
    }
}

impl WriteHandle {
    /// A handle whose outcome is known, for stores that write at once.
    pub fn ready(outcome: Result<Written, WriteError>) -> Self {
        WriteHandle { state: State::Done(outcome) }
    }

    /// A handle whose outcome is not known yet, and what resolves it, for stores that write later.
    ///
    /// ```
    /// use activation_store::{WriteHandle, Written};
    ///
    /// let (reply, handle) = WriteHandle::pending();
    /// assert!(!handle.is_done());
    /// std::thread::spawn(move || reply.resolve(Ok(Written { rows: 3, first_row: 0 })));
    /// assert_eq!(handle.wait()?.rows, 3);
    /// # Ok::<(), activation_store::WriteError>(())
    /// ```
    pub fn pending() -> (WriteReply, Self) {
        let (sender, outcome) = oneshot::channel();
        (WriteReply(Some(sender)), WriteHandle { state: State::Pending(outcome) })
    }

    /// One handle for several writes, in order: resolves when all have, with the first error, else as the first write.
    pub fn all(handles: impl IntoIterator<Item = WriteHandle>) -> Self {
        let mut left: Vec<WriteHandle> = handles.into_iter().collect();
        left.reverse();
        WriteHandle { state: State::Several { left, outcome: Ok(Written { rows: 0, first_row: 0 }) } }
    }

    /// Whether the outcome is known.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Done(_) => true,
            State::Pending(outcome) => !outcome.is_empty() || outcome.is_terminated(),
            State::Several { left, .. } => left.iter().all(WriteHandle::is_done),
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
pub(crate) fn poll_now<T>(
    receiver: &mut oneshot::Receiver<T>,
    context: &mut Context<'_>,
) -> Poll<Result<T, oneshot::error::RecvError>> {
    pin!(unconstrained(receiver)).poll(context)
}

impl Future for WriteHandle {
    type Output = Result<Written, WriteError>;

    /// May be polled again after completion, and then gives the same outcome.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.state {
            State::Done(outcome) => return Poll::Ready(outcome.clone()),
            State::Pending(outcome) => match ready!(poll_now(outcome, context)) {
                Ok(outcome) => outcome,
                Err(_) => Err(WriteError::Closed(ClosedBy::Close)),
            },
            State::Several { left, outcome } => {
                while let Some(next) = left.last_mut() {
                    let next = ready!(Pin::new(next).poll(context));
                    left.pop();
                    // The first write's outcome, unless a later one fails.
                    let is_first = matches!(outcome, Ok(Written { rows: 0, .. }));
                    if outcome.is_ok() && (is_first || next.is_err()) {
                        *outcome = next;
                    }
                }
                outcome.clone()
            }
        };
        self.state = State::Done(outcome.clone());
        Poll::Ready(outcome)
    }
}

impl fmt::Debug for WriteHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_done() { "WriteHandle(done)" } else { "WriteHandle(pending)" })
    }
}
