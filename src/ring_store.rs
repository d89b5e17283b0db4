//! The pipeline: producers hand over batches, a writer deals their rows to frames, consumers drain minibatches.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use ndarray::ArrayD;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::batch::Batch;
use crate::config::{Config, Merge, RingStoreBuilder, WhenFull};
use crate::consume::Minibatches;
use crate::error::{BuildError, ClosedBy, IndexError, Refused, StoreFullError, WriteError};
use crate::exchange::{Control, Exchange};
use crate::fate::Fate;
use crate::frame::Reserved;
use crate::handle::{Flush, WriteHandle};
use crate::host;
use crate::index::Index;
use crate::layout::{Component, ComponentKey};
use crate::pool::Pool;
use crate::queue::{Budget, Job, Room, Write};
use crate::stats::{ComponentStats, Stats};
use crate::store::{ActivationStore, one_row};
use crate::sync::lock;
use crate::writer::{Inbox, Writer};

/// A bounded store that is filled and drained at the same time.
///
/// Hooks call [`extend`](Self::extend) and go on; a background writer deals the rows to the open frames of a ring;
/// the training loop drains shuffled [`minibatches`](Self::minibatches). Cloning gives another handle to the same store.
/// Dropping the last handle that can write (clones and [`Producer`]s) closes it: consumers get what is left.
///
/// ```
/// use activation_store::RingStore;
/// use futures::TryStreamExt;
/// use ndarray::Array2;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RingStore::builder().component("mlp", 16).batch_size(32).window(256).seed(7).build()?;
/// let mut minibatches = store.minibatches();
///
/// let hook = std::thread::spawn(move || {
///     for _ in 0..20 {
///         // Blocks only while the consumer lags.
///         store.extend_blocking(Array2::<f32>::ones((50, 16)), "mlp")?;
///     }
///     Ok::<(), activation_store::Refused>(())
/// });
///
/// let mut rows = 0;
/// while let Some(minibatch) = minibatches.try_next().await? {
///     rows += minibatch.view::<f32>("mlp")?.nrows();
/// }
/// assert_eq!(rows, 1000);
/// hook.join().unwrap()?;
/// # Ok(())
/// # }
/// # futures::executor::block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct RingStore {
    producer: Arc<Producer>,
}

/// What all handles that can write share. Dropping it, with the last of them, closes the store.
struct Intake {
    jobs: Sender<Job>,
    control: Sender<Control>,
    exchange: Arc<Exchange>,
    room: Arc<Room>,
    config: Arc<Config>,
    /// The budget of all lanes that do not have their own.
    budget: Arc<Budget>,
    /// Rows of each component that are queued.
    queued: Arc<Vec<AtomicUsize>>,
    next_lane: AtomicU64,
}

