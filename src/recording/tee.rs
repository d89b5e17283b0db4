//! One capture for training now and for a recording.

use crate::error::RecordingError;
use crate::pipeline::handle::WriteHandle;
use crate::pipeline::producer::Producer;
use crate::recording::entrance::{check_pass, refused};
use crate::recording::recorder::Recorder;
use crate::recording::sealer::Safe;
use crate::rows::batch::{Batch, RefusedPass};
use crate::rows::layout::{Component, ComponentKey};

/// Hands each pass to a ring store and to a recorder, which share the memory of its batches.
///
/// | what happens | what the ring and the recorder have |
/// |---|---|
/// | the pass does not fit, the ring has no room and rejects, the ring is closed, or the recorder has failed | neither has the pass; it comes back |
/// | the pass was taken, and the disk fails later | the ring has it; the handle of this pass or of a later one has the error |
/// | the ring drops rows later (`DropOldest`, `empty`, `abort`) | the recorder has the pass; the handle says what the ring did |
///
/// If the recorder fails and training should go on, take the ring alone: [`into_parts`](Self::into_parts). Likewise if training has
/// ended and the recording should go on.
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
    /// Joins a lane of a ring store and a recorder. They have the same components, in the same order. Element types may differ: record
    /// `f32` and train on `bf16`, say.
    ///
    /// # Errors
    /// [`RecordingError::Setting`] if names or features differ.
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

    /// Hands the rows of all components that one forward pass produced to both: each exactly once, in any order, equally many.
    ///
    /// The handle resolves when both have released the batches, with the first error, or as the ring's write. Passes of several threads
    /// have the same order in the ring and in the recording.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back, and neither has rows of them: see [`Producer::extend_pass`] and
    /// [`Recorder::extend_pass`].
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk. While the ring is full the pass waits in line: await the handle, or memory is not
    /// bounded.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = check_pass(&self.recorder.layout, pass)?;
        // Held until both have the pass, so that no other pass comes between.
        let entrance = self.recorder.enter();
        if let Err(error) = entrance.check(&self.recorder.layout, &self.recorder.progress) {
            return Err(refused(error, pass));
        }
        let share = |(component, batch): (usize, Batch)| {
            let (ring, recorder) = batch.share();
            ((component, ring), (component, recorder))
        };
        let (for_ring, for_recorder): (Vec<_>, Vec<_>) = pass.into_iter().map(share).unzip();
        let trained = self.ring.extend_pass(for_ring)?;
        // The ring has the pass, so an error of a recorder whose thread has just panicked goes through the handle.
        let recorded =
            entrance.hand_over(for_recorder).unwrap_or_else(|refused| WriteHandle::ready(Err(refused.error)));
        Ok(WriteHandle::all([trained, recorded]))
    }

    /// The ring's lane, for passes that only the ring lacks (after resuming, say).
    #[must_use]
    pub fn ring(&self) -> &Producer {
        &self.ring
    }

    /// The recorder, to flush it, or for passes that only the recording lacks.
    #[must_use]
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Closes the ring's lane, and [finishes](Recorder::finish) the recorder.
    ///
    /// # Errors
    /// As [`Recorder::finish`].
    ///
    /// # Blocking
    /// As [`Recorder::finish`].
    pub fn finish(self) -> Result<Safe, RecordingError> {
        drop(self.ring);
        self.recorder.finish()
    }

    /// The two, to go on with one of them.
    #[must_use]
    pub fn into_parts(self) -> (Producer, Recorder) {
        (self.ring, self.recorder)
    }
}
