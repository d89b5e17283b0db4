//! One thread that watches for everything that Python awaits without blocking: writes and minibatches.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use activation_store::Minibatches;
use activation_store::ReadError;
use pyo3::prelude::*;

use crate::errors::OrRaise;
use crate::minibatch::Minibatch;
use crate::ring::Ring;
use crate::write::{Shared, WriteOutcome};

/// A number that no task has: the watcher is to end.
const STOP: u64 = u64::MAX;

/// Something that is awaited.
enum Awaited {
    Write(Arc<Shared>),
    Next(Minibatches),
}

/// What came of it.
enum Came {
    Write,
    Next(Result<Option<activation_store::Minibatch>, ReadError>),
}

struct Task {
    awaited: Awaited,
    callback: Py<PyAny>,
}

#[derive(Default)]
struct Tasks {
    waiting: HashMap<u64, Task>,
    /// The one that is being polled, unless it has been forgotten meanwhile.
    polled: Option<u64>,
}

/// Tells the watcher that a task may go on.
struct Bell {
    task: u64,
    ready: Sender<u64>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // The watcher may have ended.
        let _ = self.ready.send(self.task);
    }
}

/// Polls tasks and calls back when they are done. One thread calls `run`.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Watcher {
    tasks: Mutex<Tasks>,
    next: AtomicU64,
    ready: Sender<u64>,
    line: Mutex<Receiver<u64>>,
}

impl Watcher {
    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, awaited: Awaited, callback: Py<PyAny>) -> u64 {
        let task = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().waiting.insert(task, Task { awaited, callback });
        // The watcher polls it for the first time.
        let _ = self.ready.send(task);
        task
    }

    /// Waits for a task that is done; `None` when the watcher is to end.
    fn next_done(&self) -> Option<(Came, Py<PyAny>)> {
        loop {
            let id = self.line.lock().unwrap_or_else(PoisonError::into_inner).recv().ok().filter(|&id| id != STOP)?;
            let mut tasks = self.lock();
            // Absent if it was woken twice.
            let Some(mut task) = tasks.waiting.remove(&id) else {
                continue;
            };
            tasks.polled = Some(id);
            drop(tasks);
            let waker = Waker::from(Arc::new(Bell { task: id, ready: self.ready.clone() }));
            let mut context = Context::from_waker(&waker);
            let came = match &mut task.awaited {
                Awaited::Write(outcome) => outcome.poll(&context).map(|()| Came::Write),
                Awaited::Next(minibatches) => Pin::new(minibatches).poll_minibatch(&mut context).map(Came::Next),
            };
            let mut tasks = self.lock();
            let wanted = tasks.polled.take().is_some();
            match came {
                Poll::Ready(came) => return Some((came, task.callback)),
                Poll::Pending if wanted => drop(tasks.waiting.insert(id, task)),
                Poll::Pending => {}
            }
        }
    }
}

/// The stream's `poll_next` with the end of the stream inside.
trait PollMinibatch {
    fn poll_minibatch(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<activation_store::Minibatch>, ReadError>>;
}

impl PollMinibatch for Minibatches {
    fn poll_minibatch(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<activation_store::Minibatch>, ReadError>> {
        futures_core::Stream::poll_next(self, context).map(Option::transpose)
    }
}

#[pymethods]
impl Watcher {
    #[new]
    fn new() -> Self {
        let (ready, line) = mpsc::channel();
        Watcher { tasks: Mutex::default(), next: AtomicU64::new(0), ready, line: Mutex::new(line) }
    }

    /// Calls `callback()` when the write's outcome is known.
    fn watch_write(&self, write: &WriteOutcome, callback: Py<PyAny>) -> PyResult<()> {
        self.add(Awaited::Write(write.share()?), callback);
        Ok(())
    }

    /// Calls `callback(minibatch or None, exception or None)` with the next minibatch. Returns a number for `forget`.
    fn watch_next(&self, ring: &Ring, callback: Py<PyAny>) -> PyResult<u64> {
        Ok(self.add(Awaited::Next(ring.consumer()?), callback))
    }

    /// Stops watching, unless it has come already.
    fn forget(&self, task: u64) {
        let mut tasks = self.lock();
        if tasks.polled == Some(task) {
            tasks.polled = None;
        }
        let forgotten = tasks.waiting.remove(&task);
        drop(tasks);
        drop(forgotten);
    }

    /// Watches until `stop` is called.
    fn run(&self, py: Python<'_>) {
        while let Some((came, callback)) = py.detach(|| self.next_done()) {
            let called = match came {
                Came::Write => callback.call0(py),
                // Made for this call, but the consumer is the store's own, which is older.
                Came::Next(Err(ReadError::Aborted)) => callback.call1(py, (None::<Minibatch>, None::<PyErr>)),
                Came::Next(next) => match next.or_raise().and_then(|next| next.map(Minibatch::new).transpose()) {
                    Ok(next) => callback.call1(py, (next, None::<PyErr>)),
                    Err(error) => callback.call1(py, (None::<Minibatch>, error)),
                },
            };
            if let Err(error) = called {
                error.write_unraisable(py, Some(callback.bind(py)));
            }
        }
    }

    /// Ends `run`.
    fn stop(&self) {
        let _ = self.ready.send(STOP);
    }
}
