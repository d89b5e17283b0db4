//! A permit to record one pass without waiting.

use std::fmt;
use std::time::Duration;

use crate::recording::recorder::Recorder;
use crate::recording::room::Place;
use crate::rows::batch::{Batch, RefusedPass};
use crate::rows::layout::ComponentKey;
use crate::rows::pass::WholePass;
use crate::waiting::handle::WriteHandle;

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
        let pass = WholePass::new(&self.recorder.layout, pass)?;
        self.recorder.record(pass, self.place)
    }
}

impl fmt::Debug for RecorderPermit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecorderPermit").field("recorder", &self.recorder).finish_non_exhaustive()
    }
}
