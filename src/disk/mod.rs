//! Files, and the errors of files.
//!
//! Every operation on a file goes through a [`disk::Disk`]: the real disk or, in tests, a disk that fails where a test says. A folder
//! that is written here is whole and synced, or does not have its final name.

pub(crate) mod checksum;
#[expect(clippy::module_inception, reason = "the folder is named after its main type")]
pub(crate) mod disk;
pub(crate) mod endian;
pub(crate) mod error;
#[cfg(test)]
pub(crate) mod faulty;
pub(crate) mod folder;
pub(crate) mod safetensors;
pub(crate) mod sealed;
