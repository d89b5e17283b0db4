//! The file that says how much a finished lane holds. It shows whether a shard is missing at the end of the lane.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::disk::{Disk, Doing, damage, read_all};
use crate::disk::error::DiskError;
use crate::disk::folder::unfinished;
use crate::disk::sealed;
use crate::recording::error::RecordingError;
use crate::recording::shard::{ShardInfo, VERSION, WRITTEN_BY, prefix, unusable};

const SUFFIX: &str = "end.json";

/// The name of the value in the file.
const KEY: &str = "end";

/// Says how much a finished lane holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LaneEnd {
    version: u32,
    pub(crate) lane: String,
    pub(crate) shards: u64,
    rows: u64,
    passes: u64,
    written_by: String,
}

impl LaneEnd {
    pub(crate) fn new(lane: &str, shards: u64, rows: u64, passes: u64) -> Self {
        LaneEnd { version: VERSION, lane: lane.to_owned(), shards, rows, passes, written_by: WRITTEN_BY.to_owned() }
    }
}

fn path(dir: &Path, lane: &str) -> PathBuf {
    dir.join(format!("{}{SUFFIX}", prefix(lane)))
}

/// Writes the end of a lane as a whole, and syncs it.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, end: LaneEnd) -> Result<(), DiskError> {
    let path = path(dir, &end.lane);
    let temporary = dir.join(unfinished(&format!("{}{SUFFIX}", prefix(&end.lane))));
    let bytes = sealed::seal(KEY, &end);
    let written = disk.create(&temporary).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync()
    });
    let named = written.doing("write", &temporary).and_then(|()| disk.rename(&temporary, &path).doing("write", &path));
    if named.is_err() {
        // If the file stays, its name keeps it from being read as the end.
        let _ = disk.remove(&temporary);
    }
    named?;
    disk.sync_dir(dir).doing("sync", dir)
}

/// Removes the end of a lane, because the lane goes on.
pub(crate) fn remove(disk: &dyn Disk, dir: &Path, lane: &str) -> Result<(), DiskError> {
    let path = path(dir, lane);
    disk.remove(&path).doing("remove", &path)?;
    disk.sync_dir(dir).doing("sync", dir)
}

/// Lists the ends of all finished lanes, or of one. Call it before you list the shards, because a lane may end in between.
pub(crate) fn list(disk: &dyn Disk, dir: &Path, only: Option<&str>) -> Result<Vec<(PathBuf, LaneEnd)>, RecordingError> {
    let files = files(disk, dir)?.into_iter().filter(|path| only.is_none_or(|only| lane_of(path) == Some(only)));
    let ends = files.map(|path| Ok(read(disk, &path)?.map(|end| (path, end))));
    ends.filter_map(Result::transpose).collect()
}

/// Lists the files with the ends of lanes.
pub(crate) fn files(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, DiskError> {
    Ok(disk.list(dir).doing("list", dir)?.into_iter().filter(|path| lane_of(path).is_some()).collect())
}

/// Returns the lane whose end a file has. `None` if the name is not the name of an end.
fn lane_of(path: &Path) -> Option<&str> {
    match path.file_name()?.to_str()?.split_once('.')? {
        (lane, SUFFIX) => Some(lane),
        _ => None,
    }
}

/// Reads the end of a lane. `None` if the file has gone meanwhile, because the lane goes on.
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Option<LaneEnd>, RecordingError> {
    let bytes = match read_all(disk, path) {
        Err(error) if error.error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damage(&error.error).map_or_else(|| error.into(), |reason| damaged_end(path, reason))),
        Ok(bytes) => bytes,
    };
    let end: LaneEnd = sealed::open(KEY, VERSION, &bytes).map_err(|error| unusable(path, error, damaged_end))?;
    if Some(&*end.lane) != lane_of(path) {
        return Err(damaged_end(path, format!("it is the end of lane {:?}", end.lane)));
    }
    Ok(Some(end))
}

fn damaged_end(path: &Path, reason: String) -> RecordingError {
    RecordingError::DamagedEnd { path: path.to_owned(), reason }
}

/// Checks that finished lanes have all their shards. `shards` must be sorted. A lane may have more shards, if it went on in between.
pub(crate) fn check(
    dir: &Path,
    ends: &[(PathBuf, LaneEnd)],
    shards: &[(PathBuf, ShardInfo)],
) -> Result<(), RecordingError> {
    for (path, end) in ends {
        let mut rest = shards.iter().map(|(_, info)| info).filter(|info| info.lane == end.lane);
        let mut last = (0, 0);
        for number in 0..end.shards {
            match rest.next() {
                Some(info) if info.number == number => {
                    last = (info.first_row + info.rows, info.first_pass + info.passes);
                }
                _ => {
                    return Err(RecordingError::Missing { dir: dir.to_owned(), lane: end.lane.clone(), number });
                }
            }
        }
        if last != (end.rows, end.passes) {
            let (rows, passes) = last;
            let reason = format!(
                "it says {} rows of {} passes, and the shards hold {rows} rows of {passes} passes",
                end.rows, end.passes
            );
            return Err(damaged_end(path, reason));
        }
    }
    Ok(())
}
