//! Gives one capture to the training and to a recording.

use crate::recording::error::RecordingError;
use crate::recording::permit::RecorderPermit;
use crate::recording::recorder::Recorder;
use crate::recording::sealer::Safe;
use crate::ring_store::producer::Producer;
use crate::rows::batch::{Batch, RefusedPass};
use crate::rows::closed::ClosedBy;
use crate::rows::layout::{Component, ComponentKey};
use crate::rows::pass::WholePass;
use crate::waiting::handle::WriteHandle;

impl RecorderPermit<'_> {
    /// Hands a pass to a ring, through `ring`, and records it in the room of this permit. Both share the memory of the batches. This is
    /// what [`Tee::extend_pass`] does, for a lane and a recorder that have other users, too. Does not wait, unless `ring` does.
    ///
    /// `ring` gets the batches in the order of `pass`, and the handle is as from [`Tee::extend_pass`]. No other pass comes to the recorder
    /// before `ring` returns, so do not wait in it.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back: if the recorder cannot take the pass, before `ring` is called; or the refusal of `ring`. Then
    /// the recorder does not have the pass.
    pub fn extend_pass_with<K: ComponentKey, B: Into<Batch>>(
        self,
        pass: impl IntoIterator<Item = (K, B)>,
        ring: impl FnOnce(Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = WholePass::new(&self.recorder.layout, pass)?;
        self.hand_to_both(pass, ring)
    }

    fn hand_to_both(
        self,
        pass: WholePass,
        ring: impl FnOnce(Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass>,
    ) -> Result<WriteHandle, RefusedPass> {
        let RecorderPermit { recorder, place } = self;
        // Dropped after the entrance is free, also if `ring` panics: that may run code of the batches' owners.
        let (for_ring, for_recorder);
        // Held until both have the pass. So passes have the same order in both.
        let entrance = recorder.enter();
        if let Err(error) = entrance.check(&recorder.layout, &recorder.progress) {
            return Err(pass.refused(error));
        }
        (for_ring, for_recorder) = pass.share();
        let trained = ring(for_ring.into_given())?;
        let recorded = entrance.hand_over(for_recorder, place);
        drop(entrance);
        // If the recorder's thread has just ended, the ring has the pass already. So the handle gets the error.
        let recorded = recorded.unwrap_or_else(|_| WriteHandle::ready(Err(ClosedBy::Recorder.into())));
        Ok(WriteHandle::all([trained, recorded]))
    }
}

/// Hands each pass to a ring store and to a recorder. Both share the memory of the batches.
///
/// | what happens | what the ring and the recorder have |
/// |---|---|
/// | the pass is wrong, the ring rejects it or is closed, or the recorder has failed | neither has the pass; you get it back |
/// | the disk fails after the pass was taken | the ring has the pass; the handle of this pass or of a later pass has the error |
/// | the ring drops rows later (`DropOldest`, `empty`, `abort`) | the recorder has the pass; the handle says what the ring did |
///
/// If the recorder fails, you can go on with the ring alone. If the training has ended, you can go on with the recorder alone. See
/// [`into_parts`](Self::into_parts).
///
/// ```
/// use activation_store::{Recorder, Recording, RingStore, Tee};
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("tee-doc-{}", std::process::id()));
/// let store = RingStore::builder().component("mlp", 4).batch_size(10).window(40).build()?;
/// let mut minibatches = store.minibatches();
/// let recorder = Recorder::builder().component("mlp", 4).create(&dir)?;
/// let capture = store.spawn_producer("capture", move |lane| {
///     let tee = Tee::new(lane, recorder)?;
///     for _ in 0..20 {
///         // Blocks while the trainer or the disk lags.
///         tee.extend_pass([("mlp", Array2::<f32>::ones((5, 4)))])?.wait()?;
///     }
///     tee.finish()?;
///     Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// })?;
/// let trained: usize = minibatches.blocking().map(|minibatch| minibatch.map(|rows| rows.rows())).sum::<Result<_, _>>()?;
/// assert_eq!(trained, 100);
/// assert_eq!(Recording::open(&dir)?.rows(), 100);
/// # drop(capture);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tee {
    ring: Producer,
    recorder: Recorder,
}

impl Tee {
    /// Joins a lane of a ring store and a recorder. Both must have the same components in the same order. The element types may differ:
    /// for example, record `f32` and train on `bf16`.
    ///
    /// # Errors
    /// [`RecordingError::Setting`] if the names or the numbers of features differ.
    pub fn new(ring: Producer, recorder: Recorder) -> Result<Tee, RecordingError> {
        let named = |components: &[Component]| {
            let named = |c: &Component| format!("{:?} with {} features", c.name, c.features);
            components.iter().map(named).collect::<Vec<_>>().join(", ")
        };
        let value = named(ring.shared().config.layout.components());
        let expected = named(recorder.components());
        if value != expected {
            return Err(RecordingError::Setting { what: "the list of the ring's components", value, expected });
        }
        Ok(Tee { ring, recorder })
    }

    /// Hands the rows of all components that one forward pass produced to the ring and to the recorder.
    ///
    /// `pass` has every component exactly once, in any order. All batches, `[rows, features]`, have the same number of rows. The handle
    /// resolves when the ring and the recorder have both released the batches. It gives the first error, or else the outcome of the ring.
    /// Passes of several threads have the same order in the ring and in the recording.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back. Then neither the ring nor the recorder has a row of the pass. See
    /// [`RingStore::extend_pass`](crate::RingStore::extend_pass) and [`Recorder::extend_pass`] for the cases.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk. While the ring is full, the pass waits in line. Memory is bounded only if you await the
    /// handle.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = WholePass::new(&self.recorder.layout, pass)?;
        let permit = RecorderPermit { recorder: &self.recorder, place: self.recorder.places.take() };
        permit.hand_to_both(pass, |pass| self.ring.extend_pass(pass))
    }

    /// Returns the lane of the ring, for passes that only the ring lacks, for example after a resume.
    #[must_use]
    pub fn ring(&self) -> &Producer {
        &self.ring
    }

    /// Returns the recorder, to flush it, or for passes that only the recording lacks.
    #[must_use]
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Closes the lane of the ring, and [finishes](Recorder::finish) the recorder. Returns what is safe.
    ///
    /// # Errors
    /// The first [`DiskError`](crate::DiskError) of the recorder.
    ///
    /// # Blocking
    /// Blocks until the recorded passes are on disk.
    pub fn finish(self) -> Result<Safe, RecordingError> {
        drop(self.ring);
        self.recorder.finish()
    }

    /// Returns the lane of the ring and the recorder, so that you can go on with one of them.
    #[must_use]
    pub fn into_parts(self) -> (Producer, Recorder) {
        (self.ring, self.recorder)
    }
}
