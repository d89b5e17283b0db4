//! A producer: its lane checks batches and hands them to the writer.

use std::fmt;
use std::sync::Arc;

use ndarray::ArrayD;

use crate::ring_store::core::Shared;
use crate::ring_store::pass::Pass;
use crate::ring_store::reserve::{LaneHandle, Reserve};
use crate::ring_store::room::NoRoomThen;
use crate::rows::batch::{Batch, Refused, RefusedPass, one_row};
use crate::rows::error::WriteError;
use crate::rows::index::{Index, IndexError};
use crate::rows::layout::ComponentKey;
use crate::rows::names::UnknownComponent;
use crate::store::ActivationStore;
use crate::waiting::handle::WriteHandle;

/// A lane of its own into a [`RingStore`](crate::RingStore): for one model replica, or one thread of capture.
///
/// On one lane, row r of every component belongs to the same token. So two replicas that write at the same time each need a lane.
/// A producer has the same methods for writing as the store, which is a lane, too. The store's methods have the full
/// documentation. Dropping the producer ends the lane.
///
/// ```
/// use activation_store::RingStore;
/// use ndarray::Array2;
///
/// let store = RingStore::builder().component("attn", 4).component("mlp", 4).batch_size(8).window(32).build()?;
/// let replicas: Vec<_> = (0..2).map(|_| store.producer()).collect::<Result<_, _>>()?;
/// std::thread::scope(|scope| {
///     for producer in &replicas {
///         scope.spawn(|| {
///             let rows = || Array2::<f32>::ones((8, 4));
///             producer.extend_pass([("attn", rows()), ("mlp", rows())]).unwrap().wait().unwrap();
///         });
///     }
/// });
/// assert_eq!(store.len(), 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Producer {
    lane: LaneHandle,
    keeps_open: Arc<KeepsOpen>,
}

/// Keeps a store open. Dropping the last one closes the store.
pub(crate) struct KeepsOpen(pub(crate) Arc<Shared>);

impl Drop for KeepsOpen {
    fn drop(&mut self) {
        self.0.remove_producers();
    }
}

impl Producer {
    /// Makes the producer of a store's own lane.
    pub(crate) fn of_store(shared: Arc<Shared>) -> Self {
        Producer { lane: LaneHandle { shared: shared.clone(), id: 0 }, keeps_open: Arc::new(KeepsOpen(shared)) }
    }

    /// Opens another lane of the store.
    pub(crate) fn open_another(&self, name: Option<Arc<str>>) -> Result<Self, WriteError> {
        let shared = self.lane.shared.clone();
        let id = shared.open_lane(name)?;
        Ok(Producer { lane: LaneHandle { shared, id }, keeps_open: self.keeps_open.clone() })
    }

    pub(crate) fn keeps_open(&self) -> &Arc<KeepsOpen> {
        &self.keeps_open
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.lane.shared
    }

