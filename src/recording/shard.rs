//! A shard: a folder with one file for each component, and one file that describes them.

use std::collections::BTreeMap;
use std::io::{self, Read, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::checksum::Checksum;
use crate::disk::disk::{Disk, Doing, Readable, damage, read_all};
use crate::disk::endian::from_file;
use crate::disk::error::DiskError;
use crate::disk::safetensors::read_header;
use crate::disk::sealed::{self, Unusable, WrittenBy};
use crate::recording::buffers::{Buffer, Buffers};
use crate::recording::error::RecordingError;
use crate::rows::element::DType;
use crate::rows::layout::Component;

/// The file that describes a shard.
pub(crate) const INFO: &str = "shard.json";
/// The version of the format.
pub(crate) const VERSION: u32 = 1;
/// The most rows or passes of a lane.
const MOST: u64 = 1 << 48;
/// How many bytes are read at once: a multiple of the size of every element.
const BYTES_AT_ONCE: usize = 1 << 20;
/// The program that writes shards.
pub(crate) const WRITTEN_BY: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// Describes a shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShardInfo {
    pub(crate) version: u32,
    pub(crate) lane: String,
    pub(crate) number: u64,
    /// The number of its first row on the lane. `first_pass` is the number of its first pass.
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
    pub(crate) first_pass: u64,
    pub(crate) passes: u64,
    pub(crate) components: Vec<ComponentFile>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) written_by: String,
}

/// The file of one component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ComponentFile {
    pub(crate) name: String,
    pub(crate) features: usize,
    pub(crate) dtype: String,
    pub(crate) file: String,
    /// The checksum of the rows: of the file without its header.
    pub(crate) checksum: String,
}

/// The error for a file whose sealed JSON cannot be used. `damaged` makes the error for a file that is damaged.
pub(crate) fn unusable(
    path: &Path,
    unusable: Unusable,
    damaged: impl FnOnce(&Path, String) -> RecordingError,
) -> RecordingError {
    match unusable {
        Unusable::Damaged(reason) => damaged(path, reason),
        Unusable::Newer(WrittenBy { version, written_by }) => {
            RecordingError::Newer { path: path.to_owned(), found: version, known: VERSION, written_by }
        }
    }
}

impl ComponentFile {
    pub(crate) fn component(&self) -> Option<Component> {
        let dtype: DType = self.dtype.parse().ok()?;
        Some(Component { name: Arc::from(self.name.as_str()), features: self.features, dtype })
    }
}

/// Returns the start of the names of a lane's shards. The name of a lane has no dot.
pub(crate) fn prefix(lane: &str) -> String {
    format!("{lane}.")
}

/// Returns the name of a shard's folder.
pub(crate) fn name(lane: &str, number: u64) -> String {
    format!("{}{number:06}", prefix(lane))
}

/// The name of the value in the file that describes a shard.
pub(crate) const KEY: &str = "shard";

/// Reads the description of a shard.
pub(crate) fn read_info(disk: &dyn Disk, folder: &Path) -> Result<ShardInfo, RecordingError> {
    let path = folder.join(INFO);
    let bytes = read_all(disk, &path).map_err(unreadable)?;
    let info = sealed::open(KEY, VERSION, &bytes).map_err(|error| unusable(&path, error, damaged))?;
    check_info(folder, &info).map_err(|reason| damaged(&path, reason))?;
    Ok(info)
}

/// Checks what a person may have changed: the folder's name, counts that could not be added up, and a file in another folder.
fn check_info(folder: &Path, info: &ShardInfo) -> Result<(), String> {
    let own = name(&info.lane, info.number);
    if folder.file_name().is_none_or(|found| found != &*own) {
        return Err(format!(
            "it describes {own}; give the folder that name again, or move the folder away if it is a copy"
        ));
    }
    let counts =
        [("first_row", info.first_row), ("rows", info.rows), ("first_pass", info.first_pass), ("passes", info.passes)];
    if let Some((what, count)) = counts.into_iter().find(|&(_, count)| count > MOST) {
        return Err(format!("its {what} is {count}, and the most that is possible is {MOST}"));
    }
    let elsewhere = |of: &&ComponentFile| Path::new(&of.file).file_name().is_none_or(|name| name != &*of.file);
    match info.components.iter().find(elsewhere) {
        Some(of) => Err(format!("its file {:?} is not in the shard's own folder", of.file)),
        None => Ok(()),
    }
}

/// The rows of one component of a shard, in memory.
pub(crate) struct ShardRows {
    /// The whole file.
    file: Buffer,
    /// Where the rows are in the file, in bytes.
    rows: Range<usize>,
}

