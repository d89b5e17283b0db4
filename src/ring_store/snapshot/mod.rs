//! Snapshots: the state of a store between two minibatches, in memory and on disk.
//!
//! A running store keeps a journal of the rows that it deals. A snapshot is made from the journal, and is written to a directory of
//! its own. Reading checks the snapshot, and returns it or an error. A store that is built from the snapshot goes on where the
//! first store stood.

pub(crate) mod asking;
pub(crate) mod body;
mod chunks;
pub(crate) mod ended_names;
pub(crate) mod error;
pub(crate) mod files;
pub(crate) mod frames;
mod hex;
pub(crate) mod journal;
pub(crate) mod passes;
pub(crate) mod restart;
pub(crate) mod resume;
pub(crate) mod saving;
#[expect(clippy::module_inception, reason = "the folder is named after its main type")]
pub(crate) mod snapshot;
pub(crate) mod snapshots;
pub(crate) mod taken;
