//! Every error of the crate. Each message names the wrong value and what would work.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::rows::element::DType;

/// Returned when a store has no room for more rows.
///
/// You can replace the message, as in the original library.
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
    /// What the store had no room for, if the store says so.
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
    /// The rows that the store, or its queue, may hold.
    pub bound: usize,
}

impl StoreFullError {
    /// Creates an error with your message.
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

    pub(crate) fn permit(no_room: NoRoom, reserved: usize) -> Self {
        let NoRoom { component, rows, bound, .. } = &no_room;
        let message = format!(
            "{rows} rows of component {component} do not fit the permit, which has {bound} rows left of {reserved}; hand over at most \
             that many, or reserve room for the others"
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

/// Says why a store takes no more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClosedBy {
    /// `close()` was called, or every handle that could write was dropped.
    Close,
    /// `abort()` was called.
    Abort,
    /// No [`Minibatches`](crate::Minibatches) is left, so no row can be served.
    NoConsumers,
    /// The lane of this producer was closed. The store may still be open.
    Lane,
    /// The recorder has been closed or finished.
    Recorder,
}

impl fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClosedBy::Close => "the store is closed",
            ClosedBy::Abort => "the store was aborted",
            ClosedBy::NoConsumers => "the store is closed: no consumer (Minibatches) is left",
            ClosedBy::Lane => "this producer's lane is closed; open another with producer()",
            ClosedBy::Recorder => "the recorder is closed; resume the lane with another recorder to go on",
        })
    }
}

/// Says that a store takes no more rows, and why. It also knows which store, so that a group of producers tells the end of its own
/// store from the end of another one.
///
/// This is the source of [`WriteError::Closed`]. A chain of errors shows it even if a wrapper hides the [`WriteError`]. Two values are
/// equal if their reasons are. The message of the [`WriteError`] has the reason, so the message of this source does not repeat it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it takes no more rows")]
#[non_exhaustive]
pub struct Closed {
    /// The reason.
    pub by: ClosedBy,
    /// The ring store that has ended. `None` if only a lane has, or if it is another kind of store.
    store: Option<StoreId>,
}

impl Closed {
    pub(crate) fn store(store: StoreId, by: ClosedBy) -> Self {
        Closed { by, store: Some(store) }
    }

    pub(crate) fn is_end_of(&self, store: StoreId) -> bool {
        self.store == Some(store)
    }
}

impl PartialEq for Closed {
    fn eq(&self, other: &Self) -> bool {
        self.by == other.by
    }
}

impl Eq for Closed {}

/// Tells one store from every other store of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreId(u64);

impl StoreId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        StoreId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// For stores of your own.
impl From<ClosedBy> for WriteError {
    fn from(by: ClosedBy) -> Self {
        WriteError::Closed(Closed { by, store: None })
    }
}

