//! Minibatches on their way out: their memory as Python buffers, without a copy.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use activation_store::{DType, Element, Minibatch as Frame};
use half::{bf16, f16};
use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, ffi};

use crate::errors::OrRaise;
use crate::process::Home;

/// A minibatch that has been taken apart into blocks of memory. Its frame goes back to the store with the last of them.
struct Blocks {
    start: Vec<NonNull<u8>>,
    bytes: Vec<usize>,
    _frame: Home<Frame>,
}

// SAFETY: the blocks are memory of the frame, which has no thread affinity; nothing in Rust touches them before the frame
// goes back, and Python's threads share them as they share any buffer.
unsafe impl Send for Blocks {}
// SAFETY: as above.
unsafe impl Sync for Blocks {}

/// Rows of every component.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Minibatch {
    blocks: Arc<Blocks>,
    rows: usize,
    /// Elements between two components, where all have one width and element type.
    stride: Option<usize>,
}

impl Minibatch {
    pub(crate) fn new(mut frame: Frame) -> PyResult<Self> {
        let rows = frame.rows();
        let dtypes: Vec<DType> = frame.components().iter().map(|component| component.dtype).collect();
        let (mut start, mut bytes) = (Vec::new(), Vec::new());
        for (component, dtype) in dtypes.into_iter().enumerate() {
            let (block, len) = match dtype {
                DType::F32 => block::<f32>(&mut frame, component)?,
                DType::F16 => block::<f16>(&mut frame, component)?,
                DType::BF16 => block::<bf16>(&mut frame, component)?,
                DType::U32 => block::<u32>(&mut frame, component)?,
                DType::I64 => block::<i64>(&mut frame, component)?,
                other => return Err(PyBufferError::new_err(format!("{other} has no buffer format"))),
            };
            start.push(block);
            bytes.push(len);
        }
        let stride = stride(&frame, &start);
        Ok(Minibatch { blocks: Arc::new(Blocks { start, bytes, _frame: Home::new(frame) }), rows, stride })
    }
}

fn block<T: Element>(frame: &mut Frame, component: usize) -> PyResult<(NonNull<u8>, usize)> {
    let mut view = frame.view_mut::<T>(component).or_raise()?;
    let bytes = view.len() * size_of::<T>();
    Ok((NonNull::new(view.as_mut_ptr().cast()).unwrap_or(NonNull::dangling()), bytes))
}

/// The distance between components in elements, where the frame can be seen as `[row, component, feature]`.
fn stride(frame: &Frame, start: &[NonNull<u8>]) -> Option<usize> {
    let first = frame.components().first()?;
    let alike = frame.components().iter().all(|other| (other.features, other.dtype) == (first.features, first.dtype));
    let second = start.get(1).or(start.first())?;
    alike.then(|| (second.addr().get() - start[0].addr().get()) / first.dtype.size())
}

#[pymethods]
impl Minibatch {
    #[getter]
    fn rows(&self) -> usize {
        self.rows
    }

    /// Elements from one component's block to the next; None where the components differ.
    #[getter]
    fn stride(&self) -> Option<usize> {
        self.stride
    }

    /// The memory of a component's rows.
    fn block(&self, component: usize) -> PyResult<Block> {
        let blocks = &self.blocks;
        match (blocks.start.get(component), blocks.bytes.get(component)) {
            (Some(&start), Some(&bytes)) => Ok(Block { start, bytes, _blocks: blocks.clone() }),
            _ => Err(PyIndexError::new_err(format!(
                "there is no component {component}; there are {}",
                blocks.start.len()
            ))),
        }
    }

    /// The memory from the first component's block to the end of the last one's.
    fn span(&self) -> PyResult<Block> {
        let mut whole = self.block(0)?;
        if let (Some(last), Some(bytes)) = (self.blocks.start.last(), self.blocks.bytes.last()) {
            whole.bytes = last.addr().get() + bytes - whole.start.addr().get();
        }
        Ok(whole)
    }
}

/// Memory of a minibatch, as a writable buffer of bytes. Keeps the frame from the store while it lives.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Block {
    start: NonNull<u8>,
    bytes: usize,
    _blocks: Arc<Blocks>,
}

// SAFETY: see `Blocks`, which it keeps alive.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

#[pymethods]
impl Block {
    fn __len__(&self) -> usize {
        self.bytes
    }

    /// # Safety
    /// Called by the interpreter, with a `view` to be filled.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let block = slf.get();
        let bytes = ffi::Py_ssize_t::try_from(block.bytes).map_err(|_| PyBufferError::new_err("too large"))?;
        // SAFETY: the memory outlives `slf`, to which the view holds a reference.
        let failed =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), block.start.as_ptr().cast(), bytes, 0, flags) };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    fn __traverse__(&self, _visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        Ok(())
    }
}
