//! Waits for room in a recorder, with a future or on a thread.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::recording::recorder::Recorder;
use crate::recording::room::{PassRoom, WaitingForRoom};
use crate::rows::batch::{Batch, RefusedPass};
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::layout::ComponentKey;
use crate::rows::pass::WholePass;
use crate::waiting::handle::WriteHandle;
use crate::waiting::wait::wait_for;

/// A future that resolves when a recorder has room for a pass, with a [`RecorderPermit`] to use the room.
///
/// Callers get room in the order in which they came. Any executor can poll the future. A thread can [`wait`](Self::wait). Made by
/// [`Recorder::reserve_pass`].
///
/// The future takes its place in line at the first poll. Keep polling it, or drop it: while it has the first place in line, the callers
/// behind it wait.
///
/// # Errors
/// The future yields [`WriteError`] if the recorder takes no more passes: the first [`DiskError`](crate::DiskError), a panic, or
/// [`WriteError::Closed`].
///
/// # Cancel safety
/// Dropping the future gives up its place in line, and has no other effect.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use activation_store::Recorder;
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("recorder-reserve-doc-{}", std::process::id()));
/// let recorder = Recorder::builder().component("mlp", 4).create(&dir)?;
/// for _ in 0..10 {
///     let permit = recorder.reserve_pass().await?; // waits while two passes wait for the disk
///     let rows = Array2::<f32>::ones((5, 4)); // the model runs here
///     let _ = permit.extend_pass([("mlp", rows)])?; // does not wait
/// }
/// assert_eq!(recorder.finish()?.rows, 50);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok(())
/// # }
/// # futures::executor::block_on(example()).unwrap();
/// ```
#[must_use = "nothing is reserved until it is awaited"]
pub struct RecorderReserve<'a> {
    recorder: &'a Recorder,
    /// `None` once the future has resolved.
    waiting: Option<WaitingForRoom>,
}

/// Room for one pass of a recorder. Made by [`Recorder::reserve_pass`]. Dropping it gives the room back.
#[must_use = "the room is given back when the permit is dropped"]
pub struct RecorderPermit<'a> {
    pub(crate) recorder: &'a Recorder,
    room: PassRoom,
}

impl Recorder {
    /// Waits in line for room for a pass: a recorder has room while fewer than two passes wait for the disk.
    ///
    /// Use it to wait in a task, or in your own way. [`extend_pass`](Self::extend_pass) waits by itself. Returns at once; see
    /// [`RecorderReserve`] for the wait.
    pub fn reserve_pass(&self) -> RecorderReserve<'_> {
        RecorderReserve { recorder: self, waiting: Some(self.room.wait()) }
    }
}

impl<'a> RecorderReserve<'a> {
    /// Blocks this thread until there is room. Works inside and outside a runtime.
    ///
    /// # Errors
    /// As the future: [`WriteError`] if the recorder takes no more passes.
    ///
    /// # Panics
    /// Panics if the future has resolved before.
    pub fn wait(mut self) -> Result<RecorderPermit<'a>, WriteError> {
        // There is no deadline, so there is an outcome.
        wait_for(&mut self, None).unwrap_or(Err(ClosedBy::Recorder.into()))
    }

    /// Blocks this thread until there is room, but no longer than `timeout`. `None` if there is no room by then. The future then keeps its
    /// place in line.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// Panics if the future has resolved before.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<RecorderPermit<'a>, WriteError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

impl<'a> Future for RecorderReserve<'a> {
    type Output = Result<RecorderPermit<'a>, WriteError>;

    /// # Panics
    /// Panics if you poll the future after it has resolved.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let recorder = self.recorder;
        let Some(waiting) = &mut self.waiting else { panic!("a reservation is polled after it has resolved") };
        // Looks first, so that a recorder that has ended makes no caller wait, and looks again after the wait.
        let permit = match recorder.check_open() {
            Ok(()) => {
                let room = ready!(waiting.as_mut().poll(context));
                recorder.check_open().map(|()| RecorderPermit { recorder, room })
            }
            Err(error) => Err(error),
        };
        self.waiting = None;
        Poll::Ready(permit)
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
        self.recorder.record(pass, self.room)
    }

    /// Hands a pass to a ring, through `ring`, and records it in the room of this permit. Both share the memory of the batches. This is
    /// what [`Tee::extend_pass`](crate::Tee::extend_pass) does, for a lane and a recorder that have other users, too. Does not wait, unless
    /// `ring` does.
    ///
    /// `ring` gets the batches in the order of `pass`, and the handle is as from [`Tee::extend_pass`](crate::Tee::extend_pass). No other
    /// pass comes to the recorder before `ring` returns, so do not wait in it.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back: if the recorder cannot take the pass, before `ring` is called; or the refusal of `ring`. Then
    /// the recorder does not have the pass.
    pub fn extend_pass_with<K: ComponentKey, B: Into<Batch>>(
        self,
        pass: impl IntoIterator<Item = (K, B)>,
        ring: impl FnOnce(Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass>,
    ) -> Result<WriteHandle, RefusedPass> {
        let (for_ring, for_recorder) = WholePass::new(&self.recorder.layout, pass)?.share();
        self.record_with(for_recorder, || ring(for_ring.into_given()))
    }

    /// Records a whole pass in the room of this permit.
    pub(crate) fn record(self, pass: WholePass) -> Result<WriteHandle, RefusedPass> {
        self.recorder.record(pass, self.room)
    }

    /// Does the same, but hands the pass to a ring before.
    pub(crate) fn record_with(
        self,
        pass: WholePass,
        ring: impl FnOnce() -> Result<WriteHandle, RefusedPass>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.recorder.record_with(pass, self.room, ring)
    }
}

impl fmt::Debug for RecorderReserve<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecorderReserve").field("recorder", &self.recorder).finish_non_exhaustive()
    }
}

impl fmt::Debug for RecorderPermit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecorderPermit").field("recorder", &self.recorder).finish_non_exhaustive()
    }
}
