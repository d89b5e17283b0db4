//! Rows on their way in: copied once into recycled memory, or not at all where the caller lends its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use activation_store::{Batch, DType, WriteError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::depot::Depot;
use crate::dtype::{self, with_dtype};
use crate::errors::OrRaise;
use crate::uncopied::{RowBytes, Uncopied};

/// Rows to be handed to a store, once.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Rows {
    incoming: Mutex<Option<Incoming>>,
    rows: usize,
    pub(crate) features: usize,
    pub(crate) dtype: DType,
}

/// Rows as they are handed to a store.
pub(crate) enum Incoming {
    /// To be copied first.
    Uncopied(Uncopied),
    /// Ready.
    Batch(Batch),
}

#[pymethods]
impl Rows {
    /// `[rows, features]` values of `dtype`, seen as bytes; rows where `mask` is zero are left out.
    ///
    /// Nothing is copied here. With `lend` nothing will be, where the layout allows: the caller leaves the memory unchanged
    /// until the store has read it. `array` is the numpy array whose memory the rows are, if that can be resized.
    #[new]
    #[pyo3(signature = (rows, dtype, features, mask=None, *, lend=false, array=None))]
    fn new(
        rows: &Bound<'_, PyAny>,
        dtype: &str,
        features: usize,
        mask: Option<&Bound<'_, PyAny>>,
        lend: bool,
        array: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let dtype = dtype::parse(dtype)?;
        let bytes = RowBytes::new(rows, width(features, dtype)?, array)?;
        Rows::of(rows, bytes, dtype, features, mask, lend)
    }

    /// `[rows, features]` values of `dtype` from an address on, rows `stride` values apart, in memory of the tensor `owner`.
    ///
    /// As from a buffer, but without the cost of one. The memory must be the tensor's.
    #[staticmethod]
    #[pyo3(signature = (owner, address, rows, stride, dtype, features, *, lend))]
    fn at(
        owner: &Bound<'_, PyAny>,
        address: usize,
        rows: usize,
        stride: isize,
        dtype: &str,
        features: usize,
        lend: bool,
    ) -> PyResult<Self> {
        let dtype = dtype::parse(dtype)?;
        let stride = stride.saturating_mul(dtype.size().cast_signed());
        let bytes = RowBytes::at(owner, address, rows, width(features, dtype)?, stride);
        Rows::of(owner, bytes, dtype, features, None, lend)
    }

    /// Checks that there is one row, as `append` takes it.
    fn require_one(&self) -> PyResult<()> {
        if self.rows == 1 { Ok(()) } else { Err(WriteError::NotOneRow { rows: self.rows }).or_raise() }
    }

    /// How many rows.
    fn __len__(&self) -> usize {
        self.rows
    }
}

/// Bytes of a row.
fn width(features: usize, dtype: DType) -> PyResult<usize> {
    features.checked_mul(dtype.size()).ok_or_else(|| PyValueError::new_err("a row is too wide"))
}

impl Rows {
    fn of(
        owner: &Bound<'_, PyAny>,
        bytes: RowBytes,
        dtype: DType,
        features: usize,
        mask: Option<&Bound<'_, PyAny>>,
        lend: bool,
    ) -> PyResult<Self> {
        let (incoming, rows) = match bytes.in_one_piece() {
            Some((start, count)) if lend && mask.is_none() && count > 0 && start.addr() % dtype.size() == 0 => {
                (Incoming::Batch(lent(owner, start, count, dtype, features)?), count)
            }
            _ => {
                let uncopied = Uncopied::new(bytes, dtype, features, mask)?;
                let rows = uncopied.left();
                (Incoming::Uncopied(uncopied), rows)
            }
        };
        Ok(Rows { incoming: Mutex::new(Some(incoming)), rows, features, dtype })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// The rows, which can be taken once.
    pub(crate) fn take(&self) -> PyResult<Incoming> {
        let used = || PyValueError::new_err("these rows have been handed to a store already");
        self.lock().take().ok_or_else(used)
    }

    /// Copies the rows, unless they have been copied or lent: the caller may change its memory afterwards.
    pub(crate) fn stage(&self, py: Python<'_>, depot: &Arc<Depot>) -> PyResult<()> {
        let batch = self.take()?.into_batch(py, depot)?;
        *self.lock() = Some(Incoming::Batch(batch));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Incoming>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Incoming {
    /// The rows as one batch.
    pub(crate) fn into_batch(self, py: Python<'_>, depot: &Arc<Depot>) -> PyResult<Batch> {
        match self {
            Incoming::Uncopied(mut rows) => rows.copy_all(py, depot),
            Incoming::Batch(batch) => Ok(batch),
        }
    }
}

/// A batch over the memory of `object`, which it keeps alive.
fn lent(object: &Bound<'_, PyAny>, start: *const u8, rows: usize, dtype: DType, features: usize) -> PyResult<Batch> {
    with_dtype!(dtype, T => {
        let lent = Lent::<T> { start: start.cast(), len: rows * features, _object: object.clone().unbind() };
        Batch::from_owner(lent, features).or_raise()
    })
}

/// Memory of a Python object that has promised not to change it.
struct Lent<T> {
    start: *const T,
    len: usize,
    _object: Py<PyAny>,
}

// SAFETY: the memory belongs to a Python object that is kept alive and whose owner has promised not to write to it; a
// reference dropped on a thread that does not hold the GIL is given up by the next one that does.
unsafe impl<T: Send> Send for Lent<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Sync> Sync for Lent<T> {}

impl<T> AsRef<[T]> for Lent<T> {
    fn as_ref(&self) -> &[T] {
        // SAFETY: `start` and `len` describe the object's buffer, checked for alignment when it was lent.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}
