//! Room for the passes that wait for a recorder's thread.

use std::fmt;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::pipeline::handle::WriteHandle;
use crate::recording::entrance::{check_pass, refused};
use crate::recording::recorder::Recorder;
use crate::rows::batch::{Batch, RefusedPass};
use crate::rows::layout::ComponentKey;

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

    fn take_timeout(&self, timeout: Duration) -> Option<Place> {
        self.free.recv_timeout(timeout).ok().map(|()| Place(self.back.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// Room for one pass of a recorder. Made by [`Recorder::reserve_pass`]. Dropping it gives the room back.
#[must_use = "the room is given back when the permit is dropped"]
pub struct RecorderPermit<'a> {
    pub(crate) recorder: &'a Recorder,
    pub(crate) place: Place,
}

impl Recorder {
    /// Waits for room for a pass, but no longer than `timeout`. `None` if there is no room by then: two passes wait for the disk.
    ///
    /// Use it to wait in your own way, for example to look for a signal in between. [`extend_pass`](Self::extend_pass) waits by itself.
    ///
    /// # Blocking
    /// Blocks until there is room, or until `timeout` is over.
    pub fn reserve_pass(&self, timeout: Duration) -> Option<RecorderPermit<'_>> {
        self.places.take_timeout(timeout).map(|place| RecorderPermit { recorder: self, place })
    }
}

impl RecorderPermit<'_> {
    /// Records a pass as [`Recorder::extend_pass`] does, and does not wait.
    ///
    /// # Errors
    /// Same as [`Recorder::extend_pass`].
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = check_pass(&self.recorder.layout, pass)?;
        self.record(pass)
    }

    pub(crate) fn record(self, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
        let entrance = self.recorder.enter();
        match entrance.check(&self.recorder.layout, &self.recorder.progress) {
            Ok(()) => entrance.hand_over(pass, self.place),
            Err(error) => Err(refused(error, pass)),
        }
    }
}

impl fmt::Debug for RecorderPermit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecorderPermit").field("recorder", &self.recorder).finish_non_exhaustive()
    }
}
