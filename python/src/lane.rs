//! Handing rows in: to the store itself, or on a lane of its own.

use std::sync::Arc;
use std::time::Duration;

use activation_store::{Batch, Producer, Refused, RingStore, WriteHandle};
use pyo3::exceptions::{PyTimeoutError, PyTypeError};
use pyo3::prelude::*;

use crate::errors::{IntoPython, OrRaise};
use crate::process::Home;
use crate::staging::Rows;
use crate::wait::{Deadline, wait};
use crate::write::{Unseen, WriteOutcome};

/// What to do while the queue is over its bound.
#[derive(Clone, Copy)]
pub(crate) enum Room {
    /// Go to the end of the line.
    Line,
    /// Wait for room.
    Wait,
    /// Refuse the rows.
    Need,
}

impl<'py> FromPyObject<'_, 'py> for Room {
    type Error = PyErr;

    fn extract(room: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match room.extract::<&str>()? {
            "line" => Ok(Room::Line),
            "wait" => Ok(Room::Wait),
            "need" => Ok(Room::Need),
            other => Err(PyTypeError::new_err(format!("room is {other:?}; use line, wait or need"))),
        }
    }
}

/// Anything that takes rows as a ring does.
pub(crate) trait Takes: Sync {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused>;
    fn try_extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused>;
    fn wait_for_room(&self, component: usize, timeout: Duration) -> bool;
}

macro_rules! takes {
    ($type:ty) => {
        impl Takes for $type {
            fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
                <$type>::extend(self, batch, component)
            }

            fn try_extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
                <$type>::try_extend(self, batch, component)
            }

            fn wait_for_room(&self, component: usize, timeout: Duration) -> bool {
                <$type>::wait_for_room(self, component, Some(timeout))
            }
        }
    };
}

takes!(RingStore);
takes!(Producer);

/// Hands rows in. Room is asked for once: the pieces of one call are taken together.
pub(crate) fn hand_in(
    py: Python<'_>,
    to: &impl Takes,
    component: usize,
    rows: &Rows,
    room: Room,
    timeout: Option<f64>,
    unseen: &Arc<Unseen>,
) -> PyResult<WriteOutcome> {
    let deadline = Deadline::new(timeout)?;
    unseen.raise()?;
    if let Room::Wait = room {
        let found = wait(py, &deadline, |slice| to.wait_for_room(component, slice).then_some(()))?;
        found.ok_or_else(|| no_room(rows.len(), timeout))?;
    }
    let mut handles = Vec::with_capacity(1);
    for batch in rows.take()? {
        handles.push(
            match room {
                // Pieces after the first are part of a batch that was taken.
                Room::Need if handles.is_empty() => to.try_extend(batch, component),
                _ => to.extend(batch, component),
            }
            .or_raise()?,
        );
    }
    Ok(WriteOutcome::new(handles, unseen))
}

fn no_room(rows: usize, timeout: Option<f64>) -> PyErr {
    let limit = timeout.unwrap_or_default();
    PyTimeoutError::new_err(format!(
        "no room for {rows} rows within {limit} s: the consumer lags or has stopped. Nothing was written"
    ))
}

impl IntoPython for Refused {
    fn kind(&self, message: String) -> PyErr {
        self.error.kind(message)
    }
}

/// A lane of its own into a ring: the rows of one model replica, never mixed up with another's.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Lane {
    producer: Home<Producer>,
    unseen: Arc<Unseen>,
}

impl Lane {
    pub(crate) fn new(producer: Producer, unseen: Arc<Unseen>) -> Self {
        Lane { producer: Home::new(producer), unseen }
    }
}

#[pymethods]
impl Lane {
    #[pyo3(signature = (component, rows, room, timeout=None))]
    fn extend(
        &self,
        py: Python<'_>,
        component: usize,
        rows: &Rows,
        room: Room,
        timeout: Option<f64>,
    ) -> PyResult<WriteOutcome> {
        hand_in(py, self.producer.get()?, component, rows, room, timeout, &self.unseen)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let producer = self.producer.get()?;
        py.detach(|| producer.close());
        Ok(())
    }
}