/// A lane of its own into a [`RingStore`]: for one model replica, or one thread of capture.
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
    intake: Arc<Intake>,
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
    /// Hands over a batch, `[rows, features]`, of a component, and returns at once: in microseconds, whatever its size.
    ///
    /// The handle resolves once the rows are in the ring. While the queue is full the batch waits in line, in memory
    /// beyond the store's bounds, so a caller that sends more should await its handles, or use
    /// [`extend_blocking`](Self::extend_blocking) or [`try_extend`](Self::try_extend).
    ///
    /// # Errors
    /// [`Refused`] gives the batch back: wrong component, features or element type; a component too far ahead of
    /// another; a closed store or lane; a poisoned store; an earlier failure that nobody saw; and, if so configured
    /// ([`WhenFull::Reject`]), a full queue.
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.hand_over(batch.into(), component, Queue::Configured)
    }

    /// Hands over a batch if the queue has room for it.
    ///
    /// # Errors
    /// As [`extend`](Self::extend), and [`WriteError::Full`] if the queue has no room.
    pub fn try_extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.hand_over(batch.into(), component, Queue::Try)
    }

    /// Hands over a batch, then blocks this thread until the queue is within its bound.
    ///
    /// This is how a thread is slowed down to the consumers' pace. Not for use inside async tasks: await the handle there.
    ///
    /// # Errors
    /// As [`extend`](Self::extend).
    pub fn extend_blocking(
        &self,
        batch: impl Into<Batch>,
        component: impl ComponentKey,
    ) -> Result<WriteHandle, Refused> {
        let handle = self.extend(batch, component)?;
        self.wait_for_room(component, None);
        Ok(handle)
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
    pub fn append_blocking(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.extend_blocking(one_row(row.into())?, component)
    }

    /// Blocks this thread until the component's queue is within its bound, or the store will take nothing more; no
    /// longer than `timeout`. Returns whether it did in time.
    ///
    /// An unknown component has room.
    pub fn wait_for_room(&self, component: impl ComponentKey, timeout: Option<Duration>) -> bool {
        let intake = &*self.intake;
        let Ok(component) = intake.config.layout.find(component) else {
            return true;
        };
        let fate = &intake.exchange.fate;
        let over =
            || matches!(fate.closed_by(), Some(ClosedBy::Abort | ClosedBy::NoConsumers)) || fate.poisoned().is_some();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        intake.room.wait(deadline, || self.budget.within(component) || over())
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
            return Err(error);
        }
        let rows = batch.rows();
        self.check_skew(&state.rows, component, rows)?;
        if queue == Queue::Try || config.when_full == WhenFull::Reject {
            if !self.budget.try_enter(component, rows) {
                let message = format!(
                    "Activation store is full: {rows} rows do not fit the queue of component {}, which may hold {}",
                    config.layout.name(component),
                    self.budget.bound(),
                );
                return Err(StoreFullError::new(message).into());
            }
        } else {
            self.budget.enter(component, rows);
        }
        Ok(Admitted { component, rows, state, _open: open })
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
    state: std::sync::MutexGuard<'a, LaneState>,
    _open: std::sync::RwLockReadGuard<'a, Option<ClosedBy>>,
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

impl Intake {
    fn len(&self) -> usize {
        self.exchange.count(|counts| counts.whole_rows())
    }

    fn empty(&self) {
        let (done, emptied) = bounded(1);
        if self.control.send(Control::Empty(done)).is_ok() {
            // An error means that the writer has ended, with nothing left to discard but ready minibatches.
            if emptied.recv().is_ok() {
                return;
            }
        }
        self.exchange.discard_all();
    }

    fn stats(&self) -> Stats {
        let counts = self.exchange.count(|counts| counts.clone());
        let whole = counts.whole_rows() as u64;
        let component = |(i, component): (usize, &Component)| ComponentStats {
            name: component.name.clone(),
            accepted: counts.components[i].accepted,
            queued: self.queued[i].load(Ordering::Relaxed) as u64,
            resident: counts.components[i].staged + whole,
            served: counts.components[i].served,
            dropped: counts.components[i].dropped,
        };
        Stats {
            components: self.config.layout.components().iter().enumerate().map(component).collect(),
            minibatches_served: counts.minibatches_served,
            producer_wait: counts.producer_wait,
            consumer_wait: counts.consumer_wait,
            frames_open: counts.open_frames,
            frames_ready: counts.ready_frames,
            frames_lent: self.exchange.pool().lent(),
        }
    }

    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let (answer, answered) = bounded(1);
        let asked = self.control.send(Control::Get(index, answer));
        let ended = || match self.exchange.fate.poisoned() {
            Some(cause) => IndexError::Poisoned { cause },
            None => IndexError::Ended,
        };
        asked.ok().and_then(|()| answered.recv().ok()).unwrap_or_else(|| Err(ended()))
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // Nobody is left who could ask for minibatches.
        if self.exchange.consumers() == 0 {
            self.exchange.fate.close(ClosedBy::Abort);
            self.exchange.abandon();
        }
    }
}

impl RingStore {
    /// Configures a store.
    pub fn builder() -> RingStoreBuilder {
        RingStoreBuilder::default()
    }

