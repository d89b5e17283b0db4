//! A lane into a ring store: checks batches and hands them to the writer.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::error::{ClosedBy, StoreFullError, UnknownComponent, WriteError};
use crate::pipeline::config::WhenFull;
use crate::pipeline::handle::WriteHandle;
use crate::pipeline::intake::Intake;
use crate::pipeline::queue::{Budget, Job, Write};
use crate::pipeline::sync::lock;
use crate::rows::batch::{Batch, Refused, one_row};
use crate::rows::layout::ComponentKey;

/// A lane of its own into a [`RingStore`](crate::RingStore): for one model replica, or one thread of capture.
///
/// On one lane, row r of every component belongs to the same token, so two replicas that write at once each need a
/// lane. Writing works as on the store itself, which is a lane, too. Dropping the producer ends the lane.
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
///             for component in ["attn", "mlp"] {
///                 producer.extend(Array2::<f32>::ones((8, 4)), component).unwrap().wait().unwrap();
///             }
///         });
///     }
/// });
/// assert_eq!(store.len(), 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Producer {
    pub(crate) intake: Arc<Intake>,
    lane: u64,
    budget: Arc<Budget>,
    state: Mutex<LaneState>,
}

/// The producers' view of a lane.
struct LaneState {
    /// Rows handed over of each component.
    rows: Vec<u64>,
    closed: bool,
}

/// What a call does when the queue is full.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// As the store's configuration says.
    Configured,
    /// Refuse.
    Try,
}

impl Producer {
    pub(crate) fn new(intake: Arc<Intake>, lane: u64, budget: Arc<Budget>) -> Self {
        let rows = vec![0; intake.config.layout.n_components()];
        Producer { intake, lane, budget, state: Mutex::new(LaneState { rows, closed: false }) }
    }

