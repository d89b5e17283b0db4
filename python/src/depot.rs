//! Memory that rows are copied into on their way in, used again and again.

use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use activation_store::Element;
use bytemuck::{Pod, Zeroable};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

/// Loans smaller than this are not worth recycling: zeroing new memory costs less.
const TINY: usize = 4 << 10;

/// Loans smaller than this do not wait: many of them fit the cache.
const SMALL: usize = 64 << 10;

/// So many free ones are looked at, for one that is large enough.
const LOOKED_AT: usize = 8;

/// So many recycled loans may be on their way before the next one waits a moment for one to come back. They fit the cache.
const AHEAD: usize = 4;

/// The moment: long enough for the writer to deal a loan's rows, short enough not to matter where the writer itself waits
/// for the consumer.
const MOMENT: Duration = Duration::from_millis(1);

/// Memory that rows have left, to be used again, so that no page is touched for the first time twice.
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
    /// Loans of recycled memory that are on their way, small ones not counted.
    out: usize,
}

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Depot {
    /// A depot that keeps `keep` bytes, and at least a few loans of `loan` bytes.
    pub(crate) fn new(keep: usize, loan: usize) -> Arc<Self> {
        Arc::new(Depot { state: Mutex::default(), returned: Condvar::new(), keep: keep.max(AHEAD * loan) })
    }

    /// Memory for `bytes`. A `patient` caller waits a moment where much is on its way, until it has waited in vain.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize, patient: &mut bool) -> PyResult<Loan> {
        let mut memory = Vec::new();
        if bytes >= TINY {
            let mut stock = self.lock();
            if bytes >= SMALL {
                if *patient && stock.out >= AHEAD {
                    let waited = self.returned.wait_timeout_while(stock, MOMENT, |stock| stock.out >= AHEAD);
                    let (returned, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    stock = returned;
                    *patient = !timeout.timed_out();
                }
                stock.out += 1;
            }
            // The one returned last is the likeliest to be in cache. A much larger one is left for rows that need it.
            let mut last = stock.free.iter().enumerate().rev().take(LOOKED_AT);
            let fits = |memory: &[Line]| (bytes..=4 * bytes).contains(&size_of_val(memory));
            if let Some((found, _)) = last.find(|(_, memory)| fits(memory)) {
                memory = stock.free.remove(found);
                stock.free_bytes -= size_of_val(&memory[..]);
            }
        }
        let mut loan = Loan { memory, bytes, depot: self.clone() };
        let lines = bytes.div_ceil(size_of::<Line>());
        if loan.memory.len() < lines {
            loan.memory.try_reserve_exact(lines).map_err(|_| no_memory(bytes))?;
            loan.memory.resize(lines, Line::zeroed());
        }
        Ok(loan)
    }

    fn put(&self, memory: Vec<Line>, bytes: usize) {
        if bytes < TINY {
            return;
        }
        let mut stock = self.lock();
        let size = size_of_val(&memory[..]);
        if size > 0 && stock.free_bytes + size <= self.keep {
            stock.free_bytes += size;
            stock.free.push(memory);
        }
        if bytes >= SMALL {
            stock.out -= 1;
            drop(stock);
            self.returned.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That `bytes` cannot be allocated.
pub(crate) fn no_memory(bytes: usize) -> PyErr {
    PyMemoryError::new_err(format!("the rows take {bytes} bytes, which cannot be allocated"))
}

/// Memory of a depot, which goes back there when it is dropped.
pub(crate) struct Loan {
    memory: Vec<Line>,
    bytes: usize,
    depot: Arc<Depot>,
}

impl Loan {
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.memory)[..self.bytes]
    }

    /// The memory as elements, for a batch to own.
    pub(crate) fn elements<T: Element>(self) -> Elements<T> {
        Elements(self, PhantomData)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.depot.put(std::mem::take(&mut self.memory), self.bytes);
    }
}

/// A loan seen as elements.
pub(crate) struct Elements<T>(Loan, PhantomData<T>);

impl<T: Element> AsRef<[T]> for Elements<T> {
    fn as_ref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.0.memory)[..self.0.bytes / size_of::<T>()]
    }
}
