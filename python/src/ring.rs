//! The ring store.

use std::sync::{Arc, Mutex, PoisonError};

use activation_store::{ActivationStore, DType, Index, Merge, Minibatches, ReadError, RingStore, WhenFull};
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};

use crate::errors::OrRaise;
use crate::lane::{Intake, Lane, Room};
use crate::minibatch::Minibatch;
use crate::process::Home;
use crate::staging::{self, Depot, Incoming, Rows};
use crate::wait::{Deadline, wait};
use crate::write::{Unseen, WriteOutcome};

/// A component as Python gives it: name, features, element type.
pub(crate) type Component = (String, usize, String);

/// Rows of a store, `[row, component, feature]` as `f32`, one after the other.
pub(crate) fn fetch<'py>(
    py: Python<'py>,
    store: &dyn ActivationStore,
    rows: &[usize],
) -> PyResult<Bound<'py, PyByteArray>> {
    let values = py.detach(|| {
        let mut values: Vec<f32> = Vec::new();
        // Runs of consecutive rows.
        for run in rows.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let (part, _) = store.get(Index::from(run[0]..run[0] + run.len())).or_raise()?.into_raw_vec_and_offset();
            if values.is_empty() { values = part } else { values.extend_from_slice(&part) }
        }
        Ok::<_, PyErr>(values)
    })?;
    // SAFETY: `f32`s seen as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(&values[..])) };
    Ok(PyByteArray::new(py, bytes))
}

pub(crate) fn dtype(name: &str) -> PyResult<DType> {
    name.parse::<DType>().or_raise()
}

/// What a ring keeps while its Python object lives.
struct Inside {
    store: RingStore,
    /// A consumer of the store's own, so that an iterator which is broken off does not close the store.
    consumer: Mutex<Minibatches>,
}

#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Ring {
    inside: Home<Inside>,
    intake: Arc<Intake>,
}