    /// Hands over a batch, `[rows, features]`, of a component, and returns at once: in microseconds, whatever its size.
    ///
    /// The handle resolves once the rows are in the ring. While the queue is full the batch waits in line, in memory
    /// beyond the store's bounds, so a caller that sends more should await its handles, or use
    /// [`extend_blocking`](Self::extend_blocking) or [`try_extend`](Self::try_extend).
    ///
    /// # Errors
    /// [`Refused`] gives the batch back: wrong component, features or element type; a component too far ahead of
    /// another; a closed store or lane; a poisoned store; an earlier failure that nobody saw ([`WriteError::Earlier`]: hand
    /// the batch over again); and, if so configured ([`WhenFull::Reject`]), a full queue.
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.hand_over(batch.into(), component, Queue::Configured)
    }

    /// Hands over a batch if the queue has room for it, or if the rows of another component that belong to its own have
    /// been taken.
    ///
    /// Whoever leaves a refused batch out must leave out the same rows of every other component, too, or components no
    /// longer match. Since the first component to be refused is one whose counterparts have not been taken, a hook can give up
    /// the whole forward pass there.
    ///
    /// # Errors
    /// As [`extend`](Self::extend), and [`WriteError::Full`] if the queue has no room.
    pub fn try_extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.hand_over(batch.into(), component, Queue::Try)
    }

    /// Hands over a batch, then blocks this thread until the queue is within its bound.
    ///
    /// This is how a thread is slowed down to the consumers' pace. Not for use inside async tasks: await the handle there.
    /// A write that fails later surfaces at the next call, as if its handle had been dropped.
    ///
    /// # Errors
    /// As [`extend`](Self::extend).
    ///
    /// # Blocking
    /// Blocks while the queue is over its bound: until consumers have taken minibatches, or are gone, or the store is aborted.
    pub fn extend_blocking(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<(), Refused> {
        drop(self.extend(batch, component)?);
        // The component was found, and without a deadline there is no other answer.
        let _ = self.wait_for_room(component, None);
        Ok(())
    }

    /// Hands over one row of a component; see [`extend`](Self::extend).
    ///
    /// # Errors
    /// As [`extend`](Self::extend), and [`WriteError::NotOneRow`] where `row` is not one row.
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.extend(one_row(row.into())?, component)
    }

    /// Hands over one row if the queue has room for it; see [`try_extend`](Self::try_extend).
    ///
    /// # Errors
    /// As [`try_extend`](Self::try_extend), and [`WriteError::NotOneRow`] where `row` is not one row.
    pub fn try_append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.try_extend(one_row(row.into())?, component)
    }

    /// Hands over one row, then blocks until the queue is within its bound; see [`extend_blocking`](Self::extend_blocking).
    ///
    /// # Errors
    /// As [`extend_blocking`](Self::extend_blocking), and [`WriteError::NotOneRow`] where `row` is not one row.
    ///
    /// # Blocking
    /// As [`extend_blocking`](Self::extend_blocking).
    pub fn append_blocking(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<(), Refused> {
        self.extend_blocking(one_row(row.into())?, component)
    }

    /// Waits until the component's queue is within its bound, or the store will take nothing more; no longer than
    /// `timeout`. Returns whether it is.
    ///
    /// # Errors
    /// [`UnknownComponent`].
    ///
    /// # Blocking
    /// Blocks this thread.
    pub fn wait_for_room(
        &self,
        component: impl ComponentKey,
        timeout: Option<Duration>,
    ) -> Result<bool, UnknownComponent> {
        let intake = &*self.intake;
        let component = intake.config.layout.find(component)?;
        let fate = &intake.exchange.fate;
        let over =
            || matches!(fate.closed_by(), Some(ClosedBy::Abort | ClosedBy::NoConsumers)) || fate.poisoned().is_some();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(intake.room.wait(deadline, || self.budget.within(component) || over()))
    }

    /// Ends the lane: it takes no more rows.
    ///
    /// Rows that lack a component by then are dropped, which the next call on the store reports.
    pub fn close(&self) {
        let was_closed = std::mem::replace(&mut lock(&self.state).closed, true);
        if !was_closed {
            // A writer that has ended needs no telling.
            let _ = self.intake.jobs.send(Job::Close(self.lane));
        }
    }

    fn hand_over(&self, batch: Batch, component: impl ComponentKey, queue: Queue) -> Result<WriteHandle, Refused> {
        match self.admit(&batch, component, queue) {
            Ok(admitted) => admitted.send(self, batch),
            Err(error) => Err(Refused { error, batch }),
        }
    }

    /// Checks that a batch can be taken and gives it its place in the lane.
    fn admit(&self, batch: &Batch, component: impl ComponentKey, queue: Queue) -> Result<Admitted<'_>, WriteError> {
        let intake = &*self.intake;
        let config = &*intake.config;
        let component = config.layout.find(component)?;
        config.layout.check(batch, component)?;
        let open = intake.exchange.fate.enter()?;
        let state = lock(&self.state);
        if state.closed {
            return Err(WriteError::Closed(ClosedBy::Lane));
        }
        if let Some(error) = intake.exchange.fate.take_unseen() {
            return Err(WriteError::Earlier(Box::new(error)));
        }
        let rows = batch.rows();
        self.check_skew(&state.rows, component, rows)?;
        // Refusing rows whose other components have been taken would leave those without counterparts.
        let has_counterparts = state.rows.iter().any(|&taken| taken >= state.rows[component] + rows as u64);
        let may_refuse = (queue == Queue::Try || config.when_full == WhenFull::Reject) && !has_counterparts;
        if !may_refuse {
            self.budget.enter(component, rows);
        } else if !self.budget.try_enter(component, rows) {
            return Err(self.full(component, rows).into());
        }
        Ok(Admitted { component, rows, state, _open: open })
    }

    fn full(&self, component: usize, rows: usize) -> StoreFullError {
        StoreFullError::new(format!(
            "Activation store is full: {rows} rows do not fit the queue of component {}, which holds {} of {}; \
             wait for the consumers (extend_blocking, wait_for_room) or raise queue_rows",
            self.intake.config.layout.name(component),
            self.budget.queued(component),
            self.budget.bound(),
        ))
    }

    fn check_skew(&self, handed: &[u64], component: usize, rows: usize) -> Result<(), WriteError> {
        let config = &*self.intake.config;
        let missing = (0..handed.len()).min_by_key(|&other| handed[other]).unwrap_or(component);
        let by = handed[component] - handed[missing];
        // One batch may always run ahead, however large it is.
        if by == 0 || by.saturating_add(rows as u64) <= config.max_skew as u64 {
            return Ok(());
        }
        let (ahead, missing) = (config.layout.name(component), config.layout.name(missing));
        Err(WriteError::Skew { ahead, missing, by, max_skew: config.max_skew })
    }
}

/// A batch's place in its lane, which nothing else can take meanwhile.
struct Admitted<'a> {
    component: usize,
    rows: usize,
    state: MutexGuard<'a, LaneState>,
    _open: RwLockReadGuard<'a, Option<ClosedBy>>,
}

impl Admitted<'_> {
    fn send(mut self, producer: &Producer, batch: Batch) -> Result<WriteHandle, Refused> {
        let intake = &*producer.intake;
        let Admitted { component, rows, .. } = self;
        let first_row = self.state.rows[component];
        let (reply, handle) = WriteHandle::pending(intake.exchange.fate.clone());
        let write = Write { lane: producer.lane, component, batch, first_row, reply };
        match intake.jobs.send(Job::Write(write)) {
            Ok(()) => {
                self.state.rows[component] += rows as u64;
                Ok(handle)
            }
            Err(unsent) => {
                producer.budget.leave(component, rows);
                let Job::Write(write) = unsent.into_inner() else {
                    return Ok(handle);
                };
                Err(Refused { error: intake.exchange.fate.cause(), batch: write.batch })
            }
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("lane", &self.lane).finish_non_exhaustive()
    }
}
