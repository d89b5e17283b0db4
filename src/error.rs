//! Every error, each naming the value that was wrong and what would work.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::rows::element::DType;

/// Returned when a store has no room for more rows.
///
/// The message can be replaced, as the original library's could.
///
/// ```
/// use activation_store::StoreFullError;
///
/// assert_eq!(StoreFullError::default().to_string(), "Activation store is full");
/// assert_eq!(StoreFullError::new("no room left").to_string(), "no room left");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct StoreFullError {
    /// The message.
    pub message: Cow<'static, str>,
    /// What there was no room for, if the store says.
    pub no_room: Option<NoRoom>,
}

/// What a store had no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoRoom {
    /// The component that had no room.
    pub component: ComponentName,
    /// The rows of the batch.
    pub rows: usize,
    /// The rows that the store, or its queue, holds already.
    pub held: usize,
    /// The rows that it may hold.
    pub bound: usize,
}

impl StoreFullError {
    /// An error with a message of its own.
    #[must_use]
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        StoreFullError { message: message.into(), no_room: None }
    }

    pub(crate) fn queue(no_room: NoRoom) -> Self {
        let NoRoom { component, rows, held, bound } = &no_room;
        let message = format!(
            "Activation store is full: {rows} rows do not fit the queue of component {component}, which holds {held} of {bound}; \
             wait for the consumers, or raise queue_rows"
        );
        StoreFullError { message: message.into(), no_room: Some(no_room) }
    }

    pub(crate) fn store(no_room: NoRoom) -> Self {
        let NoRoom { component, rows, held, bound } = &no_room;
        let message = format!(
            "Activation store is full: component {component} holds {held} of {bound} rows, so {rows} more do not fit"
        );
        StoreFullError { message: message.into(), no_room: Some(no_room) }
    }
}

impl Default for StoreFullError {
    fn default() -> Self {
        StoreFullError::new("Activation store is full")
    }
}

/// Why a store takes no more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClosedBy {
    /// `close()` was called, or every handle that could write was dropped.
    Close,
    /// `abort()` was called.
    Abort,
    /// No [`Minibatches`](crate::Minibatches) is left, so that no row could ever be served.
    NoConsumers,
    /// This producer's lane was closed; the store itself may be open.
    Lane,
}

/// The source of [`WriteError::Closed`], so that a chain of errors shows it whatever wraps the error.
impl std::error::Error for ClosedBy {}

impl fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClosedBy::Close => "the store is closed",
            ClosedBy::Abort => "the store was aborted",
            ClosedBy::NoConsumers => "the store is closed: no consumer (Minibatches) is left",
            ClosedBy::Lane => "this producer's lane is closed; open another with producer()",
        })
    }
}

