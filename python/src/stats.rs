//! What a ring store counts, as Python sees it.

use activation_store::Stats as Counts;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A consistent picture of a `RingStore`. Times are in seconds.
#[pyclass(frozen, eq, module = "activation_store")]
#[derive(PartialEq)]
pub(crate) struct Stats {
    components: Vec<(String, ComponentStats)>,
    /// Minibatches that consumers have taken.
    #[pyo3(get)]
    minibatches_served: u64,
    /// How long rows waited because consumers had not taken the minibatches that were ready.
    #[pyo3(get)]
    waited_for_consumers: f64,
    /// How long consumers waited for a minibatch, summed over them.
    #[pyo3(get)]
    waited_for_producers: f64,
    /// Minibatches being filled.
    #[pyo3(get)]
    frames_open: usize,
    /// Full minibatches that no consumer has taken yet.
    #[pyo3(get)]
    frames_ready: usize,
    /// Minibatches with consumers, whose tensors have not all died yet.
    #[pyo3(get)]
    frames_lent: usize,
}

/// The rows of one component. At every moment, `accepted == resident + served + dropped`.
#[pyclass(frozen, eq, get_all, module = "activation_store")]
#[derive(Clone, PartialEq)]
pub(crate) struct ComponentStats {
    /// Rows that the store has taken.
    accepted: u64,
    /// Rows handed over that the store has not taken yet.
    queued: u64,
    /// Rows that the store holds.
    resident: u64,
    /// Rows handed out in minibatches.
    served: u64,
    /// Rows discarded by `empty`, `abort`, `drop_last` or `when_full="drop_oldest"`, or because another component's rows
    /// never arrived.
    dropped: u64,
}

#[pymethods]
impl Stats {
    /// The rows of each component, by name.
    #[getter]
    fn components<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let components = PyDict::new(py);
        for (name, counts) in &self.components {
            components.set_item(name, Bound::new(py, counts.clone())?)?;
        }
        Ok(components)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "Stats(components={}, minibatches_served={}, waited_for_consumers={:?}, waited_for_producers={:?}, \
             frames_open={}, frames_ready={}, frames_lent={})",
            self.components(py)?.repr()?,
            self.minibatches_served,
            self.waited_for_consumers,
            self.waited_for_producers,
            self.frames_open,
            self.frames_ready,
            self.frames_lent,
        ))
    }
}

#[pymethods]
impl ComponentStats {
    fn __repr__(&self) -> String {
        format!(
            "ComponentStats(accepted={}, queued={}, resident={}, served={}, dropped={})",
            self.accepted, self.queued, self.resident, self.served, self.dropped
        )
    }
}

impl From<Counts> for Stats {
    fn from(counts: Counts) -> Self {
        let component = |of: activation_store::ComponentStats| {
            let counts = ComponentStats {
                accepted: of.accepted,
                queued: of.queued,
                resident: of.resident,
                served: of.served,
                dropped: of.dropped,
            };
            (of.name.to_string(), counts)
        };
        Stats {
            components: counts.components.into_iter().map(component).collect(),
            minibatches_served: counts.minibatches_served,
            waited_for_consumers: counts.producer_wait.as_secs_f64(),
            waited_for_producers: counts.consumer_wait.as_secs_f64(),
            frames_open: counts.frames_open,
            frames_ready: counts.frames_ready,
            frames_lent: counts.frames_lent,
        }
    }
}
