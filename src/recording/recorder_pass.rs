//! Gathers a pass for a recorder component by component, and records it as a whole.

use std::fmt;

use crate::recording::recorder::Recorder;
use crate::recording::reserve::RecorderPermit;
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::error::WriteError;
use crate::rows::layout::ComponentKey;
use crate::rows::pass::{Gathered, WholePass};
use crate::waiting::handle::WriteHandle;

/// The rows of one forward pass, gathered from hooks that fire one by one, for a recorder.
///
/// Nothing is recorded before [`commit`](Self::commit). So if an error, a panic or a cancelled task drops the pass before, the recording
/// has no part of it, and the next pass takes its number. Made by [`Recorder::begin_pass`].
///
/// ```
/// use activation_store::Recorder;
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("recorder-pass-doc-{}", std::process::id()));
/// let recorder = Recorder::builder().component("attn", 4).component("mlp", 4).create(&dir)?;
/// let mut pass = recorder.begin_pass();
/// pass.put("mlp", Array2::<f32>::zeros((6, 4)))?;
/// pass.put("attn", Array2::<f32>::ones((6, 4)))?;
/// assert_eq!(pass.commit()?.wait()?.rows, 6);
///
/// let mut failed = recorder.begin_pass();
/// failed.put("attn", Array2::<f32>::ones((6, 4)))?;
/// drop(failed); // the model raised an error
/// assert_eq!(recorder.finish()?.passes, 1);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a pass is recorded only when it is committed"]
pub struct RecorderPass<'a> {
    recorder: &'a Recorder,
    gathered: Gathered,
}

impl Recorder {
    /// Begins a pass whose components come one by one. Several passes may be gathered at once. They take their numbers when they are
    /// committed.
    pub fn begin_pass(&self) -> RecorderPass<'_> {
        RecorderPass { recorder: self, gathered: Gathered::new(&self.layout) }
    }
}

impl RecorderPass<'_> {
    /// Adds the rows of a component, `[rows, features]`.
    ///
    /// # Errors
    /// [`Refused`] returns the batch, and the pass stays as it was: if the component, features or element type are wrong, as for
    /// [`Recorder::extend`]; or [`WriteError::PassDoubles`] if the pass already has the component; or [`WriteError::PassRows`] if the number
    /// of rows differs from the first component's.
    pub fn put(&mut self, component: impl ComponentKey, batch: impl Into<Batch>) -> Result<(), Refused> {
        self.gathered.put(&self.recorder.layout, component, batch)
    }

    /// Records the pass as [`Recorder::extend_pass`] does.
    ///
    /// # Errors
    /// As [`Recorder::extend_pass`], for example [`WriteError::PassLacks`] if a component is missing.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk.
    pub fn commit(self) -> Result<WriteHandle, RefusedPass> {
        let recorder = self.recorder;
        recorder.commit(self.whole()?)
    }

    /// Records the pass as [`Recorder::try_extend_pass`] does. Returns at once.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and [`WriteError::Full`] if there is no room.
    pub fn try_commit(self) -> Result<WriteHandle, RefusedPass> {
        let recorder = self.recorder;
        recorder.try_commit(self.whole()?)
    }

    fn whole(self) -> Result<WholePass, RefusedPass> {
        self.gathered.whole(&self.recorder.layout)
    }
}

impl RecorderPermit<'_> {
    /// Records a gathered pass, and does not wait.
    ///
    /// # Errors
    /// As [`RecorderPass::commit`]. Also [`WriteError::Permit`] if the pass was begun on another recorder.
    pub fn commit(self, pass: RecorderPass<'_>) -> Result<WriteHandle, RefusedPass> {
        let is_own = std::ptr::eq(self.recorder, pass.recorder);
        let pass = pass.whole()?;
        if is_own {
            return self.record(pass);
        }
        let call = "reserve_pass on the recorder of the pass";
        Err(pass.refused(WriteError::Permit { holds: "a pass of another recorder", call }))
    }
}

impl fmt::Debug for RecorderPass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecorderPass").field("components", &self.gathered.order()).finish_non_exhaustive()
    }
}
