//! Handing rows in: to the store itself, or on a lane of its own.

use std::sync::Arc;
use std::time::Duration;

use activation_store::{Batch, Producer, Refused, RingStore, WriteHandle};
use pyo3::exceptions::{PyTimeoutError, PyTypeError};
use pyo3::prelude::*;

use crate::errors::{IntoPython, OrRaise};
use crate::process::Home;
use crate::staging::{Depot, Incoming, Rows};
use crate::wait::{Deadline, wait};
use crate::write::{Unseen, WriteOutcome};

/// So many pieces are copied before the next look for signals.
const PIECES: usize = 64;

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

impl Room {
    fn hand_in(self, to: &impl Takes, batch: Batch, component: usize) -> PyResult<WriteHandle> {
        if let Room::Need = self { to.try_extend(batch, component) } else { to.extend(batch, component) }.or_raise()
    }
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
                // An unknown component is told by the call that follows.
                <$type>::wait_for_room(self, component, Some(timeout)).unwrap_or(true)
            }
        }
    };
}

takes!(RingStore);
takes!(Producer);

/// What a ring and its lanes share on this side.
pub(crate) struct Intake {
    pub(crate) depot: Arc<Depot>,
    pub(crate) unseen: Arc<Unseen>,
    /// Whether callers wait for room: not where the store refuses instead.
    pub(crate) waits: bool,
    /// Whether rows may be handed in piece by piece: only where no later piece can be refused.
    pub(crate) in_pieces: bool,
}

impl Intake {
    /// Hands in rows that are ready.
    pub(crate) fn extend(
        &self,
        py: Python<'_>,
        to: &impl Takes,
        component: usize,
        rows: &Rows,
        room: Room,
        timeout: Option<f64>,
    ) -> PyResult<WriteOutcome> {
        self.find_room(py, to, component, rows.len(), room, timeout)?;
        let handle = room.hand_in(to, rows.take()?, component)?;
        Ok(WriteOutcome::new(vec![handle], &self.unseen))
    }

    /// Copies rows and hands them in. Where it may, piece by piece, so that the writer finds each in cache.
    pub(crate) fn write(
        &self,
        py: Python<'_>,
        to: &impl Takes,
        component: usize,
        mut rows: Incoming,
        room: Room,
        timeout: Option<f64>,
    ) -> PyResult<WriteOutcome> {
        self.find_room(py, to, component, rows.left(), room, timeout)?;
        let in_pieces = self.in_pieces && matches!(room, Room::Wait);
        let mut handles = Vec::with_capacity(1);
        while rows.left() > 0 || handles.is_empty() {
            if !handles.is_empty() {
                py.check_signals()?;
            }
            py.detach(|| {
                for _ in 0..PIECES {
                    let batch = if in_pieces { rows.piece(&self.depot)? } else { rows.all(&self.depot)? };
                    handles.push(room.hand_in(to, batch, component)?);
                    if rows.left() == 0 {
                        break;
                    }
                }
                Ok::<_, PyErr>(())
            })?;
        }
        Ok(WriteOutcome::new(handles, &self.unseen))
    }

    /// Waits for room, if the caller is to: once, for all rows of a call.
    fn find_room(
        &self,
        py: Python<'_>,
        to: &impl Takes,
        component: usize,
        rows: usize,
        room: Room,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let deadline = Deadline::new(timeout)?;
        self.unseen.raise()?;
        if self.waits && matches!(room, Room::Wait) {
            let found = wait(py, &deadline, |slice| to.wait_for_room(component, slice).then_some(()))?;
            found.ok_or_else(|| no_room(rows, timeout))?;
        }
        Ok(())
    }
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
    intake: Arc<Intake>,
}

impl Lane {
    pub(crate) fn new(producer: Producer, intake: Arc<Intake>) -> Self {
        Lane { producer: Home::new(producer), intake }
    }
}

#[pymethods]
impl Lane {
    /// Hands in rows that are ready.
    #[pyo3(signature = (component, rows, room, timeout=None))]
    fn extend(
        &self,
        py: Python<'_>,
        component: usize,
        rows: &Rows,
        room: Room,
        timeout: Option<f64>,
    ) -> PyResult<WriteOutcome> {
        self.intake.extend(py, self.producer.get()?, component, rows, room, timeout)
    }

    /// Copies rows and hands them in.
    #[pyo3(signature = (component, rows, dtype, features, mask, room, timeout=None))]
    #[expect(clippy::too_many_arguments, reason = "called from one place in Python")]
    fn write(
        &self,
        component: usize,
        rows: &Bound<'_, PyAny>,
        dtype: &str,
        features: usize,
        mask: Option<&Bound<'_, PyAny>>,
        room: Room,
        timeout: Option<f64>,
    ) -> PyResult<WriteOutcome> {
        let producer = self.producer.get()?;
        let (incoming, _held) = Incoming::new(rows, dtype, features, mask)?;
        self.intake.write(rows.py(), producer, component, incoming, room, timeout)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let producer = self.producer.get()?;
        py.detach(|| producer.close());
        Ok(())
    }
}
