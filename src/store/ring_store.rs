//! The pipeline: producers hand over batches, a writer deals their rows to frames, consumers drain minibatches.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded};
use ndarray::ArrayD;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::{BuildError, ClosedBy, IndexError, UnknownComponent, WriteError};
use crate::memory::available::available;
use crate::memory::frame::Frame;
use crate::memory::pool::Pool;
use crate::pipeline::config::{Config, Merge, RingStoreBuilder};
use crate::pipeline::consumer::Minibatches;
use crate::pipeline::exchange::{Control, Exchange};
use crate::pipeline::fate::Fate;
use crate::pipeline::handle::{Flush, WriteHandle};
use crate::pipeline::host;
use crate::pipeline::intake::Intake;
use crate::pipeline::plan::Plan;
use crate::pipeline::producer::Producer;
use crate::pipeline::queue::{Budget, Job, Room};
use crate::pipeline::stats::Stats;
use crate::pipeline::writer::{Inbox, Writer};
use crate::rows::batch::{Batch, Refused};
use crate::rows::index::Index;
use crate::rows::layout::{Component, ComponentKey};
use crate::store::activation_store::ActivationStore;

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

impl RingStoreBuilder {
    /// Builds the store: checks the configuration, obtains the memory and starts the writer.
    ///
    /// Returns at once, however large the window is: the operating system provides the memory while the writer starts. Logs
    /// the [`Plan`](crate::Plan) at level `INFO`.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that cannot be, and what would work.
    pub fn build(self) -> Result<RingStore, BuildError> {
        let runtime = self.runtime.clone().or_else(|| Handle::try_current().ok());
        RingStore::start(self.check()?, runtime)
    }
}

impl RingStore {
    /// Configures a store.
    pub fn builder() -> RingStoreBuilder {
        RingStoreBuilder::default()
    }

    fn start(config: Config, runtime: Option<Handle>) -> Result<Self, BuildError> {
        let config = Arc::new(config);
        tracing::info!("{}", Plan::new(&config));
        config.check_memory(available())?;
        let memory = Frame::allocate(&config.layout, config.frames(), "the window and the ready frames")?;
        let (jobs, job_receiver) = unbounded();
        let (control, control_receiver) = unbounded();
        let (nudge, nudges) = bounded(1);
        let pool = Arc::new(Pool::new(config.layout.clone(), config.spare_frames()));
        let fate = Arc::new(Fate::default());
        let room = Arc::new(Room::default());
        let (ready, open) = (config.ready_frames, config.open_frames);
        let exchange = Arc::new(Exchange::new(ready, open, pool, fate, room.clone(), control.clone(), nudge));
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

    /// Waits until everything handed over before is in the ring, or set aside until its other components come.
    ///
    /// # Errors
    /// The future yields [`WriteError`] where an earlier write failed unseen, or the store is aborted or poisoned.
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

    /// Counts, all taken at the same moment but for the frames that consumers have.
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
    /// Blocks until the writer answers: as long as it takes to deal the batch it is at. Writer and consumers wait while it
    /// copies the values.
    pub fn get(&self, index: impl Into<Index>) -> Result<ArrayD<f32>, IndexError> {
        self.intake().get(index.into())
    }

    /// [`Producer::extend`] on the store's own lane.
    ///
    /// # Errors
    /// Those of [`Producer::extend`].
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.extend(batch, component)
    }

    /// [`Producer::try_extend`] on the store's own lane.
    ///
    /// # Errors
    /// Those of [`Producer::try_extend`].
    pub fn try_extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.try_extend(batch, component)
    }

    /// [`Producer::extend_blocking`] on the store's own lane.
    ///
    /// # Errors
    /// Those of [`Producer::extend_blocking`].
    pub fn extend_blocking(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<(), Refused> {
        self.producer.extend_blocking(batch, component)
    }

    /// [`Producer::append`] on the store's own lane.
    ///
    /// # Errors
    /// Those of [`Producer::append`].
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.append(row, component)
    }

    /// [`Producer::try_append`] on the store's own lane.
    ///
    /// # Errors
    /// Those of [`Producer::try_append`].
    pub fn try_append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.producer.try_append(row, component)
    }

    /// [`Producer::append_blocking`] on the store's own lane.
    ///
    /// # Errors
    /// Those of [`Producer::append_blocking`].
    pub fn append_blocking(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<(), Refused> {
        self.producer.append_blocking(row, component)
    }

    /// [`Producer::wait_for_room`] on the store's own lane.
    ///
    /// # Errors
    /// [`UnknownComponent`].
    pub fn wait_for_room(
        &self,
        component: impl ComponentKey,
        timeout: Option<Duration>,
    ) -> Result<bool, UnknownComponent> {
        self.producer.wait_for_room(component, timeout)
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
        f.debug_struct("RingStore")
            .field("components", &self.components())
            .field("batch_size", &self.batch_size())
            .field("window", &self.window())
            .finish_non_exhaustive()
    }
}