/// Why rows were not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The batch has the wrong number of features for its component.
    #[error(
        "component {component} takes rows of {expected} features, but the batch has {got}{}",
        one_row_hint(*expected, *got, *from_vec)
    )]
    Features {
        /// The component, by number and name.
        component: ComponentName,
        /// Its features.
        expected: usize,
        /// The batch's features.
        got: usize,
        /// Whether the batch was made from a `Vec`, which is one row.
        from_vec: bool,
    },
    /// The batch's elements cannot be converted to the component's.
    #[error(
        "component {component} holds {expected}, and {got} rows cannot be converted to that without loss of meaning"
    )]
    Elements {
        /// The component, by number and name.
        component: ComponentName,
        /// Its element type.
        expected: DType,
        /// The batch's element type.
        got: DType,
    },
    /// `append` was given something other than one row.
    #[error("append takes one row, but got {rows}; use extend for a batch")]
    NotOneRow {
        /// The rows it was given.
        rows: usize,
    },
    /// There is no such component.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// There is no room.
    #[error(transparent)]
    Full(#[from] StoreFullError),
    /// The store, or this lane of it, takes no more rows.
    #[error("{0}")]
    Closed(#[source] ClosedBy),
    /// A lane of that name is open.
    #[error("a lane named {name:?} is open already: names are unique, so that a resumed store knows its lanes by them")]
    LaneName {
        /// The name.
        name: Arc<str>,
    },
    /// A lane was to be sent again from its first row, after rows had been sent.
    #[error("the lane has taken rows already, up to row {rows}: call send_again before the first write")]
    LaneStarted {
        /// The next row.
        rows: u64,
    },
    /// A component would run too far ahead of another.
    #[error(
        "component {ahead} is {by} rows ahead of component {missing} in this lane, and this batch would pass max_skew ({max_skew}): \
         write component {missing} too, or raise max_skew (its default is queue_rows)"
    )]
    Skew {
        /// The component of the batch.
        ahead: ComponentName,
        /// The component whose rows are missing.
        missing: ComponentName,
        /// How many rows it is behind.
        by: u64,
        /// The bound.
        max_skew: usize,
    },
    /// A pass lacks a component.
    #[error("the pass has no rows of component {missing}; a pass has every component of the store exactly once")]
    PassLacks {
        /// The component.
        missing: ComponentName,
    },
    /// A pass has a component twice.
    #[error("the pass has component {doubled} twice; a pass has every component of the store exactly once")]
    PassDoubles {
        /// The component.
        doubled: ComponentName,
    },
    /// The components of a pass differ in their number of rows.
    #[error(
        "the pass has {rows} rows of component {component}, but {first_rows} of component {first}; a pass has equally many of each"
    )]
    PassRows {
        /// A component.
        first: ComponentName,
        /// Its rows.
        first_rows: usize,
        /// A component that differs from it.
        component: ComponentName,
        /// Its rows.
        rows: usize,
    },
    /// A pass was handed over on a lane whose components are uneven, so its rows would not be aligned.
    #[error(
        "component {ahead} is {by} rows ahead of component {missing} in this lane, so a whole pass would be misaligned: \
         write the missing rows of component {missing} first, or use another lane (producer())"
    )]
    Uneven {
        /// The component with the most rows.
        ahead: ComponentName,
        /// The component with the fewest.
        missing: ComponentName,
        /// How many rows they differ by.
        by: u64,
    },
    /// Rows lost their counterparts: their lane ended before the same rows of another component came. They were dropped.
    ///
    /// Reported by [`RingStore::flush`](crate::RingStore::flush), and counted in [`Stats`](crate::Stats).
    #[error(
        "a lane ended while {rows} rows of component {present} had no counterpart in component {missing}: they were dropped"
    )]
    Unmatched {
        /// The component that has the rows.
        present: ComponentName,
        /// The component that lacks them.
        missing: ComponentName,
        /// How many rows.
        rows: u64,
    },
    /// A permit was used for what it does not hold room for.
    #[error("this permit holds room for {holds}; call {call}, or reserve the other kind")]
    Permit {
        /// What it holds room for.
        holds: &'static str,
        /// The method that uses it.
        call: &'static str,
    },
    /// The values do not have the shape of a batch.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The rows could not be written to disk. A recorder takes no more after that.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The writer panicked; the store is unusable.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

impl WriteError {
    /// Whether the store had no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, WriteError::Full(_))
    }

    /// Whether the store or the lane is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, WriteError::Closed(_))
    }

    /// Whether the writer panicked.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        matches!(self, WriteError::Poisoned { .. })
    }
}

fn one_row_hint(expected: usize, got: usize, from_vec: bool) -> String {
    if from_vec && got.is_multiple_of(expected.max(1)) {
        return format!(" in one row: a Vec is one row; use Batch::from_vec(values, {expected}) for several");
    }
    String::new()
}

/// Why no minibatch came.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// None was ready in time.
    #[error("no minibatch was ready within {0:?}")]
    Timeout(std::time::Duration),
    /// The store was closed with an error ([`RingStore::close_with`](crate::RingStore::close_with)). Each consumer gets it
    /// once, after the last minibatch.
    #[error(transparent)]
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// The store was aborted before this consumer was made.
    #[error("the store was aborted before this consumer was made; build another store")]
    Aborted,
    /// The writer panicked; the store is unusable.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

impl ReadError {
    /// Whether the wait ran out of time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, ReadError::Timeout(_))
    }

    /// Whether the writer panicked.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        matches!(self, ReadError::Poisoned { .. })
    }
}

