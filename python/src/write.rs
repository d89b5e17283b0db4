//! The outcome of a write, as Python waits for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use activation_store::{WriteError, WriteHandle, Written};
use pyo3::prelude::*;

use crate::errors::IntoPython;
use crate::process::Home;
use crate::wait::{Deadline, wait};

/// Failures of writes whose handle was dropped unread; the store's next call reports them.
#[derive(Default)]
pub(crate) struct Unseen {
    errors: Mutex<VecDeque<WriteError>>,
    any: AtomicBool,
}

impl Unseen {
    fn report(&self, error: WriteError) {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).push_back(error);
        self.any.store(true, Ordering::Release);
    }

    /// Raises the oldest failure.
    pub(crate) fn raise(&self) -> PyResult<()> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = errors.pop_front();
        self.any.store(!errors.is_empty(), Ordering::Release);
        drop(errors);
        oldest.map_or(Ok(()), |error| {
            let message = format!("an earlier write failed unseen: {error}");
            Err(error.kind(message))
        })
    }
}

/// What a write came to.
pub(crate) struct Outcome {
    /// The pieces' handles that are not done, last piece first.
    left: Vec<WriteHandle>,
    written: Written,
    error: Option<WriteError>,
    seen: bool,
    unseen: Arc<Unseen>,
}

impl Outcome {
    /// Waits for the next piece with `next` and counts it.
    fn settle(&mut self, mut next: impl FnMut(&mut WriteHandle) -> Option<Result<Written, WriteError>>) -> bool {
        while let Some(handle) = self.left.last_mut() {
            match next(handle) {
                None => return false,
                Some(Ok(piece)) => {
                    if self.written.rows == 0 {
                        self.written.first_row = piece.first_row;
                    }
                    self.written.rows += piece.rows;
                }
                Some(Err(error)) => self.error = self.error.take().or(Some(error)),
            }
            self.left.pop();
        }
        true
    }

    fn is_done(&self) -> bool {
        self.left.iter().all(WriteHandle::is_done)
    }

    fn wait(&mut self, slice: Duration) -> bool {
        let end = Instant::now() + slice;
        self.settle(|handle| handle.wait_timeout(end.saturating_duration_since(Instant::now())))
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let done = self.settle(|handle| match std::pin::pin!(handle).poll(context) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        });
        if done { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if self.seen || !self.is_done() {
            return;
        }
        self.settle(|handle| handle.wait_timeout(Duration::ZERO));
        if let Some(error) = self.error.take() {
            self.unseen.report(error);
        }
    }
}

/// The pending outcome of a write.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct WriteOutcome {
    outcome: Home<Arc<Mutex<Outcome>>>,
}

impl WriteOutcome {
    pub(crate) fn new(mut pieces: Vec<WriteHandle>, unseen: &Arc<Unseen>) -> Self {
        pieces.reverse();
        let written = Written { rows: 0, first_row: 0 };
        let outcome = Outcome { left: pieces, written, error: None, seen: false, unseen: unseen.clone() };
        WriteOutcome { outcome: Home::new(Arc::new(Mutex::new(outcome))) }
    }

    pub(crate) fn share(&self) -> PyResult<Arc<Mutex<Outcome>>> {
        self.outcome.get().cloned()
    }
}

pub(crate) fn lock(outcome: &Mutex<Outcome>) -> MutexGuard<'_, Outcome> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl WriteOutcome {
    /// Whether the outcome is known.
    fn done(&self) -> PyResult<bool> {
        Ok(match self.outcome.get()?.try_lock() {
            Ok(outcome) => outcome.is_done(),
            Err(TryLockError::Poisoned(outcome)) => outcome.into_inner().is_done(),
            // Another thread is waiting for it.
            Err(TryLockError::WouldBlock) => false,
        })
    }

    /// Waits for the outcome: how many rows, and the position of the first; None if it is not known in time.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<(usize, u64)>> {
        let outcome = self.outcome.get()?;
        let done = wait(py, &Deadline::new(timeout)?, |slice| lock(outcome).wait(slice).then_some(()))?;
        if done.is_none() {
            return Ok(None);
        }
        let outcome = lock(outcome);
        match &outcome.error {
            Some(error) => Err(error.clone().into_python()),
            None => Ok(Some((outcome.written.rows, outcome.written.first_row))),
        }
    }

    /// Notes that somebody has fetched the outcome: an error need not be reported again.
    fn seen(&self) -> PyResult<()> {
        lock(self.outcome.get()?).seen = true;
        Ok(())
    }
}
