//! The ring store.

use std::sync::Arc;

use activation_store::{ActivationStore, Merge, Minibatches, RingStore, WhenFull};
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::component::Spec;
use crate::consumer::Consumer;
use crate::depot::Depot;
use crate::dtype;
use crate::errors::OrRaise;
use crate::fetch::fetch;
use crate::lane::{End, Intake, Lane};
use crate::process::Home;
use crate::stats::Stats;
use crate::uncopied::PIECE;
use crate::wait::{Deadline, Notice, wait_and_notice};

/// What a ring keeps while its Python object lives.
struct Inside {
    store: RingStore,
    /// A consumer of the store's own, so that dropping all others does not close the store.
    _consumer: Minibatches,
}

#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Ring {
    inside: Home<Inside>,
    intake: Arc<Intake>,
}

#[pymethods]
impl Ring {
    #[new]
    #[pyo3(signature = (components, *, batch_size, window, ready_frames, queue_rows, max_skew, seed, drop_last, when_full, merge, allow_overcommit))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        components: Vec<Spec>,
        batch_size: usize,
        window: usize,
        ready_frames: usize,
        queue_rows: Option<usize>,
        max_skew: Option<usize>,
        seed: u64,
        drop_last: bool,
        when_full: &str,
        merge: &str,
        allow_overcommit: bool,
    ) -> PyResult<Self> {
        // A later piece of a batch must not be refused for running ahead of another component.
        let one_component = components.len() == 1;
        let mut builder = RingStore::builder();
        let mut row_bytes = 0_usize;
        for (name, features, element) in components {
            let element = dtype::parse(&element)?;
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
        builder = builder.drop_last(drop_last).when_full(when_full).merge(merge).allow_overcommit(allow_overcommit);
        if let Some(rows) = queue_rows {
            builder = builder.queue_rows(rows);
        }
        if let Some(rows) = max_skew {
            builder = builder.max_skew(rows);
        }
        let queue = queue_rows.unwrap_or(batch_size.saturating_mul(2)).saturating_mul(row_bytes);
        let store = py.detach(|| builder.build()).or_raise()?;
        let consumer = store.minibatches();
        let components = store.components().to_vec();
        let intake = Intake { components, depot: Depot::new(queue, PIECE), waits, in_pieces };
        Ok(Ring { inside: Home::new(Inside { store, _consumer: consumer }), intake: Arc::new(intake) })
    }

    /// The store's own lane.
    fn own_lane(&self) -> PyResult<Lane> {
        Ok(Lane::new(End::Own(self.inside.get()?.store.clone()), self.intake.clone()))
    }

    /// Opens a lane.
    fn open_lane(&self) -> PyResult<Lane> {
        let producer = self.inside.get()?.store.producer().or_raise()?;
        Ok(Lane::new(End::Opened(producer), self.intake.clone()))
    }

    /// Makes a consumer.
    fn consumer(&self) -> PyResult<Consumer> {
        Ok(Consumer::new(self.inside.get()?.store.minibatches()))
    }

    /// Waits until everything handed over before is in the ring.
    #[pyo3(signature = (timeout=None, notice=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>, notice: Option<Notice<'_>>) -> PyResult<()> {
        let mut flush = self.inside.get()?.store.flush();
        match wait_and_notice(py, &Deadline::new(timeout)?, notice, |slice| flush.wait_timeout(slice))? {
            Some(done) => done.or_raise(),
            None => {
                let limit = timeout.unwrap_or_default();
                Err(PyTimeoutError::new_err(format!(
                    "the rows were not in the ring within {limit} s: the consumer lags or has stopped"
                )))
            }
        }
    }

    /// Takes no more rows. With an error's message, each consumer is told of the error at its end.
    #[pyo3(signature = (error=None))]
    fn close(&self, py: Python<'_>, error: Option<String>) -> PyResult<()> {
        let store = &self.inside.get()?.store;
        py.detach(|| match error {
            Some(message) => store.close_with(message),
            None => store.close(),
        });
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

    /// Rows that a minibatch's rows are spread over, in whole minibatches.
    #[getter]
    fn window(&self) -> PyResult<usize> {
        Ok(self.inside.get()?.store.window())
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

    /// Counts, all taken at the same moment.
    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        let store = &self.inside.get()?.store;
        Ok(py.detach(|| store.stats()).into())
    }
}
