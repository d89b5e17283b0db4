//! Building a store that goes on where another stood.

use std::path::Path;
use std::sync::Arc;

use crate::disk::disk::{Disk, Files};
use crate::error::{ResumeError, WriteError};
use crate::pipeline::config::RingStoreBuilder;
use crate::pipeline::producer::Producer;
use crate::snapshot::files::{RowsReader, read};
use crate::snapshot::snapshot::{ResumeAt, Snapshot};
use crate::store::ring_store::RingStore;

impl RingStoreBuilder {
    /// Builds a store that goes on where the store of a light snapshot stood: it serves, bit for bit, the minibatches that would have
    /// been served next.
    ///
    /// The configuration comes from the snapshot. What is set here must match it, except `ready_frames`, `queue_rows`,
    /// `allow_overcommit` and `runtime`. Then open the lanes again, by name or in the same order, and send each lane's rows from where
    /// [`RingStore::resume_at`] says.
    ///
    /// ```
    /// use activation_store::{RingStore, Snapshot};
    /// use ndarray::Array2;
    ///
    /// let rows = |pass: u64| Array2::<f32>::from_elem((10, 4), pass as f32);
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).seed(3).build()?;
    /// let mut minibatches = store.minibatches();
    /// for pass in 0..6 {
    ///     let _ = store.extend_pass([("mlp", rows(pass))])?;
    /// }
    /// let _ = minibatches.blocking().next();
    /// let snapshot = minibatches.state()?; // one minibatch is served
    /// let next = minibatches.blocking().next().unwrap()?;
    ///
    /// // Another process:
    /// let snapshot = Snapshot::from_bytes(&snapshot.to_bytes())?;
    /// let resumed = RingStore::builder().resume_from(&snapshot)?;
    /// let mut minibatches = resumed.minibatches();
    /// for pass in resumed.resume_at()[0].passes..6 {
    ///     let _ = resumed.extend_pass([("mlp", rows(pass))])?;
    /// }
    /// let again = minibatches.blocking().next().unwrap()?;
    /// assert_eq!(again.view::<f32>("mlp")?, next.view::<f32>("mlp")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ResumeError`]: a setting that does not match, a full snapshot, or a store that cannot be built here.
    pub fn resume_from(self, snapshot: &Snapshot) -> Result<RingStore, ResumeError> {
        if snapshot.body.is_full() {
            return Err(ResumeError::NeedsFiles);
        }
        let runtime = self.runtime.clone();
        let config = self.check_over(&snapshot.body.config)?;
        RingStore::start(config, runtime, Some(snapshot), |_| Ok(()))
    }

    /// Builds a store that goes on from the newest snapshot in `dir`, or from the snapshot that `dir` is. As
    /// [`resume_from`](Self::resume_from), and reads the rows of a full snapshot.
    ///
    /// # Errors
    /// [`ResumeError`]: there is no snapshot; it is damaged, foreign, or of another version, and then the error names the one before it; a
    /// setting that does not match; or a store that cannot be built here.
    pub fn resume(self, dir: impl AsRef<Path>) -> Result<RingStore, ResumeError> {
        self.resume_on(&Files, dir.as_ref())
    }

    pub(crate) fn resume_on(self, disk: &dyn Disk, dir: &Path) -> Result<RingStore, ResumeError> {
        let (snapshot, path) = read(disk, dir)?;
        let Some(saved) = &snapshot.body.saved else { return self.resume_from(&snapshot) };
        let runtime = self.runtime.clone();
        let config = self.check_over(&snapshot.body.config)?;
        let mut rows = RowsReader::open(disk, &path, saved, &config.layout)?;
        RingStore::start(config, runtime, Some(&snapshot), |writer| {
            writer.restore(&snapshot.body, &mut rows)?;
            rows.finish()
        })
    }
}

impl RingStore {
    /// Where each lane of a resumed store goes on, in the order of opening. Empty for a store that was not resumed.
    #[must_use]
    pub fn resume_at(&self) -> &[ResumeAt] {
        &self.shared().resume_at
    }

    /// Opens a lane with a name of its own, by which a resumed store knows it.
    ///
    /// # Errors
    /// [`WriteError::LaneName`] if a lane of that name is open; [`WriteError`] if the store is closed or poisoned.
    pub fn producer_named(&self, name: &str) -> Result<Producer, WriteError> {
        self.lane().open_another(Some(Arc::from(name)))
    }

    /// [`Producer::send_again`] for the store's own lane.
    ///
    /// # Errors
    /// As there.
    pub fn send_again(&self) -> Result<(), WriteError> {
        self.lane().send_again()
    }
}
