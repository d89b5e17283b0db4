//! The store that is filled, shuffled and indexed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use activation_store::{ActivationStore, Epoch, TensorStore};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

use crate::component::{Key, OddValues, Spec, odd_values, spec};
use crate::depot::Depot;
use crate::dtype;
use crate::errors::OrRaise;
use crate::fetch::fetch;
use crate::minibatch::Minibatch;
use crate::process::Home;
use crate::rows::Rows;
use crate::uncopied::PIECE;

#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Tensor {
    store: Home<TensorStore>,
    depot: Arc<Depot>,
}

#[pymethods]
impl Tensor {
    #[new]
    fn new(py: Python<'_>, components: Vec<Spec>, max_items: usize, seed: u64) -> PyResult<Self> {
        let mut builder = TensorStore::builder().max_items(max_items).seed(seed);
        for (name, features, element) in components {
            builder = builder.component_of(name, features, dtype::parse(&element)?);
        }
        let store = py.detach(|| builder.build()).or_raise()?;
        Ok(Tensor { store: Home::new(store), depot: Depot::new(0, PIECE) })
    }

    /// The component with that number or name: its name, features and dtype.
    fn component(&self, component: Key) -> PyResult<Spec> {
        spec(self.store.get()?.components(), &component)
    }

    /// The components of which rows had values that overflowed or were not finite.
    fn odd_values(&self, py: Python<'_>) -> PyResult<Vec<OddValues>> {
        let store = self.store.get()?;
        let counts = py.detach(|| store.value_counts());
        Ok(odd_values(store.components().iter().zip(counts)))
    }

    /// Stores rows. Returns how many, and the position of the first.
    fn extend(&self, py: Python<'_>, component: Key, rows: &Rows) -> PyResult<(usize, u64)> {
        let store = self.store.get()?;
        let component = component.find(store.components())?;
        let batch = rows.take()?.into_batch(py, &self.depot)?;
        let written = py.detach(|| store.extend_blocking(batch, component)).or_raise()?;
        Ok((written.rows, written.first_row))
    }

    fn empty(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.store.get()?;
        py.detach(|| store.empty());
        Ok(())
    }

    fn shuffle(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.store.get()?;
        py.detach(|| store.shuffle());
        Ok(())
    }

    fn stored(&self, py: Python<'_>) -> PyResult<Vec<usize>> {
        let store = self.store.get()?;
        Ok(py.detach(|| store.current_activations_stored_per_component()))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let store = self.store.get()?;
        Ok(py.detach(|| ActivationStore::len(store)))
    }

    /// Copies the rows with these numbers to `out`, `[row, component, feature]` of `f32`.
    fn rows(&self, rows: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let store = self.store.get()?;
        let len = rows.py().detach(|| ActivationStore::len(store));
        fetch(rows, out, len, |rows, out| store.gather(rows, out))
    }

    /// Shuffled minibatches over what the store holds.
    fn epoch(&self, py: Python<'_>, batch_size: usize) -> PyResult<Minibatches> {
        let store = self.store.get()?;
        let epoch = py.detach(|| store.epoch(batch_size)).or_raise()?;
        Ok(Minibatches { epoch: Home::new(Mutex::new(epoch)) })
    }
}

/// Minibatches of one epoch.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Minibatches {
    epoch: Home<Mutex<Epoch>>,
}

#[pymethods]
impl Minibatches {
    /// The next minibatch; None at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Minibatch>> {
        let epoch = self.epoch.get()?;
        let next = py.detach(|| {
            // It panics only if there is no memory.
            catch_unwind(AssertUnwindSafe(|| epoch.lock().unwrap_or_else(PoisonError::into_inner).next()))
        });
        let no_memory = |_| PyMemoryError::new_err("no memory for another minibatch while the earlier ones are kept");
        next.map_err(no_memory)?.map(Minibatch::new).transpose()
    }
}
