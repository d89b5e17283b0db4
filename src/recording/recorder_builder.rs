//! Configures a recorder, and starts its threads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{bounded, unbounded};

use crate::disk::disk::{Disk, Doing, files};
use crate::disk::folder::{UNFINISHED, unfinished};
use crate::memory::convert::RowReader;
use crate::recording::error::RecordingError;
use crate::recording::lane_end;
use crate::recording::lane_writer::LaneWriter;
use crate::recording::recorder::Recorder;
use crate::recording::room::Room;
use crate::recording::sealer::{Progress, Safe, Sealer, SyncPolicy};
use crate::recording::shard::{self, LONGEST_LANE, check_components, check_length, is_lane, lane_of, read_info};
use crate::ring_store::builder::{components, not_zero};
use crate::rows::element::DType;
use crate::rows::layout::Layout;

/// How many passes may wait for the thread.
const QUEUED: usize = 2;

/// Configures a [`Recorder`]. Made by [`Recorder::builder`].
#[derive(Debug)]
pub struct RecorderBuilder {
    components: Vec<(String, usize, Option<DType>)>,
    lane: String,
    shard_rows: usize,
    metadata: BTreeMap<String, String>,
    sync: SyncPolicy,
}

impl Recorder {
    /// Configures a recorder.
    #[must_use]
    pub fn builder() -> RecorderBuilder {
        RecorderBuilder {
            components: Vec::new(),
            lane: "lane".to_owned(),
            shard_rows: 1 << 14,
            metadata: BTreeMap::new(),
            sync: SyncPolicy::EachShard,
        }
    }
}

impl RecorderBuilder {
    /// Adds a component with rows of `features` values of `f32`.
    #[must_use]
    pub fn component(mut self, name: impl Into<String>, features: usize) -> Self {
        self.components.push((name.into(), features, None));
        self
    }

    /// Adds a component with rows of `features` values of `dtype`.
    #[must_use]
    pub fn component_of(mut self, name: impl Into<String>, features: usize, dtype: DType) -> Self {
        self.components.push((name.into(), features, Some(dtype)));
        self
    }

    /// Sets the name of the lane: 1 to 128 ASCII letters, digits, `-` and `_`. Default: `lane`.
    #[must_use]
    pub fn lane(mut self, name: impl Into<String>) -> Self {
        self.lane = name.into();
        self
    }

    /// Sets the rows of a shard. A shard ends with the pass that brings it to this number of rows. Default: 16,384.
    #[must_use]
    pub fn shard_rows(mut self, rows: usize) -> Self {
        self.shard_rows = rows;
        self
    }

    /// Sets when files are synced. Default: [`SyncPolicy::EachShard`].
    #[must_use]
    pub fn sync(mut self, policy: SyncPolicy) -> Self {
        self.sync = policy;
        self
    }

    /// Adds a field to each shard that describes the rows.
    ///
    /// You can use any key. Other programs look for `model`, `hooks` (their names, with commas between them), `tokenizer`, `dataset` and
    /// `context_length`.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Begins a new lane in a folder. Makes the folder if it is missing.
    ///
    /// # Errors
    /// [`RecordingError`] if a setting is wrong, the folder cannot be made or listed, the lane has shards already, or another lane has
    /// other components. A folder that cannot be written is an error of the first pass.
    pub fn create(self, dir: impl AsRef<Path>) -> Result<Recorder, RecordingError> {
        self.start(files(), &absolute(dir.as_ref())?, false)
    }

    /// Goes on after the last whole shard of a lane, or begins the lane if it has no shard. [`Recorder::resumed`] says which pass comes
    /// next.
    ///
    /// Removes the unfinished shards of a recorder that was killed. So no other recorder of this lane may run.
    ///
    /// # Errors
    /// [`RecordingError`] as for [`create`](Self::create), but for shards of the lane; or if a shard or the end of the lane is damaged,
    /// missing or has other components. Compares the length of each file, and no checksum of rows.
    pub fn resume(self, dir: impl AsRef<Path>) -> Result<Recorder, RecordingError> {
        self.start(files(), &absolute(dir.as_ref())?, true)
    }

