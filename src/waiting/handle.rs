//! The handle that a write returns: a future of the write's outcome.

use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::unconstrained;

use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::waiting::wait::wait_for;

/// Rows that a store has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The number of rows of each component that was written.
    pub rows: usize,
    /// The number of the first row in the sequence of rows that its component has taken on its lane, from 0.
    pub first_row: u64,
}

/// The pending outcome of a write.
///
/// The handle is a future. Any executor can poll it, and a thread can [`wait`](WriteHandle::wait). It resolves when the store
/// holds the rows within its bounds: in the ring, or set aside until the rows of the other components come. By then the store has
/// released the memory that you lent with the batch, unless the rows are set aside. The store releases the memory of rows that are
/// set aside when it deals or discards them.
///
/// # Errors
/// The future yields [`WriteError`] if the store is aborted, has no consumer left, or is poisoned.
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
    /// Several writes, in reverse order: the last handle in `left` is the next to resolve.
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
    /// Resolves the handle with `outcome`, and wakes the caller that waits for the handle.
    pub fn resolve(mut self, outcome: Result<Written, WriteError>) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: Result<Written, WriteError>) {
        if let Some(handle) = self.0.take() {
            // The caller may have dropped the handle.
            let _ = handle.send(outcome);
        }
    }
}

impl Drop for WriteReply {
    fn drop(&mut self) {
        self.send(Err(ClosedBy::Close.into()));
    }
}

impl WriteHandle {
    /// Makes a handle whose outcome is known, for a store that writes at once.
    pub fn ready(outcome: Result<Written, WriteError>) -> Self {
        WriteHandle { state: State::Done(outcome) }
    }

    /// Makes a handle whose outcome is not known yet, and the [`WriteReply`] that resolves it, for a store that writes later.
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

    /// Makes one handle for several writes, given in order. It resolves when all of them have resolved. Its outcome is the first error
    /// or, without an error, the outcome of the first write that has rows.
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
    /// The write's error: see [`WriteHandle`].
    pub fn wait(mut self) -> Result<Written, WriteError> {
        wait_for(&mut self, None).unwrap_or(Err(ClosedBy::Close.into()))
    }

    /// Blocks this thread until the outcome is known, but no longer than `timeout`. `None` if it is not known by then.
    ///
    /// # Errors
    /// The write's error: see [`WriteHandle`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<Written, WriteError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

/// Polls a receiver, but outside `tokio`'s budget of polls per turn. A task that blocks on one handle after another never ends its
/// turn. Once its budget is used up, `tokio` would make it wait for the next turn, which never comes.
pub(crate) fn poll_now<T>(
    receiver: &mut oneshot::Receiver<T>,
    context: &mut Context<'_>,
) -> Poll<Result<T, oneshot::error::RecvError>> {
    pin!(unconstrained(receiver)).poll(context)
}

impl Future for WriteHandle {
    type Output = Result<Written, WriteError>;

    /// Polls the future. After completion you may poll it again, and get the same outcome.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.state {
            State::Done(outcome) => return Poll::Ready(outcome.clone()),
            State::Pending(outcome) => match ready!(poll_now(outcome, context)) {
                Ok(outcome) => outcome,
                Err(_) => Err(ClosedBy::Close.into()),
            },
            State::Several { left, outcome } => {
                while let Some(next) = left.last_mut() {
                    let next = ready!(Pin::new(next).poll(context));
                    left.pop();
                    // Keeps the outcome of the first write with rows, unless a later write fails.
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
