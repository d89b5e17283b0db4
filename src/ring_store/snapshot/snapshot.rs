//! A snapshot in memory: the public type, and its form as bytes.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use crate::dealing::dealer::DEALING_VERSION;
use crate::disk::checksum::checksum;
use crate::disk::sealed::{open_line, seal_line};
use crate::ring_store::error::LaneId;
use crate::ring_store::snapshot::body::{Body, FORMAT, FORMAT_VERSION, LaneBody, OLDEST_VERSION, SavedFile, Versions};
use crate::ring_store::snapshot::error::{RefusedSnapshot, ResumeError};

/// What a snapshot contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Form {
    /// The lanes and numbers of the dealt rows: some bytes for each batch in the window. To resume, you send the rows of about one
    /// window again.
    #[default]
    Light,
    /// The rows, too: as many bytes as the ring holds. To resume, you send again only the rows that were not dealt yet: the rows
    /// in the queue, and a whole pass if only a part of it was dealt.
    Full,
}

/// The state of a store between two minibatches.
///
/// Made by [`Minibatches::state`](crate::Minibatches::state), or read from a directory that
/// [`Minibatches::snapshot`](crate::Minibatches::snapshot) has written. [`RingStoreBuilder::resume_from`] and
/// [`resume`](crate::RingStoreBuilder::resume) build a store that goes on from the snapshot.
///
/// [`RingStoreBuilder::resume_from`]: crate::RingStoreBuilder::resume_from
#[derive(Clone, PartialEq)]
pub struct Snapshot {
    pub(crate) body: Arc<Body>,
}

/// Where a lane of a resumed store goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResumeAt {
    /// The lane.
    pub lane: LaneId,
    /// The number of passes that you need not send again. Start with the next pass. Passes without rows count, too, except those that come
    /// directly before the next pass with rows: send these again.
    pub passes: u64,
    /// The number of rows of each component that you need not send again. If the lane writes passes, a pass starts at this row.
    pub row: u64,
    /// The value that you [attached](crate::Pass::attach) to the last pass that you need not send again.
    pub value: Option<Box<[u8]>>,
    /// The row at which the lane had ended. The lane takes the rows before it, and ends. `None` if the lane was open.
    pub ends_at: Option<u64>,
}

impl Snapshot {
    pub(crate) fn new(body: Body) -> Self {
        Snapshot { body: Arc::new(body) }
    }

    /// The number of minibatches that consumers had taken.
    #[must_use]
    pub fn minibatches(&self) -> u64 {
        self.body.minibatches
    }

    /// Whether the snapshot is light or full.
    #[must_use]
    pub fn form(&self) -> Form {
        if self.body.is_full() { Form::Full } else { Form::Light }
    }

    /// Says where each lane goes on, in the order in which the lanes were opened. Leaves out lanes that stay ended.
    #[must_use]
    pub fn resume_at(&self) -> Vec<ResumeAt> {
        let at = self.body.lanes_that_go_on().map(|LaneBody { lane, log }| {
            let place = log.place(self.body.needed(log));
            ResumeAt {
                lane: LaneId { number: *lane, name: log.name.clone() },
                passes: place.passes,
                row: place.row,
                value: place.value.map(|value| Box::from(&*value)),
                ends_at: log.ended.then_some(log.end),
            }
        });
        at.collect()
    }

    /// Writes the snapshot as bytes, for a checkpoint of your own: two lines of JSON. The second line has a checksum of the first.
    ///
    /// The bytes do not contain the rows of a full snapshot.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // JSON can express strings, numbers and lists, so this never fails.
        seal_line(serde_json::to_string(&*self.body).unwrap_or_default())
    }

    /// Reads the bytes that [`to_bytes`](Self::to_bytes) has written.
    ///
    /// # Errors
    /// [`ResumeError::Refused`] if the bytes are damaged, are not a snapshot, or have another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ResumeError> {
        Snapshot::parse(bytes).map_err(|reason| ResumeError::Refused {
            what: "the snapshot".to_owned(),
            reason,
            earlier: None,
        })
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, RefusedSnapshot> {
        let foreign = |reason: String| RefusedSnapshot::Foreign { reason };
        let damaged = |reason: String| RefusedSnapshot::Damaged { reason };
        let first = sealed(bytes)?;
        let versions: Versions = serde_json::from_str(first).map_err(|error| foreign(error.to_string()))?;
        let version = |what, found, known| {
            let release = versions.crate_version.clone();
            if found == known { Ok(()) } else { Err(RefusedSnapshot::Version { what, found, known, release }) }
        };
        if versions.format_version < OLDEST_VERSION || versions.format_version > FORMAT_VERSION {
            version("format version", versions.format_version, FORMAT_VERSION)?;
        }
        version("dealing version", versions.dealing_version, DEALING_VERSION)?;
        let mut body: Body = serde_json::from_str(first).map_err(|error| damaged(error.to_string()))?;
        body.upgrade();
        // Every store that is resumed from this snapshot belongs to the run that took it, so its name must not be a random one.
        body.run.get_or_insert_with(|| checksum(first.as_bytes()));
        match body.contradiction() {
            Some(contradiction) => Err(damaged(contradiction.to_owned())),
            None => Ok(Snapshot::new(body)),
        }
    }
}

/// Returns the line with the state, if it is as it was written.
fn sealed(bytes: &[u8]) -> Result<&str, RefusedSnapshot> {
    let foreign = |reason: String| RefusedSnapshot::Foreign { reason };
    let text = std::str::from_utf8(bytes).map_err(|error| foreign(format!("it is no text: {error}")))?;
    if !text.lines().next().unwrap_or_default().contains(FORMAT) {
        return Err(foreign(format!("its first line does not say {FORMAT:?}")));
    }
    open_line(text).map_err(|reason| RefusedSnapshot::Damaged { reason })
}

/// What a list of snapshots reads of each. Other versions have it, too.
pub(crate) struct Seen {
    pub(crate) minibatches: u64,
    pub(crate) run: Option<String>,
    pub(crate) files: Vec<SavedFile>,
}

impl Seen {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, RefusedSnapshot> {
        #[derive(Deserialize)]
        struct Part {
            minibatches: u64,
            run: Option<String>,
            saved: Option<Saved>,
        }
        #[derive(Deserialize)]
        struct Saved {
            files: Vec<SavedFile>,
        }
        let first = sealed(bytes)?;
        let part: Part =
            serde_json::from_str(first).map_err(|error| RefusedSnapshot::Damaged { reason: error.to_string() })?;
        let files = part.saved.map_or_else(Vec::new, |saved| saved.files);
        Ok(Seen { minibatches: part.minibatches, run: part.run, files })
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("minibatches", &self.minibatches())
            .field("form", &self.form())
            .finish_non_exhaustive()
    }
}
