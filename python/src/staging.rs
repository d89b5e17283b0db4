//! Rows on their way in: one copy into recycled memory, or none where the caller lends its own.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use activation_store::{Batch, DType, Element};
use half::{bf16, f16};
use pyo3::buffer::{PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::OrRaise;

/// Rows are copied in pieces of about this size: a piece is dealt, and its memory used again, while it is still in cache.
const PIECE: usize = 512 << 10;

/// Pieces smaller than this are not worth recycling.
const SMALL: usize = 64 << 10;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Memory that staged rows have left, to be used again, so that no page is touched for the first time twice.
pub(crate) struct Depot {
    free: Mutex<Vec<Vec<Line>>>,
    /// How many pieces are kept.
    keep: usize,
}

impl Depot {
    pub(crate) fn new(keep_bytes: usize) -> Arc<Self> {
        Arc::new(Depot { free: Mutex::default(), keep: (keep_bytes / PIECE).clamp(2, 1024) })
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Loan {
        let recycled =
            if bytes < SMALL { None } else { self.free.lock().unwrap_or_else(PoisonError::into_inner).pop() };
        let memory = recycled.filter(|memory| size_of_val(&memory[..]) >= bytes);
        let memory = memory.unwrap_or_else(|| {
            let bytes = if bytes < SMALL { bytes } else { bytes.max(PIECE) };
            vec![Line([0; 64]); bytes.div_ceil(64)]
        });
        Loan { memory, bytes, depot: self.clone() }
    }

    fn put(&self, memory: Vec<Line>) {
        if size_of_val(&memory[..]) >= SMALL {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < self.keep {
                free.push(memory);
            }
        }
    }
}

/// Memory from a depot, back there when dropped.
struct Loan {
    memory: Vec<Line>,
    bytes: usize,
    depot: Arc<Depot>,
}

impl Loan {
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `memory` is at least `bytes` initialised bytes, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.bytes) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.depot.put(std::mem::take(&mut self.memory));
    }
}

/// A loan seen as elements.
struct Staged<T>(Loan, PhantomData<T>);

impl<T: Element> AsRef<[T]> for Staged<T> {
    fn as_ref(&self) -> &[T] {
        // SAFETY: the memory is initialised and aligned to 64 bytes, and any bits are a valid element (they are sealed:
        // floats and integers).
        unsafe { std::slice::from_raw_parts(self.0.memory.as_ptr().cast(), self.0.bytes / size_of::<T>()) }
    }
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

/// `[rows, bytes of a row]` bytes of a Python object; rows may lie apart.
struct Source {
    start: *const u8,
    rows: usize,
    row_bytes: usize,
    stride: isize,
}

// SAFETY: a source is read while the buffer it came from is held.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    fn new(buffer: &PyUntypedBuffer, row_bytes: usize) -> PyResult<Self> {
        let (&[rows, width], &[stride, 1]) = (buffer.shape(), buffer.strides()) else {
            return Err(PyTypeError::new_err("rows must be a two-dimensional buffer whose last axis is contiguous"));
        };
        if buffer.item_size() != 1 || (width != row_bytes && rows > 0) {
            return Err(PyTypeError::new_err(format!("rows must be bytes, {row_bytes} to a row; got {width}")));
        }
        Ok(Source { start: buffer.buf_ptr().cast_const().cast(), rows, row_bytes, stride })
    }

    fn is_contiguous(&self) -> bool {
        self.rows <= 1 || usize::try_from(self.stride) == Ok(self.row_bytes)
    }

    /// Copies `out.len() / row_bytes` rows from row `first` on.
    fn copy(&self, first: usize, out: &mut [u8]) {
        let run = if self.is_contiguous() { out.len() } else { self.row_bytes };
        for (row, out) in out.chunks_exact_mut(run.max(1)).enumerate() {
            let row = isize::try_from(first + row).unwrap_or(isize::MAX);
            // SAFETY: the row, or where rows touch all of them, lies within the buffer; `out` is memory of ours.
            unsafe { std::ptr::copy_nonoverlapping(self.start.offset(row * self.stride), out.as_mut_ptr(), out.len()) };
        }
    }

    /// Fills `out` with the rows from `next` on that `keep` lets through.
    fn fill(&self, keep: Option<&[u8]>, next: &mut usize, out: &mut [u8]) {
        let mut filled = 0;
        while filled < out.len() {
            let most = (out.len() - filled) / self.row_bytes;
            let run = match keep {
                None => most,
                Some(keep) => {
                    *next += keep[*next..].iter().take_while(|&&keep| keep == 0).count();
                    keep[*next..].iter().take(most).take_while(|&&keep| keep != 0).count()
                }
            };
            self.copy(*next, &mut out[filled..][..run * self.row_bytes]);
            *next += run;
            filled += run * self.row_bytes;
        }
    }
}