/// Returned when rows are not stored.
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
        /// Features of a row of the component.
        expected: usize,
        /// Features of a row of the batch.
        got: usize,
        /// Whether the batch was made from a `Vec`. A `Vec` is one row.
        from_vec: bool,
    },
    /// The element type of the batch cannot be converted to the element type of the component.
    #[error(
        "component {component} holds {expected}, and {got} rows cannot be converted to that without loss of meaning"
    )]
    Elements {
        /// The component, by number and name.
        component: ComponentName,
        /// The element type of the component.
        expected: DType,
        /// The element type of the batch.
        got: DType,
    },
    /// `append` got a batch that is not one row.
    #[error("append takes one row, but got {rows}; use extend for a batch")]
    NotOneRow {
        /// Rows of the batch.
        rows: usize,
    },
    /// The store has no such component.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// The store has no room for the rows.
    #[error(transparent)]
    Full(#[from] StoreFullError),
    /// The store or the lane takes no more rows.
    #[error("{}", .0.by)]
    Closed(#[source] Closed),
    /// A lane with that name is open already.
    #[error("a lane named {name:?} is open already: names are unique, so that a resumed store knows its lanes by them")]
    LaneName {
        /// The name.
        name: Arc<str>,
    },
    /// [`send_again`](crate::Producer::send_again) was called after the lane had taken rows.
    #[error("the lane has taken rows already, up to row {rows}: call send_again before the first write")]
    LaneStarted {
        /// The number of the next row of the lane.
        rows: u64,
    },
    /// The batch would bring its component too far ahead of another component.
    #[error(
        "component {ahead} is {by} rows ahead of component {missing} in this lane, and this batch would pass max_skew ({max_skew}): \
         write component {missing} too, or raise max_skew (its default is queue_rows)"
    )]
    Skew {
        /// The component of the batch.
        ahead: ComponentName,
        /// The component whose rows are missing.
        missing: ComponentName,
        /// How many rows `ahead` is ahead of `missing` without the batch.
        by: u64,
        /// How many rows a component may be ahead.
        max_skew: usize,
    },
    /// The pass lacks a component.
    #[error("the pass has no rows of component {missing}; a pass has every component of the store exactly once")]
    PassLacks {
        /// The component that is missing.
        missing: ComponentName,
    },
    /// The pass has a component twice.
    #[error("the pass has component {doubled} twice; a pass has every component of the store exactly once")]
    PassDoubles {
        /// The component that is there twice.
        doubled: ComponentName,
    },
    /// The components of the pass differ in their number of rows.
    #[error(
        "the pass has {rows} rows of component {component}, but {first_rows} of component {first}; a pass has equally many of each"
    )]
    PassRows {
        /// The first component of the pass.
        first: ComponentName,
        /// Rows of `first`.
        first_rows: usize,
        /// A component that has another number of rows.
        component: ComponentName,
        /// Rows of `component`.
        rows: usize,
    },
    /// The lane has more rows of one component than of another, so the rows of a pass would not be aligned.
    #[error(
        "component {ahead} is {by} rows ahead of component {missing} in this lane, so a whole pass would be misaligned: \
         write the missing rows of component {missing} first, or use another lane (producer())"
    )]
    Uneven {
        /// The component with the most rows.
        ahead: ComponentName,
        /// The component with the fewest rows.
        missing: ComponentName,
        /// How many rows `ahead` is ahead of `missing`.
        by: u64,
    },
    /// A lane ended before the same rows of another component came. The store dropped the rows that were there.
    ///
    /// [`RingStore::flush`](crate::RingStore::flush) reports this error, and [`Stats`](crate::Stats) counts the rows.
    #[error(
        "a lane ended while {rows} rows of component {present} had no counterpart in component {missing}: they were dropped"
    )]
    Unmatched {
        /// The component that has the rows.
        present: ComponentName,
        /// The component that lacks the rows.
        missing: ComponentName,
        /// How many rows were dropped.
        rows: u64,
    },
    /// A permit for one component was used for a pass, or a permit for a pass was used for one component.
    #[error("this permit holds room for {holds}; call {call}, or reserve the other kind")]
    Permit {
        /// What the permit holds room for.
        holds: &'static str,
        /// The method that uses the permit.
        call: &'static str,
    },
    /// The values do not have the shape of a batch.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The rows could not be written to the disk. The recorder takes no more rows after this error.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store's writer, or a thread of the recorder, panicked. You cannot use the store or the recorder any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

impl WriteError {
    /// Returns whether the store had no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, WriteError::Full(_))
    }

    /// Returns whether the store or the lane is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, WriteError::Closed(_))
    }

    /// Returns why the store or the lane takes no more rows. `None` for another error.
    #[must_use]
    pub fn closed_by(&self) -> Option<ClosedBy> {
        if let WriteError::Closed(closed) = self { Some(closed.by) } else { None }
    }

    /// Returns whether the writer panicked.
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

/// Returned when a consumer gets an error and no minibatch.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No minibatch was ready within the time limit.
    #[error("no minibatch was ready within {0:?}")]
    Timeout(std::time::Duration),
    /// No minibatch was ready within the time limit, because a resumed store waits for a lane that no producer has opened.
    #[error(
        "no minibatch was ready within {after:?}: the resumed store waits for {lane}, which was open when it was saved; open it with \
         producer() or producer_named(), and send its rows or close it"
    )]
    LaneMissing {
        /// The time limit.
        after: std::time::Duration,
        /// The lane.
        lane: LaneId,
    },
    /// The store was closed with an error: by [`RingStore::close_with`](crate::RingStore::close_with), or because a producer
    /// failed. Each consumer gets the error once, after the last minibatch.
    #[error(transparent)]
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// The store was aborted before this consumer was made.
    #[error("the store was aborted before this consumer was made; build another store")]
    Aborted,
    /// The store's writer panicked. You cannot use the store any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

