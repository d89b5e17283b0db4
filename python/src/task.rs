//! Work that may wait for the disk, on a thread of its own: the caller hears Ctrl-C meanwhile, and other Python threads run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::wait::{Deadline, wait};

/// Work that goes on although the thread that waits for it is interrupted. Several threads may wait for it.
pub(crate) struct Task<R>(Arc<Shared<R>>);

impl<R> Clone for Task<R> {
    fn clone(&self) -> Self {
        Task(self.0.clone())
    }
}

struct Shared<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

enum State<R> {
    Running,
    Done(thread::Result<R>),
    /// One of the threads that waited has had the outcome.
    Taken,
}

impl<R: Send + 'static> Task<R> {
    pub(crate) fn start(work: impl FnOnce() -> R + Send + 'static) -> PyResult<Self> {
        let shared = Arc::new(Shared { state: Mutex::new(State::Running), changed: Condvar::new() });
        let ours = shared.clone();
        let named = thread::Builder::new().name("activation-store-disk".to_owned());
        let started = named.spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            *ours.lock() = State::Done(outcome);
            ours.changed.notify_all();
        });
        match started {
            Ok(_) => Ok(Task(shared)),
            Err(error) => {
                Err(PyRuntimeError::new_err(format!("cannot start a thread that waits for the disk: {error}")))
            }
        }
    }

    /// Waits for the outcome. `None` if another thread has had it.
    pub(crate) fn wait(&self, py: Python<'_>) -> PyResult<Option<R>> {
        let outcome = wait(py, &Deadline::new(None)?, |slice| self.0.wait(slice))?;
        // There is no deadline, so the wait has come to its end.
        Ok(outcome.flatten().map(|outcome| outcome.unwrap_or_else(|panic| resume_unwind(panic))))
    }
}

impl<R> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if the work is not done in time.
    fn wait(&self, slice: Duration) -> Option<Option<thread::Result<R>>> {
        let end = Instant::now() + slice;
        let mut state = self.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Done(outcome) => return Some(Some(outcome)),
                State::Taken => return Some(None),
                State::Running => *state = State::Running,
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Does work that may wait for the disk. If a signal raises meanwhile, the work goes on by itself and its outcome is dropped.
pub(crate) fn elsewhere<R: Send + 'static>(py: Python<'_>, work: impl FnOnce() -> R + Send + 'static) -> PyResult<R> {
    let outcome = Task::start(work)?.wait(py)?;
    // No other thread knows the task.
    outcome.ok_or_else(|| PyRuntimeError::new_err("the outcome of a task is missing"))
}
