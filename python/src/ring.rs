//! The ring store.

use std::path::PathBuf;
use std::sync::Arc;

use activation_store::{
    ActivationStore, Form, Merge, Minibatches, ResumeAt, ResumePoint, RingStore, RingStoreBuilder, Snapshot, Snapshots,
    WhenFull, WriteError,
};
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::component::Spec;
use crate::consumer::Consumer;
use crate::depot::Depot;
use crate::dtype;
use crate::errors::OrRaise;
use crate::fetch::{by_index, fetch};
use crate::lane::{End, Intake, Lane};
use crate::process::Home;
use crate::saving::Saving;
use crate::stats::Stats;
use crate::task::elsewhere;
use crate::uncopied::PIECE;
use crate::wait::{Deadline, Notice, wait_and_notice};

/// What a ring keeps while its Python object lives.
struct Inside {
    store: RingStore,
    /// A consumer of the store's own, so that dropping all others does not close the store; it takes snapshots.
    consumer: Minibatches,
}

#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Ring {
    inside: Home<Inside>,
    intake: Arc<Intake>,
}

impl Ring {
    pub(crate) fn of(store: RingStore, queue_rows: Option<usize>) -> Self {
        let consumer = store.minibatches();
        let components = store.components().to_vec();
        let row_bytes = components.iter().map(|c| c.features.saturating_mul(c.dtype.size())).sum::<usize>();
        let queue = queue_rows.unwrap_or(store.batch_size().saturating_mul(2)).saturating_mul(row_bytes);
        let when_full = store.when_full();
        // A later piece of a batch must not be refused for running ahead of another component.
        let in_pieces = components.len() == 1 && when_full != WhenFull::Reject;
        let waits = when_full != WhenFull::Reject;
        let intake = Intake { components, depot: Depot::new(queue, PIECE), waits, in_pieces };
        Ring { inside: Home::new(Inside { store, consumer }), intake: Arc::new(intake) }
    }
}

/// The settings of a store, from a dict. Others than `allow_overcommit` may be missing: they have their default, or are as the snapshot says.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Settings {
    #[pyo3(default)]
    batch_size: Option<usize>,
    #[pyo3(default)]
    window: Option<usize>,
    #[pyo3(default)]
    ready_frames: Option<usize>,
    #[pyo3(default)]
    queue_rows: Option<usize>,
    #[pyo3(default)]
    max_skew: Option<usize>,
    #[pyo3(default)]
    seed: Option<u64>,
    #[pyo3(default)]
    drop_last: Option<bool>,
    #[pyo3(default)]
    when_full: Option<String>,
    #[pyo3(default)]
    merge: Option<String>,
    allow_overcommit: bool,
}

impl Settings {
    pub(crate) fn builder(&self, components: Vec<Spec>) -> PyResult<RingStoreBuilder> {
        let mut builder = RingStore::builder().allow_overcommit(self.allow_overcommit);
        for (name, features, element) in components {
            builder = builder.component_of(name, features, dtype::parse(&element)?);
        }
        // Each setting that is given.
        builder = self.batch_size.into_iter().fold(builder, RingStoreBuilder::batch_size);
        builder = self.window.into_iter().fold(builder, RingStoreBuilder::window);
        builder = self.ready_frames.into_iter().fold(builder, RingStoreBuilder::ready_frames);
        builder = self.queue_rows.into_iter().fold(builder, RingStoreBuilder::queue_rows);
        builder = self.max_skew.into_iter().fold(builder, RingStoreBuilder::max_skew);
        builder = self.seed.into_iter().fold(builder, RingStoreBuilder::seed);
        builder = self.drop_last.into_iter().fold(builder, RingStoreBuilder::drop_last);
        if let Some(when_full) = &self.when_full {
            builder = builder.when_full(parse_when_full(when_full)?);
        }
        if let Some(merge) = &self.merge {
            builder = builder.merge(parse_merge(merge)?);
        }
        Ok(builder)
    }
}

/// Where a store begins.
enum Start {
    New,
    /// From the newest snapshot in a folder.
    Folder(PathBuf),
    /// From a light snapshot's bytes.
    Bytes(Vec<u8>),
}

#[pymethods]
impl Ring {
    /// A new store; or one that goes on from the newest snapshot in `folder`, or from a snapshot's bytes. What is None has its
    /// default, or is as the snapshot says.
    #[new]
    #[pyo3(signature = (components, settings, *, folder=None, snapshot=None))]
    fn new(
        py: Python<'_>,
        components: Vec<Spec>,
        settings: Settings,
        folder: Option<PathBuf>,
        snapshot: Option<Vec<u8>>,
    ) -> PyResult<Self> {
        let builder = settings.builder(components)?;
        let start = match (folder, snapshot) {
            (Some(folder), _) => Start::Folder(folder),
            (None, Some(bytes)) => Start::Bytes(bytes),
            (None, None) => Start::New,
        };
        let store = elsewhere(py, move || match start {
            Start::New => builder.build().or_raise(),
            Start::Folder(folder) => builder.resume(folder).or_raise(),
            Start::Bytes(bytes) => {
                Snapshot::from_bytes(&bytes).and_then(|snapshot| builder.resume_from(&snapshot)).or_raise()
            }
        })??;
        Ok(Ring::of(store, settings.queue_rows))
    }

