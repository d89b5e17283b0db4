//! Runs long, blocking work: on a runtime's blocking pool, or on a thread of its own.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::BuildError;

/// Why [`Work::run`] returned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It has nothing left to do.
    Done,
    /// It was told to leave the runtime, and goes on elsewhere.
    Leave,
}

/// Long, blocking work that can be moved between threads.
pub(crate) trait Work: Send + 'static {
    /// Works until done, or told to leave.
    fn run(&mut self) -> Exit;

    /// Ends the work: `run` panicked, or there is no thread to run on. Neither is called again.
    fn fail(&mut self, cause: &str);
}

/// Runs `work` on the runtime's blocking pool if there is one, else on a thread of its own.
///
/// A runtime that shuts down waits for its blocking tasks. It would wait for ever if the store outlives it. So `leave` is
/// called then, and must make `Work::run` return [`Exit::Leave`]. The work goes on on a thread of its own.
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
    // tokio panics where the operating system refuses the thread.
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
    // Dropped, with the guard, when the runtime shuts down, which is before it waits for blocking tasks.
    let guard = Guard(Some(leave));
    runtime.spawn(async move {
        let _guard = guard;
        let _ = stopped.await;
    });
    Ok(())
}

/// Work on its way to a blocking thread, which it never reaches if the runtime is shutting down.
struct Seat<W: Work>(Option<W>);

impl<W: Work> Seat<W> {
    fn run(mut self) {
        self.0 = self.0.take().and_then(drive);
    }
}

impl<W: Work> Drop for Seat<W> {
    fn drop(&mut self) {
        if let Some(work) = self.0.take() {
            // A failure to start a thread has been told to the work.
            let _ = spawn(work);
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

/// Runs the work until it is done (`None`) or leaves.
fn drive<W: Work>(mut work: W) -> Option<W> {
    match catch_unwind(AssertUnwindSafe(|| work.run())) {
        Ok(Exit::Done) => None,
        Ok(Exit::Leave) => Some(work),
        Err(panic) => {
            let failed = catch_unwind(AssertUnwindSafe(|| work.fail(message(&*panic))));
            failed.err().into_iter().for_each(discard);
            // What the work still holds may panic again when dropped, and so may the panic's own payload.
            let mut panics = Panics(Some(panic));
            panics.catch(|| drop(work));
            None
        }
    }
}

/// What a panic carries.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Runs foreign code (a waker, the destructor of a batch's owner) so that a panic of one piece stops no other.
#[derive(Default)]
pub(crate) struct Panics(Option<Panic>);

impl Panics {
    /// Runs one piece, and keeps its panic if it is the first.
    pub(crate) fn catch(&mut self, foreign: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(foreign)) {
            match &self.0 {
                None => self.0 = Some(panic),
                Some(_) => discard(panic),
            }
        }
    }

    /// The first panic, if any piece panicked.
    pub(crate) fn first(mut self) -> Result<(), Panic> {
        self.0.take().map_or(Ok(()), Err)
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(discard);
    }
}

/// Drops what a panic carries. A payload of the user's own, whose destructor may panic, too, is leaked.
pub(crate) fn discard(panic: Panic) {
    if !panic.is::<String>() && !panic.is::<&str>() {
        mem::forget(panic);
    }
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}
