//! Runs a store's writer on a thread of the store's own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crate::rows::build_error::BuildError;
use crate::waiting::panics::{Panics, discard, message};

/// Work of a thread.
pub(crate) trait Work: Send + 'static {
    /// Works until there is nothing left to do.
    fn run(&mut self);

    /// Ends the work, because `run` panicked or there is no thread to run on. After this, neither `run` nor `fail` is called again.
    fn fail(&mut self, cause: &str);
}

/// Starts a thread for the work.
///
/// The thread belongs to the store, so no runtime waits for it, and none must outlive it.
///
/// # Errors
/// [`BuildError::Thread`] if the operating system cannot start a thread.
pub(crate) fn start(work: impl Work) -> Result<(), BuildError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("activation-store".to_owned()).spawn(move || {
        receiver.recv().into_iter().for_each(drive);
    });
    match spawned {
        Ok(_) => {
            let _ = sender.send(work);
            Ok(())
        }
        Err(error) => {
            let mut work = work;
            work.fail(&format!("its thread could not be started: {error}"));
            Err(BuildError::Thread { reason: error.to_string() })
        }
    }
}

/// Runs the work until it is done or has panicked.
fn drive(mut work: impl Work) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| work.run())) else { return };
    let failed = catch_unwind(AssertUnwindSafe(|| work.fail(message(&*panic))));
    failed.err().into_iter().for_each(discard);
    // Dropping the rest of the work may panic again. Dropping the payload of the panic may panic, too.
    let mut panics = Panics(Some(panic));
    panics.catch(|| drop(work));
}
