//! Snapshots on disk. Each has a folder `snapshot-K` with the state and, in the full form, one file of rows for each component.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::checksum::Checksum;
use crate::disk::disk::{Disk, DiskFile, Doing, damage, read_all};
use crate::disk::endian::{from_file, to_file};
use crate::disk::error::DiskError;
use crate::disk::folder::{REPLACED, UNFINISHED, UnfinishedFolder, is_of_another_process, unfinished};
use crate::disk::safetensors::{header, read_header};
use crate::memory::frame::Frame;
use crate::ring_store::snapshot::body::{Body, SavedBody, SavedFile, SavedFrame};
use crate::ring_store::snapshot::error::{RefusedSnapshot, ResumeError, SnapshotError};
use crate::ring_store::snapshot::snapshot::{Seen, Snapshot};
use crate::rows::layout::{Component, Layout};

/// The file with the state.
const STATE: &str = "snapshot.jsonl";
const PREFIX: &str = "snapshot-";

fn folder_name(minibatches: u64) -> String {
    format!("{PREFIX}{minibatches}")
}

/// What has the name of a snapshot in a folder.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// The whole snapshots, oldest first: k, and the path of each.
    pub(crate) whole: Vec<(u64, PathBuf)>,
    /// The others, and what is wrong with each.
    pub(crate) others: Vec<(PathBuf, RefusedSnapshot)>,
}

/// The k in the name of a snapshot's folder. `None` if it is not such a name.
fn k_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(REPLACED).unwrap_or(name);
    let k = name.strip_prefix(PREFIX)?.parse().ok()?;
    (folder_name(k) == name).then_some(k)
}

/// Lists what has the name of a snapshot, oldest first. A folder that does not exist has none.
fn named(disk: &dyn Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, DiskError> {
    let all = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        all => all.doing("list", dir)?,
    };
    let mut named: Vec<(u64, PathBuf)> = all.into_iter().filter_map(|path| Some((k_of(&path)?, path))).collect();
    named.sort();
    Ok(named)
}

/// Lists the snapshots in a folder: whole ones, and others. Reads the state of each and the length of its files, but no rows.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Listed, DiskError> {
    let mut listed = Listed::default();
    for (k, path) in named(disk, dir)? {
        match look(disk, &path, k)? {
            Ok(_) => listed.whole.push((k, path)),
            // Another process may have removed it since it was listed.
            Err(reason) if disk.list(dir).doing("list", dir)?.contains(&path) => listed.others.push((path, reason)),
            Err(_) => {}
        }
    }
    // Of two with one k, the second was being replaced by the first.
    listed.whole.dedup_by_key(|(k, _)| *k);
    Ok(listed)
}

/// Lists the whole snapshots, and warns of the others.
pub(crate) fn list_whole(disk: &dyn Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, DiskError> {
    let Listed { whole, others } = list(disk, dir)?;
    for (path, reason) in others {
        tracing::warn!(path = %path.display(), %reason, "a folder has the name of a snapshot and is not counted as one");
    }
    Ok(whole)
}

/// Checks a snapshot without reading rows: its state is sealed, and its files have their lengths. Says what is wrong with it.
fn look(disk: &dyn Disk, path: &Path, k: u64) -> Result<Result<Seen, RefusedSnapshot>, DiskError> {
    let damaged = |reason: String| Ok(Err(RefusedSnapshot::Damaged { reason }));
    let bytes = match read_all(disk, &path.join(STATE)) {
        Ok(bytes) => bytes,
        Err(error) => return damage(&error.error).map_or(Err(error), |reason| damaged(format!("{STATE}: {reason}"))),
    };
    let found = match Seen::read(&bytes) {
        Ok(found) => found,
        Err(reason) => return Ok(Err(reason)),
    };
    if found.minibatches != k {
        let own = folder_name(found.minibatches);
        return damaged(format!("it is {own}: give the folder that name again, or move it away if it is a copy"));
    }
    for SavedFile { file, offset, bytes, .. } in &found.files {
        let name = path.join(file);
        let length = match disk.open(&name).and_then(|mut file| file.seek(io::SeekFrom::End(0))) {
            Ok(length) => length,
            Err(error) => match damage(&error) {
                Some(reason) => return damaged(format!("{file}: {reason}")),
                None => return Err(DiskError::reading(&name, error)),
            },
        };
        if length != offset.saturating_add(*bytes) {
            return damaged(format!(
                "{file}: it has {length} bytes, and its rows need {}",
                offset.saturating_add(*bytes)
            ));
        }
    }
    Ok(Ok(found))
}

/// Checks that the run may save a snapshot into a folder: the newest whole snapshot there is its own, and not of a later minibatch than
/// the store has saved itself, as `saved` says. Pruning would otherwise remove each snapshot of this run in favour of the others.
fn check_folder(disk: &dyn Disk, dir: &Path, body: &Body, saved: &AtomicU64) -> Result<(), SnapshotError> {
    // Noted before the snapshot has its name. So one that this store saves at the same time is never later.
    saved.fetch_max(body.minibatches, Ordering::SeqCst);
    // If the folder cannot be listed, the snapshot cannot be written, and that error says so.
    let newest = named(disk, dir).unwrap_or_default().into_iter().rev();
    let whole = |(k, path): (u64, PathBuf)| match look(disk, &path, k) {
        Ok(Ok(seen)) => Some(Ok((k, path, seen.run))),
        Ok(Err(_)) => None,
        Err(error) => Some(Err(error)),
    };
    let Some((k, path, of)) = newest.filter_map(whole).next().transpose()? else { return Ok(()) };
    if of.is_some() && of != body.run {
        return Err(SnapshotError::OtherRun { dir: dir.to_owned(), minibatches: k });
    }
    if k > saved.load(Ordering::SeqCst) {
        return Err(SnapshotError::Later { path, minibatches: k, taken: body.minibatches });
    }
    Ok(())
}

/// Begins the folder of a snapshot.
fn begin(disk: Arc<dyn Disk>, dir: &Path, body: &Body, saved: &AtomicU64) -> Result<UnfinishedFolder, SnapshotError> {
    disk.create_dir_all(dir).doing("create", dir)?;
    check_folder(&*disk, dir, body, saved)?;
    Ok(UnfinishedFolder::begin(disk, dir, &folder_name(body.minibatches))?)
}

/// Writes a snapshot without rows. `saved` is the largest number of minibatches of the store's snapshots so far.
pub(crate) fn write_light(
    disk: Arc<dyn Disk>,
    dir: &Path,
    snapshot: &Snapshot,
    saved: &AtomicU64,
) -> Result<PathBuf, SnapshotError> {
    let folder = begin(disk, dir, &snapshot.body, saved)?;
    folder.write(STATE, &snapshot.to_bytes())?;
    Ok(folder.finish()?)
}

/// A full snapshot that is being written, frame by frame.
pub(crate) struct FullWriter {
    folder: UnfinishedFolder,
    body: Body,
    files: Vec<RowsFile>,
    frames: Vec<SavedFrame>,
}

struct RowsFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    offset: u64,
    bytes: u64,
    checksum: Checksum,
}

