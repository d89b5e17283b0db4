//! Opens a recording, verifies it, and reads rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::disk::{Disk, Doing, files};
use crate::recording::buffers::Buffers;
use crate::recording::error::RecordingError;
use crate::recording::lane_end::{self, LaneEnd};
use crate::recording::lent::lend;
use crate::recording::shard::{self, ShardInfo, ShardRows, check_components, check_lane};
use crate::rows::batch::Batch;
use crate::rows::index::IndexError;
use crate::rows::layout::{Component, ComponentKey, Layout};

/// How often the shards are listed again while one seems to be missing.
const LISTS: usize = 3;

/// How many missing shards of a lane [`Recording::salvage`] names.
const NAMED: usize = 1000;

/// Reads a folder of whole shards. Shards that are written after [`open`](Self::open) are not part of it.
#[derive(Clone, Debug)]
pub struct Recording {
    pub(crate) disk: Arc<dyn Disk>,
    dir: PathBuf,
    pub(crate) shards: Arc<[(PathBuf, ShardInfo)]>,
    pub(crate) layout: Layout,
    finished: Arc<[String]>,
}

/// Says how much of a lane was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordedLane {
    /// Rows of each component.
    pub rows: u64,
    /// Passes.
    pub passes: u64,
    /// Shards.
    pub shards: u64,
    /// Whether the recorder of the lane has [finished](crate::Recorder::finish). If not, the recorder still records, or it ended
    /// without `finish`.
    pub finished: bool,
}

impl Recording {
    /// Opens a recording. Reads the description of each shard, but not the rows. [`verify`](Self::verify) checks the rows.
    ///
    /// # Errors
    /// [`RecordingError`] if there is no whole shard, if the shards differ in their components, or if the description of a shard or
    /// the end of a lane is damaged. Also if a shard is missing between other shards, or at the end of a finished lane.
    pub fn open(dir: impl AsRef<Path>) -> Result<Recording, RecordingError> {
        Recording::open_on(files(), dir.as_ref())
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Recording, RecordingError> {
        // A list that is made while a recorder names its shards may have a shard and lack the one before it.
        for _ in 0..LISTS {
            match Recording::read(disk.clone(), dir) {
                Err(RecordingError::Missing { .. }) => {}
                read => return read,
            }
        }
        Recording::read(disk, dir)
    }

    fn read(disk: Arc<dyn Disk>, dir: &Path) -> Result<Recording, RecordingError> {
        let ends = lane_end::list(&*disk, dir, None)?;
        let shards = shard::list(&*disk, dir)?;
        lane_end::check(dir, &ends, &shards)?;
        for lane in shards.chunk_by(|(_, one), (_, next)| one.lane == next.lane) {
            check_lane(dir, lane)?;
        }
        Recording::new(disk, dir, ends, shards)
    }

    fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        ends: Vec<(PathBuf, LaneEnd)>,
        shards: Vec<(PathBuf, ShardInfo)>,
    ) -> Result<Recording, RecordingError> {
        let Some((path, first)) = shards.first() else {
            return Err(RecordingError::Empty { dir: dir.to_owned() });
        };
        let components: Option<Vec<Component>> = first.components.iter().map(shard::ComponentFile::component).collect();
        let unknown = || shard::damaged(&path.join(shard::INFO), "it has a dtype that is unknown".to_owned());
        let components = components.ok_or_else(unknown)?;
        for (path, info) in &shards {
            check_components(path, info, &components)?;
        }
        let layout = Layout::new(&components, 1)?;
        let finished = ends.into_iter().map(|(_, end)| end.lane).collect();
        Ok(Recording { disk, dir: dir.to_owned(), shards: shards.into(), layout, finished })
    }

