//! Writes a shard while its rows come. So it does not keep the rows in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::checksum::Checksum;
use crate::disk::disk::{Disk, DiskFile, Doing};
use crate::disk::endian::to_file;
use crate::disk::error::DiskError;
use crate::disk::folder::UnfinishedFolder;
use crate::disk::safetensors::header;
use crate::disk::sealed::seal;
use crate::recording::shard::{ComponentFile, INFO, KEY, ShardInfo, VERSION, WRITTEN_BY, name};
use crate::rows::layout::Component;

/// How many bytes a component gathers before it writes them. Each write has this size.
const WRITE: usize = 1 << 20;

/// A shard whose rows are coming.
pub(crate) struct ShardWriter {
    folder: UnfinishedFolder,
    info: ShardInfo,
    files: Vec<ShardFile>,
}

/// A shard whose rows are all written, but may not be safe yet.
pub(crate) struct WrittenShard {
    folder: UnfinishedFolder,
    info: ShardInfo,
    files: Vec<(PathBuf, Box<dyn DiskFile>)>,
}

struct ShardFile {
    component: Component,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Bytes that have not been written yet.
    gathered: Vec<u8>,
    checksum: Checksum,
}

impl ShardFile {
    fn begin(disk: &dyn Disk, path: PathBuf, component: &Component) -> Result<Self, DiskError> {
        let mut file = disk.create(&path).doing("create", &path)?;
        // The number of rows is not known yet. Every header has the length of one page.
        let head = header(component.dtype.stored(), 0, component.features).len();
        file.write_all(&vec![0; head]).doing("write", &path)?;
        Ok(ShardFile { component: component.clone(), path, file, gathered: Vec::new(), checksum: Checksum::default() })
    }

    /// Writes whole elements.
    fn write(&mut self, elements: &[u8]) -> Result<(), DiskError> {
        let all = to_file(elements, self.component.dtype.size());
        let mut bytes = &*all;
        while !bytes.is_empty() {
            if self.gathered.is_empty() && bytes.len() >= WRITE {
                let (now, later) = bytes.split_at(WRITE);
                self.checksum.update(now);
                self.file.write_all(now).doing("write", &self.path)?;
                bytes = later;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(WRITE - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == WRITE {
                self.write_gathered()?;
            }
        }
        Ok(())
    }

    fn write_gathered(&mut self) -> Result<(), DiskError> {
        self.checksum.update(&self.gathered);
        self.file.write_all(&self.gathered).doing("write", &self.path)?;
        self.gathered.clear();
        Ok(())
    }
}

impl ShardWriter {
    /// Begins a shard. `info` has its lane, number, first row and first pass.
    pub(crate) fn begin(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        info: ShardInfo,
        components: &[Component],
    ) -> Result<Self, DiskError> {
        let folder = UnfinishedFolder::begin(disk.clone(), dir, &name(&info.lane, info.number))?;
        let file = |(number, component)| {
            ShardFile::begin(&**disk, folder.path().join(format!("{number}.safetensors")), component)
        };
        let files = components.iter().enumerate().map(file).collect::<Result<_, DiskError>>()?;
        Ok(ShardWriter { folder, info, files })
    }

    pub(crate) fn write(&mut self, component: usize, bytes: &[u8]) -> Result<(), DiskError> {
        self.files[component].write(bytes)
    }

    /// Counts a pass. The rows of all components have been written.
    pub(crate) fn end_pass(&mut self, rows: u64) {
        self.info.passes += 1;
        self.info.rows += rows;
    }

    pub(crate) fn info(&self) -> &ShardInfo {
        &self.info
    }

    /// Writes the bytes that are left, and the headers of the files.
    pub(crate) fn end(mut self) -> Result<WrittenShard, DiskError> {
        let mut files = Vec::with_capacity(self.files.len());
        for mut rows in self.files {
            rows.write_gathered()?;
            let Component { name, features, dtype } = &rows.component;
            let head = header(dtype.stored(), self.info.rows, *features);
            rows.file.replace_head(&head).doing("write", &rows.path)?;
            self.info.components.push(ComponentFile {
                name: name.to_string(),
                features: *features,
                dtype: dtype.to_string(),
                file: rows.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                checksum: rows.checksum.finish(),
            });
            files.push((rows.path, rows.file));
        }
        (self.info.version, self.info.written_by) = (VERSION, WRITTEN_BY.to_owned());
        Ok(WrittenShard { folder: self.folder, info: self.info, files })
    }
}

impl WrittenShard {
    /// Returns how many files the shard keeps open.
    pub(crate) fn open_files(&self) -> usize {
        self.files.len()
    }

    /// Makes the shard safe, and gives it its name. Returns its description.
    pub(crate) fn name(mut self) -> Result<ShardInfo, DiskError> {
        for (path, file) in &mut self.files {
            file.sync().doing("sync", path)?;
        }
        // Some systems cannot rename a folder that has open files.
        self.files.clear();
        self.folder.write(INFO, &seal(KEY, &self.info))?;
        self.folder.finish_new()?;
        Ok(self.info)
    }
}