    pub(crate) fn start(config: Config, runtime: Option<Handle>) -> Result<Self, BuildError> {
        let config = Arc::new(config);
        // Those open, those ready, and one that a consumer works on.
        let spare = config.ready_frames + 1;
        let overflow =
            BuildError::TooMany { what: "ready_frames", value: config.ready_frames, limit: u32::MAX as usize };
        let frames = config.open_frames.checked_add(spare).ok_or(overflow)?;
        let memory = Reserved::new(&config.layout, frames, "the window and the ready frames")?;
        let (jobs, job_receiver) = unbounded();
        let (control, control_receiver) = unbounded();
        let (nudge, nudges) = bounded(1);
        let pool = Arc::new(Pool::new(config.layout.clone(), spare));
        let fate = Arc::new(Fate::default());
        let exchange =
            Arc::new(Exchange::new(config.ready_frames, config.open_frames, pool, fate, control.clone(), nudge));
        let room = Arc::new(Room::default());
        let queued: Arc<Vec<_>> = Arc::new((0..config.layout.n_components()).map(|_| AtomicUsize::new(0)).collect());
        let budget = Arc::new(Budget::new(config.queue_rows, queued.clone(), room.clone()));
        let writer = Writer::new(
            config.clone(),
            memory,
            exchange.clone(),
            room.clone(),
            budget.clone(),
            Inbox { jobs: job_receiver, control: control_receiver, nudges },
        );
        let leaving = control.clone();
        host::start(writer, runtime.as_ref(), move || {
            // A writer that has ended has left.
            let _ = leaving.send(Control::Leave);
        })?;
        let intake = Intake { jobs, control, exchange, room, config, budget, queued, next_lane: AtomicU64::new(1) };
        let budget = intake.budget.clone();
        Ok(RingStore { producer: Arc::new(Producer::new(Arc::new(intake), 0, budget)) })
    }

    fn intake(&self) -> &Arc<Intake> {
        &self.producer.intake
    }

    /// Opens a lane of its own.
    ///
    /// Under [`Merge::RoundRobin`] lanes take turns in the order in which they were opened: open them here, in order, and
    /// send the producers to their threads, rather than opening each in its thread.
    ///
    /// # Errors
    /// If the store is closed or poisoned.
    pub fn producer(&self) -> Result<Producer, WriteError> {
        let intake = self.intake();
        let _open = intake.exchange.fate.enter()?;
        let budget = match intake.config.merge {
            Merge::Arrival => intake.budget.clone(),
            // A lane that waits for its turn must not use up another's share.
            Merge::RoundRobin => {
                Arc::new(Budget::new(intake.config.queue_rows, intake.queued.clone(), intake.room.clone()))
            }
        };
        let lane = intake.next_lane.fetch_add(1, Ordering::Relaxed);
        let opened = intake.jobs.send(Job::Open(lane, budget.clone()));
        opened.map_err(|_| intake.exchange.fate.cause())?;
        Ok(Producer::new(intake.clone(), lane, budget))
    }

    /// A consumer: a [`Stream`](futures::Stream), and for threads a [blocking iterator](Minibatches::blocking).
    ///
    /// Several share the store: each minibatch goes to one of them. Dropping the last one closes the store, as dropping
    /// a channel's receiver does.
    #[must_use = "dropping the last consumer closes the store"]
    pub fn minibatches(&self) -> Minibatches {
        Minibatches::new(self.intake().exchange.clone())
    }

    /// Waits until everything handed over before is in the ring.
    pub fn flush(&self) -> Flush {
        let (done, flushed) = oneshot::channel();
        // Where the writer has ended, the dropped `done` says so; where it only waits for room, it must look.
        let _ = self.intake().jobs.send(Job::Flush(done));
        self.intake().exchange.nudge();
        Flush::new(flushed, self.intake().exchange.fate.clone())
    }

    /// Takes no more rows; consumers get those handed over before, then the end.
    ///
    /// Returns at once.
    pub fn close(&self) {
        if self.intake().exchange.fate.close(ClosedBy::Close) {
            let _ = self.intake().jobs.send(Job::Finish);
        }
    }

    /// Takes no more rows and discards those there are, counting them as dropped; consumers get the end.
    ///
    /// Pending handles fail with [`WriteError::Closed`].
    pub fn abort(&self) {
        if self.intake().exchange.fate.close(ClosedBy::Abort) {
            self.intake().exchange.abandon();
            self.intake().room.look_again();
        }
    }

