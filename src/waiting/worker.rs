//! Runs long, blocking work on a runtime's blocking pool, or on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::rows::build_error::BuildError;
use crate::waiting::panics::{Panics, discard, message};

/// Why [`Work::run`] returned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The work has nothing left to do.
    Done,
    /// The work was told to leave the runtime, and continues on another thread.
    Leave,
}

/// Long, blocking work that can be moved between threads.
pub(crate) trait Work: Send + 'static {
    /// Works until there is nothing left to do, or the work is told to leave.
    fn run(&mut self) -> Exit;

    /// Ends the work, because `run` panicked or there is no thread to run on. After this, neither `run` nor `fail` is called again.
    fn fail(&mut self, cause: &str);
}

/// Runs `work` on the runtime's blocking pool if there is a runtime. If not, runs `work` on a thread of its own.
///
/// A runtime that shuts down waits for its blocking tasks. The runtime would wait forever for a store that outlives it. So `leave`
/// is called when the runtime shuts down, and must make `Work::run` return [`Exit::Leave`]. Then the work continues on a
/// thread of its own.
///
/// # Errors
/// [`BuildError::Thread`] if the operating system cannot start a thread.
pub(crate) fn start<W: Work>(
    work: W,
    runtime: Option<&Handle>,
    leave: impl FnOnce() + Send + 'static,
) -> Result<(), BuildError> {
    let no_thread = |reason: &str| BuildError::Thread { reason: reason.to_owned() };
    let Some(runtime) = runtime else {
        return spawn(work).map_err(|error| no_thread(&error.to_string()));
    };
    let (running, stopped) = oneshot::channel::<()>();
    let seat = Seat(Some(work));
    // tokio panics if the operating system refuses a thread.
    let spawned = catch_unwind(AssertUnwindSafe(|| {
        runtime.spawn_blocking(move || {
            let _running = running;
            seat.run();
        });
    }));
    if let Err(panic) = spawned {
        let error = no_thread(message(&*panic));
        discard(panic);
        return Err(error);
    }
    // A runtime that shuts down drops this task, with the guard, before it waits for blocking tasks.
    let guard = Guard(Some(leave));
    runtime.spawn(async move {
        let _guard = guard;
        let _ = stopped.await;
    });
    Ok(())
}

/// Work on its way to a blocking thread. If the runtime is shutting down, the work never gets there, and `drop` starts a thread.
struct Seat<W: Work>(Option<W>);

impl<W: Work> Seat<W> {
    fn run(mut self) {
        self.0 = self.0.take().and_then(drive);
    }
}

impl<W: Work> Drop for Seat<W> {
    fn drop(&mut self) {
        if let Some(work) = self.0.take() {
            // If no thread can be started, `spawn` has told the work.
            let _ = spawn(work);
        }
    }
}

/// Calls `leave` when it is dropped.
struct Guard<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Guard<F> {
    fn drop(&mut self) {
        if let Some(leave) = self.0.take() {
            leave();
        }
    }
}

/// Runs the work on a thread of its own. If there is no thread, tells the work.
fn spawn<W: Work>(work: W) -> std::io::Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("activation-store".to_owned()).spawn(move || {
        let mut work = receiver.recv().ok();
        while let Some(left) = work.and_then(drive) {
            work = Some(left);
        }
    });
    match thread {
        Ok(_) => {
            let _ = sender.send(work);
            Ok(())
        }
        Err(error) => {
            let mut work = work;
            work.fail(&format!("its thread could not be started: {error}"));
            Err(error)
        }
    }
}

/// Runs the work until it is done or leaves. `None` if it is done or has panicked.
fn drive<W: Work>(mut work: W) -> Option<W> {
    match catch_unwind(AssertUnwindSafe(|| work.run())) {
        Ok(Exit::Done) => None,
        Ok(Exit::Leave) => Some(work),
        Err(panic) => {
            let failed = catch_unwind(AssertUnwindSafe(|| work.fail(message(&*panic))));
            failed.err().into_iter().for_each(discard);
            // Dropping the rest of the work may panic again. Dropping the payload of the panic may panic, too.
            let mut panics = Panics(Some(panic));
            panics.catch(|| drop(work));
            None
        }
    }
}