    /// Works as [`RingStore::extend`](crate::RingStore::extend), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::extend`](crate::RingStore::extend).
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane.component(self.lane.check(batch.into(), component)?, NoRoomThen::LineUp)
    }

    /// Works as [`RingStore::try_extend`](crate::RingStore::try_extend), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::try_extend`](crate::RingStore::try_extend).
    pub fn try_extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane.component(self.lane.check(batch.into(), component)?, NoRoomThen::Refuse)
    }

    /// Works as [`RingStore::extend_blocking`](crate::RingStore::extend_blocking), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::extend_blocking`](crate::RingStore::extend_blocking).
    ///
    /// # Blocking
    /// As [`RingStore::extend_blocking`](crate::RingStore::extend_blocking).
    pub fn extend_blocking(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<(), Refused> {
        self.lane.component_blocking(self.lane.check(batch.into(), component)?).map(drop)
    }

    /// Works as [`RingStore::append`](crate::RingStore::append), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::append`](crate::RingStore::append).
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.extend(one_row(row.into())?, component)
    }

    /// Works as [`RingStore::extend_pass`](crate::RingStore::extend_pass), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::extend_pass`](crate::RingStore::extend_pass).
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.gather(pass)?.commit()
    }

    /// Works as [`RingStore::try_extend_pass`](crate::RingStore::try_extend_pass), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::try_extend_pass`](crate::RingStore::try_extend_pass).
    pub fn try_extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.gather(pass)?.try_commit()
    }

    /// Works as [`RingStore::extend_pass_blocking`](crate::RingStore::extend_pass_blocking), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::extend_pass_blocking`](crate::RingStore::extend_pass_blocking).
    ///
    /// # Blocking
    /// As [`RingStore::extend_pass_blocking`](crate::RingStore::extend_pass_blocking).
    pub fn extend_pass_blocking<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<(), RefusedPass> {
        self.gather(pass)?.commit_blocking()
    }

    fn gather<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<Pass, RefusedPass> {
        Pass::of(self.lane.clone(), pass)
    }

    /// Works as [`RingStore::begin_pass`](crate::RingStore::begin_pass), on this lane.
    pub fn begin_pass(&self) -> Pass {
        Pass::new(self.lane.clone())
    }

    /// Works as [`RingStore::reserve`](crate::RingStore::reserve), on this lane.
    ///
    /// # Errors
    /// As [`RingStore::reserve`](crate::RingStore::reserve).
    pub fn reserve(&self, component: impl ComponentKey, rows: usize) -> Result<Reserve, UnknownComponent> {
        let component = self.shared().config.layout.find(component)?;
        Ok(self.lane.reserve(Some(component), rows))
    }

    /// Works as [`RingStore::reserve_pass`](crate::RingStore::reserve_pass), on this lane.
    pub fn reserve_pass(&self, rows: usize) -> Reserve {
        self.lane.reserve(None, rows)
    }

    /// Tells a resumed store that you send this lane again from its first row, instead of from the row that
    /// [`resume_at`](crate::RingStore::resume_at) gives. The store skips the rows that it does not need, and counts them as resent.
    ///
    /// Use this for a capture that cannot start in the middle. Call it before the first write.
    ///
    /// # Errors
    /// [`WriteError::LaneStarted`] if you have written rows. [`WriteError::Closed`] if the lane has ended, or the store is closed.
    /// [`WriteError::Poisoned`] if the writer panicked.
    pub fn send_again(&self) -> Result<(), WriteError> {
        self.shared().send_again(self.lane.id)
    }

    /// Whether the lane takes no more rows: it has ended, or its store is closed, aborted or poisoned. Does not wait.
    ///
    /// ```
    /// use activation_store::RingStore;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let (first, second) = (store.producer()?, store.producer()?);
    /// first.close();
    /// assert!(first.is_closed() && !second.is_closed());
    /// store.close();
    /// assert!(second.is_closed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let state = self.shared().lock();
        !state.status.is_open() || state.books.check(self.lane.id, None, 0).is_err_and(|error| error.is_closed())
    }

    /// Ends the lane: the lane takes no more rows. Returns at once.
    ///
    /// The store drops the lane's rows whose counterparts in another component have not come by then.
    /// [`RingStore::stats`](crate::RingStore::stats) counts these rows, and [`RingStore::flush`](crate::RingStore::flush) reports
    /// them. Other lanes go on.
    pub fn close(&self) {
        self.shared().close_lane(self.lane.id);
    }
}

/// Writes to this lane. Reads, and [`empty`](ActivationStore::empty), concern the whole store.
impl ActivationStore for Producer {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        Producer::extend(self, batch, component)
    }

    fn extend_pass(&self, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
        Producer::extend_pass(self, pass)
    }

    fn empty(&self) {
        self.shared().empty();
    }

    fn n_components(&self) -> usize {
        self.shared().config.layout.n_components()
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        self.shared().stats().components.iter().map(|component| component.resident as usize).collect()
    }

    fn len(&self) -> usize {
        self.shared().len()
    }

    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        self.shared().get(index)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("lane", &self.lane.id).finish_non_exhaustive()
    }
}
