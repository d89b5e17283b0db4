//! The pipeline: producers hand over batches, a writer deals the rows to frames, and consumers take minibatches.

use std::fmt;
use std::sync::Arc;

use ndarray::ArrayD;
use tokio::sync::mpsc::unbounded_channel;

use crate::memory::available::available;
use crate::memory::frame::Frame;
use crate::ring_store::builder::{Config, RingStoreBuilder, WhenFull};
use crate::ring_store::consumer::Minibatches;
use crate::ring_store::core::Shared;
use crate::ring_store::flush::Flush;
use crate::ring_store::group::{self, ProducerGroup, ProducerHandle, ProducerScope, SpawnError};
use crate::ring_store::monitor::Monitor;
use crate::ring_store::plan::Plan;
use crate::ring_store::producer::Producer;
use crate::ring_store::snapshot::body::ConfigBody;
use crate::ring_store::snapshot::snapshot::Snapshot;
use crate::ring_store::stats::Stats;
use crate::ring_store::writer::Writer;
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::build_error::BuildError;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::index::Index;
use crate::rows::index::IndexError;
use crate::rows::layout::Component;
use crate::store::{ActivationStore, forward};
use crate::waiting::handle::WriteHandle;
use crate::waiting::thread;

/// Takes rows and serves shuffled minibatches at the same time, in bounded memory.
///
/// Hooks call [`extend`](Self::extend), or [`extend_pass`](Self::extend_pass) with several components, and go on. A
/// background writer deals the rows to the open frames of a ring. The training loop takes shuffled
/// [`minibatches`](Self::minibatches).
///
/// A clone is another handle to the same store. Clones and [`Producer`]s can write. The store closes when you drop the last of
/// them. Then consumers get the minibatches that are left.
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
/// // The closure runs on a new thread. When it returns, the stream ends. If it fails, the loop gets the error after the last row.
/// store.spawn_producer("hook", |lane| {
///     for _ in 0..20 {
///         // Blocks only while the consumer lags.
///         lane.extend_blocking(Array2::<f32>::ones((50, 16)), "mlp")?;
///     }
///     Ok::<(), activation_store::Refused>(())
/// })?;
///
/// let mut rows = 0;
/// while let Some(minibatch) = minibatches.try_next().await? {
///     rows += minibatch.view::<f32>("mlp")?.nrows();
/// }
/// assert_eq!(rows, 1000);
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
    /// Returns at once, even if the window is large: the operating system provides the memory as rows come. Logs
    /// the [`Plan`](crate::Plan) at level `INFO`.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that is wrong, and what would work.
    pub fn build(self) -> Result<RingStore, BuildError> {
        RingStore::start(self.check()?, None, |_| Ok(()))
    }
}

impl RingStore {
    /// Configures a store.
    pub fn builder() -> RingStoreBuilder {
        RingStoreBuilder::default()
    }

    /// Starts a new store, or a store that goes on from a snapshot. `restore` reads the rows of the snapshot.
    pub(crate) fn start<E: From<BuildError>>(
        mut config: Config,
        snapshot: Option<&Snapshot>,
        restore: impl FnOnce(&mut Writer) -> Result<(), E>,
    ) -> Result<Self, E> {
        if let Some(snapshot) = snapshot {
            config.replay.clone_from(&snapshot.body.replay);
            config.run = snapshot.body.run.clone().unwrap_or(config.run);
        }
        let config = Arc::new(config);
        tracing::info!("{}", Plan::new(&config));
        if !config.allow_overcommit {
            config.check_memory(available())?;
        }
        let mut frames = Frame::allocate(&config.layout, config.frames(), "the window and the ready frames")?;
        let spares = frames.split_off(config.open_frames);
        let (sender, queue) = unbounded_channel();
        let shared = Arc::new(Shared::new(config, sender, spares, snapshot));
        let mut writer = Writer::new(shared.clone(), queue, frames);
        snapshot.into_iter().for_each(|snapshot| writer.resume(&snapshot.body));
        restore(&mut writer)?;
        thread::start(writer)?;
        Ok(RingStore { producer: Arc::new(Producer::of_store(shared)) })
    }

    /// The store's own lane.
    pub(crate) fn lane(&self) -> &Producer {
        &self.producer
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.lane().shared()
    }

    /// Opens another lane, for one thread or one replica of the model.
    ///
    /// Under [`Merge::RoundRobin`](crate::Merge::RoundRobin), lanes take turns in the order in which they were opened. Open all
    /// producers on one thread, in order. Then send them to their threads.
    ///
    /// # Errors
    /// [`WriteError`] if the store is closed or poisoned.
    pub fn producer(&self) -> Result<Producer, WriteError> {
        self.lane().open_another(None)
    }

