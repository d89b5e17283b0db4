//! A disk in memory that fails where a test says, and forgets the bytes that were not synced.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::disk::disk::{Disk, DiskFile, Readable};

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The operation returns this error. Later operations succeed.
    Error(io::ErrorKind),
    /// If the operation opens a file, each read of this file returns this error.
    Read(io::ErrorKind),
    /// The operation panics. Later operations succeed.
    Panic,
    /// The process dies in the middle of the operation. A write writes half of its bytes. All later operations fail without effect.
    Kill,
}

/// A disk in memory. It counts operations, and can make one of them fail.
#[derive(Debug, Default)]
pub(crate) struct Faulty {
    state: Mutex<Inner>,
    meanwhile: Mutex<Option<(usize, Act)>>,
}

/// What another process does.
struct Act(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Act")
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// `None` for a folder.
    entries: BTreeMap<PathBuf, Option<Arc<Mutex<Content>>>>,
    operations: usize,
    fault: Option<(usize, Fault)>,
    dead: bool,
}

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// How many of the bytes are synced.
    synced: usize,
}

impl Faulty {
    /// Makes the `n`-th operation from now fail, counted from 0.
    pub(crate) fn fail_at(&self, n: usize, fault: Fault) {
        let mut inner = self.inner();
        inner.fault = Some((inner.operations + n, fault));
    }

    /// Runs `act` before the `n`-th operation from now, counted from 0, as another process would.
    pub(crate) fn meanwhile(&self, n: usize, act: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap_or_else(|poison| poison.into_inner()) =
            Some((self.operations() + n, Act(Box::new(act))));
    }

    /// The number of operations so far.
    pub(crate) fn operations(&self) -> usize {
        self.inner().operations
    }

    /// Acts as a machine that lost its power and started again: bytes that were not synced are lost, and operations work again.
    pub(crate) fn restart(&self) {
        let mut inner = self.inner();
        (inner.fault, inner.dead) = (None, false);
        for content in inner.entries.values().flatten() {
            let mut content = content.lock().unwrap_or_else(|poison| poison.into_inner());
            let synced = content.synced;
            content.bytes.truncate(synced);
        }
    }

    /// Flips a bit of a file.
    pub(crate) fn flip(&self, path: &Path, byte: usize) {
        if let Some(Some(content)) = self.inner().entries.get(path) {
            content.lock().unwrap_or_else(|poison| poison.into_inner()).bytes[byte] ^= 4;
        }
    }

    /// The files, and the length of each in bytes.
    pub(crate) fn files(&self) -> Vec<(PathBuf, usize)> {
        let inner = self.inner();
        let files = inner.entries.iter().filter_map(|(path, content)| Some((path.clone(), content.as_ref()?)));
        files
            .map(|(path, content)| (path, content.lock().unwrap_or_else(|poison| poison.into_inner()).bytes.len()))
            .collect()
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Counts an operation. `Ok(false)` if the process dies in the middle of it.
    fn count(&self) -> io::Result<bool> {
        let operations = self.operations();
        let act =
            self.meanwhile.lock().unwrap_or_else(|poison| poison.into_inner()).take_if(|(at, _)| operations >= *at);
        if let Some((_, Act(act))) = act {
            act();
        }
        let mut inner = self.inner();
        let dead = || io::Error::other("killed");
        if inner.dead {
            return Err(dead());
        }
        inner.operations += 1;
        match inner.fault {
            Some((at, fault)) if inner.operations > at => {
                inner.fault = None;
                match fault {
                    Fault::Error(kind) => Err(kind.into()),
                    Fault::Read(_) => Ok(true),
                    Fault::Panic => panic!("the disk panicked"),
                    Fault::Kill => {
                        inner.dead = true;
                        Ok(false)
                    }
                }
            }
            _ => Ok(true),
        }
    }

    /// Counts an operation that happens as a whole or not at all.
    fn whole(&self) -> io::Result<()> {
        if self.count()? { Ok(()) } else { Err(io::Error::other("killed")) }
    }
}

struct FaultyFile {
    disk: Arc<Faulty>,
    content: Arc<Mutex<Content>>,
}

impl DiskFile for FaultyFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = self.disk.count()?;
        let mut content = self.content.lock().unwrap_or_else(|poison| poison.into_inner());
        // A write that the fault cuts short has written half of its bytes.
        content.bytes.extend(&bytes[..if whole { bytes.len() } else { bytes.len() / 2 }]);
        if whole { Ok(()) } else { Err(io::Error::other("killed")) }
    }

    fn replace_head(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = self.disk.count()?;
        let mut content = self.content.lock().unwrap_or_else(|poison| poison.into_inner());
        let replaced = if whole { bytes.len() } else { bytes.len() / 2 };
        content.bytes[..replaced].copy_from_slice(&bytes[..replaced]);
        content.synced = 0;
        if whole { Ok(()) } else { Err(io::Error::other("killed")) }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.whole()?;
        let mut content = self.content.lock().unwrap_or_else(|poison| poison.into_inner());
        content.synced = content.bytes.len();
        Ok(())
    }
}

