//! Room for the passes that wait for a recorder's thread.

use std::pin::{Pin, pin};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::unconstrained;

use crate::waiting::wait::wait_for;

/// Room for some passes. Callers get it in the order in which they came. A pass has its room before it enters, so that no thread holds the
/// entrance while it waits.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

/// Room for one pass. Dropping it gives the room back, and may wake a caller that waits: that runs foreign code.
#[derive(Debug)]
pub(crate) struct PassRoom {
    _permit: Option<OwnedSemaphorePermit>,
}

/// The future of a caller that waits for room.
pub(crate) type WaitingForRoom = Pin<Box<dyn Future<Output = PassRoom> + Send + Sync>>;

impl Room {
    pub(crate) fn new(passes: usize) -> Self {
        Room(Arc::new(Semaphore::new(passes)))
    }

    /// Takes room if there is some and no caller waits.
    pub(crate) fn try_take(&self) -> Option<PassRoom> {
        self.0.clone().try_acquire_owned().ok().map(|permit| PassRoom { _permit: Some(permit) })
    }

    /// Blocks this thread until there is room.
    pub(crate) fn take(&self) -> PassRoom {
        let taken = self.try_take().or_else(|| wait_for(&mut self.wait(), None));
        // The wait has no time limit, so it has given room.
        taken.unwrap_or(PassRoom { _permit: None })
    }

    /// Makes the future of a caller. The caller is in line from the first poll on.
    pub(crate) fn wait(&self) -> WaitingForRoom {
        let semaphore = self.0.clone();
        // Outside `tokio`'s budget of polls per turn, as in `waiting/handle`. The semaphore is never closed, so this never fails.
        Box::pin(async move { PassRoom { _permit: unconstrained(pin!(semaphore.acquire_owned())).await.ok() } })
    }
}
