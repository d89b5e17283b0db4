//! Waiting without the GIL, in slices, so that Ctrl-C is heard.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// How long a wait goes on before it looks for signals.
const SLICE: Duration = Duration::from_millis(50);

/// When a wait ends, or several waits of one call.
pub(crate) struct Deadline {
    /// The limit that Python gave. `None` is no limit.
    pub(crate) seconds: Option<f64>,
    end: Option<Instant>,
}

impl Deadline {
    pub(crate) fn new(timeout: Option<f64>) -> PyResult<Self> {
        if let Some(seconds) = timeout.filter(|seconds| seconds.is_nan() || *seconds < 0.0) {
            return Err(PyValueError::new_err(format!("timeout is {seconds}; it must be at least 0 seconds, or None")));
        }
        let limit = timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(Deadline { seconds: timeout, end: limit.and_then(|limit| Instant::now().checked_add(limit)) })
    }

    fn slice(&self) -> Duration {
        self.end.map_or(SLICE, |end| SLICE.min(end.saturating_duration_since(Instant::now())))
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// Calls `step` with the time it may take, without the GIL, until it has a result: `None` if the deadline comes first.
pub(crate) fn wait<R: Send>(
    py: Python<'_>,
    deadline: &Deadline,
    step: impl FnMut(Duration) -> Option<R> + Send,
) -> PyResult<Option<R>> {
    wait_and_notice(py, deadline, None, step)
}

/// What a wait calls, again and again, after so many seconds: it says what is missing.
pub(crate) type Notice<'py> = (f64, Bound<'py, PyAny>);

/// As `wait`. Where there is no deadline it calls the notice, and raises what that raises.
pub(crate) fn wait_and_notice<R: Send>(
    py: Python<'_>,
    deadline: &Deadline,
    notice: Option<Notice<'_>>,
    mut step: impl FnMut(Duration) -> Option<R> + Send,
) -> PyResult<Option<R>> {
    let mut noticed = Instant::now();
    loop {
        let slice = deadline.slice();
        if let Some(result) = py.detach(|| step(slice)) {
            return Ok(Some(result));
        }
        py.check_signals()?;
        if let Some((seconds, notice)) = notice.as_ref().filter(|_| deadline.end.is_none())
            && noticed.elapsed().as_secs_f64() >= *seconds
        {
            noticed = Instant::now();
            notice.call0()?;
        }
        if deadline.is_over() {
            return Ok(None);
        }
    }
}
