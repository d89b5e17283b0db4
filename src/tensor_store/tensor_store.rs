//! A store of fixed size that you fill, shuffle, index and loop over.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use crossbeam_channel::{Sender, bounded, unbounded};
use ndarray::ArrayD;

use crate::dealing::random::{Generator, shuffle};
use crate::memory::convert::{RowReader, widen};
use crate::memory::copy::{RowCopier, STREAMED};
use crate::memory::frame::Frame;
use crate::ring_store::builder::{components, not_zero};
use crate::rows::batch::{Batch, Refused, RefusedPass, one_row};
use crate::rows::build_error::BuildError;
use crate::rows::closed::ClosedBy;
use crate::rows::element::DType;
use crate::rows::error::WriteError;
use crate::rows::full::{NoRoom, StoreFullError};
use crate::rows::index::Index;
use crate::rows::index::IndexError;
use crate::rows::layout::{Component, ComponentKey, Layout};
use crate::rows::pass::{WholePass, check};
use crate::rows::values::ValueCounts;
use crate::store::ActivationStore;
use crate::tensor_store::builder::TensorStoreBuilder;
use crate::tensor_store::epoch::Epoch;
use crate::tensor_store::rows::{Data, Tensor};
use crate::tensor_store::writer::{Message, TensorWriter};
use crate::waiting::handle::{WriteHandle, Written};
use crate::waiting::thread;
use crate::waiting::wait::lock;

/// Holds up to `max_items` rows of each component. You can loop over the rows for several epochs.
///
/// A background writer does the writes. Every read first waits for the writes handed over before, so the read sees them.
/// A clone is another handle to the same store.
///
/// ```
/// use activation_store::TensorStore;
/// use ndarray::Array2;
///
/// let store = TensorStore::builder().component("mlp", 8).max_items(100).seed(1).build()?;
/// store.extend(Array2::<f32>::ones((90, 8)), "mlp")?;
/// let full = store.extend(Array2::<f32>::ones((20, 8)), "mlp").unwrap_err(); // nothing is changed
/// assert!(full.error.is_full());
/// for _epoch in 0..3 {
///     let sizes: Vec<usize> = store.epoch(32)?.map(|minibatch| minibatch.rows()).collect();
///     assert_eq!(sizes, [32, 32, 26]);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct TensorStore {
    queue: Sender<Message>,
    tensor: Arc<Tensor>,
}

impl TensorStoreBuilder {
    /// Builds the store. Returns at once, because the operating system provides the memory as rows come.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that is wrong, and what would work.
    pub fn build(self) -> Result<TensorStore, BuildError> {
        not_zero("max_items", self.max_items)?;
        let (value, limit) = (self.max_items, u32::MAX as usize);
        if value > limit {
            return Err(BuildError::TooMany { what: "max_items", value, limit });
        }
        let layout = Arc::new(Layout::new(&components(self.components, self.dtype), self.max_items)?);
        let rows = Frame::allocate_one(&layout, "max_items rows")?;
        let tensor = Arc::new(Tensor {
            data: RwLock::new(Data {
                rows,
                stored: vec![0; layout.n_components()],
                values: vec![Default::default(); layout.n_components()],
                order: (0..self.max_items as u32).collect(),
                rng: Generator::new(self.seed),
                generation: 0,
            }),
            handed: Mutex::new(vec![0; layout.n_components()]),
            pending: AtomicUsize::new(0),
            poison: OnceLock::new(),
            layout,
        });
        let (sender, queue) = unbounded();
        let readers = tensor.layout.components().iter().map(|component| RowReader::new(component.dtype)).collect();
        thread::start(TensorWriter { queue, tensor: tensor.clone(), readers, answering: None })?;
        Ok(TensorStore { queue: sender, tensor })
    }
}

impl TensorStore {
    /// Configures a store.
    pub fn builder() -> TensorStoreBuilder {
        TensorStoreBuilder::default()
    }

