//! The outcome of a write, as Python waits for it.

use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use activation_store::{WriteError, WriteHandle, Written};
use pyo3::prelude::*;

use crate::errors::OrRaise;
use crate::process::Home;
use crate::wait::{Deadline, wait};

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
    handle: Mutex<WriteHandle>,
    alarm: Arc<Alarm>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, WriteHandle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome. If it is not known, the alarm goes off when it is.
    fn outcome(&self) -> Poll<Result<Written, WriteError>> {
        let waker = Waker::from(self.alarm.clone());
        pin!(&mut *self.lock()).poll(&mut Context::from_waker(&waker))
    }

    /// Waits for the outcome: `None` if it is not known in time.
    fn wait(&self, slice: Duration) -> Option<Result<Written, WriteError>> {
        let end = Instant::now() + slice;
        loop {
            let times = self.alarm.lock().times;
            if let Poll::Ready(outcome) = self.outcome() {
                return Some(outcome);
            }
            let left = end.saturating_duration_since(Instant::now());
            let state = self.alarm.lock();
            let waited = self.alarm.rang.wait_timeout_while(state, left, |state| state.times == times);
            if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
                return None;
            }
        }
    }

    /// For the watcher, of which there is one.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        self.alarm.lock().watcher = Some(context.waker().clone());
        self.outcome().map(drop)
    }
}

/// The pending outcome of a write.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct WriteOutcome {
    outcome: Home<Arc<Shared>>,
    rows: usize,
}

impl WriteOutcome {
    /// The outcome of a write of `rows` rows, in one piece or several.
    pub(crate) fn new(handle: WriteHandle, rows: usize) -> Self {
        let outcome = Arc::new(Shared { handle: Mutex::new(handle), alarm: Arc::default() });
        WriteOutcome { outcome: Home::new(outcome), rows }
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
        let written = wait(py, &Deadline::new(timeout)?, |slice| outcome.wait(slice))?;
        written.map(|written| written.map(|first| (self.rows, first.first_row))).transpose().or_raise()
    }
}
