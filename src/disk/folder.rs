//! Writes a folder that gets its name only when it is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::disk::{Disk, Doing};
use crate::error::DiskError;

/// The prefix of the names of files and folders that are being written or removed. A process that dies may leave one behind.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// A folder that is being written under a temporary name. Dropping an `UnfinishedFolder` removes the folder.
#[derive(Debug)]
pub(crate) struct UnfinishedFolder {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    parent: PathBuf,
    name: String,
    finished: bool,
}

impl UnfinishedFolder {
    /// Begins the folder `name` in `parent`. Makes `parent` if it is missing.
    pub(crate) fn begin(disk: Arc<dyn Disk>, parent: &Path, name: &str) -> Result<Self, DiskError> {
        let path = parent.join(format!("{UNFINISHED}{name}-{}", std::process::id()));
        disk.create_dir_all(parent).doing("create", parent)?;
        if disk.list(parent).doing("list", parent)?.contains(&path) {
            // An earlier attempt has left this folder behind.
            disk.remove(&path).doing("remove", &path)?;
        }
        disk.create_dir_all(&path).doing("create", &path)?;
        Ok(UnfinishedFolder { disk, path, parent: parent.to_owned(), name: name.to_owned(), finished: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes and syncs a whole small file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.path.join(name);
        let written = self.disk.create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync()
        });
        written.doing("write", &path)
    }

    /// Gives the folder its name, and replaces an older folder of that name. All files in the folder must have been synced.
    pub(crate) fn finish(mut self) -> Result<PathBuf, DiskError> {
        let named = self.parent.join(&self.name);
        self.disk.sync_dir(&self.path).doing("sync", &self.path)?;
        // A folder cannot replace another in one step. So the old folder first gets a name that no reader takes for a whole folder.
        let old = self.parent.join(format!("{UNFINISHED}old-{}-{}", self.name, std::process::id()));
        let replaces = self.disk.list(&self.parent).doing("list", &self.parent)?.contains(&named);
        if replaces {
            self.disk.rename(&named, &old).doing("rename", &named)?;
        }
        self.give_name(&named)?;
        if replaces {
            let _ = self.disk.remove(&old);
        }
        Ok(named)
    }

    /// Gives the folder its name, which must be free. All files in the folder must have been synced.
    ///
    /// The renaming fails if a folder of that name has anything in it, even if another process has just made that folder.
    pub(crate) fn finish_new(mut self) -> Result<PathBuf, DiskError> {
        let named = self.parent.join(&self.name);
        self.disk.sync_dir(&self.path).doing("sync", &self.path)?;
        self.give_name(&named)?;
        Ok(named)
    }

    fn give_name(&mut self, named: &Path) -> Result<(), DiskError> {
        self.disk.rename(&self.path, named).doing("rename", &self.path)?;
        self.finished = true;
        self.disk.sync_dir(&self.parent).doing("sync", &self.parent)
    }
}

impl Drop for UnfinishedFolder {
    fn drop(&mut self) {
        if !self.finished {
            // If the removal fails, no reader takes the folder for a whole one.
            let _ = self.disk.remove(&self.path);
        }
    }
}
