//! What a ring store counts, as Python sees it.

use activation_store as store;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A consistent picture of a `RingStore`. Times are in seconds. `str()` of it is one line.
#[pyclass(frozen, eq, str, module = "activation_store")]
#[derive(PartialEq)]
pub(crate) struct Stats(store::Stats);

/// The rows of one component. At every moment, `accepted == resident + served + dropped`.
#[pyclass(frozen, eq, module = "activation_store")]
#[derive(PartialEq)]
pub(crate) struct ComponentStats(store::ComponentStats);

/// Rows that were taken but are never served, by reason.
#[pyclass(frozen, eq, module = "activation_store")]
#[derive(PartialEq)]
pub(crate) struct Dropped(store::Dropped);

impl From<store::Stats> for Stats {
    fn from(counts: store::Stats) -> Self {
        Stats(counts)
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[pymethods]
impl Stats {
    /// The rows of each component, by name.
    #[getter]
    fn components<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let components = PyDict::new(py);
        for counts in &self.0.components {
            components.set_item(&*counts.name, Bound::new(py, ComponentStats(counts.clone()))?)?;
        }
        Ok(components)
    }

    /// Minibatches that consumers have taken.
    #[getter]
    fn minibatches_served(&self) -> u64 {
        self.0.minibatches_served
    }

    /// How long producers waited for consumers: rows waited at the ring, because the ready minibatches were not taken.
    #[getter]
    fn waited_for_consumers(&self) -> f64 {
        self.0.waited_for_consumers.as_secs_f64()
    }

    /// How long consumers waited for producers, until a minibatch was ready. Summed over the consumers.
    #[getter]
    fn waited_for_producers(&self) -> f64 {
        self.0.waited_for_producers.as_secs_f64()
    }

    /// Minibatches being filled.
    #[getter]
    fn frames_open(&self) -> usize {
        self.0.frames_open
    }

    /// Full minibatches that no consumer has taken yet.
    #[getter]
    fn frames_ready(&self) -> usize {
        self.0.frames_ready
    }

    /// Minibatches with consumers, whose tensors have not all died yet.
    #[getter]
    fn frames_lent(&self) -> usize {
        self.0.frames_lent
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "Stats(components={}, minibatches_served={}, waited_for_consumers={:?}, waited_for_producers={:?}, \
             frames_open={}, frames_ready={}, frames_lent={})",
            self.components(py)?.repr()?,
            self.minibatches_served(),
            self.waited_for_consumers(),
            self.waited_for_producers(),
            self.frames_open(),
            self.frames_ready(),
            self.frames_lent(),
        ))
    }
}

#[pymethods]
impl ComponentStats {
    /// Rows that the store has taken.
    #[getter]
    fn accepted(&self) -> u64 {
        self.0.accepted
    }

    /// Rows handed over that the store has not taken yet.
    #[getter]
    fn queued(&self) -> u64 {
        self.0.queued
    }

    /// Rows that the store holds.
    #[getter]
    fn resident(&self) -> u64 {
        self.0.resident
    }

    /// Rows handed out in minibatches.
    #[getter]
    fn served(&self) -> u64 {
        self.0.served
    }

    /// Rows that a resumed store was sent again. They are in no other count.
    #[getter]
    fn resent(&self) -> u64 {
        self.0.resent
    }

    /// Rows that were taken but are never served.
    #[getter]
    fn dropped(&self) -> u64 {
        self.0.dropped.total()
    }

    /// Why they were dropped.
    #[getter]
    fn dropped_by(&self) -> Dropped {
        Dropped(self.0.dropped)
    }

    /// Rows with a finite value that was too large for the component's dtype and became infinite, such as 70,000 in f16. Like `not_finite`,
    /// counted as rows come into the ring, and served like all others.
    #[getter]
    fn overflowed(&self) -> u64 {
        self.0.overflowed
    }

    /// Rows that arrived with a NaN or an infinite value.
    #[getter]
    fn not_finite(&self) -> u64 {
        self.0.not_finite
    }

    fn __repr__(&self) -> String {
        let store::ComponentStats { accepted, queued, resident, served, overflowed, not_finite, .. } = self.0;
        let (dropped, by) = (self.dropped(), self.dropped_by().__repr__());
        format!(
            "ComponentStats(accepted={accepted}, queued={queued}, resident={resident}, served={served}, \
             dropped={dropped}, dropped_by={by}, overflowed={overflowed}, not_finite={not_finite})"
        )
    }
}

#[pymethods]
impl Dropped {
    /// Discarded to make room for newer rows (`when_full="drop_oldest"`).
    #[getter]
    fn oldest(&self) -> u64 {
        self.0.oldest
    }

    /// Discarded by `empty`.
    #[getter]
    fn emptied(&self) -> u64 {
        self.0.emptied
    }

    /// Discarded because the store was aborted or failed.
    #[getter]
    fn aborted(&self) -> u64 {
        self.0.aborted
    }

    /// Rows of the last, partial minibatch, which `drop_last` discards.
    #[getter]
    fn last(&self) -> u64 {
        self.0.last
    }

    /// Rows whose counterparts in another component never came.
    #[getter]
    fn unmatched(&self) -> u64 {
        self.0.unmatched
    }

    fn __repr__(&self) -> String {
        let store::Dropped { oldest, emptied, aborted, last, unmatched, .. } = self.0;
        format!("Dropped(oldest={oldest}, emptied={emptied}, aborted={aborted}, last={last}, unmatched={unmatched})")
    }
}