impl Ring {
    pub(crate) fn consumer(&self) -> PyResult<Minibatches> {
        Ok(self.inside.get()?.consumer.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub(crate) fn unseen(&self) -> &Unseen {
        &self.intake.unseen
    }
}

#[pymethods]
impl Ring {
    #[new]
    #[pyo3(signature = (components, *, batch_size, window, ready_frames, queue_rows, max_skew, seed, drop_last, when_full, merge))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        components: Vec<Component>,
        batch_size: usize,
        window: usize,
        ready_frames: usize,
        queue_rows: Option<usize>,
        max_skew: Option<usize>,
        seed: u64,
        drop_last: bool,
        when_full: &str,
        merge: &str,
    ) -> PyResult<Self> {
        // A later piece of a batch must not be refused for running ahead of another component.
        let one_component = components.len() == 1;
        let mut builder = RingStore::builder();
        let mut row_bytes = 0_usize;
        for (name, features, element) in components {
            let element = dtype(&element)?;
            row_bytes = row_bytes.saturating_add(features.saturating_mul(element.size()));
            builder = builder.component_of(name, features, element);
        }
        let (when_full, in_pieces) = match when_full {
            "wait" => (WhenFull::Wait, one_component),
            "reject" => (WhenFull::Reject, false),
            "drop_oldest" => (WhenFull::DropOldest, one_component),
            other => {
                return Err(PyValueError::new_err(format!(
                    "when_full is {other:?}; use \"wait\", \"reject\" or \"drop_oldest\""
                )));
            }
        };
        let merge = match merge {
            "arrival" => Merge::Arrival,
            "round_robin" => Merge::RoundRobin,
            other => {
                return Err(PyValueError::new_err(format!("merge is {other:?}; use \"arrival\" or \"round_robin\"")));
            }
        };
        let waits = !matches!(when_full, WhenFull::Reject);
        builder = builder.batch_size(batch_size).window(window).ready_frames(ready_frames).seed(seed);
        builder = builder.drop_last(drop_last).when_full(when_full).merge(merge);
        if let Some(rows) = queue_rows {
            builder = builder.queue_rows(rows);
        }
        if let Some(rows) = max_skew {
            builder = builder.max_skew(rows);
        }
        let queue = queue_rows.unwrap_or(batch_size.saturating_mul(2)).saturating_mul(row_bytes);
        let store = py.detach(|| builder.build()).or_raise()?;
        let consumer = Mutex::new(store.minibatches());
        let intake = Intake { depot: Depot::new(queue), unseen: Arc::default(), waits, in_pieces };
        Ok(Ring { inside: Home::new(Inside { store, consumer }), intake: Arc::new(intake) })
    }

    /// Copies rows, seen as bytes, for a later `extend`.
    #[pyo3(signature = (rows, dtype, features, mask=None))]
    fn stage(
        &self,
        rows: &Bound<'_, PyAny>,
        dtype: &str,
        features: usize,
        mask: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Rows> {
        self.inside.get()?;
        staging::stage(&self.intake.depot, rows, dtype, features, mask)
    }

    /// Hands rows in; `room` says what to do while the queue is full: "line", "wait" or "need".
    #[pyo3(signature = (component, rows, room, timeout=None))]
    fn extend(
        &self,
        py: Python<'_>,
        component: usize,
        rows: &Rows,
        room: Room,
        timeout: Option<f64>,
    ) -> PyResult<WriteOutcome> {
        self.intake.extend(py, &self.inside.get()?.store, component, rows, room, timeout)
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
        let store = &self.inside.get()?.store;
        let (incoming, _held) = Incoming::new(rows, dtype, features, mask)?;
        self.intake.write(rows.py(), store, component, incoming, room, timeout)
    }

    fn lane(&self) -> PyResult<Lane> {
        let producer = self.inside.get()?.store.producer().or_raise()?;
        Ok(Lane::new(producer, self.intake.clone()))
    }

    /// The next minibatch; None at the end.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Minibatch>> {
        let mut consumer = self.consumer()?;
        self.intake.unseen.raise()?;
        let next = wait(py, &Deadline::new(timeout)?, |slice| match consumer.next_timeout(slice) {
            Err(ReadError::Timeout(_)) => None,
            next => Some(next),
        })?;
        match next {
            Some(next) => next.or_raise()?.map(Minibatch::new).transpose(),
            None => {
                let limit = timeout.unwrap_or_default();
                Err(PyTimeoutError::new_err(format!("no minibatch was ready within {limit} s")))
            }
        }
    }

    /// Waits until everything handed over before is in the ring.
    #[pyo3(signature = (timeout=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let mut flush = self.inside.get()?.store.flush();
        self.intake.unseen.raise()?;
        match wait(py, &Deadline::new(timeout)?, |slice| flush.wait_timeout(slice))? {
            Some(done) => done.or_raise(),
            None => {
                let limit = timeout.unwrap_or_default();
                Err(PyTimeoutError::new_err(format!(
                    "the rows were not in the ring within {limit} s: the consumer lags or has stopped"
                )))
            }
        }
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let store = &self.inside.get()?.store;
        py.detach(|| store.close());
        Ok(())
    }

    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        let store = &self.inside.get()?.store;
        py.detach(|| store.abort());
        Ok(())
    }

    fn empty(&self, py: Python<'_>) -> PyResult<()> {
        let store = &self.inside.get()?.store;
        py.detach(|| store.empty());
        Ok(())
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.inside.get()?.store.is_closed())
    }

    /// Bytes of the ring's frames.
    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        let store = &self.inside.get()?.store;
        let row: usize = store.components().iter().map(|component| component.features * component.dtype.size()).sum();
        Ok(row * store.window())
    }

    fn stored(&self, py: Python<'_>) -> PyResult<Vec<usize>> {
        let store = &self.inside.get()?.store;
        Ok(py.detach(|| store.current_activations_stored_per_component()))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let store = &self.inside.get()?.store;
        Ok(py.detach(|| ActivationStore::len(store)))
    }

    /// The given rows, `[row, component, feature]` as `f32`, one after the other.
    fn rows<'py>(&self, py: Python<'py>, rows: Vec<usize>) -> PyResult<Bound<'py, PyByteArray>> {
        fetch(py, &self.inside.get()?.store, &rows)
    }

    /// Counters: `{"components": {name: {...}}, ...}`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let store = &self.inside.get()?.store;
        let stats = py.detach(|| store.stats());
        let components = PyDict::new(py);
        for component in &stats.components {
            let counts = PyDict::new(py);
            counts.set_item("accepted", component.accepted)?;
            counts.set_item("queued", component.queued)?;
            counts.set_item("resident", component.resident)?;
            counts.set_item("served", component.served)?;
            counts.set_item("dropped", component.dropped)?;
            components.set_item(&*component.name, counts)?;
        }
        let all = PyDict::new(py);
        all.set_item("components", components)?;
        all.set_item("minibatches_served", stats.minibatches_served)?;
        all.set_item("producer_wait", stats.producer_wait.as_secs_f64())?;
        all.set_item("consumer_wait", stats.consumer_wait.as_secs_f64())?;
        all.set_item("frames_open", stats.frames_open)?;
        all.set_item("frames_ready", stats.frames_ready)?;
        all.set_item("frames_lent", stats.frames_lent)?;
        Ok(all)
    }
}
