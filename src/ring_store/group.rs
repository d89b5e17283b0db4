//! Groups of producers: the end, or the failure, of the producers ends the stream.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Scope};

use futures::FutureExt;
use tokio::sync::Semaphore;

use crate::ring_store::builder::Merge;
use crate::ring_store::consumer::Minibatches;
use crate::ring_store::core::Shared;
use crate::ring_store::producer::{KeepsOpen, Producer};
use crate::rows::closed::{Closed, ClosedBy, StoreId};
use crate::rows::error::WriteError;
use crate::waiting::panics::{discard, message};
use crate::waiting::wait::wait_for;

/// A group of producers that feed one store, and end its stream.
///
/// Each producer has a lane, a name, and a closure that runs on a thread or in a task. The store closes once the group is
/// closed or dropped and all of its producers have returned. Then consumers get the rows that are left, and then the end, even
/// while clones of the store exist. If a producer returns an error or panics, the store closes with that error
/// ([`RingStore::close_with`](crate::RingStore::close_with)). Then consumers get the rows that were handed over, and then the
/// error. The other producers get their batches back as [`WriteError::Closed`].
///
/// A producer may end with [`WriteError::Closed`] because this store was closed. The group does not count this as a failure, even if
/// the producer's error only has the [`Closed`] of this store somewhere in its `source()` chain. So you can use `?` on every
/// write. [`WriteError::Closed`] of another store, or of a recorder, is a failure. So is [`ClosedBy::Lane`]: then only a lane
/// has ended.
///
/// Under [`Merge::RoundRobin`](crate::Merge::RoundRobin) the producers start when the group is closed or dropped. By then all
/// lanes are open, in the order in which you spawned the producers, so that runs repeat.
///
/// Made by [`RingStore::producers`](crate::RingStore::producers).
///
/// ```
/// use activation_store::{RefusedPass, RingStore};
/// use ndarray::Array2;
///
/// let store = RingStore::builder().component("attn", 4).component("mlp", 4).batch_size(8).window(32).build()?;
/// let mut minibatches = store.minibatches();
/// let replicas = store.producers();
/// for replica in 0..2 {
///     replicas.spawn(format!("replica {replica}"), |lane| {
///         for _ in 0..10 {
///             let rows = || Array2::<f32>::ones((8, 4));
///             lane.extend_pass_blocking([("attn", rows()), ("mlp", rows())])?;
///         }
///         Ok::<(), RefusedPass>(())
///     })?;
/// }
/// replicas.close(); // no other replica comes: the stream ends with the last
/// let rows: usize = minibatches.blocking().map(|minibatch| minibatch.map_or(0, |minibatch| minibatch.rows())).sum();
/// assert_eq!(rows, 160);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the stream ends when the group is dropped and its producers have returned"]
pub struct ProducerGroup {
    own_lane: Arc<Producer>,
    ends: Arc<EndsStream>,
    /// The producers wait on this semaphore until it is closed. Then they start.
    gate: Arc<Semaphore>,
}

/// Held by a group and by each of its running producers. Dropping the last one closes the store.
struct EndsStream {
    shared: Arc<Shared>,
    /// Whether the other producers go on when one fails.
    goes_on: AtomicBool,
    /// Whether a task that is aborted counts as finished.
    may_abort: AtomicBool,
    /// Whether the group never had a producer, and ends nothing.
    unused: AtomicBool,
}

impl Drop for EndsStream {
    fn drop(&mut self) {
        if !*self.unused.get_mut() {
            self.shared.close(None);
        }
    }
}

/// Why a producer of a [`ProducerGroup`] failed.
///
/// The message has the message of the producer's error, so `source()` goes on behind that error.
#[derive(Debug)]
#[non_exhaustive]
pub struct ProducerError {
    /// The producer's name.
    pub name: String,
    /// The error that the producer's closure returned, or the message of its panic.
    pub error: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for ProducerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "producer {:?} failed: {}", self.name, self.error)
    }
}

impl Error for ProducerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl ProducerGroup {
    pub(crate) fn new(own_lane: Arc<Producer>) -> Self {
        let shared = own_lane.shared().clone();
        let (goes_on, may_abort, unused) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
        let ends = EndsStream { shared, goes_on, may_abort, unused };
        let gate = Arc::new(Semaphore::new(0));
        if own_lane.shared().config.merge != Merge::RoundRobin {
            gate.close();
        }
        ProducerGroup { own_lane, ends: Arc::new(ends), gate }
    }

    /// Lets the other producers go on when one fails. The failed producer's lane ends. The group logs the error, and the producer's
    /// handle or task returns it.
    pub fn go_on_without_failed(self) -> Self {
        self.ends.goes_on.store(true, Ordering::SeqCst);
        self
    }

    /// Counts an aborted [`task`](Self::task) as finished. Without this, an aborted task has failed: the stream ends with an error,
    /// because rows may be missing.
    pub fn count_aborted_as_finished(self) -> Self {
        self.ends.may_abort.store(true, Ordering::SeqCst);
        self
    }

