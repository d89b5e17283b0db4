//! One thread that watches for everything that Python awaits without blocking: writes and minibatches.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use activation_store::{Minibatch as Frame, ReadError};
use futures_core::Stream as _;
use pyo3::prelude::*;

use crate::consumer::{Consumer, Wait};
use crate::errors::OrRaise;
use crate::minibatch::Minibatch;
use crate::write::{Shared, WriteOutcome};

/// A number that no task has: the watcher is to end.
const STOP: u64 = u64::MAX;

/// Something that is awaited.
enum Awaited {
    Write(Arc<Shared>),
    Next(Wait),
}

/// What came of it.
enum Came {
    Write,
    Next(Result<Option<Frame>, ReadError>),
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
                Awaited::Next(wait) => wait.poll(&mut context).map(Came::Next),
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

impl Wait {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, ReadError>> {
        let next = ready!(Pin::new(&mut self.minibatches).poll_next(context));
        Poll::Ready(self.outcome(next.transpose()))
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
    fn watch_next(&self, consumer: &Consumer, callback: Py<PyAny>) -> PyResult<u64> {
        Ok(self.add(Awaited::Next(consumer.wait()?), callback))
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