    /// Hands over a batch, `[rows, features]`, of a component, and returns at once.
    ///
    /// # Errors
    /// [`Refused`] gives the batch back if the component, the number of features or the element type is wrong, if the store is
    /// poisoned, or if not all rows fit ([`WriteError::Full`]). The store then stays as it was.
    ///
    /// # Blocking
    /// Waits only while [`extend_blocking`](Self::extend_blocking) copies rows on another thread.
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        let (component, batch) = check(&self.tensor.layout, component, batch.into())?;
        let mut handed = lock(&self.tensor.handed);
        match self.check_room(&handed, component, batch.rows()) {
            Ok(()) => self.send(&mut handed, component, batch),
            Err(error) => {
                drop(handed);
                Err(Refused { error, batch })
            }
        }
    }

    /// Stores a batch, `[rows, features]`, of a component, and returns when the rows are in the store.
    ///
    /// Copies the rows on this thread. For small batches, this is much faster than to wait for the background writer.
    ///
    /// ```
    /// use activation_store::TensorStore;
    /// use ndarray::Array2;
    ///
    /// let store = TensorStore::builder().component("mlp", 8).max_items(100).build()?;
    /// let written = store.extend_blocking(Array2::<f32>::ones((90, 8)), "mlp")?;
    /// assert_eq!((written.rows, written.first_row), (90, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`extend`](Self::extend).
    ///
    /// # Blocking
    /// Waits for the writes handed over before, and for reads that are under way. Other writers wait while the call copies the rows. So
    /// the owner of the batch must not call this store while its rows are read: it would wait for itself.
    pub fn extend_blocking(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<Written, Refused> {
        let (component, batch) = check(&self.tensor.layout, component, batch.into())?;
        loop {
            let mut handed = lock(&self.tensor.handed);
            if let Err(error) = self.check_room(&handed, component, batch.rows()) {
                drop(handed);
                return Err(Refused { error, batch });
            }
            if self.tensor.pending.load(Ordering::SeqCst) == 0 {
                let mut reader = RowReader::new(self.components()[component].dtype);
                let written = Written { rows: batch.rows(), first_row: handed[component] as u64 };
                let said = self.tensor.take_in(&mut reader, component, handed[component], &batch);
                handed[component] += written.rows;
                drop(handed);
                said.say(&self.components()[component]);
                return Ok(written);
            }
            drop(handed);
            if !self.settle() {
                let error = self.check_poison().err().unwrap_or(ClosedBy::Close.into());
                return Err(Refused { error, batch });
            }
        }
    }

    /// Hands over the rows of all components that one forward pass produced, and returns at once. The store takes the whole pass or
    /// nothing.
    ///
    /// `pass` has every component exactly once, in any order. All batches, `[rows, features]`, have the same number of rows.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back in these cases:
    ///
    /// - [`extend`](Self::extend) would refuse one of the batches.
    /// - A component is missing ([`WriteError::PassLacks`]), is there twice ([`WriteError::PassDoubles`]), or has another number of
    ///   rows ([`WriteError::PassRows`]).
    /// - The store has more rows of one component than of another ([`WriteError::Uneven`]).
    ///
    /// # Blocking
    /// Same as [`extend`](Self::extend).
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = WholePass::new(&self.tensor.layout, pass)?;
        let mut handed = lock(&self.tensor.handed);
        if let Err(error) = self.check_pass(&handed, pass.rows()) {
            drop(handed);
            return Err(pass.refused(error));
        }
        let mut handles = Vec::with_capacity(handed.len());
        for (component, batch) in pass.into_batches().into_iter().enumerate() {
            // The writer cannot end while this call holds the lock, so it takes what was checked.
            handles.push(
                self.send(&mut handed, component, batch)
                    .unwrap_or_else(|refused| WriteHandle::ready(Err(refused.error))),
            );
        }
        Ok(WriteHandle::all(handles))
    }

    fn check_pass(&self, handed: &[usize], rows: usize) -> Result<(), WriteError> {
        (0..handed.len()).try_for_each(|component| self.check_room(handed, component, rows))?;
        let most = (0..handed.len()).max_by_key(|&component| handed[component]).unwrap_or(0);
        let fewest = (0..handed.len()).min_by_key(|&component| handed[component]).unwrap_or(0);
        if handed[most] != handed[fewest] {
            let (layout, by) = (&self.tensor.layout, (handed[most] - handed[fewest]) as u64);
            return Err(WriteError::Uneven { ahead: layout.name(most), missing: layout.name(fewest), by });
        }
        Ok(())
    }

    /// Checks that the store can take so many rows of a component.
    fn check_room(&self, handed: &[usize], component: usize, rows: usize) -> Result<(), WriteError> {
        self.check_poison()?;
        let (layout, held, bound) = (&self.tensor.layout, handed[component], self.tensor.layout.rows());
        if rows > bound - held {
            return Err(StoreFullError::store(NoRoom { component: layout.name(component), rows, held, bound }).into());
        }
        Ok(())
    }

    fn check_poison(&self) -> Result<(), WriteError> {
        self.poison().map_or(Ok(()), |cause| Err(WriteError::Poisoned { cause }))
    }

    fn poison(&self) -> Option<Arc<str>> {
        self.tensor.poison.get().cloned()
    }

    /// Sends a batch that was checked.
    fn send(&self, handed: &mut [usize], component: usize, batch: Batch) -> Result<WriteHandle, Refused> {
        let (first, rows) = (handed[component], batch.rows());
        let (reply, handle) = WriteHandle::pending();
        self.tensor.pending.fetch_add(1, Ordering::SeqCst);
        match self.queue.send(Message::Write { component, first, batch, reply }) {
            Ok(()) => {
                handed[component] += rows;
                Ok(handle)
            }
            Err(unsent) => match unsent.into_inner() {
                Message::Write { batch, .. } => {
                    let error = self.check_poison().err().unwrap_or(ClosedBy::Close.into());
                    Err(Refused { error, batch })
                }
                _ => Ok(handle),
            },
        }
    }

    /// Hands over one row of a component and returns at once. See [`extend`](Self::extend).
    ///
    /// # Errors
    /// Same as [`extend`](Self::extend), and [`WriteError::NotOneRow`] if `row` is not one row.
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.extend(one_row(row.into())?, component)
    }

    /// Waits until everything sent before is done. Returns false if the writer ended first.
    fn settle(&self) -> bool {
        if self.tensor.pending.load(Ordering::SeqCst) == 0 {
            return true;
        }
        let (done, settled) = bounded(1);
        // An error means that the writer is poisoned: it panicked, or there was no thread for it. Reads report that.
        self.queue.send(Message::Settle(done)).is_ok() && settled.recv().is_ok()
    }

    /// Returns the components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.tensor.layout.components()
    }

    /// Returns how many rows of each component the store can hold.
    #[must_use]
    pub fn max_items(&self) -> usize {
        self.tensor.layout.rows()
    }

    /// Returns how many rows are stored of every component: the minimum over the components.
    ///
    /// # Blocking
    /// Waits for the writes handed over before.
    #[must_use]
    pub fn len(&self) -> usize {
        self.settle();
        self.tensor.read().len()
    }

    /// Returns how many rows of each component had values that were not finite, or became infinite, since the store was built.
    ///
    /// ```
    /// use activation_store::{DType, TensorStore};
    /// use ndarray::array;
    ///
    /// let store = TensorStore::builder().component("mlp", 2).dtype(DType::F16).max_items(10).build()?;
    /// store.extend(array![[1.0_f32, 70_000.0], [f32::NAN, 0.0], [1.0, 2.0]], "mlp")?;
    /// let counts = store.value_counts()[0];
    /// assert_eq!((counts.overflowed, counts.not_finite), (1, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// Waits for the writes handed over before.
    #[must_use]
    pub fn value_counts(&self) -> Vec<ValueCounts> {
        self.settle();
        self.tensor.read().values.iter().map(|(counts, _)| *counts).collect()
    }

    /// Returns whether [`len`](Self::len) is 0.
    ///
    /// # Blocking
    /// Waits for the writes handed over before.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Discards all rows. Epochs that are under way end.
    ///
    /// # Blocking
    /// Blocks until the writer has done the writes handed over before and has discarded the rows.
    pub fn empty(&self) {
        let (done, emptied) = bounded(1);
        let sent = {
            // The request goes through the queue like the writes, so no thread waits for the writer while it holds this lock.
            let mut handed = lock(&self.tensor.handed);
            handed.fill(0);
            self.tensor.pending.fetch_add(1, Ordering::SeqCst);
            self.queue.send(Message::Empty(done))
        };
        if sent.is_err() || emptied.recv().is_err() {
            // The writer has ended: it panicked, or there was no thread for it.
            self.tensor.write().clear();
        }
    }

    /// Puts the rows in a random order. Permutes an index, so the cost does not depend on the width of the rows.
    ///
    /// # Blocking
    /// Waits for the writes handed over before, and for reads that are under way.
    pub fn shuffle(&self) {
        self.settle();
        let data = &mut *self.tensor.write();
        let len = data.len();
        shuffle(&mut data.order[..len], &mut data.rng);
    }

    /// Returns the values at an index as `f32`. The axes are row, component and feature.
    ///
    /// # Errors
    /// [`IndexError`] if the index is past the end (of the rows: [`len`](Self::len)), if the components hold integers or differ in width,
    /// or if the store is poisoned.
    ///
    /// # Blocking
    /// Waits for the writes handed over before.
    pub fn get(&self, index: impl Into<Index>) -> Result<ArrayD<f32>, IndexError> {
        self.settle();
        if let Some(cause) = self.poison() {
            return Err(IndexError::Poisoned { cause });
        }
        let data = self.tensor.read();
        index.into().select(data.len(), &self.tensor.layout.widths(), |row, component, out| {
            let row = data.rows.row(component, data.order[row] as usize);
            widen(row, component, self.components()[component].dtype, out)
        })
    }

    /// Copies rows into `out` as `f32`, `[row, component, feature]`. You can name any rows, in any order, more than once.
    ///
    /// This is much faster than [`get`](Self::get) for rows that do not follow one another.
    ///
    /// ```
    /// use activation_store::TensorStore;
    /// use ndarray::Array2;
    ///
    /// let store = TensorStore::builder().component("mlp", 2).max_items(10).build()?;
    /// store.extend(Array2::from_shape_fn((10, 2), |(row, _)| row as f32), "mlp")?;
    /// let mut rows = [0.0; 3 * 2];
    /// store.gather(&[7, 0, 7], &mut rows)?;
    /// assert_eq!(rows, [7.0, 7.0, 0.0, 0.0, 7.0, 7.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`IndexError`] if a row is past [`len`](Self::len), if the components hold integers or differ in width, or if the store is
    /// poisoned. After an error, `out` may hold some of the rows.
    ///
    /// # Panics
    /// Panics if the length of `out` is not the number of `rows` times the number of components times their features.
    ///
    /// # Blocking
    /// Waits for the writes handed over before.
    pub fn gather(&self, rows: &[usize], out: &mut [f32]) -> Result<(), IndexError> {
        self.settle();
        if let Some(cause) = self.poison() {
            return Err(IndexError::Poisoned { cause });
        }
        let (layout, data) = (&self.tensor.layout, self.tensor.read());
        let width = layout.one_width()?;
        let n_components = layout.n_components();
        assert_eq!(out.len(), rows.len() * n_components * width, "out has the length of the rows");
        let len = data.len();
        if let Some(&row) = rows.iter().find(|&&row| row >= len) {
            return Err(IndexError::OutOfRange { axis: "row", index: isize::try_from(row).unwrap_or(isize::MAX), len });
        }
        let blocks: Vec<_> = (0..n_components).map(|component| data.rows.rows_of(component)).collect();
        let row = |i: usize| blocks[i % n_components](data.order[rows[i / n_components]] as usize);
        if self.components().iter().all(|component| component.dtype == DType::F32) {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
            RowCopier::new(bytes.len() >= STREAMED).gather(bytes, width * size_of::<f32>(), row);
            return Ok(());
        }
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let component = i % n_components;
            widen(row(i), component, self.components()[component].dtype, out)?;
        }
        Ok(())
    }

    /// Loops once over the rows that are stored now, in a new random order. A minibatch has `batch_size` rows. The last one may have
    /// fewer.
    ///
    /// # Errors
    /// [`BuildError`] if `batch_size` is 0, if there is no memory for two minibatches, or if the store is poisoned.
    ///
    /// # Panics
    /// The iterator panics if you keep all earlier minibatches and there is no memory for another.
    ///
    /// # Blocking
    /// Waits for the writes handed over before, and for reads that are under way. The iterator waits while a write is under way.
    pub fn epoch(&self, batch_size: usize) -> Result<Epoch, BuildError> {
        not_zero("batch_size", batch_size)?;
        self.settle();
        if let Some(cause) = self.poison() {
            return Err(BuildError::Poisoned { cause });
        }
        Epoch::new(self.tensor.clone(), batch_size)
    }
}

impl ActivationStore for TensorStore {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        TensorStore::extend(self, batch, component)
    }

    fn extend_pass(&self, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
        TensorStore::extend_pass(self, pass)
    }

    fn empty(&self) {
        TensorStore::empty(self);
    }

    fn n_components(&self) -> usize {
        self.components().len()
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        self.settle();
        self.tensor.read().stored.clone()
    }

    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        TensorStore::get(self, index)
    }

    fn shuffle(&self) {
        TensorStore::shuffle(self);
    }
}

impl fmt::Debug for TensorStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorStore").field("layout", &self.tensor.layout).finish_non_exhaustive()
    }
}
