//! Why a snapshot cannot be taken, and why a store cannot be resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::error::DiskError;
use crate::ring_store::error::LaneId;
use crate::rows::build_error::BuildError;
use crate::rows::error::WriteError;

/// Returned when a snapshot cannot be taken. The store goes on, and earlier snapshots stay.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A store with this [`WhenFull`](crate::WhenFull) cannot be resumed from such a snapshot.
    #[error("{policy}: {advice}")]
    Policy {
        /// Why the store cannot be resumed.
        policy: &'static str,
        /// What would work.
        advice: &'static str,
    },
    /// The store was aborted, or its writer panicked. It holds nothing to save.
    #[error("the store holds nothing to save: {0}")]
    Ended(WriteError),
    /// The store was resumed and has not yet dealt all earlier rows again. Until then it takes no full snapshot.
    #[error(
        "the resumed store is dealing earlier rows again ({left} to go): wait until it has dealt them, or take a light snapshot"
    )]
    DealsAgain {
        /// How many rows the store still has to deal again.
        left: u64,
    },
    /// The folder has snapshots of another run. Pruning would mix the two.
    #[error(
        "{} has snapshots of another run, up to snapshot-{minibatches}: resume that run from the folder, or save into another folder",
        dir.display()
    )]
    OtherRun {
        /// The folder.
        dir: PathBuf,
        /// The k of the newest snapshot in the folder.
        minibatches: u64,
    },
    /// The folder has a later snapshot of the same run, because this store was resumed from an earlier one.
    #[error(
        "{} is later than this snapshot, which is of minibatch {taken}: this store was resumed from an earlier one. Move the later \
         snapshots out of the folder, or save into another folder",
        path.display()
    )]
    Later {
        /// The later snapshot.
        path: PathBuf,
        /// The k of the later snapshot.
        minibatches: u64,
        /// The minibatches that consumers of this store have taken.
        taken: u64,
    },
    /// The store was resumed and could not go on, so a store that goes on from its state could not, either.
    #[error("the store cannot be saved, because it could not go on: {0}")]
    RowsMissing(RowsMissing),
    /// Another full snapshot is being written.
    #[error("another full snapshot is being written: wait for its handle first")]
    InProgress,
    /// There is no memory for the copies of frames.
    #[error(transparent)]
    Memory(BuildError),
    /// The operating system has no thread to write the snapshot.
    #[error("the operating system has no thread to write the snapshot: {reason}")]
    Thread {
        /// The operating system's reason.
        reason: String,
    },
    /// The snapshot could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The thread that writes the snapshot panicked.
    #[error("the thread that writes the snapshot panicked: {cause}")]
    Panicked {
        /// The panic's message.
        cause: Arc<str>,
    },
}

/// Returned when a store cannot be resumed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The folder has no complete snapshot.
    #[error("{} has no complete snapshot: it should have a folder snapshot-K in it, or be one", dir.display())]
    NoSnapshot {
        /// The folder.
        dir: PathBuf,
    },
    /// The snapshot cannot be used.
    #[error("{what} cannot be resumed: {reason}{}", offer(earlier.as_deref()))]
    Refused {
        /// The snapshot's folder, or the bytes.
        what: String,
        /// Why the snapshot cannot be used.
        reason: RefusedSnapshot,
        /// The next older whole snapshot in the same folder, if there is one. Its rows have not been checked.
        earlier: Option<PathBuf>,
    },
    /// A setting of the builder differs from the snapshot.
    #[error(
        "{setting} is {given}, but the snapshot was taken with {saved}: leave it out to keep the snapshot's value, or start anew with \
         build()"
    )]
    Mismatch {
        /// The setting.
        setting: &'static str,
        /// The value in the builder.
        given: String,
        /// The value in the snapshot.
        saved: String,
    },
    /// The snapshot has a value that this release does not know.
    #[error("the snapshot's {what} is {value:?}, which this release does not know: use the release that wrote it")]
    Unknown {
        /// The setting.
        what: &'static str,
        /// The value of the setting.
        value: String,
    },
    /// The snapshot is full, and only [`resume`](crate::RingStoreBuilder::resume) can read its files.
    #[error("a full snapshot has its rows in files: resume it with resume(dir)")]
    NeedsFiles,
    /// The snapshot could not be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Tells why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedSnapshot {
    /// The snapshot was damaged after it was written.
    #[error("it is damaged: {reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// The file, or the bytes, are something else than a snapshot.
    #[error("it is not a snapshot of an activation store: {reason}")]
    Foreign {
        /// What was found, or what is missing.
        reason: String,
    },
    /// The snapshot has another version than this release can resume.
    #[error(
        "its {what} is {found}, and this release knows {known}: use the release that wrote it (activation-store {release})"
    )]
    Version {
        /// Which version: of the format, or of dealing ([`DEALING_VERSION`](crate::DEALING_VERSION)).
        what: &'static str,
        /// The version of the snapshot.
        found: u32,
        /// The version that can be resumed.
        known: u32,
        /// The release that wrote the snapshot.
        release: String,
    },
}

fn offer(earlier: Option<&Path>) -> String {
    earlier.map_or_else(String::new, |earlier| {
        format!("; the snapshot before it is {}: resume from that", earlier.display())
    })
}

/// Reported when a resumed store does not get the rows that its snapshot needs. Consumers get it as [`ReadError::Failed`](crate::ReadError::Failed), after the
/// last minibatch that can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the resumed store was not sent row {row} of {lane}, which it must deal again before it can go on: send each lane from where \
     resume_at() says, the same rows as before"
)]
pub struct RowsMissing {
    /// The lane.
    pub lane: LaneId,
    /// The first row that is missing.
    pub row: u64,
}
