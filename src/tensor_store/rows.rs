//! The rows of a store of fixed size, and the order they are in.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::dealing::random::Generator;
use crate::memory::convert::RowReader;
use crate::memory::copy::{RowCopier, STREAMED, Slots};
use crate::memory::frame::Frame;
use crate::rows::batch::Batch;
use crate::rows::layout::Layout;
use crate::rows::values::{Said, ValueCounts};

/// The state that the handles and the writer share.
pub(crate) struct Tensor {
    pub(crate) layout: Arc<Layout>,
    pub(crate) data: RwLock<Data>,
    /// Rows handed over of each component. A call keeps the lock while it sends, so writes are sent in the order of their rows.
    pub(crate) handed: Mutex<Vec<usize>>,
    /// How many writes and requests to empty the store have been sent and are not done yet.
    pub(crate) pending: AtomicUsize,
    /// The message of the panic that ended the writer. The writer sets it before it locks `handed` for the last time.
    pub(crate) poison: OnceLock<Arc<str>>,
}

pub(crate) struct Data {
    /// `max_items` rows of each component.
    pub(crate) rows: Frame,
    /// How many rows of each component are stored.
    pub(crate) stored: Vec<usize>,
    /// The place in `rows` of each row number.
    pub(crate) order: Vec<u32>,
    pub(crate) rng: Generator,
    /// The rows of each component whose values are not finite or overflowed, and what has been said of them. They stay when the store is
    /// emptied.
    pub(crate) values: Vec<(ValueCounts, Said)>,
    /// Counts how often the store was emptied.
    pub(crate) generation: u64,
}

impl Tensor {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Data> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Data> {
        self.data.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the rows of a batch from row `first` on. Returns what is to be said of their values, once no lock is held.
    pub(crate) fn take_in(&self, reader: &mut RowReader, component: usize, first: usize, batch: &Batch) -> Said {
        let (rows, width) = (batch.rows(), self.layout.row_bytes(component));
        let mut data = self.write();
        let copier = RowCopier::new(rows * width >= STREAMED);
        reader.copy(batch, 0..rows, &copier, &mut Following { frame: &mut data.rows, component, first });
        data.stored[component] = first + rows;
        let (counts, said) = &mut data.values[component];
        *counts += reader.take_counts();
        said.note(*counts)
    }
}

impl Data {
    pub(crate) fn len(&self) -> usize {
        self.stored.iter().copied().min().unwrap_or(0)
    }

    pub(crate) fn clear(&mut self) {
        self.stored.fill(0);
        self.generation += 1;
        for (place, at) in self.order.iter_mut().zip(0..) {
            *place = at;
        }
    }
}

/// The slots from `first` on, in sequence.
struct Following<'a> {
    frame: &'a mut Frame,
    component: usize,
    first: usize,
}

impl Slots for Following<'_> {
    #[inline]
    fn slot(&mut self, i: usize) -> &mut [u8] {
        self.frame.row_mut(self.component, self.first + i)
    }
}
