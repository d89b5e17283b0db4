//! The file that says how much a finished lane holds. It shows whether a shard is missing at the end of the lane.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::checksum::checksum;
use crate::disk::disk::{Disk, Doing, read_all};
use crate::disk::folder::unfinished;
use crate::error::{DiskError, RecordingError};
use crate::recording::shard::{ShardInfo, VERSION, WRITTEN_BY, prefix};

const SUFFIX: &str = "end.json";

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

#[derive(Serialize, Deserialize)]
struct Sealed {
    end: LaneEnd,
    checksum: String,
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
    let body = serde_json::to_vec(&end).unwrap_or_default();
    let bytes = serde_json::to_vec(&Sealed { checksum: checksum(&body), end }).unwrap_or_default();
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

/// Lists the ends of all finished lanes. Call it before you list the shards, because a lane may end in between.
pub(crate) fn list(disk: &dyn Disk, dir: &Path, only: Option<&str>) -> Result<Vec<(PathBuf, LaneEnd)>, RecordingError> {
    let mut ends = Vec::new();
    for path in disk.list(dir).doing("list", dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((lane, SUFFIX)) = name.split_once('.') else { continue };
        if only.is_some_and(|only| only != lane) {
            continue;
        }
        let bytes = match read_all(disk, &path) {
            // The lane has gone on meanwhile.
            Err(error) if error.error.kind() == ErrorKind::NotFound => continue,
            read => read?,
        };
        let sealed: Sealed = serde_json::from_slice(&bytes).map_err(|error| unusable(&path, error.to_string()))?;
        let body = serde_json::to_vec(&sealed.end).unwrap_or_default();
        if checksum(&body) != sealed.checksum {
            return Err(unusable(&path, "its checksum does not match".to_owned()));
        }
        if (sealed.end.version, sealed.end.lane.as_str()) != (VERSION, lane) {
            let reason = format!("it says version {} and lane {:?}", sealed.end.version, sealed.end.lane);
            return Err(unusable(&path, reason));
        }
        ends.push((path, sealed.end));
    }
    Ok(ends)
}

fn unusable(path: &Path, reason: String) -> RecordingError {
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
            return Err(unusable(path, reason));
        }
    }
    Ok(())
}