impl ShardRows {
    /// Takes the first `bytes` bytes of a buffer as rows.
    pub(crate) fn of(buffer: Buffer, bytes: usize) -> Self {
        ShardRows { file: buffer, rows: 0..bytes }
    }

    /// Returns the bytes of all rows, one row after the other.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.file.bytes(self.rows.clone())
    }
}

/// The file of one component, ready to read its first row.
struct OpenFile {
    path: PathBuf,
    file: Box<dyn Readable>,
    /// The header, which comes before the rows.
    head: Vec<u8>,
    dtype: DType,
    /// How many bytes all rows have.
    length: usize,
}

/// Opens the file of one component, and reads its header.
fn open_rows(disk: &dyn Disk, folder: &Path, info: &ShardInfo, component: usize) -> Result<OpenFile, RecordingError> {
    let of = &info.components[component];
    let path = folder.join(&of.file);
    let unreadable = |error: io::Error| unreadable(DiskError::reading(&path, error));
    let mut file = disk.open(&path).map_err(unreadable)?;
    let Some(Component { dtype, features, .. }) = of.component() else {
        return Err(damaged(&path, format!("its dtype {:?} is unknown", of.dtype)));
    };
    let mut head = Vec::new();
    let shape = read_header(&mut Keeps { file: &mut file, read: &mut head }, dtype.stored()).map_err(unreadable)?;
    let length = (info.rows as usize).checked_mul(features).and_then(|values| values.checked_mul(dtype.size()));
    match length {
        Some(length) if shape == [info.rows, features as u64] => Ok(OpenFile { path, file, head, dtype, length }),
        _ => Err(damaged(&path, format!("it holds {shape:?}, not [{}, {features}]", info.rows))),
    }
}

/// Reads a file, and keeps a copy of what it read.
struct Keeps<'a> {
    file: &'a mut dyn Readable,
    read: &'a mut Vec<u8>,
}

impl Read for Keeps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.read.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

/// Checks that the file of one component has the length that its header says. Reads no rows.
pub(crate) fn check_length(
    disk: &dyn Disk,
    folder: &Path,
    info: &ShardInfo,
    component: usize,
) -> Result<(), RecordingError> {
    let OpenFile { path, mut file, head, length, .. } = open_rows(disk, folder, info, component)?;
    let (found, expected) = (file.seek(SeekFrom::End(0)).doing("read", &path)?, (head.len() + length) as u64);
    if found == expected {
        return Ok(());
    }
    Err(damaged(&path, format!("it has {found} bytes, and its rows need {expected}")))
}

/// Reads and verifies the rows of one component.
pub(crate) fn read_rows(
    disk: &dyn Disk,
    folder: &Path,
    info: &ShardInfo,
    component: usize,
    buffers: &Buffers,
) -> Result<ShardRows, RecordingError> {
    let OpenFile { path, mut file, head, dtype, length } = open_rows(disk, folder, info, component)?;
    let (start, end) = (head.len(), head.len() + length);
    let mut buffer = buffers.take(end).doing("find memory to read", &path)?;
    buffer.bytes_mut(0..start).copy_from_slice(&head);
    let mut sum = Checksum::default();
    // Each piece goes into the checksum while it is in the cache.
    for piece in buffer.bytes_mut(start..end).chunks_mut(BYTES_AT_ONCE) {
        file.read_exact(piece).map_err(|error| unreadable(DiskError::reading(&path, error)))?;
        sum.update(piece);
        from_file(piece, dtype.size());
    }
    if sum.finish() != info.components[component].checksum || file.read(&mut [0]).doing("read", &path)? > 0 {
        return Err(damaged(&path, "its checksum does not match".to_owned()));
    }
    Ok(ShardRows { file: buffer, rows: start..end })
}

/// Reads every file of a shard and compares its checksum.
pub(crate) fn verify(
    disk: &dyn Disk,
    folder: &Path,
    info: &ShardInfo,
    buffers: &Buffers,
) -> Result<(), RecordingError> {
    (0..info.components.len()).try_for_each(|component| read_rows(disk, folder, info, component, buffers).map(drop))
}

/// Reads some rows of one component into `out`. `rows` has the number of each row in the shard, and its place in `out`. Verifies
/// only the header.
pub(crate) fn read_some(
    disk: &dyn Disk,
    folder: &Path,
    info: &ShardInfo,
    component: usize,
    rows: impl Iterator<Item = (u64, usize)>,
    out: &mut [u8],
) -> Result<(), RecordingError> {
    let OpenFile { path, mut file, head, dtype, length } = open_rows(disk, folder, info, component)?;
    let row_bytes = length / (info.rows as usize).max(1);
    let mut at = None;
    for (row, place) in rows {
        if at != Some(row) {
            file.seek(SeekFrom::Start(head.len() as u64 + row * row_bytes as u64)).doing("read", &path)?;
        }
        let out = &mut out[place * row_bytes..][..row_bytes];
        file.read_exact(out).map_err(|error| unreadable(DiskError::reading(&path, error)))?;
        from_file(out, dtype.size());
        at = Some(row + 1);
    }
    Ok(())
}

