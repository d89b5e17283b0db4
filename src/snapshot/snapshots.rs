//! The snapshots in a folder.

use std::path::{Path, PathBuf};

use crate::disk::disk::files;
use crate::error::{DiskError, ResumeError};
use crate::snapshot::files::{list, prune, read};
use crate::snapshot::snapshot::Snapshot;

/// The snapshots in a folder: [`Minibatches::snapshot`](crate::Minibatches::snapshot) writes them there.
///
/// A checkpoint of a training run is a pair: the trainer's own file for minibatch k, written first, and the snapshot for k.
/// The last two pairs should stay, for the newest snapshot may have been damaged after it was written:
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
    /// Those in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Snapshots { dir: dir.into() }
    }

    /// All that are complete, oldest first: k, the minibatches taken, and where the snapshot is.
    ///
    /// # Errors
    /// [`DiskError`] if the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, DiskError> {
        list(&*files(), &self.dir)
    }

    /// Reads the newest, or the one that the folder itself is: its state, not its rows.
    ///
    /// # Errors
    /// [`ResumeError`]: there is none, or it cannot be used.
    pub fn newest(&self) -> Result<Snapshot, ResumeError> {
        Ok(read(&*files(), &self.dir)?.0)
    }

    /// Removes all but the newest `keep` snapshots. Returns the k of each snapshot that it has removed.
    ///
    /// # Errors
    /// [`DiskError`] if one cannot be removed.
    pub fn prune(&self, keep: usize) -> Result<Vec<u64>, DiskError> {
        prune(&*files(), &self.dir, keep)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
