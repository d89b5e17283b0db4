//! A shard: a folder with one file for each component, and one file that describes them.

use std::collections::BTreeMap;
use std::io::{self, Read, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::checksum::{Checksum, checksum};
use crate::disk::disk::{Disk, Doing, Readable, read_all};
use crate::disk::folder::UNFINISHED;
use crate::disk::safetensors::read_header;
use crate::error::{DiskError, RecordingError};
use crate::recording::buffers::{Buffer, Buffers};
use crate::rows::element::DType;
use crate::rows::layout::Component;

/// The file that describes a shard.
pub(crate) const INFO: &str = "shard.json";
/// The version of the format.
pub(crate) const VERSION: u32 = 1;
/// How many bytes are read at once.
const PIECE: usize = 1 << 20;
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

#[derive(Serialize, Deserialize)]
struct Sealed {
    shard: ShardInfo,
    checksum: String,
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

/// Returns the contents of the file that describes a shard. `checksum` covers `shard` as compact JSON.
pub(crate) fn seal(shard: ShardInfo) -> Vec<u8> {
    // This cannot fail: there are only strings and numbers.
    let body = serde_json::to_vec(&shard).unwrap_or_default();
    serde_json::to_vec(&Sealed { checksum: checksum(&body), shard }).unwrap_or_default()
}

/// Reads the description of a shard.
pub(crate) fn read_info(disk: &dyn Disk, folder: &Path) -> Result<ShardInfo, RecordingError> {
    let path = folder.join(INFO);
    let sealed: Sealed =
        serde_json::from_slice(&read_all(disk, &path)?).map_err(|error| damaged(&path, error.to_string()))?;
    let body = serde_json::to_vec(&sealed.shard).unwrap_or_default();
    if checksum(&body) != sealed.checksum {
        return Err(damaged(&path, "its checksum does not match".to_owned()));
    }
    if sealed.shard.version != VERSION {
        return Err(damaged(&path, format!("its format is version {}, not {VERSION}", sealed.shard.version)));
    }
    Ok(sealed.shard)
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
    /// How many bytes all rows have.
    length: usize,
}

/// Opens the file of one component, and reads its header.
fn open_rows(disk: &dyn Disk, folder: &Path, info: &ShardInfo, component: usize) -> Result<OpenFile, RecordingError> {
    let of = &info.components[component];
    let path = folder.join(&of.file);
    let mut file = disk.open(&path).doing("read", &path)?;
    let Some(Component { dtype, features, .. }) = of.component() else {
        return Err(damaged(&path, format!("its dtype {:?} is unknown", of.dtype)));
    };
    let invalid = |error: io::Error| damaged(&path, error.to_string());
    let mut head = Vec::new();
    let shape = read_header(&mut Keeps { file: &mut file, read: &mut head }, dtype).map_err(invalid)?;
    let length = (info.rows as usize).checked_mul(features).and_then(|values| values.checked_mul(dtype.size()));
    match length {
        Some(length) if shape == [info.rows, features as u64] => Ok(OpenFile { path, file, head, length }),
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
    let OpenFile { path, mut file, head, length } = open_rows(disk, folder, info, component)?;
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
    let OpenFile { path, mut file, head, length } = open_rows(disk, folder, info, component)?;
    let (start, end) = (head.len(), head.len() + length);
    let mut buffer = buffers.take(end).doing("find memory to read", &path)?;
    buffer.bytes_mut(0..start).copy_from_slice(&head);
    let mut sum = Checksum::default();
    // Each piece goes into the checksum while it is in the cache.
    for piece in buffer.bytes_mut(start..end).chunks_mut(PIECE) {
        file.read_exact(piece).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(&path, "it ends too early".to_owned()),
            _ => DiskError { operation: "read", path: path.clone(), error: Arc::new(error) }.into(),
        })?;
        sum.update(piece);
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
    let OpenFile { path, mut file, head, length } = open_rows(disk, folder, info, component)?;
    let row_bytes = length / (info.rows as usize).max(1);
    let mut at = None;
    for (row, place) in rows {
        if at != Some(row) {
            file.seek(SeekFrom::Start(head.len() as u64 + row * row_bytes as u64)).doing("read", &path)?;
        }
        file.read_exact(&mut out[place * row_bytes..][..row_bytes]).doing("read", &path)?;
        at = Some(row + 1);
    }
    Ok(())
}

/// Lists the shards of a folder in the order of lane and number.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<(PathBuf, ShardInfo)>, RecordingError> {
    let found = folders(disk, dir)?.into_iter().map(|path| Ok((read_info(disk, &path)?, path)));
    let mut shards: Vec<(ShardInfo, PathBuf)> = found.collect::<Result<_, RecordingError>>()?;
    shards.sort_by(|(a, _), (b, _)| (&a.lane, a.number).cmp(&(&b.lane, b.number)));
    Ok(shards.into_iter().map(|(info, path)| (path, info)).collect())
}

/// Lists the folders of shards, in any order.
pub(crate) fn folders(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let is_shard = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let numbered = name.rsplit_once('.').is_some_and(|(_, n)| n.len() >= 6 && n.parse::<u64>().is_ok());
        numbered && !name.starts_with(UNFINISHED)
    };
    Ok(disk.list(dir).doing("list", dir)?.into_iter().filter(is_shard).collect())
}

/// Checks that a shard has this number. The shards of a lane have the numbers 0, 1, 2, ...
pub(crate) fn check_number(dir: &Path, info: &ShardInfo, number: u64) -> Result<(), RecordingError> {
    if info.number == number {
        return Ok(());
    }
    Err(RecordingError::Missing { dir: dir.to_owned(), lane: info.lane.clone(), number })
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

pub(crate) fn damaged(path: &Path, reason: String) -> RecordingError {
    RecordingError::Damaged { path: path.to_owned(), reason }
}
