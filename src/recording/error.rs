//! Why a recording cannot be written, read or replayed.

use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::error::DiskError;
use crate::ring_store::snapshot::error::ResumeError;
use crate::rows::build_error::BuildError;
use crate::rows::error::WriteError;
use crate::rows::index::IndexError;
use crate::rows::names::UnknownComponent;

/// Returned when a recording cannot be written, read or replayed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// A file could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file does not hold what the recorder wrote.
    #[error("{} is damaged: {reason}; `Recording::salvage` opens the whole shards (Python: `salvage=True`)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file has a newer format than this release reads.
    #[error(
        "{} has version {found} of the format, and this release reads version {known}: update activation-store{}",
        path.display(),
        writer(written_by)
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of the file.
        found: u32,
        /// The version that this release reads.
        known: u32,
        /// The program that wrote the file, if it says so.
        written_by: String,
    },
    /// The file that says how much a finished lane holds is damaged, or it does not agree with the shards.
    #[error("{} is damaged: {reason}; verify the lane, then remove this file, or record the lane again", path.display())]
    DamagedEnd {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A shard is missing between other shards of its lane, or at the end of a finished lane.
    #[error("shard {number} of lane {lane:?} is missing in {}: bring its folder back; `Recording::salvage` opens the others (Python: `salvage=True`)", dir.display())]
    Missing {
        /// The recording.
        dir: PathBuf,
        /// The lane.
        lane: String,
        /// The shard's number on the lane.
        number: u64,
    },
    /// A shard has other components than the other shards of the recording, or than the recorder that resumes its lane.
    #[error("{} holds other components than {expected}: use another folder, or the same components", path.display())]
    Components {
        /// The shard.
        path: PathBuf,
        /// The components that were expected.
        expected: String,
    },
    /// The folder has no whole shard.
    #[error("{} holds no whole shard: record into it first", dir.display())]
    Empty {
        /// The folder.
        dir: PathBuf,
    },
    /// The lane has shards already.
    #[error("lane {lane:?} is recorded in {} already: resume it, or use another lane", dir.display())]
    Exists {
        /// The folder.
        dir: PathBuf,
        /// The lane.
        lane: String,
    },
    /// A setting has a value that cannot be used.
    #[error("{what} is {value}; it must be {expected}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// The value of the setting.
        value: String,
        /// What would work.
        expected: String,
    },
    /// A recorder or a store cannot be built as configured, or the recorder's thread has ended.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The recording has no such row.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The recording has no such component.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// The ring store that a replay fills cannot be resumed.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// A store did not take the rows of the recording, or a thread of the recorder panicked ([`WriteError::Poisoned`]).
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A thread that reads the recording panicked.
    #[error("a thread that reads the recording panicked: {cause}")]
    Panicked {
        /// The panic's message.
        cause: Arc<str>,
    },
}

impl RecordingError {
    /// Returns whether a file of the recording is damaged or missing. If not, for example because the system could not read a file, the
    /// recording may be whole.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use RecordingError::{Damaged, DamagedEnd, Missing};
        matches!(self, Damaged { .. } | DamagedEnd { .. } | Missing { .. })
    }
}

fn writer(written_by: &str) -> String {
    if written_by.is_empty() { String::new() } else { format!(" (the file was written by {written_by})") }
}