    /// Checks settings, without a store.
    #[staticmethod]
    fn check(components: Vec<Spec>, settings: Settings) -> PyResult<()> {
        settings.builder(components)?.plan().map(drop).or_raise()
    }

    /// The components: name, features and dtype of each.
    #[getter]
    fn components(&self) -> Vec<(String, usize, String)> {
        let components = self.intake.components.iter();
        components.map(|c| (c.name.to_string(), c.features, c.dtype.to_string())).collect()
    }

    #[getter]
    fn batch_size(&self) -> PyResult<usize> {
        Ok(self.inside.get()?.store.batch_size())
    }

    /// All settings, as JSON.
    #[getter]
    fn settings(&self) -> PyResult<String> {
        Ok(self.inside.get()?.store.settings())
    }

    /// A light snapshot's bytes.
    fn state(&self, py: Python<'_>) -> PyResult<Py<PyBytes>> {
        let consumer = &self.inside.get()?.consumer;
        let snapshot = py.detach(|| consumer.state()).or_raise()?;
        Ok(PyBytes::new(py, &snapshot.to_bytes()).unbind())
    }

    /// Begins a snapshot.
    fn snapshot(&self, py: Python<'_>, dir: PathBuf, full: bool) -> PyResult<Saving> {
        let consumer = &self.inside.get()?.consumer;
        let form = if full { Form::Full } else { Form::Light };
        Ok(Saving::new(py.detach(|| consumer.snapshot(dir, form)).or_raise()?))
    }

    /// Where the lanes of a resumed store go on.
    #[getter]
    fn resume_at(&self) -> PyResult<Vec<Place>> {
        Ok(self.inside.get()?.store.resume_at().iter().map(place).collect())
    }

    /// Where one lane goes on, with a name or the store's own: whether it has ended and, unless it is new, the place.
    #[pyo3(signature = (name=None))]
    fn resume_point(&self, name: Option<&str>) -> PyResult<(bool, Option<Place>)> {
        Ok(match self.inside.get()?.store.resume_point(name) {
            ResumePoint::New => (false, None),
            ResumePoint::GoesOn(at) => (false, Some(place(at))),
            ResumePoint::Ended => (true, None),
        })
    }

    /// The store's own lane.
    fn own_lane(&self) -> PyResult<Lane> {
        Ok(Lane::new(End::Own(self.inside.get()?.store.clone()), self.intake.clone()))
    }

    /// Opens a lane, with a name if one is given.
    #[pyo3(signature = (name=None))]
    fn open_lane(&self, name: Option<&str>) -> PyResult<Lane> {
        let store = &self.inside.get()?.store;
        let producer = match name {
            Some(name) => store.producer_named(name),
            None => store.producer(),
        };
        Ok(Lane::new(End::Opened(producer.or_raise()?), self.intake.clone()))
    }

    /// Opens a lane, named `prefix` and the first number for which no lane is open.
    fn open_numbered_lane(&self, prefix: &str) -> PyResult<Lane> {
        let store = &self.inside.get()?.store;
        let mut number = 0;
        let producer = loop {
            match store.producer_named(&format!("{prefix} {number}")) {
                Err(WriteError::LaneName { .. }) => number += 1,
                opened => break opened.or_raise()?,
            }
        };
        Ok(Lane::new(End::Opened(producer), self.intake.clone()))
    }

    /// Makes a consumer.
    fn consumer(&self) -> PyResult<Consumer> {
        Ok(Consumer::new(self.inside.get()?.store.minibatches()))
    }

