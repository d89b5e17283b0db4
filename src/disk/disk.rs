//! The operations on files that the crate uses, and their implementation by the operating system.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::error::DiskError;

/// The operations on files. Each method is one operation that can fail.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder in a folder that is there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates a file. An error if the name exists.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a regular file, to read it from its start. Anything else is an error of the kind `InvalidData`.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Readable>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file, or a folder with everything in it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Lists the paths in a folder, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
}

/// A file that is written from its start to its end. At the end its head may be replaced.
pub(crate) trait DiskFile: Send {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Writes the first bytes again. You may not write anything after this call.
    fn replace_head(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the written bytes durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is open for reading.
pub(crate) trait Readable: Read + Seek + Send {}

impl<T: Read + Seek + Send> Readable for T {}

/// The operating system's files.
#[derive(Debug)]
pub(crate) struct Files;

/// Makes a shared handle to the operating system's files.
pub(crate) fn files() -> Arc<dyn Disk> {
    Arc::new(Files)
}

impl Disk for Files {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Readable>> {
        let kind = fs::metadata(path)?.file_type();
        if !kind.is_file() {
            // To open a pipe would wait until another process writes to it.
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is {}, not a file", described(kind))));
        }
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    #[cfg(unix)]
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// Does nothing: other systems have no such operation.
    #[cfg(not(unix))]
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
    }
}

fn described(kind: fs::FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    if kind.is_dir() { "a folder" } else { "a device" }
}

impl DiskFile for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn replace_head(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seek(SeekFrom::Start(0))?;
        Write::write_all(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Adds the path and the operation to an error.
pub(crate) trait Doing<T> {
    /// Adds `path` and `operation`, a verb that follows "cannot" in the message.
    fn doing(self, operation: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, operation: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|error| DiskError { operation, path: path.to_owned(), error: Arc::new(error) })
    }
}

/// Says what is wrong with a file that cannot be read. `None` if the system failed: then the file may be whole.
pub(crate) fn damage(error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("it is missing".to_owned()),
        io::ErrorKind::UnexpectedEof => Some("it ends too early".to_owned()),
        io::ErrorKind::NotADirectory => Some("its folder is not a folder".to_owned()),
        io::ErrorKind::InvalidData => Some(error.to_string()),
        _ => None,
    }
}

/// Reads a whole file.
pub(crate) fn read_all(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    disk.open(path).and_then(|mut file| file.read_to_end(&mut bytes)).doing("read", path)?;
    Ok(bytes)
}