impl ReadError {
    /// Returns whether no minibatch was ready within the time limit.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, ReadError::Timeout(_) | ReadError::LaneMissing { .. })
    }

    /// Returns whether the writer panicked.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        matches!(self, ReadError::Poisoned { .. })
    }
}

/// Returned when a store cannot be built as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting is 0, and it must be at least 1.
    #[error("{what} is 0; it must be at least 1")]
    Zero {
        /// The setting.
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
    /// The memory is too small for a window of one minibatch.
    #[error(
        "memory is {memory} bytes, but a window of one minibatch of {batch_size} rows needs {needed}, ready frames included; \
         use at least that, a smaller batch_size or fewer ready_frames"
    )]
    MemoryTooSmall {
        /// The memory, in bytes.
        memory: usize,
        /// The minibatch, in rows.
        batch_size: usize,
        /// The least memory that holds such a window, in bytes.
        needed: usize,
    },
    /// The configured sizes are larger than the address space.
    #[error("{what} overflows: {rows} rows of {row_bytes} bytes; use fewer rows or features")]
    Overflow {
        /// What the memory is for.
        what: &'static str,
        /// The configured rows.
        rows: usize,
        /// Bytes of one row of all components, or the largest number if there are more.
        row_bytes: usize,
    },
    /// A setting is above its limit.
    #[error("{what} is {value}; it must be at most {limit}")]
    TooMany {
        /// The setting.
        what: &'static str,
        /// The value of the setting.
        value: usize,
        /// The largest value that the setting can have.
        limit: usize,
    },
    /// The operating system does not provide the memory.
    #[error(
        "{bytes} bytes for {what} ({rows} rows of {row_bytes} bytes) cannot be allocated; use fewer rows or features, or a smaller dtype"
    )]
    Allocation {
        /// What the memory is for.
        what: &'static str,
        /// How many bytes.
        bytes: usize,
        /// For how many rows.
        rows: usize,
        /// Bytes of one row of all components.
        row_bytes: usize,
    },
    /// The store needs more than nine tenths of the memory that is available now.
    #[error(
        "a window of {window} rows needs {} of memory in all, and nine tenths of what is available now is {}; {}. \
         allow_overcommit(true) builds it anyway",
        readable(*.needed),
        readable(*.available),
        what_fits(*.largest_window)
    )]
    Memory {
        /// The window, in rows.
        window: usize,
        /// Bytes that the store needs: for the window, the ready frames and one more frame.
        needed: usize,
        /// Nine tenths of the bytes that are available now.
        available: usize,
        /// The largest window that fits, in rows. 0 if no window fits.
        largest_window: usize,
    },
    /// The writer's thread could not be started.
    #[error("the writer's thread could not be started: {reason}")]
    Thread {
        /// The operating system's reason.
        reason: String,
    },
    /// The store's writer panicked, or the recorder's thread has ended. You cannot use the store or the recorder any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message, or what has ended.
        cause: Arc<str>,
    },
}

/// Writes a number of bytes in the largest unit in which it is at least 1.
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

/// Returned when values do not have the shape of a batch of rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The array is a single number: it has no axes, so no rows.
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

/// Returned when a store has no such component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no component {asked}; this store has {known}")]
pub struct UnknownComponent {
    /// The number or name that was asked for.
    pub asked: String,
    /// The components that the store has.
    pub known: String,
}

/// Returned when a component of a minibatch cannot be viewed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The minibatch has no such component.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// The component holds another element type.
    #[error("component {component} holds {dtype}, not {asked}; view it as {dtype}")]
    Elements {
        /// The component, by number and name.
        component: ComponentName,
        /// The element type of the component.
        dtype: DType,
        /// The element type that was asked for.
        asked: DType,
    },
    /// The components differ in width or element type, so they cannot be stacked.
    #[error("components {first} ({first_shape}) and {other} ({other_shape}) cannot be stacked; view them one by one")]
    Unequal {
        /// One component.
        first: ComponentName,
        /// The width and element type of `first`.
        first_shape: String,
        /// A component that differs from `first`.
        other: ComponentName,
        /// The width and element type of `other`.
        other_shape: String,
    },
}

