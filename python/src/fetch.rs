//! Rows of a store, copied into an array of Python's.

use activation_store::{ActivationStore, Index, IndexError};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::errors::OrRaise;

/// Copies the rows with these numbers (`i64`, below zero from the end) of a store of `len` rows to `out`, an array of
/// `f32` that nothing else uses yet. `gather` copies them, without the GIL.
pub(crate) fn fetch(
    rows: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    len: usize,
    gather: impl FnOnce(&[usize], &mut [f32]) -> Result<(), IndexError> + Send,
) -> PyResult<()> {
    let py = rows.py();
    let rows = PyBuffer::<i64>::get(rows)?.to_vec(py)?.into_iter().map(|row| position(row, len));
    let rows: Vec<usize> = rows.collect::<Result<_, _>>().or_raise()?;
    let out = PyBuffer::<f32>::get(out)?;
    if out.readonly() || !out.is_c_contiguous() {
        return Err(PyTypeError::new_err("out is a writable, contiguous array of f32"));
    }
    // SAFETY: the buffer, which is kept until the end of this call, has so many values; its maker gives the array to
    // nothing else before.
    let values = unsafe { std::slice::from_raw_parts_mut(out.buf_ptr().cast::<f32>(), out.item_count()) };
    py.detach(|| gather(&rows, values)).or_raise()
}

/// Copies rows of a store that gives them only by index, `[row, component, feature]`.
pub(crate) fn by_index(store: &dyn ActivationStore, rows: &[usize], out: &mut [f32]) -> Result<(), IndexError> {
    let width = out.len() / rows.len().max(1);
    let mut filled = 0;
    for run in rows.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let values = store.get(Index::from(run[0]..run[0] + run.len()))?;
        let part = &mut out[filled..][..run.len() * width];
        part.iter_mut().zip(&values).for_each(|(out, &value)| *out = value);
        filled += part.len();
    }
    Ok(())
}

fn position(row: i64, len: usize) -> Result<usize, IndexError> {
    let index = isize::try_from(row).unwrap_or(isize::MAX);
    let from_end = index.checked_add_unsigned(len).filter(|_| index < 0);
    let position = usize::try_from(from_end.unwrap_or(index)).ok().filter(|&position| position < len);
    position.ok_or(IndexError::OutOfRange { axis: "row", index, len })
}
