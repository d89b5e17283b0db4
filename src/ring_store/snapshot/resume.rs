//! Builds a store that goes on where another store stopped.

use std::path::Path;
use std::sync::Arc;

use crate::disk::disk::{Disk, Files};
use crate::ring_store::builder::RingStoreBuilder;
use crate::ring_store::producer::Producer;
use crate::ring_store::ring_store::RingStore;
use crate::ring_store::snapshot::error::ResumeError;
use crate::ring_store::snapshot::files::{RowsReader, read};
use crate::ring_store::snapshot::snapshot::{ResumeAt, Snapshot};
use crate::rows::error::WriteError;

/// Says whether a lane of a resumed store goes on, has ended, or is new. Returned by [`RingStore::resume_point`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumePoint<'a> {
    /// The saved store had no such lane. Send its rows from the first row.
    New,
    /// The lane goes on here.
    GoesOn(&'a ResumeAt),
    /// The lane had ended, and none of its rows are needed. Send nothing: a write to it fails with [`WriteError::Closed`].
    Ended,
}

impl RingStoreBuilder {
    /// Builds a store that goes on from a light snapshot. It serves the minibatches that the first store would have served next, bit for
    /// bit.
    ///
    /// The snapshot has the configuration. A setting of this builder must match the snapshot, except `ready_frames`, `queue_rows`
    /// and `allow_overcommit`. Then do two things:
    ///
    /// 1. Open the lanes again, by name or in the same order.
    /// 2. Send the rows of each lane from where [`RingStore::resume_at`] says.
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
    /// [`ResumeError`] if a setting does not match, the snapshot is full, or the store cannot be built.
    pub fn resume_from(self, snapshot: &Snapshot) -> Result<RingStore, ResumeError> {
        if snapshot.body.is_full() {
            return Err(ResumeError::NeedsFiles);
        }
        let config = self.check_over(&snapshot.body.config)?;
        RingStore::start(config, Some(snapshot), |_| Ok(()))
    }

    /// Builds a store that goes on from a snapshot on disk, light or full. If `dir` is a folder of snapshots, the newest one counts.
    /// `dir` can also be one snapshot. Otherwise the same as [`resume_from`](Self::resume_from).
    ///
    /// # Errors
    /// [`ResumeError`] if there is no snapshot, the snapshot cannot be used, a setting does not match, or the store cannot be built. A
    /// snapshot cannot be used if it is damaged, is something else, or has another version. Then the error names the snapshot before it.
    ///
    /// # Blocking
    /// Blocks until the files of the snapshot are read.
    pub fn resume(self, dir: impl AsRef<Path>) -> Result<RingStore, ResumeError> {
        self.resume_on(&Files, dir.as_ref())
    }

    pub(crate) fn resume_on(self, disk: &dyn Disk, dir: &Path) -> Result<RingStore, ResumeError> {
        let (snapshot, path) = read(disk, dir)?;
        let Some(saved) = &snapshot.body.saved else { return self.resume_from(&snapshot) };
        let config = self.check_over(&snapshot.body.config)?;
        let mut rows = RowsReader::open(disk, &path, saved, &config.layout)?;
        RingStore::start(config, Some(&snapshot), |writer| {
            writer.restore(&snapshot.body, &mut rows)?;
            rows.finish()
        })
    }
}

impl RingStore {
    /// Returns where each lane of a resumed store goes on, in the order in which the lanes were opened. Empty if the store was not resumed.
    #[must_use]
    pub fn resume_at(&self) -> &[ResumeAt] {
        &self.shared().resume_at
    }

    /// Says where a lane goes on: the lane with this name or, with `None`, the store's own lane.
    ///
    /// [`resume_at`](Self::resume_at) has neither lanes that have ended nor lanes that are new. This method tells one from the other. It
    /// says what the snapshot has, also after you open the lane. In a store that was not resumed, every lane is new. If several lanes had
    /// the name, this is the lane that [`producer_named`](Self::producer_named) opens first.
    ///
    /// ```
    /// use activation_store::{ResumePoint, RingStore};
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?; // or resume(...)
    /// let first = match store.resume_point(Some("rank 0")) {
    ///     ResumePoint::New => 0,
    ///     ResumePoint::GoesOn(at) => at.passes,
    ///     ResumePoint::Ended => return Ok(()),
    /// };
    /// # assert_eq!(first, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn resume_point(&self, name: Option<&str>) -> ResumePoint<'_> {
        let is_asked = |at: &&ResumeAt| match name {
            Some(_) => at.lane.name.as_deref() == name,
            None => at.lane.number == 0,
        };
        match self.resume_at().iter().find(is_asked) {
            Some(at) => ResumePoint::GoesOn(at),
            None if self.shared().ended_lanes.contains(name) => ResumePoint::Ended,
            None => ResumePoint::New,
        }
    }

    /// Opens a lane with a name. A resumed store finds the lane by its name.
    ///
    /// # Errors
    /// [`WriteError::LaneName`] if a lane with that name is open, or another [`WriteError`] if the store is closed or poisoned.
    pub fn producer_named(&self, name: &str) -> Result<Producer, WriteError> {
        self.lane().open_another(Some(Arc::from(name)))
    }

    /// Tells a resumed store that you send its own lane again from the first row. See [`Producer::send_again`].
    ///
    /// # Errors
    /// [`WriteError::LaneStarted`] if rows have been written, or [`WriteError::Closed`] if the lane or the store is closed.
    pub fn send_again(&self) -> Result<(), WriteError> {
        self.lane().send_again()
    }
}
