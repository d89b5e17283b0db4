//! The pipeline: producers hand over batches, a writer deals their rows to frames, consumers drain minibatches.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::unbounded;
use ndarray::ArrayD;
use tokio::runtime::Handle;

use crate::error::{BuildError, ClosedBy, IndexError, UnknownComponent, WriteError};
use crate::memory::available::available;
use crate::memory::frame::Frame;
use crate::pipeline::config::{Config, RingStoreBuilder, WhenFull};
use crate::pipeline::consumer::Minibatches;
use crate::pipeline::flush::Flush;
use crate::pipeline::group::{self, ProducerGroup, ProducerHandle, ProducerScope, SpawnError};
use crate::pipeline::handle::WriteHandle;
use crate::pipeline::monitor::Monitor;
use crate::pipeline::pass::Pass;
use crate::pipeline::plan::Plan;
use crate::pipeline::producer::Producer;
use crate::pipeline::reserve::Reserve;
use crate::pipeline::state::Shared;
use crate::pipeline::stats::Stats;
use crate::pipeline::worker;
use crate::pipeline::writer::Writer;
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::index::Index;
use crate::rows::layout::{Component, ComponentKey};
use crate::snapshot::body::ConfigBody;
use crate::snapshot::snapshot::Snapshot;
use crate::store::activation_store::ActivationStore;

/// A bounded store that is filled and drained at the same time.
///
/// Hooks call [`extend`](Self::extend), or [`extend_pass`](Self::extend_pass) with several components, and go on. A
/// background writer deals the rows to the open frames of a ring. The training loop drains shuffled
/// [`minibatches`](Self::minibatches). Cloning gives another handle to the same store. Dropping the last handle that can write
/// (clones and [`Producer`]s) closes it: consumers get what is left.
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
/// // On a thread of its own. When it returns, the stream ends; if it fails, the loop gets its error after the last row.
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
    /// Returns at once, however large the window is: the operating system provides the memory as rows come. Logs
    /// the [`Plan`](crate::Plan) at level `INFO`.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that cannot be, and what would work.
    pub fn build(self) -> Result<RingStore, BuildError> {
        let runtime = self.runtime.clone();
        RingStore::start(self.check()?, runtime, None, |_| Ok(()))
    }
}

impl RingStore {
    /// Configures a store.
    pub fn builder() -> RingStoreBuilder {
        RingStoreBuilder::default()
    }

    /// Starts a store: a new one, or one that goes on from a snapshot, whose rows `restore` reads. The writer runs on the runtime,
    /// or else on the one of this thread, if there is one.
    pub(crate) fn start<E: From<BuildError>>(
        config: Config,
        runtime: Option<Handle>,
        snapshot: Option<&Snapshot>,
        restore: impl FnOnce(&mut Writer) -> Result<(), E>,
    ) -> Result<Self, E> {
        let runtime = runtime.or_else(|| Handle::try_current().ok());
        let config = Arc::new(config);
        tracing::info!("{}", Plan::new(&config));
        if !config.allow_overcommit {
            config.check_memory(available())?;
        }
        let mut frames = Frame::allocate(&config.layout, config.frames(), "the window and the ready frames")?;
        let spares = frames.split_off(config.open_frames);
        let (sender, queue) = unbounded();
        let shared = Arc::new(Shared::new(config, sender, spares, snapshot));
        let mut writer = Writer::new(shared.clone(), queue, frames);
        snapshot.into_iter().for_each(|snapshot| writer.resume(&snapshot.body));
        restore(&mut writer)?;
        let leaving = shared.clone();
        if let Err(error) = worker::start(writer, runtime.as_ref(), move || leaving.leave()) {
            // A writer that found a thread all the same must end.
            shared.discard(ClosedBy::Abort);
            return Err(error.into());
        }
        Ok(RingStore { producer: Arc::new(Producer::of_store(shared)) })
    }

    /// The store's own lane.
    pub(crate) fn lane(&self) -> &Producer {
        &self.producer
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.lane().shared()
    }

