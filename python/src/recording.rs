//! Recording rows on disk, and replaying them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use activation_store::{
    Batch, Component, RecordingError, RingStore, RingStoreBuilder, Safe, Snapshot, SyncPolicy, ValueCounts, WriteError,
    WriteHandle,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::component::{Key, OddValues, Spec, odd_values, spec};
use crate::depot::Depot;
use crate::dtype;
use crate::errors::OrRaise;
use crate::lane::{IfFull, Lane, check, found_pass};
use crate::process::Home;
use crate::ring::Ring;
use crate::rows::Rows;
use crate::uncopied::PIECE;
use crate::wait::Notice;
use crate::write::WriteOutcome;

/// Takes passes and writes them as shards. It has what a lane has.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Recorder {
    recorder: Home<Mutex<Option<activation_store::Recorder>>>,
    components: Vec<Component>,
    depot: Arc<Depot>,
    resumed: (u64, u64),
    passes: AtomicU64,
    values: Mutex<Vec<ValueCounts>>,
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
        let recorder = py.detach(|| if resume { builder.resume(folder) } else { builder.create(folder) }).or_raise()?;
        let components = recorder.components().to_vec();
        let resumed = pair(recorder.resumed());
        let depot = Depot::new(0, PIECE);
        Ok(Recorder {
            recorder: Home::new(Mutex::new(Some(recorder))),
            components,
            depot,
            resumed,
            passes: AtomicU64::new(resumed.0),
            values: Mutex::default(),
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
        let recorder = self.recorder.get()?;
        let flushed = py.detach(|| {
            lock(recorder).as_ref().map(|recorder| {
                let flushed = recorder.flush();
                self.note_values(recorder);
                flushed
            })
        });
        flushed.ok_or_else(ended)?.or_raise().map(pair)
    }

    /// Writes what was recorded, and ends. Does nothing the second time.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let recorder = self.recorder.get()?;
        let finished = py.detach(|| {
            let taken = lock(recorder).take();
            taken.map(|recorder| {
                // The counts are of all rows only once the recorder has written them. If this fails, `finish` fails as well.
                let _ = recorder.flush();
                self.note_values(&recorder);
                recorder.finish()
            })
        });
        finished.transpose().or_raise().map(drop)
    }

    /// The components of which rows had values that overflowed or were not finite, as of the last `flush` or `close`.
    fn odd_values(&self) -> Vec<OddValues> {
        odd_values(self.components.iter().zip(lock(&self.values).iter().copied()))
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
        let batches = pass.into_iter().map(|(c, rows)| Ok((c, rows.get().take()?.into_batch(py, &self.depot)?)));
        let batches = batches.collect::<PyResult<Vec<_>>>()?;
        Ok(WriteOutcome::new(self.record(py, batches)?, rows))
    }

    #[getter]
    fn n_components(&self) -> usize {
        self.components.len()
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(lock(self.recorder.get()?).is_none())
    }
}

impl Recorder {
    fn note_values(&self, recorder: &activation_store::Recorder) {
        *lock(&self.values) = recorder.value_counts();
    }

    /// Raises if it takes no more passes.
    fn check_open(&self) -> PyResult<()> {
        let failure = lock(self.recorder.get()?).as_ref().map(activation_store::Recorder::failure).ok_or_else(ended)?;
        failure.map_or(Ok(()), |error| Err(WriteError::from(error)).or_raise())
    }

    fn record(&self, py: Python<'_>, pass: Vec<(usize, Batch)>) -> PyResult<WriteHandle> {
        let recorder = self.recorder.get()?;
        let recorded = py.detach(|| lock(recorder).as_ref().map(|recorder| recorder.extend_pass(pass)));
        let handle = recorded.ok_or_else(ended)?.or_raise()?;
        self.passes.fetch_add(1, Ordering::Relaxed);
        Ok(handle)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pair(safe: Safe) -> (u64, u64) {
    (safe.passes, safe.rows)
}

fn ended() -> PyErr {
    crate::errors::closed("the recorder has been closed, so it takes no more passes")
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
        self.recorder.get().check_open()?;
        let mut shares = Vec::new();
        let outcome = self.lane.get().hand_in(py, pass_, if_full, timeout, notice, value, Some(&mut shares))?;
        // The ring has the pass by now. If the disk has failed meanwhile, the next pass is refused, and `flush` and `close` raise.
        drop(self.recorder.get().record(py, shares));
        Ok(outcome)
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
        let opened = py.detach(|| {
            if salvage {
                activation_store::Recording::salvage(folder, |_, _| ())
            } else {
                activation_store::Recording::open(folder).map(|recording| (recording, Vec::new()))
            }
        });
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
            py.check_signals()?;
            py.detach(|| self.recording.verify_shard(shard)).or_raise()?;
            if let Some(progress) = &progress {
                progress.call1((shard + 1, self.recording.shards()))?;
            }
        }
        Ok(())
    }

    /// The bytes of some rows of a component.
    fn rows(&self, py: Python<'_>, component: Key, rows: Vec<u64>) -> PyResult<Py<PyByteArray>> {
        let component = component.find(self.recording.components())?;
        let batch = py.detach(|| self.recording.get(component, &rows)).or_raise()?;
        // The batch is one piece of memory.
        dtype::with_dtype!(batch.dtype(), T => {
            let view = batch.view::<T>();
            let values = view.as_ref().and_then(|view| view.as_slice()).unwrap_or_default();
            Ok(PyByteArray::new(py, bytemuck::cast_slice(values)).unbind())
        })
    }

    /// A ring that replays it.
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    #[pyo3(signature = (*, components, seed, epochs, first_epoch, rank, world_size, batch_size=None, window=None, ready_frames=None, drop_last=None, allow_overcommit=false, folder=None, snapshot=None))]
    fn replay(
        &self,
        py: Python<'_>,
        components: Option<Vec<Key>>,
        seed: u64,
        epochs: u64,
        first_epoch: u64,
        rank: u64,
        world_size: u64,
        batch_size: Option<usize>,
        window: Option<usize>,
        ready_frames: Option<usize>,
        drop_last: Option<bool>,
        allow_overcommit: bool,
        folder: Option<PathBuf>,
        snapshot: Option<Vec<u8>>,
    ) -> PyResult<Ring> {
        let replay = self.recording.replay().seed(seed).epochs(epochs).first_epoch(first_epoch);
        let mut replay = replay.rank(rank, world_size).or_raise()?;
        if let Some(components) = components {
            let found =
                components.iter().map(|key| key.find(self.recording.components())).collect::<PyResult<Vec<_>>>()?;
            replay = replay.components(found).or_raise()?;
        }
        let mut builder = RingStore::builder().allow_overcommit(allow_overcommit).seed(seed);
        builder = batch_size.into_iter().fold(builder, RingStoreBuilder::batch_size);
        builder = window.into_iter().fold(builder, RingStoreBuilder::window);
        builder = ready_frames.into_iter().fold(builder, RingStoreBuilder::ready_frames);
        builder = drop_last.into_iter().fold(builder, RingStoreBuilder::drop_last);
        let store = py.detach(|| match (folder, snapshot) {
            (Some(folder), _) => replay.resume(builder, folder),
            (None, Some(bytes)) => {
                Snapshot::from_bytes(&bytes).map_err(RecordingError::from).and_then(|s| replay.resume_from(builder, &s))
            }
            (None, None) => replay.into_ring(builder),
        });
        Ok(Ring::of(store.or_raise()?, None))
    }
}
