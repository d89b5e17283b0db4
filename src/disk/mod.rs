//! Files, and what can go wrong with them.
//!
//! Every operation on a file goes through a [`disk::Disk`]: the real one, or in tests one that fails where it is told to. What is
//! written here is whole and synced, or does not have its final name.

pub(crate) mod checksum;
#[expect(clippy::module_inception, reason = "the folder is named after its main type")]
pub(crate) mod disk;
#[cfg(test)]
pub(crate) mod faulty;
pub(crate) mod folder;
pub(crate) mod safetensors;
