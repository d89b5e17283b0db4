//! Where a writer runs: on a runtime's blocking pool, or on a thread of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crossbeam_channel::Receiver;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::BuildError;

/// Why a task returned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It has nothing left to do.
    Done,
    /// It was told to leave the runtime, and goes on elsewhere.
    Leave,
}

/// Long, blocking work that can be moved between threads.
pub(crate) trait Task: Send + 'static {
    /// Works until done, or told to leave.
    fn run(&mut self) -> Exit;

    /// `run` panicked, or there is no thread to run on, and will not be called again.
    fn fail(&mut self, cause: &str);
}

/// Runs `task` on the runtime's blocking pool if there is one, else on a thread of its own.
///
/// A runtime that shuts down waits for its blocking tasks, which would be forever if the store outlives it. So `leave`
/// is called then, and must make `Task::run` return [`Exit::Leave`]; the task goes on on a thread of its own.
pub(crate) fn start<T: Task>(
    task: T,
    runtime: Option<&Handle>,
    leave: impl FnOnce() + Send + 'static,
) -> Result<(), BuildError> {
    let Some(runtime) = runtime else {
        return spawn(task).map_err(|error| BuildError::Thread { reason: error.to_string() });
    };
    let (running, stopped) = oneshot::channel::<()>();
    let seat = Seat(Some(task));
    runtime.spawn_blocking(move || {
        let _running = running;
        seat.run();
    });
    // Dropped, with the guard, when the runtime shuts down, which is before it waits for blocking tasks.
    let guard = Guard(Some(leave));
    runtime.spawn(async move {
        let _guard = guard;
        let _ = stopped.await;
    });
    Ok(())
}

/// A task on its way to a blocking thread, which it never reaches if the runtime is shutting down.
struct Seat<T: Task>(Option<T>);

impl<T: Task> Seat<T> {
    fn run(mut self) {
        self.0 = self.0.take().and_then(drive);
    }
}

impl<T: Task> Drop for Seat<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            // A failure to start a thread has been told to the task.
            let _ = spawn(task);
        }
    }
}

struct Guard<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Guard<F> {
    fn drop(&mut self) {
        if let Some(leave) = self.0.take() {
            leave();
        }
    }
}

fn spawn<T: Task>(task: T) -> std::io::Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("activation-store".to_owned()).spawn(move || {
        let mut task = receiver.recv().ok();
        while let Some(left) = task.and_then(drive) {
            task = Some(left);
        }
    });
    match thread {
        Ok(_) => {
            let _ = sender.send(task);
            Ok(())
        }
        Err(error) => {
            let mut task = task;
            task.fail(&format!("its thread could not be started: {error}"));
            Err(error)
        }
    }
}

/// Runs the task until it is done (`None`) or leaves.
fn drive<T: Task>(mut task: T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(|| task.run())) {
        Ok(Exit::Done) => None,
        Ok(Exit::Leave) => Some(task),
        Err(panic) => {
            task.fail(message(&*panic));
            // What the task still holds may panic again when dropped.
            drop_quietly(task);
            None
        }
    }
}

/// Drops foreign memory where a panic of its own must stop nothing.
pub(crate) fn drop_quietly<T>(foreign: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(foreign)));
}

/// Empties a queue whose messages may hold foreign memory, each dropped on its own: what lies behind one that panics must
/// not be leaked, for somebody waits for its reply.
pub(crate) fn drain_quietly<T>(queue: &Receiver<T>) {
    queue.try_iter().for_each(drop_quietly);
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}