    /// Makes a group of producers that run on threads or in tasks. The stream ends when all of them have returned, or when one fails.
    pub fn producers(&self) -> ProducerGroup {
        ProducerGroup::new(self.producer.clone())
    }

    /// Runs one producer on a new thread. The stream ends when the producer returns. For several producers, use
    /// [`producers`](Self::producers).
    ///
    /// ```
    /// use activation_store::{ReadError, RingStore};
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let mut minibatches = store.minibatches();
    /// store.spawn_producer("capture", |lane| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    ///     lane.extend_blocking(Array2::<f32>::ones((20, 4)), "mlp")?;
    ///     Err("the model has run out of memory".into())
    /// })?;
    /// let mut rows = 0;
    /// let error = loop {
    ///     match minibatches.blocking().next() {
    ///         Some(Ok(minibatch)) => rows += minibatch.rows(),
    ///         Some(Err(error)) => break error,
    ///         None => unreachable!("the capture fails"),
    ///     }
    /// };
    /// assert_eq!(rows, 20); // what was captured is served first
    /// assert_eq!(error.to_string(), "producer \"capture\" failed: the model has run out of memory");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SpawnError`] if the store takes no more rows or has an open lane of that name, or if the operating system cannot start a thread.
    /// The stream goes on then.
    pub fn spawn_producer<F, E>(&self, name: impl Into<String>, produce: F) -> Result<ProducerHandle, SpawnError>
    where
        F: FnOnce(Producer) -> Result<(), E> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.producers().spawn_only(name, produce)
    }

    /// Runs `spawn`, which starts producers, then `drain`, which is the training loop. Returns when the loop and all producers have ended.
    ///
    /// The producers may borrow. The stream ends when all producers have returned. The loop may end first (`break`, `?` or a panic).
    /// Then the store takes no more rows, each producer ends with its next write, and the call waits for the producers.
    ///
    /// ```
    /// use activation_store::RingStore;
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let texts = vec!["a text"; 50]; // borrowed by the producer
    /// let steps = store.scope(
    ///     |producers| {
    ///         producers.spawn("capture", |lane| {
    ///             texts.iter().try_for_each(|_| lane.extend_blocking(Array2::<f32>::ones((8, 4)), "mlp"))
    ///         })?;
    ///         Ok(())
    ///     },
    ///     |mut minibatches| {
    ///         let mut steps = 0;
    ///         for minibatch in minibatches.blocking() {
    ///             minibatch?;
    ///             steps += 1;
    ///             if steps == 20 {
    ///                 break; // the producer ends, too
    ///             }
    ///         }
    ///         Ok::<_, Box<dyn std::error::Error>>(steps)
    ///     },
    /// )?;
    /// assert_eq!(steps, 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The error of `spawn` or `drain`. If a producer fails, the loop gets the error from the consumer.
    ///
    /// # Blocking
    /// Blocks this thread until the loop and every producer have ended.
    pub fn scope<'env, T, E>(
        &'env self,
        spawn: impl for<'scope> FnOnce(&ProducerScope<'scope, 'env>) -> Result<(), E>,
        drain: impl FnOnce(Minibatches) -> Result<T, E>,
    ) -> Result<T, E> {
        group::scope(&self.producer, self.minibatches(), spawn, drain)
    }

    /// Makes a consumer. It is a [`Stream`](futures::Stream), and has a [blocking iterator](Minibatches::blocking) for threads.
    ///
    /// If there are several consumers, each minibatch goes to one of them. When you drop the last consumer, the store closes and
    /// discards its rows.
    #[must_use = "dropping the last consumer closes the store"]
    pub fn minibatches(&self) -> Minibatches {
        Minibatches::new(self.shared().clone())
    }

    /// Makes a handle that only looks at the store, for progress bars and logs. The handle does not keep the store open.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor::new(self.shared().clone())
    }

    /// Returns a future that resolves when all rows handed over before are in the ring, or are set aside until their other components come.
    ///
    /// # Errors
    /// The future yields [`WriteError::Unmatched`] if a lane has lost rows that had no counterparts. Each flush reports one such lane,
    /// the oldest first. If 1,024 lanes wait for a flush, only [`stats`](Self::stats) counts what further lanes lose. The future yields another [`WriteError`] if the store is aborted, has no consumer left, or is poisoned.
    ///
    /// # Cancel safety
    /// If you drop the future, nothing is lost. The next flush reports the lane.
    pub fn flush(&self) -> Flush {
        Flush::new(self.shared().clone())
    }

    /// Closes the store: it takes no more rows. Consumers get the rows handed over before, then the end.
    ///
    /// Returns at once. A caller that waits for room gets its batch back with [`WriteError::Closed`]. The store drops rows if the same
    /// rows of another component have not come. [`stats`](Self::stats) counts these rows, and [`flush`](Self::flush) reports them.
    pub fn close(&self) {
        self.shared().close(None);
    }

    /// Closes the store like [`close`](Self::close). Every consumer gets `error` once, after the last minibatch.
    ///
    /// So the training loop learns that the capture failed, and no row is lost. If there are several errors, the first one counts, also
    /// after a `close()`. [`abort`](Self::abort) discards the error.
    ///
    /// ```
    /// use activation_store::{ReadError, RingStore};
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let _ = store.extend(Array2::<f32>::zeros((5, 4)), "mlp")?;
    /// store.close_with(std::io::Error::other("the model ran out of memory"));
    /// let mut minibatches = store.minibatches();
    /// let mut items = minibatches.blocking();
    /// assert_eq!(items.next().unwrap()?.rows(), 5); // what was handed over is served first
    /// let error = items.next().unwrap().unwrap_err();
    /// assert!(matches!(&error, ReadError::Failed(error) if error.to_string().contains("out of memory")));
    /// assert!(items.next().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn close_with(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        self.shared().close(Some(Arc::from(error.into())));
    }

    /// Closes the store, discards the rows in it, and counts them as dropped. Consumers get the end. Returns at once.
    ///
    /// Pending handles fail with [`WriteError::Closed`]. A consumer that you make after the abort gets
    /// [`ReadError::Aborted`](crate::ReadError::Aborted).
    pub fn abort(&self) {
        self.shared().discard(ClosedBy::Abort);
    }

    /// Discards all rows handed over so far, counts them as dropped, and goes on.
    ///
    /// If the same rows of another component come later, the store discards them, too. So components stay aligned. The next
    /// minibatches start from an empty ring.
    ///
    /// # Blocking
    /// Blocks until the writer has discarded the rows. The writer first deals the rows that it works on, at most 4,096.
    pub fn empty(&self) {
        self.shared().empty();
    }

    /// Returns whether the store takes no more rows: it is closed, aborted or poisoned, or its last consumer was dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared().is_closed()
    }

    /// Returns counts, all taken at the same moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// Returns the components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.shared().config.layout.components()
    }

    /// Returns what the store does when the consumers lag.
    #[must_use]
    pub fn when_full(&self) -> WhenFull {
        self.shared().config.when_full
    }

    /// Returns all settings as a JSON object, to keep with a run. Settings that you did not give have their defaults.
    ///
    /// ```
    /// let store = activation_store::RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// assert!(store.settings().contains(r#""queue_rows":16"#)); // two minibatches
    /// # Ok::<(), activation_store::BuildError>(())
    /// ```
    #[must_use]
    pub fn settings(&self) -> String {
        // This cannot fail: there is no map with a key that is not a string.
        serde_json::to_string(&ConfigBody::from(&*self.shared().config)).unwrap_or_default()
    }

    /// Returns the rows of a minibatch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.shared().config.batch_size
    }

    /// Returns the rows of the window: the configured window, rounded down to whole frames.
    #[must_use]
    pub fn window(&self) -> usize {
        self.shared().config.window()
    }

    /// Returns how many rows are in the ring with all their components, in ready minibatches and in open frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared().len()
    }

    /// Returns whether [`len`](Self::len) is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the values at an index as `f32`. The axes are row, component and feature.
    ///
    /// The first rows are the rows of ready minibatches, in the order in which they will be served. The rows of open frames follow,
    /// frame by frame. A row can get another number when rows come or go.
    ///
    /// # Errors
    /// [`IndexError`] if the index is past the end, the components hold integers or differ in width, or the store has ended or is poisoned.
    ///
    /// # Blocking
    /// Blocks until the writer has copied the values. The writer first deals the rows that it works on, at most 4,096. Consumers
    /// wait while the writer copies.
    pub fn get(&self, index: impl Into<Index>) -> Result<ArrayD<f32>, IndexError> {
        self.shared().get(index.into())
    }
}

impl ActivationStore for RingStore {
    forward!(self => &*self.producer);
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
