//! Rows of a store, for looking at.

use activation_store::{ActivationStore, Index};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::errors::OrRaise;

/// The rows with these numbers, `[row, component, feature]` as `f32`, one after the other.
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
    Ok(PyByteArray::new(py, bytemuck::cast_slice(&values)))
}
