//! One capture for a ring and a recorder.

use crate::error::RecordingError;
use crate::pipeline::handle::WriteHandle;
use crate::pipeline::producer::Producer;
use crate::recording::recorder::Recorder;
use crate::recording::sealer::Safe;
use crate::rows::batch::{Batch, RefusedPass};
use crate::rows::layout::ComponentKey;

/// Hands each pass to a lane of a ring and to a recorder, to train and record at the same time. The two share the memory of the
/// batches.
///
/// ```
/// use activation_store::{Recorder, Recording, RefusedPass, RingStore, Tee};
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("tee-doc-{}", std::process::id()));
/// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
/// let recorder = Recorder::builder().component("mlp", 4).create(&dir)?;
/// let mut minibatches = store.minibatches();
/// store.spawn_producer("capture", |lane| {
///     let tee = Tee::new(lane, recorder);
///     for _ in 0..10 {
///         let _ = tee.extend_pass_blocking([("mlp", Array2::<f32>::ones((6, 4)))])?;
///     }
///     tee.finish()?;
///     Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// })?;
/// let trained: usize = minibatches.blocking().map(|minibatch| minibatch.map_or(0, |minibatch| minibatch.rows())).sum();
/// assert_eq!((trained as u64, Recording::open(&dir)?.rows()), (60, 60));
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tee {
    lane: Producer,
    recorder: Recorder,
}

impl Tee {
    /// Both need the same components.
    #[must_use]
    pub fn new(lane: Producer, recorder: Recorder) -> Self {
        Tee { lane, recorder }
    }

    /// The recorder, to flush it or to ask what was safe when it began.
    #[must_use]
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Hands over the rows of all components that one forward pass produced: first to the ring, then to the recorder. What the ring
    /// refuses is not recorded, so the two have the same passes, in the same order, if one thread writes.
    ///
    /// The handle is the recorder's: its error says that a shard could not be written. The ring has the pass then, and goes on.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back, if the ring refuses them. If the recorder refuses what the ring has taken, because
    /// their components differ or its thread has ended, it gives back the recorder's share.
    ///
    /// # Blocking
    /// Blocks while the ring's queue is full, and while two passes wait for the disk.
    pub fn extend_pass_blocking<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let shared = pass.into_iter().map(|(key, batch)| {
            let (ring, recorder) = batch.into().share();
            ((key, ring), (key, recorder))
        });
        let (ring, recorder): (Vec<_>, Vec<_>) = shared.unzip();
        self.lane.extend_pass_blocking(ring)?;
        self.recorder.extend_pass(recorder)
    }

    /// Writes what was recorded, and ends the recorder and the lane.
    ///
    /// # Errors
    /// As [`Recorder::finish`].
    pub fn finish(self) -> Result<Safe, RecordingError> {
        self.recorder.finish()
    }
}
