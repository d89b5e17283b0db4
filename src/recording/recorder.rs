//! Records passes: one thread gathers them in memory and writes a shard whenever enough rows are there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::disk::disk::{Disk, Doing, files};
use crate::disk::folder::UNFINISHED;
use crate::error::{BuildError, ClosedBy, DiskError, RecordingError, WriteError};
use crate::memory::convert::RowReader;
use crate::pipeline::config::{components, not_zero};
use crate::pipeline::handle::{WriteHandle, WriteReply, Written};
use crate::pipeline::wait::lock;
use crate::recording::shard::{self, ShardInfo};
use crate::rows::batch::{Batch, RefusedPass};
use crate::rows::element::DType;
use crate::rows::layout::{Component, ComponentKey, Layout};

/// Passes that wait for the thread.
const QUEUED: usize = 2;

/// Configures a [`Recorder`].
#[derive(Debug)]
pub struct RecorderBuilder {
    components: Vec<(String, usize, Option<DType>)>,
    lane: String,
    shard_rows: usize,
    metadata: BTreeMap<String, String>,
}

/// Records the passes of one lane into a folder.
///
/// A recorder is one writer. Several recorders (threads, processes, ranks) record into one folder at once, without a lock, if each
/// has a lane of its own. A shard is whole, checksummed and synced, or it is not taken for one.
///
/// # Memory
/// At most the rows of one shard (`shard_rows` and the rest of the last pass), and the batches of four passes.
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
    layout: Layout,
    sender: Mutex<Option<Sender<Message>>>,
    thread: Option<JoinHandle<()>>,
    resumed: Safe,
}

/// What of a lane is on disk in whole shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Safe {
    /// Passes: go on with this one.
    pub passes: u64,
    /// Rows of each component.
    pub rows: u64,
}

enum Message {
    Pass(Vec<Batch>, WriteReply),
    Flush(Sender<Result<Safe, DiskError>>),
}

impl RecorderBuilder {
    /// Adds a component of `features` features, `f32`.
    #[must_use]
    pub fn component(mut self, name: impl Into<String>, features: usize) -> Self {
        self.components.push((name.into(), features, None));
        self
    }

    /// Adds a component of its own element type.
    #[must_use]
    pub fn component_of(mut self, name: impl Into<String>, features: usize, dtype: DType) -> Self {
        self.components.push((name.into(), features, Some(dtype)));
        self
    }

    /// The name of the lane: letters, digits, `-` and `_`. Default: `lane`.
    #[must_use]
    pub fn lane(mut self, name: impl Into<String>) -> Self {
        self.lane = name.into();
        self
    }

    /// Rows after which a shard is written, at the end of the pass. Default: 65,536.
    #[must_use]
    pub fn shard_rows(mut self, rows: usize) -> Self {
        self.shard_rows = rows;
        self
    }

    /// Adds a field that describes the rows (model, hook names, data set) to each shard.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Begins a lane in a folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`RecordingError`]: settings that cannot be, a folder that cannot be written, or a lane that has shards already.
    pub fn create(self, dir: impl AsRef<Path>) -> Result<Recorder, RecordingError> {
        self.start(files(), dir.as_ref(), false)
    }

    /// Goes on behind the last whole shard of the lane, if there is one. [`Recorder::resumed`] says which pass comes next. Removes
    /// what a killed recorder of this lane left unfinished, so no other recorder of this lane may run.
    ///
    /// # Errors
    /// As [`create`](Self::create); a shard that is damaged, missing or of other components.
    pub fn resume(self, dir: impl AsRef<Path>) -> Result<Recorder, RecordingError> {
        self.start(files(), dir.as_ref(), true)
    }

