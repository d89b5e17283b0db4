//! Gives one capture to the training and to a recording.

use crate::recording::error::RecordingError;
use crate::recording::recorder::Recorder;
use crate::recording::sealer::Safe;
use crate::ring_store::producer::Producer;
use crate::rows::layout::Component;

/// Hands each pass to a ring store and to a recorder. Both share the memory of the batches.
///
/// | what happens | what the ring and the recorder have |
/// |---|---|
/// | the pass is wrong, the ring rejects it or is closed, or the recorder has failed | neither has the pass; you get it back |
/// | the disk fails after the pass was taken | the ring has the pass; the handle of this pass or of a later pass has the error |
/// | the ring drops rows later (`DropOldest`, `empty`, `abort`) | the recorder has the pass; the handle says what the ring did |
///
/// Of the ways to write, [`extend_pass`](Self::extend_pass) waits for the disk and not for the ring,
/// [`extend_pass_blocking`](Self::extend_pass_blocking) waits for both, [`try_extend_pass`](Self::try_extend_pass) for neither, and
/// [`reserve_pass`](Self::reserve_pass) waits as a future. [`begin_pass`](Self::begin_pass) gathers a pass from hooks that fire one by one.
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

    /// Returns the lane of the ring. After a resume, [`catch_up`](Self::catch_up) gives it the passes that it alone lacks.
    #[must_use]
    pub fn ring(&self) -> &Producer {
        &self.ring
    }

    /// Returns the recorder, for example to flush it.
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
