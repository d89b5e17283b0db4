//! Snapshots, as a consumer asks for them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::disk::disk::{Disk, files};
use crate::error::{ClosedBy, SnapshotError, WriteError};
use crate::pipeline::consumer::Minibatches;
use crate::pipeline::handle::poll_now;
use crate::pipeline::saving::Saved;
use crate::pipeline::wait::wait_for;
use crate::snapshot::snapshot::{Form, Snapshot};

impl Minibatches {
    /// Saves the state between the minibatches that consumers have taken and the next ones, in a folder `snapshot-K` in `dir`. K counts
    /// the minibatches taken. Returns at once; the handle resolves with the folder when it is whole, durable and has its name.
    ///
    /// A store that is built with [`resume`](crate::RingStoreBuilder::resume) serves what would have been served next. Save your own
    /// checkpoint for K first, then take the snapshot; [`Snapshots::prune`](crate::Snapshots::prune) removes old ones.
    ///
    /// K counts the minibatches of all consumers of the store. So take the snapshot where minibatches are taken, while none is on its way
    /// through a prefetcher or another consumer. The resumed store would not serve that minibatch.
    ///
    /// Meanwhile the pipeline runs on. A light snapshot copies the journal under the store's mutex. For a full one consumers wait while
    /// the ready minibatches are copied in memory, and the writer copies one open frame after another as the disk takes them. That needs the memory
    /// of `ready_frames + 2` frames.
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
    /// [`SnapshotError`] if the store's policy leaves nothing to go on from, if it was aborted, or if another full snapshot is being
    /// written. A full snapshot is also refused while a resumed store is dealing earlier rows again. The handle yields what goes
    /// wrong on the disk. Earlier snapshots stay in any case.
    ///
    /// # Cancel safety
    /// Dropping the handle leaves the snapshot to be written.
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

    /// A light snapshot in memory, for a checkpoint of your own. See [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// As there.
    pub fn state(&self) -> Result<Snapshot, SnapshotError> {
        self.shared.snapshot()
    }
}

/// A future that resolves when a snapshot is on disk, with its folder. Made by [`Minibatches::snapshot`].
///
/// Dropping it leaves the snapshot to be written.
#[must_use = "a snapshot is on disk once its handle has resolved"]
pub struct SnapshotHandle {
    saved: oneshot::Receiver<Saved>,
    outcome: Option<Saved>,
}

impl SnapshotHandle {
    /// Blocks this thread until the snapshot is on disk.
    ///
    /// # Errors
    /// [`SnapshotError`] says why it is not.
    pub fn wait(mut self) -> Result<PathBuf, SnapshotError> {
        wait_for(&mut self, None).unwrap_or(Err(SnapshotError::Ended(WriteError::Closed(ClosedBy::Abort))))
    }
}

impl SnapshotHandle {
    /// Blocks this thread until the snapshot is on disk, but no longer than `timeout`: `None` if it is not by then.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<PathBuf, SnapshotError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

impl Future for SnapshotHandle {
    type Output = Result<PathBuf, SnapshotError>;

    /// May be polled again after completion, and then gives the same outcome.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = &self.outcome {
            return Poll::Ready(outcome.clone());
        }
        // Without an answer, the store has ended before its writer came to it.
        let outcome = ready!(poll_now(&mut self.saved, context))
            .unwrap_or(Err(SnapshotError::Ended(WriteError::Closed(ClosedBy::Abort))));
        self.outcome = Some(outcome.clone());
        Poll::Ready(outcome)
    }
}

impl fmt::Debug for SnapshotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SnapshotHandle")
    }
}