    pub(crate) fn start(self, disk: Arc<dyn Disk>, dir: &Path, resume: bool) -> Result<Recorder, RecordingError> {
        not_zero("shard_rows", self.shard_rows)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.lane.is_empty() || !self.lane.chars().all(fits) {
            let expected = "letters, digits, - and _".to_owned();
            return Err(RecordingError::Setting {
                what: "the lane's name",
                value: format!("{:?}", self.lane),
                expected,
            });
        }
        let layout = Layout::new(&components(self.components, DType::F32), 1)?;
        disk.create_dir_all(dir).doing("create", dir)?;
        let shards = shard::list(&*disk, dir)?;
        let own: Vec<_> = shards.into_iter().filter(|(_, info)| info.lane == self.lane).collect();
        if !resume && !own.is_empty() {
            return Err(RecordingError::Exists { dir: dir.to_owned(), lane: self.lane });
        }
        let mut safe = Safe::default();
        for (number, (path, info)) in own.iter().enumerate() {
            check_number(dir, info, number as u64)?;
            check_components(path, info, layout.components())?;
            safe = Safe { passes: info.first_pass + info.passes, rows: info.first_row + info.rows };
        }
        if resume {
            let left = format!("{UNFINISHED}{}", shard::prefix(&self.lane));
            for path in disk.list(dir).doing("list", dir)? {
                if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&left)) {
                    disk.remove_dir_all(&path).doing("remove", &path)?;
                }
            }
        }
        let (sender, queue) = bounded(QUEUED);
        let writer = Writer {
            readers: layout.components().iter().map(|component| RowReader::new(component.dtype)).collect(),
            rows: vec![Vec::new(); layout.n_components()],
            components: layout.components().to_vec(),
            next: safe,
            number: own.len() as u64,
            shard_rows: self.shard_rows as u64,
            dir: dir.to_owned(),
            lane: self.lane,
            metadata: self.metadata,
            failed: None,
            safe,
            disk,
        };
        let thread = thread::Builder::new().name("recorder".to_owned()).spawn(move || writer.run(&queue));
        let thread = thread.doing("start the recorder's thread for", dir)?;
        Ok(Recorder { layout, sender: Mutex::new(Some(sender)), thread: Some(thread), resumed: safe })
    }
}

/// Shards of a lane have the numbers 0, 1, 2, ...
pub(crate) fn check_number(dir: &Path, info: &ShardInfo, number: u64) -> Result<(), RecordingError> {
    if info.number == number {
        return Ok(());
    }
    Err(RecordingError::Missing { dir: dir.to_owned(), lane: info.lane.clone(), number })
}

pub(crate) fn check_components(path: &Path, info: &ShardInfo, expected: &[Component]) -> Result<(), RecordingError> {
    let found: Option<Vec<Component>> = info.components.iter().map(shard::ComponentFile::component).collect();
    if found.as_deref() == Some(expected) {
        return Ok(());
    }
    let named = |c: &Component| format!("{:?} ({} {})", c.name, c.features, c.dtype);
    let expected = expected.iter().map(named).collect::<Vec<_>>().join(", ");
    Err(RecordingError::Components { path: path.to_owned(), expected })
}

impl Recorder {
    /// Configures a recorder.
    #[must_use]
    pub fn builder() -> RecorderBuilder {
        RecorderBuilder {
            components: Vec::new(),
            lane: "lane".to_owned(),
            shard_rows: 1 << 16,
            metadata: BTreeMap::new(),
        }
    }

    /// What was safe when this recorder began: skip so many passes. Zero for a new lane.
    #[must_use]
    pub fn resumed(&self) -> Safe {
        self.resumed
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.layout.components()
    }

