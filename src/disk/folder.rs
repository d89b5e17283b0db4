//! Writes a folder that gets its name only when it is whole.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::disk::disk::{Disk, Doing};
use crate::disk::error::DiskError;

/// The prefix of the names of files and folders that are being written or removed. A process that dies may leave one behind.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// What the name of a whole folder ends with while another takes its place.
pub(crate) const REPLACED: &str = ".replaced";

/// The mark of this process in the names of what it has not finished. A process id would not do: in a container it may be 1 each time.
static MARK: LazyLock<String> = LazyLock::new(random_name);

/// Makes a name that no other process makes.
pub(crate) fn random_name() -> String {
    format!("{:016x}", RandomState::new().hash_one(process::id()))
}

/// Makes a temporary name for a file or folder that will be called `name`. No other file or folder has it.
pub(crate) fn unfinished(name: &str) -> String {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    format!("{UNFINISHED}{name}-{}-{}", *MARK, ATTEMPTS.fetch_add(1, Ordering::Relaxed))
}

/// Tells whether a temporary name was made by another process.
pub(crate) fn is_of_another_process(unfinished: &str) -> bool {
    !unfinished.contains(&*MARK)
}

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
    /// Begins the folder `name` in `parent`, which must exist.
    pub(crate) fn begin(disk: Arc<dyn Disk>, parent: &Path, name: &str) -> Result<Self, DiskError> {
        let path = parent.join(unfinished(name));
        disk.create_dir(&path).doing("create", &path)?;
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
        // Another thread may be about to give a folder the same name.
        static REPLACING: Mutex<()> = Mutex::new(());
        let _replacing = REPLACING.lock().unwrap_or_else(PoisonError::into_inner);
        // A folder cannot replace another in one step. So the old folder first gets a name under which readers still find it.
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