    /// Runs a producer on a thread of its own, with a lane of its own. The lane and the thread have the producer's name.
    ///
    /// Lanes are opened in the order of these calls. Returns at once.
    ///
    /// # Errors
    /// [`SpawnError::Store`] if the store takes no more rows, or has an open lane of that name. [`SpawnError::Thread`] if the
    /// operating system cannot start a thread.
    pub fn spawn<F, E>(&self, name: impl Into<String>, produce: F) -> Result<ProducerHandle, SpawnError>
    where
        F: FnOnce(Producer) -> Result<(), E> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let running = self.open(name)?;
        let thread = running.thread();
        let handle = thread.spawn(move || running.run(produce)).map_err(SpawnError::Thread)?;
        Ok(ProducerHandle { handle })
    }

    /// Makes a producer for an async task, with a lane of its own. Returns a future, which you can spawn on any runtime.
    ///
    /// This call runs `produce`. The future that `produce` returns runs in the task.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use activation_store::{RingStore, WriteError};
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let mut minibatches = store.minibatches();
    /// let replicas = store.producers();
    /// let capture = tokio::spawn(replicas.task("replica 0", |lane| async move {
    ///     for _ in 0..10 {
    ///         lane.extend(Array2::<f32>::ones((8, 4)), "mlp")?.await?;
    ///     }
    ///     Ok::<(), WriteError>(())
    /// })?);
    /// drop(replicas);
    /// let mut rows = 0;
    /// while let Some(minibatch) = minibatches.try_next().await? {
    ///     rows += minibatch.rows();
    /// }
    /// assert_eq!(rows, 80);
    /// capture.await??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`SpawnError::Store`] if the store takes no more rows, or has an open lane of that name. The future yields
    /// [`ProducerError`] if the producer fails or panics.
    ///
    /// # Cancel safety
    /// Dropping the future before it has finished aborts the producer, as `JoinHandle::abort` and the end of a runtime do. If the store
    /// is still open, the producer has failed: consumers get a [`ProducerError`] after the last minibatch. With
    /// [`count_aborted_as_finished`](Self::count_aborted_as_finished) the producer ends as if it had returned `Ok`.
    pub fn task<F, T, E>(
        &self,
        name: &str,
        produce: F,
    ) -> Result<impl Future<Output = Result<(), Arc<ProducerError>>> + Send + use<F, T, E>, SpawnError>
    where
        F: FnOnce(Producer) -> T,
        T: Future<Output = Result<(), E>> + Send,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut running = self.open(name)?;
        let task = running.lane.take().map(produce);
        let mut aborts = Aborts(Some(running));
        Ok(async move {
            let outcome = match (task, &aborts.0) {
                (Some(task), Some(running)) => {
                    // An error means that the gate is open.
                    let _ = running.gate.acquire().await;
                    AssertUnwindSafe(task).catch_unwind().await
                }
                _ => Ok(Ok(())),
            };
            aborts.0.take().map_or(Ok(()), |running| running.end(outcome))
        })
    }

    /// Takes no more producers. The stream ends when all producers of the group have returned. Dropping the group does the same.
    pub fn close(self) {}

    /// Runs the only producer of the group, as [`spawn`](Self::spawn) does. The stream goes on if the producer cannot be started.
    pub(crate) fn spawn_only<F, E>(self, name: impl Into<String>, produce: F) -> Result<ProducerHandle, SpawnError>
    where
        F: FnOnce(Producer) -> Result<(), E> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let spawned = self.spawn(name, produce);
        self.ends.unused.store(spawned.is_err(), Ordering::SeqCst);
        spawned
    }

    fn open(&self, name: impl Into<String>) -> Result<Running, SpawnError> {
        let name: String = name.into();
        let lane = self.own_lane.open_another(Some(name.as_str().into())).map_err(SpawnError::Store)?;
        let (ends, gate, keeps_open) = (self.ends.clone(), self.gate.clone(), lane.keeps_open().clone());
        Ok(Running { name, lane: Some(lane), ends, gate, _keeps_open: keeps_open })
    }
}

impl Drop for ProducerGroup {
    fn drop(&mut self) {
        self.gate.close();
    }
}

/// A producer of a group that has not returned yet.
struct Running {
    name: String,
    lane: Option<Producer>,
    ends: Arc<EndsStream>,
    gate: Arc<Semaphore>,
    /// Without this, a producer that drops the last handle of the store, and fails then, would close the store without its error.
    _keeps_open: Arc<KeepsOpen>,
}

/// Fails the producer of a task that is dropped before it has finished.
struct Aborts(Option<Running>);

impl Drop for Aborts {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.abort();
        }
    }
}

impl Running {
    /// Its thread, which has its name, but for what a thread's name cannot contain.
    fn thread(&self) -> thread::Builder {
        thread::Builder::new().name(self.name.replace('\0', " "))
    }

