//! A folder that is whole or does not have its name.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::disk::disk::{Disk, Doing};
use crate::error::DiskError;

/// What the names of folders that are being written begin with. One that is found was left by a process that died.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// What the name of a whole folder ends with while another takes its place.
pub(crate) const REPLACED: &str = ".replaced";

/// Marks what this process has not finished. A process id would not do: in a container it may be 1 each time.
static MARK: LazyLock<String> = LazyLock::new(|| format!("{:016x}", RandomState::new().hash_one(process::id())));

/// A name of its own for something that is not finished and shall be called `name`.
pub(crate) fn unfinished(name: &str) -> String {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    format!("{UNFINISHED}{name}-{}-{}", *MARK, ATTEMPTS.fetch_add(1, Ordering::Relaxed))
}

/// Whether another process has begun what has this name.
pub(crate) fn is_of_another_process(unfinished: &str) -> bool {
    !unfinished.contains(&*MARK)
}

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
        let path = parent.join(unfinished(name));
        disk.create_dir_all(parent).doing("create", parent)?;
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
        // Another thread may be about to give the same name.
        static REPLACING: Mutex<()> = Mutex::new(());
        let _replacing = REPLACING.lock().unwrap_or_else(PoisonError::into_inner);
        // Folders cannot replace each other in one step. Until the new one has the name, the old one can be read under another.
        let old = self.parent.join(format!("{}{REPLACED}", self.name));
        let there = self.disk.list(&self.parent).doing("list", &self.parent)?;
        if there.contains(&named) {
            if there.contains(&old) {
                self.disk.remove(&old).doing("remove", &old)?;
            }
            self.disk.rename(&named, &old).doing("rename", &named)?;
        }
        self.give_name(&named)?;
        if there.contains(&named) || there.contains(&old) {
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