/// Rows ready to be handed to a store.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Rows {
    batches: Mutex<Vec<Batch>>,
    rows: usize,
}

#[pymethods]
impl Rows {
    /// How many rows.
    fn __len__(&self) -> usize {
        self.rows
    }
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// The batches, which can be taken once.
    pub(crate) fn take(&self) -> PyResult<Vec<Batch>> {
        let batches = std::mem::take(&mut *self.batches.lock().unwrap_or_else(PoisonError::into_inner));
        if batches.is_empty() {
            Err(PyValueError::new_err("these rows have been handed to a store already"))
        } else {
            Ok(batches)
        }
    }
}

/// Runs `$call` with `$T` as the element type.
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $call:expr) => {
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $call
            }
            DType::F16 => {
                type $T = f16;
                $call
            }
            DType::BF16 => {
                type $T = bf16;
                $call
            }
            DType::U32 => {
                type $T = u32;
                $call
            }
            DType::I64 => {
                type $T = i64;
                $call
            }
            other => Err(PyTypeError::new_err(format!("{other} rows are not supported here"))),
        }
    };
}

/// Copies `[rows, features]` values of `dtype`, seen as bytes, keeping the rows where `mask` is not zero.
pub(crate) fn stage(
    py: Python<'_>,
    depot: &Arc<Depot>,
    rows: &Bound<'_, PyAny>,
    dtype: DType,
    features: usize,
    mask: Option<&Bound<'_, PyAny>>,
    in_pieces: bool,
) -> PyResult<Rows> {
    let row_bytes = features.checked_mul(dtype.size()).ok_or_else(|| PyValueError::new_err("a row is too wide"))?;
    let buffer = PyUntypedBuffer::get(rows)?;
    let source = Source::new(&buffer, row_bytes)?;
    let mask = mask.map(|mask| read_mask(mask, source.rows)).transpose()?;
    let rows_per_piece = if in_pieces { (PIECE / row_bytes.max(1)).max(1) } else { usize::MAX };
    let batches = py.detach(|| {
        let keep = mask.as_deref();
        let mut left = keep.map_or(source.rows, |keep| keep.iter().filter(|&&keep| keep != 0).count());
        let (mut next, mut batches, total) = (0, Vec::with_capacity(left.div_ceil(rows_per_piece)), left);
        while left > 0 || batches.is_empty() {
            let rows = left.min(rows_per_piece);
            let mut loan = depot.take(rows * row_bytes);
            source.fill(keep, &mut next, loan.bytes_mut());
            batches.push(
                with_dtype!(dtype, T => Batch::from_owner::<T, _>(Staged(loan, PhantomData), features).or_raise())?,
            );
            left -= rows;
        }
        Ok::<_, PyErr>((batches, total))
    });
    buffer.release(py);
    let (batches, rows) = batches?;
    Ok(Rows { batches: Mutex::new(batches), rows })
}

/// Takes `[rows, features]` values of `dtype`, seen as bytes, without a copy: `rows` keeps the memory alive, and the caller
/// keeps it unchanged. None where the layout does not allow that.
#[pyfunction]
pub(crate) fn lend(rows: &Bound<'_, PyAny>, dtype: &str, features: usize) -> PyResult<Option<Rows>> {
    let dtype = dtype.parse::<DType>().or_raise()?;
    let row_bytes = features.checked_mul(dtype.size()).ok_or_else(|| PyValueError::new_err("a row is too wide"))?;
    let buffer = PyUntypedBuffer::get(rows)?;
    let source = Source::new(&buffer, row_bytes)?;
    buffer.release(rows.py());
    if source.rows == 0 || !source.is_contiguous() || source.start.addr() % dtype.size() != 0 {
        return Ok(None);
    }
    let batch = with_dtype!(dtype, T => {
        let lent = Lent::<T> { start: source.start.cast(), len: source.rows * features, _object: rows.clone().unbind() };
        Batch::from_owner(lent, features).or_raise()
    })?;
    Ok(Some(Rows { batches: Mutex::new(vec![batch]), rows: source.rows }))
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
