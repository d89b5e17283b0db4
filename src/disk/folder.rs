//! A folder that is whole or does not have its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::disk::{Disk, Doing};
use crate::error::DiskError;

/// What the names of folders that are being written begin with. One that is found was left by a process that died.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// A folder that is being written under a temporary name. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct UnfinishedFolder {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    parent: PathBuf,
    name: String,
    finished: bool,
}

impl UnfinishedFolder {
    /// Begins the folder `name` in `parent`, which is made if it is missing.
    pub(crate) fn begin(disk: Arc<dyn Disk>, parent: &Path, name: &str) -> Result<Self, DiskError> {
        let path = parent.join(format!("{UNFINISHED}{name}-{}", std::process::id()));
        disk.create_dir_all(parent).doing("create", parent)?;
        if disk.list(parent).doing("list", parent)?.contains(&path) {
            // Of an earlier attempt that could not even clean up.
            disk.remove(&path).doing("remove", &path)?;
        }
        disk.create_dir_all(&path).doing("create", &path)?;
        Ok(UnfinishedFolder { disk, path, parent: parent.to_owned(), name: name.to_owned(), finished: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a small file as a whole, and syncs it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.path.join(name);
        let written = self.disk.create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync()
        });
        written.doing("write", &path)
    }

    /// Gives the folder its name, in place of an older one of that name. All its files must have been synced.
    pub(crate) fn finish(mut self) -> Result<PathBuf, DiskError> {
        let named = self.parent.join(&self.name);
        self.disk.sync_dir(&self.path).doing("sync", &self.path)?;
        // Folders cannot replace each other in one step. The old one gets a name by which it is not taken for whole.
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

    /// Gives the folder its name, which must be free. All its files must have been synced.
    ///
    /// A folder of that name that holds anything makes the renaming fail, even if another process has just made it.
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
            // What stays is not taken for whole.
            let _ = self.disk.remove(&self.path);
        }
    }
}