    /// Hands over a batch of a component, `[rows, features]`, and returns at once: in microseconds, whatever its size.
    ///
    /// The handle resolves once the rows are in the ring, or set aside until the rows of the other components come. While
    /// the queue is full the batch waits in line, in memory beyond the store's bounds. So a caller that sends more should
    /// await its handles, or use [`extend_blocking`](Self::extend_blocking), [`try_extend`](Self::try_extend) or
    /// [`reserve`](Self::reserve).
    ///
    /// A forward pass with several components is written more safely as a whole: [`extend_pass`](Self::extend_pass), or
    /// [`begin_pass`](Self::begin_pass) for hooks that fire one by one. With `extend`, mind two things:
    ///
    /// - After a refusal in the middle of a pass, the store has rows of some components and lacks the same rows of the others.
    ///   Write the missing rows later. Or end the lane: its rows without counterparts are dropped, and another lane starts
    ///   even. If you go on with the next pass instead, the rows of two passes are paired.
    /// - Two threads must not share a lane component by component. Clones of a store share one: if two threads each write
    ///   `"a"`, then `"b"`, the order may be a1, a2, b2, b1, and rows of different tokens are paired without an error. Give each thread a
    ///   [`producer`](Self::producer), or write whole passes.
    ///
    /// # Errors
    /// [`Refused`] gives the batch back: wrong component, features or element type; a component too far ahead of
    /// another (`max_skew`); a closed store or lane; a poisoned store; and, if so configured
    /// ([`WhenFull::Reject`](crate::WhenFull::Reject)), a full queue.
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane().extend(batch, component)
    }

    /// Hands over a batch if the queue has room for it.
    ///
    /// Rows whose counterparts in another component have been taken always have room. So only the first component of a
    /// pass is ever refused for room. If you skip a refused batch, skip the same rows of every other component. Otherwise the
    /// components no longer line up.
    ///
    /// # Errors
    /// As [`extend`](Self::extend), and [`WriteError::Full`] if the queue has no room.
    pub fn try_extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane().try_extend(batch, component)
    }

    /// Waits until the queue has room for a batch, then hands it over.
    ///
    /// This is how a thread is slowed down to the consumers' pace. There is room when nothing else is queued, or when the
    /// batch fits within `queue_rows`. Callers are let in one at a time, in the order in which they came. Rows whose
    /// counterparts in another component have been taken never wait. Not for async tasks: await the handle, or
    /// [`reserve`](Self::reserve), there.
    ///
    /// # Errors
    /// As [`extend`](Self::extend). If the store is closed while the call waits, the batch comes back as
    /// [`WriteError::Closed`].
    ///
    /// # Blocking
    /// Blocks until consumers have taken minibatches, or the store takes no more rows.
    pub fn extend_blocking(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<(), Refused> {
        self.lane().extend_blocking(batch, component)
    }

    /// Hands over one row of a component; see [`extend`](Self::extend).
    ///
    /// # Errors
    /// As [`extend`](Self::extend), and [`WriteError::NotOneRow`] if `row` is not one row.
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane().append(row, component)
    }

    /// Hands over the rows of all components that one forward pass produced, as a whole, and returns at once.
    ///
    /// `pass` has every component of the store exactly once, in any order, all with equally many rows. It is checked,
    /// queued and refused as a whole: the store takes all of its rows, or none. The one handle resolves when all are in
    /// the ring.
    ///
    /// ```
    /// use activation_store::RingStore;
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("attn", 4).component("mlp", 6).batch_size(8).window(32).build()?;
    /// let handle = store.extend_pass([("mlp", Array2::<f32>::zeros((5, 6))), ("attn", Array2::zeros((5, 4)))])?;
    /// assert_eq!(handle.wait()?.rows, 5);
    ///
    /// let refused = store.extend_pass([("mlp", Array2::<f32>::zeros((5, 6)))]).unwrap_err();
    /// assert!(refused.to_string().contains("no rows of component 0 (\"attn\")"));
    /// assert_eq!(refused.batches.len(), 1); // all come back
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back: as [`extend`](Self::extend); a component that is missing
    /// ([`WriteError::PassLacks`]), doubled ([`WriteError::PassDoubles`]) or differs in rows ([`WriteError::PassRows`]); a lane
    /// whose components are uneven ([`WriteError::Uneven`]), where the rows would be misaligned.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.lane().extend_pass(pass)
    }

    /// Hands over a pass if the queue has room for all of it; see [`extend_pass`](Self::extend_pass).
    ///
    /// # Errors
    /// As [`extend_pass`](Self::extend_pass), and [`WriteError::Full`] if the queue has no room.
    pub fn try_extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.lane().try_extend_pass(pass)
    }

    /// Waits until the queue has room for all of a pass, then hands it over; see [`extend_pass`](Self::extend_pass) and
    /// [`extend_blocking`](Self::extend_blocking).
    ///
    /// # Errors
    /// As [`extend_pass`](Self::extend_pass). If the store is closed while the call waits, the pass comes back as
    /// [`WriteError::Closed`].
    ///
    /// # Blocking
    /// Blocks until consumers have taken minibatches, or the store takes no more rows.
    pub fn extend_pass_blocking<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<(), RefusedPass> {
        self.lane().extend_pass_blocking(pass)
    }

    /// Begins a pass whose components come one by one, as hooks fire. It reaches the store when it is
    /// [committed](Pass::commit), as a whole.
    pub fn begin_pass(&self) -> Pass {
        self.lane().begin_pass()
    }

    /// A future that resolves when the queue has room for `rows` rows of a component, with a [`Permit`](crate::Permit) to hand
    /// them over.
    ///
    /// This is [`extend_blocking`](Self::extend_blocking) for async tasks, for waits with a time limit, and for rows that come in
    /// several pieces.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use activation_store::RingStore;
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let mut permit = store.reserve("mlp", 12)?.await?; // waits while the queue is full
    /// for _ in 0..3 {
    ///     let _ = permit.extend(Array2::<f32>::zeros((4, 4)))?;
    /// }
    /// # Ok(())
    /// # }
    /// # futures::executor::block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`UnknownComponent`]. The future yields [`WriteError`] if the store or lane takes no more rows, or the component would run too
    /// far ahead of another.
    pub fn reserve(&self, component: impl ComponentKey, rows: usize) -> Result<Reserve, UnknownComponent> {
        self.lane().reserve(component, rows)
    }

    /// As [`reserve`](Self::reserve), for a pass of `rows` rows of every component.
    pub fn reserve_pass(&self, rows: usize) -> Reserve {
        self.lane().reserve_pass(rows)
    }

    /// Opens a lane of its own.
    ///
    /// Under [`Merge::RoundRobin`](crate::Merge::RoundRobin) lanes take turns in the order in which they were opened. Open all
    /// producers on one thread, in order, and then send them to their threads.
    ///
    /// # Errors
    /// [`WriteError`] if the store is closed or poisoned.
    pub fn producer(&self) -> Result<Producer, WriteError> {
        self.lane().open_another(None)
    }

    /// A group of producers that run on threads or in tasks, and whose end, or failure, ends the stream.
    pub fn producers(&self) -> ProducerGroup {
        ProducerGroup::new(self.producer.clone())
    }

    /// Runs a producer on a thread of its own: a [group](ProducerGroup) of one. The stream ends when it returns; for several,
    /// use [`producers`](Self::producers).
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

    /// Runs `spawn`, which starts producers, then `drain`, which is the training loop; returns when both have ended.
    ///
    /// The producers may borrow. The stream ends when all have returned. When the loop ends first, however it ends (`break`,
    /// `?`, a panic), the store takes no more rows and the producers are waited for: each ends with its next write.
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
    /// The error of `spawn` or `drain`. The error of a producer reaches the loop, as a consumer's.
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

    /// A consumer: a [`Stream`](futures::Stream), and for threads a [blocking iterator](Minibatches::blocking).
    ///
    /// Several share the store: each minibatch goes to one of them. Dropping the last one closes the store, as dropping
    /// a channel's receiver does.
    #[must_use = "dropping the last consumer closes the store"]
    pub fn minibatches(&self) -> Minibatches {
        Minibatches::new(self.shared().clone())
    }

    /// A handle that looks at the store, for progress bars and logs, and holds nothing open.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor::new(self.shared().clone())
    }

    /// Waits until everything handed over before is in the ring, or set aside until its other components come.
    ///
    /// # Errors
    /// The future yields [`WriteError::Unmatched`] if rows lost their counterparts since the last flush, once for each lane that
    /// lost rows; [`WriteError`] if the store is aborted or poisoned.
    pub fn flush(&self) -> Flush {
        Flush::new(self.shared().clone())
    }

    /// Takes no more rows; consumers get those handed over before, then the end.
    ///
    /// Returns at once. A caller that waits for room gets its batch back as [`WriteError::Closed`]. Rows whose counterparts
    /// in another component have not come are dropped, counted in [`stats`](Self::stats), and reported by
    /// [`flush`](Self::flush).
    pub fn close(&self) {
        self.shared().close(None);
    }

    /// As [`close`](Self::close), and every consumer gets `error` once, after the last minibatch.
    ///
    /// So a failure of the capture reaches the training loop, and loses no row. The first error wins, also after a `close()`;
    /// [`abort`](Self::abort) discards it.
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

    /// Takes no more rows, and discards the rows in the store, counting them as dropped. Consumers get the end.
    ///
    /// Pending handles fail with [`WriteError::Closed`]. A consumer made after the abort gets
    /// [`ReadError::Aborted`](crate::ReadError::Aborted).
    pub fn abort(&self) {
        self.shared().discard(ClosedBy::Abort);
    }

    /// Discards everything handed over so far, counting it as dropped, and goes on.
    ///
    /// Rows of other components that belong to discarded rows are discarded as they come, so that components stay
    /// aligned. The next minibatches start from an empty ring.
    ///
    /// # Blocking
    /// Blocks until the writer has done it, which first deals the rows it is at, at most 4,096.
    pub fn empty(&self) {
        self.shared().empty();
    }

    /// Whether the store takes no more rows: closed, aborted, poisoned, or left by every consumer.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared().is_closed()
    }

    /// Counts, all taken at the same moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.shared().config.layout.components()
    }

    /// What happens when the consumers lag.
    #[must_use]
    pub fn when_full(&self) -> WhenFull {
        self.shared().config.when_full
    }

    /// All settings as a JSON object, for the record of a run: those that were given, and what the others came to be.
    ///
    /// ```
    /// let store = activation_store::RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// assert!(store.settings().contains(r#""queue_rows":16"#)); // two minibatches
    /// # Ok::<(), activation_store::BuildError>(())
    /// ```
    #[must_use]
    pub fn settings(&self) -> String {
        // Nothing in it can fail: no map, and no key that is not a string.
        serde_json::to_string(&ConfigBody::from(&*self.shared().config)).unwrap_or_default()
    }

    /// Rows of a minibatch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.shared().config.batch_size
    }

    /// Rows that a minibatch's rows are spread over: the configured window in whole minibatches.
    #[must_use]
    pub fn window(&self) -> usize {
        self.shared().config.window()
    }

    /// Rows in the ring with all their components, whether ready to be served or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared().len()
    }

    /// Whether no row is in the ring with all its components.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values at an index, as `f32`: first the rows of ready minibatches, in the order in which they will be
    /// served, then the rows of open frames, frame by frame. Rows move as others come and go.
    ///
    /// # Errors
    /// [`IndexError`] for an index past the end, components of integers or of different widths, or a store that has ended.
    ///
    /// # Blocking
    /// Blocks until the writer answers, which first deals the rows it is at, at most 4,096. The writer and the consumers wait
    /// while it copies the values.
    pub fn get(&self, index: impl Into<Index>) -> Result<ArrayD<f32>, IndexError> {
        self.shared().get(index.into())
    }
}

impl ActivationStore for RingStore {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        RingStore::extend(self, batch, component)
    }

    fn extend_pass(&self, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
        RingStore::extend_pass(self, pass)
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

/// A lane stands for its store: it writes to the lane, and reads what the whole store holds.
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

impl fmt::Debug for RingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingStore")
            .field("components", &self.components())
            .field("batch_size", &self.batch_size())
            .field("window", &self.window())
            .finish_non_exhaustive()
    }
}
