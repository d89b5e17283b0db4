//! Records the passes of one lane.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use crate::disk::disk::Disk;
use crate::error::{BuildError, DiskError, RecordingError, WriteError};
use crate::pipeline::handle::WriteHandle;
use crate::pipeline::wait::lock;
use crate::recording::entrance::{Entrance, check_pass, refused};
use crate::recording::lane_writer::Message;
use crate::recording::sealer::{Progress, Safe};
use crate::rows::batch::{Batch, Refused, RefusedPass, one_row};
use crate::rows::layout::{Component, ComponentKey, Layout};

/// Records the passes of one lane into a folder.
///
/// A recorder is one writer. Several recorders (threads, processes, ranks) record into one folder at once, without a lock, if each
/// has a lane of its own. A shard is whole, checksummed and synced, or it is not taken for one.
///
/// Rows come as passes ([`extend_pass`](Self::extend_pass)), or component by component ([`extend`](Self::extend)) as hooks fire.
///
/// # Memory
/// 1 MiB for each component, and the batches of at most four passes. The size of a shard does not matter. The page cache of the
/// operating system is not counted here. It holds the rows that are not on disk yet: at most three shards.
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
    /// Keeps passes of several threads in one order.
    entrance: Mutex<Entrance>,
    thread: Option<JoinHandle<()>>,
    resumed: Safe,
    pub(crate) progress: Arc<Progress>,
}

impl Recorder {
    pub(crate) fn new(
        layout: Layout,
        sender: Sender<Message>,
        thread: JoinHandle<()>,
        resumed: Safe,
        progress: Arc<Progress>,
        disk: Arc<dyn Disk>,
        (dir, lane): (PathBuf, String),
    ) -> Self {
        let entrance = Mutex::new(Entrance::new(sender, layout.n_components()));
        Recorder { layout, disk, dir, lane, entrance, thread: Some(thread), resumed, progress }
    }

    /// What was safe when this recorder began: skip so many passes. Zero for a new lane.
    #[must_use]
    pub fn resumed(&self) -> Safe {
        self.resumed
    }

    /// What is safe now, without waiting.
    #[must_use]
    pub fn safe(&self) -> Safe {
        self.progress.safe()
    }

    /// The first error of the disk, if there was one, without waiting. The recorder takes nothing after it: resume the lane.
    #[must_use]
    pub fn failure(&self) -> Option<DiskError> {
        self.progress.outcome().err()
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.layout.components()
    }

    /// Records the rows of all components that one forward pass produced: each exactly once, in any order, equally many.
    ///
    /// The handle resolves when the recorder has released the batches. The rows are safe when [`flush`](Self::flush) returns, or when
    /// [`safe`](Self::safe) counts their pass.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back: a component that is missing, unknown or doubled, or of other features, elements
    /// or rows than the pass; a pass that [`extend`](Self::extend) began is not whole; or the recorder cannot write any more,
    /// with the first [`DiskError`]. A pass that the disk refuses later has the error in its handle, or a later one has.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = check_pass(&self.layout, pass)?;
        let entrance = self.enter();
        match entrance.check(&self.layout, &self.progress) {
            Ok(()) => entrance.hand_over(pass),
            Err(error) => Err(refused(error, pass)),
        }
    }

    /// Records rows of one component. When every component has come, they are a pass: the rows of a component that comes twice before
    /// that are refused, so components stay aligned.
    ///
    /// The handle resolves as the handle of [`extend_pass`](Self::extend_pass) does, once the pass is whole. A pass that is not whole when
    /// the recorder is finished is discarded; its handles resolve as [`WriteError::Closed`].
    ///
    /// # Errors
    /// [`Refused`] gives the batch back: an unknown component; other features, elements or rows than the pass; a component that has
    /// come; or the recorder cannot write any more.
    ///
    /// # Blocking
    /// As [`extend_pass`](Self::extend_pass).
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        let batch = batch.into();
        let found = self.layout.find(component).map_err(WriteError::from);
        let checked = found.and_then(|component| self.layout.check(&batch, component).map(|()| component));
        let open = checked.and_then(|component| Ok(self.progress.outcome().map(|_| component)?));
        match open {
            Ok(component) => self.enter().gather(&self.layout, batch, component),
            Err(error) => Err(Refused { error, batch }),
        }
    }

    /// Records one row of one component; see [`extend`](Self::extend).
    ///
    /// # Errors
    /// As [`extend`](Self::extend), and [`WriteError::NotOneRow`].
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.extend(one_row(row.into())?, component)
    }

    /// Keeps other threads out until the guard is dropped.
    pub(crate) fn enter(&self) -> MutexGuard<'_, Entrance> {
        lock(&self.entrance)
    }

    /// Writes what was recorded as a shard, even a small one, and says what is safe.
    ///
    /// # Errors
    /// The first [`DiskError`] of this recorder. It writes nothing after one: resume the lane.
    ///
    /// # Blocking
    /// Blocks until the disk has it.
    pub fn flush(&self) -> Result<Safe, RecordingError> {
        self.ask(Message::Flush)
    }

    /// Flushes, says beside the shards that the lane is finished, and ends the recorder. A shard that is lost from the end of a
    /// finished lane is missed by [`Recording::open`](crate::Recording::open). A finished lane can be resumed all the same.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    ///
    /// # Blocking
    /// As [`flush`](Self::flush).
    pub fn finish(self) -> Result<Safe, RecordingError> {
        self.ask(Message::Finish)
    }

    fn ask(&self, message: impl FnOnce(Sender<Result<Safe, DiskError>>) -> Message) -> Result<Safe, RecordingError> {
        let (reply, answer) = bounded(1);
        let _ = self.enter().send(message(reply));
        answer.recv().map_err(|_| ended())?.map_err(RecordingError::from)
    }

    /// Discards the rows that are in no whole shard yet, and never a shard. The next pass takes the number of the first pass that was
    /// discarded.
    ///
    /// # Blocking
    /// Blocks until the passes before it have been written or discarded.
    pub fn empty(&self) {
        let (reply, emptied) = bounded(1);
        let mut entrance = self.enter();
        entrance.forget();
        let _ = entrance.send(Message::Empty(reply));
        let _ = emptied.recv();
    }
}

fn ended() -> BuildError {
    BuildError::Poisoned { cause: "the recorder's thread has ended".into() }
}

/// Writes what was recorded, and waits for it. Call [`finish`](Recorder::finish) to see errors.
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
