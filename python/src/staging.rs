//! Rows on their way in: one copy into recycled memory, or none where the caller lends its own.

use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use activation_store::{Batch, DType, Element};
use half::{bf16, f16};
use pyo3::buffer::{PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::OrRaise;

/// Rows are copied in pieces of about this size: a piece is dealt, and its memory used again, while it is still in cache.
const PIECE: usize = 512 << 10;

/// Pieces smaller than this are not worth recycling.
const SMALL: usize = 64 << 10;

/// So many bytes may be more than there is memory for.
const LARGE: usize = 1 << 30;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// So many pieces may be on their way before the next one waits a moment for one to come back. They fit the cache.
const AHEAD: usize = 4;

/// The moment: long enough for the writer to deal a piece, short enough not to matter where the writer itself waits for
/// the consumer.
const MOMENT: Duration = Duration::from_millis(1);

/// Memory that staged rows have left, to be used again, so that no page is touched for the first time twice.
pub(crate) struct Depot {
    state: Mutex<Stock>,
    returned: Condvar,
    /// How many bytes are kept.
    keep: usize,
}

#[derive(Default)]
struct Stock {
    free: Vec<Vec<Line>>,
    free_bytes: usize,
    /// Recycled memory that is on its way.
    out: usize,
}

impl Depot {
    pub(crate) fn new(keep: usize) -> Arc<Self> {
        Arc::new(Depot { state: Mutex::default(), returned: Condvar::new(), keep: keep.max(AHEAD * PIECE) })
    }

    /// Memory for `bytes`; `patient` callers wait a moment where much is on its way, until it is in vain.
    fn take(self: &Arc<Self>, bytes: usize, patient: &mut bool) -> PyResult<Loan> {
        let mut memory = Vec::new();
        if bytes >= SMALL {
            let mut stock = self.lock();
            if *patient && stock.out >= AHEAD {
                let waited = self.returned.wait_timeout_while(stock, MOMENT, |stock| stock.out >= AHEAD);
                let (returned, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                stock = returned;
                *patient = !timeout.timed_out();
            }
            stock.out += 1;
            // The one returned last is the likeliest to be in cache.
            if let Some(fits) = stock.free.iter().rposition(|memory| size_of_val(&memory[..]) >= bytes) {
                memory = stock.free.remove(fits);
                stock.free_bytes -= size_of_val(&memory[..]);
            }
        }
        let mut loan = Loan { memory, bytes, depot: self.clone() };
        let lines = bytes.div_ceil(64);
        if loan.memory.len() < lines {
            loan.memory.try_reserve_exact(lines).map_err(|_| no_memory(bytes))?;
            loan.memory.resize(lines, Line([0; 64]));
        }
        Ok(loan)
    }

    fn put(&self, memory: Vec<Line>, bytes: usize) {
        if bytes < SMALL {
            return;
        }
        let mut stock = self.lock();
        stock.out -= 1;
        let size = size_of_val(&memory[..]);
        if size > 0 && stock.free_bytes + size <= self.keep {
            stock.free_bytes += size;
            stock.free.push(memory);
        }
        drop(stock);
        self.returned.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_memory(bytes: usize) -> PyErr {
    PyMemoryError::new_err(format!("the rows take {bytes} bytes, which cannot be allocated"))
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
        self.depot.put(std::mem::take(&mut self.memory), self.bytes);
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
    batch: Mutex<Option<Batch>>,
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

    /// The batch, which can be taken once.
    pub(crate) fn take(&self) -> PyResult<Batch> {
        let batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner).take();
        batch.ok_or_else(|| PyValueError::new_err("these rows have been handed to a store already"))
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

/// Rows of a Python object that are to be copied.
pub(crate) struct Incoming {
    source: Source,
    keep: Option<Vec<u8>>,
    dtype: DType,
    features: usize,
    /// The next row to look at.
    next: usize,
    /// Rows to be copied.
    left: usize,
    /// Whether a piece waits for cache.
    patient: bool,
}

impl Incoming {
    /// `[rows, features]` values of `dtype`, seen as bytes; those where `mask` is zero are left out.
    ///
    /// The buffer must be held until all are copied.
    pub(crate) fn new(
        rows: &Bound<'_, PyAny>,
        dtype: &str,
        features: usize,
        mask: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(Self, PyUntypedBuffer)> {
        let dtype = dtype.parse::<DType>().or_raise()?;
        let row_bytes = features.checked_mul(dtype.size()).ok_or_else(|| PyValueError::new_err("a row is too wide"))?;
        let buffer = PyUntypedBuffer::get(rows)?;
        let source = Source::new(&buffer, row_bytes)?;
        let keep = mask.map(|mask| read_mask(mask, source.rows)).transpose()?;
        let left = keep.as_ref().map_or(source.rows, |keep| keep.iter().filter(|&&keep| keep != 0).count());
        // Rows that share memory may be more than fits: told before any piece of them is taken.
        let bytes = left.checked_mul(row_bytes).ok_or_else(|| no_memory(usize::MAX))?;
        if bytes >= LARGE {
            Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| no_memory(bytes))?;
        }
        Ok((Incoming { source, keep, dtype, features, next: 0, left, patient: true }, buffer))
    }

    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Copies up to `most` rows.
    fn copy(&mut self, depot: &Arc<Depot>, most: usize) -> PyResult<Batch> {
        let rows = self.left.min(most);
        let mut loan = depot.take(rows * self.source.row_bytes, &mut self.patient)?;
        self.source.fill(self.keep.as_deref(), &mut self.next, loan.bytes_mut());
        self.left -= rows;
        with_dtype!(self.dtype, T => Batch::from_owner::<T, _>(Staged(loan, PhantomData), self.features).or_raise())
    }

    /// Copies all rows.
    pub(crate) fn all(&mut self, depot: &Arc<Depot>) -> PyResult<Batch> {
        self.patient = false;
        self.copy(depot, usize::MAX)
    }

    /// Copies the next piece, once there is cache for it.
    pub(crate) fn piece(&mut self, depot: &Arc<Depot>) -> PyResult<Batch> {
        self.copy(depot, (PIECE / self.source.row_bytes.max(1)).max(1))
    }
}

/// Copies rows for a later `extend`.
pub(crate) fn stage(
    depot: &Arc<Depot>,
    rows: &Bound<'_, PyAny>,
    dtype: &str,
    features: usize,
    mask: Option<&Bound<'_, PyAny>>,
) -> PyResult<Rows> {
    let py = rows.py();
    let (mut incoming, buffer) = Incoming::new(rows, dtype, features, mask)?;
    let rows = incoming.left();
    let batch = py.detach(|| incoming.all(depot));
    buffer.release(py);
    Ok(Rows { batch: Mutex::new(Some(batch?)), rows })
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
    Ok(Some(Rows { batch: Mutex::new(Some(batch)), rows: source.rows }))
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
