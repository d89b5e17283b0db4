//! Records the passes of one lane.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use crate::disk::disk::Disk;
use crate::recording::entrance::Entrance;
use crate::recording::error::RecordingError;
use crate::recording::lane_writer::LaneMessage;
use crate::recording::room::{PassRoom, Room};
use crate::recording::sealer::{Progress, Safe};
use crate::rows::batch::{Batch, Refused, RefusedPass, one_row};
use crate::rows::build_error::BuildError;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::full::StoreFullError;
use crate::rows::layout::{Component, ComponentKey, Layout};
use crate::rows::pass::{WholePass, check};
use crate::rows::values::ValueCounts;
use crate::waiting::handle::WriteHandle;
use crate::waiting::wait::lock;

/// Records the passes of one lane into a folder.
///
/// A recorder is one writer. Several recorders (in threads, processes or ranks) can record into one folder at once, without a lock.
/// Each one needs a lane of its own. A shard gets its name only when it is whole, checksummed and synced. A
/// [`Recording`](crate::Recording) does not read it before.
///
/// Ways to write, with the names that a lane of a ring has:
///
/// | method | what you give | if two passes wait for the disk |
/// |---|---|---|
/// | [`extend_pass`](Self::extend_pass) | a whole pass | blocks |
/// | [`try_extend_pass`](Self::try_extend_pass) | a whole pass | gives the pass back |
/// | [`reserve_pass`](Self::reserve_pass) | a whole pass, later | a future waits, or a thread with a time limit |
/// | [`begin_pass`](Self::begin_pass) | one component after the other, and then `commit` | `commit` blocks, `try_commit` gives the pass back |
/// | [`extend`](Self::extend) | one component after the other; the pass ends by itself | blocks |
///
/// # Memory
/// A recorder needs 1 MiB for each component, and holds the batches of at most four passes. The size of a shard does not matter.
/// This does not count the page cache of the operating system. The page cache holds the rows that are not on disk yet: at most three
/// shards with [`SyncPolicy::EachShard`](crate::SyncPolicy::EachShard).
///
/// ```
/// use activation_store::{Recorder, Recording};
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("recorder-doc-{}", std::process::id()));
/// let recorder = Recorder::builder().component("mlp", 4).shard_rows(32).create(&dir)?;
/// for pass in 0..5 {
///     let _ = recorder.extend_pass([("mlp", Array2::<f32>::from_elem((10, 4), pass as f32))])?;
/// }
/// assert_eq!(recorder.finish()?.passes, 5);
///
/// let recording = Recording::open(&dir)?;
/// assert_eq!(recording.rows(), 50);
/// assert_eq!(recording.get("mlp", &[42])?.to_f32()[[0, 0]], 4.0);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Recorder {
    pub(crate) layout: Layout,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) lane: String,
    /// Brings the passes of several threads into one order.
    entrance: Mutex<Entrance>,
    pub(crate) room: Room,
    thread: Option<JoinHandle<()>>,
    resumed: Safe,
    pub(crate) progress: Arc<Progress>,
}

impl Recorder {
    pub(crate) fn new(
        layout: Layout,
        (room, sender): (Room, Sender<LaneMessage>),
        thread: JoinHandle<()>,
        resumed: Safe,
        progress: Arc<Progress>,
        disk: Arc<dyn Disk>,
        (dir, lane): (PathBuf, String),
    ) -> Self {
        let entrance = Mutex::new(Entrance::new(sender, &layout));
        Recorder { layout, disk, dir, lane, entrance, room, thread: Some(thread), resumed, progress }
    }

    /// Returns what was safe when this recorder began. Skip as many passes. Zero for a new lane.
    #[must_use]
    pub fn resumed(&self) -> Safe {
        self.resumed
    }

    /// Returns what is safe now. Does not wait.
    #[must_use]
    pub fn safe(&self) -> Safe {
        self.progress.safe()
    }

    /// Returns why the recorder takes nothing more, without waiting: the first error of the disk ([`WriteError::Disk`]), or a panic on one
    /// of the recorder's threads ([`WriteError::Poisoned`]), for example of a batch's owner. Resume the lane then.
    #[must_use]
    pub fn failure(&self) -> Option<WriteError> {
        self.progress.outcome().err()
    }

    /// Returns how many rows of each component had values that were not finite, or became infinite, since this recorder began. Does not
    /// wait, so rows that were handed over just now may be missing; [`flush`](Self::flush) waits for them.
    #[must_use]
    pub fn value_counts(&self) -> Vec<ValueCounts> {
        let mut counts = self.progress.values();
        counts.resize(self.layout.n_components(), ValueCounts::default());
        counts
    }