impl FullWriter {
    /// Begins the snapshot of a state with `rows` rows. `saved` is the largest number of minibatches of the store's snapshots so far.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        dir: &Path,
        body: Body,
        layout: &Layout,
        rows: u64,
        saved: &AtomicU64,
    ) -> Result<Self, SnapshotError> {
        let folder = begin(disk.clone(), dir, &body, saved)?;
        let file = |(number, component): (usize, &Component)| {
            let path = folder.path().join(format!("component-{number}.safetensors"));
            let header = header(component.dtype.stored(), rows, component.features);
            let mut file = disk.create(&path).doing("create", &path)?;
            file.write_all(&header).doing("write", &path)?;
            Ok(RowsFile { path, file, offset: header.len() as u64, bytes: 0, checksum: Checksum::default() })
        };
        let files = layout.components().iter().enumerate().map(file).collect::<Result<_, DiskError>>()?;
        Ok(FullWriter { folder, body, files, frames: Vec::new() })
    }

    /// Writes the first rows of `from`, as many as `frame` says.
    pub(crate) fn append(&mut self, frame: SavedFrame, from: &Frame) -> Result<(), DiskError> {
        for (component, RowsFile { path, file, bytes, checksum, .. }) in self.files.iter_mut().enumerate() {
            let rows = to_file(from.rows(component, frame.rows()), from.layout().components()[component].dtype.size());
            file.write_all(&rows).doing("write", path)?;
            *bytes += rows.len() as u64;
            checksum.update(&rows);
        }
        self.frames.push(frame);
        Ok(())
    }

    /// Makes all files durable, and gives the snapshot its name.
    pub(crate) fn finish(mut self) -> Result<PathBuf, DiskError> {
        let mut files = Vec::new();
        for (component, RowsFile { path, mut file, offset, bytes, checksum }) in self.files.into_iter().enumerate() {
            file.sync().doing("sync", &path)?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            files.push(SavedFile { component, file: name, offset, bytes, xxh3: checksum.finish() });
        }
        self.body.saved = Some(SavedBody { frames: self.frames, files });
        self.folder.write(STATE, &Snapshot::new(self.body).to_bytes())?;
        self.folder.finish()
    }
}

/// Reads the state of the newest snapshot in `dir`. If `dir` itself is a snapshot, reads that snapshot. Also returns the path.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<(Snapshot, PathBuf), ResumeError> {
    let inside = disk.list(dir).doing("list", dir)?;
    let path = if inside.contains(&dir.join(STATE)) {
        dir.to_owned()
    } else {
        // A newest one that is not whole is refused below, with the name of the one before it.
        let mut named = named(disk, dir)?;
        // Of two with one k, the second was being replaced by the first.
        named.dedup_by_key(|(k, _)| *k);
        named.pop().ok_or_else(|| ResumeError::NoSnapshot { dir: dir.to_owned() })?.1
    };
    let refuse = |reason| refused(disk, &path, reason);
    match read_all(disk, &path.join(STATE)) {
        Ok(bytes) => Ok((Snapshot::parse(&bytes).map_err(refuse)?, path)),
        Err(error) => Err(match damage(&error.error) {
            Some(reason) => refuse(RefusedSnapshot::Damaged { reason: format!("{STATE}: {reason}") }),
            None => error.into(),
        }),
    }
}

