//! The snapshots in a folder.

use std::path::{Path, PathBuf};

use crate::disk::disk::files;
use crate::disk::error::DiskError;
use crate::ring_store::snapshot::error::{RefusedSnapshot, ResumeError};
use crate::ring_store::snapshot::files::{list, list_whole, prune, read};
use crate::ring_store::snapshot::snapshot::Snapshot;

/// The snapshots in a folder, as [`Minibatches::snapshot`](crate::Minibatches::snapshot) writes them.
///
/// A checkpoint of a training run is a pair: the trainer's own file for minibatch k, and the snapshot for k. Write the trainer's
/// file first. Keep the last two pairs, because the newest snapshot may have been damaged after it was written:
///
/// ```
/// # fn example(snapshots: &activation_store::Snapshots, checkpoint: impl Fn(u64) -> String) -> Result<(), Box<dyn std::error::Error>> {
/// for k in snapshots.prune(2)? {
///     std::fs::remove_file(checkpoint(k))?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    /// Names the folder `dir`. Reads nothing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Snapshots { dir: dir.into() }
    }

    /// Lists all whole snapshots, oldest first: k, the number of minibatches taken, and the snapshot's folder. A folder that does not
    /// exist has none.
    ///
    /// A snapshot is whole if its state is as it was written, and its files have their lengths. Rows are not read. Logs a warning for
    /// each other folder `snapshot-K`. [`not_whole`](Self::not_whole) lists these.
    ///
    /// # Errors
    /// [`DiskError`] if the folder cannot be listed, or the system cannot read a snapshot.
    ///
    /// # Blocking
    /// Blocks this thread while it reads the disk, as every method here does except `new` and `dir`.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, DiskError> {
        list_whole(&*files(), &self.dir)
    }

    /// Lists the folders `snapshot-K` that hold no whole snapshot, and what is wrong with each. For example, a copy was interrupted.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn not_whole(&self) -> Result<Vec<(PathBuf, RefusedSnapshot)>, DiskError> {
        Ok(list(&*files(), &self.dir)?.others)
    }

    /// Reads the state of the newest snapshot, without its rows. If the folder itself is a snapshot, reads that snapshot.
    ///
    /// # Errors
    /// [`ResumeError::NoSnapshot`] if there is none, [`ResumeError::Refused`] if the snapshot cannot be used,
    /// [`ResumeError::Disk`] if the disk fails.
    pub fn newest(&self) -> Result<Snapshot, ResumeError> {
        Ok(read(&*files(), &self.dir)?.0)
    }

    /// Removes all but the newest `keep` whole snapshots. Returns the k of each snapshot that this call has removed. A folder `snapshot-K`
    /// that holds no whole snapshot is not counted, and stays. If several processes prune at once, each snapshot is removed by one of them.
    ///
    /// Also removes snapshots that another process has not finished: it was killed. So only one process may save into a folder at a time.
    ///
    /// # Errors
    /// [`DiskError`] if the folder cannot be listed, or a snapshot cannot be removed. Older snapshots may have been removed by then.
    pub fn prune(&self, keep: usize) -> Result<Vec<u64>, DiskError> {
        prune(&*files(), &self.dir, keep)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
