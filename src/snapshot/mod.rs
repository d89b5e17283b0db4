//! The state of a store between two minibatches, in memory and on disk.
//!
//! A running store keeps a journal of what it deals. A snapshot comes out of it, goes to a directory of its own, and comes back
//! checked, or not at all. The store that is built from it deals on where the first one stood.

pub(crate) mod body;
pub(crate) mod files;
mod hex;
pub(crate) mod journal;
#[expect(clippy::module_inception, reason = "the folder is named after its main type")]
pub(crate) mod snapshot;
pub(crate) mod snapshots;
