//! Opens a recording, verifies it, and reads rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::Array1;

use crate::disk::disk::{Disk, files};
use crate::error::{IndexError, RecordingError};
use crate::memory::convert::widen;
use crate::recording::recorder::{check_components, check_number};
use crate::recording::shard::{self, ShardInfo};
use crate::rows::layout::{Component, ComponentKey, Layout};

/// A folder of whole shards, as it was when it was opened.
#[derive(Clone, Debug)]
pub struct Recording {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) shards: Arc<[(PathBuf, ShardInfo)]>,
    pub(crate) layout: Layout,
}

impl Recording {
    /// Opens a recording. Reads what its shards say, not their rows; see [`verify`](Self::verify).
    ///
    /// # Errors
    /// [`RecordingError`]: no whole shard, one missing between others, one that is damaged or has other components.
    pub fn open(dir: impl AsRef<Path>) -> Result<Recording, RecordingError> {
        Recording::open_on(files(), dir.as_ref())
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Recording, RecordingError> {
        let shards = shard::list(&*disk, dir)?;
        let Some((path, first)) = shards.first() else {
            return Err(RecordingError::Empty { dir: dir.to_owned() });
        };
        let components: Option<Vec<Component>> = first.components.iter().map(shard::ComponentFile::component).collect();
        let unknown = || shard::damaged(&path.join(shard::INFO), "it has a dtype that is unknown".to_owned());
        let components = components.ok_or_else(unknown)?;
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for (path, info) in &shards {
            let number = next.entry(&info.lane).or_default();
            check_number(dir, info, *number)?;
            *number += 1;
            check_components(path, info, &components)?;
        }
        let layout = Layout::new(&components, 1)?;
        Ok(Recording { disk, shards: shards.into(), layout })
    }

    /// Reads every file and compares its checksum. `progress` is told shards done and shards in all.
    ///
    /// # Errors
    /// [`RecordingError`] names the first file that is damaged or cannot be read.
    pub fn verify(&self, mut progress: impl FnMut(usize, usize)) -> Result<(), RecordingError> {
        for (done, (path, info)) in self.shards.iter().enumerate() {
            for component in 0..info.components.len() {
                shard::read_rows(&*self.disk, path, info, component)?;
            }
            progress(done + 1, self.shards.len());
        }
        Ok(())
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.layout.components()
    }

    /// Rows of each component, of all lanes.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|(_, info)| info.rows).sum()
    }

    /// How many shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The lanes, with the rows of each.
    #[must_use]
    pub fn lanes(&self) -> BTreeMap<String, u64> {
        let mut lanes = BTreeMap::new();
        for (_, info) in self.shards.iter() {
            *lanes.entry(info.lane.clone()).or_default() += info.rows;
        }
        lanes
    }

    /// One row of a component as `f32`, `[features]`. Rows are numbered over the lanes in the order of their names.
    ///
    /// Reads and verifies the whole file that has the row.
    ///
    /// # Errors
    /// [`RecordingError`]: a row past the end, an unknown component or one of integers, or a file that is damaged.
    pub fn get(&self, component: impl ComponentKey, row: u64) -> Result<Array1<f32>, RecordingError> {
        let component = self.layout.find(component)?;
        let mut left = row;
        for (path, info) in self.shards.iter() {
            if left < info.rows {
                let bytes = shard::read_rows(&*self.disk, path, info, component)?;
                let (length, found) = (self.layout.row_bytes(component), &self.components()[component]);
                let mut out = Array1::zeros(found.features);
                if let Some(out) = out.as_slice_mut() {
                    widen(&bytes[left as usize * length..][..length], component, found.dtype, out)?;
                }
                return Ok(out);
            }
            left -= info.rows;
        }
        let index = isize::try_from(row).unwrap_or(isize::MAX);
        Err(IndexError::OutOfRange { axis: "row", index, len: self.rows() as usize }.into())
    }
}