    pub(crate) fn start(self, disk: Arc<dyn Disk>, dir: &Path, resume: bool) -> Result<Recorder, RecordingError> {
        not_zero("shard_rows", self.shard_rows)?;
        check_lane(&self.lane)?;
        let layout = Layout::new(&components(self.components, DType::F32), 1)?;
        disk.create_dir_all(dir).doing("create", dir)?;
        let ends = lane_end::list(&*disk, dir, Some(&self.lane))?;
        let own = shard::list_lane(&*disk, dir, &self.lane)?;
        if !resume && !own.is_empty() {
            return Err(RecordingError::Exists { dir: dir.to_owned(), lane: self.lane });
        }
        lane_end::check(dir, &ends, &own)?;
        let (rows, passes) = shard::check_lane(dir, &own)?;
        for (path, info) in &own {
            check_components(path, info, layout.components())?;
            (0..info.components.len()).try_for_each(|component| check_length(&*disk, path, info, component))?;
        }
        let safe = Safe { rows, passes };
        check_other_lanes(&*disk, dir, &self.lane, &layout)?;
        if resume {
            remove_unfinished(&*disk, dir, &self.lane)?;
        }
        let progress = Arc::new(Progress::new(safe));
        let (sealed, sealer_queue) = bounded(1);
        let sealer = Sealer {
            disk: disk.clone(),
            dir: dir.to_owned(),
            lane: self.lane.clone(),
            policy: self.sync,
            progress: progress.clone(),
            shards: own.len() as u64,
            finished: !ends.is_empty(),
            waiting: Vec::new(),
            gap: false,
        };
        // The room bounds the passes in the queue.
        let (sender, queue) = unbounded();
        let writer = LaneWriter {
            readers: layout.components().iter().map(|component| RowReader::new(component.dtype)).collect(),
            values: vec![Default::default(); layout.n_components()],
            components: layout.components().to_vec(),
            next: safe,
            number: own.len() as u64,
            shard_rows: self.shard_rows as u64,
            dir: dir.to_owned(),
            lane: self.lane.clone(),
            metadata: self.metadata,
            shard: None,
            progress: progress.clone(),
            sealer: sealed,
            disk: disk.clone(),
        };
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let sealing = named("recorder-sync").spawn(move || sealer.run(&sealer_queue));
        let sealing = sealing.doing("start a recorder's thread for", dir)?;
        let writing = named("recorder").spawn(move || writer.run(&queue, sealing));
        let writing = writing.doing("start a recorder's thread for", dir)?;
        let entrance = (Room::new(QUEUED), sender);
        Ok(Recorder::new(layout, entrance, writing, safe, progress, disk, (dir.to_owned(), self.lane)))
    }
}

/// Makes a folder's path absolute. So the recorder stays with its folder if the process changes its current folder.
fn absolute(dir: &Path) -> Result<PathBuf, RecordingError> {
    Ok(std::path::absolute(dir).doing("find", dir)?)
}

fn check_lane(lane: &str) -> Result<(), RecordingError> {
    if is_lane(lane) {
        return Ok(());
    }
    let expected = format!("1 to {LONGEST_LANE} letters, digits, - and _");
    Err(RecordingError::Setting { what: "the lane's name", value: format!("{lane:?}"), expected })
}

/// Checks that another lane of the folder has the same components, if there is one. A shard that is damaged does not count.
fn check_other_lanes(disk: &dyn Disk, dir: &Path, lane: &str, layout: &Layout) -> Result<(), RecordingError> {
    let others = shard::folders(disk, dir)?.into_iter().filter(|folder| lane_of(folder).as_deref() != Some(lane));
    for folder in others {
        match read_info(disk, &folder) {
            Ok(info) => return check_components(&folder, &info, layout.components()),
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes the unfinished shards that a killed recorder of a lane left.
fn remove_unfinished(disk: &dyn Disk, dir: &Path, lane: &str) -> Result<(), RecordingError> {
    let left = format!("{UNFINISHED}{}", shard::prefix(lane));
    for path in disk.list(dir).doing("list", dir)? {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&left)) {
            // In one step. If another recorder of the lane runs after all, it fails, and names nothing that was half removed.
            let gone = dir.join(unfinished(&format!("{}gone", shard::prefix(lane))));
            disk.rename(&path, &gone).doing("remove", &path)?;
            disk.remove(&gone).doing("remove", &gone)?;
        }
    }
    Ok(())
}