/// Lists the shards of a folder in the order of lane and number.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<(PathBuf, ShardInfo)>, RecordingError> {
    read_infos(disk, folders(disk, dir)?)
}

/// Lists the shards of one lane in the order of their numbers. Reads nothing of other lanes.
pub(crate) fn list_lane(disk: &dyn Disk, dir: &Path, lane: &str) -> Result<Vec<(PathBuf, ShardInfo)>, RecordingError> {
    let folders = folders(disk, dir)?;
    read_infos(disk, folders.into_iter().filter(|folder| lane_of(folder).as_deref() == Some(lane)).collect())
}

fn read_infos(disk: &dyn Disk, folders: Vec<PathBuf>) -> Result<Vec<(PathBuf, ShardInfo)>, RecordingError> {
    let found = folders.into_iter().map(|path| Ok((read_info(disk, &path)?, path)));
    let mut shards: Vec<(ShardInfo, PathBuf)> = found.collect::<Result<_, RecordingError>>()?;
    shards.sort_by(|(a, _), (b, _)| (&a.lane, a.number).cmp(&(&b.lane, b.number)));
    Ok(shards.into_iter().map(|(info, path)| (path, info)).collect())
}

/// Lists the folders of shards, in any order.
pub(crate) fn folders(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, DiskError> {
    Ok(disk.list(dir).doing("list", dir)?.into_iter().filter(|path| lane_of(path).is_some()).collect())
}

/// Returns the lane of a shard's folder. `None` if the name is not the name of a shard.
pub(crate) fn lane_of(folder: &Path) -> Option<String> {
    let (lane, number) = folder.file_name()?.to_str()?.rsplit_once('.')?;
    (is_lane(lane) && number.len() >= 6 && number.parse::<u64>().is_ok()).then(|| lane.to_owned())
}

/// The most bytes of a lane's name. A file name has at most 255 bytes, and an unfinished shard's name has more parts than the lane's name.
pub(crate) const LONGEST_LANE: usize = 128;

/// Whether a lane may have this name.
pub(crate) fn is_lane(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_LANE
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// The rows and passes of a lane up to some shard.
pub(crate) type UpTo = (u64, u64);

/// Checks that the shards of one lane follow one another, from the first on. Returns what they hold.
pub(crate) fn check_lane(dir: &Path, shards: &[(PathBuf, ShardInfo)]) -> Result<UpTo, RecordingError> {
    (0..).zip(shards).try_fold((0, 0), |before, (number, shard)| check_follows(dir, shard, number, before))
}

/// Checks that a shard follows the `number` shards before it on its lane, which hold `before`. Returns what they hold with it.
fn check_follows(
    dir: &Path,
    (path, info): &(PathBuf, ShardInfo),
    number: u64,
    before: UpTo,
) -> Result<UpTo, RecordingError> {
    if info.number != number {
        return Err(RecordingError::Missing { dir: dir.to_owned(), lane: info.lane.clone(), number });
    }
    if (info.first_row, info.first_pass) != before {
        let (rows, passes) = before;
        let (row, pass) = (info.first_row, info.first_pass);
        let reason = format!(
            "it begins at row {row} of pass {pass}, and the shards before it hold {rows} rows of {passes} passes"
        );
        return Err(damaged(&path.join(INFO), reason));
    }
    Ok((info.first_row + info.rows, info.first_pass + info.passes))
}

pub(crate) fn check_components(path: &Path, info: &ShardInfo, expected: &[Component]) -> Result<(), RecordingError> {
    let found: Option<Vec<Component>> = info.components.iter().map(ComponentFile::component).collect();
    if found.as_deref() == Some(expected) {
        return Ok(());
    }
    let named = |c: &Component| format!("{:?} ({} {})", c.name, c.features, c.dtype);
    let expected = expected.iter().map(named).collect::<Vec<_>>().join(", ");
    Err(RecordingError::Components { path: path.to_owned(), expected })
}

/// Tells a damaged file from a system that failed.
pub(crate) fn unreadable(error: DiskError) -> RecordingError {
    match damage(&error.error) {
        Some(reason) => damaged(&error.path, reason),
        None => error.into(),
    }
}

pub(crate) fn damaged(path: &Path, reason: String) -> RecordingError {
    RecordingError::Damaged { path: path.to_owned(), reason }
}
