//! Recording rows on disk, and replaying them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use activation_store::{ClosedBy, Component, RecorderPermit, RecordingError, Safe, Snapshot, SyncPolicy, WriteError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::component::{Key, OddValues, Spec, odd_values, spec};
use crate::depot::Depot;
use crate::dtype;
use crate::errors::OrRaise;
use crate::lane::{IfFull, Lane, check, found_pass, into_batches, no_room};
use crate::process::Home;
use crate::ring::{Ring, Settings};
use crate::rows::Rows;
use crate::task::{Task, elsewhere};
use crate::uncopied::PIECE;
use crate::wait::{Deadline, Notice, wait};
use crate::write::WriteOutcome;

/// Takes passes and writes them as shards. It has what a lane has.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Recorder {
    recorder: Home<Arc<activation_store::Recorder>>,
    /// The end of the recorder, once it has begun.
    ending: Mutex<Option<Task<Result<Safe, RecordingError>>>>,
    components: Vec<Component>,
    depot: Arc<Depot>,
    resumed: (u64, u64),
    passes: AtomicU64,
}

#[pymethods]
impl Recorder {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "called in one place, by position")]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        components: Vec<Spec>,
        lane: String,
        shard_rows: usize,
        metadata: BTreeMap<String, String>,
        resume: bool,
        sync_each_shard: bool,
    ) -> PyResult<Self> {
        let policy = if sync_each_shard { SyncPolicy::EachShard } else { SyncPolicy::AtFlush };
        let mut builder = activation_store::Recorder::builder().lane(lane).shard_rows(shard_rows).sync(policy);
        for (name, features, element) in components {
            builder = builder.component_of(name, features, dtype::parse(&element)?);
        }
        builder = metadata.into_iter().fold(builder, |builder, (key, value)| builder.metadata(key, value));
        let recorder =
            elsewhere(py, move || if resume { builder.resume(folder) } else { builder.create(folder) })?.or_raise()?;
        let components = recorder.components().to_vec();
        let resumed = pair(recorder.resumed());
        let depot = Depot::new(0, PIECE);
        Ok(Recorder {
            recorder: Home::new(Arc::new(recorder)),
            ending: Mutex::default(),
            components,
            depot,
            resumed,
            passes: AtomicU64::new(resumed.0),
        })
    }

    /// Passes and rows that were safe when it began.
    #[getter]
    fn resumed(&self) -> (u64, u64) {
        self.resumed
    }

    /// Passes that were handed over, with those before it began.
    #[getter]
    fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// Writes what was recorded; returns the passes and rows that are safe.
    fn flush(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.check_open()?;
        let recorder = self.recorder.get()?.clone();
        elsewhere(py, move || recorder.flush())?.or_raise().map(pair)
    }

    /// Writes what was recorded, and ends; says whether the lane is finished. The second time it waits for the first, if that was
    /// interrupted.
    fn close(&self, py: Python<'_>, finished: bool) -> PyResult<()> {
        let recorder = self.recorder.get()?.clone();
        let end = move || if finished { recorder.finish() } else { recorder.close() };
        let ending = {
            let mut ending = self.ending();
            match &*ending {
                Some(begun) => begun.clone(),
                None => ending.insert(Task::start(end)?).clone(),
            }
        };
        ending.wait(py)?.transpose().or_raise().map(drop)
    }

    /// The components of which rows had values that overflowed or were not finite, as far as the rows are written.
    fn odd_values(&self) -> PyResult<Vec<OddValues>> {
        Ok(odd_values(self.components.iter().zip(self.recorder.get()?.value_counts())))
    }

    // What a lane has.

    fn find(&self, component: Key) -> PyResult<usize> {
        component.find(&self.components)
    }

    fn component(&self, component: Key) -> PyResult<Spec> {
        spec(&self.components, &component)
    }

    fn stage(&self, py: Python<'_>, component: usize, rows: &Rows) -> PyResult<()> {
        check(&self.components, component, rows).or_raise()?;
        rows.stage(py, &self.depot)
    }

    #[pyo3(signature = (pass_, if_full, timeout=None, notice=None, value=None))]
    #[expect(unused_variables, reason = "as a lane's")]
    fn extend_pass(
        &self,
        py: Python<'_>,
        pass_: Vec<(Key, Py<Rows>)>,
        if_full: IfFull,
        timeout: Option<f64>,
        notice: Option<Notice<'_>>,
        value: Option<Vec<u8>>,
    ) -> PyResult<WriteOutcome> {
        let (pass, rows) = found_pass(&self.components, pass_)?;
        let permit = self.room(py, rows, &Deadline::new(timeout)?)?;
        let pass = into_batches(py, pass, &self.depot)?;
        let handle = permit.extend_pass(pass).or_raise()?;
        self.passes.fetch_add(1, Ordering::Relaxed);
        Ok(WriteOutcome::new(handle, rows))
    }

    #[getter]
    fn n_components(&self) -> usize {
        self.components.len()
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        self.recorder.get()?;
        Ok(self.ending().is_some())
    }
}