    /// Records the rows of all components that one forward pass produced: each exactly once, in any order, equally many.
    ///
    /// The handle resolves when the rows are in the recorder's memory, and the batches are released. They are safe when
    /// [`flush`](Self::flush) returns. If the shard that a pass completes cannot be written, its handle has the error.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back: a component that is missing, unknown or doubled, or of other features, elements
    /// or rows than the pass; or the recorder's thread has ended.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let (keys, batches): (Vec<K>, Vec<Batch>) = pass.into_iter().map(|(key, batch)| (key, batch.into())).unzip();
        let order = match self.order(&keys, &batches) {
            Ok(order) => order,
            Err(error) => return Err(RefusedPass { error, batches }),
        };
        let mut numbered: Vec<(usize, Batch)> = order.into_iter().zip(batches).collect();
        numbered.sort_by_key(|(component, _)| *component);
        let batches = numbered.into_iter().map(|(_, batch)| batch).collect();
        let (reply, handle) = WriteHandle::pending();
        // The lock keeps passes of several threads in one order.
        match lock(&self.sender).as_ref().map(|sender| sender.send(Message::Pass(batches, reply))) {
            Some(Ok(())) => Ok(handle),
            Some(Err(unsent)) => {
                let batches = if let Message::Pass(batches, _) = unsent.into_inner() { batches } else { Vec::new() };
                Err(RefusedPass { error: WriteError::Closed(ClosedBy::Close), batches })
            }
            None => Ok(handle),
        }
    }

    fn order<K: ComponentKey>(&self, keys: &[K], batches: &[Batch]) -> Result<Vec<usize>, WriteError> {
        let mut order: Vec<usize> = Vec::with_capacity(keys.len());
        for (&key, batch) in keys.iter().zip(batches) {
            let component = self.layout.find(key)?;
            self.layout.check(batch, component)?;
            if order.contains(&component) {
                return Err(WriteError::PassDoubles { doubled: self.layout.name(component) });
            }
            if batch.rows() != batches[0].rows() {
                let first = self.layout.name(order.first().copied().unwrap_or(component));
                let (first_rows, component) = (batches[0].rows(), self.layout.name(component));
                return Err(WriteError::PassRows { first, first_rows, component, rows: batch.rows() });
            }
            order.push(component);
        }
        match (0..self.layout.n_components()).find(|component| !order.contains(component)) {
            Some(missing) => Err(WriteError::PassLacks { missing: self.layout.name(missing) }),
            None => Ok(order),
        }
    }

    /// Writes what was recorded as a shard, even a small one, and says what is safe.
    ///
    /// # Errors
    /// The first [`DiskError`] of this recorder. It writes nothing after one: resume the lane.
    ///
    /// # Blocking
    /// Blocks until the disk has it.
    pub fn flush(&self) -> Result<Safe, RecordingError> {
        let (reply, flushed) = bounded(1);
        if let Some(sender) = lock(&self.sender).as_ref() {
            // An error means that the thread has ended: so has the other end of `flushed`.
            let _ = sender.send(Message::Flush(reply));
        }
        let ended = || BuildError::Poisoned { cause: "the recorder's thread has ended".into() };
        Ok(flushed.recv().map_err(|_| ended())??)
    }

    /// Flushes, and ends the recorder.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn finish(self) -> Result<Safe, RecordingError> {
        self.flush()
    }
}

/// Writes what was recorded, and waits for it. Call [`finish`](Recorder::finish) to see errors.
impl Drop for Recorder {
    fn drop(&mut self) {
        lock(&self.sender).take();
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

struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    lane: String,
    metadata: BTreeMap<String, String>,
    components: Vec<Component>,
    readers: Vec<RowReader>,
    /// Of each component, as bytes.
    rows: Vec<Vec<u8>>,
    shard_rows: u64,
    /// The number of the shard that is being gathered.
    number: u64,
    safe: Safe,
    /// What would be safe if the shard were written.
    next: Safe,
    failed: Option<DiskError>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Message>) {
        for message in queue {
            match message {
                Message::Pass(batches, reply) => reply.resolve(self.pass(&batches).map_err(WriteError::from)),
                Message::Flush(reply) => {
                    let _ = reply.send(self.flush().map(|()| self.safe));
                }
            }
        }
        if let Err(error) = self.flush() {
            tracing::warn!(%error, lane = self.lane, "the last shard of a recording could not be written");
        }
    }

    fn pass(&mut self, batches: &[Batch]) -> Result<Written, DiskError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let rows = batches.first().map_or(0, Batch::rows);
        for ((batch, reader), bytes) in batches.iter().zip(&mut self.readers).zip(&mut self.rows) {
            reader.read(batch, 0..rows, |_, piece| bytes.extend_from_slice(piece));
        }
        let first_row = self.next.rows;
        self.next.rows += rows as u64;
        self.next.passes += 1;
        if self.next.rows - self.safe.rows >= self.shard_rows {
            self.flush()?;
        }
        Ok(Written { rows, first_row })
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.next == self.safe {
            return Ok(());
        }
        let info = ShardInfo {
            version: 0,
            lane: self.lane.clone(),
            number: self.number,
            first_row: self.safe.rows,
            rows: self.next.rows - self.safe.rows,
            first_pass: self.safe.passes,
            passes: self.next.passes - self.safe.passes,
            components: Vec::new(),
            metadata: self.metadata.clone(),
        };
        shard::write(&self.disk, &self.dir, info, &self.components, &self.rows)
            .inspect_err(|error| self.failed = Some(error.clone()))?;
        self.rows.iter_mut().for_each(Vec::clear);
        self.safe = self.next;
        self.number += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