    /// Discards everything handed over so far, counting it as dropped, and goes on.
    ///
    /// Rows of other components that belong to discarded rows are discarded as they come, so that components stay
    /// aligned. The next minibatches start from an empty ring.
    ///
    /// # Blocking
    /// Blocks until the writer has done it: as long as it takes to deal the batch it is at.
    pub fn empty(&self) {
        self.intake().empty();
    }

    /// Whether the store takes no more rows: closed, aborted, poisoned, or left by every consumer.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.intake().exchange.fate.enter().is_err()
    }

    /// Counts, all taken at the same moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.intake().stats()
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.intake().config.layout.components()
    }

    /// Rows of a minibatch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.intake().config.layout.rows()
    }

    /// Rows that a minibatch's rows are spread over: the configured window in whole minibatches.
    #[must_use]
    pub fn window(&self) -> usize {
        self.intake().config.open_frames * self.batch_size()
    }

    /// Rows in the ring with all their components, whether ready to be served or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.intake().len()
    }

    /// Whether no row is in the ring with all its components.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values at an index, as `f32`: first the rows of ready minibatches, in the order in which they will be
    /// served, then those of open frames, frame by frame. Rows move as others come and go.
    ///
    /// # Errors
    /// [`IndexError`] for an index past the end, components of integers or of different widths, or a store that has ended.
    ///
    /// # Blocking
    /// Blocks until the writer answers: as long as it takes to deal the batch it is at.
    pub fn get(&self, index: impl Into<Index>) -> Result<ArrayD<f32>, IndexError> {
        self.intake().get(index.into())
    }

    /// [`Producer::extend`] on the store's own lane.
    ///
    /// # Errors
    /// See there.
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.extend(batch, component)
    }

    /// [`Producer::try_extend`] on the store's own lane.
    ///
    /// # Errors
    /// See there.
    pub fn try_extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.try_extend(batch, component)
    }

    /// [`Producer::extend_blocking`] on the store's own lane.
    ///
    /// # Errors
    /// See there.
    pub fn extend_blocking(
        &self,
        batch: impl Into<Batch>,
        component: impl ComponentKey,
    ) -> Result<WriteHandle, Refused> {
        self.producer.extend_blocking(batch, component)
    }

    /// [`Producer::append`] on the store's own lane.
    ///
    /// # Errors
    /// See there.
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.append(row, component)
    }

    /// [`Producer::try_append`] on the store's own lane.
    ///
    /// # Errors
    /// See there.
    pub fn try_append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.try_append(row, component)
    }

    /// [`Producer::append_blocking`] on the store's own lane.
    ///
    /// # Errors
    /// See there.
    pub fn append_blocking(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.append_blocking(row, component)
    }

    /// [`Producer::wait_for_room`] on the store's own lane.
    pub fn wait_for_room(&self, component: impl ComponentKey, timeout: Option<Duration>) -> bool {
        self.producer.wait_for_room(component, timeout)
    }
}

impl Producer {
    fn new(intake: Arc<Intake>, lane: u64, budget: Arc<Budget>) -> Self {
        let rows = vec![0; intake.config.layout.n_components()];
        Producer { intake, lane, budget, state: Mutex::new(LaneState { rows, closed: false }) }
    }
}

impl ActivationStore for RingStore {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        self.producer.extend(batch, component)
    }

    fn empty(&self) {
        RingStore::empty(self);
    }

    fn n_components(&self) -> usize {
        self.producer.n_components()
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        self.producer.current_activations_stored_per_component()
    }

    fn len(&self) -> usize {
        RingStore::len(self)
    }

    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        RingStore::get(self, index)
    }
}

/// A lane stands for its store: it writes to the lane, and reads what the whole store holds.
impl ActivationStore for Producer {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        Producer::extend(self, batch, component)
    }

    fn empty(&self) {
        self.intake.empty();
    }

    fn n_components(&self) -> usize {
        self.intake.config.layout.n_components()
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        self.intake.stats().components.iter().map(|component| component.resident as usize).collect()
    }

    fn len(&self) -> usize {
        self.intake.len()
    }

    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        self.intake.get(index)
    }
}

impl fmt::Debug for RingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingStore").field("config", &self.intake().config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("lane", &self.lane).finish_non_exhaustive()
    }
}
