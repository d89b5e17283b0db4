//! The methods of a consumer that take snapshots.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::disk::disk::{Disk, files};
use crate::ring_store::consumer::Minibatches;
use crate::ring_store::snapshot::error::SnapshotError;
use crate::ring_store::snapshot::saving::Saved;
use crate::ring_store::snapshot::snapshot::{Form, Snapshot};
use crate::rows::closed::ClosedBy;
use crate::waiting::handle::poll_now;
use crate::waiting::wait::wait_for;

impl Minibatches {
    /// Saves the state between the minibatches that consumers have taken and the next ones, in a folder `snapshot-K` in `dir`. K is
    /// the number of minibatches taken. Returns at once. The handle resolves with the folder when the folder is whole, durable and
    /// has its name.
    ///
    /// A store that is built with [`resume`](crate::RingStoreBuilder::resume) serves the minibatches that this store would have served
    /// next. Save your own checkpoint for K first, then take the snapshot. [`Snapshots::prune`](crate::Snapshots::prune) removes old
    /// snapshots.
    ///
    /// K counts the minibatches of all consumers of the store. The resumed store does not serve a minibatch that is on its way through
    /// a prefetcher or another consumer. So take the snapshot on the thread that takes the minibatches, while no minibatch is on its
    /// way.
    ///
    /// The pipeline goes on meanwhile. A light snapshot copies little under the store's mutex. During a full snapshot, consumers
    /// wait while the writer copies the ready minibatches in memory. Then the writer copies one open frame after another, as fast as
    /// the disk takes them. A full snapshot needs the memory of up to `ready_frames + 4` frames.
    ///
    /// ```
    /// use activation_store::{Form, RingStore};
    /// use ndarray::Array2;
    ///
    /// # let dir = std::env::temp_dir().join(format!("activation-store-doc-{}", std::process::id()));
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let mut minibatches = store.minibatches();
    /// let _ = store.extend(Array2::<f32>::zeros((40, 4)), "mlp")?;
    /// let _ = minibatches.blocking().next();
    /// let folder = minibatches.snapshot(&dir, Form::Full)?.wait()?;
    /// assert!(folder.ends_with("snapshot-1"));
    /// let resumed = RingStore::builder().resume(&dir)?;
    /// assert_eq!(resumed.stats().minibatches_served, 1);
    /// # std::fs::remove_dir_all(&dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SnapshotError`] if a store with this policy ([`WhenFull`](crate::WhenFull)) cannot be resumed, or if the store was aborted
    /// or poisoned. A full snapshot is also refused while another full snapshot is being written, and while a resumed store is
    /// dealing earlier rows again. A folder with snapshots of another run is refused, and one with later snapshots of this run, if the
    /// store was resumed from an earlier one. The handle yields the errors of the disk. Snapshots with another K stay in any case.
    ///
    /// # Cancel safety
    /// Dropping the handle does not stop the snapshot. It is still written.
    pub fn snapshot(&self, dir: impl AsRef<Path>, form: Form) -> Result<SnapshotHandle, SnapshotError> {
        self.snapshot_on(files(), dir.as_ref(), form)
    }

    pub(crate) fn snapshot_on(
        &self,
        disk: Arc<dyn Disk>,
        dir: &Path,
        form: Form,
    ) -> Result<SnapshotHandle, SnapshotError> {
        let (reply, saved) = oneshot::channel();
        self.shared.save(disk, dir.to_owned(), form, reply)?;
        Ok(SnapshotHandle { saved, outcome: None })
    }

    /// Takes a light snapshot in memory, for a checkpoint of your own. See [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot), for a light snapshot.
    pub fn state(&self) -> Result<Snapshot, SnapshotError> {
        self.shared.snapshot()
    }
}

/// A future that resolves when a snapshot is on disk, with its folder. Made by [`Minibatches::snapshot`].
///
/// Any executor can poll the future. A thread can [`wait`](SnapshotHandle::wait).
///
/// # Cancel safety
/// Dropping the handle does not stop the snapshot. It is still written.
#[must_use = "a snapshot is on disk once its handle has resolved"]
pub struct SnapshotHandle {
    saved: oneshot::Receiver<Saved>,
    outcome: Option<Saved>,
}

impl SnapshotHandle {
    /// Blocks this thread until the snapshot is on disk. Returns its folder. Works inside and outside a runtime.
    ///
    /// # Errors
    /// [`SnapshotError`] says why the snapshot was not written.
    pub fn wait(mut self) -> Result<PathBuf, SnapshotError> {
        wait_for(&mut self, None).unwrap_or(Err(SnapshotError::Ended(ClosedBy::Abort.into())))
    }
}

impl SnapshotHandle {
    /// Blocks this thread until the snapshot is on disk, but no longer than `timeout`. `None` if it is not on disk by then.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<PathBuf, SnapshotError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

impl Future for SnapshotHandle {
    type Output = Result<PathBuf, SnapshotError>;

    /// Polls the future. After completion you may poll it again, and get the same outcome.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = &self.outcome {
            return Poll::Ready(outcome.clone());
        }
        // There is no answer if the store has ended before its writer took the snapshot.
        let outcome =
            ready!(poll_now(&mut self.saved, context)).unwrap_or(Err(SnapshotError::Ended(ClosedBy::Abort.into())));
        self.outcome = Some(outcome.clone());
        Poll::Ready(outcome)
    }
}

impl fmt::Debug for SnapshotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SnapshotHandle")
    }
}
