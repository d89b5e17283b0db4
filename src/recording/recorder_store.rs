//! A recorder as a store.

use std::path::PathBuf;

use ndarray::ArrayD;

use crate::memory::convert::widen;
use crate::recording::buffers::Buffers;
use crate::recording::error::RecordingError;
use crate::recording::recorder::Recorder;
use crate::recording::shard::{self, ShardInfo, ShardRows, check_lane};
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::index::Index;
use crate::rows::index::IndexError;
use crate::store::ActivationStore;
use crate::waiting::handle::WriteHandle;

/// As a store, a recorder holds the rows in safe shards. `len` counts these rows, and `get` reads them from the disk. Other rows
/// count when their shard is safe.
impl ActivationStore for Recorder {
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
        Recorder::extend(self, batch, component)
    }

    fn extend_pass(&self, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
        Recorder::extend_pass(self, pass)
    }

    fn empty(&self) {
        Recorder::empty(self);
    }

    fn n_components(&self) -> usize {
        self.components().len()
    }

    fn current_activations_stored_per_component(&self) -> Vec<usize> {
        vec![self.safe().rows as usize; self.components().len()]
    }

    /// Reads and verifies the whole file of each selected row. Reads a file once for all rows in sequence that are in it.
    ///
    /// # Blocking
    /// Blocks until the files are read.
    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let safe = self.safe();
        let shards = self.own_shards().map_err(unreadable)?;
        let features: Vec<usize> = self.components().iter().map(|component| component.features).collect();
        let mut read: Vec<Option<(usize, ShardRows)>> = features.iter().map(|_| None).collect();
        index.select(safe.rows as usize, &features, |row, component, out| {
            let at = shards.partition_point(|(_, info)| info.first_row + info.rows <= row as u64);
            let missing = || IndexError::OutOfRange { axis: "row", index: row as isize, len: safe.rows as usize };
            let (path, info) = shards.get(at).ok_or_else(missing)?;
            if read[component].as_ref().is_none_or(|(shard, _)| *shard != at) {
                // The old file is dropped first, so only one is in memory.
                read[component] = None;
                let rows =
                    shard::read_rows(&*self.disk, path, info, component, &Buffers::default()).map_err(unreadable)?;
                read[component] = Some((at, rows));
            }
            let Some((_, rows)) = &read[component] else { return Err(missing()) };
            let length = self.layout.row_bytes(component);
            let start = (row as u64 - info.first_row) as usize * length;
            widen(&rows.bytes()[start..][..length], component, self.components()[component].dtype, out)
        })
    }
}

impl Recorder {
    fn own_shards(&self) -> Result<Vec<(PathBuf, ShardInfo)>, RecordingError> {
        let safe = self.safe();
        let shards = shard::list_lane(&*self.disk, &self.dir, &self.lane)?;
        let (rows, _) = check_lane(&self.dir, &shards)?;
        if rows < safe.rows {
            let (dir, lane) = (self.dir.clone(), self.lane.clone());
            return Err(RecordingError::Missing { dir, lane, number: shards.len() as u64 });
        }
        Ok(shards)
    }
}

fn unreadable(error: RecordingError) -> IndexError {
    IndexError::Unreadable { reason: error.to_string() }
}