    /// Opens the whole shards of a damaged recording, and returns what is wrong with the others. Reads every file and compares its
    /// checksum to find the whole shards.
    ///
    /// Row numbers do not count the shards that are left out. After each shard, calls `progress` with the number of shards done and the
    /// number of all shards.
    ///
    /// ```
    /// use activation_store::{Recorder, Recording};
    /// use ndarray::Array2;
    ///
    /// # let dir = std::env::temp_dir().join(format!("recording-salvage-doc-{}", std::process::id()));
    /// let recorder = Recorder::builder().component("mlp", 2).shard_rows(10).create(&dir)?;
    /// for _ in 0..3 {
    ///     let _ = recorder.extend_pass([("mlp", Array2::<f32>::ones((10, 2)))])?;
    /// }
    /// recorder.finish()?;
    /// std::fs::write(dir.join("lane.000001/0.safetensors"), "nothing")?;
    ///
    /// let (recording, lost) = Recording::salvage(&dir, |_, _| ())?;
    /// assert_eq!((recording.rows(), recording.shards(), lost.len()), (20, 2, 1));
    /// println!("left out: {}", lost[0]); // names the file
    /// # std::fs::remove_dir_all(&dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RecordingError`] if there is no whole shard, or if the whole shards differ in their components. Also if the system cannot read a
    /// file ([`RecordingError::Disk`]) or a file has a newer format: such a shard may be whole.
    pub fn salvage(
        dir: impl AsRef<Path>,
        progress: impl FnMut(usize, usize),
    ) -> Result<(Recording, Vec<RecordingError>), RecordingError> {
        Recording::salvage_on(files(), dir.as_ref(), progress)
    }

    pub(crate) fn salvage_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<(Recording, Vec<RecordingError>), RecordingError> {
        let mut lost = Vec::new();
        let mut ends = Vec::new();
        for path in lane_end::files(&*disk, dir)? {
            match lane_end::read(&*disk, &path) {
                Ok(end) => ends.extend(end.map(|end| (path, end))),
                Err(error) => lost.push(only_damage(error)?),
            }
        }
        let (mut whole, buffers) = (BTreeMap::new(), Buffers::default());
        let folders = shard::folders(&*disk, dir)?;
        for (number, path) in folders.iter().enumerate() {
            let info = shard::read_info(&*disk, path);
            match info.and_then(|info| shard::verify(&*disk, path, &info, &buffers).map(|()| info)) {
                Ok(info) => drop(whole.insert((info.lane.clone(), info.number), (path.clone(), info))),
                Err(error) => lost.push(only_damage(error)?),
            }
            progress(number + 1, folders.len());
        }
        // A lane has all numbers up to its last shard that is there, or as many shards as its end says.
        let mut shards: BTreeMap<&str, u64> = ends.iter().map(|(_, end)| (&*end.lane, end.shards)).collect();
        for (lane, number) in whole.keys() {
            let shards = shards.entry(lane).or_default();
            *shards = (*shards).max(number + 1);
        }
        for (lane, shards) in shards {
            let absent = (0..shards).filter(|&number| !folders.contains(&dir.join(shard::name(lane, number))));
            let absent = absent.take(NAMED);
            let missing = |number| RecordingError::Missing { dir: dir.to_owned(), lane: lane.to_owned(), number };
            lost.extend(absent.map(missing));
        }
        Ok((Recording::new(disk, dir, ends, whole.into_values().collect())?, lost))
    }

    /// Checks that every file is there and has the length that its rows need. Reads no rows. [`verify`](Self::verify) checks the rows.
    ///
    /// # Errors
    /// [`RecordingError`] names the first file that is missing or has a wrong length.
    pub fn check_files(&self) -> Result<(), RecordingError> {
        let check = |(path, info): &(PathBuf, ShardInfo)| {
            (0..info.components.len()).try_for_each(|number| shard::check_length(&*self.disk, path, info, number))
        };
        self.shards.iter().try_for_each(check)
    }

    /// Reads every file and compares its checksum. After each shard, calls `progress` with the number of shards done and the number of all
    /// shards.
    ///
    /// # Errors
    /// [`RecordingError`] names the first file that is damaged or cannot be read.
    pub fn verify(&self, mut progress: impl FnMut(usize, usize)) -> Result<(), RecordingError> {
        let buffers = Buffers::default();
        for shard in 0..self.shards.len() {
            self.verify_with(shard, &buffers)?;
            progress(shard + 1, self.shards.len());
        }
        Ok(())
    }