/// A store that cannot be built as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A size that must be at least one is zero.
    #[error("{what} is 0; it must be at least 1")]
    Zero {
        /// Which setting.
        what: Cow<'static, str>,
    },
    /// The store has no component.
    #[error("the store has no component; add one with .component(name, features)")]
    NoComponents,
    /// Two components share a name.
    #[error("two components are named {name:?}; names must differ")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// The window holds less than one minibatch.
    #[error(
        "window is {window} rows, less than one minibatch of {batch_size}; use a window of at least {batch_size}, better many times that"
    )]
    WindowTooSmall {
        /// The window, in rows.
        window: usize,
        /// The minibatch, in rows.
        batch_size: usize,
    },
    /// The memory given holds no window.
    #[error(
        "memory is {memory} bytes, but a window of one minibatch of {batch_size} rows needs {needed}, ready frames included; \
         use at least that, a smaller batch_size or fewer ready_frames"
    )]
    MemoryTooSmall {
        /// The memory, in bytes.
        memory: usize,
        /// The minibatch, in rows.
        batch_size: usize,
        /// The least that holds a window, in bytes.
        needed: usize,
    },
    /// The configured sizes do not fit an address space.
    #[error("{what} overflows: {rows} rows of {row_bytes} bytes; use fewer rows or features")]
    Overflow {
        /// What was being sized.
        what: &'static str,
        /// Rows.
        rows: usize,
        /// Bytes of one row over all components (saturated).
        row_bytes: usize,
    },
    /// A count does not fit its type.
    #[error("{what} is {value}; it must be at most {limit}")]
    TooMany {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: usize,
        /// The most it can be.
        limit: usize,
    },
    /// The memory cannot be allocated.
    #[error(
        "{bytes} bytes for {what} ({rows} rows of {row_bytes} bytes) cannot be allocated; use fewer rows or features, or a smaller dtype"
    )]
    Allocation {
        /// What the memory is for.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// For how many rows.
        rows: usize,
        /// Bytes of one row over all components.
        row_bytes: usize,
    },
    /// The memory is not available now.
    #[error(
        "a window of {window} rows needs {} of memory in all, and nine tenths of what is available now is {}; {}. \
         allow_overcommit(true) builds it all the same",
        readable(*.needed),
        readable(*.available),
        what_fits(*.largest_window)
    )]
    Memory {
        /// The window, in rows.
        window: usize,
        /// Bytes that the store needs: for the window, the ready frames and one more.
        needed: usize,
        /// Nine tenths of the bytes that are available now.
        available: usize,
        /// The largest window that fits, in rows; 0 if none does.
        largest_window: usize,
    },
    /// The writer's thread could not be started.
    #[error("the writer's thread could not be started: {reason}")]
    Thread {
        /// The operating system's reason.
        reason: String,
    },
    /// The store to read from is unusable: its writer panicked.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

/// A number of bytes, in the largest unit of which there is one.
pub(crate) fn readable(bytes: usize) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|&(shift, _)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        |(shift, unit)| format!("{:.2} {unit}", bytes as f64 / 2_f64.powi(shift)),
    )
}

fn what_fits(largest_window: usize) -> Cow<'static, str> {
    match largest_window {
        0 => "no window fits: use a smaller batch_size, fewer ready_frames, fewer features or a smaller dtype".into(),
        rows => format!("the largest window that fits is {rows} rows").into(),
    }
}

/// Values whose shape cannot be a batch of rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A number has no rows.
    #[error("a batch needs at least one axis, the features; got a single number")]
    NoAxes,
    /// The values do not divide into rows.
    #[error("{len} values do not divide into rows of {features} features")]
    Ragged {
        /// How many values.
        len: usize,
        /// Features in a row.
        features: usize,
    },
}

/// There is no such component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no component {asked}; this store has {known}")]
pub struct UnknownComponent {
    /// What was asked for.
    pub asked: String,
    /// The components there are.
    pub known: String,
}

/// Why a component of a minibatch cannot be viewed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// There is no such component.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// The component holds another element type.
    #[error("component {component} holds {dtype}, not {asked}; view it as {dtype}")]
    Elements {
        /// The component, by number and name.
        component: ComponentName,
        /// What it holds.
        dtype: DType,
        /// What was asked for.
        asked: DType,
    },
    /// Components that differ in width or element type cannot be stacked.
    #[error("components {first} ({first_shape}) and {other} ({other_shape}) cannot be stacked; view them one by one")]
    Unequal {
        /// One component.
        first: ComponentName,
        /// Its width and element type.
        first_shape: String,
        /// A component that differs from it.
        other: ComponentName,
        /// Its width and element type.
        other_shape: String,
    },
}

