//! The crate's errors as Python's own kinds, with the crate's messages.

use activation_store::{
    BuildError, DiskError, IndexError, ReadError, RecordingError, Refused, RefusedPass, ResumeError, ShapeError,
    SnapshotError, UnknownComponent, UnknownDType, ViewError, WriteError,
};
use pyo3::exceptions::{
    PyFileNotFoundError, PyIndexError, PyOSError, PyPermissionError, PyRuntimeError, PyTimeoutError, PyTypeError,
    PyValueError,
};
use pyo3::prelude::*;

mod python {
    #![allow(missing_docs, unreachable_pub)]
    pyo3::import_exception!(activation_store.errors, ClosedWithError);
    pyo3::import_exception!(activation_store.errors, StoreClosedError);
    pyo3::import_exception!(activation_store.errors, StoreFullError);
}

/// An error of the crate.
pub(crate) trait IntoPython: std::fmt::Display + Sized {
    /// The exception, with `message`.
    fn kind(&self, message: String) -> PyErr;

    /// The message, in Python's spelling.
    fn message(&self) -> String {
        self.to_string()
    }

    fn into_python(self) -> PyErr {
        self.kind(self.message())
    }
}

impl IntoPython for WriteError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            WriteError::Full(_) => python::StoreFullError::new_err(message),
            WriteError::Closed(_) => python::StoreClosedError::new_err(message),
            WriteError::Component(_) => PyIndexError::new_err(message),
            WriteError::Elements { .. } => PyTypeError::new_err(message),
            WriteError::Disk(error) => error.kind(message),
            WriteError::Poisoned { .. } => PyRuntimeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}

impl IntoPython for ReadError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            ReadError::Timeout(_) | ReadError::LaneMissing { .. } => PyTimeoutError::new_err(message),
            ReadError::Failed(_) => python::ClosedWithError::new_err(message),
            _ => PyRuntimeError::new_err(message),
        }
    }

    fn message(&self) -> String {
        match self {
            ReadError::Aborted => "the store was aborted before this loop began; make another store".to_owned(),
            other => other.to_string(),
        }
    }
}

impl IntoPython for DiskError {
    fn kind(&self, message: String) -> PyErr {
        match self.error.kind() {
            std::io::ErrorKind::NotFound => PyFileNotFoundError::new_err(message),
            std::io::ErrorKind::PermissionDenied => PyPermissionError::new_err(message),
            _ => PyOSError::new_err(message),
        }
    }
}

impl IntoPython for SnapshotError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            SnapshotError::Disk(error) => error.kind(message),
            SnapshotError::Policy { .. } | SnapshotError::OtherRun { .. } | SnapshotError::Later { .. } => {
                PyValueError::new_err(message)
            }
            _ => PyRuntimeError::new_err(message),
        }
    }

    fn message(&self) -> String {
        self.to_string().replace("WhenFull::Wait", "when_full=\"wait\"")
    }
}

impl IntoPython for ResumeError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            ResumeError::Disk(error) => error.kind(message),
            ResumeError::NoSnapshot { .. } => PyFileNotFoundError::new_err(message),
            ResumeError::Build(error) => error.kind(message),
            _ => PyValueError::new_err(message),
        }
    }

    fn message(&self) -> String {
        match self {
            ResumeError::Build(error) => error.message(),
            other => other.to_string().replace("start anew with build()", "make a new RingStore"),
        }
    }
}

impl IntoPython for RecordingError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            RecordingError::Disk(error) => error.kind(message),
            RecordingError::Empty { .. } => PyFileNotFoundError::new_err(message),
            RecordingError::Build(error) => error.kind(message),
            RecordingError::Index(error) => error.kind(message),
            RecordingError::Component(error) => error.kind(message),
            RecordingError::Resume(error) => error.kind(message),
            RecordingError::Write(error) => error.kind(message),
            RecordingError::Panicked { .. } => PyRuntimeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }

    fn message(&self) -> String {
        match self {
            RecordingError::Build(error) => error.message(),
            RecordingError::Resume(error) => error.message(),
            other => other.to_string().replace("drop_last is true", "drop_last is True"),
        }
    }
}

impl IntoPython for IndexError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            IndexError::Integers { .. } => PyTypeError::new_err(message),
            IndexError::Unequal { .. } | IndexError::Ended => PyValueError::new_err(message),
            IndexError::Poisoned { .. } | IndexError::Unreadable { .. } => PyRuntimeError::new_err(message),
            _ => PyIndexError::new_err(message),
        }
    }
}

impl IntoPython for ViewError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            ViewError::Component(_) => PyIndexError::new_err(message),
            ViewError::Elements { .. } => PyTypeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}

impl IntoPython for BuildError {
    fn kind(&self, message: String) -> PyErr {
        match self {
            BuildError::Thread { .. } | BuildError::Poisoned { .. } => PyRuntimeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }

    fn message(&self) -> String {
        match self {
            BuildError::NoComponents => {
                "the store has no component; give the features of one, or a dict of names and features".to_owned()
            }
            other => other.to_string().replace("allow_overcommit(true)", "allow_overcommit=True"),
        }
    }
}

impl IntoPython for Refused {
    fn kind(&self, message: String) -> PyErr {
        self.error.kind(message)
    }
}

impl IntoPython for RefusedPass {
    fn kind(&self, message: String) -> PyErr {
        self.error.kind(message)
    }
}

impl IntoPython for UnknownComponent {
    fn kind(&self, message: String) -> PyErr {
        PyIndexError::new_err(message)
    }
}

impl IntoPython for ShapeError {
    fn kind(&self, message: String) -> PyErr {
        PyValueError::new_err(message)
    }
}

impl IntoPython for UnknownDType {
    fn kind(&self, message: String) -> PyErr {
        PyValueError::new_err(message)
    }
}

/// `?` on the crate's results.
pub(crate) trait OrRaise<T> {
    fn or_raise(self) -> PyResult<T>;
}

impl<T, E: IntoPython> OrRaise<T> for Result<T, E> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(IntoPython::into_python)
    }
}
