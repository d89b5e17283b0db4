//! Room for the passes that wait for a recorder's thread.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// The places for passes that wait. A pass takes its place before it enters, so that no thread holds the entrance while it waits.
pub(crate) struct Places {
    free: Receiver<()>,
    back: Sender<()>,
}

/// A place for one pass. It is free again when this is dropped.
pub(crate) struct Place(Sender<()>);

impl Places {
    pub(crate) fn new(places: usize) -> Self {
        let (back, free) = bounded(places);
        for _ in 0..places {
            let _ = back.try_send(());
        }
        Places { free, back }
    }

    /// Waits for a place.
    pub(crate) fn take(&self) -> Place {
        // This cannot fail, because `back` is here.
        let _ = self.free.recv();
        Place(self.back.clone())
    }

    pub(crate) fn take_timeout(&self, timeout: Duration) -> Option<Place> {
        self.free.recv_timeout(timeout).ok().map(|()| Place(self.back.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}