/// Why [`get`](crate::ActivationStore::get) has nothing at that index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The index is past the end of its axis.
    #[error("{axis} index {index} is out of range: there are {len}")]
    OutOfRange {
        /// `"row"`, `"component"` or `"feature"`.
        axis: &'static str,
        /// The index.
        index: isize,
        /// The length of the axis.
        len: usize,
    },
    /// A range with a step of zero.
    #[error("the step of the {axis} range is 0; use 1 for every {axis}, or a negative step for the reverse order")]
    ZeroStep {
        /// `"row"`, `"component"` or `"feature"`.
        axis: &'static str,
    },
    /// More axes than a store has.
    #[error("{axes} indices given; a store has three axes: row, component, feature")]
    TooManyAxes {
        /// How many were given.
        axes: usize,
    },
    /// An index that adds an axis.
    #[error("a store cannot be indexed with a new axis; insert it in the result")]
    NewAxis,
    /// The selected components differ in width.
    #[error("components {first} and {other} have {first_features} and {other_features} features; select one component")]
    Unequal {
        /// One component.
        first: usize,
        /// Its features.
        first_features: usize,
        /// A component that differs from it.
        other: usize,
        /// Its features.
        other_features: usize,
    },
    /// The component holds integers, which `get` does not convert.
    #[error(
        "component {component} holds {dtype}, and get returns f32; select other components, or view a minibatch as {dtype}"
    )]
    Integers {
        /// The component.
        component: usize,
        /// What it holds.
        dtype: DType,
    },
    /// The rows are on disk, and cannot be read.
    #[error("{reason}")]
    Unreadable {
        /// What is wrong with which file.
        reason: String,
    },
    /// The store has ended; what it still holds can only be drained.
    #[error("the store has ended; its remaining minibatches can only be drained")]
    Ended,
    /// The writer panicked; the store is unusable.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

/// A component's number and name, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentName {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.index, self.name)
    }
}

/// A lane, as a person knows it: by its name, else by the order of opening.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// 0 for the store's own lane, then in the order in which lanes were opened.
    pub number: u64,
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.number) {
            (Some(name), _) => write!(f, "lane {name:?}"),
            (None, 0) => f.write_str("the store's own lane"),
            (None, number) => write!(f, "lane {number} in the order of opening"),
        }
    }
}

/// A snapshot that could not be taken. The store goes on; earlier snapshots stay.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The store's policy leaves nothing to go on from.
    #[error("{policy}: {advice}")]
    Policy {
        /// Why.
        policy: &'static str,
        /// What would work.
        advice: &'static str,
    },
    /// The store was aborted, or its writer panicked: it holds nothing that could be saved.
    #[error("the store holds nothing to save: {0}")]
    Ended(#[source] WriteError),
    /// A full snapshot of a store that still deals again what its own snapshot says.
    #[error(
        "the resumed store is dealing earlier rows again ({left} to go): wait until it has, or take a light snapshot"
    )]
    DealsAgain {
        /// Rows that have not been dealt again.
        left: u64,
    },
    /// A full snapshot is being written already.
    #[error("another full snapshot is being written: wait for its handle first")]
    InProgress,
    /// There is no memory for the copies of frames.
    #[error(transparent)]
    Memory(BuildError),
    /// The operating system has no thread to write it.
    #[error("the operating system has no thread to write the snapshot: {reason}")]
    Thread {
        /// What it said.
        reason: String,
    },
    /// It could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A store that cannot be resumed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// There is no complete snapshot.
    #[error("{} has no complete snapshot: it should have a folder snapshot-K in it, or be one", dir.display())]
    NoSnapshot {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The snapshot cannot be used.
    #[error("{what} cannot be resumed: {reason}{}", offer(earlier.as_deref()))]
    Refused {
        /// The snapshot's folder, or the bytes.
        what: String,
        /// Why.
        reason: RefusedSnapshot,
        /// The newest snapshot before it in the same folder. It has not been checked.
        earlier: Option<PathBuf>,
    },
    /// A setting differs from the snapshot's.
    #[error(
        "{setting} is {given}, but the snapshot was taken with {saved}: leave it out, so that the snapshot's holds, or start anew with \
         build()"
    )]
    Mismatch {
        /// Which setting.
        setting: &'static str,
        /// What the builder says.
        given: String,
        /// What the snapshot says.
        saved: String,
    },
    /// The snapshot has a value that this release does not know.
    #[error("the snapshot's {what} is {value:?}, which this release does not know: use the release that wrote it")]
    Unknown {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A full snapshot was given without its files.
    #[error("a full snapshot has its rows in files: resume it with resume(dir)")]
    NeedsFiles,
    /// It could not be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store cannot be built here.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedSnapshot {
    /// It was damaged after it was written.
    #[error("it is damaged: {reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// It is something else.
    #[error("it is not a snapshot of an activation store: {reason}")]
    Foreign {
        /// What it is, or lacks.
        reason: String,
    },
    /// It has another version.
    #[error(
        "its {what} is {found}, and this release knows {known}: use the release that wrote it (activation-store {release})"
    )]
    Version {
        /// Of the format, or of dealing ([`DEALING_VERSION`](crate::DEALING_VERSION)).
        what: &'static str,
        /// Its version.
        found: u32,
        /// The version that can be resumed.
        known: u32,
        /// The release that wrote it.
        release: String,
    },
}