/// A file that cannot be read.
struct Unreadable(io::ErrorKind);

impl io::Read for Unreadable {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(self.0.into())
    }
}

impl io::Seek for Unreadable {
    fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
        Ok(0)
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// A shared [`Faulty`], because its files count operations, too.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultyDisk(pub(crate) Arc<Faulty>);

impl Disk for FaultyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.whole()?;
        let mut inner = self.0.inner();
        for folder in path.ancestors() {
            inner.entries.entry(folder.to_owned()).or_insert(None);
        }
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.whole()?;
        let mut inner = self.0.inner();
        if path.parent().is_none_or(|parent| !inner.entries.contains_key(parent)) {
            return Err(not_found());
        }
        inner.entries.insert(path.to_owned(), None);
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.whole()?;
        let mut inner = self.0.inner();
        if inner.entries.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if path.parent().is_none_or(|parent| !inner.entries.contains_key(parent)) {
            return Err(not_found());
        }
        let content = Arc::<Mutex<Content>>::default();
        inner.entries.insert(path.to_owned(), Some(content.clone()));
        Ok(Box::new(FaultyFile { disk: self.0.clone(), content }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Readable>> {
        let fault = self.0.inner().fault;
        let before = self.0.operations();
        self.0.whole()?;
        if let Some((at, Fault::Read(kind))) = fault
            && before >= at
        {
            return Ok(Box::new(Unreadable(kind)));
        }
        let content = self.0.inner().entries.get(path).cloned().flatten().ok_or_else(not_found)?;
        let bytes = content.lock().unwrap_or_else(|poison| poison.into_inner()).bytes.clone();
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.whole()?;
        let mut inner = self.0.inner();
        let moved: Vec<PathBuf> = inner.entries.keys().filter(|path| path.starts_with(from)).cloned().collect();
        if moved.is_empty() {
            return Err(not_found());
        }
        if inner.entries.keys().any(|path| path != to && path.starts_with(to)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        for path in moved {
            let content = inner.entries.remove(&path).flatten();
            let inside = path.strip_prefix(from).map_err(|_| not_found())?;
            let path = if inside.as_os_str().is_empty() { to.to_owned() } else { to.join(inside) };
            inner.entries.insert(path, content);
        }
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.0.whole()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.whole()?;
        let mut inner = self.0.inner();
        let before = inner.entries.len();
        inner.entries.retain(|other, _| !other.starts_with(path));
        if inner.entries.len() == before { Err(not_found()) } else { Ok(()) }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.whole()?;
        let inner = self.0.inner();
        if !inner.entries.contains_key(path) {
            return Err(not_found());
        }
        Ok(inner.entries.keys().filter(|other| other.parent() == Some(path)).cloned().collect())
    }
}