    /// Waits until everything handed over before is in the ring.
    #[pyo3(signature = (timeout=None, notice=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>, notice: Option<Notice<'_>>) -> PyResult<()> {
        let mut flush = self.inside.get()?.store.flush();
        match wait_and_notice(py, &Deadline::new(timeout)?, notice, |slice| flush.wait_timeout(slice))? {
            Some(done) => done.or_raise(),
            None => {
                let limit = timeout.unwrap_or_default();
                Err(PyTimeoutError::new_err(format!(
                    "the rows were not in the ring within {limit} s: the consumer lags or has stopped"
                )))
            }
        }
    }

    /// Takes no more rows. With an error's message, each consumer is told of the error at its end.
    #[pyo3(signature = (error=None))]
    fn close(&self, py: Python<'_>, error: Option<String>) -> PyResult<()> {
        let store = &self.inside.get()?.store;
        py.detach(|| match error {
            Some(message) => store.close_with(message),
            None => store.close(),
        });
        Ok(())
    }

    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        let store = &self.inside.get()?.store;
        py.detach(|| store.abort());
        Ok(())
    }

    fn empty(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.inside.get()?.store.clone();
        elsewhere(py, move || store.empty())
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.inside.get()?.store.is_closed())
    }

    /// Rows that a minibatch's rows are spread over, in whole minibatches.
    #[getter]
    fn window(&self) -> PyResult<usize> {
        Ok(self.inside.get()?.store.window())
    }

    /// Bytes of the ring's frames.
    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        let store = &self.inside.get()?.store;
        let row: usize = store.components().iter().map(|component| component.features * component.dtype.size()).sum();
        Ok(row * store.window())
    }

    fn stored(&self, py: Python<'_>) -> PyResult<Vec<usize>> {
        let store = &self.inside.get()?.store;
        Ok(py.detach(|| store.current_activations_stored_per_component()))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let store = &self.inside.get()?.store;
        Ok(py.detach(|| ActivationStore::len(store)))
    }

    /// Copies the rows with these numbers to `out`, `[row, component, feature]` of `f32`.
    fn rows(&self, rows: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let store = &self.inside.get()?.store;
        let len = rows.py().detach(|| ActivationStore::len(store));
        fetch(rows, out, len, |rows, out| by_index(store, rows, out))
    }

    /// Counts, all taken at the same moment.
    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        let store = &self.inside.get()?.store;
        Ok(py.detach(|| store.stats()).into())
    }
}

/// Where a lane goes on: the fields of `ResumeAt`, with the name first.
type Place = (Option<String>, u64, u64, u64, Option<Vec<u8>>, Option<u64>);

fn place(at: &ResumeAt) -> Place {
    let name = at.lane.name.as_ref().map(|name| name.to_string());
    (name, at.lane.number, at.passes, at.row, at.value.as_ref().map(|value| value.to_vec()), at.ends_at)
}

/// Where the lanes of a store go on that is resumed from the newest snapshot in a folder, or from a snapshot's bytes.
#[pyfunction]
#[pyo3(signature = (folder=None, snapshot=None))]
pub(crate) fn resume_points(
    py: Python<'_>,
    folder: Option<PathBuf>,
    snapshot: Option<Vec<u8>>,
) -> PyResult<Vec<Place>> {
    let read = move || match (folder, snapshot) {
        (Some(folder), _) => Snapshots::new(folder).newest(),
        (None, bytes) => Snapshot::from_bytes(&bytes.unwrap_or_default()),
    };
    Ok(elsewhere(py, read)?.or_raise()?.resume_at().iter().map(place).collect())
}

/// The snapshots in a folder, oldest first.
#[pyfunction]
pub(crate) fn list_snapshots(py: Python<'_>, folder: PathBuf) -> PyResult<Vec<(u64, PathBuf)>> {
    elsewhere(py, move || Snapshots::new(folder).list())?.or_raise()
}

/// The folders that have the name of a snapshot and hold no whole one, and what is wrong with each.
#[pyfunction]
pub(crate) fn snapshots_not_whole(py: Python<'_>, folder: PathBuf) -> PyResult<Vec<(PathBuf, String)>> {
    let others = elsewhere(py, move || Snapshots::new(folder).not_whole())?.or_raise()?;
    Ok(others.into_iter().map(|(path, reason)| (path, reason.to_string())).collect())
}

/// Removes all but the newest snapshots in a folder.
#[pyfunction]
pub(crate) fn prune_snapshots(py: Python<'_>, folder: PathBuf, keep: usize) -> PyResult<Vec<u64>> {
    elsewhere(py, move || Snapshots::new(folder).prune(keep))?.or_raise()
}

fn parse_when_full(when_full: &str) -> PyResult<WhenFull> {
    match when_full {
        "wait" => Ok(WhenFull::Wait),
        "reject" => Ok(WhenFull::Reject),
        "drop_oldest" => Ok(WhenFull::DropOldest),
        other => {
            Err(PyValueError::new_err(format!("when_full is {other:?}; use \"wait\", \"reject\" or \"drop_oldest\"")))
        }
    }
}

fn parse_merge(merge: &str) -> PyResult<Merge> {
    match merge {
        "arrival" => Ok(Merge::Arrival),
        "round_robin" => Ok(Merge::RoundRobin),
        other => Err(PyValueError::new_err(format!("merge is {other:?}; use \"arrival\" or \"round_robin\""))),
    }
}