fn offer(earlier: Option<&Path>) -> String {
    earlier.map_or_else(String::new, |earlier| {
        format!("; the snapshot before it is {}: resume from that", earlier.display())
    })
}

/// A resumed store was not sent the rows that its snapshot needs. Reaches the consumers as [`ReadError::Failed`], after the last
/// minibatch that could be served.
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

/// Something that could not be done with a file or a folder.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {operation} {}: {error}{}", path.display(), advice(error.kind()))]
#[non_exhaustive]
pub struct DiskError {
    /// What was tried: "write", say.
    pub operation: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the operating system said.
    #[source]
    pub error: Arc<io::Error>,
}

fn advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull => " (the disk is full: free some space, or choose a folder on another disk)",
        io::ErrorKind::QuotaExceeded => " (your quota is used up: free some space, or choose a folder on another disk)",
        io::ErrorKind::PermissionDenied => {
            " (you may not write or read there: change the permissions, or choose another folder)"
        }
        io::ErrorKind::ReadOnlyFilesystem => " (nothing can be written there: choose another folder)",
        io::ErrorKind::NotFound => " (it does not exist, or not any more)",
        _ => "",
    }
}

/// What is wrong with a recording.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// A file could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file does not hold what was written.
    #[error("{} is damaged: {reason}; `Recording::salvage` opens the whole shards (Python: `salvage=True`)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What a finished lane says of itself is damaged, or not true.
    #[error("{} is damaged: {reason}; verify the lane, then remove this file, or record the lane again", path.display())]
    DamagedEnd {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A shard is missing: between others of its lane, or at the end of a finished lane.
    #[error("shard {number} of lane {lane:?} is missing in {}: bring its folder back; `Recording::salvage` opens the others (Python: `salvage=True`)", dir.display())]
    Missing {
        /// The recording.
        dir: PathBuf,
        /// The lane.
        lane: String,
        /// The shard's number on the lane.
        number: u64,
    },
    /// The shards of a recording differ in their components, or from those that were asked for.
    #[error("{} holds other components than {expected}: use another folder, or the same components", path.display())]
    Components {
        /// The shard.
        path: PathBuf,
        /// What was expected.
        expected: String,
    },
    /// There is no whole shard.
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
    /// A setting that cannot be.
    #[error("{what} is {value}; it must be {expected}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would work.
        expected: String,
    },
    /// The components cannot be.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A row or a component that is not there.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A component that is not there.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// A snapshot of a ring that a replay filled cannot be used.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// A ring did not take the rows of a replay.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Equal if the same operation on the same path failed in the same way.
impl PartialEq for DiskError {
    fn eq(&self, other: &Self) -> bool {
        (self.operation, &self.path, self.error.kind()) == (other.operation, &other.path, other.error.kind())
    }
}

impl Eq for DiskError {}