impl Recorder {
    /// Locked for a moment, never while a thread waits.
    fn ending(&self) -> MutexGuard<'_, Option<Task<Result<Safe, RecordingError>>>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises if it takes no more passes: the first error of the disk, if there was one.
    fn check_open(&self) -> PyResult<()> {
        if let Some(error) = self.recorder.get()?.failure() {
            return Err(error).or_raise();
        }
        if self.ending().is_some() { Err(WriteError::from(ClosedBy::Recorder)).or_raise() } else { Ok(()) }
    }

    /// Waits for room for a pass, while two others wait for the disk.
    fn room(&self, py: Python<'_>, rows: usize, deadline: &Deadline) -> PyResult<RecorderPermit<'_>> {
        let recorder = self.recorder.get()?;
        let mut reserve = recorder.reserve_pass();
        let room = wait(py, deadline, |slice| match self.check_open() {
            Ok(()) => reserve.wait_timeout(slice).map(OrRaise::or_raise),
            Err(error) => Some(Err(error)),
        })?;
        room.ok_or_else(|| no_room(rows, deadline, "the recorder's disk lags"))?
    }
}

fn pair(safe: Safe) -> (u64, u64) {
    (safe.passes, safe.rows)
}

/// Hands each pass to a ring's lane and to a recorder, which share its memory. It has what a lane has.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct TeeLane {
    lane: Py<Lane>,
    recorder: Py<Recorder>,
}

#[pymethods]
impl TeeLane {
    #[new]
    fn new(lane: Py<Lane>, recorder: Py<Recorder>) -> PyResult<Self> {
        let (ours, theirs) = (lane.get().components(), &recorder.get().components);
        if ours != &theirs[..] {
            let names = |components: &[Component]| {
                let named = |c: &Component| format!("{:?}: {} x {}", c.name, c.features, c.dtype);
                components.iter().map(named).collect::<Vec<_>>().join(", ")
            };
            return Err(PyValueError::new_err(format!(
                "the store has {}, and the recorder {}; give both the same components",
                names(ours),
                names(theirs)
            )));
        }
        Ok(TeeLane { lane, recorder })
    }

    fn find(&self, component: Key) -> PyResult<usize> {
        component.find(&self.recorder.get().components)
    }

    fn component(&self, component: Key) -> PyResult<Spec> {
        spec(&self.recorder.get().components, &component)
    }

    fn stage(&self, py: Python<'_>, component: usize, rows: &Rows) -> PyResult<()> {
        self.recorder.get().stage(py, component, rows)
    }

    #[pyo3(signature = (pass_, if_full, timeout=None, notice=None, value=None))]
    fn extend_pass(
        &self,
        py: Python<'_>,
        pass_: Vec<(Key, Py<Rows>)>,
        if_full: IfFull,
        timeout: Option<f64>,
        notice: Option<Notice<'_>>,
        value: Option<Vec<u8>>,
    ) -> PyResult<WriteOutcome> {
        let (lane, recorder) = (self.lane.get(), self.recorder.get());
        let (pass, rows) = found_pass(&recorder.components, pass_)?;
        let deadline = Deadline::new(timeout)?;
        let permit = recorder.room(py, rows, &deadline)?;
        let room = lane.room_for_pass(py, rows, if_full, &deadline, notice, || recorder.check_open())?;
        let end = lane.end()?;
        let pass = into_batches(py, pass, &recorder.depot)?;
        let handle = permit.extend_pass_with(pass, |pass| end.hand_over(pass, room, if_full, value)).or_raise()?;
        recorder.passes.fetch_add(1, Ordering::Relaxed);
        Ok(WriteOutcome::new(handle, rows))
    }

