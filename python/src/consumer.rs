//! The consumers' side: minibatches for threads and, through the watcher, for tasks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use activation_store::{Minibatch as Frame, Minibatches, ReadError};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;

use crate::component::OddValues;
use crate::errors::OrRaise;
use crate::minibatch::Minibatch;
use crate::process::Home;
use crate::wait::{Deadline, wait};

/// A consumer that threads and tasks share.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Consumer {
    stream: Home<Arc<Stream>>,
}

/// A consumer's stream of minibatches. Several waits for one may go on at once.
pub(crate) struct Stream(Mutex<Minibatches>);

/// A wait for one minibatch.
pub(crate) struct Wait {
    /// A consumer for this wait alone, so that no wait holds up another.
    pub(crate) minibatches: Minibatches,
    stream: Arc<Stream>,
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, Minibatches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(self: &Arc<Self>) -> Wait {
        Wait { minibatches: self.lock().clone(), stream: self.clone() }
    }
}

impl Wait {
    /// What a wait that has come to `next` means to the consumer.
    ///
    /// How its stream ends is for the consumer to say: it may have been told of an error before, or be older than an abort.
    pub(crate) fn outcome(&self, next: Result<Option<Frame>, ReadError>) -> Result<Option<Frame>, ReadError> {
        match next {
            Ok(Some(_)) | Err(ReadError::Timeout(_) | ReadError::LaneMissing { .. }) => next,
            // At the end no minibatch comes, so this does not wait.
            Ok(None) | Err(_) => self.stream.lock().next_timeout(Duration::ZERO),
        }
    }
}

impl Consumer {
    pub(crate) fn new(minibatches: Minibatches) -> Self {
        Consumer { stream: Home::new(Arc::new(Stream(Mutex::new(minibatches)))) }
    }

    pub(crate) fn wait(&self) -> PyResult<Wait> {
        Ok(self.stream.get()?.wait())
    }
}

#[pymethods]
impl Consumer {
    /// The next minibatch; None at the end.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Minibatch>> {
        let mut minibatch = self.wait()?;
        let next = wait(py, &Deadline::new(timeout)?, |slice| match minibatch.minibatches.next_timeout(slice) {
            Err(ReadError::Timeout(_) | ReadError::LaneMissing { .. }) => None,
            next => Some(minibatch.outcome(next)),
        })?;
        let Some(next) = next else {
            // The caller says how long it has waited in all, and for which lane.
            return Err(PyTimeoutError::new_err("no minibatch was ready in time"));
        };
        next.or_raise()?.map(Minibatch::new).transpose()
    }

    /// Why a resumed store waits: for a lane that was open when it was saved, and that no producer has opened.
    fn missing_lane(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let stream = self.stream.get()?;
        let lane = py.detach(|| stream.lock().missing_lane());
        Ok(lane.map(|lane| {
            format!(
                "the resumed store waits for {lane}, which was open when it was saved; open it with producer(), and send its rows or close it"
            )
        }))
    }

    /// How many rows `drop_last` has dropped in a store that has served no minibatch.
    fn only_dropped(&self, py: Python<'_>) -> PyResult<u64> {
        let stream = self.stream.get()?;
        let stats = py.detach(|| stream.lock().stats());
        let dropped = stats.components.iter().map(|counts| counts.dropped.last).max().unwrap_or(0);
        Ok(if stats.minibatches_served == 0 { dropped } else { 0 })
    }

    /// The components of which rows had values that overflowed or were not finite.
    fn odd_values(&self, py: Python<'_>) -> PyResult<Vec<OddValues>> {
        let stream = self.stream.get()?;
        let stats = py.detach(|| stream.lock().stats());
        let odd = stats.components.iter().filter(|counts| counts.overflowed > 0 || counts.not_finite > 0);
        Ok(odd.map(|counts| (counts.name.to_string(), counts.overflowed, counts.not_finite)).collect())
    }
}
