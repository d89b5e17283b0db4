//! The native module of the Python package `activation_store`: a thin layer over the crate of the same name.
//!
//! Python's side (`python/activation_store`) turns arrays into bytes and minibatches into tensors; this side moves the
//! bytes, waits without the GIL, and maps errors.

mod component;
mod consumer;
mod depot;
mod dtype;
mod errors;
mod fetch;
mod lane;
mod minibatch;
mod process;
mod recording;
mod ring;
mod rows;
mod saving;
mod stats;
mod task;
mod tensor;
mod uncopied;
mod wait;
mod watcher;
mod write;

/// The native module.
#[pyo3::pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::consumer::Consumer;
    #[pymodule_export]
    use crate::lane::{IfFull, Lane};
    #[pymodule_export]
    use crate::minibatch::{Block, Minibatch};
    #[pymodule_export]
    use crate::recording::{Recorder, Recording, TeeLane};
    #[pymodule_export]
    use crate::ring::{Ring, list_snapshots, prune_snapshots, resume_points, snapshots_not_whole};
    #[pymodule_export]
    use crate::rows::Rows;
    #[pymodule_export]
    use crate::saving::Saving;
    #[pymodule_export]
    use crate::stats::{ComponentStats, Dropped, Stats};
    #[pymodule_export]
    use crate::tensor::{Minibatches, Tensor};
    #[pymodule_export]
    use crate::watcher::Watcher;
    #[pymodule_export]
    use crate::write::WriteOutcome;

    /// Runs the program `activation-store` with its arguments, of which the first is its name. Returns its exit code.
    #[pyfunction]
    fn command_line(py: Python<'_>, arguments: Vec<std::ffi::OsString>) -> u8 {
        py.detach(|| activation_store_cli::run(arguments))
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::process::watch_forks(module)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