/// Makes the error for a snapshot that cannot be used. The error offers the snapshot before it, if there is one.
fn refused(disk: &dyn Disk, path: &Path, reason: RefusedSnapshot) -> ResumeError {
    let dir = path.parent().unwrap_or(path);
    let whole = list(disk, dir).unwrap_or_default().whole;
    let earlier = k_of(path).and_then(|own| whole.into_iter().rev().find(|(k, _)| *k < own));
    ResumeError::Refused { what: path.display().to_string(), reason, earlier: earlier.map(|(_, earlier)| earlier) }
}

/// Reads the rows of a full snapshot, frame by frame, in the order in which they were written.
pub(crate) struct RowsReader<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    saved: &'a SavedBody,
    files: Vec<(Box<dyn Read + Send>, Checksum)>,
}

impl<'a> RowsReader<'a> {
    pub(crate) fn open(
        disk: &'a dyn Disk,
        path: &'a Path,
        saved: &'a SavedBody,
        layout: &Layout,
    ) -> Result<Self, ResumeError> {
        let mut reader = RowsReader { disk, path, saved, files: Vec::new() };
        let rows: usize = saved.frames.iter().map(|frame| frame.rows()).sum();
        for (component, file) in layout.components().iter().zip(&saved.files) {
            let name = path.join(&file.file);
            let mut file = disk.open(&name).map_err(|error| reader.unreadable(&file.file, error))?;
            let shape = read_header(&mut file, component.dtype.stored()).map_err(|error| {
                reader.unreadable(name.file_name().and_then(|name| name.to_str()).unwrap_or_default(), error)
            })?;
            if shape != [rows as u64, component.features as u64] {
                let what = format!("it holds {} × {} values, not {rows} × {}", shape[0], shape[1], component.features);
                return Err(reader.damaged(&name.display().to_string(), &what));
            }
            reader.files.push((file, Checksum::default()));
        }
        Ok(reader)
    }

    /// Fills the first rows of `into`, as many as `frame` says.
    pub(crate) fn read(&mut self, frame: SavedFrame, into: &mut Frame) -> Result<(), ResumeError> {
        if frame.rows() > into.layout().rows() {
            return Err(self.damaged("its list of frames", "a frame has more rows than there is room for"));
        }
        for component in 0..self.files.len() {
            let (file, checksum) = &mut self.files[component];
            let dtype = into.layout().components()[component].dtype;
            let rows = into.rows_mut(component, frame.rows());
            if let Err(error) = file.read_exact(rows) {
                return Err(self.unreadable(&self.saved.files[component].file, error));
            }
            checksum.update(rows);
            from_file(rows, dtype.size());
        }
        Ok(())
    }

    /// Compares the checksums. Call this once all frames are read.
    pub(crate) fn finish(self) -> Result<(), ResumeError> {
        for ((_, checksum), saved) in self.files.iter().zip(&self.saved.files) {
            let found = checksum.finish();
            if found != saved.xxh3 {
                return Err(self.damaged(&saved.file, "its checksum does not match"));
            }
        }
        Ok(())
    }

    /// Tells a damaged file from a system that failed.
    fn unreadable(&self, file: &str, error: io::Error) -> ResumeError {
        match damage(&error) {
            Some(what) => self.damaged(file, &what),
            None => DiskError::reading(&self.path.join(file), error).into(),
        }
    }

    pub(crate) fn damaged(&self, file: &str, what: &str) -> ResumeError {
        refused(self.disk, self.path, RefusedSnapshot::Damaged { reason: format!("{file}: {what}") })
    }
}

/// Removes all but the newest `keep` whole snapshots, and unfinished snapshots of other processes. Returns the k of each removed snapshot.
pub(crate) fn prune(disk: &dyn Disk, dir: &Path, keep: usize) -> Result<Vec<u64>, DiskError> {
    let mut all = list_whole(disk, dir)?;
    all.truncate(all.len().saturating_sub(keep));
    let mut removed = Vec::new();
    for (k, path) in all {
        // Takes the name away first, so that no reader takes a partly removed snapshot for a whole one.
        let gone = path.with_file_name(unfinished(&format!("{PREFIX}gone")));
        if unless_gone(disk.rename(&path, &gone)).doing("rename", &path)? {
            unless_gone(disk.remove(&gone)).doing("remove", &gone)?;
            removed.push(k);
        }
    }
    let left = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&format!("{UNFINISHED}{PREFIX}")) && is_of_another_process(name)
    };
    for path in disk.list(dir).unwrap_or_default().iter().filter(|path| left(path)) {
        // The caller asked for something else, and it is done.
        let _ = disk.remove(path);
    }
    Ok(removed)
}

/// Whether an operation on a folder was done. `false` if another process has removed the folder.
fn unless_gone(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    }
}

#[cfg(test)]
mod tests;
