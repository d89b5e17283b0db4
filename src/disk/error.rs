//! An operation on a file or a folder failed, and what helps.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Returned when an operation on a file or a folder fails.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {operation} {}: {error}{}", path.display(), advice(error))]
#[non_exhaustive]
pub struct DiskError {
    /// The operation, for example `"write"`.
    pub operation: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The error of the operating system. The message has it, so it is not a source as well.
    pub error: Arc<io::Error>,
}

/// The number of the error "too many open files", which has no [`io::ErrorKind`].
const TOO_MANY_FILES: i32 = 24;

fn advice(error: &io::Error) -> &'static str {
    if cfg!(unix) && error.raw_os_error() == Some(TOO_MANY_FILES) {
        return " (the process has too many files open: raise its limit, for example with `ulimit -n`)";
    }
    match error.kind() {
        io::ErrorKind::StorageFull => " (the disk is full: free some space, or choose a folder on another disk)",
        io::ErrorKind::QuotaExceeded => " (your quota is used up: free some space, or choose a folder on another disk)",
        io::ErrorKind::PermissionDenied => {
            " (you may not write or read there: change the permissions, or choose another folder)"
        }
        io::ErrorKind::ReadOnlyFilesystem => " (nothing can be written there: choose another folder)",
        io::ErrorKind::StaleNetworkFileHandle => {
            " (the server of the network folder has lost it: mount the folder again)"
        }
        io::ErrorKind::NotFound => " (it does not exist, or not any more)",
        _ => "",
    }
}

impl DiskError {
    pub(crate) fn reading(path: &Path, error: io::Error) -> Self {
        DiskError { operation: "read", path: path.to_owned(), error: Arc::new(error) }
    }
}

/// Two errors are equal if the same operation on the same path failed with the same kind of error.
impl PartialEq for DiskError {
    fn eq(&self, other: &Self) -> bool {
        (self.operation, &self.path, self.error.kind()) == (other.operation, &other.path, other.error.kind())
    }
}

impl Eq for DiskError {}
