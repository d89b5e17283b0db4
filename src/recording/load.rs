//! Loads a recording into memory.

use crate::recording::error::RecordingError;
use crate::recording::recording::Recording;
use crate::tensor_store::tensor_store::TensorStore;

/// How many rows are read at once.
const ROWS_AT_ONCE: u64 = 1 << 14;

impl Recording {
    /// Reads all rows into a store in memory, which you can shuffle and index. Row n of the store is row n of the recording.
    ///
    /// `seed` is the seed of the store. Compares no checksum. [`verify`](Self::verify) does.
    ///
    /// ```
    /// use activation_store::{Recorder, Recording};
    /// use ndarray::Array2;
    ///
    /// # let dir = std::env::temp_dir().join(format!("recording-load-doc-{}", std::process::id()));
    /// let recorder = Recorder::builder().component("mlp", 2).create(&dir)?;
    /// let _ = recorder.extend_pass([("mlp", Array2::<f32>::ones((10, 2)))])?;
    /// recorder.finish()?;
    /// let store = Recording::open(&dir)?.load(7)?;
    /// store.shuffle();
    /// assert_eq!(store.epoch(4)?.count(), 3);
    /// # std::fs::remove_dir_all(&dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RecordingError`] if there is not enough memory, or a file cannot be read.
    ///
    /// # Blocking
    /// Blocks until all rows are read.
    pub fn load(&self, seed: u64) -> Result<TensorStore, RecordingError> {
        let rows = usize::try_from(self.rows()).unwrap_or(usize::MAX);
        let builder = self.components().iter().fold(TensorStore::builder(), |builder, component| {
            builder.component_of(&*component.name, component.features, component.dtype)
        });
        let store = builder.max_items(rows).seed(seed).build()?;
        for first in (0..self.rows()).step_by(ROWS_AT_ONCE as usize) {
            let piece: Vec<u64> = (first..self.rows().min(first + ROWS_AT_ONCE)).collect();
            let read = |component| Ok((component, self.get(component, &piece)?));
            let pass: Vec<_> = (0..self.components().len()).map(read).collect::<Result<_, RecordingError>>()?;
            store.extend_pass(pass).map_err(|refused| refused.error)?.wait()?;
        }
        Ok(store)
    }
}
