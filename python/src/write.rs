//! The outcome of a write, as Python waits for it.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
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
    alarm: Arc<Alarm>,
}

impl Outcome {
    /// Counts the pieces that are done. Whether all are; if not, the alarm will go off.
    fn settle(&mut self) -> bool {
        let waker = Waker::from(self.alarm.clone());
        let mut context = Context::from_waker(&waker);
        while let Some(handle) = self.left.last_mut() {
            match pin!(handle).poll(&mut context) {
                Poll::Pending => return false,
                Poll::Ready(Ok(piece)) => {
                    if self.written.rows == 0 {
                        self.written.first_row = piece.first_row;
                    }
                    self.written.rows += piece.rows;
                }
                Poll::Ready(Err(error)) => self.error = self.error.take().or(Some(error)),
            }
            self.left.pop();
        }
        true
    }

    fn is_done(&self) -> bool {
        self.left.iter().all(WriteHandle::is_done)
    }
}

/// Wakes everybody who waits for an outcome: threads, and the watcher.
#[derive(Default)]
pub(crate) struct Alarm {
    state: Mutex<Rung>,
    rang: Condvar,
}

#[derive(Default)]
struct Rung {
    times: u64,
    watcher: Option<Waker>,
}

impl Alarm {
    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let mut state = self.lock();
        state.times += 1;
        let watcher = state.watcher.take();
        drop(state);
        self.rang.notify_all();
        watcher.into_iter().for_each(Waker::wake);
    }
}

/// An outcome that several threads and the watcher may wait for: none of them holds the lock while it waits.
pub(crate) struct Shared {
    outcome: Mutex<Outcome>,
    alarm: Arc<Alarm>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the outcome. Whether it is known in time.
    fn wait(&self, slice: Duration) -> bool {
        let end = Instant::now() + slice;
        loop {
            let times = self.alarm.lock().times;
            if self.lock().settle() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            let state = self.alarm.lock();
            let waited = self.alarm.rang.wait_timeout_while(state, left, |state| state.times == times);
            if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
                return false;
            }
        }
    }

    /// For the watcher, of which there is one.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        self.alarm.lock().watcher = Some(context.waker().clone());
        if self.lock().settle() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if self.seen || !self.is_done() {
            return;
        }
        self.settle();
        if let Some(error) = self.error.take() {
            self.unseen.report(error);
        }
    }
}

/// The pending outcome of a write.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct WriteOutcome {
    outcome: Home<Arc<Shared>>,
}

impl WriteOutcome {
    pub(crate) fn new(mut pieces: Vec<WriteHandle>, unseen: &Arc<Unseen>) -> Self {
        pieces.reverse();
        let written = Written { rows: 0, first_row: 0 };
        let (alarm, unseen) = (Arc::<Alarm>::default(), unseen.clone());
        let outcome = Outcome { left: pieces, written, error: None, seen: false, unseen, alarm: alarm.clone() };
        WriteOutcome { outcome: Home::new(Arc::new(Shared { outcome: Mutex::new(outcome), alarm })) }
    }

    pub(crate) fn share(&self) -> PyResult<Arc<Shared>> {
        self.outcome.get().cloned()
    }
}

#[pymethods]
impl WriteOutcome {
    /// Whether the outcome is known.
    fn done(&self) -> PyResult<bool> {
        Ok(self.outcome.get()?.lock().is_done())
    }

    /// Waits for the outcome: how many rows, and the position of the first; None if it is not known in time.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<(usize, u64)>> {
        let outcome = self.outcome.get()?;
        let done = wait(py, &Deadline::new(timeout)?, |slice| outcome.wait(slice).then_some(()))?;
        if done.is_none() {
            return Ok(None);
        }
        let outcome = outcome.lock();
        match &outcome.error {
            Some(error) => Err(error.clone().into_python()),
            None => Ok(Some((outcome.written.rows, outcome.written.first_row))),
        }
    }

    /// Notes that somebody has fetched the outcome: an error need not be reported again.
    fn seen(&self) -> PyResult<()> {
        self.outcome.get()?.lock().seen = true;
        Ok(())
    }
}