/// Returned when [`get`](crate::ActivationStore::get) cannot return the values at an index.
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
    /// The step of a range is 0.
    #[error("the step of the {axis} range is 0; use 1 for every {axis}, or a negative step for the reverse order")]
    ZeroStep {
        /// `"row"`, `"component"` or `"feature"`.
        axis: &'static str,
    },
    /// The index has more axes than a store.
    #[error("{axes} indices given; a store has three axes: row, component, feature")]
    TooManyAxes {
        /// How many were given.
        axes: usize,
    },
    /// The index adds an axis.
    #[error("a store cannot be indexed with a new axis; insert it in the result")]
    NewAxis,
    /// The selected components differ in width.
    #[error("components {first} and {other} have {first_features} and {other_features} features; select one component")]
    Unequal {
        /// One component.
        first: usize,
        /// Features of a row of `first`.
        first_features: usize,
        /// A component that differs from `first`.
        other: usize,
        /// Features of a row of `other`.
        other_features: usize,
    },
    /// The component holds integers, which `get` does not convert.
    #[error(
        "component {component} holds {dtype}, and get returns f32; select other components, or view a minibatch as {dtype}"
    )]
    Integers {
        /// The component.
        component: usize,
        /// The element type of the component.
        dtype: DType,
    },
    /// The rows are on disk, and a file cannot be read.
    #[error("{reason}")]
    Unreadable {
        /// Which file it is, and what is wrong with it.
        reason: String,
    },
    /// The store has ended. You can only drain the minibatches that are left.
    #[error("the store has ended; its remaining minibatches can only be drained")]
    Ended,
    /// The store's writer panicked. You cannot use the store any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

/// The number and name of a component, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentName {
    /// The number of the component, from 0.
    pub index: usize,
    /// The name of the component.
    pub name: Arc<str>,
}

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.index, self.name)
    }
}

/// Names a lane in messages: by its name, or by its number if it has no name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// 0 for the store's own lane. Other lanes are numbered from 1 in the order in which they were opened.
    pub number: u64,
    /// The name of the lane, if it has one.
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

/// Reported when a resumed store does not get the rows that its snapshot needs. Consumers get it as [`ReadError::Failed`], after the
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

/// Returned when an operation on a file or a folder fails.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {operation} {}: {error}{}", path.display(), advice(error))]
#[non_exhaustive]
pub struct DiskError {
    /// The operation, for example `"write"`.
    pub operation: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The error of the operating system. The message has it, so it is not a source as well.
    pub error: Arc<io::Error>,
}

/// The number of the error "too many open files", which has no [`io::ErrorKind`].
const TOO_MANY_FILES: i32 = 24;

fn advice(error: &io::Error) -> &'static str {
    if cfg!(unix) && error.raw_os_error() == Some(TOO_MANY_FILES) {
        return " (the process has too many files open: raise its limit, for example with `ulimit -n`)";
    }
    match error.kind() {
        io::ErrorKind::StorageFull => " (the disk is full: free some space, or choose a folder on another disk)",
        io::ErrorKind::QuotaExceeded => " (your quota is used up: free some space, or choose a folder on another disk)",
        io::ErrorKind::PermissionDenied => {
            " (you may not write or read there: change the permissions, or choose another folder)"
        }
        io::ErrorKind::ReadOnlyFilesystem => " (nothing can be written there: choose another folder)",
        io::ErrorKind::StaleNetworkFileHandle => {
            " (the server of the network folder has lost it: mount the folder again)"
        }
        io::ErrorKind::NotFound => " (it does not exist, or not any more)",
        _ => "",
    }
}

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

impl DiskError {
    pub(crate) fn reading(path: &Path, error: io::Error) -> Self {
        DiskError { operation: "read", path: path.to_owned(), error: Arc::new(error) }
    }
}

/// Two errors are equal if the same operation on the same path failed with the same kind of error.
impl PartialEq for DiskError {
    fn eq(&self, other: &Self) -> bool {
        (self.operation, &self.path, self.error.kind()) == (other.operation, &other.path, other.error.kind())
    }
}

impl Eq for DiskError {}