    fn run<E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        produce: impl FnOnce(Producer) -> Result<(), E>,
    ) -> Result<(), Arc<ProducerError>> {
        let Some(lane) = self.lane.take() else { return Ok(()) };
        // An error means that the gate is open.
        let _ = wait_for(&mut pin!(self.gate.acquire()), None);
        self.end(catch_unwind(AssertUnwindSafe(|| produce(lane))))
    }

    /// Notes how the producer has ended. Closes the store if the producer has failed, unless the others go on.
    fn end<E: Into<Box<dyn Error + Send + Sync>>>(
        self,
        outcome: Result<Result<(), E>, Box<dyn Any + Send>>,
    ) -> Result<(), Arc<ProducerError>> {
        let error = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.into(),
            Err(panic) => {
                let text = format!("it panicked: {}", message(&*panic));
                discard(panic);
                text.into()
            }
        };
        if was_closed(&*error, self.ends.shared.id()) {
            return Ok(());
        }
        Err(self.fail(error))
    }

    /// Notes that the producer's task was dropped before it had finished. A closed store takes no rows, so none are missing.
    fn abort(self) {
        if self.ends.may_abort.load(Ordering::SeqCst) || self.ends.shared.is_closed() {
            return;
        }
        let error = "its task was aborted, or dropped, before it had finished";
        self.fail(error.into());
    }

    fn fail(self, error: Box<dyn Error + Send + Sync>) -> Arc<ProducerError> {
        let error = Arc::new(ProducerError { name: self.name, error });
        if self.ends.goes_on.load(Ordering::SeqCst) {
            tracing::error!(%error, "the other producers go on");
        } else {
            self.ends.shared.close(Some(error.clone()));
        }
        error
    }
}

/// Whether an error, or an error in its chain of sources, says that this store was closed.
fn was_closed(error: &(dyn Error + 'static), store: StoreId) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // Every `WriteError::Closed` has a `Closed` as its source. So the chain has one even if a wrapper hides the error.
        if error.downcast_ref::<Closed>().is_some_and(|closed| closed.is_end_of(store)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// A handle that waits for a producer on a thread.
///
/// Dropping the handle detaches the thread. An error of the producer still reaches the consumers.
#[derive(Debug)]
pub struct ProducerHandle {
    handle: JoinHandle<Result<(), Arc<ProducerError>>>,
}

impl ProducerHandle {
    /// Waits for the producer to return.
    ///
    /// # Errors
    /// [`ProducerError`] if the producer failed or panicked. Consumers get the same error.
    ///
    /// # Blocking
    /// Blocks until the producer has returned.
    pub fn join(self) -> Result<(), Arc<ProducerError>> {
        // The thread has caught a panic of the closure.
        self.handle.join().unwrap_or(Ok(()))
    }

    /// Whether the producer has returned.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// Why a producer could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The store takes no more rows, or has an open lane of that name.
    #[error(transparent)]
    Store(WriteError),
    /// The operating system cannot start a thread.
    #[error("the producer's thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// Starts producers that end with a loop. Made by [`RingStore::scope`](crate::RingStore::scope).
pub struct ProducerScope<'scope, 'env> {
    threads: &'scope Scope<'scope, 'env>,
    group: ProducerGroup,
}

impl<'scope> ProducerScope<'scope, '_> {
    /// Runs a producer on a thread of its own, as [`ProducerGroup::spawn`] does. The closure may borrow.
    ///
    /// # Errors
    /// As [`ProducerGroup::spawn`].
    pub fn spawn<F, E>(&self, name: impl Into<String>, produce: F) -> Result<(), SpawnError>
    where
        F: FnOnce(Producer) -> Result<(), E> + Send + 'scope,
        E: Into<Box<dyn Error + Send + Sync>> + 'scope,
    {
        let running = self.group.open(name)?;
        let thread = running.thread();
        thread.spawn_scoped(self.threads, move || running.run(produce)).map(drop).map_err(SpawnError::Thread)
    }
}

/// Runs `spawn`, then `drain`, and waits for the producers that `spawn` started.
pub(crate) fn scope<'env, T, E>(
    own_lane: &Arc<Producer>,
    minibatches: Minibatches,
    spawn: impl for<'scope> FnOnce(&ProducerScope<'scope, 'env>) -> Result<(), E>,
    drain: impl FnOnce(Minibatches) -> Result<T, E>,
) -> Result<T, E> {
    /// Ends the store when the loop ends, even by a panic, so that no producer waits for the loop. The rest of the rows is discarded.
    struct Ends<'a>(&'a Shared);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.discard(ClosedBy::NoConsumers);
        }
    }
    thread::scope(|threads| {
        let _ends = Ends(own_lane.shared());
        spawn(&ProducerScope { threads, group: ProducerGroup::new(own_lane.clone()) })?;
        drain(minibatches)
    })
}

impl fmt::Debug for ProducerGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerGroup").finish_non_exhaustive()
    }
}

impl fmt::Debug for ProducerScope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerScope").finish_non_exhaustive()
    }
}