    #[getter]
    fn n_components(&self) -> usize {
        self.recorder.get().components.len()
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.lane.get().closed()? || self.recorder.get().closed()?)
    }

    /// The store and the recorder belong to the caller.
    fn close(&self) {}
}

/// A folder of shards.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Recording {
    recording: activation_store::Recording,
    lost: Vec<String>,
}

#[pymethods]
impl Recording {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf, salvage: bool) -> PyResult<Self> {
        let opened = elsewhere(py, move || {
            if salvage {
                activation_store::Recording::salvage(folder, |_, _| ())
            } else {
                activation_store::Recording::open(folder).map(|recording| (recording, Vec::new()))
            }
        })?;
        let (recording, lost) = opened.or_raise()?;
        Ok(Recording { recording, lost: lost.iter().map(ToString::to_string).collect() })
    }

    /// What is wrong with each shard that was left out.
    #[getter]
    fn lost(&self) -> Vec<String> {
        self.lost.clone()
    }

    /// Name, features and dtype of each component.
    #[getter]
    fn components(&self) -> Vec<(String, usize, String)> {
        let components = self.recording.components().iter();
        components.map(|c| (c.name.to_string(), c.features, c.dtype.to_string())).collect()
    }

    /// Rows of each lane.
    #[getter]
    fn lanes(&self) -> BTreeMap<String, u64> {
        self.recording.lanes().into_iter().map(|(name, lane)| (name, lane.rows)).collect()
    }

    #[getter]
    fn shards(&self) -> usize {
        self.recording.shards()
    }

    #[getter]
    fn metadata(&self) -> BTreeMap<String, String> {
        self.recording.metadata()
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.recording.rows()).unwrap_or(usize::MAX)
    }

    /// Compares all checksums; `progress` is called with shards done and in all, and may raise.
    fn verify(&self, py: Python<'_>, progress: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        for shard in 0..self.recording.shards() {
            let recording = self.recording.clone();
            elsewhere(py, move || recording.verify_shard(shard))?.or_raise()?;
            if let Some(progress) = &progress {
                progress.call1((shard + 1, self.recording.shards()))?;
            }
        }
        Ok(())
    }

    /// The bytes of some rows of a component.
    fn rows(&self, py: Python<'_>, component: Key, rows: Vec<u64>) -> PyResult<Py<PyByteArray>> {
        let component = component.find(self.recording.components())?;
        let recording = self.recording.clone();
        let batch = elsewhere(py, move || recording.get(component, &rows))?.or_raise()?;
        // The batch is one piece of memory.
        dtype::with_dtype!(batch.dtype(), T => {
            let view = batch.view::<T>();
            let values = view.as_ref().and_then(|view| view.as_slice()).unwrap_or_default();
            Ok(PyByteArray::new(py, bytemuck::cast_slice(values)).unbind())
        })
    }

    /// A ring that replays it.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    #[pyo3(signature = (*, components, seed, epochs, first_epoch, rank, world_size, settings, part=None, folder=None, snapshot=None))]
    fn replay(
        &self,
        py: Python<'_>,
        components: Option<Vec<Key>>,
        seed: u64,
        epochs: u64,
        first_epoch: u64,
        rank: u64,
        world_size: u64,
        settings: Settings,
        part: Option<(u64, u64)>,
        folder: Option<PathBuf>,
        snapshot: Option<Vec<u8>>,
    ) -> PyResult<Ring> {
        let replay = self.recording.replay().seed(seed).epochs(epochs).first_epoch(first_epoch);
        let mut replay = replay.rank(rank, world_size).or_raise()?;
        if let Some((first, end)) = part {
            replay = replay.part(first..end);
        }
        if let Some(components) = components {
            let found =
                components.iter().map(|key| key.find(self.recording.components())).collect::<PyResult<Vec<_>>>()?;
            replay = replay.components(found).or_raise()?;
        }
        let builder = settings.builder(Vec::new())?.seed(seed);
        let store = elsewhere(py, move || match (folder, snapshot) {
            (Some(folder), _) => replay.resume(builder, folder),
            (None, Some(bytes)) => {
                Snapshot::from_bytes(&bytes).map_err(RecordingError::from).and_then(|s| replay.resume_from(builder, &s))
            }
            (None, None) => replay.into_ring(builder),
        })?;
        Ok(Ring::of(store.or_raise()?, None))
    }
}
