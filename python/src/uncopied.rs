//! Rows in memory of Python's that are still to be copied.

use std::sync::Arc;

use activation_store::{Batch, DType};
use pyo3::buffer::{PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

use crate::depot::{Depot, Loan, no_memory};
use crate::dtype::with_dtype;
use crate::errors::OrRaise;

/// Rows are copied in pieces of about this size: a piece is dealt, and its memory used again, while it is still in cache.
pub(crate) const PIECE: usize = 512 << 10;

/// So many pieces are copied before the next look for signals.
const PIECES: usize = 64;

/// So many bytes may be more than there is memory for.
const LARGE: usize = 1 << 30;

/// Rows of a Python object, some of them masked out; copied front to back.
pub(crate) struct Uncopied {
    bytes: RowBytes,
    keep: Option<Vec<u8>>,
    dtype: DType,
    features: usize,
    /// The next row to look at.
    next: usize,
    /// Rows to be copied.
    left: usize,
    /// Whether a piece waits for cache.
    patient: bool,
    /// Memory for the next copy, if it has been taken.
    loan: Option<Loan>,
}

impl Uncopied {
    /// Leaves the rows out where `mask` is zero.
    pub(crate) fn new(
        bytes: RowBytes,
        dtype: DType,
        features: usize,
        mask: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let keep = mask.map(|mask| read_mask(mask, bytes.rows)).transpose()?;
        let left = keep.as_ref().map_or(bytes.rows, |keep| keep.iter().filter(|&&keep| keep != 0).count());
        // Rows that share memory may be more than fits: told before any piece of them is taken.
        let size = left.checked_mul(bytes.width).ok_or_else(|| no_memory(usize::MAX))?;
        if size >= LARGE {
            Vec::<u8>::new().try_reserve_exact(size).map_err(|_| no_memory(size))?;
        }
        Ok(Uncopied { bytes, keep, dtype, features, next: 0, left, patient: true, loan: None })
    }

    /// Rows that are still to be copied.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Copies all rows.
    pub(crate) fn copy_all(&mut self, py: Python<'_>, depot: &Arc<Depot>) -> PyResult<Batch> {
        self.patient = false;
        self.checked(py, depot, |rows| rows.copy(depot, usize::MAX))
    }

    /// Copies the next pieces, each once there is cache for it, and hands them over.
    pub(crate) fn copy_pieces(
        &mut self,
        py: Python<'_>,
        depot: &Arc<Depot>,
        mut hand_over: impl FnMut(Batch) -> PyResult<()> + Send,
    ) -> PyResult<()> {
        let most = (PIECE / self.bytes.width.max(1)).max(1);
        self.checked(py, depot, |rows| {
            for _ in 0..PIECES {
                hand_over(rows.copy(depot, most)?)?;
                if rows.left == 0 {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Calls `copy` after a check that the memory is where it was when the rows were handed over: they may have waited for room meanwhile.
    ///
    /// What is safe: the tensor's storage is kept while its rows are copied, so the tensor may get other memory (`tensor.data = ...`). Up to
    /// one piece is copied with the GIL, so no Python code resizes the memory between the check and the end of the copy. What is not:
    /// more rows are copied without the GIL, because all other threads would stand still. If another thread resizes the memory in that
    /// moment (`storage.resize_`, `ndarray.resize(refcheck=False)`), freed memory is read. Neither library keeps the old memory for
    /// a reader, so the second check can only turn wrong rows into an error. The same is true where Python has no GIL, and of C++ code that
    /// resizes without it.
    fn checked<R: Send>(
        &mut self,
        py: Python<'_>,
        depot: &Arc<Depot>,
        copy: impl FnOnce(&mut Self) -> PyResult<R> + Send,
    ) -> PyResult<R> {
        let bytes = self.left.saturating_mul(self.bytes.width);
        if bytes > PIECE {
            self.bytes.check(py)?;
            let copied = py.detach(|| copy(self))?;
            self.bytes.check_again(py)?;
            return Ok(copied);
        }
        // Taking memory may wait, and nothing may wait between the check and the copy.
        let patient = &mut self.patient;
        self.loan = Some(py.detach(|| depot.take(bytes, patient))?);
        self.bytes.check(py)?;
        copy(self)
    }

    fn copy(&mut self, depot: &Arc<Depot>, most: usize) -> PyResult<Batch> {
        let rows = self.left.min(most);
        let mut loan = match self.loan.take() {
            Some(loan) => loan,
            None => depot.take(rows * self.bytes.width, &mut self.patient)?,
        };
        self.fill(loan.bytes_mut());
        self.left -= rows;
        with_dtype!(self.dtype, T => Batch::from_owner(loan.elements::<T>(), self.features).or_raise())
    }

    /// Fills `out` with the next rows that the mask lets through.
    fn fill(&mut self, out: &mut [u8]) {
        let width = self.bytes.width;
        let mut filled = 0;
        while filled < out.len() {
            let most = (out.len() - filled) / width;
            let run = match &self.keep {
                None => most,
                Some(keep) => {
                    self.next += keep[self.next..].iter().take_while(|&&keep| keep == 0).count();
                    keep[self.next..].iter().take(most).take_while(|&&keep| keep != 0).count()
                }
            };
            self.bytes.copy(self.next, &mut out[filled..][..run * width]);
            self.next += run;
            filled += run * width;
        }
    }
}

/// A snapshot of the mask, one byte per row: the caller may change its own meanwhile.
fn read_mask(mask: &Bound<'_, PyAny>, rows: usize) -> PyResult<Vec<u8>> {
    let mask = PyBuffer::<u8>::get(mask)?.to_vec(mask.py())?;
    if mask.len() == rows {
        Ok(mask)
    } else {
        Err(PyValueError::new_err(format!("the mask is for {} rows, but the batch has {rows}", mask.len())))
    }
}

/// The buffer of a Python object as rows of bytes, which may lie apart.
pub(crate) struct RowBytes {
    start: *const u8,
    rows: usize,
    /// Bytes of a row.
    width: usize,
    stride: isize,
    keeper: Keeper,
}

/// What keeps memory of Python's.
enum Keeper {
    /// A buffer; and the numpy array whose memory it is, if that can be resized, with the address and the bytes that it had.
    Buffer { _buffer: PyUntypedBuffer, array: Option<(Py<PyAny>, usize, usize)> },
    /// A tensor, whose storage can be resized; and the storage that was found at the last check.
    Tensor(Py<PyAny>, Option<Py<PyAny>>),
}

fn resized(what: &str) -> PyErr {
    PyValueError::new_err(format!(
        "the {what} was resized after its rows were handed over and before they were all copied; \
         hand over a copy (rows.clone() or rows.copy()), or resize it when the call has returned"
    ))
}

/// The address and the bytes of a numpy array.
fn place(array: &Bound<'_, PyAny>) -> PyResult<(usize, usize)> {
    let py = array.py();
    let (address, _): (usize, bool) =
        array.getattr(intern!(py, "__array_interface__"))?.get_item(intern!(py, "data"))?.extract()?;
    Ok((address, array.getattr(intern!(py, "nbytes"))?.extract()?))
}

// SAFETY: the memory is kept by the buffer or the object, and only read; Python's threads share it as they share any buffer.
unsafe impl Send for RowBytes {}
// SAFETY: as above.
unsafe impl Sync for RowBytes {}

impl RowBytes {
    /// The buffer of `[rows, width]` bytes. `array` is the numpy array whose memory it is, if that can be resized.
    pub(crate) fn new(object: &Bound<'_, PyAny>, width: usize, array: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        let (&[rows, bytes], &[stride, 1]) = (buffer.shape(), buffer.strides()) else {
            return Err(PyTypeError::new_err("rows must be a two-dimensional buffer whose last axis is contiguous"));
        };
        if buffer.item_size() != 1 || (bytes != width && rows > 0) {
            return Err(PyTypeError::new_err(format!("rows must be bytes, {width} to a row; got {bytes}")));
        }
        let start = buffer.buf_ptr().cast_const().cast();
        let placed = |array: &Bound<'_, PyAny>| place(array).map(|(at, bytes)| (array.clone().unbind(), at, bytes));
        let array = array.map(placed).transpose()?;
        Ok(RowBytes { start, rows, width, stride, keeper: Keeper::Buffer { _buffer: buffer, array } })
    }

    /// `rows` rows of `width` bytes from an address on, which the tensor `owner` keeps.
    pub(crate) fn at(owner: &Bound<'_, PyAny>, address: usize, rows: usize, width: usize, stride: isize) -> Self {
        let start = std::ptr::with_exposed_provenance(address);
        RowBytes { start, rows, width, stride, keeper: Keeper::Tensor(owner.clone().unbind(), None) }
    }

    /// Raises if the memory was resized, which frees what was there. Keeps the tensor's storage.
    fn check(&mut self, py: Python<'_>) -> PyResult<()> {
        if let Keeper::Tensor(tensor, kept) = &mut self.keeper {
            let tensor = tensor.bind(py);
            let address: usize = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
            if address != self.start.addr() {
                return Err(resized("tensor's storage"));
            }
            *kept = Some(tensor.call_method0(intern!(py, "untyped_storage"))?.unbind());
        }
        self.check_again(py)
    }

    /// Raises if the memory was resized since the last check.
    fn check_again(&self, py: Python<'_>) -> PyResult<()> {
        match &self.keeper {
            Keeper::Buffer { array: Some((array, address, bytes)), .. }
                if place(array.bind(py))? != (*address, *bytes) =>
            {
                Err(resized("array"))
            }
            Keeper::Tensor(_, Some(storage)) if !self.is_in(storage.bind(py))? => Err(resized("tensor's storage")),
            _ => Ok(()),
        }
    }

    fn is_in(&self, storage: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = storage.py();
        let start: usize = storage.call_method0(intern!(py, "data_ptr"))?.extract()?;
        let bytes: usize = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
        let last = self.rows.saturating_sub(1).saturating_mul(self.stride.unsigned_abs());
        let end = self.start.addr().saturating_add(last).saturating_add(self.width);
        Ok(start <= self.start.addr() && end <= start.saturating_add(bytes))
    }

    /// The address of the first row, and how many follow it without a gap; `None` where they lie apart.
    pub(crate) fn in_one_piece(&self) -> Option<(*const u8, usize)> {
        (self.rows <= 1 || usize::try_from(self.stride) == Ok(self.width)).then_some((self.start, self.rows))
    }

    /// Copies `out.len() / width` rows from row `first` on.
    fn copy(&self, first: usize, out: &mut [u8]) {
        let run = if self.in_one_piece().is_some() { out.len() } else { self.width };
        for (row, out) in out.chunks_exact_mut(run.max(1)).enumerate() {
            let row = isize::try_from(first + row).unwrap_or(isize::MAX);
            // SAFETY: the row, or where rows touch all of them, lies within the buffer; `out` is memory of ours.
            unsafe { std::ptr::copy_nonoverlapping(self.start.offset(row * self.stride), out.as_mut_ptr(), out.len()) };
        }
    }
}