    /// Reads every file of one shard and compares its checksum. Shards are numbered from 0.
    ///
    /// # Errors
    /// [`RecordingError`] names the first file that is damaged or cannot be read.
    ///
    /// # Panics
    /// Panics if `shard` is not less than [`shards`](Self::shards).
    pub fn verify_shard(&self, shard: usize) -> Result<(), RecordingError> {
        self.verify_with(shard, &Buffers::default())
    }

    fn verify_with(&self, shard: usize, buffers: &Buffers) -> Result<(), RecordingError> {
        let (path, info) = &self.shards[shard];
        shard::verify(&*self.disk, path, info, buffers)
    }

    /// Returns all fields that describe the rows. If shards differ in a field, the first lane that has the field counts.
    #[must_use]
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let fields = self.shards.iter().rev().flat_map(|(_, info)| &info.metadata);
        fields.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Returns the folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.layout.components()
    }

    /// Returns the rows of each component, of all lanes together.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|(_, info)| info.rows).sum()
    }

    /// Returns the number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Returns the lanes by name.
    #[must_use]
    pub fn lanes(&self) -> BTreeMap<String, RecordedLane> {
        let mut lanes: BTreeMap<String, RecordedLane> = BTreeMap::new();
        for (_, info) in self.shards.iter() {
            let lane = lanes.entry(info.lane.clone()).or_default();
            lane.rows += info.rows;
            lane.passes += info.passes;
            lane.shards += 1;
            lane.finished = self.finished.contains(&info.lane);
        }
        lanes
    }

    /// Reads rows of a component: `[rows, features]`, in the component's element type, in the order of `rows`. You can name a row more than
    /// once. Rows are numbered from 0, over the lanes in the order of their names.
    ///
    /// Reads only these rows, and compares no checksum. [`verify`](Self::verify) does.
    ///
    /// ```
    /// use activation_store::{Recorder, Recording};
    /// use ndarray::{Array2, array};
    ///
    /// # let dir = std::env::temp_dir().join(format!("recording-get-doc-{}", std::process::id()));
    /// let recorder = Recorder::builder().component("mlp", 2).create(&dir)?;
    /// let _ = recorder.extend_pass([("mlp", Array2::from_shape_fn((10, 2), |(row, _)| row as f32))])?;
    /// recorder.finish()?;
    /// let rows = Recording::open(&dir)?.get("mlp", &[7, 0])?;
    /// assert_eq!(rows.view::<f32>().unwrap(), array![[7.0, 7.0], [0.0, 0.0]]);
    /// # std::fs::remove_dir_all(&dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RecordingError`] if a row is past the end, the component is unknown, or a file cannot be read.
    pub fn get(&self, component: impl ComponentKey, rows: &[u64]) -> Result<Batch, RecordingError> {
        let component = self.layout.find(component)?;
        let Component { dtype, features, .. } = self.components()[component];
        let mut wanted: Vec<(u64, usize)> = rows.iter().copied().zip(0..).collect();
        wanted.sort_unstable();
        let bytes = rows.len() * self.layout.row_bytes(component);
        let mut buffer = Buffers::default().take(bytes).doing("find memory to read", &self.dir)?;
        let (mut wanted, mut first) = (&wanted[..], 0);
        for (path, info) in self.shards.iter() {
            let end = first + info.rows;
            let here = wanted.partition_point(|&(row, _)| row < end);
            let (of_shard, rest) = wanted.split_at(here);
            if !of_shard.is_empty() {
                let of_shard = of_shard.iter().map(|&(row, place)| (row - first, place));
                let out = buffer.bytes_mut(0..bytes);
                shard::read_some(&*self.disk, path, info, component, of_shard, out)?;
            }
            (wanted, first) = (rest, end);
        }
        if let Some(&(row, _)) = wanted.first() {
            let index = isize::try_from(row).unwrap_or(isize::MAX);
            return Err(IndexError::OutOfRange { axis: "row", index, len: first as usize }.into());
        }
        Ok(lend(&Arc::new(ShardRows::of(buffer, bytes)), 0..rows.len(), dtype, features))
    }
}

/// Returns the error if it says that something is damaged or missing.
fn only_damage(error: RecordingError) -> Result<RecordingError, RecordingError> {
    if error.is_damage() { Ok(error) } else { Err(error) }
}
