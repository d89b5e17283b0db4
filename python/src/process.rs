//! Things that live in one process: threads do not survive `fork`.

use std::mem::ManuallyDrop;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::IntoPyDict as _;

/// The number of this process. Asking the operating system each time takes a twelfth of a small `extend`.
static HERE: AtomicU32 = AtomicU32::new(0);

/// Notes the number of this process, now and after each fork.
pub(crate) fn watch_forks(module: &Bound<'_, PyModule>) -> PyResult<()> {
    note_process();
    let os = module.py().import("os")?;
    // Not on Windows, which has no fork.
    if os.hasattr("register_at_fork")? {
        let note = wrap_pyfunction!(note_process, module)?;
        os.call_method("register_at_fork", (), Some(&[("after_in_child", note)].into_py_dict(module.py())?))?;
    }
    Ok(())
}

#[pyfunction]
fn note_process() {
    HERE.store(process::id(), Ordering::Relaxed);
}

fn here() -> u32 {
    HERE.load(Ordering::Relaxed)
}

/// A value that works, and is dropped, only in the process that made it.
///
/// In a forked child the value is left alone: its writer thread is gone, and its locks may be held for ever.
pub(crate) struct Home<T: Send> {
    value: ManuallyDrop<T>,
    process: u32,
}

impl<T: Send> Home<T> {
    pub(crate) fn new(value: T) -> Self {
        Home { value: ManuallyDrop::new(value), process: here() }
    }

    /// The value, or an error that says why it does not work here.
    pub(crate) fn get(&self) -> PyResult<&T> {
        let here = here();
        if here == self.process {
            return Ok(&self.value);
        }
        let there = self.process;
        Err(PyRuntimeError::new_err(format!(
            "this store belongs to process {there} and cannot be used in process {here} (after a fork, or in a DataLoader worker): \
             its background writer runs only in process {there}. Capture and drain in one process (DataLoader: num_workers=0), \
             or make a store in this one"
        )))
    }
}

impl<T: Send> Drop for Home<T> {
    fn drop(&mut self) {
        if here() != self.process {
            return;
        }
        // SAFETY: dropped here only, and never used again.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        // Dropping a store may wait for its writer, so other Python threads may run meanwhile.
        let mut value = Some(value);
        Python::try_attach(|py| {
            let value = value.take();
            py.detach(|| drop(value));
        });
    }
}