    /// Returns the components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.layout.components()
    }

    /// Records the rows of all components that one forward pass produced.
    ///
    /// `pass` has every component exactly once, in any order. All batches, `[rows, features]`, have the same number of rows. The handle
    /// resolves when the recorder has released the batches. The rows are safe when [`flush`](Self::flush) returns, or when
    /// [`safe`](Self::safe) counts their pass.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back in these cases:
    ///
    /// - A component is missing, unknown, there twice, or has another number of rows.
    /// - The number of features or the element type of a batch is wrong.
    /// - [`extend`](Self::extend) has begun a pass that is not whole.
    /// - The recorder cannot write any more. The error is the first [`DiskError`](crate::DiskError), a panic, or [`WriteError::Closed`].
    ///
    /// If the disk fails later, the handle of this pass or of a later pass has the error.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.commit(WholePass::new(&self.layout, pass)?)
    }

    /// Records a pass as [`extend_pass`](Self::extend_pass) does if there is room. Returns at once.
    ///
    /// # Errors
    /// Same as [`extend_pass`](Self::extend_pass), and [`WriteError::Full`] if two passes wait for the disk, or other callers wait for room.
    pub fn try_extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.try_commit(WholePass::new(&self.layout, pass)?)
    }

    /// Waits for room, and records a pass that was checked.
    pub(crate) fn commit(&self, pass: WholePass) -> Result<WriteHandle, RefusedPass> {
        let room = self.room.take();
        self.record(pass, room)
    }

    /// Records a pass that was checked if there is room.
    pub(crate) fn try_commit(&self, pass: WholePass) -> Result<WriteHandle, RefusedPass> {
        match self.try_take_room() {
            Ok(room) => self.record(pass, room),
            Err(error) => Err(pass.refused(error)),
        }
    }

    /// Takes room for a pass if there is some.
    pub(crate) fn try_take_room(&self) -> Result<PassRoom, WriteError> {
        self.check_open()?;
        let full = "The recorder has no room: two passes wait for the disk; wait with extend_pass or reserve_pass";
        self.room.try_take().ok_or_else(|| StoreFullError::new(full).into())
    }

    /// Checks that the recorder takes passes. The first error of the disk comes before the end.
    pub(crate) fn check_open(&self) -> Result<(), WriteError> {
        self.enter().check_open(&self.progress)
    }

    /// Records a pass that was checked and has its room.
    pub(crate) fn record(&self, pass: WholePass, room: PassRoom) -> Result<WriteHandle, RefusedPass> {
        let entrance = self.enter();
        if let Err(error) = entrance.check(&self.layout, &self.progress) {
            drop(entrance);
            return Err(pass.refused(error));
        }
        let handed_over = entrance.hand_over(pass, room);
        drop(entrance);
        handed_over.map_err(|unsent| match unsent {
            LaneMessage::Pass(pass, ..) => pass.refused(ClosedBy::Recorder.into()),
            _ => RefusedPass { error: ClosedBy::Recorder.into(), batches: Vec::new() },
        })
    }

    /// Hands a pass to a ring, and records it. The ring and the recorder have the passes of all threads in the same order.
    pub(crate) fn record_with(
        &self,
        pass: WholePass,
        room: PassRoom,
        ring: impl FnOnce() -> Result<WriteHandle, RefusedPass>,
    ) -> Result<WriteHandle, RefusedPass> {
        // Held until both have the pass. `pass` outlives it, also if `ring` panics, because to drop the batches may run foreign code.
        let entrance = self.enter();
        if let Err(error) = entrance.check(&self.layout, &self.progress) {
            drop(entrance);
            return Err(pass.refused(error));
        }
        let trained = ring()?;
        let recorded = entrance.hand_over(pass, room);
        drop(entrance);
        // If the recorder's thread has just ended, the ring has the pass already. So the handle gets the error.
        let recorded = recorded.unwrap_or_else(|_| WriteHandle::ready(Err(ClosedBy::Recorder.into())));
        Ok(WriteHandle::all([trained, recorded]))
    }

    /// Records a batch, `[rows, features]`, of one component. The pass is whole when every component has come once.
    ///
    /// The handle resolves when the pass is whole and the recorder has released the batches. If the pass is not whole when the recorder
    /// is finished or dropped, the recorder discards the pass, and its handles fail with [`WriteError::Closed`].
    ///
    /// # Errors
    /// [`Refused`] gives the batch back in these cases:
    ///
    /// - The component is unknown, or the pass has it already.
    /// - The number of features or the element type is wrong, or the number of rows differs from the other batches of the pass.
    /// - The recorder cannot write any more. The error is the first [`DiskError`](crate::DiskError), a panic, or [`WriteError::Closed`].
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk.
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        let (component, batch) = check(&self.layout, component, batch.into())?;
        let room = self.room.take();
        let mut entrance = self.enter();
        let gathered = entrance.gather(&self.layout, &self.progress, batch, component);
        let whole = entrance.take_whole();
        let sent = whole.map(|(pass, replies)| entrance.send(LaneMessage::Pass(pass, replies, room)));
        drop(entrance);
        // If the thread has ended, the replies are dropped here, and their handles resolve as closed.
        drop(sent);
        gathered
    }

    /// Records one row of one component. See [`extend`](Self::extend).
    ///
    /// # Errors
    /// Same as [`extend`](Self::extend), and [`WriteError::NotOneRow`] if `row` is not one row.
    ///
    /// # Blocking
    /// Same as [`extend`](Self::extend).
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.extend(one_row(row.into())?, component)
    }

    /// Locks the entrance. Other threads wait until the guard is dropped, so do not wait for the disk meanwhile.
    pub(crate) fn enter(&self) -> MutexGuard<'_, Entrance> {
        lock(&self.entrance)
    }

    /// Writes and syncs all whole passes, even if their shard is small. Returns what is safe.
    ///
    /// # Errors
    /// The first [`DiskError`](crate::DiskError) of this recorder, or [`WriteError::Poisoned`] if one of its threads panicked. A recorder
    /// writes nothing after an error, so resume the lane with another recorder.
    ///
    /// # Blocking
    /// Blocks until the passes are on disk.
    pub fn flush(&self) -> Result<Safe, RecordingError> {
        self.ask(LaneMessage::Flush, false)
    }

    /// Flushes, writes a file that says that the lane is finished, and ends the recorder: it takes no more passes.
    ///
    /// [`Recording::open`](crate::Recording::open) reports an error if a shard is missing at the end of a finished lane. You can still
    /// resume a finished lane.
    ///
    /// # Errors
    /// Same as [`flush`](Self::flush).
    ///
    /// # Blocking
    /// Blocks until the passes and the file are on disk.
    pub fn finish(&self) -> Result<Safe, RecordingError> {
        self.ask(LaneMessage::Finish, true)
    }

    /// Flushes and ends the recorder without a word about the lane's end: for a capture that broke off. Resume the lane to go on.
    /// Dropping the recorder does the same, but shows no error.
    ///
    /// # Errors
    /// Same as [`flush`](Self::flush).
    ///
    /// # Blocking
    /// Same as [`flush`](Self::flush).
    pub fn close(&self) -> Result<Safe, RecordingError> {
        self.ask(LaneMessage::Flush, true)
    }

    /// Returns whether [`finish`](Self::finish) or [`close`](Self::close) was called. A recorder whose disk has failed is not closed:
    /// see [`failure`](Self::failure). Does not wait.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.enter().sender.is_none()
    }

    fn ask(
        &self,
        message: impl FnOnce(Sender<Result<Safe, WriteError>>) -> LaneMessage,
        ends: bool,
    ) -> Result<Safe, RecordingError> {
        let (reply, answer) = bounded(1);
        let mut entrance = self.enter();
        if entrance.sender.is_none() {
            self.progress.outcome().map_err(failed)?;
            return Err(WriteError::from(ClosedBy::Recorder).into());
        }
        let _ = entrance.send(message(reply));
        let forgotten = ends.then(|| {
            entrance.sender = None;
            entrance.forget()
        });
        drop(entrance);
        drop(forgotten);
        answer.recv().map_err(|_| ended())?.map_err(failed)
    }

    /// Discards the shard that is being written, and the pass that is not whole. Shards whose rows are all written stay. The next pass
    /// takes the number of the first discarded pass.
    ///
    /// # Blocking
    /// Blocks until the passes handed over before have been written or discarded. The owner of a batch must not call this: it is read and
    /// dropped on the recorder's thread, which would wait for itself.
    pub fn empty(&self) {
        let (reply, emptied) = bounded(1);
        let mut entrance = self.enter();
        let forgotten = entrance.forget();
        let _ = entrance.send(LaneMessage::Empty(reply));
        drop(entrance);
        drop(forgotten);
        let _ = emptied.recv();
    }
}

fn failed(error: WriteError) -> RecordingError {
    match error {
        WriteError::Disk(error) => RecordingError::Disk(error),
        other => RecordingError::Write(other),
    }
}

fn ended() -> BuildError {
    BuildError::Poisoned { cause: "the recorder's thread has ended".into() }
}

/// Writes and syncs all whole passes, and waits for the disk. Call [`finish`](Recorder::finish) to see errors.
impl Drop for Recorder {
    fn drop(&mut self) {
        self.enter().sender.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("resumed", &self.resumed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
