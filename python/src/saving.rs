//! A snapshot on its way to the disk.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use activation_store::SnapshotHandle;
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;

use crate::errors::OrRaise;
use crate::wait::{Deadline, wait};

/// A snapshot that is being written.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Saving(Mutex<SnapshotHandle>);

impl Saving {
    pub(crate) fn new(handle: SnapshotHandle) -> Self {
        Saving(Mutex::new(handle))
    }
}

#[pymethods]
impl Saving {
    /// Waits until it is on disk; returns its folder.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<PathBuf> {
        let saved = wait(py, &Deadline::new(timeout)?, |slice| {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).wait_timeout(slice)
        })?;
        let limit = timeout.unwrap_or_default();
        saved
            .ok_or_else(|| PyTimeoutError::new_err(format!("the snapshot was not on disk within {limit} s")))?
            .or_raise()
    }
}
