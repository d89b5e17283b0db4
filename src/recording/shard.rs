//! A shard: a folder that has one file for each component and says what is in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::checksum::{Checksum, checksum};
use crate::disk::disk::{Disk, Doing, read_all};
use crate::disk::folder::{UNFINISHED, UnfinishedFolder};
use crate::disk::safetensors::{header, read_header};
use crate::error::{DiskError, RecordingError};
use crate::rows::element::DType;
use crate::rows::layout::Component;

/// The file that says what a shard holds.
pub(crate) const INFO: &str = "shard.json";
/// The version of the format.
const VERSION: u32 = 1;
/// Bytes in one write.
const WRITE: usize = 4 << 20;

/// What a shard holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShardInfo {
    pub(crate) version: u32,
    pub(crate) lane: String,
    pub(crate) number: u64,
    /// The number of its first row and pass on the lane.
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
    pub(crate) first_pass: u64,
    pub(crate) passes: u64,
    pub(crate) components: Vec<ComponentFile>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// The file of one component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ComponentFile {
    pub(crate) name: String,
    pub(crate) features: usize,
    pub(crate) dtype: String,
    pub(crate) file: String,
    /// Of the whole file.
    pub(crate) checksum: String,
}

/// The file, as it is written: `checksum` covers `shard` as compact JSON.
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

/// What the names of a lane's shards begin with. Names of lanes have no dot.
pub(crate) fn prefix(lane: &str) -> String {
    format!("{lane}.")
}

/// Writes a shard, whole and synced, or nothing that is taken for one.
pub(crate) fn write(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    mut info: ShardInfo,
    components: &[Component],
    rows: &[Vec<u8>],
) -> Result<(), DiskError> {
    let folder = UnfinishedFolder::begin(disk.clone(), dir, &format!("{}{:06}", prefix(&info.lane), info.number))?;
    for (index, (component, bytes)) in components.iter().zip(rows).enumerate() {
        let file = format!("{index}.safetensors");
        let path = folder.path().join(&file);
        let mut sum = Checksum::default();
        let head = header(component.dtype, info.rows, component.features);
        let mut out = disk.create(&path).doing("create", &path)?;
        for piece in [&head[..]].into_iter().chain(bytes.chunks(WRITE)) {
            sum.update(piece);
            out.write_all(piece).doing("write", &path)?;
        }
        out.sync().doing("sync", &path)?;
        info.components.push(ComponentFile {
            name: component.name.to_string(),
            features: component.features,
            dtype: component.dtype.to_string(),
            file,
            checksum: sum.finish(),
        });
    }
    info.version = VERSION;
    folder.write(INFO, &seal(info))?;
    folder.finish_new()?;
    Ok(())
}

fn seal(shard: ShardInfo) -> Vec<u8> {
    // Strings and numbers: nothing that JSON has no form for.
    let body = serde_json::to_vec(&shard).unwrap_or_default();
    serde_json::to_vec(&Sealed { checksum: checksum(&body), shard }).unwrap_or_default()
}

/// Reads what a shard holds.
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

/// Reads and verifies the rows of one component, as bytes.
pub(crate) fn read_rows(
    disk: &dyn Disk,
    folder: &Path,
    info: &ShardInfo,
    component: usize,
) -> Result<Vec<u8>, RecordingError> {
    let file = &info.components[component];
    let path = folder.join(&file.file);
    let mut bytes = read_all(disk, &path)?;
    if checksum(&bytes) != file.checksum {
        return Err(damaged(&path, "its checksum does not match".to_owned()));
    }
    let Some(Component { dtype, features, .. }) = file.component() else {
        return Err(damaged(&path, format!("its dtype {:?} is unknown", file.dtype)));
    };
    let mut rest = &bytes[..];
    let shape = read_header(&mut rest, dtype).map_err(|error| damaged(&path, error.to_string()))?;
    let start = bytes.len() - rest.len();
    let expected = (info.rows as usize).checked_mul(features).and_then(|values| values.checked_mul(dtype.size()));
    if shape != [info.rows, features as u64] || expected != Some(bytes.len() - start) {
        return Err(damaged(&path, format!("it holds {shape:?}, not [{}, {features}]", info.rows)));
    }
    bytes.drain(..start);
    Ok(bytes)
}

/// The shards of a folder, by lane and number.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<(PathBuf, ShardInfo)>, RecordingError> {
    let mut shards = Vec::new();
    for path in disk.list(dir).doing("list", dir)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let numbered = name.rsplit_once('.').is_some_and(|(_, n)| n.len() >= 6 && n.parse::<u64>().is_ok());
        if numbered && !name.starts_with(UNFINISHED) {
            let info = read_info(disk, &path)?;
            shards.push((path, info));
        }
    }
    shards.sort_by(|(_, a), (_, b)| (&a.lane, a.number).cmp(&(&b.lane, b.number)));
    Ok(shards)
}

pub(crate) fn damaged(path: &Path, reason: String) -> RecordingError {
    RecordingError::Damaged { path: path.to_owned(), reason }
}
